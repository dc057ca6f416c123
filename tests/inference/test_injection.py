"""Injection: all text once, committed as it goes, resumed where it stopped, equal to an uninterrupted run."""

from __future__ import annotations

import hashlib
import os
import signal
from datetime import datetime

import pytest
import torch

from mplus_cli.core.state import convert
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.data.chunking import chunks
from mplus_cli.data.sources import Source
from mplus_cli.inference import injection
from mplus_cli.inference.injection import Injection, stop_request
from tests.fixtures import book, tiny_model


def source(text: str, name: str = "book.txt") -> Source:
    return Source(name, hashlib.sha256(text.encode()).hexdigest(), text)


BOOK, SEQUEL = source(book(30)), source(book(12)[::-1], "sequel.txt")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory.pt"


@pytest.fixture
def commit_every_chunk(monkeypatch):
    monkeypatch.setattr(injection, "COMMIT_SECONDS", -1.0)


def run(model, tokenizer, path, sources, stop_after: int | None = None, **options):
    """Inject into the state at `path` (made if missing); returns the report. `stop_after` chunks it is interrupted."""

    def progress(step):
        if step.chunks == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    if path.exists():
        state = MemoryState.open(path, writable=True)
        memory = state.load_memory(model)
    else:
        memory = model.new_memory(seed=5)
        state = MemoryState.create(path, model, memory)
    with state:
        return Injection(model, tokenizer, memory, state, sources, on_progress=progress, **options).run()


def content(model, path):
    """Short- and long-term memory of a state file, oldest first."""
    with MemoryState.open(path) as state:
        memory = state.load_memory(model)
        values, created = memory.short_term.ordered(0)
        stores = memory.long_term[0].layers
        long = [store.take(layer, store.all_positions()) for layer, store in enumerate(stores)]
        return [values, created, *(tensor for pair in long for tensor in pair)]


def notes(path):
    with MemoryState.open(path) as state:
        made_by = state.provenance([8 * write for write in range(state.summary()["writes"])])
        return [{key: value for key, value in note.items() if key != "time"} for note in made_by]


def test_everything_is_injected_once_with_its_provenance(model, tokenizer, path):
    report = run(model, tokenizer, path, [BOOK, SEQUEL])
    expected = [(s.name, c.start, c.end, len(c.ids)) for s in (BOOK, SEQUEL) for c in chunks(s.text, tokenizer, 64)]
    assert [(n["source"], n["start"], n["end"], n["tokens"]) for n in notes(path)] == expected
    assert report.chunks == len(expected)
    assert report.tokens == sum(tokens for *_, tokens in expected)
    assert report.injected == ["book.txt", "sequel.txt"]
    assert not report.interrupted


def test_memory_is_what_the_chunks_written_one_by_one_give(model, tokenizer, path):
    run(model, tokenizer, path, [BOOK])
    memory = model.new_memory(seed=5)
    for chunk in chunks(BOOK.text, tokenizer, 64):
        model.inject(torch.tensor([chunk.ids]), memory)
    values, created = memory.short_term.ordered(0)
    held = content(model, path)
    assert torch.equal(held[0], values) and torch.equal(held[1], created)


