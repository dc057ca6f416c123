"""MPlusForCausalLM: a decoder-only transformer with short- and long-term memory (M+, arXiv 2502.00592).

    model = MPlusForCausalLM.from_pretrained("assets/default")
    memory = model.new_memory()
    model.inject(ids, memory)                     # write: [1, n] token ids -> memory
    model.generate(question_ids, memory=memory)   # read: ordinary Hugging Face generation

Token ids never contain a beginning-of-text token: every layer has its own (`bos_embedding`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mplus_cli.core.adapters import READ, WRITE, Adapter, AdapterSwitch
from mplus_cli.core.backbones import FAMILIES, build_backbone, project_memory, rotate
from mplus_cli.core.cache import MemoryCache, text_ahead
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.decoding import CompiledDecoder
from mplus_cli.core.fingerprint import model_fingerprint
from mplus_cli.core.host_embedding import HostEmbedding
from mplus_cli.core.layer_pass import Hook, LayerPass
from mplus_cli.core.linear import use_inference_kernels
from mplus_cli.core.loading import load_checkpoint, save_initial_memory
from mplus_cli.core.memory import Memory
from mplus_cli.core.pipeline import WriteText, inject_stream
from mplus_cli.core.placement import Span
from mplus_cli.core.prefix import MemoryPrefix, Prefix, TokenPrefix
from mplus_cli.core.retriever import Retriever
from mplus_cli.core.writing import WritePass, newest_tokens, write_groups, write_pass
from mplus_cli.errors import CheckpointError, UsageError


class MPlusForCausalLM(PreTrainedModel, GenerationMixin):
    """M+; with `long_term_capacity=0` in the configuration, MemoryLLM.

    Attributes:
        model: the Hugging Face decoder, with the write and read LoRA adapters inside.
        bos_embedding: [L, 1, d], what stands at position 0 of every layer.
        new_memory_positional_emb: [1, 1, d], added at every layer to the rows that become memory.
        retrievers: one `Retriever` per layer (none without long-term memory).
        initial_memory: tensors of the memory a checkpoint carries (see `loading`), or None.
        spans: which layers lie on which device (see `placement`).
        quantized: "int8" or "int4" where the backbone's matrices are stored so (`inference.quantize`), else None.
    """

    config: MPlusConfig
    model: Any  # whichever Hugging Face decoder the configuration names
    config_class = MPlusConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MPlusConfig, attn_implementation: str | None = None) -> None:
        super().__init__(config)
        text = config.text_config
        self.attn_implementation = attn_implementation or "sdpa"
        self.model = build_backbone(text, self.attn_implementation)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.bos_embedding = nn.Parameter(torch.zeros(text.num_hidden_layers, 1, text.hidden_size))
        self.new_memory_positional_emb = nn.Parameter(torch.zeros(1, 1, text.hidden_size))
        sizes = (config.retriever_size, config.retriever_layers, config.retriever_score, config.write_query)
        count = text.num_hidden_layers if config.has_long_term_memory else 0
        self.retrievers: Any = nn.ModuleList(Retriever(text.hidden_size, *sizes) for _ in range(count))
        self.key_norm = FAMILIES[text.model_type].key_norm
        self.initial_memory: dict[str, torch.Tensor] | None = None
        self.quantized: str | None = None
        self.decoder: CompiledDecoder | None = None  # of generated tokens, in the place of `run_layers`
        self.plain_weights_sha256 = ""  # of a quantized model: of the weights it was made of
        self._key_value_parameters: list[nn.Parameter] | None = None
        self._spans: list[Span] = []
        self.post_init()
        self.adapters = AdapterSwitch(self.model, config.lora)
        self.round_rotary_frequencies()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *args,
        config: MPlusConfig | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device = "cpu",
        attn_implementation: str | None = None,
        revision: str | None = None,
        **kwargs,
    ) -> MPlusForCausalLM:
        """Load a local folder or hub id in our layout, or in a published M+ or MemoryLLM-8B layout.

        Args:
            dtype: of weights and memory; default what the checkpoint was saved in.
            device: where weights and short-term memory go.
            attn_implementation: "sdpa" (default), "eager" or "flash_attention_2".

        Raises:
            CheckpointError: nothing there, missing or unexpected tensors (named), wrong shapes, unknown layout.
        """
        dtype = dtype or kwargs.get("torch_dtype")
        model = load_checkpoint(cls, str(pretrained_model_name_or_path), config, dtype, attn_implementation, revision)
        return model.to(device)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:  # type: ignore[override]
        """Write config.json, generation_config.json, model.safetensors and the carried memory, if any.

        Raises:
            CheckpointError: the model is quantized.
        """
        if self.quantized is not None:
            raise CheckpointError(
                f"A model quantized to {self.quantized} is for running alone and is not saved.",
                "Save the model it was made of; it is quantized again when it is loaded.",
            )
        super().save_pretrained(save_directory, **kwargs)
        if self.initial_memory is not None:
            save_initial_memory(self.initial_memory, save_directory)

    def fingerprint(self) -> dict[str, str]:
        """`config_sha256`, `weights_sha256`, `name` and perhaps `quantize` of this model (see `model_fingerprint`)."""
        return model_fingerprint(self)

    def round_rotary_frequencies(self) -> None:
        """Round inverse frequencies as the published weights were trained with (bf16 buffers, fp32 tables)."""
        if self.config.rope_frequency_dtype == "bfloat16":
            rotary = self.model.rotary_emb
            rotary.inv_freq = rotary.inv_freq.to(torch.bfloat16).float()

    def prepare_for_inference(self, *adapters: Adapter) -> MPlusForCausalLM:
        """Run faster where no gradient is wanted: `adapters` merged into copies of the weights, kernels for few rows.

        Results agree with the unprepared model to rounding; the weights and training are untouched. A merged adapter
        costs a second copy of the matrices it adapts.
        """
        self.adapters.merge(*adapters)
        use_inference_kernels(self)
        return self

    @property
    def spans(self) -> list[Span]:
        """The layers by device: all of them on the model's own, unless `placement.place` has spread them."""
        return self._spans or [Span(0, len(self.model.layers), self.device)]

    @spans.setter
    def spans(self, spans: list[Span]) -> None:
        self._spans = spans

    def layer_device(self, layer: int) -> torch.device:
        """Where a layer and its memory are."""
        return next(span.device for span in self.spans if layer < span.end)

    def compile_decoding(self, backend: str = "inductor", mode: str | None = None) -> MPlusForCausalLM:
        """Generate tokens after the first through one compiled graph. See `decoding.CompiledDecoder`."""
        self.decoder = CompiledDecoder(self, backend, mode)
        return self

    def key_value_version(self) -> tuple:
        """Changes whenever keys and values made of the same memory would: weights updated, adapter switched."""
        if self._key_value_parameters is None:
            parts = [
                (layer.input_layernorm, layer.self_attn.k_proj, layer.self_attn.v_proj) for layer in self.model.layers
            ]
            self._key_value_parameters = [p for modules in parts for module in modules for p in module.parameters()]
        versions = sum(p._version for p in self._key_value_parameters)
        return id(self), self.adapters.active, self.adapters.merged, self.dtype, versions

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    # -- memory and writing --

    def new_memory(
        self,
        batch_size: int = 1,
        seed: int | Sequence[int] = 0,
        initial: str = "checkpoint",
        config: MPlusConfig | None = None,
        offload: bool = False,
        values: str = "model",
    ) -> Memory:
        """A fresh memory for `batch_size` rows.

        Args:
            seed: of the random drop; one for all rows or one per row.
            initial: "checkpoint" starts from the memory the checkpoint carries, if any; "empty" from nothing.
            config: other sizes and rules than the model's (`MPlusConfig.varied`), for comparisons.
            offload: keep short-term values on the host too.
            values: "model", "bfloat16", "float8" or "int8": memory values in less space (see `value_codec`).
        """
        memory = Memory(config or self.config, batch_size, seed, self.dtype, self.spans, offload, values)
        if initial == "checkpoint" and self.initial_memory is not None:
            held = self.initial_memory
            for row in range(batch_size):
                memory.short_term.load(row, memory.codec.round(held["short_term.values"]), held["short_term.created"])
            for store in memory.long_term:
                columns = [list(held[f"long_term.{k}"]) for k in ("values", "keys", "created", "recall_frequency")]
                store.load(*columns)
        return memory

    def memory_keys(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        """Retrieval keys of memory tokens of one layer. rows: [..., m, d] -> [..., m, r]."""
        return self.retrievers[layer].keys(self.model.layers[layer].input_layernorm(rows.to(self.layer_device(layer))))

    @torch.no_grad()
    def inject(
        self,
        input_ids: torch.Tensor,
        memory: Memory,
        attention_mask: torch.Tensor | None = None,
        notes: Sequence[dict | None] | None = None,
        dropped_ranks: torch.Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Write one chunk of text per row into `memory`.

        Args:
            input_ids: [B, n], left-padded where rows differ in length; attention_mask: [B, n], 0 on padding.
            notes: provenance per row of text, kept with the write.
            dropped_ranks: int64 [B, L, m], ranks (0 = oldest) of the short-term tokens to drop, instead of random ones.
            rows: the rows of memory that the B rows of text go to; all of them, in order, by default.
        """
        target = range(memory.batch_size) if rows is None else rows
        if input_ids.shape[0] != len(target) or len(set(target)) != len(target):
            raise UsageError(f"{input_ids.shape[0]} rows of text for {len(set(target))} rows of memory.")
        keys = self.memory_keys if memory.long_term else None
        held = memory.newest_counts(target)
        for group, ids, mask in write_groups(input_ids, held, memory.config.memory_tokens_per_write, attention_mask):
            into = [target[at] for at in group]
            self.adapters.use(WRITE)
            newest = newest_tokens(self, memory, into) if held[group[0]] else None
            made = WritePass(self, ids, newest, held[group[0]], mask).run()
            own_notes = None if notes is None else [notes[at] for at in group]
            ranks = None if dropped_ranks is None else dropped_ranks[group]
            memory.append_rows(into, made, keys, own_notes, ranks)

    def inject_stream(
        self, texts: Iterable[WriteText], memory: Memory, stages: int = 1
    ) -> Generator[WriteText, None, None]:
        """Write one text after the other, several layers at work at once. See `pipeline.inject_stream`."""
        return inject_stream(self, texts, memory, stages)

    def write(
        self,
        input_ids: torch.Tensor,
        context: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        adapter: Adapter = WRITE,
    ) -> torch.Tensor:
        """The write pass: memory tokens [B, L, K, d] of a chunk [B, n]; changes no memory. See `writing.write_pass`."""
        self.adapters.use(adapter)
        return write_pass(self, input_ids, context, attention_mask)

    def embed(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        """Embedded tokens where the model reads them, [B, n] on any device -> [B, n, d]."""
        assert input_ids is not None  # embedded rows are given otherwise
        table: Any = self.get_input_embeddings()
        return table(input_ids if isinstance(table, HostEmbedding) else input_ids.to(table.weight.device))

    # -- the layer loop --

    def position_tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of rotary positions. int64 [B, n] -> two [B, n, D] in the model's dtype."""
        return self.model.rotary_emb(self.bos_embedding, position_ids=positions)

    def keys_values(self, index: int, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
        """Keys and values of memory rows [B, P, d] in layer `index`, under the active adapter: two [B, H_kv, P, D]."""
        keys, values = self.project_memory(index, rows)
        return rotate(keys.transpose(1, 2), cos, sin), values.transpose(1, 2)

    def project_memory(self, index: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same before rotation: [..., P, d] -> two [..., P, H_kv, D]."""
        return project_memory(self.model.layers[index], self.key_norm, rows)

    def run_layers(
        self,
        hidden: torch.Tensor,
        prefix: Prefix | None,
        cache: MemoryCache,
        attention_mask: torch.Tensor | None = None,
        extra_rows: int = 0,
        enter: Hook | None = None,
        leave: Hook | None = None,
    ) -> torch.Tensor:
        """Run text rows [B, n, d] through every layer behind a prefix; the rows after it. See `LayerPass`."""
        return LayerPass(self, hidden, prefix, cache, attention_mask, extra_rows, enter, leave).run()

    # -- reading --

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: MemoryCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        memory: Memory | None = None,
        memory_tokens: torch.Tensor | None = None,
        prefix: Prefix | None = None,
        adapter: Adapter = READ,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The read pass.

        Args:
            input_ids: [B, n], left-padded; attention_mask: [B, n], or with a cache [B, earlier + n].
            memory: what to read; or memory_tokens: [B, L, P, d], explicit tokens, differentiable; or prefix, any
                source. With none of them the model reads its BOS alone.
            past_key_values: the cache of an earlier call, to continue it.
            labels: [B, n] token ids, -100 where there is no loss.
            adapter: "read"; "write" reproduces the published two-chunk training task.
            logits_to_keep: number of last positions to compute logits for, 0 for all.

        Returns:
            logits [B, n or logits_to_keep, V]; past_key_values for continuing.
        """
        self.adapters.use(adapter)
        hidden = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if isinstance(past_key_values, MemoryCache) else MemoryCache(memory)
        if cache.superseded:
            raise UsageError(
                "This cache was overwritten by a later read of the same memory.", "Read again from the start."
            )
        if cache.complete:
            prefix = None
        elif prefix is None:
            prefix = self._prefix(hidden.shape[0], cache.memory, memory_tokens)
        if self.decoder is not None and self.decoder.takes(hidden, cache):
            hidden = self.decoder(hidden, cache, attention_mask)
        else:
            hidden = self.run_layers(hidden, prefix, cache, attention_mask)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep.to(hidden.device)
        logits = self.lm_head(self.model.norm(hidden[:, keep].to(self.device)))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _prefix(self, batch: int, memory: Memory | None, memory_tokens: torch.Tensor | None) -> Prefix:
        if memory is None:
            return TokenPrefix(self, batch, memory_tokens)
        if memory.batch_size != batch:
            raise UsageError(f"{batch} prompts for a memory of {memory.batch_size} rows.", "Give one prompt per row.")
        return (memory.reader or MemoryPrefix)(self, memory)

    def generate(self, inputs: torch.Tensor | None = None, memory: Memory | None = None, **kwargs):  # type: ignore[override]
        """Hugging Face generation (greedy, sampling, streaming, stop strings) over `memory`.

        Retrieval happens once, at prefill, as published. Beams and several returned sequences would need one memory per
        beam and are refused.
        """
        settings = kwargs.get("generation_config")
        for key in ("num_beams", "num_return_sequences"):
            if (kwargs.get(key) or getattr(settings, key, None) or 1) > 1:
                raise UsageError(
                    f"{key} > 1 is not supported with memory.", "Repeat the prompt in a batch of memories."
                )
        new = kwargs.get("max_new_tokens") or getattr(settings, "max_new_tokens", None) or 0
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        kwargs["past_key_values"] = MemoryCache(memory, 0 if prompt is None else text_ahead(prompt.shape[1], new))
        return super().generate(inputs, **kwargs)  # type: ignore[misc]


AutoConfig.register(MPlusConfig.model_type, MPlusConfig)
AutoModelForCausalLM.register(MPlusConfig, MPlusForCausalLM)
