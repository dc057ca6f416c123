"""`mplus ask`: the answer on stdout and nothing else, where it came from, and the interactive session."""

from __future__ import annotations

import io
import json

import pytest

from mplus_cli.commands.ask import _excerpt

QUESTION = "Who sold flour?"
SHORT = ["--max-new-tokens", "8"]


@pytest.fixture
def answer_text(mplus, state) -> str:
    return json.loads(mplus("ask", QUESTION, "--state", state, "--json", *SHORT)[1])["answer"]


def piped(monkeypatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_stdout_is_the_answer_and_nothing_else(mplus, state, answer_text):
    assert mplus("ask", QUESTION, "--state", state, *SHORT) == (0, answer_text + "\n", "")


def test_state_is_found_by_variable_and_by_memory_of_the_last(mplus, state, answer_text, monkeypatch):
    assert mplus("ask", QUESTION, *SHORT)[1] == answer_text + "\n"
    monkeypatch.setenv("MPLUS_STATE", str(state))
    assert mplus("ask", QUESTION, *SHORT)[1] == answer_text + "\n"


def test_json(mplus, state):
    document = json.loads(mplus("ask", QUESTION, "--state", state, "--json", *SHORT)[1])
    assert document["question"] == QUESTION
    assert document["prompt"] == "Question: Who sold flour? Answer:"
    assert document["retrieved"] == [16, 16, 16]
    assert 1 <= document["answer_tokens"] <= 8
    assert document["seconds"] >= document["first_token_seconds"] > 0


def test_question_from_stdin(mplus, state, answer_text, monkeypatch):
    piped(monkeypatch, QUESTION + "\n")
    assert mplus("ask", "-", "--state", state, *SHORT)[1] == answer_text + "\n"


def test_show_prompt_goes_to_stderr(mplus, state, answer_text):
    expected = (0, answer_text + "\n", "Question: Who sold flour? Answer:\n")
    assert mplus("ask", QUESTION, "--state", state, "--show-prompt", *SHORT) == expected


def test_no_ltm_retrieves_nothing(mplus, state):
    document = json.loads(mplus("ask", QUESTION, "--state", state, "--json", "--no-ltm", *SHORT)[1])
    assert sum(document["retrieved"]) == 0


def test_explain_names_passages_of_the_source(mplus, state, book_file):
    document = json.loads(mplus("ask", QUESTION, "--state", state, "--json", "--explain", *SHORT)[1])
    passages = document["passages"]
    shares = [passage["share"] for passage in passages]
    assert passages and shares == sorted(shares, reverse=True)
    text = book_file.read_text()
    for passage in passages:
        assert passage["source"] == str(book_file)
        assert passage["text"] == text[passage["start"] : passage["end"]]
        assert passage["age"] >= 0


def test_explain_for_people_goes_to_stderr(mplus, state, answer_text, book_file):
    code, out, err = mplus("ask", QUESTION, "--state", state, "--explain", *SHORT)
    assert (code, out) == (0, answer_text + "\n")
    assert f"{book_file}, characters" in err and "memory tokens ago" in err


def test_explain_is_shown_with_quiet_too(mplus, state, answer_text):
    code, out, err = mplus("ask", QUESTION, "--state", state, "--explain", "--quiet", *SHORT)
    assert (code, out) == (0, answer_text + "\n") and "memory tokens ago" in err


def test_an_excerpt_shows_the_answer_where_it_stands():
    text = "x " * 400 + "the abbot lived in Narkeld for years " + "y " * 400
    assert "lived in Narkeld for" in _excerpt(text, " Narkeld.") and len(_excerpt(text, "Narkeld")) < 310
    assert _excerpt(text, "Vorn").startswith("x x") and _excerpt("short", "zz") == "short"


def test_explain_after_the_source_changed_gives_the_position_only(mplus, state, book_file):
    book_file.write_text("something else")
    document = json.loads(mplus("ask", QUESTION, "--state", state, "--json", "--explain", *SHORT)[1])
    assert all(passage["text"] is None and passage["end"] > 0 for passage in document["passages"])


def test_explain_without_long_term_memory(mplus, state):
    assert "no long-term memory" in mplus("ask", QUESTION, "--state", state, "--explain", "--no-ltm", *SHORT)[2]


def test_another_model_is_refused(mplus, state, other_model_folder):
    code, out, err = mplus("ask", QUESTION, "--state", state, "--model", other_model_folder)
    assert (code, out) == (2, "") and "model" in err


@pytest.mark.parametrize(
    "arguments", [["", "x"], ["--max-new-tokens", "0"], ["--temperature", "-1"], ["--temperature", "nan"]]
)
def test_bad_values(mplus, state, arguments):
    question = [] if arguments[0] == "" else ["Who?"]
    code, out, _ = mplus("ask", *question, "--state", state, *(["  "] if not question else arguments))
    assert (code, out) == (2, "")


def test_a_damaged_state_is_refused(mplus, state):
    content = bytearray(state.read_bytes())
    content[8192 + 10] ^= 0xFF
    state.write_bytes(content)
    code, out, err = mplus("ask", QUESTION, "--state", state)
    assert (code, out) == (2, "")
    assert "damaged" in err


def test_session_answers_and_obeys(mplus, state, answer_text, monkeypatch, tmp_path):
    piped(monkeypatch, f"{QUESTION}\n/memory\n/help\n/nonsense\n/inject {tmp_path}/gone.txt\n/quit\nnever asked\n")
    code, out, err = mplus("ask", "--state", state, *SHORT)
    assert (code, out) == (0, answer_text + "\n")
    assert "short-term" in err and "/inject FILE" in err and "unknown command /nonsense" in err and "gone.txt" in err


def test_session_injects_and_saves(mplus, state, monkeypatch, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("Another page about the abbot of Vorn and his mill.\n" * 6)
    piped(monkeypatch, f"/inject {more}\n{QUESTION}\n/save\n{QUESTION}\n/quit\n")
    code, _, err = mplus("ask", "--state", state, *SHORT)
    assert code == 0 and "error" not in err and "saved 5 chunks" in err
    assert str(more) in mplus("memory", "show", state)[1]


def test_session_warns_before_it_drops_what_was_not_saved(mplus, state, monkeypatch, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("Another page about the abbot of Vorn and his mill.\n" * 6)
    before = state.read_bytes()
    piped(monkeypatch, f"/inject {more}\n/quit\n/quit\n")
    code, _, err = mplus("ask", "--state", state, *SHORT)
    assert code == 0 and "5 injected chunks are not saved" in err
    assert state.read_bytes() == before
