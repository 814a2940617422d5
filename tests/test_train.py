"""train.py: the schedule, the average and Adam, the two turns, the game; and the rules of the house
that all files share."""

import ast
import copy
import io
import math
import re
import tokenize

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import stylegan_dataloader as data
import stylegan_losses as losses
import tiny
import train
from conftest import ROOT, relative
from workshop import checkpoints
from workshop.options import Table
from workshop.run import LOGGED

# ---- 1. the schedule ----


def test_the_schedule_is_the_official_one():
    """Lesson: resolution and alpha over kimg, against the official formula for lod, written down
    here from its description: whole phases of 1200 kimg, the second half of each fading."""
    stages = train.plan_stages(8, 1024, Table({4: 600}), Table({4: 600}))
    for kimg in np.arange(0.5, 25000, 37.0):
        phases, rest = divmod(kimg, 1200)
        lod = max(10 - 3 - phases - max(rest - 600, 0) / 600, 0)
        stage = train.stage_at(kimg * 1000, stages)
        alpha = train.alpha_at(kimg * 1000, stage)
        assert stage.resolution == 2 ** (10 - math.floor(lod))
        assert alpha == pytest.approx(1 - (lod - math.floor(lod)), abs=1e-9)
    assert stages[-1] == train.Stage(8_400_000, math.inf, 1024, False)
    assert [s.end for s in stages[:-1]] == [s.start for s in stages[1:]]               # no gaps
    # A stage of no length is left out; fractions of a kimg are allowed.
    short = train.plan_stages(4, 16, Table({4: 0}), Table({4: 1.5}))
    assert short == [train.Stage(0, 1500, 4, False), train.Stage(1500, 3000, 8, False),
                     train.Stage(3000, math.inf, 16, False)]
    # The image that ends a stage is the first of the next one.
    assert train.stage_at(1499, short).resolution == 4
    assert train.stage_at(1500, short).resolution == 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """4 to 8 px: one run to 0.4 kimg; one of 0.15 kimg, the middle of the fade, that then goes on
    to 0.4. Returns the folder."""
    folder = tmp_path_factory.mktemp("runs")
    photos = tiny.save_pictures(folder / "photos")
    asked = ["--data", str(photos), *tiny.RUN, "--resolution", "8", "--cache", str(folder / "c"),
             "--learning-rate", "4:0.001,8:0.002", "--tick-kimg", "0.008"]
    with pytest.MonkeyPatch.context() as patch:
        tiny.no_rehearsal(patch)
        for name, total in (("whole", "0.4"), ("cut", "0.15")):
            assert train.main([*asked, "--total-kimg", total, "--out", str(folder / name)]) == 0
        kept = folder / "cut" / "checkpoint.pt"
        progress = checkpoints.load_checkpoint(kept)["progress"]
        assert progress["phase"] == "fade" and 0.4 < progress["alpha"] < 0.6
        assert train.main(["--resume", str(kept), "--total-kimg", "0.4", "--device", "cpu"]) == 0
    return folder


def test_the_total_cuts_a_fade_and_does_not_speed_it_up(runs):
    """Lesson: alpha is a function of nimg and the tables. The paper's schedule, ended at 6.70
    million images, has come to 0.15 at 6.69 million, as the official code (a fade squeezed into
    what is left would be at 0.9). Cut and resumed with a larger total, it does not jump."""
    official = train.plan_stages(8, 1024, Table({4: 600}), Table({4: 600}))
    stage = train.stage_at(6_690_000, official)
    assert stage == train.Stage(6_600_000, 7_200_000, 512, True)
    assert train.alpha_at(6_690_000, stage) == pytest.approx(0.15)
    whole, cut = (tiny.deterministic(runs / name) for name in ("whole", "cut"))
    assert whole == cut
    alphas = [line["alpha"] for line in cut if line["phase"] == "fade"]
    # At the start of each step: 0.1 kimg is reached after 13 steps of 8 images.
    assert alphas == pytest.approx([(nimg - 100) / 100 for nimg in range(104, 200, 8)])
    assert [line["alpha"] for line in cut if line["phase"] != "fade"] == [1.0] * (len(cut) - 12)


