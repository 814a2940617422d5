"""checkpoints.py: how networks and runs are saved and loaded.   (workshop)

Used by: all scripts.
Needs:   torch. Importing this file reads no file, no argv, no clock.

A checkpoint is one file, a plain dict of tensors, numbers and strings:
  format          1
  architecture    "stylegan" or "stylegan2"
  settings        what `make_generator` and `make_discriminator` need
  generator_ema   state dict; all that pictures need, a file may hold nothing more
  generator, discriminator, optimizer_g, optimizer_d, progress, options, samples
                  what train.py needs to go on (`Run._keep` in run.py says what is in them)

A file may come from a stranger. A PyTorch file is a zip that holds a pickle, and a pickle is a
program (workshop/pickles.py). So it is read in four steps, and each relies only on what those
before it have checked:
  outside   before torch sees it: is it such a zip, and would its pickle do nothing but list tensors
            that are really there? Then torch.load, with weights_only=True, always
  kind      is it ours, and which networks should it hold?
  tensors   has each the name, the shape and the finite numbers that these networks need?
  words     is all that it says about its run possible?
"""

import json
import math
import os
import pathlib
import re
from typing import NamedTuple

import torch

import stylegan_models as models
from workshop import machine, naming, replace
from workshop.pickles import (
    BoundedFile, CheckpointError, Unreadable, all_notes, as_notes, numbers_of, read_pickle,
    record_of, records_of, shown, visible)

FORMAT = 1

# What a checkpoint must hold beside generator_ema for a run to go on from it.
TO_RESUME = ("generator", "discriminator", "optimizer_g", "optimizer_d", "progress", "options",
             "samples")


# ---- 1. Saving -------------------------------------------------------------------------------


