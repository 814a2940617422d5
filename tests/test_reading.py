"""docs/make_reading.py: the reading edition shows all of the code, and no link is dead."""

import ast
import collections
import html.parser
import io
import re
import sys
import tokenize

import pytest

import browser
from conftest import ROOT
from tiny import needs

pytest.importorskip("markdown_it")
pytest.importorskip("pygments")
sys.path.append(str(ROOT / "docs"))
import make_reading


class Page(html.parser.HTMLParser):
    """What a page holds: its lines of code {number: text}, its links, names and resources."""

    def __init__(self, text):
        super().__init__()
        self.code, self.links, self.ids, self.resources, self.words = {}, [], set(), [], []
        self.number, self.depth = None, 0
        self.feed(text.replace("<wbr>", ""))                   # a place to break a name at

    def handle_starttag(self, tag, pairs):
        attributes = dict(pairs)
        self.links += [attributes["href"]] if tag == "a" else []
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        self.resources += [pair[1] for pair in pairs if pair[0] in ("src", "data", "srcset")]
        self.resources += [tag] * (tag in ("link", "script", "iframe"))
        if tag == "span":
            if "data-n" in attributes:
                self.number, self.depth = int(attributes["data-n"]), 0
                assert self.number not in self.code, f"line {self.number} twice"
                self.code[self.number] = ""
            self.depth += 1

    def handle_endtag(self, tag):
        if tag == "span":
            self.depth -= 1
            if self.depth == 0:
                self.number = None

    def handle_data(self, data):
        if self.number is not None:
            self.code[self.number] += data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    assert make_reading.main(["--out", str(folder)]) == 0
    return {path.name: Page(path.read_text("utf-8")) for path in folder.glob("*.html")}, folder


def code_lines(path):
    """{number: text} of the lines that are code, as Python's tokenizer sees them: all but comments
    that stand alone, docstrings, and empty lines."""
    source = path.read_text("utf-8")
    lines, wanted, expecting = source.splitlines(), {}, True
    skipped = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        alone = token.line.lstrip().startswith("#") and token.type == tokenize.COMMENT
        # A string that begins a statement is a docstring here: nothing else begins with one.
        docstring = token.type == tokenize.STRING and expecting and token.string.strip(
            "r").startswith('"""')
        if alone or docstring:
            skipped |= set(range(token.start[0], token.end[0] + 1))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            expecting = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for number, line in enumerate(lines, 1):
        if line.strip() and number not in skipped:
            wanted[number] = line
    return wanted


def test_every_line_of_code_is_there_once_and_unchanged(pages):
    """Lesson: a page leaves nothing out. The judge is Python's tokenizer, which knows a comment and
    a string from code; what is not one of them must stand on the page, under its number."""
    shown, _ = pages
    files = [*ROOT.glob("*.py")] + [path for folder in ("workshop", "tests", "experiments")
                                    for path in ROOT.glob(f"{folder}/*.py")]
    for path in files:
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "-")
        page = shown[f"{name.removesuffix('-__init__')}.html"]
        found = {number: text for number, text in page.code.items() if text.strip()}
        assert found == code_lines(path), path
    assert len(files) > 60
    assert code_lines(ROOT / "train.py") != code_lines(ROOT / "morph.py")      # control


