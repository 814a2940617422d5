"""stylegan_layers.py, from top to bottom. Each test is a lesson; its control shows it can fail."""

import math

import pytest
import torch
import torch.nn.functional as F

import stylegan_layers as layers
from conftest import relative

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


def test_leaky_relu_and_its_derivatives_against_torch():
    """Lesson: it has a second derivative of zero, and R1 passes through its first one."""
    x = torch.randn(2, 3, 4, 4)
    check_derivatives(lambda x: layers.leaky_relu(x), lambda x: F.leaky_relu(x, 0.2), x)
    # Through a product, so that the second derivative is not all zero.
    numbers = check_derivatives(lambda x: layers.leaky_relu(x * x - x) * x,
                                lambda x: F.leaky_relu(x * x - x, 0.2) * x, x)
    assert numbers[-1].abs().max() > 1                         # control: there was something


# ---- 1. equalized weights ----


def test_gain_sqrt_2_keeps_the_signal_alive_through_leaky_relus():
    """Lesson: with gain sqrt(2) the signal keeps its size over 20 layers; with gain 1 it dies."""
    def after_20_layers(gain):
        x = torch.randn(64, 256)
        for _ in range(20):
            x = layers.leaky_relu(layers.EqualizedLinear(256, 256, gain=gain)(x))
        return rms(x)

    assert 0.5 < after_20_layers(layers.LEAKY_GAIN) < 2
    assert after_20_layers(1.0) < 0.01                                     # control


def test_equalized_linear_is_a_scaled_linear_layer():
    """Lesson: the stored weight is N(0, 1/lr_multiplier^2), the used one N(0, gain^2/fan_in)."""
    x = torch.randn(5, 300, dtype=torch.float64)
    for lr_multiplier in (1.0, 0.01):
        layer = layers.EqualizedLinear(300, 200, gain=1.5, lr_multiplier=lr_multiplier).double()
        layer.bias.data.normal_()
        assert layer.weight.std().item() == pytest.approx(1 / lr_multiplier, rel=0.02)
        scale = 1.5 / math.sqrt(300) * lr_multiplier
        by_hand = torch.stack([
            torch.stack([(x[n] * layer.weight[o] * scale).sum() + layer.bias[o] * lr_multiplier
                         for o in range(200)]) for n in range(5)])
        assert relative(layer(x), by_hand) < 1e-12
        assert relative(layer(x), F.linear(x, layer.weight, layer.bias)) > 0.5     # control


def test_one_adam_step_moves_the_function_by_lr_multiplier():
    """Lesson: Adam moves each number by the learning rate, so 0.01 times the use is 0.01 times the
    speed. Layers of 16 times the fan_in move at most sqrt(16) times as much here, 16 times with
    weights that are stored as they are used."""
    def movement(fan_in, lr_multiplier, equalized=True):
        layer = layers.EqualizedLinear(fan_in, 64, lr_multiplier=lr_multiplier)
        if not equalized:
            layer = torch.nn.Linear(fan_in, 64)
        x = torch.randn(32, fan_in)
        before = layer(x)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, betas=(0.0, 0.99))
        before.square().mean().backward()
        optimizer.step()
        return rms(layer(x) - before) / rms(before)

    assert movement(256, 0.01) == pytest.approx(0.01 * movement(256, 1.0), rel=0.2)
    assert movement(1024, 1.0) / movement(64, 1.0) < 5
    assert movement(1024, 1.0, False) / movement(64, 1.0, False) > 10       # control


# ---- 2. blur-in-conv ----


def test_merged_kernel_is_four_shifted_copies():
    """Lesson: the 4x4 kernel is the 3x3 one, put down four times and summed; blurred, it is 6x6."""
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    by_hand = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    for dy in (0, 1):
        for dx in (0, 1):
            by_hand[:, :, dy:dy + 3, dx:dx + 3] += weight
    assert relative(layers.merged_kernel(weight, blurred=False), by_hand) < 1e-12
    blurred = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    for dy, wy in enumerate((0.25, 0.5, 0.25)):
        for dx, wx in enumerate((0.25, 0.5, 0.25)):
            blurred[:, :, dy:dy + 4, dx:dx + 4] += wy * wx * by_hand
    merged = layers.merged_kernel(weight, blurred=True)
    assert relative(merged, blurred) < 1e-12
    assert merged.sum().item() == pytest.approx(4 * weight.sum().item())   # nothing lost


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
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    assert relative(layers.blur(x), blur_loop(x)) < 1e-12
    assert torch.equal(layers.Blur()(x), layers.blur(x))
    assert torch.autograd.gradcheck(layers.blur, x)            # finite differences
    assert torch.autograd.gradgradcheck(lambda x: layers.blur(x).square(), x)

    def lopsided(x):                                           # control: not its own transpose
        class Wrong(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return F.pad(x, (1, 0))[..., :-1]              # moves the picture to the right

            @staticmethod
            def backward(ctx, grad):
                return Wrong.apply(grad)
        return Wrong.apply(x)
    with pytest.raises(Exception):
        torch.autograd.gradcheck(lopsided, x)


def test_boxes_and_their_derivatives_against_pooling():
    """Lesson: with a border of zeros or without, each box is the gradient of the other."""
    x = torch.randn(2, 3, 4, 6)
    check_derivatives(lambda x: layers.box_mean(x).pow(3),
                      lambda x: F.avg_pool2d(x, 2, 1, padding=1).pow(3), x)
    numbers = check_derivatives(lambda x: layers.box_sum(x).pow(3),
                                lambda x: 64 * F.avg_pool2d(x, 2, 1).pow(3), x)
    stylegan2 = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8])
    both = layers.blur(layers.box_sum(x)) / 4                  # is its filter, inside
    filtered = F.conv2d(x.flatten(0, 1)[:, None], stylegan2[None, None]).unflatten(0, (2, 3))
    assert relative(both[..., 1:-1, 1:-1], filtered[:, :, 0]) < FLOAT32
    assert layers.box_mean(x).shape[2:] == (5, 7) and layers.box_sum(x).shape[2:] == (3, 5)
    assert all(n.abs().max() > 1 for n in numbers)             # control: there was something


