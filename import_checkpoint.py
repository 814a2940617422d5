"""import_checkpoint.py: a public StyleGAN checkpoint becomes ours; nothing in it is run.
                                                                      (13th in the reading order)

    python import_checkpoint.py karras2019stylegan-ffhq-1024x1024.pkl
    python import_checkpoint.py tests/data/official_stylegan.pkl tiny.pt       a second, on any CPU
    python generate.py tiny.pt samples --seeds 0-7

Read before: stylegan_models.py, generate.py.     Read next: tests/test_import_checkpoint.py
Papers:  Karras et al. 2019 (arXiv 1812.04948) and 2020 (arXiv 1912.04958). The files: the
         "pre-trained networks" of NVlabs/stylegan, stylegan2, stylegan2-ada-pytorch and stylegan3
         on github.com (of the last, its StyleGAN2), and what others trained with that code.
Needs:   torch, numpy, Pillow. No TensorFlow, no internet, any device.
Letters: R resolution; lod, "level of detail": the official count of resolutions from the largest,
         which is 0, downwards. 1.6 lies between 2 and 1, and is nearer to 2.

The official networks are pickles of arrays together with the Python source that makes networks of
them. The official loader executes that source; this one never looks at it, since the networks are
known here. `read_anything` follows a pickle with a machine that can neither import nor call
anything, and gives plain values and notes of what the file asked for; workshop/pickles.py shows
how. What is left to do, one part each:

  1. say what the file holds, and why other things are refused
  2. rename and turn the arrays, by a table
  3. add what train.py needs to go on from there
"""

import argparse
import math
import pathlib
import re
import reprlib
import shutil
from typing import NamedTuple

import numpy as np
import torch

import stylegan_models as models
from workshop import (
    UserError, check_writable, checkpoints, foreign_names, machine, options)
from workshop.checkpoints import CheckpointError
from workshop.pickles import Named, Unreadable, all_notes, array_of, read_anything
from workshop.run import LOGGED, new_samples

# [MACHINE] Memory: the size of the file, beside what torch takes by itself. No GPU is used.
#           Proved: tests/test_import_checkpoint.py::test_the_whole_is_never_twice_in_memory

# ==== Part 1: what does the file hold? ========================================================
#
# Every program writes other names into its files, so a file can be recognised before anything in it
# is used. What cannot be imported faithfully is refused with the reason, since a network that is
# nearly right makes pictures that are nearly right, and nobody would notice.

WHY_NOT = {
    "stylegan2": "holds a StyleGAN2 network of a program that is not known here",
    "revised": "holds a StyleGAN2 of the configurations B to D, which grows: it has an RGB layer "
               "for each level of detail and blends them, which no StyleGAN2 here does; the "
               "configurations E and F are imported",
    "tf ada": "was written by stylegan2-ada in TensorFlow, with which nothing here was compared; "
              "legacy.py of stylegan2-ada-pytorch makes a file of it that can be imported",
    "stylegan3": "holds a StyleGAN3 network: its layers are filters on a continuous signal, which "
                 "no network of this program can imitate",
    "progan": "holds a Progressive GAN without styles, which no network of this program is",
    "labels": "holds a class-conditional network (label_size {}): its mapping network also takes "
              "the label, which the networks of this program have no input for",
    "rosinality": "is a checkpoint of rosinality/style-based-gan-pytorch: its up-convolutions add "
                  "the bias before the blur, which changes every pixel along the border of every "
                  "layer, so its weights make other pictures here",
    "humans": "is a checkpoint of StyleGAN-for-Humans: it adds noise of its own to every channel, "
              "where a StyleGAN adds one map to all, so its weights make other pictures here",
    "ours": "is a checkpoint of this program already; there is nothing to import",
}


# What the files of stylegan2-ada-pytorch want called for every module.
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"


def foreign_kind(value, names):
    """The key of `WHY_NOT` for a file that is no official StyleGAN, or None if it is unknown.

    Proved: tests/test_import_checkpoint.py::test_other_programs_files_are_refused_by_name
    """
    dicts = [note.items if isinstance(note, Named) else note for note in all_notes(value)]
    keys = {str(key).removeprefix("module.") for entry in dicts for key in entry}
    if {"format", "architecture", "settings"} <= keys:
        return "ours"
    if PERSISTENT in names:
        # Both papers' files are alike; only StyleGAN3 has an input layer of sine waves.
        classes = {entry["class_name"] for entry in dicts
                   if isinstance(entry.get("class_name"), str)}
        return "stylegan3" if "SynthesisInput" in classes else None
    if "ur_face" in keys:                              # its name for the constant input
        return "humans"
    if any(key.endswith("conv.modulation.weight") for key in keys):
        return "stylegan2"                             # rosinality's, inside another network
    if any("progression.0.conv" in key for key in keys):
        return "rosinality"
    return None


