"""measuring.py: what is put around a measurement, and what it is judged by.   (workshop)

Used by: evaluate.py.
Needs:   torch, numpy, Pillow. Importing this file reads no file, no argv, no clock.

  1. around it        so that it disturbs no training, and a line says all that a number depends on
  2. which pictures   those of the run, or --data; and which of them training never saw
  3. their features   computed once, then kept
  4. no network       what anything else has drawn, in the place of a checkpoint
"""

import contextlib
import copy
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import sys
import traceback

import numpy as np
import torch

import stylegan_dataloader as data
from workshop import UserError, machine, pictures
from workshop.checkpoints import Loaded, in_its_own_run, own_cache
from workshop.features import compute_features, reason_of

# ---- 1. Around it ----------------------------------------------------------------------------


@contextlib.contextmanager
def on_its_own(seed, device):
    """Within the block torch draws from `seed` and computes in float32; afterwards it goes on as if
    nothing had been.

    Why:    training must end with the same bits whether it was measured on the way or not. And no
            number may depend on --precision: in TF32 a tiny step of PPL is mostly rounding.
    Proved: tests/test_evaluate.py::test_all_is_measured_in_float32_and_all_is_put_back
    """
    accelerator = getattr(torch, device.type) if device.type != "cpu" else None
    kept = torch.get_rng_state(), accelerator and accelerator.get_rng_state()
    try:
        with machine.in_float32():
            torch.manual_seed(seed)                            # of the accelerator, too
            yield
    finally:
        torch.set_rng_state(kept[0])
        if accelerator:
            accelerator.set_rng_state(kept[1])


def frozen_copy(player):
    """A deep copy that does not learn, keeps its w_avg, and computes in float32.

    The hooks by which a run computes in bfloat16 or compiles (workshop/machine.py) are dropped. A
    limit of the features stays: it is a part of the network (`clamp_features`, stylegan_models.py).
    Proved:  tests/test_evaluate.py::test_the_gap_is_that_of_the_float32_networks,
             ::test_a_network_with_a_limit_is_measured_with_it
    """
    player = copy.deepcopy(player).eval().requires_grad_(False)
    for module in player.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook.__module__ == machine.__name__]:
                del hooks[key]
    return player


def guarded(measure_group, groups, resolution, alpha, grown, nimg, folder):
    """Yield the records of measure_group(group, resolution, alpha), for each group of metrics.

    WHATEVER goes wrong in one is a line on stderr and a file with the traceback in `folder`, and
    the next has its turn: a run of days should not end because of a measurement.
    alpha:   what the networks are called with. grown: how far the newest block has come.
    Proved:  tests/test_evaluate.py::test_whatever_goes_wrong_training_goes_on_with_the_same_bits
    """
    for group in groups:
        records = []
        try:
            records = measure_group(group, resolution, alpha)
        except Exception as error:
            with contextlib.suppress(Exception):               # nor may saying so end the run
                print(f"note: {', '.join(group)} not measured at {nimg / 1000:g} kimg: "
                      f"{reason_of(error)}", file=sys.stderr)
            with contextlib.suppress(Exception):
                with open(folder / f"measure-error-{nimg}.txt", "a", encoding="utf-8",
                          errors="backslashreplace") as file:
                    file.write(traceback.format_exc())
        for record in records:
            yield {**record, "nimg": nimg, "alpha": grown}


def about_pictures(dataset, allow_upsampling):
    """Of the real pictures: where, which, and how they were shown; of none, nothing."""
    if dataset is None:
        return {}
    path = dataset.source.path
    return {"data": path if dataset.source.kind == "painted" else os.path.abspath(path),
            "pictures": dataset.source.stamp[:16], "flip": dataset.flip,
            "allow_upsampling": allow_upsampling}


def about_machine(device):
    """Of the machine: the last digits depend on it."""
    versions = {}
    for package in ("torch", "torchvision", "numpy", "Pillow", "torch-fidelity"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"device": device.type, "tf32": False, **versions}


# ---- 2. Which pictures -----------------------------------------------------------------------

UNSEEN_FACES = 2000