UP = (layers.upsample_conv_blur_plain, layers.upsample_conv_blur,
      layers.upsample_conv_blur_4x4, layers.upsample_conv_blur_6x6)
DOWN = (layers.blur_conv_downsample_plain, layers.blur_conv_downsample,
        layers.blur_conv_downsample_4x4, layers.blur_conv_downsample_6x6)


def all_forms(x, weight, direction):
    return [form(x, weight) for form in (UP if direction == "up" else DOWN)]


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("side", [4, 8, 16])
def test_blur_in_conv_equals_the_plain_twin_border_included(direction, side):
    """Lesson: resample, convolve and blur change places and merge, also on the outermost pixels."""
    x, weight = torch.randn(2, 24, side, side), torch.randn(12, 24, 3, 3)
    judge = all_forms(x.double(), weight.double(), direction)[0]
    for form in all_forms(x, weight, direction):
        assert form.shape == judge.shape
        assert relative(form.double(), judge) < FLOAT32
        for edge in (form[..., 0, :], form[..., -1, :], form[..., 0], form[..., -1]):
            assert edge.isfinite().all()
    # The gradients are the same too, and the gradients of their squares (what R1 needs).
    x = x.double().requires_grad_()
    derivatives = []
    for form in all_forms(x, weight.double(), direction):
        first, = torch.autograd.grad(form.pow(3).sum(), x, create_graph=True)
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

    down = F.conv2d(x, layers.merged_kernel(weight, True) / 4, stride=2, padding=2)
    up = F.conv_transpose2d(
        x, layers.merged_kernel(weight.flip(2, 3), True).transpose(0, 1), stride=2, padding=2)
    assert border_error(down, layers.blur_conv_downsample_plain(x, weight)) == pytest.approx(
        0.16, abs=0.03)
    assert border_error(up, layers.upsample_conv_blur_plain(x, weight)) == pytest.approx(
        0.26, abs=0.03)


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_equalized_conv_is_a_scaled_conv_also_when_it_resamples(resample):
    """Lesson: fan_in is 9 C_in whatever kernel computes it, and the bias comes last."""
    layer = layers.EqualizedConv2d(20, 30, resample=resample).double()
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


@pytest.mark.parametrize("side, kernel, stride, padding, up", [
    (8, 1, 1, 0, False), (8, 3, 1, 1, False), (8, 3, 1, 1, True), (9, 3, 2, 0, False),
    (8, 3, 2, 0, True), (8, 4, 2, 1, False), (8, 4, 2, 1, True)])
def test_convolution_and_its_derivatives_against_torch(side, kernel, stride, padding, up):
    """Lesson: three operations, each the gradient of the others, are closed under derivatives."""
    x, bias = torch.randn(2, 3, side, side), torch.randn(5)
    weight = torch.randn(5, 3, kernel, kernel)
    if up:
        weight = weight.transpose(0, 1).contiguous()
    judge = F.conv_transpose2d if up else F.conv2d
    numbers = check_derivatives(
        lambda x, w, b: layers.convolve(x, w, b, stride, up, padding, scale=0.7),
        lambda x, w, b: judge(x, 0.7 * w, b, stride, padding), x, weight, bias)
    assert all(n.abs().max() > 0.1 for n in numbers[:6])       # control: nothing was just zero


def test_gradients_for_the_input_only_leave_the_weights_out():
    """Lesson: R1 wants the gradient at the images, and nothing is computed for the weights."""
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3)
    weight.requires_grad_()
    with layers.input_gradients_only():
        layers.convolve(x, weight).sum().backward()
    assert weight.grad is None and x.grad is not None
    layers.convolve(x, weight).sum().backward()                # control: outside, as always
    assert weight.grad is not None


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
        tensors = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda t: tensors.setdefault(t.data_ptr(), t) is None or t, lambda t: t):
            y = form(x, weight)
        kept.append(sum(t.numel() for t in tensors.values()))
        assert y.requires_grad
    plain, used, four, six = kept
    assert used < four < six
    assert used < plain                                        # control: the count counts something


