"""convert_resolution.py: what a final resolution bakes in, and that converting changes nothing."""

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import convert_resolution
import import_checkpoint
import official
import stylegan_losses as losses
import stylegan_models as models
import tiny
import train
from conftest import ROOT, refused, relative
from convert_resolution import resolution_of
from workshop import checkpoints, options
from workshop.run import new_samples

SMALL = dict(resolution=16, channel_base=64, channel_max=8, latent_dim=8, style_dim=8,
             mapping_dim=8, mapping_layers=2)
HEURISTIC = "0.0128"                                   # 0.0002 * 16^2 / 4; the batch is 4 at 16 px

def finished_run(folder, *arguments):
    """A finished run of train.py, 4 to 16 px, on a few random pictures: its folder."""
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for k in range(20):
        image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        image.save(folder / "pictures" / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        tiny.no_rehearsal(patch)
        patch.chdir(folder)
        assert train.main(["--data", "pictures", *tiny.RUN, "--out", "small", *arguments]) == 0
    return folder / "small"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def small(run):
    return run / "checkpoint.pt"


@pytest.fixture(scope="module")
def small2(tmp_path_factory):
    """The checkpoint of such a run of StyleGAN2, of 16 px, with the gamma of the heuristic."""
    return finished_run(tmp_path_factory.mktemp("run2"), "--architecture", "stylegan2",
                        "--total-kimg", "0.2", "--r1-gamma", HEURISTIC) / "checkpoint.pt"


@pytest.fixture
def convert(tmp_path):
    """The program: a function (checkpoint, resolution, *options) -> path of the new checkpoint."""
    def convert(path, resolution, *options):
        out = tmp_path / f"{len(os.listdir(tmp_path))}.pt"
        assert convert_resolution.main([str(path), str(resolution), "--out", str(out),
                                        *map(str, options)]) == 0
        return out
    return convert


def nets(path):
    """(G, G_ema, D) of a checkpoint, in eval mode."""
    checkpoint = checkpoints.load_checkpoint(path)
    made = []
    for part, make in (("generator", models.make_generator),
                       ("generator_ema", models.make_generator),
                       ("discriminator", models.make_discriminator)):
        network = make(checkpoint["settings"])
        network.load_state_dict(checkpoint[part])
        made.append(network.eval())
    return made


def stages_of(checkpoint):
    """train.py's own plan for the options of a checkpoint."""
    run, _ = options.complete_options({}, torch.device("cpu"), checkpoint["options"])
    return train.plan_stages(*(run[name] for name in (
        "initial_resolution", "resolution", "fade_kimg", "stabilize_kimg")))


def stage_now(checkpoint):
    nimg = checkpoint["progress"]["nimg"]
    stage = train.stage_at(nimg, stages_of(checkpoint))
    return stage, train.alpha_at(nimg, stage)


def kimg_at_the_end(checkpoint):
    """--total-kimg, counted from the beginning of the last stage: how long it lasts."""
    return checkpoint["options"]["total_kimg"] - stages_of(checkpoint)[-1].start / 1000


# ---- 1. what a final resolution bakes in ----


def test_a_small_network_is_the_lower_part_of_a_large_one():
    """Lesson: a block's width is a function of its own resolution; the final one is not in it."""
    with torch.device("meta"):
        for make in (models.make_generator, models.make_discriminator):
            large = make(SMALL | {"resolution": 64}).state_dict()
            small = make(SMALL).state_dict()
            assert all(large[name].shape == tensor.shape for name, tensor in small.items())
            assert {resolution_of(name) for name in set(large) - set(small)} == {32, 64}
            other = make(SMALL | {"channel_base": 32}).state_dict()            # control
            assert any(large[name].shape != other[name].shape for name in small)


def test_a_lower_to_rgb_is_not_trained_any_more():
    """Lesson: once 16 px has faded in, nothing flows through the to_rgb and from_rgb of 8 px, so a
    network whose top is cut off shows with a to_rgb that is out of date."""
    G, D = models.make_generator(SMALL), models.make_discriminator(SMALL)
    for alpha, trained in ((1.0, {"16"}), (0.5, {"8", "16"})):                 # 0.5: the control
        G.zero_grad(), D.zero_grad()
        D(G(torch.randn(4, 8), alpha=alpha), alpha).sum().backward()
        for layers in (G.synthesis.to_rgb, D.from_rgb):
            assert {r for r in layers if layers[r].weight.grad is not None} == trained


# ---- 2. the function is preserved ----


def test_at_the_old_resolution_nothing_changes_not_even_a_bit(small, convert):
    for resolution in (32, 64, 8):
        new = nets(convert(small, resolution))
        shared, z = min(resolution, 16), torch.randn(3, 8)
        with torch.no_grad():
            for ours, old in zip(new[:2], nets(small)[:2]):
                images = old(z, noise_mode="const", resolution=shared)
                assert torch.equal(ours(z, noise_mode="const", resolution=shared), images)
                assert torch.equal(ours.w_avg, old.w_avg)
                none = ours(z, noise_mode="none", resolution=shared)
                assert not torch.equal(none, images)                           # control
            assert torch.equal(new[2](images), nets(small)[2](images))


def test_at_alpha_0_the_new_network_is_the_old_one_enlarged(small, convert):
    """Lesson: so the fade-in begins exactly where the old run ended."""
    (G, G_ema, D), (old_G, old_ema, old_D) = nets(convert(small, 64)), nets(small)
    z = torch.randn(3, 8)
    with torch.no_grad():
        for ours, old in ((G, old_G), (G_ema, old_ema)):
            images = old(z, noise_mode="const")
            enlarged = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
            at_0 = ours(z, noise_mode="const", resolution=32, alpha=0.0)
            assert relative(at_0, enlarged) <= 1e-6
            half = ours(z, noise_mode="const", resolution=32, alpha=0.5)
            assert relative(half, enlarged) > 0.05                             # control
        assert relative(D(enlarged, 0.0), old_D(images)) <= 1e-6
        assert relative(D(enlarged, 0.5), old_D(images)) > 0.05                # control


def test_the_program_proves_it_before_it_writes(small, tmp_path, capsys, monkeypatch):
    """Lesson: a proof that cannot fail proves nothing; here one bias is moved by 1e-6."""
    honest = convert_resolution.convert_state

    def dishonest(*arguments):
        state, parts = honest(*arguments)
        name = next(n for n in state if n.endswith("8.conv1.bias"))
        return {**state, name: state[name] + 1e-6}, parts
    monkeypatch.setattr(convert_resolution, "convert_state", dishonest)
    with pytest.raises(SystemExit) as ended:
        convert_resolution.main([str(small), "32", "--out", str(tmp_path / "new.pt")])
    assert ended.value.code == 1 and os.listdir(tmp_path) == []
    assert "images of 16 px differ by" in capsys.readouterr().err


def test_up_and_down_again_is_the_same_network(small, convert):
    once, again = checkpoints.load_checkpoint(small), checkpoints.load_checkpoint(
        convert(convert(small, 64), 16))
    for part in ("generator", "generator_ema", "discriminator"):
        assert set(once[part]) == set(again[part])
        assert all(torch.equal(once[part][name], again[part][name]) for name in once[part])


# ---- 3. where everything comes from ----


def test_every_tensor_comes_from_where_it_should(small, convert):
    """Lesson: up to the old resolution from the old file, above from the donor or from scratch."""
    low, high, mine = "blocks.8.conv0.bias", "blocks.32.conv0.bias", object()
    state, parts = convert_resolution.convert_state({low: mine, "blocks.16.x": 0},
                                                    {low: 1, high: 2}, 8)
    assert state[low] is mine and state[high] == 2                             # no copy
    assert parts == ([low], [], [high], ["blocks.16.x"])
    large = convert(small, 64, "--seed", 1)
    donor = checkpoints.load_checkpoint(large)
    for part in ("generator", "generator_ema", "discriminator"):               # all its own
        donor[part] = {name: torch.full_like(tensor, {"g": 1.0, "d": 2.0}[part[0]]
                                             + part.endswith("ema"))
                       for name, tensor in donor[part].items()}
    checkpoints.save_checkpoint(large, donor)
    old = checkpoints.load_checkpoint(small)
    scratch = checkpoints.load_checkpoint(convert(small, 32))
    donated = checkpoints.load_checkpoint(convert(small, 32, "--donor", large))
    fresh = checkpoints.load_checkpoint(convert(small, 32, "--discriminator", "fresh"))
    for part in ("generator", "generator_ema", "discriminator"):
        for name in scratch[part]:
            lower = resolution_of(name) <= 16
            for new in (scratch, donated):
                assert lower == (name in old[part] and torch.equal(new[part][name],
                                                                   old[part][name]))
            assert torch.equal(donated[part][name], donor[part][name]) == (not lower)
            if part == "discriminator":
                same = name in old[part] and torch.equal(fresh[part][name], old[part][name])
                assert not same or name.endswith("bias") and not old[part][name].any()
            else:
                assert torch.equal(fresh[part][name], scratch[part][name])
    # G's average gets the same new blocks as G, a fresh layer what a new network begins with.
    new = "synthesis.blocks.32.conv0.weight"
    assert torch.equal(scratch["generator"][new], scratch["generator_ema"][new])
    assert scratch["generator"][new].std().item() == pytest.approx(1, abs=0.2)
    other = checkpoints.load_checkpoint(convert(small, 32, "--seed", 5))
    assert not torch.equal(other["generator"][new], scratch["generator"][new])


@pytest.mark.parametrize("resolution", [32, 8])
def test_adams_moments_follow_their_parameters(small, convert, resolution):
    """Lesson: a step with the same gradients leads both networks to the same weights, which it only
    does if every parameter has kept its own moments; Adam numbers them, and the numbers shift."""
    old = checkpoints.load_checkpoint(small)
    new = checkpoints.load_checkpoint(convert(small, resolution))
    for part, key, make in (("generator", "optimizer_g", models.make_generator),
                            ("discriminator", "optimizer_d", models.make_discriminator)):
        stepped = []
        for checkpoint, keep in ((old, True), (new, True), (new, False)):
            network = make(checkpoint["settings"])
            network.load_state_dict(checkpoint[part])
            adam = train.new_adam(network)
            if keep:
                adam.load_state_dict(checkpoint[key])
            generator = torch.Generator().manual_seed(0)
            gradients = {name: torch.randn(p.shape, generator=generator) for name, p in sorted(
                dict(network.named_parameters()).items()) if resolution_of(name) <= 8}
            for name, parameter in network.named_parameters():
                parameter.grad = gradients.get(name, torch.zeros_like(parameter))
            before = {n: p.detach().clone() for n, p in network.named_parameters()}
            adam.step()
            stepped.append({n: p.detach() for n, p in network.named_parameters()})
            names = list(gradients)
        assert len(names) > 10
        for name in names:
            assert torch.equal(stepped[0][name], stepped[1][name]), name
            assert not torch.equal(stepped[1][name], before[name])
        assert not all(torch.equal(stepped[0][n], stepped[2][n]) for n in names)   # control
        # Who had moments has them (not so the to_rgb of lower resolutions), new blocks have none.
        had, has = ({name for k, name in enumerate(stepped[i]) if k in checkpoint[key]["state"]}
                    for i, checkpoint in enumerate((old, new)))
        assert has == {name for name in had if resolution_of(name) <= resolution}
    fresh = checkpoints.load_checkpoint(convert(small, 32, "--discriminator", "fresh"))
    assert fresh["optimizer_d"]["state"] == {} and fresh["optimizer_g"]["state"] != {}


def test_the_sample_grid_shows_the_same_faces(small, convert):
    """Lesson: one can watch a face become itself over the conversion, too; a style row goes on
    with the style of its last layer, so a mixed image stays mixed where it was."""
    old = checkpoints.load_checkpoint(small)["samples"]
    assert old["style_index"].shape == (48, 6) and old["columns"] == 8
    up = checkpoints.load_checkpoint(convert(small, 64))["samples"]
    assert torch.equal(up["z"], old["z"]) and up["style_index"].shape == (48, 10)
    assert torch.equal(up["style_index"][:, :6], old["style_index"])
    assert torch.equal(up["style_index"][:, 6:], old["style_index"][:, 5:].expand(-1, 4))
    assert up["style_index"][-8:].any() and not up["style_index"][:-8].any()
    down = checkpoints.load_checkpoint(convert(small, 4))["samples"]
    assert torch.equal(down["style_index"], old["style_index"][:, :2])
    # At 1024 px there is room for 4 x 2: the first row and the last, mixed one, half of each.
    large = convert_resolution.convert_samples(old, 1024)
    assert large["columns"] == 4 and large["style_index"].shape == (8, 18)
    assert torch.equal(large["z"], torch.cat([old["z"][:4], old["z"][40:44]]))
    settings = dict(resolution=1024, seed=0, styles_to_mix=2, latent_dim=8)
    assert new_samples(argparse.Namespace(**settings))["z"].shape == large["z"].shape


# ---- 4. the schedule ----


@pytest.mark.parametrize("resolution", [32, 128])
def test_the_resumed_run_begins_with_the_fade_in(small, convert, resolution):
    """Lesson: train.py knows nothing of conversions; it is told by its own options where it is."""
    old, new = checkpoints.load_checkpoint(small), checkpoints.load_checkpoint(
        convert(small, resolution))
    nimg = old["progress"]["nimg"]
    assert new["progress"]["nimg"] == nimg and nimg >= 600                     # the clock goes on
    stage, alpha = stage_now(new)
    assert stage == train.Stage(nimg, nimg + 100, 32, True) and alpha == 0
    progress = new["progress"]
    assert (progress["resolution"], progress["phase"], progress["alpha"]) == (32, "fade", 0.0)
    last = stages_of(new)[-1]                          # every new resolution gets its phases
    assert last.resolution == resolution and not last.growing
    assert kimg_at_the_end(new) == pytest.approx(0.1)
    assert stage_now(old)[0].resolution == 16                                  # control


def test_its_options_can_be_changed(small, convert):
    new = checkpoints.load_checkpoint(convert(small, 64, "--fade-kimg", "32:0.3,64:0.7",
                                         "--learning-rate", "0.0005"))
    fades = [s.end - s.start for s in stages_of(new) if s.growing]
    assert fades == [300, 700]
    run, _ = options.complete_options({}, torch.device("cpu"), new["options"])
    assert run["learning_rate"][32] == 0.0005
    none = checkpoints.load_checkpoint(convert(small, 32, "--fade-kimg", "0"))
    assert stage_now(none)[0].growing is False and none["progress"]["phase"] == "stabilize"


@pytest.mark.parametrize("name", ["checkpoint-4.pt", "checkpoint-8.pt"])
@pytest.mark.parametrize("resolution", [8, 32])
def test_a_run_in_the_middle_keeps_its_place(run, convert, name, resolution):
    """Lesson: where the old run has not used up its resolutions, only the end of it moves. (These
    checkpoints are written at the end of a resolution: the next is about to fade in.)"""
    path = run / name
    old, new = checkpoints.load_checkpoint(path), checkpoints.load_checkpoint(convert(
        path, resolution, "--fade-kimg", "0.25"))
    stage, _ = stage_now(old)
    if stage.resolution > resolution:                  # ... unless that is beyond the new end
        assert stage_now(new)[0].resolution == resolution and not stage_now(new)[0].growing
    else:
        ours, _ = stage_now(new)
        assert (ours.start, ours.resolution, ours.growing) == (
            stage.start, stage.resolution, stage.growing)
        assert ours.end - ours.start == 250            # the fade to come is the new one
    assert stages_of(new)[-1].resolution == resolution
    assert new["progress"]["nimg"] == old["progress"]["nimg"]


def test_a_run_that_ended_in_a_fade_goes_on_with_it(small, tmp_path, convert, monkeypatch):
    """Lesson: --total-kimg may cut a fade-in. Its block is half there, so nothing is put before it:
    the fade goes on at the alpha it had, and only then comes what is new."""
    cut = checkpoints.load_checkpoint(small)
    cut["progress"].update(nimg=340, resolution=16, phase="fade", alpha=0.4)   # 300 to 400
    cut["progress"].update(sums=torch.ones(6), steps_since_tick=3)
    cut["options"]["total_kimg"] = 0.34
    checkpoints.save_checkpoint(tmp_path / "cut.pt", cut)
    assert stage_now(cut) == (train.Stage(300, 400, 16, True), 0.4)
    path = convert(tmp_path / "cut.pt", 32, "--fade-kimg", "0.2")
    new = checkpoints.load_checkpoint(path)
    assert stage_now(new) == (train.Stage(300, 400, 16, True), 0.4)
    progress = new["progress"]
    assert progress["phase"] == "fade" and progress["alpha"] == 0.4
    assert not progress["sums"].any() and progress["steps_since_tick"] == 0    # another network's
    later = stages_of(new)[-2:]
    assert later == [train.Stage(500, 700, 32, True), train.Stage(700, math.inf, 32, False)]
    assert new["options"]["total_kimg"] == pytest.approx(0.8)
    monkeypatch.chdir(tmp_path)
    assert train.main(["--resume", str(path), *tiny.pictures_of(path), "--out", "on", "--device",
                       "cpu", "--total-kimg", "0.35", "--tick-kimg", "0.004"]) == 0
    line = json.loads((tmp_path / "on/log.jsonl").read_text().splitlines()[0])
    assert (line["resolution"], line["phase"]) == (16, "fade") and 0.4 <= line["alpha"] < 0.5


def test_downwards_training_goes_on_at_the_new_resolution(small, convert):
    new = checkpoints.load_checkpoint(convert(small, 8))
    stage, alpha = stage_now(new)
    nimg = new["progress"]["nimg"]
    assert stage.resolution == 8 and not stage.growing and alpha == 1
    assert new["options"]["total_kimg"] == pytest.approx(nimg / 1000 + 0.1)
    assert new["progress"]["phase"] == "stabilize"


def test_a_finished_run_goes_on_at_another_resolution(small, tmp_path, monkeypatch):
    """Lesson: all together, as a user types it: convert, resume, and look at the log."""
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, str(ROOT / "convert_resolution.py"), str(small), "32",
                           "--out", "big.pt"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    # Pasted into a shell, the command finds the pictures: out of its run, a file is not believed.
    command = shlex.split(re.search(r"^python train.py (.*)", done.stdout, re.M)[1])
    assert command == ["--resume", "big.pt", *tiny.pictures_of(small)[:2]]
    found = re.search(r"D, scores of 32 px at alpha 0: (\S+) \(largest value (\S+)\)", done.stdout)
    assert float(found[1]) <= 1e-6 * float(found[2])
    assert train.main([*command, "--out", "big", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "big/log.jsonl").read_text().splitlines()]
    begin = checkpoints.load_checkpoint(small)["progress"]["nimg"]
    assert lines[0]["nimg"] > begin and lines[0]["resolution"] == 32
    assert lines[0]["phase"] == "fade" and 0 < lines[0]["alpha"] <= 0.7
    assert lines[-1]["phase"] == "stabilize" and lines[-1]["nimg"] >= begin + 200
    after = checkpoints.load_checkpoint(tmp_path / "big" / "checkpoint.pt")
    assert after["settings"]["resolution"] == 32

    # Stopped within the fade-in: Adam has counted on from the old run for the old parameters.
    assert train.main([*command, "--out", "stopped", "--device", "cpu",
                       "--total-kimg", "0.64"]) == 0
    steps = [{int(moments["step"]) for moments in
              checkpoints.load_checkpoint(path)["optimizer_g"]["state"].values()}
             for path in (small, tmp_path / "stopped" / "checkpoint.pt")]
    assert len(steps[0]) == 1 and steps[1] == {10, steps[0].pop() + 10}


def test_an_imported_network_can_be_converted(tmp_path, convert):
    """Lesson: official weights, then 64 px: at 32 px the pictures are still the official ones."""
    imported = tmp_path / "official.pt"
    assert import_checkpoint.main([str(official.DATA / "official_stylegan.pkl"),
                                   str(imported)]) == 0
    io = official.load("gs_io")
    _, G_ema, _ = nets(convert(imported, 64))
    with torch.no_grad():
        images = G_ema(io["z"], noise_mode="const", resolution=32)
    assert relative(images, io["img_lod0_psi1"]) < 2e-5
    stage, alpha = stage_now(checkpoints.load_checkpoint(tmp_path / "1.pt"))
    assert stage == train.Stage(25_000_000, 25_600_000, 64, True) and alpha == 0
    new = checkpoints.load_checkpoint(convert(imported, 16))
    assert stage_now(new)[0] == train.Stage(0, math.inf, 16, False)
    assert new["options"]["total_kimg"] == 25_600


def test_a_file_of_networks_only_is_converted_too(small, convert, capsys):
    """Lesson: pictures need no more than generator_ema."""
    old = checkpoints.load_checkpoint(small)
    path = convert(small, 8)
    checkpoints.save_checkpoint(path, {key: old[key] for key in ("settings", "generator_ema")})
    new = checkpoints.load_checkpoint(convert(path, 32))
    assert set(new) == {"format", "architecture", "settings", "generator_ema"}
    assert "no run that train.py could resume" in capsys.readouterr().out
    # Half as large, as some are passed on: it is computed in float32 all the same.
    half = {name: tensor.half() for name, tensor in old["generator_ema"].items()}
    checkpoints.save_checkpoint(path, {"settings": old["settings"], "generator_ema": half})
    convert(path, 32)


# ---- 5. refusals ----


def sentence(capsys, *arguments):
    """The one line with which the program refuses these arguments."""
    code, line = refused(convert_resolution.main, arguments, capsys)
    assert code == 2, line
    return line


def test_what_cannot_be_done_gets_one_sentence(small, tmp_path, capsys, convert):
    """Lesson: and nothing is written."""
    other = checkpoints.load_checkpoint(convert(small, 32))
    for name, change in (("wide", dict(channel_max=4)), ("style", dict(style_dim=6))):
        settings = {**other["settings"], **change}
        checkpoints.save_checkpoint(tmp_path / f"{name}.pt", {
            "settings": settings, "generator_ema": models.make_generator(settings).state_dict()})
    broken = checkpoints.load_checkpoint(small)
    del broken["progress"]["nimg"]
    checkpoints.save_checkpoint(tmp_path / "broken.pt", broken)
    torch.save({**checkpoints.load_checkpoint(small), "architecture": "stylegan2"},
               tmp_path / "later.pt")
    (tmp_path / "damaged.pt").write_bytes(small.read_bytes()[:-100])
    (tmp_path / "text.pt").write_text("hello")
    before = sorted(os.listdir(tmp_path))
    out = ["--out", tmp_path / "new.pt"]
    for arguments, message in [
            ([small, 24], "power of two"), ([small, 16], "has 16 px already"),
            ([small, 2], "power of two"), ([small, 0], "1 or more"), ([small, "big"], "number"),
            ([small, 1024], "leaves no channel"), ([tmp_path / "none.pt", 32], "no such file"),
            ([tmp_path, 32], "a folder"), ([tmp_path / "damaged.pt", 32], "damaged.pt"),
            ([tmp_path / "text.pt", 32], "not a checkpoint"),
            ([tmp_path / "later.pt", 32], "another architecture"),
            ([tmp_path / "broken.pt", 32], "incomplete"),
            ([small, 64, "--donor", tmp_path / "0.pt"], "has no blocks for 64 px"),
            ([small, 32, "--donor", tmp_path / "wide.pt"], "channel_max 4 does not fit"),
            ([small, 32, "--donor", tmp_path / "style.pt"], "style_dim 6 does not fit"),
            ([small, 32, "--donor", tmp_path / "text.pt"], "text.pt: not a checkpoint"),
            ([small, 32, "--donor", tmp_path / "later.pt"], "another architecture"),
            ([small, 8, "--donor", tmp_path / "0.pt"], "nothing to donate"),
            ([small, 32, "--fade-kimg", "soon"], "neither a number nor a table"),
            ([small, 32, "--fade-kimg", "-1"], "below 0"),
            ([small, 32, "--discriminator", "old"], "invalid choice")]:
        assert message in sentence(capsys, *arguments, *out), arguments
    assert sorted(os.listdir(tmp_path)) == before
    assert convert_resolution.main([str(small), "32", "--donor", str(tmp_path / "0.pt"),
                                    *map(str, out)]) == 0                      # control


def test_nothing_is_ever_overwritten(small, tmp_path, capsys, monkeypatch):
    path = tmp_path / "small.pt"
    path.write_bytes(small.read_bytes())
    (tmp_path / "kept.pt").write_text("mine")
    os.link(path, tmp_path / "link.pt")                # a second name of the same file
    for out, message in ((path, "reads"), (tmp_path / "link.pt", "reads"), (tmp_path, "exists"),
                         (tmp_path / "kept.pt", "exists"), (tmp_path / "no" / "x", "no folder")):
        assert message in sentence(capsys, path, 32, "--out", out)
    before = sorted(os.listdir(tmp_path))

    monkeypatch.setattr(convert_resolution.shutil, "disk_usage",
                        lambda folder: types.SimpleNamespace(free=1000))
    assert "the disk has 0.001 MB left" in sentence(capsys, path, 32)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "save", lambda state, file: file.write(b"x" * 10) / 0)
    with pytest.raises(ZeroDivisionError):             # whatever goes wrong, half a file is no file
        convert_resolution.main([str(path), "32"])
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == before and path.read_bytes() == small.read_bytes()
    assert convert_resolution.main([str(path), "32"]) == 0                     # control
    assert (tmp_path / "small-to-32.pt").is_file()


