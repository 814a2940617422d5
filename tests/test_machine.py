"""workshop/machine.py: devices, precision, compiled programs, several processes, seeds, memory."""

import contextlib
import errno
import os
import pathlib
import platform
import re
import socket
import subprocess
import sys
import types

import pytest
import torch

import morph
import official
import stylegan_layers
import tiny
import train
from conftest import ROOT, relative
from workshop import UserError, machine

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets affinities")
GLIBC = pytest.mark.skipif(sys.platform != "linux" or platform.machine() == "aarch64",
                           reason="elsewhere torch does not take memory from glibc")


def in_python(code, cwd=None):
    """What a new Python prints for this code, with the scripts importable."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"], cwd=cwd,
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ---- 1. the device ----


def test_a_device_that_cannot_compute_is_refused():
    assert machine.pick_device("cpu") == torch.device("cpu")
    for name in ("toaster", "meta", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {name}: "):
            machine.pick_device(name)


@pytest.mark.parametrize("typed", [None, "cuda"])
def test_each_process_asks_for_its_own_gpu_alone(typed, monkeypatch):
    """Lesson: a process that looks at a GPU takes some hundred MB there for as long as it lives.
    Eight that look at the first one, before each takes its own, take them eight times."""
    asked = []
    monkeypatch.setattr(machine, "pick_device", lambda name: asked.append(name) or torch.device(
        name or "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "5")
    machine.device_of_this_process(typed)
    assert asked == [typed]                                    # control: without torchrun
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert machine.device_of_this_process(typed) == torch.device("cuda:5")
    assert asked == [typed, "cuda:5"]
    with pytest.raises(UserError, match="torchrun needs CUDA or a CPU"):
        machine.device_of_this_process("mps")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES says which"):
        machine.device_of_this_process("cuda:3")


def test_images_lie_channels_last_but_not_on_mps():
    """Lesson: a pixel's channels beside each other, where nobody has seen that go wrong."""
    assert machine.memory_format(torch.device("cpu")) == torch.channels_last
    assert machine.memory_format(torch.device("cuda", 1)) == torch.channels_last
    assert machine.memory_format(torch.device("mps")) == torch.contiguous_format
    conv = machine.place(torch.nn.Conv2d(8, 8, 3), torch.device("cpu"))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_only_cuda_copies_without_waiting():
    """Lesson: on MPS a copy that is not waited for may read memory that was given back. (A tensor
    that only notes how it was asked stands in: no other device is needed.)"""
    asked = []
    tensor = types.SimpleNamespace(to=lambda device, non_blocking: asked.append(
        (device.type, non_blocking)))
    for name in ("cuda", "cuda:1", "mps", "cpu"):
        machine.send(tensor, torch.device(name))
    assert asked == [("cuda", True), ("cuda", True), ("mps", False), ("cpu", False)]


@LINUX
def test_cores_are_those_the_process_may_use(monkeypatch):
    """Lesson: a process that is bound to one core has one, whatever the machine has; a container's
    quota of 1.5 cores makes 2."""
    code = ("import os\nfrom workshop import machine\nbefore = len(os.sched_getaffinity(0))\n"
            "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nprint(machine.cores())")
    assert in_python(code) == ["1"]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for quota, wanted in (("150000 100000", 2), ("50000 100000", 1), ("400000 100000", 4),
                          ("max 100000", 8), ("1600000 100000", 8), (None, 8)):
        def read_text(path, quota=quota):
            if quota is None:
                raise FileNotFoundError(path)
            assert path == pathlib.Path("/sys/fs/cgroup/cpu.max")
            return quota + "\n"
        monkeypatch.setattr(pathlib.Path, "read_text", read_text)
        assert machine.cores() == wanted, quota


