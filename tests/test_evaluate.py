"""evaluate.py: the duality gap against games that can be solved, the other metrics against the
package whose numbers others publish, and the program as a user meets it."""

import argparse
import copy
import functools
import io
import json
import math
import pathlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

import evaluate
import morph
import stylegan_dataloader as data
import stylegan_losses as losses
import stylegan_models as models
import train
from conftest import ROOT, refused
from stylegan_layers import NoiseInput
from stylegan_losses import discriminator_loss
from tiny import needs_efficientnet, needs_fidelity
from workshop import (
    UserError, checkpoints, features, machine, measuring, options, pictures)
from workshop.painted_faces import paint_face

SETTINGS = dict(resolution=16, channel_base=64, channel_max=8, latent_dim=8, style_dim=8,
                mapping_dim=8, mapping_layers=2)
CPU = torch.device("cpu")
both = pytest.mark.parametrize("architecture", ["stylegan", "stylegan2"])


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """dataset(resolution, first, last): some of 400 painted faces."""
    source = pictures.painted_faces(range(400))
    folder = pictures.pack_pictures(source, 16, tmp_path_factory.mktemp("cache"), report=str)

    def dataset(resolution, first, last):
        return data.PictureDataset(folder, source, resolution, only=range(first, last))
    return dataset


def networks(architecture="stylegan", **more):
    """Untrained networks, whose noise inputs do something."""
    settings = {**SETTINGS, "architecture": architecture, **more}
    torch.manual_seed(0)
    G, D = models.make_generator(settings), models.make_discriminator(settings)
    for name, parameter in G.named_parameters():
        if name.endswith("strength"):
            parameter.data.fill_(0.5)
    return {"generator_ema": copy.deepcopy(G).eval(), "generator": G, "discriminator": D}


def frozen(nets):
    return {name: measuring.frozen_copy(network) for name, network in nets.items()}


def same(a, b):
    """Two state dicts with the same bits?"""
    return all(torch.equal(a[name], b[name]) for name in a)


def mean_colours(images):
    """A feature network for tests: 4x4 pixels."""
    return F.adaptive_avg_pool2d(images, 4).flatten(1)


PIXELS = features.Features("pixels", mean_colours, None,
                           lambda a, b: (a - b).square().sum((1, 2, 3)),
                           {"features": "pixels", "resize": "none"})


# ---- 1. the duality gap ----


class Player(torch.nn.Module):
    """One number."""

    def __init__(self, number):
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor(float(number)))


def adam(learning_rate):
    return lambda network: torch.optim.Adam(network.parameters(), lr=learning_rate,
                                            betas=(0.0, 0.99))


@pytest.mark.parametrize("u, v", [(0, 0), (0.3, -0.7)])
def test_the_gap_of_games_with_a_known_equilibrium(u, v):
    """Lesson: G holds u and wants M = u^2/2 + 2uv - v^2/2 low, D holds v and wants it high. The
    worst v for u is 2u, the worst u for v is -2v, so DG = 5/2 (u^2 + v^2): 0 at the equilibrium
    (0, 0) and nowhere else, while M itself is 0 at many other places."""
    def value(G, D, batch):
        return G.number ** 2 / 2 + 2 * G.number * D.number - D.number ** 2 / 2

    found = evaluate.duality_gap(Player(u), Player(v), value, lambda: range(400), [0, 1],
                                 adam(0.01))
    assert found.gap == pytest.approx(2.5 * (u * u + v * v), abs=0.02)
    assert found.current == pytest.approx(u * u / 2 + 2 * u * v - v * v / 2, abs=1e-6)
    # Control: with too few steps the opponents are not found, and the gap is underestimated.
    short = evaluate.duality_gap(Player(u), Player(v), value, lambda: range(3), [0, 1], adam(0.01))
    assert short.gap <= found.gap + 0.01 and (u == v == 0 or short.gap < 0.5 * found.gap)


WIDTH = 0.15                     # of the normals, so that hardly any number is outside [-1, 1]


class ShiftedNormal(Player):
    """A generator: WIDTH (z + number). It takes what our generators take."""

    def forward(self, z, rows, resolution, alpha):
        return WIDTH * (z[:, 0] + self.number)[:, :, None, None]           # [N, 1, 1, 1]


class LinearLogit(torch.nn.Module):
    """A discriminator: a x / WIDTH + b. The best one for two such normals is of this kind."""

    def __init__(self, a=0.0, b=0.0):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor([a, b]))

    def forward(self, images, alpha):
        return images.flatten(1) / WIDTH * self.weights[0] + self.weights[1]


def normal_batches(count, seed):
    """What `gan_value` wants: reals of N(0, WIDTH), z, no style rows, a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [(WIDTH * torch.randn(1000, 1, 1, 1, generator=generator),
             torch.randn(1000, 1, 1, generator=generator), None, k) for k in range(count)]


def value_at_alpha_1(G, D, batch):
    return evaluate.gan_value(G, D, batch, 1.0)


def jensen_shannon(shift):
    """JSD of N(0, 1) and N(shift, 1) in nats, by summing over a fine grid in float64."""
    x = np.linspace(-12, 12 + shift, 200_001)
    p, q = (np.exp(-(x - m) ** 2 / 2) / math.sqrt(2 * math.pi) for m in (0, shift))
    m = (p + q) / 2
    density = (p * np.log(np.maximum(p, 1e-300) / np.maximum(m, 1e-300))
               + q * np.log(np.maximum(q, 1e-300) / np.maximum(m, 1e-300))) / 2
    return density.sum() * (x[1] - x[0])


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_gap_of_a_gan_is_the_distance_that_gans_minimise(shift):
    """Lesson: real numbers from a normal, G's from a shifted one, D cannot tell. By Goodfellow et
    al. 2014 the worst D' brings M to -ln 2 + JSD, and no G' can move a D that says 0 to all: so DG
    is the JSD."""
    found = evaluate.duality_gap(ShiftedNormal(shift), LinearLogit(), value_at_alpha_1,
                                 lambda: normal_batches(300, 1), normal_batches(40, 2),
                                 adam(0.02))
    judge = jensen_shannon(shift)
    assert found.worst_g == pytest.approx(-math.log(2), abs=1e-6)
    # 4 standard errors for the luck of the test batches, 0.002 for a search that still jitters.
    assert abs(found.gap - judge) < 4 * found.error + 0.002
    assert 0 < found.error < 0.01
    assert (judge < 1e-6) == (shift == 0)                                  # the judge is awake
    assert shift == 0 or found.gap > 20 * found.error


def test_the_worst_generator_still_makes_pictures():
    """Lesson: where scores grow without end, so does what a G' could gain, were its images not
    clipped to [-1, 1]; clipped, the worst G' paints all of them white, and M is known."""
    D, test = LinearLogit(a=0.3), normal_batches(40, 2)
    found = evaluate.duality_gap(ShiftedNormal(0), D, value_at_alpha_1,
                                 lambda: normal_batches(300, 1), test, adam(0.2))
    real_scores = torch.cat([D(batch[0], 1.0) for batch in test]).double()
    white = D(torch.ones(1, 1, 1, 1), 1.0).double()
    judge = (real_scores.sigmoid().log().mean() + (1 - white.sigmoid()).log().mean()) / 2
    assert found.worst_g == pytest.approx(judge.item(), abs=0.02)

    def unclipped(G, D, batch):                                            # control
        fakes = G(batch[1], None, 1, 1.0)
        return -discriminator_loss(D(batch[0], 1.0), D(fakes, 1.0)) / 2
    worse = evaluate.duality_gap(ShiftedNormal(0), D, unclipped, lambda: normal_batches(300, 1),
                                 test, adam(0.2))
    assert worse.worst_g < judge - 2


@pytest.mark.parametrize("architecture, alpha", [("stylegan", 0.7), ("stylegan2", 1.0)])
def test_the_value_has_no_penalty_and_is_the_papers(architecture, alpha):
    """Lesson: M = 1/2 E log sigmoid D(x) + 1/2 E log(1 - sigmoid D(G(z))), the formula in float64;
    R1 and path length, which are in the losses of training, are not in it."""
    nets, s = networks(architecture), evaluate.Settings(16, alpha)
    batch = next(evaluate.gan_batches(data_like(16), 1, 8, 8, s, 1))
    G, D = nets["generator"], nets["discriminator"]
    ours = evaluate.gan_value(G, D, batch, alpha)
    torch.manual_seed(batch[3])
    fakes = G(batch[1], batch[2], resolution=16, alpha=alpha).clamp(-1, 1)
    real_scores, fake_scores = (D(x, alpha).double() for x in (batch[0], fakes))
    judge = (real_scores.sigmoid().log().mean() + (1 - fake_scores.sigmoid()).log().mean()) / 2
    assert ours.item() == pytest.approx(judge.item(), abs=1e-6)
    reals = batch[0].clone().requires_grad_()                              # control: they are not 0
    assert losses.r1_penalty(D(reals, alpha), reals) > 1e-3
    ws = G.styles(batch[1], batch[2], 6)
    lengths = losses.path_lengths(G.synthesis(ws), ws)
    assert losses.path_length_penalty(lengths, torch.zeros(())) > 1e-3


