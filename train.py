"""train.py: train a StyleGAN.   (1st in the reading order)

    python train.py                                        paints its own pictures; 8 minutes on
                                                           two CPU cores (README.md shows them)
    python train.py --resolution 8 --total-kimg 40         the same, only up to 8x8: a minute
    python train.py --data photos/ --resolution 256        anybody's pictures
    python train.py --resume runs/00003-photos/checkpoint.pt
    torchrun --standalone --nproc_per_node=2 train.py      two GPUs, or two halves of a CPU

Read next: stylegan_dataloader.py, stylegan_models.py, stylegan_layers.py.
Paper:   Karras et al. 2019, "A Style-Based Generator Architecture for GANs" (arXiv 1812.04948),
         appendix C; the progressive loop: Karras et al. 2018, "ProGAN" (arXiv 1710.10196),
         section 2 and appendix A; R1: Mescheder et al. 2018 (arXiv 1801.04406), section 4.1.
Needs:   torch, torchvision, numpy, Pillow, tqdm, tensorboard; CPU, CUDA or MPS.
Letters: N images in the batch; K styles mixed in one image; L style layers; R pixels a side.
         nimg counts the real images shown to D so far, kimg is 1000 of them: the clock of a run.
         z: random numbers; w: what the mapping network makes of them, a style; w_avg: its running
         mean. A style row says which of an image's K styles each layer uses (see StyleMixer).

Two networks learn from each other. The generator G turns random numbers z into images. The
discriminator D gives an image a score: high if it thinks it real, low if it thinks it made by G.
Each step first makes D a little better at telling, then G a little better at misleading it. The
game begins with pictures of 4x4 pixels, where all is simple, and doubles them when it has settled:

    4x4 ------> 8x8 fading in -> 8x8 ------> 16x16 fading in -> 16x16 -----> ...     (over kimg)
      stabilize       fade         stabilize        fade           stabilize

(Fading in is the paper's way to double. --growth morph is another one, which morph.py explains.)

The file has three parts: the formulas, one short function each; the options; and the loop, `main`
at the very end. Who wants to see the whole before the parts begins there.
"""

import argparse
import copy
import ctypes
import datetime
import functools
import json
import math
import os
import pathlib
import re
import shlex
import signal
import sys
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image

import morph
import stylegan_dataloader as data
import stylegan_models as models
from stylegan_models import OneLineParser, number_from, pick_device

fail = functools.partial(models.fail, "train.py")

# ==== Part 1: the formulas ====================================================================


class Stage(NamedTuple):
    """A stretch of training, from nimg `start` to `end`, at one resolution, growing or not.

    fading: alpha rises from 0 to 1: the new block fades in, or is morphed (--growth).
    """
    start: int
    end: int
    resolution: int
    fading: bool


def plan_stages(initial_resolution, resolution, fade_kimg, stabilize_kimg, total_kimg):
    """The whole schedule: stabilize at the initial resolution, then fade and stabilize doublings.

    Paper:  ProGAN appendix A.1, with 600 + 600 kimg as in the official StyleGAN code instead of
            800 + 800. The last stage lasts until total_kimg.
    Units:  fade_kimg and stabilize_kimg map a resolution to kimg, as `Table` does. With --growth
            morph, --morph-kimg takes the place of fade_kimg.
    Proved: tests/test_train.py::test_the_schedule_is_the_official_one
    """
    stages, nimg, r = [], 0, initial_resolution
    total = round(1000 * total_kimg)
    while nimg < total:
        if r > initial_resolution:
            end = min(nimg + round(1000 * fade_kimg[r]), total)
            stages.append(Stage(nimg, end, r, True))
            nimg = end
        end = total if r == resolution else min(nimg + round(1000 * stabilize_kimg[r]), total)
        stages.append(Stage(nimg, end, r, False))
        nimg, r = end, 2 * r
    return [stage for stage in stages if stage.end > stage.start]


def alpha_at(nimg, stage):
    """The weight of the newest block: grows from 0 to 1 over a fading stage, 1 elsewhere."""
    return (nimg - stage.start) / (stage.end - stage.start) if stage.fading else 1.0


def reals_at(images, alpha, growth):
    """What D is shown of real images [N, 3, R, R]: blurred while a block fades in (`fade_reals`).

    A morphed D needs no such help: it begins as one that cannot see what G cannot make.
    """
    return data.fade_reals(images, alpha) if growth == "fade" else images


def discriminator_loss(real_scores, fake_scores):
    """-log sigmoid(D(real)) - log(1 - sigmoid(D(fake))), averaged over the batch.

    Why:    the cross-entropy of "real or fake?" with the score as logit. softplus(s) is
            log(1 + e^s), which is -log sigmoid(-s) without overflow.
    Units:  2 ln 2 = 1.386 if D gives every image the score 0, that is, cannot tell; 0 if it is
            always sure and right. Far above: D is wrong. The default run ends at 1.14.
    Paper:  Goodfellow et al. 2014, equation 1; StyleGAN appendix C.
    Proved: tests/test_train.py::test_losses_and_gradients_equal_the_official_ones,
            ::test_a_discriminator_that_cannot_tell_has_loss_2_ln_2
    """
    return loss_on_reals(real_scores) + loss_on_fakes(fake_scores)


def loss_on_reals(scores):
    """-log sigmoid(score), averaged: small if D calls them real. Shapes: [N, 1] -> scalar."""
    return F.softplus(-scores).mean()


def loss_on_fakes(scores):
    """-log(1 - sigmoid(score)), averaged: small if D calls them fake. Shapes: [N, 1] -> scalar."""
    return F.softplus(scores).mean()


def generator_loss(fake_scores):
    """-log sigmoid(D(fake)), averaged: the non-saturating loss.

    Why:    the honest opposite of D's loss, log(1 - sigmoid(D(fake))), is flat exactly where G is
            bad and needs a gradient most. This one has the same fixed point and is steep there.
    Paper:  Goodfellow et al. 2014, section 3.
    Proved: tests/test_train.py::test_the_honest_loss_saturates_where_the_non_saturating_one_pulls
    """
    return F.softplus(-fake_scores).mean()


def r1_penalty(real_scores, reals, loss_scale=1.0):
    """|gradient of D at each real image|^2, averaged over the batch.

    Why:    where G is right already, D should be flat. A slope there would push G off the data
            again, and the two would circle each other for ever.
    Paper:  Mescheder et al. 2018, equation 9. `create_graph`: the penalty is itself differentiated
            with respect to D's weights, a derivative of a derivative.
    Shapes: real_scores [N, 1] computed from reals [N, 3, R, R], which require grad -> scalar.
    Units:  loss_scale: the gradient is computed that many times larger and divided again, so that
            float16, which ends at 6e-8, does not round it to 0 on the way.
    Proved: tests/test_train.py::test_r1_equals_the_official_one
    """
    # Image n only influences score n (but for the minibatch stddev, as in the official code), so
    # the gradient of the sum holds the gradient of each score at its image.
    with models.input_gradients_only():
        gradient, = torch.autograd.grad(real_scores.sum() * loss_scale, reals, create_graph=True)
    return (gradient / loss_scale).square().sum(dim=(1, 2, 3)).mean()


def r1_weight(r1_gamma, r1_interval, resolution, final_resolution):
    """What the penalty is multiplied by before it is added to D's loss.

    Three factors:
    - gamma / 2, as in the paper, with gamma = 10.
    - interval: a step with the penalty takes 1.2 times as long (measured, default run, 32 px), so
      it may be computed in every k-th step only, k times as strong: the same pull on average
      (StyleGAN2, appendix B). StyleGAN2 also shrinks Adam's rates by k/(k+1), because it gives
      the penalty a step of its own, k+1 steps instead of k; here it joins the step that is made
      anyway, so nothing changes.
    - (R / final R)^2: the official code feeds D pictures of the final size at all times, small
      ones enlarged. Every pixel is then copied to f*f places, f = final R / R, each with 1/f^2 of
      the pixel's gradient: the squares sum to 1/f^2 of the penalty at R. We compute at R.
      Proved: tests/test_train.py::test_r1_equals_the_official_one
    """
    return r1_gamma / 2 * r1_interval * (resolution / final_resolution) ** 2


