"""export.py: a network for programs that are not this one: ONNX, safetensors, a card.   (workshop)

Used by: generate.py export.
Needs:   onnx and onnxscript for .onnx, safetensors for .safetensors: pip install -r
         requirements-extra.txt. Importing this file reads no file, no argv, no clock.

What is written is the averaged generator, where its training stands. ONNX: a graph that needs no
Python, for browsers, phones and servers. safetensors: numbers with names, for other PyTorch code; a
stranger's file can hold nothing else. Beside each lies a card, FILE.md, which says what it is.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import pathlib
import warnings

import torch

from workshop import UserError, check_writable, checkpoints, curves
from workshop.options import command_line
from workshop.pickles import visible

PACKAGES = {"onnx": ("onnx", "onnxscript"), "safetensors": ("safetensors",)}


def network_options():
    """--onnx and --safetensors, and what `generate.py` asks of every WHAT."""
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--onnx", metavar="FILE", type=pathlib.Path, help="a graph: z [n, latent] "
                       "and psi [] to images [n, 3, R, R] in [-1, 1], with constant noise")
    group.add_argument("--safetensors", metavar="FILE", type=pathlib.Path,
                       help="the weights, under their names here, with the settings as metadata")
    group.set_defaults(device="cpu", batch=8, psi=1.0, cutoff=None, noise="const", seed=0,
                       noise_strength=None)
    return group


def check(o):
    """All that can be known before the checkpoint is read.   Errors: UserError."""
    o.files = []
    for suffix, path in (("onnx", o.onnx), ("safetensors", o.safetensors)):
        if path is None:
            continue
        missing = [name for name in PACKAGES[suffix] if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"--{suffix}: needs {' and '.join(missing)}: pip install -r "
                            f"requirements-extra.txt")
        if path.suffix.lower() != f".{suffix}":
            raise UserError(f"--{suffix} {path}: the name must end in .{suffix}")
        for file in (path, card_of(path)):
            if os.path.lexists(file):
                raise UserError(f"--{suffix} {path}: {file} exists; choose another name")
            check_writable(file, f"--{suffix}")
        o.files.append(path)
    o.out = ", ".join(map(str, o.files))                       # as the program says at its end
    if not o.files:
        raise UserError("export: as what? --onnx FILE, --safetensors FILE, or both")


def card_of(path):
    return path.with_name(path.name + ".md")


class Whole(torch.nn.Module):
    """z [n, latent], psi [] -> images [n, 3, R, R]: all that a graph shall do, without a choice."""

    def __init__(self, model):
        super().__init__()
        self.G, self.layers = model.G, model.layers
        self.resolution, self.alpha = model.resolution, model.alpha

    def forward(self, z, psi):
        w = self.G.mapping(z)
        w = self.G.w_avg + psi * (w - self.G.w_avg)            # [n, S]
        ws = w[:, None].expand(-1, self.layers, -1)            # [n, L, S]
        return self.G.synthesis(ws, self.resolution, self.alpha, "const")


def save_onnx(model, path):
    """A graph whose number of images is free.

    Proved: tests/test_doors.py::test_the_exported_graph_makes_the_same_pictures
    """
    inputs = torch.randn(2, model.G.latent_dim), torch.tensor(1.0)
    # The exporter reports each of its steps, and warns of its own future.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Whole(model), inputs, input_names=["z", "psi"], output_names=["images"], dynamo=True,
            dynamic_shapes={"z": {0: "n"}, "psi": {}}, verbose=False)
        program.save(path, external_data=False)


def save_safetensors(model, settings, path):
    """Proved: tests/test_doors.py::test_safetensors_hold_the_network"""
    from safetensors.torch import save
    path.write_bytes(save(
        {name: tensor.contiguous() for name, tensor in model.G.state_dict().items()},
        {"architecture": settings["architecture"], "settings": json.dumps(settings),
         "resolution": str(model.resolution), "alpha": str(model.alpha)}))


def write_network(model, o):
    """The files that were asked for, each whole or not there, and their cards."""
    from workshop.figures import written
    if o.safetensors and model.growing.startswith("morphing"):
        raise UserError(f"--safetensors: {o.model} is in the middle of {model.growing}, which its "
                        f"weights do not say; --onnx holds it, or train on until it has settled")
    checkpoint = checkpoints.load_checkpoint(o.model)
    settings = {"architecture": checkpoint["architecture"], **checkpoint["settings"]}
    for path in o.files:
        with written(path) as temporary:
            if path == o.onnx:
                save_onnx(model, temporary)
            else:
                save_safetensors(model, settings, temporary)
        with written(card_of(path)) as temporary:
            temporary.write_text(card(path, o.model, model, settings, checkpoint), "utf-8")


def card(path, source, model, settings, checkpoint):
    """What the file is, in Markdown: only what the checkpoint and its folder say themselves.

    Proved: tests/test_doors.py::test_the_card_says_what_is_known
    """
    run, progress = checkpoint.get("options", {}), checkpoint.get("progress", {})
    facts = [("architecture", settings["architecture"]), ("pixels", f"{model.resolution} x "
             f"{model.resolution}, in [-1, 1]"), ("z", f"{settings['latent_dim']} standard normal")]
    if "nimg" in progress and progress.get("pictures"):        # else import_checkpoint.py's guess
        facts.append(("trained with", f"{progress['nimg'] / 1000:g} thousand images"))
    if progress.get("pictures"):
        name = visible(pathlib.Path(run["data"]).name) if run.get("data") else "painted faces"
        facts.append(("pictures", f"{name} (fingerprint {progress['pictures'][:16]})"))
    else:
        facts.append(("pictures", "unknown. If it was imported, its licence is that of the file it "
                      "came from (NVIDIA's networks: non-commercial)"))
    if model.growing:
        facts.append(("unfinished", f"the newest block is {model.growing}"))
    if progress.get("pictures"):
        known = {**run, "data": run.get("data") and name}      # no paths of somebody's machine
        facts.append(("command", command_line({
            key: value for key, value in known.items()
            if key not in ("cache", "workers", "evaluate_features")})))
    facts += [("settings", ", ".join(f"{key} {value}" for key, value in settings.items())),
              ("made from", f"{pathlib.Path(source).name}, the average of G")]
    lines = [f"# {path.name}", "", *(f"- **{name}**: {value}" for name, value in facts)]
    records = {record["metric"]: record for record in curves.read_lines(
        pathlib.Path(source).parent / "metrics.jsonl")
        if record["nimg"] == progress.get("nimg") and record.get("psi", 1.0) == 1.0
        and record.get("resolution", model.resolution) == model.resolution
        and {"metric", "value"} <= set(record)}
    if records:
        lines += ["", "| measured | value | images |", "|---|---|---|", *(
            f"| {name} | {record['value']:.4g} | {record.get('generated', '')} |"
            for name, record in records.items())]
    if path.suffix.lower() == ".onnx":
        lines += ["", "```python", "import numpy as np, onnxruntime",
                  f'session = onnxruntime.InferenceSession("{path.name}")',
                  f"z = np.random.randn(4, {settings['latent_dim']}).astype(np.float32)",
                  'images, = session.run(None, {"z": z, "psi": np.array(0.7, np.float32)})', "```"]
    else:
        lines += ["", "```python", "import json, safetensors.torch, stylegan_models, torch",
                  f'with safetensors.safe_open("{path.name}", "pt") as file:',
                  '    settings = json.loads(file.metadata()["settings"])',
                  "G = stylegan_models.make_generator(settings).eval()",
                  f'G.load_state_dict(safetensors.torch.load_file("{path.name}"))',
                  f"images = G(torch.randn(4, {settings['latent_dim']}), truncation_psi=0.7, "
                  f"resolution={model.resolution}, alpha={model.alpha:g})",
                  "```"]
    return "\n".join(lines) + "\n"
