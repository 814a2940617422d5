"""machine.py: devices, precision, memory, compiled programs, several processes, seeds.   (workshop)

Used by: all scripts. Only part 2 knows what a StyleGAN is.
Needs:   torch, numpy. Importing this file reads no file, no argv, no clock.

  1. the device       which one, how a network lies in its memory, how many cores there are
  2. precision        fp32, tf32, bf16, put around the networks from outside; torch.compile likewise
  3. the team         the processes of one torchrun command, each with its part of every batch
  4. random numbers   all those of a step are a function of (seed, step, process)
  5. time and memory  how long a run will take, whether it fits, how much it took
  6. other processes  those that load pictures, and those that want the same folder
"""

import contextlib
import ctypes
import datetime
import json
import multiprocessing
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import torch
import torch.distributed as dist

try:
    import fcntl                                               # not on Windows
except ImportError:
    fcntl = None
    import msvcrt
try:
    import resource                                            # not on Windows
except ImportError:
    resource = None

from workshop import UserError

# ---- 1. The device ---------------------------------------------------------------------------


def pick_device(name=None):
    """torch.device by name, or the best there is.   Errors: UserError if it cannot compute."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else (
            "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()            # "meta" has no numbers to give back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)                  # "cuda:1": also for its random numbers
    return device


def memory_format(device):
    """How images lie in memory: channels_last, the C numbers of a pixel together; NCHW on MPS.

    Fast convolutions are written for channels_last. They add up in another order, so results differ
    in their last bits.
    [MACHINE] CPU and CUDA (both measured; on an H100 sometimes NCHW was the faster).
              On MPS several silent errors with memory formats were open in PyTorch (issues 175189,
              107214), and nobody has run this there.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def place(network, device):
    """The network on the device, in its memory format."""
    return network.to(device, memory_format=memory_format(device))


def send(tensor, device):
    """The tensor on the device. On CUDA the CPU does not wait for the copy.

    Only there: on MPS such a copy may read memory that was given back in the meantime, without an
    error (PyTorch issues 189690, 139550).
    Proved: tests/test_machine.py::test_only_cuda_copies_without_waiting
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def cores():
    """How many CPU cores this process may use, which in a container is less than there are.

    [MACHINE] Linux: the cores it is bound to, and a quota in /sys/fs/cgroup/cpu.max (a container
              with cgroup version 2); elsewhere all.
    Proved: tests/test_machine.py::test_cores_are_those_the_process_may_use
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, -(-int(quota) // int(period)))              # rounded up
    except (OSError, ValueError):                      # no such file, or "max": no limit
        pass
    return max(1, count or 1)


def keep_freed_memory():
    """Let the C library keep the memory that tensors give back, instead of returning it.

    Why:    Linux hands out memory page by page, emptied, at the first touch of each 4 kB. A step
            makes and drops a few hundred large tensors, and each would be emptied anew.
    How:    two settings of glibc: large blocks come from the heap, too, and not one by one from the
            system, to which they would go back (M_MMAP_MAX 0); and the heap is never trimmed
            (M_TRIM_THRESHOLD -1, which glibc documents as "off").
    [MACHINE] Linux with glibc on x86 (torch for ARM has an allocator of its own, mimalloc, which
              this does not reach): experiments/benchmark.py memory measures time and memory with
              and without. What is kept is kept until the end of the run. Elsewhere nothing is done.
    Proved: tests/test_machine.py::test_freed_memory_is_kept
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda parameter, value: 0)
        mallopt(-4, 0)                                         # M_MMAP_MAX
        mallopt(-1, -1)                                        # M_TRIM_THRESHOLD


def share_heaps():
    """Let the threads of a server share two heaps. To be called before there are threads.

    Why:    glibc gives threads heaps of their own, up to eight for each core. Holes in one are no
            use to another, and a server whose calls come to any of its threads grows for hours.
    [MACHINE] Linux with glibc (M_ARENA_MAX); experiments/explore.py load measures it. Elsewhere
              nothing is done.
    """
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "mallopt", lambda parameter, value: 0)(-8, 2)


# ---- 2. Precision ----------------------------------------------------------------------------


@contextlib.contextmanager
def in_float32():
    """Within the block no product is rounded to TF32; afterwards all is as it was.

    Proved: tests/test_machine.py::test_in_float32_switches_tf32_off_and_on_again
    """
    products = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products[0])
        torch.backends.cudnn.allow_tf32 = products[1]


def set_precision(G, D, precision):
    """fp32, tf32 or bf16, of convolutions only (--precision).

    tf32:   NVIDIA's float32 with 10 bits of mantissa instead of 23, inside of convolutions. Matrix
            products stay float32: the mapping network, the styles, the sums of AdaIN, the minibatch
            stddev. They cost next to nothing, and the variance of AdaIN would suffer.
    bf16:   the blocks get bfloat16 images and hand them on; weights are stored in float32 and
            rounded where they are used (`convolve` takes the precision of its input). The mapping
            network, the styles, the sums of AdaIN, to_rgb, from_rgb, G's 4x4 block up to its result
            and D's 4x4 block stay float32. bfloat16 has the range of float32, so no gradient
            vanishes and no loss needs to be scaled.
    How:    hooks, which torch calls before and after a module. So no forward pass knows of it.
    Proved: tests/test_machine.py::test_low_precision_is_near_and_its_sensitive_parts_are_float32,
            ::test_tf32_is_for_convolutions_only
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if precision == "bf16":
        for block in G.synthesis.blocks.values():
            block.register_forward_hook(_result_in_bfloat16)
        for layer in G.synthesis.to_rgb.values():
            layer.register_forward_pre_hook(_input_in_float32)
        for layer in D.from_rgb.values():
            layer.register_forward_hook(_result_in_bfloat16)
        D.blocks["4"].register_forward_pre_hook(_input_in_float32)


def multiplies_bfloat16():
    """Has this CPU instructions for products of bfloat16 (AVX512-BF16)? Then bf16 is the default.

    [MACHINE] One thread, the default run's networks at 32 px: a step in bf16 takes 0.7 times as
              long as in float32; with AVX-512 alone, where products are made in float32 after all,
              2 times, with AVX2 12 times (measured with ONEDNN_MAX_CPU_ISA). ARM was not tried.
    """
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)          # a private name of torch
    return bool(known and known())