# ---- 6. StyleGAN2 ----


def enlarge_slowly(x, times):
    """x [N, C, R, R] -> the same in float64 with 2^times as many pixels a side: zeros between the
    pixels, then [1, 3, 3, 1] / 4 in each direction, a pixel at a time."""
    x = x.double()
    for _ in range(times):
        for axis in (2, 3):
            x = x.movedim(axis, -1)
            y = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 2, dtype=torch.float64)
            for k in range(x.shape[-1]):
                y[..., 2 * k:2 * k + 4] += x[..., k:k + 1] * torch.tensor([1, 3, 3, 1]) / 4
            x = y[..., 1:-1].movedim(-1, axis)
    return x


def test_every_to_rgb_of_stylegan2_is_trained_but_only_the_sum_is_judged():
    """Lesson: a picture is a sum over all resolutions, so a network whose top is cut off has its
    colours up to date. But D has never seen a sum that ends earlier: it has one way in."""
    settings = {**SMALL, "architecture": "stylegan2"}
    G, D = models.make_generator(settings), models.make_discriminator(settings)
    D(G(torch.randn(4, 8))).sum().backward()
    assert {r for r, layer in G.synthesis.to_rgb.items() if layer.weight.grad.any()} == {
        "4", "8", "16"}
    assert set(D.from_rgb) == {"16"}
    with pytest.raises(ValueError, match="16 px"):
        D(G(torch.randn(4, 8), resolution=8))
    models.make_discriminator(SMALL)(torch.randn(4, 3, 8, 8))                  # control: StyleGAN's


