"""stylegan_losses.py: the formulas against the official numbers, and what their weights mean."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F

import official
import stylegan_losses as losses
import stylegan_models as models
import train
from conftest import relative

GRADIENT = 1e-3                # relative; two implementations in float32 differ by some 1e-5


# ---- 1. and 2. what D and G want ----


def test_losses_and_gradients_equal_the_official_ones():
    """Lesson: mid-fade, at alpha 0.7, every parameter of both networks gets the official gradient,
    the mapping network with its learning rate multiplier included."""
    G, D = official.networks()
    io, alpha = official.load("io"), 0.7
    reals = io["x_real"].clone().requires_grad_()
    fakes = G(io["z"], noise_mode="const", alpha=alpha)
    real_scores = D(reals, alpha)
    d_loss = losses.discriminator_loss(real_scores, D(fakes.detach(), alpha))
    d_loss = d_loss + losses.r1_weight(10.0, 1, 32, 32) * losses.r1_penalty(real_scores, reals)
    assert d_loss.item() == pytest.approx(io["lod0.3_d_loss_r1gamma10"].item(), rel=1e-4)
    d_loss.backward()
    d_gradients = {name: p.grad.clone() for name, p in D.named_parameters() if p.grad is not None}
    g_loss = losses.generator_loss(D(fakes, alpha))
    assert g_loss.item() == pytest.approx(io["lod0.3_g_loss"].item(), rel=1e-4)
    g_loss.backward()
    g_gradients = {name: p.grad for name, p in G.named_parameters() if p.grad is not None}
    for kind, gradients, names in (("d", d_gradients, official.discriminator_names()),
                                   ("g", g_gradients, official.generator_names())):
        compared = 0
        for name, gradient in gradients.items():
            key = f"lod0.3_{kind}grad/{names[name]}"
            if key in io and io[key].abs().max() > 0:
                judge = official.to_ours(io[key], gradient.shape)
                assert relative(gradient, judge) < GRADIENT, name
                assert relative(1.01 * gradient, judge) > GRADIENT, name           # control
                compared += 1
        assert compared >= 20, compared


def compare_gradients(network, io, kind, factor=1.0):
    """Every parameter's gradient, times factor, against what stylegan2-ada-pytorch computed. Of
    theirs there are the size, the length and 48 numbers. Returns how many were compared."""
    compared = 0
    for name, parameter in network.named_parameters():
        size, length, *_ = judge = io.get(f"{kind}/{official.ada_name(name)}", torch.zeros(3))
        if size == 0:                                  # not used, or only shifts what counts
            assert parameter.grad is None or parameter.grad.abs().max() == 0, name
            continue
        ours = official.picked(factor * official.from_ada(name, parameter.grad))
        assert ours.shape == judge.shape, name
        assert (ours - judge)[2:].abs().max() < GRADIENT * size, name
        assert (ours - judge)[0].abs() < GRADIENT * size, name
        assert (ours - judge)[1].abs() < GRADIENT * length, name
        assert (1.01 * ours - judge).abs().max() > GRADIENT * size, name           # control
        compared += 1
    return compared


def test_stylegan2_losses_and_gradients_equal_the_official_ones():
    """Lesson: every parameter of both networks gets the gradient that stylegan2-ada-pytorch gives
    it: of D's loss, and of G's, through D and the modulated convolutions down to the mapping."""
    G, D = official.stylegan2_networks("ada")
    io = official.load_stylegan2("ada")
    fakes = G(io["z"], noise_mode="const")
    d_loss = losses.discriminator_loss(D(io["x_real"]), D(fakes.detach()))
    assert d_loss.item() == pytest.approx(io["d_loss"].item(), rel=1e-4)
    d_loss.backward()
    assert compare_gradients(D, io, "dgrad") == len(list(D.parameters()))
    D.zero_grad()
    g_loss = losses.generator_loss(D(fakes))
    assert g_loss.item() == pytest.approx(io["g_loss"].item(), rel=1e-4)
    g_loss.backward()
    assert compare_gradients(G, io, "ggrad") == len(list(G.parameters()))


def test_a_discriminator_that_cannot_tell_has_loss_2_ln_2():
    """Lesson: how to read the log."""
    cannot_tell, sure = torch.zeros(4, 1), torch.full((4, 1), 20.0)
    undecided = losses.discriminator_loss(cannot_tell, cannot_tell).item()
    assert undecided == pytest.approx(1.386, abs=1e-3)
    assert losses.discriminator_loss(sure, -sure).item() < 1e-6            # always right
    assert losses.discriminator_loss(-sure, sure).item() > 30              # always wrong


def test_softplus_is_the_logarithm_of_the_bet_and_never_overflows():
    """Judge: the file's first formulas, in float64. A score of -1000, on which the formula itself
    takes the logarithm of 0, is no trouble."""
    scores = torch.linspace(-8, 8, 9, dtype=torch.float64)[:, None]
    says_real = 1 / (1 + (-scores).exp())
    assert torch.allclose(losses.loss_on_reals(scores), -says_real.log().mean())
    assert torch.allclose(losses.loss_on_fakes(scores), -(1 - says_real).log().mean())
    assert torch.allclose(losses.generator_loss(scores), -says_real.log().mean())
    far = torch.full((2, 1), -1000.0)
    assert losses.loss_on_reals(far) == losses.generator_loss(far) == 1000
    assert (-(1 / (1 + (-far).exp())).log()).isinf().all()                 # control: the formula


def test_the_opposite_of_ds_loss_is_flat_where_g_needs_it():
    """Lesson: where D sees through G, at D(fake) = -10, the non-saturating loss has a slope of
    0.99995, and the opposite of D's loss one of 0.00005. Where G is good, at 10, it is the other
    way round; both always want the same, a higher score."""
    def slope(loss, score):
        scores = torch.tensor([[score]], requires_grad=True)
        return torch.autograd.grad(loss(scores), scores)[0].item()

    def opposite(scores):
        return -losses.loss_on_fakes(scores)
    assert slope(losses.generator_loss, -10.0) == pytest.approx(-0.99995, abs=1e-5)
    assert slope(opposite, -10.0) == pytest.approx(-0.00005, abs=1e-5)
    assert slope(opposite, 10.0) == pytest.approx(-0.99995, abs=1e-5)
    for score in (-10.0, 0.0, 10.0):
        assert slope(losses.generator_loss, score) < 0 and slope(opposite, score) < 0


# ---- 3. R1 ----


@pytest.mark.parametrize("lod", ["0", "0.3", "1.5"])
def test_r1_equals_the_official_one(lod):
    """Lesson: the official D always sees 32x32, ours the resolution itself: the penalty is
    (32/R)^2 larger here, and `r1_weight` takes that back."""
    _, D = official.networks()
    io, whole = official.load("io"), int(float(lod))
    r, alpha = 32 >> whole, 1 - (float(lod) - whole)
    reals = F.avg_pool2d(io["x_real"], 2 ** whole).requires_grad_()
    scores = D(reals, alpha)
    gradient, = torch.autograd.grad(scores.sum(), reals, create_graph=True)
    judge = io[f"lod{lod}_r1_per_sample"]
    ours = losses.r1_penalty(scores, reals) * losses.r1_weight(2.0, 1, r, 32)
    assert ours.item() == pytest.approx(judge.mean().item(), rel=GRADIENT)
    enlarged = F.interpolate(gradient, scale_factor=2 ** whole) / 4 ** whole
    assert relative(enlarged[:2], io[f"lod{lod}_gradx"]) < GRADIENT
    # ... and its gradient with respect to D's weights, which is 5 times the mean penalty's.
    D.zero_grad()
    (losses.r1_weight(10.0, 1, r, 32) * losses.r1_penalty(D(reals, alpha), reals)).backward()
    names = official.discriminator_names()
    compared = 0
    for name, parameter in D.named_parameters():
        key = f"lod{lod}_r1grad/{names[name]}"
        if key in io and parameter.grad is not None:
            wanted = official.to_ours(io[key], parameter.shape)
            if wanted.abs().max() > 0:
                assert relative(parameter.grad, wanted) < GRADIENT, name
                assert relative(2 * parameter.grad, wanted) > 0.5          # control
                compared += 1
    assert compared > 5 or lod == "0"              # these gradients were stored mid-fade only


def test_stylegan2_r1_equals_the_official_one():
    """Lesson: R1 through residual blocks, image by image, and its gradient for D's weights."""
    _, D = official.stylegan2_networks("ada")
    io = official.load_stylegan2("ada")
    reals = io["x_real"].clone().requires_grad_()
    scores = D(reals)
    gradient, = torch.autograd.grad(scores.sum(), reals, create_graph=True)
    assert relative(gradient[:2], io["r1_gradx"]) < GRADIENT
    of_each = gradient.square().sum(dim=(1, 2, 3))
    assert relative(of_each, io["r1_per_sample"]) < GRADIENT
    penalty = losses.r1_penalty(scores, reals)
    assert penalty.item() == pytest.approx(io["r1_per_sample"].mean().item(), rel=GRADIENT)
    penalty.backward()
    # Theirs is of gamma / 2 = 5 times the penalty. (Biases of the three layers of the 4x4 block
    # have no part in it. Those before it have one, through the minibatch stddev.)
    assert compare_gradients(D, io, "r1grad", 5.0) == len(list(D.parameters())) - 3
    with pytest.raises(AssertionError):
        compare_gradients(D, io, "r1grad", 10.0)               # control


