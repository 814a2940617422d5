"""hostile.py: damaged files, one after the other, through every program that opens one.

    python experiments/hostile.py                      some minutes on a CPU
    python experiments/hostile.py --files 1000         1,000 checkpoints, pickles and pictures

Needs:   what the programs need, and Linux, whose /proc tells the peak of the memory.

Checkpoints go through the loading of all scripts that read one, official pickles through
import_checkpoint.py, pictures through packing, as train.py --data does it: alone, in a folder among
good ones, or in a .zip. Each file is damaged in a way that its number and --seed draw: cut off,
bits flipped, words and tensors replaced, records renamed, other pickles in its place; a picture
also claims another size, is a decompression bomb, of an odd mode or name, a pipe, a loop of links.
What is asked:

  accepted   or refused with exit code 2 by one sentence that names the file, without escape codes
  bounded    5 s of CPU time, and 1 GiB above what the programs take when they are imported
  harmless   no file appears but the one that was asked for; good pictures are packed as they are

Of ten checkpoints that are accepted, one is also used to make pictures; all of them are grown,
converted, and given to a run.

No traceback, no end of the interpreter, no hang: the files are opened in another process. If a file
ends it, that is counted, and a new process goes on with the next file.
"""

import argparse
import bz2
import collections
import contextlib
import copy
import ctypes
import functools
import io
import json
import os
import pathlib
import pickle
import pickletools
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOST_SECONDS, MOST_MB, PATIENCE = 5.0, 1024, 300
BATCH = 100                       # files a process, which takes 2 s of CPU time to start


# ---- 1. What is put in the place of something else -------------------------------------------


def deep(levels):
    """A tuple in a tuple in a tuple ..., as a list of instructions."""
    return b")" + b"\x85" * levels


def junk(rng):
    """A value that torch.save can write, for a place where it does not belong."""
    import torch
    long_list = []
    for _ in range(500):
        long_list = [long_list]
    doubling = []
    for _ in range(60):
        doubling = [doubling, doubling]
    make = rng.choice([
        lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 2 ** 70, lambda: 10 ** 5000,
        lambda: 0.5, lambda: float("nan"), lambda: float("inf"), lambda: 1e308, lambda: "",
        lambda: "\x1b[2Jall is well\nsecond line", lambda: "x" * 10 ** 6, lambda: "../../etc",
        lambda: "4:1e999", lambda: "1:2,3", lambda: [], lambda: [1], lambda: {}, lambda: {"a": 1},
        lambda: (1, 2), lambda: long_list, lambda: doubling, lambda: b"bytes", lambda: 3 + 4j,
        lambda: torch.zeros(3), lambda: torch.zeros(()), lambda: torch.full((5,), float("nan")),
        lambda: torch.zeros(1).expand(10 ** 6, 10 ** 4), lambda: torch.zeros(0),
        lambda: torch.eye(4).to_sparse(), lambda: torch.zeros(4, 4, device="meta"),
        lambda: torch.zeros(4, dtype=torch.complex64), lambda: torch.zeros(4, dtype=torch.uint8),
        lambda: torch.nn.Parameter(torch.zeros(4)), lambda: torch.zeros(4, requires_grad=True),
        lambda: torch.Size([1, 2]), lambda: torch.float16, lambda: torch.device("cpu")])
    return make()


def like(tensor, rng):
    """A tensor that is nearly the right one."""
    import torch
    make = rng.choice([
        lambda t: t.reshape(-1), lambda t: t[None], lambda t: t.to(torch.float64),
        lambda t: t.half(), lambda t: t.to(torch.complex64), lambda t: t.to("meta"),
        lambda t: t.to_sparse(), lambda t: t * float("nan"), lambda t: t + float("inf"),
        lambda t: torch.zeros(()).expand(t.shape), lambda t: t * 1e38, lambda t: -t,
        lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        lambda t: torch.nn.Parameter(t.float()), lambda t: t.long()])
    return make(tensor)


def places(value):
    """All (path of keys) in nested dicts and lists; what lies in two places is looked at once."""
    waiting, seen, found = [((), value)], set(), []
    while waiting:
        at, value = waiting.pop()
        if id(value) in seen or not isinstance(value, (dict, list)):
            continue
        seen.add(id(value))
        inner = [((*at, key), part) for key, part in (
            value.items() if isinstance(value, dict) else enumerate(value))]
        waiting += inner
        found += [path for path, _ in inner]
    return found


def random_pickle(rng, length):
    """Instructions in no order."""
    codes = [op for op in pickletools.opcodes]
    out = b"\x80\x02"
    for _ in range(length):
        op = rng.choice(codes)
        out += op.code.encode("latin-1")
        if op.arg is not None and op.arg.n > 0:
            out += rng.randbytes(op.arg.n)
        elif op.arg is not None:
            out += rng.choice([b"1\n", b"os\nsystem\n", struct.pack("<I", 3) + b"abc", b"\x02ab"])
    return out + b"."


