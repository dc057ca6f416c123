"""M+ behind lm-evaluation-harness: texts in two parts, likelihoods against plain forward passes, and a real process."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.loading import encode
from mplus_cli.errors import MissingExtraError, UsageError
from mplus_cli.evaluation.lm_eval import TARGET, register
from mplus_cli.evaluation.lm_eval.__main__ import main
from mplus_cli.evaluation.lm_eval.texts import Reading, ask, move_spaces, text_id
from mplus_cli.evaluation.system import memory_seed
from mplus_cli.evaluation.systems.memory_system import MemorySystem
from mplus_cli.evaluation.task import TaskSettings
from mplus_cli.evaluation.tasks import longbench
from tests.evaluation.systems import helpers
from tests.fixtures import book, byte_tokenizer

ROOT = Path(__file__).parents[2]
KEEP = 48  # tokens of the tiny model's texts that are read; its chunks have 64
TEXT = book(8)  # 800 tokens


@pytest.fixture(scope="module")
def system(model) -> MemorySystem:
    return helpers.system("mplus", helpers.loaded(model), seed=3)


@pytest.fixture(scope="module")
def reading(tokenizer) -> Reading:
    return Reading(tokenizer, chunk=16, keep=KEEP)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=150), st.integers(1, 40), st.integers(20, 60), st.none() | st.integers(60, 90))
def test_a_text_is_parted_and_only_length_cuts_it(text, answer, keep, length):
    reading = Reading(byte_tokenizer(), 16, keep, length)
    item = reading.item(text, answer)
    (question,) = item.questions
    told = "".join(document.text for document in item.documents)
    count = len(encode(reading.tokenizer, text))
    read = len(encode(reading.tokenizer, question.recent))
    assert question.after == len(item.documents)
    if not text:
        assert (told, question.recent) == ("", "<|begin_of_text|>")
    elif length is None or count + answer <= length:
        assert told + question.recent == text
        assert read + answer <= max(keep, answer + 16) + 3 and read >= min(count, 16) - 3  # characters are kept whole
    else:
        kept = told + question.recent
        assert text.endswith(kept) and length <= len(encode(reading.tokenizer, kept)) + answer <= length + 3


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=200))
def test_every_token_of_a_whole_text_is_predicted_once(text):
    reading = Reading(byte_tokenizer(), 16, KEEP)
    item, pieces = reading.whole(text)
    assert [id for options in pieces.values() for id in options[0]] == encode(reading.tokenizer, text)
    assert all(len(ids) <= KEEP // 2 for (ids,) in pieces.values())
    for question in item.questions:  # what is told and read is what comes before the piece
        before = "".join(d.text for d in item.documents[: question.after]) + question.recent
        assert question.id == "q0" or text.startswith(before)


def _slow(system: MemorySystem, seed_text: str, told: list[str], prompt: str, ids: list[int]) -> tuple[float, bool]:
    """A continuation after a prompt behind the memory of texts, token by token."""
    model, tokenizer = system.model, system.tokenizer
    memory = model.new_memory(1, [memory_seed(3, text_id(seed_text))])
    for text in told:
        for chunk in torch.tensor([encode(tokenizer, text)]).split(model.config.chunk_size, dim=1):
            model.inject(chunk, memory)
    total, greedy = 0.0, True
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([encode(tokenizer, prompt)]), memory=memory, use_cache=True)
        for id in ids:
            scores = out.logits[0, -1].log_softmax(-1)
            total, greedy = total + float(scores[id]), greedy and int(scores.argmax()) == id
            out = model(input_ids=torch.tensor([[id]]), past_key_values=out.past_key_values, use_cache=True)
    return total, greedy


def test_the_likelihood_of_whole_texts_equals_a_slow_pass(system, reading, tokenizer):
    texts = [TEXT[:200], TEXT[300:317], TEXT[100:148]]
    read = [reading.whole(text) for text in texts]
    made = ask(system, [item for item, _ in read], {name: ids for _, pieces in read for name, ids in pieces.items()})
    for text, (item, pieces) in zip(texts, read, strict=True):
        for question in item.questions:
            name = item.sample_id(question)
            told = [document.text for document in item.documents[: question.after]]
            expected, _ = _slow(system, text, told, question.recent, pieces[name][0])
            assert made[name].options[0].logprob == pytest.approx(expected, abs=2e-3)


def test_pairs_equal_a_slow_pass_and_the_greedy_answer_is_known(system, reading):
    first = ask(system, [reading.item(TEXT[:333], 3)])
    (greedy,) = [one.raw for one in first.values()]
    assert len(greedy.encode()) <= 3 and "�" not in greedy
    item, options = reading.pair(TEXT[:333], [greedy, " sold", "x" * 30])
    assert [len(ids) for ids in options] == [len(greedy), 5, 30] and len(item.documents) == 1
    (made,) = ask(system, [item], {item.sample_id(item.questions[0]): options}).values()
    for option, ids in zip(made.options, options, strict=True):
        logprob, likeliest = _slow(system, TEXT[:333], [item.documents[0].text], item.questions[0].recent, ids)
        assert option.logprob == pytest.approx(logprob, abs=2e-3)
        assert (option.likeliest == option.tokens) == likeliest
    assert move_spaces("a  ", "b") == ("a", "  b") and move_spaces("", " b") == ("", " b")


def test_answers_equal_those_of_our_own_harness_on_the_same_prompts(system, tokenizer, tmp_path):
    """LongBench's task knows text and question apart; the adapter gets one text and reads and writes the same."""
    rows = [
        {"_id": str(n), "context": book(n + 2), "input": f"Who sold {n} sacks?", "answers": ["the miller"], "length": 9}
        for n in range(4)
    ]
    (tmp_path / "qasper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = longbench.Options(datasets=("qasper",), keep=1_200)
    items = list(longbench.LongBench().items(TaskSettings(tokenizer, system.config, options, data=tmp_path)))
    items = [replace(item, questions=(replace(item.questions[0], max_new_tokens=12),)) for item in items]
    texts = [item.context(item.questions[0], "") + item.questions[0].prompt for item in items]
    assert any(item.documents for item in items)
    alike = [replace(item, id=text_id(text)) for item, text in zip(items, texts, strict=True)]
    ours = {answer.item: answer.raw for answer in system.answer(longbench.LongBench(), alike)}
    # LongBench's task keeps room for its own answers of 128 tokens, which here are 12
    reading = Reading(tokenizer, 64, keep=1_200 - 128 + 12)
    read = [reading.item(text, 12) for text in texts]
    assert [item.documents[0].text for item in read if item.documents] == [
        item.documents[0].text for item in items if item.documents
    ]
    found = ask(system, read)
    assert [found[f"{item.id}/q"].raw for item in read] == [ours[item.id] for item in alike]


def test_an_answer_ends_at_the_given_texts(system, reading):
    item = reading.item(TEXT[:200], 30)
    (whole,) = ask(system, [item]).values()
    stop = whole.raw[3:5]
    (made,) = ask(system, [item], until=[stop, "never"]).values()
    assert made.stop == "text" and whole.raw.startswith(made.raw) and made.raw.endswith(stop)
    assert made.tokens < whole.tokens


def test_without_the_package_one_message_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match="not installed"):
        register()
    assert main() == 2
    assert 'pip install "mplus[lm-eval]"' in capsys.readouterr().err


