"""Batches: exact continuation, like lengths, held-out documents, what is refused, another number of processes."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from itertools import chain, zip_longest
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.data.building.identity import document_id, sampling_key
from mplus_cli.errors import UsageError
from mplus_cli.training import documents
from mplus_cli.training.batches import BatchStream, NoDocumentsError
from mplus_cli.training.documents import Place
from mplus_cli.training.examples import Tokenized
from mplus_cli.training.held_out import ORDER
from mplus_cli.training.lengths import choose_batch
from mplus_cli.training.prefetch import Prefetch
from tests.fixtures import byte_tokenizer
from tests.training.corpora import settings as data_settings
from tests.training.corpora import text, write_files, write_rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_ROWS", 4)


def stream(folder, rank=0, world=1, seed=7, **overrides) -> BatchStream:
    return BatchStream(data_settings(folder, **overrides), byte_tokenizer(), rank, world, seed)


def decoded(example) -> str:
    return byte_tokenizer().decode(sum(example.contexts, []) + example.target)


def saved(state: dict) -> dict:
    return json.loads(json.dumps(state))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    size=st.integers(1, 4),
    look_ahead=st.integers(1, 9),
    steps=st.integers(0, 12),
    world=st.integers(1, 2),
)
def test_going_on_gives_the_same_batches(sizes, size, look_ahead, steps, world):
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), [*sizes, 6], [60, 12, 200, 90])
        options = {"world": world, "rank": world - 1, "batch_size": size, "look_ahead": look_ahead, "eval_documents": 1}
        one = stream(folder, **options)
        for _ in range(steps):
            one.next()
        other = stream(folder, **options)
        other.next()
        other.load_state_dict(saved(one.state_dict()))
        assert other.state_dict() == one.state_dict() and other.report() == one.report() | {
            "broken_rows_named": other.report()["broken_rows_named"]
        }
        for _ in range(8):
            assert other.next() == one.next()
            assert saved(other.state_dict()) == saved(one.state_dict())


def test_each_epoch_has_each_document_once_cut_anew(tmp_path):
    write_files(tmp_path, [7, 6], [60, 300])
    batches = stream(tmp_path, batch_size=2, look_ahead=5)
    made = [example for _ in range(13) for example in batches.next()]
    epochs = [made[:13], made[13:]]
    for examples in epochs:
        assert Counter(decoded(example)[:5] for example in examples) == Counter(f"{n:05d}" for n in range(13))
    lengths = [{example.id: list(map(len, example.contexts)) for example in examples} for examples in epochs]
    assert lengths[0] != lengths[1]
    assert batches.report()["epoch"] == 1


def test_a_document_is_cut_anew_in_each_epoch(tmp_path):
    batches = stream(write_files(tmp_path, [1], [300]), look_ahead=1)
    made = [batches.next()[0] for _ in range(5)]
    assert len({example.id for example in made}) == 1
    assert len({tuple(map(len, example.contexts)) for example in made}) == 5


def test_processes_share_an_epoch(tmp_path):
    write_files(tmp_path, [5, 8])
    made = [stream(tmp_path, rank, 3, batch_size=2) for rank in range(3)]
    shares = [[example.id for _ in range(2) for example in one.next()] for one in made]
    assert len(set(chain(*shares))) == 12


def test_a_small_corpus_does_not_meet_itself_in_a_batch(tmp_path):
    write_files(tmp_path, [5], [60, 100, 150])
    batches = stream(tmp_path, batch_size=4, look_ahead=64)
    for _ in range(20):
        assert len({example.id for example in batches.next()}) == 4


def test_like_lengths_meet(tmp_path):
    rng = Random(0)
    rows = [{"text": text(n, int(rng.lognormvariate(5.5, 0.8)) + 20)} for n in range(300)]
    write_rows(tmp_path / "a.jsonl", rows)
    shares = {}
    for look_ahead in (4, 64):
        batches = stream(tmp_path, batch_size=4, look_ahead=look_ahead)
        used = padded = 0
        for _ in range(60):
            batch = batches.next()
            steps = zip_longest(*[map(len, example.contexts) for example in batch], fillvalue=0)
            padded += 4 * (sum(map(max, steps)) + max(len(example.target) for example in batch))
            used += sum(len(decoded(example)) for example in batch)
        report = batches.report()
        assert (report["tokens"], report["padded"], report["documents"]) == (used, padded, 240)
        shares[look_ahead] = report["padding_share"]
        assert shares[look_ahead] == 1 - used / padded
    assert shares[64] < 0.12 and shares[64] < shares[4] / 2, shares


def test_batches_of_one_have_no_padding(tmp_path):
    batches = stream(write_files(tmp_path, [9], [60, 200]))
    batches.next()
    assert batches.report()["padding_share"] == 0 == stream(tmp_path).report()["padding_share"]


def window(lengths, epochs=None):
    epochs = epochs or [0] * len(lengths)
    return [
        Tokenized(str(i), Place(e, 0, i), np.zeros(n, np.int32))
        for i, (n, e) in enumerate(zip(lengths, epochs, strict=True))
    ]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 6))
def test_the_longest_waiting_document_goes_with_those_nearest_in_length(lengths, size):
    chosen = choose_batch(window(lengths), size)
    assert chosen == sorted(set(chosen)) and chosen[0] == 0 and len(chosen) == min(size, len(lengths))
    taken, low, high = [lengths[i] for i in chosen], min(lengths[i] for i in chosen), max(lengths[i] for i in chosen)
    between = [length for place, length in enumerate(lengths) if low < length < high and place not in chosen]
    assert between == [], f"{taken} are not neighbours"


def test_the_least_padding_is_chosen():
    assert choose_batch(window([10, 30, 11, 9, 31]), 3) == [0, 2, 3]
    assert choose_batch(window([20, 10, 22, 21, 40]), 3) == [0, 2, 3]
    assert choose_batch(window([20, 90, 21, 80], [0, 0, 1, 1]), 2) == [0, 1], "the epoch that is over goes first"
    assert choose_batch(window([20, 90, 85, 21], [0, 0, 1, 1]), 3) == [0, 1, 3]


def test_nothing_left_says_why(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": "abc"}, {"text": "0123456789"}, {"text": ""}, "{broken"])
    with pytest.raises(NoDocumentsError) as refused:
        stream(tmp_path).next()
    message = refused.value.message
    assert "2 shorter than data.min_chunk = 4 tokens" in message and "1 a single chunk" in message
    assert "1 that cannot be read" in message and "a.jsonl:4" in message
    assert refused.value.exit_code == 2 and "data.max_chunk" in refused.value.hint


def test_more_processes_than_documents(tmp_path):
    write_files(tmp_path, [2])
    assert stream(tmp_path, 1, 2).next()
    with pytest.raises(NoDocumentsError, match="process 2 of 3: fewer documents than processes"):
        for rank in range(3):
            stream(tmp_path, rank, 3, seed=0).next()


def test_the_held_out_are_not_trained_on_nor_are_their_copies(tmp_path):
    write_files(tmp_path, [20, 20], [60, 100, 8])
    texts = [text(n, (60, 100, 8)[n % 3]) for n in range(40)]
    write_rows(tmp_path / "z.jsonl", [{"text": t} for t in texts])
    batches = stream(tmp_path, eval_documents=6)
    held_out = batches.held_out.ids
    assert len(held_out) == 6
    usable = {document_id(t) for t in texts if len(t) > 16}
    trained = {batches.next()[0].id}
    rejected = batches.report()["rejected"]  # the window is as large as the epoch
    assert rejected["held out for evaluation (data.eval_documents)"] == 12
    trained |= {batches.next()[0].id for _ in range(4 * len(usable))}
    assert trained == usable - held_out
    assert batches.report()["held_out"] == 6


def test_pieces_of_long_documents(tmp_path):
    """Trained on piece by piece, resumed exactly; those of a held-out document are not trained on."""
    write_files(tmp_path, [9], [400])
    options = {"longest_document": 60, "eval_documents": 2, "batch_size": 3, "look_ahead": 9}
    batches = stream(tmp_path, **options)
    held_out = [text(n, 400)[:5] for n in range(9) if document_id(text(n, 400)) in batches.held_out.ids]
    assert len(held_out) == 2 and all(len(document.tokens) == 400 for document in batches.held_out.documents)
    seen = [decoded(example) for _ in range(4) for example in batches.next()]
    other = stream(tmp_path, **options)
    other.load_state_dict(saved(batches.state_dict()))
    assert [other.next() for _ in range(30)] == [batches.next() for _ in range(30)]
    seen += [decoded(example) for _ in range(40) for example in batches.next()]
    assert all(len(found) <= 60 for found in seen) and not any(found[:5] in held_out for found in seen)
    assert len({found[:5] for found in seen if found[:5].isdecimal()}) == 7
    with pytest.raises(UsageError, match="longest_document"):
        stream(tmp_path, **(options | {"longest_document": 70})).load_state_dict(saved(batches.state_dict()))


def test_the_first_by_key_are_held_out(tmp_path):
    write_files(tmp_path, [9, 9], [60, 8])
    keys = {sampling_key(identity, ORDER): identity for n in range(0, 18, 2) if (identity := document_id(text(n)))}
    found = [document.id for document in stream(tmp_path, eval_documents=4).held_out.documents]
    assert found == [keys[key] for key in sorted(keys)][:4]


def test_evaluation_is_the_same_for_all_runs(tmp_path):
    write_files(tmp_path, [40], [60, 100, 8, 250])
    one = stream(tmp_path, eval_documents=7, repeat_ratio=1.0)
    expected = {example.id: example for batch in one.evaluation() for example in batch}
    one.next()
    assert {example.id: example for batch in one.evaluation() for example in batch} == expected
    assert len(expected) == 7 and not any(example.repeat for example in expected.values())
    parts = [list(stream(tmp_path, rank, 2, seed=99, batch_size=3, eval_documents=7).evaluation()) for rank in range(2)]
    assert [[len(batch) for batch in part] for part in parts] == [[3, 1], [3]]
    assert {example.id: example for batch in chain(*parts) for example in batch} == expected


def test_more_held_out_than_there_are(tmp_path):
    write_files(tmp_path, [30], [60, 8])
    assert len(stream(tmp_path, eval_documents=15).held_out.documents) == 15
    with pytest.raises(UsageError, match=r"is 16, and there are 15 usable documents in all; 15 a single chunk"):
        stream(tmp_path, eval_documents=16)
    with pytest.raises(NoDocumentsError, match="15 held out"):
        stream(tmp_path, eval_documents=15).next()


def test_usable_documents_to_hold_out_are_looked_for_beyond_the_first_rows(tmp_path):
    write_files(tmp_path, [400, 400], [8])
    write_rows(tmp_path / "0.jsonl", [{"text": text(n, 8 if n < 390 else 60)} for n in range(400)])
    assert len(stream(tmp_path, eval_documents=3).held_out.documents) == 3


def test_a_position_of_something_else_is_refused(tmp_path):
    write_files(tmp_path / "a", [9])
    state = saved(stream(tmp_path / "a").state_dict())
    for other, says in (
        (stream(tmp_path / "a", 1, 2), "process 0 of 1, and this is 1 of 2"),
        (stream(tmp_path / "a", seed=8), "another seed"),
        (stream(tmp_path / "a", eval_documents=1), "another data.eval_documents"),
        (stream(write_files(tmp_path / "b", [9])), "other training text"),
    ):
        with pytest.raises(UsageError, match=says):
            other.load_state_dict(state)
    write_files(tmp_path / "a", [10])
    with pytest.raises(UsageError, match="has changed"):
        stream(tmp_path / "a").load_state_dict(state)


def test_what_is_made_ahead_comes_in_order_and_fails_in_time():
    made = iter(range(3))
    ahead = Prefetch(lambda: next(made))
    assert [ahead.next(), ahead.next(), ahead.next()] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            ahead.next()
    made = iter(range(5, 9))
    ahead.drop()
    assert ahead.next() == 5
