"""workshop/variety.py: how far apart pictures are; runs that collapse, and runs that do not."""

import types

import numpy as np
import pytest
import torch

import stylegan_dataloader as data
import stylegan_models as models
import tiny
import train
from workshop import checkpoints, pictures, run, variety
from workshop.options import Table
from workshop.painted_faces import paint_face

# ---- 1. the distance ----


def test_the_distance_is_the_mean_over_all_pairs():
    """Lesson: in units of pixel values, as a picture shows them. Judge: a slow loop in float64."""
    images = 0.8 * torch.randn(5, 3, 4, 4)
    seen = images.double().clamp(-1, 1)
    pairs = [(seen[a] - seen[b]).square().mean().sqrt().item()
             for a in range(5) for b in range(a)]
    assert variety.mean_distance(images) == pytest.approx(sum(pairs) / 10, rel=1e-5)
    assert images.abs().max() > 1 and len(set(pairs)) == 10    # controls: clipped; pairs differ
    black_and_white = torch.stack([-torch.ones(3, 4, 4), torch.ones(3, 4, 4)])
    assert variety.mean_distance(black_and_white) == pytest.approx(2)
    assert variety.mean_distance(images[:1]) == 0
    assert variety.mean_distance(images[:1].repeat(5, 1, 1, 1)) == 0


def test_one_odd_picture_is_not_variety():
    """Lesson: of the distance between two pictures, one odd one beside 47 that are alike keeps 2 of
    48 parts. The root of the mean of squares would keep 20 %."""
    images = torch.zeros(48, 3, 4, 4)
    images[17] = 1
    assert variety.mean_distance(images) == pytest.approx(2 / 48, rel=1e-5)
    mean_square = 2 * images.var(dim=0).mean().item()          # control: over all pairs, too
    assert mean_square ** 0.5 == pytest.approx((2 / 48) ** 0.5, rel=1e-5) and 0.2 < (2 / 48) ** 0.5


def test_two_pictures_in_turn_keep_half_of_the_distance():
    """Lesson: what is watched for is the end of a collapse. Two pictures in turn pass. Two of which
    one is seven times as frequent do not."""
    real, (one, other) = torch.randn(48, 3, 4, 4), torch.randn(2, 3, 4, 4)
    images = torch.stack([one, other] * 24)
    apart = variety.mean_distance(torch.stack([one, other]))
    assert variety.mean_distance(images) == pytest.approx(apart / 2, rel=0.03)
    reals = variety.mean_distance(real)
    assert not variety.is_collapse(variety.mean_distance(images), reals, False)
    images = torch.stack([one] * 42 + [other] * 6)
    assert variety.is_collapse(variety.mean_distance(images), reals, False)


# ---- 2. the verdict ----


def test_a_collapse_lasts_until_half_of_the_distance_is_back():
    """Lesson: called by a third, and forgiven by a half. So values beside one limit are one
    collapse and not many."""
    said, collapsed = [], False
    for samples in (2.0, 0.9, 0.34, 0.32, 0.34, 0.32, 0.49, 0.51, 0.34, 0.32):
        before, collapsed = collapsed, variety.is_collapse(samples, 1.0, collapsed)
        said.append(collapsed and not before)
    assert said == [False] * 3 + [True] + [False] * 5 + [True]
    assert not variety.is_collapse(0.0, 0.0, False)            # pictures that are alike themselves


@pytest.mark.parametrize("architecture", ["stylegan", "stylegan2"])
def test_a_new_generator_has_not_collapsed(architecture):
    """Lesson: random weights make one z look quite unlike the other, so that a young network is no
    exception to the rule. Control: with weights that are all near 0 it would be one."""
    for seed in range(3):
        torch.manual_seed(seed)
        o = types.SimpleNamespace(resolution=16, seed=seed, styles_to_mix=2, latent_dim=64)
        G = models.make_generator(dict(
            resolution=16, channel_base=512, channel_max=64, latent_dim=64, style_dim=64,
            mapping_dim=64, mapping_layers=4, architecture=architecture)).eval()
        samples = run.new_samples(o)
        faces = torch.stack([torch.from_numpy(np.array(paint_face(k, 16))) for k in range(48)])
        reals = variety.mean_distance(data.to_images(faces))
        for r in (4, 8, 16) if architecture == "stylegan" else (16,):
            images = run.sample_images(G, samples, r, 1.0, torch.device("cpu"))
            assert variety.mean_distance(images) > 0.6 > reals > 0.3
    for parameter in G.synthesis.to_rgb.parameters():
        parameter.data *= 0.01
    images = run.sample_images(G, samples, 16, 1.0, torch.device("cpu"))
    assert variety.is_collapse(variety.mean_distance(images), reals, False)


