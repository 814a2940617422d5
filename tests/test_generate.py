"""generate.py: what the figures claim, and the program as a user meets it."""

import math
import pathlib
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import generate
import stylegan_models as models
from conftest import relative

SMALL = dict(resolution=16, channel_base=64, channel_max=16, latent_dim=12, style_dim=10,
             mapping_dim=14, mapping_layers=2)
WHATS = ("samples", "mixing", "truncation", "noise", "resolutions", "interpolate", "directions",
         "project")


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
    models.save_checkpoint(path, {"settings": settings, **more,
                                  "generator_ema": a_generator(settings).state_dict()})
    return path


@pytest.fixture
def model():
    return generate.Model(a_generator(), 16, 1.0, 8)


@pytest.fixture
def checkpoint(tmp_path):
    return save(tmp_path / "tiny.pt")


def images(model, seeds, **how):
    """[n, 3, R, R] of the seeds, and nothing else of generate.py's figures."""
    how = {"noise": "const", "keys": [(seed, 0, 0) for seed in seeds], **how}
    return torch.stack([*generate.render(model, generate.styles_of_seeds(model, seeds), **how)])


def run(*arguments):
    """The program, as `python generate.py ...` runs it. Returns its exit code."""
    try:
        return generate.main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


# ---- 1. from seeds to pictures ----


def test_a_seed_means_the_same_z_everywhere():
    """Lesson: numpy promises this stream for all time, so its numbers can be written down."""
    z = generate.z_of_seeds([0, 2019], 3)
    assert z[0].tolist() == pytest.approx([1.764052, 0.400157, 0.978738], abs=1e-6)
    alone = generate.z_of_seeds([2019], 3)[0]
    assert torch.equal(z[1], alone) and not torch.equal(z[0], alone)


@pytest.mark.parametrize("noise", ["const", "random", "none"])
def test_a_picture_does_not_depend_on_the_other_seeds(model, noise):
    """Lesson: nor on the batch size, but for rounding; the noise of an image is its own."""
    together = images(model, [3, 4, 5, 6, 7], noise=noise)
    small = images(model._replace(batch=2), [3, 4, 5, 6, 7], noise=noise)
    alone = images(model, [5], noise=noise)
    assert relative(small, together) < 1e-5 and relative(alone[0], together[2]) < 1e-5
    assert torch.equal(together, images(model, [3, 4, 5, 6, 7], noise=noise))    # repeatable
    # Control: torch's own noise does depend on them.
    ws = generate.styles_of_seeds(model, [3, 4, 5])
    torch.manual_seed(0)
    batch = model.G.synthesis(ws, noise_mode="random")[2]
    torch.manual_seed(0)
    assert relative(model.G.synthesis(ws[2:], noise_mode="random")[0], batch) > 1e-2


def test_random_noise_has_a_seed_and_leaves_the_stored_maps_alone(model):
    stored = {name: b.clone() for name, b in model.G.named_buffers()}
    first, again, other = (images(model, [1, 1], noise="random", keys=[(1, 0, draw), (1, 0, draw)])
                           for draw in (0, 0, 1))
    assert torch.equal(first, again) and relative(first[0], first[1]) < 1e-5     # rounding
    assert relative(first, other) > 1e-2                                         # control
    assert all(torch.equal(b, stored[name]) for name, b in model.G.named_buffers())
    # Judge: "none" is the network without its noise inputs.
    with generate.noise_only_at(model.G, []):
        silent = images(model, [1], noise="random")
    assert torch.allclose(silent, images(model, [1], noise="none"), atol=1e-6)


def test_silenced_noise_comes_back(model):
    before = {name: p.clone() for name, p in model.G.named_parameters()}
    with pytest.raises(KeyError):
        with generate.noise_only_at(model.G, [8]):
            blocks = model.G.synthesis.blocks
            assert blocks["16"].noise1.strength.abs().max() == 0
            assert blocks["8"].noise1.strength.abs().max() > 0                   # control
            raise KeyError
    assert all(torch.equal(p, before[name]) for name, p in model.G.named_parameters())


