"""The base model with SnapKV: after the prompt is read, only the keys and values its end attends to are kept.

Through the kvpress library. The window at the end of the prompt that decides (64 tokens) holds the question, as in
SnapKV (arXiv 2404.14469). The paper keeps 16k of 32k tokens, and reads up to 48k for knowledge retention.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mplus_cli.config import Range
from mplus_cli.errors import MissingExtraError
from mplus_cli.evaluation.prompting import Generated, Kept, Prompt, generate
from mplus_cli.evaluation.systems.window import Window

if TYPE_CHECKING:
    from mplus_cli.evaluation.system import SystemSettings
    from mplus_cli.inference.models import LoadedModel


@dataclass(frozen=True)
class SnapKVOptions:
    """Settings of `snapkv`.

    Attributes:
        cache: keys and values kept per layer and head.
        size: tokens of prompt and answer together, at most the positions of the model; cut: see `window`.
        observed: tokens at the end of the prompt whose attention decides.
    """

    cache: Annotated[int, Range(low=1)] = 16_384
    size: Annotated[int, Range(low=16)] = 49_152
    cut: Literal["left", "middle"] = "left"
    observed: Annotated[int, Range(low=1)] = 64


class SnapKV(Window):
    """Prompts are read one by one: what is kept of each differs."""

    name = "snapkv"
    options_class = SnapKVOptions
    shares_text = False  # what is kept of the documents depends on the question

    def __init__(self, loaded: LoadedModel, settings: SystemSettings) -> None:
        try:
            from kvpress import SnapKVPress
        except (ImportError, AttributeError) as error:
            raise MissingExtraError(
                f"system snapkv needs the package kvpress, and it transformers below 5.3 ({error})",
                hint='in an environment of its own: pip install "mplus[snapkv]"',
            ) from error
        super().__init__(loaded, settings)
        self.press = SnapKVPress

    def generate(self, prompts: Sequence[Prompt], stop: str, kept: Kept | None = None) -> list[Generated]:
        """See `TextSystem.generate`."""
        base, made = self.base, []
        for prompt in prompts:
            prefill = self.compress(len(base.start) + len(prompt.ids))
            made += generate(base.model, base.tokenizer, [prompt], base.ends, stop, base.start, prefill=prefill)
        return made

    def compress(self, length: int) -> Any:
        """What is entered around the reading of a prompt of `length` tokens."""
        observed = min(self.options.observed, self.options.cache)
        if length <= max(self.options.cache, observed + 1):
            return nullcontext()
        # The half keeps the library's rounding down from losing a token.
        ratio = 1 - (self.options.cache + 0.5) / length
        return self.press(compression_ratio=ratio, window_size=observed)(self.base.model)

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        options = self.options
        return super().describe() | {
            "cache": options.cache,
            "observed": options.observed,
            "kvpress": version("kvpress"),
        }