def foreign(rng):
    """A pickle that no checkpoint has."""
    return rng.choice([
        lambda: b"\x80\x02}" + deep(190_000) + b"Ns.", lambda: b"\x80\x02" + deep(60_000) + b".",
        lambda: b"\x80\x02cos\nmkdir\nX\x03\x00\x00\x00bad\x85R.",
        lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2 ** 62) + b"few.",
        lambda: b"\x80\x02" + b"]" * 45_000 + b"a" * 44_999 + b".",
        lambda: b"\x80\x02]q\x00h\x00a.", lambda: b"\x80\x02" + b"}" * 1_200_000 + b".",
        lambda: b"\x80\x02ccollections\nOrderedDict\n]]" + deep(15) + b"Na\x85R.",
        lambda: b"\x80\x02Nr\xff\xff\xff\xff.", lambda: pickle.dumps({"format": 1}),
        lambda: b"\x80\x02\x8b" + struct.pack("<i", 20_000) + b"\x7f" * 20_000 + b".",
        lambda: random_pickle(rng, rng.randrange(1, 60))])()


# ---- 2. The faults ---------------------------------------------------------------------------


def saved(checkpoint):
    import torch
    out = io.BytesIO()
    torch.save(checkpoint, out)
    return out.getvalue()


def rezipped(raw, rng, change=lambda name, data: (name, data), method=zipfile.ZIP_STORED, more=()):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w", method) as new:
        for info in old.infolist():
            name, data = change(info.filename, old.read(info))
            new.writestr(zipfile.ZipInfo(name), data, method)          # a date of its own, 1980
        for name, data in more:
            new.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def cut(rng, raw):
    return raw[:rng.choice([rng.randrange(100), rng.randrange(len(raw)), len(raw) - 1])]


def flipped(rng, raw):
    """Bits; in the first or last 20 kB, where the words are, more often than in the numbers."""
    raw = bytearray(raw)
    low, high = rng.choice([(0, len(raw)), (0, min(20_000, len(raw))),
                            (max(0, len(raw) - 20_000), len(raw))])
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        raw[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    return bytes(raw)


def spliced(rng, raw):
    """Some bytes left out, doubled, or zero."""
    at, n = rng.randrange(len(raw)), rng.choice([1, 4, 64, 5000])
    return raw[:at] + rng.choice([b"", raw[at:at + n] * 2, bytes(n)]) + raw[at + n:]


def with_pickle(rng, raw, change):
    return rezipped(raw, rng, lambda name, data: (
        name, change(data) if name.endswith("data.pkl") else data))


def edited(rng, raw):
    """A pickle with a few instructions left out, doubled, or with another argument."""
    at = [position for _, _, position in pickletools.genops(raw)] + [len(raw)]
    for _ in range(rng.choice([1, 1, 2, 5])):
        k = rng.randrange(1, len(at) - 2)
        part = raw[at[k]:at[k + 1]]
        new = rng.choice([b"", part * 2, b"N", b"]", b"}", b"K\x07", b"X\x01\x00\x00\x00a", b"0",
                          b"2", b"\x85", deep(rng.choice([2, 30])), part[:1] + rng.randbytes(
                              max(0, len(part) - 1)) if len(part) < 10 else part[::-1]])
        raw = raw[:at[k]] + new + raw[at[k + 1]:]
        at = at[:k + 1] + [position + len(new) - len(part) for position in at[k + 1:]]
    return raw


def changed(rng, checkpoint):
    """A value, a key, a tensor of a checkpoint that is another one, or gone."""
    checkpoint = copy.deepcopy(checkpoint)
    parts = rng.choice([list(checkpoint), ["options", "progress", "samples", "settings"],
                        ["options", "progress"]])
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        part = rng.choice(parts)
        inside = [(part, *path) for path in places(checkpoint.get(part))]
        *outer, last = rng.choice(inside or [(part,)])
        target = checkpoint
        try:
            for key in outer:
                target = target[key]
            value = target[last]
        except (KeyError, IndexError, TypeError):
            continue
        what = rng.choice(["junk", "junk", "like", "gone", "renamed", "more", "swapped"])
        if what == "gone":
            del target[last]
        elif what == "renamed" and isinstance(target, dict):
            target[rng.choice(["\x1b[2J\n", 5, "x" * 5000, (1,), None, True])] = target.pop(last)
        elif what == "more" and isinstance(target, dict):
            target[rng.choice(["more", "\x1b[2J\n", 7])] = junk(rng)
        elif what == "like" and hasattr(value, "shape"):
            target[last] = like(value, rng)
        elif what == "like" and type(value) in (int, float):
            target[last] = rng.choice([value + 1, -value, value * 10 ** 9, value / 3, str(value)])
        elif what == "swapped" and isinstance(target, dict):
            target[last] = target[rng.choice(list(target))]
        else:
            target[last] = junk(rng)
    return saved(checkpoint)


CHECKPOINT_FAULTS = {
    "cut": lambda rng, c, raw: cut(rng, raw),
    "bits": lambda rng, c, raw: flipped(rng, raw),
    "bytes": lambda rng, c, raw: spliced(rng, raw),
    "words and tensors": lambda rng, c, raw: changed(rng, c),
    "more words and tensors": lambda rng, c, raw: changed(rng, c),
    "instructions": lambda rng, c, raw: with_pickle(rng, raw, lambda data: edited(rng, data)),
    "bits of the pickle": lambda rng, c, raw: with_pickle(rng, raw, lambda d: flipped(rng, d)),
    "records": lambda rng, c, raw: rng.choice([
        lambda: rezipped(raw, rng, method=zipfile.ZIP_DEFLATED),
        lambda: rezipped(raw, rng, lambda n, d: (n.replace("data", rng.choice(["d", "DATA"])), d)),
        lambda: rezipped(raw, rng, lambda n, d: (n, d[:-4] if rng.random() < 0.01 else d)),
        lambda: rezipped(raw, rng, more=[(rng.choice(["archive/data/0x", "b/data.pkl", "../x",
                                                      "archive/code.py", "\x1b[2J"]), b"x")]),
        lambda: raw + rng.randbytes(100), lambda: rng.randbytes(50) + raw, lambda: raw + raw])(),
    "foreign pickle inside": lambda rng, c, raw: with_pickle(rng, raw, lambda data: foreign(rng)),
    "foreign pickle": lambda rng, c, raw: foreign(rng),
    "none": lambda rng, c, raw: raw,
}
PICKLE_FAULTS = {
    "cut": lambda rng, raw: cut(rng, raw),
    "bits": lambda rng, raw: flipped(rng, raw),
    "bytes": lambda rng, raw: spliced(rng, raw),
    "instructions": lambda rng, raw: edited(rng, raw),
    "more instructions": lambda rng, raw: edited(rng, raw),
    "a foreign pickle inside": lambda rng, raw: raw[:2] + foreign(rng)[2:-1] + b"0" + raw[2:],
    "foreign pickle": lambda rng, raw: foreign(rng),
    "none": lambda rng, raw: raw,
}


# ---- 3. Pictures -----------------------------------------------------------------------------
#
# A fault makes {name: what lies there}: bytes, a dict of a folder, ("link", where), or "pipe".

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif",
            "GIF": ".gif", "PPM": ".ppm", "JPEG2000": ".jp2", "AVIF": ".avif"}
