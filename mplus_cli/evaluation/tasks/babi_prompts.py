"""What is said before a bAbI question: the task in a sentence or two, and two examples with the form of the answer."""

from __future__ import annotations

from mplus_cli.data.chronicle import question_prompt

_PLACES = "The text tells, among other things, where people go. "
_CARRYING = "The text tells, among other things, where people go and what they carry. "
_TASKS: dict[str, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    "qa1": (
        f"{_PLACES}Somebody is at the place they went to last. Answer with the place alone.",
        (
            ("Charlie went to the attic. Judith moved to the cellar.", "Where is Charlie?", "attic"),
            ("Alan went to the shop. Alan moved to the beach.", "Where is Alan?", "beach"),
        ),
    ),
    "qa2": (
        f"{_CARRYING}What somebody carries goes with them until they put it down. Answer with the place alone.",
        (
            ("Charlie went to the attic. Charlie got the bottle there.", "Where is the bottle?", "attic"),
            ("Alan took the lamp there. Alan moved to the cellar.", "Where is the lamp?", "cellar"),
        ),
    ),
    "qa3": (
        f"{_CARRYING}What somebody carries goes with them until they put it down. Answer with the place alone.",
        (
            (
                "Judith went to the attic. Judith got the lamp. Judith moved to the cellar.",
                "Where was the lamp before the cellar?",
                "attic",
            ),
            (
                "Alan took the bottle. Alan went to the shop. Alan went to the beach. Alan went to the attic.",
                "Where was the bottle before the attic?",
                "beach",
            ),
        ),
    ),
    "qa4": (
        "The text tells, among other things, which room lies on which side of another. Answer with the room alone.",
        (
            ("The attic is north of the shop. The cellar is south of the shop.", "What is north of the shop?", "attic"),
            ("The shop is west of the attic. The beach is east of the attic.", "What is the attic east of?", "shop"),
        ),
    ),
    "qa5": (
        "The text tells, among other things, who gives what to whom. The latest such event counts. Answer with the "
        "name or the thing alone.",
        (
            ("Alan took the lamp there. Alan gave the lamp to Judith.", "Who gave the lamp to Judith?", "Alan"),
            ("Judith handed the bottle to Charlie.", "What did Judith give to Charlie?", "bottle"),
        ),
    ),
    "qa6": (
        f"{_PLACES}Somebody is at the place they went to last. Answer with yes or no.",
        (
            ("Alan went to the shop.", "Is Alan in the shop?", "yes"),
            ("Judith went to the attic. Judith moved to the cellar.", "Is Judith in the attic?", "no"),
        ),
    ),
    "qa7": (
        f"{_CARRYING}Answer with none, one, two or three.",
        (
            ("Alan took the lamp there. Alan took the bottle there.", "How many objects is Alan carrying?", "two"),
            ("Judith got the rope there. Judith left the rope.", "How many objects is Judith carrying?", "none"),
        ),
    ),
    "qa8": (
        f"{_CARRYING}Answer with the things alone, divided by commas, or with nothing.",
        (
            ("Alan took the lamp there. Alan took the bottle there.", "What is Alan carrying?", "lamp,bottle"),
            ("Judith got the rope there. Judith left the rope.", "What is Judith carrying?", "nothing"),
        ),
    ),
    "qa9": (
        f"{_PLACES}Answer with yes or no.",
        (
            ("Alan is in the shop.", "Is Alan in the shop?", "yes"),
            ("Judith is no longer in the attic.", "Is Judith in the attic?", "no"),
        ),
    ),
    "qa10": (
        f"{_PLACES}Some of it is uncertain. Answer with yes, no or maybe.",
        (
            ("Alan is either in the shop or the attic.", "Is Alan in the shop?", "maybe"),
            ("Judith went to the cellar.", "Is Judith in the cellar?", "yes"),
        ),
    ),
}


def _text(task: str, examples: tuple[tuple[str, str, str], ...]) -> str:
    shown = [f"<example>\n{facts}\n{question_prompt(asked)} {answer}\n</example>" for facts, asked, answer in examples]
    return "\n".join([task, *shown, ""])


INSTRUCTIONS = {name: _text(task, examples) for name, (task, examples) in _TASKS.items()}
