"""experiments/hostile.py: the damaged files are damaged, and what goes wrong is noticed."""

import mmap
import random
import sys

import pytest
import torch

from conftest import ROOT
from workshop import UserError, checkpoints, pictures

sys.path.append(str(ROOT / "experiments"))             # last: it has a morph.py of its own
import hostile  # noqa: E402

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory")


@pytest.fixture(scope="module")
def sound():
    return hostile.sound_files()


@pytest.mark.filterwarnings("ignore")                  # of torch, about kinds that it gives up
@pytest.mark.parametrize("fault", hostile.CHECKPOINT_FAULTS)
def test_damaged_checkpoints_are_refused_in_one_sentence_or_sound(tmp_path, sound, fault):
    """Lesson: whatever is done to a file, it is refused by name, or loads as networks that work.
    A few of each kind; experiments/hostile.py --files 1000 gives a thousand to every program."""
    path, accepted = tmp_path / "h.pt", 0
    for number in range(6):
        rng = random.Random(f"{fault} {number}")
        path.write_bytes(hostile.CHECKPOINT_FAULTS[fault](rng, *rng.choice(sound[0])))
        try:
            loaded = checkpoints.load_networks(path)
            accepted += 1
            G = loaded.networks["generator_ema"]
            assert torch.isfinite(G.w_avg).all() and loaded.resolution <= 32
        except checkpoints.CheckpointError as error:
            assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 700
    assert accepted == 6 or fault != "none"            # control: sound files are accepted


def test_the_same_number_is_the_same_damage(sound):
    """Lesson: a file that went wrong can be made again."""
    (run, raw), official = sound[0][0], sound[1][0]
    for faults, arguments in ((hostile.CHECKPOINT_FAULTS, (run, raw)),
                              (hostile.PICKLE_FAULTS, (official,))):
        for fault, damage in faults.items():
            if "words" in fault:                       # torch.save writes a random serial number
                continue
            once, again, other = (damage(random.Random(k), *arguments) for k in (1, 1, 2))
            assert once == again and (once != other or fault in ("none", "records"))
    for fault in ("cut", "names", "zip", "claims", "many tags"):
        once, again = (hostile.with_fault(fault, random.Random(1)) for _ in range(2))
        assert once == again


def test_a_list_that_is_in_many_places_is_looked_at_once():
    """Lesson: a generator of hostile values can fall for one itself: this one filled 22 GB."""
    doubling = []
    for _ in range(60):
        doubling = [doubling, doubling]
    assert len(hostile.places({"a": doubling, "b": 5})) == 2 + 2 * 60


@linux
def test_what_goes_wrong_is_noticed(tmp_path, monkeypatch):
    """Lesson: a harness that finds nothing must be shown to find something."""
    path = str(tmp_path / "h.pt")

    def outcome(main):
        return hostile.tried(main, path)["wrong"]

    def refuses(sentence):
        def main(path):
            raise UserError(sentence)
        return main
    assert outcome(lambda path: 0) == "" and outcome(refuses(f"{path}: damaged")) == ""
    assert outcome(lambda path: 1 / 0).startswith("traceback: ZeroDivisionError")
    assert outcome(lambda path: 1) == "code 1"
    assert outcome(refuses("damaged")) == "does not name the file"
    assert outcome(refuses(f"{path}: two\nlines")) == "no sentence"
    assert outcome(refuses(f"{path}: \x1b[2J")) == "escape codes"
    assert outcome(lambda path: print("\x1b[2J") or 0) == "escape codes"
    monkeypatch.setattr(hostile, "MOST_MB", 20)
    kept = []

    def takes_50_mb(path):                             # new pages: what was freed may be kept
        kept.append(mmap.mmap(-1, 50 << 20))
        for page in range(0, 50 << 20, mmap.PAGESIZE):
            kept[0][page] = 1
        return 0
    assert "too much" in outcome(takes_50_mb)
    monkeypatch.setattr(hostile, "MOST_MB", 10)
    for _ in range(4):                                 # also in what an earlier one has freed
        assert "too much" in outcome(lambda path: len(bytearray(b"x") * (20 << 20)) * 0)
    monkeypatch.setattr(hostile, "MOST_MB", 1024)
    monkeypatch.setattr(hostile, "MOST_SECONDS", 0)
    assert "too slow" in outcome(lambda path: sum(range(10 ** 6)) * 0)


@linux
@pytest.mark.parametrize("fault", [
    pytest.param(fault, marks=[pytest.mark.slow] * (fault == "bomb"))
    for fault in hostile.PICTURE_FAULTS])
def test_hostile_pictures_are_packed_or_named(tmp_path, monkeypatch, fault):
    """Lesson: whatever a picture is, it is used or named, in bounded time and memory; the good ones
    beside it lie in the cache as they are. experiments/hostile.py --files 1000 tries a thousand."""
    monkeypatch.setattr(hostile, "MOST_SECONDS", 20)           # the machine may be slow
    main = hostile.packing(tmp_path)
    for number in range(2):
        result = hostile.packed(fault, random.Random(f"{fault} {number}"), tmp_path, main)
        assert result["code"] in (0, 2) and result["wrong"] == "", (number, result)


@linux
def test_pictures_that_are_spoilt_or_forgotten_are_noticed(tmp_path, monkeypatch):
    """Control: of the test above."""
    main = hostile.packing(tmp_path)

    def outcome():
        return hostile.packed("names", random.Random("4"), tmp_path, main)["wrong"]
    assert outcome() == ""                                     # a folder with good ones
    right = pictures.read_picture
    monkeypatch.setattr(pictures, "read_picture", lambda *a: right(*a) ^ 1)
    assert "a good one is spoilt" in outcome()
    monkeypatch.setattr(pictures, "read_picture", right)
    find, in_parallel = pictures.find_pictures, pictures.in_parallel
    monkeypatch.setattr(pictures, "in_parallel", lambda function, items, *rest: in_parallel(
        function, items[1:], *rest))
    assert "missing without a word" in outcome()
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "find_pictures", lambda path: (
        (tmp_path / "elsewhere").touch(), find(path))[1])
    assert "elsewhere" in outcome()