@pytest.mark.parametrize("resolution", [32, 64])
def test_a_new_to_rgb_of_0_keeps_the_picture_exactly(small2, convert, capsys, resolution):
    """Lesson: a picture is a sum, and 0 adds nothing to it. Judge: the FIR, a pixel at a time."""
    new, old = nets(convert(small2, resolution)), nets(small2)
    said = capsys.readouterr().out
    for name in ("G", "G_ema"):
        assert f"{name}, images of 16 px: 0 (" in said
        assert f"{name}, images of {resolution} px, to the old ones enlarged: " in said
    z, times = torch.randn(3, 8), {32: 1, 64: 2}[resolution]
    with torch.no_grad():
        for ours, before in zip(new[:2], old[:2]):
            images = before(z, noise_mode="const")
            assert torch.equal(ours(z, noise_mode="const", resolution=16), images)
            enlarged = enlarge_slowly(images, times)
            assert relative(ours(z, noise_mode="const"), enlarged) <= 1e-6
            assert torch.equal(ours.w_avg, before.w_avg)
            assert torch.equal(ours.path_length_mean, before.path_length_mean)
            assert ours.path_length_mean > 0
            torch.nn.init.normal_(ours.synthesis.to_rgb["32"].weight)          # control: as drawn
            assert relative(ours(z, noise_mode="const"), enlarged) > 0.05