def test_noise_is_no_variety():
    """Lesson: all samples share one noise. A generator that hears nothing but noise has collapsed.
    Control: with noise of its own, each picture is another."""
    G = tiny.networks()[0].eval()
    for name, parameter in G.named_parameters():
        if "noise" in name and name.endswith("strength"):
            parameter.data.fill_(1.0)
    for parameter in G.mapping.parameters():
        parameter.data.zero_()
    samples = run.new_samples(types.SimpleNamespace(resolution=16, seed=0, styles_to_mix=2,
                                                    latent_dim=8))
    images = run.sample_images(G, samples, 16, 1.0, torch.device("cpu"))
    assert images.std() > 0.1 and variety.mean_distance(images) < 1e-4
    with torch.no_grad():
        images = G(samples["z"], samples["style_index"], noise_mode="random")
    assert variety.mean_distance(images) > 0.1


# ---- 3. in a run ----


def test_samples_are_compared_with_what_d_is_shown():
    """Lesson: with the first real pictures, as many as there are samples, of the stage's size, and
    as blurred as D sees them while a block fades in. They are read once for each alpha."""
    reals, asked = torch.randint(0, 256, (60, 8, 8, 3), dtype=torch.uint8), []

    class Pictures(list):
        def __getitems__(self, samples):
            asked.append(len(samples))
            return reals[list(samples)]
    one = types.SimpleNamespace(
        stage=types.SimpleNamespace(resolution=8), real_distances={},
        pictures=types.SimpleNamespace(dataset={8: Pictures(range(60))}.__getitem__))
    samples = torch.rand(48, 3, 8, 8)
    for _ in range(2):
        ours, theirs = run.Run._distances(one, samples, 0.25)
        assert ours == variety.mean_distance(samples)
        blurred = data.fade_reals(data.to_images(reals[:48]), 0.25)
        assert theirs == variety.mean_distance(blurred)
    sharp = run.Run._distances(one, samples, 1.0)[1]
    assert sharp == variety.mean_distance(data.to_images(reals[:48])) > 1.2 * theirs
    assert asked == [48, 48]
    # Of a few pictures none is taken twice, which would make them alike.
    one.pictures.dataset = {8: Pictures(range(7))}.__getitem__
    assert run.Run._distances(one, samples, 0.5)[1] > 0 and asked[2:] == [7]


