"""Answering: the right tokens, streamed as text that never has to be taken back, ended where an answer ends."""

import pytest
import torch

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.inference.answering import Answer, AnswerSettings, AnswerStream, answer, end_tokens
from tests.fixtures import book


@pytest.fixture
def memory(model, tokenizer):
    memory = model.new_memory()
    ids = encode(tokenizer, book(12))
    for start in range(0, 64 * 12, 64):
        model.inject(torch.tensor([ids[start : start + 64]]), memory)
    assert len(memory.long_term[0]) > 0
    return memory


def ask(model, tokenizer, memory, **settings) -> Answer:
    return answer("Who sold flour?", model, tokenizer, memory, AnswerSettings(max_new_tokens=12, **settings))


def feed(stream: AnswerStream, ids: list[int]) -> AnswerStream:
    stream.put(torch.tensor([[9, 9, 9]]))
    for token in ids:
        if stream.stop == "line":
            break
        stream.put(torch.tensor([token]))
    stream.end()
    return stream


def test_greedy_answer_is_what_generate_gives(model, tokenizer, memory):
    result = ask(model, tokenizer, memory)
    ids = torch.tensor([encode(tokenizer, "Question: Who sold flour? Answer:")])
    out = model.generate(ids, memory=memory, max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=0)
    expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).lstrip()
    assert result.text == expected.split("\n")[0].strip()
    assert result.prompt_tokens == ids.shape[1]
    assert 1 <= result.answer_tokens <= 12
    assert result.retrieved == [16, 16, 16]
    assert 0 < result.first_token_seconds <= result.seconds


def test_pieces_add_up_to_the_answer(model, tokenizer, memory):
    pieces: list[str] = []
    result = answer("Who?", model, tokenizer, memory, AnswerSettings(max_new_tokens=20), on_text=pieces.append)
    assert "".join(pieces) == result.text


def test_sampling_depends_on_the_seed_alone(model, tokenizer, memory):
    first, again, other = (ask(model, tokenizer, memory, temperature=2.0, seed=seed).text for seed in (3, 3, 4))
    assert first == again != other


def test_without_long_term_memory_nothing_is_retrieved_and_the_memory_stays(model, tokenizer, memory):
    before = ask(model, tokenizer, memory)
    alone = memory.short_term_only()
    assert ask(model, tokenizer, alone).retrieved in ([], [0, 0, 0])
    assert ask(model, tokenizer, memory).text == before.text
    assert memory.last_retrieval[0][0].created.numel() == 16


def test_asking_changes_no_memory(model, tokenizer, memory):
    version, held = memory.version, memory.short_term.values.clone()
    ask(model, tokenizer, memory)
    assert memory.version == version
    assert torch.equal(memory.short_term.values, held)


def test_first_line_ends_a_base_models_answer(tokenizer):
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, [1], first_line=True, on_text=pieces.append)
    feed(stream, encode(tokenizer, "\n  Narkeld. \nQuestion: more"))
    assert (stream.text, stream.stop) == ("Narkeld.", "line")
    assert "".join(pieces) == "Narkeld."


def test_a_chat_answer_may_have_lines(tokenizer):
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, [1], first_line=False, on_text=pieces.append)
    feed(stream, [*encode(tokenizer, "one\n\ntwo \n"), 1])
    assert (stream.text.strip(), stream.stop) == ("one\n\ntwo", "end")
    assert "".join(pieces) == "one\n\ntwo"


def test_a_character_is_given_out_when_all_its_bytes_are_there(tokenizer):
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, [1], first_line=True, on_text=pieces.append)
    feed(stream, encode(tokenizer, "Tolé 😀!"))
    assert "".join(pieces) == "Tolé 😀!"
    assert all("\ufffd" not in piece for piece in pieces)


def test_bad_settings_and_empty_questions_are_refused(model, tokenizer, memory):
    with pytest.raises(UsageError, match="max-new-tokens"):
        answer("Who?", model, tokenizer, memory, AnswerSettings(max_new_tokens=0))
    with pytest.raises(UsageError, match="temperature"):
        answer("Who?", model, tokenizer, memory, AnswerSettings(temperature=float("nan")))
    with pytest.raises(UsageError, match="empty"):
        answer("  ", model, tokenizer, memory)


def test_end_tokens_are_the_models_and_the_tokenizers(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", [5, 7])
    assert end_tokens(model, tokenizer) == [1, 5, 7]
