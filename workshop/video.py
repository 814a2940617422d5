"""video.py: a path through points; and frames that become a .mp4, .webp or .gif.   (workshop)

Used by: generate.py.
Needs:   imageio-ffmpeg (pip install -r requirements-extra.txt), which ships the program ffmpeg.
         Without it Pillow writes .webp and .gif. Importing this file reads no file, no argv.

  .mp4   H.264, which every browser plays; the smallest
  .webp  all colours; counts in milliseconds
  .gif   256 colours a frame; counts in hundredths of a second

  none   a folder of .png, one for each frame, for other programs

A frame is uint8 [S, S, 3], S even. Frames are made when they are asked for, and ffmpeg gets one
after the other, so a long video needs no more memory than a short one.
"""

import contextlib
import errno
import itertools
import os
import re
import struct
import subprocess
import tempfile

import numpy as np
import torch
from PIL import Image

from workshop import UserError
from workshop.figures import MARK, check_free, save_picture, written

# ---- 1. A path -------------------------------------------------------------------------------


def split_time(t, points):
    """t [n] on the CPU, float64 -> (whole part [n], the rest u [n, 1, ...] as `points` are)."""
    whole = t.floor().long()
    u = (t - whole).to(points.dtype).to(points.device)         # MPS has no float64
    return whole, u.reshape(-1, *[1] * (points.dim() - 1))


def closed_spline(points, t):
    """A smooth closed curve through points[0], points[1], ... and back (Catmull-Rom).

    Between p1 and p2, with p0 before and p3 behind them, u from 0 to 1:

        p1 + (p2 - p0) u/2 + (2 p0 - 5 p1 + 4 p2 - p3) u^2/2 + (3 p1 - p0 - 3 p2 + p3) u^3/2

    Why:    straight lines would turn a corner at every point, and it shows. This curve has no
            corner: its velocity at p1 is (p2 - p0) / 2, the same from both sides.
    Shapes: points [K, ...], t [n], in units of points: t = k gives points[k], t = K again
            points[0] -> [n, ...]. t is on the CPU, in float64: a loop may have many frames.
    Proved: tests/test_video.py::test_the_loop_closes_and_has_no_corner
    """
    whole, u = split_time(t, points)
    p0, p1, p2, p3 = (points[(whole + k) % len(points)] for k in (-1, 0, 1, 2))
    return (p1 + (p2 - p0) * u / 2 + (2 * p0 - 5 * p1 + 4 * p2 - p3) * u ** 2 / 2
            + (3 * p1 - p0 - 3 * p2 + p3) * u ** 3 / 2)


def times(numbers, count, stops, one_way=False, hold=0):
    """The times of frames: k at stop k, a fraction of the way between two stops.

    Shapes: numbers float64 [n], which of the `count` frames -> float64 [n].
    Frame k of `count` lies at K k / count of the loop through K stops. The last is one step before
    the first, so that a player that repeats shows no frame twice. One way, it is at
    (K - 1) k / (count - 1), from the first stop to the last and no further. hold: how many more
    frames stand still at each stop.
    Errors: UserError if that leaves nothing to move in.
    Proved: tests/test_video.py::test_frames_are_where_they_should_be_and_stand_where_they_hold
    """
    ways, ends = (stops - 1, 1) if one_way else (stops, 0)
    if not hold:
        return numbers * ways / max(1, count - ends)
    moving = count - ends - hold * stops
    if moving < max(1, ways):
        raise UserError(f"--hold {hold}: too long, with {stops} faces to stop at in {count} frames;"
                        f" --frames says how many there are")
    length = moving / max(1, ways)                             # from the end of a stop to the next
    stop = (numbers / (length + hold)).floor().clamp(max=stops - 1)
    return stop + ((numbers - stop * (length + hold) - hold) / length).clamp(min=0)


def in_grid(tiles, columns):
    """Frames [S, S, 3] of one moment, row by row -> [rows S, columns S, 3]."""
    rows = [np.concatenate(tiles[k:k + columns], axis=1) for k in range(0, len(tiles), columns)]
    return np.concatenate(rows)


# ---- 2. Encoders -----------------------------------------------------------------------------

VIDEOS = (".mp4", ".webp", ".gif")
MOST_BYTES = 500e6                   # of frames that Pillow may hold
MOST_FPS = {".gif": 50}              # browsers show a frame of 0.01 s for 0.1 s

# ffmpeg's options. A palette for each frame, since one for all would need all frames first.
ENCODERS = {
    ".mp4": ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-movflags", "+faststart"],
    ".webp": ["-c:v", "libwebp_anim", "-quality", "90", "-loop", "0"],
    ".gif": ["-vf", "split[a][b];[a]palettegen=stats_mode=single[p];"
             "[b][p]paletteuse=new=1:dither=none", "-loop", "0"]}


