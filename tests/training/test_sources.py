"""What `data.sources` may name: builds, rows, texts, globs, the hub; and what is refused, with the reason."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer

import pytest

from mplus_cli.data.building import rows
from mplus_cli.data.building.documents import Running
from mplus_cli.data.building.manifest import Tokenizer
from mplus_cli.data.building.rows import BadRows, Fields
from mplus_cli.data.building.shards import file_sha256
from mplus_cli.data.building.worlds import Worlds, build_worlds
from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.training.batches import BatchStream
from mplus_cli.training.documents import DocumentStream
from mplus_cli.training.reading import read_documents
from mplus_cli.training.sources import TextFile, open_sources
from tests.data.building.conftest import write_corpus
from tests.data.building.test_hub import SHA, Hub
from tests.fixtures import byte_tokenizer
from tests.training.corpora import number_of, settings, text, write_build, write_files, write_rows


def numbers(*names, **options) -> list[int]:
    """Numbers of the documents in sources."""
    stream = DocumentStream(open_sources([str(name) for name in names], **options), 0, 1, 0)
    return sorted(number_of(document.text) for document in stream.take(10_000))


@pytest.fixture
def build(tmp_path):
    return write_build(
        tmp_path / "builds" / "web",
        {"4k-8k": [text(1), text(2)], "8k-16k": [text(3)], "held-out": [text(4)], "test": [text(5)]},
    )


def test_rows_of_all_kinds(tmp_path):
    write_corpus(tmp_path / "rows", [{"text": text(n)} for n in range(20)])
    assert numbers(tmp_path / "rows") == list(range(20))
    assert numbers(tmp_path / "rows" / "chunk1" / "example_0.jsonl") == [0, 5, 10, 15]
    assert numbers(f"{tmp_path}/rows/**/*.parquet", f"{tmp_path}/rows/**/*.zst") == sorted(
        [*range(2, 20, 5), *range(3, 20, 5)]
    )


def test_another_field(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"content": text(1)}])
    assert numbers(tmp_path, text_field="content") == [1]
    with pytest.raises(UsageError, match=r"a.jsonl has no field 'text'; its fields are content") as refused:
        numbers(tmp_path)
    assert "data.text_field" in refused.value.hint and "--" not in refused.value.hint


def test_texts(tmp_path):
    for number in range(3):
        (tmp_path / "books" / f"{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "books" / f"{number}.txt").write_text(text(number))
    assert numbers(tmp_path / "books") == [0, 1, 2]
    assert numbers(f"{tmp_path}/books/[02].txt") == [0, 2]
    assert numbers(tmp_path / "books" / "1.txt") == [1]


def test_builds_without_what_they_hold_out(tmp_path, build):
    write_build(tmp_path / "builds" / "more", {"train": [text(9)]})
    assert numbers(build) == [1, 2, 3]
    assert numbers(f"{build}:8k-16k") == [3]
    assert numbers(f"{build}:held-out") == [4]
    assert numbers(tmp_path / "builds") == [1, 2, 3, 9]
    assert numbers(f"{tmp_path}/builds/*") == [1, 2, 3, 9]


def test_chronicles_come_with_their_questions(tmp_path):
    build_worlds(tmp_path / "c", Worlds(train=3, test=1, characters=2_000), Running(processes=1))
    stream = DocumentStream(open_sources([str(tmp_path / "c")]), 0, 1, 0)
    taken = stream.take(10)
    assert len(taken) == 3 and all(len(document.questions) > 20 for document in taken)
    for document in taken:
        for asked in document.questions:
            start, end = asked.passages[-1]
            assert document.text[start:end] == asked.answer
    assert stream.reread([taken[2].place, taken[0].place]) == [taken[2], taken[0]]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "names no training text"),
        (("{}/nowhere",), "There is no .*nowhere here"),
        (("{}/nowhere*.txt",), "no file matches"),
        (("{}/builds/web", "{}/builds/web:4k-8k"), "given twice"),
        (("{}/builds/web=0.5",), "has a weight"),
        (("{}/builds/web:nope",), "no bucket 'nope'"),
        (("{}/half",), "incomplete build"),
        (("{}/empty",), "no file in this directory"),
    ],
)
def test_what_is_refused(tmp_path, build, names, says):
    (tmp_path / "half" / ".work").mkdir(parents=True)
    (tmp_path / "half" / ".work" / "build.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=says):
        open_sources([name.format(tmp_path) for name in names])


def test_a_revision_is_for_the_hub(tmp_path):
    with pytest.raises(UsageError, match=r"data\.revision"):
        open_sources([str(write_files(tmp_path, [1]))], revision="main")


def test_the_digest_tells_changed_sources(tmp_path):
    write_files(tmp_path / "a", [3])
    before = open_sources([str(tmp_path / "a")]).digest
    assert open_sources([str(tmp_path / "a")]).digest == before
    write_files(tmp_path / "a", [4])
    assert open_sources([str(tmp_path / "a")]).digest != before


def test_a_build_of_another_tokenizer_is_refused(tmp_path):
    name = "other/tokenizer"
    build = write_build(tmp_path / "b", {"train": [text(1)]}, Tokenizer(name, "0" * 64), count=lambda t: len(t) // 4)
    with pytest.raises(UsageError, match=rf"{build} was made with {name}.*15 tokens there and 60 here"):
        BatchStream(settings(build), byte_tokenizer(), 0, 1, 0)
    mixed = write_build(tmp_path / "mix", {"train": [text(1)]}, None, count=lambda t: len(t) // 4)
    with pytest.raises(UsageError, match="another tokenizer"):
        BatchStream(settings(mixed), byte_tokenizer(), 0, 1, 0)


def test_the_same_tokenizer_saved_another_way_fits(tmp_path):
    build = write_build(tmp_path / "b", {"train": [text(1)]}, Tokenizer("the/same", "0" * 64))
    assert len(BatchStream(settings(build), byte_tokenizer(), 0, 1, 0).next()) == 1


def test_the_file_of_the_tokenizer_decides_first(tmp_path):
    """Rows whose counts are wrong are not looked at when the tokenizer is byte for byte the build's."""
    byte_tokenizer().save_pretrained(tmp_path / "model")
    from transformers import AutoTokenizer

    sha256 = file_sha256(tmp_path / "model" / "tokenizer.json")
    build = write_build(tmp_path / "b", {"train": [text(1)]}, Tokenizer("x", sha256), count=lambda t: 1)
    assert BatchStream(settings(build), AutoTokenizer.from_pretrained(tmp_path / "model"), 0, 1, 0).next()


