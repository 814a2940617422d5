"""Run by hand: the numbers that comments and docs/results.md quote, for this machine.

    python experiments/benchmark.py iteration --resolution 32,64 --against FOLDER
                                  one training iteration, beside another checkout of this program
    python experiments/benchmark.py iteration --peer rosinality=FOLDER dulaku=FOLDER
                                  ... beside other implementations
    python experiments/benchmark.py iteration --architecture stylegan2 --peer ada=FOLDER
                                  ... of StyleGAN2
    python experiments/benchmark.py iteration --device cuda --precision fp32,tf32,bf16 --count 10
                                  ... on a GPU
    python experiments/benchmark.py memory     kept or given back (keep_freed_memory in machine.py)
    python experiments/benchmark.py gradients  written by hand or autograd's (fast_gradients.py)
    python experiments/benchmark.py parts      the table of milliseconds in fast_gradients.py
    python experiments/benchmark.py modulation the two forms of modulated_convolution
    python experiments/benchmark.py winograd   the table in winograd.py
    python experiments/benchmark.py cost --largest 1024 --batches 4 --precision fp32,bf16
                                  seconds and memory by resolution; the work
    python experiments/benchmark.py processes  one iteration in one process, and in two of torchrun
    python experiments/benchmark.py loader     how fast pictures come, and how fast they are needed
    python experiments/benchmark.py profile    where the time of an iteration goes, by operation

Nothing here judges. Timings on a busy machine are worth nothing, and on a quiet one they still
differ by a few percent from run to run. So what is to be compared is measured in one call: whole
processes in turn, --rounds times; and what is compared are the medians.

--against takes the root of another checkout, old or new; its own benchmark measures it. Peers are
fetched elsewhere and not changed: github.com/rosinality/style-based-gan-pytorch,
github.com/dulaku/StyleGAN-for-Humans and, for StyleGAN2, github.com/NVlabs/stylegan2-ada-pytorch.
Their networks and losses run in loops written here, since their training scripts need CUDA or an
older PyTorch.

Needs:   what train.py needs. A CPU; a GPU is used by `iteration` alone, and only if asked for.
"""

import argparse
import contextlib
import copy
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import stylegan_dataloader as data
import stylegan_layers as layers
import stylegan_models as models
import train
from workshop import UserError, fast_gradients, machine, options, pictures

CPU = torch.device("cpu")
PAPER = dict(resolution=1024, channel_base=8192, channel_max=512, latent_dim=512, style_dim=512,
             mapping_dim=512, mapping_layers=8)


# ==== Part 1: one iteration, ours and others ==================================================
#
# All do the same work: networks of 1024 px and the paper's widths, of which the blocks up to the
# resolution are used; D on reals and on fakes with R1 in every step, D's Adam; G on new fakes, G's
# Adam; the average of G's weights. Two styles are mixed. Losses are not printed.
#
# StyleGAN2: networks of just the resolution (they do not grow), and widths of its config E. R1 is
# due in every 16th step, path length, with half of the batch, in every 4th. So an iteration has
# parts, timed apart: [(share, part), ...]. Its time is the sum of share * time, the mean over 16
# steps of a run. The other implementation gives each penalty a step of its own; ours adds it to a
# step that is made anyway.
# Proved: tests/test_experiments.py::test_the_shares_of_the_parts_make_16_steps_of_a_run


def settings_of(architecture, resolution):
    """PAPER, or for StyleGAN2 the same widths in a network of just the resolution."""
    if architecture == "stylegan2":
        return {**PAPER, "architecture": architecture, "resolution": resolution}
    return PAPER


class Player:
    """G, D and what they need to take steps on random numbers, as the loop of train.py does."""

    def __init__(self, settings, precision="fp32", compiled=False, device=CPU, team=None):
        self.settings = settings
        self.G, self.D = (machine.place(make(settings), device)
                          for make in (models.make_generator, models.make_discriminator))
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        machine.set_precision(self.G, self.D, precision)
        if compiled:
            machine.compile_blocks(self.G, self.D)
        self.G_opt, self.D_opt = train.new_adam(self.G), train.new_adam(self.D)
        self.team = team or machine.Team(device)

    def step(self, reals, r1_factor, path_factor=None, mixes=None):
        n, resolution = reals.shape[0], reals.shape[-1]
        z = torch.randn(2, n, 2, self.settings["latent_dim"], device=reals.device)
        if mixes is None:
            mixes = torch.zeros(2, n, models.num_style_layers(resolution), dtype=torch.long,
                                device=reals.device)
        train.training_step(self.G, self.D, self.G_opt, self.D_opt, reals, z, mixes, 1.0,
                            r1_factor, path_factor, 1, self.team)


