"""workshop/options.py: what can be typed, and the one sentence for what cannot."""

import re
import subprocess
import sys

import pytest
import torch

import morph
import train
from conftest import ROOT, refused
from workshop import UserError, options

CPU, GPU = torch.device("cpu"), torch.device("cuda")

# ---- 1. for every script ----


def test_tables_say_one_number_or_one_per_resolution():
    """Lesson: a value holds from its resolution on, the first one also below it."""
    parse = options.table_of(int)
    assert parse("32")[4] == parse("32")[1024] == 32
    table = parse("8:64,64:16")
    assert [table[r] for r in (4, 8, 32, 64, 1024)] == [64, 64, 64, 16, 16]
    assert options.show(table) == "8:64,64:16" and parse(options.show(table)) == table
    assert options.read_table("4:0.5,8:1e3") == {4: 0.5, 8: 1000.0}
    for wrong, why in (("", "neither"), ("x", "neither"), ("4:", "neither"), ("4:1,8", "neither"),
                       ("4:-1", "below 0"), ("4:inf", "infinite"), ("nan", "infinite")):
        with pytest.raises(UserError, match=why):
            options.read_table(wrong)


def test_numbers_have_limits():
    percent = options.number_from(0, float, 100)
    assert percent("12.5") == 12.5 and options.number_from(1)("3") == 3
    for wrong in ("-1", "101", "nan", "inf", "ten"):
        with pytest.raises(Exception, match="must be from 0 to 100|not a number"):
            percent(wrong)


@pytest.mark.parametrize("error, code, line", [
    (UserError("no such file"), 2, "program.py: no such file"),
    (OSError(28, "No space left on device"), 2, "program.py: [Errno 28] No space left on device"),
    (RuntimeError("CUDA out of memory. Tried"), 2, "program.py: not enough memory on this device"),
    (MemoryError(), 2, "program.py: not enough memory on this device"),
    (KeyboardInterrupt(), 130, "program.py: stopped"),
])
def test_what_the_user_can_mend_is_one_sentence(error, code, line, capsys):
    def main(argv):
        raise error
    found, said = refused(main, [], capsys)
    assert found == code and said.startswith(line)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("a bug"), KeyError(3)])
def test_a_bug_shows_its_traceback(error):
    """Lesson: an error that nobody foresaw is not to look like the user's fault."""
    def main(argv):
        raise error
    with pytest.raises(type(error)):
        options.start(main, "program.py", "stopped", [])
    with pytest.raises(SystemExit) as ended:                   # control: the code of a good end
        options.start(lambda argv: 0, "program.py", "stopped", [])
    assert ended.value.code == 0


# ---- 2. the options of train.py ----


