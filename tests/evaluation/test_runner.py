"""Running: every sample once, kept as it finishes, resumed by id, refused where it would mix what does not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.items import Answer, Document, Item, Question
from mplus_cli.evaluation.request import Request
from mplus_cli.evaluation.runs import Pair, items_sha256, sample_ids
from tests.evaluation.helpers import Parrot, answers, evaluate

IDS = [f"item-{item}/q{after}" for item in range(3) for after in (1, 2, 3)]


def lines(pair: Pair) -> list[bytes]:
    return (pair.path / predictions.NAME).read_bytes().splitlines(keepends=True)


def stop_at(system, monkeypatch, question: str, error: BaseException) -> None:
    """Let the system fail when it is asked a question for the third time."""
    count = []

    def interrupt(asked):
        count.append(asked.id == question)
        if sum(count) == 3:
            raise error

    monkeypatch.setattr(system, "interrupt", staticmethod(interrupt))


def test_one_run_in_full(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder, systems=("echo:right=1",))
    assert toys.batches == [["item-0", "item-1"], ["item-2"]]
    samples = answers(pair)
    assert list(samples) == pair.samples() == IDS
    assert pair.path == tmp_path / "out" / "parrot" / "echo-right=1"
    one = samples["item-1/q2"]
    assert one["metadata"] == {"kind": "b", "distance": 2}
    assert (one["text"], one["references"], one["prompt"]) == ("right-1-2", ["right-1-2"], "Q2:")
    run = pair.run()
    assert run["settings"]["system_options"] == {"right": 1.0, "offload": False}
    assert run["settings"]["limit"] == 3
    assert len(run["settings"]["model"]["weights_sha256"]) == 64
    assert run["stop_rule"].startswith("an answer ends at its first line break")
    assert run["model"]["config"]["short_term_size"] == 32
    (session,) = run["sessions"]
    assert session["versions"]["torch"] and session["machine"]["cores"] and session["batch"] == 2
    assert json.loads((tmp_path / "out" / "request.json").read_text())["tasks"] == ["parrot"]


def test_time_of_all_samples_adds_up_to_the_wall_and_memory_is_noted(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder)
    samples, _ = predictions.read(predictions.files(pair.path))
    for sample in samples.values():
        assert 0 < sample["seconds"]["wall"] < 5
        assert sample["peak_memory"]["host"] > 10_000_000 and sample["session"] == 0


@pytest.mark.parametrize(
    "changes", [{"batch": 1}, {"batch": 3}, {"batch": None}, {"tasks": ("parrot:backwards=true",)}]
)
def test_neither_batch_nor_order_changes_an_answer(tmp_path, toys, model_folder, changes):
    (first,) = evaluate(tmp_path / "first", model_folder, tasks=("parrot",), limit=5)
    (second,) = evaluate(tmp_path / "second", model_folder, **({"tasks": ("parrot",), "limit": 5} | changes))
    one, other = answers(first), answers(second)
    assert {sample["text"] for sample in one.values()} > {"right-0-1"}
    assert {id: s["text"] for id, s in one.items()} == {id: s["text"] for id, s in other.items()}


def test_another_seed_is_another_run(tmp_path, toys, model_folder):
    texts = [
        [s["text"] for s in answers(evaluate(tmp_path / str(seed), model_folder, limit=6, seed=seed)[0]).values()]
        for seed in (0, 1)
    ]
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (KeyboardInterrupt(), "interrupted; 8 of 9 samples are finished and kept", 130),
        (RuntimeError("odd\nvery"), "parrot / echo: unexpected RuntimeError: odd; 8 of 9 samples are finished", 1),
        (MemoryError(), "out of memory in parrot / echo; 8 of 9 samples are finished and kept", 1),
        (RuntimeError("CUDA out of memory."), "out of memory in parrot / echo", 1),
        (MPlusError("no more disk"), "no more disk", 1),
    ],
)
def test_what_is_finished_is_kept_and_resume_asks_only_the_rest(
    tmp_path, toys, model_folder, monkeypatch, error, message, code
):
    (whole,) = evaluate(tmp_path / "whole", model_folder)
    toys.batches.clear()
    stop_at(toys, monkeypatch, "q3", error)
    out = tmp_path / "out"
    with pytest.raises(MPlusError) as raised:
        evaluate(out, model_folder)
    assert raised.value.message.startswith(message) and raised.value.exit_code == code
    if code == 130:
        assert raised.value.hint == f"mplus eval --resume --out {out}"
    if "memory" in message:
        assert f"lower --batch (now 2): mplus eval --resume --out {out} --batch 1; or --length" in raised.value.hint
    pair = Pair(out / "parrot" / "echo")
    kept = lines(pair)
    assert len(kept) == 8
    asked: list[str] = []
    monkeypatch.setattr(toys, "interrupt", staticmethod(lambda question: asked.append(question.id)))
    (resumed,) = evaluate(out, model_folder, resume=True, batch=1)
    assert asked == ["q3"] and toys.batches[-1] == ["item-2"]
    assert lines(pair)[:8] == kept
    assert answers(resumed) == answers(whole)
    assert [session["batch"] for session in resumed.run()["sessions"]] == [2, 1]


def test_the_resume_command_can_be_typed():
    assert Request(Path("my results")).resume_command == "mplus eval --resume --out 'my results'"


def test_a_finished_run_has_nothing_to_resume(tmp_path, toys, model_folder):
    evaluate(tmp_path / "out", model_folder)
    toys.batches.clear()
    evaluate(tmp_path / "out", model_folder, resume=True)
    assert toys.batches == []


def test_damaged_lines_are_named_and_redone(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder)
    before, good = answers(pair), lines(pair)
    good[3] = good[3].replace(b'"text": "', b'"text": "!')
    good[8] = good[8][: len(good[8]) // 2]
    (pair.path / predictions.NAME).write_bytes(b"".join(good))
    toys.batches.clear()
    warnings: list[str] = []
    evaluate(tmp_path / "out", model_folder, resume=True, warnings=warnings)
    assert warnings == [
        f"{pair.path / predictions.NAME}, line 4: damaged: its checksum is wrong; its sample is asked again",
        f"{pair.path / predictions.NAME}, line 9: cut off, or not a line of predictions; its sample is asked again",
    ]
    assert toys.batches == [["item-1", "item-2"]]
    assert answers(pair) == before and list(answers(pair)) == IDS


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, ["seed: 0 is now 1"]),
        ({"limit": 2}, ["limit: 3 is now 2", "items_sha256: "]),
        ({"settings": ("words=9",)}, ["task_options.words: 8 is now 9", "items_sha256: "]),
        ({"dtype": "bfloat16"}, ["model.dtype: 'float32' is now 'bfloat16'"]),
        ({"length": 5}, ["length: None is now 5"]),
    ],
)
def test_resuming_with_other_settings_is_refused_and_names_them(tmp_path, toys, model_folder, changes, named):
    (pair,) = evaluate(tmp_path / "out", model_folder)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="was begun with other settings") as raised:
        evaluate(tmp_path / "out", model_folder, resume=True, **changes)
    assert raised.value.message.count("\n") == len(named)
    for name in named:
        assert name in raised.value.message
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_resuming_with_another_model_is_refused(tmp_path, toys, model_folder, other_model_folder):
    evaluate(tmp_path / "out", model_folder)
    with pytest.raises(UsageError, match=r"model\.weights_sha256"):
        evaluate(tmp_path / "out", other_model_folder, resume=True)


def test_resume_may_add_systems_and_tasks(tmp_path, toys, model_folder):
    evaluate(tmp_path / "out", model_folder)
    toys.batches.clear()
    systems = ("echo", "echo:right=1")
    pairs = evaluate(tmp_path / "out", model_folder, "parrot", "measured", systems=systems, resume=True)
    assert len(toys.batches) == 2 and len(pairs) == 4
    assert answers(pairs[3])["item-2/q3"]["extra"] == {"after": 300}


def test_a_folder_with_something_in_it_is_refused(tmp_path, toys, model_folder):
    evaluate(tmp_path / "out", model_folder)
    with pytest.raises(UsageError, match="holds an evaluation already") as raised:
        evaluate(tmp_path / "out", model_folder)
    assert raised.value.hint.startswith(f"mplus eval --resume --out {tmp_path / 'out'}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty, and holds no evaluation"):
        evaluate(tmp_path / "other", model_folder, resume=True)
    with pytest.raises(UsageError, match="is a file"):
        evaluate(tmp_path / "other" / "thesis.tex", model_folder)


def test_two_commands_never_write_one_folder(tmp_path, toys, model_folder, monkeypatch):
    def again(question):
        with pytest.raises(UsageError, match="is being written by another"):
            evaluate(tmp_path / "out", model_folder, resume=True)

    monkeypatch.setattr(toys, "interrupt", staticmethod(again))
    evaluate(tmp_path / "out", model_folder, limit=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("parot",)}, r"no task 'parot' \(did you mean parrot\?\)"),
        ({"systems": ("echoo",)}, r"no system 'echoo' \(did you mean echo\?\)"),
        ({"tasks": ("parrot", "parrot")}, "task parrot is named twice"),
        ({"systems": ("echo:wrong=1",)}, "wrong: unknown key"),
        ({"settings": ("wods=1",)}, r"--set wods=1: no such key \(did you mean words\?\)"),
        ({"tasks": ("parrot:words=0",)}, "words: must be at least 1"),
        ({"systems": ("needs-store",), "offload": True, "tasks": ("measured:x=1",)}, "x: unknown key"),
    ],
)
def test_bad_input_leaves_no_folder(tmp_path, toys, model_folder, changes, message):
    with pytest.raises(UsageError, match=message):
        evaluate(tmp_path / "out", model_folder, **({"tasks": ("parrot",)} | changes))
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_retriever_is_refused_before_any_work(tmp_path, toys):
    from tests.fixtures import save_tiny_model

    model = save_tiny_model(tmp_path / "model", long_term_capacity=0)
    with pytest.raises(UsageError, match="needs-store needs long-term memory and a retriever") as raised:
        evaluate(tmp_path / "out", model, systems=("echo", "needs-store"))
    assert raised.value.hint == "--system memoryllm runs on it"
    assert toys.batches == [] and not (tmp_path / "out").exists()


def test_offload_goes_to_the_systems_that_have_it(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder, offload=True)
    assert pair.run()["settings"]["system"] == "echo:offload=true"
    assert pair.run()["settings"]["system_options"]["offload"] is True


def test_settings_go_to_the_tasks_that_have_them(tmp_path, toys, model_folder):
    pairs = evaluate(tmp_path / "out", model_folder, "parrot:words=3", "measured", settings=("words=5",))
    assert [pair.run()["settings"]["task_options"]["words"] for pair in pairs] == [3, 5]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda item: [], "gave no answer to 'item-0/q1'"),
        (lambda item: [Answer("item-9", "q1")], "answered 'item-9/q1', which was not asked"),
        (
            lambda item: [Answer(item.id, "q1"), Answer(item.id, "q1")],
            "answered 'item-0/q1', which was not asked, or tw",
        ),
    ],
)
def test_a_system_that_leaves_out_or_makes_up_is_found(tmp_path, toys, model_folder, monkeypatch, answer, message):
    monkeypatch.setattr(toys, "answer", lambda self, task, items: iter([a for item in items for a in answer(item)]))
    with pytest.raises(MPlusError, match=message):
        evaluate(tmp_path / "out", model_folder)


def test_items_that_make_no_sense_are_found():
    document, good = Document("x"), Question("q", "Q", (), 1)
    assert sample_ids([Item("i", (document,), (good,))]) == ["i/q"]
    for item in (
        Item("i", (document,), (good, good)),
        Item("i", (document,), (Question("q", "Q", (), 2),)),
        Item("i/j", (document,), (good,)),
    ):
        with pytest.raises(ValueError):
            sample_ids([item])


def test_the_checksum_of_items_sees_every_part_of_them():
    def item(**changes):
        given = {"id": "i", "text": "x", "prompt": "Q", "references": ("r",), "metadata": {}} | changes
        question = Question("q", given["prompt"], given["references"], 1, metadata=given["metadata"])
        return Item(given["id"], (Document(given["text"]),), (question,))

    changes = [{}, {"id": "j"}, {"text": "y"}, {"prompt": "P"}, {"references": ("s",)}, {"metadata": {"a": 1}}]
    assert len({items_sha256([item(**change)]) for change in changes}) == len(changes)
    assert items_sha256([item()]) == items_sha256([item()])


def test_the_first_items_do_not_depend_on_the_limit(tmp_path, toys, model_folder):
    (few,) = evaluate(tmp_path / "few", model_folder, limit=2)
    (many,) = evaluate(tmp_path / "many", model_folder, limit=4)
    assert answers(few).items() <= answers(many).items()
    assert Parrot.default_limit == 3
