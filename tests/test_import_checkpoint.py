"""import_checkpoint.py: official numbers out of official files; and nothing in a file is run."""

import argparse
import collections
import copyreg
import io
import json
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import import_checkpoint
import official
import stylegan_models as models
import train
from conftest import ROOT, relative
from conftest import refused as refused_by
from import_checkpoint import Named, import_file
from workshop import checkpoints, options
from workshop.run import new_samples

PARITY = 2e-5            # as in test_models.py; asked for are 1e-4
KWARGS_D = dict(num_channels=3, resolution=16, label_size=0, fmap_base=32, fmap_max=6)
KWARGS_G = dict(KWARGS_D, latent_size=7, dlatent_size=5, mapping_fmaps=6, mapping_layers=2)


def networks_of(path):
    """(G, D, Gs) of a file, through the program's own tables."""
    settings, _, generator, discriminator, generator_ema = import_file(path)
    G, D, Gs = (models.make_generator(settings), models.make_discriminator(settings),
                models.make_generator(settings))
    for network, state in ((G, generator), (D, discriminator), (Gs, generator_ema)):
        network.load_state_dict(state)
    return G.eval(), D.eval(), Gs.eval()


@pytest.fixture(scope="module")
def official_file():
    """A small file with the structure of the real ones: every parameter random, 32 px."""
    return official.DATA / "official_stylegan.pkl"


@pytest.fixture(scope="module")
def nets(official_file):
    return networks_of(official_file)


@pytest.fixture(scope="module")
def tiny():
    """The bytes of an official file of 16 px, small enough to be damaged in hundreds of ways."""
    rng = np.random.default_rng(0)
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    return official.pickled(drawn(rng, shapes_g), drawn(rng, shapes_d), drawn(rng, shapes_g),
                            KWARGS_G, KWARGS_D)


def drawn(rng, shapes):
    """{name: random array} of these shapes, at the end of training: lod 0."""
    arrays = {name: rng.standard_normal(shape).astype(np.float32)
              for name, shape in shapes.items()}
    return {name: np.float32(0) if name.endswith("lod") else array
            for name, array in arrays.items()}