@GLIBC
def test_freed_memory_is_kept():
    """Lesson: a new tensor soon lies where an earlier one was, and Linux need not empty its pages
    again: less than a tenth of the page faults. (Only soon: small things settle in the first holes.
    40 MB, since glibc itself keeps blocks of less than 32 MB once it has seen one given back.)"""
    code = ("import resource, torch\nfrom workshop import machine\n"
            "def faults():\n"
            "    for _ in range(20):\n"
            "        torch.ones(10_000_000)\n"
            "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "    for _ in range(10):\n"
            "        torch.ones(10_000_000)\n"
            "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
            "print(faults())\nmachine.keep_freed_memory()\nprint(faults())")
    ordinary, kept = map(int, in_python(code))
    assert kept < ordinary / 10 and ordinary > 100         # huge pages: 20 a tensor, else 9766


# ---- 2. precision ----


@pytest.fixture
def precision_as_before():
    products = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(products[0])
    torch.backends.cudnn.allow_tf32 = products[1]


def flags():
    """(are matrix products float32, are convolutions TF32?)"""
    assert torch.backends.cuda.matmul.allow_tf32 == (
        torch.get_float32_matmul_precision() != "highest")
    return torch.get_float32_matmul_precision() == "highest", torch.backends.cudnn.allow_tf32


def test_in_float32_switches_tf32_off_and_on_again(precision_as_before):
    """Lesson: both flags, whatever they were; also after an error inside."""
    for products, convolutions in (("high", True), ("highest", True), ("highest", False)):
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        before = flags()
        with machine.in_float32():
            assert flags() == (True, False)
        assert flags() == before
        with pytest.raises(KeyError), machine.in_float32():
            raise KeyError
        assert flags() == before


def test_tf32_is_for_convolutions_only(precision_as_before):
    """Lesson: PyTorch has a flag for cuDNN's convolutions and one for matrix products. Whatever
    they were before, --precision sets both, and the second one always to float32."""
    for precision, convolutions in (("tf32", True), ("fp32", False), ("bf16", False)):
        for before in (True, False):
            torch.set_float32_matmul_precision("high" if before else "highest")
            torch.backends.cudnn.allow_tf32 = before
            machine.set_precision(*tiny.networks(), precision)
            assert flags() == (True, convolutions), precision
    # The networks themselves ask for nothing else: without hooks they are as they were written.
    G, D = tiny.networks()
    machine.set_precision(G, D, "tf32")
    assert not any(module._forward_hooks or module._forward_pre_hooks
                   for network in (G, D) for module in network.modules())


def watch_dtypes(network, monkeypatch=None):
    """{name: [(dtype of each tensor going in, dtype coming out)]} of all modules of a network."""
    seen = {}

    def note(name):
        def hook(module, inputs, result):
            given = tuple(x.dtype for x in inputs if isinstance(x, torch.Tensor))
            seen.setdefault(name, []).append((given, result.dtype))
        return hook
    for name, module in network.named_modules():
        module.register_forward_hook(note(name))
    return seen


def test_low_precision_is_near_and_its_sensitive_parts_are_float32(precision_as_before,
                                                                   monkeypatch):
    """Lesson: the convolutions of the blocks see numbers of 8 significant bits (bfloat16). The
    mapping network, styles, the sums of AdaIN, colours, the minibatch stddev and scores have 24."""
    G, D = official.networks()
    io = official.load("io")
    images, scores = G(io["z"], noise_mode="const"), D(io["x_real"])
    machine.set_precision(G, D, "bf16")
    of_G, of_D = watch_dtypes(G), watch_dtypes(D)
    low = G(io["z"], noise_mode="const"), D(io["x_real"])
    assert 0 < relative(low[0], images) < 0.05 and 0 < relative(low[1], scores) < 0.05
    assert low[0].dtype == low[1].dtype == torch.float32
    full, half = torch.float32, torch.bfloat16

    def inputs_of(seen, words):
        """All dtypes that go into the modules whose name has one of the words in it."""
        found = {dtype for name, calls in seen.items() if any(word in name for word in words)
                 for given, _ in calls for dtype in given}
        assert found, words
        return found
    for r in (8, 16, 32):
        for name in ("conv0", "conv1", "noise0", "noise1"):
            assert inputs_of(of_G, [f"blocks.{r}.{name}"]) == {half}, (r, name)
        for name in ("conv0", "conv1"):
            assert inputs_of(of_D, [f"blocks.{r}.{name}"]) == {half}, (r, name)
        assert of_G[f"synthesis.blocks.{r}"][0][1] == of_D[f"blocks.{r}"][0][1] == half
    assert of_G["synthesis.blocks.4"][0][1] == half            # its result, and nothing before:
    for words in (["mapping"], ["style"], ["to_rgb"], ["blocks.4."]):
        assert inputs_of(of_G, words) == {full}, words
    for words in (["from_rgb"], ["blocks.4"]):
        assert inputs_of(of_D, words) == {full}, words
    assert of_D["from_rgb.32"][0][1] == half
    assert all(p.dtype == full for network in (G, D) for p in network.parameters())

    # AdaIN's sums: what it makes of bfloat16 numbers is what it makes of the same in float32.
    adain = stylegan_layers.AdaIN(8, 4)
    x, w = (100 + torch.randn(2, 4, 32, 32)).to(half), torch.randn(2, 8)
    assert relative(adain(x, w).float(), adain(x.float(), w)) < 2 ** -7    # rounded once
    by_hand = (x - x.mean(dim=(2, 3), keepdim=True)) / x.std(dim=(2, 3), keepdim=True)
    in_float = x.float()
    in_float = (in_float - in_float.mean(dim=(2, 3), keepdim=True)) / in_float.std(
        dim=(2, 3), keepdim=True)
    assert relative(by_hand.float(), in_float) > 2 ** -7       # control: sums in bfloat16


