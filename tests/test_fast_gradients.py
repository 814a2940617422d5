"""workshop/fast_gradients.py, from top to bottom: autograd judges what was worked out by hand."""

import pytest
import torch
import torch.nn.functional as F

import stylegan_layers as layers
from conftest import relative
from workshop import fast_gradients as fast

# float32 carries 7 digits; sums over a few hundred products keep 6 of them.
FLOAT32 = 1e-5


def rms(x):
    return x.square().mean().sqrt().item()


def check_derivatives(function, judge, *inputs):
    """Values, gradients and gradients of gradients, in float64, against another program."""
    from torch.autograd import grad
    inputs = [x.double().requires_grad_() for x in inputs]
    upstream, numbers = None, []
    for f in (function, judge):
        y = f(*inputs)
        upstream = torch.randn_like(y) if upstream is None else upstream
        first = grad((y * upstream).sum(), inputs, create_graph=True)
        second = grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)
        numbers.append([y, *first, *(torch.zeros_like(x) if g is None else g
                                     for g, x in zip(second, inputs))])
    for ours, theirs in zip(*numbers):
        assert (ours - theirs).abs().max() <= 1e-12 * (1 + theirs.abs().max())
    return numbers[0]


def kept_for_gradients(function):
    """(its result, {address: tensor} of what autograd keeps for the backward pass)."""
    tensors = {}

    def keep(tensor):
        tensors.setdefault(tensor.data_ptr(), tensor)
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    return result, tensors


# ---- 1. leaky ReLU and noise ----


def test_leaky_relu_and_its_derivatives_against_torch():
    """Lesson: it has a second derivative of zero, and R1 passes through its first one."""
    x = torch.randn(2, 3, 4, 4)
    check_derivatives(lambda x: fast.leaky_relu(x), lambda x: F.leaky_relu(x, 0.2), x)
    # Through a product, so that the second derivative is not all zero.
    numbers = check_derivatives(lambda x: fast.leaky_relu(x * x - x) * x,
                                lambda x: F.leaky_relu(x * x - x, 0.2) * x, x)
    assert numbers[-1].abs().max() > 1                         # control: there was something
    # StyleGAN2's gain stands behind it, and in all its derivatives.
    check_derivatives(lambda x: fast.leaky_relu(x * x - x, 3.0) * x,
                      lambda x: 3 * F.leaky_relu(x * x - x, 0.2) * x, x)
    assert torch.equal(fast.leaky_relu(x, 4.0), 4 * fast.leaky_relu(x))


def test_leaky_relu_keeps_its_result_and_makes_no_zeros():
    """Lesson: written by hand, it saves one image on the way forward, and one more in R1."""
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    for gain in (3.0, 1.0):
        y, kept = kept_for_gradients(lambda: fast.leaky_relu(x, gain))
        assert list(kept) == [y.data_ptr()]
    _, kept = kept_for_gradients(lambda: F.leaky_relu(x, 0.2))
    assert list(kept) == [x.data_ptr()]                        # control: its input, too
    # The second derivative: how the gradient changes with what it was computed at.
    upstream, at = torch.randn(2, 3, 4, 4, requires_grad=True), y.detach().requires_grad_()
    ours, theirs = (torch.autograd.grad(first.sum(), at, allow_unused=True)[0] for first in (
        fast._LeakyReLUGradient.apply(upstream, at, 1.0),
        torch.ops.aten.leaky_relu_backward(upstream, at, 0.2, False)))
    assert ours is None and theirs.shape == x.shape and not theirs.any()


def test_noise_is_added_in_the_precision_of_the_picture():
    """Lesson: a float32 map must not turn a bfloat16 picture into a float32 one."""
    x, noise, strength = torch.randn(2, 3, 4, 4), torch.randn(2, 1, 4, 4), torch.randn(3)
    judge = x + strength[:, None, None] * noise
    assert relative(fast.add_noise(x, noise, strength), judge) < FLOAT32
    assert relative(x, judge) > 0.1                            # control: there was noise
    shared = fast.add_noise(x, noise[:1], strength)            # one map for all images
    assert relative(shared, x + strength[:, None, None] * noise[:1]) < FLOAT32
    low = fast.add_noise(x.bfloat16(), noise, strength)
    assert low.dtype == torch.bfloat16 and relative(low.float(), judge) < 0.02  # 8 bits