# ---- 2. the average of G, and Adam ----


def test_ema_forgets_half_in_a_halflife():
    """Lesson: after 10 kimg, half of the average is what it was before, at any batch size."""
    for batch in (4, 32, 500):
        weight = 1.0
        for nimg in range(batch, 10_000 + batch, batch):
            weight *= train.ema_beta(10 ** 9, batch, 10.0)
        assert weight == pytest.approx(0.5, rel=0.04)
    assert train.ema_beta(2000, 100, 10.0) == pytest.approx(0.5)           # young: 5 % of 2000
    assert train.ema_beta(32, 32, 0.0) == 0.0                              # no averaging at all
    G, average = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    G.weight.data.fill_(3.0)
    G.running_mean.fill_(5.0)
    train.update_ema(average, G, 0.75)
    assert torch.allclose(average.weight, torch.full((3,), 1.5))           # 0.75 * 1 + 0.25 * 3
    assert torch.equal(average.running_mean, G.running_mean)               # buffers are copied


def test_forgetting_the_moments_makes_a_new_adam():
    """Lesson: the next step is the one that a new Adam makes: the rate times the gradient's sign,
    as ProGAN's betas say, whatever came before."""
    def last_step(forget):
        layer = torch.nn.Linear(3, 1, bias=False)
        adam = train.new_adam(layer)
        train.set_learning_rate(0.5, adam)
        for gradient in (100.0, 0.01):
            before = layer.weight.detach().clone()
            layer.weight.grad = torch.tensor([[gradient, -gradient, gradient]])
            if forget:
                train.forget_moments(adam)
            adam.step()
        return layer.weight.detach() - before
    signs = torch.tensor([[-1.0, 1.0, -1.0]])
    assert torch.allclose(last_step(forget=True), 0.5 * signs, rtol=1e-4)
    # Control: beta1 = 0, so the step has the size of this gradient alone; beta2 = 0.99, so it is in
    # units of the root of the two gradients' weighted mean square.
    size = 0.01 / math.sqrt((0.99 * 0.01 * 100 ** 2 + 0.01 * 0.01 ** 2) / (1 - 0.99 ** 2))
    assert torch.allclose(last_step(forget=False), 0.5 * size * signs, rtol=1e-3)


def test_a_stage_begins_with_a_fresh_adam_and_a_resolution_with_its_rate(runs):
    """Lesson: 8 px fade in from 104 images on and are whole at 200; then 25 steps are left."""
    checkpoint = checkpoints.load_checkpoint(runs / "whole" / "checkpoint.pt")
    assert checkpoint["progress"]["step"] == 50
    for name in ("optimizer_g", "optimizer_d"):
        assert {state["step"].item() for state in checkpoint[name]["state"].values()} == {25}
        assert [group["lr"] for group in checkpoint[name]["param_groups"]] == [0.002]
    at_4 = checkpoints.load_checkpoint(runs / "whole" / "checkpoint-4.pt")
    assert at_4["optimizer_g"]["param_groups"][0]["lr"] == 0.001           # control


# ---- 3. a step ----


def test_reals_stay_sharp_where_a_block_is_morphed():
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(train.reals_at(images, 0.3, "fade"), data.fade_reals(images, 0.3))
    assert torch.equal(train.reals_at(images, 0.3, "morph"), images)
    assert not torch.equal(data.fade_reals(images, 0.3), images)           # control