def save_checkpoint(path, checkpoint):
    """Write the dict so that `path` holds either the old file or the whole new one, never a part.

    How:    to a temporary name beside it, flushed to the disk, then renamed, which is atomic.
    Errors: OSError (disk full, no permission); the old file is then untouched.
    Proved: tests/test_checkpoints.py::test_a_failed_save_leaves_the_old_checkpoint_whole,
            ::test_a_full_disk_is_an_oserror
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with naming(path, temporary):
        try:
            with open(temporary, "wb") as file:
                try:
                    architecture = checkpoint["settings"].get("architecture", "stylegan")
                    torch.save({"format": FORMAT, "architecture": architecture, **checkpoint}, file)
                except RuntimeError as error:                  # what torch makes of a full disk
                    reason = str(error).splitlines()[0]
                    raise OSError(f"cannot be written; full disk? ({reason})") from error
                file.flush()
                os.fsync(file.fileno())
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


# ---- 2. Loading ------------------------------------------------------------------------------


def load_checkpoint(path):
    """Read a checkpoint, check all that programs use of it, and return the dict on the CPU.

    Errors: CheckpointError, one sentence with the file's name and the reason: it is missing, a
            folder, not a PyTorch file, damaged, holds more than tensors and plain values, comes
            from another program or a newer version of this one, its tensors do not fit, or what it
            says about its run cannot be.
    Proved: tests/test_checkpoints.py::test_a_bad_checkpoint_gets_one_clear_sentence
            experiments/hostile.py, which damages files and gives them to all programs
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():
        inside = path / "checkpoint.pt"
        raise CheckpointError(f"{path}: a folder, not a checkpoint file" + (
            f"; type {inside}" if inside.is_file() else ""))
    check_outside(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:
        # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... as the damage lies;
        # every one of them means that this file cannot be used, and nothing has been touched yet.
        reason = visible((str(error).strip() or type(error).__name__).splitlines()[0])
        raise CheckpointError(f"{path}: damaged, or more than tensors in it ({reason})") from error
    try:
        generator, discriminator = check_kind(checkpoint)
        check_tensors(checkpoint, generator, discriminator, path.stat().st_size)
        check_words(checkpoint)
    except Unreadable as error:
        raise CheckpointError(f"{path}: {error}") from None
    return checkpoint


# ---- 3. The outside --------------------------------------------------------------------------
#
# torch.load with weights_only=True runs nothing of a file. But it believes what a file says about
# sizes, and it follows the pickle with Python's dict, whose keys are hashed: one key, a tuple
# 300,000 levels deep, ends the interpreter. So the pickle is followed first by the machine of
# pickles.py, which hashes only text and numbers, counts as it goes, and makes nothing.

# What torch.save writes beside the storages, from version to version.
RECORDS = {"data.pkl", "byteorder", "version", ".format_version", ".storage_alignment",
           ".data/serialization_id"}
# The names that the pickle of a checkpoint asks for.
# Proved: tests/test_checkpoints.py::test_only_names_that_a_checkpoint_needs_are_let_through
NAMES = {"collections.OrderedDict", "persistent id", "torch._utils._rebuild_tensor_v2"}
# Kinds of storage, and the bytes of a number.
KINDS = {"torch.FloatStorage": 4, "torch.DoubleStorage": 8, "torch.HalfStorage": 2,
         "torch.BFloat16Storage": 2, "torch.LongStorage": 8,
         "torch.ByteStorage": 1}       # the state of the random numbers, in the first versions
# A run of 1024 px has some 30,000 instructions.
# Proved: tests/test_checkpoints.py::test_the_limits_are_far_above_what_a_run_of_1024_px_needs
MOST_INSTRUCTIONS = 300_000


def check_outside(path):
    """Raise CheckpointError unless a file is a zip of tensors, as torch.save writes it.

    Proved: tests/test_checkpoints.py::test_what_torch_would_trip_over_is_refused_before
    """
    try:
        with open(path, "rb") as raw:
            file = BoundedFile(raw, os.fstat(raw.fileno()).st_size)
            if file.read(min(4, file.size)) != b"PK\x03\x04":
                raise CheckpointError(
                    f"{path}: not a checkpoint of this program, or cut off while copied "
                    f"(import_checkpoint.py reads those of some other programs)")
            records = records_of(file)
            folder = next(iter(records)).partition("/")[0] + "/"
            for name in records:
                if name.removeprefix(folder) not in RECORDS and not re.fullmatch(
                        re.escape(folder) + "data/[0-9]{1,9}", name):
                    raise Unreadable(f"it has a record {shown(name)}")
            if folder + "data.pkl" not in records:
                raise Unreadable("it lacks the record data.pkl")
            pickle = record_of(file, records[folder + "data.pkl"])
            value, names = read_pickle(pickle, MOST_INSTRUCTIONS)
            check_notes(value, names, {name.removeprefix(folder): size
                                       for name, (_, size) in records.items()})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except CheckpointError:
        raise
    except Exception as error:                         # as in `read_anything`
        reason = str(error) if isinstance(error, Unreadable) else "its parts make no sense"
        raise CheckpointError(f"{path}: damaged, or cut off while copied, or more than tensors in "
                              f"it ({reason})") from None


def check_notes(value, names, sizes):
    """Raise Unreadable unless a pickle asks for nothing but dicts and tensors that are there.

    value, names: of `read_pickle`. sizes: {record: bytes}.
    Errors: also any error of a note that is not what it pretends to be.
    Proved: tests/test_checkpoints.py::test_a_tensor_that_is_not_there_is_refused
    """
    if odd := names - NAMES - set(KINDS):
        raise Unreadable(f"it asks for {shown(min(odd))}, which no checkpoint needs")
    notes = list(all_notes(value))
    if any(note.args for note in as_notes(notes, "collections.OrderedDict")):
        raise Unreadable("it has a dict that is made in another way than torch.save does")
    for note in as_notes(notes, "persistent id"):
        word, kind, key, place, count = note.args
        if not isinstance(word, str) or word != "storage":
            raise Unreadable("it has something else where a storage should be")
        if not isinstance(key, str):                           # a list may be endless as text
            raise Unreadable("it has a storage without a name")
        if type(count) is not int or count * KINDS[kind.name] != sizes[f"data/{key}"]:
            raise Unreadable("it has a storage that is not as long as it says")
        if not re.fullmatch(r"(cpu|mps|cuda|xpu)(:[0-9]{1,3})?", place):
            raise Unreadable(f"it has numbers that were on {shown(place)}")
    for note in as_notes(notes, "torch._utils._rebuild_tensor_v2"):
        storage, first, shape, strides, learns, hooks = note.args
        count = storage.args[4]
        numbers_of(first, shape, strides, count)
        if math.prod(shape) > count:
            raise Unreadable("it has a tensor with more numbers than it brings along")
        if learns is not False or hooks.items:
            raise Unreadable("it has a tensor that is more than numbers")


# ---- 4. The kind -----------------------------------------------------------------------------


def check_kind(checkpoint):
    """(G, D) on the meta device, which a checkpoint should hold, from its settings.

    Why:    on the meta device a network has names and shapes but no memory. So settings that claim
            a gigantic network are compared with the tensors of the file before one is built.
    Changes: settings without an architecture are given it: before there was StyleGAN2, they had
            none.
    Errors: Unreadable.
    """
    if not isinstance(checkpoint, dict) or type(checkpoint.get("format")) is not int:
        raise Unreadable("a PyTorch file, but not a checkpoint of this program")
    if checkpoint["format"] > FORMAT:
        raise Unreadable(f"format {shown(checkpoint['format'])} is newer than this program, which "
                         f"reads up to {FORMAT}; update it")
    architecture, settings = checkpoint.get("architecture"), checkpoint.get("settings")
    if not isinstance(architecture, str) or architecture not in ("stylegan", "stylegan2"):
        raise Unreadable(f"holds a {shown(architecture)} network, this program reads "
                         f"\"stylegan\" and \"stylegan2\"")
    if not isinstance(settings, dict) or not all(
            is_number(settings.get(key), 1, 2 ** 62, int) for key in models.SETTINGS) or (
            settings["mapping_layers"] > 1000):
        raise Unreadable(f"its settings are incomplete or impossible "
                         f"({', '.join(models.SETTINGS)})")
    if settings.setdefault("architecture", architecture) != architecture:
        raise Unreadable("its settings are of another architecture")
    limit = settings.get("conv_clamp")
    if limit is not None and not (is_number(limit, 0) and limit > 0):
        raise Unreadable("its settings have an impossible conv_clamp")
    if "generator_ema" not in checkpoint:
        raise Unreadable("holds no generator_ema")
    try:
        with torch.device("meta"):
            return models.make_generator(settings), models.make_discriminator(settings)
    except (ValueError, RuntimeError, OverflowError, TypeError) as error:
        raise Unreadable(f"no network has these settings "
                         f"({visible(str(error).splitlines()[0])})") from None


# ---- 5. The tensors --------------------------------------------------------------------------

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Times the size of its file that networks may take, as float32. One stored number may stand for
# many, and one storage for many tensors; of ours, only new blocks are shared, by G and its average
# (convert_resolution.py).
# Proved: tests/test_checkpoints.py::test_one_storage_for_a_whole_network_is_refused
MOST_GROWTH = 4


def check_tensors(checkpoint, G, D, size):
    """Raise Unreadable unless the networks of a file are those of its settings, G and D.

    size:   of the file in bytes.
    Proved: tests/test_checkpoints.py::test_a_bad_checkpoint_gets_one_clear_sentence,
            ::test_weights_that_are_not_finite_are_refused
    """
    claimed = 0
    for part, network in (("generator_ema", G), ("generator", G), ("discriminator", D)):
        if part not in checkpoint:
            continue
        state, wanted = checkpoint[part], network.state_dict()
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise Unreadable(f"its {part} is no state dict")
        for name in sorted(set(wanted) | set(state)):
            if name not in state:
                raise Unreadable(f"its {part} lacks {name}")
            if name not in wanted:
                raise Unreadable(f"its {part} has {shown(name)}, which the network does not")
            check_tensor(f"{part} {name}", state[name], wanted[name].shape)
            claimed += 4 * state[name].numel()
    if claimed > MOST_GROWTH * size:
        raise Unreadable(f"claims networks of {claimed / 1e6:.0f} MB, which cannot be in a file of "
                         f"its size")
    for part, network in (("optimizer_g", G), ("optimizer_d", D)):
        if part in checkpoint and "generator" in checkpoint:
            check_adam(part, checkpoint[part], list(network.parameters()))


def check_tensor(what, tensor, shape, dtypes=FLOATS):
    """Raise Unreadable unless a value is a plain tensor of that shape with finite numbers."""
    if type(tensor) is not torch.Tensor:
        raise Unreadable(f"its {what} is {shown(tensor)}, where a tensor should be")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in dtypes:
        raise Unreadable(f"its {what} is not made of plain numbers")
    if tensor.shape != shape:
        raise Unreadable(f"its {what} is {list(tensor.shape)}, where {list(shape)} is needed")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Unreadable(f"its {what} has fewer numbers than its shape says")
    # The sum tells it without a copy, and 20 times as fast as a look at each: what is not finite
    # makes a sum that is not. So can very large numbers, and then each is looked at.
    if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
        raise Unreadable(f"its {what} has values that are not finite numbers")


# What an Adam of train.py says beside its moments and the number of its parameters.
ADAM = {"lr": lambda x: is_number(x, 0), "eps": lambda x: is_number(x, 0),
        "weight_decay": lambda x: is_number(x, 0),
        "betas": lambda x: isinstance(x, (tuple, list)) and len(x) == 2 and all(
            is_number(beta, 0, 1) and beta < 1 for beta in x)}


def check_adam(part, state, parameters):
    """Raise Unreadable unless `state` is that of an Adam as train.py makes it for `parameters`."""
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict) or (
            not isinstance(state.get("state"), dict)):
        raise Unreadable(f"its {part} is not the state of an Adam")
    numbers, moments = groups[0].get("params"), state["state"]
    if not isinstance(numbers, list) or len(numbers) != len(parameters) or any(
            type(n) is not int or n != k for k, n in enumerate(numbers)):
        raise Unreadable(f"its {part} is that of another network")
    for key, value in groups[0].items():
        # What is no number is a switch; none that changes how Adam works is ever on.
        if key in ADAM and not ADAM[key](value) or key not in (*ADAM, "params") and not (
                value is None or value is False or value is True and key in ("fused", "foreach")):
            raise Unreadable(f"its {part} has {shown(key)} = {shown(value)}, which is impossible")
    if not set(ADAM) <= set(groups[0]):
        raise Unreadable(f"its {part} lacks {min(set(ADAM) - set(groups[0]))}")
    for number, moment in moments.items():
        if not is_number(number, 0, len(parameters) - 1, int) or not isinstance(moment, dict) or (
                set(moment) != {"step", "exp_avg", "exp_avg_sq"}):
            raise Unreadable(f"its {part} has {shown(number)}, which is no parameter with moments")
        for key in ("exp_avg", "exp_avg_sq"):
            check_tensor(f"{part} {number} {key}", moment[key], parameters[number].shape)
        step = moment["step"]
        if isinstance(step, torch.Tensor):
            check_tensor(f"{part} {number} step", step, ())
            step = step.item()
        if not is_number(step, 0) or moment["exp_avg_sq"].flatten().amin() < 0:
            raise Unreadable(f"its {part} {number} has moments that no Adam has")