def random_reals(batch, resolution, memory_format=torch.channels_last, device=CPU):
    return torch.rand(batch, 3, resolution, resolution, device=device).to(
        memory_format=memory_format)


def ours(batch, resolution, words, architecture, device=CPU, team=None):
    """The parts of an iteration. words: of "fp32", "tf32", "bf16", "compile", "returned"."""
    if "returned" not in words:
        machine.keep_freed_memory()
    player = Player(settings_of(architecture, resolution), words[0], "compile" in words, device,
                    team)
    mixer = iter(data.StyleMixer(models.num_style_layers(resolution), batch))

    def step(r1_factor, path_factor):
        player.step(random_reals(batch, resolution, device=device), r1_factor, path_factor,
                    machine.send(torch.stack([next(mixer), next(mixer)]), device))
        train.update_ema(player.G_ema, player.G, 0.999)
    return parts_of_ours(step, architecture)


def parts_of_ours(step, architecture):
    """[(share, part)]. StyleGAN2: plain + (with R1 - plain)/16 + (with path length - plain)/4."""
    if architecture == "stylegan":
        return [(1, lambda: step(5.0, None))]
    return [(1 - 1 / 16 - 1 / 4, lambda: step(None, None)), (1 / 16, lambda: step(80.0, None)),
            (1 / 4, lambda: step(None, 8.0))]


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
    return [(1, iteration)]


def dulaku(batch, resolution, folder):
    sys.path.insert(0, folder)
    for name in ("stylegan_layers", "stylegan_models", "stylegan_dataloader"):
        sys.modules.pop(name)                                  # its files have the names of ours
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
    return [(1, iteration)]


def ada(batch, resolution, folder):
    """stylegan2-ada-pytorch: its networks and its loss, in the phases of its training_loop.py.

    On a CPU its compiled operations fall back to its reference ones by themselves; on a GPU it
    works with float16 in the four highest resolutions, as it is meant to. Its channel_base is twice
    ours. Left out, to its advantage: the search for NaN in the gradients of every phase.
    """
    device = torch.get_default_device()
    half = dict(num_fp16_res=4, conv_clamp=256) if device.type == "cuda" else dict(
        num_fp16_res=0, conv_clamp=None)
    sys.path.insert(0, folder)
    sys.modules.setdefault("requests", types.ModuleType("requests"))       # it is for downloads
    from training.loss import StyleGAN2Loss
    from training.networks import Discriminator, Generator
    images = dict(c_dim=0, img_resolution=resolution, img_channels=3)
    widths = dict(channel_base=2 * PAPER["channel_base"], channel_max=PAPER["channel_max"], **half)
    G = Generator(z_dim=512, w_dim=512, mapping_kwargs=dict(num_layers=8),
                  synthesis_kwargs=widths, **images)
    D = Discriminator(epilogue_kwargs=dict(mbstd_group_size=4), **widths, **images)
    G, D = G.to(device), D.to(device)                          # its filters are made on the CPU
    G_ema = copy.deepcopy(G).eval()
    loss = StyleGAN2Loss(device, G.mapping, G.synthesis, D, style_mixing_prob=0.9,
                         pl_batch_shrink=2, pl_weight=2)
    G_opt, D_opt = (
        torch.optim.Adam(network.parameters(), lr=0.0025 * k / (k + 1),
                         betas=(0.0, 0.99 ** (k / (k + 1))), eps=1e-8)
        for network, k in ((G, 4), (D, 16)))
    for network in (G, D, G_ema):
        network.requires_grad_(False)
    none = torch.zeros(batch, 0)                               # labels

    def phase(name, network, optimizer, interval):
        reals, z = torch.rand(batch, 3, resolution, resolution), torch.randn(batch, 512)
        optimizer.zero_grad(set_to_none=True)
        network.requires_grad_(True)
        loss.accumulate_gradients(name, reals, none, z, none, sync=True, gain=interval)
        network.requires_grad_(False)
        optimizer.step()

    def average():
        with torch.no_grad():
            for averaged, current in zip(G_ema.parameters(), G.parameters()):
                averaged.copy_(current.lerp(averaged, 0.999))
            for averaged, current in zip(G_ema.buffers(), G.buffers()):
                averaged.copy_(current)
    return [(1, lambda: phase("Gmain", G, G_opt, 1)), (1 / 4, lambda: phase("Greg", G, G_opt, 4)),
            (1, lambda: phase("Dmain", D, D_opt, 1)), (1 / 16, lambda: phase("Dreg", D, D_opt, 16)),
            (1, average)]


