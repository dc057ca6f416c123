"""Fixtures for all tests: no test sees the user's own memory files, models or network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when torch and huggingface_hub are imported: tiny models only lose by threads, and tests use no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run without a GPU too, slowly

from mplus_cli import console  # noqa: E402
from tests.fixtures import byte_tokenizer, save_tiny_model, tiny_model  # noqa: E402


@pytest.fixture(autouse=True)
def own_user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's state directory of this test alone, no hub, and default output."""
    for variable in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.delenv("MPLUS_STATE", raising=False)
    for flag in ("json", "quiet", "verbose"):
        monkeypatch.setattr(console.output, flag, False)


@pytest.fixture(scope="session")
def model():
    """The tiny random model. Tests must not change it."""
    return tiny_model()


@pytest.fixture(scope="session")
def tokenizer():
    """One token per byte."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and tokenizer, saved."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape with other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("other-model"), seed=1)