def test_a_silent_block_wakes_in_two_steps():
    """Lesson: a to_rgb of 0 lets nothing through, not even gradients; but it has one itself."""
    settings = {**SMALL, "architecture": "stylegan2", "resolution": 64}
    G, D = models.make_generator(settings), models.make_discriminator(settings)
    convert_resolution.silence_new_to_rgb(G, 16)
    adam, moved = train.new_adam(G), []
    for _ in range(2):
        before = {name: p.detach().clone() for name, p in G.named_parameters()}
        adam.zero_grad()
        losses.generator_loss(D(G(torch.randn(4, 8)))).backward()
        adam.step()
        moved.append({name for name, p in G.named_parameters() if not torch.equal(p, before[name])})
    rgb = {f"synthesis.to_rgb.{r}.weight" for r in (16, 32, 64)}
    blocks = [f"synthesis.blocks.{r}.conv1.weight" for r in (16, 32, 64)]
    assert rgb <= moved[0] and rgb <= moved[1]
    assert [name in moved[0] for name in blocks] == [True, False, False]
    assert [name in moved[1] for name in blocks] == [True, True, True]


def test_cut_and_completed_by_itself_stylegan2_is_itself_again(small2, convert):
    """Lesson: a donor gives its blocks with their to_rgb, and D the from_rgb of its resolution. So
    down and up again is the same network, and up and down again, too."""
    once, parts = checkpoints.load_checkpoint(small2), ("generator", "generator_ema",
                                                        "discriminator")
    for there in (8, 32):
        path = convert(small2, there)
        again, without = (checkpoints.load_checkpoint(convert(path, 16, *options))
                          for options in (["--donor", small2], []))
        for part in parts:
            assert tiny.differences(again[part], once[part]) == []
        lost = {name for part in parts for name in once[part]                  # control
                if not torch.equal(without[part][name], once[part][name])}
        assert {"from_rgb.16.weight"} <= lost
        assert lost <= {"from_rgb.16.weight", "from_rgb.16.bias"} or there == 8


