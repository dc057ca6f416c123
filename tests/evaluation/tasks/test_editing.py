"""Model editing: the published forms, ROME's comparisons, the harmonic mean, and edits of a real model."""

from __future__ import annotations

import gzip
import json
import random
from importlib.util import find_spec
from pathlib import Path
from statistics import harmonic_mean

import pytest
import torch

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.bootstrap import harmonic
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.hub_file import HubFile
from mplus_cli.evaluation.prompting import Prompt, generate
from mplus_cli.evaluation.report import finish, tables
from mplus_cli.evaluation.runs import find_pairs
from mplus_cli.evaluation.scoring import score, score_all
from mplus_cli.evaluation.tasks.editing import PARTS, Editing
from mplus_cli.evaluation.tasks.editing_data import HUB, read_edits
from mplus_cli.inference.locate import bundled_model
from tests.evaluation.helpers import answers, evaluate
from tests.evaluation.tasks.helpers import is_png, results_of, task_settings
from tests.fixtures import byte_tokenizer, tiny_model

TASK = Editing()
# The first record of zsre_mend_eval.json, and one in the form of counterfact.json.
ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}
COUNTERFACT = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke the language"],
    "neighborhood_prompts": ["The mother tongue of Roger Caillois is", "Montesquieu, a native"],
    "attribute_prompts": ["The mother tongue of J.R.R. Tolkien is"],
    "generation_prompts": ["Danielle Darrieux lives in"],
}


def items(*options: str, **given):
    return list(TASK.items(task_settings(TASK, *options, **given)))


def shared(name: str) -> Path:
    path = data_folder() / "editing" / name
    if not path.is_file():
        pytest.skip(f"{path} is missing: set MPLUS_SHARED_DATA to the folder of shared test data")
    return path


def write(path: Path, *records) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    text = lines if ".jsonl" in path.name else json.dumps(records[0] if path.name.startswith("lre") else list(records))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def asked(item, probe: str):
    return [question for question in item.questions if question.metadata["probe"] == probe]


# -- the published forms --


@pytest.mark.parametrize("name", ["counterfact.json", "multi_counterfact.json.gz", "some.jsonl", "other.jsonl.gz"])
def test_counterfact_as_its_authors_publish_it(tmp_path, name):
    (item,) = items(data=write(tmp_path / name, COUNTERFACT))
    assert [document.text for document in item.documents] == ["The mother tongue of Danielle Darrieux is English."]
    (efficacy,) = asked(item, "efficacy")
    assert (efficacy.prompt, efficacy.options) == ("The mother tongue of Danielle Darrieux is", (" English", " French"))
    paraphrases, neighbours = asked(item, "generalisation"), asked(item, "specificity")
    assert [one.prompt for one in paraphrases] == COUNTERFACT["paraphrase_prompts"]
    assert {one.options for one in paraphrases} == {(" English", " French")}
    assert [one.prompt for one in neighbours] == COUNTERFACT["neighborhood_prompts"]
    assert {(one.options, one.references) for one in neighbours} == {((" French", " English"), ("French",))}
    assert {question.after for question in item.questions} == {1}
    assert {question.metadata["judged"] for question in item.questions} == {"likelihood"}
    assert item.metadata == {"dataset": "counterfact", "relation": "P103", "source": name}


def test_zsre_as_mend_and_rome_publish_it(tmp_path):
    path = write(tmp_path / "zsre_mend_eval.json", ZSRE)
    (item,) = items("dataset=zsre", data=tmp_path)
    assert item.documents[0].text == f"{ZSRE['src']} Illinois Institute of Technology."
    assert [(one.metadata["probe"], one.prompt, one.options) for one in item.questions] == [
        ("efficacy", ZSRE["src"], (" Illinois Institute of Technology",)),
        ("generalisation", ZSRE["rephrase"], (" Illinois Institute of Technology",)),
        ("specificity", f"{ZSRE['loc']}?", (" Hugo Weaving",)),
    ]
    assert {question.metadata["judged"] for question in item.questions} == {"tokens"}
    (other,) = items("dataset=zsre", "answer=alt", "frame=question", data=path)
    assert other.documents[0].text == f"Question: {ZSRE['src']} Answer: University of Michigan."
    assert other.questions[2].prompt == "Question: who played desmond doss father in hacksaw ridge? Answer:"


def test_neighbours_can_be_fewer_and_a_limit_takes_the_first(tmp_path):
    path = write(tmp_path / "counterfact.json", COUNTERFACT, COUNTERFACT, COUNTERFACT)
    made = items(data=path)
    assert len(made) == 3 and items(data=path, limit=2) == made[:2]
    fewer = items("neighbours=1", data=path)
    assert [len(item.questions) for item in fewer] == [4] * 3 and fewer[0].questions == made[0].questions[:4]


