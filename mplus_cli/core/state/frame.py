"""Frames, the records of a memory state file: 64 bytes of header, then one complete safetensors blob.

The tensors of a blob lie in this order: `values` (large, checked row by row when a row is read), `keys` (checked as a
whole when they are read), then the index: all that has to be known to use the frame, checked when it is opened. The
last index tensor, `record`, is JSON as bytes, padded with spaces to make the frame a multiple of 64 bytes.

The header, little-endian: magic `MPFR`, uint32 header size (64), kind (8 bytes, zero-padded), uint64 sequence number,
uint64 payload length, uint64 offset of `keys` and uint64 offset of the index, both from the start of the payload, and
uint32 CRC-32 of the payload's head (8 bytes and the safetensors JSON), of `keys`, of the index, and of the header so
far.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

ALIGN = 64
HEADER = struct.Struct("<4sI8s4Q3I")
HEADER_SIZE = HEADER.size + 4
MAGIC = b"MPFR"
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U16": "<u2", "I64": "<i8", "U32": "<u4", "I8": "|i1", "U8": "|u1"}
CODES = {"I8": "int8", "U8": "float8"}  # dtypes of values that are rows of codes and a scale, see `core.value_codec`
SCALE = 1  # elements of such a row behind its codes
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}

Write = Callable[[int, Any], None]  # (file offset, bytes-like)
Read = Callable[[int, int], bytes]  # (file offset, size) -> exactly that many bytes


class FrameError(ValueError):
    """A frame that is not what was written. The text names the region: header, index or keys."""


@dataclass
class Block:
    """A large tensor given in pieces, so that it never has to exist as a whole.

    Attributes:
        dtype: a key of `DTYPES`; bfloat16 travels as U16, which any reader knows.
        shape: of the whole; the last dimension is the row.
        pieces: arrays [n_i, row] that follow each other in it.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray] = ()

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def size(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass
class Content:
    """What goes into a frame."""

    kind: str
    values: Block | None = None
    keys: Block | None = None
    index: dict[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


@dataclass
class Frame:
    """A frame of a file, index in memory, values and keys where they lie.

    Attributes:
        at, end: file offsets.
        values_at, keys_at: file offsets of the two large tensors; `values` and `keys` describe them.
        index: the index tensors, without `record`; `value_crc32` has the shape of `values` without its last dimension.
    """

    kind: str
    sequence: int
    at: int
    end: int
    header: bytes
    values: Block | None
    values_at: int
    keys: Block | None
    keys_at: int
    keys_crc: int
    index: dict[str, np.ndarray]
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return "the first frame" if self.sequence == 1 else f"commit {self.sequence - 1}"


def write_frame(write: Write, at: int, sequence: int, content: Content) -> Frame:
    """Write a frame at a file offset that is a multiple of 64. The header goes last."""
    index = {name: np.ascontiguousarray(array) for name, array in content.index.items()}
    rows = 0
    if content.values is not None:
        rows = math.prod(content.values.shape[:-1])
        index["value_crc32"] = np.zeros(rows, "<u4").reshape(content.values.shape[:-1])
    head, record, keys_from, index_from, length = _lay_out(content, index)
    payload = at + HEADER_SIZE

    write(payload, head)
    if content.values is not None:
        index["value_crc32"].reshape(-1)[:] = _write_pieces(write, payload + len(head), content.values, True)
    keys_crc = _write_pieces(write, payload + keys_from, content.keys, False) if content.keys is not None else 0
    body = b"".join(array.tobytes() for array in index.values()) + record
    write(payload + index_from, body)
    fields = (sequence, length, keys_from, index_from, crc32(head), keys_crc, crc32(body))
    header = HEADER.pack(MAGIC, HEADER_SIZE, content.kind.encode().ljust(8, b"\0"), *fields)
    header += struct.pack("<I", crc32(header))
    write(at, header)
    values, keys = _emptied(content.values), _emptied(content.keys)
    end = payload + length
    return Frame(
        content.kind,
        sequence,
        at,
        end,
        header,
        values,
        payload + len(head),
        keys,
        payload + keys_from,
        keys_crc,
        index,
        content.record,
    )


def read_frame(read: Read, at: int, limit: int, sequence: int) -> Frame:
    """Read and check a frame's header and index.

    Args:
        limit: file offset that no byte of it may reach beyond.
        sequence: the number it must have.

    Raises:
        FrameError: naming the damaged region.
    """
    if limit - at < HEADER_SIZE:
        raise FrameError("header")
    start = read(at, min(4096, limit - at))
    header = start[:HEADER_SIZE]
    magic, size, kind, number, length, keys_from, index_from, head_crc, keys_crc, index_crc = HEADER.unpack_from(header)
    fits = magic == MAGIC and size == HEADER_SIZE and number == sequence and length <= limit - at - HEADER_SIZE
    if crc32(header[:-4]) != struct.unpack("<I", header[-4:])[0] or not fits or not keys_from <= index_from <= length:
        raise FrameError("header")
    payload = at + HEADER_SIZE
    json_size = int.from_bytes(start[HEADER_SIZE : HEADER_SIZE + 8], "little")
    if json_size > keys_from - 8:
        raise FrameError("index")
    head_size = 8 + json_size
    head = start[HEADER_SIZE : HEADER_SIZE + head_size]
    if len(head) < head_size:
        head = read(payload, head_size)
    body = read(payload + index_from, length - index_from)
    if crc32(head) != head_crc or crc32(body) != index_crc:
        raise FrameError("index")
    try:
        blocks, index, record = _parse(
            json.loads(head[8:]), body, keys_from - head_size, index_from - head_size, length - head_size
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameError("index") from error
    values, keys = blocks.get("values"), blocks.get("keys")
    name = kind.rstrip(b"\0").decode("ascii", "replace")
    end = payload + length
    return Frame(
        name, number, at, end, header, values, payload + head_size, keys, payload + keys_from, keys_crc, index, record
    )


def _lay_out(content: Content, index: dict[str, np.ndarray]) -> tuple[bytes, bytes, int, int, int]:
    """Safetensors head, padded record; from the start of the payload: offset of keys, of the index, and length."""
    table: dict[str, dict[str, Any]] = {}
    at = 0

    def place(name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        nonlocal at
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size

    if content.values is not None:
        place("values", content.values.dtype, content.values.shape, content.values.size)
    keys_from = at
    if content.keys is not None:
        place("keys", content.keys.dtype, content.keys.shape, content.keys.size)
    index_from = at
    for name, array in index.items():
        place(name, NAMES[array.dtype], array.shape, array.nbytes)
    record = json.dumps(content.record, separators=(",", ":")).encode()
    record += b" " * (-(at + len(record)) % ALIGN)
    place("record", "U8", (len(record),), len(record))
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    head = struct.pack("<Q", len(text)) + text
    return head, record, len(head) + keys_from, len(head) + index_from, len(head) + at


def _write_pieces(write: Write, at: int, block: Block, by_row: bool) -> Any:
    """Write a block's pieces one after the other; a list of CRCs, one per row, or one CRC of it all."""
    end, crc, crcs = at + block.size, 0, []
    for piece in block.pieces:
        data = np.ascontiguousarray(piece, dtype=DTYPES[block.dtype]).reshape(-1).view(np.uint8).data
        if by_row:
            step = block.row_bytes
            crcs += [crc32(data[i : i + step]) for i in range(0, len(data), step)]
        else:
            crc = crc32(data, crc)
        write(at, data)
        at += len(data)
    if at != end:
        raise ValueError(f"the pieces of a block of {block.size} bytes end {end - at} bytes short of it")
    return crcs if by_row else crc


def _parse(
    table: dict[str, Any], body: bytes, keys_from: int, index_from: int, length: int
) -> tuple[dict[str, Block], dict[str, np.ndarray], dict[str, Any]]:
    """Check the safetensors table against the regions of the frame, and read the index. Offsets are from the data on.

    A file may come from a stranger: no number in it makes anything be allocated that its own size does not bear out.
    """
    blocks: dict[str, Block] = {}
    index: dict[str, np.ndarray] = {}
    expected = 0
    for name, entry in table.items():
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        block = Block(entry["dtype"], shape)
        if begin != expected or any(type(n) is not int or n < 0 for n in shape) or block.size != end - begin:
            raise ValueError(name)
        expected = end
        if name in ("values", "keys"):
            region = (0, keys_from) if name == "values" else (keys_from, index_from)
            if (begin, end) != region or len(shape) < 2:
                raise ValueError(name)
            blocks[name] = block
        else:
            if begin < index_from:
                raise ValueError(name)
            array = np.frombuffer(body, DTYPES[block.dtype], math.prod(shape), begin - index_from)
            index[name] = array.reshape(shape)
    crcs = index.get("value_crc32")
    if expected != length or ("values" in blocks and (crcs is None or crcs.shape != blocks["values"].shape[:-1])):
        raise ValueError("value_crc32")
    record = json.loads(index.pop("record").tobytes())
    if not isinstance(record, dict):
        raise ValueError("record")
    return blocks, index, record


def _emptied(block: Block | None) -> Block | None:
    return None if block is None else Block(block.dtype, block.shape)