@pytest.mark.parametrize("architecture, alpha, unused", [("stylegan", 0.5, 2), ("stylegan2", 1, 0)])
def test_ds_two_backward_passes_are_one_loss(architecture, alpha, unused):
    """Lesson: the gradients that D's turn leaves are those of the explained formula, computed at
    once, R1 included; and what it returns are the formula's values."""
    G, D = tiny.networks(architecture=architecture)
    reals, z = torch.rand(8, 3, 16, 16), torch.randn(8, 2, 8)
    mixes = torch.randint(0, 2, (8, 6))
    said = train.discriminator_turn(G, D, reals, z, mixes, alpha, 3.0)
    used = [p for p in D.parameters() if p.grad is not None]
    # All, but for StyleGAN's way in at 4 px.
    assert len(used) == len(list(D.parameters())) - unused
    ours = [p.grad.clone() for p in used]
    D.zero_grad()
    reals.requires_grad_()
    real_scores = D(reals, alpha)
    fake_scores = D(G(z, mixes, alpha=alpha), alpha)   # noise strengths are 0: the same fakes
    loss = losses.discriminator_loss(real_scores, fake_scores)
    r1 = losses.r1_penalty(real_scores, reals)
    (loss + 3.0 * r1).backward()
    assert max(relative(a, p.grad) for a, p in zip(ours, used)) < 1e-4
    judge = torch.stack([loss, real_scores.mean(), fake_scores.mean(), r1,
                         (real_scores > 0).float().mean() * 2 - 1])
    assert torch.allclose(said, judge, rtol=1e-5)
    # Controls: the penalty matters; without it none is reported; G is not taught.
    D.zero_grad()
    G.zero_grad()
    assert train.discriminator_turn(G, D, reals.detach(), z, mixes, alpha, None)[3] == 0
    assert max(relative(a, p.grad) for a, p in zip(ours, used)) > 0.01
    assert all(p.grad is None for p in G.parameters())


def test_a_generator_step_leaves_the_discriminator_alone():
    """Lesson: G's loss flows through D, and must not teach it: D's Adam finds no gradients."""
    G, D = tiny.networks(resolution=8)
    G_opt, D_opt = train.new_adam(G), train.new_adam(D)
    before = [p.clone() for p in D.parameters()], [p.clone() for p in G.parameters()]
    z, mixes = torch.randn(2, 4, 2, 8), torch.zeros(2, 4, 4, dtype=torch.long)
    train.generator_turn(G, D, z[1], mixes[1], 8, 1.0)
    assert all(p.grad is None and p.requires_grad for p in D.parameters())
    G_opt.step()
    D_opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before[0], D.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(before[1], G.parameters()))
    said = train.training_step(G, D, G_opt, D_opt, torch.rand(4, 3, 8, 8), z, mixes, 1.0, 1.0, None,
                               1, tiny.ALONE)
    said = dict(zip(LOGGED, said.tolist(), strict=True))
    assert (said["r1_steps"], said["path_steps"]) == (1, 0)
    # Control: the same Adam moves D in D's own turn.
    assert not all(torch.equal(a, b) for a, b in zip(before[0], D.parameters()))


