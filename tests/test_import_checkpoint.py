"""import_checkpoint.py: official numbers out of official files; and nothing in a file is run."""

import argparse
import collections
import copy
import json
import os
import pickle
import pickletools
import random
import shlex
import subprocess
import sys
import tracemalloc
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ada
import import_checkpoint
import official
import stylegan_models as models
import train
from conftest import ROOT, relative
from conftest import refused as refused_by
from import_checkpoint import import_file
from test_pickles import HOSTILE, extension, hostile_pickles, persistence, text  # noqa: F401
from workshop import checkpoints, options, pickles
from workshop.pickles import Named
from workshop.run import LOGGED, new_samples

PARITY = 2e-5            # as in test_models.py; asked for are 1e-4
KWARGS_D = dict(num_channels=3, resolution=16, label_size=0, fmap_base=32, fmap_max=6)
KWARGS_G = dict(KWARGS_D, latent_size=7, dlatent_size=5, mapping_fmaps=6, mapping_layers=2)


def networks_of(path):
    """(G, D, Gs) of a file, through the program's own tables."""
    settings, _, generator, discriminator, generator_ema, _ = import_file(path)
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
    for form in import_checkpoint.FORMATS:
        settings["architecture"] = form.architecture
        for side, network in ((form.generator, models.make_generator(settings)),
                              (form.discriminator, models.make_discriminator(settings))):
            rows = list(import_checkpoint.rows_of(side.table, 64, 3))
            assert sorted(row[0] for row in rows) == sorted(network.state_dict())
            assert len({row[1] for row in rows}) == len(rows)
            assert {row[2] for row in rows} <= {*import_checkpoint.LAYOUTS, "zero"}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_whole_files_of_every_protocol_give_the_same_networks(tmp_path, tiny, protocol):
    """Lesson: protocol and kind of dict are matters of the writer's Python, not of the network."""
    rng, path = np.random.default_rng(0), tmp_path / "official.pkl"
    path.write_bytes(tiny)
    wanted = import_file(path)[2:5]
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    G, D, Gs = drawn(rng, shapes_g), drawn(rng, shapes_d), drawn(rng, shapes_g)
    path.write_bytes(official.pickled(G, D, Gs, collections.OrderedDict(KWARGS_G), KWARGS_D,
                                      protocol, kind=collections.OrderedDict))
    for state, judge in zip(import_file(path)[2:5], wanted):
        assert all(torch.equal(state[name], judge[name]) for name in judge)


# ---- 2. hostile files ----


