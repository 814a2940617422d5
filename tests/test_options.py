"""workshop/options.py: what can be typed, and the one sentence for what cannot."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import morph
import stylegan_models as models
import train
from conftest import ROOT, refused
from workshop import UserError, checkpoints, machine, options

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
                       ("4:-1", "below 0"), ("4:inf", "above 1e9"), ("nan", "above 1e9"),
                       ("0:1", "below 1")):
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
    (OSError(28, "No space left on device", "x.png"), 2, "program.py: x.png: No space left"),
    (RuntimeError("CUDA out of memory. Tried"), 2, "program.py: not enough memory on this device"),
    (MemoryError(), 2, "program.py: not enough memory on this device"),
    (KeyboardInterrupt(), 130, "program.py: stopped"),
])
def test_what_the_user_can_mend_is_one_sentence(error, code, line, capsys):
    def main(argv):
        raise error
    found, said = refused(main, [], capsys)
    assert found == code and said.startswith(line)


def test_a_missing_or_foreign_stream_is_no_error(monkeypatch):
    """Lesson: stdout may be closed (a batch system, pythonw), or be a notebook's, which cannot be
    told how to write what the terminal cannot show."""
    class Notebook(io.TextIOBase):
        def write(self, text):
            written.append(text)
            return len(text)
    written = []

    def main(argv):
        print("said")
        raise UserError("and ended")
    for stream in (None, Notebook()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit) as ended:
            options.start(main, "program.py", "stopped", [])
        assert ended.value.code == 2
    assert "".join(written) == "said\nprogram.py: and ended\n"


def test_an_error_of_a_run_says_how_to_go_on(capsys):
    """Lesson: and no other program repeats it."""
    def main(argv):
        options.how_to_go_on[:] = [lambda: "; to go on: so"] * bool(argv)
        raise UserError("no more pictures")
    assert refused(main, ["x"], capsys)[1] == "program.py: no more pictures; to go on: so"
    assert options.how_to_go_on
    assert refused(main, [], capsys)[1] == "program.py: no more pictures"


def test_words_of_a_strangers_checkpoint_are_no_options():
    """Lesson: what no option is called is not passed on; `o` has names of its own, as `device`."""
    told = options.as_plain(options.complete_options({}, CPU)[0])
    strange = {**told, "device": "cuda", "command": "rm", "__class__": "x", "workers": 1000}
    found, _ = options.complete_options({}, CPU, strange)
    assert set(found) == set(told)
    assert found["workers"] <= options.machine.cores()         # nor are all its processes started
    typed, _ = options.complete_options({"workers": 900}, CPU, strange)    # control
    assert typed["workers"] == 900
    with pytest.raises(UserError, match="--r1-gamma: the checkpoint names none"):
        options.complete_options({}, CPU, {**told, "r1_gamma": None})


@pytest.mark.parametrize("words, needed", [
    (["--evaluate-metrics", "fid"], "evaluate-kimg"), (["--evaluate-images", "7"], "evaluate-kimg"),
    (["--evaluate-features", "efficientnet-lite0"], "evaluate-kimg"),
    (["--path-interval", "2"], "path-weight")])
def test_what_would_do_nothing_is_refused(words, needed):
    """Lesson: who asks for FID on the way, and forgets to say how often, would learn at the end
    that nothing was held out."""
    with pytest.raises(UserError, match=f"{words[0]}: does nothing without --{needed}"):
        options.complete_options(options.parse_args(words), CPU)
    more = ["--evaluate-kimg", "5"] if needed == "evaluate-kimg" else ["--architecture",
                                                                       "stylegan2"]
    options.complete_options(options.parse_args(words + more), CPU)        # control


@pytest.mark.slow
def test_a_compiler_that_is_not_there_is_one_sentence(tmp_path):
    """Lesson: --compile writes programs, and a laptop may have nothing to compile them with."""
    words = ["--resolution", "4", "--total-kimg", "0.1", "--device", "cpu", "--out", "run"]
    environment = {**os.environ, "CXX": str(tmp_path / "none"),
                   "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "programs")}
    for more, code in ((["--compile"], 2), ([], 0)):           # and a control
        done = subprocess.run([sys.executable, ROOT / "train.py", *words, *more, "--out",
                               f"run{code}"], cwd=tmp_path, env=environment, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == code, done.stderr
        assert ("--compile: torch.compile cannot do it here" in done.stderr) == (code == 2)
        assert "Traceback" not in done.stderr


def test_a_cache_of_another_machine_is_not_made_again(tmp_path, monkeypatch):
    """Lesson: a checkpoint names the cache by its whole path. On a new machine that path would be
    made, perhaps on the wrong disk; there the cache is the usual one again. So it is if the file
    does not lie in its own run: a stranger's words are no reason to write anywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    told, _ = options.complete_options({}, CPU)
    for place, there, wanted in (("run", "mine", "mine"), ("run", "gone/cache", "cache"),
                                 (".", "mine", "cache")):
        kept = {"options": options.as_plain({**told, "cache": str(tmp_path / there)}),
                "settings": {}, "progress": {"nimg": 0, "pictures": "x"}}
        (tmp_path / "run" / "settings.json").write_text(json.dumps(kept))
        monkeypatch.setattr(options.checkpoints, "load_checkpoint", lambda path: kept)
        monkeypatch.setattr(options.checkpoints, "resumable", lambda checkpoint: True)
        o, _ = options.read(["--resume", f"{place}/x.pt", "--device", "cpu"])
        assert o.cache == str(tmp_path / wanted)
    o, _ = options.read(["--resume", "x.pt", "--device", "cpu", "--cache", "new"])     # control
    assert o.cache == str(tmp_path / "new")


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
    (["--resolution", "big"], "'big' is not a whole number"),
    (["--resolution", "16", "--initial-resolution", "32"], "is larger than --resolution 16"),
    (["--batch", "0"], "--batch 0 is too small"),
    (["--total-kimg", "0.0004"], "--total-kimg 0.0004 is too small"),
    (["--evaluate-kimg", "0"], "--evaluate-kimg 0 is too small"),
    (["--samples-kimg", "inf"], "inf must be from 0 to 1e+12"),
    (["--data", ""], "--data: an empty path"), (["--resume", ""], "--resume: an empty path"),
    (["--out", ""], "--out: an empty path"), (["--cache", ""], "--cache: an empty path"),
    (["--batch", "4:8;16:4"], "neither a whole number nor a table"),
    (["--batch", "9", "--accumulate", "2"], "--batch 9 at 4 px cannot be divided by 1 processes"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--precision", "fp16"], "invalid choice: 'fp16'"),
    (["--channel-base", "4"], "leaves no channel"),
    (["--mixing-probability", "1.5"], "must be from 0 to 1"),
    (["--architecture", "stylegan3"], "invalid choice: 'stylegan3'"),
    (["--architecture", "stylegan2", "--growth", "morph"], "stylegan2 does not grow"),
    (["--architecture", "stylegan2", "--initial-resolution", "8"], "stylegan2 does not grow"),
    (["--path-weight", "2"], "--path-weight is for --architecture stylegan2"),
    (["--path-interval", "0"], "0 must be from 1 to 1e+09"),
    (["--timeout-minutes", "0"], "0 must be from 0.05 to 1e+06"),
    (["--speed", "9"], "unrecognized arguments"),
    (["--data", "no/such/place"], "place: no such folder or .zip"),
    (["--resume", "no/such.pt"], "such.pt: no such file"),
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


@pytest.mark.parametrize("text", ["--data Gr\xf6\xdfe", "\xff\xfe-\0-\0"])
def test_a_file_of_options_in_another_encoding_is_no_traceback(text, capsys, tmp_path,
                                                               monkeypatch):
    """Lesson: Windows writes others. (Some Pythons take the letters for those of a path.)"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.txt").write_bytes(text.encode("latin-1"))
    assert refused(train.main, ["@old.txt"], capsys)[0] == 2


def test_no_text_is_typed_that_no_checkpoint_could_say(capsys, tmp_path, monkeypatch):
    """Lesson: a line break between quotes in a script was accepted, and its checkpoint was not."""
    monkeypatch.chdir(tmp_path)
    words = ["--evaluate-kimg", "5", "--evaluate-metrics"]
    code, said = refused(train.main, [*words, "fid,\nkid"], capsys)
    assert code == 2 and "no checkpoint could say that" in said
    assert options.read([*words, "fid, kid"])[0].evaluate_metrics          # control


def test_options_may_stand_in_a_file(tmp_path):
    """Lesson: any number on a line, comments, quotes; a backslash is a backslash (Windows)."""
    (tmp_path / "photos.txt").write_text(
        "# my photos\n--data 'C:\\Users\\me\\my photos#1'  # trailing\n\n"
        "--batch 4:8,8:4 --no-flip\n--cache='my cache #2'  # it's mine\n")
    assert options.parse_args([f"@{tmp_path / 'photos.txt'}", "--seed", "3"]) == {
        "data": "C:\\Users\\me\\my photos#1", "batch": {4: 8, 8: 4}, "no_flip": True, "seed": 3,
        "cache": "my cache #2"}


@pytest.mark.parametrize("option, largest", [
    ("--seed", 2 ** 62), ("--workers", 1024), ("--styles-to-mix", 1000), ("--total-kimg", 1e12),
    ("--tick-kimg", 1e12), ("--evaluate-kimg", 1e12), ("--path-weight", 1e12),
    ("--r1-interval", 10 ** 9), ("--mapping-dim", 10 ** 9), ("--evaluate-images", 10 ** 9)])
def test_what_can_be_typed_can_be_read_again(option, largest, capsys):
    """Lesson: a reader of files from strangers believes no number without a bound. What is typed
    stands in such a file a day later, so the same bounds hold, and hold before the day."""
    (name, value), = options.parse_args([option, str(largest)]).items()
    assert value == largest and checkpoints.OPTIONS[name](value)
    with pytest.raises(SystemExit):
        options.parse_args([option, str(2 * largest)])
    assert "must be from" in capsys.readouterr().err


def test_tables_that_can_be_typed_can_be_read_again():
    """Lesson: the same of --batch, --fade-kimg and the like."""
    for option in ("--fade-kimg", "--morph-kimg", "--stabilize-kimg", "--learning-rate",
                   "--r1-gamma"):
        (name, value), = options.parse_args([option, "4:1,8:1e9"]).items()
        assert checkpoints.OPTIONS[name](options.show(value))
        for wrong in ("4:2e9", "0:1,8:1"):
            with pytest.raises(SystemExit):
                options.parse_args([option, wrong])


SITUATIONS = [({}, CPU), ({}, GPU), ({"data": "x"}, CPU), ({"data": "x"}, GPU)]


@pytest.mark.parametrize("architecture", [{}, {"architecture": "stylegan2"}])
@pytest.mark.parametrize("processes", [1, 2, 3, 8, 16])
def test_a_default_batch_can_be_shared_by_any_number_of_processes(architecture, processes):
    """Lesson: the official batches for one GPU end at 4 images. Eight GPUs want 32, or D would
    compare an image with itself. What is typed is not touched; the refusal says what would do."""
    for typed, device in SITUATIONS:
        o, _ = options.complete_options({**typed, **architecture}, device, processes=processes)
        alone, _ = options.complete_options({**typed, **architecture}, device)
        for r in models.resolutions_up_to(o["resolution"]):
            part, rest = divmod(o["batch"][r], processes * o["accumulate"][r])
            assert rest == 0 and (processes == 1 or part % 4 == 0)
            assert alone["batch"][r] <= o["batch"][r] < alone["batch"][r] + 4 * processes
    if processes == 8:
        typed = {"data": "x", "batch": options.read_table("4:128,512:4", int), **architecture}
        with pytest.raises(UserError, match="--batch 4:128,512:8 can"):
            options.complete_options({**typed, "accumulate": options.read_table("1", int)}, GPU,
                                     processes=8)


@pytest.mark.parametrize("architecture", [{}, {"architecture": "stylegan2"}])
def test_every_situation_has_a_complete_set_of_options(architecture):
    sizes = set()
    for typed, device in SITUATIONS:
        found, situation = options.complete_options({**typed, **architecture}, device)
        again = options.parse_args(options.command_line(found).split()[2:])
        assert {**found, **again} == found                     # it can be typed, and is the same
        assert set(again) == {
            name for name, value in found.items() if value is not None and value is not False}
        sizes.add((situation, found["resolution"]))
        repeated, _ = options.complete_options(again, device)  # settings.json's "repeat"
        assert repeated == found
    assert {r for _, r in sizes} == {32, 64, 128, 1024} and len(sizes) == 4
    paper, _ = options.complete_options({"data": "x"}, GPU)
    assert [paper["batch"][2 ** k] for k in range(2, 11)] == [128, 128, 128, 64, 32, 16, 8, 4, 4]
    assert [paper["learning_rate"][2 ** k] for k in range(6, 11)] == [
        0.001, 0.0015, 0.002, 0.003, 0.003]


def test_stylegan2_has_the_official_settings_and_does_not_grow():
    """Lesson: what --architecture stylegan2 changes by itself: one resolution from the first image
    on, R1 in every 16th step, path length in every 4th with the weight 2; on a GPU the widths of
    config F, its batch and its learning rate."""
    for typed, device in SITUATIONS:
        older, situation = options.complete_options(typed, device)
        o, same = options.complete_options({**typed, "architecture": "stylegan2"}, device)
        assert same == situation and o["resolution"] == older["resolution"]
        assert (o["r1_interval"], o["path_interval"], o["path_weight"]) == (16, 4, 2.0)
        assert o["initial_resolution"] == o["resolution"] and o["growth"] == "fade"
        stages = train.plan_stages(o["initial_resolution"], o["resolution"],
                                   options.growing_kimg(o), o["stabilize_kimg"])
        assert stages == [(0, float("inf"), o["resolution"], False)]
        assert older["path_weight"] == 0 and older["initial_resolution"] == 4          # controls
        assert older["architecture"] == "stylegan"
    assert situation == "your pictures on a GPU"
    assert [o[name] for name in ("channel_base", "channel_max", "mapping_layers")] == [
        16384, 512, 8]
    assert (o["batch"][1024], o["learning_rate"][1024]) == (32, 0.002)
    # Another resolution is the one it begins at, too.
    o, _ = options.complete_options({"architecture": "stylegan2", "resolution": 64}, CPU)
    assert o["initial_resolution"] == 64
    # What is typed stands.
    typed = {"architecture": "stylegan2", "path_weight": 0.0, "r1_interval": 1}
    o, _ = options.complete_options(typed, CPU)
    assert (o["path_weight"], o["r1_interval"]) == (0.0, 1)
    # A batch is cut into no more parts than leave 4 images in each, with any gamma.
    for batch, processes, parts in ((32, 1, 8), (32, 8, 1), (24, 1, 6), (12, 1, 3), (40, 1, 5),
                                    (6, 1, 1), (2, 2, 1)):
        for more in ({}, {"r1_gamma": options.read_table("5")}):
            o, _ = options.complete_options({
                "architecture": "stylegan2", "data": "x", "batch": options.read_table(batch, int),
                **more}, GPU, processes=processes)
            assert o["accumulate"][1024] == parts


def test_stylegan2_gets_its_gamma_by_the_published_heuristic():
    """Lesson: gamma = 0.0002 R^2 / batch (StyleGAN2-ADA): 6.55 for 1024 px and a batch of 32. It is
    a number in the command that is printed; what is typed comes first."""
    assert options.heuristic_gamma(1024, 32) == pytest.approx(6.5536)
    assert options.heuristic_gamma(256, 64) == pytest.approx(0.2048)
    for typed, device in SITUATIONS:
        o, situation = options.complete_options({**typed, "architecture": "stylegan2"}, device)
        r = o["resolution"]
        tried = options.STYLEGAN2_PRESETS[situation].get("r1_gamma")
        wanted = float(tried) if tried else 0.0002 * r ** 2 / o["batch"][r]
        assert o["r1_gamma"][r] == o["r1_gamma"][4] == pytest.approx(wanted)
    argv = ["--architecture", "stylegan2", "--resolution", "64", "--batch", "4:64,64:8", "--data",
            "photos", "--accumulate", "1"]
    found, _ = options.complete_options(options.parse_args(argv), GPU)
    assert found["r1_gamma"][64] == pytest.approx(0.0002 * 64 ** 2 / 8)    # the batch at 64 px
    assert "--r1-gamma 0.1024 " in options.command_line(found)
    typed, _ = options.complete_options(options.parse_args([*argv, "--r1-gamma", "7"]), GPU)
    assert typed["r1_gamma"][64] == 7 and "--r1-gamma 7 " in options.command_line(typed)   # control
    assert options.complete_options({}, CPU)[0]["r1_gamma"][32] == 3       # StyleGAN: as it was


def test_a_run_keeps_its_architecture():
    """Lesson: a resumed run is what it was without being told, and cannot become the other; the
    sentence is about what was typed. Runs of before StyleGAN2 came name none."""
    old, new = (options.as_plain(options.complete_options(
        {"architecture": name, "resolution": 16}, CPU)[0]) for name in ("stylegan", "stylegan2"))
    for name in ("architecture", "path_weight", "path_interval"):
        del old[name]
    for resumed, architecture, other in ((old, "stylegan", "stylegan2"),
                                         (new, "stylegan2", "stylegan")):
        for typed in ({}, {"architecture": architecture}, {"learning_rate": {4: 0.001}}):
            o, _ = options.complete_options(typed, CPU, resumed)
            assert o["architecture"] == architecture           # controls
        with pytest.raises(UserError, match=f"--architecture {other} differs from the "
                                            f"checkpoint's {architecture}"):
            options.complete_options({"architecture": other}, CPU, resumed)
        with pytest.raises(UserError, match="--resolution 32 differs from the checkpoint's 16"):
            options.complete_options({"resolution": 32}, CPU, resumed)
    # The gamma of the run is a number in its checkpoint, and stays when the batch changes.
    smaller = {"batch": options.read_table("4", int)}
    assert options.complete_options(smaller, CPU, new)[0]["r1_gamma"] == (
        options.complete_options({}, CPU, new)[0]["r1_gamma"])
    for typed in ({"growth": "morph"}, {"initial_resolution": 8}):
        with pytest.raises(UserError, match="stylegan2 does not grow"):
            options.complete_options(typed, CPU, new)
    with pytest.raises(UserError, match="--path-weight is for"):
        options.complete_options({"path_weight": 1.0}, CPU, old)


def test_convolutions_round_to_tf32_only_where_there_is_tf32():
    for device, typed, wanted in ((CPU, {}, "fp32"), (GPU, {}, "tf32"),
                                  (torch.device("mps"), {}, "fp32"),
                                  (GPU, {"precision": "fp32"}, "fp32")):
        assert options.complete_options(typed, device)[0]["precision"] == wanted


def test_a_cpu_multiplies_bfloat16_only_if_it_can(monkeypatch, tmp_path, capsys):
    """Lesson: bf16 is the default where the processor has instructions for it, and only there: it
    is far slower elsewhere, so whoever asks for it is told. What a checkpoint says stays."""
    monkeypatch.chdir(tmp_path)
    old = options.as_plain(options.complete_options({}, CPU)[0])
    options.read(["--device", "cpu", "--precision", "bf16"])
    assert "no instructions for --precision bf16" in capsys.readouterr().out
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: True)
    for device, typed, wanted in ((CPU, {}, "bf16"), (CPU, {"precision": "fp32"}, "fp32"),
                                  (GPU, {}, "tf32"), (torch.device("mps"), {}, "fp32")):
        assert options.complete_options(typed, device)[0]["precision"] == wanted
    assert options.complete_options({}, CPU, old)[0]["precision"] == "fp32"
    options.read(["--device", "cpu"])
    assert "no instructions" not in capsys.readouterr().out                # control


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
        section = re.sub(r"\s+", " ", out.split(f"  {situation}:\n")[1].split("\n  ")[0])
        for name, value in preset.items():
            assert f"--{name.replace('_', '-')} {options.show(value)}" in section, (situation, name)
    later = out.split("With --architecture stylegan2, instead (--r1-gamma, where none ")[1]
    for situation, preset in options.STYLEGAN2_PRESETS.items():
        assert situation in options.PRESETS
        section = re.sub(r"\s+", " ", later.split(f"  {situation}:\n")[1].split("\n  ")[0])
        for name, value in {**options.STYLEGAN2, **preset}.items():
            if name != "architecture" and value is not None:
                flag = f"--{name.replace('_', '-')} {options.show(value)}"
                assert flag in section, (situation, name)


def test_paths_of_a_stranger_are_asked_for(tmp_path, monkeypatch):
    """Lesson: a file that was sent to you can name any folder of your computer, and a program that
    measures, which would be run. Where its own run's settings.json lies beside it and says the
    same, they are followed; elsewhere the user names them."""
    told, _ = options.complete_options({}, CPU)
    photos, program = str(tmp_path / "photos"), str(tmp_path / "net.pt")
    kept = {"options": options.as_plain(told), "settings": {},
            "progress": {"nimg": 0, "pictures": "x"}}
    monkeypatch.setattr(options.checkpoints, "load_checkpoint", lambda path: kept)
    monkeypatch.setattr(options.checkpoints, "resumable", lambda checkpoint: True)
    sent, settings = tmp_path / "sent" / "x.pt", tmp_path / "sent" / "settings.json"
    sent.parent.mkdir()

    def read(*words):
        return options.read(["--resume", str(sent), "--device", "cpu", *words])[0]

    read()                                                     # control: no paths, nothing to ask
    for key, value, what in (("data", photos, "the pictures"),
                             ("evaluate_features", program, "the program")):
        kept["options"] = {**options.as_plain(told), key: value}
        option = f"--{key.replace('_', '-')}"
        for text in (None, "[]", "null", "{", '{"options": 5}', '{"options": {}}',
                     json.dumps({"options": {**kept["options"], key: "other"}})):
            if text is not None:
                settings.write_text(text)
            with pytest.raises(UserError, match=f"x.pt: names {what} .* name yours with {option}"):
                read()
            assert getattr(read(option, value), key) == value              # the user says so
        settings.write_text(json.dumps({"options": kept["options"]}))
        assert getattr(read(), key) == value                               # its own run
        settings.write_text(json.dumps({"options": {**kept["options"], "cache": "other"}}))
        assert getattr(read(), key) == value                   # which has moved to another cache
        settings.unlink()
    for name in ("inception", "efficientnet-lite0"):           # control: packages, not programs
        kept["options"] = {**options.as_plain(told), "evaluate_features": name}
        assert read().evaluate_features == name


def test_what_is_wrong_with_a_resumed_run_is_said_with_the_name_of_its_file(monkeypatch):
    """Lesson: "--batch 7 cannot be divided" helps nobody who has typed no --batch."""
    told, _ = options.complete_options({}, CPU)
    kept = {"options": {**options.as_plain(told), "batch": "7", "accumulate": "2"}, "settings": {},
            "progress": {"nimg": 0, "pictures": "x"}}
    monkeypatch.setattr(options.checkpoints, "load_checkpoint", lambda path: kept)
    monkeypatch.setattr(options.checkpoints, "resumable", lambda checkpoint: True)
    with pytest.raises(UserError, match="^--resume sent.pt: --batch 7 at"):
        options.read(["--resume", "sent.pt", "--device", "cpu"])
    with pytest.raises(UserError, match="^--batch 7 at"):      # control: a new run has no file
        options.read(["--batch", "7", "--accumulate", "2", "--device", "cpu"])
