"""Every option of every script: nonsense gets one line that names it, and nothing else happens; and
what it is said to change is changed, and nothing that it is not said to change.

New scripts and options are found by themselves: a script stands in README's reading order, and its
parser is asked for its options. One without a line in the tables below is a failure.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import io
import json
import math
import pathlib
import re
import shlex
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import generate
import project
import stylegan_models
import tiny
import train
from conftest import ROOT
from test_evaluate import save_network
from test_generate import SMALL, save
from workshop import UserError, checkpoints, options, page, pictures, video

SCRIPTS = [name for name in re.findall(r"\| \d+ \| \[(\w+)\.py\]", (ROOT / "README.md").read_text())
           if "def main(" in (ROOT / f"{name}.py").read_text(encoding="utf-8")]
NONSENSE = ["x", "", " ", "-1", "-0.5", "0", "nan", "inf", "-inf", "1e999", "1" + 400 * "0",
            5000 * "9", "0x10", "1,,2", "5-", "4:", ":4", "4:x", "\u00bd", "\x1b[2J", "a\nb"]


class Found(Exception):
    pass


def parsers_of(script):
    """[(words before the options, parser)] of a script: one, or one for each of its commands."""
    parse = options.parse_args if script == "train" else importlib.import_module(script).parse_args

    def stop(parser, *_):
        raise Found(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Found) as found:
            parse([])
    parser, = found.value.args
    commands = [action for action in parser._actions
                if isinstance(action, argparse._SubParsersAction)]
    return [(name, command) for name, command in commands[0].choices.items()] if commands else [
        ("", parser)]


def said(parser, words):
    """What the parser makes of the words: (options or None, what it says on stderr, its code)."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            return parser.parse_args(words), stderr.getvalue(), 0
        except SystemExit as end:
            return None, stderr.getvalue(), end.code


def numbers_in(value):
    if isinstance(value, dict):
        return [number for item in value.items() for number in numbers_in(item)]
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, (int, float)) else []


def cases():
    for script in SCRIPTS:
        for command, parser in parsers_of(script):
            yield pytest.param(parser, id=f"{script} {command}".strip())


@pytest.mark.parametrize("parser", list(cases()))
def test_nonsense_is_answered_by_one_line_that_names_the_option(parser):
    """Lesson: a wrong value is met at the door, by name, before anything is made or lost. What is
    taken for a number is a finite one."""
    positional = [action for action in parser._actions if not action.option_strings]
    before = ["64" if action.type else "x" for action in positional
              if action.nargs not in ("?", "*")]
    refused = 0
    for action in parser._actions:
        name = (action.option_strings or [None])[-1]
        if name is None or action.nargs == 0:
            continue
        for value in NONSENSE:
            found, line, code = said(parser, [*before, f"{name}={value}"])
            if found is None:
                refused += 1
                assert code == 2 and len(line) < 600
                assert line.startswith(f"{parser.prog}: argument {'/'.join(action.option_strings)}")
                assert line.count("\n") == 1 and line.isprintable() or line[:-1].isprintable()
            else:
                assert all(map(math.isfinite, numbers_in(getattr(found, action.dest))))
    without_numbers = ("import_checkpoint.py", "generate.py MODEL export")
    assert refused > 20 or parser.prog in without_numbers
    _, line, code = said(parser, [*before, "--no-such-option"])            # control
    assert code == 2 and "--no-such-option" in line


def test_the_walk_meets_the_scripts_and_their_options():
    """Control: it would be green, too, if it met none."""
    assert {"train", "convert_resolution", "morph", "generate", "project", "evaluate",
            "import_checkpoint"} <= set(SCRIPTS)
    met = sum(len(parser._actions) for script in SCRIPTS for _, parser in parsers_of(script))
    assert met > 100


# ---- every option changes what it says -------------------------------------------------------


class Changes(NamedTuple):
    """`part` of what the program leaves changes when `value` is typed behind the option.

    more:    what is typed in both cases.
    """
    part: str
    value: str = ""
    more: str = ""


# Proved elsewhere: the name of a test. It must exist, and name the option.
ELSEWHERE = {"--device": "test_machine.py::test_a_device_that_cannot_compute_is_refused"}

