"""The table of tables and figures is true: every command is one, published numbers fit each other, ours are found.

Commands go through the real command line; what would run is caught with everything that was asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from mplus_cli import cli
from mplus_cli.commands import build_data
from mplus_cli.commands import profile as profile_command
from mplus_cli.evaluation import running
from mplus_cli.evaluation.request import Plan, make_plan
from mplus_cli.evaluation.request import Request as EvalRequest
from mplus_cli.evaluation.system import SYSTEMS
from mplus_cli.evaluation.task import TASKS
from mplus_cli.evaluation.tasks import editing_data, longbook_qa
from mplus_cli.profiling import paper
from mplus_cli.profiling import published as costs
from mplus_cli.profiling.configurations import CONFIGURATIONS
from mplus_cli.profiling.request import Request as ProfileRequest
from mplus_cli.profiling.results import Results
from mplus_cli.profiling.systems import find_systems
from mplus_cli.reproduction import entry as names
from mplus_cli.reproduction import published
from mplus_cli.reproduction.entry import Cost, Entry, Score
from mplus_cli.reproduction.rates import PUBLISHED
from mplus_cli.reproduction.table import entries
from tests.commands.helpers import CommandLine
from tests.evaluation.helpers import evaluate


@dataclasses.dataclass
class Caught:
    """What a command line asked for."""

    evaluation: tuple[EvalRequest, Plan] | None = None
    profile: ProfileRequest | None = None
    built: dict | None = None
    recipe: dict | None = None


ENTRIES = entries()
MPLUS_COMMANDS = sorted(
    {line for one in ENTRIES for line in (*one.data, *one.commands) if shlex.split(line)[0] == "mplus"}
)
PARSED: dict[str, Caught] = {}
HUB = {names.M_PLUS_8B, names.STAGE_1_8B, names.LLAMA_8B, names.LLAMA_3B}


@pytest.fixture
def parse(monkeypatch, capsys):
    """Runs a command up to where work would begin; each one once in all tests."""
    mplus, caught = CommandLine(capsys), Caught()
    monkeypatch.setitem(sys.modules, "kvpress", types.SimpleNamespace(SnapKVPress=object))  # asked for, not used

    def evaluating(request, *_, **__):
        caught.evaluation = request, make_plan(request)
        raise SystemExit(0)

    def profiling(request, *_, **__):
        caught.profile = request
        raise SystemExit(0)

    def building(function):
        @functools.wraps(function)
        def instead(**options):
            caught.built = options

        return instead

    monkeypatch.setattr(running, "run", evaluating)
    monkeypatch.setattr(profile_command, "_profile", profiling)
    for command in build_data.app.registered_commands:
        monkeypatch.setattr(command, "callback", building(command.callback))

    def run(line: str) -> Caught:
        if line in PARSED:
            return PARSED[line]
        for field in dataclasses.fields(caught):
            setattr(caught, field.name, None)
        program, *words = shlex.split(line)
        assert program == "mplus"
        train = words[0] == "train"
        code, out, err = mplus(*words, *(["--print-config", "--json"] if train else []))
        assert code == 0, f"{line}\n{err}"
        if train:
            caught.recipe = json.loads(out)
        assert [one for one in vars(caught).values() if one is not None], f"nothing would run: {line}"
        PARSED[line] = dataclasses.replace(caught)
        return PARSED[line]

    return run


def test_every_table_and_figure_of_both_papers_is_there():
    figures = {f"figure-{number}" for number in range(1, 10)}
    wanted = {f"mplus-{place}" for place in (*figures, "table-1", "table-2", "table-3", "table-4")}
    wanted |= {"mplus-appendix-e-4", "mplus-section-4-6-1"}
    wanted |= {f"memoryllm-{place}" for place in (*figures, "table-1", "table-2")}
    assert [one.id for one in ENTRIES] == list(dict.fromkeys(one.id for one in ENTRIES))
    assert {one.id for one in ENTRIES} == wanted
    for one in ENTRIES:
        assert one.state in ("yes", "partly", "no", "drawing")
        assert bool(one.commands or one.data) == (one.state in ("yes", "partly"))
        assert one.why or one.state == "yes"  # what is not all of it says why


@pytest.mark.parametrize("line", MPLUS_COMMANDS)
def test_every_command_is_one(line, parse):
    found = parse(line)
    if found.evaluation:
        request, plan = found.evaluation
        assert {request.model, request.base_model} - {None} <= HUB | {names.STAGE_2_8B}
        assert request.out.parts[0] == "reproduced" and plan.tasks and plan.systems
    if found.profile:
        assert find_systems(found.profile.systems, found.profile.offload) and found.profile.lengths
        assert found.profile.random_weights in CONFIGURATIONS
    if found.recipe:
        assert found.recipe["stage"] == 2 and found.recipe["model"] == names.STAGE_1_8B
        assert found.recipe["data"]["sources"] == ["builds/stage2"]


def test_other_commands_fetch_what_the_tasks_look_for():
    others = {line for one in ENTRIES for line in one.data if not line.startswith("mplus ")}
    (hub, curl) = sorted(others, reverse=True)
    assert hub == f"{longbook_qa.HUB.command} --local-dir builds"
    file = editing_data.FILES["zsre"]
    assert curl == f"curl --create-dirs --output builds/{file} {editing_data.AUTHORS}{file}"


def _evaluations(one: Entry, parse) -> Iterator[tuple[EvalRequest, Plan]]:
    for line in one.commands:
        found = parse(line)
        if found.evaluation:
            yield found.evaluation


@pytest.mark.parametrize("one", ENTRIES, ids=lambda one: one.id)
def test_data_and_weights_that_commands_name_are_made_or_published(one, parse):
    outs = {str(built["out"]) for line in one.data if line.startswith("mplus b") and (built := parse(line).built)}
    fetched = {word for line in one.data for word in shlex.split(line) if word.startswith("builds/")}
    for request, _ in _evaluations(one, parse):
        if request.data is not None:
            assert {str(request.data), str(request.data.parent)} & (outs | fetched), request.data
        if request.model == names.STAGE_2_8B:
            assert any(line.startswith("mplus train --stage 2") for line in one.data)
        assert {request.model, request.base_model} - {None} <= set(one.weights)
    built = [built for line in one.data if line.startswith("mplus build-data mix") and (built := parse(line).built)]
    for parts in (options["part"] for options in built):
        assert {part.partition(":")[0] for part in parts} <= outs


@pytest.mark.parametrize("one", [one for one in ENTRIES if one.values], ids=lambda one: one.id)
def test_where_our_numbers_would_be_the_commands_put_them(one, parse):
    asked = list(_evaluations(one, parse))
    profiles = [found.profile for line in one.commands if (found := parse(line)).profile]
    for value in one.values:
        if isinstance(value.ours, Score):
            assert any(_makes(request, plan, value.ours) for request, plan in asked), value
        if isinstance(value.ours, Cost):
            place = value.ours
            assert any(
                place.length in request.lengths
                and place.system in {asked.label for asked in find_systems(request.systems, request.offload)}
                and (place.model is None or place.model in str(request.random_weights))
                for request in profiles
            ), value


def _makes(request: EvalRequest, plan: Plan, place: Score) -> bool:
    """Whether results of a request hold a score: its task with these options, its metric, group and system."""
    for asked in plan.tasks:
        options = dataclasses.asdict(asked.options)
        if asked.spec.name != place.task or any(options[key] != value for key, value in place.options.items()):
            continue
        named = [of.spec.name for of in plan.systems]
        fits = place.system in named and place.length in (None, request.length)
        fits &= place.model is None or str(request.model).endswith(place.model)
        if fits:
            assert place.metric in {*asked.task.metrics, *asked.task.harmonic}
            assert set(place.by) <= set(asked.task.group_by)
            return True
    return False


def test_tasks_and_systems_by_name_exist():
    scores = [value.ours for one in ENTRIES for value in one.values if isinstance(value.ours, Score)]
    assert {score.task for score in scores} <= set(TASKS) and {score.system for score in scores} <= set(SYSTEMS)
    assert len(scores) > 80


def test_published_numbers_fit_each_other():
    """Means, harmonic means and sums as printed, so that no number was copied wrongly."""
    for row, numbers in published.LONGBENCH.items():
        assert sum(numbers[:-1]) / 6 == pytest.approx(numbers[-1], abs=0.02), row
    for dataset, rows in published.EDITING.items():
        for editor, (score, *parts) in rows.items():
            assert 3 / sum(1 / part for part in parts) == pytest.approx(score, abs=0.15), (dataset, editor)
    for length, (total, *of) in published.SLIMPAJAMA.items():
        assert sum(of) == pytest.approx(total, rel=2e-5), length
    assert pytest.approx(0.03, abs=0.002) == published.CHANCE
    for plain, memory in costs.FLOPS.values():
        assert plain is None or 1.1 < memory / plain < 1.25


def test_every_published_number_stands_in_one_place():
    of = {one.id: one for one in ENTRIES}
    assert [value.published for value in of["mplus-table-1"].values] == list(costs.MEMORY_MB.values())
    flops = [number for pair in costs.FLOPS.values() for number in pair if number is not None]
    assert [value.published for value in of["mplus-appendix-e-4"].values] == flops
    assert paper.MEMORY_MB is costs.MEMORY_MB and paper.FLOPS is costs.FLOPS
    rows = [published.LONGBENCH[row] for row in ("MemoryLLM-8B (8k)", "MemoryLLM-8B-Long (8k)", "M+ (8k)")]
    assert [value.published for value in of["mplus-table-3"].values] == [number for row in rows for number in row]
    table_2 = {value.published for value in of["mplus-table-2"].values}
    assert table_2 >= {number for name in ("Llama-3.1-8B (16k)", "M+ (16k)") for number in published.LONGBENCH[name]}
    editing = [number for rows in published.EDITING.values() for row in rows.values() for number in row]
    assert [value.published for value in of["memoryllm-table-1"].values] == editing


# -- the command --


@pytest.fixture
def mplus(capsys) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def longbench(tmp_path, model_folder) -> Path:
    """Results of two sets at 8k on the tiny model, which is no model of the papers."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("qasper", "hotpotqa"):
        row = {"_id": "1", "context": "The miller lives in Vorn.", "input": "Where?", "answers": ["Vorn"], "length": 5}
        (data / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    task, systems = "longbench:datasets=[qasper,hotpotqa]", ("mplus", "memoryllm")
    evaluate(tmp_path / "results", model_folder, task, systems=systems, length=8_192, data=data)
    return tmp_path / "results"


@pytest.fixture
def profile(tmp_path) -> Path:
    """Results as `mplus profile` leaves them."""
    folder = tmp_path / "profile"
    folder.mkdir()
    results = Results(folder)
    machine = {"processor": "a processor", "cores": 2, "gpus": ["NVIDIA H100"]}
    results.begin({"name": "llama-3.1-8b with random weights"}, {"machine": machine})
    cell = {"status": "ok", "peak_bytes": 20_000 << 20, "inject_ms": 30_000.0, "first_token_ms": {"median": 2_000.0}}
    results.append(("mplus", 131_072), cell | {"flops": {"total": 4e15}})
    results.append(("mplus:offload=true", 131_072), cell | {"peak_bytes": 17_000 << 20, "flops": {"total": 4e15}})
    results.append(("memoryllm", 131_072), {"status": "oom"})
    return folder


def test_the_list_is_short_and_a_row_says_everything(mplus):
    code, out, err = mplus("eval", "reproduce")
    assert code == 0 and len(out.splitlines()) == 2 + len(ENTRIES) and "mplus eval reproduce ID" in err
    code, out, err = mplus("eval", "reproduce", "mplus-table-3")
    assert (code, err) == (0, "")
    for text in (
        "run: mplus eval longbench --model YuWangX/memoryllm-8b --length 8k --system memoryllm --out ",
        "data: mplus train --stage 2 --gpus 8 model=YuWangX/memoryllm-8b\n",
        "needs: weights YuWangX/memoryllm-8b, runs/stage2/model, YuWangX/mplus-8b; a GPU with 21 GB (published)\n",
        "time: up to 39 min 56 s for one system: 9,420,800 tokens at 3,932 a second; ",
        "note: The authors did not publish the weights after stage 2",
        "MemoryLLM-8B-Long (8k)",
    ):
        assert text in out
    assert "31.00" in out and "12.37" in out  # as printed


def test_ours_stand_beside_the_published(mplus, longbench, profile):
    code, out, _ = mplus("eval", "reproduce", "mplus-table-2", "--results", longbench)
    lines = out.splitlines()
    row = next(n for n, line in enumerate(lines) if line.startswith("M+ (8k)"))
    assert code == 0 and lines[row + 1].startswith("  ours, ") and "n 1" in lines[row + 1]
    assert next(line for line in lines if line.startswith("M+ (16k)")) and "M+ (16k)" in lines[row + 1 :][1]
    other_weights = mplus("eval", "reproduce", "mplus-table-3", "-r", longbench)[1].partition("M+ (8k)")[0]
    assert "  ours, " not in other_weights  # memoryllm on a model that is neither stage 1 nor stage 2

    found = json.loads(mplus("eval", "reproduce", "--results", longbench, "-r", profile, "--json")[1])
    by_id = {one["id"]: one for one in found["entries"]}
    cells = {(v["row"], v["column"]): v["ours"] for v in by_id["mplus-table-2"]["values"]}
    stored = json.loads(next(longbench.rglob("mplus/results.json")).read_text())
    (group,) = [one for one in stored["groups"] if one["by"] == {"dataset": "qasper"}]
    (ours,) = cells["M+ (8k)", "qasper"]
    assert ours["number"] == pytest.approx(100 * group["scores"]["score"]["mean"])
    assert cells["M+ (16k)", "qasper"] == [] and cells["M+ (8k)", "musique"] == []
    (mean,) = cells["M+ (8k)", "mean"]
    both = [one["scores"]["score"]["mean"] for one in stored["groups"] if set(one["by"]) == {"dataset"}]
    assert mean["number"] == pytest.approx(100 * sum(both) / 2)

    memory = {value["row"]: value["ours"] for value in by_id["mplus-table-1"]["values"]}
    assert [one["number"] for one in memory["M+, MB"]] == [20_000]
    assert [one["number"] for one in memory["M+ (offload), MB"]] == [17_000] and memory["MemoryLLM-8B, MB"] == []
    assert "4.00e+15" in mplus("eval", "reproduce", "mplus-appendix-e-4", "-r", profile)[1]


def test_times_are_by_a_measured_rate_that_is_named(mplus, profile):
    assert PUBLISHED.tokens_per_second == pytest.approx(costs.LATENCY_LENGTH / 33.3, rel=0.01)
    found = json.loads(mplus("eval", "reproduce", "mplus-figure-6", "--json")[1])
    assert "H100" in found["rate"]["source"] and "1,700 questions not counted" in found["entries"][0]["time"]
    found = json.loads(mplus("eval", "reproduce", "mplus-figure-6", "--json", "-r", profile)[1])
    assert found["rate"]["tokens_per_second"] == pytest.approx(131_072 / 32)
    assert "NVIDIA H100" in found["rate"]["source"] and str(profile) in found["rate"]["source"]
    assert "and 1,700 questions" in found["entries"][0]["time"]


def test_markdown_is_the_whole_table(mplus, longbench):
    code, out, err = mplus("eval", "reproduce", "--markdown", "--results", longbench)
    assert code == 0 and err == "" and out.count("\n## ") == len(ENTRIES)
    for line in MPLUS_COMMANDS:
        assert line in out
    assert "| M+ (8k) | 33.12 | 37.99 |" in out and "Times are by the authors' M+ 8B on one H100" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mplus-tabel-2"], "there is no table or figure 'mplus-tabel-2' (did you mean mplus-table-2"),
        (["--results", "gone"], "--results gone is no folder"),
        (["--results", "."], "--results . holds no results"),
    ],
)
def test_bad_input_is_one_message(mplus, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, out, err = mplus("eval", "reproduce", *arguments)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err


def test_a_damaged_profile_is_named(mplus, profile):
    (profile / "run.json").write_text("{")
    code, _, err = mplus("eval", "reproduce", "--results", profile)
    assert code == 2 and f"{profile} is damaged" in err


def test_the_list_needs_no_torch():
    program = (
        "import sys; from mplus_cli.reproduction import found, rates, report, table; table.entries();"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(cli.__file__).parents[1]).returncode == 0
    )
