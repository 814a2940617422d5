"""Two machines with a cable between them: two network namespaces of one computer.

What can go wrong: a machine loses its power, or its cable, and says no goodbye; one of its
processes dies; or it was given other options, pictures or checkpoints than the first. What the
program owes its user: nobody waits for ever, the checkpoint is whole, the sentence says how to go
on, and whoever goes on ends with the bits of a run that nothing happened to.

The slow ones take some minutes: python -m pytest -m slow tests/test_two_machines.py
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
import torch

import tiny
import train
from conftest import ROOT, relative
from tiny import deterministic, differences
from workshop import UserError, checkpoints, machine, run

MINUTES = 0.2                     # --timeout-minutes; long enough for a computer that is busy
RUN = [*tiny.RUN, "--resolution", "8", "--total-kimg", "0.4"]


def ip(*words):
    return subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)


class TwoMachines:
    """Two namespaces, 10.77.0.1 and 10.77.0.2. Each machine has a folder, its disk, in `folder`."""

    def __init__(self):
        self.names = [f"stylegan-{os.getpid()}-{k}" for k in range(2)]

    def build(self):
        first, second = self.names
        said = [ip("netns", "add", first), ip("netns", "add", second),
                ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0",
                   "netns", second)]
        for k, name in enumerate(self.names):
            said += [ip("-n", name, "address", "add", f"10.77.0.{k + 1}/24", "dev", "eth0"),
                     ip("-n", name, "link", "set", "lo", "up"),
                     ip("-n", name, "link", "set", "eth0", "up")]
        return "".join(one.stderr for one in said)

    def remove(self):
        for name in self.names:
            for pid in ip("netns", "pids", name).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", name)

    def cable(self, state):
        assert ip("-n", self.names[0], "link", "set", "eth0", state).returncode == 0

    def start(self, folder, command, *words):
        """What stands before and behind "torchrun" in the command is typed on both machines, words
        are put behind it. Returns two processes; what they say lies in 0.txt and 1.txt."""
        before, behind = command.split("torchrun ")
        started = []
        for k, name in enumerate(self.names):
            (folder / str(k)).mkdir(parents=True, exist_ok=True)
            typed = re.sub("node_rank=.", f"node_rank={k}", behind).replace(
                "train.py", str(ROOT / "train.py"))
            with open(folder / f"{k}.txt", "w") as said:
                started.append(subprocess.Popen(
                    ["ip", "netns", "exec", name, "env", *before.split(), sys.executable, "-m",
                     "torch.distributed.run", *shlex.split(typed), *map(str, words)],
                    cwd=folder / str(k), stdout=said, stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"}))
        return started

    def training_processes(self, k):
        pids = ip("netns", "pids", self.names[k]).stdout.split()
        found = []
        for pid in pids:
            with open(f"/proc/{pid}/cmdline") as file:
                words = file.read().split("\0")
            if any(word.endswith("train.py") for word in words[:3]):
                found.append(int(pid))
        return found


@pytest.fixture(scope="module")
def machines():
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs Linux, root and iproute2")
    two = TwoMachines()
    try:
        wrong = two.build()
        if wrong:
            pytest.skip(f"no network namespaces here: {wrong}")
        yield two
    finally:
        two.remove()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.save_pictures(tmp_path_factory.mktemp("two") / "photos")


def readme():
    """README's command for two machines, with the address and the processes of this test."""
    text = (ROOT / "README.md").read_text().replace("\\\n", "")
    command, = re.findall("^.*torchrun --nnodes=2.*$", text, re.M)
    command = command.replace("nproc_per_node=8", "nproc_per_node=1").replace("10.0.0.1",
                                                                              "10.77.0.1")
    return command.split("train.py")[0] + "train.py"


def ended(processes, seconds=120):
    """The codes, and the seconds until the last one has ended."""
    began = time.monotonic()
    codes = [process.wait(timeout=max(1, seconds - (time.monotonic() - began)))
             for process in processes]
    return codes, time.monotonic() - began


def reached(folder, nimg, seconds=120):
    """Wait until the log of the run says so."""
    began, log = time.monotonic(), folder / "0" / "run" / "log.jsonl"
    while not log.exists() or f'"nimg": {nimg}' not in log.read_text():
        assert time.monotonic() - began < seconds, (folder / "0.txt").read_text()
        time.sleep(0.01)


def sentence(folder, k):
    """The one line of the program on machine k among those of torchrun."""
    said = (folder / f"{k}.txt").read_text()
    assert 'train.py", line' not in said, said                 # no traceback of the program
    line, = re.findall("^train.py: .*", said, re.M)
    return line


def kept(folder):
    checkpoint = checkpoints.load_checkpoint(folder / "checkpoint.pt")
    checkpoint.pop("options")                                  # paths, and the limit
    return checkpoint


