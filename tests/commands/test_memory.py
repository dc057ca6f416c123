"""`mplus memory`: show, verify, forget, compact."""

from __future__ import annotations

import json


def test_show(mplus, state, book_file, model_folder):
    code, out, err = mplus("memory", "show", state)
    assert (code, err) == (0, "")
    for expected in (str(book_file), "32 of 32", "80 of 80", str(model_folder)):
        assert expected in out


def test_show_json(mplus, state, book_file):
    document = json.loads(mplus("memory", "show", state, "--json")[1])
    assert document["sources"][0]["source"] == str(book_file)


def test_verify(mplus, state):
    code, out, _ = mplus("memory", "verify", state)
    assert code == 0 and "every checksum" in out


def test_verify_finds_a_flipped_byte(mplus, state):
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    code, out, err = mplus("memory", "verify", state)
    assert (code, out) == (2, "") and "damaged" in err


def test_forget_and_its_proof(mplus, state, book_file, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("Another page about the abbot of Vorn and his mill.\n" * 6)
    assert mplus("inject", more, "--state", state)[0] == 0
    code, out, _ = mplus("memory", "forget", state, "--source", book_file)
    assert code == 0 and f"0 memory tokens of {book_file} are left" in out
    shown = mplus("memory", "show", state)[1]
    assert str(more) in shown and str(book_file) not in shown
    document = json.loads(mplus("ask", "Who?", "--state", state, "--explain", "--json", "--max-new-tokens", "4")[1])
    assert all(passage["source"] == str(more) for passage in document["passages"])


def test_forget_an_unknown_source(mplus, state):
    before = state.read_bytes()
    code, out, err = mplus("memory", "forget", state, "--source", "nobody.txt")
    assert (code, out) == (2, "") and "nobody.txt" in err
    assert state.read_bytes() == before


def test_compact_keeps_answers(mplus, state):
    question = ["ask", "Who?", "--state", state, "--max-new-tokens", "6"]
    before = mplus(*question)[1]
    code, out, _ = mplus("memory", "compact", state)
    assert code == 0 and "->" in out
    assert mplus(*question)[1] == before


def test_missing_files(mplus, tmp_path):
    for command in (["show"], ["verify"], ["compact"], ["forget", "--source", "x"]):
        code, out, err = mplus("memory", command[0], tmp_path / "gone.pt", *command[1:])
        assert (code, out) == (2, "") and "gone.pt" in err
