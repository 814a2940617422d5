"""Run by hand: how many generated faces wear glasses, have a beard, or a collar?

    python experiments/details.py runs/00000-faces/checkpoint.pt [MORE ...]

FD is one number, and does not say what is missing. Painted faces are drawn by lot, so what they
have is known: 26 % glasses, some 13 % a beard, half of them a collar. Networks that learn such
faces begin with what all have in common, and leave out for long what few have. Here a small
network (the detector) learns from 6,000 painted faces to name the three, and then looks at
generated ones. It learns from faces that were blurred, shifted in colour and overlaid with noise at
random, so that it looks for the thing and not for the sharpness of a real picture. Its own errors
are printed: on painted faces that it has not seen, sharp, and as blurred as faces become that are
made half as large and enlarged again. A detail that few generated faces have can be a ghost of the
detector; the error says how many.

Needs:    what train.py needs.
[MACHINE] 2 CPU cores: two minutes. A GPU is not used.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))        # before this folder
import evaluate
from stylegan_dataloader import to_images
from workshop import UserError, checkpoints, machine, options
from workshop.painted_faces import PAINTED_FACES, paint_face

DETAILS = ("glasses", "beard", "collar")
SIDE = 32                                              # pixels that the detector looks at
LEARNED, TESTED = 6000, 1500


def painted(numbers, details=DETAILS):
    """Faces as images [n, 3, 32, 32], and 1 or 0 for each of their details [n, 3]."""
    faces, found = [], []
    for number in machine.progress_bar(numbers, desc="painting", leave=False):
        notes = {}
        faces.append(np.asarray(paint_face(number, SIDE, notes=notes)))
        found.append([float(notes[detail]) for detail in details])
    return to_images(torch.from_numpy(np.stack(faces))), torch.tensor(found)


def blurred(images):
    """As a young network makes them: what is smaller than 2x2 pixels is gone."""
    return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")


def spoiled(images, generator):
    """Each image blurred more or less, in other colours, mirrored or not, with some noise."""
    def draw(*shape):
        return torch.rand(len(images), *shape, 1, 1, generator=generator)
    images = images.lerp(blurred(images), draw(1))
    images = images * (0.7 + 0.5 * draw(1)) + 0.4 * (draw(3) - 0.5)
    images = torch.where(draw(1) < 0.5, images.flip(3), images)
    return images + 0.1 * draw(1) * torch.randn(images.shape, generator=generator)


def learn(images, details, seed=0, epochs=8):
    """The detector: images [n, 3, 32, 32] -> [n, 3], above 0 where it sees a detail.

    details: [n, 3], or of any other number of them, as `painted` gives it.
    """
    torch.manual_seed(seed)
    layers = []
    for before, after in ((3, 24), (24, 48), (48, 96)):
        layers += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.BatchNorm2d(after),
                   torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    detector = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Dropout(0.3),
                                   torch.nn.Linear(96 * 4 * 4, details.shape[1]))
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(images) // 64)
    adam = torch.optim.Adam(detector.parameters(), lr=0.002)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 0.004, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(images), (64,), generator=generator)
        said = detector(spoiled(images[chosen], generator))
        F.binary_cross_entropy_with_logits(said, details[chosen]).backward()
        adam.step(), adam.zero_grad(), schedule.step()
    return detector.eval()


@torch.no_grad()
def seen(detector, images):
    """Which details the detector sees: bool [n, 3]."""
    return torch.cat([detector(part) > 0 for part in images.split(500)])


@torch.no_grad()
def generated(path, count, seed):
    """Images [n, 3, 32, 32] of a checkpoint of painted faces, larger ones averaged down."""
    net = checkpoints.load_networks(path)
    if net.resolution < SIDE:
        raise UserError(f"{path}: stands at {net.resolution} px; details are looked for at {SIDE}")
    s = evaluate.Settings(net.resolution, net.alpha, images=count, seed=seed)
    images = torch.cat(list(evaluate.generated_images(net.networks["generator_ema"], s)))
    return F.avg_pool2d(images.clamp(-1, 1), net.resolution // SIDE)


def main(argv=None):
    parser = options.OneLineParser(prog="details.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--images", metavar="N", type=options.number_from(10), default=2048,
                        help="of each checkpoint (default 2048)")
    parser.add_argument("--seed", type=options.number_from(0), default=0, help="(default 0)")
    o = parser.parse_args(argv)
    machine.keep_freed_memory()
    made = {path: generated(path, o.images, o.seed) for path in o.checkpoints}
    detector = learn(*painted(range(LEARNED)))
    faces, truth = painted(range(PAINTED_FACES, PAINTED_FACES + TESTED))   # in no data set
    print(f"| | {' | '.join(DETAILS)} |\n|---|{'---|' * len(DETAILS)}")

    def row(name, *shares):
        print(f"| {name} | " + " | ".join(" ".join(f"{100 * share[k]:.1f} %" for share in shares)
                                          for k in range(len(DETAILS))) + " |")
    row("painted faces", truth.mean(0))
    for name, images in (("", faces), (", blurred", blurred(faces))):
        found = seen(detector, images)
        row(f"the detector sees{name}", found.float().mean(0))
        row(f"and is wrong{name}", (found != truth.bool()).float().mean(0))
    for path, images in made.items():
        row(path, seen(detector, images).float().mean(0))
    return 0


if __name__ == "__main__":
    options.start(main, "details.py", "stopped")