@pytest.mark.parametrize("how", ["alone", "inside"])
@pytest.mark.parametrize("instruction", HOSTILE)
def test_the_program_runs_nothing_of_a_file(tmp_path, capsys, tiny, extension, persistence,
                                            instruction, how):
    """Lesson: the files of test_pickles.py, by themselves and inside a sound official file, whose
    first network gets the harmful value among its options."""
    folder, path = tmp_path / "made by the file", tmp_path / "hostile.pkl"
    raw = hostile_pickles(folder)[instruction]
    if how == "inside":
        at = tiny.index(b"num_channels") - 2
        assert tiny[at:at + 1] == b"\x8c"                                      # SHORT_BINUNICODE
        opened = raw.removeprefix(raw[:2]) if raw[:1] == b"\x80" else raw
        raw = tiny[:at] + text("extra") + opened[:-1] + tiny[at:]
    path.write_bytes(raw)
    refused(path, capsys)
    assert sorted(os.listdir(tmp_path)) == ["hostile.pkl"]


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
    files ask for them: protocol 2, two numpys, two kinds of dict, two names of the class."""
    rng, path, asked = np.random.default_rng(0), tmp_path / "official.pkl", set()
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    G, D = drawn(rng, shapes_g), drawn(rng, shapes_d)
    ordered = official.pickled(G, D, G, KWARGS_G, KWARGS_D, 2, kind=collections.OrderedDict)
    for old, new in ((b"", b""), (b"cnumpy._core.", b"cnumpy.core."),
                     (b"cnumpy.core.", b"cnumpy._core."),
                     (b"ccollections\nOrderedDict\n", b"cdnnlib.util\nEasyDict\n"),
                     (b"cdnnlib.tflib.network\nNetwork\n", b"ctfutil\nNetwork\n")):
        path.write_bytes(ordered.replace(old, new))
        _, names = pickles.read_anything(path)
        import_file(path)                                                      # it is sound
        asked |= names
    assert asked == import_checkpoint.HARMLESS_TF


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
            for state in import_file(path)[2:5]:
                assert all(torch.isfinite(tensor).all() for tensor in state.values())
            sound += 1
        except checkpoints.CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
    assert 0 < sound < 100
    assert os.listdir(tmp_path) == ["flipped.pkl"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_limits_are_far_above_what_an_official_file_needs(tmp_path, monkeypatch, protocol):
    """Lesson: a limit that sound files meet is a fault. Here all are 4 to 10 times narrower."""
    # As many layers as the 1024 px networks, but narrow and with small noise maps: only read.
    kwargs = KWARGS_G | dict(resolution=1024, fmap_base=512, fmap_max=2, mapping_layers=8)
    G, D = ({name: np.ones(() if shape == () else (2,), np.float32) for name, shape in
             shapes.items()} for shapes in official_shapes(1024, kwargs))
    path = tmp_path / "official.pkl"
    path.write_bytes(official.pickled(G, D, dict(G), kwargs, KWARGS_D, protocol))
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 20_000)
    monkeypatch.setattr(pickles, "LONGEST_LINE", 1_000)
    monkeypatch.setattr(pickles, "DEEPEST_TUPLE", 5)
    pickles.read_anything(path)
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 2_000)                   # control
    with pytest.raises(checkpoints.CheckpointError, match="more than 2000 instructions"):
        pickles.read_anything(path)


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
    assert done.returncode not in (0, 1)                                       # control


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

    read, kept = pickles.read_anything, []

    def read_and_keep(path):
        value, names = read(path)
        kept.extend(note.state for note in pickles.all_notes(value)
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
    path = tmp_path / "three.pkl"
    path.write_bytes(b"\x80\x02}" + text("G_ema") + b"ctorch_utils.persistence\n"
                     b"_reconstruct_persistent_obj\n}" + text("class_name")
                     + text("SynthesisInput") + b"s\x85Rs.")
    assert "StyleGAN3" in refused(path, capsys)

    # The family's TensorFlow files, and what its options can turn on.
    shapes_g, shapes_d = official_shapes(16, KWARGS_G)
    G, D = ({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
            for shapes in (shapes_g, shapes_d))
    path = tmp_path / "tf.pkl"
    for change, builders, message in [
            ({"label_size": 10}, ("G_style", "D_basic"), "class-conditional network (label_size"),
            ({}, ("G_main", "D_main"), "stylegan2-ada in TensorFlow"),
            ({}, ("G_style", "D_stylegan"), "StyleGAN2 of the configurations B to D"),
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
    assert "the disk has 0.001 MB left" in refused(path, capsys)
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
    assert "32x32" in done.stdout and (
        f"--resume {shlex.quote(str(out))}" in done.stdout)
    return out


def test_an_imported_file_is_a_checkpoint_like_any_other(imported, nets):
    loaded = checkpoints.load_networks(imported, torch.device("cpu"))
    assert checkpoints.resumable(loaded.checkpoint)
    assert (loaded.resolution, loaded.alpha) == (32, 1.0)
    state = loaded.networks["generator_ema"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in nets[2].state_dict().items())
    assert len(loaded.checkpoint["progress"]["sums"]) == len(LOGGED)
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
    for work, answer in (
            (f"import_checkpoint.main([{str(official_file)!r}, 'model.pt'])", False),
            ("import torch; torch.optim.Adam([torch.zeros(1)])", True)):       # control
        done = subprocess.run(
            [sys.executable, "-c", f"import import_checkpoint; {work}; {loaded}"], cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
        assert f"compiler loaded: {answer}" in done.stdout, done.stderr


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


# ---- 7. StyleGAN2 ----

FILES = {"tf": official.DATA / "official_stylegan2.pkl", "ada": ada.FILE}


def numbers(kind):
    """What the official networks made of the file of this kind."""
    with np.load(official.DATA / "official_stylegan2_io.npz") as file:
        return {name.split("/")[1]: torch.from_numpy(file[name]) for name in file.files
                if name.startswith(f"{kind}/")}


@pytest.fixture(scope="module")
def stylegan2():
    return {kind: networks_of(path) for kind, path in FILES.items()}


@pytest.mark.parametrize("kind", FILES)
def test_stylegan2_files_give_the_official_images(stylegan2, kind):
    """Lesson: the same network in two layouts. TensorFlow's program turns the up-convolutions'
    kernels and adds 1 to the styles; PyTorch's file has both done."""
    G, _, Gs = stylegan2[kind]
    judge = numbers(kind)
    with torch.no_grad():
        assert relative(Gs.mapping(judge["z"]), judge["w"]) < PARITY
        image = Gs(judge["z"], noise_mode="const")
        assert relative(image, judge["image"]) < PARITY
        truncated = Gs(judge["z"][:2], noise_mode="const", truncation_psi=0.7)
        assert relative(truncated, judge["image_psi0.7"]) < PARITY
        # another w for each layer: none takes the w of its neighbour
        image = Gs.synthesis(judge["ws_distinct"], noise_mode="const")
        assert relative(image, judge["image_ws_distinct"]) < PARITY
        assert relative(G(judge["z"], noise_mode="const"), judge["image_g"]) < PARITY
        # Controls: one kernel the other way round; one style without its 1.
        for change in (lambda conv: conv.weight.data.copy_(conv.weight.data.flip(2, 3)),
                       lambda conv: conv.style.bias.data.sub_(1)):
            other = models.make_generator(import_file(FILES[kind]).settings)
            other.load_state_dict(G.state_dict())
            change(other.synthesis.blocks["32"].conv0)
            assert relative(other(judge["z"], noise_mode="const"), judge["image_g"]) > 0.01


