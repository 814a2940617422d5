"""stylegan2-ada-pytorch: its file in tests/data, changed at will, and its networks in plain torch.

The file has the structure of the public ones and no source text: 32x32, z 48, w 40, widths 32 32 16
8, every parameter random. The restatement is written down from the description of the maths, in
float64, for as many layers and limits as a file may have.
"""

import contextlib
import io
import math
import pickle
import sys
import types

import torch
import torch.nn.functional as F

import official

FILE = official.DATA / "official_stylegan2_ada.pkl"


class Module:
    """What the file wants rebuilt by executing its source: here it stays what was to be rebuilt."""

    def __init__(self, meta):
        self.meta = meta

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)

    def __getitem__(self, path):
        """The module "synthesis.b4.conv1", say; "" is itself."""
        for name in path.split(".") if path else ():
            self = self.meta["state"]["_modules"][name]
        return self

    def all(self, path=""):
        """Yield (path, state) of this module and of all below it."""
        yield path, self.meta["state"]
        for name, module in self.meta["state"]["_modules"].items():
            yield from module.all(f"{path}.{name}".lstrip("."))

    def tensors(self):
        """{name: parameter or buffer}, as state_dict names them."""
        return {f"{path}.{name}".lstrip("."): tensor.detach() for path, state in self.all()
                for table in (state["_parameters"], state["_buffers"])
                for name, tensor in table.items() if tensor is not None}


class EasyDict(dict):
    __module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta):
    return Module(meta)


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextlib.contextmanager
def classes():
    """Within the block, pickle finds what the files ask for."""
    modules = {name: types.ModuleType(name)
               for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")}
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict = EasyDict
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def load():
    with classes():
        return pickle.loads(FILE.read_bytes())


def pickled(change=None, protocol=4, new_storages=False):
    """The bytes of the file after `change(its value)`; new_storages: in the newer format inside."""
    class Pickler(pickle.Pickler):
        def reducer_override(self, thing):
            if not (new_storages and isinstance(thing, torch.storage.TypedStorage)):
                return NotImplemented
            inside = io.BytesIO()
            torch.save(thing, inside)
            return torch.storage._load_from_bytes, (inside.getvalue(),)
    value, out = load(), io.BytesIO()
    if change:
        change(value)
    with classes():
        Pickler(out, protocol).dump(value)
    return out.getvalue()


# ---- the networks ----


def fir(x, pad, gain=1.0):
    row = torch.tensor([1.0, 3, 3, 1], dtype=x.dtype)
    kernel = (gain * torch.outer(row, row) / 64).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, pad), kernel, groups=x.shape[1])


def act(x, bias, clamp, gain=1.0):
    x = F.leaky_relu(x + bias[:, None, None], 0.2) * math.sqrt(2) * gain
    return x if clamp is None else torch.clamp(x, -clamp * gain, clamp * gain)


def dense(x, v, name, gain=1.0):
    weight = v[f"{name}.weight"]
    return x @ weight.T * gain / math.sqrt(weight.shape[1]) + v[f"{name}.bias"] * gain


def mapping(v, z):
    x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
    k = 0
    while f"mapping.fc{k}.weight" in v:
        x = F.leaky_relu(dense(x, v, f"mapping.fc{k}", 0.01), 0.2) * math.sqrt(2)
        k += 1
    return x


def modulated(x, weight, styles, demodulate, up=False):
    """Image by image: the kernel times the style, its size divided out, one convolution."""
    images = []
    for image, style in zip(x, styles):
        kernel = weight * style[:, None, None]
        if demodulate:
            kernel = kernel * torch.rsqrt(kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        if up:
            image = F.conv_transpose2d(image[None], kernel.transpose(0, 1), stride=2)
            images.append(fir(image, (1, 1, 1, 1), gain=4))
        else:
            images.append(F.conv2d(image[None], kernel, padding=weight.shape[2] // 2))
    return torch.cat(images)


def generate(v, z=None, ws=None, clamp=None):
    """Images from z, or from ws [N, L, S], with the noise that is stored."""
    v = {name: tensor.double() for name, tensor in v.items()}
    if ws is None:
        ws = mapping(v, z.double())[:, None].expand(-1, 100, -1)
    ws, x, image, r, at = ws.double(), v["synthesis.b4.const"], None, 4, 0
    x = x[None].expand(len(ws), -1, -1, -1)
    while f"synthesis.b{r}.torgb.weight" in v:
        b = f"synthesis.b{r}"
        for conv in ("conv1",) if r == 4 else ("conv0", "conv1"):
            n = f"{b}.{conv}"
            x = modulated(x, v[f"{n}.weight"], dense(ws[:, at], v, f"{n}.affine"), True,
                          up=conv == "conv0")
            x = x + v[f"{n}.noise_const"] * v[f"{n}.noise_strength"]
            x, at = act(x, v[f"{n}.bias"], clamp), at + 1
        style = dense(ws[:, at], v, f"{b}.torgb.affine") / math.sqrt(x.shape[1])
        rgb = modulated(x, v[f"{b}.torgb.weight"], style, False)
        rgb = rgb + v[f"{b}.torgb.bias"][:, None, None]
        rgb = rgb if clamp is None else torch.clamp(rgb, -clamp, clamp)
        if image is not None:
            zeros = torch.zeros(len(image), 3, r, r, dtype=image.dtype)
            zeros[:, :, ::2, ::2] = image
            rgb = rgb + fir(zeros, (2, 1, 2, 1), gain=4)
        image, r = rgb, 2 * r
    return image


def score(v, x, clamp=None):
    """Scores of images, compared with each other in groups of 4."""
    v, x = {name: tensor.double() for name, tensor in v.items()}, x.double()
    scaled = lambda name: v[f"{name}.weight"] / math.sqrt(v[f"{name}.weight"][0].numel())
    r, half = x.shape[-1], math.sqrt(0.5)
    x = act(F.conv2d(x, scaled(f"b{r}.fromrgb")), v[f"b{r}.fromrgb.bias"], clamp)
    while r > 4:
        b = f"b{r}"
        short = F.conv2d(fir(x, (1, 1, 1, 1)), scaled(f"{b}.skip"), stride=2) * half
        x = act(F.conv2d(x, scaled(f"{b}.conv0"), padding=1), v[f"{b}.conv0.bias"], clamp)
        x = F.conv2d(fir(x, (2, 2, 2, 2)), scaled(f"{b}.conv1"), stride=2)
        x, r = short + act(x, v[f"{b}.conv1.bias"], clamp, gain=half), r // 2
    n, group = len(x), min(4, len(x))
    y = x.reshape(group, n // group, *x.shape[1:])
    y = torch.sqrt(y.var(0, unbiased=False) + 1e-8).mean((1, 2, 3))
    x = torch.cat([x, y.repeat(group)[:, None, None, None].expand(-1, 1, 4, 4)], 1)
    x = act(F.conv2d(x, scaled("b4.conv"), padding=1), v["b4.conv.bias"], clamp)
    x = F.leaky_relu(dense(x.flatten(1), v, "b4.fc"), 0.2) * math.sqrt(2)
    return dense(x, v, "b4.out")
