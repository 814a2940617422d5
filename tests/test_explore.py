"""explore.py: what its page claims, without a browser (tests/test_explore_browser.py has one).

What holds for the networks of both papers is tested with both (`both`).
"""

import asyncio
import importlib
import inspect
import os
import pathlib
import shlex
import signal
import socket
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image

import explore
import generate
import project
from conftest import refused
from explore import Given, Look
from stylegan_layers import ModulatedConv2d
from test_generate import CPU, SMALL_OF, save
from tiny import needs
from workshop import UserError, faces, page

both = pytest.mark.parametrize("settings", SMALL_OF, indirect=True)
needs_gradio = needs("gradio")


@pytest.fixture
def settings(request):
    return SMALL_OF[getattr(request, "param", "stylegan")]


@pytest.fixture
def network(settings, tmp_path, monkeypatch):
    """A Network of a small checkpoint, whose saved files come into a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "place_for", lambda name: tmp_path / name)
    save(tmp_path / "tiny net.pt", settings)
    return explore.Network("tiny net.pt", generate.load_model("tiny net.pt", CPU))


def a_face(network, seed=3, each=False, name="photo"):
    w = np.random.RandomState(seed).standard_normal((6 if each else 1, 10)).astype(np.float32)
    return network.given(name, w)


def dials(**changed):
    """What the page's controls say when nothing was touched."""
    return {**dict(seed="5", given=None, psi=1, cutoff=18, noise="const", noise_seed="0",
                   strengths=[1, 1, 1], groups=["", "", ""], layers="0-1", other="", moves={}),
            **changed}


# ---- 1. the same picture again ----

LOOKS = {
    "a seed": Look(5),
    "psi": Look(5, psi=-0.35),
    "cutoff": Look(5, psi=0.7, cutoff=3),
    "no noise": Look(5, noise="none", strengths=(2.0, 1.0, 1.0)),
    "random noise": Look(5, psi=0.5, noise="random", noise_seed=7),
    "noise strengths": Look(5, strengths=(1.0, 0.35, 2.0)),
    "and back to 1": Look(5, strengths=(1.0, 0.35, 1.0)),
    "no coarse noise": Look(5, noise="random", strengths=(0.0, 1.0, 1.0)),
    "mixing": Look(5, psi=0.7, mixes=((8, 0, 1), (9, 4, 5))),
    "directions": Look(5, moves=(((0, 5), (0.5, -1.0, 0.0, 0.0, 0.0, 0.1)), ((2, 3), (1.0,)))),
    "everything": Look(5, 0.6, 4, "random", 3, (0.5, 1.0, 1.5), ((2 ** 32 - 1, 2, 3),),
                       (((4, 5), (0.25, 0.5)),)),
}


def same_again(network, look, tmp_path):
    """Run the printed command. Does its PNG hold what the page showed? Returns (shown, again)."""
    if not look.plain:
        network.save_w(look)
    words = shlex.split(shlex.join(network.command(look)))
    assert words[:2] == ["python", "generate.py"]
    generate.main(words[2:])
    made = [path for path in (tmp_path / "samples").glob("*.png") if "sheet" not in path.name]
    with Image.open(made[0]) as image:
        return network.picture(look), np.asarray(image)


@both
@pytest.mark.parametrize("which", LOOKS)
def test_the_printed_command_makes_the_same_picture(network, which, tmp_path):
    """Lesson: psi, noise and a seed fit into a command. All else that a picture is, is its ws."""
    shown, again = same_again(network, LOOKS[which], tmp_path)
    assert np.array_equal(shown, again)
    assert which == "a seed" or not np.array_equal(shown, network.picture(Look(5)))    # control


@both
@pytest.mark.parametrize("each", [False, True])
def test_the_command_of_a_face_without_a_seed(network, each, tmp_path):
    look = Look(a_face(network, each=each), psi=0.7, noise="random", noise_seed=2)
    shown, again = same_again(network, look, tmp_path)
    assert np.array_equal(shown, again)