@pytest.mark.parametrize("kind", FILES)
def test_stylegan2_files_give_the_official_scores(stylegan2, kind):
    """Lesson: and D's, of four fakes that are compared with each other."""
    _, D, _ = stylegan2[kind]
    judge = numbers(kind)
    with torch.no_grad():
        assert relative(D(judge["image_g"]), judge["scores"]) < PARITY
        assert relative(D(judge["image_g"].flip(3)), judge["scores"]) > 1e-3   # control


def imported_from(raw, tmp_path, **options):
    path = tmp_path / "changed.pkl"
    path.write_bytes(raw)
    return import_file(path, **options)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("new_storages", [False, True])
def test_files_of_old_and_new_torch_give_the_same_networks(tmp_path, protocol, new_storages):
    """Lesson: how a tensor is written is a matter of the writer's PyTorch and Python."""
    wanted = import_file(ada.FILE)
    got = imported_from(ada.pickled(protocol=protocol, new_storages=new_storages), tmp_path)
    assert got.settings == wanted.settings
    for state, judge in zip(got[2:5], wanted[2:5]):
        assert all(torch.equal(state[name], judge[name]) for name in judge)


def test_only_names_that_adas_files_need_are_let_through(tmp_path, capsys):
    """Lesson: as for TensorFlow's files; Python 2 called its built-in things otherwise."""
    asked, path = set(), tmp_path / "ada.pkl"
    for protocol in (2, 3, 4):
        # numpy's newer name, and its older one; names of protocol 2 and 3 end with a line break
        for old, new in ((b"", b""), (b"cnumpy._core.", b"cnumpy.core."),
                         (b"cnumpy.core.", b"cnumpy._core.")):
            path.write_bytes(ada.pickled(protocol=protocol).replace(old, new))
            asked |= pickles.read_anything(path)[1]
            import_file(path)                                                  # it is sound
    # Protocol 2 writes bytes as text, for `_codecs.encode`.
    assert asked == import_checkpoint.HARMLESS_TORCH
    sound = ada.pickled(protocol=2)
    at = sound.index(b"X\x13\x00\x00\x00training_set_kwargs")
    path.write_bytes(sound[:at] + text("extra") + b"cos\nsystem\n" + sound[at:])
    assert "os.system" in refused(path, capsys)


def change_all(value, attribute, number, which=lambda path: True):
    """Set an attribute of every module that has it."""
    for network in ("G", "D", "G_ema"):
        for path, state in value[network].all():
            if attribute in state and which(path):
                state[attribute] = number


