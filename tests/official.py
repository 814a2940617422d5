"""The official networks' variables, put into ours (their layouts are told in the comments).

The arrays in tests/data were computed by the official networks with every parameter random: 32x32,
z 48, w 40, widths 32 32 16 8. official_stylegan_*: StyleGAN in TensorFlow, mapping layers of 56.
official_stylegan2.pkl: StyleGAN2 (config F) in TensorFlow, mapping layers of 56; its numbers are in
sg2tf.npz. official_stylegan2_ada.pkl: StyleGAN2 in PyTorch (stylegan2-ada-pytorch), mapping layers
of 40; sg2ada.npz.
"""

import contextlib
import pathlib
import pickle
import re
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


# ---- StyleGAN2 ----
#
# The variables are read from the pickles, by Python's own unpickler, and renamed here: another way
# than import_checkpoint.py's. Of a gradient sg2ada.npz has its largest size, its length, and 48 of
# its numbers (`picked`).

ADA_SETTINGS = {**SETTINGS, "architecture": "stylegan2", "mapping_dim": 40}
TF_SETTINGS = {**SETTINGS, "architecture": "stylegan2"}


def load_stylegan2(name):
    """The numbers that were computed with the networks; name: "ada" or "tf"."""
    with np.load(DATA / f"sg2{name}.npz") as arrays:
        return {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in arrays.files}


def stylegan2_variables(name):
    """{"G": {official name: tensor}, "D": ...}, but for what they do not use or we do not store."""
    if name == "ada":
        import ada                                     # which imports this file
        value = ada.load()
        found = {letter: value[letter].tensors() for letter in "GD"}
    else:
        with official_class():
            G, D, _ = pickle.loads((DATA / "official_stylegan2.pkl").read_bytes())
        found = {"G": dict(G.variables), "D": dict(D.variables)}
        for part, network in G.components.items():
            found["G"] |= {f"G_{part}/{key}": value for key, value in network.variables}
    return {letter: {key: torch.as_tensor(value) for key, value in arrays.items()
                     if key != "lod" and "resample_filter" not in key}
            for letter, arrays in found.items()}


def ada_name(ours):
    """The name in stylegan2-ada-pytorch of one of our variables."""
    name = re.sub(r"synthesis\.to_rgb\.(\d+)", r"synthesis.b\1.torgb", ours)
    name = re.sub(r"from_rgb\.(\d+)", r"b\1.fromrgb", name)
    name = re.sub(r"blocks\.(\d+)", r"b\1", name)
    for old, new in (("mapping.layers.", "mapping.fc"), ("w_avg", "mapping.w_avg"),
                     (".style.", ".affine."), (".noise.", ".noise_"), ("dense0", "fc"),
                     ("dense1", "out")):
        name = name.replace(old, new)
    return name


def tf_name(ours):
    """The name in TensorFlow's StyleGAN2."""
    noise = re.fullmatch(r"synthesis\.blocks\.(\d+)\.conv(\d)\.noise\.const", ours)
    if noise:                          # noise0: 4 px; noise1 and noise2: 8 px; and so on
        level = int(noise[1]).bit_length() - 3
        return f"G_synthesis/noise{2 * level - 1 + int(noise[2])}"
    name = re.sub(r"synthesis\.to_rgb\.(\d+)\.", r"synthesis.\1x\1/ToRGB/", ours)
    name = re.sub(r"from_rgb\.(\d+)\.", r"\1x\1/FromRGB/", name)
    name = re.sub(r"blocks\.(\d+)\.", r"\1x\1/", name)
    name = re.sub(r"mapping\.layers\.(\d+)\.", r"G_mapping/Dense\1/", name)
    for old, new in (("synthesis.", "G_synthesis/"), ("w_avg", "dlatent_avg"),
                     ("4x4/const", "4x4/Const/const"), ("4x4/conv1.", "4x4/Conv/"),
                     ("4x4/conv.", "4x4/Conv/"), ("4x4/dense0.", "4x4/Dense0/"),
                     ("4x4/dense1.", "Output/"), ("skip.", "Skip/"), ("style.", "mod_"),
                     ("noise.", "noise_")):
        name = name.replace(old, new)
    generator = name.startswith("G_")
    name = name.replace("conv0.", "Conv0_up/" if generator else "Conv0/")
    return name.replace("conv1.", "Conv1/" if generator else "Conv1_down/")


def from_ada(ours, array):
    """conv0's kernels are stored turned there; constants and maps have no axis of one."""
    if re.search(r"synthesis\.blocks\.\d+\.conv0\.weight", ours):
        array = array.flip(2, 3)
    return array


def from_tf(ours, array):
    """As `to_ours`; and what a style begins with is added at run time there."""
    if array.dim() == 4 and not re.search("const$", ours):
        array = array.permute(3, 2, 0, 1)
    elif array.dim() == 2:
        array = array.T
    return array + 1 if ours.endswith("style.bias") else array


def stylegan2_networks(name):
    """(G, D) with the variables of one of the official implementations, "ada" or "tf"."""
    settings, name_of, layout = {"ada": (ADA_SETTINGS, ada_name, from_ada),
                                 "tf": (TF_SETTINGS, tf_name, from_tf)}[name]
    arrays = stylegan2_variables(name)
    G, D = models.make_generator(settings), models.make_discriminator(settings)
    for letter, network in (("G", G), ("D", D)):
        state = network.state_dict()
        for ours, before in state.items():
            if ours != "path_length_mean":             # which no file of theirs has
                array = layout(ours, arrays[letter].pop(name_of(ours)))
                assert before.squeeze().shape == array.squeeze().shape, (ours, array.shape)
                state[ours] = array.reshape(before.shape)
        assert not arrays[letter], arrays[letter]      # all of theirs was used
        network.load_state_dict(state)
    return G.eval(), D


def picked(gradient):
    """What is stored of a gradient: its largest size, its length, and at most 48 of its numbers."""
    flat = gradient.flatten()
    at = np.linspace(0, flat.numel() - 1, min(flat.numel(), 48)).round().astype(int)
    return torch.cat([flat.abs().max()[None], flat.norm()[None], flat[at]])


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
