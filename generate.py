"""generate.py: pictures from a checkpoint: samples, the papers' figures, videos.   (9th)

    python generate.py runs/00000-faces/checkpoint.pt samples --seeds 0-31
    python generate.py runs/00000-faces/checkpoint.pt mixing --out mixing.png
    python generate.py runs/00000-faces/checkpoint.pt interpolate --out loop.gif

Read before: stylegan_models.py.     Read next: project.py
Paper:   Karras et al. 2019, "StyleGAN" (arXiv 1812.04948): figures 2 (samples), 3 (mixing), 4 and 5
         (noise), 8 (truncation); Karras et al. 2018, "ProGAN" (arXiv 1710.10196), figure 1, and
         Karras et al. 2020, "StyleGAN2" (arXiv 1912.04958), figure 8 (resolutions); Shen and Zhou
         2021, "SeFa" (arXiv 2007.06600) (directions).
Needs:   torch, torchvision, numpy, Pillow, tqdm; a CPU is enough; for .mp4 also imageio-ffmpeg.
Letters: N images in the batch; n faces; L style layers; S size of w; R pixels a side. Images lie in
         [-1, 1].

Training only shows that the losses move. What each part of the architecture is FOR shows here: the
styles in `mixing`, the mapping network and w_avg in `truncation`, the noise inputs in `noise`, the
growing (in StyleGAN2 the skips) in `resolutions`, the shape of w in `directions` and `interpolate`.
Above each figure's code stands which figure of which paper it remakes, and what the paper saw in
it. All but `resolutions` are the same for StyleGAN2: it has styles, w_avg and noise inputs, too.

A face is named by a seed or by a file. A seed is a number that stands for one z, the same one on
every machine and in every figure; so a face that was met in one figure can be looked up in another.
A file holds the w of a photograph (project.py) or of an edited face (explore.py): --w FILE.

How tiles are labelled and files written is looked up in workshop/figures.py and workshop/video.py.
"""

import contextlib
import pathlib
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import morph
import stylegan_models as models
from evaluate import slerp
from project import read_w, spread_of_w
from stylegan_dataloader import to_pixels
from stylegan_layers import AdaIN, ModulatedConv2d, ModulatedToRGB, NoiseInput, upsample_fir
from workshop import UserError, export, figures, machine, neighbours, video
from workshop.faces import (
    face_options, fill_in, grid_from, key_of, layers_from, name_of, noise_options, numbers_from,
    out_options, spelled, truncation_options)
from workshop.figures import (
    FIGURES, Row, check_figure, draw_figure, in_rows, tile_side, to_tile)
from workshop.options import OneLineParser, Table, number_from, show, start

# ---- 1. From seeds to pictures ---------------------------------------------------------------


class Model(NamedTuple):
    """A generator, where its training stands, and how its pictures shall be made.

    resolution, alpha: where the run stood. A checkpoint of the middle of a run has blocks that
            nobody has trained yet; they and their styles are never asked for.
    batch:  how many pictures are made at once. It bounds the memory and changes nothing else, but
            for rounding (a convolution may add in another order).
    psi, cutoff: see `Generator.truncate`.
    noise:  "const": the maps stored with the network, the same in every picture; "none"; "random":
            each picture has its own, drawn from its face, `seed`, and the number of the draw.
    strengths: {resolution: what the learned strength of its noise is multiplied by}, or None.
    growing: what the last block was doing, for captions: "fading in, alpha 0.25"; "" if nothing.
    """
    G: torch.nn.Module
    resolution: int
    alpha: float = 1.0
    batch: int = 8
    psi: float = 1.0
    cutoff: int | None = None
    noise: str = "const"
    seed: int = 0
    strengths: Table | None = None
    growing: str = ""

    @property
    def layers(self):
        return models.num_style_layers(self.resolution)

    def how(self):
        """psi, cutoff and noise as titles name them."""
        where = ""
        if self.cutoff is not None and self.psi != 1:
            where = f" in layers 0-{self.cutoff - 1}" if self.cutoff else " in no layer"
        times = f", times {show(self.strengths)}" if self.strengths else ""
        return f"psi {self.psi:g}{where}, noise: {self.noise}{times}"


def load_model(path, device, batch=8, **how):
    """The averaged generator of a checkpoint as a `Model`; the rest of the file is dropped.

    Why:    the file of a 1024 px run holds G twice, D, and Adam's two numbers for each weight.
    Errors: CheckpointError as `morph.load_networks`.
    Proved: tests/test_generate.py::test_only_the_averaged_generator_stays_in_memory
    """
    loaded = morph.load_networks(path, device, ("generator_ema",))
    progress, growing = loaded.checkpoint.get("progress", {}), ""
    if progress.get("alpha", 1) < 1:
        growing = "morphing" if progress.get("phase") == "morph" else "fading in"
        growing += f", alpha {progress['alpha']:.2f}"
    return Model(loaded.networks["generator_ema"], loaded.resolution, loaded.alpha, batch, **how,
                 growing=growing)


def z_of_seeds(seeds, latent_dim):
    """[n, latent_dim], one z a seed.

    Why:    the official code draws z in this way for its figures 3 and 8, so with imported weights
            and its psi the seeds that people know give the faces that they know. (For figure 2 it
            draws all z from one seed; StyleGAN2's has one seed a face everywhere.) numpy promises
            the stream of RandomState for all time, on every machine; torch promises its own for one
            version.
    Proved: tests/test_generate.py::test_a_seed_means_the_same_z_everywhere
    """
    draws = [np.random.RandomState(seed).standard_normal(latent_dim) for seed in seeds]
    return torch.from_numpy(np.stack(draws)).float()