def test_later_releases_find_the_model_by_its_entry_point():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lm_eval.models"] == {"mplus": TARGET}
    assert any(line.startswith("lm_eval") for line in project["optional-dependencies"]["lm-eval"])


# -- with lm-evaluation-harness itself --


@pytest.fixture
def lm(model_folder):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from mplus_cli.evaluation.lm_eval.model import MPlusLM

    def make(**arguments):
        return MPlusLM.create_from_arg_obj({"pretrained": str(model_folder), "dtype": "float32"} | arguments)

    return make


def _requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_batches_and_order_change_no_answer(lm):
    texts = [TEXT[:n] for n in (40, 700, 333, 40, 150)]
    wanted = _requests("generate_until", *((text, {"until": ["e"], "max_gen_toks": 9}) for text in texts))
    pairs = _requests("loglikelihood", *((text, end) for text in [*texts, ""] for end in (" sold", " abbot")))
    whole = _requests("loglikelihood_rolling", *((text,) for text in [*texts, ""]))
    found = []
    for batch, order in ((1, 1), (4, -1)):
        model = lm(batch_size=batch, keep=KEEP + 64)
        found.append(
            [
                model.generate_until(wanted[::order], True)[::order],
                model.loglikelihood(pairs[::order], True)[::order],
                model.loglikelihood_rolling(whole[::order], True)[::order],
            ]
        )
    (texts_1, pairs_1, whole_1), (texts_4, pairs_4, whole_4) = found
    assert texts_1 == texts_4 and texts_1[0] == texts_1[3] and not any("e" in text for text in texts_1)
    assert [greedy for _, greedy in pairs_1] == [greedy for _, greedy in pairs_4]
    assert [logprob for logprob, _ in pairs_1] == pytest.approx([logprob for logprob, _ in pairs_4], abs=1e-3)
    assert whole_1 == pytest.approx(whole_4, abs=1e-2) and whole_1[-1] == 0.0


