"""train.py: the formulas against the official numbers, and the program as a user meets it."""

import functools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import evaluate
import official
import stylegan_models as models
import train
from conftest import ROOT, relative

GRADIENT = 1e-3                # relative; two implementations in float32 differ by some 1e-5
TINY = ("--resolution 16 --channel-base 64 --channel-max 8 --latent-dim 8 --style-dim 8 "
        "--mapping-dim 8 --mapping-layers 2 --batch 4:8,16:4 --r1-interval 3 --fade-kimg 0.1 "
        "--stabilize-kimg 0.1 --total-kimg 0.6 --tick-kimg 0.05 --samples-kimg 0.2 "
        "--checkpoint-kimg 0.07 --device cpu").split()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """70 small pictures."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(70):
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(folder / f"{k}.png")
    return folder


def start(*arguments, cwd, **options):
    """The program as a user starts it, in a process of its own."""
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
                            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **options)


def finish(process, code=0):
    out, error = process.communicate(timeout=120)
    assert process.returncode == code, out + (error or "")
    return out, error


# ---- 1. the formulas ----


def test_the_schedule_is_the_official_one():
    """Lesson: resolution and alpha over kimg, against the official formula for lod, written down
    here from its description: whole phases of 1200 kimg, the second half of each fading."""
    stages = train.plan_stages(8, 1024, train.Table({4: 600}), train.Table({4: 600}), 25000)
    for kimg in np.arange(0.5, 25000, 37.0):
        phases, rest = divmod(kimg, 1200)
        lod = max(10 - 3 - phases - max(rest - 600, 0) / 600, 0)
        stage = next(s for s in stages if kimg * 1000 < s.end)
        alpha = train.alpha_at(kimg * 1000, stage)
        assert stage.resolution == 2 ** (10 - math.floor(lod))
        assert alpha == pytest.approx(1 - (lod - math.floor(lod)), abs=1e-9)
    assert stages[-1] == train.Stage(8_400_000, 25_000_000, 1024, False)
    assert [s.end for s in stages] == [s.start for s in stages[1:]] + [25_000_000]   # no gaps
    # A run may end before its final resolution, and a stage of no length is left out.
    short = train.plan_stages(4, 32, train.Table({4: 0}), train.Table({4: 1}), 2.5)
    assert short == [train.Stage(0, 1000, 4, False), train.Stage(1000, 2000, 8, False),
                     train.Stage(2000, 2500, 16, False)]


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
    ours = train.r1_penalty(scores, reals) * (r / 32) ** 2
    assert ours.item() == pytest.approx(judge.mean().item(), rel=GRADIENT)
    enlarged = F.interpolate(gradient, scale_factor=2 ** whole) / 4 ** whole
    assert relative(enlarged[:2], io[f"lod{lod}_gradx"]) < GRADIENT
    # ... and its gradient with respect to D's weights, which is 5 times the mean penalty's.
    D.zero_grad()
    (train.r1_weight(10.0, 1, r, 32) * train.r1_penalty(D(reals, alpha), reals)).backward()
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


def test_losses_and_gradients_equal_the_official_ones():
    """Lesson: mid-fade, at alpha 0.7, every parameter of both networks gets the official gradient,
    the mapping network with its learning rate multiplier included."""
    G, D = official.networks()
    io, alpha = official.load("io"), 0.7
    reals = io["x_real"].clone().requires_grad_()
    fakes = G(io["z"], noise_mode="const", alpha=alpha)
    real_scores = D(reals, alpha)
    d_loss = train.discriminator_loss(real_scores, D(fakes.detach(), alpha))
    d_loss = d_loss + train.r1_weight(10.0, 1, 32, 32) * train.r1_penalty(real_scores, reals)
    assert d_loss.item() == pytest.approx(io["lod0.3_d_loss_r1gamma10"].item(), rel=1e-4)
    d_loss.backward()
    d_gradients = {name: p.grad.clone() for name, p in D.named_parameters() if p.grad is not None}
    g_loss = train.generator_loss(D(fakes, alpha))
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
                compared += 1
        assert compared >= 20, compared


def test_a_discriminator_that_cannot_tell_has_loss_2_ln_2():
    """Lesson: how to read the log."""
    cannot_tell, sure = torch.zeros(4, 1), torch.full((4, 1), 20.0)
    undecided = train.discriminator_loss(cannot_tell, cannot_tell).item()
    assert undecided == pytest.approx(1.386, abs=1e-3)
    assert train.discriminator_loss(sure, -sure).item() < 1e-6             # always right
    assert train.discriminator_loss(-sure, sure).item() > 30               # always wrong


def test_the_honest_loss_saturates_where_the_non_saturating_one_pulls():
    """Lesson: at D(fake) = -10 (G is bad) the gradient is 0.99995 instead of 0.00005."""
    scores = torch.tensor([[-10.0]], requires_grad=True)
    ours, = torch.autograd.grad(train.generator_loss(scores), scores)
    honest, = torch.autograd.grad(-F.softplus(scores).mean(), scores)
    assert ours.item() == pytest.approx(-1, abs=1e-3) and abs(honest.item()) < 1e-4


def test_lazy_r1_pulls_as_hard_on_average():
    every_step = [train.r1_weight(10.0, 1, 32, 32)] * 16
    lazy = [train.r1_weight(10.0, 16, 32, 32)] + [0] * 15
    assert sum(lazy) == sum(every_step) == 16 * 5.0


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


def test_what_is_not_finite_is_found():
    """Lesson: one bad number among a million gradients is enough."""
    layer = torch.nn.Linear(10, 10)
    loss = layer(torch.randn(2, 10)).sum()[None]
    loss.backward()
    loss = loss.detach()
    assert not train.not_finite(layer.parameters(), loss)                  # control
    assert train.not_finite(layer.parameters(), loss * math.inf)
    layer.weight.grad[3, 4] = math.nan
    assert train.not_finite(layer.parameters(), loss)


def test_a_generator_step_leaves_the_discriminator_alone():
    """Lesson: G's loss flows through D, and must not move it."""
    settings = dict(resolution=8, channel_base=32, channel_max=8, latent_dim=8, style_dim=8,
                    mapping_dim=8, mapping_layers=2)
    G, D = models.make_generator(settings), models.make_discriminator(settings)
    G_opt = train.new_adam(G, torch.device("cpu"))
    before = [p.clone() for p in D.parameters()], [p.clone() for p in G.parameters()]
    z, mixes = torch.randn(2, 4, 2, 8), torch.zeros(2, 4, 4, dtype=torch.long)
    still = torch.optim.SGD(D.parameters(), lr=0.0)
    reals = torch.rand(4, 3, 8, 8)
    means, bad = train.training_step(G, D, G_opt, still, reals, z, mixes, 1.0, 1.0)
    assert means.shape == (len(train.LOGGED) + 1,) and not bad
    assert all(torch.equal(a, b) for a, b in zip(before[0], D.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(before[1], G.parameters()))   # control


class Recorder(torch.optim.SGD):
    """An optimizer that changes nothing and remembers the gradients it was given."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for p in self.param_groups[0]["params"]
                     if p.grad is not None]


def gradients_of_a_step(process=0, processes=1, accumulate=1, compiler=None, growth="fade"):
    """Gradients of D and G and w_avg in the first step of a small network, batch 16, R1 and all.

    (Noise strengths start at 0, so the noise, which differs between processes, does not matter.)
    """
    torch.manual_seed(0)
    settings = dict(resolution=16, channel_base=64, channel_max=8, latent_dim=8, style_dim=8,
                    mapping_dim=8, mapping_layers=2)
    G, D = models.make_generator(settings), models.make_discriminator(settings)
    G.synthesis.blocks["4"].const.weight.data.normal_()        # ones have no deviation to divide by
    G.synthesis.growth = D.growth = growth
    z, reals = torch.randn(2, 16, 2, 8), torch.rand(16, 3, 16, 16)
    mixes = torch.randint(0, 2, (2, 16, 6))
    G_opt, D_opt = (Recorder(network.parameters(), lr=0.0) for network in (G, D))
    mine = slice(process, None, processes)
    alpha, compiled = 0.5, None
    if compiler:
        alpha, compiled = torch.tensor(0.5), train.compile_networks(G, D, compiler)
    train.training_step(G, D, G_opt, D_opt, reals[mine], z[:, mine], mixes[:, mine], alpha, 5.0,
                        accumulate, compiled=compiled)
    strengths = [i for i, (name, p) in enumerate(G.named_parameters()) if "noise" in name]
    return D_opt.seen + [g for i, g in enumerate(G_opt.seen) if i not in strengths] + [G.w_avg]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulating_is_the_same_step(accumulate):
    """Lesson: a batch worked off in parts gives the same gradients, in less memory."""
    whole, parts = gradients_of_a_step(), gradients_of_a_step(accumulate=accumulate)
    assert max(relative(a, b) for a, b in zip(parts[:-1], whole[:-1])) < 1e-5
    # Control: half of the batch alone has others.
    assert max(relative(a, b) for a, b in zip(gradients_of_a_step(0, 2), whole)) > 0.01


@pytest.mark.parametrize("growth", ["fade", "morph"])
def test_compiled_networks_have_the_same_gradients(growth):
    """Lesson: torch.compile rewrites the program, its gradients included; that is to be checked.
    (An activation that worked in place came out with wrong gradients, without a word.)"""
    written, compiled = (gradients_of_a_step(compiler=compiler, growth=growth)
                         for compiler in (None, "aot_eager"))
    assert max(relative(a, b) for a, b in zip(compiled, written)) < 1e-5
    other = gradients_of_a_step(0, 2, growth=growth)           # control: of half of the batch
    assert max(relative(a, b) for a, b in zip(other, written)) > 0.01


def _gradients_of_a_process(process, folder):
    torch.distributed.init_process_group("gloo", init_method=(folder / "meeting").as_uri(),
                                         rank=process, world_size=2)
    torch.save(gradients_of_a_step(process, 2), folder / f"{process}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Lesson: averaging over processes is averaging over images; the groups of the minibatch
    stddev are those of the whole batch, since each process takes every second image."""
    torch.multiprocessing.spawn(_gradients_of_a_process, (tmp_path,), nprocs=2)
    whole = gradients_of_a_step()
    first, second = (torch.load(tmp_path / f"{p}.pt", weights_only=True) for p in range(2))
    for ours, other, judge in zip(first, second, whole):
        assert torch.equal(ours, other) and relative(ours, judge) < 1e-5
    # Control: without the averaging, each has the gradients of its half.
    assert max(relative(a, b) for a, b in zip(gradients_of_a_step(0, 2), whole)) > 0.01


def test_a_step_is_the_same_to_the_bit_each_time():
    """Lesson: threads may finish in any order, but nothing may be added up in that order."""
    options, _ = train.complete_options({}, torch.device("cpu"))
    settings = {name: options[name] for name in models.SETTINGS}

    def gradients(seed):
        torch.manual_seed(0)
        G, D = models.make_generator(settings), models.make_discriminator(settings)
        optimizers = [Recorder(network.parameters(), lr=0.0) for network in (G, D)]
        torch.manual_seed(seed)
        train.training_step(G, D, *optimizers, torch.rand(32, 3, 8, 8), torch.randn(2, 32, 2, 64),
                            torch.randint(0, 2, (2, 32, 4)), 0.5, 5.0)
        return torch.cat([g.flatten() for o in optimizers for g in o.seen])
    first = gradients(1)
    assert all(torch.equal(gradients(1), first) for _ in range(6))
    assert not torch.equal(gradients(2), first)                # control


def test_z_and_the_noise_of_each_process_are_different_numbers():
    """Lesson: z must be the same in every process, and the noise in none like z or another's."""
    def numbers(*where):
        generator = train.seed_step(*where, torch.device("cpu"))
        return torch.randn(8, generator=generator), torch.randn(8)
    z, noise = numbers(3, 7, 0)
    z_1, noise_1 = numbers(3, 7, 1)
    assert torch.equal(z, z_1) and torch.equal(numbers(3, 7, 0)[1], noise)
    different = [z, noise, noise_1, *numbers(3, 8, 0), *numbers(4, 7, 0)]
    assert len({tuple(x.tolist()) for x in different}) == len(different)


def test_fp16_scales_the_loss_and_the_gradient_comes_out_right():
    """Lesson: a gradient of 1e-9 is 0 in float16, unless the loss was made larger beforehand."""
    cpu, one = torch.device("cpu"), torch.ones(())
    scale = train.new_scalers("fp16", cpu)[0].scale(one)
    assert scale == 65536 and train.new_scalers("bf16", cpu)[0].scale(one) == 1
    x, weight = torch.full((1, 1, 1, 1), 0.5), torch.full((1,), 2e-9)
    for loss_scale, found in ((1.0, 0.0), (scale, 2e-9)):
        x.requires_grad_()
        scores = x.half().float() * weight                     # the gradient passes through x.half
        r1 = train.r1_penalty(scores, x, loss_scale)
        assert r1.item() == pytest.approx(found ** 2, rel=0.01)


# ---- 2. the options ----


def test_tables_say_one_number_or_one_per_resolution():
    parse = train.table_of(int)
    assert parse("32")[4] == parse("32")[1024] == 32
    table = parse("8:64,64:16")
    assert [table[r] for r in (4, 8, 32, 64, 1024)] == [64, 64, 64, 16, 16]
    assert train.show(table) == "8:64,64:16" and parse(train.show(table)) == table
    for wrong in ("", "x", "4:", "4:-1", "4:1,8"):
        with pytest.raises(Exception, match="neither|below"):
            parse(wrong)


@pytest.mark.parametrize("typed, message", [
    (["--resolution", "48"], "--resolution: the resolution must be a power of two"),
    (["--resolution", "big"], "'big' is not a number"),
    (["--resolution", "16", "--initial-resolution", "32"], "is larger than --resolution 16"),
    (["--batch", "0"], "--batch 0 is too small"),
    (["--total-kimg", "0.0004"], "--total-kimg 0.0004 is too small"),
    (["--evaluate-kimg", "0"], "--evaluate-kimg 0 is too small"),
    (["--samples-kimg", "inf"], "inf must be a number, 0 or more"),
    (["--data", ""], "--data: an empty path"),
    (["--batch", "4:8;16:4"], "neither a number nor a table"),
    (["--batch", "9", "--accumulate", "2"], "--batch 9 at 4 px cannot be divided by 1 processes"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--channel-base", "4"], "leaves no channel"),
    (["--mixing-probability", "1.5"], "must be from 0 to 1"),
    (["--speed", "9"], "unrecognized arguments"),
    (["--data", "no/such/place"], "no/such/place: no such folder or .zip"),
    (["--resume", "no/such.pt"], "no/such.pt: no such file"),
    (["--device", "toaster"], "--device toaster"),
    (["@missing.txt"], "missing.txt"),
    (["@broken.txt"], "No closing quotation"),
])
def test_bad_use_gets_one_sentence_and_exit_code_2(typed, message, capsys, tmp_path, monkeypatch):
    """Lesson: and nothing is created."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.txt").write_text("--data 'my photos")
    with pytest.raises(SystemExit) as caught:
        train.main(typed)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir()] == ["broken.txt"]


def test_options_may_stand_in_a_file(tmp_path):
    """Lesson: any number on a line, comments, quotes; a backslash is a backslash (Windows)."""
    (tmp_path / "photos.txt").write_text(
        "# my photos\n--data 'C:\\Users\\me\\my photos#1'  # trailing\n\n"
        "--batch 4:8,8:4 --no-flip\n")
    assert train.parse_args([f"@{tmp_path / 'photos.txt'}", "--seed", "3"]) == {
        "data": "C:\\Users\\me\\my photos#1", "batch": {4: 8, 8: 4}, "no_flip": True, "seed": 3}


def test_every_situation_has_a_complete_set_of_options():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sizes = set()
    for typed, device in (({}, cpu), ({}, gpu), ({"data": "x"}, cpu), ({"data": "x"}, gpu)):
        options, situation = train.complete_options(typed, device)
        again = train.parse_args(train.command_line(options).split()[2:])
        assert {**options, **again} == options                 # it can be typed, and is the same
        sizes.add((situation, options["resolution"]))
    assert {r for _, r in sizes} == {32, 64, 128, 1024} and len(sizes) == 4
    paper, _ = train.complete_options({"data": "x"}, gpu)
    assert [paper["batch"][2 ** k] for k in range(2, 11)] == [128, 128, 128, 64, 32, 16, 8, 4, 4]
    assert [paper["learning_rate"][2 ** k] for k in range(6, 11)] == [
        0.001, 0.0015, 0.002, 0.003, 0.003]


def test_a_larger_resolution_gets_the_images_it_needs():
    """Lesson: --resolution 512 alone must not end at 128 px."""
    for r in (64, 512):
        o, _ = train.complete_options({"data": "x", "resolution": r}, torch.device("cpu"))
        names = ("initial_resolution", "resolution", "fade_kimg", "stabilize_kimg", "total_kimg")
        assert train.plan_stages(*(o[name] for name in names))[-1].resolution == r
    o, _ = train.complete_options({"data": "x", "total_kimg": 5.0}, torch.device("cpu"))
    assert o["total_kimg"] == 5                                # what was typed stands


# ---- 3. the program ----


def deterministic(run):
    """log.jsonl without what depends on the clock and the machine."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("images_per_second", "seconds_per_kimg", "peak_memory_mb"):
            del line[key]
    return lines


def differences(a, b, where=""):
    """Paths at which two checkpoints differ in a bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [where]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        return [d for k, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}/{k}")]
    return [] if a == b else [where]


def wait_for(run, condition, process):
    """Poll log.jsonl until a line satisfies the condition."""
    log = run / "log.jsonl"
    for _ in range(6000):
        if log.exists():
            lines = [json.loads(x) for x in log.read_text().splitlines(True) if x.endswith("\n")]
            if any(condition(line) for line in lines):
                return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM to be caught")
def test_a_killed_and_resumed_run_ends_with_the_bits_of_one_never_stopped(pictures, tmp_path):
    """Lesson: SIGTERM in the middle of a fade, then kill -9 at no particular moment, then Ctrl-C:
    in the end G, D, G_ema, both Adams, the log and the sample grids are those of a quiet run."""
    start_options = ["--data", pictures, *TINY, "--workers", "2"]
    finish(start(*start_options, "--out", tmp_path / "quiet", cwd=tmp_path))
    run = tmp_path / "stormy"
    resume = ["--resume", run / "checkpoint.pt"]

    process = start(*start_options, "--out", run, cwd=tmp_path, start_new_session=True)
    wait_for(run, lambda line: line["phase"] == "fade" and line["resolution"] == 8, process)
    os.killpg(process.pid, signal.SIGTERM)                     # its workers get the signal, too
    out, _ = finish(process, 143)
    stopped = models.load_checkpoint(run / "checkpoint.pt")["progress"]
    assert stopped["phase"] == "fade" and 0 < stopped["alpha"] < 1
    assert "--resume" in out

    process = start(*resume, cwd=tmp_path)
    wait_for(run, lambda line: line["nimg"] > stopped["nimg"] + 100, process)
    process.kill()                                             # nothing can be caught here
    process.communicate()

    process = start(*resume, cwd=tmp_path)
    wait_for(run, lambda line: line["nimg"] > 420, process)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    finish(start(*resume, cwd=tmp_path))

    quiet, stormy = (models.load_checkpoint(r / "checkpoint.pt")
                     for r in (tmp_path / "quiet", run))
    assert differences(quiet, stormy) == []
    assert deterministic(tmp_path / "quiet") == deterministic(run)
    for picture in (tmp_path / "quiet" / "samples").iterdir():
        assert picture.read_bytes() == (run / "samples" / picture.name).read_bytes()
    assert len(json.loads((run / "settings.json").read_text())["resumed"]) == 3
    # Control: another seed ends elsewhere, and `differences` says where.
    finish(start(*start_options, "--seed", 1, "--out", tmp_path / "other", cwd=tmp_path))
    other = models.load_checkpoint(tmp_path / "other" / "checkpoint.pt")
    found = differences(quiet, other)
    for part in ("generator", "discriminator", "generator_ema", "optimizer_g", "optimizer_d"):
        assert any(path.startswith(f"/{part}/") for path in found), part


def torchrun(processes, *arguments, cwd, restarts=0):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc_per_node={processes}", f"--max-restarts={restarts}", str(ROOT / "train.py"),
         *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def workers_of(process):
    """Process ids of the training processes that a torchrun has started, on Linux."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children
            if "train.py" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_torchrun_shares_the_work_survives_a_kill_and_goes_on_with_another_number(
        pictures, tmp_path):
    """Lesson: a killed process ends all within seconds, --max-restarts goes on by itself from the
    last checkpoint to the same end, and one process may finish what two have begun."""
    options = ["--data", pictures, *TINY, "--workers", "0"]
    finish(torchrun(2, *options, "--out", tmp_path / "quiet", cwd=tmp_path))
    quiet = models.load_checkpoint(tmp_path / "quiet" / "checkpoint.pt")
    lines = deterministic(tmp_path / "quiet")
    assert [line["nimg"] for line in lines] == sorted({line["nimg"] for line in lines})

    run = tmp_path / "stormy"
    process = torchrun(2, *options, "--out", run, cwd=tmp_path, restarts=1)
    wait_for(run, lambda line: line["nimg"] > 200, process)
    os.kill(workers_of(process)[1], signal.SIGKILL)            # not the one that writes
    finish(process)
    assert differences(quiet, models.load_checkpoint(run / "checkpoint.pt")) == []
    assert deterministic(run) == lines
    resumed = json.loads((run / "settings.json").read_text())["resumed"]
    assert len(resumed) == 1 and resumed[0]["nimg"] > 0        # control: it did start again

    run = tmp_path / "changing"
    process = torchrun(2, *options, "--out", run, cwd=tmp_path)
    wait_for(run, lambda line: line["nimg"] > 200, process)
    started = time.monotonic()
    os.kill(workers_of(process)[0], signal.SIGKILL)            # the one that writes
    finish(process, 1)
    assert time.monotonic() - started < 30
    finish(start("--resume", run / "checkpoint.pt", cwd=tmp_path))
    alone = models.load_checkpoint(run / "checkpoint.pt")
    assert alone["progress"]["nimg"] == quiet["progress"]["nimg"] == 600


@pytest.fixture(scope="module")
def finished_run(pictures, tmp_path_factory):
    """A short run, made in this process: the folder `runs` lies in the current one."""
    folder = tmp_path_factory.mktemp("run")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert train.main(["--data", str(pictures), *TINY, "--workers", "0"]) == 0
    finally:
        os.chdir(before)
    return folder / "runs" / "00000-pictures"


def test_a_run_leaves_what_the_readme_promises(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert {"settings.json", "log.jsonl", "samples", "checkpoint.pt", "checkpoint-4.pt",
            "checkpoint-8.pt", "checkpoint-16.pt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = [json.loads(line) for line in (finished_run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["nimg"] == 600 and lines[-1]["resolution"] == 16 and lines[-1]["alpha"] == 1
    assert {line["phase"] for line in lines} == {"fade", "stabilize"}
    for key in (*train.LOGGED, "images_per_second", "seconds_per_kimg", "peak_memory_mb"):
        assert all(key in line for line in lines)
    grids = sorted((finished_run / "samples").glob("0*.png"))
    assert [g.name for g in grids] == ["000000200.png", "000000400.png", "000000600.png"]
    for grid in (*grids, finished_run / "samples" / "reals.png"):
        assert Image.open(grid).size == (8 * 16, 6 * 16)       # the final size, also at 8 px
    G = models.load_generator(finished_run / "checkpoint-8.pt")
    assert G.synthesis.resolution == 16


def test_the_log_means_what_it_says(finished_run):
    """Lesson: alpha in the log is the schedule's; D's loss is softplus of the scores, so it lies
    above its value at the mean scores (softplus is convex)."""
    stages = train.plan_stages(4, 16, train.Table({4: 0.1}), train.Table({4: 0.1}), 0.6)
    for text in (finished_run / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        before = line["nimg"] - (8 if line["resolution"] < 16 else 4)
        stage = next(s for s in stages if before < s.end)
        assert line["alpha"] == train.alpha_at(before, stage)
        scores = torch.tensor([[line["d_real"]]]), torch.tensor([[line["d_fake"]]])
        assert line["loss_d"] >= train.discriminator_loss(*scores).item() - 1e-6


def test_settings_json_repeats_the_run(finished_run, tmp_path, monkeypatch):
    repeat = json.loads((finished_run / "settings.json").read_text())["repeat"]
    assert repeat.startswith("python train.py --")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "again.txt").write_text("# a comment\n" + repeat.removeprefix("python train.py "))
    assert train.main(["@again.txt", "--device", "cpu", "--out", "again"]) == 0
    first, second = (models.load_checkpoint(run / "checkpoint.pt")
                     for run in (finished_run, tmp_path / "again"))
    assert differences(first["generator"], second["generator"]) == []


def test_resuming_refuses_what_it_cannot_do(finished_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    G = models.load_checkpoint(finished_run / "checkpoint.pt")
    models.save_checkpoint(tmp_path / "g.pt", {k: G[k] for k in ("settings", "generator_ema")})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    for typed, message in [
            (["--resume", finished_run / "checkpoint.pt"], "is finished; a larger --total-kimg"),
            (["--resume", finished_run / "checkpoint.pt", "--resolution", 32], "keeps its shape"),
            (["--resume", tmp_path / "g.pt"], "not a run to resume"),
            (["--out", tmp_path / "full"], "not an empty folder")]:
        with pytest.raises(SystemExit) as caught:
            train.main([str(word) for word in typed])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"


def test_resuming_an_older_checkpoint_starts_a_new_folder(finished_run, tmp_path, monkeypatch):
    """Lesson: checkpoint-8.pt is kept for comparisons; going on from it must not overwrite the
    longer run that it lies in."""
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()}
    assert train.main(["--resume", str(finished_run / "checkpoint-8.pt"), "--device", "cpu"]) == 0
    assert {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()} == before
    assert (tmp_path / "runs" / "00000-pictures" / "checkpoint.pt").exists()


@pytest.fixture
def few_faces(monkeypatch, tmp_path):
    """400 painted faces instead of 10,000, short searches; runs land in the current folder."""
    monkeypatch.setattr(train.data, "PAINTED_FACES", 400)
    monkeypatch.setattr(train, "measure_speed", lambda *args: {4: 1.0, 8: 1.0, 16: 1.0})
    monkeypatch.setattr(evaluate, "Settings", functools.partial(evaluate.Settings, dg_steps=5))
    monkeypatch.chdir(tmp_path)


def measured(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "seconds"} for line in lines]


def test_a_run_that_is_measured_ends_with_the_bits_of_one_that_is_not(few_faces, tmp_path):
    """Lesson: both hold the same pictures out; one is measured six times, the other only at its
    end: the networks, Adams and logs are the same. Interrupted and resumed it has the same numbers
    in metrics.jsonl. A run that holds nothing out sees other pictures."""
    for name, kimg in (("often", "0.1"), ("once", "100")):
        assert train.main([*TINY, "--evaluate-kimg", kimg, "--out", name]) == 0
    often, once = (models.load_checkpoint(tmp_path / name / "checkpoint.pt")
                   for name in ("often", "once"))
    del often["options"], once["options"]
    assert differences(often, once) == []
    assert deterministic(tmp_path / "often") == deterministic(tmp_path / "once")
    lines = measured(tmp_path / "often")
    assert [line["nimg"] for line in lines] == [104, 200, 304, 400, 500, 600]
    assert [line["resolution"] for line in lines] == [4, 8, 8, 16, 16, 16]
    assert all(line["value"] > 0 and line["test_images"] == 40 for line in lines)
    assert measured(tmp_path / "once") == lines[-1:]
    # evaluate.py finds the same held-out pictures by itself, and with them the same number.
    assert evaluate.main(["once", "--metrics", "duality_gap", "--dg-steps", "5", "--cache",
                          "cache", "--device", "cpu"]) == 0
    again = measured(tmp_path / "once")[-1]
    assert again.pop("checkpoint") == "checkpoint.pt" and again.pop("data") == "faces"
    assert again == lines[-1]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(tmp_path / "often")).Reload()
    logged = board.Scalars("metrics/duality_gap")
    assert [scalar.step for scalar in logged] == [line["nimg"] for line in lines]
    assert [scalar.value for scalar in logged] == pytest.approx([line["value"] for line in lines])

    # The first part ends where a phase does: a phase cut short would fade faster.
    early = [*TINY, "--evaluate-kimg", "0.1", "--total-kimg", "0.3", "--out", "early"]
    assert train.main(early) == 0
    assert train.main(["--resume", "early/checkpoint.pt", "--total-kimg", "0.6"]) == 0
    assert measured(tmp_path / "early") == lines

    assert train.main([*TINY, "--out", "all"]) == 0                        # control
    every = models.load_checkpoint(tmp_path / "all" / "checkpoint.pt")
    assert every["progress"]["split"] is None and not (tmp_path / "all" / "metrics.jsonl").exists()
    assert differences(every["generator"], often["generator"]) != []


def test_what_was_held_out_stays_held_out(few_faces, tmp_path, capsys, monkeypatch):
    """Lesson: of every picture that training asks for, none is of the adversary or test part; and a
    run whose pictures have all been seen, or have changed, cannot hold any out."""
    asked, read = [], train.data.PictureDataset.__getitems__

    def watch(dataset, samples):
        asked.extend(dataset.numbers.tolist())
        return read(dataset, samples)
    monkeypatch.setattr(train.data.PictureDataset, "__getitems__", watch)
    short = [*TINY, "--resolution", "4", "--total-kimg", "0.1"]
    monkeypatch.setattr("evaluate.prepare", lambda *args: lambda *args: [])    # training alone
    assert train.main([*short, "--evaluate-kimg", "1", "--seed", "7", "--out", "run"]) == 0
    progress = models.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["progress"]
    assert progress["split"] == {"seed": 7, "images": 400}
    parts = train.data.split_pictures(400, 7)
    assert set(asked) == set(parts["training"].tolist()) and len(set(asked)) == 320
    asked.clear()
    assert train.main([*short, "--out", "all"]) == 0
    assert set(asked) == set(range(400))                                   # control
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main(["--resume", "all/checkpoint.pt", "--total-kimg", "1", "--evaluate-kimg", "1"])
    assert "has learned from all of its pictures" in capsys.readouterr().err
    find = train.data.find_pictures
    monkeypatch.setattr(train.data, "find_pictures", lambda p: find(p)._replace(stamp="other"))
    with pytest.raises(SystemExit):
        train.main(["--resume", "run/checkpoint.pt", "--total-kimg", "1"])
    assert "have changed since some were held out" in capsys.readouterr().err


def test_a_measurement_that_cannot_work_is_refused_at_the_start(few_faces, tmp_path, capsys):
    for typed, message in ((["--evaluate-metrics", "beauty"], "'beauty' is none of"),
                           (["--evaluate-metrics", "kid", "--evaluate-features", "no.pt"],
                            "no.pt: no such file")):
        with pytest.raises(SystemExit) as caught:
            train.main([*TINY, "--evaluate-kimg", "0.1", *typed, "--out", "run"])
        error = capsys.readouterr().err
        assert caught.value.code == 2 and message in error and error.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_a_run_that_explodes_stops_and_keeps_the_last_good_checkpoint(
        pictures, tmp_path, capsys, monkeypatch):
    """Lesson: NaN spreads to all weights in one step; a checkpoint written then is worthless."""
    monkeypatch.chdir(tmp_path)
    right, calls = train.generator_loss, []

    def explodes(scores):
        calls.append(1)
        return right(scores) * (math.nan if len(calls) == 30 else 1)
    monkeypatch.setattr(train, "generator_loss", explodes)
    monkeypatch.setattr(train, "measure_speed", lambda *args: {4: 1.0, 8: 1.0, 16: 1.0})
    with pytest.raises(SystemExit) as caught:
        train.main(["--data", str(pictures), *TINY, "--workers", "0", "--out", "run"])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and error.count("\n") == 1
    for word in ("step 30:", "kimg", "8 px", "alpha", "no longer finite", "--learning-rate"):
        assert word in error, error
    kept = models.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert all(t.isfinite().all() for t in kept["generator"].values())
    assert 0 < kept["progress"]["step"] < 30


def test_help_teaches_and_importing_does_nothing(tmp_path):
    """Lesson: --help names every option of the design; an import leaves no file."""
    out = subprocess.run([sys.executable, str(ROOT / "train.py"), "--help"], cwd=tmp_path,
                         capture_output=True, text=True, check=True).stdout
    for option in ("--data --resolution --initial-resolution --fade-kimg --stabilize-kimg "
                   "--total-kimg --batch --learning-rate --r1-gamma --r1-interval --channel-base "
                   "--channel-max --latent-dim --style-dim --mapping-dim --mapping-layers "
                   "--styles-to-mix --mixing-probability --ema-halflife-kimg --workers --no-flip "
                   "--accumulate --precision --compile "
                   "--samples-kimg --checkpoint-kimg --evaluate-kimg --resume --out --seed "
                   "--device").split():
        assert option in out, option
    for module in ("train", "stylegan_dataloader", "stylegan_models", "stylegan_layers"):
        subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
                        f"import {module}"], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


# ---- 4. the prose ----


def test_every_test_that_a_comment_names_exists():
    """Lesson: 'Proved:' is a claim too."""
    import re
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    named = {name for script in ROOT.glob("*.py")
             for name in re.findall(r"::(test_\w+)", script.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in tests] == []
