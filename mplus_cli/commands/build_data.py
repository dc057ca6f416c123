"""`mplus build-data`: training and evaluation sets from real sources, reproducible and resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mplus_cli.commands import build_documents, build_event_qa, build_retention, build_sets
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import Progress, output, size, table
from mplus_cli.errors import UsageError

app = typer.Typer(help="Build training and evaluation sets, reproducibly.", no_args_is_help=True)
app.command("slimpajama")(build_documents.slimpajama)
app.command("fineweb")(build_documents.fineweb)
app.command("mix")(build_sets.mix)
app.command("chronicle")(build_sets.chronicle)
app.command("event-qa")(build_event_qa.event_qa)
app.command("retention")(build_retention.retention)


@app.command("list")
def list_builds(
    root: Annotated[Path, typer.Argument(help="Folder to look in.")] = Path("."),
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """All builds under a folder, incomplete ones too."""
    from mplus_cli.data.building import find_builds, read_manifest
    from mplus_cli.data.building.manifest import MANIFEST

    if not root.is_dir():
        raise UsageError(f"There is no folder {root}.")
    rows, data = [], []
    for path in find_builds(root):
        if not (path / MANIFEST).is_file():
            rows.append([str(path), "incomplete", "-", "-", "-"])
            data.append({"path": str(path), "complete": False})
            continue
        manifest = read_manifest(path)
        built = manifest.created.get("at", "-")
        rows.append([str(path), manifest.builder, f"{manifest.rows:,}", size(manifest.bytes), built])
        data.append({"path": str(path), "complete": True, "builder": manifest.builder, "rows": manifest.rows})
    text = table(["build", "builder", "rows", "size", "built"], rows) if rows else f"no builds under {root}"
    output.result(text, data)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Folder of a build.")],
    rows: Annotated[int, typer.Option("--rows", min=0, help="Sample rows to print of each bucket.")] = 1,
    verify: Annotated[bool, typer.Option("--verify", help="Check every shard against its checksum.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """What a build holds: sources, counts, sample rows, where its plot is."""
    from mplus_cli.data.building import read_manifest
    from mplus_cli.data.building.report import samples, summary

    manifest = read_manifest(path)
    data = manifest.to_json() | {"path": str(path)}
    if verify:
        with Progress("checking shards", manifest.bytes, "bytes") as progress:
            bad = manifest.verify(path, progress.update)
        if bad:
            raise UsageError(f"{path}: {len(bad)} shards are missing or damaged: {', '.join(bad[:10])}.")
        data["verified"] = True
    lines, plot = [summary(path, manifest)], path / "histogram.png"
    if plot.is_file():
        lines.append(f"plot: {plot}")
        data["plot"] = str(plot)
    if verify:
        lines.append("every checksum is right")
    lines += samples(path, manifest, rows)
    output.result("\n\n".join(lines), data)