PEERS = {"rosinality": ("stylegan", rosinality), "dulaku": ("stylegan", dulaku),
         "ada": ("stylegan2", ada)}


def one(o):
    """One implementation, in this process: prints seconds of each iteration, and peak MB.

    Under torchrun each process takes its share of the batch, and the first one prints.
    """
    batch, resolution, team = o.batch, o.resolution[0], machine.join(o.device, 10)
    if o.name in PEERS:
        torch.set_default_device(o.device)                     # they do not say where
        with contextlib.redirect_stdout(sys.stderr):           # what they print is no JSON
            parts = PEERS[o.name][1](batch, resolution, o.folder)
    else:
        parts = ours(batch // team.processes, resolution, o.name.split()[1:], o.architecture,
                     o.device, team)
    wait = torch.cuda.synchronize if o.device.type == "cuda" else lambda: None
    times = []
    for _ in range(o.count + (2 if "ours" in o.name else 1)):  # the first warm up
        times.append(0.0)
        for share, part in parts:
            wait()
            started = time.perf_counter()
            part()
            wait()
            times[-1] += share * (time.perf_counter() - started)
    if team.rank == 0:
        print(json.dumps({"times": times[-o.count:], "peak": machine.peak_memory_mb(o.device)}))
    team.leave(0)


