"""docs/make_reading.py: the scripts as pages, prose at the left and its code at the right.

    python docs/make_reading.py                    writes docs/reading/*.html; begin at index.html
    python docs/make_reading.py --out FOLDER

Comments, docstrings and banners become text; what is left is the code, every line of it once. Names
link to where they are defined, "Proved:" to its test, papers to arXiv, and a figure in docs/ stands
where its name is. Each page is one file that needs no network and no script.

Needs:   pip install -r requirements-dev.txt (markdown-it-py, pygments)
"""

import argparse
import ast
import base64
import functools
import html
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from workshop import UserError, options

WALK = ("train", "stylegan_dataloader", "stylegan_losses", "stylegan_models", "stylegan_layers",
        "convert_resolution", "morph", "augment", "generate", "project", "evaluate", "explore",
        "import_checkpoint")
PAPERS = {"ProGAN": "1710.10196", "StyleGAN": "1812.04948", "StyleGAN2": "1912.04958",
          "StyleGAN2-ADA": "2006.06676"}

# ==== Part 1: a file becomes rows =============================================================
#
# A row is some prose, and the lines of code that stand beside it. A comment begins a new row, and
# so does a function or class that has a docstring or a comment above it: its docstring belongs to
# the left of its first line, though it stands below it in the file.

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


class Row(NamedTuple):
    heading: str               # of a banner, or ""
    prose: list                # [(what, text)]: what is "comment" or "docstring"
    code: list                 # numbers of lines, from 1


def docstrings(tree):
    """{first line: last line} of all docstrings of a parsed file."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            found[node.body[0].lineno] = node.body[0].end_lineno
    return found


def comments(source):
    """The numbers of the lines that hold a comment and nothing else."""
    return {token.start[0] for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")}


def rows_of(source):
    """The rows of a file, in its order."""
    tree, lines = ast.parse(source), source.splitlines()
    ends, only_comment = docstrings(tree), comments(source)
    # Where a function or class with a docstring begins: with its decorators.
    begins = {min([node.lineno] + [d.lineno for d in node.decorator_list])
              for node in ast.walk(tree)
              if isinstance(node, DOCUMENTED[1:]) and ast.get_docstring(node)}
    rows, n = [Row("", [], [])], 1
    while n <= len(lines):
        last = n
        if n in ends:                                          # a docstring, up to its last line
            last = ends[n]
            rows[-1].prose.append(("docstring", "\n".join(lines[n - 1:last])))
        elif n in only_comment:
            while last + 1 in only_comment:
                last += 1
            heading, text = split_banner(lines[n - 1:last])
            if rows[-1].code or heading:
                rows.append(Row(heading, [], []))
            if text.strip():
                rows[-1].prose.append(("comment", text))
        elif lines[n - 1].strip():
            # What follows a comment after an empty line is not what the comment is about; and what
            # is said at the head of a part is about all of it.
            alone = any(rows[-1][:2]) and not rows[-1].code and (
                not lines[n - 2].strip() or rows[-1].heading and not lines[n - 1].startswith(" "))
            if alone or n in begins and rows[-1].code:
                rows.append(Row("", [], []))
            rows[-1].code.append(n)
        elif rows[-1].code:                                    # an empty line
            rows[-1].code.append(n)
        n = last + 1
    for row in rows:
        while row.code and not lines[row.code[-1] - 1].strip():
            row.code.pop()
    return [row for row in rows if any(row)]


def split_banner(block):
    """Lines of a comment -> (the heading of a banner or "", the text of what follows)."""
    text = [line.strip()[1:] for line in block]
    banner = re.fullmatch(r" ([=-])\1+ (.+?) \1+", text[0])
    rest = text[1:] if banner else text
    return banner[2] if banner else "", "\n".join(line.removeprefix(" ") for line in rest)


# ==== Part 2: where is a name defined? ========================================================


class Module(NamedTuple):
    name: str                  # "train", "workshop.options", "tests.test_train"
    path: Path
    source: str
    tree: ast.Module
    defined: dict              # {"AdaIN.forward": line}

    @property
    def page(self):
        return self.name.replace(".", "-") + ".html"

    @property
    def file(self):
        return self.path.relative_to(ROOT).as_posix()


def read_module(path):
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    return Module(name.removesuffix(".__init__"), path, source, tree, definitions(tree))


def definitions(tree):
    """{name: line} of what a file defines at its top level, and of the methods of its classes."""
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.setdefault(node.name, node.lineno)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found.setdefault(f"{node.name}.{inner.name}", inner.lineno)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in ast.walk(node):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    found.setdefault(target.id, target.lineno)
    return found


def imported(tree, modules):
    """{name in this file: (module, what of it, or "" for all of it)}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                for name in (alias.name, f"experiments.{alias.name}"):     # see each other so
                    if name in modules:
                        found.setdefault(alias.asname or alias.name, (name, ""))
        if isinstance(node, ast.ImportFrom):
            package = "workshop" if node.level else node.module        # "from . import" is there
            package = f"workshop.{node.module}" if node.level and node.module else package
            for alias in node.names:
                if f"{package}.{alias.name}" in modules:
                    found[alias.asname or alias.name] = f"{package}.{alias.name}", ""
                elif package in modules:
                    found[alias.asname or alias.name] = package, alias.name
    return found


