"""Run by hand: who draws the best faces after the same minutes, on the same two CPU threads?

    python experiments/speedrun.py                 ours; Ctrl-C stops, the same command goes on
    python experiments/speedrun.py --peer rosinality=FOLDER dulaku=FOLDER lucidrains=FOLDER \\
        ada=FOLDER                                 and what one could take instead
    python experiments/speedrun.py --peer mine=mine.py             anything else (see below)
    python experiments/speedrun.py --options "--r1-gamma 1"        train.py with other options
    python experiments/speedrun.py --table         the table, of what has been measured so far
    python experiments/speedrun.py --plot speedrun.png             a row of pictures of each

Ours are the two default commands, `python train.py` and `--architecture stylegan2`. The peers are
fetched elsewhere and not changed: github.com/rosinality/style-based-gan-pytorch,
github.com/dulaku/StyleGAN-for-Humans, github.com/lucidrains/stylegan2-pytorch and
github.com/NVlabs/stylegan2-ada-pytorch. Their networks learn in loops that speedrun_peers.py has:
once with the settings that their own scripts choose for 32 px ("-own"), and once with ours, as far
as the networks can be told ("-ours"). All see the same 10,000 painted faces.

The rules. Only training counts: the loading of pictures is a part of it, while building, rehearsing
and a first step to warm up are not, nor is anything after a mark is reached (--minutes). At a mark
the generator draws 5,000 pictures without truncation, which are rounded to bytes and kept. It is
the generator from which the implementation itself would sample: the averaged one, where there is
one. If it stands at 8 px, its pictures are enlarged by nearest neighbour, as growing networks
enlarge them, and compared with the same reals of 32 px as all others. FD-EffLite0, KID, precision
and recall (evaluate.py) are computed later, from the files. Three seeds: a difference smaller than
that between the seeds of one row says nothing. A job that was stopped begins anew.

--clock cpu counts the CPU time of all threads, divided by --threads. It is for a machine that does
something else meanwhile. What it misses: others use the caches, too; a thread that waits for the
other by spinning counts as one that works; and where one thread works while the other sleeps, half
of the time is missing. For numbers that are to be quoted take a quiet machine and the other clock.

To enter something else, write a file with a function `enter(reals)`, your training loop. It yields
once when the networks are made, and then after each step: how many real images D was shown, and a
function that draws n pictures, floats [n, 3, R, R] in [-1, 1], with torch's random numbers.

    def enter(reals):
        G, D, ... = ...
        yield
        while True:
            images = reals(32, 16)             # [16, 3, 32, 32] in [-1, 1], shuffled and mirrored
            ...                                # one step
            yield 16, lambda n: G_ema(torch.randn(n, 512))

Needs:    pip install -r requirements-extra.txt
[MACHINE] 2 CPU cores: with all peers ten arms, 30 runs of 8 minutes, and about as long again to
          draw and to measure (estimated). Up to 6 GB of memory (ada-own, estimated). Disk:
          15 MB a mark, 1.4 GB in all.
"""

import argparse
import functools
import importlib.util
import os
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))        # before this folder
import convert
import evaluate
import speedrun_peers
import stylegan_dataloader as data
import stylegan_models as models
import train
from workshop import UserError, curves, features, figures, machine, measuring, options, pictures

CPU, PX, PEERS = speedrun_peers.CPU, speedrun_peers.PX, speedrun_peers.PEERS
OURS = ("stylegan", "stylegan2")
FD, KID = "FD-EffLite0", "KID-EffLite0"


# ==== Part 1: the race ========================================================================


class Race:
    """The clock of one job and its marks.

    marks: minutes, ascending. now: a function that gives seconds. save(mark, seconds, nimg, sample)
    is called with the clock standing.
    Proved: tests/test_speedrun.py::test_the_clock_stands_while_pictures_are_drawn
    """

    def __init__(self, marks, now, save):
        self.left, self.now, self.save, self.seconds = list(marks), now, save, 0.0

    def go(self):
        self.began = self.now()

    def stop(self, nimg, sample, last=False):
        """After a step. Saves at the marks that it reached, or at all if it was the last one.

        Returns whether there are no more marks.
        """
        self.seconds += self.now() - self.began
        while self.left and (last or self.seconds >= 60 * self.left[0]):
            self.save(self.left.pop(0), self.seconds, nimg, sample)
        return not self.left


