"""morph.py: growing by network morphism.   (7th in the reading order)

    python morph.py small.pt                       one doubling: writes small-morphed.pt
    python train.py --resume small-morphed.pt      goes on from there
    python train.py --growth morph                 every doubling of a run; no data needed

Read before: stylegan_models.py, convert_resolution.py.     Read next: augment.py
Paper:   Wei et al. 2016, "Network Morphism" (arXiv 1603.01670), section 3; what it replaces: Karras
         et al. 2018, "ProGAN" (arXiv 1710.10196), section 2.
Needs:   torch, numpy; a CPU is enough. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; C channels (of the new block), I in, O out of a convolution; R the
         new resolution, twice the old; t = 1 - alpha how linear the new block still is.

When a progressive GAN doubles its resolution, the new block is random, and is faded in beside the
old way out: over 600,000 images in the official code. A network morphism builds the new block such
that the larger network computes WHAT THE OLD ONE DID, and only then lets go:

    old G   ... block --> to_rgb
    new G   ... block --> conv0 (doubles) --> conv1 --> to_rgb
    old D                                     from_rgb --> lrelu --> ...
    new D   from_rgb --> conv0 --> conv1 (halves)      --> lrelu --> ...

That can only be exact if what stands between the convolutions is nothing. So each nonlinear step of
the new block (noise, leaky ReLU, AdaIN) is blended with the identity, t x + (1 - t) nonlinear(x),
and t goes from 1 to 0 over --morph-kimg. At t = 0 the block is an ordinary one; no trace of how it
was made remains in the network.
Proved: tests/test_morph.py::test_at_the_end_it_is_an_ordinary_block

The last leaky ReLU of D's new block is not blended. It is the old from_rgb's and was there before.

Compare: StyleGAN2 is refused. Its G needs no algebra, since a picture is a sum: a new block whose
to_rgb is 0 changes nothing, and learns (convert_resolution.py). Its D would need what stands here:
the short way of the new block at 0, from_rgb, conv0 and conv1 solved for, and the two leaky ReLUs
between them blended. Then it gives the scores that the old one gives to pictures that the FIR has
halved (which are blurred, so conv0 or conv1 would have to undo that, too).
Proved: tests/test_morph.py::test_what_morphing_stylegan2s_d_would_take
"""

import argparse
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

import convert_resolution as convert
import stylegan_models as models
from workshop import checkpoints, machine, options
from workshop.fast_gradients import blur, leaky_relu

# [MACHINE] 2 CPU cores, 512 to 1024 px at the paper's widths: 26 s and 2.9 GB of memory (measured).
#           No GPU is used.