@torch.no_grad()
def w_of(model, faces):
    """The w of faces, each a seed or the path of a file, not truncated.

    Shapes: [n, 1, S]; [n, L, S] if a file has a w for each layer.
    """
    G, seeds = model.G, [face for face in faces if isinstance(face, int)]
    mapped = iter(G.mapping(z_of_seeds(seeds, G.latent_dim).to(G.w_avg.device)) if seeds else ())
    ws = [next(mapped)[None] if isinstance(face, int) else
          read_w(face, model.layers, len(G.w_avg)).to(G.w_avg.device) for face in faces]
    most = max(map(len, ws))               # usually 1: the same w in all layers, not copied yet
    return torch.stack([w.expand(most, -1) for w in ws])


def truncated(model, ws):
    """ws [n, 1 or L, S] -> [n, L, S], pulled towards the average face as far as psi says."""
    return model.G.truncate(ws.expand(-1, model.layers, -1), model.psi, model.cutoff)


def ws_of(model, faces):
    """The styles of faces, [n, L, S], truncated."""
    return truncated(model, w_of(model, faces))


def noise_inputs(G, resolutions):
    """The noise inputs of the blocks of these resolutions, in the order in which they are used."""
    return [layer for r in resolutions for layer in G.synthesis.blocks[str(r)].modules()
            if isinstance(layer, NoiseInput)]


@contextlib.contextmanager
def noise_maps(G, streams, resolution):
    """Within the block, noise_mode "const" gives every image of the batch its own noise.

    Why:    noise_mode "random" draws a batch's maps together, so a picture would depend on its
            neighbours. Here an image's maps come from its own stream of random numbers. The stored
            map [1, 1, R, R] is exchanged for maps [N, 1, R, R]: the same broadcast, one axis
            longer.
    Proved: tests/test_generate.py::test_a_picture_does_not_depend_on_the_other_seeds,
            ::test_random_noise_has_a_seed_and_leaves_the_stored_maps_alone
    """
    layers = noise_inputs(G, models.resolutions_up_to(resolution))
    stored = [layer.const for layer in layers]
    try:
        for layer in layers:
            shape = tuple(layer.const.shape[1:])                           # (1, R, R)
            maps = np.stack([stream.standard_normal(shape) for stream in streams])
            layer.const = torch.from_numpy(maps).float().to(layer.const.device)    # [N, 1, R, R]
        yield
    finally:
        for layer, const in zip(layers, stored):
            layer.const = const


@contextlib.contextmanager
def noise_scaled(G, strengths):
    """Within the block, the noise of the blocks of r pixels is strengths[r] times as strong.

    Proved: tests/test_generate.py::test_noise_strengths_are_multiplied_and_come_back
    """
    learned = [(layer.strength, layer.strength.data, strengths[int(r)])
               for r in G.synthesis.blocks if strengths for layer in noise_inputs(G, [int(r)])]
    try:
        for strength, data, factor in learned:
            strength.data = data * factor
        yield
    finally:
        for strength, data, _ in learned:
            strength.data = data


@torch.no_grad()
def render(model, ws, faces, draws=None, resolution=None):
    """Yield one image after the other, float [3, R, R] on the CPU; only a batch is in memory.

    Shapes: ws [n, L, S]. faces: n numbers (`key_of`), and draws: n more, 0 if None: what random
            noise is drawn from. resolution: a smaller one than the model's, through its to_rgb.
    Errors: UserError if the network's output is not finite.
    Proved: tests/test_generate.py::test_a_network_in_training_is_rendered_where_it_stands
    """
    r = model.resolution if resolution is None else resolution
    alpha = model.alpha if r == model.resolution else 1.0
    keys = [(face, model.seed, draw) for face, draw in zip(faces, draws or [0] * len(ws))]
    for start in range(0, len(ws), model.batch):
        part = slice(start, start + model.batch)
        # G's own "random" is never asked for: see `noise_maps`.
        own_noise, mode = contextlib.nullcontext(), "const"
        if model.noise == "random":
            own_noise = noise_maps(model.G, [np.random.RandomState(k) for k in keys[part]], r)
        elif model.noise == "none":
            mode = "none"
        with own_noise, noise_scaled(model.G, model.strengths):
            images = model.G.synthesis(ws[part], r, alpha, mode).float().cpu()
        # As bytes, numbers that are not finite would look like a picture: grey, or black.
        if not torch.isfinite(images).all():
            raise UserError("the network's images are not finite numbers: its training had failed "
                            "before this checkpoint was written")
        yield from images


# ---- 2. samples: what has it learned? (figure 2) ---------------------------------------------

SHEET_COLUMNS, SHEET_ROWS = 8, 8


def sample_files(out, faces):
    """The names of all files that `samples` writes into the folder: pictures, and their sheets.

    A sheet is named by its faces, so that those of --seeds 0-31 and of --seeds 32-63 can lie in one
    folder.
    Proved: tests/test_generate.py::test_sheets_of_other_seeds_lie_beside_each_other
    """
    return ([out / (f"seed{face:04d}.png" if isinstance(face, int) else f"w-{face.stem}.png")
             for face in faces],
            [out / f"sheet-{spelled(part)}.png"
             for part in in_rows(faces, SHEET_COLUMNS * SHEET_ROWS)])


