"""What a build looks like: tables for the terminal, a plot of the documents by length and source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mplus_cli.console import size, table
from mplus_cli.data.building.manifest import Manifest
from mplus_cli.data.building.plot import grouped_sources
from mplus_cli.data.building.shards import iter_rows

_MOST_SOURCES = 15  # that a table has a line for


def summary(folder: Path, manifest: Manifest) -> str:
    """A build in a few lines: what, from where, how much."""
    files = f"{len(manifest.shards):,} shard{'' if len(manifest.shards) == 1 else 's'}"
    lines = [f"{folder}: {manifest.builder}, {manifest.rows:,} rows in {files}, {size(manifest.bytes)}"]
    for source in dict.fromkeys(replace(source, note=None) for source in manifest.sources):
        details = [
            source.revision and f"revision {source.revision[:18]}",
            source.licence and f"licence {source.licence}",
        ]
        lines.append(f"from {source.name}" + "".join(f", {detail}" for detail in details if detail))
    if manifest.tokenizer:
        lines.append(f"tokenizer {manifest.tokenizer.name} (sha256 {manifest.tokenizer.sha256[:12]})")
    if manifest.created:
        lines.append(f"built {manifest.created['at']} in {manifest.created['seconds']} s")
    counts = manifest.counts
    if manifest.builder == "event-qa":
        parts = [by_book(counts), checks(counts)]
    elif "kept" in counts:
        parts = [by_source(counts), *([reading(counts)] if "reading" in counts else [])]
    elif all(isinstance(count, int) for count in counts.values()):
        parts = [table(["", "count"], [[_words(name), f"{count:,}"] for name, count in counts.items()])]
    else:
        parts = [by_split(counts)]
    return "\n\n".join(["\n".join(lines), *parts])


def by_source(counts: Mapping[str, Any]) -> str:
    """Documents of each source by bucket, as in Appendix C of the paper (turned by 90 degrees), and what is kept."""
    kept, tokens = counts["kept"], counts.get("tokens")
    found = counts.get("found", kept)
    sums = [sum(by.values()) for by in found.values()]
    rows = []
    for name, sources in grouped_sources(found, _MOST_SOURCES):
        counted = [sum(by.get(source, 0) for source in sources) for by in found.values()]
        cells = [_with_share(count, total) for count, total in zip(counted, sums, strict=True)]
        rows.append([name, *cells, _with_share(sum(counted), sum(sums))])
    for label, by_bucket in (
        ("found", {bucket: sum(by.values()) for bucket, by in found.items()} if "found" in counts else None),
        ("kept", {bucket: sum(by.values()) for bucket, by in kept.items()}),
        ("kept tokens", {bucket: tokens.get(bucket, 0) for bucket in kept} if tokens else None),
    ):
        if by_bucket is not None:
            rows.append([label, *(f"{count:,}" for count in by_bucket.values()), f"{sum(by_bucket.values()):,}"])
    return table(["source", *found, "all"], rows)


def _with_share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if count else "0"


def by_split(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Numbers that each split has, such as chronicles and questions."""
    names = list(next(iter(counts.values()), {}))
    return table(["", *counts], [[_words(name), *(f"{by[name]:,}" for by in counts.values())] for name in names])


def by_book(counts: Mapping[str, Any]) -> str:
    """What LongBook-Event-QA has of each book."""
    columns = ("tokens", "chunks", "kept", "questions")
    rows = [[name, *(f"{book[column]:,}" for column in columns)] for name, book in counts["books"].items()]
    return table(["book", "tokens", "chunks", "events", "questions"], rows)


def checks(counts: Mapping[str, Any]) -> str:
    """How many questions there are, what failed a check and which, what was left out and why, one line each."""
    flagged, blind = counts["flagged"], counts["guessing_by_length"]
    lines = [f"{counts['questions']:,} questions; {flagged['questions']:,} more failed a check"]
    lines += [f"  {count:,} {check}" for check, count in flagged.items() if count and check != "questions"]
    lines += [f"events left out: {count:,} {why}" for why, count in counts["events_left_out"].items() if count]
    lines += [f"set aside: {count:,} {why}" for why, count in counts["set_aside"].items()]
    if blind["longest"] is not None:
        lines.append(
            f"guessing the longest option is right in {blind['longest']:.0%}, the shortest in {blind['shortest']:.0%} "
            f"(chance {blind['chance']:.0%})"
        )
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def reading(counts: Mapping[str, Any]) -> str:
    """What was read, skipped and dropped, one line each."""
    read = counts["reading"]
    tokenized = f"; {read['tokenized']:,} tokenized ({read['tokens']:,} tokens)" if read["tokenized"] else ""
    lines = [f"read {read['rows']:,} documents{tokenized}"]
    skipped = read["skipped_short"] + read["skipped_long"]
    if skipped:
        lines.append(
            f"skipped untokenized {skipped:,}: {read['skipped_short']:,} surely too short, "
            f"{read['skipped_long']:,} surely too long"
        )
    for text, count in (
        ("of other lengths", read["outside"]),
        ("exact duplicates dropped", counts["duplicates_dropped"]),
        ("excluded", counts["excluded"]),
        ("unreadable rows", read["bad_rows"]),
    ):
        if count:
            lines.append(f"{text} {count:,}")
    return "\n".join([*lines, *(f"  {line}" for line in read["bad_named"])])


def samples(folder: Path, manifest: Manifest, rows: int) -> list[str]:
    """The first rows of each bucket, long strings cut."""
    found = []
    for bucket, shards in manifest.buckets().items():
        for row in islice(iter_rows(folder / shards[0].path), rows):
            fields = [f"  {key}: {_cut(value)}" for key, value in row.items()]
            found.append("\n".join([f"{shards[0].path} ({bucket or 'no bucket'})", *fields]))
    return found


def _cut(value: Any, limit: int = 160) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"
