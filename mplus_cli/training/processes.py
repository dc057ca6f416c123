"""The processes of one run: who this one is, and the few things they tell each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mplus_cli.errors import MissingExtraError

SINGLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ""}


@dataclass(frozen=True)
class Processes:
    """This process among all of a run.

    Attributes:
        rank: 0 to world - 1; rank 0 writes the files that exist once.
        world: number of processes, on all machines together.
        device: where this process computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over all processes, in float64, so that every process decides alike."""
        if self.world == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in rank order, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world > 1:
            torch.distributed.barrier()


def import_deepspeed() -> Any:
    """The deepspeed package, told what this machine computes with.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.update(accelerator_environment())
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtraError("training needs DeepSpeed", 'pip install "mplus[train]"') from error
    return deepspeed


def accelerator_environment() -> dict[str, str]:
    """What DeepSpeed must be told about a machine without GPU before it is imported; else it guesses and warns."""
    return {} if torch.cuda.is_available() or "DS_ACCELERATOR" in os.environ else {"DS_ACCELERATOR": "cpu"}


@contextmanager
def joined() -> Iterator[Processes]:
    """This process as part of its run: of the one a launcher described in the environment, else a run of one.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
    """
    before = dict(os.environ)
    if not os.environ.keys() >= SINGLE.keys():
        os.environ.update(SINGLE | {"MASTER_PORT": str(free_port())})
    try:
        deepspeed = import_deepspeed()
        local_rank = int(os.environ["LOCAL_RANK"])
        cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        else:
            _no_compiler()
        deepspeed.init_distributed("nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
        processes = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)
        yield processes
        if processes.world > 1:  # a run of one may be followed by another one in this process, and DeepSpeed joins once
            deepspeed.comm.destroy_process_group()
    finally:
        for name in SINGLE.keys() - before.keys():
            os.environ.pop(name, None)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _no_compiler() -> None:
    """Keep DeepSpeed from compiling its shared-memory reduction for CPU inference, which training never calls.

    It would otherwise run a C++ compiler for half a minute at the first start, or fail where there is none.
    """
    from deepspeed import ops

    getattr(ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False