def test_a_network_in_training_is_rendered_where_it_stands(tmp_path):
    """Lesson: blocks above the current resolution exist, but nobody has trained them."""
    path = save(tmp_path / "young.pt", progress={"resolution": 8, "alpha": 0.25})
    model = generate.load_model(path, "cpu")
    image = images(model, [0])
    assert image.shape == (1, 3, 8, 8) and model.layers == 4
    judge = a_generator()(generate.z_of_seeds([0], 12), noise_mode="const", resolution=8,
                          alpha=0.25)
    assert relative(image, judge) < 1e-5
    assert relative(image, a_generator()(generate.z_of_seeds([0], 12), noise_mode="const",
                                         resolution=8)) > 1e-2                   # control: alpha 1
    for progress in ({}, {"resolution": 12, "alpha": 1.0}, {"resolution": 8, "alpha": math.nan},
                     {"resolution": None, "alpha": 1.0}, 3):
        save(path, progress=progress)
        with pytest.raises(models.CheckpointError, match="progress"):
            generate.load_model(path, "cpu")


def test_a_network_that_failed_is_not_shown_as_noise(model):
    model.G.synthesis.to_rgb["16"].bias.fill_(math.nan)
    with pytest.raises(generate.UserError, match="not finite"):
        images(model, [0])


# ---- 2. tiles and figures ----


def test_tiles_are_enlarged_by_a_whole_factor_or_averaged():
    assert [generate.tile_side(r) for r in (4, 8, 16, 32, 64, 128, 256, 512, 1024)] == [
        96, 96, 96, 96, 128, 128, 256, 256, 256]
    image = torch.rand(3, 4, 4) * 2 - 1
    tile = np.asarray(generate.to_tile(image, 96))
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(tile, np.kron(pixels, np.ones((24, 24, 1), np.uint8)))
    large = torch.zeros(3, 512, 512)
    large[:, ::2] = 1.0                                        # stripes of 128 and 255
    assert np.asarray(generate.to_tile(large, 256)).reshape(-1).tolist() == pytest.approx(
        [191.5] * 256 * 256 * 3, abs=1)


def test_a_figure_shows_every_tile_whole_and_every_label():
    colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]
    tiles = [Image.new("RGB", (96, 96), colour) for colour in colours]
    captions = [["a caption that is much too long for one line", "b"], None]
    page = generate.draw_figure("title", [[tiles[0], tiles[1]], [None, tiles[2]]],
                                ["first row", "second"], captions)
    pixels = np.asarray(page)
    for colour in colours:
        there = (pixels == colour).all(axis=2)
        assert there.sum() == 96 * 96                          # no letter lies on a tile
        rows, columns = np.nonzero(there)
        assert np.ptp(rows) == 95 and np.ptp(columns) == 95
    # What is neither white nor a tile is text; without labels there is less of it.
    def text(page):
        return (np.asarray(page).max(axis=2) < 100).sum()
    bare = generate.draw_figure("title", [[tiles[0], tiles[1]], [None, tiles[2]]], ["", ""],
                                [None, None])
    assert text(page) > text(bare) > 0
    assert (pixels[:, -1] == 255).all() and (pixels[-1] == 255).all()            # nothing cut off


def test_a_gigantic_figure_is_refused_before_it_is_made():
    generate.check_figure(10, 10, 256)
    with pytest.raises(generate.UserError, match="fewer"):
        generate.check_figure(10_000, 10, 256)


# ---- 3. mixing, truncation, noise, resolutions ----


