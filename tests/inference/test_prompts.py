"""Prompts: the published one-line form, a model's own, or its chat template; never a BOS token."""

import copy

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.inference import prompts
from mplus_cli.inference.prompts import has_chat_template, prompt_text

CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


@pytest.fixture
def chat_tokenizer(tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = CHAT
    return chat


def test_base_model(tokenizer):
    assert not has_chat_template(tokenizer)
    assert prompt_text("Who?", tokenizer, [("a", "b")]) == "Question: Who? Answer:"


def test_a_models_own_form(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.init_kwargs["prompt_template"] = "Q {question} A"
    assert prompt_text("{braces}?", own) == "Q {braces}? A"


def test_chat_template_without_bos(chat_tokenizer):
    text = prompt_text("Who?", chat_tokenizer, [("One?", "Yes.")])
    assert text == "[user]One?[assistant]Yes.[user]Who?[assistant]"
    assert chat_tokenizer.bos_token_id not in encode(chat_tokenizer, text)


def test_old_turns_leave_first(chat_tokenizer, monkeypatch):
    monkeypatch.setattr(prompts, "HISTORY_TOKENS", 8)
    assert (
        prompt_text("Q", chat_tokenizer, [("old1", "old2"), ("new", "abc")])
        == "[user]new[assistant]abc[user]Q[assistant]"
    )
