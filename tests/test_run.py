"""workshop/run.py: the folder, the log, the samples and the end of a run; and whole runs,
as a user meets them."""

import copy
import functools
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import stylegan_dataloader as data
import tiny
import train
from conftest import ROOT, refused, relative
from tiny import deterministic, differences, finish, start, torchrun
from workshop import checkpoints, machine, options, pictures, run
from workshop.options import Table

# ---- 1. the sample grid ----


def test_every_grid_shows_the_same_z_and_its_last_row_is_mixed():
    """Lesson: a face can be watched from 4x4 on; all but the last row take one style."""
    o = types.SimpleNamespace(resolution=16, seed=3, styles_to_mix=2, latent_dim=8)
    samples = run.new_samples(o)
    torch.manual_seed(99)
    assert differences(samples, run.new_samples(o)) == []
    assert samples["z"].shape == (48, 2, 8) and samples["style_index"].shape == (48, 6)
    assert (samples["style_index"][:-8] == 0).all() and (samples["style_index"][-8:, -1] == 1).all()
    for r, columns, rows in ((32, 8, 6), (512, 8, 4), (1024, 4, 2)):
        o.resolution = r
        large = run.new_samples(o)
        assert large["columns"] == columns and len(large["z"]) == rows * columns
        assert columns * r <= 4096


def test_a_grid_has_the_final_size_from_the_start():
    """Lesson: each place of the grid is that image of G_ema, enlarged by copying pixels."""
    G = tiny.networks()[0].eval()
    o = types.SimpleNamespace(resolution=16, seed=3, styles_to_mix=2, latent_dim=8)
    samples = run.new_samples(o)
    images = run.sample_images(G, samples, 8, 0.5, torch.device("cpu"))
    assert images.shape == (48, 3, 8, 8)
    grid = run.as_grid(images, samples["columns"], 16)
    assert grid.shape == (6 * 16, 8 * 16, 3) and grid.dtype == np.uint8
    one = G(samples["z"][42:43], samples["style_index"][42:43], noise_mode="const", resolution=8,
            alpha=0.5)                                         # row 5, place 2
    wanted = data.to_pixels(one)[0].numpy().repeat(2, axis=0).repeat(2, axis=1)
    found = grid[5 * 16:6 * 16, 2 * 16:3 * 16].astype(int)
    assert np.abs(found - wanted).max() <= 1                   # sums of one image or of eight


# ---- 2. time ----


def test_the_time_that_is_left_is_that_of_the_stages_to_come():
    stages = train.plan_stages(4, 16, Table({4: 1}), Table({4: 2}))
    speeds = {4: 1.0, 8: 10.0, 16: 100.0}              # 4: 0-2000; 8: 2000-5000; 16: from 5000
    assert run.seconds_left(0, stages, speeds, 6000) == 2000 + 30_000 + 100_000
    assert run.seconds_left(4500, stages, speeds, 5001) == 5000 + 100
    assert run.seconds_left(1000, stages, {4: 1.0}, 1500) == 500
    assert run.clock(59.6) == "1:00" and run.clock(4215) == "1:10:15"
    assert run.clock(86400 + 5) == "1 d 0:00:05"


def test_what_is_crossed_does_not_depend_on_where_a_run_began():
    steps = [nimg for nimg in range(8, 200, 8) if run.crossed(nimg, 8, 0.05)]
    assert steps == [56, 104, 152]
    assert not run.crossed(8, 8, 0.05) and run.crossed(50, 8, 0.05)


def test_the_second_signal_of_a_kind_does_not_wait():
    """Lesson: SIGTERM behind a Ctrl-C is no second Ctrl-C."""
    stop = run.StopRequest()
    stop(signal.SIGINT, None)
    stop(signal.SIGTERM, None)
    assert stop.signal == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)


def test_torchrun_that_passes_a_signal_on_is_not_impatient(monkeypatch):
    """Lesson: a batch system sends its signal, SIGTERM or SIGINT, to all processes of a job, and
    torchrun sends it once more to its own. Both mean: stop after this step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        stop = run.StopRequest()
        stop(number, None)
        with pytest.raises(KeyboardInterrupt):                 # control: by hand, twice
            stop(number, None)
        with monkeypatch.context() as patch:
            patch.setenv("TORCHELASTIC_RUN_ID", "none")
            stop(number, None)
        assert stop.signal == number


# ---- 3. the folder ----


def test_a_file_that_somebody_reads_is_waited_for(tmp_path, monkeypatch):
    """Lesson: Windows renames nothing over a file that is open, and somebody looks into
    checkpoint.pt just when the run writes it. Elsewhere an error is one at once."""
    import workshop
    (tmp_path / "new").write_text("new")
    tried, rename = [], os.replace

    def busy(source, target):
        tried.append(1)
        if len(tried) < 4:
            raise PermissionError(13, "in use")
        rename(source, target)
    monkeypatch.setattr(workshop, "os", types.SimpleNamespace(name="nt", replace=busy))
    monkeypatch.setattr(workshop, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    workshop.replace(tmp_path / "new", tmp_path / "old")
    assert len(tried) == 4 and (tmp_path / "old").read_text() == "new"
    tried.clear()
    workshop.os.name = "posix"
    with pytest.raises(PermissionError):                       # control
        workshop.replace(tmp_path / "old", tmp_path / "new")


def test_a_run_gets_the_next_number_and_a_checkpoint_goes_on_in_its_own_folder(
        tmp_path, monkeypatch):
    """Lesson: only checkpoint.pt goes on in its folder, and only with settings.json beside it."""
    monkeypatch.chdir(tmp_path)
    assert run.make_run_folder(None, "faces", None) == pathlib.Path("runs/00000-faces")
    (tmp_path / "runs" / "00007-other").mkdir()
    assert run.make_run_folder(None, "faces", None) == pathlib.Path("runs/00008-faces")
    own = pathlib.Path("runs/00000-faces/checkpoint.pt")
    assert run.make_run_folder(None, "faces", own).name == "00009-faces"   # a copy of it
    (own.parent / "settings.json").write_text("{}")
    assert run.make_run_folder(None, "faces", own) == own.parent
    assert run.make_run_folder(None, "faces", own.with_name("checkpoint-8.pt")) != own.parent
    assert run.make_run_folder(pathlib.Path("my/own"), "faces", own) == pathlib.Path("my/own")


def test_lines_after_the_checkpoint_are_forgotten(tmp_path, capsys):
    """Lesson: also the half of a line that a killed run left. What else is no line of a run, such
    as a note of the user, is kept in another file."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"nimg": 100}\n{"nimg": 200}\n{"nimg": 300}\n{"nimg": 20')
    run.forget_later_lines(log, 200)
    assert log.read_text() == '{"nimg": 100}\n{"nimg": 200}\n'
    assert list(tmp_path.iterdir()) == [log] and capsys.readouterr().err == ""
    strange = b'{"nimg"\n[1]\nlooks good\n{"note": "mine"}\n\n{"nimg": "2"}\n' + bytes(9) + b"\n"
    log.write_bytes(b'{"nimg": 100}\n' + strange + b'{"nimg": 200, "who": "caf\xe9"}\n')
    for _ in range(2):
        run.forget_later_lines(log, 200)
    wanted = '{"nimg": 100}\n{"nimg": 200, "who": "caf\ufffd"}\n'
    assert log.read_text(encoding="utf-8") == wanted
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == strange
    assert capsys.readouterr().err.count("note: ") == 1


