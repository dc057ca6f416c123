"""Loss on held-out documents: each one's contexts into a memory of its own, then cross-entropy of its target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.training.contexts import write_contexts
from mplus_cli.training.losses import IGNORE
from mplus_cli.training.processes import Processes

if TYPE_CHECKING:
    from mplus_cli.training.batches import BatchStream
    from mplus_cli.training.examples import Example


@torch.no_grad()
def validation_loss(
    model: MPlusForCausalLM, stream: BatchStream, memory_config: MPlusConfig | None, processes: Processes
) -> float | None:
    """Mean cross-entropy per target token over the held-out documents of all processes; None when none are held out.

    Draws no random numbers and leaves the memories of training alone, so that training goes on as if it had not been.

    Args:
        memory_config: of the memories that contexts are written to; None for a stage without memory, whose targets are
            read alone.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in stream.evaluation():
        for example in batch:
            memory = None if memory_config is None else Memory(memory_config, 1, 0, model.dtype, model.device)
            loss, tokens = _document_loss(model, example, memory)
            total, count = total + loss, count + tokens
    model.train(training)
    total, tokens_of_all = processes.sum([total, count])
    return total / tokens_of_all if tokens_of_all else None


def _document_loss(model: MPlusForCausalLM, example: Example, memory: Memory | None) -> tuple[float, int]:
    """Summed cross-entropy of a target, and its number of predicted tokens."""
    if memory is not None:
        write_contexts(model, memory, [example.contexts])
    ids = torch.tensor([example.target], device=model.device)
    labels = torch.tensor(example.labels[1:], device=model.device)
    logits = model(ids, memory=memory).logits[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return float(loss), int((labels != IGNORE).sum())