def test_a_data_set_on_the_hub(tmp_path, monkeypatch):
    """The hub's client reads its address when it is imported: it runs in a process of its own."""
    folder = write_corpus(tmp_path / "pajama", [{"text": text(n)} for n in range(20)])
    monkeypatch.setattr(Hub, "folder", folder)
    monkeypatch.setattr(Hub, "requests", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    script = (
        "import json; from mplus_cli.training.documents import *; from mplus_cli.training.sources import *\n"
        "opened = open_sources(['someone/pajama']); stream = DocumentStream(opened, 0, 2, 0)\n"
        "first = stream.take(5); state = stream.state_dict(); rest = stream.take(9)\n"
        "again = DocumentStream(opened, 0, 2, 0); again.load_state_dict(state)\n"
        "assert again.take(9) == rest and stream.reread([first[3].place]) == [first[3]]\n"
        "print(json.dumps([opened.opened[0].revision, [d.text for d in first + rest]]))\n"
    )
    try:
        command = [sys.executable, "-c", script]
        variables = os.environ | environment | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": os.getcwd()}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    revision, texts = json.loads(done.stdout)
    assert revision == SHA
    assert len(set(texts)) == 10 and {number_of(t) for t in texts} <= set(range(20))
    assert all(f"/resolve/{SHA}/" in path for path in Hub.requests if "/resolve/" in path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_questions_about_rows_of_ones_own(tmp_path, suffix):
    texts = [{"name": f"doc {n}", "text": f"{text(n)} The key is under stone {n}."} for n in range(3)]
    questions = [
        {"document": one["name"], "question": f"Where is key {n}?", "answer": "here", "passages": [[0, 3]]}
        for n, one in enumerate(texts)
        if n != 1
    ]
    write_rows(tmp_path / f"text-0.jsonl{suffix}", texts)
    write_rows(tmp_path / f"questions-0.jsonl{suffix}", questions)
    write_rows(tmp_path / "questions-alone.jsonl", [{"text": text(9)}])
    opened = open_sources([str(tmp_path)])
    found = {number_of(document.text): document for document in DocumentStream(opened, 0, 1, 0).take(99)}
    assert {number: len(document.questions) for number, document in found.items()} == {0: 1, 1: 0, 2: 1, 9: 0}
    assert found[2].questions[0].question == "Where is key 2?" and found[2].questions[0].passages == ((0, 3),)


def test_a_hub_that_stops_answering_is_one_message(monkeypatch):
    class Broken(io.BytesIO):
        def read(self, *args):
            return self.fail() if self.tell() else super().read(64)

        readline = readinto = __next__ = lambda self, *args: self.fail()

        def fail(self):
            raise ConnectionResetError("Connection reset by peer")

    line = json.dumps({"text": text(1)}).encode() + b"\n"
    monkeypatch.setattr(rows, "open_file", lambda path: Broken(line * 9))
    file = TextFile("owner/name/a.jsonl", "hf://datasets/owner/name@0/a.jsonl", 99, Fields("text"))
    with pytest.raises(MPlusError, match="owner/name/a.jsonl from the hub broke off: Connection reset") as broken:
        list(read_documents(file, BadRows(5)))
    assert "--resume auto" in broken.value.hint
