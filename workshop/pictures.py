"""pictures.py: find pictures, read them, and pack them for training.   (workshop)

Used by: stylegan_dataloader.py, evaluate.py, project.py.
Needs:   torch, numpy, Pillow. Importing this file reads no file, no argv, no clock.
Letters: R rows = columns of pixels.

  1. finding and reading  a folder or a .zip; each picture becomes a square RGB one of R pixels
  2. the packed cache     each picture is read once, then lies ready at every resolution
  3. held-out pictures    those that training never sees, for the duality gap
"""

import collections
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import stat
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, features
from torch.utils.data import DataLoader, Dataset

from workshop import UserError, machine, replace
from workshop.painted_faces import PAINTED_FACES, paint_face

# Of a folder or .zip, files with these suffixes are pictures. What else lies there is left out, and
# named by kind and number.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif",
            ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif")
# These only where Pillow was built with what they need.
NEEDS = {".webp": "webp", ".jp2": "jpg_2000", ".j2k": "jpg_2000", ".avif": "avif"}
# What Pillow may take a file for, whatever its suffix says. Its other parsers stay closed: a
# "photo.jpg" that is PostScript would start Ghostscript.
# Proved: tests/test_pictures.py::test_a_photo_that_is_postscript_starts_nothing
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")

# The most pixels that are decoded, and the most bytes of a file, or of a member of a .zip when it
# is unpacked. So one picture takes less than 1 GiB and 5 s of CPU time; a file of 11 kB can hold 88
# million pixels, and 2 MB of .zip 2 GB of zeros. (A JPEG may have more, as many as Pillow opens, if
# no more than these are decoded: `read_picture`. A progressive one of that size took 1.5 GiB.)
# Proved: tests/test_pictures.py::test_a_picture_of_too_many_pixels_or_bytes_is_named,
#         and experiments/hostile.py, which tries it
MOST_PIXELS = 50_000_000
MOST_BYTES = 4 * MOST_PIXELS


class DataError(UserError):
    """The pictures cannot be used as they are. The message is one sentence for the user.

    A name of a file is a stranger's word, and is shown without escape codes and line breaks.
    Proved: tests/test_pictures.py::test_the_name_of_a_picture_cannot_write_to_the_terminal
    """

    def __init__(self, message):
        super().__init__(_printable(message))