def ema_beta(nimg, batch, halflife_kimg):
    """The weight of the past in G_ema <- beta G_ema + (1 - beta) G.

    Why:    G jitters around a good place; its average over the last ten thousand images is closer
            to it than any single G, and is the one that pictures are made with.
    Paper:  ProGAN appendix A.1 (0.999 a step); the official code has a half-life of 10 kimg.
    Differs: the half-life is at most 5 % of what was seen so far (as StyleGAN2-ADA does), or the
            average of a young run would consist of its random start.
    Proved: tests/test_train.py::test_ema_forgets_half_in_a_halflife
    """
    halflife = min(1000 * halflife_kimg, 0.05 * nimg)
    return 0.5 ** (batch / halflife) if halflife > 0 else 0.0


@torch.no_grad()
def update_ema(G_ema, G, beta):
    """G_ema <- beta G_ema + (1 - beta) G for the weights. Buffers (w_avg, the noise) are copied."""
    # lerp_ on a whole list of tensors: on a GPU a few kernels instead of one for each of them.
    torch._foreach_lerp_(list(G_ema.parameters()), list(G.parameters()), 1 - beta)
    for averaged, current in zip(G_ema.buffers(), G.buffers()):
        averaged.copy_(current)


def not_finite(parameters, losses):
    """A 0-dim bool tensor: is any of the losses [n], or any gradient, infinite or NaN?

    It stays on the device: asking for its value would make the CPU wait for the GPU in every step.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(losses[0])
    return ~torch.isfinite(torch.cat([losses, norm[None]])).all()


# ==== Part 2: the options =====================================================================


class Table(dict):
    """A number for every resolution: "32", or "4:128,8:64" (64 then stands for 8 px and above)."""

    def __missing__(self, resolution):
        return self[max((r for r in self if r <= resolution), default=min(self))]


def table_of(kind):
    """A parser of `Table` texts for argparse, with numbers of type `kind`, none negative."""
    def parse(text):
        try:
            pairs = [part.split(":") for part in text.split(",")]
            if len(pairs) == 1 and len(pairs[0]) == 1:
                pairs = [["4", pairs[0][0]]]
            table = Table({int(r): kind(value) for r, value in pairs})
        except ValueError:
            raise argparse.ArgumentTypeError(
                f'{text!r} is neither a number nor a table like "4:128,8:64"') from None
        if any(value < 0 or not math.isfinite(value) for value in table.values()):
            raise argparse.ArgumentTypeError(f"{text!r} has a value below 0, or an infinite one")
        return table
    return parse


def show(value):
    """An option's value as it is typed: the opposite of parsing."""
    if isinstance(value, dict):
        pairs = [f"{r}:{show(v)}" for r, v in sorted(value.items())]
        return ",".join(pairs) if len(pairs) > 1 else pairs[0].split(":")[1]
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# Defaults that hold in every situation ...
ALWAYS = dict(
    initial_resolution=4, growth="fade", morph_kimg="20", r1_interval=1, styles_to_mix=2,
    mixing_probability=0.9, seed=0, no_flip=False, allow_upsampling=False, max_bad=1.0,
    cache="cache", data=None, accumulate="1", precision="fp32", compile=False, evaluate_kimg=None,
    evaluate_metrics="duality_gap", evaluate_features="inception", evaluate_images=2048)

# ... and those that depend on what there is. Every value can be overridden on the command line.
PRESETS = {
    # [MACHINE] 2 CPU cores: 8 minutes, 0.9 GB of memory (measured). Found by trying: in the same
    #           time, batch 16 gave clearly better faces than 32, and a rate of 0.003 with gamma 3
    #           than 0.002 with gamma 1.
    "painted faces on a CPU": dict(
        resolution=32, channel_base=512, channel_max=64, latent_dim=64, style_dim=64,
        mapping_dim=64, mapping_layers=4, batch="4:32,8:16", learning_rate="0.003",
        r1_gamma="3", r1_interval=8, fade_kimg="15",
        stabilize_kimg="4:20,8:25", total_kimg=190.0, ema_halflife_kimg=5.0, tick_kimg=5.0,
        samples_kimg=10.0, checkpoint_kimg=20.0, workers=0),
    # [MACHINE] 1 GPU with 4 GB or more (not measured).
    "painted faces on a GPU": dict(
        resolution=128, channel_base=4096, channel_max=256, latent_dim=256, style_dim=256,
        mapping_dim=256, mapping_layers=8, batch="4:64,64:32", learning_rate="0.0015",
        r1_gamma="3", r1_interval=8, fade_kimg="80", stabilize_kimg="80",
        total_kimg=1500.0, ema_halflife_kimg=10.0, tick_kimg=20.0, samples_kimg=50.0,
        checkpoint_kimg=200.0, workers=2),
    # [MACHINE] The widths of the default, so that a CPU can do it at all: an experiment, not the
    #           paper. 2 cores at 64 px: about an hour (estimated from its measured speeds).
    "your pictures on a CPU": dict(
        resolution=64, channel_base=1024, channel_max=64, latent_dim=64, style_dim=64,
        mapping_dim=64, mapping_layers=4, batch="4:32,8:16", learning_rate="0.003",
        r1_gamma="3", r1_interval=8, fade_kimg="20",
        stabilize_kimg="4:20,8:30,16:40", total_kimg=400.0, ema_halflife_kimg=5.0,
        tick_kimg=5.0, samples_kimg=20.0, checkpoint_kimg=20.0, workers=0),
    # The paper's setting: appendix C and the official training script, its table for one GPU;
    # except that it begins at 4 px and not at 8 (--initial-resolution 8).
    # [MACHINE] 1 GPU with 11 GB or more, as the official README asks for (not measured here).
    #           Less memory: --batch 4:64,64:16,128:8,256:4,512:2. With 8 GPUs the official batches
    #           are 4:512,8:256,16:128,32:64,64:32; its learning rates are the same for both.
    "your pictures on a GPU": dict(
        resolution=1024, channel_base=8192, channel_max=512, latent_dim=512, style_dim=512,
        mapping_dim=512, mapping_layers=8, batch="4:128,32:64,64:32,128:16,256:8,512:4",
        learning_rate="4:0.001,128:0.0015,256:0.002,512:0.003",
        r1_gamma="10", r1_interval=1, fade_kimg="600", stabilize_kimg="600",
        total_kimg=25000.0, ema_halflife_kimg=10.0, tick_kimg=40.0, samples_kimg=200.0,
        checkpoint_kimg=200.0, workers=min(8, os.cpu_count() or 1)),
}


class OptionsParser(OneLineParser):
    """The parser of all scripts, which can also take options from a file."""

    def convert_arg_line_to_args(self, line):
        # `python train.py @photos.txt`: options in a file, any number on a line, # for comments.
        # A backslash stands for itself, as in C:\\photos.
        words = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True)
        words.whitespace_split, words.escape, words.commenters = True, "", ""
        try:
            return list(words)
        except ValueError as error:
            self.error(f"{line.strip()!r}: {error}")


