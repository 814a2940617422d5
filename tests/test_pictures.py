"""workshop/pictures.py and painted_faces.py: any picture file, the packed cache, the faces."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import types
import warnings
import zipfile
import zlib
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

import stylegan_dataloader as data
from workshop import measuring, painted_faces, pictures


@pytest.fixture
def photos(tmp_path):
    """A folder of 12 pictures of 40x32, each of one colour, in two levels of folders."""
    folder = tmp_path / "photos"
    (folder / "deeper" / "still").mkdir(parents=True)
    for k in range(12):
        where = folder if k % 2 else folder / "deeper" / "still"
        Image.new("RGB", (40, 32), (20 * k, 100, 250 - 20 * k)).save(where / f"{k:02d}.png")
    return folder


def pack(folder, cache, resolution=16, **options):
    """(packed folder, what was reported)."""
    lines = []
    source = pictures.find_pictures(folder)
    return pictures.pack_pictures(source, resolution, cache, report=lines.append, **options), lines


def test_a_photo_that_is_postscript_starts_nothing(tmp_path, monkeypatch):
    """Lesson: Pillow looks at what is in a file and not at its suffix, and hands PostScript, which
    is a program, to Ghostscript. Only the formats of photographs are let in."""
    started = []

    def ghostscript(*args, **kwargs):
        started.append(args)
        raise OSError("a stand-in for Ghostscript")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    path = tmp_path / "photo.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    with Image.open(path) as image, pytest.raises(OSError, match="stand-in"):        # control
        image.load()
    assert len(started) == 1
    source = pictures.find_pictures(tmp_path)
    with pytest.raises(OSError, match="cannot identify"):
        pictures.read_picture(source, 0, 16)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(path, "photo.png")
    with pytest.raises(OSError, match="cannot identify"):
        pictures.read_picture(pictures.find_pictures(tmp_path / "photos.zip"), 0, 16)
    with pytest.raises(pictures.DataError, match="1 of 1 pictures are damaged"):
        pack(tmp_path, tmp_path / "cache")
    assert len(started) == 1


# ---- 1. finding and reading ----


def test_wrong_paths_get_one_clear_sentence(tmp_path, photos):
    """Lesson: what cannot be used is named; what is no picture is left alone."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as archive:
        archive.writestr("a.png", b"x" * 1000)
    whole = (tmp_path / "broken.zip").read_bytes()
    (tmp_path / "broken.zip").write_bytes(whole.replace(b"PK\x01\x02", b"PK\x09\x09"))
    (photos / "._00.png").write_bytes(b"what macOS leaves behind")
    (photos / "notes.txt").write_text("hello")
    (photos / "painting.psd").write_bytes(b"8BPS")             # a suffix that is not in SUFFIXES
    for path, message in [(tmp_path / "missing", "no such folder"), (tmp_path / "empty", "no pict"),
                          (tmp_path / "notes.txt", "no .zip"), (photos / "01.png", "no .zip"),
                          (tmp_path / "broken.zip", "damaged .zip")]:
        with pytest.raises(pictures.DataError, match=message) as caught:
            pictures.find_pictures(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(pictures.find_pictures(photos).names) == 12     # control: right paths are taken
    Image.new("RGB", (40, 32)).save(photos / "PHOTO.JPG")
    assert len(pictures.find_pictures(photos).names) == 13


def test_a_folder_and_its_zip_give_the_same_pictures(tmp_path, photos):
    """Lesson: pictures are sorted by name, so their order does not depend on the disk."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in photos.rglob("*.png"):
            archive.write(path, path.relative_to(photos).as_posix())
            archive.writestr(f"__MACOSX/._{path.name}", b"icon")
    packed = [pack(where, tmp_path / "cache")[0] for where in (photos, tmp_path / "photos.zip")]
    assert packed[0] != packed[1]
    for r in (4, 8, 16):
        one, two = (np.load(folder / f"{r}.npy") for folder in packed)
        assert one.shape == (12, r, r, 3) and np.array_equal(one, two)
    assert not np.array_equal(one[0], one[1])                              # control


def test_there_are_always_more_painted_faces(tmp_path):
    """Lesson: faces beyond those that are trained on are new, and have a cache of their own."""
    assert pictures.painted_faces(range(pictures.PAINTED_FACES)) == pictures.find_pictures(None)
    unseen = pictures.painted_faces(range(10_000, 10_003))
    again = [pictures.read_picture(unseen, k, 16) for k in range(3)]
    assert np.array_equal(again[2], np.asarray(pictures.paint_face(10_002, 16)))
    assert not np.array_equal(again[2], np.asarray(pictures.paint_face(2, 16)))          # control
    unseen, others = (pictures.painted_faces(range(10_000, end)) for end in (10_020, 10_021))
    folders = {pictures.pack_pictures(source, 4, tmp_path, report=str)
               for source in (unseen, others)}
    assert len(folders) == 2


def test_every_mode_becomes_the_right_rgb(tmp_path):
    """Lesson: grey, palette, 16-bit, alpha, CMYK, float and rotated files all come out right."""
    def read(image, name="x.png", **save):
        folder = tmp_path / name.replace(".", "_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        image.save(folder / name, **save)
        pixels = pictures.read_picture(pictures.find_pictures(folder), 0, 8)
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
        return pixels

    def close(pixels, colour, tolerance=2):
        return np.abs(pixels.astype(int) - np.array(colour)).max() <= tolerance

    size = (16, 16)
    assert close(read(Image.new("L", size, 77)), (77,) * 3)
    assert close(read(Image.new("1", size, 1)), (255,) * 3)
    grey16 = Image.fromarray(np.full(size, 0x8000, np.uint16))
    assert close(read(grey16), (128,) * 3)
    assert close(np.asarray(grey16.convert("RGB")), (255,) * 3)            # control: Pillow's way
    assert close(read(grey16, "x.tif"), (128,) * 3)
    assert close(read(Image.fromarray(np.full(size, 0.5, np.float32)), "x.tiff"), (128,) * 3)
    assert close(read(Image.fromarray(np.full(size, 200, np.float32)), "x.tiff"), (200,) * 3)
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert close(read(palette), (10, 200, 30))
    assert close(read(palette, transparency=1), (255,) * 3)                # over white
    glass = Image.new("RGBA", size, (200, 0, 0, 128))
    assert close(read(glass), (227, 127, 127))
    assert close(read(glass, "x.webp", lossless=True), (227, 127, 127))
    assert close(read(Image.new("LA", size, (0, 0))), (255,) * 3)
    assert close(np.asarray(glass.convert("RGB")), (200, 0, 0))            # control: alpha ignored
    cmyk = Image.new("CMYK", size, (0, 255, 255, 0))
    assert close(read(cmyk, "x.jpg"), (255, 0, 0), tolerance=6)
    assert close(read(Image.new("RGB", size, (9, 8, 7)), "x.BMP"), (9, 8, 7))

    sky = Image.new("RGB", (16, 32), (0, 0, 255))                          # blue above, green below
    sky.paste((0, 255, 0), (0, 16, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6                                                       # "turn me 90 degrees"
    turned = read(sky, "x.png", exif=exif)
    assert turned[4, 1, 1] > 200 and turned[4, 6, 2] > 200                 # green left, blue right
    upright = read(sky)
    assert upright[1, 4, 2] > 200 and upright[6, 4, 1] > 200


@pytest.mark.parametrize("value", [np.nan, np.inf, 256.0, 40000.0, -0.5, np.int32(70000),
                                   np.int32(-5)])
def test_numbers_without_a_known_white_are_named(tmp_path, value):
    """Lesson: a float picture that is not finite, or of an unknown range, would become white or
    black without a word, and D would learn from it. It counts as damaged, and is named."""
    values = np.full((16, 16), 0.5, np.int32 if isinstance(value, np.int32) else np.float32)
    values[3, 4] = value
    (tmp_path / "p").mkdir()
    Image.fromarray(values).save(tmp_path / "p" / "x.tiff")
    Image.new("RGB", (16, 16), (9, 8, 7)).save(tmp_path / "p" / "y.png")
    folder, lines = pack(tmp_path / "p", tmp_path / "cache", max_bad=50)
    assert any("damaged, skipped: x.tiff (its " in line for line in lines)
    assert len(np.load(folder / "16.npy")) == 2 and json.loads(
        (folder / "index.json").read_text())["numbers"] == [1]


def with_chunk(image, kind, payload, last=False):
    """The bytes of a PNG with one more chunk, before or behind its pixels."""
    file = io.BytesIO()
    image.save(file, "PNG")
    whole = file.getvalue()
    at = whole.index(b"IEND" if last else b"IDAT") - 4
    return (whole[:at] + struct.pack(">I", len(payload)) + kind + payload
            + struct.pack(">I", zlib.crc32(kind + payload)) + whole[at:])


def test_what_is_written_about_a_picture_does_not_damage_it(tmp_path):
    """Lesson: text of more than 1 MB (the workflows that picture generators store), a huge colour
    profile or a broken EXIF block are no damage: the pixels are sound. The orientation is used
    where it can be read, also beside a number that cannot be."""
    sky = Image.new("RGB", (16, 32), (0, 0, 255))              # blue above, green below
    sky.paste((0, 255, 0), (0, 16, 16, 32))
    much = zlib.compress(b"x" * 3_000_000)
    upright = {"ztxt": with_chunk(sky, b"zTXt", b"workflow\0\0" + much),
               "late": with_chunk(sky, b"zTXt", b"workflow\0\0" + much, last=True),
               "itxt": with_chunk(sky, b"iTXt", b"workflow\0\1\0\0\0" + much),
               "iccp": with_chunk(sky, b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
               "noise": with_chunk(sky, b"eXIf", bytes(range(40))),
               "cut": with_chunk(sky, b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12")}
    turn = struct.pack("<HHII", 0x112, 3, 1, 6)                # "turn me 90 degrees"
    bad = struct.pack("<HHII", 0x11A, 10, 1, 8 + 2 + 24 + 4)   # minus one through nought
    turned = {"rational": with_chunk(sky, b"eXIf", b"II*\0\x08\0\0\0\x02\0" + turn + bad
                                     + bytes(4) + struct.pack("<ii", -1, 0))}
    (tmp_path / "p").mkdir()
    for name, whole in {**upright, **turned}.items():
        (tmp_path / "p" / f"{name}.png").write_bytes(whole)
    for where in (tmp_path / "p", shutil.make_archive(tmp_path / "p", "zip", tmp_path / "p")):
        folder, lines = pack(where, tmp_path / "cache", max_bad=0)
        assert not any("damaged" in line for line in lines)
        for name, pixels in zip(pictures.find_pictures(where).names, np.load(folder / "16.npy")):
            is_turned = pixels[8, 2, 1] > 200 and pixels[8, 13, 2] > 200   # green left, blue right
            is_upright = pixels[2, 8, 2] > 200 and pixels[13, 8, 1] > 200
            assert (is_turned, is_upright) == ((name[:-4] in turned), name[:-4] in upright), name
    with pytest.raises(ValueError, match="too large"):         # control: Pillow's own way
        Image.open(tmp_path / "p" / "ztxt.png").load()
    with Image.open(tmp_path / "p" / "rational.png") as image, pytest.raises(Exception):
        ImageOps.exif_transpose(image)


def test_links_are_followed_and_a_loop_ends(tmp_path, photos):
    """Lesson: class folders are often links to another disk. A link back to the folder itself, or a
    second one to the same place, adds nothing; names that need no link stay as they are; a link
    that leads nowhere is counted."""
    before = pictures.find_pictures(photos)
    shutil.copytree(photos / "deeper", tmp_path / "elsewhere")
    for name, target in (("a class", tmp_path / "elsewhere"), ("loop", photos),
                         ("b", photos / "deeper"), ("again", tmp_path / "elsewhere"),
                         ("gone.png", tmp_path / "not mounted" / "x.png"),
                         ("linked.png", photos / "01.png")):
        (photos / name).symlink_to(target)
    found = pictures.find_pictures(photos)
    assert set(before.names) < set(found.names)
    new = {name for name in found.names if name not in before.names}
    assert new == {"linked.png"} | {f"a class/still/{k:02d}.png" for k in range(0, 12, 2)}
    assert found.left == "1 broken links" and before.left == ""
    folder, lines = pack(photos, tmp_path / "cache")
    assert "1 broken links" in lines[0] and len(np.load(folder / "16.npy")) == 12 + 1 + 6


def test_each_listed_format_is_used_and_the_rest_is_counted(tmp_path):
    """Lesson: nothing is left out silently. A folder of .jfif is one of
    photos; a thousand .heic that nobody here can read are a line, not a surprise."""
    image, mixed = Image.new("RGB", (16, 16), (200, 30, 40)), tmp_path / "mixed"
    mixed.mkdir()
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".gif": "GIF", ".ppm": "PPM", ".bmp": "BMP",
             ".jp2": "JPEG2000", ".avif": "AVIF", ".webp": "WEBP", ".TIF": "TIFF"}
    kinds = {suffix: kind for suffix, kind in kinds.items() if suffix not in pictures.NEEDS
             or pictures._pillow_has(pictures.NEEDS[suffix])}
    assert len(kinds) >= 7
    for suffix, kind in kinds.items():
        image.save(mixed / f"a{suffix}", format=kind)
    for name in ("1.heic", "2.HEIC", "labels.json", "photo", ".hidden", "Thumbs.db"):
        (mixed / name).write_bytes(b"something")
    pipes = hasattr(os, "mkfifo")
    if pipes:
        os.mkfifo(mixed / "pipe.png")                          # to open it is to wait for ever
    for where in (mixed, tmp_path / "mixed.zip"):
        if where.suffix:
            with zipfile.ZipFile(where, "w") as archive:
                for path in mixed.iterdir():
                    if path.name != "pipe.png":
                        archive.write(path, path.name)
        folder, lines = pack(where, tmp_path / "cache")
        assert np.abs(np.load(folder / "4.npy").astype(int) - (200, 30, 40)).max() < 12
        assert len(np.load(folder / "4.npy")) == len(kinds)
        assert "left out" in lines[0] and not any("damaged" in line for line in lines)
        for part in ("2 .heic", "1 .json", "1 .db", "1 without a suffix"):
            assert part in lines[0], lines[0]
        assert ("1 pipes" in lines[0]) == (where == mixed and pipes) and "hidden" not in lines[0]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "1.heic").touch()
    with pytest.raises(pictures.DataError, match="no pictures in it.*there are 1 .heic"):
        pictures.find_pictures(tmp_path / "none")


def test_the_size_of_a_zip_member_is_known_before_it_is_unpacked(tmp_path, monkeypatch):
    """Lesson: 2 MB of .zip can be 2 GB of zeros. They are named, and never in memory."""
    image = io.BytesIO()
    Image.new("RGB", (16, 16)).save(image, "PNG")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", image.getvalue())
        archive.writestr("big.png", bytes(1_000_000))
    monkeypatch.setattr(pictures, "MOST_BYTES", 900_000)
    opened, right = [], zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, name, *more: opened.append(
        getattr(name, "filename", name)) or right(self, name, *more))
    folder, lines = pack(tmp_path / "x.zip", tmp_path / "cache", max_bad=50)
    assert "damaged, skipped: big.png (1 MB when it is unpacked; no more than 900 kB" in lines[-2]
    assert set(opened) == {"a.png"}


def zip_that_says(size, data, method):
    """A .zip of one member, of `data`, whose entries say that it is `size` bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("x.png", data)
    whole = bytearray(file.getvalue())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = whole.index(mark) + offset
        whole[at:at + 4] = struct.pack("<I", size)
    return bytes(whole)


def test_a_zip_member_that_lies_about_its_size_is_not_unpacked(tmp_path):
    """Lesson: a member that claims 9 bytes can be 2 GB; Python's zipfile inflates 1 GiB of it, and
    all where it is packed in another way, before it cuts the result to 9 bytes."""
    bound, zeros = 2 ** 20, bytes(2 ** 24)
    image = io.BytesIO()
    Image.new("RGB", (16, 16)).save(image, "PNG")
    path = tmp_path / "x.zip"
    for method, reason in ((zipfile.ZIP_DEFLATED, "Bad CRC-32"), (zipfile.ZIP_BZIP2, "neither"),
                           (zipfile.ZIP_LZMA, "neither")):
        path.write_bytes(zip_that_says(9, zeros, method))
        tracemalloc.start()
        with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):    # control
            archive.read("x.png")
        assert tracemalloc.get_traced_memory()[1] > 10 * bound
        tracemalloc.reset_peak()
        with pytest.raises((pictures.DataError, zipfile.BadZipFile), match=reason):
            pictures.open_picture(pictures.find_pictures(path), 0)
        assert tracemalloc.get_traced_memory()[1] < bound
        tracemalloc.stop()
    whole = image.getvalue()
    for size, accepted in ((len(whole), True), (len(whole) + 5, False)):
        path.write_bytes(zip_that_says(size, whole, zipfile.ZIP_STORED))
        source = pictures.find_pictures(path)
        if accepted:
            assert pictures.read_picture(source, 0, 8).shape == (8, 8, 3)
        else:
            with pytest.raises((pictures.DataError, zipfile.BadZipFile, EOFError)):
                pictures.open_picture(source, 0)


