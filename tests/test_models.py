"""stylegan_models.py: our networks against numbers of the official ones; checkpoints."""

import os
import pickle
import zipfile

import pytest
import torch
import torch.nn.functional as F

import official
import stylegan_models as models
from conftest import relative

LODS = ["0", "0.3", "1", "1.5", "2", "2.75", "3"]     # 0: 32 px; 0.3: 32 px at alpha 0.7; 1: 16 px
SMALL = dict(resolution=16, channel_base=64, channel_max=16, latent_dim=12, style_dim=10,
             mapping_dim=14, mapping_layers=2)
# Two implementations that add in another order differ by some 2e-6 of the largest value.
PARITY = 2e-5


@pytest.fixture(scope="module")
def nets():
    return official.networks()


@pytest.fixture(scope="module")
def io():
    return official.load("io")


def at(lod):
    """The official lod as (our resolution, our alpha)."""
    whole = int(float(lod))
    return 32 >> whole, 1 - (float(lod) - whole)


# ---- the networks ----


def test_widths_and_layers_are_the_papers():
    assert [models.channels_at(2 ** k, 8192, 512) for k in range(2, 11)] == [
        512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert models.num_style_layers(1024) == 18 and models.num_style_layers(4) == 2
    with torch.device("meta"):
        G, D = models.Generator(1024), models.Discriminator(1024)
    count = lambda network: sum(p.numel() for p in network.parameters())
    # 26.2 M: StyleGAN, caption of figure 1; 23.1 M: ProGAN table 2.
    assert count(G) == pytest.approx(26.2e6, rel=0.005)
    assert count(D) == pytest.approx(23.1e6, rel=0.005)


@pytest.mark.parametrize("resolution", [0, 2, 12, 33, -8])
def test_a_resolution_that_is_no_power_of_two_is_refused(resolution):
    with pytest.raises(ValueError, match="power of two"):
        models.Generator(resolution)


def test_mapping_network_gives_the_official_w(nets, io):
    G, _ = nets
    assert relative(G.mapping(io["z"]), io["w"]) < PARITY
    assert relative(G.mapping(io["z"].flip(0)), io["w"]) > 0.1             # control


@pytest.mark.parametrize("lod", LODS)
def test_images_equal_the_official_ones_at_every_lod(nets, io, lod):
    """Lesson: the same weights give the same picture, whole and mid-fade, border included."""
    G, _ = nets
    resolution, alpha = at(lod)
    with torch.no_grad():
        images = G(io["z"], noise_mode="const", resolution=resolution, alpha=alpha)
        assert relative(images, io[f"img_lod{lod}"]) < PARITY
        silent = G(io["z"], noise_mode="none", resolution=resolution, alpha=alpha)
        assert relative(silent, io[f"img_lod{lod}"]) > 0.01                # control: no noise


@pytest.mark.parametrize("lod", LODS)
def test_scores_equal_the_official_ones_at_every_lod(nets, io, lod):
    _, D = nets
    resolution, alpha = at(lod)
    with torch.no_grad():
        assert relative(D(io[f"img_lod{lod}"], alpha), io[f"score_lod{lod}"]) < PARITY
        key = f"score_real_lod{lod}"
        if key in io:
            reals = F.avg_pool2d(io["x_real"], 32 // resolution)
            assert relative(D(reals, alpha), io[key]) < PARITY
            assert relative(D(reals.flip(3), alpha), io[key]) > 1e-3       # control


@pytest.mark.parametrize("n", [8, 4, 3, 1])
def test_scores_depend_on_the_batch_as_the_official_ones_do(nets, io, n):
    """Lesson: minibatch stddev makes a score depend on the company; groups must match too."""
    _, D = nets
    with torch.no_grad():
        scores = D(io["x_real"][:n])
    assert relative(scores, io[f"score_real_first{n}"]) < PARITY
    if n != 8:                                                             # control
        assert relative(scores, io["score_real_first8"][:n]) > PARITY


@pytest.mark.parametrize("psi, cutoff", [(0.7, 8), (0.5, 3)])
def test_truncation_equals_the_official_one(nets, io, psi, cutoff):
    G, _ = nets
    key = f"img_lod0_psi{psi}cut{cutoff}"
    with torch.no_grad():
        images = G(io["z"][:2], noise_mode="const", truncation_psi=psi, truncation_cutoff=cutoff)
        other = G(io["z"][:2], noise_mode="const", truncation_psi=psi, truncation_cutoff=1)
    assert relative(images, io[key]) < PARITY
    assert relative(other, io[key]) > 0.01                                 # control


def test_alpha_0_is_the_smaller_network_and_bigger_blocks_cost_nothing():
    """Lesson: growing begins where the smaller network ended, and touches only what it needs."""
    G, D = models.make_generator(SMALL).eval(), models.make_discriminator(SMALL)
    z = torch.randn(3, 12)
    small = G(z, noise_mode="none", resolution=8)
    enlarged = F.interpolate(small, scale_factor=2, mode="nearest")
    assert torch.equal(G(z, noise_mode="none", resolution=16, alpha=0.0), enlarged)
    assert not torch.equal(G(z, noise_mode="none", resolution=16, alpha=0.5), enlarged)  # control
    assert torch.allclose(D(enlarged, alpha=0.0), D(small), atol=1e-6)
    D(small).sum().backward()
    touched = {name.split(".")[1] for name, p in D.named_parameters() if p.grad is not None}
    assert touched == {"4", "8"}


def test_style_mixing_takes_each_layers_style_from_its_z():
    """Lesson: row (0 0 1 1) makes the layers of block 4 listen to the first z, of block 8 to the
    second: it equals feeding those ws by hand."""
    G = models.make_generator(SMALL).eval()
    z = torch.randn(2, 2, 12)
    rows = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    mixed = G(z, rows, noise_mode="none", resolution=8)
    w = torch.stack([G.mapping(z[:, 0]), G.mapping(z[:, 1])], dim=1)       # [N, K, S]
    ws = torch.stack([torch.stack([w[n, rows[n, layer]] for layer in range(4)]) for n in range(2)])
    assert relative(mixed, G.synthesis(ws, resolution=8, noise_mode="none")) < 1e-5
    assert relative(mixed, G(z[:, 0], noise_mode="none", resolution=8)) > 0.01             # control


def test_w_avg_follows_in_training_only():
    G = models.make_generator(SMALL)
    z = torch.randn(64, 12)
    G.eval()(z)
    assert torch.equal(G.w_avg, torch.zeros(10))
    G.train()(z, resolution=4)
    assert torch.allclose(G.w_avg, 0.005 * G.mapping(z).mean(dim=0), atol=1e-7)


def test_wrong_shapes_are_refused_at_the_door():
    G, D = models.make_generator(SMALL), models.make_discriminator(SMALL)
    for call, message in [
            (lambda: G(torch.randn(2, 13)), r"z must be \[N, 12\]"),
            (lambda: G(torch.randn(2, 12), resolution=32), "not of 32"),
            (lambda: G(torch.randn(2, 2, 12), torch.zeros(2, 3, dtype=torch.long)), "style_index"),
            (lambda: D(torch.randn(2, 3, 32, 32)), "square images of 4, 8, 16 px"),
            (lambda: D(torch.randn(2, 3, 8, 16)), "square")]:
        with pytest.raises(ValueError, match=message):
            call()


# ---- checkpoints ----


def a_checkpoint():
    return {"settings": SMALL, "generator_ema": models.make_generator(SMALL).state_dict()}


def test_a_checkpoint_gives_the_same_pictures_again(tmp_path):
    G = models.make_generator(SMALL).eval()
    models.save_checkpoint(tmp_path / "g.pt", {"settings": SMALL, "generator_ema": G.state_dict()})
    again = models.load_generator(tmp_path / "g.pt")
    z = torch.randn(2, 12)
    assert torch.equal(again(z, noise_mode="const"), G(z, noise_mode="const"))
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_a_failed_save_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "g.pt"
    models.save_checkpoint(path, a_checkpoint())
    before = path.read_bytes()

    def disk_full(state, file):
        file.write(b"half a checkpo")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        models.save_checkpoint(path, a_checkpoint())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["g.pt"]                                # no litter either


class Intruder:
    """Unpickled the old way, this would create the file named in `path`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_bad_checkpoint_gets_one_clear_sentence(tmp_path):
    """Lesson: whatever the file is, its name, the reason, no traceback, nothing executed."""
    good = a_checkpoint()
    path = tmp_path / "bad.pt"
    traces = tmp_path / "executed"

    def refused(message):
        with pytest.raises(models.CheckpointError) as caught:
            models.load_checkpoint(path)
        text = str(caught.value)
        assert str(path) in text and message in text and "\n" not in text, text

    refused("no such file")
    path.mkdir()
    refused("a folder")
    path.rmdir()
    path.write_bytes(b"hello")
    refused("not a checkpoint")
    path.write_bytes(pickle.dumps(Intruder(traces)))
    refused("not a checkpoint")

    models.save_checkpoint(path, good)
    assert models.load_checkpoint(path)["settings"] == SMALL               # control: a good one
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    refused("cut off")
    torch.save({"format": 1, "evil": Intruder(traces)}, path)
    refused("more than tensors")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused("damaged")
    torch.save([1, 2, 3], path)
    refused("not a checkpoint of this program")
    for change, message in [
            ({"format": 2}, "newer"), ({"architecture": "stylegan2"}, "stylegan2"),
            ({"settings": {**SMALL, "resolution": 12}}, "power of two"),
            ({"settings": {**SMALL, "latent_dim": "many"}}, "settings"),
            ({"settings": {**SMALL, "mapping_dim": 10 ** 15}}, "mapping"),
            ({"settings": {**SMALL, "mapping_layers": 10 ** 9}}, "impossible"),
            ({"settings": {**SMALL, "resolution": 32}}, "lacks synthesis"),
            ({"settings": {**SMALL, "resolution": 8}}, "does not"),
            ({"generator_ema": [1]}, "no state dict")]:
        torch.save({"format": 1, "architecture": "stylegan", **good, **change}, path)
        refused(message)
    del good["generator_ema"]
    models.save_checkpoint(path, good)
    refused("generator_ema")
    assert not traces.exists()


# ---- low precision ----


def test_low_precision_is_near_and_its_sensitive_parts_are_float32():
    """Lesson: convolutions see 8 bits behind the point (bfloat16); styles, sums and scores 24."""
    G, D = models.make_generator(SMALL).eval(), models.make_discriminator(SMALL)
    z, seen = torch.randn(4, 12), {}
    images = G(z, noise_mode="none")
    scores = D(images)
    for network in (G, D):
        for name, module in network.named_modules():
            module.register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: output.dtype}))
    for dtype, error in ((torch.bfloat16, 0.05), (torch.float16, 0.005)):
        G.synthesis.dtype = D.dtype = dtype
        low = G(z, noise_mode="none")
        assert 0 < relative(low, images) < error               # above 0: the control
        assert 0 < relative(D(images), scores) < error
        assert low.dtype == torch.float32
        for name in ("mapping", "synthesis.to_rgb.16", "from_rgb.16", "blocks.4.conv",
                     "synthesis.blocks.16.adain0.style"):
            assert seen[name] == torch.float32, name
        for name in ("synthesis.blocks.16.conv0", "synthesis.blocks.16.adain1", "blocks.16.conv1"):
            assert seen[name] == dtype, name
