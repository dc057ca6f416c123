"""Endurance: the stream, the figures against slow references, and going on after everything that can end a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import StateError, UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.metrics import exact_match
from mplus_cli.evaluation.tasks import integrity_run, integrity_stream
from mplus_cli.evaluation.tasks.chronicle import Chronicle as ChronicleTask
from mplus_cli.evaluation.tasks.integrity import Integrity, Options, points
from mplus_cli.evaluation.tasks.integrity_measures import Moments, from_plain, measure, overall, to_plain
from mplus_cli.evaluation.tasks.integrity_plot import by_layer, relative, table
from mplus_cli.evaluation.tasks.integrity_stream import Endless, Place
from mplus_cli.evaluation.tasks.memory_anatomy import apart, effective_rank
from tests.evaluation.helpers import answers, evaluate
from tests.evaluation.tasks.helpers import is_png, results_of, system, task_settings
from tests.fixtures import book, byte_tokenizer, tiny_model

TASK = Integrity()
MODEL = tiny_model().prepare_for_inference("read", "write")
ROOT = Path(__file__).parents[3]
CHUNK = 200  # bytes: enough for some facts to stand in one


@pytest.fixture(autouse=True)
def short_books(monkeypatch):
    """So that a few dozen updates cross several books."""
    monkeypatch.setattr(integrity_stream, "BOOK_CHUNKS", 12)


def items(*options: str, **given) -> list[Item]:
    return list(
        TASK.items(task_settings(TASK, "updates=30", "start=5", "per_decade=2", "questions=4", *options, **given))
    )


def measured(folder: Path, made: list[Item], name: str = "mplus", tell=lambda part, words: None):
    asked = system(name, MODEL, f"chunk_size={CHUNK}")
    return {answer.sample_id: answer.extra for answer in TASK.measure_long(asked, made, folder, tell)}


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


def endless(seed: int = 1, texts: tuple[Document, ...] = ()) -> Endless:
    return Endless(seed, texts, byte_tokenizer(), CHUNK, 8)


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


# -- figures --


def test_moments_and_drift_are_those_of_numpy():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 20)) * np.linspace(1, 3, 20) + 2
    later = rng.normal(size=(280, 20)) * np.linspace(2, 1, 20) + 3
    one, two = (Moments.of(torch.tensor(x)) for x in (rows, later))
    assert np.allclose(one.mean, rows.mean(0)) and one.spread == pytest.approx(rows.var(0, ddof=1).sum())
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(rows.T)))[::-1]
    assert np.allclose(one.spectrum, eigenvalues / eigenvalues.sum())
    assert one.rank == pytest.approx(effective_rank(torch.tensor(rows)))
    assert from_plain(json.loads(json.dumps(to_plain([one, None])))) == [one, None]

    memory = model_with(torch.tensor(later, dtype=torch.float32))
    found = measure(memory, [one])[0]
    assert found["shift"] == pytest.approx(apart([(torch.tensor(rows), torch.tensor(later))]), abs=1e-5)
    a, b = rows.mean(0), later.mean(0)
    assert found["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert found["spectrum"] == pytest.approx(np.abs(np.array(one.spectrum) - two.spectrum).sum() / 2, abs=1e-5)
    norms = np.linalg.norm(later, axis=1)
    assert [found[k] for k in ("norm", "norm_spread", "norm_max")] == pytest.approx(
        [norms.mean(), norms.std(), norms.max()], rel=1e-5
    )
    assert found["not_finite"] == 0


class model_with:
    """A memory of one layer that holds these short-term tokens."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.num_layers, self.long_term, self.short_term = 1, [], self
        self.fill, self._rows = [len(rows)], rows

    def layer(self, layer: int) -> torch.Tensor:
        return self._rows[None]


def test_what_does_not_change_has_no_drift_and_what_is_elsewhere_has():
    rows = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)) + 1
    start = [Moments.of(rows)]
    same = measure(model_with(rows), start)[0]
    assert (same["cosine"], same["shift"], same["spectrum"]) == (1.0, 0.0, 0.0)
    flat = torch.zeros_like(rows)
    flat[:, 0] = torch.randn(400, generator=torch.Generator().manual_seed(1))
    moved = measure(model_with(flat - 5), start)[0]
    assert moved["cosine"] < 0 and moved["shift"] > 3 and moved["spectrum"] > 0.8 and moved["rank"] == pytest.approx(1)


