"""stylegan_layers.py, from top to bottom. Each test is a lesson; its control shows it can fail."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import stylegan_layers as layers
from conftest import relative
from test_fast_gradients import fir_loop
from workshop.fast_gradients import leaky_relu

# float32 carries 7 digits; sums over a few hundred products keep 6 of them.
FLOAT32 = 1e-5


def rms(x):
    return x.square().mean().sqrt().item()


# ---- 1. a style layer ----


def test_learned_constant_has_a_batch_axis():
    """Lesson: noise added to [1, C, 4, 4] would be one noise for all; [N, C, 4, 4] takes N."""
    constant, noise = layers.LearnedConstant(6), layers.NoiseInput(6, 4)
    assert torch.equal(constant(2), torch.ones(2, 6, 4, 4))    # ones, and a bias of 0
    noise.strength.data.fill_(1.0)
    x = noise(constant(5))
    assert x.shape == (5, 6, 4, 4)
    assert not torch.equal(x[0], x[1])
    assert torch.equal(constant(5)[0], constant(5)[1])         # control: without noise all alike


def test_noise_is_one_map_shared_by_all_channels():
    """Lesson: channel c gets strength[c] times the same map; strength 0, the start, is silence."""
    noise, x = layers.NoiseInput(3, 16), torch.randn(2, 3, 16, 16)
    assert torch.equal(noise(x), x)
    noise.strength.data = torch.tensor([1.0, -2.0, 0.0])
    added = noise(x) - x
    assert relative(added[:, 1], -2 * added[:, 0]) < FLOAT32
    assert added[:, 2].abs().max() == 0
    assert rms(added[:, 0]) == pytest.approx(1, abs=0.1)       # N(0, 1): 512 numbers, 3 sigma
    assert relative(added[0], added[1]) > 0.1                  # every image its own
    assert relative(noise(x), noise(x)) > 0.1                  # every call its own
    assert torch.equal(noise(x, "const"), noise(x, "const"))
    for image in (0, 1):                                       # the stored map for all images
        stored = (noise(x, "const") - x)[image, 0]
        assert relative(stored, noise.const[0, 0]) < FLOAT32
    assert torch.equal(noise(x, "none"), x)
    with pytest.raises(ValueError, match="noise_mode"):
        noise(x, "loud")


def test_adain_gives_each_channel_the_mean_and_std_that_w_asks_for():
    """Lesson: whatever mean and std x had are gone; those of the style are there."""
    adain = layers.AdaIN(10, 4)
    assert not adain.style.bias.any()                          # y_s starts around 1, y_b around 0
    adain.style.bias.data.normal_()
    x = torch.randn(3, 4, 16, 16) * torch.tensor([0.1, 1, 5, 50])[:, None, None] + 7
    w = torch.randn(3, 10)
    y_s, y_b = (w @ adain.style.weight.T / math.sqrt(10) + adain.style.bias).chunk(2, dim=1)
    out = adain(x, w)
    assert relative(out.mean(dim=(2, 3)), y_b) < 1e-4          # x has a mean of 70 std's: 5 digits
    assert relative(out.std(dim=(2, 3), correction=0), (y_s + 1).abs()) < 1e-4
    assert relative(x.mean(dim=(2, 3)), y_b) > 1               # control: x was something else
    y_s, y_b = y_s[..., None, None], y_b[..., None, None]
    judge = F.instance_norm(x.double(), eps=1e-8) * (y_s + 1) + y_b
    assert relative(out.double(), judge) < 1e-4


def test_adain_forgets_the_size_and_keeps_the_place():
    """Lesson: how much of a feature there is, AdaIN forgets; where it is, AdaIN keeps. So a style
    rules over one convolution only, and coarse layers still decide pose and shape for all."""
    adain = layers.AdaIN(10, 3).double()
    w = torch.randn(2, 10, dtype=torch.float64)
    rows, columns = torch.meshgrid(*2 * [torch.arange(16.0, dtype=torch.float64)], indexing="ij")

    def blob(row, column):                                     # [2, 3, 16, 16], one bright place
        picture = torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8)
        return picture.expand(2, 3, 16, 16)

    x = blob(4, 5)
    out = adain(x, w)
    for size, offset in ((3.0, 0.0), (0.2, -7.0), (50.0, 1.0)):
        # AdaIN adds 1e-8 to the variance, which is 0.04 here, and 0.0016 at 0.2: the sixth digit.
        assert relative(adain(size * x + offset, w), out) < 1e-5
    sizes = torch.tensor([1.0, 10.0, 0.1])[:, None, None]      # beside each other, too: "Known"
    assert relative(adain(sizes * x, w), out) < 1e-4           # the variance is 0.0004 at 0.1
    assert relative(3 * x, x) > 1                              # control: it was another input
    moved = adain(blob(11, 6), w)
    assert relative(moved, out) > 0.5                          # control: not all is forgotten
    peak = lambda y: (y - y.mean(dim=(2, 3), keepdim=True)).abs().flatten(2).argmax(dim=2)
    assert (peak(out) == 4 * 16 + 5).all() and (peak(moved) == 11 * 16 + 6).all()
    shifted = torch.roll(x, (3, 2), dims=(2, 3))               # exactly: it moves with the feature
    assert relative(adain(shifted, w), torch.roll(out, (3, 2), dims=(2, 3))) < 1e-12


# ---- 1, in StyleGAN2: a style layer without AdaIN ----


def with_zeros_between(x):
    """[N, C, H, W] -> [N, C, 2H, 2W]: pixels at even places, zeros between them."""
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[:, :, ::2, ::2] = x
    return wide


def modulated_by_hand(x, weight, style, demodulate, up):
    """Equations 1 and 3 of StyleGAN2, image by image; up: zeros between, then [1,3,3,1]."""
    out = []
    for image, scales in zip(x, style):
        kernel = weight / math.sqrt(weight[0].numel()) * scales[:, None, None]         # w'
        if demodulate:
            sizes = [(kernel[o].square().sum() + 1e-8).sqrt() for o in range(len(kernel))]
            kernel = kernel / torch.stack(sizes)[:, None, None, None]                  # w''
        if up:                         # the border is of zeros once, not once for each filter
            y = F.conv2d(F.pad(with_zeros_between(image[None]), (2, 1, 2, 1)), kernel)
            out.append(fir_loop(F.pad(y, (1, 1, 1, 1)), 0, gain=4.0))
        else:
            out.append(F.conv2d(image[None], kernel, padding=weight.shape[2] // 2))
    return torch.cat(out)


def derivatives(function, *inputs):
    """Value, gradients, and gradients of the gradients' squares, the noise of a path length."""
    y = function(*inputs)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).cos().view(y.shape)
    first = torch.autograd.grad((y.pow(2) * upstream).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [y, *first, *second]


@pytest.mark.parametrize("kernel, up, demodulate", [(3, False, True), (3, True, True),
                                                    (1, False, False), (3, True, False)])
def test_both_forms_of_modulation_agree_with_all_derivatives(kernel, up, demodulate):
    """Lesson: one kernel for each image, or one kernel and each image scaled before and after: the
    same numbers, also for the derivative of a derivative. Judge: image by image, as the paper has
    it. (The third image has a style so small that 1e-8 counts.)"""
    x, weight = torch.randn(3, 4, 5, 5), torch.randn(6, 4, kernel, kernel)
    style = torch.randn(3, 4) * torch.tensor([1.0, 10.0, 1e-4])[:, None]
    inputs = [t.double().requires_grad_() for t in (x, weight, style)]

    def form(modulate):
        return derivatives(lambda *t: layers.modulated_convolution(
            *t, demodulate=demodulate, up=up, modulate=modulate), *inputs)
    judge = derivatives(lambda *t: modulated_by_hand(*t, demodulate, up), *inputs)
    for ours in (form("images"), form("kernels")):
        assert ours[0].shape == (3, 6, 10 if up else 5, 10 if up else 5)
        for a, b in zip(ours, judge, strict=True):
            assert b.abs().max() > 0 and relative(a, b) < 1e-9
    # Control: each image has its own style, and the second derivative feels it.
    inputs[2] = inputs[2].detach().roll(1, 0).requires_grad_()
    others = form("images")
    assert relative(others[0], judge[0]) > 0.1 and relative(others[-1], judge[-1]) > 0.1


def test_demodulation_expects_inputs_of_size_1_and_does_not_look_at_them():
    """Lesson: of inputs that are independent and of size 1, every output channel has size 1, for
    any style. But a spike stays what it is, which is why it is of no use to G: beside it nothing
    changes. An AdaIN makes all the rest small."""
    x, weight = torch.randn(2, 64, 32, 32), torch.randn(48, 64, 3, 3)
    style = torch.exp(2 * torch.randn(2, 64))                  # some channels 50 times as strong
    plain = layers.modulated_convolution(x, weight, style, demodulate=False)
    ours = layers.modulated_convolution(x, weight, style)
    sizes = ours[..., 1:-1, 1:-1].square().mean(dim=(2, 3)).sqrt()         # without the border
    assert (sizes - 1).abs().max() < 0.15                      # 900 pixels that hang together
    control = plain[..., 1:-1, 1:-1].square().mean(dim=(2, 3)).sqrt()
    assert control.min() > 3
    assert relative(layers.modulated_convolution(x, weight, 7 * style), ours) < FLOAT32
    spiky = x.clone()
    spiky[:, :, 16, 16] += 1000
    far = torch.ones(32, 32, dtype=torch.bool)
    far[15:18, 15:18] = False
    there = layers.modulated_convolution(spiky, weight, style)
    assert torch.equal(there[..., far], ours[..., far]) and relative(there, ours) > 10
    adain, w = layers.AdaIN(10, 64), torch.randn(2, 10)
    adain.style.weight.data.zero_()
    before, after = (adain(picture, w)[..., far] for picture in (x, spiky))
    assert rms(before) == pytest.approx(1, abs=0.05) and rms(after) < 0.1
    assert torch.equal(layers.modulated_convolution(x, weight, 0 * style), 0 * ours)   # no 0 / 0


@pytest.mark.parametrize("up", [False, True])
def test_a_style_layer_of_stylegan2_is_figure_2d(up):
    """Lesson: convolution, noise, bias, leaky ReLU, gain, in this order. Noise has one strength for
    all channels, and is as strong for every w."""
    layer = layers.ModulatedConv2d(5, 7, 10, 8, up=up)
    assert layer.noise.strength.tolist() == [0] and not layer.bias.any()
    assert torch.equal(layer.style.bias, torch.ones(5))        # styles begin around 1
    assert rms(layers.ModulatedConv2d(64, 64, 10, 4).weight) == pytest.approx(1, abs=0.02)
    layer = layer.double()
    layer.bias.data.normal_()
    layer.noise.strength.data.fill_(0.7)
    x = torch.randn(3, 5, 4 if up else 8, 4 if up else 8, dtype=torch.float64)
    w = torch.randn(3, 10, dtype=torch.float64)
    style = F.linear(w, layer.style.weight / math.sqrt(10), layer.style.bias)
    y = modulated_by_hand(x, layer.weight, style, demodulate=True, up=up)
    noise, bias = 0.7 * layer.noise.const, layer.bias[:, None, None]
    judge = math.sqrt(2) * F.leaky_relu(y + noise + bias, 0.2)
    ours = layer(x, w, "const")
    assert ours.shape == (3, 7, 8, 8) and relative(ours, judge) < 1e-12
    for wrong in (F.leaky_relu(math.sqrt(2) * y + noise + bias, 0.2),      # as in StyleGAN
                  math.sqrt(2) * F.leaky_relu(y + bias, 0.2) + noise):
        assert relative(wrong, judge) > 0.01                   # controls
    fresh, silent = layer(x, w, "random"), layer(x, w, "none")
    assert relative(silent, math.sqrt(2) * F.leaky_relu(y + bias, 0.2)) < 1e-12
    assert relative(fresh, ours) > 0.01 and relative(fresh, layer(x, w, "random")) > 0.01


def test_to_rgb_is_modulated_and_not_demodulated():
    """Lesson: 10 times the style is 10 times the colours, but for the bias. No leaky ReLU follows,
    and no noise."""
    layer = layers.ModulatedToRGB(6, 10).double()
    layer.bias.data.normal_()
    x, w = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((6, 8, 8), (10,)))
    style = F.linear(w, layer.style.weight / math.sqrt(10), torch.ones(6, dtype=torch.float64))
    bias = layer.bias[:, None, None]
    judge = modulated_by_hand(x, layer.weight, style, demodulate=False, up=False)
    assert relative(layer(x, w), judge + bias) < 1e-12
    demodulated = modulated_by_hand(x, layer.weight, style, demodulate=True, up=False)
    assert relative(demodulated, judge) > 0.1                  # control
    before = layer(x, w) - bias
    layer.style.weight.data *= 10
    layer.style.bias.data *= 10
    assert relative(layer(x, w) - bias, 10 * before) < 1e-12