@pytest.fixture(scope="module")
def quiet(machines, photos, tmp_path_factory):
    """A run of two machines that nothing happens to."""
    folder = tmp_path_factory.mktemp("quiet")
    codes, _ = ended(machines.start(folder, readme(), "--data", photos, *RUN, "--out", "run"))
    assert codes == [0, 0], [(folder / f"{k}.txt").read_text() for k in range(2)]
    return folder / "0" / "run"


@pytest.mark.slow
def test_two_machines_train_as_two_processes_of_one_do(quiet, photos, tmp_path, monkeypatch):
    """Lesson: README's command works; to the last bit it is what two processes of one machine do.
    One process sees the same z and pictures, but other noise, and sums in another order."""
    tiny.finish(tiny.torchrun(2, "--data", photos, *RUN, "--out", "run", cwd=tmp_path))
    assert differences(kept(quiet), kept(tmp_path / "run")) == []
    assert deterministic(quiet) == deterministic(tmp_path / "run")
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data", str(photos), *RUN, "--out", "alone"]) == 0
    name = "synthesis.to_rgb.8.weight"
    assert 0 < relative(kept(tmp_path / "alone")["generator"][name],
                        kept(quiet)["generator"][name]) < 0.2
    assert [path.name for path in (quiet.parent.parent / "1").iterdir()] == ["cache"]


@pytest.mark.slow
def test_a_pulled_cable_ends_both_and_the_printed_command_goes_on(
        machines, quiet, photos, tmp_path):
    """Lesson: for three seconds no word comes through; that harms nobody. Then the cable is out for
    good. Both machines end within the limit and a little, each with one sentence, and the command
    in that of the first goes on from a whole checkpoint to the end of the quiet run."""
    both = machines.start(tmp_path, readme(), "--data", photos, *RUN, "--out", "run",
                          "--timeout-minutes", MINUTES)
    try:
        reached(tmp_path, 104)
        machines.cable("down")
        time.sleep(3)
        machines.cable("up")
        reached(tmp_path, 200)                                 # control: it goes on
        machines.cable("down")
        codes, seconds = ended(both)
    finally:
        machines.cable("up")
    print(f"a pulled cable: ended after {seconds:.1f} s, the limit is {60 * MINUTES:g} s")
    assert codes == [1, 1] and 0.8 < seconds / (60 * MINUTES) < 2.5
    assert "process 1) has not answered for 0.2 minutes" in sentence(tmp_path, 0)
    assert "; what is kept is whole; to go on: GLOO_SOCKET" in sentence(tmp_path, 0)
    assert "train.py: 10.77.0.1 has not answered for 0.2 minutes" in sentence(tmp_path, 1)
    assert 0 < kept(tmp_path / "0" / "run")["progress"]["nimg"] < 400

    shutil.copytree(tmp_path / "0" / "run", tmp_path / "1" / "run")
    command = sentence(tmp_path, 0).split("to go on: ")[1]
    codes, _ = ended(machines.start(tmp_path, command, "--device", "cpu"))
    assert codes == [0, 0], (tmp_path / "0.txt").read_text()
    assert differences(kept(quiet), kept(tmp_path / "0" / "run")) == []
    assert deterministic(quiet) == deterministic(tmp_path / "0" / "run")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_other_machine_in_seconds(killed, machines, photos, tmp_path):
    """Lesson: a machine whose process dies closes its connections; that is a goodbye. Nobody waits
    for the limit, of ten minutes here."""
    both = machines.start(tmp_path, readme(), "--data", photos, *RUN, "--total-kimg", "4", "--out",
                          "run")
    reached(tmp_path, 256)
    os.kill(machines.training_processes(killed)[-1], signal.SIGKILL)
    codes, seconds = ended(both, 60)
    print(f"process {killed} killed: both ended after {seconds:.1f} s")
    assert codes == [1, 1] and seconds < 30
    assert "another process of this run has ended" in sentence(tmp_path, 1 - killed)
    assert 0 < kept(tmp_path / "0" / "run")["progress"]["nimg"] < 4000


@pytest.mark.slow
def test_the_network_between_them_has_to_be_named(machines, photos, tmp_path):
    """Lesson: gloo takes the network card that the computer's own name stands for, which often is
    the one that leads nowhere. The sentence says what to type, and the other machine, which waits
    for the first, ends too."""
    command = readme().replace("GLOO_SOCKET_IFNAME=eth0 ", "")
    assert command != readme()
    codes, seconds = ended(machines.start(tmp_path, command, "--data", photos, *RUN, "--out", "run",
                                          "--timeout-minutes", MINUTES), 300)
    assert codes == [1, 1] and seconds < 240                   # days, were there no limit
    said = sentence(tmp_path, 0) + sentence(tmp_path, 1)
    assert "do not reach one another" in said and "GLOO_SOCKET_IFNAME=eth0" in said


