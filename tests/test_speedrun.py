"""experiments/speedrun.py: a race is fair if its clock, its pictures and its marks are."""

import json
import random
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from conftest import ROOT, refused
from tiny import RUN, no_rehearsal
from workshop import UserError, features, machine, options, pictures

sys.path.append(str(ROOT / "experiments"))                     # last: it has a morph.py of its own
import speedrun_peers
from experiments import speedrun

# Somebody's own file: G learns the mean picture. Every step notes itself in a list of the test's.
MINE = """
import torch
from steps import steps

def enter(reals):
    weight = torch.zeros(3, 8, 8)
    yield
    while True:
        images = reals(8, 4)
        weight.lerp_(images.mean(dim=0), 0.1)
        steps.append(images.shape)
        yield 4, lambda n: (weight + 0.1 * torch.randn(n, 3, 8, 8)).clamp(-1, 1)
"""


class Clock:
    """Seconds that pass only when somebody says so."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def a_race(marks, clock, saving=0.0):
    saved = []

    def save(mark, seconds, nimg, sample):
        clock.seconds += saving
        saved.append((mark, seconds, nimg))
    return speedrun.Race(marks, clock, save), saved


def a_loop(clock, seconds):
    """Builds for an hour; then steps of so many seconds, of 10 images each."""
    clock.seconds += 3600
    yield
    while True:
        clock.seconds += seconds
        yield 10, None


def test_the_clock_stands_while_pictures_are_drawn():
    """Lesson: who is measured more often must not seem slower. Building does not count either."""
    clock = Clock()
    race, saved = a_race([1, 2], clock, saving=500.0)
    speedrun.run_loop(a_loop(clock, 20.0), race)
    assert saved == [(1, 60.0, 30), (2, 120.0, 60)]
    assert clock.seconds == 3600 + 120 + 2 * 500               # control: it was long in truth


def test_marks_come_in_order_and_a_long_step_can_reach_several():
    """Lesson: pictures exist only between steps. A mark that falls into a step is taken after it,
    and the seconds say how late that was."""
    clock = Clock()
    race, saved = a_race([1, 2, 5], clock)
    speedrun.run_loop(a_loop(clock, 130.0), race)
    assert saved == [(1, 130.0, 10), (2, 130.0, 10), (5, 390.0, 30)]
    race, saved = a_race([1, 2, 5], clock)                     # control: short steps, short delays
    speedrun.run_loop(a_loop(clock, 1.0), race)
    assert saved == [(1, 60.0, 600), (2, 120.0, 1200), (5, 300.0, 3000)]


def test_reals_are_shuffled_and_mirrored_faces(monkeypatch):
    """Lesson: every picture once an epoch, half of them mirrored, in any size: what train.py does,
    so that nobody wins by having seen more."""
    numbers = np.arange(40, dtype=np.uint8)
    # Picture k is k on its left half and 100 + k on its right one.
    levels = {r: np.repeat(np.stack([numbers, 100 + numbers], axis=1), r // 2, axis=1)[
        :, None, :, None].repeat(r, axis=1).repeat(3, axis=3) for r in (4, 8, 16, 32)}
    monkeypatch.setattr(pictures, "open_level", lambda folder, r: levels[r])
    for mirror in (True, False):
        reals = speedrun.Reals("", 0)
        batches = [((reals(r, 10, mirror) + 1) * 127.5).round() for r in (4, 8, 16, 32)]
        assert [batch.shape for batch in batches] == [(10, 3, r, r) for r in (4, 8, 16, 32)]
        left = torch.cat([batch[:, 0, 0, 0] for batch in batches])
        assert sorted(left % 100) == list(range(40)) != list(left % 100)
        assert (5 < (left >= 100).sum() < 35) == mirror        # mirrored: the right half is left
    assert (speedrun.Reals("", 1)(4, 40) != speedrun.Reals("", 0)(4, 40)).any()    # control


def test_drawing_leaves_no_trace():
    """Lesson: a run that is measured must learn what one that is not would learn; and all networks
    are asked for pictures of the same z."""
    def sample(n):
        random.random()
        return torch.randn(n, 3, 4, 4)
    torch.manual_seed(3), random.seed(3)
    expected = torch.randn(4), random.random()
    torch.manual_seed(3), random.seed(3)
    drawn = speedrun.draw(sample, 70)
    assert torch.equal(torch.randn(4), expected[0]) and random.random() == expected[1]
    assert drawn.shape == (70, 4, 4, 3) and (speedrun.draw(sample, 70) == drawn).all()
    assert (drawn[:20] != drawn[50:]).any()                    # control: no batch twice
    with pytest.raises(UserError, match="finite"):
        speedrun.draw(lambda n: torch.full((n, 3, 4, 4), torch.nan), 8)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """40 faces, a feature network of averages, and jobs that run in this process."""
    faces = pictures.painted_faces(range(40))
    monkeypatch.setattr(pictures, "find_pictures", lambda path: faces)
    monkeypatch.setattr(machine, "cores", lambda: 1)
    monkeypatch.setattr(features, "load_features", lambda name, device: features.Features(
        "EffLite0", lambda images: F.adaptive_avg_pool2d(images, 2).flatten(1), None, None,
        {"features": "means"}))
    monkeypatch.setattr(speedrun.convert, "PACKAGES", ())
    started = []

    class InThisProcess:
        """In place of Popen."""

        def __init__(self, command, **more):
            words = command[2:]
            started.append("-".join(words[-2:]))
            try:
                self.returncode = speedrun.main(words)
            except UserError:
                self.returncode = 2

        def wait(self):
            pass

        terminate = wait
    monkeypatch.setattr(speedrun.subprocess, "Popen", InThisProcess)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "steps.py").write_text("steps = []")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "steps", raising=False)
    monkeypatch.chdir(tmp_path)
    words = ("--minutes 0.001,0.002 --images 16 --threads 1 --seeds 0,1 --arms mine --peer "
             "mine=mine.py --cache cache").split()
    return words, started


def test_somebodys_own_file_is_raced_measured_and_not_again(small, capsys):
    """Lesson: to enter a race one writes a training loop with a `yield` in it. What is done is
    done: the same command does only what is missing."""
    from steps import steps
    words, started = small
    assert speedrun.main(words) == 0 and started == ["mine-0", "mine-1"]
    table = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"\| mine \| \S+ \| 8 \|( \S+ \(\S+, \S+\) \|){2}.*", table)
    folder = next((ROOT.__class__("experiment_speedrun")).iterdir())
    for seed in (0, 1):
        first, second = (json.loads(line) for line in (
            folder / f"mine-{seed}" / "results.jsonl").read_text().splitlines())
        assert 0 < first["nimg"] <= second["nimg"] and first["nimg"] % 4 == 0
        assert 0.06 <= first["seconds"] <= second["seconds"] and second["seconds"] >= 0.12
        pixels = np.load(folder / f"mine-{seed}" / "0.002-minutes.npz")["pixels"]
        assert pixels.shape == (16, 8, 8, 3)
    assert steps[0] == (4, 3, 8, 8)
    # Once more: nothing. Without a result: measured, but not trained again.
    taken = len(steps)
    assert speedrun.main(words) == 0 and len(started) == 2
    (folder / "mine-1" / "results.jsonl").unlink()
    assert speedrun.main(words) == 0 and started[2:] == ["mine-1"] and len(steps) == taken
    # control: a run that was stopped before its last mark begins anew.
    (folder / "mine-0" / "0.002-minutes.npz").unlink()
    (folder / "mine-0" / "results.jsonl").unlink()
    assert speedrun.main(words) == 0 and started[3:] == ["mine-0"] and len(steps) > taken


def test_one_that_fails_does_not_stop_the_others(small, capsys, tmp_path):
    """Lesson: in a night of runs one that diverges must not cost the rest."""
    words, started = small
    (tmp_path / "mine.py").write_text(MINE.replace("weight + ", "torch.nan + "))
    (tmp_path / "good.py").write_text(MINE)
    words = [word.replace("mine", "mine,good") if word == "mine" else word for word in words]
    words.insert(words.index("mine=mine.py"), "good=good.py")
    with pytest.raises(UserError, match="failed: mine-0, mine-1; the same command tries again"):
        speedrun.main(words)
    assert started == ["good-0", "mine-0", "good-1", "mine-1"]
    table = capsys.readouterr().out
    assert "| good |" in table and "| mine |" not in table     # control: only what there is


def test_the_table_says_who_was_first(tmp_path, capsys):
    """Lesson: with a few marks one can say which was the first to reach a goal, and no more."""
    o = speedrun.read_options(["--folder", str(tmp_path), "--minutes", "1,2", "--goal", "50",
                               "--seeds", "0,1"])
    for job, fds in {"stylegan-0": (60, 40), "stylegan-1": (45, 42), "mine-0": (90, 80)}.items():
        (o.folder / job).mkdir(parents=True)
        (o.folder / job / "results.jsonl").write_text("".join(json.dumps({
            "minutes": mark, "nimg": 1000 * mark, "seconds": 60.0 * mark, "resolution": 16,
            speedrun.FD: fd, speedrun.KID: 0.1, "precision": 0.5, "recall": 0.25}) + "\n"
            for mark, fd in zip((1, 2), fds)))
    (o.folder / "mine-7").mkdir()                              # a seed that was not asked for ...
    (o.folder / "mine-7" / "results.jsonl").write_text("")     # ... and not done
    speedrun.print_table(o)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| stylegan | 2 | 16 | 52.5 (60, 45) | 41 (40, 42) | 0.100 | 0.50 | 0.25 | 2, 1 |",
        "| mine | 2 | 16 | 90 (90) | 80 (80) | 0.100 | 0.50 | 0.25 | not |"]


@pytest.mark.parametrize("total", ["0.6", "0.05"])
def test_ours_is_train_py_itself(small, monkeypatch, tmp_path, total):
    """Lesson: what is timed is the program that users have, its rehearsal and its saving left out.
    If it ends before the last mark, its last pictures count (the second total)."""
    no_rehearsal(monkeypatch)
    clock = Clock()
    race, saved = a_race([1, 2], clock, saving=500.0)
    step, after = train.training_step, train.Run.after_step

    def slow_step(*arguments):
        clock.seconds += 10
        return step(*arguments)

    def slow_saving(self, *arguments):
        clock.seconds += 500
        after(self, *arguments)
    monkeypatch.setattr(train, "training_step", slow_step)
    monkeypatch.setattr(train.Run, "after_step", slow_saving)
    run = train.Run
    speedrun.run_ours([*RUN, "--total-kimg", total, "--out", str(tmp_path / "run")], race)
    if total == "0.6":
        # Steps of 8 images, of which 48 are shown in a minute; it ends with the last mark.
        assert saved == [(1, 60.0, 48), (2, 120.0, 96)]
    else:
        assert saved == [(1, 60.0, 48), (2, 70.0, 56)]         # 50 images are reached with 56
    assert (tmp_path / "run" / "checkpoint.pt").is_file() and train.Run is run


def test_foreign_networks_grow_by_their_own_schedule(monkeypatch):
    """Lesson: the sizes, rates and batches of a plan are those that the networks meet, and the
    slow part of G learns at a hundredth of the rate."""
    seen, rates = [], []
    mapping = torch.nn.Linear(2, 3)

    class G(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mapping, self.bias = mapping, torch.nn.Parameter(torch.zeros(3))

        def forward(self, z, mixes, resolution, alpha):
            colour = self.mapping(z[:, 0]) + self.bias
            return colour[:, :, None, None].expand(-1, -1, resolution, resolution)

    class D(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, images, alpha):
            seen.append((images.shape[0], images.shape[2], alpha))
            return (images.square().mean(dim=(2, 3)) * self.weight).sum(dim=1)

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step()
    monkeypatch.setattr(torch.optim, "Adam", Adam)
    table = options.Table
    plan = speedrun_peers.Growing(
        train.plan_stages(4, 8, table({4: 0.008}), table({4: 0.008})), table({4: 4, 8: 2}),
        table({4: 0.1, 8: 0.2}), lambda r: 1.0, 2, lambda nimg, batch: 0.5,
        lambda images, alpha: images)
    loop = speedrun_peers.grow(G(), D(), mapping, plan, 2,
                         lambda r, batch: torch.rand(batch, 3, r, r))
    next(loop)
    shown, sides = [], []
    for _ in range(7):
        batch, sample = next(loop)
        shown.append(batch)
        sides.append(sample(5).shape)
    assert shown == [4, 4, 2, 2, 2, 2, 2]
    assert sides == [(5, 3, 4, 4)] * 2 + [(5, 3, 8, 8)] * 5
    # Three calls of D a step: reals, fakes, fakes again.
    assert seen[::3] == [(4, 4, 1.0)] * 2 + [(2, 8, alpha) for alpha in (0, 0.25, 0.5, 0.75, 1.0)]
    assert rates[:2] == [[0.1], [0.1, 0.001]] and rates[-1] == [0.2, 0.002]       # D's, G's


def test_the_blur_that_stands_in_for_kornias():
    """Lesson: a pixel becomes the mean around it, weighted 1 2 1; the border is mirrored."""
    kernel = torch.tensor([1.0, 2.0, 1.0])
    x = torch.rand(2, 3, 5, 5)
    blurred = speedrun_peers.reflected_blur(x, kernel[:, None] * kernel, normalized=True)
    wide = torch.nn.functional.pad(x, [1] * 4, mode="reflect")
    for row, column in ((2, 3), (0, 0), (4, 1)):
        window = wide[:, :, row:row + 3, column:column + 3]
        expected = (window * kernel[:, None] * kernel).sum(dim=(2, 3)) / 16
        assert torch.allclose(blurred[:, :, row, column], expected, atol=1e-6)
    assert not torch.allclose(blurred[:, :, 0, 0], x[:, :, 0, 0], atol=1e-3)       # control


def test_what_cannot_be_raced_is_one_sentence(tmp_path, monkeypatch, capsys):
    """Lesson: a wrong folder is noticed now and not after the first hour."""
    (tmp_path / "model.py").write_text("class Something: pass")
    (tmp_path / "none.py").write_text("")
    for words, said in (
            (["--peer", f"rosinality={tmp_path}"], "no folder with rosinality's program"),
            (["--peer", "ada"], "no folder with ada's program"),
            (["--peer", f"mine={tmp_path / 'no.py'}"], "or any other NAME=FILE.py"),
            (["--peer", f"stylegan={tmp_path / 'none.py'}"], "or any other NAME=FILE.py"),
            (["--arms", "ada-own"], "--arms: none is called 'ada-own'"),
            (["--minutes", "2,no"], "--minutes"), (["--minutes", "0"], "--minutes"),
            (["--options", "--gammaray 1"], "gammaray"),
            (["--plot", "faces.txt"], "is drawn as")):
        code, error = refused(speedrun.main, words, capsys)
        assert code == 2 and said in error
    monkeypatch.setattr(speedrun.convert, "PACKAGES", ("a_package_that_nobody_has",))
    code, error = refused(speedrun.main, [], capsys)
    assert code == 2 and "pip install -r requirements-extra.txt" in error
    (tmp_path / "model.py").write_text("class StyledGenerator: pass")              # control
    o = speedrun.read_options(["--peer", f"rosinality={tmp_path}", f"mine={tmp_path / 'none.py'}"])
    assert all(options.parse_args(words) for words in o.ours.values())
    assert [*o.peers] == ["rosinality-own", "rosinality-ours", "mine"]
    with pytest.raises(UserError, match="no function enter"):
        o.peers["mine"](None)
