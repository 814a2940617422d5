"""All programs, as a user types them, in places that are not as one thinks.

A disk is full, a folder may not be written, stdout is closed, a reader has gone, there is no home.
What the program owes its user is the same in all of them: it does what it was asked for, or it
says in one sentence which file it could not write, and ends with exit code 2. No traceback, no
hang. What was there before is there still, to the byte, and nothing temporary is left.

    python -m pytest -n0 tests/test_places.py -m "slow or not slow"

prints a table at its end: each place, and how many programs were run there. Places are made in a
mount namespace of their own (`unshare -m`), so nothing stays mounted; where that is not allowed
(not root, a container, no Linux) their tests are skipped.
"""

import collections
import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

import project
import tiny
import train
from conftest import ROOT, refused
from workshop import UserError, check_writable, checkpoints, naming, options
from workshop.figures import written

# ---- 1. In this process: who names the file, and when ----


def test_an_error_names_the_file_that_was_meant(tmp_path):
    """Lesson: a full disk does not say which file it had no room for, and a temporary name is no
    help. What names another file keeps its name, and a reader who has gone is no file at all."""
    path, temporary = tmp_path / "faces.png", tmp_path / "faces.7.tmp.png"
    for error, says in (
            (OSError(28, "No space left on device"), f"{path}: No space left on device"),
            (OSError(30, "Read-only", str(temporary)), f"{path}: Read-only"),
            (OSError("encoder error -2"), f"{path}: encoder error -2"),
            (OSError(2, "No such file", "other.png"), "other.png: No such file")):
        with pytest.raises(OSError) as named, naming(path, temporary):
            raise error
        assert options.sentence_of(named.value) == says
    with pytest.raises(BrokenPipeError) as gone, naming(path):
        raise BrokenPipeError(32, "Broken pipe")
    assert gone.value.filename is None
    with pytest.raises(OSError) as named, written(path) as temporary:
        raise OSError(28, "No space left on device")
    assert named.value.filename == str(path) and not [*tmp_path.iterdir()]


def test_a_place_that_cannot_be_written_is_known_beforehand(tmp_path, monkeypatch):
    """Lesson: not after the search of an hour. Folders that are missing would be made."""
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "folders" / "x.png")
    check_writable(pathlib.Path("x.png"))
    with monkeypatch.context() as patch:                       # as on a drive that is not there
        patch.setattr(os.path, "lexists", lambda path: False)
        check_writable(tmp_path / "new" / "x.png")             # ends
    with pytest.raises(UserError, match="file is no folder"):
        check_writable(tmp_path / "file" / "x.png")
    monkeypatch.setattr(os, "access", lambda folder, mode: pathlib.Path(folder) != tmp_path)
    with pytest.raises(UserError, match="--plot .*x.png: nothing can be written in"):
        check_writable(tmp_path / "new" / "x.png", "--plot")


def test_a_folder_that_is_gone_and_names_that_cannot_be_read_are_refused(tmp_path, monkeypatch,
                                                                        capsys):
    """Lesson: in a folder that was deleted nothing has a whole path. And where Python takes names
    for ASCII or Latin-1, TensorBoard would write UTF-8, into a folder of another name."""
    def run(*words):
        return refused(lambda argv: 0, words, capsys)
    assert run("größe.pt") == (0, "")                          # control
    with monkeypatch.context() as other:
        other.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
        code, said = run("größe.pt")
        assert code == 2 and "as iso8859-1" in said and "PYTHONUTF8=1" in said
        other.chdir(tmp_path)
        assert run("faces.pt") == (0, "")
        (tmp_path / "größe").mkdir()
        other.chdir(tmp_path / "größe")
        assert run("faces.pt")[0] == 2
    if os.name != "nt":
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        code, said = run("faces.pt")
        assert code == 2 and "has been deleted" in said


