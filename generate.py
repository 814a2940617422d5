"""generate.py: pictures from a checkpoint: samples, the papers' figures, videos.   (7th)

    python generate.py runs/00000-faces/checkpoint.pt samples --seeds 0-31
    python generate.py runs/00000-faces/checkpoint.pt mixing --out mixing.png
    python generate.py runs/00000-faces/checkpoint.pt interpolate --out loop.gif

Read before: stylegan_models.py.     Read next: evaluate.py
Paper:   Karras et al. 2019 (arXiv 1812.04948): figures 3 (mixing), 4 and 5 (noise), 8 (truncation);
         Karras et al. 2018, "ProGAN" (arXiv 1710.10196), figure 1 (resolutions);
         Shen and Zhou 2021, "SeFa" (arXiv 2007.06600) (directions);
         Abdal et al. 2019, "Image2StyleGAN" (arXiv 1904.03189) (project).
Needs:   torch, numpy, Pillow, tqdm; for .mp4 also imageio-ffmpeg. CPU, CUDA or MPS.
Letters: N images in the batch; L style layers; S size of w; R pixels a side. Images lie in [-1, 1].

Training only shows that the losses move. What each part of the architecture is FOR shows here: the
styles in `mixing`, the mapping network and w_avg in `truncation`, the noise inputs in `noise`, the
growing in `resolutions`, the shape of w in `interpolate`, `directions` and `project`. Above each
figure's code stands which figure of which paper it remakes, and what to look for in it.

A seed is a number that stands for one z, the same one on every machine and in every figure, so a
face that was met in one figure can be looked up in another.
"""

import argparse
import contextlib
import functools
import math
import os
import pathlib
import re
import warnings
import zipfile
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont

import stylegan_models as models
from stylegan_dataloader import Source, read_picture, to_images, to_pixels
from stylegan_models import OneLineParser, number_from, pick_device

fail = functools.partial(models.fail, "generate.py")


class UserError(ValueError):
    """What was asked for cannot be done. The message is one sentence for the user."""


# ==== Part 1: from seeds to pictures ==========================================================


class Model(NamedTuple):
    """A generator, and the resolution and alpha that its training had reached.

    A checkpoint from the middle of a run has blocks that have not been trained yet. Pictures are
    made where the run stood; style layers above are never asked for.
    batch: how many pictures are made at once. It bounds the memory and changes nothing else, but
    for rounding (a convolution may add in another order).
    """
    G: torch.nn.Module
    resolution: int
    alpha: float
    batch: int

    @property
    def layers(self):
        return models.num_style_layers(self.resolution)


def load_model(path, device, batch=8):
    """The averaged generator of a checkpoint as a `Model`.

    Errors: CheckpointError as `models.load_checkpoint`, and if its progress makes no sense.
    """
    checkpoint = models.load_checkpoint(path)
    G = models.make_generator(checkpoint["settings"])
    G.load_state_dict(checkpoint["generator_ema"])
    models.set_growth(checkpoint, G)
    # channels_last for speed, as in train.py.
    G.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    # Without progress it is a finished network, for instance one that was converted or imported.
    progress = checkpoint.get("progress", {"resolution": G.synthesis.resolution, "alpha": 1.0})
    try:
        resolution, alpha = progress["resolution"], float(progress["alpha"])
        if str(resolution) not in G.synthesis.blocks or not 0 <= alpha <= 1:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise models.CheckpointError(f"{path}: its progress names no resolution and alpha that "
                                     f"this network has") from None
    return Model(G, resolution, alpha, batch)


def z_of_seeds(seeds, latent_dim):
    """[n, latent_dim], one z a seed.

    Why:    the official code draws the same way, so that with imported weights the seeds that
            people know give the faces that they know. numpy promises the stream of RandomState for
            all time, on every machine; torch promises its own for one version.
    Proved: tests/test_generate.py::test_a_seed_means_the_same_z_everywhere
    """
    draws = [np.random.RandomState(seed).standard_normal(latent_dim) for seed in seeds]
    return torch.from_numpy(np.stack(draws)).float()


@torch.no_grad()
def styles_of_seeds(model, seeds, psi=1.0, cutoff=None):
    """ws [n, L, S], truncated."""
    G = model.G
    w = G.mapping(z_of_seeds(seeds, G.latent_dim).to(G.w_avg.device))                # [n, S]
    return G.truncate(w[:, None].expand(-1, model.layers, -1), psi, cutoff)


@contextlib.contextmanager
def noise_maps(G, keys, resolution):
    """Within the block, noise_mode "const" gives every image of the batch its own noise.

    Why:    noise_mode "random" draws a batch's maps together, so a picture would depend on its
            neighbours. Here the maps of an image are a function of its key alone. The stored map
            [1, 1, R, R] is exchanged for maps [N, 1, R, R]: the same broadcast, one axis longer.
    Keys:   one tuple of numbers for each image, (seed of the image, --seed, number of the draw).
    Proved: tests/test_generate.py::test_a_picture_does_not_depend_on_the_other_seeds
    """
    streams = [np.random.RandomState(key) for key in keys]
    stored = []
    try:
        for r in models.resolutions_up_to(resolution):
            block = G.synthesis.blocks[str(r)]
            for layer in (block.noise0, block.noise1):
                stored.append((layer, layer.const))
                maps = np.stack([stream.standard_normal((1, r, r)) for stream in streams])
                layer.const = torch.from_numpy(maps).to(layer.const)                 # [N,1,r,r]
        yield
    finally:
        for layer, const in stored:
            layer.const = const


