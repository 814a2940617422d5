"""experiments/: what is run by hand for an hour should not fail at its last command."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import convert_resolution
import evaluate
import stylegan_models as models
import train
from conftest import ROOT
from workshop import machine, options

sys.path.append(str(ROOT / "experiments"))                     # last: it has a morph.py of its own
import architectures
import benchmark
import convert
import details
from experiments import morph

META = torch.device("meta")                                    # shapes without numbers


class Counter(TorchDispatchMode):
    """Adds up the work of all convolutions and products that are computed."""

    flop = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if work := flop_registry.get(function._overloadpacket):
            self.flop += work(*args, **(kwargs or {}), out_val=result)
        return result


def counted(r1_factor):
    """GFLOP of one image in one step at 32 px, as torch counts the operations that really come."""
    with META:
        G, D = models.make_generator(benchmark.PAPER), models.make_discriminator(benchmark.PAPER)
        reals = torch.empty(4, 3, 32, 32)
        z, mixes = torch.empty(2, 4, 2, 512), torch.zeros(2, 4, 8, dtype=torch.long)
        with Counter() as counter:
            # (Adam of torch 2.10 reads a number, and on "meta" there is none.)
            G_opt, D_opt = (torch.optim.SGD(network.parameters(), lr=0.0) for network in (G, D))
            train.training_step(G, D, G_opt, D_opt, reals, z, mixes, 1.0, r1_factor, None,
                                1, machine.Team(META))
    return counter.flop / 4 / 1e9


def test_the_work_of_a_step_is_counted_right():
    """Lesson: forward 1, two gradients 2, R1 3 more: with that one can compute how long a run takes
    on any machine. (0.3 % off: filters, colours and styles are left out.)"""
    with_r1, without = benchmark.work_of_a_step(32)
    assert with_r1 == pytest.approx(counted(5.0), rel=0.01)
    assert without == pytest.approx(counted(None), rel=0.01)
    assert with_r1 > 1.2 * without                             # control: far more than 1 %


def test_the_shares_of_the_parts_make_16_steps_of_a_run():
    """Lesson: a rare penalty counts by its share. 16 steps of train.py's rule cost as much as 16
    times the parts that are timed, each with its share."""
    def cost(r1_factor, path_factor):
        costs.append(1.0 + 3.0 * (r1_factor is not None) + 2.0 * (path_factor is not None))

    costs = []
    parts = benchmark.parts_of_ours(cost, "stylegan2")
    for _, part in parts:
        part()
    timed = sum(share * found for (share, _), found in zip(parts, costs))
    preset, costs = options.STYLEGAN2, []
    for step in range(16):
        cost(1.0 if step % preset["r1_interval"] == 0 else None,
             1.0 if step % preset["path_interval"] == 0 else None)
    assert 16 * timed == pytest.approx(sum(costs))
    assert 1 < timed < 3                                       # control: neither none nor all
    assert len(benchmark.parts_of_ours(cost, "stylegan")) == 1


@pytest.mark.parametrize("plan", [
    lambda: convert.plan(0.5, None), lambda: morph.plan(0.5),
    lambda: architectures.plan(architectures.ARMS, ("1", "2", "3"), ["--r1-gamma", "1"])])
def test_every_command_of_an_experiment_can_be_typed(plan):
    """Lesson: an option that was renamed is found now, and not after an hour of training."""
    jobs, typed = plan(), 0
    for command, needed, result in jobs.values():
        words = [str(word) for word in command]
        assert all(any(file == job[2] for job in jobs.values()) for file in needed)
        if words[0] == "experiments/morph.py":                 # it runs train.py in its own process
            words = ["train.py", *words[3:]]
        if words[0] == "experiments/architectures.py":
            words = ["train.py", *words[2:]]
        if words[0] == "train.py":
            wanted = options.parse_args(words[1:])
            if "resume" not in wanted:
                options.complete_options(
                    {k: v for k, v in wanted.items() if k not in ("out", "device")},
                    torch.device("cpu"))
        else:
            {"convert_resolution.py": convert_resolution,
             "evaluate.py": evaluate}[words[0]].parse_args(words[1:])
        typed += 1
    assert typed == len(jobs) > 8
    with pytest.raises(SystemExit):                            # control
        options.parse_args(["--fade-kilo", "1"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_job_that_was_stopped_goes_on_where_it_was(device, tmp_path, monkeypatch):
    """Lesson: the options are in the checkpoint, but the device is asked for anew. A run of a GPU
    that went on on the CPU would stand in the table as if nothing had been."""
    typed = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convert.subprocess, "Popen", lambda words, **_: typed.append(words[2:]))
    command = ["train.py", "--seed", 3, "--device", device, "--out", "off-3"]
    convert.start("off-3", command)
    assert typed.pop() == [str(word) for word in command[1:]]  # control: begun anew
    (tmp_path / "off-3").mkdir()
    (tmp_path / "off-3" / "checkpoint.pt").touch()
    convert.start("off-3", command)
    assert typed.pop() == ["--resume", str(Path("off-3", "checkpoint.pt")), "--device", device]


@pytest.mark.slow
def test_details_are_named_in_faces_that_were_not_seen():
    """Lesson: glasses can be counted by a network that learned from 700 faces what they are. Who
    painted the faces knows who wears some. Control: what it says of these faces is wrong of
    others."""
    images, truth = details.painted(range(700))
    faces, worn = details.painted(range(10_000, 10_200))
    said = details.seen(details.learn(images, truth, epochs=14), faces)
    glasses, beard, collar = (said != worn.bool()).float().mean(0)
    assert glasses < 0.18 and collar < 0.18 and beard < worn[:, 1].mean()    # better than never
    glasses, beard, collar = (said != worn.bool().roll(1, 0)).float().mean(0)
    assert glasses > 0.25 and beard > worn[:, 1].mean() and collar > 0.35
