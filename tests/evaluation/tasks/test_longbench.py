"""LongBench: prompts word for word, cuts, what a memory writes and what it reads, and runs on real records."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.tasks import longbench_metrics as metrics
from mplus_cli.evaluation.tasks.longbench import LongBench, by_set, mean_of_sets
from mplus_cli.evaluation.tasks.longbench_sets import SETS, SIX
from tests.evaluation.helpers import answers, evaluate
from tests.evaluation.tasks.helpers import is_png, results_of, system
from tests.evaluation.tasks.longbench_records import TASK, items, record, write
from tests.fixtures import byte_tokenizer, tiny_model

# sha256 of the prompts in THUDM/LongBench, config/dataset2prompt.json (first 16 digits), and dataset2maxlen.json
PUBLISHED = {
    "narrativeqa": ("5178f3835db90239", 128),
    "qasper": ("0fbdd123fe7f83d6", 128),
    "multifieldqa_en": ("20b4666a2de8a1f7", 64),
    "hotpotqa": ("9ec4ae308865bd0c", 32),
    "2wikimqa": ("9ec4ae308865bd0c", 32),
    "musique": ("9ec4ae308865bd0c", 32),
    "gov_report": ("91c25d585b189ced", 512),
    "qmsum": ("dca23b678fe0183b", 512),
    "multi_news": ("2af3f28c40b902e6", 512),
    "trec": ("0eff8bebdba99d91", 64),
    "triviaqa": ("00a802e6377e72fc", 32),
    "samsum": ("a68d884234907eef", 128),
    "passage_count": ("986550b6c61009c6", 32),
    "passage_retrieval_en": ("39b96b7fa52bdd2a", 32),
    "lcc": ("6a1f24cf0bb83cd9", 64),
    "repobench-p": ("ee9ec182ea5ffeb7", 64),
}


def shared() -> Path:
    folder = data_folder()
    if not (folder / "longbench").is_dir():
        pytest.skip(f"{folder / 'longbench'} is missing: set MPLUS_SHARED_DATA to the folder of shared test data")
    return folder


def tokens(text: str) -> int:
    return len(encode(byte_tokenizer(), text))


# -- prompts and cuts --


def test_prompts_and_answer_lengths_are_the_published_ones():
    made = {name: (hashlib.sha256(s.template.encode()).hexdigest()[:16], s.max_new_tokens) for name, s in SETS.items()}
    assert made == PUBLISHED


@pytest.mark.parametrize("dataset", SETS)
def test_text_and_question_together_are_the_published_prompt(tmp_path, dataset):
    if SETS[dataset].metric == "rouge_l":
        pytest.importorskip("rouge", reason="rouge is not installed: pip install 'mplus[eval]'")
    row = record(dataset, 7, input="Why {context} {input}?", all_classes=["A", "B"], answers=["Paragraph 7"])
    write(tmp_path / f"{dataset}.jsonl", row)
    (item,) = items(f"datasets=[{dataset}]", data=tmp_path, length=16_384)
    (question,) = item.questions
    head, _, tail = SETS[dataset].template.partition("{context}")
    whole = head + row["context"] + tail.replace("{input}", row["input"])
    assert TASK.context_prompt(item.context(question), question) == whole
    assert question.max_new_tokens == PUBLISHED[dataset][1] and question.metadata["dropped_tokens"] == 0
    assert row["context"][:100] not in question.prompt  # closed-book reads the prompt alone


@pytest.mark.parametrize("cut", ["left", "middle"])
def test_the_length_counts_everything_and_the_end_is_kept_for_the_prompt(tmp_path, cut):
    row = record("hotpotqa", context="".join(f"[{n:05}]" for n in range(1_000)))
    write(tmp_path / "hotpotqa.jsonl", row)
    (item,) = items("datasets=[hotpotqa]", f"cut={cut}", "keep=600", data=tmp_path, length=1_500)
    (question,) = item.questions
    read = TASK.context_prompt(item.context(question), question)
    assert tokens(read) + 32 == 1_500
    assert tokens(question.recent + question.prompt) + 32 == 600
    head, _, tail = SETS["hotpotqa"].template.partition("{context}")
    whole = head + row["context"] + tail.replace("{input}", row["input"])
    assert read == (whole[-1_468:] if cut == "left" else whole[:734] + whole[-734:])
    shown = {"metadata": question.metadata}
    assert TASK.metrics["cut_away"](shown, ()) == 1 - tokens(item.context(question)) / tokens(
        whole[: -len(question.prompt)]
    )
    assert question.metadata["text_tokens"] - question.metadata["dropped_tokens"] == tokens(item.context(question))
    assert item.documents[0].text + question.recent == item.context(question)


def test_the_paper_s_sizes():
    """8k tokens are twelve chunks of 512 and a prompt of 2,048 with the answer; 16k are 28 (section 4.4)."""
    shared()
    model = tiny_model(chunk_size=512, memory_tokens_per_write=8)
    for length, chunks in ((8_192, 12), (16_384, 28)):
        for item in items("datasets=[hotpotqa]", model=model, length=length, limit=4):
            (question,) = item.questions
            assert tokens(item.documents[0].text) == 512 * chunks
            assert tokens(question.recent + question.prompt) + 32 == 2_048


def test_a_short_text_is_only_read_and_a_question_that_does_not_fit_is_refused(tmp_path):
    write(tmp_path / "hotpotqa.jsonl", record("hotpotqa", context="Short."))
    (item,) = items("datasets=[hotpotqa]", "keep=2048", data=tmp_path)
    assert item.documents == () and item.questions[0].after == 0 and "Short." in item.questions[0].recent
    with pytest.raises(UsageError, match="more than --length 100"):
        items("datasets=[hotpotqa]", data=tmp_path, length=100)


def test_keep_nothing_writes_everything(tmp_path):
    write(tmp_path / "hotpotqa.jsonl", record("hotpotqa"))
    (item,) = items("datasets=[hotpotqa]", "keep=0", data=tmp_path)
    assert item.questions[0].recent == "" and item.documents[0].text.endswith("{sacks}. ")


def test_sets_come_in_turn_and_a_limit_takes_the_first(tmp_path):
    for name, count in (("qasper", 3), ("trec", 1), ("lcc", 2)):
        write(tmp_path / f"{name}.jsonl", *(record(name, n, all_classes=["A"]) for n in range(count)))
    made = items("datasets=[qasper,trec,lcc]", data=tmp_path)
    assert [item.id for item in made] == ["qasper-0", "trec-0", "lcc-0", "qasper-1", "lcc-1", "qasper-2"]
    assert items("datasets=[qasper,trec,lcc]", data=tmp_path, limit=4) == made[:4]
    assert made[1].questions[0].metadata["classes"] == ["A"] and "classes" not in made[0].questions[0].metadata


# -- what is written and what is read --


def test_a_memory_writes_the_document_and_reads_the_end_with_the_question(tmp_path):
    write(tmp_path / "hotpotqa.jsonl", record("hotpotqa"))
    (item,) = items("datasets=[hotpotqa]", "keep=512", data=tmp_path, length=1_200)
    (question,) = item.questions
    model = tiny_model()
    (one,) = system("mplus", model).answer(TASK, [item])
    assert one.prompt == question.recent + question.prompt and tokens(one.prompt) == one.prompt_tokens == 512 - 32
    assert one.context_tokens == tokens(item.documents[0].text) == 1_200 - 512
    (text,) = system("window", model, "size=4096").answer(TASK, [item])
    assert text.prompt == item.context(question) + question.prompt
    (closed,) = system("closed-book", model).answer(TASK, [item])
    assert closed.prompt == question.prompt
    (found,) = system("bm25", model, "chunk_tokens=200", "top=2").answer(TASK, [item])
    assert question.recent not in found.prompt and found.prompt.endswith(question.prompt)


# -- real records --


def test_real_records_of_all_six_sets():
    made = items(data=shared(), limit=18, length=8_192)
    assert {item.questions[0].metadata["dataset"] for item in made} == set(SIX)
    for item in made:
        (question,) = item.questions
        read = TASK.context_prompt(item.context(question), question)
        assert tokens(read) + question.max_new_tokens <= 8_192
        assert question.prompt.endswith("Answer:") and question.references[0]
        if question.metadata["dropped_tokens"]:
            assert tokens(read) + question.max_new_tokens == 8_192


def test_it_runs_on_real_records_and_batches_change_nothing(model_folder: Path, tmp_path: Path):
    given = {"systems": ("mplus", "closed-book"), "limit": 6, "length": 1_600, "data": shared()}
    pairs = evaluate(tmp_path / "out", model_folder, "longbench", **given)
    again = evaluate(tmp_path / "again", model_folder, "longbench", **(given | {"batch": 1}))
    for pair, other in zip(pairs, again, strict=True):
        found = answers(pair)
        assert len(found) == 6 and found == answers(other)
        assert all(sample["metadata"]["dataset"] in SIX for sample in found.values())


def test_the_mean_is_over_sets_and_the_bars_are_drawn(tmp_path: Path):
    for name, count in (("hotpotqa", 3), ("trec", 1)):
        write(tmp_path / f"{name}.jsonl", *(record(name, n, all_classes=["Date", "0"]) for n in range(count)))
    made = items("datasets=[hotpotqa,trec]", data=tmp_path)
    given = {item.sample_id(item.questions[0]): item.questions[0].references[0] for item in made}
    given["hotpotqa-1/q"] = "wrong"
    results = results_of(_Raw(), made, given, "mplus", tiny_model().config)
    assert {name: found["mean"] for name, found in by_set(results).items()} == pytest.approx(
        {"hotpotqa": 2 / 3, "trec": 1.0}
    )
    assert mean_of_sets(results) == pytest.approx(5 / 6) and results.results["scores"]["score"]["mean"] == 0.75
    (path,) = TASK.plot([results, results], tmp_path)
    assert path.name == "longbench.png" and is_png(path)


class _Raw(LongBench):
    """Takes the text of an answer for all that was generated."""

    metrics = {  # noqa: RUF012
        "score": lambda sample, references: metrics.score(sample | {"raw": sample["text"]}, references),
    }
