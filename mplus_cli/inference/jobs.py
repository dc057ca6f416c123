"""Inject texts into a memory file: open or make it, load its model, run the injection, sum up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.core.value_codec import check_name
from mplus_cli.data.sources import Source
from mplus_cli.errors import StateError
from mplus_cli.inference.device_map import write_stages
from mplus_cli.inference.injection import Injection, InjectProgress, InjectReport
from mplus_cli.inference.models import LoadedModel, load_for_state, load_model


@dataclass(frozen=True)
class InjectOptions:
    """The options of `mplus inject`, as given."""

    model: str | None = None
    fresh: bool = False
    again: bool = False
    chunk_size: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    ltm_dtype: str | None = None
    quantize: str | None = None
    device_map: str | None = None
    pipeline: bool | None = None


@dataclass(frozen=True)
class InjectionSummary:
    """What an injection did and what the memory file holds now (memory tokens per layer; bytes)."""

    report: InjectReport
    model: str
    placement: str
    short_term: int
    short_term_size: int
    long_term: int
    long_term_capacity: int
    file_size: int

    def as_json(self, path: Path) -> dict[str, Any]:
        """The document that `--json` prints."""
        document = {"state": str(path), **asdict(self)}
        document |= document.pop("report")
        document["tokens_per_second"] = round(self.report.tokens_per_second, 1)
        return document


def inject_into_file(
    path: Path,
    sources: Sequence[Source],
    options: InjectOptions,
    on_note: Callable[[str], None],
    on_progress: Callable[[InjectProgress], None],
) -> InjectionSummary:
    """Continue the memory file at `path`, or make one (always, with `options.fresh`), and inject `sources` into it.

    Args:
        on_note: gets a line about the model and about a job that is continued.
    """
    if options.ltm_dtype is not None:
        check_name(options.ltm_dtype)
    if path.exists() and not options.fresh:
        with MemoryState.open(path, writable=True) as state:
            if options.ltm_dtype is not None:
                state.check_values(options.ltm_dtype)
            where = options.device, options.dtype, options.quantize, options.device_map
            loaded = load_for_state(state, options.model, *where)
            return _run(path, state, loaded, state.load_memory(loaded.model), sources, options, on_note, on_progress)
    loaded = load_model(options.model, options.device, options.dtype, options.quantize, options.device_map)
    memory = loaded.model.new_memory(seed=options.seed, values=options.ltm_dtype or "model")
    with MemoryState.create(path, loaded.model, memory, fresh=options.fresh) as state:
        return _run(path, state, loaded, memory, sources, options, on_note, on_progress)


def _run(path, state, loaded: LoadedModel, memory, sources, options, on_note, on_progress) -> InjectionSummary:
    model = loaded.model
    on_note(f"model {loaded.name} on {loaded.placement}")
    stages = write_stages(model, options.pipeline)
    injection = Injection(
        model, loaded.tokenizer, memory, state, sources, options.chunk_size, options.again, on_progress, stages
    )
    if injection.resumes:
        on_note(f"continuing an interrupted injection after {injection.position.chunk:,} chunks")
    for name in injection.partial():
        on_note(f"{name} is partly in memory from another, interrupted injection; it goes in from its beginning")
    report = injection.run()
    return InjectionSummary(
        report=report,
        model=loaded.name,
        placement=str(loaded.placement),
        short_term=memory.short_term.fill[0],
        short_term_size=model.config.short_term_size,
        long_term=len(memory.long_term[0]) if memory.long_term else 0,
        long_term_capacity=model.config.long_term_capacity,
        file_size=path.stat().st_size,
    )


def forget_source(path: Path, source: str, model: str | None = None, device: str | None = None) -> dict[str, Any]:
    """Remove a source from a memory file. Returns the proof (see `MemoryState.forget`).

    Raises:
        StateError: the file is not usable, or holds no such source.
    """
    with MemoryState.open(path) as state:
        names = sorted({held["source"] for held in state.sources()})
        if source not in names:
            held = ", ".join(names) or "nothing that was injected"
            raise StateError(f"{path} holds no source {source!r}", hint=f"it holds {held}")
        loaded = load_for_state(state, model, device)
    return MemoryState.forget(path, source, loaded.model)
