"""pictures.py: find pictures, read them, and pack them for training.   (workshop)

Used by: stylegan_dataloader.py, evaluate.py, project.py.
Needs:   torch, numpy, Pillow. Importing this file reads no file, no argv, no clock.
Letters: R rows = columns of pixels.

  1. finding and reading  a folder or a .zip; each picture becomes a square RGB one of R pixels
  2. the packed cache     each picture is read once, then lies ready at every resolution
  3. held-out pictures    those that training never sees, for the duality gap
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import tempfile
import time
import zipfile
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from workshop import UserError
from workshop.painted_faces import PAINTED_FACES, paint_face

# Of a folder or .zip, files with these suffixes are pictures; what else lies there is left alone.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# What Pillow may take a file for, whatever its suffix says. Its other forty parsers stay closed: a
# "photo.jpg" that is PostScript would start Ghostscript.
# Proved: tests/test_pictures.py::test_a_photo_that_is_postscript_starts_nothing
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


class DataError(UserError):
    """The pictures cannot be used as they are. The message is one sentence for the user."""


# ---- 1. Finding and reading ------------------------------------------------------------------


class Source(NamedTuple):
    """Where the pictures are: kind "folder", "zip" or "painted", its path, their names, sorted.

    `stamp` changes when the pictures do: it is made of names, sizes and times of change.
    """
    kind: str
    path: str
    names: list
    stamp: str


def find_pictures(path):
    """List the pictures under a folder, at any depth, or in a .zip; None: the painted faces.

    Errors: DataError if the path is missing, neither a folder nor a zip, or holds no picture.
    Proved: tests/test_pictures.py::test_wrong_paths_get_one_clear_sentence
    """
    if path is None:
        return painted_faces(range(PAINTED_FACES))
    path = pathlib.Path(path)
    _open_zip.cache_clear()                                    # it may be another file by now
    if path.is_dir():
        files = [p for p in path.rglob("*") if _is_picture(p.relative_to(path)) and p.is_file()]
        names = sorted(p.relative_to(path).as_posix() for p in files)
        stats = [(path / name).stat() for name in names]
        stamp = _digest([(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats)])
        source = Source("folder", str(path), names, stamp)
    elif path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if _is_picture(pathlib.Path(m.filename))]
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: a damaged .zip ({error})") from None
        members = sorted(members, key=lambda m: m.filename)
        stamp = _digest([(m.filename, m.file_size, m.CRC) for m in members])
        source = Source("zip", str(path), [m.filename for m in members], stamp)
    elif path.is_file():
        raise DataError(f"{path}: a file that is no .zip; give a folder of pictures, or a .zip")
    else:
        raise DataError(f"{path}: no such folder or .zip")
    if not source.names:
        raise DataError(f"{path}: no pictures in it ({', '.join(SUFFIXES)}; folders are searched)")
    return source


def painted_faces(numbers):
    """The faces of a range of numbers as a source. Beyond PAINTED_FACES lie faces never trained on.

    Proved: tests/test_pictures.py::test_there_are_always_more_painted_faces
    """
    # Some faces are the stamp: whoever changes the painter gets a new cache.
    first = [paint_face(number, 64).tobytes().hex() for number in numbers[:16]]
    name = "faces"
    if numbers != range(PAINTED_FACES):
        name = f"faces-{numbers.start}-{numbers.stop - 1}"
    return Source("painted", name, [str(number) for number in numbers], _digest(first))


def _is_picture(relative):
    # Names that begin with a dot, and __MACOSX, are what macOS leaves behind: "._photo.jpg" is
    # 4 KB of icon, not a photo.
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in relative.parts)
    return relative.suffix.lower() in SUFFIXES and not hidden


def _digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _open_zip(path, process_id):
    # One open archive per process: processes that share an open file also share its position in
    # the file, and would read each other's bytes.
    return zipfile.ZipFile(path)


def open_picture(source, number):
    """Picture `number` of the source, opened (its size is known) but perhaps not yet decoded."""
    name = source.names[number]
    if source.kind == "zip":
        file = io.BytesIO(_open_zip(source.path, os.getpid()).read(name))
    else:
        file = os.path.join(source.path, name)
    return Image.open(file, formats=FORMATS)


def to_rgb(image):
    """Any Pillow image to 8-bit RGB, turned as its EXIF data says, transparency over white.

    Why:    Pillow's own convert("RGB") would clip 16-bit pictures to white and let the hidden
            colours of transparent pixels show. Colour profiles are not applied.
    Proved: tests/test_pictures.py::test_every_mode_becomes_the_right_rgb
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):                 # 16 bits of grey
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":                                    # floats: 0..1, or else 0..255
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max() <= 1 else values
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_picture(source, number, resolution):
    """Picture `number`, its central square, as uint8 [R, R, 3]. Errors: whatever Pillow raises."""
    if source.kind == "painted":
        return np.asarray(paint_face(int(source.names[number]), resolution))
    image = open_picture(source, number)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the time. At twice the
    # resolution or more, so that the antialiasing below still decides what the picture looks like.
    image.draft(None, (2 * resolution, 2 * resolution))
    image = to_rgb(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Pillow widens a filter as it shrinks a picture, so that every pixel counts. (Looking up a few
    # pixels around each new one, as torch's interpolate does by default, would skip most of a large
    # photo and turn fine texture into false patterns.)
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS,
                         box=(left, top, left + side, top + side))
    return np.asarray(image)


def halve(pixels):
    """float [R, R, 3] -> [R/2, R/2, 3], the mean of every 2x2 pixels.

    The same filter that the networks use to go down (`F.avg_pool2d`), so that a picture from the
    packed cache at R/2 is what a picture at R becomes when it is faded (`fade_reals`), but for the
    rounding to bytes.
    Proved: tests/test_pictures.py::test_the_levels_are_what_the_networks_would_make_of_them
    """
    r = pixels.shape[0] // 2
    return pixels.reshape(r, 2, r, 2, 3).mean(axis=(1, 3))


# ---- 2. The packed cache ---------------------------------------------------------------------
#
# Decoding a large photograph takes longer than training at low resolutions can wait. So every
# picture is decoded once, and each of its resolutions is written to a file of its own, 4.npy,
# 8.npy, ..., an array [n, R, R, 3] of uint8 that later runs map into memory: the operating system
# then reads what is used, keeps what is used often, and all loader processes share it.
#
# [MACHINE] Disk: n * 4 * R^2 bytes, 2.6 GB per 10,000 pictures at 256 px, 42 GB at 1024 px (FFHQ,
#           70,000 at 1024 px: 294 GB). If the largest level does not fit, it is left out and the
#           originals are decoded while training, which needs cores: --workers. --cache elsewhere.


def pack_pictures(source, resolution, cache="cache", workers=1, max_bad=1.0,
                  allow_upsampling=False, report=print, progress=None, free_bytes=None):
    """Make, or find, the packed cache of a source up to `resolution`. Returns its folder.

    max_bad          percent of damaged pictures that is tolerated.
    allow_upsampling use pictures smaller than the resolution, enlarged; else they are left out.
    report           is called with lines for the user.
    progress         makes a progress bar, as tqdm: progress(total=, desc=), or None.
    free_bytes       of the disk; None: ask it.

    How:    everything is written to a folder of another name, which is renamed when it is
            complete; so a folder with the right name is a whole cache. The name ends in a
            fingerprint of the pictures and options: when these change, another cache is made. The
            old one is left, since a run may be using it, and named as one that can be deleted.
    Errors: DataError: no room on the disk, too many damaged pictures, none left.
    Proved: tests/test_pictures.py::test_the_cache_is_rebuilt_when_files_or_options_change,
            ::test_an_interrupted_cache_is_built_again, ::test_the_disk_is_checked_before_writing
    """
    cache = pathlib.Path(cache)
    where = source.path if source.kind == "painted" else str(pathlib.Path(source.path).resolve())
    stem = pathlib.Path(where).stem or "pictures"
    fingerprint = _digest([1, where, source.stamp, resolution, allow_upsampling])
    folder = cache / f"{stem}-{resolution}px-{fingerprint[:12]}"

    index = _read_index(folder)
    if index is None:
        for other in cache.glob(f"*-{resolution}px-*"):
            if (_read_index(other) or {}).get("source") == where:
                report(f"the pictures or options have changed since {other} was packed; it can be "
                       f"deleted if no run uses it")
        _build(source, where, resolution, folder, workers, allow_upsampling, report, progress,
               free_bytes)
        index = _read_index(folder)

    total, bad, small = len(source.names), index["damaged"], index["small"]
    if small:
        shown = ", ".join(name for name, _ in small[:3]) + (", ..." if len(small) > 3 else "")
        what = "enlarged" if allow_upsampling else "left out (--allow-upsampling enlarges them)"
        report(f"{len(small)} of {total} pictures are smaller than {resolution}x{resolution} "
               f"and were {what}: {shown}")
    if bad:
        for name, reason in bad[:10]:
            report(f"damaged, skipped: {name} ({reason})")
        if len(bad) > 10:
            report(f"... and {len(bad) - 10} more")
    if small or bad:
        report(f"All of them are named in {folder / 'report.txt'}")
    if 100 * len(bad) > max_bad * total:
        raise DataError(f"{source.path}: {len(bad)} of {total} pictures are damaged, more than "
                        f"--max-bad {max_bad:g} percent")
    if not index["rows"]:
        raise DataError(f"{source.path}: none of its {total} pictures is {resolution}x{resolution} "
                        f"or larger; choose a smaller --resolution, or --allow-upsampling")
    return folder


def _read_index(folder):
    """The index of a whole cache folder, or None."""
    try:
        index = json.loads((folder / "index.json").read_text())
        levels = all((folder / f"{r}.npy").is_file() for r in index["levels"])
        return index if levels else None
    except (OSError, ValueError, KeyError):
        return None


def _build(source, where, resolution, folder, workers, allow_upsampling, report, progress,
           free_bytes):
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What a killed build left behind (a living one touches its folder all the time).
    for leftover in folder.parent.glob("*.partial-*"):
        if time.time() - leftover.stat().st_mtime > 600:
            shutil.rmtree(leftover, ignore_errors=True)

    # First look at the headers only: sizes, and what is no picture at all.
    small, damaged, usable = [], [], []
    if source.kind == "painted":
        usable = list(range(len(source.names)))
    else:
        for number, side, reason in in_parallel(functools.partial(_measure, source),
                                                range(len(source.names)), workers, progress,
                                                "looking"):
            if reason:
                damaged.append((source.names[number], reason))
            elif side < resolution:
                small.append((source.names[number], f"{side} px"))
            if not reason and (side >= resolution or allow_upsampling):
                usable.append(number)

    # Then the room, before anything is written.
    levels = [2 ** k for k in range(2, resolution.bit_length())]
    room = {r: 3 * r * r * len(usable) for r in levels}
    if free_bytes is None:
        free_bytes = shutil.disk_usage(folder.parent).free
    free = free_bytes - 100e6                                  # leave some for the run itself
    line = (f"Packing {len(usable)} pictures at 4..{resolution} px takes "
            f"{_bytes(sum(room.values()))} in {folder}; {_bytes(free_bytes)} are free")
    if sum(room.values()) > free:
        levels.pop()
        if sum(room[r] for r in levels) > free or source.kind == "painted":
            raise DataError(f"{line}; free some, name another disk with --cache, "
                            f"or choose a smaller --resolution")
        line += (f", so the {resolution} px level ({_bytes(room[resolution])}) is left out and "
                 f"the originals are read at {resolution} px")
    report(line + ".")

    partial = pathlib.Path(tempfile.mkdtemp(prefix=folder.name + ".partial-", dir=folder.parent))
    try:
        for r in levels:
            np.lib.format.open_memmap(partial / f"{r}.npy", mode="w+", dtype=np.uint8,
                                      shape=(len(usable), r, r, 3)).flush()
            if hasattr(os, "posix_fallocate"):
                # Claim the room now: a disk that fills up under a memory map kills the process.
                with open(partial / f"{r}.npy", "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        rows = []
        pack = functools.partial(_pack, source, usable, resolution, levels, str(partial))
        for row, reason in in_parallel(pack, range(len(usable)), workers, progress, "packing"):
            if reason:
                damaged.append((source.names[usable[row]], reason))
            else:
                rows.append(row)
            if row % 256 == 0:
                os.utime(partial)                              # "still alive"
        lines = [f"{name}: damaged, skipped: {reason}" for name, reason in damaged]
        lines += [f"{name}: only {reason}" for name, reason in small]
        (partial / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8",
                                            errors="replace")
        (partial / "index.json").write_text(json.dumps({
            "source": where, "levels": levels, "resolution": resolution, "rows": rows,
            "numbers": [usable[row] for row in rows], "damaged": damaged, "small": small}))
        open_level.cache_clear()                              # Windows renames no open files
        if _read_index(folder) is None:            # else another run was faster, and may use it
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)             # interrupted, or already renamed


def _measure(source, number):
    """(number, shorter side in pixels, why it cannot be read or "")."""
    try:
        return number, min(open_picture(source, number).size), ""
    except Exception as error:                                 # Pillow raises a dozen kinds
        return number, 0, _reason(error)


def _pack(source, usable, resolution, levels, folder, row):
    """Decode one picture and write it at every level. (row, why it cannot be read or "")."""
    try:
        pixels = read_picture(source, usable[row], resolution)
    except Exception as error:
        return row, _reason(error)
    r, pixels = resolution, pixels.astype(np.float32)
    while r >= 4:
        if r in levels:
            open_level(folder, r, "r+")[row] = pixels.round()
        pixels, r = halve(pixels), r // 2
    return row, ""


@functools.lru_cache(maxsize=16)
def open_level(folder, resolution, mode="r"):
    return np.load(os.path.join(folder, f"{resolution}.npy"), mmap_mode=mode)


def _reason(error):
    text = str(error).strip().splitlines()
    # Pillow's "cannot identify image file <_io.BytesIO object at 0x...>" names an address.
    return text[0].split(" <")[0].split(" '")[0][:100] if text else type(error).__name__


def _bytes(count):
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class _Calls(Dataset):
    """function(item) for each item, as a Dataset: DataLoader then runs them in its workers."""

    def __init__(self, function, items):
        self.function, self.items = function, items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.function(self.items[i])


def in_parallel(function, items, workers, progress, title):
    """Yield function(item) for each item, in order, computed by `workers` processes."""
    workers = workers if len(items) > 64 else 0                # a process takes seconds to start
    calls = DataLoader(_Calls(function, items), batch_size=32, num_workers=workers,
                       collate_fn=as_it_is, worker_init_fn=quiet_worker)
    bar = progress(total=len(items), desc=title) if progress else None
    for results in calls:
        yield from results
        if bar is not None:
            bar.update(len(results))
    if bar is not None:
        bar.close()


def as_it_is(items):
    return items


def quiet_worker(worker_id):
    # Ctrl-C reaches every process of a terminal, and a batch system sends SIGTERM to all of a job.
    # The main process decides what happens; workers that died first would turn a clean stop into
    # an error. They end when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# ---- 3. Held-out pictures --------------------------------------------------------------------


def split_pictures(n, seed=0):
    """{"training", "adversary", "test"}: places 0..n-1, each in one of them; 80, 10 and 10 %.

    Why:    the duality gap (evaluate.py) asks how D judges pictures that no network has learned
            from: one part to find the worst opponents with, another to measure them on. A picture
            belongs to one part whole: with its mirror image and at every resolution.
    Paper:  Grnarova et al. 2019 (arXiv 1811.05512): three disjoint sets.
    State:  none: the split is a function of n and the seed, so it can be found again.
    Proved: tests/test_pictures.py::test_the_split_is_disjoint_by_image_and_repeatable
    """
    places, held_out = np.random.default_rng([seed, n, 80]).permutation(n), n // 10
    return {"test": np.sort(places[:held_out]),
            "adversary": np.sort(places[held_out:2 * held_out]),
            "training": np.sort(places[2 * held_out:])}


def find_split(o, checkpoint, source, images):
    """{"seed", "images"} of the split that --evaluate-kimg asks for (`split_pictures`), or that
    the run began with; else None.   images: how many usable pictures there are.

    Errors: UserError if pictures would be held out that the networks have already learned from.
    Proved: tests/test_run.py::test_what_was_held_out_stays_held_out
    """
    if checkpoint is None:
        wanted = o.evaluate_kimg is not None
        return {"seed": o.seed, "images": images} if wanted else None
    split = checkpoint["progress"].get("split")
    if split is None and o.evaluate_kimg is not None:
        raise UserError("--evaluate-kimg: this run has learned from all of its pictures, and none "
                         "can be held out any more; give it to a new run")
    if split is not None and (split["images"] != images or
                              checkpoint["progress"]["pictures"] != source.stamp):
        raise UserError(f"the pictures of {source.path} have changed since some were held out, "
                         f"and nobody knows which they were; a new run splits them anew")
    return split
