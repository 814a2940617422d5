"""explore.py as its user meets it: in a real browser, with the mouse and with the keyboard.

All tests share one server, and each has a tab of its own. The judge of a picture on the page is the
network itself: the bytes of the page's PNG are those that generate.py would write.
"""

import http.client
import io
import os
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import generate
import project
from browser import Server, Tab, a_browser, chromium
from conftest import ROOT
from experiments import explore as experiment
from stylegan_dataloader import to_pixels
from test_generate import CPU, SMALL_OF, save
from tiny import needs

pytestmark = [needs("gradio", "playwright"),
              pytest.mark.skipif(not chromium(), reason="not installed: chromium")]
# The second network has the other architecture, and a w of another size.
SECOND = {**SMALL_OF["stylegan2"], "style_dim": 14}
WALL, FACES, TRUNCATION, MIXING, DIRECTIONS, W = (
    12, "Faces", "Truncation, noise", "Mixing", "Directions", "w")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the user has: networks, one of them broken, and one that he does not show."""
    folder = tmp_path_factory.mktemp("user")
    save(folder / "small.pt")
    save(folder / "small2.pt", SECOND)
    save(folder / "unlisted.pt")
    (folder / "broken.pt").write_bytes((folder / "small.pt").read_bytes()[:3000])
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with Server("small.pt", "small2.pt", "broken.pt", "--device", "cpu", "--no-open",
                cwd=folder) as server:
        yield server
        assert server.process.poll() is None                   # it has lived through all tests
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="module")
def browser():
    with a_browser() as browser:
        yield browser


@pytest.fixture
def new_tab(server, browser):
    """Opens a tab. At the end of the test no request of any tab has left the server."""
    tabs = []

    def open_one(**options):
        tabs.append(Tab(browser, server.url, **options))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        tab.context.close()
        assert tab.requests and not tab.elsewhere(server.url)


@pytest.fixture
def tab(new_tab):
    return new_tab()


@pytest.fixture(scope="module")
def model(folder):
    return generate.load_model(folder / "small.pt", CPU)


def judge(model, face=0, ws=None, **how):
    """The bytes [R, R, 3] that generate.py writes for a seed, or for styles [1, L, S]."""
    model = model._replace(**how)
    ws = generate.ws_of(model, [face]) if ws is None else ws
    return to_pixels(next(generate.render(model, ws, [face]))[None])[0].numpy()


def same(a, b):
    return a.shape == b.shape and np.array_equal(a, b)


# ---- 1. Opening ----


def crowd():
    """How many times as long as alone a process takes now, since others want the cores as well."""
    began, used = time.monotonic(), time.process_time()
    while time.process_time() < used + 0.2:
        pass
    return (time.monotonic() - began) / 0.2


def test_the_page_is_there_in_three_seconds(new_tab):
    """Lesson: the network was loaded before; what is left is a page, one picture, and a wall."""
    seconds = []
    for _ in range(3):                                         # on a machine that may be busy
        before, began = crowd(), time.monotonic()
        new_tab().tiles("wall", WALL)
        seconds.append((time.monotonic() - began) / max(1, min(before, crowd())))
    # Beside another process of the tests (pytest-xdist) 3.7 s were seen, and some days are half as
    # fast; alone the bound is strict.
    assert min(seconds) < (20 if "PYTEST_XDIST_WORKER" in os.environ else 3), seconds


def test_the_first_picture_is_that_of_generate(tab, model):
    tab.shows(judge(model))
    assert not same(tab.pixels(), judge(model, 1))             # control
    assert shlex.split(tab.value("command")) == [
        "python", "generate.py", "small.pt", "samples", "--seeds", "0", "--device", "cpu"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_desk_and_a_phone(new_tab, width):
    tab = new_tab(viewport={"width": width, "height": 800})
    tab.tiles("wall", WALL)

    def widest():
        """The right edge of what reaches furthest to the right, of what a hand may want."""
        return tab.page.evaluate("""Math.max(document.documentElement.scrollWidth,
            ...[...document.querySelectorAll("img, button, input, textarea")]
               .filter(e => e.checkVisibility() && !e.closest("[aria-hidden=true], .overflow-menu"))
               .map(e => e.getBoundingClientRect().right))""")

    for name in (FACES, TRUNCATION, MIXING, DIRECTIONS, "Inside", "Video", "Photo", W):
        tab.open(name)
        assert widest() <= width, name
    tab.page.evaluate("document.body.style.minWidth = '2000px'")           # control
    assert widest() > width


# ---- 2. Nothing leaves this machine ----


def test_a_request_to_another_host_would_be_seen(server, browser):
    """Control of all tests of this file. That a tab asks nobody else is asserted when its test has
    ended; that it would be heard, and that the browser is offline, is seen here."""
    loud = Tab(browser, server.url)
    assert not loud.elsewhere(server.url)
    failed = loud.page.evaluate("fetch('https://www.example.org/').then(() => 0, () => 1)")
    assert failed and loud.elsewhere(server.url) == ["https://www.example.org/"]
    loud.context.close()


# ---- 3. Faces ----


def other_tiles(tab, old):
    """Wait until the wall shows other faces. Returns the addresses of their pictures."""
    tab.until(lambda: len(set(tab.sources("wall")) - set(old)) == WALL)
    return tab.sources("wall")


def test_new_ones_are_other_faces_and_one_can_be_chosen(tab, model):
    first = tab.tiles("wall", WALL)
    tab.click("new")
    second = other_tiles(tab, first)
    assert not set(first) & set(second) and len(set(second)) == WALL
    tab.page.locator("#wall button").nth(3).click()
    tab.shows(judge(model, 15))
    assert tab.value("seed") == "15" and "--seeds 15" in tab.value("command")


def test_children_are_near_their_parent(tab, model):
    """Lesson: a small step in w makes a relative; another seed makes a stranger."""
    first = tab.tiles("wall", WALL)
    tab.number("size", 0.1)
    tab.click("children")
    other_tiles(tab, first)
    tab.page.locator("#wall button").nth(0).click()
    tab.new_picture()
    parent, child = (x.astype(float) for x in (judge(model), tab.pixels()))
    strangers = [np.abs(judge(model, seed) - parent).mean() for seed in range(1, 9)]
    assert 0 < np.abs(child - parent).mean() < 0.5 * np.mean(strangers)


# ---- 4. Sliders and numbers ----


def test_a_slider_that_is_dragged_ends_where_the_thumb_does(tab, model):
    """Lesson: the newest position counts, and those that the thumb has passed meanwhile are never
    computed."""
    tab.open(TRUNCATION)
    slider = tab.page.locator("#psi input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    x, y = box["x"] + 0.66 * box["width"], box["y"] + box["height"] / 2
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    for step in range(20):
        tab.page.mouse.move(x - 0.02 * step * box["width"], y)
    tab.page.mouse.up()
    psi = float(slider.input_value())
    assert -1 < psi < 0.5
    tab.shows(judge(model, psi=psi))
    assert f"--psi {psi:g} " in tab.value("command")
    assert tab.page.locator("#psi input[type=number]").input_value() == f"{psi:g}"
    # A hand that is faster than any network: 30 positions at once.
    before = len(tab.requests)
    slider.evaluate("""range => { for (let k = 1; k <= 30; k++) {
        range.value = 1 + k / 100;
        range.dispatchEvent(new Event("input", {bubbles: true}));
    }}""")
    tab.shows(judge(model, psi=1.3))
    assert 1 <= sum("/run/" in request for request in tab.requests[before:]) <= 3


def test_a_number_can_be_typed_beside_a_slider(tab, model):
    tab.open(TRUNCATION)
    tab.number("psi", 0.5)
    tab.shows(judge(model, psi=0.5))
    tab.number("cutoff", 2)
    tab.shows(judge(model, psi=0.5, cutoff=2))
    assert not same(tab.pixels(), judge(model, psi=0.5))       # control
    assert "--psi 0.5 --cutoff 2" in tab.value("command")
    assert tab.page.locator("#psi input[type=range]").input_value() == "0.5"


def test_the_keyboard_alone_is_enough(tab, model):
    """Lesson: Tab to the tab, Enter, Tab to the slider, arrows; no mouse."""
    page = tab.page

    def tab_until(condition):
        for _ in range(80):
            if page.evaluate(f"e = document.activeElement; {condition}"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"80 times Tab, and never {condition}")

    tab_until("e.getAttribute('role') === 'tab' && e.textContent.includes('Truncation')")
    page.keyboard.press("Enter")
    page.locator("#psi input[type=range]").wait_for()
    tab_until("e.type === 'range' && e.closest('#psi') !== null")
    page.keyboard.press("ArrowLeft")
    tab.shows(judge(model, psi=0.99))
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    tab.shows(judge(model, psi=1.03))
    assert "--psi 1.03" in tab.value("command")


# ---- 5. Styles and noise ----


def test_mixing_takes_some_layers_from_another_face(tab, model):
    tab.open(MIXING)
    tab.type("fine", "7")
    a, b, c = (generate.ws_of(model, [seed]) for seed in (0, 7, 3))
    tab.shows(judge(model, ws=generate.mix(a, b, 4, 5)))
    assert not same(tab.pixels(), judge(model, ws=generate.mix(a, b, 0, 1)))         # control
    tab.type("own-layers", "0-1")
    tab.type("own-seed", "3")
    tab.shows(judge(model, ws=generate.mix(generate.mix(a, b, 4, 5), c, 0, 1)))


def test_a_direction_moves_w_and_reset_brings_it_back(tab, model):
    tab.open(DIRECTIONS)
    tab.number("direction-2", 1.5)
    direction = generate.sefa(generate.style_matrix(model, 0, 5))[0][1].float()
    ws = generate.ws_of(model, [0]) + 1.5 * project.spread_of_w(model.G) * direction
    # The page adds all six directions in one product, which may round otherwise.
    tab.shows(judge(model, ws=ws), tolerance=1)
    assert np.abs(tab.pixels().astype(int) - judge(model)).max() > 1       # control
    tab.click("reset")
    tab.shows(judge(model))


def test_noise_has_a_seed_of_its_own(tab, model):
    tab.open(TRUNCATION)
    for name, act, how in (
            ("random", lambda: None, dict(noise="random")),
            ("random", lambda: tab.type("noise-seed", "5"), dict(noise="random", seed=5)),
            ("none", lambda: None, dict(noise="none"))):
        tab.page.locator("#noise").get_by_text(name, exact=True).click()
        act()
        tab.shows(judge(model, **how))
    assert not same(judge(model, noise="random", seed=5), judge(model, noise="random"))  # control


# ---- 6. The same picture again ----


def start_command(tab, where):
    """Start the command under the picture in a folder, as its reader would."""
    words = shlex.split(tab.value("command"))
    assert words[:2] == ["python", "generate.py"]
    return subprocess.Popen([sys.executable, str(ROOT / "generate.py"), *words[2:]], cwd=where,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_command_under_the_picture_makes_it_again_bit_for_bit(new_tab, folder, tmp_path):
    """Lesson: what options can say is said in options; mixing and directions come with the w."""
    (tmp_path / "small.pt").write_bytes((folder / "small.pt").read_bytes())
    plain, mixed = new_tab(), new_tab()
    for tab in (plain, mixed):
        if tab is mixed:
            tab.open(MIXING)
            tab.type("coarse", "9")
            tab.open(DIRECTIONS)
            tab.number("direction-1", -2)
        tab.open(TRUNCATION)
        tab.number("psi", 0.7)
        tab.page.locator("#noise").get_by_text("random", exact=True).click()
        tab.type("noise-seed", "5")
        tab.number("noise-8", 2)
        tab.until(lambda: "--seed 5" in tab.value("command") and "8:2" in tab.value("command"))
    saved = mixed.save(tmp_path)
    assert sorted(saved) == [".npz", ".png"]
    running = [start_command(tab, tmp_path) for tab in (plain, mixed)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    made = {path.stem: np.array(Image.open(path)) for path in (tmp_path / "samples").glob("*.png")
            if not path.stem.startswith("sheet")}
    name = f"w-{saved['.npz'].stem}"
    assert sorted(made) == ["seed0000", name]
    assert same(made["seed0000"], plain.pixels())
    assert same(made[name], mixed.pixels())
    assert same(made[name], np.array(Image.open(saved[".png"])))
    assert not same(plain.pixels(), mixed.pixels())            # control


def test_a_w_can_be_copied_and_pasted_and_saved_and_loaded(new_tab, tmp_path):
    tab, other = new_tab(), new_tab()
    tab.open(MIXING)
    tab.type("middle", "4")
    tab.new_picture()
    tab.open(W)
    tab.click("w-write")
    tab.until(lambda: tab.value("w-text").startswith("w "))
    other.open(W)
    other.type("w-text", tab.value("w-text"))
    other.click("w-paste")
    other.shows(tab.pixels())
    path, there = other.save(tmp_path)[".npz"], other.pixels()
    tab.open(FACES)
    tab.type("seed", "1")
    tab.until(lambda: not same(tab.pixels(), there))           # control
    tab.open(W)
    tab.upload("w-file", path)
    tab.shows(there)


# ---- 7. More than one ----


def test_two_tabs_do_not_disturb_each_other(new_tab, model):
    one, two = new_tab(), new_tab()
    one.open(TRUNCATION)
    one.number("psi", 0.3)
    one.shows(judge(model, psi=0.3))
    two.type("seed", "5")
    two.shows(judge(model, 5))                                 # not with psi 0.3
    one.number("cutoff", 4)
    one.shows(judge(model, psi=0.3, cutoff=4))                 # not seed 5
    assert same(two.pixels(), judge(model, 5))


def test_another_network_has_other_faces_and_a_broken_one_a_sentence(tab, folder):
    second = generate.load_model(folder / "small2.pt", CPU)
    tab.choose("network", "small2.pt")
    tab.shows(judge(second))
    tab.until(lambda: " small2.pt " in tab.value("command"))
    tab.choose("network", "broken.pt")
    assert "broken.pt" in tab.message()
    tab.choose("network", "small2.pt")
    tab.message(False)


def test_long_work_stops_and_a_third_tab_sees_that_it_waits(new_tab, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), (200, 120, 40)).save(photo)
    tabs = [new_tab(), new_tab(), new_tab()]
    for tab in tabs:
        tab.open("Photo")
        tab.upload("photo", photo)
        tab.number("steps", 1000)
    for tab in tabs[:2]:
        tab.click("find")
        tab.until(lambda: tab.value("photo-command"))          # the server has begun it
    tabs[2].click("find")
    tabs[2].page.locator("#verdict").get_by_text("Waits").wait_for()
    assert tabs[2].page.locator("#photo-nearest img").count() == 0
    tabs[0].click("stop-find")
    tabs[2].page.locator("#photo-nearest img").wait_for()      # its turn
    for tab in tabs[1:]:
        tab.click("stop-find")
    for tab in tabs:
        tab.until(lambda: "Stopped" in tab.page.locator("#verdict").inner_text() +
                  tab.message(None))


def test_a_video_can_be_made_and_kept(tab, tmp_path):
    tab.open("Video")
    tab.click("add")
    tab.tiles("stations", 1)
    tab.open(FACES)
    tab.type("seed", "3")
    tab.new_picture()
    tab.open("Video")
    tab.click("add")
    tab.tiles("stations", 2)
    tab.number("frames", 10)
    tab.click("film")
    links = tab.page.locator("#movie-files a[download]")
    links.first.wait_for()
    with tab.page.expect_download() as download:
        links.first.click()
    download.value.save_as(tmp_path / "loop")
    assert (tmp_path / "loop").stat().st_size > 1000
    assert "interpolate" in tab.value("movie-command")


# ---- 8. Bad input ----


def type_on(title, **texts):
    def act(tab, tmp_path):
        tab.open(title)
        for name, text in texts.items():
            tab.type(name.replace("_", "-"), text)
    return act


def paste(text):
    def act(tab, tmp_path):
        tab.open(W)
        tab.type("w-text", text)
        tab.click("w-paste")
    return act


def load_w(write):
    def act(tab, tmp_path):
        write(tmp_path / "bad.npz")
        tab.open(W)
        tab.upload("w-file", tmp_path / "bad.npz")
    return act


def not_a_photo(tab, tmp_path):
    (tmp_path / "photo.png").write_text("my notes")
    tab.open("Photo")
    tab.upload("photo", tmp_path / "photo.png")
    tab.click("find")


# What is done, and what the sentence says.
BAD = {
    "a seed that is no number": (type_on(FACES, seed="seven"), "seven"),
    "a seed that is too large": (type_on(FACES, seed="4294967296"), "seed"),
    "mixing with what is no seed": (type_on(MIXING, coarse="-1"), "coarse"),
    "layers that are not there": (type_on(MIXING, own_layers="4-9", own_seed="2"), "0-5"),
    "a text that is no w": (paste("hello"), "no w"),
    "half a text of a w": (paste("w 1x10 AAAA"), "no w"),
    "a w of another size as a text": (paste("w 1x2 AAAAAAAAAAA="), "10"),
    "a w of another size as a file": (
        load_w(lambda path: project.save_w(path, torch.randn(1, 14), [1.0], 6)), "14"),
    "a file that is no w": (load_w(lambda path: path.write_text("my notes")), "no w"),
    "a photo that is no photo": (not_a_photo, "photo.png"),
}


def test_bad_input_gets_a_sentence_and_the_page_goes_on(tab, model, tmp_path):
    """Lesson: the last good picture stays, and the next good input makes the sentence go."""
    good = judge(model)
    for seed, (what, (act, words)) in enumerate(BAD.items(), 1):
        act(tab, tmp_path)
        sentence = tab.message()
        assert words in sentence and str(tmp_path) not in sentence, (what, sentence)
        assert "explore-" not in sentence, (what, sentence)    # the server's own folder
        assert same(tab.pixels(), good), what
        if "mixing" in what or "layers" in what:               # what was wrong is mended
            tab.type("coarse", "")
            tab.type("own-seed", "")
        tab.open(FACES)
        tab.type("seed", str(seed))
        tab.message(False)
        good = judge(model, seed)
        tab.shows(good)


def test_only_the_checkpoints_of_the_command_line_are_opened(server, folder, tab):
    """Lesson: a file is not readable because it lies beside one that is."""
    def get(address):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", address)
        answer = connection.getresponse()
        return answer.status, answer.read()

    for name in ("unlisted.pt", "small.pt", "../../../../../../../../etc/passwd"):
        for address in (f"/gradio_api/file={folder / name}", f"/gradio_api/file={name}",
                        f"/static/{folder / name}", f"/assets/..%2f..%2f{name}"):
            code, body = get(address)
            assert code in (403, 404) and b"data.pkl" not in body and b"root:" not in body, address
    code, body = get(tab.source[len(server.url):])             # control: a picture of the page
    assert code == 200 and Image.open(io.BytesIO(body)).size == (16, 16)


def test_the_load_experiment_would_see_a_file_that_is_read(tmp_path):
    """Control of experiments/explore.py load, which says at its end that nothing was read."""
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(experiment.SECRET)
    watch = experiment.Watch({"secret": experiment.SECRET}, [tmp_path / "one", tmp_path / "other"])
    watch.look("/", b"a page")
    assert not watch.shown and not watch.read()
    watch.look("/file=one", b"here it is: " + experiment.SECRET)
    assert watch.shown == ["secret by /file=one"]
    if watch.works:                                            # the system notes times of reading
        (tmp_path / "other").read_bytes()
        assert watch.read() == [str(tmp_path / "other")]