def _result_in_bfloat16(module, inputs, result):
    return result.to(torch.bfloat16)


def _input_in_float32(module, inputs):
    return inputs[0].float(), *inputs[1:]


def compile_blocks(G, D, backend="inductor"):
    """Let torch.compile turn each block into a program, made at its first call (--compile).

    Block by block, so that what lies between them is free: a growing network calls fewer or more of
    them, and alpha, which changes in every step, is in none of them. torch.compile cannot
    differentiate twice, so where R1 asks for that, in a call of D with images that need gradients
    and weights that learn, D runs as it is written.
    Proved: tests/test_machine.py::test_compiled_networks_have_the_same_gradients, with the backend
            "aot_eager": the same derivatives, but not the programs that "inductor" writes.
    """
    torch._dynamo.config.cache_size_limit = 64                 # 8 are too few for so many layers
    # The scale of a layer's weights never changes. Taken for a variable, it stops torch 2.6.
    torch._dynamo.config.specialize_float = True
    for block in [*G.synthesis.blocks.values(), *D.blocks.values()]:
        block.compile(backend=backend)
    D.register_forward_pre_hook(_as_written_for_r1)
    D.register_forward_hook(_compiled_again, always_call=True)


def _as_written_for_r1(D, inputs):
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in D.parameters())
    if learns and inputs[0].requires_grad:
        torch.compiler.set_stance("force_eager")


def _compiled_again(D, inputs, scores):
    torch.compiler.set_stance("default")


@contextlib.contextmanager
def as_written():
    """Within the block nothing is compiled: for what is to be differentiated twice.

    Why:    torch.compile makes programs for the first derivative. For the second, some versions of
            PyTorch raise an error, and some have left terms out without a word.
    Proved: tests/test_machine.py::test_compiled_networks_have_the_same_gradients
    """
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


# ---- 3. The team -----------------------------------------------------------------------------
#
# torchrun starts this program several times. All do the same, each with its part of every batch;
# only the first one, the chief, writes and talks (errors may come from all).

# While train.py trains: a function that says how to go on, for the sentence of an error.
how_to_go_on = []


