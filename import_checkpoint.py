"""import_checkpoint.py: a public StyleGAN checkpoint becomes ours; nothing in it is run.
                                                                      (11th in the reading order)

    python import_checkpoint.py karras2019stylegan-ffhq-1024x1024.pkl
    python import_checkpoint.py tests/data/official_stylegan.pkl tiny.pt       a second, on any CPU
    python generate.py tiny.pt samples --seeds 0-7

Read before: stylegan_models.py, generate.py.     Read next: tests/test_import_checkpoint.py
Paper:   Karras et al. 2019 (arXiv 1812.04948); the files: github.com/NVlabs/stylegan, "Pre-trained
         networks", and what other people trained with that code.
Needs:   torch, numpy, Pillow. No TensorFlow, no internet, any device.
Letters: R resolution; lod, "level of detail": the official count of resolutions from the largest,
         which is 0, downwards. 1.6 lies between 2 and 1, and is nearer to 2.

The official networks are pickles of TensorFlow variables together with the Python source that makes
networks of them. The official loader executes that source; this one never looks at it, since the
networks are known here. It has four things to do, one part each:

  1. read a pickle without running it       2. say what it holds, and why other things are refused
  3. rename and turn the arrays, by a table        4. add what train.py needs to go on from there
"""

import argparse
import functools
import math
import os
import pathlib
import pickletools
import reprlib
import shutil
import struct
from typing import NamedTuple

import numpy as np
import torch

import stylegan_models as models
from workshop import UserError, checkpoints, machine, options
from workshop.checkpoints import CheckpointError
from workshop.run import new_samples

# [MACHINE] Memory: the size of the file, beside what torch takes by itself. No GPU is used.
#           Proved: tests/test_import_checkpoint.py::test_the_whole_is_never_twice_in_memory

# ==== Part 1: reading a pickle without running it =============================================
#
# A pickle is not data but a program for a small machine with a stack. Most instructions push plain
# values or gather what lies on the stack into lists and dicts. The list ["bias"] is
#
#     EMPTY_LIST                     push []
#     SHORT_BINUNICODE 'bias'        push "bias"
#     APPEND                         take it off and append it to the list below
#     STOP                           what lies on top is the value of the file
#
# But a few instructions say "import this name" and "call what lies there with these arguments", and
# the name may be os.system:
#
#     GLOBAL 'os system'             push the function
#     SHORT_BINUNICODE 'rm -r ~'     push a string
#     TUPLE1                         take it off, push the tuple of arguments
#     REDUCE                         take both off, call, push what comes back
#
# Python's unpickler obeys, so whoever wrote the file can do what he likes with the computer of
# whoever opens it. `python -m pickletools FILE` shows any file like this, and runs nothing.
#
# The machine below lacks these powers. Where the file wants a name imported, it writes the name
# down; where the file wants a call, it writes down what was to be called, and with what:
#
#     GLOBAL numpy.dtype   ('f4', 0, 1)   REDUCE      ->      Named("numpy.dtype", ('f4', 0, 1))
#
# There is no import, no call and no attribute access in it, hence nothing to escape through: not by
# any instruction, not by nesting, not by a name that looks harmless. Afterwards, Part 3 knows how
# to read the few notes that stand for arrays; every other note remains a note.
# Proved: tests/test_import_checkpoint.py::test_nothing_in_a_file_is_run,
#         ::test_the_same_files_do_run_with_pickle


class Named:
    """A note: the file asked for `name`, wanted it called with `args` and given `state`.

    items: what the file wanted put into it, for names that are kinds of dict.
    """
    __slots__ = ("name", "args", "state", "items")

    def __init__(self, name, args=None):
        self.name, self.args, self.state, self.items = name, args, None, {}


class Unreadable(ValueError):
    """The file is not a sound pickle. The message is part of a sentence."""


# Three limits for the machine. Each is far above what an official file needs, and keeps a small
# file from taking much memory or time.
# Proved: tests/test_import_checkpoint.py::test_huge_claims_are_refused_in_little_memory,
#         ::test_the_limits_are_far_above_what_an_official_file_needs
MOST_INSTRUCTIONS = 100_000
LONGEST_LINE = 10_000          # bytes; lines hold names and numbers, in the oldest protocols only
# Tuples in tuples. Python hashes and compares them by recursion, and one of 190,000 levels, which
# takes as many bytes in a file, ends the interpreter.
# Proved: ::test_deeply_nested_tuples_do_not_crash_python
DEEPEST_TUPLE = 20