def test_a_zip_of_no_known_kind_is_one_sentence(tmp_path):
    """Lesson: a directory that asks for version 25.5 of the format, or names a file in bytes that
    are no UTF-8, is what Python's zipfile has other errors for than BadZipFile."""
    whole = zip_that_says(3, b"abc", zipfile.ZIP_STORED)
    at = whole.index(b"PK\x01\x02")
    for offset, new in ((6, b"\xff"), (8, bytes(2)), (8, b"\0\x08")):
        odd = bytearray(whole)
        odd[at + offset:at + offset + len(new)] = new
        odd[at + 46] = 0xFF if offset == 8 else odd[at + 46]               # of its name
        (tmp_path / "x.zip").write_bytes(odd)
        if new == bytes(2):                                    # control: not said to be UTF-8
            assert len(pictures.find_pictures(tmp_path / "x.zip").names) == 1
        else:
            with pytest.raises(pictures.DataError, match="x.zip: a damaged .zip"):
                pictures.find_pictures(tmp_path / "x.zip")


def test_names_in_a_zip_that_are_there_twice_or_lead_outwards_are_spoken_of(tmp_path):
    """Lesson: of two members of one name only the last can be had; it was packed twice, and the
    first left out without a word. "../x.png" was taken for a hidden file. Nothing is unpacked."""
    path, colours = tmp_path / "in" / "x.zip", [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    path.parent.mkdir()
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")                        # Python's, of the name
        for name, colour in zip(("../x.png", "y.png", "y.png"), colours):
            image = io.BytesIO()
            Image.new("RGB", (16, 16), colour).save(image, "PNG")
            archive.writestr(name, image.getvalue())
    folder, lines = pack(path, tmp_path / "cache")
    assert np.load(folder / "16.npy")[:, 0, 0].tolist() == [[200, 0, 0], [0, 0, 200]]
    assert "left out" in lines[0] and "1 with the name of another" in lines[0]
    assert not (tmp_path / "x.png").exists()


def test_a_picture_of_too_many_pixels_or_bytes_is_named(tmp_path, monkeypatch):
    """Lesson: 11 kB of PNG can be 88 million pixels, and a file of 3 GB is read whole by some of
    Pillow's parsers. Of a JPEG only a part is decoded, so it may have more pixels than others."""
    folder = tmp_path / "p"
    folder.mkdir()
    for name, side in (("large.png", 64), ("small.png", 30), ("large.jpg", 128)):
        Image.new("RGB", (side, side), (9, 8, 7)).save(folder / name)
    (folder / "long.webp").write_bytes(b"RIFF")
    os.truncate(folder / "long.webp", pictures.MOST_BYTES + 1)             # a hole, on the disk
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1100)
    packed, lines = pack(folder, tmp_path / "cache", max_bad=99)
    text = "\n".join(lines)
    assert "large.png (64x64; no more than" in text and "long.webp (200 MB; no more" in text
    assert len(json.loads((packed / "index.json").read_text())["rows"]) == 2
    assert "small.png" not in text and "large.jpg" not in text             # control
    monkeypatch.undo()
    assert 4096 ** 2 < pictures.MOST_PIXELS < Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(not pictures._pillow_has("webp"), reason="this Pillow reads no WebP")