def write_samples(model, o):
    """One .png a face at full size, and contact sheets of 64.

    Remakes: figure 2 of the StyleGAN paper: images that nobody has picked out (there with psi 0.7
            at 4-32 px, which is --psi 0.7 --cutoff 8).
    Look for: variety first, then errors: asymmetric glasses, mouths that melt. psi 0.7 is the
            official way of showing a network; the default, 1, is what it has learned.
    """
    # A batch of faces at a time goes all the way to its files. So 100,000 faces need no more memory
    # than 64, those of a sheet.
    side = tile_side(model.resolution)
    pictures, sheets = sample_files(o.out, o.faces)
    images = (image for part in in_rows(o.faces, model.batch)
              for image in render(model, ws_of(model, part), [key_of(face) for face in part]))
    images = machine.progress_bar(images, total=len(pictures), desc="samples")
    tiles, captions = [], []
    for face, path, image in zip(o.faces, pictures, images):
        figures.save_picture(path, Image.fromarray(to_pixels(image[None])[0].numpy()))
        tiles.append(to_tile(image, side))
        captions.append(name_of(face))
        if len(tiles) == SHEET_COLUMNS * SHEET_ROWS or path is pictures[-1]:
            rows = [Row(*row) for row in zip(in_rows(tiles, SHEET_COLUMNS), [""] * SHEET_ROWS,
                                             in_rows(captions, SHEET_COLUMNS))]
            figures.save_picture(sheets.pop(0), draw_figure(f"Samples, {model.how()}", rows))
            tiles, captions = [], []


# ---- 3. mixing: what does each style do? (figure 3) ------------------------------------------


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


