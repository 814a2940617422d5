"""stylegan_layers.py: the parts a StyleGAN is bolted together from.   (5th in the reading order)

Read before: stylegan_models.py, which wires these parts up.     Read next: convert_resolution.py
Paper:   Karras et al. 2019, "StyleGAN" (arXiv 1812.04948), section 2; the parts it inherits:
         Karras et al. 2018, "ProGAN" (arXiv 1710.10196), sections 3 and 4; what became of them:
         Karras et al. 2020, "StyleGAN2" (arXiv 1912.04958), section 2 and appendix B.
Needs:   torch, any device. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; C channels (I in, O out of a convolution); H, W rows and columns of
         pixels; S size of w; k side of a convolution kernel. z is what the mapping network gets and
         w what it makes of it.

What the paper is about comes first, what it inherits comes after:
  1. a style layer         LearnedConstant, NoiseInput, AdaIN
  2. equalized weights     EqualizedLinear, EqualizedConv2d
  3. blur-in-conv          how EqualizedConv2d doubles and halves the resolution
  4. two normalizers       PixelNorm (before the mapping network), MinibatchStddev (in D)

Under parts 1 and 3 stands what StyleGAN2 puts in their place, each with its `Compare:`. It may be
passed by at a first reading: nothing of StyleGAN needs it.
"""

import math

import torch
import torch.nn.functional as F

# Operations whose gradients are written by hand, for speed. How, and what `fir` does, stands in
# workshop/fast_gradients.py; what the others compute is said where StyleGAN uses them.
from workshop.fast_gradients import (
    add_noise, blur, box_mean, box_sum, convolve, fir, leaky_relu, normalize_and_style)


def normal(*shape, std=1.0):
    """N(0, std^2) numbers; none on the meta device, where networks have shapes and no memory."""
    x = torch.empty(shape)
    return x if x.is_meta else x.normal_(std=std)


# ---- 1. A style layer ------------------------------------------------------------------------
#
# Figure 1b of the paper, from top to bottom: a constant; then, 18 times at 1024 px, noise ("B" in
# the figure), a leaky ReLU (appendix C; not drawn in the figure) and AdaIN with a style ("A"), all
# but the first behind a convolution.


class LearnedConstant(torch.nn.Module):
    """The input of the synthesis network: one learned 4x4 picture of C channels.

    Why:    in earlier GANs z was the input. Here styles and noise say all that differs between two
            images, so the input may be the same for all of them.
    Paper:  section 2; table 1, row D ("remove traditional input").
    Shapes: n -> [n, C, 4, 4]. It has a batch axis from the start: without one, the noise that is
            added to it next would be the same for all images of a batch.
    Units:  starts as ones; the bias [C] starts at 0.
    Proved: tests/test_layers.py::test_learned_constant_has_a_batch_axis
    """

    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, channels, 4, 4))
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, n):
        return (self.weight + self.bias[:, None, None]).repeat(n, 1, 1, 1)


class NoiseInput(torch.nn.Module):
    """Add a random map to all channels, each channel with its own learned strength.

    Why:    where exactly each hair and pore lies is chance. Without noise G would have to make
            something like chance out of w, which costs capacity and shows as repeating patterns.
            Each layer has an input of its own, so none has to hand noise on (section 3.2).
    And pose? A style scales whole channels: it changes the image everywhere alike. Noise differs
            from pixel to pixel. If it decided on pose, no two pixels would agree, and D would see
            it. So styles learn what is global, noise what is local chance (section 3.3).
    Paper:  figure 1b, "B"; figures 4 and 5. ONE map per image is shared by all channels.
    Shapes: x [N, C, R, R] -> the same; const [1, 1, R, R]; strength [C].
    Units:  the map is N(0, 1); the strength starts at 0, so noise enters only where it helps.
    Modes:  "random": a fresh map per image; "const": the stored map, the same for all images and
            calls; "none": no noise.
    Errors: ValueError for another mode.
    Proved: tests/test_layers.py::test_noise_is_one_map_shared_by_all_channels
    """

    def __init__(self, channels, resolution):
        super().__init__()
        self.strength = torch.nn.Parameter(torch.zeros(channels))
        self.register_buffer("const", normal(1, 1, resolution, resolution))

    def forward(self, x, mode="random"):
        if mode == "none":
            return x
        if mode == "random":
            noise = torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device)
        elif mode == "const":
            noise = self.const
        else:
            raise ValueError(f'noise_mode must be "random", "const" or "none", got {mode!r}')
        return add_noise(x, noise, self.strength)      # x + strength [C] * noise [N or 1, 1, R, R]


