"""`mplus ask`: answer a question from a memory file, or hold an interactive session."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mplus_cli.commands.options import (
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    ModelOption,
    QuantizeOption,
    QuietFlag,
    StateOption,
    VerboseFlag,
)
from mplus_cli.console import duration, output
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.inference.answering import Answer
    from mplus_cli.inference.explain import Passage


def ask(
    question: Annotated[
        str | None, typer.Argument(help="What to ask; - reads it from stdin. Without it: an interactive session.")
    ] = None,
    state: StateOption = None,
    model: ModelOption = None,
    no_ltm: Annotated[bool, typer.Option("--no-ltm", help="Answer from short-term memory alone.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which injected passages the answer drew on.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Of sampling.")] = 0,
    show_prompt: Annotated[bool, typer.Option("--show-prompt", help="Show what the model reads.")] = False,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the generation of tokens: a minute now, for long answers on a GPU."),
    ] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Ask a model about what was injected into its memory. The answer, and nothing else, goes to stdout."""
    from mplus_cli.inference.locate import find_state

    if question == "-":
        question = sys.stdin.read()
    if question is not None and not question.strip():
        raise UsageError("the question is empty")
    path = find_state(state)

    from mplus_cli.inference.answering import AnswerSettings
    from mplus_cli.inference.session import Session

    settings = AnswerSettings(max_new_tokens, temperature, seed)
    with Session(path, model, device, dtype, settings, not no_ltm, quantize, compiled, device_map) as session:
        output.debug(f"model {session.loaded.name} on {session.loaded.placement}")
        if question is None:
            from mplus_cli.commands.interactive import converse

            converse(session, explain=explain, show_prompt=show_prompt)
            return
        if show_prompt:
            output.aside(session.prompt(question))
        answer = session.ask(question, output.stream)
        passages = session.explain() if explain else None
        render(question, answer, passages)


def render(question: str, answer: Answer, passages: list[Passage] | None) -> None:
    """Finish a streamed answer: end its line, and say where it came from."""
    details = asdict(answer)
    document: dict[str, Any] = {"question": question.strip(), "answer": details.pop("text"), **details}
    if passages is not None:
        document["passages"] = [asdict(passage) for passage in passages]
    if output.json:
        output.result("", document)
        return
    output.stream("\n")
    if passages is not None:
        output.aside(_passages(passages, answer.text))
    output.debug(
        f"{answer.prompt_tokens} prompt tokens, first token after {duration(answer.first_token_seconds)}, "
        f"{answer.answer_tokens} answer tokens in {duration(answer.seconds)}, stopped by {answer.stop}"
    )


def _passages(passages: list[Passage], answer: str) -> str:
    if not passages:
        return "no long-term memory was retrieved for this answer"
    lines = []
    for passage in passages:
        place = f"{passage.source}, characters {passage.start:,} to {passage.end:,}"
        lines.append(f"{passage.share:4.0%}  {place}  ({passage.age:,} memory tokens ago, {passage.layers} layers)")
        lines.append("      " + (_excerpt(passage.text, answer) if passage.text else "(source file gone or changed)"))
    return "\n".join(lines)


def _excerpt(text: str, answer: str, length: int = 300) -> str:
    """A line of the passage: around the answer if it stands there, else its beginning."""
    line = " ".join(text.split())
    found = line.casefold().find(answer.casefold().strip(" .")) if answer else -1
    start = min(max(found - length // 2, 0), max(len(line) - length, 0))
    return ("..." if start else "") + line[start : start + length] + ("..." if start + length < len(line) else "")
