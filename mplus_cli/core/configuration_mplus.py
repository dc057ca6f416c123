"""MPlusConfig: a Hugging Face backbone configuration plus the sizes and rules of its memory."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from mplus_cli.errors import CheckpointError

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj")
RETRIEVER_SCORES = ("mean_sigmoid", "log_sum_exp")
EVICTION_RULES = ("oldest", "recall_frequency")
FILL_RULES = ("all", "tile")


class MPlusConfig(PretrainedConfig):
    """Configuration of M+ (arXiv 2502.00592) and, with `long_term_capacity=0`, of MemoryLLM (arXiv 2402.04624).

    Args:
        text_config: configuration of the decoder-only backbone (llama, mistral, qwen2 or qwen3).
        memory_tokens_per_write: K, memory tokens that one write makes in every layer.
        short_term_size: N, short-term memory tokens per layer.
        long_term_capacity: M, long-term memory tokens per layer; 0 means no long-term memory and no retriever.
        retrieval_budget: K_theta, long-term memory tokens that a read retrieves per layer.
        chunk_size: text tokens per write that the model was trained with.
        retriever_size: r, width of retrieval keys and queries.
        retriever_layers: linear layers of each retrieval projector, 1 or 2 (SiLU between).
        retriever_score: `mean_sigmoid`, the published mean over query tokens of sigmoid(q.k), or `log_sum_exp`,
            the contrastive log-sum-exp over query tokens of q.k / sqrt(r).
        write_query: whether a third projector exists that scores memory from the write side (published checkpoints).
        eviction: `oldest` drops the oldest tokens of the store at capacity (paper); `recall_frequency` is the cohort
            rule of the published code.
        fill_rule: what a read gets while the store holds fewer than K_theta tokens: `all` of them, or `tile`, the
            published code's repetition up to K_theta.
        merge_every, initial_recall_frequency, recall_decay: parameters of the `recall_frequency` rule (writes, and
            units of recall frequency).
        lora: rank `r`, `alpha`, `dropout` and `target_modules` of the write and read adapters; None for no adapters.
        rope_frequency_dtype: dtype the rotary frequencies are rounded to. Published weights were trained with
            bfloat16 frequencies.
        initial_short_term_size, initial_long_term_size: rows of the memory that the checkpoint itself carries.
    """

    model_type = "mplus"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PretrainedConfig | dict | None = None,
        memory_tokens_per_write: int = 256,
        short_term_size: int = 10_240,
        long_term_capacity: int = 150_000,
        retrieval_budget: int = 2_560,
        chunk_size: int = 512,
        retriever_size: int = 256,
        retriever_layers: int = 2,
        retriever_score: str = "log_sum_exp",
        write_query: bool = False,
        eviction: str = "oldest",
        fill_rule: str = "all",
        merge_every: int = 60,
        initial_recall_frequency: float = 10.0,
        recall_decay: float = 1.0,
        lora: dict[str, Any] | None = None,
        rope_frequency_dtype: str = "float32",
        initial_short_term_size: int = 0,
        initial_long_term_size: int = 0,
        **kwargs,
    ) -> None:
        self.text_config = _backbone_config(text_config)
        self.memory_tokens_per_write = memory_tokens_per_write
        self.short_term_size = short_term_size
        self.long_term_capacity = long_term_capacity
        self.retrieval_budget = retrieval_budget
        self.chunk_size = chunk_size
        self.retriever_size = retriever_size
        self.retriever_layers = retriever_layers
        self.retriever_score = retriever_score
        self.write_query = write_query
        self.eviction = eviction
        self.fill_rule = fill_rule
        self.merge_every = merge_every
        self.initial_recall_frequency = initial_recall_frequency
        self.recall_decay = recall_decay
        self.lora = (
            None
            if lora is None
            else {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": list(LORA_TARGETS)} | lora
        )
        self.rope_frequency_dtype = rope_frequency_dtype
        self.initial_short_term_size = initial_short_term_size
        self.initial_long_term_size = initial_long_term_size
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
            kwargs.setdefault(key, getattr(self.text_config, key, None))
        super().__init__(**kwargs)
        self._check()

    @property
    def has_long_term_memory(self) -> bool:
        return self.long_term_capacity > 0

    def varied(self, **changes: Any) -> MPlusConfig:
        """A copy with other sizes or rules of memory, checked.

        Raises:
            CheckpointError: the changes do not go together.
        """
        other = copy.copy(self)
        for key, value in changes.items():
            setattr(other, key, value)
        other._check()
        return other

    def _check(self) -> None:
        choices = {
            "retriever_score": RETRIEVER_SCORES,
            "eviction": EVICTION_RULES,
            "fill_rule": FILL_RULES,
            "retriever_layers": (1, 2),
            "rope_frequency_dtype": ("float32", "bfloat16"),
        }
        problems = [
            f"{k} is {getattr(self, k)!r}, not one of {v}" for k, v in choices.items() if getattr(self, k) not in v
        ]
        if self.memory_tokens_per_write < 1 or self.short_term_size < self.memory_tokens_per_write:
            problems.append(
                f"short_term_size ({self.short_term_size}) must hold at least one write of "
                f"memory_tokens_per_write ({self.memory_tokens_per_write}) tokens"
            )
        if self.has_long_term_memory and not 0 < self.retrieval_budget <= self.long_term_capacity:
            problems.append(
                f"retrieval_budget ({self.retrieval_budget}) must lie between 1 and "
                f"long_term_capacity ({self.long_term_capacity})"
            )
        if problems:
            raise CheckpointError(
                "Unusable M+ configuration: " + "; ".join(problems), "Mend these keys of config.json."
            )


def _backbone_config(value: PretrainedConfig | dict | None) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    fields = dict(value or {})
    return AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)