# ---- 6. The words ----------------------------------------------------------------------------
#
# OPTIONS and PROGRESS say what is possible, word by word. All numbers are bounded, so that whoever
# adds and multiplies them gets numbers.


def is_number(value, low, high=1e12, kind=(int, float)):
    """Is it an int or a float (kind int: an int) from low to high? True and False are neither."""
    return type(value) in (kind if isinstance(kind, tuple) else (kind,)) and low <= value <= high


def is_text(value, pattern=r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]*"):
    """Is it a text, of at most 4096 letters, that fits? As a rule, without escape codes."""
    return type(value) is str and len(value) <= 4096 and re.fullmatch(pattern, value) is not None


def is_table(value, kind, low):
    """Is it a number for every resolution, as options.py writes it: "32" or "4:128,8:64"?"""
    if not is_text(value, r"[0-9.:,e+-]+"):
        return False
    parts = [part.split(":") for part in value.split(",")]
    try:
        return (len(parts) == 1 or {*map(len, parts)} == {2}) and all(
            is_number(kind(part[-1]), low) and int(part[0] if len(part) == 2 else 4) > 0
            and len(part) < 3 for part in parts)
    except ValueError:
        return False


def whole(low, high=2 ** 62):
    return lambda value: is_number(value, low, high, int)


