"""curves.py: the lines of metrics.jsonl: kept, shown as text, drawn as curves.   (workshop)

Used by: evaluate.py, and run.py, which writes log.jsonl with it.
Needs:   matplotlib, for drawing only: pip install -r requirements-extra.txt. Importing this file
         reads no file, no argv, no clock.
"""

import contextlib
import io
import json
import math
import re
import sys
import textwrap

from workshop import UserError

PLOTS = (".png", ".svg", ".pdf")

# What may differ between two points of one curve: the results, and how far the run had come. All
# else in a record is a setting. Points of different settings are never joined.
NO_SETTINGS = ("metric", "result", "value", "error", "warning", "worst_d", "worst_g", "current",
               "nimg", "alpha", "faded", "seconds", "checkpoint", "checkpoint_sha256", "unseen")


# ---- 1. Lines of records ---------------------------------------------------------------------


def append_line(path, record):
    """One more line of a .jsonl file. What a killed process left of its last line is cut off.

    A line that cannot be written is a note on stderr: the number is shown, and nothing ends for it.
    Returns whether it was written.
    Proved: tests/test_curves.py::test_a_line_is_whole_or_a_note
    """
    try:
        with open(path, "ab+") as file:
            file.seek(0)
            written = file.read()
            end = written.rfind(b"\n") + 1
            if is_record(written[end:]) or not written[end:].startswith(b"{"):
                file.write(b"\n" * (end < len(written)))       # an editor took the line break away
            else:
                file.truncate(end)
            file.write((json.dumps(record) + "\n").encode())
        return True
    except OSError as error:
        with contextlib.suppress(OSError):                     # stderr may be on the same disk
            print(f"note: {path} cannot be written ({error.strerror})", file=sys.stderr)
        return False


def is_record(line):
    """Is a line, text or bytes, a whole one? Half a record is no JSON."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def read_lines(path):
    """The records of a .jsonl file that have an nimg; what is damaged or cut off is left out."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("nimg"), (int, float)):
                    lines.append(line)
    return lines


# ---- 2. As text ------------------------------------------------------------------------------


def table(records):
    """The numbers, one a line: what, value, +-."""
    lines = [("", "value", "+-")] + [
        (record["metric"], f"{record['value']:.4g}",
         f"{record['error']:.4g}" if record["error"] is not None else "") for record in records]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip()
                     for a, b, c in lines)


HIGHER_IS_BETTER = ("Precision", "Recall", "IS")


