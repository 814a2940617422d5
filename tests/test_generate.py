"""generate.py: what the figures claim, and the program as a user meets it.

What holds for the networks of both papers is tested with both (`both`).
"""

import importlib.util
import math
import re
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import generate
import morph
import project
import stylegan_models as models
from conftest import ROOT, refused, relative
from stylegan_layers import upsample_fir
from workshop import UserError, checkpoints, faces, figures, options, video

SMALL = dict(resolution=16, channel_base=64, channel_max=16, latent_dim=12, style_dim=10,
             mapping_dim=14, mapping_layers=2)
SMALL_OF = {"stylegan": SMALL, "stylegan2": {**SMALL, "architecture": "stylegan2"}}
CPU = torch.device("cpu")
WHATS = ("samples", "mixing", "truncation", "noise", "resolutions", "directions", "interpolate")


def a_generator(settings=SMALL):
    """A random network in which everything matters: noise, w_avg and biases are not 0."""
    torch.manual_seed(1)
    G = models.make_generator(settings).eval().requires_grad_(False)
    for name, parameter in G.named_parameters():
        if name.endswith("strength") or name.endswith("bias"):
            parameter.copy_(0.3 * torch.randn_like(parameter))
    G.w_avg.copy_(0.5 * torch.randn(settings["style_dim"]))
    return G


def save(path, settings=SMALL, **more):
    checkpoints.save_checkpoint(path, {"settings": settings, **more,
                                       "generator_ema": a_generator(settings).state_dict()})
    return path


both = pytest.mark.parametrize("settings", SMALL_OF, indirect=True)


@pytest.fixture
def settings(request):
    """Of the small StyleGAN, or in a test that is marked `both` of each architecture."""
    return SMALL_OF[getattr(request, "param", "stylegan")]


@pytest.fixture
def model(settings):
    return generate.Model(a_generator(settings), 16)


@pytest.fixture
def checkpoint(tmp_path, settings):
    return save(tmp_path / "tiny.pt", settings)


def images(model, seeds, **how):
    """[n, 3, R, R] of the seeds, and nothing else of generate.py's figures."""
    return torch.stack([*generate.render(model, generate.ws_of(model, seeds), seeds, **how)])


def noise_by_hand(G, r):
    """The noise inputs of a block, by their names."""
    block = G.synthesis.blocks[str(r)]
    if hasattr(block, "noise0"):
        return [block.noise0, block.noise1]
    return [layer.noise for layer in ([block.conv1] if r == 4 else [block.conv0, block.conv1])]


def by_hand(seed, psi=1.0, cutoff=None, noise="const", noise_seed=0, settings=SMALL):
    """Judge: the picture of a seed, without a line of generate.py. A network of its own."""
    G = a_generator(settings)
    z = torch.from_numpy(np.random.RandomState(seed).standard_normal(12)).float()
    w = G.mapping(z[None])
    pulled = G.w_avg + psi * (w - G.w_avg)
    ws = torch.stack([pulled if cutoff is None or layer < cutoff else w for layer in range(6)], 1)
    if noise == "random":
        stream = np.random.RandomState((seed, noise_seed, 0))
        for r in (4, 8, 16):
            for layer in noise_by_hand(G, r):
                layer.const = torch.from_numpy(stream.standard_normal((1, r, r))[None]).float()
    return G.synthesis(ws, noise_mode="none" if noise == "none" else "const")[0]


@pytest.fixture
def shown(checkpoint, tmp_path, monkeypatch):
    """What a command shows: a function of its arguments that gives every tile and every frame,
    [3, S, S], without titles and labels; those lie in its `.texts`."""
    tiles, texts = [], []

    def record(title, rows):
        tiles.extend(tile.numpy() for row in rows for tile in row.tiles if tile is not None)
        texts.extend([title, *(text for row in rows for text in (row.label, *row.captions))])
        return Image.new("RGB", (8, 8))

    def film(path, frames, count, fps):
        tiles.extend(frame.transpose(2, 0, 1) for frame in frames)
        texts.append(f"{count} frames, {fps:g} a second")

    monkeypatch.setattr(generate, "draw_figure", record)
    monkeypatch.setattr(video, "write_video", film)

    def run(what, *arguments):
        tiles.clear(), texts.clear()
        out = tmp_path / {"samples": "samples", "interpolate": "loop.gif"}.get(what, "figure.png")
        generate.main([str(a) for a in (checkpoint, what, *arguments, "--out", out,
                                        "--device", CPU)])
        return list(tiles)

    run.texts = texts
    return run


def in_it(image, tiles):
    """Is the image one of the tiles, every pixel within 1 of 255 (batches round)?"""
    wanted = figures.to_tile(image, tiles[-1].shape[2]).numpy().astype(int)
    return any(np.abs(tile - wanted).max() <= 1 for tile in tiles if tile.shape == wanted.shape)


# ---- 1. from seeds to pictures ----


def test_a_seed_means_the_same_z_everywhere():
    """Lesson: numpy promises this stream for all time, so its numbers can be written down."""
    z = generate.z_of_seeds([0, 2019], 3)
    assert z[0].tolist() == pytest.approx([1.764052, 0.400157, 0.978738], abs=1e-6)
    alone = generate.z_of_seeds([2019], 3)[0]
    assert torch.equal(z[1], alone) and not torch.equal(z[0], alone)


@both
@pytest.mark.parametrize("noise", ["const", "random", "none"])
def test_a_picture_does_not_depend_on_the_other_seeds(model, settings, noise):
    """Lesson: nor on the batch size, but for rounding; the noise of an image is its own."""
    model = model._replace(noise=noise)
    together = images(model, [3, 4, 5, 6, 7])
    small = images(model._replace(batch=2), [3, 4, 5, 6, 7])
    alone = images(model, [5])
    assert relative(small, together) < 1e-5 and relative(alone[0], together[2]) < 1e-5
    assert torch.equal(together, images(model, [3, 4, 5, 6, 7]))                 # repeatable
    assert relative(together[2], by_hand(5, noise=noise, settings=settings)) < 1e-5
    # Control: torch's own noise does depend on them.
    ws = generate.ws_of(model, [3, 4, 5])
    torch.manual_seed(0)
    batch = model.G.synthesis(ws, noise_mode="random")[2]
    torch.manual_seed(0)
    assert relative(model.G.synthesis(ws[2:], noise_mode="random")[0], batch) > 1e-2


