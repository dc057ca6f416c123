"""Every answer a server gave, on disk by the content of its request: a rerun costs nothing, a crash loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mplus_cli.data.building import atomic_write
from mplus_cli.data.chat.requests import Answer
from mplus_cli.errors import UsageError


class AnswerCache:
    """One JSON file per answer, `folder/ab/abcd....json`: the request's body and the answer. No API keys, no headers.

    Several processes may share it: files appear whole or not at all, and those that are there are never changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Answer | None:
        """The answer, or None where there is none yet. A file that cannot be read counts as none."""
        try:
            record = json.loads(self._path(key).read_bytes())
            return Answer(**record["answer"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            return None  # damaged by something else than us: asked again and replaced
        except OSError as error:
            raise UsageError(f"{self._path(key)}: {error.strerror}", hint="choose another --cache folder") from error

    def put(self, key: str, server: str, body: dict[str, Any], answer: Answer) -> None:
        """Store an answer for good: it has been paid for, so it is on the disk before this returns."""
        self.write_json(self._path(key), {"server": server, "request": body, "answer": answer.as_json()})

    @staticmethod
    def write_json(path: Path, record: dict[str, Any]) -> None:
        with atomic_write(path) as file:
            file.write(json.dumps(record, ensure_ascii=False, indent=1).encode())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