def test_stylegan2_in_low_precision_is_near_and_sums_colours_in_float32(precision_as_before):
    """Lesson: the same hooks serve StyleGAN2. Its convolutions see bfloat16, with kernels, styles
    and sizes that are computed in float32 and rounded where they are used; the picture, to which
    every block adds, is float32, and so are G's and D's blocks of 4 px."""
    G, D = official.stylegan2_networks("ada")
    io = official.load_stylegan2("ada")
    images, scores = G(io["z"], noise_mode="const"), D(io["x_real"])
    machine.set_precision(G, D, "bf16")
    of_G, of_D = watch_dtypes(G), watch_dtypes(D)
    low = G(io["z"], noise_mode="const"), D(io["x_real"])
    assert 0 < relative(low[0], images) < 0.05 and 0 < relative(low[1], scores) < 0.05
    assert low[0].dtype == low[1].dtype == torch.float32
    full, half = torch.float32, torch.bfloat16

    def first_inputs(seen, words):
        """The dtypes of the pictures that go into these modules; w comes behind them."""
        found = {calls[0][0][0] for name, calls in seen.items()
                 if any(word in name for word in words)}
        assert found, words
        return found
    for r in (8, 16, 32):
        for layer in ("conv0", "conv1", "conv0.noise", "conv1.noise"):
            assert first_inputs(of_G, [f"blocks.{r}.{layer}"]) <= {half, full}
            assert of_G[f"synthesis.blocks.{r}.{layer}"][0][0][0] == half
        for layer in ("conv0", "conv1", "skip"):
            assert first_inputs(of_D, [f"blocks.{r}.{layer}"]) == {half}
        assert of_G[f"synthesis.blocks.{r}"][0][1] == of_D[f"blocks.{r}"][0][1] == half
    assert of_G["synthesis.blocks.4"][0][1] == half            # its result, and nothing before:
    for words in (["mapping"], ["style"], ["to_rgb"], ["blocks.4."]):
        assert first_inputs(of_G, words) == {full}, words
    for words in (["from_rgb"], ["blocks.4"]):
        assert first_inputs(of_D, words) == {full}, words
    for r in (4, 8, 16, 32):
        assert of_G[f"synthesis.to_rgb.{r}"][0][1] == full
    assert of_D["from_rgb.32"][0][1] == half
    assert all(p.dtype == full for network in (G, D) for p in network.parameters())


