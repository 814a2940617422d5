"""project.py: a photograph becomes a w."""

import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import project
from conftest import refused
from test_generate import CPU, SMALL_OF, a_generator, save
from workshop import UserError, features, figures, pictures


both = pytest.mark.parametrize("G", SMALL_OF, indirect=True)


@pytest.fixture
def G(request):
    """The small StyleGAN, or in a test that is marked `both` one of each architecture."""
    return a_generator(SMALL_OF[getattr(request, "param", "stylegan")])


@pytest.fixture
def target(G):
    """A picture that the network made, so that an exact solution exists. (It may lie behind a hill:
    with one w for all layers, the search for seed 15 fails in StyleGAN, that for 11 in StyleGAN2.)
    """
    w = G.mapping(torch.from_numpy(np.random.RandomState(13).standard_normal((1, 12))).float())
    return G.synthesis(w[:, None].expand(-1, 6, -1), noise_mode="const")


def a_photo(path, size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def picture_of(G, w):
    return G.synthesis(w.expand(6, -1)[None], noise_mode="const")


# ---- 1. w ----


def test_the_spread_is_how_far_faces_are_from_the_average(G):
    z = torch.randn(4000, 12)                                  # judge: other faces, many more
    judge = (G.mapping(z) - G.w_avg).norm(dim=1).square().mean().sqrt()
    assert project.spread_of_w(G) == pytest.approx(judge.item(), rel=0.1)
    G.w_avg += 10
    assert project.spread_of_w(G) > 1.5 * judge                # control


def test_a_w_is_read_as_it_was_written(tmp_path):
    w = torch.randn(6, 10)
    project.save_w(tmp_path / "w.npz", w, [2.0, 1.0], 6)
    with np.load(tmp_path / "w.npz") as archive:
        assert archive["w"].shape == (1, 6, 10)                # as NVIDIA's projector writes it
        assert archive["losses"].tolist() == [2.0, 1.0]
    assert torch.equal(project.read_w(tmp_path / "w.npz", 6, 10), w)
    assert torch.equal(project.read_w(tmp_path / "w.npz", 4, 10), w[:4])         # a young network
    with pytest.raises(UserError, match="each of 6 layers, and this network has 8"):
        project.read_w(tmp_path / "w.npz", 8, 10)
    project.save_w(tmp_path / "w.npz", w[:1], [1.0], 6)        # one for all also fits a larger one
    assert torch.equal(project.read_w(tmp_path / "w.npz", 8, 10), w[:1])


@pytest.mark.parametrize("what", ["missing", "text", "other arrays", "other width", "nan", "npy",
                                  "empty", "damaged", "a bomb"])
def test_a_bad_w_gets_one_clear_sentence(tmp_path, what):
    path = tmp_path / "w.npz"
    if what == "text":
        path.write_text("my notes")
    elif what == "other arrays":
        np.savez(path, mine=np.ones(3))
    elif what == "npy":
        with open(path, "wb") as file:
            np.save(file, np.ones(10))
    elif what in ("damaged", "a bomb"):                        # 10 kB that are 10 MB of zeros
        np.savez_compressed(path, w=np.zeros((10 ** 6 if what == "a bomb" else 100, 10)))
        if what == "damaged":
            data = bytearray(path.read_bytes())
            data[60:80] = bytes(20)
            path.write_bytes(data)
    elif what != "missing":
        value = {"other width": np.ones((1, 6, 9)), "empty": np.ones((1, 0, 10)),
                 "nan": np.full((1, 6, 10), np.nan)}[what]
        np.savez(path, w=value)
    with pytest.raises(UserError, match="no such file" if what == "missing" else "holds"):
        project.read_w(path, 6, 10)


# ---- 2. the photograph ----


def test_a_photo_becomes_what_training_would_have_seen(tmp_path):
    path = a_photo(tmp_path / "photo.png", (40, 30))
    target = project.read_target(path, 16)
    with Image.open(path) as image:
        judge = np.asarray(image.resize((16, 16), Image.Resampling.LANCZOS, box=(5, 0, 35, 30)))
    assert target.shape == (1, 3, 16, 16)
    assert torch.allclose(target[0], torch.from_numpy(judge.copy()).permute(2, 0, 1) / 127.5 - 1)


def test_a_photo_is_never_a_program(tmp_path, monkeypatch):
    """Lesson: Pillow goes by content, not by name. An EPS file is PostScript, and would be run."""
    started, photo = [], tmp_path / "photo.jpg"

    def ghostscript(*arguments, **more):
        started.append(arguments)
        raise OSError("a stand-in for Ghostscript")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    photo.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"
                     "showpage\n%%EOF\n")
    with pytest.raises(UserError, match="not a picture"):
        project.read_target(photo, 16)
    assert not started
    with Image.open(photo) as image, pytest.raises(OSError, match="stand-in"):   # control
        image.load()
    assert len(started) == 1


