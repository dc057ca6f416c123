"""Cards in Hugging Face form: what a model is and what was measured, as README.md with YAML at its top.

    RESULTS/README.md   results card: every system, how the numbers came about, how to repeat them
    MODEL/README.md     model card: sizes of its memory, how to use it, the numbers of the model itself

The YAML's `model-index` holds the numbers of the model's own systems, with n and the ends of the interval as `args` of
each metric. Systems on the base model and ablations stand in the tables, but are no results of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.report import conditions, tables
from mplus_cli.evaluation.scoring import Scored
from mplus_cli.evaluation.task import TASKS, SystemResults

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

NAME = "README.md"
OWN = ("mplus", "memoryllm")  # systems that are the model as it is
CONFIDENCE = 0.95  # of the intervals
LEVELS = ("dataset",)  # keys of `group_by` whose values are data sets of their own
TAGS = ["mplus", "memoryllm", "long-term-memory", "long-context"]
_LIKELIHOODS = {"perplexity", "longdoc-loss"}
_SIZES = {
    "parameters": "parameters",
    "memory_tokens_per_write": "memory tokens per layer of a write (K)",
    "chunk_size": "text tokens of a write",
    "short_term_size": "short-term memory tokens per layer (N)",
    "long_term_capacity": "long-term memory tokens per layer, at most (M)",
    "retrieval_budget": "of these retrieved for a question, per layer",
}


@dataclass(frozen=True)
class About:
    """What results do not say of a model.

    Attributes:
        name: of the model; None for the one in the results.
        license: identifier of the hub, such as `mit` or `llama3.1`.
        base_model: hub id of the model that memory was added to.
        languages: codes such as `en`.
    """

    name: str | None = None
    license: str | None = None
    base_model: str | None = None
    languages: tuple[str, ...] = ()


def results_card(scored: Scored, about: About) -> ModelCard:
    """The card of a folder of results.

    Raises:
        UsageError: they are of more than one model.
    """
    scored, name = _of_one_model(scored, about.name)
    parts = [
        f"# Results of {name}",
        "Made by `mplus eval card`. Numbers with [brackets] have 95% bootstrap intervals; the table of a task says how "
        "many samples they are of.",
        *_sections(scored),
        "## How to repeat it",
        _block(_commands(scored)),
    ]
    return _card(name, scored, about, parts, {"tags": [*TAGS, "evaluation-results"]})


def model_card(scored: Scored, about: About) -> ModelCard:
    """The card of a model, with its results.

    Raises:
        UsageError: the results are of more than one model.
    """
    scored, name = _of_one_model(scored, about.name)
    facts = scored[0][1][0].run["model"]
    parts = [
        f"# {name}",
        "A language model with latent memory in every layer "
        "([M+](https://arxiv.org/abs/2502.00592), [MemoryLLM](https://arxiv.org/abs/2402.04624)). Text is written into "
        "memory once, chunk by chunk, and asked about later.",
        "## Sizes",
        _sizes(facts),
        "## Use",
        _block(
            [
                'pip install mplus   # then, with this folder or repository as "MODEL"',
                "mplus inject BOOK.txt --model MODEL --state mem.pt",
                'mplus ask "..." --state mem.pt',
            ]
        ),
        "## Results",
        *_sections(scored, level="###"),
        "### How to repeat it",
        _block(_commands(scored)),
    ]
    data = {"tags": TAGS, "library_name": "mplus", "pipeline_tag": "text-generation"}
    return _card(name, scored, about, parts, data)


def eval_results(scored: Scored) -> list[EvalResult]:
    """The numbers of the model's own systems as entries of a `model-index`."""
    return [
        _entry(task.name, one, part, metric, score)
        for task, results in scored
        for one in results
        if one.name in OWN
        for part, scores in _scores(one)
        for metric, score in scores.items()
        if score["mean"] is not None
    ]


def _entry(task: str, one: SystemResults, part: Sequence[str], metric: str, score: Mapping[str, Any]) -> EvalResult:
    from huggingface_hub import EvalResult

    settings = one.results["settings"]
    interval = {key: score[key] for key in ("n", "items", "low", "high")} | {"confidence": CONFIDENCE}
    return EvalResult(
        task_type="text-generation" if task in _LIKELIHOODS else "question-answering",
        task_name=TASKS[task].title if task in TASKS else task,
        dataset_type=task,
        dataset_name=" ".join([task, *part]),
        dataset_config=_config(settings, part),
        dataset_args=_known({key: settings[key] for key in ("length", "limit", "seed", "items_sha256")}),
        metric_type=metric,
        metric_name=f"{metric} ({one.label})",
        metric_value=score["mean"],
        metric_args=_known({"system": one.label} | interval),
    )


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is known; the hub's YAML has no place for anything else."""
    return {key: value for key, value in values.items() if value is not None}