def beside_each_other(records):
    """A line for each checkpoint, its numbers side by side; and which is best, by the first number.

    Only checkpoints of one resolution can be compared: each is judged by reals of its own size.
    Proved: tests/test_curves.py::test_the_best_checkpoint_is_named
    """
    rows, names = {}, list(dict.fromkeys(record["metric"] for record in records))
    for record in records:
        key = record["resolution"], record["nimg"] or 0, record["checkpoint"]
        rows.setdefault(key, {})[record["metric"]] = record
    lines = [["", "kimg", "px", *names]] + [
        [file, f"{nimg / 1000:g}", str(px), *(f"{row[name]['value']:.4g}" for name in names)]
        for (px, nimg, file), row in sorted(rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(f"{cell:>{width}}" if k else f"{cell:{width}}"
                      for k, (cell, width) in enumerate(zip(line, widths))) for line in lines]
    for px in sorted({key[0] for key in rows}):
        of_size = [row[names[0]] for key, row in rows.items() if key[0] == px]
        pick = max if of_size[0]["result"] in HIGHER_IS_BETTER else min
        best = pick(of_size, key=lambda record: record["value"])
        text.append(f"the best of {px} px, by {names[0]}: {best['checkpoint']}")
    return "\n".join(text)


SAID_ELSEWHERE = ("metric", "result", "value", "error", "warning", "worst_d", "worst_g", "current",
                  "nimg", "alpha", "checkpoint", "seconds")


def explanation(record, result):
    """The text under the table for one number, with every setting that changes it.

    result: what the number means: its row in the table of evaluate.py.
    Proved: tests/test_evaluate.py::test_every_setting_that_changes_a_number_is_printed
    """
    parts = [f"{record['metric']}: {result.measures}. Unit: {result.unit}. +-: {result.error}. "
             f"Good: {result.good}. Cannot see: {result.blind}."]
    if record["metric"] == "duality_gap":
        parts.append(f"Worst D' found: M = {record['worst_d']:.3f}; worst G': "
                     f"{record['worst_g']:.3f}; as they are: {record['current']:.3f}.")
    parts.append("With: " + ", ".join(f"{key} {value}" for key, value in record.items()
                                      if key not in SAID_ELSEWHERE) + ".")
    if record.get("warning"):
        parts.append(f"Warning: {record['warning']}.")
    return "\n".join(textwrap.fill(
        part, 98, initial_indent="    " * (part is not parts[0]), subsequent_indent="    ",
        break_long_words=False, break_on_hyphens=False) for part in parts)   # whole paths


# ---- 3. What is drawn ------------------------------------------------------------------------


def phases_of(log):
    """[(first kimg, last kimg, resolution, growing)] from the lines of log.jsonl.

    Proved: tests/test_curves.py::test_the_phases_of_growth_are_read_from_the_log
    """
    phases, before = [], 0.0
    for line in log:
        kimg, what = line["nimg"] / 1000, (line["resolution"], line["phase"] != "stabilize")
        if phases and phases[-1][2:] == what:
            phases[-1] = (phases[-1][0], kimg, *what)
        else:
            phases.append((before, kimg, *what))
        before = kimg
    return phases


def panels_of(metrics):
    """{label of a panel: names of the metrics in it}: those that have one scale share one.

    Proved: tests/test_curves.py::test_metrics_of_one_scale_share_a_panel
    """
    panels = {}
    for name in dict.fromkeys(line["metric"] for line in metrics):
        label = re.sub("^(Precision|Recall)-", "precision, recall\n", name)
        label = re.sub("^PPL(.*)-[zw]$", r"PPL\1", label).replace("_", " ")
        panels.setdefault(label, []).append(name)
    return panels


def curves_of(name, metrics):
    """[(settings, records)] of a metric: one curve for each combination of settings.

    Resolution is a setting: values of other resolutions are about pictures of another size. Of two
    values at one nimg, which can differ in their last digits only, the newer counts.
    Proved: tests/test_curves.py::test_curves_never_join_different_settings
    """
    curves = {}
    for line in metrics:
        if line["metric"] == name:
            settings = {key: value for key, value in line.items() if key not in NO_SETTINGS}
            points = curves.setdefault(json.dumps(settings, sort_keys=True), (settings, {}))[1]
            points[line["nimg"]] = line
    return [(settings, [points[nimg] for nimg in sorted(points)])
            for settings, points in curves.values()]


def differences(curves):
    """A label for each curve of a metric: what it does not share with all others, but resolution.

    Proved: tests/test_curves.py::test_curves_never_join_different_settings
    """
    keys = dict.fromkeys(key for settings, _ in curves for key in settings)
    told = [key for key in keys if key != "resolution" and len(
        {json.dumps(settings.get(key)) for settings, _ in curves}) > 1]
    return [", ".join(f"{key} {settings.get(key)}" for key in told) for settings, _ in curves]


# ---- 4. Drawing ------------------------------------------------------------------------------


def check(path, run=None):
    """Refuse a file that cannot be drawn, or that would replace one which this program did not
    write; or a run without a log.   Errors: UserError.

    Proved: tests/test_curves.py::test_a_plot_never_replaces_a_strangers_file
    """
    if path.suffix.lower() not in PLOTS:
        raise UserError(f"--plot {path}: is drawn as {', '.join(PLOTS)}")
    if run and not log_of(run):
        raise UserError(f"{run}: no log.jsonl with lines of train.py in it")
    from workshop.figures import check_free                    # needs torchvision, slow to import
    check_free(path, "--plot")
    try:
        import matplotlib                                      # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install -r requirements-extra.txt") from None


def log_of(run):
    """The lines of train.py in a run's log.jsonl."""
    return [line for line in read_lines(run / "log.jsonl") if {"resolution", "phase"} <= set(line)]


def plot_run(run, path):
    """Losses, scores, penalties and metrics of a run over kimg, the phases of growth behind them.

    Returns the path.   Errors: UserError as `check`, and without a log.
    """
    check(path, run)
    metrics = [line for line in read_lines(run / "metrics.jsonl")
               if isinstance(line.get("metric"), str) and isinstance(line.get("value"),
                                                                     (int, float))]
    save(draw_run(log_of(run), metrics, str(run.resolve().name)), path)
    return path


def save(figure, path):
    """The figure, whole and with our mark, or nothing."""
    from workshop.figures import MARK, written
    suffix, whole = path.suffix.lower(), io.BytesIO()
    # Into memory first: where a disk is full, matplotlib's PDF ends with an error of its own.
    figure.savefig(whole, format=suffix[1:], dpi=110,
                   metadata={"Software" if suffix == ".png" else "Creator": MARK})
    with written(path) as temporary:
        temporary.write_bytes(whole.getvalue())


def draw_run(log, metrics, title):
    from matplotlib.figure import Figure                       # no window, no global state
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    groups, kimg = panels_of(metrics), [line["nimg"] / 1000 for line in log]
    has_paths = any(line.get("path_length") is not None for line in log)       # StyleGAN2
    count = 3 + has_paths + len(groups)
    figure = Figure(figsize=(10, 1.9 * count + 0.6), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]

    def draw(panel, key, label, colour, shown=float):
        points = [(x, shown(line[key])) for x, line in zip(kimg, log) if line.get(key) is not None]
        if points:
            panel.plot(*zip(*points), label=label, color=colour, linewidth=1.3,
                       marker="." if len(points) < 40 else None)
        return [y for _, y in points]

    draw(panels[0], "loss_d", "D", "tab:blue")
    draw(panels[0], "loss_g", "G", "tab:orange")
    panels[0].axhline(2 * math.log(2), color="tab:blue", linestyle=":", linewidth=1)
    panels[0].annotate("D cannot tell: 2 ln 2", (1, 2 * math.log(2)), (-4, 3), fontsize=8,
                       xycoords=("axes fraction", "data"), textcoords="offset points",
                       color="tab:blue", ha="right")
    panels[0].set_ylabel("loss")
    draw(panels[1], "d_real", "of reals", "tab:green")
    draw(panels[1], "d_fake", "of fakes", "tab:red")
    panels[1].axhline(0, color="grey", linestyle=":", linewidth=1)
    panels[1].set_ylabel("mean score")
    penalties = draw(panels[2], "r1", None, "tab:purple")
    if penalties and min(penalties) > 0:
        panels[2].set_yscale("log")
        # 0.02, 0.05, 0.1: a range of less than ten would else have no label at all.
        panels[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[2].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panels[2].yaxis.set_minor_formatter(NullFormatter())
    panels[2].set_ylabel("R1")
    if has_paths:
        # The penalty is a mean square. Its root has the unit of the lengths: how far they are from
        # their running mean, which starts at 0. It is small if G stretches w everywhere alike.
        draw(panels[3], "path_length", "mean", "tab:brown")
        draw(panels[3], "path_penalty", "root of the penalty", "tab:pink", math.sqrt)
        panels[3].set_ylim(bottom=0)
        panels[3].set_ylabel("path length")
    for panel, (label, names) in zip(panels[3 + has_paths:], groups.items()):
        draw_metrics(panel, label, names, metrics)
    for panel in panels:
        for first, last, resolution, growing in phases_of(log):
            # Every resolution a shade; hatched while its block is new.
            shade = "0.95" if int(math.log2(resolution)) % 2 else "0.87"
            panel.axvspan(first, last, facecolor=shade, edgecolor="white", linewidth=0, zorder=-2,
                          hatch="////" if growing else None)
        panel.set_xlim(0, max(line["nimg"] for line in log + metrics) / 1000 * 1.01)
        panel.grid(axis="y", color="0.75", linewidth=0.4)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(loc="best", fontsize=8, framealpha=0.9)
    for resolution in dict.fromkeys(phase[2] for phase in phases_of(log)):
        spans = [phase for phase in phases_of(log) if phase[2] == resolution]
        panels[0].annotate(f"{resolution} px", ((spans[0][0] + spans[-1][1]) / 2, 1), (0, 3),
                           xycoords=("data", "axes fraction"), textcoords="offset points",
                           ha="center", fontsize=9)
    grown = "; hatched: a block grows" * any(phase[3] for phase in phases_of(log))
    panels[-1].set_xlabel(f"thousands of real images shown to D (kimg){grown}")
    figure.suptitle(title, fontsize=11)
    return figure


def draw_metrics(panel, label, names, metrics):
    """One panel: each metric a colour, each combination of settings a curve and a kind of line.

    The bars are what a record calls its error; evaluate.py says for each metric what that is.
    """
    for name, colour in zip(names, ("black", "tab:red", "tab:blue")):
        short = "" if len(names) == 1 else (name.split("-")[0] if "recall" in label
                                            else f"in {name[-1]}")
        curves, kinds = curves_of(name, metrics), {}
        for (settings, points), told in zip(curves, differences(curves)):
            first = told not in kinds                          # one entry in the legend is enough
            style = kinds.setdefault(told, ("-", "--", ":", "-.")[len(kinds) % 4])
            panel.errorbar([point["nimg"] / 1000 for point in points],
                           [point["value"] for point in points],
                           [point.get("error") or 0 for point in points], color=colour,
                           linestyle=style, marker="o", markersize=4, linewidth=1.3, capsize=3,
                           label=", ".join(filter(None, (short, told))) or None if first else None)
    panel.set_ylabel(label)