# ---- 2. convolution ----


SHAPES = [(8, 1, 1, 0, False), (8, 3, 1, 1, False), (8, 3, 1, 1, True), (9, 3, 2, 0, False),
          (8, 3, 2, 0, True), (8, 4, 2, 1, False), (8, 4, 2, 1, True)]


@pytest.mark.parametrize("side, kernel, stride, padding, up", SHAPES)
def test_convolution_and_its_derivatives_against_torch(side, kernel, stride, padding, up):
    """Lesson: three operations, each the gradient of the others, are closed under derivatives."""
    x, bias = torch.randn(2, 3, side, side), torch.randn(5)
    weight = torch.randn(5, 3, kernel, kernel)
    if up:
        weight = weight.transpose(0, 1).contiguous()
    judge = F.conv_transpose2d if up else F.conv2d
    numbers = check_derivatives(
        lambda x, w, b: fast.convolve(x, w, b, stride, up, padding, scale=0.7),
        lambda x, w, b: judge(x, 0.7 * w, b, stride, padding), x, weight, bias)
    assert all(n.abs().max() > 0.1 for n in numbers[:6])       # control: nothing was just zero
    # In channels_last, in which networks are trained on a CPU and on CUDA, too.
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight.requires_grad_()
    ours, theirs = (torch.autograd.grad(f(x, weight, None, stride=stride, padding=padding)
                                        .square().sum(), weight)[0]
                    for f in (lambda *a, **k: fast.convolve(*a, up=up, **k), judge))
    assert relative(ours, theirs) < FLOAT32


def test_one_number_is_said_in_three_ways():
    """Lesson: <y, conv(x, w)> = <x, up(y, w)> = <w, correlate(x, y)>: why each of the three is the
    gradient of the others."""
    x, y = torch.randn(2, 3, 9, 9).double(), torch.randn(2, 5, 4, 4).double()
    w = torch.randn(5, 3, 3, 3).double()
    options = dict(stride=2, padding=0)
    first = (y * fast.convolve(x, w, **options)).sum().item()
    second = (x * fast.convolve(y, w, up=True, **options)).sum().item()
    third = (w * fast._Correlation.apply(x, y, w.shape, w.dtype, 1.0, 2, 0)).sum().item()
    assert first == pytest.approx(second) == pytest.approx(third)
    assert abs((y * fast.convolve(x, w.flip(2, 3), **options)).sum().item() - first) > 1  # control


def test_what_convolve_does_to_a_resolution():
    """Lesson: which kernel, stride and padding keep, halve or double the resolution."""
    x = lambda r: torch.randn(1, 2, r, r)
    w = lambda k: torch.randn(2, 2, k, k)
    size = lambda y: y.shape[2]
    assert size(fast.convolve(x(8), w(1))) == size(fast.convolve(x(8), w(3))) == 8
    assert size(fast.convolve(x(8), w(4), stride=2)) == 4
    assert size(fast.convolve(x(8), w(4), stride=2, up=True)) == 16
    assert size(fast.convolve(x(9), w(3), stride=2, padding=0)) == 4       # (R - 1) / 2
    assert size(fast.convolve(x(8), w(3), stride=2, padding=0, up=True)) == 17
    assert size(F.conv2d(x(8), w(3))) == 6                     # control: torch pads nothing