def test_the_hub_file_is_read_in_the_order_of_the_authors(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    assert all(len(file.revision) == 40 and file.file.endswith(".parquet") for file in HUB)
    monkeypatch.setenv("MPLUS_SHARED_DATA", str(tmp_path / "nothing"))
    numbers = {HUB[0].file: (3, 0, 2), HUB[1].file: (4, 1)}

    def fetch(self: HubFile, what: str, hint: str) -> Path:
        rows = []
        for number in numbers[self.file]:
            told = COUNTERFACT["requested_rewrite"] | {"subject": f"case {number}"}
            rows.append(COUNTERFACT | {"case_id": number, "requested_rewrite": told})
        path = tmp_path / Path(self.file).name
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    monkeypatch.setattr(HubFile, "fetch", fetch)
    prompts = [item.questions[0].prompt for item in items(limit=4)]
    assert prompts == [f"The mother tongue of case {number} is" for number in range(4)]


def test_counterfact_of_comp_mech_has_nothing_but_the_prompt():
    made = items(data=shared("counterfact_compmech_gpt2_with_subjects.json.gz"), limit=50)
    assert {len(item.questions) for item in made} == {1} and len(made) == 50
    first = made[0]
    assert first.documents[0].text == "Toyota Camry XV30 is a product of Chrysler."
    assert first.questions[0].options == (" Chrysler", " Toyota")


def test_edits_of_relations_are_made_like_counterfacts():
    path = shared("lre_factual_relations.json.gz")
    relations = json.loads(gzip.decompress(path.read_bytes()))
    edits = list(read_edits("lre", path, "answers", 0))
    assert len(edits) > 5_000 and len({edit.id for edit in edits}) == len(edits)
    assert len({edit.relation for edit in edits[:15]}) == 15  # one of each in turn
    for edit in edits[:300]:
        told = relations[edit.relation]
        known = {(one["subject"].strip(), one["object"].strip()) for one in told["samples"]}
        assert edit.new != edit.old and edit.new in {answer for _, answer in known}
        subject = next(one for one, answer in known if edit.prompt == _filled(told["prompt_templates"][0], one))
        assert (subject, edit.old) in known
        assert edit.paraphrases and edit.prompt not in edit.paraphrases
        assert 1 <= len(edit.neighbours) <= 10
        for prompt, answer in edit.neighbours:
            assert answer == edit.old and prompt != edit.prompt
            assert any(prompt == _filled(told["prompt_templates"][0], one) and a == answer for one, a in known)
    assert list(read_edits("lre", path, "answers", 0)) == edits
    assert list(read_edits("lre", path, "answers", 1)) != edits


def _filled(template: str, subject: str) -> str:
    return template.strip().replace("{}", subject)


@pytest.mark.parametrize(
    ("dataset", "name", "content", "message"),
    [
        ("counterfact", "counterfact.json", "[]", "has no records"),
        ("counterfact", "counterfact.json", '{"a": 1}', "record 1: not a record of counterfact .*it has a"),
        ("counterfact", "counterfact.json", "[3]", "not a record of counterfact .*it has int"),
        ("counterfact", "counterfact.json", json.dumps([ZSRE]), "no 'requested_rewrite'"),
        ("counterfact", "counterfact.json", "{", "is not JSON"),
        ("counterfact", "counterfact.json.gz", "{}", "is damaged"),
        ("counterfact", "counterfact.txt", "x", "of an unknown kind"),
        ("counterfact", "c.json", json.dumps([COUNTERFACT, COUNTERFACT | {"paraphrase_prompts": [""]}]), "record 2"),
        ("zsre", "zsre.json", json.dumps([COUNTERFACT]), "not a record of zsre"),
        ("zsre", "zsre.jsonl", json.dumps(ZSRE | {"answers": []}), "record 1: not a record of zsre"),
        ("lre", "lre.json", '{"capital": {"samples": [{"subject": "x"}]}}', "not factual relations"),
        ("lre", "lre.json", "[[3]]", "not factual relations"),
        ("lre", "lre.json", "{}", "has no relation with several templates"),
    ],
)
def test_other_files_are_refused(tmp_path, dataset, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        items(f"dataset={dataset}", data=tmp_path / name)


def test_missing_data_and_settings_that_do_not_fit_are_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLUS_SHARED_DATA", str(tmp_path))
    with pytest.raises(UsageError, match="counterfact is missing.*the hub gave no azhx/counterfact") as given:
        items()
    assert "curl -LO https://rome.baulab.info/data/dsets/counterfact.json" in given.value.hint
    with pytest.raises(UsageError, match=r"zsre is missing: no zsre_mend_eval\.json\* in") as given:
        items("dataset=zsre")
    assert "mplus eval editing:dataset=zsre --data zsre_mend_eval.json" in given.value.hint
    with pytest.raises(UsageError, match="frame=question is for questions"):
        items("frame=question", data=write(tmp_path / "counterfact.json", COUNTERFACT))


# -- judging --


def sample(probe: str, judged: str, logprobs, tokens, likeliest):
    extra = {"option_logprobs": logprobs, "option_tokens": tokens, "option_likeliest": likeliest}
    return {"metadata": {"probe": probe, "judged": judged}, "extra": extra}


def scored(one):
    return {name: metric(one, ()) for name, metric in TASK.metrics.items()}


def test_likelihoods_are_compared_per_token():
    # -3 over 3 tokens is likelier per token than -2.5 over 1, though less likely as a whole
    assert scored(sample("efficacy", "likelihood", [-3.0, -2.5], [3, 1], [3, 0])) == {
        "efficacy": 1.0, "generalisation": None, "specificity": None, "exact": 1.0,
    }  # fmt: skip
    assert scored(sample("generalisation", "likelihood", [-2.5, -3.0], [1, 3], [0, 3])) == {
        "efficacy": None, "generalisation": 0.0, "specificity": None, "exact": 0.0,
    }  # fmt: skip
    assert scored(sample("specificity", "likelihood", [-1.0, -4.0], [1, 2], [1, 0])) == {
        "efficacy": None, "generalisation": None, "specificity": 1.0, "exact": None,
    }  # fmt: skip
    tie = sample("specificity", "likelihood", [-2.0, -4.0], [1, 2], [1, 0])
    assert scored(tie)["specificity"] == 0.0  # equal is neither kept nor changed


def test_zsre_counts_tokens():
    assert scored(sample("efficacy", "tokens", [-3.0], [4], [3])) == {
        "efficacy": 0.75, "generalisation": None, "specificity": None, "exact": 0.0,
    }  # fmt: skip
    assert scored(sample("specificity", "tokens", [-3.0], [4], [1]))["specificity"] == 0.25


def test_the_likeliest_tokens_are_those_of_one_pass_after_another():
    """Against the slow way: every token of every option predicted by a pass of its own, as ROME does."""
    model, tokenizer = tiny_model(), byte_tokenizer()
    prompts, options = ["What did the miller sell?", "Who is it?"], [[" flour", " a"], [" the abbot of Vorn"]]
    given = [
        Prompt(encode(tokenizer, text), 1, [encode(tokenizer, one) for one in own])
        for text, own in zip(prompts, options, strict=True)
    ]
    # the greedy answer as an option too: of it, every token must count
    greedy = generate(model, tokenizer, [Prompt(one.ids, 6) for one in given], [], "none")
    given = [Prompt(p.ids, 1, [*p.options, encode(tokenizer, g.raw)]) for p, g in zip(given, greedy, strict=True)]
    for prompt, made in zip(given, generate(model, tokenizer, given, [], "none"), strict=True):
        for ids, weighed in zip(prompt.options, made.options, strict=True):
            hits = 0
            for place, token in enumerate(ids):
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt.ids, *ids[:place]]])).logits[0, -1]
                hits += int(logits.argmax()) == token
            assert (weighed.tokens, weighed.likeliest) == (len(ids), hits)