class BoundedFile:
    """A file that notices that it is too short BEFORE memory for the promised bytes is asked for.

    Why:    an instruction of nine bytes can announce 2^63 bytes to come.
    Shapes: as pickletools wants it: read, readline, tell.
    """

    def __init__(self, file, size):
        self.file, self.size = file, size

    def tell(self):
        return self.file.tell()

    def read(self, n):
        left = self.size - self.file.tell()
        if n > left:
            raise Unreadable(f"it is cut off: {n} bytes should follow, {left} do")
        return self.file.read(n)

    def readline(self):
        line = self.file.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE:
            raise Unreadable("it has a line without end")
        return line


MARK = object()                # lies on the stack where a list or dict begins


def read_pickle(file):
    """Follow one pickle to its end: (its value, the set of all names that it asked for).

    The value is made of None, bool, int, float, str, bytes, list, tuple, dict and `Named`; sets
    become lists, since nothing here asks for one and hashing what a file brings is work that the
    file could make long. pickletools, of the standard library, takes the bytes apart into
    instructions and their arguments; what they do to the stack is told here.
    Errors: Unreadable, or what Python raises when a stack is empty or a name unknown to the memo.
    Proved: tests/test_import_checkpoint.py::test_plain_values_come_out_as_pickle_gives_them
    """
    stack, memo, names = [], {}, set()
    depths = {}                # id of a tuple -> how many tuples lie in each other in it

    # The stack may hold MARKs among the values: a MARK says "a list or a dict begins here".
    def pop(kind=object):
        value = stack.pop()
        if value is MARK or not isinstance(value, kind):
            raise Unreadable("its instructions do not fit together")
        return value

    def top(kind):
        stack.append(pop(kind))
        return stack[-1]

    def pop_to_mark():
        start = len(stack) - 1
        while start >= 0 and stack[start] is not MARK:
            start -= 1
        if start < 0:
            raise Unreadable("its instructions do not fit together")
        values = stack[start + 1:]
        del stack[start:]
        return values

    # The only thing that ever happens to a name: it is written down.
    def named(name, args=None):
        names.add(name)
        return Named(name, args)

    # All tuples of the machine come from here, so an id that Python uses again has its new depth.
    def push_tuple(values):
        depth = 1 + max((depths[id(v)] for v in values if isinstance(v, tuple)), default=0)
        if depth > DEEPEST_TUPLE:
            raise Unreadable(f"it has tuples nested more than {DEEPEST_TUPLE} deep")
        stack.append(tuple(values))
        depths[id(stack[-1])] = depth

    def put_items(target, keys_and_values):
        # Only keys that are hashed fast: chosen large integers make a dict slow.
        target = target.items if isinstance(target, Named) else target
        for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
            if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2 ** 60):
                raise Unreadable("a dict in it has a key that is neither text nor a number")
            target[key] = value

    # One instruction after the other, by what kind of thing they do. Six protocols have left
    # several names for the same deed: BININT1 is a BININT for small numbers, three bytes shorter.
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if count >= MOST_INSTRUCTIONS:
            raise Unreadable(f"it has more than {MOST_INSTRUCTIONS} instructions")
        match opcode.name:
            # -- values that the file spells out --
            case ("BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8" | "BININT" | "BININT1"
                  | "BININT2" | "LONG1" | "LONG4" | "INT" | "LONG" | "BINFLOAT" | "FLOAT"
                  | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "UNICODE"
                  | "SHORT_BINSTRING" | "BINSTRING" | "STRING"):
                stack.append(arg)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            # -- gathering what lies on the stack --
            case "MARK":
                stack.append(MARK)
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                push_tuple([])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [pop() for _ in range(int(opcode.name[-1]))]
                push_tuple(values[::-1])
            case "TUPLE":
                push_tuple(pop_to_mark())
            case "LIST" | "FROZENSET":
                stack.append(pop_to_mark())
            case "DICT":
                values = pop_to_mark()
                stack.append({})
                put_items(stack[-1], values)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                values = [pop()] if opcode.name == "APPEND" else pop_to_mark()
                top(list).extend(values)
            case "SETITEM":
                value, key = pop(), pop()
                put_items(top((dict, Named)), [key, value])
            case "SETITEMS":
                values = pop_to_mark()
                put_items(top((dict, Named)), values)
            # -- keeping things for later --
            # A file says everything once: what it needs again, it puts under a number.
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "DUP":
                stack.append(stack[-1])
            case "POP":
                stack.pop()
            case "POP_MARK":
                pop_to_mark()
            # -- what Python's unpickler would import, or have imported; here it is written down --
            case "GLOBAL":
                stack.append(named(".".join(arg.split(" ", 1))))
            case "STACK_GLOBAL":
                attribute, module = pop(str), pop(str)
                stack.append(named(f"{module}.{attribute}"))
            case "PERSID":
                stack.append(named("persistent id", arg))
            case "BINPERSID":
                stack.append(named("persistent id", pop()))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(named("copyreg extension", arg))
            # -- what Python's unpickler would call --
            case "REDUCE" | "NEWOBJ":
                args = pop()
                stack.append(named(pop(Named).name, args))
            case "NEWOBJ_EX":
                keywords, args = pop(), pop()
                stack.append(named(pop(Named).name, (args, keywords)))
            case "INST":
                stack.append(named(".".join(arg.split(" ", 1)), tuple(pop_to_mark())))
            case "OBJ":
                values = pop_to_mark()
                stack.append(named(values[0].name, tuple(values[1:])))
            case "BUILD":
                state = pop()
                top(Named).state = state
            # -- the frame of it all --
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return pop(), names
            case other:                                # buffers outside the file, or a new protocol
                raise Unreadable(f"the instruction {other} has no business in a checkpoint")