def test_an_unfinished_network_is_shown_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "place_for", lambda name: tmp_path / name)
    progress = dict(resolution=8, alpha=0.25, phase="fade", nimg=0)
    save(tmp_path / "young.pt", progress=progress)
    network = explore.Network("young.pt", generate.load_model("young.pt", CPU))
    shown, again = same_again(network, Look(5, mixes=((6, 0, 1),)), tmp_path)
    assert shown.shape == (8, 8, 3) and np.array_equal(shown, again)
    assert network.ranges() == {"all": (0, 3), "coarse": (0, 1), "fine": (2, 3)}
    assert network.model.growing == "fading in, alpha 0.25"


def test_an_edited_face_keeps_its_noise(network):
    """Lesson: were its noise drawn from the file's name, each move of a slider would change it."""
    edited = [Look(5, noise="random", moves=(((0, 5), (s,)),)) for s in (1e-4, 2e-4)]
    names = [network.file_of(look) for look in edited]
    assert names[0] != names[1] and all(name.startswith("seed0005-") for name in names)
    assert {faces.key_of(pathlib.Path(f"{name}.npz")) for name in names} == {5}
    pictures = [network.picture(look).astype(int) for look in (Look(5, noise="random"), *edited)]
    assert max(abs(picture - pictures[0]).max() for picture in pictures) <= 1
    other = network.picture(Look(5, noise="random", noise_seed=1)).astype(int)
    assert abs(other - pictures[0]).max() > 5                                          # control
    kept = {faces.key_of(pathlib.Path(name)) for name in ("me-1a2b3c4d.npz", "me-00000000.npz")}
    assert len(kept) == 1 and faces.key_of(pathlib.Path("me.npz")) in kept
    assert faces.key_of(pathlib.Path("you.npz")) not in kept                           # control


@both
def test_a_wall_is_what_its_command_draws(network, tmp_path):
    look = Look(0, 0.7, 3, "random", 3, (1.0, 1.0, 0.5))
    seeds = list(range(4, 16))
    generate.main(shlex.split(shlex.join(network.wall_command(seeds, look)))[2:])
    for seed, shown in zip(seeds, network.wall(seeds, look)):
        with Image.open(tmp_path / "samples" / f"seed{seed:04d}.png") as image:
            assert np.array_equal(np.asarray(image), shown)


