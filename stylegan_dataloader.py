"""stylegan_dataloader.py: the pictures a StyleGAN learns from, and the StyleMixer.   (2nd)

Read before: train.py, which asks for all of this.     Read next: stylegan_models.py
Paper:   Karras et al. 2019 (arXiv 1812.04948): section 3.1 (style mixing); the fading of the
         pictures: Karras et al. 2018, "ProGAN" (arXiv 1710.10196), figure 2.
Needs:   torch, numpy, Pillow. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; K styles; L style layers; R rows = columns of pixels.

  1. painted faces      what `python train.py` learns from when it is given no pictures
  2. reading a picture  anything that Pillow opens becomes a square RGB picture of R pixels
  3. the packed cache   each picture is read once, then lies ready at every resolution
  4. the loader         batches of pictures, their flips, and the fade of a growing network
  5. the StyleMixer     which layer takes its style from which z

One idea runs through 4 and 5: a loader keeps no state. What sample number 1,234,567 of a run is
(which picture, flipped or not, which mix of styles) is computed from the seed and this number
alone, for a given list of pictures and a given shape of network. So a run that goes on after an
interruption needs to know only how many samples it has used, and gets the same ones that it would
have got: no worker's random state has to be saved, and none can be lost.
"""

import functools
import hashlib
import io
import json
import math
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time
import zipfile
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch.utils.data import DataLoader, Dataset

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FOREVER = 2 ** 62             # samples in a run, as far as the loaders are concerned


class DataError(ValueError):
    """The pictures cannot be used as they are. The message is one sentence for the user."""


# ---- 1. Painted faces ------------------------------------------------------------------------
#
# Enough variety that a generator has something to learn (skin, hair, eyes, glasses, mood, a beard,
# the wall behind), few enough shapes that 32x32 pixels show them. Only `random.Random.random`
# draws the numbers: Python promises its sequence for a seed, on every machine and version, which
# neither its other methods nor numpy's do.

SKIN_COLOURS = ((255, 224, 196), (241, 194, 155), (224, 172, 125), (186, 126, 84), (141, 85, 54),
                (99, 60, 40))
HAIR_COLOURS = ((38, 28, 26), (84, 54, 36), (146, 88, 44), (226, 184, 96), (196, 74, 36),
                (178, 178, 184), (232, 108, 160), (72, 124, 204))
EYE_COLOURS = ((74, 48, 32), (52, 110, 172), (60, 128, 72), (120, 132, 140))
SHIRT_COLOURS = ((214, 64, 60), (52, 92, 168), (66, 142, 92), (240, 196, 66), (128, 82, 158),
                 (236, 236, 232), (60, 62, 70))
WALL_COLOURS = ((168, 208, 236), (250, 218, 168), (190, 224, 184), (244, 190, 190),
                (208, 196, 236), (120, 156, 176), (232, 228, 220))
FRAME_COLOURS = ((30, 28, 34), (150, 40, 44), (44, 70, 130), (206, 160, 60))
HAIRCUTS = ("short", "short", "long", "long", "bob", "curly", "curly", "bun", "spiky", "bald")
MOODS = ("smile", "smile", "smile", "laugh", "laugh", "calm", "oh")
WHITE, BLACK, RED = (252, 252, 250), (16, 12, 14), (196, 52, 64)
PAINTED_FACES = 10_000        # of them make the default data set


