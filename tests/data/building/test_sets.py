"""`mplus build-data fineweb`, `mix`, `chronicle`, `list` and `show`."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from mplus_cli.data.building import iter_rows, read_manifest
from mplus_cli.data.building.documents import Running, Selection, build_documents
from mplus_cli.data.building.parts import split_documents
from mplus_cli.errors import UsageError
from tests.data.building.conftest import build_rows


def fineweb(out, corpus, held_out=40, documents=150, processes=1):
    wanted = Selection("fineweb", str(corpus), held_out=held_out, quota=documents, rows_per_shard=50)
    return build_documents(out, wanted, Running(processes=processes))


@pytest.fixture(scope="module")
def web(tmp_path_factory, corpus):
    out = tmp_path_factory.mktemp("web") / "web"
    fineweb(out, corpus)
    return out


def corpus_order(corpus):
    """Texts in the order of the files' names."""
    from mplus_cli.data.building.corpus import open_corpus
    from mplus_cli.data.building.rows import BadRows, Fields, read_rows

    return [row.text for file in open_corpus(str(corpus)).files for row in read_rows(file.path, Fields(), BadRows(0))]


def test_the_first_documents_are_held_out_with_all_their_copies(web, corpus):
    texts = corpus_order(corpus)
    held_out, train = (
        [row["text"] for row in build_rows(web) if row["bucket"] == name] for name in ("held-out", "train")
    )
    assert Counter(held_out) == Counter(set(texts[:40]))
    assert Counter(train) == Counter(set(texts[40:190]) - set(texts[:40]))
    assert train != [text for text in texts[40:190] if text in set(train)], "training documents are shuffled"
    assert [shard.rows for shard in read_manifest(web).buckets()["train"]][:2] == [50, 50]