MEASURED = ("--evaluate-metrics ppl --evaluate-images 100 --evaluate-features {network} "
            "--data {others}")
TRAIN = {
    "--data": Changes("weights", "{photos}"), "--resolution": Changes("weights", "16"),
    "--no-flip": Changes("weights"),
    "--allow-upsampling": Changes("weights", "", "--data {mixed}"),
    "--max-bad": Changes("code", "50", "--data {damaged}"),
    "--cache": Changes("files", "elsewhere", "--data {photos}"),
    "--workers": "test_dataloader.py::test_workers_without_room_are_not_started",
    "--initial-resolution": Changes("weights", "8"), "--growth": Changes("weights", "morph"),
    "--fade-kimg": Changes("weights", "0.016"),
    "--morph-kimg": Changes("weights", "0.032", "--growth morph"),
    "--stabilize-kimg": Changes("weights", "0.008"), "--total-kimg": Changes("weights", "0.048"),
    "--batch": Changes("weights", "4"), "--architecture": Changes("weights", "stylegan2"),
    "--channel-base": Changes("weights", "16"), "--channel-max": Changes("weights", "4"),
    "--latent-dim": Changes("weights", "4"), "--style-dim": Changes("weights", "4"),
    "--mapping-dim": Changes("weights", "4"), "--mapping-layers": Changes("weights", "1"),
    "--learning-rate": Changes("weights", "0.01"), "--r1-gamma": Changes("weights", "50"),
    "--r1-interval": Changes("weights", "2"),
    "--path-weight": Changes("weights", "1", "--architecture stylegan2"),
    "--path-interval": Changes("weights", "3", "--architecture stylegan2"),
    "--styles-to-mix": Changes("weights", "3"), "--mixing-probability": Changes("weights", "0"),
    "--ema-halflife-kimg": Changes("weights", "0.0001"),
    "--augment": Changes("weights", "0.9"),
    "--freeze-d": "test_augment.py::test_frozen_layers_stay_as_they_are",
    "--accumulate": "test_train.py::test_accumulating_is_the_same_step",
    "--precision": Changes("weights", "bf16"),
    "--compile": "test_evaluate.py::test_a_network_with_a_limit_is_measured_with_it",
    "--evaluate-kimg": Changes("values", "0.02", MEASURED),
    "--evaluate-metrics": Changes("values", "kid", f"{MEASURED} --evaluate-kimg 0.02"),
    "--evaluate-features": Changes("values", "{wide}", f"{MEASURED} --evaluate-kimg 0.02"),
    "--evaluate-images": Changes("values", "101", f"{MEASURED} --evaluate-kimg 0.02"),
    "--out": Changes("files", "another"),
    "--resume": "test_run.py::test_a_killed_and_resumed_run_ends_with_the_same_bits",
    "--timeout-minutes":
        "test_two_machines.py::test_a_pulled_cable_ends_both_and_the_printed_command_goes_on",
    "--tick-kimg": Changes("log", "0.016"), "--samples-kimg": Changes("files", "0.008"),
    "--checkpoint-kimg": Changes("saves", "0.008"), "--seed": Changes("weights", "1")}

GENERATE = {
    "--out": Changes("files", "other.png"), "samples --out": Changes("files", "elsewhere"),
    "interpolate --out": Changes("files", "other.gif"), "--batch": Changes("batches", "1"),
    "--seeds": Changes("pictures", "7,8"), "--seeds-a": Changes("pictures", "7,8"),
    "--seeds-b": Changes("pictures", "7,8"), "--w": Changes("pictures", "{w}"),
    "--w-a": Changes("pictures", "{w}"), "--w-b": Changes("pictures", "{w}"),
    "--psis": Changes("pictures", "0.3,0.1"),
    **{name: "test_generate.py::test_psi_cutoff_noise_and_seed_reach_every_picture"
       for name in ("--psi", "--cutoff", "--noise", "--seed")},
    "--noise-strength": Changes("pictures", "0"), "--draws": Changes("pictures", "6"),
    "--coarse": Changes("pictures", "0"), "--middle": Changes("pictures", "0"),
    "--fine": Changes("pictures", "0"), "--layers": Changes("pictures", "2-3"),
    "--directions": Changes("pictures", "2"), "--strengths": Changes("pictures", "1,2"),
    "--space": Changes("pictures", "z"), "--one-way": Changes("pictures"),
    "--frames": Changes("pictures", "6"), "--fps": Changes("speed", "10"),
    "--hold": Changes("pictures", "1"),
    "--grid": "test_generate.py::test_videos_stand_in_a_grid_and_frames_in_a_folder",
    "--cells": "test_generate.py::test_cells_of_a_mixing_figure_can_be_had_alone",
    "--onnx": "test_doors.py::test_the_exported_graph_makes_the_same_pictures",
    "--safetensors": "test_doors.py::test_safetensors_hold_the_network",
    **{f"neighbours {name}": "test_neighbours.py::test_the_figure_shows_what_is_nearest"
       for name in ("--data", "--allow-upsampling", "--features", "--nearest", "--cache")}}