@pytest.mark.parametrize("one_way", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_the_command_of_a_video_makes_the_same_video(network, plain, one_way, tmp_path,
                                                     monkeypatch):
    films = []
    monkeypatch.setattr(generate.video, "write_video",
                        lambda path, frames, count, fps: films.append(np.stack(list(frames))))
    looks = [Look(5, psi=0.7, noise="random"), Look(8, psi=0.7), Look(9, psi=0.7 if plain else 1.0)]
    frames, words, files = network.film(looks, 13, one_way)
    shown = np.stack(list(frames))
    generate.main([*words[2:], "--out", "loop.gif"])
    assert np.array_equal(shown, films[0]) and len(files) == (0 if plain else 3)
    ends = [network.picture(look._replace(noise="const")).astype(int) for look in looks]
    small = shown[:, ::16, ::16].astype(int)                               # 16 px are shown as 256
    assert abs(small[0] - ends[0]).max() <= 1
    assert (abs(small[-1] - ends[2]).max() <= 1) == one_way


# ---- 2. what is computed ----


def test_what_did_not_change_is_not_computed_again(network):
    def misses():
        return {name: getattr(network, name).cache_info().misses
                for name in ("w", "directions", "ws", "picture")}

    look = Look(5, psi=0.7, moves=(((0, 1), (0.5,)),))
    network.picture(look)
    assert misses() == dict(w=1, directions=1, ws=1, picture=1)
    network.picture(look)
    assert misses() == dict(w=1, directions=1, ws=1, picture=1)
    network.picture(look._replace(noise="none"))               # noise leaves ws alone
    assert misses() == dict(w=1, directions=1, ws=1, picture=2)
    network.picture(look._replace(psi=0.5))                    # psi leaves w alone
    assert misses() == dict(w=1, directions=1, ws=2, picture=3)
    network.picture(look._replace(moves=(((0, 1), (0.6,)),)))  # so does a direction
    assert misses() == dict(w=1, directions=1, ws=3, picture=4)
    network.picture(look._replace(face=6, moves=(((0, 3), (0.6,)),)))                  # control
    assert misses() == dict(w=2, directions=2, ws=4, picture=5)


def test_strengths_of_blocks_become_a_table(network):
    for strengths in ((1.0, 0.35, 1.0), (0.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.0, 1.0, 0.5)):
        table = network.strengths_of(Look(5, strengths=strengths))
        assert tuple(table[r] for r in (4, 8, 16)) == strengths
        assert network.strengths_of(Look(5, noise="none", strengths=strengths)) is None
    assert network.strengths_of(Look(5, strengths=(1.0, 1.0, 1.0))) is None


@both
def test_moves_and_mixes_act_in_their_layers_only(network):
    plain = network.ws_of(Look(5))[0]
    moved = network.ws_of(Look(5, moves=(((2, 3), (1.0,)),)))[0]
    assert torch.equal(moved[[0, 1, 4, 5]], plain[[0, 1, 4, 5]])
    step = (moved - plain)[2:4]
    assert step.norm(dim=1).tolist() == pytest.approx([network.spread] * 2, rel=1e-4)
    judge = generate.sefa(generate.style_matrix(network.model, 2, 3))[0][0].float()
    assert torch.allclose(step[0] / network.spread, judge, atol=1e-5)
    mixed = network.ws_of(Look(5, mixes=((8, 0, 3), (9, 2, 3))))[0]
    for layers, seed in ((slice(0, 2), 8), (slice(2, 4), 9), (slice(4, 6), 5)):
        assert torch.equal(mixed[layers], network.ws_of(Look(seed))[0, layers])


def test_a_strength_is_the_same_way_for_every_psi(network):
    move = (((0, 5), (0.5,)),)
    steps = [network.ws_of(Look(5, psi=psi, moves=move)) - network.ws_of(Look(5, psi=psi))
             for psi in (1.0, 0.25)]
    assert torch.allclose(*steps, atol=1e-5)


def test_children_are_near_their_parent_and_keep_its_noise(network):
    look = Look(5, psi=0.5, mixes=((8, 0, 1),))
    parent = network.ws_of(look)[0]
    children = network.children(look, 0.25, 4)
    for child in children:
        step = network.ws_of(Look(child))[0] - parent
        assert step.norm(dim=1).tolist() == pytest.approx([0.25 * network.spread] * 6, rel=1e-4)
        assert faces.key_of(pathlib.Path(network.file_of(Look(child)))) == 5
    assert len({child.numbers for child in children}) == 4
    assert network.children(look, 0.25, 4) == children         # the same ones for the same face


@both
def test_activations_are_what_the_next_layer_gets(network):
    places = network.places()
    expected = ["4 px, first", "4 px, second"] if len(places) == 6 else ["4 px"]
    assert list(places)[:len(expected)] == expected
    assert any(isinstance(part, ModulatedConv2d) for part in places.values()) == (len(places) == 5)
    shown = network.activations(Look(5), "8 px, second", count=3)
    blocks = network.model.G.synthesis.blocks
    with torch.no_grad():
        x = blocks["4"](None, network.ws_of(Look(5))[:, :2 if len(places) == 6 else 1], "const")
        ws = network.ws_of(Look(5))
        x = blocks["8"](x, ws[:, 2:4] if len(places) == 6 else ws[:, 1:3], "const")[0]
    strongest = x.flatten(1).std(dim=1).argsort(descending=True)[:3]
    for (picture, caption), channel in zip(shown, strongest):
        assert caption == f"channel {channel}" and (picture.min(), picture.max()) == (0, 255)
        judge = x[channel]
        judge = 255 * (judge - judge.min()) / (judge.max() - judge.min())
        assert abs(picture - judge.numpy()).max() <= 1
    with pytest.raises(UserError, match="64 px: this network has 4 px"):
        network.activations(Look(5), "64 px")


@both
def test_the_ladder_ends_with_the_picture(network):
    pictures = network.ladder(Look(5))
    assert [picture.shape[0] for picture, _ in pictures] == [4, 8, 16]
    assert np.array_equal(pictures[-1][0], network.picture(Look(5)))


def test_long_work_lets_others_have_their_turn(monkeypatch):
    """Lesson: a lock that is held from the first step to the last would stop all other tabs. And
    without a pause, whoever lets it go may take it again before anybody else can."""
    def free():
        """Could another thread take the lock now?"""
        found = []

        def other():
            found.append(page.LOCK.acquire(blocking=False))
            if found[0]:
                page.LOCK.release()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return found[0]

    def steps():
        for _ in range(3):
            at_work.append(free())
            yield True

    at_work, pauses = [], []
    monkeypatch.setattr(page, "time", types.SimpleNamespace(
        sleep=lambda seconds: pauses.append(free())))
    assert all(page.in_turns(steps())) and at_work == [False] * 3
    assert pauses and all(pauses)
    pauses.clear()
    with page.LOCK:                                                        # control
        assert all(page.in_turns(steps())) and pauses and not any(pauses)


def test_a_photo_becomes_a_face_and_is_judged(network, tmp_path):
    Image.fromarray(network.picture(Look(13))).save(tmp_path / "my photo.png")
    results = list(network.find(str(tmp_path / "my photo.png"), 40, False))
    assert len(results) == 5 and "Step 40 of 40" in results[-1][2]
    target, made, verdict, face = results[-1]
    project.main(["tiny net.pt", "my photo.png", "--steps", "40", "--features", "pixels"])
    with np.load(tmp_path / "my photo-projected.npz") as archive:          # the printed command's
        assert np.array_equal(archive["w"][0, :1].tobytes(), face.numbers)
    assert np.array_equal(target, network.picture(Look(13))) and face.name == "my-photo"
    assert np.array_equal(made, network.picture(Look(face)))
    off = [np.abs(result[1].astype(int) - target).mean() for result in results]
    assert off[-1] < off[0]
    assert "fit" in verdict and "fit" not in results[0][2]
    assert "A poor fit" in network.verdict(network.typical * 0.6, False)
    assert "a w for each layer comes nearer" in network.verdict(network.typical * 0.6, False)
    assert "A near fit" in network.verdict(network.typical * 0.4, False)
    assert "proves little" in network.verdict(network.typical * 0.4, True)


def test_a_photo_that_is_none_is_named_without_its_folder(network, tmp_path):
    (tmp_path / "photo.png").write_text("no picture")
    with pytest.raises(UserError, match="^photo.png: not a picture"):
        next(network.find(str(tmp_path / "photo.png"), 10, False))


# ---- 3. from the page ----


def test_untouched_controls_are_a_seed(network):
    assert page.look_of(network, **dials()) == Look(5, strengths=(1.0, 1.0, 1.0))
    assert network.command(page.look_of(network, **dials()))[3:] == ["samples", "--seeds", "5"]


def test_controls_become_a_look(network):
    look = page.look_of(network, **dials(
        seed=" 7 ", psi=0.71234567, cutoff=4, noise="random", noise_seed="9", strengths=[1, 0, 2.5],
        groups=["1", "", "3"], layers="2-3", other="4",
        moves={"0-1": [0, 0, 0, 0, 0, 0], "4-5": [0.5, 0, 0, 0, 0, -1]}))
    assert look == Look(7, 0.7123, 4, "random", 9, (1.0, 0.0, 2.5),
                        ((1, 0, 1), (3, 4, 5), (4, 2, 3)), (((4, 5), (0.5, 0, 0, 0, 0, -1)),))
    given = a_face(network)
    assert page.look_of(network, **dials(seed="", given=given)).face == given
    assert page.look_of(network, **dials(seed="5", given=given)).face == 5     # what is typed wins


def test_a_group_that_a_small_network_has_not(network, monkeypatch):
    with pytest.raises(UserError, match="middle: this network is so small"):
        monkeypatch.setattr(network, "ranges", lambda: {"coarse": (0, 1), "fine": (2, 3)})
        page.look_of(network, **dials(groups=["", "1", ""]))


@pytest.mark.parametrize("changed, says", [
    (dict(seed="five"), "seed: 'five' is not a whole number"),
    (dict(seed="-1"), "seed: -1 must be from 0"),
    (dict(seed=str(2 ** 32)), "must be from 0 to 4"),
    (dict(seed=""), "seed: '' is not a whole number"),
    (dict(seed="9" * 5000), "is not a whole number|must be"),
    (dict(psi="much"), "psi: 'much' is not"),
    (dict(psi=float("nan")), "psi: nan must be"),
    (dict(psi=3), "psi: 3 must be from -1 to 2"),
    (dict(psi=None), "psi"),
    (dict(cutoff=-1), "cutoff"),
    (dict(noise="loud"), "noise is stored"),
    (dict(noise="random", noise_seed="x"), "seed of the noise: 'x'"),
    (dict(strengths=[1, 1e9, 1]), "noise strength"),
    (dict(groups=["x", "", ""]), "coarse: 'x'"),
    (dict(other="8", layers="4-6"), "layers 4-6: at 16 px the style layers are 0-5"),
    (dict(other="8", layers="3-2"), "layers: '3-2' is not a range"),
    (dict(moves={"0-9": [1]}), "layers 0-9"),
    (dict(moves={"0-1": [9]}), "direction: 9 must be"),
])
def test_what_cannot_be_is_said_in_one_sentence(network, changed, says):
    with pytest.raises(UserError, match=says) as error:
        page.look_of(network, **dials(**changed))
    assert "\n" not in str(error.value)


def test_a_w_survives_copy_and_paste(network):
    for look in (Look(5), Look(5, mixes=((8, 0, 1),)), Look(5, psi=0.7, cutoff=2)):
        ws = network.ws_of(look)
        text = page.text_of_w(ws[0].numpy())
        assert text.startswith("w 1x10 " if look == Look(5) else "w 6x10 ")
        face = network.given_from_text(f"\n{text[:30]} {text[30:]}\n")     # a mail may break lines
        assert torch.equal(network.ws_of(Look(face)), ws)


@pytest.mark.parametrize("text", ["", "hello", "w 1x10 AAAA", "w 1x10 ====", "w 2x10 " + "A" * 107,
                                  "w 999x99999 AAAA", None])
def test_a_text_that_is_no_w(network, text):
    with pytest.raises(UserError, match="the text is no w"):
        network.given_from_text(text)


def test_a_w_of_another_network(network):
    for w, says in ((np.ones((1, 12)), "1x12 numbers, and a w of this network has 10"),
                    (np.random.rand(4, 10), "each of 4 layers, and this network has 6"),
                    (np.full((1, 10), np.nan), "no w"), (np.full((1, 10), 1e30), "no w")):
        with pytest.raises(UserError, match=says):
            network.given_from_text(page.text_of_w(w))
    with pytest.raises(UserError, match="0x10 numbers"):
        network.given_from_text("w 0x10 \n")
    assert len(network.given("larger", np.random.rand(8, 10)).numbers) == 4 * 6 * 10
    with pytest.raises(UserError, match="photo: holds"):       # chosen before the network was
        foreign = Given("photo", np.ones(12, np.float32).tobytes())
        page.look_of(network, **dials(seed="", given=foreign))


def test_a_saved_w_is_loaded_as_it_was(network, tmp_path):
    look = Look(5, psi=0.6, mixes=((8, 0, 1),), noise="random")
    path = network.save_w(look)
    face = network.given_from_file(str(path))
    assert torch.equal(network.ws_of(Look(face)), network.ws_of(look)) and face.name == "seed0005"
    assert np.array_equal(network.picture(Look(face, noise="random")), network.picture(look))


@pytest.mark.parametrize("what", ["text", "bomb", "other width", "npy"])
def test_a_file_that_is_no_w(network, tmp_path, what):
    path = tmp_path / "private" / "w.npz"
    path.parent.mkdir()
    if what == "text":
        path.write_text("my notes")
    elif what == "bomb":                                       # 20 kB that unpack to 20 MB
        np.savez_compressed(path, w=np.ones((1, 6, 10)), more=np.zeros(20_000_000, np.uint8))
        assert path.stat().st_size < 50_000
    elif what == "npy":
        with open(path, "wb") as file:
            np.save(file, np.ones((1, 6, 10)))
    else:
        np.savez(path, w=np.ones((1, 6, 9)))
    with pytest.raises(UserError) as error:
        network.given_from_file(str(path))
    assert str(error.value).startswith("w.npz: ") and "private" not in str(error.value)
    with pytest.raises(UserError, match="choose a file"):
        network.given_from_file(None)                          # an upload that brought nothing


@pytest.mark.parametrize("name, base", [
    ("seed0005-1a2b3c4d", "seed0005"), ("seed0005-1a2b3c4d (2)", "seed0005"), ("me", "me"),
    ("../../etc/passwd", "etc-passwd"), ("ä" * 99, "w"), ("", "w"), ("x" * 300, "x" * 40)])
def test_a_name_is_only_letters_and_digits(name, base):
    assert page.base_name(name) == base


# ---- 4. the program ----


@needs_gradio
def test_gradio_is_told_to_ask_nobody(monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org")
    page.import_gradio.cache_clear()
    page.import_gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["NO_PROXY"].startswith("example.org,localhost,127.0.0.1")
    assert os.environ["GRADIO_TEMP_DIR"].startswith(str(page.folder()))


@needs_gradio
def test_what_nobody_asked_for_is_switched_off():
    """Lesson: each part of a server that runs may have a hole (CVE-2026-134825 is one of gradio's
    server-side rendering together with its history)."""
    asked = {}

    def launch(**words):
        asked.update(words)
        return None, "http://127.0.0.1:7860/", None

    before = signal.getsignal(signal.SIGTERM)
    page.launch(types.SimpleNamespace(launch=launch), "127.0.0.1", None, None, False)
    signal.signal(signal.SIGTERM, before)
    for name in ("share", "ssr_mode", "run_history", "mcp_server", "enable_monitoring", "pwa"):
        assert asked[name] is False
    assert asked["auth"] is None and asked["server_name"] == "127.0.0.1"
    known = inspect.signature(page.import_gradio().Blocks.launch).parameters
    assert set(asked) <= set(known)                            # control: gradio has such switches


@pytest.mark.parametrize("typed", ["", "secret", None])
def test_a_password_that_is_not_typed_lets_nobody_in(monkeypatch, typed):
    """Lesson: "" opens the page to everyone, so it must be asked for in words. An empty line at the
    prompt is no such word, and no terminal at all (None) is no traceback."""
    def ask(prompt):
        if typed is None:
            raise EOFError
        return typed
    monkeypatch.setattr(page.getpass, "getpass", ask)
    assert page.password_of("") == "" and page.password_of(None) is None   # control
    if typed:
        assert page.password_of("-") == typed
    else:
        with pytest.raises(UserError, match="none was typed"):
            page.password_of("-")


@needs_gradio
def test_a_host_that_is_not_this_machine_is_said_at_once():
    """Lesson: gradio would look for a free port, 5 seconds for each of 100, and then blame them."""
    started, before = time.monotonic(), signal.getsignal(signal.SIGTERM)
    for host in ("203.0.113.9", "192.168..7"):     # TEST-NET-3: nobody's; and no address at all
        with pytest.raises(UserError, match=f"--host {host}: is no address of this machine"):
            page.launch(None, host, None, "password", False)
    assert time.monotonic() - started < 20
    with pytest.raises(AttributeError):                        # control: it comes to the page
        page.launch(None, "127.0.0.1", None, "password", False)
    signal.signal(signal.SIGTERM, before)


@needs_gradio
def test_the_server_fetches_nothing_for_a_visitor(monkeypatch, tmp_path):
    """Lesson: a server that fetches whatever address it is told lends its name and its place in the
    network to strangers. gradio does, for public addresses, and asks a name server on the way."""
    page.import_gradio.cache_clear()
    page.import_gradio()
    import safehttpx
    from gradio import processing_utils, route_utils
    asked = []

    async def ask(loop, host, *_, **__):
        asked.append(host)
        raise socket.gaierror("no network")

    def tried(fetch, *words):
        with pytest.raises(Exception):
            asyncio.run(fetch(*words))
        return asked

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", ask)
    visitor = types.SimpleNamespace(headers={})
    for url in ("http://example.com/x.png", "https://huggingface.co/x.png", "http://10.0.0.1/x"):
        assert tried(processing_utils.async_ssrf_protected_download, url, str(tmp_path)) == []
        assert tried(route_utils.secure_url_stream_response, url, visitor) == []
    importlib.reload(safehttpx)                                # control: as gradio has it
    assert tried(route_utils.secure_url_stream_response, "http://example.com", visitor) == [
        "example.com"]
    page.import_gradio.cache_clear()
    page.import_gradio()


@needs_gradio
def test_every_sentence_is_on_the_page(network):
    """Lesson: a control without a sentence teaches nothing, a sentence without a control nobody."""
    demo = page.make_page({"tiny": lambda: network}, explore.SAYS)
    texts = [getattr(block, "info", None) or getattr(block, "value", None)
             for block in demo.blocks.values()]
    missing = [name for name, text in explore.SAYS.items() if text not in texts]
    assert not missing
    ids = [block.elem_id for block in demo.blocks.values() if getattr(block, "elem_id", None)]
    assert len(ids) == len(set(ids))
    for block in demo.blocks.values():
        if type(block).__name__ == "Slider" and not block.elem_id.startswith(("noise-", "dire")):
            assert block.info, block.elem_id


@needs_gradio
def test_nothing_on_the_page_is_an_open_api(network):
    demo = page.make_page({"tiny": lambda: network}, explore.SAYS)
    assert {event.api_visibility for event in demo.fns.values()} == {"private"}


def test_missing_gradio_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    page.import_gradio.cache_clear()
    save(tmp_path / "tiny.pt")
    code, error = refused(explore.main, [tmp_path / "tiny.pt"], capsys)
    assert code == 2 and "pip install -r requirements-extra.txt" in error


@pytest.mark.parametrize("words, says", [
    ([], "the following arguments are required"),
    (["gone.pt"], "gone.pt: no such checkpoint"),
    (["tiny.pt", "gone.pt"], "gone.pt: no such checkpoint"),
    (["broken.pt"], "broken.pt"),
    (["tiny.pt", "--port", "99999"], "from 1 to 65535"),
    (["tiny.pt", "--device", "warp"], "--device warp"),
    (["tiny.pt", "--host", "0.0.0.0"], "Give a --password"),
    (["tiny.pt", "--host", "192.168.0.7"], "upload photographs"),
])
def test_bad_use_gets_one_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "import_gradio", lambda: None)
    monkeypatch.setattr(page, "launch", lambda *words: pytest.fail("it started"))
    save(tmp_path / "tiny.pt")
    (tmp_path / "broken.pt").write_text("no checkpoint")
    code, error = refused(explore.main, words, capsys)
    assert code == 2 and says in error


@pytest.mark.parametrize("words, password", [
    ([], None), (["--host", "localhost"], None), (["--host", "0.0.0.0", "--password", "x"], "x"),
    (["--host", "0.0.0.0", "--password", ""], "")])
def test_a_password_is_asked_where_others_can_come(words, password, tmp_path, monkeypatch):
    asked = []

    def launch(demo, host, port, password, browser):
        asked.append(password)
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "import_gradio", lambda: None)
    monkeypatch.setattr(page, "make_page", lambda *words: None)
    monkeypatch.setattr(page, "launch", launch)
    save(tmp_path / "tiny.pt")
    with pytest.raises(KeyboardInterrupt):
        explore.main([str(tmp_path / "tiny.pt"), *words])
    assert asked == [password]


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def test_two_work_and_a_third_waits():
    jobs, steps = page.Jobs(), {"a": 0, "b": 0, "c": 0}

    def work(name):
        def endless(job):
            while True:
                job.check()
                steps[name] += 1
                job.latest = f"step {steps[name]}"
                time.sleep(0.001)
        return endless

    for name in "ab":
        jobs.start(name, work(name))
    wait_for(lambda: steps["a"] > 2 and steps["b"] > 2)
    jobs.start("c", work("c"))
    before = steps["b"]
    wait_for(lambda: steps["b"] > before + 5)
    assert steps["c"] == 0 and jobs.look("c") == (None, False, "Waits: two others are at work.")
    assert jobs.look("a")[0].startswith("step ") and not jobs.look("a")[1]
    jobs.stop("a")                                             # only its own
    wait_for(lambda: steps["c"] > 2)
    wait_for(lambda: jobs.look("a")[1])
    stopped = steps["a"]
    before = steps["b"]
    wait_for(lambda: steps["b"] > before + 5)
    assert steps["a"] == stopped                               # it really has ended
    jobs.start("d", work("a"))
    jobs.stop("d")                                             # while it waited: gone at once
    assert jobs.look("d") == (None, True, "Stopped.") and jobs.look("d") == (None, True, "")
    for name in "bc":
        jobs.stop(name)
    wait_for(lambda: jobs.look("b")[1] and jobs.look("c")[1])