def paint_face(number, resolution, seed=0):
    """Face `number` of the endless series `seed`, as an RGB picture of resolution x resolution.

    The face is painted at twice the size or more (256 px or more) and averaged down, which is what
    smooths its edges. 0.45 ms each at 32 px on one core (measured).
    Proved: tests/test_dataloader.py::test_painted_faces_are_repeatable_and_no_two_alike
    """
    draw_number = random.Random(f"face {seed} {number}").random

    def between(low, high):
        return low + (high - low) * draw_number()

    def pick(choices):
        return choices[int(draw_number() * len(choices))]

    def mix(a, b, t):
        return tuple(round(x + (y - x) * t) for x, y in zip(a, b))

    # Who is it? Every property is drawn here, in a fixed order; below there is only painting.
    tone = between(0, len(SKIN_COLOURS) - 1.001)                # between two neighbouring tones
    skin = mix(SKIN_COLOURS[int(tone)], SKIN_COLOURS[int(tone) + 1], tone % 1)
    hair = mix(pick(HAIR_COLOURS), pick(HAIR_COLOURS), between(0, 0.15))
    wall = mix(pick(WALL_COLOURS), pick(WALL_COLOURS), between(0, 0.5))
    shirt = mix(pick(SHIRT_COLOURS), pick(SHIRT_COLOURS), between(0, 0.3))
    iris, frame = pick(EYE_COLOURS), pick(FRAME_COLOURS)
    lips = mix(RED, mix(skin, BLACK, 0.45), between(0, 0.6))
    haircut, mood = pick(HAIRCUTS), pick(MOODS)
    cx, cy = between(0.46, 0.54), between(0.49, 0.53)           # centre of the head, in pictures
    rx, ry = between(0.24, 0.285), between(0.295, 0.34)         # half its width and height
    eye_gap, eye_size, eye_open = between(0.115, 0.138), between(0.068, 0.08), between(0.85, 1.12)
    eye_y, gaze = cy - between(0, 0.035), between(-0.014, 0.014)
    brow_lift, brow_tilt = between(0.110, 0.130), between(-0.022, 0.022)
    mouth_y, mouth_width = cy + between(0.175, 0.2), between(0.075, 0.115)
    parting, flush = between(-0.6, 0.6), between(0.1, 0.4)
    bearded = draw_number() < 0.16 and haircut != "long"
    glasses, collar = draw_number() < 0.26, draw_number() < 0.5

    # A small brush set in units of the picture, y downwards.
    size = resolution * max(2, math.ceil(256 / resolution))
    image = Image.new("RGB", (1, 2), mix(wall, WHITE, 0.25))
    image.putpixel((0, 1), mix(wall, BLACK, 0.12))
    image = image.resize((size, size), Image.Resampling.BILINEAR)          # light from above
    draw = ImageDraw.Draw(image)

    def box(x, y, half_width, half_height):
        return [round(v * size) for v in
                (x - half_width, y - half_height, x + half_width, y + half_height)]

    def oval(x, y, half_width, half_height, colour):
        draw.ellipse(box(x, y, half_width, half_height), fill=colour)

    def polygon(points, colour):
        # Row by row, between the edges that cross it: Pillow's own differs between its versions.
        edges, rows = list(zip(points, points[1:] + points[:1])), [y for _, y in points]
        for row in range(round(min(rows) * size), round(max(rows) * size)):
            y = (row + 0.5) / size
            crossings = sorted(x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                               for (x0, y0), (x1, y1) in edges if (y0 <= y) != (y1 <= y))
            for left, right in zip(crossings[::2], crossings[1::2]):
                left, right = round(left * size), round(right * size) - 1
                if left <= right:
                    draw.rectangle([left, row, right, row], fill=colour)

    def stroke(points, width, colour):
        draw.line([(round(x * size), round(y * size)) for x, y in points],
                  fill=colour, width=round(width * size), joint="curve")
        for x, y in (points[0], points[-1]):
            oval(x, y, width / 2, width / 2, colour)

    # From back to front. First the hair behind the head ...
    top = cy - ry
    if haircut == "long":
        oval(cx, cy - 0.02, rx + 0.085, ry + 0.07, hair)
        draw.rectangle(box(cx, cy + 0.2, rx + 0.085, 0.22), fill=hair)
    elif haircut == "bob":
        oval(cx, cy, rx + 0.095, ry + 0.06, hair)
    elif haircut == "bun":
        oval(cx, top - 0.03, 0.1, 0.09, hair)
    elif haircut == "curly":
        for t in (k / 5 for k in range(-5, 6)):
            oval(cx + t * (rx + 0.045), top + 0.03 + 0.26 * t * t, 0.095, 0.095, hair)

    # ... shoulders, neck, ears, head, cheeks, beard ...
    oval(cx, 1.06, 0.40, 0.20, shirt)
    neck = mix(skin, BLACK, 0.18)
    draw.rectangle(box(cx, cy + ry, 0.085, 0.09), fill=neck)
    oval(cx, cy + ry + 0.085, 0.085, 0.035, neck)
    if collar:
        stroke([(cx - 0.1, 0.88), (cx, 0.97), (cx + 0.1, 0.88)], 0.03, mix(shirt, WHITE, 0.5))
    for side in (-1, 1):
        oval(cx + side * rx, cy + 0.03, 0.048, 0.065, mix(skin, BLACK, 0.1))
    oval(cx, cy, rx, ry, skin)
    for side in (-1, 1):
        oval(cx + side * (eye_gap + 0.04), cy + 0.118, 0.05, 0.034, mix(skin, (236, 92, 92), flush))
    if bearded:
        draw.pieslice(box(cx, cy, rx, ry + 0.012), 12, 168, fill=mix(hair, BLACK, 0.1))
        oval(cx, cy + 0.055, rx * 0.78, 0.11, skin)
        oval(cx, cy + ry * 0.6, 0.13, 0.06, skin)

    # ... the hair in front ...
    if haircut in ("short", "long", "bob", "bun"):
        draw.chord(box(cx, cy - 0.012, rx + 0.018, ry + 0.022), 202, 338, fill=hair)
        polygon([(cx - rx * 0.93, top + ry * 0.62), (cx + parting * rx, top + ry * 0.25),
                 (cx + rx * 0.93, top + ry * 0.62), (cx + rx * 0.6, top + 0.02),
                 (cx - rx * 0.6, top + 0.02)], hair)
    elif haircut == "spiky":
        draw.chord(box(cx, cy - 0.012, rx + 0.018, ry + 0.022), 208, 332, fill=hair)
        for t in (k / 2.8 for k in range(-2, 3)):
            x, y = cx + t * rx, top + 0.1 * t * t
            polygon([(x - 0.075, y + 0.1), (x + 0.04 * t, y - 0.085), (x + 0.075, y + 0.1)], hair)
    elif haircut == "curly":
        for t in (k / 3 for k in range(-3, 4)):
            oval(cx + 0.88 * t * rx, top + 0.045 + 0.14 * t * t, 0.082, 0.08, hair)

    # ... and the face itself.
    brow = mix(HAIR_COLOURS[1] if haircut == "bald" else hair, BLACK, 0.35)
    for side in (-1, 1):
        x = cx + side * eye_gap
        oval(x, eye_y, eye_size, eye_size * eye_open, WHITE)
        oval(x + gaze, eye_y + 0.004, eye_size * 0.66, eye_size * 0.66, iris)
        oval(x + gaze, eye_y + 0.004, eye_size * 0.36, eye_size * 0.36, BLACK)
        oval(x + gaze - 0.018, eye_y - 0.018, 0.013, 0.013, WHITE)
        stroke([(x - side * 0.055, eye_y - brow_lift - 0.3 * brow_tilt),
                (x, eye_y - brow_lift - 0.012),
                (x + side * 0.055, eye_y - brow_lift + brow_tilt)], 0.026, brow)
    stroke([(cx + 0.004, cy + 0.035), (cx + 0.022, cy + 0.092), (cx - 0.008, cy + 0.098)],
           0.02, mix(skin, BLACK, 0.28))
    if mood == "smile":
        draw.arc(box(cx, mouth_y + 0.016, mouth_width, 0.046), 20, 160, fill=lips,
                 width=round(0.034 * size))
    elif mood == "laugh":
        draw.chord(box(cx, mouth_y + 0.028, mouth_width, 0.05), 0, 180, fill=mix(lips, BLACK, 0.35))
        draw.chord(box(cx, mouth_y + 0.009, mouth_width * 0.86, 0.031), 0, 180, fill=WHITE)
    elif mood == "calm":
        stroke([(cx - 0.8 * mouth_width, mouth_y + 0.01), (cx, mouth_y + 0.016),
                (cx + 0.8 * mouth_width, mouth_y + 0.01)], 0.034, lips)
    else:
        oval(cx, mouth_y + 0.012, 0.042, 0.048, mix(lips, BLACK, 0.4))
    if glasses:
        for side in (-1, 1):
            draw.ellipse(box(cx + side * eye_gap, eye_y + 0.004, 0.104, 0.104), outline=frame,
                         width=round(0.021 * size))
            stroke([(cx + side * (eye_gap + 0.098), eye_y - 0.01),
                    (cx + side * (rx + 0.015), eye_y - 0.02)], 0.02, frame)
        stroke([(cx - eye_gap + 0.095, eye_y), (cx + eye_gap - 0.095, eye_y)], 0.021, frame)
    return image.reduce(size // resolution)


# ---- 2. Reading a picture --------------------------------------------------------------------


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
    Proved: tests/test_dataloader.py::test_wrong_paths_get_one_clear_sentence
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

    Proved: tests/test_dataloader.py::test_there_are_always_more_painted_faces
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
        return Image.open(io.BytesIO(_open_zip(source.path, os.getpid()).read(name)))
    return Image.open(os.path.join(source.path, name))


def to_rgb(image):
    """Any Pillow image to 8-bit RGB, turned as its EXIF data says, transparency over white.

    Why:    Pillow's own convert("RGB") would clip 16-bit pictures to white and let the hidden
            colours of transparent pixels show. Colour profiles are not applied.
    Proved: tests/test_dataloader.py::test_every_mode_becomes_the_right_rgb
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
    Proved: tests/test_dataloader.py::test_the_levels_are_what_the_networks_would_make_of_them
    """
    r = pixels.shape[0] // 2
    return pixels.reshape(r, 2, r, 2, 3).mean(axis=(1, 3))


# ---- 3. The packed cache ---------------------------------------------------------------------
#
# Decoding a photograph of some megapixels takes a core about a tenth of a second; training at low
# resolutions eats hundreds of pictures a second. So every picture is decoded once, and each of its
# resolutions is written to a file of its own, 4.npy, 8.npy, ..., an array [n, R, R, 3] of uint8
# that later runs map into memory: the operating system then reads what is used, keeps what is used
# often, and all loader processes share it.
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
    Proved: tests/test_dataloader.py::test_the_cache_is_rebuilt_when_files_or_options_change,
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
        _open_level.cache_clear()                              # Windows renames no open files
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
            _open_level(folder, r, "r+")[row] = pixels.round()
        pixels, r = halve(pixels), r // 2
    return row, ""


@functools.lru_cache(maxsize=16)
def _open_level(folder, resolution, mode="r"):
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
                       collate_fn=_as_it_is, worker_init_fn=_quiet_worker)
    bar = progress(total=len(items), desc=title) if progress else None
    for results in calls:
        yield from results
        if bar is not None:
            bar.update(len(results))
    if bar is not None:
        bar.close()