def _printable(text):
    """A text in which file names may stand, on one line and without escape codes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# ---- 1. Finding and reading ------------------------------------------------------------------


class Source(NamedTuple):
    """Where the pictures are: kind "folder", "zip" or "painted", its path, their names, sorted.

    `stamp` changes when the pictures do: it is made of names, sizes and times of change (in a .zip:
    CRCs). (A copy may have other times. What pictures ARE is known by `contents_of`, once they are
    packed.)
    `left`: what else lies there, in words, "" if nothing.
    """
    kind: str
    path: str
    names: list
    stamp: str
    left: str = ""


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
        files, left = _files_under(path)
        files.sort()
        stamp = _digest([(name, size, time) for name, size, time in files])
        source = Source("folder", str(path), [name for name, *_ in files], stamp, _in_words(left))
    elif path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise DataError(f"{path}: a damaged .zip, or of no known kind ({error})") from None
        kinds = [(m, _kind(pathlib.PurePosixPath(m.filename))) for m in members]
        left = collections.Counter(kind for _, kind in kinds if kind)
        usable = {m.filename: m for m, kind in kinds if kind == ""}        # the last of each name
        left["with the name of another"] = sum(kind == "" for _, kind in kinds) - len(usable)
        members = [usable[name] for name in sorted(usable)]
        stamp = _digest([(m.filename, m.file_size, m.CRC) for m in members])
        source = Source("zip", str(path), [m.filename for m in members], stamp, _in_words(left))
    elif path.is_file():
        open(path, "rb").close()                               # one that may not be read says so
        raise DataError(f"{path}: no .zip, or only a part of one; give a folder of pictures, or a "
                        f".zip")
    else:
        raise DataError(f"{path}: no such folder or .zip")
    if not source.names:
        left = f"; there are {source.left}" if source.left else ""
        raise DataError(f"{path}: no pictures in it ({', '.join(SUFFIXES)}; folders are searched)"
                        f"{left}")
    return source


def _files_under(path):
    """[(name, size, time of change)] of the pictures in a folder, and a Counter of what was left.

    Links are followed. Each folder is visited once, so a loop of links ends; first those that are
    reached without a link, so that a link changes no name.
    Proved: tests/test_pictures.py::test_links_are_followed_and_a_loop_ends
    """
    found, left, seen, waiting = [], collections.Counter(), set(), [str(path)]
    while waiting:
        linked = []
        for start in sorted(waiting):
            for folder, folders, files in os.walk(
                    start, onerror=lambda error: left.update(["folders that cannot be read"])):
                here = os.stat(folder)
                if (here.st_dev, here.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((here.st_dev, here.st_ino))
                inside = [os.path.join(folder, name) for name in folders]
                linked += [name for name in inside if os.path.islink(name)]
                for name in files:
                    file = pathlib.Path(folder, name)
                    kind = _kind(file.relative_to(path))
                    try:
                        about = file.stat()
                        if not kind and not stat.S_ISREG(about.st_mode):
                            kind = "pipes, sockets or devices"
                    except OSError:
                        kind = None if kind is None else "broken links"
                    if kind == "":
                        found.append((file.relative_to(path).as_posix(), about.st_size,
                                      about.st_mtime_ns))
                    elif kind:
                        left[kind] += 1
        waiting = linked
    return found, left


def _kind(relative):
    """Of a file's path: "" for a picture, None for what nobody misses, else what to call it."""
    # Names that begin with a dot, and __MACOSX, are what macOS leaves behind: "._photo.jpg" is
    # 4 KB of icon, not a photo.
    # (".." in a .zip is no such name; nothing is unpacked, so it leads nowhere.)
    if any(part.startswith(".") and part != ".." or part == "__MACOSX" for part in relative.parts):
        return None
    suffix = relative.suffix.lower()
    if suffix in SUFFIXES and (suffix not in NEEDS or _pillow_has(NEEDS[suffix])):
        return ""
    return suffix or "without a suffix"


@functools.lru_cache
def _pillow_has(feature):
    return feature in features.get_supported()


def _in_words(left):
    """Counter -> "12 .heic, 1 .txt"."""
    return ", ".join(f"{number} {kind}" for kind, number in left.most_common() if number)


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


def _digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _open_zip(path, process_id):
    # One open archive per process: processes that share an open file also share its position in
    # the file, and would read each other's bytes.
    return zipfile.ZipFile(path)


def open_picture(source, number, bare=False):
    """Picture `number` of the source, opened (its size is known) but perhaps not yet decoded.

    bare: a PNG without what is written about it (`_bare_png`).
    """
    name = source.names[number]
    if source.kind == "zip":
        file = io.BytesIO(_unpack(_open_zip(source.path, os.getpid()), name))
        _check_door(file)
    else:
        file = os.path.join(source.path, name)
        with open(file, "rb") as inside:
            size = os.fstat(inside.fileno()).st_size
            if size > MOST_BYTES:
                raise DataError(f"{_bytes(size)}; no more than {_bytes(MOST_BYTES)} are read")
            _check_door(inside)
    return Image.open(_bare_png(file) if bare else file, formats=_formats())


def _unpack(archive, name):
    """The bytes of a member of a .zip. What it says of its size is looked at, and not believed.

    Python's zipfile would unpack 1 GiB to find that a member is not the 9 bytes that it claims to
    be; of bzip2 and LZMA, all.
    Errors: DataError.
    Proved: tests/test_pictures.py::test_a_zip_member_that_lies_about_its_size_is_not_unpacked
    """
    about = archive.getinfo(name)
    if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError("neither stored nor deflated in the .zip, and read in no other way")
    if about.file_size > MOST_BYTES:
        raise DataError(f"{_bytes(about.file_size)} when it is unpacked; no more than "
                        f"{_bytes(MOST_BYTES)} are read")
    with archive.open(name) as member:
        data = member.read(about.file_size + 1)        # the one more: its end, and its CRC
    if len(data) != about.file_size:
        raise DataError("not as long as the .zip says")
    return data


