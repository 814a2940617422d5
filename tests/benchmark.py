"""Run by hand: the numbers that comments and the README quote, for this machine.

    python tests/benchmark.py iteration --resolution 32,64 --peer rosinality=FOLDER dulaku=FOLDER
                                      one training iteration beside other implementations, in turn
    python tests/benchmark.py cost    seconds and memory by resolution and batch, counted work
    python tests/benchmark.py loader  how much faster pictures arrive than a step uses them up
    python tests/benchmark.py profile where the time of an iteration goes, by operation
    python tests/benchmark.py parts   the tables in stylegan_layers.py

Nothing here judges; timings on a busy machine are worth nothing, and on a quiet one they still
differ by a few percent from run to run: what is to be compared must be measured in one call.

Peers are fetched elsewhere and not changed: github.com/rosinality/style-based-gan-pytorch and
github.com/dulaku/StyleGAN-for-Humans. Their networks and losses run in loops written here, since
their training scripts need CUDA or an older PyTorch.
"""

import argparse
import copy
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import stylegan_dataloader as data
import stylegan_layers as layers
import stylegan_models as models
import train

CPU = torch.device("cpu")
PAPER = dict(resolution=1024, channel_base=8192, channel_max=512, latent_dim=512, style_dim=512,
             mapping_dim=512, mapping_layers=8)

# ---- one iteration, ours and others ----
#
# All do the same work: networks of 1024 px and the paper's widths, of which the blocks up to the
# resolution are used; D on reals and on fakes with R1 in every step, D's Adam; G on new fakes, G's
# Adam; the average of G's weights. Two styles are mixed. Losses are not printed.


def ours(batch, resolution, precision="fp32", compiled=False):
    """A function that does one iteration. The parts of train.py, as its loop calls them."""
    train.keep_freed_memory()
    G, D = models.make_generator(PAPER), models.make_discriminator(PAPER)
    G, D = (network.to(memory_format=torch.channels_last) for network in (G, D))
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    train.set_precision(G, D, precision)
    G_opt, D_opt = train.new_adam(G, CPU), train.new_adam(D, CPU)
    programs = train.compile_networks(G, D) if compiled else None
    mixer = iter(data.StyleMixer(models.num_style_layers(resolution), batch))

    def iteration():
        reals = torch.rand(batch, 3, resolution, resolution)
        reals = reals.to(memory_format=torch.channels_last)
        z = torch.randn(2, batch, 2, 512)
        mixes = torch.stack([next(mixer), next(mixer)])
        train.training_step(G, D, G_opt, D_opt, reals, z, mixes, 1.0, 5.0, compiled=programs)
        train.update_ema(G_ema, G, 0.999)
    return iteration


def rosinality(batch, resolution, folder):
    sys.path.insert(0, folder)
    from model import Discriminator, StyledGenerator
    step = resolution.bit_length() - 3                         # log2(resolution) - 2
    G, D = StyledGenerator(512), Discriminator(from_rgb_activate=True)
    G_ema = copy.deepcopy(G)
    G_opt = torch.optim.Adam(G.generator.parameters(), lr=1e-3, betas=(0.0, 0.99))
    G_opt.add_param_group({"params": G.style.parameters(), "lr": 1e-5})
    D_opt = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.0, 0.99))

    def fakes():
        return G([torch.randn(batch, 512), torch.randn(batch, 512)], step=step, alpha=1)

    def iteration():
        reals = torch.rand(batch, 3, resolution, resolution, requires_grad=True)
        G.requires_grad_(False)
        D.requires_grad_(True)
        D.zero_grad()
        scores = D(reals, step=step, alpha=1)
        F.softplus(-scores).mean().backward(retain_graph=True)
        gradient, = torch.autograd.grad(scores.sum(), reals, create_graph=True)
        (5.0 * gradient.square().sum(dim=(1, 2, 3)).mean()).backward()
        F.softplus(D(fakes(), step=step, alpha=1)).mean().backward()
        D_opt.step()
        G.requires_grad_(True)
        D.requires_grad_(False)
        G.zero_grad()
        F.softplus(-D(fakes(), step=step, alpha=1)).mean().backward()
        G_opt.step()
        with torch.no_grad():
            for average, current in zip(G_ema.parameters(), G.parameters()):
                average.mul_(0.999).add_(current, alpha=0.001)
    return iteration


