"""stylegan_models.py: the networks of a StyleGAN.   (4th in the reading order)

Read before: train.py, stylegan_losses.py.     Read next: stylegan_layers.py, the parts.
Paper:   Karras et al. 2019, "StyleGAN" (arXiv 1812.04948), section 2, figure 1b and appendix C;
         growing: Karras et al. 2018, "ProGAN" (arXiv 1710.10196), section 2 and appendix A.
Needs:   torch, any device. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; K styles mixed in one image; L style layers; S size of w;
         C channels; R rows = columns of pixels. Images lie in [-1, 1]; z is standard normal.

              z [N, latent]                          images [N, 3, R, R]
                   | MappingNetwork                       | FromRGB
              w [N, S]                               blocks R, R/2, ... 8    (halve the resolution)
                   | style mixing, truncation             |
              ws [N, L, S]                           block 4: how varied is the batch?
                   | SynthesisNetwork: blocks 4 .. R      |
                   | to_rgb                          score [N, 1]: high: looks real
              images [N, 3, R, R]

The letters of figure 1 and their classes: f MappingNetwork; A `AdaIN.style`; B NoiseInput; AdaIN;
"Const 4x4x512" LearnedConstant; g SynthesisNetwork, each grey box of it a SynthesisBlock. Table 1
builds this network out of ProGAN's step by step. FID (evaluate.py) says how far the images are from
real ones, here from the paper, on FFHQ:

    A  Progressive GAN                              8.04
    B  tuned; bilinear up- and downsampling         5.25   blur-in-conv in stylegan_layers.py
    C  mapping network and styles                   4.85   MappingNetwork, AdaIN
    D  no z at the input                            4.88   LearnedConstant
    E  noise inputs                                 4.42   NoiseInput
    F  style mixing: this network                   4.40   StyleMixer in stylegan_dataloader.py

A block is named by its resolution, never counted from the top: `synthesis.blocks.64.conv0.weight`
means the same in a 64 px network and in a 1024 px one. Growing a network, or changing the
resolution of a checkpoint, is then only a matter of which names are there.
Proved: tests/test_models.py::test_a_block_has_one_name_in_networks_of_all_sizes
"""

import torch
import torch.nn.functional as F

from stylegan_layers import (
    LEAKY_GAIN, ActivatedConv2d, AdaIN, EqualizedConv2d, EqualizedLinear, LearnedConstant,
    MinibatchStddev, ModulatedConv2d, ModulatedToRGB, NoiseInput, PixelNorm, downsample_fir, normal,
    upsample_fir)
from workshop.fast_gradients import leaky_relu         # x where x is positive, 0.2 x elsewhere


def resolutions_up_to(resolution):
    """[4, 8, ..., resolution]. Errors: ValueError if it is not a power of two, 4 or more."""
    if resolution < 4 or resolution & (resolution - 1):
        raise ValueError(f"the resolution must be a power of two, 4 or more, got {resolution}")
    return [2 ** k for k in range(2, resolution.bit_length())]


def num_style_layers(resolution):
    """How many layers take a style: two a block, so 2, 4, 6, ... 18 for 4, 8, 16, ... 1024 px."""
    return 2 * len(resolutions_up_to(resolution))


