"""Run by hand: python tests/benchmark.py. The numbers that comments quote, for this machine.

Milliseconds, the least of several repetitions: float32, channels_last, all cores. Nothing here
judges; timings on a busy machine are worth nothing.
"""

import pathlib
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import stylegan_layers as layers
import stylegan_models as models
import train


def milliseconds(function, repetitions=7):
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def forward_backward(function, *inputs):
    for x in inputs:
        x.grad = None
    y = function(*inputs)
    y.backward(torch.ones_like(y))


def double_backward(function, x, *others):
    """What R1 asks of a layer: the gradient at x, and the gradients of its square."""
    for tensor in (x, *others):
        tensor.grad = None
    y = function(x, *others)
    gradient, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (gradient.square().sum() + y.sum()).backward()


def resampling(name, channel_base, channel_max, batch):
    """The table in stylegan_layers.py. Up: forward and backward. Down: with double backward."""
    four, six = layers.shifted_copies_matrix(False), layers.shifted_copies_matrix(True)
    up = (layers.upsample_conv_blur_plain,
          lambda x, w: layers.upsample_conv_blur(x, w, four),
          lambda x, w: layers.upsample_conv_blur_merged(x, w, six))
    down = (layers.blur_conv_downsample_plain,
            lambda x, w: layers.blur_conv_downsample(x, w, four),
            lambda x, w: layers.blur_conv_downsample_merged(x, w, six))
    print(f"\n{name}, batch {batch}\n{'':>22}{'plain':>9}{'4x4':>9}{'6x6':>9}")
    for r in (8, 16, 32, 64, 128):
        large, small = (models.channels_at(s, channel_base, channel_max) for s in (r, r // 2))
        n = batch if r < 128 else batch // 2
        for label, forms, measure, side, c_in, c_out in (
                ("up", up, forward_backward, r // 2, small, large),
                ("down", down, double_backward, r, large, small)):
            x = torch.randn(n, c_in, side, side).to(memory_format=torch.channels_last)
            weight = torch.randn(c_out, c_in, 3, 3, requires_grad=True)
            x.requires_grad_()
            times = [milliseconds(lambda: measure(form, x, weight)) for form in forms]
            print(f"{label:>5} {r:4d} px {c_in:4d}->{c_out:<4d}"
                  + "".join(f"{t:9.1f}" for t in times), flush=True)


def small_parts():
    """The claims beside merge_kernel, _SelfAdjointBlur and spatial_mean."""
    def compare(label, ours, other):
        print(f"{label:58}{ours:8.2f}{other:8.2f}   {other / ours:.1f} times")
    print(f"\n{'':58}{'ours':>8}{'other':>8}")

    matrix, weight = layers.shifted_copies_matrix(False), torch.randn(512, 512, 3, 3)
    weight.requires_grad_()

    def slices(w):
        p = F.pad(w, (1, 1, 1, 1))
        return p[..., 1:, 1:] + p[..., 1:, :-1] + p[..., :-1, 1:] + p[..., :-1, :-1]
    compare("512x512 kernels 3x3 -> 4x4: matrix product / slices",
            milliseconds(lambda: forward_backward(
                lambda w: layers.merge_kernel(w, matrix), weight)),
            milliseconds(lambda: forward_backward(slices, weight)))

    def autograd_blur(x):
        return F.conv2d(x, layers.blur_kernel(x.shape[1]), padding=1, groups=x.shape[1])

    def adain_like(mean, x):
        x = x - mean(x)
        return x * torch.rsqrt(mean(x.square()) + 1e-8)
    for shape in ((32, 32, 32, 32), (16, 64, 16, 16), (4, 256, 64, 64)):
        x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
        compare(f"{list(shape)} blur and R1: self-adjoint / autograd",
                milliseconds(lambda: double_backward(layers.blur, x)),
                milliseconds(lambda: double_backward(autograd_blur, x)))
        compare(f"{list(shape)} instance norm: spatial_mean / x.mean",
                milliseconds(lambda: forward_backward(
                    lambda x: adain_like(layers.spatial_mean, x), x)),
                milliseconds(lambda: forward_backward(
                    lambda x: adain_like(lambda x: x.mean(dim=(2, 3), keepdim=True), x), x)))


def training_steps():
    """One step of the default run: with and without R1, and in the other memory format."""
    print("\none step of the default run at 32 px, batch 16")
    options, _ = train.complete_options({}, torch.device("cpu"))
    for memory_format in (torch.channels_last, torch.contiguous_format):
        settings = {name: options[name] for name in models.SETTINGS}
        G = models.make_generator(settings).to(memory_format=memory_format)
        D = models.make_discriminator(settings).to(memory_format=memory_format)
        optimizers = [train.new_adam(network, torch.device("cpu")) for network in (G, D)]
        reals = torch.rand(16, 3, 32, 32).to(memory_format=memory_format)
        mixes = [torch.zeros(16, 8, dtype=torch.long)] * 2
        times = [milliseconds(lambda: train.training_step(
            G, D, *optimizers, reals.detach(), mixes, 1.0, r1, 2)) for r1 in (None, 1.0)]
        print(f"{str(memory_format):28} without R1 {times[0]:7.1f}   with R1 {times[1]:7.1f}")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    training_steps()
    small_parts()
    resampling("paper's widths", 8192, 512, 4)
    resampling("paper's widths", 8192, 512, 16)
    resampling("widths of the default run", 512, 64, 32)