@both
def test_random_noise_has_a_seed_and_leaves_the_stored_maps_alone(model):
    stored = {name: b.clone() for name, b in model.G.named_buffers()}
    model = model._replace(noise="random")
    first, again, other = (images(model, [1, 1], draws=[draw, draw]) for draw in (0, 0, 1))
    assert torch.equal(first, again) and relative(first[0], first[1]) < 1e-5     # rounding
    assert relative(first, other) > 1e-2                                         # control
    assert relative(first, images(model._replace(seed=1), [1, 1])) > 1e-2
    assert all(torch.equal(b, stored[name]) for name, b in model.G.named_buffers())
    # Judge: "none" is the network without its noise inputs.
    with generate.noise_only_at(model.G, []):
        silent = images(model, [1])
    assert torch.allclose(silent, images(model._replace(noise="none"), [1]), atol=1e-6)


@both
def test_silenced_noise_comes_back(model):
    before = {name: p.clone() for name, p in model.G.named_parameters()}
    with pytest.raises(KeyError):
        with generate.noise_only_at(model.G, [8]):
            for r in (4, 8, 16):                               # 8: the control
                strengths = [layer.strength.abs().max() for layer in noise_by_hand(model.G, r)]
                assert strengths and all((x == 0) == (r != 8) for x in strengths)
            raise KeyError
    assert all(torch.equal(p, before[name]) for name, p in model.G.named_parameters())


@both
def test_noise_strengths_are_multiplied_and_come_back(model, settings):
    before = {name: p.clone() for name, p in model.G.named_parameters()}
    judge = a_generator(settings)
    for r, factor in ((4, 1.0), (8, 0.25), (16, 0.25)):
        for layer in noise_by_hand(judge, r):
            layer.strength *= factor
    with pytest.raises(KeyError):
        with generate.noise_scaled(model.G, {4: 1.0, 8: 0.25, 16: 0.25}):
            assert all(torch.equal(p, q) for p, q in zip(model.G.parameters(), judge.parameters()))
            raise KeyError
    assert all(torch.equal(p, before[name]) for name, p in model.G.named_parameters())
    image = images(model._replace(strengths=options.read_table("4:1,8:0.25")), [3])
    plain = images(model, [3])
    assert torch.equal(image, images(generate.Model(judge, 16), [3]))
    assert relative(image, plain) > 1e-2                                         # control
    assert torch.equal(images(model._replace(strengths=options.read_table("1")), [3]), plain)


def test_a_network_in_training_is_rendered_where_it_stands(tmp_path):
    """Lesson: blocks above the current resolution exist, but nobody has trained them."""
    path = save(tmp_path / "young.pt", progress={"resolution": 8, "alpha": 0.25, "phase": "fade"})
    model = generate.load_model(path, CPU)
    image = images(model, [0])
    assert image.shape == (1, 3, 8, 8) and model.layers == 4
    assert model.growing == "fading in, alpha 0.25"
    judge = a_generator()(generate.z_of_seeds([0], 12), noise_mode="const", resolution=8,
                          alpha=0.25)
    assert relative(image, judge) < 1e-5
    assert relative(image, a_generator()(generate.z_of_seeds([0], 12), noise_mode="const",
                                         resolution=8)) > 1e-2                   # control: alpha 1
    assert generate.load_model(save(path), CPU).growing == ""


def test_only_the_averaged_generator_stays_in_memory(checkpoint, monkeypatch):
    """Lesson: a file holds G twice, D and Adam's numbers; a figure needs one network of it."""
    class Watched(dict):                                       # a plain dict cannot be watched
        pass

    files, asked = [], []
    real = checkpoints.load_networks

    def load(path, device, parts):
        loaded = real(path, device, parts)
        whole = Watched(loaded.checkpoint)
        files.append(weakref.ref(whole)), asked.append(parts)
        return loaded._replace(checkpoint=whole)

    monkeypatch.setattr(checkpoints, "load_networks", load)
    model = generate.load_model(checkpoint, CPU)
    assert files[0]() is None and asked == [("generator_ema",)]
    kept = load(checkpoint, CPU, ("generator_ema",))                           # control
    assert files[1]() is kept.checkpoint and model.resolution == 16


def test_a_network_that_failed_is_not_shown_as_noise(model):
    model.G.synthesis.to_rgb["16"].bias.fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        images(model, [0])


def test_pictures_are_made_without_tf32(checkpoint, tmp_path, monkeypatch):
    """Lesson: TF32 would change a pixel by 1e-3; afterwards all is as it was."""
    flags = []
    real = models.SynthesisNetwork.forward

    def forward(self, *arguments):
        flags.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return real(self, *arguments)

    monkeypatch.setattr(models.SynthesisNetwork, "forward", forward)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run = ["resolutions", "--seeds", "0", "--out", tmp_path / "r.png", "--device", "cpu"]
    generate.main([str(word) for word in (checkpoint, *run)])
    assert set(flags) == {(False, "highest")} and torch.backends.cudnn.allow_tf32
    flags.clear()                                                                # control
    images(generate.load_model(checkpoint, CPU), [0])
    assert flags[0][0]


@pytest.mark.parametrize("script", ["generate.py", "project.py"])
def test_float64_only_on_the_cpu(script):
    """Lesson: MPS has no float64. What is doubled has come to the CPU before."""
    source = (ROOT / script).read_text()
    doubled = re.findall(r"(\S*)\.(?:double\(\)|to\(torch.float64)", source)
    assert all(before.endswith(".cpu()") for before in doubled), doubled
    assert script != "generate.py" or doubled                                    # control


# ---- 2. psi, cutoff, noise and seed reach every picture ----

# Arguments, for a face of seed 2 somewhere in the figure.
FACE_2 = {"samples": ["--seeds", "1,2"], "mixing": ["--seeds-a", "2", "--seeds-b", "5"],
          "truncation": ["--seeds", "2"], "noise": ["--seeds", "2", "--draws", "2"],
          "resolutions": ["--seeds", "2"], "interpolate": ["--seeds", "2,3", "--frames", "3"],
          "directions": ["--seeds", "2", "--directions", "1", "--strengths=0,1"]}


@both
@pytest.mark.parametrize("what", WHATS)
def test_psi_cutoff_noise_and_seed_reach_every_picture(shown, settings, what):
    """Lesson: the same face in each figure, as the options say. Judge: a network of its own."""
    how = dict(psi=0.5, cutoff=3, noise="random", noise_seed=7)
    typed = ["--psi", "0.5", "--cutoff", "3", "--noise", "random", "--seed", "7"]
    if what == "interpolate":                                  # random noise would flicker
        how, typed = dict(psi=0.5, cutoff=3, noise="none"), [*typed[:4], "--noise", "none"]
    elif what == "truncation":                                 # has --psis
        typed = ["--psis=1,0.5", *typed[2:]]
    elif what == "noise":                                      # is always random
        typed = [*typed[:4], *typed[6:]]
    tiles = shown(what, *FACE_2[what], *typed)
    assert in_it(by_hand(2, **how, settings=settings), tiles)
    plain = {"psi": 1.0, "cutoff": None, "noise": "const", "noise_seed": 0}
    for name in how:                                           # control: each of them matters
        if (what, name) != ("truncation", "psi"):              # which shows psi 1, too
            other = by_hand(2, **{**how, name: plain[name]}, settings=settings)
            assert not in_it(other, tiles), name


