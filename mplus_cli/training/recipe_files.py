"""Where recipes come from: YAML files, the defaults of their stage, overrides; and which ones are shipped.

recipe = load_recipe(Path("recipes/stage1.yaml"), ["model=meta-llama/Llama-3.1-8B", "optimizer.lr=1e-4"])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mplus_cli import config
from mplus_cli.errors import UsageError
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.recipe_checks import problems_of
from mplus_cli.training.stages import STAGES, StageName

PACKAGE = Path(__file__).parents[1]


def load_recipe(path: Path | None, overrides: Sequence[str] = (), stage: StageName | None = None) -> Recipe:
    """Read a recipe: defaults < the stage's < the file < overrides.

    Args:
        path: of the YAML, or None for the shipped recipe of `stage`.
        stage: that the command asked for; the recipe must be of it.

    Raises:
        UsageError: an unreadable file, or every unknown key, wrong type, value out of range and contradiction.
    """
    if path is None:
        if stage is None:
            raise UsageError("Neither a stage nor a recipe is given.", "mplus train --stage 1, or --config RECIPE.yaml")
        path = shipped_recipes()[f"stage{stage}" if stage != "base" else "default/base"]
    given = config.override(config.read_yaml(path), overrides)
    given.setdefault("stage", stage)
    name = str(path)
    if not isinstance(given["stage"], (int, str)) or given["stage"] not in STAGES or given["stage"] is True:
        known = ", ".join(str(known) for known in STAGES)
        raise UsageError(f"{name}: there is no stage {given['stage']!r}; stages are {known}.", "mplus train --list")
    if stage is not None and given["stage"] != stage:
        raise UsageError(
            f"{name} is a recipe of stage {given['stage']}, not {stage}.", f"Pass --stage {given['stage']}."
        )
    mapping = config.merge(STAGES[given["stage"]].defaults, given)
    if isinstance(mapping.get("deepspeed"), str):
        mapping["deepspeed"] = _beside(path, mapping["deepspeed"])
    recipe = config.build(Recipe, mapping, name)
    config.refuse(name, problems_of(recipe))
    return recipe


def recipe_from(mapping: dict[str, Any], name: str = "the recipe") -> Recipe:
    """A recipe from plain data (tests, notebooks), stage defaults included."""
    stage = mapping.get("stage")
    below = STAGES[stage].defaults if stage in STAGES else {}
    recipe = config.build(Recipe, config.merge(below, mapping), name)
    config.refuse(name, problems_of(recipe))
    return recipe


def as_mapping(recipe: Recipe) -> dict[str, Any]:
    """Plain data of a recipe."""
    return asdict(recipe)


def recipe_folder() -> Path:
    """Where shipped recipes lie: inside an installed package, or at the top of the repository."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe, such as `stage1` and `default/stage1`."""
    folder = recipe_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def default_run(name: str) -> Path:
    """Folder of a run of the recipe of this name, unless another is asked for."""
    return Path("runs") / name.replace("/", "-")


def deepspeed_file(recipe: Recipe) -> Path:
    """The DeepSpeed configuration of a recipe.

    Raises:
        UsageError: there is no such file.
    """
    shipped = recipe_folder() / "deepspeed" / f"{recipe.deepspeed}.json"
    path = shipped if shipped.is_file() else Path(recipe.deepspeed)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in shipped.parent.glob("*.json")))
        raise UsageError(f"There is no DeepSpeed configuration {recipe.deepspeed!r}.", f"Shipped ones: {names}.")
    return path


def _beside(recipe: Path, name: str) -> str:
    """A path relative to the recipe as an absolute one; shipped names stay names."""
    candidate = recipe.parent / name
    return str(candidate.resolve()) if name.endswith(".json") and candidate.is_file() else name