def find_encoder():
    """The path of ffmpeg, or None if the package is missing."""
    try:
        import imageio_ffmpeg                                  # only a video needs it
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


def check_video(path, count, side, fps):
    """Refuse what cannot be written, before its first frame is made.   Errors: UserError."""
    suffix = path.suffix.lower()
    if not suffix:
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path}: a file; frames need the name of a folder")
        for k in range(count):
            check_free(path / f"frame{k:06d}.png")
        return
    if fps > MOST_FPS.get(suffix, fps):
        raise UserError(f"--fps {fps:g}: a {suffix} shows at most {MOST_FPS[suffix]} frames a "
                        f"second")
    if find_encoder() is None and (suffix == ".mp4" or 3 * side * side * count > MOST_BYTES):
        raise UserError(f"--out {path}: needs an encoder: pip install imageio-ffmpeg, or choose a "
                        f"short --out loop.webp or loop.gif")


def write_video(path, frames, count, fps):
    """Write `count` frames. After an error the old file is as it was.

    Errors: UserError with ffmpeg's last words, if it ends otherwise than well.
    Proved: tests/test_video.py::test_a_full_disk_leaves_the_old_video_and_says_so
    """
    if not path.suffix:
        for k, frame in enumerate(frames):
            save_picture(path / f"frame{k:06d}.png", Image.fromarray(frame))
        return
    encoder = find_encoder()
    with written(path) as temporary:
        if encoder:
            encode(encoder, temporary, frames, fps, path)
        else:
            save_with_pillow(temporary, frames, count, fps)
        sign(temporary)


def encode(encoder, path, frames, fps, name):
    """Give the frames to ffmpeg, and look at how it ended. name: of the path, for a sentence.

    (imageio-ffmpeg's own `write_frames` does not look at the exit code: on a full disk it ended as
    if all were well.)
    """
    frames = iter(frames)
    first = next(frames)
    command = [encoder, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24",
               "-s", f"{first.shape[1]}x{first.shape[0]}", "-r", str(fps), "-i", "-",
               *ENCODERS[path.suffix.lower()], os.path.abspath(path)]      # "a:b.mp4" is no host
    with tempfile.TemporaryFile() as words:                    # a pipe that nobody reads may fill
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=words)
        try:
            for frame in itertools.chain([first], frames):
                process.stdin.write(np.ascontiguousarray(frame))
        except OSError as error:               # it has ended; why, its code says (Windows: EINVAL)
            if error.errno not in (errno.EPIPE, errno.EINVAL):
                process.kill()
                raise
        except BaseException:                                  # Ctrl-C, or a frame failed
            process.kill()
            raise
        finally:
            with contextlib.suppress(OSError):                 # the same broken pipe once more
                process.stdin.close()
            code = process.wait()
        words.seek(0)
        said = words.read().decode(errors="replace").strip().splitlines()
        said = [line for line in said if "No space left" in line] or said
    if code or not path.stat().st_size:
        raise UserError(f"{name}: not written, ffmpeg ended with code {code}" + (
            f" ({re.sub(' @ 0x[0-9a-f]+', '', said[-1])})" if said else "") + "; is the disk full?")


def durations(count, fps, unit):
    """How long each frame is shown in milliseconds, in whole `unit`s, without drifting.

    Proved: tests/test_video.py::test_a_video_lasts_as_long_as_it_should
    """
    ends = [round(1000 * k / fps / unit) * unit for k in range(count + 1)]
    return [b - a for a, b in zip(ends, ends[1:])]


def save_with_pillow(path, frames, count, fps):
    """Without ffmpeg. Pillow holds all frames in memory until the last one has come."""
    unit = 10 if path.suffix.lower() == ".gif" else 1
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], loop=0, quality=90,
                   duration=durations(count, fps, unit))


def sign(path):
    """Add our MARK at the end of the file, as a comment of its format (`figures.is_ours`).

    .mp4: a box "free"; .webp: a chunk that readers skip; .gif: a comment before the last byte.
    """
    mark = MARK.encode().ljust(len(MARK) + len(MARK) % 2)      # chunks of a WebP are even
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        if path.suffix.lower() == ".mp4":
            file.write(struct.pack(">I4s", 8 + len(mark), b"free") + mark)
        elif path.suffix.lower() == ".webp":
            file.write(struct.pack("<4sI", b"NOTE", len(mark)) + mark)
            file.seek(4)                                       # how long all chunks are together
            file.write(struct.pack("<I", size + len(mark)))    # size + 8 for the chunk - 8
        else:
            file.seek(size - 1)
            file.write(b"\x21\xfe" + bytes([len(mark)]) + mark + b"\0;")