def data_like(resolution):
    """Something with the `__getitems__` of a dataset: random pictures."""
    class Pictures:
        def __len__(self):
            return 64

        def __getitems__(self, samples):
            rng = np.random.default_rng(list(samples))
            return torch.from_numpy(rng.integers(0, 256, (len(samples), resolution, resolution, 3),
                                                 np.uint8))
    return Pictures()


@both
def test_opponents_are_copies_that_start_from_the_current_weights(architecture):
    """Lesson: a search from scratch would measure how fast a network learns; one on the networks
    themselves (a "copy" that is none) would disturb the training."""
    nets, s = frozen(networks(architecture)), evaluate.Settings(16)
    G_now, D_now = nets["generator"], nets["discriminator"]
    before = copy.deepcopy(G_now.state_dict()), copy.deepcopy(D_now.state_dict())
    learners = []

    def optimizer(network):
        learners.append((network, copy.deepcopy(network.state_dict())))
        return adam(0.01)(network)

    batches = list(evaluate.gan_batches(data_like(16), 3, 8, 8, s, 1))
    value = value_at_alpha_1
    found = evaluate.duality_gap(G_now, D_now, value, lambda: batches, batches, optimizer)
    (D, D_start), (G, G_start) = learners
    assert same(G_start, before[0]) and same(D_start, before[1])           # the current weights
    assert G is not G_now and D is not D_now                               # copies, which moved,
    assert not same(G.state_dict(), before[0]) and not same(D.state_dict(), before[1])
    assert same(G_now.state_dict(), before[0]) and same(D_now.state_dict(), before[1])
    assert found.gap > 0
    # No steps, no opponents: the gap is exactly 0.
    assert evaluate.duality_gap(G_now, D_now, value, list, batches, adam(0.01)).gap == 0


def test_every_search_gets_a_fresh_optimizer():
    """Lesson: Adam's memory of an earlier search, or of the training, would change the next one."""
    seen = []

    def optimizer(network):
        seen.append(adam(0.01)(network))
        assert not seen[-1].state                                          # no memory yet
        return seen[-1]

    def value(G, D, batch):
        return G.number ** 2 / 2 + 2 * G.number * D.number - D.number ** 2 / 2

    G, D = Player(0.5), Player(0.5)
    gaps = [evaluate.duality_gap(G, D, value, lambda: range(20), [0, 1], optimizer)
            for _ in range(2)]
    assert gaps[0] == gaps[1]
    assert len({id(one) for one in seen}) == 4 and all(one.state for one in seen)
    assert all(len(list(o.param_groups[0]["params"])) == 1 for o in seen)


def test_both_values_are_read_with_the_same_random_numbers():
    """Lesson: the same x, z, styles and noise for both terms; what is luck in both cancels in the
    difference, and the standard error says what is left."""
    nets, read, s = networks(), [], evaluate.Settings(16)
    G, D = nets["generator"], nets["discriminator"]

    def value(G, D, batch):
        if not torch.is_grad_enabled():
            read.append(batch[3])                              # the seed is the batch's name
        return evaluate.gan_value(G, D, batch, 1.0)

    adversary = list(evaluate.gan_batches(data_like(16), 5, 8, 8, s, 1))
    test = list(evaluate.gan_batches(data_like(16), 12, 8, 8, s, 2))
    learned = {}

    def keep(network):
        learned[type(network).__name__] = network
        return adam(0.003)(network)

    found = evaluate.duality_gap(G, D, value, lambda: adversary, test, keep)
    assert read == [batch[3] for batch in test for _ in range(3)]
    assert len(set(read)) == 12 and not set(read) & {batch[3] for batch in adversary}
    # The noise of a batch is its own: without the seed in it, each reading would draw another.
    with torch.no_grad():
        first, second = (evaluate.gan_value(G, D, test[0], 1.0) for _ in "12")
        other = evaluate.gan_value(G, D, (*test[0][:3], 999), 1.0)
    assert first == second != other                                        # `other` is the control
    # The standard error, and that pairing makes it smaller: the same opponents, read on batches
    # that do not belong together.
    with torch.no_grad():
        upper = torch.stack([value(G, learned["Discriminator"], b) for b in test]).double()
        lower = torch.stack([value(learned["Generator"], D, b) for b in test]).double()
    judge = (upper - lower).std() / math.sqrt(12)
    assert found.error == pytest.approx(judge.item(), rel=1e-3)
    unpaired = math.sqrt((upper.var() + lower.var()).item() / 12)
    assert found.error < unpaired


@pytest.mark.parametrize("architecture, resolution, alpha", [
    ("stylegan", 4, 1.0), ("stylegan", 8, 0.3), ("stylegan", 16, 1.0), ("stylegan2", 16, 1.0)])
def test_the_gap_is_measured_at_every_resolution(faces, architecture, resolution, alpha):
    """Lesson: also in the middle of a fade, with the reals as D saw them in training. It says what
    it cost, and the same call gives the same number."""
    nets = networks(architecture)
    reals = {"adversary": faces(resolution, 0, 100), "test": faces(resolution, 100, 200)}
    s = evaluate.Settings(resolution, alpha, dg_steps=4, dg_batch=8)
    (record,), (again,), (other,) = (evaluate.evaluate(("duality_gap",), nets, reals, one)
                                     for one in (s, s, s._replace(seed=1)))
    assert record["test_images"] == 96 and record["faded"] == (alpha < 1)
    assert record["images_seen"] == 4 * 4 * 8 + 6 * 96 and record["seconds"] > 0
    assert record["value"] == record["worst_d"] - record["worst_g"] > 0 and record["error"] > 0
    assert again["value"] == record["value"] and again["error"] == record["error"]
    assert other["value"] != record["value"]                               # control


@both
def test_the_gap_is_that_of_the_float32_networks(faces, architecture):
    """Lesson: bfloat16 has 3 digits; with it the gap would also measure rounding. --precision is
    for training, and measuring leaves it as it was."""
    reals = {"adversary": faces(16, 0, 64), "test": faces(16, 64, 128)}
    s, found = evaluate.Settings(16, dg_steps=3, dg_batch=8), []
    batch = next(evaluate.gan_batches(data_like(16), 1, 8, 8, s, 1))
    for precision in ("fp32", "bf16"):
        nets = networks(architecture)
        G, D = nets["generator"], nets["discriminator"]
        exact = evaluate.gan_value(G, D, batch, 1.0)
        machine.set_precision(G, D, precision)
        found.append(evaluate.evaluate(("duality_gap",), nets, reals, s)[0]["value"])
        rounded = evaluate.gan_value(G, D, batch, 1.0)
    assert found[0] == found[1]
    assert rounded != exact                                    # control; the run keeps its hooks


def test_a_network_with_a_limit_is_measured_with_it():
    """Lesson: files of StyleGAN2-ADA ask for all features to be cut off ("conv_clamp"). That is a
    part of the network, unlike the hooks of --precision and --compile."""
    nets = networks("stylegan2", conv_clamp=0.1)
    G, D = nets["generator"], nets["discriminator"]
    z, images = torch.randn(2, 8), torch.rand(2, 3, 16, 16) * 2 - 1
    exact = G(z, noise_mode="const"), D(images)
    machine.set_precision(G, D, "bf16")
    judged = frozen(nets)
    assert torch.equal(judged["generator"](z, noise_mode="const"), exact[0])
    assert torch.equal(judged["discriminator"](images), exact[1])
    assert not torch.equal(G(z, noise_mode="const"), exact[0])             # control: bfloat16
    free = frozen(networks("stylegan2"))                                   # control: no limit
    assert not torch.allclose(free["generator"](z, noise_mode="const"), exact[0], atol=1e-3)
    assert not torch.allclose(free["discriminator"](images), exact[1], atol=1e-3)


