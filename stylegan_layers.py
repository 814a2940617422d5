"""stylegan_layers.py: the parts a StyleGAN is bolted together from.   (4th in the reading order)

Read before: stylegan_models.py, which wires these parts up.     Read next: convert_resolution.py
Paper:   Karras et al. 2019 (arXiv 1812.04948), section 2; the parts it inherits from
         Karras et al. 2018, "ProGAN" (arXiv 1710.10196), sections 3 and 4.
Needs:   torch, any device. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; C channels (I in, O out of a convolution); H, W rows and columns of
         pixels; S size of w; k side of a convolution kernel. Images lie in [-1, 1].

The file goes from small to large:
  1. equalized weights     EqualizedLinear, and the scale that EqualizedConv2d shares with it
  2. blur-in-conv          resampling and blurring as part of a convolution, EqualizedConv2d
  3. what makes a style    LearnedConstant, NoiseInput, AdaIN
  4. two normalizers       PixelNorm (before the mapping network), MinibatchStddev (in D)
"""

import contextlib
import math

import torch
import torch.nn.functional as F

LEAKY_SLOPE = 0.2             # of every leaky ReLU in the three networks (ProGAN, appendix A)
# A leaky ReLU halves the energy of its input, roughly: E[lrelu(x)^2] = (1 + 0.2^2)/2 = 0.52 for
# x ~ N(0, 1). Weights sqrt(2) larger make up for it, so that the signal keeps its size over many
# layers (He et al. 2015). Layers that no leaky ReLU follows use gain 1.
# Proved: tests/test_layers.py::test_gain_sqrt_2_keeps_the_signal_alive_through_leaky_relus
LEAKY_GAIN = math.sqrt(2)


class _LeakyReLU(torch.autograd.Function):
    """A leaky ReLU that keeps less, with a gradient that knows that its own derivative is zero.

    The slope is 1 or 0.2, and the sign of the RESULT says which. The result is kept anyway, as the
    input of the next layer; so the input of this one need not be.
    Away from 0 the slope does not change with x, so R1, which differentiates the gradient, gets
    nothing from here. Autograd's own leaky ReLU gives it an image full of zeros instead, which is
    then added to other gradients: traffic without a purpose.
    """

    @staticmethod
    def forward(ctx, x):
        result = F.leaky_relu(x, LEAKY_SLOPE)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, grad):
        result, = ctx.saved_tensors
        return _LeakyReLUGradient.apply(grad, result)


class _LeakyReLUGradient(torch.autograd.Function):
    """grad, times the slope where `result` came from. Linear in grad, constant in result."""

    @staticmethod
    def forward(ctx, grad, result):
        ctx.save_for_backward(result)
        return torch.ops.aten.leaky_relu_backward(grad, result, LEAKY_SLOPE, True)

    @staticmethod
    def backward(ctx, grad):
        result, = ctx.saved_tensors
        return _LeakyReLUGradient.apply(grad, result), None


def leaky_relu(x):
    """x where positive, 0.2 x elsewhere; any shape.

    Proved: tests/test_layers.py::test_leaky_relu_and_its_derivatives_against_torch
    """
    return _LeakyReLU.apply(x)


# ---- 1. Equalized weights --------------------------------------------------------------------
#
# The usual way to start a layer is to draw its weights from N(0, gain^2 / fan_in). ProGAN draws
# them from N(0, 1) instead and multiplies by the constant gain / sqrt(fan_in) at run time. The
# function is the same; what changes is Adam. Adam moves every number by about the learning rate
# per step, whatever its gradient's size. With the usual start a layer of large fan_in has small
# weights, and the same step is a larger part of them; here every stored weight is about 1, so all
# layers learn at the same relative speed. Hence the name: equalized learning rate.
#
# The mapping network should learn 100 times slower ("we reduce the learning rate by two orders of
# magnitude", appendix C). The same trick does it: store the weights 100 times larger, N(0, 100^2),
# and multiply by lr_multiplier = 0.01 at run time. One Adam then serves the whole generator.


