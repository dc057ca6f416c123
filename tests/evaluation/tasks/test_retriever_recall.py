"""`retriever-recall`: counts against memory itself, chance, and the tokens that hold a fact."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.request import Request
from mplus_cli.evaluation.running import run
from mplus_cli.evaluation.tasks.retriever_recall import RetrieverRecall, by_layer
from mplus_cli.evaluation.tasks.told_tokens import SHARE, attribution, fact_tokens, gather
from mplus_cli.inference.locate import bundled_model
from tests.evaluation.tasks.helpers import is_png, results_of, system, task_settings
from tests.fixtures import byte_tokenizer, tiny_model

TASK = RetrieverRecall()
CHRONICLE = ("of=chronicle", "chronicle.distances=[1, 6, 12]", "chronicle.times=1", "chronicle.questions=2")


def story(number: int, writes: int = 14, facts: bool = True) -> Item:
    """A fact, then other pieces; asked at once and at the end."""
    texts = [f"The key of house {number} lies under stone {number * 7}."]
    texts += [f"Piece {n} of story {number} tells nothing of any use." for n in range(writes - 1)]
    questions = tuple(
        Question(f"w{after}", f"Question: Where is key {number}? Answer:", ("under a stone",), after,
                 metadata={"told": [0], "distance": after - 1})
        for after in (1, 6, writes)
    )  # fmt: skip
    return Item(f"story-{number}", tuple(map(Document, texts)), questions, {"facts": facts})


def measure(name: str, model: Any, items: list[Item]) -> dict[str, dict[str, Any]]:
    return {answer.sample_id: answer.extra for answer in TASK.measure(system(name, model), items)}


def test_counts_are_those_of_memory_itself(model):
    """Against a slow count: the memory built again by hand, token by token."""
    asking, (item,) = system("mplus", model), [story(3)]
    found = measure("mplus", model, [item])["story-3/w14"]
    walk = asking.walk([item])
    for _ in walk.stands():
        pass
    memory, (span,) = walk.memory, [(0, 8)]
    ids = torch.tensor([encode(byte_tokenizer(), item.questions[0].prompt)])
    model(input_ids=ids, memory=memory)
    for layer, counts in enumerate(found["layers"]):
        store = memory.long_term[0].layers[layer]
        in_store = [index for index in store.all_created().tolist() if span[0] <= index < span[1]]
        seen = set(memory.last_retrieval[layer][0].created.tolist())
        assert counts["held"] == len(in_store)
        assert counts["short_term"] == sum(0 <= index < 8 for index in memory.short_term.created[0, layer].tolist())
        assert counts["found"] == len(seen & set(in_store))
        assert counts["by_chance"] == pytest.approx(len(in_store) * 16 / len(store))
        assert counts["fact_found"] <= counts["fact_held"] <= counts["held"]
    assert found["recall"] == sum(c["found"] for c in found["layers"]) / sum(c["held"] for c in found["layers"])
    assert found["lift"] == pytest.approx(found["recall"] / found["chance"])


def test_nothing_is_in_long_term_memory_at_first_and_everything_is_somewhere(model):
    found = measure("mplus", model, [story(1), story(2)])
    for number in (1, 2):
        first, last = found[f"story-{number}/w1"], found[f"story-{number}/w14"]
        assert (first["recall"], first["chance"], first["in_short_term"]) == (None, None, 1.0)
        assert last["written"] == 3 * 8 and last["lost"] == 0
        held = sum(counts["held"] + counts["short_term"] for counts in last["layers"])
        assert held == last["written"]


def test_what_fell_out_of_long_term_memory_is_counted_as_lost():
    small = tiny_model(long_term_capacity=24)
    found = measure("mplus", small, [story(1, writes=30)])["story-1/w30"]
    assert found["lost"] > 0.5 and found["lost"] + found["in_short_term"] <= 1
    assert found["fact_recall"] is None  # what is lost cannot be asked what it held


def test_retrieving_everything_is_recall_one_and_so_is_chance():
    found = measure("mplus", tiny_model(retrieval_budget=80), [story(1)])["story-1/w14"]
    assert found["recall"] == found["chance"] == found["fact_recall"] == 1


def test_random_retrieval_is_at_chance(model):
    found = measure("random", model, [story(n, writes=12, facts=False) for n in range(40)])
    ends = [extra for id, extra in found.items() if id.endswith("/w12")]
    counts = [layer for extra in ends for layer in extra["layers"]]
    held, hits, chance = (sum(c[key] for c in counts) for key in ("held", "found", "by_chance"))
    assert held > 500
    assert abs(hits - chance) < 4 * (chance * (1 - chance / held)) ** 0.5
    assert all(extra["fact_recall"] is None for extra in ends)  # facts were not asked for


def test_batches_change_nothing(model):
    items = [story(n, writes=6 + n) for n in (1, 2, 8)]
    together = measure("mplus", model, items)
    apart = {id: extra for item in items for id, extra in measure("mplus", model, [item]).items()}
    assert together == apart


def test_systems_that_retrieve_nothing_countable_are_refused(model):
    for name in ("memoryllm", "mplus-attn", "foreign"):
        with pytest.raises(UsageError, match=name) as refused:
            measure(name, model, [story(1)])
        assert "--system mplus" in str(refused.value.hint)


def test_such_a_system_is_refused_before_any_work(model_folder, tmp_path):
    request = Request(
        out=tmp_path / "out",
        tasks=("retriever-recall:of=chronicle,chronicle.distances=[0],chronicle.times=1",),
        systems=("mplus", "memoryllm"),
        model=str(model_folder),
        limit=1,
    )
    with pytest.raises(UsageError, match="memoryllm retrieves nothing"):
        run(request, lambda done, of, what: None, lambda text: None)
    assert not list(tmp_path.rglob("run.json"))


def test_items_of_both_tasks(tmp_path):
    made = list(TASK.items(task_settings(TASK, *CHRONICLE, model=tiny_model(chunk_size=256), limit=2)))
    assert [item.id for item in made] == ["facts-0000", "facts-0001"]
    assert all(item.metadata["of"] == "chronicle" and item.metadata["facts"] for item in made)
    assert {question.metadata["distance"] for item in made for question in item.questions} == {1, 6, 12}
    path = tmp_path / "own.jsonl"
    lines = [
        f'{{"context": "In {t} it was, long ago. {n}", "question": "Where?", "answer": "{t}"}}'
        for n, t in enumerate("ABC")
    ]
    path.write_text("\n".join(lines))
    of_own = task_settings(TASK, "retention.distances=[0, 10]", "retention.distractor_tokens=16", data=path)
    asked = [question for item in TASK.items(of_own) for question in item.questions]
    assert [question.metadata["told"] for question in asked] == [[0]] * 6


# --- which tokens hold a fact ---


def test_gathered_tokens_are_those_written(model):
    walk = system("mplus", model).walk([story(5)])
    walk.memory.keep_journal()
    for _ in walk.stands():
        pass
    created = torch.arange(8, 24)
    written = torch.cat([record.values for record in walk.memory.journal[0][1:3]], dim=1)
    assert torch.equal(gather(walk.memory, 0, created), written)
    assert gather(walk.memory, 0, torch.arange(1_000, 1_008)) is None


def test_the_fewest_tokens_with_most_of_the_attribution():
    weights = torch.tensor([[1.0, 6.0, -9.0], [0.5, 2.0, 0.5]])
    assert fact_tokens(weights).tolist() == [[False, True, False], [False, True, False]]  # 8 of 10
    assert fact_tokens(weights - 10).sum() == 0


def likelihood(model: Any, tokens: torch.Tensor, question: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([question + answer]), memory_tokens=tokens[None]).logits[0]
    picked = logits[len(question) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
    return float(picked.sum())


def test_attribution_adds_up(model):
    """Integrated gradients are complete: their sum is what all tokens together do for the answer."""
    tokens = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    question, answer = encode(byte_tokenizer(), "Who? Answer:"), encode(byte_tokenizer(), " me")
    found = attribution(model, tokens, question, answer)
    mean = tokens.mean(1, keepdim=True).expand_as(tokens)
    gain = likelihood(model, tokens, question, answer) - likelihood(model, mean, question, answer)
    assert found.shape == (3, 5) and float(found.sum()) == pytest.approx(gain, rel=0.01)
    with torch.inference_mode():
        assert torch.allclose(attribution(model, tokens, question, answer), found)  # whatever mode the caller is in


def test_the_bundled_model_answers_from_the_tokens_that_are_said_to_hold_the_fact():
    """They are few, and enough: with them alone the answer is as likely as with all, with as many others it is not."""
    if bundled_model() is None:
        pytest.skip("the bundled model is not in this installation")
    from mplus_cli.inference.models import load_model

    loaded = load_model(None, "cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    text = (
        "It is said that Nalas Corwick is a baker. The wind comes over the hills. Veliel Fenanson has been a glazier "
        "for many years. Rosith smiles when I ask about it. They say that Torin Ulkin works as a printer."
    )
    memory = model.new_memory(1, 0, "empty")
    model.inject(torch.tensor([encode(tokenizer, text)]), memory)
    tokens = gather(memory, 0, torch.arange(48))
    mean = tokens.mean(1, keepdim=True)
    kept_own, kept_others = [], []  # share of what all tokens do for the answer
    for name, value in {"Nalas Corwick": "baker", "Veliel Fenanson": "glazier", "Torin Ulkin": "printer"}.items():
        question = encode(tokenizer, f"Question: What is the trade of {name}? Answer:")
        answer = encode(tokenizer, f" {value}")
        holders = fact_tokens(attribution(model, tokens, question, answer))
        assert 0 < holders.float().mean() < 0.1
        every, none = (likelihood(model, given, question, answer) for given in (tokens, mean.expand_as(tokens)))
        for kept, into in [(holders, kept_own), *((_as_many_others(holders, n), kept_others) for n in range(8))]:
            alone = likelihood(model, torch.where(kept[..., None], tokens, mean), question, answer)
            into.append((alone - none) / (every - none))
    assert min(kept_own) > SHARE
    assert sum(kept_others) / len(kept_others) < 0.5


def _as_many_others(holders: torch.Tensor, seed: int) -> torch.Tensor:
    """As many tokens of every layer, none of them a holder."""
    drawn = torch.rand(holders.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(holders, 2.0)
    return drawn.argsort(-1).argsort(-1) < holders.sum(-1, keepdim=True)


# --- results ---


def test_layers_and_picture(model, tmp_path):
    pytest.importorskip("matplotlib")
    items = [story(n) for n in range(4)]
    found = measure("mplus", model, items)
    results = [results_of(TASK, items, found, "mplus", model.config)]
    assert results[0].results["scores"]["recall"]["n"] == len([e for e in found.values() if e["recall"] is not None])
    rows = by_layer(results[0].samples)
    assert [row["layer"] for row in rows] == [0, 1, 2]
    for row in rows:
        counts = [extra["layers"][row["layer"]] for extra in found.values()]
        assert row["held"] == sum(c["held"] for c in counts) and row["recall"] == row["found"] / row["held"]
    assert [is_png(path) for path in TASK.plot(results, tmp_path)] == [True]
    assert (tmp_path / "retriever_recall_by_layer.json").stat().st_size > 100
