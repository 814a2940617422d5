"""The doors: what lets people in who do not come by `pip install -r requirements.txt`."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import generate
import morph
import stylegan_models as models
import tiny
import train
from conftest import ROOT, refused


def requirements(name):
    """{package: lower bound} of a requirements file, without what it includes."""
    lines = re.findall(r"^([\w-]+)>=([\d.]+)", (ROOT / name).read_text("utf-8"), re.M)
    return {package.lower(): bound for package, bound in lines}


def test_uv_installs_what_pip_does():
    """Lesson: two lists of the same packages drift apart unless something compares them."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    project, extra = text.split("[dependency-groups]")

    def listed(part):
        return {package.lower(): bound
                for package, bound in re.findall(r'^    "([\w-]+)>=([\d.]+)"', part, re.M)}
    assert listed(project) == requirements("requirements.txt")
    assert listed(extra) == requirements("requirements-extra.txt")
    assert listed(project) != listed(extra)                    # control


# ---- 2. export -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[
    "stylegan", pytest.param("stylegan2", marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    """A folder with a small checkpoint, whose noise and w_avg are not 0, and one number."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        tiny.no_rehearsal(patch)
        assert train.main([*tiny.RUN, "--architecture", request.param, "--data", str(
            tiny.save_pictures(folder / "photos")), "--cache", str(folder / "cache"), "--out",
            str(folder / "run")]) == 0
    path = folder / "run" / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    for name, tensor in checkpoint["generator_ema"].items():
        if "strength" in name or name == "w_avg":
            tensor.normal_(generator=torch.Generator().manual_seed(len(name)))
    torch.save(checkpoint, path)
    numbers = ({"metric": "FD-x", "value": 12.5, "nimg": checkpoint["progress"]["nimg"]},
               {"metric": "FD-y", "value": 99.5, "nimg": 1},
               {"metric": "FD-z", "value": 99.5, "nimg": checkpoint["progress"]["nimg"],
                "resolution": 8},                              # a smaller one, before morph.py
               {"nimg": checkpoint["progress"]["nimg"], "note": "the user's own"})
    (path.parent / "metrics.jsonl").write_text("".join(json.dumps(n) + "\n" for n in numbers))
    return path.parent


def ours(run, z, psi, noise="const"):
    model = morph.load_networks(run / "checkpoint.pt")
    return model.networks["generator_ema"](z, truncation_psi=psi, noise_mode=noise)


def export(run, *words):
    return generate.main([str(word) for word in (run / "checkpoint.pt", "export", *words)])


def test_the_exported_graph_makes_the_same_pictures(run, tmp_path):
    """Lesson: another program, which knows nothing of PyTorch, draws the same pixels from the
    graph, whatever psi and however many. Control: without the stored noise it would not."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "net.onnx"
    assert export(run, "--onnx", out) == 0
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for n, psi in ((1, 1.0), (3, 0.5)):
        z = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))
        images, = session.run(None, {"z": z.numpy(), "psi": np.array(psi, np.float32)})
        expected = ours(run, z, psi).numpy()
        assert images.shape == (n, 3, 16, 16)
        assert np.abs(images - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(images - ours(run, z, psi, "none").numpy()).max() > 0.01     # control
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.md"]


def test_safetensors_hold_the_network(run, tmp_path):
    """Lesson: names, numbers and settings are enough to build the network again, to the bit. (Its
    pictures may differ in the last bits: weights lie otherwise in memory.)"""
    safetensors = pytest.importorskip("safetensors")
    from safetensors.torch import load_file
    out = tmp_path / "net.safetensors"
    assert export(run, "--safetensors", out) == 0
    with safetensors.safe_open(str(out), "pt") as file:
        settings = json.loads(file.metadata()["settings"])
    G = models.make_generator(settings).eval()
    z = torch.randn(2, 8)
    expected, weights = ours(run, z, 1.0), load_file(str(out))
    assert not torch.allclose(G(z, noise_mode="const"), expected, atol=0.01)   # control
    G.load_state_dict(weights)
    assert torch.allclose(G(z, noise_mode="const"), expected, rtol=1e-4, atol=1e-4)
    kept = torch.load(run / "checkpoint.pt", weights_only=True)["generator_ema"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())


def test_the_card_says_what_is_known(run, tmp_path, capsys):
    """Lesson: a file that is passed on says what it was made of: the pictures by name and not by
    path, how long it learned, what was measured of just this network. Nothing is overwritten."""
    pytest.importorskip("safetensors")
    out = tmp_path / "net.safetensors"
    assert export(run, "--safetensors", out) == 0
    card = (tmp_path / "net.safetensors.md").read_text("utf-8")
    assert "photos (fingerprint" in card and str(run.parent) not in card
    assert "0.6 thousand images" in card and "16 x 16" in card
    command = re.search(r"command\*\*: (python train.py .*)", card)[1]
    assert "--data photos " in command and "--resolution 16 " in command, command
    assert "FD-x | 12.5" in card and "99.5" not in card
    before = out.read_bytes()
    code, line = refused(generate.main, [run / "checkpoint.pt", "export", "--safetensors", out],
                         capsys)
    assert code == 2 and "exists; choose another name" in line and out.read_bytes() == before
    for words, message in (([], "export: as what?"),
                           (["--onnx", "net.pt"], "the name must end in .onnx")):
        code, line = refused(generate.main, [run / "checkpoint.pt", "export", *words], capsys)
        assert code == 2 and message in line, line


def test_a_block_that_is_young_is_not_exported_as_a_grown_one(tmp_path, capsys):
    """Lesson: in the middle of morphing the same weights make other pictures, and the names and
    numbers of a .safetensors cannot say so. A graph can."""
    pytest.importorskip("safetensors")
    small = tmp_path / "checkpoint.pt"
    shutil.copy(ROOT / "tests" / "data" / "format1.pt", small)
    young = tmp_path / "young.pt"
    assert morph.main([str(small), "--out", str(young)]) == 0
    words = ["export", "--safetensors", tmp_path / "a.safetensors"]
    code, line = refused(generate.main, [young, *words], capsys)
    assert code == 2 and "in the middle of morphing, alpha 0.00" in line
    assert not list(tmp_path.glob("a.*"))
    assert generate.main([str(small), *map(str, words)]) == 0  # control


# ---- 3. the notebook -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """Lesson: a notebook rots unless something runs it. Here it trains small networks, draws the
    figures, trains on a folder, and goes on. Judge: what it leaves. Control: an error in the middle
    ends it."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "docs" / "colab.ipynb", as_version=4)
    small = " ".join(tiny.RUN).replace("--total-kimg 0.6", "--total-kimg 0.2")
    settings, setup = (cell for cell in notebook.cells[:3] if cell.cell_type == "code")
    settings.source = (f'REPOSITORY = ""\nOPTIONS = {small!r}\nDATA = '
                       f'{str(tiny.save_pictures(tmp_path / "photos"))!r}\nDATA_OPTIONS = OPTIONS')
    setup.source = setup.source.replace('pathlib.Path("runs").absolute()',
                                        f'pathlib.Path({str(tmp_path / "runs")!r})')
    notebook.cells[-1].source = notebook.cells[-1].source.replace("MORE_KIMG, RUN = 100",
                                                                  "MORE_KIMG, RUN = 0.1")
    # (A machine without a network has the packages already.)
    setup.source = setup.source.replace("pip install --quiet -r requirements.txt",
                                        "pip --version")
    nbclient.NotebookClient(notebook, timeout=600, iopub_timeout=120, resources={
        "metadata": {"path": str(ROOT)}}).execute()
    runs = tmp_path / "runs"
    nimg = {run: torch.load(runs / run / "checkpoint.pt", weights_only=True)["progress"]["nimg"]
            for run in ("faces", "mine")}
    assert nimg["mine"] >= 200 and nimg["faces"] >= nimg["mine"] + 100
    assert {"mixing.png", "truncation.png", "noise.png"} <= {path.name for path in runs.iterdir()}
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())
             if "image/png" in output.get("data", {})]
    assert len(shown) == 6
    settings.source += '\nDATA = "no/such/folder"'
    notebook.cells = [settings, setup, notebook.cells[4], notebook.cells[9]]
    (runs / "mine" / "checkpoint.pt").unlink()
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        nbclient.NotebookClient(notebook, timeout=600, iopub_timeout=120, resources={
            "metadata": {"path": str(ROOT)}}).execute()


# ---- GitHub's workflows ----


def test_the_workflows_name_what_is_there():
    """Lesson: they run elsewhere only. But that they are YAML, and that the files and options that
    they name exist, can be known here."""
    yaml = pytest.importorskip("yaml")
    found = {path.name: yaml.safe_load(path.read_text("utf-8"))
             for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert set(found) == {"tests.yml", "pages.yml"}
    commands = [step["run"] for workflow in found.values() for job in workflow["jobs"].values()
                for step in job["steps"] if "run" in step]
    files = re.findall(r"[\w./-]+\.(?:txt|py)\b", " ".join(commands))
    assert len(files) >= 5 and all((ROOT / file).is_file() for file in files), files
    for name in ("requirements.txt", "requirements-dev.txt"):  # the oldest ones: one version each
        lines = (ROOT / name).read_text("utf-8").splitlines()
        for line in lines:
            assert not line or line.startswith(("#", "-r ")) or re.match(r"[A-Za-z0-9-]+>=", line)
    matrix = found["tests.yml"]["jobs"]["tests"]["strategy"]["matrix"]
    assert {"system": "macos-latest", "packages": "oldest"} in matrix["exclude"]   # two torches
