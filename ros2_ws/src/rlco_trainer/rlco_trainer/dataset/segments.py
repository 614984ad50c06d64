"""Which ticks of a recording are demonstrations: the operator's, and of a policy's only a successful end if asked for. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlco_teleop.bags import Segment

Kind = Literal["demonstration", "correction", "policy"]


@dataclass(frozen=True)
class Part:
    """Ticks of a recording that become an episode of their own. suffix: of its name. keep: bool [T]."""

    kind: Kind
    suffix: str
    keep: np.ndarray


def parts_of(segments: Sequence[Segment], stamps_ns: np.ndarray, period_ns: int, keep_policy: bool) -> list[Part]:
    """The parts to keep of a successful recording whose ticks have these stamps [T].

    An operator alone gives one demonstration. In a deployment every takeover gives a correction; what the policy did
    before it led there, and is left out. keep_policy: also the ticks from the last hand-back to the success, or a whole
    episode of the policy alone. A tick belongs to a segment only with its whole period, so that no action is half one's and
    half the other's. Without segments (a recording that does not say who drove) everything is a demonstration.
    """
    drivers = {segment.source for segment in segments}
    if drivers <= {"operator"}:
        return [Part("demonstration", "", np.ones(len(stamps_ns), bool))]
    parts = []
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        begin = segment.start_ns if index else np.iinfo(np.int64).min
        keep = (stamps_ns >= begin) & (last | (stamps_ns + period_ns <= segment.end_ns))
        if segment.source == "operator":
            parts.append(Part("correction", f".correction{sum(part.kind == 'correction' for part in parts) + 1}", keep))
        elif last and keep_policy:
            parts.append(Part("policy", ".policy", keep))
    return parts