def test_a_mix_has_its_proportions_and_repeats_nothing(tmp_path, web, mplus):
    code, out, err = mplus(
        "build-data", "mix", "--out", tmp_path / "m", "--part", f"{web}:train=3", "--part", f"{web}:held-out=1",
        "--rows-per-shard", 16, "-p", 1, "--quiet",
    )  # fmt: skip
    assert code == 0, err
    rows = build_rows(tmp_path / "m")
    counts = read_manifest(tmp_path / "m").counts
    assert counts["documents"] == {f"{web.name}:train": len(rows) * 3 // 4, f"{web.name}:held-out": len(rows) // 4}
    by_source = Counter(row["source"] for row in rows if row["bucket"] == "train")
    assert counts["kept"][f"{web.name}:train"] == by_source and all(
        source.removeprefix("RedPajama") in out for source in by_source
    )
    assert (tmp_path / "m" / "histogram.png").read_bytes().startswith(b"\x89PNG")
    held_out = read_manifest(web).counts["documents"]["held-out"]
    assert Counter(row["bucket"] for row in rows) == {"train": 3 * held_out, "held-out": held_out}
    assert len({row["id"] for row in rows}) == len(rows)
    first = Counter(row["bucket"] for row in rows[: len(rows) // 2])
    assert first["held-out"] > held_out // 5, "the parts are mixed, not one after the other"


def test_a_mix_without_buckets_leaves_out_what_is_held_out(tmp_path, web, mplus):
    assert mplus("build-data", "mix", "-o", tmp_path / "m", "--part", f"{web}=1", "-p", 1, "-q")[0] == 0
    assert {row["bucket"] for row in build_rows(tmp_path / "m")} == {"train"}


@pytest.mark.parametrize(
    ("shares", "available", "documents", "counts"),
    [
        ([0.2] * 5, [100, 20, 30, 40, 50], None, [20] * 5),
        ([0.9, 0.025, 0.075], [1000, 1000, 1000], 40, [36, 1, 3]),
        ([1, 1, 1], [10, 10, 10], 11, [4, 4, 3]),
        ([2, 1], [7, 100], None, [7, 3]),
    ],
)
def test_shares(shares, available, documents, counts):
    assert split_documents(shares, available, documents) == counts


def test_a_mix_that_is_not_possible_says_how_much_is(tmp_path, web, mplus):
    base = ["build-data", "mix", "-o", tmp_path / "m"]
    for parts, says in (
        (["--part", f"{web}:train=1", "--documents", "999"], "At most 149"),
        (["--part", f"{web}:nope=1"], "It has 'held-out', 'train'"),
        (["--part", f"{web}"], "no share"),
        (["--part", f"{web}=-1"], "no share"),
        (["--part", f"{tmp_path}=1"], "not a build"),
        (["--part", f"{web}=1", "--part", f"{web}=2"], "given twice"),
    ):
        code, _, err = mplus(*base, *parts)
        assert code == 2 and (says in err or "At most" in says and "At most" in err), err


def test_chronicles(tmp_path, mplus, tokenizer_file):
    code, out, err = mplus(
        "build-data", "chronicle", "--out", tmp_path / "one", "--train", 3, "--test", 2, "--characters", 4_000,
        "--tokenizer", tokenizer_file, "-p", 1, "--json",
    )  # fmt: skip
    assert code == 0, err
    counts = json.loads(out)["counts"]
    assert counts["train"]["chronicles"] == 3 and counts["test"]["chronicles"] == 2
    for split in ("train", "test"):
        texts = {row["name"]: row for row in iter_rows(tmp_path / "one" / split / "text-00000.jsonl.gz")}
        questions = list(iter_rows(tmp_path / "one" / split / "questions-00000.jsonl.gz"))
        assert len(questions) == counts[split]["questions"] > 50
        for question in questions:
            start, end = question["passages"][-1]
            assert texts[question["document"]]["text"][start:end] == question["answer"]
        assert any(len(question["passages"]) == 2 for question in questions)
        for row in texts.values():
            assert len(row["text"]) >= 4000 and row["tokens"] == len(row["text"].encode())
        assert (tmp_path / "one" / split / "sample.txt").read_text() == texts[f"{split}-000000"]["text"]


def test_plain_chronicles_tell_bare_facts_about_people_with_one_name(tmp_path, mplus):
    command = ["build-data", "chronicle", "--train", 1, "--test", 0, "--characters", 6_000, "-p", 1]
    rows = {}
    for name, more in (("plain", ["--plain"]), ("full", [])):
        assert mplus(*command, "-o", tmp_path / name, *more)[0] == 0
        rows[name] = list(iter_rows(tmp_path / name / "train" / "questions-00000.jsonl.gz"))
    forms = {name: Counter(str(row["passages"]) for row in found) for name, found in rows.items()}
    assert set(forms["plain"].values()) == {1} and max(forms["full"].values()) > 1
    people = [re.search(r"Where does (.+) live", row["question"]) for row in rows["plain"]]
    names = [found.group(1) for found in people if found]
    assert names and all(" " not in name for name in names)


def test_chronicles_that_make_no_sense(tmp_path, mplus):
    assert mplus("build-data", "chronicle", "-o", tmp_path / "b", "--train", 0, "--test", 0)[0] == 2
    code, _, err = mplus("build-data", "chronicle", "-o", tmp_path / "b", "--facts", 99)
    assert code == 2 and "kinds of facts" in err


def test_list_and_show(tmp_path, web, mplus):
    (tmp_path / "half" / ".work").mkdir(parents=True)
    (tmp_path / "half" / ".work" / "build.json").write_text("{}")
    (tmp_path / "web").symlink_to(web)
    code, out, _ = mplus("build-data", "list", tmp_path)
    assert code == 0 and "fineweb" in out and "incomplete" in out
    listed = json.loads(mplus("build-data", "list", tmp_path, "--json")[1])
    assert [build["complete"] for build in listed] == [False, True]
    code, out, _ = mplus("build-data", "show", web, "--verify")
    assert code == 0 and "histogram.png" in out and "every checksum is right" in out and "held-out" in out
    assert json.loads(mplus("build-data", "show", web, "--json")[1])["builder"] == "fineweb"
    assert mplus("build-data", "show", tmp_path / "half")[0] == 2


def test_selection_refuses_nonsense():
    with pytest.raises(UsageError, match="ascending"):
        Selection("slimpajama", "x", edges=(8, 4))
    with pytest.raises(UsageError, match="at least 1"):
        Selection("slimpajama", "x", edges=(4, 8), quota=0)
    with pytest.raises(UsageError, match="at least 1"):
        Running(processes=0)
