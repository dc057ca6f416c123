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
from mplus_cli.data.building.shards import atomic_write, iter_rows


def summary(folder: Path, manifest: Manifest) -> str:
    """A build in a few lines: what, from where, how much."""
    lines = [
        f"{folder}: {manifest.builder}, {manifest.rows:,} rows in {len(manifest.shards)} shards, {size(manifest.bytes)}"
    ]
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
    parts = [by_source(manifest.counts)] if "found" in manifest.counts else [by_bucket(manifest)]
    if "parts" in manifest.counts:
        parts.append(
            table(["part", "documents"], [[p["part"], f"{p['documents']:,}"] for p in manifest.counts["parts"]])
        )
    if "reading" in manifest.counts:
        parts.append(reading(manifest.counts))
    return "\n\n".join(["\n".join(lines), *parts])


def by_source(counts: Mapping[str, Any]) -> str:
    """Documents found in each bucket by source, as in Appendix C of the paper, and how many are kept."""
    found, kept = counts["found"], counts["kept"]
    totals: dict[str, int] = {}
    for sources in found.values():
        for source, count in sources.items():
            totals[source] = totals.get(source, 0) + count
    sources = sorted(totals, key=lambda source: (-totals[source], source))
    rows = []
    for bucket, by in found.items():
        total = sum(by.values())
        shares = [f"{by.get(s, 0):,} ({by.get(s, 0) / total:.1%})" if total else "0" for s in sources]
        tokens = (counts.get("tokens") or {}).get(bucket)
        kept_cell = f"{sum(kept[bucket].values()):,}"
        rows.append([bucket, f"{total:,}", *shares, kept_cell, f"{tokens:,}" if tokens is not None else "-"])
    return table(["bucket", "found", *[_short_name(s) for s in sources], "kept", "kept tokens"], rows)


def by_bucket(manifest: Manifest) -> str:
    rows = []
    for bucket, shards in manifest.buckets().items():
        rows.append(
            [bucket or "-", f"{sum(s.rows for s in shards):,}", str(len(shards)), size(sum(s.bytes for s in shards))]
        )
    return table(["bucket", "rows", "shards", "size"], rows)


def reading(counts: Mapping[str, Any]) -> str:
    """What was read, skipped and dropped, one line each."""
    read = counts["reading"]
    lines = [f"read {read['rows']:,} documents; {read['tokenized']:,} tokenized ({read['tokens']:,} tokens)"]
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


def _short_name(source: str) -> str:
    return source.removeprefix("RedPajama")


def plot_counts(found: Mapping[str, Mapping[str, int]], kept: Mapping[str, Mapping[str, int]], path: Path) -> None:
    """Write a PNG: documents found by bucket, stacked by source, with what is kept as a line. Needs matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    buckets = list(found)
    sources = sorted({source for by in found.values() for source in by})
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bottom = [0] * len(buckets)
    for source in sources:
        heights = [found[bucket].get(source, 0) for bucket in buckets]
        axes.bar(buckets, heights, bottom=bottom, label=_short_name(source))
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axes.plot(buckets, [sum(kept[bucket].values()) for bucket in buckets], "k_", markersize=40, label="kept")
    axes.set_xlabel("tokens")
    axes.set_ylabel("documents")
    axes.legend(fontsize=8, markerscale=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
