"""speedrun_peers.py: other implementations in training loops for experiments/speedrun.py.

Each is a function (reals, folder, ours) that returns a loop, as the top of speedrun.py explains it.
ours: whether it takes our settings, as far as its networks can be told, or those that its own
script chooses for 32 px. The folders hold the projects as they were published. Their networks are
imported from there, and of two of them the losses; the loops are written here, since theirs need
CUDA or an older PyTorch.

    rosinality, dulaku    StyleGAN: one loop for both, with the turns of train.py
    ada, lucidrains       StyleGAN2, each in a loop of its own, with its own losses

Needs:   what train.py needs. Nothing is imported from the folders before a loop is asked for.
"""

import copy
import functools
import random
import sys
import types
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))        # before this folder
import stylegan_dataloader as data
import stylegan_models as models
import train
from stylegan_losses import r1_weight
from workshop import machine, options

CPU, PX = torch.device("cpu"), 32


@functools.cache
def our_settings(architecture):
    """What train.py would choose here."""
    return types.SimpleNamespace(
        **options.complete_options({"architecture": architecture}, CPU)[0])


# ==== StyleGAN ================================================================================


class Growing(NamedTuple):
    """How a pair of networks grows. Tables are of resolutions; factor(r): of R1, every k-th step;
    beta(nimg, batch): of the average; faded(reals, alpha): what D is shown of them."""
    stages: list
    batch: dict
    rate: dict
    factor: callable
    r1_interval: int
    beta: callable
    faded: callable
    forget: bool = False                                       # Adam's moments, at a new stage
    same_z: bool = False                                       # in both turns of a step


def our_growing():
    o = our_settings("stylegan")
    growing_kimg = options.growing_kimg(vars(o))
    return Growing(
        train.plan_stages(o.initial_resolution, PX, growing_kimg, o.stabilize_kimg),
        o.batch, o.learning_rate,
        lambda r: r1_weight(o.r1_gamma[r], o.r1_interval, r, PX), o.r1_interval,
        lambda nimg, batch: train.ema_beta(nimg, batch, o.ema_halflife_kimg), data.fade_reals,
        forget=True)


def grow(G, D, mapping, s, latent_dim, reals):
    """The loop of train.py for foreign networks that are called as ours are.

    mapping: the part of G that learns at a hundredth of the rate. s: a Growing.
    Both peers' losses are ours: non-saturating, with R1 (Goodfellow 2014; Mescheder 2018).
    """
    slow = list(mapping.parameters())
    fast = [p for p in G.parameters() if all(p is not q for q in slow)]
    G_opt = torch.optim.Adam([{"params": fast, "share": 1.0}, {"params": slow, "share": 0.01}],
                             betas=(0.0, 0.99))
    D_opt = torch.optim.Adam([{"params": D.parameters(), "share": 1.0}], betas=(0.0, 0.99))
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    team, nimg, step, before = machine.Team(CPU), 0, 0, None
    yield
    while True:
        stage = train.stage_at(nimg, s.stages)
        r, alpha, batch = stage.resolution, train.alpha_at(nimg, stage), s.batch[stage.resolution]
        if stage is not before:
            mixer = iter(data.StyleMixer(models.num_style_layers(r), batch,
                                         seed=random.getrandbits(32)))
            for group in (*G_opt.param_groups, *D_opt.param_groups):
                group["lr"] = s.rate[r] * group["share"]
            if s.forget and before:
                train.forget_moments(G_opt, D_opt)
            before = stage
        z, mixes = torch.randn(2, batch, 2, latent_dim), torch.stack([next(mixer), next(mixer)])
        if s.same_z:
            z[1], mixes[1] = z[0], mixes[0]
        train.training_step(G, D, G_opt, D_opt, s.faded(reals(r, batch), alpha), z, mixes, alpha,
                            s.factor(r) if step % s.r1_interval == 0 else None, None, 1, team)
        nimg, step = nimg + batch, step + 1
        train.update_ema(G_ema, G, s.beta(nimg, batch))

        def sample(n, r=r, alpha=alpha):
            return G_ema(torch.randn(n, 1, latent_dim), None, resolution=r, alpha=alpha)
        yield batch, sample