def test_path_length_is_a_turn_of_its_own_on_half_of_the_batch(monkeypatch):
    """Lesson: of five images three are used, each layer with the style that its row says. The
    gradients are added to those that G has, and w_avg follows. Judge: image by image in float64."""
    G, _ = tiny.networks(architecture="stylegan2")
    z, mixes, y = torch.randn(5, 2, 8), torch.randint(0, 2, (5, 6)), torch.randn(5, 3, 16, 16) / 16
    G.path_length_mean.fill_(0.3)
    G.w_avg.normal_()
    monkeypatch.setattr(train, "path_lengths", lambda images, ws: losses.path_lengths(
        images, ws, y[:len(images)]))

    def by_hand(chosen):
        judge = copy.deepcopy(G).double()
        w = judge.mapping(z[chosen].double().flatten(0, 1)).unflatten(0, (-1, 2))
        ws = torch.stack([w[n, row] for n, row in enumerate(mixes[chosen])])           # [n, 6, 8]
        images = judge.synthesis(ws, noise_mode="none")
        lengths = []
        for n, k in enumerate(chosen):
            slope, = torch.autograd.grad((images[n] * y[k]).sum(), ws, create_graph=True)
            lengths.append((sum(slope[n, layer].square().sum() for layer in range(6)) / 6).sqrt())
        lengths = torch.stack(lengths)
        mean = 0.99 * 0.3 + 0.01 * lengths.mean()
        penalty = (lengths - mean).square().mean()
        (6.0 * penalty).backward()
        w_avg = 0.995 * judge.w_avg + 0.005 * w[:, 0].mean(dim=0)
        return judge, [lengths.mean().item(), penalty.item()], mean.item(), w_avg
    judge, numbers, mean, w_avg = by_hand([0, 1, 2])
    for parameter in G.parameters():
        parameter.grad = torch.ones_like(parameter)            # those of the turn before
    said = train.path_length_turn(G, z, mixes, 6.0)
    assert said.tolist() == pytest.approx(numbers, rel=1e-4) and not said.requires_grad
    assert G.path_length_mean.item() == pytest.approx(mean, rel=1e-5)
    assert torch.allclose(G.w_avg.double(), w_avg, atol=1e-6)
    compared = 0
    for (name, ours), theirs in zip(G.named_parameters(), judge.parameters()):
        if "noise" in name:                    # the maps are random; their strength is 0 here
            continue
        if theirs.grad is None:                # the bias of to_rgb is the same for every w
            assert torch.equal(ours.grad, torch.ones_like(ours)) and "to_rgb" in name
        else:
            # 1 was added and taken away again, so gradients below 1 have lost some digits.
            miss = (ours.grad.double() - 1 - theirs.grad).abs().max()
            assert miss < 1e-4 * theirs.grad.abs().max() + 1e-6, name
            compared += 1
    assert compared > 20
    _, others, *_ = by_hand([0, 1, 2, 3, 4])                   # control: the whole batch
    assert abs(others[1] - numbers[1]) > 0.01 * numbers[1]


def test_path_length_takes_the_batch_of_ds_turn_again(monkeypatch):
    """Lesson: G's turn had the other one. It is called for the steps in which it is due, once for
    each part of the batch."""
    G, D = tiny.networks(architecture="stylegan2")
    optimizers = [tiny.Recorder(network.parameters(), lr=0.0) for network in (G, D)]
    z, mixes, seen, numbers = torch.randn(2, 4, 2, 8), torch.randint(0, 2, (2, 4, 6)), [], []
    turns = {name: getattr(train, name) for name in ("generator_turn", "path_length_turn")}
    monkeypatch.setattr(train, "path_length_turn", lambda G, *given: seen.append(
        ("path", *given)) or numbers.append(turns["path_length_turn"](G, *given)) or numbers[-1])
    monkeypatch.setattr(train, "generator_turn", lambda G, D, *given: seen.append(
        ("G", *given[:2])) or turns["generator_turn"](G, D, *given))
    for factor, accumulate in ((None, 1), (3.0, 1), (3.0, 2)):
        seen.clear(), numbers.clear()
        said = train.training_step(G, D, *optimizers, torch.rand(4, 3, 16, 16), z, mixes, 1.0, None,
                                   factor, accumulate, tiny.ALONE)
        said = dict(zip(LOGGED, said.tolist(), strict=True))
        assert said["r1_steps"] == said["r1"] == 0
        assert said["path_steps"] == (factor is not None) == (said["path_length"] > 0)
        wanted = [("G", z[1, p::accumulate], mixes[1, p::accumulate]) for p in range(accumulate)]
        if factor:
            wanted += [("path", z[0, p::accumulate], mixes[0, p::accumulate], 3.0)
                       for p in range(accumulate)]
        assert tiny.differences(seen, wanted) == []
        if factor:                                             # the step says the mean of the parts
            assert [said["path_length"], said["path_penalty"]] == pytest.approx(
                torch.stack(numbers).mean(dim=0).tolist())
    assert tiny.differences(z[0], z[1])                        # control: they differ