@functools.lru_cache
def drift(k, others, steps=960, own_step=False):
    """How far train.py's Adam takes 500 parameters that R1 alone pulls, in every k-th step.

    others: how large the remaining gradients are, without a direction of their own. own_step: as
    in the official StyleGAN2, with the learning rate and the betas that it takes then.
    """
    module = torch.nn.Module()
    module.p = torch.nn.Parameter(torch.zeros(500))
    optimizer = train.new_adam(module)
    if own_step:
        group, share = optimizer.param_groups[0], k / (k + 1)
        group["lr"] *= share
        group["betas"] = tuple(beta ** share for beta in group["betas"])
    rng = torch.Generator().manual_seed(0)
    for step in range(steps):
        pull = losses.r1_weight(2.0, k, 32, 32) if step % k == 0 else 0.0  # k, or nothing
        gradients = [others * torch.randn(500, generator=rng)]
        if pull and own_step:
            gradients.append(torch.full((500,), pull))
        else:
            gradients[0] += pull
        for module.p.grad in gradients:
            optimizer.step()
    return -module.p.mean().item()


@pytest.mark.parametrize("k", [4, 8, 16])
def test_adam_weakens_a_lazy_penalty(k):
    """Lesson: k times as strong in every k-th step is the same sum, but not the same pull. Adam
    divides by the root of the mean square, which is sqrt(k) times as large: 1/sqrt(k) is left. What
    other gradients fill up with noise is hardly divided by more: nearly all is left."""
    alone = drift(k, 0.0) / drift(1, 0.0)
    # (A little less: right after the k-th gradient the mean square has just been raised by it.)
    assert alone == pytest.approx(k ** -0.5, rel=0.07)
    mixed, drowned = (drift(k, others) / drift(1, others) for others in (1.0, 10.0))
    assert alone < mixed < drowned
    assert 0.9 < drowned < 1.02