def test_the_ranges_of_figure_3():
    """Lesson: at 1024 px 4-8, 16-32 and 64-1024 px; below, something sensible, and no gaps."""
    ranges = generate.mixing_ranges(18)
    assert {name: generate.pixels_text(*ends) for name, ends in ranges.items()} == {
        "coarse": "4-8 px", "middle": "16-32 px", "fine": "64-1024 px"}
    assert generate.mixing_ranges(8) == {"coarse": (0, 3), "middle": (4, 5), "fine": (6, 7)}
    assert generate.mixing_ranges(4) == {"coarse": (0, 1), "fine": (2, 3)}
    assert generate.mixing_ranges(2) == {"coarse": (0, 1)}
    for layers in range(2, 20, 2):
        covered = [layer for first, last in generate.mixing_ranges(layers).values()
                   for layer in range(first, last + 1)]
        assert covered == list(range(layers))


def test_a_mixed_face_is_made_of_both_styles(model):
    """Lesson: the cell is the picture of ws composed by hand, layer by layer."""
    a, b = (generate.styles_of_seeds(model, [seed]) for seed in (0, 1))
    by_hand = torch.stack([(b if layer in (2, 3) else a)[0, layer] for layer in range(6)])[None]
    mixed = generate.mix(a, b, 2, 3)
    assert torch.equal(mixed, by_hand)
    assert torch.equal(a, generate.styles_of_seeds(model, [0]))                  # A itself is whole
    cell = next(generate.render(model, mixed))
    for other in (a, b):
        assert relative(cell, next(generate.render(model, other))) > 1e-2        # control
    # ... and that picture stands in the figure, in the second block (middle), once.
    figure = np.asarray(generate.mixing_figure(model, [0], [1], generate.mixing_ranges(6)))
    tile = np.asarray(generate.to_tile(next(generate.render(model, by_hand)), 96))
    assert places(figure, tile) == 1
    assert places(figure, tile[::-1]) == 0                                       # control


def places(figure, tile):
    """How often the tile occurs in the figure, every pixel within 1 of 255 (batches round)."""
    h, w, _ = tile.shape
    figure, tile = figure.astype(int), tile.astype(int)
    corners = np.abs(figure[:-h + 1, :-w + 1] - tile[0, 0]).max(axis=2) <= 1
    return sum(np.abs(figure[y:y + h, x:x + w] - tile).max() <= 1
               for y, x in np.argwhere(corners))


def test_at_psi_0_every_row_is_the_average_face(model):
    average = next(generate.render(model, model.G.w_avg.expand(1, 6, -1)))
    figure = np.asarray(generate.truncation_figure(model, [0, 1, 2], [1, 0, -1]))
    assert places(figure, np.asarray(generate.to_tile(average, 96))) == 3
    # Control: with a cutoff the layers above it are not truncated, and the rows differ.
    figure = np.asarray(generate.truncation_figure(model, [0, 1, 2], [1, 0, -1], cutoff=2))
    assert places(figure, np.asarray(generate.to_tile(average, 96))) == 0


def test_spread_is_the_standard_deviation():
    stream = 5 + 0.01 * torch.randn(50, 3, 4, 4)               # small, far from 0: a hard case
    judge = np.sqrt(stream.double().numpy().var(axis=0).mean(axis=0))
    assert np.allclose(generate.spread(iter(stream)).numpy(), judge, rtol=1e-5)
    assert generate.spread(iter(stream[:1].expand(9, -1, -1, -1))).max() == 0    # control


def test_the_groups_of_figure_5():
    coarse, fine = generate.noise_groups(1024)
    assert (coarse, fine) == ([4, 8, 16, 32], [64, 128, 256, 512, 1024])
    assert generate.noise_groups(32) == ([4, 8], [16, 32])
    assert generate.noise_groups(4) == ([], [4])