def parse_args(argv=None):
    """The options that were typed, as a dict without those that were not."""
    parser = OptionsParser(
        prog="train.py", fromfile_prefix_chars="@", argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a StyleGAN. Without options: paints faces and learns to make more.",
        epilog="Options can stand in a file: train.py @photos.txt\n"
               "Where a TABLE is asked for, give one number, or one per resolution: "
               "4:128,8:64\nmeans 128 at 4 px and 64 at 8 px and above.\n\n"
               "What is not given is chosen by situation:\n" + "\n".join(
                   f"  {name}:\n    " + " ".join(f"--{k.replace('_', '-')} {show(v)}"
                                                 for k, v in preset.items())
                   for name, preset in PRESETS.items()))
    counts, amounts = number_from(1), number_from(0, float)
    group = parser.add_argument_group("pictures")
    group.add_argument("--data", metavar="PATH", help="a folder, searched recursively, or a .zip")
    group.add_argument("--resolution", type=counts, metavar="R",
                       help="final side in pixels, a power of two (paper: 1024)")
    group.add_argument("--no-flip", action="store_true", help="no mirrored pictures")
    group.add_argument("--allow-upsampling", action="store_true",
                       help="use pictures smaller than the resolution, enlarged")
    group.add_argument("--max-bad", type=number_from(0, float, 100), metavar="PERCENT",
                       help="stop if more of the pictures are damaged (default 1)")
    group.add_argument("--cache", metavar="FOLDER", help="for the packed pictures (default cache)")
    group.add_argument("--workers", type=number_from(0), metavar="N",
                       help="processes that load pictures while training")
    group = parser.add_argument_group("schedule")
    group.add_argument("--initial-resolution", type=counts, metavar="R",
                       help="where to begin (default 4; paper: 8)")
    group.add_argument("--growth", choices=("fade", "morph"),
                       help="how a block is added: faded in at random (default, the paper), or as "
                       "one that changes nothing at first (morph.py explains)")
    group.add_argument("--fade-kimg", type=table_of(float), metavar="TABLE",
                       help="thousands of images to fade a block in (paper: 600)")
    group.add_argument("--morph-kimg", type=table_of(float), metavar="TABLE",
                       help="the same with --growth morph (default 20)")
    group.add_argument("--stabilize-kimg", type=table_of(float), metavar="TABLE",
                       help="thousands of images before the next doubling (paper: 600)")
    group.add_argument("--total-kimg", type=amounts, metavar="KIMG",
                       help="length of the run in thousands of images (paper: 25000)")
    group.add_argument("--batch", type=table_of(int), metavar="TABLE",
                       help="images a step (official, one GPU: 128 at 4 px to 4 at 1024 px)")
    group = parser.add_argument_group("networks")
    group.add_argument("--channel-base", type=counts, metavar="N",
                       help="channels = min(2 * base / resolution, max) (paper: 8192)")
    group.add_argument("--channel-max", type=counts, metavar="N", help="(paper: 512)")
    group.add_argument("--latent-dim", type=counts, metavar="N", help="size of z (paper: 512)")
    group.add_argument("--style-dim", type=counts, metavar="N", help="size of w (paper: 512)")
    group.add_argument("--mapping-dim", type=counts, metavar="N",
                       help="width of the mapping network (paper: 512)")
    group.add_argument("--mapping-layers", type=counts, metavar="N", help="its depth (paper: 8)")
    group = parser.add_argument_group("learning")
    group.add_argument("--learning-rate", type=table_of(float), metavar="TABLE",
                       help="of Adam (paper: 0.001, more from 128 px on); mapping: 1/100 of it")
    group.add_argument("--r1-gamma", type=table_of(float), metavar="TABLE",
                       help="weight of the R1 penalty, as seen at the final resolution (paper: 10)")
    group.add_argument("--r1-interval", type=counts, metavar="STEPS",
                       help="compute R1 every so many steps, as much stronger (paper: 1)")
    group.add_argument("--styles-to-mix", type=counts, metavar="K",
                       help="styles mixed in one image (default 2, as the paper)")
    group.add_argument("--mixing-probability", type=number_from(0, float, 1), metavar="P",
                       help="of mixing styles in a training image (default 0.9, as the paper)")
    group.add_argument("--ema-halflife-kimg", type=amounts, metavar="KIMG",
                       help="half-life of the average of G's weights (official: 10)")
    group = parser.add_argument_group("speed and memory")
    group.add_argument("--accumulate", type=table_of(int), metavar="TABLE",
                       help="work a batch off in that many parts, in less memory (default 1)")
    group.add_argument("--precision", choices=("fp32", "tf32", "bf16", "fp16"),
                       help="of the convolutions (default tf32 on CUDA, else fp32; paper: fp32)")
    group.add_argument("--compile", action="store_true",
                       help="let torch.compile fuse what lies between the convolutions; needs a "
                       "C++ compiler on a CPU")
    group = parser.add_argument_group("measuring (evaluate.py explains the numbers)")
    group.add_argument("--evaluate-kimg", type=amounts, metavar="KIMG",
                       help="between measurements; two tenths of the pictures are then held out "
                       "and never trained on, to measure the duality gap with (default: none)")
    group.add_argument("--evaluate-metrics", metavar="LIST",
                       help="as evaluate.py --metrics (default duality_gap)")
    group.add_argument("--evaluate-features", metavar="NETWORK",
                       help="as evaluate.py --features (default inception)")
    group.add_argument("--evaluate-images", type=counts, metavar="N",
                       help="as evaluate.py --images (default 2048)")
    group = parser.add_argument_group("run")
    group.add_argument("--out", metavar="FOLDER",
                       help="of this run; must be new or empty (default runs/NUMBER-NAME)")
    group.add_argument("--resume", metavar="CHECKPOINT", help="go on from here; a checkpoint.pt "
                       "goes on in its own folder, others start a new one")
    group.add_argument("--tick-kimg", type=amounts, metavar="KIMG", help="between status lines")
    group.add_argument("--samples-kimg", type=amounts, metavar="KIMG", help="between sample grids")
    group.add_argument("--checkpoint-kimg", type=amounts, metavar="KIMG",
                       help="between checkpoints")
    group.add_argument("--seed", type=number_from(0), metavar="N", help="(default 0)")
    group.add_argument("--device", metavar="NAME",
                       help="cpu, cuda, cuda:1, mps (default: the best there is)")
    return vars(parser.parse_args(argv))