EVALUATE = {
    "--metrics": Changes("values", "kid", "--features {network} --images 100"),
    "--data": Changes("values", "{third}"),
    "--features": "test_evaluate.py::test_a_line_of_metrics_jsonl_is_enough_to_repeat_it",
    "--all": "test_evaluate.py::"
             "test_all_checkpoints_of_a_folder_are_measured_and_the_best_is_named",
    "--weights": "test_features.py::test_inception_weights_may_lie_anywhere",
    "--images": Changes("values", "101", "--metrics kid --features {network} --images 100"),
    "--psi": Changes("values", "0.5", "--metrics kid --features {network} --images 100"),
    "--dg-steps": Changes("values", "3"), "--dg-batch": Changes("values", "12"),
    "--ppl-crop": Changes("values", "", "--metrics ppl --features {network} --images 20"),
    "--plot": Changes("files", "curves.png"),
    "--batch": Changes("batches", "8", "--metrics kid --features {network} --images 100"),
    "--allow-upsampling": Changes("values", "", "--data {mixed}"),
    "--no-flip": Changes("values"), "--cache": Changes("files", "elsewhere"),
    "--seed": Changes("values", "1")}

TABLES = {
    "train": TRAIN, "generate": GENERATE, "evaluate": EVALUATE,
    "convert_resolution": {
        "--donor": Changes("weights", "{donor}/checkpoint.pt"),
        "--discriminator": Changes("weights", "fresh"),
        "--learning-rate": Changes("options", "0.01"), "--fade-kimg": Changes("options", "7"),
        "--seed": Changes("weights", "1"), "--out": Changes("files", "other.pt")},
    "morph": {"--morph-kimg": Changes("options", "7"), "--seed": Changes("weights", "1"),
              "--out": Changes("files", "other.pt")},
    "project": {
        "--out": Changes("files", "other.png"), "--per-layer": Changes("weights"),
        "--steps": Changes("weights", "3"), "--learning-rate": Changes("weights", "0.3"),
        "--features": "test_project.py::test_features_reach_the_search",
        "--features-weight": "test_project.py::test_every_option_reaches_the_search"},
    "explore": {"--host": Changes("launched", "localhost"), "--no-open": Changes("launched"),
                "--port": Changes("launched", "7999"), "--password": Changes("launched", "x")},
    "import_checkpoint": {
        "--generator-only": "test_import_checkpoint.py::test_the_generator_alone_can_be_had"}}

BASES = {
    "train": "--resolution 8 --batch 8 --r1-interval 3 --fade-kimg 0.008 --stabilize-kimg 0.016 "
             "--total-kimg 0.04 --tick-kimg 0.02 --samples-kimg 9 --checkpoint-kimg 9 --workers 0 "
             "--out run --cache {cache} --device cpu",
    "generate": "--seeds 0,1 --seeds-a 0 --seeds-b 1,2 --draws 3 --frames 4 --data {photos} "
                "--nearest 2 --device cpu",
    "evaluate": "--metrics duality_gap --dg-steps 2 --dg-batch 8 --cache {cache} --data {others} "
                "--device cpu",
    "convert_resolution": "--out new.pt", "morph": "--out new.pt",
    "project": "--steps 2 --features pixels --out new.png --device cpu"}


