"""Run by hand: does explore.py keep up with a hand on a slider, and with 20 clients?

    python experiments/explore.py latency        from a slider's move to the picture, in a browser
    python experiments/explore.py load           20 clients for 5 minutes, most of them rude

latency moves a slider in a headless Chromium, the next move when the picture of the last one is on
the screen. Time runs from the slider's `input` event to the first frame that the browser could
paint with the new picture in it, by the clock of the page. Beside it stands the network alone: the
same picture made in this process, without a page, before the server starts. Networks have random
weights, since their numbers cost as much time as learned ones.

load speaks HTTP to 127.0.0.1 and to nothing else. First comes a sweep: the addresses that the
server has, each with each way of naming a file that is none of its business (--calls of these
pairs, drawn). Then every client draws calls for --minutes: to every listener of the page as the
page would call it, the same with values that no page would send, bodies that are no JSON, uploads,
and the addresses of the sweep. One polite client moves a slider all the while. Files that must stay
unread lie around, beside the checkpoint and in the server's folder. Two watches are set: what is in
them, in the checkpoint, in the program and in the system's files must be in no answer; and the time
of their last reading, set back to the year 2000, must stay. Memory is printed twice a minute. The
exit code is 1 if the server died, if a file was read or written, or if the polite client got an
answer without a picture.

Needs:    pip install -r requirements-dev.txt; latency also a Chromium (.ci/run installs Debian's).
[MACHINE] 2 CPU cores and Linux (/proc, times of reading). latency 2 minutes, load 7 (estimated from
          shorter ones). The server has the machine for itself only if nothing else runs on it;
          clients and browser take their share.
"""

import argparse
import collections
import contextlib
import http.client
import importlib.util
import io
import json
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]                # before this folder
import generate
import stylegan_models as models
from browser import Server, Tab, a_browser, chromium
from workshop import UserError, checkpoints, machine, options

SLIDER, PICTURE = "#psi input[type=range]", "#picture img"   # of the page
ARCHITECTURES = ("stylegan", "stylegan2")
WIDTHS = {resolution: {**{name: options.PRESETS[preset][name] for name in models.SETTINGS},
                       "resolution": resolution}
          for resolution, preset in ((32, "painted faces on a CPU"),       # the default run's
                                     (128, "your pictures on a GPU"))}     # the papers'


def save_random(path, settings):
    """A checkpoint to look at, with random weights: noise strengths, too, so that all is used."""
    torch.manual_seed(0)
    G = models.make_generator(settings)
    with torch.no_grad():
        for layer in generate.noise_inputs(G, models.resolutions_up_to(settings["resolution"])):
            layer.strength.normal_(0, 0.1)
    checkpoints.save_checkpoint(path, {"settings": settings, "generator_ema": G.state_dict()})
    return path


def percentile(values, p):
    return statistics.quantiles(values, n=100, method="inclusive")[p - 1]


# ==== Part 1: latency =========================================================================

# A promise, kept when the picture that belongs to the new value can be painted. The address of a
# picture holds a checksum of its content, so another picture has another address.
MOVE = """([slider, picture, value]) => new Promise((done, failed) => {
    const range = document.querySelector(slider), image = () => document.querySelector(picture);
    const before = image().src;
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(range, value);
    const began = performance.now();
    range.dispatchEvent(new Event("input", {bubbles: true}));
    const look = () => {
        const now = image();
        if (now && now.src !== before && now.complete && now.naturalWidth)
            done(performance.now() - began);
        else if (performance.now() - began > 30000) failed("no picture in 30 s");
        else requestAnimationFrame(look);
    };
    look();
})"""


def alone(path, count):
    """Milliseconds of each of `count` pictures by the network, without a page."""
    seconds = []
    with machine.in_float32(), torch.no_grad():
        model = generate.load_model(path, torch.device("cpu"))
        ws = generate.ws_of(model, [0])
        for _ in range(3 + count):
            began = time.perf_counter()
            next(generate.render(model, ws, [0]))
            seconds.append(time.perf_counter() - began)
    return [1000 * s for s in seconds[3:]]                     # without the first, slow ones