def test_a_webp_is_as_large_as_its_header_says(tmp_path):
    """Lesson: Pillow makes room for a WebP before it looks at its size: 2 GB for 100 bytes."""
    for how in (dict(lossless=True), {}, dict(exif=b"Exif\0\0")):          # the third: extended
        for mode in ("RGB", "RGBA"):
            Image.new(mode, (309, 633)).save(tmp_path / "x.webp", **how)
            whole = (tmp_path / "x.webp").read_bytes()
            assert pictures._size_of_webp(whole[:30]) == (309, 633)
    size = (16_382).to_bytes(3, "little") * 2
    assert whole[12:16] == b"VP8X"
    (tmp_path / "x.webp").write_bytes(whole[:24] + size + whole[30:])
    with pytest.raises(pictures.DataError, match="16383x16383; no more than 50 million pixels"):
        pictures.open_picture(pictures.find_pictures(tmp_path), 0)


def tiff_directory(tags, claim):
    """A TIFF directory of so many tags, each of `claim` bytes that begin at 0."""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + b"".join(
        struct.pack("<HHII", 1000 + k, 1, claim, 0) for k in range(tags)) + bytes(4)


def test_tags_cannot_claim_more_than_the_file(tmp_path):
    """Lesson: each tag of a TIFF, or of EXIF data, may name the whole file as its value, and Pillow
    copies it for each: 12 kB become 12 MB, and 240 kB 3.6 GB. EXIF data of a JPEG come in parts of
    64 kB that are joined. The orientation is still found where the claims are true."""
    bound, image = 2 ** 22, Image.new("RGB", (16, 32), (0, 0, 255))
    image.paste((0, 255, 0), (0, 16, 16, 32))                  # blue above, green below
    turn = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x112, 3, 1, 6) + bytes(4)
    bomb = tiff_directory(1000, 12_000)
    folder = tmp_path / "p"
    folder.mkdir()

    def jpeg(exif):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=95)
        parts = [exif[:10], *(exif[k:k + 7000] for k in range(10, len(exif), 7000))]
        parts = [b"Exif\0\0" + part for part in parts]
        return out.getvalue()[:2] + b"\xff\xff\xff" + b"".join(
            b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts
        ) + out.getvalue()[2:]
    def in_hex(exif):                                          # as ImageMagick writes it
        return b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n9\n" + exif.hex().encode())
    wide = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 400) + b"".join(
        struct.pack("<HHQQ", 1000 + k, 1, 8000, 0) for k in range(400)) + bytes(8)
    for name, whole, reads in (
            ("x.tif", bomb, False), ("x.tif", wide, False), ("x.jpg", jpeg(bomb), False),
            ("x.png", with_chunk(image, b"eXIf", bomb), True), ("x.jpg", jpeg(turn), True),
            ("x.png", with_chunk(image, b"zTXt", in_hex(tiff_directory(10_000, 120_000))), True),
            ("x.png", with_chunk(image, b"zTXt", in_hex(turn), last=True), True),
            ("x.jpg", b"\xff\xd8\xff" + bytes(70_000) + jpeg(turn)[2:], False),
            ("x.png", with_chunk(image, b"eXIf", turn), True)):
        (folder / name).write_bytes(whole)
        source = pictures.find_pictures(folder)
        tracemalloc.start()
        if reads:
            pixels = pictures.read_picture(source, 0, 16)
            turned = pixels[8, 2, 1] > 200 and pixels[8, 13, 2] > 200      # green left, blue right
            assert turned == (turn[:10] in whole or in_hex(turn) in whole)
        else:
            with pytest.raises(pictures.DataError, match="tags claim|belongs to none"):
                pictures.read_picture(source, 0, 16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < bound, (name, peak)
        (folder / name).unlink()
    tracemalloc.start()                                        # control: Pillow's own way
    with warnings.catch_warnings(), contextlib.suppress(OSError):
        warnings.simplefilter("ignore")
        Image.open(io.BytesIO(bomb))
    assert tracemalloc.get_traced_memory()[1] > 2 * bound
    tracemalloc.stop()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_the_name_of_a_picture_cannot_write_to_the_terminal(tmp_path, photos):
    """Lesson: a file's name may hold escape codes and line breaks. It is shown without them, on one
    line, in what is said, in report.txt, and in errors."""
    name = "\x1b[2J\nall is well\u202e.png"
    shown = r"\x1b[2J\nall is well\u202e.png"
    (photos / name).write_bytes(b"not a picture")
    Image.new("RGB", (8, 8)).save(photos / f"small {name}")
    packed, lines = pack(photos, tmp_path / "cache", max_bad=50)
    assert all(line.isprintable() for line in lines)
    assert f"damaged, skipped: {shown} (cannot identify image file)" in lines
    assert any(f"small {shown}" in line for line in lines)
    told = (packed / "report.txt").read_text().splitlines()
    assert len(told) == 2 and all(line.isprintable() for line in told)
    with pytest.raises(pictures.DataError) as caught:
        pictures.read_again(pictures.find_pictures(photos),
                            pictures.find_pictures(photos).names.index(name), 16)
    assert shown in str(caught.value) and str(caught.value).isprintable()
    assert "\x1b" not in shown and not name.isprintable()      # control


def test_the_central_square_is_cut_and_downsampling_is_antialiased(tmp_path):
    """Lesson: every pixel of the photograph counts, or fine texture turns into false patterns."""
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    wide.paste((0, 0, 255), (16, 0, 48, 32))
    wide.save(tmp_path / "wide.png")
    pixels = pictures.read_picture(pictures.find_pictures(tmp_path), 0, 8)
    assert (pixels[..., 2] > 200).all() and (pixels[..., 0] < 50).all()
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255                                      # finer than 8 px can show
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    pixels = pictures.read_picture(pictures.find_pictures(tmp_path), 0, 8)
    assert np.abs(pixels.astype(int) - 127).max() < 8
    lookup = np.asarray(Image.fromarray(stripes).resize((8, 8), Image.Resampling.NEAREST))
    assert np.abs(lookup.astype(int) - 127).min() > 100        # control: no antialiasing


def test_a_jpeg_decoded_at_a_part_of_its_size_looks_the_same(tmp_path, monkeypatch):
    """Lesson: at twice the resolution or more, decoding less is not seen."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    coarse.resize((128, 128), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg", quality=95)
    source, decoded, right = pictures.find_pictures(tmp_path), [], pictures.to_rgb

    def to_rgb(image):
        decoded.append(image.size)
        return right(image)
    monkeypatch.setattr(pictures, "to_rgb", to_rgb)
    drafted = pictures.read_picture(source, 0, 16).astype(int)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *ignored: None)
    full = pictures.read_picture(source, 0, 16).astype(int)
    assert decoded == [(32, 32), (128, 128)]                   # twice the resolution; all of it
    assert np.abs(drafted - full).max() <= 12
    assert np.abs(full[::-1] - full).max() > 100               # control: it is not all grey


def test_the_levels_are_what_the_networks_would_make_of_them(tmp_path):
    """Lesson: level R/2 is the 2x2 mean of level R, rounded; as `F.avg_pool2d` in D."""
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "p" / "x.png")
    folder, _ = pack(tmp_path / "p", tmp_path / "cache")
    large, small = (torch.from_numpy(np.load(folder / f"{r}.npy")) for r in (16, 8))
    pooled = torch.nn.functional.avg_pool2d(data.to_images(large), 2)
    assert (data.to_images(small) - pooled).abs().max() <= 0.5 / 127.5 + 1e-6
    lookup = data.to_images(large)[..., ::2, ::2]              # control: another way down
    assert (data.to_images(small) - lookup).abs().max() > 0.1



# ---- 2. the packed cache ----


def test_the_cache_is_rebuilt_when_files_or_options_change(tmp_path, photos):
    """Lesson: a stale cache is never used, and never pulled away from under a run that uses it."""
    cache = tmp_path / "cache"
    folder, lines = pack(photos, cache)
    assert "Packing 12 pictures" in lines[0]
    made = (folder / "16.npy").stat().st_mtime_ns
    assert pack(photos, cache) == (folder, [])                             # control: found again
    assert (folder / "16.npy").stat().st_mtime_ns == made
    Image.new("RGB", (40, 32), "red").save(photos / "01.png")
    changed, lines = pack(photos, cache)
    assert changed != folder and folder.name in lines[0] and "can be deleted" in lines[0]
    assert (np.load(changed / "16.npy") != np.load(folder / "16.npy")).any()
    assert pack(photos, cache) == (changed, [])
    upsampled, lines = pack(photos, cache, allow_upsampling=True)
    assert upsampled not in (folder, changed)
    (upsampled / "8.npy").unlink()                                         # incomplete: again
    assert "Packing" in pack(photos, cache, allow_upsampling=True)[1][-1]
    assert (upsampled / "8.npy").exists()


def test_of_two_runs_that_pack_at_once_the_first_wins(tmp_path, photos, monkeypatch):
    """Lesson: the second finds a whole cache when it is done, and must not pull it away."""
    right, first = pictures.halve, []

    def another_run_finishes_meanwhile(pixels):
        if not first:
            first.append(None)
            first[0] = pack(photos, tmp_path / "cache")[0]
            (first[0] / "in use").touch()
        return right(pixels)
    monkeypatch.setattr(pictures, "halve", another_run_finishes_meanwhile)
    second, _ = pack(photos, tmp_path / "cache")
    assert second == first[0] and (second / "in use").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [second.name]   # no litter


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o700])
def test_who_may_read_the_cache_is_up_to_its_folder(tmp_path, photos, mode):
    """Lesson: a team packs its pictures once. A folder that only its maker may enter makes the
    others pack them again; but one that was closed stays closed."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    folder = pack(photos, tmp_path / "cache")[0]
    assert stat.S_IMODE(os.stat(folder).st_mode) == mode


def test_an_interrupted_cache_is_built_again(tmp_path, photos, monkeypatch):
    """Lesson: a folder with the right name is a whole cache; anything else is never looked at."""
    cache = tmp_path / "cache"
    right, calls = pictures.halve, itertools.count()

    def interrupted(pixels):
        if next(calls) == 10:
            raise KeyboardInterrupt
        return right(pixels)
    monkeypatch.setattr(pictures, "halve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(photos, cache)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(pictures, "halve", right)
    # kill -9 leaves a folder behind; it is old news after ten minutes.
    (cache / "x-8px-0123456789ab.partial-abc").mkdir()
    os.utime(cache / "x-8px-0123456789ab.partial-abc", (0, 0))
    (cache / "y-8px-0123456789ab.partial-def").mkdir()                     # another run's, alive
    (cache / "notes.partial-old").mkdir()                                  # the user's own
    os.utime(cache / "notes.partial-old", (0, 0))
    folder, lines = pack(photos, cache)
    assert "Packing 12" in lines[0] and np.load(folder / "16.npy").shape[0] == 12
    left = {path.name for path in cache.iterdir()} - {folder.name}
    assert left == {"y-8px-0123456789ab.partial-def", "notes.partial-old"}


def test_the_disk_is_checked_before_writing(tmp_path, photos):
    """Lesson: what is needed is said in one line; the largest level can be left out, no more."""
    need = {r: 12 * 3 * r * r for r in (4, 8, 16)}
    spare = int(100e6)
    with pytest.raises(pictures.DataError, match="takes 12.1 kB") as caught:
        pack(photos, tmp_path / "cache", free_bytes=spare + need[4] + need[8] - 1)
    assert "--cache" in str(caught.value)
    assert not any((tmp_path / "cache").rglob("*.npy"))
    folder, lines = pack(photos, tmp_path / "cache", free_bytes=spare + need[4] + need[8])
    assert "originals are read at 16 px" in lines[0]
    assert sorted(p.name for p in folder.glob("[0-9]*.npy")) == ["4.npy", "8.npy"]
    # As long as there is no more room, nothing is said; then, that there is.
    assert pack(photos, tmp_path / "cache", free_bytes=spare + need[16]) == (folder, [])
    assert "now there is: delete it" in pack(photos, tmp_path / "cache")[1][0]
    whole, _ = pack(photos, tmp_path / "whole", free_bytes=spare + sum(need.values()))
    source = pictures.find_pictures(photos)
    for r in (4, 8, 16):                                                   # and gives the same
        one, two = (data.PictureDataset(f, source, r).__getitems__(range(24))
                    for f in (folder, whole))
        assert torch.equal(one, two)


def test_a_cache_that_was_copied_in_part_is_packed_again(tmp_path, photos):
    """Lesson: a level that is cut short would end the run with a traceback, and one of the right
    size with a hole in it would teach black pictures. What was not copied is not read again."""
    folder, _ = pack(photos, tmp_path / "cache")
    whole, size = (folder / "16.npy").read_bytes(), (folder / "16.npy").stat().st_size
    shutil.copytree(folder, tmp_path / "whole")

    def hole(path):
        path.write_bytes(whole[:128 + 5 * 768])
        os.truncate(path, size)

    def empty_list(path):
        path.write_text("[]")
    for name, damage in (
            ("16.npy", lambda path: os.truncate(path, 1000)), ("8.npy", os.remove),
            ("4.npy", lambda path: os.truncate(path, 0)), ("16.npy", hole),
            ("index.json", lambda path: os.truncate(path, 20)), ("index.json", empty_list),
            ("index.json", lambda path: path.write_text('{"levels": [4, 8, 16]}')),
            ("checks.npy", lambda path: os.truncate(path, 30))):
        damage(folder / name)
        again, lines = pack(photos, tmp_path / "cache")
        assert again == folder and "is packed again" in lines[0], name
        assert (folder / "16.npy").read_bytes() == whole
        assert pack(photos, tmp_path / "cache") == (folder, [])            # once
    # A whole copy has new times, is looked through once, and used.
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    looked = []
    right = zlib.crc32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures.zlib, "crc32", lambda *a: looked.append(1) or right(*a))
        for _ in range(2):
            assert pack(photos, tmp_path / "cache") == (folder, [])
    assert len(looked) == 3 * 12


def test_a_content_is_known_wherever_it_lies(tmp_path, photos):
    """Lesson: a copy has other times, a .zip has none that count; the pictures are the same. One
    byte more in one of them, and they are others."""
    folder, _ = pack(photos, tmp_path / "cache")
    contents = pictures.contents_of(folder)
    assert len(set(contents.tolist())) == 12 and contents.dtype == torch.int64
    shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    archive = shutil.make_archive(tmp_path / "z", "zip", photos)
    stamps = {pictures.find_pictures(photos).stamp}
    for where in (tmp_path / "copy", archive):
        source = pictures.find_pictures(where)
        stamps.add(source.stamp)
        other = pictures.contents_of(pack(where, tmp_path / "cache")[0])
        assert torch.equal(other, contents)
        assert pictures.same_pictures({"contents": contents, "pictures": "x"}, source, other)
        assert not pictures.same_pictures({"pictures": "x"}, source, other)
    assert len(stamps) == 3                                    # control: by times they are not
    with open(tmp_path / "copy" / "01.png", "ab") as file:
        file.write(b"x")
    assert not torch.equal(pictures.contents_of(pack(tmp_path / "copy", tmp_path / "cache")[0]),
                           contents)
    faces = pictures.pack_pictures(pictures.painted_faces(range(3)), 4, tmp_path, report=str)
    assert pictures.contents_of(faces) is None


PACK = """import sys, time
sys.path.insert(0, {root!r})
from workshop import machine, pictures
right = pictures.read_picture
def slowly(*args):
    time.sleep(0.05)
    return right(*args)
pictures.read_picture = slowly
source = pictures.painted_faces(range(400))
print("begun", flush=True)
pictures.pack_pictures(source, 4, {cache!r}, workers=2, report=str)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_a_killed_packer_ends_the_packing_in_seconds(tmp_path):
    """Lesson: of the processes that pack one is killed: one sentence, exit code 2, nobody is left.
    (It used to wait for ever, since they ignore what Python sends them at its end.) Where all are
    killed, the next one does not count what they left as used disk."""
    code = PACK.format(root=str(pathlib.Path(pictures.__file__).parent.parent),
                       cache=str(tmp_path / "cache"))
    main = ("from workshop import options\noptions.start(lambda argv: exec(code, {}), 'x.py')")
    process = subprocess.Popen([sys.executable, "-c", f"code = {code!r}\nimport sys\n"
                                f"sys.path.insert(0, {str(pathlib.Path(data.__file__).parent)!r})\n"
                                f"{main}"], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    assert process.stdout.readline() == "begun\n"
    for _ in range(1000):
        workers = [int(pid) for pid in children.read_text().split()]
        if len(workers) == 2:
            break
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(workers[0], signal.SIGKILL)
    started = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and time.monotonic() - started < 30
    assert said.count("\n") == 1 and "x.py: a process was ended from outside while packing" in said
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers)
    assert list((tmp_path / "cache").iterdir()) == []

    # kill -9 leaves a folder whose lock is free: it goes at once. One that is held stays.
    dead, alive = (tmp_path / "cache" / f"{name}-8px-0123456789ab.partial-x"
                   for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder.mkdir()
    (dead / "lock").touch()
    pictures.machine.lock(alive / "lock")
    pictures.pack_pictures(pictures.painted_faces(range(3)), 4, tmp_path / "cache", report=str)
    assert alive.exists() and not dead.exists()
    pictures.machine.unlock(alive / "lock")


TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


@pytest.mark.skipif(os.name == "nt", reason="fcntl")
def test_a_living_packer_keeps_its_lock_to_the_end(tmp_path, photos, monkeypatch):
    """Lesson: a lock of the operating system is gone when its process closes ANY file handle of the
    lock file. To flush all files of a folder, the lock among them, was to let go of it, for as long
    as large files take; and another run would have deleted what it took for left behind."""
    free, flush = [], os.fsync

    def look(file):
        flush(file)
        lock, = (tmp_path / "cache").glob("*.partial-*/lock")
        free.append(subprocess.run([sys.executable, "-c", TRY, lock],
                                   capture_output=True).returncode)
    monkeypatch.setattr(pictures.os, "fsync", look)
    pack(photos, tmp_path / "cache", 4)
    assert len(free) > 3 and all(free)                         # never to be had
    (tmp_path / "lock").touch()                                # control
    assert subprocess.run([sys.executable, "-c", TRY, tmp_path / "lock"]).returncode == 0


def test_too_little_memory_is_no_damaged_picture(tmp_path, photos, monkeypatch):
    """Lesson: who has no memory today may have some tomorrow; a picture that is called damaged
    would be left out for good."""
    def too_large(*arguments):
        raise MemoryError
    for what in ("_use_picture", "read_picture"):
        with monkeypatch.context() as patch:
            patch.setattr(pictures, what, too_large)
            with pytest.raises(MemoryError):
                pack(photos, tmp_path / what, 4)
        pack(photos, tmp_path / what, 4)                       # control


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, photos):
    (tmp_path / "file").write_text("")
    with pytest.raises(pictures.DataError, match="name another place with --cache"):
        pack(photos, tmp_path / "file" / "cache")


def test_damaged_files_are_named_and_too_many_stop_the_run(tmp_path, photos):
    """Lesson: a damaged photo costs that photo; many are a sign of something worse."""
    whole = (photos / "03.png").read_bytes()
    (photos / "03.png").write_bytes(whole[:len(whole) // 2])
    (photos / "05.png").write_bytes(b"not a picture")
    with pytest.raises(pictures.DataError, match="2 of 12 pictures are damaged, .* --max-bad 1"):
        pack(photos, tmp_path / "cache")
    folder, lines = pack(photos, tmp_path / "cache", max_bad=20)
    text = "\n".join(lines)
    assert "03.png" in text and "05.png" in text and "07.png" not in text
    assert "03.png: damaged" in (folder / "report.txt").read_text()
    dataset = data.PictureDataset(folder, pictures.find_pictures(photos), 16)
    assert len(dataset) == 10
    assert dataset.__getitems__(range(10)).reshape(10, -1).max(dim=1).values.min() > 0  # no hole


def test_small_pictures_are_left_out_unless_asked_for(tmp_path, photos):
    """Lesson: an enlarged picture would teach G to blur, so nobody gets them by accident."""
    Image.new("RGB", (15, 40)).save(photos / "small.png")
    folder, lines = pack(photos, tmp_path / "cache")
    assert any("1 of 13 pictures are smaller than 16x16" in x and "small.png" in x for x in lines)
    source = pictures.find_pictures(photos)
    assert len(data.PictureDataset(folder, source, 16)) == 12
    folder, lines = pack(photos, tmp_path / "cache", allow_upsampling=True)
    assert any("enlarged" in line for line in lines)
    assert len(data.PictureDataset(folder, source, 16)) == 13
    with pytest.raises(pictures.DataError, match="none of its 13 pictures is 64x64 or larger"):
        pack(photos, tmp_path / "cache", resolution=64)


def test_workers_pack_the_same_cache(tmp_path):
    """Lesson: several processes write into one file, each its own rows."""
    source = pictures.find_pictures(None)._replace(names=[str(k) for k in range(100)])
    folders = [pictures.pack_pictures(source, 8, tmp_path / str(w), w, report=lambda line: None)
               for w in (0, 2)]
    one, two = (np.load(folder / "8.npy") for folder in folders)
    assert np.array_equal(one, two) and len(np.unique(one.reshape(100, -1), axis=0)) == 100



# ---- 3. held-out pictures ----


def test_the_split_is_disjoint_by_image_and_repeatable(tmp_path, photos):
    """Lesson: pictures that judge a network must be pictures that it has not learned from, so each
    belongs to one part, whatever its mirror image, its size or the epoch."""
    parts = pictures.split_pictures(1003, seed=5)
    assert {name: len(part) for name, part in parts.items()} == {
        "training": 803, "adversary": 100, "test": 100}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1003))
    again, other = pictures.split_pictures(1003, seed=5), pictures.split_pictures(1003, seed=6)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    assert not np.array_equal(parts["test"], other["test"])                # control: another seed
    # What reaches a network: the reds of the pictures, over many epochs and mirrored.
    folder, _ = pack(photos, tmp_path / "cache")
    seen = {}
    for name, part in pictures.split_pictures(12).items():
        for resolution in (4, 16):
            source = pictures.find_pictures(photos)
            dataset = data.PictureDataset(folder, source, resolution, only=part)
            reds = set(dataset.__getitems__(range(60))[:, 0, 0, 0].tolist())
            assert seen.setdefault(name, reds) == reds and len(reds) == len(part)
    assert [len(seen[name]) for name in ("training", "adversary", "test")] == [10, 1, 1]
    assert len(set.union(*seen.values())) == 12

def test_copies_of_a_picture_are_on_one_side_of_the_split(tmp_path, photos):
    """Lesson: a picture that lies in a folder under two names would be trained on, and judge what
    was learned from it. Copies go where the first is; a folder without any is split as ever."""
    rng, n = np.random.default_rng(0), 1000
    contents = torch.from_numpy(rng.integers(0, 500, n))                   # some once, some often
    parts, alone = pictures.split_pictures(n, 5, contents), pictures.split_pictures(n, 5)
    sets = {name: set(contents[part].tolist()) for name, part in parts.items()}
    assert not (sets["training"] & sets["test"] or sets["training"] & sets["adversary"]
                or sets["adversary"] & sets["test"])
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(n))
    assert 0.05 * n < len(parts["test"]) < 0.15 * n            # still about a tenth
    assert set(contents[alone["training"]].tolist()) & set(contents[alone["test"]].tolist())
    same = pictures.split_pictures(n, 5, torch.arange(n) * 7)              # control: no copies
    assert all(np.array_equal(same[name], alone[name]) for name in alone)
    # A run says whether it has copies; one that began before they were kept together says nothing.
    o = types.SimpleNamespace(evaluate_kimg=1.0, seed=5)
    split = pictures.find_split(o, None, None, contents, n)
    assert split == {"seed": 5, "images": n, "twins": n - len(contents.unique())}
    assert pictures.find_split(o, None, None, torch.arange(n), n) == {"seed": 5, "images": n}
    for which, wanted in ((split, parts), ({"seed": 5, "images": n}, alone)):
        again = pictures.parts_of(which, contents)
        assert all(np.array_equal(again[name], wanted[name]) for name in wanted)
    # evaluate.py finds the same parts again; of other pictures, those that were not trained on.
    checkpoint = {"progress": {"pictures": "x", "contents": contents, "split": split}}
    source = pictures.Source("folder", "p", [], "y")
    adversary, test, _ = measuring.find_parts(checkpoint, n, source, contents)
    assert np.array_equal(test, parts["test"]) and np.array_equal(adversary, parts["adversary"])
    mixed = torch.cat([contents[:100], torch.arange(1000, 1200)])
    found = np.concatenate(measuring.find_parts(checkpoint, 300, source, mixed)[:2])
    assert set(mixed[found].tolist()) == set(mixed.tolist()) - sets["training"]
    # And of real files: 12 colours, each under two names.
    for path in list(photos.rglob("*.png")):
        shutil.copyfile(path, path.with_name(f"copy of {path.name}"))
    o = types.SimpleNamespace(data=photos, resolution=16, cache=tmp_path / "cache", max_bad=1.0,
                              seed=1, allow_upsampling=False, evaluate_kimg=1.0, no_flip=True,
                              workers=0)
    run = data.Pictures(o, pictures.machine.Team(torch.device("cpu")))
    reds = {name: run.dataset(16, name).__getitems__(range(48))[:, 0, 0, 0].tolist()
            for name in ("training", "test")}
    assert run.split["twins"] == 12 and reds["test"]
    assert not set(reds["training"]) & set(reds["test"])


# ---- painted_faces.py ----


def test_painted_faces_are_repeatable_and_no_two_alike():
    """Lesson: number n of series s is the same face everywhere and for ever; the first 500 are all
    different. A small face is the large one averaged: both were painted at 256 px."""
    faces = [pictures.paint_face(n, 32).tobytes() for n in range(500)]
    assert len(set(faces)) == 500
    assert faces[7] == pictures.paint_face(7, 32).tobytes()
    assert faces[7] != pictures.paint_face(7, 32, seed=1).tobytes()        # control: other numbers
    for resolution in (4, 48, 64, 100, 256):
        assert pictures.paint_face(3, resolution).size == (resolution, resolution)
    small, large = (np.asarray(pictures.paint_face(3, r), float) for r in (32, 64))
    assert np.abs(large.reshape(32, 2, 32, 2, 3).mean((1, 3)) - small).max() <= 1
    assert np.abs(large[::2, ::2] - small).max() > 30          # control: not every second pixel


class OnlyRandom:
    """A `random.Random` that has nothing but `random`."""

    def __init__(self, seed):
        self.random = Random(seed).random


def test_a_face_needs_only_what_python_promises(monkeypatch):
    """Lesson: Python promises the sequence of `random.random` for a seed, and of nothing else in
    there ("Notes on Reproducibility"); Pillow draws polygons differently from version to version.
    So faces do not ask for either: a data set must not change when a machine is updated."""
    before = [pictures.paint_face(n, 32).tobytes() for n in range(20)]

    def forbidden(*args, **kwargs):
        raise AssertionError("used")
    monkeypatch.setattr(painted_faces.random, "Random", OnlyRandom)
    monkeypatch.setattr(ImageDraw.ImageDraw, "polygon", forbidden)
    assert [pictures.paint_face(n, 32).tobytes() for n in range(20)] == before
    with pytest.raises(AttributeError):                        # control: another method is missed
        OnlyRandom(0).choice


def colours_of(pixels):
    """{colour: how many pixels} of uint8 [.., 3]."""
    codes = pixels.reshape(-1, 3).astype(int) @ np.array([65536, 256, 1])
    codes, counts = np.unique(codes, return_counts=True)
    return {(c >> 16, c >> 8 & 255, c & 255): n for c, n in zip(codes.tolist(), counts.tolist())}


def test_what_was_drawn_by_lot_is_seen_in_the_face():
    """Lesson: what the data set must hold is known before: the first number of a face is its skin,
    and of 150 faces a quarter wears glasses."""
    skins, glasses = painted_faces.SKIN_COLOURS, 0
    tones, kinds = [], set()
    for number in range(150):
        face = np.asarray(pictures.paint_face(number, 128))
        tone = Random(f"face 0 {number}").random() * (len(skins) - 1.001)
        light, dark = skins[int(tone)], skins[int(tone) + 1]
        skin = tuple(round(a + (b - a) * (tone % 1)) for a, b in zip(light, dark))
        middle = colours_of(face[45:100, 40:88])
        assert max(middle, key=middle.get) == skin             # most of the middle of the picture
        assert skin not in colours_of(face[:, :4])             # control: the wall is not
        colours = colours_of(face)
        glasses += any(colours.get(frame, 0) > 40 for frame in painted_faces.FRAME_COLOURS)
        kinds |= {eye for eye in painted_faces.EYE_COLOURS if colours.get(eye, 0) > 40}
        tones.append(int(tone))
    assert abs(glasses / 150 - 0.26) < 0.11                    # 3 standard deviations
    assert kinds == set(painted_faces.EYE_COLOURS)
    assert set(tones) == set(range(len(skins) - 1))