def _as_it_is(items):
    return items


def _quiet_worker(worker_id):
    # Ctrl-C reaches every process of a terminal, and a batch system sends SIGTERM to all of a job.
    # The main process decides what happens; workers that died first would turn a clean stop into
    # an error. They end when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# ---- 4. The loader ---------------------------------------------------------------------------


def split_pictures(n, seed=0):
    """{"training", "adversary", "test"}: places 0..n-1, each in one of them; 80, 10 and 10 %.

    Why:    the duality gap (evaluate.py) asks how D judges pictures that no network has learned
            from: one part to find the worst opponents with, another to measure them on. A picture
            belongs to one part whole: with its mirror image and at every resolution.
    Paper:  Grnarova et al. 2019 (arXiv 1811.05512): three disjoint sets.
    State:  none: the split is a function of n and the seed, so it can be found again.
    Proved: tests/test_dataloader.py::test_the_split_is_disjoint_by_image_and_repeatable
    """
    places, held_out = np.random.default_rng([seed, n, 80]).permutation(n), n // 10
    return {"test": np.sort(places[:held_out]),
            "adversary": np.sort(places[held_out:2 * held_out]),
            "training": np.sort(places[2 * held_out:])}


class PictureDataset(Dataset):
    """Sample numbers to pictures: shuffled anew in every epoch, half of them mirrored.

    Why:    mirroring doubles the data for free where left and right mean the same (faces: yes;
            text or city scenes: --no-flip).
    Shapes: a list of N sample numbers -> uint8 tensor [N, R, R, 3].
    How:    with n pictures, sample i is place i mod n of epoch i // n; an epoch's order and its
            flips are drawn from (seed, epoch). See the top of this file for why.
    only:   the places of the pictures to use, an array of `split_pictures`; None: all.
    Proved: tests/test_dataloader.py::test_an_epoch_shows_every_picture_once
    """

    def __init__(self, folder, source, resolution, seed=0, flip=True, only=None):
        self.folder, self.source, self.resolution = str(folder), source, resolution
        self.seed, self.flip = seed, flip
        index = json.loads((pathlib.Path(folder) / "index.json").read_text())
        only = slice(None) if only is None else only
        self.rows = np.array(index["rows"])[only]              # in the packed files
        self.numbers = np.array(index["numbers"])[only]        # in the source
        self.packed = resolution in index["levels"]

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, samples):
        n = len(self.rows)
        pixels = np.empty((len(samples), self.resolution, self.resolution, 3), np.uint8)
        for i, sample in enumerate(samples):
            order, flips = _epoch(self.seed, sample // n, n)
            picture = order[sample % n]
            if self.packed:
                one = _open_level(self.folder, self.resolution)[self.rows[picture]]
            else:
                one = read_picture(self.source, int(self.numbers[picture]), self.resolution)
            pixels[i] = one[:, ::-1] if self.flip and flips[sample % n] else one
        return torch.from_numpy(pixels)


@functools.lru_cache(maxsize=2)
def _epoch(seed, epoch, n):
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(n), rng.random(n) < 0.5


def picture_loader(dataset, batch_size, start=0, workers=0, pin_memory=False, process=0,
                   processes=1):
    """Batches of `dataset` without end, from sample number `start` on: uint8 [N, R, R, 3].

    Of several processes that train together, each takes every so-manieth picture: of a batch of
    8, process 0 of 2 sees samples 0, 2, 4, 6 and process 1 the others. N is the part of one.
    Proved: tests/test_dataloader.py::test_processes_share_a_batch_without_overlap

    [MACHINE] workers 0: the main process copies from the packed cache, 10 us a picture at 32 px
              (measured), so a CPU run has nothing to gain from more. On a GPU use 2 or more, and
              one per core if the originals are read at full resolution (not measured).
    """
    return DataLoader(
        dataset, batch_size=batch_size, sampler=range(start + process, FOREVER, processes),
        num_workers=workers,
        collate_fn=_as_it_is, worker_init_fn=_quiet_worker, pin_memory=pin_memory,
        # Of its own, or every new loader would take a number from torch's global generator and
        # a resumed run would draw other z than one that was never stopped.
        generator=torch.Generator())


def to_images(pixels, device="cpu"):
    """uint8 [N, R, R, 3] -> float [N, 3, R, R] in [-1, 1] on the device, in channels_last."""
    pixels = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)    # bytes travel, not floats
    return pixels.float() / 127.5 - 1


