"""Going on with another number of processes: the documents that are left are dealt out anew.

Positions count documents in an order that does not depend on the number of processes, so what each has read is known:
of the documents numbered r, r + W, r + 2W... those before its position, but for the ones that wait in its look-ahead.
The new processes begin at the position of the slowest and pass over what was read, and share out what waited.

Exact: no document of an epoch is lost, and none is read twice. Not kept: which documents meet in a batch, and in which
order they come; that is that of neither number of processes. With the same number nothing of this is needed, and the
continuation is exact in every respect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mplus_cli.errors import UsageError

_SAME = ("format", "seed", "data", "eval_documents")


def reshard(states: Sequence[dict[str, Any]], world: int) -> list[dict[str, Any]]:
    """The states of `world` batch streams that go on where others stopped.

    Args:
        states: `BatchStream.state_dict()` of every process, all taken after the same step, in any order.

    Raises:
        UsageError: the states are not those of all processes of one run.
    """
    states = sorted(states, key=lambda state: state["rank"])
    whole = [state["rank"] for state in states] == list(range(len(states)))
    if not states or not whole or any(state["world"] != len(states) for state in states):
        raise UsageError("The checkpoint lacks the data position of a process.", "Resume from another checkpoint.")
    if any(state[key] != states[0][key] for state in states for key in _SAME):
        raise UsageError("The data positions of the checkpoint are of different runs.", "Resume from another one.")
    if world == len(states):
        return list(states)
    at = [_next_document(state) for state in states]
    slowest = states[at.index(min(at))]
    waiting = sorted(place for state in states for place in state["waiting"])
    totals = {key: sum(state["counts"][key] for state in states) for key in states[0]["counts"] if key != "rejected"}
    rejected: dict[str, int] = {}
    for state in states:
        for reason, count in state["counts"]["rejected"].items():
            rejected[reason] = rejected.get(reason, 0) + count
    nothing = dict.fromkeys(totals, 0)
    return [
        {
            **slowest,
            "rank": rank,
            "world": world,
            "finished": [*slowest["finished"], at],
            "waiting": waiting[rank::world],
            "usable": sum(state["usable"] for state in states),
            "counts": {**(nothing if rank else totals), "rejected": {} if rank else rejected},
        }
        for rank in range(world)
    ]


def _next_document(state: dict[str, Any]) -> list[int]:
    """[epoch, number] of the first document that a process has not looked at."""
    position = state["position"]
    return [position["epoch"], position["number"] + position["index"]]