CHANGES = [
    ("samples", [], ["--seeds", "0-1"]), ("samples", ["--seeds", "3"], ["--w", "me.npz"]),
    ("mixing", [], ["--coarse", "0"]), ("mixing", [], ["--middle", "3"]),
    ("mixing", [], ["--fine", "5"]), ("mixing", [], ["--seeds-a", "4"]),
    ("mixing", [], ["--seeds-b", "4"]), ("mixing", [], ["--w", "me.npz"]),
    ("mixing", [], ["--w-a", "me.npz"]), ("mixing", [], ["--w-b", "me.npz"]),
    ("truncation", [], ["--seeds", "4"]), ("truncation", [], ["--psis=0.1,-1"]),
    ("truncation", [], ["--cutoff", "1"]), ("truncation", [], ["--noise", "none"]),
    ("truncation", ["--noise", "random"], ["--seed", "1"]),
    ("noise", ["--draws", "9"], ["--draws", "5"]), ("noise", ["--draws", "5"], ["--seeds", "4"]),
    ("noise", ["--draws", "5"], ["--w", "me.npz"]),
    ("resolutions", [], ["--seeds", "4"]), ("resolutions", [], ["--w", "me.npz"]),
    ("resolutions", [], ["--psi", "0.5"]),
    ("directions", [], ["--layers", "2-3"]), ("directions", [], ["--directions", "2"]),
    ("directions", [], ["--strengths=-1,1"]), ("directions", [], ["--seeds", "4"]),
    ("directions", [], ["--w", "me.npz"]),
    ("interpolate", ["--frames", "5"], ["--space", "z"]),
    ("interpolate", ["--frames", "5"], ["--frames", "6"]),
    ("interpolate", ["--frames", "5"], ["--seeds", "4,5"]),
    ("interpolate", ["--frames", "5"], ["--w", "me.npz"]),
    ("interpolate", ["--frames", "5", "--space", "z"], ["--psi", "0.5"]),
    ("interpolate", ["--frames", "5", "--space", "z", "--psi", "0.5"], ["--cutoff", "1"]),
]


@both
@pytest.mark.parametrize("what, before, more", CHANGES, ids=lambda v: "".join(v) or "default")
def test_every_other_option_changes_the_pictures(shown, tmp_path, monkeypatch, what, before, more):
    """Lesson: tile by tile, without titles; the same options again give the same tiles."""
    monkeypatch.chdir(tmp_path)
    project.save_w("me.npz", torch.randn(6, 10), [1.0], 6)
    first, again = shown(what, *before), shown(what, *before)
    assert len(first) == len(again) and all(map(np.array_equal, first, again))   # control
    changed = shown(what, *before, *more)
    assert len(first) != len(changed) or not all(map(np.array_equal, first, changed))


def test_frames_a_second_reach_the_video(shown):
    shown("interpolate", "--frames", "5", "--fps", "12.5")
    assert shown.texts == ["5 frames, 12.5 a second"]
    shown("interpolate", "--seeds", "0-2")                     # the defaults: 50 a face, 25
    assert shown.texts == ["150 frames, 25 a second"]


# ---- 3. faces from files ----


@both
def test_a_face_of_a_file_is_the_picture_of_its_w(shown, tmp_path, settings):
    """Lesson: beside seeds or instead of them; one w for each layer, or one for all."""
    w = torch.randn(6, 10)
    project.save_w(tmp_path / "me.npz", w, [1.0], 6)
    project.save_w(tmp_path / "one.npz", w[:1], [1.0], 6)
    for name, judge in (("me", w), ("one", w[:1].expand(6, -1))):
        judge = a_generator(settings).synthesis(judge[None], noise_mode="const")[0]
        alone = shown("samples", "--w", tmp_path / f"{name}.npz")
        assert len(alone) == 1 and in_it(judge, alone) and shown.texts[-1] == name
        beside = shown("samples", "--w", tmp_path / f"{name}.npz", "--seeds", "2")
        other = by_hand(2, settings=settings)
        assert len(beside) == 2 and in_it(judge, beside) and in_it(other, beside)
        assert not in_it(other, alone)                                           # control
        for what in ("mixing", "directions", "interpolate"):
            more = {"interpolate": ["--frames", "2"], "directions": ["--strengths=0"]}
            assert in_it(judge, shown(what, "--w", tmp_path / f"{name}.npz", *more.get(what, [])))


@pytest.mark.parametrize("other", ["me", "Me"])
def test_two_files_of_one_name_are_refused(checkpoint, tmp_path, capsys, other):
    """Lesson: on Windows and macOS w-me.png and w-Me.png are one file."""
    for folder, name in (("a", "me"), ("b", other)):
        (tmp_path / folder).mkdir()
        project.save_w(tmp_path / folder / f"{name}.npz", torch.randn(1, 10), [1.0], 6)
    code, line = refused(generate.main, [
        checkpoint, "samples", "--w", tmp_path / "a" / "me.npz", tmp_path / "b" / f"{other}.npz",
        "--out", tmp_path / "o"], capsys)
    assert code == 2 and "same name" in line and not (tmp_path / "o").exists()


# ---- 4. mixing, truncation, noise, resolutions ----


def test_the_ranges_of_figure_3():
    """Lesson: at 1024 px 4-8, 16-32 and 64-1024 px; below, something sensible, and no gaps."""
    ranges = generate.mixing_ranges(18)
    assert {name: [generate.resolution_of(layer) for layer in ends]
            for name, ends in ranges.items()} == {
        "coarse": [4, 8], "middle": [16, 32], "fine": [64, 1024]}
    assert generate.mixing_ranges(8) == {"coarse": (0, 3), "middle": (4, 5), "fine": (6, 7)}
    assert generate.mixing_ranges(4) == {"coarse": (0, 1), "fine": (2, 3)}
    assert generate.mixing_ranges(2) == {"coarse": (0, 1)}
    for layers in range(2, 20, 2):
        covered = [layer for first, last in generate.mixing_ranges(layers).values()
                   for layer in range(first, last + 1)]
        assert covered == list(range(layers))