def test_convolution_keeps_the_weight_itself_and_x_only_if_the_weight_learns():
    """Lesson: a kernel that is scaled inside need not be kept a second time."""
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 3, 3)
    weight.requires_grad_()
    _, kept = kept_for_gradients(lambda: fast.convolve(x, weight, scale=0.5))
    assert set(kept) == {x.data_ptr(), weight.data_ptr()}
    _, kept = kept_for_gradients(lambda: F.conv2d(x, 0.5 * weight))
    assert weight.data_ptr() not in kept                       # control: a scaled copy instead
    weight.requires_grad_(False)                               # as when G learns and D judges
    _, kept = kept_for_gradients(lambda: fast.convolve(x, weight, scale=0.5))
    assert set(kept) == {weight.data_ptr()}


def test_convolution_computes_in_the_precision_of_its_input():
    """Lesson: weights learn in float32 and are rounded where they are used."""
    x, weight = torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3, requires_grad=True)
    y = fast.convolve(x.bfloat16(), weight, torch.randn(8) * 0)
    judge = F.conv2d(x, weight, padding=1)
    assert y.dtype == torch.bfloat16
    assert 1e-4 < relative(y.float(), judge) < 0.02            # 8 bits; above 0: the control
    y.float().square().sum().backward()
    gradient, = torch.autograd.grad(judge.square().sum(), weight)
    assert weight.grad.dtype == torch.float32 and relative(weight.grad, gradient) < 0.02


def test_gradients_for_the_input_only_leave_the_weights_out():
    """Lesson: R1 wants the gradient at the images, and nothing is computed for the weights."""
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3)
    weight.requires_grad_()
    bias = torch.zeros(2, requires_grad=True)
    with fast.input_gradients_only():
        fast.convolve(x, weight, bias).sum().backward()
    assert weight.grad is None and bias.grad is None and x.grad is not None
    with pytest.raises(KeyError), fast.input_gradients_only():
        raise KeyError
    fast.convolve(x, weight, bias).sum().backward()            # control: outside, as always
    assert weight.grad is not None and bias.grad is not None


def counted_correlations(monkeypatch):
    """A list that grows by one with each gradient of a kernel that is computed."""
    counted, right = [], fast._Correlation.forward

    def count(*arguments):
        counted.append(1)
        return right(*arguments)
    monkeypatch.setattr(fast._Correlation, "forward", staticmethod(count))
    return counted