TORCH_MAGIC = 0x1950A86A20F9469CFC6C     # the first thing in a PyTorch file of before version 1.6


def read_anything(path):
    """The value and the names of a pickle, of a PyTorch file, or of an old PyTorch file.

    A PyTorch file is a zip whose first record, uncompressed, is a pickle that refers to the other
    records (the tensors) by "persistent ids"; before 2020 it was several pickles in a row. Only
    the pickle is read: the names in it are enough to tell which program wrote the file.
    Errors: CheckpointError, one sentence.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: a folder, not a checkpoint file")
    try:
        with open(path, "rb") as raw:
            file = BoundedFile(raw, os.fstat(raw.fileno()).st_size)
            if raw.peek(4)[:4] == b"PK\x03\x04":
                header = struct.unpack("<4s5H3I2H", file.read(30))         # of the first record
                compression, name_length, extra_length = header[3], header[9], header[10]
                record, _ = file.read(name_length), file.read(extra_length)
                if not record.endswith(b"data.pkl") or compression:
                    raise Unreadable("it is a zip, but not one that PyTorch wrote")
            value, names = read_pickle(file)
            if type(value) is int and value == TORCH_MAGIC:
                read_pickle(file)                      # the version of the format
                read_pickle(file)                      # byte order and sizes
                value, names = read_pickle(file)
            return value, names
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    # A damaged file can make the machine trip in any way: an empty stack, a bad letter, ... All of
    # them mean that it cannot be used, and nothing has been done yet.
    except Exception as error:
        reason = (str(error) if isinstance(error, Unreadable) else
                  "its instructions make no sense")
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({reason})") from None


# ==== Part 2: what does the file hold? ========================================================
#
# Every program writes other names into its files, so a file can be recognised before anything in it
# is used. What cannot be imported faithfully is refused with the reason, since a network that is
# nearly right makes pictures that are nearly right, and nobody would notice.

WHY_NOT = {
    "stylegan2": "holds a StyleGAN2 network: it scales its weights by the style instead of "
                 "normalizing its features, and only StyleGAN is imported",
    "stylegan3": "holds a StyleGAN3 network: its layers are filters on a continuous signal, which "
                 "no network of this program can imitate",
    "progan": "holds a Progressive GAN without styles; only StyleGAN is imported",
    "labels": "holds a class-conditional network (label_size {}): its mapping network also takes "
              "the label, which the networks of this program have no input for",
    "rosinality": "is a checkpoint of rosinality/style-based-gan-pytorch: its up-convolutions add "
                  "the bias before the blur, which changes every pixel along the border of every "
                  "layer, so its weights make other pictures here",
    "humans": "is a checkpoint of StyleGAN-for-Humans: it adds noise of its own to every channel, "
              "where a StyleGAN adds one map to all, so its weights make other pictures here",
    "ours": "is a checkpoint of this program already; there is nothing to import",
}


def all_notes(value):
    """Every dict and every `Named` inside a value, each once. A loop, since depth costs nothing."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Named):
            yield value
            waiting += [value.args, value.state, value.items]
        elif isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value


