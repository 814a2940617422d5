"""fast_gradients.py: operations of the layers with gradients written by hand.   (workshop)

Used by: stylegan_layers.py, which says what each of them computes; stylegan_losses.py.
Needs:   torch, any device. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; C channels (I in, O out of a convolution); H, W rows and columns of
         pixels; k side of a convolution kernel.

Everything here could be left to autograd. It would compute the same, in more time and memory: R1
differentiates a gradient, and autograd takes the general road for that. Each gradient has a judge
in the tests, autograd or finite differences; so has each second one (AdaIN's is refused).

  1. leaky_relu, noise   one keeps its result only; the other adds in one pass
  2. convolve            all of whose derivatives are convolutions
  3. filters             that are their own gradients, up to the border
  4. normalize_and_style AdaIN's equation
  5. merged kernels      what was measured and not taken: box and blur inside of the convolution
"""

import contextlib

import torch
import torch.nn.functional as F

from workshop import winograd

LEAKY_SLOPE = 0.2             # of every leaky ReLU in the three networks (ProGAN, appendix A)

# ---- 1. Leaky ReLU and noise -----------------------------------------------------------------


class _LeakyReLU(torch.autograd.Function):
    """A leaky ReLU that keeps its result and not its input for the gradient.

    The slope is 1 or 0.2, and the sign of the result says which. The result is kept in any case, as
    the input of the next layer.
    Away from 0 the slope does not change with x. So the second derivative, which R1 asks for, is
    zero, and none is computed here. Autograd's own leaky ReLU gives an image full of zeros.
    Multiplied in place, the gain needs no second image. But there torch.compile of 2.11 made the
    gradient 0, without a word.
    Proved: tests/test_fast_gradients.py::test_leaky_relu_keeps_its_result_and_makes_no_zeros,
            tests/test_machine.py::test_compiled_networks_have_the_same_gradients
    """

    @staticmethod
    def forward(ctx, x, gain):
        result = F.leaky_relu(x, LEAKY_SLOPE)
        if gain != 1.0:
            result = result * gain if torch.compiler.is_compiling() else result.mul_(gain)
        ctx.save_for_backward(result)
        ctx.gain = gain
        return result

    @staticmethod
    def backward(ctx, grad):
        result, = ctx.saved_tensors
        return _LeakyReLUGradient.apply(grad, result, ctx.gain), None


class _LeakyReLUGradient(torch.autograd.Function):
    """grad, times the slope where `result` came from. Linear in grad, constant in result."""

    @staticmethod
    def forward(ctx, grad, result, gain):
        ctx.save_for_backward(result)
        ctx.gain = gain
        grad = torch.ops.aten.leaky_relu_backward(grad, result, LEAKY_SLOPE, True)
        return grad.mul_(gain) if gain != 1.0 else grad

    @staticmethod
    def backward(ctx, grad):
        result, = ctx.saved_tensors
        return _LeakyReLUGradient.apply(grad, result, ctx.gain), None, None


def leaky_relu(x, gain=1.0):
    """x where positive, 0.2 x elsewhere, then times gain (above 0); any shape.

    Proved: tests/test_fast_gradients.py::test_leaky_relu_and_its_derivatives_against_torch
    """
    return _LeakyReLU.apply(x, gain)


def add_noise(x, noise, strength):
    """x + strength * noise in one pass, in the precision of x.

    Shapes: x [N, C, H, W], noise [N or 1, 1, H, W], strength [C] -> [N, C, H, W].
    """
    return torch.addcmul(x, noise.to(x.dtype), strength.to(x.dtype)[:, None, None])


# ---- 2. Convolution --------------------------------------------------------------------------