def test_the_seed_decides_what_memory_drops(lm):
    request = _requests("loglikelihood", (TEXT, " sold"))
    logprobs = {seed: lm(seed=seed).loglikelihood(request, True)[0][0] for seed in (0, 1)}
    assert logprobs[0] != logprobs[1] and logprobs[0] == lm(seed=0).loglikelihood(request, True)[0][0]


def test_what_is_asked_for_and_cannot_be(lm):
    for arguments, message in (
        ({"system": "window"}, "has no memory"),
        ({"system": "mpls"}, "did you mean mplus"),
        ({"retrieval_buget": 4}, "retrieval_buget"),
        ({"batch_size": "many"}, "--batch_size many"),
        ({"cut": "right"}, "cut=right"),
    ):
        with pytest.raises(UsageError, match=message):
            lm(**arguments)
    model = lm(batch_size="auto:2", retrieval_budget=8)
    assert model.system.config.retrieval_budget == 8 and model.batch == 16
    with pytest.raises(UsageError, match="sampling or beam search"):
        model.generate_until(_requests("generate_until", ("text", {"do_sample": True, "temperature": 0.7})))
    with pytest.raises(UsageError, match="no chat template"):
        model.chat_template(True)
    assert model.chat_template(False) is None and json.loads(json.dumps(model.get_model_info()))["mplus"]["batch"] == 16


def test_interrupted_and_bad_input_end_in_one_message(lm, monkeypatch, capsys):
    import lm_eval.__main__

    def end(error):
        def cli_evaluate():
            raise error

        monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", cli_evaluate)
        return main()

    assert end(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.startswith("error: interrupted\nhint: --use_cache FILE")
    assert end(UsageError("no such thing")) == 2 and "error: no such thing" in capsys.readouterr().err


TASKS = {
    "told": {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "chosen": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}]},
    "read": {"output_type": "loglikelihood_rolling", "doc_to_target": "{{context}}", "doc_to_text": ""},
}


def test_a_real_process_runs_local_tasks(lm, model_folder, tmp_path):
    data, tasks, out = tmp_path / "data.jsonl", tmp_path / "tasks", tmp_path / "out"
    rows = [
        {"context": TEXT[: 300 + 90 * n], "answer": n % 2, "choices": [" flour", " sacks of rye"]} for n in range(3)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.mkdir()
    for name, config in TASKS.items():
        common = {
            "task": f"mplus_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{answer}}",
        }
        (tasks / f"{name}.yaml").write_text(json.dumps(common | config))  # JSON is YAML
    arguments = ["--model", "mplus", "--model_args", f"pretrained={model_folder},dtype=float32,seed=5"]
    arguments += ["--tasks", ",".join(f"mplus_{name}" for name in TASKS), "--include_path", str(tasks)]
    arguments += ["--log_samples", "--output_path", str(out), "--batch_size", "2", "--device", "cpu"]
    module = [sys.executable, "-m", "mplus_cli.evaluation.lm_eval"]
    done = subprocess.run([*module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (report,) = out.rglob("results*.json")
    results = json.loads(report.read_text())
    assert results["results"]["mplus_told"]["sample_len"] == 3 and results["config"]["mplus"]["seed"] == 5

    model = lm(seed=5)
    expected = model.loglikelihood_rolling(_requests("loglikelihood_rolling", *((row["context"],) for row in rows)))
    size = sum(len(row["context"].encode()) for row in rows)
    found = results["results"]["mplus_read"]["bits_per_byte,none"]
    assert found == pytest.approx(-sum(expected) / size / math.log(2), rel=1e-3)
    settings_ = {"until": ["\n"], "max_gen_toks": 6}
    answers = model.generate_until(_requests("generate_until", *((row["context"], settings_) for row in rows)))
    (samples,) = out.rglob("samples_mplus_told*.jsonl")
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    assert [line["resps"][0][0] for line in lines] == answers
