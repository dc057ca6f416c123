"""LongBench: prompts word for word, cuts, what a memory writes and what it reads, metrics, where records are found."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.errors import MissingExtraError, UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.tasks import longbench_metrics as metrics
from mplus_cli.evaluation.tasks.longbench import LongBench, by_set, mean_of_sets
from mplus_cli.evaluation.tasks.longbench_data import HUB
from mplus_cli.evaluation.tasks.longbench_sets import SETS, SIX
from tests.evaluation.helpers import answers, evaluate
from tests.evaluation.tasks.helpers import is_png, results_of, system, task_settings
from tests.fixtures import byte_tokenizer, tiny_model

TASK = LongBench()

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


def record(dataset: str, number: int = 0, **changes) -> dict:
    told = f"In the year {1200 + number} the miller sold {number} {{sacks}}. " * 20
    row = {"_id": f"id{number}", "dataset": dataset, "language": "en", "length": 300, "all_classes": None}
    return row | {"context": told, "input": f"How many were sold in {number}?", "answers": [str(number)]} | changes


def write(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return path


def items(*options: str, **given):
    return list(TASK.items(task_settings(TASK, *options, **given)))


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


# -- metrics: values of LongBench's own metrics.py with rouge 1.0.1 and fuzzywuzzy 0.18.0 --


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("    return self.value", "    return self._value", 0.98),
        ("```python\n# comment\nx = 1\n", "x = 12", 0.91),
        ("\n\n  for i in range(10):\n    pass", "  for i in range(n):", 0.93),
        ("", "x", 0.0),
        ("// only", "", 1.0),
        ("a" * 250 + "b", "b" + "a" * 250, 0.0),  # difflib passes over what is too common in long lines
    ],
)
def test_code_similarity(answer, reference, value):
    assert metrics.code_similarity(answer, reference) == value


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("Individual", "Individual", 1.0),
        ("Individual description", "Individual description", 1.0),
        ("Individual description", "Individual", 1 / 3),
        ("Date of a Group or organization of person", "Date", 0.5),
        ("none", "Date", 0.0),
    ],
)
def test_classification(answer, reference, value):
    classes = [
        "Individual", "Individual description", "Group or organization of person", "description", "Date", "Da",
    ]  # fmt: skip
    assert metrics.classification(answer, reference, classes) == value


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("The report says that farms need water. It rained.", "The report says farms need more water. It did rain.",
         0.736842),
        ("the cat sat on the mat", "the cat is on the mat", 0.8),
        ("", "x", 0.0),
        ("...", "x y", 0.0),
        ("a b c d", "e f g", 0.0),
    ],
)  # fmt: skip
def test_rouge(answer, reference, value):
    pytest.importorskip("rouge", reason="rouge is not installed: pip install 'mplus[eval]'")
    assert metrics.rouge_l(answer, reference) == pytest.approx(value, abs=1e-6)


def test_retrieval_and_count():
    assert metrics.retrieval("Paragraph 12", "Paragraph 12") == 1.0
    assert metrics.retrieval("Paragraph 12 or Paragraph 3", "Paragraph 3") == 0.5
    assert metrics.retrieval("the first", "Paragraph 1") == metrics.retrieval("112", "Paragraph 12") == 0.0
    assert metrics.count("17", "17") == 1.0 and metrics.count("17 of 18 17", "17") == pytest.approx(2 / 3)
    assert metrics.count("none", "17") == 0.0


@pytest.mark.parametrize(
    ("dataset", "raw", "references", "first", "whole"),
    [
        ("hotpotqa", "\n Bob Dylan\nQuestion: who", ["Dylan", "Bob Dylan"], 1.0, 2 / 3),
        ("triviaqa", "\nBob Dylan\nPassage: x", ["Bob Dylan"], 1.0, 1.0),
        ("lcc", "\n    x = 1\ny = 2", ["    x = 1"], 1.0, 1.0),
        ("passage_count", " 5\n\n6", ["5"], 0.5, 0.5),
        ("trec", "Type: Date\nOther", ["Date"], 1.0, 1.0),
    ],
)
def test_what_of_an_answer_counts(dataset, raw, references, first, whole):
    sample = {"raw": raw, "text": raw.strip(), "metadata": {"dataset": dataset, "classes": ["Date", "Other"]}}
    assert metrics.score(sample, references) == pytest.approx(first)
    assert metrics.score_whole(sample, references) == pytest.approx(whole)


# -- where records are found --


@pytest.mark.parametrize("place", ["", "longbench", "data"])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "zip"])
def test_records_are_found_and_read(tmp_path, place, kind):
    rows = [record("qasper", n) for n in range(3)]
    path = write(tmp_path / place / "qasper.jsonl", *rows)
    if kind == "jsonl.gz":
        (path.parent / "qasper.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        (path.parent / "qasper").mkdir()
        parquet.write_table(pyarrow.Table.from_pylist(rows), path.parent / "qasper" / "test-00000-of-00001.parquet")
    elif kind == "zip":
        with zipfile.ZipFile(path.parent / "data.zip", "w") as archive:
            archive.write(path, "data/qasper.jsonl")
    if kind != "jsonl":
        path.unlink()
    made = items("datasets=[qasper]", data=tmp_path)
    assert [item.questions[0].references for item in made] == [("0",), ("1",), ("2",)]
    assert all(item.questions[0].metadata["record"] == f"id{n}" for n, item in enumerate(made))


def test_one_file_may_hold_several_sets(tmp_path):
    path = write(tmp_path / "mixed.jsonl", record("qasper", 1), record("hotpotqa", 2), record("qasper", 3))
    assert [item.id for item in items("datasets=[qasper,hotpotqa]", data=path)] == [
        "qasper-0",
        "hotpotqa-0",
        "qasper-1",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no record of qasper"),
        ([{"context": "x"}], "not a record of LongBench"),
        ([{"context": "x", "question": "y", "answer_prefix": "Answer:", "answers": ["z"]}], "a rewritten copy"),
        ([record("qasper", answers=[])], "not a record"),
        ([record("qasper"), {"dataset": "qasper"}], "line 2: not a record"),
    ],
)
def test_other_records_are_refused(tmp_path, rows, message):
    write(tmp_path / "qasper.jsonl", *rows)
    with pytest.raises(UsageError, match=message):
        items("datasets=[qasper]", data=tmp_path)


def test_broken_files_are_named(tmp_path):
    (tmp_path / "qasper.jsonl").write_text('{"context": \n')
    with pytest.raises(UsageError, match=r"qasper\.jsonl:1: not JSON"):
        items("datasets=[qasper]", data=tmp_path)
    (tmp_path / "data.zip").write_bytes(b"PK nothing")
    with pytest.raises(UsageError, match="damaged or cut off"):
        items("datasets=[qasper]", data=tmp_path / "data.zip")
    write(tmp_path / "trec.jsonl", record("trec"))
    with pytest.raises(UsageError, match="no all_classes"):
        items("datasets=[trec]", data=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["datasets=[hotpotqq]"], "did you mean 'hotpotqa'"),
        (["datasets=[]"], "no dataset"),
        (["keep=-1"], "at least 0"),
        (["cutt=left"], "did you mean 'cut'"),
    ],
)
def test_bad_settings_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        items(*options, data=tmp_path)


def test_missing_data_is_one_message_with_the_command(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="hotpotqa is missing") as given:
        items("datasets=[hotpotqa]", data=tmp_path)
    monkeypatch.setenv("MPLUS_SHARED_DATA", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"narrativeqa is missing.*the hub gave no zai-org/LongBench") as offline:
        items()
    for error in (given.value, offline.value):
        assert error.hint == (
            "hf download zai-org/LongBench data.zip --repo-type dataset --revision "
            "5e628be450b7e67fb7ae6e201bd6d8f7056f7672 --local-dir DIR, then mplus eval longbench --data DIR"
        )


def test_the_hub_s_file_is_taken_where_nothing_is_here_and_must_be_the_published_one(tmp_path, monkeypatch):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/qasper.jsonl", json.dumps(record("qasper", 5)))
    asked = []

    def download(repository, file, *, repo_type, revision):
        asked.append((repository, file, repo_type, revision))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setenv("MPLUS_SHARED_DATA", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="is not the published data.zip"):
        items("datasets=[qasper]")
    monkeypatch.setattr("mplus_cli.evaluation.hub_file.file_sha256", lambda path: HUB.sha256)
    assert items("datasets=[qasper]")[0].questions[0].references == ("5",)
    assert asked[0] == ("zai-org/LongBench", "data.zip", "dataset", HUB.revision)


def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rouge", None)
    write(tmp_path / "gov_report.jsonl", record("gov_report"))
    with pytest.raises(MissingExtraError, match="rouge"):
        TASK.items(task_settings(TASK, "datasets=[gov_report]", data=tmp_path))


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
