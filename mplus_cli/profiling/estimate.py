"""The costs of a cell from formulas, without running it: bytes by purpose, operations, what crosses to the GPU.

Checked against measurement in `tests/profiling/test_estimate.py`, to within 10%.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from mplus_cli.core.attention import SMALL
from mplus_cli.core.cache import text_ahead, text_room
from mplus_cli.core.host_embedding import LEAST_BYTES
from mplus_cli.core.long_term_memory import BLOCK_ROWS, BLOCKS, BlockList, most_key_rows
from mplus_cli.core.prefix import PROJECTED_AT_ONCE
from mplus_cli.core.retrieved_rows import questions_held
from mplus_cli.core.retriever import PRODUCTS_AT_ONCE
from mplus_cli.core.value_codec import ValueCodec, value_codec
from mplus_cli.inference.quantize import quantized_bytes
from mplus_cli.profiling.operations import question_flops, text_flops, token_flops, write_flops
from mplus_cli.profiling.sizes import Fill, Sizes
from mplus_cli.profiling.systems import Asked

CARRIED, EMBEDDINGS, KEYS = "memory in the checkpoint", "token embeddings", "retrieval keys"
HOME = torch.device("cpu")
_DTYPES = {2: torch.bfloat16, 4: torch.float32}  # by bytes


@dataclass(frozen=True)
class Cell:
    """One system at one length.

    Attributes:
        prompt: last tokens, which are read and not injected; new_tokens: generated after the first.
        stored: long-term tokens in memory before the text; merged: adapters merged into copies of the weights.
        quantize: the backbone in `int8` or `int4`.
    """

    asked: Asked
    length: int
    prompt: int
    new_tokens: int
    stored: int
    merged: bool
    device: torch.device
    quantize: str | None = None

    @property
    def gpu(self) -> bool:
        return self.device.type != "cpu"

    @property
    def key(self) -> tuple[str, int]:
        return self.asked.label, self.length


def varied(sizes: Sizes, asked: Asked) -> Sizes:
    """The sizes with the system's own settings."""
    options = asked.options
    changes = {
        "N": getattr(options, "short_term_size", None),
        "M": getattr(options, "long_term_capacity", None),
        "budget": getattr(options, "retrieval_budget", None),
        "chunk": getattr(options, "chunk_size", None),
    }
    return replace(sizes, **{key: value for key, value in changes.items() if value is not None})