def test_opponents_learn_from_one_part_and_are_read_on_another(faces):
    """Lesson: with few pictures a D' learns them by heart; read on the same ones, that would look
    like a flaw of G."""
    asked = {}

    class Watched:
        def __init__(self, name, dataset):
            self.name, self.dataset = name, dataset

        def __len__(self):
            return len(self.dataset)

        def __getitems__(self, samples):
            asked.setdefault(self.name, []).append(samples)
            return self.dataset.__getitems__(samples)

    nets, s = frozen(networks()), evaluate.Settings(8, dg_steps=3, dg_batch=8)
    reals = {"adversary": Watched("adversary", faces(8, 0, 64)),
             "test": Watched("test", faces(8, 64, 128))}
    evaluate.measure_duality_gap(nets, reals, s)
    assert len(asked["adversary"]) == 6 and len(asked["test"]) == 8        # 3 steps for each player
    # Adam is that of training, but for the rate, which is the run's.
    judge = train.new_adam(nets["discriminator"]).defaults
    with pytest.MonkeyPatch.context() as patch:
        made = []
        patch.setattr(evaluate, "duality_gap", lambda *a: made.append(a[5](nets["generator"])) or (
            evaluate.Gap(1.0, 0.1, 0.0, 0.0, 0.0)))
        evaluate.measure_duality_gap(nets, reals, s._replace(learning_rate=0.007))
    for key in ("betas", "eps", "weight_decay", "amsgrad"):
        assert made[0].defaults[key] == judge[key]
    assert made[0].defaults["lr"] == 0.007


def test_the_gap_uses_the_settings_of_the_run():
    """Lesson: the game is the one that was trained: its batch, learning rate, styles and how often
    they are mixed, at this resolution; reals are faded while the networks are."""
    run = dict(batch="4:64,8:32", accumulate="4:1,8:2", learning_rate="4:0.002,8:0.004",
               styles_to_mix=3, mixing_probability=0.25)
    s = evaluate.settings_of(run, 8, 1.0, CPU)
    assert (s.dg_batch, s.learning_rate, s.styles, s.mixing) == (16, 0.004, 3, 0.25)
    assert evaluate.settings_of(run, 4, 1.0, CPU, processes=2).dg_batch == 32
    assert evaluate.settings_of(run, 8, 1.0, CPU, dg_batch=12).dg_batch == 12
    assert evaluate.settings_of({**run, "batch": "2"}, 8, 1.0, CPU).dg_batch == 4      # no fewer
    assert evaluate.settings_of({}, 8, 1.0, CPU)[-4:] == (16, 0.001, 2, 0.9)
    tables = {key: options.read_table(value) if key != "styles_to_mix" else value
              for key, value in run.items() if isinstance(value, str)}
    assert evaluate.settings_of({**run, **tables}, 8, 1.0, CPU) == s       # as in training
    # What becomes of them: 3 styles, mixed in a quarter of the images.
    _, z, rows, _ = next(evaluate.gan_batches(data_like(8), 1, 400, 5, s, 1))
    assert z.shape == (400, 3, 5) and set(rows.unique().tolist()) == {0, 1, 2}
    mixed = (rows != rows[:, :1]).any(dim=1).float().mean().item()
    assert mixed == pytest.approx(0.25, abs=0.07)              # 3 standard errors of 400 images
    pixels = data_like(8).__getitems__(range(4))
    for alpha in (1.0, 0.25):
        reals = next(evaluate.gan_batches(data_like(8), 1, 4, 5, s._replace(alpha=alpha), 1))[0]
        assert torch.equal(reals, data.fade_reals(data.to_images(pixels), alpha))
        assert torch.equal(reals, data.to_images(pixels)) == (alpha == 1)  # control


# ---- 2. clouds of features ----


@needs_fidelity
def test_the_formulas_agree_with_the_package():
    """Lesson: FID, KID, precision, recall and the inception score are formulas; the package with
    which others compute them makes the same numbers of the same features."""
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
    rng = np.random.default_rng(0)
    fakes = torch.from_numpy(rng.normal(0.3, 1.2, (400, 5)) @ rng.normal(size=(5, 5)))
    reals = torch.from_numpy(rng.normal(0.0, 1.0, (500, 5)))
    logits = torch.from_numpy(rng.normal(0, 2, (400, 7)))

    judge = metric_fid.fid_statistics_to_metric(
        *map(metric_fid.fid_features_to_statistics, (fakes, reals)), False)
    ours = evaluate.fid(fakes, reals)
    assert ours == pytest.approx(judge["frechet_inception_distance"], rel=1e-9) and ours > 1

    judge = metric_kid.kid_features_to_metric(
        fakes, reals, kid_subset_size=200, kid_subsets=100, rng_seed=3, verbose=False,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1)
    ours = evaluate.kid_of_subsets(fakes, reals, 3)
    assert ours == pytest.approx(tuple(judge.values()), rel=1e-9) and ours[0] > 3 * ours[1] > 0

    judge = metric_prc.prc_features_to_metric(fakes, reals, prc_neighborhood=3, prc_batch_size=100,
                                              save_cpu_ram=True, verbose=False)
    ours = evaluate.precision_recall(fakes, reals)
    assert ours == pytest.approx((judge["precision"], judge["recall"]), abs=1e-6)
    assert 0.1 < min(ours) < max(ours) < 0.95

    judge = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert evaluate.inception_score(logits) == pytest.approx(tuple(judge.values()), rel=1e-9)


def test_fid_of_two_gaussians_is_known():
    """Lesson: in one dimension FID is (difference of means)^2 + (difference of deviations)^2; and
    it stays right where features are constant, so that their covariance has no inverse."""
    points = torch.linspace(-1, 1, 500, dtype=torch.float64)[:, None]
    deviation = points.std().item()
    assert evaluate.fid(3 * points + 2, points) == pytest.approx(4 + (2 * deviation) ** 2)
    more = torch.cat([points, torch.ones(500, 3, dtype=torch.float64)], dim=1)
    assert evaluate.fid(3 * more, more) == pytest.approx(4 * 3 + (2 * deviation) ** 2)
    assert evaluate.fid(more, more) == pytest.approx(0, abs=1e-12)


def test_precision_and_recall_tell_which_is_missing():
    """Lesson: fakes that all lie in one of two clusters of reals are precise and miss half; fakes
    that are spread over nowhere, too, cover all and are imprecise."""
    torch.manual_seed(1)
    reals = torch.randn(400, 4) + 20 * (torch.arange(400) % 2)[:, None]
    one_cluster = torch.randn(400, 4)
    strays = torch.where(torch.rand(400, 1) < 0.5, torch.randn(400, 4) + 100, torch.cat(
        [torch.randn(200, 4), torch.randn(200, 4) + 20]))
    for fakes, precision, recall in ((one_cluster, 0.9, 0.45), (strays, 0.5, 0.9)):
        assert evaluate.precision_recall(fakes, reals) == pytest.approx((precision, recall),
                                                                        abs=0.12)


def test_kid_is_not_biased_and_fid_is():
    """Lesson: two samples of one distribution: KID is 0 within its spread at any number of images.
    FID is far above 0, and the fewer the images, the farther. Hence the sizes asked for."""
    found = {}
    for n in (100, 1000):
        torch.manual_seed(n)
        numbers = evaluate.compare(("fid", "kid"), torch.randn(n, 64), torch.randn(n, 64), None)
        assert abs(numbers["KID"][0]) < 2 * numbers["KID"][1]
        found[n] = numbers["FID"][0]
    assert found[100] > 5 * found[1000] > 5


def test_the_inception_score_of_known_logits():
    """Lesson: images that are each surely one of k classes, all alike often, score k; images that
    look like nothing in particular score 1."""
    sure = 50 * torch.eye(7)[torch.arange(700) % 7]
    assert evaluate.inception_score(sure) == pytest.approx((7, 0), abs=1e-9)
    assert evaluate.inception_score(torch.zeros(700, 7)) == pytest.approx((1, 0), abs=1e-9)


def test_reals_are_faded_while_the_network_is(faces):
    """Lesson: in the middle of a fade the fakes are blurred; sharp reals would be another goal than
    that of training."""
    dataset, seen = faces(16, 0, 20), []
    network = PIXELS._replace(compute=lambda images: seen.append(images) or mean_colours(images))
    for alpha in (1.0, 0.25):
        seen.clear()
        measuring.real_features(network, dataset, 20, 20, CPU, alpha, "no cache" * (alpha < 1)
                                 or str(pathlib.Path(dataset.folder).parent / "features"))
        sharp = data.to_images(dataset.__getitems__(range(20)))
        judge = data.fade_reals(sharp, alpha)
        assert (seen[0] - judge).abs().max() < 0.51 / 127.5    # rounded to a byte
    assert (seen[0] - sharp).abs().max() > 0.1                             # control
    assert not pathlib.Path("no cache").exists()               # another alpha next time: not kept