def to_pixels(images):
    """float [N, 3, R, R] in [-1, 1] -> uint8 [N, R, R, 3]; what lies outside is clipped."""
    pixels = (images.clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1)


def fade_reals(images, alpha):
    """Show D real pictures of the sharpness that G can reach while its last block fades in.

    Why:    at alpha = 0 G's picture is an enlarged one of half the resolution; were the real ones
            sharp, D would only have to look for sharpness.
    Paper:  ProGAN, caption of figure 2. Averaged 2x2, enlarged by nearest neighbour (as G enlarges
            its old picture), blended: alpha * sharp + (1 - alpha) * coarse.
    Shapes: images [N, 3, R, R] -> the same.
    Proved: tests/test_dataloader.py::test_faded_reals_go_from_coarse_to_sharp
    """
    if alpha >= 1:
        return images
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="nearest")
    return torch.lerp(coarse, images, alpha)


# ---- 5. The StyleMixer -----------------------------------------------------------------------
#
# The synthesis network has L layers, and each takes a style, a w. Usually all layers of an image
# take the same w. If that is all the network ever sees, it may come to rely on it: "layer 3 said
# brown hair, so layer 7 may assume dark brows". Style mixing forbids that: now and then an image
# gets its first layers' style from one z and the rest from another. A layer can then trust only
# what it is told itself; coarse layers learn to decide pose and shape, fine ones colour, and at
# the end you can give one face the colours of another.
#
# The mixer's output for an image is a row of L numbers: which of its K drawn z each layer uses,
# z and layers counted from 0. With L = 8 layers and K = 2:
#
#     0 0 0 1 1 1 1 1      the style was swapped in front of layer 3
#     0 1 1 1 1 1 1 1      ... in front of layer 1, the earliest place
#     0 0 0 0 0 0 0 0      not mixed: happens with probability 1 - 0.9
#
# and with K = 3, two places are drawn:
#
#     0 0 1 1 1 1 2 2
#
# So a row starts with 0, never falls, and rises by 1 at each place where styles are swapped. A
# place is one of 1..L-1, all equally likely; K-1 different ones are drawn. (If K-1 is more than
# there are, every place is a swap: at 4x4, with two layers and one place, no more than two styles.)