@pytest.mark.parametrize("typed, message", [
    (["--resolution", "48"], "--resolution: the resolution must be a power of two"),
    (["--resolution", "big"], "'big' is not a number"),
    (["--resolution", "16", "--initial-resolution", "32"], "is larger than --resolution 16"),
    (["--batch", "0"], "--batch 0 is too small"),
    (["--total-kimg", "0.0004"], "--total-kimg 0.0004 is too small"),
    (["--evaluate-kimg", "0"], "--evaluate-kimg 0 is too small"),
    (["--samples-kimg", "inf"], "inf must be a number, 0 or more"),
    (["--data", ""], "--data: an empty path"),
    (["--batch", "4:8;16:4"], "neither a number nor a table"),
    (["--batch", "9", "--accumulate", "2"], "--batch 9 at 4 px cannot be divided by 1 processes"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--precision", "fp16"], "invalid choice: 'fp16'"),
    (["--channel-base", "4"], "leaves no channel"),
    (["--mixing-probability", "1.5"], "must be from 0 to 1"),
    (["--speed", "9"], "unrecognized arguments"),
    (["--data", "no/such/place"], "no/such/place: no such folder or .zip"),
    (["--resume", "no/such.pt"], "no/such.pt: no such file"),
    (["--device", "toaster"], "--device toaster"),
    (["--device", "meta"], "--device meta"),
    (["@missing.txt"], "missing.txt"),
    (["@broken.txt"], "No closing quotation"),
])
def test_bad_use_gets_one_sentence_and_exit_code_2(typed, message, capsys, tmp_path, monkeypatch):
    """Lesson: and nothing is created."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.txt").write_text("--data 'my photos")
    code, said = refused(train.main, typed, capsys)
    assert code == 2 and message in said
    assert [path.name for path in tmp_path.iterdir()] == ["broken.txt"]


def test_options_may_stand_in_a_file(tmp_path):
    """Lesson: any number on a line, comments, quotes; a backslash is a backslash (Windows)."""
    (tmp_path / "photos.txt").write_text(
        "# my photos\n--data 'C:\\Users\\me\\my photos#1'  # trailing\n\n"
        "--batch 4:8,8:4 --no-flip\n")
    assert options.parse_args([f"@{tmp_path / 'photos.txt'}", "--seed", "3"]) == {
        "data": "C:\\Users\\me\\my photos#1", "batch": {4: 8, 8: 4}, "no_flip": True, "seed": 3}


def test_every_situation_has_a_complete_set_of_options():
    sizes = set()
    for typed, device in (({}, CPU), ({}, GPU), ({"data": "x"}, CPU), ({"data": "x"}, GPU)):
        found, situation = options.complete_options(typed, device)
        again = options.parse_args(options.command_line(found).split()[2:])
        assert {**found, **again} == found                     # it can be typed, and is the same
        assert set(again) == {
            name for name, value in found.items() if value is not None and value is not False}
        sizes.add((situation, found["resolution"]))
    assert {r for _, r in sizes} == {32, 64, 128, 1024} and len(sizes) == 4
    paper, _ = options.complete_options({"data": "x"}, GPU)
    assert [paper["batch"][2 ** k] for k in range(2, 11)] == [128, 128, 128, 64, 32, 16, 8, 4, 4]
    assert [paper["learning_rate"][2 ** k] for k in range(6, 11)] == [
        0.001, 0.0015, 0.002, 0.003, 0.003]


def test_convolutions_round_to_tf32_only_where_there_is_tf32():
    for device, typed, wanted in ((CPU, {}, "fp32"), (GPU, {}, "tf32"),
                                  (torch.device("mps"), {}, "fp32"),
                                  (GPU, {"precision": "fp32"}, "fp32")):
        assert options.complete_options(typed, device)[0]["precision"] == wanted


def test_a_larger_resolution_gets_the_images_it_needs():
    """Lesson: --resolution 512 alone must not end at 128 px, and the last block must come in."""
    for r in (64, 512):
        for growth in ("fade", "morph"):
            o, _ = options.complete_options(
                {"data": "x", "resolution": r, "channel_base": 2048, "growth": growth}, CPU)
            stages = train.plan_stages(o["initial_resolution"], r, options.growing_kimg(o),
                                       o["stabilize_kimg"])
            assert stages[-1].start + 1000 * o["stabilize_kimg"][r] <= 1000 * o["total_kimg"]
    o, _ = options.complete_options({"data": "x", "total_kimg": 5.0}, CPU)
    assert o["total_kimg"] == 5                                # what was typed stands


def test_a_run_that_could_not_be_morphed_does_not_begin():
    """Lesson: too few channels at the last resolution are found out now, not after days."""
    typed = {"growth": "morph", "resolution": 64, "channel_base": 64, "channel_max": 8}
    with pytest.raises(UserError, match="64 px with 2 channels.*--channel-base 128"):
        options.complete_options(typed, CPU)
    options.complete_options({**typed, "channel_base": 128}, CPU)          # controls
    options.complete_options({**typed, "growth": "fade"}, CPU)
    with pytest.raises(UserError, match="at least 4"):         # morph.py asks the same question
        morph.options.check_morph_width(3, 16)


def test_a_run_in_fp16_cannot_go_on():
    """Lesson: earlier versions offered it; such a run is told what to type instead."""
    now, _ = options.complete_options({}, CPU)
    old = {**options.as_plain(now), "precision": "fp16"}
    with pytest.raises(UserError, match="fp16 is not offered any more.*bf16"):
        options.complete_options({}, CPU, old)
    assert options.complete_options({"precision": "bf16"}, CPU, old)[0]["precision"] == "bf16"


def test_help_names_every_option_and_what_it_would_be():
    """Lesson: --help is the manual. Each option of the design is there with a sentence, and the
    values of each situation, which are those that a run gets."""
    out = subprocess.run([sys.executable, str(ROOT / "train.py"), "--help"],
                         capture_output=True, text=True, check=True).stdout
    for name in [*options.ALWAYS, *options.PRESETS["your pictures on a GPU"], "out", "resume",
                 "device"]:
        flag = f"--{name.replace('_', '-')}"
        explained = re.search(rf"^  {flag}( [^\n]*?)?(?:  +|\n +)(\(?\w[^\n]+)", out, re.M)
        assert explained, flag
    for situation, preset in options.PRESETS.items():
        section = re.sub(r"\s+", " ", out.split(f"  {situation}:\n")[1])
        for name, value in preset.items():
            assert f"--{name.replace('_', '-')} {options.show(value)}" in section, (situation, name)