RUN = [*tiny.RUN, *("--resolution 4 --learning-rate 0.05 --tick-kimg 0.1 --samples-kimg 9 "
                    "--checkpoint-kimg 9").split()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def train_on(cache, capsys, *typed):
    """Train with 400 painted faces. Returns what was said."""
    capsys.readouterr()
    assert train.main([*RUN, "--cache", cache, *typed]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("architecture", ["stylegan", "stylegan2"])
def test_a_run_that_collapses_is_told_once_what_to_try(architecture, cache, tmp_path, capsys,
                                                       monkeypatch):
    """Lesson: D is shown one face only as real, and G learns to make that face of every z. The run
    says so when it sees it, and not again after it was resumed. Control: the same run with all
    faces is accused of nothing."""
    monkeypatch.setattr(pictures, "PAINTED_FACES", 400)
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    healthy = train_on(cache, capsys, "--architecture", architecture, "--total-kimg", "0.8",
                       "--out", "healthy")
    assert not any(line.startswith("collapse: ") for line in healthy)

    face = data.to_images(torch.from_numpy(np.array(paint_face(0, 4)))[None])
    monkeypatch.setattr(train, "reals_at", lambda images, alpha, growth: (
        face.expand_as(images).clone()))
    said = train_on(cache, capsys, "--architecture", architecture, "--total-kimg", "0.2",
                    "--out", "sick")
    assert not any(line.startswith("collapse: ") for line in said)
    kept = tmp_path / "sick" / "checkpoint.pt"
    assert checkpoints.load_checkpoint(kept)["progress"]["collapsed"] is False
    said = train_on(cache, capsys, "--resume", str(kept), "--total-kimg", "0.8")
    accused = [number for number, line in enumerate(said) if line.startswith("collapse: ")]
    assert len(accused) == 1
    assert checkpoints.load_checkpoint(kept)["progress"]["collapsed"] is True
    again = train_on(cache, capsys, "--resume", str(kept), "--total-kimg", "0.9")
    assert not any(line.startswith("collapse: ") for line in again)

    # It is the first line of the log with less than a third, and the status line before it.
    lines = tiny.log_of(tmp_path / "sick")
    first = next(line for line in lines if line["sample_distance"] < line["real_distance"] / 3)
    apart = f"{first['sample_distance']:.2f}", f"{first['real_distance']:.2f}"
    assert f"{first['nimg'] / 1000:.1f} kimg" in said[accused[0] - 1]
    assert "variety {} of {}  ".format(*apart) in said[accused[0] - 1]
    assert "samples are {} apart, two real pictures {}.".format(*apart) in said[accused[0]]
    for word in ("start again", f"or resume {kept.with_name('checkpoint-4.pt')}, ",
                 "--r1-gamma above", "--learning-rate below 0.05", "--batch above 8"):
        assert word in said[accused[0] + 1]
    assert max(len(line) for line in healthy if " kimg " in line) <= 125
    lines = tiny.log_of(tmp_path / "healthy")                  # control
    assert all(line["sample_distance"] > 0.4 * line["real_distance"] for line in lines)
    assert len(lines) == 8


def test_the_log_has_the_distances_of_the_sample_grid(cache, tmp_path, capsys, monkeypatch):
    """Lesson: what the last line says can be computed again from the checkpoint and from the
    pictures; TensorBoard has the same."""
    monkeypatch.setattr(pictures, "PAINTED_FACES", 400)
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    train_on(cache, capsys, "--resolution", "8", "--tick-kimg", "0.15", "--total-kimg", "0.25",
             "--out", "run")
    before, last = tiny.log_of(tmp_path / "run")
    assert (before["phase"], last["phase"]) == ("fade", "stabilize") and before["alpha"] < 0.5
    kept = checkpoints.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    G_ema = models.make_generator(kept["settings"]).eval()
    G_ema.load_state_dict(kept["generator_ema"])
    images = run.sample_images(G_ema, kept["samples"], 8, 1.0, torch.device("cpu"))
    assert last["sample_distance"] == pytest.approx(variety.mean_distance(images), rel=1e-5)
    faces = torch.stack([torch.from_numpy(np.array(paint_face(k, 8))) for k in range(400)])
    every = variety.mean_distance(data.to_images(faces))
    assert last["real_distance"] == pytest.approx(every, rel=0.1)          # 48 of them, or all
    assert before["real_distance"] < 0.97 * last["real_distance"]          # blurred
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    for key in ("sample_distance", "real_distance"):
        assert board.Scalars(key)[-1].value == pytest.approx(last[key])


def test_a_collapse_names_the_last_finished_resolution():
    """Lesson: what was finished before may be gone on from, with other options."""
    o = types.SimpleNamespace(r1_gamma=Table({4: 3.0, 8: 6.0}), batch=Table({4: 32, 8: 64}),
                              learning_rate=Table({4: 0.001, 8: 0.002}))
    said = variety.accusation(0.031, 0.42, o, 16, ["checkpoint-4.pt", "checkpoint-8.pt"])
    assert "start again, or resume checkpoint-8.pt, with" in said and "-4.pt" not in said
    assert "above 6," in said and "below 0.002," in said and "above 64." in said
    assert "resume" not in variety.accusation(0.031, 0.42, o, 4, [])
