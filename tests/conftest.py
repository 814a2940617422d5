"""What all tests share: the scripts can be imported, and every test starts from the same seed."""

import os
import pathlib
import signal
import sys

# One thread: the networks of the tests are too small to share, and pytest runs two tests at once.
# Set before torch is imported, also for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("UV", None)                     # programs say "python train.py", also under uv run

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def process_as_it_was():
    """A script's main may choose threads, or an answer to signals: not for the tests after it."""
    threads, answer = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, answer)


@pytest.fixture(autouse=True)
def any_processor(monkeypatch):
    """Tests are of the same arithmetic on every machine: float32, unless they ask for another.

    Fixtures of a whole module are made before this one. So tiny.RUN says --precision fp32 itself.
    """
    monkeypatch.setattr("workshop.machine.multiplies_bfloat16", lambda: False)


def relative(ours, judge):
    """The largest difference, in units of the judge's largest value."""
    return ((ours - judge).abs().max() / judge.abs().max()).item()


def refused(main, argv, capsys):
    """Run a script's main as its user would. Returns (exit code, what it wrote to stderr).

    Fails if that is a traceback, or more than one line.
    """
    from workshop import options
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        options.start(main, "program.py", "stopped", [str(word) for word in argv])
    error = capsys.readouterr().err.strip()
    lines = [line for line in error.splitlines() if not line.startswith("note: ")]
    assert len(lines) <= 1 and "Traceback" not in error, error
    return ended.value.code, "".join(lines)