def dulaku(batch, resolution, folder):
    sys.path.insert(0, folder)
    sys.modules.pop("stylegan_layers"), sys.modules.pop("stylegan_models")
    sys.modules.pop("stylegan_dataloader")
    sys.argv = sys.argv[:1]                                    # its configuration reads it
    import stylegan_dataloader
    import stylegan_models
    top = [resolution.bit_length() - 3]
    G, D = stylegan_models.Generator(), stylegan_models.Discriminator()
    G_ema = copy.deepcopy(G)
    mapping = list(G.mapping_network.parameters())
    others = [p for p in G.parameters() if all(p is not q for q in mapping)]
    G_opt = torch.optim.Adam([{"params": others}, {"params": mapping, "lr": 1e-5}], lr=1e-3,
                             betas=(0.0, 0.99))
    D_opt = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.0, 0.99))
    mixer = stylegan_dataloader.StyleMixer(2 * (top[0] + 1), 2, 0.9, 512)

    def fakes():
        z = [torch.randn(batch, 512) for _ in range(2)]
        return G(z, torch.stack([next(mixer) for _ in range(batch)]), top, 1.0)

    def iteration():
        reals = torch.rand(batch, 3, resolution, resolution)
        D_opt.zero_grad()
        with torch.no_grad():
            images = fakes()
        D(images, reals, top, 1.0).mean().backward()
        D_opt.step()
        D_opt.zero_grad()
        G_opt.zero_grad()
        D(fakes(), None, top, 1.0).mean().backward()
        G_opt.step()
        with torch.no_grad():
            for average, current in zip(G_ema.parameters(), G.parameters()):
                average.copy_(0.999 * average + 0.001 * current)
    return iteration


def measure(name, batch, resolution, count, folder=None):
    """One implementation, in this process: prints seconds of each iteration and peak MB."""
    if name in ("rosinality", "dulaku"):
        iteration = {"rosinality": rosinality, "dulaku": dulaku}[name](batch, resolution, folder)
    else:
        iteration = ours(batch, resolution, name.split()[1], "compile" in name)
    times = []
    for _ in range(count + (2 if "ours" in name else 1)):      # the first warm up
        started = time.perf_counter()
        iteration()
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin"
                                                                 else 1e3)
    print(json.dumps({"times": times[-count:], "peak": peak}))


def beside_others(options):
    """Whole processes in turn; the ratio is of medians."""
    peers = dict(peer.split("=") for peer in options.peer)
    names = ["ours fp32", "ours bf16"] + (["ours fp32 compile"] if options.compile else [])
    for resolution in options.resolution:
        found = {name: {"times": [], "peak": 0.0} for name in [*names, *peers]}
        for _ in range(options.rounds):
            for name in found:
                result = subprocess.run(
                    [sys.executable, __file__, "one", name, "--batch", str(options.batch),
                     "--resolution", str(resolution), "--count", str(options.count),
                     "--folder", peers.get(name, "")],
                    stdout=subprocess.PIPE, text=True, check=True).stdout
                result = json.loads(result.splitlines()[-1])
                found[name]["times"] += result["times"]
                found[name]["peak"] = max(found[name]["peak"], result["peak"])
        first = statistics.median(found[names[0]]["times"])
        print(f"\n{resolution} px, batch {options.batch}, {torch.get_num_threads()} threads, "
              f"torch {torch.__version__}\n{'':20}  seconds   (least to most)     MB   "
              f"times {names[0]}", flush=True)
        for name, result in found.items():
            median = statistics.median(result["times"])
            print(f"{name:20}{median:9.2f}   ({min(result['times']):.2f} to "
                  f"{max(result['times']):.2f}){result['peak']:11.0f}{median / first:10.2f}",
                  flush=True)