@pytest.mark.parametrize("architecture", ["stylegan", "stylegan2"])
def test_a_step_in_bfloat16_leaves_float32_gradients(precision_as_before, architecture):
    """Lesson: R1, path length and both losses pass through the hooks; the gradients are those of
    float32 to within bfloat16's digits, and weights stay what they were stored as."""
    def low(G, D):
        machine.set_precision(G, D, "bf16")
    exact, rounded = (tiny.gradients_of_a_step(train.training_step, change=change,
                                               architecture=architecture)
                      for change in (None, low))
    assert all(gradient.dtype == torch.float32 for gradient in rounded)
    misses = torch.tensor([((a - b).norm() / b.norm()).item() for a, b in zip(rounded, exact)])
    assert misses.median() < 0.05 and misses.max() > 1e-4      # control: it is not float32


# ---- torch.compile ----


def spy_backend(program, inputs):
    """Runs a block as it was traced, and counts."""
    spy_backend.calls.append(1)
    from torch._dynamo.backends.debugging import aot_eager
    return aot_eager(program, inputs)


@pytest.mark.parametrize("kind", ["fade", "morph", "stylegan2"])
def test_compiled_networks_have_the_same_gradients(kind, monkeypatch):
    """Lesson: torch.compile rewrites the program, its gradients included; that is to be checked.
    (An activation that worked in place came out with wrong gradients, without a word.) What R1 and
    path length differentiate twice, which torch.compile cannot, runs as it is written. So does a
    young block (morph.py)."""
    def gradients(change, *share, resolution=8):
        return tiny.gradients_of_a_step(
            train.training_step, *share, change=change, resolution=resolution,
            architecture="stylegan2" if kind == "stylegan2" else "stylegan")

    def compiled(G, D):
        torch.compiler.reset()
        spy_backend.calls = []
        machine.compile_blocks(G, D, spy_backend)
        return age(G, D)

    def age(G, D):
        if kind == "morph":
            return morph.ripen(0.5, 8, G, D)
        return 0.5 if kind == "fade" else None
    written, found = gradients(age), gradients(compiled)
    assert len(spy_backend.calls) >= 2                         # control: blocks were compiled
    assert max(relative(a, b) for a, b in zip(found, written)) < 1e-5
    half = gradients(age, 0, 2)
    assert max(relative(a, b) for a, b in zip(half, written)) > 0.01       # control
    if kind == "stylegan2":            # control: compiled for path length, too, G cannot do it
        monkeypatch.setattr(machine, "as_written", contextlib.nullcontext)
        written = gradients(age, resolution=4)                 # small: compiling takes seconds
        try:
            wrong = gradients(compiled, resolution=4)
        except RuntimeError as error:
            assert "create_graph" in str(error) or "double backward" in str(error)
        else:
            assert max(relative(a, b) for a, b in zip(wrong, written)) > 0.01
    torch.compiler.reset()


def test_ds_blocks_run_as_written_for_r1_alone():
    """Lesson: of the three calls of D in a step only the one that R1 asks for is not compiled."""
    def as_traced(program, inputs):
        calls.append(1)
        return program.forward
    torch.compiler.reset()
    calls = []
    G, D = tiny.networks(resolution=4)
    machine.compile_blocks(G, D, as_traced)
    reals = torch.rand(4, 3, 4, 4).requires_grad_()
    D(reals)
    next(D.parameters()).requires_grad_(False)     # as with --freeze-d
    D(reals)
    next(D.parameters()).requires_grad_(True)
    assert calls == []                             # R1
    D(reals.detach())
    fakes = len(calls)
    assert fakes > 0                                           # D's fakes, or reals without R1
    D.requires_grad_(False)
    D(reals)                                                   # G's turn
    before = len(calls)
    assert before > fakes
    D.requires_grad_(True)
    torch.compiler.reset()                                     # so that the next call is counted
    with pytest.raises(ValueError):
        D(torch.rand(4, 3, 8, 8, requires_grad=True))          # an error in between ...
    D(reals.detach())
    assert len(calls) > before                     # ... does not end the compiling
    torch.compiler.reset()


def test_as_written_holds_within_its_block():
    """Lesson: what stands in it runs as it is written, and the next call outside is compiled, also
    after an error."""
    calls, x = [], torch.ones(3)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: 2 * x, backend=lambda program, inputs: (
        calls.append(1) or program.forward))
    with machine.as_written():
        assert torch.equal(compiled(x), 2 * x)
    with pytest.raises(KeyError), machine.as_written():
        raise KeyError
    assert calls == []
    compiled(x)
    assert calls == [1]                                        # control
    torch.compiler.reset()