@pytest.mark.parametrize("up", [False, True])
def test_a_kernel_made_of_an_input_keeps_its_gradient(up, monkeypatch):
    """Lesson: StyleGAN2's kernel is weight times style, and path length is the gradient that flows
    through it to the style. Spared is only the gradient of a kernel that is a stored weight."""
    x, weight, style = torch.randn(1, 3, 5, 5), torch.randn(3, 3, 3, 3), torch.randn(3)
    inputs = [t.double().requires_grad_() for t in (x, weight, style)]

    def path_length(convolve, x, weight, style, only=True):
        y = convolve(x, weight * style.square()[:, None, None])
        number = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()
        if only:
            with fast.input_gradients_only():
                slope, = torch.autograd.grad(number, style, create_graph=True)
        else:
            slope, = torch.autograd.grad(number, style, create_graph=True)
        return slope, torch.autograd.grad(slope.square().sum(), (x, weight, style))

    def ours(x, weight):
        return fast.convolve(x, weight, stride=2, up=up, padding=1)

    def torchs(x, weight):
        return (F.conv_transpose2d if up else F.conv2d)(x, weight, stride=2, padding=1)
    slope, derivatives = path_length(ours, *inputs)
    judge, judges = path_length(torchs, *inputs, only=False)
    for a, b in zip((slope, *derivatives), (judge, *judges)):
        assert b.abs().max() > 0.1 and relative(a, b) < 1e-12
    # Stored weights are spared: of both kernels in this one gradient, only that of the made one.
    counted = counted_correlations(monkeypatch)
    stored = torch.randn(3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    y = ours(fast.convolve(inputs[0], stored), inputs[1] * inputs[2][:, None, None])
    with fast.input_gradients_only():
        torch.autograd.grad(y.sum(), (inputs[0], inputs[2]), create_graph=True)
    assert len(counted) == 1
    torch.autograd.grad(y.sum(), (inputs[0], inputs[2]), create_graph=True)
    assert len(counted) == 3                                   # control: outside, both

    # Control: taken for a stored weight, the kernel loses what flows through it, silently where x
    # depends on the style, too.
    right = fast._Convolution.forward

    def forced(ctx, *arguments):
        y = right(ctx, *arguments)
        ctx.weight_is_stored = True
        return y
    monkeypatch.setattr(fast._Convolution, "forward", staticmethod(forced))

    def both(x, weight):
        return ours(x * inputs[2].sum(), weight)
    wrong, _ = path_length(both, *inputs)
    monkeypatch.setattr(fast._Convolution, "forward", staticmethod(right))
    through_both, _ = path_length(both, *inputs)
    assert relative(wrong, through_both) > 0.1
    expected, _ = path_length(lambda x, weight: torchs(x * inputs[2].sum(), weight), *inputs,
                              only=False)
    assert relative(through_both, expected) < 1e-12


# ---- 3. filters: blur, box, FIR ----


def blur_loop(x):
    """[1,2,1] in both directions, zeros beyond the border: one pixel at a time."""
    out = torch.zeros_like(x)
    taps = {-1: 0.25, 0: 0.5, 1: 0.25}
    for y in range(x.shape[2]):
        for u in range(x.shape[3]):
            for dy, wy in taps.items():
                for du, wu in taps.items():
                    if 0 <= y + dy < x.shape[2] and 0 <= u + du < x.shape[3]:
                        out[:, :, y, u] += wy * wu * x[:, :, y + dy, u + du]
    return out


def test_blur_and_its_derivatives_against_a_loop():
    """Lesson: the blur is its own transpose, so its gradient is a blur, and so on for ever."""
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert relative(fast.blur(x), blur_loop(x)) < 1e-12
    assert torch.autograd.gradcheck(fast.blur, x)              # finite differences
    assert torch.autograd.gradgradcheck(lambda x: fast.blur(x).square(), x)
    flat = fast.blur(torch.ones(1, 1, 5, 5))[0, 0]
    assert torch.equal(flat[1:-1, 1:-1], torch.ones(3, 3))     # flat stays flat
    assert flat[0, 0] == 9 / 16                                # but for the zeros beyond the border

    def lopsided(x):                                           # control: not its own transpose
        class Wrong(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return F.pad(x, (1, 0))[..., :-1]              # moves the picture to the right

            @staticmethod
            def backward(ctx, grad):
                return Wrong.apply(grad)
        return Wrong.apply(x)
    with pytest.raises(RuntimeError, match="Jacobian"):
        torch.autograd.gradcheck(lopsided, x)


def test_boxes_and_their_derivatives_against_pooling():
    """Lesson: with a border of zeros or without, each box is the gradient of the other."""
    x = torch.randn(2, 3, 4, 6)
    check_derivatives(lambda x: fast.box_mean(x).pow(3),
                      lambda x: F.avg_pool2d(x, 2, 1, padding=1).pow(3), x)
    numbers = check_derivatives(lambda x: fast.box_sum(x).pow(3),
                                lambda x: 64 * F.avg_pool2d(x, 2, 1).pow(3), x)
    stylegan2 = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8])
    both = fast.blur(fast.box_sum(x)) / 4                      # is its filter, inside
    filtered = F.conv2d(x.flatten(0, 1)[:, None], stylegan2[None, None]).unflatten(0, (2, 3))
    assert relative(both[..., 1:-1, 1:-1], filtered[:, :, 0]) < FLOAT32
    assert fast.box_mean(x).shape[2:] == (5, 7) and fast.box_sum(x).shape[2:] == (3, 5)
    assert all(n.abs().max() > 1 for n in numbers)             # control: there was something