def latency(o):
    if not chromium():
        raise UserError("latency needs a Chromium: apt-get install chromium")
    if not importlib.util.find_spec("playwright"):
        raise UserError("latency needs playwright: pip install -r requirements-dev.txt")
    print(f"{o.moves} moves; milliseconds\n"
          f"| network | alone p50 | p95 | slider to picture p50 | p95 | "
          f"first picture after | wall after |\n|---|---|---|---|---|---|---|", flush=True)
    with a_browser() as browser:
        for resolution in o.resolution:
            for architecture in o.architecture:
                with tempfile.TemporaryDirectory() as folder:
                    path = save_random(Path(folder, "random.pt"),
                                       {**WIDTHS[resolution], "architecture": architecture})
                    network = alone(path, o.moves)
                    with Server(path, "--device", "cpu", "--no-open", cwd=folder) as server:
                        began = time.monotonic()
                        tab = Tab(browser, server.url)
                        opened = [time.monotonic() - began]
                        tab.tiles("wall", 12)
                        opened.append(time.monotonic() - began)
                        tab.open("Truncation, noise")
                        tab.page.locator(SLIDER).wait_for()
                        # No value comes twice, nor the 1 that was there: their pictures are known.
                        values = random.Random(0).sample([*range(-99, 100), *range(101, 200)],
                                                         3 + o.moves)
                        slid = [tab.page.evaluate(MOVE, [SLIDER, PICTURE, str(value / 100)])
                                for value in values][3:]
                times = [percentile(values, p) for values in (network, slid) for p in (50, 95)]
                print(f"| {architecture}, {resolution} px |",
                      *(f"{ms:.0f} |" for ms in times), *(f"{s:.1f} s |" for s in opened),
                      flush=True)


# ==== Part 2: load ============================================================================

SECRET = b"a8f1-this-must-not-be-read-4c77"
LONGEST = 30                                                   # seconds until a client gives up
MOST = 8_000_000                                               # bytes of an answer that are read
API = "/gradio_api"


def ask(port, method, address, body=None, kind="application/json"):
    """(status, body) of one call; status 0 if there was no whole answer within LONGEST seconds.

    A stream of events is read until its job has ended, or for two seconds if it belongs to none.
    """
    ends = time.monotonic() + LONGEST
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)
    status, parts, size, stream = 0, [], 0, False
    try:
        connection.request(method, address, body, {"Content-Type": kind})
        answer = connection.getresponse()
        stream = answer.headers.get_content_type() == "text/event-stream"
        if stream and f"{API}/queue/data" not in address:
            status, ends = answer.status, time.monotonic() + 2
        while size < MOST and time.monotonic() < ends:
            if connection.sock:
                connection.sock.settimeout(max(0.01, ends - time.monotonic()))
            parts.append(answer.readline() if stream else answer.read1(1 << 16))
            size += len(parts[-1])
            if not parts[-1] or stream and (b"process_completed" in parts[-1] or
                                            b"close_stream" in parts[-1]):
                status = answer.status
                break
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return status, b"".join(parts)


class Watch:
    """Files that nobody may read, and the two ways to see that somebody did.

    content: a text that is in each file, and in no answer. clock: the system notes the first
    reading after a change of the file (Linux, unless it is told not to; `works` tries it).
    """

    def __init__(self, files, clock):
        self.files, self.clock, self.shown = files, clock, []
        self.works = True
        if clock:
            os.utime(clock[0], (self.LONG_AGO, time.time()))
            clock[0].read_bytes()
            self.works = clock[0].stat().st_atime != self.LONG_AGO
        for path in clock:
            os.utime(path, (self.LONG_AGO, time.time()))

    LONG_AGO = 946684800                                       # the first second of 2000

    def look(self, address, body):
        """Called with every answer."""
        for name, text in self.files.items():
            if text in body:
                self.shown.append(f"{name} by {str(address)[:200]}")

    def read(self):
        return [str(path) for path in self.clock if path.stat().st_atime != self.LONG_AGO]