def test_a_picture_and_its_w_are_both_new_or_both_old(tmp_path, monkeypatch, capsys):
    """Lesson: the disk has room for the picture and not for the w beside it."""
    G, _ = tiny.networks()
    checkpoints.save_checkpoint(tmp_path / "g.pt", {"settings": tiny.SETTINGS,
                                                    "generator_ema": G.state_dict()})
    photo = tiny.save_pictures(tmp_path / "photos", 1) / "0.png"

    def project_with(steps):
        code, said = refused(project.main, [tmp_path / "g.pt", photo, "--features", "pixels",
                                            "--steps", steps, "--device", "cpu", "--out",
                                            tmp_path / "p.png"], capsys)
        return code, said, files(tmp_path)

    def full(path, *rest):
        raise OSError(28, "No space left on device", str(path))
    code, _, old = project_with(1)
    with monkeypatch.context() as patch:
        patch.setattr(project, "save_w", full)
        code_full, said, new = project_with(2)
    assert (code, code_full) == (0, 2) and f"{tmp_path / 'p.npz'}: No space" in said and new == old
    new = project_with(2)[2]                                   # control: room again
    assert new["p.png"] != old["p.png"] and new["p.npz"] != old["p.npz"]


# ---- 2. The programs -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a run, its pictures and their cache, a feature network, an official file."""
    folder = tmp_path_factory.mktemp("base")
    tiny.save_pictures(folder / "photos", 130)
    shutil.copy(ROOT / "tests" / "data" / "official_stylegan.pkl", folder)

    class Means(torch.nn.Module):
        def forward(self, images):
            return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)
    torch.jit.script(Means()).save(str(folder / "means.pt"))
    here = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        tiny.no_rehearsal(patch)
        os.chdir(folder)
        try:
            assert train.main([str(word) for word in new_run(folder, folder / "run")[1:]]) == 0
        finally:
            os.chdir(here)
    # A whole block of a disk, so that no further line has room in it.
    lines = b'{"nimg": 1, "metric": "FID", "value": 1.0}'
    (folder / "run" / "metrics.jsonl").write_bytes(lines.ljust(4095) + b"\n")
    return folder


def new_run(base, out):
    return ["train.py", "--data", base / "photos", "--cache", base / "cache", *tiny.RUN,
            "--resolution", 8, "--total-kimg", 0.3, "--samples-kimg", 0.05, "--workers", 0,
            "--out", out]


def programs(base, out):
    """{name: (the words that are typed, what they make in `out`)}"""
    run, cpu = out / "run" / "checkpoint.pt", ["--device", "cpu"]
    generate = ["generate.py", run]
    loop = [*generate, "interpolate", "--frames", 12, "--seeds", "0,1", *cpu, "--out"]
    plot = ["evaluate.py", out / "run", "--plot"]
    return {
        "train": (new_run(base, out / "new"), "new/checkpoint.pt"),
        "resume": (["train.py", "--resume", run, "--total-kimg", 0.4, *cpu],
                   "run/samples/000000400.png"),
        "convert": (["convert_resolution.py", run, 16, "--out", out / "c.pt"], "c.pt"),
        "morph": (["morph.py", run, "--out", out / "m.pt"], "m.pt"),
        "import": (["import_checkpoint.py", base / "official_stylegan.pkl", out / "i.pt"], "i.pt"),
        "samples": ([*generate, "samples", "--seeds", "0-3", *cpu, "--out", out / "samples"],
                    "samples/sheet-0-3.png"),
        "figure.png": ([*generate, "mixing", *cpu, "--out", out / "f.png"], "f.png"),
        "figure.jpg": ([*generate, "truncation", *cpu, "--out", out / "f.jpg"], "f.jpg"),
        "figure.webp": ([*generate, "noise", "--draws", 2, *cpu, "--out", out / "f.webp"],
                        "f.webp"),
        "loop.mp4": ([*loop, out / "l.mp4"], "l.mp4"),
        "loop.webp": ([*loop, out / "l.webp"], "l.webp"),
        "loop.gif": ([*loop, out / "l.gif"], "l.gif"),
        "project": (["project.py", run, base / "photos" / "3.png", "--steps", 2, "--features",
                     "pixels", *cpu, "--out", out / "p.png"], "p.png"),
        "evaluate": (["evaluate.py", run, "--metrics", "fid", "--features", base / "means.pt",
                      "--images", 128, *cpu, "--cache", out / "cache", "--data", base / "photos"],
                     "run/metrics.jsonl"),
        "plot.png": ([*plot, out / "curves.png"], "curves.png"),
        "plot.svg": ([*plot, out / "curves.svg"], "curves.svg"),
        "plot.pdf": ([*plot, out / "curves.pdf"], "curves.pdf")}