@pytest.mark.parametrize("k", [4, 16])
def test_a_step_of_its_own_would_be_weakened_a_little_more(k):
    """Lesson: the official StyleGAN2 makes a step for each penalty. Adam's mean square forgets no
    sooner for it: 1/sqrt(k+1) is left of a penalty alone, a little less than if it joins a step."""
    alone, mixed, drowned = (drift(k, others, own_step=True) / drift(1, others)
                             for others in (0.0, 1.0, 10.0))
    assert alone == pytest.approx((k + 1) ** -0.5, rel=0.07)
    assert alone < mixed < drowned
    assert drowned == pytest.approx(0.9, abs=0.06)
    for others, own in ((0.0, alone), (1.0, mixed), (10.0, drowned)):
        assert own < drift(k, others) / drift(1, others) < 1.3 * own       # joined: a little more


def test_r1_weight_has_three_factors():
    """Lesson: 10 means 5; k steps in one; half of the final side means a quarter."""
    assert losses.r1_weight(10.0, 1, 32, 32) == 5
    assert losses.r1_weight(10.0, 16, 32, 32) == 80
    assert losses.r1_weight(10.0, 16, 16, 32) == 20


# ---- 4. path length ----


def ws_of(G, z):
    """The w of z for every style layer, [N, L, S], as a part of the graph."""
    return G.styles(z, None, 8)


