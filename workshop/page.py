"""page.py: the page of explore.py: gradio, controls and what moves them, files.   (workshop)

Used by: explore.py, whose `SAYS` holds the sentences beside the controls, and whose Networks make
         all that is shown.
Needs:   gradio >= 6.27 (pip install -r requirements-extra.txt), imported by `import_gradio` only.
         Importing this file reads no file, no argv, no clock.

  1. gradio    imported without telemetry; what is asked of its server
  2. handlers  a mistake becomes a sentence on the page; long work that can be stopped
  3. input     texts and files that come from the page, checked and bounded
  4. output    files that are offered, swept
  5. the page  its controls, and what happens when one is moved
  6. style     the style sheet
"""

import argparse
import base64
import binascii
import contextlib
import functools
import getpass
import hashlib
import os
import pathlib
import re
import shutil
import signal
import socket
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from workshop import UserError, figures, machine, replace, video
from workshop.options import number_from

DIRECTIONS = 6                       # sliders
WALL = 12                            # faces on the wall
MOST_BLOCKS = 9                      # sliders of noise: 4 to 1024 px
MOST_FRAMES, MOST_STEPS, MOST_STATIONS, MOST_RANGES = 250, 1000, 8, 8

# ---- 1. gradio -------------------------------------------------------------------------------

LOCAL = ("localhost", "127.0.0.1", "::1")
LARGEST_UPLOAD = "20mb"
USER = "explore"                     # gradio's form asks for a name, too
TABS = 100                           # remembered at a time; each costs 0.25 MB, measured
KEPT_FILES = 900                     # seconds that a picture of the page stays on disk


@functools.lru_cache(maxsize=1)
def import_gradio():
    """The package, told beforehand to ask nobody but us.   Errors: UserError if it is missing.

    Why:    gradio counts its uses and looks for a newer version over the network unless it is told
            not to. It asks its own server whether it is there; a proxy would answer for it. It
            keeps pictures in a folder that all its programs share, so ours get one of their own.
            And it fetches what a visitor names, a picture at any public address: nobody asked for
            that here.
    Proved: tests/test_explore.py::test_gradio_is_told_to_ask_nobody,
            ::test_the_server_fetches_nothing_for_a_visitor
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1",
                      GRADIO_TEMP_DIR=str(folder() / "gradio"))
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost,127.0.0.1"]))
    try:
        import gradio
        import safehttpx                                       # gradio's way to other machines
        from gradio import processing_utils
    except ImportError:
        raise UserError("needs gradio: pip install -r requirements-extra.txt") from None
    if tuple(map(int, gradio.__version__.split(".")[:2])) < (6, 27):
        raise UserError(f"needs gradio 6.27, the first that describes a picture to those who hear "
                        f"it, and this is {gradio.__version__}: pip install -r "
                        f"requirements-extra.txt")

    async def refuse(*_, **__):
        raise ValueError("this page fetches nothing from other machines")

    safehttpx.async_validate_url = processing_utils.async_ssrf_protected_get = refuse
    return gradio


def password_of(typed):
    """--password, asked for at the terminal if it is "-".   Errors: UserError if none comes.

    Proved: tests/test_explore.py::test_a_password_that_is_not_typed_lets_nobody_in
    """
    if typed != "-":
        return typed
    with contextlib.suppress(EOFError):
        if password := getpass.getpass("password of the page: "):
            return password
    raise UserError("--password -: none was typed; --password '' lets everyone in")


def launch(demo, host, port, password, browser):
    """Start the server and return its address; it runs in a thread of its own. From here on SIGTERM
    is as Ctrl-C, so that the server's temporary files are removed when the program ends.

    Errors: UserError if the host is none of this machine's, or the port is taken.
    Proved: tests/test_explore.py::test_a_host_that_is_not_this_machine_is_said_at_once
    """
    gr = import_gradio()
    try:                                       # gradio would try 100 ports, 5 seconds each
        family, *_, address = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as door:
            door.bind(address)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: is no address of this machine") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _, address, _ = demo.launch(
            server_name=host, server_port=port, inbrowser=browser, quiet=True,
            prevent_thread_lock=True, share=False, ssr_mode=False, mcp_server=False, pwa=False,
            run_history=False, enable_monitoring=False, footer_links=[], show_error=True,
            auth=(USER, password) if password else None, max_file_size=LARGEST_UPLOAD,
            max_threads=8, state_session_capacity=TABS, css=CSS, theme=gr.themes.Soft(
                primary_hue="indigo", font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"]).set(
                    block_title_background_fill="none", block_title_background_fill_dark="none",
                    block_title_padding="0", block_title_text_color="*body_text_color",
                    block_title_text_color_dark="*body_text_color", input_border_width="1px",
                    input_border_color="*neutral_300",
                    block_label_background_fill="none", block_label_background_fill_dark="none",
                    block_label_text_color="*body_text_color",
                    block_label_text_color_dark="*body_text_color"))
    except OSError:
        raise UserError(f"--port {port or '7860-7959'} of {host} cannot be opened; is another "
                        f"program listening there?") from None
    return address


# ---- 2. Handlers -----------------------------------------------------------------------------


# Held by whoever computes. All networks are on one device, so there is one lock.
LOCK = threading.RLock()


def alone(method):
    """The method, under the lock: on a Mac's GPU the process ends when two threads compute."""
    @functools.wraps(method)
    def answer(*arguments, **more):
        with LOCK:
            return method(*arguments, **more)
    return answer