class _Convolution(torch.autograd.Function):
    """A convolution all of whose derivatives are convolutions, to any order.

    A convolution takes large images x and a kernel w to small images y (as large ones, for stride
    1). It is linear in x and in w, so for any fixed y the number

        <y, conv(x, w)>    =    <x, up(y, w)>    =    <w, correlate(x, y)>

    is linear in each of the three, and says the same thing three times: `up` (the transposed
    convolution) is the gradient for x, `correlate` is the gradient for w. The gradients of these
    two are, again, the other two. So three operations, each with two of the others as its
    gradient, are closed under differentiation; R1 needs it twice.

    How each is computed is a separate question. Wide layers on a CPU are computed with a quarter of
    the multiplications (winograd.py); nothing else knows of it.

    Autograd knows all this for the first derivative. For the second it builds the gradient of w
    from a convolution whose KERNEL is an image, and copies the images for it
    (experiments/benchmark.py gradients measures both).

    `scale` is a number, that of equalized weights. It is multiplied here, and again when it is
    needed, so that what is kept for the gradients is w itself and not a second w.
    Proved: tests/test_fast_gradients.py::test_one_number_is_said_in_three_ways,
            ::test_convolution_keeps_the_weight_itself_and_x_only_if_the_weight_learns
    """

    input_gradients_only = False

    @staticmethod
    def forward(ctx, x, weight, bias, scale, stride, padding, up):
        # What a gradient needs is the other factor; so x is only kept if w is to learn.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape, ctx.up = (scale, stride, padding), up
        ctx.weight_is_stored = weight.is_leaf
        kernel = (weight * scale).to(x.dtype)
        if winograd.pays(x, weight.shape, stride, padding):
            y = winograd.convolve(x, kernel.flip(2, 3).transpose(0, 1) if up else kernel)
            return y if bias is None else y.add_(bias[:, None, None])
        operation = F.conv_transpose2d if up else F.conv2d
        return operation(x, kernel, bias, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _Convolution.apply(grad, weight, None, *ctx.shape, not ctx.up)
        if ctx.needs_input_grad[1] and not (
                _Convolution.input_gradients_only and ctx.weight_is_stored):
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
        channels_last = large.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if winograd.pays(large, kernel_shape, stride, padding):
            return winograd.kernel_gradient(large, small).mul_(scale).contiguous(
                memory_format=layout)
        # torch asks for the weight and reads its shape and memory format only, for the result's.
        like = torch.empty(
            kernel_shape, dtype=large.dtype, device=large.device, memory_format=layout)
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
    """F.conv2d, or F.conv_transpose2d if `up`, with derivatives that are convolutions, too.

    Shapes: x [N, I, R, R]; weight [O, I, k, k], or [I, O, k, k] if `up`. padding (k - 1) // 2 if
            None: then R stays for odd k and stride 1, and k = 4 with stride 2 gives R/2 or 2R.
            k = 3 with stride 2 and padding 0 makes (R-1)/2 of an odd R, or 2R + 1 if `up`.
    Units:  the kernel is weight * scale, computed in the precision of weight, used in that of x.
    Proved: tests/test_fast_gradients.py::test_convolution_and_its_derivatives_against_torch
    """
    padding = (weight.shape[2] - 1) // 2 if padding is None else padding
    bias = None if bias is None else bias.to(x.dtype)
    return _Convolution.apply(x, weight, bias, scale, stride, padding, up)


@contextlib.contextmanager
def input_gradients_only():
    """Inside, gradients of convolutions are computed for their inputs, not for stored weights.

    Why:    R1 asks for the gradient at the images, path length for that at the styles. Autograd
            drops what it does not need of its own functions; of ours it would compute the weights'
            gradients too, and throw them away.
    Trap:   a kernel may be made of an input. StyleGAN2 can multiply its kernels by a style, and
            then path length is the gradient that flows THROUGH the kernel. So only kernels that
            are stored weights are spared; a turned weight, where G doubles, is not such a one.
            Proved: tests/test_fast_gradients.py::test_a_kernel_made_of_an_input_keeps_its_gradient
    """
    _Convolution.input_gradients_only = True
    try:
        yield
    finally:
        _Convolution.input_gradients_only = False


# ---- 3. Filters: blur, box, FIR --------------------------------------------------------------


def filter_kernel(size, outer, inner, channels, device=None, dtype=None):
    """The line (outer, inner.., outer) of `size` taps, times itself: depthwise [C, 1, size, size].

    Filled on the device: to copy the numbers there, the CPU would have to wait for the GPU.
    """
    line = torch.full((size,), outer, device=device, dtype=dtype)
    line[1:-1].fill_(inner)
    return torch.outer(line, line).expand(channels, 1, size, size)


_kernels = {}


def kept_kernel(taps, x, odd=False):
    """`filter_kernel` for x, made once. odd: with a row and a column of zeros before the others.

    Why:    to make it takes four steps, and an iteration at 256 px asks for it 132 times. On a GPU
            small steps cost as much as large ones: the CPU has to start each of them.
    Proved: tests/test_fast_gradients.py::test_a_filter_is_made_once_and_never_out_of_names
    """
    # While a program is compiled or exported, tensors are only names for what will come.
    tracing = torch.compiler.is_compiling()
    key = taps, x.shape[1], x.device, x.dtype, odd
    kernel = None if tracing else _kernels.get(key)
    if kernel is None:
        kernel = filter_kernel(*taps, *key[1:4]).contiguous()
        kernel = F.pad(kernel, (1, 0, 1, 0)) if odd else kernel
        if not tracing:
            _kernels[key] = kernel
    return kernel


def filtered(x, taps, border, odd):
    """A depthwise convolution. odd: by a kernel of an odd side, one larger, with the same result.

    The odd kernel begins with a row and a column of zeros, so the border has one zero more. The
    result then has a row and a column too many at its end, which are cut off.
    [MACHINE] One H100, torch 2.11, [16, 64, 256, 256]: a kernel of 2x2 takes 2.4 ms, this way 0.4
              (bfloat16 2.3 and 0.3), one of 4x4 5.5 and 0.7; a 3x3 takes 0.2. So even sides are
              slow there (docs/results.md, "On a GPU"). On a CPU the even one is the faster.
    Proved: tests/test_fast_gradients.py::test_an_even_filter_by_an_odd_kernel_is_the_same
    """
    y = F.conv2d(x, kept_kernel(taps, x, odd), padding=border + odd, groups=x.shape[1])
    return y[..., :-1, :-1].contiguous(memory_format=torch.channels_last) if odd else y


class _Filter(torch.autograd.Function):
    """A symmetric filter of every channel, told to autograd that its gradient is the filter again.

    A convolution's gradient is the convolution with the turned kernel, over a border that makes up
    for what the first one took or added: of k taps and a border of p zeros, k - 1 - p zeros. This
    kernel turned is itself. So filtering the gradient is all there is to do, and doing it again is
    the second derivative that R1 needs. Autograd does not know that and takes the general road, a
    transposed depthwise convolution (experiments/benchmark.py gradients).
    """

    @staticmethod
    def forward(ctx, x, taps, border):
        ctx.taps, ctx.border = taps, border
        return filtered(x, taps, border, odd=x.is_cuda and taps[0] % 2 == 0)

    @staticmethod
    def backward(ctx, grad):
        return _Filter.apply(grad, ctx.taps, ctx.taps[0] - 1 - ctx.border), None, None


BLUR, BOX_MEAN, BOX_SUM = (3, 0.25, 0.5), (2, 0.5, 0.0), (2, 1.0, 0.0)      # size, outer, inner


def blur(x):
    """Smooth x [N, C, H, W] with [1,2,1] x [1,2,1] / 16, zeros beyond the border; same shape.

    Proved: tests/test_fast_gradients.py::test_blur_and_its_derivatives_against_a_loop
    """
    return _Filter.apply(x, BLUR, 1)


def box_mean(x):
    """x [N, C, H, W] -> [N, C, H+1, W+1]: means of 2x2 neighbours, zeros beyond the border.

    Proved: tests/test_fast_gradients.py::test_boxes_and_their_derivatives_against_pooling
    """
    return _Filter.apply(x, BOX_MEAN, 1)


def box_sum(x):
    """x [N, C, H, W] -> [N, C, H-1, W-1]: sums of 2x2 neighbours. Proved: as `box_mean`."""
    return _Filter.apply(x, BOX_SUM, 0)


def fir(x, border, gain=1.0):
    """x [N, C, H, W] -> [N, C, H + 2 border - 3, ...]: [1,3,3,1] x [1,3,3,1] / 64, times gain.

    Proved: tests/test_fast_gradients.py::test_fir_is_box_and_blur_in_one_with_one_border
    """
    root = gain ** 0.5
    return _Filter.apply(x, (4, root / 8, 3 * root / 8), border)


# ---- 4. AdaIN --------------------------------------------------------------------------------


class _NormalizeAndStyle(torch.autograd.Function):
    """The five lines of `forward` are the definition.

    With n = (x - mean) / std and g the gradient that comes in, the gradient at x is

        scale / std * (g - mean(g) - n * mean(g n)):

    what g would change about the mean and the size of x is taken out, for the layer takes it out.
    """

    @staticmethod
    def forward(ctx, x, scale, shift):
        full = x.to(scale.dtype)                                           # float32 at least
        mean = spatial_mean(full)                                          # [N, C, 1, 1]
        centred = full - mean
        rstd = torch.rsqrt(spatial_mean(centred.square()) + 1e-8)
        ctx.save_for_backward(x, mean, rstd, scale)
        return torch.addcmul(shift, centred, scale * rstd)

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


def normalize_and_style(x, scale, shift):
    """scale * (x - mean) / std + shift, with mean and std over the pixels of each channel.

    Shapes: x [N, C, H, W]; scale, shift [N, C, 1, 1] -> [N, C, H, W].
    Units:  1e-8 is added to the variance. Sums over pixels are made in the precision of the style,
            float32, whatever that of x is.
    Proved: tests/test_fast_gradients.py::test_adain_and_its_gradient_against_autograd,
            ::test_adain_adds_up_pixels_in_float32_also_for_bfloat16
    """
    # The last step, .to(x.dtype), is outside. Inside, where it had nothing to do, torch.compile of
    # 2.11 made all gradients 0
    # (tests/test_machine.py::test_compiled_networks_have_the_same_gradients).
    return _NormalizeAndStyle.apply(x, scale, shift).to(x.dtype)


def spatial_mean(x):
    """[N, C, H, W] -> [N, C, 1, 1], the mean over all pixels of a channel.

    On a CPU it is a matrix product: in channels_last, x is already a matrix [H*W, C] per image
    (experiments/benchmark.py gradients measures AdaIN with it and with x.mean). On one H100 x.mean
    is about as fast up to 256 px, and 4 times as fast at 1024 px with 16 channels.
    """
    if x.is_cuda:
        return x.mean(dim=(2, 3), keepdim=True)
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)                           # [N, H*W, C]
    weights = pixels.new_full((1, 1, pixels.shape[1]), 1 / pixels.shape[1])
    return torch.matmul(weights, pixels).transpose(1, 2).unsqueeze(3)      # [N, C, 1, 1]


