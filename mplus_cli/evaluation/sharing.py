"""Samples shared out over processes, on one machine or many, by the launcher that training uses.

DeepSpeed's launcher runs this module once per GPU. Nothing passes between the processes but files in the folder of the
evaluation, which all machines must see: the first one begins the folders and says so, and each appends to a file of its
own. An item's answers depend on nothing but the item and the seed, so the result is that of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mplus_cli.errors import MPlusError
from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.request import Request, make_plan
from mplus_cli.evaluation.runner import Share, Show, evaluate
from mplus_cli.evaluation.runs import LOG, Pair, find_pairs, write_json
from mplus_cli.training.launch import Launch, count_processes, launch_environment, module_command, session
from mplus_cli.training.processes import import_deepspeed
from mplus_cli.training.stopping import StopRequest

FOLDER = ".processes"
POLL_SECONDS = 0.2


def evaluate_shared(request: Request, show: Show, command: Sequence[str], verbose: bool = False) -> None:
    """`runner.evaluate` by several processes.

    Args:
        verbose: show everything that they print; else it is in `DIR/output.log`.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
        UsageError: an unusable hostfile, more processes than GPUs, and all bad input that a process finds.
        MPlusError: one of them failed.
    """
    import_deepspeed()
    launch = Launch(request.processes, request.hostfile, verbose)
    world = count_processes(launch, None)
    folder = (request.out / FOLDER).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        _launch(replace(request, processes=world), folder, launch, show, command)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _launch(request: Request, folder: Path, launch: Launch, show: Show, command: Sequence[str]) -> None:
    replace(request, out=request.out.absolute()).save(folder)
    write_json(folder / "command.json", {"command": list(command)})
    arguments = [str(folder), "--token", secrets.token_hex(8)]
    world = request.processes or 1
    line = module_command("mplus_cli.evaluation.sharing", arguments, launch, world)
    log = request.out / LOG
    with log.open("a", encoding="utf-8") as output:
        print(f"--- {' '.join(line)}", file=output, flush=True)
        with session(line, launch_environment(world, launch), sys.stderr if launch.verbose else output) as process:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                if (folder / "ready").exists():
                    show(*_counts(request.out), f"{world} processes")
    failure = _failure(folder, process.returncode, log)
    if failure is not None:
        if failure.exit_code == 2:  # bad input: the message says it all
            log.unlink(missing_ok=True)
        raise failure


def _counts(out: Path) -> tuple[int, int]:
    """Finished samples and all samples of a folder."""
    pairs = find_pairs([out])
    return sum(count_lines(pair) for pair in pairs), sum(pair.run()["samples"] for pair in pairs)


def count_lines(pair: Pair) -> int:
    """Lines of predictions, sound or not; quick."""
    return sum(path.read_bytes().count(b"\n") for path in predictions.files(pair.path))


def _failure(folder: Path, code: int, log: Path) -> MPlusError | None:
    """The first expected error that a process left, else the first of any kind; None if all went well."""
    words = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("failure-*.json"))]
    words.sort(key=lambda word: not word["expected"])
    if words:
        return MPlusError(words[0]["message"], words[0]["hint"], words[0]["exit_code"])
    return MPlusError(f"a process failed: the launcher ended with code {code}", f"see {log}") if code else None


def main(arguments: Sequence[str] | None = None) -> int:
    """One launched process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m mplus_cli.evaluation.sharing")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--token", required=True)
    parser.add_argument("--launcher", nargs=2, metavar=("PROCESS", "HOST"), required=True)
    options = parser.parse_args(arguments)
    stop = StopRequest(None, (int(options.launcher[0]), options.launcher[1]))
    rank = int(os.environ["RANK"])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _work(options.folder, rank, options.token, stop)
    except Exception as error:
        traceback.print_exc()
        _leave_word(options.folder, rank, error)
        return error.exit_code if isinstance(error, MPlusError) else 1
    return 0


def _work(folder: Path, rank: int, token: str, stop: StopRequest) -> None:
    request = Request.load(folder)
    if request.device is None and torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        request = replace(request, device=f"cuda:{os.environ['LOCAL_RANK']}")
    ready = folder / "ready"

    def started() -> None:
        if rank == 0:
            request.save()
            ready.write_text(token, encoding="utf-8")
        while not (ready.is_file() and ready.read_text(encoding="utf-8") == token):
            _stop_if(stop)
            time.sleep(POLL_SECONDS)

    command = json.loads((folder / "command.json").read_text(encoding="utf-8"))["command"]
    share = Share(rank, int(os.environ["WORLD_SIZE"]))
    evaluate(request, make_plan(request), lambda done, of, what: _stop_if(stop), command, share, started)


def _stop_if(stop: StopRequest) -> None:
    if stop():
        raise MPlusError("the command that launched this process is gone", exit_code=130)


def _leave_word(folder: Path, rank: int, error: Exception) -> None:
    """Tell the launching command why this process ended."""
    if isinstance(error, MPlusError):
        word: dict[str, Any] = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    else:
        first = (str(error).strip().splitlines() or [""])[0]
        word = {"message": f"unexpected {type(error).__name__}: {first}", "hint": None, "exit_code": 1}
    with contextlib.suppress(OSError):
        write_json(folder / f"failure-{rank:05d}.json", word | {"expected": isinstance(error, MPlusError)})


if __name__ == "__main__":
    sys.exit(main())
