"""What a fault is, and what came of trying it."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from rlco_common.errors import RlcoError


class NotTried(RlcoError):
    """The fault could not be tried: what it needs before it begins was not there. Nothing is said about the promise."""


@dataclass(frozen=True)
class Outcome:
    """Whether a promise held, and the figure that was measured, as a short text."""

    held: bool
    figure: str


@dataclass(frozen=True)
class Fault:
    """A fault, the promise that is made for it in one sentence, and the check.

    needs: nodes of the graph (see FaultGraph). check(graph): brings the graph into motion, injects the fault, and measures.
    It raises NotTried before the fault, and any other RlcoError after it counts as a broken promise.
    """

    name: str
    does: str
    promise: str
    needs: tuple[str, ...]
    check: Callable[..., Outcome]


@dataclass(frozen=True)
class Verdict:
    """The result of one fault. Only `held` is a success."""

    fault: str
    status: Literal["held", "broken", "not tried"]
    figure: str
    promise: str
    seconds: float


def verdicts_json(verdicts: Iterable[Verdict]) -> str:
    return json.dumps([asdict(verdict) for verdict in verdicts], indent=2)


def verdict_line(verdict: Verdict, width: int) -> str:
    """One line of the table; the promise is added where it was broken."""
    line = f"{verdict.fault:<{width}}  {verdict.status:<9}  {verdict.seconds:5.1f} s  {verdict.figure}"
    return line if verdict.status == "held" else f"{line}\n{'':<{width}}  promised: {verdict.promise}"