def foreign_kind(value, names):
    """The key of `WHY_NOT` for a file that is no official StyleGAN, or None if it is unknown.

    Proved: tests/test_import_checkpoint.py::test_other_programs_files_are_refused_by_name
    """
    dicts = [note.items if isinstance(note, Named) else note for note in all_notes(value)]
    keys = {str(key).removeprefix("module.") for entry in dicts for key in entry}
    if {"format", "architecture", "settings"} <= keys:
        return "ours"
    if "torch_utils.persistence._reconstruct_persistent_obj" in names:
        # Both papers' files are alike; only StyleGAN3 has an input layer of sine waves.
        classes = {entry["class_name"] for entry in dicts
                   if isinstance(entry.get("class_name"), str)}
        return "stylegan3" if "SynthesisInput" in classes else "stylegan2"
    if "ur_face" in keys:                              # its name for the constant input
        return "humans"
    if any(key.endswith("conv.modulation.weight") for key in keys):
        return "stylegan2"                             # rosinality/stylegan2-pytorch
    if any("progression.0.conv" in key for key in keys):
        return "rosinality"
    return None


# All names that the official files need. A file that asks for any other was not written by the
# official code, and is not used even though the name would only have been written down.
HARMLESS = {
    "dnnlib.tflib.network.Network", "tfutil.Network", "dnnlib.util.EasyDict",
    "collections.OrderedDict", "_codecs.encode", "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"}


class Network(NamedTuple):
    """One official network, its sub-networks merged into it.

    The official G consists of two networks with their own variables, `synthesis` and `mapping`; the
    names of theirs get that word in front, as if it were a folder. The source code that the file
    brings along ("build_module_src") is left where it is.
    """
    builder: str               # the name of the function that made it: "G_style"
    kwargs: dict               # what that function was given
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
    """The `Network` that a pickled dnnlib object describes.

    Errors: Unreadable, or any error of a dict without what belongs in it.
    """
    if not isinstance(note, Named) or not note.name.endswith("Network"):
        raise Unreadable("has something else where a network should be")
    state, builder = note.state, note.state["build_func_name"]
    if not isinstance(builder, str):                   # it is looked up in a table later
        raise Unreadable("has a network built by something that is not named by text")
    kwargs, variables = dict(pairs(state["static_kwargs"])), dict(pairs(state["variables"]))
    parts = pairs(state.get("components", {}))
    if len(parts) > 2 or any(part.state.get("components") for _, part in parts):
        raise Unreadable("has networks of more parts than G's two halves")
    for prefix, part in parts:
        kwargs.update(pairs(part.state["static_kwargs"]))
        variables.update((f"{prefix}/{name}", v) for name, v in pairs(part.state["variables"]))
    return Network(builder, kwargs, variables)