def addresses(port, files):
    """[(method, address)]: each address of the server, with each way to name each of the files."""
    names = []
    for file in map(str, files):
        up = "../" * 12 + file.lstrip("/")
        names += [file, up, f"file://{file}", f"/{file}", f"/proc/self/root{file}",
                  f"/proc/self/cwd/{Path(file).name}", Path(file).name, f"./{Path(file).name}",
                  up.replace("../", "..\\"), up.replace("../", "....//"), f"C:{file}", f"{file}\0"]
    names += ["/proc/self/environ", "/proc/self/cmdline", "/", "..", "http://127.0.0.1:9/x",
              f"http://127.0.0.1:{port}/config", "x" * 5000, "%", "\u2028", "-1", "nan"]
    # Percent signs once, twice, and for letters that need none.
    spelled = [spell(name) for name in names for spell in (
        urllib.parse.quote, lambda name: urllib.parse.quote(urllib.parse.quote(name, safe="")),
        lambda name: "".join(f"%{byte:02x}" for byte in name.encode()))]
    found = json.loads(ask(port, "GET", "/openapi.json")[1])["paths"]
    result = []
    for path, methods in found.items():
        for method in methods:
            filled = [re.sub(r"\{\w+\}", lambda _: name, path) for name in spelled] if (
                "{" in path) else [path, *(f"{path}?{key}={name}" for name in spelled[::7]
                                           for key in ("path", "session_hash", "upload_id"))]
            result += [(method.upper(), address) for address in filled]
    return result


def likely(draw, component, uploaded):
    """A value that the page could send for this component."""
    props, kind = component["props"], component["type"]
    if kind in ("slider", "number"):
        low, high = (props.get(name) for name in ("minimum", "maximum"))
        value = draw.uniform(0 if low is None else low, 100 if high is None else high)
        return round(value) if (props.get("step") or 1) >= 1 else round(value, 2)
    if kind == "checkbox":
        return draw.random() < 0.5
    if kind in ("radio", "dropdown") and props.get("choices"):
        one = draw.choice(props["choices"])[1]
        return [one] if props.get("multiselect") else one
    if kind in ("image", "file", "uploadbutton"):
        return {"path": uploaded, "meta": {"_type": "gradio.FileData"}} if uploaded else None
    return props.get("value")


def wild(draw, files):
    """A value that no page would send."""
    file = str(draw.choice(files))
    nested = []
    for _ in range(200):
        nested = [nested]
    return draw.choice([
        None, True, -1, 0, 2 ** 70, 1e308, float("nan"), "", "0", "-7", "1e9999", "nan",
        "x" * 10 ** 5, "\0", "../" * 9, [], {}, nested, [[[]]] * 100, {"a": {"b": None}}, file,
        {"path": file}, {"path": file, "meta": {"_type": "gradio.FileData"}},
        {"path": file, "url": f"file://{file}", "meta": {"_type": "gradio.FileData"}},
        {"path": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}},
        [{"image": {"path": file, "meta": {"_type": "gradio.FileData"}}, "caption": None}],
        {"__type__": "update", "value": file}, {"value": file, "choices": [file]}])