def normal(*shape, std=1.0):
    """N(0, std^2) numbers; on the meta device, where tensors have shapes only, none.

    (load_checkpoint builds its networks there. Drawing numbers that nobody can see would cost it
    0.8 s and 150 MB, for the Python code that PyTorch loads to pretend.)
    """
    x = torch.empty(shape)
    return x if x.is_meta else x.normal_(std=std)


class EqualizedLinear(torch.nn.Module):
    """A fully connected layer whose weights are scaled at run time.

    Why:    equal relative learning speed in all layers, and 1/100 of it in the mapping network.
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
        # (x s) W is x (s W), and x has fewer numbers than W.
        return F.linear(x * self.weight_scale, self.weight, self.bias * self.bias_scale)


# ---- 2. Blur-in-conv -------------------------------------------------------------------------
#
# The generator doubles the resolution in front of a convolution and the discriminator halves it
# behind one, and both smooth with a [1, 2, 1] blur where they do (StyleGAN section 2.1, after Zhang
# 2019: without the blur, detail finer than the coarser grid can hold turns into false patterns).
# Read literally, that is three operations each time:
#
#     up:    nearest-neighbour x2  ->  3x3 convolution  ->  blur
#     down:  blur  ->  3x3 convolution  ->  average of every 2x2 pixels
#
# `upsample_conv_blur_plain` and `blur_conv_downsample_plain` below are exactly these lines. They
# are the judge in the tests. But all three operations are linear and the same at every pixel:
# they are filters, which may change places, and several of which can be merged into one.
#
# Step 1, down. The average of 2x2 pixels is itself a small filter (every pixel with its right and
#   lower neighbours, a box) of which every second result is kept. Two filters may change places,
#   so take the box first; then the convolution need only be computed where its result is kept:
#
#     down:  blur  ->  box (mean of 2x2 neighbours)  ->  3x3 convolution with stride 2
#
#   9 multiplications per pixel of the half-size result, where the plain way takes 36.
#
# Step 2, up. Nearest-neighbour x2 is a box, too: put every pixel on a grid of double size with
#   zeros between, and let each fill its 2x2 places. Change places again, and the convolution sees
#   mostly zeros, which a transposed convolution with stride 2 leaves out:
#
#     up:    3x3 transposed convolution with stride 2  ->  box (sum of 2x2 neighbours)  ->  blur
#
#   (A transposed convolution writes with its kernel where a convolution reads with it, so the
#   kernel must be turned by 180 degrees to mean the same thing. The official weights of these
#   layers are stored turned at 128 px and above, for this reason.) 9 multiplications per input
#   pixel, where the plain way takes 36. The result of the transposed convolution has 2H + 1 rows,
#   and the box makes 2H of them: nothing is cut off and nothing leaks in at the border. Going down
#   the same in reverse: the box looks one pixel beyond every edge, at zeros, and makes 2H + 1.
#   (StyleGAN2 resamples like this from the start. Its filter [1, 3, 3, 1] is box and blur in one,
#   [1, 1] * [1, 2, 1]; only at the border, where the blur of StyleGAN sees zeros, they differ.)
#
# Step 3. The box can move into the kernel. In one dimension let that be (a b c). The outputs at
#   pixels 2i and 2i+1 and their average are
#       y[2i]   = a x[2i-1] + b x[2i] + c x[2i+1]
#       y[2i+1] =             a x[2i] + b x[2i+1] + c x[2i+2]
#       average = 1/2 (a x[2i-1] + (a+b) x[2i] + (b+c) x[2i+1] + c x[2i+2])
#   which is one convolution with stride 2 and the kernel (a, a+b, b+c, c) / 2, the sum of two
#   copies of (a b c) shifted by one pixel. In two dimensions: four copies of the 3x3 kernel,
#   shifted by (0,0), (0,1), (1,0), (1,1), summed and divided by 4, a 4x4 kernel; 16
#   multiplications. The official code does this at 128 px and above. Likewise upwards.
#
# Step 4. The blur is a filter too, so the 4x4 kernel can be blurred once instead of every image: a
#   6x6 kernel; 36 multiplications. This is where earlier code goes wrong at the border. The plain
#   way stops at the edge of the picture twice (the convolution's result outside the picture is
#   dropped, and the blur then sees zeros there); the merged kernel stops once, so what should have
#   been dropped leaks in: 16 % (down) and 26 % (up) RMS on the outermost pixels at random weights.
#   There is an exact cure, an ODD REFLECTION. Continue the picture x[0], x[1], ... to the left by
#       x[-1] = 0    and    x[-2] = -x[0].
#   The blur at pixel 0 still sees the zero it should: x[-1] + 2 x[0] + x[1]. And at pixel -1 it
#   now gives x[-2] + 2 x[-1] + x[0] = 0, which is what the plain way feeds to the convolution
#   there. So pad with one zero and one negated edge pixel on every side, and the 6x6 kernel is
#   right everywhere. Going up, the transpose of the same statement holds: let the merged kernel
#   write two pixels beyond every edge, subtract what it wrote at -2 from pixel 0, drop the rest.
#   (Pixel 0 received y[-1] too much, and y[-1] is all that was written to -2.)
#   Proved: tests/test_layers.py::test_blur_in_conv_equals_the_plain_twin_border_included
#
# Which form is fastest was measured: milliseconds for one layer, forward + backward going up,
# forward + the double backward of R1 going down; float32, channels_last, half the batch at 128 px.
# [MACHINE] 2 cores of a server CPU with AVX-512 (rerun: python tests/benchmark.py parts); no GPU.
#
#                 paper's widths, batch 4     paper's widths, batch 16     default run, batch 32
#                plain  3x3  4x4  6x6         plain  3x3   4x4   6x6      plain  3x3  4x4  6x6
#     up      8 px   10   20   64   90         28    29    75   147        1.3  1.0  1.8  3.0
#     down    8 px   23   14   29   82         67    35    60   200        3.3  2.2  2.6  6.0
#     up     16 px   31   26   75  102        110    55   117   234        3.6  2.0  3.1  6.9
#     down   16 px   73   32   55  138        269   100   156   433        9.3  4.7  5.9 15.6
#     up     32 px  118   53  120  196        454   164   305   599        7.6  2.8  4.2 11.1
#     down   32 px  287  100  168  390       1083   357   592  1427       23.4  7.0 10.1 30.3
#     up     64 px  238   82  141  296        949   314   476  1064        9.7  3.8  4.7 13.0
#     down   64 px  586  187  288  682       2287   751  1102  2548       31.4 10.6 13.4 33.1
#     up    128 px  140   41   64  141        556   177   251   550        8.7  3.4  4.1 12.5
#     down  128 px  333  110  154  357       1269   435   598  1379       25.6  9.7 12.3 27.8
#
# So the network uses steps 1 and 2. (The wide layer from 4 to 8 px, with few images, is no faster
# or even slower so: turning its kernel takes longer than the convolution. It is too small to care
# about.) Steps 3 and 4 are fewer operations, but those that they save are cheap passes over an
# image, and what they add are multiplications, nearly the whole work of a layer. Nor do they need
# less memory, since box and blur keep nothing for their gradients, and larger kernels are larger;
# proved: tests/test_layers.py::test_the_merged_forms_keep_no_less_memory. They stay below to be
# read, and as further judges in the tests.


class _Convolution(torch.autograd.Function):
    """A convolution all of whose derivatives are convolutions, to any order.

    A convolution takes large images x and a kernel w to small images y (as large ones, for stride
    1). It is linear in x and in w, so for any fixed y the number

        <y, conv(x, w)>    =    <x, up(y, w)>    =    <w, correlate(x, y)>

    is linear in each of the three, and says the same thing three times: `up` (the transposed
    convolution) is the gradient for x, `correlate` is the gradient for w. The gradients of these
    two are, again, the other two. So three operations, each with two of the others as its
    gradient, are closed under differentiation; R1 needs it twice.

    Autograd knows all this for the first derivative. For the second it builds the gradient of w
    from a convolution whose KERNEL is an image, and copies the images for it: a layer with R1 at
    [16, 512, 32, 32] took 1.1 times as long in all (tests/benchmark.py).

    `scale` is a number, that of equalized weights. It is multiplied here, and again when it is
    needed, so that what is kept for the gradients is w itself and not a second w.
    """

    input_gradients_only = False

    @staticmethod
    def forward(ctx, x, weight, bias, scale, stride, padding, up):
        # What a gradient needs is the other factor; so x is only kept if w is to learn.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape, ctx.up = (scale, stride, padding), up
        operation = F.conv_transpose2d if up else F.conv2d
        return operation(x, (weight * scale).to(x.dtype), bias, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _Convolution.apply(grad, weight, None, *ctx.shape, not ctx.up)
        if ctx.needs_input_grad[1] and not _Convolution.input_gradients_only:
            large, small = (grad, x) if ctx.up else (x, grad)
            grad_weight = _Correlation.apply(large, small, weight.shape, weight.dtype, *ctx.shape)
        if ctx.needs_input_grad[2] and not _Convolution.input_gradients_only:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None, None


class _Correlation(torch.autograd.Function):
    """The third of the operations: how well does each shift of `large` agree with `small`?"""

    @staticmethod
    def forward(ctx, large, small, kernel_shape, dtype, scale, stride, padding):
        ctx.save_for_backward(large, small)
        ctx.shape = scale, stride, padding
        # torch asks for the weight and reads its shape and memory format only, for the result's.
        channels_last = large.is_contiguous(memory_format=torch.channels_last)
        like = torch.empty(
            kernel_shape, dtype=large.dtype, device=large.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        result = torch.ops.aten.convolution_backward(
            small, large, like, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
            [False, True, False])[1]
        return result.to(dtype).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        large, small = ctx.saved_tensors
        grad_large = grad_small = None
        if ctx.needs_input_grad[0]:
            grad_large = _Convolution.apply(small, grad, None, *ctx.shape, True)
        if ctx.needs_input_grad[1]:
            grad_small = _Convolution.apply(large, grad, None, *ctx.shape, False)
        return grad_large, grad_small, None, None, None, None, None


def convolve(x, weight, bias=None, stride=1, up=False, padding=None, scale=1.0):
    """F.conv2d, or F.conv_transpose2d if `up`, whose second derivative is as fast as its first.

    Shapes: x [N, I, R, R]; weight [O, I, k, k], or [I, O, k, k] if `up`. padding (k - 1) // 2 if
            None: then R stays for odd k and stride 1, and k = 4 with stride 2 gives R/2 or 2R.
            k = 3 with stride 2 and padding 0 makes (R-1)/2 of an odd R, or 2R + 1 if `up`.
    Units:  the kernel is weight * scale, computed in the precision of weight, used in that of x.
    Proved: tests/test_layers.py::test_convolution_and_its_derivatives_against_torch
    """
    padding = (weight.shape[2] - 1) // 2 if padding is None else padding
    return _Convolution.apply(x, weight, bias, scale, stride, padding, up)


@contextlib.contextmanager
def input_gradients_only():
    """Inside, gradients of convolutions are computed for their inputs, not for their weights.

    Why:    R1 asks for the gradient at the images. Autograd drops what it does not need of its own
            functions; of ours it would compute the weights' gradients too, and throw them away.
    """
    _Convolution.input_gradients_only = True
    try:
        yield
    finally:
        _Convolution.input_gradients_only = False


def blur_kernel(channels, device=None, dtype=None):
    """[1,2,1] x [1,2,1] / 16 as a depthwise kernel [C, 1, 3, 3]. It sums to 1: flat stays flat."""
    line = torch.tensor([0.25, 0.5, 0.25], device=device, dtype=dtype)
    return torch.outer(line, line).expand(channels, 1, 3, 3)


class _SelfAdjointBlur(torch.autograd.Function):
    """The [1,2,1] blur, told to autograd that its gradient is the same blur.

    A convolution's gradient is the convolution with the turned kernel; this kernel is symmetric
    and so are its zeros beyond the border, so blurring the gradient is all there is to do, and
    doing it again is the second derivative that R1 needs. Autograd does not know that and takes
    the general road (a transposed depthwise convolution and, for R1, worse): blur and R1 together
    took 10 times as long at [32, 32, 32, 32] (tests/benchmark.py).
    """

    @staticmethod
    def forward(ctx, x):
        kernel = blur_kernel(x.shape[1], x.device, x.dtype)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad):
        return _SelfAdjointBlur.apply(grad)


def blur(x):
    """Smooth x [N, C, H, W] with [1,2,1] x [1,2,1] / 16, zeros beyond the border; same shape.

    Proved: tests/test_layers.py::test_blur_and_its_derivatives_against_a_loop
    """
    return _SelfAdjointBlur.apply(x)


class Blur(torch.nn.Module):
    """`blur` as a module.   Shapes: x [N, C, H, W] -> the same."""

    def forward(self, x):
        return blur(x)


class _Box(torch.autograd.Function):
    """Every 2x2 neighbours added up, times `tap`. With a border of zeros [.., H, W] becomes
    [.., H+1, W+1], without one [.., H-1, W-1]; each of the two is the gradient of the other.
    """

    @staticmethod
    def forward(ctx, x, tap, border):
        ctx.tap, ctx.border = tap, border
        kernel = x.new_full((x.shape[1], 1, 2, 2), tap)
        return F.conv2d(x, kernel, padding=int(border), groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad):
        return _Box.apply(grad, ctx.tap, not ctx.border), None, None


def box_mean(x):
    """x [N, C, H, W] -> [N, C, H+1, W+1]: means of 2x2 neighbours, zeros beyond the border.

    Proved: tests/test_layers.py::test_boxes_and_their_derivatives_against_pooling
    """
    return _Box.apply(x, 0.25, True)


def box_sum(x):
    """x [N, C, H, W] -> [N, C, H-1, W-1]: sums of 2x2 neighbours. Proved: as `box_mean`."""
    return _Box.apply(x, 1.0, False)


def upsample_conv_blur_plain(x, weight):
    """The readable twin. x [N, I, H, W], weight [O, I, 3, 3] -> [N, O, 2H, 2W]."""
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    return blur(convolve(x, weight))


def blur_conv_downsample_plain(x, weight):
    """The readable twin. x [N, I, 2H, 2W], weight [O, I, 3, 3] -> [N, O, H, W]."""
    return F.avg_pool2d(convolve(blur(x), weight), 2)


def upsample_conv_blur(x, weight, scale=1.0):
    """Step 2. Shapes as in the plain twin. This is what G does."""
    turned = weight.flip(2, 3).transpose(0, 1)                             # [I, O, 3, 3]
    return blur(box_sum(convolve(x, turned, stride=2, up=True, padding=0, scale=scale)))


def blur_conv_downsample(x, weight, bias=None, scale=1.0):
    """Step 1. Shapes as in the plain twin. This is what D does."""
    return convolve(box_mean(blur(x)), weight, bias, stride=2, padding=0, scale=scale)


def merged_kernel(weight, blurred):
    """Steps 3 and 4: [O, I, 3, 3] -> [O, I, 4, 4], the four shifted copies, or [O, I, 6, 6].

    The change is linear, so it is a matrix, [9, 16] or [9, 36], made from the nine kernels with a
    single 1; the channels stand last in memory (channels_last), so that nothing need be moved.
    Proved: tests/test_layers.py::test_merged_kernel_is_four_shifted_copies
    """
    copies = F.conv2d(torch.eye(9).reshape(9, 1, 3, 3), torch.ones(1, 1, 2, 2), padding=1)
    if blurred:
        copies = F.conv2d(copies, blur_kernel(1), padding=2)
    side = copies.shape[3]
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2)                        # [O, 9, I]
    merged = copies.flatten(1).t().to(weight) @ taps                       # [O, side*side, I]
    return merged.unflatten(1, (side, side)).permute(0, 3, 1, 2)


def upsample_conv_blur_4x4(x, weight):
    """Step 3 upwards: one 4x4 transposed convolution, then the blur."""
    kernel = merged_kernel(weight, blurred=False).flip(2, 3).transpose(0, 1)
    return blur(convolve(x, kernel, stride=2, up=True))


def blur_conv_downsample_4x4(x, weight):
    """Step 3 downwards: the blur, then one strided 4x4 convolution."""
    return convolve(blur(x), merged_kernel(weight, blurred=False) / 4, stride=2)


def upsample_conv_blur_6x6(x, weight):
    """Step 4 upwards: one 6x6 transposed convolution, its overhang subtracted from the edge."""
    kernel = merged_kernel(weight, blurred=True).flip(2, 3).transpose(0, 1)
    y = convolve(x, kernel, stride=2, up=True, padding=0)                  # [N, O, 2H+4, 2W+4]
    for axis in (2, 3):
        size = y.shape[axis] - 4
        overhang_1, _, inside, _, overhang_2 = y.split([1, 1, size, 1, 1], axis)
        first, middle, last = inside.split([1, size - 2, 1], axis)
        y = torch.cat([first - overhang_1, middle, last - overhang_2], axis)
    return y                                                               # [N, O, 2H, 2W]


def blur_conv_downsample_6x6(x, weight):
    """Step 4 downwards: odd reflection, then one strided 6x6 convolution."""
    for axis in (2, 3):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, -1, 1)
        zero = torch.zeros_like(first)
        x = torch.cat([-first, zero, x, zero, -last], axis)
    return convolve(x, merged_kernel(weight, blurred=True) / 4, stride=2, padding=0)


class EqualizedConv2d(torch.nn.Module):
    """A convolution with equalized weights that can also double or halve the resolution.

    Why:    equalized weights as in `EqualizedLinear`; resampling as in "Blur-in-conv" above.
    Paper:  ProGAN section 4.1; StyleGAN section 2.1 (the blur).
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
        weight, scale, bias = self.weight, self.weight_scale, self.bias.to(x.dtype)
        if self.resample == "down":
            return blur_conv_downsample(x, weight, bias, scale)
        if self.resample == "up":
            return upsample_conv_blur(x, weight, scale).add_(bias[:, None, None])
        return convolve(x, weight, bias, scale=scale)


