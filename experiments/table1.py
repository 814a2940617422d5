"""Run by hand: table 1 of both papers, on a laptop. What is each idea worth, on painted faces?

    python experiments/table1.py                   all of it; Ctrl-C stops, the same command goes on
    python experiments/table1.py --scale 0.02 --seeds 0        a rehearsal
    python experiments/table1.py --table           the table, of what has been measured so far

The papers take ideas away and put them back one by one, with weeks of GPU time for each row. Here
the rows are (letters of the StyleGAN paper's table 1):

    A   ProGAN's generator: z goes in at 4x4, PixelNorm behind each convolution; resized by nearest
        neighbour, no blur (the paper's A also has another loss and other phases)
    B   blur wherever the resolution changes
    C   mapping network and styles: AdaIN; w still goes in at 4x4
    D   a learned constant in its place
    E   noise
    F   style mixing: the default run

and of StyleGAN2's, all of which do not grow (there demodulation comes first, in a network that
grows; for that ModulatedConv2d would need a block with AdaIN's noise and to_rgb's fade):

    2E  its networks, R1 in every step, no path length
    2C  lazy R1: in every 16th step
    2D  path length: the default run of StyleGAN2
    2F  1.5 times the channels at 32 px: --channel-base 768

What a row lacks is taken out from here, by other classes in the place of those upstairs; the loop
is always train.py's. FD-EffLite0, KID, precision and recall of 2,048 images, and perceptual path
length in z and w with the same features: once at the end, after 120 kimg (StyleGAN2's rows: 60),
and once after 8 minutes of CPU time of one thread, training alone; --scale shortens all of them.
Three seeds: a difference smaller than that between the seeds of one row says nothing.

Needs:    pip install -r requirements-extra.txt
[MACHINE] 2 CPU cores: 30 runs of 12 to 20 minutes, two side by side: 5 hours (estimated). A GPU is
          not used, since train.py would choose other networks there.
"""

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))        # before this folder
import convert
import evaluate
import stylegan_layers as layers
import stylegan_models as models
import train
from workshop import UserError, machine, options
from workshop.fast_gradients import leaky_relu
from workshop.features import load_features
from workshop.figures import written

SCRIPT, CPU = "experiments/table1.py", torch.device("cpu")
METRICS = ("FD-EffLite0", "KID-EffLite0", "Precision-EffLite0", "Recall-EffLite0",
           "PPL-EffLite0-z", "PPL-EffLite0-w")

# ==== Part 1: what stands in the place of an idea =============================================


class NoMapping(torch.nn.Module):
    """w is z, of length sqrt(S)."""

    def __init__(self, latent_dim, style_dim, mapping_dim, mapping_layers):
        super().__init__()
        if latent_dim != style_dim:
            raise ValueError("without a mapping network z and w have the same size")
        self.normalize, self.layers = layers.PixelNorm(), []

    def forward(self, z):
        return self.normalize(z)


class NoNoise(torch.nn.Module):
    def __init__(self, channels, resolution):
        super().__init__()

    def forward(self, x, mode):
        return x


class LatentInput(torch.nn.Module):
    """ProGAN's first layer: w [N, S] -> [N, C, 4, 4], fully connected (ProGAN, table 2)."""

    def __init__(self, style_dim, channels):
        super().__init__()
        self.dense = layers.EqualizedLinear(style_dim, 16 * channels, gain=layers.LEAKY_GAIN / 4)

    def forward(self, w):
        return self.dense(w).unflatten(1, (-1, 4, 4))


class WithLatentInput(models.SynthesisBlock):
    """A block with AdaIN whose 4x4 begins with w instead of a constant."""

    def __init__(self, resolution, in_channels, out_channels, style_dim):
        super().__init__(resolution, in_channels, out_channels, style_dim)
        if resolution == 4:
            self.const = LatentInput(style_dim, out_channels)

    def forward(self, x, ws, noise_mode):
        if x is not None:
            return super().forward(x, ws, noise_mode)
        x = leaky_relu(self.const(ws[:, 0]))
        x = self.adain0(self.noise0(x, noise_mode), ws[:, 0])
        x = leaky_relu(self.noise1(self.conv1(x), noise_mode))
        return self.adain1(x, ws[:, 1])