@pytest.mark.parametrize("taps", [fast.BOX_MEAN, fast.BOX_SUM, (4, 0.125, 0.375)])
@pytest.mark.parametrize("border", [0, 1, 2])
def test_an_even_filter_by_an_odd_kernel_is_the_same(taps, border):
    """Lesson: with zeros in front of its taps, and one more zero of border for them to stand on, an
    even filter is an odd one, which GPUs have a fast program for."""
    x = torch.randn(2, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    even, odd = (fast.filtered(x, taps, border, odd) for odd in (False, True))
    assert even.shape == odd.shape == (2, 3, *(side + 2 * border - taps[0] + 1 for side in (6, 5)))
    assert relative(odd, even) < FLOAT32
    assert odd.is_contiguous(memory_format=torch.channels_last)
    kernel = fast.kept_kernel(taps, x, odd=True)
    behind = F.conv2d(x, kernel.flip(2, 3), padding=border + 1, groups=3)  # control: zeros behind
    assert relative(behind[..., :-1, :-1], even) > 0.1


def test_a_filter_is_made_once_and_never_out_of_names():
    """Lesson: what a program that is traced makes has no numbers, and must not be kept."""
    x = torch.randn(1, 7, 4, 4)
    first = fast.kept_kernel(fast.BLUR, x)
    assert fast.kept_kernel(fast.BLUR, x) is first             # made once,
    assert torch.equal(first, fast.filter_kernel(*fast.BLUR, 7))
    assert fast.kept_kernel(fast.BLUR, x.double()).dtype == torch.float64  # for each precision
    assert fast.kept_kernel(fast.BOX_SUM, x, odd=True).shape == (7, 1, 3, 3)

    class Blur(torch.nn.Module):
        def forward(self, x):
            return fast.blur(x)
    other = torch.randn(1, 11, 4, 4)
    torch.export.export(Blur(), (other,))
    assert not any(key[1] == 11 for key in fast._kernels)
    assert relative(fast.blur(other), blur_loop(other)) < FLOAT32
    assert any(key[1] == 11 for key in fast._kernels)          # control: now it is kept


def fir_loop(x, border, gain=1.0):
    """[1,3,3,1] in both directions over 64, times gain: one tap after the other."""
    taps = (1, 3, 3, 1)
    padded = F.pad(x, (border,) * 4)
    h, w = (side - 3 for side in padded.shape[2:])
    return sum(gain * taps[i] * taps[j] / 64 * padded[:, :, i:i + h, j:j + w]
               for i in range(4) for j in range(4))


@pytest.mark.parametrize("border, gain", [(1, 4.0), (2, 1.0), (1, 1.0)])
def test_fir_is_box_and_blur_in_one_with_one_border(border, gain):
    """Lesson: [1,3,3,1] is [1,1] after [1,2,1]. As one filter it has one border of zeros; and its
    gradient is the same filter, over a border that makes up for what the first one left out."""
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    ours = lambda x: fast.fir(x, border, gain)
    assert ours(x).shape[2:] == (5 + 2 * border - 3, 4 + 2 * border - 3)
    check_derivatives(lambda x: ours(x).pow(3), lambda x: fir_loop(x, border, gain).pow(3), x)
    assert torch.autograd.gradcheck(ours, x)                   # finite differences
    assert torch.autograd.gradgradcheck(lambda x: ours(x).square(), x)
    large = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    both = gain * fast.box_mean(fast.blur(large))[..., 1:-1, 1:-1]         # without any border
    one, inside = fast.fir(large, 0, gain), (..., slice(1, -1), slice(1, -1))
    assert relative(both[inside], one) < 1e-12
    flat = fast.fir(torch.ones(1, 1, 8, 8), border, gain)[0, 0, 2:-2, 2:-2]
    assert torch.allclose(flat, torch.full_like(flat, gain))   # flat stays flat, times the gain
    twice = {1: lambda x: fast.blur(fast.box_sum(x)) / 4, 2: lambda x: fast.box_mean(fast.blur(x))}
    in_two = gain * twice[border](large)                       # control: the border of each
    assert relative(in_two[inside], ours(large)[inside]) < 1e-12
    assert relative(in_two, ours(large)) > 0.05


# ---- 4. AdaIN ----


def adain_in_full(x, scale, shift):
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    variance = centred.square().mean(dim=(2, 3), keepdim=True)
    return scale * centred / (variance + 1e-8).sqrt() + shift


def test_adain_and_its_gradient_against_autograd():
    """Lesson: a gradient worked out on paper is a claim like any other."""
    x, scale, shift = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)
    inputs = [t.double().requires_grad_() for t in (x, scale, shift)]
    upstream, gradients = torch.randn(2, 3, 5, 4).double(), []
    for f in (fast.normalize_and_style, adain_in_full):
        y = f(*inputs)
        gradients.append([y, *torch.autograd.grad((y * upstream).sum(), inputs)])
    for ours, theirs in zip(*gradients):
        assert ours.shape == theirs.shape and relative(ours, theirs) < 1e-10
    # Control: a gradient that forgets that mean and size are taken out is far off.
    forgetful = inputs[1] / x.double().std(dim=(2, 3), correction=0, keepdim=True) * upstream
    assert relative(forgetful, gradients[0][1]) > 0.1
    with pytest.raises(RuntimeError, match="once_differentiable"):         # not silently wrong
        y = fast.normalize_and_style(*inputs)
        g, = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
        g.sum().backward()