MODES = ("RGB", "RGB", "1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16",
         "I;16B", "F")


def photo(rng, mode="RGB", size=None):
    """A picture of noise."""
    import numpy as np
    from PIL import Image
    width, height = size or (rng.randrange(1, 80), rng.randrange(1, 80))
    noise = np.frombuffer(rng.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    if mode in ("I", "I;16", "I;16B"):
        kind = np.int32 if mode == "I" else np.uint16
        return Image.fromarray(noise[..., 0].astype(kind) * 256).convert(mode)
    if mode == "F":
        high = rng.choice([1, 1, 255, 40_000, -1, float("nan"), float("inf")])
        return Image.fromarray(np.where(noise[..., 0] > 5, noise[..., 0] / np.float32(255), high))
    return Image.fromarray(noise).convert("RGB" if mode in ("RGBA", "LAB") else mode).convert(mode)


def encoded(image, kind, **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def a_picture(rng, kind=None, size=None):
    """(suffix, bytes) in any format and mode that go together."""
    while True:
        kind_now, mode = kind or rng.choice(list(SUFFIXES)), rng.choice(MODES)
        how = rng.choice([{}, {}, {"quality": 5}, {"progressive": True}, {"lossless": True},
                          {"transparency": 0}, {"compression": "tiff_lzw"}, {"dpi": (7, 7)},
                          {"compression": "jpeg"} if mode == "RGB" else {}])
        with contextlib.suppress(Exception):               # not all formats have all modes
            return SUFFIXES[kind_now], encoded(photo(rng, mode, size), kind_now, **how)


def of_bytes(damage):
    """A fault of the bytes of one picture."""
    def fault(rng):
        suffix, raw = a_picture(rng)
        return {f"x{suffix}": damage(rng, raw)}
    return fault


def other_suffix(rng):
    raw = rng.choice([a_picture(rng)[1], rng.randbytes(500), b"", foreign(rng), b"%!PS-Adobe-3.0\n",
                      b"<svg/>", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBPVP8X"])
    return {"x" + rng.choice([*SUFFIXES.values(), ".jpeg", ".TIFF", ".apng", ".j2k", ".psd"]): raw}


def claims(rng):
    """Its header claims another size, such as 100,000 x 100,000."""
    suffix, raw = a_picture(rng, size=(0x0135, 0x0279))
    claim = rng.choice([100_000, 65_535, 20_000, 0, 2 ** 31 - 1, 2 ** 32 - 1])
    for old, new in ((0x0135, claim), (0x0279, rng.choice([claim, 1]))):
        for code in (">I", "<I", ">H", "<H"):
            most = 256 ** struct.calcsize(code) - 1
            raw = raw.replace(struct.pack(code, old), struct.pack(code, min(new, most)), 2)
        raw = raw.replace(b"%d" % old, b"%d" % new, 1)
    if suffix == ".png":                                   # or Pillow would go no further
        raw = raw[:29] + struct.pack(">I", zlib.crc32(raw[12:29])) + raw[33:]
    return {f"x{suffix}": raw}


@functools.lru_cache(maxsize=None)
def a_megabyte():
    """A megabyte of zeros as a part of a deflate stream."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(bytes(2 ** 20)) + deflate.flush(zlib.Z_FULL_FLUSH)


def zeros(count, bare=False):
    """`count` zeros, deflated, at once; rounded up to whole megabytes."""
    megabytes = -(-count // 2 ** 20)
    body = a_megabyte() * megabytes + b"\x03\x00"
    return body if bare else b"\x78\xda" + body + struct.pack(
        ">I", megabytes * 2 ** 20 % 65_521 << 16 | 1)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(rng):
    """A small file that is a large picture: as much as Pillow takes, and more."""
    from PIL import Image
    width, height = rng.choice([(7000, 7000), (9400, 9400), (13_000, 13_000), (16_000, 16_000),
                                (100_000, 490), (100_000, 1), (1, 100_000), (60_000, 60_000)])
    kind = rng.choice(["png", "png", "tiff", *SUFFIXES])
    if kind == "png":
        bits, colours, channels = rng.choice([
            (1, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (8, 6, 4), (16, 6, 4),
            (8, 4, 2)])
        head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, rng.choice([0, 0, 1]))
        pixels = zeros(int(min(height * (width * channels * bits / 8 + 1), 2 ** 31)))
        return {"x.png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels)
                + chunk(b"IEND", b"")}
    if kind == "tiff":
        bits, white = rng.choice([(8, 1), (16, 1), (32, 1), (32, 3)])          # 3: floats
        pixels = zeros(min(width * height * bits // 8, 2 ** 31))
        tags = [(256, width), (257, height), (258, bits), (259, 8), (262, 1), (273, 8), (277, 1),
                (278, height), (279, len(pixels)), (339, white)]
        return {"x.tif": b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack(
            "<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value)
                                        for tag, value in tags) + bytes(4)}
    if width * height > 90e6 or kind in ("JPEG2000", "BMP", "PPM"):        # slow, or large, to make
        width, height = (7000, 7000) if kind in ("JPEG", "WEBP", "GIF", "AVIF") else (3000, 3000)
    mode = rng.choice(["L", "RGB", "RGBA"])
    how = {"TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True, "method": 0},
           "AVIF": {"speed": 10}}.get(kind, {})
    image = Image.new("RGB" if kind in ("JPEG", "BMP", "PPM", "GIF") else mode, (width, height))
    return {f"x{SUFFIXES[kind]}": encoded(image, kind, **how)}


def many_tags(rng):
    """Each tag of a TIFF, or of EXIF data, claims the whole file as its own."""
    count = rng.choice([100, 5000, 20_000])
    size = 8 + 2 + 12 * count + 4
    tags = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + b"".join(
        struct.pack("<HHII", 1000 + k, 1, size, 0) for k in range(count)) + bytes(4)
    hexed = zlib.compress(b"\nexif\n9\n" + tags.hex().encode())
    return rng.choice([
        {"x.tif": tags}, {"x.png": with_chunks(rng, [(b"eXIf", tags)])},
        {"x.png": with_chunks(rng, [(b"zTXt", b"Raw profile type exif\0\0" + hexed)])}])


def with_chunks(rng, chunks):
    whole = encoded(photo(rng, size=(40, 40)), "PNG")
    return whole[:33] + b"".join(chunk(*one) for one in chunks) + whole[33:]


def about_it(rng):
    """What is written about a picture is too much, or nonsense: text, EXIF, a colour profile."""
    from PIL import Image
    exif = Image.Exif()
    exif[0x0112] = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65_535])
    image = photo(rng, size=(40, 50))
    kind = rng.choice(["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
    profile = rng.choice([b"", rng.randbytes(200), bytes(70_000)])
    text = rng.choice([b"a\0\0" + zeros(2 ** 31), b"a\0\0" + zeros(2 ** 21), b"", b"a\0\1\0\0\0",
                       rng.randbytes(50)])
    return {f"x{SUFFIXES[kind]}": rng.choice([
        lambda: encoded(image, kind, exif=exif),
        lambda: encoded(image, kind, icc_profile=profile),
        lambda: encoded(image, kind, exif=b"Exif\0\0II*\0\x08\0\0\0" + rng.randbytes(40))])()
    } if rng.random() < 0.6 else {"x.png": with_chunks(rng, rng.choice([
        [(rng.choice([b"zTXt", b"iTXt", b"tEXt", b"iCCP"]), text)],
        [(b"tEXt", b"key\0" + b"x" * 5000)] * 1000, [(b"tRNS", rng.randbytes(rng.randrange(9)))],
        [(b"PLTE", rng.randbytes(30))], [(b"acTL", rng.randbytes(8))],
        [(b"eXIf", bytes(70_000))]]))}


def animated(rng):
    kind = rng.choice(["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
    size = rng.choice([(40, 40), (40, 40), (500, 500)])
    frames = [photo(rng, "P" if kind == "GIF" else "RGB", (40, 40)).resize(size) for _ in range(4)]
    raw = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    return {f"x{SUFFIXES[kind]}": rng.choice([raw, cut(rng, raw), flipped(rng, raw)])}


def odd_names(rng):
    suffix, raw = a_picture(rng, size=(40, 40))
    name = rng.choice([
        b"a\nb", b"\x1b[2Jall is well", b"\xff\xfe", b"x" * 240, b" ", b"-rf", b"%s{}", b"a\rb",
        "\u202egnp".encode(), b"\x9b31m", b"'; rm x", b"..", b"CON", b"\x07",
        b"\xf0\x9f\x98\x80"]) + os.fsencode(suffix)
    return {name: rng.choice([raw, raw, cut(rng, raw)])}


def odd_things(rng):
    raw, sound = a_picture(rng)[1], encoded(photo(rng, size=(40, 40)), "PNG")
    deep_folder = {"x.png": raw}
    for _ in range(40):
        deep_folder = {"d.png": deep_folder}
    return rng.choice([
        {"x.png": {}}, {"x.png": {"y.png": sound}}, {"x.png": ("link", "y.png"), "y.png": (
            "link", "x.png")}, {"x.png": ("link", "."), "y.png": raw}, {"x": ("link", "..")},
        {"x.png": "pipe"}, {"x.png": "pipe", "y.png": sound}, {"x.png": ("link", "/dev/zero")},
        {"x.png": ("link", "/dev/stdin")}, {"x.png": ("link", "/nowhere")}, deep_folder, {},
        {"x.png": ("link", "/proc/self/mem")}, {"x.jpg": ("link", "y.png"), "y.png": sound},
        {"a": {"loop": ("link", "../b")}, "b": {"loop": ("link", "../a"), "x.png": raw}},
        {"x.png": ("hole", raw[:12], 3 * 2 ** 30)}, {"x.webp": ("hole", b"RIFF\xff\xff\xff\x7fWEBP",
                                                               3 * 2 ** 30)},
        {"x.avif": ("hole", b"\0\0\0\x1cftypavif", 3 * 2 ** 30)}, {"x.png": (
            "hole", b"\x89PNG\r\n\x1a\n\x7f\0\0\0IHDR", 3 * 2 ** 30)},
        {"x.tif": ("hole", b"II*\0\x08\0\0\0", 3 * 2 ** 30)}])


def zipped(rng, files=None):
    """The bytes of a .zip whose members are odd, or lie about themselves."""
    out, raw = io.BytesIO(), encoded(photo(rng, size=(40, 40)), "PNG")
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2,
                         zipfile.ZIP_LZMA])
    names = rng.choice([["../x.png"], ["/x.png"], ["x.png", "x.png"], ["a\\b.png"], ["x.png/"],
                        ["\x1b[2J.png"], ["a/../../x.png"], ["x.png", "X.png"], ["\n.png"],
                        [f"{k}.png" for k in range(300)], ["x.png"], ["C:x.png"], ["./x.png"]])
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")                    # of names that are there twice
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), raw, method)
    raw = out.getvalue()
    lie = struct.pack("<I", rng.choice([0, 1, 10, 2 ** 31, 2 ** 32 - 1]))
    return rng.choice([
        lambda: raw, lambda: raw, lambda: cut(rng, raw), lambda: flipped(rng, raw),
        lambda: spliced(rng, raw), lambda: claiming(raw, 24, lie), lambda: claiming(raw, 20, lie),
        lambda: claiming(raw, 8, b"\x01\x00"), lambda: claiming(raw, 42, lie),
        lambda: claiming(raw, 6, b"\xff"),
        lambda: claiming(claiming(raw, 8, b"\0\x08"), 46, b"\xff"),
        lambda: a_member(8, zeros(2 ** 31, bare=True), 2 ** 31),
        lambda: a_member(8, zeros(2 ** 31, bare=True), rng.choice([9, 2 ** 28])),
        lambda: a_member(12, bz2.compress(bytes(2 ** 22)), 9)])()


def claiming(raw, offset, value):
    """A .zip whose directory says something else of its first member."""
    at = raw.index(b"PK\x01\x02") + offset
    return raw[:at] + value + raw[at + len(value):]


def a_member(method, packed, size):
    """A .zip of one member, packed already, that is said to be `size` bytes long."""
    about = struct.pack("<HHHIIIIHH", 20, 0, method, 0, 0, len(packed), size, 5, 0)
    local = b"PK\x03\x04" + about + b"x.png" + packed
    directory = b"PK\x01\x02\x14\0" + about + bytes(14) + b"x.png"
    return local + directory + b"PK\x05\x06" + struct.pack(
        "<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0)


PICTURE_FAULTS = {
    "cut": of_bytes(cut), "bits": of_bytes(flipped), "bytes": of_bytes(spliced),
    "another suffix": other_suffix, "claims": claims, "bomb": bomb, "many tags": many_tags,
    "what is written about it": about_it, "animated": animated, "names": odd_names,
    "things": odd_things, "zip": zipped, "modes and sizes": of_bytes(lambda rng, raw: raw)}


def put(files, folder):
    """Write what a fault made."""
    for name, what in files.items():
        path = os.fsencode(folder) + b"/" + os.fsencode(name)
        if isinstance(what, dict):
            os.mkdir(path)
            put(what, os.fsdecode(path))
        elif what == "pipe":
            os.mkfifo(path)
        elif isinstance(what, tuple) and what[0] == "link":
            os.symlink(what[1], path)
        else:
            with open(path, "wb") as file:
                file.write(what[1] if isinstance(what, tuple) else what)
                if isinstance(what, tuple):                # the rest takes no room on the disk
                    file.truncate(what[2])


def lay_out(files, rng, folder):
    """(path to give to --data, {name: pixels} of good pictures there): alone, in a folder among
    good ones, or in a .zip of both."""
    import numpy as np
    path, good = folder / "hostile", {}
    if isinstance(files, bytes):
        (folder / "hostile.zip").write_bytes(files)
        return folder / "hostile.zip", good
    path.mkdir()
    if rng.random() < 0.5:
        images = {f"good{k}.png": photo(rng, size=(32, 32)) for k in range(3)}
        good = {name: np.asarray(image) for name, image in images.items()}
        files = {**files, **{name: encoded(image, "PNG") for name, image in images.items()}}
    put(files, path)
    holes = any(isinstance(what, (tuple, dict)) or what == "pipe" for what in files.values())
    if holes or rng.random() < 0.7:
        return path, good
    with zipfile.ZipFile(folder / "hostile.zip", "w") as archive:
        for name, what in files.items():
            with contextlib.suppress(UnicodeError):        # a .zip has names in UTF-8
                archive.writestr(zipfile.ZipInfo(os.fsdecode(name)), what)
    return folder / "hostile.zip", good


# ---- 4. The programs -------------------------------------------------------------------------


class Loaded(BaseException):
    """A program has loaded all that it wanted; what it would do now is not asked here."""


def sound_files():
    """[(checkpoint, its bytes)], small runs of both architectures; [bytes] of official pickles."""
    import torch
    import import_checkpoint
    import stylegan_models as models
    runs, pickles = [], []
    for name in ("official_stylegan", "official_stylegan2", "official_stylegan2_ada"):
        path = ROOT / "tests" / "data" / f"{name}.pkl"
        pickles.append(path.read_bytes())
        run = {"format": 1, **import_checkpoint.as_checkpoint(import_checkpoint.import_file(path))}
        run["architecture"] = run["settings"]["architecture"]
        with torch.device("meta"):
            networks = {"optimizer_g": models.make_generator(run["settings"]),
                        "optimizer_d": models.make_discriminator(run["settings"])}
        for part, network in networks.items():         # as if it had made three steps
            run[part]["state"] = {
                k: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(weight.shape),
                    "exp_avg_sq": torch.ones(weight.shape)}
                for k, weight in enumerate(network.parameters())}
        run["options"] |= {"batch": "8", "accumulate": "1", "cache": "/nowhere", "data": None}
        run["progress"]["pictures"] = "0" * 64
        runs.append((run, saved(run)))
    return runs, pickles


MAKES_PICTURES = ("generate.py", "project.py", "explore.py")


def programs(folder, short):
    """{script: function of a checkpoint's path}: each as it is typed, up to where it has loaded.

    short:  a list; with True in it, a program that makes pictures ends before that, too.
    """
    import numpy as np
    from PIL import Image
    import convert_resolution, evaluate, explore, generate, morph, project, train
    from workshop import measuring, run
    pictures = folder / "pictures"
    pictures.mkdir()
    for k in range(4):
        Image.fromarray(np.full((32, 32, 3), 50 * k, np.uint8)).save(pictures / f"{k}.png")
    out, photo = folder / "out", pictures / "0.png"

    def loaded(*arguments, **options):
        raise Loaded

    def load_networks(*arguments):                     # what makes pictures makes some of them
        networks = load(*arguments)
        if short.count(True):
            raise Loaded
        return networks
    load, morph.load_networks = morph.load_networks, load_networks
    run.Run._rehearse = loaded                         # after everything has its old state
    evaluate.evaluate = loaded
    evaluate.find_reals = lambda path, checkpoint, *rest: measuring.find_source(
        path, checkpoint, str(pictures)) and {}
    cpu = ["--device", "cpu"]
    return {
        "generate.py": lambda path: generate.main(
            [path, "mixing", "--out", f"{out}/a.png", *cpu]),
        "project.py": lambda path: project.main(
            [path, str(photo), "--steps", "1", "--features", "pixels", "--out", f"{out}/b.png",
             *cpu]),
        "evaluate.py": lambda path: evaluate.main([path, "--metrics", "duality_gap", *cpu]),
        "convert_resolution.py": lambda path: convert_resolution.main(
            [path, "16", "--out", f"{out}/c.pt"]),
        "morph.py": lambda path: morph.main([path, "--out", f"{out}/d.pt"]),
        "explore.py": lambda path: explore.Network(
            path, generate.load_model(path, evaluate.machine.pick_device("cpu"))) and 0,
        "train.py": lambda path: train.main(
            ["--resume", path, "--data", str(pictures), "--allow-upsampling", "--cache",
             str(out / "cache"), "--workers", "0", "--out", f"{out}/run", *cpu])}


def packing(folder):
    """train.py --data, up to where the pictures are packed, as a function of (path, good, rng).

    Good pictures must lie in the cache as they are, and every other one be named or used.
    """
    import numpy as np
    import train
    right = train.data.Pictures

    def pack(o, team, checkpoint=None):
        made = right(o, team, checkpoint)
        index = json.loads((made.folder / "index.json").read_text())
        names = [made.source.names[number] for number in index["numbers"]]
        spoken_of = {*names, *(name for name, _ in index["damaged"] + index["small"])}
        assert spoken_of == set(made.source.names), "a picture is missing without a word"
        for name, wanted in good.items():
            pixels = np.load(made.folder / f"{o.resolution}.npy")[index["rows"][names.index(name)]]
            assert np.array_equal(pixels, wanted), "a good one is spoilt"
        raise Loaded
    good = {}

    def main(path, its_good, options):
        good.clear()
        good.update(its_good)
        train.data.Pictures = pack
        try:
            return train.main(["--data", path, "--resolution", "32", "--workers", "0",
                               "--device", "cpu", "--cache", str(folder / "cache"),
                               "--out", str(folder / "run"), *options])
        finally:
            train.data.Pictures = right
    return main


# ---- 5. One file -----------------------------------------------------------------------------


def memory_mb(line):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split(f"{line}:")[1].split()[0]) / 1024


def tried(main, path):
    """Run a program as its user would: {"code", "line", "seconds", "mb", "wrong"}."""
    from workshop import options
    said, told = io.StringIO(), io.StringIO()
    # What an earlier program has freed and the C library keeps (`machine.keep_freed_memory`) goes
    # back first, or this one could take as much again unseen.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")          # the peak begins anew
    before, began = memory_mb("VmRSS"), time.process_time()
    wrong, code = "", None
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(said):
            options.start(lambda argv: main(path), "program.py", "stopped")
    except SystemExit as ended:
        code = ended.code
    except Loaded:
        code = 0
    except BaseException as error:
        wrong = f"traceback: {type(error).__name__}: {error}"
    seconds, mb = time.process_time() - began, memory_mb("VmHWM") - before
    lines = [line for line in said.getvalue().splitlines()
             if line.strip() and not line.startswith("note: ")]
    line = "\n".join(lines)
    if not wrong and code not in (0, 2):
        wrong = f"code {code}"
    if not wrong and code == 2:
        wrong = ("no sentence" if len(lines) != 1 or len(line) > 1000 else
                 "memory" if "not enough memory" in line else
                 "does not name the file" if path not in line else "")
    if not all(c.isprintable() or c == "\n" for c in said.getvalue() + told.getvalue()):
        wrong = wrong or "escape codes"
    if seconds > MOST_SECONDS or mb > MOST_MB:
        wrong = wrong or "too slow, or too much memory"
    return {"code": code, "line": line[:300], "seconds": seconds, "mb": mb, "wrong": wrong[:300]}


def damaged(kind, seed, runs, pickles):
    """(fault, bytes) of one file, the same for the same seed."""
    faults, sound = ((CHECKPOINT_FAULTS, runs) if kind == "checkpoints" else
                     (PICKLE_FAULTS, [(raw,) for raw in pickles]))
    for attempt in range(100):
        rng = random.Random(f"{seed} {attempt}")
        fault = rng.choice(list(faults))
        with contextlib.suppress(Exception):           # torch cannot make, or save, everything
            return fault, faults[fault](rng, *rng.choice(sound))


def bounded():
    """Whatever goes wrong in this process, the machine has others to serve."""
    import resource                                    # Linux has it
    size = int(memory_mb("VmSize") + 4 * MOST_MB) << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def pictures_child(seed, first, last):
    """Pictures number first to last - 1: a line of JSON before and after each."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        os.chdir(folder)
        main = packing(folder)
        bounded()
        for number in range(first, last):
            rng = random.Random(f"pictures {seed} {number}")
            fault = rng.choice(list(PICTURE_FAULTS))
            about = {"number": number, "fault": fault, "script": "train.py"}
            print(json.dumps(about), flush=True)
            print(json.dumps({**about, **packed(fault, rng, folder, main)}), flush=True)


def with_fault(fault, rng):
    for _ in range(100):
        with contextlib.suppress(Exception):           # Pillow cannot write everything
            return PICTURE_FAULTS[fault](rng)


def packed(fault, rng, folder, main):
    """Make a picture with this fault, and pack it (`tried`)."""
    path, good = lay_out(with_fault(fault, rng), rng, folder)
    options = ["--max-bad", rng.choice(["0", "99"])]
    options += ["--allow-upsampling"] * (rng.random() < 0.7)
    before = everything(folder)
    result = tried(lambda path: main(path, good, options), str(path))
    more = {name for name in everything(folder) - before if name.split(os.sep)[0] != "cache"}
    if more:
        result["wrong"] = f"wrote {sorted(more)}"
    subprocess.run(["rm", "-rf", "hostile", "hostile.zip", "cache"], cwd=folder)
    return result


def everything(folder):
    return {os.path.relpath(os.path.join(where, name), folder)
            for where, folders, files in os.walk(folder) for name in (*folders, *files)}


def child(kind, seed, first, last):
    """Files number first to last - 1: a line of JSON before and after each program."""
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    if kind == "pictures":
        return pictures_child(seed, first, last)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        os.chdir(folder)
        (folder / "out").mkdir()
        import import_checkpoint
        runs, pickles = sound_files()
        short = []
        mains = programs(folder, short) if kind == "checkpoints" else {
            "import_checkpoint.py": lambda path: import_checkpoint.main(
                [path, str(folder / "out" / "m.pt")])}
        bounded()
        known = set(os.listdir(folder)) | {"hostile.pt"}
        for number in range(first, last):
            fault, raw = damaged(kind, f"{kind} {seed} {number}", runs, pickles)
            (folder / "hostile.pt").write_bytes(raw)
            for script, main in mains.items():
                about = {"number": number, "fault": fault, "script": script}
                short[:] = [number % 10 > 0 and script in MAKES_PICTURES]
                print(json.dumps(about), flush=True)
                result = tried(main, str(folder / "hostile.pt"))
                if set(os.listdir(folder)) - known:
                    result["wrong"] = f"wrote {sorted(set(os.listdir(folder)) - known)}"
                for path in (folder / "out").glob("*"):            # for the next one
                    if path.is_file():
                        path.unlink()
                    elif path.name == "run":
                        subprocess.run(["rm", "-r", str(path)])
                print(json.dumps({**about, **result}), flush=True)


def all_of(kind, seed, files):
    """The results of all files, from as many processes as had to die for them."""
    first, results = 0, []
    while first < files:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", kind, str(seed), str(first),
             str(min(files, first + BATCH))],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)      # select sees all
        last = None
        while True:
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
            line = process.stdout.readline() if ready else b""
            if not line:
                break
            last = json.loads(line)
            if "code" in last:
                results.append(last)
        hung = process.poll() is None and not ready
        process.kill()
        code = process.wait()
        if last is None:
            raise SystemExit(f"hostile.py: the programs do not start (code {code})")
        first = last["number"] + 1
        if "code" not in last:
            results.append({**last, "code": None, "line": "", "seconds": 0, "mb": 0, "wrong":
                            "hangs" if hung else f"the interpreter died ({code})"})
    return results


def main(argv=None):
    parser = argparse.ArgumentParser(description="Damaged files through every program.")
    parser.add_argument("--files", type=int, default=60, help="of each kind (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="checkpoints,pickles,pictures", metavar="LIST",
                        help="(default checkpoints,pickles,pictures)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    o = parser.parse_args(argv)
    if o.child:
        return child(o.child[0], *map(int, o.child[1:]))
    kinds, bad = o.kinds.split(","), 0
    if unknown := set(kinds) - {"checkpoints", "pickles", "pictures"}:
        parser.error(f"--kinds: no kind is called {sorted(unknown)[0]!r}")
    if o.files < 1:
        parser.error("--files: must be 1 or more")
    for kind in kinds:
        began = time.perf_counter()
        results = all_of(kind, o.seed, o.files)
        wrong = [result for result in results if result["wrong"]]
        bad += len(wrong)
        codes = collections.Counter(result["code"] for result in results)
        slow, large = (max(results, key=lambda r: r[key]) for key in ("seconds", "mb"))
        print(f"{kind}: {o.files} files, seed {o.seed}, {len(results)} openings: {codes[2]} "
              f"refused, {codes[0]} accepted, {len(wrong)} wrong; slowest {slow['seconds']:.2f} s "
              f"of CPU ({slow['script']}, {slow['fault']}), most memory {large['mb']:.0f} MB "
              f"({large['script']}, {large['fault']}); {time.perf_counter() - began:.0f} s",
              flush=True)
        for (script, says), some in collections.Counter(
                (result["script"], result["wrong"]) for result in wrong).most_common(40):
            example = next(r for r in wrong if (r["script"], r["wrong"]) == (script, says))
            print(f"  {some} x {script}: {says} [{example['fault']}, file {example['number']}] "
                  f"{example['line'][:200]}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
