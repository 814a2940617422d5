"""stylegan_dataloader.py: painted faces, any picture file, the packed cache, loaders, mixer."""

import itertools
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import stylegan_dataloader as data


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
    source = data.find_pictures(folder)
    return data.pack_pictures(source, resolution, cache, report=lines.append, **options), lines


# ---- 1. painted faces ----


def test_painted_faces_are_repeatable_and_no_two_alike():
    """Lesson: number n of series s is the same face everywhere and for ever."""
    faces = [data.paint_face(n, 32).tobytes() for n in range(500)]
    assert len(set(faces)) == 500
    assert faces[7] == data.paint_face(7, 32).tobytes()
    assert faces[7] != data.paint_face(7, 32, seed=1).tobytes()
    for resolution in (4, 48, 64, 100, 256):
        assert data.paint_face(3, resolution).size == (resolution, resolution)
    # Small faces are the large ones averaged down: both were painted at 256 px.
    small, large = (np.asarray(data.paint_face(3, r), float) for r in (32, 64))
    assert np.abs(large.reshape(32, 2, 32, 2, 3).mean((1, 3)) - small).max() <= 1


def test_a_painted_face_looks_as_it_did_on_the_machine_that_wrote_this():
    """Lesson: a stored face is the judge, to the last bit (also with Pillow 10.1 and 13)."""
    stored = np.load(data.__file__.replace("stylegan_dataloader.py", "tests/data/face_7.npy"))
    ours = np.asarray(data.paint_face(7, 32)).astype(int)
    assert np.array_equal(ours, stored)
    assert not np.array_equal(np.asarray(data.paint_face(8, 32)), stored)  # control


def test_there_are_always_more_painted_faces(tmp_path):
    """Lesson: faces beyond those that are trained on are new, and have a cache of their own."""
    assert data.painted_faces(range(data.PAINTED_FACES)) == data.find_pictures(None)
    unseen = data.painted_faces(range(10_000, 10_003))
    again = [data.read_picture(unseen, k, 16) for k in range(3)]
    assert np.array_equal(again[2], np.asarray(data.paint_face(10_002, 16)))
    assert not np.array_equal(again[2], np.asarray(data.paint_face(2, 16)))          # control
    others = data.painted_faces(range(10_000, 10_004))
    folders = {data.pack_pictures(source, 4, tmp_path, report=str) for source in (unseen, others)}
    assert len(folders) == 2


# ---- 2. reading a picture ----