def test_stylegan2s_from_rgb_is_a_donors_of_that_resolution_or_drawn(small2, convert):
    """Lesson: the blocks of a larger donor fit, but it has no way in for smaller pictures. What
    kept its tensors keeps its moments, and nothing else has any."""
    scratch = checkpoints.load_checkpoint(convert(small2, 32))["discriminator"]
    for r in (32, 64):
        donor = convert(small2, r, "--seed", r)
        theirs = checkpoints.load_checkpoint(donor)["discriminator"]
        new = checkpoints.load_checkpoint(convert(small2, 32, "--donor", donor))
        D, way_in, block = new["discriminator"], "from_rgb.32.weight", "blocks.32.skip.weight"
        assert torch.equal(D[way_in], (theirs if r == 32 else scratch)[way_in])
        assert torch.equal(D[block], theirs[block]) and not torch.equal(D[block], scratch[block])
        names = list(dict(models.make_discriminator(new["settings"]).named_parameters()))
        old = checkpoints.load_checkpoint(small2)["discriminator"]
        assert {names[k] for k in new["optimizer_d"]["state"]} == {
            name for name in names if resolution_of(name) <= 16} == set(old) & set(names)


@pytest.mark.parametrize("resolution", [32, 8])
def test_stylegan2s_d_is_the_old_one_behind_its_new_layers(small2, convert, resolution):
    """Lesson: its blocks give the same features the same score, to the bit. But images come to them
    through a new from_rgb, and get another score. Zeros would not help: with only its short way, a
    block is linear, and what the old blocks want, the old from_rgb's features, is not."""
    new, old = nets(convert(small2, resolution))[2], nets(small2)[2]
    shared = min(16, resolution)
    x = torch.randn(4, new.blocks[str(shared)].conv0.weight.shape[1], shared, shared)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        scores = []
        for D in (new, old):
            y = x
            for r in models.resolutions_up_to(shared)[::-1]:
                y = D.blocks[str(r)](y)
            scores.append(y)
        assert torch.equal(*scores)
        resized = convert_resolution.resize(images, resolution)
        assert resized.shape[-1] == resolution
        assert relative(new(resized), old(images)) > 0.05
        if resolution == 32:
            block = new.blocks["32"]
            torch.nn.init.zeros_(block.conv1.weight)
            x = torch.randn(4, block.conv0.weight.shape[1], 32, 32)
            assert relative(block(-x), -block(x)) < 1e-6
            assert relative(old.from_rgb["16"](-images), -old.from_rgb["16"](images)) > 0.5