def in_turns(steps):
    """Yield the steps of long work, each made under the lock. Between them others have their turn.

    Why:    Python's locks have no queue: who lets one go and takes it again at once may win again.
            In 60 steps of 10 ms another thread got 10 to 60 turns; with the pause, 60 to 67.
    Proved: tests/test_explore.py::test_long_work_lets_others_have_their_turn
    """
    steps = iter(steps)
    while True:
        with LOCK:
            step = next(steps, None)
        if step is None:
            return
        yield step
        time.sleep(0.001)


class Stopped(UserError):
    """Someone has asked for the end of long work."""


class Job:
    """Long work of a tab: work(job) sets `latest`, calls `check` now and then, returns the end."""

    def __init__(self, work):
        self.work, self.latest, self.error = work, None, None
        self.stopped, self.done = False, 0.0                   # done: when; 0: not yet

    def check(self):
        if self.stopped:
            raise Stopped("Stopped.")

    def run(self, turns):
        try:
            with turns:
                self.check()
                self.latest = self.work(self)
        except Exception as error:                             # whoever asks will raise it
            self.error = error
        self.done = time.monotonic()


class Jobs:
    """The long work of all tabs, in threads: two at a time. The others wait, and are told so.

    Why:    gradio's queue keeps a connection open for each tab that works or waits, beside the one
            that every open tab has. A browser opens six to a server and no more. So three tabs at
            work would leave none for their "Stop" (seen in Chromium). Here a tab asks how far its
            work is, twice a second.
    Proved: tests/test_explore.py::test_two_work_and_a_third_waits
    """

    def __init__(self, at_once=2, most=16):
        self.turns, self.most, self.jobs = threading.Semaphore(at_once), most, {}

    def start(self, key, work):
        """key: (tab, kind of work). What the tab had begun of this kind is stopped.

        Errors: UserError if too many wait.
        """
        self.stop(key)
        if sum(not job.done for job in self.jobs.values()) >= self.most:
            raise UserError("too much is going on here; try again later")
        # What is done waits for its tab, which a browser lets ask once a minute if it is hidden.
        now = time.monotonic()
        self.jobs = {key: job for key, job in self.jobs.items()
                     if not job.done or now - job.done < 150}
        self.jobs[key] = Job(work)
        threading.Thread(target=self.jobs[key].run, args=(self.turns,), daemon=True).start()

    def stop(self, key):
        if key in self.jobs:
            self.jobs[key].stopped = True

    def look(self, key):
        """(the latest, is it at its end?, what to say); without any work (None, True, "").

        Asked at its end, it is forgotten.   Errors: what the work has raised, but for `Stopped`.
        """
        job = self.jobs.get(key)
        if job is None:
            return None, True, ""
        if not job.done and not (job.stopped and job.latest is None):      # stopped as it waited
            return job.latest, False, "" if job.latest else "Waits: two others are at work."
        self.jobs.pop(key, None)
        if job.error and not isinstance(job.error, Stopped):
            raise job.error
        return job.latest, True, "Stopped." if job.stopped else ""


def sentence_of(error):
    """What to say about an error that the page's reader can mend, or None: it is a bug."""
    if isinstance(error, (UserError, OSError)):
        return str(error)
    if isinstance(error, (RuntimeError, MemoryError)) and machine.out_of_memory(error):
        return "Not enough memory on this device."
    return None


def speaking(handler, outputs, well=""):
    """The handler, with one output more: `well`, or the sentence of what went wrong.

    All other outputs then stay as they are. (gradio's own warnings need its queue, and its errors
    cover the picture.)
    """
    @functools.wraps(handler)
    def answer(*inputs):
        try:
            result = handler(*inputs)
            return (*(result if outputs > 1 else (result,)), well)
        except Exception as error:
            sentence = sentence_of(error)
            if sentence is None:
                raise
            return (*[import_gradio().skip()] * outputs, f"⚠ {sentence}")
    return answer


