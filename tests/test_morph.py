"""morph.py: a larger network that does what the smaller one did, and then lets go."""

import copy
import os
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import convert_resolution
import import_checkpoint
import morph
import official
import stylegan_models as models
import tiny
import train
from conftest import refused, relative
from convert_resolution import resolution_of
from stylegan_layers import downsample_fir, upsample_fir
from tiny import differences
from workshop import checkpoints, machine

EXACT = 3e-5                   # relative, float32; the sums on the way are larger than the result
# Old 8 px, new 16 px: the same width, and half of it.
WIDTHS = {"equal": dict(channel_base=512, channel_max=8), "halved": dict(channel_base=128,
                                                                         channel_max=16)}
RUN = [*tiny.RUN, "--growth", "morph", "--morph-kimg", "0.096", "--stabilize-kimg", "0.104"]


def networks(width, seed=0):
    """G, G_ema, D of 16 px, every parameter random, as if they had been trained for long."""
    torch.manual_seed(seed)
    settings = dict(resolution=16, latent_dim=8, style_dim=8, mapping_dim=8, mapping_layers=2,
                    **WIDTHS[width])
    G, D = models.make_generator(settings), models.make_discriminator(settings)
    for network in (G, D):
        for name, parameter in network.named_parameters():
            if "strength" in name or "bias" in name:
                parameter.data.normal_(std=0.3)
    G_ema = copy.deepcopy(G)
    for parameter in G_ema.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.03)
    G.w_avg.normal_()
    return [network.eval().requires_grad_(False) for network in (G, G_ema, D)]


def grown(width, seed=0):
    """The same, before and after morphing to 16 px."""
    before = networks(width, seed)
    after = copy.deepcopy(before)
    morph.grow(*after, 16, seed)
    return before, after


def at(alpha, network, *arguments, resolution=16, **options):
    """What a network makes at `resolution` while that block has come to alpha."""
    left = morph.ripen(alpha, resolution, network)
    if isinstance(network, models.Generator):
        options["resolution"] = resolution
    try:
        return network(*arguments, alpha=left, **options)
    finally:
        morph.ripen(1.0, resolution, network)


def filtered(x, taps, axis):
    """Each pixel from its three neighbours along an axis, zeros beyond the border: the slow way."""
    x = np.moveaxis(x, axis, -1)
    padded = np.concatenate([np.zeros_like(x[..., :1]), x, np.zeros_like(x[..., :1])], axis=-1)
    y = sum(taps[k] * padded[..., k:k + x.shape[-1]] for k in range(3))
    return np.moveaxis(y, -1, axis)


def enlarge_slowly(x):
    """x [N, C, R, R] -> [N, C, 2R, 2R] in float64: copy, unblur, blur."""
    x = x.double().numpy().repeat(2, axis=2).repeat(2, axis=3)
    for taps in ((-0.5, 2, -0.5), (0.25, 0.5, 0.25)):
        x = filtered(filtered(x, taps, 2), taps, 3)
    return torch.from_numpy(x)


def reduce_slowly(x):
    """x [N, C, 2R, 2R] -> [N, C, R, R] in float64: blur, unblur, average of 2x2."""
    x = x.double().numpy()
    for taps in ((0.25, 0.5, 0.25), (-0.5, 2, -0.5)):
        x = filtered(filtered(x, taps, 2), taps, 3)
    return torch.from_numpy(x[:, :, ::2] + x[:, :, 1::2])[..., ::2].div(4) + torch.from_numpy(
        x[:, :, ::2] + x[:, :, 1::2])[..., 1::2].div(4)


# ---- 1. the algebra ----