@both
def test_a_mixed_face_is_made_of_both_styles(model, shown):
    """Lesson: the cell is the picture of ws composed by hand, layer by layer."""
    a, b = (generate.ws_of(model, [seed]) for seed in (0, 1))
    composed = torch.stack([(b if layer in (2, 3) else a)[0, layer] for layer in range(6)])[None]
    mixed = generate.mix(a, b, 2, 3)
    assert torch.equal(mixed, composed)
    assert torch.equal(a, generate.ws_of(model, [0]))                            # A itself is whole
    cell = model.G.synthesis(composed, noise_mode="const")[0]
    for other in (a, b):
        assert relative(cell, model.G.synthesis(other, noise_mode="const")[0]) > 1e-2   # control
    # ... and that picture stands in the figure, in the second block (middle), once.
    tiles = shown("mixing", "--seeds-a", "0", "--seeds-b", "1")
    assert [in_it(cell, [tile]) for tile in tiles] == [False] * 4 + [True] + [False] * 2
    # With random noise a cell has the maps of A, not of B.
    tiles = shown("mixing", "--seeds-a", "0", "--seeds-b", "1", "--noise", "random")
    own, other = (next(generate.render(model._replace(noise="random"), composed, [face]))
                  for face in (0, 1))
    assert in_it(own, [tiles[4]]) and not in_it(other, [tiles[4]])
    labels = [text for text in shown.texts if "from B" in text]
    assert labels == ["coarse from B\n4 px\n(layers 0-1)\nA: seed 0",
                      "middle from B\n8 px\n(layers 2-3)\nA: seed 0",
                      "fine from B\n16 px\n(layers 4-5)\nA: seed 0"]


@both
def test_at_psi_0_every_row_is_the_average_face(model, shown):
    average = model.G.synthesis(model.G.w_avg.expand(1, 6, -1), noise_mode="const")[0]
    tiles = shown("truncation", "--seeds", "0-2", "--psis", "1,0,-1")
    assert [in_it(average, [tile]) for tile in tiles] == [False, True, False] * 3
    # Control: with a cutoff the layers above it are not truncated, and the rows differ.
    assert not in_it(average, shown("truncation", "--seeds", "0-2", "--psis", "1,0,-1",
                                    "--cutoff", "2"))


def test_deviation_is_the_standard_deviation():
    stream = 5 + 0.01 * torch.randn(50, 3, 4, 4)               # small, far from 0: a hard case
    judge = np.sqrt(stream.double().numpy().var(axis=0).mean(axis=0))
    assert np.allclose(generate.deviation_of(iter(stream)).numpy(), judge, rtol=1e-5)
    assert generate.deviation_of(iter(stream[:1].expand(9, -1, -1, -1))).max() == 0    # control


def test_the_groups_of_figure_5():
    coarse, fine = generate.noise_groups(1024)
    assert (coarse, fine) == ([4, 8, 16, 32], [64, 128, 256, 512, 1024])
    assert generate.noise_groups(32) == ([4, 8], [16, 32])
    assert generate.noise_groups(4) == ([], [4])


@both
def test_the_noise_figure_shows_its_four_cases(shown, settings):
    """Judge: strengths set to 0 by hand in a second network."""
    tiles = shown("noise", "--seeds", "2", "--draws", "3")
    assert len(tiles) == 3 + 1 + 4                             # draws, map, cases
    for place, silent in ((0, ()), (4, ()), (5, (4, 8, 16)), (6, (4,)), (7, (8, 16))):
        other = generate.Model(a_generator(settings), 16, noise="random")
        for layer in [layer for r in silent for layer in noise_by_hand(other.G, r)]:
            layer.strength.zero_()
        assert in_it(images(other, [2])[0], tiles[place:place + 1]), place
        assert not in_it(images(other, [2])[0], tiles[1:2])                      # control: draw 2
    # The map: the largest deviation is white, and its caption says how many levels that is.
    draws = torch.stack([images(generate.Model(a_generator(settings), 16, noise="random"), [2],
                                draws=[draw])[0] for draw in range(3)])
    judge = draws.double().var(dim=0, correction=0).mean(dim=0).sqrt()
    assert np.abs(tiles[3][0, ::6, ::6] - (255 * judge / judge.max()).numpy()).max() <= 1
    assert f"white: {127.5 * judge.max():.3g} / 255" in shown.texts[5]


def test_noise_of_one_pixel_can_be_seen_at_large_sizes(tmp_path, monkeypatch):
    """Lesson: an average over 2x2 pixels halves noise that is 1 pixel wide; a crop keeps it, and
    shows the place where noise does most."""
    class Faces(torch.nn.Module):                              # grey, and noise in one corner
        blocks = {}

        def forward(self, ws, resolution, alpha, mode):
            image = torch.zeros(len(ws), 3, 512, 512)
            image[:, :, 300:, :200] = 0.4 * torch.randn(len(ws), 1, 212, 200)
            return image

    model = generate.Model(a_generator(dict(SMALL, resolution=512, channel_base=512,
                                            channel_max=4)), 512, noise="random", batch=2)
    object.__setattr__(model.G, "synthesis", Faces())
    monkeypatch.setattr(generate, "ws_of", lambda model, faces: torch.zeros(len(faces), 16, 10))
    monkeypatch.setattr(generate, "noise_maps", lambda *a: generate.contextlib.nullcontext())
    rows = []
    monkeypatch.setattr(generate, "draw_figure", lambda title, r: rows.extend(r))
    generate.noise_figure(model, generate.parse_args(
        ["model.pt", "noise", "--seeds", "0", "--draws", "4", "--out", str(tmp_path / "n.png")]))
    tiles = [tile.numpy().astype(float) for tile in rows[0].tiles]
    whole, draw, levels = tiles[0], tiles[1], 0.4 * 127.5
    assert len(tiles) == 1 + 4 + 1 + 4 and {tile.shape for tile in tiles} == {(3, 256, 256)}
    assert draw[0, 44:, :200].std() == pytest.approx(levels, rel=0.05)           # rows 256 to 511
    assert draw[0, :40].std() == 0
    assert whole[0, 160:250, 5:95].std() == pytest.approx(levels / 2, rel=0.1)   # control: averaged
    frame = whole[0] > 250
    assert frame[130:, 0].all() and frame[-1, :128].all() and not frame[:126].any()


def test_the_resolutions_are_the_smaller_networks_pictures(model, shown):
    tiles = shown("resolutions", "--seeds", "3")
    z = generate.z_of_seeds([3], 12)
    for place, r in enumerate((4, 8, 16)):
        assert in_it(model.G(z, noise_mode="const", resolution=r)[0], tiles[place:place + 1])
        # In the second row only the last has the contrast that it had.
        assert in_it(model.G(z, noise_mode="const", resolution=r)[0],
                     tiles[place + 3:place + 4]) == (r == 16)
    assert not in_it(model.G(z, noise_mode="const", alpha=0.5)[0], tiles)        # control