def entries():
    """[(script, command, option, its line in the tables or None)]."""
    for script in SCRIPTS:
        for command, parser in parsers_of(script):
            for action in parser._actions:
                if action.option_strings and action.dest != "help":
                    name = action.option_strings[-1]
                    table = {**ELSEWHERE, **TABLES[script]}
                    yield (script, command, name, table.get(f"{command} {name}", table.get(name)))


def test_no_option_is_forgotten():
    """Lesson: an option that nobody reads looks like one that works. Each has a line in the tables,
    each line an option, and each test that is named there exists and speaks of it."""
    lines = list(entries())
    assert [line[:3] for line in lines if line[3] is None] == []
    names = {(script, name) for script, _, name, _ in lines}
    assert [(script, name) for script in TABLES for name in TABLES[script]
            if (script, name.split()[-1]) not in names] == []
    for _, _, name, line in lines:
        if isinstance(line, str):
            assert speaks_of(line, name), (line, name)
    assert not speaks_of("test_run.py::test_no_such_test", "--seed")       # control
    assert not speaks_of("test_machine.py::test_a_device_that_cannot_compute_is_refused", "--psi")


def speaks_of(test, option):
    """Does a test exist, and name the option: "--r1-gamma", or r1_gamma?"""
    wanted = f"{option}|{option[2:].replace('-', '_')}"
    return bool(re.search(rf"(?<![\w-])({wanted})(?![\w-])", words_of(*test.split("::"))))


@functools.cache
def words_of(file, name):
    """The source of a test, with its parameters; "" if there is none."""
    text = (ROOT / "tests" / file).read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1:node.end_lineno])
    return ""


# What the programs are given, made once.


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """{name: path} of small files."""
    folder = tmp_path_factory.mktemp("things")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny.save_pictures(folder / "photos", 9)
        save(folder / "model.pt")
        project.save_w(folder / "w.npz", torch.randn(1, SMALL["style_dim"]), [1.0], 6)
        few_faces(patch)
        for name, r in (("run", "8"), ("donor", "16")):
            assert train.main([*tiny.NETWORKS, *BASES["train"].format(cache="cache").split(),
                               "--resolution", r, "--initial-resolution", r, "--seed", r,
                               "--total-kimg", "0.016", "--data", "photos", "--out", name]) == 0
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def more_things(things):
    """And what only the slow tests need."""
    folder = things["photos"].parent
    tiny.save_pictures(folder / "plain", 110)
    for name, turn in (("others", 2), ("third", 1), ("mixed", 3), ("damaged", 4)):
        (folder / name).mkdir()
        for k in range(110):                                   # of the mixed half are too small
            image = Image.open(folder / "plain" / f"{k}.png").transpose(Image.Transpose(turn))
            small = name == "mixed" and k % 2
            image.resize((6, 6) if small else image.size).save(folder / name / f"{k}.png")
    for k in range(5):
        (folder / "damaged" / f"{k}.png").write_bytes(b"not a picture")
    save_network(folder / "network"), save_network(folder / "wide", "Wide")
    return {path.stem: path for path in folder.iterdir()}


def few_faces(patch):
    patch.setattr(pictures, "PAINTED_FACES", 64)
    tiny.no_rehearsal(patch)


POSITIONAL = {"train": "", "convert_resolution": "{run}/checkpoint.pt 16",
              "morph": "{run}/checkpoint.pt", "generate": "{model}", "evaluate": "run",
              "project": "{run}/checkpoint.pt {photos}/0.png", "explore": "{model}"}


