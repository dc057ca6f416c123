"""BABILong: stories read and made, facts scattered, labels compared."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import VARIABLE, data_folder
from mplus_cli.evaluation.haystack import Sentence
from mplus_cli.evaluation.tasks.babi_prompts import INSTRUCTIONS
from mplus_cli.evaluation.tasks.babi_stories import (
    GENERATED,
    LABELS,
    PLACES,
    generated_story,
    parse_stories,
    published_stories,
)
from mplus_cli.evaluation.tasks.babilong import Babilong, label_accuracy, scatter
from tests.evaluation.helpers import evaluate
from tests.evaluation.tasks.helpers import is_png, results_of, task_settings
from tests.fixtures import byte_tokenizer, tiny_model

TASK = Babilong()
FILE = """1 John went to the hallway.
2 Mary got the milk there.
3 Where is John? \thallway\t1
4 Mary moved to the garden.
5 Where is the milk? \tgarden\t2 4
1 Sandra went to the office.
2 Where is Sandra? |office|1
"""


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))


@pytest.fixture
def babi(tmp_path: Path) -> Path:
    """A data folder whose bAbI archive has one short file for qa1."""
    folder = tmp_path / "data" / "babi"
    folder.mkdir(parents=True)
    for language, text in (("hn", "1 x\n"), ("en", FILE)):
        path = tmp_path / language
        path.write_text(text)
        name = f"tasks_1-20_v1-2/{language}/qa1_single-supporting-fact_test.txt"
        with tarfile.open(folder / "babi_tasks.tar.xz" if language == "en" else tmp_path / "other.tar", "w") as archive:
            archive.add(path, name)
    return tmp_path / "data"


def items(*options: str, **given):
    return list(TASK.items(task_settings(TASK, *options, **given)))


# -- stories --


def test_every_question_of_a_story_becomes_a_story_of_its_own():
    first, second, third = parse_stories(FILE, "test")
    assert first.facts == ("John went to the hallway.", "Mary got the milk there.")
    assert (first.question, first.answer, first.support) == ("Where is John?", "hallway", (0,))
    assert second.facts == (*first.facts, "Mary moved to the garden.")
    assert second.support == (1, 2)
    assert (third.number, third.facts, third.answer) == (2, ("Sandra went to the office.",), "office")


@pytest.mark.parametrize("line", ["John went", "1 Where is John? \thallway\t7", "1 Where?\there", "x y"])
def test_lines_of_another_form_are_named(line):
    with pytest.raises(UsageError, match="line 1: not in the form of bAbI"):
        parse_stories(line, "test")


@pytest.mark.parametrize("task", GENERATED)
def test_generated_stories_are_in_the_language_of_the_task(task):
    stories = [generated_story(task, number, 0) for number in range(60)]
    for story in stories:
        assert story.answer in LABELS[task] and story.answer.lower() not in story.question.lower()
        assert story.support == tuple(sorted(story.support)) and max(story.support) < len(story.facts)
        if task != "qa4":
            assert any(story.answer in story.facts[place] for place in story.support)
    assert len({story.question for story in stories}) >= 3 and len({story.answer for story in stories}) > 3
    assert stories[3] == generated_story(task, 3, 0) != generated_story(task, 3, 1)


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3"])
def test_answers_follow_from_the_generated_facts(task):
    """A second reading of the stories: who is where, who holds what, where has it been."""
    for number in range(150):
        story = generated_story(task, number, 0)
        at, holder, been = {}, {}, {}
        for fact in story.facts:
            words = fact.rstrip(".").split()
            who, last = words[0], words[-1]
            thing = next((word for word in words if word in ("apple", "football", "milk")), None)
            if last in PLACES:
                at[who] = last
                for carried, by in holder.items():
                    if by == who:
                        been.setdefault(carried, []).append(last)
            elif words[1] in ("dropped", "left", "put", "discarded"):
                assert holder.pop(thing) == who
            else:
                assert thing not in holder and (thing not in been or been[thing][-1] == at[who])
                holder[thing] = who
                been.setdefault(thing, [at[who]])
        asked = story.question.rstrip("?").split()
        if task == "qa1":
            assert story.answer == at[asked[-1]]
        elif task == "qa2":
            assert story.answer == been[asked[-1]][-1]
        else:
            assert (story.answer, asked[-1]) == tuple(been[asked[3]][-2:])


def test_rooms_lie_where_the_generated_facts_say():
    opposite = {"north": "south", "south": "north", "west": "east", "east": "west"}
    for number in range(150):
        story = generated_story("qa4", number, 0)
        known = set()
        for fact in story.facts:
            _, a, _, side, _, _, b = fact.rstrip(".").split()
            known |= {(a, side, b), (b, opposite[side], a)}
        words = story.question.rstrip("?").split()
        if words[2] in opposite:  # What is SIDE of the ROOM?
            assert (story.answer, words[2], words[-1]) in known
        else:  # What is the ROOM SIDE of?
            assert (words[3], words[4], story.answer) in known


# -- texts --


def test_facts_keep_their_order_and_stand_anywhere():
    facts = [Sentence(f" F{i}.", 3) for i in range(5)]
    text = [Sentence(f" S{i}.", 3) for i in range(40)]
    places = set()
    for seed in range(200):
        mixed = scatter(facts, text, Random(seed))
        assert [s for s in mixed if s in facts] == facts and [s for s in mixed if s in text] == text
        places.add(mixed.index(facts[0]))
    assert len(places) > 15 and 0 in places
    assert scatter(facts, [], Random(0)) == facts


def test_texts_have_the_length_of_their_label(no_data):
    for item in items("lengths=[0,2000,5000]", limit=30):
        (question,), (document,) = item.questions, item.documents
        story = generated_story(question.metadata["task"], int(item.id.split("-")[-1]), 0)
        positions = [document.text.index(fact) for fact in dict.fromkeys(story.facts)]
        assert positions == sorted(positions) and question.references == (story.answer,)
        tokens, length = len(encode(byte_tokenizer(), document.text)), question.metadata["length"]
        facts = sum(len(fact) + 1 for fact in story.facts)
        assert abs(tokens - max(length, facts)) <= 3
        if length == 0:
            assert document.text == " ".join(story.facts) and question.metadata["book"] is None
        assert question.metadata["source"] == "generated"
        last = document.text.rindex(story.facts[max(story.support)]) + len(story.facts[max(story.support)])
        assert abs(question.metadata["distance_tokens"] - (tokens - last)) <= 3


def test_all_tasks_and_lengths_of_a_story_come_before_the_next_story(no_data):
    made = items("tasks=[qa1,qa4]", "lengths=[0,500]", limit=10)
    assert [item.id for item in made[:5]] == ["qa1-0-0", "qa1-500-0", "qa4-0-0", "qa4-500-0", "qa1-0-1"]
    assert made[:4] == items("tasks=[qa1,qa4]", "lengths=[0,500]", limit=4)


@pytest.mark.parametrize(("length", "labels"), [(None, [0, 1024, 2048, 4096]), (3000, [0, 1024, 2048, 3000]), (0, [0])])
def test_lengths_are_the_published_ones_up_to_the_one_asked_for(no_data, length, labels):
    made = items("tasks=[qa1]", length=length, limit=len(labels))
    assert [item.questions[0].metadata["length"] for item in made] == labels


def test_the_archive_and_the_list_of_stories_are_used(babi: Path):
    made = items("tasks=[qa1]", "lengths=[0]", data=babi)
    assert [item.id for item in made] == ["qa1-0-0", "qa1-0-1", "qa1-0-2"]
    (babi / "babi" / "babilong_list.json").write_text(json.dumps({"qa1": [2, 0]}))
    made = items("tasks=[qa1]", "lengths=[0]", data=babi)
    assert [item.id for item in made] == ["qa1-0-2", "qa1-0-0"]
    assert made[0].documents[0].text == "Sandra went to the office."
    assert "BABILong" in made[0].questions[0].metadata["source"]
    (babi / "babi" / "babilong_list.json").write_text(json.dumps({"qa1": [5]}))
    with pytest.raises(UsageError, match="names story 5 of qa1"):
        items("tasks=[qa1]", data=babi)


def test_a_folder_of_text_files_will_do(tmp_path: Path):
    folder = tmp_path / "babi" / "tasks" / "en"
    folder.mkdir(parents=True)
    (folder / "qa1_single_test.txt").write_text(FILE)
    assert len(items("tasks=[qa1]", "lengths=[0]", data=tmp_path)) == 3


def test_missing_files_are_said_with_the_way_out(no_data, babi: Path):
    for options in (["source=babi"], ["tasks=[qa7]"]):
        with pytest.raises(UsageError, match="bAbI files are missing") as error:
            items(*options)
        assert "--data" in str(error.value.hint)
    with pytest.raises(UsageError, match="no English test file of qa2"):
        items("tasks=[qa2]", data=babi)
    (babi / "babi" / "babi_tasks.tar.xz").write_bytes(b"not an archive")
    with pytest.raises(UsageError, match="cannot be read"):
        items("tasks=[qa1]", data=babi)


def test_the_published_hundred():
    archives = sorted((data_folder() / "babi").glob("*.tar*"))
    if not archives:
        pytest.skip(f"no bAbI files in {data_folder()}: set {VARIABLE} to the folder of shared test data")
    made = items("lengths=[0]", limit=10_000)
    assert len(made) == 500 and made[0].id == "qa1-0-1"
    for task in ("qa1", "qa2", "qa3", "qa4", "qa5"):
        stories = published_stories(archives[0], task)
        assert len(stories) == 1_000 and {story.answer for story in stories} <= set(LABELS[task])
    for task in ("qa6", "qa7", "qa8", "qa9", "qa10"):
        stories = published_stories(archives[0], task)
        assert {part for story in stories for part in story.answer.split(",")} <= set(LABELS[task])


# -- prompts and scores --


def test_instructions_come_first_and_the_question_last(no_data):
    (item,) = items("tasks=[qa1]", "lengths=[0]", limit=1)
    (question,) = item.questions
    asked = f"Question: {question.metadata['question']} Answer:"
    assert question.prompt == INSTRUCTIONS["qa1"] + asked
    read = TASK.context_prompt("THE TEXT", question)
    assert read == f"{INSTRUCTIONS['qa1']}<context>\nTHE TEXT\n</context>\n{asked}"
    assert TASK.context_prompt("", question) == question.prompt
    (plain,) = items("tasks=[qa1]", "lengths=[0]", "instructions=false", limit=1)
    assert plain.questions[0].prompt == asked
    assert TASK.context_prompt("X", plain.questions[0]) == f"<context>\nX\n</context>\n{asked}"


@pytest.mark.parametrize("task", sorted(LABELS))
def test_examples_name_no_answer_of_the_task_but_yes_and_numbers(task):
    labels = set(LABELS[task]) - {"yes", "no", "maybe", "none", "one", "two", "three", "nothing"}
    words = set(INSTRUCTIONS[task].replace(",", " ").replace(".", " ").split())
    assert not labels & words and INSTRUCTIONS[task].count("<example>") == 2


@pytest.mark.parametrize(
    ("task", "question", "text", "reference", "right"),
    [  # after BABILong's compare_answers
        ("qa1", "Where is John?", "kitchen", "kitchen", 1.0),
        ("qa1", "Where is John?", "The most recent location of John is Kitchen. He was in the garden.", "kitchen", 1.0),
        ("qa1", "Where is John?", "kitchen or garden", "kitchen", 0.0),
        ("qa1", "Where is John?", "garden", "kitchen", 0.0),
        ("qa1", "Where is John?", "", "kitchen", 0.0),
        ("qa1", "Where is John?", "kitchen <example> garden", "kitchen", 1.0),
        ("qa1", "Where is John?", "kitchen Question: is he in the garden", "kitchen", 1.0),
        ("qa3", "Where was the milk before the garden?", "Before the garden it was in the office", "office", 1.0),
        ("qa4", "What is north of the garden?", "The office is north of the garden", "office", 1.0),
        ("qa5", "What did Fred give to Jeff?", "Fred gave the milk to Jeff", "milk", 1.0),
        ("qa5", "Who gave the milk to Jeff?", "Fred", "Fred", 1.0),
        ("qa6", "Is John in the garden?", "No, he is not there", "no", 1.0),
        ("qa6", "Is John in the garden?", "It is not known", "no", 0.0),
        ("qa8", "What is John carrying?", "milk and apple", "apple,milk", 1.0),
        ("qa8", "What is John carrying?", "milk", "apple,milk", 0.0),
    ],
)
def test_labels(task, question, text, reference, right):
    sample = {"text": text, "metadata": {"task": task, "question": question}}
    assert label_accuracy(sample, [reference]) == right


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_answer_gets_a_score(text):
    assert label_accuracy({"text": text, "metadata": {"task": "qa2", "question": "Where is the milk?"}}, ["x"]) == 0.0


def test_the_map_is_drawn(no_data, tmp_path: Path):
    pytest.importorskip("matplotlib")
    made = items("lengths=[0,1024]", limit=10)
    answers = {item.sample_id(item.questions[0]): item.questions[0].references[0] for item in made}
    results = [results_of(TASK, made, answers, name, tiny_model().config) for name in ("mplus", "bm25")]
    assert results[0].results["scores"]["accuracy"]["mean"] == 1.0
    (path,) = TASK.plot(results, tmp_path)
    assert path.name == "babilong.png" and is_png(path)


def test_it_runs(no_data, model_folder: Path, tmp_path: Path):
    pairs = evaluate(tmp_path / "out", model_folder, "babilong", limit=4, length=300, systems=("mplus", "closed-book"))
    for pair in pairs:
        assert len((pair.path / "predictions.jsonl").read_text().splitlines()) == 4