def test_too_few_images_are_refused_or_warned_about(faces):
    """Lesson: the reason is named, and it differs from metric to metric."""
    few = {"all": faces(8, 0, 99), "adversary": faces(8, 0, 40), "test": faces(8, 0, 31)}
    with pytest.raises(UserError, match="fid: needs 100 generated and as many real .* are 99"):
        evaluate.check_sizes(("fid",), 5000, few)
    with pytest.raises(UserError, match="kid: needs 100 .* are 5"):
        evaluate.check_sizes(("kid",), 5, {})
    with pytest.raises(UserError, match="duality_gap: needs 32 .* here are 31"):
        evaluate.check_sizes(("duality_gap",), 5000, few)
    warned, = evaluate.check_sizes(("fid",), 2047, {"all": range(3000)})
    assert "biased upwards" in warned
    assert evaluate.check_sizes(("fid", "ppl"), 2048, {"all": range(2048)}) == []
    assert "not biased" in evaluate.check_sizes(("kid",), 500, {})[0]
    assert evaluate.check_sizes(("ppl", "inception_score"), 5000, few) == []


def test_only_inception_gives_a_fid():
    """Lesson: a distance between other features is another number, and gets another name."""
    names = {name: evaluate.full_name(name, "EffLite0") for name in evaluate.RESULTS}
    assert names == {
        "duality_gap": "duality_gap", "FID": "FD-EffLite0", "KID": "KID-EffLite0",
        "Precision": "Precision-EffLite0", "Recall": "Recall-EffLite0", "IS": "IS-EffLite0",
        **{f"Leak-{name}": f"Leak-EffLite0-{name}" for name in ("colour", "translation", "cutout")},
        "PPL-z": "PPL-EffLite0-z", "PPL-w": "PPL-EffLite0-w"}
    assert [evaluate.full_name(name, "") for name in ("FID", "Precision", "PPL-w")] == [
        "FID", "Precision-Inception", "PPL-w"]


def test_real_features_are_cached_by_content_and_options(tmp_path):
    """Lesson: the second evaluation computes only the fakes. Another picture, size, number, seed,
    flip or network is another question, and so is another size at which all were packed; a damaged
    file is no answer."""
    for k in range(12):
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[:, :8, 0] = 20 * k                             # left and right differ: flips show
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    calls = []

    def compute(images):
        calls.append(len(images))
        return mean_colours(images)

    def features_of(resolution=8, seed=0, network="a", n=10, flip=True, packed=16):
        source = pictures.find_pictures(tmp_path)
        folder = pictures.pack_pictures(source, packed, tmp_path / "packed", report=str)
        dataset = data.PictureDataset(folder, source, resolution, seed, flip)
        one = PIXELS._replace(compute=compute, describe={"features": network})
        return measuring.real_features(one, dataset, n, 32, CPU, 1.0, tmp_path / "kept")

    first = features_of()
    assert first.shape == (10, 48) and sum(calls) == 10
    assert torch.equal(features_of(), first)
    assert sum(calls) == 10
    for other in (dict(seed=1), dict(resolution=16), dict(n=11), dict(network="b"),
                  dict(flip=False), dict(packed=8)):
        before, found = sum(calls), features_of(**other)
        assert sum(calls) > before, other
        if "seed" in other or "flip" in other:                 # and the answer is another
            assert not torch.equal(found, first)
    before = sum(calls)
    Image.new("RGB", (16, 16), "white").save(tmp_path / "3.png", compress_level=0)
    changed = features_of()
    assert sum(calls) == before + 10 and not torch.equal(changed, first)
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(features_of(), changed) and sum(calls) == before + 20
    assert not [p for p in (tmp_path / "kept").iterdir() if "tmp" in p.name]


@needs_efficientnet
def test_damaged_pictures_rank_as_expected():
    """Lesson: four rows of the table at the top of evaluate.py, with 100 pictures against 100: blur
    and JPEG raise FD and KID and lower precision, the stronger damage more; the same pictures again
    and again keep their quality, which recall sees and KID hardly. (Of every second
    feature, since roots of 1280 x 1280 matrices take seconds.)"""
    network = features.efficientnet_lite0(CPU)
    painted = [paint_face(k, 64) for k in (*range(100), *range(500, 600))]

    def jpeg(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=15)
        return Image.open(file).convert("RGB")

    def points(pictures):
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        batches = data.to_images(pixels).split(50)
        return features.compute_features(network, batches, len(batches), "")[:, ::2]

    real, other = points(painted[:100]), points(painted[100:])
    blur = ImageFilter.GaussianBlur(0.5)
    damaged = {"nothing": other, "repeated": other[torch.arange(100) % 30],
               "blur": points(picture.filter(blur) for picture in painted[100:]),
               "JPEG": points(map(jpeg, painted[100:]))}
    fd, kid, spread, precision, recall = {}, {}, {}, {}, {}
    for name, fakes in damaged.items():
        found = evaluate.compare(("fid", "kid", "precision_recall"), fakes, real, None)
        fd[name], (kid[name], spread[name]) = found["FID"][0], found["KID"]
        precision[name], recall[name] = found["Precision"][0], found["Recall"][0]
    for metric in (fd, kid):
        assert metric["nothing"] < metric["blur"] < metric["JPEG"]
    assert precision["nothing"] > precision["blur"] > 0.5 and precision["JPEG"] < 0.1
    assert min(recall["nothing"], recall["blur"]) > 0.8 and recall["JPEG"] < 0.3
    assert abs(kid["nothing"]) < 2 * spread["nothing"]
    # The missing pictures: recall is halved, KID moves less than for a blur of half a pixel, and
    # precision has nothing to complain of.
    assert recall["repeated"] < 0.6
    assert kid["repeated"] < kid["blur"] and precision["repeated"] > 0.7


# ---- 3. perceptual path length ----


def test_slerp_walks_at_constant_speed():
    torch.manual_seed(3)
    a, b = torch.randn(5, 16).double(), torch.randn(5, 16).double()
    angle = torch.acos((F.normalize(a) * F.normalize(b)).sum(1))
    assert torch.allclose(evaluate.slerp(a, b, torch.zeros(5, 1)), F.normalize(a))
    assert torch.allclose(evaluate.slerp(a, b, torch.ones(5, 1)), F.normalize(b))
    for t in (0.0, 0.3, 0.9):
        here, there = (evaluate.slerp(a, b, torch.full((5, 1), x)) for x in (t, t + 0.1))
        assert torch.allclose(here.norm(dim=1), torch.ones(5).double())
        assert torch.allclose(torch.acos((here * there).sum(1)), 0.1 * angle)


