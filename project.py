"""project.py: a photograph becomes a w.   (10th)

    python project.py runs/00000-faces/checkpoint.pt photo.png
    python generate.py runs/00000-faces/checkpoint.pt mixing --w photo-projected.npz

Read before: generate.py, which takes the w that is found here.     Read next: evaluate.py
Paper:   Abdal et al. 2019, "Image2StyleGAN" (arXiv 1904.03189); Karras et al. 2020, "StyleGAN2"
         (arXiv 1912.04958), appendix D.
Needs:   torch, numpy, Pillow, tqdm; a CPU is enough. Importing this file reads no file, no argv.
Letters: L style layers; S size of w; R pixels a side. Images lie in [-1, 1].

A generator turns a w into a picture. No network here turns a picture into a w. But G can be
differentiated, and so w can be learned, as weights are learned elsewhere: begin with the average
face, compare its picture with the photograph, and let Adam change w until they are alike.

    minimise over w:    mean((G(w) - photo)^2)  +  weight * d(G(w), photo)

The first term sees pixels. Alone it is content with a blurred face, since every sharp hair at a
wrong place costs twice. The second is a distance between what a network sees in both, LPIPS for
instance (workshop/features.py). Abdal et al. use both kinds together, too.

How near one gets tells something about the network. One w for all layers makes little that the
network would not make anyway: if the result is a face, but another one, then the photograph lies
outside of what was learned, or the search ended in a valley that is not the deepest. (For StyleGAN2
it is easier: its paper finds the network's own pictures again much more surely than those of
StyleGAN, section 5 and figure 10.) A w for each layer (--per-layer, "W+" in Abdal et al.) comes
much nearer, also to pictures that are no faces: they show cats and cars, made by a network of
faces. Nearness proves nothing then.

A photograph should be framed as the training pictures were. For FFHQ: eyes and mouth at their usual
places, found with landmarks; this program only takes the central square.
Differs: no noise is added to w on the way, and the noise maps are not fitted along; StyleGAN2 does
both. The maps stay those stored with the network, so `generate.py samples --w` shows the same
picture again.
"""

import math
import os
import pathlib
import sys
import warnings
import zipfile

import numpy as np
import torch
import torch.nn.functional as F

import morph
import stylegan_models as models
from stylegan_dataloader import to_images
from workshop import UserError, features, figures, machine, pictures
from workshop.options import OneLineParser, number_from, start

MOST_UNPACKED = 10_000_000    # bytes of a .npz
LARGEST_SEEN = 256            # pixels a side of what a feature network is shown, as StyleGAN2 does


# ---- 1. What is w, and where is it kept? -----------------------------------------------------


@torch.no_grad()
def spread_of_w(G):
    """How far a face is from the average one: the RMS of |w - w_avg| over 256 faces.

    Proved: tests/test_project.py::test_the_spread_is_how_far_faces_are_from_the_average
    """
    z = np.random.RandomState(0).standard_normal((256, G.latent_dim))
    w = G.mapping(torch.from_numpy(z).float().to(G.w_avg.device))          # [256, S]
    return (w - G.w_avg).square().sum(dim=1).mean().sqrt().item()


def save_w(path, w, losses, layers):
    """Write w [1 or L, S] as w [1, L, S], which is how NVIDIA's projector writes its files."""
    w = w.detach().cpu().expand(layers, -1)[None]
    figures.save_arrays(path, w=w.numpy(), losses=np.array(losses))