def test_unblur_is_the_best_of_its_kind():
    """Lesson: of all kernels (a, 1 - 2a, a), this one brings the blurred copying of pixels, and the
    blurred mean of two, nearest to what they are without the blur; G and D nearly undo each
    other."""
    def through(a, x):                                         # one dimension, far from any border
        return np.convolve(np.convolve(x, [a, 1 - 2 * a, a]), [0.25, 0.5, 0.25])

    tries = np.linspace(-2, 1, 3001)
    misses = [np.square(through(a, [1, 1]) - [0, 0, 1, 1, 0, 0]).sum() for a in tries]
    assert tries[int(np.argmin(misses))] == pytest.approx(morph.UNBLUR[0])
    assert np.allclose(through(-0.5, [1, 1]), np.array([-1, 1, 8, 8, 1, -1]) / 8)
    assert np.allclose(through(0, [1, 1]), np.array([0, 1, 3, 3, 1, 0]) / 4)       # without it

    line = torch.zeros(1, 1, 32, 32)
    line[:, :, :, 16] = 1                                      # a line of one small pixel
    seen = morph.reduce(morph.enlarge(line))[0, 0, 16, 14:19]
    assert torch.allclose(seen, torch.tensor([-1, 0, 66, 0, -1]) / 64, atol=1e-6)  # 66/64 = 1.03
    blurred = F.avg_pool2d(morph.blur(morph.blur(F.interpolate(line, scale_factor=2))), 2)
    assert blurred[0, 0, 16, 16] < 0.7                         # control: what D would see


