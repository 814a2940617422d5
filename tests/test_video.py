"""workshop/video.py: a path through points, and encoders."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import refused
from workshop import UserError, figures, video

resource = pytest.importorskip("resource", reason="not on Windows")


@pytest.fixture(params=["ffmpeg", "Pillow"])
def encoder(request, monkeypatch):
    """With imageio-ffmpeg and without it."""
    if request.param == "ffmpeg":
        pytest.importorskip("imageio_ffmpeg", reason="needs requirements-extra.txt")
    else:
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)       # import fails
    return request.param


def frames_of(count, side=64):
    """Large squares of random colours that turn into others."""
    rng = np.random.default_rng(0)
    first, last = rng.integers(0, 256, (2, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    return [(first + (last - first) * k / count).astype(np.uint8) for k in range(count)]


def read(path):
    """[frames], [milliseconds each]."""
    if path.suffix == ".mp4":
        import imageio_ffmpeg
        reader = imageio_ffmpeg.read_frames(str(path))
        about = next(reader)
        shown = [np.frombuffer(frame, np.uint8).reshape(*about["size"], 3) for frame in reader]
        return shown, [1000 / about["fps"]] * len(shown)
    with Image.open(path) as image:
        shown, durations = [], []
        for k in range(image.n_frames):
            image.seek(k)
            shown.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    return shown, durations


def test_the_loop_closes_and_has_no_corner():
    """Lesson: position and velocity are the same on both sides of every point, and of the end."""
    points = torch.randn(5, 2, 7, dtype=torch.float64)
    h = 1e-5
    for k in range(6):
        t = torch.tensor([k - 2 * h, k - h, k, k + h, k + 2 * h], dtype=torch.float64)
        x = video.closed_spline(points, t)
        assert torch.allclose(x[2], points[k % 5])             # it passes through the faces
        before, after = (x[2] - x[1]) / h, (x[3] - x[2]) / h
        assert torch.allclose(before, after, atol=1e-2)
        assert torch.allclose(after, (points[(k + 1) % 5] - points[k - 1]) / 2, atol=1e-2)
        # Control: straight lines turn a corner there.
        corner = (points[(k + 1) % 5] - points[k % 5]) - (points[k % 5] - points[k - 1])
        assert corner.abs().max() > 0.1


@pytest.mark.parametrize("hold", [0, 3])
@pytest.mark.parametrize("one_way", [False, True])
def test_frames_are_where_they_should_be_and_stand_where_they_hold(one_way, hold):
    """Lesson: a loop of 4 stops and 40 frames passes a stop every 10 frames; one way it ends at the
    last one. With --hold each stop is shown 1 + 3 times, and the frames between are evenly apart.
    Judge: counting. The first and the last frame of a long one are there without all the others."""
    count = (31 if one_way else 40) + 4 * hold
    t = video.times(torch.arange(count, dtype=torch.float64), count, 4, one_way, hold)
    assert t[0] == 0 and len(t) == count and (t.diff() >= 0).all()
    at_stops = [(t - stop).abs().lt(1e-9).sum().item() for stop in range(4)]
    assert at_stops == [1 + hold] * 4
    steps = t.diff()[t.diff() > 1e-9]
    assert steps.max() - steps.min() < 1e-9                    # evenly
    assert t[-1] == pytest.approx(3.0 if one_way else 4 - steps[0].item())
    last = video.times(torch.tensor([count - 1.0], dtype=torch.float64), count, 4, one_way, hold)
    assert last == t[-1]
    with pytest.raises(UserError, match="--hold 20: too long"):
        video.times(torch.zeros(1), 40, 4, one_way, 20)
    with pytest.raises(UserError, match="--hold 9: too long, with 1 faces"):
        video.times(torch.zeros(1), 10, 1, True, 9)            # all of it, standing still: 0 / 0


def test_a_grid_has_its_tiles_row_by_row():
    tiles = [np.full((2, 2, 3), k, np.uint8) for k in range(6)]
    grid = video.in_grid(tiles, 3)
    assert grid.shape == (4, 6, 3)
    assert grid[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_time_is_exact_in_a_long_loop():
    """Lesson: split in float64, and only then rounded: a late frame is no less exact."""
    t = torch.tensor([123456.0 + 1 / 3], dtype=torch.float64)
    whole, u = video.split_time(t, torch.zeros(5, 2))
    assert whole.item() == 123456 and u.item() == pytest.approx(1 / 3, abs=1e-7)
    assert u.dtype == torch.float32 and t.float().item() % 1 != pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.parametrize("suffix", video.VIDEOS)
def test_a_video_has_all_its_frames(tmp_path, encoder, suffix):
    if suffix == ".mp4" and encoder == "Pillow":
        pytest.skip("Pillow writes no .mp4")
    path, frames = tmp_path / f"loop{suffix}", frames_of(20)
    video.write_video(path, iter(frames), 20, 20)
    shown, durations = read(path)
    assert len(shown) == 20 and durations == [50] * 20
    for k in (0, 9, 19):                                       # every format loses something
        assert np.abs(shown[k].astype(float) - frames[k]).mean() < 6
        assert np.abs(shown[k].astype(float) - frames[(k + 10) % 20]).mean() > 12      # control
    assert figures.is_ours(path) and [*tmp_path.iterdir()] == [path]
    figures.check_free(path)


def test_a_name_with_a_colon_is_a_file(tmp_path, encoder, monkeypatch):
    """Lesson: ffmpeg takes "12:" for a protocol, and "-loop" for an option."""
    if encoder == "Pillow":
        pytest.skip("Pillow writes no .mp4")
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "-loop.mp4"):
        video.write_video(pathlib.Path(name), iter(frames_of(5)), 5, 20)
        assert len(read(tmp_path / name)[0]) == 5


@pytest.mark.parametrize("suffix, fps, steps", [
    (".gif", 30, {30, 40}), (".webp", 30, {33, 34}), (".webp", 60, {16, 17})])
def test_a_video_lasts_as_long_as_it_should(tmp_path, encoder, suffix, fps, steps):
    """Lesson: a GIF counts in 1/100 s, a WebP in 1/1000 s. At 30 frames a second a GIF's last 30,
    30 and 40 ms, not 30 always."""
    path = tmp_path / f"loop{suffix}"
    video.write_video(path, iter(frames_of(30)), 30, fps)
    _, durations = read(path)
    # Older ffmpegs (4.2) let the last frame of a GIF last 10 ms longer.
    more = 10 if suffix == ".gif" else 0
    assert set(durations) == steps and -1 <= sum(durations) - 30_000 / fps <= 1 + more


def test_memory_does_not_grow_with_the_length(tmp_path):
    """Lesson: ffmpeg gets a frame, then the next one is made."""
    pytest.importorskip("imageio_ffmpeg", reason="needs requirements-extra.txt")
    alive, most = set(), []

    class Frame(np.ndarray):
        def __del__(self):
            alive.discard(self.number)

    def frames():
        for k, frame in enumerate(frames_of(40)):
            frame = np.array(frame).view(Frame)
            frame.number = k
            alive.add(k), most.append(len(alive))
            yield frame

    video.write_video(tmp_path / "loop.gif", frames(), 40, 25)
    assert len(most) == 40 and max(most) <= 3


def test_what_cannot_be_written_is_refused_before_a_frame_is_made(tmp_path, encoder):
    gif, webp, mp4 = (tmp_path / f"loop{s}" for s in (".gif", ".webp", ".mp4"))
    video.check_video(gif, 100, 256, 50), video.check_video(webp, 100, 256, 60)
    with pytest.raises(UserError, match="at most 50"):
        video.check_video(gif, 100, 256, 60)
    for path, count in ((mp4, 2), (gif, 10_000), (webp, 10_000)):
        if encoder == "ffmpeg":
            video.check_video(path, count, 256, 25)
        else:
            with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
                video.check_video(path, count, 256, 25)


@pytest.fixture
def disk():
    """A full disk, as the system shows it to a process and its children: a limit of file sizes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix, limit", [(".mp4", 0), (".mp4", 4096), (".mp4", 12_000),
                                           (".gif", 50_000), (".webp", 10_000)])