NAMES = list(programs(pathlib.Path(), pathlib.Path()))
# One of each kind, where it does not matter in which format a picture is; and some, where all of
# them go through the same lines of workshop/options.py.
KINDS = ["train", "resume", "convert", "morph", "import", "samples", "loop.mp4", "project",
         "evaluate", "plot.png"]
SOME = ["train", "import", "loop.mp4", "evaluate"]
SECONDS = 120                     # a hang; a machine that has much to do needs some 20

visited = collections.Counter()   # {place: programs that have been there}


@pytest.fixture(scope="module", autouse=True)
def count(request):
    """At the end, the table for docs/results.md."""
    yield
    if visited and getattr(request.config.option, "numprocesses", None) in (None, 0):
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n\n| place | programs |\n|---|---|")
            for place, programs in visited.items():
                print(f"| {place} | {programs} |")
            print(f"| all | {sum(visited.values())} |")


@functools.lru_cache(1)
def unshare():
    """Can this user mount things that only his own processes see?"""
    try:
        return subprocess.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"],
                              capture_output=True).returncode == 0
    except OSError:
        return False


def needs_mounts():
    if not unshare():
        pytest.skip("mounting is not allowed here (needs root and unshare)")


def files(folder):
    """{path: bytes}. Who held a lock last, and where a cache was when it was last looked at, may
    be written anew."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name not in (".lock", "looked.json")}


def call(place, words, script='exec "$@"', python=(), mounts=False, **surroundings):
    """(exit code, stdout, stderr) of a program that is started by a shell's script."""
    if mounts:
        needs_mounts()
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("PYTHONUNBUFFERED", "PYTHONUTF8")}
    environment.update({key: str(value) for key, value in surroundings.items() if key != "cwd"})
    command = ["sh", "-c", "set -e\n" + script, "sh", sys.executable, *python,
               str(ROOT / words[0]), *map(str, words[1:])]
    done = subprocess.run(["unshare", "-m", *command] if mounts else command, env=environment,
                          cwd=surroundings.get("cwd"), capture_output=True, timeout=SECONDS)
    out, error = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    assert "Traceback" not in out + error and "Exception ignored" not in error, error
    visited[place] += 1
    return done.returncode, out, error


def sentences(error):
    """What a program says on stderr, without its notes."""
    return [line for line in error.splitlines() if not line.startswith("note: ")]


@pytest.fixture
def out(base, tmp_path):
    """A folder with a copy of the run; programs write into it."""
    folder = tmp_path / "out"
    shutil.copytree(base / "run", folder / "run")
    shutil.copytree(base / "cache", folder / "cache")
    return folder


def nothing_lost(before, after, may_grow=()):
    """Fails if a file has changed or gone, or something temporary has come."""
    for name, old in before.items():
        assert name in after, f"{name} is gone"
        assert after[name] == old or name in may_grow and after[name].startswith(old), name
    assert not [name for name in after if "tmp" in name or "partial" in name]
    empty = [name for name in after if name not in before and not after[name]]
    assert not empty, f"nothing is in {empty}"


# ---- 3. A full disk --------------------------------------------------------------------------