def estimate(sizes: Sizes, cell: Cell) -> dict[str, Any]:
    """All costs of a cell.

    Returns:
        `bytes`: by purpose, of the device; `host_bytes`: beside a GPU; `peak_bytes`: the sum of the former; `flops`:
        per `write`, `first_token` and `token`, and the `total` of telling the text and one token; `state_bytes`;
        `transfer_bytes`: host to GPU and back, per `write` and `question`; `writes`, `long_term_tokens`.
    """
    if not cell.asked.has_memory:
        return _text_system(sizes, cell)
    sizes = varied(sizes, cell.asked)
    long_term = cell.asked.name == "mplus"
    fill = Fill.after(sizes, cell.length - cell.prompt, sizes.chunk, long_term, cell.stored)
    offload = bool(cell.asked.options.offload) and cell.gpu
    held = _memory_bytes(sizes, cell, fill, offload)
    on_host = ["long-term values", CARRIED, EMBEDDINGS, "short-term memory", KEYS][: 5 if offload else 3]
    on_host = on_host if cell.gpu else []
    host = {name: held.pop(name) for name in on_host if name in held}
    reading = _reading_bytes(sizes, cell, fill, offload)
    writing = _writing_bytes(sizes)
    working = reading if sum(reading.values()) >= writing else {"activations": writing}
    found = {**held, **working}
    flops = {
        "write": write_flops(sizes, cell.merged, fill, long_term),
        "first_token": question_flops(sizes, cell.merged, fill, cell.prompt),
        "token": token_flops(sizes, cell.merged, fill.prefix + cell.prompt + cell.new_tokens // 2),
    }
    return {
        "bytes": found,
        "host_bytes": host,
        "peak_bytes": sum(found.values()),
        "flops": flops | {"total": fill.writes * flops["write"] + flops["first_token"]},
        "state_bytes": _state_bytes(sizes, cell, fill),
        "transfer_bytes": _transfers(sizes, cell, fill, offload) if cell.gpu else {"write": 0, "question": 0},
        "read_bytes": _weights_read(sizes)
        - _saved_by_codes(sizes, cell.quantize)
        + 2 * sizes.L * sizes.kv * (fill.prefix + cell.prompt) * sizes.bytes,
        "writes": fill.writes,
        "long_term_tokens": fill.long,
    }


def _memory_bytes(sizes: Sizes, cell: Cell, fill: Fill, offload: bool) -> dict[str, int]:
    """What stays from question to question."""
    b, layers = sizes.bytes, sizes.L
    merged = 2 * layers * sizes.layer_weights(sizes.adapted) if cell.merged else 0
    table = embeddings_apart(sizes) if cell.gpu else 0
    found = {
        "weights": sizes.memory_model * b - table - _saved_by_codes(sizes, cell.quantize),
        EMBEDDINGS: table,
        "merged weights": merged * b,
        "short-term memory": layers * sizes.N * (sizes.d * b + 8),
        "long-term values": 0,
    }
    if cell.asked.name == "mplus":
        dtype = _DTYPES[b]
        codec = _codec(sizes, cell)
        row = sizes.d + codec.extra
        values = _reserved((row,), codec.stored, fill.long, sizes.M // BLOCKS) * row * codec.stored.itemsize
        keys = _reserved((sizes.r,), dtype, fill.long, _key_rows(sizes, cell, offload))
        found["long-term values"] = layers * (values + _reserved((), torch.int64, fill.long, BLOCK_ROWS[1]) * 8)
        found[KEYS] = layers * keys * sizes.r * b
    if sizes.config.initial_short_term_size:  # the checkpoint keeps its own copy of the memory it carries
        config = sizes.config
        short, long = (
            config.initial_short_term_size,
            config.initial_long_term_size if config.has_long_term_memory else 0,
        )
        found[CARRIED] = layers * ((short + long) * (sizes.d * b + 8) + long * (sizes.r * b + 4))
    return found


def _saved_by_codes(sizes: Sizes, kind: str | None) -> int:
    """Bytes by which a quantized backbone is smaller."""
    if kind is None:
        return 0
    codes = sum(quantized_bytes(kind, *shape) for shape in sizes.matrices.values())
    return sizes.L * (sizes.layer_weights() * sizes.bytes - codes)


def _decoded_bytes(sizes: Sizes, cell: Cell, n: int) -> int:
    """What a GPU makes of codes for the product of its largest matrix: the matrix (int4), or sums in int32 (int8)."""
    if cell.quantize is None or not cell.gpu:
        return 0
    return sizes.d * sizes.I * sizes.bytes if cell.quantize == "int4" else 4 * n * sizes.I


def embeddings_apart(sizes: Sizes) -> int:
    """Bytes of token embeddings that stay on the host beside a GPU (see `core.host_embedding`)."""
    table = sizes.V * sizes.d * sizes.bytes
    return 0 if sizes.config.tie_word_embeddings or table < LEAST_BYTES else table


def _key_rows(sizes: Sizes, cell: Cell, offload: bool) -> int:
    return most_key_rows(sizes.M, HOME if offload else cell.device)


def _codec(sizes: Sizes, cell: Cell) -> ValueCodec:
    return value_codec(getattr(cell.asked.options, "ltm_dtype", "model"), _DTYPES[sizes.bytes])


def _reserved(shape: tuple[int, ...], dtype: torch.dtype, rows: int, most: int) -> int:
    """Rows of the blocks that hold `rows` of this shape."""
    block = BlockList(shape, dtype, torch.device("cpu"), most=most).block
    return -(-rows // block) * block


def _reading_bytes(sizes: Sizes, cell: Cell, fill: Fill, offload: bool) -> dict[str, int]:
    """What a read adds: keys and values, those of retrieved rows kept for the next question, and the largest layer."""
    b, n = sizes.bytes, cell.prompt
    total = fill.prefix + n
    room = fill.prefix + text_room(text_ahead(n, 1 + cell.new_tokens))
    found = {"keys and values": 2 * sizes.L * sizes.kv * room * b}
    if fill.retrieved:
        questions = questions_held(cell.device, offload)
        found["kept retrieved rows"] = 2 * sizes.L * sizes.kv * fill.retrieved * questions * b
    if offload:  # of one layer, and of the next on its way
        keys = fill.long * sizes.r if cell.asked.name == "mplus" else 0
        found["layers on their way"] = 2 * (fill.short * sizes.d + keys) * b
    row = 2 * sizes.d * (b + 4) + 4 * sizes.kv * b
    project = max(min((1 + fill.short) * row, PROJECTED_AT_ONCE), fill.retrieved * row)
    block = min(fill.long, _reserved((sizes.r,), _DTYPES[b], 1, _key_rows(sizes, cell, offload))) if fill.long else 0
    score = min(n * block, max(PRODUCTS_AT_ONCE, block)) * (b + 4)
    layer = n * (3 * sizes.I + 3 * sizes.d) * b
    mix = n * (3 * sizes.q + 2 * sizes.d) * b + _attention_bytes(sizes, cell.gpu, n, total)
    tables = 2 * fill.prefix * sizes.D * 4
    layer += _decoded_bytes(sizes, cell, n)
    found["activations"] = max(project, score, layer, mix) + 2 * n * sizes.d * b + tables + 2 * sizes.V * 4
    return found


def _attention_bytes(sizes: Sizes, gpu: bool, n: int, total: int) -> int:
    """The weights where they are formed, the mask where it is (see `core.attention`)."""
    if gpu:
        return 0
    if sizes.heads * n * total <= SMALL:
        return sizes.heads * n * total * sizes.bytes
    return n * total * sizes.bytes * (1 + (sizes.q // sizes.kv if sizes.q > sizes.kv else 0))


def _writing_bytes(sizes: Sizes) -> int:
    """What a write adds for its duration: keys and values, old and new memory tokens, the largest layer."""
    n, b = sizes.chunk, sizes.bytes
    total = 1 + sizes.K + n
    kept = sizes.L * (2 * sizes.kv * total + 3 * sizes.K * sizes.d) * b
    layer = max(n * (3 * sizes.I + 3 * sizes.d) * b, _attention_bytes(sizes, False, n, total) + 5 * n * sizes.d * b)
    return kept + layer + 2 * n * sizes.d * b


def _weights_read(sizes: Sizes) -> int:
    """Bytes of weights that one generated token reads."""
    return (sizes.L * sizes.layer_weights() + sizes.V * sizes.d) * sizes.bytes


def _state_bytes(sizes: Sizes, cell: Cell, fill: Fill) -> int:
    """A state file: every memory token ever made, the keys and numbers of those that left short-term memory."""
    config = sizes.config
    codec = _codec(sizes, cell)
    row = (sizes.d + codec.extra) * codec.stored.itemsize
    made = config.initial_short_term_size + config.initial_long_term_size + fill.writes * sizes.K
    dropped = max(0, config.initial_short_term_size + fill.writes * sizes.K - sizes.N)
    long_term = cell.asked.name == "mplus"
    keys = (config.initial_long_term_size + dropped) * sizes.r * sizes.bytes if long_term else 0
    return sizes.L * (made * row + dropped * 8 + keys)


def _transfers(sizes: Sizes, cell: Cell, fill: Fill, offload: bool) -> dict[str, int]:
    long_term, row = cell.asked.name == "mplus", sizes.L * sizes.d * sizes.bytes
    keys = sizes.L * sizes.r * sizes.bytes if offload and long_term else 0
    embedded = sizes.d * sizes.bytes if embeddings_apart(sizes) else 0
    return {
        # dropped values leave; offloaded: context, new and old, and their keys
        "write": row * sizes.K * (long_term + 3 * offload) + sizes.K * keys + sizes.chunk * embedded,
        "question": row * (fill.retrieved + offload * fill.short) + fill.long * keys + cell.prompt * embedded,
    }


def _text_system(sizes: Sizes, cell: Cell) -> dict[str, Any]:
    """A plain decoder that reads everything it takes at once."""
    b = sizes.bytes
    n = cell.asked.read_at_most(cell.length, positions(sizes))
    kept = min(n, cell.asked.options.cache) if cell.asked.name == "snapkv" else n
    found = {
        "weights": sizes.backbone * b,
        "keys and values": 2 * sizes.L * sizes.kv * (kept + cell.new_tokens) * b,
        "activations": _text_layer(sizes) * n * b + 8 * sizes.V,
    }
    first = text_flops(sizes, n)
    return {
        "bytes": found,
        "host_bytes": {},
        "peak_bytes": sum(found.values()),
        "flops": {"write": 0, "first_token": first, "token": text_flops(sizes, 1, kept), "total": first},
        "state_bytes": 0,
        "transfer_bytes": {"write": 0, "question": 0},
        "read_bytes": _weights_read(sizes) + 2 * sizes.L * sizes.kv * kept * b,
        "writes": 0,
        "long_term_tokens": 0,
    }


def _text_layer(sizes: Sizes) -> int:
    """Numbers per token that the plain model's MLP or attention holds, residuals and position tables included."""
    return max(3 * sizes.I, 4 * sizes.q + 2 * sizes.kv) + 4 * sizes.d + 2 * sizes.D


def positions(sizes: Sizes) -> int:
    """Positions that the plain model has."""
    return int(sizes.config.text_config.max_position_embeddings)