class Called(torch.nn.Module):
    """A foreign network, called as ours are: `call` says how."""

    def __init__(self, network, call):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs, **more):
        return self.call(self.network, *inputs, **more)


def level(resolution):
    return resolution.bit_length() - 3                         # 4, 8, 16, 32 px: 0, 1, 2, 3


def rosinality(reals, folder, ours):
    """Its script with --mixing --loss r1, as its README has it for faces, and --max_size 32.

    To its advantage without --sched, whose batches are for GPUs: with 256 at 8 px a step takes half
    a minute of CPU time here. Its networks have 512 channels, z and w, and cannot be told
    otherwise. At 4 px they cannot mix styles.
    """
    sys.path.insert(0, folder)
    from model import Discriminator, StyledGenerator

    def call_G(G, z, mixes, resolution, alpha):
        mixed = mixes is not None and resolution > 4 and random.random() < 0.9
        return G([z[:, 0], z[:, 1]] if mixed else [z[:, 0]], step=level(resolution), alpha=alpha)

    def call_D(D, images, alpha):
        return D(images, step=level(images.shape[-1]), alpha=alpha)

    s = our_growing() if ours else Growing(
        train.plan_stages(8, PX, options.Table({4: 600}), options.Table({8: 1200, 16: 600})),
        options.Table({4: 32}), options.Table({4: 0.001}), lambda r: 10 / 2, 1,
        lambda nimg, batch: 0.999, lambda images, alpha: images)
    G = StyledGenerator(512, our_settings("stylegan").mapping_layers if ours else 8)
    D = Discriminator(from_rgb_activate=True)
    return grow(Called(G, call_G), Called(D, call_D), G.style, s, 512, reals)


def dulaku(reals, folder, ours):
    """Its config.py, of whose lists the first four are taken: 4 to 32 px.

    Its mapping network has 8 layers and cannot be told otherwise.
    """
    o = our_settings("stylegan")
    blocks = [models.channels_at(r, o.channel_base, o.channel_max) if ours else 512
              for r in models.resolutions_up_to(PX)]
    latent, style = (o.latent_dim, o.style_dim) if ours else (512, 512)
    words = ["--blocks", *blocks, "--latent_dim", latent, "--style_size", style,
             "--mapping_layer_size", o.mapping_dim if ours else 512]
    # Its files have the names of ours, and its configuration reads argv.
    names = ("stylegan_layers", "stylegan_models")
    known = {name: sys.modules.pop(name) for name in names}
    sys.path.insert(0, folder)
    try:
        with mock.patch.object(sys, "argv", ["config.py", *map(str, words)]):
            import stylegan_models as theirs
    finally:
        sys.path.remove(folder)
        sys.modules.update(known)

    def top(resolution, alpha):
        return [level(resolution) - 1, level(resolution)] if alpha < 1 else [level(resolution)]

    def call_G(G, z, mixes, resolution, alpha):
        # [N, 1, L, 1]: in front of which layer the second style takes over, one place earlier.
        swaps = torch.zeros(len(z), 1, models.num_style_layers(resolution), 1, dtype=torch.bool)
        if mixes is not None:
            swaps[:, 0, :-1, 0] = mixes.diff(dim=1) > 0
        return G([z[:, 0], z[:, -1]], swaps, top(resolution, alpha), alpha)

    def call_D(D, images, alpha):
        return D.score_validity(images, top(images.shape[-1], alpha), alpha)

    def faded(images, alpha):
        if alpha == 1:
            return images
        small = F.interpolate(images, scale_factor=0.5, mode="bilinear")
        return torch.lerp(F.interpolate(small, scale_factor=2.0, mode="bilinear"), images, alpha)

    epochs = options.Table({4: 27 * len(reals.levels[PX]) / 1000})         # kimg
    s = our_growing() if ours else Growing(
        train.plan_stages(4, PX, epochs, epochs), options.Table({4: 64, 16: 32}),
        options.Table({4: 0.001}), lambda r: 10 / 2, 1, lambda nimg, batch: 0.999, faded,
        same_z=True)
    G, D = theirs.Generator(), theirs.Discriminator()
    return grow(Called(G, call_G), Called(D, call_D), G.mapping_network, s, latent, reals)


# ==== StyleGAN2 ===============================================================================


