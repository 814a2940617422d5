"""What all tests share: the scripts can be imported, and every test starts from the same seed."""

import pathlib
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)


def relative(ours, judge):
    """The largest difference, in units of the judge's largest value."""
    return ((ours - judge).abs().max() / judge.abs().max()).item()