def test_what_was_cut_off_is_cut_off_here(tmp_path, capsys):
    """Lesson: a network that was trained in float16 had its features cut off at 256, and may have
    grown against it. Here at 3, so that it matters; judged by a restatement in float64 that makes
    the official images without a limit."""
    def cut(value):
        change_all(value, "conv_clamp", 3, which=lambda path: not path.endswith("skip"))
        change_all(value, "use_fp16", True)
    judge, value = numbers("ada"), ada.load()
    v, d = value["G_ema"].tensors(), value["D"].tensors()
    assert relative(ada.generate(v, judge["z"]), judge["image"]) < PARITY
    assert relative(ada.score(d, judge["image_g"]), judge["scores"]) < PARITY
    imported = imported_from(ada.pickled(cut), tmp_path)
    assert imported.settings["conv_clamp"] == 3
    _, D, Gs = networks_of(tmp_path / "changed.pkl")
    with torch.no_grad():
        image, scores = Gs(judge["z"], noise_mode="const"), D(judge["image_g"])
    wanted = ada.generate(v, judge["z"], clamp=3)
    assert relative(image, wanted) < PARITY
    assert relative(scores, ada.score(d, judge["image_g"], clamp=3)) < PARITY
    assert relative(image, judge["image"]) > 0.1                               # controls
    assert relative(scores, judge["scores"]) > 0.01
    # and the limit is in the written file: what it is loaded from draws the same
    assert import_checkpoint.main([str(tmp_path / "changed.pkl")]) == 0
    assert "cut off at 3, as they were in training" in capsys.readouterr().out
    loaded = checkpoints.load_networks(tmp_path / "changed.pt")
    with torch.no_grad():
        again = loaded.networks["generator_ema"](judge["z"], noise_mode="const")
    assert relative(again, image) < PARITY             # its memory may be laid out otherwise


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_any_number_of_mapping_layers_is_imported(tmp_path, layers):
    """Lesson: the automatic settings of stylegan2-ada-pytorch have two layers, the paper eight."""
    def cut(value):
        for network in ("G", "G_ema"):
            state = value[network]["mapping"].meta["state"]
            state["num_layers"] = layers
            for k in range(layers, 8):
                del state["_modules"][f"fc{k}"]
    imported_from(ada.pickled(cut), tmp_path)
    z, v = numbers("ada")["z"], ada.load()["G_ema"].tensors()
    for k in range(layers, 8):
        del v[f"mapping.fc{k}.weight"]
    with torch.no_grad():
        image = networks_of(tmp_path / "changed.pkl")[2](z, noise_mode="const")
    assert relative(image, ada.generate(v, z)) < PARITY
    assert relative(image, numbers("ada")["image"]) > 0.1                      # control


@pytest.mark.parametrize("base, most, resolution", [
    (32768, 512, 1024), (16384, 512, 256), (32768, 512, 32), (32768, 512, 4), (32768, 128, 512),
    (4096, 64, 256), (1000, 48, 128)])
