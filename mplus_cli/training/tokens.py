"""Training text to tokens: many documents at once, as injection cuts them; and whether a build fits the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mplus_cli.data.building.shards import file_sha256, iter_rows
from mplus_cli.data.chunking import segments
from mplus_cli.errors import UsageError
from mplus_cli.training.sources import OpenSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHECKED_ROWS = 8


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], spans: bool = False
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Tokens of each text, int32 [n], and with `spans` where the characters of each token begin, int64 [n].

    Texts go through the tokenizer in the segments that `mplus inject` uses, all in one call, so that its threads share
    them. No special tokens are added, and what looks like one in a text is text.
    """
    places = [(number, start, end) for number, text in enumerate(texts) for start, end in segments(text)]
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
    pieces = [texts[number][start:end] for number, start, end in places]
    encoded: Any = tokenizer(pieces, return_offsets_mapping=spans, verbose=False, **options) if pieces else {}
    ids: list[list[np.ndarray]] = [[np.empty(0, np.int32)] for _ in texts]
    begins: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in texts]
    for place, (number, start, _) in enumerate(places):
        ids[number].append(np.array(encoded["input_ids"][place], np.int32))
        if spans:
            begins[number].append(np.array([begin for begin, _ in encoded["offset_mapping"][place]], np.int64) + start)
    joined = [np.concatenate(parts) for parts in ids]
    return [(tokens, np.concatenate(b) if spans else None) for tokens, b in zip(joined, begins, strict=True)]


def require_tokenizer(tokenizer: PreTrainedTokenizerBase, sources: Iterable[OpenSource]) -> None:
    """Refuse builds whose token counts, and so whose lengths, are those of another tokenizer.

    A tokenizer whose tokenizer.json is byte for byte the build's fits. Files differ by how they were saved, too, so
    otherwise the first documents of each bucket are counted again: the counts must be those in the build's rows.

    Raises:
        UsageError: naming the build, its tokenizer, and a document whose count differs.
    """
    own = Path(str(tokenizer.name_or_path)) / "tokenizer.json"
    sha256 = file_sha256(own) if own.is_file() else None
    for source in sources:
        if source.build is None or source.folder is None:
            continue
        made_with = source.build.tokenizer
        if made_with is not None and made_with.sha256 == sha256:
            continue
        for row in _first_rows(source):
            counted, here = (
                row["tokens"],
                len(tokenizer(row["text"], add_special_tokens=False, verbose=False).input_ids),
            )
            if counted != here:
                other = f"{made_with.name} (sha256 {made_with.sha256[:12]})" if made_with else "another tokenizer"
                raise UsageError(
                    f"{source.name} was made with {other}, not with this model's tokenizer: a document has "
                    f"{counted:,} tokens there and {here:,} here.",
                    f"Build it again with --tokenizer {tokenizer.name_or_path or 'MODEL'}, or train from a model with "
                    "that tokenizer.",
                )


def _first_rows(source: OpenSource) -> Iterator[dict[str, Any]]:
    """The first rows that have a token count, of each bucket that is read."""
    assert source.build is not None and source.folder is not None
    read = {file.name for file in source.files}
    for shards in source.build.buckets().values():
        for shard in shards[:1]:
            if f"{source.name}/{shard.path}" in read:
                rows = islice(iter_rows(source.folder / shard.path), _CHECKED_ROWS)
                yield from (row for row in rows if row.get("tokens") and isinstance(row.get("text"), str))