def test_the_filters_against_a_loop():
    """Judge: copying, three taps, sums, one axis at a time in float64, the border included."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    assert relative(morph.enlarge(x), enlarge_slowly(x)) < 1e-6
    assert relative(morph.reduce(x), reduce_slowly(x)) < 1e-6
    assert relative(morph.reduce(x), F.avg_pool2d(x, 2)) > 0.01            # control: it is a filter


def problem(C=16, inputs=24):
    """K [3, C], P [3, I, 3, 3] at the centre, noise."""
    rng = torch.Generator().manual_seed(0)
    known = morph.orthonormal(3, C, rng)
    product = morph.at_the_centre(torch.randn(3, inputs, generator=rng, dtype=torch.float64))
    return known, product, torch.randn(C, inputs, 3, 3, generator=rng, dtype=torch.float64)


def test_the_least_norm_solution_is_degenerate():
    """Lesson: what lstsq, or a zero noise, gives is exact and useless: rank 3, eight empty taps."""
    known, product, noise = problem()
    least = torch.linalg.lstsq(known, product.flatten(1)).solution.view(16, 24, 3, 3)
    assert relative(torch.einsum("ac,ciyx->aiyx", known, least), product) < 1e-12
    assert torch.linalg.matrix_rank(least.flatten(1)) == 3
    assert torch.count_nonzero(least).item() == 16 * 24 and least[:, :, 1, 1].abs().max() > 0
    ours = morph.solve(known, product, noise, 1.0)
    assert torch.linalg.matrix_rank(ours.flatten(1)) == 16                 # control
    needed = torch.linalg.pinv(known) @ known @ ours.flatten(1)            # ours, seen through K
    assert relative(needed, least.flatten(1)) < 1e-12


def test_the_new_convolutions_look_like_any_others():
    """Lesson: full rank at the centre and in all, stored weights of standard deviation 1 in every
    tap but for what is needed at the centre; and still K F = P."""
    known, product, noise = problem()
    for size in (0.01, 1.0):                                   # little is needed; too much is
        F_ = morph.solve(known, size * product, noise, 0.1)
        assert relative(torch.einsum("ac,ciyx->aiyx", known, F_), size * product) < 1e-12
        std = F_.square().mean().sqrt().item()
        assert std == pytest.approx(0.1) if size == 0.01 else std > 0.11
    for width in WIDTHS:
        _, (G, G_ema, D) = grown(width)
        for block in (G.synthesis.blocks["16"], G_ema.synthesis.blocks["16"], D.blocks["16"]):
            for conv in (block.conv0, block.conv1):
                assert torch.linalg.matrix_rank(conv.weight[:, :, 1, 1]) == min(
                    conv.weight.shape[:2])
                assert torch.linalg.matrix_rank(conv.weight.flatten(1)) == len(conv.weight)
                assert 0.9 < conv.weight.square().mean().sqrt() < 1.2
                assert conv.weight[:, :, 0, 0].std() > 0.3


def test_both_factors_do_half_of_the_work():
    """Lesson: M and 1/M cancel, so its length is free; `balanced` makes both least-norm parts
    equally large. A length of 1 would not."""
    known, product, _ = problem()
    directions = morph.orthonormal(3, 20, torch.Generator().manual_seed(1))

    def parts(length):
        M = length * directions
        first = torch.linalg.pinv(known) @ M
        second = torch.einsum("ca,aiyx->ciyx", torch.linalg.pinv(M), product)
        return first.norm().item(), second.norm().item()
    assert parts(morph.balanced(known, product))[0] == pytest.approx(
        parts(morph.balanced(known, product))[1])
    assert parts(1.0)[1] > 1.5 * parts(1.0)[0]                 # control


# ---- 2. growing ----


@pytest.mark.parametrize("width", WIDTHS)
def test_the_new_generator_makes_the_old_images(width):
    """Lesson: at t = 1 (alpha 0) the image is the old one, enlarged and filtered, whatever the
    noise strengths, styles and biases are; for G and for its average, each its own."""
    before, after = grown(width)
    z = torch.randn(4, 8)
    pictures = []
    for old, new in zip(before[:2], after[:2]):
        bias = old.synthesis.to_rgb["8"].bias[:, None, None]
        small = old(z, noise_mode="const", resolution=8)
        pictures.append(enlarge_slowly(small - bias) + bias)
        assert relative(at(0.0, new, z, noise_mode="const"), pictures[-1]) < EXACT
        assert relative(old(z, noise_mode="const"), pictures[-1]) > 0.1    # control: not morphed
        assert relative(at(0.1, new, z, noise_mode="const"), pictures[-1]) > 1e-3
        assert torch.equal(old.w_avg, new.w_avg)
    assert relative(pictures[0], pictures[1]) > 0.01           # control: G and G_ema do differ


@pytest.mark.parametrize("width", WIDTHS)
def test_the_new_discriminator_gives_the_old_scores(width):
    """Lesson: at t = 1 the score of any picture is the old one of the picture made smaller: D is
    blind for detail, to which G cannot yet add anything. The minibatch stddev included."""
    before, after = grown(width)
    pictures = torch.rand(8, 3, 16, 16) * 2 - 1
    wanted = before[2](reduce_slowly(pictures).float())
    assert relative(at(0.0, after[2], pictures), wanted) < EXACT
    assert relative(before[2](pictures), wanted) > 0.1         # control: not morphed
    assert relative(at(0.1, after[2], pictures), wanted) > 1e-3


def test_only_the_new_block_changes():
    """Lesson: everything of the old resolutions stays, to the bit, and goes on to be computed as
    ever; below the new resolution alpha means nothing."""
    before, after = grown("halved")
    for old, new in zip(before, after):
        for name, value in old.state_dict().items():
            if resolution_of(name) < 16:
                assert torch.equal(value, new.state_dict()[name]), name
    z, images = torch.randn(4, 8), torch.randn(4, 3, 8, 8)
    for alpha in (1.0, 0.5):
        equal = torch.equal(before[0](z, noise_mode="const", resolution=8), at(
            alpha, after[0], z, noise_mode="const", resolution=8))
        assert equal == (alpha == 1)                           # at 0.5 it is 8 px that is young
        assert torch.equal(before[2](images), at(alpha, after[2], images, resolution=8)) == (
            alpha == 1)
    changed = {name for name, value in before[0].state_dict().items()
               if not torch.equal(value, after[0].state_dict()[name])}
    assert {name for name in changed if name.endswith("strength")} == set()
    assert changed and all(resolution_of(name) == 16 for name in changed)


def test_at_the_end_it_is_an_ordinary_block():
    """Lesson: at t = 0 a plain network with these weights gives the same numbers, bit for bit."""
    _, (G, _, D) = grown("halved")
    plain_G, plain_D = networks("halved", 1)[0], networks("halved", 1)[2]
    plain_G.load_state_dict(G.state_dict())
    plain_D.load_state_dict(D.state_dict())
    z = torch.randn(4, 8)
    images = plain_G(z, noise_mode="const")
    for alpha in (0.0, 0.5, 1.0):                              # as it ripens
        assert morph.ripen(alpha, 16, G, D) == 1.0
    assert torch.equal(G(z, noise_mode="const"), images)
    assert torch.equal(D(images), plain_D(images))
    assert not torch.equal(at(0.99, G, z, noise_mode="const"), images)                 # control
    assert not torch.equal(at(0.99, D, images), plain_D(images))                       # control


def test_a_young_block_shares_weights_and_names():
    """Lesson: a checkpoint, an optimizer and an average do not notice that another block stands
    there: the same names in the same order, the same parameters, not copies of them. A deep copy
    is on its own; and at alpha 1, or when a younger block follows, the ordinary one stands there
    again."""
    for network in networks("halved")[::2]:
        names, parameters = list(network.state_dict()), list(network.parameters())
        modules = [type(module) for module in network.modules()]
        ordinary = dict(network.named_modules())
        morph.ripen(0.3, 16, network)
        assert [type(module) for module in network.modules()] != modules           # control
        assert sum("Young" in type(m).__name__ for m in network.modules()) == (
            2 if isinstance(network, models.Discriminator) else 1)
        assert list(network.state_dict()) == names
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
        assert len(list(network.named_parameters())) == len(parameters)

        twin = copy.deepcopy(network)
        for parameter in twin.parameters():
            parameter.data.add_(1.0)
        assert all((a - b - 1).abs().max() < 1e-5
                   for a, b in zip(twin.parameters(), network.parameters()))
        morph.ripen(1.0, 16, twin)
        assert [type(module) for module in twin.modules()] == modules
        assert not {id(m) for m in twin.modules()} & {id(m) for m in ordinary.values()}
        twin.load_state_dict(network.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), parameters))

        morph.ripen(0.1, 8, network)                           # without an alpha of 1 before it
        young = [name for name, m in network.named_modules() if "Young" in type(m).__name__]
        assert young and all(name.endswith(".8") for name in young)
        morph.ripen(1.0, 8, network)
        assert all(module is ordinary[name] for name, module in network.named_modules())
        morph.ripen(0.0, 4, network)                           # 4 px was there from the start
        assert [type(module) for module in network.modules()] == modules


@pytest.mark.parametrize("t", [0.75, 0.25])
def test_in_between_each_step_is_blended_for_itself(t):
    """Judge: (1 - t) nonlinear(x) + t x, written out for every step of both blocks."""
    _, (G, _, D) = grown("halved")
    w = torch.randn(2, 2, 8)
    block, x = G.synthesis.blocks["16"], torch.randn(2, 16, 8, 8)

    def half_linear(x, nonlinear):
        return (1 - t) * nonlinear(x) + t * x

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)
    y = x
    for k in "01":
        conv, noise, adain = (getattr(block, f"{name}{k}") for name in ("conv", "noise", "adain"))
        y = conv(y)
        y = half_linear(y, lambda y: y + noise.strength[:, None, None] * noise.const)
        y = half_linear(y, leaky)
        y = half_linear(y, lambda y: adain(y, w[:, int(k)]))
    assert relative(block(x, w, "const"), y) > 0.01            # control
    morph.ripen(1 - t, 16, G, D)
    assert relative(G.synthesis.blocks["16"](x, w, "const"), y) < 1e-6
    images = torch.randn(4, 3, 16, 16)
    y = half_linear(models.EqualizedConv2d.forward(D.from_rgb["16"], images), leaky)
    y = leaky(D.blocks["16"].conv1(half_linear(D.blocks["16"].conv0(y), leaky)))
    y = D.blocks["4"](D.blocks["8"](y))
    assert relative(D(images), y) < 1e-5


def test_fitted_styles_keep_the_colours():
    """Lesson: AdaIN forgets the mean of every channel, which is the colour. With fitted styles each
    image keeps its own mean colour at t = 0 well enough; with random ones it gets another."""
    before, after = grown("halved")
    unfitted = copy.deepcopy(after[0])
    for k in "01":
        adain = getattr(unfitted.synthesis.blocks["16"], f"adain{k}")
        adain.load_state_dict(getattr(before[0].synthesis.blocks["16"], f"adain{k}").state_dict())
    z = torch.randn(64, 8)
    wanted, fitted, random = (
        at(alpha, G, z, noise_mode="const").mean(dim=(2, 3))
        for G, alpha in ((after[0], 0.0), (after[0], 1.0), (unfitted, 1.0)))
    spread = (wanted - wanted.mean(dim=0)).square().mean().sqrt()

    def miss(found):
        return ((found - wanted).square().mean().sqrt() / spread).item()
    assert miss(fitted) < 0.5 * miss(random)
    assert miss(fitted) < 0.3                                  # 1: if all had the same colour
    assert miss(fitted.roll(1, 0)) > 1                         # control: another image's


def test_regression_finds_a_linear_function():
    """Lesson: with many samples the slope comes out, too small by the ridge's tenth; the mean is
    always hit. Where x has no extent, nothing is made up, however few the samples."""
    rng = torch.Generator().manual_seed(0)
    truth, offset = torch.randn(5, 4, generator=rng).double(), torch.randn(5, generator=rng)
    x = torch.randn(2000, 4, generator=rng).double() + 3
    y = x @ truth.t() + offset
    weight, bias = morph.regression(x, y)
    assert relative(1.1 * weight, truth) < 0.02 < relative(weight, truth)
    assert relative(x.mean(dim=0) @ weight.t() + bias, y.mean(dim=0)) < 1e-9
    flat = x.clone()
    flat[:, 0] = 3                                             # of this we know nothing
    assert morph.regression(flat[:6], y[:6])[0][:, 0].abs().max() < 1e-9
    assert morph.regression(x[:6], y[:6])[0][:, 0].abs().max() > 0.1       # control


def test_growing_is_a_function_of_weights_seed_and_resolution():
    """Lesson: a resumed run builds the same block; another seed builds another one."""
    first, second = (grown("halved")[1][0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = networks("halved")
    morph.grow(*before, 16, 1)
    assert not torch.equal(before[0].state_dict()["synthesis.blocks.16.conv0.weight"],
                           first["synthesis.blocks.16.conv0.weight"])


# ---- 3. the program, and train.py --growth morph ----


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with --growth morph, 4 to 16 px, and a checkpoint of the middle of the last morphing:
    (folder of the run, path of that checkpoint)."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for k in range(20):
        image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        image.save(folder / "pictures" / f"{k}.png")
    save, here = checkpoints.save_checkpoint, os.getcwd()

    def save_and_keep(path, state):
        save(path, state)
        progress = state["progress"]
        if progress["phase"] == "morph" and progress["resolution"] == 16:
            shutil.copy(path, folder / "middle.pt")
    with pytest.MonkeyPatch.context() as patch:
        tiny.no_rehearsal(patch)
        patch.setattr(checkpoints, "save_checkpoint", save_and_keep)
        os.chdir(folder)
        try:
            assert train.main(["--data", "pictures", *RUN, "--out", "small"]) == 0
        finally:
            os.chdir(here)
    return folder / "small", folder / "middle.pt"


@pytest.fixture(autouse=True)
def no_rehearsal(monkeypatch):
    tiny.no_rehearsal(monkeypatch)


def states(path):
    """What a step changes, of a checkpoint."""
    checkpoint = checkpoints.load_checkpoint(path)
    return {key: checkpoint[key] for key in ("generator", "generator_ema", "discriminator",
                                             "optimizer_g", "optimizer_d")}


def same(a, b):
    return differences(a, b) == []


def test_a_run_grows_by_morphing(run):
    """Lesson: the same clock, --morph-kimg in the place of --fade-kimg, and Adam remembers: the
    old parameters have more steps behind them than the new ones."""
    for line in tiny.log_of(run[0]):
        r, phase = [(4, "stabilize"), (8, "morph"), (8, "stabilize"), (16, "morph"),
                    (16, "stabilize")][np.searchsorted([104, 200, 304, 400], line["nimg"])]
        assert (line["resolution"], line["phase"]) == (r, phase), line
    checkpoint = checkpoints.load_checkpoint(run[0] / "checkpoint.pt")
    G = models.make_generator(checkpoint["settings"])
    steps = {name: checkpoint["optimizer_g"]["state"][k]["step"].item()
             for k, (name, _) in enumerate(G.named_parameters())
             if k in checkpoint["optimizer_g"]["state"]}
    assert steps["synthesis.blocks.4.conv1.weight"] == checkpoint["progress"]["step"]
    young = steps["synthesis.blocks.16.conv1.weight"]
    assert 0 < young < steps["synthesis.blocks.8.conv1.weight"] < checkpoint["progress"]["step"]


def test_resuming_in_the_middle_of_a_morph_ends_with_the_same_bits(run, tmp_path):
    """Lesson: how far a block has come is a function of nimg, like everything else."""
    progress = checkpoints.load_checkpoint(run[1])["progress"]
    assert progress["phase"] == "morph" and 0 < progress["alpha"] < 1
    assert train.main(["--resume", str(run[1]), *tiny.pictures_of(run[1]), "--out",
                       str(tmp_path / "on"), "--device", "cpu"]) == 0
    assert same(states(tmp_path / "on" / "checkpoint.pt"), states(run[0] / "checkpoint.pt"))
    assert not same(states(run[1]), states(run[0] / "checkpoint.pt"))      # control


def test_train_goes_on_with_what_morph_wrote(run, tmp_path, capsys):
    """Lesson: morph.py on the finished 8 px, then train.py, is what --growth morph does by itself:
    the same bits. (Both call the same function.)"""
    out = tmp_path / "morphed.pt"
    assert morph.main([str(run[0] / "checkpoint-8.pt"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "relative difference" in said and "16 px morph" in said
    grown = checkpoints.load_checkpoint(out)
    assert grown["progress"]["alpha"] == 0 and grown["settings"]["resolution"] == 16
    old = checkpoints.load_checkpoint(run[0] / "checkpoint-8.pt")
    assert same(old["optimizer_g"]["state"], grown["optimizer_g"]["state"])
    assert train.main(["--resume", str(out), *tiny.pictures_of(out), "--out",
                       str(tmp_path / "on"), "--total-kimg", "0.6", "--device", "cpu"]) == 0
    assert same(states(tmp_path / "on" / "checkpoint.pt"), states(run[0] / "checkpoint.pt"))


def test_a_finished_network_is_doubled(run, tmp_path):
    """Lesson: 16 px become 32: everything is carried, the new parameters have no moments yet, and
    the run goes on, to its end."""
    out = tmp_path / "large.pt"
    assert morph.main([str(run[0] / "checkpoint.pt"), "--out", str(out), "--morph-kimg", "0.05",
                       "--seed", "3"]) == 0
    large, small = map(checkpoints.load_checkpoint, (out, run[0] / "checkpoint.pt"))
    assert large["settings"]["resolution"] == 32 and large["options"]["morph_kimg"] == "0.05"
    G = models.make_generator(large["settings"])
    names = [name for name, _ in G.named_parameters()]
    assert {resolution_of(names[k]) for k in large["optimizer_g"]["state"]} == {0, 4, 8, 16}
    assert torch.equal(large["generator_ema"]["w_avg"], small["generator_ema"]["w_avg"])
    assert train.main(["--resume", str(out), *tiny.pictures_of(out), "--out",
                       str(tmp_path / "on"), "--batch", "4", "--total-kimg", "0.7", "--device",
                       "cpu"]) == 0
    assert checkpoints.load_checkpoint(tmp_path / "on" / "checkpoint.pt")["progress"]["nimg"] == 700


def test_the_program_proves_it_before_it_writes(run, tmp_path, monkeypatch, capsys):
    """Lesson: a solution that is slightly off is found, and nothing is written."""
    good = morph.solve
    monkeypatch.setattr(morph, "solve", lambda *arguments: good(*arguments) * 1.001)
    code, said = refused(morph.main, [run[0] / "checkpoint.pt", "--out", tmp_path / "x.pt"], capsys)
    assert code == 1 and not (tmp_path / "x.pt").exists()
    assert "nothing was written" in said


def test_it_works_on_what_other_programs_wrote(run, tmp_path):
    """Lesson: morph.py takes imported official networks, and files that hold only G_ema. And
    convert_resolution.py takes runs that grew by morphing, finished ones and half-grown ones."""
    imported = tmp_path / "official.pt"
    assert import_checkpoint.main([str(official.DATA / "official_stylegan.pkl"),
                                   str(imported)]) == 0
    assert morph.main([str(imported)]) == 0
    larger = checkpoints.load_checkpoint(tmp_path / "official-morphed.pt")
    assert larger["settings"]["resolution"] == 64
    checkpoint = checkpoints.load_checkpoint(run[0] / "checkpoint.pt")
    checkpoints.save_checkpoint(tmp_path / "ema.pt", {key: checkpoint[key] for key in (
        "settings", "generator_ema")})
    assert morph.main([str(tmp_path / "ema.pt")]) == 0
    # Upwards, convert_resolution.py draws its block, so it must be faded in.
    assert convert_resolution.main([str(run[0] / "checkpoint.pt"), "32", "--out",
                                    str(tmp_path / "faded.pt")]) == 0
    assert checkpoints.load_checkpoint(tmp_path / "faded.pt")["options"]["growth"] == "fade"
    # In the middle, nothing moves.
    assert convert_resolution.main([str(run[1]), "32", "--out", str(tmp_path / "middle.pt")]) == 0
    middle = checkpoints.load_checkpoint(tmp_path / "middle.pt")
    assert middle["options"]["growth"] == middle["progress"]["phase"] == "morph"


def test_a_checkpoint_from_the_middle_of_a_morph_gives_its_pictures(tmp_path):
    """Lesson: a young block has its age inside of it, and its weights do not say so. The file does:
    alpha says how far the block has come, and nothing is left to be faded."""
    path, z = tmp_path / "g.pt", torch.randn(2, 8)
    G, D = models.make_generator(tiny.SETTINGS).eval(), models.make_discriminator(tiny.SETTINGS)
    machine.place(G, torch.device("cpu"))
    grown = G(z, noise_mode="const")
    morph.ripen(0.25, 16, G, D)
    images = G(z, noise_mode="const")
    scores = D(images)
    checkpoints.save_checkpoint(path, {
        "settings": tiny.SETTINGS, "generator_ema": G.state_dict(), "discriminator": D.state_dict(),
        "progress": {"resolution": 16, "alpha": 0.25, "phase": "morph"}})
    loaded = morph.load_networks(path, parts=("generator_ema", "discriminator"))
    again, judge = loaded.networks["generator_ema"], loaded.networks["discriminator"]
    assert isinstance(again.synthesis.blocks["16"], morph.YoungSynthesisBlock)
    assert not isinstance(again.synthesis.blocks["8"], morph.YoungSynthesisBlock)
    assert (loaded.resolution, loaded.alpha) == (16, 1.0)
    assert loaded.checkpoint["progress"]["alpha"] == 0.25
    assert torch.equal(again(z, noise_mode="const", alpha=loaded.alpha), images)
    assert torch.allclose(judge(images, loaded.alpha), scores, atol=1e-6)
    assert not torch.allclose(images, grown, atol=1e-3)        # control: as a grown one, another
    morph.ripen(1.0, 16, D)
    assert not torch.allclose(D(images), scores, atol=1e-4)    # control


def test_pictures_and_numbers_of_a_half_morphed_network(run):
    """Lesson: generate.py and evaluate.py look at the network as it was in training."""
    found = morph.load_networks(run[1], torch.device("cpu"), (
        "generator_ema", "generator", "discriminator"))
    state = checkpoints.load_checkpoint(run[1])
    grown = state["progress"]["alpha"]
    assert found.resolution == 16 and found.alpha == 1.0 and 0 < grown < 1
    z, images = torch.randn(2, 8), torch.randn(4, 3, 16, 16)
    for part, network in found.networks.items():
        twin = (models.make_discriminator if part == "discriminator" else models.make_generator)(
            state["settings"]).eval()
        twin.load_state_dict(state[part])
        inputs, mode = ((images, {}) if part == "discriminator" else (z, {"noise_mode": "const"}))
        wanted = at(grown, twin, inputs, **mode)
        assert relative(network(inputs, **mode), wanted) < EXACT
        for alpha in (grown, 1.0):                             # controls: faded; ordinary
            assert relative(twin(inputs, alpha=alpha, **mode), wanted) > 0.01


def test_a_stylegan2_is_refused_by_name(tmp_path, capsys):
    """Lesson: it does not grow, by morphing or otherwise. What it is told to type instead works."""
    settings = {**tiny.SETTINGS, "architecture": "stylegan2"}
    path = tmp_path / "sg2.pt"
    checkpoints.save_checkpoint(path, {
        "settings": settings, "generator_ema": models.make_generator(settings).state_dict()})
    code, said = refused(morph.main, [path], capsys)
    assert code == 2 and "is a StyleGAN2, whose D would need" in said
    assert os.listdir(tmp_path) == ["sg2.pt"]
    command = re.search(r"python convert_resolution.py (\S+) (\d+) ", said)
    assert convert_resolution.main([*command.groups(), "--out", str(tmp_path / "x.pt")]) == 0
    assert checkpoints.load_checkpoint(tmp_path / "x.pt")["settings"]["resolution"] == 32
    code, said = refused(train.main, ["--architecture", "stylegan2", "--growth", "morph"], capsys)
    assert code == 2 and "does not grow" in said


def test_what_morphing_stylegan2s_d_would_take():
    """Lesson: with the short way at 0 and two leaky ReLUs linear, the same algebra gives D a block
    that changes nothing but the size of the picture. What it cannot undo is the blur of the FIR."""
    settings = dict(channel_base=512, channel_max=8)
    old, D = (models.ResidualDiscriminator(r, **settings).requires_grad_(False) for r in (8, 16))
    D.load_state_dict({**D.state_dict(), **{name: x for name, x in old.state_dict().items()
                                            if "from_rgb" not in name}})
    old.from_rgb["8"].bias.normal_()
    rng, root = torch.Generator().manual_seed(0), 2 ** 0.5
    before, from_rgb, block = old.from_rgb["8"], D.from_rgb["16"], D.blocks["16"]
    # Two gains of sqrt(2) before conv1, one behind it as in the old from_rgb, the sum's sqrt(1/2).
    product = morph.at_the_centre(morph.run_time_weight(before)[:, :, 0, 0].t() / root)
    A, M = (morph.orthonormal(3, 8, rng) for _ in range(2))
    F0, F1 = (morph.solve(known, what, morph.draw(conv, rng).transpose(0, 1), conv.weight_scale)
              for known, what, conv in ((A, morph.at_the_centre(M), block.conv0),
                                        (M, product, block.conv1)))
    morph.set_layer(from_rgb, A.t()[:, :, None, None])
    morph.set_layer(block.conv0, F0.transpose(0, 1))
    morph.set_layer(block.conv1, F1.transpose(0, 1), before.bias * root)
    block.skip.weight.zero_()
    images = torch.randn(4, 3, 16, 16)
    assert relative(D(images), old(downsample_fir(images))) > 0.01             # control: not young
    for layer in (from_rgb, block.conv0):
        layer.forward = lambda x, layer=layer: models.EqualizedConv2d.forward(layer, x) * root
    assert relative(D(images), old(downsample_fir(images))) < EXACT
    block.skip.weight.normal_()
    assert relative(D(images), old(downsample_fir(images))) > 0.01             # control
    block.skip.weight.zero_()
    small = torch.randn(4, 3, 8, 8)
    assert relative(D(upsample_fir(small)), old(small)) > 0.01                 # blurred


@pytest.mark.parametrize("arguments, words", [
    (["{middle}"], "still growing"),
    (["{small}", "--out", "{small}"], "reads"),
    (["{small}", "--out", "{middle}"], "exists already"),
    (["{narrow}"], "at least 4"),
    (["missing.pt"], "no such file"),
    (["{pictures}"], "a folder"),
    (["{small}", "--morph-kimg", "much"], "neither a number"),
    (["{small}", "--seed", "-1"], "from 0 to"),
])
def test_bad_use_gets_one_sentence(run, tmp_path, capsys, arguments, words):
    """Lesson: exit code 2, one line, and nothing written or lost."""
    settings = checkpoints.load_checkpoint(run[0] / "checkpoint.pt")["settings"]
    narrow = {**settings, "channel_base": 48}                  # 6 channels at 16 px, 3 at 32 px
    checkpoints.save_checkpoint(tmp_path / "narrow.pt", {
        "settings": narrow, "generator_ema": models.make_generator(narrow).state_dict()})
    paths = {"small": run[0] / "checkpoint.pt", "middle": run[1], "pictures": run[0].parent,
             "narrow": tmp_path / "narrow.pt"}
    before = {path: path.stat().st_mtime_ns for path in paths.values() if path.is_file()}
    code, said = refused(morph.main, [word.format(**paths) for word in arguments], capsys)
    assert code == 2 and words in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in tmp_path.iterdir()} == {"narrow.pt"}
