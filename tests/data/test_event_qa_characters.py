"""Characters: names found by a small spaCy pipeline of our own, aliases merged by the stated rule."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from mplus_cli.data.event_qa import load_pipeline, merge_aliases
from mplus_cli.data.event_qa.mentions import Mentions, find_mentions
from mplus_cli.data.event_qa.names import clean_name
from mplus_cli.data.event_qa.quality import Cast
from mplus_cli.errors import MissingExtraError, UsageError

spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install 'mplus[data]'")
SHARED = Path(os.environ.get("MPLUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def people(*names: str):
    """A pipeline that recognizes these names, as an entity ruler."""
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": name} for name in names])
    return pipeline


def merged(**counts: int | tuple[int, int, int]) -> dict[str, set[str]]:
    """Main name -> aliases, for forms given as keywords with `_` for spaces."""
    forms = {
        name.replace("_", " ").replace("Mr ", "Mr. ").replace("Mrs ", "Mrs. "): Mentions(*count)
        if isinstance(count, tuple)
        else Mentions(count)
        for name, count in counts.items()
    }
    return {character.name: set(character.aliases) for character in merge_aliases(forms)}


def test_the_rule_of_the_issue():
    assert merged(Elizabeth=600, Elizabeth_Bennet=10, Miss_Bennet=50) == {
        "Elizabeth Bennet": {"Elizabeth", "Elizabeth Bennet", "Miss Bennet"}
    }


def test_a_family_stays_apart():
    people = merged(
        Elizabeth=600, Elizabeth_Bennet=10, Miss_Elizabeth=12, Jane=(260, 10, 90), Jane_Bennet=3,
        Mr_Bennet=70, Mrs_Bennet=130, Miss_Bennet=50, Bennet=4,
    )  # fmt: skip
    assert people["Elizabeth Bennet"] == {"Elizabeth", "Elizabeth Bennet", "Miss Elizabeth", "Miss Bennet", "Bennet"}
    assert people["Jane Bennet"] == {"Jane", "Jane Bennet"}
    assert people["Mr. Bennet"] == {"Mr. Bennet"} and people["Mrs. Bennet"] == {"Mrs. Bennet"}


def test_pronouns_tell_where_titles_do_not():
    people = merged(Mr_Darcy=270, Darcy=100, Fitzwilliam_Darcy=1, Georgiana_Darcy=2, Georgiana=(20, 2, 12))
    assert people["Fitzwilliam Darcy"] == {"Mr. Darcy", "Darcy", "Fitzwilliam Darcy"}
    assert people["Georgiana Darcy"] == {"Georgiana Darcy", "Georgiana"}


def test_after_a_rank_comes_a_family_name():
    people = merged(Fitzwilliam_Darcy=5, Colonel_Fitzwilliam=40, Fitzwilliam=3)
    assert people == {
        "Colonel Fitzwilliam": {"Colonel Fitzwilliam"},
        "Fitzwilliam Darcy": {"Fitzwilliam Darcy", "Fitzwilliam"},
    }


def test_titles_go_with_given_names_of_nobility():
    people = merged(Lady_Catherine=100, Lady_Catherine_de_Bourgh=8, Miss_de_Bourgh=15)
    assert {"Lady Catherine", "Lady Catherine de Bourgh"} <= people["Lady Catherine"] | people.get("Catherine", set())


def test_a_wife_is_her_family_name_and_a_mother_is_not_her_daughter():
    known = {"Petunia_Dursley": (3, 0, 3), "Petunia": (80, 5, 60), "Vernon_Dursley": (9, 9, 0)}
    assert merged(**known, Mrs_Dursley=20)["Petunia Dursley"] == {"Petunia Dursley", "Petunia", "Mrs. Dursley"}
    assert merged(**known, Mrs_Dursley=20, Marge_Dursley=(9, 0, 9))["Mrs. Dursley"] == {"Mrs. Dursley"}


def test_one_word_names_and_ties():
    assert merged(Alice=300, Mr_Holmes=5, Holmes=50, Sherlock_Holmes=20) == {
        "Alice": {"Alice"},
        "Sherlock Holmes": {"Mr. Holmes", "Holmes", "Sherlock Holmes"},
    }
    assert list(merged(Bo=2, Al=2, Cy=3)) == ["Cy", "Al", "Bo"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Mr Darcy", "Mr. Darcy"),
        ("Elizabeth\n  Bennet's", "Elizabeth Bennet"),
        ("_Jane_", "Jane"),
        ("ELIZABETH", "Elizabeth"),
        ("Lydia’s", "Lydia"),
        ("“Wickham,", "Wickham"),
        ("Mrs.", None),
        ("the king", None),
        ("X", None),
        ("Henry 8", None),
    ],
)
def test_clean_name(text, name):
    assert clean_name(text) == name


def test_mentions_take_titles_in_front_line_breaks_and_following_pronouns():
    text = "Then Mr.\nDarcy bowed and he left. Jane saw that she was alone. Darcy met Jane. She smiled at him.\n" * 2
    found = find_mentions(people("Darcy", "Jane"), text)
    assert {name: (m.count, m.he, m.she) for name, m in found.items()} == {
        "Mr. Darcy": (2, 2, 0),
        "Jane": (4, 0, 4),
        "Darcy": (2, 0, 0),
    }


def test_the_number_of_processes_changes_nothing():
    text = "Jane met Darcy. She laughed.\n" * 1500  # more than two segments
    pipeline = people("Darcy", "Jane")
    assert find_mentions(pipeline, text, processes=2) == find_mentions(pipeline, text, processes=1)
    assert find_mentions(pipeline, text) == {"Jane": Mentions(1500), "Darcy": Mentions(1500, 0, 1500)}


def test_the_cast_is_found_under_any_name_and_the_longest_wins():
    forms = {"Elizabeth Bennet": 9, "Elizabeth": 90, "Bennet": 3, "Mrs. Bennet": 20}
    cast = Cast(merge_aliases({name: Mentions(count) for name, count in forms.items()}))
    assert cast.named("Mrs. Bennet wept.") == ["Mrs. Bennet"]
    assert cast.named("Elizabeth and Mrs. Bennet wept.") == ["Elizabeth Bennet", "Mrs. Bennet"]
    assert cast.named("The elizabethan Bennets wept.") == []


def test_a_pipeline_that_is_not_there_says_how_to_install_it():
    with pytest.raises(MissingExtraError, match="en_core_web_none is not installed") as caught:
        load_pipeline("en_core_web_none")
    assert caught.value.hint == "python -m spacy download en_core_web_none"


def test_a_pipeline_without_persons(tmp_path):
    spacy.blank("en").to_disk(tmp_path)
    with pytest.raises(UsageError, match="recognizes no persons"):
        load_pipeline(str(tmp_path))


def test_a_novel():
    path = SHARED / "books" / "pride_and_prejudice.txt.gz"
    if not path.exists():
        pytest.skip(f"{path} is missing: set MPLUS_SHARED_DATA to the folder of shared test data")
    text = gzip.decompress(path.read_bytes()).decode()[:120_000]
    names = "Elizabeth, Elizabeth Bennet, Jane, Bennet, Darcy, Bingley, Collins, Wickham, Lydia, Charlotte, Lucas"
    characters = merge_aliases(find_mentions(people(*names.split(", ")), text))
    cast = {character.name: character for character in characters}
    assert characters[0].name == "Elizabeth Bennet" and "Miss Elizabeth Bennet" in characters[0].aliases
    assert {"Mr. Bennet", "Mrs. Bennet", "Mr. Darcy", "Mr. Bingley", "Jane"} <= cast.keys()
    assert cast["Mr. Darcy"].aliases.keys() == {"Mr. Darcy", "Darcy"}