def lengths_by_hand(G, ws, noise):
    """Image by image and layer by layer, with autograd alone: nothing of fast_gradients.py's rules
    for input gradients."""
    lengths, slopes = [], []
    for n in range(len(ws)):
        w = ws[n:n + 1]
        image = G.synthesis(w, noise_mode="const")
        slope, = torch.autograd.grad((image * noise[n]).sum(), w, create_graph=True)
        squares = [sum(number ** 2 for number in slope[0, layer]) for layer in range(ws.shape[1])]
        lengths.append((sum(squares) / len(squares)).sqrt())
        slopes.append(slope[0])
    return torch.stack(lengths), torch.stack(slopes)


def test_path_lengths_equal_the_official_ones():
    """Lesson: squares are summed over w, averaged over the style layers, and the root is the length
    of one image. With 4 images and 8 layers it shows if anyone averages over the wrong ones. Two
    judges: stylegan2-ada-pytorch, and float64 image by image. (Its y is N(0, 1) here, and divided
    by the side afterwards.)"""
    G, _ = official.stylegan2_networks("ada")
    io = official.load_stylegan2("ada")
    noise = io["pl_noise"] / 32
    ws = ws_of(G, io["z"][:4])
    lengths = losses.path_lengths(G.synthesis(ws, noise_mode="const"), ws, noise[:4])
    assert lengths.shape == (4,) and ws.shape == (4, 8, 40)
    assert relative(lengths, io["pl_lengths"][:4]) < 1e-4
    exact = copy.deepcopy(G).double()
    by_hand, slopes = lengths_by_hand(exact, ws_of(exact, io["z"][:4].double()), noise[:4].double())
    assert relative(lengths.double(), by_hand) < 1e-4
    assert relative(slopes, io["pl_grads"].double()) < 1e-4
    squares = slopes.square()                                  # controls: [4, 8, 40]
    for wrong in (squares.sum(dim=(1, 2)).sqrt(), squares.mean(dim=2).sum(dim=1).sqrt(),
                  squares.sum(dim=2).sqrt().mean(dim=1), squares.sum(dim=2).mean(dim=0).sqrt()):
        assert wrong.shape != lengths.shape or relative(wrong, by_hand) > 0.005

    # All eight, as there: the mean moves from 0 by 0.01 towards them, and is then subtracted.
    ws, mean = ws_of(G, io["z"]), G.path_length_mean
    lengths = losses.path_lengths(G.synthesis(ws, noise_mode="const"), ws, noise)
    assert relative(lengths, io["pl_lengths"]) < 1e-4
    penalty = losses.path_length_penalty(lengths, mean)
    assert mean.item() == pytest.approx(io["pl_mean_after"].item(), rel=1e-4)
    assert 2 * penalty.item() == pytest.approx(io["pl_penalty_x2_mean"].item(), rel=1e-4)
    unmoved = 2 * lengths.square().mean().item()               # control: the mean of before
    assert abs(unmoved - io["pl_penalty_x2_mean"].item()) > 1e-3 * unmoved
    (2 * penalty).backward()
    # All but the biases of to_rgb, which are the same for every w.
    assert compare_gradients(G, io, "plgrad") == len(list(G.parameters())) - 4