def test_the_noise_figure_shows_its_four_cases(model):
    """Judge: strengths set to 0 by hand in a second network."""
    figure = np.asarray(generate.noise_figure(model, [2], 5))
    for silent, times in ((), 2), (("4", "8", "16"), 1), (("4",), 1), (("8", "16"), 1):
        other = generate.Model(a_generator(), 16, 1.0, 8)
        for r in silent:
            other.G.synthesis.blocks[r].noise0.strength.zero_()
            other.G.synthesis.blocks[r].noise1.strength.zero_()
        tile = generate.to_tile(images(other, [2], noise="random")[0], 96)
        assert places(figure, np.asarray(tile)) == times       # "all" is also draw 1
    other.G.synthesis.blocks["4"].noise0.strength.zero_()
    tile = generate.to_tile(images(other, [2], noise="random")[0], 96)
    assert places(figure, np.asarray(tile)) == 0                                 # control


def test_the_resolutions_are_the_smaller_networks_pictures(model):
    figure = np.asarray(generate.resolutions_figure(model, [3]))
    z = generate.z_of_seeds([3], 12)
    for r in (4, 8, 16):
        image = model.G(z, noise_mode="const", resolution=r)[0]
        times = 2 if r == 16 else 1                            # the last column has its contrast
        assert places(figure, np.asarray(generate.to_tile(image, 96))) == times
    blended = model.G(z, noise_mode="const", alpha=0.5)[0]
    assert places(figure, np.asarray(generate.to_tile(blended, 96))) == 0        # control


def test_matched_contrast_has_the_references_mean_and_std():
    image, reference = torch.randn(3, 4, 4) * 9 + 5, torch.rand(3, 16, 16)
    small = reference.numpy().reshape(3, 4, 4, 4, 4).mean(axis=(2, 4))
    matched = generate.match_contrast(image, reference).numpy()
    assert np.allclose(matched.mean(axis=(1, 2)), small.mean(axis=(1, 2)), atol=1e-5)
    assert np.allclose(matched.std(axis=(1, 2)), small.std(axis=(1, 2)), rtol=1e-4)
    assert np.corrcoef(matched[0].ravel(), image[0].ravel())[0, 1] > 0.9999      # same drawing
    assert not np.allclose(image.numpy().std(axis=(1, 2)), small.std(axis=(1, 2)), rtol=0.5)


# ---- 4. directions, interpolation, projection ----


def test_sefa_directions_are_eigenvectors(model):
    """Lesson: A maps a move of w to a move of the styles; no move of length 1 does more than the
    first direction. Judge: numpy in float64, and the network's own AdaIN."""
    A = generate.style_matrix(model, 1, 4)
    state, rows = model.G.state_dict(), []
    for layer in (1, 2, 3, 4):                                 # adain1 of 4 px to adain0 of 16 px
        name = f"synthesis.blocks.{4 << layer // 2}.adain{layer % 2}.style.weight"
        rows.append(state[name].double().numpy() / math.sqrt(10))
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
    style = model.G.synthesis.blocks["4"].adain1.style         # A n is what AdaIN's style moves by
    w, n = torch.randn(1, 10), torch.from_numpy(directions[:1]).float()
    assert torch.allclose(style(w + n) - style(w), (A[:32] @ n[0].double()).float(), atol=1e-5)


def test_directions_move_only_their_layers(model):
    figure = np.asarray(generate.directions_figure(model, [1], 2, 3, 1, [-1.0, 0.0, 2.0]))
    ws = generate.styles_of_seeds(model, [1]).repeat(3, 1, 1)
    n = generate.sefa(generate.style_matrix(model, 2, 3))[0][0].float()
    z = torch.from_numpy(np.stack([np.random.RandomState(s).randn(12) for s in range(256)])).float()
    typical = (model.G.mapping(z) - model.G.w_avg).norm(dim=1).square().mean().sqrt()
    for column, strength in enumerate((-1.0, 0.0, 2.0)):
        ws[column, 2:4] += strength * typical * n
        tile = generate.to_tile(next(generate.render(model, ws[column:column + 1])), 96)
        assert places(figure, np.asarray(tile)) == 1, strength
    ws[0, 0] += typical * n                                    # control: another layer
    tile = generate.to_tile(next(generate.render(model, ws[:1])), 96)
    assert places(figure, np.asarray(tile)) == 0


