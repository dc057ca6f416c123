"""The result of a run: a Hugging Face checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import MPlusError
from mplus_cli.training.disk import disk_is_full, flush


def export(model: MPlusForCausalLM, tokenizer: Any, folder: Path) -> None:
    """The result as a Hugging Face checkpoint with its tokenizer, which `mplus inject` and `mplus ask` take.

    Raises:
        MPlusError: the disk is full.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for weights in partial.glob("*.safetensors"):  # which safetensors leaves readable by their owner alone
            shutil.copymode(partial / "config.json", weights)
        for path in [*partial.rglob("*"), partial]:
            flush(path)
    except Exception as error:
        if disk_is_full(error, folder.parent):
            shutil.rmtree(partial, ignore_errors=True)
            hint = f"Free some space, then: mplus train --resume {folder.parent}"
            raise MPlusError("The disk is full: the result was not written.", hint) from error
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