class AdaIN(torch.nn.Module):
    """Adaptive instance normalization: forget the old style, write the new one.

        AdaIN(x_i, y) = y_s,i (x_i - mean(x_i)) / std(x_i) + y_b,i        (equation 1)

    Why:    x_i, channel i of one image, is a picture of one feature. Its mean and size say how much
            of it there is: they are taken away, and w says what they shall be. Where the feature
            lies stays as it is. Since each AdaIN writes mean and size anew, a style rules over one
            convolution only, and the styles of two images can be mixed (section 3).
    Paper:  section 2, equation 1. `style` is the learned affine map "A" of figure 1b.
    Shapes: x [N, C, H, W], w [N, S] -> [N, C, H, W].
    Units:  mean and std are taken over the pixels of a channel. `style` gives y_s - 1 and y_b; its
            bias starts at 0, so y_s starts around 1 and y_b around 0 (appendix C).
    Known:  how large channels are beside each other is lost. G learns to smuggle it through: one
            strong spike makes up a channel's size, and the rest stays as G wants. The spikes are
            seen as droplets. StyleGAN2 (arXiv 1912.04958, section 2) replaces AdaIN for them.
    Proved: tests/test_layers.py::test_adain_gives_each_channel_the_mean_and_std_that_w_asks_for,
            ::test_adain_forgets_the_size_and_keeps_the_place
    """

    def __init__(self, style_dim, channels):
        super().__init__()
        self.style = EqualizedLinear(style_dim, 2 * channels, gain=1.0)

    def forward(self, x, w):
        y_s, y_b = self.style(w)[:, :, None, None].chunk(2, dim=1)         # [N, C, 1, 1] each
        return normalize_and_style(x, y_s + 1, y_b)    # (x - mean) / std * (y_s + 1) + y_b


# ---- 1, in StyleGAN2: a style layer without AdaIN --------------------------------------------


