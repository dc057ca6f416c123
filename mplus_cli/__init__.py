"""mplus: long-term memory inside language models.

    from mplus_cli import MemoryState, MPlusForCausalLM, load_tokenizer

Names are imported on first use, so `import mplus_cli` (and `mplus --help`) loads neither torch nor transformers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mplus_cli.core.configuration_mplus import MPlusConfig
    from mplus_cli.core.loading import load_tokenizer
    from mplus_cli.core.memory import Memory
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM
    from mplus_cli.core.state.memory_state import MemoryState

__all__ = ["MPlusConfig", "MPlusForCausalLM", "Memory", "MemoryState", "__version__", "load_tokenizer"]

_HOME = {
    "MPlusConfig": "mplus_cli.core.configuration_mplus",
    "MPlusForCausalLM": "mplus_cli.core.modeling_mplus",
    "Memory": "mplus_cli.core.memory",
    "MemoryState": "mplus_cli.core.state.memory_state",
    "load_tokenizer": "mplus_cli.core.loading",
}


# peft and transformers import bitsandbytes wherever it is installed, and that names each optional kernel it lacks, at
# every start. It has to be told before either is imported.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
