"""explore.py as its user meets it, a server beside a real browser; also for experiments/explore.py.

The browser is the Chromium of this machine, driven by playwright. It runs without a window, and it
is offline: a name that it looks up does not exist, and only 127.0.0.1 can be reached.
"""

import contextlib
import http.client
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def chromium():
    """The path of an installed Chromium, or None. .ci/run installs Debian's."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Server:
    """explore.py in a process of its own, from the first answer on. Ends with the `with` block.

    seconds: from its start until it answered. log: what it has printed.
    """

    def __init__(self, *arguments, cwd):
        with socket.socket() as free:                          # the system names a free port
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.output = f"http://127.0.0.1:{self.port}", Path(cwd, f"{self.port}.log")
        # Pictures on their way to the page lie in the system's folder for temporary files.
        self.temporary = Path(cwd, f"{self.port}-temporary")
        self.temporary.mkdir()
        began = time.monotonic()
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "explore.py"), *map(str, arguments), "--port",
                 str(self.port)], cwd=cwd, stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(self.temporary)})
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > began + 120:
                self.__exit__()
                raise RuntimeError(f"explore.py does not answer:\n{self.log}")
            time.sleep(0.3)
        self.seconds = time.monotonic() - began

    def answers(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            connection.request("GET", "/config")
            return connection.getresponse().status == 200
        except OSError:
            return False

    @property
    def log(self):
        return self.output.read_text(errors="replace")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def a_browser():
    """Chromium without a window, offline but for this machine."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        # Chromium refuses to start for root with its sandbox on; and a container's /dev/shm may be
        # too small for it.
        words = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                 "--disable-dev-shm-usage"]
        words += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
        browser = playwright.chromium.launch(executable_path=chromium(), args=words,
                                              timeout=120_000)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A tab of a browser in which explore.py was opened, and what a hand does there, by elem_id.

    requests: the address of every request that it has made, also of those that failed.
    source:   the address of the picture that was on the screen when somebody last looked. It holds
              a checksum of the picture, so another picture has another address.
    """

    def __init__(self, browser, url, picture="#picture img", **options):
        self.context, self.requests = browser.new_context(**options), []
        self.page, self.picture, self.source = self.context.new_page(), picture, None
        self.page.set_default_timeout(120_000)
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.goto(url)
        self.new_picture()

    def elsewhere(self, url):
        """Requests that went past the server. (data: and blob: go nowhere.)"""
        return [r for r in self.requests if not r.startswith((f"{url}/", "data:", "blob:"))]

    # ---- what it shows ----

    def new_picture(self):
        """Wait until another picture is on the screen than before.

        Not until the network is idle, which is never: gradio keeps a stream open with the page.
        """
        self.page.wait_for_function("""([css, old]) => {
            const image = document.querySelector(css);
            return image && image.src && image.src !== old && image.complete && image.naturalWidth
        }""", arg=[self.picture, self.source])
        self.look()

    def look(self):
        self.source = self.page.locator(self.picture).first.get_attribute("src")

    def pixels(self):
        """The picture on the screen as bytes [R, R, 3]."""
        self.look()
        answer = self.context.request.get(self.source)
        return np.array(Image.open(io.BytesIO(answer.body())))

    def shows(self, pixels, tolerance=0):
        """Wait until the picture on the screen is this one."""
        self.until(lambda: np.abs(self.pixels().astype(int) - pixels).max() <= tolerance)

    def value(self, name):
        """The text of a text field."""
        return self.page.locator(f"#{name} textarea, #{name} input").first.input_value()

    def sources(self, name):
        """The addresses of a gallery's pictures."""
        return [image.get_attribute("src") for image in self.page.locator(f"#{name} img").all()]

    def tiles(self, name, count):
        """Wait until a gallery has so many pictures. Returns their addresses."""
        self.page.wait_for_function(
            "([css, count]) => document.querySelectorAll(css).length === count",
            arg=[f"#{name} img", count])
        return self.sources(name)

    def message(self, wanted=True):
        """Wait until there is a message (False: none; None: whatever is there). Returns it."""
        text = self.page.locator("#message")
        if wanted is not None:
            self.until(lambda: (text.count() > 0 and "⚠" in text.inner_text()) == wanted)
        return text.inner_text() if text.count() else ""

    def until(self, condition, seconds=120):
        """Wait until condition() is true."""
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, "it did not become true"
            self.page.wait_for_timeout(50)

    # ---- what a hand does ----

    def open(self, name):
        """Choose a tab of the page by its title, on a phone from the menu of those beyond it."""
        title = self.page.get_by_role("tab", name=name, exact=True)
        if not title.count():
            self.page.get_by_role("button", name="More tabs").click()
            title = self.page.locator(".overflow-dropdown").get_by_text(name, exact=True)
        title.click()

    def click(self, name):
        self.page.locator(f"#{name}" if self.page.locator(f"button#{name}").count() else
                          f"#{name} button").first.click()

    def type(self, name, text):
        """Into a text field."""
        self.page.locator(f"#{name} textarea, #{name} input").first.fill(text)

    def number(self, name, value):
        """Into the field beside a slider."""
        field = self.page.locator(f"#{name} input[type=number]")
        field.fill(str(value))
        field.press("Enter")

    def choose(self, name, option):
        """From a dropdown."""
        self.page.locator(f"#{name} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def upload(self, name, path):
        """Choose a file, instead of the one that was chosen before."""
        field = self.page.locator(f"#{name}")
        if not field.locator("input[type=file]").count():
            field.get_by_role("button", name="Clear").click()
        field.locator("input[type=file]").set_input_files(path)
        field.get_by_text(path.suffix).first.wait_for()

    def save(self, folder):
        """Press "save" and download what it offers. Returns {suffix: path}."""
        self.click("save")
        links, saved = self.page.locator("#saved a[download]"), {}
        links.nth(1).wait_for()
        for link in links.all():
            with self.page.expect_download() as download:
                link.click()
            path = folder / download.value.suggested_filename
            download.value.save_as(path)
            saved[path.suffix] = path
        return saved