def test_slerp_keeps_the_length_and_arrives():
    """Lesson: the straight line is shorter than the sphere's radius in its middle, slerp is not."""
    a, b = torch.randn(2, 1, 50, dtype=torch.float64)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    path = generate.slerp(a, b, t)
    assert torch.allclose(path.norm(dim=1), torch.full((11,), math.sqrt(50), dtype=torch.float64))
    assert torch.allclose(path[0], a[0] * math.sqrt(50) / a.norm())
    assert torch.allclose(path[-1], b[0] * math.sqrt(50) / b.norm())
    steps = (path[1:] - path[:-1]).norm(dim=1)                 # equal angles: equal chords
    assert torch.allclose(steps, steps[:1].expand(10))
    assert torch.lerp(path[:1], path[-1:], 0.5).norm() < 0.9 * math.sqrt(50)     # control
    assert torch.isfinite(generate.slerp(a, a, t)).all()       # the same face twice: no 0 / 0
    assert torch.allclose(generate.slerp(a, a, t)[5], path[0])
    assert torch.isfinite(generate.slerp(a, -a, t)).all()


def test_the_loop_closes_and_has_no_jerk():
    """Lesson: position and velocity are the same on both sides of every point, and of the end."""
    points = torch.randn(5, 2, 7, dtype=torch.float64)
    h = 1e-5
    for k in range(6):
        t = torch.tensor([k - 2 * h, k - h, k, k + h, k + 2 * h], dtype=torch.float64)
        x = generate.closed_spline(points, t)
        assert torch.allclose(x[2], points[k % 5])             # it passes through the faces
        before, after = (x[2] - x[1]) / h, (x[3] - x[2]) / h
        assert torch.allclose(before, after, atol=1e-2)
        assert torch.allclose(after, (points[(k + 1) % 5] - points[k - 1]) / 2, atol=1e-2)
        # Control: straight lines turn a corner there.
        corner = (points[(k + 1) % 5] - points[k % 5]) - (points[k % 5] - points[k - 1])
        assert corner.abs().max() > 0.1
    z = generate.closed_slerp(points[:, 0], torch.tensor([0.0, 5.0, 4.999999]))
    assert torch.allclose(z[0], z[1]) and torch.allclose(z[0], z[2], atol=1e-4)


