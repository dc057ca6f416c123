"""Files of public data sets on the hub, each at one commit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mplus_cli.data.building.shards import file_sha256
from mplus_cli.errors import UsageError


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the hub.

    Attributes:
        repository: id of the data set; revision: commit.
        sha256: of the file, where it is known.
    """

    repository: str
    revision: str
    file: str
    sha256: str | None = None

    @property
    def command(self) -> str:
        """How to get it where the hub is reachable."""
        return f"hf download {self.repository} {self.file} --repo-type dataset --revision {self.revision}"

    def fetch(self, what: str, hint: str) -> Path:
        """The file in the hub's cache on this machine, downloaded if it is not there yet.

        Args:
            what: begins the message when this fails, such as "no narrativeqa.jsonl in FOLDER".
            hint: what to do then.

        Raises:
            UsageError: the hub cannot be reached, or the file is not the published one.
        """
        from huggingface_hub import hf_hub_download

        try:
            with _silent_retries():
                found = hf_hub_download(self.repository, self.file, repo_type="dataset", revision=self.revision)
        except Exception as error:  # the client's errors of the network have no common class but this one
            raise UsageError(f"{what}; the hub gave no {self.repository} ({type(error).__name__})", hint) from error
        path = Path(found)
        if self.sha256 is not None and file_sha256(path) != self.sha256:
            raise UsageError(f"{path} is not the published {self.file} of {self.repository}", "delete it and try again")
        return path


@contextmanager
def _silent_retries() -> Iterator[None]:
    """The client warns at every attempt; one message at the end is enough."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