def channels_at(resolution, channel_base, channel_max):
    """The width of the networks at a resolution (ProGAN, table 2).

    Doubling the resolution quadruples the pixels; halving the channels brings the memory of a
    feature map back to twice, and the work of a convolution to the same. 8192 and 512, the paper's
    values, give 512 channels at 4..32 px, then 256, 128, 64, 32, and 16 at 1024 px.
    """
    channels = min(2 * channel_base // resolution, channel_max)
    if channels < 1:
        raise ValueError(f"channel_base={channel_base} leaves no channel at {resolution}x"
                         f"{resolution}; it must be at least {resolution // 2}")
    return channels


# ---- 1. The generator ------------------------------------------------------------------------


class MappingNetwork(torch.nn.Module):
    """z to w, a stack of fully connected layers.

    Why:    z is normal by decree, equally dense in all directions and without gaps, while real
            faces have gaps (few babies have beards). Fed to the image directly, z would have to be
            warped so that the gaps vanish, and no direction of it could mean one thing. The density
            of w is not decreed: it is whatever this network makes of z, and can keep the gaps. So
            in w one direction may mean one thing (section 4, "disentangled", figure 6).
    Measured by: perceptual path length (section 4.1), `path_length` in evaluate.py; and linear
            separability (4.2), which needs networks that name what is in a picture.
            experiments/separability.py measures it of painted faces, and draws their figure 6
            (docs/figure6.png).
    Paper:  section 2, figure 1b left. It learns at 1/100 of the rate (appendix C; EqualizedLinear).
    Shapes: z [N, latent_dim] -> w [N, style_dim]; layers in between have mapping_dim features.
    Proved: tests/test_models.py::test_mapping_network_gives_the_official_w
    """

    def __init__(self, latent_dim=512, style_dim=512, mapping_dim=512, mapping_layers=8):
        super().__init__()
        sizes = [latent_dim] + [mapping_dim] * (mapping_layers - 1) + [style_dim]
        self.normalize = PixelNorm()
        self.layers = torch.nn.ModuleList(
            EqualizedLinear(a, b, lr_multiplier=0.01) for a, b in zip(sizes[:-1], sizes[1:]))

    def forward(self, z):
        x = self.normalize(z)
        for layer in self.layers:
            x = leaky_relu(layer(x))
        return x


class SynthesisBlock(torch.nn.Module):
    """Two style layers at one resolution; all but the first block begin by doubling it.

    Paper:  figure 1b right, one grey box. In the 4x4 block the learned constant stands in place of
            the first convolution.
    Shapes: x [N, in_channels, R/2, R/2], ws [N, 2, S] -> [N, out_channels, R, R]; x is None for
            the 4x4 block.
    Differs: the bias is part of the convolution here, so it is added before the noise and not
            after. It is the same sum.
    Proved: tests/test_models.py::test_images_equal_the_official_ones_at_every_lod
    """

    def __init__(self, resolution, in_channels, out_channels, style_dim):
        super().__init__()
        if resolution == 4:
            self.const = LearnedConstant(out_channels)
        else:
            self.conv0 = EqualizedConv2d(in_channels, out_channels, resample="up")
        self.noise0 = NoiseInput(out_channels, resolution)
        self.adain0 = AdaIN(style_dim, out_channels)
        self.conv1 = EqualizedConv2d(out_channels, out_channels)
        self.noise1 = NoiseInput(out_channels, resolution)
        self.adain1 = AdaIN(style_dim, out_channels)

    def forward(self, x, ws, noise_mode):
        x = self.const(len(ws)) if x is None else self.conv0(x)
        x = self.noise0(x, noise_mode)
        x = leaky_relu(x)
        x = self.adain0(x, ws[:, 0])

        x = self.conv1(x)
        x = self.noise1(x, noise_mode)
        x = leaky_relu(x)
        x = self.adain1(x, ws[:, 1])
        return x


class SynthesisNetwork(torch.nn.Module):
    """ws to images, block by block from 4x4 up.

    Paper:  figure 1b; growing: ProGAN, figure 2.
    Shapes: ws [N, L, S] -> images [N, 3, resolution, resolution]; L may be larger than needed.
    Growing: only the blocks up to `resolution` are computed. While the last of them is new, alpha
            < 1, its picture is blended with that of the block before, enlarged:
            alpha * new + (1 - alpha) * old. alpha = 0 is the smaller network, pixel for pixel.
    Known:  each resolution was an output once, and its block keeps the habit of making details at
            places that fit its own pixels. So teeth and eyes may stick to places while the face
            turns. StyleGAN2 (arXiv 1912.04958, section 4) shows it, and trains without growing.
    Proved: tests/test_models.py::test_images_equal_the_official_ones_at_every_lod,
            ::test_alpha_0_is_the_smaller_network_and_bigger_blocks_cost_nothing
    """

    def __init__(self, resolution, channel_base=8192, channel_max=512, style_dim=512):
        super().__init__()
        self.resolution = resolution
        self.blocks = torch.nn.ModuleDict()
        self.to_rgb = torch.nn.ModuleDict()
        in_channels = None
        for r in resolutions_up_to(resolution):
            channels = channels_at(r, channel_base, channel_max)
            self.blocks[str(r)] = SynthesisBlock(r, in_channels, channels, style_dim)
            self.to_rgb[str(r)] = EqualizedConv2d(channels, 3, kernel_size=1, gain=1.0)
            in_channels = channels

    def forward(self, ws, resolution=None, alpha=1.0, noise_mode="random"):
        resolution = self.resolution if resolution is None else resolution
        if str(resolution) not in self.blocks:
            raise ValueError(f"this network makes images of {', '.join(self.blocks)} px, "
                             f"not of {resolution}")
        x, before = None, None
        for k, r in enumerate(resolutions_up_to(resolution)):
            before = x
            x = self.blocks[str(r)](x, ws[:, 2 * k:2 * k + 2], noise_mode)
        images = self.to_rgb[str(resolution)](x)
        if alpha < 1 and resolution > 4:
            old = self.to_rgb[str(resolution // 2)](before)
            old = F.interpolate(old, scale_factor=2, mode="nearest")
            images = torch.lerp(old, images, alpha)
        return images


# ---- 1, in StyleGAN2: a picture as a sum -----------------------------------------------------


class SkipSynthesisBlock(torch.nn.Module):
    """Two style layers at one resolution, the first of which doubles it; at 4x4 px only one.

    Compare: `SynthesisBlock`. An AdaIN, the convolution behind it, noise and leaky ReLU have become
            one `ModulatedConv2d`, which takes that AdaIN's w. The constant's bias, noise and
            normalization are left out; the paper saw no drawback (section 2.1).
    Paper:  StyleGAN2, figure 2d.
    Shapes: x [N, in_channels, R/2, R/2], ws [N, 2, S] -> [N, out_channels, R, R]; x is None for
            the 4x4 block, and ws [N, 1, S].
    """

    def __init__(self, resolution, in_channels, out_channels, style_dim):
        super().__init__()
        if resolution == 4:
            self.const = torch.nn.Parameter(normal(1, out_channels, 4, 4))
        else:
            self.conv0 = ModulatedConv2d(in_channels, out_channels, style_dim, resolution, up=True)
        self.conv1 = ModulatedConv2d(out_channels, out_channels, style_dim, resolution)

    def forward(self, x, ws, noise_mode):
        if x is None:
            x = self.const.repeat(len(ws), 1, 1, 1)
        else:
            x = self.conv0(x, ws[:, 0], noise_mode)
        return self.conv1(x, ws[:, -1], noise_mode)


class SkipSynthesisNetwork(torch.nn.Module):
    """ws to images: every block adds its colours to the enlarged picture of those before.

    Compare: `SynthesisNetwork` shows what its last block made, and growing lets it learn the coarse
            before the fine. But a block that was once the last one had to make all detail, at
            places that fit its own pixels, and keeps to them. Here all blocks are there from the
            start, and all of them draw: the coarse ones lead at first, by themselves, and the fine
            ones take over later (section 4, figures 7 and 8). So nothing fades.
    Paper:  StyleGAN2, section 4.1, figure 7b (output skips).
    Shapes: as `SynthesisNetwork`. A smaller resolution gives the sum so far; alpha must be 1.
    Styles: to_rgb takes the w of the next block's first layer. So there are as many as in StyleGAN.
    Errors: ValueError for a resolution without a block, or another alpha.
    Proved: tests/test_models.py::test_stylegan2_images_equal_the_official_ones,
            ::test_every_stylegan2_layer_takes_its_own_w
    """

    def __init__(self, resolution, channel_base=16384, channel_max=512, style_dim=512):
        super().__init__()
        self.resolution = resolution
        self.blocks = torch.nn.ModuleDict()
        self.to_rgb = torch.nn.ModuleDict()
        in_channels = None
        for r in resolutions_up_to(resolution):
            channels = channels_at(r, channel_base, channel_max)
            self.blocks[str(r)] = SkipSynthesisBlock(r, in_channels, channels, style_dim)
            self.to_rgb[str(r)] = ModulatedToRGB(channels, style_dim)
            in_channels = channels

    def forward(self, ws, resolution=None, alpha=1.0, noise_mode="random"):
        resolution = self.resolution if resolution is None else resolution
        if str(resolution) not in self.blocks or alpha != 1:
            raise ValueError(f"this network makes images of {', '.join(self.blocks)} px with "
                             f"alpha 1, not of {resolution} with alpha {alpha}")
        x, images = None, None
        for k, r in enumerate(resolutions_up_to(resolution)):
            x = self.blocks[str(r)](x, ws[:, max(0, 2 * k - 1):2 * k + 1], noise_mode)
            colours = self.to_rgb[str(r)](x, ws[:, 2 * k + 1])
            images = colours if images is None else upsample_fir(images) + colours
        return images


class Generator(torch.nn.Module):
    """z to images: mapping, then style mixing and truncation, then synthesis.

    Shapes: z [N, latent_dim] -> images [N, 3, resolution, resolution]; or z [N, K, latent_dim]
            with style_index [N, L], values 0..K-1: layer l of image n takes its style from z[n, k]
            with k = style_index[n, l]. `StyleMixer` in stylegan_dataloader.py draws these.
    Options: truncation_psi, truncation_cutoff: see `truncate`. resolution, alpha, noise_mode: see
            `SynthesisNetwork` and `NoiseInput`.
    State:  w_avg [S], the running mean of w, the centre that `truncate` pulls to. It follows every
            call in train() mode by w_avg <- 0.995 w_avg + 0.005 mean(w of each image's first z), as
            in the official code; never in eval() mode.
    Proved: tests/test_models.py::test_style_mixing_takes_each_layers_style_from_its_z,
            ::test_w_avg_follows_in_training_only
    """

    def __init__(self, resolution, channel_base=8192, channel_max=512, latent_dim=512,
                 style_dim=512, mapping_dim=512, mapping_layers=8, w_avg_beta=0.995):
        super().__init__()
        self.latent_dim = latent_dim
        self.w_avg_beta = w_avg_beta
        self.mapping = MappingNetwork(latent_dim, style_dim, mapping_dim, mapping_layers)
        self.synthesis = SynthesisNetwork(resolution, channel_base, channel_max, style_dim)
        self.register_buffer("w_avg", torch.zeros(style_dim))

    def forward(self, z, style_index=None, truncation_psi=1.0, truncation_cutoff=None,
                noise_mode="random", resolution=None, alpha=1.0):
        resolution = self.synthesis.resolution if resolution is None else resolution
        ws = self.styles(z, style_index, num_style_layers(resolution))
        ws = self.truncate(ws, truncation_psi, truncation_cutoff)
        return self.synthesis(ws, resolution, alpha, noise_mode)

    def styles(self, z, style_index, layers):
        """z and style rows, shapes as above -> ws [N, layers, S]: mapping and style mixing."""
        if z.shape[-1] != self.latent_dim or z.dim() not in (2, 3):
            raise ValueError(f"z must be [N, {self.latent_dim}] or [N, K, {self.latent_dim}], "
                             f"got {list(z.shape)}")
        if z.dim() == 2:
            z = z[:, None]                                                 # [N, 1, latent]
        w = self.mapping(z.flatten(0, 1)).unflatten(0, z.shape[:2])        # [N, K, S]
        if self.training:
            with torch.no_grad():
                self.w_avg.lerp_(w[:, 0].mean(dim=0), 1 - self.w_avg_beta)
        if style_index is None:
            return w[:, :1].expand(-1, layers, -1)                         # [N, L, S]
        return self.pick_styles(w, style_index, layers)

    def pick_styles(self, w, style_index, layers):
        """w [N, K, S], style_index [N, L or more] -> ws [N, L, S]: each layer's style of the K.

        Errors: ValueError if style_index has fewer columns than there are layers.
        """
        if style_index.dim() != 2 or style_index.shape[1] < layers:
            raise ValueError(f"style_index must be [N, {layers}], one column a style layer, "
                             f"got {list(style_index.shape)}")
        # w.gather would say the same. But on a GPU its gradient adds up in an order that varies
        # (torch.use_deterministic_algorithms lists it): a repeated run would differ in last bits.
        pick = F.one_hot(style_index[:, :layers], w.shape[1]).to(w.dtype)  # [N, L, K]
        return (pick[:, :, :, None] * w[:, None]).sum(dim=2)

    def truncate(self, ws, psi=1.0, cutoff=None):
        """Pull ws towards the average face: w_avg + psi (ws - w_avg) in the first `cutoff` layers.

        Why:    rare faces are learned from few pictures and look it; psi < 1 trades variety for
                quality. psi = 0 is the average face, psi < 0 lies beyond it. A cutoff leaves the
                fine layers alone: they rarely fail, and detail keeps its variety.
        Paper:  section 2.1, appendix B and figure 8. The official default for showing images: 0.7,
                cutoff 8.
        Shapes: ws [N, L, S] -> [N, L, S]. cutoff None: all layers.
        Proved: tests/test_models.py::test_truncation_equals_the_official_one
        """
        if psi == 1:
            return ws
        psi_of_layer = torch.full((ws.shape[1], 1), float(psi), device=ws.device)  # [L, 1]
        if cutoff is not None:
            psi_of_layer[cutoff:] = 1.0
        return self.w_avg + psi_of_layer * (ws - self.w_avg)


class SkipGenerator(Generator):
    """StyleGAN2's G: a `Generator` with another synthesis network.

    Compare: mapping, style mixing, truncation and w_avg are those of StyleGAN, the same objects.
            Only the gain sqrt(2) reaches the biases of the mapping network, too: it stands behind
            the leaky ReLU, as in all layers of StyleGAN2.
    State:  w_avg; path_length_mean, a number, which `path_length_penalty` in stylegan_losses.py
            moves. It is a buffer, so that a resumed run goes on with it.
    Proved: tests/test_models.py::test_stylegan2_images_equal_the_official_ones
    """

    def __init__(self, resolution, channel_base=16384, channel_max=512, latent_dim=512,
                 style_dim=512, mapping_dim=512, mapping_layers=8):
        # The synthesis network of 4 px that this makes is replaced at once.
        super().__init__(4, channel_base, channel_max, latent_dim, style_dim, mapping_dim,
                         mapping_layers)
        self.synthesis = SkipSynthesisNetwork(resolution, channel_base, channel_max, style_dim)
        for layer in self.mapping.layers:
            layer.bias_scale *= LEAKY_GAIN
        self.register_buffer("path_length_mean", torch.zeros(()))


# ---- 2. The discriminator --------------------------------------------------------------------
#
# ProGAN's discriminator (its table 2), unchanged in StyleGAN but for the blur where it halves.


class FromRGB(EqualizedConv2d):
    """D's way in at one resolution: three colours to C features, 1x1 convolution and leaky ReLU.

    Shapes: images [N, 3, R, R] -> [N, C, R, R].
    """

    def __init__(self, channels):
        super().__init__(3, channels, kernel_size=1)

    def forward(self, images):
        return leaky_relu(super().forward(images))


class DiscriminatorBlock(torch.nn.Module):
    """Two convolutions at one resolution, the second of which halves it.

    Shapes: x [N, in_channels, R, R] -> [N, out_channels, R/2, R/2].
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv0 = EqualizedConv2d(in_channels, in_channels)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, resample="down")

    def forward(self, x):
        x = leaky_relu(self.conv0(x))
        return leaky_relu(self.conv1(x))


class DiscriminatorHead(torch.nn.Module):
    """The 4x4 block: compare the images of the batch, then give each its score.

    Paper:  ProGAN table 2 and section 3.
    Shapes: x [N, C, 4, 4] -> [N, 1]. Flattened in the order C, H, W.
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.minibatch_stddev = MinibatchStddev()
        self.conv = EqualizedConv2d(channels + 1, channels)
        self.dense0 = EqualizedLinear(channels * 4 * 4, hidden)
        self.dense1 = EqualizedLinear(hidden, 1, gain=1.0)

    def forward(self, x):
        x = leaky_relu(self.conv(self.minibatch_stddev(x)))
        x = leaky_relu(self.dense0(x.flatten(1)))
        return self.dense1(x)


class Discriminator(torch.nn.Module):
    """Images to a score: how real does each look?

    Shapes: images [N, 3, R, R] -> [N, 1], for any R of 4..resolution: R picks the block to enter.
    Growing: the mirror of `SynthesisNetwork`: alpha * (through the new block) + (1 - alpha) *
            (image averaged 2x2, straight into the block below). Nothing above R is computed.
    Units:  a score is any number; stylegan_losses.py says what is made of it.
    Errors: ValueError for images that are not square or of a size without a block.
    Proved: tests/test_models.py::test_scores_equal_the_official_ones_at_every_lod
    """

    def __init__(self, resolution, channel_base=8192, channel_max=512):
        super().__init__()
        self.resolution = resolution
        self.from_rgb = torch.nn.ModuleDict()
        self.blocks = torch.nn.ModuleDict()
        for r in resolutions_up_to(resolution):
            channels = channels_at(r, channel_base, channel_max)
            below = channels_at(r // 2, channel_base, channel_max)
            self.from_rgb[str(r)] = FromRGB(channels)
            self.blocks[str(r)] = (DiscriminatorHead(channels, hidden=below) if r == 4
                                   else DiscriminatorBlock(channels, below))

    def forward(self, images, alpha=1.0):
        r = images.shape[-1]
        if images.shape[-2] != r or str(r) not in self.blocks:
            raise ValueError(f"this network looks at square images of {', '.join(self.blocks)} "
                             f"px, not at {list(images.shape)}")
        x = self.from_rgb[str(r)](images)
        x = self.blocks[str(r)](x)
        if alpha < 1 and r > 4:
            old = self.from_rgb[str(r // 2)](F.avg_pool2d(images, 2))
            x = torch.lerp(old, x, alpha)
        while r > 4:
            r //= 2
            x = self.blocks[str(r)](x)
        return x


# ---- 2, in StyleGAN2: residual blocks --------------------------------------------------------


class ResidualBlock(torch.nn.Module):
    """`DiscriminatorBlock`, and beside it a short way: halved, and one 1x1 convolution.

    Compare: a deep network learns faster if each block only has to add something to what comes by
            (He et al. 2015, arXiv 1512.03385). On FFHQ the best pair that was tried has this as
            its D, and as its G the one with skips to the picture (StyleGAN2, table 2).
    Shapes: x [N, in_channels, R, R] -> [N, out_channels, R/2, R/2].
    Units:  the sum of two signals of size 1 has the size sqrt(2), which is divided out.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv0 = ActivatedConv2d(in_channels, in_channels)
        self.conv1 = ActivatedConv2d(in_channels, out_channels, resample="down")
        self.skip = EqualizedConv2d(in_channels, out_channels, kernel_size=1, gain=1.0)
        self.skip.bias = None

    def forward(self, x):
        short = self.skip(downsample_fir(x))
        x = self.conv0(x)
        x = self.conv1(x)
        return (x + short) * 0.5 ** 0.5


class ResidualHead(DiscriminatorHead):
    """The 4x4 block. Compare: `DiscriminatorHead`, the same but for where the gain sqrt(2) is."""

    def __init__(self, channels, hidden):
        super().__init__(channels, hidden)
        self.conv = ActivatedConv2d(channels + 1, channels)
        self.dense0 = EqualizedLinear(channels * 4 * 4, hidden, gain=1.0)

    def forward(self, x):
        x = self.conv(self.minibatch_stddev(x))
        x = leaky_relu(self.dense0(x.flatten(1)), gain=LEAKY_GAIN)
        return self.dense1(x)


class ResidualDiscriminator(torch.nn.Module):
    """Images to a score, as `Discriminator`.

    Compare: one way in, from_rgb at the final resolution, since nothing grows; residual blocks.
    Paper:  StyleGAN2, section 4.1, figure 7c.
    Shapes: images [N, 3, R, R] with R the final resolution -> [N, 1].
    Errors: ValueError for images of another size, or an alpha other than 1.
    Proved: tests/test_models.py::test_stylegan2_scores_equal_the_official_ones
    """

    def __init__(self, resolution, channel_base=16384, channel_max=512):
        super().__init__()
        self.resolution = resolution
        self.from_rgb = torch.nn.ModuleDict({str(resolution): ActivatedConv2d(
            3, channels_at(resolution, channel_base, channel_max), kernel_size=1)})
        self.blocks = torch.nn.ModuleDict()
        for r in resolutions_up_to(resolution):
            channels = channels_at(r, channel_base, channel_max)
            below = channels_at(r // 2, channel_base, channel_max)
            self.blocks[str(r)] = (ResidualHead(channels, hidden=below) if r == 4
                                   else ResidualBlock(channels, below))

    def forward(self, images, alpha=1.0):
        r = images.shape[-1]
        if images.shape[-2] != r or r != self.resolution or alpha != 1:
            raise ValueError(f"this network looks at square images of {self.resolution} px with "
                             f"alpha 1, not at {list(images.shape)} with alpha {alpha}")
        x = self.from_rgb[str(r)](images)
        while r > 4:
            x = self.blocks[str(r)](x)
            r //= 2
        return self.blocks["4"](x)


# ---- 3. From settings to networks ------------------------------------------------------------

# What a checkpoint must say for its networks to be built again.
SETTINGS = ("resolution", "channel_base", "channel_max",
            "latent_dim", "style_dim", "mapping_dim", "mapping_layers")


def make_generator(settings):
    """A new G from the settings of a checkpoint, a dict with the keys SETTINGS and "architecture".

    architecture: "stylegan" (where none is named) or "stylegan2".
    """
    stylegan2 = settings.get("architecture") == "stylegan2"
    G = (SkipGenerator if stylegan2 else Generator)(**{key: settings[key] for key in SETTINGS})
    return clamp_features(G, settings)


def make_discriminator(settings):
    """A new D from the same dict."""
    stylegan2 = settings.get("architecture") == "stylegan2"
    D = (ResidualDiscriminator if stylegan2 else Discriminator)(
        *(settings[key] for key in SETTINGS[:3]))
    return clamp_features(D, settings)


def clamp_features(network, settings):
    """Put a limit around the layers of networks that were trained with one ("conv_clamp").

    StyleGAN2-ADA trains in float16, whose largest number is 65,504, and cuts off what these layers
    give at 256, in both networks. Its files were trained and are imported so. Ours have no limit.
    """
    limit = settings.get("conv_clamp")
    if limit:
        for module in network.modules():
            if isinstance(module, (ModulatedConv2d, ModulatedToRGB, ActivatedConv2d)):
                module.register_forward_hook(lambda module, inputs, x: x.clamp(-limit, limit))
    return network