# ---- 3. Input --------------------------------------------------------------------------------


def typed(parse, text, what):
    """parse(text), with the parser of an option.   Errors: UserError that says what it was for."""
    try:
        return parse(str(text).strip())
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{what}: {error}") from None


def seed_from(text, what):
    return typed(number_from(0, int, 2 ** 32 - 1), text, what)


def number_of(value, low, high, what):
    """A slider's number, with four digits behind the point, so that it can be typed again."""
    return round(typed(number_from(low, float, high), value, what), 4) + 0.0           # no -0


def base_name(name):
    """What is left of a file's name: letters, digits and "-", without the checksum of a look."""
    name = re.sub(r"(-[0-9a-f]{8})?( ?\(\d+\))?$", "", name)
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:40].strip("-") or "w"


def text_of_w(ws):
    """ws [L, S] as a line that can be copied: its shape, and float32 in base64."""
    ws = ws[:1] if (ws == ws[0]).all() else ws
    return f"w {len(ws)}x{ws.shape[1]} {base64.b64encode(ws.astype('<f4').tobytes()).decode()}"


def w_from_text(text):
    """The opposite.   Proved: tests/test_explore.py::test_a_w_survives_copy_and_paste"""
    match = re.fullmatch(r"\s*w (\d{1,3})x(\d{1,5}) ([A-Za-z0-9+/=\s]+)", str(text), re.ASCII)
    try:
        numbers = np.frombuffer(base64.b64decode(match[3]), "<f4")
        return numbers.reshape(int(match[1]), int(match[2]))
    except (TypeError, ValueError, binascii.Error):
        raise UserError('the text is no w, which begins like "w 1x512"') from None


def check_w(name, w, layers, size):
    """Refuse numbers that are no w of a network with so many layers.   Errors: UserError."""
    if w.ndim != 2 or w.shape[1] != size or not len(w):
        raise UserError(f"{name}: holds {'x'.join(map(str, w.shape))} numbers, and a w of this "
                        f"network has {size}; it belongs to another one")
    if not np.isfinite(w).all() or abs(w).max() > 1e4:
        raise UserError(f"{name}: holds numbers that are no w")
    if 1 < len(w) < layers:
        raise UserError(f"{name}: holds a w for each of {len(w)} layers, and this network has "
                        f"{layers}")


def look_of(network, seed, given, psi, cutoff, noise, noise_seed, strengths, groups, layers, other,
            moves):
    """The values of the controls as a look of the network (`explore.Look`).

    seed:   a text; if it is empty, the face is `given`. groups: the texts of coarse, middle and
            fine, each a seed or empty; layers, other: a range of its own, and its seed.
    moves:  {"0-3": (strengths of the directions of these layers), ...}
    Errors: UserError for what is no number, out of its range, or of another network.
    """
    seed, other, *groups = (str(text or "").strip() for text in (seed, other, *groups))
    face = given if given and not seed else seed_from(seed, "seed")
    if face is given:                          # the network may be another one than it was made for
        w, size = np.frombuffer(face.numbers, np.float32), len(network.model.G.w_avg)
        network.given(face.name, w.reshape(-1, size) if w.size % size == 0 else w[None])
    mixes = []
    for name, text in zip(("coarse", "middle", "fine"), groups):
        if text and name not in network.ranges():
            raise UserError(f"{name}: this network is so small that it has no such layers")
        if text:
            mixes.append((seed_from(text, name), *network.ranges()[name]))
    if other:
        mixes.append((seed_from(other, "mixing"), *network.layers_from(layers, "layers")))
    moves = [(network.layers_from(name, "layers"),
              tuple(number_of(s, -3, 3, "direction") for s in values))
             for name, values in moves.items()]
    cutoff = int(number_of(cutoff, 0, 100, "cutoff"))
    if noise not in ["const", "none", "random"]:
        raise UserError("noise is stored, none or random")
    return network.look(
        face, number_of(psi, -1, 2, "psi"), None if cutoff >= network.layers else cutoff, noise,
        seed_from(noise_seed, "seed of the noise") if noise == "random" else 0,
        tuple(number_of(s, 0, 3, "noise strength") for s in strengths), tuple(mixes),
        tuple((layers, s) for layers, s in moves if any(s)))


@contextlib.contextmanager
def without_path(path):
    """Within the block, sentences call an uploaded file by its name: its folder is the server's."""
    try:
        yield
    except UserError as error:
        name = pathlib.Path(path).name
        raise UserError(str(error).replace(f"--w {path}", name).replace(str(path), name)) from None


