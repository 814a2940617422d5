"""workshop/checkpoints.py, from top to bottom: what is saved comes back, and nothing else does."""

import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

import stylegan_models as models
from conftest import ROOT
from workshop import UserError, checkpoints, machine

SMALL = dict(resolution=16, channel_base=64, channel_max=16, latent_dim=12, style_dim=10,
             mapping_dim=14, mapping_layers=2)
CPU = torch.device("cpu")


def a_checkpoint():
    return {"settings": SMALL, "generator_ema": models.make_generator(SMALL).state_dict()}


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
            ({"generator_ema": wrong}, "w_avg is [11], its settings ask for [10]"),
            ({"generator_ema": {**good["generator_ema"], "w_avg": 3}}, "w_avg is None"),
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
    StyleGAN, or one that calls a StyleGAN so, is refused by the first name that does not fit."""
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
    with pytest.raises(checkpoints.CheckpointError, match="generator_ema has path_length_mean"):
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
                     {"resolution": 8, "alpha": 1.5}, {"resolution": 8, "alpha": "all"},
                     {"alpha": 1.0}, {"resolution": [8], "alpha": 1.0}, 5):
        with pytest.raises(checkpoints.CheckpointError, match="no resolution and alpha") as caught:
            loaded(progress=progress)
        assert str(path) in str(caught.value)


def test_a_stylegan2_stands_at_its_final_resolution(tmp_path):
    """Lesson: it does not grow. A file that says otherwise is refused before a network is called so
    that it cannot be."""
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