def complete_options(typed, device, resumed=None, processes=1):
    """All options: what was typed, over the checkpoint's or the situation's, over the defaults.

    Returns (options, name of the situation).   Errors: ValueError, one sentence, what to type.
    """
    if resumed is not None:
        situation, base = "as in the checkpoint", {**ALWAYS, **resumed}
    else:
        situation = ("your pictures" if "data" in typed else "painted faces") + (
            " on a CPU" if device.type == "cpu" else " on a GPU")
        base = {**ALWAYS, **PRESETS[situation]}
        if device.type == "cuda":
            base["precision"] = "tf32"
    options = {**base, **typed}
    for name, kind in (("batch", int), ("accumulate", int), ("learning_rate", float),
                       ("r1_gamma", float), ("fade_kimg", float), ("morph_kimg", float),
                       ("stabilize_kimg", float)):
        if isinstance(options[name], str):
            options[name] = table_of(kind)(options[name])
    if options["data"] == "":
        raise ValueError("--data: an empty path")
    for name in ("resolution", "initial_resolution"):
        try:
            models.resolutions_up_to(options[name])
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')}: {error}") from None
    if options["initial_resolution"] > options["resolution"]:
        raise ValueError(f"--initial-resolution {options['initial_resolution']} is larger than "
                         f"--resolution {options['resolution']}")
    if 2 * options["channel_base"] < options["resolution"]:
        raise ValueError(f"--channel-base {options['channel_base']} leaves no channel at "
                         f"{options['resolution']} px; it must be at least "
                         f"{options['resolution'] // 2}")
    for r in models.resolutions_up_to(options["resolution"]):
        if options["growth"] == "morph" and r > options["initial_resolution"]:
            morph.check_width(
                models.channels_at(r, options["channel_base"], options["channel_max"]), r)
    if resumed is None and "total_kimg" not in typed:
        # A larger resolution than the situation's own needs more images to be reached at all.
        grown = [r for r in models.resolutions_up_to(options["resolution"])
                 if r >= options["initial_resolution"]]
        needed = sum(options["stabilize_kimg"][r] for r in grown) + sum(
            growing_kimg(options)[r] for r in grown[1:])
        options["total_kimg"] = max(options["total_kimg"], needed)
    for name in ("batch", "accumulate", "tick_kimg", "samples_kimg", "checkpoint_kimg",
                 "total_kimg", "evaluate_kimg"):
        values = options[name].values() if isinstance(options[name], dict) else [options[name]]
        if values != [None] and min(values) < (1 if name in ("batch", "accumulate") else 0.001):
            raise ValueError(f"--{name.replace('_', '-')} {show(options[name])} is too small")
    for r in models.resolutions_up_to(options["resolution"]):
        batch, accumulate = options["batch"][r], options["accumulate"][r]
        if batch % (processes * accumulate) and r >= options["initial_resolution"]:
            raise ValueError(f"--batch {batch} at {r} px cannot be divided by {processes} "
                             f"processes times --accumulate {accumulate}")
    if resumed is not None:
        if options["growth"] != base["growth"]:
            raise ValueError(f"--growth {options['growth']}: the checkpoint grows the other way "
                             f"(python morph.py CHECKPOINT makes one that is morphed)")
        for name in models.SETTINGS:
            if options[name] != resumed[name]:
                raise ValueError(f"--{name.replace('_', '-')} {options[name]} differs from the "
                                 f"checkpoint's {resumed[name]}; a network keeps its shape "
                                 f"(convert_resolution.py changes the resolution)")
    return options, situation


def growing_kimg(options):
    """The table of how many kimg a new block grows: that of --growth."""
    return options[f"{options['growth']}_kimg"]


def as_plain(options):
    """The options with tables as they are typed: for files, and for `complete_options` again."""
    return {key: show(value) if isinstance(value, Table) else value
            for key, value in options.items()}


def command_line(options):
    """The command that repeats a run."""
    words = ["python", "train.py"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, show(value)]
    return shlex.join(words)


# ==== Part 3: the loop ========================================================================


def average_gradients(network, *buffers):
    """Under torchrun, replace every gradient by its mean over the processes; alone, do nothing.

    Why:    the loss of a batch is the mean over its images, so its gradient is the mean of the
            gradients of the parts that the processes hold. All take the same step from the same
            weights, then, and remain the same without ever sending weights.
    Differs: DistributedDataParallel does the same in pieces while the backward pass still runs,
            which hides the time of sending. It wants one forward and one backward a step, and all
            parameters used; D has two forwards and R1, and a growing network has unused blocks.
    Shapes: buffers: tensors to be averaged along, such as w_avg.
    Proved: tests/test_train.py::test_two_processes_have_the_gradients_of_one
    """
    if dist.is_initialized():
        tensors = [p.grad for p in network.parameters() if p.grad is not None] + list(buffers)
        flat = torch.cat([tensor.flatten() for tensor in tensors])         # one message, not 100
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [p.view(t.shape) for p, t in zip(parts, tensors)])


@torch.no_grad()
def share_weights(*networks):
    """Under torchrun, give all processes the weights of the first: machines may round otherwise."""
    if dist.is_initialized():
        for network in networks:
            tensors = list(network.parameters())
            flat = torch.cat([tensor.flatten() for tensor in tensors])     # one message, not 100
            dist.broadcast(flat, 0)
            parts = flat.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [p.view(t.shape) for p, t in zip(parts, tensors)])


def training_step(G, D, G_opt, D_opt, reals, z, mixes, alpha, r1_factor, accumulate=1, scalers=None,
                  compiled=None):
    """One step: D learns from a batch of reals and fakes, then G from D's opinion of new fakes.

    Shapes: reals [N, 3, R, R] in [-1, 1]; z [2, N, K, latent] and mixes, style rows [2, N, L]: one
            batch for each network's turn, for D has just learned from the last fakes.
    Units:  r1_factor as `r1_weight` gives it, or None in the steps without the penalty.
            accumulate: the batch is worked off in that many parts, whose gradients are summed: the
            same step in less memory. Every accumulate-th image belongs to a part, so that the
            groups of the minibatch stddev are those of the whole batch, if N / accumulate is a
            multiple of 4. (Only w_avg moves once for each part.)
            Proved: tests/test_train.py::test_accumulating_is_the_same_step
            scalers: two GradScaler, for D and G (`new_scalers`).
            compiled: (G, D) as torch.compile returns them, or None.
    Returns (means, bad): a tensor [6], the means that `LOGGED` names and 1 if R1 was computed;
            and whether anything was `not_finite`, a tensor too.
    """
    resolution, parts = reals.shape[-1], [slice(i, None, accumulate) for i in range(accumulate)]
    d_scaler, g_scaler = scalers or new_scalers("fp32", reals.device)
    fast_G, fast_D = compiled or (G, D)
    # torch.compile cannot differentiate twice: where R1 asks for that, D runs as it is written.
    real_D = D if r1_factor is not None else fast_D
    sums = torch.zeros(len(LOGGED), device=reals.device)       # over the parts, of what is logged

    # ---- D: minimise softplus(-D(real)) + softplus(D(fake)) + gamma/2 |grad D(real)|^2 ----
    # The terms are summed by way of their gradients, and what one of them needed is free again
    # before the next is computed. The reals, whose R1 needs most, go before there are gradients.
    D.requires_grad_(True)
    loss_scale = d_scaler.scale(torch.ones_like(sums[0]))
    for part in parts:
        real_images = reals[part].requires_grad_(r1_factor is not None)
        real_scores = real_D(real_images, alpha)
        real_loss = loss_on_reals(real_scores)
        r1 = torch.zeros_like(real_loss)
        if r1_factor is not None:
            r1 = r1_penalty(real_scores, real_images, loss_scale)
        ((real_loss + (r1_factor or 0.0) * r1) * loss_scale / accumulate).backward()
        with torch.no_grad():                                  # G does not learn here
            fakes = fast_G(z[0][part], mixes[0][part], resolution=resolution, alpha=alpha)
        fake_scores = fast_D(fakes, alpha)                     # [N / accumulate, 1]
        fake_loss = loss_on_fakes(fake_scores)
        (fake_loss * loss_scale / accumulate).backward()
        sums += torch.stack([real_loss + fake_loss, real_loss * 0, real_scores.mean(),
                             fake_scores.mean(), r1]).detach()
    average_gradients(D)
    bad = not_finite([] if d_scaler.is_enabled() else D.parameters(), sums)
    d_scaler.step(D_opt)
    d_scaler.update()
    D.zero_grad()                                              # its memory is needed now

    # ---- G: minimise softplus(-D(fake)) ----
    D.requires_grad_(False)                                    # spares D's weight gradients
    loss_scale = g_scaler.scale(torch.ones_like(sums[0]))
    for part in parts:
        fakes = fast_G(z[1][part], mixes[1][part], resolution=resolution, alpha=alpha)
        g_loss = generator_loss(fast_D(fakes, alpha))
        (g_loss * loss_scale / accumulate).backward()
        sums[1] += g_loss.detach()
    average_gradients(G, G.w_avg)
    bad = bad | not_finite([] if g_scaler.is_enabled() else G.parameters(), sums)
    g_scaler.step(G_opt)
    g_scaler.update()
    G.zero_grad()

    computed = torch.full_like(sums[:1], float(r1_factor is not None))
    return torch.cat([sums / accumulate, computed]), bad


