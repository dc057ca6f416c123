"""Chronicles: the same for a seed, every fact at its span, one right answer to a question, prose without artefacts."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from mplus_cli.data.chronicle import (
    Chronicle,
    ChronicleConfig,
    World,
    answer_text,
    iter_paragraphs,
    question_prompt,
    sample_passage,
    split_of,
    write_sample,
)
from mplus_cli.data.chronicle import fillers as fillers_module
from mplus_cli.data.chronicle.kinds import ANIMALS, KINDS, LEADS
from mplus_cli.errors import UsageError

EVENTFUL = ChronicleConfig(move_rate=0.3, two_passage_rate=0.5)


@pytest.fixture(scope="module")
def eventful() -> Chronicle:
    return Chronicle.generate(5, EVENTFUL, chapters=25, split="test")


CONFIGS = {
    "default": ChronicleConfig(),
    "eventful": EVENTFUL,
    "bare": ChronicleConfig(filler=0, syllables=(2,), family_names=False, wordings=2, question_forms=1),
    "crowded": ChronicleConfig(people_per_scene=6, facts_per_person=1, filler=0.5, first_name_rate=1.0),
    "alone": ChronicleConfig(people_per_scene=1, people_per_chapter=3, facts_per_person=9, filler=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_facts_stand_at_their_spans_in_a_sentence_about_their_person(name: str) -> None:
    chronicle = Chronicle.generate(1, CONFIGS[name], chapters=6)
    assert chronicle.facts
    for fact in chronicle.facts:
        assert chronicle.text[fact.start : fact.end] == fact.value
        paragraph_start = chronicle.text.rindex("\n\n", 0, fact.start) + 2
        paragraph = chronicle.text[paragraph_start : chronicle.text.index("\n", fact.end)]
        assert fact.subject in paragraph
        sentence_start = max(chronicle.text.rfind(mark, 0, fact.start) for mark in (". ", '" ', "\n"))
        sentence = chronicle.text[sentence_start : chronicle.text.index(".", fact.end)]
        assert fact.subject.split()[0] in sentence
        chapters = re.findall(r"^Chapter (\d+)\.", chronicle.text[: fact.start], flags=re.MULTILINE)
        assert int(chapters[-1]) == fact.chapter == len(chapters)
    spans = [(fact.start, fact.end) for fact in chronicle.facts]
    assert spans == sorted(spans)


def test_every_question_has_exactly_one_answer_that_the_text_gives(eventful: Chronicle) -> None:
    answers: dict[str, str] = {}
    for question in eventful.questions:
        assert answers.setdefault(question.text, question.answer) == question.answer
        assert eventful.facts[question.facts[-1]].value == question.answer
        assert 1 <= len(question.answer.split()) <= 2
        assert all(eventful.facts[i].superseded_by is None for i in question.facts)
    current = {(fact.kind, fact.subject): fact.value for fact in eventful.facts if fact.superseded_by is None}
    assert len(current) == sum(fact.superseded_by is None for fact in eventful.facts)


def test_no_other_person_shares_a_full_name() -> None:
    """A name given to two people would show as two facts of one kind about it."""
    chronicle = Chronicle.generate(2, chapters=60)
    keys = [(fact.kind, fact.subject) for fact in chronicle.facts]
    assert len(set(keys)) == len(keys) == 60 * 12 * 3
    assert all(fact.superseded_by is None for fact in chronicle.facts)


def test_the_later_home_wins(eventful: Chronicle) -> None:
    moves = [(fact, eventful.facts[fact.superseded_by]) for fact in eventful.facts if fact.superseded_by is not None]
    assert len(moves) >= 5
    asked = {question.text: question.answer for question in eventful.questions}
    for old, new in moves:
        assert old.kind == new.kind == "home" and old.subject == new.subject
        assert old.chapter < new.chapter and old.end < new.start and old.value != new.value
        assert {asked[text] for text in old.questions} == {new.value}


def test_without_moves_nothing_is_superseded() -> None:
    assert all(fact.superseded_by is None for fact in Chronicle.generate(3, chapters=10).facts)


def test_two_passage_questions_go_through_a_home_or_a_sibling(eventful: Chronicle) -> None:
    double = [question for question in eventful.questions if len(question.facts) == 2]
    seen = set()
    for question in double:
        first, second = (eventful.facts[i] for i in question.facts)
        seen.add(first.kind)
        if first.kind == "home":
            assert f"the person who lives in {first.value}" in question.text
            assert [f.subject for f in eventful.facts if f.kind == "home" and f.value == first.value] == [first.subject]
            assert first.subject == second.subject
        else:
            word = "sister" if first.sister else "brother"
            assert f"the {word} of {first.subject}" in question.text
            assert second.subject == f"{first.value} {first.subject.split()[1]}"
        assert second.subject not in question.text
    assert seen == {"home", "sibling"}
    assert not [q for q in Chronicle.generate(5, chapters=5).questions if len(q.facts) != 1]


def test_nobody_is_asked_for_by_a_town_that_two_people_live_in() -> None:
    """Short town names run out here and come back, so that a town no longer tells who is meant."""
    config = ChronicleConfig(kinds=("home", "journey", "birthplace"), syllables=(2,), two_passage_rate=1.0, filler=0)
    chronicle = Chronicle.generate(1, config, chapters=60, split="test")
    homes = [fact.value for fact in chronicle.facts if fact.kind == "home"]
    double = [question for question in chronicle.questions if len(question.facts) == 2]
    assert len(set(homes)) < len(homes) and double
    assert all(homes.count(chronicle.facts[question.facts[0]].value) == 1 for question in double)


def test_brothers_and_sisters_name_each_other(eventful: Chronicle) -> None:
    told = {fact.subject: fact for fact in eventful.facts if fact.kind == "sibling"}
    pairs = 0
    for fact in told.values():
        other = told.get(f"{fact.value} {fact.subject.split()[1]}")
        if other:
            pairs += 1
            assert other.value == fact.subject.split()[0]
    assert pairs > 0


def test_a_seed_gives_one_chronicle_and_another_seed_another() -> None:
    assert Chronicle.generate(7, EVENTFUL, chapters=3) == Chronicle.generate(7, EVENTFUL, chapters=3)
    assert Chronicle.generate(7, EVENTFUL, chapters=3).text != Chronicle.generate(8, EVENTFUL, chapters=3).text


def test_a_longer_chronicle_begins_like_a_shorter_one() -> None:
    short, long = (Chronicle.generate(7, chapters=n) for n in (2, 5))
    assert long.text.startswith(short.text.rstrip("\n"))
    assert long.facts[: len(short.facts)] == short.facts


def test_min_chars_ends_at_the_first_chapter_end_beyond() -> None:
    chronicle = Chronicle.generate(4, min_chars=20_000)
    last = chronicle.text.rindex("\n\nChapter ")
    assert last < 20_000 <= len(chronicle.text)


def test_the_stream_is_the_chronicle() -> None:
    chronicle = Chronicle.generate(9, chapters=3)
    rng = Random(9)
    world = World(rng)
    rng.random()  # the title
    passages = list(islice(iter_paragraphs(world), 12))
    assert "\n\n".join(passage.text for passage in passages) in chronicle.text
    for passage in passages:
        assert all(passage.text[fact.start : fact.end] == fact.value for fact in passage.facts)


@pytest.mark.parametrize("split", ["train", "test"])
def test_only_names_of_the_split_occur(split: str) -> None:
    chronicle = Chronicle.generate(11, EVENTFUL, chapters=8, split=split)
    for fact in chronicle.facts:
        names = fact.subject.split()
        if KINDS[fact.kind].values is None:
            names.append(fact.value)
        assert {split_of(name) for name in names} == {split}


def test_people_told_side_by_side_have_facts_of_the_same_kinds_with_different_values() -> None:
    for passage in islice(iter_paragraphs(World(Random(3))), 200):
        by_kind: dict[str, list[str]] = {}
        for fact in passage.facts:
            by_kind.setdefault(fact.kind, []).append(fact.value)
        for values in by_kind.values():
            assert len(values) == len(set(values)) == 3


def test_passages_keep_to_their_length_and_tell_all_facts_where_there_is_room() -> None:
    world = World(Random(1))
    for _ in range(300):
        passage = sample_passage(world, people=4, facts_per_person=1, max_chars=420)
        assert len(passage.text) <= 420
        assert len(passage.facts) == 4
        assert all(passage.text[fact.start : fact.end] == fact.value for fact in passage.facts)
    assert len(sample_passage(world, people=4, facts_per_person=2, max_chars=200).text) <= 200


def test_passages_of_one_world_never_share_a_name() -> None:
    world = World(Random(2))
    subjects = [{fact.subject for fact in sample_passage(world).facts} for _ in range(300)]
    assert sum(map(len, subjects)) == len(set().union(*subjects))


def test_names_that_run_out_are_an_error_and_not_an_endless_loop() -> None:
    world = World(Random(0), ChronicleConfig(family_names=False, syllables=(2,), facts_per_person=1, filler=0))
    with pytest.raises(UsageError, match="given out"):
        for _ in range(5_000):
            sample_passage(world)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_page_reads_without_artefacts(name: str) -> None:
    text = Chronicle.generate(12, CONFIGS[name], chapters=30, split="test").text
    assert text.isascii()
    assert not re.search(r"[{}|]|  |\t| \n|\n |\n\n\n| [.,?!]|\.\.|,,|None", text)
    assert not re.search(r"\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]", text), "an article does not fit its noun"
    assert not re.search(r"\b(\w+) \1\b", text), "a word stands twice in a row"
    for paragraph in text.strip().split("\n\n")[1:]:
        assert paragraph[0].isupper() or paragraph[0] == '"'
        assert paragraph.count('"') % 2 == 0
        if not paragraph.startswith("Chapter "):
            assert paragraph[-1] in '."'
            assert not re.search(r'[.?!]"? [a-z]', paragraph.replace('," says', "").replace('," she', "")), paragraph
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_paragraphs_never_begin_with_a_name() -> None:
    chronicle = Chronicle.generate(13, replace(ChronicleConfig(), filler=0.5), chapters=20)
    firsts = {name for fact in chronicle.facts for name in (*fact.subject.split(), fact.value.split()[0])}
    assert not [p for p in chronicle.text.split("\n\n") if p.split()[0] in firsts]


def test_no_filler_holds_a_value_of_a_closed_list() -> None:
    values = {value for kind in KINDS.values() for value in kind.values or ()} | set(ANIMALS)
    texts = [*fillers_module.SCENE_FILLERS, *fillers_module.PERSON_FILLERS, *LEADS]
    texts += [text for group in fillers_module.KIND_FILLERS.values() for text in group]
    texts += [*fillers_module.CHAPTER_OPENINGS, *fillers_module.CHAPTER_CLOSINGS, *fillers_module.CHAPTER_SUBJECTS]
    for text in texts:
        for value in values:
            assert not re.search(rf"\b{value}s?\b", text, flags=re.IGNORECASE), (text, value)


def test_every_kind_has_its_wordings_questions_and_fillers() -> None:
    assert set(fillers_module.KIND_FILLERS) == set(KINDS)
    for kind in KINDS.values():
        assert len(kind.wordings) >= 4 and len(set(kind.wordings)) == len(kind.wordings)
        assert len(kind.questions) >= 3 and len(set(kind.questions)) == len(kind.questions)
        assert all(wording.count("{v}") == 1 and "{n}" in wording for wording in kind.wordings)
        assert all("{n}" in form and form.endswith("?") and "{v}" not in form for form in kind.questions)
        assert all(value == value.lower() and len(value.split()) <= 2 for value in kind.values or ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": ("home", "hobby")},
        {"kinds": ()},
        {"facts_per_person": 0},
        {"kinds": ("home",), "facts_per_person": 2},
        {"people_per_scene": 13, "people_per_chapter": 20},
        {"people_per_scene": 5, "people_per_chapter": 4},
        {"syllables": (4,)},
        {"syllables": ()},
        {"move_rate": 1.5},
        {"wordings": 0},
        {"filler": -1.0},
    ],
)
def test_wrong_knobs_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(UsageError):
        ChronicleConfig(**wrong)


def test_either_chapters_or_min_chars() -> None:
    for kwargs in ({}, {"chapters": 1, "min_chars": 1}):
        with pytest.raises(UsageError):
            Chronicle.generate(1, **kwargs)
    with pytest.raises(UsageError):
        World(Random(0), split="valid")  # type: ignore[arg-type]


def test_one_function_owns_the_prompt_and_one_the_answer() -> None:
    assert question_prompt("Where?") == "Question: Where? Answer:"
    assert answer_text("Velford") == " Velford\n"


def test_a_sample_is_written_in_test_names(tmp_path) -> None:
    path = tmp_path / "sample.txt"
    chronicle = write_sample(path, seed=1, chapters=2)
    assert path.read_bytes() == chronicle.text.encode()
    assert chronicle.text.startswith(chronicle.title + "\n\nChapter 1. ")
    assert split_of(chronicle.facts[0].subject.split()[0]) == "test"
