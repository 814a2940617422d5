"""Every option of every script: nonsense gets one line that names it, and nothing else happens.

New scripts and options are found by themselves: a script stands in README's reading order, and its
parser is asked for its options.
"""

import argparse
import contextlib
import importlib
import io
import math
import re

import pytest

from conftest import ROOT
from workshop import options

SCRIPTS = [name for name in re.findall(r"\| \d+ \| \[(\w+)\.py\]", (ROOT / "README.md").read_text())
           if not name.startswith("stylegan_")]
NONSENSE = ["x", "", " ", "-1", "-0.5", "0", "nan", "inf", "-inf", "1e999", "1" + 400 * "0",
            5000 * "9", "0x10", "1,,2", "5-", "4:", ":4", "4:x", "\u00bd", "\x1b[2J", "a\nb"]


class Found(Exception):
    pass


def parsers_of(script):
    """[(words before the options, parser)] of a script: one, or one for each of its commands."""
    parse = options.parse_args if script == "train" else importlib.import_module(script).parse_args

    def stop(parser, *_):
        raise Found(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Found) as found:
            parse([])
    parser, = found.value.args
    commands = [action for action in parser._actions
                if isinstance(action, argparse._SubParsersAction)]
    return [(name, command) for name, command in commands[0].choices.items()] if commands else [
        ("", parser)]


def said(parser, words):
    """What the parser makes of the words: (options or None, what it says on stderr, its code)."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            return parser.parse_args(words), stderr.getvalue(), 0
        except SystemExit as end:
            return None, stderr.getvalue(), end.code


def numbers_in(value):
    if isinstance(value, dict):
        return [number for item in value.items() for number in numbers_in(item)]
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, (int, float)) else []


def cases():
    for script in SCRIPTS:
        for command, parser in parsers_of(script):
            yield pytest.param(parser, id=f"{script} {command}".strip())


@pytest.mark.parametrize("parser", list(cases()))
def test_nonsense_is_answered_by_one_line_that_names_the_option(parser):
    """Lesson: a wrong value is met at the door, by name, before anything is made or lost. What is
    taken for a number is a finite one."""
    positional = [action for action in parser._actions if not action.option_strings]
    before = ["64" if action.type else "x" for action in positional
              if action.nargs not in ("?", "*")]
    refused = 0
    for action in parser._actions:
        name = (action.option_strings or [None])[-1]
        if name is None or action.nargs == 0:
            continue
        for value in NONSENSE:
            found, line, code = said(parser, [*before, f"{name}={value}"])
            if found is None:
                refused += 1
                assert code == 2 and len(line) < 600
                assert line.startswith(f"{parser.prog}: argument {'/'.join(action.option_strings)}")
                assert line.count("\n") == 1 and line.isprintable() or line[:-1].isprintable()
            else:
                assert all(map(math.isfinite, numbers_in(getattr(found, action.dest))))
    assert refused > 20 or parser.prog == "import_checkpoint.py"          # has no numbers
    _, line, code = said(parser, [*before, "--no-such-option"])            # control
    assert code == 2 and "--no-such-option" in line


def test_the_walk_meets_the_scripts_and_their_options():
    """Control: it would be green, too, if it met none."""
    assert {"train", "convert_resolution", "morph", "generate", "project", "evaluate",
            "import_checkpoint"} <= set(SCRIPTS)
    met = sum(len(parser._actions) for script in SCRIPTS for _, parser in parsers_of(script))
    assert met > 100