# ---- 4. Output -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def folder():
    """A new folder of this process, for all that the page writes. `clean` removes it."""
    return pathlib.Path(tempfile.mkdtemp(prefix="explore-"))


def clean():
    if folder.cache_info().currsize:
        shutil.rmtree(folder(), ignore_errors=True)


def png(pixels, name="picture"):
    """uint8 [R, R, 3] or [R, R] -> the path of a PNG in gradio's folder, as gr.Image takes it.

    Why:    handed pixels, gradio writes its file anew each time, into the one that another tab may
            just be reading, and that tab's picture is broken. Here a file appears whole or not at
            all, and one that is there is not written again.
    """
    content = hashlib.sha256(pixels.tobytes() + str(pixels.shape).encode()).hexdigest()
    path = folder() / "gradio" / content / f"{name}.png"
    try:
        os.utime(path)                                         # it is as new as one just made
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder(), delete=False) as file:
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        replace(file.name, path)
    return str(path)


def place_for(name):
    """A path for a file that is offered under this name; old ones are removed.

    The name is ours: letters, digits, "-", "." and no folder. Each file has a folder of its own.
    """
    here = folder() / "offered"
    here.mkdir(exist_ok=True)
    for old in here.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > KEPT_FILES:
                shutil.rmtree(old, ignore_errors=True)
    return pathlib.Path(tempfile.mkdtemp(dir=here)) / name


# ---- 5. The page -----------------------------------------------------------------------------


