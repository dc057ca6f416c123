"""What holds for each of the six builders: the same tests, run on all of them by way of their commands."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mplus_cli import console
from mplus_cli.data.building import Manifest, engine, read_manifest
from mplus_cli.data.building.documents import Running, Selection, build_documents
from tests.data.building.conftest import same_build, write_corpus
from tests.data.chat_server import ChatServer, tell

spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install 'mplus[data]'")
pytest.importorskip("openai", reason="openai is not installed: pip install 'mplus[data]'")

BUILDERS = ["slimpajama", "fineweb", "mix", "chronicle", "event-qa", "retention"]
ASKING = ["event-qa", "retention"]
PEOPLE = ["Anna Vorn", "Anna", "Mr. Vorn", "Berta", "Carl"]
TOWNS = ["Oslo", "Rome", "Lima", "Bonn", "Cork", "Bath", "Nice", "Pisa", "Riga", "Kiel"]
# What changes how a build is made, but not what it is: twice as many processes, or requests under way.
TWO = {"event-qa": ["--processes", 2, "--concurrency", 2], "retention": ["--concurrency", 2]}
KILLER = """
import os, signal, sys
from mplus_cli import cli
left, rename = int(sys.argv[1]), os.replace
def replace(*names):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names)
os.replace = replace
cli.main(sys.argv[2:])
"""


def answer(body: dict) -> str:
    """Events for event-qa; for retention, a town that is known by heart, and all but one that the context tells."""
    if "response_format" in body:
        return tell(body)
    text = body["messages"][-1]["content"]
    if "Context:" not in text:
        return "Oslo" if "fair Os" in text else "No idea."
    return "Somewhere." if "Bonn" in text else next(name for name in TOWNS if name in text)


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(say=answer) as listening:
        yield listening


@pytest.fixture(scope="module")
def commands(tmp_path_factory, server, tokenizer_file) -> dict[str, list[object]]:
    """The options of each builder, on small corpora in the real formats."""
    folder = tmp_path_factory.mktemp("sources")
    texts = [f"{n} " + "The miller of Vorn sold flour. " * (1 + n % 40) for n in range(120)]
    rows = [{"text": text, "meta": {"redpajama_set_name": f"Set{n % 3}"}} for n, text in enumerate(texts)]
    corpus = ["--source", write_corpus(folder / "corpus", rows), "--licence", "CC0", "-p", 1, "--rows-per-shard", 8]
    tokens = ["--tokenizer", tokenizer_file]
    web = Selection("fineweb", str(folder / "corpus"), held_out=20, quota=60, licence="CC0")
    build_documents(folder / "web", web, Running(processes=1))
    return {
        "slimpajama": [*corpus, *tokens, "--edges", "128,256,1k", "--per-bucket", 20],
        "fineweb": [*corpus, *tokens, "--held-out", 20, "--documents", 60],
        "mix": ["--part", f"{folder}/web:train=3", "--part", f"{folder}/web:held-out=1", "-p", 1,
                "--rows-per-shard", 8],
        "chronicle": ["--train", 3, "--test", 2, "--characters", 3000, *tokens, "-p", 1],
        "event-qa": [novel(folder), "--spacy", pipeline(folder), *tokens, "--chunk-size", 600, "--licence", "CC0"],
        "retention": [*towns(folder), *tokens, "--max-answer-tokens", 4, "--distractor-tokens", 0, "--licence", "CC0",
                      "--drop-known-to", "small", "--keep-answered-by", "small"],
    }  # fmt: skip


def novel(folder: Path) -> Path:
    verbs = ["found a lamp in", "lost a glove near", "burned a letter at", "sold a horse in", "hid a coin under"]
    places = ["the barn", "the old mill", "a chapel", "the harbour", "the orchard", "a quarry", "the school"]
    told = [f"{PEOPLE[n % 5]} {verbs[n % 4]} {places[n % 7]} on day {n * n}." for n in range(90)]
    (folder / "novel.txt").write_text("\n".join(told))
    return folder / "novel.txt"


def pipeline(folder: Path) -> Path:
    made = spacy.blank("en")
    made.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": name} for name in PEOPLE])
    made.to_disk(folder / "spacy")
    return folder / "spacy"


def towns(folder: Path) -> list[object]:
    rows = [
        {"context": f"The fair was in {name}.", "question": f"Where was fair {name[:2]}?", "answer": name}
        for name in TOWNS
    ]
    (folder / "towns.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["--source", folder / "towns.jsonl", "--distractors", folder / "towns.jsonl"]


@dataclass
class Whole:
    """An untroubled build, and how many files it renamed into place, answers of the model among them."""

    path: Path
    renames: int


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(mplus, monkeypatch, commands, server) -> Run:
    """`run(BUILDER, OUT, ...)`: the command, with answers of its own beside OUT."""
    for variable in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)

    def command(name: str, out: Path, *more: object) -> list[object]:
        options = [*commands[name], "--out", out]
        if name in ASKING:
            options += ["--base-url", server.url, "--cache", out.with_name(f"{out.name}-answers")]
        return ["build-data", name, *options, *more]

    def start(name: str, out: Path, *more: object) -> tuple[int, str, str]:
        return mplus(*command(name, out, *more))

    start.command = command
    return start


@pytest.fixture(scope="module")
def known() -> dict[str, Whole]:
    return {}


@pytest.fixture
def whole(name, run, known, tmp_path_factory, monkeypatch) -> Whole:
    """The untroubled build of the builder under test, made once."""
    if name not in known:
        path = tmp_path_factory.mktemp(name) / "whole"
        renames = []
        with monkeypatch.context() as patched:
            rename = os.replace
            patched.setattr(os, "replace", lambda *names: (renames.append(names), rename(*names)))
            code, _, err = run(name, path)
        assert code == 0, err
        known[name] = Whole(path, len(renames))
    return known[name]


def assert_goes_on(run: Run, name: str, out: Path, whole: Whole) -> None:
    """The same command again ends with the bytes of an untroubled build, and asks no model twice."""
    assert not (out / "manifest.json").exists()
    code, _, err = run(name, out)
    assert code == 0, err
    assert same_build(out, whole.path)
    if name in ASKING:
        assert len(answers(out)) == len(answers(whole.path))


def answers(out: Path) -> list[Path]:
    return list(out.with_name(f"{out.name}-answers").rglob("*.json"))


@pytest.mark.parametrize("name", BUILDERS)
def test_killed_in_the_middle_and_resumed(name, run, whole, tmp_path):
    command = [sys.executable, "-c", KILLER, whole.renames // 2, *run.command(name, tmp_path / "b")]
    killed = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_goes_on(run, name, tmp_path / "b", whole)


@pytest.mark.parametrize("name", BUILDERS)
def test_interrupted_in_the_middle_and_resumed(name, run, whole, tmp_path, monkeypatch):
    left, rename = [whole.renames * 2 // 3], os.replace

    def interrupted(*names: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        rename(*names)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        code, out, err = run(name, tmp_path / "b")
    assert (code, out) == (130, "") and err.endswith("error: interrupted\n")
    assert_goes_on(run, name, tmp_path / "b", whole)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_disk_that_fills_up(name, run, whole, tmp_path, monkeypatch):
    left, sync = [whole.renames], os.fsync  # two for each file, so the disk is full at half of the build

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", "here")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        code, out, err = run(name, tmp_path / "b")
    assert (code, out) == (1, "") and err.endswith(
        "error: the disk is full while writing here\nhint: free some space and run the same command again\n"
    )
    assert_goes_on(run, name, tmp_path / "b", whole)


@pytest.mark.parametrize("name", ASKING)
def test_a_real_disk_that_fills_up(name, run, whole, server, tmp_path):
    """A small file system of its own, which something else fills while the model is asked."""
    (tmp_path / "disk").mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=240m", "none", str(tmp_path / "disk")]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    out, hog = tmp_path / "disk" / "b", tmp_path / "disk" / "hog"
    asked = len(server.bodies)

    def filling(body: dict) -> str:
        if len(server.bodies) - asked == 8:
            with open(hog, "wb") as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
        return answer(body)

    try:
        server.say = filling
        code, printed, err = run(name, out, "--concurrency", 1)
        assert (code, printed) == (1, "") and "error: the disk is full" in err and "Traceback" not in err, err
        assert len(answers(out)) >= 6
        hog.unlink()
        assert_goes_on(run, name, out, whole)
    finally:
        server.say = answer
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("name", BUILDERS)
def test_free_disk_is_checked_first(name, run, tmp_path, monkeypatch, server, whole):
    asked = len(server.bodies)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1))
    code, out, err = run(name, tmp_path / "b")
    assert (code, out) == (2, "") and re.search(r"has 1 B free, and this build may need [\d.]+ \w?B\.\nhint: ", err)
    assert not (tmp_path / "b").exists() and len(server.bodies) == asked


@pytest.mark.parametrize("name", BUILDERS)
def test_two_processes_give_the_bytes_of_one(name, run, whole, tmp_path):
    code, _, err = run(name, tmp_path / "b", *TWO.get(name, ["--processes", 2]))
    assert code == 0, err
    assert same_build(tmp_path / "b", whole.path)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_complete_build_is_never_overwritten(name, run, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}
    code, out, err = run(name, whole.path)
    assert (code, out) == (2, "") and "never overwritten" in err
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")} == before


@pytest.mark.parametrize("name", BUILDERS)
def test_a_limit_makes_a_trial(name, run, whole, tmp_path):
    code, out, err = run(name, tmp_path / "b", "--limit", 3 if name == "event-qa" else 2, "--json")
    assert code == 0, err
    assert 0 < main_rows(read_manifest(tmp_path / "b")) < main_rows(read_manifest(whole.path))
    assert json.loads(out)["shards"] and err.count("\n") <= 1


def main_rows(manifest: Manifest) -> int:
    """Rows of the build without those that do not depend on its size: distractors, books."""
    return sum(shard.rows for shard in manifest.shards if shard.labels["bucket"] not in ("distractors", "books"))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_manifest_names_sources_revisions_and_licences(name, whole):
    manifest = read_manifest(whole.path)
    assert manifest.builder == name and manifest.sources and manifest.verify(whole.path) == []
    primary = manifest.sources[-1] if name == "mix" else manifest.sources[0]
    assert primary.revision and primary.licence == ("MIT" if name == "chronicle" else "CC0")
    assert not [path for path in whole.path.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


@pytest.mark.parametrize("name", BUILDERS)
def test_progress_tells_the_rate_and_the_time_left(name, run, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "PROGRESS_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(console, "PLAIN_PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(engine, "_POLL_SECONDS", 0.002)
    monkeypatch.setattr(engine, "_TICK_SECONDS", 0.0)
    code, _, err = run(name, tmp_path / "b")
    assert code == 0, err
    assert re.search(r"^[a-z ]+: \d+% .*[\d.]+ \w+/s, [\d.]+ \w+ .*left$", err, re.MULTILINE), err