@pytest.mark.parametrize("space", ["w", "z"])
def test_frames_pass_through_the_seeds_and_close(model, space):
    """Lesson: frame K k / n; seed 5 is a quarter of the loop away from seed 4, and 7 from 4."""
    frames = [*generate.loop_frames(model, [4, 5, 6, 7], 40, space)]
    assert len(frames) == 40 and frames[0].shape == (256, 256, 3)
    steps = [np.abs(frames[k].astype(float) - frames[k - 1]).mean() for k in range(40)]
    assert max(steps) < 4 * np.mean(steps)                     # steps[0]: from the last frame
    far = np.abs(frames[20].astype(float) - frames[0]).mean()
    assert max(steps) < far                                                      # control
    for place, seed in enumerate((4, 5, 6, 7)):
        judge = ((images(model, [seed])[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
        shown = frames[10 * place][::16, ::16].astype(float)
        assert np.abs(shown - judge).max() <= 1


def test_frames_are_made_when_they_are_asked_for(model):
    """Lesson: that is why memory does not grow: a billion frames, and the first comes at once."""
    frames = generate.loop_frames(model, [0, 1], 10 ** 9)
    assert next(frames).shape == next(frames).shape == (256, 256, 3)


def test_a_gif_lasts_as_long_as_it_should():
    """Lesson: a GIF counts in 1/100 s. At 30 frames a second 3, 3 and 4 of them, not 3 always."""
    durations = generate.centiseconds(300, 30)
    assert sum(durations) == 1000 and set(durations) == {3, 4}


@pytest.mark.parametrize("per_layer", [False, True])
def test_projection_finds_an_image_that_the_network_made(model, per_layer):
    """Lesson: here an exact solution exists, so the loss must fall far below the start's; and the
    ws that come back give just that loss."""
    target = images(model, [11])
    ws, losses = generate.project(model, target, 150, per_layer=per_layer)
    start = next(generate.render(model, model.G.w_avg.expand(1, 6, -1)))
    assert losses[0] == pytest.approx((start - target[0]).square().mean().item(), rel=1e-4)
    result = next(generate.render(model, ws[None]))
    assert (result - target[0]).square().mean().item() == pytest.approx(min(losses), rel=1e-3)
    assert min(losses) < losses[0] / 20
    assert torch.equal(ws[0], ws[5]) != per_layer
    again, _ = generate.project(model, target, 150, per_layer=per_layer)
    assert torch.equal(ws, again)                              # repeatable
    stuck, flat = generate.project(model, target, 150, learning_rate=1e-9)       # control
    assert min(flat) > losses[0] * 0.99
    assert all(p.grad is None for p in model.G.parameters())   # nobody trained the network


class Halved(torch.nn.Module):
    """A stand-in for a perceptual network: it sees the image at half the size, and its edges."""

    def forward(self, x):
        return [torch.nn.functional.avg_pool2d(x, 2), x[:, :, 1:] - x[:, :, :-1]]


class Fixed(torch.nn.Module):
    """A network that only takes 5 colours."""

    def forward(self, x):
        return torch.nn.functional.conv2d(x, torch.ones(1, 5, 1, 1))


def scripted(path, network):
    with warnings.catch_warnings():                            # deprecated, but still in use
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(network).save(str(path))
    return path


def test_features_are_part_of_the_loss(model, tmp_path):
    features = generate.load_features(scripted(tmp_path / "f.pt", Halved()), "cpu")
    target = images(model, [11])
    _, plain = generate.project(model, target, 1)
    _, both = generate.project(model, target, 1, features=features, features_weight=3.0)
    start = next(generate.render(model, model.G.w_avg.expand(1, 6, -1)))[None]
    wanted = 3 * sum((a - b).square().mean() for a, b in zip(Halved()(start), Halved()(target)))
    assert both[0] - plain[0] == pytest.approx(wanted.item(), rel=1e-3)
    assert wanted > 1e-3                                                         # control


# ---- 5. the program ----


def a_photo(path, size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def commands(tmp_path):
    """{what: its arguments}, small."""
    return {"samples": ["--seeds", "0-2,7", "--noise", "random"],
            "mixing": ["--seeds-a", "0,1", "--seeds-b", "5-7", "--fine", "5"],
            "truncation": ["--seeds", "0-1", "--psis=-1,0,1"],
            "noise": ["--seeds", "3", "--draws", "3"],
            "resolutions": ["--seeds", "0-1", "--psi", "0.7", "--cutoff", "2"],
            "interpolate": ["--seeds", "0-1", "--frames", "7"],
            "directions": ["--layers", "0-1", "--directions", "2", "--strengths=-1,0,1"],
            "project": [a_photo(tmp_path / "photo.png"), "--steps", "3"]}


@pytest.mark.parametrize("young", [False, True])
@pytest.mark.parametrize("what", WHATS)
def test_every_what_makes_its_picture(tmp_path, what, young):
    """Lesson: from a file with nothing but generator_ema, and from the middle of a fade; the same
    command gives the same file, byte for byte."""
    more = {"progress": {"resolution": 8, "alpha": 0.5}} if young else {}
    model = save(tmp_path / "model.pt", **more)
    arguments = commands(tmp_path)[what]
    if young and what == "mixing":
        arguments[-1] = "3"                                    # 8 px: layers 0-3
    suffix = {"samples": "", "interpolate": ".gif"}.get(what, ".png")
    outs = [tmp_path / f"{name}/{what}{suffix}" for name in ("first", "second")]
    for out in outs:
        assert run(model, what, *arguments, "--out", out, "--device", "cpu") == 0
    if what == "samples":
        names = sorted(path.name for path in outs[0].iterdir())
        assert names == ["seed0000.png", "seed0001.png", "seed0002.png", "seed0007.png",
                         "sheet1.png"]
        with Image.open(outs[0] / "seed0007.png") as image:
            assert image.size == ((8, 8) if young else (16, 16))
        outs = [out / "sheet1.png" for out in outs]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert not [path for path in tmp_path.rglob("*.tmp*")]
    with Image.open(outs[0]) as image:
        image.load()
        blocks = 2 if young else 3                             # of the network, and of mixing
        columns, rows = {"samples": (4, 1), "mixing": (4, 1 + 2 * blocks), "truncation": (3, 2),
                         "noise": (8, 1), "resolutions": (blocks, 4),
                         "directions": (3, 2)}.get(what, (0, 0))
        if what == "interpolate":
            assert image.size == (256, 256) and image.n_frames == 7
        elif what == "project":
            assert image.width > 3 * 256 + 384 and image.height > 256
        else:                                                  # tiles, and up to 200 px of labels
            assert 100 * columns <= image.width <= max(360, 100 * columns + 200)
            assert 100 * rows < image.height < 100 * rows + 200
    if what == "project":
        with np.load(outs[0].with_suffix(".npz")) as arrays:
            assert arrays["ws"].shape == (2 * blocks, 10) and arrays["losses"].shape == (3,)


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
def test_a_video_has_all_its_frames(checkpoint, tmp_path, suffix):
    if suffix == ".mp4":
        encoder = pytest.importorskip("imageio_ffmpeg", reason="needs requirements-extra.txt")
    out = tmp_path / f"loop{suffix}"
    assert run(checkpoint, "interpolate", "--frames", 30, "--out", out, "--fps", 20,
               "--device", "cpu", "--noise", "none") == 0
    model = generate.load_model(checkpoint, "cpu")
    frames = [*generate.loop_frames(model, list(range(8)), 30, noise="none")]
    if suffix == ".mp4":
        reader = encoder.read_frames(str(out))
        about = next(reader)
        assert about["size"] == (256, 256) and about["fps"] == 20
        shown = [np.frombuffer(frame, np.uint8).reshape(256, 256, 3) for frame in reader]
    else:
        with Image.open(out) as image:
            assert image.n_frames == 30 and image.info["loop"] == 0
            shown, durations = [], []
            for k in range(30):
                image.seek(k)
                shown.append(np.asarray(image.convert("RGB")))
                durations.append(image.info["duration"])
            assert durations == [50] * 30
    assert len(shown) == 30
    for k in (0, 13, 29):                                      # every format loses something
        assert np.abs(shown[k].astype(float) - frames[k]).mean() < 6
        assert np.abs(shown[k].astype(float) - frames[(k + 15) % 30]).mean() > 12      # control


def test_a_mp4_without_its_encoder_gets_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)       # import fails
    out = tmp_path / "loop.mp4"
    assert run(checkpoint, "interpolate", "--out", out, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert "pip install imageio-ffmpeg" in error and error.count("\n") == 1 and not out.exists()
    assert run(checkpoint, "interpolate", "--out", tmp_path / "loop.gif", "--frames", 2,
               "--device", "cpu") == 0                         # control: a GIF does not need it


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
    "psi": (["tiny.pt", "samples", "--psi", "strong"], "not a number"),
    "psi nan": (["tiny.pt", "mixing", "--psi", "nan"], "finite"),
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
    "no photo": (["tiny.pt", "project", "missing.jpg"], "no such picture"),
    "bad photo": (["tiny.pt", "project", "tiny.pt"], "not a picture"),
    "no features": (["tiny.pt", "project", "photo.png", "--features", "missing"], "no such file"),
    "bad features": (["tiny.pt", "project", "photo.png", "--features", "photo.png"], "TorchScript"),
    "failing features": (["tiny.pt", "project", "photo.png", "--features", "fixed.pt"], "fails on"),
    "suffix": (["tiny.pt", "mixing", "--out", "mixing.txt"], ".png"),
    "no suffix": (["tiny.pt", "noise", "--out", "noise"], ".png"),
    "suffix of a video": (["tiny.pt", "interpolate", "--out", "loop.avi"], ".mp4"),
    "fast gif": (["tiny.pt", "interpolate", "--out", "loop.gif", "--fps", "60"], "50"),
    "one frame": (["tiny.pt", "interpolate", "--out", "loop.gif", "--frames", "1"], "2 or more"),
    "an option of another what": (["tiny.pt", "samples", "--draws", "3"], "unrecognized"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(checkpoint, tmp_path, capsys, monkeypatch, case):
    """Lesson: one sentence on stderr, exit code 2, and nothing was made."""
    monkeypatch.chdir(tmp_path)
    a_photo(tmp_path / "photo.png")
    if case == "failing features":
        scripted(tmp_path / "fixed.pt", Fixed())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    arguments, word = BAD[case]
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert word in captured.err and captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("generate.py") and captured.out == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_foreign_is_overwritten(checkpoint, tmp_path, capsys):
    """Lesson: an earlier picture may go, a file that only has a picture's name may not."""
    for what, name, more in (("resolutions", "notes.png", []), ("interpolate", "notes.gif", []),
                             ("project", "notes.png", [a_photo(tmp_path / "photo.png")])):
        path = tmp_path / name
        path.write_text("my notes")
        assert run(checkpoint, what, *more, "--out", path, "--device", "cpu") == 2
        assert path.read_text() == "my notes" and "not written over" in capsys.readouterr().err
    path = tmp_path / "notes.png"
    path.unlink()
    np.savez(tmp_path / "notes.npz", mine=np.ones(3))
    assert run(checkpoint, "project", tmp_path / "photo.png", "--out", path) == 2
    assert not path.exists()
    assert run(checkpoint, "project", tmp_path / "photo.png", "--out", tmp_path / "photo.png") == 2
    assert "photograph itself" in capsys.readouterr().err
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "seed0001.png").write_text("my notes")
    (folder / "other.png").write_text("my notes")
    assert run(checkpoint, "samples", "--seeds", "0-1", "--out", folder) == 2
    assert sorted(p.name for p in folder.iterdir()) == ["other.png", "seed0001.png"]
    assert run(checkpoint, "samples", "--out", checkpoint) == 2
    assert run(checkpoint, "mixing", "--out", folder) == 2
    # Control: its own pictures are replaced, and strangers beside them stay.
    (folder / "seed0001.png").unlink()
    for _ in range(2):
        assert run(checkpoint, "samples", "--seeds", "0-1", "--out", folder, "--device", "cpu") == 0
    assert (folder / "other.png").read_text() == "my notes"


def test_a_failure_in_the_middle_leaves_the_old_file(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "loop.gif"
    assert run(checkpoint, "interpolate", "--frames", 3, "--out", out, "--device", "cpu") == 0
    before = out.read_bytes()

    def full(path, frames, count, fps):
        pathlib.Path(path).write_bytes(b"GIF8 half")
        raise OSError("no space left on device")

    monkeypatch.setattr(generate, "write_gif", full)
    assert run(checkpoint, "interpolate", "--frames", 3, "--out", out, "--device", "cpu") == 2
    assert out.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        "loop.gif", "tiny.pt"]


@pytest.mark.parametrize("what", ["", *WHATS])
def test_help_teaches(capsys, what):
    assert run(*(["model.pt", what] if what else []), "--help") == 0
    assert "--" in capsys.readouterr().out