class Noon(datetime):
    """A clock that stands still: files of the same content are then the same bytes."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, 12, tzinfo=tz)


@pytest.mark.parametrize("seconds", [1000.0, -1.0], ids=["one commit", "a commit per chunk"])
@pytest.mark.parametrize("capacity", [80, 0], ids=["mplus", "memoryllm"])
def test_a_pipeline_gives_the_same_file(tokenizer, path, monkeypatch, seconds, capacity):
    for module in (injection, convert):
        monkeypatch.setattr(module, "datetime", Noon)
    monkeypatch.setattr(injection, "COMMIT_SECONDS", seconds)
    model, files = tiny_model(long_term_capacity=capacity), []
    for stages in (1, 2, 3):
        own = path.with_name(f"{stages}.pt")
        report = run(model, tokenizer, own, [BOOK, source("", "empty.txt"), SEQUEL], stages=stages)
        assert report.injected == ["book.txt", "empty.txt", "sequel.txt"] and not report.interrupted
        files.append(own.read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("stops", [[1], [7, 3], [20, 1, 1]])
def test_interrupted_in_a_pipeline_and_resumed(model, tokenizer, path, commit_every_chunk, stops):
    """What is under way when it is stopped goes in; the next run starts right behind it."""
    done = 0
    for stop in stops:
        report = run(model, tokenizer, path, [BOOK, SEQUEL], stop, stages=3)
        assert report.interrupted and stop <= report.chunks <= stop + 5 and report.resumed in (done, 0)
        done = report.resumed + report.chunks
    run(model, tokenizer, path, [BOOK, SEQUEL], stages=3)
    run(model, tokenizer, path.with_name("plain.pt"), [BOOK, SEQUEL])
    with MemoryState.open(path) as broken, MemoryState.open(path.with_name("plain.pt")) as plain:
        assert broken.digest() == plain.digest()
    assert notes(path) == notes(path.with_name("plain.pt"))


@pytest.mark.parametrize("stops", [[1], [7, 3], [20, 1, 1]])
def test_interrupted_and_resumed_equals_uninterrupted(model, tokenizer, path, tmp_path, stops):
    for stop in stops:
        assert run(model, tokenizer, path, [BOOK, SEQUEL], stop_after=stop).interrupted
    report = run(model, tokenizer, path, [BOOK, SEQUEL])
    assert not report.interrupted
    whole = tmp_path / "whole.pt"
    total = run(model, tokenizer, whole, [BOOK, SEQUEL])
    assert report.chunks == total.chunks - sum(stops)
    assert notes(path) == notes(whole)
    for one, other in zip(content(model, path), content(model, whole), strict=True):
        assert torch.equal(one, other)


def test_interrupted_in_the_second_source(model, tokenizer, path):
    first = len(list(chunks(BOOK.text, tokenizer, 64)))
    assert run(model, tokenizer, path, [BOOK, SEQUEL], stop_after=first + 2).interrupted
    report = run(model, tokenizer, path, [BOOK, SEQUEL])
    assert (report.injected, report.skipped, report.resumed) == (["sequel.txt"], [], 2)


def test_work_that_was_not_committed_is_done_again(model, tokenizer, path, commit_every_chunk, monkeypatch):
    """A crash between two commits: the state as of the last one is what resuming starts from."""
    calls = 0
    commit = MemoryState.commit

    def dying(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("power cut")
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(MemoryState, "commit", dying)
    with pytest.raises(RuntimeError, match="power cut"):
        run(model, tokenizer, path, [BOOK])
    monkeypatch.setattr(MemoryState, "commit", commit)
    report = run(model, tokenizer, path, [BOOK])
    assert report.resumed == 3
    assert len(notes(path)) == len(list(chunks(BOOK.text, tokenizer, 64)))


def test_what_is_in_memory_is_skipped_unless_again(model, tokenizer, path):
    run(model, tokenizer, path, [BOOK])
    writes = len(notes(path))
    report = run(model, tokenizer, path, [BOOK, SEQUEL])
    assert (report.skipped, report.injected) == (["book.txt"], ["sequel.txt"])
    assert run(model, tokenizer, path, [BOOK, SEQUEL]).chunks == 0
    assert run(model, tokenizer, path, [BOOK], again=True).chunks == writes


def test_a_text_given_twice_is_injected_once(model, tokenizer, path):
    report = run(model, tokenizer, path, [BOOK, source(BOOK.text, "copy.txt")])
    assert (report.injected, report.skipped) == (["book.txt"], ["copy.txt"])


def test_a_part_in_memory_is_not_the_whole(model, tokenizer, path):
    run(model, tokenizer, path, [BOOK, SEQUEL], stop_after=3)
    with MemoryState.open(path) as state:
        loaded = state.load_memory(model)
        assert Injection(model, tokenizer, loaded, state, [SEQUEL, BOOK]).partial() == ["book.txt"]
        assert Injection(model, tokenizer, loaded, state, [BOOK, SEQUEL]).partial() == []
    report = run(model, tokenizer, path, [SEQUEL, BOOK])  # another order: another job
    assert (report.skipped, report.resumed) == ([], 0)
    assert report.injected == ["sequel.txt", "book.txt"]


def test_another_chunk_size_is_another_job(model, tokenizer, path):
    run(model, tokenizer, path, [BOOK], stop_after=3)
    report = run(model, tokenizer, path, [BOOK], chunk_size=32)
    assert report.resumed == 0


def test_commits_come_with_time_and_bytes_not_with_every_chunk(model, tokenizer, path, tmp_path, monkeypatch):
    assert run(model, tokenizer, path, [SEQUEL]).commits <= 3
    monkeypatch.setattr(injection, "COMMIT_BYTES", 0)
    report = run(model, tokenizer, tmp_path / "bytes.pt", [SEQUEL])
    assert report.commits >= report.chunks


def test_without_a_state_the_memory_alone_changes(model, tokenizer):
    memory = model.new_memory()
    report = Injection(model, tokenizer, memory, None, [SEQUEL]).run()
    assert memory.created_total[0] == 8 * report.chunks


def test_progress_reaches_the_end_and_never_goes_back(model, tokenizer, path):
    steps = []
    memory = model.new_memory()
    Injection(model, tokenizer, memory, None, [BOOK, SEQUEL], on_progress=steps.append).run()
    done = [step.chars_done for step in steps]
    assert done == sorted(done)
    assert steps[-1].chars_done == steps[-1].chars_total == len(BOOK.text) + len(SEQUEL.text)
    assert steps[-1].short_term == 32 and steps[-1].long_term == 80


def test_a_second_interrupt_is_at_once():
    with pytest.raises(KeyboardInterrupt), stop_request() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_file_that_is_mostly_dead_is_compacted_on_the_way(tokenizer, path, commit_every_chunk, monkeypatch):
    """MemoryLLM keeps nothing of what it drops, so its file must not grow with the text; and nothing changes by it."""
    model = tiny_model(long_term_capacity=0)
    plain = path.with_name("plain.pt")
    run(model, tokenizer, plain, [BOOK])
    monkeypatch.setattr(injection, "COMPACTION_BYTES", 20_000)
    run(model, tokenizer, path, [BOOK])
    assert path.stat().st_size < plain.stat().st_size / 2
    with MemoryState.open(path) as small, MemoryState.open(plain) as large:
        assert small.digest() == large.digest()