def make_page(networks, says, device=None):
    """The page as gradio blocks.

    networks: {name: function that returns its `explore.Network`}; says: the sentences, by the
            elem_id of their control; device: as it was typed, for the commands.
    How:    a control that moves hands all controls to `show`, which makes a look of them. While a
            thumb is dragged, at most one request is on its way, and when it is back, "always_last"
            sends the thumb's newest place. (gradio's default, "once", would forget it.)
            Nothing goes through gradio's queue, which costs some 15 ms a picture: LOCK keeps short
            work apart, and `Jobs` long work. Pictures are PNG: WebP, the default, is lossy.
    """
    gr = import_gradio()
    jobs = Jobs()

    def line(name, label, **more):
        return gr.Textbox(label=label, elem_id=name, interactive=False, buttons=["copy"], lines=2,
                          max_lines=4, elem_classes="line", **more)

    def slider(name, low, high, value, step, label=None):
        return gr.Slider(low, high, value, step=step, label=label or name, info=says.get(name),
                         elem_id=name, buttons=[])

    def field(name, label, value=""):
        return gr.Textbox(value, label=label, info=says.get(name), elem_id=name, max_length=100)

    def gallery(name, columns=4):
        return gr.Gallery(format="png", columns=columns, allow_preview=False, buttons=[],
                          height="auto", object_fit="contain", elem_classes=["pixels", "wall"],
                          show_label=False, interactive=False, elem_id=name)

    def seen(name, about, buttons=()):
        return gr.Image(format="png", interactive=False, show_label=False, elem_id=name,
                        elem_classes=["pixels", "seen"], buttons=list(buttons), alt_text=about)

    # ---- what stands where ----
    with gr.Blocks(title="explore.py", analytics_enabled=False, fill_width=True,
                   delete_cache=(60, KEPT_FILES)) as demo:
        given, moves, on_wall, journey = (gr.State(x) for x in (None, {}, [], []))
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=4, min_width=320, elem_id="stage"):
                network = gr.Dropdown(list(networks), label="network", elem_id="network",
                                      visible=len(networks) > 1)
                picture = seen("picture", "the picture", ("download", "fullscreen"))
                caption = gr.Markdown(elem_id="caption")
                message = gr.Markdown(elem_id="message")
                command = line("command", "the same picture again, bit for bit")
                with gr.Row():
                    save = gr.Button("Save picture and w", elem_id="save", size="sm")
                    add = gr.Button("Add to the video", elem_id="add", size="sm")
                saved = gr.File(elem_id="saved", label="saved", interactive=False, visible=False,
                                file_count="multiple")
            with gr.Column(scale=5, min_width=320, elem_id="controls"), gr.Tabs(elem_id="tabs"):
                with gr.Tab("Faces", elem_id="tab-faces"):
                    with gr.Row():
                        seed = field("seed", "seed", "0")
                        new = gr.Button("New ones", elem_id="new", variant="primary",
                                        elem_classes="beside")
                    gr.Markdown(says["wall"])
                    wall = gallery("wall")
                    wall_command = line("wall-command", "the same wall again")
                    with gr.Row():
                        size = slider("size", 0.05, 1, 0.3, 0.05, "size of the step")
                        breed = gr.Button("Children of this face", elem_id="children",
                                          elem_classes="beside")
                with gr.Tab("Truncation, noise", elem_id="tab-truncation"):
                    psi = slider("psi", -1, 2, 1, 0.01)
                    cutoff = slider("cutoff", 0, 2 * MOST_BLOCKS, 2 * MOST_BLOCKS, 1)
                    noise = gr.Radio([("stored", "const"), "none", "random"], value="const",
                                     label="noise", info=says["noise"], elem_id="noise")
                    noise_seed = field("noise-seed", "seed of the random noise", "0")
                    gr.Markdown(says["strengths"])
                    strengths = [slider(f"noise-{4 << k}", 0, 3, 1, 0.05, f"noise of {4 << k} px")
                                 for k in range(MOST_BLOCKS)]
                with gr.Tab("Mixing", elem_id="tab-mixing"):
                    gr.Markdown(says["mixing"])
                    groups = [field(name, name) for name in ("coarse", "middle", "fine")]
                    with gr.Row():
                        own_layers = field("own-layers", "layers", "0-1")
                        own_seed = field("own-seed", "obey the seed")
                with gr.Tab("Directions", elem_id="tab-directions"):
                    layers = gr.Dropdown([], label="layers", info=says["layers"], elem_id="layers",
                                         allow_custom_value=True)
                    gr.Markdown(says["directions"])
                    along = [slider(f"direction-{k + 1}", -3, 3, 0, 0.05, f"direction {k + 1}")
                             for k in range(DIRECTIONS)]
                    reset = gr.Button("Reset all directions", elem_id="reset")
                with gr.Tab("Inside", elem_id="tab-inside") as inside:
                    gr.Markdown(says["ladder"])
                    ladder = gallery("ladder")
                    ladder_command = line("ladder-command", "the ladder as a figure")
                    place = gr.Dropdown([], label="activations", info=says["place"],
                                        elem_id="place")
                    channels = gallery("activations", 6)
                with gr.Tab("Video", elem_id="tab-video"):
                    gr.Markdown(says["video"])
                    stations = gallery("stations", 8)
                    way = gr.Radio(["one way", "loop"], value="one way", label="way",
                                   info=says["way"], elem_id="way")
                    count = slider("frames", 10, MOST_FRAMES, 50, 1)
                    with gr.Row():
                        film = gr.Button("Make the video", variant="primary", elem_id="film")
                        stop_film = gr.Button("Stop", elem_id="stop-film")
                        forget = gr.Button("Forget the faces", elem_id="forget")
                    film_status = gr.Markdown(elem_id="film-status")
                    film_timer = gr.Timer(0.5, active=False)
                    movie = gr.Video(elem_id="movie", label="video", interactive=False, loop=True,
                                     autoplay=True, buttons=["download"], visible=False)
                    movie_files = gr.File(elem_id="movie-files", label="the video and its faces",
                                          interactive=False, file_count="multiple")
                    movie_command = line("movie-command", "the same video again")
                with gr.Tab("Photo", elem_id="tab-photo"):
                    gr.Markdown(says["photo"])
                    photo = gr.File(label="a photograph", height=120,
                                    file_types=["image"], type="filepath", elem_id="photo")
                    steps = slider("steps", 10, MOST_STEPS, 200, 10)
                    per_layer = gr.Checkbox(label="a w for each layer", info=says["per-layer"],
                                            elem_id="per-layer")
                    with gr.Row():
                        find = gr.Button("Find its w", variant="primary", elem_id="find")
                        stop_find = gr.Button("Stop", elem_id="stop-find")
                    gr.Markdown("Left what the network is to make, right what it makes.")
                    with gr.Row():
                        target = seen("photo-target", "what the network is to make")
                        nearest = seen("photo-nearest", "what it makes")
                    verdict = gr.Markdown(elem_id="verdict")
                    find_timer = gr.Timer(0.5, active=False)
                    arrived = gr.Timer(0.1, active=False)
                    photo_command = line("photo-command", "the same search again")
                with gr.Tab("w", elem_id="tab-w"):
                    gr.Markdown(says["w"])
                    text = gr.Textbox(label="w as a text", lines=4, max_lines=6, elem_id="w-text",
                                      buttons=["copy"], max_length=200_000)
                    with gr.Row():
                        write = gr.Button("Write this w there", elem_id="w-write")
                        paste = gr.Button("Take the text as a face", elem_id="w-paste")
                    load = gr.File(label="a w that was saved", file_types=[".npz"], height=120,
                                   type="filepath", elem_id="w-file")

        # ---- what happens ----
        dials = [network, seed, given, psi, cutoff, noise, noise_seed, *strengths, *groups,
                 own_layers, own_seed, moves, layers, *along]
        of_a_face = [seed, given, psi, *groups, own_seed, moves, *along]
        # Values come as they were sent: gradio would check them one after the other, at the price
        # of a thread's turn each, and answer with an error where here a sentence is said.
        short = dict(queue=False, api_visibility="private", preprocess=False)

        def on(event, function, inputs, outputs, wait=None, well="", **how):
            """A handler behind an event; the message is one output more. `wait`: where a clock
            runs until the answer is there."""
            return event(speaking(function, len(outputs), well), inputs, [*outputs, message],
                         show_progress="minimal" if wait else "hidden", show_progress_on=wait,
                         **{**short, **how})

        def opened(name):
            if not isinstance(name, str) or name not in networks:
                raise UserError("only the networks named on the command line can be opened")
            return networks[name]()

        def look_now(values):
            """The dials -> (network, look, moves)."""
            name, seed, given, psi, cutoff, noise, noise_seed, *rest = values
            current, rest = opened(name), iter(rest)
            strengths = [next(rest) for _ in range(MOST_BLOCKS)][:current.layers // 2]
            groups, layers, other = [next(rest) for _ in range(3)], next(rest), next(rest)
            moves, shown, along = next(rest), next(rest), list(rest)
            moves = {name: s for name, s in {**moves, str(shown): along}.items() if any(s)}
            if len(moves) > MOST_RANGES:
                raise UserError(f"directions of at most {MOST_RANGES} ranges at a time; reset some")
            look = look_of(current, seed, given, psi, cutoff, noise, noise_seed, strengths, groups,
                           layers, other, moves)
            return current, look, moves

        def said(words):
            return machine.spoken([*words, *(["--device", device] if device else [])])

        def show(*values):
            current, look, moves = look_now(values)
            r, name = current.model.resolution, (
                f"seed {look.face}" if look.plain else current.file_of(look))
            about = f"**{name}** · {r} x {r} pixels" + (
                ", shown without smoothing" if r < 256 else "") + (
                f" · {current.model.growing}" if current.model.growing else "")
            return (png(current.picture(look), current.file_of(look)), about,
                    said(current.command(look)), moves)

        def then_show(event):
            # What the event before it has said shall stay.
            return on(event.then, show, dials, shown, caption, gr.skip())

        shown = [picture, caption, command, moves]
        # A text field's "input" is only told of keys that write a letter, not of pasting.
        live = [dial.input for dial in [psi, cutoff, noise, *strengths, *along]]
        live += [text.change for text in [seed, noise_seed, *groups, own_layers, own_seed]]
        on(functools.partial(gr.on, live), show, dials, shown, caption, trigger_mode="always_last")

        def fresh(face, keep_psi=False):
            """What the dials of a face are when it is new."""
            seeded = isinstance(face, int)
            return (str(face) if seeded else "", None if seeded else face,
                    gr.skip() if keep_psi else 1, "", "", "", "", {}, *[0] * DIRECTIONS)

        # Faces: a wall, one of it, its children.
        def wall_from(first, values):
            current, look, _ = look_now(values)
            who = list(range(first, first + WALL))
            tiles = [(png(image), f"seed {k}") for k, image in zip(who, current.wall(who, look))]
            return tiles, who, said(current.wall_command(who, look))

        def new_wall(on_wall, *values):
            seeds = [face for face in on_wall if isinstance(face, int)]
            return wall_from(seeds[-1] + 1 if seeds else WALL, values)

        def child_wall(size, *values):
            current, look, _ = look_now(values)
            who = current.children(look, number_of(size, 0, 1, "size of the step"), WALL)
            images = current.wall(who, look._replace(psi=1.0, cutoff=None))
            return ([(png(image), f"child {k + 1}") for k, image in enumerate(images)], who,
                    "choose a child: its own line then stands under the large picture")

        def choose(on_wall, event: gr.SelectData):
            if event.index not in range(len(on_wall)):
                raise UserError("there is no such face on the wall")
            face = on_wall[event.index]
            return fresh(face, keep_psi=isinstance(face, int))

        walls = [wall, on_wall, wall_command]
        on(new.click, new_wall, [on_wall, *dials], walls, wall)
        on(breed.click, child_wall, [size, *dials], walls, wall)
        then_show(on(wall.select, choose, [on_wall], of_a_face))

        # Directions: each range of layers has its own strengths.
        def other_layers(name, moves, layers):
            opened(name).layers_from(layers, "layers")
            return tuple(moves.get(str(layers), [0] * DIRECTIONS))

        on(layers.input, other_layers, [network, moves, layers], along)
        then_show(on(reset.click, lambda: ({}, *[0] * DIRECTIONS), [], [moves, *along]))

        # Inside.
        def look_inside(place, *values):
            current, look, _ = look_now(values)
            pictures, maps = ([(png(image), caption) for image, caption in seen] for seen in (
                current.ladder(look), current.activations(look, place)))
            return pictures, said(current.command(look, "resolutions")), maps

        for event in (inside.select, place.input):
            on(event, look_inside, [place, *dials], [ladder, ladder_command, channels],
               channels)

        # Save; the video.
        def save_look(*values):
            current, look, _ = look_now(values)
            w = current.save_w(look)
            path = place_for(f"{w.stem}.png")
            figures.save_picture(path, Image.fromarray(current.picture(look)))
            return gr.update(value=[str(path), str(w)], visible=True)

        def add_station(journey, *values):
            current, look, _ = look_now(values)
            if len(journey) >= MOST_STATIONS:
                raise UserError(f"a video goes through at most {MOST_STATIONS} faces")
            journey = [*journey, look]
            return journey, [(png(current.picture(one)), current.file_of(one)) for one in journey]

        def start_film(name, journey, way, count, tab: gr.Request):
            if len(journey) < 2:
                raise UserError('a video needs two faces: "Add to the video", under the picture')
            current, count = opened(name), int(number_of(count, 10, MOST_FRAMES, "frames"))
            path = place_for("loop.mp4" if video.find_encoder() else "loop.gif")
            video.check_video(path, count, max(256, current.model.resolution), 25.0)

            def make(job):
                frames, words, files = current.film(journey, count, way == "one way")

                def counted():
                    for k, frame in enumerate(frames):
                        job.check()
                        job.latest = f"Frame {k + 1} of {count}."
                        for file in (path, *files):            # or `place_for` would remove them
                            os.utime(file.parent)
                        yield frame

                video.write_video(path, counted(), count, 25.0)
                return [path, *files], said([*words, "--out", path.name])

            jobs.start((tab.session_hash, "film"), make)
            return gr.Timer(active=True), "Begins."

        def ask_film(tab: gr.Request):
            latest, done, words = jobs.look((tab.session_hash, "film"))
            timer = gr.Timer(active=not done)
            if not isinstance(latest, tuple):                  # the files are not there yet
                return *[gr.skip()] * 3, timer, words or latest or gr.skip()
            files, command = latest
            playable = files[0].suffix == ".mp4"
            return (gr.update(value=str(files[0]) if playable else None, visible=playable),
                    [str(file) for file in files], command, timer, words)

        on(save.click, save_look, dials, [saved])
        on(add.click, add_station, [journey, *dials], [journey, stations])
        on(forget.click, lambda: ([], []), [], [journey, stations])
        on(film.click, start_film, [network, journey, way, count], [film_timer, film_status])
        on(film_timer.tick, ask_film, [], [movie, movie_files, movie_command, film_timer,
                                           film_status], well=gr.skip(), trigger_mode="once")

        # A photograph.
        def start_find(name, photo, steps, per_layer, tab: gr.Request):
            if not photo:
                raise UserError("choose a photograph first")
            current, steps = opened(name), int(number_of(steps, 10, MOST_STEPS, "steps"))
            words = said(["python", "project.py", current.path, pathlib.Path(photo).name,
                          "--steps", str(steps), *["--per-layer"] * bool(per_layer)])

            def find(job):
                for job.latest in current.find(photo, steps, bool(per_layer)):
                    job.check()
                return job.latest

            jobs.start((tab.session_hash, "find"), find)
            return gr.Timer(active=True), "Begins.", words

        def ask_find(tab: gr.Request):
            latest, done, words = jobs.look((tab.session_hash, "find"))
            timer = gr.Timer(active=not done)
            nothing = [gr.skip()] * (1 + len(of_a_face))
            if latest is None:
                return gr.skip(), gr.skip(), words or gr.skip(), timer, *nothing
            seen, made, verdict, face = latest
            return (png(seen), png(made), f"{verdict}\n\n{words}", timer,
                    *((gr.Timer(active=True), *fresh(face)) if done else nothing))

        on(find.click, start_find, [network, photo, steps, per_layer],
           [find_timer, verdict, photo_command], preprocess=True)
        on(find_timer.tick, ask_find, [], [target, nearest, verdict, find_timer, arrived,
                                           *of_a_face], well=gr.skip(), trigger_mode="once")
        on(arrived.tick, lambda *values: (*show(*values), gr.Timer(active=False)), dials,
           [*shown, arrived], well=gr.skip(), trigger_mode="once")

        def stop(tab: gr.Request):
            for kind in ("film", "find"):
                jobs.stop((tab.session_hash, kind))

        for event in (stop_film.click, stop_find.click):
            event(stop, queue=False, api_visibility="private")
        demo.unload(stop)

        # w as a text and as a file.
        def write_w(*values):
            current, look, _ = look_now(values)
            return text_of_w(current.numbers_of(look)[0].numpy())

        on(write.click, write_w, dials, [text])
        then_show(on(paste.click, lambda name, text: fresh(opened(name).given_from_text(text)),
                     [network, text], of_a_face))
        then_show(on(load.upload, lambda name, path: fresh(opened(name).given_from_file(path)),
                     [network, load], of_a_face, preprocess=True))

        # A network is opened: at the beginning, and when another one is chosen.
        def open_network(name):
            current = opened(name)
            choices = [(f"{label}: {a}-{b}", f"{a}-{b}") for label, (a, b) in
                       current.ranges().items()]
            places, pixels = list(current.places()), current.model.resolution < 256
            return (*fresh(0, keep_psi=True),
                    gr.update(maximum=current.layers, value=current.layers),
                    *[gr.update(visible=k < current.layers // 2) for k in range(MOST_BLOCKS)],
                    gr.update(choices=choices, value=choices[0][1]),
                    gr.update(choices=places, value=places[min(2, len(places) - 1)]),
                    gr.update(elem_classes=["pixels"] * pixels + ["seen"]), [], [])

        for event in (demo.load, network.input):
            first = then_show(on(event, open_network, [network], [
                *of_a_face, cutoff, *strengths, layers, place, picture, journey, stations]))
            on(first.then, lambda *values: wall_from(0, values), dials, walls, wall,
               gr.skip())
    return demo


# ---- 6. Style --------------------------------------------------------------------------------

# Wide, the picture stays in sight while the controls scroll. Narrow, it stays at the top, and what
# else is in its column (`display: contents`) goes below the controls.
CSS = """
.gradio-container { width: 100%; min-width: 0; max-width: 1440px !important; margin: 0 auto;
    overflow: visible !important; }
.gradio-container .main, .gradio-container .column { min-width: 0; }
.pixels img { image-rendering: pixelated; }
.gradio-container .main, .gradio-container .contain, #desk { width: 100%; }
#desk { gap: 24px; align-items: flex-start; }
#stage { position: sticky; top: 12px; gap: 10px; }
.empty { min-height: 64px !important; }
#tabs .tab-container button { padding-left: 10px; padding-right: 10px; }
#picture { border-radius: 12px; }
.seen .image-container, .seen .image-container > button, .seen .image-frame {
    width: 100%; height: 100%; }
.seen img { width: 100%; aspect-ratio: 1; object-fit: contain; max-height: 66vh; }
#caption p, #message p { margin: 0; }
#message p { color: #b45309; font-weight: 600; }
.dark #message p { color: #fbbf24; }
.line textarea { font-family: var(--font-mono); font-size: 11.5px; opacity: 1; white-space: pre;
    height: 48px !important; overflow: auto hidden !important; scrollbar-width: thin;
    -webkit-text-fill-color: var(--body-text-color); background: var(--background-fill-secondary); }
.wall .grid-wrap { max-height: none; min-height: 0; height: auto; overflow: visible; }
.wall .grid-container { gap: 6px; padding: 6px;
    grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr));
    grid-template-rows: none; grid-auto-rows: auto; }
.wall .thumbnail-item { height: auto; min-height: 0; aspect-ratio: 1; }
.wall .caption-label { font-size: 11px; padding: 1px 6px; bottom: 4px; right: 4px; opacity: .85; }
.wall .thumbnail-item:hover, .wall .thumbnail-item:focus-visible { outline: 3px solid
    var(--color-accent); }
.beside { flex-grow: 0 !important; min-width: 150px !important; align-self: flex-end; }
@media (max-width: 768px) {
    .gradio-container .main { padding: 8px; }
    .wall .caption-label { font-size: 9px; padding: 0 3px; bottom: 2px; right: 2px; }
    #desk { flex-direction: column; gap: 10px; align-items: stretch; }
    #desk > *, #stage > * { width: 100%; min-width: 0 !important; flex: none; }
    #stage { display: contents; }
    #stage > * { order: 2; }
    #stage > :has(#network) { order: -1; }
    #picture { order: 0; position: sticky; top: 0; z-index: 100; }
    #picture img { max-height: 34vh; }
    #caption, #message { order: 0; }
    #controls { order: 1; }
}
"""
