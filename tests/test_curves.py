"""workshop/curves.py: the lines of metrics.jsonl, and what --plot draws of them."""

import importlib.util
import json

import pytest
from PIL import Image

import evaluate
from conftest import refused
from workshop import UserError, curves

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None,
                                      reason="not installed: matplotlib")
LOG = [{"nimg": 20 * k, "resolution": 4 if k <= 5 else 8, "phase": "fade" if 5 < k <= 10 else
        "stabilize", "loss_d": 1.3, "loss_g": 0.7, "d_real": 0.1, "d_fake": -0.1, "r1": 0.01 * k}
       for k in range(1, 21)]


def line(**changed):
    return {"metric": "FD-x", "result": "FID", "value": 9.0, "error": None, "nimg": 100,
            "resolution": 8, "psi": 1.0, "generated": 100, "seconds": 1.0, **changed}


@pytest.fixture
def run(tmp_path):
    """A run's folder: 100 images at 4 px, 100 while 8 px fades in, 200 at 8 px."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LOG))
    return folder


# ---- 1. lines ----


def test_the_best_checkpoint_is_named():
    """Lesson: of a distance the smallest is best, of precision the largest; and networks of two
    resolutions are judged by different reals, so each size has a best one of its own."""
    def records(**by_file):
        return [line(checkpoint=f"{file}.pt", nimg=nimg, resolution=px, value=value, **what)
                for file, (nimg, px, value) in by_file.items()]
    what = {}
    runs = dict(old=(1000, 8, 5.0), a=(2000, 16, 30.0), b=(3000, 16, 20.0), c=(4000, 16, 25.0))
    text = curves.beside_each_other(records(**runs)).splitlines()
    assert [row.split() for row in text[:2]] == [["kimg", "px", "FD-x"], ["old.pt", "1", "8", "5"]]
    assert text[-2:] == ["the best of 8 px, by FD-x: old.pt", "the best of 16 px, by FD-x: b.pt"]
    what.update(metric="Precision-x", result="Precision")
    assert curves.beside_each_other(records(**runs)).endswith("by Precision-x: a.pt")


def test_a_line_is_whole_or_a_note(tmp_path, capsys):
    """Lesson: what a killed process left of its last line is cut off, or the next line would be
    joined to it. A disk that takes no line is no reason to lose the number."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"nimg": 1}\n{"nimg": 2, "met')
    for nimg in (3, 4):
        curves.append_line(path, {"nimg": nimg, "metric": "é"})
    assert [record["nimg"] for record in curves.read_lines(path)] == [1, 3, 4]
    assert path.read_text().count("\n") == 3
    path.write_text(path.read_text().rstrip())                 # by an editor: a whole last line
    curves.append_line(path, {"nimg": 6})
    assert [record["nimg"] for record in curves.read_lines(path)] == [1, 3, 4, 6]
    path.write_text("[\n]")                                    # another program's: all of it stays
    curves.append_line(path, {"nimg": 7})
    assert path.read_text() == '[\n]\n{"nimg": 7}\n'
    path.write_text('{"nimg": 1}\n{"nimg": 2}\n{"nimg": 3}\n{"nimg": 4}\n')
    curves.append_line(tmp_path / "no" / "metrics.jsonl", {"nimg": 5})
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be written (No such file" in said


def test_damaged_lines_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"nimg": 1}\n[]\n{"nimg": "2"}\n\xff\xfe\n{"nimg": null}\n{"nimg": 3, "a')
    assert curves.read_lines(path) == [{"nimg": 1}]
    assert curves.read_lines(tmp_path / "none.jsonl") == []


# ---- 2. what is drawn ----


def test_the_phases_of_growth_are_read_from_the_log():
    """Lesson: no gaps, and a phase ends where the next begins."""
    assert curves.phases_of(LOG) == [(0.0, 0.1, 4, False), (0.1, 0.2, 8, True),
                                     (0.2, 0.4, 8, False)]


def test_metrics_of_one_scale_share_a_panel():
    names = ["duality_gap", "FID", "Precision-a-b", "PPL-z", "Recall-a-b", "PPL-w", "PPL-a-z"]
    assert curves.panels_of([{"metric": name} for name in names]) == {
        "duality gap": ["duality_gap"], "FID": ["FID"], "PPL": ["PPL-z", "PPL-w"],
        "precision, recall\na-b": ["Precision-a-b", "Recall-a-b"], "PPL-a": ["PPL-a-z"]}


def test_curves_never_join_different_settings():
    """Lesson: with --psi 0.5, or of other pictures, FID is another number; a curve through both
    would show a change that never happened. What differs stands in the legend."""
    metrics = [line(nimg=100, value=9.0), line(nimg=100, value=8.0, psi=0.5),
               line(nimg=300, value=7.0), line(nimg=200, value=8.0, seconds=5.0, alpha=0.5),
               line(nimg=300, value=6.0, generated=50), line(nimg=300, value=7.5),
               line(nimg=300, value=5.0, resolution=16), line(metric="KID-x", value=1.0)]
    found = curves.curves_of("FD-x", metrics)
    assert [[(point["nimg"], point["value"]) for point in points] for _, points in found] == [
        [(100, 9.0), (200, 8.0), (300, 7.5)], [(100, 8.0)], [(300, 6.0)], [(300, 5.0)]]
    assert curves.differences(found) == ["psi 1.0, generated 100", "psi 0.5, generated 100",
                                         "psi 1.0, generated 50", "psi 1.0, generated 100"]
    assert curves.differences(found[:1]) == [""]               # nothing to tell apart


@needs_matplotlib
def test_the_drawing_has_one_line_for_each_curve():
    metrics = [line(nimg=100), line(nimg=200, value=8.0), line(nimg=100, psi=0.5),
               line(nimg=200, psi=0.5), line(nimg=300, value=5.0, resolution=16)]
    figure = curves.draw_run(LOG, metrics, "title")
    panel = figure.axes[3]
    drawn = [tuple(bars.lines[0].get_xdata()) for bars in panel.containers]
    assert drawn == [(0.1, 0.2), (0.1, 0.2), (0.3,)]
    assert panel.get_legend_handles_labels()[1] == ["psi 1.0", "psi 0.5"]
    losses = figure.axes[0].lines
    assert list(losses[0].get_ydata()) == [1.3] * 20 and list(losses[1].get_ydata()) == [0.7] * 20


@needs_matplotlib
def test_path_lengths_have_a_panel_where_there_are_any():
    """Lesson: a log of StyleGAN2 has a path length in the lines in whose steps one was due. The
    root of the penalty has its unit. Nothing grows, and nothing is said of hatching."""
    log = [{**one, "resolution": 8, "phase": "stabilize", "path_length": 2.0 if k % 2 else None,
            "path_penalty": 0.25 if k % 2 else None} for k, one in enumerate(LOG)]
    figure = curves.draw_run(log, [line()], "title")
    assert len(figure.axes) == 5 and figure.axes[4].get_ylabel() == "FD-x"
    length, root = figure.axes[3].lines
    assert list(length.get_ydata()) == [2.0] * 10 and list(root.get_ydata()) == [0.5] * 10
    assert "hatched" not in figure.axes[4].get_xlabel()
    figure = curves.draw_run(LOG, [line()], "title")                             # control
    assert len(figure.axes) == 4 and "hatched" in figure.axes[3].get_xlabel()


# ---- 3. the program ----


@needs_matplotlib
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_plot_never_replaces_a_strangers_file(run, tmp_path, capsys, suffix):
    """Lesson: years of work may lie there. Our own plots carry a mark and are replaced."""
    path = tmp_path / f"curves{suffix}"
    for lines in ([], [line(nimg=100 * k) for k in range(1, 4)]):
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
        assert evaluate.main([str(run), "--plot", str(path)]) == 0
        assert capsys.readouterr().out == f"{path}\n"
        if suffix == ".png":
            height = Image.open(path).size[1]
            assert height > (900 if lines else 600)            # one panel more
    stranger = tmp_path / f"thesis{suffix}"
    if suffix == ".png":
        Image.new("RGB", (40, 40)).save(stranger)
    else:
        stranger.write_text("years of work")
    before = stranger.read_bytes()
    code, said = refused(evaluate.main, [run, "--plot", stranger], capsys)
    assert code == 2 and "this program did not write it" in said
    assert stranger.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["run", path.name, stranger.name])