def run_loop(loop, race):
    """A loop that yields, as the top of this file explains, until the last mark is reached."""
    nimg, finished = 0, False
    next(loop)                                                 # its networks are made
    while not finished:
        race.go()
        shown, sample = next(loop)
        nimg += shown
        finished = race.stop(nimg, sample)


class Reals:
    """The painted faces as packed for train.py, in memory: reals(resolution, batch).

    Every picture comes once in an epoch, mirrored with probability 1/2, or never if mirror=False.
    Shapes: -> float [N, 3, R, R] in [-1, 1].
    Proved: tests/test_speedrun.py::test_reals_are_shuffled_and_mirrored_faces
    """

    def __init__(self, folder, seed):
        self.levels = {r: np.array(pictures.open_level(str(folder), r))
                       for r in models.resolutions_up_to(PX)}
        self.rng, self.order = np.random.default_rng(seed), np.zeros(0, int)

    def __call__(self, resolution, batch, mirror=True):
        pixels = self.levels[resolution]
        while len(self.order) < batch:
            self.order = np.concatenate([self.order, self.rng.permutation(len(pixels))])
        chosen, self.order = pixels[self.order[:batch]], self.order[batch:]
        flipped = self.rng.random(batch) < 0.5 * mirror
        chosen[flipped] = chosen[flipped, :, ::-1]             # [N, R, R, 3]
        return (torch.from_numpy(chosen).permute(0, 3, 1, 2) / 127.5 - 1).contiguous()


@torch.no_grad()
def draw(sample, n):
    """n pictures as bytes [n, R, R, 3]: always of the same z, and without a trace in the training.

    Proved: tests/test_speedrun.py::test_drawing_leaves_no_trace
    """
    drawn, state = [], random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        for start in range(0, n, 50):
            images = sample(min(50, n - start))
            if not images.isfinite().all():
                raise UserError("its pictures are no longer finite numbers")
            drawn.append(data.to_pixels(images))
    random.setstate(state)
    return torch.cat(drawn).numpy()


# ==== Part 2: ours ============================================================================


def run_ours(words, race):
    """train.py, whose Run lets the clock go and stop. Its rehearsal and its saving do not count.

    Its total is put off to the last mark; if the user's words bring one that is reached before,
    what it has drawn then counts for the later marks, too.
    """
    class TimedRun(train.Run):
        def start(self, *arguments):
            begun = super().start(*arguments)
            race.go()
            return begun

        def after_step(self, nimg, step, stage, alpha, *more):
            def sample(n):
                return self.G_ema(torch.randn(n, self.o.latent_dim), resolution=stage.resolution,
                                  alpha=alpha)
            if race.stop(nimg, sample, last=nimg >= self.total):
                self.total = nimg                              # so this step is the last one
            super().after_step(nimg, step, stage, alpha, *more)
            race.go()

    with mock.patch.object(train, "Run", TimedRun):
        train.main(["--total-kimg", "1000000", "--device", "cpu", *words])
    if race.left:
        raise UserError("train.py ended before the last mark")


# ==== Part 3: the peers =======================================================================


def read_peers(words):
    """["ada=FOLDER", "mine=mine.py"] -> {arm: a function of the reals that returns its loop}"""
    arms = {}
    for word in words:
        name, _, where = word.partition("=")
        path = Path(where).resolve()
        if name in PEERS:
            loop, file, mark = PEERS[name]
            if not (path / file).is_file() or mark not in (
                    path / file).read_text("utf-8", "replace"):
                raise UserError(f"--peer {word}: no folder with {name}'s program "
                                f"({file} with {mark!r} in it)")
            for ours in (False, True):
                arms[f"{name}-{'ours' if ours else 'own'}"] = functools.partial(
                    loop, folder=str(path), ours=ours)
        elif path.suffix == ".py" and path.is_file() and re.fullmatch(r"\w+", name) and (
                name not in OURS):
            arms[name] = functools.partial(entered, path=path)
        else:
            raise UserError(f"--peer {word}: give NAME=FOLDER, with a name of {', '.join(PEERS)}, "
                            f"or any other NAME=FILE.py")
    return arms