class Names:
    """What the names of one file mean."""

    def __init__(self, module, modules):
        self.module, self.modules = module, modules
        self.imported = imported(module.tree, modules)
        self.imports = {module.name: self.imported}            # {module: what it imports}
        self.homes = {}                                        # {function or class: modules}
        for other in modules.values():
            aside = other.name.startswith(("tests.", "experiments."))
            for node in other.tree.body if not aside else ():
                if isinstance(node, DOCUMENTED[1:]):
                    self.homes.setdefault(node.name, []).append(other.name)

    def link(self, module, name=""):
        """The address of a definition, or None where there is none."""
        module = self.modules[module]
        if name and name not in module.defined:
            if module.name not in self.imports:
                self.imports[module.name] = imported(module.tree, self.modules)
            origin = self.imports[module.name].get(name)       # imported there itself
            return self.link(*origin) if origin else None
        page = "" if module.name == self.module.name else module.page
        return f"{page}#{name}" if name else page or None

    def find(self, dotted):
        """`AdaIN`, `AdaIN.style`, `models.Generator`, `train.py`, `workshop/run.py` -> address."""
        if dotted.endswith(".py"):
            name = dotted.removesuffix(".py").replace("/", ".")
            name = name if name in self.modules else f"workshop.{name}"
            return self.link(name) if name in self.modules else None
        if dotted in self.module.defined:
            return f"#{dotted}"
        first, _, rest = dotted.partition(".")
        if first in self.imported:
            module, name = self.imported[first]
            return self.link(module, ".".join(filter(None, (name, rest))))
        return None

    def find_in_prose(self, dotted):
        """Prose also speaks of what other files define; where only one does, that is meant."""
        plain, dotted = re.fullmatch(r"[a-z]+", dotted), re.sub(r"\(.*\)$", "", dotted)
        others = self.homes.get(dotted, ())
        module, _, name = dotted.rpartition(".")
        if module in self.modules and name in self.modules[module].defined:
            return self.link(module, name)                     # `evaluate.slerp`
        return self.find(dotted) or (self.link(others[0], dotted)
                                     if len(others) == 1 and not plain else None)

    def find_test(self, file, name):
        module = file.removesuffix(".py").replace("/", ".")
        return self.link(module, name) if module in self.modules else None

    def in_code(self):
        """{(line, column): address} of the names in the code. A local variable is no link."""
        found, lines = {}, self.module.source.splitlines()

        def place(line, column):                               # ast counts bytes, we characters
            return line, len(lines[line - 1].encode()[:column].decode())

        def visit(node, local, owner):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                local = local | bound_in(node)
            if isinstance(node, ast.ClassDef):
                owner = node.name
            if isinstance(node, ast.Name) and node.id not in local:
                if isinstance(node.ctx, ast.Load) and (address := self.find(node.id)):
                    found[place(node.lineno, node.col_offset)] = address
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                base, at = node.value.id, node.end_col_offset - len(node.attr.encode())
                base = owner if base in ("self", "cls") and owner else base
                if base == owner or base not in local:
                    if address := self.find(f"{base}.{node.attr}"):
                        found[place(node.end_lineno, at)] = address
            for child in ast.iter_child_nodes(node):
                visit(child, local, owner)
        visit(self.module.tree, frozenset(), None)
        return found


def bound_in(function):
    """The names that a function gives a value: its arguments and what it assigns."""
    stored = {node.id for node in ast.walk(function)
              if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}