# ==== Part 1: the algebra =====================================================================
#
# Two convolutions in a row, without anything between them, are one. With kernels F0 [C, I, k, k]
# and F1 [O, C, k, k] it is
#
#     Q[o, i] = sum over c of  F1[o, c] * F0[c, i]          (* convolves k x k pictures)
#
# Wei et al. call it the morphism equation and read it backwards: Q is there, find F0 and F1. They
# draw both at random and then take turns, F0 fixed and F1 solved for, F1 fixed and F0 solved for;
# each turn is linear, a least-squares problem. With enough channels C the first turn is exact.
#
# Here it is even easier. Q, the old to_rgb, is 1x1, and its result has 3 channels: colours. In the
# new G three layers share its work, V [3, C] (the new to_rgb), F1 [C, C, 3, 3], F0 [C, I, 3, 3].
# Draw V. What must F1 be for V F1 to be something simple, say a 1x1 layer M [3, C]? For each of the
# nine taps of its kernel
#
#     V F1[tap] = M at the centre, 0 elsewhere       3 equations for each column of C unknowns,
#
# and then the same with M in V's place, M F0[tap] = Q at the centre. So there is one problem,
#
#     given K [3, C] and P [3, I], find F [C, I] with K F = P,
#
# to be solved twice for each network. (In D everything is turned round: from_rgb has 3 channels on
# its other side, so it is the same for the transposed matrices.)
#
# THE SOLUTION OF LEAST NORM is F = K+ P, where K+ = K' (K K')^-1 is the pseudoinverse [C, 3]. It is
# not taken here. It has rank 3 at the centre and is zero at the other eight taps: all C channels
# carry mixtures of the same three colours, and the other C - 3 directions stay empty.
# Proved: tests/test_morph.py::test_the_least_norm_solution_is_degenerate
#
# THE NULL SPACE of K has the other C - 3 dimensions: whatever F writes there, K does not see. So
#
#     F = K+ P + (1 - K+ K) noise
#
# with any noise at all is a solution, too. 1 - K+ K [C, C] takes from noise [C, I] what K would
# see, 3 of its C dimensions, and leaves the rest. With noise of the usual size the convolution is
# a usual one, of full rank and of the usual size, that happens to hide its work from the colours.
# Proved: tests/test_morph.py::test_the_new_convolutions_look_like_any_others
#
# HOW MUCH EACH FACTOR DOES is free: M and 1/M cancel. `balanced` makes the two K+ P equally large,
# so that neither is more than a part of its kernel.
#
# AND THE BLUR? Both networks blur where they change the resolution (stylegan_layers.py), so the old
# image cannot come out exactly: it is enlarged and blurred, and D sees a blurred picture made
# smaller, which is not what it was trained on. But nobody said that Q must be 1x1. Its kernel may
# undo as much of the blur as three taps can. These taps are UNBLUR, in each direction. Enlarging
# by nearest neighbour gives (0 0 1 1 0 0), and the blur makes (0 1 3 3 1 0)/4 of it; with UNBLUR
# before the blur it is (-1 1 8 8 1 -1)/8. Of all kernels (a, 1 - 2a, a) this comes nearest to no
# blur. The same is true of D's mean over 2x2. What D sees of G's enlarged image is then 1.03 times
# the small one in each direction, but for 3 % that come from two pixels further on.
# Proved: tests/test_morph.py::test_unblur_is_the_best_of_its_kind

UNBLUR = (-0.5, 2.0, -0.5)


def unblur_kernel():
    """UNBLUR in both directions, [3, 3], float64."""
    line = torch.tensor(UNBLUR, dtype=torch.float64, device="cpu")
    return torch.outer(line, line)


def unblur(x):
    """x [N, C, H, W], each channel filtered with `unblur_kernel`, zeros beyond the border."""
    kernel = unblur_kernel().to(x).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def enlarge(x):
    """What a new G makes of the old one's colours: [N, C, R/2, R/2] -> [N, C, R, R]."""
    return blur(unblur(F.interpolate(x, scale_factor=2, mode="nearest")))


def reduce(x):
    """What a new D sees of a picture: [N, C, R, R] -> [N, C, R/2, R/2]."""
    return F.avg_pool2d(unblur(blur(x)), 2)


def orthonormal(rows, columns, rng):
    """Random rows of length 1 at right angles, [rows, columns], float64; columns >= rows.

    Why:    V and M will be inverted. Rows that are drawn one by one are nearly parallel now and
            then, and the inverse would have huge numbers that cancel only on paper.
    """
    return torch.linalg.qr(torch.randn(columns, rows, generator=rng, dtype=torch.float64))[0].t()


def at_the_centre(matrix):
    """[A, B] -> [A, B, 3, 3]: the 1x1 kernel as a 3x3 one."""
    return F.pad(matrix[:, :, None, None], (1, 1, 1, 1))


def balanced(known, product):
    """How long the rows of M should be, for K+ M and M+ P to be equally large.

    |K+ M|^2 = 3 m^2 / k^2 and |M+ P|^2 = |P|^2 / m^2, with rows of length k and m at right angles;
    they are equal for m^4 = |P|^2 k^2 / 3. (1 if there is nothing to be reproduced.)
    Shapes: known [3, C], product [3, I, 3, 3] -> a number.
    Proved: tests/test_morph.py::test_both_factors_do_half_of_the_work
    """
    square = product.square().sum() * known.square().sum() / 9             # k^2 = |K|^2 / 3
    return square.item() ** 0.25 or 1.0