class Team:
    """The processes of one torchrun command, or one process alone.

    Process `rank` of `processes` takes samples rank, rank + processes, rank + 2 processes, ... of a
    batch, so that the groups of the minibatch stddev are those of one process, if the parts are
    multiples of 4.
    """

    def __init__(self, device):
        self.device = device
        self.rank = int(os.environ.get("RANK", 0))
        self.processes = int(os.environ.get("WORLD_SIZE", 1))
        self.chief = self.rank == 0
        self.alone = False                             # at work for which no other is needed
        self.silence = [0] * self.processes            # of each, in twentieths of the limit

    def say(self, *words, **options):
        if self.chief:
            print(*words, **options)

    @contextlib.contextmanager
    def first_here_first(self):
        """The first process of each machine goes through the block before the others do."""
        if not first_here():
            self.agreed(0)                             # waits for all
        self.alone = first_here()                      # packs to the end, whoever has gone
        yield
        self.alone = False
        if first_here():
            self.agreed(0)

    def agreed(self, value):
        """The largest `value`, a number, of all processes. They must take the same decisions."""
        if not dist.is_initialized():
            return value
        tensor = torch.tensor(float(value), dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)             # on the CPU: no GPU waits for it
        self.silence = [0] * self.processes                    # a sign of life of all (`listen`)
        return tensor.item()

    def same(self, value):
        """Do all processes have this value? It is anything with an exact repr."""
        number = zlib.crc32(repr(value).encode())
        return self.agreed(number) == -self.agreed(-number)

    def mean(self, tensor):
        """The mean over the processes, in place."""
        if dist.is_initialized():
            dist.all_reduce(tensor)
            tensor /= self.processes
        return tensor

    def average_gradients(self, network, *buffers, parts=1):
        """Replace every gradient by its mean over the processes and the parts of the batch.

        Why:    the loss of a batch is the mean over its images, so its gradient is the mean of the
                gradients of equal parts. All processes take the same step from the same weights
                then, and remain the same.
        Differs: DistributedDataParallel does this in pieces while the backward pass still runs,
                which hides the time of sending. By default it wants one forward and one backward a
                step and all parameters used. D has two of each and R1, and a growing network has
                blocks that are not used yet; find_unused_parameters and no_sync answer that, with
                more rules for the reader to know than these lines have.
        Shapes: buffers: other tensors to average, such as w_avg. parts: how many backward
                passes were added up in the gradients (--accumulate).
        Proved: tests/test_machine.py::test_two_processes_have_the_gradients_of_one
        """
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        if parts > 1:
            torch._foreach_div_(gradients, parts)
        if dist.is_initialized():
            _in_one_message(gradients + list(buffers), self.mean)

    @torch.no_grad()
    def share_weights(self, *networks):
        """Give all processes the weights of the first: other machines may round differently."""
        if dist.is_initialized():
            for network in networks:
                _in_one_message(list(network.parameters()), lambda flat: dist.broadcast(flat, 0))

    def leave(self, code):
        """End this process, one of several, at once; after a stop or a NaN all together.

        torchrun ends all others as soon as one ends with a code; and the chief may still write.
        gloo's threads, taken down in order while another process still works, were seen to end a
        finished run with an abort, rarely (torch 2.14, CPU; the cause was not found).
        """
        if dist.is_initialized():
            if code:
                self.alone = False
                with contextlib.suppress(RuntimeError):        # whoever has gone is not waited for
                    self.agreed(0)
            sys.stdout.flush(), sys.stderr.flush()
            end_children()
            os._exit(code)
        return code