# ---- 5. Merged kernels -----------------------------------------------------------------------
#
# Steps 1 and 2 stand in stylegan_layers.py: the box of 2x2 changes places with the convolution. One
# can go on.
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
#   Proved: tests/test_fast_gradients.py::test_the_merged_forms_multiply_more_often
#
# Step 4. The blur is a filter too, so the 4x4 kernel can be blurred once instead of every image: a
#   6x6 kernel; 36 multiplications. This is where earlier code goes wrong at the border. The plain
#   way stops at the edge of the picture twice (the convolution's result outside the picture is
#   dropped, and the blur then sees zeros there); the merged kernel stops once, so what should have
#   been dropped leaks in: 16 % (down) and 26 % (up) RMS on the outermost pixels at random weights.
#   Proved: tests/test_fast_gradients.py::test_without_the_odd_reflection_the_border_is_wrong
#   There is an exact cure, an ODD REFLECTION. Continue the picture x[0], x[1], ... to the left by
#       x[-1] = 0    and    x[-2] = -x[0].
#   The blur at pixel 0 still sees the zero it should: x[-1] + 2 x[0] + x[1]. And at pixel -1 it
#   now gives x[-2] + 2 x[-1] + x[0] = 0, which is what the plain way feeds to the convolution
#   there. So pad with one zero and one negated edge pixel on every side, and the 6x6 kernel is
#   right everywhere. Going up, the transpose of the same statement holds: let the merged kernel
#   write two pixels beyond every edge, subtract what it wrote at -2 from pixel 0, drop the rest.
#   (Pixel 0 received a quarter of y[-1] too much, and that is all that was written to -2.)
#   Proved: tests/test_fast_gradients.py::test_blur_in_conv_equals_the_plain_twin_border_included
#
# Which form is fastest was measured: milliseconds for one layer, forward + backward going up,
# forward + the double backward of R1 going down; float32, channels_last, half the batch at 128 px.
# [MACHINE] 2 cores of a server CPU with AVX-512; no GPU (rerun: python experiments/benchmark.py
#           parts). Measured before there was winograd.py, which makes the plain form faster where
#           it has 192 channels or more; its large images stay.
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
# less memory: box and blur keep nothing for their gradients, and larger kernels are larger. They
# stay below to be read, and as further judges in the tests.
# Proved: tests/test_fast_gradients.py::test_the_merged_forms_keep_no_less_memory


def merged_kernel(weight, blurred):
    """Steps 3 and 4: [O, I, 3, 3] -> [O, I, 4, 4], the four shifted copies, or [O, I, 6, 6].

    The change is linear, so it is a matrix, [9, 16] or [9, 36], made from the nine kernels with a
    single 1; the channels stand last in memory (channels_last), so that nothing need be moved.
    Proved: tests/test_fast_gradients.py::test_merged_kernel_is_four_shifted_copies
    """
    copies = F.conv2d(torch.eye(9).reshape(9, 1, 3, 3), torch.ones(1, 1, 2, 2), padding=1)
    if blurred:
        copies = F.conv2d(copies, filter_kernel(*BLUR, 1), padding=2)
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