def ada(reals, folder, ours):
    """stylegan2-ada-pytorch with --cfg auto for 32 px on one GPU: its networks, loss and phases.

    Left out, to its advantage: the search for NaN in all gradients, and the augmentation, which
    takes time from the first step on, and whose strength begins at 0 and rises by at most 0.002 a
    kimg. In float32, without the clamping that belongs to float16.
    """
    sys.path.insert(0, folder)
    sys.modules.setdefault("requests", types.ModuleType("requests"))       # it is for downloads
    from training.loss import StyleGAN2Loss
    from training.networks import Discriminator, Generator
    o = our_settings("stylegan2")
    batch, rate, gamma, halflife, mirror = (
        (o.batch[PX], o.learning_rate[PX], o.r1_gamma[PX], o.ema_halflife_kimg, True) if ours else
        (32, 0.0025, 0.0002 * PX ** 2 / 32, 10.0, False))
    latent, style, layers, base, most = (
        (o.latent_dim, o.style_dim, o.mapping_layers, 2 * o.channel_base, o.channel_max) if ours
        else (512, 512, 2, 16384, 512))                        # its channel_base is twice ours
    sizes = dict(c_dim=0, img_resolution=PX, img_channels=3)
    widths = dict(channel_base=base, channel_max=most, num_fp16_res=0, conv_clamp=None)
    G = Generator(z_dim=latent, w_dim=style, mapping_kwargs=dict(num_layers=layers),
                  synthesis_kwargs=widths, **sizes)
    D = Discriminator(epilogue_kwargs=dict(mbstd_group_size=4), **widths, **sizes)
    G_ema = copy.deepcopy(G).eval()
    loss = StyleGAN2Loss(CPU, G.mapping, G.synthesis, D, r1_gamma=gamma)
    phases = []
    for name, network, k in (("G", G, 4), ("D", D, 16)):       # penalties in every k-th step
        adam = torch.optim.Adam(network.parameters(), lr=rate * k / (k + 1), eps=1e-8,
                                betas=(0.0, 0.99 ** (k / (k + 1))))
        phases += [(f"{name}main", network, adam, 1), (f"{name}reg", network, adam, k)]
    for network in (G, D, G_ema):
        network.requires_grad_(False)
    nimg, step = 0, 0
    yield
    while True:
        images = reals(PX, batch, mirror)
        for name, network, adam, k in phases:
            if step % k == 0:
                adam.zero_grad(set_to_none=True)
                network.requires_grad_(True)
                none = torch.zeros(batch, 0)                   # labels
                loss.accumulate_gradients(name, images, none, torch.randn(batch, latent), none,
                                          sync=True, gain=k)
                network.requires_grad_(False)
                adam.step()
        train.update_ema(G_ema, G, train.ema_beta(nimg, batch, halflife))
        nimg, step = nimg + batch, step + 1
        yield batch, lambda n: G_ema(torch.randn(n, latent), torch.zeros(n, 0))


def reflected_blur(x, kernel, normalized):
    """kornia's filter2d, as lucidrains calls it; the only function of that package it needs."""
    kernel = (kernel / kernel.abs().sum()).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, [1] * 4, mode="reflect"), kernel, groups=x.shape[1])