def number(low, high=1e12):
    return lambda value: is_number(value, low, high)


def table(kind, low):
    return lambda value: is_table(value, kind, low)


def one_of(*values):
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def none_or(sound):
    return lambda value: value is None or sound(value)


def is_plain(value):
    return value is None or type(value) is bool or is_number(value, -1e12) or is_text(value)


def anything(value):
    return True


yes_or_no = one_of(True, False)
path_or_none = none_or(lambda value: is_text(value, r"(?s).*"))    # followed in its own run only

OPTIONS = {
    "architecture": one_of("stylegan", "stylegan2"), "growth": one_of("fade", "morph"),
    "precision": one_of("fp32", "tf32", "bf16", "fp16"), "data": path_or_none,
    "cache": path_or_none, "evaluate_metrics": is_text, "evaluate_features": is_text,
    **dict.fromkeys(("batch", "accumulate"), table(int, 1)),
    **dict.fromkeys(("learning_rate", "fade_kimg", "morph_kimg", "stabilize_kimg"),
                    table(float, 0)),
    "r1_gamma": none_or(table(float, 0)),              # None: imported
    **dict.fromkeys(("resolution", "initial_resolution"), whole(4)),
    **dict.fromkeys(models.SETTINGS[1:], whole(1)),
    **dict.fromkeys(("r1_interval", "path_interval", "evaluate_images"), whole(1)),
    **dict.fromkeys(("seed",), whole(0)), "workers": whole(0, 1024),
    "styles_to_mix": whole(1, 1000), "mixing_probability": number(0, 1),
    "timeout_minutes": number(0.05, 1e6),
    **dict.fromkeys(("path_weight", "max_bad", "total_kimg", "ema_halflife_kimg", "tick_kimg",
                     "samples_kimg", "checkpoint_kimg"), number(0)),
    "evaluate_kimg": none_or(number(0)), "freeze_d": none_or(whole(4)),
    "augment": lambda value: value in ("off", "adaptive") or is_number(value, 0, 1, float),
    **dict.fromkeys(("no_flip", "allow_upsampling", "compile"), yes_or_no)}