def solve(known, product, noise, std):
    """F = K+ P + (1 - K+ K) noise for every tap: a kernel of `std` with K F[tap] = P[tap].

    Shapes: known K [3, C], product P [3, I, 3, 3], noise [C, I, 3, 3] -> [C, I, 3, 3], float64.
    Units:  std: root of the mean square of the result, what `EqualizedConv2d` would start with at
            run time. More if K+ P leaves little room, since noise of at least std / 2 is added.
    Proved: tests/test_morph.py::test_the_new_convolutions_look_like_any_others
    """
    inverse = torch.linalg.pinv(known)                                     # K+ [C, 3]
    needed = torch.einsum("ca,aiyx->ciyx", inverse, product)
    hidden = noise - torch.einsum("ca,ab,biyx->ciyx", inverse, known, noise)
    missing = std ** 2 * needed.numel() - needed.square().sum()
    scale = (missing / hidden.square().sum()).clamp(min=(std / 2) ** 2).sqrt()
    return needed + scale * hidden


# ==== Part 2: growing =========================================================================


def run_time_weight(layer):
    """The weight that a layer computes with, in float64 on the CPU."""
    return layer.weight.detach().cpu().double() * layer.weight_scale


def set_layer(layer, weight, bias=None):
    """Let a layer compute with this weight and bias (0 if None): the equalized scale taken out."""
    with torch.no_grad():
        layer.weight.copy_((weight / layer.weight_scale).to(layer.weight.dtype))
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None
                         else bias.to(layer.bias.dtype))