class Client(threading.Thread):
    """Draws one call after the other until the time is over.

    seen: {kind of call: [(status, seconds), ...]}
    """
    KINDS = {"page": 8, "wild": 8, "no JSON": 2, "upload": 1, "address": 4}

    def __init__(self, number, port, config, sweep, watch, files, ends):
        super().__init__(daemon=True)
        self.number, self.port, self.sweep = number, port, sweep
        self.watch, self.files, self.ends = watch, files, ends
        self.draw, self.uploaded = random.Random(number), None
        self.session, self.seen = f"{number}", collections.defaultdict(list)
        self.components = {component["id"]: {**component, "props": dict(component["props"])}
                           for component in config["components"]}
        self.listeners = [one for one in config["dependencies"] if one["backend_fn"]]

    def open(self):
        """What the page does first. What comes back tells how its components are set."""
        for listener in self.listeners:
            if "load" in (event for _, event in listener["targets"]):
                _, answer = self.call(listener, [self.components[k]["props"].get("value")
                                                 for k in listener["inputs"]])
                for key, value in zip(listener["outputs"], json.loads(answer)["data"]):
                    props = self.components[key]["props"]
                    props.update(value if isinstance(value, dict) and "__type__" in value else
                                 {"value": value})

    def run(self):
        """The thread."""
        self.open()
        kinds, weights = zip(*self.KINDS.items())
        while time.monotonic() < self.ends:
            if self.draw.random() < 0.1:                       # as if the page were loaded again
                self.session = f"{self.number}-{self.draw.random()}"
            kind = self.draw.choices(kinds, weights)[0]
            self.timed(kind, getattr(self, kind.replace(" ", "_")))

    def timed(self, kind, call):
        began = time.monotonic()
        status, body = call()
        self.seen[kind].append((status, time.monotonic() - began))
        return body

    def ask(self, method, address, body=None, **more):
        status, answer = ask(self.port, method, address, body, **more)
        self.watch.look((address, body), answer)
        return status, answer

    def call(self, listener, values, more=None):
        """What the page does: a POST, or a place in the queue and the stream that tells of it."""
        body = {"data": values, "fn_index": listener["id"], "session_hash": self.session,
                "event_data": None, "trigger_id": None, **(more or {})}
        if listener["collects_event_data"] and not more:
            body["event_data"] = {"index": self.draw.randrange(8), "value": None, "selected": True}
        if not listener["queue"]:
            return self.ask("POST", f"{API}/run/predict", json.dumps(body))
        status, answer = self.ask("POST", f"{API}/queue/join", json.dumps(body))
        if status != 200:
            return status, answer
        return self.ask("GET", f"{API}/queue/data?session_hash="
                               f"{urllib.parse.quote(str(body['session_hash']))}")

    def page(self):
        listener = self.draw.choice(self.listeners)
        return self.call(listener, [likely(self.draw, self.components[k], self.uploaded)
                                    for k in listener["inputs"]])

    def wild(self):
        listener, more = self.draw.choice(self.listeners), {}
        values = [likely(self.draw, self.components[k], self.uploaded) for k in listener["inputs"]]
        for _ in range(self.draw.randint(1, 3)):
            if values:
                values[self.draw.randrange(len(values))] = wild(self.draw, self.files)
        if self.draw.random() < 0.2:
            values = self.draw.choice([values[1:], values + [1], [], None, {"a": 1}, "text"])
        if self.draw.random() < 0.2:
            more[self.draw.choice(["fn_index", "session_hash", "event_data", "trigger_id"])] = wild(
                self.draw, self.files)
        return self.call(listener, values, more)

    def no_JSON(self):
        address = self.draw.choice([one for method, one in self.sweep if method == "POST"])
        body = self.draw.choice([b"", b"{", b"[]", b"null", self.draw.randbytes(2000), b"[" * 5000,
                                 b'{"data": [1e999], "fn_index": 0}', b'{"fn_index": "0"}'])
        kind = self.draw.choice(["application/json", "text/plain", "multipart/form-data", ""])
        return self.ask("POST", address, body, kind=kind)

    def upload(self):
        picture = io.BytesIO()
        Image.new("RGB", (self.draw.randint(1, 300), 40), (9, 99, 200)).save(picture, "PNG")
        content = self.draw.choice([picture.getvalue(), picture.getvalue()[:90], b"", b"GIF89a",
                                    self.draw.randbytes(10 ** self.draw.randint(1, 6))])
        name = self.draw.choice(["a.png", "a.npz", "../../../evil.png", "/tmp/evil.png", "..", "",
                                 "x" * 300, "a\\b.png", "%2e%2e%2fevil.png"])
        body = (f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
                f"Content-Type: image/png\r\n\r\n").encode() + content + b"\r\n--edge--\r\n"
        status, answer = self.ask("POST", f"{API}/upload", body,
                                  kind="multipart/form-data; boundary=edge")
        if status == 200:
            with contextlib.suppress(ValueError, IndexError):
                self.uploaded = json.loads(answer)[0]
        return status, answer

    def address(self):
        method, address = self.draw.choice(self.sweep)
        return self.ask(method, address, b"{}" if method == "POST" else None)