def lucidrains(reals, folder, ours):
    """Its command line's defaults, with --image_size 32; its networks and losses.

    It begins to average after 20,000 steps, which no run of minutes reaches. Until then its average
    is an old copy of G, so its pictures are taken from G. Its pictures lie in [0, 1], and are not
    mirrored. With ours, two things stay its own: the learning rate, since its layers are not
    equalized, and the mapping network, whose beginning fits 512 numbers (with 64 all pictures are
    alike at first).
    """
    # What it imports, none of which is called here but kornia's blur. It wants to see a GPU, too.
    for name, functions in (("fire", {}), ("aim", {}), ("kornia", {}),
                            ("kornia.filters", {"filter2d": reflected_blur}),
                            ("einops", {"rearrange": None, "repeat": None}),
                            ("vector_quantize_pytorch", {"VectorQuantize": None})):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(functions)
    sys.path.insert(0, folder)
    with mock.patch.object(torch.cuda, "is_available", lambda: True):
        from stylegan2_pytorch import stylegan2_pytorch as theirs
    o = our_settings("stylegan2")
    # parts: batches whose gradients are added. Penalties are due in every k-th step; path length
    # only after a number of steps.
    batch, parts, gp_interval, path_start, path_interval, path_weight = (
        (o.batch[PX], 1, o.r1_interval, 0, o.path_interval, o.path_weight * o.path_interval)
        if ours else (5, 6, 4, 5001, 32, 1.0))
    # With ours G has 64, 64, 64, 32 channels from 4 to 32 px; with its own 256, 128, 64, 32.
    latent, (most, wide_G, wide_D) = 512, (
        (o.channel_max, o.channel_base // 32, o.channel_base // 64) if ours else (512, 16, 16))
    both = torch.nn.Module()
    both.S = theirs.StyleVectorizer(latent, 8, lr_mul=0.1)
    both.G = theirs.Generator(PX, latent, network_capacity=wide_G, fmap_max=most)
    both.D = D = theirs.Discriminator(PX, network_capacity=wide_D, fmap_max=most)
    theirs.StyleGAN2._init_weights(both)
    del both.D
    averaged = copy.deepcopy(both).eval().requires_grad_(False) if ours else both
    G_opt, D_opt = (torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.9))
                    for network, rate in ((both, 2e-4), (D, 1.5 * 2e-4)))

    def styled(networks, n, mixing=0.0):
        """(pictures, ws [n, blocks, latent]) of new z."""
        blocks = networks.G.num_layers
        cut = int(torch.rand(()) * blocks) if random.random() < mixing else 0
        w = [networks.S(torch.randn(n, latent))[:, None] for _ in range(2 if cut else 1)]
        ws = torch.cat([w[0].expand(-1, cut, -1), w[-1].expand(-1, blocks - cut, -1)], dim=1)
        return networks.G(ws, torch.rand(n, PX, PX, 1)), ws

    nimg, step, path_mean = 0, 0, None
    yield
    while True:
        due = step % gp_interval == 0
        D_opt.zero_grad()
        for _ in range(parts):
            with torch.no_grad():
                fakes, _ = styled(both, batch, 0.9)
            images = (reals(PX, batch, mirror=ours) + 1) / 2
            fake_scores, _ = D(fakes.requires_grad_(due))
            real_scores, _ = D(images.requires_grad_(due))
            loss = theirs.hinge_loss(fake_scores, real_scores)
            if due and ours:
                # Gradients at pictures in [0, 1] are twice as large as in [-1, 1], their squares 4.
                loss = loss + theirs.gradient_penalty(
                    images, real_scores, r1_weight(o.r1_gamma[PX], gp_interval, PX, PX) / 4)
            elif due:
                loss = loss + theirs.gradient_penalty(images, real_scores) + (
                    theirs.gradient_penalty(fakes, fake_scores))
            (loss / parts).backward()
        D_opt.step()

        due = step >= path_start and step % path_interval == 0
        G_opt.zero_grad()
        for _ in range(parts):
            fakes, ws = styled(both, batch, 0.9)
            loss = theirs.gen_hinge_loss(D(fakes)[0], None)
            if due:
                lengths = theirs.calc_pl_lengths(ws, fakes)
                length = lengths.mean().item()
                if path_mean is not None:
                    loss = loss + path_weight * (lengths - path_mean).square().mean()
            (loss / parts).backward()
        G_opt.step()
        if due:
            path_mean = length if path_mean is None else 0.99 * path_mean + 0.01 * length
        nimg, step = nimg + batch * parts, step + 1
        if ours:
            train.update_ema(averaged, both, train.ema_beta(nimg, batch, o.ema_halflife_kimg))
        yield batch * parts, lambda n: 2 * styled(averaged, n)[0].clamp(0, 1) - 1


# Its loop, and a file and words in it, by which a folder is known to be that project.
PEERS = {"rosinality": (rosinality, "model.py", "class StyledGenerator"),
         "dulaku": (dulaku, "stylegan_models.py", "ur_face"),
         "lucidrains": (lucidrains, "stylegan2_pytorch/stylegan2_pytorch.py", "StyleVectorizer"),
         "ada": (ada, "training/networks.py", "class MappingNetwork")}
