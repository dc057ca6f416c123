"""Which task a step runs: a pure function of (seed, step), so the same on every process (M+ appendix D).

If processes drew for themselves, one would wait with a single write for another's two hundred, and gradients of
different parameters would meet.

The published process, for the steps that our own tasks leave to it:

    full context    with probability `full_context`; changes nothing else
    revisit         never right after a revisit, nor before a document has been written since the cached one;
                    else with probability `revisit`
    new document    otherwise: multi-chunk with probability `full_memory`, else two-chunk. After a revisit it takes the
                    place of the cached document with probability `replace_cached`; the first one always does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mplus_cli.training.chance import number, uniform
from mplus_cli.training.recipe import Recipe, TaskSettings
from mplus_cli.training.stages import STAGES

TaskName = Literal["full_context", "two_chunk", "multi_chunk", "revisit", "questions", "in_context", "copying"]


@dataclass(frozen=True)
class TaskDraw:
    """What one step does.

    Attributes:
        task: name of the task.
        full_memory: the published flag; on a revisit it decides about the retriever's loss alone.
        cache: this step's documents become those that a revisit asks for.
        fresh: all rows start from a new memory.
        contexts: most contexts of a document that are written.
        help: probability that an asked context is retrieved whatever its score.
    """

    task: TaskName
    full_memory: bool = False
    cache: bool = False
    fresh: bool = False
    contexts: int = 1
    help: float = 0.0


@dataclass(frozen=True)
class _Past:
    """What earlier steps leave to the next one.

    Attributes:
        cached: a document is cached; revisited: the step before was a revisit; distant: documents were written since
            the cached one.
    """

    cached: bool = False
    revisited: bool = False
    distant: bool = False


class TaskChooser:
    """Draws tasks; remembers the last step drawn only to be quick about the next."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.settings, self.seed = recipe.tasks, seed
        self.has_memory = STAGES[recipe.stage].memories != "none"
        self._step, self._past = 0, _Past()
        self._restart()

    def draw(self, step: int) -> TaskDraw:
        """The task of a step, counted from 0."""
        if step < self._step:
            self._restart()
        while self._step < step:
            self._step += 1
            self._draw, self._past = self._one(self._step, self._past)
        return self._draw

    def _restart(self) -> None:
        self._step = 0
        self._draw, self._past = self._one(0, _Past())

    def all_tasks(self) -> list[TaskDraw]:
        """One draw of every task that can occur; those that write come before the revisit that needs them."""
        tasks, published = self.settings, 1 - _ours(self.settings)
        new = published * (1 - tasks.full_context)
        shares: list[tuple[TaskName, float]] = [
            ("copying", tasks.copying.share or tasks.copying.first),
            ("in_context", tasks.in_context.share),
            ("full_context", published * tasks.full_context),
            ("two_chunk", new * (1 - tasks.full_memory)),
            ("multi_chunk", new * tasks.full_memory),
            ("revisit", new * tasks.revisit),
            ("questions", tasks.questions.share),
        ]
        contexts, writes = _cap(tasks, 0), ("two_chunk", "multi_chunk")
        return [
            TaskDraw(
                name,
                full_memory=name in ("multi_chunk", "revisit") and tasks.full_memory > 0,
                cache=name in writes,
                contexts=1 if name == "two_chunk" else contexts,
            )
            for name, share in shares
            if share > 1e-12
        ]

    def _one(self, step: int, past: _Past) -> tuple[TaskDraw, _Past]:
        """The draw of a step after `past`, and what it leaves."""
        tasks = self.settings
        cap = _cap(tasks, step)
        ours = self._our_task(step)
        writes = ours == "questions" or (ours is None and self.has_memory)
        fresh = writes and uniform(self.seed, step, "fresh") < tasks.fresh_memory
        if ours is None and uniform(self.seed, step, "full_context") < tasks.full_context:
            return TaskDraw("full_context"), past  # writes nothing, so it never needs a new memory
        if fresh:
            past = _Past()
        if ours == "questions":
            few = min(tasks.questions.fewest_contexts, cap)
            contexts = few + number(self.seed, step, "contexts") % (cap - few + 1)
            return TaskDraw(ours, fresh=fresh, contexts=contexts, help=_help(tasks, step)), past
        if ours is not None:
            return TaskDraw(ours), past
        full_memory = uniform(self.seed, step, "full_memory") < tasks.full_memory
        if past.distant and not past.revisited and uniform(self.seed, step, "revisit") < tasks.revisit:
            return TaskDraw("revisit", full_memory=full_memory), replace(past, revisited=True)
        cache = not past.cached or (past.revisited and uniform(self.seed, step, "replace") < tasks.replace_cached)
        draw = TaskDraw(
            "multi_chunk" if full_memory else "two_chunk",
            full_memory=full_memory,
            cache=cache,
            fresh=fresh,
            contexts=cap if full_memory else 1,
        )
        return draw, _Past(cached=True, revisited=False, distant=not cache)

    def _our_task(self, step: int) -> TaskName | None:
        tasks, point = self.settings, uniform(self.seed, step, "ours")
        if step < tasks.copying.first:
            return "copying"
        shares: list[tuple[TaskName, float]] = [
            ("questions", tasks.questions.share),
            ("in_context", tasks.in_context.share),
            ("copying", tasks.copying.share),
        ]
        for name, share in shares:
            point -= share
            if share and point < 0:
                return name
        return None


def _ours(tasks: TaskSettings) -> float:
    return tasks.questions.share + tasks.in_context.share + tasks.copying.share


def _cap(tasks: TaskSettings, step: int) -> int:
    return next(contexts for until, contexts in tasks.max_contexts if until is None or step < until)


def _help(tasks: TaskSettings, step: int) -> float:
    questions = tasks.questions
    return questions.help * (1 - step / questions.help_until) if step < questions.help_until else 0.0
