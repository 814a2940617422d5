"""stylegan_dataloader.py, from top to bottom. Each test is a lesson; its control shows it can fail.
"""

import itertools
import multiprocessing
import time
import types

import pytest
import torch
from PIL import Image

import stylegan_dataloader as data
from workshop import UserError, machine, pictures
from workshop.options import Table


@pytest.fixture
def photos(tmp_path):
    """12 pictures of 40x32. Picture k has 20 k of red. The right half is greener than the left, so
    a mirrored picture is another one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(12):
        picture = Image.new("RGB", (40, 32), (20 * k, 100, 250 - 20 * k))
        picture.paste((20 * k, 200, 250 - 20 * k), (20, 0, 40, 32))
        picture.save(folder / f"{k:02d}.png")
    return folder


def dataset_of(folder, tmp_path, resolution=16, **options):
    source = pictures.find_pictures(folder)
    packed = pictures.pack_pictures(source, 16, tmp_path / "cache", report=lambda line: None)
    return data.PictureDataset(packed, source, resolution, **options)


# ---- 1. the StyleMixer ----


def rows_of(count, *args, **kwargs):
    return torch.cat(list(itertools.islice(data.StyleMixer(*args, **kwargs), count)))


def test_style_mixer_rows_can_be_predicted():
    """Lesson: rows begin with 0, never fall, rise by 1 at K-1 places, all equally likely."""
    rows = rows_of(50, 8, 100, styles=2, probability=1.0)
    assert rows.shape == (5000, 8) and rows.dtype == torch.int64
    for row in ([0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]):      # the examples are there
        assert (rows == torch.tensor(row)).all(dim=1).any()
    steps = rows.diff(dim=1)
    assert (rows[:, 0] == 0).all() and ((steps == 0) | (steps == 1)).all()
    assert (steps.sum(dim=1) == 1).all()
    places = steps.float().mean(dim=0)                         # how often each of the 7 places
    assert (places - 1 / 7).abs().max() < 0.02                 # 4 standard deviations of 5000 draws
    three = rows_of(50, 8, 100, styles=3, probability=1.0)
    assert (three == torch.tensor([0, 0, 1, 1, 1, 1, 2, 2])).all(dim=1).any()
    three = three.diff(dim=1)
    assert (three.sum(dim=1) == 2).all() and three.max() == 1
    assert (three.float().mean(dim=0) - 2 / 7).abs().max() < 0.03
    mixed = rows_of(50, 8, 100).max(dim=1).values.float().mean()
    assert abs(mixed - 0.9) < 0.02                             # "nine training images of ten"
    assert rows_of(10, 8, 100, probability=0.0).max() == 0     # control: never mixed
    assert rows_of(10, 8, 100, styles=1).max() == 0
    assert torch.equal(rows_of(2, 2, 4, styles=5, probability=1.0),        # 4x4: one place only
                       torch.tensor([[0, 1]] * 8))
    batch = rows_of(1, 8, 100, probability=1.0)                # every image draws its own place
    assert len(batch.unique(dim=0)) == 7


def test_style_mixer_goes_on_where_it_is_told_to():
    """Lesson: row number i is a function of (seed, num_layers, i), whatever the batch."""
    straight = rows_of(300, 8, 10, seed=5)
    assert torch.equal(rows_of(1, 8, 10, seed=5, start=2500), straight[2500:2510])
    assert torch.equal(rows_of(3, 8, 100, seed=5, start=1000), straight[1000:1300])  # other batch
    assert not torch.equal(rows_of(1, 8, 10, seed=6), straight[:10])                 # control
    other = rows_of(1, 9, 10, seed=5, probability=1.0)         # another network, another series
    assert not torch.equal(other[:, :8], rows_of(1, 8, 10, seed=5, probability=1.0))
    assert not torch.equal(straight[1024:2024], straight[:1000])   # nor do rows come round again
    for wrong in (dict(styles=0), dict(probability=1.5), dict(num_layers=1)):
        with pytest.raises(ValueError, match="needs styles >= 1, num_layers >= 2"):
            data.StyleMixer(**{"num_layers": 8, "batch_size": 4, **wrong})



# ---- 2. the pictures ----


def test_images_and_pixels_are_two_ways_of_writing_one_thing(monkeypatch):
    """Lesson: 0..255 is -1..1, and what goes there comes back to the bit."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    images = data.to_images(pixels)
    assert images.shape == (1, 3, 16, 16) and images.min() == -1 and images.max() == 1
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(data.to_pixels(images), pixels)
    assert data.to_pixels(torch.full((1, 3, 4, 4), 7.0)).max() == 255      # clipped, not wrapped
    assert data.to_pixels(torch.full((1, 3, 4, 4), -7.0)).max() == 0
    assert not torch.equal(data.to_pixels(0.99 * images), pixels)          # control
    monkeypatch.setattr(machine, "memory_format", lambda device: torch.contiguous_format)
    assert data.to_images(pixels).is_contiguous()              # as the device wants it
    colours = torch.tensor([255, 128, 0], dtype=torch.uint8).expand(1, 4, 4, 3)
    assert data.to_images(colours)[0, :, 0, 0].tolist() == pytest.approx([1, 1 / 255, -1], abs=1e-6)


