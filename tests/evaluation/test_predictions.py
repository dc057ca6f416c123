"""predictions.jsonl: what is written is read back, and nothing damaged is taken for a sample."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mplus_cli.errors import UsageError
from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.items import Answer, Item, Question
from mplus_cli.evaluation.predictions import Writer, decode_line, encode_line, merge, read, record, shortened

SAMPLE = {"id": "a/q", "text": "an answer", "seconds": {"ask": 1.5}, "references": ["x"]}


def write(path, *samples):
    path.write_bytes(b"".join(encode_line(sample) for sample in samples))


@given(st.text(), st.text())
def test_any_text_survives(text, other):
    sample = {"id": "a/q", "text": text, "raw": other + '", "crc32": "00000000"}'}
    line = encode_line(sample)
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == sample


def test_half_a_surrogate_pair_survives():
    sample = {"id": "a/q", "text": "\ud800"}
    assert decode_line(encode_line(sample).rstrip(b"\n")) == sample


def test_every_changed_byte_and_every_cut_is_found():
    line = encode_line(SAMPLE).rstrip(b"\n")
    for place in range(len(line)):
        for changed in (line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :], line[:place]):
            with pytest.raises(ValueError):
                decode_line(changed)


def test_numbers_that_json_cannot_say_are_refused():
    with pytest.raises(ValueError):
        encode_line(SAMPLE | {"extra": float("nan")})


def test_read_names_damaged_lines_and_keeps_the_others(tmp_path):
    path = tmp_path / predictions.NAME
    lines = [encode_line(SAMPLE | {"id": f"a/{n}"}) for n in range(3)]
    path.write_bytes(lines[0] + lines[1].replace(b"answer", b"answrr") + b"\n" + lines[2][:20])
    samples, damaged = read([path])
    assert list(samples) == ["a/0"]
    assert [str(one) for one in damaged] == [
        f"{path}, line 2: damaged: its checksum is wrong",
        f"{path}, line 4: cut off, or not a line of predictions",
    ]


def test_merge_orders_samples_and_drops_what_cannot_be_used(tmp_path):
    write(tmp_path / predictions.NAME, SAMPLE | {"id": "c"}, SAMPLE | {"id": "a"})
    write(tmp_path / "predictions.0.jsonl", SAMPLE | {"id": "b"}, SAMPLE | {"id": "a", "text": "again"})
    (tmp_path / "predictions.1.jsonl").write_bytes(b"{half")
    samples, damaged = merge(tmp_path, ["a", "b", "c", "d"])
    assert list(samples) == ["a", "b", "c"]
    assert samples["a"]["text"] == "an answer", "the first of two is kept"
    assert [(one.path.name, one.line) for one in damaged] == [("predictions.1.jsonl", 1)]
    assert [path.name for path in tmp_path.iterdir()] == [predictions.NAME]
    assert read([tmp_path / predictions.NAME]) == (samples, [])


def test_merge_refuses_samples_of_another_run_and_touches_nothing(tmp_path):
    write(tmp_path / predictions.NAME, SAMPLE)
    before = (tmp_path / predictions.NAME).read_bytes()
    with pytest.raises(UsageError, match="another run, for example 'a/q'"):
        merge(tmp_path, ["b/q"])
    assert (tmp_path / predictions.NAME).read_bytes() == before


def test_each_sample_is_in_the_file_as_soon_as_it_is_appended(tmp_path):
    path = tmp_path / predictions.NAME
    with Writer(path) as writer:
        for count in range(1, 4):
            writer.append(SAMPLE | {"id": f"a/{count}"})
            assert path.read_bytes().count(b"\n") == count
    with Writer(path) as writer:
        writer.append(SAMPLE)
    assert len(read([path])[0]) == 4


def test_writer_reaches_the_disk_every_few_seconds(tmp_path, monkeypatch):
    synced, now = [], [100.0]
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(now[0]))
    monkeypatch.setattr(predictions.time, "monotonic", lambda: now[0])
    with Writer(tmp_path / predictions.NAME) as writer:
        for second in (101.0, 106.0, 107.0, 112.0):
            now[0] = second
            writer.append(SAMPLE)
        assert synced == [106.0, 112.0]
    assert len(synced) == 3, "and at the end"


def test_a_record_holds_what_scoring_needs_and_the_prompt():
    item = Item("i", (), (), {"kind": "x", "distance": 1})
    question = Question("q", "Q:", ("r",), 0, 5, ("A", "B"), {"distance": 2})
    prompt = "book " * 3_000 + "Q:"
    made = record("task", "system", item, question, Answer("i", "q", "t", prompt=prompt, seconds={"ask": 1 / 3}), False)
    assert made["metadata"] == {"kind": "x", "distance": 2}
    assert (made["references"], made["options"], made["max_new_tokens"]) == (["r"], ["A", "B"], 5)
    assert made["prompt_characters"] == len(prompt)
    assert made["prompt_sha256"] == hashlib.sha256(prompt.encode()).hexdigest()
    assert made["prompt"].startswith("book book") and made["prompt"].endswith("Q:")
    assert f"[... {len(prompt) - 4_000:,} characters ...]" in made["prompt"]
    assert record("t", "s", item, question, Answer("i", "q", prompt=prompt), True)["prompt"] == prompt


def test_prompts_that_would_hardly_get_shorter_stay_whole():
    assert shortened("x" * 6_000) == "x" * 6_000
    assert len(shortened("x" * 6_001)) < 4_100