# ==== Part 3: prose ===========================================================================
#
# Comments are written like Markdown, with three habits of their own: a label ("Why:") with its text
# indented; tables and formulas that are lined up with spaces; and tests named behind "Proved:".

LABELS = ("Why|How|Paper|Shapes|Units|Errors|Proved|Differs|Compare|Known|Needs|Letters|"
          "Read before|Read next|Used by|Returns")
LABEL = re.compile(rf"(?:({LABELS}):|(\[MACHINE\]):?|(Returns)) +(\S.*)")
TERM = re.compile(r"(\S.{0,32}?)[:?] +(\S.*)")


def label_of(lines, n, in_text):
    """(name, text) if line n begins with a label, or None. in_text: the line before is of a text.

    What belongs to a label is indented; a sentence with a colon goes on at the margin. Other words
    than those above are labels, too (terms that are explained), if they begin a paragraph and their
    text has a second line, or is far from the colon.
    """
    after = lines[n + 1] if n + 1 < len(lines) else ""
    if match := LABEL.fullmatch(lines[n]):
        if not after.strip() or after[0] == " " or LABEL.fullmatch(after) or TERM.fullmatch(after):
            return match[1] or match[2] or match[3], match[4]
    elif (match := TERM.fullmatch(lines[n])) and not in_text:
        if (re.match(r"  +\S", after) or re.match(r".{0,33}: {3,}", lines[n])
                or after and label_of(lines, n + 1, False)):
            return match[1], match[2]
    return None


def paragraphs(lines):
    """Lines -> [("label", name, lines) | ("figure", lines) | ("text", lines)]."""
    pieces = []
    for n, line in enumerate(lines):
        before = pieces[-1] if pieces else [None]
        label = label_of(lines, n, before[0] == "text")
        if not line.strip():
            pieces.append(("empty", [""]))
        elif label:
            pieces.append(("label", label[0], [label[1]]))
        elif before[0] == "label" and line.startswith(" "):
            before[2].append(line)
        elif (lined_up(line) or line.startswith("    ") and before[0] != "text"
                or line.startswith(" ") and before[0] == "figure"):
            pieces.append(("figure", [line]))
        elif before[0] == "text":
            before[1].append(line)
        else:
            pieces.append(("text", [line]))
    return merge_figures(pieces)


def lined_up(line):
    """Is this line lined up with the ones around it? Its spaces mean something then."""
    return re.search(r"\S   +\S", line) is not None or re.match(r" +[|+]", line) is not None


def merge_figures(pieces):
    """Neighbouring lines of a figure become one, over empty lines, too."""
    merged = []
    for piece in pieces:
        if piece[0] == "figure" and merged and merged[-1][0] == "figure":
            merged[-1][1].extend(piece[1])
        elif (piece[0] == "figure" and len(merged) > 1 and merged[-1][0] == "empty"
                and merged[-2][0] == "figure"):
            merged.pop()
            merged[-1][1].extend(["", *piece[1]])
        else:
            merged.append(piece)
    return [piece for piece in merged if piece[0] != "empty"]


class Prose:
    """Text of a file -> HTML, with the links that its names have."""

    def __init__(self, names):
        from markdown_it import MarkdownIt
        self.names, self.last_test = names, None
        self.markdown = MarkdownIt("zero").enable(["list", "backticks", "text_join"])
        self.markdown.renderer.rules.update(code_inline=self.inline_code, text=self.text)

    def inline_code(self, tokens, index, *rest):
        content = tokens[index].content
        return linked(f"<code>{html.escape(content)}</code>", self.names.find_in_prose(content))

    def text(self, tokens, index, *rest):
        text = tokens[index].content

        def replace(match):
            word = match[0]
            if match["test"]:
                self.last_test = match["file"] or self.last_test
                address = self.last_test and self.names.find_test(self.last_test, match["test"])
                # A name of 60 letters is broken at an underscore.
                return linked(html.escape(word).replace("_", "_<wbr>"), address)
            if match["arxiv"]:
                return linked(html.escape(word), f"https://arxiv.org/abs/{match['arxiv']}")
            if match["script"]:
                return linked(html.escape(word), self.names.find(word))
            return html.escape(word)
        return re.sub(r"(?P<file>tests/\w+\.py)?::(?P<test>\w+)|"
                      r"(arXiv )?(?P<arxiv>\d{4}\.\d{4,5})\b|"
                      r"(?P<script>[\w/]+\.py)\b|[&<>\"]", replace, text)

    def of_docstring(self, raw):
        """Its first sentence has no label, and may have a colon."""
        first, _, rest = docstring_text(raw).partition("\n\n")
        return self.markdown.render(first) + self.of(rest)

    def of(self, text):
        """Lines of prose -> HTML."""
        out, in_list = [], False
        for what, *rest in paragraphs(text.splitlines()):
            if in_list and what != "label":
                out.append("</dl>")
                in_list = False
            if what == "label":
                if not in_list:
                    out.append("<dl>")
                    in_list = True
                name, lines = rest
                body = self.of(lines[0] + "\n" + dedent(lines[1:]))
                if name == "Paper":
                    body = link_papers(body)
                out.append(f"<dt>{html.escape(name)}</dt><dd>{body}</dd>")
            elif what == "figure":
                out.append(f"<pre class=figure>{html.escape(dedent(rest[0]))}</pre>")
            else:
                out.append(self.markdown.render(dedent(rest[0])))
            if what != "label":
                out += map(picture, re.findall(r"docs/(\w+\.png)", "\n".join(rest[0])))
        return "".join(out) + "</dl>" * in_list