def test_damaged_settings_are_put_aside(tmp_path, capsys, monkeypatch):
    """Lesson: they are for the reader; the checkpoint is what a run goes on from. And a full disk
    cannot damage them, since they are written as checkpoints are."""
    o = types.SimpleNamespace(resume=pathlib.Path("x.pt"), command="python train.py", typed={},
                              device="cpu")
    for _ in range(2):
        run.write_settings(tmp_path, o, 1, 800)
    path = tmp_path / "settings.json"
    assert [part["nimg"] for part in json.loads(path.read_text())["resumed"]] == [800, 800]
    for damaged in ('', '{"repeat": "pyth', '[]', '{"note": "mine"}', '{"resumed": 3}'):
        path.write_text(damaged)
        run.write_settings(tmp_path, o, 1, 900)
        assert [part["nimg"] for part in json.loads(path.read_text())["resumed"]] == [900]
        assert (tmp_path / "settings.json.damaged").read_text() == damaged
        assert capsys.readouterr().err.count("note: ") == 1
    whole = path.read_text()

    def full(file):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(run.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.write_settings(tmp_path, o, 1, 1000)
    assert path.read_text() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["settings.json", "settings.json.damaged"]


def test_a_run_folder_belongs_to_one_run(finished, photos, tmp_path, capsys, monkeypatch):
    """Lesson: two runs in one folder write each their lines into one log, and the last one's
    checkpoint stays. The second ends at once, and says who was first. Once the first has ended, be
    it by kill -9, the folder is free; its lock file never has to be deleted."""
    tiny.no_rehearsal(monkeypatch)
    folder = tmp_path / "run"
    first = start("--data", photos, *tiny.RUN, "--total-kimg", "600", "--out", folder, "--workers",
                  "2", cwd=tmp_path)
    for _ in range(30_000):
        if (folder / "checkpoint.pt").exists():
            break
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    log = (folder / "log.jsonl").read_bytes()
    with monkeypatch.context() as patch:                       # nor is the checkpoint read before
        patch.setattr(checkpoints, "load_checkpoint", lambda path: pytest.fail("read"))
        for typed, message in ((["--resume", folder / "checkpoint.pt", "--total-kimg", "700"],
                                f"another run writes there now (process {first.pid} on "),
                               (["--data", photos, *tiny.RUN, "--out", folder],
                                "not an empty folder")):
            code, said = refused(train.main, typed, capsys)
            assert code == 2 and message in said
    # Two new runs with one --out: the slower one finds out when it makes its folder.
    with pytest.raises(run.UserError, match=f"process {first.pid} on "):
        run.make_run_folder(folder, "faces", None)
    assert (folder / "log.jsonl").read_bytes().startswith(log)
    first.kill()                                               # its workers live a little longer
    first.communicate()
    assert (folder / options.LOCK).exists()
    with pytest.raises(run.UserError, match="not an empty folder"):
        run.make_run_folder(folder, "faces", None)
    nimg = checkpoints.load_checkpoint(folder / "checkpoint.pt")["progress"]["nimg"]
    assert train.main(["--resume", str(folder / "checkpoint.pt"), "--total-kimg",
                       str((nimg + 8) / 1000), "--workers", "0", "--device", "cpu"]) == 0
    assert not machine.is_locked(folder / options.LOCK)        # also within one process


# ---- 4. the run ----


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.save_pictures(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A short run, made in this process, in the folder runs/00000-photos: (folder, what its steps
    returned, which resolutions were rehearsed)."""
    folder, said, rehearsed, here = tmp_path_factory.mktemp("run"), [], [], os.getcwd()
    step, rehearse = train.training_step, machine.rehearse

    def watch(*arguments):
        said.append(step(*arguments))
        return said[-1]

    def watch_rehearsal(one, resolutions, *rest):
        found = rehearse(one, resolutions, *rest)
        rehearsed.extend(resolutions)
        said.clear()                                           # these are not the run's
        return found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "training_step", watch)
        patch.setattr(machine, "rehearse", watch_rehearsal)
        os.chdir(folder)
        try:
            assert train.main(["--data", str(photos), *tiny.RUN]) == 0
        finally:
            os.chdir(here)
    return folder / "runs" / "00000-photos", said, rehearsed


def test_a_run_leaves_what_the_readme_promises(finished):
    folder, _, rehearsed = finished
    assert rehearsed == [4, 8, 16]
    names = {path.name for path in folder.iterdir()}
    assert {"settings.json", "log.jsonl", "samples", "checkpoint.pt", "checkpoint-4.pt",
            "checkpoint-8.pt", "checkpoint-16.pt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = tiny.log_of(folder)
    assert lines[-1]["nimg"] == 600 and lines[-1]["resolution"] == 16 and lines[-1]["alpha"] == 1
    assert {line["phase"] for line in lines} == {"fade", "stabilize"}
    for key in (*run.LOGGED[:5], "sample_distance", "real_distance", "images_per_second",
                "seconds_per_kimg", "peak_memory_mb"):
        assert all(key in line for line in lines)
    assert not any("path_length" in line for line in lines)    # nobody asked for its penalty
    grids = sorted((folder / "samples").glob("0*.png"))
    assert [g.name for g in grids] == ["000000200.png", "000000400.png", "000000600.png"]
    for grid in (*grids, folder / "samples" / "reals.png"):
        assert Image.open(grid).size == (8 * 16, 6 * 16)       # the final size, also at 8 px
    kept = checkpoints.load_networks(folder / "checkpoint-8.pt", torch.device("cpu"))
    assert (kept.resolution, kept.alpha) == (8, 1.0)
    assert kept.networks["generator_ema"].synthesis.resolution == 16


def test_the_log_means_what_it_says(finished):
    """Lesson: each number is the mean over the steps since the line before; r1 that over the steps
    which computed it; alpha and the resolution are those of the last step."""
    folder, said, _ = finished
    stages = train.plan_stages(4, 16, Table({4: 0.1}), Table({4: 0.1}))
    begin, lines = 0, tiny.log_of(folder)
    assert lines[-1]["step"] == len(said)
    for line in lines:
        steps = torch.stack(said[begin:line["step"]])
        begin = line["step"]
        for k, name in enumerate(run.LOGGED[:4]):
            assert line[name] == pytest.approx(steps[:, k].mean().item(), rel=1e-5)
        of_r1 = steps[steps[:, 5] == 1]
        assert (line["r1"] is None) == (len(of_r1) == 0)
        if len(of_r1):
            assert line["r1"] == pytest.approx(of_r1[:, 4].mean().item(), rel=1e-5)
        before = line["nimg"] - (8 if line["resolution"] < 16 else 4)
        stage = train.stage_at(before, stages)
        assert line["alpha"] == train.alpha_at(before, stage)
        assert line["resolution"] == stage.resolution
        assert line["seconds_per_kimg"] == pytest.approx(1000 / line["images_per_second"])
    # Controls: steps differ, and there were some without R1.
    assert len({step[0].item() for step in said}) > 50 and 0 < sum(s[5] for s in said) < len(said)


def test_the_log_of_a_second_penalty_means_what_it_says(photos, tmp_path, monkeypatch):
    """Lesson: path length is due in every third step; its means are over these steps alone, and a
    line without any says so."""
    tiny.no_rehearsal(monkeypatch)
    said, step = [], train.training_step
    monkeypatch.setattr(train, "training_step", lambda *a: said.append(step(*a)) or said[-1])
    assert train.main(["--data", str(photos), "--out", str(tmp_path / "r"), *tiny.NETWORKS, *(
        "--architecture stylegan2 --batch 4 --path-interval 3 --r1-interval 16 --workers 0 "
        "--device cpu --total-kimg 0.04 --tick-kimg 0.008").split()]) == 0
    begin, counts = 0, []
    for line in tiny.log_of(tmp_path / "r"):
        steps = torch.stack(said[begin:line["step"]])
        begin = line["step"]
        due = steps[steps[:, 8] == 1]
        counts.append(len(due))
        for k, name in ((6, "path_length"), (7, "path_penalty")):
            if len(due):
                assert line[name] == pytest.approx(due[:, k].mean().item(), rel=1e-5)
                assert line[name] > 0
            else:
                assert line[name] is None
    assert 0 in counts and sum(counts) == 4 and len(said) == 10            # 0, 3, 6, 9


def test_settings_json_repeats_the_run(finished, tmp_path, monkeypatch):
    repeat = json.loads((finished[0] / "settings.json").read_text())["repeat"]
    assert repeat.startswith("python train.py --")
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    (tmp_path / "again.txt").write_text("# a comment\n" + repeat.removeprefix("python train.py "))
    assert train.main(["@again.txt", "--device", "cpu", "--out", "again", "--total-kimg",
                       "0.3"]) == 0                            # no longer than to the end of 8 px
    first, second = (checkpoints.load_checkpoint(path) for path in (
        finished[0] / "checkpoint-8.pt", tmp_path / "again" / "checkpoint.pt"))
    assert differences(first["generator"], second["generator"]) == []


def test_resuming_refuses_what_it_cannot_do(finished, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = finished[0] / "checkpoint.pt"
    whole = checkpoints.load_checkpoint(kept)
    checkpoints.save_checkpoint(tmp_path / "g.pt", {
        key: whole[key] for key in ("settings", "generator_ema")})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    for typed, message in [
            (["--resume", kept], "is finished; a larger --total-kimg"),
            (["--resume", kept, "--resolution", 32], "keeps its shape"),
            (["--resume", kept, "--growth", "morph"], "grows the other way"),
            (["--resume", tmp_path / "g.pt"], "not a run to resume"),
            (["--out", tmp_path / "full"], "not an empty folder")]:
        code, said = refused(train.main, typed, capsys)
        assert code == 2 and message in said
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"


def test_resuming_an_older_checkpoint_starts_a_new_folder(finished, tmp_path, monkeypatch):
    """Lesson: checkpoint-8.pt is kept for comparisons; going on from it must not overwrite the
    longer run that it lies in."""
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    before = {p: p.read_bytes() for p in finished[0].rglob("*") if p.is_file()}
    assert train.main(["--resume", str(finished[0] / "checkpoint-8.pt"), "--device", "cpu",
                       "--total-kimg", "0.45"]) == 0
    assert {p: p.read_bytes() for p in finished[0].rglob("*") if p.is_file()} == before
    assert (tmp_path / "runs" / "00000-photos" / "checkpoint.pt").exists()


def test_a_run_that_ends_before_its_last_resolution_says_so(photos, tmp_path, monkeypatch, capsys):
    """Lesson: and of what was too slow to be tried, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "rehearse", lambda step, resolutions, *rest: (
        {r: 1.0 for r in resolutions}, resolutions[1:]))
    assert train.main(["--data", str(photos), *tiny.RUN, "--total-kimg", "0.12"]) == 0
    said = capsys.readouterr().out
    assert "note: --total-kimg 0.12 ends at 8 px, before 16 px is reached" in said
    assert "note: not tried, since a step would take too long: 8 px" in said
    assert "measured, images/s: 1.0 at 4 px; this run" in said


def test_too_little_memory_is_found_out_before_the_folder_is_made(photos, tmp_path, monkeypatch,
                                                                  capsys):
    monkeypatch.chdir(tmp_path)

    def step(*arguments):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
    monkeypatch.setattr(train, "training_step", step)
    code, said = refused(train.main, ["--data", photos, *tiny.RUN], capsys)
    assert code == 2 and "not enough memory for --batch 4:8,16:4" in said
    assert not (tmp_path / "runs").exists()


def test_the_rehearsal_leaves_the_run_as_it_was(photos, tmp_path, monkeypatch):
    """Lesson: it learns on copies; a run that was rehearsed has the bits of one that was not."""
    ends = []
    for rehearsed in (True, False):
        if not rehearsed:
            tiny.no_rehearsal(monkeypatch)
        out = tmp_path / str(rehearsed)
        assert train.main(["--data", str(photos), *tiny.RUN, "--total-kimg", "0.15", "--cache",
                           str(tmp_path / "cache"), "--out", str(out)]) == 0
        ends.append(checkpoints.load_checkpoint(out / "checkpoint.pt"))
    assert differences(*ends) == []


# ---- 5. stopping, and going on ----


def wait_for(folder, condition, process):
    """Poll log.jsonl until a line satisfies the condition."""
    log, until = folder / "log.jsonl", time.monotonic() + 300
    while time.monotonic() < until:
        running = process.poll() is None                       # asked first: its last line counts
        if log.exists():
            lines = [json.loads(x) for x in log.read_text().splitlines(True) if x.endswith("\n")]
            if any(condition(line) for line in lines):
                return
        assert running, process.communicate()
        time.sleep(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM to be caught")
def test_a_killed_and_resumed_run_ends_with_the_same_bits(photos, finished, tmp_path,
                                                          monkeypatch):
    """Lesson: SIGTERM in the middle of a fade, then kill -9 at no particular moment, then Ctrl-C:
    in the end G, D, G_ema, both Adams, the log and the sample grids are those of a quiet run (that
    was started in another way, and without workers)."""
    folder = tmp_path / "stormy"
    begin = ["--data", photos, *tiny.RUN, "--workers", "2"]
    resume = ["--resume", folder / "checkpoint.pt"]

    process = start(*begin, "--out", folder, cwd=tmp_path, start_new_session=True)
    wait_for(folder, lambda line: line["nimg"] > 100, process)     # 12 steps of the fade are left
    os.killpg(process.pid, signal.SIGTERM)                     # its workers get the signal, too
    out, _ = finish(process, 143)
    stopped = checkpoints.load_checkpoint(folder / "checkpoint.pt")["progress"]
    assert stopped["phase"] == "fade" and 0 < stopped["alpha"] < 1
    assert "--resume" in out

    process = start(*resume, cwd=tmp_path)
    wait_for(folder, lambda line: line["nimg"] > stopped["nimg"] + 100, process)
    process.kill()                                             # nothing can be caught here
    process.communicate()

    process = start(*resume, cwd=tmp_path)
    wait_for(folder, lambda line: line["nimg"] > 420, process)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    tiny.no_rehearsal(monkeypatch)
    assert train.main([str(word) for word in (*resume, "--device", "cpu")]) == 0

    quiet, stormy = (checkpoints.load_checkpoint(f / "checkpoint.pt")
                     for f in (finished[0], folder))
    assert quiet["options"].pop("workers") == 0 and stormy["options"].pop("workers") == 2
    for end in (quiet, stormy):
        del end["options"]["cache"]                            # in the folder that each began in
    assert differences(quiet, stormy) == []
    assert deterministic(finished[0]) == deterministic(folder)
    for picture in (finished[0] / "samples").iterdir():
        assert picture.read_bytes() == (folder / "samples" / picture.name).read_bytes()
    assert len(json.loads((folder / "settings.json").read_text())["resumed"]) == 3


def test_another_seed_ends_elsewhere(photos, finished, tmp_path, monkeypatch):
    """Control for the test above: `differences` sees each part that a step changes."""
    tiny.no_rehearsal(monkeypatch)
    assert train.main(["--data", str(photos), *tiny.RUN, "--seed", "1", "--total-kimg", "0.1",
                       "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "other")]) == 0
    found = differences(checkpoints.load_checkpoint(finished[0] / "checkpoint-4.pt"),
                        checkpoints.load_checkpoint(tmp_path / "other" / "checkpoint.pt"))
    for part in ("generator", "discriminator", "generator_ema", "optimizer_g", "optimizer_d"):
        assert any(path.startswith(f"/{part}/") for path in found), part


def workers_of(process):
    """Process ids of the training processes that a torchrun has started, on Linux."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children
            if "train.py" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_torchrun_shares_the_work_survives_a_kill_and_goes_on_with_another_number(
        photos, tmp_path, monkeypatch):
    """Lesson: a killed process ends all, --max-restarts goes on by itself from the last checkpoint
    to the same end, and one process may finish what two have begun."""
    asked = ["--data", photos, *tiny.RUN, "--resolution", "8", "--total-kimg", "0.4"]
    finish(torchrun(2, *asked, "--out", tmp_path / "quiet", cwd=tmp_path))
    quiet = checkpoints.load_checkpoint(tmp_path / "quiet" / "checkpoint.pt")
    lines = deterministic(tmp_path / "quiet")
    assert [line["nimg"] for line in lines] == sorted({line["nimg"] for line in lines})

    folder = tmp_path / "stormy"
    process = torchrun(2, *asked, "--out", folder, cwd=tmp_path, restarts=1)
    wait_for(folder, lambda line: line["nimg"] > 150, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)            # the one that writes
    finish(process)
    assert differences(quiet, checkpoints.load_checkpoint(folder / "checkpoint.pt")) == []
    assert deterministic(folder) == lines
    resumed = json.loads((folder / "settings.json").read_text())["resumed"]
    assert len(resumed) == 1 and resumed[0]["nimg"] > 0        # control: it did start again

    tiny.no_rehearsal(monkeypatch)
    assert train.main(["--resume", str(tmp_path / "quiet" / "checkpoint-4.pt"), "--out",
                       str(tmp_path / "alone"), "--device", "cpu"]) == 0
    alone = checkpoints.load_checkpoint(tmp_path / "alone" / "checkpoint.pt")
    assert alone["progress"]["nimg"] == quiet["progress"]["nimg"] == 400
    # The same z and pictures; but other noise, and sums in another order.
    name = "synthesis.to_rgb.8.weight"
    assert relative(alone["generator"][name], quiet["generator"][name]) < 0.2


def explode(monkeypatch, at, how):
    """From now on step number `at` goes wrong. how: "loss" or "gradient"."""
    right, calls = train.generator_loss, []

    def loss(scores):
        calls.append(1)
        if len(calls) == at:
            if how == "loss":
                return right(scores) * math.nan
            scores.register_hook(lambda gradient: gradient * math.nan)
        return right(scores)
    monkeypatch.setattr(train, "generator_loss", loss)


@pytest.mark.parametrize("how, at, checkpoint_kimg, last_good, last_line", [
    ("loss", 26, "0.07", 18, 200), ("gradient", 26, "0.208", 13, 200),
    ("gradient", 25, "0.07", 18, 152)])
def test_a_run_that_explodes_stops_and_keeps_the_last_good_checkpoint(
        how, at, checkpoint_kimg, last_good, last_line, photos, tmp_path, capsys, monkeypatch):
    """Lesson: NaN spreads to all weights in one step; a checkpoint written then is no use. Either
    a loss is NaN in step 26, at 208 images, and the run stops there, though nothing would be kept
    before 216. Or all losses are finite, but not the weights, in a step that is to be kept, or to
    be measured and shown, as step 25 is."""
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    explode(monkeypatch, at, how)
    assert train.main(["--data", str(photos), *tiny.RUN, "--checkpoint-kimg", checkpoint_kimg,
                       "--out", "run"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in (f"step {at},", f"{at * 8 / 1000} kimg", "8 px", "alpha", "no longer finite",
                 "--learning-rate", f"{pathlib.Path('run/checkpoint.pt')} is from before that"):
        assert word in said, said
    kept = checkpoints.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert kept["progress"]["step"] == last_good
    for part in ("generator", "discriminator", "generator_ema"):
        assert all(tensor.isfinite().all() for tensor in kept[part].values())
    assert tiny.log_of(tmp_path / "run")[-1]["nimg"] == last_line


def test_a_full_disk_leaves_the_checkpoint_before(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    save, kept = checkpoints.save_checkpoint, []

    def full(path, state):
        if len(kept) == 1:
            raise OSError(28, "No space left on device")
        kept.append(state["progress"]["nimg"])
        save(path, state)
    monkeypatch.setattr(checkpoints, "save_checkpoint", full)
    code, said = refused(train.main, ["--data", photos, *tiny.RUN, "--out", "run"], capsys)
    assert code == 1 and "cannot write a checkpoint" in said and "No space left" in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the handlers are given back
    progress = checkpoints.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["progress"]
    assert progress["nimg"] == kept[0] > 0


def test_adams_flags_follow_the_device_and_not_the_checkpoint():
    """Lesson: a Mac's checkpoint says "not fused"; here the optimizer stays as it was made. All
    else is the checkpoint's: the moments, and the rate."""
    layer = torch.nn.Linear(2, 2)
    of_a_mac = torch.optim.Adam(layer.parameters(), lr=0.5, betas=(0.0, 0.99), fused=None,
                                foreach=True)
    layer(torch.ones(1, 2)).sum().backward()
    of_a_mac.step()
    here = train.new_adam(layer)
    assert here.param_groups[0]["fused"] is True
    run.load_adam(here, copy.deepcopy(of_a_mac.state_dict()))
    group = here.param_groups[0]
    assert (group["fused"], group["foreach"], group["lr"]) == (True, None, 0.5)
    assert torch.equal(here.state[layer.weight]["exp_avg_sq"],
                       of_a_mac.state[layer.weight]["exp_avg_sq"])
    here.step()
    other = train.new_adam(layer)                              # control: torch's own way
    other.load_state_dict(of_a_mac.state_dict())
    assert other.param_groups[0]["fused"] is None


def test_what_the_disk_does_not_take_ends_no_run(photos, tmp_path, capsys, monkeypatch):
    """Lesson: the disk is full when a line of the log, a grid or a curve is written. These are for
    the reader. The run says so, tries at once to keep what counts, and goes on to the same end."""
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    ends = []
    for name in ("quiet", "full"):
        kept, save = [], checkpoints.save_checkpoint
        with pytest.MonkeyPatch.context() as patch:
            if name == "full":
                def full(*args, **more):
                    raise OSError(28, "No space left on device")
                patch.setattr(run, "append_line", lambda path, line: False)
                patch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
                grid = Image.Image.save
                patch.setattr(Image.Image, "save", lambda image, path: grid(image, path)
                              if path.name == "reals.png" else full())
            patch.setattr(checkpoints, "save_checkpoint", lambda path, state: kept.append(
                state["progress"]["nimg"]) or save(path, state))
            assert train.main(["--data", str(photos), *tiny.RUN, "--resolution", "4",
                               "--total-kimg", "0.1", "--samples-kimg", "0.04", "--tick-kimg",
                               "0.024", "--checkpoint-kimg", "1", "--out", name]) == 0
        ends.append((kept, capsys.readouterr().err, torch.load(
            pathlib.Path(name) / "checkpoint.pt", weights_only=True)))
    (kept, said, quiet), (kept_full, said_full, full) = ends
    assert differences({k: v for k, v in quiet.items() if k != "options"},
                       {k: v for k, v in full.items() if k != "options"}) == []
    assert set(kept) == {104} and {24, 40, 48, 72, 80, 96, 104} >= set(kept_full) >= {24, 40}
    assert said == "" and "note: samples cannot be written" in said_full
    assert said_full.count("note: TensorBoard's file cannot be written") == 1


def test_a_run_whose_folder_is_deleted_ends_with_one_sentence(photos, tmp_path, capsys,
                                                              monkeypatch):
    """Lesson: not with a traceback, and not with a checkpoint to go on from that is not there."""
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    step, steps = train.training_step, []

    def watch(*arguments):
        steps.append(1)
        if len(steps) == 20:
            while (tmp_path / "run").exists():                 # TensorBoard may still write
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return step(*arguments)
    monkeypatch.setattr(train, "training_step", watch)
    code, said = refused(train.main, ["--data", photos, *tiny.RUN, "--out", "run"], capsys)
    assert code == 1 and "cannot write a checkpoint" in said and "no checkpoint to go on" in said
    assert len(steps) < 30


STUBBORN = """import sys, time
sys.path.insert(0, {root!r})
from workshop import options, pictures
import stylegan_dataloader as data
def main(argv):
    source = pictures.painted_faces(range(80))
    folder = pictures.pack_pictures(source, 4, {cache!r}, report=str)
    batches = iter(data.picture_loader(data.PictureDataset(folder, source, 4), 4, workers=2))
    next(batches)
    raise {error}
options.start(main, "x.py")
"""


@pytest.mark.parametrize("error, code, line", [
    ("KeyError('a bug')", 1, "KeyError: 'a bug'"), ("BrokenPipeError", 141, "")])
def test_an_error_ends_a_run_with_workers_in_seconds(error, code, line, tmp_path):
    """Lesson: processes that load pictures ignore the signal by which Python ends them, since a
    batch system sends it to all of a job; and Python waits for them. So whoever ends a run ends
    them first. Here it used to hang for ever, and torchrun could restart nothing."""
    program = STUBBORN.format(root=str(ROOT), cache=str(tmp_path), error=error)
    started = time.monotonic()
    process = subprocess.run([sys.executable, "-c", program], timeout=100, capture_output=True,
                             text=True)
    assert process.returncode == code, process.stderr
    assert (process.stderr.splitlines() or [""])[-1] == line
    assert ("Traceback" in process.stderr) == (code == 1)
    assert time.monotonic() - started < 60


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_lost_terminal_and_a_lost_reader_stop_a_run_as_ctrl_c_does(photos, tmp_path):
    """Lesson: SIGHUP (ssh is lost), or `train.py | head`: the step is finished, a checkpoint is
    kept, and nothing is left running. nohup, which means that a run is to outlive its terminal,
    still does."""
    for name, code in (("hangup", 128 + signal.SIGHUP), ("head", 141)):
        folder = tmp_path / name
        # The second is started with nohup, too; the first not, even if these tests are.
        answer = signal.SIG_IGN if name == "head" else signal.SIG_DFL
        more = {"preexec_fn": functools.partial(signal.signal, signal.SIGHUP, answer)}
        process = start("--data", photos, *tiny.RUN, "--checkpoint-kimg", "1000", "--resolution",
                        "4", "--total-kimg", "600", "--out", folder, cwd=tmp_path, **more)
        wait_for(folder, lambda line: True, process)
        process.send_signal(signal.SIGHUP)
        if name == "head":
            last = tiny.log_of(folder)[-1]["nimg"]
            wait_for(folder, lambda line: line["nimg"] > last + 200, process)
            process.stdout.close()
            process.stdout = None
        _, error = process.communicate(timeout=60)
        assert process.returncode == code, error
        assert "Traceback" not in error and "BrokenPipe" not in error
        assert checkpoints.load_checkpoint(folder / "checkpoint.pt")["progress"]["nimg"] > 0


def test_a_printed_command_can_be_pasted(tmp_path):
    """Lesson: folders have spaces, and names apostrophes. And another device has other bits."""
    path = tmp_path / "my photos (it's new)" / "checkpoint.pt"
    words = ["python", "train.py", "--resume", str(path)]
    assert shlex.split(options.go_on(path)) == words
    assert shlex.split(options.go_on(path, device="cuda:1")) == [*words, "--device", "cuda:1"]


def test_a_run_is_never_sent_into_the_folder_of_another(finished, photos, tmp_path, monkeypatch,
                                                        capsys):
    """Lesson: "to go on: train.py --resume OTHER/checkpoint.pt" without --out goes on in the other
    run's folder, and replaces its checkpoint."""
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    explode(monkeypatch, 2, "loss")
    donor = finished[0] / "checkpoint.pt"
    assert train.main(["--resume", str(donor), "--data", str(photos), "--out", "new", "--device",
                       "cpu", "--total-kimg", "9"]) == 1
    said = capsys.readouterr().err
    assert "Start again with a smaller --learning-rate" in said and str(finished[0]) not in said
    # Control: a run that has a checkpoint says how it goes on, on the device that was typed.
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    step = train.training_step

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return step(*arguments)
    monkeypatch.setattr(train, "training_step", interrupted)
    assert train.main(["--resume", str(donor), "--data", str(photos), "--out", "newer", "--device",
                       "cpu", "--total-kimg", "9"]) == 143
    command = shlex.split(capsys.readouterr().out.split("to go on: ")[1])
    assert command[2:] == ["--resume", str(pathlib.Path("newer/checkpoint.pt")), "--device", "cpu"]


def test_a_schedule_typed_anew_leaves_the_run_where_it_stands(finished, tmp_path, monkeypatch,
                                                              capsys):
    """Lesson: the schedule says where a run of so many images is. A run of 8 px (0.3 kimg: the end
    of its second stage) that is put back to 4 px would lose its block with --growth morph; one that
    is put forward to 16 would get there with a block that has never been faded in."""
    monkeypatch.chdir(tmp_path)
    tiny.no_rehearsal(monkeypatch)
    kept = finished[0] / "checkpoint-8.pt"
    assert checkpoints.load_checkpoint(kept)["progress"]["nimg"] == 304
    for typed, now in ((["--stabilize-kimg", "0.5"], "puts it at 4 px"),
                       (["--stabilize-kimg", "4:0.1,8:0.02"], "puts it at 16 px, growing"),
                       (["--fade-kimg", "0.02", "--stabilize-kimg", "0.02"], "puts it at 16 px;")):
        code, said = refused(train.main, ["--resume", kept, *typed, "--device", "cpu"], capsys)
        assert code == 2 and "it has come to 8 px;" in said and now in said
    # Controls: longer at 8 px; what is to come; and the next stage, where it goes on by itself.
    for name, typed in (("a", ["--stabilize-kimg", "4:0.1,8:0.2"]),
                        ("b", ["--fade-kimg", "4:0.1,16:0.2"]), ("c", [])):
        assert train.main(["--resume", str(kept), *typed, "--total-kimg", "0.32", "--device", "cpu",
                           "--out", name]) == 0


# ---- 6. measuring on the way ----


@pytest.fixture
def few_faces(monkeypatch, tmp_path):
    """400 painted faces instead of 10,000, short searches; runs land in the current folder."""
    monkeypatch.setattr(pictures, "PAINTED_FACES", 400)
    monkeypatch.setattr(evaluate, "Settings", functools.partial(evaluate.Settings, dg_steps=5))
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.chdir(tmp_path)


def measured(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "seconds"} for line in lines]


def test_a_run_that_is_measured_ends_with_the_bits_of_one_that_is_not(few_faces, tmp_path):
    """Lesson: both hold the same pictures out; one is measured four times, the other only at its
    end: the networks, Adams and logs are the same. Interrupted and resumed it has the same numbers
    in metrics.jsonl. A run that holds nothing out sees other pictures."""
    short = [*tiny.RUN, "--resolution", "8", "--total-kimg", "0.4"]
    for name, kimg in (("often", "0.1"), ("once", "100")):
        assert train.main([*short, "--evaluate-kimg", kimg, "--out", name]) == 0
    often, once = (checkpoints.load_checkpoint(tmp_path / name / "checkpoint.pt")
                   for name in ("often", "once"))
    del often["options"], once["options"]
    assert differences(often, once) == []
    assert deterministic(tmp_path / "often") == deterministic(tmp_path / "once")
    lines = measured(tmp_path / "often")
    assert [line["nimg"] for line in lines] == [104, 200, 304, 400]
    assert [line["resolution"] for line in lines] == [4, 8, 8, 8]
    assert all(line["value"] > 0 for line in lines)
    assert measured(tmp_path / "once") == lines[-1:]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(tmp_path / "often")).Reload()
    logged = board.Scalars("metrics/duality_gap")
    assert [scalar.step for scalar in logged] == [line["nimg"] for line in lines]
    assert [scalar.value for scalar in logged] == pytest.approx([line["value"] for line in lines])

    # Cut in the middle of the fade, at 152 of 100..200, and resumed.
    early = [*short, "--evaluate-kimg", "0.1", "--total-kimg", "0.152", "--out", "early"]
    assert train.main(early) == 0
    assert train.main(["--resume", "early/checkpoint.pt", "--total-kimg", "0.4", "--device",
                       "cpu"]) == 0
    assert [line for line in measured(tmp_path / "early") if line["nimg"] != 152] == lines

    assert train.main([*short, "--out", "all"]) == 0                    # control
    every = checkpoints.load_checkpoint(tmp_path / "all" / "checkpoint.pt")
    assert every["progress"]["split"] is None and not (tmp_path / "all" / "metrics.jsonl").exists()
    assert differences(every["generator"], often["generator"]) != []


def test_a_run_that_is_killed_as_it_measures_measures_again(few_faces, tmp_path, monkeypatch):
    """Lesson: one process measures first and keeps its checkpoint after. So if it is killed as it
    measures, it goes on from an older checkpoint, makes the steps again, and measures again."""
    class Killed(BaseException):
        pass

    def prepare(*_):
        return lambda resolution, alpha, grown, nimg, folder: iter([
            {"metric": "m", "value": 1.0, "error": None, "nimg": nimg}])

    def kill(self, alpha):
        if self.nimg > 100:
            raise Killed
        right(self, alpha)
    monkeypatch.setattr(evaluate, "prepare", prepare)
    right = run.Run._measure
    words = [*tiny.RUN, "--resolution", "8", "--total-kimg", "0.2", "--evaluate-kimg", "0.08",
             "--checkpoint-kimg", "0.08", "--out", "run"]
    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(run.Run, "_measure", kill)
        train.main(words)
    assert [line["nimg"] for line in measured(tmp_path / "run")] == [80]
    # Several processes, of which torchrun kills what is not at its end after 30 s, keep first.
    after = run.Run.after_step

    def as_two(self, *arguments):
        self.team.processes = 2
        try:
            after(self, *arguments)
        finally:
            self.team.processes = 1
    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(run.Run, "_measure", kill)
        killing.setattr(run.Run, "after_step", as_two)
        train.main([*words[:-1], "two", "--checkpoint-kimg", "1"])
    for name, nimg in (("run", 104), ("two", 160)):
        kept = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        assert kept["progress"]["nimg"] == nimg
    assert train.main(["--resume", "run/checkpoint.pt", "--device", "cpu"]) == 0
    assert [line["nimg"] for line in measured(tmp_path / "run")] == [80, 160, 200]


@pytest.mark.parametrize("fatal", range(1, 5))
def test_a_run_that_is_killed_between_two_files_writes_both(few_faces, tmp_path, monkeypatch,
                                                            fatal):
    """Lesson: at the end of a resolution two files are written, each whole or not at all. Both are
    there in the end, whichever was the last one, and what was half written is cleared away."""
    class Killed(BaseException):
        pass

    saved, right = [], checkpoints.save_checkpoint

    def save(path, state):
        saved.append(path.name)
        if len(saved) == fatal:
            path.with_name(f"{path.name}.1.tmp").write_bytes(b"half")
            raise Killed
        right(path, state)

    words = [*tiny.RUN, "--resolution", "8", "--total-kimg", "0.3", "--checkpoint-kimg", "0.1",
             "--stabilize-kimg", "0.1", "--fade-kimg", "0.1", "--out", "run"]
    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(checkpoints, "save_checkpoint", save)
        train.main(words)
    assert list((tmp_path / "run").glob("*.tmp"))              # control
    again = ["--resume", "run/checkpoint.pt", "--device", "cpu"] if (
        tmp_path / "run" / "checkpoint.pt").exists() else [*words[:-1], "again"]
    assert train.main(again) == 0
    folder = tmp_path / again[-1] if again[-1] == "again" else tmp_path / "run"
    assert {path.name for path in folder.iterdir() if "checkpoint" in path.name} == {
        "checkpoint-4.pt", "checkpoint-8.pt", "checkpoint.pt"}
    assert checkpoints.load_checkpoint(folder / "checkpoint-4.pt")["progress"]["resolution"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("count, alike, words", [
    (1, True, ""), (20, True, ""), (1, True, "--growth morph --morph-kimg 0.03"),
    (20, False, "--batch 1"),
    (20, False, "--batch 1 --architecture stylegan2 --path-interval 2")])
def test_the_poorest_pictures_train_to_the_end(few_faces, tmp_path, count, alike, words):
    """Lesson: one picture, many that are all black, one at a time: deviations are 0 then, and what
    is divided by them must not be. All numbers are finite, and so are the weights that are kept."""
    (tmp_path / "photos").mkdir()
    for k in range(count):
        grey = np.full((16, 16, 3), 0 if alike else 10 * k, np.uint8)
        Image.fromarray(grey).save(tmp_path / "photos" / f"{k}.png")
    assert train.main([*tiny.RUN, "--data", "photos", "--fade-kimg", "0.03", "--stabilize-kimg",
                       "0.03", "--total-kimg", "0.16", "--out", "run", *words.split()]) == 0
    lines = tiny.log_of(tmp_path / "run")
    assert lines[-1]["resolution"] == 16 and lines[-1]["nimg"] >= 160
    for line in lines:
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
        assert (line["real_distance"] == 0) == alike           # control: they are what they should
    checkpoints.load_checkpoint(tmp_path / "run" / "checkpoint.pt")        # refuses what is not


def test_what_was_held_out_stays_held_out(few_faces, tmp_path, capsys, monkeypatch):
    """Lesson: of every picture that training asks for, none is of the adversary or test part; and a
    run whose pictures have all been seen, or have changed, cannot hold any out."""
    asked, read = [], data.PictureDataset.__getitems__

    def watch(dataset, samples):
        asked.extend(dataset.numbers.tolist())
        return read(dataset, samples)
    monkeypatch.setattr(data.PictureDataset, "__getitems__", watch)
    short = [*tiny.RUN, "--resolution", "4", "--total-kimg", "0.1"]
    monkeypatch.setattr(evaluate, "prepare", lambda *args: lambda *args: [])   # training alone
    assert train.main([*short, "--evaluate-kimg", "1", "--seed", "7", "--out", "run"]) == 0
    progress = checkpoints.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["progress"]
    assert progress["split"] == {"seed": 7, "images": 400}
    parts = pictures.split_pictures(400, 7)
    assert set(asked) == set(parts["training"].tolist()) and len(set(asked)) == 320
    asked.clear()
    # Resumed, also without the option, the same ones stay out.
    assert train.main(["--resume", "run/checkpoint.pt", "--total-kimg", "0.2", "--device",
                       "cpu"]) == 0
    assert set(asked) == set(parts["training"].tolist())
    asked.clear()
    assert train.main([*short, "--out", "all"]) == 0
    assert set(asked) == set(range(400))                                   # control
    code, said = refused(train.main, ["--resume", "all/checkpoint.pt", "--total-kimg", "1",
                                      "--evaluate-kimg", "1"], capsys)
    assert code == 2 and "held no pictures out" in said
    find = pictures.find_pictures
    monkeypatch.setattr(pictures, "find_pictures", lambda p: find(p)._replace(stamp="other"))
    code, said = refused(train.main, ["--resume", "run/checkpoint.pt", "--total-kimg", "1"], capsys)
    assert code == 2 and "have changed since some were held out" in said


def test_copied_pictures_are_the_same_pictures(tmp_path, capsys, monkeypatch):
    """Lesson: `cp -r`, or another machine, gives files new times. What was held out is known by
    what is in the files, so the run goes on, from a .zip, too; and no picture that it has learned
    from is taken for unseen. A picture that has really changed stops it. So does a run of an
    earlier version, which knew only times."""
    tiny.no_rehearsal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "prepare", lambda *args: lambda *args: [])   # training alone
    photos = tiny.save_pictures(tmp_path / "photos")
    more = [*tiny.RUN, "--resolution", "4", "--tick-kimg", "1"]
    kimg, shown, read = iter(range(1, 9)), [], data.PictureDataset.__getitems__

    def go_on(*typed):
        return ["--resume", "run/checkpoint.pt", "--device", "cpu", "--total-kimg",
                f"0.{next(kimg)}", *typed]

    def watch(dataset, samples):
        shown.append(read(dataset, samples))
        return shown[-1]
    monkeypatch.setattr(data.PictureDataset, "__getitems__", watch)
    assert train.main(["--data", "photos", *more, "--evaluate-kimg", "1", "--total-kimg", "0.05",
                       "--out", "run"]) == 0
    held_out = checkpoints.load_checkpoint("run/checkpoint.pt")["progress"]["contents"]
    assert len(held_out) == 70
    for path in photos.iterdir():
        os.utime(path, (1e9, 1e9))
    assert train.main(go_on()) == 0
    archive = shutil.make_archive("photos", "zip", "photos")
    assert train.main(go_on("--data", archive)) == 0
    assert "not those that the checkpoint was trained with" not in capsys.readouterr().out
    # What training was shown is of the same 56 pictures each time (and their mirror images).
    seen = {min(one.numpy().tobytes(), one.flip(1).numpy().tobytes())
            for batch in shown for one in batch}
    assert len(seen) == 56
    (photos / "3.png").write_bytes((photos / "4.png").read_bytes())
    code, said = refused(train.main, go_on("--data", "photos"), capsys)
    assert code == 2 and "have changed since some were held out" in said

    old = checkpoints.load_checkpoint("run/checkpoint.pt")     # as an earlier version wrote it
    del old["progress"]["contents"]
    old["progress"]["pictures"] = pictures.find_pictures(photos).stamp
    checkpoints.save_checkpoint("run/checkpoint.pt", old)
    assert train.main(go_on("--data", "photos")) == 0
    del old["progress"]["split"]
    old["options"]["evaluate_kimg"] = None
    checkpoints.save_checkpoint("run/checkpoint.pt", old)
    os.utime(photos / "5.png", (2e9, 2e9))
    assert train.main(go_on("--data", "photos")) == 0          # nothing was held out: a note
    assert "not those that the checkpoint was trained with" in capsys.readouterr().out


def test_a_measurement_that_cannot_work_is_refused_at_the_start(few_faces, tmp_path, capsys):
    for typed, message in ((["--evaluate-metrics", "beauty"], "'beauty' is none of"),
                           (["--evaluate-metrics", "kid", "--evaluate-features", "no.pt"],
                            "no.pt: no such file")):
        code, said = refused(train.main, [*tiny.RUN, "--evaluate-kimg", "0.1", *typed, "--out",
                                          "run"], capsys)
        assert code == 2 and message in said
        assert not (tmp_path / "run").exists()