@pytest.mark.parametrize("architecture, buffers", [("stylegan", 1), ("stylegan2", 2)])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulating_is_the_same_step(accumulate, architecture, buffers):
    """Lesson: a batch worked off in parts gives the same gradients, in less memory. (w_avg and the
    mean of path lengths move with every part.)"""
    def gradients(*share, **options):
        return tiny.gradients_of_a_step(train.training_step, *share, architecture=architecture,
                                        **options)[:-buffers]
    whole, parts = gradients(), gradients(accumulate=accumulate)
    assert max(relative(a, b) for a, b in zip(parts, whole)) < 1e-4
    # Control: half of the batch alone has others.
    half = gradients(0, 2)
    assert max(relative(a, b) for a, b in zip(half, whole)) > 0.01


@pytest.mark.parametrize("architecture, alpha", [("stylegan", 0.5), ("stylegan2", 1.0)])
def test_a_step_is_the_same_to_the_bit_each_time(architecture, alpha):
    """Lesson: threads may finish in any order, but nothing may be added up in that order."""
    def gradients(seed):
        torch.manual_seed(0)
        G, D = tiny.networks(resolution=8, channel_base=512, channel_max=64, latent_dim=64,
                             architecture=architecture)
        optimizers = [tiny.Recorder(network.parameters(), lr=0.0) for network in (G, D)]
        torch.manual_seed(seed)
        train.training_step(G, D, *optimizers, torch.rand(32, 3, 8, 8), torch.randn(2, 32, 2, 64),
                            torch.randint(0, 2, (2, 32, 4)), alpha, 5.0,
                            None if architecture == "stylegan" else 8.0, 1, tiny.ALONE)
        return torch.cat([g.flatten() for o in optimizers for g in o.seen])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)                                   # one thread has only one order
    try:
        first = gradients(1)
        assert all(torch.equal(gradients(1), first) for _ in range(4))
        assert not torch.equal(gradients(2), first)            # control
    finally:
        torch.set_num_threads(threads)


class NothingWaits(TorchDispatchMode):
    """Forbids what would make the CPU wait for a GPU: reading a number out of a tensor, sizes that
    depend on values, and making a tensor of Python's numbers, which is copied from the CPU."""

    FORBIDDEN = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero",
                 "aten::masked_select", "aten::unique", "aten::lift_fresh"}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        if name in self.FORBIDDEN or name == "aten::index" and any(
                index is not None and index.dtype == torch.bool for index in args[1]):
            raise AssertionError(f"{name}: the CPU would wait for a GPU")
        return function(*args, **(kwargs or {}))


def one_step(device="cpu", accumulate=1, architecture="stylegan"):
    """A function that makes a step as the loop does, with Adams that have made one before."""
    G, D = tiny.networks(architecture=architecture)
    G, D = G.to(device), D.to(device)
    optimizers = train.new_adam(G), train.new_adam(D)
    average, team = copy.deepcopy(G), tiny.machine.Team(torch.device(device))
    z = torch.randn(2, 8, 2, 8, device=device)
    mixes = torch.zeros(2, 8, 6, dtype=torch.long, device=device)

    def step(alpha=1.0):
        reals = torch.rand(8, 3, 16, 16, device=device)
        said = train.training_step(G, D, *optimizers, reals, z, mixes, alpha, 1.0,
                                   None if architecture == "stylegan" else 8.0, accumulate, team)
        train.update_ema(average, G, 0.9)
        return said
    step()
    return step