def test_adain_adds_up_pixels_in_float32_also_for_bfloat16():
    """Lesson: a sum of 4096 numbers in 8 bits would be nonsense."""
    x = (torch.randn(2, 3, 64, 64) + 10).bfloat16()            # rounded before, for both
    one, zero = torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1)
    judge = adain_in_full(x.float(), one, zero)
    ours = fast.normalize_and_style(x, one, zero)
    assert ours.dtype == torch.bfloat16 and relative(ours.float(), judge) < 0.005
    total = torch.zeros((), dtype=torch.bfloat16)
    for pixel in x[0, 0].flatten():
        total += pixel
    assert abs(total.item() / 4096 - 10) > 1                   # control: one after the other
    # A channel of equal pixels: 1e-8 is added to its variance, which is 0, and keeps it finite.
    dead = fast.normalize_and_style(torch.full((2, 3, 4, 4), 7.0), one, zero)
    assert dead.isfinite().all() and dead.abs().max() < 0.01


def test_spatial_mean_is_the_mean_in_every_memory_format():
    """Lesson: a mean is a product with a row of equal weights, however the pixels lie."""
    x = torch.randn(2, 5, 8, 8)
    judge = x.double().mean(dim=(2, 3), keepdim=True)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        ours = fast.spatial_mean(x.contiguous(memory_format=memory_format))
        assert ours.shape == (2, 5, 1, 1) and relative(ours.double(), judge) < FLOAT32
    assert relative(x[..., 1:].double().mean(dim=(2, 3), keepdim=True), judge) > 0.01    # control


# ---- 5. merged kernels ----


def test_merged_kernel_is_four_shifted_copies():
    """Lesson: the 4x4 kernel is the 3x3 one, put down four times and summed; blurred, it is 6x6."""
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    by_hand = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    for dy in (0, 1):
        for dx in (0, 1):
            by_hand[:, :, dy:dy + 3, dx:dx + 3] += weight
    assert relative(fast.merged_kernel(weight, blurred=False), by_hand) < 1e-12
    blurred = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    for dy, wy in enumerate((0.25, 0.5, 0.25)):
        for dx, wx in enumerate((0.25, 0.5, 0.25)):
            blurred[:, :, dy:dy + 4, dx:dx + 4] += wy * wx * by_hand
    merged = fast.merged_kernel(weight, blurred=True)
    assert relative(merged, blurred) < 1e-12
    assert merged.sum().item() == pytest.approx(4 * weight.sum().item())   # nothing lost
    assert relative(blurred[..., 1:-1, 1:-1], by_hand) > 0.1   # control: the blur does something


UP = (layers.upsample_conv_blur_plain, layers.upsample_conv_blur,
      fast.upsample_conv_blur_4x4, fast.upsample_conv_blur_6x6)