# -- the harmonic mean --


def test_the_harmonic_mean_is_that_of_the_means():
    parts = [{"a": [1.0], "b": [0.0]}, {"a": [1.0, 0.5], "b": [1.0, 0.5]}, {"a": [0.25] * 4, "b": [0.25] * 4}]
    found = harmonic(parts)
    assert found.mean == pytest.approx(harmonic_mean([0.5, 0.75, 0.25])) and (found.n, found.items) == (14, 2)
    assert harmonic([]).plain() == {"mean": None, "low": None, "high": None, "n": 0, "items": 0}
    assert harmonic([{"a": [0.5]}]).low is None  # one item tells nothing of the spread
    assert harmonic([{"a": [0.0], "b": [0.0]}, {"a": [1.0], "b": [1.0]}]).mean == 0.0


def test_its_interval_holds_it_and_claims_no_certainty():
    draw = random.Random(4)
    for _ in range(25):
        shares = [draw.random() for _ in range(3)]
        parts = [{str(n): [float(draw.random() < share)] * 2 for n in range(30)} for share in shares]
        means = [sum(map(sum, part.values())) / 60 for part in parts]
        found = harmonic(parts)
        assert min(means) - 1e-12 <= found.mean <= sum(means) / 3 + 1e-12
        assert 0 <= found.low <= found.mean + 1e-12 and found.mean - 1e-12 <= found.high <= 1
        again = harmonic(parts[::-1])
        assert (found.mean, found.low, found.high) == pytest.approx((again.mean, again.low, again.high))
    every = harmonic([{str(n): [1.0] for n in range(20)}] * 3)
    assert every.mean == every.high == 1.0 and every.low == pytest.approx(0.025**0.05)
    none = harmonic([{str(n): [0.0] for n in range(20)}, {str(n): [1.0] for n in range(20)}])
    assert none.mean == none.low == 0.0 and none.high > 0.2