def test_a_full_disk_leaves_the_old_video_and_says_so(tmp_path, disk, capsys, suffix, limit):
    """Lesson: ffmpeg's exit code is looked at, and its file has another name until it is whole."""
    pytest.importorskip("imageio_ffmpeg", reason="needs requirements-extra.txt")
    path = tmp_path / f"loop{suffix}"
    path.write_bytes(b"the old video")

    def main(argv):
        video.write_video(path, iter(frames_of(60, 256)), 60, 25)

    disk(limit)
    code, line = refused(main, [], capsys)
    assert code == 2 and "ffmpeg ended" in line, line
    assert path.read_bytes() == b"the old video" and [*tmp_path.iterdir()] == [path]
    disk(10_000_000)                                           # control: with more room it works
    main([])
    assert len(read(path)[0]) == 60


def test_an_error_in_a_frame_leaves_the_old_video(tmp_path, encoder, monkeypatch):
    """Lesson: the program ffmpeg is ended, too, and the error is the frame's own."""
    path, started = tmp_path / "loop.webp", []
    path.write_bytes(b"the old video")
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or
                        started[-1])

    def frames():
        yield from frames_of(5)
        raise KeyError("no such face")

    with pytest.raises(KeyError, match="no such face"):
        video.write_video(path, frames(), 20, 25)
    assert path.read_bytes() == b"the old video" and [*tmp_path.iterdir()] == [path]
    assert [bool(process.returncode) for process in started] == [True] * (encoder == "ffmpeg")