stylegan2 = pytest.mark.parametrize("settings", ["stylegan2"], indirect=True)


def outputs_of_to_rgb(model, ws):
    """Judge: what each to_rgb returned in one pass, [n, 3, r, r] each, and the images."""
    seen, layers = [], model.G.synthesis.to_rgb.values()
    hooks = [layer.register_forward_hook(lambda layer, inputs, x: seen.append(x))
             for layer in layers]
    result = model.G.synthesis(ws, noise_mode="const")
    for hook in hooks:
        hook.remove()
    return seen, result


@stylegan2
def test_a_picture_of_stylegan2_is_the_sum_of_its_parts(model, shown):
    """Lesson: the columns are the sum so far, the last the whole picture; the rows below have what
    each resolution adds, with more contrast; the share of each stands in its caption."""
    tiles = shown("resolutions", "--seeds", "3")
    captions = [text for text in shown.texts if " adds" in text]
    z = generate.z_of_seeds([3], 12)
    added, whole = outputs_of_to_rgb(model, generate.ws_of(model, [3]))
    total = 0
    for place, (r, part) in enumerate(zip((4, 8, 16), added)):
        total = part if r == 4 else upsample_fir(total) + part
        assert in_it(total[0], tiles[place:place + 1])
        assert in_it(model.G(z, noise_mode="const", resolution=r)[0], tiles[place:place + 1])
        assert in_it(figures.match_contrast(part[0], whole[0]), tiles[place + 3:place + 4])
        assert in_it(figures.match_contrast(part[0], whole[0]), tiles[place:place + 1]) is False
    assert relative(total, whole) < 1e-6
    everybody, _ = outputs_of_to_rgb(model, generate.ws_of(model, list(range(64))))
    judge = np.array([np.sqrt(part.numpy().var(axis=(0, 2, 3), dtype=np.float64).mean())
                      for part in everybody])
    assert captions[1:] == [f"{r} px adds\n{100 * share:.1f} %"
                            for r, share in zip((4, 8, 16), judge / judge.sum())]


@stylegan2
def test_shares_are_standard_deviations_and_biases_have_none(model):
    """Lesson: a colour that is added everywhere could be added at any resolution, so it does not
    count; a to_rgb that is twice as strong does."""
    def shares():
        ws = generate.ws_of(model, list(range(8)))
        return generate.shares_of(map(generate.parts_of, generate.sums_so_far(model, ws,
                                                                               list(range(8)))))

    before = shares()
    assert before.sum() == pytest.approx(1) and before.min() > 0.01
    model.G.synthesis.to_rgb["8"].bias += torch.tensor([5.0, -2.0, 1.0])
    assert torch.allclose(shares(), before, atol=1e-5)
    model.G.synthesis.to_rgb["8"].weight *= 2                                    # control
    after = shares()
    assert (after[1] / after[0]).item() == pytest.approx(2 * (before[1] / before[0]).item(),
                                                         rel=1e-4)


@both
def test_a_style_layer_belongs_to_the_features_that_it_scales(model, settings):
    """Lesson: layers 0 and 1 change the picture from 4 px on, layers 2 and 3 from 8 px on, ..., in
    both. In StyleGAN2 layer 1 scales the features of 4 px on their way into the 8 px block."""
    ws = generate.ws_of(model, [0])

    def picture(ws, r):
        return model.G.synthesis(ws, r, noise_mode="const")

    for layer in range(model.layers):
        moved = ws.clone()
        moved[:, layer] += 1
        changed = [r for r in (4, 8, 16) if relative(picture(moved, r), picture(ws, r)) > 1e-4]
        assert changed == [r for r in (4, 8, 16) if r >= generate.resolution_of(layer)]
    if "architecture" in settings:
        style = model.G.synthesis.blocks["8"].conv0.style
        assert style.weight.shape[0] == model.G.synthesis.blocks["4"].conv1.weight.shape[0]
        assert style in generate.styles_of(model.G, 1) and generate.resolution_of(1) == 4


def test_matched_contrast_has_the_references_mean_and_std():
    image, reference = torch.randn(3, 4, 4) * 9 + 5, torch.rand(3, 16, 16)
    small = reference.numpy().reshape(3, 4, 4, 4, 4).mean(axis=(2, 4))
    matched = figures.match_contrast(image, reference).numpy()
    assert np.allclose(matched.mean(axis=(1, 2)), small.mean(axis=(1, 2)), atol=1e-5)
    assert np.allclose(matched.std(axis=(1, 2)), small.std(axis=(1, 2)), rtol=1e-4)
    assert np.corrcoef(matched[0].ravel(), image[0].ravel())[0, 1] > 0.9999      # same drawing
    assert not np.allclose(image.numpy().std(axis=(1, 2)), small.std(axis=(1, 2)), rtol=0.5)


# ---- 5. directions, interpolation ----


# The styles that listen to w in layers 1, 2, 3, 4.
HEARD = {"stylegan": ["blocks.4.adain1", "blocks.8.adain0", "blocks.8.adain1", "blocks.16.adain0"],
         "stylegan2": ["blocks.8.conv0", "to_rgb.4", "blocks.8.conv1", "blocks.16.conv0",
                       "to_rgb.8", "blocks.16.conv1"]}


@both
def test_sefa_directions_are_eigenvectors(model, settings):
    """Lesson: A maps a move of w to a move of the styles; no move of length 1 does more than the
    first direction. Judge: numpy in float64, and the network's own styles."""
    A = generate.style_matrix(model, 1, 4)
    heard = HEARD[settings.get("architecture", "stylegan")]
    state = model.G.state_dict()
    rows = [state[f"synthesis.{name}.style.weight"].double().numpy() / math.sqrt(10)
            for name in heard]
    judge = np.concatenate(rows)
    assert np.allclose(A.numpy(), judge)
    directions, values = (x.numpy() for x in generate.sefa(A))
    gram = judge.T @ judge
    assert np.allclose(gram @ directions.T, directions.T * values, atol=1e-9 * values[0])
    assert np.allclose(directions @ directions.T, np.eye(10)) and (np.diff(values) <= 0).all()
    assert np.allclose(values, np.linalg.svd(judge, compute_uv=False) ** 2)
    assert all(row[np.abs(row).argmax()] > 0 for row in directions)
    other = np.random.default_rng(0).standard_normal(10)                         # control
    assert np.square(judge @ other).sum() / np.square(other).sum() < values[0]
    style = model.G.get_submodule(f"synthesis.{heard[0]}.style")    # A n is what it moves by
    w, n = torch.randn(1, 10), torch.from_numpy(directions[:1]).float()
    rows = len(style.weight)
    assert torch.allclose(style(w + n) - style(w), (A[:rows] @ n[0].double()).float(), atol=1e-5)