def resolution_of(layer):
    """The resolution of the features that a style layer scales: two layers each, from 4 px up.

    In StyleGAN they are the two AdaINs of a block. In StyleGAN2 a style scales what goes INTO its
    convolution. So the second layer of 4 px is the first convolution of the 8 px block, together
    with the to_rgb of 4 px.
    Proved: tests/test_generate.py::test_a_style_layer_belongs_to_the_features_that_it_scales
    """
    return 4 * 2 ** (layer // 2)


def pixels_text(low, high):
    """(4, 8) -> "4-8 px": resolutions as labels name them."""
    return f"{low} px" if low == high else f"{low}-{high} px"


def check_layers(option, layers, model):
    """Refuse a range that goes beyond the network's layers."""
    if layers[1] >= model.layers:
        raise UserError(f"{option} {layers[0]}-{layers[1]}: at {model.resolution} px the style "
                        f"layers are 0-{model.layers - 1}")


def mix(ws_a, ws_b, first, last):
    """A with the styles of B in layers first..last.   Shapes: [..., L, S], twice -> the same."""
    mixed = ws_a.clone()
    mixed[..., first:last + 1, :] = ws_b[..., first:last + 1, :]
    return mixed


def mixing_figure(model, o):
    """Faces with some styles of A (left) and the others of B (top).

    Remakes: figure 3 of the StyleGAN paper. A row is one A, a column one B. docs/mixing.png
    Look for: in the paper the coarse styles bring pose, general hair style, face shape and glasses
            from B, while the colours stay A's; the middle ones smaller features of the face, hair
            style, eyes open or closed; the fine ones the colour scheme and the microstructure.
            Each layer obeying its own style is what style mixing in training is for (StyleMixer).
            A fine block that changed the pose would say that it had failed.
    Noise:  that of A.
    """
    # A group that is typed stands even where the network is so small that it has no such group.
    usual, ranges = mixing_ranges(model.layers), {}
    for name, typed in (("coarse", o.coarse), ("middle", o.middle), ("fine", o.fine)):
        if typed is not None:
            check_layers(f"--{name}", typed, model)
        if typed is not None or name in usual:
            ranges[name] = typed or usual[name]
    side = tile_side(model.resolution)
    check_figure(o.out, 1 + len(ranges) * len(o.faces_a), 1 + len(o.faces_b), side, 2)
    files = {(name, a, b): o.cells / f"{name}-{name_of(a)}-{name_of(b)}.png".replace(" ", "")
             for name in ranges for a in o.faces_a for b in o.faces_b if o.cells}
    if len(set(files.values())) < len(files):
        raise UserError("--cells: two of the faces have the same name, and so would their cells")
    for file in files.values():
        figures.check_free(file, "--cells")

    # The faces themselves: A's stand at the left of each group again, B's once, at the top.
    ws_a, ws_b = ws_of(model, o.faces_a), ws_of(model, o.faces_b)          # [A, L, S], [B, L, S]
    keys_a, keys_b = ([key_of(face) for face in faces] for faces in (o.faces_a, o.faces_b))
    tiles_a, tiles_b = ([to_tile(image, side) for image in render(model, ws, keys)]
                        for ws, keys in ((ws_a, keys_a), (ws_b, keys_b)))
    rows = [Row([None] + tiles_b, "source B\n(columns)",
                ["", *(f"B: {name_of(face)}" for face in o.faces_b)])]
    for name, (first, last) in ranges.items():
        layers = f"layers {first}-{last}" if last > first else f"layer {first}"
        where = pixels_text(resolution_of(first), resolution_of(last))
        for a, face in enumerate(o.faces_a):
            mixed = mix(ws_a[a].expand_as(ws_b), ws_b, first, last)        # [B, L, S]
            cells = [*render(model, mixed, [keys_a[a]] * len(ws_b))]
            for face_b, cell in zip(o.faces_b, cells if files else ()):
                figures.save_picture(files[name, face, face_b],
                                     Image.fromarray(to_pixels(cell[None])[0].numpy()))
            rows.append(Row([tiles_a[a]] + [to_tile(image, side) for image in cells],
                            f"{name} from B\n{where}\n({layers})\nA: {name_of(face)}",
                            ["source A"] if len(rows) == 1 else [], space=a == 0))
    return draw_figure(f"Style mixing: the styles of A (left), but in the layers named those of B "
                       f"(top). {model.how()}", rows)


# ---- 4. truncation: what does w_avg do? (figure 8) -------------------------------------------


def truncation_figure(model, o):
    """Each face drawn towards the average one, through it, and out at the other side.

    Remakes: figure 8 (appendix B), w' = w_avg + psi (w - w_avg), in docs/truncation.png.
    Look for: at psi 0 all rows are the same face (with --cutoff they differ in the layers above
            it). In the paper the way there never seems to cause errors, and beyond it lies the
            "anti-face", in which viewpoint, glasses, age, colouring, hair length and often gender
            flip. So w is laid out in directions that mean something.
    Proved: tests/test_generate.py::test_at_psi_0_every_row_is_the_average_face
    """
    side = tile_side(model.resolution)
    check_figure(o.out, len(o.faces), len(o.psis), side)
    ws = torch.stack([ws_of(model._replace(psi=psi), o.faces) for psi in o.psis], dim=1)
    keys = [key_of(face) for face in o.faces for _ in o.psis]              # ws [n, psis, L, S]
    tiles = [to_tile(image, side) for image in render(model, ws.flatten(0, 1), keys)]
    captions = [f"psi {psi:g}" for psi in o.psis]
    where = "" if model.cutoff is None else f", in the first {model.cutoff} layers"
    return draw_figure(
        f"Truncation: w_avg + psi (w - w_avg){where}. N{model.how().rpartition(', n')[2]}",
        [Row(row, name_of(face), [] if number else captions)
         for number, (row, face) in enumerate(zip(in_rows(tiles, len(o.psis)), o.faces))])


# ---- 5. noise: what is left to chance? (figures 4 and 5) -------------------------------------

SHOWN_DRAWS = 4


@contextlib.contextmanager
def noise_only_at(G, resolutions):
    """Within the block, the noise inputs of all other resolutions are silent.

    How:    their strengths are set to 0 and afterwards back to what they were, also after an error.
    Proved: tests/test_generate.py::test_silenced_noise_comes_back
    """
    layers = noise_inputs(G, [int(r) for r in G.synthesis.blocks if int(r) not in resolutions])
    kept = [layer.strength.detach().clone() for layer in layers]
    with torch.no_grad():
        try:
            for layer in layers:
                layer.strength.zero_()
            yield
        finally:
            for layer, strength in zip(layers, kept):
                layer.strength.copy_(strength)


def deviation_of(images):
    """The standard deviation of each pixel over a stream of images, [R, R].

    How:    sums and sums of squares of the difference to the first image (which keeps them small)
            in float64, so that no image has to be kept; then the RMS over the three colours.
    Units:  those of the images: 2 is the whole way from black to white.
    Proved: tests/test_generate.py::test_deviation_is_the_standard_deviation
    """
    count = 0
    for image in images:                                       # on the CPU: MPS has no float64
        image = image.cpu().double()
        if count == 0:
            origin, total, squares = image, torch.zeros_like(image), torch.zeros_like(image)
        total += image - origin
        squares += (image - origin).square()
        count += 1
    variance = (squares / count - (total / count).square()).clamp(min=0)   # [3, R, R]
    return variance.mean(dim=0).sqrt()


def noise_groups(resolution):
    """(coarse, fine) lists of resolutions. Paper: figure 5 at 1024 px: 4-32 px and 64-1024 px,
    the lower half of the blocks, rounded down, and the rest."""
    levels = models.resolutions_up_to(resolution)
    return levels[:len(levels) // 2], levels[len(levels) // 2:]


def noise_figure(model, o):
    """One face under several draws of the noise, where it differs, and what each part of it does.

    Remakes: figure 4 (draws, and the standard deviation over 100 of them) and figure 5 (all noise,
            none, fine only, coarse only) of the StyleGAN paper, in docs/noise.png.
    Look for: in the paper noise moves hair, silhouettes, backgrounds and the reflections in eyes,
            and does not move identity and pose. There faces without noise look painted, fine noise
            gives single hairs and pores, and coarse noise large curls. A network that had no use
            for noise shows four cases that look alike, and a map whose white is a low level.
    Zoom:   noise is 1 pixel wide, and would be averaged away if a large image were made small. So
            above 256 px the draws and the cases show the 256 x 256 pixels where noise does most, as
            they are. The face in front of them shows where that is.
    Units:  the maps have one common scale, its white named in the caption in levels of 0..255.
    Proved: tests/test_generate.py::test_noise_of_one_pixel_can_be_seen_at_large_sizes
    """
    side, large = tile_side(model.resolution), model.resolution > figures.LARGEST_TILE
    coarse, fine = noise_groups(model.resolution)
    shown = min(SHOWN_DRAWS, o.draws)
    check_figure(o.out, len(o.faces), large + shown + 5, side)
    rows, maps = [], []
    for face, ws in zip(o.faces, ws_of(model, o.faces)):                   # ws [L, S]
        seen = []

        def first_ones(images):
            for image in images:
                if len(seen) < shown:
                    seen.append(image)
                yield image

        # Figure 4: all draws go through the standard deviation; the first few are also shown.
        images = render(model, ws.expand(o.draws, -1, -1), [key_of(face)] * o.draws,
                        list(range(o.draws)))
        deviation = deviation_of(first_ones(machine.progress_bar(
            images, total=o.draws, desc=f"noise, {name_of(face)}")))
        # Figure 5: the maps of draw 1 each time, of which only some are heard.
        for heard in (coarse + fine, [], fine, coarse):
            with noise_only_at(model.G, heard):
                seen += render(model, ws[None], [key_of(face)])
        zoom = min(model.resolution, figures.LARGEST_TILE)
        top, left = figures.busiest(deviation, zoom)
        tiles = [to_tile(image[:, top:top + zoom, left:left + zoom], side) for image in seen]
        whole = [to_tile(figures.framed(seen[0], top, left, zoom), side)] if large else []
        rows.append(Row(whole + tiles, name_of(face)))
        # A map is shown whole. It is made smaller before its largest value becomes white.
        maps.append(F.adaptive_avg_pool2d(deviation[None], zoom)[0])       # [zoom, zoom]
    white = max(max(one.max().item() for one in maps), 1e-9)
    for row, one in zip(rows, maps):
        one = (2 * one / white - 1).float().expand(3, -1, -1)
        row.tiles.insert(large + shown, to_tile(one, side))
    captions = ["face, frame: what is shown"] * large + [f"draw {k + 1}" for k in range(shown)]
    captions += [f"std, {o.draws} draws\nwhite: {white * 127.5:.3g} / 255", "all noise\n(draw 1)",
                 "no noise"]
    captions += [f"{name} only\n" + (pixels_text(levels[0], levels[-1]) if levels else "no layer")
                 for name, levels in (("fine", fine), ("coarse", coarse))]
    rows[0] = rows[0]._replace(captions=captions)
    return draw_figure(f"Noise: the same w, other random maps. {model.how()}", rows)


# ---- 6. resolutions: what does each block add? (ProGAN, figure 1) ----------------------------


def resolutions_figure(model, o):
    """What each block adds: the picture after 4x4, 8x8, ... each through its own to_rgb.

    Remakes: the idea of figure 1 of the ProGAN paper, on a trained network.
    Look for: each column should be the one before, sharper. Wrong colours and a glaring contrast in
            the lower columns are no error: training used a to_rgb only while its resolution was the
            current one, and as the old half of the next fade. After that it stayed as it was, while
            the block it reads from went on changing. How far a column is off says how much.
            The second row of each face has the contrast of the last column, so that the drawing
            shows all the same.
    """
    if isinstance(model.G, models.SkipGenerator):              # StyleGAN2
        return skips_figure(model, o)
    side, levels = tile_side(model.resolution), models.resolutions_up_to(model.resolution)
    check_figure(o.out, 2 * len(o.faces), len(levels), side)
    ws, keys = ws_of(model, o.faces), [key_of(face) for face in o.faces]
    small = min(figures.LARGEST_TILE, model.resolution)        # bounds the memory of the references
    last = [F.adaptive_avg_pool2d(image, small) for image in render(model, ws, keys)]
    rows = [Row([], name_of(face) + which, space=number > 0 and not which)
            for number, face in enumerate(o.faces) for which in ("", "\nlast column's\ncontrast")]
    # Column by column, since a resolution is one pass through the network for all faces.
    for r in levels:
        for k, image in enumerate(render(model, ws, keys, resolution=r)):
            rows[2 * k].tiles.append(to_tile(image, side))
            image = F.adaptive_avg_pool2d(image, min(r, small))
            image = figures.match_contrast(image, last[k])
            rows[2 * k + 1].tiles.append(to_tile(image, side))
    captions = [f"{r} px" for r in levels]
    captions[-1] += f", {model.growing}" if model.growing else ""
    rows[0] = rows[0]._replace(captions=captions)
    return draw_figure(f"Resolutions: to_rgb at every level, each as it was last trained. "
                       f"{model.how()}", rows)


# ---- 6, in StyleGAN2: what does each block add? (StyleGAN2, figure 8) ------------------------

FACES_MEASURED = 64


def sums_so_far(model, ws, keys):
    """Yield for each face its pictures at 4x4, 8x8, ..., [3, r, r] each: the sum up to there."""
    for part in in_rows(range(len(ws)), model.batch):
        yield from zip(*(render(model, ws[part], [keys[k] for k in part], resolution=r)
                         for r in models.resolutions_up_to(model.resolution)))


def parts_of(sums):
    """What each to_rgb added to a face: each sum, without the one before, enlarged."""
    return [sums[0], *(new - upsample_fir(old[None])[0] for old, new in zip(sums, sums[1:]))]


def shares_of(faces):
    """How much each resolution adds: the standard deviation of its pixels; all sum to 1, [levels].

    Shapes: faces: a stream of lists as `parts_of` gives them.
    Units:  of each colour, around its own mean over all pixels and faces; then the RMS of the three
            colours. So a to_rgb's bias counts for nothing: it could stand in any other, as well.
    Proved: tests/test_generate.py::test_shares_are_standard_deviations_and_biases_have_none
    """
    moments = torch.stack([torch.stack([torch.stack([x.mean((1, 2)), x.square().mean((1, 2))])
                                        for part in face for x in [part.cpu().double()]])
                           for face in faces])                             # [n, levels, 2, 3]
    mean, squares = moments.mean(dim=0).unbind(dim=1)                      # [levels, 3] each
    deviations = (squares - mean.square()).mean(dim=1).clamp(min=0).sqrt()
    return deviations / deviations.sum()


def skips_figure(model, o):
    """`resolutions` of StyleGAN2: the picture as a sum, and what each resolution adds to it.

    Remakes: figure 8 of the StyleGAN2 paper at one moment of a training: the standard deviation of
            what each to_rgb adds, as its share of all. (There over 1024 faces, here over 64.)
    Look for: a picture that is there early and becomes sharper. While the network is young the
            coarse resolutions make nearly all of it, as if it grew; later the finer ones take over
            (section 4.2). In the paper 1024 px never came to lead, as one would expect it to: the
            network was too small to use it. So config F has twice the channels there.
            The second row of each face has what is added alone. Its contrast is that of the whole
            picture, so that what is weak can be seen; the share says how weak.
    Proved: tests/test_generate.py::test_a_picture_of_stylegan2_is_the_sum_of_its_parts
    """
    side, levels = tile_side(model.resolution), models.resolutions_up_to(model.resolution)
    check_figure(o.out, 2 * len(o.faces), len(levels), side)
    seeds = list(range(FACES_MEASURED))
    measured = machine.progress_bar(sums_so_far(model, ws_of(model, seeds), seeds),
                                    total=len(seeds), desc="shares")
    shares, rows = shares_of(map(parts_of, measured)), []
    for face, sums in zip(o.faces, sums_so_far(model, ws_of(model, o.faces),
                                               [key_of(face) for face in o.faces])):
        added = [figures.match_contrast(part, sums[-1]) for part in parts_of(sums)]
        rows += [Row([to_tile(image, side) for image in sums], name_of(face), space=len(rows) > 0),
                 Row([to_tile(image, side) for image in added], "what is added,\nlast column's\n"
                     "contrast")]
    rows[0] = rows[0]._replace(captions=[f"{r} px adds\n{100 * share:.1f} %"
                                         for r, share in zip(levels, shares)])
    return draw_figure(f"Resolutions: the sum of the colours so far, and what each adds (its share "
                       f"of the standard deviations, {len(seeds)} faces). {model.how()}", rows)


# ---- 7. directions: what do the styles listen to? (SeFa) -------------------------------------


def styles_of(G, layer):
    """The affine maps "A" that a style layer's w goes into.

    One AdaIN's in StyleGAN. In StyleGAN2 the next convolution's, and to_rgb's at every second
    layer; the last layer has only to_rgb.
    """
    style_layers = [part for part in G.synthesis.blocks.modules()
                    if isinstance(part, (AdaIN, ModulatedConv2d))]
    heard_by, to_rgb = style_layers[layer:layer + 1], G.synthesis.to_rgb[str(resolution_of(layer))]
    if layer % 2 and isinstance(to_rgb, ModulatedToRGB):
        heard_by.append(to_rgb)
    return [part.style for part in heard_by]


def style_matrix(model, first, last):
    """A [M, S]: the style weights of layers first..last, as the network uses them.

    Shapes: M is the number of styles: 2C a layer with C channels in StyleGAN; in StyleGAN2 one for
            each channel that goes into a convolution or to_rgb.
    Units:  with their run-time scale. It is the same for all layers of a network (gain 1, the same
            S), so here it changes the eigenvalues and not the directions; but A is then the map
            that the network applies, and |A n| the change of the styles.
    """
    return torch.cat([style.weight.detach().cpu().double() * style.weight_scale    # [2C or C, S]
                      for layer in range(first, last + 1)
                      for style in styles_of(model.G, layer)])


def sefa(matrix):
    """The directions n, |n| = 1, that change the styles most, and by how much.

    Why:    moving w by n changes the styles by A n, whatever w is: the map from w to styles is
            affine. So the directions of largest |A n|^2 = n^T (A^T A) n are the eigenvectors of
            A^T A, and no image has to be made or labelled to find them.
    Paper:  Shen and Zhou 2021 (arXiv 2007.06600), the closed-form factorization.
    Differs: their published code scales every row of A to length 1 first. We do not. And of
            StyleGAN2's to_rgb it asks only the last; we ask all.
    Shapes: matrix [M, S] -> directions [S, S], one a row, the strongest first; eigenvalues [S].
    Units:  the sign is arbitrary; each direction's largest entry is made positive, so that a figure
            does not flip between machines.
    Proved: tests/test_generate.py::test_sefa_directions_are_eigenvectors
    """
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)                 # ascending, columns
    values, directions = values.flip(0).clamp(min=0), vectors.T.flip(0)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign(), values


def directions_figure(model, o):
    """Each face moved along the strongest directions of the style weights.

    Remakes: the figures of the SeFa paper, ways to edit a face that nobody had to label.
    Look for: a row that changes one thing (the pose, the hair, the light) and leaves the rest. Take
            --layers of the coarse blocks for shapes and of the fine ones for colours.
    Units:  strength 1 moves w as far as a face is from the average face, typically. The percentage
            is the direction's share of the sum of all eigenvalues.
    Proved: tests/test_generate.py::test_directions_move_only_their_layers
    """
    first, last = o.layers or (0, model.layers - 1)
    check_layers("--layers", (first, last), model)
    if o.directions > len(model.G.w_avg):
        raise UserError(f"--directions {o.directions}: w has only {len(model.G.w_avg)} numbers, so "
                        f"as many directions")
    side = tile_side(model.resolution)
    check_figure(o.out, len(o.faces) * o.directions, len(o.strengths), side)

    directions, values = sefa(style_matrix(model, first, last))
    share, device = values / values.sum(), model.G.w_avg.device
    steps = torch.tensor(o.strengths).to(device) * spread_of_w(model.G)    # [columns]
    rows = []
    for face, ws in zip(o.faces, ws_of(model, o.faces)):                   # ws [L, S]
        for number, direction in enumerate(directions[:o.directions]):
            # Truncated first and moved then: a strength is the same way for every psi.
            moved = ws.repeat(len(steps), 1, 1)                            # [columns, L, S]
            moved[:, first:last + 1] += steps[:, None, None] * direction.float().to(device)
            images = render(model, moved, [key_of(face)] * len(steps))
            rows.append(Row([to_tile(image, side) for image in images],
                            f"{name_of(face)}\ndirection {number + 1}\n"
                            f"({100 * share[number]:.1f} %)", space=number == 0 and len(rows) > 0))
    captions = [f"{strength:+g}" if strength else "0" for strength in o.strengths]
    rows[0] = rows[0]._replace(captions=captions)
    where = pixels_text(resolution_of(first), resolution_of(last))
    return draw_figure(f"Directions (SeFa) of layers {first}-{last}, {where}; strength 1 is the "
                       f"typical distance from the average face. {model.how()}", rows)


# ---- 8. interpolate: what lies between two faces? --------------------------------------------

SMALLEST_FRAME = 256                 # pixels a side; smaller images are enlarged by a whole factor


@torch.no_grad()
def loop_frames(model, faces, count, space="w", one_way=False, hold=0, psis=()):
    """Yield the frames of a closed loop through the faces, uint8 [side, side, 3], one at a time.

    Look for: faces that become one another without a cut and stay faces on the way. Compare
            `--space z`: there features that neither face has may appear on the way, which is what
            the perceptual path length measures (section 4.1; evaluate.py).
    Paths:  in w a closed curve without corners (`video.closed_spline`). In z an arc of the sphere
            from face to face (`evaluate.slerp`), since nearly all z have a length near
            sqrt(latent_dim). PixelNorm would bring a straight line back to the sphere, but its
            steps would be widest in the middle. psis: psi has a way of its own, in straight lines.
    Frames: `video.times` says when each of them is.
    Noise:  the same maps in all frames. Fresh ones would flicker, so "random" is not offered.
    How:    truncation is done at each frame. It is linear, so the curve of truncated w is the
            truncated curve, and only one w a face is kept.
    Proved: tests/test_generate.py::test_frames_pass_through_the_seeds_and_close,
            ::test_straight_lines_on_the_sphere_are_fastest_in_the_middle,
            ::test_psi_has_a_way_of_its_own
    """
    enlarge = max(1, SMALLEST_FRAME // model.resolution)
    if space == "z":
        z = z_of_seeds(faces, model.G.latent_dim).to(model.G.w_avg.device)     # [K, latent]
    else:
        w = w_of(model, faces)                                 # [K, 1 or L, S]
    psis = psis or [model.psi]
    # Numbers of frames in float64: in float32 the last ones of a long loop would be rounded.
    for start in range(0, count, model.batch):
        numbers = torch.arange(start, min(start + model.batch, count), dtype=torch.float64)
        t = video.times(numbers, count, len(faces), one_way, hold)
        psi_now = np.interp(video.times(numbers, count, len(psis), one_way),
                            range(len(psis) + 1), [*psis, psis[0]])
        if space == "z":
            a, u = video.split_time(t, z)                      # z[a] is behind us by u
            ws = model.G.mapping(slerp(z[a % len(z)], z[(a + 1) % len(z)], u))[:, None]
        else:
            ws = video.closed_spline(w, t)
        ws = torch.cat([truncated(model._replace(psi=psi), one)
                        for psi, one in zip(psi_now.tolist(), ws.split(1))])
        for image in render(model, ws, [0] * len(ws)):
            pixels = to_pixels(image[None])[0].numpy()
            yield pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)


def write_loop(model, o):
    """A closed loop through the faces, as a video; or several side by side."""
    if o.space == "z" and not all(isinstance(face, int) for face in o.faces):
        raise UserError("--space z: a file of --w holds a w and no z; use --space w")
    tiles = o.grid[0] * o.grid[1]
    if len(o.faces) % tiles:
        raise UserError(f"--grid: {len(o.faces)} faces cannot be dealt to {tiles} tiles")
    deals = [o.faces[k::tiles] for k in range(tiles)]
    count = o.frames or (50 + o.hold) * max(len(deals[0]), len(o.psis))
    video.times(torch.zeros(1), count, len(deals[0]), o.one_way, o.hold)   # may refuse
    video.check_video(o.out, count, max(SMALLEST_FRAME, model.resolution) * max(o.grid), o.fps)
    loops = [loop_frames(model, faces, count, o.space, o.one_way, o.hold, o.psis)
             for faces in deals]
    frames = (video.in_grid(moment, o.grid[0]) for moment in zip(*loops))
    # ffmpeg gets frame after frame; a failed video leaves the old one (workshop/video.py).
    video.write_video(o.out, machine.progress_bar(frames, total=count, desc="frames"), count, o.fps)


# ---- 9. neighbours: learned by heart? --------------------------------------------------------


def neighbours_figure(model, o):
    """Each face beside the training pictures that are nearest to it (workshop/neighbours.py)."""
    images = render(model, ws_of(model, o.faces), [key_of(face) for face in o.faces])
    return draw_figure(*neighbours.beside_neighbours(model, o, map(name_of, o.faces), images))


# ---- 10. The options -------------------------------------------------------------------------

def parse_args(argv=None):
    """The options. Each WHAT has only those that it reads, and the function that makes it."""
    parser = OneLineParser(
        prog="generate.py", description="Make pictures from a checkpoint.",
        epilog="generate.py MODEL WHAT --help explains the options of each.")
    parser.add_argument("model", metavar="MODEL", help="a checkpoint of train.py, finished or not")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    # What a WHAT is: a name, a sentence, the function that makes it, and groups of options, which
    # stand in workshop/faces.py.
    def kind(name, help, make, *parents):
        group = kinds.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".",
                                 prog=f"generate.py MODEL {name}", parents=parents)
        group.set_defaults(make=make)
        return group

    any_noise = noise_options("const", "random", "none")
    kind("samples", "single pictures and contact sheets", write_samples,
         out_options("samples", ()), face_options("0-31"), truncation_options(), any_noise)
    group = kind("mixing", "styles of A and B in one face (StyleGAN, figure 3)", mixing_figure,
                 out_options("mixing.png", FIGURES), face_options("0-2", "a", ", the rows"),
                 face_options("10-15", "b", ", the columns"), truncation_options(), any_noise)
    for name, paper in (("coarse", "0-3"), ("middle", "4-7"), ("fine", "8-17")):
        group.add_argument(f"--{name}", metavar="LAYERS", type=layers_from, default=None,
                           help=f"style layers to take from B, counted from 0 ({paper} at 1024 px)")
    group.add_argument("--cells", metavar="FOLDER", type=pathlib.Path,
                       help="also each cell as a picture of full size")
    group = kind("truncation", "faces and their opposites (StyleGAN, figure 8)", truncation_figure,
                 out_options("truncation.png", FIGURES), face_options("0-5"),
                 truncation_options(psi=False), any_noise)
    group.add_argument("--psis", metavar="LIST", type=numbers_from,
                       default=[1, 0.7, 0.5, 0, -0.5, -1], help="of the columns (default "
                       "1,0.7,0.5,0,-0.5,-1); a list that begins with a minus: --psis=-1,0,1")
    group = kind("noise", "what the noise inputs do (StyleGAN, figures 4 and 5)", noise_figure,
                 out_options("noise.png", FIGURES), face_options("0-2"), truncation_options(),
                 noise_options("random"))
    group.add_argument("--draws", metavar="N", type=number_from(2), default=100,
                       help="of the noise, for the standard deviation (default 100, as the paper)")
    kind("resolutions", "what each block adds", resolutions_figure,
         out_options("resolutions.png", FIGURES), face_options("0-2"), truncation_options(),
         any_noise)
    group = kind("directions", "edits found in the style weights (SeFa)", directions_figure,
                 out_options("directions.png", FIGURES), face_options("0"), truncation_options(),
                 any_noise)
    group.add_argument("--layers", metavar="LAYERS", type=layers_from, default=None,
                       help="style layers to look at and to move, 0-7 for instance (default: all)")
    group.add_argument("--directions", metavar="N", type=number_from(1), default=6,
                       help="how many, the strongest first (default 6)")
    group.add_argument("--strengths", metavar="LIST", type=numbers_from,
                       default=[-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75],
                       help="of the columns (default "
                       "--strengths=-0.75,-0.5,-0.25,0,0.25,0.5,0.75); 1: as far as a face is from "
                       "the average face")
    group = kind("interpolate", "a closed loop through the faces, as a video", write_loop,
                 out_options("interpolate.mp4", (*video.VIDEOS, "")), face_options("0-7"),
                 truncation_options(), noise_options("const", "none"))
    group.add_argument("--grid", metavar="CxR", type=grid_from, default=(1, 1),
                       help="loops side by side, columns x rows: 4x2; faces are dealt to them")
    group.add_argument("--hold", metavar="N", type=number_from(0), default=0,
                       help="frames for which the video stands still at each face (default 0)")
    group.add_argument("--psis", metavar="LIST", type=numbers_from, default=(),
                       help="psi goes through these meanwhile and back, and --psi does nothing: "
                       "--psis=1,-1 --seeds 3")
    group.add_argument("--space", choices=("w", "z"), default="w",
                       help="w: a smooth curve (default); z: along the sphere, seed to seed")
    group.add_argument("--one-way", action="store_true", help="end at the last face: no loop")
    group.add_argument("--frames", metavar="N", type=number_from(2), default=None,
                       help="of the whole loop (default: 50 a face)")
    group.add_argument("--fps", metavar="N", type=number_from(1, float, 100), default=25.0,
                       help="frames a second (default 25)")
    kind("neighbours", "faces, and the training pictures nearest to them", neighbours_figure,
         out_options("neighbours.png", FIGURES), face_options("0-7"), truncation_options(),
         any_noise, neighbours.neighbour_options())
    kind("export", "the network for other programs: ONNX, safetensors", export.write_network,
         export.network_options())
    return fill_in(parser.parse_args(argv))


