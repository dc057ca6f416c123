"""`mplus build-data retention`: the published formats, answer lengths, distractors that tell nothing, filters."""

from __future__ import annotations

import gzip
import json
import os
from functools import partial
from pathlib import Path

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.data.building import iter_rows, read_manifest
from mplus_cli.data.building.rows import BadRows
from mplus_cli.data.chat import AnswerCache, ChatSettings
from mplus_cli.data.retention import LocalAnswerer, RetentionOptions, open_examples
from mplus_cli.data.retention.distractors import make_distractors
from mplus_cli.data.retention.examples import Example, read_row
from mplus_cli.data.retention.filters import is_right
from mplus_cli.errors import UsageError
from tests.commands.helpers import CommandLine
from tests.data.building.conftest import same_build
from tests.data.chat_server import ChatServer
from tests.fixtures import byte_tokenizer

pytest.importorskip("openai", reason="openai is not installed: pip install 'mplus[data]'")
SHARED = Path(os.environ.get("MPLUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
TOWNS = ["Oslo", "Rome", "Lima", "Bonn", "Cork", "Bath"]


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is missing: set MPLUS_SHARED_DATA to the folder of shared test data")
    return path


def squad(paragraphs: list[tuple[str, list[tuple[str, str | None]]]]) -> dict:
    """SQuAD's json of (context, [(question, answer)])."""
    made = [
        {"context": context, "qas": [{"id": "1", "question": q, "answers": [{"text": a}] if a else []} for q, a in qas]}
        for context, qas in paragraphs
    ]
    return {"version": "1.1", "data": [{"title": "Towns", "paragraphs": made}]}


def town(name: str) -> tuple[str, list[tuple[str, str | None]]]:
    return (f"The fair was held in {name} that year.", [(f"Where was fair {name[:2]} held?", name)])


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(squad([town(name) for name in TOWNS])))
    return path


@pytest.fixture
def build(monkeypatch, capsys, tokenizer_folder, tmp_path):
    for variable in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    mplus = CommandLine(capsys)

    def run(source: Path, out: str, *arguments: object) -> tuple[int, str, str]:
        places = ["--source", source, "--out", tmp_path / out, "--cache", tmp_path / "answers"]
        numbers = ["--max-answer-tokens", 4, "--distractor-tokens", 0]
        if "--distractors" not in arguments:
            arguments = ("--distractors", source, *arguments)
        return mplus("build-data", "retention", *places, "--tokenizer", tokenizer_folder, *numbers, *arguments)

    return run


def examples(folder: Path) -> list[dict]:
    return list(iter_rows(folder / "examples.jsonl.gz"))


# --- reading ---


def test_the_shared_squad_and_nq_files():
    squad_source = open_examples(str(shared("squad/squad_v1.1_dev_from_explorer.json.gz")))
    nq_source = open_examples(str(shared("nq/nq-open-oracle.jsonl.gz")))
    from_squad, from_nq = (list(source.rows(BadRows(0))) for source in (squad_source, nq_source))
    assert (len(from_squad), len(from_nq)) == (10570, 2655)
    assert from_nq[0].kind == "nq" and from_nq[0].answer == "Wilhelm Conrad Röntgen"
    assert from_nq[0].context.endswith("(1916, 1931, 1934, 1940–1942).")
    assert all(example.answer in example.context for example in from_squad)
    assert squad_source.source.revision.startswith("sha256:d6d11a51a5be09bb")


def test_rows_of_the_hub_as_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'mplus[data]'")
    from pyarrow import parquet

    row = {
        "id": "1", "title": "T", "context": "It was in Oslo.", "question": "Where?",
        "answers": {"text": ["Oslo", "in Oslo"], "answer_start": [10, 7]},
    }  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "validation-00000.parquet")
    (example,) = open_examples(str(tmp_path)).rows(BadRows(0))
    assert example == Example("squad", "It was in Oslo.", "Where?", "Oslo", "T")