def test_every_word_of_prose_is_there(pages):
    """Lesson: no comment gets lost, whatever became of its spaces. The judge reads the docstrings
    of each file upstairs with Python's parser, and the comments with a regular expression."""
    shown, _ = pages
    for name in make_reading.WALK:
        source = (ROOT / f"{name}.py").read_text("utf-8")
        tree = ast.parse(source)
        prose = [ast.get_docstring(node) or "" for node in ast.walk(tree)
                 if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        prose += re.findall(r"^ *#(.*)$", source, re.M)
        said = collections.Counter(re.findall(r"\w+", " ".join(shown[f"{name}.html"].words)))
        missing = collections.Counter(re.findall(r"\w+", " ".join(prose))) - said
        assert not missing, (name, missing)
    assert collections.Counter("ab") - collections.Counter("a")            # control: as often


def test_no_link_is_dead_and_nothing_is_loaded(pages):
    """Lesson: a page is one file. It loads nothing from anywhere, runs no script, and each of its
    links leads to a page that is there, at a name that is there; or to a paper."""
    shown, folder = pages
    count = 0
    for name, page in shown.items():
        assert all(resource.startswith("data:image/png") for resource in page.resources), name
        text = (folder / name).read_text("utf-8")
        style = text[text.index("<style>"):text.index("</style>")]
        assert "@import" not in style and "url(" not in style, name
        for link in page.links:
            if link.startswith("https://arxiv.org/abs/"):
                continue
            target, _, anchor = link.partition("#")
            there = shown.get(target or name)
            assert there is not None and (not anchor or anchor in there.ids), (name, link)
            count += 1
    assert count > 5000
    assert "AdaIN" in shown["stylegan_layers.html"].ids                        # control
    assert "stylegan_layers.html#AdaIN" in shown["stylegan_models.html"].links


def test_a_name_leads_to_where_it_is_defined(pages):
    """Lesson: an imported function, a method, a module's attribute, a test named in prose: all are
    links. A local variable that has a function's name is none."""
    shown, _ = pages
    train = shown["train.html"].links
    assert {"stylegan_losses.html#r1_weight", "#discriminator_turn", "augment.html#adapt",
            "workshop-machine.html#join", "stylegan_dataloader.html#StyleMixer",
            "tests-test_train.html#test_no_step_asks_a_tensor_for_a_number"} <= set(train)
    source = "def f():\n    return 1\n\n\ndef g(f):\n    return f\n\n\ndef h():\n    return f()\n"
    tree = ast.parse(source)
    module = make_reading.Module("m", ROOT / "m.py", source, tree, make_reading.definitions(tree))
    assert make_reading.Names(module, {"m": module}).in_code() == {(10, 11): "#f"}


def test_prose_keeps_its_shape():
    """Lesson: a label has a text that is indented; a sentence with a colon is no label; what is
    lined up with spaces stays lined up; a list is a list."""
    kinds = [(piece[0], piece[1] if piece[0] == "label" else None) for piece in
             make_reading.paragraphs(["Why:    one", "        and two", "Where it stands: here,",
                                      "and further on.", "", "    a    1", "    bb   2", "",
                                      "- an item", "    of two lines", "Paper:  section 2"])]
    assert kinds == [("label", "Why"), ("text", None), ("figure", None), ("text", None),
                     ("label", "Paper")]


@pytest.mark.slow
@needs("playwright")
@pytest.mark.skipif(browser.chromium() is None, reason="there is no Chromium here")
def test_every_page_fits_a_phone_and_can_be_read_in_the_dark_and_on_paper(pages):
    """Lesson: no page has one long word that is wider than the screen. By night the paper is darker
    than the ink, on paper and by day it is lighter."""
    shown, folder = pages
    ink = """() => ["color", "backgroundColor"].map(what => getComputedStyle(document.body)[what]
             .match(/[0-9.]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b))"""
    with browser.a_browser() as chromium:
        page = chromium.new_context(viewport={"width": 400, "height": 800}, offline=True).new_page()
        page.set_default_timeout(120_000)
        for name in sorted(shown):
            page.emulate_media(media="screen")
            page.goto((folder / name).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
            for how, dark in (({"color_scheme": "dark", "media": "screen"}, True),
                              ({"color_scheme": "light", "media": "screen"}, False),
                              ({"color_scheme": "dark", "media": "print"}, False)):
                page.emulate_media(**how)
                letters, paper = page.evaluate(ink)
                assert abs(letters - paper) > 300 and (letters > paper) == dark, (name, how)


@needs("playwright")
@pytest.mark.skipif(browser.chromium() is None, reason="there is no Chromium here")
def test_a_browser_without_a_network_shows_it_in_its_width(pages):
    """Lesson: with the network off all is there, the code beside its prose on a desk, and under it
    on a phone, where nothing is wider than the screen but lines that can be pushed."""
    _, folder = pages
    with browser.a_browser() as chromium:
        for width, beside in ((1400, True), (400, False)):
            context = chromium.new_context(viewport={"width": width, "height": 800}, offline=True)
            context.set_default_timeout(120_000)
            asked = []
            for name in ("train", "stylegan_layers", "generate", "index"):
                page = context.new_page()
                page.on("request", lambda request: asked.append(request.url))
                page.goto((folder / f"{name}.html").as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                if name == "train":
                    row = page.locator("section.row:has(#discriminator_turn)")
                    prose, code = (row.locator(part).bounding_box() for part in (".prose", ".code"))
                    assert (code["x"] > prose["x"] + prose["width"] - 1) == beside
                    assert (code["y"] > prose["y"] + prose["height"] - 1) != beside
            assert all(url.startswith(("file:", "data:")) for url in asked)
