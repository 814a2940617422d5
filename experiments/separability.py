"""Run by hand: is what one sees in a face a direction of w? Linear separability, and figure 6.

    python experiments/separability.py runs/00000-faces/checkpoint.pt [MORE ...]
    python experiments/separability.py runs/00000-faces/checkpoint.pt --plot figure6.png

StyleGAN, section 4.2: if the latent space is disentangled, a plane divides it into the points whose
faces have a beard and those whose faces have none. How badly it does is H(Y|X), in nats: how
uncertain the beard still is when one knows on which side of the plane a point lies. Summed over
attributes, and e to the power of it: 1 is perfect, and what knowing nothing gives is printed beside
it. The paper has 40 networks that name attributes of photographs; painted faces say themselves what
they have, so one small network (details.py) learns to name five.

As in the paper, faces are drawn without truncation, and the half about which the network is less
sure is left out, for each attribute. Differs: logistic regression in the place of a linear SVM, and
20,000 faces in the place of 200,000.

Figure 6 of the paper tells why w can do what z cannot. Bearded faces with long hair are not in the
data. But z is a ball without gaps: to leave the missing kind out, the way from z to the face has to
be bent, and planes become curves. w may have a hole there. --plot draws the faces of each kind in
the plane of z, and of w, in which beard and long hair can be told best.

Needs:    what train.py needs; --plot matplotlib: pip install -r requirements-extra.txt
[MACHINE] 2 CPU cores: a minute for one checkpoint (measured).
"""

import argparse
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))        # before this folder
import details
import morph
from workshop import UserError, curves, machine, options

ATTRIBUTES = ("glasses", "beard", "collar", "long", "dark")
NAMES = ("glasses", "a beard", "a collar", "long hair", "dark skin")
LEARNED = 6000

# ---- 1. The measure --------------------------------------------------------------------------