def test_natural_questions_take_the_first_annotation_with_a_short_answer_and_no_markup():
    words = ["<P>", "It", "was", "in", "Oslo", ".", "</P>", "Rome"]
    row = {
        "document": {"title": "T", "tokens": {"token": words, "is_html": [w.startswith("<") for w in words]}},
        "question": {"text": "where"},
        "annotations": {
            "long_answer": [{"start_token": -1, "end_token": -1}] + [{"start_token": 0, "end_token": 7}] * 2,
            "short_answers": [{"text": []}, {"text": []}, {"text": ["Oslo"]}],
        },
    }
    assert read_row(row).example == Example("nq", "It was in Oslo .", "where", "Oslo", "T")
    row["annotations"]["short_answers"][2]["text"] = []
    assert read_row(row).example is None


def test_rows_of_your_own_and_unknown_ones(tmp_path):
    path = tmp_path / "own.jsonl.gz"
    rows = [
        {"context": "In Oslo.", "question": "Where?", "answer": "Oslo"},
        {"context": "x", "question": "?", "answer": []},
    ]
    path.write_bytes(gzip.compress(("\n".join(map(json.dumps, rows)) + "\n{broken\n").encode()))
    bad = BadRows(1)
    assert list(open_examples(str(path)).rows(bad)) == [Example("own", "In Oslo.", "Where?", "Oslo"), None]
    assert bad.count == 1 and "own.jsonl.gz:3" in bad.named[0]
    with pytest.raises(UsageError, match="more than 0 rows"):
        list(open_examples(str(path)).rows(BadRows(0)))
    path.write_bytes(gzip.compress(b'{"prompt": "x", "label": 1}\n'))
    with pytest.raises(UsageError, match="fields prompt, label are in no known format"):
        list(open_examples(str(path)).rows(BadRows(0)))


# --- the set ---


def test_only_short_answers_that_are_in_the_context_once(build, tmp_path):
    path = tmp_path / "dev.json"
    odd = [
        ("It was in Oslo.", [("Where?", "Oslo"), ("Where?", "Oslo"), ("When?", "in the year 1900"), ("Who?", "Rome")]),
        ("It was in Lima.", [("Where?", None)]),
    ]
    path.write_text(json.dumps(squad(odd)))
    code, out, err = build(path, "set", "--json")
    assert code == 0, err
    counts = json.loads(out)["counts"]
    assert [row["answer"] for row in examples(tmp_path / "set")] == ["Oslo"]
    assert {key: counts[key] for key in ("read", "without an answer", "answer too long", "double")} == {
        "read": 5, "without an answer": 1, "answer too long": 1, "double": 1,
    }  # fmt: skip
    assert counts["answer not in the context"] == 1


