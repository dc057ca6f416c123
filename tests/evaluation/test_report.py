"""Tables, Markdown, comparisons and plots of finished runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from mplus_cli.errors import MissingExtraError, UsageError
from mplus_cli.evaluation import plots
from mplus_cli.evaluation.compare import compare, labelled
from mplus_cli.evaluation.plots import Point, draw, points
from mplus_cli.evaluation.report import Table, finish, number, score_text, tables
from mplus_cli.evaluation.runs import find_pairs
from mplus_cli.evaluation.scoring import score_all
from tests.evaluation.helpers import Parrot, evaluate

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def out(tmp_path, toys, model_folder) -> Path:
    evaluate(
        tmp_path / "out", model_folder, "parrot", "measured", systems=("echo:right=0.2", "echo:right=0.9"), limit=8
    )
    return tmp_path / "out"


def scored(*folders: Path):
    return labelled([(folder, score_all(find_pairs([folder]), print)) for folder in folders])


def test_numbers():
    assert [number(value) for value in (0, 0.5, 0.0123, 0.00004, 9.87654, 12345.6)] == [
        "0.000", "0.500", "0.012", "4e-05", "9.877", "1.23e+04",
    ]  # fmt: skip
    assert score_text({"mean": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]"
    assert score_text({"mean": 0.5, "low": None, "high": None}) == "0.500"
    assert score_text({"mean": None, "low": None, "high": None}) == score_text(None) == "-"


def test_tables_show_every_system_and_every_group(out):
    ((task, results), _) = scored(out)
    scores, by_distance, by_kind = tables(task, results)
    assert scores.headers == ["system", "exact", "length", "samples", "items", "samples/s", "peak memory"]
    assert [row[0] for row in scores.rows] == ["echo:right=0.2", "echo:right=0.9"]
    assert scores.rows[0][1] == score_text(results[0].results["scores"]["exact"])
    assert scores.rows[0][3:5] == ["24", "8"]
    assert by_distance.headers == ["distance", "1", "2", "3"] and by_kind.headers == ["kind", "a", "b"]
    assert by_distance.rows[1][0] == "echo:right=0.9"


def test_systems_keep_the_order_in_which_they_were_asked_for(tmp_path, toys, model_folder):
    evaluate(tmp_path / "out", model_folder, "parrot", systems=("echo:right=0.9", "echo", "echo:right=0.1"))
    ((_, results),) = scored(tmp_path / "out")
    assert [one.label for one in results] == ["echo:right=0.9", "echo", "echo:right=0.1"]


def test_a_table_of_many_values_shows_some_with_the_last(out):
    ((task, results), _) = scored(out)
    group = results[0].results["groups"][0]
    many = [{"by": {"distance": n}, "scores": group["scores"]} for n in range(31)]
    wide = replace(results[0], results=results[0].results | {"groups": many})
    table = tables(task, [wide])[1]
    assert table.title == "exact by distance (9 of 31 values)"
    assert table.headers[1:] == ["0", "4", "8", "12", "16", "20", "24", "28", "30"]


def test_markdown_cells_cannot_break_the_table():
    assert Table("t", ["a", "b"], [["x|y", "1"]]).markdown() == "**t**\n\n| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


@needs_matplotlib
def test_the_report_has_tables_plots_and_conditions(out):
    _, drawn, path = finish(out, print)
    assert path == out / "results.md"
    text = path.read_text()
    assert drawn == [out / "parrot" / "parrot.png", out / "measured" / "measured.png"]
    assert all(png.read_bytes().startswith(PNG) for png in drawn)
    for piece in (
        "## parrot", "The parrot task.", "| echo:right=0.2 |", "![parrot](parrot/parrot.png)", "seed 0", "words 8",
        "Greedy; an answer ends at its first line break", "Metrics version 7", "torch ", "```text\nQ1:\n```",
    ):  # fmt: skip
        assert piece in text
    assert str(out) not in text


def test_without_matplotlib_there_are_tables_and_a_warning(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    warnings: list[str] = []
    _, drawn, path = finish(out, warnings.append)
    assert drawn == [] and path.exists()
    assert warnings == ['no plots: plots need matplotlib; pip install "mplus[eval]"']
    ((task, results), _) = scored(out)
    with pytest.raises(MissingExtraError):
        draw(task, results, out)


def test_a_picture_that_fails_does_not_cost_the_numbers(out, monkeypatch):
    def fail(self, results, folder):
        raise ValueError("no such axis")

    monkeypatch.setattr(Parrot, "plot", fail)
    warnings: list[str] = []
    scores, drawn, path = finish(out, warnings.append)
    assert [png.name for png in drawn] == [] and len(scores) == 2 and "| echo:right=0.2 |" in path.read_text()
    assert warnings[0] == f"no plot of parrot: ValueError: no such axis; mplus eval plot {out} --verbose"


def test_points_are_the_groups_of_one_key(out):
    ((_, results), (_, measured)) = scored(out)
    curve = points(results[0], "distance", "exact")
    assert [point.x for point in curve] == [1, 2, 3]
    assert len(points(results[0], "distance", "exact", {"kind": "a"})) == 3
    assert points(results[0], "kind", "exact") == [] == points(results[0], "nothing", "exact")
    assert [point.mean for point in points(measured[0], "distance", "after")] == [100, 200, 300]


@needs_matplotlib
def test_pictures_repeat_byte_for_byte(out, tmp_path):
    ((task, results), _) = scored(out)
    first, second = (draw(task, results, tmp_path / name)[0].read_bytes() for name in "ab")
    assert first == second


def test_systems_that_have_answered_nothing_are_not_drawn(out, tmp_path):
    ((task, results), _) = scored(out)
    drawn: list[str] = []
    spy = type(
        "Spy", (type(task),), {"plot": lambda self, results, folder: drawn.extend(r.label for r in results) or []}
    )
    assert draw(spy(), [replace(results[0], samples=[]), results[1]], tmp_path) == []
    assert drawn == ["echo:right=0.9"]
    assert draw(task, [replace(results[0], samples=[])], tmp_path) == []


@needs_matplotlib
def test_parts_of_pictures():
    _, (left, middle, right) = plots.new_figure(3)
    curves = {"a": [Point(0, 0.1, 0.0, 0.3), *(Point(2**n, 0.5, 0.4, 0.6) for n in range(8))], "b": [Point(0, 0.5)]}
    plots.draw_curves(left, curves, "x", "y")
    assert [line.get_label() for line in left.get_lines()] == ["a", "b"]
    assert left.get_xscale() == "symlog" and left.get_ylim()[1] > 1
    assert [text.get_text() for text in left.get_xticklabels()] == ["128", "64", "32", "16", "8", "4", "2", "1", "0"]
    plots.draw_heat_map(middle, [1, 2], ["top", "end"], {(1, "top"): 0.25, (2, "end"): 1.0}, "x", "y")
    assert sorted(text.get_text() for text in middle.texts) == ["0.25", "1.00"]
    plots.draw_bars(right, {"a": Point(0, 0.5, 0.4, 0.7), "b": Point(0, 0.1)}, "y")
    assert [text.get_text() for text in right.texts] == ["0.50", "0.10"]


@needs_matplotlib
@pytest.mark.parametrize(
    ("places", "scale"),
    [([0, 480, 960, 1440, 1920], "linear"), ([1, 2, 4, 8, 16], "log"), ([0, 1, 10, 100], "symlog"), ([5], "linear")],
)
def test_axes_are_logarithmic_where_the_places_are(places, scale):
    _, (axes,) = plots.new_figure()
    plots.draw_curves(axes, {"a": [Point(place, 0.5) for place in places]}, "x", "y")
    assert axes.get_xscale() == scale


@needs_matplotlib
def test_ticks_leave_room_for_their_numbers():
    _, (axes,) = plots.new_figure()
    plots.draw_curves(axes, {"a": [Point(place, 0.5) for place in (0, 1, 2, 4, 5, 10, 26, 52, 104, 208)]}, "x", "y")
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert "208" in labels and "0" in labels and not {"4", "5"} <= set(labels)


def test_a_task_may_draw_its_own(out, tmp_path):
    ((task, results), _) = scored(out)
    own = tmp_path / "own.png"
    assert draw(type("Own", (type(task),), {"plot": lambda self, results, folder: [own]})(), results, tmp_path) == [own]


def test_compare_pairs_samples_of_runs(out):
    ((task, results), _) = scored(out)
    found = compare(task, results)
    assert found.notes == []
    assert found.rows[0]["difference"] is None
    gain = found.rows[1]["difference"]
    means = [one.results["scores"]["exact"]["mean"] for one in results]
    assert gain["mean"] == pytest.approx(means[1] - means[0]) and gain["n"] == 24 and gain["low"] > 0
    assert found.table.headers[4] == "exact - echo:right=0.2"
    assert found.table.rows[1][4].startswith("+0.") and found.table.rows[0][4] == "-"
    back = compare(task, results, "echo:right=0.9")
    assert back.rows[0]["difference"]["mean"] == pytest.approx(-gain["mean"])
    with pytest.raises(UsageError, match=r"--against echo:right=0.8: there is no such run \(did you mean"):
        compare(task, results, "echo:right=0.8")


def test_compare_tells_runs_apart_and_says_what_differs(tmp_path, toys, model_folder):
    for name, changes in (("one", {}), ("two", {"limit": 2}), ("three", {"seed": 1})):
        evaluate(tmp_path / name, model_folder, "parrot", **changes)
    ((task, results),) = scored(*(tmp_path / name for name in ("one", "two", "three")))
    assert [one.label for one in results] == ["echo (one)", "echo (two)", "echo (three)"]
    found = compare(task, results)
    assert found.rows[1]["difference"]["n"] == 6, "of runs with other limits, the samples both have"
    assert found.rows[2]["difference"] is not None, "the items of this task do not depend on the seed"
    assert any(note.startswith("limit differs (echo (one): 3; echo (two): 2") for note in found.notes)
    assert any(note.startswith("seed differs") for note in found.notes)


def test_compare_never_pairs_different_questions(tmp_path, toys, model_folder):
    evaluate(tmp_path / "one", model_folder, "parrot")
    evaluate(tmp_path / "two", model_folder, "parrot", settings=("words=9",))
    ((task, results),) = scored(tmp_path / "one", tmp_path / "two")
    found = compare(task, results)
    assert found.rows[1]["difference"] is None
    assert any("share no sample" in note for note in found.notes)