@both
def test_sefa_hears_every_style_once(model):
    """Judge: the styles whose result changes when w of one layer does, in the network itself."""
    ws = generate.ws_of(model, [0])
    styles = {name: part for name, part in model.G.synthesis.named_modules()
              if name.endswith("style")}
    seen = {}
    for name, part in styles.items():
        part.register_forward_hook(lambda part, inputs, y, name=name: seen.update({name: y}))
    model.G.synthesis(ws, noise_mode="const")
    before, found = dict(seen), []
    for layer in range(model.layers):
        moved = ws.clone()
        moved[:, layer] += 1
        model.G.synthesis(moved, noise_mode="const")
        judge = [name for name in styles if not torch.equal(seen[name], before[name])]
        ours = [name for name, part in styles.items()
                if any(part is style for style in generate.styles_of(model.G, layer))]
        assert ours == judge and ours
        found += ours
    assert sorted(found) == sorted(styles)


@both
def test_directions_move_only_their_layers(model, shown):
    """Judge: w moved by hand; the shares in the labels are those of numpy, and add up to 1."""
    tiles = shown("directions", "--seeds", "1", "--layers", "2-3", "--directions", "10",
                  "--strengths=-1,0,2")
    gram = generate.style_matrix(model, 2, 3).numpy()
    values, vectors = np.linalg.eigh(gram.T @ gram)
    n = torch.from_numpy(vectors[:, -1]).float()
    n = n * n[n.abs().argmax()].sign()
    typical = project.spread_of_w(model.G)
    for column, strength in enumerate((-1.0, 0.0, 2.0)):
        ws = generate.ws_of(model, [1]).clone()
        ws[0, 2:4] += strength * typical * n
        assert in_it(model.G.synthesis(ws, noise_mode="const")[0], tiles[column:column + 1])
    ws[0, 0] += typical * n                                    # control: another layer
    assert not in_it(model.G.synthesis(ws, noise_mode="const")[0], tiles)
    shares = [float(share) for text in shown.texts for share in re.findall(r"\((.*) %\)", text)]
    assert shares == pytest.approx(100 * values[::-1] / values.sum(), abs=0.051)
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_straight_lines_on_the_sphere_are_fastest_in_the_middle():
    """Lesson: that is why the path in z is an arc, whose steps are all alike."""
    a, b = torch.randn(2, 1, 512, dtype=torch.float64)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]

    def steps(path):                                           # angles of ten steps
        path = torch.nn.functional.normalize(path)
        return (path[1:] * path[:-1]).sum(dim=1).clamp(-1, 1).acos()

    line = steps(torch.lerp(a / a.norm(), b / b.norm(), t))
    arc = steps(evaluate.slerp(a.expand(11, -1), b.expand(11, -1), t))
    assert line[4] > 1.5 * line[0] and line[5] > 1.5 * line[-1]
    assert torch.allclose(arc, arc[:1].expand(10), rtol=1e-6)                    # control


@both
@pytest.mark.parametrize("space", ["w", "z"])
def test_frames_pass_through_the_seeds_and_close(model, settings, space):
    """Lesson: of 40 frames through 4 faces, face k is frame 10 k. So seed 5 is a quarter of the
    loop away from seed 4, and so is seed 7."""
    frames = [*generate.loop_frames(model, [4, 5, 6, 7], 40, space)]
    assert len(frames) == 40 and frames[0].shape == (256, 256, 3)
    steps = [np.abs(frames[k].astype(float) - frames[k - 1]).mean() for k in range(40)]
    assert max(steps) < 4 * np.mean(steps)                     # steps[0]: from the last frame
    far = np.abs(frames[20].astype(float) - frames[0]).mean()
    assert max(steps) < far                                                      # control
    for place, seed in enumerate((4, 5, 6, 7)):
        assert in_it(by_hand(seed, settings=settings), [frames[10 * place].transpose(2, 0, 1)])
    # Half-way in z lies the middle of an arc, pulled by the mapping network to w.
    z = generate.z_of_seeds([4, 5], 12).double()
    middle = model.G.mapping((z / z.norm(dim=1, keepdim=True)).sum(dim=0)[None].float())
    judge = model.G.synthesis(middle[:, None].expand(-1, 6, -1), noise_mode="const")[0]
    assert in_it(judge, [frames[5].transpose(2, 0, 1)]) == (space == "z")


def test_one_way_ends_at_the_last_face(model):
    frames = [*generate.loop_frames(model, [4, 5, 6], 9, one_way=True)]
    for k, seed in ((0, 4), (4, 5), (8, 6)):
        assert in_it(by_hand(seed), [frames[k].transpose(2, 0, 1)])
    assert not in_it(by_hand(6), [[*generate.loop_frames(model, [4, 5, 6], 9)][8].transpose(
        2, 0, 1)])                                                               # control: a loop


def test_psi_has_a_way_of_its_own(model):
    """Lesson: --psis=1,-1 with one seed shows a face, the average one, its opposite, and the way
    back. Judge: single pictures with these psi."""
    frames = [*generate.loop_frames(model, [4], 8, psis=[1.0, -1.0])]

    def alone(psi):
        return next(generate.loop_frames(model._replace(psi=psi), [4], 1))
    for k, psi in enumerate((1, 0.5, 0, -0.5, -1, -0.5, 0, 0.5)):
        assert np.abs(frames[k].astype(int) - alone(float(psi))).max() <= 1, k
    assert np.abs(frames[0].astype(int) - frames[4]).max() > 20                # control


def test_videos_stand_in_a_grid_and_frames_in_a_folder(tmp_path, monkeypatch, checkpoint):
    """Lesson: 4 seeds dealt to 2 x 1 tiles are two loops of 2 faces, each as it is alone; a name
    without a suffix is a folder of single frames."""
    monkeypatch.chdir(tmp_path)
    words = ["--frames", "6", "--hold", "1", "--device", "cpu"]
    for out, seeds, more in (("both", "4-7", ["--grid", "2x1"]), ("left", "4,6", []),
                             ("right", "5,7", [])):
        assert generate.main([str(checkpoint), "interpolate", "--out", out, "--seeds", seeds,
                              *words, *more]) == 0
    for k in range(6):
        both, left, right = (np.asarray(Image.open(f"{out}/frame{k:06d}.png"))
                             for out in ("both", "left", "right"))
        assert np.array_equal(both, np.concatenate([left, right], axis=1))
    assert not np.array_equal(left, right)                     # control
    assert len([*(tmp_path / "both").iterdir()]) == 6