def grow_generator(networks, resolution, rng):
    """Give generators their block of `resolution`, in which they make the same pictures as before.

    networks: G and its average, or only one of them. They get the same V, F1 and noise, so that
            averaging them means something; F0 and the colours' bias carry what they differ in.
    At t = 1 the new image is enlarge(old - bias) + bias, where bias is the old to_rgb's. (The
            filters see zeros beyond the border, so the old image is continued there with `bias`.)
    Changes: conv0, conv1, to_rgb and the styles of that resolution. The first network's styles and
            noise strengths, which t = 1 does not see, are given to all.
    Errors: UserError for fewer than 4 channels.
    Proved: tests/test_morph.py::test_the_new_generator_makes_the_old_images
    """
    now, before = str(resolution), str(resolution // 2)
    first = networks[0].synthesis
    block = first.blocks[now]
    channels = block.conv0.weight.shape[0]
    options.check_morph_width(channels, resolution)

    def product(network):                                                  # [3, I, 3, 3]
        return run_time_weight(network.synthesis.to_rgb[before]) * unblur_kernel()

    V = orthonormal(3, channels, rng)                  # the length of a to_rgb that was just drawn
    M = orthonormal(3, channels, rng) * balanced(V, product(networks[0]))
    F1 = solve(V, at_the_centre(M), draw(block.conv1, rng), block.conv1.weight_scale)
    noise = draw(block.conv0, rng)
    for network in networks:
        synthesis = network.synthesis
        F0 = solve(M, product(network), noise, block.conv0.weight_scale)
        set_layer(synthesis.blocks[now].conv0, F0)
        set_layer(synthesis.blocks[now].conv1, F1)
        set_layer(synthesis.to_rgb[now], V[:, :, None, None], synthesis.to_rgb[before].bias)
        if network is networks[0]:
            fit_styles(network, resolution, rng)
        for name in ("noise0", "noise1", "adain0", "adain1"):
            getattr(synthesis.blocks[now], name).load_state_dict(getattr(block, name).state_dict())


@torch.no_grad()
def fit_styles(G, resolution, rng):
    """Let the new block's styles ask for what its linear signal has anyway.

    Why:    AdaIN forgets the mean and the size of every channel, and with random styles puts others
            in their place. In this block they hold the old image's colours and contrasts, which
            would be lost as t falls, and have to be learned again. But they depend on w, and a
            style is a linear function of w. So fit it: of all a n + b, where n is what AdaIN has
            normalized, the one nearest to x has b = mean(x) and a = mean(x n), for each image and
            channel; and a linear function of w that comes near these two is a regression.
    How:    least squares over random z, with a ridge, since at high resolution the images are few;
            the second layer after the first, so that it sees what it will see at t = 0.
    Changes: the weights and biases of both styles. t = 1 does not see them.
    Proved: tests/test_morph.py::test_fitted_styles_keep_the_colours
    """
    synthesis, before = G.synthesis, resolution // 2
    block, device = synthesis.blocks[str(resolution)], G.w_avg.device
    images = max(16, min(256, 2 ** 22 // before ** 2))
    z = torch.randn(images, G.latent_dim, generator=rng, dtype=torch.float64).float()
    w = G.mapping(z.to(device))                                            # [n, S]

    def linear_and_normal(w, layer):
        """x at t = 1, and n, behind the first or the second convolution, of a few images."""
        x, ws = None, w[:, None].expand(-1, 2, -1)
        for r in models.resolutions_up_to(before):
            x = synthesis.blocks[str(r)](x, ws, "const")
        x = ordinary = block.conv0(x)
        noise = block.noise0
        if layer == 1:
            x = block.conv1(x)
            ordinary = block.conv1(block.adain0(
                leaky_relu(block.noise0(ordinary, "const")), w))
            noise = block.noise1
        normal = F.instance_norm(leaky_relu(noise(ordinary, "const")), eps=1e-8)  # as AdaIN
        return x, normal

    for layer, adain in enumerate((block.adain0, block.adain1)):
        wanted = []                                                        # [n, 2C] in the end
        for part in w.split(max(1, 2 ** 18 // resolution ** 2)):
            x, n = linear_and_normal(part, layer)
            wanted.append(torch.cat([(x * n).mean(dim=(2, 3)) - 1, x.mean(dim=(2, 3))], dim=1))
        set_layer(adain.style, *regression(w.cpu().double(), torch.cat(wanted).cpu().double()))


def regression(x, y):
    """The linear function, weight [B, A] and bias [B], that takes x [n, A] nearest to y [n, B].

    Least squares, with a penalty on the weight (a ridge: a tenth of what x has in a direction on
    average), so that directions that x hardly has are not made up from a few samples.
    Proved: tests/test_morph.py::test_regression_finds_a_linear_function
    """
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    gram = x.t() @ x                                                       # [A, A]
    ridge = 0.1 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge, x.t() @ y).t()
    return weight, y_mean - weight @ x_mean


def grow_discriminator(D, resolution, rng):
    """Give D its block of `resolution`: the score of a picture is the old one's of reduce(picture).

    Changes: from_rgb, conv0 and conv1 of that resolution. The old from_rgb's bias becomes conv1's.
    Errors: UserError for fewer than 4 channels.
    Proved: tests/test_morph.py::test_the_new_discriminator_gives_the_old_scores
    """
    from_rgb, block = D.from_rgb[str(resolution)], D.blocks[str(resolution)]
    old = D.from_rgb[str(resolution // 2)]
    channels = from_rgb.weight.shape[0]
    options.check_morph_width(channels, resolution)
    # Transposed, [3, C]; the length is that of a from_rgb that was just drawn.
    A = orthonormal(3, channels, rng) * from_rgb.weight_scale * math.sqrt(channels)
    product = (run_time_weight(old) * unblur_kernel()).transpose(0, 1)     # [3, O, 3, 3]
    M = orthonormal(3, channels, rng) * balanced(A, product)
    F0 = solve(A, at_the_centre(M), draw(block.conv0, rng).transpose(0, 1),
               block.conv0.weight_scale)
    F1 = solve(M, product, draw(block.conv1, rng).transpose(0, 1), block.conv1.weight_scale)
    set_layer(from_rgb, A.t()[:, :, None, None])
    set_layer(block.conv0, F0.transpose(0, 1))
    set_layer(block.conv1, F1.transpose(0, 1), old.bias)


def draw(layer, rng):
    """N(0, 1) of the shape of a layer's weight, in float64."""
    return torch.randn(layer.weight.shape, generator=rng, dtype=torch.float64)


def grow(G, G_ema, D, resolution, seed):
    """Give all networks their block of `resolution`. G and D may be None, in a file without them.

    How:    a function of the weights and of (seed, resolution), so that a resumed run does the
            same. The algebra is done on the CPU, in float64, and takes no time to speak of.
    """
    # A stream that no step of train.py draws from (`draw_z` in workshop/machine.py).
    numbers = np.random.SeedSequence([seed, resolution, 2 ** 32]).generate_state(1, np.uint64)
    rng = torch.Generator().manual_seed(int(numbers[0]))
    grow_generator([network for network in (G, G_ema) if network is not None], resolution, rng)
    if D is not None:
        grow_discriminator(D, resolution, rng)


# ==== Part 3: being young =====================================================================
#
# While a block is young, another one stands in its place: with the same weights, under the same
# name, but with a forward pass in which each nonlinear step is softened. stylegan_models.py knows
# nothing of it.


def soften(x, nonlinear, alpha):
    """t x + (1 - t) nonlinear(x) with t = 1 - alpha: of a nonlinear step, only so much of it.

    Paper:  Wei et al. 2016, section 3, who call it a parametric activation.
    """
    return torch.lerp(x, nonlinear(x), alpha)


class YoungSynthesisBlock(models.SynthesisBlock):
    """Softens noise, leaky ReLU and AdaIN; at alpha 0 both convolutions are left, nothing else."""

    def forward(self, x, ws, noise_mode):
        x = self.conv0(x)
        x = soften(x, lambda x: self.noise0(x, noise_mode), self.alpha)
        x = soften(x, leaky_relu, self.alpha)
        x = soften(x, lambda x: self.adain0(x, ws[:, 0]), self.alpha)
        x = self.conv1(x)
        x = soften(x, lambda x: self.noise1(x, noise_mode), self.alpha)
        x = soften(x, leaky_relu, self.alpha)
        return soften(x, lambda x: self.adain1(x, ws[:, 1]), self.alpha)


class YoungFromRGB(models.FromRGB):
    """Softens its leaky ReLU."""

    def forward(self, images):
        return soften(models.EqualizedConv2d.forward(self, images), leaky_relu, self.alpha)


class YoungDiscriminatorBlock(models.DiscriminatorBlock):
    """Softens the first leaky ReLU. The last one is that of the from_rgb whose place it takes."""

    def forward(self, x):
        x = soften(self.conv0(x), leaky_relu, self.alpha)
        return leaky_relu(self.conv1(x))


def ripen(alpha, resolution, *networks):
    """Give the blocks of `resolution` the age alpha: young ones below 1, ordinary ones at 1.

    Returns 1.0, the alpha that is left for the networks themselves: there is nothing to be faded.
    networks: of G, G_ema and D. The blocks at 4x4 were there from the start and are never young.
    Proved: tests/test_morph.py::test_a_young_block_shares_weights_and_names
    """
    for network in networks:
        if isinstance(network, models.Discriminator):
            places = ((network.from_rgb, YoungFromRGB), (network.blocks, YoungDiscriminatorBlock))
        else:
            places = ((network.synthesis.blocks, YoungSynthesisBlock),)
        for blocks, kind in places:
            for key, block in blocks.items():
                if isinstance(block, kind):
                    blocks[key] = block.ordinary       # also one that was young before this one
            if alpha < 1 and resolution > 4:
                key = str(resolution)
                blocks[key] = stand_in(blocks[key], kind)
                blocks[key].alpha = alpha
    return 1.0


def stand_in(block, kind):
    """A block of the class `kind` that shares all weights with `block` and remembers it."""
    young = kind.__new__(kind)
    # What torch.compile made of `block` is not the forward pass of a young one. `ordinary` is put
    # past torch's bookkeeping, which would take it for a part and list its weights twice.
    young.__dict__.update(block.__dict__, ordinary=block, _compiled_call_impl=None)
    return young


def load_networks(path, device="cpu", parts=("generator_ema",)):
    """`checkpoints.load_networks`, with a block in the middle of morphing as young as it was.

    Proved: tests/test_morph.py::test_a_checkpoint_from_the_middle_of_a_morph_gives_its_pictures
    """
    loaded = checkpoints.load_networks(path, device, parts)
    if loaded.checkpoint.get("progress", {}).get("phase") == "morph":
        alpha = ripen(loaded.alpha, loaded.resolution, *loaded.networks.values())
        loaded = loaded._replace(alpha=alpha)
    return loaded


# ==== Part 4: the proof =======================================================================
#
# As in convert_resolution.py, the program measures what it claims before it writes. The algebra is
# exact; float32 rounds. The colours are small sums of large hidden numbers, so the error is larger
# than one rounding, 6e-8: up to 7e-6 at the paper's widths (measured, 64 to 1024 px). A score that
# happens to lie near 0 is a smaller measure; so the program refuses only what no rounding explains.
# docs/morph.png shows faces before and after.

TOLERANCE = 1e-4


def relative(new, old):
    """The largest difference between two tensors, in terms of the largest old value."""
    return ((new - old).abs().max() / old.abs().max()).item()


@torch.no_grad()
def compare(old, new, z, resolution):
    """[(what, relative error)] of networks by their part's name, before and after growing.

    Pictures for D: those of the new G, and white noise, which has details of every size.
    Proved: tests/test_morph.py::test_the_program_proves_it_before_it_writes
    """
    found, pictures = [], [torch.rand(2, 3, resolution, resolution) * 2 - 1]
    ripen(0.0, resolution, *new.values())
    for name, part in (("G, images", "generator"), ("G_ema, images", "generator_ema")):
        if part in old:
            layer = old[part].synthesis.to_rgb[str(resolution // 2)]
            bias = layer.bias[:, None, None]
            images = enlarge(old[part](z, noise_mode="const", resolution=resolution // 2) - bias)
            ours = new[part](z, noise_mode="const", resolution=resolution)
            found.append((name, relative(ours, images + bias)))
            pictures.append(ours)
    if "discriminator" in old:
        pictures = torch.cat(pictures)
        found.append(("D, scores", relative(new["discriminator"](pictures),
                                            old["discriminator"](reduce(pictures)))))
    ripen(1.0, resolution, *new.values())
    return found


# ==== Part 5: the program =====================================================================


def morph_schedule(run, progress, now, final, morph_kimg=None):
    """(options, progress) with which train.py goes on with the first step of the new block.

    The schedule is put around the clock as convert_resolution.py does it: begin at the resolution
    that is there, stay for all images seen so far, then morph.
    Errors: KeyError, TypeError, ValueError for options that train.py did not write.
    Proved: tests/test_morph.py::test_train_goes_on_with_what_morph_wrote
    """
    stays = options.read_table(run["stabilize_kimg"])
    morphs = morph_kimg or options.read_table(run.get("morph_kimg", "20"))
    kimg = progress["nimg"] / 1000
    above = [r for r in models.resolutions_up_to(final) if r > now]
    stays = options.Table({now: kimg, **{r: stays[r] for r in above}})
    total = kimg + sum(morphs[r] + stays[r] for r in above)
    run = {**run, "growth": "morph", "resolution": final, "initial_resolution": now,
           "freeze_d": None,                           # the new block has to learn
           "stabilize_kimg": options.show(stays), "morph_kimg": options.show(morphs),
           "total_kimg": max(total, float(run["total_kimg"]))}
    phase, alpha = ("morph", 0.0) if morphs[2 * now] > 0 else ("stabilize", 1.0)
    progress = {**progress, "resolution": 2 * now, "phase": phase, "alpha": alpha,
                "steps_since_tick": 0, "sums": torch.zeros_like(progress["sums"])}
    return run, progress


def where_it_stands(path, checkpoint):
    """The resolution that was trained last.   Errors: CheckpointError if it is not finished."""
    top = checkpoint["settings"]["resolution"]
    progress = checkpoint.get("progress")
    if progress is None:                               # a file that only holds networks
        return top
    try:
        now, phase, alpha = progress["resolution"], progress["phase"], progress["alpha"]
        if now is None:                                # a run that was kept before its first step
            now, phase = checkpoint["options"]["initial_resolution"], "stabilize"
        if now not in models.resolutions_up_to(top):
            raise KeyError("resolution")
    except (KeyError, TypeError) as error:
        raise checkpoints.CheckpointError(f"{path}: its progress is incomplete ({error})") from None
    if phase != "stabilize":
        raise checkpoints.CheckpointError(
            f"{path}: the block of {now} px is itself still growing (alpha {alpha:.2f}); train on "
            f"until it has settled")
    return now


def parse_args(argv=None):
    """The options, as `--help` explains them."""
    parser = options.OneLineParser(
        prog="morph.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Double the resolution of a checkpoint without changing what it does: the new\n"
                    "block begins linear and becomes an ordinary one in the course of training.",
        epilog="A checkpoint of a run that was going to grow on keeps its final resolution; of a\n"
               "finished one the final resolution is doubled. Either way python train.py --resume\n"
               "goes on, and grows by morphing from then on.")
    parser.add_argument("model", metavar="MODEL", type=pathlib.Path, help="the checkpoint")
    parser.add_argument("--morph-kimg", metavar="TABLE", type=options.table_of(float),
                        help="thousands of images until a block is an ordinary one (default: that "
                             "of the run, usually 20)")
    parser.add_argument("--seed", metavar="N", type=options.number_from(0, int, 2 ** 62),
                        help="for the new block (default: that of the run)")
    parser.add_argument("--out", metavar="PATH", type=pathlib.Path,
                        help="the new checkpoint; must not exist (default MODEL-morphed.pt)")
    return parser.parse_args(argv)


def main(argv=None):
    """Load, grow, prove, write. Returns the exit code."""
    typed = parse_args(argv)
    path = typed.model
    out = typed.out or path.parent / f"{path.stem}-morphed.pt"

    # ---- 1. What is there? ----
    convert.check_out(out, [path])
    checkpoint = checkpoints.load_checkpoint(path)
    settings = checkpoint["settings"]
    if settings["architecture"] != "stylegan":
        raise checkpoints.CheckpointError(
            f"{path}: is a StyleGAN2, whose D would need a residual block that begins linear, and "
            f"morph.py has none; python convert_resolution.py {path} {2 * settings['resolution']} "
            f"keeps what G makes, and lets D learn anew")
    now = where_it_stands(path, checkpoint)
    final = max(2 * now, settings["resolution"])
    new_settings = {**settings, "resolution": final}
    seed = typed.seed if typed.seed is not None else int(
        checkpoint.get("options", {}).get("seed", 0))
    try:
        options.check_morph_width(models.channels_at(
            2 * now, settings["channel_base"], settings["channel_max"]), 2 * now)
    except ValueError as error:
        raise checkpoints.CheckpointError(f"{path}: {error}") from None

    # ---- 2. The networks, with everything that they had, and then the new block ----
    torch.manual_seed(seed)
    old, new, result, lines, copied = {}, {}, {"settings": new_settings}, [], {}
    for part, name, make in (("generator", "G", models.make_generator),
                             ("generator_ema", "G_ema", models.make_generator),
                             ("discriminator", "D", models.make_discriminator)):
        if part not in checkpoint:
            continue
        state, parts = convert.convert_state(checkpoint[part], make(new_settings).state_dict(), now)
        lines.append(convert.summary(name, parts, checkpoint[part], state))
        copied[part] = set(parts.copied)
        for networks, values, kind in ((old, checkpoint[part], settings),
                                       (new, state, new_settings)):
            # In the memory format of train.py: sums in the same order, so the same bits.
            networks[part] = machine.place(make(kind), torch.device("cpu"))
            networks[part].load_state_dict(values)
            networks[part].eval().requires_grad_(False)
    grow(new.get("generator"), new["generator_ema"], new.get("discriminator"), 2 * now, seed)
    for part, network in new.items():
        result[part] = network.state_dict()

    # ---- 3. What a run needs beside its networks ----
    convert.carry_run(
        path, checkpoint, result,
        lambda run, progress: morph_schedule(run, progress, now, final, typed.morph_kimg),
        {part: (old[part], new[part]) for part in ("generator", "discriminator") if part in new},
        copied)

    # ---- 4. The proof, before anything is written ----
    found = compare(old, new, torch.randn(1, settings["latent_dim"]), 2 * now)
    wrong = next((f"{what}: a relative difference of {error:.2g}, more than {TOLERANCE:g}: the new "
                  f"block would change the network"
                  for what, error in found if not error < TOLERANCE), None)
    lines.append(f"relative difference, {now} px before to {2 * now} px after (t = 1):")
    lines += [f"  {what}: {error:.2g}" for what, error in found]
    convert.write_converted("morph.py", path, out, result, now, 2 * now, lines, wrong)
    return 0


if __name__ == "__main__":
    options.start(main, "morph.py", "stopped; nothing was written")