@pytest.mark.parametrize("space", ["z", "w"])
def test_path_lengths_of_a_generator_with_a_known_one(space):
    """Lesson: f(z) = 3 z on the sphere, pictures = w, d = |difference|^2. In w a step of the line
    from 3 a to 3 b has d / epsilon^2 = 9 |a - b|^2; in z, 9 angle^2. Both expectations are taken
    over the same draws by a loop."""
    dimension, n = 6, 300
    mapping = lambda z: 3 * F.normalize(z.double())                        # noqa: E731
    synthesis = lambda w: w.double()                                       # noqa: E731
    distance = lambda a, b: (a - b).square().sum(1)                        # noqa: E731
    ours, error = evaluate.path_length(mapping, synthesis, dimension, distance, space, n, 50, 4,
                                       CPU)
    stream, lengths = np.random.RandomState(4), []
    for _ in range(n // 50):
        z1, z2 = (stream.standard_normal((50, dimension)) for _ in "12")
        stream.random_sample((50, 1))
        for a, b in zip(z1, z2):
            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
            lengths.append(9 * (np.arccos(a @ b) ** 2 if space == "z" else ((a - b) ** 2).sum()))
    lengths = np.sort(lengths)[2:-2]                           # 1 % at either end of 300
    assert ours == pytest.approx(lengths.mean(), rel=0.01)     # float32 z, steps of 1e-4
    assert error == pytest.approx(lengths.std() / math.sqrt(len(lengths)), rel=0.05)
    with pytest.raises(UserError, match="not finite"):
        evaluate.path_length(mapping, synthesis, dimension, lambda a, b: a[:, 0] / 0, space, n, 50,
                             4, CPU)


@needs_efficientnet
def test_float32_is_exact_enough_for_steps_of_one_ten_thousandth(monkeypatch):
    """Lesson: the distance of two pictures that hardly differ is a small difference of large
    numbers; with steps ten times as long the path length is the same, so rounding does not matter.
    (It would in TF32: the control rounds each picture to its 10 bits.)"""
    network, G = features.efficientnet_lite0(CPU), frozen(networks())["generator_ema"]
    s, found = evaluate.Settings(16, images=4, batch=4), {}

    def rounded(a, b):
        return network.distance(*((x * 1024).round() / 1024 for x in (a, b)))

    for name, epsilon, distance in (("small", 1e-4, network.distance),
                                    ("large", 1e-3, network.distance), ("rounded", 1e-4, rounded)):
        monkeypatch.setattr(evaluate, "EPSILON", epsilon)
        torch.manual_seed(1)
        lengths, _ = evaluate.measure_ppl(G, s, network._replace(distance=distance))
        found[name] = [value for value, _ in lengths.values()]
    assert found["small"] == pytest.approx(found["large"], rel=0.1) and min(found["small"]) > 0
    assert found["rounded"][0] > 2 * found["small"][0]                     # control


def test_ppl_sees_256_pixels_of_the_face(monkeypatch):
    """Lesson: a distance network is made for pictures of some 200 pixels. At 512 px it is shown
    every 2 x 2 averaged; with --ppl-crop the middle of FFHQ's pictures, as the official code."""
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(evaluate.as_ppl_sees(images, True), images[:, :, 3:7, 2:6])
    assert torch.equal(evaluate.as_ppl_sees(images, False), images)
    large = torch.randn(1, 3, 512, 512)
    assert torch.equal(evaluate.as_ppl_sees(large, False), F.avg_pool2d(large, 2))
    assert torch.equal(evaluate.as_ppl_sees(large, True), large[:, :, 192:448, 128:384])
    # And that is what reaches the distance.
    small = models.make_generator({**SETTINGS, "resolution": 512, "channel_base": 256,
                                   "channel_max": 1}).eval()
    shapes = []
    network = PIXELS._replace(distance=lambda a, b: shapes.append(a.shape) or (a - b).square().mean(
        (1, 2, 3)))
    made = []
    monkeypatch.setattr(evaluate, "as_ppl_sees", lambda images, crop, see=evaluate.as_ppl_sees:
                        made.append((images.shape[2], crop)) or see(images, crop))
    for crop in (False, True):
        evaluate.measure_ppl(small, evaluate.Settings(512, images=2, batch=2, ppl_crop=crop),
                             network)
    assert shapes == [(2, 3, 256, 256)] * 4
    assert made == [(512, False)] * 2 + [(512, True)] * 2


@both
def test_ppl_draws_noise_as_the_official_code_does(architecture):
    """Lesson: new noise maps for every batch of paths, the same for both ends and all images of it.
    With other noise at the two ends, PPL would measure the noise."""
    nets, seen = networks(architecture), []
    G = nets["generator_ema"]
    before = copy.deepcopy(G.state_dict())
    hooked = measuring.frozen_copy(G)
    name, layer = next((name, module) for name, module in hooked.named_modules()
                       if isinstance(module, NoiseInput))
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(
        (module.const.clone(), inputs[1])))
    evaluate.measure_ppl(hooked, evaluate.Settings(16, images=6, batch=2), PIXELS)
    assert len(seen) == 6                                      # 3 batches in z, 3 in w
    assert all(mode == "const" for _, mode in seen)            # one map for all images and ends
    assert len({tuple(noise.flatten().tolist()) for noise, _ in seen}) == 6
    # evaluate() measures a copy: the run's own maps stay.
    evaluate.evaluate(("ppl",), nets, {}, evaluate.Settings(16, images=2), PIXELS)
    assert same(G.state_dict(), before)
    assert not torch.equal(seen[0][0], before[f"{name}.const"])            # control


def test_path_lengths_need_no_float64_on_the_device():
    """Lesson: MPS has none. z, t and the steps are made on the CPU, and what comes from the device
    goes to the CPU before it is widened."""
    from test_features import OnMPS

    def on_device(function):
        return lambda *tensors: function(*tensors).as_subclass(OnMPS)

    for space in "zw":
        value, _ = evaluate.path_length(
            on_device(lambda z: 3 * z), on_device(lambda w: w),
            6, on_device(lambda a, b: (a - b).square().sum(1)), space, 4, 2, 0, CPU)
        assert value > 0


# ---- 4. measuring ----


def run_options(**changed):
    """What train.py would hand to `prepare`."""
    return argparse.Namespace(**{**dict(
        evaluate_metrics="duality_gap", evaluate_features="inception", evaluate_images=120,
        batch=options.read_table("4:32,8:16", int), accumulate=options.read_table("2", int),
        learning_rate=options.read_table("0.002"), styles_to_mix=2, mixing_probability=0.9, seed=0,
        initial_resolution=4, allow_upsampling=False, cache="cache", resolution=16, device=CPU),
        **changed})


class RunPictures:
    """As stylegan_dataloader.Pictures: the parts of 400 faces."""

    def __init__(self, faces):
        self.faces = faces

    def dataset(self, resolution, part):
        return self.faces(resolution, *{"all": (0, 400), "adversary": (200, 300),
                                        "test": (300, 400)}[part])