def check_free(folders: Sequence[Path]) -> None:
    """That no card is overwritten.

    Raises:
        UsageError: there is one already.
    """
    there = [str(folder / NAME) for folder in folders if (folder / NAME).exists()]
    if there:
        raise UsageError(f"{' and '.join(there)} is there already and is not overwritten", "--force replaces it")


def write(cards: Mapping[Path, ModelCard]) -> list[Path]:
    """Save cards as README.md of their folders."""
    for folder, card in cards.items():
        with atomic_write(folder / NAME) as file:
            file.write(str(card).encode("utf-8", "replace"))
    return [folder / NAME for folder in cards]


def check_model(folder: Path, scored: Scored) -> None:
    """That a folder holds the model of these results.

    Raises:
        UsageError: it holds another one.
        CheckpointError: it holds none.
    """
    from mplus_cli.inference.models import load_model

    facts = scored[0][1][0].run["model"]
    found = load_model(str(folder), "cpu", facts["dtype"], facts.get("quantize")).model.fingerprint()
    wrong = [key for key in ("config_sha256", "weights_sha256") if found[key] != facts[key]]
    if wrong:
        raise UsageError(f"{folder} is not the model of these results ({facts['name']}): {', '.join(wrong)} differ")


def _card(name: str, scored: Scored, about: About, parts: Sequence[str], data: Mapping[str, Any]) -> ModelCard:
    from huggingface_hub import ModelCard, ModelCardData

    found = eval_results(scored)
    known: dict[str, Any] = {
        "license": about.license,
        "base_model": about.base_model,
        "language": list(about.languages) or None,
    }
    if found:
        known |= {"model_name": name, "eval_results": found, "metrics": sorted({one.metric_type for one in found})}
    card = ModelCardData(**_known({**known, **data}))
    return ModelCard(f"---\n{card.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _of_one_model(scored: Scored, name: str | None) -> tuple[Scored, str]:
    """The results with a name of the model that is none of this machine's paths."""
    facts = {one.run["model"]["weights_sha256"]: one.run["model"]["name"] for _, results in scored for one in results}
    if len(facts) > 1:
        raise UsageError(f"results of {len(facts)} models: {', '.join(facts.values())}", "a card is of one model")
    (known,) = facts.values()
    short = name or (Path(known).name if Path(known).is_absolute() else known)
    return [(task, [_named(one, short) for one in results]) for task, results in scored], short


def _named(one: SystemResults, name: str) -> SystemResults:
    # Without the example of a prompt: test data do not belong on the hub, where models are trained on what is there.
    results = {**one.results, "model": {**one.results["model"], "name": name}, "prompt": {}}
    return replace(one, results=results)


def _sections(scored: Scored, level: str = "##") -> Iterator[str]:
    for task, results in scored:
        yield f"{level} {results[0].results['task']}"
        if task.name in TASKS:
            yield TASKS[task.name].title + "."
        yield from (table.markdown() for table in tables(task, results))
        yield conditions(task, results)


def _scores(one: SystemResults) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Scores of everything, and of each data set where a task has several."""
    yield (), one.results["scores"]
    for group in one.results["groups"]:
        if len(group["by"]) == 1 and set(group["by"]) <= set(LEVELS):
            yield tuple(map(str, group["by"].values())), group["scores"]


def _config(settings: Mapping[str, Any], part: Sequence[str]) -> str:
    """A data set as one name: the task with its settings, so that no two of them are taken for one."""
    given = [f"{key}={settings[key]}" for key in ("length", "limit", "seed") if settings[key] is not None]
    return " ".join([settings["task"], *part, *given])


def _sizes(facts: Mapping[str, Any]) -> str:
    config = {**facts["config"], "parameters": facts["parameters"]}
    text = config.get("text_config") or {}
    rows = [(text_name, config[key]) for key, text_name in _SIZES.items() if config.get(key) is not None]
    layers = [("layers", text["num_hidden_layers"]), ("hidden size", text["hidden_size"])] if text else []
    lines = [f"| {name} | {value:,} |" for name, value in [*layers, *rows]]
    return "\n".join(["| | |", "| --- | ---: |", *lines, f"| decoder | {text.get('model_type', '-')} |"])


def _commands(scored: Scored) -> list[str]:
    """The commands that made the results, each once; folders of this machine by their last name."""
    lines: dict[str, None] = {}
    for _, results in scored:
        for one in results:
            for session in one.results["sessions"][:1]:
                words = (Path(word).name if Path(word).is_absolute() else word for word in session["command"])
                lines[" ".join(words)] = None
    return list(lines)


def _block(lines: Sequence[str]) -> str:
    return "\n".join(["```sh", *lines, "```"])