def test_equalized_conv_says_what_it_cannot_do():
    with pytest.raises(ValueError, match='resample must be None, "up" or "down", got \'left\''):
        layers.EqualizedConv2d(2, 2, resample="left")
    with pytest.raises(ValueError, match="3x3"):
        layers.EqualizedConv2d(2, 2, kernel_size=1, resample="up")


# ---- 3. what makes a style ----


def test_learned_constant_has_a_batch_axis():
    """Lesson: noise added to [1, C, 4, 4] would be one noise for all; [N, C, 4, 4] takes N."""
    constant, noise = layers.LearnedConstant(6), layers.NoiseInput(6, 4)
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
    assert not torch.equal(added[0], added[1])                 # every image its own
    assert not torch.equal(noise(x), noise(x))                 # every call its own
    assert torch.equal(noise(x, "const"), noise(x, "const"))
    assert relative((noise(x, "const") - x)[1, 0], noise.const[0, 0]) < FLOAT32
    assert torch.equal(noise(x, "none"), x)
    with pytest.raises(ValueError, match="noise_mode"):
        noise(x, "loud")


def test_adain_gives_each_channel_the_mean_and_std_that_w_asks_for():
    """Lesson: whatever statistics x had are gone; those of the style are there."""
    adain = layers.AdaIN(10, 4)
    adain.style.bias.data.normal_()
    x = torch.randn(3, 4, 16, 16) * torch.tensor([0.1, 1, 5, 50])[:, None, None] + 7
    w = torch.randn(3, 10)
    y_s, y_b = (w @ adain.style.weight.T / math.sqrt(10) + adain.style.bias).chunk(2, dim=1)
    out = adain(x, w)
    assert relative(out.mean(dim=(2, 3)), y_b) < 1e-4          # x has a mean of 70 std's: 5 digits
    assert relative(out.std(dim=(2, 3), correction=0), (y_s + 1).abs()) < 1e-4
    assert relative(adain(3 * x - 5, w), out) < 1e-3
    assert relative(x.mean(dim=(2, 3)), y_b) > 1               # control: x was something else
    y_s, y_b = y_s[..., None, None], y_b[..., None, None]
    judge = F.instance_norm(x.double(), eps=1e-8) * (y_s + 1) + y_b
    assert relative(out.double(), judge) < 1e-4


def test_adain_and_its_gradient_against_autograd():
    """Lesson: a gradient worked out on paper is a claim like any other."""
    def judge(x, scale, shift):
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        variance = centred.square().mean(dim=(2, 3), keepdim=True)
        return scale * centred / (variance + 1e-8).sqrt() + shift
    x, scale, shift = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)
    inputs = [t.double().requires_grad_() for t in (x, scale, shift)]
    upstream, gradients = torch.randn(2, 3, 5, 4).double(), []
    for f in (layers._NormalizeAndStyle.apply, judge):
        y = f(*inputs)
        gradients.append([y, *torch.autograd.grad((y * upstream).sum(), inputs)])
    for ours, theirs in zip(*gradients):
        assert ours.shape == theirs.shape and relative(ours, theirs) < 1e-10
    # Control: a gradient that forgets that the mean moves along is far off.
    forgetful = inputs[1] / judge(x, 1, 0).square().mean().sqrt() * upstream
    assert relative(forgetful, gradients[0][1]) > 0.1
    with pytest.raises(RuntimeError, match="once_differentiable"):         # not silently wrong
        y = layers._NormalizeAndStyle.apply(*inputs)
        g, = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
        g.sum().backward()


def test_spatial_mean_is_the_mean_in_every_memory_format():
    x = torch.randn(2, 5, 8, 8)
    judge = x.double().mean(dim=(2, 3), keepdim=True)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        ours = layers.spatial_mean(x.to(memory_format=memory_format))
        assert ours.shape == (2, 5, 1, 1) and relative(ours.double(), judge) < FLOAT32


# ---- 4. two normalizers ----


def test_pixel_norm_gives_length_sqrt_c():
    """Lesson: not length 1, as is often written."""
    x = torch.randn(4, 512) * 10
    norms = layers.PixelNorm()(x).norm(dim=1)
    assert torch.allclose(norms, torch.full((4,), math.sqrt(512)))
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
        assert len(members) <= 4
        spreads = []
        for c in range(3):
            for y in range(4):
                for u in range(4):
                    values = [x[j, c, y, u].item() for j in members]
                    mean = sum(values) / len(values)
                    variance = sum((v - mean) ** 2 for v in values) / len(values)
                    spreads.append(math.sqrt(variance + 1e-8))
        assert torch.allclose(out[i, 3], torch.tensor(sum(spreads) / 48, dtype=torch.float64))


def test_minibatch_stddev_betrays_a_generator_that_repeats_itself():
    """Lesson: what the layer is for."""
    varied, repeated = torch.randn(8, 3, 4, 4), torch.randn(1, 3, 4, 4).expand(8, -1, -1, -1)
    spread = layers.MinibatchStddev()
    assert spread(varied)[:, 3].min() > 0.3 and spread(repeated)[:, 3].max() < 1e-3
