"""evaluate.py: is it any good? Numbers for a checkpoint, and what each can tell.   (11th)

    python evaluate.py runs/00000-faces --metrics duality_gap
    python evaluate.py runs/00000-faces --features efficientnet-lite0 --images 500 --metrics kid
    python evaluate.py runs/00003-photos --metrics fid,kid,precision_recall,ppl
    python evaluate.py runs/00003-photos --plot curves.png
    python evaluate.py drawn/ --data photos/       pictures of any origin against others

Read before: stylegan_losses.py, stylegan_models.py.     Read next: explore.py
Paper:   Grnarova et al. 2019 (arXiv 1811.05512), the duality gap; Heusel et al. 2017 (1706.08500),
         FID; Binkowski et al. 2018 (1801.01401), KID; Kynkaanniemi et al. 2019 (1904.06991),
         precision and recall; Salimans et al. 2016 (1606.03498), inception score; Karras et al.
         2019 (1812.04948), section 4.1, perceptual path length; 2020 (1912.04958), table 1.
Needs:   torch, numpy, Pillow, tqdm; CPU, CUDA or MPS. For all but the duality gap also a feature
         network, for --plot matplotlib: pip install -r requirements-extra.txt
Letters: N generated images, M real ones; F features of an image; L style layers; S size of w; R
         pixels a side. Images lie in [-1, 1]; z is standard normal.

Looking at samples finds errors. It does not tell whether one network is better than another, nor
what is missing. No single number does either. So there are several, and each is printed with what
it measures and what it is blind to. In reading order:

  1. the duality gap          how much could either player still gain?
  2. clouds of features       FID, KID, precision and recall, inception score
  3. perceptual path length   is the latent space smooth?
  4. the table                what each number says, and what it cannot see
  5. measuring                the same call gives the same number; training is not disturbed
  6. the program

Can the numbers be trusted? Damage a real picture set on purpose, and see which of them notice. Here
500 painted faces of 64 px are compared with 500 others of 1000, after each damage:

                                  FD-EffLite0  KID-EffLite0  Precision  Recall
    nothing (the other half)             10.7        0.0001       0.90    0.86
    blur, radius 0.5                     16.0        0.0080       0.77    0.82
    blur, radius 1.5                     87.0        0.1299       0.01    0.02
    noise, 8 grey levels                 71.3        0.1136       0.01    0.02
    noise, 30 grey levels               137.2        0.2260       0.00    0.00
    JPEG, quality 60                     43.9        0.0566       0.09    0.15
    JPEG, quality 15                     90.3        0.1350       0.00    0.01
    30 % of them, repeated               20.7        0.0005       0.93    0.40
    only the darkest 30 %, repeated      26.8        0.0092       0.87    0.37

All four see blur, noise and JPEG, and more as more. These features mind grain more than blur.
When 70 % of the pictures are missing, those that are left are as good as ever, and precision says
so; recall halves. KID hardly notices: a repeated sample of the real pictures has nearly their mean
in every feature. It does notice when the missing ones are of a kind, and the mean has moved. FD
sees both. (And the other half is not at 0: FD is biased, the more the fewer pictures.)
Printed by: python experiments/metrics.py damage (EffLite0, a CPU).
Proved: tests/test_evaluate.py::test_damaged_pictures_rank_as_expected, ranks of four rows
"""

import argparse
import collections
import copy
import functools
import math
import os
import pathlib
import sys
import textwrap
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import augment
import morph
import stylegan_dataloader as data
import stylegan_models as models
from stylegan_layers import NoiseInput
from stylegan_losses import discriminator_loss
from workshop import UserError, curves, machine, options
from workshop.curves import append_line, explanation, table
from workshop.features import (
    INCEPTION, SMALLEST_LPIPS, compute_features, fingerprint_of, load_features, lpips_network)
from workshop.measuring import (
    about_machine, about_pictures, checkpoints_in, drawn_pictures, find_reals, frozen_copy, guarded,
    holds_pictures, on_its_own, own_cache, real_features, real_images, upsampled)

# ---- 1. The duality gap ----------------------------------------------------------------------
#
# G and D play a game with one value M, which D wants high and G wants low:
#
#     M(G, D) = 1/2 E[log sigmoid D(x)] + 1/2 E[log(1 - sigmoid D(G(z)))],      x real, z random.
#
# The losses in the log cannot tell how the game stands: each is measured against an opponent that
# changes too. So let each player stand still, and find its worst opponent:
#
#     DG = max over D' of M(G, D')  -  min over G' of M(G', D).
#
# The first term is no smaller than M(G, D) and the second no larger, so DG >= 0. DG = 0 means that
# neither can gain by moving: an equilibrium. If G makes the real distribution and D cannot tell,
# both terms are -ln 2 = -0.693. The first term alone judges G: over all functions D', max M =
# -ln 2 + JSD(real, fake), the distance that GANs minimise (Goodfellow et al. 2014).


# DG, its standard error, and its parts: M(G, D), max M(G, D'), min M(G', D).
Gap = collections.namedtuple("Gap", "gap error current worst_d worst_g")


