"""The training tasks: one class per kind of step. `Repeat` is a form of target and lies in `repeat`."""

from __future__ import annotations

from mplus_cli.training.tasks.choosing import TaskName
from mplus_cli.training.tasks.copying import Copying
from mplus_cli.training.tasks.full_context import FullContext
from mplus_cli.training.tasks.in_context import InContext
from mplus_cli.training.tasks.multi_chunk import MultiChunk
from mplus_cli.training.tasks.questions import Questions
from mplus_cli.training.tasks.revisit import Revisit
from mplus_cli.training.tasks.two_chunk import TwoChunk
from mplus_cli.training.tasks.work import Task

TASKS: dict[TaskName, Task] = {
    "full_context": FullContext(),
    "two_chunk": TwoChunk(),
    "multi_chunk": MultiChunk(),
    "revisit": Revisit(),
    "questions": Questions(),
    "in_context": InContext(),
    "copying": Copying(),
}