LOGGED = ("loss_d", "loss_g", "d_real", "d_fake", "r1")


def new_adam(network, device):
    """Adam(beta1 0, beta2 0.99). No momentum: the other network changes the target every step.

    Paper:  StyleGAN appendix C, as ProGAN. `fused` does all parameters in one pass over memory.
    """
    return torch.optim.Adam(network.parameters(), lr=0.001, betas=(0.0, 0.99), eps=1e-8,
                            fused=device.type in ("cpu", "cuda"))


def new_scalers(precision, device):
    """A loss scale for D and one for G: idle, but for fp16.

    Why:    float16 rounds gradients below 6e-8 to 0. The loss is multiplied by a large number and
            the gradient divided by it; the number is halved when something overflows (that step is
            then left out) and doubled after 2000 steps without. bfloat16 has the range of float32
            and needs none of this.
    Paper:  Micikevicius et al. 2018, "Mixed precision training" (arXiv 1710.03740), section 3.2.
    """
    return [torch.amp.GradScaler(device.type, enabled=precision == "fp16") for _ in "DG"]


def set_precision(G, D, precision):
    """fp32, tf32, bf16 or fp16: see --precision, and `dtype` in stylegan_models.py."""
    G.synthesis.dtype = D.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    # TF32: NVIDIA's float32 with 10 instead of 23 bits behind the point, inside products only.
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def compile_networks(G, D, backend="inductor"):
    """(G, D) as torch.compile returns them: programs for the blocks in use, made at the first call.

    Proved: tests/test_train.py::test_compiled_networks_have_the_same_gradients
    """
    torch.compiler.reset()                                     # forgets earlier ones
    torch._dynamo.config.cache_size_limit = 64                 # 8 are too few for so many layers
    # The scale of a layer's weights never changes. Taken for a variable, it stops torch 2.6.
    torch._dynamo.config.specialize_float = True
    return torch.compile(G, backend=backend), torch.compile(D, backend=backend)


def keep_freed_memory():
    """Let the C library keep the memory that tensors give back, instead of returning it.

    Why:    Linux hands out memory page by page, emptied, at the first touch of each 4 kB: copying
            an image of 34 MB took 8 ms into new memory and 1 ms into memory that was used before.
            A step makes and drops a few hundred such tensors.
    How:    two settings of glibc: large blocks come from the heap, too, and not one by one from the
            system, to which they would go back; and the heap never shrinks. PyTorch is told to
            align large tensors to 2 MB, which leaves fewer gaps between them that nothing fits in.
    [MACHINE] Linux with glibc, 2 cores, the paper's widths, batch 16: a step takes 0.87 of the time
              at 32 px and 0.76 at 64 px, and 1.2 and 1.3 times the memory (measured), which is kept
              until the end of the run. Elsewhere nothing is done.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")         # read at the first large tensor
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda parameter, value: 0)
        mallopt(-4, 0)                                         # M_MMAP_MAX
        mallopt(-1, 2 ** 31 - 1)                               # M_TRIM_THRESHOLD


def seed_step(seed, step, process, device):
    """Make all random numbers of a step a function of (seed, step, process). Returns a generator.

    Why:    a resumed run then needs no saved state to go on with the same numbers, also with
            another number of processes.
    How:    the z of the whole batch come from the returned generator, the same in every process,
            which takes its share. The noise inputs draw from torch's global generators, seeded
            differently in each process, or all of them would add the same noise.
    Proved: tests/test_train.py::test_z_and_the_noise_of_each_process_are_different_numbers
    """
    # Number 0 is for z, the processes count from 1. (A shorter list would not do for z: numpy takes
    # [seed, step] for [seed, step, 0], and z would be the numbers of the first one's noise.)
    latents, noise = (
        int(np.random.SeedSequence([seed, step, which]).generate_state(1, np.uint64)[0])
        for which in (0, 1 + process))
    torch.manual_seed(noise)
    return torch.Generator(device).manual_seed(latents)


def agreed(value):
    """The largest `value`, a number, of all processes. They must take the same decisions."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)                 # on the CPU: no GPU waits for it
    return tensor.item()