def dedent(lines):
    """Without the spaces that all lines begin with."""
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)


def docstring_text(raw):
    """A docstring as it stands in the file -> its text, without quotes and margin."""
    first, *others = raw.strip().removeprefix("r").strip('"').splitlines()
    text = "\n".join([first, *dedent(others).splitlines()]).strip()
    text = re.sub(r"\s+(\(\d+(?:st|nd|rd|th)\b.*?\))", r" \1", text, count=1)
    return re.sub(r"^(Read before: .*\S) {3,}(Read next:)", r"\1\n\2", text, flags=re.M)


def linked(inside, address):
    return f'<a href="{address}">{inside}</a>' if address else inside


def link_papers(body):
    """The first time that a paper is named behind "Paper:", it is a link."""
    for name in sorted(PAPERS, key=len, reverse=True):
        body = re.sub(rf"(?<![\w-]){name}(?![\w-])(?![^<]*</a>)",
                      linked(name, f"https://arxiv.org/abs/{PAPERS[name]}"), body, count=1)
    return body


@functools.cache
def picture(name):
    data = base64.b64encode((ROOT / "docs" / name).read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="docs/{name}" loading=lazy>'


# ==== Part 4: a page ==========================================================================


def highlighted(module, names):
    """[HTML of each line of the source], with a link behind each name that is defined here."""
    from pygments.lexers import PythonLexer
    from pygments.token import STANDARD_TYPES
    anchors = {}
    for name, line in module.defined.items():
        anchors.setdefault(line, []).append(name)
    links, out = names.in_code(), [""]
    line, column = 1, 0
    for _, kind, value in PythonLexer(stripnl=False).get_tokens_unprocessed(module.source):
        while kind not in STANDARD_TYPES:
            kind = kind.parent
        for k, part in enumerate(value.split("\n")):
            if k:
                out.append("")
                line, column = line + 1, 0
            if part:
                style = STANDARD_TYPES[kind]
                piece = html.escape(part, quote=False)
                piece = f"<span class={style}>{piece}</span>" if style else piece
                out[-1] += linked(piece, links.get((line, column)))
                column += len(part)
    for number, found in anchors.items():
        out[number - 1] = "".join(f'<i id="{name}"></i>' for name in found) + out[number - 1]
    return out


def page_of(module, modules):
    """The whole page of a file, as HTML."""
    names = Names(module, modules)
    prose, lines, body, contents = Prose(names), highlighted(module, names), [], []
    opening = True
    for row in rows_of(module.source):
        text = "".join(prose.of_docstring(text) if what == "docstring" else prose.of(text)
                       for what, text in row.prose if not (opening and what == "docstring"))
        if opening:
            opening = False
            body.append(page_head(module, docstring_text(row.prose[0][1]), prose))
        if row.heading:
            anchor = re.sub(r"\W+", "-", row.heading).strip("-").lower()
            first = row.code[:1] or [0]
            inner = module.source.splitlines()[first[0] - 1].startswith(" ") and row.code
            if inner:
                text = f"<h3>{html.escape(row.heading)}</h3>" + text
            else:
                contents.append(f'<li><a href="#{anchor}">{html.escape(row.heading)}</a>')
                body.append(f'<h2 id="{anchor}">{html.escape(row.heading)}</h2>')
        code = "\n".join(f'<span class=l data-n={n}>{lines[n - 1]}</span>' for n in row.code)
        wide = "" if row.code else " wide"
        shown = re.findall("<img .*?>", text) if row.code else []      # too wide for the left side
        text = re.sub("<img .*?>", "", text) if row.code else text
        if text or row.code:
            body.append(f"<section class='row{wide}'><div class=prose>{text}</div>"
                        + f"<pre class=code>{code}</pre>" * bool(row.code) + "</section>"
                        + "".join(f"<figure>{image}</figure>" for image in shown))
    body.insert(1, f"<nav class=contents><ol>{''.join(contents)}</ol></nav>" if contents else "")
    return whole(module.file, "".join(body), neighbours(module))


def page_head(module, text, prose):
    """The title, and the docstring of the file."""
    first, _, rest = text.partition("\n")
    name, _, what = first.partition(": ")
    if not what:
        name, what = module.file, first
    return (f"<h1>{html.escape(module.file)}</h1><section class='row wide'><div class=prose>"
            f"<p class=lead>{html.escape(what)}</p>{prose.of(rest.strip(chr(10)))}</div></section>")


def neighbours(module):
    """Links to the page before and after, and to the index."""
    links = ['<a href="index.html">index</a>']
    if module.name in WALK:
        k = WALK.index(module.name)
        if k:
            links.insert(0, f'<a href="{WALK[k - 1]}.html">← {WALK[k - 1]}.py</a>')
        if k + 1 < len(WALK):
            links.append(f'<a href="{WALK[k + 1]}.html">{WALK[k + 1]}.py →</a>')
    return f"<nav class=walk>{' '.join(links)}</nav>"


def whole(title, body, nav):
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
            f"<meta name=viewport content='width=device-width, initial-scale=1'>"
            f"<style>{style()}</style>{nav}<main>{body}</main>{nav}</html>\n")


