"""workshop/pictures.py and painted_faces.py: any picture file, the packed cache, the faces."""

import itertools
import os
import shutil
import zipfile
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import stylegan_dataloader as data
from workshop import painted_faces, pictures


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
    Image.new("RGB", (40, 32)).save(photos / "moving.gif")     # a suffix that is not in SUFFIXES
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
    (cache / "x.partial-abc").mkdir()
    os.utime(cache / "x.partial-abc", (0, 0))
    (cache / "y.partial-def").mkdir()                                      # another run's, alive
    folder, lines = pack(photos, cache)
    assert "Packing 12" in lines[0] and np.load(folder / "16.npy").shape[0] == 12
    assert not (cache / "x.partial-abc").exists() and (cache / "y.partial-def").exists()


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
    assert sorted(p.name for p in folder.glob("*.npy")) == ["4.npy", "8.npy"]
    whole, _ = pack(photos, tmp_path / "whole", free_bytes=spare + sum(need.values()))
    source = pictures.find_pictures(photos)
    for r in (4, 8, 16):                                                   # and gives the same
        one, two = (data.PictureDataset(f, source, r).__getitems__(range(24))
                    for f in (folder, whole))
        assert torch.equal(one, two)


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
    So faces use neither: a data set must not change when a machine is updated."""
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
