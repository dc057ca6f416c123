"""Token counts, and what the number of bytes and words of a text proves about them.

Whatever the text, a byte-level tokenizer makes at most one token of each byte, and a token covers at most as many bytes
as the longest entry of the vocabulary has, and begins at most as many words as the entry with most words. So most
documents that are too short, and those far too long, need not be tokenized. For tokenizers about which this cannot be
proven nothing is skipped.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mplus_cli.data.building.manifest import Tokenizer
from mplus_cli.data.building.shards import atomic_write, file_sha256
from mplus_cli.errors import UsageError

_NFC_GROWTH = 3  # no UTF-8 text gets more than three times as long by NFC (Unicode UAX 15, maximum expansion)
_NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
_PREFIX = 3  # a space put in front, as "▁"


@dataclass(frozen=True)
class LengthBounds:
    """Bounds of the number of tokens of a text with n UTF-8 bytes and w words (`str.split`).

    w / words_per_token <= tokens,  n / bytes_per_token <= tokens <= growth * n + prefix

    Attributes:
        known: False where nothing is proven, and nothing is skipped.
        growth: 1, or for tokenizers that normalize to NFC and texts that are not in that form, 3.
        prefix: bytes that the tokenizer may put in front.
    """

    known: bool
    growth: int = 1
    prefix: int = 0
    bytes_per_token: int = 1
    words_per_token: int = 1

    def short_line(self, line: bytes, tokens: int) -> bool:
        """True only if no text in this line of JSON has `tokens` tokens: JSON never makes a text shorter."""
        if not self.known or len(line) + self.prefix >= tokens:
            return False
        return self.growth * len(line) + self.prefix < tokens or (line.isascii() and b"\\u" not in line)

    def surely_shorter(self, text: str, tokens: int) -> bool:
        """True only if the text has fewer than `tokens` tokens."""
        if not self.known or len(text) + self.prefix >= tokens:  # at least as many bytes as characters
            return False
        growth = 1 if self.growth == 1 or unicodedata.is_normalized("NFC", text) else self.growth
        return growth * _bytes(text) + self.prefix < tokens

    def surely_longer(self, text: str, tokens: int) -> bool:
        """True only if the text has more than `tokens` tokens."""
        if not self.known or len(text) <= 2 * tokens:
            return False
        return _bytes(text) > tokens * self.bytes_per_token or len(text.split()) > tokens * self.words_per_token


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


class TokenCounter:
    """Counts tokens as the model's tokenizer makes them, without special tokens.

    Args:
        path: of a tokenizer.json.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        self._tokenizer = FastTokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bounds = bounds_of(json.loads(self._tokenizer.to_str()))

    def counts(self, texts: list[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding) for encoding in encodings]


@lru_cache(maxsize=2)
def load_counter(path: Path, sha256: str) -> TokenCounter:
    """One counter per process: loading takes longer than many a task. The hash keeps two builds in one place apart."""
    return TokenCounter(path)


def bounds_of(spec: dict[str, Any]) -> LengthBounds:
    """The bounds that a tokenizer.json proves; unknown for anything but byte-level or byte-fallback BPE."""
    model = spec["model"]
    splitters = _parts(spec.get("pre_tokenizer"))
    kinds = {part["type"] for part in splitters}
    normalizers = [part["type"] for part in _parts(spec.get("normalizer"))]
    unknown = LengthBounds(False)
    if model.get("type", "BPE") != "BPE" or model.get("dropout"):
        return unknown
    vocabulary = list(model["vocab"])
    byte_level = "ByteLevel" in kinds
    if byte_level:
        back = _byte_alphabet()
        needed = {c for c, byte in back.items() if byte not in _NOT_IN_UTF8}  # text would vanish without these
        if set(normalizers) - {"NFC"} or not needed <= model["vocab"].keys():
            return unknown
        entries = [bytes(back[c] for c in token if c in back) for token in vocabulary]
    elif model.get("byte_fallback") and not set(normalizers) - {"Prepend", "Replace"} and "▁" in vocabulary:
        if not _only_spaces_change(spec) or any(f"<0x{byte:02X}>" not in model["vocab"] for byte in range(256)):
            return unknown
        entries = [token.replace("▁", " ").encode() for token in vocabulary]
    else:
        return unknown
    if kinds - {"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation"}:
        return unknown
    # A split that removes what it matches would lose text, and with it the lower bound.
    if any(part.get("behavior") == "Removed" for part in splitters):
        return unknown
    added = spec.get("added_tokens", [])
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return unknown
    entries += [token["content"].encode() for token in added]
    growth = _NFC_GROWTH if "NFC" in normalizers else 1
    return LengthBounds(
        known=True,
        growth=growth,
        prefix=_PREFIX,
        bytes_per_token=growth * max(len(entry) for entry in entries),
        words_per_token=max(1, max(len(entry.decode(errors="replace").split()) for entry in entries)),
    )


def _parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    if component is None:
        return []
    for several in ("pretokenizers", "normalizers"):
        if several in component:
            return [part for child in component[several] for part in _parts(child)]
    return [component]


def _only_spaces_change(spec: dict[str, Any]) -> bool:
    """Llama's and Mistral's normalizers put "▁" in front and for every space, and do nothing else."""
    for part in _parts(spec.get("normalizer")):
        if part["type"] == "Prepend" and part["prepend"] != "▁":
            return False
        if part["type"] == "Replace" and (part["pattern"] != {"String": " "} or part["content"] != "▁"):
            return False
    return True


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE uses for the 256 bytes (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def fetch_tokenizer(name: str, path: Path) -> Tokenizer:
    """Copy a tokenizer's tokenizer.json to `path` (once), so that a whole build counts with the same one.

    Args:
        name: a tokenizer.json, a folder that holds one, or the hub id of a model.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    if not path.is_file():
        content = _tokenizer_json(name)
        try:
            from tokenizers import Tokenizer as FastTokenizer

            FastTokenizer.from_str(content.decode())
        except Exception as error:  # tokenizers raises bare Exception
            raise UsageError(
                f"{name} is not a usable tokenizer.json: {error}.",
                "Hugging Face's tokenizer.json is needed; SentencePiece's .model is none.",
            ) from error
        with atomic_write(path) as file:
            file.write(content)
    return Tokenizer(name, file_sha256(path))


def _tokenizer_json(name: str) -> bytes:
    local = Path(name)
    if local.is_dir():
        local = local / "tokenizer.json"
    if local.is_file():
        return local.read_bytes()
    if Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"There is no tokenizer.json at {name}.", "Give the file, a model's folder, or a hub id.")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json")).read_bytes()
    except Exception as error:  # network, gate, missing file: one message for all
        raise UsageError(
            f"No tokenizer.json could be had from {name!r} ({type(error).__name__}).",
            "Download it elsewhere and give the file: --tokenizer path/to/tokenizer.json",
        ) from error