# ==== Part 3: names and layouts ===============================================================
#
# Each line of the tables: our name, the official name below its network, and how the array lies.
# {k} runs over the mapping layers, {r} over the resolutions 4, 8, ..., {R} over 8, 16, ...; {lod}
# counts the resolutions down to 0, the largest; {n} and {m} number the noise maps, two to each
# resolution. Dots are ours, slashes theirs.

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
            Getting it wrong is not subtle: two test images then differ by as much as their largest
            value. It is the converters' classic mistake because a small network does not show it.
    Source: NVlabs/stylegan, training/networks_stylegan.py, upscale2d_conv2d and its fused_scale.
    Proved: tests/test_import_checkpoint.py::test_networks_of_128_px_equal_the_official_ones,
            ::test_every_setting_of_fused_scale_gives_the_official_images
    """
    fused = kwargs.get("fused_scale", "auto")
    if fused not in (True, False, "auto"):
        raise Unreadable(f"has fused_scale = {reprlib.repr(fused)}, which is not known")
    return 128 if fused == "auto" else 4 if fused else math.inf


# name -> function of (array, is it stored mirrored?). Convolutions are stored [kh, kw, in, out]
# there and [out, in, kh, kw] here, dense weights [in, out] there and [out, in] here.
LAYOUTS = {
    "same": lambda array, mirrored: array,
    "dense": lambda array, mirrored: array.transpose(1, 0),
    "conv": lambda array, mirrored: array.transpose(3, 2, 0, 1),
    "up": lambda array, mirrored: (array[::-1, ::-1] if mirrored else array).transpose(3, 2, 0, 1),
}


# The names of the functions that made G and D ...
BUILDERS = ("G_style", "D_basic")
# ... and what these were given. Our name of a setting -> (theirs, their default).
SETTINGS = {
    "resolution": ("resolution", 1024), "channel_base": ("fmap_base", 8192),
    "channel_max": ("fmap_max", 512), "latent_dim": ("latent_size", 512),
    "style_dim": ("dlatent_size", 512), "mapping_dim": ("mapping_fmaps", 512),
    "mapping_layers": ("mapping_layers", 8)}
# Options of theirs that change the network, with their defaults, the only values we have.
FIXED = {
    "num_channels": 3, "fmap_decay": 1, "use_styles": True, "const_input_layer": True,
    "use_noise": True, "use_pixel_norm": False, "use_instance_norm": True,
    "nonlinearity": "lrelu", "mapping_nonlinearity": "lrelu", "use_wscale": True,
    "normalize_latents": True, "mapping_lrmul": 0.01, "blur_filter": [1, 2, 1],
    "mbstd_group_size": 4, "mbstd_num_features": 1}
# Variables that belong to no layer. The second is a copy of the first, made whenever G is run.
LODS = ("lod", "synthesis/lod")
# What other functions of the same family make.
OTHER_BUILDERS = {"G_main": "stylegan2", "G_stylegan2": "stylegan2", "D_stylegan2": "stylegan2",
                  "D_stylegan": "stylegan2", "G_paper": "progan", "D_paper": "progan"}


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
                yield ours.format(**fields), theirs.format(**fields), layout, r
        else:
            yield ours, theirs, layout, None


def array_of(note):
    """The numpy array that a note stands for, without a copy of its bytes.

    The notes of numpy's own pickles: `_reconstruct` with a state (version, shape, dtype, is it in
    Fortran's order, bytes), and `scalar` with (dtype, bytes). Old protocols write bytes as text.
    Errors: Unreadable, or any error of a note that is not like that.
    Proved: tests/test_import_checkpoint.py::test_arrays_come_out_of_every_protocol
    """
    if isinstance(note, (int, float)):
        return np.float32(note)
    kind = note.name.replace("numpy._core.", "numpy.core.")            # its name since numpy 2
    # frombuffer and reshape below refuse a shape that does not fit the bytes; neither allocates.
    if kind == "numpy.core.multiarray._reconstruct":
        _, shape, dtype, fortran, raw = note.state
    elif kind == "numpy.core.multiarray.scalar":
        (dtype, raw), shape, fortran = note.args, (), False
    else:
        raise Unreadable(f"has {reprlib.repr(note.name)} where an array should be")
    if isinstance(raw, Named) and raw.name == "_codecs.encode":
        raw = raw.args[0]
    if isinstance(raw, str):
        raw = raw.encode("latin-1")
    number, order = dtype.args[0], dtype.state[1]
    if dtype.name != "numpy.dtype" or number not in ("f2", "f4", "f8") or order not in ("<", ">"):
        raise Unreadable("has a variable that is not made of floating point numbers")
    return np.frombuffer(raw, order + number).reshape(shape, order="F" if fortran else "C")


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
        if theirs not in left:
            raise Unreadable(f"lacks the variable {theirs}")
        stored = array_of(left.pop(theirs))
        array = LAYOUTS[layout](stored, r is not None and r >= mirrored)
        if array.shape != tuple(wanted[ours].shape):
            raise Unreadable(f"has {theirs} in the shape {list(stored.shape)}, which does "
                             f"not fit its settings")
        array = np.array(array, dtype=np.float32, order="C")
        if not np.isfinite(array).all():
            raise Unreadable(f"has values in {theirs} that are not finite numbers")
        state[ours] = torch.from_numpy(array)
    left = sorted(set(left) - set(LODS))
    if left:
        raise Unreadable(f"has a variable {reprlib.repr(left[0])}, which no network here has")
    return state


def check_kind(G, D, Gs):
    """Raise Unreadable unless three networks are those of a StyleGAN without labels.

    Proved: tests/test_import_checkpoint.py::test_other_programs_files_are_refused_by_name
    """
    for network in (G, D, Gs):
        if network.builder in OTHER_BUILDERS:
            raise Unreadable(WHY_NOT[OTHER_BUILDERS[network.builder]])
        labels = network.kwargs.get("label_size", 0)
        if labels != 0 or "mapping/LabelConcat/weight" in network.variables:
            raise Unreadable(WHY_NOT["labels"].format(reprlib.repr(labels)))
    builders = (G.builder, D.builder, Gs.builder)
    if builders != (*BUILDERS, BUILDERS[0]):
        raise Unreadable(f"has networks built by {reprlib.repr(builders)}, not known here")
    for network in (G, D, Gs):
        for option, wanted in FIXED.items():
            given = network.kwargs.get(option, wanted)
            if given != wanted:
                raise Unreadable(f"has networks built with {option} = {reprlib.repr(given)}; "
                                 f"only {wanted} can be imported")


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
    """What an official file holds: settings of ours, the lod of Gs, and three state dicts."""
    settings: dict
    lod: float
    generator: dict
    discriminator: dict
    generator_ema: dict


# A copied array has 4 bytes a number, where the file has 2 or more. So sound networks take at most
# 2 bytes of memory for a byte of the file. More than 4 means that one array stands for many layers:
# the file of the test has 0.7 MB, and asks for 260 MB.
# Proved: tests/test_import_checkpoint.py::test_one_array_for_hundreds_of_layers_is_refused
MOST_GROWTH = 4


def import_file(path):
    """What the three networks of an official file are here, as `Imported`.

    Errors: CheckpointError, one sentence with the file's name and the reason.
    Proved: tests/test_import_checkpoint.py::test_the_official_file_gives_the_official_images,
            ::test_the_official_file_gives_the_official_scores
    """
    value, names = read_anything(path)
    try:
        if not (isinstance(value, (tuple, list)) and len(value) == 3 and all(
                isinstance(part, Named) and part.name.endswith("Network") for part in value)):
            kind = foreign_kind(value, names)
            raise Unreadable(WHY_NOT[kind] if kind else
                             "is no official StyleGAN file, which holds three networks G, D and Gs")
        unknown = sorted(names - HARMLESS)
        if unknown:
            raise Unreadable(f"asks for {reprlib.repr(unknown[0])}, which no official file needs, "
                             f"so nothing of it is used")
        # From here on there is nothing but arrays and options. G is the generator as it was
        # trained, Gs its moving average.
        G, D, Gs = networks = [network_of(part) for part in value]
        del value
        check_kind(G, D, Gs)

        # The file says what was asked for when the network was made; what was not said has the
        # official default. Limits first: nothing is built from a number that a file chose freely.
        settings = {}
        for ours, (theirs, default) in SETTINGS.items():
            number = G.kwargs.get(theirs, default)
            if not isinstance(number, (int, float)) or number != int(number) or not (
                    1 <= number <= (1000 if ours == "mapping_layers" else 1e6)):
                raise Unreadable(f"has {theirs} = {reprlib.repr(number)}, which is impossible")
            settings[ours] = int(number)
        # On the meta device a network has shapes but no memory, whatever the file claims.
        with torch.device("meta"):
            shapes_g = models.make_generator(settings).state_dict()
            shapes_d = models.make_discriminator(settings).state_dict()
        claimed = 4 * sum(t.numel() for shapes in (shapes_g, shapes_d, shapes_g)
                          for t in shapes.values())
        if claimed > MOST_GROWTH * path.stat().st_size:
            raise Unreadable(f"claims networks of {claimed / 1e6:.0f} MB, which cannot be in a "
                             f"file of {path.stat().st_size / 1e6:.1f} MB")

        # All three stand at the same lod while they are trained. That of Gs may be one update
        # behind, four batches at most: less than 0.01 of a fade-in.
        lods = [lod_of(network, settings["resolution"]) for network in networks]
        if max(lods) - min(lods) > 0.01:
            raise Unreadable(f"has networks at different lods ({lods[0]:g}, {lods[1]:g}, "
                             f"{lods[2]:g}), which do not belong to each other")
        make = functools.partial(import_network, settings=settings,
                                 mirrored=mirrored_from(G.kwargs))
        return Imported(settings, lods[2], make(G, STYLEGAN_GENERATOR, wanted=shapes_g),
                        make(D, STYLEGAN_DISCRIMINATOR, wanted=shapes_d),
                        make(Gs, STYLEGAN_GENERATOR, wanted=shapes_g))
    except Unreadable as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception:                                  # notes that are not what they pretend to be
        raise CheckpointError(f"{path}: not a checkpoint, or damaged (its networks are "
                              f"incomplete)") from None


# ==== Part 4: a checkpoint that train.py can go on from =======================================
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
    # [MACHINE] The paper's options are for one GPU with 11 GB or more. Less memory, when resuming:
    #           --batch 4:64,64:16,128:8,256:4,512:2. Every other option can be given there, too.
    run = {**options.ALWAYS, **options.PRESETS["your pictures on a GPU"], **settings,
           "initial_resolution": initial,
           "total_kimg": KIMG_SEEN + (KIMG_MORE if imported.lod == 0 else 0.0)}
    run["workers"] = min(run["workers"], machine.cores())
    del run["data"]
    return {
        "settings": settings, "options": run, "generator": imported.generator,
        "generator_ema": imported.generator_ema, "discriminator": imported.discriminator,
        "optimizer_g": new_adam(counts[0]), "optimizer_d": new_adam(counts[1]),
        "samples": new_samples(argparse.Namespace(**run)),
        # sums: train.py's running sums since the last status line, five means and a count.
        "progress": {"nimg": nimg, "step": 0, "resolution": now, "phase": phase, "alpha": alpha,
                     "steps_since_tick": 0, "sums": torch.zeros(6)}}


# ==== Part 5: the program =====================================================================


def check_out(out):
    """Raise UserError unless a new file can be written there."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; name another file to write to")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder")


