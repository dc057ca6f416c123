"""Writes the sample book of `make demo` and its questions, chronicle.txt and chronicle_questions.tsv, beside itself.

    python assets/sample_chronicle.py assets/default

The book is a chronicle of names never seen in training, far longer than short-term memory. One question is about its
first chapter, one about the middle, one about the last. Of each chapter the first fact is taken that the model answers;
how often that is the case is what the exam (`mplus eval chronicle`) measures, and this script prints what it passed
over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mplus_cli.core.loading import encode, load_tokenizer
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.data.chronicle import Chronicle, Fact, question_prompt, write_sample
from mplus_cli.data.chunking import chunks


def first_line(model: MPlusForCausalLM, tokenizer, memory: Memory, question: str) -> str:
    """The model's greedy answer."""
    ids = torch.tensor([encode(tokenizer, question_prompt(question))])
    out = model.generate(ids, memory=memory, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :]).split("\n")[0].strip()


def choose(model: MPlusForCausalLM, tokenizer, memory: Memory, chronicle: Chronicle, chapter: int) -> Fact:
    """The first fact of a chapter that is answered."""
    for fact in chronicle.facts:
        if fact.chapter != chapter:
            continue
        given = first_line(model, tokenizer, memory, fact.questions[0])
        print(f"chapter {chapter}: {fact.questions[0]} {fact.value!r}, given {given!r}")
        if given == fact.value:
            return fact
    raise SystemExit(f"No fact of chapter {chapter} is answered: choose another --seed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--characters", type=int, default=60_000)
    options = parser.parse_args()
    model, tokenizer = MPlusForCausalLM.from_pretrained(options.model), load_tokenizer(options.model)
    folder = Path(__file__).parent
    chronicle = write_sample(folder / "chronicle.txt", options.seed, min_chars=options.characters)
    memory = model.new_memory()
    for chunk in chunks(chronicle.text, tokenizer, model.config.chunk_size):
        model.inject(torch.tensor([chunk.ids]), memory)
    last = max(fact.chapter for fact in chronicle.facts)
    facts = [choose(model, tokenizer, memory, chronicle, chapter) for chapter in (1, last // 2, last)]
    lines = [f"{fact.questions[0]}\t{fact.value}\tin chapter {fact.chapter} of {last}\n" for fact in facts]
    (folder / "chronicle_questions.tsv").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