class PoliteClient(Client):
    """Moves the slider psi, four times a second at most. without: answers without a picture."""

    without = 0

    def run(self):
        self.open()
        (slider,) = (key for key, one in self.components.items()
                     if f"#{one['props'].get('elem_id')}" == SLIDER.split()[0])
        (moved,) = (one for one in self.listeners if [slider, "input"] in one["targets"])
        values = [self.components[key]["props"].get("value") for key in moved["inputs"]]
        while time.monotonic() < self.ends:
            values[moved["inputs"].index(slider)] = round(self.draw.uniform(-1, 2), 2)
            body = self.timed("polite", lambda: self.call(moved, values))
            self.without += b".png" not in body
            time.sleep(0.25)


def state_of(process, folder):
    """(MB of memory, threads, open files, MB of temporary files) of the server."""
    status = Path(f"/proc/{process}/status").read_text()
    memory, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1])
                       for name in ("VmRSS", "Threads"))
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):                 # gone in the meantime
                size += os.path.getsize(os.path.join(path, name))
    return memory / 1024, threads, len(os.listdir(f"/proc/{process}/fd")), size / 1e6


def load(o):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        listed = save_random(folder / "listed.pt", WIDTHS[32])
        unlisted = save_random(folder / "unlisted.pt", WIDTHS[32])
        (folder / "secret.txt").write_bytes(SECRET)
        (folder / "cwd").mkdir()
        (folder / "cwd" / "secret.png").write_bytes(SECRET)
        watch = Watch({"the secret": SECRET, "a checkpoint": b"data.pkl", "passwords": b"root:x:0",
                       "the source": b"def main(", "surroundings": b"\0PATH="},
                      [unlisted, folder / "secret.txt", folder / "cwd" / "secret.png"])
        files = [listed, *watch.clock, ROOT / "explore.py", "/etc/passwd"]
        with Server(listed, "--device", "cpu", "--no-open", cwd=folder / "cwd") as server:
            died, alone = attack(o, server, watch, files)
            log = server.log
        evil = [path for path in (folder / "evil.png", Path("/tmp/evil.png"), ROOT / "evil.png")
                if path.exists()]
        read = watch.read()
    errors = [text.split("\nTraceback")[0] for text in log.split("Traceback (most recent")[1:]]
    ours = [text for text in errors if f'File "{ROOT}/' in text]
    print(f"{len(errors)} tracebacks in the server's log, {len(ours)} of them in this program:")
    ends = collections.Counter(end[0][:150] for text in ours
                               if (end := re.findall(r"^\w[\w.]*(?::.*|$)", text, re.M)))
    for text, count in ends.most_common(12):
        print(f"    {count:6} {text}")
    bad = [f"the server died, exit code {died}"] * (died is not None) + [
        "the polite client got no picture"] * alone + [f"written: {path}" for path in evil] + [
        f"read: {path}" for path in read] + [f"shown: {what}" for what in watch.shown[:10]]
    print("\n".join(bad) or "alive; nothing was read" + (
        "" if watch.works else " as far as answers tell (this system notes no times of reading)"))
    return 1 if bad else 0