def state_of(nets):
    """All that measuring might change, by value."""
    return ([copy.deepcopy(net.state_dict()) for net in nets.values()],
            [[module.training for module in net.modules()] for net in nets.values()],
            [[(p.requires_grad, p.grad) for p in net.parameters()] for net in nets.values()],
            [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
            torch.get_rng_state().tolist())


def assert_same_state(before, after):
    assert all(same(a, b) for a, b in zip(before[0], after[0]))
    assert before[1:] == after[1:]


@pytest.fixture
def tf32():
    """As --precision tf32 would have it, and more: products, too."""
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(kept[0])
    torch.backends.cudnn.allow_tf32 = kept[1]


def test_all_is_measured_in_float32_and_all_is_put_back(faces, tmp_path, monkeypatch, tf32):
    """Lesson: TF32 has 3 digits, and a step of PPL needs 6. It is off inside of every network that
    is asked: for reals, for fakes, for PPL and for both searches of the gap. And a run that is
    measured on its way ends with the bits of one that is not (tests/test_run.py)."""
    nets, seen = networks(), []
    nets["generator"].train()

    def look(what):
        seen.append((what, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    def compute(images):
        look(len(images))
        return mean_colours(images)

    def distance(a, b):
        look("ppl")
        return PIXELS.distance(a, b)

    monkeypatch.setattr(evaluate, "gan_value", lambda *a, value=evaluate.gan_value, **k:
                        look("gap") or value(*a, **k))
    network = PIXELS._replace(compute=compute, distance=distance)
    reals = {"all": faces(8, 0, 200), "adversary": faces(8, 200, 300), "test": faces(8, 300, 400)}
    s = evaluate.Settings(8, images=120, batch=60, dg_steps=2, dg_batch=8)
    before = state_of(nets)
    for metrics in (("duality_gap",), ("kid",), ("ppl",)):
        assert evaluate.evaluate(metrics, nets, reals, s, network, tmp_path)
    assert_same_state(before, state_of(nets))
    assert {what for what, _, _ in seen} == {"gap", 60, "ppl"}
    assert sum(what == 60 for what, _, _ in seen) == 4         # two batches of fakes, two of reals
    assert all(flags == ("highest", False) for _, *flags in seen for flags in [tuple(flags)])
    torch.randn(1)                                                         # control
    with pytest.raises(AssertionError):
        assert_same_state(before, state_of(nets))


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device"), MemoryError(), np.linalg.LinAlgError("not converged"),
    RuntimeError("CUDA out of memory"), KeyError("bug"), UserError("not finite")],
    ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("full", [False, True])
def test_whatever_goes_wrong_training_goes_on_with_the_same_bits(faces, tmp_path, monkeypatch,
                                                                 capsys, tf32, error, full):
    """Lesson: one line on stderr and a file with the traceback; the next metric has its turn. A
    disk too full for that file ends nothing either."""
    nets = networks()
    nets["generator"].train()
    measure = evaluate.prepare(
        run_options(evaluate_metrics="duality_gap,ppl", evaluate_features="pixels"),
        RunPictures(faces), 1, *nets.values())

    def broken(*arguments):
        torch.randn(3)
        raise error

    monkeypatch.setattr(evaluate, "measure_duality_gap", broken)
    before = state_of(nets)
    folder = tmp_path / "missing" if full else tmp_path
    capsys.readouterr()
    records = list(measure(8, 0.5, 0.5, 1234, folder))
    assert [record["metric"] for record in records] == ["PPL-pixels-z", "PPL-pixels-w"]
    assert all(record["nimg"] == 1234 and record["alpha"] == 0.5 for record in records)
    assert_same_state(before, state_of(nets))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "duality_gap not measured at 1.234 kimg" in said
    assert (str(error.args[-1]) if error.args else "MemoryError") in said
    if not full:
        text = (tmp_path / "measure-error-1234.txt").read_text()
        assert "Traceback" in text and type(error).__name__ in text and "in broken" in text


@pytest.fixture(autouse=True)
def pixels_by_name(monkeypatch):
    """--features pixels, for this file."""
    monkeypatch.setattr(evaluate, "load_features", lambda which, *a, **k: PIXELS if (
        which == "pixels") else features.load_features(which, *a, **k))


def test_training_is_measured_with_the_runs_settings(faces, tmp_path, capsys, monkeypatch):
    """Lesson: as many images at once as the run holds at its final resolution, at every resolution:
    they fit, and the numbers stay comparable. The gap uses the batch of the resolution."""
    nets = networks()
    monkeypatch.setattr(evaluate, "duality_gap", lambda *a: evaluate.Gap(1.0, 0.1, 0.0, 0.0, 0.0))
    measure = evaluate.prepare(
        run_options(evaluate_metrics="duality_gap,kid", evaluate_features="pixels", seed=3,
                    cache=tmp_path), RunPictures(faces), 2, *nets.values())
    assert "note: kid of 120 images, fewer than 1000" in capsys.readouterr().err
    gap, kid = measure(4, 1.0, 1.0, 500, tmp_path)
    assert (gap["dg_batch"], gap["batch"], kid["batch"], gap["seed"]) == (8, 4, 4, 3)
    assert kid["generated"] == 120 and kid["real"] == 120 and kid["faded"] is False
    # While a block is morphed, nothing is faded, and the record says how far the block has come.
    gap, kid = measure(8, 1.0, 0.3, 500, tmp_path)
    assert kid["alpha"] == 0.3 and kid["faded"] is False
    gap, kid = measure(8, 0.3, 0.3, 500, tmp_path)
    assert kid["alpha"] == 0.3 and kid["faded"] is True
    # LPIPS sees nothing below 16 px; that is said once, and not at each measurement.
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "check", lambda *_: [])
        patch.setattr(evaluate, "load_features", lambda *_, **__: features.Features(
            "", None, None, lambda a, b: pytest.fail("looked"), {}))
        measure = evaluate.prepare(run_options(evaluate_metrics="ppl"), RunPictures(faces), 1,
                                   *nets.values())
    assert "note: ppl begins at 16 px" in capsys.readouterr().err
    assert list(measure(8, 1.0, 1.0, 500, tmp_path)) == [] and capsys.readouterr().err == ""
    with pytest.raises(UserError, match="--evaluate-metrics: 'beauty' is none of"):
        evaluate.prepare(run_options(evaluate_metrics="beauty"), None, 1, *nets.values())
    with pytest.raises(UserError, match="kid: needs 100"):
        evaluate.prepare(run_options(evaluate_metrics="kid", evaluate_features="pixels",
                                     evaluate_images=7), None, 1, *nets.values())


# ---- 5. which pictures ----


def test_unseen_pictures_are_found_or_asked_for():
    """Lesson: a gap measured on pictures that D was trained with would flatter the networks."""
    split, x, y = {"seed": 3, "images": 500}, a_source("x"), a_source("y")
    held_out = {"progress": {"pictures": "x", "split": split}}
    adversary, test, which = measuring.find_parts(held_out, 500, x, None)
    judge = pictures.split_pictures(500, 3)
    assert np.array_equal(adversary, judge["adversary"]) and np.array_equal(test, judge["test"])
    assert which == ""
    # Other pictures: all of them are unseen.
    for checkpoint in (held_out, {"progress": {"pictures": "x"}}, {}):
        adversary, test, which = measuring.find_parts(checkpoint, 101, y, None)
        assert sorted([*adversary, *test]) == list(range(101)) and abs(len(adversary) - 50) <= 1
        assert which == "101 of y"
    # Its own pictures, all of them used.
    with pytest.raises(UserError, match="--data another folder.*--evaluate-kimg"):
        measuring.find_parts({"progress": {"pictures": "x"}}, 500, x, None)
    # As many pictures as then, or nobody knows which were held out.
    with pytest.raises(UserError, match="499 are usable.*500 were"):
        measuring.find_parts(held_out, 499, x, None)


def a_source(stamp):
    return pictures.Source("folder", stamp, [], stamp)


def test_no_picture_that_was_trained_on_is_taken_for_unseen():
    """Lesson: copied, renamed, zipped or mixed with new ones, a picture that D has learned from is
    known by its content. Of a checkpoint that an earlier version wrote, which knew no contents, the
    run's own pictures are refused once they have other times."""
    then, copied = torch.arange(1000, 1500), a_source("new times")
    split = {"seed": 3, "images": 500}
    parts, progress = pictures.split_pictures(500, 3), {"pictures": "old", "contents": then}
    whole, held_out = ({"progress": {**progress, "split": which}} for which in (None, split))
    # The same again, with new times.
    adversary, test, which = measuring.find_parts(held_out, 500, copied, then)
    assert np.array_equal(adversary, parts["adversary"]) and np.array_equal(test, parts["test"])
    with pytest.raises(UserError, match="trained on all of these pictures"):
        measuring.find_parts(whole, 500, copied, then)
    # In another order, with 40 new ones between them.
    mixed = torch.cat([then[250:], torch.arange(40), then[:250]])
    for checkpoint, unseen in (
            (whole, set(range(40))),
            (held_out, {*range(40), *then[np.r_[parts["adversary"], parts["test"]]].tolist()})):
        adversary, test, which = measuring.find_parts(checkpoint, 540, copied, mixed)
        assert set(mixed[np.r_[adversary, test]].tolist()) == unseen
        assert abs(len(adversary) - len(test)) <= 1 and not set(adversary) & set(test)
        assert which == (f"{len(unseen)} of new times (the other {540 - len(unseen)} of 540 were "
                         f"trained on)")
    with pytest.raises(UserError, match="trained on all of these pictures"):
        measuring.find_parts(whole, 250, copied, then[250:])
    # Earlier versions.
    for old_split in (None, split):
        old = {"progress": {"pictures": "old", "split": old_split}}
        with pytest.raises(UserError, match="have changed, or were copied.*--data"):
            measuring.find_parts(old, 500, copied, then, named=False)
        assert len(measuring.find_parts(old, 500, copied, then)[0]) == 250             # control


def save_network(path, name="Flat"):
    """A TorchScript feature network."""
    class Flat(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)

    class Wide(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1).repeat(1, 100)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)         # as in features.torchscript
        torch.jit.script({"Flat": Flat, "Wide": Wide}[name]()).save(str(path))
    return path