def entered(reals, path):
    """The loop of somebody's own file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "enter"):
        raise UserError(f"--peer: {path} has no function enter(reals)")
    return module.enter(reals)


# ==== Part 4: the jobs ========================================================================


def mark_file(job, mark):
    return job / f"{mark:g}-minutes.npz"


def measured(job):
    """{mark in minutes: its line of results.jsonl}"""
    return {line["minutes"]: line for line in curves.read_lines(job / "results.jsonl")}


def pack(o):
    """(folder, source) of the painted faces, packed as train.py does."""
    source = pictures.find_pictures(None)
    return pictures.pack_pictures(source, PX, o.cache, machine.cores(), report=print), source


def train_job(o, arm, seed, job):
    """From the start to the last mark. What a run that was stopped has left is dropped."""
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir(parents=True)

    def save(mark, seconds, nimg, sample):
        pixels = draw(sample, o.images)
        figures.save_arrays(mark_file(job, mark), pixels=pixels, nimg=nimg, seconds=seconds)
        print(f"{mark:g} minutes: {nimg / 1000:g} kimg in {seconds:.1f} s, {pixels.shape[1]} px",
              flush=True)

    now = time.perf_counter if o.clock == "wall" else lambda: time.process_time() / o.threads
    race = Race(o.minutes, now, save)
    if arm in o.ours:
        return run_ours([*o.ours[arm], "--seed", str(seed), "--cache", o.cache, "--out",
                         str(job / "run")], race)
    faces, _ = pack(o)
    try:
        for _ in zip(range(2), o.peers[arm](Reals(faces, seed))):
            pass                                               # made, and a first step to warm up
    except ImportError as error:
        raise UserError(f"{arm} cannot be imported here: {error}") from None
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    run_loop(o.peers[arm](Reals(faces, seed)), race)


def enlarged(pixels):
    """uint8 [n, R, R, 3] -> [n, 32, 32, 3], each pixel copied."""
    times = PX // pixels.shape[1]
    return pixels.repeat(times, axis=1).repeat(times, axis=2)


def measure_job(o, job):
    """A line of results.jsonl for each mark that has none yet."""
    faces, source = pack(o)
    network = features.load_features("efficientnet-lite0", CPU)
    dataset = data.PictureDataset(faces, source, PX)
    reals = measuring.real_features(network, dataset, min(o.images, len(dataset)), 50, CPU, 1.0,
                                    o.cache)
    for mark in sorted(set(o.minutes) - set(measured(job))):
        found = np.load(mark_file(job, mark))
        batches = torch.from_numpy(enlarged(found["pixels"])).split(50)
        fakes = features.compute_features(network, map(data.to_images, batches), len(batches),
                                          f"{mark:g} minutes")
        values = evaluate.compare(("fid", "kid", "precision_recall"), fakes, reals, None)
        curves.append_line(job / "results.jsonl", {
            "minutes": mark, "nimg": int(found["nimg"]), "seconds": float(found["seconds"]),
            "resolution": found["pixels"].shape[1], FD: values["FID"][0], KID: values["KID"][0],
            "precision": values["Precision"][0], "recall": values["Recall"][0]})


def do_job(o, arm, seed):
    """What of a job is not done yet. All arms keep freed memory, which is a merit of no network."""
    machine.keep_freed_memory()
    job = o.folder / f"{arm}-{seed}"
    if not mark_file(job, o.minutes[-1]).is_file():
        train_job(o, arm, seed, job)
    measure_job(o, job)


def work(o, argv):
    """All jobs that are not done yet, one at a time, each a process of its own. Returns who failed.

    All arms of a seed come before the next seed: who stops early has whole comparisons.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: takes the job along
    failed = []
    for name, arm, seed in [(f"{arm}-{seed}", arm, seed) for seed in o.seeds
                            for arm in (*o.ours, *o.peers)]:
        if set(o.minutes) <= set(measured(o.folder / name)):
            continue
        started = time.time()
        with open(o.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, __file__, *argv, "--job", arm, str(seed)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": str(o.threads)})
            try:
                process.wait()
            finally:
                process.terminate()
                process.wait()
        if process.returncode:
            failed.append(name)
        print(f"{name}: {time.time() - started:.0f} s"
              + f"; failed, and {o.folder / name}.log says why" * bool(process.returncode),
              flush=True)
    return failed


# ==== Part 5: what has been measured ==========================================================


def rows_of(o):
    """{arm: {seed: {mark: line}}} of the jobs that are done, the best at the last mark first."""
    rows = {}
    for results in sorted(o.folder.glob("*/results.jsonl")):
        arm, _, seed = results.parent.name.rpartition("-")
        lines = measured(results.parent)
        if set(o.minutes) <= set(lines) and int(seed) in o.seeds and o.wanted(arm):
            rows.setdefault(arm, {})[int(seed)] = lines
    return dict(sorted(rows.items(), key=lambda row: statistics.mean(
        lines[o.minutes[-1]][FD] for lines in row[1].values())))


def first_mark(lines, goal):
    """The first mark with an FD at or below the goal, as text; "not" if there is none."""
    return next((f"{mark:g}" for mark, line in sorted(lines.items()) if line[FD] <= goal), "not")


def print_table(o):
    """FD at each mark: the mean (each seed). The goal: each seed. The rest: means at the last."""
    last = o.minutes[-1]
    titles = ["kimg", "px", *(f"{FD} after {mark:g} min" for mark in o.minutes), KID, "precision",
              "recall", f"minutes to {FD} {o.goal:g}"]
    print(f"| | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}")
    for arm, seeds in rows_of(o).items():
        at_last = [lines[last] for lines in seeds.values()]
        kimg, kid, precision, recall = (statistics.mean(line[key] for line in at_last)
                                        for key in ("nimg", KID, "precision", "recall"))
        px = "/".join(map(str, sorted({line["resolution"] for line in at_last})))
        fds = [[lines[mark][FD] for lines in seeds.values()] for mark in o.minutes]
        cells = [f"{kimg / 1000:.3g}", px, *(
            f"{statistics.mean(found):.3g} ({', '.join(f'{fd:.3g}' for fd in found)})"
            for found in fds), f"{kid:.3f}", f"{precision:.2f}", f"{recall:.2f}",
            ", ".join(first_mark(lines, o.goal) for lines in seeds.values())]
        print(f"| {arm} | {' | '.join(cells)} |")


def plot(o, columns=12):
    """A row of pictures for each arm at the last mark, of its first seed, below one of reals."""
    def row(label, images):
        return figures.Row([figures.to_tile(image, figures.tile_side(PX)) for image in images],
                           label)
    rows, last = [row("painted faces", Reals(pack(o)[0], 0)(PX, columns))], o.minutes[-1]
    for arm, seeds in rows_of(o).items():
        seed, lines = next(iter(seeds.items()))
        line, file = lines[last], mark_file(o.folder / f"{arm}-{seed}", last)
        pixels = torch.from_numpy(enlarged(np.load(file)["pixels"][:columns]))
        rows.append(row(f"{arm}\nFD {line[FD]:.0f}\n{line['resolution']} px\n"
                        f"{line['nimg'] / 1000:.3g} kimg", data.to_images(pixels)))
    figures.save_picture(o.plot, figures.draw_figure(
        f"After {last:g} minutes on {o.threads} CPU thread{'s' * (o.threads > 1)} ({o.clock} time)",
        rows))
    print(o.plot)


def read_options(argv):
    def list_of(kind):
        return lambda text: sorted({kind(word) for word in text.split(",")})
    marks = options.number_from(0.001, float)
    parser = options.OneLineParser(prog="speedrun.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=FOLDER",
                        help=f"{', '.join(PEERS)}, or NAME=FILE.py with a function enter(reals)")
    parser.add_argument("--options", default="", metavar="TEXT",
                        help="train.py with these options, in place of our two")
    parser.add_argument("--arms", type=list_of(str), metavar="LIST",
                        help="only these: stylegan, stylegan2, ada-own, ada-ours, ...")
    parser.add_argument("--seeds", type=list_of(int), default=[0, 1, 2], metavar="LIST",
                        help="(default 0,1,2)")
    parser.add_argument("--minutes", type=list_of(marks), default=[2.0, 4.0, 8.0], metavar="LIST",
                        help="the marks, in minutes of training (default 2,4,8)")
    parser.add_argument("--images", type=options.number_from(8), default=5000, metavar="N",
                        help="drawn at each mark (default 5000)")
    parser.add_argument("--goal", type=options.number_from(0, float), default=60.0, metavar="X",
                        help=f"an {FD}: which mark is the first that reaches it? (default 60)")
    parser.add_argument("--threads", type=options.number_from(1), default=2, metavar="N",
                        help="of the CPU (default 2)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: for a machine that does something else, too (default wall)")
    parser.add_argument("--folder", type=Path, default=Path("experiment_speedrun"),
                        help="for everything that is made (default experiment_speedrun)")
    parser.add_argument("--cache", default="cache", help="for packed pictures, as of train.py")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="only draw the pictures of all")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    o = parser.parse_args(argv)
    if o.plot and o.plot.suffix.lower() not in figures.FIGURES:
        parser.error(f"--plot {o.plot}: is drawn as {', '.join(figures.FIGURES)}")
    if o.plot:
        figures.check_free(o.plot, "--plot")                   # a stranger's picture stays
    o.ours = {arm: ["--architecture", arm] for arm in OURS}
    try:
        words = shlex.split(o.options)
    except ValueError as error:
        parser.error(f"--options: {error}")
    if words:
        options.parse_args(words)                              # is there a word it does not know?
        o.ours = {re.sub(r"[^\w.,=]+", "-", o.options).strip("-"): words}
    o.peers = read_peers(o.peer)
    o.wanted = lambda arm: o.arms is None or arm in o.arms
    unknown = sorted(set(o.arms or []) - {*o.ours, *o.peers})
    if unknown and not (o.table or o.plot):                    # which show whatever is there
        parser.error(f"--arms: none is called {unknown[0]!r}; there are "
                     f"{', '.join([*o.ours, *o.peers])} (--peer brings more)")
    o.ours, o.peers = ({arm: what for arm, what in arms.items() if o.wanted(arm)}
                       for arms in (o.ours, o.peers))
    # A folder in it for each kind of run, so that no number of a rehearsal gets into a table.
    o.folder /= (f"{','.join(f'{mark:g}' for mark in o.minutes)}-minutes-{o.images}-images-"
                 f"{o.threads}-threads-{o.clock}")
    return o


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    o, failed = read_options(argv), []
    torch.set_num_threads(o.threads)
    if o.job:
        do_job(o, o.job[0], int(o.job[1]))
        return 0
    if not o.table and not o.plot:
        missing = [name for name in convert.PACKAGES if importlib.util.find_spec(name) is None]
        if missing:                                            # better now than after an hour
            raise UserError(f"needs {', '.join(missing)}: pip install -r requirements-extra.txt")
        o.folder.mkdir(parents=True, exist_ok=True)
        pack(o)
        failed = work(o, argv)
    if o.plot:
        plot(o)
    else:
        print_table(o)
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the same command tries again")
    return 0


if __name__ == "__main__":
    options.start(main, "speedrun.py", "stopped; the same command goes on")