# ---- 2. equalized weights ----


def test_gain_sqrt_2_keeps_the_signal_alive_through_leaky_relus():
    """Lesson: a leaky ReLU keeps 0.52 of the mean square. With gain sqrt(2) the signal keeps its
    size over 20 layers; with gain 1 it dies."""
    kept = leaky_relu(torch.randn(1_000_000)).square().mean().item()
    assert kept == pytest.approx((1 + 0.2 ** 2) / 2, abs=0.005)            # 4 sigma
    assert abs(kept - 0.5) > 0.01                              # control: not a plain ReLU's half

    def after_20_layers(gain):
        x = torch.randn(64, 256)
        for _ in range(20):
            x = leaky_relu(layers.EqualizedLinear(256, 256, gain=gain)(x))
        return rms(x)

    # (2 * 0.52)^20 of the mean square is expected, 1.5 times the size; random weights scatter.
    assert 0.7 < after_20_layers(layers.LEAKY_GAIN) < 3
    assert after_20_layers(1.0) < 0.01                                     # control


def test_equalized_linear_is_a_scaled_linear_layer():
    """Lesson: the stored weight is N(0, 1/lr_multiplier^2), the used one N(0, gain^2/fan_in)."""
    x = torch.randn(5, 300, dtype=torch.float64)
    for lr_multiplier in (1.0, 0.01):
        layer = layers.EqualizedLinear(300, 200, gain=1.5, lr_multiplier=lr_multiplier).double()
        assert not layer.bias.any()
        layer.bias.data.normal_()
        assert layer.weight.std().item() == pytest.approx(1 / lr_multiplier, rel=0.02)
        scale = 1.5 / math.sqrt(300) * lr_multiplier
        by_hand = torch.stack([
            torch.stack([(x[n] * layer.weight[o] * scale).sum() + layer.bias[o] * lr_multiplier
                         for o in range(200)]) for n in range(5)])
        assert relative(layer(x), by_hand) < 1e-12
        assert relative(layer(x), F.linear(x, layer.weight, layer.bias)) > 0.5     # control
    with pytest.raises(RuntimeError):
        layer(x[:, 1:])