def measured(script, name, batch, resolution, count, folder="", architecture="stylegan",
             device=CPU, processes=1, threads=None):
    """What `one` of a benchmark script prints, from a process of its own, or of torchrun's.

    threads: of the CPU, for each process; or as many as torch likes.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), "one", name,
               "--batch", str(batch), "--resolution", str(resolution), "--count", str(count),
               "--folder", str(folder)]
    if architecture != "stylegan":                             # older checkouts refuse the option
        command += ["--architecture", architecture]
    if device != CPU:
        command += ["--device", str(device)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if result.returncode:
        raise UserError(f"{script}: could not measure {name!r}")
    return json.loads(result.stdout.splitlines()[-1])


def in_turn(rows, o):
    """Measure rows {label: (script, name, folder)} in turn, --rounds times, and print them.

    The last column is the median, in units of the first row's.
    """
    for resolution in o.resolution:
        found = {label: {"times": [], "peak": 0.0} for label in rows}
        for _ in range(o.rounds):
            for label, (script, name, folder) in rows.items():
                result = measured(script, name, o.batch, resolution, o.count, folder,
                                  o.architecture, o.device)
                found[label]["times"] += result["times"]
                found[label]["peak"] = max(found[label]["peak"], result["peak"])
        first = next(iter(rows))
        unit = statistics.median(found[first]["times"])
        print(f"\n{resolution} px, batch {o.batch}\n{'':28}  seconds   (least to most)     MB   "
              f"in units of {first}", flush=True)
        for label, result in found.items():
            median = statistics.median(result["times"])
            print(f"{label:28}{median:9.3f}   ({min(result['times']):.3f} to "
                  f"{max(result['times']):.3f}){result['peak']:11.0f}{median / unit:10.3f}",
                  flush=True)


def iteration(o):
    """Ours beside another checkout, beside peers."""
    rows = {f"ours {precision}": (__file__, f"ours {precision}", "") for precision in o.precision}
    if o.compile:
        rows.update({f"{row} compile": (__file__, f"{row} compile", "") for row in list(rows)})
    if o.against:
        scripts = [o.against / folder / "benchmark.py" for folder in ("experiments", "tests")]
        script = next((script for script in scripts if script.is_file()), None)
        if script is None:
            raise UserError(f"--against {o.against}: has no experiments/benchmark.py")
        rows.update({f"--against {precision}": (script.resolve(), f"ours {precision}", "")
                     for precision in o.precision})
    for peer in o.peer:
        name, _, folder = peer.partition("=")
        known = [known for known, (of, _) in PEERS.items() if of == o.architecture]
        if name not in known or not Path(folder).is_dir():
            raise UserError(f"--peer {peer}: with --architecture {o.architecture}, give "
                            + " or ".join(f"{known}=FOLDER" for known in known))
        rows[name] = (__file__, name, Path(folder).resolve())
    in_turn(rows, o)


def memory(o):
    """The same iteration, with freed memory kept by the process and given back to Linux."""
    in_turn({"kept": (__file__, "ours fp32", ""),
             "given back": (__file__, "ours fp32 returned", "")}, o)


def processes(o):
    """The same iteration: one thread, one process with all, as many processes of one thread."""
    threads = torch.get_num_threads()
    if o.batch % threads:
        raise UserError(f"--batch {o.batch}: {threads} processes cannot share it equally; --batch "
                        f"{threads * -(-o.batch // threads)} can be shared")
    rows = {"1 thread": (1, 1), f"{threads} threads": (1, threads),
            f"{threads} processes": (threads, 1)}
    print(f"{'px':>5}{'':>15}{'seconds':>10}{'of 1 thread':>13}{'MB each':>9}")
    for resolution in o.resolution:
        found = {label: [] for label in rows}
        for label, row in list(rows.items()) * o.rounds:
            found[label].append(measured(__file__, f"ours {o.precision[0]}", o.batch, resolution,
                                         o.count, "", o.architecture, CPU, *row))
        seconds = {label: statistics.median(time for result in results for time in result["times"])
                   for label, results in found.items()}
        for label, results in found.items():
            print(f"{resolution:5}{label:>15}{seconds[label]:10.3f}"
                  f"{seconds[label] / seconds['1 thread']:13.2f}"
                  f"{max(result['peak'] for result in results):9.0f}", flush=True)


# ==== Part 2: cost, loader, profile ===========================================================


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


def cost(o):
    """Measured up to --largest; the work, which is counted for StyleGAN alone, for all."""
    print(f"{'px':>5}{'batch':>6}{'':>6}{'s/kimg':>10}{'MB':>8}{'GFLOP/image':>13}{'GFLOP/s':>9}")
    for resolution in models.resolutions_up_to(1024):
        counted = o.architecture == "stylegan"
        work = work_of_a_step(resolution)[0] if counted else float("nan")
        if resolution > o.largest:
            print(f"{resolution:5}{work:43.0f}" * counted)
            continue
        for batch in o.batches:
            for precision in o.precision:
                result = measured(__file__, f"ours {precision}", batch, resolution, o.count, "",
                                  o.architecture)
                seconds = min(result["times"]) / batch
                print(f"{resolution:5}{batch:6}{precision:>6}{1000 * seconds:10.1f}"
                      f"{result['peak']:8.0f}{work:13.0f}{work / seconds:9.0f}", flush=True)


def loader(o):
    """Images a second: from the packed cache, one process, beside a step of the default run."""
    machine.keep_freed_memory()
    chosen, _ = options.complete_options({"resolution": o.largest}, CPU)
    player = Player({name: chosen[name] for name in models.SETTINGS})
    resolutions = models.resolutions_up_to(o.largest)

    def step(resolution, due):
        player.step(random_reals(chosen["batch"][resolution], resolution),
                    None if due is None else 1.0)
    speeds, _ = machine.rehearse(step, resolutions, chosen["batch"], [chosen["r1_interval"]],
                                 player.team.agreed)
    print(f"{'px':>5}{'loader, images/s':>18}{'step, images/s':>16}{'times':>8}")
    with tempfile.TemporaryDirectory() as cache:
        source = pictures.painted_faces(range(2000))
        packed = pictures.pack_pictures(source, o.largest, cache, machine.cores(),
                                        report=lambda line: None)
        for resolution in resolutions:
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


def profile(o):
    """Of each part of an iteration, after two others: the operations that take most of it."""
    from torch.profiler import ProfilerActivity
    for share, part in ours(o.batch, o.resolution[0], [o.precision[0]], o.architecture):
        part(), part()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as seen:
            part()
        events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        print(f"\n{total / 1e6:.2f} s in all, of which an iteration has {share}")
        for event in events[:20]:
            print(f"{100 * event.self_cpu_time_total / total:6.1f} %{event.count:7}  {event.key}")


# ==== Part 3: gradients by hand, and the parts ================================================


def milliseconds(function, repetitions=5):
    """The shortest of some times: what disturbs a measurement only ever makes it longer."""
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def forward_backward(function, *inputs):
    """What training asks of a layer: its result, and the gradients of all that goes in."""
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


def kept_mb(function, *inputs):
    """MB that the backward pass waits for: the result, and what is kept beside it, each once.

    (The result counts, since it is the input of the next layer, which keeps it anyway.)
    """
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(*inputs)
        pack(y.detach())
    return sum(kept.values()) / 1e6


def channels_last(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()


def autograd_convolve(x, weight):
    return F.conv2d(x, weight, padding=1)


def autograd_blur(x):
    kernel = fast_gradients.filter_kernel(*fast_gradients.BLUR, x.shape[1])
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def autograd_leaky_relu(x):
    return F.leaky_relu(x, fast_gradients.LEAKY_SLOPE)


def autograd_adain(x, scale, shift):
    """The lines of `_NormalizeAndStyle.forward`, their gradients left to autograd."""
    centred = x - fast_gradients.spatial_mean(x)
    rstd = torch.rsqrt(fast_gradients.spatial_mean(centred.square()) + 1e-8)
    return torch.addcmul(shift, centred, scale * rstd)


def gradients(o):
    """Each function of fast_gradients.py beside the same left to autograd.

    "R1" is a double backward; AdaIN is in G only and needs none.
    """
    machine.keep_freed_memory()
    print(f"{'':48}{'ms':>8}{'other':>9}{'ratio':>8}{'MB kept':>10}{'other':>8}")

    def compare(label, measure, ours, other, *inputs):
        times = [milliseconds(lambda: measure(f, *inputs)) for f in (ours, other)]
        kept = [kept_mb(f, *inputs) for f in (ours, other)]
        print(f"{label:48}{times[0]:8.2f}{times[1]:9.2f}{times[1] / times[0]:8.2f}{kept[0]:10.1f}"
              f"{kept[1]:8.1f}", flush=True)

    hand = fast_gradients
    for shape in ((32, 32, 32, 32), (16, 512, 32, 32), (4, 256, 64, 64)):
        c, x = shape[1], channels_last(*shape)
        weight = channels_last(c, c, 3, 3)
        for label, measure in (("forward + backward", forward_backward), ("R1", double_backward)):
            compare(f"{list(shape)} convolve, {label}", measure, hand.convolve, autograd_convolve,
                    x, weight)
            compare(f"{list(shape)} blur, {label}", measure, hand.blur, autograd_blur, x)
            compare(f"{list(shape)} leaky_relu, {label}", measure, hand.leaky_relu,
                    autograd_leaky_relu, x)
        scale, shift = (torch.rand(shape[0], c, 1, 1, requires_grad=True) for _ in range(2))
        compare(f"{list(shape)} AdaIN, forward + backward", forward_backward,
                hand.normalize_and_style, autograd_adain, x, scale, shift)

        def adain():
            return milliseconds(lambda: forward_backward(hand.normalize_and_style, x, scale, shift))
        ours = adain()
        # The same code, but its means are taken by x.mean and not by a matrix product.
        with mock.patch.object(hand, "spatial_mean", lambda x: x.mean(dim=(2, 3), keepdim=True)):
            other = adain()
        print(f"{f'{list(shape)} AdaIN, spatial_mean and x.mean':48}{ours:8.2f}{other:9.2f}"
              f"{other / ours:8.2f}", flush=True)


def resampling(name, channel_base, channel_max, batch):
    """The table in fast_gradients.py. Up: forward and backward. Down: with double backward."""
    up = (layers.upsample_conv_blur_plain, layers.upsample_conv_blur,
          fast_gradients.upsample_conv_blur_4x4, fast_gradients.upsample_conv_blur_6x6)
    down = (layers.blur_conv_downsample_plain, layers.blur_conv_downsample,
            fast_gradients.blur_conv_downsample_4x4, fast_gradients.blur_conv_downsample_6x6)
    print(f"\n{name}, batch {batch}: milliseconds\n{'':>22}" + "".join(
        f"{form:>9}" for form in ("plain", "3x3", "4x4", "6x6")))
    for r in (8, 16, 32, 64, 128):
        large, small = (models.channels_at(s, channel_base, channel_max) for s in (r, r // 2))
        n = batch if r < 128 else batch // 2
        for label, forms, measure, side, c_in, c_out in (
                ("up", up, forward_backward, r // 2, small, large),
                ("down", down, double_backward, r, large, small)):
            x, weight = channels_last(n, c_in, side, side), channels_last(c_out, c_in, 3, 3)
            times = [milliseconds(lambda: measure(form, x, weight)) for form in forms]
            print(f"{label:>5} {r:4d} px {c_in:4d}->{c_out:<4d}"
                  + "".join(f"{t:9.1f}" for t in times), flush=True)


def training_steps():
    """A step of the default run: with and without R1, and in the two memory formats."""
    print("\na step of the default run at 32 px, batch 16: milliseconds")
    chosen, _ = options.complete_options({}, CPU)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        player = Player({name: chosen[name] for name in models.SETTINGS})
        player.G.to(memory_format=memory_format), player.D.to(memory_format=memory_format)
        reals = random_reals(16, 32, memory_format)
        times = [milliseconds(lambda: player.step(reals.detach(), r1)) for r1 in (None, 1.0)]
        print(f"{str(memory_format):28} without R1 {times[0]:7.1f}   with R1 {times[1]:7.1f}"
              f"   {times[1] / times[0]:.2f} times", flush=True)


def path_length_backward(function, x, weight, style):
    """What path length asks of a layer of StyleGAN2: gradients of gradients at its inputs."""
    y = function(x, weight, style)
    with fast_gradients.input_gradients_only():
        gradients = torch.autograd.grad(y.square().sum(), (x, style), create_graph=True)
    sum(gradient.square().sum() for gradient in gradients).backward()


def modulation(o):
    """Kernels modulated, or images: `modulated_convolution` says which and why."""
    machine.keep_freed_memory()
    print(f"milliseconds, batch {o.batch}\n{'':32}{'forward + backward':>25}{'path length':>25}\n"
          f"{'':32}" + 2 * f"{'images':>9}{'kernels':>8}{'ratio':>8}")
    sizes = ((512, 8), (512, 16), (512, 32), (256, 64), (64, 16), (64, 32))
    for kernel, up in ((3, False), (3, True), (1, False)):
        for channels, side in sizes:
            out = channels if kernel == 3 else 3
            side = side // 2 if up else side
            x, weight = channels_last(o.batch, channels, side, side), channels_last(
                out, channels, kernel, kernel)
            style = torch.randn(o.batch, channels).requires_grad_()
            label = f"{kernel}x{kernel}{' up' if up else ''}, {channels} to {out} at {side} px"
            print(f"{label:32}", end="")
            for measure in (forward_backward, path_length_backward):
                images, kernels = (
                    milliseconds(lambda: measure(functools.partial(
                        layers.modulated_convolution, demodulate=kernel == 3, up=up,
                        modulate=modulate), x, weight, style))
                    for modulate in ("images", "kernels"))
                print(f"{images:9.2f}{kernels:8.2f}{kernels / images:8.2f}", end="")
            print(flush=True)


def winograd_table(o):
    """3x3 layers: the plain way and the one of winograd.py, forward and the kernel's gradient."""
    from workshop import winograd
    machine.keep_freed_memory()
    print(f"milliseconds, batch {o.batch}\n{'':22}{'forward':>16}{'kernel gradient':>20}\n{'':22}"
          + 2 * f"{'plain':>8}{'ours':>8}{'ratio':>6}")
    for channels, side in ((512, 32), (512, 16), (512, 8), (256, 64), (256, 32), (256, 16),
                           (192, 64), (128, 64), (128, 32), (64, 64)):
        x, grad = (channels_last(o.batch, channels, side, side).detach() for _ in range(2))
        weight = channels_last(channels, channels, 3, 3).detach()

        def plain_gradient():
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                [False, True, False])[1]
        print(f"{channels} channels at {side} px".ljust(22), end="")
        for plain, ours_ in ((lambda: F.conv2d(x, weight, padding=1),
                              lambda: winograd.convolve(x, weight)),
                             (plain_gradient, lambda: winograd.kernel_gradient(x, grad))):
            a, b = milliseconds(plain), milliseconds(ours_)
            print(f"{a:8.1f}{b:8.1f}{a / b:6.2f}", end="")
        print(flush=True)


