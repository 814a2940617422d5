"""workshop/figures.py: tiles, labelled figures, and files that replace no stranger's."""

import io
import os
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from workshop import UserError, figures
from workshop.figures import Row

# ---- 1. tiles ----


def test_tiles_are_enlarged_by_a_whole_factor_or_averaged():
    assert [figures.tile_side(r) for r in (4, 8, 16, 32, 64, 128, 256, 512, 1024)] == [
        96, 96, 96, 96, 128, 128, 256, 256, 256]
    image = torch.rand(3, 4, 4) * 2 - 1
    pixels = ((image + 1) * 127.5).round().byte().numpy()
    assert np.array_equal(figures.to_tile(image, 96), np.kron(pixels, np.ones((24, 24), np.uint8)))
    large = torch.zeros(3, 512, 512)
    large[:, ::2] = 1.0                                        # stripes of 127.5 and 255
    assert np.unique(figures.to_tile(large, 256)).tolist() == [191]
    assert np.unique(figures.to_tile(large, 512)).tolist() == [128, 255]         # control


def test_the_busiest_window_is_found_and_framed():
    noise = torch.zeros(64, 64, dtype=torch.float64)
    noise[40:60, 8:20] = 1.0
    top, left = figures.busiest(noise, 32)
    assert noise[top:top + 32, left:left + 32].sum() == noise.sum()
    assert figures.busiest(noise[:32, :32], 32) == (0, 0)      # a map of one window
    image = torch.zeros(3, 64, 64)
    seen = figures.framed(image, top, left, 32)
    assert (seen[0] == 1).sum() == 4 * 31 and image.max() == 0                   # a copy
    assert seen[0, top, left:left + 32].min() == 1 and seen[0, top + 1, left + 1] == 0


# ---- 2. figures ----


def tile(colour, side=96):
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, side, side)


def test_a_figure_shows_every_tile_whole_and_every_label():
    colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]
    red, green, blue = map(tile, colours)
    long = "a caption that is much too long for one line"
    pixels = np.asarray(figures.draw_figure("title", [
        Row([red, green], "first row", [long, "b"]), Row([None, blue], "second", space=True)]))
    places = []
    for colour in colours:
        there = (pixels == colour).all(axis=2)
        assert there.sum() == 96 * 96                          # no letter lies on a tile
        rows, columns = np.nonzero(there)
        assert np.ptp(rows) == 95 and np.ptp(columns) == 95
        places.append((rows[0], columns[0]))
    (y1, x1), (y2, x2), (y3, x3) = places
    assert y1 == y2 < y3 and x1 < x2 == x3 and x2 - x1 == 96 + figures.GAP
    assert (pixels[:, -1] == 255).all() and (pixels[-1] == 255).all()            # nothing cut off

    # What is neither white nor a tile is text. Each piece of it can be missed.
    def text(title="title", label="first row", captions=(long, "b"), space=False):
        page = figures.draw_figure(title, [Row([red, green], label, captions),
                                           Row([None, blue], "second", space=space)])
        return (np.asarray(page).max(axis=2) < 100).sum(), page.height
    assert text()[0] > max(text(title="t")[0], text(label="")[0], text(captions=())[0])
    assert text(space=True)[1] > text()[1]


def test_a_row_of_one_tile_has_its_place():
    """Lesson: torchvision's make_grid leaves the border out when there is only one."""
    for count in (1, 2):
        pixels = np.asarray(figures.draw_figure("title", [Row([tile((200, 10, 10))] * count)]))
        rows, columns = np.nonzero((pixels == (200, 10, 10)).all(axis=2))
        assert columns.min() == figures.GAP and rows.max() == len(pixels) - 1 - figures.GAP


@pytest.mark.parametrize("title", ["many short words " * 20, "iiiii " * 40, "WWWWW " * 40,
                                   "one\nline\nafter\nanother, and one of them is long, very long"])
