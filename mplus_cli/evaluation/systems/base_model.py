"""The base model that systems without memory answer with: a plain Hugging Face causal language model.

Of a memory model it is the backbone, in the stock class, without memory. How it was taught decides how it is read:

- A backbone that was a language model before (M+ on Llama) is read as it was then: its own weights, shared and not
  copied, no adapters, and in front what its tokenizer puts there.
- A backbone that was made inside a memory model (the bundled one) knows text only behind the memory model's BOS row of
  every layer and through its read adapter, and is read in that way.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from mplus_cli.core.adapters import READ
from mplus_cli.core.loading import encode, load_tokenizer
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import UsageError
from mplus_cli.inference.answering import end_tokens

if TYPE_CHECKING:
    from mplus_cli.evaluation.system import SystemSettings
    from mplus_cli.inference.models import LoadedModel

SCRATCH_STAGE = "base"  # the training stage that makes a backbone from random weights
PLACE = 0  # token id that stands where hooks put the BOS rows


@dataclass(frozen=True)
class BaseModel:
    """A plain model with its tokenizer.

    Attributes:
        start: token ids before every prompt.
        ends: token ids that end an answer.
        kind: what it is, for run.json.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    start: list[int]
    ends: list[int]
    kind: dict[str, Any]

    @property
    def window(self) -> int:
        """Positions that the model has."""
        return int(self.model.config.max_position_embeddings)


def base_model(loaded: LoadedModel, settings: SystemSettings) -> BaseModel:
    """The model that `--base-model` names, or the backbone of the memory model. Systems of one run share it.

    Raises:
        UsageError: the named one cannot be loaded.
    """
    return _base_model(loaded.model, loaded.tokenizer, settings.base_model, loaded.name)


@lru_cache(maxsize=1)
def _base_model(
    memory_model: MPlusForCausalLM, tokenizer: PreTrainedTokenizerBase, name: str | None, memory_name: str
) -> BaseModel:
    if name is None:
        return _of_memory_model(memory_model, tokenizer, memory_name)
    model, tokenizer = _load(name, memory_model)
    if isinstance(model, MPlusForCausalLM):  # as the base stage makes it
        return _of_memory_model(model, tokenizer, name)
    return _plain(model, tokenizer, {"model": name, "adapter": None})


def _of_memory_model(model: MPlusForCausalLM, tokenizer: PreTrainedTokenizerBase, name: str) -> BaseModel:
    kind: dict[str, Any] = {"model": f"backbone of {name}", "adapter": None}
    if stood_alone(model):
        return _plain(backbone(model), tokenizer, kind)
    plain = backbone(model, READ)
    put_bos_rows(plain, model.bos_embedding)
    kind |= {"adapter": READ, "start": "a BOS row in every layer"}
    return BaseModel(plain, tokenizer, [PLACE], end_tokens(plain, tokenizer), kind)


def _plain(model: Any, tokenizer: PreTrainedTokenizerBase, kind: dict[str, Any]) -> BaseModel:
    start = start_tokens(tokenizer)
    kind["start"] = tokenizer.convert_ids_to_tokens(start)
    return BaseModel(model, tokenizer, start, end_tokens(model, tokenizer), kind)


def stood_alone(model: MPlusForCausalLM) -> bool:
    """Whether the backbone was a language model of its own before it got a memory."""
    text = model.config.text_config
    if SCRATCH_STAGE in (getattr(model.config, "trained_stages", None) or []):
        return False
    return text.bos_token_id is not None or bool(text.architectures)


def start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text."""
    bare = encode(tokenizer, "a")
    ids = tokenizer("a", verbose=False)["input_ids"]
    return list(ids[: ids.index(bare[0])])


def backbone(model: MPlusForCausalLM, adapter: str | None = None) -> Any:
    """The decoder of a memory model as a stock causal language model on the same device.

    Args:
        adapter: merged into copies of the matrices it adapts; None for the bare weights, which are shared.
    """
    if model.quantized is not None:
        raise UsageError(
            f"This system runs the backbone of the model, which --quantize {model.quantized} has taken the place of.",
            "Name a --base-model, or leave out --quantize.",
        )
    config = copy.deepcopy(model.config.text_config)
    config.tie_word_embeddings = model.config.tie_word_embeddings
    attention = {"flash_attention_2": "flash_attention_2", "eager": "eager"}.get(model.attn_implementation, "sdpa")
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    plain.load_state_dict(_weights(model, adapter), strict=True, assign=True)
    plain.tie_weights()
    plain.model.rotary_emb = type(plain.model.rotary_emb)(config).to(model.device)  # not among the weights
    if adapter is not None:
        plain.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq
    plain.generation_config = model.generation_config
    return plain.requires_grad_(False).eval()


def _weights(model: MPlusForCausalLM, adapter: str | None) -> dict[str, torch.Tensor]:
    weights = {"lm_head.weight": model.lm_head.weight.detach()}
    for name, tensor in model.model.state_dict().items():
        if ".lora_" not in name:
            held = tensor.detach().to(model.device) if name == "embed_tokens.weight" else tensor.detach()
            weights["model." + name.replace(".base_layer.", ".")] = held
    modules = model.model.named_modules() if adapter else []
    for name, module in modules:
        if adapter in getattr(module, "lora_A", {}):
            change = module.lora_B[adapter].weight @ module.lora_A[adapter].weight * module.scaling[adapter]
            weights[f"model.{name}.weight"] = (module.get_base_layer().weight + change).detach()
    return weights


def put_bos_rows(model: Any, rows: torch.Tensor) -> None:
    """Give every layer its own first row, [L, 1, d], in the place of a text's first column.

    The first column then is `[BOS_l]` in layer l, whatever the layer below made of it, as in a memory model.
    """

    class FirstPass:
        """Whether the pass under way reads the first column."""

        here = False

    def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
        cache = kwargs.get("past_key_values")
        FirstPass.here = cache is None or cache.get_seq_length() == 0

    def replace(index: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if not FirstPass.here:
                return args, kwargs
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = torch.cat([rows[index].detach().expand(len(hidden), 1, -1), hidden[:, 1:]], dim=1)
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        return hook

    model.model.register_forward_pre_hook(begin, with_kwargs=True)
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(replace(index), with_kwargs=True)


def _load(name: str, memory_model: MPlusForCausalLM) -> tuple[Any, PreTrainedTokenizerBase]:
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=memory_model.dtype)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--base-model {name} cannot be loaded: {str(error).splitlines()[0]}", "Name a folder or hub id."
        ) from error
    plain: Any = model.eval()
    return plain.to(memory_model.device), load_tokenizer(name)