def test_a_very_large_photo_is_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)       # a 40 x 30 one is "very large" now
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert project.read_target(a_photo(tmp_path / "p.png"), 16).shape == (1, 3, 16, 16)
        with pytest.raises(Image.DecompressionBombWarning):                      # control
            pictures.open_picture(pictures.Source("folder", str(tmp_path), ["p.png"], ""), 0)


# ---- 3. the loss ----


def test_the_loss_is_pixels_plus_a_weighted_distance(monkeypatch):
    image, target = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    pixels = np.square(image.numpy().astype(float) - target.numpy()).mean()
    assert project.loss_of(image, target).item() == pytest.approx(pixels, rel=1e-5)
    seen = []

    def distance(first, second):
        seen.append((first.shape[2], second.shape[2]))
        return torch.tensor([0.25], dtype=torch.float64)

    for weight in (1.0, 3.0):
        loss = project.loss_of(image, target, distance, weight)
        assert loss.item() == pytest.approx(pixels + 0.25 * weight, rel=1e-5)
    monkeypatch.setattr(project, "LARGEST_SEEN", 4)            # 8 px are too large now
    project.loss_of(image, target, distance)
    assert seen == [(8, 8), (8, 8), (4, 4)] and loss.dtype == torch.float32


class Edges(torch.nn.Module):
    """A stand-in for a perceptual network, with weights: it sees edges."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.weight).flatten(1)


@pytest.fixture
def edges(tmp_path):
    with warnings.catch_warnings():                            # deprecated, but still in use
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Edges()).save(str(tmp_path / "edges.pt"))
    return tmp_path / "edges.pt"


def test_features_are_part_of_the_loss_and_do_not_learn(G, target, edges, monkeypatch):
    """Lesson: gradients go through the network to the picture, but not into its weights."""
    loaded = []
    real = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: loaded.append(real(*a, **k)) or
                        loaded[-1])
    distance = project.find_distance(str(edges), CPU, 16)
    _, plain = project.project(G, 16, 1.0, target, 1)
    w, both = project.project(G, 16, 1.0, target, 1, distance=distance, weight=3.0)
    start = picture_of(G, G.w_avg[None])
    a, b = (torch.nn.functional.normalize(loaded[0](x)) for x in (start, target))
    assert both[0] - plain[0] == pytest.approx(3 * (a - b).square().sum().item(), rel=1e-3)
    assert all(p.grad is None and not p.requires_grad for p in loaded[0].parameters())
    assert not torch.equal(w, project.project(G, 16, 1.0, target, 1)[0])         # control: it pulls


def test_without_lpips_one_line_says_so(tmp_path, monkeypatch, capsys):
    """Lesson: LPIPS where its weights are on the machine, else pixels; never a silent download."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a: pytest.fail("downloaded"))
    assert project.find_distance(None, CPU, 16) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "weights of LPIPS" in said and "--features" in said
    assert project.find_distance("pixels", CPU, 16) is None and capsys.readouterr().err == ""
    (tmp_path / "checkpoints").mkdir()                         # control: they are there
    for name in features.LPIPS:
        (tmp_path / "checkpoints" / name).touch()
    monkeypatch.setattr(features, "lpips_network", lambda device: None)
    assert project.find_distance(None, CPU, 16) is features.lpips_distance
    assert project.find_distance(None, CPU, 8) is None         # VGG16 halves a picture four times
    assert "16 px" in capsys.readouterr().err
    with pytest.raises(UserError, match="16 px"):
        project.find_distance("lpips", CPU, 8)


# ---- 4. the search ----


@both
@pytest.mark.parametrize("per_layer", [False, True])
def test_projection_finds_an_image_that_the_network_made(G, target, per_layer):
    """Lesson: here an exact solution exists, so the loss must fall far below the start's; and the
    w that comes back gives just that loss."""
    w, losses = project.project(G, 16, 1.0, target, 120, per_layer=per_layer)
    start = picture_of(G, G.w_avg[None])
    assert len(losses) == 121
    assert losses[0] == pytest.approx((start - target).square().mean().item(), rel=1e-4)
    found = (picture_of(G, w) - target).square().mean().item()
    assert found == pytest.approx(min(losses), rel=1e-3)
    assert min(losses) < losses[0] / 10
    assert w.shape == ((6, 10) if per_layer else (1, 10))
    assert not per_layer or not torch.equal(w[0], w[5])
    _, flat = project.project(G, 16, 1.0, target, 20, learning_rate=1e-9)        # control
    assert min(flat) > losses[0] * 0.99
    assert all(p.grad is None for p in G.parameters())         # nobody trained the network


