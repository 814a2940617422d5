"""Run by hand: StyleGAN or StyleGAN2, after the same minutes?

    python experiments/architectures.py            all of it; Ctrl-C stops, the same command goes on
    python experiments/architectures.py --table    the table, of what has been measured so far
    python experiments/architectures.py --arms stylegan2 --options "--learning-rate 0.002"
                                                   other options, in a folder of their own

Both learn painted faces of 32 px by the default command of each. StyleGAN grows from 4 px on, and
its first images cost little; StyleGAN2 makes 32 px from the first one. So images say nothing about
time, and what is given to both is time: --total-kimg of StyleGAN2's preset was chosen such that its
run takes about as long as StyleGAN's. Minutes are the CPU's, of one thread and of training alone,
so that it does not matter what else the machine does (but for its caches). Three seeds: a
difference smaller than that between the seeds of one row says nothing.

FD-EffLite0 and KID-EffLite0 by evaluate.py; smaller is better.

Needs:    pip install -r requirements-extra.txt
[MACHINE] 2 CPU cores: an hour and a half (estimated). More cores: --jobs. A GPU is not used, since
          train.py would choose other networks there.
"""

import argparse
import importlib.util
import os
import shlex
import statistics
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))        # before this folder
import convert
import train
import workshop.run
from workshop import UserError, curves, options

ARMS = ("stylegan", "stylegan2")
METRICS = ("FD-EffLite0", "KID-EffLite0")


def train_in_cpu_time(words):
    """train.py, with the seconds of log.jsonl in CPU time."""
    workshop.run.time = types.SimpleNamespace(perf_counter=time.process_time)
    options.start(train.main, "train.py", "stopped at once", words)


def plan(arms, seeds, more):
    """The jobs, as `convert.plan`. Seed by seed: who stops early has whole pairs."""
    jobs = {}
    for seed in seeds:
        for arm in arms:
            name = f"{arm}-{seed}"
            kept = Path(name, "checkpoint-32.pt")              # written at the end
            jobs[name] = (["experiments/architectures.py", "train", "--architecture", arm,
                           "--seed", seed, "--out", name, "--device", "cpu", *more], [], kept)
            jobs[f"measure-{name}"] = (
                ["evaluate.py", kept, "--metrics", "fid,kid", "--features",
                 "efficientnet-lite0", "--images", 2048, "--device", "cpu"], [kept],
                Path(name, "metrics.jsonl"))
    return jobs


def print_table(arms, seeds):
    titles = ("minutes", "kimg", *METRICS)
    print(f"| | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}")
    for arm in arms:
        rows = []
        for seed in seeds:
            found = convert.measured(Path(f"{arm}-{seed}", "metrics.jsonl"))
            if not set(METRICS) <= set(found):
                continue
            log = curves.read_lines(Path(f"{arm}-{seed}", "log.jsonl"))
            kimg = [0.0, *(line["nimg"] / 1000 for line in log)]
            seconds = sum((b - a) * line["seconds_per_kimg"]
                          for a, b, line in zip(kimg, kimg[1:], log))
            rows.append([seconds / 60, kimg[-1], *(found[metric] for metric in METRICS)])
        print(f"| {arm} |", *(
            f"{statistics.mean(values):.3g} ({', '.join(f'{value:.3g}' for value in values)}) |"
            for values in zip(*rows)))


def main(argv=None):
    parser = options.OneLineParser(prog="architectures.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("experiment_architectures"),
                        help="for everything that is made (default experiment_architectures)")
    parser.add_argument("--jobs", metavar="N", type=options.number_from(1), default=2,
                        help="side by side, one thread each (default 2)")
    parser.add_argument("--arms", metavar="LIST", default=",".join(ARMS),
                        help=f"which (default {','.join(ARMS)})")
    parser.add_argument("--seeds", metavar="LIST", default="1,2,3", help="(default 1,2,3)")
    parser.add_argument("--options", metavar="TEXT", default="", help="more options of train.py")
    parser.add_argument("--table", action="store_true", help="only print the table")
    o = parser.parse_args(argv)
    arms, seeds = o.arms.split(","), o.seeds.split(",")
    try:
        more = shlex.split(o.options)
    except ValueError as error:
        parser.error(f"--options: {error}")
    if unknown := set(arms) - set(ARMS):
        parser.error(f"--arms: no architecture is called {sorted(unknown)[0]!r}")
    missing = [name for name in convert.PACKAGES if importlib.util.find_spec(name) is None]
    if missing and not o.table:                                # better now than after an hour
        raise UserError(f"needs {', '.join(missing)}: pip install -r requirements-extra.txt")
    folder = o.folder / ("-".join(word.strip("-") for word in more) or "default")
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not o.table:
        convert.work(plan(arms, seeds, more), o.jobs)
    print_table(arms, seeds)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:                             # one of the jobs
        train_in_cpu_time(sys.argv[2:])
    options.start(main, "architectures.py", "stopped; the same command goes on")