SLOW = """
import sys, time
sys.path.insert(0, {root!r})
import train
from workshop import machine, options, pictures, run

def slowly(work):
    def work_slowly(*args):
        time.sleep(15)
        return work(*args)
    return work_slowly
if not machine.Team(None).rank:
    pictures.pack_pictures = slowly(pictures.pack_pictures)
    run.Run._keep = slowly(run.Run._keep)
options.start(train.main, "train.py")
"""


@pytest.mark.slow
def test_packing_and_keeping_may_take_longer_than_the_limit(photos, tmp_path):
    """Lesson: one process packs for 15 s, and keeps a checkpoint for as long, the other waits. The
    limit of 6 s is for those who give no sign of life. The last checkpoint is kept when the other
    has ended already; that is no silence, either."""
    program = tmp_path / "slow.py"
    program.write_text(SLOW.format(root=str(ROOT)))
    words = ["--data", photos, *RUN, "--total-kimg", "0.104", "--checkpoint-kimg", "0.07", "--out",
             "run", "--timeout-minutes", "0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         program, *map(str, words)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True)
    began = time.monotonic()
    tiny.finish(process)
    assert time.monotonic() - began > 45                       # control: it did take so long
    assert kept(tmp_path / "run")["progress"]["nimg"] == 104


# ---- no network is needed for these ----


def test_machines_given_different_things_do_not_begin():
    """Lesson: a second machine with a checkpoint of yesterday, or half of the pictures, would train
    on, or wait for ever for a step that the first one never makes. (`same` plays the other.)"""
    G = torch.nn.Linear(3, 3)

    def sentence_of(mine, nimg, other=None):
        """What a machine says whose options, pictures and G these are, and what it compared."""
        compared = []

        def same(value):
            compared.append(value)
            return other is None or value == other[len(compared) - 1]
        typed, contents, network = mine
        shared = []
        one = types.SimpleNamespace(
            pictures=types.SimpleNamespace(contents=torch.tensor(contents)),
            o=types.SimpleNamespace(typed=typed, data="photos", resume="x.pt"), G=1, D=2,
            G_ema=network, team=types.SimpleNamespace(
                same=same, share_weights=lambda *networks: shared.append(networks)))
        try:
            run.Run._begin_alike(one, nimg, nimg // 8)
        except UserError as error:
            return str(error), compared
        assert shared == [(1, 2, network)]
        return "", compared

    options = {"batch": "8", "data": "/a", "cache": "/b", "workers": 2, "evaluate_features": "x.pt"}
    first = sentence_of((options, [1, 2], G), 80)[1]
    elsewhere = {**options, "data": "/c", "cache": "/d", "workers": 9, "evaluate_features": "y.pt"}
    assert sentence_of((elsewhere, [1, 2], G), 80, first)[0] == ""         # control
    for other, nimg, word in (
            ((({**options, "batch": "4"}), [1, 2], G), 80, "options"),
            ((options, [1, 3], G), 80, "pictures in --data photos"),
            ((options, [1, 2], G), 72, "checkpoint in --resume x.pt; copy that of the first"),
            ((options, [1, 2], torch.nn.Linear(3, 3)), 80, "checkpoint in --resume x.pt"),
            ((options, [1, 2], G), 0, "checkpoint in --resume")):
        assert word in sentence_of(other, nimg, first)[0]


def test_whoever_gives_up_ends_even_if_the_disk_has_gone_too(monkeypatch, capsys):
    """Lesson: the run's folder may have lain on the machine that has gone; whoever asks for it
    waits for ever, but not this program. And of each machine one process speaks."""
    timer, asked, dark = threading.Timer, [], "train.py: it is dark; what is kept is whole"
    monkeypatch.setattr(machine.threading, "Timer", lambda seconds, *more: (
        asked.append(seconds) or timer(0.1, *more)))
    for rank, here, disk, said in (
            (0, 0, "there", f"{dark}; start again\n"), (3, 1, "there", ""), (0, 0, "gone", dark),
            (2, 0, "there", f"{dark}; the checkpoint to --resume lies on the first machine\n")):
        ended = threading.Event()

        def end(code, ended=ended):
            ended.set()
            if threading.current_thread() is threading.main_thread():
                raise SystemExit(code)

        def where():
            assert ended.wait(60)                              # by the clock, and nothing else
            raise SystemExit(1)
        monkeypatch.setattr(machine.os, "_exit", end)
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(here))
        monkeypatch.setattr(machine, "how_to_go_on", [where] * (disk == "gone"))
        with pytest.raises(SystemExit, match="1"):
            machine.give_up("it is dark")
        assert capsys.readouterr().err == said
    assert asked == [10] * 4
