"""The common base of every builder: folders, shards, manifests."""

from __future__ import annotations

import gzip
import shutil
from collections import namedtuple

import pytest

from mplus_cli.data.building import (
    BuildFolder,
    Source,
    atomic_write,
    file_sha256,
    find_builds,
    iter_rows,
    read_manifest,
    require_disk,
)
from mplus_cli.errors import UsageError

PARAMETERS = {"seed": 1, "edges": (1, 2)}


def start(path, builder="demo", **parameters):
    return BuildFolder.open(path, builder, PARAMETERS | parameters)


def finish(folder):
    return folder.finish(sources=[Source("here", "r1", "MIT")], counts={"rows": 2})


def test_a_build_from_start_to_end(tmp_path):
    with start(tmp_path / "b") as folder:
        folder.write_shard("train/00000.jsonl.gz", [{"text": "é\u2028"}, {"text": "b"}], bucket="train")
        made = finish(folder)
    read = read_manifest(tmp_path / "b")
    assert read == made
    assert (read.builder, read.rows, read.sources) == ("demo", 2, (Source("here", "r1", "MIT"),))
    assert read.parameters == {"seed": 1, "edges": [1, 2]}
    assert [row["text"] for row in iter_rows(tmp_path / "b" / read.shards[0].path)] == ["é\u2028", "b"]
    assert read.shards[0].sha256 == file_sha256(tmp_path / "b/train/00000.jsonl.gz")
    assert not (tmp_path / "b/.work").exists()
    assert list(find_builds(tmp_path)) == [tmp_path / "b"]


def test_a_complete_build_is_never_overwritten(tmp_path):
    with start(tmp_path) as folder:
        finish(folder)
    with pytest.raises(UsageError, match="never overwritten") as error:
        start(tmp_path)
    assert "show" in error.value.hint and error.value.exit_code == 2


def test_an_incomplete_build_resumes_without_writing_shards_again(tmp_path):
    with start(tmp_path) as folder:
        folder.write_shard("a.jsonl.gz", [{"n": 1}])

    def unread():
        raise AssertionError("read again")
        yield {}

    with start(tmp_path) as folder:
        assert folder.resumed
        folder.write_shard("a.jsonl.gz", unread())
        assert finish(folder).rows == 1


def test_other_parameters_are_refused_and_named(tmp_path):
    with start(tmp_path) as folder:
        folder.write_shard("a.jsonl.gz", [])
    with pytest.raises(UsageError, match="seed: 1 there, 2 now"):
        start(tmp_path, seed=2)
    with pytest.raises(UsageError, match="incomplete build of 'demo'"):
        start(tmp_path, builder="other")


def test_folders_that_are_something_else_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        start(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        start(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match="not a build"):
        read_manifest(tmp_path)


def test_two_processes_cannot_build_into_one_folder(tmp_path):
    with start(tmp_path), pytest.raises(UsageError, match="another process"):
        start(tmp_path)


def test_bad_input_before_any_work_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="wrong"), start(tmp_path / "b"):
        raise UsageError("wrong")
    assert not (tmp_path / "b").exists()


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    def rows():
        yield {"n": 1}
        raise KeyboardInterrupt

    with start(tmp_path) as folder, pytest.raises(KeyboardInterrupt):
        folder.write_shard("a/b.jsonl.gz", rows())
    assert list((tmp_path / "a").iterdir()) == []


def test_shards_say_neither_when_nor_where_they_were_written(tmp_path, monkeypatch):
    digests = set()
    for name, now in (("one", 1e9), ("two", 1.5e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        with start(tmp_path / name) as folder:
            digests.add(folder.write_shard(f"{name}.jsonl.gz", [{"a": 1}]).sha256)
    assert len(digests) == 1


def test_a_failed_atomic_write_keeps_the_old_file(tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(OSError), atomic_write(tmp_path / "f") as file:
        file.write(b"new")
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_text() == "old"


def test_too_small_a_disk_is_found_before_work_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(10**9))
    require_disk(tmp_path / "not" / "yet", 0.9e9)
    with pytest.raises(UsageError, match=r"1\.0 GB free.*may need 2\.0 GB"):
        BuildFolder.open(tmp_path / "b", "demo", {}, need_bytes=2e9)
    assert not (tmp_path / "b").exists()


def test_damaged_shards_are_named(tmp_path):
    with start(tmp_path) as folder:
        folder.write_shard("a.jsonl.gz", [{"n": i} for i in range(1000)])
        folder.write_shard("b.jsonl.gz", [{"n": 1}])
        manifest = finish(folder)
    assert manifest.verify(tmp_path) == []
    data = bytearray((tmp_path / "a.jsonl.gz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    (tmp_path / "b.jsonl.gz").unlink()
    assert manifest.verify(tmp_path) == ["a.jsonl.gz", "b.jsonl.gz"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:-20])
    with pytest.raises(UsageError, match="damaged"):
        list(iter_rows(tmp_path / "a.jsonl.gz"))


def test_a_manifest_that_is_not_one(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(UsageError, match="damaged"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="newer version"):
        read_manifest(tmp_path)