def attack(o, server, watch, files):
    """The sweep, and the clients. Returns (exit code of a server that died, else None; whether the
    polite client was left alone)."""
    port, process, began = server.port, server.process, time.monotonic()
    config = json.loads(ask(port, "GET", "/config")[1])
    sweep = addresses(port, files)
    titles = ("minute", "memory, MB", "threads", "open files", "temporary files, MB")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")

    def show_state():
        if process.poll() is None:
            print(f"| {(time.monotonic() - began) / 60:.1f} |",
                  *(f"{value:.0f} |" for value in state_of(process.pid, server.temporary)),
                  flush=True)

    show_state()
    order, statuses = random.Random(0).sample(sweep, min(len(sweep), o.calls)), []
    for method, address in order:
        status, body = ask(port, method, address, b"{}" if method == "POST" else None)
        statuses.append(status)
        watch.look(address, body)
    show_state()
    ends = time.monotonic() + 60 * o.minutes
    clients = [kind(number, port, config, sweep, watch, files, ends)
               for number, kind in enumerate([PoliteClient] + [Client] * o.clients)]
    for client in clients:
        client.start()
    while time.monotonic() < ends and process.poll() is None:
        time.sleep(min(30, max(0.1, ends - time.monotonic())))
        show_state()
    for client in clients:                                     # each ends after its last call
        client.join(max(0.1, ends + 3 * LONGEST - time.monotonic()))
    show_state()

    print(f"| calls | number | p50, ms | p95, ms | answers (0: none in {LONGEST} s) |\n"
          f"|---|---|---|---|---|\n"
          f"| sweep | {len(order)} of {len(sweep)} | | | {counted(statuses)} |")
    for kind in ("polite", *Client.KINDS):
        seen = [one for client in clients for one in client.seen[kind]]
        if len(seen) > 1:
            statuses, seconds = zip(*seen)
            print(f"| {kind} | {len(seen)} | {1000 * percentile(seconds, 50):.0f} | "
                  f"{1000 * percentile(seconds, 95):.0f} | {counted(statuses)} |")
    polite = clients[0]
    print(f"{polite.without} answers to the polite client held no picture")
    return process.poll(), polite.without > 0 or not polite.seen["polite"]


def counted(values):
    return ", ".join(f"{value}: {count}" for value, count in
                     sorted(collections.Counter(values).items()))


# ==== Part 3: the program =====================================================================


def main(argv=None):
    parser = options.OneLineParser(prog="explore.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"latency": latency, "load": load}
    parser.add_argument("what", choices=list(kinds), metavar="WHAT", help=", ".join(kinds))
    counts = options.number_from(1)
    parser.add_argument("--resolution", metavar="LIST", default=list(WIDTHS),
                        type=lambda text: [int(word) for word in text.split(",")],
                        help="latency (default 32,128)")
    parser.add_argument("--architecture", metavar="LIST", default=ARCHITECTURES,
                        type=lambda text: text.split(","), help="latency (default both)")
    parser.add_argument("--moves", metavar="N", type=options.number_from(2, int, 200),
                        default=50, help="latency (default 50)")
    parser.add_argument("--minutes", metavar="N", type=options.number_from(0.01, float, 600),
                        default=5, help="load (default 5)")
    parser.add_argument("--clients", metavar="N", type=counts, default=20,
                        help="load (default 20)")
    parser.add_argument("--calls", metavar="N", type=counts, default=3000,
                        help="load: of the sweep, at most (default 3000)")
    o = parser.parse_args(argv)
    if set(o.resolution) - set(WIDTHS) or set(o.architecture) - set(ARCHITECTURES):
        parser.error(f"--resolution is of {list(WIDTHS)}, --architecture of {list(ARCHITECTURES)}")
    return kinds[o.what](o)


if __name__ == "__main__":
    options.start(main, "explore.py", "stopped")
