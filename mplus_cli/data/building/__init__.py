"""Building data sets: what every `mplus build-data` command has in common.

A *build* is a folder with shards (`.jsonl.gz`, one JSON object per line) and a `manifest.json`, which is written last:
a folder with a manifest is complete and is never written again. Until then the folder holds `.work/`: the parameters it
was started with and whatever its builder needs to go on after an interruption.

    with BuildFolder.open(out, "event-qa", parameters, need_bytes=10_000_000) as folder:
        cache = folder.work / "answers"                     # survives kill -9, removed by finish()
        folder.write_shard("test/00000.jsonl.gz", rows, bucket="test")   # atomic; already there: not written again
        manifest = folder.finish(sources=[Source("books", licence="public domain")], counts={"questions": 40})

- `parameters` (JSON values) decide the bytes of the build. Running again with the same ones resumes an incomplete
  build; with others it is refused, and a complete build is never overwritten (`UsageError`, exit code 2, with a hint).
- Rows must be a function of the parameters alone (draw from `Random(f"{seed}/{name}")`, sort, never depend on time or
  on the number of processes): then the shards are byte-identical however often the build was interrupted.
- A disk without room is found by `need_bytes` before work starts; later it raises OSError, which the command line
  turns into one message. Ctrl-C may come at any time: shards and `atomic_write` files are whole or absent.
- Progress: `mplus_cli.console.Progress(label, total, unit)`. Reading a build: `read_manifest`, `iter_rows`.
"""

from mplus_cli.data.building.folder import BuildFolder, find_builds, require_disk
from mplus_cli.data.building.manifest import Manifest, Shard, Source, Tokenizer, read_manifest
from mplus_cli.data.building.shards import atomic_write, file_sha256, iter_rows

__all__ = [
    "BuildFolder",
    "Manifest",
    "Shard",
    "Source",
    "Tokenizer",
    "atomic_write",
    "file_sha256",
    "find_builds",
    "iter_rows",
    "read_manifest",
    "require_disk",
]
