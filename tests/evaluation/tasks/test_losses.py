"""Perplexity and loss by position: equal to slow references, whatever is batched, cached or cut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import pytest
import torch

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.loss_texts import GENERATED, find_texts, passages, text_ids
from mplus_cli.evaluation.losses import TextReader, memory_losses
from mplus_cli.evaluation.system import memory_seed
from mplus_cli.evaluation.tasks.longdoc_loss import LongdocLoss, middle
from mplus_cli.evaluation.tasks.perplexity import Perplexity
from tests.evaluation.tasks.helpers import is_png, results_of, system, task_settings
from tests.fixtures import book, byte_tokenizer, tiny_model

MODEL = tiny_model()
SHORT, LONG = Perplexity(), LongdocLoss()


def ids_of(count: int, seed: int) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(3, 259) for _ in range(count)]


def filled(seeds=(1, 2), model=MODEL, config=None):
    """A memory of one row per seed, long-term memory in use, of different text."""
    memory = model.new_memory(len(seeds), list(seeds), config=config)
    for write in range(9):
        model.inject(torch.tensor([ids_of(64, 100 * seed + write) for seed in seeds]), memory)
    return memory


def slow(model, text, memory=None, first=1) -> list[float]:
    """Each token by itself: the whole text before it is read anew, and its probability looked up."""
    found = []
    with torch.inference_mode():
        for place in range(first, len(text)):
            logits = model(torch.tensor([text[:place]]), memory=memory).logits[0, -1].double()
            found.append(float(logits.logsumexp(0) - logits[text[place]]))
    return found


def measured(task, name, made, *options, model=MODEL):
    return {answer.sample_id: answer.extra for answer in task.measure(system(name, model, *options), made)}


def losses_of(extras):
    return {key: extra["nll"] for key, extra in extras.items()}


def same(found, expected):
    return found == pytest.approx(expected, rel=1e-4, abs=1e-5)


# -- losses behind a memory --


def test_losses_are_those_of_reading_token_by_token():
    memory, text = filled((1,), config=MODEL.config.varied(long_term_capacity=0)), ids_of(12, 5)
    assert same(memory_losses(MODEL, memory, [text], 0)[0].tolist(), slow(MODEL, text, memory))
    assert same(memory_losses(MODEL, None, [text], 0)[0].tolist(), slow(MODEL, text))
    assert not same(slow(MODEL, text, memory), slow(MODEL, text))


@pytest.mark.parametrize("lead", [0, 1, 4])
def test_rows_of_a_batch_are_as_alone(lead):
    texts = [ids_of(20, 6), ids_of(9, 7)]
    together = memory_losses(MODEL, filled(), texts, lead)
    for row, (seed, text) in enumerate(zip((1, 2), texts, strict=True)):
        alone = memory_losses(MODEL, filled((seed,)), [text], lead)[0]
        assert len(alone) == len(text) - max(1, lead) and same(together[row].tolist(), alone.tolist())


def test_with_a_lead_no_loss_knows_the_text_after_it():
    text = ids_of(24, 8)
    other = text[:16] + ids_of(8, 9)
    memory = filled((1,))
    for lead, independent in ((6, True), (0, False)):
        first, second = (memory_losses(MODEL, memory, [one], lead)[0][: 16 - max(1, lead)] for one in (text, other))
        assert same(first.tolist(), second.tolist()) is independent  # without one, the whole text searches


def test_a_lead_is_counted_off_and_changes_nothing_without_a_search():
    memory, text = filled((1,), config=MODEL.config.varied(long_term_capacity=0)), ids_of(12, 5)
    assert same(memory_losses(MODEL, memory, [text], 5)[0].tolist(), slow(MODEL, text, memory, first=5))


def test_measuring_leaves_memory_as_it_is():
    memory = filled((1,))
    before = memory.short_term.values.clone(), memory.created_total[0], len(memory.long_term[0])
    memory_losses(MODEL, memory.rows([0]), [ids_of(20, 3)], 0)
    assert torch.equal(memory.short_term.values, before[0])
    assert (memory.created_total[0], len(memory.long_term[0])) == before[1:]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UsageError, match="none after the first 3"):
        memory_losses(MODEL, None, [ids_of(9, 1), ids_of(3, 1)], 3)
    with pytest.raises(UsageError, match="behind a memory of"):
        memory_losses(MODEL, filled((1,)), [ids_of(MODEL.config.text_config.max_position_embeddings - 20, 1)], 0)


# -- losses of text --


def test_a_text_that_grows_is_read_as_if_anew():
    window = system("window", MODEL)
    text, model = ids_of(60, 11), window.base.model
    reader = TextReader(window.base, 40)
    for end, count in ((10, 9), (20, 9), (34, 13), (30, 5), (50, 9), (60, 20), (16, 3)):
        own = window.base.start + text[:end][-reader.room :]
        with torch.inference_mode():
            logits = model(torch.tensor([own])).logits[0].double().log_softmax(-1)
        expected = [-float(logits[place - 1, own[place]]) for place in range(len(own) - count, len(own))]
        assert same(reader.losses(text[:end], count).tolist(), expected)


def test_more_than_a_window_is_refused():
    reader = TextReader(system("window", MODEL).base, 20)
    with pytest.raises(UsageError, match="do not fit the window"):
        reader.losses(ids_of(60, 1), 30)


# -- perplexity --


@pytest.fixture(scope="module")
def short_items():
    return list(SHORT.items(task_settings(SHORT, "writes=8", "shortest=8", length=40, limit=3)))


@pytest.mark.parametrize("name", ["mplus", "memoryllm", "random", "mplus-attn"])
def test_short_texts_do_not_depend_on_order_or_batch(short_items, name):
    together = losses_of(measured(SHORT, name, short_items))
    alone = losses_of({k: v for item in short_items[::-1] for k, v in measured(SHORT, name, [item]).items()})
    assert len(together) == 6 and same(alone, together)
    for item in short_items:
        assert together[f"{item.id}/empty"] != pytest.approx(together[f"{item.id}/unrelated"], rel=1e-3)


def test_short_texts_by_hand(short_items):
    item = short_items[1]
    text = text_ids(byte_tokenizer(), item.questions[0].prompt)
    found = measured(SHORT, "memoryllm", short_items)
    assert found[f"{item.id}/empty"]["nll"] == pytest.approx(sum(slow(MODEL, text)) / 39, rel=1e-4)
    memory = MODEL.new_memory(1, memory_seed(3, item.id), config=MODEL.config.varied(long_term_capacity=0))
    told = text_ids(byte_tokenizer(), item.documents[0].text)
    for first in range(0, len(told), 64):
        MODEL.inject(torch.tensor([told[first : first + 64]]), memory)
    assert found[f"{item.id}/unrelated"]["nll"] == pytest.approx(sum(slow(MODEL, text, memory)) / 39, rel=1e-4)


def test_the_base_model_reads_the_text_alone_or_behind_the_other(short_items):
    alone, behind = (measured(SHORT, name, short_items) for name in ("closed-book", "window"))
    for item in short_items:
        assert alone[f"{item.id}/empty"] == alone[f"{item.id}/unrelated"]
        assert behind[f"{item.id}/empty"]["nll"] == pytest.approx(alone[f"{item.id}/empty"]["nll"], rel=1e-4)
        assert behind[f"{item.id}/unrelated"]["nll"] != pytest.approx(alone[f"{item.id}/empty"]["nll"], rel=1e-3)


def test_bits_are_per_byte_of_what_is_counted():
    text = "é" * 5  # a token per byte, and two bytes each
    item = Item("a", (Document("x"),), (Question("empty", text, (), 0),), {"lead": 0})
    found = measured(SHORT, "mplus", [item])["a/empty"]
    assert found["tokens"] == 9 and found["bytes"] in (9, 10)  # the first counted byte is in the first letter
    assert found["bits_per_byte"] == pytest.approx(found["nll"] * 9 / math.log(2) / found["bytes"])


def test_perplexity_is_e_to_the_mean_loss(short_items, tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = results_of(SHORT, short_items, measured(SHORT, "mplus", short_items), "mplus", MODEL.config)
    for scores in (found.results["scores"], *(group["scores"] for group in found.results["groups"])):
        for key in ("mean", "low", "high"):
            assert scores["perplexity"][key] == pytest.approx(math.exp(scores["nll"][key]))
    assert all(is_png(path) for path in SHORT.plot([found], tmp_path))


# -- loss by position --


@pytest.fixture(scope="module")
def long_items():
    return list(LONG.items(task_settings(LONG, "blocks=3", length=64 * 9, limit=2)))


def test_every_chunk_is_measured_behind_those_before_it_and_then_written(long_items):
    item = long_items[0]
    chunks = [text_ids(byte_tokenizer(), document.text) for document in item.documents]
    assert len(chunks) == 9 == len(item.questions) and {len(chunk) for chunk in chunks} == {64}
    found, memory = measured(LONG, "mplus", long_items), MODEL.new_memory(1, memory_seed(3, item.id))
    for place, chunk in enumerate(chunks):
        with torch.inference_mode():
            logits = MODEL(torch.tensor([chunk]), memory=memory if place else None).logits[0].double().log_softmax(-1)
        expected = -sum(float(logits[at - 1, chunk[at]]) for at in range(1, 64)) / 63
        assert found[f"{item.id}/chunk-{place}"]["nll"] == pytest.approx(expected, rel=1e-4)
        assert found[f"{item.id}/chunk-{place}"]["writes"] == place
        MODEL.inject(torch.tensor([chunk]), memory)


def test_with_and_without_long_term_memory_part_when_something_is_dropped(long_items):
    with_it, without = (losses_of(measured(LONG, name, long_items)) for name in ("mplus", "memoryllm"))
    for place in range(9):
        equal = with_it[f"text-0/chunk-{place}"] == pytest.approx(without[f"text-0/chunk-{place}"], rel=1e-5)
        assert equal is (place <= 4)  # four writes fill short-term memory


@pytest.mark.parametrize("name", ["mplus", "window", "closed-book"])
def test_places_do_not_depend_on_what_else_is_measured(long_items, name):
    together = losses_of(measured(LONG, name, long_items, *(["size=300"] if name == "window" else [])))
    some = [Item(i.id, i.documents, i.questions[7:1:-2], i.metadata) for i in long_items[::-1]]
    part = losses_of(measured(LONG, name, some, *(["size=300"] if name == "window" else [])))
    assert len(part) == 6 and same(part, {key: together[key] for key in part})


def test_systems_count_the_same_tokens(long_items):
    names = ("mplus", "memoryllm", "window", "full", "closed-book")
    counts = [{k: (e["tokens"], e["bytes"]) for k, e in measured(LONG, n, long_items[:1]).items()} for n in names]
    assert all(each == counts[0] for each in counts) and set(counts[0].values()) == {(63, 63)}


def test_several_chunks_ahead():
    made = list(LONG.items(task_settings(LONG, "ahead=3", "lead=10", length=64 * 6, limit=1)))
    assert [question.after for question in made[0].questions] == [0, 1, 2, 3]
    for name in ("mplus", "window"):
        assert {extra["tokens"] for extra in measured(LONG, name, made).values()} == {3 * 64 - 10}


def test_blocks_part_the_places_evenly():
    assert [middle(place, 6, 3, 10) for place in range(6)] == [5, 5, 25, 25, 45, 45]
    assert [middle(place, 3, 8, 10) for place in range(3)] == [0, 10, 20]


def test_the_curve_is_drawn_and_grouped_by_block(long_items, tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = results_of(LONG, long_items, measured(LONG, "mplus", long_items), "mplus", MODEL.config)
    assert [group["by"]["block"] for group in found.results["groups"]] == [64, 256, 448]
    assert all(is_png(path) for path in LONG.plot([found], tmp_path))


@pytest.mark.parametrize("task", [SHORT, LONG])
def test_systems_that_pick_from_a_text_are_refused(task):
    for name, options in (("bm25", ()), ("window", ("cut=middle",))):
        with pytest.raises(UsageError, match=task.name):
            task.check(system(name, MODEL, *options))


def test_settings_that_leave_nothing_are_refused():
    for task, options, length in ((LONG, (), 64), (LONG, ("lead=63",), 640), (SHORT, ("lead=40",), 40)):
        with pytest.raises(UsageError):
            next(task.items(task_settings(task, *options, length=length)))
    with pytest.raises(UsageError, match="positions of the model"):
        next(SHORT.items(task_settings(SHORT, length=1 << 20)))


# -- texts --


def test_generated_texts_say_so_and_differ(short_items):
    assert {item.metadata["text"] for item in short_items} == {GENERATED}
    assert len({item.metadata["document"] for item in short_items}) == 3
    assert len({item.documents[0].text for item in short_items}) == 3
    for item in short_items:
        assert item.questions[0].prompt not in item.documents[0].text
    fewer = list(SHORT.items(task_settings(SHORT, "writes=8", "shortest=8", length=40, limit=1)))
    assert fewer == short_items[:1]


def test_passages_of_rows_and_of_texts(tmp_path: Path):
    rows = [book(6), "too short", book(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text(book(8))

    def found(file, limit=50, shortest=None):
        made = task_settings(SHORT, data=tmp_path, limit=limit)
        return list(passages(made, file, "text", 100, 1, shortest))

    of_rows = found("rows.jsonl")
    assert [one.document for one in of_rows[:4]] == ["row 0", "row 2", "row 0", "row 0"]
    assert "".join(one.pieces[0] for one in of_rows if one.document == "row 0") == rows[0][: 100 * (len(of_rows) - 1)]
    assert found("rows.jsonl", shortest=5)[1].pieces == ("too short",)
    assert found("rows.jsonl", limit=2) == of_rows[:2]
    of_books = found(None)
    assert (
        "".join(one.pieces[0] for one in of_books) == book(8)[: 100 * len(of_books)] and of_books[0].text == "one.txt"
    )
    assert find_texts(tmp_path / "rows.jsonl", None) == [tmp_path / "rows.jsonl"]
    with pytest.raises(UsageError, match="no file nowhere.txt"):
        found("nowhere.txt")
    with pytest.raises(UsageError, match="has 1,000,000 tokens"):
        list(passages(task_settings(SHORT, data=tmp_path), None, "text", 1_000_000, 1))


def test_memory_can_hold_a_given_text(tmp_path: Path):
    other = tmp_path / "other.txt"
    other.write_text(book(9))
    made = list(SHORT.items(task_settings(SHORT, f"unrelated={other}", "writes=2", length=40, limit=2)))
    assert all(len(item.documents[0].text) == 128 and item.documents[0].text in book(9) for item in made)
    assert made[0].documents != made[1].documents and made[0].metadata["unrelated_text"] == "other.txt"
    with pytest.raises(UsageError, match="are to be written"):
        list(SHORT.items(task_settings(SHORT, f"unrelated={other}", "writes=900", length=40, limit=1)))
