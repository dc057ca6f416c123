"""One call of `mplus eval`, from the request to the last answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mplus_cli.errors import MPlusError
from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.request import Request, make_plan
from mplus_cli.evaluation.runner import Show, evaluate
from mplus_cli.evaluation.runs import Pair, discard_if_unused, find_pairs, opened, pair_folder


def run(
    request: Request, show: Show, warn: Callable[[str], None], command: Sequence[str] = (), verbose: bool = False
) -> list[Pair]:
    """Answer what has no answer yet.

    Args:
        warn: given a line for every line of predictions that was damaged and is made again.

    Returns:
        The folders of the request's tasks and systems.

    Raises:
        MPlusError: bad input, before any work; out of memory, a failure or Ctrl-C, with what is finished kept.
    """
    plan = make_plan(request)
    with opened(request):
        try:
            _merge(request.out, lambda damage: warn(f"{damage}; its sample is asked again"))
            if (request.processes or 1) == 1 and request.hostfile is None:
                evaluate(request, plan, show, command, started=request.save)
            else:
                from mplus_cli.evaluation.sharing import evaluate_shared

                evaluate_shared(request, show, command, verbose)
        except KeyboardInterrupt:
            raise _interrupted(request) from None
        finally:
            _merge(request.out, lambda damage: warn(str(damage)))
            discard_if_unused(request.out)
    return [pair_folder(request.out, task.spec.folder, of.spec.folder) for task in plan.tasks for of in plan.systems]


def _merge(out: Path, on_damage: Callable[[predictions.Damage], None]) -> None:
    pairs = find_pairs([out]) if any(out.rglob("run.json")) else []
    for pair in pairs:
        for damage in predictions.merge(pair.path, pair.samples())[1]:
            on_damage(damage)


def _interrupted(request: Request) -> MPlusError:
    pairs = find_pairs([request.out]) if any(request.out.rglob("run.json")) else []
    done = sum(len(predictions.read(predictions.files(pair.path))[0]) for pair in pairs)
    total = sum(len(pair.samples()) for pair in pairs)
    kept = f"{done:,} of {total:,} samples are finished and kept" if pairs else "before the first sample"
    return MPlusError(f"interrupted; {kept}", hint=request.resume_command if pairs else None, exit_code=130)