@pytest.mark.parametrize("resolution, part, name, words", [
    (32, 0, "blocks.8.conv1.bias", "G, images of 16 px differ"),
    (8, 0, "blocks.8.conv1.bias", "G, images of 8 px differ"),
    (32, 2, "blocks.8.conv1.bias", "D, features of 16 px to scores differ"),
    (32, 0, "to_rgb.32.bias", "G, images of 32 px, to the old ones enlarged differ")])
def test_the_program_proves_it_for_stylegan2_too(small2, tmp_path, capsys, monkeypatch, resolution,
                                                 part, name, words):
    """Lesson: one bias moved by 1e-5, and nothing is written."""
    honest, calls = convert_resolution.convert_state, []

    def dishonest(*arguments):
        state, parts = honest(*arguments)
        calls.append(0)
        wrong = next((n for n in state if n.endswith(name)), None)
        if len(calls) - 1 == part:
            state = {**state, wrong: state[wrong] + 1e-5}
        return state, parts
    monkeypatch.setattr(convert_resolution, "convert_state", dishonest)
    code, said = refused(convert_resolution.main,
                         [small2, resolution, "--out", tmp_path / "new.pt"], capsys)
    assert code == 1 and words in said and os.listdir(tmp_path) == []


def test_a_stylegan2_goes_on_in_one_stage(small2, tmp_path, convert):
    """Lesson: there is nothing to fade and nothing to be put around the clock; only the end moves.
    (--fade-kimg and --stabilize-kimg are 0.1 each.)"""
    old = checkpoints.load_checkpoint(small2)
    nimg = old["progress"]["nimg"]
    for resolution, more in ((32, 0.2), (64, 0.4), (8, 0.1)):
        new = checkpoints.load_checkpoint(convert(small2, resolution))
        assert stage_now(new) == (train.Stage(0, math.inf, resolution, False), 1.0)
        progress, run = new["progress"], new["options"]
        assert (progress["resolution"], progress["phase"], progress["alpha"]) == (
            resolution, "stabilize", 1.0)
        assert progress["nimg"] == nimg
        assert run["total_kimg"] == pytest.approx(nimg / 1000 + more)
        assert run["r1_gamma"] == {32: "0.0512", 64: "0.2048", 8: "0.0016"}[resolution]
        assert run["learning_rate"] == old["options"]["learning_rate"]
    old["options"]["total_kimg"] = 7.0                 # a run that was stopped before its end
    old["settings"]["conv_clamp"] = 256.0
    old["progress"].update(sums=torch.ones_like(old["progress"]["sums"]), steps_since_tick=3)
    checkpoints.save_checkpoint(tmp_path / "long.pt", old)
    new = checkpoints.load_checkpoint(convert(tmp_path / "long.pt", 32, "--learning-rate", "0.001"))
    assert new["options"]["total_kimg"] == 7.0 and new["options"]["learning_rate"] == "0.001"
    assert new["settings"]["conv_clamp"] == 256.0 and "conv_clamp" not in new["options"]
    progress = new["progress"]
    assert not progress["sums"].any() and progress["steps_since_tick"] == 0


