"""Forgetting: facts that are contradicted later (the later one counts), and what random dropping leaves of a write.

    mplus eval forgetting --system mplus --system memoryllm --system closed-book
    mplus eval forgetting:gaps=[2,20],sinces=[0,10,40],contradictions=[1,3]

An item is a story read write by write. Somebody's home is told, and after a gap of so many writes another one, as often
as wanted; so many writes after the last of them the question is asked, and for comparison also before the first
contradiction. An answer is the new value, an old one or neither; one that names several counts as what it names first.

At every question of a system with a memory, the memory tokens of the write that told the newest value are counted: how
many are still in short-term memory, and how many the rule of random dropping expects (MemoryLLM section 4.4). At the
end of the story all writes are; `survival.png` lays both curves over each other, answers beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mplus_cli.config import Range
from mplus_cli.data.chronicle import question_prompt
from mplus_cli.data.chronicle.questions import direct_questions
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.metrics import measured, normalize
from mplus_cli.evaluation.task import Metric, SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks.forgetting_story import Course, Fact, Subject, write_story

if TYPE_CHECKING:
    from mplus_cli.core.memory import Memory
    from mplus_cli.evaluation.systems.walk import Stand

GAP_LIVES, SINCE_LIVES = (0.25, 1, 4), (0, 1, 4)  # in half-lives of random dropping


@dataclass(frozen=True)
class Options:
    """Settings of `forgetting`.

    Attributes:
        gaps: writes from a telling to the one that contradicts it; None for a quarter, 1 and 4 half-lives.
        sinces: writes from the latest telling to the question; None for 0, 1 and 4 half-lives.
        contradictions: how often facts are contradicted.
        people: facts for every gap and number of contradictions.
        kinds: what is told about consecutive people, over and over.
        told: contradictions that say that something has `changed`, or tell it as if for the first time (`plain`).
    """

    gaps: tuple[Annotated[int, Range(low=1)], ...] | None = None
    sinces: tuple[Annotated[int, Range(low=0)], ...] | None = None
    contradictions: tuple[Annotated[int, Range(low=1, high=10)], ...] = (1, 2)
    people: Annotated[int, Range(low=1, high=20)] = 1
    kinds: tuple[Subject, ...] = ("home",)
    told: Literal["changed", "plain"] = "changed"


def outcome(sample: Mapping[str, Any], references: Sequence[str]) -> str:
    """`new`, `old` or `neither`: the value that an answer names first, as whole words of its normal form."""
    text = f" {normalize(sample['text'])} "
    values = [("new", value) for value in references] + [("old", value) for value in sample["metadata"]["old"]]
    named = [(text.find(f" {normalize(value)} "), -len(value), which) for which, value in values]
    return min((one for one in named if one[0] >= 0), default=(0, 0, "neither"))[2]


def _share(which: str) -> Metric:
    def metric(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
        return float(outcome(sample, references) == which) if sample["metadata"]["contradictions"] else None

    return metric


def uncontradicted(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """1 where a fact that nothing has contradicted yet is answered; None for others."""
    return None if sample["metadata"]["contradictions"] else float(outcome(sample, references) == "new")


def prefers_new(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """1 where the new value is the likeliest of all that were told, a share of it in a tie; None without old ones."""
    given = sample["extra"].get("option_logprobs")
    if not given or not sample["metadata"]["contradictions"]:
        return None
    best = [place for place, value in enumerate(given) if value == max(given)]
    return (0 in best) / len(best)


class Forgetting(Task):
    """Shares of new, old and other answers, and of memory tokens that are left.

    `uncontradicted` is the share of right answers before the first contradiction; `prefers_new` compares likelihoods,
    not answers. `survival` is the share of the newest telling's memory tokens in short-term memory, `expected` what
    random dropping leaves, `held` their share in short- or long-term memory.
    """

    name, options_class, group_by = "forgetting", Options, ("since", "gap", "contradictions")
    metrics: ClassVar[Mapping[str, Metric]] = {
        **{which: _share(which) for which in ("new", "old", "neither")},
        "uncontradicted": uncontradicted,
        "prefers_new": prefers_new,
        "survival": measured("survival"),
        "expected": measured("survival_expected"),
        "held": measured("held"),
    }
    metric_version = "the value named first, 1"
    default_limit = 24

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """One story for every item.

        Raises:
            UsageError: the length has no room for a contradiction, or a write none for a fact.
        """
        course = course_of(settings)
        for number in range(settings.limit):
            yield story_item(number, course, settings)

    def look(self, memory: Memory, row: int, stand: Stand, question: Question) -> Mapping[str, Any]:
        """What is left of the newest telling's write; at the end of the story, of every write."""
        from mplus_cli.evaluation.tasks.survival import left_of

        left = left_of(memory, row, stand.spans)
        newest = left[question.metadata["told"][-1]]
        found: dict[str, Any] = {"survival": newest.short / newest.made, "held": newest.held / newest.made}
        if newest.writes is not None:
            found["survival_expected"] = DropRule.of(memory.config).survival(newest.writes)
        if question.metadata["last"]:
            found["drop_rule"] = {"write": memory.config.memory_tokens_per_write, "size": memory.config.short_term_size}
            found["left"] = [[one.writes, one.short, one.held, one.made] for one in left if one.writes is not None]
        return found

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path] | None:
        """`forgetting.json` with all shares and curves, `forgetting.png` and `survival.png`."""
        from mplus_cli.evaluation.runs import write_json
        from mplus_cli.evaluation.tasks.forgetting_plot import draw, table

        write_json(folder / "forgetting.json", table(results))
        return draw(results, folder)