@needs_matplotlib
def test_a_folder_without_a_log_has_no_curves(tmp_path, capsys):
    code, said = refused(evaluate.main, [tmp_path, "--plot", tmp_path / "x.png"], capsys)
    assert code == 2 and "no log.jsonl" in said and not (tmp_path / "x.png").exists()
    code, said = refused(evaluate.main, [tmp_path / "none", "--plot", tmp_path / "x.png"], capsys)
    assert code == 2 and f"{tmp_path / 'none'}: no such file" in said


def test_a_plot_that_fails_is_known_before_hours_of_measuring(run, tmp_path, capsys, monkeypatch):
    """Lesson: --plot is checked first, whatever else is asked for."""
    monkeypatch.setattr(evaluate.morph, "load_networks", lambda *a: pytest.fail("loaded"))
    code, said = refused(evaluate.main, [run, "--metrics", "ppl", "--plot", tmp_path], capsys)
    assert code == 2 and "--plot" in said
    (tmp_path / "drawn").mkdir()                               # pictures have no curves at all
    Image.new("RGB", (8, 8)).save(tmp_path / "drawn" / "0.png")
    code, said = refused(evaluate.main, [tmp_path / "drawn", "--data", tmp_path / "drawn",
                                         "--metrics", "kid", "--plot", tmp_path / "x.png"], capsys)
    assert code == 2 and "no log.jsonl" in said
    with pytest.raises(UserError, match="is drawn as .png, .svg, .pdf"):
        curves.check(tmp_path / "curves.txt")
