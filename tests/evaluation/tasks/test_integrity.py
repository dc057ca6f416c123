"""Endurance: the points of measurement, the stream of text, and runs against a plain loop."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch

from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.metrics import exact_match
from mplus_cli.evaluation.tasks import integrity_run
from mplus_cli.evaluation.tasks.chronicle import Chronicle as ChronicleTask
from mplus_cli.evaluation.tasks.integrity import Options, points
from mplus_cli.evaluation.tasks.integrity_plot import by_layer, relative, table
from mplus_cli.evaluation.tasks.integrity_stream import Place
from mplus_cli.evaluation.tasks.memory_anatomy import apart
from tests.evaluation.tasks.helpers import is_png, results_of, system, task_settings
from tests.evaluation.tasks.integrity_runs import CHUNK, MODEL, TASK, endless, items, measured
from tests.fixtures import book, byte_tokenizer

pytestmark = pytest.mark.usefixtures("short_books")


# -- points of measurement --


def test_points_are_as_many_per_decade_and_begin_when_memory_is_renewed():
    assert points(Options(), DropRule(48, 384))[:3] == [43, 63, 100]
    assert points(Options(), DropRule(48, 384))[-6:] == [10_000, 16_000, 25_000, 40_000, 63_000, 100_000]
    assert points(Options(updates=650_000, per_decade=1), DropRule(256, 10_240)) == [222, 650, 6_500, 65_000, 650_000]
    assert points(Options(updates=10), DropRule(48, 384)) == [10]
    assert points(Options(updates=1_000, every=300, start=300), DropRule(48, 384)) == [300, 600, 900, 1_000]
    rule = DropRule(48, 384)
    assert rule.survival(43 - 8) <= 0.01 < rule.survival(42 - 8)


def test_points_ascend_whatever_the_options():
    for updates in (1, 2, 9, 77, 5_000, 650_000):
        for options in (
            Options(updates),
            Options(updates, per_decade=50),
            Options(updates, every=7),
            Options(updates, start=1),
        ):
            found = points(options, DropRule(8, 32))
            assert found == sorted(set(found)) and found[-1] == updates and found[0] >= 1


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (["start=50", "updates=40"], {}, "start=50 comes after all 40 updates"),
        (["file=missing.txt"], {}, "no file missing.txt"),
        ([], {"length": 6_400}, "counts updates, not tokens"),
    ],
)
def test_bad_settings_are_one_message(options, given, message):
    with pytest.raises(UsageError, match=message):
        list(TASK.items(task_settings(TASK, *options, **given)))


def test_texts_without_questions_can_only_be_asked_about_a_probe(tmp_path):
    (tmp_path / "book.txt").write_text(book(), encoding="utf-8")
    with pytest.raises(UsageError, match="your texts come without questions"):
        items("ask=both", data=tmp_path)
    assert items(data=tmp_path)[0].metadata["ask"] == "fixed" and items()[0].metadata["ask"] == "newest"
    (tmp_path / "book.txt").write_text("short", encoding="utf-8")
    with pytest.raises(UsageError, match="no text of 8 tokens"):
        items(data=tmp_path)


def test_systems_without_memory_are_refused():
    with pytest.raises(UsageError, match="closed-book has none"):
        TASK.check(system("closed-book", MODEL))


# -- the stream --


@pytest.mark.parametrize(
    "texts", [(), (Document("one " * 130), Document("tiny"), Document("two " * 90))], ids=["chronicles", "texts"]
)
def test_a_stream_goes_on_from_any_place(texts):
    whole = [(book.chunks[place.chunk], place) for book, place in islice(endless(texts=texts).walk(Place()), 40)]
    for after in (1, 11, 12, 25, 39):
        place = whole[after][1]
        rest = [(book.chunks[at.chunk], at) for book, at in islice(endless(texts=texts).walk(place), 40 - after)]
        assert rest == whole[after:]
        before = whole[after - 1][1]  # as a run keeps it: after the last chunk of a book
        ((first, at),) = [
            (b.chunks[p.chunk], p)
            for b, p in islice(endless(texts=texts).walk(Place(before.book, before.chunk + 1)), 1)
        ]
        assert (first, at) == whole[after]


def test_chronicles_are_never_the_same_and_tell_their_answers():
    seen, asked, tokenizer = set(), 0, byte_tokenizer()
    for found, place in islice(endless().walk(Place()), 36):
        text = tokenizer.decode(found.chunks[place.chunk])
        assert text not in seen
        seen.add(text)
        if question := found.question(place.chunk):
            asked += 1
            assert question.reference in text and question.prompt.startswith("Question: ")
            assert question == found.question(place.chunk)
    assert asked > 12
    assert endless(2).book(0).chunks != endless(1).book(0).chunks != endless(1).book(1).chunks


def test_texts_begin_again_after_the_last_and_short_ones_are_left_out():
    texts = (Document("a" * 500), Document("short"), Document("b" * 300))
    walked = [(place.book, bytes(i - 3 for i in found.chunks[place.chunk])[:1], endless(1, texts).passes(place))
              for found, place in islice(endless(1, texts).walk(Place()), 10)]  # fmt: skip
    assert [number for number, _, _ in walked] == [0, 0, 0, 2, 2, 3, 3, 3, 5, 5]
    assert [passes for _, _, passes in walked] == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]


# -- a run --


def test_a_run_is_what_a_plain_loop_gives(whole):
    """Injected one by one, looked at with numpy, and asked by the system itself."""
    made, found, _ = whole
    for name in ("mplus", "memoryllm"):
        asked = system(name, MODEL, f"chunk_size={CHUNK}")
        memory = asked.new_memory([made[0]])
        stream = endless(made[0].metadata["seed"])
        start, documents, questions = None, [], []
        for update, (told, place) in enumerate(islice(stream.walk(Place()), 30), 1):
            MODEL.inject(torch.tensor([told.chunks[place.chunk]]), memory)
            documents.append(Document(byte_tokenizer().decode(told.chunks[place.chunk])))
            if one := told.question(place.chunk):
                questions.append(Question(f"q{update}", one.prompt, (one.reference,), update, 16))
            if update == 5:
                start = memory.short_term.ordered(0)[0]
            if f"stream-0/u{update}" in found[name]:
                layers = found[name][f"stream-0/u{update}"]["layers"]
                now = memory.short_term.ordered(0)[0]
                for layer, record in enumerate(layers):
                    assert record["norm"] == pytest.approx(float(now[layer].norm(dim=1).mean()), rel=1e-5)
                    assert record["norm_max"] == pytest.approx(float(now[layer].norm(dim=1).max()), rel=1e-5)
                    expected = apart([(start[layer].double(), now[layer].double())])
                    assert record["shift"] == pytest.approx(expected, abs=1e-4)
                assert found[name][f"stream-0/u{update}"]["short_term"] == memory.short_term.fill[0]
        extra = found[name]["stream-0/u30"]
        newest = [one for one in questions if one.after > 26]
        item = Item(made[0].id, tuple(documents), tuple(newest))
        texts = {one.question: one.text for one in asked.answer(ChronicleTask(), [item])}
        given = extra["newest_answers"]
        assert [(one["write"], one["prompt"]) for one in given] == [(one.after, one.prompt) for one in newest]
        assert [one["text"] for one in given] == [texts[one.id] for one in newest]
        right = sum(exact_match({"text": texts[one.id]}, one.references) for one in newest)
        assert extra["newest_right"] == right and extra["newest_asked"] == len(newest) > 0


def test_fixed_questions_are_asked_of_a_copy(whole):
    """As if the stream went on with the probe text; and the stream itself is as without it."""
    made, found, folder = whole
    asked = system("mplus", MODEL, f"chunk_size={CHUNK}")
    memory = asked.new_memory([made[0]])
    run = integrity_run.Run(TASK, asked, made[0], folder / "nowhere", lambda part, words: None)
    for told, place in islice(endless(made[0].metadata["seed"]).walk(Place()), 30):
        MODEL.inject(torch.tensor([told.chunks[place.chunk]]), memory)
    with MemoryState.open(folder / "mplus" / "memory" / "stream-0.pt") as state:
        kept = state.load_memory(MODEL)
    for one, other in zip(kept.short_term.ordered(0), memory.short_term.ordered(0), strict=True):
        assert torch.equal(one, other)
    for ids in run.probe.chunks:
        MODEL.inject(torch.tensor([ids]), memory)
    facts = {(one.prompt, one.chunk + 1) for one in run.probe.facts}
    given = found["mplus"]["stream-0/u30"]["fixed_answers"]
    assert 0 < len(given) <= 4 and {(one["prompt"], one["write"]) for one in given} <= facts
    stand = integrity_run.Stand(0, made[0], [], 0, [], 0, 0, 0.0)
    for one in given:
        question = Question("q", one["prompt"], (one["reference"],), 0, 16)
        assert asked.ask(ChronicleTask(), asked.view(memory.rows([0])), [stand], [question])[0].text == one["text"]
    other = found["mplus"]["stream-0/u5"]["fixed_answers"]
    assert [one["prompt"] for one in other] == [one["prompt"] for one in given]


def test_long_term_memory_stays_within_its_capacity(whole):
    made, found, _ = whole
    held = [extra["long_term"] for extra in found["mplus"].values()]
    assert max(held) == MODEL.config.long_term_capacity == held[-1]
    assert all(extra["long_term"] == 0 and "long_norm" not in extra for extra in found["memoryllm"].values())


def test_every_point_is_answered_with_plain_json(whole):
    made, found, _ = whole
    for name, extras in found.items():
        here = made if name == "mplus" else made[:1]
        assert list(extras) == [f"{item.id}/{question.id}" for item in here for question in item.questions]
        for extra in extras.values():
            json.dumps(extra, allow_nan=False)
            assert extra["not_finite"] == 0 and len(extra["layers"]) == 3
            for key, metric in TASK.metrics.items():
                assert metric({"extra": extra}, ()) is not None or (name, key) == ("memoryllm", "long_norm")
    first = found["mplus"]["stream-0/u5"]
    assert (first["cosine"], first["shift"], first["spectrum"]) == (1.0, 0.0, 0.0)


def test_memories_do_not_depend_on_what_is_measured_with_them(whole, tmp_path):
    made, found, _ = whole
    alone = measured(tmp_path, made[1:])
    assert alone == {key: extra for key, extra in found["mplus"].items() if key.startswith("stream-1")}


def test_progress_goes_by_updates(tmp_path, model_folder, monkeypatch):
    from mplus_cli.evaluation.request import Request
    from mplus_cli.evaluation.running import run

    monkeypatch.setattr(integrity_run, "TELL_SECONDS", 0.0)
    shown: list[tuple[float, int, str]] = []
    task = "integrity:updates=20,start=4,every=8,questions=2"
    request = Request(tmp_path / "out", (task,), ("mplus", "memoryllm"), model=str(model_folder), limit=2)
    run(request, lambda *seen: shown.append(seen), [].append)
    parts = [done / total for done, total, _ in shown]
    assert parts == sorted(parts) and parts[0] < 0.1 and parts[-1] > 0.95
    assert "5 of 20 updates, " in " ".join(what for _, _, what in shown)


def test_texts_of_the_user_are_read_over_and_over(tmp_path):
    (tmp_path / "book.txt").write_text(book(20), encoding="utf-8")
    made = items("probe=3", data=tmp_path)
    found = measured(tmp_path / "out", made)
    assert found["stream-0/u30"]["passes"] > 1 and found["stream-0/u30"]["fixed_asked"] > 0
    assert made[0].metadata["text"] == "book.txt" and found["stream-0/u30"]["newest_asked"] == 0
    assert found["stream-0/u30"]["accuracy"] == found["stream-0/u30"]["fixed"]


def test_the_picture_and_its_numbers(whole, tmp_path):
    pytest.importorskip("matplotlib")
    made, found, _ = whole
    results = [results_of(TASK, made, found["mplus"], "mplus", MODEL.config)]
    results.append(results_of(TASK, made[:1], found["memoryllm"], "memoryllm", MODEL.config))
    paths = TASK.plot(results, tmp_path)
    assert [path.name for path in paths] == ["integrity.png"] and is_png(paths[0])
    rows = json.loads((tmp_path / "integrity.json").read_text())["mplus"]
    assert rows == json.loads(json.dumps(table(results[0])))
    assert [row["updates"] for row in rows] == [question.metadata["updates"] for question in made[0].questions]
    last = rows[-1]
    asked = [found["mplus"][f"stream-{n}/u30"] for n in range(2)]
    assert last["newest"]["right"] == sum(one["newest_right"] for one in asked) and last["memories"] == 2
    assert last["newest"]["accuracy"][1] <= last["newest"]["accuracy"][0] <= last["newest"]["accuracy"][2]
    assert relative(rows, "norm")[0].mean == 1.0 and by_layer(rows, "shift")[0].mean == 0.0
    mean = np.mean([layer["norm"] for one in asked for layer in one["layers"][:1]])
    assert last["layers"][0]["norm"] == pytest.approx(mean, abs=1e-5)