def parse_args(argv=None):
    """The options, as `--help` explains them."""
    parser = options.OneLineParser(
        prog="import_checkpoint.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Turn an official StyleGAN checkpoint (a TensorFlow .pkl) into one of this\n"
                    "program. TensorFlow is not needed, and nothing in the file is run.",
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
    return parser.parse_args(argv)


def main(argv=None):
    """Read, translate, write. Returns the exit code."""
    typed = parse_args(argv)
    path, out = typed.file, typed.model or typed.file.with_suffix(".pt")

    # ---- 1. Read and translate ----
    # A name that was typed is checked first. One that was not may be FILE itself, if that ends in
    # .pt; then what FILE is says more than that it exists.
    if typed.model:
        check_out(out)
    imported = import_file(path)

    # ---- 2. Write ----
    check_out(out)
    # The 2^20 are for names, numbers and what else torch.save writes beside the tensors.
    needed = 2 ** 20 + sum(tensor.nbytes for state in imported[2:] for tensor in state.values())
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(f"{out}: needs {needed / 1e6:.0f} MB, and the disk has {free / 1e6:.0f} "
                        f"MB left")
    checkpoint = as_checkpoint(imported)
    checkpoints.save_checkpoint(out, checkpoint)

    # ---- 3. Say what it was, and what can be done with it ----
    count = [sum(t.numel() for name, t in state.items()
                 if not name.endswith(".const") and name != "w_avg") / 1e6
             for state in (imported.generator, imported.discriminator)]
    r, progress = imported.settings["resolution"], checkpoint["progress"]
    print(f"{path}: StyleGAN, {r}x{r}, {count[0]:.3g} M parameters in G, {count[1]:.3g} M in D")
    if imported.lod > 0:
        print(f"from the middle of training: {progress['resolution']} px, {progress['phase']}, "
              f"alpha {progress['alpha']:.2f}")
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB\n"
          f"look at it:   python generate.py {out} samples --psi 0.7 --cutoff 8\n"
          f"train it on:  python train.py --resume {out} --data photos/\n"
          f"              goes on at {progress['nimg'] / 1000:g} kimg, and ends at "
          f"{checkpoint['options']['total_kimg']:g}")
    return 0


if __name__ == "__main__":
    options.start(main, "import_checkpoint.py", "stopped; nothing was written")