# Bytes that one value of each type takes in a TIFF directory.
SIZES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8])


def _check_door(file):
    """Look at what Pillow would follow before it compares the size of a picture with its limit.

    Why:    each of 65,535 tags of a TIFF, or of a JPEG's EXIF data, may name the whole file as its
            value, and Pillow would copy it as often: 240 kB became 3.6 GB. Their values cannot need
            more room than there is. A WebP of 100 bytes that claims 16,383 x 16,383 took 2 GB.
    Errors: DataError. Leaves `file` at its begin.
    Proved: tests/test_pictures.py::test_tags_cannot_claim_more_than_the_file,
            ::test_a_webp_is_as_large_as_its_header_says
    """
    head = file.read(30)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) == 30:
        width, height = _size_of_webp(head)
        _check_size(width, height)
    elif head[:3] == b"\xff\xd8\xff":
        exif = _exif_of_jpeg(file)
        _check_directory(io.BytesIO(exif), len(exif))
    else:
        _check_directory(file, file.seek(0, os.SEEK_END))
    file.seek(0)


def _check_size(width, height):
    if width * height > MOST_PIXELS:
        raise DataError(f"{width}x{height}; no more than {MOST_PIXELS // 10 ** 6} million pixels "
                        f"are read")


def _size_of_webp(head):
    """(width, height) by the first 30 bytes: of a file with extensions, without loss, or else."""
    if head[12:16] == b"VP8X":
        return tuple(1 + int.from_bytes(head[at:at + 3], "little") for at in (24, 27))
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + bits % 2 ** 14, 1 + (bits >> 14) % 2 ** 14
    return tuple(int.from_bytes(head[at:at + 2], "little") % 2 ** 14 for at in (26, 28))


def _exif_of_jpeg(file):
    """All parts of it in the order of the file, joined as Pillow joins them.

    Errors: DataError if there is much junk between them, through which Pillow goes byte by byte.
    """
    parts, junk = [], 0
    file.seek(2)
    while (one := file.read(1)) and junk < 65_536:             # more than any camera leaves there
        kind = file.read(1) if one == b"\xff" else b"\0"
        if kind in (b"\0", b"\xff"):
            junk += 1
            file.seek(-(kind == b"\xff"), os.SEEK_CUR)
        elif kind == b"\xda":                                  # pixels begin
            break
        elif not b"\xd0" <= kind <= b"\xd9" and kind != b"\1":     # those have no length
            length = max(2, int.from_bytes(file.read(2), "big"))
            data = file.read(length - 2)
            if kind == b"\xe1" and data[:6] == b"Exif\0\0":
                parts.append(data[6:])
    if junk >= 65_536:
        raise DataError("much between its parts that belongs to none")
    return b"".join(parts)