def test_widths_become_the_settings_that_give_them(base, most, resolution):
    """Lesson: stylegan2-ada-pytorch's channel_base is twice ours; what counts are the widths."""
    widths = {r: min(base // r, most) for r in models.resolutions_up_to(resolution)}

    def note(*shape):
        note = pickles.Named("numpy.core.multiarray._reconstruct")
        kind = pickles.Named("numpy.dtype", ("f4", 0, 1))
        kind.state = (3, "<")
        note.state = (1, shape, kind, False, bytes(4 * int(np.prod(shape))))
        return note
    network = import_checkpoint.Network("Generator", {
        "img_resolution": resolution, "z_dim": 3, "w_dim": 5, "mapping.num_layers": 2}, {
            "mapping.fc0.weight": note(7, 3),
            **{f"synthesis.b{r}.conv1.bias": note(c) for r, c in widths.items()}})
    form = import_checkpoint.FORMATS[2]
    settings = import_checkpoint.settings_of(network, form)
    assert {r: models.channels_at(r, settings["channel_base"], settings["channel_max"])
            for r in widths} == widths
    assert (settings["resolution"], settings["latent_dim"], settings["style_dim"],
            settings["mapping_dim"], settings["mapping_layers"]) == (resolution, 3, 5, 7, 2)


def test_what_tensorflows_files_do_not_say_has_the_official_default():
    """Lesson: fmap_base is 8192 in StyleGAN and 16384 in StyleGAN2 where nothing is said; files of
    its config E do say 8192."""
    for form, base in zip(import_checkpoint.FORMATS, (8192, 16384)):
        network = import_checkpoint.Network(form.generator.builder, {}, {})
        assert import_checkpoint.settings_of(network, form) == {
            "architecture": form.architecture, "resolution": 1024, "channel_base": base,
            "channel_max": 512, "latent_dim": 512, "style_dim": 512, "mapping_dim": 512,
            "mapping_layers": 8}


def set_state(path, network="G_ema", **changes):
    def change(value):
        for name in [network] if network == "D" else ["G", "G_ema"]:
            value[name][path].meta["state"].update(changes)
    return change


def other_filter(value):
    buffers = value["G_ema"]["synthesis.b16.conv0"].meta["state"]["_buffers"]
    buffers["resample_filter"] = torch.ones(4, 4) / 16


def wide_filter(value):
    """16 numbers that claim 64 TB."""
    buffers = value["G_ema"]["synthesis.b16.conv0"].meta["state"]["_buffers"]
    buffers["resample_filter"] = buffers["resample_filter"].expand(2 ** 20, 2 ** 20, 4, 4)


def wide_bias(value):
    parameters = value["G_ema"]["mapping.fc0"].meta["state"]["_parameters"]
    parameters["bias"] = parameters["bias"].detach().expand(2 ** 20, 40)


def two_strengths(value):
    parameters = value["G_ema"]["synthesis.b8.conv0"].meta["state"]["_parameters"]
    parameters["noise_strength"] = torch.nn.Parameter(torch.ones(2), requires_grad=False)


def no_noise(value):
    for path, state in value["G_ema"].all():
        if path.endswith("conv1") and "synthesis" in path:
            state["use_noise"] = False


ADA = [
    (set_state("", c_dim=10), "class-conditional network (label_size 10)"),
    (set_state("synthesis.b8", architecture="resnet"),
     "synthesis.b8.architecture = 'resnet'; only skip"),
    (set_state("synthesis.b8", architecture="orig"), "architecture = 'orig'"),
    (set_state("b8", network="D", architecture="skip"),
     "b8.architecture = 'skip'; only resnet can be imported; --generator-only leaves D out"),
    (set_state("b4.mbstd", network="D", group_size=8),
     "b4.mbstd.group_size = 8; only (4, None) can be imported; --generator-only"),
    (set_state("b4.mbstd", network="D", num_channels=2), "num_channels = 2"),
    (other_filter, "another filter than [1, 3, 3, 1]"), (wide_filter, "another filter than"),
    (wide_bias, "mapping.fc0.bias in the shape [1048576, 40]"),
    (two_strengths, "synthesis.b8.conv0.noise_strength in the shape [2]"),
    (no_noise, "use_noise = False"),
    (set_state("", img_channels=1), "img_channels = 1"),
    (set_state("mapping.fc0", bias_gain=1), "mapping.fc0.bias_gain = 1; only 0.01"),
    (set_state("mapping.fc0", activation="relu"), "mapping.fc0.activation = 'relu'"),
    (set_state("synthesis.b8.conv0", activation="linear"), "activation = 'linear'"),
    (set_state("synthesis.b8.torgb.affine", activation="lrelu"), "affine.activation = 'lrelu'"),
    (set_state("b4.fc", network="D", bias_gain=0.5), "b4.fc.bias_gain = 0.5; only 1"),
    (set_state("synthesis.b8.conv0", conv_clamp=256), "cuts off its layers at"),
    (set_state("b8.conv0", network="D", conv_clamp=256), "cuts off its layers at"),
    (lambda value: change_all(value, "conv_clamp", -1.0), "cuts off its layers at -1.0"),
    (lambda value: [set_state(path, network="D", conv_clamp=256)(value)
                    for path, state in value["D"].all() if "conv_clamp" in state],
     "cuts off its networks at different limits"),
    (lambda value: value["G_ema"]["synthesis.b8"].meta.update(class_name="SwaganBlock"),
     "has a 'SwaganBlock' in it"),
    (set_state("", img_resolution=10 ** 9), "impossible"),
    (set_state("", img_resolution=64), "lacks the variable synthesis.b64.conv0.weight"),
    (set_state("", z_dim=2 ** 14), "claims networks of"),
    (set_state("mapping", num_layers=3), "mapping.fc3"),
    (lambda value: value.pop("G_ema"), "holds three networks G, D and Gs"),
    (lambda value: value.update(G_ema=value["training_set_kwargs"]), "something else where"),
]


@pytest.mark.parametrize("change, message", ADA, ids=[message[:40] for _, message in ADA])
def test_what_stylegan2_can_turn_on_is_refused_by_name(tmp_path, capsys, change, message):
    """Lesson: every one of these makes another network of the same arrays, or of nearly the
    same."""
    path = tmp_path / "ada.pkl"
    path.write_bytes(ada.pickled(change))
    assert message in refused(path, capsys)


def test_tensorflows_stylegan2_is_refused_for_what_it_turns_on(tmp_path, capsys):
    """Lesson: the same for TensorFlow's files, whose options are those that were not left out."""
    with official.official_class() as cls:
        raw = pickle.loads(FILES["tf"].read_bytes())
        for of, change, message in [
                (0, {"label_size": 3}, "class-conditional network (label_size 3)"),
                (2, {"architecture": "resnet"}, "architecture = 'resnet'; only skip"),
                (1, {"architecture": "skip"}, "only resnet can be imported; --generator-only"),
                (1, {"mbstd_group_size": 8}, "mbstd_group_size = 8; only 4"),
                (2, {"resample_kernel": [1, 2, 1]}, "resample_kernel = [1, 2, 1]"),
                (2, {"fmap_decay": 0.5}, "fmap_decay = 0.5"),
                (2, {"fmap_min": 16}, "fmap_min = 16"),
                (2, {"fmap_base": 16384}, "does not fit"), (2, {"mapping_lrmul": 1}, "lrmul = 1")]:
            networks = [cls.__new__(cls) for _ in raw]
            for made, network in zip(networks, raw):
                made.__dict__.update(network.__dict__)
            kwargs = {**networks[of].static_kwargs, **change}
            networks[of].static_kwargs = kwargs
            networks[of].components = {
                name: made for name, part in networks[of].components.items()
                for made in [cls.__new__(cls)]
                if made.__dict__.update(part.__dict__, static_kwargs=kwargs) is None}
            path = tmp_path / "tf.pkl"
            path.write_bytes(pickle.dumps(tuple(networks), 4))
            assert message in refused(path, capsys), change
        raw[2].components["synthesis"].build_func_name = "G_synthesis_stylegan_revised"
        path.write_bytes(pickle.dumps(raw, 4))
        assert "configurations B to D" in refused(path, capsys)
        raw = pickle.loads(FILES["tf"].read_bytes())
        assert raw[2].variables[0] == ("lod", 0)
        raw[2].variables[0] = ("lod", np.float32(1.5))
        path.write_bytes(pickle.dumps(raw, 4))
        assert "different lods" in refused(path, capsys)
        code, line = refused_by(import_checkpoint.main, [path, "--generator-only"], capsys)
        assert code == 2 and "lod = 1.5, where a StyleGAN2 has always 0" in line


def test_a_d_without_a_word_about_groups_takes_four(tmp_path, stylegan2):
    """Lesson: in files that legacy.py made of TensorFlow's, None stands for TensorFlow's four."""
    imported_from(ada.pickled(set_state("b4.mbstd", network="D", group_size=None)), tmp_path)
    D, judge = networks_of(tmp_path / "changed.pkl")[1], numbers("ada")
    with torch.no_grad():
        assert relative(D(judge["image_g"]), judge["scores"]) < PARITY


def test_the_generator_alone_can_be_had(tmp_path, capsys):
    """Lesson: a D that compares eight images at a time, as for AFHQ, is none of ours, but pictures
    need no D. The file is then for looking, and says so."""
    path, out = tmp_path / "afhq.pkl", tmp_path / "afhq.pt"
    path.write_bytes(ada.pickled(set_state("b4.mbstd", network="D", group_size=8)))
    assert "--generator-only leaves D out" in refused(path, capsys)
    assert import_checkpoint.main([str(path), "--generator-only"]) == 0
    assert "it is for looking" in capsys.readouterr().out
    loaded = checkpoints.load_networks(out)
    assert not checkpoints.resumable(loaded.checkpoint) and "discriminator" not in loaded.checkpoint
    judge = numbers("ada")
    with torch.no_grad():
        image = loaded.networks["generator_ema"](judge["z"], noise_mode="const")
    assert relative(image, judge["image"]) < PARITY
    # so it is for a file that has nothing else
    path.write_bytes(ada.pickled(lambda value: (value.pop("G"), value.pop("D"))))
    out.unlink()
    assert import_checkpoint.main([str(path)]) == 0
    assert "it is for looking" in capsys.readouterr().out


def test_a_module_in_itself_is_refused(tmp_path, capsys):
    """Lesson: a file may say once what lies in itself, or what a thousand parts have in common. A
    chain of 4,000 parts is not much, but their names would be: each has those of all above it."""
    def in_itself(value):
        value["G_ema"]["mapping"].meta["state"]["_modules"]["again"] = value["G_ema"]

    def many(value):
        state = value["G_ema"]["mapping"].meta["state"]
        state["_modules"] |= {f"fc{k}": state["_modules"]["fc0"] for k in range(2000)}

    def long_name(value):
        state = value["G_ema"]["mapping"].meta["state"]
        state["_modules"]["x" * 10 ** 5] = state["_modules"]["fc0"]
    def chain(value):
        module = value["G_ema"]["mapping.fc0"]
        module.meta["state"].update(_parameters={}, _modules={"x" * 100: module})
    path = tmp_path / "odd.pkl"
    for change in (in_itself, many, long_name, chain):
        path.write_bytes(ada.pickled(change))
        tracemalloc.start()
        assert "more parts than a StyleGAN2 has" in refused(path, capsys)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6, change


def test_one_tensor_for_hundreds_of_layers_is_refused(tmp_path, capsys):
    """Lesson: 300 mapping layers may be one, and one number may stand for a whole kernel, by a
    stride of 0. The copies would take 230 MB."""
    def share(value):
        one = torch.zeros(1, dtype=torch.float16).expand(400, 400)
        for network in ("G", "G_ema"):
            state = value[network]["mapping"].meta["state"]
            layer = state["_modules"]["fc0"]
            layer.meta["state"]["_parameters"] = {"weight": one, "bias": one[0]}
            state["_modules"], state["num_layers"] = {f"fc{k}": layer for k in range(300)}, 300
            value[network].meta["state"].update(z_dim=400, w_dim=400)
    path = tmp_path / "shared.pkl"
    path.write_bytes(ada.pickled(share))
    tracemalloc.start()
    try:
        assert "claims networks of" in refused(path, capsys)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_cut_or_damaged_ada_file_is_refused(tmp_path, capsys):
    """Lesson: as for TensorFlow's. There are pickles inside of this pickle, and they are damaged
    as well here."""
    sound, path, generator = ada.FILE.read_bytes(), tmp_path / "cut.pkl", random.Random(0)
    for length in range(100, len(sound), len(sound) // 6):
        path.write_bytes(sound[:length])
        assert "damaged" in refused(path, capsys)
    inside = [at for at in range(len(sound)) if sound.startswith(b"FloatStorage", at)]
    sound_ones = 0
    for _ in range(20):
        damaged = bytearray(sound)
        damaged[generator.choice(inside) + generator.randrange(-200, 120)] ^= (
            1 << generator.randrange(8))
        path.write_bytes(damaged)
        try:
            imported = import_file(path)
            assert all(torch.isfinite(tensor).all() for state in imported[2:5]
                       for tensor in state.values())
            sound_ones += 1
        except checkpoints.CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert 0 < sound_ones < 20                         # some damage matters, some does not
    assert os.listdir(tmp_path) == ["cut.pkl"]


def test_the_limits_are_far_above_what_adas_largest_files_need(tmp_path, monkeypatch):
    """Lesson: a file of 1024 px, as far as instructions go: as many blocks, but the same arrays."""
    def grow(value):
        for network in ("G", "G_ema", "D"):
            parts = value[network]["synthesis" if network != "D" else ""].meta["state"]["_modules"]
            for r in (64, 128, 256, 512, 1024):
                parts[f"b{r}"] = copy.deepcopy(parts["b32"])
        value["augment_pipe"] = copy.deepcopy(value["D"])                      # it is smaller
    path = tmp_path / "large.pkl"
    path.write_bytes(ada.pickled(grow, protocol=2))
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 75_000)
    monkeypatch.setattr(pickles, "DEEPEST_TUPLE", 5)
    monkeypatch.setattr(import_checkpoint, "MOST_PARTS", 800)
    value, _ = pickles.read_anything(path)
    monkeypatch.setattr(pickles, "MOST_INSIDE", 80)
    network = import_checkpoint.module_of(value["G_ema"])
    assert pickles.array_of(network.variables["synthesis.b1024.conv1.weight"]).shape == (8, 8, 3, 3)
    monkeypatch.setattr(pickles, "MOST_INSIDE", 10)                            # controls
    with pytest.raises(pickles.Unreadable, match="more than 10 instructions"):
        pickles.array_of(network.variables["synthesis.b1024.conv1.weight"])
    monkeypatch.setattr(import_checkpoint, "MOST_PARTS", 100)
    with pytest.raises(pickles.Unreadable, match="more parts"):
        import_checkpoint.module_of(value["G_ema"])


def test_adas_files_are_never_twice_in_memory(tmp_path, monkeypatch):
    """Lesson: as for TensorFlow's: two arrays of 8 MB, and one of them twice for a moment."""
    def widen(value):
        for network in ("G", "G_ema"):
            value[network].meta["state"]["z_dim"] = 50_000
            layer = value[network]["mapping.fc0"].meta["state"]["_parameters"]
            layer["weight"] = torch.nn.Parameter(torch.ones(40, 50_000), requires_grad=False)
    path = tmp_path / "wide.pkl"
    path.write_bytes(ada.pickled(widen))

    def peak():
        tracemalloc.start()
        try:
            import_file(path)
            return tracemalloc.get_traced_memory()[1] / path.stat().st_size
        finally:
            tracemalloc.stop()
    assert 1.3 < peak() < 1.65
    read, kept = pickles.read_anything, []
    monkeypatch.setattr(import_checkpoint, "read_anything",
                        lambda path: kept.append(read(path)) or kept[-1])
    assert peak() > 1.9                                                        # control


@pytest.mark.parametrize("kind", FILES)
def test_an_imported_stylegan2_goes_on_learning(tmp_path, pictures, kind):
    """Lesson: two steps of train.py with the options of the paper's config F. The average stays,
    the mean of path lengths, of which no file knows, begins to move, and the limit is kept."""
    path, folder = tmp_path / "model.pt", tmp_path / "run"
    assert import_checkpoint.main([str(FILES[kind]), str(path)]) == 0
    before = checkpoints.load_checkpoint(path)
    assert checkpoints.resumable(before) and before["architecture"] == "stylegan2"
    run = before["options"]
    assert run["initial_resolution"] == run["resolution"] == 32
    assert (run["path_weight"], run["r1_interval"]) == (2.0, 16)
    assert float(run["r1_gamma"]) == pytest.approx(0.0002 * 32 ** 2 / int(run["batch"]))
    end = before["progress"]["nimg"] / 1000 + 0.016
    assert train.main(["--resume", str(path), "--out", str(folder), "--total-kimg", str(end),
                       "--batch", "8", "--accumulate", "1", "--workers", "0", "--device", "cpu",
                       *pictures]) == 0
    after = checkpoints.load_checkpoint(folder / "checkpoint.pt")
    assert after["progress"]["nimg"] == 25_000_016 and after["progress"]["step"] == 2
    for part in ("generator", "discriminator"):
        moved = max((after[part][name] - before[part][name]).abs().max().item()
                    for name in before[part] if "noise" not in name and name not in (
                        "w_avg", "path_length_mean"))
        assert 0 < moved < 0.02, part
    assert before["generator"]["path_length_mean"] == 0 < after["generator"]["path_length_mean"]
    name = "synthesis.blocks.32.conv1.weight"
    way = (before["generator"][name] - before["generator_ema"][name]).abs().max()
    moved = (after["generator_ema"][name] - before["generator_ema"][name]).abs().max()
    assert moved < 0.01 * way