# ---- 3. the team ----


def _gradients_of_a_process(process, folder, architecture):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=(folder / "meeting").as_uri(),
                                         rank=process, world_size=2)
    torch.save(tiny.gradients_of_a_step(train.training_step, process, 2, architecture=architecture),
               folder / f"{process}.pt")
    team = machine.Team(torch.device("cpu"))
    layer = torch.nn.Linear(2, 2)
    layer.weight.data.fill_(process)
    team.share_weights(layer)
    team.processes, team.silence = 2, [7, 7]
    said = [torch.tensor(team.agreed(process)), layer.weight.data, torch.tensor(
        [team.same(("a", 1.5)), team.same(process), *team.silence])]
    torch.save(said, folder / f"said{process}.pt")
    team.leave(0)                                      # as a run does: gloo can abort at its end


@pytest.mark.parametrize("architecture, buffers", [("stylegan", 1), ("stylegan2", 2)])
def test_two_processes_have_the_gradients_of_one(architecture, buffers, tmp_path):
    """Lesson: averaging over processes is averaging over images; the groups of the minibatch
    stddev are those of the whole batch, since each process takes every second image. w_avg and the
    mean of path lengths are averaged, too."""
    torch.multiprocessing.spawn(_gradients_of_a_process, (tmp_path, architecture), nprocs=2)
    whole = tiny.gradients_of_a_step(train.training_step, architecture=architecture)
    assert len(whole) > 20 and all(buffer.abs().max() > 0 for buffer in whole[-buffers:])
    first, second = (torch.load(tmp_path / f"{p}.pt", weights_only=True) for p in range(2))
    for ours, other, judge in zip(first, second, whole):
        assert torch.equal(ours, other) and relative(ours, judge) < 1e-5
    # Control: without the averaging, each has the gradients of its half.
    half = tiny.gradients_of_a_step(train.training_step, 0, 2, architecture=architecture)
    assert max(relative(a, b) for a, b in zip(half, whole)) > 0.01
    assert min(relative(a, b) for a, b in zip(half[-buffers:], whole[-buffers:])) > 0.001
    # And both agree on the largest number, have the weights of the first, and know what is the same
    # in both; which is a sign of life of all.
    for process in range(2):
        agreed, weight, same = torch.load(tmp_path / f"said{process}.pt", weights_only=True)
        assert agreed == 1 and torch.equal(weight, torch.zeros(2, 2))
        assert same.tolist() == [1, 0, 0, 0]


def test_an_interrupted_run_is_known_by_its_launch(tmp_path, monkeypatch):
    """Lesson: after a restart torchrun's processes find the folder of their own command only."""
    monkeypatch.chdir(tmp_path)
    for number, launch in enumerate(("mine", "other")):
        folder = tmp_path / "runs" / f"0000{number}-faces"
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(f'{{"launch": "{launch}"}}')
    for number, damaged in enumerate(("", "[]", '{"launch"', "{}")):       # others may be damaged
        folder = tmp_path / "runs" / f"0000{number}-damaged"
        folder.mkdir()
        (folder / "settings.json").write_text(damaged)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert machine.interrupted_run(None) is None               # the first attempt
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert machine.interrupted_run(None) == pathlib.Path("runs/00000-faces")
    assert machine.interrupted_run(tmp_path / "runs" / "00001-faces") is None
    newer = tmp_path / "runs" / "00009-faces"                  # who gives one id to two commands
    newer.mkdir()
    (newer / "settings.json").write_text('{"launch": "mine"}')
    assert machine.interrupted_run(None) == pathlib.Path("runs/00009-faces")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")          # torchrun without --rdzv-id
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    assert machine.launch_id() == f"started by process {os.getppid()} on {socket.gethostname()}"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")                # on two machines: nobody knows
    assert machine.launch_id() is None and machine.interrupted_run(None) is None


