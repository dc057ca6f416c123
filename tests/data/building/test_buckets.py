"""`mplus build-data slimpajama`: who wins does not depend on who reads what when, and nothing wanted is lost."""

from __future__ import annotations

import heapq
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.data.building import read_manifest
from mplus_cli.data.building.choosing import ByLength, Tally, choose, merge_lines
from mplus_cli.data.building.documents import Running, Selection, build_documents
from mplus_cli.data.building.index import Entry, Lengths, document_id, sampling_key
from mplus_cli.data.building.rows import Fields
from mplus_cli.errors import UsageError
from tests.data.building.conftest import SETS, build_rows, cut_documents, same_build, write_corpus

EDGES = (256, 1024, 2048, 8192)
NAMES = ["256-1k", "1k-2k", "2k-8k"]


def select(corpus, tokenizer, **changes) -> Selection:
    changes = {"edges": EDGES, "quota": 12, "tokenizer": str(tokenizer)} | changes
    return Selection("slimpajama", str(corpus), **changes)


def reference(
    rows: list[dict], quota: int, seed: int = 0, without: frozenset[str] = frozenset()
) -> dict[str, list[str]]:
    """The slow, obvious way with one token per byte: texts of each bucket in the order of their keys."""
    lengths = Lengths(EDGES)
    texts: dict[str, list[str]] = {name: [] for name in NAMES}
    for text in {row["text"] for row in rows} - without:
        bucket = lengths.bucket(len(text.encode()))
        if bucket is not None:
            texts[NAMES[bucket]].append(text)
    return {n: sorted(t, key=lambda text: sampling_key(document_id(text), seed))[:quota] for n, t in texts.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus, tokenizer_file) -> Path:
    out = tmp_path_factory.mktemp("builds") / "one"
    build_documents(out, select(corpus, tokenizer_file), Running(processes=1))
    return out


def texts_of(build: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in NAMES}
    for row in build_rows(build):
        found[row["bucket"]].append(row["text"])
    return found


def test_the_sample_is_that_of_the_obvious_way(built, rows):
    assert texts_of(built) == reference(rows, 12)
    for row in build_rows(built):
        assert row["tokens"] == len(row["text"].encode()) and row["id"] == document_id(row["text"])
        assert {"text": row["text"], "meta": {"redpajama_set_name": row["source"]}} in rows


def test_the_manifest_counts_everything(built, rows):
    counts = read_manifest(built).counts
    lengths = [len(text.encode()) for text in {row["text"] for row in rows}]
    buckets = Counter(Lengths(EDGES).bucket(n) for n in lengths)
    assert [sum(counts["found"][name].values()) for name in NAMES] == [buckets[i] for i in range(3)]
    assert set(counts["found"][NAMES[0]]) == set(SETS)
    assert counts["documents"] == dict.fromkeys(NAMES, 12)
    assert counts["duplicates_dropped"] >= 2
    reading = counts["reading"]
    assert reading["rows"] == len(rows)
    assert reading["rows"] == reading["tokenized"] + reading["skipped_short"] + reading["skipped_long"]
    assert reading["skipped_short"] > 0 and reading["skipped_long"] > 0
    assert read_manifest(built).verify(built) == []
    assert (built / "histogram.png").read_bytes().startswith(b"\x89PNG")


def test_the_skip_test_loses_no_document(tmp_path, corpus, real_tokenizer, monkeypatch):
    """With a real tokenizer: the same build with and without skipping."""
    wanted = select(corpus, real_tokenizer, edges=(128, 256, 512), quota=1000)
    build_documents(tmp_path / "skipping", wanted, Running(processes=1))
    from mplus_cli.data.building import lengths

    monkeypatch.setattr(lengths, "bounds_of", lambda spec: lengths.LengthBounds(False))
    lengths.load_counter.cache_clear()
    build_documents(tmp_path / "all", wanted, Running(processes=1))
    lengths.load_counter.cache_clear()
    one, other = (read_manifest(tmp_path / name) for name in ("skipping", "all"))
    assert one.shards == other.shards
    assert one.counts["reading"]["skipped_short"] > 20 and one.counts["reading"]["skipped_long"] > 20
    assert other.counts["reading"]["skipped_short"] == other.counts["reading"]["skipped_long"] == 0
    assert one.counts["found"] == other.counts["found"]


def test_two_processes_and_other_tasks_give_the_same_bytes(tmp_path, built, corpus, tokenizer_file):
    build_documents(tmp_path / "two", select(corpus, tokenizer_file), Running(processes=2, tasks=2))
    assert same_build(tmp_path / "two", built)