def test_only_a_gamma_of_the_heuristic_follows_it():
    """Lesson: 0.0002 R^2 / batch depends on R, so it is computed anew for the new R. A number that
    somebody chose stays."""
    run = {"batch": "4:8,32:4", "r1_gamma": options.show(options.heuristic_gamma(16, 8))}
    assert float(convert_resolution.convert_gamma(run, 16, 64)) == pytest.approx(
        0.0002 * 64 ** 2 / 4)
    for chosen in ("10", None, "0.0129"):                      # (None: train.py works it out)
        assert convert_resolution.convert_gamma({**run, "r1_gamma": chosen}, 16, 64) == chosen


def test_path_lengths_of_an_enlarged_picture_are_a_little_smaller():
    """Lesson: y is N(0, 1)/R, so lengths do not grow with the pixels. What makes them smaller is
    the mean over layers, of which the new ones do nothing yet; so their running mean can stay."""
    settings = {**SMALL, "architecture": "stylegan2"}
    small, large = (models.make_generator({**settings, "resolution": r}) for r in (16, 32))
    convert_resolution.silence_new_to_rgb(large, 16)
    large.load_state_dict({**large.state_dict(), **small.state_dict()})
    w = small.mapping(torch.randn(256, 8)).detach()
    images, ws = [], []
    for G, layers in ((small, 6), (large, 8)):
        ws.append(w[:, None].repeat(1, layers, 1).requires_grad_())
        images.append(G.synthesis(ws[-1], noise_mode="const"))
    lengths = [losses.path_lengths(x, w).mean().item() for x, w in zip(images, ws)]
    assert 0.75 < lengths[1] / lengths[0] < 0.9
    assert 0.9 < lengths[1] / lengths[0] / math.sqrt(6 / 8) < 1.05
    images = large.synthesis(ws[1], noise_mode="const")        # control: y too large
    y = torch.randn_like(images) / 16
    assert losses.path_lengths(images, ws[1], y).mean().item() > 1.5 * lengths[0]


