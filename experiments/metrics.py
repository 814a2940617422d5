"""Run by hand: the numbers that evaluate.py quotes, and how fast its features are.

    python experiments/metrics.py damage       the table at the top of evaluate.py; some minutes
    python experiments/metrics.py speed        images a second through a feature network

Both take --images N and --features NETWORK, as evaluate.py does. Numbers of other networks are of
course others.
"""

import argparse
import io
import pathlib
import sys
import time

import numpy as np
import torch
from PIL import Image, ImageFilter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import evaluate
import stylegan_dataloader as data
from workshop import features, machine, options, painted_faces

RESOLUTION = 64


def as_images(pictures):
    """Pillow images or arrays -> batches of 50 float images [50, 3, 64, 64] in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return data.to_images(pixels).split(50)


def blurred(picture, radius):
    return picture.filter(ImageFilter.GaussianBlur(radius))


def noisy(picture, levels, rng):
    pixels = np.asarray(picture) + rng.normal(0, levels, (RESOLUTION, RESOLUTION, 3))
    return pixels.clip(0, 255).round().astype(np.uint8)


def jpeg(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def damages(pictures, rng):
    """(what was done to the pictures, the damaged ones), one by one."""
    n = len(pictures)
    few = 3 * n // 10
    darkest = sorted(pictures, key=lambda picture: np.asarray(picture).mean())
    yield "nothing (the other half)", pictures
    for radius in (0.5, 1.5):
        yield f"blur, radius {radius}", [blurred(p, radius) for p in pictures]
    for levels in (8, 30):
        yield f"noise, {levels} grey levels", [noisy(p, levels, rng) for p in pictures]
    for quality in (60, 15):
        yield f"JPEG, quality {quality}", [jpeg(p, quality) for p in pictures]
    yield "30 % of them, repeated", [pictures[k % few] for k in range(n)]
    yield "only the darkest 30 %, repeated", [darkest[k % few] for k in range(n)]


def damage(network, n):
    """Half of 2n painted faces against the other half, damaged."""
    painted = [painted_faces.paint_face(number, RESOLUTION) for number in range(2 * n)]

    def points(pictures):
        return features.compute_features(network, as_images(pictures), None, "features")

    reals, rng = points(painted[:n]), np.random.default_rng(0)
    print(f"{'':35}{'FD':>9}{'KID':>12}{'+-':>8}{'Precision':>11}{'Recall':>8}")
    for what, pictures in damages(painted[n:], rng):
        found = evaluate.compare(("fid", "kid", "precision_recall"), points(pictures), reals, None)
        print(f"    {what:31}{found['FID'][0]:9.1f}{found['KID'][0]:12.4f}{found['KID'][1]:8.4f}"
              f"{found['Precision'][0]:11.2f}{found['Recall'][0]:8.2f}", flush=True)


def speed(network, n):
    images = as_images([painted_faces.paint_face(number, RESOLUTION) for number in range(n)])
    started = time.perf_counter()
    features.compute_features(network, images, None, "features")
    print(f"{n / (time.perf_counter() - started):.1f} images/s, {torch.get_num_threads()} threads")


def main(argv=None):
    parser = options.OneLineParser(prog="metrics.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("damage", "speed"))
    parser.add_argument("--images", metavar="N", type=options.number_from(100), default=500)
    parser.add_argument("--features", metavar="NETWORK", default="efficientnet-lite0")
    parser.add_argument("--device", metavar="NAME")
    o = parser.parse_args(argv)
    network = features.load_features(o.features, machine.pick_device(o.device))
    (damage if o.what == "damage" else speed)(network, o.images)
    return 0


if __name__ == "__main__":
    options.start(main, "metrics.py", "stopped")