def read_w(path, layers, style_dim):
    """The w of a file of `save_w`: [1, S] if it is the same in all layers, else [layers, S].

    A file of a larger network serves a smaller one, or a young one: the upper layers are left out.
    Errors: UserError.
    Proved: tests/test_project.py::test_a_w_is_read_as_it_was_written
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"--w {path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:         # a few kB may hold gigabytes of zeros
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_UNPACKED:
            raise ValueError("too large for a w")
        with np.load(path) as archive:                         # without pickles, by default
            w = torch.from_numpy(archive["w"]).float()
    except MemoryError:                                        # no fault of the file
        raise
    except Exception:                          # numpy, zipfile and zlib have a dozen kinds of error
        raise UserError(f"--w {path}: holds no w, or far more than one; project.py writes such "
                        f"files") from None
    if not w.numel():
        raise UserError(f"--w {path}: holds no w, but an empty one")
    if w.shape[-1:] != (style_dim,) or not w.isfinite().all():
        raise UserError(f"--w {path}: holds {list(w.shape)} numbers, and a w of this network has "
                        f"{style_dim}; it belongs to another one")
    w = w.reshape(-1, style_dim)
    if (w == w[0]).all():
        return w[:1]
    if len(w) < layers:
        raise UserError(f"--w {path}: holds a w for each of {len(w)} layers, and this network has "
                        f"{layers}")
    return w[:layers]


def read_target(path, resolution):
    """The central square of a photograph as float [1, 3, R, R].

    Errors: UserError.
    Proved: tests/test_project.py::test_a_photo_is_never_a_program
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such picture")
    # The very steps that a picture takes into training: EXIF, colours, square, antialiasing.
    source = pictures.Source("folder", str(path.parent), [path.name], "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                    # Pillow's, of very large pictures
            pixels = pictures.read_picture(source, 0, resolution)
    except Exception as error:                                 # Pillow raises a dozen kinds
        why = features.reason_of(error).split(" '")[0]         # and may name the path once more
        raise UserError(f"{path}: not a picture that can be read "
                        f"({why.split(' <')[0][:100]})") from None
    return to_images(torch.from_numpy(pixels.copy())[None])


# ---- 2. How alike are two pictures? ----------------------------------------------------------


def find_distance(which, device, resolution):
    """The perceptual distance that --features asks for, or None: pixels only.

    Not asked for (None), it is LPIPS if its weights are on this machine and the pictures are large
    enough for it; else a line says that it is pixels.
    Proved: tests/test_project.py::test_without_lpips_one_line_says_so
    """
    if which is None:
        folder = pathlib.Path(torch.hub.get_dir()) / "checkpoints"
        there = all((folder / name).is_file() for name in features.LPIPS)
        if there and resolution >= features.SMALLEST_LPIPS:
            which = "lpips"
        else:
            why = "the weights of LPIPS are not here" if not there else (
                f"LPIPS looks at {features.SMALLEST_LPIPS} px or more")
            print(f"note: only pixels are compared, {why}; --features names a network",
                  file=sys.stderr)
            which = "pixels"
    if which == "pixels":
        return None
    if which in ("lpips", "inception"):                        # beside Inception LPIPS measures it
        if resolution < features.SMALLEST_LPIPS:
            raise UserError(f"--features {which}: looks at {features.SMALLEST_LPIPS} px or more")
        features.lpips_network(device)                         # missing weights end it here
        return features.lpips_distance
    return features.load_features(which, device).distance


def loss_of(image, target, distance=None, weight=1.0):
    """mean((image - target)^2) + weight * d(image, target), a number.

    Shapes: image, target [1, 3, R, R]; distance: two batches of images -> [N], differentiable, or
            None. It is shown at most 256 px, averaged, as in StyleGAN2's projector.
    Proved: tests/test_project.py::test_the_loss_is_pixels_plus_a_weighted_distance
    """
    loss = F.mse_loss(image, target)
    if distance is not None:
        factor = max(1, image.shape[2] // LARGEST_SEEN)
        image, target = (F.avg_pool2d(x, factor) for x in (image, target))
        # The type first: on the way back a Mac's GPU must not meet a float64, which it has not.
        distances = distance(image, target).sum()
        loss = loss + weight * distances.to(loss.dtype).to(loss.device)
    return loss


# ---- 3. The search ---------------------------------------------------------------------------


def rate_at(step, steps, rate):
    """Adam's learning rate falls to 0 along half a cosine, so that w comes to rest."""
    return rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def search(G, resolution, alpha, target, steps, learning_rate=0.1, per_layer=False, distance=None,
           weight=1.0):
    """Look for the w whose image is nearest to the target. Yields (best w so far, losses so far).

    How:    Adam, from w_avg, on one w for all layers or on one for each. The weights of the network
            stay as they are. losses[k] is that after k steps, the last included. A generator, so
            that the caller may also stop asking (explore.py).
    Shapes: w [1 or L, S]. Yields steps + 1 times.
    Units:  learning_rate is in typical deviations of one number of w (`spread_of_w` / sqrt(S)), so
            that it means the same for all networks.
    Errors: UserError if the loss is not a finite number.
    Proved: tests/test_project.py::test_projection_finds_an_image_that_the_network_made,
            ::test_the_learning_rate_falls_along_half_a_cosine, ::test_the_last_step_counts
    """
    layers = models.num_style_layers(resolution)
    w = G.w_avg.repeat(layers if per_layer else 1, 1).requires_grad_()     # [1 or L, S]
    rate = learning_rate * spread_of_w(G) / math.sqrt(w.shape[1])
    optimizer = torch.optim.Adam([w], lr=rate)
    best, losses = w.detach().clone(), []
    for step in range(steps + 1):
        image = G.synthesis(w.expand(layers, -1)[None], resolution, alpha, "const")
        loss = loss_of(image, target, distance, weight)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(f"after {step} steps the loss is not a finite number; try a smaller "
                            f"--learning-rate")
        if losses[-1] == min(losses):
            best = w.detach().clone()
        if step < steps:
            optimizer.param_groups[0]["lr"] = rate_at(step, steps, rate)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield best, losses


def project(G, resolution, alpha, target, steps, learning_rate=0.1, per_layer=False, distance=None,
            weight=1.0):
    """`search` to its end: the best w of all [1 or L, S], and the losses [steps + 1]."""
    found = search(G, resolution, alpha, target, steps, learning_rate, per_layer, distance, weight)
    for best, losses in machine.progress_bar(found, total=steps + 1, desc="project"):
        pass
    return best, losses


# ---- 4. The program --------------------------------------------------------------------------


def parse_args(argv=None):
    """The options."""
    parser = OneLineParser(prog="project.py", description="Find the w whose image is nearest to a "
                           "photograph. Writes a picture and, beside it, w as a .npz, for "
                           "generate.py --w.")
    parser.add_argument("model", metavar="MODEL", help="a checkpoint of train.py, finished or not")
    parser.add_argument("photo", metavar="PHOTO", type=pathlib.Path,
                        help="any picture; its central square is used")
    parser.add_argument("--out", metavar="PATH", type=pathlib.Path,
                        help=f"{', '.join(figures.FIGURES)} (default PHOTO-projected.png, here); "
                        f"only what this program wrote is written over")
    parser.add_argument("--per-layer", action="store_true", help="a w for each layer")
    parser.add_argument("--steps", metavar="N", type=number_from(1), default=500,
                        help="of Adam (default 500)")
    parser.add_argument("--learning-rate", metavar="X", type=number_from(1e-9, float), default=0.1,
                        help="of Adam, in typical deviations of w (default 0.1)")
    parser.add_argument("--features", metavar="NETWORK", help="what compares beside pixels: lpips "
                        "(default, if its weights are here), efficientnet-lite0, a TorchScript "
                        "file (a program: only one you trust), or pixels: nothing else")
    parser.add_argument("--features-weight", metavar="X", type=number_from(0, float), default=1.0,
                        help="of that distance, beside the pixels' (default 1)")
    parser.add_argument("--device", metavar="NAME",
                        help="cpu, cuda, cuda:1, mps (default: the best there is)")
    return parser.parse_args(argv)


def main(argv=None):
    """Load, search, write. Returns the exit code."""
    # ---- 1. Is everything there, before anything is computed? ----
    o = parse_args(argv)
    out = o.out or pathlib.Path(f"{o.photo.stem}-projected.png")
    if out.suffix.lower() not in figures.FIGURES:
        raise UserError(f"--out {out}: is written as {', '.join(figures.FIGURES)}")
    for path in (out, out.with_suffix(".npz")):
        figures.check_free(path)
    if out.exists() and o.photo.exists() and os.path.samefile(out, o.photo):
        raise UserError(f"--out {out}: is the photograph itself")
    device = machine.pick_device(o.device)
    # Of the file only G's average is kept; a network in training is taken where it stands.
    networks, resolution, alpha, _ = morph.load_networks(o.model, device)
    G = networks["generator_ema"]
    side = max(resolution, figures.tile_side(resolution))      # full size
    figures.check_figure(out, 1, 2, side)
    target = read_target(o.photo, resolution).to(device)

    # ---- 2. Search, in float32 (no TF32) ----
    with machine.in_float32():
        distance = find_distance(o.features, device, resolution)
        w, losses = project(G, resolution, alpha, target, o.steps, o.learning_rate, o.per_layer,
                            distance, o.features_weight)
        with torch.no_grad():
            layers = models.num_style_layers(resolution)
            image = G.synthesis(w.expand(layers, -1)[None], resolution, alpha, "const")

    # ---- 3. Write the picture, target and projection at full size, and w ----
    tiles = [figures.to_tile(x.cpu()[0], side) for x in (target, image)]
    which = "a w for each layer" if o.per_layer else "one w"
    figure = figures.draw_figure(
        f"Projection of {o.photo.name}, {which}, {o.steps} steps: loss {losses[0]:.3g} -> "
        f"{min(losses):.3g}", [figures.Row(tiles, "", ["target", "projection"])])
    with figures.written(out) as temporary:    # both or neither: a picture belongs to its w
        figures.encode_picture(temporary, figure)
        save_w(out.with_suffix(".npz"), w, losses, layers)
    print(f"{out}, {out.with_suffix('.npz')}: loss {losses[0]:.3g} -> {min(losses):.3g}")
    return 0


if __name__ == "__main__":
    start(main, "project.py", "stopped; no file is half-written")