def test_faded_reals_go_from_coarse_to_sharp():
    """Lesson: at alpha 0 a real picture is as coarse as G's: the mean of 2x2 pixels, enlarged."""
    images = torch.randn(2, 3, 8, 8)
    coarse = data.fade_reals(images, 0.0)
    for y, x in itertools.product(range(8), range(8)):
        block = images[:, :, y // 2 * 2:y // 2 * 2 + 2, x // 2 * 2:x // 2 * 2 + 2]
        assert torch.allclose(coarse[:, :, y, x], block.mean(dim=(2, 3)), atol=1e-6)
    assert torch.equal(data.fade_reals(images, 1.0), images)
    assert torch.allclose(data.fade_reals(images, 0.25), 0.25 * images + 0.75 * coarse, atol=1e-6)
    assert not torch.allclose(coarse, images, atol=0.1)                    # control



# ---- 3. the loader ----


def test_an_epoch_shows_every_picture_once(tmp_path, photos):
    """Lesson: order and flips are functions of (seed, sample number), so a loader can be started
    anywhere and gives what the uninterrupted one gives there."""
    dataset = dataset_of(photos, tmp_path, seed=3)
    first, second = dataset.__getitems__(range(12)), dataset.__getitems__(range(12, 24))
    reds = [sorted(batch[:, 0, 0, 0].tolist()) for batch in (first, second)]
    assert reds[0] == reds[1] == [20 * k for k in range(12)]
    assert not torch.equal(first, second)                                  # another order
    loader = iter(data.picture_loader(dataset, 5))
    straight = torch.cat([next(loader) for _ in range(4)])
    data._epoch.cache_clear()                                  # as in a new process
    resumed = iter(data.picture_loader(dataset, 5, start=10))
    assert torch.equal(torch.cat([next(resumed), next(resumed)]), straight[10:])
    workers = iter(data.picture_loader(dataset, 5, start=10, workers=2))
    assert torch.equal(next(workers), straight[10:15])
    other = dataset_of(photos, tmp_path, seed=4)
    assert not torch.equal(other.__getitems__(range(12)), first)           # control


def test_half_of_the_pictures_are_mirrored_unless_turned_off(tmp_path):
    """Lesson: a picture comes as it is or mirrored left to right, and which is a fair coin."""
    (tmp_path / "p").mkdir()
    lopsided = Image.new("RGB", (16, 16))
    lopsided.paste("white", (0, 0, 8, 16))
    lopsided.save(tmp_path / "p" / "x.png")
    seen = dataset_of(tmp_path / "p", tmp_path).__getitems__(range(400))
    assert 150 < (seen[:, 0, 0, 0] == 0).sum() < 250           # 5 standard deviations of 400 draws
    upright = dataset_of(tmp_path / "p", tmp_path, flip=False).__getitems__(range(400))
    assert (upright[:, 0, 0, 0] == 255).all()                  # control
    mirrored = seen[seen[:, 0, 0, 0] == 0]
    assert torch.equal(mirrored.flip(2), upright[:len(mirrored)])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_a_batch_without_overlap(processes, tmp_path, photos):
    """Lesson: together they see exactly the batch that one process would, each picture once."""
    dataset = dataset_of(photos, tmp_path, 8)
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


def test_a_new_loader_takes_nothing_from_the_global_random_state(tmp_path, photos):
    """Lesson: torch's DataLoader draws a seed from the global generator unless it has its own. Then
    whatever is drawn next would depend on how many loaders there have been."""
    dataset = dataset_of(photos, tmp_path)
    before = torch.get_rng_state()
    next(iter(data.picture_loader(dataset, 4)))
    next(iter(data.StyleMixer(8, 4)))
    assert torch.equal(torch.get_rng_state(), before)
    next(iter(torch.utils.data.DataLoader([1, 2])))                        # control
    assert not torch.equal(torch.get_rng_state(), before)


def a_run(photos, tmp_path, **options):
    """What train.py hands to `Pictures`: its options, and one process."""
    given = dict(data=photos, resolution=16, cache=tmp_path / "cache", max_bad=1.0, seed=3,
                 allow_upsampling=False, evaluate_kimg=None, no_flip=False, workers=0,
                 batch=Table({4: 4}))
    return types.SimpleNamespace(**{**given, **options}), machine.Team(torch.device("cpu"))


def test_the_pictures_of_a_run_are_batches_from_where_it_stands(tmp_path, photos):
    """Lesson: `Pictures` adds nothing to the dataset and the loader but the choice of the run."""
    o, team = a_run(photos, tmp_path)
    run = data.Pictures(o, team)
    dataset = dataset_of(photos, tmp_path, 8, seed=3)
    batch = next(run.batches(8, 5, nimg=10))
    assert torch.equal(batch, dataset.__getitems__(range(10, 15)))
    assert not torch.equal(batch, dataset.__getitems__(range(5)))          # control
    assert run.split is None and len(run.dataset(8)) == 12
    team.rank, team.processes = 1, 2
    assert torch.equal(next(run.batches(8, 4, 10)), dataset.__getitems__([11, 13]))
    upright = data.Pictures(a_run(photos, tmp_path, no_flip=True)[0], team).dataset(16)
    assert not upright.flip and run.dataset(16).flip


def no_room(pixels):
    """In place of pictures.shared. (Out here, so that workers that are not forked can find it.)"""
    raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


def test_a_run_outlives_the_processes_that_load_its_pictures(tmp_path, photos, capsys, monkeypatch):
    """Lesson: a worker is killed (by the kernel, for want of memory), or finds no room in shared
    memory. A loader keeps no state, so the main process takes over where it is: the batches are the
    same to the bit, it is said once, and nobody waits for ever."""
    wanted = iter(data.Pictures(*a_run(photos, tmp_path)).batches(8, 4, nimg=8))
    wanted = [next(wanted) for _ in range(30)]
    started = machine.started

    def failing(error):
        def no_workers(loader):
            if loader.num_workers:
                raise error
            return started(loader)
        return no_workers
    errors = {"no memory": MemoryError(),                      # of which Python says nothing
              "gone": pictures.DataError("x.png cannot be read any more")}
    for failure in ("killed", "no room", "no memory", "gone", "none"):
        with monkeypatch.context() as patch:
            if failure == "no room":
                patch.setattr(pictures, "shared", no_room)
            if failure in errors:
                patch.setattr(machine, "started", failing(errors[failure]))
            batches = data.Pictures(*a_run(photos, tmp_path, workers=2)).batches(8, 4, nimg=8)
            found = [next(batches) for _ in range(3)]
            children = multiprocessing.active_children()
            if failure == "killed":
                for child in children:
                    child.kill()
                for child in children:
                    child.join()
                time.sleep(0.3)                                # in a step, where nothing is raised
            found += [next(batches) for _ in range(27)]
        assert all(map(torch.equal, found, wanted))
        said = capsys.readouterr().err
        if failure == "gone":                                  # the main process would name it
            assert said == ""
        elif failure == "none":                                # control
            assert said == "" and len(children) == 2
        else:
            assert said.count("\n") == 1 and "the main process goes on without them" in said
            assert {"killed": "exited unexpectedly", "no room": "No space left",
                    "no memory": "failed (MemoryError)"}[failure] in said
        batches.close()


def test_workers_without_room_are_not_started(tmp_path, photos, capsys, monkeypatch):
    """Lesson: whether the last resolution has room for them is known at the start."""
    monkeypatch.setattr(machine, "workers_that_fit", lambda count, room: (
        (1, "too little") if room >= 3 * 16 * 16 * 4 else (count, "")))
    o, team = a_run(photos, tmp_path, workers=2)
    run = data.Pictures(o, team)
    assert capsys.readouterr().err == "note: --workers 1 at 16 px and not 2: too little\n"
    for resolution, workers in ((8, 2), (16, 1)):
        batches = run.batches(resolution, 4, nimg=0)
        next(batches)
        assert len(multiprocessing.active_children()) == workers
        batches.close()
    assert capsys.readouterr().err == ""                       # it is said once


def test_a_picture_that_has_gone_is_named(tmp_path, photos):
    """Lesson: where the largest level found no room, originals are read while training."""
    dataset = dataset_of(photos, tmp_path)
    dataset.packed = False
    assert dataset.__getitems__(range(12)).shape == (12, 16, 16, 3)        # control
    (photos / "03.png").unlink()
    with pytest.raises(UserError, match="photos: 03.png cannot be read any more .*No such file"):
        dataset.__getitems__(range(12))


def test_a_run_that_measures_itself_holds_pictures_out(tmp_path, photos):
    """Lesson: what is held out never comes in a batch of training; "all" has both."""
    o, team = a_run(photos, tmp_path, evaluate_kimg=1.0)
    run = data.Pictures(o, team)
    reds = {part: set(run.dataset(16, part).__getitems__(range(48))[:, 0, 0, 0].tolist())
            for part in ("training", "adversary", "test", "all")}
    assert [len(reds[part]) for part in reds] == [10, 1, 1, 12]
    assert reds["training"] | reds["adversary"] | reds["test"] == reds["all"]
    batches = run.batches(16, 12, nimg=0)
    seen = {red for _ in range(4) for red in next(batches)[:, 0, 0, 0].tolist()}
    assert seen == reds["training"]
    later = {"progress": {"split": None}}
    with pytest.raises(UserError, match="held no pictures out"):           # one sentence
        data.Pictures(o, team, later)
