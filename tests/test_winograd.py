"""workshop/winograd.py: the plain convolution judges the one with a quarter of the products."""

import pytest
import torch
import torch.nn.functional as F

from conftest import relative
from workshop import fast_gradients as fast
from workshop import winograd

LAST = torch.channels_last


def pictures(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).contiguous(memory_format=LAST)


def plain_gradient(x, kernel, grad):
    kernel = kernel.detach().requires_grad_()
    return torch.autograd.grad(F.conv2d(x, kernel, padding=1), kernel, grad)[0]


def test_a_product_of_polynomials_from_six_values():
    """Lesson: (1 + 2p + 3p^2) (p^3) = p^3 + 2p^4 + 3p^5, from six multiplications of values."""
    g = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    h = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    products = (winograd.values(3) @ g) * (winograd.values(4) @ h)         # [6]
    coefficients = torch.linalg.inv(winograd.values(6)) @ products
    assert torch.allclose(coefficients, torch.tensor([0, 0, 0, 1, 2, 3.0], dtype=torch.float64))
    assert products.shape == (6,)                              # and not 3 * 4
    # control: five points are too few for a polynomial of degree 5
    assert torch.linalg.matrix_rank(winograd.values(6)[:5]) == 5


@pytest.mark.parametrize("n, height, width", [(2, 4, 4), (3, 8, 12)])
def test_convolution_in_float64_is_the_plain_one(n, height, width):
    """Lesson: another order of the same sums; tiles overlap, and beyond the border are zeros."""
    x, kernel = pictures(n, 5, height, width), pictures(7, 5, 3, 3)
    ours = winograd.convolve(x, kernel)
    assert relative(ours, F.conv2d(x, kernel, padding=1)) < 1e-13
    assert ours.is_contiguous(memory_format=LAST)
    assert relative(ours, F.conv2d(x, kernel.flip(2, 3), padding=1)) > 0.1             # control


@pytest.mark.parametrize("n, height, width", [(2, 4, 4), (3, 8, 12)])
def test_kernel_gradient_in_float64_is_the_plain_one(n, height, width):
    """Lesson: one number is linear in image, kernel and result, so the gradient stands in it."""
    x, kernel, grad = pictures(n, 5, height, width), pictures(7, 5, 3, 3), pictures(
        n, 7, height, width)
    ours, judge = winograd.kernel_gradient(x, grad), plain_gradient(x, kernel, grad)
    assert relative(ours, judge) < 1e-13
    assert relative(ours.flip(2, 3), judge) > 0.1              # control


def test_some_images_at_a_time_make_the_same(monkeypatch):
    """Lesson: what is needed at once is bounded; parts are put together, gradients added up."""
    x, kernel, grad = pictures(5, 4, 8, 8), pictures(6, 4, 3, 3), pictures(5, 6, 8, 8)
    whole = winograd.convolve(x, kernel), winograd.kernel_gradient(x, grad)
    sizes, tiles = [], winograd.input_tiles
    monkeypatch.setattr(winograd, "MOST_PIXELS", 2 * 64)
    monkeypatch.setattr(winograd, "input_tiles", lambda x: sizes.append(len(x)) or tiles(x))
    parts = winograd.convolve(x, kernel), winograd.kernel_gradient(x, grad)
    assert sizes == [2, 2, 1] * 2
    assert all(relative(a, b) < 1e-13 for a, b in zip(parts, whole))


def test_rounding_is_some_four_times_that_of_the_plain_way():
    """Lesson: the price; and why bfloat16, whose rounding is 65,000 times as large, is refused."""
    x, kernel = pictures(1, 512, 16, 16), pictures(64, 512, 3, 3)
    judge = F.conv2d(x, kernel, padding=1)
    plain = relative(F.conv2d(x.float(), kernel.float(), padding=1).double(), judge)
    ours = relative(winograd.convolve(x.float(), kernel.float()).double(), judge)
    assert plain / 2 < ours < 16 * plain and ours < 5e-5
    low = winograd.convolve(x.bfloat16(), kernel.bfloat16()).double()
    assert relative(low, judge) > 0.1                          # nothing is left of the picture


def test_it_is_used_where_it_pays_and_is_right():
    """Lesson: a CPU, float32, wide layers, many pixels, whole tiles, channels last, 3x3."""
    wide = (winograd.FEWEST_CHANNELS, winograd.FEWEST_CHANNELS, 3, 3)

    def pays(shape=(4, wide[1], 32, 32), kernel=wide, stride=1, padding=1, dtype=torch.float32,
             memory_format=LAST, device=None):
        x = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
        return winograd.pays(x, kernel, stride, padding)
    assert pays()
    assert not pays((3, wide[1], 32, 32))
    assert not pays((4, wide[1], 34, 32)) and not pays((4, wide[1], 32, 34))
    assert not pays(kernel=(wide[0], wide[1], 1, 1), padding=0) and not pays(stride=2)
    assert not pays(kernel=(wide[0] - 1, *wide[1:])) and not pays(padding=0)
    assert not pays(dtype=torch.bfloat16) and not pays(dtype=torch.float64)
    assert not pays(memory_format=torch.contiguous_format) and not pays(device="meta")


def test_convolve_and_its_derivatives_are_the_same_either_way(monkeypatch):
    """Lesson: who computes a convolution is a question below its derivatives; R1's are kept."""
    def numbers(up):
        torch.manual_seed(0)
        x, kernel = (pictures(*shape, dtype=torch.float32).requires_grad_()
                     for shape in ((2, 6, 8, 8), (6, 6, 3, 3)))
        y = fast.convolve(x, kernel, torch.arange(6.0), up=up, scale=0.5)
        first, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return [y, first, *torch.autograd.grad(first.square().sum(), (x, kernel))]
    for up in (False, True):
        plain = numbers(up)
        with monkeypatch.context() as changed:
            used, convolve = [], winograd.convolve
            changed.setattr(winograd, "FEWEST_CHANNELS", 1)
            changed.setattr(winograd, "FEWEST_PIXELS", 1)
            changed.setattr(winograd, "convolve", lambda *a: used.append(1) or convolve(*a))
            ours = numbers(up)
        assert used
        assert all(relative(a, b) < 1e-5 for a, b in zip(ours, plain))
        assert not all(torch.equal(a, b) for a, b in zip(ours, plain))     # control: another way
        assert [a.stride() for a in ours] == [b.stride() for b in plain]   # and the same layout