def test_the_papers_limits_differ_between_squad_and_natural_questions(tmp_path, tokenizer_folder, capsys):
    rows = [
        {"context": "In Oslo it was.", "question": "Where?", "answers": {"text": ["Oslo"]}},
        {"context": "In Rio it was.", "question": "Where?", "answers": {"text": ["Rio"]}},
        {
            "question": "who",
            "nq_annotated_gold": {"title": "", "long_answer": "It was Anna.", "short_answers": ["Anna"]},
        },
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    places = ["--source", tmp_path / "rows.jsonl", "--distractors", tmp_path / "rows.jsonl", "--out", tmp_path / "set"]
    assert CommandLine(capsys)("build-data", "retention", *places, "--tokenizer", tokenizer_folder)[0] == 0
    assert [row["answer"] for row in examples(tmp_path / "set")] == ["Rio", "Anna"]


def test_distractors_that_tell_are_named(build, tmp_path):
    path, others = tmp_path / "dev.json", tmp_path / "others.json"
    path.write_text(json.dumps(squad([town("Oslo"), town("Rome")])))
    others.write_text(
        json.dumps(squad([town("Oslo"), town("Lima"), ("A romer is a glass in OSLO, not Rom.", [("?", "Rom")])]))
    )
    assert build(path, "set", "--distractors", others)[0] == 0
    texts = [row["text"] for row in iter_rows(tmp_path / "set" / "distractors.jsonl.gz")]
    oslo, rome = examples(tmp_path / "set")
    assert {texts[n] for n in oslo["leaky_distractors"]} == {town("Oslo")[0], "A romer is a glass in OSLO, not Rom."}
    assert rome["leaky_distractors"] == []
    assert read_manifest(tmp_path / "set").counts["fewest_distractors_of_an_example"] == 1


def test_distractors_have_their_length_and_an_order_by_seed(tmp_path):
    source = tmp_path / "dev.json"
    source.write_text(json.dumps(squad([(f"Paragraph {n} says nothing at all.", [("?", "says")]) for n in range(60)])))
    opened, tokenizer = open_examples(str(source)), byte_tokenizer()
    made = make_distractors(opened, tokenizer, RetentionOptions(distractors=12, distractor_tokens=100))
    assert len(made) == 12 and all(len(encode(tokenizer, d.text)) == d.tokens <= 100 for d in made)
    assert all(d.tokens >= 97 and len(d.contexts) in (3, 4) for d in made)
    other = make_distractors(opened, tokenizer, RetentionOptions(distractors=12, distractor_tokens=100, seed=1))
    assert [d.text for d in other] != [d.text for d in made]


# --- filters ---


def knows(body: dict) -> str:
    """Knows Oslo by heart, and reads everything but Bonn."""
    text = body["messages"][-1]["content"]
    if "Context:" not in text:
        return "It was in oslo!" if "fair Os" in text else "No idea."
    return "Somewhere." if "Bonn" in text else next(name for name in TOWNS if name in text)


def test_filters_through_a_server(build, source, tmp_path):
    with ChatServer(say=knows) as server:
        options = ["--base-url", server.url, "--drop-known-to", "small", "--keep-answered-by", "small"]
        code, out, err = build(source, "set", *options, "--json")
        assert code == 0, err
        assert [row["answer"] for row in examples(tmp_path / "set")] == ["Rome", "Lima", "Cork", "Bath"]
        counts = json.loads(out)["counts"]
        assert (counts["answered closed-book"], counts["not answered with the context"]) == (1, 1)
        assert len(server.bodies) == 6 + 5
        assert build(source, "again", *options, "--limit", 2)[0] == 0
        assert len(server.bodies) == 11
        assert [row["answer"] for row in examples(tmp_path / "again")] == ["Rome", "Lima"]


FILTERED = ["--drop-known-to", "gpt-4o-mini", "--keep-answered-by", "gpt-4o"]


def test_a_dry_run_asks_nothing_and_becomes_exact(build, source, tmp_path):
    with ChatServer(say=knows) as server:
        options = ["--base-url", server.url, *FILTERED]
        code, out, err = build(source, "set", *options, "--dry-run", "--json")
        assert code == 0 and not server.bodies and not (tmp_path / "set").exists(), err
        closed, context = json.loads(out)["asking"]
        assert [(plan["requests"], plan["cached"], plan["estimated"]) for plan in (closed, context)] == [
            (6, 0, False), (6, 0, True),  # how many are left for the second model is not known yet
        ]  # fmt: skip
        used = closed["usage"]
        assert closed["cost"] == pytest.approx((used["input_tokens"] * 0.15 + used["output_tokens"] * 0.6) / 1e6)
        assert 0 < closed["cost"] < context["cost"]
        batch = json.loads(build(source, "set", *options, "--dry-run", "--json", "--batch")[1])["asking"][0]
        assert batch["cost"] == pytest.approx(closed["cost"] / 2)
        assert build(source, "set", *options)[0] == 0
        code, out, _ = build(source, "other", *options, "--dry-run")
        assert code == 0 and len(server.bodies) == 6 + 5
        assert "requests to gpt-4o-mini: 6, of which 6 are" in out and "requests to gpt-4o: 5, of which 5 are" in out
        assert out.count("price: $0.00") == 2 and "examples: at most 4" in out


def test_a_dry_run_needs_neither_key_nor_model(build, source, tmp_path):
    (tmp_path / "model").mkdir()
    options = ["--drop-known-to", tmp_path / "model", "--keep-answered-by", "gpt-4o"]
    code, out, _ = build(source, "set", *options, "--dry-run", "--json")
    local, remote = json.loads(out)["asking"]
    assert code == 0 and local["cost"] == 0 and local["usage"]["requests"] == 6 and remote["cost"] > 0
    assert "no model is asked" in build(source, "set", "--dry-run")[1]


def test_a_batch_filters_as_live_requests_do(build, source, tmp_path, monkeypatch):
    monkeypatch.setattr("mplus_cli.data.chat.ChatSettings", partial(ChatSettings, batch_poll=0.01))
    with ChatServer(say=knows) as server:
        options = ["--base-url", server.url, *FILTERED]
        assert build(source, "live", *options, "--cache", tmp_path / "live-answers")[0] == 0
        code, out, err = build(source, "batch", *options, "--batch", "--json")
        assert code == 0, err
        assert len(server.batches) == 2  # one for each model
        assert same_build(tmp_path / "live", tmp_path / "batch")
        first, second = json.loads(out)["this_run"]
        assert (first["requests"], second["requests"]) == (6, 5) and first["cost"] > 0
        assert first["cost"] == pytest.approx(6 * (1000 * 0.15 + 100 * 0.6) / 1e6 / 2)  # half the price


def test_both_models_share_one_limit_on_the_cost(build, source, tmp_path):
    with ChatServer(say=knows) as server:
        options = ["--base-url", server.url, *FILTERED, "--concurrency", 1]
        server.usage = (40, 10)
        code, _, err = build(source, "set", *options, "--max-cost", "0.001")
        assert code == 1 and "larger --max-cost" in err
        asked = [body["model"] for body in server.bodies]
        spent = (
            asked.count("gpt-4o-mini") * (40 * 0.15 + 10 * 0.6) + asked.count("gpt-4o") * (40 * 2.5 + 10 * 10)
        ) / 1e6
        assert asked.count("gpt-4o-mini") == 6 and 1 <= asked.count("gpt-4o") < 5 and spent <= 0.001


def test_a_model_that_refuses_is_counted(build, source, tmp_path):
    with ChatServer(["refused", *[""] * 5, "refused", "refused"], say=knows) as server:  # the first, three times
        options = ["--base-url", server.url, "--keep-answered-by", "gpt-4o", "--concurrency", 1]
        code, out, err = build(source, "set", *options)
    assert code == 0, err
    assert "no usable answer: refused" in out and len(examples(tmp_path / "set")) == len(TOWNS) - 2


def test_a_filter_that_leaves_nothing_says_so(build, source):
    with ChatServer(say=lambda body: "no idea") as server:
        code, _, err = build(source, "set", "--base-url", server.url, "--keep-answered-by", "small")
    assert code == 2 and "no example" in err and "6 not answered with the context" in err


def test_a_local_model_answers_a_batch_as_it_answers_one_by_one(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    asked = [Example("own", f"In {name}. " * (n + 1), "Where?", name) for n, name in enumerate(TOWNS[:3])]
    together = LocalAnswerer(str(tmp_path / "model"), AnswerCache(tmp_path / "a")).answers(asked, True)
    alone = LocalAnswerer(str(tmp_path / "model"), AnswerCache(tmp_path / "b"))
    assert together == [alone.answers([example], True)[0] for example in asked]
    assert len(set(together)) > 1
    kept = LocalAnswerer(str(tmp_path / "model"), AnswerCache(tmp_path / "a"))
    kept._generate = None  # everything is in the cache
    assert kept.answers(asked, True) == together


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("It's in New York.", "new  york", True),
        ("In 1973", "3", False),
        ("", "x", False),
        ("The U.S. army", "U.S.", True),
    ],
)
def test_what_counts_as_right(answer, gold, right):
    assert is_right(answer, gold) is right


def test_bad_input(build, source, tmp_path, monkeypatch):
    assert "There is no nowhere here" in build("nowhere", "set")[2]
    (tmp_path / "x.json").write_text("{")
    assert "damaged or no json" in build(tmp_path / "x.json", "a")[2]
    (tmp_path / "x.json").write_text('{"rows": []}')
    assert "not SQuAD's json" in build(tmp_path / "x.json", "b")[2]
    code, _, err = build(source, "c", "--drop-known-to", "gpt-4o-mini")
    assert code == 2 and "no API key" in err
    code, _, err = build(source, "d", "--drop-known-to", f"hf:{tmp_path}")
    assert code == 2 and "no causal language model" in err
    (tmp_path / "empty.json").write_text(json.dumps(squad([])))
    code, _, err = build(tmp_path / "empty.json", "e")
    assert code == 2 and "no example" in err and "0 read" in err


def test_the_unreachable_hub_says_how_to_use_local_files(build, monkeypatch):
    code, _, err = build("squad", "set")
    assert code == 2 and "hub cannot be reached" in err and "folder" in err
