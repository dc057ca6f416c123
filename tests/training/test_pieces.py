"""Long texts as several documents: pieces join up, questions go with the piece that tells them, training resumes."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.data.building.identity import document_id
from mplus_cli.training.documents import DocumentStream
from mplus_cli.training.pieces import cut
from mplus_cli.training.reading import Asked, Read
from tests.training.corpora import sources


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab.\n ", max_size=400), longest=st.integers(1, 60))
def test_pieces_join_up_and_none_is_too_long(text, longest):
    pieces = cut(Read(0, text), longest)
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(piece.text) <= longest for piece in pieces) or text == ""


def test_pieces_begin_where_paragraphs_do():
    paragraphs = [f"Paragraph {i} says this. And that.\n\n" for i in range(9)]
    for piece in cut(Read(0, "".join(paragraphs)), 120):
        assert piece.text.startswith("Paragraph") and piece.text.endswith("\n\n")


def test_a_question_goes_with_the_piece_that_tells_what_it_needs():
    text = "Ann lives in Oslo.\n\nBob lives in Rome.\n\nCid lives in Bonn.\n\n"
    spans = {city: (text.index(city), text.index(city) + 4) for city in ("Oslo", "Rome", "Bonn")}
    questions = [Asked(f"Who lives in {city}?", city, (span,)) for city, span in spans.items()]
    questions.append(Asked("Who lives where?", "x", (spans["Oslo"], spans["Bonn"])))
    pieces = cut(Read(3, text, tuple(questions)), 25)
    assert [len(piece.questions) for piece in pieces] == [1, 1, 1]
    for piece, city in zip(pieces, spans, strict=True):
        ((start, end),) = piece.questions[0].passages
        assert piece.text[start:end] == city == piece.questions[0].answer


def test_pieces_of_a_text_are_read_by_place_and_know_where_they_are_from(tmp_path):
    texts = ["".join(f"Line {i} of text {n}.\n\n" for i in range(20)) for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    stream = DocumentStream(sources(tmp_path / "rows.jsonl"), 0, 1, 1, longest=100)
    found = stream.take(7)
    state = stream.state_dict()
    rest = stream.take(5)
    other = DocumentStream(sources(tmp_path / "rows.jsonl"), 0, 1, 1, longest=100)
    assert other.reread([document.place for document in found]) == found
    other.load_state_dict(state)
    assert other.take(5) == rest
    everything = found + rest + stream.take(1000)
    assert sorted({document.whole for document in everything}) == sorted(map(document_id, texts))
    for text in texts:
        own = sorted((d.place.piece, d.text) for d in everything if d.whole == document_id(text))
        assert "".join(piece for _, piece in own) == text