def test_rows_in_other_files_give_the_same_sample(tmp_path, built, rows, tokenizer_file):
    shuffled = random.Random(5).sample(rows, len(rows))
    build_documents(
        tmp_path / "b", select(write_corpus(tmp_path / "c", shuffled, files=2), tokenizer_file), Running(processes=1)
    )
    assert texts_of(tmp_path / "b") == texts_of(built)


def test_exclude_gives_the_next_documents_and_none_twice(tmp_path, built, rows, corpus, tokenizer_file):
    wanted = select(corpus, tokenizer_file, exclude=(built,))
    manifest = build_documents(tmp_path / "b", wanted, Running(processes=1))
    taken = frozenset(text for texts in texts_of(built).values() for text in texts)
    assert texts_of(tmp_path / "b") == reference(rows, 12, without=taken)
    assert manifest.counts["excluded"] == len(taken)


def test_another_seed_gives_another_sample(tmp_path, built, rows, corpus, tokenizer_file):
    build_documents(tmp_path / "b", select(corpus, tokenizer_file, seed=7), Running(processes=1))
    assert texts_of(tmp_path / "b") == reference(rows, 12, seed=7) != texts_of(built)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sampling_merges(tmp_path_factory, data):
    """Any split of the entries into sorted runs, in any order: the winners are the smallest keys of each bucket."""
    texts = data.draw(st.lists(st.text("abc", max_size=3), max_size=40))
    entries = [Entry(sampling_key(document_id(t), 3), i % 4, i, 300 + 500 * len(t), "x y") for i, t in enumerate(texts)]
    runs = data.draw(st.integers(1, 5))
    places = [data.draw(st.integers(0, runs - 1)) for _ in entries]
    folder = tmp_path_factory.mktemp("runs")
    paths = [folder / f"{run}" for run in range(runs)]
    for run, path in enumerate(paths):
        path.write_text("".join(e.line() for e, place in zip(entries, places, strict=True) if place == run and e))
        path.write_text("".join(sorted(path.read_text().splitlines(keepends=True))))
    tally = Tally()
    policy = ByLength(Lengths(EDGES), 2)
    won = list(choose(map(Entry.parse, merge_lines(paths)), policy, lambda key: False, tally))
    for bucket in range(3):
        mine = {e.key for e in entries if policy.bucket(e) == bucket}
        assert [e.key for e, b, _ in won if b == bucket] == heapq.nsmallest(2, mine)
    for entry, _, _ in won:  # the first in the corpus stands for its duplicates
        assert entry == min(e for e in entries if e.key == entry.key)
    assert tally.duplicates == len(entries) - len({e.key for e in entries})