class StyleMixer(DataLoader):
    """A DataLoader of style rows: yields long tensors [batch_size, num_layers], without end.

    Why:    see above. Paper: section 3.1, probability 0.9, two styles.
    Use:    z = torch.randn(N, styles, latent_dim); G(z, style_index=rows) with rows from here.
    State:  none: row number i is a function of (seed, num_layers, i); `start` is the first one.
            Several processes share a batch as in `picture_loader`.
    Differs: any number of styles; and every image draws its own place, where the official code
            draws one for the whole batch.
    Errors: ValueError unless styles >= 1, num_layers >= 2 and 0 <= probability <= 1.
    Proved: tests/test_dataloader.py::test_style_mixer_rows_can_be_predicted
    """

    def __init__(self, num_layers, batch_size, styles=2, probability=0.9, seed=0, start=0,
                 process=0, processes=1):
        rows = _StyleRows(num_layers, styles, probability, seed)
        super().__init__(rows, batch_size=batch_size,
                         sampler=range(start + process, FOREVER, processes),
                         collate_fn=_as_it_is, generator=torch.Generator())


class _StyleRows(Dataset):
    """Sample numbers to style rows. Drawn 1024 at a time: one seed and a few numpy calls each."""

    BLOCK = 1024

    def __init__(self, num_layers, styles, probability, seed):
        if styles < 1 or num_layers < 2 or not 0 <= probability <= 1:
            raise ValueError(f"needs styles >= 1, num_layers >= 2 and a probability, got "
                             f"{styles}, {num_layers}, {probability}")
        self.draw = functools.lru_cache(maxsize=2)(functools.partial(
            _draw_rows, num_layers, styles, probability, seed))

    def __getitems__(self, samples):
        rows = [self.draw(i // self.BLOCK)[i % self.BLOCK] for i in samples]
        return torch.from_numpy(np.stack(rows))


def _draw_rows(num_layers, styles, probability, seed, block):
    """[BLOCK, L] rows of style numbers."""
    rng = np.random.default_rng([seed, num_layers, block])
    n, places = _StyleRows.BLOCK, num_layers - 1
    # Sorting random keys shuffles 1..L-1; the first K-1 of the shuffled places are the swaps.
    shuffled = 1 + rng.random((n, places)).argsort(axis=1)                 # [n, L-1]
    swaps = shuffled[:, :min(styles - 1, places)]                          # [n, K-1]
    begins = np.zeros((n, num_layers), dtype=np.int64)                     # 1: a new style begins
    np.put_along_axis(begins, swaps, 1, axis=1)
    mixed = rng.random((n, 1)) < probability                               # [n, 1]
    return np.cumsum(begins, axis=1) * mixed                               # [n, L]
