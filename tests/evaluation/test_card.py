"""Cards as the hub reads them: parsed back with its own classes, numbers equal to results.json."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from mplus_cli.evaluation.runs import find_pairs
from tests.commands.helpers import CommandLine
from tests.evaluation.helpers import evaluate
from tests.fixtures import save_tiny_model


@pytest.fixture
def mplus(capsys, toys) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def results(tmp_path, model_folder, toys):
    out = tmp_path / "results"
    evaluate(out, model_folder, "parrot", "parrot:words=5", systems=("mplus", "mplus:retrieval_budget=8", "echo"))
    return out


def _read(path) -> ModelCard:
    return ModelCard.load(path, ignore_metadata_errors=False)


def test_the_hub_reads_back_every_number_with_n_and_interval(mplus, results):
    code, out, err = mplus("eval", "card", results, "--name", "tiny", "--license", "mit", "--language", "en")
    assert (code, out) == (0, f"{results / 'README.md'}\n") and "numbers in the model-index" in err
    card = _read(results / "README.md")
    assert (card.data.model_name, card.data.license, card.data.language) == ("tiny", "mit", ["en"])
    found = {
        (one.dataset_type, one.dataset_config, one.metric_args["system"], one.metric_type): one
        for one in card.data.eval_results
    }
    expected = 0
    for pair in find_pairs([results]):
        stored = pair.results()
        for metric, score in stored["scores"].items():
            key = ("parrot", f"{stored['task']} limit=3 seed=0", stored["system"], metric)
            if stored["system"] == "echo" or score["mean"] is None:
                assert key not in found  # no result of the model
                continue
            one, expected = found[key], expected + 1
            assert one.metric_value == score["mean"] and one.metric_name == f"{metric} ({stored['system']})"
            assert {k: one.metric_args[k] for k in ("n", "items", "low", "high")} == {
                k: score[k] for k in ("n", "items", "low", "high")
            }
            assert one.task_type == "question-answering" and one.dataset_args["items_sha256"]
    assert expected == len(found) == 8
    assert "Prompt of" not in card.text  # test data stay away from where models are trained
    assert "| echo |" in card.text and "## How to repeat it" in card.text  # but in the tables


def test_nothing_is_overwritten_without_force(mplus, results):
    card = results / "README.md"
    card.write_text("mine")
    code, out, err = mplus("eval", "card", results)
    assert (code, out, card.read_text()) == (2, "", "mine")
    assert err == f"error: {card} is there already and is not overwritten\nhint: --force replaces it\n"
    assert mplus("eval", "card", results, "--force")[0] == 0 and _read(card).data.tags[0] == "mplus"


def test_the_model_gets_a_card_of_its_own(mplus, results, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "tiny-model")
    common = ("eval", "card", results, "--model", folder)
    code, out, err = mplus(*common, "--base-model", "meta-llama/Llama-3.1-8B", "--json")
    assert code == 0 and "the model card names no license; --license adds it" in err
    found = json.loads(out)
    assert found["cards"] == [str(results / "README.md"), str(folder / "README.md")]
    card = _read(folder / "README.md")
    assert card.data.base_model == "meta-llama/Llama-3.1-8B" and card.data.pipeline_tag == "text-generation"
    assert [vars(one) for one in card.data.eval_results] == found["eval_results"]
    assert "| short-term memory tokens per layer (N) | 32 |" in card.text and "| layers | 3 |" in card.text
    assert str(tmp_path) not in card.content and str(model_folder) not in card.content  # nobody's folders
    (folder / "README.md").unlink()
    assert mplus(*common)[0] == 2 and not (folder / "README.md").exists()  # all or none


def test_other_weights_get_no_card_of_these_results(mplus, results, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    code, out, err = mplus("eval", "card", results, "--model", other)
    assert (code, out) == (2, "") and "is not the model of these results" in err and "weights_sha256 differ" in err
    assert not (other / "README.md").exists() and not (results / "README.md").exists()


def test_a_card_is_of_one_model(mplus, results, tmp_path):
    evaluate(results / "more", save_tiny_model(tmp_path / "other", seed=1), systems=("mplus",))
    code, _, err = mplus("eval", "card", results)
    assert code == 2 and "results of 2 models" in err


def test_results_of_no_own_system_make_a_card_without_an_index(mplus, tmp_path, model_folder):
    evaluate(tmp_path / "echo", model_folder)
    assert mplus("eval", "card", tmp_path / "echo")[0] == 0
    assert _read(tmp_path / "echo" / "README.md").data.eval_results is None
    code, _, err = mplus("eval", "card", tmp_path / "gone")
    assert code == 2 and "is no folder" in err