# ---- 3. What makes a style -------------------------------------------------------------------


class LearnedConstant(torch.nn.Module):
    """The input of the synthesis network: one learned 4x4 picture of C channels.

    Why:    with styles and noise there is nothing left for z to do at the input; a constant works
            as well and separates content (here) from style (AdaIN).
    Paper:  section 2, table 1, row D ("remove traditional input").
    Shapes: n -> [n, C, 4, 4]. It has a batch axis from the start: without one, the noise that is
            added to it next would be the same for all images of a batch.
    Units:  starts as ones; the bias [C] is added to every image alike.
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

    Why:    hair, freckles and pores are random; a network fed only w must spend capacity on making
            something that looks random out of its own activations.
    Paper:  section 2 (figure 1b, "B") and 3.2. ONE map per image is shared by all channels.
    Shapes: x [N, C, R, R] -> the same; const [1, 1, R, R]; strength [C].
    Units:  the map is N(0, 1); the strength starts at 0, so noise enters only where it helps.
    Modes:  "random" a fresh map per image; "const" the stored map, the same for all images and
            calls; "none" no noise.
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
            noise = torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device, dtype=x.dtype)
        elif mode == "const":
            noise = self.const.to(x.dtype)
        else:
            raise ValueError(f'noise_mode must be "random", "const" or "none", got {mode!r}')
        strength = self.strength.to(x.dtype)[:, None, None]                # [C, 1, 1]
        return torch.addcmul(x, noise, strength)               # [N or 1, 1, R, R] * [C, 1, 1]


class AdaIN(torch.nn.Module):
    """Adaptive instance normalization: wipe the old style off, write the new one on.

    Why:    each channel of each image is brought to mean 0 and variance 1, then to the mean and
            variance that w asks for. What the styles before wrote is gone: a style governs one
            convolution and no more, which is what makes styles mixable.
    Paper:  equation 1 (section 2). The learned affine map "A" of figure 1b is `style`.
    Shapes: x [N, C, H, W], w [N, S] -> [N, C, H, W].
    Units:  `style` gives (y_s, y_b); its bias starts at 0 and x is multiplied by y_s + 1, so that
            the layer begins as a plain instance norm (as the official code does).
    Proved: tests/test_layers.py::test_adain_gives_each_channel_the_mean_and_std_that_w_asks_for
    """

    def __init__(self, style_dim, channels):
        super().__init__()
        self.style = EqualizedLinear(style_dim, 2 * channels, gain=1.0)

    def forward(self, x, w):
        y_s, y_b = self.style(w)[:, :, None, None].chunk(2, dim=1)         # [N, C, 1, 1] each
        return _NormalizeAndStyle.apply(x, y_s + 1, y_b)


class _NormalizeAndStyle(torch.autograd.Function):
    """scale * (x - mean) / std + shift, with mean and std over the pixels of each channel.

    The four lines of `forward` are the definition. Left to autograd they keep three images and
    walk over memory nine times on the way back; this `backward` keeps one and walks five times.
    With n = (x - mean) / std and g the gradient that comes in, the gradient at x is

        scale / std * (g - mean(g) - n * mean(g n)):

    what g would change about the mean and the size of x is taken out, for the layer takes it out.
    Sums over pixels are made in the precision of the style, float32, whatever that of x is.
    Proved: tests/test_layers.py::test_adain_and_its_gradient_against_autograd
    """

    @staticmethod
    def forward(ctx, x, scale, shift):
        full = x.to(scale.dtype)                                           # float32 at least
        mean = spatial_mean(full)                                          # [N, C, 1, 1]
        centred = full - mean
        rstd = torch.rsqrt(spatial_mean(centred.square()) + 1e-8)
        ctx.save_for_backward(x, mean, rstd, scale)
        return torch.addcmul(shift, centred, scale * rstd).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, mean, rstd, scale = ctx.saved_tensors
        pixels, grad = x.shape[2] * x.shape[3], grad.to(scale.dtype)
        centred = x.to(scale.dtype) - mean
        mean_g = spatial_mean(grad)                                        # [N, C, 1, 1] all three
        mean_gn = spatial_mean(grad * centred) * rstd
        outer = scale * rstd
        grad_x = torch.addcmul(-mean_g, centred, -mean_gn * rstd).add_(grad).mul_(outer)
        return grad_x.to(x.dtype), pixels * mean_gn, pixels * mean_g


def spatial_mean(x):
    """[N, C, H, W] -> [N, C, 1, 1], the mean over all pixels of a channel.

    Written as a matrix product: in channels_last, x is already a matrix [H*W, C] per image. AdaIN
    was twice as fast with it at [32, 32, 32, 32], backward included (tests/benchmark.py).
    """
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)                           # [N, H*W, C]
    weights = pixels.new_full((1, 1, pixels.shape[1]), 1 / pixels.shape[1])
    return torch.matmul(weights, pixels).transpose(1, 2).unsqueeze(3)      # [N, C, 1, 1]


# ---- 4. Two normalizers ----------------------------------------------------------------------


class PixelNorm(torch.nn.Module):
    """Give every feature vector the length sqrt(C), keeping its direction.

    Why:    |z| differs from draw to draw by luck, and should not choose the face.
    Paper:  ProGAN section 4.2: b = a / sqrt(mean_j(a_j^2) + eps). StyleGAN keeps it on z only.
    Shapes: x [N, C, ...] -> [N, C, ...]
    Units:  RMS over C is 1, so the length is sqrt(C): 22.6 for C = 512, not 1.
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
    Units:  image i belongs to group i mod M with M = ceil(N / 4): groups of 4 where N allows, as
            the official code (which stops with an error where N is no multiple of 4), groups of 2
            to 4 or all N where it does not. ProGAN's paper compares the whole batch. A lone image
            has spread sqrt(1e-8).
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
        # Back from groups to images: 0, 1, .., M-1, 0, 1, ... (Not by [group_of], whose gradient
        # adds up in an order that varies, so that a repeated run would differ in the last bits.)
        times = math.ceil(n / groups)
        centred = features - (average @ features).repeat(times, 1)[:n]
        variance = average @ centred.square()                              # [M, C*H*W]
        spread = (variance + 1e-8).sqrt().mean(dim=1)                      # [M]
        extra = spread.repeat(times)[:n, None, None, None].expand(n, 1, *x.shape[2:])
        return torch.cat([x, extra], dim=1)