def official_shapes(resolution, kwargs):
    """{official name: shape} for G and D, written down from the description of the format."""
    width = lambda r: min(2 * kwargs["fmap_base"] // r, kwargs["fmap_max"])
    S, sizes = kwargs["dlatent_size"], [kwargs["latent_size"]] + [
        kwargs["mapping_fmaps"]] * (kwargs["mapping_layers"] - 1) + [kwargs["dlatent_size"]]
    g = {"lod": (), "dlatent_avg": (S,), "G_synthesis/lod": ()}
    d = {"lod": ()}
    for k in range(kwargs["mapping_layers"]):
        g |= {f"G_mapping/Dense{k}/weight": (sizes[k], sizes[k + 1]),
              f"G_mapping/Dense{k}/bias": (sizes[k + 1],)}
    rs = [4]
    while rs[-1] < resolution:
        rs.append(2 * rs[-1])
    for level, r in enumerate(rs):
        C, lod = width(r), len(rs) - 1 - level
        for k, layer in enumerate(("Const", "Conv") if r == 4 else ("Conv0_up", "Conv1")):
            at = f"G_synthesis/{r}x{r}/{layer}"
            weight = {"Const": (1, C, 4, 4), "Conv0_up": (3, 3, width(r // 2), C)}
            g |= {f"G_synthesis/noise{2 * level + k}": (1, 1, r, r),
                  f"{at}/{'const' if layer == 'Const' else 'weight'}":
                      weight.get(layer, (3, 3, C, C)),
                  f"{at}/bias": (C,), f"{at}/Noise/weight": (C,),
                  f"{at}/StyleMod/weight": (S, 2 * C), f"{at}/StyleMod/bias": (2 * C,)}
        g |= {f"G_synthesis/ToRGB_lod{lod}/weight": (1, 1, C, 3),
              f"G_synthesis/ToRGB_lod{lod}/bias": (3,)}
        d |= {f"FromRGB_lod{lod}/weight": (1, 1, 3, C), f"FromRGB_lod{lod}/bias": (C,)}
        if r == 4:
            d |= {"4x4/Conv/weight": (3, 3, C + 1, C), "4x4/Conv/bias": (C,),
                  "4x4/Dense0/weight": (16 * C, width(2)), "4x4/Dense0/bias": (width(2),),
                  "4x4/Dense1/weight": (width(2), 1), "4x4/Dense1/bias": (1,)}
        else:
            d |= {f"{r}x{r}/Conv0/weight": (3, 3, C, C), f"{r}x{r}/Conv0/bias": (C,),
                  f"{r}x{r}/Conv1_down/weight": (3, 3, C, width(r // 2)),
                  f"{r}x{r}/Conv1_down/bias": (width(r // 2),)}
    return g, d


def refused(path, capsys, *more):
    """Run the program on a bad file, check the form of its refusal, return the sentence."""
    code, line = refused_by(import_checkpoint.main, [path, *more], capsys)
    assert code == 2 and len(line) < 600, line
    return line


# ---- 1. the networks ----


def test_the_official_file_gives_the_official_images(nets):
    """Lesson: the third network of the file, Gs, is the one that pictures are made with."""
    G, _, Gs = nets
    io_g, io_gs = official.load("io"), official.load("gs_io")
    with torch.no_grad():
        assert relative(G(io_g["z"], noise_mode="const"), io_g["img_lod0"]) < PARITY
        z = io_gs["z"]
        image = Gs(z, noise_mode="const")
        assert relative(image, io_gs["img_lod0_psi1"]) < PARITY
        truncated = Gs(z, noise_mode="const", truncation_psi=0.7, truncation_cutoff=8)
        assert relative(truncated, io_gs["img_lod0_psi0.7cut8"]) < PARITY
        assert relative(image, io_gs["img_lod0_psi0.7cut8"]) > 0.01            # control
        assert relative(G(z, noise_mode="const"), io_gs["img_lod0_psi1"]) > 0.01


def test_the_official_file_gives_the_official_scores(nets):
    _, D, _ = nets
    io = official.load("io")
    with torch.no_grad():
        assert relative(D(io["img_lod0"]), io["score_lod0"]) < PARITY
        assert relative(D(io["x_real"][:3]), io["score_real_first3"]) < PARITY
        assert relative(D(io["x_real"].flip(3)[:3]), io["score_real_first3"]) > 1e-3  # control


@pytest.fixture(scope="module")
def at_128(tmp_path_factory):
    """Official networks of 128 px: a function fused_scale -> (G, D), and the official numbers.

    The numbers were computed by the official source code itself, run by TensorFlow 2.18 in its
    version 1 mode on a CPU (with transpositions around its convolutions, whose CPU versions only
    know NHWC): every parameter random, 6 channels, 4 at 128 px. `rows`: the pixels that were kept.
    """
    with np.load(official.DATA / "official_stylegan_128px.npz") as file:
        data = dict(file)
    for name in [name for name in data if "/noise" in name]:   # kept as bytes: multiples of 1/32
        data[name] = data[name].astype(np.float32) / 32
    parts = {net: {key[2:]: value for key, value in data.items() if key.startswith(f"{net}/")}
             for net in "GD"}
    kwargs_d = dict(num_channels=3, resolution=128, label_size=0, fmap_base=256, fmap_max=6)
    kwargs_g = dict(kwargs_d, latent_size=7, dlatent_size=5, mapping_fmaps=6, mapping_layers=2)

    def build(**fused):
        path = tmp_path_factory.mktemp("128") / "official.pkl"
        path.write_bytes(official.pickled(parts["G"], parts["D"], parts["G"],
                                          kwargs_g | fused, kwargs_d | fused))
        return networks_of(path)[:2]
    return build, {key: torch.from_numpy(value) for key, value in data.items()}


def crop(images, data):
    return images[:, :, data["rows"]][:, :, :, data["rows"]]


def test_networks_of_128_px_equal_the_official_ones(at_128):
    """Lesson: at 128 px the official up-convolution is another operation, and its kernels are
    stored mirrored. The 32 px file above cannot show that."""
    build, data = at_128
    G, D = build()
    x = torch.from_numpy(np.random.RandomState(1).standard_normal((4, 3, 128, 128))).float()
    with torch.no_grad():
        images = crop(G(data["z"], noise_mode="const"), data)
        assert relative(images, data["image"]) < PARITY
        truncated = G(data["z"], noise_mode="const", truncation_psi=0.7, truncation_cutoff=8)
        assert relative(crop(truncated, data), data["image_psi07"]) < PARITY
        fading = G(data["z"], noise_mode="const", alpha=0.6)
        assert relative(crop(fading, data), data["image_lod0.4"]) < PARITY
        assert relative(D(x), data["score"]) < PARITY
        # Control: unmirrored, the picture is another one.
        kernel = G.synthesis.blocks["128"].conv0.weight
        kernel.copy_(kernel.flip(2, 3))
        assert relative(crop(G(data["z"], noise_mode="const"), data), data["image"]) > 0.3


@pytest.mark.parametrize("fused", [True, False])
def test_every_setting_of_fused_scale_gives_the_official_images(at_128, fused):
    """Lesson: whether kernels are mirrored depends on an option in the file, not on the size."""
    build, data = at_128
    G, D = build(fused_scale=fused)
    with torch.no_grad():
        images = crop(G(data["z"], noise_mode="const"), data)
        assert relative(images, data[f"image_fused_{fused}"]) < PARITY
        assert relative(images, data["image"]) > 0.3                           # control


def test_a_transposed_convolution_applies_the_mirrored_kernel():
    """Lesson: why. In float64, by loops: nearest x2 and a correlation with the kernel k, against
    the official fused form: four shifted copies of k summed to 4x4, set down at every second
    pixel, one pixel of the overhang cut off at each side ("SAME")."""
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((5, 5)), rng.standard_normal((3, 3))

    def correlate(kernel):
        doubled = np.pad(x.repeat(2, 0).repeat(2, 1), 1)
        return np.array([[(doubled[i:i + 3, j:j + 3] * kernel).sum() for j in range(10)]
                         for i in range(10)])

    stamp = np.zeros((4, 4))
    for i in (0, 1):
        for j in (0, 1):
            stamp[i:i + 3, j:j + 3] += k
    fused = np.zeros((12, 12))
    for i in range(5):
        for j in range(5):
            fused[2 * i:2 * i + 4, 2 * j:2 * j + 4] += x[i, j] * stamp
    fused = fused[1:-1, 1:-1]
    assert np.allclose(fused, correlate(k[::-1, ::-1]), atol=1e-12)
    assert not np.allclose(fused, correlate(k), atol=0.1)                      # control


def test_tables_cover_every_parameter_once():
    """Lesson: a table that forgets a name would leave a random layer in a finished network."""
    settings = dict(resolution=64, channel_base=128, channel_max=8, latent_dim=7, style_dim=5,
                    mapping_dim=6, mapping_layers=3)
    for table, network in (
            (import_checkpoint.STYLEGAN_GENERATOR, models.make_generator(settings)),
            (import_checkpoint.STYLEGAN_DISCRIMINATOR, models.make_discriminator(settings))):
        rows = list(import_checkpoint.rows_of(table, 64, 3))
        assert sorted(row[0] for row in rows) == sorted(network.state_dict())
        assert len({row[1] for row in rows}) == len(rows)
        assert {row[2] for row in rows} <= set(import_checkpoint.LAYOUTS)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_whole_files_of_every_protocol_give_the_same_networks(tmp_path, tiny, protocol):
    """Lesson: protocol and kind of dict are matters of the writer's Python, not of the network."""
    rng, path = np.random.default_rng(0), tmp_path / "official.pkl"
    path.write_bytes(tiny)
    wanted = import_file(path)[2:]
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    G, D, Gs = drawn(rng, shapes_g), drawn(rng, shapes_d), drawn(rng, shapes_g)
    path.write_bytes(official.pickled(G, D, Gs, collections.OrderedDict(KWARGS_G), KWARGS_D,
                                      protocol, kind=collections.OrderedDict))
    for state, judge in zip(import_file(path)[2:], wanted):
        assert all(torch.equal(state[name], judge[name]) for name in judge)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_come_out_of_every_protocol(tmp_path, protocol):
    """Lesson: protocol 2 has no bytes and writes them as text; numpy 2 has renamed its modules."""
    rng = np.random.default_rng(0)
    arrays = {"whole": rng.standard_normal((3, 4)).astype(np.float32),
              "fortran": np.asfortranarray(rng.standard_normal((3, 4)).astype(np.float32)),
              "double": rng.standard_normal(5), "half": rng.standard_normal(5).astype(np.float16),
              "swapped": rng.standard_normal(5).astype(">f4"),
              "number": np.float32(2.5), "zero-dimensional": np.array(2.5, np.float32)}
    for old, new in ((b"numpy.core.", b"numpy._core."), (b"numpy._core.", b"numpy.core.")):
        raw = pickle.dumps(arrays, protocol)
        if protocol < 4:               # names end with a line break; later, they have a length
            raw = raw.replace(old, new)
        path = tmp_path / "arrays.pkl"
        path.write_bytes(raw)
        value, _ = import_checkpoint.read_anything(path)
        for name, array in arrays.items():
            ours = import_checkpoint.array_of(value[name])
            assert ours.shape == array.shape and np.array_equal(ours, array), name


def test_plain_values_come_out_as_pickle_gives_them(tmp_path):
    """Lesson: for plain values our machine and Python's agree, in every protocol."""
    shared = ["twice"]
    value = {"int": [0, 1, -1, 255, 65536, -2 ** 31, 2 ** 40, 2 ** 70], "float": [0.5, -1e300],
             "text": ["", "é\U0001F600", "x" * 300], "bytes": [b"", b"\x00\xff", b"y" * 300],
             "other": (None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
             "nested": {"a": {"b": [shared, shared]}}, 7: "number as key"}
    path = tmp_path / "plain.pkl"
    for protocol in range(6):
        if protocol < 3:
            value.pop("bytes", None)
        path.write_bytes(pickle.dumps(value, protocol))
        ours, names = import_checkpoint.read_anything(path)
        assert ours == value and names == set(), protocol
        assert ours["nested"]["a"]["b"][0] is ours["nested"]["a"]["b"][1]


# ---- 2. hostile files ----
#
# Each of these is a complete pickle that makes a folder when Python's own unpickler reads it.


def text(string):
    raw = str(string).encode()
    return b"X" + struct.pack("<I", len(raw)) + raw                            # BINUNICODE


def hostile_pickles(folder):
    """{the instruction that does the harm: the pickle}; each would make the folder `folder`."""
    argument = text(folder)
    mkdir = b"cos\nmkdir\n"                                                    # GLOBAL
    # NEWOBJ only makes objects of classes; a map object does what one wants once it is gone
    # through, and a new tuple goes through it.
    run_map = b"cbuiltins\ntuple\n" + b"cbuiltins\nmap\n" + mkdir + b"(" + argument + b"l"
    return {
        "REDUCE": b"\x80\x02" + mkdir + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + argument + b"\x85R.",
        "INST": b"(" + argument + b"ios\nmkdir\n.",
        "OBJ": b"(" + mkdir + argument + b"o.",
        "NEWOBJ": b"\x80\x02" + run_map + b"\x86\x81\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + run_map + b"\x86}\x92\x85}\x92.",
        # an object whose __setstate__ was put there by a first BUILD, called by a second
        "BUILD": (b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__setstate__") + mkdir + b"sb"
                  + argument + b"b."),
        "EXT1": b"\x80\x02\x82\xf1" + argument + b"\x85R.",
        "nested": (b"\x80\x02}" + text("a") + b"](K\x01" + mkdir + argument + b"\x85Res."),
        # how StyleGAN2-ADA's files bring their own source code along
        "persistence": (b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}"
                        + text("module_src") + text(f"import os; os.mkdir({str(folder)!r})")
                        + b"s\x85R."),
        "persistent id": b"\x80\x02" + mkdir + argument + b"\x85RQ.",          # BINPERSID
        # a pickle in a pickle: torch's way of sending tensors
        "bytes": (b"\x80\x03cpickle\nloads\nB" + (lambda inner: struct.pack("<I", len(inner))
                                                  + inner)(b"(" + argument + b"ios\nmkdir\n.")
                  + b"\x85R."),
    }


@pytest.fixture
def extension():
    """Extension number 241 means os.mkdir, here; a file needs no name then."""
    copyreg.add_extension("os", "mkdir", 241)
    yield
    copyreg.remove_extension("os", "mkdir", 241)


@pytest.fixture
def persistence(monkeypatch):
    """StyleGAN2-ADA's way of opening its files, in one line."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = lambda meta: exec(meta["module_src"], {})
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)


def wrapped(raw, tiny):
    """{how: bytes}: the pickle by itself, in PyTorch files, and inside a sound official file."""
    zipped, opened = io.BytesIO(), raw.removeprefix(raw[:2]) if raw[:1] == b"\x80" else raw
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
    old = b"".join(pickle.dumps(value, 2) for value in (
        0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + raw
    # The sound file's first network gets the harmful value among its options.
    at = tiny.index(b"num_channels") - 2
    assert tiny[at:at + 1] == b"\x8c"                                          # SHORT_BINUNICODE
    inside = tiny[:at] + text("extra") + opened[:-1] + tiny[at:]
    return {"alone": raw, "zip": zipped.getvalue(), "old": old, "inside": inside}


HOSTILE = list(hostile_pickles("x"))


@pytest.mark.parametrize("how", ["alone", "zip", "old", "inside"])
@pytest.mark.parametrize("instruction", HOSTILE)
def test_nothing_in_a_file_is_run(tmp_path, capsys, tiny, extension, persistence, instruction, how):
    """Lesson: a machine without the power to call cannot be talked into calling."""
    folder, path = tmp_path / "made by the file", tmp_path / "hostile.pkl"
    path.write_bytes(wrapped(hostile_pickles(folder)[instruction], tiny)[how])
    refused(path, capsys)
    assert sorted(os.listdir(tmp_path)) == ["hostile.pkl"]


@pytest.mark.parametrize("instruction", HOSTILE)
def test_the_same_files_do_run_with_pickle(tmp_path, extension, persistence, instruction):
    """Control: Python's own unpickler makes the folder from each of them."""
    class WithPersistentIds(pickle.Unpickler):
        def persistent_load(self, pid):
            return None
    folder = tmp_path / "made by the file"
    try:
        WithPersistentIds(io.BytesIO(hostile_pickles(folder)[instruction])).load()
    except Exception:                                  # some trip over the result, too late
        pass
    assert folder.is_dir()


def test_the_source_code_in_a_file_is_not_run(tmp_path, tiny):
    """Lesson: an official file holds source code; the official loader runs it, we do not."""
    assert b"raise SystemExit" in tiny
    path = tmp_path / "sound.pkl"
    path.write_bytes(tiny)
    assert import_checkpoint.main([str(path)]) == 0


def test_a_name_that_no_official_file_needs_is_refused(tmp_path, capsys, tiny):
    """Lesson: even where it would only be written down, it shows that the file is not genuine."""
    at = tiny.index(b"num_channels") - 2
    path = tmp_path / "odd.pkl"
    path.write_bytes(tiny[:at] + text("extra") + b"cos\nsystem\n" + tiny[at:])
    assert "os.system" in refused(path, capsys)
    path.write_bytes(tiny[:at] + text("extra") + b"ccollections\nOrderedDict\n)R" + tiny[at:])
    assert import_checkpoint.main([str(path)]) == 0                            # control


def test_only_names_that_an_official_file_needs_are_let_through(tmp_path, tiny):
    """Lesson: the list of names is short, and each is there because sound files ask for it. These
    files ask for them: two protocols, two numpys, three kinds of dict, two names of the class."""
    rng, path, asked = np.random.default_rng(0), tmp_path / "official.pkl", set()
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    G, D = drawn(rng, shapes_g), drawn(rng, shapes_d)
    ordered = official.pickled(G, D, G, KWARGS_G, KWARGS_D, 2, kind=collections.OrderedDict)
    for old, new in ((b"", b""), (b"cnumpy._core.", b"cnumpy.core."),
                     (b"cnumpy.core.", b"cnumpy._core."),
                     (b"ccollections\nOrderedDict\n", b"cdnnlib.util\nEasyDict\n"),
                     (b"cdnnlib.tflib.network\nNetwork\n", b"ctfutil\nNetwork\n")):
        path.write_bytes(ordered.replace(old, new))
        _, names = import_checkpoint.read_anything(path)
        import_file(path)                                                      # it is sound
        asked |= names
    assert asked == import_checkpoint.HARMLESS


# ---- 3. damaged files ----


def test_a_file_that_was_cut_off_is_refused(tmp_path, capsys, tiny):
    path = tmp_path / "cut.pkl"
    for length in [0, 1, 2, 5, 100, *range(200, len(tiny), len(tiny) // 40), len(tiny) - 1]:
        path.write_bytes(tiny[:length])
        assert "damaged" in refused(path, capsys)
    assert os.listdir(tmp_path) == ["cut.pkl"]


@pytest.mark.filterwarnings("ignore:invalid escape sequence")      # of pickletools, at bad letters
def test_hundreds_of_flipped_bits_never_crash_or_run_anything(tmp_path, tiny):
    """Lesson: whatever the damage, the answer is one sentence, or finite networks where a flip
    only changed a number (which nothing can notice)."""
    positions = [at for _, argument, at in pickletools.genops(tiny)
                 for at in range(at, at + (1 if isinstance(argument, bytes) else 3))]
    generator, path, sound = random.Random(0), tmp_path / "flipped.pkl", 0
    for _ in range(200):
        damaged = bytearray(tiny)
        for _ in range(generator.choice([1, 1, 3])):
            damaged[generator.choice(positions) % len(tiny)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            for state in import_file(path)[2:]:
                assert all(torch.isfinite(tensor).all() for tensor in state.values())
            sound += 1
        except checkpoints.CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
    assert 0 < sound < 100
    assert os.listdir(tmp_path) == ["flipped.pkl"]


HUGE = {
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2 ** 62) + b"few.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2 ** 40) + b"few.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2 ** 62) + b"few.",
    "number": b"\x80\x02\x8b" + struct.pack("<i", 2 ** 31 - 1) + b"few.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2 ** 62) + b"N.",
    "line": b"V" + b"x" * 10 ** 6,
    "digits": b"L" + b"9" * 9000 + b"L\n.",
    "dicts": b"\x80\x02" + b"}" * 10 ** 6 + b".",       # more instructions than are allowed
    "nested tuples": b"\x80\x02)" + b"\x85" * 60_000 + b".",
    "nested calls": b"\x80\x02cos\nmkdir\n" + b")R" * 45_000 + b".",
    "nested lists": b"\x80\x02" + b"]" * 45_000 + b"a" * 44_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "doubling": b"\x80\x02]q\x00" + b"".join(b"(h" + bytes([k]) + b"h" + bytes([k]) + b"lq"
                                              + bytes([k + 1]) for k in range(60)) + b".",
}


@pytest.mark.parametrize("claim", HUGE)
def test_huge_claims_are_refused_in_little_memory(tmp_path, capsys, claim):
    """Lesson: nine bytes can announce 2^62 more; believe the file's size, not its words."""
    path = tmp_path / "huge.pkl"
    path.write_bytes(HUGE[claim])
    tracemalloc.start()
    try:
        refused(path, capsys)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6, f"{peak / 1e6:.0f} MB"


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_limits_are_far_above_what_an_official_file_needs(tmp_path, monkeypatch, protocol):
    """Lesson: a limit that sound files meet is a fault. Here all are 4 to 10 times narrower."""
    # As many layers as the 1024 px networks, but narrow and with small noise maps: only read.
    kwargs = KWARGS_G | dict(resolution=1024, fmap_base=512, fmap_max=2, mapping_layers=8)
    G, D = ({name: np.ones(() if shape == () else (2,), np.float32) for name, shape in
             shapes.items()} for shapes in official_shapes(1024, kwargs))
    path = tmp_path / "official.pkl"
    path.write_bytes(official.pickled(G, D, dict(G), kwargs, KWARGS_D, protocol))
    monkeypatch.setattr(import_checkpoint, "MOST_INSTRUCTIONS", 20_000)
    monkeypatch.setattr(import_checkpoint, "LONGEST_LINE", 1_000)
    monkeypatch.setattr(import_checkpoint, "DEEPEST_TUPLE", 5)
    import_checkpoint.read_anything(path)
    monkeypatch.setattr(import_checkpoint, "MOST_INSTRUCTIONS", 2_000)         # control
    with pytest.raises(checkpoints.CheckpointError, match="more than 2000 instructions"):
        import_checkpoint.read_anything(path)


# Where a file can bring a tuple to where Python would hash or compare it; with the reason that a
# tuple of one level gets there, which has to be refused as well.
PLACES = {"key": "neither text nor a number", "variables": "not text", "static_kwargs": "not text",
          "components": "not text", "builder": "not named by text"}


def file_with_tuple(place, levels):
    """Three networks with the same tuple, so many levels deep, at one place of each."""
    def network(deep):
        body = {"static_kwargs": b"}", "variables": b"]", "components": b"}",
                "build_func_name": text("G_style")}
        if place == "key":
            body["static_kwargs"] = b"}" + deep + b"Ns"
        elif place == "builder":
            body["build_func_name"] = deep
        else:
            body[place] = b"]" + deep + b"N\x86a"                              # [(deep, None)]
        return b"cdnnlib.tflib.network\nNetwork\n)\x81}(" + b"".join(
            text(name) + value for name, value in body.items()) + b"ub"
    kept, again = b"r\x01\x00\x00\x00", b"j\x01\x00\x00\x00"                 # PUT, GET number 1
    first = network(b")" + b"\x85" * levels + kept)
    return b"\x80\x02" + first + 2 * network(again) + b"\x87."


@pytest.mark.parametrize("place", PLACES)
def test_a_tuple_where_text_should_be_is_refused(tmp_path, capsys, place):
    """Lesson: what is looked up or put into a dict is text; its kind is checked, not hoped for."""
    path = tmp_path / "odd.pkl"
    path.write_bytes(file_with_tuple(place, 1))
    assert PLACES[place] in refused(path, capsys)


def test_networks_of_many_parts_are_refused(tmp_path, capsys, tiny):
    """Lesson: one network can be called a part 1,000 times over in a few bytes; its variables would
    be listed as often. A part that has parts, itself perhaps, is refused for the same reason."""
    path = tmp_path / "parts.pkl"
    part = (b"cdnnlib.tflib.network\nNetwork\n)\x81r\x01\x00\x00\x00}(" + text("static_kwargs")
            + b"}" + text("variables") + b"]" + text("build_func_name") + text("G_style")
            + text("components"))
    again = lambda count: b"}(" + b"".join(
        text(k) + b"j\x01\x00\x00\x00" for k in range(count)) + b"u"
    many = part + b"}" + b"ub0" + part.replace(b"r\x01\x00\x00\x00", b"") + again(1000) + b"ub"
    for network in (many, part + again(1) + b"ub"):
        path.write_bytes(b"\x80\x02" + 3 * network + b"\x87.")
        assert "more parts than G's two halves" in refused(path, capsys)


def test_deeply_nested_tuples_do_not_crash_python(tmp_path):
    """Lesson: hash() of such a tuple ends the interpreter, and no `except` is asked. So the files
    are read by a process of its own, which says code 2 for each of them if it lives."""
    for place in PLACES:
        (tmp_path / f"{place}.pkl").write_bytes(file_with_tuple(place, 190_000))
    program = ("import glob, import_checkpoint; from workshop import options\n"
               "for path in sorted(glob.glob('*.pkl')):\n"
               "    try: options.start(import_checkpoint.main, 'test', argv=[path])\n"
               "    except SystemExit as ended: print('code', ended.code)")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True)
    assert done.returncode == 0 and done.stdout == len(PLACES) * "code 2\n", done
    assert done.stderr.count("nested more than 20 deep") == len(PLACES), done.stderr
    crash = "x = ()\nfor _ in range(190_000): x = (x,)\nhash(x)"
    done = subprocess.run([sys.executable, "-c", crash], capture_output=True)
    assert done.returncode < 0                                                 # control


def test_one_array_for_hundreds_of_layers_is_refused(tmp_path, capsys):
    """Lesson: a file may say once what stands at 300 places; the copies would take 260 MB."""
    path, width = tmp_path / "shared.pkl", 330
    big = np.zeros((width, width), np.float16)
    for layers, message in ((300, "cannot be in a file of"), (3, "")):
        kwargs = KWARGS_G | dict(mapping_layers=layers, mapping_fmaps=width)
        shapes_g, shapes_d = official_shapes(16, kwargs)
        G, D = ({name: big if shape == big.shape else np.zeros(shape, np.float32)
                 for name, shape in shapes.items()} for shapes in (shapes_g, shapes_d))
        if not message:                                # control: as large, each array its own
            G = {name: array.copy() for name, array in G.items()}
        path.write_bytes(official.pickled(G, D, G, kwargs, KWARGS_D))
        tracemalloc.start()
        try:
            error = refused(path, capsys) if message else import_file(path) and ""
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert message in error and peak < 20e6, (error, peak)


def test_the_whole_is_never_twice_in_memory(tmp_path, monkeypatch):
    """Lesson: letting go of an array as soon as it is copied saves the memory of a whole file."""
    wide = dict(fmap_base=2048, fmap_max=128)
    shapes_g, shapes_d = official_shapes(32, KWARGS_G | wide)
    draw = lambda shapes: {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    sizes = dict(wide, resolution=32)
    path = tmp_path / "official.pkl"
    path.write_bytes(official.pickled(draw(shapes_g), draw(shapes_d), draw(shapes_g),
                                      KWARGS_G | sizes, KWARGS_D | sizes))
    assert path.stat().st_size > 10e6          # large beside what Python needs for the names

    def peak():
        """What import_file needs at most, in sizes of the file. Counts bytes and numpy's arrays."""
        tracemalloc.start()
        try:
            import_file(path)
            return tracemalloc.get_traced_memory()[1] / path.stat().st_size
        finally:
            tracemalloc.stop()

    # once, and at one moment the largest array and its copy
    assert 1 < peak() < 1.3

    read, kept = import_checkpoint.read_anything, []

    def read_and_keep(path):
        value, names = read(path)
        kept.extend(note.state for note in import_checkpoint.all_notes(value)
                    if isinstance(note, Named))
        return value, names
    monkeypatch.setattr(import_checkpoint, "read_anything", read_and_keep)
    assert peak() > 1.7                                                        # control


@pytest.mark.parametrize("change", [
    dict(fmap_max=10 ** 15), dict(fmap_base=10 ** 6, fmap_max=10 ** 6),
    dict(mapping_layers=10 ** 9), dict(resolution=2 ** 40), dict(resolution=12),
    dict(latent_size=-1), dict(latent_size=1.5),
    dict(latent_size="many"), dict(dlatent_size=None), dict(fmap_max=float("nan")),
    dict(resolution=8), dict(resolution=32), dict(mapping_layers=1)])
def test_impossible_settings_are_refused(tmp_path, capsys, change):
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    zeros = lambda shapes: {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    path = tmp_path / "claims.pkl"
    for kwargs in (KWARGS_G, KWARGS_G | change):
        path.write_bytes(official.pickled(zeros(shapes_g), zeros(shapes_d), zeros(shapes_g),
                                          kwargs, KWARGS_D))
        if kwargs is KWARGS_G:
            import_file(path)                                                  # control
    refused(path, capsys)


def test_arrays_that_are_not_what_they_claim_are_refused(tmp_path, capsys):
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes_g.items()}
    D = {name: np.ones(shape, np.float32) for name, shape in shapes_d.items()}
    path, name = tmp_path / "odd.pkl", "G_mapping/Dense0/bias"
    for value, message in [
            (np.full(6, np.nan, np.float32), "not finite"), (np.ones(7, np.float32), "shape [7]"),
            (np.ones(6, np.int32), "floating"), (np.ones(6, object), "floating"),
            ("six ones", "damaged"), (None, "damaged")]:
        path.write_bytes(official.pickled(arrays | {name: value}, D, arrays, KWARGS_G, KWARGS_D))
        assert message in refused(path, capsys)
    del arrays[name]
    path.write_bytes(official.pickled(arrays, D, arrays, KWARGS_G, KWARGS_D))
    assert "lacks the variable mapping/Dense0/bias" in refused(path, capsys)
    arrays |= {name: np.ones(6, np.float32), "G_mapping/Dense9/bias": np.ones(6, np.float32)}
    path.write_bytes(official.pickled(arrays, D, arrays, KWARGS_G, KWARGS_D))
    assert "Dense9" in refused(path, capsys)


# ---- 4. other programs' files ----


def stub(path, **values):
    """A torch file whose dicts have these keys; the new format and the old one."""
    files = [path / f"{len(os.listdir(path))}-{kind}.pt" for kind in ("new", "old")]
    torch.save(values, files[0])
    torch.save(values, files[1], _use_new_zipfile_serialization=False)
    return files


def test_other_programs_files_are_refused_by_name(tmp_path, capsys, tiny):
    """Lesson: nearly the same network makes nearly the same pictures, which is worse than none."""
    weight = torch.zeros(1)
    rosinality = {"generator.progression.0.conv1.input": weight,
                  "generator.progression.1.conv1.1.conv.weight_orig": weight,
                  "style.1.linear.weight_orig": weight}
    humans = {"ur_face": weight, "blocks.0.0.noise_strength": weight, "toRGBs.0.weight": weight}
    later = {"convs.0.conv.modulation.weight": weight, "style.1.weight": weight}
    for files, message in [
            (stub(tmp_path, generator=rosinality, g_running=rosinality, g_optimizer={}),
             "rosinality/style-based-gan-pytorch: its up-convolutions add the bias before the "
             "blur"),
            (stub(tmp_path, **rosinality), "rosinality"),
            (stub(tmp_path, generator=humans, visualizer=humans, start_at=3),
             "StyleGAN-for-Humans: it adds noise of its own to every channel"),
            (stub(tmp_path, g_ema=later, g=later), "StyleGAN2"),
            (stub(tmp_path, format=1, architecture="stylegan", settings={}), "already"),
            (stub(tmp_path, fc={"weight": weight}), "no official StyleGAN file")]:
        for path in files:
            assert message in refused(path, capsys, tmp_path / "out.pt"), path

    # The official PyTorch files: notes that name their classes.
    persistent = b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}"
    for name, message in ((b"SynthesisBlock", "StyleGAN2"), (b"SynthesisInput", "StyleGAN3")):
        path = tmp_path / "ada.pkl"
        path.write_bytes(b"\x80\x02}" + text("G_ema") + persistent[2:] + text("class_name")
                         + text(name.decode()) + b"s\x85Rs.")
        assert message in refused(path, capsys)

    # The family's TensorFlow files, and what its options can turn on.
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    G, D = ({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
            for shapes in (shapes_g, shapes_d))
    path = tmp_path / "tf.pkl"
    for change, builders, message in [
            ({"label_size": 10}, ("G_style", "D_basic"), "class-conditional network (label_size"),
            ({}, ("G_main", "D_stylegan2"), "StyleGAN2"),
            ({}, ("G_paper", "D_paper"), "Progressive GAN"),
            ({}, ("G_mine", "D_mine"), "G_mine"),
            ({"num_channels": 1}, ("G_style", "D_basic"), "num_channels = 1"),
            ({"use_pixel_norm": True}, ("G_style", "D_basic"), "use_pixel_norm = True"),
            ({"blur_filter": None}, ("G_style", "D_basic"), "blur_filter = None"),
            ({"mbstd_group_size": 8}, ("G_style", "D_basic"), "mbstd_group_size = 8"),
            ({"fused_scale": "maybe"}, ("G_style", "D_basic"), "fused_scale = 'maybe'")]:
        path.write_bytes(official.pickled(G, D, G, KWARGS_G | change, KWARGS_D, 4, builders))
        assert message in refused(path, capsys), change
    labelled = G | {"G_mapping/LabelConcat/weight": np.zeros((3, 7), np.float32)}
    path.write_bytes(official.pickled(labelled, D, labelled, KWARGS_G, KWARGS_D))
    assert "class-conditional" in refused(path, capsys)


def test_a_file_cannot_write_to_the_terminal(tmp_path, capsys, tiny):
    """Lesson: names of a file are shown with their escape codes made visible; raw, they could
    clear the screen and write a second sentence."""
    evil, path = "\x1b[2Jall is well\n", tmp_path / "evil.pkl"
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    G, D = ({name: np.ones(shape, np.float32) for name, shape in shapes.items()}
            for shapes in (shapes_g, shapes_d))
    at = tiny.index(b"num_channels") - 2
    for raw in (
            official.pickled(G | {evil: np.ones(1)}, D, G, KWARGS_G, KWARGS_D),
            official.pickled(G, D, G, KWARGS_G | {"nonlinearity": evil}, KWARGS_D),
            official.pickled(G, D, G, KWARGS_G | {"fmap_base": evil}, KWARGS_D),
            official.pickled(G, D, G, KWARGS_G | {"label_size": evil}, KWARGS_D),
            official.pickled(G, D, G, KWARGS_G, KWARGS_D, builders=(evil, "D_basic")),
            tiny[:at] + text("extra") + b"\x8c\x02os" + text(evil) + b"\x93" + tiny[at:]):
        path.write_bytes(raw)
        assert "\x1b" not in refused(path, capsys)


# ---- 5. the program ----


def test_it_destroys_nothing(tmp_path, capsys, tiny, monkeypatch):
    path, out = tmp_path / "official.pkl", tmp_path / "model.pt"
    path.write_bytes(tiny)
    out.write_text("mine")
    assert "exists already" in refused(path, capsys, out)
    assert "exists already" in refused(path, capsys, path)
    assert "no such folder" in refused(path, capsys, tmp_path / "none" / "model.pt")
    assert "no such file" in refused(tmp_path / "none.pkl", capsys)
    assert "a folder" in refused(tmp_path, capsys, tmp_path / "new.pt")
    (tmp_path / "other.pt").write_text("no network")           # without MODEL: FILE itself, here
    assert "not a checkpoint" in refused(tmp_path / "other.pt", capsys)
    (tmp_path / "other.pt").write_bytes(tiny)
    assert "exists already" in refused(tmp_path / "other.pt", capsys)
    (tmp_path / "other.pt").unlink()
    monkeypatch.setattr(import_checkpoint.shutil, "disk_usage",
                        lambda folder: types.SimpleNamespace(free=1000))
    assert "the disk has 0 MB left" in refused(path, capsys)
    monkeypatch.undo()

    def disk_full(state, file):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", disk_full)
    assert "No space left" in refused(path, capsys)
    assert out.read_text() == "mine" and path.read_bytes() == tiny
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "official.pkl"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory, official_file):
    """The command as a user types it; the file it wrote."""
    out = tmp_path_factory.mktemp("imported") / "model.pt"
    done = subprocess.run([sys.executable, str(ROOT / "import_checkpoint.py"), str(official_file),
                           str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "32x32" in done.stdout and f"--resume {out}" in done.stdout
    return out


def test_an_imported_file_is_a_checkpoint_like_any_other(imported, nets):
    loaded = checkpoints.load_networks(imported, torch.device("cpu"))
    assert checkpoints.resumable(loaded.checkpoint)
    assert (loaded.resolution, loaded.alpha) == (32, 1.0)
    state = loaded.networks["generator_ema"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in nets[2].state_dict().items())
    # every option that train.py knows but the pictures, whatever the situation; and they are the
    # paper's, but for sizes and the clock
    paper = options.PRESETS["your pictures on a GPU"]
    run = loaded.checkpoint["options"]
    assert set(run) == (set(options.ALWAYS) | set(paper)) - {"data"}
    same = set(paper) - set(models.SETTINGS) - {"total_kimg", "workers"}
    assert {key: run[key] for key in same} == {key: paper[key] for key in same}


def test_the_sample_grid_is_that_of_a_new_run(imported):
    """Lesson: the faces of the grid are seed 0's, as in a run; the last row mixes two styles."""
    samples = checkpoints.load_checkpoint(imported)["samples"]
    settings = dict(resolution=32, styles_to_mix=2, latent_dim=48)
    wanted = new_samples(argparse.Namespace(**settings, seed=0))
    other = new_samples(argparse.Namespace(**settings, seed=1))                # control
    for key in ("z", "style_index"):
        assert torch.equal(samples[key], wanted[key]) and not torch.equal(samples[key], other[key])
    columns = samples["columns"]
    assert columns == wanted["columns"] and not samples["style_index"][:-columns].any()
    assert samples["style_index"][-columns:].any(dim=1).all()


def test_the_written_adam_has_not_made_a_step(imported):
    """Lesson: an Adam that has not made a step is its options; here torch makes one to compare.
    But which kernels it uses ("fused") is a matter of the machine, and is left open in a file."""
    checkpoint = checkpoints.load_checkpoint(imported)
    for part, make in (("g", models.make_generator), ("d", models.make_discriminator)):
        new = train.new_adam(make(checkpoint["settings"]))
        wanted, = new.state_dict()["param_groups"]
        written, = checkpoint[f"optimizer_{part}"]["param_groups"]
        assert written == {**wanted, "fused": None} and wanted["fused"]
        assert checkpoint[f"optimizer_{part}"]["state"] == {}
        new.load_state_dict(checkpoint[f"optimizer_{part}"])                   # it fits


def test_the_compiler_is_not_loaded(official_file, tmp_path):
    """Lesson: importing torch is not all; what it loads later on can cost more than the work."""
    loaded = "import sys; print('compiler loaded:', 'torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", "import import_checkpoint; "
         f"import_checkpoint.main([{str(official_file)!r}, 'model.pt']); {loaded}"],
        cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert "compiler loaded: False" in done.stdout, done.stderr
    torch.optim.Adam([torch.zeros(1)])
    assert "torch._dynamo" in sys.modules                                      # control


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures as --data, so that no faces have to be painted."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for k in range(12):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        image.save(folder / "pictures" / f"{k}.png")
    return ["--data", str(folder / "pictures"), "--cache", str(folder / "cache")]


@pytest.fixture(scope="module")
def fine_tuned(imported, pictures, tmp_path_factory):
    """The checkpoints before and after two steps of train.py, of 8 images each."""
    folder = tmp_path_factory.mktemp("fine-tuned") / "run"
    end = checkpoints.load_checkpoint(imported)["progress"]["nimg"] / 1000 + 0.016
    assert train.main(["--resume", str(imported), "--out", str(folder), "--total-kimg", str(end),
                       "--batch", "8", "--workers", "0", "--device", "cpu", *pictures]) == 0
    return [checkpoints.load_checkpoint(path) for path in (imported, folder / "checkpoint.pt")]


def test_fine_tuning_goes_on_at_the_final_resolution(fine_tuned):
    """Lesson: a run is resumed by its clock; the clock must stand where nothing grows any more."""
    before, after = fine_tuned
    assert after["progress"]["resolution"] == 32 and after["progress"]["phase"] == "stabilize"
    assert after["progress"]["nimg"] == 25_000_016 and after["progress"]["step"] == 2
    # Adam moves a number by about the learning rate in a step: the networks go on, they do not
    # begin anew.
    for part in ("generator", "discriminator"):
        moved = max((after[part][key] - before[part][key]).abs().max().item()
                    for key in before[part] if not key.endswith((".const", "w_avg")))
        assert 0 < moved < 0.02, part


def test_fine_tuning_keeps_the_average(fine_tuned):
    """Lesson: G_ema averages over 5 % of the images seen; a clock at 0 would forget it at once.
    In this file Gs is another network than G, so one sees how much of G came into it."""
    before, after = fine_tuned
    weights = [key for key in before["generator"] if not key.endswith((".const", "w_avg"))]
    flat = lambda checkpoint, part: torch.cat([checkpoint[part][key].flatten() for key in weights])
    way = flat(before, "generator") - flat(before, "generator_ema")
    moved = flat(after, "generator_ema") - flat(before, "generator_ema")
    # two steps of 8 images, and a half-life of 10,000
    assert (moved @ way / (way @ way)).item() == pytest.approx(1 - 0.5 ** (16 / 10_000), rel=0.05)
    assert train.ema_beta(8, 8, 10.0) < 1e-5           # control: the same at the start of a run


def test_without_data_an_imported_network_is_not_trained(imported, tmp_path, capsys, monkeypatch):
    """Lesson: nobody knows which pictures it learned; painted faces would ruin it silently."""
    monkeypatch.chdir(tmp_path)
    code, line = refused_by(train.main, ["--resume", imported, "--device", "cpu"], capsys)
    assert code == 2 and "--data" in line and os.listdir(tmp_path) == []


# ---- 6. snapshots from the middle of training ----


def snapshot(lod, lods=None):
    """The bytes of the official file of 32 px, kept at this lod (or at three of them)."""
    G, D, Gs = (official.variables(name) for name in ("g", "d", "g"))
    for net, value in zip((G, D, Gs), lods or [lod] * 3):
        for name in net:
            if name.endswith("lod"):
                net[name] = np.float32(value)
    sizes = dict(num_channels=3, resolution=32, label_size=0, fmap_base=128, fmap_max=32)
    kwargs = dict(sizes, latent_size=48, dlatent_size=40, mapping_fmaps=56, mapping_layers=8)
    return official.pickled(G, D, Gs, kwargs, sizes)


@pytest.mark.parametrize("lod, resolution, alpha", [
    ("0", 32, 1.0), ("0.3", 32, 0.7), ("1", 16, 1.0), ("1.5", 16, 0.5), ("2", 8, 1.0),
    ("2.75", 8, 0.25), ("3", 4, 1.0)])
def test_a_snapshot_of_the_middle_makes_the_official_pictures(tmp_path, lod, resolution, alpha):
    """Lesson: what is above its resolution is still random, and 32 px would show that."""
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(snapshot(float(lod)))
    assert import_checkpoint.main([str(path)]) == 0
    loaded = checkpoints.load_networks(tmp_path / "snapshot.pt", torch.device("cpu"),
                                       ("generator_ema", "discriminator"))
    assert loaded.resolution == resolution and loaded.alpha == pytest.approx(alpha, abs=1e-6)
    G, D = loaded.networks["generator_ema"], loaded.networks["discriminator"]
    io = official.load("io")
    with torch.no_grad():
        images = G(io["z"], noise_mode="const", resolution=loaded.resolution, alpha=loaded.alpha)
        assert relative(images, io[f"img_lod{lod}"]) < PARITY
        scores = D(io[f"img_lod{lod}"], loaded.alpha)
        assert relative(scores, io[f"score_lod{lod}"]) < PARITY
        if lod != "0":                                                         # control
            smaller = F.interpolate(G(io["z"], noise_mode="const"), images.shape[-1], mode="area")
            assert relative(smaller, io[f"img_lod{lod}"]) > 0.1


@pytest.mark.parametrize("resolution, lod", [
    (1024, 6.5), (1024, 7), (1024, 1.6), (1024, 0.001), (32, 1.6), (32, 3), (32, 2.4), (8, 0.25)])
def test_a_snapshot_of_the_middle_goes_on_where_it_stood(resolution, lod):
    """Lesson: lod and clock say the same in two languages; train.py's own schedule translates."""
    initial, nimg, now, phase, alpha = import_checkpoint.where_it_stood(resolution, lod)
    kimg = options.Table({4: 600.0})
    stage = train.stage_at(nimg, train.plan_stages(initial, resolution, kimg, kimg))
    assert (stage.resolution, stage.growing) == (now, phase == "fade")
    assert train.alpha_at(nimg, stage) == pytest.approx(alpha, abs=1e-5)
    assert now == resolution // 2 ** int(lod) and alpha == pytest.approx(1 - lod % 1)
    assert initial == min(8, now if phase == "stabilize" else now // 2) and nimg > 0


def test_a_resumed_snapshot_fades_on(tmp_path, pictures):
    """Lesson: all together: lod 1.5, one step of train.py, still 16 px and alpha 0.5."""
    path, folder = tmp_path / "snapshot.pkl", tmp_path / "run"
    path.write_bytes(snapshot(1.5))
    assert import_checkpoint.main([str(path)]) == 0
    nimg = checkpoints.load_checkpoint(tmp_path / "snapshot.pt")["progress"]["nimg"]
    assert train.main(["--resume", str(tmp_path / "snapshot.pt"), "--out", str(folder),
                       "--total-kimg", str(nimg / 1000 + 0.008), "--batch", "8", "--workers", "0",
                       "--device", "cpu", *pictures]) == 0
    assert nimg == 900_000                             # 600 kimg of 8 px, half of the fade to 16
    line = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert (line["resolution"], line["phase"]) == (16, "fade")
    assert line["alpha"] == pytest.approx(0.5, abs=1e-4)


def test_impossible_lods_are_refused(tmp_path, capsys):
    path = tmp_path / "odd.pkl"
    for lods, message in [([-0.5] * 3, "lod = -0.5"), ([3.5] * 3, "where 32 px have 0 to 3"),
                          ([float("nan")] * 3, "lod = nan"), ([0, 1, 0], "different lods"),
                          ([1.5, 1.5, 0], "different lods")]:
        path.write_bytes(snapshot(None, lods))
        assert message in refused(path, capsys)
    path.write_bytes(snapshot(None, [1.5, 1.5, 1.5001]))       # control: the last step of a fade
    assert import_file(path).lod == pytest.approx(1.5001)
