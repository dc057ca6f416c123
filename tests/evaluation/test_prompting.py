"""Cutting, padding, generating and stopping, against the plain way of doing each."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.prompting import Prompt, apply_stop, cut_text, fit, generate
from tests.fixtures import book, byte_tokenizer

TOKENIZER = byte_tokenizer()


@pytest.mark.parametrize(
    ("room", "cut", "kept"),
    [
        (10, "left", "0123456789"),
        (4, "left", "6789"),
        (4, "middle", "0189"),
        (5, "middle", "01789"),
        (1, "middle", "9"),
        (0, "left", ""),
        (0, "middle", ""),
    ],
)
def test_a_cut_keeps_so_many_tokens(room, cut, kept):
    fitted = cut_text("0123456789", room, TOKENIZER, cut)
    assert fitted.text == kept
    assert (fitted.tokens, fitted.dropped) == (10, 10 - len(kept))


def test_fitting_cuts_the_context_and_nothing_else():
    def frame(context: str) -> str:
        return f"Read: {context} Question: what? Answer:"

    ids, text, fitted = fit("0123456789", frame, 36, TOKENIZER)
    assert text == "Read: 456789 Question: what? Answer:" and len(ids) == 36
    assert ids == encode(TOKENIZER, text)
    assert fitted.dropped == 4


def test_fitting_says_when_even_no_context_fits():
    with pytest.raises(UsageError, match="A prompt of 10 tokens is longer than the window of 8"):
        fit("0123456789", lambda context: f"{context} Question?", 8, TOKENIZER)
    assert fit("0123456789", lambda context: f"{context} Question?", 10, TOKENIZER)[1] == " Question?"


@pytest.mark.parametrize(
    ("raw", "line", "whole"),
    [
        (" Paris\nQuestion: more", "Paris", "Paris\nQuestion: more"),
        ("\n\n Paris", "Paris", "Paris"),
        (" \n", "", ""),
        ("Paris", "Paris", "Paris"),
    ],
)
def test_stop_rules(raw, line, whole):
    assert apply_stop(raw, "line") == line
    assert apply_stop(raw, "none") == whole


def prompts(*texts: str, limit: int = 9) -> list[Prompt]:
    return [Prompt(encode(TOKENIZER, text), limit) for text in texts]


def remembering(model, rows: int):
    memory = model.new_memory(rows, seed=[*range(rows)])
    for at in range(0, 640, 64):
        ids = [encode(TOKENIZER, book()[500 * row + at : 500 * row + at + 64]) for row in range(rows)]
        model.inject(torch.tensor(ids), memory)
    return memory


def test_generation_is_that_of_hugging_face(model):
    """Greedy, row by row, without stop rule."""
    texts = ("What did the miller sell?", "Who?", "The abbot")
    memory = remembering(model, 3)
    made = generate(model, TOKENIZER, prompts(*texts), [], "none", first={"memory": memory.rows([0, 1, 2])})
    for row, text in enumerate(texts):
        ids = torch.tensor([encode(TOKENIZER, text)])
        out = model.generate(
            ids, memory=memory.rows([row]), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0,
            attention_mask=torch.ones_like(ids),
        )  # fmt: skip
        assert made[row].raw == TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert (made[row].tokens, made[row].stop) == (9, "length")


def test_a_row_stops_at_its_end_its_line_and_its_own_length(model):
    says = _Says(model, [*encode(TOKENIZER, "Paris"), TOKENIZER.eos_token_id, 5, 6, 7])
    rows = [*prompts("What?", limit=12), *prompts("What did the miller sell?", limit=3)]
    ended, cut = generate(says, TOKENIZER, rows, [TOKENIZER.eos_token_id], "none")
    assert (ended.raw, ended.tokens, ended.stop) == ("Paris", 6, "end")
    assert (cut.raw, cut.tokens, cut.stop) == ("Par", 3, "length")

    newline = _Says(model, encode(TOKENIZER, " \n Paris\nmore"))
    line = generate(newline, TOKENIZER, prompts("Q", limit=12), [], "line")[0]
    assert (line.raw, line.text, line.stop) == (" \n Paris\n", "Paris", "line")
    assert generate(newline, TOKENIZER, prompts("Q", limit=12), [], "none")[0].stop == "length"


class _Says:
    """A model that says what it is told to."""

    def __init__(self, model, ids: list[int]) -> None:
        self.model, self.ids, self.device, self.said = model, ids, model.device, 0

    def __call__(self, **given):
        if given["past_key_values"] is None:
            self.said = 0
        out = self.model(**given)
        out.logits[:, -1] = 0
        out.logits[:, -1, self.ids[self.said % len(self.ids)]] = 1
        self.said += 1
        return out


def test_options_are_weighed_like_one_pass_over_prompt_and_option(model):
    """Without memory, where a pass over both has the same retrieval, namely none; and answers do not change."""
    texts, options = ("What did the miller sell?", "Who?"), [["flour", "a", "no sacks"], ["x"]]
    asked = [
        Prompt(prompt.ids, 6, [encode(TOKENIZER, option) for option in own])
        for prompt, own in zip(prompts(*texts), options, strict=True)
    ]
    made = generate(model, TOKENIZER, asked, [], "none")
    assert [one.raw for one in made] == [
        g.raw for g in generate(model, TOKENIZER, prompts(*texts, limit=6), [], "none")
    ]
    for text, own, one in zip(texts, options, made, strict=True):
        for option, score in zip(own, one.option_logprobs, strict=True):
            start, ids = len(encode(TOKENIZER, text)), encode(TOKENIZER, text + option)
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(logprobs[at - 1, ids[at]].item() for at in range(start, len(ids)))
            assert score == pytest.approx(expected, abs=1e-3)


def test_options_do_not_change_what_is_retrieved(model):
    memory = remembering(model, 1)
    prompt = encode(TOKENIZER, "What did the miller sell?")
    view = memory.rows([0])
    generate(model, TOKENIZER, [Prompt(prompt, 4)], [], "none", first={"memory": view})
    before = [rows[0].created.tolist() for rows in view.last_retrieval]
    view = memory.rows([0])
    weighed = Prompt(prompt, 4, [encode(TOKENIZER, "flour"), encode(TOKENIZER, "no")])
    generate(model, TOKENIZER, [weighed], [], "none", first={"memory": view})
    assert [rows[0].created.tolist() for rows in view.last_retrieval] == before


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(UsageError, match="prompt is empty"):
        generate(model, TOKENIZER, [Prompt([], 4)], [], "none")
