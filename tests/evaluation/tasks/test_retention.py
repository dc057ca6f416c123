"""`retention`: one code path for builds and published files, distances, distractors, figure 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.data.building import BuildFolder, Tokenizer
from mplus_cli.data.chunking import chunks
from mplus_cli.data.retention import Filters, RetentionOptions, build_retention, open_examples
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import VARIABLE, data_folder
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.items import Question
from mplus_cli.evaluation.tasks.retention import Retention, theory
from tests.evaluation.tasks.helpers import is_png, results_of, system, task_settings
from tests.fixtures import byte_tokenizer

TASK = Retention()
TOWNS = ["Oslo", "Rome", "Lima", "Bonn", "Cork", "Bath"]
PARAGRAPHS = 60


def squad(leak: str = "Oslo") -> dict[str, Any]:
    """Six questions of towns, and many paragraphs about nothing; one of these tells an answer."""
    made = [
        {
            "context": f"The fair was held in {town} that year, and nobody came.",
            "qas": [{"id": town, "question": f"Where was the fair of {town[0]}?", "answers": [{"text": town}]}],
        }
        for town in TOWNS
    ]
    for number in range(PARAGRAPHS):
        told = f"They also sold {leak} bread" if number == 7 else "They sold nothing at all"
        made.append({"context": f"In stall {number} was a man. {told} there, they say.", "qas": []})
    for paragraph in made[len(TOWNS) :]:  # only paragraphs with questions are read
        paragraph["qas"] = [{"id": "x", "question": "Who?", "answers": [{"text": "a man who is too long"}]}]
    return {"version": "1.1", "data": [{"title": "Fairs", "paragraphs": made}]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(squad()))
    return path


def items(source: Path, *options: str, **given: Any) -> list:
    return list(TASK.items(task_settings(TASK, "max_answer_tokens=4", *options, data=source, **given)))


def test_the_context_comes_first_then_distractors_that_do_not_tell_the_answer(source):
    found = items(source, length=3_000)
    assert [item.questions[0].references for item in found] == [(town,) for town in TOWNS]
    for item, town in zip(found, TOWNS, strict=True):
        assert town in item.documents[0].text
        assert all(town not in document.text for document in item.documents[1:])
    assert any("Oslo" in document.text for document in found[1].documents[1:])  # it was there to be left out
    rome, lima = ([d.text for d in item.documents[1:]] for item in found[1:3])
    both = set(rome) & set(lima)
    assert [text for text in rome if text in both] == [text for text in lima if text in both]  # the same order


def test_questions_stand_where_the_distance_is_nearest(source):
    for item in items(source, "points=5", length=1_000):
        lengths = [len(encode(byte_tokenizer(), document.text)) for document in item.documents[1:]]
        assert [question.metadata["distance"] for question in item.questions] == [0, 200, 400, 600, 800, 1_000]
        for question in item.questions:
            between = question.after - 1
            assert question.metadata["tokens"] == sum(lengths[:between])
            wanted = question.metadata["distance"]
            assert abs(sum(lengths[:between]) - wanted) == min(
                abs(sum(lengths[:n]) - wanted) for n in range(len(lengths) + 1)
            )
            texts = [document.text for document in item.documents[1 : question.after]]
            made = sum(len(list(chunks(text, byte_tokenizer(), 64))) for text in texts)
            assert question.metadata["writes"] == made
        assert item.questions[0].after == 1 and item.questions[-1].after == len(item.documents)


def test_by_default_a_distractor_is_one_write_and_the_reach_is_forty(source):
    item = items(source, "distances=[0, 300]")[0]
    assert all(len(list(chunks(d.text, byte_tokenizer(), 64))) == 1 for d in item.documents[1:])
    settings = task_settings(TASK, data=source)
    assert settings.config.chunk_size == 64 and items(source)[0].questions[-1].metadata["distance"] == 40 * 64


def test_the_same_through_a_build(source, tmp_path):
    options = RetentionOptions(4, 60, 64, 0, None)
    opened, name = open_examples(str(source)), Tokenizer("bytes", "1")
    with BuildFolder.open(tmp_path / "set", "retention", {}) as folder:
        build_retention(folder, opened, opened, byte_tokenizer(), name, options, Filters())
    raw = items(source, "distractor_tokens=64", length=1_500)
    built = list(TASK.items(task_settings(TASK, data=tmp_path / "set", length=1_500)))
    assert built == raw and len(built) == len(TOWNS)
    with pytest.raises(UsageError, match="max_answer_tokens cannot be chosen"):
        items(tmp_path / "set")


def test_a_smaller_limit_gives_the_first_ones_and_a_seed_another_order(source):
    assert items(source, length=500, limit=2) == items(source, length=500)[:2]
    other = items(source, length=500, seed=1)
    assert other != items(source, length=500)
    assert [item.id for item in other] == [item.id for item in items(source, length=500)]


def test_reach_beyond_the_texts_is_refused_with_what_they_reach(source):
    with pytest.raises(UsageError, match="hold 3,[0-9]+ tokens, and --length asks for 100,000") as refused:
        items(source, length=100_000)
    assert "--distractor-count" in str(refused.value.hint)


def test_distances_beyond_the_length_are_left_out_and_none_is_refused(source):
    found = items(source, "distances=[500, 0, 100]", length=200)
    assert [question.metadata["distance"] for question in found[0].questions] == [0, 100]
    with pytest.raises(UsageError, match="no distance"):
        items(source, "distances=[500]", length=200)


def test_missing_data_names_the_command_that_builds_it(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="the data set nq is missing") as refused:
        list(TASK.items(task_settings(TASK, "dataset=nq")))
    assert "mplus build-data retention --source nq" in str(refused.value.hint)
    with pytest.raises(UsageError, match="there is no"):
        list(TASK.items(task_settings(TASK, data=tmp_path / "gone.json")))


@pytest.mark.parametrize("dataset", ["squad", "nq"])
def test_the_shared_files(dataset):
    if not (data_folder() / dataset).is_dir():
        pytest.skip(f"{data_folder()} is missing: set {VARIABLE} to the folder of shared data")
    settings = task_settings(TASK, f"dataset={dataset}", "max_answer_tokens=8", length=3_000, limit=5)
    found = list(TASK.items(settings))
    assert len(found) == 5 and {item.metadata["dataset"] for item in found} == {dataset}
    for item in found:
        (answer,) = item.questions[0].references
        assert answer in item.documents[0].text
        assert all(answer not in document.text.split() for document in item.documents[1:])


def test_prompts():
    question = Question("q", "Question: Who? Answer:", ("x",), 0)
    assert TASK.context_prompt("The text.", question) == "Context: The text.\nQuestion: Who? Answer:"
    assert TASK.context_prompt("", question) == "Question: Who? Answer:"


def test_a_system_answers_every_distance_from_one_pass(source, model):
    found = items(source, "points=3", length=600, limit=3)
    answers = list(system("mplus", model).answer(TASK, found))
    assert sorted(a.sample_id for a in answers) == sorted(i.sample_id(q) for i in found for q in i.questions)
    for item in found:
        own = [a for a in answers if a.item == item.id]
        last = max(own, key=lambda a: a.extra["writes"])
        in_all = sum(len(list(chunks(d.text, byte_tokenizer(), 64))) for d in item.documents)
        assert last.extra["writes"] == in_all  # asked four times, written once


def test_the_likelihood_of_the_reference_is_measured_where_it_is_asked_for(source, model):
    found = items(source, "points=1", "likelihood=true", length=300, limit=2)
    answers = {a.sample_id: a for a in system("mplus", model).answer(TASK, found)}
    for item in found:
        for question in item.questions:
            extra = answers[item.sample_id(question)].extra
            value = TASK.metrics["log_likelihood"]({"extra": extra}, question.references)
            assert question.options == (f" {question.references[0]}",)
            assert value == extra["option_logprobs"][0] / len(question.options[0].encode()) < 0  # a token per byte
    plain = items(source, "points=1", length=300, limit=1)[0].questions[0]
    assert plain.options == () and TASK.metrics["log_likelihood"]({"extra": {}}, plain.references) is None


# --- figure 3 ---


def fake(source: Path, model: Any) -> list:
    found = items(source, "points=4", length=800)

    def answers(right: Any) -> dict[str, str]:
        return {i.sample_id(q): q.references[0] if right(i, q) else "no" for i in found for q in i.questions}

    near = answers(lambda i, q: q.metadata["distance"] < 400)
    floor = answers(lambda i, q: i.questions[0].references == ("Bath",))
    return [
        results_of(TASK, found, near, "memoryllm", model.config),
        results_of(TASK, found, floor, "closed-book", model.config),
    ]


def test_the_theoretical_curve_falls_from_the_first_point_to_the_border(source, model):
    results = fake(source, model)
    ((label, curve),) = theory(results, "contains", 1 / 6)
    rule, writes = DropRule(8, 32), results[0].samples[4]["metadata"]["writes"]
    assert "N=32, K=8" in label
    assert (curve[0].x, curve[0].mean) == (0, 1.0)
    assert curve[-1].x == 800
    mean = sum(s["metadata"]["writes"] for s in results[0].samples if s["metadata"]["distance"] == 800) / 6
    assert curve[-1].mean == pytest.approx(1 / 6 + 5 / 6 * 0.75**mean) and abs(mean - writes) < 2
    assert curve[-1].mean == pytest.approx(rule.accuracy(1.0, 1 / 6, mean))
    assert all(left.mean >= right.mean for left, right in zip(curve, curve[1:], strict=False))


def test_figure_3_is_drawn(source, model, tmp_path):
    pytest.importorskip("matplotlib")
    assert [is_png(path) for path in TASK.plot(fake(source, model), tmp_path)] == [True]
    assert is_png(TASK.plot(fake(source, model)[1:], tmp_path)[0])  # without a system that has a memory


def test_the_drop_rule():
    rule = DropRule(256, 7_680)  # MemoryLLM-7B
    assert rule.survival(0) == 1 and rule.survival(20) == pytest.approx((1 - 1 / 30) ** 20)
    assert rule.survival(rule.half_life) == pytest.approx(0.5)
    assert DropRule.of({"memory_tokens_per_write": 48, "short_term_size": 384}).half_life == pytest.approx(
        5.1909, abs=1e-4
    )
    assert DropRule(8, 8).survival(1) == 0 and DropRule(8, 8).half_life == 0
