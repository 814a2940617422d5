"""The doors: what lets people in who do not come by `pip install -r requirements.txt`."""

import re

from conftest import ROOT


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