def test_cells_of_a_mixing_figure_can_be_had_alone(tmp_path, checkpoint):
    """Lesson: a cell is a picture like any other: as many files as cells, at the network's size."""
    cells = tmp_path / "cells"
    assert generate.main([str(checkpoint), "mixing", "--seeds-a", "0,1", "--seeds-b", "2-4",
                          "--cells", str(cells), "--out", str(tmp_path / "m.png"), "--device",
                          "cpu"]) == 0
    names = sorted(path.name for path in cells.iterdir())
    assert "coarse-seed0-seed2.png" in names and len(names) == 18          # 3 groups
    assert {Image.open(cells / name).size for name in names} == {(16, 16)}
    strangers = cells / "coarse-seed0-seed3.png"
    strangers.write_bytes(b"mine")
    with pytest.raises(UserError, match="--cells .*did not write it"):
        generate.main([str(checkpoint), "mixing", "--seeds-a", "0", "--seeds-b", "3", "--cells",
                       str(cells), "--out", str(tmp_path / "m.png"), "--device", "cpu"])
    assert strangers.read_bytes() == b"mine"


def test_a_truncated_loop_is_a_loop_of_truncated_faces(model):
    """Lesson: truncation is linear, so it may be done frame by frame."""
    model = model._replace(psi=0.5, cutoff=3)
    frames = [*generate.loop_frames(model, [4, 5, 6], 6)]
    ws = video.closed_spline(generate.ws_of(model, [4, 5, 6]),
                             torch.tensor([0.5], dtype=torch.float64))
    judge = model.G.synthesis(ws, noise_mode="const")[0]
    assert in_it(judge, [frames[1].transpose(2, 0, 1)])
    assert not in_it(judge, [frames[0].transpose(2, 0, 1)])                      # control


def test_frames_are_made_when_they_are_asked_for(model):
    """Lesson: a billion frames, and the first comes at once."""
    frames = generate.loop_frames(model, [0, 1], 10 ** 9)
    assert next(frames).shape == next(frames).shape == (256, 256, 3)


# ---- 6. the program ----


def run(*arguments):
    return generate.main([str(a) for a in (*arguments, "--device", CPU)])


SMALLER = {"samples": ["--seeds", "0-2,7"], "mixing": ["--seeds-a", "0,1", "--seeds-b", "5-7"],
           "truncation": ["--seeds", "0-1", "--psis=-1,0,1"], "noise": ["--draws", "3"],
           "resolutions": [], "interpolate": ["--seeds", "0-1", "--frames", "7"],
           "directions": ["--layers", "0-1", "--directions", "2", "--strengths=-1,0,1"]}


@both
@pytest.mark.parametrize("what", WHATS)
def test_the_same_command_writes_the_same_file(checkpoint, tmp_path, settings, what):
    """Lesson: byte for byte, whole, and over its own earlier file; nothing else is left."""
    out = tmp_path / {"samples": "s", "interpolate": "loop.gif"}.get(what, "figure.png")
    assert run(checkpoint, what, *SMALLER[what], "--out", out) == 0
    file = out / "sheet-0-2,7.png" if what == "samples" else out
    first = file.read_bytes()
    assert run(checkpoint, what, *SMALLER[what], "--out", out) == 0
    assert file.read_bytes() == first and figures.is_ours(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["tiny.pt", out.name])
    with Image.open(file) as image:
        image.load()
        if what == "interpolate":                              # Pillow's own writer joins frames
            assert image.size == (256, 256) and image.n_frames in (  # that are equal
                (7,) if importlib.util.find_spec("imageio_ffmpeg") else (6, 7))
    if what == "samples":
        assert sorted(path.name for path in out.iterdir()) == [
            "seed0000.png", "seed0001.png", "seed0002.png", "seed0007.png", "sheet-0-2,7.png"]
        with Image.open(out / "seed0007.png") as image:
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1),
                                  figures.to_tile(by_hand(7, settings=settings), 16).numpy())


@pytest.mark.parametrize("phase", ["fade", "morph"])
@pytest.mark.parametrize("what", WHATS)
def test_a_network_in_training_makes_every_picture(tmp_path, monkeypatch, what, phase):
    """Lesson: 8 px, 4 style layers, in the middle of a fade; or with a young block of morph.py,
    which has noise inputs and styles as any other."""
    young = save(tmp_path / "young.pt", progress={"resolution": 8, "alpha": 0.5, "phase": phase})
    out = tmp_path / {"samples": "s", "interpolate": "loop.webp"}.get(what, "figure.png")
    rows, draw = [], generate.draw_figure
    monkeypatch.setattr(generate, "draw_figure", lambda title, r: rows.extend(r) or draw(title, r))
    assert run(young, what, *SMALLER[what], "--out", out) == 0 and out.exists()
    model = generate.load_model(young, CPU)
    if what == "resolutions":
        assert rows[0].captions == ["4 px", f"8 px, {model.growing}"]
    assert model.growing == {"fade": "fading in", "morph": "morphing"}[phase] + ", alpha 0.50"
    assert len(generate.noise_inputs(model.G, [4, 8])) == 4
    if what == "samples":
        G = a_generator()
        alpha = morph.ripen(0.5, 8, G) if phase == "morph" else 0.5
        judge = G(generate.z_of_seeds([0], 12), noise_mode="const", resolution=8, alpha=alpha)[0]
        with Image.open(out / "seed0000.png") as image:
            assert in_it(judge, [np.asarray(image).transpose(2, 0, 1)])


@both
@pytest.mark.parametrize("what", ["mixing", "truncation", "noise", "resolutions", "directions"])
def test_figures_are_no_larger_than_was_checked(checkpoint, tmp_path, monkeypatch, what):
    """Lesson: so what is let through can be written, whatever its labels say."""
    bounds = []
    real = generate.check_figure
    monkeypatch.setattr(generate, "check_figure", lambda *a: bounds.append(real(*a)))
    long, wide = tmp_path / f"{'a rather long name ' * 5}.npz", tmp_path / f"{'W' * 99}.npz"
    for path in (long, wide):
        project.save_w(path, torch.randn(1, 10), [1.0], 6)
    for more in ([], ["--w-a" if what == "mixing" else "--w", long, wide]):
        assert run(checkpoint, what, *SMALLER[what], *more, "--out", tmp_path / "f.png") == 0
        with Image.open(tmp_path / "f.png") as image:
            width, height = bounds[-1]
            assert width - 500 < image.width <= width and height - 600 < image.height <= height


