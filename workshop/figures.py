"""figures.py: labelled figures, and files that never replace a stranger's.   (workshop)

Used by: generate.py, project.py, evaluate.py.
Needs:   torch, torchvision, Pillow. Importing this file reads no file, no argv, no clock.
Letters: R pixels a side of an image; S pixels a side of a tile. Images lie in [-1, 1].

  1. tiles    an image becomes S x S bytes: enlarged without smoothing, or averaged
  2. figures  rows of tiles with labels, captions and a title; their limits, known beforehand
  3. files    whole or not at all; marked as ours; nobody else's is written over
"""

import contextlib
import math
import os
import pathlib
import textwrap
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from stylegan_dataloader import to_pixels
from workshop import UserError, check_writable, naming, replace

# ---- 1. Tiles --------------------------------------------------------------------------------
#
# All tiles of a figure have one size. Small images are enlarged by a whole factor and without
# smoothing: at 32x32 one wants to see the pixels that the network made, and not a filter's. Large
# ones are reduced by averaging. So the memory of a figure is that of its tiles.

TILE, LARGEST_TILE = 96, 256         # pixels a side


def tile_side(resolution):
    """How large an image is shown: 96 px or a little more if it is small, else its size or 256."""
    return min(resolution * math.ceil(TILE / resolution), LARGEST_TILE)


