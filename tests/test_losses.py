"""stylegan_losses.py: the formulas against the official numbers, and what their weights mean."""

import pytest
import torch
import torch.nn.functional as F

import official
import stylegan_losses as losses
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


def drift(k, others, steps=960):
    """How far train.py's Adam takes 500 parameters that R1 alone pulls, in every k-th step.

    others: how large the remaining gradients are, without a direction of their own.
    """
    module = torch.nn.Module()
    module.p = torch.nn.Parameter(torch.zeros(500))
    optimizer = train.new_adam(module)
    rng = torch.Generator().manual_seed(0)
    for step in range(steps):
        pull = losses.r1_weight(2.0, k, 32, 32) if step % k == 0 else 0.0  # k, or nothing
        module.p.grad = others * torch.randn(500, generator=rng) + pull
        optimizer.step()
    return -module.p.mean().item()


@pytest.mark.parametrize("k", [8, 16])
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


def test_r1_weight_has_three_factors():
    """Lesson: 10 means 5; k steps in one; half of the final side means a quarter."""
    assert losses.r1_weight(10.0, 1, 32, 32) == 5
    assert losses.r1_weight(10.0, 16, 32, 32) == 80
    assert losses.r1_weight(10.0, 16, 16, 32) == 20