def _check_directory(file, size):
    """The first TIFF directory of a file; of what is no TIFF, nothing."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return
    large = 43 in head[2:4]                                    # BigTIFF
    at = np.frombuffer(head, order + ("u8" if large else "u4"), 1, 8 if large else 4)[0]
    file.seek(min(int(at), size))
    count = int.from_bytes(file.read(8 if large else 2), "little" if order == "<" else "big")
    number = order + ("u8" if large else "u4")
    tag = np.dtype([("name", order + "u2"), ("type", order + "u2"), ("count", number),
                    ("value", number)])
    block = file.read(min(count * tag.itemsize, size))
    tags = np.frombuffer(block[:len(block) // tag.itemsize * tag.itemsize], tag)
    sizes = np.append(SIZES, 0.0)[np.minimum(tags["type"], len(SIZES))]    # 0: of no known type
    if (tags["count"] * sizes).sum() > size:
        raise DataError("its tags claim more bytes than there are")


@functools.lru_cache
def _formats():
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _use_picture(use, source, number):
    """use(picture number `number`, opened).

    A PNG whose text, or colour profile, is what cannot be read is used without it: picture
    generators store more text in there than Pillow takes, and the pixels are sound.
    Proved: tests/test_pictures.py::test_what_is_written_about_a_picture_does_not_damage_it
    """
    with warnings.catch_warnings():                            # of what is odd, or large, in there
        warnings.simplefilter("ignore")
        try:
            return use(open_picture(source, number))
        except DataError:
            raise
        except ValueError as error:
            try:
                return use(open_picture(source, number, bare=True))
            except _NoPng:
                raise error from None


class _NoPng(Exception):
    pass


def _bare_png(file):
    """The file of a PNG without text and colour profile, in memory.   Errors: _NoPng."""
    data = pathlib.Path(file).read_bytes() if isinstance(file, str) else file.getvalue()
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise _NoPng
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at:at + 4], "big")         # length, kind, data, CRC
        if data[at + 4:at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[at:end])
        at = end
    return io.BytesIO(b"".join(kept))


# EXIF's orientation 2..8: what makes a picture upright that is stored so.
UPRIGHT = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90), 2))


def to_rgb(image):
    """Any Pillow image to 8-bit RGB, turned as its EXIF data says, transparency over white.

    Why:    Pillow's own convert("RGB") would clip 16-bit pictures to white and let the hidden
            colours of transparent pixels show. Colour profiles are not applied. EXIF data that
            cannot be read say nothing (Pillow's own exif_transpose would stop at them).
    Errors: DataError for numbers of which nobody knows what is white.
    Proved: tests/test_pictures.py::test_every_mode_becomes_the_right_rgb,
            ::test_numbers_without_a_known_white_are_named
    """
    image.load()                                               # what is written behind the pixels
    try:
        exif = image.info.get("exif", b"")
        _check_directory(io.BytesIO(exif.removeprefix(b"Exif\0\0")), len(exif))
        if len(image.info.get("Raw profile type exif", "")) > 2 ** 17:     # ImageMagick's, in hex
            raise DataError("more than the 64 kB of EXIF data")
        with warnings.catch_warnings():                        # of what is odd in there
            warnings.simplefilter("ignore")
            turn = UPRIGHT.get(image.getexif().get(0x0112))
    except Exception:                                          # Pillow raises a dozen kinds
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "I" or image.mode.startswith("I;16"):                 # 16 bits of grey
        values = np.asarray(image)
        if values.max() > 65535 or values.min() < 0:
            raise DataError(f"its numbers go from {values.min()} to {values.max()}, and 16 bits "
                            f"are read")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":                                    # floats: 0..1, or else 0..255
        values = np.asarray(image)
        low, high = values.min(), values.max()                 # nan, if there is one
        if not (0 <= low and high <= 255):
            raise DataError("its floats are neither from 0 to 1 nor from 0 to 255")
        values = values * (255 if high <= 1 else 1)
        image = Image.fromarray(values.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_picture(source, number, resolution):
    """Picture `number`, its central square, as uint8 [R, R, 3]. Errors: whatever Pillow raises."""
    if source.kind == "painted":
        return np.asarray(paint_face(int(source.names[number]), resolution))

    def decode(image):
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the time. At twice
        # the resolution or more, so that the antialiasing below still decides what it looks like.
        image.draft(None, (2 * resolution, 2 * resolution))
        _check_size(*image.size)
        return to_rgb(image)
    image = _use_picture(decode, source, number)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Pillow widens a filter as it shrinks a picture, so that every pixel counts. (Looking up a few
    # pixels around each new one, as torch's interpolate does by default, would skip most of a large
    # photo and turn fine texture into false patterns.)
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS,
                         box=(left, top, left + side, top + side))
    return np.asarray(image)


def read_again(source, number, resolution):
    """`read_picture` of one that could be read when it was packed.   Errors: DataError."""
    try:
        return read_picture(source, number, resolution)
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{source.path}: {source.names[number]} cannot be read any more "
                        f"({_reason(error)})") from None


def _content(source, number):
    """What picture `number` is, wherever it lies and whenever it was copied there: its size and the
    CRC-32 of its file, in one number."""
    if source.kind == "zip":
        member = _open_zip(source.path, os.getpid()).getinfo(source.names[number])
        size, crc = member.file_size, member.CRC
    else:
        size = crc = 0
        with open(os.path.join(source.path, source.names[number]), "rb") as file:
            while block := file.read(2 ** 20):
                size, crc = size + len(block), zlib.crc32(block, crc)
    return size % 2 ** 31 << 32 | crc


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
            fingerprint of the pictures, their folder and the options: when one changes, another
            cache is made. The old one (of the same folder) is left, since a run may be using it,
            and named as one that can be deleted. A cache that was copied is looked through once
            (`_is_whole`).
    Errors: DataError: no room on the disk, too many damaged pictures, none left.
    Proved: tests/test_pictures.py::test_the_cache_is_rebuilt_when_files_or_options_change,
            ::test_an_interrupted_cache_is_built_again, ::test_the_disk_is_checked_before_writing,
            ::test_a_cache_that_was_copied_in_part_is_packed_again
    """
    tell, cache = report, pathlib.Path(cache)

    def report(line):
        tell(_printable(line))
    where = source.path if source.kind == "painted" else str(pathlib.Path(source.path).resolve())
    stem = pathlib.Path(where).stem or "pictures"
    fingerprint = _digest([2, where, source.stamp, resolution, allow_upsampling])
    folder = cache / f"{stem}-{resolution}px-{fingerprint[:12]}"
    if source.left:
        report(f"{source.path}: left out, being no pictures that are read here: {source.left}")

    index, new = _read_index(folder), False
    if folder.is_dir() and (index is None or not _is_whole(folder, index, progress)):
        report(f"{folder} is not what was packed (copied in part?), and is packed again")
        (folder / "index.json").unlink(missing_ok=True)
        index = None
    if index is None:
        for other in cache.glob(f"*-{resolution}px-*"):
            if (_read_index(other) or {}).get("source") == where:
                report(f"the pictures (or their times) or options have changed since {other} was "
                       f"packed; it can be deleted if no run uses it")
        new = True
        _build(source, where, resolution, folder, workers, allow_upsampling, report, progress,
               free_bytes)
        index = _read_index(folder)

    total, bad, small = len(source.names), index["damaged"], index["small"]
    if resolution not in index["levels"]:
        room = 3 * resolution ** 2 * len(index["rows"])
        free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
        if not new and room + 100e6 < free:
            report(f"note: there was no room for the {resolution} px level when {folder} was "
                   f"packed; now there is: delete it, and it is packed whole")
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
    if not index["rows"] and len(bad) == total:
        raise DataError(f"{source.path}: all of its {total} pictures are damaged")
    if not index["rows"]:
        raise DataError(f"{source.path}: none of its {total} pictures is {resolution}x{resolution} "
                        f"or larger; choose a smaller --resolution, or --allow-upsampling")
    return folder


def _read_index(folder):
    """The index of a cache folder whose files have the sizes that they should have, or None."""
    try:
        index = json.loads((folder / "index.json").read_text())
        rows = index["rows"]
        for r in index["levels"]:
            level = np.load(folder / f"{r}.npy", mmap_mode="r")        # not if it was cut short
            if level.shape != (index["packed"], r, r, 3) or level.dtype != np.uint8:
                return None
        checks = np.load(folder / "checks.npy")
        fits = (checks.shape == (len(index["levels"]), len(rows)) and all(
            0 <= row < index["packed"] for row in rows) and len(index["numbers"]) == len(rows)
            and index["source"] and index.keys() >= {"resolution", "damaged", "small"})
        return index if fits else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _is_whole(folder, index, progress=None):
    """Do the levels hold what was packed?

    Why:    a copy that was broken off, or a disk that lost its power, can leave a file of the right
            size with a hole in it, and a hole is black pictures.
    How:    each row's CRC-32 was kept. To compare them all is to read the whole cache, so it is
            done only if the files are not those that were looked at before: their sizes, times
            and places on the disk (inodes) are in looked.json. A copy has others.
    """
    looked = _places(folder, index["levels"])
    try:
        if json.loads((folder / "looked.json").read_text()) == looked:
            return True
    except (OSError, ValueError):
        pass
    checks = np.load(folder / "checks.npy")
    bar = progress(total=checks.size, desc="checking") if progress else None
    for r, sums in zip(index["levels"], checks):
        level = np.load(folder / f"{r}.npy", mmap_mode="r")
        for row, wanted in zip(index["rows"], sums):
            if zlib.crc32(level[row]) != wanted:
                return False
        if bar is not None:
            bar.update(len(sums))
    if bar is not None:
        bar.close()
    try:
        (folder / "looked.json").write_text(json.dumps(looked))
    except OSError:                                            # read only: look at it each time
        pass
    return True


def _places(folder, levels):
    stats = [(folder / f"{r}.npy").stat() for r in levels]
    return [[about.st_size, about.st_mtime_ns, about.st_ino] for about in stats]


def contents_of(folder):
    """What the pictures of a packed cache are (`_content`), an int64 tensor in their order.

    None for painted faces, which are known by their numbers.
    """
    path = pathlib.Path(folder, "contents.npy")
    return torch.from_numpy(np.load(path)) if path.exists() else None


def known_contents(progress):
    """`contents_of` the pictures that a checkpoint was trained with, or None if it does not say."""
    known = progress.get("contents")
    fits = isinstance(known, torch.Tensor) and known.dtype == torch.int64 and known.dim() == 1
    return known if fits else None


def same_pictures(progress, source, contents):
    """Are these the pictures that a checkpoint was trained with? progress: that of the checkpoint.

    By content, so that a copy with new times is the same, and so is the .zip of a folder. Earlier
    versions kept only `Source.stamp`.
    Proved: tests/test_run.py::test_copied_pictures_are_the_same_pictures
    """
    known = known_contents(progress)
    if known is not None and contents is not None:
        return torch.equal(known, contents)
    return progress.get("pictures", source.stamp) == source.stamp


def _build(source, where, resolution, folder, workers, allow_upsampling, report, progress,
           free_bytes):
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        raise DataError(f"{folder.parent}: packed pictures cannot be written there "
                        f"({error.strerror}); name another place with --cache") from None
    # What a killed build left behind is not to count as used disk. A living one holds its lock;
    # where there are no locks, it touches its folder all the time.
    # Proved: tests/test_pictures.py::test_a_living_packer_keeps_its_lock_to_the_end,
    #         tests/test_machine.py::test_where_nothing_can_be_locked_nobody_knows
    for leftover in folder.parent.glob("*px-????????????.partial-*"):      # of no other program
        held = machine.is_locked(leftover / "lock")
        if held is False or held is None and time.time() - leftover.stat().st_mtime > 600:
            shutil.rmtree(leftover, ignore_errors=True)

    # First look at the headers only: sizes, and what is no picture at all.
    small, damaged, usable = [], [], []
    if source.kind == "painted":
        usable = list(range(len(source.names)))
    else:
        for number, side, reason in in_parallel(functools.partial(shorter_side, source),
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
    if sys.stdout:                             # is another disk full, that of what is printed?
        sys.stdout.flush()

    partial = pathlib.Path(tempfile.mkdtemp(prefix=folder.name + ".partial-", dir=folder.parent))
    try:
        # mkdtemp lets nobody else in. Who may use the cache, its folder says.
        # Proved: tests/test_pictures.py::test_who_may_read_the_cache_is_up_to_its_folder
        shutil.copymode(folder.parent, partial)
        machine.lock(partial / "lock")
        for r in levels:
            np.lib.format.open_memmap(partial / f"{r}.npy", mode="w+", dtype=np.uint8,
                                      shape=(len(usable), r, r, 3)).flush()
            if hasattr(os, "posix_fallocate"):
                # Claim the room now: a disk that fills up under a memory map kills the process.
                with open(partial / f"{r}.npy", "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        rows, contents, checks = [], [], []
        pack = functools.partial(_pack, source, usable, resolution, levels, str(partial))
        for row, reason, content, sums in in_parallel(pack, range(len(usable)), workers, progress,
                                                      "packing"):
            if reason:
                damaged.append((source.names[usable[row]], reason))
            else:
                rows.append(row), contents.append(content), checks.append(sums)
            if row % 16 == 0:
                os.utime(partial)                              # "still alive"
        lines = [f"{name}: damaged, skipped: {reason}" for name, reason in damaged]
        lines += [f"{name}: only {reason}" for name, reason in small]
        (partial / "report.txt").write_text(
            "".join(_printable(line) + "\n" for line in lines), encoding="utf-8")
        np.save(partial / "checks.npy", np.array(checks, np.uint32).reshape(-1, len(levels)).T)
        if source.kind != "painted":
            np.save(partial / "contents.npy", np.array(contents, np.int64))
        (partial / "index.json").write_text(json.dumps({
            "source": where, "levels": levels, "resolution": resolution, "packed": len(usable),
            "rows": rows, "numbers": [usable[row] for row in rows], "damaged": damaged,
            "small": small}))
        for path in partial.iterdir():                         # on the disk before it has its name
            if path.name != "lock":                            # closing any file of it, one lets go
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
        (partial / "looked.json").write_text(json.dumps(_places(partial, levels)))
        open_level.cache_clear()                              # Windows renames no open files
        machine.unlock(partial / "lock")
        (partial / "lock").unlink(missing_ok=True)
        if _read_index(folder) is None:            # else another run was faster, and may use it
            shutil.rmtree(folder, ignore_errors=True)
            replace(partial, folder)
    except OSError as error:                                   # the disk is full after all
        reason = error.strerror or str(error).splitlines()[-1]
        raise DataError(f"{folder}: cannot be packed ({reason}); free some room, or name another "
                        f"disk with --cache") from None
    finally:
        machine.unlock(partial / "lock")
        if sys.exc_info()[0]:                                  # Windows deletes no open files
            open_level.cache_clear()
            machine.end_children()
        shutil.rmtree(partial, ignore_errors=True)             # interrupted, or already renamed


def shorter_side(source, number):
    """(number, shorter side in pixels, why it cannot be read or "")."""
    try:
        return number, min(_use_picture(lambda image: image.size, source, number)), ""
    except MemoryError:                                        # no fault of the picture
        raise
    except Exception as error:                                 # Pillow raises a dozen kinds
        return number, 0, _reason(error)


def _pack(source, usable, resolution, levels, folder, row):
    """Decode one picture and write it at every level: (row, why it cannot be read or "", what it is
    (`_content`), the CRC-32 of each level)."""
    try:
        pixels = read_picture(source, usable[row], resolution)
        content = 0 if source.kind == "painted" else _content(source, usable[row])
    except MemoryError:
        raise
    except Exception as error:
        return row, _reason(error), 0, []
    r, pixels, sums = resolution, pixels.astype(np.float32), {}
    while r >= 4:
        if r in levels:
            rounded = pixels.round().astype(np.uint8)
            open_level(folder, r, "r+")[row] = rounded
            sums[r] = zlib.crc32(rounded)
        pixels, r = halve(pixels), r // 2
    return row, "", content, [sums[r] for r in levels]


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
    """Yield function(item) for each item, in order, computed by `workers` processes.

    Errors: DataError, in seconds, if one of them was killed.
    Proved: tests/test_pictures.py::test_a_killed_packer_ends_the_packing_in_seconds
    """
    workers = workers if len(items) > 64 else 0                # a process takes seconds to start
    workers, _ = machine.workers_that_fit(workers, 0)
    calls = DataLoader(_Calls(function, items), batch_size=32, num_workers=workers,
                       collate_fn=as_it_is, worker_init_fn=quiet_worker)
    bar, done = progress(total=len(items), desc=title) if progress else None, 0
    try:
        for results in machine.started(calls):
            yield from results
            done += len(results)
            if bar is not None:
                bar.update(len(results))
    except RuntimeError as error:                              # of torch: it exited unexpectedly
        if not workers:
            raise
        raise DataError(f"a process was ended from outside while {title} pictures, after {done} of "
                        f"{len(items)} (too little memory?); nothing of it is used, start again "
                        f"({str(error).splitlines()[0]})") from None
    if bar is not None:
        bar.close()


def as_it_is(items):
    return items


def shared(pixels):
    """In a worker: put a batch into shared memory now.

    torch would do it later, in a thread whose errors are printed and lost; the main process would
    wait for that batch for ever. Here a lack of room is an error that it hears of.
    """
    return pixels.share_memory_()


def quiet_worker(worker_id):
    # Ctrl-C reaches every process of a terminal, and a batch system sends SIGTERM to all of a job.
    # The main process decides what happens; workers that died first would turn a clean stop into
    # an error. They end when it does; and where an error ends it, `machine.end_children` ends them.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


# ---- 3. Held-out pictures --------------------------------------------------------------------


def split_pictures(n, seed=0, contents=None):
    """{"training", "adversary", "test"}: places 0..n-1, each in one of them; 80, 10 and 10 %.

    Why:    the duality gap (evaluate.py) asks how D judges pictures that no network has learned
            from: one part to find the worst opponents with, another to measure them on. A picture
            is in one part only, at every resolution and mirrored. If contents (`contents_of`) are
            given, its copies under other names go where the first of them is.
    Paper:  Grnarova et al. 2019 (arXiv 1811.05512): three disjoint sets.
    State:  none: the split is a function of n, seed and contents, so it can be found again.
    Proved: tests/test_pictures.py::test_the_split_is_disjoint_by_image_and_repeatable,
            ::test_copies_of_a_picture_are_on_one_side_of_the_split
    """
    order, held_out = np.random.default_rng([seed, n, 80]).permutation(n), n // 10
    part = np.zeros(n, int)                                    # 0: training
    part[order[:held_out]], part[order[held_out:2 * held_out]] = 2, 1
    if contents is not None:
        _, first, which = np.unique(contents, return_index=True, return_inverse=True)
        part = part[first[which]]
    return {name: np.flatnonzero(part == k)
            for k, name in enumerate(("training", "adversary", "test"))}


def parts_of(split, contents):
    """`split_pictures` as a run's split says. One that was made before copies were kept together,
    or that has none, is found again as it was."""
    return split_pictures(split["images"], split["seed"], contents if split.get("twins") else None)


def find_split(o, checkpoint, source, contents, images):
    """{"seed", "images"} of the split that --evaluate-kimg asks for (`parts_of`), or that the run
    began with; else None. If some are copies, also "twins": how many are copies of others.
    images:  how many usable pictures there are, `contents` which.

    Errors: UserError if pictures would be held out that the networks have already learned from.
    Proved: tests/test_run.py::test_what_was_held_out_stays_held_out
    """
    if checkpoint is None:
        twins = 0 if contents is None else images - len(contents.unique())
        wanted = {"seed": o.seed, "images": images, **({"twins": twins} if twins else {})}
        return wanted if o.evaluate_kimg is not None else None
    split = checkpoint["progress"].get("split")
    if split is None and o.evaluate_kimg is not None:
        raise UserError("--evaluate-kimg: the run that is resumed held no pictures out, and it is "
                        "too late to begin; give it to a new run")
    if split is not None and (split["images"] != images or not same_pictures(
            checkpoint["progress"], source, contents)):
        raise UserError(f"the pictures of {source.path} have changed since some were held out, "
                         f"and nobody knows which they were; a new run splits them anew")
    return split
