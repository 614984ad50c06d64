"""What an episode carries with it from the bag to the report, and the JSON of `/episode/event`."""

import json
from dataclasses import dataclass, replace
from typing import Literal

from rlco_common.errors import DataError
from rlco_common.strict import from_mapping, to_mapping

EVENT_TOPIC = "/episode/event"
EventKind = Literal["reset", "start", "success", "failure", "discard", "takeover", "hand_back"]


@dataclass(frozen=True)
class EpisodeMetadata:
    """Metadata of one recorded episode; stored in the bag's metadata and carried into the dataset."""

    episode: str                      # unique name; the bag's directory
    task: str
    instruction: str
    domain: str                       # twin, standin or real
    operator: str
    seed: int                         # episode seed of a simulated initial state, -1 on a real table
    contract_hash: str
    contract: str                     # Contract.to_json()
    success: bool | None = None       # None: not judged (the recording was cut off)
    repaired: bool = False            # True: recovered after the recorder died
    variation: str = ""               # what a simulated scene varies beside its seed, as `objects=unseen,camera=0.5`

    def to_json(self) -> str:
        return json.dumps(to_mapping(self), sort_keys=True)

    def judged(self, success: bool) -> "EpisodeMetadata":
        return replace(self, success=success)


def metadata_from_json(text: str, where: str) -> EpisodeMetadata:
    return _parse(EpisodeMetadata, text, where)


@dataclass(frozen=True)
class EpisodeEvent:
    """One message on `/episode/event`. stamp_ns: of a reset, the stamp of the episode's first observation; 0 = unknown.

    variation: as in EpisodeMetadata; with task, domain and seed it determines a simulated initial state.
    """

    kind: EventKind
    episode: str = ""
    task: str = ""
    instruction: str = ""
    domain: str = ""
    seed: int = -1
    success: bool | None = None
    stamp_ns: int = 0
    variation: str = ""

    def to_json(self) -> str:
        return json.dumps(to_mapping(self), sort_keys=True)


def event_from_json(text: str, where: str = EVENT_TOPIC) -> EpisodeEvent:
    return _parse(EpisodeEvent, text, where)


def _parse(cls, text, where):
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    return from_mapping(cls, data, where)
