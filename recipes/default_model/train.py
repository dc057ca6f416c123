"""Trains the bundled default model from nothing, step by step of `PLAN`; about an hour and a half on two cores.

    python -m recipes.default_model.train --work WORK --tokenizer assets/default --processes 2
    python -m recipes.default_model.export WORK/9-far.pt assets/default --tokenizer assets/default
    python -m recipes.default_model.evaluate assets/default --out assets/figures/default_model

Every entry of the plan ends as `WORK/<number>-<phase>.pt`; a stopped run goes on with the first that is missing. Seeds
and schedules count steps, so one machine gives one result. Several processes average their gradients.
`--only 4 --steps 50` runs one entry again, from the checkpoint before it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoTokenizer

from recipes.default_model import chronicle_pool, curriculum, far
from recipes.default_model.copying_start import copying_start
from recipes.default_model.fast_model import FastModel
from recipes.default_model.parameters import Sizes

PHASES = {
    "copying": curriculum.Copying,
    "base": curriculum.Base,
    "memory": curriculum.Memory,
    "search": far.Search,
    "far": far.Far,
}
POOLS = {"bare": 20, "names": 30, "full": 150}  # chronicles of each kind


@dataclass(frozen=True)
class Entry:
    """One entry of the plan.

    Attributes:
        phase, level: what to train on (see `curriculum` and `far`), and where in its levels to begin.
        steps: at most; a phase also ends when the score of its last level is reached.
        rate, retriever_rate: peak learning rates.
        decay_from: share of the steps after which the rates fall to 5%.
    """

    phase: str
    steps: int
    level: int = 0
    rate: float = 2e-3
    retriever_rate: float = 2e-3
    decay_from: float = 1.0


PLAN = (
    Entry("copying", 250),
    Entry("base", 1_000),
    Entry("memory", 500),
    Entry("memory", 200, level=2),
    Entry("far", 200),
    Entry("search", 200, retriever_rate=4e-3, decay_from=0.5),
    Entry("far", 200, retriever_rate=3e-3),
    Entry("far", 335, level=1, rate=1.6e-3, decay_from=0.1),
    Entry("far", 170, level=2, rate=1e-3, retriever_rate=1e-3, decay_from=0.1),
)


def average_gradients(model: FastModel, world: int) -> None:
    """Sets every gradient to its mean over the processes. A parameter without gradient has 0."""
    if world == 1:
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    dist.all_reduce(flat)
    flat /= world
    at = 0
    for p in trained:
        p.grad = flat[at : at + p.numel()].view_as(p).clone()
        at += p.numel()


def parameter_groups(model: FastModel, rate: float, retriever_rate: float) -> list[dict]:
    """The retriever has its own rate; norms, BOS rows and the new-memory vector no weight decay."""
    retriever = [p for name, p in model.named_parameters() if ".query." in name or ".key." in name]
    known = {id(p) for p in retriever}
    rest = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
    return [
        {"params": [p for p in rest if p.ndim > 1], "peak": rate, "weight_decay": 0.01},
        {"params": [p for p in rest if p.ndim <= 1], "peak": rate, "weight_decay": 0.0},
        {"params": retriever, "peak": retriever_rate, "weight_decay": 0.0},
    ]


def learning_rate(step: int, progress: float, decay_from: float) -> float:
    """Share of the peak: warm-up over 25 steps, constant, then linear to 5% from `decay_from` on."""
    late = max(0.0, (progress - decay_from) / max(1e-9, 1 - decay_from))
    return min(1.0, (step + 1) / 25) * (1 - 0.95 * min(1.0, late))


def checkpoint(work: Path, number: int) -> Path:
    return work / f"{number}-{PLAN[number - 1].phase}.pt"


def run(rank: int, number: int, args: argparse.Namespace) -> None:
    """Entry `number` (from 1) of the plan, in one of the processes."""
    entry, work, steps = PLAN[number - 1], Path(args.work), args.steps or PLAN[number - 1].steps
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.processes > 1:
        address = f"tcp://127.0.0.1:{args.port + number}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=args.processes)
    model = FastModel(Sizes())
    if number == 1:
        copying_start(model)
    else:
        model.load_state_dict(torch.load(checkpoint(work, number - 1), weights_only=True))
    phase = PHASES[entry.phase](model, work, entry.level, [args.seed, number], rank)
    groups = parameter_groups(model, entry.rate, entry.retriever_rate)
    optimizer = torch.optim.AdamW(groups, entry.rate, betas=(0.9, 0.95), fused=True)
    begun, done = time.time(), False
    for step in range(steps):
        share = learning_rate(step, step / steps, entry.decay_from)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        loss = phase.step(step, step / steps)
        loss.backward()
        average_gradients(model, args.processes)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if args.processes > 1:
            phase.share(dist)
        done = phase.finished() or step + 1 == steps
        if rank == 0 and ((step + 1) % 25 == 0 or done):
            line = f"{number} {entry.phase} step {step + 1}/{steps} {time.time() - begun:.0f}s rate {share:.2f} "
            line += f"loss {loss.item():.3f} gradient {norm:.2f} {phase.status()}"
            print(line, flush=True)
            with open(work / "train.log", "a") as log:
                log.write(line + "\n")
            part = checkpoint(work, number).with_suffix(".part")
            torch.save(model.state_dict(), part)
            if done:
                part.rename(checkpoint(work, number))
        if done:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder of text pools, checkpoints and the log")
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes; give each a core")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--only", type=int, help="number of the one entry of the plan to run")
    parser.add_argument("--steps", type=int, help="instead of the plan's, for a trial")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=29_540)
    args = parser.parse_args()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    if not all((work / f"{kind}.pkl").exists() for kind in POOLS):
        chronicle_pool.build(work, AutoTokenizer.from_pretrained(args.tokenizer), POOLS)
    for number in [args.only] if args.only else range(1, len(PLAN) + 1):
        if args.only or not checkpoint(work, number).exists():
            mp.spawn(run, (number, args), args.processes)


if __name__ == "__main__":
    main()