# ---- cost ----


def multiplications(resolution):
    """GFLOP (a multiplication and an addition: 2) of one image through G's, D's convolutions."""
    def channels(r):
        return models.channels_at(r, 8192, 512)
    G, D = 2 * 9 * channels(4) ** 2 * 16, 2 * 9 * (channels(4) + 1) * channels(4) * 16
    G, D = G, D + 2 * channels(4) ** 2 * 16
    for r in models.resolutions_up_to(resolution)[1:]:
        resampling = 2 * 9 * channels(r) * channels(r // 2) * (r // 2) ** 2
        plain = 2 * 9 * channels(r) ** 2 * r ** 2
        G, D = G + resampling + plain, D + resampling + plain
    return G / 1e9, D / 1e9


def work_of_a_step(resolution):
    """GFLOP of one image in one step: with R1, and without.

    Forward 1; the gradient at the input 1; at the weights 1; R1's second derivative 2.
    D's turn: G 1, D on fakes 3, D on reals 3, R1 1 + 2. G's turn: G 3, D 2.
    """
    G, D = multiplications(resolution)
    return 4 * G + 11 * D, 4 * G + 8 * D


def cost(options):
    """Measured up to --largest; work counted for all."""
    print(f"{'px':>5}{'batch':>6}{'GFLOP/image':>13}{'s/kimg':>10}{'GFLOP/s':>9}{'MB':>8}")
    for resolution in models.resolutions_up_to(1024):
        work = work_of_a_step(resolution)[0]
        for batch in options.batches:
            if resolution > options.largest:
                print(f"{resolution:5}{'':6}{work:13.0f}")
                break
            result = subprocess.run(
                [sys.executable, __file__, "one", f"ours {options.precision}", "--batch",
                 str(batch), "--resolution", str(resolution), "--count", "2"],
                stdout=subprocess.PIPE, text=True, check=True).stdout
            result = json.loads(result.splitlines()[-1])
            seconds = min(result["times"]) / batch
            print(f"{resolution:5}{batch:6}{work:13.0f}{1000 * seconds:10.0f}"
                  f"{work / seconds:9.0f}{result['peak']:8.0f}", flush=True)


def loader(options):
    """Images a second: from the packed cache, one process, against a step of the default run."""
    chosen, _ = train.complete_options({"resolution": options.largest}, CPU)
    settings = {name: chosen[name] for name in models.SETTINGS}
    G, D = (make(settings).to(memory_format=torch.channels_last)
            for make in (models.make_generator, models.make_discriminator))
    train.keep_freed_memory()
    speeds = train.measure_speed(G, D, chosen, CPU)
    print(f"{'px':>5}{'loader, images/s':>18}{'step, images/s':>16}{'times':>8}")
    with tempfile.TemporaryDirectory() as cache:
        source = data.painted_faces(range(2000))
        packed = data.pack_pictures(source, options.largest, cache, 2, report=lambda line: None)
        for resolution in models.resolutions_up_to(options.largest):
            batches = iter(data.picture_loader(
                data.PictureDataset(packed, source, resolution), 16))
            next(batches)
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < 1:
                data.to_images(next(batches))
                count += 16
            rate = count / (time.perf_counter() - started)
            print(f"{resolution:5}{rate:18.0f}{1 / speeds[resolution]:16.1f}"
                  f"{rate * speeds[resolution]:8.0f}", flush=True)


def profile(options):
    """Of one iteration after two others: the operations that take most of it."""
    from torch.profiler import ProfilerActivity
    iteration = ours(options.batch, options.resolution[0], options.precision)
    iteration(), iteration()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as seen:
        iteration()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{total / 1e6:.2f} s in all")
    for event in events[:20]:
        print(f"{100 * event.self_cpu_time_total / total:6.1f} %{event.count:7}  {event.key}")


# ---- parts ----


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
    up = (layers.upsample_conv_blur_plain, layers.upsample_conv_blur,
          layers.upsample_conv_blur_4x4, layers.upsample_conv_blur_6x6)
    down = (layers.blur_conv_downsample_plain, layers.blur_conv_downsample,
            layers.blur_conv_downsample_4x4, layers.blur_conv_downsample_6x6)
    print(f"\n{name}, batch {batch}\n{'':>22}" + "".join(
        f"{form:>9}" for form in ("plain", "3x3", "4x4", "6x6")))
    for r in (8, 16, 32, 64, 128):
        large, small = (models.channels_at(s, channel_base, channel_max) for s in (r, r // 2))
        n = batch if r < 128 else batch // 2
        for label, forms, measure, side, c_in, c_out in (
                ("up", up, forward_backward, r // 2, small, large),
                ("down", down, double_backward, r, large, small)):
            x = torch.randn(n, c_in, side, side).to(memory_format=torch.channels_last)
            weight = torch.randn(c_out, c_in, 3, 3).to(memory_format=torch.channels_last)
            x.requires_grad_(), weight.requires_grad_()
            times = [milliseconds(lambda: measure(form, x, weight)) for form in forms]
            print(f"{label:>5} {r:4d} px {c_in:4d}->{c_out:<4d}"
                  + "".join(f"{t:9.1f}" for t in times), flush=True)


def small_parts():
    """The claims beside _Convolution, _SelfAdjointBlur and spatial_mean."""
    def compare(label, ours, other):
        print(f"{label:58}{ours:8.2f}{other:8.2f}   {other / ours:.1f} times")
    print(f"\n{'':58}{'ours':>8}{'other':>8}")

    weight = torch.randn(512, 512, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    x = torch.randn(16, 512, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    for form, label in (((lambda x, w: layers.convolve(x, w), lambda x, w: F.conv2d(
            x, w, padding=1)), "3x3 convolution and R1"),
            ((lambda x, w: layers.leaky_relu(x), lambda x, w: F.leaky_relu(x, 0.2)),
             "leaky ReLU and R1")):
        compare(f"{list(x.shape)} {label}: ours / autograd", *(
            milliseconds(lambda: double_backward(f, x, weight), 3) for f in form))

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
    options, _ = train.complete_options({}, CPU)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        settings = {name: options[name] for name in models.SETTINGS}
        G = models.make_generator(settings).to(memory_format=memory_format)
        D = models.make_discriminator(settings).to(memory_format=memory_format)
        optimizers = [train.new_adam(network, CPU) for network in (G, D)]
        reals = torch.rand(16, 3, 32, 32).to(memory_format=memory_format)
        z, mixes = torch.randn(2, 16, 2, 64), torch.zeros(2, 16, 8, dtype=torch.long)
        times = [milliseconds(lambda: train.training_step(
            G, D, *optimizers, reals.detach(), z, mixes, 1.0, r1)) for r1 in (None, 1.0)]
        print(f"{str(memory_format):28} without R1 {times[0]:7.1f}   with R1 {times[1]:7.1f}")


def parts(options):
    train.keep_freed_memory()
    training_steps()
    small_parts()
    resampling("paper's widths", 8192, 512, 4)
    resampling("paper's widths", 8192, 512, 16)
    resampling("widths of the default run", 512, 64, 32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("iteration", "cost", "loader", "profile", "parts", "one"))
    parser.add_argument("name", nargs="?")
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--resolution", type=lambda text: [int(r) for r in text.split(",")],
                        default=[32])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")],
                        default=[4, 16])
    parser.add_argument("--largest", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--folder")
    chosen = parser.parse_args()
    if chosen.what == "one":
        measure(chosen.name, chosen.batch, chosen.resolution[0], chosen.count, chosen.folder)
    else:
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
        {"iteration": beside_others, "cost": cost, "loader": loader, "profile": profile,
         "parts": parts}[chosen.what](chosen)