def measure_speed(G, D, options, device, processes=1, patience=20.0):
    """{resolution: seconds an image}, from a few rehearsed steps at each resolution, on copies.

    Why:    a run of days should say so at its start, and should run out of memory now, not when it
            reaches its last resolution. The copies are thrown away. A step longer than `patience`
            seconds ends the rehearsal: larger resolutions are then guessed at 3 times the one
            below.
    """
    G, D = copy.deepcopy(G), copy.deepcopy(D)
    G_opt, D_opt = new_adam(G, device), new_adam(D, device)
    scalers = new_scalers(options["precision"], device)

    def seconds_of_a_step(factor, resolution, n):
        reals = torch.rand(n, 3, resolution, resolution, device=device)
        reals = reals.to(memory_format=torch.channels_last)
        z = torch.randn(2, n, options["styles_to_mix"], G.latent_dim, device=device)
        mixes = torch.zeros(2, n, models.num_style_layers(resolution), dtype=torch.long,
                            device=device)
        started = time.perf_counter()
        means, _ = training_step(G, D, G_opt, D_opt, reals, z, mixes, 0.5, factor,
                                 options["accumulate"][resolution], scalers)
        means.tolist()                                         # waits for the GPU
        return agreed(time.perf_counter() - started)           # mid-fade: costs a little more

    speeds = {}
    for r in models.resolutions_up_to(options["resolution"]):
        if r < options["initial_resolution"]:
            continue
        batch = options["batch"][r]
        if speeds and max(speeds.values()) * batch > patience:
            speeds[r] = 3 * speeds[r // 2]
            continue
        step = functools.partial(seconds_of_a_step, resolution=r, n=batch // processes)
        with_r1, without = step(1.0), step(None)
        if with_r1 < patience / 10:                            # the first steps also warm up
            with_r1, without = step(1.0), min(step(None), step(None))
        speeds[r] = (without + (with_r1 - without) / options["r1_interval"]) / batch
    return speeds


def seconds_left(nimg, stages, speeds):
    """Time from nimg to the end at `speeds`, {resolution: seconds an image}."""
    return sum(max(0, stage.end - max(nimg, stage.start)) * speeds[stage.resolution]
               for stage in stages)


def clock(seconds):
    """4215 -> "1:10:15"; days in front where there are any."""
    days, seconds = divmod(round(seconds), 86400)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    text = f"{hours}:{minutes:02d}" if hours or days else f"{minutes}"
    return (f"{days} d " if days else "") + f"{text}:{seconds % 60:02d}"


def new_samples(options):
    """The fixed sample grid: z [n, K, latent] and style rows [n, L]; the last row's are mixed.

    The grid has at most 8 x 6 images, fewer where they are large: at most 4096 pixels across.
    """
    columns = min(8, max(2, 4096 // options["resolution"]))
    rows = min(6, max(2, 2048 // options["resolution"]))
    generator = torch.Generator().manual_seed(options["seed"] + 1)
    z = torch.randn(rows * columns, options["styles_to_mix"], options["latent_dim"],
                    generator=generator)
    layers = models.num_style_layers(options["resolution"])
    mixer = data.StyleMixer(layers, columns, options["styles_to_mix"], 1.0, options["seed"])
    style_index = torch.zeros(rows * columns, layers, dtype=torch.long)
    style_index[-columns:] = next(iter(mixer))
    return {"z": z, "style_index": style_index, "columns": columns}


@torch.no_grad()
def sample_grid(G_ema, samples, resolution, alpha, device):
    """The grid as uint8 [rows*R, columns*R, 3], R the final resolution: small stages enlarged."""
    enlarge = G_ema.synthesis.resolution // resolution
    columns, images = samples["columns"], []                   # a row at a time: little memory
    for z, rows in zip(samples["z"].split(columns), samples["style_index"].split(columns)):
        small = G_ema(z.to(device), rows.to(device), noise_mode="const",
                      resolution=resolution, alpha=alpha)
        images.append(F.interpolate(small, scale_factor=enlarge, mode="nearest").cpu())
    return as_grid(torch.cat(images), columns)


def as_grid(images, columns):
    """float [n, 3, R, R] -> uint8 array [rows*R, columns*R, 3]."""
    from torchvision.utils import make_grid                    # slow to import, so not on top
    return data.to_pixels(make_grid(images, nrow=columns, padding=0)[None])[0].numpy()


class StopRequest:
    """Remembers Ctrl-C or SIGTERM until the step is done; the same one again does not wait.

    (After Ctrl-C, torchrun sends SIGTERM on its own account: that is not impatience.)
    """

    def __init__(self):
        self.signal = None

    def __call__(self, number, frame):
        if self.signal == number:
            raise KeyboardInterrupt
        self.signal = self.signal or number


def progress_bar(**options):
    """A tqdm bar; silent where nobody looks, in a file or a pipe."""
    from tqdm import tqdm                                      # slow to import, so not on top
    return tqdm(**{"disable": None, "leave": False, **options})


def is_new_or_empty(folder):
    return not folder.exists() or folder.is_dir() and not any(folder.iterdir())


def make_run_folder(out, name, resume_path):
    """Create the folder of this run, or find it: a checkpoint.pt goes on in its own folder."""
    if out is None and resume_path is not None and resume_path.name == "checkpoint.pt" and (
            resume_path.parent / "settings.json").is_file():
        return resume_path.parent
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return out
    runs = pathlib.Path("runs")
    runs.mkdir(exist_ok=True)
    numbers = [int(match[0]) for p in runs.iterdir() if (match := re.match(r"\d+(?=-)", p.name))]
    number = max(numbers, default=-1)
    while True:                                                # another run may be starting too
        number += 1
        try:
            (runs / f"{number:05d}-{name}").mkdir()
            return runs / f"{number:05d}-{name}"
        except FileExistsError:
            pass


def write_settings(run, options, device, processes, resume_path, nimg):
    """settings.json: the command that repeats this run, and where it was resumed."""
    path = run / "settings.json"
    resumed = json.loads(path.read_text())["resumed"] if path.is_file() else []
    if resume_path is not None:
        resumed.append({"from": str(resume_path), "nimg": nimg})
    path.write_text(json.dumps({
        "repeat": command_line(options), "resumed": resumed, "torch": torch.__version__,
        "device": str(device), "processes": processes, "launch": launch_id(),
        "options": as_plain(options)}, indent=2) + "\n", encoding="utf-8")


def find_split(options, checkpoint, source, packed):
    """{"seed", "images"} of the split that --evaluate-kimg asks for (`data.split_pictures`), or
    that the run began with; else None.

    Errors: ValueError if pictures would be held out that the networks have already learned from.
    Proved: tests/test_train.py::test_what_was_held_out_stays_held_out
    """
    images = len(data.PictureDataset(packed, source, options["resolution"]))
    if checkpoint is None:
        wanted = options["evaluate_kimg"] is not None
        return {"seed": options["seed"], "images": images} if wanted else None
    split = checkpoint["progress"].get("split")
    if split is None and options["evaluate_kimg"] is not None:
        raise ValueError("--evaluate-kimg: this run has learned from all of its pictures, and none "
                         "can be held out any more; give it to a new run")
    if split is not None and (split["images"] != images or
                              checkpoint["progress"]["pictures"] != source.stamp):
        raise ValueError(f"the pictures of {source.path} have changed since some were held out, "
                         f"and nobody knows which they were; a new run splits them anew")
    return split


def forget_later_lines(log, nimg):
    """Drop the lines of a .jsonl file that were written after the checkpoint at nimg."""
    if log.is_file():
        lines = log.read_text().splitlines(keepends=True)
        kept = [line for line in lines
                if line.endswith("\n") and (json.loads(line)["nimg"] or 0) <= nimg]
        temporary = log.with_name("log.jsonl.tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, log)


def peak_memory_mb(device):
    """The most memory this process has held so far, of the GPU or of the computer, in MB.

    On MPS: what it holds now, since MPS keeps no record. On Windows without a GPU: None.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e6
    try:
        import resource                                        # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB, but bytes on macOS
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def crossed(nimg, batch, kimg):
    """Did the step that ended at nimg pass a multiple of `kimg`? Does not depend on resuming."""
    interval = max(1, round(1000 * kimg))
    return nimg // interval > (nimg - batch) // interval


# What a checkpoint must hold beside generator_ema for a run to go on from it.
TO_RESUME = ("generator", "discriminator", "optimizer_g", "optimizer_d", "progress", "options",
             "samples")


def launched_by_torchrun(out):
    """(rank, number of processes, interrupted run): (0, 1, None) without torchrun.

    The interrupted run is the folder in which an earlier attempt of the same torchrun command
    worked, if torchrun has started the processes again after one of them died (--max-restarts).
    """
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) and launch_id():
        for run in [out] if out else sorted(pathlib.Path("runs").glob("*-*")):
            settings = run / "settings.json"
            if settings.is_file() and (
                    json.loads(settings.read_text()).get("launch") == launch_id()):
                return rank, processes, run
    return rank, processes, None


def launch_id():
    """What all attempts of one torchrun command have in common; None without torchrun.

    It is torchrun's --rdzv-id, which --standalone makes up. Without either it is "none"; then
    the process of torchrun itself tells commands apart, on one machine.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":
        return name
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return f"started by process {os.getppid()}" if alone else None


def join_processes(device):
    """Meet the other processes of torchrun. A no-op for one alone.

    The time limit is for the first process of each machine, which may be packing pictures while
    the others wait here. Should one die, torchrun ends the others, whatever they wait for.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        limit = datetime.timedelta(days=7)
        store, rank, processes = next(dist.rendezvous("env://", timeout=limit))
        # A drawer of its own for each attempt: what the dead left in the store must not be read.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                                store=dist.PrefixStore(f"attempt {attempt}", store),
                                rank=rank, world_size=processes, timeout=limit)


def main(argv=None):
    """The training loop, in eight steps. Returns the exit code."""
    typed = parse_args(argv)

    # ---- 1. What is asked for, and what there is ----
    resume_path, out = typed.pop("resume", None), typed.pop("out", None)
    resume_path, out = resume_path and pathlib.Path(resume_path), out and pathlib.Path(out)
    checkpoint, nimg = None, 0
    # Under torchrun, this program runs several times at once, and all do the same, each with its
    # part of every batch. Only the first one, the chief, writes and talks.
    rank, processes, interrupted = launched_by_torchrun(out)
    chief = rank == 0
    try:
        device = pick_device(typed.pop("device", None))
        if processes > 1 and device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device {device}: torchrun needs CUDA or a CPU")
        if processes > 1 and device.type == "cuda":
            device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        if device.type == "cpu":
            keep_freed_memory()
        if interrupted and (interrupted / "checkpoint.pt").exists():
            resume_path = interrupted / "checkpoint.pt"
        if resume_path:
            checkpoint = models.load_checkpoint(resume_path)
            if any(key not in checkpoint for key in TO_RESUME):
                raise ValueError(f"{resume_path}: holds a network to look at, not a run to resume")
            nimg = checkpoint["progress"]["nimg"]
        if out and not interrupted and chief and not is_new_or_empty(out):
            raise ValueError(f"--out {out}: exists and is not an empty folder")
        options, situation = complete_options(typed, device, checkpoint and checkpoint["options"],
                                              processes)
        for key in ("data", "cache"):                          # to be found from any folder
            options[key] = options[key] and os.path.abspath(options[key])
        stages = plan_stages(options["initial_resolution"], options["resolution"],
                             growing_kimg(options), options["stabilize_kimg"],
                             options["total_kimg"])
        if not stages or nimg >= stages[-1].end:
            raise ValueError(f"{resume_path}: has seen {nimg / 1000:g} kimg and is finished; "
                             f"a larger --total-kimg goes on")
        say = print if chief else lambda *args, **kwargs: None
        say(f"{situation}: " + command_line(options).removeprefix("python train.py "))
        if stages[-1].resolution < options["resolution"]:
            say(f"note: --total-kimg {options['total_kimg']:g} ends at "
                  f"{stages[-1].resolution} px, before {options['resolution']} px is reached")

        # ---- 2. The pictures ----
        first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0         # of this machine
        if not first_here:                                     # wait until it has packed them
            join_processes(device)
        source = data.find_pictures(options["data"])
        packed = data.pack_pictures(source, options["resolution"], options["cache"],
                                    os.cpu_count() or 1, options["max_bad"],
                                    options["allow_upsampling"], say, progress_bar)
        if first_here:
            join_processes(device)
        split = find_split(options, checkpoint, source, packed)
        parts = split and data.split_pictures(split["images"], split["seed"])
        only = parts and parts["training"]                     # None: all of them
        if checkpoint and checkpoint["progress"].get("pictures", source.stamp) != source.stamp:
            say("note: the pictures are not those that the checkpoint was trained with; the run "
                  "goes on with these")
    except (ValueError, OSError) as error:
        fail(error)

    # ---- 3. The networks, and everything that changes with them ----
    torch.manual_seed(options["seed"])
    settings = {name: options[name] for name in models.SETTINGS}
    # channels_last: the C numbers of a pixel lie together in memory, instead of the pixels of a
    # channel. It changes no result, but is what fast convolutions are written for.
    G = models.make_generator(settings).to(device, memory_format=torch.channels_last)
    D = models.make_discriminator(settings).to(device, memory_format=torch.channels_last)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)      # never trained: it only follows G
    for network in (G.synthesis, G_ema.synthesis, D):
        network.growth = options["growth"]
    set_precision(G, D, options["precision"])                  # G_ema stays in float32
    scalers = new_scalers(options["precision"], device)
    G_opt, D_opt = new_adam(G, device), new_adam(D, device)
    # The same z in every grid: one can watch a face become itself, from 4x4 on.
    samples = new_samples(options)
    progress = {"nimg": 0, "step": 0, "resolution": None, "phase": None, "alpha": 1.0,
                "steps_since_tick": 0, "sums": torch.zeros(len(LOGGED) + 1),
                "pictures": source.stamp, "split": split}
    # All that a run is: what is not restored here must be a function of nimg, step and the
    # options, as all random numbers are, or a resumed run would drift from one never stopped.
    # Proved: test_a_killed_and_resumed_run_ends_with_the_bits_of_one_never_stopped
    if checkpoint:
        G.load_state_dict(checkpoint["generator"])
        D.load_state_dict(checkpoint["discriminator"])
        G_ema.load_state_dict(checkpoint["generator_ema"])
        G_opt.load_state_dict(checkpoint["optimizer_g"])
        D_opt.load_state_dict(checkpoint["optimizer_d"])
        samples, progress = checkpoint["samples"], checkpoint["progress"]
        for scaler, state in zip(scalers, progress.get("scalers", [])):
            if scaler.is_enabled() and state:
                scaler.load_state_dict(state)
    step, steps_since_tick = progress["step"], progress["steps_since_tick"]
    resolution, phase = progress["resolution"], progress["phase"]
    sums = progress["sums"].to(device)                         # of LOGGED, since the last tick
    first_bad = torch.full((), math.inf, device=device)        # the first step that went wrong

    # ---- 4. How long will it take, and does it fit? ----
    measure = None
    if options["evaluate_kimg"] and chief:
        import evaluate                                        # which imports this file
        try:
            measure = evaluate.prepare(options, packed, source, parts, device, processes, G_ema,
                                       G, D)
        except (ValueError, OSError) as error:
            fail(error)
    try:
        speeds = measure_speed(G, D, options, device, processes)
    except RuntimeError as error:
        if not re.search("out of memory|not enough memory|allocate memory", str(error)):
            raise
        fail(f"{device} has not enough memory for --batch {show(options['batch'])}; try smaller "
             f"ones, for instance --batch 4:32,64:8,256:2")
    say("measured, images/s: " + ", ".join(f"{1 / s:.1f} at {r} px" for r, s in speeds.items())
          + f"; this run will take about {clock(seconds_left(nimg, stages, speeds))}")

    # ---- 5. The run's folder ----
    run = board = None
    if chief:
        name = pathlib.Path(options["data"]).resolve().stem if options["data"] else "faces"
        try:
            run = interrupted or make_run_folder(out, name, resume_path)
            (run / "samples").mkdir(exist_ok=True)
            for name in ("log.jsonl", "metrics.jsonl"):
                forget_later_lines(run / name, nimg)
            write_settings(run, options, device, processes, resume_path, nimg)
        except (ValueError, OSError) as error:
            fail(error)
        say(f"{run}: samples/, log.jsonl, checkpoint.pt; "
            f"curves: tensorboard --logdir {run.parent}", flush=True)
        from torch.utils.tensorboard import SummaryWriter      # slow to import, so not on top
        board = SummaryWriter(run, purge_step=nimg + 1)        # forget later curves, too
        finals = data.PictureDataset(packed, source, options["resolution"], options["seed"],
                                     flip=not options["no_flip"], only=only)
        grid = as_grid(data.to_images(finals.__getitems__(range(len(samples["z"])))),
                       samples["columns"])
        Image.fromarray(grid).save(run / "samples" / "reals.png")
    bar = progress_bar(total=stages[-1].end / 1000, initial=nimg / 1000, mininterval=0.5,
                       disable=None if chief else True,
                       bar_format="{percentage:3.0f}%|{bar:20}| {n:.1f}/{total:g} kimg{postfix}")

    # ---- 6. The loop ----
    stop = StopRequest()
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    pictures, compiled, stopping = None, None, False
    started = tick_started = time.perf_counter()
    nimg_at_tick, expected = nimg, seconds_left(nimg, stages, speeds)
    while nimg < stages[-1].end and not stopping:
        stage = next(s for s in stages if nimg < s.end)
        alpha = alpha_at(nimg, stage)
        stage_phase = options["growth"] if stage.fading else "stabilize"

        # A new stage begins with a fresh Adam, as in the official code: new blocks change the
        # gradients of the old ones, and its memory is only 100 steps long anyway. A morphed block
        # changes nothing, so Adam goes on; it begins the new weights' memory at their first step.
        if options["growth"] == "fade" and (resolution, phase) != (stage.resolution, stage_phase):
            G_opt, D_opt = new_adam(G, device), new_adam(D, device)
        if options["growth"] == "morph" and resolution not in (None, stage.resolution):
            morph.grow(G, G_ema, D, stage.resolution, options["seed"])
            share_weights(G, G_ema, D)
        if options["compile"] and (compiled is None or phase != stage_phase):
            compiled = compile_networks(G, D)                  # every stage is a program of its own
        # A new resolution: other pictures, and rows for more layers. Both begin at the sample that
        # this nimg has reached; the mixer gives two rows an image, one for D's turn, one for G's.
        if pictures is None or resolution != stage.resolution:
            batch = options["batch"][stage.resolution]
            pictures = iter(data.picture_loader(
                data.PictureDataset(packed, source, stage.resolution, options["seed"],
                                    flip=not options["no_flip"], only=only),
                batch // processes, nimg, options["workers"], device.type == "cuda",
                rank, processes))
            mixer = iter(data.StyleMixer(
                models.num_style_layers(stage.resolution), batch // processes,
                options["styles_to_mix"], options["mixing_probability"], options["seed"],
                2 * nimg, rank, processes))
        resolution, phase = stage.resolution, stage_phase
        for group in G_opt.param_groups + D_opt.param_groups:
            group["lr"] = options["learning_rate"][resolution]

        # The step itself. alpha fades three things at once, each towards the new resolution: G's
        # image (SynthesisNetwork), the real ones, and D's way of looking (Discriminator).
        reals = reals_at(data.to_images(next(pictures), device), alpha, options["growth"])
        latents = seed_step(options["seed"], step, rank, device)
        z = torch.randn(2, batch, options["styles_to_mix"], G.latent_dim, device=device,
                        generator=latents)[:, rank::processes]         # one for D, one for G
        mixes = torch.stack([next(mixer) for _ in "DG"]).to(device, non_blocking=True)
        weight = torch.full((), alpha, device=device) if compiled and stage.fading else alpha
        r1_factor = None
        if step % options["r1_interval"] == 0:
            r1_factor = r1_weight(options["r1_gamma"][resolution], options["r1_interval"],
                                  resolution, options["resolution"])
        means, bad = training_step(G, D, G_opt, D_opt, reals, z, mixes, weight, r1_factor,
                                   options["accumulate"][resolution], scalers, compiled)
        step, nimg, steps_since_tick = step + 1, nimg + batch, steps_since_tick + 1
        update_ema(G_ema, G, ema_beta(nimg, batch, options["ema_halflife_kimg"]))
        sums += means
        first_bad = torch.where(bad & first_bad.isinf(), float(step), first_bad)

        # ---- 7. Now and then: say how it goes, show it, keep it ----
        stopping = bool(agreed(stop.signal is not None))
        last = nimg >= stages[-1].end
        finished = last or next(s for s in stages if nimg < s.end).resolution != resolution
        tick = last or crossed(nimg, batch, options["tick_kimg"])
        show_samples = last or crossed(nimg, batch, options["samples_kimg"])
        keep = stopping or finished or crossed(nimg, batch, options["checkpoint_kimg"])

        # Only here does the CPU wait for the GPU. On a CPU, asking in every step costs nothing.
        if (tick or show_samples or keep or device.type == "cpu") and agreed(first_bad.isfinite()):
            break
        if (tick or keep) and processes > 1:                   # each saw its part of the images
            dist.all_reduce(sums)
            sums /= processes
        if not chief:
            if tick:
                sums, steps_since_tick = torch.zeros_like(sums), 0
            continue
        # The rest of the run at the speeds of step 4, times how wrong these have been so far.
        now, left = time.perf_counter(), seconds_left(nimg, stages, speeds)
        left = clock(left * (now - started) / (expected - left))
        rate = (nimg - nimg_at_tick) / (now - tick_started)
        bar.set_postfix_str(f"{resolution} px, {rate:.1f} images/s, {left} left", refresh=False)
        bar.update(nimg / 1000 - bar.n)
        if tick:
            *means, r1_steps = sums.tolist()
            line = {"nimg": nimg, "step": step, "resolution": resolution, "phase": phase,
                    "alpha": alpha, **{key: value / steps_since_tick
                                       for key, value in zip(LOGGED, means)}}
            line["r1"] = means[-1] / r1_steps if r1_steps else None
            line["images_per_second"], line["seconds_per_kimg"] = rate, 1000 / rate
            line["peak_memory_mb"] = peak_memory_mb(device)
            with open(run / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            for key, value in line.items():
                if isinstance(value, (int, float)) and key != "nimg":
                    board.add_scalar(key, value, nimg)
            bar.write(f"{nimg / 1000:8.1f} kimg  {resolution:4d} px {phase:9s} alpha {alpha:.2f}  "
                      f"loss D {line['loss_d']:.3f} G {line['loss_g']:.3f}  "
                      f"D(real) {line['d_real']:+.2f} D(fake) {line['d_fake']:+.2f}  "
                      f"{rate:6.1f} images/s, {left} left", file=sys.stdout)
            sys.stdout.flush()
            sums, steps_since_tick = torch.zeros_like(sums), 0
            tick_started, nimg_at_tick = now, nimg
        if show_samples:
            grid = sample_grid(G_ema, samples, resolution, alpha, device)
            Image.fromarray(grid).save(run / "samples" / f"{nimg:09d}.png")
            board.add_image("samples", grid, nimg, dataformats="HWC")
        if keep:
            state = {
                "settings": settings, "options": as_plain(options),
                "generator": G.state_dict(), "generator_ema": G_ema.state_dict(),
                "discriminator": D.state_dict(), "optimizer_g": G_opt.state_dict(),
                "optimizer_d": D_opt.state_dict(), "samples": samples,
                "progress": {"nimg": nimg, "step": step, "resolution": resolution, "phase": phase,
                             "alpha": alpha, "steps_since_tick": steps_since_tick, "sums": sums,
                             "scalers": [scaler.state_dict() for scaler in scalers],
                             "pictures": source.stamp, "split": split}}
            try:
                models.save_checkpoint(run / "checkpoint.pt", state)
                if finished:
                    models.save_checkpoint(run / f"checkpoint-{resolution}.pt", state)
            except (OSError, RuntimeError) as error:           # torch reports a full disk as either
                fail(f"cannot write a checkpoint ({error}); the one before is whole", 1)

        # The chief measures, on copies, while the others wait for it in the next step.
        # Proved: test_a_run_that_is_measured_ends_with_the_bits_of_one_that_is_not
        if measure and not stopping and (last or crossed(nimg, batch, options["evaluate_kimg"])):
            measuring = time.perf_counter()
            for record in measure(resolution, alpha, nimg):
                evaluate.append_line(run / "metrics.jsonl", record)
                board.add_scalar(f"metrics/{record['metric']}", record["value"], nimg)
                bar.write(f"{nimg / 1000:8.1f} kimg  {record['metric']} {record['value']:.4g}" + (
                    f" +- {record['error']:.2g}" if record["error"] else ""), file=sys.stdout)
            sys.stdout.flush()
            measuring = time.perf_counter() - measuring        # is no time of training
            started, tick_started = started + measuring, tick_started + measuring

    # ---- 8. The end ----
    for number, handler in handlers.items():
        signal.signal(number, handler)
    bar.close()
    stopped, bad = stopping and not last, bool(first_bad.isfinite())
    if chief:
        board.close()
        kept = run / "checkpoint.pt" if (run / "checkpoint.pt").exists() else resume_path
        if bad:
            fail(f"step {int(first_bad)}: a loss or a gradient is no longer finite (noticed at "
                 f"step {step}, {nimg / 1000:g} kimg, {resolution} px {phase}, alpha {alpha:.2f}). "
                 + (f"{kept} is from before that: resume it" if kept else "Start again") +
                 " with a smaller --learning-rate or a larger --r1-gamma.", 1)
        if stopped:
            say(f"stopped at {nimg / 1000:g} kimg; to go on: python train.py --resume {kept}")
        else:
            say(f"done: {run / 'samples' / f'{nimg:09d}.png'}, {run / 'checkpoint.pt'}")
    code = int(bad)
    if stopped:
        code = 128 + (stop.signal or signal.SIGTERM)           # 130 Ctrl-C, 143 SIGTERM, as a shell
    if dist.is_initialized():
        # All is written. Leave at once: gloo's threads, taken down in order while another process
        # still works, once ended a finished run with an abort.
        del pictures                                           # ends its workers
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    # In the loop, it takes a second Ctrl-C to come here.
    models.start(main, fail, "stopped at once; checkpoints are whole")