def test_the_learning_rate_falls_along_half_a_cosine(G, target, monkeypatch):
    """Judge: Adam's own record of its rate; its unit is the typical deviation of a number of w."""
    rates = []
    real = torch.optim.Adam.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    project.project(G, 16, 1.0, target, 8, learning_rate=0.2)
    typical = project.spread_of_w(G) / math.sqrt(10)
    judge = [0.2 * typical * math.cos(math.pi * k / 16) ** 2 for k in range(8)]  # (1 + cos 2x) / 2
    assert rates == pytest.approx(judge, rel=1e-6)
    assert rates[-1] < rates[0] / 20                                             # control


def test_the_last_step_counts(G, target):
    """Lesson: the best of one step is what comes out of it, and not what it began with."""
    w, losses = project.project(G, 16, 1.0, target, 1, learning_rate=0.02)
    assert len(losses) == 2 and losses[1] < losses[0] and not torch.equal(w[0], G.w_avg)
    assert (picture_of(G, w) - target).square().mean().item() == pytest.approx(losses[1], rel=1e-4)
    worse, losses = project.project(G, 16, 1.0, target, 1, learning_rate=1000.0)  # control
    assert losses[1] > losses[0] and torch.equal(worse[0], G.w_avg)


def test_the_search_looks_at_the_resolution_and_alpha_of_the_training(G):
    target = torch.rand(1, 3, 8, 8) * 2 - 1
    _, losses = project.project(G, 8, 0.25, target, 1)
    for alpha in (0.25, 1.0):                                  # 1: the control
        start = G.synthesis(G.w_avg.expand(1, 4, -1), 8, alpha, "const")
        judge = (start - target).square().mean().item()
        assert (losses[0] == pytest.approx(judge, rel=1e-4)) == (alpha == 0.25)


def test_a_loss_that_is_no_number_ends_the_search(G, target):
    with pytest.raises(UserError, match="after 0 steps"):
        project.project(G, 16, 1.0, target * math.nan, 3)


# ---- 5. the program ----


def run(*arguments):
    return project.main([str(a) for a in (*arguments, "--device", "cpu")])


@pytest.fixture
def asked(monkeypatch):
    """What reaches the search, without a search."""
    calls = []

    def search(G, resolution, alpha, target, steps, learning_rate, per_layer, distance, weight):
        calls.append((resolution, alpha, steps, learning_rate, per_layer, distance, weight))
        return G.w_avg[None].clone(), [1.0, 0.5]

    monkeypatch.setattr(project, "project", search)
    return calls


@pytest.mark.parametrize("typed, place, value", [
    (["--steps", "7"], 2, 7), (["--learning-rate", "0.03"], 3, 0.03), (["--per-layer"], 4, True),
    (["--features-weight", "2.5"], 6, 2.5)])
def test_every_option_reaches_the_search(tmp_path, asked, typed, place, value):
    model, photo = save(tmp_path / "tiny.pt"), a_photo(tmp_path / "photo.png")
    common = [model, photo, "--out", tmp_path / "p.png", "--features", "pixels"]
    run(*common), run(*common, *typed)
    before, after = asked
    assert after[place] == value != before[place]
    assert before[:place] == after[:place] and before[place + 1:] == after[place + 1:]
    assert before == (16, 1.0, 500, 0.1, False, None, 1.0)


def test_features_reach_the_search(tmp_path, asked, edges):
    run(save(tmp_path / "tiny.pt"), a_photo(tmp_path / "p.png"), "--out", tmp_path / "o.png",
        "--features", edges)
    first, second = torch.rand(2, 1, 3, 16, 16)
    assert asked[0][5](first, second).shape == (1,) and asked[0][5](first, second) > 0.01