@functools.cache
def style():
    from pygments.formatters import HtmlFormatter
    light = HtmlFormatter(style="friendly").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
    light, dark = (re.sub(r"^(?!\.code \.).*$", "", css, flags=re.M) for css in (light, dark))
    return (ROOT / "docs" / "reading.css").read_text("utf-8") + light + (
        f"@media screen and (prefers-color-scheme: dark) {{ {dark} }}")


# ==== Part 5: the index =======================================================================
#
# What no file says of itself: the letters of a figure, and where each section of a paper has become
# code. A definition is named by its file and its name.

LETTERS = {                    # figure 1 of the StyleGAN paper
    "z, Normalize": "stylegan_layers.PixelNorm",
    "the eight FC: f": "stylegan_models.MappingNetwork",
    "Const 4x4x512": "stylegan_layers.LearnedConstant",
    "A, AdaIN": "stylegan_layers.AdaIN",
    "B, Noise": "stylegan_layers.NoiseInput",
    "Upsample, Conv 3x3": "stylegan_layers.EqualizedConv2d",
    "a grey box": "stylegan_models.SynthesisBlock",
    "all grey boxes: g": "stylegan_models.SynthesisNetwork",
}
IDEAS = {                      # {paper: [(section, what, where)]}
    "ProGAN": [
        ("2", "progressive growing",
         "train.plan_stages train.alpha_at stylegan_dataloader.fade_reals"),
        ("3", "minibatch standard deviation", "stylegan_layers.MinibatchStddev"),
        ("4.1", "equalized learning rate", "stylegan_layers.EqualizedLinear"),
        ("4.2", "pixelwise normalization", "stylegan_layers.PixelNorm"),
        ("A", "the networks; training configuration",
         "stylegan_models.channels_at train.new_adam train.ema_beta")],
    "StyleGAN": [
        ("2", "the style-based generator",
         "stylegan_models.MappingNetwork stylegan_models.SynthesisNetwork stylegan_layers.AdaIN"),
        ("2.1", "quality: FID; R1; table 1, row by row",
         "evaluate.fid stylegan_losses.r1_penalty experiments.table1.ROWS"),
        ("3.1", "style mixing", "stylegan_dataloader.StyleMixer generate.mixing_figure"),
        ("3.2, 3.3", "stochastic variation", "stylegan_layers.NoiseInput generate.noise_figure"),
        ("4.1", "perceptual path length", "evaluate.path_length"),
        ("4.2", "linear separability; figure 6",
         "experiments.separability.separability experiments.separability.draw_figure"),
        ("B", "the truncation trick", "stylegan_models.Generator generate.truncation_figure"),
        ("C", "training details", "train.discriminator_turn train.generator_turn")],
    "StyleGAN2": [
        ("2", "demodulation in place of AdaIN", "stylegan_layers.ModulatedConv2d"),
        ("3.1", "lazy regularization", "stylegan_losses.r1_weight"),
        ("3.2", "path length regularization", "stylegan_losses.path_lengths "
         "stylegan_losses.path_length_penalty train.path_length_turn"),
        ("4.1", "networks that need not grow",
         "stylegan_models.SkipSynthesisNetwork stylegan_models.ResidualDiscriminator"),
        ("4.2", "which resolution adds what", "generate.skips_figure"),
        ("5", "projection to w", "project.project")],
    "StyleGAN2-ADA": [
        ("2.1", "the changes that D sees", "augment.augment augment.Augmented"),
        ("2.2", "leaks", "augment.leaked"),
        ("3", "how strong, by the signs of D(real)", "augment.adapt")],
}


