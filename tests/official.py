"""The official StyleGAN's variables, put into our networks (its layouts are told in the comments).

The arrays in tests/data were computed by the official TensorFlow networks with every parameter
random: 32x32, z 48, w 40, mapping layers of 56, widths 32 32 16 8.
"""

import contextlib
import pathlib
import pickle
import sys
import types

import numpy as np
import torch

import stylegan_models as models

DATA = pathlib.Path(__file__).parent / "data"
SETTINGS = dict(resolution=32, channel_base=128, channel_max=32, latent_dim=48, style_dim=40,
                mapping_dim=56, mapping_layers=8)


def load(name):
    with np.load(DATA / f"official_stylegan_{name}.npz") as arrays:
        return {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in arrays.files}


def to_ours(official, shape):
    """Convolutions are stored [kh, kw, in, out] there, dense weights [in, out]."""
    if official.dim() == 4 and official.shape != shape:
        official = official.permute(3, 2, 0, 1)
    elif official.dim() == 2:
        official = official.T
    assert official.shape == shape, (official.shape, shape)
    return official.contiguous()


def generator_names():
    """{our name: official name} for every parameter and buffer of G."""
    names = {"w_avg": "dlatent_avg"}
    for k in range(8):
        for part in ("weight", "bias"):
            names[f"mapping.layers.{k}.{part}"] = f"G_mapping/Dense{k}/{part}"
    for level, r in enumerate((4, 8, 16, 32)):
        for k in (0, 1):
            theirs = f"G_synthesis/{r}x{r}/" + (("Const", "Conv") if r == 4 else
                                                ("Conv0_up", "Conv1"))[k]
            ours = f"synthesis.blocks.{r}."
            layer = "const" if (r, k) == (4, 0) else f"conv{k}"
            names[f"{ours}{layer}.weight"] = theirs + ("/const" if layer == "const" else "/weight")
            names[f"{ours}{layer}.bias"] = theirs + "/bias"
            names[f"{ours}noise{k}.strength"] = theirs + "/Noise/weight"
            names[f"{ours}noise{k}.const"] = f"G_synthesis/noise{2 * level + k}"
            for part in ("weight", "bias"):
                names[f"{ours}adain{k}.style.{part}"] = f"{theirs}/StyleMod/{part}"
        for part in ("weight", "bias"):                        # lod 0 is the largest resolution
            names[f"synthesis.to_rgb.{r}.{part}"] = f"G_synthesis/ToRGB_lod{3 - level}/{part}"
    return names


def discriminator_names():
    """{our name: official name} for every parameter of D."""
    names = {}
    for level, r in enumerate((4, 8, 16, 32)):
        layers = {"conv": "Conv", "dense0": "Dense0", "dense1": "Dense1"} if r == 4 else {
            "conv0": "Conv0", "conv1": "Conv1_down"}
        for part in ("weight", "bias"):
            names[f"from_rgb.{r}.{part}"] = f"FromRGB_lod{3 - level}/{part}"
            for ours, theirs in layers.items():
                names[f"blocks.{r}.{ours}.{part}"] = f"{r}x{r}/{theirs}/{part}"
    return names


def networks():
    """(G, D) with the official variables."""
    G, D = models.make_generator(SETTINGS), models.make_discriminator(SETTINGS)
    for network, names, arrays in ((G, generator_names(), load("g")),
                                   (D, discriminator_names(), load("d"))):
        state = network.state_dict()
        assert set(state) == set(names)
        network.load_state_dict({ours: to_ours(arrays[theirs], state[ours].shape)
                                 for ours, theirs in names.items()})
    return G.eval(), D


# ---- the same as official files, for import_checkpoint.py ----


def variables(name):
    """The arrays of one npz as the official files hold them: numpy, lods added, in one dict."""
    arrays = {key: value.numpy() for key, value in load(name).items()}
    arrays["lod"] = np.float32(0)
    if name == "g":
        arrays["G_synthesis/lod"] = np.float32(0)
    return arrays


@contextlib.contextmanager
def official_class():
    """Within the block there is a class dnnlib.tflib.network.Network that pickle can name."""
    modules = {name: types.ModuleType(name)
               for name in ("dnnlib", "dnnlib.tflib", "dnnlib.tflib.network")}
    cls = type("Network", (), {"__module__": "dnnlib.tflib.network"})
    modules["dnnlib.tflib.network"].Network = cls
    sys.modules.update(modules)
    try:
        yield cls
    finally:
        for name in modules:
            del sys.modules[name]


def network(cls, builder, kwargs, arrays, parts=(), kind=dict):
    """An object with the state of an official network; parts: names of its sub-networks."""
    state = dict(version=3, name=builder, static_kwargs=kind(kwargs), components=kind(),
                 build_module_src="raise SystemExit('the source in the file was run')",
                 build_func_name=builder)
    own = dict(arrays)
    for part in parts:
        inner = {key.split("/", 1)[1]: own.pop(key) for key in list(own)
                 if key.startswith(f"G_{part}/")}
        state["components"][part] = network(cls, f"G_{part}", kwargs, inner)
    state["variables"] = list(own.items())
    made = cls()
    made.__dict__.update(state)
    return made


def pickled(G, D, Gs, kwargs_g, kwargs_d, protocol=4, builders=("G_style", "D_basic"),
            kind=dict):
    """The bytes of an official file with these variables, in which G's are named G_mapping/..."""
    with official_class() as cls:
        parts = ("synthesis", "mapping")
        networks = (network(cls, builders[0], kwargs_g, G, parts, kind),
                    network(cls, builders[1], kwargs_d, D, kind=kind),
                    network(cls, builders[0], kwargs_g, Gs, parts, kind))
        return pickle.dumps(networks, protocol=protocol)
