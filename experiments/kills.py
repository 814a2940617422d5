"""Run by hand: a run that is killed again and again must end as one that was left alone.

    python experiments/kills.py                      50 kills, 7 to 15 minutes on 2 cores
    python experiments/kills.py --kinds two --kills 12

Each kind of run is made once in peace. Then it is made again, and killed with SIGKILL, which no
program can catch, at moments drawn at random from its whole life: as it starts, packs pictures,
rehearses, fades, morphs, measures, draws samples, writes a checkpoint. After each kill the newest
checkpoint must load, and the command that a user would type must go on: --resume, or the first
command in an empty folder if there was no checkpoint yet. When the run is at its end, every tensor
and number of its checkpoint, its log, its sample grids and its cache of pictures must be those of
the peaceful run, and no file may lie about that the peaceful run has not. Each new run packs its
pictures anew; one that was killed finds what is left of them.

  painted    StyleGAN on 10,000 painted faces: a good part of its life it paints
  fade       StyleGAN, growing by fading in, measuring the duality gap on its way, 2 workers
  morph      StyleGAN, growing by network morphism
  stylegan2  with path length
  two        two processes of torchrun; killed is the first, the second, or torchrun itself

Needs:    what the tests need; Linux.
[MACHINE] 2 CPU cores. A slower machine: --patience. The moments differ from run to run, since the
          machine's speed does; --seed fixes only the fractions of a life.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]                # before this folder
import tiny
from workshop import UserError, checkpoints, options

OFTEN = ["--checkpoint-kimg", "0.02"]
KINDS = {"painted": ["--total-kimg", "0.3", *OFTEN],
         "fade": ["--workers", "2", "--evaluate-kimg", "0.3", *OFTEN],
         "morph": ["--growth", "morph", "--morph-kimg", "0.1", *OFTEN],
         "stylegan2": ["--architecture", "stylegan2", "--batch", "4", "--path-interval", "2",
                       "--total-kimg", "0.3", *OFTEN],
         "two": OFTEN}


def begin(kind, words, folder):
    """The process, or the torchrun of two, that a user's command starts."""
    start = (lambda *words, **more: tiny.torchrun(2, *words, **more)) if kind == "two" else (
        lambda *words, **more: tiny.start(*words, start_new_session=True, **more))
    return start(*words, cwd=folder)


def victims(process, kind):
    """Whom to kill: the process, or those of torchrun and torchrun itself."""
    if kind != "two":
        return [process.pid]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [process.pid, *(int(pid) for pid in children)]


def end_of(run):
    """What a run is judged by: (checkpoint, log, {file: bytes}, the names of all files)."""
    checkpoint = checkpoints.load_checkpoint(run / "checkpoint.pt")
    for name in ("cache", "workers"):
        checkpoint["options"].pop(name, None)
    names = {str(path.relative_to(run)) for path in run.rglob("*")
             if not path.name.startswith("events.out")}
    cache = [path for path in (run.parent / "cache").rglob("*") if path.is_file()]
    pictures = {path.name: path.read_bytes() for path in [*(run / "samples").iterdir(), *cache]
                if path.suffix in (".png", ".bin", ".npy", ".pt")}
    return checkpoint, tiny.deterministic(run), pictures, names | {path.name for path in cache}


def where_of(run):
    """What a run was doing when it was killed: the phase of its log's last line, or before it."""
    log = run / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    if not (run / "settings.json").exists():
        return "as it began, with its pictures"
    if not (run / "checkpoint.pt").exists():
        return "before the first checkpoint"
    return json.loads(lines[-1])["phase"] if lines else "before the first line of the log"