def test_sheets_of_other_seeds_lie_beside_each_other(checkpoint, tmp_path):
    assert run(checkpoint, "samples", "--seeds", "0-3", "--out", tmp_path / "s") == 0
    first = (tmp_path / "s/sheet-0-3.png").read_bytes()
    assert run(checkpoint, "samples", "--seeds", "4-7", "--out", tmp_path / "s") == 0
    assert (tmp_path / "s/sheet-0-3.png").read_bytes() == first
    assert (tmp_path / "s/sheet-4-7.png").read_bytes() != first
    # 100 faces are two sheets; names stay short; other faces never share one.
    sheets = generate.sample_files(tmp_path, list(range(100)))[1]
    assert [path.name for path in sheets] == ["sheet-0-63.png", "sheet-64-99.png"]
    far, other = ([*range(k, 20000, 300)][:64] for k in (0, 1))
    names = {faces.spelled(seeds) for seeds in (far, far[:-1] + [5], other, [0, 1], [0, 2])}
    assert len(names) == 5 and max(map(len, names)) < 100


# Arguments, and a word of the answer.
BAD = {
    "no model": (["missing.pt", "samples"], "no such file"),
    "not a model": (["photo.png", "samples"], "not a checkpoint"),
    "no what": (["tiny.pt"], "WHAT"),
    "unknown what": (["tiny.pt", "portraits"], "invalid choice"),
    "seeds": (["tiny.pt", "samples", "--seeds", "1;2"], "list of seeds"),
    "seeds backwards": (["tiny.pt", "samples", "--seeds", "9-3"], "list of seeds"),
    "seeds empty": (["tiny.pt", "samples", "--seeds", ""], "list of seeds"),
    "seed too large": (["tiny.pt", "truncation", "--seeds", "4294967296"], "2^32"),
    "too many seeds": (["tiny.pt", "samples", "--seeds", "0-4294967295"], "more than"),
    "figure too large": (["tiny.pt", "truncation", "--seeds", "0-9999"], "fewer"),
    "wide webp": (["tiny.pt", "resolutions", "--seeds", "0-99", "--out", "r.webp"], "16383"),
    "high jpg": (["tiny.pt", "noise", "--seeds", "0-599", "--out", "r.jpg"], "65500"),
    "psi": (["tiny.pt", "samples", "--psi", "strong"], "not a number"),
    "psi nan": (["tiny.pt", "mixing", "--psi", "nan"], "from -1000 to 1000"),
    "psi huge": (["tiny.pt", "mixing", "--psi", "1e308"], "from -1000 to 1000"),
    "psis": (["tiny.pt", "truncation", "--psis", "1,,0"], "not a number"),
    "cutoff": (["tiny.pt", "samples", "--cutoff", "-1"], "cutoff"),
    "noise": (["tiny.pt", "samples", "--noise", "loud"], "invalid choice"),
    "flicker": (["tiny.pt", "interpolate", "--noise", "random"], "invalid choice"),
    "batch": (["tiny.pt", "samples", "--batch", "0"], "1 or more"),
    "device": (["tiny.pt", "samples", "--device", "abacus"], "abacus"),
    "layers": (["tiny.pt", "mixing", "--coarse", "3-1"], "range of layers"),
    "layers beyond": (["tiny.pt", "mixing", "--fine", "4-17"], "0-5"),
    "layers of directions": (["tiny.pt", "directions", "--layers", "6"], "0-5"),
    "too many directions": (["tiny.pt", "directions", "--directions", "11"], "only 10"),
    "no w": (["tiny.pt", "mixing", "--w", "missing.npz"], "no such file"),
    "w of nothing": (["tiny.pt", "mixing", "--w-b", "photo.png"], "holds no w"),
    "w in z": (["tiny.pt", "interpolate", "--space", "z", "--w", "x.npz"], "--space w"),
    "suffix": (["tiny.pt", "mixing", "--out", "mixing.txt"], ".png"),
    "no suffix": (["tiny.pt", "noise", "--out", "noise"], ".png"),
    "suffix of a video": (["tiny.pt", "interpolate", "--out", "loop.avi"],
                         ".mp4, .webp, .gif, a folder"),
    "a folder's suffix": (["tiny.pt", "samples", "--out", "faces.png"], "name of a folder"),
    "a file as folder": (["tiny.pt", "samples", "--out", "tiny.pt"], "name of a folder"),
    "a folder as file": (["tiny.pt", "mixing", "--out", "folder.png"], "is a folder"),
    "a picture of yours": (["tiny.pt", "mixing", "--out", "photo.png"], "did not write it"),
    "fast gif": (["tiny.pt", "interpolate", "--out", "loop.gif", "--fps", "60"], "50"),
    "one frame": (["tiny.pt", "interpolate", "--out", "loop.gif", "--frames", "1"], "2 or more"),
    "an option of another what": (["tiny.pt", "samples", "--draws", "3"], "unrecognized"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(checkpoint, tmp_path, capsys, monkeypatch, case):
    """Lesson: one sentence on stderr, exit code 2, no picture computed, and nothing written."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("photo.png")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(models.SynthesisNetwork, "forward", lambda *a: pytest.fail("an image"))
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    arguments, word = BAD[case]
    code, line = refused(generate.main, arguments, capsys)
    assert code == 2 and word in line, line
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before


def test_samples_never_replace_a_picture_of_yours(checkpoint, tmp_path, capsys):
    """Lesson: a default name such as samples/seed0001.png may be taken already."""
    folder = tmp_path / "samples"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "seed0001.png")
    (folder / "other.png").write_text("my notes")
    code, line = refused(generate.main, [checkpoint, "samples", "--seeds", "0-1", "--out", folder,
                                         "--device", "cpu"], capsys)
    assert code == 2 and "did not write it" in line
    assert sorted(path.name for path in folder.iterdir()) == ["other.png", "seed0001.png"]
    (folder / "seed0001.png").unlink()                         # control: strangers beside them stay
    for _ in range(2):
        assert run(checkpoint, "samples", "--seeds", "0-1", "--out", folder) == 0
    assert (folder / "other.png").read_text() == "my notes"


@pytest.mark.parametrize("what", ["", *WHATS])
def test_help_explains_every_option(capsys, what):
    """Lesson: each option of a WHAT is listed with a text of its own, and nothing is left as
    argparse would have it ("%(default)s", or an empty line)."""
    with pytest.raises(SystemExit) as end:
        generate.parse_args([*(["model.pt", what] if what else []), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "%(" not in text and "None" not in text
    if what:
        listed = dict(re.findall(r"^  (--[\w-]+)[^\n]*?(?:  |\n {10,})(\S[^\n]*)", text, re.M))
        typed = {"--" + name for name in re.findall(r"--([a-z][\w-]*)", text)} - {"--help"}
        wanted = {"--out", "--device", "--batch", "--cutoff"} | {
            word.split("=")[0] for word in SMALLER[what] if word.startswith("--")}
        assert wanted <= set(listed) and typed <= set(listed) | {"--w-a"}, typed - set(listed)
        assert all(len(words) > 5 for words in listed.values())
    else:
        assert all(kind in text for kind in WHATS)
