"""Files that are whole or not there, and disks that are full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: beside, flushed to disk, renamed."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, data: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def flush(path: Path) -> None:
    """Have the operating system put a file or folder on disk."""
    with contextlib.suppress(PermissionError):  # folders, on some file systems
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Python names the cause; torch's and safetensors' writers only say that writing failed."""
    codes = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in codes:
            return True
        if "No space left on device" in str(seen) or "file write failed" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return shutil.disk_usage(folder).free < 1 << 20