LISTEN = """
import os, time, torch
from workshop import machine

class Line:
    # From a process to the store.
    cut = ""

    def __getattr__(self, name):
        if self.cut == "gone":
            raise RuntimeError("connection closed")
        while self.cut == "held up":
            time.sleep(0.01)
        return getattr(store, name)

def give_up(why):
    said.append(why)
    raise SystemExit                                           # of this thread

def heard(count):
    for _ in range(1000):
        if len(said) < count:
            time.sleep(0.01)
    time.sleep(0.3)
    print(*sorted(said), sep="|", end="|")
    said.clear()

machine.give_up, machine.socket.gethostname, said = give_up, lambda: "host", []
os.environ.update(MASTER_ADDR="first", WORLD_SIZE="4")
store, lines, teams = torch.distributed.HashStore(), [Line() for _ in range(4)], []
for rank, line in enumerate(lines):
    os.environ["RANK"] = str(rank)
    teams.append(machine.Team(torch.device("cpu")))
    machine.listen(teams[-1], line, 0.02)
time.sleep(3)
print(len(said), end="|")
teams[0].alone, lines[2].cut, lines[3].cut = True, "gone", "held up"
heard(3)
teams[0].alone = False
heard(1)
"""


def test_a_silent_process_is_noticed_and_a_busy_one_is_not():
    """Lesson: four processes listen to one another, the limit is 1.2 s. For 3 s none of them says a
    word in a step; nobody minds, since each counts on. Then the store fails two of them. They end,
    and so do the others; but process 0, at work that needs nobody, only when that is done. (To end
    is a note here, and threads are the processes.)"""
    said = re.sub(r"process \d", "process k", " ".join(in_python(LISTEN))).split("|")
    unheard = " has not answered for 0.02 minutes (--timeout-minutes)"
    assert said == ["0", *["first" + unheard] * 2, *["host (process k)" + unheard] * 2, ""]


def test_who_packs_needs_nobody(monkeypatch):
    """Lesson: what the first process of a machine has begun to pack is packed to the end, even if
    another machine has gone; the others wait for it, and listen."""
    def steps_of(local_rank):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        team, steps = machine.Team(torch.device("cpu")), []
        team.agreed = lambda value: steps.append(("waits", team.alone))
        with team.first_here_first():
            steps.append(("packs", team.alone))
        return [*steps, team.alone]
    assert steps_of(0) == [("packs", True), ("waits", False), False]
    assert steps_of(1) == [("waits", False), ("packs", False), False]