def parts(o):
    machine.keep_freed_memory()
    training_steps()
    resampling("paper's widths", 8192, 512, 4)
    resampling("paper's widths", 8192, 512, 16)
    resampling("widths of the default run", 512, 64, 32)


# ==== Part 4: the program =====================================================================


def main(argv=None):
    whats = {"iteration": iteration, "memory": memory, "gradients": gradients, "parts": parts,
             "modulation": modulation, "winograd": winograd_table, "cost": cost,
             "processes": processes, "loader": loader, "profile": profile, "one": one}
    parser = options.OneLineParser(prog="benchmark.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    counts = options.number_from(1)

    def resolutions(text):
        return [resolution_of(word) for word in text.split(",")]

    def resolution_of(text):
        return models.resolutions_up_to(int(text))[-1]         # a ValueError if there is none

    def device_of(text):
        try:
            return torch.device(text)
        except RuntimeError:                                   # argparse would not catch it
            raise argparse.ArgumentTypeError(f"{text!r} is no device like cpu, cuda") from None

    parser.add_argument("what", choices=list(whats), metavar="WHAT",
                        help=", ".join(name for name in whats if name != "one"))
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)         # for `one`
    parser.add_argument("--against", type=Path, metavar="FOLDER",
                        help="iteration: another checkout of this program, measured in turn")
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=FOLDER",
                        help="iteration: rosinality=FOLDER, dulaku=FOLDER; of StyleGAN2: "
                        "ada=FOLDER")
    parser.add_argument("--architecture", choices=("stylegan", "stylegan2"), default="stylegan",
                        help="iteration, memory, cost, processes, profile (default stylegan)")
    parser.add_argument("--resolution", type=resolutions, default=[32], metavar="LIST",
                        help="iteration, memory, processes, profile (default 32)")
    parser.add_argument("--device", type=device_of, default=CPU, metavar="NAME",
                        help="iteration: cpu, cuda (default cpu)")
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["fp32"],
                        metavar="LIST", help="of fp32, tf32, bf16 (default fp32)")
    parser.add_argument("--compile", action="store_true", help="iteration: --compile, too")
    parser.add_argument("--batch", type=counts, default=16, metavar="N", help="(default 16)")
    parser.add_argument("--rounds", type=counts, default=2, metavar="N",
                        help="processes of each, in turn (default 2)")
    parser.add_argument("--count", type=counts, default=3, metavar="N",
                        help="iterations measured in a process (default 3)")
    parser.add_argument("--largest", type=resolution_of, default=64, metavar="R",
                        help="cost, loader: up to this resolution (default 64)")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")],
                        default=[4, 16], metavar="LIST", help="cost (default 4,16)")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    o = parser.parse_args(argv)
    if set(o.precision) - {"fp32", "tf32", "bf16"}:
        parser.error(f"--precision {','.join(o.precision)}: of fp32, tf32, bf16")
    if o.what != "one":
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    whats[o.what](o)
    return 0


if __name__ == "__main__":
    options.start(main, "benchmark.py", "stopped")