class ProGANBlock(torch.nn.Module):
    """Convolution, leaky ReLU, PixelNorm, twice. Of ws only the first one is used, at 4x4."""

    def __init__(self, resolution, in_channels, out_channels, style_dim):
        super().__init__()
        if resolution == 4:
            self.const = LatentInput(style_dim, out_channels)
        else:
            self.conv0 = layers.EqualizedConv2d(in_channels, out_channels, resample="up")
        self.conv1 = layers.EqualizedConv2d(out_channels, out_channels)
        self.norm = layers.PixelNorm()

    def forward(self, x, ws, noise_mode):
        x = self.const(ws[:, 0]) if x is None else self.conv0(x)
        x = self.norm(leaky_relu(x))
        return self.norm(leaky_relu(self.conv1(x)))


NO_MIXING = ["--mixing-probability", 0]
PROGAN = ((models, "MappingNetwork", NoMapping), (models, "SynthesisBlock", ProGANBlock))
QUIET = (models, "NoiseInput", NoNoise)
ROWS = {                       # {row: (what, replacements, options)}
    "A": ("ProGAN's generator", (*PROGAN, (layers, "blur", lambda x: x)), NO_MIXING),
    "B": ("+ blur", PROGAN, NO_MIXING),
    "C": ("+ mapping and styles", (QUIET, (models, "SynthesisBlock", WithLatentInput)), NO_MIXING),
    "D": ("+ constant input", (QUIET,), NO_MIXING),
    "E": ("+ noise", (), NO_MIXING),
    "F": ("+ mixing: StyleGAN", (), []),
    "2E": ("StyleGAN2's networks", (), ["--architecture", "stylegan2", "--path-weight", 0,
                                        "--r1-interval", 1]),
    "2C": ("+ lazy R1", (), ["--architecture", "stylegan2", "--path-weight", 0]),
    "2D": ("+ path length: StyleGAN2", (), ["--architecture", "stylegan2"]),
    "2F": ("+ larger", (), ["--architecture", "stylegan2", "--channel-base", 768]),
}


@contextlib.contextmanager
def without(row):
    """Within the block, networks are made as the row says.

    Proved: tests/test_table1.py::test_each_row_is_the_one_before_and_one_idea_more
    """
    with contextlib.ExitStack() as stack:
        for where, name, other in ROWS[row][1]:
            stack.enter_context(mock.patch.object(where, name, other))
        yield


# ==== Part 2: a run, judged twice =============================================================


def run(row, words, minutes):
    """train.py. Returns ([(which, minutes, G_ema, resolution, alpha, nimg)], pictures).

    Proved: tests/test_table1.py::test_a_run_is_judged_after_its_minutes_and_after_its_images
    """
    kept = []

    class TimedRun(train.Run):
        def start(self, *arguments):
            begun = super().start(*arguments)
            self.spent, self.since = 0.0, time.process_time()
            return begun

        def after_step(self, nimg, step, stage, alpha, *more):
            self.spent += time.process_time() - self.since
            now = self.spent / 60, copy.deepcopy(self.G_ema), stage.resolution, alpha, nimg
            if not kept and self.spent >= 60 * minutes or nimg >= self.total:
                kept.append(("minutes" if not kept and nimg < self.total else "images", *now))
            super().after_step(nimg, step, stage, alpha, *more)
            self.since = time.process_time()

    runs = []
    with without(row), mock.patch.object(train, "Run", lambda *args: runs.append(
            TimedRun(*args)) or runs[-1]):
        code = train.main([str(word) for word in words])
    if code or not kept or kept[-1][0] != "images":
        raise UserError("train.py did not come to its end")
    return kept, runs[0].pictures