def adam_step(layer, x, loss_scale=1.0):
    """One step of Adam. Returns how far it moved (weights, output), relative to their size."""
    weight, before = layer.weight.detach().clone(), layer(x)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, betas=(0.0, 0.99))
    (loss_scale * before.square().mean()).backward()
    optimizer.step()
    return (rms(layer.weight.detach() - weight) / rms(weight),
            rms(layer(x) - before) / rms(before))


def test_one_adam_step_moves_the_function_by_lr_multiplier():
    """Lesson: Adam moves each stored number by the learning rate. So the weights of all layers
    change at the same relative speed, whatever their fan_in; and a layer that uses 0.01 of what it
    stores learns at 0.01 of the speed."""
    def moved(fan_in, lr_multiplier=1.0, **options):
        layer = layers.EqualizedLinear(fan_in, 64, lr_multiplier=lr_multiplier)
        return adam_step(layer, torch.randn(32, fan_in), **options)

    # Equalized: 0.001 of a weight of about 1, for every fan_in and every size of the gradient.
    for fan_in in (64, 256, 1024):
        assert moved(fan_in)[0] == pytest.approx(1e-3, rel=0.03)
    assert moved(256, loss_scale=1000.0)[0] == pytest.approx(1e-3, rel=0.03)
    # Control: weights that are stored as they are used, N(0, 2 / fan_in), are smaller for a large
    # fan_in, so the same step is a larger part of them: sqrt(16) = 4 times for 16 times the fan_in.
    usual = []
    for fan_in in (64, 1024):
        layer = torch.nn.Linear(fan_in, 64)
        torch.nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
        usual.append(adam_step(layer, torch.randn(32, fan_in))[0])
    assert usual[1] / usual[0] == pytest.approx(4, rel=0.05)
    # What the layer computes moves by 0.01, too, when lr_multiplier is 0.01.
    assert moved(256, 0.01)[1] == pytest.approx(0.01 * moved(256)[1], rel=0.2)
    assert moved(256, 0.01)[0] == pytest.approx(1e-5, rel=0.03)


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_equalized_conv_is_a_scaled_conv_also_when_it_resamples(resample):
    """Lesson: fan_in is 9 C_in whatever kernel computes it, and the bias comes last."""
    layer = layers.EqualizedConv2d(20, 30, resample=resample).double()
    assert not layer.bias.any()
    layer.bias.data.normal_()
    assert layer.weight.std().item() == pytest.approx(1, rel=0.05)
    x = torch.randn(2, 20, 8, 8, dtype=torch.float64)
    weight = layer.weight * math.sqrt(2) / math.sqrt(9 * 20)
    plain = {"up": layers.upsample_conv_blur_plain, "down": layers.blur_conv_downsample_plain,
             None: lambda x, w: F.conv2d(x, w, padding=1)}[resample](x, weight)
    bias = layer.bias[:, None, None]
    assert relative(layer(x), plain + bias) < 1e-10
    if resample == "up":                                       # control: a bias before the blur
        darker = layers.blur(F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1) + bias)
        assert relative(layer(x)[..., 1:-1, 1:-1], darker[..., 1:-1, 1:-1]) < 1e-10
        assert relative(layer(x), darker) > 0.01
    one = layers.EqualizedConv2d(20, 3, kernel_size=1, gain=1.0).double()
    judge = F.conv2d(x, one.weight / math.sqrt(20))
    assert relative(one(x), judge) < 1e-10
    assert relative(F.conv2d(x, one.weight), judge) > 1        # control: not scaled


