"""Reading memory in training: the core's numbers, several texts to a memory, and gradient into chosen writes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.training.contexts import GradedWrite, write_contexts, write_with_gradient
from mplus_cli.training.graded import GradedPrefix, Search
from mplus_cli.training.groups import group_of
from mplus_cli.training.tasks.reading import read
from tests.training.helpers import documents, gradients, tiny_memory_model, tiny_recipe


def filled(stage=3, seed=0, contexts=(9, 9, 9), graded=None, **sections):
    """A model, a memory of as many rows, and what writing into it did."""
    model = tiny_memory_model(tiny_recipe(stage, **sections), seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    memory = Memory(model.config, len(contexts), list(range(len(contexts))))
    chunks = [example.contexts for example in documents(len(contexts), list(contexts), seed)]
    return model, memory, write_contexts(model, memory, chunks, graded)


def logits_of(model, hidden):
    return model.lm_head(model.model.norm(hidden))


def texts(count: int, length: int = 7) -> torch.Tensor:
    return torch.randint(40, 130, (count, length), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("contexts", [(9, 9, 9), (9, 2, 5), (1, 2, 1), (0, 3, 6)])
def test_reads_what_the_core_reads(stage, contexts):
    """Rows with full, half-full and empty memories; the core's own prefix is the reference."""
    model, memory, _ = filled(stage, contexts=contexts)
    ids = texts(3)
    with torch.no_grad():
        expected = model(ids, memory=memory).logits
        found = logits_of(model, read(model, ids, GradedPrefix(model, memory)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [{"fill_rule": "tile", "eviction": "recall_frequency"}, {"fill_rule": "tile"}])
def test_reads_what_the_core_reads_under_the_published_rules(config):
    model = tiny_memory_model(tiny_recipe(3))
    for name, value in config.items():
        setattr(model.config, name, value)
    model.config.merge_every = 2
    memory = Memory(model.config, 2, [0, 1])
    write_contexts(model, memory, [example.contexts for example in documents(2, [11, 5])])
    ids = texts(2)
    with torch.no_grad():
        expected = model(ids, memory=memory).logits
        found = logits_of(model, read(model, ids, GradedPrefix(model, memory)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_several_texts_of_different_length_to_a_memory():
    model, memory, _ = filled(contexts=(9, 4))
    ids, owners, lengths = texts(5), [1, 0, 1, 1, 0], [7, 5, 4, 7, 6]
    valid = torch.arange(7) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        prefix = GradedPrefix(model, memory, owners, query=Search(valid))
        together = logits_of(model, read(model, ids, prefix))
        for text, (owner, length) in enumerate(zip(owners, lengths, strict=True)):
            alone = GradedPrefix(model, memory, [owner])
            expected = logits_of(model, read(model, ids[text : text + 1, :length], alone))
            torch.testing.assert_close(together[text : text + 1, :length], expected, rtol=1e-4, atol=1e-5)


def test_random_query_lengths_limit_the_search_alone():
    model, memory, _ = filled(contexts=(12,), memory={"retrieval_budget": 2})
    ids, valid = texts(1), torch.ones(1, 7, dtype=torch.bool)
    with torch.no_grad():
        lengths = torch.tensor([[2], [5]])
        prefix = GradedPrefix(model, memory, query=Search(valid, lengths), keep_seen=True)
        read(model, ids, prefix)
        for layer, length in enumerate((2, 5)):
            rows = prefix.seen[layer].text[0, :length]
            keys = torch.cat(list(memory.long_term[0].layers[layer].keys.views()))
            retriever = model.retrievers[layer]
            best = retriever.scores(retriever.query_proj(rows), keys).topk(2).indices
            created = torch.cat(list(memory.long_term[0].layers[layer].created.views()))[best]
            assert sorted(created.tolist()) == prefix.seen[layer].retrieved[0].tolist()


def test_wanted_tokens_are_found_whatever_their_score():
    model, memory, written = filled(contexts=(12,), memory={"retrieval_budget": 4})
    start, end = written.spans[0][1]
    query = Search(torch.ones(1, 7, dtype=torch.bool), wanted=[(start, end)])
    prefix = GradedPrefix(model, memory, query=query, keep_seen=True)
    read(model, texts(1), prefix)
    for layer, seen in enumerate(prefix.seen):
        stored = torch.cat(list(memory.long_term[0].layers[layer].created.views()))
        there = {c for c in stored.tolist() if start <= c < end}
        assert there and there <= set(seen.retrieved[0].tolist())


# -- gradient --


def explicit_memory(
    memory: Memory, row: int, retrieved: Sequence[torch.Tensor], writes: Sequence[GradedWrite]
) -> torch.Tensor:
    """What one row reads, token by token, oldest first, from creation indices alone: [1, L, P, d]."""
    layers = []
    for layer in range(memory.num_layers):
        rows = []
        store = memory.long_term[row].layers[layer] if memory.long_term else None
        for created in retrieved[layer].tolist() if retrieved else []:
            assert store is not None
            values, names = store.take(layer, store.all_positions())
            rows.append((created, values[names.tolist().index(created)]))
        values, names = memory.short_term.ordered(row)
        rows += [(c, values[layer, i]) for i, c in enumerate(names[layer].tolist())]
        tokens = []
        for created, value in rows:
            for write in writes:
                if write.row == row and 0 <= created - write.start < write.tokens.shape[1]:
                    value = write.tokens[layer, created - write.start]
            tokens.append(value)
        layers.append(torch.stack(tokens))
    return torch.stack(layers)[None]


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("contexts", [(9, 9), (3, 10)])
def test_gradient_is_that_of_the_same_memory_given_explicitly(stage, contexts):
    graded = [{0, contexts[0] - 1, 2}, {1, 5, contexts[1] - 1}]
    model, memory, written = filled(stage, contexts=contexts, graded=graded)
    assert len(written.graded) == len(graded[0]) + len(graded[1])
    ids = texts(2)
    prefix = GradedPrefix(model, memory, graded=written.graded, keep_seen=True)
    found = logits_of(model, read(model, ids, prefix))
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    gradient = gradients(model)
    assert {group_of(name) for name in gradient} >= {"write_adapter", "read_adapter", "new_memory_positional_emb"}

    model.zero_grad()
    _, again, rewritten = filled(stage, contexts=contexts, graded=graded)
    again_writes = _on_model(model, rewritten.graded, contexts)
    total = torch.zeros(())
    for row in range(2):
        retrieved = [seen.retrieved[row] for seen in prefix.seen] if stage == 3 else []
        retrieved = [r[r != torch.iinfo(torch.int64).max] for r in retrieved]
        tokens = explicit_memory(again, row, retrieved, again_writes)
        logits = model(ids[row : row + 1], memory_tokens=tokens).logits
        torch.testing.assert_close(logits[0], found[row], rtol=1e-4, atol=1e-4)
        total = total + (logits[0] * weights[row]).sum()
    total.backward()
    expected = gradients(model)
    assert expected.keys() == gradient.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=2e-3, atol=2e-3 * float(value.abs().max()), msg=name)


def _on_model(model, writes, contexts):
    """Each graded write once more, alone, with the chunk's own ids."""
    chunks = [example.contexts for example in documents(len(contexts), list(contexts), 0)]
    made = []
    for write in writes:
        ids = torch.tensor([chunks[write.row][write.context]])
        before = None if write.before is None else write.before[None]
        made.append(GradedWrite(write.row, write.context, write.start, model.write(ids, before)[0], write.before))
    return made


def test_graded_tokens_are_the_stored_ones():
    model, memory, written = filled(contexts=(3, 4), graded=[{0, 1, 2}, {2, 3}])
    for write in written.graded:
        assert written.spans[write.row][write.context] == (write.start, write.start + write.tokens.shape[1])
        values, created = memory.short_term.ordered(write.row)
        for layer in range(2):
            where = [created[layer].tolist().index(write.start + i) for i in range(write.tokens.shape[1])]
            torch.testing.assert_close(values[layer, where], write.tokens[layer].detach(), rtol=1e-4, atol=1e-5)


def test_without_graded_writes_no_gradient_reaches_the_write():
    model, memory, written = filled()
    assert written.graded == [] and not memory.short_term.values.requires_grad
    logits_of(model, read(model, texts(3), GradedPrefix(model, memory))).sum().backward()
    assert not {group_of(name) for name in gradients(model)} & {"write_adapter", "new_memory_positional_emb"}


def test_gradient_stops_at_the_memory_before_a_write():
    """A graded write takes the memory before it as given: gradient does not run back through the document."""
    model, memory, written = filled(contexts=(4,), graded=[{2, 3}])
    third, fourth = written.graded
    assert fourth.before is not None and not fourth.before.requires_grad
    (gradient,) = torch.autograd.grad(fourth.tokens.sum(), third.tokens, allow_unused=True)
    assert gradient is None


def test_uneven_texts_are_written_side_by_side_as_alone():
    model = tiny_memory_model(tiny_recipe(1))
    memory = Memory(model.config, 3, [0, 1, 2])
    write_contexts(model, memory, [[[50, 51, 52, 53, 54]], [], [[60, 61], [70, 71, 72, 73, 74, 75]]])
    chunks = [[41, 42, 43], [44] * 9, [45, 46, 47, 48, 49]]
    together = write_with_gradient(model, memory, chunks)
    assert [write.row for write in together] == [0, 1, 2]
    for write, ids in zip(together, chunks, strict=True):
        before = memory.context(write.row)[None] if memory.short_term.fill[write.row] else None
        torch.testing.assert_close(write.tokens, model.write(torch.tensor([ids]), before)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 3])
def test_recomputing_layers_changes_nothing_but_memory(stage):
    found = []
    for recompute in (False, True):
        model, memory, _ = filled(stage, contexts=(9, 6))
        chunks = [example.contexts for example in documents(2, 3, 8)]
        written = write_contexts(model, memory, chunks, [{2}, {0, 2}], recompute)
        prefix = GradedPrefix(model, memory, [0, 1, 1], written.graded, recompute=recompute)
        hidden = read(model, texts(3), prefix, recompute=recompute)
        loss = logits_of(model, hidden).logsumexp(-1).mean()
        model.adapters.use("write")  # whichever adapter is active when gradients are asked for
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    (loss, gradient), (again, recomputed) = found
    torch.testing.assert_close(loss, again, rtol=1e-6, atol=0)  # what is recomputed does not run merged
    assert gradient.keys() == recomputed.keys()
    for name in gradient:
        torch.testing.assert_close(gradient[name], recomputed[name], rtol=1e-4, atol=1e-6, msg=name)


def test_recomputing_keeps_fewer_activations():
    kept = []
    for recompute in (False, True):
        model, memory, _ = filled(1, contexts=(9,))
        total = [0]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, total=total: (total.__setitem__(0, total[0] + t.numel()), t)[1], lambda t: t
        ):
            read(model, texts(1, 40), GradedPrefix(model, memory, recompute=recompute), recompute=recompute)
        kept.append(total[0])
    assert kept[1] < 0.3 * kept[0]