def course_of(settings: TaskSettings) -> Course:
    """What the settings ask for, as much of it as the length has room for."""
    options: Options = settings.options
    if () in (options.kinds, options.contradictions, options.gaps, options.sinces):
        raise UsageError("forgetting: gaps, sinces, contradictions and kinds need at least one value each")
    rule = DropRule.of(settings.config)
    gaps = options.gaps or [max(1, round(rule.half_life * lives)) for lives in GAP_LIVES]
    sinces = options.sinces or [round(rule.half_life * lives) for lives in SINCE_LIVES]
    most = None if settings.length is None else settings.length // settings.config.chunk_size
    return Course.fitting(rule, gaps, sinces, options.contradictions, options.people, most)


def story_item(number: int, course: Course, settings: TaskSettings) -> Item:
    """Story `number` with its questions."""
    options, size = settings.options, settings.config.chunk_size
    digest = hashlib.blake2b(f"forgetting/{settings.seed}/{number}".encode(), digest_size=7).digest()
    seed = int.from_bytes(digest, "big")
    story = write_story(course, options.kinds, options.told == "plain", settings.tokenizer, size, seed)
    asked = [
        (who, telling, since)
        for who, fact in enumerate(story.facts)
        for telling in (0, len(fact.told) - 1)
        for since in course.sinces
        if telling or since < fact.gap
    ]
    rng, last = Random(seed), max(asked, key=lambda one: story.facts[one[0]].told[one[1]] + one[2])
    questions = [
        _question(f"p{who}-c{telling}-s{since}", story.facts[who], telling, since, rng, (who, telling, since) == last)
        for who, telling, since in asked
    ]
    documents = tuple(Document(text, f"write {write}") for write, text in enumerate(story.documents))
    return Item(f"story-{number}", documents, tuple(questions), {"kinds": list(options.kinds)})


def _question(identity: str, fact: Fact, telling: int, since: int, rng: Random, last: bool) -> Question:
    """A question about what one telling says, so many writes after it; `last`: nothing in the story is asked later."""
    new, old = fact.values[telling], fact.values[:telling]
    metadata = {
        "kind": fact.kind,
        "contradictions": telling,
        "since": since,
        **({"gap": fact.gap} if telling else {}),
        "old": list(old),
        "told": list(fact.told[: telling + 1]),
        "last": last,
    }
    return Question(
        identity,
        question_prompt(rng.choice(direct_questions(fact.kind, fact.person.words))),
        (new,),
        after=fact.told[telling] + 1 + since,
        max_new_tokens=16,
        options=tuple(f" {value}" for value in (new, *reversed(old))),
        metadata=metadata,
    )
