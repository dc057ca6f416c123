"""What the table of tables and figures is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MPLUS, MEMORYLLM = "M+", "MemoryLLM"
PAPERS = {MPLUS: "arXiv 2502.00592", MEMORYLLM: "arXiv 2402.04624"}
# Weights on the hub, and what is trained where the authors published none.
M_PLUS_8B, STAGE_1_8B = "YuWangX/mplus-8b", "YuWangX/memoryllm-8b"
STAGE_2_8B = "runs/stage2/model"  # of `mplus train --stage 2`
LLAMA_8B, LLAMA_3B = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-3B"
BASE = f"--base-model {LLAMA_8B}"
# System, weights, folder of the results: the model after each stage of training.
STAGES = (("memoryllm", STAGE_1_8B, "stage-1"), ("memoryllm", STAGE_2_8B, "stage-2"), ("mplus", M_PLUS_8B, "stage-3"))
STAGE_2_MISSING = (
    "The authors did not publish the weights after stage 2 (MemoryLLM-8B-Long): train them (8 GPUs of 80 GB, about a "
    "week by the paper), then use the"
)
TRAIN_STAGE_2 = (
    "mplus build-data fineweb --out builds/web --documents 3000000",
    f"mplus build-data slimpajama --out builds/slim --tokenizer {LLAMA_8B}",
    "mplus build-data mix --out builds/stage2 --part builds/web:train=1 --part builds/slim:4k-8k=1 "
    "--part builds/slim:8k-16k=1 --part builds/slim:16k-32k=1 --part builds/slim:32k-64k=1",
    f"mplus train --stage 2 --gpus 8 model={STAGE_1_8B}",
)

# yes: all of it. partly: see `why`. no: see `why`. drawing: it shows no result.
State = Literal["yes", "partly", "no", "drawing"]


@dataclass(frozen=True)
class Score:
    """Where our number is in results of `mplus eval`.

    Attributes:
        length: `--length`; None for any.
        options: of the task, those that must be so; by: the group that is meant, by `group_by`.
        factor: of the published scale; sets: the mean over sets of LongBench in place of that over samples.
        model: name of the weights, or how it ends; None for any, and the output names it.
    """

    task: str
    system: str
    metric: str
    length: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    by: Mapping[str, Any] = field(default_factory=dict)
    factor: float = 1.0
    sets: bool = False
    model: str | None = None


@dataclass(frozen=True)
class Cost:
    """Where our number is in results of `mplus profile`.

    Attributes:
        system: label; what: peak memory in MB (2^20 bytes) or FLOPs of the text and one token.
        model: part of the name of the configuration; None for any.
    """

    system: str
    length: int
    what: Literal["memory", "flops"]
    model: str | None = None


@dataclass(frozen=True)
class Value:
    """A published number.

    Attributes:
        row, column: of the table that it stands in; without a column the table is a list.
        ours: where our number would be; None where the tools do not measure it.
    """

    row: str
    published: float
    ours: Score | Cost | None = None
    column: str = ""


@dataclass(frozen=True)
class Entry:
    """A table or figure of one of the papers.

    Attributes:
        place: as in the paper; title: what it shows.
        commands: that make it, in this order.
        data: commands that fetch or build its data, in this order.
        why: what cannot be reproduced or is done otherwise, and why; what else is needed.
        weights: hub ids, or folders that `mplus train` makes.
        memory_mb: of the GPU, for the largest system of the row, as published; None where the paper has no figure.
        tokens: of text that one system reads for it, at most; questions: that it is asked.
        duration: where the time is known otherwise.
    """

    paper: str
    place: str
    title: str
    state: State
    commands: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    why: str = ""
    weights: tuple[str, ...] = ()
    memory_mb: float | None = None
    tokens: int = 0
    questions: int = 0
    duration: str = ""
    values: tuple[Value, ...] = ()

    @property
    def id(self) -> str:
        """As a word: `mplus-table-2`."""
        return f"{self.paper} {self.place}".lower().replace("+", "plus").replace(" ", "-").replace(".", "-")


def evaluate(tasks: str, out: str, *systems: str, model: str = M_PLUS_8B, more: str = "") -> str:
    """A command of `mplus eval`."""
    asked = " ".join(f"--system {system}" for system in systems)
    return " ".join(f"mplus eval {tasks} --model {model} {more} {asked} --out reproduced/{out}".split())