def test_equalized_conv_says_what_it_cannot_do():
    """Lesson: an option that would be ignored is refused instead."""
    for right in (dict(kernel_size=1), dict(resample="up"), dict(resample="down")):      # control
        layers.EqualizedConv2d(2, 2, **right)
    with pytest.raises(ValueError, match='resample must be None, "up" or "down", got \'left\''):
        layers.EqualizedConv2d(2, 2, resample="left")
    with pytest.raises(ValueError, match="3x3"):
        layers.EqualizedConv2d(2, 2, kernel_size=1, resample="up")


# ---- 3. blur-in-conv ----


def test_nearest_neighbour_and_blur_are_bilinear():
    """Lesson: x0 x0 x1 x1, smoothed with [1, 2, 1]/4, is a straight line from x0 to x1: the
    bilinear sampling of table 1, row B. At the border it is not: there the blur sees zeros."""
    row = torch.tensor([[8.0, 4.0, 12.0]], dtype=torch.float64)[None, None]
    row = layers.blur(F.interpolate(row.expand(1, 1, 3, 3), scale_factor=2, mode="nearest"))
    by_hand = [3 / 4 * 8 + 1 / 4 * 4, 1 / 4 * 8 + 3 / 4 * 4, 3 / 4 * 4 + 1 / 4 * 12,
               1 / 4 * 4 + 3 / 4 * 12]
    assert torch.allclose(row[0, 0, 2, 1:-1], torch.tensor(by_hand, dtype=torch.float64))

    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    ours = layers.blur(F.interpolate(x, scale_factor=2, mode="nearest"))
    judge = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert ours.shape == judge.shape
    assert relative(ours[..., 1:-1, 1:-1], judge[..., 1:-1, 1:-1]) < 1e-12
    for edge in ((..., 0, slice(None)), (..., -1, slice(None)), (..., 0), (..., -1)):    # control
        assert relative(ours[edge], judge[edge]) > 0.1
    unblurred = F.interpolate(x, scale_factor=2, mode="nearest")                         # control
    assert relative(unblurred[..., 1:-1, 1:-1], judge[..., 1:-1, 1:-1]) > 0.1


