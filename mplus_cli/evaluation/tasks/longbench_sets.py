"""The sixteen English sets of LongBench: their prompts and answer lengths, word for word, and what scores them.

Prompts, lengths and the choice of metrics are those of https://github.com/THUDM/LongBench (MIT licence; arXiv
2308.14508). What stands before `{context}` and the context itself are the text; what follows is asked about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Metric = Literal["qa_f1", "rouge_l", "classification", "retrieval", "count", "code_similarity"]


@dataclass(frozen=True)
class LongBenchSet:
    """One set.

    Attributes:
        template: the prompt, with `{context}` and mostly `{input}`.
        max_new_tokens: longest answer.
        one_line: LongBench scores the first line of the answer alone.
        short: the answer is a phrase, so what follows its first line is no part of it.
    """

    template: str
    max_new_tokens: int
    metric: Metric
    one_line: bool = False
    short: bool = False

    def text(self, record: Mapping[str, Any]) -> str:
        """What is to be read: instruction and context."""
        return self.template.partition("{context}")[0] + record["context"]

    def frame(self, record: Mapping[str, Any]) -> str:
        """What is asked after it."""
        return self.template.partition("{context}")[2].replace("{input}", record["input"])


_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n{context}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "Question: {input}\nAnswer:"
)
_STORY = "as concisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
_ARTICLE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.\n\n'
)

SETS: dict[str, LongBenchSet] = {
    "narrativeqa": LongBenchSet(
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the question "
        f"{_STORY}Story: {{context}}\n\nNow, answer the question based on the story {_STORY}"
        "Question: {input}\n\nAnswer:",
        128,
        "qa_f1",
        short=True,
    ),
    "qasper": LongBenchSet(
        f"You are given a scientific article and a question. Answer the question {_ARTICLE}Article: {{context}}\n\n"
        f" Answer the question based on the above article {_ARTICLE}Question: {{input}}\n\nAnswer:",
        128,
        "qa_f1",
        short=True,
    ),
    "multifieldqa_en": LongBenchSet(
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based on the "
        "above text, only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
        64,
        "qa_f1",
        short=True,
    ),
    "hotpotqa": LongBenchSet(_PASSAGES, 32, "qa_f1", short=True),
    "2wikimqa": LongBenchSet(_PASSAGES, 32, "qa_f1", short=True),
    "musique": LongBenchSet(_PASSAGES, 32, "qa_f1", short=True),
    "gov_report": LongBenchSet(
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n"
        "{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
        512,
        "rouge_l",
    ),
    "qmsum": LongBenchSet(
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one "
        "or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript "
        "in one or more sentences.\n\nQuery: {input}\nAnswer:",
        512,
        "rouge_l",
    ),
    "multi_news": LongBenchSet(
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
        "Now, write a one-page summary of all the news.\n\nSummary:",
        512,
        "rouge_l",
    ),
    "trec": LongBenchSet(
        "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}",
        64,
        "classification",
        one_line=True,
    ),
    "triviaqa": LongBenchSet(
        "Answer the question based on the given passage. Only give me the answer and do not output any other words. "
        "The following are some examples.\n\n{context}\n\n{input}",
        32,
        "qa_f1",
        one_line=True,
    ),
    "samsum": LongBenchSet(
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}",
        128,
        "rouge_l",
        one_line=True,
    ),
    "passage_count": LongBenchSet(
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
        "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other "
        "words, how many non-repeating paragraphs are there in total?\n\n{context}\n\nPlease enter the final count of "
        "unique paragraphs after removing duplicates. The output format should only contain the number, such as 1, 2, "
        "3, and so on.\n\nThe final answer is: ",
        32,
        "count",
    ),
    "passage_retrieval_en": LongBenchSet(
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract "
        "is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph "
        'that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\n'
        "The answer is: ",
        32,
        "retrieval",
    ),
    "lcc": LongBenchSet("Please complete the code given below. \n{context}Next line of code:\n", 64, "code_similarity"),
    "repobench-p": LongBenchSet(
        "Please complete the code given below. \n{context}{input}Next line of code:\n", 64, "code_similarity"
    ),
}
SIX = ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique")  # M+ tables 2 and 3