def modulated_convolution(x, weight, style, demodulate=True, up=False, modulate="images"):
    """A convolution with another kernel for each image: the style scales its input channels.

    Compare: AdaIN looks at an image, takes its size away, and writes another. Here nobody looks.
            The style says how strong each input channel shall be (modulation). How large the result
            is then to be expected, for inputs that are independent and of size 1, follows from the
            kernel alone, and it is divided by that (demodulation). A spike in the image does not
            change this number. So G cannot smuggle anything through, and makes no droplets.
    Paper:  StyleGAN2, section 2.2, equations 1 and 3: w' = s_i w; w'' = w' / sqrt(sum w'^2 + eps).
    Shapes: x [N, I, H, W], weight [O, I, k, k], style [N, I] -> [N, O, H, W]; [N, O, 2H, 2W] if up.
    Units:  the kernel is weight / sqrt(k*k*I); eps is 1e-8. After demodulation, sizes are 1 again.
    How:    modulate="kernels" is what the paper says: a kernel for each image, and one convolution
            in N groups. modulate="images" is what the networks use, the same numbers from less
            work: scaling a kernel's inputs is scaling the image's channels, and demodulation, one
            number for each output channel, can be applied to the result. So one kernel serves all.
            [MACHINE] one core of a server CPU, 512 channels, batch 16: the kernels take 3 times as
            long at 8, 16 and 32 px, and 5 to 8 times under path length; 1x1 layers 5 to 7 times
            (rerun: python experiments/benchmark.py modulation).
    Proved: tests/test_layers.py::test_both_forms_of_modulation_agree_with_all_derivatives,
            ::test_demodulation_expects_inputs_of_size_1_and_does_not_look_at_them
    """
    scale = 1 / math.sqrt(weight[0].numel())
    size = torch.ones(1, 1, device=x.device)
    if demodulate:
        squares = (weight * scale).square().sum(dim=(2, 3))                # [O, I]
        size = torch.rsqrt(F.linear(style.square(), squares) + 1e-8)       # [N, O]
    if modulate == "kernels":
        n, i, h, w = x.shape
        kernels = scale * weight * style[:, None, :, None, None] * size[:, :, None, None, None]
        x = x.reshape(1, n * i, h, w)                                      # images as channels
        if up:
            kernels = kernels.flip(3, 4).transpose(1, 2).flatten(0, 1)     # [N*I, O, k, k]
            x = fir(F.conv_transpose2d(x, kernels, stride=2, groups=n), border=1, gain=4)
        else:
            x = F.conv2d(x, kernels.flatten(0, 1), padding=weight.shape[2] // 2, groups=n)
        return x.unflatten(1, (n, -1))[0]
    x = x * style[:, :, None, None].to(x.dtype)
    x = upsample_conv_fir(x, weight, scale) if up else convolve(x, weight, scale=scale)
    return x * size[:, :, None, None].to(x.dtype)


class ModulatedConv2d(torch.nn.Module):
    """A style layer of StyleGAN2: modulated convolution, noise, bias, leaky ReLU.

    Compare: in StyleGAN, noise and bias were added to what the last style had made large or small,
            so they counted the less, the larger that style was. Here they come after demodulation,
            where sizes are 1, and count as much for every w (section 2.1). The noise has one
            strength for all channels. The gain sqrt(2) stands behind the leaky ReLU and not in the
            weights, so the bias gets it, too. (Both as in the official code.)
    Paper:  StyleGAN2, figure 2d, one grey box.
    Shapes: x [N, I, H, W], w [N, S] -> [N, O, R, R]; R is 2H if up, else H.
    Units:  weight is stored N(0, 1); bias and noise strength start at 0, the style around 1.
    Proved: tests/test_models.py::test_stylegan2_images_equal_the_official_ones
    """

    def __init__(self, in_channels, out_channels, style_dim, resolution, up=False):
        super().__init__()
        self.up = up
        self.style = new_style(style_dim, in_channels)
        self.weight = torch.nn.Parameter(normal(out_channels, in_channels, 3, 3))
        self.noise = NoiseInput(1, resolution)
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))

    def forward(self, x, w, noise_mode):
        x = modulated_convolution(x, self.weight, self.style(w), up=self.up)
        x = self.noise(x, noise_mode)
        x = x + self.bias.to(x.dtype)[:, None, None]
        return leaky_relu(x, gain=LEAKY_GAIN)


class ModulatedToRGB(torch.nn.Module):
    """Channels to three colours, 1x1.

    Compare: StyleGAN's was a plain `EqualizedConv2d`. Without an AdaIN before it, it needs a style
            of its own. It is not demodulated: the size of the result is how bright the picture is,
            and no convolution follows that would want inputs of size 1.
    Shapes: x [N, C, R, R], w [N, S] -> [N, 3, R, R].
    """

    def __init__(self, channels, style_dim):
        super().__init__()
        self.style = new_style(style_dim, channels)
        self.weight = torch.nn.Parameter(normal(3, channels, 1, 1))
        self.bias = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x, w):
        x = modulated_convolution(x, self.weight, self.style(w), demodulate=False)
        return x + self.bias[:, None, None]


def new_style(style_dim, channels):
    """The affine map "A": w [N, S] -> [N, channels], around 1 at the start."""
    style = EqualizedLinear(style_dim, channels, gain=1.0)
    torch.nn.init.ones_(style.bias)
    return style


# ---- 2. Equalized weights --------------------------------------------------------------------
#
# The usual way to start a layer is to draw its weights from N(0, gain^2 / fan_in), fan_in being the
# number of inputs that one output adds up. ProGAN draws them from N(0, 1) and multiplies by the
# constant gain / sqrt(fan_in) at run time. The function is the same; what changes is Adam, which
# moves every stored number by about the learning rate per step. With the usual start that is a
# larger part of the small weights of a layer with large fan_in. Here all stored weights are about
# 1, so the weights of all layers change at the same relative speed: equalized learning rate.
#
# The mapping network learns at 1/100 of it: deep ones were unstable at high rates (appendix C). The
# same trick does it. Its weights are stored 100 times as large and used times lr_multiplier = 0.01,
# so that one Adam with one learning rate serves the whole generator.
#
# The gain makes up for the leaky ReLU that follows. It keeps (1 + 0.2^2)/2 = 0.52 of the mean
# square of an input that is N(0, 1), about half; weights sqrt(2) times as large give it back (He
# et al. 2015, arXiv 1502.01852), and the signal keeps its size over many layers. Where no leaky
# ReLU follows, gain is 1.
# Proved: tests/test_layers.py::test_gain_sqrt_2_keeps_the_signal_alive_through_leaky_relus

