"""Names and settings of tasks and systems."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass

import pytest

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.registry import Row, Spec, describe, make_options, parse, written
from mplus_cli.evaluation.system import SYSTEMS, System, memory_seed
from mplus_cli.evaluation.task import TASKS, Task

TABLE = {"mplus": Row("", ""), "memoryllm": Row("", ""), "window": Row("", "")}


@dataclass(frozen=True)
class Options:
    size: int = 16
    cuts: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("mplus", Spec("mplus")),
        (" window:size=4, cuts=[1,2] ", Spec("window", ("size=4", "cuts=[1,2]"))),
        ("window:", Spec("window")),
    ],
)
def test_parse(text, spec):
    assert parse(text, TABLE, "system") == spec


def test_labels_are_read_back_and_folders_are_plain():
    spec = parse("window:size=4,cuts=[1,2]", TABLE, "system")
    assert parse(spec.label, TABLE, "system") == spec
    assert spec.folder == "window-size=4,cuts=_1,2_"
    assert parse("window:size=a/../b", TABLE, "system").folder == "window-size=a_.._b"


def test_unknown_names_come_with_suggestions():
    with pytest.raises(UsageError, match=r"no system 'memoryllms' \(did you mean memoryllm\?\)") as raised:
        parse("memoryllms", TABLE, "system")
    assert (raised.value.hint, raised.value.exit_code) == ("mplus eval list", 2)


def test_options_are_typed_and_every_mistake_is_named():
    assert make_options(Options, ["size=4", "cuts=[1,2]"], "window") == Options(4, (1, 2))
    with pytest.raises(UsageError) as raised:
        make_options(Options, ["sise=4", "cuts=no"], "window")
    assert "sise: unknown key (did you mean 'size'?)" in raised.value.message
    assert "cuts: expected a list" in raised.value.message
    assert raised.value.hint == "settings of window: size (16), cuts ([])"


def test_values_are_shown_as_they_are_typed():
    for options in (Options(), Options(2, (1, 2))):
        assert (
            make_options(Options, [f"{key}={written(getattr(options, key))}" for key in ("size", "cuts")], "x")
            == options
        )
    assert [written(value) for value in (None, True, "text", ("a", "b"))] == ["null", "true", "text", "[a,b]"]


def test_every_row_of_the_tables_is_there_and_complete():
    for table, kind in ((TASKS, Task), (SYSTEMS, System)):
        for name, row in table.items():
            cls = row.load()
            assert issubclass(cls, kind) and cls.name == name
            assert is_dataclass(cls.options_class)
            assert describe(name)["settings"].keys() == {field.name for field in fields(cls.options_class)}
    for row in TASKS.values():
        task = row.load()()
        assert task.metrics and task.metric_version and task.stop in ("line", "none")


def test_memory_seeds_depend_on_run_and_item_alone():
    seeds = {memory_seed(run, item) for run in range(20) for item in ("a", "b", "a/b", "0")}
    assert len(seeds) == 80
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert memory_seed(0, "item-0") == 4490051661019518031, "a change would silently change every published number"


def test_list_and_help_import_no_torch():
    script = (
        "import sys\nfrom mplus_cli.cli import main\n"
        "for words in (['eval', 'list'], ['eval', '--help'], ['eval', 'run', '--help']):\n"
        "    try:\n        main(words)\n    except SystemExit as end:\n        assert not end.code\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "retention" in done.stdout and "closed-book" in done.stdout