def _in_one_message(tensors, send):
    """Apply `send`, in place, to all tensors as one flat tensor: one message instead of 100."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    send(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [p.view(t.shape) for p, t in zip(parts, tensors)])


def join(device, minutes):
    """Meet the other processes of torchrun, if there are any. Returns the `Team`.

    minutes: --timeout-minutes. The group itself gets days, since its limit holds for every step,
    and in some steps the others wait while one process packs pictures or measures. `listen` finds
    out whether that process still works.
    """
    team = Team(device)
    if team.processes > 1:
        limit = datetime.timedelta(days=7)
        try:
            store, rank, processes = next(dist.rendezvous(
                "env://", timeout=datetime.timedelta(minutes=minutes)))
            store.set_timeout(limit)
            # Each attempt has names of its own in the store, and reads nothing that dead ones left.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            listen(team, dist.PrefixStore(f"attempt {attempt}", store.clone()), minutes)
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                                    store=dist.PrefixStore(f"attempt {attempt}", store),
                                    rank=rank, world_size=processes, timeout=limit)
            if device.type == "cuda":          # NCCL itself meets when it is first used: now
                dist.all_reduce(torch.zeros(1, device=device))
                torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise UserError(
                f"the processes do not reach one another ({reason(error)}); on several"
                f" machines say through which network, for instance GLOO_SOCKET_IFNAME=eth0 and "
                f"NCCL_SOCKET_IFNAME=eth0 in front of torchrun") from None
    return team


def listen(team, store, minutes):
    """Give up once another process has given no sign of life for so many minutes.

    Why:    a machine that loses its power, or its cable, says no goodbye, and a step would wait for
            its gradients for ever.
    How:    a thread counts for its process, in the store that torchrun keeps on the first machine,
            20 times within the limit, and reads how far the others have counted. It counts while
            the process packs, measures, compiles or waits; no step sends anything for it. A second
            thread counts the looks without news, since a store that is out of reach holds the
            first one up; looks and not seconds, since a computer may have slept. A step that all
            have made is news, too, should the store alone have gone. The end may come at any
            moment, as kill -9 may: files are whole.
    Proved: tests/test_machine.py::test_a_silent_process_is_noticed_and_a_busy_one_is_not,
            tests/test_two_machines.py
    """
    pause, processes = 60 * minutes / 20, range(team.processes)
    counts, hosts = [0] * team.processes, ["another machine"] * team.processes

    def count():
        with contextlib.suppress(RuntimeError):        # the store has gone: that is silence, too
            store.set(f"host {team.rank}", socket.gethostname())
            while True:
                store.add(f"count {team.rank}", 1)
                for other in processes:
                    found = store.add(f"count {other}", 0)
                    if found > counts[other]:
                        if not counts[other]:
                            hosts[other] = store.get(f"host {other}").decode()
                        counts[other], team.silence[other] = found, 0
                time.sleep(pause)

    def watch():
        while True:
            time.sleep(pause)
            team.silence = [silence + 1 for silence in team.silence]
            silent = [other for other in processes if team.silence[other] > 20]
            if silent and not team.alone:
                # Who does not even hear himself is cut off from the store.
                who = os.environ["MASTER_ADDR"] if team.silence[team.rank] > 10 else (
                    f"{hosts[silent[0]]} (process {silent[0]})")
                give_up(f"{who} has not answered for {minutes:g} minutes (--timeout-minutes)")

    for work in (count, watch):
        threading.Thread(target=work, daemon=True).start()


def give_up(why):
    """End this process, one of several, in the middle of whatever it waits for, with a sentence.

    The first process of each machine says it. The chief knows how to go on.
    """
    # Printing, or looking into the run's folder, may hang: both may be on the other machine.
    emergency = threading.Timer(10, os._exit, [1])
    emergency.daemon = True
    emergency.start()
    if first_here():
        print(f"train.py: {why}; what is kept is whole", end="", file=sys.stderr, flush=True)
        go_on = "; the checkpoint to --resume lies on the first machine"
        if os.environ.get("RANK", "0") == "0":
            go_on = "".join(say() for say in how_to_go_on) or "; start again"
        print(go_on, file=sys.stderr, flush=True)
    end_children()
    os._exit(1)


def another_has_gone(error):
    """Does this RuntimeError say that the connection to another process was lost?"""
    return dist.is_initialized() and (
        isinstance(error, dist.DistError) or "gloo" in str(error))


def reason(error):
    """The line of an error that says why: of NCCL's the last one, of others the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "NCCL" in str(error) else 0][:200]