def to_tile(image, side):
    """float [3, R, R] in [-1, 1] -> uint8 [3, side, side]. R and side divide one another.

    Proved: tests/test_figures.py::test_tiles_are_enlarged_by_a_whole_factor_or_averaged
    """
    image = image[None].clamp(-1, 1)
    if side > image.shape[2]:
        image = F.interpolate(image, (side, side), mode="nearest")
    else:
        image = F.avg_pool2d(image, image.shape[2] // side)
    return to_pixels(image)[0].permute(2, 0, 1)


def in_rows(items, columns):
    """[a, b, c, d, e], 2 -> [[a, b], [c, d], [e]]"""
    return [items[k:k + columns] for k in range(0, len(items), columns)]


def match_contrast(image, reference):
    """The image with the mean and the standard deviation that each colour has in the reference.

    Shapes: image [3, r, r], reference [3, R, R], R >= r, averaged down to r first -> [3, r, r].
    """
    reference = F.adaptive_avg_pool2d(reference, image.shape[1:])
    std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(reference, dim=(1, 2), keepdim=True)
    return wanted_mean + (image - mean) * wanted_std / std.clamp(min=1e-8)


def busiest(map, side):
    """(top, left) of the side x side pixels in which a map [R, R] is largest, in quarter steps.

    Proved: tests/test_figures.py::test_the_busiest_window_is_found_and_framed
    """
    step = max(1, side // 4)
    means = F.avg_pool2d(map[None, None], side, step)[0, 0]
    place = int(means.argmax())
    return place // means.shape[1] * step, place % means.shape[1] * step


def framed(image, top, left, side):
    """A copy of an image [3, R, R] with a white frame drawn just inside of the window."""
    image, edge = image.clone(), max(1, image.shape[2] // 128)
    window = image[:, top:top + side, left:left + side]
    inside = window[:, edge:-edge, edge:-edge].clone()
    window.fill_(1.0)
    window[:, edge:-edge, edge:-edge] = inside
    return image


# ---- 2. Figures ------------------------------------------------------------------------------

# Pixels. The bounds of the texts hold for what generate.py writes
# (tests/test_generate.py::test_figures_are_no_larger_than_was_checked).
GAP, FONT_SIZE = 4, 13
WIDEST_LABEL, NARROWEST, HIGHEST_TEXT = 450, 360, 180
MOST_PIXELS = 150e6                  # of a figure: 450 MB of memory
FIGURES = (".png", ".jpg", ".webp")
MOST_SIDE = {".webp": 16383, ".jpg": 65500}    # pixels: what the formats can hold


class Row(NamedTuple):
    """A row of a figure.

    tiles:    uint8 [3, S, S] each; None where there shall be nothing.
    label:    at its left. captions: one above each tile. space: begins a new group.
    """
    tiles: list
    label: str = ""
    captions: tuple = ()
    space: bool = False


def check_figure(path, rows, columns, side, captions=1):
    """Refuse a figure that memory or its format cannot hold, before hours go into it.

    How:    by a bound from above, since its texts are not known yet: up to some hundreds of pixels
            too large, and 12 more a row. captions: how many of its rows have captions.
    Proved: tests/test_figures.py::test_limits_are_known_before_the_first_image,
            tests/test_generate.py::test_figures_are_no_larger_than_was_checked
    """
    width = max(NARROWEST, WIDEST_LABEL + columns * (side + GAP) + GAP)
    height = HIGHEST_TEXT + rows * (side + 4 * GAP) + captions * HIGHEST_TEXT // 2
    most = MOST_SIDE.get(path.suffix.lower(), math.inf)
    if max(width, height) > most:
        raise UserError(f"--out {path}: a figure of {rows} x {columns} tiles is up to {width} x "
                        f"{height} pixels large, and a {path.suffix} holds {most} a side; choose "
                        f"a .png, or ask for fewer")
    if width * height > MOST_PIXELS:
        raise UserError(f"a figure of {rows} x {columns} tiles of {side} px has up to "
                        f"{width * height / 1e6:.0f} million pixels, and the limit is "
                        f"{MOST_PIXELS / 1e6:.0f}; ask for fewer")
    return width, height


def wrapped(text, font, width):
    """The text with line breaks, so that it is about `width` pixels wide where its words allow.

    `textwrap` counts letters, and letters differ in width. So each line counts with its own mean.
    Proved: tests/test_figures.py::test_no_title_is_cut_off
    """
    lines = []
    for line in text.split("\n"):
        mean = max(1.0, font.getlength(line) / max(1, len(line)))          # width of a letter
        characters = len(line) if font.getlength(line) <= width else int(0.95 * width / mean)
        lines.append(textwrap.fill(line, max(1, characters), break_long_words=False))
    return "\n".join(lines)


def draw_figure(title, rows):
    """A Pillow image: the title, then the rows, on white.

    How:    each row is a picture of its own, its tiles laid out by torchvision's `make_grid`; the
            rows are then put one below the other.
    Proved: tests/test_figures.py::test_a_figure_shows_every_tile_whole_and_every_label
    """
    from torchvision.utils import make_grid                    # slow to import, so not on top
    font = ImageFont.load_default(FONT_SIZE)
    line_height = sum(font.getmetrics()) + 1
    columns = max(len(row.tiles) for row in rows)
    side = next(tile for row in rows for tile in row.tiles if tile is not None).shape[2]
    margin = math.ceil(max(font.getlength(line) for row in rows for line in row.label.split("\n")))
    margin += GAP if margin else 0
    width = max(NARROWEST, margin + columns * (side + GAP) + GAP)

    def band(height):
        image = Image.new("RGB", (width, height), "white")
        return image, ImageDraw.Draw(image)

    def lines_of(text):
        return text.count("\n") + 1 if text else 0

    def write(draw, x, y, text):
        for number, line in enumerate(text.split("\n")):
            draw.text((x, y + number * line_height), line, fill="black", font=font)

    title = wrapped(title, font, width - 2 * GAP)
    image, draw = band(lines_of(title) * line_height + 2 * GAP)
    write(draw, GAP, GAP, title)
    bands = [image]
    blank = torch.full((3, side, side), 255, dtype=torch.uint8)
    for row in rows:
        captions = [wrapped(text, font, side) for text in row.captions]
        above = max(map(lines_of, captions), default=0) * line_height + 3 * GAP * row.space
        grid = make_grid([blank if tile is None else tile for tile in row.tiles],
                         nrow=len(row.tiles), padding=GAP, pad_value=255)      # [3, S + 2 GAP, ..]
        if len(row.tiles) == 1:                                # make_grid leaves its border out
            grid = F.pad(grid, [GAP] * 4, value=255)
        image, draw = band(above + grid.shape[1] - GAP)
        image.paste(Image.fromarray(grid.permute(1, 2, 0).numpy()), (margin, above - GAP))
        write(draw, GAP, above + (side - lines_of(row.label) * line_height) // 2, row.label)
        for number, text in enumerate(captions):
            write(draw, margin + GAP + number * (side + GAP),
                  above - lines_of(text) * line_height, text)
        bands.append(image)
    return Image.fromarray(np.concatenate([np.asarray(image) for image in bands]))


# ---- 3. Files --------------------------------------------------------------------------------

# Every picture, video and .npz of these programs carries these words: as the "Software" of its
# metadata, or as a comment. Only a file that has them is written over. (A copy that was edited by a
# program which keeps the metadata has them, too.)
MARK = "made by this StyleGAN"
MARKED_WITHIN = 65536                # bytes from the beginning, or from the end


def is_ours(path):
    """Does the file carry our MARK?"""
    with open(path, "rb") as file:
        head = file.read(MARKED_WITHIN)
        file.seek(max(0, os.path.getsize(path) - MARKED_WITHIN))
        return MARK.encode() in head + file.read()


def check_free(path, option="--out"):
    """Refuse a path that holds something which these programs did not write.

    Errors: UserError.
    Proved: tests/test_figures.py::test_only_our_own_files_are_written_over
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; give the name of a file")
    if os.path.lexists(path) and not (path.is_file() and is_ours(path)):
        raise UserError(f"{option} {path}: exists, and this program did not write it, so it is not "
                        f"written over; choose another name with {option}")
    check_writable(path, option)


@contextlib.contextmanager
def written(path):
    """A temporary path beside `path`, renamed to it at the end; nothing is left after an error.

    How:    the suffix stays the same, because Pillow and ffmpeg read the format from it. The name
            is taken with "x", which fails where there is something already: in a folder that others
            can write to, nobody can put a link in its place beforehand.
    Proved: tests/test_figures.py::test_a_file_is_whole_or_as_it_was
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.is_file() and not temporary.is_symlink():
            temporary.unlink()                                 # of a killed run with our number
        open(temporary, "xb").close()
        try:
            yield temporary
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def save_picture(path, image):
    """A Pillow image as .png, .jpg or .webp, with our mark."""
    with written(path) as temporary:
        encode_picture(temporary, image)


def encode_picture(path, image):
    more = {}
    if path.suffix.lower() == ".png":
        more["pnginfo"] = PngImagePlugin.PngInfo()
        more["pnginfo"].add_text("Software", MARK)
    else:
        more["exif"] = Image.Exif()
        more["exif"][0x0131] = MARK                            # the tag "Software"
    image.save(path, quality=95, **more)                       # a PNG has no use for a quality


def save_arrays(path, **arrays):
    """A .npz with our mark."""
    with written(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, made_by=np.array(MARK.encode()))