LEAKY_GAIN = math.sqrt(2)


class EqualizedLinear(torch.nn.Module):
    """A fully connected layer whose weights are scaled at run time.

    Paper:  ProGAN section 4.1; the lr multiplier: StyleGAN appendix C.
    Shapes: x [N, in_features] -> [N, out_features]; weight [out_features, in_features].
    Units:  weight is stored as N(0, 1/lr_multiplier^2) and used times
            gain / sqrt(in_features) * lr_multiplier; bias starts at 0, used times lr_multiplier.
    Errors: torch's own, when x has another number of features.
    Proved: tests/test_layers.py::test_equalized_linear_is_a_scaled_linear_layer,
            ::test_one_adam_step_moves_the_function_by_lr_multiplier
    """

    def __init__(self, in_features, out_features, gain=LEAKY_GAIN, lr_multiplier=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(normal(out_features, in_features, std=1 / lr_multiplier))
        self.bias = torch.nn.Parameter(torch.zeros(out_features))
        self.weight_scale = gain / math.sqrt(in_features) * lr_multiplier
        self.bias_scale = lr_multiplier

    def forward(self, x):
        # (s x) W is x (s W). x is scaled, since in most layers it has fewer numbers than W.
        return F.linear(x * self.weight_scale, self.weight, self.bias * self.bias_scale)


class EqualizedConv2d(torch.nn.Module):
    """A convolution with equalized weights that can also double or halve the resolution.

    Paper:  ProGAN section 4.1; resampling: part 3 below.
    Shapes: x [N, I, H, W] -> [N, O, H, W], or [N, O, 2H, 2W] with resample="up", or
            [N, O, H/2, W/2] with "down"; weight [O, I, k, k], bias [O].
    Units:  weight is stored N(0, 1) and used times gain / sqrt(k*k*I).
            bias starts at 0 and is added last, so after the blur. (Added before, the zeros beyond
            the border would weaken it along all edges.)
    Errors: ValueError for an unknown `resample`, or resampling with a kernel that is not 3x3.
    Proved: tests/test_layers.py::test_equalized_conv_is_a_scaled_conv_also_when_it_resamples
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, gain=LEAKY_GAIN, resample=None):
        super().__init__()
        if resample not in (None, "up", "down"):
            raise ValueError(f'resample must be None, "up" or "down", got {resample!r}')
        if resample is not None and kernel_size != 3:
            raise ValueError(f"resampling needs a 3x3 kernel, got kernel_size={kernel_size}")
        self.resample = resample
        self.weight = torch.nn.Parameter(
            normal(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))
        self.weight_scale = gain / math.sqrt(kernel_size * kernel_size * in_channels)

    def forward(self, x):
        if self.resample == "up":
            return upsample_conv_blur(x, self.weight, self.bias, self.weight_scale)
        if self.resample == "down":
            return blur_conv_downsample(x, self.weight, self.bias, self.weight_scale)
        # convolve is F.conv2d with the kernel weight * scale; k = 1 and 3 keep the resolution.
        return convolve(x, self.weight, self.bias, scale=self.weight_scale)


# ---- 3. Blur-in-conv -------------------------------------------------------------------------
#
# G doubles the resolution in front of a convolution and D halves it behind one. There both blur,
# with the weights [1, 2, 1] / 4 in each direction (appendix C): without a blur, detail finer than
# the coarser grid can hold turns into false patterns (Zhang 2019). In the official code's order:
#
#     up:    nearest-neighbour x2  ->  3x3 convolution  ->  blur
#     down:  blur  ->  3x3 convolution  ->  mean of every 2x2 pixels
#
# The paper calls this bilinear sampling (table 1, row B), and it is: nearest neighbour makes (x0 x0
# x1 x1), and the blur of that is (.. 3/4 x0 + 1/4 x1, 1/4 x0 + 3/4 x1 ..), points on a straight
# line between x0 and x1. Only the border differs: beyond it the blur sees zeros.
# Proved: tests/test_layers.py::test_nearest_neighbour_and_blur_are_bilinear
#
# All three operations are linear and the same at every pixel, so they may change places. That saves
# three quarters of the work.
#
# Step 1, down. The mean of 2x2 is a small filter (each pixel with its right and lower neighbours, a
#   box) of which every second result is kept. Take the box first, and compute the convolution only
#   where its result is kept: 9 multiplications per pixel of the small result instead of 36.
#
#     down:  blur  ->  box (mean of 2x2 neighbours)  ->  3x3 convolution with stride 2
#
# Step 2, up. Nearest-neighbour x2 is a box, too: spread the pixels over a grid of double size, with
#   zeros between, and copy each one to its right and lower neighbours. Take the box last. Then the
#   convolution sees mostly zeros, and a transposed convolution with stride 2 leaves them out:
#
#     up:    3x3 transposed convolution with stride 2  ->  box (sum of 2x2 neighbours)  ->  blur
#
#   (It writes with its kernel where a convolution reads with it. So the kernel is turned by 180
#   degrees; the official weights of these layers are stored turned at 128 px and above.) It gives
#   2H + 1 rows, of which the box makes 2H: nothing is cut off, nothing leaks in at the border.
#
# Box and blur can also be multiplied into the kernel. That is slower: workshop/fast_gradients.py,
# part 5, has the forms and the times.
# Proved: tests/test_layers.py::test_blur_in_conv_equals_the_plain_twin_border_included,
#         ::test_nine_multiplications_per_pixel_instead_of_36


def upsample_conv_blur_plain(x, weight):
    """The readable twin, for the tests. x [N, I, H, W], weight [O, I, 3, 3] -> [N, O, 2H, 2W]."""
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    return blur(convolve(x, weight))


def blur_conv_downsample_plain(x, weight):
    """The readable twin, for the tests. x [N, I, 2H, 2W], weight [O, I, 3, 3] -> [N, O, H, W]."""
    return F.avg_pool2d(convolve(blur(x), weight), 2)


def upsample_conv_blur(x, weight, bias=None, scale=1.0):
    """Step 2, what G does. Shapes as in the plain twin; bias [O]; the kernel is weight * scale."""
    turned = weight.flip(2, 3).transpose(0, 1)                             # [I, O, 3, 3]
    x = convolve(x, turned, stride=2, up=True, padding=0, scale=scale)     # [N, O, 2H+1, 2W+1]
    x = blur(box_sum(x))                                                   # [N, O, 2H, 2W]
    return x if bias is None else x.add_(bias.to(x.dtype)[:, None, None])


def blur_conv_downsample(x, weight, bias=None, scale=1.0):
    """Step 1, what D does. Shapes as in the plain twin; bias [O]; the kernel is weight * scale."""
    x = box_mean(blur(x))                                                  # [N, I, 2H+1, 2W+1]
    return convolve(x, weight, bias, stride=2, padding=0, scale=scale)     # [N, O, H, W]


# ---- 3, in StyleGAN2: box and blur in one ----------------------------------------------------
#
# StyleGAN's box [1, 1] and blur [1, 2, 1], one after the other, are the filter [1, 3, 3, 1]. So
# StyleGAN2 doubles and halves with the same weights. Only along the border its results differ:
# there the second of the two (going up the blur, going down the box) saw zeros beyond the first
# one's result, where the filter in one still finds what the first had made.
# Proved: tests/test_layers.py::test_fir_and_blur_differ_at_the_border_only


def upsample_conv_fir(x, weight, scale=1.0):
    """x [N, I, H, W], weight [O, I, 3, 3] -> [N, O, 2H, 2W]; the kernel is weight * scale.

    Compare: `upsample_conv_blur`, with one filter, [1,3,3,1] x [1,3,3,1] / 16, for its two.
    Proved: tests/test_layers.py::test_fir_resampling_against_zeros_and_loops
    """
    turned = weight.flip(2, 3).transpose(0, 1)                             # [I, O, 3, 3]
    x = convolve(x, turned, stride=2, up=True, padding=0, scale=scale)     # [N, O, 2H+1, 2W+1]
    return fir(x, border=1, gain=4)                                        # [N, O, 2H, 2W]


def upsample_fir(x):
    """x [N, C, H, W] -> [N, C, 2H, 2W] with [1,3,3,1]; the blur of nearest neighbours is just that.

    Proved: tests/test_layers.py::test_fir_resampling_against_zeros_and_loops
    """
    return blur(F.interpolate(x, scale_factor=2, mode="nearest"))


def downsample_fir(x):
    """x [N, C, 2H, 2W] -> [N, C, H, W] with [1,3,3,1] / 8: the 2x2 means of the blur are just that.

    Proved: as `upsample_fir`.
    """
    return F.avg_pool2d(blur(x), 2)


class ActivatedConv2d(EqualizedConv2d):
    """A layer of StyleGAN2's D: convolution, bias, leaky ReLU, all with one gain at the end.

    Compare: `EqualizedConv2d` had the gain in its weights. sqrt(2) leaky_relu(Wx + b) is
            leaky_relu(sqrt(2) Wx + sqrt(2) b), so the difference is that b gets it, too. It halves
            by `fir` in one, where the other did by blur and box.
    Shapes: x [N, I, H, W] -> [N, O, H, W], or [N, O, H/2, W/2] with resample="down".
    Proved: tests/test_models.py::test_stylegan2_scores_equal_the_official_ones
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, resample=None):
        super().__init__(in_channels, out_channels, kernel_size, 1.0, resample)

    def forward(self, x):
        if self.resample == "down":
            x = fir(x, border=2)                                           # [N, I, H+1, W+1]
            x = convolve(x, self.weight, self.bias, 2, padding=0, scale=self.weight_scale)
        else:
            x = convolve(x, self.weight, self.bias, scale=self.weight_scale)
        return leaky_relu(x, gain=LEAKY_GAIN)