@pytest.mark.parametrize("resolution, donor", [(32, False), (32, True), (8, False)])
def test_a_stylegan2_that_was_converted_is_trained_on(small2, convert, tmp_path, monkeypatch,
                                                      resolution, donor):
    """Lesson: all together: the clock goes on, Adam counts on, the new to_rgb begins to draw."""
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    arguments = ["--donor", convert(small2, resolution, "--seed", 1)] if donor else []
    path = convert(small2, resolution, *arguments)
    assert train.main(["--resume", str(path), *tiny.pictures_of(path), "--out", "on", "--device",
                       "cpu", "--total-kimg", "0.24"]) == 0
    old, begin, end = map(checkpoints.load_checkpoint, (small2, path, "on/checkpoint.pt"))
    lines = tiny.log_of(tmp_path / "on")
    assert {(line["resolution"], line["phase"]) for line in lines} == {(resolution, "stabilize")}
    assert lines[0]["nimg"] > old["progress"]["nimg"] and lines[-1]["nimg"] == 240
    assert end["generator"]["path_length_mean"] != begin["generator"]["path_length_mean"] > 0
    name = f"synthesis.to_rgb.{resolution}.weight"
    assert begin["generator"][name].any() == (resolution == 8)
    assert end["generator"][name].abs().max() > 0.001
    G = models.make_generator(end["settings"])
    steps = {name: int(end["optimizer_g"]["state"][k]["step"])
             for k, (name, _) in enumerate(G.named_parameters())}
    more = end["progress"]["step"] - old["progress"]["step"]
    assert steps["synthesis.blocks.8.conv1.weight"] == end["progress"]["step"]
    assert steps[name] == more + (old["progress"]["step"] if resolution == 8 else 0)


def test_what_cannot_be_done_with_a_stylegan2_gets_one_sentence(small, small2, tmp_path, capsys,
                                                               convert):
    """Lesson: and nothing is written."""
    half = checkpoints.load_checkpoint(convert(small2, 8))
    checkpoints.save_checkpoint(tmp_path / "ema.pt", {key: half[key] for key in (
        "settings", "generator_ema")})
    half["settings"]["conv_clamp"] = 256.0                     # cuts its features off
    checkpoints.save_checkpoint(tmp_path / "cut.pt", half)
    before = sorted(os.listdir(tmp_path))
    out = ["--out", tmp_path / "new.pt"]
    for arguments, message in [
            ([small2, 32, "--fade-kimg", "1"], "nothing fades in"),
            ([small2, 8, "--donor", small], "is a stylegan does not fit onto a stylegan2"),
            ([small, 32, "--donor", convert(small2, 32)],
             "is a stylegan2 does not fit onto a stylegan"),
            ([small2, 8, "--donor", small2], "no D of 8 px"),
            ([small2, 8, "--donor", tmp_path / "ema.pt"], "no D of 8 px"),
            ([small2, 8, "--donor", tmp_path / "cut.pt"],
             "conv_clamp 256.0 does not fit onto a network with None"),
            ([small2, 8, "--donor", tmp_path / "0.pt", "--discriminator", "fresh"],
             "nothing to donate")]:
        assert message in sentence(capsys, *arguments, *out), arguments
    assert sorted({*os.listdir(tmp_path)} - {"3.pt"}) == before
    assert convert_resolution.main([str(small2), "8", "--donor", str(tmp_path / "0.pt"),
                                    *map(str, out)]) == 0                      # control
