"""LongBench: where records are found, which are refused, and what is said when they are missing."""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest

from mplus_cli.errors import MissingExtraError, UsageError
from mplus_cli.evaluation.tasks.longbench_data import HUB
from tests.evaluation.tasks.helpers import task_settings
from tests.evaluation.tasks.longbench_records import TASK, items, record, write


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
