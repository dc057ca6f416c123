"""What libraries say while a model is loaded."""

from __future__ import annotations

import logging

from transformers.utils import logging as transformers_logging

from mplus_cli.inference.models import quiet_libraries


def test_retries_of_the_hub_are_not_told_line_by_line(monkeypatch, caplog):
    retries = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "level", logging.WARNING)
    before = transformers_logging.get_verbosity()
    try:
        quiet_libraries()
        retries.warning("Retrying in 4s [Retry 3/5].")
        assert not retries.isEnabledFor(logging.WARNING) and retries.isEnabledFor(logging.ERROR)
        assert not caplog.records
    finally:
        logging.getLogger("huggingface_hub").setLevel(logging.WARNING)
        transformers_logging.set_verbosity(before)
        transformers_logging.enable_progress_bar()