@pytest.mark.parametrize("settings", SMALL_OF.values(), ids=SMALL_OF)
def test_what_is_written_is_what_was_found(tmp_path, monkeypatch, capsys, settings):
    """Lesson: the picture shows target and projection at full size; generate.py's default shows the
    same projection again; the same command writes the same files."""
    monkeypatch.chdir(tmp_path)
    model, photo = save(tmp_path / "tiny.pt", settings), a_photo(tmp_path / "photo.jpg")
    assert run(model, photo, "--steps", "3", "--features", "pixels", "--per-layer") == 0
    out, npz = tmp_path / "photo-projected.png", tmp_path / "photo-projected.npz"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["tiny.pt", "photo.jpg", out.name, npz.name])
    before = out.read_bytes(), npz.read_bytes()
    with np.load(npz) as archive:
        w, losses = torch.from_numpy(archive["w"]), archive["losses"]
    assert w.shape == (1, 6, 10) and not torch.equal(w[0, 0], w[0, 5]) and len(losses) == 4
    projection = a_generator(settings).synthesis(w, noise_mode="const")
    with Image.open(out) as image:
        pixels = np.asarray(image).astype(int)
    for x in (project.read_target(photo, 16), projection):
        tile = figures.to_tile(x[0], 96).permute(1, 2, 0).numpy().astype(int)
        assert any(np.abs(pixels[y:y + 96, left:left + 96] - tile).max() <= 1
                   for y in range(pixels.shape[0] - 95) for left in (4, 104))
    assert run(model, photo, "--steps", "3", "--features", "pixels", "--per-layer") == 0
    assert (out.read_bytes(), npz.read_bytes()) == before
    assert f"loss {losses[0]:.3g} -> {losses.min():.3g}" in capsys.readouterr().out


def test_a_network_in_training_is_taken_where_it_stands(tmp_path, asked, monkeypatch):
    rows = []
    draw = figures.draw_figure
    monkeypatch.setattr(figures, "draw_figure", lambda title, r: rows.extend(r) or draw(title, r))
    young = save(tmp_path / "y.pt", progress={"resolution": 8, "alpha": 0.25, "phase": "fade"})
    assert run(young, a_photo(tmp_path / "p.png"), "--out", tmp_path / "o.png",
               "--features", "pixels") == 0
    assert asked[0][:2] == (8, 0.25)
    G = a_generator()
    judge, full = (figures.to_tile(G.synthesis(G.w_avg.expand(1, 4, -1), 8, alpha, "const")[0], 96)
                   for alpha in (0.25, 1.0))
    assert (rows[0].tiles[1].int() - judge.int()).abs().max() <= 1
    assert (rows[0].tiles[1].int() - full.int()).abs().max() > 5                 # control
    with np.load(tmp_path / "o.npz") as archive:
        assert archive["w"].shape == (1, 4, 10)


BAD = {
    "no photo": (["tiny.pt", "missing.jpg"], "no such picture"),
    "bad photo": (["tiny.pt", "tiny.pt"], "not a picture"),
    "no model": (["missing.pt", "photo.png"], "no such file"),
    "no features": (["tiny.pt", "photo.png", "--features", "missing"], "no such file"),
    "bad features": (["tiny.pt", "photo.png", "--features", "photo.png"], "TorchScript"),
    "suffix": (["tiny.pt", "photo.png", "--out", "p.txt"], ".png"),
    "steps": (["tiny.pt", "photo.png", "--steps", "0"], "1 or more"),
    "rate": (["tiny.pt", "photo.png", "--learning-rate", "inf"], "1e-09 or more"),
    "the photo": (["tiny.pt", "photo.png", "--out", "photo.png"], "did not write it"),
    "the photo, ours": (["tiny.pt", "ours.png", "--out", "ours.png"], "photograph itself"),
    "a npz of yours": (["tiny.pt", "photo.png", "--out", "yours.png"], "did not write it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, case):
    """Lesson: one sentence on stderr, exit code 2, and nothing was written."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "tiny.pt"), a_photo(tmp_path / "photo.png")
    figures.save_picture(tmp_path / "ours.png", Image.new("RGB", (20, 20)))
    np.savez(tmp_path / "yours.npz", mine=np.ones(3))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    arguments, word = BAD[case]
    code, line = refused(project.main, [*arguments, "--device", "cpu"], capsys)
    assert code == 2 and word in line, line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_it_searches_without_tf32(tmp_path, monkeypatch):
    flags = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    real = project.loss_of
    monkeypatch.setattr(project, "loss_of", lambda *a: flags.append(
        torch.backends.cudnn.allow_tf32) or real(*a))
    run(save(tmp_path / "tiny.pt"), a_photo(tmp_path / "p.png"), "--out", tmp_path / "o.png",
        "--steps", "1", "--features", "pixels")
    assert flags == [False, False] and torch.backends.cudnn.allow_tf32           # restored