def find_reals(path, checkpoint, resolution, seed, wanted, typed, cache):
    """{"all": dataset, "adversary": ..., "test": ...}, packed: those of them that are `wanted`.

    path:   of the checkpoint. typed: the options --data, --no-flip, --allow-upsampling as typed.
    How:    all refusals that need no packed pictures come first. Of painted faces there are always
            more: a run that held none out gets 2000 that it never saw.
    Errors: UserError, DataError, OSError.
    """
    run, progress = checkpoint.get("options", {}), checkpoint.get("progress", {})
    source, reals = find_source(path, checkpoint, typed.data), {}
    unseen = source
    if source.kind == "painted" and not progress.get("split"):
        first = pictures.PAINTED_FACES
        unseen = pictures.painted_faces(range(first, first + UNSEEN_FACES))
    if "test" in wanted and not progress.get("split") and unseen.stamp == progress.get("pictures"):
        raise UserError(TRAINED_ON_ALL)

    def packed(source):
        folder = pictures.pack_pictures(
            source, checkpoint["settings"]["resolution"], cache, machine.cores(),
            run.get("max_bad", 1.0), upsampled(typed, run), progress=machine.progress_bar)
        return folder, functools.partial(data.PictureDataset, folder, source, resolution, seed,
                                         not (typed.no_flip or run.get("no_flip")))

    if "all" in wanted:
        reals["all"] = packed(source)[1]()
    if "test" in wanted:
        folder, make = packed(unseen)
        *parts, which = find_parts(checkpoint, len(make()), unseen,
                                   pictures.contents_of(folder), typed.data is not None)
        reals["adversary"], reals["test"] = (make(only=part) for part in parts)
        if which:                              # else what the run held out
            reals["test"].unseen = which
            print(f"note: for pictures that training never saw are taken {which}", file=sys.stderr)
    return reals


def upsampled(typed, run):
    """Are pictures enlarged that are smaller than the network's? As typed, or as in the run."""
    return typed.allow_upsampling or bool(run.get("allow_upsampling"))


def find_source(path, checkpoint, typed=None):
    """The real pictures: --data, or those of the run.   Errors: UserError, DataError.

    "data": None in the options means the painted faces if train.py wrote it, which also leaves the
    stamp of its pictures. What was imported has no pictures, and none are made up for it.
    Proved: tests/test_evaluate.py::test_an_imported_network_has_no_pictures
    """
    run, stamp = checkpoint.get("options", {}), checkpoint.get("progress", {}).get("pictures")
    if typed == "":
        raise UserError("--data: an empty path")
    if typed is not None:
        return pictures.find_pictures(typed)
    if "data" not in run or stamp is None:
        raise UserError(f"{path}: does not say which pictures it was trained with; name some with "
                        f"--data")
    if run["data"] is not None and not in_its_own_run(path, checkpoint):
        raise UserError(f"{path}: names the pictures {run['data']!r}, and no settings.json beside "
                        f"it says the same; name them with --data")
    return pictures.find_pictures(run["data"])


TRAINED_ON_ALL = (
    "duality_gap: this run was trained on all of these pictures, and the gap has to be measured on "
    "others: --data another folder, which is cut in two, or train with --evaluate-kimg, which "
    "holds two tenths out")


def find_parts(checkpoint, n, source, contents, named=True):
    """Which pictures did training never see? Returns (adversary, test, in words): places among the
    n packed pictures of the source; "" for those that the run held out.

    contents: `pictures.contents_of`; named: with --data.

    A run with --evaluate-kimg held two tenths out. Of other pictures, those whose content training
    has seen are left out, whatever their names; the rest is cut in two.
    Errors: UserError if there are none, or nobody knows.
    Proved: tests/test_evaluate.py::test_unseen_pictures_are_found_or_asked_for,
            ::test_no_picture_that_was_trained_on_is_taken_for_unseen
    """
    progress = checkpoint.get("progress", {})
    split, known = progress.get("split"), pictures.known_contents(progress)
    if pictures.same_pictures({"pictures": None, **progress}, source, contents):
        if split is None:
            raise UserError(TRAINED_ON_ALL)
        if split["images"] != n:
            raise UserError(f"duality_gap: of these pictures {n} are usable, and when they were "
                            f"split {split['images']} were, so nobody knows which were held out")
        parts = pictures.parts_of(split, contents)
        return parts["adversary"], parts["test"], ""
    places, seen = np.arange(n), 0
    if known is not None and contents is not None:
        if split:
            known = known[pictures.parts_of({**split, "images": len(known)}, known)["training"]]
        places = np.flatnonzero(~np.isin(contents.numpy(), known.numpy()))
        seen = n - len(places)
        if not len(places):
            raise UserError(TRAINED_ON_ALL)
    elif not named and source.kind != "painted":
        raise UserError(f"duality_gap: the pictures of {source.path} have changed, or were copied, "
                        f"since an earlier version of this program trained on some of them, and "
                        f"nobody knows on which; name others with --data")
    mixed = places[np.random.default_rng([0, len(places)]).permutation(len(places))]
    half = len(mixed) // 2
    return mixed[:half], mixed[half:], f"{len(mixed)} of {source.path}" + (
        f" (the other {seen} of {n} were trained on)" if seen else "")


# ---- 3. Their features -----------------------------------------------------------------------


