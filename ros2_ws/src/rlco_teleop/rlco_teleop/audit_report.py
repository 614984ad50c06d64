"""What the audit of an episode found: the figures of every stream, the warnings, and a verdict. Pure; travels as JSON.

Unknown figures are None: the rate of a single message, the age in simulated time, the loss of a stream without a period.
"""

import json
from dataclasses import dataclass
from typing import Literal

from rlco_common.errors import DataError
from rlco_common.strict import from_mapping, to_mapping

StreamKind = Literal["camera", "state", "command"]

# kind of finding -> (what is wrong, with figure and limit; what to do about it)
FINDINGS = {
    "rate": ("{figure:.1f} Hz arrive, at least {limit:.1f} Hz are expected",
             "check the driver's rate, its cable and the load of this machine"),
    "silent": ("silent for {figure:.2f} s, at most {limit:.2f} s are allowed", "check the driver and its cable"),
    "gap": ("a gap of {figure:.3f} s, at most {limit:.3f} s are allowed", "check the driver and the load of this machine"),
    "jitter": ("intervals scatter by {figure:.3f} s, at most {limit:.3f} s are allowed",
               "stamp at the sensor, and lighten the load of this machine"),
    "loss": ("{figure:.1%} of the messages are missing, at most {limit:.1%} are allowed",
             "use reliable QoS, a wired link or JPEG images"),
    "queue": ("{figure:.0f} message(s) dropped because the disk is too slow, {limit:.0f} are allowed",
              "record JPEG images, or to a faster disk"),
    "duplicates": ("{figure:.1%} of the messages repeat a stamp, at most {limit:.1%} are allowed",
                   "check that one driver publishes, once"),
    "backwards": ("{figure:.0f} stamp(s) go back in time, {limit:.0f} are allowed",
                  "check that one driver publishes, and that its clock is not set meanwhile"),
    "unstamped": ("{figure:.0f} message(s) without a stamp, {limit:.0f} are allowed",
                  "let the driver fill header.stamp, or set allow_unstamped to rely on receive times"),
    "age": ("{figure:.1%} of the messages arrive too old or from the future, at most {limit:.1%} are allowed",
            "synchronise the clocks, and look for a slow driver or link"),
    "skew": ("stamps are {figure:+.3f} s off the other streams, at most {limit:.3f} s are allowed",
             "synchronise the clocks, or calibrate the driver's latency"),
    "frozen": ("the image has not changed for {figure:.1f} s, at most {limit:.1f} s are allowed", "restart the camera"),
    "publishers": ("{figure:.0f} publishers, only {limit:.0f} is allowed", "stop the other driver"),
    "qos": ("not heard: {figure:.0f} publisher(s) offer another QoS than the recorder needs", "make them reliable"),
}


@dataclass(frozen=True)
class Finding:
    """A figure beyond its limit. kind: a key of FINDINGS."""

    topic: str
    kind: str
    figure: float
    limit: float

    @property
    def text(self) -> str:
        """For the operator: topic, figure, limit."""
        return f"{self.topic}: {FINDINGS[self.kind][0].format(figure=self.figure, limit=self.limit)}"

    @property
    def advice(self) -> str:
        return FINDINGS[self.kind][1]


@dataclass(frozen=True)
class StreamScore:
    """The figures of one stream over an episode, or over the last seconds of one.

    missing: estimated from stamp gaps that are a multiple of the period. lost: counted by the middleware's sequence
    numbers, between publisher and recorder. dropped: counted, between recorder and disk. repeated: images with the very
    content of the one before. ages: receive time minus stamp; late_share: of messages older than allowed, or from the
    future. skew_s: how far the stamps lie before (+) those of the state streams.
    """

    topic: str
    kind: StreamKind
    count: int
    rate_hz: float | None = None
    expected_rate_hz: float | None = None
    largest_gap_s: float | None = None
    jitter_s: float | None = None
    missing: int | None = None
    lost: int | None = None
    dropped: int = 0
    duplicates: int = 0
    repeated: int = 0
    frozen_s: float = 0.0
    backwards: int = 0
    unstamped: int = 0
    age_median_s: float | None = None
    age_p95_s: float | None = None
    age_max_s: float | None = None
    late_share: float | None = None
    skew_s: float | None = None

    @property
    def loss_share(self) -> float:
        """Share of the messages that the source sent, or should have sent, and that are not in the bag."""
        gone = max(self.missing or 0, self.lost or 0)
        return (gone + self.dropped) / max(1, self.count + gone)


@dataclass(frozen=True)
class WarningRecord:
    """A warning of an episode: how often it was raised, seconds into the episode at first, how long in all, at worst."""

    topic: str
    kind: str
    times: int
    first_s: float
    active_s: float
    worst: float
    limit: float


@dataclass(frozen=True)
class EpisodeAudit:
    """The audit of a finished episode. go is True when no figure of the whole episode is beyond its limit.

    time_base: what rates and gaps are measured by; `stamp` in simulated time, where receive times mean nothing.
    idle_share: of the episode, in which the tool neither moved nor turned; None when its pose was not seen.
    """

    go: bool
    reasons: tuple[str, ...]
    duration_s: float
    time_base: Literal["receive", "stamp"]
    idle_share: float | None
    streams: tuple[StreamScore, ...]
    warnings: tuple[WarningRecord, ...]

    @property
    def verdict(self) -> str:
        return "go" if self.go else "no-go"

    def stream(self, topic: str) -> StreamScore:
        """The score of one topic; raises KeyError when it was not audited."""
        for score in self.streams:
            if score.topic == topic:
                return score
        raise KeyError(topic)

    def to_json(self) -> str:
        return json.dumps(to_mapping(self), sort_keys=True)


def audit_from_json(text: str, where: str) -> EpisodeAudit:
    """The inverse of EpisodeAudit.to_json. Raises DataError or ConfigError naming `where`."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: the audit is not valid JSON: {error}") from error
    return from_mapping(EpisodeAudit, data, where)