# The program runs on a small disk of its own, with $FREE bytes left, and then $THEN on the same
# disk with room. What lies there afterwards is copied to $RESULT.
SMALL_DISK = """
mount -t tmpfs -o size=8m none "$DISK"
cp -a "$OLD/." "$DISK"
bytes() { set -- $(stat -f -c '%a %S' "$DISK"); echo $(($1 * $2)); }
here=$(bytes); fallocate -l $((here > FREE ? here - FREE : 1)) "$DISK/filler"
set +e; "$@"; code=$?
rm "$DISK/filler"
if [ "$THEN" ]; then sh -c "$THEN" >"$RESULT/then" 2>&1 || exit 99; fi
mkdir "$RESULT/disk"; cp -a "$DISK/." "$RESULT/disk"
exit $code
"""


def on_a_small_disk(name, base, old, free, tmp_path, then=""):
    """Returns (exit code, stdout, stderr, the files afterwards)."""
    disk, result = tmp_path / "disk", tmp_path / f"result-{free}"
    disk.mkdir(exist_ok=True), result.mkdir()
    words, _ = programs(base, disk)[name]
    ended = call("disk full", words, SMALL_DISK, mounts=True, DISK=disk, OLD=old, FREE=free,
                 RESULT=result, THEN=then)
    return *ended, files(result / "disk")


def check_a_full_disk(name, base, out, tmp_path, shares=(0.5,)):
    """The control first: with room it works. It leaves the old files of the tries after it, which
    have room for shares of what is made."""
    words, made = programs(base, out)[name]
    if name.startswith("loop"):
        pytest.importorskip("imageio_ffmpeg", reason="needs requirements-extra.txt")
    before = files(out)
    code, _, error = call("a usual folder", words)
    assert code == 0 and not sentences(error), error
    assert before.get(made) != files(out)[made]
    size = sum(len(content) for path, content in files(out).items() if before.get(path) != content)
    if name in ("convert", "morph", "import"):                 # these write over nothing
        (out / made).unlink()
    before = files(out)
    for free in (int(share * size) for share in shares):
        code, said, error, after = on_a_small_disk(name, base, out, free, tmp_path)
        assert code == 2 and len(sentences(error)) == 1, error
        named = re.search(r"(/\S*/disk/[\w./-]*\w)", sentences(error)[0])
        assert named, error
        nothing_lost(before, after)


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_pictures(base, out, tmp_path):
    """Lesson: the sentence names the picture, the old one is whole, and no half of one is left."""
    check_a_full_disk("samples", base, out, tmp_path, shares=[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (
    "train", "resume", "evaluate", "samples")])
def test_a_full_disk_is_one_sentence_that_names_the_file(name, base, out, tmp_path):
    """Lesson: also from matplotlib's PDF, which ended with an error of its own, and from ffmpeg;
    and of a photograph's picture and its w there are both, or neither."""
    check_a_full_disk(name, base, out, tmp_path)


