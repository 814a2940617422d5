"""workshop/checkpoints.py, from top to bottom: what is saved comes back, and nothing else does."""

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import pytest
import torch

import import_checkpoint
import official
import stylegan_models as models
from conftest import ROOT
from test_pickles import rezipped
from workshop import UserError, checkpoints, machine, options, pickles
from workshop.run import LOGGED

SMALL = dict(resolution=16, channel_base=64, channel_max=16, latent_dim=12, style_dim=10,
             mapping_dim=14, mapping_layers=2)
CPU = torch.device("cpu")


# The first row of a picture, each colour: of z = -1, -1/3, 1/3, 1, by the version (afdb7be) that
# wrote tests/data/format1.pt. (Its path of the cache was made short.)
OF_THAT_TIME = [0.28681, -0.02175, -0.40445, 0.12436, -0.08911, 0.14234, 0.40711, 0.10434,
                1.11323, 0.77327, -0.75293, 0.25542]


def a_checkpoint():
    return {"settings": SMALL, "generator_ema": models.make_generator(SMALL).state_dict()}


def test_what_an_early_version_wrote_is_read_and_makes_the_same_picture():
    """Lesson: people keep checkpoints for years. Whatever the checks of today forbid, they must let
    through what this program once wrote, and the picture must be the one of that time."""
    loaded = checkpoints.load_networks(official.DATA / "format1.pt")
    assert loaded.checkpoint["format"] == 1 and "rng" in loaded.checkpoint
    assert checkpoints.resumable(loaded.checkpoint)
    assert (loaded.resolution, loaded.alpha) == (4, 1)
    with torch.no_grad():
        picture = loaded.networks["generator_ema"](
            torch.linspace(-1, 1, 4)[None], noise_mode="const", resolution=4, alpha=1.0)
    row = picture[0, :, 0].flatten()
    assert row.tolist() == pytest.approx(OF_THAT_TIME, abs=2e-5)
    assert row.flip(0).tolist() != pytest.approx(OF_THAT_TIME, abs=0.1)    # control


def test_a_failed_save_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    """Lesson: the new file is written beside the old one, and takes its name when it is whole."""
    path = tmp_path / "g.pt"
    checkpoints.save_checkpoint(path, a_checkpoint())
    before, right = path.read_bytes(), torch.save

    def disk_full(state, file):
        file.write(b"half a checkpo")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_checkpoint(path, a_checkpoint())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["g.pt"]                                # no litter either
    monkeypatch.setattr(torch, "save", right)                              # control: room again
    checkpoints.save_checkpoint(path, a_checkpoint())
    assert path.read_bytes() != before and os.listdir(tmp_path) == ["g.pt"]
    saved = torch.load(path, weights_only=True)
    assert (saved["format"], saved["architecture"]) == (checkpoints.FORMAT, "stylegan")
    # The architecture is what the settings say; those of old checkpoints name none.
    checkpoints.save_checkpoint(path, {"settings": {**SMALL, "architecture": "stylegan2"}})
    assert torch.load(path, weights_only=True)["architecture"] == "stylegan2"


def test_a_full_disk_is_an_oserror(tmp_path):
    """Lesson: torch reports a full disk as a RuntimeError; here it is an OSError, as everywhere."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from workshop import checkpoints
checkpoints.save_checkpoint("g.pt", {{"settings": {{}}, "x": torch.ones(10)}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))        # stands in for the full disk
try:
    checkpoints.save_checkpoint("g.pt", {{"settings": {{}}, "x": torch.ones(1_000_000)}})
except OSError as error:
    print("OSError", error)
print(torch.load("g.pt", weights_only=True)["x"].sum().item())       # the old file is whole
checkpoints.save_checkpoint("g.pt", {{"settings": {{}}, "x": torch.ones(20)}})   # control: fits
"""
    if sys.platform == "win32":
        pytest.skip("needs a limit on the size of files")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OSError g.pt: cannot be written") and "\n10.0" in done.stdout