@contextlib.contextmanager
def noise_only_at(G, resolutions):
    """Within the block, the noise inputs of all other resolutions are silent.

    How:    their strengths are set to 0 and afterwards back to what they were, also after an error.
    Proved: tests/test_generate.py::test_silenced_noise_comes_back
    """
    layers = [layer for r, block in G.synthesis.blocks.items() if int(r) not in resolutions
              for layer in (block.noise0, block.noise1)]
    kept = [layer.strength.detach().clone() for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.strength.zero_()
        yield
    finally:
        with torch.no_grad():
            for layer, strength in zip(layers, kept):
                layer.strength.copy_(strength)


@torch.no_grad()
def render(model, ws, noise="const", keys=None, resolution=None):
    """Yield one image after the other, float [3, R, R] on the CPU; only a batch is in memory.

    Shapes: ws [n, L, S]. keys: for noise "random", one for each image, see `noise_maps`.
            resolution: smaller than the model's, to look at a lower to_rgb.
    Errors: UserError if the network's output is not finite.
    """
    r = model.resolution if resolution is None else resolution
    alpha = model.alpha if r == model.resolution else 1.0
    for start in range(0, len(ws), model.batch):
        part = slice(start, start + model.batch)
        own_noise = contextlib.nullcontext()
        if noise == "random":
            own_noise = noise_maps(model.G, keys[part], r)
        with own_noise:
            mode = "none" if noise == "none" else "const"
            images = model.G.synthesis(ws[part], r, alpha, mode)
        images = images.float().cpu()
        if not torch.isfinite(images).all():
            raise UserError("the network's images are not finite numbers: its training had failed "
                            "before this checkpoint was written")
        yield from images


# ==== Part 2: from pictures to a labelled figure ==============================================
#
# A figure is made of tiles, one size in all of it. Small images are enlarged by a whole factor and
# without smoothing, since at 32x32 one wants to see the pixels the network made and not a filter's;
# large ones are reduced by averaging. A figure's memory is that of its tiles.

TILE, LARGEST_TILE = 96, 256         # pixels a side
GAP, FONT_SIZE = 4, 13
MOST_PIXELS = 150e6                  # of a figure: 450 MB of memory


def tile_side(resolution, smallest=TILE, largest=LARGEST_TILE):
    """How large an image is shown: enlarged by a whole factor to `smallest`, or reduced."""
    return min(resolution * math.ceil(smallest / resolution), max(smallest, largest))


def to_tile(image, side):
    """float [3, R, R] in [-1, 1] -> a Pillow image of side x side."""
    tile = Image.fromarray(to_pixels(image[None])[0].numpy())
    method = Image.Resampling.NEAREST if side >= tile.width else Image.Resampling.BOX
    return tile.resize((side, side), method)


def check_figure(rows, columns, side):
    """Refuse a figure that would not fit into memory, before hours go into it."""
    pixels = (rows + 1) * (columns + 1) * (side + GAP) ** 2
    if pixels > MOST_PIXELS:
        raise UserError(f"a figure of {rows} x {columns} tiles of {side} px has "
                        f"{pixels / 1e6:.0f} million pixels, and the limit is "
                        f"{MOST_PIXELS / 1e6:.0f}; ask for fewer")


def wrap(text, font, width):
    """Break a text into lines that are at most `width` pixels wide, where its words allow it."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def draw_figure(title, rows, row_labels, captions, space_before=()):
    """Put tiles, their labels and a title on a white page.

    rows: lists of tiles, None where there is none. row_labels: a text each, at the left.
    captions: for each row None, or a list of texts, one above each tile. space_before: numbers of
    the rows that begin a new group.
    """
    font = ImageFont.load_default(FONT_SIZE)
    line_height = sum(font.getmetrics()) + 1
    columns = max(len(row) for row in rows)
    widths = [max(row[k].width for row in rows if k < len(row) and row[k] is not None)
              for k in range(columns)]
    label_lines = [label.split("\n") for label in row_labels]
    margin = math.ceil(max(font.getlength(line) for lines in label_lines for line in lines))
    margin += 2 * GAP if margin else GAP
    lefts = [margin + sum(widths[:k]) + GAP * k for k in range(columns)]
    width = max(lefts[-1] + widths[-1] + GAP, 360)

    # First where everything goes, then the page is as high as it has to be.
    title_lines = wrap(title, font, width - 2 * GAP)
    y = GAP + len(title_lines) * line_height + GAP
    tops, caption_lines = [], []
    for number, row in enumerate(rows):
        y += 3 * GAP if number in space_before else 0
        wrapped = [wrap(text, font, widths[k]) for k, text in enumerate(captions[number] or [])]
        caption_lines.append(wrapped)
        y += max((len(lines) for lines in wrapped), default=0) * line_height
        tops.append(y)
        y += max(tile.height for tile in row if tile is not None) + GAP

    page = Image.new("RGB", (width, y), "white")
    draw = ImageDraw.Draw(page)

    def write(lines, x, y):
        for k, line in enumerate(lines):
            draw.text((x, y + k * line_height), line, fill="black", font=font)

    write(title_lines, GAP, GAP)
    for row, top, label, wrapped in zip(rows, tops, label_lines, caption_lines):
        height = max(tile.height for tile in row if tile is not None)
        write(label, GAP, top + (height - len(label) * line_height) // 2)
        for k, lines in enumerate(wrapped):
            write(lines, lefts[k], top - len(lines) * line_height)
        for k, tile in enumerate(row):
            if tile is not None:
                page.paste(tile, (lefts[k], top))
    return page


def in_rows(items, columns):
    """[a, b, c, d, e], 2 -> [[a, b], [c, d], [e]]"""
    return [items[k:k + columns] for k in range(0, len(items), columns)]


def said(number):
    """0.7 -> "0.7", -1.0 -> "-1": a number as it was typed."""
    return f"{number:g}"


def progress_bar(iterable, total, title):
    """A tqdm bar; silent where nobody looks, in a file or a pipe."""
    from tqdm import tqdm                                      # slow to import, so not on top
    return tqdm(iterable, total=total, desc=title, disable=None, leave=False)


# ==== Part 3: the figures =====================================================================

# ---- samples ----

SHEET_COLUMNS, SHEET_ROWS = 8, 8


def sample_files(out, seeds):
    """The names of all files that `samples` writes into the folder: pictures and sheets."""
    sheets = math.ceil(len(seeds) / (SHEET_COLUMNS * SHEET_ROWS))
    return ([out / f"seed{seed:04d}.png" for seed in seeds],
            [out / f"sheet{number + 1}.png" for number in range(sheets)])


def write_samples(model, seeds, out, psi=1.0, cutoff=None, noise="const", noise_seed=0):
    """One .png a seed at full size, and contact sheets of 64.

    Remakes: figure 2 of the StyleGAN paper, uncurated images (there with psi 0.7 at 4-32 px).
    Look for: variety first, then errors: asymmetric glasses, mouths that melt. Compare --psi 0.7,
            the official way of showing a network, with the default 1, which is what it learned.
    """
    side = tile_side(model.resolution)
    pictures, sheets = sample_files(out, seeds)
    out.mkdir(parents=True, exist_ok=True)
    images = (image for part in in_rows(seeds, model.batch)
              for image in render(model, styles_of_seeds(model, part, psi, cutoff), noise,
                                  [(seed, noise_seed, 0) for seed in part]))
    tiles, sheet_seeds = [], []
    for path, seed, image in zip(pictures, seeds, progress_bar(images, len(seeds), "samples")):
        save_picture(path, Image.fromarray(to_pixels(image[None])[0].numpy()))
        tiles.append(to_tile(image, side))
        sheet_seeds.append(f"seed {seed}")
        if len(tiles) == SHEET_COLUMNS * SHEET_ROWS or path is pictures[-1]:
            rows = in_rows(tiles, SHEET_COLUMNS)
            save_picture(sheets.pop(0), draw_figure(
                f"Samples, {truncation_text(psi, cutoff)}, noise: {noise}", rows,
                [""] * len(rows), in_rows(sheet_seeds, SHEET_COLUMNS)))
            tiles, sheet_seeds = [], []


def truncation_text(psi, cutoff):
    """How `psi` and `cutoff` are named in titles."""
    return f"psi {said(psi)}" + ("" if cutoff is None or psi == 1 else
                                 f" in layers 0-{cutoff - 1}" if cutoff else " in no layer")


# ---- mixing ----


def mixing_ranges(layers):
    """{"coarse": (first, last), ...}: which style layers are exchanged together, all inclusive.

    Paper:  figure 3 at 1024 px: coarse 4-8 px, middle 16-32 px, fine 64-1024 px, so two blocks,
            two blocks and the rest. Where there are fewer than four blocks, coarse is one, so that
            something is left for the others; a group that gets no block is left out.
    Proved: tests/test_generate.py::test_the_ranges_of_figure_3
    """
    blocks = layers // 2
    coarse = 2 if blocks >= 4 else 1
    middle = max(0, min(2, blocks - coarse - 1))
    ends = {"coarse": 2 * coarse, "middle": 2 * (coarse + middle), "fine": layers}
    ranges, first = {}, 0
    for name, end in ends.items():
        if end > first:
            ranges[name] = (first, end - 1)
        first = end
    return ranges


def pixels_text(first, last):
    """The resolutions of style layers first..last: "4-8 px". Layer l belongs to 4 * 2^(l // 2)."""
    low, high = 4 * 2 ** (first // 2), 4 * 2 ** (last // 2)
    return f"{low} px" if low == high else f"{low}-{high} px"


def mix(ws_a, ws_b, first, last):
    """A with the styles of B in layers first..last.   Shapes: [..., L, S], twice -> the same."""
    mixed = ws_a.clone()
    mixed[..., first:last + 1, :] = ws_b[..., first:last + 1, :]
    return mixed


def mixing_figure(model, seeds_a, seeds_b, ranges, psi=1.0, cutoff=None, noise="const",
                  noise_seed=0):
    """Faces with some styles of A (left) and the others of B (top).

    Remakes: figure 3 of the StyleGAN paper.
    Look for: a row is one A, a column one B. In the coarse block the faces of a column should share
            what B's has in the large (pose, shape of the head, hair, glasses) and keep A's colours;
            in the fine block a row should stay the same person in B's colours. If a column of the
            fine block changed the pose, or a row of the coarse one kept it, the styles would not
            be separated by scale, and style mixing in training (train.py) would have failed.
    Noise:  that of A's seed.
    """
    side = tile_side(model.resolution)
    check_figure(1 + len(ranges) * len(seeds_a), 1 + len(seeds_b), side)
    ws_a = styles_of_seeds(model, seeds_a, psi, cutoff)                    # [A, L, S]
    ws_b = styles_of_seeds(model, seeds_b, psi, cutoff)                    # [B, L, S]
    keys_a = [(seed, noise_seed, 0) for seed in seeds_a]

    def tiles(ws, keys):
        return [to_tile(image, side) for image in render(model, ws, noise, keys)]

    tiles_a = tiles(ws_a, keys_a)
    rows = [[None] + tiles(ws_b, [(seed, noise_seed, 0) for seed in seeds_b])]
    labels, space_before = ["source B\n(columns)"], []
    for name, (first, last) in ranges.items():
        space_before.append(len(rows))
        for a, seed in enumerate(seeds_a):
            mixed = mix(ws_a[a].expand_as(ws_b), ws_b, first, last)        # [B, L, S]
            rows.append([tiles_a[a]] + tiles(mixed, [keys_a[a]] * len(seeds_b)))
            layers = f"layers {first}-{last}" if last > first else f"layer {first}"
            labels.append(f"{name} from B\n{pixels_text(first, last)}\n({layers})\nA: seed {seed}")
    captions = [[""] + [f"B: seed {seed}" for seed in seeds_b], ["source A"]]
    captions += [None] * (len(rows) - 2)
    title = (f"Style mixing: the styles of A (left), but in the layers named those of B (top). "
             f"{truncation_text(psi, cutoff)}, noise: {noise}")
    return draw_figure(title, rows, labels, captions, space_before)


# ---- truncation ----


def truncation_figure(model, seeds, psis, cutoff=None, noise="const", noise_seed=0):
    """Each face drawn towards the average one, through it, and out at the other side.

    Remakes: figure 8 of the StyleGAN paper (appendix B), w' = w_avg + psi (w - w_avg).
    Look for: at psi 0 all rows are the same face, the average of w (with --cutoff they differ in
            the layers above it). Towards 0 faces become plain and free of errors, away from it
            varied and worse. At psi -1 each face has turned into its opposite: light hair dark, a
            head that looked left looks right. That opposites exist at all says that w is laid out
            in directions that mean something.
    """
    side = tile_side(model.resolution)
    check_figure(len(seeds), len(psis), side)
    ws = torch.stack([styles_of_seeds(model, seeds, psi, cutoff) for psi in psis], dim=1)
    keys = [(seed, noise_seed, 0) for seed in seeds for _ in psis]
    tiles = [to_tile(image, side) for image in render(model, ws.flatten(0, 1), noise, keys)]
    where = "" if cutoff is None else f", in the first {cutoff} layers"
    return draw_figure(
        f"Truncation: w_avg + psi (w - w_avg){where}. Noise: {noise}", in_rows(tiles, len(psis)),
        [f"seed {seed}" for seed in seeds],
        [[f"psi {said(psi)}" for psi in psis]] + [None] * (len(seeds) - 1))


# ---- noise ----

SHOWN_DRAWS = 4


def spread(images):
    """The standard deviation of each pixel over a stream of images, [R, R].

    How:    sums and sums of squares of the difference to the first image (which keeps them small)
            in float64, so that no image has to be kept; then the RMS over the three colours.
    Units:  those of the images: 2 is the whole way from black to white.
    Proved: tests/test_generate.py::test_spread_is_the_standard_deviation
    """
    count = 0
    for image in images:
        if count == 0:
            origin = image.double()
            total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
        difference = image.double() - origin
        total += difference
        squares += difference.square()
        count += 1
    variance = (squares / count - (total / count).square()).clamp(min=0)   # [3, R, R]
    return variance.mean(dim=0).sqrt()


def noise_groups(resolution):
    """(coarse, fine) lists of resolutions. Paper: figure 5 at 1024 px: 4-32 px and 64-1024 px,
    the lower half of the blocks, rounded down, and the rest."""
    levels = models.resolutions_up_to(resolution)
    return levels[:len(levels) // 2], levels[len(levels) // 2:]


def noise_figure(model, seeds, draws, psi=1.0, cutoff=None, noise_seed=0):
    """One face under several draws of the noise, where it differs, and what each part of it does.

    Remakes: figure 4 (draws, and the standard deviation over 100 of them) and figure 5 (all noise,
            none, fine only, coarse only) of the StyleGAN paper.
    Look for: the draws show the same person; what moves is detail, and the map says where: in hair,
            at edges, in the background, not in the pose. In the paper faces without noise look
            painted, fine noise gives single hairs and pores, and coarse noise large curls. Small
            networks have no such detail and find other uses, or none: then the four cases look
            alike, and the map is nearly black but for some spots (or its white is a low level).
    Units:  the maps have one common scale, its white named in the label in levels of 0..255.
    """
    side = tile_side(model.resolution)
    coarse, fine = noise_groups(model.resolution)
    check_figure(len(seeds), SHOWN_DRAWS + 5, side)
    shown = min(SHOWN_DRAWS, draws)
    rows, maps = [], []
    for seed in seeds:
        ws = styles_of_seeds(model, [seed], psi, cutoff)                   # [1, L, S]
        keys = [(seed, noise_seed, draw) for draw in range(draws)]
        tiles = []

        def seen(images):
            for image in progress_bar(images, draws, f"noise, seed {seed}"):
                if len(tiles) < shown:
                    tiles.append(to_tile(image, side))
                yield image

        maps.append(spread(seen(render(model, ws.expand(draws, -1, -1), "random", keys))))
        for heard in (coarse + fine, [], fine, coarse):
            with noise_only_at(model.G, heard):
                image, = render(model, ws, "random", keys[:1])
            tiles.append(to_tile(image, side))
        rows.append(tiles)
    white = max(max(one.max().item() for one in maps), 1e-9)
    for row, one in zip(rows, maps):
        row.insert(shown, to_tile((2 * one / white - 1).float().expand(3, -1, -1), side))

    def reach(levels):
        return pixels_text(*(2 * (r.bit_length() - 3) for r in (levels[0], levels[-1]))) \
            if levels else "no layer"

    captions = [f"draw {k + 1}" for k in range(shown)] + [
        f"std, {draws} draws\nwhite: {white * 127.5:.2g} / 255",
        "all noise\n(draw 1)", "no noise", f"fine only\n{reach(fine)}",
        f"coarse only\n{reach(coarse)}"]
    return draw_figure(
        f"Noise: the same w, other random maps. {truncation_text(psi, cutoff)}", rows,
        [f"seed {seed}" for seed in seeds], [captions] + [None] * (len(seeds) - 1))


# ---- resolutions ----


def match_contrast(image, reference):
    """The image with the mean and the standard deviation that each colour has in the reference.

    Shapes: image [3, r, r], reference [3, R, R], R >= r, averaged down to r first -> [3, r, r].
    """
    reference = F.adaptive_avg_pool2d(reference, image.shape[1:])
    std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(reference, dim=(1, 2), keepdim=True)
    return wanted_mean + (image - mean) * wanted_std / std.clamp(min=1e-8)


def resolutions_figure(model, seeds, psi=1.0, cutoff=None, noise="const", noise_seed=0):
    """What each block adds: the picture after 4x4, 8x8, ... each through its own to_rgb.

    Remakes: the idea of figure 1 of the ProGAN paper, on a trained network.
    Look for: each column should be the one before, sharper: pose and colours are decided first.
            Wrong colours and a glaring contrast in the lower columns are no error. Training used
            the to_rgb of a resolution only while that resolution was the current one (and as the
            old half of the next fade). It was then left as it was, while the block it reads from
            went on changing. How far a column is off says how much that block has changed since.
            The second row of each seed has the contrast of the last column, so that the drawing
            shows all the same.
    """
    side = tile_side(model.resolution)
    levels = models.resolutions_up_to(model.resolution)
    check_figure(2 * len(seeds), len(levels), side)
    ws = styles_of_seeds(model, seeds, psi, cutoff)
    keys = [(seed, noise_seed, 0) for seed in seeds]
    last = [F.adaptive_avg_pool2d(image, min(LARGEST_TILE, model.resolution))
            for image in render(model, ws, noise, keys)]       # smaller, to bound the memory
    rows = [[] for _ in range(2 * len(seeds))]
    for r in levels:
        for k, image in enumerate(render(model, ws, noise, keys, r)):
            rows[2 * k].append(to_tile(image, side))
            if r <= last[k].shape[1]:
                image = match_contrast(image, last[k])
            rows[2 * k + 1].append(to_tile(image, side))
    captions = [f"{r} px" for r in levels]
    matched = "\nlast column's\ncontrast"
    if model.alpha < 1:
        growing = {"fade": "fading in", "morph": "morphing"}[model.G.synthesis.growth]
        captions[-1] += f", {growing}, alpha {model.alpha:.2f}"
    return draw_figure(
        f"Resolutions: to_rgb at every level, each as it was last trained. "
        f"{truncation_text(psi, cutoff)}, noise: {noise}",
        rows, [f"seed {seed}{which}" for seed in seeds for which in ("", matched)],
        [captions] + [None] * (len(rows) - 1), range(2, len(rows), 2))


# ---- directions ----


def style_matrix(model, first, last):
    """A [sum of 2C, S]: the style weights of layers first..last, as the network uses them.

    Units:  with their run-time scale. It is the same for all layers of a network (gain 1, the same
            S), so here it changes the eigenvalues and not the directions; but A is then the map
            that the network applies, and |A n| the change of the styles.
    """
    rows = []
    for layer in range(first, last + 1):
        block = model.G.synthesis.blocks[str(4 * 2 ** (layer // 2))]
        style = (block.adain0 if layer % 2 == 0 else block.adain1).style
        rows.append(style.weight.detach().double().cpu() * style.weight_scale)
    return torch.cat(rows)


def sefa(matrix):
    """The directions n, |n| = 1, that change the styles most, and by how much.

    Why:    moving w by n changes the styles by A n, whatever w is: the affine map of AdaIN is
            linear. So the directions of largest |A n|^2 = n^T (A^T A) n are the eigenvectors of
            A^T A, and no image has to be made or labelled to find them.
    Paper:  Shen and Zhou 2021 (arXiv 2007.06600), the closed-form factorization.
    Differs: their published code scales every row of A to length 1 first. We do not.
    Shapes: matrix [M, S] -> directions [S, S], one a row, the strongest first; eigenvalues [S].
    Units:  the sign is arbitrary; each direction's largest entry is made positive, so that a figure
            does not flip between machines.
    Proved: tests/test_generate.py::test_sefa_directions_are_eigenvectors
    """
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)                 # ascending, columns
    values, directions = values.flip(0).clamp(min=0), vectors.T.flip(0)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign(), values


@torch.no_grad()
def spread_of_w(model):
    """How far a face is from the average one: the RMS of |w - w_avg| over 256 seeds."""
    w = model.G.mapping(z_of_seeds(range(256), model.G.latent_dim).to(model.G.w_avg.device))
    return (w - model.G.w_avg).square().sum(dim=1).mean().sqrt().item()


def directions_figure(model, seeds, first, last, count, strengths, psi=1.0, cutoff=None,
                      noise="const", noise_seed=0):
    """Each face moved along the strongest directions of the style weights.

    Remakes: the figures of the SeFa paper, ways to edit a face that nobody had to label.
    Look for: a row that changes one thing (the pose, the hair, the light) and leaves the rest. Take
            --layers of the coarse blocks for shapes and of the fine ones for colours. Later
            directions change less. That the first ones are not pure is as in the paper.
    Units:  strength 1 moves w as far as a face is from the average face, typically. The percentage
            is the direction's share of the sum of all eigenvalues.
    """
    side = tile_side(model.resolution)
    check_figure(len(seeds) * count, len(strengths), side)
    directions, values = sefa(style_matrix(model, first, last))
    share = values / values.sum()
    device = model.G.w_avg.device
    steps = torch.tensor(strengths, device=device) * spread_of_w(model)    # [columns]
    rows, labels = [], []
    for seed in seeds:
        ws = styles_of_seeds(model, [seed], psi, cutoff)                   # [1, L, S]
        for number in range(count):
            moved = ws.repeat(len(steps), 1, 1)
            moved[:, first:last + 1] += steps[:, None, None] * directions[number].float().to(device)
            keys = [(seed, noise_seed, 0)] * len(steps)
            rows.append([to_tile(image, side) for image in render(model, moved, noise, keys)])
            labels.append(f"seed {seed}\ndirection {number + 1}\n({100 * share[number]:.1f} %)")
    captions = [[f"{strength:+g}" if strength else "0" for strength in strengths]]
    return draw_figure(
        f"Directions (SeFa) of layers {first}-{last}, {pixels_text(first, last)}; strength 1 is "
        f"the typical distance from the average face. {truncation_text(psi, cutoff)}, "
        f"noise: {noise}",
        rows, labels, captions + [None] * (len(rows) - 1),
        [k for k in range(count, len(rows), count)])


# ---- interpolate ----

SMALLEST_FRAME = 256


def slerp(a, b, t):
    """From a to b along the sphere: t = 0 gives a, t = 1 gives b, at constant angular speed.

    Why:    in many dimensions nearly all z have a length near sqrt(latent_dim); the straight line
            between two of them passes through lengths that the network has never seen. (PixelNorm
            would pull them back, but crowd the steps in the middle.)
    Paper:  Shoemake 1985, "Animating rotation with quaternion curves"; used by ProGAN's code.
    Shapes: a, b [..., d], brought to length sqrt(d) first; t [..., 1] -> [..., d].
    Errors: none; for a = -b, where no way is shorter than another, it goes straight, through 0.
    Proved: tests/test_generate.py::test_slerp_keeps_the_length_and_arrives
    """
    length = math.sqrt(a.shape[-1])
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    angle = (a * b).sum(dim=-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine < 1e-6
    safe = torch.where(straight, torch.ones_like(sine), sine)
    from_a = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / safe)
    from_b = torch.where(straight, t, (t * angle).sin() / safe)
    return length * (from_a * a + from_b * b)


def closed_spline(points, t):
    """A smooth closed curve through points[0], points[1], ... and back (Catmull-Rom).

    Why:    straight lines through w would turn a corner at every face, and a corner shows as a
            jerk. Here the velocity at a point is half the way from the one before to the one after,
            the same from both sides.
    Shapes: points [K, ...], t [n], in units of points: t = k gives points[k], t = K again
            points[0] -> [n, ...]. t is on the CPU, in float64: a loop may have many frames.
    Proved: tests/test_generate.py::test_the_loop_closes_and_has_no_jerk
    """
    count, whole = len(points), t.floor().long()
    u = (t - whole).reshape(-1, *[1] * (points.dim() - 1)).to(points)      # [n, 1, ...]
    p0, p1, p2, p3 = (points[(whole + k) % count] for k in (-1, 0, 1, 2))
    return p1 + 0.5 * u * (p2 - p0 + u * (2 * p0 - 5 * p1 + 4 * p2 - p3
                                          + u * (3 * (p1 - p2) + p3 - p0)))


def closed_slerp(points, t):
    """Like `closed_spline`, but along the sphere from point to point, with a corner at each."""
    count, whole = len(points), t.floor().long()
    u = (t - whole)[:, None].to(points)
    return slerp(points[whole % count], points[(whole + 1) % count], u)


@torch.no_grad()
def loop_frames(model, seeds, frames, space="w", psi=1.0, cutoff=None, noise="const"):
    """Yield the frames of a closed loop through the seeds, uint8 [side, side, 3], one at a time.

    Remakes: the interpolation videos that accompany the StyleGAN paper.
    Look for: faces that become one another without a cut and stay faces on the way. Compare
            `--space z`, where more happens in some steps than in others, and things that neither
            face has come and go: that is what the perceptual path length of table 3 measures.
    Frames: frame k of n lies at K k / n of the loop through K seeds. The last is one step before
            the first, so that a player that repeats shows no frame twice.
    Noise:  the same maps in all frames. Fresh ones would flicker, so "random" is not offered.
    """
    G = model.G
    enlarge = max(1, SMALLEST_FRAME // model.resolution)
    z = z_of_seeds(seeds, G.latent_dim).to(G.w_avg.device)                         # [K, latent]
    points = styles_of_seeds(model, seeds, psi, cutoff)                    # [K, L, S]
    for start in range(0, frames, model.batch):
        numbers = torch.arange(start, min(start + model.batch, frames), dtype=torch.float64)
        t = numbers * len(seeds) / frames
        if space == "w":
            ws = closed_spline(points, t)
        else:
            w = G.mapping(closed_slerp(z, t))
            ws = G.truncate(w[:, None].expand(-1, model.layers, -1), psi, cutoff)
        for image in render(model, ws, noise):
            pixels = to_pixels(image[None])[0].numpy()
            yield pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)


def import_encoder():
    """The package imageio_ffmpeg, which ships the program ffmpeg. Errors: UserError if missing."""
    try:
        import imageio_ffmpeg                                  # only a video needs it
        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UserError("a .mp4 needs an encoder: pip install imageio-ffmpeg, or choose --out "
                        "loop.webp or loop.gif") from None
    return imageio_ffmpeg


def write_mp4(path, frames, side, fps):
    """H.264, which every browser plays."""
    encoder = import_encoder().write_frames(str(path), (side, side), fps=fps, quality=8,
                                            macro_block_size=2, ffmpeg_log_level="error")
    encoder.send(None)                                         # starts ffmpeg
    try:
        for frame in frames:
            encoder.send(np.ascontiguousarray(frame))
    finally:
        encoder.close()
    if not path.is_file() or not path.stat().st_size:
        raise UserError("ffmpeg wrote no video")


def centiseconds(count, fps):
    """How long each frame is shown, in whole 1/100 s, all that a GIF can say, without drifting."""
    ends = [round(100 * k / fps) for k in range(count + 1)]
    return [b - a for a, b in zip(ends, ends[1:])]


def write_gif(path, frames, count, fps):
    """256 colours a frame, frame after frame.

    Pillow's own save(save_all=True) keeps all frames in memory until the last one has come; so the
    file is put together from the blocks that Pillow makes of single frames.
    """
    with open(path, "wb") as file:
        for number, (frame, duration) in enumerate(zip(frames, centiseconds(count, fps))):
            image = Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE)
            if number == 0:
                header, _ = GifImagePlugin.getheader(image.copy(), info={"loop": 0})
                file.writelines(header)
            file.writelines(GifImagePlugin.getdata(image, duration=10 * duration,
                                                   include_color_table=True))
        file.write(b";")                                       # the end of a GIF


class _LaterFrames:
    """Looks to Pillow like an image of many frames, and fetches each when it is asked for."""

    def __init__(self, frames, count):
        self.frames, self.n_frames, self.frame = frames, count, None

    def seek(self, number):
        self.frame = Image.fromarray(next(self.frames))

    def __getattr__(self, name):
        return getattr(self.frame, name)


def write_webp(path, frames, count, fps):
    """Smaller than a GIF and with all colours. Pillow keeps the encoded file in memory."""
    frames = iter(frames)
    first = Image.fromarray(next(frames))
    first.save(path, format="WEBP", save_all=True, loop=0, quality=90, method=4,
               append_images=[_LaterFrames(frames, count - 1)] if count > 1 else [],
               duration=[10 * duration for duration in centiseconds(count, fps)])


# ---- project ----


def read_target(path, resolution):
    """The central square of a photograph as float [1, 3, R, R].   Errors: UserError."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such picture")
    try:
        # The very steps that a picture takes into training: EXIF, colours, square, antialiasing.
        source = Source("folder", str(path.parent), [path.name], "")
        pixels = read_picture(source, 0, resolution)
    except Exception as error:                                 # Pillow raises a dozen kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(" '")[0]
        raise UserError(f"{path}: not a picture that can be read ({reason})") from None
    return to_images(torch.from_numpy(pixels.copy())[None])


def load_features(path, device):
    """A TorchScript network that turns images [N, 3, R, R] in [-1, 1] into one or more tensors.

    A TorchScript file is a program too. It runs in an interpreter that offers tensors and little
    else, but one should know where it comes from.   Errors: UserError.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"--features {path}: no such file")
    try:
        with warnings.catch_warnings():
            # torch 2.14 calls it deprecated, but it is the format in which such networks come.
            warnings.simplefilter("ignore", FutureWarning)
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError):
        raise UserError(f"--features {path}: not a TorchScript file") from None


def features_of(network, images):
    """A list of tensors.   Errors: UserError if the network fails or gives something else."""
    try:
        result = network(images)
    except RuntimeError as error:
        raise UserError(f"--features: the network fails on images {list(images.shape)} "
                        f"({str(error).strip().splitlines()[-1]})") from None
    result = [result] if isinstance(result, torch.Tensor) else result
    if not isinstance(result, (list, tuple)) or not result or not all(
            isinstance(one, torch.Tensor) for one in result):
        raise UserError("--features: the network gives neither a tensor nor a list of them")
    return list(result)


def project(model, target, steps, learning_rate=0.1, per_layer=False, features=None,
            features_weight=1.0):
    """Find the ws whose image is nearest to the target. Returns (ws [L, S], losses [steps]).

    How:    Adam from w_avg on one w for all layers, or one for each (per_layer); the weights of the
            network stay as they are. The learning rate falls to 0 along half a cosine. What is
            returned is the best that was seen.
    Loss:   the mean squared difference of pixels, images in [-1, 1]; plus, where features are
            given, features_weight times that of each of their tensors.
    Units:  learning_rate is in typical deviations of a number of w (`spread_of_w`), so that it
            means the same for all networks.
    Proved: tests/test_generate.py::test_projection_finds_an_image_that_the_network_made
    """
    G, layers = model.G, model.layers
    w = G.w_avg.repeat(1, layers if per_layer else 1, 1).requires_grad_()  # [1, L or 1, S]
    rate = learning_rate * spread_of_w(model) / math.sqrt(w.shape[-1])
    optimizer = torch.optim.Adam([w], lr=rate)
    if features is not None:
        with torch.no_grad():
            wanted = features_of(features, target)
    best, best_loss, losses = None, math.inf, []
    for step in progress_bar(range(steps), steps, "project"):
        optimizer.param_groups[0]["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        image = G.synthesis(w.expand(-1, layers, -1), model.resolution, model.alpha, "const")
        loss = F.mse_loss(image, target)
        if features is not None:
            for ours, theirs in zip(features_of(features, image), wanted):
                loss = loss + features_weight * F.mse_loss(ours, theirs)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(f"step {step + 1}: the loss is not a finite number; try a smaller "
                            f"--learning-rate")
        if losses[-1] < best_loss:
            best, best_loss = w.detach().expand(-1, layers, -1)[0].clone(), losses[-1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best, losses


def draw_losses(losses, side):
    """The loss over the steps as a tile, 1.5 times as wide as high, on a logarithmic scale."""
    width, font = side * 3 // 2, ImageFont.load_default(FONT_SIZE)
    tile = Image.new("RGB", (width, side), (244, 244, 244))
    draw = ImageDraw.Draw(tile)
    low, high = math.log10(max(min(losses), 1e-12)), math.log10(max(max(losses), 1e-12))
    top, bottom = 2 * FONT_SIZE, side - 2 * FONT_SIZE
    points = []
    for step, loss in enumerate(losses):
        height = (math.log10(max(loss, 1e-12)) - low) / max(high - low, 1e-9)
        x = 8 + (width - 16) * step / max(len(losses) - 1, 1)
        points.append((x, bottom - (bottom - top) * height))
    draw.line(points if len(points) > 1 else points * 2, fill=(30, 90, 170), width=2)
    draw.text((8, 4), f"{10 ** high:.3g} (highest)", fill="black", font=font)
    draw.text((width - 8, bottom + 6), f"{10 ** low:.3g} (lowest)", fill="black", font=font,
              anchor="ra")
    draw.text((8, bottom + 6), f"{len(losses)} steps", fill="black", font=font)
    return tile


def projection_figure(model, target, ws, losses, what):
    """Target, start, result and loss side by side.

    Remakes: the pictures of Image2StyleGAN (arXiv 1904.03189), there with a w per layer (its W+).
    Look for: one w can only give what the network would give anyway: if the result is a face, but
            another one, the target lies outside of what it has learned, or the way there led into a
            valley. A w per layer comes much nearer, also to pictures that are no faces (their
            figure has a car); nearness is then no longer a proof of anything.
    """
    side = tile_side(model.resolution, 256, 512)
    start = model.G.w_avg.expand(1, model.layers, -1)
    images = [target.cpu()[0], *render(model, torch.cat([start, ws[None]]))]
    tiles = [to_tile(image, side) for image in images] + [draw_losses(losses, side)]
    return draw_figure(f"Projection: {what}", [tiles], [""], [[
        "target", "start: the average face", f"result, loss {min(losses):.3g}",
        "loss over the steps (logarithmic)"]])


# ==== Part 4: files ===========================================================================

# How files of each kind begin: (offset, bytes). Only such a file is ever written over.
SIGNATURES = {".png": (0, b"\x89PNG"), ".jpg": (0, b"\xff\xd8"), ".gif": (0, b"GIF8"),
              ".webp": (8, b"WEBP"), ".mp4": (4, b"ftyp"), ".npz": (0, b"PK")}


def check_free(path):
    """Refuse a path that holds something else than an earlier output of the same kind.

    Proved: tests/test_generate.py::test_nothing_foreign_is_overwritten
    """
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; give the name of a file")
    if not path.exists():
        return
    offset, start = SIGNATURES[path.suffix.lower()]
    with open(path, "rb") as file:
        same = file.read(offset + len(start))[offset:] == start
    if same and path.suffix.lower() == ".npz":                 # any zip begins with PK
        same = zipfile.is_zipfile(path)
        if same:
            with zipfile.ZipFile(path) as archive:
                same = "ws.npy" in archive.namelist()
    if not same:
        raise UserError(f"--out {path}: exists and holds something else than its name says, so it "
                        f"is not written over")


@contextlib.contextmanager
def written(path):
    """A temporary path beside `path`, renamed to it at the end; nothing is left after an error.

    The suffix stays the same, because Pillow and ffmpeg read the format from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_picture(path, image):
    with written(path) as temporary:
        image.save(temporary, quality=95)                      # a PNG has no use for it


# ==== Part 5: the options =====================================================================

FIGURES = (".png", ".jpg", ".webp")
# What --out is when it is not given, in the current folder, and which suffixes it may have.
OUT = {"samples": ("samples", None), "mixing": ("mixing.png", FIGURES),
       "truncation": ("truncation.png", FIGURES), "noise": ("noise.png", FIGURES),
       "resolutions": ("resolutions.png", FIGURES), "directions": ("directions.png", FIGURES),
       "interpolate": ("interpolate.mp4", (".mp4", ".webp", ".gif")),
       "project": ("project.png", FIGURES)}
MOST_SEEDS = 100_000


def seeds_from(text):
    """ "0-3,8" -> [0, 1, 2, 3, 8], for argparse."""
    seeds = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds like 0-63 or 1,5,9-12")
        if last >= 2 ** 32:
            raise argparse.ArgumentTypeError(f"a seed is below 2^32 = {2 ** 32}, got {last}")
        if len(seeds) + last - first >= MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{text} are more than {MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    return seeds


def numbers_from(text):
    """ "1,0.5,-1" -> [1.0, 0.5, -1.0], for argparse."""
    return [number_from(-math.inf, float)(part) for part in text.split(",")]


def layers_from(text):
    """ "4-7" -> (4, 7), "4" -> (4, 4), for argparse."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text, re.ASCII)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of layers like 0-3")
    return int(match[1]), int(match[2] or match[1])


def parse_args(argv=None):
    """The options. Each WHAT has only those that it reads."""
    parser = OneLineParser(
        prog="generate.py", description="Make pictures from a checkpoint.",
        epilog="generate.py MODEL WHAT --help explains the options of each.")
    parser.add_argument("model", metavar="MODEL", help="a checkpoint of train.py, finished or not")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    def kind(name, seeds, help, psi=True, noise=("const", "random", "none")):
        group = kinds.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".",
                                 prog=f"generate.py MODEL {name}")
        default, suffixes = OUT[name]
        group.add_argument("--out", metavar="PATH", default=default, type=pathlib.Path, help=(
            "folder" if suffixes is None else f"{', '.join(suffixes)}") + f" (default {default})")
        group.add_argument("--device", metavar="NAME",
                           help="cpu, cuda, cuda:1, mps (default: the best there is)")
        # [MACHINE] 8 images at 1024 px and the paper's widths on a CPU: 3.6 GB for the process,
        #           2 s an image; --batch 1: 1.3 GB and the same speed (measured, one core). On a
        #           GPU not measured: less memory, --batch 1; more, a larger one may be faster.
        group.add_argument("--batch", metavar="N", type=number_from(1), default=8,
                           help="pictures made at once, bounds the memory (default 8)")
        if seeds is not None:
            group.add_argument("--seeds", metavar="LIST", type=seeds_from,
                               default=seeds_from(seeds),
                               help=f"0-63 or 1,5,9-12 (default {seeds})")
        if psi:
            # 1 shows what the network has learned; 0.7 hides what it does badly, which is what one
            # wants on a poster and not when looking for errors.
            group.add_argument("--psi", metavar="PSI", type=number_from(-math.inf, float),
                               default=1.0, help="truncation: 1 is none, which shows all that the "
                               "network does (default); the official pictures are shown with 0.7 "
                               "and --cutoff 8")
        if name != "project":
            group.add_argument("--cutoff", metavar="LAYERS", type=number_from(0), default=None,
                               help="truncate only so many layers, from the first (default: all)")
        if noise:
            group.add_argument("--noise", choices=noise, default="const", help=(
                "const: the maps stored with the network" +
                ("; random: each seed its own" if "random" in noise else "") + "; none"))
        if noise is None or noise and "random" in noise:
            group.add_argument("--seed", metavar="N", type=number_from(0, int, 2 ** 32 - 1),
                               default=0, help="of the random noise (default 0)")
        return group

    kind("samples", "0-31", "single pictures and contact sheets")
    group = kind("mixing", None, "styles of A and B in one face (StyleGAN, figure 3)")
    group.add_argument("--seeds-a", metavar="LIST", type=seeds_from, default=seeds_from("0-2"),
                       help="of the rows (default 0-2)")
    group.add_argument("--seeds-b", metavar="LIST", type=seeds_from, default=seeds_from("10-15"),
                       help="of the columns (default 10-15)")
    for name, paper in (("coarse", "0-3"), ("middle", "4-7"), ("fine", "8-17")):
        group.add_argument(f"--{name}", metavar="LAYERS", type=layers_from, default=None,
                           help=f"style layers to take from B, counted from 0 ({paper} at 1024 px)")
    group = kind("truncation", "0-5", "faces and their opposites (StyleGAN, figure 8)", psi=False)
    group.add_argument("--psis", metavar="LIST", type=numbers_from,
                       default=[1, 0.7, 0.5, 0, -0.5, -1], help="of the columns (default "
                       "1,0.7,0.5,0,-0.5,-1); a list that begins with a minus: --psis=-1,0,1")
    group = kind("noise", "0-2", "what the noise inputs do (StyleGAN, figures 4 and 5)", noise=None)
    group.add_argument("--draws", metavar="N", type=number_from(2), default=100,
                       help="of the noise, for the standard deviation (default 100, as the paper)")
    kind("resolutions", "0-2", "what each block adds")
    group = kind("interpolate", "0-7", "a closed loop through the seeds, as a video",
                 noise=("const", "none"))
    group.add_argument("--space", choices=("w", "z"), default="w",
                       help="w: a smooth curve (default); z: along the sphere, seed to seed")
    group.add_argument("--frames", metavar="N", type=number_from(2), default=None,
                       help="of the whole loop (default: 50 a seed)")
    group.add_argument("--fps", metavar="N", type=number_from(1, float, 100), default=25.0,
                       help="frames a second (default 25)")
    group = kind("directions", "0", "edits found in the style weights (SeFa)")
    group.add_argument("--layers", metavar="LAYERS", type=layers_from, default=None,
                       help="style layers to look at and to move, 0-7 for instance (default: all)")
    group.add_argument("--directions", metavar="N", type=number_from(1), default=6,
                       help="how many, the strongest first (default 6)")
    group.add_argument("--strengths", metavar="LIST", type=numbers_from,
                       default=[-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75],
                       help="of the columns (default "
                       "--strengths=-0.75,-0.5,-0.25,0,0.25,0.5,0.75); 1: as far as a face is from "
                       "the average face")
    group = kind("project", None, "the w whose image is nearest to a photograph", psi=False,
                 noise=())
    group.add_argument("photo", metavar="PHOTO", help="any picture; its central square is used")
    group.add_argument("--per-layer", action="store_true", help="a w for each layer")
    group.add_argument("--steps", metavar="N", type=number_from(1), default=500,
                       help="of Adam (default 500)")
    group.add_argument("--learning-rate", metavar="X", type=number_from(1e-9, float), default=0.1,
                       help="of Adam, in typical deviations of w (default 0.1)")
    group.add_argument("--features", metavar="FILE", default=None,
                       help="a TorchScript network; images in [-1, 1] to a tensor or a list; its "
                       "squared differences are added to those of the pixels")
    group.add_argument("--features-weight", metavar="X", type=number_from(0, float), default=1.0,
                       help="(default 1)")
    return parser.parse_args(argv)


def check_layers(option, layers, model):
    """Refuse a range that goes beyond the network's layers."""
    if layers[1] >= model.layers:
        raise UserError(f"{option} {layers[0]}-{layers[1]}: at {model.resolution} px the style "
                        f"layers are 0-{model.layers - 1}")


def check_out(options):
    """All that can be known about --out before anything is computed. Returns the files to write."""
    what, out = options.what, options.out
    suffixes = OUT[what][1]
    if suffixes is None:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out}: is a file; {what} needs a folder")
        pictures, sheets = sample_files(out, options.seeds)
        files = pictures + sheets if out.is_dir() else []
    else:
        if out.suffix.lower() not in suffixes:
            raise UserError(f"--out {out}: {what} is written as {', '.join(suffixes)}")
        files = [out] + ([out.with_suffix(".npz")] if what == "project" else [])
    for path in files:
        check_free(path)
    if what == "project" and out.exists() and os.path.exists(options.photo) and (
            os.path.samefile(out, options.photo)):
        raise UserError(f"--out {out}: is the photograph itself")
    if out.suffix.lower() == ".mp4":
        import_encoder()
    if out.suffix.lower() == ".gif" and options.fps > 50:
        raise UserError(f"--fps {said(options.fps)}: a GIF shows at most 50 frames a second")


# ==== Part 6: the program =====================================================================


def main(argv=None):
    """Load, make the picture, write it. Returns the exit code."""
    options = parse_args(argv)
    what, out = options.what, options.out
    try:
        # ---- 1. Is everything there, before anything is made? ----
        check_out(options)
        device = pick_device(options.device)
        if device.type == "cuda":
            # Of two fast ways to convolve, cuDNN otherwise takes whichever; the pixels would vary.
            torch.backends.cudnn.deterministic = True
        model = load_model(options.model, device, options.batch)

        # ---- 2. Make it ----
        if what == "samples":
            write_samples(model, options.seeds, out, options.psi, options.cutoff, options.noise,
                          options.seed)
        elif what == "mixing":
            usual, ranges = mixing_ranges(model.layers), {}
            for name, typed in (("coarse", options.coarse), ("middle", options.middle),
                                ("fine", options.fine)):
                if typed is not None:
                    check_layers(f"--{name}", typed, model)
                if typed is not None or name in usual:
                    ranges[name] = typed or usual[name]
            figure = mixing_figure(model, options.seeds_a, options.seeds_b, ranges, options.psi,
                                   options.cutoff, options.noise, options.seed)
        elif what == "truncation":
            figure = truncation_figure(model, options.seeds, options.psis, options.cutoff,
                                       options.noise, options.seed)
        elif what == "noise":
            figure = noise_figure(model, options.seeds, options.draws, options.psi,
                                  options.cutoff, options.seed)
        elif what == "resolutions":
            figure = resolutions_figure(model, options.seeds, options.psi, options.cutoff,
                                        options.noise, options.seed)
        elif what == "directions":
            first, last = options.layers or (0, model.layers - 1)
            check_layers("--layers", (first, last), model)
            if options.directions > model.G.w_avg.numel():
                raise UserError(f"--directions {options.directions}: w has only "
                                f"{model.G.w_avg.numel()} numbers, so as many directions")
            figure = directions_figure(model, options.seeds, first, last, options.directions,
                                       options.strengths, options.psi, options.cutoff,
                                       options.noise, options.seed)
        elif what == "interpolate":
            count = options.frames or 50 * len(options.seeds)
            frames = loop_frames(model, options.seeds, count, options.space, options.psi,
                                 options.cutoff, options.noise)
            frames = progress_bar(frames, count, "frames")
            with written(out) as temporary:
                if out.suffix.lower() == ".mp4":
                    write_mp4(temporary, frames, max(SMALLEST_FRAME, model.resolution), options.fps)
                elif out.suffix.lower() == ".gif":
                    write_gif(temporary, frames, count, options.fps)
                else:
                    write_webp(temporary, frames, count, options.fps)
        elif what == "project":
            target = read_target(options.photo, model.resolution).to(device)
            features = options.features and load_features(options.features, device)
            ws, losses = project(model, target, options.steps, options.learning_rate,
                                 options.per_layer, features, options.features_weight)
            figure = projection_figure(model, target, ws, losses, f"{options.photo}, " + (
                "a w for each layer" if options.per_layer else "one w"))
            with written(out.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
                np.savez(file, ws=ws.cpu().numpy(), losses=np.array(losses))

        # ---- 3. Write it ----
        if what not in ("samples", "interpolate"):
            save_picture(out, figure)
    except (ValueError, OSError) as error:
        fail(error)
    except RuntimeError as error:
        if not re.search("out of memory|not enough memory|allocate memory", str(error)):
            raise
        fail(f"not enough memory on {options.device or 'this device'}; try --batch 1")
    print(f"{out}" + (f", {out.with_suffix('.npz')}" if what == "project" else ""))
    return 0


if __name__ == "__main__":
    models.start(main, fail, "stopped; no file is half-written")