@pytest.mark.slow
def test_a_full_disk_costs_a_measurement_nothing_but_its_line(base, out, tmp_path):
    """Lesson: the number is shown. That features and line are not kept is a note each."""
    code, said, error, after = on_a_small_disk("evaluate", base, out, 0, tmp_path)
    assert code == 0 and "FD-means" in said and not sentences(error)
    for name in ("metrics.jsonl", r"features-8px-128-\w+.npy"):
        assert len(re.findall(f"note: .*/disk/.*{name} cannot be written", error)) == 1, error
    nothing_lost(files(out), after)
    code, _, error, after = on_a_small_disk("evaluate", base, out, 2 ** 20, tmp_path)
    assert code == 0 and "cannot be written" not in error      # control: with room
    assert any("features-" in path for path in after)
    nothing_lost(files(out), after, may_grow=["run/metrics.jsonl"])


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    """What `train` makes in a usual place: its last checkpoint."""
    out = tmp_path_factory.mktemp("undisturbed")
    code, _, error = call("a usual folder", programs(base, out)["train"][0])
    assert code == 0, error
    return checkpoints.load_checkpoint(out / "new" / "checkpoint.pt")


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 13_000, 150_000, 450_000])
def test_a_run_on_a_full_disk_can_be_resumed(free, base, undisturbed, tmp_path):
    """Lesson: the disk is full at the settings, the first picture, a grid, the log, TensorBoard, a
    checkpoint. The run says which, and the end of the resumed run is that of one undisturbed."""
    (tmp_path / "old").mkdir()
    checkpoint = tmp_path / "disk" / "new" / "checkpoint.pt"
    code, said, error, after = on_a_small_disk(
        "train", base, tmp_path / "old", free, tmp_path,
        f"test ! -e '{checkpoint}' || '{sys.executable}' '{ROOT / 'train.py'}' --device cpu "
        f"--resume '{checkpoint}' --total-kimg 0.3")
    last = sentences(error)[-1]
    assert code in (1, 2) and len(sentences(error)) == 1, error
    assert "No space left" in last or "full disk" in last, error
    assert re.search(r"/disk/new/(settings.json|samples/reals.png|checkpoint(-\d)?.pt)", last)
    assert not [name for name in after if "tmp" in name]
    assert not [name for name in after if name.endswith(".png") and not after[name]]
    assert ("no checkpoint to go on from" in last or code == 2) == (
        "new/checkpoint.pt" not in after)
    if "new/checkpoint.pt" in after:
        end = checkpoints.load_checkpoint(tmp_path / f"result-{free}" / "disk" / "new" /
                                          "checkpoint.pt")
        del end["options"]
        assert tiny.differences(end, {k: v for k, v in undisturbed.items() if k != "options"}) == []


@pytest.mark.slow
def test_a_run_whose_words_have_no_room_goes_on(base, out, tmp_path):
    """Lesson: `python train.py > log 2>&1`, and the log's disk is full after the first lines. The
    run is not what it prints: all that it keeps is there."""
    words, made = programs(base, out)["train"]
    script = """
    mount -t tmpfs -o size=64k none "$DISK"
    fallocate -l 60k "$DISK/filler"
    set +e; "$@" >"$DISK/log" 2>&1; code=$?
    cp "$DISK/log" "$RESULT"
    exit $code"""
    (tmp_path / "disk").mkdir()
    code, _, _ = call("disk of its words full", [*words, "--tick-kimg", 0.008], script, mounts=True,
                      DISK=tmp_path / "disk", RESULT=tmp_path / "log")
    assert len((tmp_path / "log").read_bytes()) == 4096        # control: it was too little
    assert code in (0, 2) and len(tiny.log_of(out / "new")) > 30
    assert checkpoints.load_checkpoint(out / made)["progress"]["nimg"] == 304


# ---- 4. Folders that may not be written, and folders that go ---------------------------------

FORBIDDEN = {
    "read-only disk": 'mount --bind "$OUT" "$OUT"; mount -o remount,ro,bind "$OUT"; exec "$@"',
    # Root without its powers asks for permission as everybody does.
    "no permission": 'chmod -R a-w "$OUT"; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'}


@pytest.mark.slow
@pytest.mark.parametrize("place, name", [
    *(("read-only disk", name) for name in KINDS), *(("no permission", name) for name in SOME)])