def real_images(dataset, n, batch, device, alpha=1.0):
    """Yield the first n samples of a dataset, so each picture at most once, in batches.

    While a block fades in, so do the reals, as D saw them in training: the fakes cannot be sharper.
    Proved: tests/test_evaluate.py::test_reals_are_faded_while_the_network_is
    """
    for start in range(0, n, batch):
        pixels = dataset.__getitems__(range(start, min(start + batch, n)))
        yield data.fade_reals(data.to_images(pixels, device), alpha)


def real_features(features, dataset, n, batch, device, alpha, cache):
    """Features [n, F] of the real pictures, from the cache if they have been computed before.

    How:    the file's name ends in a fingerprint of the pictures, the network and all options that
            matter, so that another question never gets an old answer. It is renamed to this name
            when it is whole. Faded reals are not kept: at the next measurement alpha is another.
    [MACHINE] 4 n F bytes on the disk: 400 MB for 50,000 pictures and Inception.
    Proved: tests/test_evaluate.py::test_real_features_are_cached_by_content_and_options
    """
    # (The folder: it is named by how large it was packed. 16 px made of 64 are not those of 32.)
    question = [2, os.path.basename(dataset.folder), dataset.source.stamp,
                dataset.numbers.tolist(), dataset.resolution, n, dataset.seed, dataset.flip,
                features.describe, device.type]
    fingerprint = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:12]
    path = pathlib.Path(cache) / f"features-{dataset.resolution}px-{n}-{fingerprint}.npy"
    if alpha == 1:
        # A file that is missing or damaged is made anew.
        with contextlib.suppress(OSError, ValueError, EOFError):
            points = torch.from_numpy(np.load(path))           # without pickles, by default
            if points.dim() == 2 and len(points) == n and points.isfinite().all():
                return points
    points = compute_features(features, real_images(dataset, n, batch, device, alpha),
                              math.ceil(n / batch), "real")
    if alpha == 1:
        from workshop.figures import written                   # needs torchvision, slow to import
        try:
            with written(path) as temporary:
                np.save(temporary, points.numpy())
        except OSError as error:                               # they are computed again next time
            with contextlib.suppress(OSError):                 # stderr may be on the same disk
                print(f"note: {path} cannot be written ({error.strerror})", file=sys.stderr)
    return points


# ---- 4. No network ---------------------------------------------------------------------------


def checkpoints_in(folder):
    """The .pt files in a folder, the older ones first.   Errors: UserError if there are none."""
    paths = sorted(folder.glob("*.pt"), key=lambda path: (path.stat().st_mtime, path.name))
    if not paths:
        raise UserError(f"{folder}: no folder with checkpoints (*.pt), and --all asks for them")
    return paths


def holds_pictures(path):
    """Is it a .zip, or a folder that is no run?"""
    return path.suffix.lower() == ".zip" or path.is_dir() and not (
        any((path / name).exists() for name in ("settings.json", "log.jsonl"))
        or any(path.glob("*.pt")))


class Drawn(torch.nn.Module):
    """Pictures in the place of G: for each z the next one of a dataset, each once.

    Why:    all that compares clouds of features asks G for pictures and for nothing else. So what
            another program has drawn, or one half of a set, is measured as a network is.
    Proved: tests/test_evaluate.py::test_pictures_are_measured_as_the_network_that_drew_them
    """
    latent_dim = 1

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.shown = dataset, 0

    def forward(self, z, **how):
        samples = range(self.shown, self.shown + len(z))
        self.shown += len(z)
        return data.to_images(self.dataset.__getitems__(samples), z.device)


def drawn_pictures(path, metrics, typed):
    """Pictures in the place of a checkpoint (`Loaded`), as large as the first readable one allows.

    Errors: UserError for what only a network has, and without --data; DataError.
    """
    network_only = set(metrics) & {"duality_gap", "ppl"}
    if network_only or typed.psi != 1:
        raise UserError(f"{path}: pictures, and {min(network_only, default='--psi')} needs a "
                        f"network")
    if typed.data is None:
        raise UserError(f"{path}: pictures, to be compared with others; name those with --data")
    source = pictures.find_pictures(path)
    side = next((side for _, side, _ in map(functools.partial(pictures.shorter_side, source),
                                            range(len(source.names))) if side >= 4), 4)
    resolution = min(2 ** int(math.log2(side)), 1024)
    folder = pictures.pack_pictures(source, resolution, typed.cache or "cache", machine.cores(),
                                    progress=machine.progress_bar)
    dataset = data.PictureDataset(folder, source, resolution, typed.seed, flip=False)
    return Loaded({"generator_ema": Drawn(dataset)}, resolution, 1.0, {
        "settings": {"resolution": resolution}, "drawn": len(dataset), "stamp": source.stamp[:16]})
