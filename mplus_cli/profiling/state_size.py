"""How large a state file is after a text, measured on a part of it."""

from __future__ import annotations

from pathlib import Path

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.profiling.subjects import MemorySubject


def state_size(model: MPlusForCausalLM, subject: MemorySubject, folder: Path) -> int:
    """Bytes of the state file after the subject's text, from two commits of a shorter one: every write adds the same.

    Random numbers stand for what writes make; a file does not mind.
    """
    config = subject.config
    short = MemorySubject.__new__(MemorySubject)
    short.__dict__.update(subject.__dict__)
    short.memory = model.new_memory(config=config, values=subject.values)
    path = folder / "memory.pt"
    free = max(0, config.short_term_size - short.memory.short_term.fill[0])
    before = min(subject.writes, -(-free // config.memory_tokens_per_write))  # until then nothing is dropped
    with MemoryState.create(path, model, short.memory) as state:
        short.fill(before)
        state.commit(short.memory)
        first = path.stat().st_size
        more = min(subject.writes - before, 4)
        short.fill(more)
        state.commit(short.memory)
        each = (path.stat().st_size - first) / max(1, more)
    path.unlink()
    return round(first + each * (subject.writes - before))
