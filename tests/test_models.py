"""stylegan_models.py, from top to bottom: our networks against numbers of the official ones."""

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


# ---- sizes ----


def test_widths_and_layers_are_the_papers():
    """Lesson: the paper's numbers of channels, layers and parameters; half the channels at double
    the resolution keep the work of a convolution and double the memory of a feature map."""
    widths = [models.channels_at(2 ** k, 8192, 512) for k in range(2, 11)]
    assert widths == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    for r, channels, before in [(64, 256, 512), (1024, 16, 32)]:
        assert r * r * channels == 2 * (r // 2) ** 2 * before
        assert r * r * channels ** 2 == (r // 2) ** 2 * before ** 2
    assert [models.num_style_layers(r) for r in (4, 8, 16, 1024)] == [2, 4, 6, 18]
    with torch.device("meta"):
        G, D = models.Generator(1024), models.Discriminator(1024)
    count = lambda network: sum(p.numel() for p in network.parameters())
    # 26.2 M: StyleGAN, caption of figure 1; 23.1 M: ProGAN table 2.
    assert count(G) == pytest.approx(26.2e6, rel=0.005)
    assert count(D) == pytest.approx(23.1e6, rel=0.005)
    with torch.device("meta"):                                 # control: half the widths
        assert count(models.Discriminator(1024, 4096, 256)) < 0.3 * 23.1e6


@pytest.mark.parametrize("resolution", [0, 2, 12, 33, -8])
def test_a_resolution_that_is_no_power_of_two_is_refused(resolution):
    """Lesson: blocks double from 4 px on, so 12 px has no block."""
    with pytest.raises(ValueError, match="power of two"):
        models.Generator(resolution)
    assert models.resolutions_up_to(16) == [4, 8, 16]          # control: powers of two are not


def test_a_network_without_channels_is_refused():
    """Lesson: what is refused says which number would do."""
    assert models.channels_at(64, 32, 512) == 1                # control: one is enough
    with pytest.raises(ValueError, match="at least 32"):
        models.channels_at(64, 31, 512)


def test_a_block_has_one_name_in_networks_of_all_sizes():
    """Lesson: blocks are named by resolution, so the smaller network's names are all in the larger
    one, with the same shapes. (Counted from the top, as lod is, each would mean another block.)"""
    with torch.device("meta"):
        for network in (models.Generator, models.Discriminator):
            small, large = (network(r).state_dict() for r in (64, 1024))
            assert set(small) < set(large)
            assert all(small[name].shape == large[name].shape for name in small)
    assert "blocks.128.conv0.weight" in large and "blocks.128.conv0.weight" not in small  # control


# ---- 1. the generator ----


def test_mapping_network_gives_the_official_w(nets, io):
    """Lesson: PixelNorm, eight layers with 1/100 of their weights: the same w from the same z."""
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


def test_alpha_0_is_the_smaller_network_and_bigger_blocks_cost_nothing():
    """Lesson: growing begins where the smaller network ended, and touches only what it needs."""
    G, D = models.make_generator(SMALL).eval(), models.make_discriminator(SMALL)
    z = torch.randn(3, 12)
    small = G(z, noise_mode="none", resolution=8)
    enlarged = F.interpolate(small, scale_factor=2, mode="nearest")
    assert torch.equal(G(z, noise_mode="none", resolution=16, alpha=0.0), enlarged)
    new, half = (G(z, noise_mode="none", resolution=16, alpha=a) for a in (1.0, 0.5))
    assert not torch.equal(half, enlarged)                                 # control
    assert torch.allclose(half, 0.5 * new + 0.5 * enlarged, atol=1e-6)
    assert torch.allclose(D(enlarged, alpha=0.0), D(small), atol=1e-6)
    assert not torch.allclose(D(enlarged, alpha=1.0), D(small), atol=1e-3)               # control
    (D(small.detach()).sum() + small.square().sum()).backward()
    touched = lambda network, place: {name.split(".")[place] for name, p in
                                      network.named_parameters() if p.grad is not None}
    assert touched(D, 1) == {"4", "8"}
    assert touched(G.synthesis, 1) == {"4", "8"}


def test_style_mixing_takes_each_layers_style_from_its_z():
    """Lesson: row (0 0 1 1) makes the layers of block 4 listen to the first z, of block 8 to the
    second: it equals feeding those ws by hand."""
    G = models.make_generator(SMALL).eval()
    z = torch.randn(2, 2, 12)
    rows = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    seen = []                                                  # the w of each AdaIN, in order
    for module in G.modules():
        if isinstance(module, models.AdaIN):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    mixed = G(z, rows, noise_mode="none", resolution=8)
    w = torch.stack([G.mapping(z[:, 0]), G.mapping(z[:, 1])], dim=1)       # [N, K, S]
    ws = torch.stack([torch.stack([w[n, rows[n, layer]] for layer in range(4)]) for n in range(2)])
    assert len(seen) == 4
    for layer in range(4):
        assert torch.allclose(seen[layer], ws[:, layer], atol=1e-6)
    assert relative(mixed, G.synthesis(ws, resolution=8, noise_mode="none")) < 1e-5
    assert relative(mixed, G(z[:, 0], noise_mode="none", resolution=8)) > 0.01             # control
    gathered = w.gather(1, rows[:, :, None].expand(-1, -1, 10))            # "would say the same"
    assert torch.equal(G.pick_styles(w, rows, 4), gathered)


def test_w_avg_follows_in_training_only():
    """Lesson: w_avg <- 0.995 w_avg + 0.005 mean(w), and looking at pictures changes nothing."""
    G = models.make_generator(SMALL)
    z, w_avg = torch.randn(64, 12), torch.zeros(10)
    G.eval()(z)
    assert torch.equal(G.w_avg, w_avg)                                     # control
    G.w_avg.fill_(1.0)
    w_avg += 1.0
    for _ in range(3):
        G.train()(z, resolution=4)
        w_avg = 0.995 * w_avg + 0.005 * G.mapping(z).mean(dim=0)
    assert torch.allclose(G.w_avg, w_avg, atol=1e-6)
    assert not torch.allclose(G.w_avg, torch.ones(10), atol=1e-3)          # control: it has moved
    assert "w_avg" in G.state_dict() and not G.w_avg.requires_grad


@pytest.mark.parametrize("psi, cutoff", [(0.7, 8), (0.5, 3)])
def test_truncation_equals_the_official_one(nets, io, psi, cutoff):
    """Lesson: psi acts on w, in the layers before the cutoff."""
    G, _ = nets
    key = f"img_lod0_psi{psi}cut{cutoff}"
    with torch.no_grad():
        images = G(io["z"][:2], noise_mode="const", truncation_psi=psi, truncation_cutoff=cutoff)
        other = G(io["z"][:2], noise_mode="const", truncation_psi=psi, truncation_cutoff=1)
    assert relative(images, io[key]) < PARITY
    assert relative(other, io[key]) > 0.01                                 # control


def test_psi_0_is_one_face_and_negative_psi_lies_beyond_it():
    """Lesson: truncation is a straight line through w_avg; the layers from cutoff on stay put."""
    G = models.make_generator(SMALL).eval()
    G.w_avg.normal_()
    ws = torch.randn(3, 6, 10)
    average = G.truncate(ws, psi=0.0)
    assert torch.equal(average, G.w_avg.expand(3, 6, 10))                  # the average for every z
    assert torch.allclose(G.truncate(ws, psi=-0.5) - G.w_avg, -0.5 * (ws - G.w_avg), atol=1e-6)
    some = G.truncate(ws, psi=0.5, cutoff=2)
    assert torch.allclose(some[:, 2:], ws[:, 2:], atol=1e-6)
    assert torch.allclose(some[:, :2], (ws[:, :2] + G.w_avg) / 2, atol=1e-6)
    assert G.truncate(ws, psi=1.0) is ws
    assert relative(some, ws) > 0.1                                        # control


# ---- 2. the discriminator ----


@pytest.mark.parametrize("lod", LODS)
def test_scores_equal_the_official_ones_at_every_lod(nets, io, lod):
    """Lesson: the same weights give the same score, whole and mid-fade, at every size."""
    _, D = nets
    resolution, alpha = at(lod)
    with torch.no_grad():
        scores = D(io[f"img_lod{lod}"], alpha)
        assert relative(scores, io[f"score_lod{lod}"]) < PARITY
        mirrored = D(io[f"img_lod{lod}"].flip(3), alpha)
        assert relative(mirrored, io[f"score_lod{lod}"]) > 1e-3            # control
        key = f"score_real_lod{lod}"
        if key in io:
            reals = F.avg_pool2d(io["x_real"], 32 // resolution)
            assert relative(D(reals, alpha), io[key]) < PARITY


@pytest.mark.parametrize("n", [8, 4, 3, 1])
def test_scores_depend_on_the_batch_as_the_official_ones_do(nets, io, n):
    """Lesson: minibatch stddev makes a score depend on the company; groups must match too."""
    _, D = nets
    with torch.no_grad():
        scores = D(io["x_real"][:n])
    assert relative(scores, io[f"score_real_first{n}"]) < PARITY
    if n != 8:                                                             # control
        assert relative(scores, io["score_real_first8"][:n]) > PARITY


def test_wrong_shapes_are_refused_at_the_door():
    """Lesson: the message says what was wanted and what came."""
    G, D = models.make_generator(SMALL), models.make_discriminator(SMALL)
    assert D(G(torch.randn(2, 12), resolution=8)).shape == (2, 1)          # control: right ones
    for call, message in [
            (lambda: G(torch.randn(2, 13)), r"z must be \[N, 12\]"),
            (lambda: G(torch.randn(2, 12), resolution=32), "not of 32"),
            (lambda: G(torch.randn(2, 2, 12), torch.zeros(2, 3, dtype=torch.long)), "style_index"),
            (lambda: D(torch.randn(2, 3, 32, 32)), "square images of 4, 8, 16 px"),
            (lambda: D(torch.randn(2, 3, 8, 16)), "square")]:
        with pytest.raises(ValueError, match=message):
            call()


# ---- 3. from settings to networks ----


def test_settings_reach_both_networks():
    """Lesson: the settings of a checkpoint say all that decides the shape of its networks."""
    assert set(SMALL) == set(models.SETTINGS)
    with torch.device("meta"):
        for key in models.SETTINGS:
            other = {**SMALL, key: 2 * SMALL[key]}
            G, changed = models.make_generator(SMALL), models.make_generator(other)
            D, D_changed = models.make_discriminator(SMALL), models.make_discriminator(other)
            shapes = lambda network: {n: p.shape for n, p in network.state_dict().items()}
            assert shapes(G) != shapes(changed), key
            assert (shapes(D) != shapes(D_changed)) == (key in models.SETTINGS[:3]), key  # control
