"""experiments/separability.py: what a plane can tell, and what it cannot."""

import math
import sys

import pytest
import torch

from conftest import ROOT

sys.path.append(str(ROOT / "experiments"))                     # last: it has a morph.py of its own
import separability


def test_a_plane_is_found_where_there_is_one():
    """Lesson: a direction that decides leaves no doubt: H(Y|X) = 0. Where two decide together, one
    of them alone says nothing, and a plane leaves all of the doubt: ln 2. After the bend that a
    mapping network would learn, a plane leaves hardly any. Judge: arithmetic."""
    torch.manual_seed(0)
    points = torch.randn(4000, 6) * torch.tensor([1.0, 100.0, 1.0, 1.0, 0.01, 1.0]) + 5
    x, y = points[:, 0] - 5, points[:, 1] - 5

    def doubt(cloud, labels):
        normal, offset = separability.fit_plane(cloud, labels)
        return separability.conditional_entropy(cloud.double() @ normal + offset > 0, labels)
    assert doubt(points, x > 0) < 0.03
    assert doubt(points, x * y > 0) > 0.98 * math.log(2)
    bent = torch.cat([points, (x * y)[:, None]], dim=1)
    assert doubt(bent, x * y > 0) < 0.1
    labels = torch.arange(4000) % 4 == 0                       # a quarter, whatever the point
    assert doubt(points, labels) == pytest.approx(separability.entropy(labels), rel=0.02)
    assert separability.entropy(labels) == pytest.approx(
        0.25 * math.log(4) + 0.75 * math.log(4 / 3))


def test_only_the_surer_half_counts():
    """Lesson: a face with half a beard says nothing about the space. Here the unsure half has its
    labels at random; without them nothing is doubtful. Control: made sure, they count."""
    torch.manual_seed(0)
    points = torch.randn(4000, 3)
    said = points[:, :1].sign() * 9
    said[::2] = torch.randn(2000, 1)
    assert separability.separability(points, said)[0] < 0.05
    said[::2] = said[::2].sign() * 9
    assert separability.separability(points, said)[0] > 0.3
