"""Running the stages of a build on a cluster with datatrove's executors: Slurm, or Ray."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from mplus_cli.data.building.engine import Stage, Watch, jobs_folder, quiet_datatrove
from mplus_cli.errors import MissingExtraError, MPlusError, UsageError

EXECUTORS = ("local", "slurm", "ray")
_EXAMPLES = {
    "slurm": "Slurm needs at least --executor-option time=08:00:00 --executor-option partition=NAME",
    "ray": "For example --executor-option workers=64 --executor-option mem_per_cpu_gb=2",
}


def submit_to_slurm(stages: list[Stage], folder: Path, options: dict[str, str]) -> list[str]:
    """Hand the stages to Slurm, each a job that waits for the one before; returns the ids of the jobs.

    Args:
        options: of datatrove's executor, such as time=08:00:00 and partition=cpu.

    Raises:
        UsageError: there is no Slurm here, or the options are not datatrove's.
    """
    if shutil.which("sbatch") is None:
        raise UsageError("Slurm's sbatch is not on this machine.", "Run this on a login node of the cluster.")
    from datatrove.executor.slurm import SlurmPipelineExecutor

    executors: list[Any] = []
    for stage in stages:
        named = {"job_name": f"mplus-{stage.step.name}"} | options
        before = executors[-1] if executors else None
        executors.append(_executor(SlurmPipelineExecutor, "slurm", stage, folder, named, before))
    with contextlib.redirect_stdout(sys.stderr):
        executors[-1].run()  # launches what it depends on first
    return [str(executor.job_id) for executor in executors if executor.job_id]


def run_on_ray(stage: Stage, folder: Path, options: dict[str, str]) -> None:
    """Run the unfinished tasks of a stage on the Ray cluster this machine belongs to, or on a Ray of its own.

    Args:
        options: of datatrove's executor, such as workers=64 and mem_per_cpu_gb=2.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: a task found bad input.
        MPlusError: tasks failed; their logs say why.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("the Ray executor needs ray", "pip install ray")
    from datatrove.executor.ray import RayPipelineExecutor

    executor = _executor(RayPipelineExecutor, "ray", stage, folder, options)
    quiet_datatrove()
    stage.step.failure.unlink(missing_ok=True)
    with Watch(stage, folder), contextlib.redirect_stdout(sys.stderr):
        executor.run()
    failed = executor.get_incomplete_ranks()
    if failed and stage.step.failure.is_file():
        reason = json.loads(stage.step.failure.read_bytes())
        raise UsageError(reason["message"], reason["hint"])
    if failed:
        logs = jobs_folder(folder, stage) / "logs"
        raise MPlusError(
            f"{len(failed):,} of {stage.tasks:,} tasks failed while {stage.label}; {logs} says why",
            "Run the same command again; what is done stays done.",
        )


def _executor(kind: Any, name: str, stage: Stage, folder: Path, options: dict[str, str], depends: Any = None) -> Any:
    try:
        return kind(
            [stage.step],
            tasks=stage.tasks,
            logging_dir=str(jobs_folder(folder, stage)),
            depends=depends,
            # datatrove compares and formats numbers
            **{key: int(value) if value.isdigit() else value for key, value in options.items()},
        )
    except TypeError as error:
        raise UsageError(
            f"datatrove's {name} executor does not take these options: {error}.", _EXAMPLES[name]
        ) from error