PROGRESS = {
    **dict.fromkeys(("nimg", "step", "steps_since_tick", "pictures_since"), whole(0, 10 ** 15)),
    "resolution": none_or(whole(4)), "alpha": number(0, 1),
    "phase": one_of("stabilize", "fade", "morph"),
    **dict.fromkeys(("collapsed", "by_heart"), yes_or_no), "augment_strength": number(0, 1),
    "pictures": none_or(is_text),
    "split": none_or(lambda split: isinstance(split, dict) and all(
        is_number(split.get(key), 0, 2 ** 62, int) for key in ("seed", "images")))}
# Without these a run cannot go on. What is not listed came later, and is given a value.
NEEDED = {"options": {*models.SETTINGS, "initial_resolution", "batch", "learning_rate", "r1_gamma",
                      "fade_kimg", "stabilize_kimg", "total_kimg", "ema_halflife_kimg",
                      "tick_kimg", "samples_kimg", "checkpoint_kimg", "workers"},
          "progress": {"nimg", "step", "steps_since_tick", "resolution", "alpha", "phase", "sums"},
          "samples": {"z", "style_index", "columns"}}


def check_words(checkpoint):
    """Raise Unreadable unless all that a checkpoint says about its run is possible.

    Why:    what a program finds out later it finds out in the middle, in words of its own, and
            without the name of the file.
    Proved: tests/test_checkpoints.py::test_words_that_cannot_be_are_refused
    """
    settings = checkpoint["settings"]
    for part in [part for part in NEEDED if part in checkpoint]:
        if not isinstance(checkpoint[part], dict):
            raise Unreadable(f"its {part} are no names and values")
        missing = NEEDED[part] - set(checkpoint[part]) if resumable(checkpoint) else ()
        if missing:
            raise Unreadable(f"what it says about its run is incomplete ({part} without "
                             f"{min(missing)})")
    for part, sound in (("options", OPTIONS), ("progress", PROGRESS)):
        for key, value in checkpoint.get(part, {}).items():
            if not is_text(key) or not sound.get(key, is_plain if part == "options" else
                                                 anything)(value):
                raise Unreadable(f"says {shown(key)} = {shown(value)} in its {part}, which is "
                                 f"impossible")
    run, progress = checkpoint.get("options", {}), checkpoint.get("progress")
    for key in ("architecture", *models.SETTINGS):
        if key in run and run[key] != settings[key]:
            raise Unreadable(f"its options say {key} = {run[key]}, its settings {settings[key]}")
    if progress is not None:
        resolution, alpha = where_it_stands(checkpoint)
        levels = models.resolutions_up_to(settings["resolution"])
        grows = settings["architecture"] == "stylegan"
        if resolution not in levels or alpha is None or not grows and (
                (resolution, alpha) != (levels[-1], 1) or progress.get("phase") == "morph"):
            raise Unreadable("its progress names no resolution and alpha that this network has")
        if run.get("initial_resolution", 4) not in levels:
            raise Unreadable("its options begin at a resolution that this network has not")
        if progress.get("split") and "pictures" not in progress:
            raise Unreadable("its progress has a split of no pictures")
        if "sums" in progress:                         # a number for each of LOGGED in run.py
            length = len(progress["sums"]) if isinstance(progress["sums"], torch.Tensor) and (
                progress["sums"].dim() == 1) else 0
            check_tensor("progress sums", progress["sums"], (min(length, 10),))
    if "samples" in checkpoint:
        check_samples(checkpoint["samples"], settings)