def storm(kind, first, life, kills, chance, folder, patience):
    """Kill runs, `kills` times in all. Returns (ends of runs, Counter of what was interrupted).

    Errors: UserError if a command refuses to go on, or a checkpoint does not load.
    """
    fallen, ended, turn = collections.Counter(), [], 0
    while sum(fallen.values()) < kills or not ended:
        run = folder / f"stormy-{len(ended)}"
        shutil.rmtree(folder / "cache")
        while True:
            resume = (run / "checkpoint.pt").exists()
            if not resume:
                shutil.rmtree(run, ignore_errors=True)         # a user would, or take another name
            process = begin(kind, ["--resume", run / "checkpoint.pt"] if resume else
                            [*first, "--out", run], folder)
            moment = chance.uniform(0, life) if sum(fallen.values()) < kills else patience
            until = time.monotonic() + moment
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            if process.poll() is None and moment == patience:
                raise UserError(f"{kind}: not at its end after {patience:g} seconds")
            if process.poll() is not None:
                out, error = process.communicate()
                # The last kill may have come after the last checkpoint.
                if process.returncode and "is finished" not in out + (error or ""):
                    raise UserError(f"{kind}: ended with {process.returncode}: {out}{error}")
                break
            who = victims(process, kind)
            os.kill(who[turn % len(who)], signal.SIGKILL)
            turn += 1
            if kind == "two":                                  # torchrun ends the others
                process.communicate(timeout=120)
                for pid in who[1:]:                            # of a killed torchrun: nobody does
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            else:
                process.communicate()
            fallen[where_of(run)] += 1
            if (run / "checkpoint.pt").exists():
                checkpoints.load_checkpoint(run / "checkpoint.pt")
        ended.append(end_of(run))
    return ended, fallen


def compare(run, ours, theirs):
    """Errors: UserError that says in what a run differs from the quiet one."""
    if different := tiny.differences(ours[0], theirs[0]):
        raise UserError(f"{run} ends elsewhere: {', '.join(different[:5])}")
    if ours[3] != theirs[3]:
        raise UserError(f"{run} has other files: {', '.join(sorted(ours[3] ^ theirs[3]))}")
    if ours[1] != theirs[1] or ours[2] != theirs[2]:
        raise UserError(f"{run} has another log, other samples, or another cache")


def main(argv=None):
    parser = options.OneLineParser(prog="kills.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", metavar="LIST", default=",".join(KINDS),
                        help=f"(default {','.join(KINDS)})")
    parser.add_argument("--kills", metavar="N", type=options.number_from(1), default=50,
                        help="in all (default 50)")
    parser.add_argument("--seed", metavar="N", type=options.number_from(0), default=0,
                        help="of the moments (default 0)")
    parser.add_argument("--patience", metavar="SECONDS", type=options.number_from(1, float),
                        default=120.0, help="for a run that is left alone (default 120)")
    o = parser.parse_args(argv)
    kinds, chance = o.kinds.split(","), random.Random(o.seed)
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds: no kind is called {sorted(unknown)[0]!r}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tiny.save_pictures(folder / "photos", 330)             # the duality gap wants so many
        for k, kind in enumerate(kinds):
            here = folder / kind
            here.mkdir()
            first = [*tiny.RUN, *KINDS[kind]]
            if kind != "painted":
                first += ["--data", folder / "photos"]
            started = time.monotonic()
            process = begin(kind, [*first, "--out", here / "quiet"], here)
            try:
                out, error = process.communicate(timeout=o.patience)
            except subprocess.TimeoutExpired:
                for pid in victims(process, kind):
                    os.kill(pid, signal.SIGKILL)
                raise UserError(f"{kind}: the peaceful run is not at its end after {o.patience:g} "
                                f"seconds; --patience allows more") from None
            if process.returncode:
                raise UserError(f"{kind}: the peaceful run ended with {process.returncode}: "
                                f"{out}{error}")
            life = time.monotonic() - started
            quiet = end_of(here / "quiet")
            kills = o.kills // len(kinds) + (k < o.kills % len(kinds))
            ended, fallen = storm(kind, first, life, kills, chance, here, o.patience)
            for number, end in enumerate(ended):
                compare(f"{kind}, run {number}", end, quiet)
            places = ", ".join(f"{count} {where}" for where, count in fallen.most_common())
            print(f"{kind}: {sum(fallen.values())} kills survived ({places}), in {len(ended)} runs "
                  f"that ended equal to the bit; {life:.0f} s in peace", flush=True)
    return 0


if __name__ == "__main__":
    options.start(main, "kills.py", "stopped")