class Intruder:
    """Unpickled the old way, this would create the file named in `path`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_bad_checkpoint_gets_one_clear_sentence(tmp_path):
    """Lesson: whatever the file is, its name, the reason, no traceback, nothing executed."""
    good = a_checkpoint()
    path = tmp_path / "bad.pt"
    traces = tmp_path / "executed"

    def refused(message):
        with pytest.raises(checkpoints.CheckpointError) as caught:
            checkpoints.load_checkpoint(path)
        text = str(caught.value)
        assert str(path) in text and message in text and "\n" not in text, text

    refused("no such file")
    path.mkdir()
    refused("a folder")
    (path / "checkpoint.pt").touch()
    refused(f"type {path / 'checkpoint.pt'}")                  # a run's
    (path / "checkpoint.pt").unlink()
    path.rmdir()
    path.write_bytes(b"hello")
    refused("not a checkpoint")
    path.write_bytes(pickle.dumps(Intruder(traces)))
    refused("not a checkpoint")

    checkpoints.save_checkpoint(path, good)
    again = checkpoints.load_checkpoint(path)["settings"]      # control: a good one
    assert again == {**SMALL, "architecture": "stylegan"}      # is said from now on
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    refused("cut off")
    torch.save({"format": 1, "evil": Intruder(traces)}, path)
    refused("more than tensors")
    assert not traces.exists()
    torch.load(path, weights_only=False)["evil"].close()                   # control: the old way
    assert traces.exists()
    traces.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused("damaged")
    torch.save([1, 2, 3], path)
    refused("not a checkpoint of this program")
    wrong = {**good["generator_ema"], "w_avg": torch.zeros(11)}
    for change, message in [
            ({"format": "one"}, "not a checkpoint of this program"),
            ({"format": 2}, "newer"),
            ({"architecture": "stylegan3"}, "holds a 'stylegan3' network"),
            ({"architecture": "stylegan2"}, "its generator_ema "),
            ({"architecture": None}, "holds a None network"),
            ({"settings": {**SMALL, "architecture": "stylegan2"}}, "of another architecture"),
            ({"settings": {**SMALL, "architecture": 2}}, "of another architecture"),
            *(({"settings": {**SMALL, "conv_clamp": limit}}, "impossible conv_clamp") for limit in
              (0, -1, float("nan"), float("inf"), True, "256", [256])),
            ({"settings": {**SMALL, "resolution": 12}}, "power of two"),
            ({"settings": {**SMALL, "latent_dim": "many"}}, "settings"),
            ({"settings": {**SMALL, "latent_dim": 0}}, "settings"),
            ({"settings": None}, "settings"),
            ({"settings": {**SMALL, "mapping_dim": 10 ** 15}}, "mapping"),
            ({"settings": {**SMALL, "mapping_layers": 1001}}, "impossible"),
            ({"settings": {**SMALL, "resolution": 32}}, "lacks synthesis"),
            ({"settings": {**SMALL, "resolution": 8}}, "does not"),
            ({"generator_ema": wrong}, "w_avg is [11], where [10] is needed"),
            ({"generator_ema": {**good["generator_ema"], "w_avg": 3}}, "w_avg is 3, where a"),
            ({"discriminator": good["generator_ema"]}, "its discriminator lacks"),
            ({"generator_ema": [1]}, "no state dict")]:
        torch.save({"format": 1, "architecture": "stylegan", **good, **change}, path)
        refused(message)
    del good["generator_ema"]
    checkpoints.save_checkpoint(path, good)
    refused("generator_ema")
    assert not traces.exists()
    assert issubclass(checkpoints.CheckpointError, UserError)  # so `options.start` prints it


def test_a_run_goes_on_only_from_all_that_it_needs():
    """Lesson: networks alone are to be looked at; a run is also its optimizers and its place."""
    run = dict.fromkeys(checkpoints.TO_RESUME, 0)
    assert checkpoints.resumable({**a_checkpoint(), **run})
    assert not checkpoints.resumable(a_checkpoint())           # control: networks only
    for key in run:
        assert not checkpoints.resumable({k: v for k, v in run.items() if k != key}), key


def test_a_checkpoint_gives_the_same_pictures_again(tmp_path):
    """Lesson: a file holds all that its pictures need, and its networks are not for learning."""
    path, z = tmp_path / "g.pt", torch.randn(2, 12)
    G, D = models.make_generator(SMALL).eval(), models.make_discriminator(SMALL)
    machine.place(G, CPU)                                      # sums in the same order: same bits
    G.w_avg.normal_()
    images = G(z, noise_mode="const", truncation_psi=0.5)
    checkpoints.save_checkpoint(path, {"settings": SMALL, "generator_ema": G.state_dict(),
                                       "discriminator": D.state_dict()})
    loaded = checkpoints.load_networks(path)
    assert set(loaded.networks) == {"generator_ema"}
    again = loaded.networks["generator_ema"]
    assert torch.equal(again(z, noise_mode="const", truncation_psi=0.5), images)
    assert not torch.equal(models.make_generator(SMALL).eval()(z, noise_mode="const"), images)
    assert (loaded.resolution, loaded.alpha) == (16, 1.0)      # without progress: a finished one
    parts = ("generator_ema", "generator", "discriminator")    # the file has no generator
    loaded = checkpoints.load_networks(path, CPU, parts=parts)
    assert set(loaded.networks) == {"generator_ema", "discriminator"}
    assert torch.allclose(loaded.networks["discriminator"](images), D(images), atol=1e-6)
    for network in loaded.networks.values():
        assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_a_stylegan2_checkpoint_comes_back(tmp_path):
    """Lesson: with its limit, if it has one, and its mean of path lengths. A file that calls it a
    StyleGAN is refused, and so is one that calls a StyleGAN a StyleGAN2. The sentence has the first
    name that does not fit."""
    path, z = tmp_path / "g.pt", torch.randn(2, 12)
    settings = {**SMALL, "architecture": "stylegan2", "conv_clamp": 0.5}
    G, D = models.make_generator(settings).eval(), models.make_discriminator(settings)
    machine.place(G, CPU)
    G.w_avg.normal_()
    G.path_length_mean.fill_(1.5)
    images = G(z, noise_mode="const", truncation_psi=0.5)
    state = {"settings": settings, "generator_ema": G.state_dict(), "discriminator": D.state_dict()}
    checkpoints.save_checkpoint(path, state)
    loaded = checkpoints.load_networks(path, parts=("generator_ema", "discriminator"))
    again = loaded.networks["generator_ema"]
    assert torch.equal(again(z, noise_mode="const", truncation_psi=0.5), images)
    assert again.path_length_mean == 1.5 and loaded.checkpoint["settings"] == settings
    assert torch.allclose(loaded.networks["discriminator"](images), D(images), atol=1e-6)
    free = {key: value for key, value in settings.items() if key != "conv_clamp"}
    checkpoints.save_checkpoint(path, {**state, "settings": free})         # control: no limit
    again = checkpoints.load_networks(path).networks["generator_ema"]
    assert not torch.equal(again(z, noise_mode="const", truncation_psi=0.5), images)
    checkpoints.save_checkpoint(path, {**state, "settings": SMALL})
    with pytest.raises(checkpoints.CheckpointError, match="generator_ema has 'path_length_mean'"):
        checkpoints.load_checkpoint(path)
    checkpoints.save_checkpoint(path, {**a_checkpoint(), "settings": free})
    with pytest.raises(checkpoints.CheckpointError, match="generator_ema lacks path_length_mean"):
        checkpoints.load_checkpoint(path)


def test_a_checkpoint_of_before_there_was_stylegan2_loads(tmp_path):
    """Lesson: its settings name no architecture, only the file does."""
    path = tmp_path / "g.pt"
    torch.save({"format": 1, "architecture": "stylegan", **a_checkpoint()}, path)
    loaded = checkpoints.load_networks(path)
    assert type(loaded.networks["generator_ema"]) is models.Generator
    assert loaded.checkpoint["settings"] == {**SMALL, "architecture": "stylegan"}


def test_a_fading_network_comes_back_at_its_resolution_and_alpha(tmp_path):
    """Lesson: a network in the middle of growing is called as it was when it was saved."""
    path, good = tmp_path / "g.pt", a_checkpoint()

    def loaded(**more):
        checkpoints.save_checkpoint(path, {**good, **more})
        return checkpoints.load_networks(path, CPU)

    middle = loaded(progress={"resolution": 8, "alpha": 0.25, "phase": "fade"})
    assert (middle.resolution, middle.alpha) == (8, 0.25)
    assert middle.checkpoint["progress"]["phase"] == "fade"
    before = loaded(progress={"resolution": None, "alpha": 1.0}, options={"initial_resolution": 4})
    assert before.resolution == 4                              # kept before the first step
    for progress in ({"resolution": 32, "alpha": 1.0}, {"resolution": 12, "alpha": 1.0},
                     {"alpha": 1.0}, {"resolution": 8}):
        with pytest.raises(checkpoints.CheckpointError, match="no resolution and alpha") as caught:
            loaded(progress=progress)
        assert str(path) in str(caught.value)
    for progress in ({"resolution": 8, "alpha": 1.5}, {"resolution": 8, "alpha": "all"},
                     {"resolution": [8], "alpha": 1.0}, 5):
        with pytest.raises(checkpoints.CheckpointError, match="impossible|no names") as caught:
            loaded(progress=progress)
        assert str(path) in str(caught.value)


def test_a_stylegan2_stands_at_its_final_resolution(tmp_path):
    """Lesson: it does not grow. A file that says otherwise is refused, before a network is called
    with a resolution or an alpha that it does not have."""
    path, settings = tmp_path / "g.pt", {**SMALL, "architecture": "stylegan2"}
    good = {"settings": settings, "generator_ema": models.make_generator(settings).state_dict()}
    final = SMALL["resolution"]

    def loaded(resolution, alpha, phase):
        checkpoints.save_checkpoint(path, {**good, "progress": {
            "resolution": resolution, "alpha": alpha, "phase": phase}})
        return checkpoints.load_networks(path)

    assert loaded(final, 1.0, "stabilize").resolution == final             # control
    for progress in ((final, 0.5, "fade"), (final, 1.0, "morph"), (final // 2, 1.0, "stabilize")):
        with pytest.raises(checkpoints.CheckpointError, match="no resolution and alpha"):
            loaded(*progress)


# ---- strangers' files: the outside ----


def refusal(path):
    """The sentence with which a file is refused."""
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load_checkpoint(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ") and sentence.isprintable() and len(sentence) < 700
    return sentence.removeprefix(f"{path}: ")


@pytest.fixture
def sound(tmp_path):
    """The bytes of a small checkpoint."""
    checkpoints.save_checkpoint(tmp_path / "sound.pt", a_checkpoint())
    return (tmp_path / "sound.pt").read_bytes()


@pytest.fixture
def no_torch(monkeypatch):
    """Whoever asks torch to open a file has failed."""
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch was asked"))


def with_pickle(sound, change):
    """The file with another data.pkl."""
    return rezipped(sound, lambda name, data: (
        name, change(data) if name.endswith("data.pkl") else data))


FOREIGN = {"a deep key": b"\x80\x02}" + b")" + b"\x85" * 190_000 + b"Ns.",
           "a list in itself": b"\x80\x02]q\x00h\x00a.", "no pickle": b"hello",
           "a huge claim": b"\x80\x04\x8e" + struct.pack("<Q", 2 ** 62) + b"few.",
           "without end": b"\x80\x02" + b"}" * 10_010 + b".",
           "a call": b"\x80\x02cos\nmkdir\nX\x01\x00\x00\x00a\x85R.",
           "pairs": b"\x80\x02ccollections\nOrderedDict\n])NN\x86a\x85R."}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_torch_would_trip_over_is_refused_before(tmp_path, sound, no_torch, monkeypatch,
                                                      what):
    """Lesson: torch.load(weights_only=True) runs nothing, but it hashes what a file calls a key,
    and a tuple 190,000 levels deep ends the interpreter. So the pickle is followed before, by a
    machine that makes nothing of it."""
    monkeypatch.setattr(checkpoints, "MOST_INSTRUCTIONS", 10_000)
    monkeypatch.chdir(tmp_path)                                # where "a call" would make a folder
    path = tmp_path / "h.pt"
    path.write_bytes(with_pickle(sound, lambda data: FOREIGN[what]))
    if what == "a list in itself":                     # is harmless, and no checkpoint
        checkpoints.check_outside(path)
    else:
        assert "damaged" in refusal(path)
    assert sorted(os.listdir(tmp_path)) == ["h.pt", "sound.pt"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_torch_did_not_write_is_refused(tmp_path, sound, no_torch):
    """Lesson: 440 kB that were packed become 400 MB; what is stored as it is cannot swell."""
    path, out = tmp_path / "h.pt", io.BytesIO(sound)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("archive/code.py", "print()")
    for raw, message in [
            (rezipped(sound, method=zipfile.ZIP_DEFLATED), "not one that PyTorch wrote"),
            (out.getvalue(), "has a record 'archive/code.py'"),
            (rezipped(sound, lambda name, data: (name.replace("data.pkl", "DATA.PKL"), data)),
             "has a record 'archive/DATA.PKL'"),
            (rezipped(sound, lambda name, data: (name.replace("data/0", "other/data/0"), data)),
             "has a record 'archive/other/data/0"),
            (rezipped(sound, lambda name, data: (name.replace("data.pkl", "version"), data)),
             "not one that PyTorch wrote"),            # a name that is there twice
            (rezipped(sound, lambda name, data: (name, data[4:] if "/data/0" in name else data)),
             "not as long as it says")]:
        path.write_bytes(raw)
        assert message in refusal(path)


class Lie:
    """A tensor about which a file says what it likes."""

    def __init__(self, shape=(24,), strides=(1,), first=0, learns=False, hooks=None, more=()):
        self.args = (torch.arange(24.0)._typed_storage(), first, shape, strides, learns,
                     collections.OrderedDict(hooks or {}), *more)

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.args


@pytest.mark.parametrize("lie", [
    dict(strides=(0,), shape=(25,)), dict(shape=(20_000, 20_000), strides=(0, 0)),
    dict(shape=(5, 5), strides=(1, 1)), dict(first=1), dict(first=-1), dict(strides=(-1,)),
    dict(shape=(1,) * 9, strides=(1,) * 9), dict(learns=True), dict(hooks={"a": 1}),
    dict(more=({"neg": True},)), dict(shape=("24",)), dict(shape=(2 ** 62,)), dict(shape=(0,))])
def test_a_tensor_that_is_not_there_is_refused(tmp_path, no_torch, lie):
    """Lesson: a file of 13 kB may say that it holds 6 GB, by a stride of 0. A network that loads
    these would be as large; so a tensor may have no more numbers than it brings along."""
    path = tmp_path / "h.pt"
    torch.save({"x": Lie()}, path)
    checkpoints.check_outside(path)                                            # control
    torch.save({"x": Lie(**lie)}, path)
    reason = refusal(path).partition("more than tensors in it ")[2]
    assert "a tensor" in reason or "no sense" in reason, reason


def test_a_storage_is_as_long_as_its_record(tmp_path, sound, no_torch):
    """Lesson: torch asks the pickle how long a storage is, and not the record that it reads. And it
    asks it for the device: "meta" has no numbers."""
    path = tmp_path / "h.pt"
    for old, new, message in [(b"cpu", b"xla", "were on 'xla'"),
                              (b"FloatStorage", b"DoubleStorage", "not as long as it says"),
                              (b"FloatStorage", b"BoolStorage", "asks for 'torch.BoolStorage'"),
                              (b"storage", b"garbage", "where a storage should be")]:
        path.write_bytes(with_pickle(sound, lambda data: data.replace(old, new, 1)))
        assert message in refusal(path)


def test_only_names_that_a_checkpoint_needs_are_let_through(tmp_path, run):
    """Lesson: the list is short, and a sound file asks for all of it. (Kinds of numbers aside.)"""
    path = tmp_path / "run.pt"
    checkpoints.save_checkpoint(path, run)
    asked = pickles.read_anything(path)[1]
    assert checkpoints.NAMES < asked <= checkpoints.NAMES | set(checkpoints.KINDS)


def test_the_limits_are_far_above_what_a_run_of_1024_px_needs(tmp_path, monkeypatch):
    """Lesson: as many tensors as the largest networks have, of one number each, three networks and
    two Adams; the limit is 3 times narrower here."""
    path, saved = tmp_path / "large.pt", {}
    for architecture in ("stylegan", "stylegan2"):
        settings = {**options.PRESETS["your pictures on a GPU"], "architecture": architecture}
        with torch.device("meta"):
            G, D = models.make_generator(settings), models.make_discriminator(settings)
        for part, network in (("generator", G), ("generator_ema", G), ("discriminator", D)):
            saved[part] = {name: torch.zeros(1) for name in network.state_dict()}
        for part, network in (("optimizer_g", G), ("optimizer_d", D)):
            saved[part] = {k: {key: torch.zeros(1) for key in ("step", "exp_avg", "exp_avg_sq")}
                           for k, _ in enumerate(network.parameters())}
        torch.save(saved, path)
        monkeypatch.setattr(checkpoints, "MOST_INSTRUCTIONS", 100_000)
        monkeypatch.setattr(pickles, "LONGEST_PICKLE", 2 ** 23)
        checkpoints.check_outside(path)
        monkeypatch.setattr(checkpoints, "MOST_INSTRUCTIONS", 12_500)          # control
        assert "more than 12500 instructions" in refusal(path)


def test_the_outside_is_checked_in_little_memory(tmp_path):
    """Lesson: before the check the whole file could be read; now its pickle alone is."""
    path = tmp_path / "large.pt"
    torch.save({"x": torch.ones(5_000_000)}, path)
    tracemalloc.start()
    checkpoints.check_outside(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 < path.stat().st_size


# ---- strangers' files: the tensors ----


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_are_not_plain_are_refused(tmp_path):
    """Lesson: torch can save a tensor without numbers, one of complex ones, and six other kinds;
    none is a weight, and each would trip a program up in a place of its own."""
    path, good = tmp_path / "h.pt", a_checkpoint()
    name = "mapping.layers.0.weight"
    weight = good["generator_ema"][name]
    quantized = torch._empty_affine_quantized(weight.shape, scale=0.1, zero_point=0,
                                              dtype=torch.qint8)
    for odd in (weight.to_sparse(), weight.to("meta"), weight.to(torch.complex64), quantized,
                weight.long(), weight > 0, torch.nn.Parameter(weight), weight.tolist(), None,
                torch.zeros(()).expand(weight.shape), weight[None],
                weight.clone().requires_grad_()):
        torch.save({"format": 1, "architecture": "stylegan", **good,
                    "generator_ema": {**good["generator_ema"], name: odd}}, path)
        refusal(path)
    for kind in (torch.float64, torch.float16, torch.bfloat16):                # controls
        checkpoints.save_checkpoint(path, {**good, "generator_ema": {
            **good["generator_ema"], name: weight.to(kind)}})
        loaded = checkpoints.load_networks(path).networks["generator_ema"]
        assert torch.allclose(loaded.state_dict()[name], weight, rtol=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["generator_ema", "generator", "discriminator"])
def test_weights_that_are_not_finite_are_refused(tmp_path, part, value):
    """Lesson: pictures of such a network are grey or black, and nothing would say why."""
    path, network = tmp_path / "h.pt", models.make_generator(SMALL)
    if part == "discriminator":
        network = models.make_discriminator(SMALL)
    state = {**a_checkpoint(), part: network.state_dict()}
    name = list(state[part])[7]
    state[part][name].view(-1)[-1] = 1e38
    checkpoints.save_checkpoint(path, state)
    checkpoints.load_checkpoint(path)                                          # control: large
    state[part][name].view(-1)[-1] = value
    checkpoints.save_checkpoint(path, state)
    assert f"its {part} {name} has values that are not finite" in refusal(path)


def test_one_storage_for_a_whole_network_is_refused(tmp_path):
    """Lesson: a tensor with all its numbers may stand for 100 layers, each of which would get a
    copy: less than 1 MB on the disk, 9 MB in memory."""
    path, settings = tmp_path / "h.pt", {**SMALL, "latent_dim": 150, "mapping_dim": 150,
                                         "style_dim": 150, "mapping_layers": 100}
    with torch.device("meta"):
        shapes = models.make_generator(settings).state_dict()
    one = torch.zeros(150, 150)
    state = {name: one if meta.shape == one.shape else torch.zeros(meta.shape)
             for name, meta in shapes.items()}
    checkpoints.save_checkpoint(path, {"settings": settings, "generator_ema": state})
    assert path.stat().st_size < 1e6
    assert "cannot be in a file of its size" in refusal(path)
    checkpoints.save_checkpoint(path, {"settings": settings, "generator_ema": {
        name: tensor.clone() for name, tensor in state.items()}})
    checkpoints.load_checkpoint(path)                                          # control


# ---- strangers' files: the words ----


@pytest.fixture
def run():
    """A checkpoint that a run can go on from, with moments."""
    path = official.DATA / "official_stylegan.pkl"
    state = {"format": 1, "architecture": "stylegan",
             **import_checkpoint.as_checkpoint(import_checkpoint.import_file(path))}
    state["progress"] |= {"collapsed": False, "pictures": "0" * 64, "split": None}
    state["options"] |= {"data": None}
    for part, network in (("optimizer_g", models.make_generator(state["settings"])),
                          ("optimizer_d", models.make_discriminator(state["settings"]))):
        state[part]["state"] = {
            k: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(weight.shape),
                "exp_avg_sq": torch.ones(weight.shape)}
            for k, weight in enumerate(network.parameters())}
    return state


def checked(run, check=checkpoints.check_words, *arguments):
    """The sentence with which the words of a run are refused, or None."""
    try:
        check(*arguments, run)
    except pickles.Unreadable as error:
        assert str(error).isprintable() and len(str(error)) < 500
        return str(error)


WORDS = [
    ("options", "batch", [1]), ("options", "batch", "8,4:2"), ("options", "batch", "4:0"),
    ("options", "batch", "4:8:2"), ("options", "batch", ""), ("options", "accumulate", "0"),
    ("options", "accumulate", 1), ("options", "learning_rate", "4:nan"),
    ("options", "fade_kimg", "1e999"), ("options", "stabilize_kimg", "-1"),
    ("options", "stabilize_kimg", None), ("options", "data", 5), ("options", "cache", ["c"]),
    ("options", "r1_interval", 0), ("options", "path_interval", 0), ("options", "seed", -1),
    ("options", "seed", 2 ** 70), ("options", "seed", True), ("options", "workers", 10 ** 6),
    ("options", "styles_to_mix", 10 ** 9), ("options", "mixing_probability", 1.5),
    ("options", "total_kimg", 1e308), ("options", "total_kimg", float("nan")),
    ("options", "growth", "jump"), ("options", "precision", "fp4"), ("options", "compile", 1),
    ("options", "evaluate_features", "\x1b[2J"), ("options", "new option", [1]),
    ("options", "initial_resolution", 12), ("options", "resolution", 16),
    ("options", "architecture", "stylegan2"), ("options", 5, 5),
    ("progress", "nimg", "5"), ("progress", "nimg", -1), ("progress", "nimg", None),
    ("progress", "step", 0.5), ("progress", "steps_since_tick", float("inf")),
    ("progress", "resolution", "8"), ("progress", "resolution", 64), ("progress", "alpha", 2),
    ("progress", "alpha", float("nan")), ("progress", "phase", "\x1b[2J"),
    ("progress", "collapsed", "no"), ("progress", "pictures", 5), ("progress", "split", [1]),
    ("progress", "split", {"seed": 0}), ("progress", "split", {"seed": 0, "images": "5"}),
    ("progress", "sums", 5), ("progress", "sums", torch.zeros(1000)),
    ("progress", "sums", torch.zeros(2, 2)), ("progress", "sums", torch.full((9,), float("nan"))),
    ("samples", "columns", 0), ("samples", "columns", 10 ** 9), ("samples", "z", None),
    ("samples", "z", torch.zeros(48, 2, 5)), ("samples", "style_index", torch.zeros(48, 8)),
    ("samples", "style_index", torch.full((48, 8), 2)),
    ("samples", "style_index", torch.zeros(48, 2, dtype=torch.long))]


def test_words_that_cannot_be_are_refused(run):
    """Lesson: a run asks its checkpoint for a hundred words, each in another place of the program.
    One function looks at all of them before anything is done, and names the word."""
    assert checked(run) is None                                                # control
    for part, key, value in WORDS:
        assert checked({**run, part: {**run[part], key: value}}), (part, key, value)
    for part in ("options", "progress", "samples"):
        for value in (None, 5, [], "text"):
            assert "no names and values" in checked({**run, part: value})
        for key in run[part]:
            without = {k: v for k, v in run[part].items() if k != key}
            found = checked({**run, part: without})
            assert (found is not None) == (key in checkpoints.NEEDED[part]), (part, key, found)
            assert found is None or "incomplete" in found


def test_all_words_that_train_writes_are_possible(run):
    """Lesson: what a program writes it must be able to read: every option that there is, as it is
    kept by default, and the ends of some ranges. A new option cannot be forgotten."""
    for situation, preset in options.PRESETS.items():
        for more in ({}, {**options.STYLEGAN2, **options.STYLEGAN2_PRESETS[situation]}):
            for key, value in {**options.ALWAYS, **preset, **more}.items():
                assert checkpoints.OPTIONS[key](value), (key, value)
    for key, text, kind in (("batch", "4:32,8:16", int), ("fade_kimg", "0", float),
                            ("learning_rate", "4:0.00001,512:1e-7", float)):
        kept = options.show(options.read_table(text, kind))
        assert checkpoints.OPTIONS[key](kept), kept
    assert len(run["progress"]["sums"]) == len(LOGGED)
    for part, key, value in [
            ("progress", "split", {"seed": 7, "images": 400}), ("progress", "resolution", 16),
            ("progress", "phase", "morph"), ("progress", "alpha", 1), ("progress", "nimg", 0),
            ("progress", "sums", torch.zeros(6)), ("options", "data", "a folder\nof two lines"),
            ("options", "seed", 2 ** 62), ("options", "new option", "new value")]:
        assert checked({**run, part: {**run[part], key: value}}) is None, (key, value)


def test_moments_that_no_adam_has_are_refused(run):
    """Lesson: an optimizer's state is copied into the run as it is; a switch that is on in a file
    asks for numbers that are not there, and a negative square is the root of a NaN."""
    moment = run["optimizer_g"]["state"][3]
    group, = run["optimizer_g"]["param_groups"]
    weights = list(models.make_generator(run["settings"]).parameters())
    adam = lambda state: checkpoints.check_adam("Adam", state, weights)
    def with_moment(**change):
        return {"state": {3: {**moment, **change}}, "param_groups": [group]}
    def with_group(**change):
        return {"state": {}, "param_groups": [{**group, **change}]}
    shape = moment["exp_avg"].shape
    for odd in (
            None, [], {}, {"state": [], "param_groups": [group]},
            {"state": {}, "param_groups": [group, group]}, {"state": {}, "param_groups": [5]},
            {"state": {999: moment}, "param_groups": [group]},
            {"state": {"3": moment}, "param_groups": [group]},
            {"state": {3: 5}, "param_groups": [group]},
            with_moment(step=-1), with_moment(step="3"), with_moment(exp_avg=torch.zeros(2)),
            with_moment(exp_avg_sq=-torch.ones(shape)), with_moment(more=1),
            with_moment(exp_avg=torch.full(shape, float("nan"))),
            with_group(amsgrad=True), with_group(maximize=True), with_group(lr="0.1"),
            with_group(lr=float("nan")), with_group(betas=(0, 1)), with_group(betas=5),
            with_group(betas=None), with_group(params=group["params"][:-1]),
            with_group(params=[0] * len(group["params"])), with_group(capturable=True),
            {"state": {}, "param_groups": [{"params": group["params"]}]}):
        assert "its Adam" in checked(odd, adam), odd
    for good in (with_moment(), with_moment(step=3.0), with_group(fused=True, lr=0)):
        assert checked(good, adam) is None             # control


def test_a_checkpoint_cannot_write_to_the_terminal(tmp_path, run):
    """Lesson: raw, a name in a file could clear the screen and write a sentence of its own."""
    path, evil = tmp_path / "h.pt", "\x1b[2Jall is well\nsecond line"
    weight = run["generator_ema"]["w_avg"]
    for change in (
            {"generator_ema": {**run["generator_ema"], evil: weight}}, {"architecture": evil},
            {"settings": {**run["settings"], "latent_dim": evil}},
            {"options": {**run["options"], evil: 1}}, {"format": 2 ** 70},
            {"options": {**run["options"], "growth": evil}},
            {"progress": {**run["progress"], "phase": evil}},
            {"optimizer_d": {"state": {}, "param_groups": [
                {**run["optimizer_d"]["param_groups"][0], evil: evil}]}}):
        torch.save({**run, **change}, path)
        refusal(path)                                  # looks for what cannot be printed
    checkpoints.save_checkpoint(path, run)
    raw = path.read_bytes()
    path.write_bytes(rezipped(raw, lambda name, data: (name.replace("data/0", evil), data)))
    assert "\\x1b" in refusal(path)
    path.write_bytes(with_pickle(raw, lambda data: b"\x80\x04X\x02\x00\x00\x00osX\x05\x00\x00\x00"
                                 b"\x1b[2Jx\x93."))
    assert "\\x1b[2J" in refusal(path)


def test_words_of_any_kind_are_shown_in_little_space():
    """Lesson: `repr` of a list of lists of the same list would fill any memory."""
    doubling, deep = [], ()
    for _ in range(60):
        doubling, deep = [doubling, doubling], (deep,)
    for value in (doubling, deep, "x" * 10 ** 6, 10 ** 5000, -10 ** 5000, torch.zeros(100, 100),
                  {k: k for k in range(1000)}, b"\x1b" * 1000, "\x1b[2J\n", lambda: 0, None, 1.5):
        assert len(text := pickles.shown(value)) < 800 and text.isprintable()
    assert pickles.shown("8") == "'8'" and pickles.shown([1, None]) == "[1, None]"
    assert pickles.visible("gr\u00fcn\x1b[2J\u2028") == "gr\u00fcn\\x1b[2J\\u2028"