def check_samples(samples, settings):
    """Raise Unreadable unless it is a sample grid as train.py draws it: `new_samples` in run.py."""
    z, rows, columns = (samples.get(key) for key in ("z", "style_index", "columns"))
    shape = tuple(z.shape) if isinstance(z, torch.Tensor) else ()
    images, styles = shape[:2] if len(shape) == 3 else (0, 0)
    if not (0 < images <= 1000 and 0 < styles <= 1000 and is_number(columns, 1, images, int)):
        raise Unreadable("its samples are no grid")
    check_tensor("samples z", z, (images, styles, settings["latent_dim"]))
    check_tensor("samples style_index", rows,
                 (images, models.num_style_layers(settings["resolution"])), (torch.int64,))
    if rows.amin() < 0 or rows.amax() >= styles:
        raise Unreadable("its samples mix styles that are not there")


def where_it_stands(checkpoint):
    """(resolution, alpha) to call the networks with, as far as its words say.

    A file without progress (imported, converted) holds finished networks.
    """
    final, progress = checkpoint["settings"]["resolution"], checkpoint.get("progress")
    if progress is None:
        return final, 1.0
    resolution, alpha = progress.get("resolution", 0), progress.get("alpha")
    if resolution is None:                             # a run that was kept before its first step
        resolution = checkpoint.get("options", {}).get("initial_resolution")
    return resolution, alpha


# ---- 7. Networks of a checkpoint -------------------------------------------------------------


def resumable(checkpoint):
    """Does it hold a run that train.py can go on with, and not only networks to look at?"""
    return all(key in checkpoint for key in TO_RESUME)


def in_its_own_run(path, checkpoint):
    """Does the checkpoint lie in the folder of the run that wrote it? Its settings.json knows.

    Paths in a checkpoint are a stranger's words: a copied file could name any folder of this
    computer, or a program. They are followed only here.
    Proved: tests/test_evaluate.py::test_paths_in_a_checkpoint_count_only_in_its_own_run
    """
    run, wrote = checkpoint.get("options", {}), _settings_beside(path)
    return bool(wrote) and all(wrote.get(key) == run.get(key) for key in (
        "data", "evaluate_features"))


def own_cache(path, checkpoint):
    """Where the run that wrote the checkpoint has its packed pictures now, or None if that is not
    known. A run may have moved to another cache since: settings.json says it, not the checkpoint.

    Proved: tests/test_evaluate.py::test_paths_in_a_checkpoint_count_only_in_its_own_run
    """
    cache = _settings_beside(path).get("cache") if in_its_own_run(path, checkpoint) else None
    return cache if is_text(cache) else None


def _settings_beside(path):
    """The options in settings.json beside a checkpoint; {} if there are none."""
    try:
        wrote = json.loads((path.parent / "settings.json").read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return wrote if isinstance(wrote, dict) else {}


class Loaded(NamedTuple):
    """Networks of a checkpoint, and how they stood when it was written.

    networks:   {"generator_ema": G_ema, ...}, what was asked for and is there.
    resolution, alpha: what to call them with.
    checkpoint: the dict, as `load_checkpoint` returns it.
    """
    networks: dict
    resolution: int
    alpha: float
    checkpoint: dict


def load_networks(path, device="cpu", parts=("generator_ema",)):
    """Read a checkpoint and build networks from it, ready to be called but not to learn.

    Use `morph.load_networks`, which also knows of blocks in the middle of morphing.
    parts:  of "generator_ema", "generator", "discriminator"; what the file lacks is left out.
    Errors: CheckpointError as `load_checkpoint`.
    Proved: tests/test_checkpoints.py::test_a_checkpoint_gives_the_same_pictures_again
    """
    checkpoint, networks = load_checkpoint(path), {}
    for part in parts:
        if part in checkpoint:
            make = models.make_discriminator if part == "discriminator" else models.make_generator
            networks[part] = make(checkpoint["settings"])
            networks[part].load_state_dict(checkpoint[part])
            networks[part].eval().requires_grad_(False)
            machine.place(networks[part], torch.device(device))
    resolution, alpha = where_it_stands(checkpoint)
    return Loaded(networks, resolution, float(alpha), checkpoint)