def test_path_length_is_the_same_in_both_forms_of_modulation(monkeypatch):
    """Lesson: its gradient is a derivative of a derivative, and flows to w through the kernels in
    one form and through the images in the other. In float64, with 3 images and 6 layers."""
    import stylegan_layers
    right = stylegan_layers.modulated_convolution
    settings = dict(architecture="stylegan2", resolution=16, channel_base=64, channel_max=8,
                    latent_dim=8, style_dim=8, mapping_dim=8, mapping_layers=2)
    G = models.make_generator(settings).double().eval()
    ws, noise = torch.randn(3, 6, 8).double(), torch.randn(3, 3, 16, 16).double() / 16
    found = []
    for modulate in ("images", "kernels"):
        monkeypatch.setattr(stylegan_layers, "modulated_convolution",
                            functools.partial(right, modulate=modulate))
        G.zero_grad()
        inputs = ws.clone().requires_grad_()
        lengths = losses.path_lengths(G.synthesis(inputs, noise_mode="const"), inputs, noise)
        losses.path_length_penalty(lengths, torch.tensor(1.0).double()).backward()
        found.append([lengths, inputs.grad, *(p.grad for p in G.synthesis.parameters()
                                              if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 20
    # (Noise strengths are 0 and the maps are not: these have a gradient, too.)
    for ours, theirs in zip(*found):
        assert theirs.abs().max() > 0 and relative(ours, theirs) < 1e-9
    assert relative(2 * found[0][1], found[1][1]) > 0.1        # control


def test_path_length_of_a_linear_map_is_its_stretch():
    """Lesson: a G that stretches every direction of w by 3 has one length, whatever the w and the
    y: 3 sqrt(S) / R. One that stretches some directions more has lengths that scatter. Neither the
    number of layers nor that of pixels counts."""
    def lengths(layers, side, stretch):
        size = 48                                              # S, to be small beside the pixels
        J = torch.linalg.qr(torch.randn(3 * side * side, size, dtype=torch.float64))[0] * stretch
        ws = torch.randn(500, layers, size, dtype=torch.float64, requires_grad=True)
        images = (ws.sum(dim=1) @ J.T).view(500, 3, side, side)
        return losses.path_lengths(images, ws) * side / math.sqrt(size)
    for layers, side in ((1, 8), (6, 8), (6, 16)):
        even = lengths(layers, side, 3.0)
        # A length of 48 normal numbers has a standard deviation of 1 / sqrt(96), a tenth.
        assert even.mean().item() == pytest.approx(3, rel=0.03)
        assert even.std().item() == pytest.approx(3 / math.sqrt(96), rel=0.2)
    # Control: the same size on average, most of it in two directions.
    uneven = torch.full((48,), 1.0, dtype=torch.float64)
    uneven[:2] = math.sqrt((9 * 48 - 46) / 2)
    scattered = lengths(6, 8, uneven)
    assert scattered.std() > 3 * even.std()
    assert scattered.square().mean().sqrt().item() == pytest.approx(3, rel=0.1)


def test_y_is_drawn_anew_and_its_size_makes_up_for_the_pixels():
    """Lesson: y is N(0, 1) / sqrt(R R), another one in each call."""
    ws = torch.randn(64, 2, 5, requires_grad=True)

    def slopes(side):
        images = ws[:, 0, :3, None, None].expand(-1, -1, side, side)       # each colour is one w
        return losses.path_lengths(images, ws).square() * 2    # the sum over w: 3 squares
    for side in (8, 32):
        assert slopes(side).mean().item() == pytest.approx(3, rel=0.3)     # 192 of them: 3 sigma
    assert not torch.equal(slopes(8), slopes(8))


def test_the_mean_of_path_lengths_moves_before_it_is_used():
    """Lesson: by hand, for lengths 1 and 3 and a mean of 4. It moves to 3.98; each length is pulled
    to it by its distance, -2.98 and -0.98, less half of a hundredth of both together, since it
    takes the mean along. (Without that, gradients differ from the official ones by 1 %.)"""
    lengths, mean = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor(4.0)
    first = losses.path_length_penalty(lengths, mean)
    assert mean.item() == pytest.approx(0.99 * 4 + 0.01 * 2) and not mean.requires_grad
    assert first.item() == pytest.approx((2.98 ** 2 + 0.98 ** 2) / 2)
    second = losses.path_length_penalty(lengths, mean, decay=0.5)          # moves on to 2.99
    assert mean.item() == pytest.approx(2.99)
    assert second.item() == pytest.approx((1.99 ** 2 + 0.01 ** 2) / 2)
    pull, = torch.autograd.grad(first, lengths)                # of the first one, as it was
    assert pull.tolist() == pytest.approx([-2.98 + 0.005 * 3.96, -0.98 + 0.005 * 3.96], rel=1e-5)