def duality_gap(G, D, value, adversary, test, new_optimizer):
    """The duality gap of any game between two modules.

    value:   value(G, D, batch) -> M on the batch, a 0-dim tensor.
    adversary: a function that gives batches to find opponents with; both searches see the same.
    test:    batches to read M on. They must be others: a D' that learned its pictures by heart
             would look like a flaw of G.
    new_optimizer: network -> a fresh optimizer.
    How:     each search starts at the CURRENT weights, in a deep copy. So the gap says how much can
             be gained from here in so many steps, and not how fast a network learns from nothing.
             What is found is a bound: with a better search the gap only grows.
    Units:   of M. The error is the spread of the difference over the test batches, by the root of
             their number. It covers the luck of their pictures, z, styles and noise. It does not
             cover what a longer search would find. All three values of a batch are read with the
             same random numbers, and what is luck in both terms cancels. (Where a search finds
             nothing that holds on the test part, the gap may read below 0.)
    Proved:  tests/test_evaluate.py::test_the_gap_of_games_with_a_known_equilibrium,
             ::test_opponents_are_copies_that_start_from_the_current_weights,
             ::test_every_search_gets_a_fresh_optimizer,
             ::test_both_values_are_read_with_the_same_random_numbers
    """
    better_D, better_G = (copy.deepcopy(player).requires_grad_(True) for player in (D, G))
    find_opponent(better_D, lambda opponent, batch: -value(G, opponent, batch), adversary(),
                  new_optimizer(better_D))
    find_opponent(better_G, lambda opponent, batch: value(opponent, D, batch), adversary(),
                  new_optimizer(better_G))
    with torch.no_grad():
        read = torch.stack([torch.stack([value(G, D, batch), value(G, better_D, batch),
                                         value(better_G, D, batch)]) for batch in test])
    read = read.cpu().double()                                             # [batches, 3]
    current, worst_d, worst_g = read.mean(dim=0).tolist()
    differences = read[:, 1] - read[:, 2]
    error = differences.std().item() / math.sqrt(len(read))
    return Gap(worst_d - worst_g, error, current, worst_d, worst_g)


def find_opponent(learner, value, batches, optimizer):
    """Move `learner` so that value(learner, batch) falls, one optimizer step a batch."""
    for batch in batches:
        optimizer.zero_grad()
        value(learner, batch).backward()
        optimizer.step()


def gan_value(G, D, batch, alpha):
    """M of a StyleGAN on a batch: reals [N, 3, R, R], z, style rows, a seed for the noise.

    Units:   minus one half of `discriminator_loss`, which is 2 ln 2 where M is -ln 2.
    Why no R1: it is no part of the game. It shapes D in training, and a D' that had to stay flat
             would not be the worst one. Nor is StyleGAN2's path length, which shapes G.
    Why not G's loss of training: its gradient is better where D is sure, but it is not M. Adam
             divides by the size of a gradient, and a weak one is enough for it.
    Why clipped: pictures are clipped when they are kept. Outside of [-1, 1] no real picture ever
             told D what to think, its scores grow without end, and min M would be minus infinity.
    Proved:  tests/test_evaluate.py::test_the_value_has_no_penalty_and_is_the_papers,
             ::test_the_worst_generator_still_makes_pictures
    """
    reals, z, rows, noise_seed = batch
    torch.manual_seed(noise_seed)              # the noise inputs: the same for every pair (G, D)
    fakes = G(z, rows, resolution=reals.shape[-1], alpha=alpha).clamp(-1, 1)
    return -discriminator_loss(D(reals, alpha), D(fakes, alpha)) / 2


def gan_batches(dataset, steps, batch, latent_dim, s, purpose):
    """`steps` batches for `gan_value`, a function of the seed and the purpose. s: `Settings`.

    Styles and their mixing are those of training. The reals, pictures of the dataset that training
    has not seen, are faded while the networks are (`fade_reals`).
    Proved:  tests/test_evaluate.py::test_the_gap_uses_the_settings_of_the_run
    """
    seed = int(np.random.SeedSequence([s.seed, purpose]).generate_state(1)[0])
    stream, device = np.random.RandomState(seed), torch.device(s.device)
    mixer = iter(data.StyleMixer(models.num_style_layers(s.resolution), batch, s.styles, s.mixing,
                                 seed))
    for step in range(steps):
        pixels = dataset.__getitems__(range(step * batch, (step + 1) * batch))
        z = stream.standard_normal((batch, s.styles, latent_dim))
        yield (data.fade_reals(data.to_images(pixels, device), s.alpha),
               torch.from_numpy(z).float().to(device), next(mixer).to(device), seed + step)


FEWEST_UNSEEN = 32                # pictures in each of the two unseen parts
MOST_TEST = 2048                  # pictures that M is read on