def processes_here():
    """How many processes of torchrun share this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def first_here():
    """Is this the first process of its machine?"""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def spoken(words):
    """Words as one line for the shell. (Windows' cmd.exe knows no single quotes.)"""
    words = list(map(str, words))
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def launcher():
    """What to type in front of train.py to start as many processes again, as a list of words."""
    machines, here = (int(os.environ.get(name, 1)) for name in (
        "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    uv = ["uv", "run"] if "UV" in os.environ else []           # uv tells its children
    if "TORCHELASTIC_RUN_ID" not in os.environ or machines * here == 1:
        return uv or ["python"]
    if machines == 1:
        return [*uv, "torchrun", "--standalone", f"--nproc_per_node={here}"]
    networks = [f"{name}={os.environ[name]}" for name in
                ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name in os.environ]
    return [*networks, *uv, "torchrun", f"--nnodes={machines}",
            f"--node_rank={os.environ['GROUP_RANK']}", f"--nproc_per_node={here}",
            f"--master_addr={os.environ['MASTER_ADDR']}",
            f"--master_port={os.environ['MASTER_PORT']}"]


def device_of_this_process(name):
    """`pick_device`, but under torchrun each process of a machine gets a GPU of its own."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return pick_device(name)
    if (name or "cuda").startswith("cuda") and torch.cuda.is_available():
        if name not in (None, "cuda"):
            raise UserError(f"--device {name}: under torchrun each process takes a GPU of its own; "
                            f"type cuda, and CUDA_VISIBLE_DEVICES says which")
        # At once: each that looked at the first GPU before would hold some of its memory.
        return pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    device = pick_device(name or "cpu")                        # and not a Mac's one GPU
    if device.type != "cpu":
        raise UserError(f"--device {device}: torchrun needs CUDA or a CPU")
    return device


def interrupted_run(out):
    """The folder in which an earlier attempt of the same torchrun command worked, or None.

    torchrun starts all processes again after one of them died (--max-restarts).
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) and launch_id():
        for run in [out] if out else sorted(pathlib.Path("runs").glob("*-*"), reverse=True):
            settings = run / "settings.json"
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):   # cut, or none
                if json.loads(settings.read_text())["launch"] == launch_id():
                    return run
    return None


def launch_id():
    """What all attempts of one torchrun command have in common; None without torchrun.

    It is torchrun's --rdzv-id, or one that it makes up. With --master_addr or --master_port it is
    "none"; then the process of torchrun itself tells commands apart, on one machine. (Who gives
    the same --rdzv-id to two commands has two with one name. The newest run counts.)
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":
        return name
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return f"started by process {os.getppid()} on {socket.gethostname()}" if alone else None


# ---- 4. Random numbers -----------------------------------------------------------------------


def draw_z(seed, step, team, shape):
    """This process's share of the z of a step, and a seed for the noise inputs of the step.

    Why:    all random numbers of a step are a function of (seed, step, process), so a resumed run
            needs no saved state to go on with the same ones. With another number of processes z
            stays the same; the noise maps do not.
    How:    the z of the whole batch come from a generator that is seeded alike in every process,
            and each takes its share. The noise inputs draw from torch's global generators, which
            are seeded differently in each, or all would add the same noise.
    Shapes: shape (2, N, K, latent) with N of the whole batch -> [2, N / processes, K, latent].
    Proved: tests/test_machine.py::test_z_and_the_noise_of_each_process_are_different_numbers
    """
    # Number 0 is for z; the processes count from 1. (Ranks from 0, with [seed, step] for z, would
    # give z the numbers of the first one's noise: numpy takes [seed, step] for [seed, step, 0].)
    latents, noise = (
        int(np.random.SeedSequence([seed, step, which]).generate_state(1, np.uint64)[0])
        for which in (0, 1 + team.rank))
    torch.manual_seed(noise)
    generator = torch.Generator(team.device).manual_seed(latents)
    z = torch.randn(shape, device=team.device, generator=generator)
    return z[:, team.rank::team.processes]


# ---- 5. Time and memory ----------------------------------------------------------------------


def out_of_memory(error):
    """Is this RuntimeError or MemoryError a device's or the computer's "no memory left"?"""
    return isinstance(error, MemoryError) or bool(
        re.search("out of memory|not enough memory|allocate memory", str(error)))


def progress_bar(iterable=None, **options):
    """A tqdm bar; silent where nobody looks, in a file or a pipe."""
    from tqdm import tqdm                                      # slow to import, so not on top
    return tqdm(iterable, **{"disable": None, "leave": False, **options})


def rehearse(step, resolutions, batch, intervals, agreed, patience=20.0):
    """({resolution: seconds an image}, resolutions that were not tried), from a few steps at each.

    Why:    a run of days should say so at its start, and should run out of memory now, not when it
            reaches its last resolution. But once a step is expected to take longer than `patience`
            seconds, larger resolutions are guessed at 3 times the one below, and named.
    step:   step(resolution, due) makes one step, on copies, and waits for its end; with the penalty
            number `due`, or with none of them if due is None.
    intervals: [k, ...], a penalty is due in every k-th step.
    agreed: `Team.agreed`: the slowest of several processes counts.
    Proved: tests/test_machine.py::test_the_rehearsal_names_what_it_did_not_try
    """
    def seconds(resolution, due=None):
        started = time.perf_counter()
        step(resolution, due)
        return agreed(time.perf_counter() - started)

    speeds, untried = {}, []
    for r in resolutions:
        if speeds and max(speeds.values()) * batch[r] > patience:
            speeds[r] = 3 * speeds[max(speeds)]
            untried.append(r)
            continue
        # The first steps also warm up: a GPU loads its libraries then, for seconds. So the last of
        # them, a plain one, says whether there is time to make all of them again.
        rare, plain = [seconds(r, due) for due in range(len(intervals))], seconds(r)
        if plain < patience / 20:
            rare = [seconds(r, due) for due in range(len(intervals))]
            plain = min(seconds(r), seconds(r))
        speeds[r] = (plain + sum((t - plain) / k for t, k in zip(rare, intervals))) / batch[r]
    return speeds, untried


def forget_peak_memory(device):
    """Let `peak_memory_mb` begin anew, after the rehearsal. On a CPU: on Linux only.

    What `keep_freed_memory` keeps would count for ever, so it is given back this once.
    Proved: tests/test_machine.py::test_the_peak_is_that_of_training_and_not_of_the_rehearsal
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # 5: the peak (man proc)
    except OSError:
        pass


def peak_memory_mb(device):
    """The most memory this process has held since `forget_peak_memory`, in MB.

    On MPS: what it holds now, since MPS keeps no record. On Windows without a GPU: None.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e6
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6
    except (OSError, TypeError):                       # not Linux
        pass
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


# ---- 6. Other processes ----------------------------------------------------------------------


def started(loader):
    """iter(loader); if one of its processes dies, that is a RuntimeError where its work is waited
    for, within 5 s.

    Why:    torch would raise it wherever the main process happens to be, in the middle of a step or
            of a checkpoint, by a handler of the signal SIGCHLD. That handler is taken away again.
    Proved: tests/test_dataloader.py::test_a_run_outlives_the_processes_that_load_its_pictures
    """
    batches = iter(loader)
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", "").startswith("torch."):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return batches


def workers_that_fit(count, batch_bytes):
    """(how many of `count` loader processes can work here, why they are fewer or "").

    batch_bytes: of one batch. Batches travel in shared memory, /dev/shm on Linux, two for each
    process. A container often has 64 MB of it. Each process also needs some open files.
    Proved: tests/test_machine.py::test_no_more_workers_than_shared_memory_and_open_files
    """
    if resource and count:
        wanted = 128 + 16 * count
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if soft < wanted:
                return 0, f"no more than {soft} files may be open (ulimit -n)"
    try:
        free = shutil.disk_usage("/dev/shm").free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except OSError:                                            # not Linux
        return count, ""
    # 64 kB: for queues and semaphores.
    fit = max(0, (free - 65536) // batch_bytes - 1) // 2 if batch_bytes else count * (free > 65536)
    if fit >= count:
        return count, ""
    return fit, (f"/dev/shm has {free / 1e6:.3g} MB free, too little for more (docker run "
                 f"--shm-size; or --workers {fit})")


def end_children():
    """End the processes that this one has started, at once. They ignore what else would end them
    (`quiet_worker` in pictures.py), and Python would wait for them for ever.

    Proved: tests/test_run.py::test_an_error_ends_a_run_with_workers_in_seconds
    """
    for child in multiprocessing.active_children():
        child.kill()


_locks = {}                       # path: the open file, while this process holds its lock


def lock(path):
    """Hold the lock file `path` until `unlock`, or the end of this process, however it ends.
    Returns "", or who else holds it.

    How:    a lock of the operating system. It belongs to this process and not to those that it
            starts, and is free when it dies. Where a file cannot be made or locked, all go on.
    Proved: tests/test_machine.py::test_a_lock_is_free_when_its_process_dies
    """
    path = os.path.abspath(path)
    if path in _locks:
        return ""
    try:
        file = open(path, "ab+")
    except OSError:
        return ""
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(2 ** 30)                                 # Windows lets nobody read there
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        with file:
            file.seek(0)
            taken = isinstance(error, (PermissionError, BlockingIOError))
            return taken and file.read(200).decode(errors="replace") or "another process" * taken
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
    _locks[path] = file
    return ""


def unlock(path):
    """Give a lock back that this process may hold."""
    file = _locks.pop(os.path.abspath(path), None)
    if file:
        with contextlib.suppress(OSError):                     # a full disk
            file.close()


def is_locked(path):
    """Does a process, this or another one, hold this lock file? None: there is no such file, or it
    lies where files cannot be locked."""
    if os.path.abspath(path) in _locks:
        return True
    if not os.path.exists(path):
        return None
    held = bool(lock(path))
    known = held or os.path.abspath(path) in _locks
    unlock(path)
    return held if known else None