def test_results_say_what_the_data_lack(tmp_path):
    whole = items(data=write(tmp_path / "counterfact.json", COUNTERFACT, COUNTERFACT))
    bare = [{"base_prompt": f"{n} is a", "target_new": " b", "target_true": " c"} for n in range(2)]
    short = items(data=write(tmp_path / "bare.json", *bare))
    worked = {"option_logprobs": [-1.0, -2.0], "option_tokens": [1, 1], "option_likeliest": [1, 0]}
    for made, parts in ((whole, list(PARTS)), (short, ["efficacy"])):
        given = {item.sample_id(question): worked for item in made for question in item.questions}
        one = results_of(TASK, made, given, "mplus", tiny_model().config)
        assert one.results["scores"]["score"]["of"] == parts and one.results["scores"]["score"]["mean"] == 1.0
        if find_spec("matplotlib"):
            assert is_png(TASK.plot([one], tmp_path / "plots")[0])


# -- edits of real models --


def test_edits_of_the_bundled_model_end_to_end(tmp_path):
    if bundled_model() is None:
        pytest.skip("this checkout has no bundled model")
    data = shared("counterfact_compmech_gpt2_with_subjects.json.gz")
    given = {"limit": 40, "data": data, "systems": ("mplus", "closed-book"), "batch": 16}
    evaluate(tmp_path / "out", Path("default"), "editing", **given)
    ((task, results),), drawn, report = finish(tmp_path / "out", lambda line: None)
    after, before = (one.results["scores"] for one in results)
    assert after["efficacy"]["n"] == before["efficacy"]["n"] == 40
    assert after["efficacy"]["mean"] > before["efficacy"]["mean"]  # the line before the edit
    assert after["specificity"]["mean"] is None and after["score"]["of"] == ["efficacy"]
    assert after["score"]["mean"] == pytest.approx(after["efficacy"]["mean"])
    (table,) = tables(task, results)
    assert table.headers[1:6] == ["efficacy", "generalisation", "specificity", "exact", "score"]
    assert table.rows[0][2] == table.rows[0][3] == "-" and table.rows[0][5].endswith("(of efficacy)")
    said = report.read_text()
    assert "- score: harmonic mean of the means of efficacy.\n" in said
    assert "- Not in this data, so not measured: generalisation, specificity.\n" in said
    pytest.importorskip("matplotlib")
    assert [path.name for path in drawn] == ["editing.png"]


def test_relations_end_to_end_whatever_the_batch(model_folder: Path, tmp_path: Path):
    given = {"limit": 6, "data": shared("lre_factual_relations.json.gz"), "systems": ("mplus", "full")}
    name = "editing:dataset=lre,neighbours=2"
    pairs = evaluate(tmp_path / "out", model_folder, name, **given)
    for pair in pairs:
        found = answers(pair)
        assert {one["metadata"]["probe"] for one in found.values()} == set(PARTS)
        scores = score(pair)[1].results["scores"]
        assert scores["score"]["of"] == list(PARTS)
        means = [scores[part]["mean"] for part in PARTS]
        assert min(means) <= scores["score"]["mean"] <= max(means)
    alone = evaluate(tmp_path / "alone", model_folder, name, **(given | {"batch": 1}))
    for one, other in zip(pairs, alone, strict=True):
        for id, sample in answers(one).items():
            again = answers(other)[id]
            assert sample["extra"].pop("option_logprobs") == pytest.approx(
                again["extra"].pop("option_logprobs"), abs=1e-3
            )
            assert sample == again


def test_zsre_end_to_end_with_systems_that_read_text(model_folder: Path, tmp_path: Path):
    data = write(tmp_path / "zsre_mend_eval.jsonl", ZSRE, ZSRE | {"rephrase": "Where did Watts Humphrey study?"})
    systems = ("memoryllm", "closed-book", "window", "bm25")
    evaluate(tmp_path / "out", model_folder, "editing:dataset=zsre,answer=alt", data=data, systems=systems)
    for _, results in score_all(find_pairs([tmp_path / "out"]), lambda line: None):
        for one in results:
            assert one.results["scores"]["efficacy"]["n"] == one.results["scores"]["specificity"]["n"] == 2
            for sample in one.samples:
                share = sample["extra"]["option_likeliest"][0] / sample["extra"]["option_tokens"][0]
                assert sample["scores"][sample["metadata"]["probe"]] == share
