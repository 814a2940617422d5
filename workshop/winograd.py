"""winograd.py: 3x3 convolutions on a CPU with a quarter of the multiplications.   (workshop)

Used by: fast_gradients.py, for wide layers in float32 on a CPU. A GPU's library does it by itself.
Source:  Winograd 1980; for networks: Lavin and Gray 2016 (arXiv 1509.09308), there F(4x4, 3x3).
Needs:   torch. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; I channels in, O channels out; H, W rows and columns of pixels;
         T tiles of 4x4 pixels in all images, N * H/4 * W/4.

In one dimension first. A kernel g of 3 numbers makes 4 outputs y from 6 inputs d,

    y[i] = g[0] d[i] + g[1] d[i+1] + g[2] d[i+2],        12 multiplications.

Polynomials do it with 6. Let g(p) = g[0] + g[1] p + g[2] p^2, and h(p) have any 4 coefficients h.
The product g(p) h(p) has 6 of them. They follow from its values at 6 points ("infinity" is one,
where the value is the last coefficient), and each value is one multiplication of numbers:

    coefficients of g h  =  E6^-1 [(E3 g) * (E4 h)],     En: n coefficients -> values at 6 points.

That is how g spreads h over 6 places. How it gathers 4 outputs from 6 inputs is the transpose,
since <d, coefficients of g h> = <y, h> for any h. So

    y  =  E4^T [(E3 g) * (E6^-T d)].

In two dimensions each of the matrices is applied to rows and to columns: a tile of 4x4 outputs
takes 36 multiplications instead of 144. Summed over channels, they are 36 products of matrices
[T, I] x [I, O]. What the small matrices add is little in wide layers, and too much in narrow ones.

The number <y, h> is linear in d, g and h. So the gradient of g stands there as well:
E3^T [(E4 h) * (E6^-T d)], h being the gradient of y. And that of d is a convolution with g turned.

Price:   at the points 2 and -2 large numbers are subtracted from each other. The results' rounding
         is some four times that of the plain way (1e-5 of the largest value, with 512 channels).
         With bfloat16 it would be too much. Through whole networks (64 px, 512 channels, random
         weights) nothing is seen of it: images are 7.4e-5 off those in float64, plainly 7.5e-5,
         for StyleGAN, and 1.8e-6, plainly 1.9e-6, for StyleGAN2.
[MACHINE] Measured on 2 cores of a server CPU (AVX-512, 32 MB of cache), milliseconds of the plain
         way and of this one, batch 16; the last pair is the kernel's gradient:
                512 channels  32 px    336  159    375  156
                512 channels  16 px     84   48    100   51
                256 channels  64 px    336  204    500  191
                192 channels  64 px    190  136    245  122
                128 channels  64 px     84   80    103   74
         Few pixels gain less: with 512 channels, 4096 in all take 85 and 47 ms, 2048 take 43 and
         32, and 1024 take 22 and 22.
         Rerun: python experiments/benchmark.py winograd
"""

import torch

POINTS = (0, 1, -1, 2, -2)
FEWEST_CHANNELS, FEWEST_PIXELS = 192, 4096
MOST_PIXELS = 32768           # at once: with 512 channels three arrays of 150 MB


def values(coefficients):
    """En of the opening, [6, n]: row p is (1, p, p^2, ..); the last row is infinity's."""
    rows = [[p ** k for k in range(coefficients)] for p in POINTS]
    infinity = [0] * (coefficients - 1) + [1]
    return torch.tensor([*rows, infinity], dtype=torch.float64)


def both_ways(matrix):
    """[m, n] for lines -> [m*m, n*n] for pictures whose pixels are counted row by row."""
    return torch.kron(matrix, matrix)


KERNEL = both_ways(values(3))                                              # [36, 9]
OUTPUT = both_ways(values(4))                                              # [36, 16]
INPUT = both_ways(torch.linalg.inv(values(6)).t())                         # [36, 36]


def pays(x, kernel_shape, stride, padding):
    """Is this way possible for x [N, I, H, W] (CPU, float32, whole tiles, 3x3), and faster?"""
    n, _, h, w = x.shape
    return (x.device.type == "cpu" and x.dtype == torch.float32
            and tuple(kernel_shape[2:]) == (3, 3) and (stride, padding) == (1, 1)
            and min(kernel_shape[:2]) >= FEWEST_CHANNELS and n * h * w >= FEWEST_PIXELS
            and h % 4 == w % 4 == 0 and x.is_contiguous(memory_format=torch.channels_last))


def input_tiles(x):
    """x [N, I, H, W] -> E6^-T d of each tile, [36, T, I]. Tiles of 6x6 overlap by 2 pixels."""
    n, i, h, w = x.shape
    x = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))     # [N, H+2, W+2, I]
    image, row, pixel, _ = x.stride()
    tiles = x.as_strided((6, 6, n, h // 4, w // 4, i), (row, pixel, image, 4 * row, 4 * pixel, 1))
    return (INPUT.to(x) @ tiles.reshape(36, -1)).view(36, -1, i)


def output_tiles(y):
    """y [N, O, H, W] -> [16, T * O]: the 4x4 pixels of each tile."""
    n, o, h, w = y.shape
    tiles = y.permute(0, 2, 3, 1).reshape(n, h // 4, 4, w // 4, 4, o)
    return tiles.permute(2, 4, 0, 1, 3, 5).reshape(16, -1)


def from_output_tiles(tiles, n, h, w):
    """The way back from `output_tiles`: [16, T * O] -> [N, O, H, W], channels last in memory."""
    tiles = tiles.view(4, 4, n, h // 4, w // 4, -1).permute(2, 3, 0, 4, 1, 5)
    return tiles.reshape(n, h, w, -1).contiguous().permute(0, 3, 1, 2)


def parts(*images):
    """Cut batches into parts of a few images: the arrays have 36 numbers a tile."""
    at_once = max(1, MOST_PIXELS // images[0][0, 0].numel())
    return zip(*(batch.split(at_once) for batch in images))


def convolve(x, kernel):
    """F.conv2d(x, kernel, padding=1). x [N, I, H, W], kernel [O, I, 3, 3] -> [N, O, H, W].

    Proved: tests/test_winograd.py::test_convolution_in_float64_is_the_plain_one
    """
    o, i = kernel.shape[:2]
    taps = kernel.permute(2, 3, 0, 1).reshape(9, -1)                       # [9, O * I]
    kernel = (KERNEL.to(x) @ taps).view(36, o, i).transpose(1, 2)          # [36, I, O]
    results = []
    for x, in parts(x):
        n, _, h, w = x.shape
        sums = torch.bmm(input_tiles(x), kernel)                           # [36, T, O]
        results.append(from_output_tiles(OUTPUT.t().to(x) @ sums.flatten(1), n, h, w))
    return results[0] if len(results) == 1 else torch.cat(results)


def kernel_gradient(x, grad):
    """The gradient of `kernel` in `convolve`. x [N, I, H, W], grad [N, O, H, W] -> [O, I, 3, 3].

    Proved: tests/test_winograd.py::test_kernel_gradient_in_float64_is_the_plain_one
    """
    o, i = grad.shape[1], x.shape[1]
    sums = x.new_zeros(36, o, i)
    for x, grad in parts(x, grad):
        spread = (OUTPUT.to(x) @ output_tiles(grad)).view(36, -1, o)       # [36, T, O]
        sums.baddbmm_(spread.transpose(1, 2), input_tiles(x))
    taps = KERNEL.t().to(x) @ sums.flatten(1)                              # [9, O * I]
    return taps.view(3, 3, o, i).permute(2, 3, 0, 1)