# All names that official files need, those of TensorFlow and those of PyTorch. A file that asks for
# another was not written by the official code, and is not used even though the name would only have
# been written down.
HARMLESS = {
    "dnnlib.util.EasyDict", "collections.OrderedDict", "_codecs.encode", "numpy.dtype",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
HARMLESS_TF = HARMLESS | {
    "dnnlib.tflib.network.Network", "tfutil.Network", "numpy.ndarray",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
HARMLESS_TORCH = HARMLESS | {
    PERSISTENT, "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2",
    "torch.storage._load_from_bytes", "builtins.set", "__builtin__.set"}


class Network(NamedTuple):
    """One official network, with all its parts in it.

    G consists of a mapping and a synthesis network with variables of their own; the names of theirs
    get that word in front, as if it were a folder. The source code that the file brings along is
    left where it is.
    """
    builder: str               # what made it and its parts: "G_style G_mapping G_synthesis"
    kwargs: dict               # what that was given, or what a module knows of itself
    variables: dict            # "synthesis/4x4/Conv/bias" -> the note of an array


def pairs(value):
    """The (text, value) pairs of a dict, of a kind of dict (OrderedDict, EasyDict), or of a list.

    Errors: Unreadable for a key that is not text. Whatever lies in a list of pairs has not been
            looked at before, and is put into a dict now.
    """
    value = value.items if isinstance(value, Named) else value
    value = list(value.items() if isinstance(value, dict) else value)
    if not all(isinstance(key, str) for key, _ in value):
        raise Unreadable("has a name in it that is not text")
    return value


def network_of(note):
    """The `Network` that a pickled dnnlib object (TensorFlow) describes.

    Errors: Unreadable, or any error of a dict without what belongs in it.
    """
    if not isinstance(note, Named) or not note.name.endswith("Network"):
        raise Unreadable("has something else where a network should be")
    state = note.state
    kwargs, variables = dict(pairs(state["static_kwargs"])), dict(pairs(state["variables"]))
    parts = sorted(pairs(state.get("components", {})), key=lambda pair: pair[0])
    if len(parts) > 2 or any(part.state.get("components") for _, part in parts):
        raise Unreadable("has networks of more parts than G's two halves")
    builders = [part.state["build_func_name"] for part in (note, *(part for _, part in parts))]
    if not all(isinstance(builder, str) for builder in builders):
        raise Unreadable("has a network built by something that is not named by text")
    for prefix, part in parts:
        kwargs.update(pairs(part.state["static_kwargs"]))
        variables.update((f"{prefix}/{name}", v) for name, v in pairs(part.state["variables"]))
    return Network(" ".join(builders), kwargs, variables)


# What the modules of stylegan2-ada-pytorch are made of, and what is asked of them. The attributes
# say more than the arguments: those that were left out had other defaults in stylegan3.
MODULES = {"Generator", "MappingNetwork", "SynthesisNetwork", "SynthesisBlock", "SynthesisLayer",
           "ToRGBLayer", "FullyConnectedLayer", "Discriminator", "DiscriminatorBlock",
           "DiscriminatorEpilogue", "MinibatchStdLayer", "Conv2dLayer"}
ATTRIBUTES = ("img_resolution", "img_channels", "z_dim", "w_dim", "c_dim", "num_layers",
              "architecture", "activation", "bias_gain", "use_noise", "conv_clamp", "group_size",
              "num_channels")
# Parts and arrays of one network: 400 at 1024 px. A file may say once what stands in many places.
MOST_PARTS = 4_000


def module_of(note):
    """The `Network` that a pickled module of stylegan2-ada-pytorch describes.

    Errors: Unreadable, or any error of a dict without what belongs in it.
    Proved: tests/test_import_checkpoint.py::test_a_module_in_itself_is_refused
    """
    builder, kwargs, variables, parts = None, {}, {}, 0
    waiting = [("", 0, note)]
    while waiting:
        path, depth, part = waiting.pop()
        if not isinstance(part, Named) or part.name != PERSISTENT:
            raise Unreadable("has something else where a part of a network should be")
        meta = as_dict(part.args[0])
        state, name = as_dict(meta["state"]), meta["class_name"]
        if not isinstance(name, str) or name not in MODULES:
            raise Unreadable(f"has a {reprlib.repr(name)} in it, which no StyleGAN2 has")
        builder = builder or name
        tables = [as_dict(state[key]) for key in ("_parameters", "_buffers", "_modules")]
        parts += sum(map(len, tables))
        if depth > 4 or parts > MOST_PARTS or any(
                not isinstance(key, str) or len(key) > 100 for table in tables for key in table):
            raise Unreadable("has networks of more parts than a StyleGAN2 has")
        variables.update((path + key, tensor) for table in tables[:2]
                         for key, tensor in table.items() if tensor is not None)
        kwargs.update((path + key, state[key]) for key in ATTRIBUTES if key in state)
        waiting += [(f"{path}{key}.", depth + 1, inner) for key, inner in tables[2].items()]
    return Network(builder, kwargs, variables)


def as_dict(value):
    """The dict that a dict or a kind of dict is, not a copy of it."""
    value = value.items if isinstance(value, Named) else value
    if not isinstance(value, dict):
        raise Unreadable("has something else where names and values should be")
    return value


# ==== Part 2: names and layouts ===============================================================
#
# Each line of the tables: our name, the official name below its network, and how the array lies.
# {k} runs over the mapping layers, {r} over the resolutions 4, 8, ..., {R} over 8, 16, ...; {lod}
# counts the resolutions down to 0, the largest; {n} and {m} number the noise maps, two to each
# resolution. In StyleGAN2, 4 px has one convolution and the others two: {c} runs over them, {C} is
# TensorFlow's name, {j} numbers them through all resolutions.

STYLEGAN_GENERATOR = """
    w_avg                                    dlatent_avg                              same
    mapping.layers.{k}.weight                mapping/Dense{k}/weight                  dense
    mapping.layers.{k}.bias                  mapping/Dense{k}/bias                    same
    synthesis.blocks.4.const.weight          synthesis/4x4/Const/const                same
    synthesis.blocks.4.const.bias            synthesis/4x4/Const/bias                 same
    synthesis.blocks.4.noise0.strength       synthesis/4x4/Const/Noise/weight         same
    synthesis.blocks.4.adain0.style.weight   synthesis/4x4/Const/StyleMod/weight      dense
    synthesis.blocks.4.adain0.style.bias     synthesis/4x4/Const/StyleMod/bias        same
    synthesis.blocks.4.conv1.weight          synthesis/4x4/Conv/weight                conv
    synthesis.blocks.4.conv1.bias            synthesis/4x4/Conv/bias                  same
    synthesis.blocks.4.noise1.strength       synthesis/4x4/Conv/Noise/weight          same
    synthesis.blocks.4.adain1.style.weight   synthesis/4x4/Conv/StyleMod/weight       dense
    synthesis.blocks.4.adain1.style.bias     synthesis/4x4/Conv/StyleMod/bias         same
    synthesis.blocks.{R}.conv0.weight        synthesis/{R}x{R}/Conv0_up/weight        up
    synthesis.blocks.{R}.conv0.bias          synthesis/{R}x{R}/Conv0_up/bias          same
    synthesis.blocks.{R}.noise0.strength     synthesis/{R}x{R}/Conv0_up/Noise/weight  same
    synthesis.blocks.{R}.adain0.style.weight synthesis/{R}x{R}/Conv0_up/StyleMod/weight dense
    synthesis.blocks.{R}.adain0.style.bias   synthesis/{R}x{R}/Conv0_up/StyleMod/bias same
    synthesis.blocks.{R}.conv1.weight        synthesis/{R}x{R}/Conv1/weight           conv
    synthesis.blocks.{R}.conv1.bias          synthesis/{R}x{R}/Conv1/bias             same
    synthesis.blocks.{R}.noise1.strength     synthesis/{R}x{R}/Conv1/Noise/weight     same
    synthesis.blocks.{R}.adain1.style.weight synthesis/{R}x{R}/Conv1/StyleMod/weight  dense
    synthesis.blocks.{R}.adain1.style.bias   synthesis/{R}x{R}/Conv1/StyleMod/bias    same
    synthesis.blocks.{r}.noise0.const        synthesis/noise{n}                       same
    synthesis.blocks.{r}.noise1.const        synthesis/noise{m}                       same
    synthesis.to_rgb.{r}.weight              synthesis/ToRGB_lod{lod}/weight          conv
    synthesis.to_rgb.{r}.bias                synthesis/ToRGB_lod{lod}/bias            same
"""
STYLEGAN_DISCRIMINATOR = """
    from_rgb.{r}.weight                      FromRGB_lod{lod}/weight                  conv
    from_rgb.{r}.bias                        FromRGB_lod{lod}/bias                    same
    blocks.{R}.conv0.weight                  {R}x{R}/Conv0/weight                     conv
    blocks.{R}.conv0.bias                    {R}x{R}/Conv0/bias                       same
    blocks.{R}.conv1.weight                  {R}x{R}/Conv1_down/weight                conv
    blocks.{R}.conv1.bias                    {R}x{R}/Conv1_down/bias                  same
    blocks.4.conv.weight                     4x4/Conv/weight                          conv
    blocks.4.conv.bias                       4x4/Conv/bias                            same
    blocks.4.dense0.weight                   4x4/Dense0/weight                        dense
    blocks.4.dense0.bias                     4x4/Dense0/bias                          same
    blocks.4.dense1.weight                   4x4/Dense1/weight                        dense
    blocks.4.dense1.bias                     4x4/Dense1/bias                          same
"""
STYLEGAN2_GENERATOR = """
    w_avg                                    dlatent_avg                              same
    path_length_mean                         -                                        zero
    mapping.layers.{k}.weight                mapping/Dense{k}/weight                  dense
    mapping.layers.{k}.bias                  mapping/Dense{k}/bias                    same
    synthesis.blocks.4.const                 synthesis/4x4/Const/const                same
    synthesis.blocks.{r}.{c}.weight          synthesis/{r}x{r}/{C}/weight             conv
    synthesis.blocks.{r}.{c}.bias            synthesis/{r}x{r}/{C}/bias               same
    synthesis.blocks.{r}.{c}.style.weight    synthesis/{r}x{r}/{C}/mod_weight         dense
    synthesis.blocks.{r}.{c}.style.bias      synthesis/{r}x{r}/{C}/mod_bias           plus1
    synthesis.blocks.{r}.{c}.noise.strength  synthesis/{r}x{r}/{C}/noise_strength     number
    synthesis.blocks.{r}.{c}.noise.const     synthesis/noise{j}                       same
    synthesis.to_rgb.{r}.weight              synthesis/{r}x{r}/ToRGB/weight           conv
    synthesis.to_rgb.{r}.bias                synthesis/{r}x{r}/ToRGB/bias             same
    synthesis.to_rgb.{r}.style.weight        synthesis/{r}x{r}/ToRGB/mod_weight       dense
    synthesis.to_rgb.{r}.style.bias          synthesis/{r}x{r}/ToRGB/mod_bias         plus1
"""
STYLEGAN2_DISCRIMINATOR = """
    from_rgb.{last}.weight                   {last}x{last}/FromRGB/weight             conv
    from_rgb.{last}.bias                     {last}x{last}/FromRGB/bias               same
    blocks.{R}.conv0.weight                  {R}x{R}/Conv0/weight                     conv
    blocks.{R}.conv0.bias                    {R}x{R}/Conv0/bias                       same
    blocks.{R}.conv1.weight                  {R}x{R}/Conv1_down/weight                conv
    blocks.{R}.conv1.bias                    {R}x{R}/Conv1_down/bias                  same
    blocks.{R}.skip.weight                   {R}x{R}/Skip/weight                      conv
    blocks.4.conv.weight                     4x4/Conv/weight                          conv
    blocks.4.conv.bias                       4x4/Conv/bias                            same
    blocks.4.dense0.weight                   4x4/Dense0/weight                        dense
    blocks.4.dense0.bias                     4x4/Dense0/bias                          same
    blocks.4.dense1.weight                   Output/weight                            dense
    blocks.4.dense1.bias                     Output/bias                              same
"""
ADA_GENERATOR = """
    w_avg                                    mapping.w_avg                            same
    path_length_mean                         -                                        zero
    mapping.layers.{k}.weight                mapping.fc{k}.weight                     same
    mapping.layers.{k}.bias                  mapping.fc{k}.bias                       same
    synthesis.blocks.4.const                 synthesis.b4.const                       one
    synthesis.blocks.{R}.conv0.weight        synthesis.b{R}.conv0.weight              turned
    synthesis.blocks.{r}.conv1.weight        synthesis.b{r}.conv1.weight              same
    synthesis.blocks.{r}.{c}.bias            synthesis.b{r}.{c}.bias                  same
    synthesis.blocks.{r}.{c}.style.weight    synthesis.b{r}.{c}.affine.weight         same
    synthesis.blocks.{r}.{c}.style.bias      synthesis.b{r}.{c}.affine.bias           same
    synthesis.blocks.{r}.{c}.noise.strength  synthesis.b{r}.{c}.noise_strength        number
    synthesis.blocks.{r}.{c}.noise.const     synthesis.b{r}.{c}.noise_const           map
    synthesis.to_rgb.{r}.weight              synthesis.b{r}.torgb.weight              same
    synthesis.to_rgb.{r}.bias                synthesis.b{r}.torgb.bias                same
    synthesis.to_rgb.{r}.style.weight        synthesis.b{r}.torgb.affine.weight       same
    synthesis.to_rgb.{r}.style.bias          synthesis.b{r}.torgb.affine.bias         same
"""
ADA_DISCRIMINATOR = """
    from_rgb.{last}.weight                   b{last}.fromrgb.weight                   same
    from_rgb.{last}.bias                     b{last}.fromrgb.bias                     same
    blocks.{R}.conv0.weight                  b{R}.conv0.weight                        same
    blocks.{R}.conv0.bias                    b{R}.conv0.bias                          same
    blocks.{R}.conv1.weight                  b{R}.conv1.weight                        same
    blocks.{R}.conv1.bias                    b{R}.conv1.bias                          same
    blocks.{R}.skip.weight                   b{R}.skip.weight                         same
    blocks.4.conv.weight                     b4.conv.weight                           same
    blocks.4.conv.bias                       b4.conv.bias                             same
    blocks.4.dense0.weight                   b4.fc.weight                             same
    blocks.4.dense0.bias                     b4.fc.bias                               same
    blocks.4.dense1.weight                   b4.out.weight                            same
    blocks.4.dense1.bias                     b4.out.bias                              same
"""


def mirrored_from(kwargs):
    """From which resolution on the official file stores up-convolution kernels mirrored.

    Why:    the official network doubles the resolution in two ways. The plain one copies each pixel
            to 2x2 places and runs the kernel over the result as a correlation: output p is
            a x[p-1] + b x[p] + c x[p+1]. The fused one, by default from 128 px on, sums four
            shifted copies of the kernel to 4x4 and calls TensorFlow's transposed convolution. That
            one sets the kernel down as a stamp, unturned, at every input pixel: an input at p
            reaches output p+1 by its LAST element c, which in a correlation is the part of a. So
            the two forms apply mirrored kernels, and a network trained with the fused one has
            learned it that way round. (Downwards both forms correlate: nothing to turn.)
            Getting it wrong is not subtle: images then differ by over 0.3 of their largest value.
            It is the converters' classic mistake because a small network does not show it.
    Source: NVlabs/stylegan, training/networks_stylegan.py, upscale2d_conv2d and its fused_scale.
    Proved: tests/test_import_checkpoint.py::test_networks_of_128_px_equal_the_official_ones,
            ::test_every_setting_of_fused_scale_gives_the_official_images
    """
    fused = kwargs.get("fused_scale", "auto")
    if fused not in (True, False, "auto"):
        raise Unreadable(f"has fused_scale = {reprlib.repr(fused)}, which is not known")
    return 128 if fused == "auto" else 4 if fused else math.inf


# name -> function of (array, is it stored mirrored?). TensorFlow stores convolutions as
# [kh, kw, in, out], we and PyTorch as [out, in, kh, kw]; dense weights [in, out], we [out, in].
# "turned": StyleGAN2 sets its up-convolution's kernel down as a stamp. In TensorFlow, its program
#       mirrors the kernel first; in PyTorch, it is stored mirrored.
# "plus1": the style is around 1; TensorFlow's program adds the 1, the others' bias holds it.
LAYOUTS = {
    "same": lambda array, mirrored: array,
    "dense": lambda array, mirrored: array.transpose(1, 0),
    "conv": lambda array, mirrored: array.transpose(3, 2, 0, 1),
    "up": lambda array, mirrored: (array[::-1, ::-1] if mirrored else array).transpose(3, 2, 0, 1),
    "turned": lambda array, mirrored: array[:, :, ::-1, ::-1],
    "plus1": lambda array, mirrored: array + np.float32(1),
    "number": lambda array, mirrored: array.reshape(1),
    "one": lambda array, mirrored: array[None],
    "map": lambda array, mirrored: array[None, None],
}
# Variables that belong to no layer. The second is a copy of the first, made whenever G is run.
LODS = ("lod", "synthesis/lod")
# What "resample_filter" must be.
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


class Side(NamedTuple):
    """How a program writes one of its two networks down.

    fixed:  options of theirs that change the network, and the only values that we have, which are
            their defaults. What is in a tuple is one of several; names are regular expressions.
    """
    builder: str               # as in `Network`
    table: str
    fixed: dict


class Format(NamedTuple):
    """How a program writes its networks down; settings: our name -> (their name, their default)."""
    architecture: str
    generator: Side
    discriminator: Side
    settings: dict


FIXED = {
    "num_channels": 3, "fmap_decay": 1, "nonlinearity": "lrelu", "mapping_nonlinearity": "lrelu",
    "normalize_latents": True, "mapping_lrmul": 0.01, "mbstd_group_size": 4,
    "mbstd_num_features": 1}
FIXED_1 = FIXED | {
    "use_styles": True, "const_input_layer": True, "use_noise": True, "use_pixel_norm": False,
    "use_instance_norm": True, "use_wscale": True, "blur_filter": [1, 2, 1]}
FIXED_2 = FIXED | {"fmap_min": 1, "resample_kernel": [1, 3, 3, 1]}
# stylegan2-ada-pytorch: names of modules and their attributes. A group of None is the whole batch.
# legacy.py writes it when it turns a file of TensorFlow, where no word about it means 4, into one
# of PyTorch. So it stands for 4 here. Source: NVlabs/stylegan2-ada-pytorch, legacy.py.
FIXED_ADA = {
    r"img_channels": 3, r"mapping\.fc\d+\.activation": "lrelu", r"mapping\.fc\d+\.bias_gain": 0.01,
    r"synthesis\.b\d+\.architecture": "skip", r"b\d+\.architecture": "resnet",
    r".*(conv|conv0|conv1|fromrgb|fc)\.activation": "lrelu", r".*use_noise": True,
    r".*(affine|skip|out)\.activation": "linear", r".*(affine|fc|out)\.bias_gain": 1,
    r"b4\.mbstd\.group_size": (4, None), r"b4\.mbstd\.num_channels": 1}
SETTINGS = {
    "resolution": ("resolution", 1024), "channel_base": ("fmap_base", 8192),
    "channel_max": ("fmap_max", 512), "latent_dim": ("latent_size", 512),
    "style_dim": ("dlatent_size", 512), "mapping_dim": ("mapping_fmaps", 512),
    "mapping_layers": ("mapping_layers", 8)}
FORMATS = (
    Format("stylegan",
           Side("G_style G_mapping G_synthesis", STYLEGAN_GENERATOR, FIXED_1),
           Side("D_basic", STYLEGAN_DISCRIMINATOR, FIXED_1), SETTINGS),
    Format("stylegan2",
           Side("G_main G_mapping G_synthesis_stylegan2", STYLEGAN2_GENERATOR,
                FIXED_2 | {"architecture": "skip"}),
           Side("D_stylegan2", STYLEGAN2_DISCRIMINATOR, FIXED_2 | {"architecture": "resnet"}),
           SETTINGS | {"channel_base": ("fmap_base", 16384)}),
    Format("stylegan2", Side("Generator", ADA_GENERATOR, FIXED_ADA),
           Side("Discriminator", ADA_DISCRIMINATOR, FIXED_ADA), {}))
# What other functions of the same family make.
OTHER_BUILDERS = {"G_synthesis_stylegan_revised": "revised", "D_stylegan": "revised",
                  "G_main G_mapping G_synthesis": "tf ada", "D_main": "tf ada",
                  "G_paper": "progan", "D_paper": "progan"}


def rows_of(table, resolution, mapping_layers):
    """Yield (our name, official name, layout, resolution or None) for every array of a network.

    The official count of resolutions is from the top, ours has no need to count: so the same 64 px
    layer is called ToRGB_lod4 in a 1024 px network and ToRGB_lod0 in one of 64 px.
    Proved: tests/test_import_checkpoint.py::test_tables_cover_every_parameter_once
    """
    resolutions = models.resolutions_up_to(resolution)
    for line in table.split("\n"):
        if not line.strip():
            continue
        ours, theirs, layout = line.split()
        if "{k}" in ours:
            for k in range(mapping_layers):
                yield ours.format(k=k), theirs.format(k=k), layout, None
        elif "{r}" in ours or "{R}" in ours:
            for level, r in enumerate(resolutions):
                if "{R}" in ours and r == 4:
                    continue
                fields = {"r": r, "R": r, "lod": len(resolutions) - 1 - level,
                          "n": 2 * level, "m": 2 * level + 1}
                convs = [("conv0", "Conv0_up"), ("conv1", "Conv1" if r > 4 else "Conv")]
                for c, (conv, name) in enumerate(convs if "{c}" in ours else [("", "")]):
                    if conv != "conv0" or r > 4:
                        fields |= {"c": conv, "C": name, "j": 2 * level - 1 + c}
                        yield ours.format(**fields), theirs.format(**fields), layout, r
        else:
            yield ours.format(last=resolution), theirs.format(last=resolution), layout, None


def import_network(network, table, wanted, settings, mirrored):
    """The state dict, float32, that `wanted` (a state dict on the meta device) has the shapes of.

    Every array is copied once and taken out of network.variables, which lets its bytes go, so that
    the whole is never twice in memory.
    Errors: Unreadable, naming the variable.
    Proved: tests/test_import_checkpoint.py::test_the_whole_is_never_twice_in_memory
    """
    state, left = {}, network.variables
    for ours, theirs, layout, r in rows_of(table, settings["resolution"],
                                           settings["mapping_layers"]):
        if layout == "zero":                           # what no official file has
            state[ours] = torch.zeros(wanted[ours].shape)
            continue
        if theirs not in left:
            raise Unreadable(f"lacks the variable {theirs}")
        stored, shape = array_of(left.pop(theirs)), tuple(wanted[ours].shape)
        # The size comes first: not every layout can be had of any number of values.
        if stored.size != math.prod(shape) or (array := LAYOUTS[layout](
                stored, r is not None and r >= mirrored)).shape != shape:
            raise Unreadable(f"has {theirs} in the shape {list(stored.shape)}, which does "
                             f"not fit its settings")
        array = np.array(array, dtype=np.float32, order="C")
        if not np.isfinite(array).all():
            raise Unreadable(f"has values in {theirs} that are not finite numbers")
        state[ours] = torch.from_numpy(array)
    for name in sorted(left):
        # stylegan2-ada-pytorch keeps the same filter in every layer that might need it.
        if name.endswith("resample_filter") and network.builder in ("Generator", "Discriminator"):
            found = array_of(left[name])
            if found.shape != (4, 4) or not np.allclose(found, FILTER, rtol=1e-5, atol=0):
                raise Unreadable("resamples with another filter than [1, 3, 3, 1] "
                                 f"({reprlib.repr(name)}), which no network here does")
        elif name not in LODS:
            raise Unreadable(f"has a variable {reprlib.repr(name)}, which no network here has")
    return state


def objection(network, side):
    """Why a network cannot be what `side` describes, or None if nothing unknown is turned on.

    Proved: tests/test_import_checkpoint.py::test_other_programs_files_are_refused_by_name,
            ::test_what_stylegan2_can_turn_on_is_refused_by_name
    """
    for name in (network.builder, *network.builder.split()):
        if name in OTHER_BUILDERS:
            return WHY_NOT[OTHER_BUILDERS[name]]
    labels = network.kwargs.get("label_size", network.kwargs.get("c_dim", 0))
    if labels != 0 or "mapping/LabelConcat/weight" in network.variables:
        return WHY_NOT["labels"].format(reprlib.repr(labels))
    if network.builder != side.builder:
        return f"has a network built by {reprlib.repr(network.builder)}, which is not known here"
    for pattern, wanted in side.fixed.items():
        for option, given in network.kwargs.items():
            if re.fullmatch(pattern, option) and given not in (
                    wanted if isinstance(wanted, tuple) else (wanted,)):
                return (f"has networks built with {option} = {reprlib.repr(given)}; only {wanted} "
                        f"can be imported")
    return None


def lod_of(network, resolution):
    """The official level of detail that a network stood at: 0 at the end of training.

    Errors: Unreadable, or any error of a note that is no array, if there is no such level.
    """
    lod = float(array_of(network.variables.get(LODS[0], 0)))
    levels = len(models.resolutions_up_to(resolution))
    if not 0 <= lod <= levels - 1:
        raise Unreadable(f"has lod = {lod:g}, where {resolution} px have 0 to {levels - 1}")
    return lod


class Imported(NamedTuple):
    """What a file holds: settings of ours, the lod of Gs, and state dicts, None for what it lacks.

    lines:  what a user should know of it.
    """
    settings: dict
    lod: float
    generator: dict | None
    discriminator: dict | None
    generator_ema: dict
    lines: tuple = ()


# A copied array has 4 bytes a number, where the file has 2 or more. So sound networks take at most
# 2 bytes of memory for a byte of the file. More than 4 means that one array stands for many layers:
# the file of the test has 0.7 MB, and asks for 260 MB.
# Proved: tests/test_import_checkpoint.py::test_one_array_for_hundreds_of_layers_is_refused
MOST_GROWTH = 4


def settings_of(network, form):
    """Our settings, from what a generator was given, or from the shapes of its arrays.

    Errors: Unreadable, naming a number that is impossible; nothing is built from a number that a
            file chose freely.
    """
    kwargs = network.kwargs
    if form.settings:              # what was not said has the official default
        found = {ours: (theirs, kwargs.get(theirs, default))
                 for ours, (theirs, default) in form.settings.items()}
    else:
        # Widths are min(2 * base // R, max), for the smallest base that is not too small for any R.
        shape, widths = lambda name: array_of(network.variables[name]).shape, {}
        while (name := f"synthesis.b{4 << len(widths)}.conv1.bias") in network.variables:
            widths[4 << len(widths)] = shape(name)[0]
        base = max(-(-channels * r // 2) for r, channels in widths.items())
        found = {"resolution": ("img_resolution", kwargs["img_resolution"]),
                 "channel_base": ("channel_base", base),
                 "channel_max": ("channel_max", max(widths.values())),
                 "latent_dim": ("z_dim", kwargs["z_dim"]), "style_dim": ("w_dim", kwargs["w_dim"]),
                 "mapping_dim": ("layer_features", shape("mapping.fc0.weight")[0]),
                 "mapping_layers": ("num_layers", kwargs["mapping.num_layers"])}
    settings = {"architecture": form.architecture}
    for ours, (theirs, number) in found.items():
        if not isinstance(number, (int, float)) or number != int(number) or not (
                1 <= number <= (1000 if ours == "mapping_layers" else 1e6)):
            raise Unreadable(f"has {theirs} = {reprlib.repr(number)}, which is impossible")
        settings[ours] = int(number)
    limit = clamp_of(network)
    return settings if limit is None else {**settings, "conv_clamp": limit}


def clamp_of(network):
    """The number at which all layers are cut off, or None for a network without such a limit.

    Why:    a network in float16 overflows at 65,504; stylegan2-ada-pytorch cuts off at 256 what it
            trains so. Here all is float32, and still cut off: the network may count on the limit.
            D's shortcuts are sums that nothing limits.
    Proved: tests/test_import_checkpoint.py::test_what_was_cut_off_is_cut_off_here
    """
    limits = {limit for option, limit in network.kwargs.items()
              if option.endswith(".conv_clamp") and not option.endswith(".skip.conv_clamp")}
    limit = limits.pop() if limits else None
    if limits or limit is not None and not (type(limit) in (int, float) and 0 < limit < 1e6):
        raise Unreadable(f"cuts off its layers at {reprlib.repr(limit)} and "
                         f"{reprlib.repr(limits)} (conv_clamp), which no network here does")
    return limit


def official_networks(value, names, generator_only):
    """[G, D, Gs], each a `Network` or None, from what `read_anything` gave of an official file.

    G is the generator as it was trained, Gs (in PyTorch, "G_ema") its moving average.
    Errors: Unreadable, or any error of notes that are not what they pretend to be.
    """
    if isinstance(value, (tuple, list)) and len(value) == 3 and all(
            isinstance(part, Named) and part.name.endswith("Network") for part in value):
        read, harmless, notes = network_of, HARMLESS_TF, value
    else:
        kind, parts = foreign_kind(value, names), value.items if isinstance(value, Named) else value
        if kind or PERSISTENT not in names or "G_ema" not in parts:
            raise Unreadable(WHY_NOT.get(kind, "is no official StyleGAN file, which holds three "
                                               "networks G, D and Gs, or G, D and G_ema"))
        read, harmless = module_of, HARMLESS_TORCH
        notes = parts.get("G"), parts.get("D"), parts["G_ema"]
    unknown = sorted(names - harmless)
    if unknown:
        raise Unreadable(f"asks for {reprlib.repr(unknown[0])}, which no official file needs, "
                         f"so nothing of it is used")
    return [None if note is None or generator_only and k < 2 else read(note)
            for k, note in enumerate(notes)]


def import_official(networks, file_size):
    """`Imported`, from [G, D, Gs]. From here on there is nothing but arrays and options.

    Errors: as `official_networks`.
    """
    form = next((form for form in FORMATS if form.generator.builder == networks[2].builder),
                FORMATS[0])
    sides = (form.generator, form.discriminator, form.generator)
    for network, side in reversed(list(zip(networks, sides))):
        reason = network and objection(network, side)
        if reason:
            raise Unreadable(reason + ("" if side is form.generator else
                                       "; --generator-only leaves D out"))
    settings = settings_of(networks[2], form)
    if any(network and clamp_of(network) != settings.get("conv_clamp") for network in networks):
        raise Unreadable("cuts off its networks at different limits (conv_clamp)")

    # On the meta device a network has shapes but no memory, whatever the file claims.
    with torch.device("meta"):
        shapes_g = models.make_generator(settings).state_dict()
        shapes_d = models.make_discriminator(settings).state_dict()
    shapes = (shapes_g, shapes_d, shapes_g)
    claimed = 4 * sum(tensor.numel() for network, wanted in zip(networks, shapes) if network
                      for tensor in wanted.values())
    if claimed > MOST_GROWTH * file_size:
        raise Unreadable(f"claims networks of {claimed / 1e6:.0f} MB, which cannot be in a file of "
                         f"{file_size / 1e6:.1f} MB")

    # All three stand at the same lod while they are trained. That of Gs may be one update behind,
    # four batches at most: less than 0.01 of a fade-in. StyleGAN2 has a lod, but always 0.
    lods = [lod_of(network, settings["resolution"]) for network in networks if network]
    if max(lods) - min(lods) > 0.01:
        raise Unreadable(f"has networks at different lods ({', '.join(f'{x:g}' for x in lods)}), "
                         f"which do not belong to each other")
    if lods[-1] and form.architecture == "stylegan2":
        raise Unreadable(f"has lod = {lods[-1]:g}, where a StyleGAN2 has always 0")
    mirrored = mirrored_from(networks[2].kwargs)
    G, D, Gs = [network and import_network(network, side.table, wanted, settings, mirrored)
                for network, side, wanted in zip(networks, sides, shapes)]
    lines = ()
    if "conv_clamp" in settings:
        lines = (f"features are cut off at {settings['conv_clamp']:g}, as they were in training",)
    return Imported(settings, lods[-1], G, D, Gs, lines)


def import_file(path, generator_only=False):
    """What the three networks of a file are here, as `Imported`. generator_only: of Gs alone.

    Errors: CheckpointError, one sentence with the file's name and the reason.
    Proved: tests/test_import_checkpoint.py::test_the_official_file_gives_the_official_images,
            ::test_the_official_file_gives_the_official_scores
    """
    value, names = read_anything(path)
    try:
        # The state dicts of genforce, lernapparat and rosinality: workshop/foreign_names.py.
        found = foreign_names.import_networks(value, names, MOST_GROWTH * path.stat().st_size,
                                              generator_only)
        if found is not None:
            return Imported(*found)
        networks = official_networks(value, names, generator_only)
        del value                  # so that an array's bytes go as soon as it is copied
        return import_official(networks, path.stat().st_size)
    except Unreadable as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception:                                  # notes that are not what they pretend to be
        raise CheckpointError(f"{path}: not a checkpoint, or damaged (its networks are "
                              f"incomplete)") from None


# ==== Part 3: a checkpoint that train.py can go on from =======================================
#
# The official files hold networks and little of the run that made them: not its options, not how
# many images it had seen, not Adam's moments. train.py asks for all of them. So they are written as
# what they would be in a run with the paper's options: Adam without a memory, and a clock.
#
# The clock is not for show. G_ema averages over 5 % of the images seen so far; with a clock at 0
# the first step would overwrite the imported average with G.
# Proved: tests/test_import_checkpoint.py::test_fine_tuning_keeps_the_average
#
# Which pictures the networks learned, no file says. The option "data" is left out, so that train.py
# and evaluate.py ask for --data. Proved: ::test_without_data_an_imported_network_is_not_trained

# The paper's run is 25,000 kimg long. What an imported finished network gets on top is our choice.
KIMG_SEEN, KIMG_MORE = 25000.0, 1000.0


def where_it_stood(resolution, lod):
    """(initial resolution, nimg, resolution, phase, alpha) of an official run at this lod.

    The whole part of lod counts doublings that are to come. The rest says how far the newest block
    has come in: lod 1.6 of 1024 px is 512 px at alpha 0.4.
    How:    the clock is put where the official schedule has it: from 8 px on, 600 kimg for a
            resolution and 600 for a fade-in. During the first of these lod stands still, so the
            file does not say how much of it is over; the middle is taken.
            lod 0 is the last resolution, and is taken for the end of the run.
    Source: NVlabs/stylegan, training/training_loop.py, training_schedule; train.py.
    Proved: tests/test_import_checkpoint.py::test_a_snapshot_of_the_middle_goes_on_where_it_stood
    """
    if lod == 0:
        return resolution, round(1000 * KIMG_SEEN), resolution, "stabilize", 1.0
    now, alpha = resolution >> math.floor(lod), 1.0 - lod % 1
    settled = now if alpha == 1 else now // 2          # the largest resolution that is not fading
    initial = min(8, settled)
    kimg = 1200 * (settled // initial).bit_length() - 1200     # for doublings that are over
    if alpha == 1:
        return initial, round(1000 * (kimg + 300)), now, "stabilize", 1.0
    return initial, round(1000 * (kimg + 600 + 600 * alpha)), now, "fade", alpha


def new_adam(parameters):
    """The state dict of an Adam, as in train.py, that has not made a step for `parameters` yet.

    Why:    making one and asking it would be shorter. But torch loads its compiler for the first
            optimizer that is made. Nothing is optimized here, so all is spelled out.
    Units:  the flags for the device are None: a file of no machine in particular has no opinion.
    Proved: tests/test_import_checkpoint.py::test_the_written_adam_has_not_made_a_step,
            ::test_the_compiler_is_not_loaded
    """
    return {"state": {}, "param_groups": [{
        "lr": 0.001, "betas": (0.0, 0.99), "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
        "maximize": False, "foreach": None, "capturable": False, "differentiable": False,
        "fused": None, "decoupled_weight_decay": False, "params": list(range(parameters))}]}


def can_be_trained(imported):
    """Are all three networks there? What a file has not cannot be made up."""
    return imported.generator is not None and imported.discriminator is not None


def as_checkpoint(imported):
    """The dict that `save_checkpoint` writes, with all that train.py needs to go on.

    A finished network begins where the schedule ends: at the final resolution, which is also put
    down as the initial one, so that there is nothing left to grow.
    Proved: tests/test_import_checkpoint.py::test_fine_tuning_goes_on_at_the_final_resolution
    """
    settings = imported.settings
    with torch.device("meta"):
        counts = [sum(1 for _ in make(settings).parameters())
                  for make in (models.make_generator, models.make_discriminator)]
    initial, nimg, now, phase, alpha = where_it_stood(settings["resolution"], imported.lod)
    # [MACHINE] The paper's options: a GPU with 8 GB; a StyleGAN2: 16 (workshop/options.py). Less,
    #           when resuming: --batch 4:64,64:16,128:8,256:4,512:2; a StyleGAN2: --accumulate 16.
    situation = "your pictures on a GPU"
    run = {**options.ALWAYS, **options.PRESETS[situation]}
    if settings["architecture"] == "stylegan2":
        run |= {**options.STYLEGAN2, **options.STYLEGAN2_PRESETS[situation]}
        gamma = options.heuristic_gamma(settings["resolution"], int(run["batch"]))
        run["r1_gamma"] = f"{gamma:g}"
    run |= {**{key: settings[key] for key in ("architecture", *models.SETTINGS)},
            "initial_resolution": initial,
            "total_kimg": KIMG_SEEN + (KIMG_MORE if imported.lod == 0 else 0.0)}
    run["workers"] = min(run["workers"], machine.cores())
    del run["data"]
    # sums: train.py's running sums since the last status line.
    progress = {"nimg": nimg, "step": 0, "resolution": now, "phase": phase, "alpha": alpha,
                "steps_since_tick": 0, "sums": torch.zeros(len(LOGGED))}
    if not can_be_trained(imported):
        states = {part: getattr(imported, part) for part in ("generator_ema", "discriminator")}
        return {"settings": settings, "progress": progress,
                **{part: state for part, state in states.items() if state}}
    return {
        "settings": settings, "options": run, "generator": imported.generator,
        "generator_ema": imported.generator_ema, "discriminator": imported.discriminator,
        "optimizer_g": new_adam(counts[0]), "optimizer_d": new_adam(counts[1]),
        "samples": new_samples(argparse.Namespace(**run)), "progress": progress}


# ==== Part 4: the program =====================================================================


def check_out(out):
    """Raise UserError unless a new file can be written there."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; name another file to write to")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder")
    check_writable(out, "MODEL")


def parse_args(argv=None):
    """The options, as `--help` explains them."""
    parser = options.OneLineParser(
        prog="import_checkpoint.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Turn a public StyleGAN or StyleGAN2 checkpoint into one of this program: the\n"
                    "official .pkl of TensorFlow, stylegan2-ada-pytorch and stylegan3 (of the\n"
                    "last, its StyleGAN2), and state dicts of genforce, lernapparat and\n"
                    "rosinality. None of these programs is needed, and nothing in the file is run.",
        epilog="Then:\n"
               "  python generate.py MODEL samples --psi 0.7 --cutoff 8   as the official samples\n"
               f"  python train.py --resume MODEL --data photos/           {KIMG_MORE:g} kimg of "
               "fine-tuning\n"
               "  python convert_resolution.py MODEL 512                  a smaller network\n"
               "A snapshot from the middle of training goes on growing where it stood. The\n"
               "options are the paper's for a GPU; others can be given together with --resume.")
    parser.add_argument("file", metavar="FILE", type=pathlib.Path,
                        help="for instance karras2019stylegan-ffhq-1024x1024.pkl")
    parser.add_argument("model", metavar="MODEL", type=pathlib.Path, nargs="?",
                        help="where to write it; must not exist (default: FILE with the suffix "
                             ".pt)")
    parser.add_argument("--generator-only", action="store_true",
                        help="take the moving average of G alone, to look at: for a file whose D "
                             "cannot be imported")
    return parser.parse_args(argv)


def main(argv=None):
    """Read, translate, write. Returns the exit code."""
    typed = parse_args(argv)
    path, out = typed.file, typed.model or typed.file.parent / f"{typed.file.stem}.pt"

    # ---- 1. Read and translate ----
    # A name that was typed is checked first. One that was not may be FILE itself, if that ends in
    # .pt; then what FILE is says more than that it exists.
    if typed.model:
        check_out(out)
    imported = import_file(path, typed.generator_only)

    # ---- 2. Write ----
    check_out(out)
    # The 2^20 are for names, numbers and what else torch.save writes beside the tensors.
    needed = 2 ** 20 + sum(tensor.nbytes for state in imported[2:5] if state
                           for tensor in state.values())
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(f"{out}: needs {needed / 1e6:.3g} MB, and the disk has {free / 1e6:.3g} "
                        f"MB left")
    checkpoint = as_checkpoint(imported)
    checkpoints.save_checkpoint(out, checkpoint)

    # ---- 3. Say what it was, and what can be done with it ----
    learned = lambda name: not (foreign_names.is_noise_map(name)
                                or name in ("w_avg", "path_length_mean"))
    count = [f"{sum(t.numel() for name, t in state.items() if learned(name)) / 1e6:.3g} M "
             f"parameters in {network}"
             for network, state in (("G", imported.generator_ema), ("D", imported.discriminator))
             if state]
    settings, progress = imported.settings, checkpoint["progress"]
    r = settings["resolution"]
    kind = "StyleGAN2" if settings.get("architecture") == "stylegan2" else "StyleGAN"
    print(f"{path}: {kind}, {r}x{r}, {', '.join(count)}")
    if imported.lod > 0:
        print(f"from the middle of training: {progress['resolution']} px, {progress['phase']}, "
              f"alpha {progress['alpha']:.2f}")
    for line in imported.lines:
        print(f"note: {line}")
    cutoff = " --cutoff 8" if kind == "StyleGAN" else ""
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB\n"
          f"look at it:   python generate.py {machine.spoken([out])} samples --psi 0.7{cutoff}")
    if can_be_trained(imported):
        print(f"train it on:  {options.go_on(out, 'photos/')}\n"
              f"              goes on at {progress['nimg'] / 1000:g} kimg, and ends at "
              f"{checkpoint['options']['total_kimg']:g}")
    else:
        print("it is for looking: train.py needs G, its average and D, and it has not all three")
    return 0


if __name__ == "__main__":
    options.start(main, "import_checkpoint.py", "stopped; nothing was written")
