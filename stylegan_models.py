"""stylegan_models.py: the three networks of a StyleGAN, and how they are saved and loaded.   (3rd)

Read before: train.py, stylegan_dataloader.py.     Read next: stylegan_layers.py, the parts.
Paper:   Karras et al. 2019 (arXiv 1812.04948), section 2, figure 1b and appendix C; growing:
         Karras et al. 2018, "ProGAN" (arXiv 1710.10196), section 2 and appendix A.
Needs:   torch, any device. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; K styles mixed in one image; L style layers; S size of w;
         C channels; R rows = columns of pixels. Images lie in [-1, 1]; z is standard normal.

              z [N, latent]                          images [N, 3, R, R]
                   | mapping                              | from_rgb
              w [N, S]                               blocks R, R/2, ... 8    (halve the resolution)
                   | style mixing, truncation             |
              ws [N, L, S]                           block 4: how varied is the batch?
                   | synthesis: blocks 4, 8, ... R        |
                   | to_rgb                          score [N, 1]: high: looks real
              images [N, 3, R, R]

A block is named by its resolution, never counted from the top: `synthesis.blocks.64.conv0.weight`
means the same in a 64 px network and in a 1024 px one. Growing a network, or changing the
resolution of a checkpoint, is then only a matter of which names are there.
"""

import argparse
import math
import os
import pathlib
import sys
import zipfile

import torch
import torch.nn.functional as F

from stylegan_layers import (
    AdaIN, EqualizedConv2d, EqualizedLinear, LearnedConstant, MinibatchStddev, NoiseInput,
    PixelNorm, input_gradients_only, leaky_relu)


def resolutions_up_to(resolution):
    """[4, 8, ..., resolution]. Errors: ValueError if it is not a power of two, 4 or more."""
    if resolution < 4 or resolution & (resolution - 1):
        raise ValueError(f"the resolution must be a power of two, 4 or more, got {resolution}")
    return [2 ** k for k in range(2, resolution.bit_length())]


def num_style_layers(resolution):
    """How many layers take a style: two a block, so 2, 4, 6, ... 18 for 4, 8, 16, ... 1024 px."""
    return 2 * len(resolutions_up_to(resolution))