def test_the_command_to_go_on_starts_as_many_processes(monkeypatch):
    """Lesson: with another number of them the run would go on, but with other noise. What stands
    behind "to go on:" is what was typed on this machine."""
    def typed(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return machine.launcher()
    monkeypatch.delenv("UV", raising=False)
    assert typed(UV="/bin/uv") == ["uv", "run"]                # `uv run train.py`
    monkeypatch.delenv("UV")
    assert typed() == ["python"]
    assert typed(TORCHELASTIC_RUN_ID="none", GROUP_WORLD_SIZE="1", LOCAL_WORLD_SIZE="1",
                 GROUP_RANK="0", MASTER_ADDR="10.0.0.1", MASTER_PORT="29500") == ["python"]
    assert typed(LOCAL_WORLD_SIZE="8") == ["torchrun", "--standalone", "--nproc_per_node=8"]
    words = ["torchrun", "--nnodes=2", "--node_rank=1", "--nproc_per_node=8",
             "--master_addr=10.0.0.1", "--master_port=29500"]
    assert typed(GROUP_WORLD_SIZE="2", GROUP_RANK="1") == words
    assert typed(GLOO_SOCKET_IFNAME="eth0") == ["GLOO_SOCKET_IFNAME=eth0", *words]


# ---- 4. random numbers ----


def test_z_and_the_noise_of_each_process_are_different_numbers():
    """Lesson: the processes share one z, each its part; their noise is neither like z nor like one
    another's; and each number is a function of seed and step."""
    def numbers(seed, step, rank=0, processes=1):
        team = types.SimpleNamespace(rank=rank, processes=processes, device=torch.device("cpu"))
        return machine.draw_z(seed, step, team, (2, 8, 1, 4)), torch.randn(2, 8, 1, 4)
    z, noise = numbers(3, 7)
    shares = [numbers(3, 7, rank, 2) for rank in range(2)]
    assert torch.equal(torch.stack([part for part, _ in shares], dim=2).flatten(1, 2), z)
    torch.manual_seed(99)
    assert all(map(torch.equal, numbers(3, 7), (z, noise)))    # whatever was drawn before
    different = [z, noise, shares[1][1], *numbers(3, 8), *numbers(4, 7)]
    assert torch.equal(shares[0][1], noise)
    assert len({tuple(x.flatten().tolist()) for x in different}) == len(different)


# ---- 5. time and memory ----


def test_no_memory_left_is_recognised():
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
                  RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes"),
                  RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        assert machine.out_of_memory(error)
    assert not machine.out_of_memory(RuntimeError("shapes differ"))


def test_the_rehearsal_names_what_it_did_not_try(monkeypatch):
    """Lesson: by a clock that stands still but for the steps: seconds an image, each penalty in
    every k-th step only; a step too long for our patience ends it, and what was not tried is
    named."""
    now, tried = [0.0], []
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])

    def step(resolution, due):
        tried.append((resolution, due))
        now[0] += {4: 1.0, 8: 4.0, 16: 64.0, 32: 999.0}[resolution] * {None: 1, 0: 2, 1: 9}[due]
    batch, all_four = {4: 8, 8: 8, 16: 8, 32: 4}, [4, 8, 16, 32]
    speeds, untried = machine.rehearse(step, all_four, batch, [4], lambda x: x, patience=30.0)
    assert untried == [32] and {due for _, due in tried} == {0, None}
    assert not any(r == 32 for r, _ in tried)
    assert speeds == {4: 1.25 / 8, 8: 5 / 8, 16: 80 / 8, 32: 3 * 80 / 8}
    # The slowest process counts, and patience is the only reason to leave one out.
    speeds, untried = machine.rehearse(step, all_four, batch, [4], lambda x: 2 * x, 1e9)
    assert untried == [] and speeds[32] == 2 * 999 * 1.25 / 4
    # StyleGAN2 has a second penalty, 8 plain steps long here: 1/4 of the first, 1/16 of it.
    speeds, _ = machine.rehearse(step, [8], batch, [4, 16], lambda x: x, patience=1e9)
    assert speeds == {8: 4 * (1 + 1 / 4 + 8 / 16) / 8} and tried[-1] == (8, None)
    # The first steps also warm up: where there is time, all are made twice, and plain ones thrice.
    tried.clear()
    machine.rehearse(step, [4], batch, [4, 16], lambda x: x, patience=1e9)
    assert tried == [(4, due) for due in (0, 1, None, 0, 1, None, None)]
    tried.clear()
    machine.rehearse(step, [4], batch, [4, 16], lambda x: x, patience=30.0)
    assert tried == [(4, due) for due in (0, 1, None)] * 2 + [(4, None)]
    tried.clear()
    machine.rehearse(step, [4], batch, [4, 16], lambda x: x, patience=10.0)        # control
    assert tried == [(4, due) for due in (0, 1, None)]


def test_what_a_gpu_loads_at_first_is_no_part_of_the_rehearsal(monkeypatch):
    """Lesson: 12 hours were foretold for a run that was on its way to less than 3, since the first
    steps on a GPU had taken seconds. (Seen with torch 2.11 on an H200.)"""
    now, tried = [0.0], []
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])

    def step(resolution, due):
        tried.append(due)
        now[0] += 0.125 + (7.0 if len(tried) <= 2 else 0.0)
    speeds, _ = machine.rehearse(step, [128], {128: 32}, [16, 4], lambda x: x)
    assert speeds == {128: 0.125 / 32}
    slow, _ = machine.rehearse(lambda *_: now.__setitem__(0, now[0] + 7), [128], {128: 32},
                               [16, 4], lambda x: x)          # control: a step that stays slow
    assert slow == {128: 7 / 32}


# ---- 6. other processes ----