def index_page(modules):
    """The house, the map of figure 1, the papers' contents, the tests."""
    names = Names(modules["train"], modules)

    def definition(where):
        module, _, name = where.rpartition(".")
        page = modules[module].page
        if name not in modules[module].defined:
            raise UserError(f"make_reading.py: {module}.py has no {name}")
        return (f'<a href="{page}#{name}"><code>{html.escape(name)}</code></a> in '
                f'{modules[module].file}')

    def table(heads, rows):
        cells = "".join(f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in rows)
        return f"<table><tr>{''.join(f'<th>{head}' for head in heads)}{cells}</table>"

    def files(chosen):
        return table(["file", "lines", "what it is"], [
            (f'<a href="{module.page}">{module.file}</a>', module.source.count("\n"),
             html.escape(about(module))) for module in chosen])

    def part(prefix):
        return [module for module in modules.values() if module.name.startswith(prefix)]
    papers = "".join(
        f"<h3>{linked(paper, f'https://arxiv.org/abs/{PAPERS[paper]}')}</h3>" + table(
            ["section", "what", "where"],
            [(section, what, "<br>".join(map(definition, where.split())))
             for section, what, where in ideas]) for paper, ideas in IDEAS.items())
    return whole("StyleGAN, to be read", f"""<h1>StyleGAN, to be read</h1>
<section class="row wide"><div class=prose>
<p class=lead>The scripts of this program, with what they say at the left of what they do.</p>
<p>Read from the top to the bottom, with the papers open. Names that are defined here are links.</p>
<h2>Upstairs: the walk</h2>{files([modules[name] for name in WALK])}
<h2>Figure 1, letter by letter</h2>{table(["in the figure", "here"],
    [(html.escape(letter), definition(where)) for letter, where in LETTERS.items()])}
<h2>The papers, section by section</h2>{papers}
<h2>Downstairs: to be looked up</h2>{files(part("workshop."))}
<h2>The tests: lessons, each with a control</h2>{files(part("tests."))}
<h2>Experiments: what numbers come from</h2>{files(part("experiments."))}
</div></section>""", "")


def about(module):
    """What the first line of a file says of it."""
    text = ast.get_docstring(module.tree) or ""
    first = re.split(r"\.? {2,}|\n", text)[0]
    return (first.partition(": ")[2] or first).removesuffix(".").replace("`", "")


def main(argv=None):
    parser = options.OneLineParser(prog="make_reading.py", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reading", metavar="FOLDER",
                        help="(default docs/reading)")
    o = parser.parse_args(argv)
    try:
        import markdown_it  # noqa: F401
        import pygments  # noqa: F401
    except ImportError as error:
        raise UserError(f"needs {error.name}: pip install -r requirements-dev.txt") from None
    paths = [ROOT / f"{name}.py" for name in WALK]
    for folder in ("workshop", "tests", "experiments"):
        paths += sorted((ROOT / folder).glob("*.py"))
    modules = {module.name: module for module in map(read_module, paths)}
    o.out.mkdir(parents=True, exist_ok=True)
    for module in modules.values():
        (o.out / module.page).write_text(page_of(module, modules), "utf-8")
    (o.out / "index.html").write_text(index_page(modules), "utf-8")
    print(f"{len(modules) + 1} pages; begin at {o.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    options.start(main, "make_reading.py", "stopped")
