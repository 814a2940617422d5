"""Run by hand: is a block better faded in, morphed (morph.py), or simply there?

    python experiments/morph.py                all of it; Ctrl-C stops, the same command goes on
    python experiments/morph.py --table        the tables, of what has been measured so far
    python experiments/morph.py --plot growth.png               the same for the curves
    python experiments/morph.py --arms fade,morph               without the control

Networks learn painted faces from 4 to 32 px in three ways, which double at the same images:

                4 px      8 px                 16 px                32 px
    kimg   0 ------- 20 ------------ 60 ------------ 100 ----------- 140
    fade             |fading |       |fading |       |fading |            15 kimg, the default run's
    morph            |m|             |m|             |m|                  MORPH_KIMG
    jump             |               |               |                    the block is there at once

So at any image all of them have seen the same pictures at the same sizes. Between fade and morph
four things differ: how a block comes, how long it takes (15 or 5 kimg), whether the real pictures
are blurred meanwhile, and whether Adam starts afresh. Which of them made a difference is not asked.
"jump" is the control, a fade of no length: where it is as good as the others, they have gained
nothing.

FD-EffLite0 (of G_ema, 500 images; smaller is better) and the duality gap by evaluate.py, at the end
of each resolution and on the way there (AFTER). At a doubling itself train.py measures before it
doubles. Both are about pictures of the resolution of the moment, so values of different resolutions
are not compared. Time is the CPU's, of one thread and of training alone: neither the measuring nor
what else the machine did meanwhile is in it (but others use its caches, too, so a few per cent are
no difference). Three seeds: a difference smaller than that between the seeds of one row says
nothing.

Needs:    pip install -r requirements-extra.txt
[MACHINE] 2 CPU cores: some 75 minutes (estimated). More cores: --jobs. A GPU is not used, since
          train.py would choose other networks there.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import sys
import time
import types
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))        # before this folder, which
import convert                                                         # has a morph.py, too
import evaluate
import train
import workshop.run
from workshop import UserError, curves, figures, options

MORPH_KIMG = 5
GROWING = {"fade": 15, "morph": MORPH_KIMG, "jump": 0}                 # kimg, for each doubling
ENDS = {4: 20, 8: 60, 16: 100, 32: 140}                                # kimg
DOUBLINGS = list(ENDS.values())[:-1]
# kimg after a doubling: a morphed block half grown, finished; a faded one half grown at the second,
# finished at the third; the end.
AFTER = (2.5, 7.5, 17.5, 40)
POINTS = (20, *(start + after for start in DOUBLINGS for after in AFTER))
EVERY = 2.5                                        # kimg; every point is a multiple of it
FD, GAP = "FD-EffLite0", "duality_gap"


# ==== Part 1: the runs ========================================================================


def run_name(arm, seed):
    """Another MORPH_KIMG is another run, and leaves the others as they are."""
    return f"{arm}-{GROWING[arm]:g}-{seed}"


def plan(scale):
    """The jobs, as `convert.plan`. Seed by seed: who stops early has whole triples."""
    def kimg(amount):
        return f"{amount * scale:.12g}"

    def command(arm, seed):
        stabilize = DOUBLINGS[1] - DOUBLINGS[0] - GROWING[arm]
        return ["experiments/morph.py", "train", f"{scale:g}", "--resolution", 32,
                "--learning-rate", "0.003", "--precision", "fp32",     # when it was measured
                *(["--growth", "morph", "--morph-kimg"] if arm == "morph" else ["--fade-kimg"]),
                kimg(GROWING[arm]), "--stabilize-kimg", f"4:{kimg(ENDS[4])},8:{kimg(stabilize)}",
                "--total-kimg", kimg(ENDS[32]), "--tick-kimg", kimg(EVERY),
                "--evaluate-kimg", kimg(EVERY), "--evaluate-metrics", "duality_gap,fid",
                "--evaluate-features", "efficientnet-lite0",
                # evaluate.py refuses an FD of less than 100 images.
                "--evaluate-images", max(100, round(500 * scale)),
                "--seed", seed, "--out", run_name(arm, seed), "--device", "cpu"]

    # train.py writes checkpoint-32.pt at the end.
    return {run_name(arm, seed): (command(arm, seed), [], Path(run_name(arm, seed),
                                                               "checkpoint-32.pt"))
            for seed in convert.SEEDS for arm in GROWING}


def point_of(nimg, scale):
    """The multiple of EVERY that a run has just passed, in kimg of the whole experiment."""
    return nimg // max(1, round(1000 * EVERY * scale)) * EVERY


def train_measured(scale, words):
    """train.py, measured at POINTS only, and with the seconds of log.jsonl in CPU time.

    Why:    train.py measures at equal distances, and at 32 px a measurement takes as long as some
            7 kimg of training: often enough for a growing block would be too often for the rest.
    """
    prepare, settings = evaluate.prepare, evaluate.Settings
    steps = settings._field_defaults["dg_steps"]
    steps = max(1, round(steps * scale))                       # fewer in a rehearsal
    evaluate.Settings = functools.partial(settings, dg_steps=steps)

    def prepare_less(*arguments):
        measure = prepare(*arguments)

        def measure_less(resolution, alpha, grown, nimg, folder):
            if point_of(nimg, scale) in POINTS:
                yield from measure(resolution, alpha, grown, nimg, folder)
        return measure_less

    evaluate.prepare = prepare_less
    workshop.run.time = types.SimpleNamespace(perf_counter=time.process_time)
    options.start(train.main, "train.py", "stopped at once", words)


# ==== Part 2: what has been measured ==========================================================


class Run:
    """A run, as far as it is.

    measured: {metric: {point in kimg: value}}. minutes: of training up to a point in kimg.
    """

    def __init__(self, name, scale):
        self.measured = {FD: {}, GAP: {}}
        for line in curves.read_lines(Path(name, "metrics.jsonl")):
            self.measured[line["metric"]][point_of(line["nimg"], scale)] = line["value"]
        log = curves.read_lines(Path(name, "log.jsonl"))
        nimg = np.array([0, *(line["nimg"] for line in log)])
        seconds = np.diff(nimg) / 1000 * [line["seconds_per_kimg"] for line in log]
        self.minutes = functools.partial(np.interp, xp=nimg / 1000 / scale,
                                         fp=np.cumsum([0, *seconds]) / 60)


def finished_seeds(runs):
    """The seeds that every arm has finished: no mean favours an arm, or jumps where one ends."""
    return [seed for seed in convert.SEEDS
            if all(ENDS[32] in runs[arm, seed].measured[FD] for arm in GROWING)]


def mean_curve(runs, arm, metric):
    """{point: (mean minutes, mean value)} over the finished seeds."""
    finished, curve = [runs[arm, seed] for seed in finished_seeds(runs)], {}
    for point in POINTS:
        # A run that was killed while it measured, or stopped just before, lacks that point.
        if finished and all(point in run.measured[metric] for run in finished):
            curve[point] = (statistics.mean(float(run.minutes(point)) for run in finished),
                            statistics.mean(run.measured[metric][point] for run in finished))
    return curve


def at_size(resolution, curve):
    """The part of {point: ...} that was measured at this resolution, in order."""
    start = ENDS.get(resolution // 2, 0)
    return {point: curve[point] for point in sorted(curve) if start < point <= ENDS[resolution]}


def first_reached(target, curve):
    """Where {x: y} first falls to the target, between two points in a straight line; else None."""
    before = None
    for x, y in curve.items():
        if y <= target:
            return x if before is None else np.interp(target, (y, before[1]), (x, before[0]))
        before = x, y
    return None


def cell(mean, each):
    """ "mean (seed 1, seed 2, seed 3)" """
    return f"{mean} ({', '.join(each)})" if each else ""


def print_tables(runs):
    """FD at the end of each resolution, at equal time, and how soon; then the gap."""
    end, seeds = ENDS[32], finished_seeds(runs)
    minutes = {arm: [float(runs[arm, seed].minutes(end)) for seed in seeds] for arm in GROWING}
    curves = {arm: {point: value for point, (_, value) in at_size(32, mean_curve(
        runs, arm, FD)).items()} for arm in GROWING}
    shortest = min(map(statistics.mean, minutes.values())) if seeds else 0
    target = curves["fade"].get(end)

    def at_shortest(run):
        points = at_size(32, run.measured[FD])
        return np.interp(shortest, [run.minutes(point) for point in points],
                         list(points.values()))

    def reached(curve):
        point = first_reached(target, curve)
        return "not" if point is None else f"{point:.4g}"

    titles = [*(f"{r} px, {ENDS[r]} kimg" for r in (8, 16, 32)), "minutes of training",
              "32 px, equal time", "kimg until fade's end"]
    print(f"{FD}: mean (each) of the seeds that all ways have finished: "
          f"{', '.join(map(str, seeds)) or 'none yet'}.")
    if seeds:
        print(f"Equal time: after {shortest:.1f} minutes, the shortest mean. The last column: when "
              f"the FD at 32 px falls to {target:.3g}, the mean that fade ends with.")
    print()
    print(f"| | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}")
    for arm in GROWING:
        found = [[runs[arm, seed].measured[FD][ENDS[r]] for seed in seeds
                  if ENDS[r] in runs[arm, seed].measured[FD]] for r in (8, 16, 32)]
        found += [minutes[arm], [at_shortest(runs[arm, seed]) for seed in seeds]]
        cells = [cell(f"{statistics.mean(values):.3g}", [f"{value:.3g}" for value in values])
                 if values else "" for values in found]
        # Not a mean of the three, of which one may not get there: that of the mean curve.
        cells.append(cell(reached(curves[arm]), [
            reached(at_size(32, runs[arm, seed].measured[FD])) for seed in seeds]))
        print(f"| {arm} | {' | '.join(cells)} |")

    print("\nDuality gap: mean of the seeds, before a doubling and so many kimg after it\n")
    titles = ["before", *(f"+{after:g}" for after in AFTER)]
    print(f"| | | {' | '.join(titles)} |\n|---|---|{'---|' * len(titles)}")
    for start, resolution in zip(DOUBLINGS, list(ENDS)[1:]):
        for arm in GROWING:
            curve = mean_curve(runs, arm, GAP)
            values = [curve.get(start + after) for after in (0, *AFTER)]
            print(f"| to {resolution} px | {arm} |",
                  *(f"{value[1]:.2f} |" if value else "|" for value in values))


# ==== Part 3: the curves ======================================================================

COLOURS = {"fade": "tab:blue", "morph": "tab:red", "jump": "0.4"}
SHADES = {"fade": "#dfecf7", "morph": "#f9dede", "jump": "w"}          # while a block grows


def plot(runs, path):
    """FD over images and over time, the gap over images. Seeds thin, their mean bold."""
    from matplotlib.figure import Figure                       # no window, no global state
    figure = Figure(figsize=(9, 7.4), layout="constrained")
    panels = figure.subplot_mosaic([["images", "time"], ["gap", "gap"]])

    def draw(panel, metric, over_time):
        for arm in GROWING:
            colour = COLOURS[arm]
            mean = mean_curve(runs, arm, metric)
            for resolution in ENDS:                            # not joined over a doubling
                for seed in convert.SEEDS:
                    run = runs[arm, seed]
                    part = at_size(resolution, run.measured[metric])
                    x = [run.minutes(point) for point in part] if over_time else list(part)
                    panel.plot(x, list(part.values()), color=colour, linewidth=0.7, alpha=0.45)
                part = at_size(resolution, mean)
                label = {"jump": "jump: there at once"}.get(arm, f"{arm}: {GROWING[arm]} kimg")
                panel.plot([minutes for minutes, _ in part.values()] if over_time else list(part),
                           [value for _, value in part.values()], color=colour, linewidth=2,
                           marker="o", markersize=3.5, label=label if resolution == 4 else None)
        panel.grid(axis="y", color="0.85", linewidth=0.5)
        panel.set_ylabel(metric.replace("_", " "))
        panel.set_xlim(left=0)
        panel.set_xlabel(in_time if over_time else in_images)

    in_time = "minutes of training (CPU time, one thread)"
    in_images = "real images shown to D (kimg)"
    draw(panels["images"], FD, False)
    draw(panels["time"], FD, True)
    draw(panels["gap"], GAP, False)
    for panel in panels["images"], panels["gap"]:
        panel.set_xlim(0, ENDS[32] * 1.01)
        for resolution, end in ENDS.items():
            start = ENDS.get(resolution // 2, 0)
            panel.annotate(f"{resolution} px", ((start + end) / 2, 1), (0, 3), ha="center",
                           xycoords=("data", "axes fraction"), textcoords="offset points",
                           fontsize=9)
            if start:
                panel.axvline(start, color="0.3", linewidth=0.8, linestyle=":")
                for arm in sorted(GROWING, key=GROWING.get, reverse=True):     # longest below
                    panel.axvspan(start, start + GROWING[arm], facecolor=SHADES[arm], linewidth=0,
                                  zorder=-2)
    panels["gap"].legend(loc="best", fontsize=9, framealpha=0.9)
    panels["gap"].set_xlabel(f"{in_images}; shaded: a block grows, from each doubling on")
    with figures.written(path) as temporary:
        figure.savefig(temporary, dpi=100)
    print(path)


def main(argv=None):
    parser = options.OneLineParser(prog="morph.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("experiment_morph"),
                        help="for everything that is made (default experiment_morph)")
    parser.add_argument("--jobs", metavar="N", type=options.number_from(1), default=2,
                        help="side by side, one thread each (default 2)")
    parser.add_argument("--scale", metavar="X", type=options.number_from(0.02, float), default=1.0,
                        help="of kimg and images judged; 0.02 is a rehearsal (default 1)")
    parser.add_argument("--arms", metavar="LIST", default=",".join(GROWING),
                        help=f"which ways (default {','.join(GROWING)})")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--plot", metavar="FILE", type=Path,
                        help="only draw the curves: .png, .svg or .pdf")
    o = parser.parse_args(argv)
    if o.plot and o.plot.suffix.lower() not in curves.PLOTS:
        parser.error(f"--plot {o.plot}: is drawn as {', '.join(curves.PLOTS)}")
    chosen = o.arms.split(",")
    if unknown := set(chosen) - set(GROWING):
        parser.error(f"--arms: no way is called {sorted(unknown)[0]!r}")
    if "fade" not in chosen:
        parser.error("--arms: fade is what the others are compared with")
    for arm in set(GROWING) - set(chosen):
        del GROWING[arm]
    everything = not o.table and not o.plot
    needed = ("matplotlib",) if o.plot else ()
    if everything:                                             # better now than after an hour
        needed = (*convert.PACKAGES, "matplotlib")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"needs {', '.join(missing)}: pip install -r requirements-extra.txt")
    picture = Path("growth.png") if everything else o.plot and o.plot.resolve()
    # A folder in it for each scale, so that no number of a rehearsal gets into the table.
    folder = o.folder / f"scale-{o.scale:g}"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if everything:
        convert.work(plan(o.scale), o.jobs)
    runs = {(arm, seed): Run(run_name(arm, seed), o.scale)
            for seed in convert.SEEDS for arm in GROWING}
    if not o.plot or o.table:
        print_tables(runs)
    if picture:
        plot(runs, picture)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:                             # one of the jobs
        train_measured(float(sys.argv[2]), sys.argv[3:])
    options.start(main, "morph.py", "stopped; the same command goes on")