def test_no_more_workers_than_shared_memory_and_open_files(monkeypatch):
    """Lesson: a container has 64 MB of shared memory. Batches of 4 pictures at 1024 px are 12.6 MB,
    two for each worker: two workers have room, not eight. And each needs a few open files."""
    free, limits = [64_000_000], [(1024, 4096)]
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: types.SimpleNamespace(
        free=free[0]))
    monkeypatch.setattr(machine, "resource", types.SimpleNamespace(
        RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda which: limits[-1],
        setrlimit=lambda which, new: limits.append(new)))
    batch = 3 * 1024 ** 2 * 4
    workers, why = machine.workers_that_fit(8, batch)
    assert workers == 2 and "64 MB" in why and "--shm-size" in why and "--workers 2" in why
    assert machine.workers_that_fit(2, batch) == (2, "") == machine.workers_that_fit(2, 0)
    free[0] = 1_000_000_000
    assert machine.workers_that_fit(8, batch) == (8, "")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")                # which share it
    assert machine.workers_that_fit(8, batch)[0] == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    free[0] = 4096
    assert machine.workers_that_fit(8, batch)[0] == machine.workers_that_fit(8, 0)[0] == 0
    assert machine.workers_that_fit(0, batch) == (0, "")
    free[0] = 1_000_000_000
    limits[:] = [(256, 4096)]
    assert machine.workers_that_fit(16, batch) == (16, "") and limits[-1] == (384, 4096)
    limits[:] = [(64, 64)]
    workers, why = machine.workers_that_fit(2, batch)
    assert workers == 0 and "64 files" in why and "ulimit -n" in why


HOLD = """import os, sys, time
sys.path.insert(0, {root!r})
from workshop import machine
assert machine.lock({path!r}) == ""
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="os.fork")
def test_a_lock_is_free_when_its_process_dies(tmp_path):
    """Lesson: kill -9 leaves no lock behind, not even while a process that the dead one started
    (one that loads pictures) still lives. The file may stay for ever; it means nothing."""
    path = tmp_path / "lock"
    assert machine.is_locked(path) is None
    process = subprocess.Popen([sys.executable, "-c", HOLD.format(root=str(ROOT), path=str(path))],
                               stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        assert machine.lock(path).startswith(f"process {process.pid} on ")
        assert machine.is_locked(path) is True
        process.kill()
        process.wait()
        os.kill(child, 0)                                      # still there
        assert machine.is_locked(path) is False
        assert machine.lock(path) == "" == machine.lock(path) and machine.is_locked(path)
        machine.unlock(path)
        assert machine.is_locked(path) is False
    finally:
        os.kill(child, 9)
    assert machine.lock(tmp_path / "no" / "folder" / "lock") == ""         # nothing to lock: go on


@pytest.mark.skipif(os.name == "nt", reason="fcntl")
def test_where_nothing_can_be_locked_nobody_knows(tmp_path, monkeypatch):
    """Lesson: some networks' disks have no locks. There a lock file that could be "taken" says
    nothing about who else works there."""
    path = tmp_path / "lock"
    path.touch()
    assert machine.is_locked(path) is False                    # control: here there are locks

    def none_here(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(machine.fcntl, "lockf", none_here)
    assert machine.lock(path) == "" and machine.is_locked(path) is None


@GLIBC
def test_the_peak_is_that_of_training_and_not_of_the_rehearsal():
    """Lesson: 400 MB that were used and given back before are not counted, also where the C library
    keeps what is freed."""
    code = ("import torch\nfrom workshop import machine\ncpu = torch.device('cpu')\n"
            "machine.keep_freed_memory()\nx = torch.ones(100_000_000)\ny = torch.ones(10)\n"
            "print(machine.peak_memory_mb(cpu))\ndel x\nmachine.forget_peak_memory(cpu)\n"
            "print(machine.peak_memory_mb(cpu))\nx = torch.ones(50_000_000)\n"
            "print(machine.peak_memory_mb(cpu))")
    rehearsed, forgotten, trained = map(float, in_python(code))
    assert forgotten < rehearsed - 350
    assert forgotten + 150 < trained < rehearsed - 150         # control: what comes later counts