def test_a_place_that_may_not_be_written_is_one_sentence(place, name, base, out):
    """Lesson: before anything is computed, and with the name of what it would have written."""
    words, made = programs(base, out)[name]
    before = files(out)
    try:
        code, said, error = call(place, words, FORBIDDEN[place], mounts=True, OUT=out)
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(out)], check=True)
    assert files(out) == before
    if name == "evaluate":                     # the number is shown, and its line is not kept
        assert code == 0 and "FD-means" in said and "metrics.jsonl cannot be written" in error
        return
    assert code == 2 and len(sentences(error)) == 1, error
    assert re.search(f"{out}/.*nothing can be written in ", sentences(error)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_in_a_folder_that_was_deleted_nothing_is_done(name, base, out, tmp_path):
    """Lesson: it is one sentence. (With MKL it is that library's own, before ours can be said.)"""
    (tmp_path / "gone").mkdir()
    before = files(out)
    code, _, error = call("deleted folder", programs(base, out)[name][0],
                          'cd "$GONE"; rmdir "$GONE"; exec "$@"', GONE=tmp_path / "gone")
    assert code == 2 and len(sentences(error)) == 1 and files(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("name, deleted", [
    ("train", "new"), ("samples", "samples"), ("loop.mp4", "."), ("evaluate", "run")])
def test_a_folder_that_goes_meanwhile_is_no_traceback(name, deleted, base, out):
    """Lesson: somebody tidies up. What is made is kept in a new folder, or named as lost."""
    words, made = programs(base, out)[name]
    words = words + {"train": ["--total-kimg", 600], "samples": ["--seeds", "0-2000"],
                     "loop.mp4": ["--frames", 3000], "evaluate": []}[name]
    script = """
    "$@" & program=$!
    for k in $(seq 600); do
        test -e "$WAIT" && break; sleep 0.1
    done
    sleep 1
    until rm -rf "$OUT"; do :; done              # "not empty": a file came while it looked
    wait $program"""
    wait = {"train": out / "new" / "log.jsonl", "samples": out / "samples" / "seed0003.png",
            "loop.mp4": out, "evaluate": out}[name]
    code, said, error = call("folder deleted meanwhile", words, script, OUT=out / deleted,
                             WAIT=wait)
    assert code in (0, 1, 2) and len(sentences(error)) <= 1
    assert code == 0 or str(out) in error


# ---- 5. What surrounds a program -------------------------------------------------------------

BARE = """
unset HOME TERM LANG
export LC_ALL=C TMPDIR=/nonexistent/tmp OMP_NUM_THREADS=1
cd /proc
exec setsid -w "$@" <&-"""

SURROUNDINGS = {
    "bare": BARE,
    "stdout, stderr closed": 'exec "$@" >&- 2>&-',
    "reader gone": '{ set +e; "$@"; echo $? >"$CODE"; } 2>&1 | true',
    "dumb terminal": 'export TERM=dumb; exec script -qec "$(printf "\'%s\' " "$@")" /dev/null'}


@pytest.mark.slow
@pytest.mark.parametrize("place, name", [
    (place, name) for place in SURROUNDINGS for name in (KINDS if place == "bare" else SOME)])
def test_a_program_needs_little_around_it(place, name, base, out, tmp_path):
    """Lesson: bare is all of this at once: no home, no terminal, no stdin, no TMPDIR, LC_ALL=C with
    a folder that is not ASCII, `python -O`, started from a folder that nobody can write to. Who
    closes stdout gets the files; whose reader goes gets the files, or exit code 141."""
    if place == "dumb terminal" and not shutil.which("script"):
        pytest.skip("needs the program script")
    other = out.rename(tmp_path / "größe")
    words, made = programs(base, other)[name]
    before = files(other)
    code, said, error = call(place, words, SURROUNDINGS[place], ["-O"] * (place == "bare"),
                             CODE=tmp_path / "code")
    assert code == 0 and not sentences(error), error
    if place == "reader gone":
        code = int((tmp_path / "code").read_text())
        assert code in (0, 141)
    if code == 0:
        after = files(other)
        assert after[made] != before.get(made)
        if name != "resume":
            nothing_lost(before, after, may_grow=["run/metrics.jsonl"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_what_cannot_be_printed_is_said(name, base, out):
    """Lesson: `> log` on a full disk. One sentence that blames the right file, and not 120, which
    is Python's own exit code for it."""
    before = files(out)
    code, _, error = call("stdout on a full disk", programs(base, out)[name][0],
                          'exec "$@" >/dev/full')
    assert code == 2 and len(sentences(error)) == 1, error
    assert "what it prints, or a temporary file: No space left" in error
    nothing_lost(before, files(out), may_grow=["run/metrics.jsonl"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_names_that_python_cannot_read_are_refused(name, base, out, tmp_path):
    """Lesson: with Python's UTF-8 forbidden. A run used to end with a traceback of TensorBoard."""
    other = out.rename(tmp_path / "größe")
    before = files(other)
    code, _, error = call("names as ASCII", programs(base, other)[name][0], LC_ALL="C",
                          PYTHONUTF8=0, PYTHONCOERCECLOCALE=0)
    assert code == 2 and "PYTHONUTF8=1" in error and len(sentences(error)) == 1, error
    assert files(other) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_a_program_can_lie_where_nothing_can_be_written(name, base, out, tmp_path):
    """Lesson: installed by somebody else, without byte code of its own; `python -B`."""
    words, made = programs(base, out)[name]
    before = files(out)
    script = 'mount --bind "$ROOT" "$ROOT"; mount -o remount,ro,bind "$ROOT"; exec "$@"'
    code, said, error = call("read-only program", words, script, ["-B"], mounts=True, ROOT=ROOT)
    assert code == 0 and not sentences(error), error
    assert files(out)[made] != before.get(made)


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("train", "1m"), ("train", "64k"), ("evaluate", "1m")])
def test_little_shared_memory_is_enough(name, size, base, out):
    """Lesson: a container has 64 MB of /dev/shm, or less; processes that load pictures would die of
    a bus error, or wait for ever. Where it does not do for them, one process loads, and says so."""
    words, made = programs(base, out)[name]
    shutil.rmtree(out / "cache")
    words = words + ["--workers", 2, "--cache", out / "cache"] * (name == "train")
    code, said, error = call("small /dev/shm", words, mounts=True, SIZE=size,
                             script='mount -t tmpfs -o size=$SIZE none /dev/shm; exec "$@"')
    assert code == 0 and not sentences(error), error
    assert ("too little for more" in said + error) == (size == "64k")
    assert (out / made).exists()


FULL_TMP = """
mount -t tmpfs -o size=4k none "$TMPDIR"
head -c 4096 /dev/zero >"$TMPDIR/full"
exec "$@"
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_a_temporary_folder_that_is_full_is_not_needed(name, base, out, tmp_path):
    """Lesson: TMPDIR has no room. Python takes another one, and what is made lies beside --out."""
    words, made = programs(base, out)[name]
    before = files(out)
    (tmp_path / "full").mkdir()
    code, said, error = call("TMPDIR full", words, FULL_TMP, mounts=True, TMPDIR=tmp_path / "full")
    assert code == 0 and not sentences(error), error
    assert files(out)[made] != before.get(made)


# ---- 6. The page -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", ["bare", "stdout, stderr closed"])
def test_the_page_opens_anywhere(place, base, out, tmp_path):
    """Lesson: it is served, and its temporary folder goes with it."""
    pytest.importorskip("gradio", reason="needs requirements-extra.txt")
    other = out.rename(tmp_path / "größe")
    (tmp_path / "tmp").mkdir()
    port = 8100 + os.getpid() % 800
    script = SURROUNDINGS[place].replace("TMPDIR=/nonexistent/tmp", "TMPDIR=$TEMPORARY").replace(
        "setsid -w ", "")
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", sys.executable, str(ROOT / "explore.py"),
         str(other / "run" / "checkpoint.pt"), "--no-open", "--device", "cpu", "--port", str(port)],
        env={**os.environ, "TEMPORARY": str(tmp_path / "tmp"), "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until, answer = time.monotonic() + SECONDS, None
    while not answer and time.monotonic() < until and process.poll() is None:
        try:
            answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).status
        except OSError:
            time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    visited[place] += 1
    assert answer == 200 and process.returncode == 130 and b"Traceback" not in error, error
    assert not [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("explore-")]