def measure_duality_gap(networks, reals, s):
    """The gap of the current G and D, as {"duality_gap": (value, error)}, and what it depends on.

    networks: G and D in eval mode, frozen. reals: {"adversary": dataset, "test": dataset}.
    How:     test batches are as large as in training, or smaller if there are not pictures for 8 of
             them: a multiple of 4 then, the groups that the minibatch stddev compares.
    Proved:  tests/test_evaluate.py::test_the_gap_is_measured_at_every_resolution
    """
    G, D = networks["generator"], networks["discriminator"]
    batch, unseen = s.dg_batch, len(reals["test"])
    test_batch = min(batch, 4 * (unseen // 32))
    test_steps = max(8, min(unseen, MOST_TEST) // test_batch)
    batches = functools.partial(gan_batches, latent_dim=G.latent_dim, s=s)

    def new_optimizer(network):                # as in training (`new_adam` in train.py)
        return torch.optim.Adam(network.parameters(), lr=s.learning_rate, betas=(0.0, 0.99))

    def adversary():
        return machine.progress_bar(batches(reals["adversary"], s.dg_steps, batch, purpose=1),
                                    total=s.dg_steps, desc="opponent")

    found = duality_gap(G, D, functools.partial(gan_value, alpha=s.alpha), adversary,
                        batches(reals["test"], test_steps, test_batch, purpose=2), new_optimizer)
    if not math.isfinite(found.gap):
        raise UserError("the networks give numbers that are not finite: a training had failed")
    return {"duality_gap": (found.gap, found.error)}, {
        "worst_d": found.worst_d, "worst_g": found.worst_g, "current": found.current,
        "dg_steps": s.dg_steps, "dg_batch": batch, "learning_rate": s.learning_rate,
        "styles": s.styles, "mixing": s.mixing, "test_images": test_steps * test_batch,
        # Each search shows D a real and a fake batch a step, reading does so three times.
        "images_seen": 4 * s.dg_steps * batch + 6 * test_steps * test_batch, "network": "G, D",
        "unseen": getattr(reals["test"], "unseen", "") or (
            f"the {len(reals['adversary']) + len(reals['test'])} that the run held out")}


# ---- 2. Clouds of features: FID, KID, precision and recall, inception score ------------------
#
# A feature network (workshop/features.py) turns a picture into F numbers, in which what looks alike
# lies close together. The generated pictures are then a cloud of N points, the real ones a cloud of
# M, and all that is left is to compare two clouds. Four ways follow. Each is its paper's formula;
# torch-fidelity, the package whose numbers others publish, is their judge.
# Proved: tests/test_evaluate.py::test_the_formulas_agree_with_the_package
#
# FID means the Inception network of 2015 with its own way of resizing. A distance of other features
# is another number. It is named after its network, FD-EffLite0, and not compared with a FID.


def fid(fakes, reals):
    """Frechet inception distance: each cloud is taken for a Gaussian, a mean m and a covariance C:

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The first part is how far the means are apart, the second how much the shapes differ: in one
    dimension it is (deviation1 - deviation2)^2.
    Paper:  Heusel et al. 2017, equation 6. It is the Wasserstein-2 distance of two Gaussians.
    How:    C1 C2 has the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric; so none of them
            is complex or negative, and the trace of the root is the sum of their roots.
    Shapes: fakes [N, F], reals [M, F], float64: it is a small difference of large numbers.
    """
    C1, C2 = (torch.cov(points.T).reshape(points.shape[1], -1) for points in (fakes, reals))
    values, vectors = torch.linalg.eigh(C1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T                # C1^(1/2)
    cross = torch.linalg.eigvalsh(root @ C2 @ root).clamp(min=0).sqrt().sum()
    apart = (fakes.mean(dim=0) - reals.mean(dim=0)).square().sum()
    return (apart + C1.trace() + C2.trace() - 2 * cross).item()


def kid(fakes, reals):
    """Kernel inception distance: MMD^2 with the kernel k(a, b) = (a.b / F + 1)^3:

        E k(fake, other fake) + E k(real, other real) - 2 E k(fake, real).

    Two clouds are alike if a point is as near to those of the other as to those of its own. The
    kernel compares means, covariances and skewness at once, without taking clouds for Gaussians.
    Paper:  Binkowski et al. 2018, section 4. Pairs of a point with itself are left out; that makes
            the mean over many samples right at any N, while FID is too large at small N.
    Shapes: fakes [N, F], reals [M, F], float64.
    Proved: tests/test_evaluate.py::test_kid_is_not_biased_and_fid_is
    """
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_others(points):
        k, n = kernel(points, points), len(points)                         # [n, n]
        return (k.sum() - k.trace()) / (n * (n - 1))

    return (mean_of_others(fakes) + mean_of_others(reals) - 2 * kernel(fakes, reals).mean()).item()


KID_SUBSETS, MOST_IN_SUBSET = 100, 1000


def kid_of_subsets(fakes, reals, seed):
    """(mean, spread) of `kid` over 100 random subsets, as the paper and all packages give it.

    The subsets have 1000 points, or half of the smaller cloud, so that they differ. The spread is
    that of one subset's kid. It is not the error of the mean.
    """
    stream, n = np.random.RandomState(seed), min(MOST_IN_SUBSET, len(fakes) // 2, len(reals) // 2)
    values = [kid(*(points[stream.choice(len(points), n, replace=False)]
                    for points in (fakes, reals))) for _ in range(KID_SUBSETS)]
    return float(np.mean(values)), float(np.std(values))


NEIGHBOURS = 3


def precision_recall(fakes, reals):
    """(precision, recall): the part of fakes that lie among the reals, and of reals among fakes.

    Paper:  Kynkaanniemi et al. 2019, section 2. Around each point of a cloud lies a ball that
            reaches to its 3rd neighbour; all balls together are where the cloud is.
    Shapes: fakes [N, F], reals [M, F], float64.
    Proved: tests/test_evaluate.py::test_precision_and_recall_tell_which_is_missing
    """
    return inside(fakes, reals), inside(reals, fakes)


def inside(points, cloud):
    """The part of `points` that lie in a ball of `cloud`."""
    # [MACHINE] 1000 rows of distances at once: 0.4 GB for 50,000 images.
    radii = torch.cat([torch.cdist(rows, cloud).kthvalue(1 + NEIGHBOURS, dim=1).values
                       for rows in cloud.split(1000)])         # [M]; the 1st is the point itself
    found = [(torch.cdist(rows, cloud) <= radii).any(dim=1) for rows in points.split(1000)]
    return torch.cat(found).double().mean().item()


def inception_score(logits, splits=10):
    """(mean, spread) over 10 parts of the images of  exp E_x[ KL(p(y|x) || p(y)) ].

    p(y|x) are the probabilities of the classes of an image, p(y) their mean. The score is high if
    each image looks like one object, and all together like many.
    Paper:  Salimans et al. 2016, section 4.
    Shapes: logits [N, classes].
    """
    scores = []
    for part in logits.double().tensor_split(splits):
        log_p = part.log_softmax(dim=1)
        log_mean = log_p.exp().mean(dim=0).log()
        scores.append((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def compare(metrics, fakes, reals, classes, seed=0, changed=()):
    """{name: (value, error)} of two clouds; error: None where there is no good one.

    Shapes: fakes [N, F], reals [M, F] or None; classes: features -> logits, for inception_score;
            changed: for leaks, reals after each of augment.CHANGES.
    """
    fakes, reals, found = fakes.double(), reals.double() if reals is not None else None, {}
    if "fid" in metrics:
        found["FID"] = fid(fakes, reals), None
    if "kid" in metrics:
        found["KID"] = kid_of_subsets(fakes, reals, seed)
    if "precision_recall" in metrics:
        precision, recall = precision_recall(fakes, reals)
        found["Precision"], found["Recall"] = (precision, None), (recall, None)
    if "leaks" in metrics:
        shares = augment.leaked(fakes, reals, [points.double() for points in changed]).tolist()
        for change, share in zip(augment.CHANGES, shares):
            found[f"Leak-{change.__name__}"] = share, None
    if "inception_score" in metrics:
        found["IS"] = inception_score(classes(fakes))
    return found


@torch.no_grad()
def generated_images(G, s):
    """Yield s.images fakes of G in batches [N, 3, R, R], on its device.

    z comes from numpy, whose stream depends neither on the device nor on the size of the batches.
    One w an image: mixed styles are a way of training, not what the network is for.
    """
    stream = np.random.RandomState(s.seed)
    for start in range(0, s.images, s.batch):
        n = min(s.batch, s.images - start)
        z = torch.from_numpy(stream.standard_normal((n, G.latent_dim))).float()
        yield G(z.to(s.device), truncation_psi=s.psi, resolution=s.resolution, alpha=s.alpha)


def measure_features(metrics, G, reals, s, features, cache):
    """{name: (value, error)} of the metrics that compare features, and what they depend on.

    `compute_features` and `real_features` lie in workshop/: both round pictures to bytes first, and
    the second keeps what it computed. While a block fades in, so do the reals.
    """
    fakes = compute_features(features, generated_images(G, s), math.ceil(s.images / s.batch),
                             "generated")
    about = {"generated": len(fakes), "psi": s.psi, **features.describe, "network": "G_ema"}
    points, changed = None, []
    if set(metrics) - {"inception_score"}:
        points = real_features(features, reals["all"], min(s.images, len(reals["all"])), s.batch,
                               torch.device(s.device), s.alpha, cache)
        about["real"] = len(points)
    for change in augment.CHANGES if "leaks" in metrics else ():
        images = real_images(reals["all"], len(points), s.batch, torch.device(s.device), s.alpha)
        images = (change(batch, augment.gentleness(s.resolution)) for batch in images)
        changed.append(compute_features(features, images, math.ceil(len(points) / s.batch),
                                        f"real, {change.__name__}"))
    return compare(metrics, fakes, points, features.classes, s.seed, changed), about


# ---- 3. Perceptual path length ---------------------------------------------------------------
#
# Walk through the latent space in tiny steps, and add up how much the picture changes, as an eye (a
# perceptual distance) sees it. If the faces are laid out so that one thing changes at a time, the
# way is short. If glasses come and go on the way from one bare face to another, it was a detour:
#
#     PPL = E[ d(G(z(t)), G(z(t + epsilon))) / epsilon^2 ],    t uniform in 0..1,  epsilon = 1e-4
#
# with d a squared distance, hence the square. In z the path follows the sphere (slerp), in w it is
# a straight line (lerp) between f(z1) and f(z2).
# As in the official code: no truncation; new noise maps for each batch of paths, the same for all
# images in it; images above 256 px are averaged down to 256; the lowest and highest 1 % of the
# distances are left out.
# Differs: 50,000 paths on a GPU and 5,000 on a CPU (--images), where the official code walks
#   100,000; and it always looks only at the middle, where FFHQ has its faces, here --ppl-crop.
#   Numbers can be compared with the paper's if LPIPS is the distance and, for faces, with the crop.
#
# StyleGAN2 trains with a relative of PPL, its path length (stylegan_losses.py, part 4; path_length
# in the log). That one sees pixels where PPL sees what an eye does. And its penalty does not ask
# for short paths, but for paths that are equally long everywhere. PPL falls with it: 158.0 without,
# 122.5 with it (its table 1, rows C and D). The numbers of that table are of whole pictures and, in
# w, of the ends of paths: t = 0. Along paths they are larger: StyleGAN's table 3 has 234 along them
# and 196 at their ends.

EPSILON = 1e-4
PPL_SIZE = 256


def slerp(a, b, t):
    """From a to b along the sphere.   Shapes: a, b [N, S], t [N, 1] -> [N, S], each of length 1.

    Proved: tests/test_evaluate.py::test_slerp_walks_at_constant_speed
    """
    a, b = F.normalize(a), F.normalize(b)
    angle = torch.acos((a * b).sum(dim=1, keepdim=True).clamp(-1, 1))      # [N, 1]
    aside = F.normalize(b - (a * b).sum(dim=1, keepdim=True) * a)          # at right angles to a
    return a * torch.cos(t * angle) + aside * torch.sin(t * angle)


def trimmed_mean(distances):
    """(mean, its standard error) without the lowest and highest 1 %, as the official code."""
    low, high = (np.percentile(distances, p, method=m) for p, m in ((1, "lower"), (99, "higher")))
    kept = distances[(low <= distances) & (distances <= high)]
    return float(kept.mean()), float(kept.std() / math.sqrt(len(kept)))


def as_ppl_sees(images, crop):
    """What is compared: with `crop` rows 3/8 to 7/8 and columns 2/8 to 6/8; at most 256 px.

    Proved: tests/test_evaluate.py::test_ppl_sees_256_pixels_of_the_face
    """
    if crop:
        c = images.shape[2] // 8
        images = images[:, :, 3 * c:7 * c, 2 * c:6 * c]
    factor = images.shape[2] // PPL_SIZE
    return F.avg_pool2d(images, factor) if factor > 1 else images


@torch.no_grad()
def path_length(mapping, synthesis, latent_dim, distance, space, n, batch, seed, device):
    """(PPL, standard error) of any generator, in "z" or "w", from n steps.

    mapping: z -> w. synthesis: w -> images. distance: two batches of images -> [N].
    Units:   z, t and the steps are float64 up to the networks: in float32 a step of 1e-4 would keep
             3 digits. They are made on the CPU, since MPS has no float64.
    Errors:  UserError for distances that are not finite.
    Proved:  tests/test_evaluate.py::test_path_lengths_of_a_generator_with_a_known_one
    """
    stream, distances = np.random.RandomState(seed), []
    for start in machine.progress_bar(range(0, n, batch), desc=f"paths in {space}"):
        size = min(batch, n - start)
        z1, z2 = (torch.from_numpy(stream.standard_normal((size, latent_dim))) for _ in "12")
        t = torch.from_numpy(stream.random_sample((size, 1)))
        if space == "z":
            ends = [mapping(slerp(z1, z2, when).float().to(device)) for when in (t, t + EPSILON)]
        else:
            w1, w2 = (mapping(z.float().to(device)).cpu().double() for z in (z1, z2))
            ends = [torch.lerp(w1, w2, when).float().to(device) for when in (t, t + EPSILON)]
        images = synthesis(torch.cat(ends))                    # both in one batch: the same noise
        distances.append(distance(*images.chunk(2)).cpu().double() / EPSILON ** 2)
    distances = torch.cat(distances)
    if not distances.isfinite().all():
        raise UserError("ppl: distances that are not finite numbers: a training had failed")
    return trimmed_mean(distances.numpy())


def measure_ppl(G, s, features):
    """{name: (value, error)} of the path lengths in z and in w, and what they depend on.

    G is a copy of its own: its noise maps are drawn anew for each batch.
    Proved:  tests/test_evaluate.py::test_ppl_draws_noise_as_the_official_code_does
    """
    layers, found = models.num_style_layers(s.resolution), {}
    maps = [module.const for module in G.synthesis.modules() if isinstance(module, NoiseInput)]

    def synthesis(w):
        for noise in maps:
            noise.normal_()
        ws = w[:, None].expand(-1, layers, -1)                             # [N, L, S]
        return as_ppl_sees(G.synthesis(ws, s.resolution, s.alpha, "const"), s.ppl_crop)

    for space in "zw":
        found[f"PPL-{space}"] = path_length(G.mapping, synthesis, G.latent_dim, features.distance,
                                            space, s.images, s.batch, s.seed, s.device)
    return found, {"paths": s.images, "epsilon": EPSILON, "ppl_crop": s.ppl_crop,
                   **features.describe, "psi": 1.0, "network": "G_ema", "distance":
                   "squared, of unit features" if features.tag else "LPIPS, VGG16"}


# ---- 4. The table: what each number says, and what it cannot see -----------------------------


class Result(NamedTuple):
    """One number. Its name, without that of its feature network, is its key in RESULTS."""
    metric: str                   # what --metrics calls it
    measures: str
    unit: str
    good: str
    blind: str                    # what it cannot see
    error: str                    # what its "+-" is
    fewest: int = 0               # generated and real images; with fewer it is refused
    advised: int = 0              # with fewer it comes with a warning, which says:
    too_few: str = ""
    needs: str = ""


RESULTS = {
    "duality_gap": Result(
        "duality_gap",
        "how much the current G and D could still gain, one against the other standing still",
        "nats, 0 or more",
        "0 is an equilibrium; compare only at equal --dg-steps: longer searches find more. The "
        "part worst D' judges G alone: at best -0.693 (no opponent can tell), at worst 0",
        "what no opponent found in so many steps; how good the pictures look to an eye",
        "the standard error over test batches",
        needs="a checkpoint.pt, and pictures that its training never saw: those that train.py "
        "--evaluate-kimg held out, or --data (of painted faces there are always more)"),
    "FID": Result(
        "fid", "distance between the clouds of real and generated features, each taken for a "
        "Gaussian", "squared feature units, 0 or more",
        "0 for the same cloud; two halves of one picture set show what is possible at this number "
        "of images; FFHQ at 1024 px, 50,000 images: StyleGAN 4.4, StyleGAN2 2.84 (papers). Compare "
        "only at equal numbers",
        "whether blur or missing kinds of pictures cause it; pictures learned by heart; anything "
        "that its network does not see", "not known", 100, 2048, "it is biased upwards, since the "
        "covariance of that many features is estimated from them"),
    "KID": Result(
        "kid", "distance between the same clouds by a polynomial kernel (MMD^2), without taking "
        "them for Gaussians", "none",
        "0, and slightly below it by chance: it is not biased, so fewer images will do",
        "missing pictures, nearly: 30 % of a set, repeated, moves it less than a blur of half a "
        "pixel; pictures learned by heart", "the spread over random subsets, not the error of "
        "their mean", 100, 1000, "its spread is large (it is not biased)"),
    "Precision": Result(
        "precision_recall", "the part of generated pictures that lie among the real ones (nearer "
        "to one than its 3rd neighbour)", "0 to 1",
        "what two halves of the real pictures reach; truncation (--psi) raises it",
        "variety: one perfect picture, repeated, gets 1", "not known", 100, 1000,
        "with few points their balls are large, and both numbers look better than they are"),
    "Recall": Result(
        "precision_recall", "the part of real pictures that lie among the generated ones", "0 to 1",
        "what two halves of the real pictures reach; truncation lowers it, and so do missing kinds",
        "quality: a few bad pictures everywhere cover much; strays inflate it", "not known"),
    **{f"Leak-{change.__name__}": Result(
        "leaks", "the share of generated pictures that show a change that --augment makes, for "
        "each change by its name (augment.py)", "about 0 to 1",
        "about what a network trained without --augment has", "a leak that is smaller than what "
        "other faults add or take: up to 0.2, in young networks 0.4", "not known", 100, 1000,
        "the mean feature of few images is not known well") for change in augment.CHANGES},
    "IS": Result(
        "inception_score", "whether generated pictures look each like one object of ImageNet, all "
        "together like many", "1 to the number of classes (1008; 1000 for EfficientNet)",
        "what real pictures get; for faces it says next to nothing",
        "the real pictures: it never looks at them", "the spread of ten parts of the images",
        100, 5000, "it is biased downwards"),
    "PPL-z": Result(
        "ppl", "how much the picture changes on a tiny step along a path between two z",
        "squared perceptual distance per squared step",
        "lower; FFHQ, cropped, LPIPS: 412 for a generator without styles (paper, table 3)",
        "whether the pictures are any good: a network that makes one picture has 0",
        "the standard error over paths", needs="no real images"),
    "PPL-w": Result(
        "ppl", "the same between two w, in a straight line",
        "squared perceptual distance per squared step",
        "lower; FFHQ, cropped, LPIPS: 234 (paper, table 3, row F). Below PPL-z: the mapping "
        "network has straightened what z bends", "as PPL-z", "the standard error over paths"),
}
METRICS = {}                      # metric: its first row, which has the sizes and needs of both
for one in RESULTS.values():
    METRICS.setdefault(one.metric, one)
COMPARED = ("fid", "kid", "precision_recall", "leaks", "inception_score")


def groups_of(metrics):
    """The metrics, one group after the other; those that compare features share them."""
    groups = [[metric for metric in group if metric in metrics]
              for group in (("duality_gap",), COMPARED, ("ppl",))]
    return [tuple(group) for group in groups if group]


def full_name(name, tag):
    """The name under which a number is printed and stored: with that of its feature network.

    Proved: tests/test_evaluate.py::test_only_inception_gives_a_fid
    """
    first, *space = name.split("-")
    if first == "FID" and tag:
        first = "FD"
    if first in ("Precision", "Recall"):       # usually measured with VGG16: name Inception, too
        tag = tag or "Inception"
    return name if name == "duality_gap" else "-".join(filter(None, [first, tag, *space]))


def few_images(metric, n):
    """A warning if `n` images are few for a metric, or None.   Errors: UserError if too few."""
    fewest, advised, too_few = METRICS[metric][6:9]
    if n < fewest:
        raise UserError(f"{metric}: needs {fewest} generated and as many real images, here are {n};"
                        f" --images says how many, if there are enough pictures")
    return f"{metric} of {n} images, fewer than {advised}: {too_few}" if n < advised else None


# ---- 5. Measuring ----------------------------------------------------------------------------


class Settings(NamedTuple):
    """What changes a number, beside networks, pictures and the feature network."""
    resolution: int
    alpha: float = 1.0            # what the networks are called with
    images: int = 5000
    psi: float = 1.0
    seed: int = 0
    batch: int = 32               # images at once
    device: str = "cpu"
    ppl_crop: bool = False
    allow_upsampling: bool = False
    dg_steps: int = 200           # of Adam, to find an opponent
    dg_batch: int = 16            # from here on: as in training
    learning_rate: float = 0.001
    styles: int = 2
    mixing: float = 0.9


def evaluate(metrics, networks, reals, s, features=None, cache="cache"):
    """A list of records: dicts with "metric", "value", "error" and all that changes them.

    metrics:  one group of `groups_of`.
    networks: {"generator_ema": G_ema, "generator": G, "discriminator": D}; the gap needs the last
              two, all others the first. What is measured are copies.
    reals:    {"all": dataset, "adversary": ..., "test": ...}, what the metrics need of it.
    Proved:   tests/test_evaluate.py::test_a_line_of_metrics_jsonl_is_enough_to_repeat_it
    """
    device, started, judged_by = torch.device(s.device), time.perf_counter(), None
    with on_its_own(s.seed, device):
        if metrics == ("duality_gap",):
            judged_by = reals["adversary"]
            players = {name: frozen_copy(networks[name]) for name in ("generator", "discriminator")}
            found, about = measure_duality_gap(players, reals, s)
        elif metrics == ("ppl",):
            found, about = measure_ppl(frozen_copy(networks["generator_ema"]), s, features)
        else:
            judged_by = reals["all"] if set(metrics) - {"inception_score"} else None
            found, about = measure_features(metrics, frozen_copy(networks["generator_ema"]), reals,
                                            s, features, cache)
    records = []
    for name, (value, error) in found.items():
        images = min(about.get("generated", math.inf), about.get("real", math.inf))
        records.append({
            "metric": full_name(name, features.tag if features else ""), "result": name,
            "value": value, "error": error, "warning": few_images(RESULTS[name].metric, images),
            **about, **about_pictures(judged_by, s.allow_upsampling), "faded": s.alpha < 1,
            "resolution": s.resolution, "seed": s.seed, "batch": s.batch, **about_machine(device),
            "seconds": time.perf_counter() - started})
    return records


MOST_FEATURES = 4096          # F x F numbers of float64, and F^3 steps to take a root: fid


def check(metrics, networks, s, features):
    """Raise UserError for what is known to fail before any picture is looked at. Returns warnings.

    Proved: tests/test_evaluate.py::test_what_can_be_refused_is_refused_before_pictures_are_packed
    """
    device, side = torch.device(s.device), s.resolution // 2 if s.ppl_crop else s.resolution
    if "duality_gap" in metrics and not {"generator", "discriminator"} <= set(networks):
        raise UserError("duality_gap: the checkpoint holds no discriminator, and the gap is about "
                        "the game between both networks; use a checkpoint.pt of train.py")
    warned = check_sizes(metrics, s.images, {})
    if features and features.compute:                          # a rehearsal
        blank = torch.zeros(2, 3, s.resolution, s.resolution, device=device)
        found = compute_features(features, [blank], 1, "rehearsal").shape[1]
        if "inception_score" in metrics and features.classes is None:
            raise UserError("inception_score: needs a network that names objects")
        if "fid" in metrics and found > MOST_FEATURES:
            raise UserError(f"fid: the network gives {found} features, and the limit is "
                            f"{MOST_FEATURES}; kid has none")
    if "ppl" in metrics:
        fewest = 4 if features.tag else SMALLEST_LPIPS
        if side < fewest:
            raise UserError(f"ppl: the distance looks at {fewest} px or more, here are {side}")
        if not features.tag:
            lpips_network(device)                              # are its weights there?
    return warned


def check_sizes(metrics, images, reals):
    """Are there enough images, as far as one knows? Errors: UserError. Returns warnings."""
    warned = []
    for metric in metrics:
        known = "all" in reals and metric != "inception_score"
        warned.append(few_images(metric, min(images, len(reals["all"]) if known else math.inf)))
    for part in ("adversary", "test") if "duality_gap" in metrics and reals else ():
        if len(reals[part]) < FEWEST_UNSEEN:
            raise UserError(f"duality_gap: needs {FEWEST_UNSEEN} pictures in each of the unseen "
                            f"parts, here are {len(reals[part])}; --data needs {2 * FEWEST_UNSEEN} "
                            f"unseen ones, --evaluate-kimg {10 * FEWEST_UNSEEN} in all")
    return [sentence for sentence in warned if sentence]


def settings_of(run, resolution, alpha, device, processes=1, dg_batch=None, **typed):
    """`Settings`: what was typed, and for the duality gap what the run was trained with.

    run: the options of train.py, with its tables as `Table`s or as text.
    How: images at once are as many as the training held: so many fit into the memory. They are at
         least the 4 that the minibatch stddev compares.
    Proved: tests/test_evaluate.py::test_the_gap_uses_the_settings_of_the_run
    """
    def at_resolution(name, kind, default):
        return options.read_table(options.show(run.get(name, default)), kind)[resolution]

    held = at_resolution("batch", int, 16) // at_resolution("accumulate", int, 1) // processes
    return Settings(
        resolution, alpha, device=str(device), dg_batch=dg_batch or max(4, held),
        learning_rate=at_resolution("learning_rate", float, 0.001),
        styles=run.get("styles_to_mix", 2), mixing=run.get("mixing_probability", 0.9), **typed)


def prepare(o, photos, processes, G_ema, G, D):
    """For train.py --evaluate-kimg: check (errors: UserError), load the feature network, and return
    measure(resolution, alpha, grown, nimg, folder), a generator of records (`guarded` in
    workshop/measuring.py): WHATEVER goes wrong in it, training goes on with the same bits.

    o:       the options of train.py. photos: `stylegan_dataloader.Pictures`. For FID and the like
             all of them count, as in `main`; for the gap those that were held out.
    Proved:  tests/test_evaluate.py::test_whatever_goes_wrong_training_goes_on_with_the_same_bits
    """
    metrics = metrics_from(o.evaluate_metrics, "--evaluate-metrics")
    networks, features = {"generator_ema": G_ema, "generator": G, "discriminator": D}, None
    at_once = settings_of(vars(o), o.resolution, 1.0, o.device, processes).dg_batch

    def settings_at(resolution, alpha):
        return settings_of(vars(o), resolution, alpha, o.device, processes, batch=at_once,
                           images=o.evaluate_images, seed=o.seed % 2 ** 32,
                           allow_upsampling=o.allow_upsampling)

    def reals_at(resolution):
        return {part: photos.dataset(resolution, part) for part in ("all", "adversary", "test")}

    with on_its_own(o.seed, o.device):         # a network that is built draws random weights
        if set(metrics) - {"duality_gap"}:
            features = load_features(o.evaluate_features, o.device,
                                     distance_only=not set(metrics) & set(COMPARED))
        check(metrics, networks, settings_at(o.resolution, 1.0), features)
        warned = check_sizes(metrics, o.evaluate_images, reals_at(o.resolution))
        if "ppl" in metrics and not features.tag and o.initial_resolution < SMALLEST_LPIPS:
            warned.append(f"ppl begins at {SMALLEST_LPIPS} px: LPIPS looks at no smaller pictures")
        for sentence in warned:
            print(f"note: {sentence}", file=sys.stderr)

    def measure_group(group, resolution, alpha):
        if group == ("ppl",) and not features.tag and resolution < SMALLEST_LPIPS:
            return []                                          # LPIPS sees nothing there yet
        return evaluate(group, networks, reals_at(resolution), settings_at(resolution, alpha),
                        features, o.cache)

    return functools.partial(guarded, measure_group, groups_of(metrics))


# ---- 6. The program --------------------------------------------------------------------------


def metrics_from(text, option="--metrics"):
    """ "fid,kid" -> ("fid", "kid").   Errors: UserError."""
    metrics = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"{option}: {metric!r} is none of {', '.join(METRICS)}")
    return metrics


def parse_args(argv=None):
    """The options, as `--help` explains them."""
    parser = options.OneLineParser(
        prog="evaluate.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Numbers that say how good a network is, and what each of them can tell.",
        epilog="The metrics:\n" + "\n".join(textwrap.fill(
            f"{metric}: {row.measures}. Needs: " + (
                row.needs or f"{row.fewest} images; {row.advised} or more are advised") + ".",
            96, initial_indent="  ", subsequent_indent="      ") for metric, row in METRICS.items())
        + "\n\nEach result is a line of metrics.jsonl beside the checkpoint, with all that it "
          "depends on.\nWhat FID computes is called FD-NETWORK if the features are others.")
    add, counts = parser.add_argument, options.number_from(1)
    add("model", metavar="RUN", type=pathlib.Path, help="a checkpoint, or the folder of a run; or "
        "pictures that anything has drawn, a folder or a .zip, to be compared with --data")
    add("--all", action="store_true", help="all checkpoints in the folder; the best is named")
    add("--metrics", metavar="LIST", help=f"any of {', '.join(METRICS)} (default "
        "fid,kid,precision_recall; with --plot none)")
    add("--data", metavar="PATH", help="real pictures, a folder or a .zip (default: those of the "
        "run); for duality_gap, others than it was trained with are taken for unseen")
    add("--features", metavar="NETWORK", default="inception", help="inception (default), "
        "efficientnet-lite0, or a TorchScript file, which is a program: open only your own")
    add("--weights", metavar="FILE", help=f"the file {INCEPTION} for --features inception, if it "
        "is neither in torch's cache nor can be downloaded")
    add("--images", metavar="N", type=counts, help="generated, and at most so many real ones; for "
        "ppl paths (default 5000 on a CPU, else 50000, as the papers)")
    add("--psi", metavar="PSI", type=options.number_from(-100, float, 100), default=1.0,
        help="truncation; 1 is none (default, as the papers); not for duality_gap and ppl")
    add("--dg-steps", metavar="N", type=counts, default=200,
        help="of Adam, to find an opponent for duality_gap (default %(default)s)")
    add("--dg-batch", metavar="N", type=options.number_from(4), help="(default: as in training)")
    add("--ppl-crop", action="store_true", help="ppl of the middle only, as the paper for FFHQ")
    add("--plot", metavar="FILE", type=pathlib.Path, help="curves of a run: .png, .svg or .pdf")
    # [MACHINE] 8 images of 1024 px at once (not measured on a GPU). Less memory: --batch 1.
    add("--batch", metavar="N", type=counts, help="images at once, bounds the memory (default 32 "
        "up to 256 px, half as many at each doubling)")
    add("--allow-upsampling", action="store_true", help="enlarge pictures that are too small")
    add("--no-flip", action="store_true", help="no mirrored pictures (default: as in training)")
    add("--cache", metavar="FOLDER", help="for packed pictures (default: the run's, else cache)")
    add("--seed", metavar="N", type=options.number_from(0, int, 2 ** 32 - 1), default=0)
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    return parser.parse_args(argv)


def measure(path, metrics, device, o):
    """Load one checkpoint, or pictures, check, measure, say it. Returns the records."""
    # ---- 1. Is everything there, before anything is computed? ----
    drawn = holds_pictures(path)
    loaded = drawn_pictures(path, metrics, o) if drawn else morph.load_networks(
        path, device, ("generator_ema", "generator", "discriminator"))
    checkpoint, r, features, reals = loaded.checkpoint, loaded.resolution, None, {}
    run, most = checkpoint.get("options", {}), 5000 if device.type == "cpu" else 50_000
    s = settings_of(run, r, loaded.alpha, device, dg_batch=o.dg_batch, psi=o.psi, seed=o.seed,
                    images=min(o.images or most, checkpoint.get("drawn", math.inf)),
                    batch=o.batch or max(1, min(32, 8192 // r)), dg_steps=o.dg_steps,
                    ppl_crop=o.ppl_crop, allow_upsampling=upsampled(o, run))
    with machine.in_float32():
        if set(metrics) - {"duality_gap"}:
            features = load_features(o.features, device, o.weights,
                                     distance_only=not set(metrics) & set(COMPARED))
        warned = check(metrics, loaded.networks, s, features)
    wanted = {"all"} if set(metrics) & set(COMPARED[:4]) else set()
    wanted |= {"adversary", "test"} if "duality_gap" in metrics else set()
    cache = o.cache or own_cache(path, checkpoint) or "cache"
    if wanted:
        reals = find_reals(path, checkpoint, r, s.seed, wanted, o, cache)
        warned = check_sizes(metrics, s.images, reals)
    for sentence in warned:
        print(f"note: {sentence}", file=sys.stderr)

    # ---- 2. Measure, and keep every number as soon as it is there ----
    progress = checkpoint.get("progress", {})
    nimg, grown = progress.get("nimg"), float(progress.get("alpha", 1.0))
    kimg = "" if nimg is None else f" after {nimg / 1000:g} kimg"
    print(f"{path}{kimg}, {r} px" + f", alpha {grown:.2f}" * (grown < 1), flush=True)
    about = {"nimg": nimg, "alpha": grown, "checkpoint": path.name,
             "checkpoint_sha256": checkpoint.get("stamp") or fingerprint_of(path),
             **({"network": "none: pictures"} if drawn else {})}
    records, lines = [], path.absolute().parent / "metrics.jsonl"
    if not os.access(lines if lines.exists() else lines.parent, os.W_OK):
        print(f"note: {lines} cannot be written; the numbers will only be shown", file=sys.stderr)
    try:
        for group in groups_of(metrics):
            for record in evaluate(group, loaded.networks, reals, s, features, cache):
                records.append({**record, **about})
                append_line(lines, records[-1])

    finally:                                   # ---- 3. Say it, also if the next one failed ----
        if records:
            print(table(records))
        for record in records:
            print("\n" + explanation(record, RESULTS[record["result"]]))
    return records


def main(argv=None):
    """Measure one checkpoint, or pictures, or all checkpoints of a run. Returns the exit code."""
    o = parse_args(argv)
    metrics = metrics_from(o.metrics or "fid,kid,precision_recall")
    if not o.model.exists():
        raise UserError(f"{o.model}: no such file or folder")
    paths = checkpoints_in(o.model) if o.all else [
        o.model / "checkpoint.pt" if o.model.is_dir() and not holds_pictures(o.model) else o.model]
    if o.plot:
        curves.check(o.plot, paths[0].parent)  # what it may not write over, it refuses now
    if o.metrics or not o.plot:
        device = machine.pick_device(o.device)
        machine.keep_freed_memory()            # faster on a CPU: see there
        # Of two fast ways to convolve, cuDNN otherwise takes whichever; the numbers would vary.
        torch.backends.cudnn.deterministic = True
        records = [record for path in paths for record in measure(path, metrics, device, o)]
        if o.all:
            print(f"\n{curves.beside_each_other(records)}")
    if o.plot:
        print(curves.plot_run(paths[0].parent, o.plot))
    return 0


if __name__ == "__main__":
    options.start(main, "evaluate.py", "stopped; no file is half-written")