def save_pictures(folder, n=330, side=8):
    """n pictures that differ from their mirror images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(n):
        coarse = rng.integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(coarse.repeat(side // 2, 0).repeat(side // 2, 1)).save(
            folder / f"{k}.png")
    return folder


def imported(path, **more):
    """A checkpoint with networks of 16 px, and what else it is told."""
    nets = networks()
    checkpoints.save_checkpoint(path, {
        "settings": SETTINGS, **{name: net.state_dict() for name, net in nets.items()}, **more})
    return path


PAINTED = {"options": {"data": None, "cache": "cache"},
           "progress": {"resolution": 16, "alpha": 1.0, "nimg": 5000, "phase": "stabilize",
                        "pictures": pictures.find_pictures(None).stamp, "split": None}}


def test_an_imported_network_has_no_pictures(tmp_path, capsys):
    """Lesson: painted faces are no judge of photographs. "data": None means them only where
    train.py left the stamp of its pictures; else --data is asked for."""
    for number, more in enumerate(({}, {"options": {"latent_dim": 8}}, {"options": {"data": None}},
                                   {"options": PAINTED["options"], "progress": {
                                       **PAINTED["progress"], "pictures": None}})):
        path = imported(tmp_path / f"{number}.pt", **more)
        code, line = refused(evaluate.main, [
            path, "--device", "cpu", "--metrics", "kid", "--images", 100, "--features", "pixels"],
            capsys)
        assert code == 2 and "does not say which pictures" in line and "--data" in line
    source = measuring.find_source(path, PAINTED)                         # control: train.py's own
    assert source.kind == "painted"


def test_paths_in_a_checkpoint_count_only_in_its_own_run(tmp_path, capsys):
    """Lesson: a checkpoint from a stranger may name any folder of this computer. It is looked into
    only if the run's settings.json lies beside it and says the same."""
    photos = save_pictures(tmp_path / "photos", 4)
    (tmp_path / "run").mkdir()
    options_ = {"data": str(photos), "cache": str(tmp_path / "cache")}
    checkpoint = {"options": options_, "progress": {
        **PAINTED["progress"], "pictures": pictures.find_pictures(photos).stamp}}
    path = imported(tmp_path / "run" / "checkpoint.pt", **checkpoint)
    for settings in (None, {"options": {**options_, "data": "/elsewhere"}}, {"options": 5}, []):
        if settings is not None:
            (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
        assert not measuring.in_its_own_run(path, checkpoint)
        code, line = refused(evaluate.main, [path, "--device", "cpu", "--features", "pixels",
                                             "--metrics", "kid", "--images", 100], capsys)
        assert code == 2 and repr(str(photos)) in line and "--data" in line
    (tmp_path / "run" / "settings.json").write_text(json.dumps({"options": options_}))
    assert measuring.in_its_own_run(path, checkpoint)
    assert measuring.find_source(path, checkpoint).path == str(photos)
    assert measuring.own_cache(path, checkpoint) == str(tmp_path / "cache")
    # The run has moved to another cache since: its older checkpoints are its own all the same.
    (tmp_path / "run" / "settings.json").write_text(json.dumps({
        "options": {**options_, "cache": "/faster"}}))
    assert measuring.find_source(path, checkpoint).path == str(photos)
    assert measuring.own_cache(path, checkpoint) == "/faster"
    assert measuring.own_cache(tmp_path / "copy.pt", checkpoint) is None   # control
    assert not (tmp_path / "cache").exists()


def test_what_can_be_refused_is_refused_before_pictures_are_packed(tmp_path, capsys, monkeypatch):
    """Lesson: packing may take hours and hundreds of gigabytes."""
    photos = save_pictures(tmp_path / "photos", 4)
    wide = save_network(tmp_path / "wide.pt", "Wide")
    path = imported(tmp_path / "g.pt")
    seen = imported(tmp_path / "seen.pt", progress={
        **PAINTED["progress"], "pictures": pictures.find_pictures(photos).stamp})
    whole = checkpoints.load_checkpoint(path)
    looking = tmp_path / "looking.pt"
    checkpoints.save_checkpoint(looking, {k: whole[k] for k in ("settings", "generator_ema")})
    monkeypatch.setattr(pictures, "pack_pictures", lambda *a, **k: pytest.fail("packed"))
    for model, arguments, message in (
            (path, ["--metrics", "kid", "--images", 5, "--features", "pixels"], "kid: needs 100"),
            (looking, ["--metrics", "duality_gap"], "holds no discriminator"),
            (seen, ["--metrics", "duality_gap"], "trained on all of these pictures"),
            (path, ["--metrics", "fid", "--features", wide], "76800 features, and the limit"),
            (path, ["--metrics", "inception_score", "--features", "pixels"], "names objects"),
            (path, ["--metrics", "ppl,kid", "--ppl-crop", "--weights", "x"], "no such file"),
            (path, ["--metrics", "fid,beauty"], "'beauty' is none of duality_gap, fid")):
        code, line = refused(evaluate.main, [model, "--data", photos, "--device", "cpu",
                                             "--cache", tmp_path / "cache", *arguments], capsys)
        assert code == 2 and message in line, line
    with pytest.raises(pytest.fail.Exception):                             # control
        evaluate.main([str(path), "--data", str(photos), "--device", "cpu", "--metrics", "kid",
                       "--images", "100", "--features", "pixels"])


# ---- 6. the program ----


def train_and_measure(folder, *more):
    """The folder of a run of 400 images, up to 8 px, of some pictures, measured at its end."""
    arguments = ("--resolution 8 --channel-base 32 --channel-max 8 --latent-dim 8 --style-dim 8 "
                 "--mapping-dim 8 --mapping-layers 2 --batch 8 --fade-kimg 0.1 --stabilize-kimg "
                 "0.1 --total-kimg 0.4 --tick-kimg 0.02 --checkpoint-kimg 1 --samples-kimg 1 "
                 "--learning-rate 0.002 --styles-to-mix 3 --mixing-probability 0.5 --device cpu "
                 "--workers 0 --evaluate-kimg 1 --evaluate-metrics duality_gap,kid,ppl "
                 "--evaluate-images 100 --seed 2").split()
    with pytest.MonkeyPatch.context() as patch:                # 20 steps for an opponent, not 200
        patch.setattr(evaluate, "settings_of", functools.partial(evaluate.settings_of, dg_steps=20))
        assert train.main([
            *arguments, "--out", str(folder / "run"), "--cache", str(folder / "cache"),
            "--data", str(save_pictures(folder / "photos")),
            "--evaluate-features", str(save_network(folder / "mine.pt")), *more]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_and_measure(tmp_path_factory.mktemp("run"))


@pytest.fixture
def fresh(run, tmp_path):
    """A copy of the run's folder, without metrics."""
    copied = tmp_path / "run"
    copied.mkdir()
    for name in ("checkpoint.pt", "settings.json", "log.jsonl"):
        (copied / name).write_bytes((run / name).read_bytes())
    return copied


def start(run, *arguments):
    return evaluate.main([str(word) for word in (run, "--device", "cpu", *arguments)])


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def command_of(record, run):
    """The command that repeats a line of metrics.jsonl, made of nothing but the line."""
    words = [run / record.get("checkpoint", "checkpoint.pt"), "--metrics",
             evaluate.RESULTS[record["result"]].metric]
    for key, option in (("seed", "--seed"), ("batch", "--batch"), ("psi", "--psi"),
                        ("generated", "--images"), ("paths", "--images"), ("data", "--data"),
                        ("dg_steps", "--dg-steps"), ("dg_batch", "--dg-batch"),
                        ("device", "--device")):
        if key in record:
            words += [option, record[key]]
    words += ["--no-flip"] * (record.get("flip") is False)
    words += ["--allow-upsampling"] * record.get("allow_upsampling", False)
    words += ["--ppl-crop"] * record.get("ppl_crop", False)
    if "features" in record:
        words += ["--features", run.parent / record["features"]]
    return [str(word) for word in words]


def test_a_line_of_metrics_jsonl_is_enough_to_repeat_it(run, capsys):
    """Lesson: a line says everything that changed its number, also one that was written in training
    or with unusual options."""
    measured = lines_of(run)
    assert [line["metric"] for line in measured] == ["duality_gap", "KID-mine", "PPL-mine-z",
                                                     "PPL-mine-w"]
    mine = run.parent / "mine.pt"
    for arguments in (["--metrics", "duality_gap", "--dg-steps", 3, "--no-flip", "--dg-batch", 12],
                      ["--metrics", "ppl", "--ppl-crop", "--images", 30, "--features", mine],
                      ["--metrics", "fid", "--psi", 0.5, "--images", 110, "--seed", 5,
                       "--batch", 50, "--no-flip", "--features", mine]):
        assert start(run, *arguments) == 0
    before = lines_of(run)
    for line in [before[0], before[1], before[2], *before[4:6], before[-1]]:
        assert evaluate.main(command_of(line, run)) == 0
        again = next(new for new in lines_of(run)[len(before):] if new["metric"] == line["metric"])
        before = lines_of(run)
        told = {key for key in again if key not in ("seconds", "checkpoint", "checkpoint_sha256")}
        assert {key: again[key] for key in told} == {key: line.get(key) for key in told}
    # Control: with other steps, another batch and no flips the gap is another number.
    gap = {line["dg_batch"]: line["value"] for line in before if line["metric"] == "duality_gap"}
    assert len(gap) == 2 and len(set(gap.values())) == 2
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measured))


def test_a_run_of_stylegan2_is_measured_on_its_way_and_afterwards(tmp_path):
    """Lesson: the same numbers from the same lines, since it is the same call."""
    run = train_and_measure(tmp_path, "--architecture", "stylegan2", "--channel-max", "4")
    measured = lines_of(run)
    assert [line["metric"] for line in measured] == ["duality_gap", "KID-mine", "PPL-mine-z",
                                                     "PPL-mine-w"]
    for line in measured[:3]:
        assert evaluate.main(command_of(line, run)) == 0
    again = {line["metric"]: line["value"] for line in lines_of(run)[4:]}
    assert again == {line["metric"]: line["value"] for line in measured}


@pytest.mark.parametrize("arguments, changed", [
    (["--seed", 5], "seed"), (["--psi", 0.5], "psi"), (["--images", 120], "generated"),
    (["--no-flip"], "flip"), (["--data", "OTHER"], "pictures"), (["--batch", 7], "batch")])
def test_every_setting_that_changes_a_number_is_printed(fresh, run, tmp_path, capsys, arguments,
                                                        changed):
    """Lesson: two numbers that may not be compared do not look alike."""
    arguments = [save_pictures(tmp_path / "other", 120) if word == "OTHER" else word
                 for word in arguments]
    usual = ["--features", run.parent / "mine.pt", "--images", 100, "--metrics", "kid", "--cache",
             run.parent / "cache"]
    records, said = [], []
    for more in ([], arguments):
        assert start(fresh, *usual, *more) == 0
        said.append(" ".join(capsys.readouterr().out.split()))
        records.append(lines_of(fresh)[-1])
    assert records[0]["value"] != records[1]["value"]
    assert records[0][changed] != records[1][changed]
    for record, text in zip(records, said):
        assert f"{changed} {record[changed]}" in text and f"data {record['data']}" in text
        assert "+-: the spread over random subsets" in text and record["checkpoint_sha256"] in text