def channels_at(resolution, channel_base, channel_max):
    """The width of the networks at a resolution (ProGAN, table 2).

    Doubling the resolution quadruples the pixels; halving the channels brings the memory of a
    feature map back to twice, and the work of a convolution to the same. 8192 and 512, the paper's
    values, give 512 channels at 4..32 px, then 256, 128, 64, 32, and 16 at 1024 px.
    """
    channels = min(2 * channel_base // resolution, channel_max)
    if channels < 1:
        raise ValueError(f"channel_base={channel_base} leaves no channel at {resolution}x"
                         f"{resolution}; it must be at least {resolution // 2}")
    return channels


def is_fading(alpha):
    """alpha is 1.0 where nothing fades; a tensor of one number is always taken to fade.

    (Its value would have to be waited for. `--compile` needs a tensor: a program compiled for the
    number 0.25 is of no use for 0.26.)
    """
    return isinstance(alpha, torch.Tensor) or alpha < 1


def blend(old, new, alpha):
    """(1 - alpha) * old + alpha * new, of the same shape; alpha a number, or a tensor of one."""
    return torch.lerp(old, new, alpha.to(new.dtype) if isinstance(alpha, torch.Tensor) else alpha)


def soften(x, nonlinear, alpha):
    """(1 - alpha) x + alpha * nonlinear(x): of a nonlinear step, only so much of it.

    Why:    a block that morph.py has just built is linear, so that the network can still do what it
            did without it; its nonlinear steps then come in little by little. Of a block that is
            not young, alpha is 1, and `nonlinear` is simply called.
    Paper:  Wei et al. 2016 (arXiv 1603.01670), section 3, who call it a parametric activation.
    """
    return blend(x, nonlinear(x), alpha) if is_fading(alpha) else nonlinear(x)


# Both networks have two attributes that train.py sets. `growth` (--growth) says what alpha < 1
# means: "fade", the paper's way, or "morph", that of morph.py. `dtype` (--precision) is bfloat16 or
# float16, or None for that of the weights. Weights are stored in float32 in any case and rounded
# where they are used: a convolution computes in the precision of its input (EqualizedConv2d). What
# is sensitive and cheap stays in float32 always: the mapping network and the styles, the sums of
# AdaIN, to_rgb and from_rgb, and the last block of D with the minibatch stddev.
# Proved: tests/test_models.py::test_low_precision_is_near_and_its_sensitive_parts_are_float32


# ---- 1. The generator ------------------------------------------------------------------------


class MappingNetwork(torch.nn.Module):
    """z to w, a stack of fully connected layers.

    Why:    z is normal by decree, equally dense in all directions and without gaps, while real
            faces have gaps (few babies have beards). The mapping may bend that into a w in which
            one direction can mean one thing (section 4, "disentangled", figure 6).
    Paper:  section 2, figure 1b left; learning rate / 100: appendix C.
    Shapes: z [N, latent_dim] -> w [N, style_dim]; layers in between have mapping_dim features.
    Proved: tests/test_models.py::test_mapping_network_gives_the_official_w
    """

    def __init__(self, latent_dim=512, style_dim=512, mapping_dim=512, mapping_layers=8):
        super().__init__()
        sizes = [latent_dim] + [mapping_dim] * (mapping_layers - 1) + [style_dim]
        self.normalize = PixelNorm()
        self.layers = torch.nn.ModuleList(
            EqualizedLinear(a, b, lr_multiplier=0.01) for a, b in zip(sizes[:-1], sizes[1:]))

    def forward(self, z):
        x = self.normalize(z)
        for layer in self.layers:
            x = leaky_relu(layer(x))
        return x


class SynthesisBlock(torch.nn.Module):
    """Two style layers at one resolution; all but the first block begin by doubling it.

    Paper:  figure 1b right. Each layer: convolution (in the doubling one, then blur), noise and
            bias, leaky ReLU, AdaIN. In the 4x4 block the learned constant is the first convolution.
    Shapes: x [N, in_channels, R/2, R/2], ws [N, 2, S] -> [N, out_channels, R, R]; x is None for
            the 4x4 block.
    Growing: alpha < 1 softens noise, leaky ReLU and AdaIN, each for itself; 0 leaves both
            convolutions and nothing else.
    Differs: the bias is part of the convolution here, so it is added before the noise and not
            after. It is the same sum.
    """

    def __init__(self, resolution, in_channels, out_channels, style_dim):
        super().__init__()
        if resolution == 4:
            self.const = LearnedConstant(out_channels)
        else:
            self.conv0 = EqualizedConv2d(in_channels, out_channels, resample="up")
        self.noise0 = NoiseInput(out_channels, resolution)
        self.adain0 = AdaIN(style_dim, out_channels)
        self.conv1 = EqualizedConv2d(out_channels, out_channels)
        self.noise1 = NoiseInput(out_channels, resolution)
        self.adain1 = AdaIN(style_dim, out_channels)

    def forward(self, x, ws, noise_mode, alpha=1.0):
        x = self.const(ws.shape[0]) if x is None else self.conv0(x)
        x = soften(x, lambda x: self.noise0(x, noise_mode), alpha)
        x = soften(x, leaky_relu, alpha)
        x = soften(x, lambda x: self.adain0(x, ws[:, 0]), alpha)
        x = self.conv1(x)
        x = soften(x, lambda x: self.noise1(x, noise_mode), alpha)
        x = soften(x, leaky_relu, alpha)
        return soften(x, lambda x: self.adain1(x, ws[:, 1]), alpha)


class SynthesisNetwork(torch.nn.Module):
    """ws to images, block by block from 4x4 up.

    Paper:  figure 1b; growing: ProGAN, figure 2.
    Shapes: ws [N, L, S] -> images [N, 3, resolution, resolution]; L may be larger than needed.
    Growing: only the blocks up to `resolution` are computed. While the last of them is young,
            alpha < 1, its picture is mixed with that of the block before, enlarged:
            alpha * new + (1 - alpha) * old. alpha = 0 is the smaller network, pixel for pixel.
            With growth "morph" there is nothing to mix: alpha goes into the young block.
    Proved: tests/test_models.py::test_images_equal_the_official_ones_at_every_lod
    """

    def __init__(self, resolution, channel_base=8192, channel_max=512, style_dim=512):
        super().__init__()
        self.resolution = resolution
        self.dtype, self.growth = None, "fade"
        self.blocks = torch.nn.ModuleDict()
        self.to_rgb = torch.nn.ModuleDict()
        in_channels = None
        for r in resolutions_up_to(resolution):
            channels = channels_at(r, channel_base, channel_max)
            self.blocks[str(r)] = SynthesisBlock(r, in_channels, channels, style_dim)
            self.to_rgb[str(r)] = EqualizedConv2d(channels, 3, kernel_size=1, gain=1.0)
            in_channels = channels

    def forward(self, ws, resolution=None, alpha=1.0, noise_mode="random"):
        resolution = self.resolution if resolution is None else resolution
        if str(resolution) not in self.blocks:
            raise ValueError(f"this network makes images of {', '.join(self.blocks)} px, "
                             f"not of {resolution}")
        young = alpha if self.growth == "morph" and resolution > 4 else 1.0
        x, before = None, None
        for layer, r in enumerate(resolutions_up_to(resolution)):
            before = x
            x = self.blocks[str(r)](x, ws[:, 2 * layer:2 * layer + 2], noise_mode,
                                    young if r == resolution else 1.0)
            x = x.to(self.dtype or x.dtype)
        images = self.to_rgb[str(resolution)](x.to(ws.dtype))
        if self.growth == "fade" and is_fading(alpha) and resolution > 4:
            old = self.to_rgb[str(resolution // 2)](before.to(ws.dtype))
            old = F.interpolate(old, scale_factor=2, mode="nearest")
            images = blend(old, images, alpha)
        return images


class Generator(torch.nn.Module):
    """z to images: mapping, then style mixing and truncation, then synthesis.

    Shapes: z [N, latent_dim] -> images [N, 3, resolution, resolution]; or z [N, K, latent_dim]
            with style_index [N, L], values 0..K-1: layer l of image n takes its style from z[n, k]
            with k = style_index[n, l]. `StyleMixer` in stylegan_dataloader.py draws these.
    Options: truncation_psi, truncation_cutoff: see `truncate`. resolution, alpha, noise_mode: see
            `SynthesisNetwork` and `NoiseInput`.
    State:  w_avg [S], the running mean of w, follows every call in train() mode by
            w_avg <- 0.995 w_avg + 0.005 mean(w), as in the official code. Never in eval() mode.
    """

    def __init__(self, resolution, channel_base=8192, channel_max=512, latent_dim=512,
                 style_dim=512, mapping_dim=512, mapping_layers=8, w_avg_beta=0.995):
        super().__init__()
        self.latent_dim = latent_dim
        self.w_avg_beta = w_avg_beta
        self.mapping = MappingNetwork(latent_dim, style_dim, mapping_dim, mapping_layers)
        self.synthesis = SynthesisNetwork(resolution, channel_base, channel_max, style_dim)
        self.register_buffer("w_avg", torch.zeros(style_dim))

    def forward(self, z, style_index=None, truncation_psi=1.0, truncation_cutoff=None,
                noise_mode="random", resolution=None, alpha=1.0):
        resolution = self.synthesis.resolution if resolution is None else resolution
        layers = num_style_layers(resolution)
        if z.shape[-1] != self.latent_dim or z.dim() not in (2, 3):
            raise ValueError(f"z must be [N, {self.latent_dim}] or [N, K, {self.latent_dim}], "
                             f"got {list(z.shape)}")
        if z.dim() == 2:
            z = z[:, None]                                                 # [N, 1, latent]
        w = self.mapping(z.flatten(0, 1)).unflatten(0, z.shape[:2])        # [N, K, S]
        if self.training:
            with torch.no_grad():
                self.w_avg.lerp_(w[:, 0].mean(dim=0), 1 - self.w_avg_beta)
        if style_index is None:
            ws = w[:, :1].expand(-1, layers, -1)                           # [N, L, S]
        else:
            if style_index.dim() != 2 or style_index.shape[1] < layers:
                raise ValueError(f"style_index must be [N, {layers}] (one column a style layer "
                                 f"at {resolution} px), got {list(style_index.shape)}")
            # w.gather would say the same; but the order in which its gradient adds up is not fixed,
            # and a repeated run would differ in the last bits.
            pick = F.one_hot(style_index[:, :layers], w.shape[1]).to(w.dtype)  # [N, L, K]
            ws = (pick[:, :, :, None] * w[:, None]).sum(dim=2)             # [N, L, S]
        ws = self.truncate(ws, truncation_psi, truncation_cutoff)
        return self.synthesis(ws, resolution, alpha, noise_mode)

    def truncate(self, ws, psi=1.0, cutoff=None):
        """Pull ws towards the average face: w_avg + psi (ws - w_avg) in the first `cutoff` layers.

        Why:    rare faces are learned from few pictures and look it; psi < 1 trades variety for
                quality, psi = 0 is the average face, psi = -1 the opposite one.
        Paper:  section 2.1 and appendix B. The official default for showing images: 0.7, cutoff 8.
        Shapes: ws [N, L, S] -> [N, L, S]. cutoff None: all layers.
        Proved: tests/test_models.py::test_truncation_equals_the_official_one
        """
        if psi == 1:
            return ws
        psi_of_layer = torch.full((ws.shape[1], 1), float(psi), device=ws.device)  # [L, 1]
        if cutoff is not None:
            psi_of_layer[cutoff:] = 1.0
        return self.w_avg + psi_of_layer * (ws - self.w_avg)


# ---- 2. The discriminator --------------------------------------------------------------------


class DiscriminatorBlock(torch.nn.Module):
    """Two convolutions at one resolution, the second of which halves it.

    Paper:  ProGAN table 2, unchanged in StyleGAN but for the blur in front of the halving.
    Shapes: x [N, in_channels, R, R] -> [N, out_channels, R/2, R/2].
    Growing: alpha < 1 softens the first leaky ReLU. (The last one is that of the from_rgb whose
            place a morphed block takes, and stays as it is.)
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv0 = EqualizedConv2d(in_channels, in_channels)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, resample="down")

    def forward(self, x, alpha=1.0):
        return leaky_relu(self.conv1(soften(self.conv0(x), leaky_relu, alpha)))


class DiscriminatorHead(torch.nn.Module):
    """The 4x4 block: compare the images of the batch, then give each its score.

    Paper:  ProGAN table 2 and section 3.
    Shapes: x [N, C, 4, 4] -> [N, 1]. Flattened in the order C, H, W.
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.minibatch_stddev = MinibatchStddev()
        self.conv = EqualizedConv2d(channels + 1, channels)
        self.dense0 = EqualizedLinear(channels * 4 * 4, hidden)
        self.dense1 = EqualizedLinear(hidden, 1, gain=1.0)

    def forward(self, x):
        x = x.to(self.dense0.weight.dtype)                                 # whatever came before
        x = leaky_relu(self.conv(self.minibatch_stddev(x)))
        return self.dense1(leaky_relu(self.dense0(x.flatten(1))))


class Discriminator(torch.nn.Module):
    """Images to a score: how real does each look?

    Shapes: images [N, 3, R, R] -> [N, 1], for any R of 4..resolution: R picks the block to enter.
    Growing: the mirror of `SynthesisNetwork`: alpha * (through the new block) + (1 - alpha) *
            (image averaged 2x2, straight into the block below). Nothing above R is computed.
            With growth "morph", alpha goes into the young block and its from_rgb instead.
    Units:  the score is the logit of "real"; `discriminator_loss` in train.py applies softplus.
    Errors: ValueError for images that are not square or of a size without a block.
    Proved: tests/test_models.py::test_scores_equal_the_official_ones_at_every_lod
    """

    def __init__(self, resolution, channel_base=8192, channel_max=512):
        super().__init__()
        self.resolution = resolution
        self.dtype, self.growth = None, "fade"
        self.from_rgb = torch.nn.ModuleDict()
        self.blocks = torch.nn.ModuleDict()
        for r in resolutions_up_to(resolution):
            channels = channels_at(r, channel_base, channel_max)
            below = channels_at(r // 2, channel_base, channel_max)
            self.from_rgb[str(r)] = EqualizedConv2d(3, channels, kernel_size=1)
            self.blocks[str(r)] = (DiscriminatorHead(channels, hidden=below) if r == 4
                                   else DiscriminatorBlock(channels, below))

    def forward(self, images, alpha=1.0):
        r = images.shape[-1]
        if images.shape[-2] != r or str(r) not in self.blocks:
            raise ValueError(f"this network looks at square images of {', '.join(self.blocks)} "
                             f"px, not at {list(images.shape)}")
        dtype = self.dtype or images.dtype
        young = alpha if self.growth == "morph" and r > 4 else 1.0
        x = soften(self.from_rgb[str(r)](images).to(dtype), leaky_relu, young)
        x = self.blocks[str(r)](x, young) if r > 4 else self.blocks["4"](x)
        if self.growth == "fade" and is_fading(alpha) and r > 4:
            small = F.avg_pool2d(images, 2)
            old = leaky_relu(self.from_rgb[str(r // 2)](small).to(dtype))
            x = blend(old, x, alpha)
        while r > 4:
            r //= 2
            x = self.blocks[str(r)](x)
        return x


# ---- 3. Checkpoints --------------------------------------------------------------------------
#
# One file, a plain dict of tensors, numbers and strings:
#   format          1
#   architecture    "stylegan"
#   settings        what `make_generator` and `make_discriminator` need
#   generator_ema   state dict; all that pictures need, a file may hold nothing more
#   generator, discriminator, optimizer_g, optimizer_d, progress, options, samples
#                   what train.py needs to go on (train.py, step 7, says what is in them)
#
# It is read with weights_only=True, always. A PyTorch file is a zip that holds a pickle, and a
# pickle is a program: loading a stranger's file the old way runs it. weights_only admits tensors
# and plain containers and refuses everything else.

FORMAT = 1
SETTINGS = ("resolution", "channel_base", "channel_max",
            "latent_dim", "style_dim", "mapping_dim", "mapping_layers")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message is one sentence, file name and reason."""


def make_generator(settings):
    """A new `Generator` from the settings of a checkpoint, a dict with the keys SETTINGS."""
    return Generator(**{key: settings[key] for key in SETTINGS})


def make_discriminator(settings):
    """A new `Discriminator` from the same dict."""
    return Discriminator(*(settings[key] for key in SETTINGS[:3]))


def save_checkpoint(path, checkpoint):
    """Write the dict so that `path` holds either the old file or the whole new one, never a part.

    How:    to a temporary name beside it, flushed to the disk, then renamed, which is atomic.
    Errors: OSError (disk full, no permission); the old file is then untouched.
    Proved: tests/test_models.py::test_a_failed_save_leaves_the_old_checkpoint_whole
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "architecture": "stylegan", **checkpoint}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path):
    """Read a checkpoint, check that its networks fit its settings, and return the dict on the CPU.

    Errors: CheckpointError, one sentence with the file's name and the reason: it is missing, a
            folder, not a PyTorch file, damaged, holds more than tensors and plain values, comes
            from another program or a newer version of this one, or its tensors do not fit.
    Proved: tests/test_models.py::test_a_bad_checkpoint_gets_one_clear_sentence
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: a folder, not a checkpoint file")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: not a checkpoint of this program, or cut off while copied")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... as the damage lies;
        # every one of them means that this file cannot be used, and nothing has been touched yet.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: damaged, or more than tensors in it ({reason})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("format"), int):
        raise CheckpointError(f"{path}: a PyTorch file, but not a checkpoint of this program")
    if checkpoint["format"] > FORMAT:
        raise CheckpointError(f"{path}: format {checkpoint['format']} is newer than this program, "
                              f"which reads up to {FORMAT}; update it")
    if checkpoint.get("architecture") != "stylegan":
        raise CheckpointError(f"{path}: holds a {checkpoint.get('architecture')!r} network, "
                              f"this program reads \"stylegan\"")
    settings = checkpoint.get("settings")
    if not isinstance(settings, dict) or any(
            not isinstance(settings.get(key), int) or settings[key] < 1 for key in SETTINGS) or (
            settings["mapping_layers"] > 1000):
        raise CheckpointError(f"{path}: its settings are incomplete or impossible "
                              f"({', '.join(SETTINGS)})")
    if "generator_ema" not in checkpoint:
        raise CheckpointError(f"{path}: holds no generator_ema")
    # On the meta device a network has names and shapes but no memory, so a file that claims a
    # gigantic network is found out before anything is allocated for it.
    try:
        with torch.device("meta"):
            generator, discriminator = make_generator(settings), make_discriminator(settings)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path}: no network has these settings ({error})") from error
    for part, network in (("generator_ema", generator), ("generator", generator),
                          ("discriminator", discriminator)):
        if part in checkpoint:
            _check_state(path, part, checkpoint[part], network.state_dict())
    return checkpoint


def _check_state(path, part, state, wanted):
    """Raise CheckpointError unless `state` has the names and shapes of `wanted`."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: its {part} is no state dict")
    for name in sorted(set(wanted) | set(state), key=str):
        if name not in state:
            raise CheckpointError(f"{path}: its {part} lacks {name}")
        if name not in wanted:
            raise CheckpointError(f"{path}: its {part} has {name}, which the network does not")
        shape = getattr(state[name], "shape", None)
        if shape != wanted[name].shape:
            raise CheckpointError(f"{path}: {part} {name} is {shape and list(shape)}, "
                                  f"its settings ask for {list(wanted[name].shape)}")


def set_growth(checkpoint, *networks):
    """Let alpha < 1 mean to these networks what it meant when the checkpoint was written."""
    progress = checkpoint.get("progress")
    morphing = isinstance(progress, dict) and progress.get("phase") == "morph"
    for network in networks:
        getattr(network, "synthesis", network).growth = "morph" if morphing else "fade"


def load_generator(path, device="cpu"):
    """The averaged generator of a checkpoint, on `device`, in eval mode, without gradients.

    Errors: CheckpointError as `load_checkpoint`.
    """
    checkpoint = load_checkpoint(path)
    generator = make_generator(checkpoint["settings"])
    generator.load_state_dict(checkpoint["generator_ema"])
    set_growth(checkpoint, generator)
    return generator.to(device).eval().requires_grad_(False)


# ---- 4. What every script of this folder does alike ------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    """argparse, but a mistake is answered by one line instead of the whole usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def number_from(low, kind=int, high=math.inf):
    """A parser of finite numbers from `low` to `high` for argparse."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high or not math.isfinite(value):
            limits = "finite" if low == -math.inf else (
                f"a number, {low:g} or more" if high == math.inf else f"from {low:g} to {high:g}")
            raise argparse.ArgumentTypeError(f"{text} must be {limits}")
        return value
    return parse


def pick_device(name=None):
    """torch.device by name, or the best there is. Errors: ValueError if it is not available."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else (
            "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def start(main, fail, interrupted):
    """Run a script: its exit code, and the sentence `interrupted` where Ctrl-C ended it."""
    for stream in (sys.stdout, sys.stderr):            # a file's name need not fit the terminal
        stream.reconfigure(errors="backslashreplace")
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        fail(interrupted, 130)


def fail(program, message, code=2):
    """End the program with one sentence on stderr: 2 for what the user can mend, else 1."""
    print(f"{program}: {message}", file=sys.stderr)
    raise SystemExit(code)