def fit_plane(points, labels, steps=60):
    """Logistic regression: the plane (normal [F], offset) on whose one side the labels are 1.

    Shapes: points [n, F], labels bool [n]. Points are divided by their deviation for the search.
    Proved: tests/test_separability.py::test_a_plane_is_found_where_there_is_one
    """
    points, labels = points.double(), labels.double()
    mean, deviation = points.mean(0), points.std(0) + 1e-8
    scaled = (points - mean) / deviation
    normal = torch.zeros(points.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([normal, offset], max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = F.binary_cross_entropy_with_logits(scaled @ normal + offset, labels)
        value = value + 1e-4 * normal.square().sum()           # or a perfect plane never settles
        value.backward()
        return value
    search.step(loss)
    normal = normal.detach() / deviation
    return normal, offset.detach() - normal @ mean


def entropy(labels):
    """H(Y) in nats of bools [n]; 0 of none."""
    p = labels.double().mean().item() if len(labels) else 0.0
    return sum(-q * math.log(q) for q in (p, 1 - p) if 0 < q < 1)


def conditional_entropy(sides, labels):
    """H(Y|X): sides and labels bool [n].

    Proved: tests/test_separability.py::test_a_plane_is_found_where_there_is_one
    """
    share = sides.double().mean().item()
    return share * entropy(labels[sides]) + (1 - share) * entropy(labels[~sides])


def separability(points, logits):
    """[H(Y|X) of each attribute], with a plane for each in the cloud of points [n, F].

    logits: [n, A] of the network that names attributes; for each the surer half counts.
    """
    found = []
    for said in logits.t():
        sure = said.abs() >= said.abs().median()
        labels, cloud = said[sure] > 0, points[sure]
        if not 0 < labels.sum() < len(labels):
            found.append(0.0)                                  # all have it, or none: no question
            continue
        normal, offset = fit_plane(cloud, labels)
        found.append(conditional_entropy(cloud.double() @ normal + offset > 0, labels))
    return found


# ---- 2. Faces, their z and their w -----------------------------------------------------------


@torch.no_grad()
def drawn(path, detector, count, seed):
    """{"z": [n, latent], "w": [n, S]} of faces without truncation, and their logits [n, A]."""
    model = morph.load_networks(path)
    if model.resolution < details.SIDE:
        raise UserError(f"{path}: stands at {model.resolution} px; {details.SIDE} are needed")
    G, times = model.networks["generator_ema"], model.resolution // details.SIDE
    torch.manual_seed(seed)
    clouds, logits = {"z": [], "w": []}, []
    for start in machine.progress_bar(range(0, count, 100), desc="drawing", leave=False):
        z = torch.randn(min(100, count - start), G.latent_dim)
        images = G(z, resolution=model.resolution, alpha=model.alpha).clamp(-1, 1)
        logits.append(detector(F.avg_pool2d(images, times)))
        clouds["z"].append(F.normalize(z))                     # its length is taken away anyway
        clouds["w"].append(G.mapping(z))
    return {space: torch.cat(parts) for space, parts in clouds.items()}, torch.cat(logits)


# ---- 3. Figure 6 -----------------------------------------------------------------------------


def plane_of(points, first, second):
    """The points in the plane of two directions [F], the second turned upright: [n, 2]."""
    a = F.normalize(first, dim=0)
    b = F.normalize(second - (second @ a) * a, dim=0)
    return (points.double() - points.double().mean(0)) @ torch.stack([a, b], dim=1)


def draw_figure(path, clouds, logits):
    """Two panels: where the faces of each kind lie in z, and in w."""
    from matplotlib.figure import Figure
    beard, long = (logits[:, ATTRIBUTES.index(name)] > 0 for name in ("beard", "long"))
    figure = Figure(figsize=(10, 5), layout="constrained")
    for axes, (space, points) in zip(figure.subplots(1, 2), clouds.items()):
        normals = [fit_plane(points, labels)[0] for labels in (beard, long)]
        x, y = plane_of(points, *normals).t().numpy()
        for kind, colour, label in ((~beard & ~long, "0.75", "neither"), (beard & ~long, "C0",
                                    "beard"), (long & ~beard, "C1", "long hair"),
                                    (beard & long, "C3", "both")):
            axes.scatter(x[kind], y[kind], s=3, c=colour, linewidths=0,
                         label=f"{label}: {100 * kind.float().mean():.1f} %")
        axes.set(title=space, xlabel="towards a beard", ylabel="towards long hair")
        axes.legend(markerscale=4, loc="upper right", fontsize=8)
    curves.save(figure, path)                                  # whole, and with our mark


def main(argv=None):
    parser = options.OneLineParser(prog="separability.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--images", metavar="N", type=options.number_from(100), default=20_000,
                        help="of each checkpoint (default 20000)")
    parser.add_argument("--seed", type=options.number_from(0), default=0, help="(default 0)")
    parser.add_argument("--plot", metavar="FILE", type=Path,
                        help="figure 6, of the first checkpoint: .png, .svg or .pdf")
    o = parser.parse_args(argv)
    if o.plot:
        curves.check(o.plot)                                   # before minutes of work
    for path in o.checkpoints:
        if not path.is_file():
            raise UserError(f"{path}: no such file")           # before a minute of work
    machine.keep_freed_memory()
    detector = details.learn(*details.painted(range(LEARNED), ATTRIBUTES))
    names = " | ".join(NAMES)
    print(f"| H(Y given X) in nats | {names} | exp of the sum |\n|---|{'---|' * (len(NAMES) + 1)}")
    for k, path in enumerate(o.checkpoints):
        clouds, logits = drawn(path, detector, o.images, o.seed)
        rows = {"nothing known": [entropy(said[said.abs() >= said.abs().median()] > 0)
                                  for said in logits.t()]}
        rows |= {space: separability(points, logits) for space, points in clouds.items()}
        for space, found in rows.items():
            print(f"| {path}, {space} | {' | '.join(f'{value:.3f}' for value in found)} | "
                  f"{math.exp(sum(found)):.2f} |", flush=True)
        if o.plot and k == 0:
            draw_figure(o.plot, clouds, logits)
            print(o.plot)
    return 0


if __name__ == "__main__":
    options.start(main, "separability.py", "stopped")