def test_tokens_that_are_not_finite_are_counted_and_spoil_no_figure():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    start = [Moments.of(rows)]
    rows[3, 2], rows[7, 0] = float("nan"), float("inf")
    found = measure(model_with(rows), start)
    json.dumps(found, allow_nan=False)
    assert found[0]["not_finite"] == 2 and found[0]["shift"] is None and found[0]["norm"] > 0
    assert overall(found)["not_finite"] == 2 and overall(found)["shift"] is None


# -- a run --


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Everything asked, never interrupted: the items, the extras and where the memory is kept."""
    before, integrity_stream.BOOK_CHUNKS = integrity_stream.BOOK_CHUNKS, 12
    folder = tmp_path_factory.mktemp("whole")
    made = items("ask=both", "probe=5", limit=2)
    found = {"mplus": measured(folder / "mplus", made)}
    found["memoryllm"] = measured(folder / "memoryllm", made[:1], "memoryllm")
    integrity_stream.BOOK_CHUNKS = before
    return made, found, folder


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


# -- going on --


class Stop(Exception):
    pass


@pytest.mark.parametrize(("name", "stops"), [("mplus", (3, 9, 9, 20)), ("memoryllm", (7, 13, 29))], ids=str)
def test_a_run_that_was_ended_goes_on_to_the_same_figures(whole, tmp_path, monkeypatch, name, stops):
    """Ended without a word as by SIGKILL, wherever: what comes after is bit for bit what would have come."""
    monkeypatch.setattr(integrity_run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(integrity_run, "SAVE_SHARE", 1e9)
    monkeypatch.setattr(integrity_run, "TELL_SECONDS", 0.0)
    made, found, _ = whole
    done: dict[str, dict] = {}
    for stop in (*stops, None):

        def tell(part: float, words: str, stop=stop) -> None:
            if stop is not None and round(part * 30) >= stop:
                raise Stop

        left = [q for q in made[0].questions if f"{made[0].id}/{q.id}" not in done]
        item = Item(made[0].id, (), tuple(left), made[0].metadata)
        asked = system(name, MODEL, f"chunk_size={CHUNK}")
        try:
            for answer in TASK.measure_long(asked, [item], tmp_path, tell):
                done[answer.sample_id] = answer.extra
        except Stop:
            assert stop is not None
    assert done == {key: extra for key, extra in found[name].items() if key in done} and len(done) == len(
        made[0].questions
    )


PUBLISHED = {"eviction": "recall_frequency", "fill_rule": "tile", "merge_every": 3, "initial_recall_frequency": 3.0}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["memory_dtype=int8"], {}),
        (["short_term_size=16", "long_term_capacity=40"], {}),
        (["retriever_score=contrastive"], {"retriever_score": "mean_sigmoid"}),
        ([], PUBLISHED),
    ],
    ids=["coded values", "other sizes", "another score", "the published rule"],
)
def test_every_kind_of_memory_goes_on_exactly(tmp_path, monkeypatch, options, sizes):
    monkeypatch.setattr(integrity_run, "TELL_SECONDS", 0.0)
    model = tiny_model(**sizes).prepare_for_inference("read", "write")
    made = list(TASK.items(task_settings(TASK, "updates=20", "start=5", "per_decade=1", "questions=3", model=model)))

    def extras(folder: Path, questions, tell) -> dict:
        asked, found = system("mplus", model, f"chunk_size={CHUNK}", *options), {}
        with contextlib.suppress(KeyboardInterrupt):
            for answer in TASK.measure_long(asked, [replace(made[0], questions=questions)], folder, tell):
                found[answer.question] = answer.extra
        return found

    def stop_late(part: float, words: str) -> None:
        if round(part * 20) == 13:
            os.kill(os.getpid(), signal.SIGINT)

    whole = extras(tmp_path / "whole", made[0].questions, lambda part, words: None)
    found = extras(tmp_path / "ended", made[0].questions, stop_late)
    assert list(found) == ["u5"]
    writes: list[int] = []
    rest = extras(tmp_path / "ended", made[0].questions[1:], lambda part, words: writes.append(round(part * 20)))
    assert found | rest == whole and writes[0] > 13
    kept = [tmp_path / name / "memory" / "stream-0.pt" for name in ("ended", "whole")]
    with MemoryState.open(kept[0]) as one, MemoryState.open(kept[1]) as other:
        assert one.digest() == other.digest() and one.created_total == 160


def test_ctrl_c_saves_and_goes_on_from_there(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(integrity_run, "TELL_SECONDS", 0.0)
    made, found, _ = whole
    writes: list[int] = []

    def tell(part: float, words: str) -> None:
        writes.append(round(part * 30))
        if len(writes) == 17:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, made[:1], tell=tell)
    with MemoryState.open(tmp_path / "memory" / "stream-0.pt") as state:
        assert state.job["updates"] == writes[-1] < 30
    writes.clear()
    left = Item(made[0].id, (), made[0].questions[-1:], made[0].metadata)
    monkeypatch.setattr(os, "kill", None)
    assert measured(tmp_path, [left], tell=lambda part, words: writes.append(round(part * 30))) == {
        "stream-0/u30": found["mplus"]["stream-0/u30"]
    }
    assert writes[0] > 17


def test_a_point_that_is_missing_from_before_is_made_again_from_the_beginning(whole):
    made, found, folder = whole
    one = Item(made[0].id, (), made[0].questions[1:2], made[0].metadata)
    again = measured(folder / "mplus", [one])
    assert again == {f"stream-0/{made[0].questions[1].id}": found["mplus"][f"stream-0/{made[0].questions[1].id}"]}


def test_a_damaged_memory_is_named_and_nothing_is_lost_silently(whole, tmp_path):
    made, _, folder = whole
    kept = tmp_path / "memory" / "stream-0.pt"
    kept.parent.mkdir()
    data = bytearray((folder / "memoryllm" / "memory" / "stream-0.pt").read_bytes())
    data[len(data) // 2] ^= 255
    kept.write_bytes(data[: len(data) - 100])
    with pytest.raises(StateError) as caught:
        measured(tmp_path, made[:1], "memoryllm")
    assert "to begin stream-0 again" in str(caught.value.hint) and str(kept) in str(caught.value.hint)


# -- the command --

KILLED = """
import sys
from mplus_cli.evaluation.tasks import integrity_run, integrity_stream
integrity_stream.BOOK_CHUNKS = 12
integrity_run.SAVE_SECONDS = 0.2
integrity_run.SAVE_SHARE = 1.0
from mplus_cli.cli import main
main()
"""


def test_the_default_model_is_killed_and_resumed(tmp_path):
    """End to end, with the bundled model: SIGKILL in the middle, --resume, the same as an untroubled run."""
    model, task = (
        ROOT / "assets" / "default",
        "integrity:updates=160,start=40,per_decade=3,questions=4,probe=3,ask=both",
    )
    command = ["eval", task, "-s", "mplus", "-m", str(model), "--out", str(tmp_path / "out"), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, "-c", KILLED, *command], env=environment, stderr=subprocess.PIPE)
    folder = tmp_path / "out" / task.replace(":", "-") / "mplus"
    end = time.monotonic() + 120
    while not (_lines(folder) and (folder / "memory" / "stream-0.pt").is_file()):
        assert running.poll() is None and time.monotonic() < end, running.communicate()
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    with MemoryState.open(folder / "memory" / "stream-0.pt") as state:
        assert 0 < state.job["updates"] < 160
    before = _lines(folder)
    resumed = evaluate(tmp_path / "out", model, task, systems=("mplus",), batch=None, resume=True)
    untroubled = evaluate(tmp_path / "whole", model, task, systems=("mplus",), batch=None)
    one, other = answers(resumed[0]), answers(untroubled[0])
    assert one == other and len(one) == 3 > before
    last = one["stream-0/u160"]["extra"]
    assert last["newest_asked"] >= 2 and last["fixed_asked"] == 4 and last["long_term"] == 160 * 48 - 384


def _lines(folder: Path) -> int:
    path = folder / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


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
