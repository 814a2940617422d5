"""Run by hand: are there droplets in a network's features, as section 1 of StyleGAN2 shows them?

    python experiments/droplets.py stylegan.pt stylegan2.pt --out droplets.png

AdaIN gives every channel the size that the style asks for, whatever it was before. The paper finds
that StyleGAN makes one strong spike in such a channel: the spike has nearly all of its size, so the
rest can be as small as G likes. In the features, from 64 px on, the spikes are seen as a droplet;
in the finished picture they can be hidden.

For each network the figure shows pictures, and under them, layer by layer at the largest
resolution, how large the features are at each pixel (the root mean square over channels, before
AdaIN; white is the largest of a picture). Printed is the largest divided by the median, averaged
over many pictures: 1 would be features of the same size everywhere.

[MACHINE] Seconds at 64 px. All images at once: 1024 px takes 4 GB a layer; --images 8: 0.5 GB.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import morph
from stylegan_layers import AdaIN, ModulatedConv2d
from workshop import UserError, figures, options
from workshop.figures import Row, to_tile


@torch.no_grad()
def sizes_of(G, z):
    """(images, {layer: sizes of its features [N, 1, R, R]}) at the largest resolution."""
    largest, found = str(G.synthesis.resolution), {}
    hooks = []
    for name, layer in G.synthesis.blocks[largest].named_children():
        if isinstance(layer, AdaIN):                           # what it is given
            hooks.append(layer.register_forward_pre_hook(
                lambda layer, inputs, name=name: found.update({name: inputs[0]})))
        if isinstance(layer, ModulatedConv2d):                 # what it gives
            hooks.append(layer.register_forward_hook(
                lambda layer, inputs, x, name=name: found.update({name: x})))
    images = G(z, noise_mode="const")
    for hook in hooks:
        hook.remove()
    return images, {name: x.square().mean(dim=1, keepdim=True).sqrt() for name, x in found.items()}


def main(argv=None):
    parser = options.OneLineParser(prog="droplets.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="+")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("droplets.png"))
    parser.add_argument("--images", type=options.number_from(8), default=64, metavar="N",
                        help="how many the number is averaged over (default 64)")
    o = parser.parse_args(argv)
    if o.out.suffix.lower() not in figures.FIGURES:
        parser.error(f"--out {o.out}: is written as {', '.join(figures.FIGURES)}")
    figures.check_free(o.out)
    rows = []
    for path in o.models:
        loaded = morph.load_networks(path)
        G, kind = loaded.networks["generator_ema"], loaded.checkpoint["architecture"]
        if loaded.resolution < G.synthesis.resolution or loaded.alpha < 1:
            raise UserError(f"{path}: still grows; give a network that is finished")
        z = torch.randn(o.images, G.latent_dim, generator=torch.Generator().manual_seed(0))
        images, found = sizes_of(G, z)
        side = figures.tile_side(images.shape[2])
        rows.append(Row([to_tile(image, side) for image in images[:8]], kind, space=bool(rows)))
        for name, sizes in found.items():
            ratio = (sizes.amax(dim=(1, 2, 3)) / sizes.flatten(1).median(dim=1).values).mean()
            print(f"{path}: {name}: largest / median {ratio:.2f}")
            shown = 2 * sizes[:8] / sizes[:8].amax(dim=(2, 3), keepdim=True) - 1
            rows.append(Row([to_tile(one.expand(3, -1, -1), side) for one in shown],
                            f"{name}\n{ratio:.1f}"))
    figure = figures.draw_figure("Size of the features at each pixel, white is the largest; "
                                 "numbers: largest / median", rows)
    figures.save_picture(o.out, figure)
    print(o.out)
    return 0


if __name__ == "__main__":
    options.start(main, "droplets.py")