DOWN = (layers.blur_conv_downsample_plain, layers.blur_conv_downsample,
        fast.blur_conv_downsample_4x4, fast.blur_conv_downsample_6x6)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("side", [4, 8, 16])
def test_blur_in_conv_equals_the_plain_twin_border_included(direction, side):
    """Lesson: box and blur can be merged into the kernel, and with the odd reflection the border
    is right, too. (Steps 1 and 2: tests/test_layers.py. The control: the test below.)"""
    plain, _, *merged = UP if direction == "up" else DOWN
    x, weight = torch.randn(2, 24, side, side), torch.randn(12, 24, 3, 3)
    judge = plain(x.double(), weight.double())
    for form in merged:
        assert form(x, weight).shape == judge.shape
        assert relative(form(x, weight).double(), judge) < FLOAT32
    # The gradients are the same too, and the gradients of their squares (what R1 needs).
    x = x.double().requires_grad_()
    derivatives = []
    for form in (plain, *merged):
        first, = torch.autograd.grad(form(x, weight.double()).pow(3).sum(), x, create_graph=True)
        second, = torch.autograd.grad(first.square().sum(), x)
        derivatives.append((first.detach(), second))
    for first, second in derivatives[1:]:
        assert relative(first, derivatives[0][0]) < 1e-10
        assert relative(second, derivatives[0][1]) < 1e-10


def test_without_the_odd_reflection_the_border_is_wrong():
    """Lesson, and the control of the test above: the merged kernel with plain zero padding, as
    earlier code has it, is 16 % (down) and 26 % (up) RMS wrong on the outermost pixels."""
    x = torch.randn(4, 32, 16, 16, dtype=torch.float64)
    weight = torch.randn(32, 32, 3, 3, dtype=torch.float64)

    def border_error(wrong, right):
        border = torch.ones(right.shape[2:], dtype=torch.bool)
        border[1:-1, 1:-1] = False
        assert relative(wrong[..., ~border], right[..., ~border]) < 1e-10  # inside all is well
        return rms((wrong - right)[..., border]) / rms(right[..., border])

    down = F.conv2d(x, fast.merged_kernel(weight, True) / 4, stride=2, padding=2)
    up = F.conv_transpose2d(
        x, fast.merged_kernel(weight.flip(2, 3), True).transpose(0, 1), stride=2, padding=2)
    assert border_error(down, layers.blur_conv_downsample_plain(x, weight)) == pytest.approx(
        0.16, abs=0.015)
    assert border_error(up, layers.upsample_conv_blur_plain(x, weight)) == pytest.approx(
        0.26, abs=0.015)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_merged_forms_multiply_more_often(direction):
    """Lesson: 16 and 36 multiplications per pixel of the small image, where step 2 takes 9."""
    from test_layers import CountMultiplications
    side, counted = 8 if direction == "up" else 16, []
    x, weight = torch.randn(2, 5, side, side), torch.randn(7, 5, 3, 3)
    for form in UP if direction == "up" else DOWN:
        with CountMultiplications() as counter:
            form(x, weight)
        counted.append(counter.count / (2 * 5 * 7 * 8 * 8))
    assert counted == [36, 9, 16, 36]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_merged_forms_keep_no_less_memory(direction):
    """Lesson: blur and box keep nothing for their gradients, so merging them away frees nothing,
    but for the row and column that the box adds, which is less than the larger kernel."""
    side = 16 if direction == "up" else 32
    x, weight = torch.randn(2, 32, side, side), torch.randn(32, 32, 3, 3)
    x.requires_grad_()
    weight.requires_grad_()
    kept = []
    for form in UP if direction == "up" else DOWN:
        y, tensors = kept_for_gradients(lambda: form(x, weight))
        kept.append(sum(t.numel() for t in tensors.values()))
        assert y.requires_grad
    plain, used, four, six = kept
    assert used < four < six
    assert used < plain                                        # control: the count counts something