def job(row, seed, kimg, minutes, images, result):
    """Train and measure one row with one seed: RESULT, a .json, is there when all is."""
    machine.keep_freed_memory()
    folder, found = Path(result).parent, {}
    kept, pictures = run(row, [
        "--total-kimg", kimg, "--seed", seed, "--device", "cpu", "--out", folder / "run",
        "--cache", "cache", *ROWS[row][2], *shorter(kimg, row)], float(minutes))
    network = load_features("efficientnet-lite0", CPU)
    for which, spent, G, resolution, alpha, nimg in kept:
        s = evaluate.Settings(resolution, alpha, images=int(images))
        with without(row):
            records = [record for group in (("fid", "kid", "precision_recall"), ("ppl",))
                       for record in evaluate.evaluate(
                           group, {"generator_ema": G},
                           {"all": pictures.dataset(resolution, "all")}, s, network)]
        found[which] = {"minutes": spent, "kimg": nimg / 1000, "resolution": resolution,
                        **{record["metric"]: record["value"] for record in records}}
    with written(result) as temporary:
        temporary.write_text(json.dumps(found))


KIMG = {"stylegan": 120, "stylegan2": 60}              # of the default runs


def shorter(kimg, row):
    """The phases of a run that is as much shorter as its total says."""
    if "stylegan2" in ROWS[row][2]:
        return []
    scale = float(kimg) / KIMG["stylegan"]
    return ["--fade-kimg", f"{7.5 * scale:.12g}", "--stabilize-kimg",
            f"4:{10 * scale:.12g},8:{12.5 * scale:.12g}"]


# ==== Part 3: the jobs and the table ==========================================================


def plan(rows, seeds, scale):
    """The jobs, as `convert.plan`. Seed by seed: who stops early has whole tables."""
    jobs = {}
    for seed in seeds:
        for row in rows:
            name = f"{row}-{seed}"
            kimg = scale * KIMG["stylegan2" if row.startswith("2") else "stylegan"]
            result = Path(name, "results.json")
            jobs[name] = ([SCRIPT, "job", row, seed, f"{kimg:.12g}", f"{8 * scale:.12g}",
                           max(100, round(2048 * scale)), result], [], result)
    return jobs


def print_table(rows, seeds):
    for which, title in (("images", "equal images"), ("minutes", "equal minutes")):
        print(f"\n| {title} | minutes | kimg | {' | '.join(METRICS)} |\n|---|{'---|' * 8}")
        for row in rows:
            paths = [Path(f"{row}-{seed}", "results.json") for seed in seeds]
            lines = [json.loads(path.read_text()) for path in paths if path.is_file()]
            lines = [line[which] for line in lines if which in line]
            if lines:
                print(f"| {row}: {ROWS[row][0]} |", " | ".join(
                    spread([line[key] for line in lines])
                    for key in ("minutes", "kimg", *METRICS)), "|")


def spread(values):
    """The mean (each)."""
    return f"{statistics.mean(values):.3g} ({', '.join(f'{value:.3g}' for value in values)})"


def main(argv=None):
    parser = options.OneLineParser(prog="table1.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("experiment_table1"),
                        help="for all that is made (default experiment_table1)")
    parser.add_argument("--jobs", metavar="N", type=options.number_from(1), default=2,
                        help="side by side, one thread each (default 2)")
    parser.add_argument("--rows", metavar="LIST", default=",".join(ROWS), help="(default all)")
    parser.add_argument("--seeds", metavar="LIST", default="0,1,2", help="(default 0,1,2)")
    parser.add_argument("--scale", metavar="X", type=options.number_from(0.001, float), default=1.0,
                        help="of images, minutes and images judged (default 1)")
    parser.add_argument("--table", action="store_true", help="only print the table")
    o = parser.parse_args(argv)
    rows, seeds = o.rows.split(","), o.seeds.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"--rows: {unknown[0]!r} is none of {', '.join(ROWS)}")
    missing = [name for name in convert.PACKAGES if importlib.util.find_spec(name) is None]
    if missing and not o.table:                                # better now than after an hour
        raise UserError(f"needs {', '.join(missing)}: pip install -r requirements-extra.txt")
    # A folder in it for each scale, so that no number of a rehearsal gets into the table.
    folder = o.folder / f"scale-{o.scale:g}"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not o.table:
        convert.work(plan(rows, seeds, o.scale), o.jobs)
    print_table(rows, seeds)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        options.start(lambda words: job(*words), "table1.py", argv=sys.argv[2:])
    options.start(main, "table1.py", "stopped; the same command goes on")