def test_long_work_ends_with_its_result_or_its_error():
    jobs = page.Jobs()
    jobs.start("a", lambda job: "result")
    wait_for(lambda: jobs.jobs["a"].done)
    assert jobs.look("a") == ("result", True, "") and jobs.look("a") == (None, True, "")
    jobs.start("a", lambda job: 1 / 0)
    wait_for(lambda: jobs.jobs["a"].done)
    with pytest.raises(ZeroDivisionError):
        jobs.look("a")
    jobs.start("a", lambda job: "result")
    wait_for(lambda: jobs.jobs["a"].done)
    jobs.start("b", lambda job: None)                          # another tab begins meanwhile
    assert jobs.look("a") == ("result", True, "")
    full, gate = page.Jobs(most=3), threading.Event()
    for name in "abc":
        full.start(name, lambda job: gate.wait(20))
    with pytest.raises(UserError, match="too much is going on"):
        full.start("d", lambda job: None)
    gate.set()


def test_a_picture_that_is_there_is_not_written_again(monkeypatch, tmp_path):
    """Lesson: another tab may just be reading it."""
    page.folder.cache_clear()
    monkeypatch.setattr(page.tempfile, "tempdir", str(tmp_path))
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3), np.uint8)
    path = pathlib.Path(page.png(pixels, "seed0001"))
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), pixels)
    os.utime(path, (1, 1))
    number = path.stat().st_ino
    assert page.png(pixels, "seed0001") == str(path)
    assert path.stat().st_ino == number and path.stat().st_mtime > 1       # but is new again
    assert page.png(pixels.transpose(1, 0, 2).copy(), "seed0001") != str(path)         # control
    assert [file for file in page.folder().iterdir() if file.is_file()] == []
    page.clean()
    page.folder.cache_clear()


def test_a_mistake_is_a_sentence_and_a_bug_is_not(monkeypatch):
    monkeypatch.setattr(page, "import_gradio", lambda: types.SimpleNamespace(skip=lambda: "skip"))

    def handler(error):
        if error:
            raise error
        return 1, 2

    answer = page.speaking(handler, 2)
    assert answer(None) == (1, 2, "")
    assert answer(UserError("a seed is a number")) == ("skip", "skip", "⚠ a seed is a number")
    assert answer(MemoryError())[2].startswith("⚠ Not enough memory")
    with pytest.raises(ZeroDivisionError):
        answer(ZeroDivisionError())


def test_offered_files_are_swept(monkeypatch, tmp_path):
    page.folder.cache_clear()
    monkeypatch.setattr(page.tempfile, "tempdir", str(tmp_path))
    old = page.place_for("a.npz")
    old.write_text("x")
    now = time.time()
    monkeypatch.setattr(page.time, "time", lambda: now + page.KEPT_FILES + 60)
    new = page.place_for("a.npz")
    assert not old.exists() and new.parent.exists() and new != old
    page.clean()
    assert not list(tmp_path.iterdir())
    page.folder.cache_clear()

