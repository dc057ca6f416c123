"""What is asked for: lengths, folders, resuming; and the systems and settings that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mplus_cli.errors import MissingExtraError, UsageError
from mplus_cli.profiling.request import Request, length_text, new_folder, parse_lengths
from mplus_cli.profiling.systems import default_systems, find_systems


def test_lengths():
    assert parse_lengths(["2k,8k", "1000", "8192", "1m"]) == (1000, 2048, 8192, 1 << 20)
    assert [length_text(n) for n in (1000, 2048, 131_072, 1 << 20)] == ["1,000", "2k", "128k", "1m"]


@pytest.mark.parametrize("text", ["2x", "0", "-3", "1", "2k,,8k", "k", "1.5k"])
def test_no_lengths(text):
    with pytest.raises(UsageError, match="not a number of tokens"):
        parse_lengths([text])


def test_a_prompt_is_never_longer_than_its_text():
    assert [Request().prompt_for(n) for n in (400, 2048, 131_072)] == [100, 512, 512]
    assert Request(prompt=2048).prompt_for(2048) == Request(prompt=5000).prompt_for(2048) == 2048


def test_results_are_never_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = new_folder(None, False)
    (tmp_path / first).mkdir()
    second = new_folder(None, False)
    assert (str(first), str(second)) == ("profile-results", "profile-results-2")
    assert new_folder(None, True) == first
    (tmp_path / second).mkdir()
    assert new_folder(None, True) == second
    (tmp_path / second / "cells.jsonl").write_text("")
    with pytest.raises(UsageError, match="not overwritten") as error:
        new_folder(second, False)
    assert "--resume" in error.value.hint


def test_a_request_comes_back_and_grows(tmp_path):
    stored = Request(tmp_path, ("mplus",), (2048,), random_weights="1m", repeats=3)
    stored.save()
    assert Request.load(tmp_path) == stored
    more = Request(tmp_path, ("full",), (4096,))
    assert stored.joined(more) == replace(stored, systems=("mplus", "full"), lengths=(2048, 4096))


def test_a_request_does_not_mix_what_does_not_compare(tmp_path):
    stored = Request(tmp_path, dtype="float32")
    with pytest.raises(UsageError, match="--dtype, --adapters"):
        stored.joined(Request(tmp_path, dtype="bfloat16", adapters="separate"))


def test_no_request(tmp_path):
    with pytest.raises(UsageError, match="no profile"):
        Request.load(tmp_path)
    (tmp_path / "request.json").write_text("[1")
    with pytest.raises(UsageError, match="damaged"):
        Request.load(tmp_path)


def test_systems_with_settings():
    offloaded, narrow = find_systems(("mplus:offload=true", "window:size=4096"), False)
    assert (offloaded.label, offloaded.options.offload) == ("mplus --offload", True)
    assert narrow.read_at_most(10_000, 131_072) == 4096
    assert narrow.read_at_most(10_000, 2_000) == 2000
    both = find_systems(("mplus", "mplus:offload=true", "full"), True)
    assert [one.label for one in both] == ["mplus --offload", "full"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memorylm", "did you mean memoryllm"),
        ("mplus:ofload=true", "did you mean 'offload'"),
        ("memoryllm:retrieval_budget=5", "unknown key"),
        ("window:size=0", "at least 1"),
    ],
)
def test_unknown_systems_and_settings(text, message):
    with pytest.raises(UsageError, match=message) as error:
        find_systems((text,), False)
    assert error.value.hint


def test_snapkv_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kvpress", None)
    with pytest.raises(MissingExtraError, match="needs the package kvpress") as error:
        find_systems(("snapkv",), False)
    assert "pip install" in error.value.hint


def test_default_systems():
    assert "mplus:offload=true" in default_systems(gpu=True, long_term=True)
    assert "mplus" not in default_systems(gpu=False, long_term=False)
