"""Run by hand: python tests/benchmark.py. Prints the table of stylegan_layers.py for this machine.

Milliseconds (the least of several repetitions) of one layer, in each of its forms: up: forward and
backward; down: forward, and the double backward that R1 needs. float32, channels_last.
"""

import pathlib
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import stylegan_layers as layers
import stylegan_models as models


def milliseconds(function, repetitions=7):
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def forms(direction):
    four, six = layers.shifted_copies_matrix(False), layers.shifted_copies_matrix(True)
    if direction == "up":
        return (layers.upsample_conv_blur_plain,
                lambda x, w: layers.upsample_conv_blur(x, w, four),
                lambda x, w: layers.upsample_conv_blur_merged(x, w, six))
    return (layers.blur_conv_downsample_plain,
            lambda x, w: layers.blur_conv_downsample(x, w, four),
            lambda x, w: layers.blur_conv_downsample_merged(x, w, six))


def step(form, direction, x, weight):
    x.grad = weight.grad = None
    y = form(x, weight)
    if direction == "up":
        y.backward(torch.ones_like(y))
    else:
        gradient, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (gradient.square().sum() + y.sum()).backward()


def layer_forms(name, channel_base, channel_max, batch):
    print(f"{name}: batch {batch}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':>22}{'plain':>9}{'4x4':>9}{'6x6':>9}")
    for r in (8, 16, 32, 64, 128):
        large, small = (models.channels_at(s, channel_base, channel_max) for s in (r, r // 2))
        n = batch if r < 128 else batch // 2
        for direction, shape, (c_in, c_out) in (("up", r // 2, (small, large)),
                                                ("down", r, (large, small))):
            x = torch.randn(n, c_in, shape, shape).to(memory_format=torch.channels_last)
            x.requires_grad_()
            weight = torch.randn(c_out, c_in, 3, 3, requires_grad=True)
            times = [milliseconds(lambda: step(form, direction, x, weight))
                     for form in forms(direction)]
            print(f"{direction:>5} {r:4d} px {c_in:4d}->{c_out:<4d}"
                  + "".join(f"{t:9.1f}" for t in times), flush=True)


if __name__ == "__main__":
    layer_forms("paper widths", 8192, 512, 4)
    layer_forms("paper widths", 8192, 512, 16)
    layer_forms("widths of the default run", 512, 64, 32)
