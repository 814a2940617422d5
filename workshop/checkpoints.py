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

It is read with weights_only=True, always. A PyTorch file is a zip that holds a pickle, and a pickle
is a program: loading a stranger's file the old way runs it. weights_only admits tensors and plain
containers and refuses everything else.
"""

import math
import os
import pathlib
import zipfile
from typing import NamedTuple

import torch

import stylegan_models as models
from workshop import UserError, machine

FORMAT = 1

# What a checkpoint must hold beside generator_ema for a run to go on from it.
TO_RESUME = ("generator", "discriminator", "optimizer_g", "optimizer_d", "progress", "options",
             "samples")


class CheckpointError(UserError):
    """A checkpoint that cannot be used. The message is one sentence, file name and reason."""


def save_checkpoint(path, checkpoint):
    """Write the dict so that `path` holds either the old file or the whole new one, never a part.

    How:    to a temporary name beside it, flushed to the disk, then renamed, which is atomic.
    Errors: OSError (disk full, no permission); the old file is then untouched.
    Proved: tests/test_checkpoints.py::test_a_failed_save_leaves_the_old_checkpoint_whole,
            ::test_a_full_disk_is_an_oserror
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            try:
                architecture = checkpoint["settings"].get("architecture", "stylegan")
                torch.save({"format": FORMAT, "architecture": architecture, **checkpoint}, file)
            except RuntimeError as error:                      # what torch makes of a full disk
                reason = str(error).splitlines()[0]
                raise OSError(f"{path}: cannot be written; full disk? ({reason})") from error
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
    Proved: tests/test_checkpoints.py::test_a_bad_checkpoint_gets_one_clear_sentence
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
    architecture, settings = checkpoint.get("architecture"), checkpoint.get("settings")
    if architecture not in ("stylegan", "stylegan2"):
        raise CheckpointError(f"{path}: holds a {architecture!r} network, this program reads "
                              f"\"stylegan\" and \"stylegan2\"")
    if not isinstance(settings, dict) or any(
            not isinstance(settings.get(key), int) or settings[key] < 1
            for key in models.SETTINGS) or settings["mapping_layers"] > 1000:
        raise CheckpointError(f"{path}: its settings are incomplete or impossible "
                              f"({', '.join(models.SETTINGS)})")
    # Before there was StyleGAN2, settings did not name the architecture.
    if settings.setdefault("architecture", architecture) != architecture:
        raise CheckpointError(f"{path}: its settings are of another architecture")
    limit = settings.get("conv_clamp")
    if limit is not None and not (type(limit) in (int, float) and 0 < limit < math.inf):
        raise CheckpointError(f"{path}: its settings have an impossible conv_clamp")
    if "generator_ema" not in checkpoint:
        raise CheckpointError(f"{path}: holds no generator_ema")
    # On the meta device a network has names and shapes but no memory. So settings that claim a
    # gigantic network are compared with the tensors of the file before one is built.
    try:
        with torch.device("meta"):
            generator, discriminator = (models.make_generator(settings),
                                        models.make_discriminator(settings))
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
        tensor = state[name]
        if shape == wanted[name].shape and (
                tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()):
            raise CheckpointError(f"{path}: {part} {name} has fewer numbers than its shape says")
        if shape != wanted[name].shape:
            raise CheckpointError(f"{path}: {part} {name} is {shape and list(shape)}, "
                                  f"its settings ask for {list(wanted[name].shape)}")


def resumable(checkpoint):
    """Does it hold a run that train.py can go on with, and not only networks to look at?"""
    return all(key in checkpoint for key in TO_RESUME)


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
    Errors: CheckpointError as `load_checkpoint`, and if its progress names no resolution and alpha
            that the network has. A file without progress (imported, converted) is a finished one.
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
    final = checkpoint["settings"]["resolution"]
    progress = checkpoint.get("progress", {"resolution": final, "alpha": 1.0})
    try:
        resolution, alpha = progress["resolution"], float(progress["alpha"])
        if resolution is None:                         # a run that was kept before its first step
            resolution = checkpoint["options"]["initial_resolution"]
        if resolution not in models.resolutions_up_to(final) or not 0 <= alpha <= 1:
            raise ValueError
        if checkpoint["architecture"] == "stylegan2" and (          # which does not grow
                (resolution, alpha) != (final, 1) or progress.get("phase", "") == "morph"):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: its progress names no resolution and alpha that this "
                              f"network has") from None
    return Loaded(networks, resolution, alpha, checkpoint)