def outcome(script, command, more, things, folder):
    """{part: what a program leaves there} when it is run in a new folder."""
    folder.mkdir()
    left = {"pictures": [], "saves": 0, "batches": 0, "speed": None, "launched": None}

    def figure(title, rows):
        left["pictures"] += [tile.numpy() for row in rows for tile in row.tiles if tile is not None]
        return Image.new("RGB", (8, 8))

    def film(path, frames, count, fps):
        left.update(speed=fps, pictures=list(frames))
        pathlib.Path(path).touch()

    def save_one(*arguments):
        left["saves"] += 1
        return right(*arguments)

    def launch(demo, *how):
        left["launched"] = how
        raise KeyboardInterrupt

    def count(module, inputs):
        if isinstance(module, stylegan_models.SynthesisNetwork):
            left["batches"] = max(left["batches"], len(inputs[0]))
    parser = dict(parsers_of(script))[command]
    words = [*tiny.NETWORKS] if script == "train" else []
    words += [*POSITIONAL[script].split(), *([command] if command else [])]
    for word, value in zip(*[iter(shlex.split(BASES.get(script, "")))] * 2):
        words += [word, value] if word in parser._option_string_actions else []
    words = [word.format(**things) for word in (*words, *more)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        few_faces(patch)
        right = checkpoints.save_checkpoint
        patch.setattr(checkpoints, "save_checkpoint", save_one)
        patch.setattr(generate, "draw_figure", figure)
        patch.setattr(video, "write_video", film)
        patch.setattr(page, "import_gradio", lambda: None)
        patch.setattr(page, "make_page", lambda *_: None)
        patch.setattr(page, "launch", launch)
        if script == "evaluate":                               # it writes beside the checkpoint
            shutil.copytree(things["run"], "run")
        hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(
                    io.StringIO()), contextlib.suppress(KeyboardInterrupt):
                left["code"] = importlib.import_module(script).main(words)
        except UserError as error:
            left["code"] = str(error)
        finally:
            hook.remove()
        left["files"] = sorted({re.sub("events.out.*", "events", str(path))
                                for path in pathlib.Path().rglob("*")})
        for path in sorted(pathlib.Path().rglob("*.pt")):
            state = torch.load(path, weights_only=True)
            left["options"] = state["options"]
            left["weights"] = [state[part] for part in ("generator", "generator_ema",
                                                        "discriminator") if part in state]
        for path in pathlib.Path().rglob("*.npz"):
            left["weights"] = torch.from_numpy(np.load(path)["w"])
        for path in pathlib.Path().rglob("log.jsonl"):
            left["log"] = tiny.deterministic(path.parent)
        for path in pathlib.Path().rglob("metrics.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            left["values"] = [(line["metric"], line["value"]) for line in lines]
    return left


def differ(before, after):
    """Do two parts of an outcome differ, in a bit?"""
    if isinstance(before, list) and before and isinstance(before[0], np.ndarray):
        return len(before) != len(after) or any(not np.array_equal(a, b)
                                                for a, b in zip(before, after))
    return tiny.differences(before, after) != []


@pytest.fixture(scope="module")
def before():
    """Outcomes without the option, by (script, command, more): each is made once."""
    return {}


SLOW = ("train", "evaluate")      # run by python -m pytest -m slow


def one_by_one():
    for script, command, name, line in entries():
        if isinstance(line, Changes):
            yield pytest.param(script, command, name, line, id=f"{script} {command} {name}",
                               marks=[pytest.mark.slow] * (script in SLOW))


@pytest.mark.parametrize("script, command, name, line", list(one_by_one()))
def test_every_option_changes_what_it_says(script, command, name, line, things, before, tmp_path,
                                           request):
    """Lesson: with the option something is other than without, there where --help says. And what
    has nothing to do with learning changes no bit of what is learned."""
    known, more = dict(parsers_of(script))[command]._option_string_actions, shlex.split(line.more)
    if script in SLOW:
        things = request.getfixturevalue("more_things")
    key = (script, command, *more)
    if key not in before:
        before[key] = outcome(script, command, more, things, tmp_path / "before")
    typed = [name, line.value] if known[name].nargs != 0 else [name]
    after = outcome(script, command, [*more, *typed], things, tmp_path / "after")
    assert after.get("code", 0) in (0, None), after["code"]
    assert line.part in after and differ(before[key].get(line.part), after[line.part])
    if line.part in ("log", "files", "saves"):
        assert not differ(before[key].get("weights"), after.get("weights"))


def test_what_changes_nothing_is_noticed(things, tmp_path):
    """Control: the same command twice is the same in every part."""
    for script, command in (("generate", "mixing"), ("morph", "")):
        one, two = (outcome(script, command, [], things, tmp_path / f"{script}{k}") for k in (1, 2))
        assert one.keys() == two.keys()
        assert [part for part in one if differ(one[part], two[part])] == []