def check_out(o):
    """All that can be known about --out before anything is computed.   Errors: UserError."""
    if o.what == "export":
        return export.check(o)
    if o.suffixes:
        if o.out.suffix.lower() not in o.suffixes:
            kinds = ", ".join(suffix or "a folder" for suffix in o.suffixes)
            raise UserError(f"--out {o.out}: {o.what} is written as {kinds}")
        if o.out.suffix:                       # else a folder of frames (workshop/video.py)
            figures.check_free(o.out)
        return
    if o.out.suffix.lower() in FIGURES + video.VIDEOS or o.out.exists() and not o.out.is_dir():
        raise UserError(f"--out {o.out}: {o.what} makes many files and needs the name of a folder")
    pictures, sheets = sample_files(o.out, o.faces)
    # Anna.npz and anna.npz are two faces, but Windows and macOS take their pictures for one file.
    if len({str(path).casefold() for path in pictures}) < len(set(o.faces)):
        raise UserError("--w: two of the files have the same name, and so would their pictures")
    for path in pictures + sheets:
        figures.check_free(path)


# ---- 11. The program -------------------------------------------------------------------------


def main(argv=None):
    """Load, make the picture, write it. Returns the exit code."""
    o = parse_args(argv)
    check_out(o)                               # what would be written over, and is not ours?
    device = machine.pick_device(o.device)
    if device.type == "cuda":
        # Of two fast ways to convolve, cuDNN otherwise takes whichever; the pixels would vary.
        torch.backends.cudnn.deterministic = True
    # Float32 to the last bit, not TF32: pictures are what other pictures are compared with.
    with machine.in_float32():
        model = load_model(o.model, device, o.batch, psi=o.psi, cutoff=o.cutoff, noise=o.noise,
                           seed=o.seed, strengths=o.noise_strength)
        figure = o.make(model, o)
    if figure is not None:                                     # samples and loops wrote their own
        figures.save_picture(o.out, figure)
    print(o.out)
    return 0


if __name__ == "__main__":
    start(main, "generate.py", "stopped; no file is half-written")
