"""What a browser may ask for: JSON messages, read strictly."""

import json
import math
from dataclasses import dataclass
from typing import Any

from rlco_common.errors import DataError, RlcoError
from rlco_common.strict import from_mapping

MAX_TEXT = 200      # characters of a name or an instruction


@dataclass(frozen=True)
class Alive:
    """The page is there."""


@dataclass(frozen=True)
class Jog:
    """A finger or key is down. press: number of this pressing, larger for every new one. axes: [6] in [-1, 1], base axes.

    echo_ms: time in the newest state that the page has, echo_age_ms: how long ago it came, on the page's own clock.
    gripper: opening wanted, None leaves it. Sent again at least every heartbeat for as long as it is down.
    """

    press: int
    echo_ms: float
    echo_age_ms: float
    axes: tuple[float, ...]
    gripper: float | None = None

    def __post_init__(self):
        if len(self.axes) != 6 or not all(math.isfinite(value) and abs(value) <= 1.0 for value in self.axes):
            raise ValueError("axes must be six numbers in [-1, 1]")
        if not (math.isfinite(self.echo_ms) and math.isfinite(self.echo_age_ms) and self.echo_age_ms >= 0.0):
            raise ValueError("echo_ms and echo_age_ms must be finite times")
        if self.gripper is not None and not 0.0 <= self.gripper <= 1.0:
            raise ValueError("gripper must be in [0, 1]")


@dataclass(frozen=True)
class Release:
    """Everything is up again."""


@dataclass(frozen=True)
class Take:
    """To be the operator. name: who that is."""

    name: str = ""

    def __post_init__(self):
        _require_short(self.name)


@dataclass(frozen=True)
class Give:
    """No longer to be the operator."""


@dataclass(frozen=True)
class Stop:
    """Stop the arm. From anybody, at any time."""


@dataclass(frozen=True)
class Rearm:
    """Clear a stop or a fault."""


@dataclass(frozen=True)
class Policy:
    """Hand the arm over to the policy, or take it back."""

    enable: bool


@dataclass(frozen=True)
class Record:
    """One of the recorder's services: start, success, fail, discard."""

    what: str

    def __post_init__(self):
        if self.what not in ("start", "success", "fail", "discard"):
            raise ValueError(f"what='{self.what}' is not start, success, fail or discard")


@dataclass(frozen=True)
class Episode:
    """What the next episodes are about, on a table without a simulator."""

    task: str
    instruction: str

    def __post_init__(self):
        _require_short(self.task)
        _require_short(self.instruction)


@dataclass(frozen=True)
class NextScene:
    """A new initial state, in simulation."""


@dataclass(frozen=True)
class Leave:
    """The page is gone; made by the server."""


MESSAGES = {kind.__name__.lower(): kind for kind in (Alive, Jog, Release, Take, Give, Stop, Rearm, Policy, Record, Episode,
                                                     NextScene)}


@dataclass(frozen=True)
class Request:
    """A message of one client. arrived_ns: monotonic, when it came out of the network."""

    client: int
    address: str
    message: Any
    arrived_ns: int


def parse(text: str) -> Any:
    """The message of a JSON text `{"do": NAME, ...}`. Raises DataError for anything else."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"console message: not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("do") not in MESSAGES:
        raise DataError(f"console message: 'do' must be one of {', '.join(MESSAGES)}")
    kind = MESSAGES[data.pop("do")]
    try:
        return from_mapping(kind, data, f"console message {kind.__name__}")
    except RlcoError as error:
        raise DataError(str(error)) from error


def _require_short(text: str) -> None:
    if len(text) > MAX_TEXT or not text.isprintable():
        raise ValueError(f"text must be printable and at most {MAX_TEXT} characters")