@pytest.mark.parametrize("architecture, alphas", [("stylegan", (0.5, 1.0)), ("stylegan2", (1.0,))])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_asks_a_tensor_for_a_number(accumulate, architecture, alphas, monkeypatch):
    """Lesson: on a GPU the CPU runs ahead and hands out work. A number that it asks for in a step
    stops that. Without a GPU one can at least look at what is called."""
    # On a CPU one_hot looks whether its numbers are in range. On CUDA it does not (torch 2.14; the
    # next test would see it). So here a comparison takes its place.
    monkeypatch.setattr(F, "one_hot", lambda rows, n: (
        rows[..., None] == torch.arange(n)).to(torch.long))
    step = one_step(accumulate=accumulate, architecture=architecture)
    with NothingWaits():
        for alpha in alphas:
            step(alpha)
    # Controls: four ways to wait, in the last turn of each.
    name = "generator_loss" if architecture == "stylegan" else "path_length_penalty"
    right = getattr(train, name)
    for wrong in (lambda s, *rest: right(s, *rest) * right(s, *rest).item(),
                  lambda s, *rest: right(s[s < 1e9].reshape(len(s), *s.shape[1:]), *rest),
                  lambda s, *rest: right(s, *rest) * torch.tensor(1.0),
                  lambda s, *rest: right(s, *rest) if s.sum() else 0):
        step = one_step(architecture=architecture)
        monkeypatch.setattr(train, name, wrong)
        with NothingWaits(), pytest.raises(AssertionError, match="would wait"):
            step()
        monkeypatch.setattr(train, name, right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_no_step_waits_for_a_cuda_gpu():
    """Lesson: the same, as CUDA itself sees it."""
    step, stylegan2 = one_step("cuda"), one_step("cuda", architecture="stylegan2")
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(0.5)
        step(1.0)
        stylegan2()
        with pytest.raises(RuntimeError, match="synchroniz"):
            step(0.5).tolist()                         # control
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- 4. the game ----


@pytest.mark.parametrize("interval, total, computed", [("1", "0.08", 10), ("3", "0.08", 4),
                                                       ("16", "0.08", 1)])
def test_r1_is_computed_in_every_kth_step_only(interval, total, computed, tmp_path, monkeypatch):
    """Lesson: ten steps, of which --r1-interval 3 has R1 in steps 0, 3, 6 and 9, k times as
    strong; the log's r1 is the mean over these alone."""
    tiny.no_rehearsal(monkeypatch)
    seen, weights, right, step = [], [], train.r1_penalty, train.training_step

    def count(scores, reals):
        seen.append(right(scores, reals))
        return seen[-1]

    def watch(*arguments):
        weights.append(arguments[8])
        return step(*arguments)
    monkeypatch.setattr(train, "r1_penalty", count)
    monkeypatch.setattr(train, "training_step", watch)
    photos = tiny.save_pictures(tmp_path / "photos", 20)
    assert train.main(["--data", str(photos), *tiny.RUN, "--r1-interval", interval, "--total-kimg",
                       total, "--tick-kimg", "1", "--r1-gamma", "10", "--cache",
                       str(tmp_path / "c"), "--out", str(tmp_path / "run")]) == 0
    k = int(interval)
    # 4 px of 16: (1/4)^2 of gamma / 2 * k
    assert weights == [5 * k / 16 if n % k == 0 else None for n in range(10)]
    assert len(seen) == computed
    line, = tiny.log_of(tmp_path / "run")
    assert line["r1"] == pytest.approx(torch.stack(seen).mean().item(), rel=1e-5)


@pytest.mark.parametrize("weight, interval, factors", [
    ("2", "4", [8.0, None, None, None, 8.0, None]), ("0.5", "1", [0.5] * 6),
    ("0", "4", [None] * 6)])
def test_path_length_is_computed_in_every_kth_step_only(weight, interval, factors, tmp_path,
                                                        monkeypatch):
    """Lesson: six steps; the penalty is k times as strong where it is due. The log has the mean
    over these steps alone, and nothing of it without the penalty."""
    tiny.no_rehearsal(monkeypatch)
    seen, said, step = [], [], train.training_step

    def watch(*arguments):
        seen.append(arguments[9])
        said.append(step(*arguments))
        return said[-1]
    monkeypatch.setattr(train, "training_step", watch)
    photos = tiny.save_pictures(tmp_path / "photos", 20)
    assert train.main(["--data", str(photos), *tiny.RUN, "--architecture", "stylegan2",
                       "--path-weight", weight, "--path-interval", interval, "--total-kimg",
                       "0.024", "--tick-kimg", "1", "--cache", str(tmp_path / "c"), "--out",
                       str(tmp_path / "run")]) == 0
    assert seen == factors
    line, = tiny.log_of(tmp_path / "run")
    for name in ("path_length", "path_penalty"):
        values = [numbers[LOGGED.index(name)].item() for numbers in said]
        due = [value for value, factor in zip(values, factors) if factor]
        assert all(value > 0 for value in due) and sum(values) == sum(due)
        if due:
            assert line[name] == pytest.approx(sum(due) / len(due), rel=1e-5)
        else:
            assert name not in line                            # control


def test_a_resumed_run_goes_on_with_its_mean_of_path_lengths(tmp_path, monkeypatch):
    """Lesson: the mean is a part of what G wants, so it is in the checkpoint. A run that begins
    anew with 0 (the control) goes elsewhere."""
    tiny.no_rehearsal(monkeypatch)
    photos = tiny.save_pictures(tmp_path / "photos", 20)
    asked = ["--data", str(photos), *tiny.RUN, "--architecture", "stylegan2", "--cache",
             str(tmp_path / "c")]
    for name, total in (("whole", "0.06"), ("cut", "0.028")):
        assert train.main([*asked, "--total-kimg", total, "--out", str(tmp_path / name)]) == 0
    kept = tmp_path / "cut" / "checkpoint.pt"
    checkpoint = torch.load(kept, weights_only=True)
    for part in ("generator", "generator_ema"):
        assert checkpoint[part]["path_length_mean"] > 0
        checkpoint[part]["path_length_mean"].zero_()
    checkpoints.save_checkpoint(tmp_path / "lost.pt", checkpoint)
    go_on = ["--total-kimg", "0.06", "--device", "cpu"]
    assert train.main(["--resume", str(kept), *go_on]) == 0
    assert train.main(["--resume", str(tmp_path / "lost.pt"), *asked[:2], *go_on, "--out",
                       str(tmp_path / "lost")]) == 0
    whole, cut, lost = (checkpoints.load_checkpoint(tmp_path / name / "checkpoint.pt")
                        for name in ("whole", "cut", "lost"))
    for other in (whole, cut, lost):
        del other["options"]
    assert whole["settings"]["architecture"] == whole["architecture"] == "stylegan2"
    assert tiny.differences(whole, cut) == []
    assert len(tiny.differences(whole, lost)) > 20


def test_a_run_ends_with_its_total(tmp_path, monkeypatch):
    """Lesson: 2.007 kimg are 2007 images, three steps of 669. (1000 * 2.007 is a little more: a
    loop that compares with that makes a fourth step.)"""
    assert 1000 * 2.007 > 2007                                 # control
    tiny.no_rehearsal(monkeypatch)
    photos = tiny.save_pictures(tmp_path / "photos", 20)
    assert train.main(["--data", str(photos), *tiny.RUN, "--batch", "669", "--total-kimg", "2.007",
                       "--stabilize-kimg", "9", "--tick-kimg", "9", "--cache", str(tmp_path / "c"),
                       "--out", str(tmp_path / "run")]) == 0
    assert [line["nimg"] for line in tiny.log_of(tmp_path / "run")] == [2007]


# ---- 5. the house ----

READ = sorted(ROOT.glob("*.py"))
WORKSHOP = sorted((ROOT / "workshop").glob("*.py"))
CORE = ("train", "stylegan_dataloader", "stylegan_losses", "stylegan_models", "stylegan_layers")


def test_every_test_that_a_comment_names_exists():
    """Lesson: 'Proved:' is a claim too; of every file, and in the file that is named."""
    files = [*READ, *WORKSHOP, *(ROOT / "experiments").glob("*.py"), ROOT / "README.md",
             *(ROOT / "docs").glob("*.md")]
    wrong, found = [], 0
    for file in files:
        where = None
        for test_file, name in re.findall(r"(tests/test_\w+\.py)?::\s*(test_\w+)",
                                          file.read_text(encoding="utf-8")):
            where, found = test_file or where, found + 1       # "::test_b" follows "file::test_a"
            path = ROOT / where
            if not path.is_file() or f"def {name}(" not in path.read_text(encoding="utf-8"):
                wrong.append(f"{file.name}: {where}::{name}")
    assert found > 60
    assert wrong == []


def imports_of(path, also_late):
    """What importing this file imports; also_late: and what its functions import when they run."""
    names, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if also_late else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def import_graph(also_late=False):
    graph = {path.stem: imports_of(path, also_late) for path in READ}
    graph |= {f"workshop.{path.stem}": imports_of(path, also_late) for path in WORKSHOP}
    graph["workshop"] = graph.pop("workshop.__init__")
    return {name: {other for other in others if other in graph} for name, others in graph.items()}


def reachable(graph, name):
    """All that importing `name` imports, and whatever that imports."""
    found, waiting = set(), list(graph[name])
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting += graph[other]
    return found


def test_imports_run_in_no_circle():
    """Lesson: every file can be understood from what it imports, and that from what it imports."""
    graph = import_graph()
    assert {"train", "evaluate", "workshop.run", "workshop.machine"} <= set(graph)
    assert "workshop.machine" in reachable(graph, "train")
    assert [name for name in graph if name in reachable(graph, name)] == []
    late = import_graph(also_late=True)                        # nor one that closes later
    assert "evaluate" in late["workshop.run"]
    assert [name for name in late if name in reachable(late, name)] == []
    # The core needs no measuring; nobody needs the loop.
    for name in CORE:
        assert "evaluate" not in reachable(graph, name), name
    assert [name for name in graph if "train" in graph[name]] == []
    # Control: a circle is found.
    circle = {**graph, "stylegan_layers": graph["stylegan_layers"] | {"train"}}
    assert "train" in reachable(circle, "train")


def test_importing_leaves_no_trace(tmp_path):
    """Lesson: whoever imports a file gets its functions, and nothing else happens: no file is
    written, no random number drawn, nothing said."""
    import subprocess
    import sys
    names = [path.stem for path in READ if path.stem != "explore"]
    names += [f"workshop.{path.stem}" for path in WORKSHOP]
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import torch;"
         f" torch.manual_seed(0); import {', '.join(names)}; assert torch.rand(1) == torch.rand(1, "
         f"generator=torch.Generator().manual_seed(0))"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and not done.stdout and not done.stderr, done
    assert list(tmp_path.iterdir()) == []


def comment_share(path):
    """Lines of comments and docstrings, in percent of the lines that are not blank."""
    text = path.read_text(encoding="utf-8")
    lines = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
                node) is not None:
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.strip().startswith("#"):
            lines.add(token.start[0])
    filled = {number for number, row in enumerate(text.splitlines(), 1) if row.strip()}
    return 100 * len(lines & filled) / len(filled)


def test_what_is_read_is_short_and_explained():
    """Lesson: a walk has a length. The `while` of the game is found on the last page. A third to a
    half of what is read is prose; of the losses and the layers, mostly formulas, more."""
    length = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in READ}
    assert length["train"] <= 420
    assert {name: n for name, n in length.items() if n > 900} == {}
    assert sum(length[name] for name in CORE) <= 2500
    assert length["stylegan_models"] <= 700 and length["stylegan_layers"] <= 500
    lines = (ROOT / "train.py").read_text(encoding="utf-8").splitlines()
    while_at = next(n for n, line in enumerate(lines) if line.startswith("    while "))
    assert len(lines) - while_at <= 80
    shares = {name: round(comment_share(ROOT / f"{name}.py")) for name in CORE}
    assert all(share >= 35 for share in shares.values()), shares
    assert all(shares[name] <= 50 for name in CORE if name not in (
        "stylegan_losses", "stylegan_layers")), shares


def test_lines_fit_a_screen():
    wide = [f"{path.name}:{number}" for path in (*READ, *WORKSHOP)
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if len(line) > 100]
    assert wide == []