# ---- 4. Two normalizers ----------------------------------------------------------------------


class PixelNorm(torch.nn.Module):
    """Give every feature vector the length sqrt(C), keeping its direction.

    Why:    |z| differs from draw to draw by luck, and should not choose the face.
    Paper:  ProGAN section 4.2: b = a / sqrt(mean_j(a_j^2) + eps). StyleGAN keeps it on z only.
    Shapes: x [N, C, ...] -> [N, C, ...]
    Units:  the mean square over C is 1, so the length is sqrt(C): 22.6 for C = 512, not 1.
    Errors: none; the zero vector stays zero, because eps keeps it finite.
    Proved: tests/test_layers.py::test_pixel_norm_gives_length_sqrt_c
    """

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class MinibatchStddev(torch.nn.Module):
    """Tell D how varied the batch is, as one more channel.

    Why:    D sees one image at a time and cannot tell that G makes the same face again and again.
            The spread of the features over a few images gives it away, so G must keep variety.
    Paper:  ProGAN section 3.
    Shapes: x [N, C, H, W] -> [N, C+1, H, W]; the new channel is last and has one value per group.
    Units:  image i belongs to group i mod M with M = ceil(N / 4): groups of 4, as in the official
            code, if N is a multiple of 4; else of 2 to 4, or all N. A lone image has the spread
            sqrt(1e-8).
    Differs: above 4, the official code refuses other N. ProGAN's paper compares the whole batch.
    Proved: tests/test_layers.py::test_minibatch_stddev_against_a_loop_for_every_batch_size
    """

    def forward(self, x):
        n = x.shape[0]
        groups = math.ceil(n / 4)                                          # M
        group_of = torch.arange(n, device=x.device) % groups               # [N]
        # Row m of `average` takes the mean over group m, so unequal groups need no special case.
        member = (group_of == torch.arange(groups, device=x.device)[:, None]).to(x.dtype)  # [M, N]
        average = member / member.sum(dim=1, keepdim=True)
        features = x.flatten(1)                                            # [N, C*H*W]
        # Back from groups to images: 0, 1, .., M-1, 0, 1, ... (Not by [group_of]: on a CPU its
        # gradient adds up in an order that varies, and a repeated run would differ in last bits.)
        times = math.ceil(n / groups)
        centred = features - (average @ features).repeat(times, 1)[:n]
        variance = average @ centred.square()                              # [M, C*H*W]
        spread = (variance + 1e-8).sqrt().mean(dim=1)                      # [M]
        extra = spread.repeat(times)[:n, None, None, None].expand(n, 1, *x.shape[2:])
        return torch.cat([x, extra], dim=1)