def test_no_title_is_cut_off(title):
    page = np.asarray(figures.draw_figure(title, [Row([tile((200, 10, 10))])]))
    assert (page[:, -2:] == 255).all()
    assert page.shape[0] < 96 + 30 * 17                        # control: lines are not too short


def test_limits_are_known_before_the_first_image():
    """Lesson: a WebP has at most 16,383 pixels a side, a JPEG 65,500; memory has its own limit."""
    png, webp, jpg = (pathlib.Path(f"figure{s}") for s in (".png", ".WEBP", ".jpg"))
    for path in (png, webp, jpg):
        figures.check_figure(path, 10, 10, 256)
    figures.check_figure(png, 2, 160, 96), figures.check_figure(jpg, 2, 160, 96)
    with pytest.raises(UserError, match="16383"):
        figures.check_figure(webp, 2, 170, 96)
    with pytest.raises(UserError, match="65500"):
        figures.check_figure(jpg, 700, 1, 96)
    figures.check_figure(png, 700, 1, 96)                                        # control
    with pytest.raises(UserError, match="ask for fewer"):
        figures.check_figure(png, 10_000, 10, 256)
    for suffix, side in figures.MOST_SIDE.items():             # the numbers, from the encoders
        figures.save_picture(_there(suffix), Image.new("L", (side, 1)).convert("RGB"))
        with pytest.raises((OSError, ValueError)):
            figures.save_picture(_there(suffix), Image.new("RGB", (side + 36, 1)))


def _there(suffix):
    return pathlib.Path(os.environ["PYTEST_FIGURES"]) / f"wide{suffix}"


@pytest.fixture(autouse=True)
def a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_FIGURES", str(tmp_path))


# ---- 3. files ----


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".npz"])
def test_only_our_own_files_are_written_over(tmp_path, suffix):
    """Lesson: our files carry a mark. A picture of yours that has the same name does not."""
    path = tmp_path / f"mixing{suffix}"
    figures.check_free(path)                                   # nothing is there
    if suffix == ".npz":
        figures.save_arrays(path, w=np.random.randn(20000))
    else:
        noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
        figures.save_picture(path, Image.fromarray(noise))
    assert figures.is_ours(path) and path.stat().st_size > 2 * figures.MARKED_WITHIN / 3
    figures.check_free(path)
    if suffix == ".npz":
        np.savez(path, w=np.ones(3))
    else:
        Image.new("RGB", (300, 300)).save(path)
    for _ in range(2):
        with pytest.raises(UserError, match="did not write it"):
            figures.check_free(path)
        path.write_bytes(b"")                                  # nor an empty file
    path.unlink(), path.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        figures.check_free(path)


def test_a_link_to_nothing_is_not_followed(tmp_path):
    (tmp_path / "mixing.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(UserError, match="did not write it"):
        figures.check_free(tmp_path / "mixing.png")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "folder" / "notes.txt"
    with figures.written(path) as temporary:
        temporary.write_text("old")
        assert not path.exists() and temporary.suffix == ".txt"
    with pytest.raises(OSError, match="full"):
        with figures.written(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")
    assert path.read_text() == "old" and [*path.parent.iterdir()] == [path]
    # It is renamed, which takes no time: whoever has the old file open goes on reading the old one.
    # (Windows renames nothing over a file that somebody has open.)
    with open(path) if os.name != "nt" else io.StringIO("old") as reader:
        with figures.written(path) as temporary:
            temporary.write_text("new")
        assert reader.read() == "old" and path.read_text() == "new"
    # Somebody put a link where the temporary file goes: it is not written through.
    victim = tmp_path / "victim"
    victim.write_text("precious")
    temporary.symlink_to(victim)
    with pytest.raises(FileExistsError):
        with figures.written(path) as temporary:
            temporary.write_text("newer")
    assert victim.read_text() == "precious" and path.read_text() == "new"
    assert temporary.is_symlink()                              # it is not ours to delete
