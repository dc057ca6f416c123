"""From a question to the text the model reads: a chat template where the tokenizer has one, else a one-line form."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from mplus_cli.core.loading import encode

DEFAULT_TEMPLATE = "Question: {question} Answer:"  # the published evaluations' (M+ section 4.2)
HISTORY_TOKENS = 1_024  # of earlier turns: published models were trained to read 2,048 tokens after their memory


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether answers end with an end-of-turn token; base models are cut after their first line instead."""
    return bool(getattr(tokenizer, "chat_template", None))


def prompt_text(
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    history: Sequence[tuple[str, str]] = (),
) -> str:
    """The text the model reads. A base model may bring its own form as `prompt_template` in tokenizer_config.json.

    Args:
        history: earlier (question, answer) turns; used by chat models only, newest first dropped last.
    """
    if not has_chat_template(tokenizer):
        template = tokenizer.init_kwargs.get("prompt_template") or DEFAULT_TEMPLATE
        return template.replace("{question}", question)
    kept: list[tuple[str, str]] = []
    used = 0
    for turn in reversed(history):
        used += len(encode(tokenizer, turn[0])) + len(encode(tokenizer, turn[1]))
        if used > HISTORY_TOKENS:
            break
        kept.insert(0, turn)
    messages = [
        {"role": role, "content": content}
        for turn in kept
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    messages.append({"role": "user", "content": question})
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    bos = tokenizer.bos_token  # memory models have a BOS of their own in every layer
    return text.removeprefix(bos) if bos else text
