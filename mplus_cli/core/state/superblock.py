"""The two superblock slots of a memory state file: where the last commit ends. Layout: see `file`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from zlib import crc32

MAGIC = b"\x89MPLUS\r\n"
FORMAT_VERSION = 1
CODED_FORMAT = 2  # the same, but values are codes: a program that does not know them must not read them as numbers
LATEST_FORMAT = CODED_FORMAT
SLOT_SIZE = 4096
FIRST_FRAME = 2 * SLOT_SIZE
_FIELDS = struct.Struct("<8sIIQQI")


@dataclass(frozen=True)
class Slot:
    """What a sound slot says."""

    sequence: int
    length: int
    chain: int
    version: int = FORMAT_VERSION

    def pack(self) -> bytes:
        """The 4096 bytes of the slot."""
        fields = (MAGIC, self.version, SLOT_SIZE, self.sequence, self.length, self.chain)
        body = _FIELDS.pack(*fields).ljust(SLOT_SIZE - 4, b"\0")
        return body + struct.pack("<I", crc32(body))


def parse_slot(data: bytes) -> Slot | None:
    """The slot, or None if these bytes are no sound one. Magic, version and checksum stay in place in later formats."""
    if len(data) != SLOT_SIZE or not data.startswith(MAGIC) or crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        return None
    _, version, _, sequence, length, chain = _FIELDS.unpack_from(data)
    return Slot(sequence, length, chain, version)


def claimed_version(slots: list[bytes]) -> int:
    """The format version that both slots name, whatever their checksums say; 0 if they do not agree on one."""
    versions = {int.from_bytes(data[8:12], "little") if data.startswith(MAGIC) else 0 for data in slots}
    return versions.pop() if len(versions) == 1 else 0


def is_torn(data: bytes, old: Slot, new: Slot) -> bool:
    """Whether a bad slot is what an interrupted overwriting of `old` by `new` leaves: each byte from one of them."""
    return len(data) == SLOT_SIZE and all(
        byte in pair for byte, *pair in zip(data, old.pack(), new.pack(), strict=True)
    )


def describe(start: bytes) -> str:
    """What a file that is not ours looks like from its first bytes."""
    if not start:
        return "it is empty"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "it is a Python pickle, and mplus never unpickles (a pickle can run any code)"
    if start.startswith(b"PK\x03\x04"):
        return "it is a zip archive, such as torch.save makes of a Python pickle, and mplus never unpickles"
    if start[8:10] == b'{"':
        return "it is a bare safetensors file"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with git lfs pull"
    return "it does not begin like one"