def test_every_mode_becomes_the_right_rgb(tmp_path):
    """Lesson: grey, palette, 16-bit, alpha, CMYK, float and rotated files all come out right."""
    def read(image, name="x.png", **save):
        folder = tmp_path / name.replace(".", "_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        image.save(folder / name, **save)
        pixels = data.read_picture(data.find_pictures(folder), 0, 8)
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
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    wide.paste((0, 0, 255), (16, 0, 48, 32))
    wide.save(tmp_path / "wide.png")
    pixels = data.read_picture(data.find_pictures(tmp_path), 0, 8)
    assert (pixels[..., 2] > 200).all() and (pixels[..., 0] < 50).all()
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255                                      # finer than 8 px can show
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    pixels = data.read_picture(data.find_pictures(tmp_path), 0, 8)
    assert np.abs(pixels.astype(int) - 127).max() < 8
    lookup = np.asarray(Image.fromarray(stripes).resize((8, 8), Image.Resampling.NEAREST))
    assert np.abs(lookup.astype(int) - 127).min() > 100        # control: no antialiasing


# ---- 3. the packed cache ----


def test_wrong_paths_get_one_clear_sentence(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as archive:
        archive.writestr("a.png", b"x" * 1000)
    whole = (tmp_path / "broken.zip").read_bytes()
    (tmp_path / "broken.zip").write_bytes(whole.replace(b"PK\x01\x02", b"PK\x09\x09"))
    (photos / "._00.png").write_bytes(b"what macOS leaves behind")
    for path, message in [(tmp_path / "missing", "no such folder"), (tmp_path / "empty", "no pict"),
                          (tmp_path / "notes.txt", "no .zip"), (photos / "01.png", "no .zip"),
                          (tmp_path / "broken.zip", "damaged .zip")]:
        with pytest.raises(data.DataError, match=message) as caught:
            data.find_pictures(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(data.find_pictures(photos).names) == 12


def test_a_folder_and_its_zip_give_the_same_pictures(tmp_path, photos):
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


def test_the_levels_are_what_the_networks_would_make_of_them(tmp_path):
    """Lesson: level R/2 is the 2x2 mean of level R, rounded; as `F.avg_pool2d` in D."""
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "p" / "x.png")
    folder, _ = pack(tmp_path / "p", tmp_path / "cache")
    large, small = (torch.from_numpy(np.load(folder / f"{r}.npy")) for r in (16, 8))
    pooled = torch.nn.functional.avg_pool2d(data.to_images(large), 2)
    assert (data.to_images(small) - pooled).abs().max() <= 0.5 / 127.5 + 1e-6


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
    right, first = data.halve, []

    def another_run_finishes_meanwhile(pixels):
        if not first:
            first.append(None)
            first[0] = pack(photos, tmp_path / "cache")[0]
            (first[0] / "in use").touch()
        return right(pixels)
    monkeypatch.setattr(data, "halve", another_run_finishes_meanwhile)
    second, _ = pack(photos, tmp_path / "cache")
    assert second == first[0] and (second / "in use").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [second.name]   # no litter


def test_an_interrupted_cache_is_built_again(tmp_path, photos, monkeypatch):
    """Lesson: a folder with the right name is a whole cache; anything else is never looked at."""
    cache = tmp_path / "cache"
    right, calls = data.halve, itertools.count()

    def interrupted(pixels):
        if next(calls) == 10:
            raise KeyboardInterrupt
        return right(pixels)
    monkeypatch.setattr(data, "halve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(photos, cache)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(data, "halve", right)
    # kill -9 leaves a folder behind; it is old news after ten minutes.
    (cache / "x.partial-abc").mkdir()
    import os
    os.utime(cache / "x.partial-abc", (0, 0))
    (cache / "y.partial-def").mkdir()                                      # another run's, alive
    folder, lines = pack(photos, cache)
    assert "Packing 12" in lines[0] and np.load(folder / "16.npy").shape[0] == 12
    assert not (cache / "x.partial-abc").exists() and (cache / "y.partial-def").exists()


def test_the_disk_is_checked_before_writing(tmp_path, photos):
    """Lesson: what is needed is said in one line; the largest level can be left out, no more."""
    need = {r: 12 * 3 * r * r for r in (4, 8, 16)}
    spare = int(100e6)
    with pytest.raises(data.DataError, match="takes 12.1 kB") as caught:
        pack(photos, tmp_path / "cache", free_bytes=spare + need[4] + need[8] - 1)
    assert "--cache" in str(caught.value)
    assert not any((tmp_path / "cache").rglob("*.npy"))
    folder, lines = pack(photos, tmp_path / "cache", free_bytes=spare + need[4] + need[8])
    assert "originals are read at 16 px" in lines[0]
    assert sorted(p.name for p in folder.glob("*.npy")) == ["4.npy", "8.npy"]
    whole, _ = pack(photos, tmp_path / "whole", free_bytes=spare + sum(need.values()))
    source = data.find_pictures(photos)
    for r in (4, 8, 16):                                                   # and gives the same
        one, two = (data.PictureDataset(f, source, r).__getitems__(range(24))
                    for f in (folder, whole))
        assert torch.equal(one, two)


def test_damaged_files_are_named_and_too_many_stop_the_run(tmp_path, photos):
    whole = (photos / "03.png").read_bytes()
    (photos / "03.png").write_bytes(whole[:len(whole) // 2])
    (photos / "05.png").write_bytes(b"not a picture")
    with pytest.raises(data.DataError, match="2 of 12 pictures are damaged, more than --max-bad 1"):
        pack(photos, tmp_path / "cache")
    folder, lines = pack(photos, tmp_path / "cache", max_bad=20)
    text = "\n".join(lines)
    assert "03.png" in text and "05.png" in text and "07.png" not in text
    assert "03.png: damaged" in (folder / "report.txt").read_text()
    dataset = data.PictureDataset(folder, data.find_pictures(photos), 16)
    assert len(dataset) == 10
    assert dataset.__getitems__(range(10)).reshape(10, -1).max(dim=1).values.min() > 0  # no hole


def test_small_pictures_are_left_out_unless_asked_for(tmp_path, photos):
    Image.new("RGB", (15, 40)).save(photos / "small.png")
    folder, lines = pack(photos, tmp_path / "cache")
    assert any("1 of 13 pictures are smaller than 16x16" in x and "small.png" in x for x in lines)
    source = data.find_pictures(photos)
    assert len(data.PictureDataset(folder, source, 16)) == 12
    folder, lines = pack(photos, tmp_path / "cache", allow_upsampling=True)
    assert any("enlarged" in line for line in lines)
    assert len(data.PictureDataset(folder, source, 16)) == 13
    with pytest.raises(data.DataError, match="none of its 13 pictures is 64x64 or larger"):
        pack(photos, tmp_path / "cache", resolution=64)


def test_workers_pack_the_same_cache(tmp_path):
    """Lesson: several processes write into one file, each its own rows."""
    source = data.find_pictures(None)._replace(names=[str(k) for k in range(100)])
    folders = [data.pack_pictures(source, 8, tmp_path / str(w), w, report=lambda line: None)
               for w in (0, 2)]
    one, two = (np.load(folder / "8.npy") for folder in folders)
    assert np.array_equal(one, two) and len(np.unique(one.reshape(100, -1), axis=0)) == 100


# ---- 4. the loader ----


def test_an_epoch_shows_every_picture_once(tmp_path, photos):
    """Lesson: order and flips are functions of (seed, sample number), so a loader can be started
    anywhere and gives what the uninterrupted one gives there."""
    folder, _ = pack(photos, tmp_path / "cache")
    dataset = data.PictureDataset(folder, data.find_pictures(photos), 16, seed=3)
    first, second = dataset.__getitems__(range(12)), dataset.__getitems__(range(12, 24))
    reds = [sorted(batch[:, 0, 0, 0].tolist()) for batch in (first, second)]
    assert reds[0] == reds[1] == [20 * k for k in range(12)]
    assert not torch.equal(first, second)                                  # another order
    loader = iter(data.picture_loader(dataset, 5))
    straight = torch.cat([next(loader) for _ in range(4)])
    resumed = iter(data.picture_loader(dataset, 5, start=10))
    assert torch.equal(torch.cat([next(resumed), next(resumed)]), straight[10:])
    workers = iter(data.picture_loader(dataset, 5, start=10, workers=2))
    assert torch.equal(next(workers), straight[10:15])
    other = data.PictureDataset(folder, data.find_pictures(photos), 16, seed=4)
    assert not torch.equal(other.__getitems__(range(12)), first)           # control


def test_the_split_is_disjoint_by_image_and_repeatable(tmp_path, photos):
    """Lesson: pictures that judge a network must be pictures that it has not learned from, so each
    belongs to one part, whatever its mirror image, its size or the epoch."""
    parts = data.split_pictures(1003, seed=5)
    assert {name: len(part) for name, part in parts.items()} == {
        "training": 803, "adversary": 100, "test": 100}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1003))
    again, other = data.split_pictures(1003, seed=5), data.split_pictures(1003, seed=6)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    assert not np.array_equal(parts["test"], other["test"])                # control: another seed
    # What reaches a network: the reds of the pictures, over many epochs and mirrored.
    folder, _ = pack(photos, tmp_path / "cache")
    seen = {}
    for name, part in data.split_pictures(12).items():
        for resolution in (4, 16):
            dataset = data.PictureDataset(folder, data.find_pictures(photos), resolution, only=part)
            reds = set(dataset.__getitems__(range(60))[:, 0, 0, 0].tolist())
            assert seen.setdefault(name, reds) == reds and len(reds) == len(part)
    assert [len(seen[name]) for name in ("training", "adversary", "test")] == [10, 1, 1]
    assert len(set.union(*seen.values())) == 12


def test_half_of_the_pictures_are_mirrored_unless_turned_off(tmp_path):
    (tmp_path / "p").mkdir()
    lopsided = Image.new("RGB", (16, 16))
    lopsided.paste("white", (0, 0, 8, 16))
    lopsided.save(tmp_path / "p" / "x.png")
    folder, _ = pack(tmp_path / "p", tmp_path / "cache")
    source = data.find_pictures(tmp_path / "p")
    flipped = data.PictureDataset(folder, source, 16).__getitems__(range(400))[:, 0, 0, 0] == 0
    assert 150 < flipped.sum() < 250
    upright = data.PictureDataset(folder, source, 16, flip=False).__getitems__(range(400))
    assert (upright[:, 0, 0, 0] == 255).all()


def test_a_new_loader_takes_nothing_from_the_global_random_state(tmp_path, photos):
    """Lesson: torch's DataLoader draws a seed from the global generator unless it has its own;
    then a resumed run, which makes a new loader, would draw other z."""
    folder, _ = pack(photos, tmp_path / "cache")
    dataset = data.PictureDataset(folder, data.find_pictures(photos), 16)
    before = torch.get_rng_state()
    next(iter(data.picture_loader(dataset, 4)))
    next(iter(data.StyleMixer(8, 4)))
    assert torch.equal(torch.get_rng_state(), before)
    next(iter(torch.utils.data.DataLoader([1, 2])))                        # control
    assert not torch.equal(torch.get_rng_state(), before)


def test_images_and_pixels_are_two_ways_of_writing_one_thing():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    images = data.to_images(pixels)
    assert images.shape == (1, 3, 16, 16) and images.min() == -1 and images.max() == 1
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(data.to_pixels(images), pixels)
    assert data.to_pixels(torch.full((1, 3, 4, 4), 7.0)).max() == 255      # clipped, not wrapped


def test_faded_reals_go_from_coarse_to_sharp():
    images = torch.randn(2, 3, 8, 8)
    coarse = data.fade_reals(images, 0.0)
    for y, x in itertools.product(range(8), range(8)):
        block = images[:, :, y // 2 * 2:y // 2 * 2 + 2, x // 2 * 2:x // 2 * 2 + 2]
        assert torch.allclose(coarse[:, :, y, x], block.mean(dim=(2, 3)), atol=1e-6)
    assert torch.equal(data.fade_reals(images, 1.0), images)
    assert torch.allclose(data.fade_reals(images, 0.25), 0.25 * images + 0.75 * coarse, atol=1e-6)
    assert not torch.allclose(coarse, images, atol=0.1)                    # control


# ---- 5. the StyleMixer ----


def rows_of(count, *args, **kwargs):
    return torch.cat(list(itertools.islice(data.StyleMixer(*args, **kwargs), count)))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_a_batch_without_overlap(processes, tmp_path, photos):
    """Lesson: together they see exactly the batch that one process would, each picture once."""
    packed, _ = pack(photos, tmp_path / "cache")
    dataset = data.PictureDataset(packed, data.find_pictures(photos), 8)
    one = iter(data.picture_loader(dataset, 8, start=16))
    rows = iter(data.StyleMixer(6, 8, start=32))
    parts = [iter(data.picture_loader(dataset, 8 // processes, 16, process=p, processes=processes))
             for p in range(processes)]
    mixers = [iter(data.StyleMixer(6, 8 // processes, start=32, process=p, processes=processes))
              for p in range(processes)]
    for _ in range(3):
        whole, whole_rows = next(one), next(rows)
        for p in range(processes):
            assert torch.equal(next(parts[p]), whole[p::processes])
            assert torch.equal(next(mixers[p]), whole_rows[p::processes])
    if processes > 1:                                          # control: the parts do differ
        assert not torch.equal(whole[0::processes], whole[1::processes])


def test_style_mixer_rows_can_be_predicted():
    """Lesson: rows begin with 0, never fall, rise by 1 at K-1 places, all equally likely."""
    rows = rows_of(50, 8, 100, styles=2, probability=1.0)
    assert rows.shape == (5000, 8) and rows.dtype == torch.int64
    steps = rows.diff(dim=1)
    assert (rows[:, 0] == 0).all() and ((steps == 0) | (steps == 1)).all()
    assert (steps.sum(dim=1) == 1).all()
    places = steps.float().mean(dim=0)                         # how often each of the 7 places
    assert (places - 1 / 7).abs().max() < 0.02                 # 4 standard deviations of 5000 draws
    three = rows_of(50, 8, 100, styles=3, probability=1.0).diff(dim=1)
    assert (three.sum(dim=1) == 2).all() and three.max() == 1
    assert (three.float().mean(dim=0) - 2 / 7).abs().max() < 0.03
    mixed = rows_of(50, 8, 100).max(dim=1).values.float().mean()
    assert abs(mixed - 0.9) < 0.02
    assert rows_of(10, 8, 100, probability=0.0).max() == 0
    assert rows_of(10, 8, 100, styles=1).max() == 0
    assert torch.equal(rows_of(2, 2, 4, styles=5, probability=1.0),        # 4x4: one place only
                       torch.tensor([[0, 1]] * 8))


def test_style_mixer_goes_on_where_it_is_told_to():
    straight = rows_of(300, 8, 10, seed=5)
    assert torch.equal(rows_of(1, 8, 10, seed=5, start=2500), straight[2500:2510])
    assert torch.equal(rows_of(3, 8, 100, seed=5, start=1000), straight[1000:1300])  # other batch
    assert not torch.equal(rows_of(1, 8, 10, seed=6), straight[:10])                 # control
    for wrong in (dict(styles=0), dict(probability=1.5), dict(num_layers=1)):
        with pytest.raises(ValueError, match="StyleMixer|styles"):
            data.StyleMixer(**{"num_layers": 8, "batch_size": 4, **wrong})