def test_a_checkpoint_is_measured_explained_and_noted_down(tmp_path, capsys, monkeypatch):
    """Lesson: of painted faces there are always more than were trained on."""
    monkeypatch.setattr(measuring, "UNSEEN_FACES", 80)
    path = imported(tmp_path / "faces.pt", **PAINTED)
    (tmp_path / "metrics.jsonl").write_text('{"nimg": 8, "metr')          # a line that was cut off
    for _ in range(2):
        assert start(path, "--metrics", "duality_gap", "--dg-steps", 2, "--cache",
                     tmp_path / "cache") == 0
    said = capsys.readouterr()
    for word in ("duality_gap", "Unit: nats", "Cannot see", "dg_steps 2", "data faces-10000-10079",
                 "+-: the standard error over test batches", "after 5 kimg"):
        assert word in " ".join(said.out.split()), word
    assert "never saw are taken 80 of faces-10000-10079" in said.err
    assert "unseen 80 of faces-10000-10079" in " ".join(said.out.split())
    first, second = lines_of(tmp_path)                         # and what was cut off is gone
    del first["seconds"], second["seconds"]
    assert first == second and first["value"] > 0
    for key in ("torch torchvision numpy Pillow device tf32 pictures flip allow_upsampling styles "
                "mixing checkpoint checkpoint_sha256").split():
        assert key in first, key
    assert first["checkpoint_sha256"] == features.fingerprint_of(path) and first["tf32"] is False


def test_a_number_is_shown_even_if_it_cannot_be_written(run, fresh, capsys, monkeypatch):
    """Lesson: hours went into it. And it is shown if the next metric fails."""
    (fresh / "metrics.jsonl").mkdir()
    usual = ["--features", run.parent / "mine.pt", "--images", 100, "--metrics", "kid,ppl",
             "--cache", run.parent / "cache"]
    assert start(fresh, *usual) == 0
    said = capsys.readouterr()
    assert "KID-mine" in said.out and "metrics.jsonl cannot be written" in said.err
    # It is said before measuring, too; and a cache that takes no features is a note as well.
    monkeypatch.setattr(evaluate.os, "access", lambda path, mode: False)
    monkeypatch.setattr("workshop.figures.written", lambda path: open(path / "no" / "x", "w"))
    assert start(fresh, *usual, "--seed", 1) == 0
    said = capsys.readouterr()
    assert "KID-mine" in said.out and "the numbers will only be shown" in said.err
    assert "features-" in said.err
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, "measure_ppl", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(fresh, *usual)
    assert "KID-mine" in capsys.readouterr().out


@needs_efficientnet
def test_efficientnet_gives_numbers_of_its_own_name(fresh):
    """Lesson: the whole way with the network of our own experiments, which needs no real images for
    this score."""
    assert start(fresh, "--features", "efficientnet-lite0", "--images", 100, "--metrics",
                 "inception_score") == 0
    line, = lines_of(fresh)
    assert line["metric"] == "IS-EffLite0" and 1 < line["value"] < 1000
    assert line["features"] == "efficientnet-lite0" and "data" not in line


def test_pictures_are_measured_as_the_network_that_drew_them(run, fresh, tmp_path, capsys):
    """Lesson: a folder of PNG files gets the numbers of the network that made them, if it is
    compared with the same pictures: neither rounding to bytes nor a shuffle changes a cloud.
    Control: the real pictures, compared with themselves, are nearer."""
    net, photos = run.parent / "mine.pt", run.parent / "photos"
    words = ["--features", net, "--metrics", "fid,precision_recall", "--images", 100, "--no-flip",
             "--data", photos, "--cache", tmp_path / "cache"]
    assert start(fresh, *words) == 0
    model = morph.load_networks(fresh / "checkpoint.pt")
    s = evaluate.Settings(model.resolution, images=100)
    drawn = tmp_path / "pictures" / "drawn"
    drawn.mkdir(parents=True)
    with evaluate.on_its_own(s.seed, torch.device("cpu")):     # the same noise, too
        images = torch.cat(list(evaluate.generated_images(model.networks["generator_ema"], s)))
    for k, image in enumerate(images):
        Image.fromarray(data.to_pixels(image[None])[0].numpy()).save(drawn / f"{k}.png")
    capsys.readouterr()
    assert start(drawn, *words) == 0
    assert f"{drawn}, 8 px" in capsys.readouterr().out
    lines = lines_of(drawn.parent)
    for ours, theirs in zip(lines_of(fresh), lines, strict=True):
        assert theirs["value"] == pytest.approx(ours["value"], rel=1e-4), ours["metric"]
        assert theirs["network"] == "none: pictures" and theirs["generated"] == 100
    assert start(photos, *words) == 0                          # control
    assert lines_of(run.parent)[0]["value"] < 0.5 * lines[0]["value"]
    for more, message in ((["--metrics", "ppl"], "pictures, and ppl needs a network"),
                          (["--psi", 0.5], "pictures, and --psi needs a network")):
        code, line = refused(evaluate.main, [drawn, *map(str, words), *map(str, more)], capsys)
        assert code == 2 and message in line, line
    code, line = refused(evaluate.main, [drawn, "--features", net], capsys)
    assert code == 2 and "name those with --data" in line


def test_all_checkpoints_of_a_folder_are_measured_and_the_best_is_named(run, fresh, capsys):
    """Lesson: the last network of a run need not be its best one. Here a second one has the
    weights of a G that never learned."""
    checkpoint = torch.load(fresh / "checkpoint.pt", weights_only=True)
    G = models.make_generator(checkpoint["settings"])
    torch.save({**checkpoint, "generator_ema": G.state_dict()}, fresh / "young.pt")
    assert start(fresh, "--all", "--features", run.parent / "mine.pt", "--metrics", "fid,kid",
                 "--images", 100, "--data", run.parent / "photos") == 0
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert table[0].split() == ["kimg", "px", "FD-mine", "KID-mine"]
    rows = {row.split()[0]: float(row.split()[3]) for row in table[1:3]}
    assert set(rows) == {"checkpoint.pt", "young.pt"}
    assert table[3] == f"the best of 8 px, by FD-mine: {min(rows, key=rows.get)}"
    assert len(lines_of(fresh)) == 4
    code, line = refused(evaluate.main, [run.parent / "photos", "--all"], capsys)
    assert code == 2 and "no folder with checkpoints" in line


@pytest.mark.parametrize("arguments, message", [
    (["--images", "0"], "must be a number, 1 or more"),
    (["--features", "no/such.pt"], "no/such.pt: no such file; it is inception, efficientnet-lite0"),
    (["--features", "NET", "--weights", "x"], "only --features inception takes a file of weights"),
    (["--metrics", "duality_gap", "--data", "no/such"], "no/such: no such folder or .zip"),
    (["--metrics", "duality_gap", "--data", ""], "--data: an empty path"),
    (["--plot", "curves.txt"], "is drawn as .png, .svg, .pdf"),
    (["--metrics", "ppl", "--features", "NET", "--device", "toaster"], "--device toaster"),
])
def test_bad_use_gets_one_line(run, capsys, arguments, message):
    """Lesson: and nothing is written."""
    before = sorted(run.iterdir())
    net = run.parent / "mine.pt"
    code, line = refused(evaluate.main, [run, *(net if word == "NET" else word
                                                for word in arguments)], capsys)
    assert code == 2 and message in line, line
    assert sorted(run.iterdir()) == before


def test_the_runs_cache_serves_the_run_only(run, fresh, tmp_path, monkeypatch):
    """Lesson: from any folder, what train.py has packed is found again; a copy of the checkpoint
    elsewhere packs into --cache."""
    used = []
    monkeypatch.setattr(evaluate, "find_reals", lambda *a: used.append(a[-1]) or 1 / 0)
    monkeypatch.chdir(tmp_path)
    usual = ["--features", run.parent / "mine.pt", "--images", 100, "--metrics", "kid"]
    for folder, more in ((run, []), (run, ["--cache", "mine"]), (fresh, [])):
        if folder == fresh:
            (fresh / "settings.json").unlink()
        with pytest.raises(ZeroDivisionError):
            start(folder, *usual, *more)
    assert used == [str(run.parent / "cache"), "mine", "cache"]


def test_help_teaches_and_importing_is_light(tmp_path, capsys):
    """Lesson: --help says what each metric measures and needs; an import leaves no file and loads
    no package that only some metrics need."""
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for metric, row in evaluate.METRICS.items():
        needs_ = row.needs or f"{row.fewest} images; {row.advised} or more"
        assert f"{metric}: {row.measures}. Needs: {needs_}" in told
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); import evaluate; "
            f"print([m for m in ('torch_fidelity', 'torchvision', 'matplotlib', 'tensorboard', "
            f"'train') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                         text=True, check=True).stdout
    assert ended.value.code == 0 and out.strip() == "[]" and list(tmp_path.iterdir()) == []
