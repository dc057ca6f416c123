"""DeepSpeed around a model: ZeRO stage 0 to 2 by a json file the user can edit, on CPU and CUDA, one process or many.

The recipe decides what learning means (rates, clipping, batch, precision); the json file decides how it is computed
(partitioning, buckets, offloading). A key that both could set is refused in the json file, so that it is never unclear
which of the two counts.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import UsageError
from mplus_cli.training.processes import Processes, import_deepspeed
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.schedule import base_rate, rate_factor

if TYPE_CHECKING:
    from mplus_cli.training.examples import Example
    from mplus_cli.training.step import StepOutput, StepRunner, TaskDraw

Groups = Mapping[str, list[tuple[str, nn.Parameter]]]  # group -> named parameters that train

# Key of the json file -> where it is set instead.
SET_BY_RECIPE = {
    "train_batch_size": "data.batch_size",
    "train_micro_batch_size_per_gpu": "data.batch_size",
    "gradient_accumulation_steps": "optimizer.accumulation",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "bf16": "precision",
    "fp16": "precision",
    "torch_autocast": "precision",
}
FILES = "engine"  # DeepSpeed's own files inside a checkpoint


def read_configuration(path: Path) -> dict[str, Any]:
    """The user's DeepSpeed configuration.

    Raises:
        UsageError: it is no json object, sets what the recipe sets, or asks for a ZeRO stage that cannot work.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The DeepSpeed configuration {path} cannot be read: {error}.") from error
    if not isinstance(settings, dict):
        raise UsageError(f"The DeepSpeed configuration {path} must hold one json object.")
    problems = [f"{key}: set {SET_BY_RECIPE[key]} in the recipe" for key in settings if key in SET_BY_RECIPE]
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2):
        problems.append(
            "zero_optimization.stage: must be 0, 1 or 2 (stage 3 takes apart the weights that writes share)"
        )
    if problems:
        raise UsageError(f"{path} cannot be used:\n" + "\n".join(f"  {line}" for line in problems))
    return settings


class TrainingStep(nn.Module):
    """The model as DeepSpeed sees it: one call runs one task on one batch and returns its loss."""

    def __init__(self, model: MPlusForCausalLM, runner: StepRunner) -> None:
        super().__init__()
        self.model = model
        self.runner = runner
        self.output: StepOutput | None = None

    def forward(self, step: int, batch: list[Example], task: TaskDraw) -> torch.Tensor:
        self.output = self.runner.run(step, batch, task)
        return self.output.loss


class Engine:
    """What the loop asks of DeepSpeed.

    Args:
        groups: the parameters that train, by group; every group has its learning rate.
        settings: the user's DeepSpeed configuration (see `read_configuration`).
    """

    def __init__(
        self,
        model: MPlusForCausalLM,
        runner: StepRunner,
        groups: Groups,
        recipe: Recipe,
        settings: Mapping[str, Any],
        processes: Processes,
    ) -> None:
        self.model, self.groups, self.recipe, self.processes = model, groups, recipe, processes
        self.rows = recipe.data.batch_size * recipe.optimizer.accumulation * processes.world
        self.step_module = TrainingStep(model, runner)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for _, p in members], "lr": base_rate(name, recipe.optimizer, self.rows), "name": name}
                for name, members in groups.items()
            ],
            betas=recipe.optimizer.betas,
            eps=recipe.optimizer.eps,
            weight_decay=recipe.optimizer.weight_decay,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.deepspeed, self.optimizer, _, _ = import_deepspeed().initialize(
                model=self.step_module,
                optimizer=optimizer,
                config=complete(settings, recipe, sum(p.numel() for g in groups.values() for _, p in g)),
                dist_init_required=False,
            )
        # Some versions cast buffers with the weights; rotary frequencies in bfloat16 would be another model's.
        for name, buffer in model.named_buffers():
            buffer.data = buffers[name].to(buffer.device)

    def forward(self, step: int, batch: list[Example], task: TaskDraw) -> StepOutput:
        """Run one task on one batch of this process."""
        self.deepspeed(step, batch, task)
        output, self.step_module.output = self.step_module.output, None
        assert output is not None
        return output

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradient of `loss`, which is divided already by the number of losses of this step; `last` of them."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, step: int) -> tuple[float, float]:
        """Update the weights.

        Returns:
            The factor of the learning rates, and the norm of the gradient before clipping: NaN or infinite when the
            gradient was, and then the weights may have been left as they were.
        """
        factor = rate_factor(step, self.recipe.steps, self.recipe.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * base_rate(group["name"], self.recipe.optimizer, self.rows)
        norm = self._plain_norm()
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if norm is None else norm
        # DeepSpeed writes into the weights' storage unseen by autograd, whose counters tell caches to be made again.
        for members in self.groups.values():
            for _, parameter in members:
                torch.autograd.graph.increment_version(parameter)
        if not self.deepspeed.was_step_applied():
            return factor, float("nan")
        return factor, float("nan") if norm is None or norm < 0 else float(norm)

    def _plain_norm(self) -> float | None:
        """Norm of the gradient where DeepSpeed leaves it with the parameters and has none itself (stage 0, float32)."""
        found = [p.grad.norm() for members in self.groups.values() for _, p in members if p.grad is not None]
        plain = isinstance(self.deepspeed.optimizer, torch.optim.Optimizer)
        return float(torch.stack(found).norm()) if plain and found else None

    def state(self) -> dict[str, Any]:
        """Everything DeepSpeed holds that training goes on from: trained weights and this process's optimizer part."""
        weights = {name: p.detach() for members in self.groups.values() for name, p in members}
        return {"weights": weights, "optimizer": self.deepspeed.optimizer.state_dict()}

    def save(self, folder: Path) -> None:
        """Write trained weights and optimizer below `folder`; all processes together."""
        self.deepspeed.save_checkpoint(str(folder), tag=FILES, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Go back to what `save` wrote; all processes together, as many as saved it."""
        self.deepspeed.load_checkpoint(str(folder), tag=FILES, load_module_strict=False, load_lr_scheduler_states=False)


def complete(settings: Mapping[str, Any], recipe: Recipe, trained: int) -> dict[str, Any]:
    """The configuration DeepSpeed gets: the user's, and what the recipe decides.

    Args:
        trained: number of trained values; buckets are made no larger, since DeepSpeed allocates them whole.
    """
    zero = dict(settings.get("zero_optimization", {}))
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        zero[key] = min(int(zero.get(key, 500_000_000)), trained)
    return {
        "steps_per_print": 2**31,  # the loop has its own status line
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **settings,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": recipe.data.batch_size,
        "gradient_accumulation_steps": 1,  # the loop says itself which backward pass is the last of a step
        "gradient_clipping": recipe.optimizer.clip or 0.0,
        "bf16": {"enabled": recipe.precision == "bfloat16"},
    }