FORMS = {"up": (layers.upsample_conv_blur_plain, layers.upsample_conv_blur),
         "down": (layers.blur_conv_downsample_plain, layers.blur_conv_downsample)}


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("side", [4, 8, 16])
def test_blur_in_conv_equals_the_plain_twin_border_included(direction, side):
    """Lesson: resample, convolve and blur may change places, also on the outermost pixels."""
    plain, fast = FORMS[direction]
    x, weight = torch.randn(2, 24, side, side), torch.randn(12, 24, 3, 3)
    judge = plain(x.double(), weight.double())
    assert judge.shape[2] == (2 * side if direction == "up" else side // 2)
    assert fast(x, weight).shape == judge.shape
    assert relative(fast(x, weight).double(), judge) < FLOAT32
    # Control: the kernel has no symmetry that could hide it, and each pixel of the border counts.
    assert relative(fast(x, weight.flip(2, 3)).double(), judge) > 0.1
    assert relative(F.pad(judge[..., 1:-1, 1:-1], (1, 1, 1, 1)), judge) > 0.1
    # The gradients are the same too, and the gradients of their squares (what R1 needs).
    x = x.double().requires_grad_()
    derivatives = []
    for form in (plain, fast):
        first, = torch.autograd.grad(form(x, weight.double()).pow(3).sum(), x, create_graph=True)
        second, = torch.autograd.grad(first.square().sum(), x)
        derivatives.append((first.detach(), second))
    for ours, theirs in zip(derivatives[1], derivatives[0]):
        assert relative(ours, theirs) < 1e-10


class CountMultiplications(TorchDispatchMode):
    """Within the block, counts what the convolutions (not blur and box) multiply."""

    def __init__(self):
        super().__init__()
        self.count, self.sizes = 0, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation is torch.ops.aten.convolution.default:
            x, weight, transposed, groups = args[0], args[1], args[6], args[8]
            if groups == 1 and weight.shape[1] > 1:            # blur and box take one channel each
                writes = x if transposed else result           # each of its numbers meets a kernel
                self.count += weight.numel() * writes[:, 0].numel()
            self.sizes += [x.shape[2], result.shape[2]]
        return result


@pytest.mark.parametrize("direction", ["up", "down"])
def test_nine_multiplications_per_pixel_instead_of_36(direction):
    """Lesson: what the exchange of places is for. On the way there are 2H + 1 rows: going down the
    box makes them, going up the transposed convolution does."""
    small, images, channels = 8, 2, 5 * 7
    side = small if direction == "up" else 2 * small
    x, weight, counted = torch.randn(images, 5, side, side), torch.randn(7, 5, 3, 3), []
    for form in FORMS[direction]:
        with CountMultiplications() as counter:
            form(x, weight)
        counted.append(counter.count / (images * channels * small * small))
    assert counted == [36, 9]                                  # the plain one is the control
    assert 2 * small + 1 in counter.sizes


# ---- 3, in StyleGAN2: box and blur in one ----


def test_fir_resampling_against_zeros_and_loops():
    """Lesson: what the paper's code says in so many words. Up: zeros between the pixels, then the
    filter; down: the filter, then every second pixel. With a convolution: it comes before the
    filter going up, and behind it, with stride 2, going down."""
    x, weight = torch.randn(2, 3, 6, 4).double(), torch.randn(5, 3, 3, 3).double()
    enlarged = fir_loop(F.pad(with_zeros_between(x), (2, 1, 2, 1)), 0, gain=4.0)
    assert enlarged.shape[2:] == (12, 8) and relative(layers.upsample_fir(x), enlarged) < 1e-12
    assert relative(F.interpolate(x, scale_factor=2), enlarged) > 0.1                # control
    reduced = fir_loop(x, 1)[:, :, ::2, ::2]
    assert reduced.shape[2:] == (3, 2) and relative(layers.downsample_fir(x), reduced) < 1e-12
    assert relative(F.avg_pool2d(x, 2), reduced) > 0.1                               # control

    by_hand = F.conv2d(F.pad(with_zeros_between(x), (2, 1, 2, 1)), 0.3 * weight)
    by_hand = fir_loop(by_hand, 1, gain=4.0)
    ours = layers.upsample_conv_fir(x, weight, 0.3)
    assert ours.shape == (2, 5, 12, 8) and relative(ours, by_hand) < 1e-12
    assert relative(layers.upsample_conv_fir(x, weight.flip(2, 3), 0.3), by_hand) > 0.1  # control
    # To enlarge first and to convolve then has two borders of zeros: the outermost ring differs.
    later = F.conv2d(enlarged, 0.3 * weight, padding=1)
    inside = (..., slice(1, -1), slice(1, -1))
    assert relative(later[inside], by_hand[inside]) < 1e-12 and relative(later, by_hand) > 0.01


def test_fir_and_blur_differ_at_the_border_only():
    """Lesson: StyleGAN2 filters with StyleGAN's weights. Along the outermost pixels, where the blur
    of a box sees zeros beside the box, the two differ by some 10 %; inside they are the same."""
    x, weight = torch.randn(4, 16, 16, 16).double(), torch.randn(16, 16, 3, 3).double()
    conv = layers.ActivatedConv2d(16, 16, resample="down").double()
    twin = layers.EqualizedConv2d(16, 16, resample="down", gain=1.0).double()
    twin.load_state_dict(conv.state_dict())
    gained = lambda x: math.sqrt(2) * F.leaky_relu(x, 0.2)
    up = layers.upsample_conv_fir(x, weight), layers.upsample_conv_blur(x, weight)
    for ours, theirs in (up, (conv(x), gained(twin(x)))):
        inside = (..., slice(1, -1), slice(1, -1))
        assert relative(ours[inside], theirs[inside]) < 1e-12
        border = torch.ones(ours.shape[2:], dtype=torch.bool)
        border[1:-1, 1:-1] = False
        assert 0.05 < rms((ours - theirs)[..., border]) / rms(theirs[..., border]) < 0.3


@pytest.mark.parametrize("resample, kernel", [(None, 3), (None, 1), ("down", 3)])
def test_the_gain_behind_the_leaky_relu_is_also_the_biass(resample, kernel):
    """Lesson: without a bias it does not matter where the gain stands; the bias gets it, too. By
    hand: a border of two zeros, [1,3,3,1], then the convolution with stride 2."""
    layer = layers.ActivatedConv2d(4, 6, kernel_size=kernel, resample=resample).double()
    layer.bias.data.normal_()
    twin = layers.EqualizedConv2d(4, 6, kernel_size=kernel).double()       # its gain is in W
    twin.weight = layer.weight
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    scaled = layer.weight / math.sqrt(4 * kernel * kernel)
    if resample:
        y = F.conv2d(fir_loop(x, 2), scaled, layer.bias, stride=2)
        assert y.shape[2:] == (4, 4)
    else:
        y = F.conv2d(x, scaled, layer.bias, padding=kernel // 2)
    assert relative(layer(x), math.sqrt(2) * F.leaky_relu(y, 0.2)) < 1e-12
    if resample is None:
        twin.bias.data = math.sqrt(2) * layer.bias.data
        assert relative(layer(x), F.leaky_relu(twin(x), 0.2)) < 1e-12
        twin.bias.data = layer.bias.data
        assert relative(layer(x), F.leaky_relu(twin(x), 0.2)) > 0.05       # control


# ---- 4. two normalizers ----


def test_pixel_norm_gives_length_sqrt_c():
    """Lesson: not length 1, as is often written."""
    x = torch.randn(4, 512) * 10
    norms = layers.PixelNorm()(x).norm(dim=1)
    assert torch.allclose(norms, torch.full((4,), math.sqrt(512)))
    assert norms[0].item() == pytest.approx(22.6, abs=0.05)
    assert F.cosine_similarity(layers.PixelNorm()(x), x).min() > 1 - 1e-5  # keeping its direction
    assert not torch.allclose(x.norm(dim=1), norms, rtol=0.5)  # control
    assert torch.equal(layers.PixelNorm()(torch.zeros(1, 512)), torch.zeros(1, 512))


def test_truncating_z_would_be_useless():
    """Lesson: PixelNorm discards |z|, so the truncation trick has to act on w (appendix B)."""
    z, weight = torch.randn(4, 512), torch.randn(512, 512)
    norm = layers.PixelNorm()
    assert torch.allclose(norm(z) @ weight, norm(0.5 * z) @ weight, atol=1e-2)
    assert not torch.allclose(z @ weight, (0.5 * z) @ weight, atol=1e-2)    # control: no PixelNorm


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16])
def test_minibatch_stddev_against_a_loop_for_every_batch_size(n):
    """Lesson: one number per group of up to 4 images, copied over a new last channel."""
    x = torch.randn(n, 3, 4, 4, dtype=torch.float64)
    out = layers.MinibatchStddev()(x)
    groups = math.ceil(n / 4)
    assert out.shape == (n, 4, 4, 4) and torch.equal(out[:, :3], x)
    for i in range(n):
        members = [j for j in range(n) if j % groups == i % groups]
        assert n == 1 or 2 <= len(members) <= 4
        assert n % 4 or len(members) == 4
        spreads = []
        for c in range(3):
            for y in range(4):
                for u in range(4):
                    values = [x[j, c, y, u].item() for j in members]
                    mean = sum(values) / len(values)
                    variance = sum((v - mean) ** 2 for v in values) / len(values)
                    spreads.append(math.sqrt(variance + 1e-8))
        assert torch.allclose(out[i, 3], torch.tensor(sum(spreads) / 48, dtype=torch.float64))
    if groups > 1:                                             # control: groups differ
        assert not torch.allclose(out[0, 3], out[1, 3])
    if n == 1:
        assert torch.allclose(out[0, 3], torch.tensor(1e-4, dtype=torch.float64))


def test_minibatch_stddev_betrays_a_generator_that_repeats_itself():
    """Lesson: what the layer is for. A repeated face is seen, varied ones are the control."""
    varied, repeated = torch.randn(8, 3, 4, 4), torch.randn(1, 3, 4, 4).expand(8, -1, -1, -1)
    spread = layers.MinibatchStddev()
    assert spread(varied)[:, 3].min() > 0.3 and spread(repeated)[:, 3].max() < 1e-3
