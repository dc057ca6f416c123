"""Which memory file and model a command means."""

from pathlib import Path

import pytest

from mplus_cli.errors import UsageError
from mplus_cli.inference import locate
from mplus_cli.inference.locate import find_state, last_state, model_folder, remember_state, state_to_write


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "user_state_path", lambda name: tmp_path / "user" / name)
    monkeypatch.delenv("MPLUS_STATE", raising=False)
    for name in ("option.pt", "variable.pt", "last.pt"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_order_of_lookup(home, monkeypatch):
    with pytest.raises(UsageError, match="none has been made yet"):
        find_state(None)
    remember_state(home / "last.pt")
    assert find_state(None) == home / "last.pt"
    monkeypatch.setenv("MPLUS_STATE", str(home / "variable.pt"))
    assert find_state(None) == home / "variable.pt"
    assert find_state(home / "option.pt") == home / "option.pt"


def test_a_missing_file_says_who_named_it(home, monkeypatch):
    with pytest.raises(UsageError, match="gone.pt: no such file .--state"):
        find_state(home / "gone.pt")
    remember_state(home / "gone.pt")
    with pytest.raises(UsageError, match="last injected into"):
        find_state(None)


def test_the_last_file_is_remembered_by_absolute_path(home, monkeypatch):
    monkeypatch.chdir(home)
    remember_state(Path("last.pt"))
    assert last_state() == home / "last.pt"


def test_a_read_only_home_is_no_error(home, monkeypatch):
    (home / "user").write_text("a file where the directory should be")
    remember_state(home / "last.pt")
    assert last_state() is None


def test_writing_never_falls_back_to_the_last_file(home, monkeypatch):
    remember_state(home / "last.pt")
    with pytest.raises(UsageError, match="no memory file was named"):
        state_to_write(None)
    monkeypatch.setenv("MPLUS_STATE", str(home / "variable.pt"))
    assert state_to_write(None) == home / "variable.pt"


def test_bundled_model_is_found_in_a_package_and_in_a_checkout(home, monkeypatch):
    monkeypatch.setattr(locate, "_PACKAGE", home / "checkout" / "mplus_cli")
    with pytest.raises(UsageError, match="no bundled model"):
        model_folder(None)
    for folder in (home / "checkout/assets/default", home / "checkout/mplus_cli/assets/default"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert model_folder("default") == model_folder(None) == str(folder)
    assert model_folder("YuWangX/mplus-8b") == "YuWangX/mplus-8b"