@contextmanager
def run_command(out: Path, corpus: Path, tokenizer: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, of which nothing is left at the end of the block, however that ends."""
    command = [sys.executable, "-m", "mplus_cli", "build-data", "slimpajama", "--out", out, "--source", corpus]
    command += ["--tokenizer", tokenizer, "--edges", "256,1k,2k,8k", "--per-bucket", "200", "--processes", "2"]
    process = subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory, books) -> Path:
    """Sixteen files, a few seconds of work: enough to be interrupted in the middle."""
    return write_corpus(tmp_path_factory.mktemp("long"), cut_documents(books, 1600, seed=9, mean=7.0), files=16)


def wait_for_tasks(out: Path, process: subprocess.Popen[str], tasks: int = 2) -> None:
    """Until so many tasks of the first stage are done, and more are to do."""
    deadline = time.monotonic() + 60
    while len(list((out / ".jobs/index/completions").glob("*"))) < tasks:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def test_killed_and_interrupted_builds_end_as_an_untroubled_one(tmp_path, long_corpus, tokenizer_file):
    """kill -9 of a worker's parent, then Ctrl-C, then to the end: the same bytes as at one go, and no process left."""
    out = tmp_path / "troubled"
    with run_command(out, long_corpus, tokenizer_file) as process:
        wait_for_tasks(out, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        done = set((out / ".jobs/index/completions").glob("*"))
        process.communicate(timeout=30)  # ends when the last child has closed its stderr: none outlives the build
    assert 2 <= len(done) < 16 and not (out / "manifest.json").exists()
    with run_command(out, long_corpus, tokenizer_file) as process:
        wait_for_tasks(out, process, len(done) + 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err, err
    wanted = select(long_corpus, tokenizer_file, quota=200)
    build_documents(out, wanted, Running(processes=1))
    build_documents(tmp_path / "untroubled", wanted, Running(processes=1))
    assert same_build(out, tmp_path / "untroubled")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_is_noticed(tmp_path, long_corpus, tokenizer_file):
    out = tmp_path / "b"
    with run_command(out, long_corpus, tokenizer_file) as process:
        wait_for_tasks(out, process, 1)
        os.kill(busiest_child(process.pid), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and "worker process was killed" in err and "--processes" in err, err


def busiest_child(group: int) -> int:
    """The process of a session that has used most time of the processor, but for its leader: a worker."""
    used = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and int(stat.parent.name) != group:
            used[int(stat.parent.name)] = int(fields[11])
    return max(used, key=lambda pid: used[pid])


def broken_corpus(folder: Path, bad: int) -> Path:
    good = [json.dumps({"text": "x" * (300 + i)}) for i in range(10)]
    pad = "x" * 300  # lines of JSON that are too short to be wanted are not even parsed
    lines = [good[0], *['{"text": "cut o' for _ in range(bad)]]
    lines += [f'{{"text": 5, "pad": "{pad}"}}', f'{{"text": "\\ud800{pad}"}}', "[1]", *good[1:]]
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_unreadable_rows_are_counted_and_named(tmp_path, tokenizer_file):
    wanted = select(broken_corpus(tmp_path / "c", 2), tokenizer_file)
    manifest = build_documents(tmp_path / "b", wanted, Running(processes=1))
    reading = manifest.counts["reading"]
    assert reading["bad_rows"] == 5 and manifest.rows == 10
    assert reading["bad_named"][0].startswith("a.jsonl:2: not JSON")
    assert "field 'text' is int" in reading["bad_named"][2] and "Unicode" in reading["bad_named"][3]


def test_too_many_unreadable_rows_end_the_build(tmp_path, tokenizer_file):
    wanted = select(broken_corpus(tmp_path / "c", 9), tokenizer_file)
    with pytest.raises(UsageError, match=r"more than 4 rows(.|\n)*a\.jsonl:2: not JSON"):
        build_documents(tmp_path / "b", wanted, Running(processes=2, max_bad_rows=4))
    assert not (tmp_path / "b").exists(), "a failed start must not be in the way of the next one"


@pytest.mark.parametrize("processes", [1, 2])
def test_wrong_fields_say_which_there_are(tmp_path, corpus, tokenizer_file, processes):
    wanted = select(corpus, tokenizer_file, fields=Fields("body"))
    with pytest.raises(UsageError, match="no field 'body'; its fields are text, meta") as error:
        build_documents(tmp_path / "b", wanted, Running(processes=processes))
    assert "--text-field" in error.value.hint


def test_an_empty_corpus(tmp_path, tokenizer_file):
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match="it is empty"):
        build_documents(tmp_path / "b", select(tmp_path / "c", tokenizer_file), Running(processes=1))
    (tmp_path / "c/a.jsonl").write_text("\n\n")
    with pytest.raises(UsageError, match="holds no document"):
        build_documents(tmp_path / "b", select(tmp_path / "c", tokenizer_file), Running(processes=1))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.parquet"])
def test_damaged_files_are_named(tmp_path, tokenizer_file, name):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).write_bytes(b"\x1f\x8b\x08not really")
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        build_documents(tmp_path / "b", select(tmp_path / "c", tokenizer_file), Running(processes=1))


def test_an_unreachable_hub_says_what_to_do(tmp_path, tokenizer_file):
    with pytest.raises(UsageError, match="hub cannot be reached") as error:
        build_documents(tmp_path / "b", select("cerebras/SlimPajama-627B", tokenizer_file), Running(processes=1))
    assert "give its folder" in error.value.hint
    assert not (tmp_path / "b").exists()


def test_bad_options_are_one_message_each(tmp_path, corpus, tokenizer_file, mplus):
    base = ["build-data", "slimpajama", "-o", tmp_path / "b", "--source", corpus, "--tokenizer", tokenizer_file]
    for extra, says in (
        (["--edges", "4k"], "two or more ascending"),
        (["--edges", "a,b"], "not a list of numbers"),
        (["--executor", "pbs"], "Unknown executor 'pbs'"),
        (["--exclude", tmp_path], "not a build"),
        (["--source", tmp_path / "nowhere"], "There is no"),
        (["--files", "*.txt"], "no readable file matching"),
    ):
        code, out, err = mplus(*base, *extra)
        assert (code, out) == (2, "") and says in err and "Traceback" not in err, err
        assert not (tmp_path / "b").exists()
