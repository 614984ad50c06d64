"""Live audit of an episode while it is recorded: every stream against its limits, warnings at once, a verdict at the end. Pure.

In simulated time receive times mean nothing: rates and gaps are those of the stamps, there are no ages, and skew is the
distance to the nearest stamp of a state stream. In real time skew is the difference of the ages on arrival, without the
part that the load of the machine adds.
"""

import zlib
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from rlco_common.messages import pose_from_msg
from rlco_common.pose import Pose, delta_between
from rlco_teleop.audit_report import EpisodeAudit, Finding, StreamScore, WarningRecord
from rlco_teleop.bags import typestore
from rlco_teleop.recording import Recorded
from rlco_teleop.stream_meter import NANOSECONDS, PeriodLearner, StreamMeter, StreamSpec

TOOL_PERIOD_S = 0.05            # the tool pose is decoded this often
_GAP_PERIODS = 1.5              # a gap below this many periods is none, whatever the contract says
_CHECK_NS = 200_000_000         # simulated time between two checks
_HASHED_BYTES = 4096
_HEADER_BYTES = 12              # CDR encapsulation and stamp, which differ between equal images
_IDLE_M, _IDLE_RAD, _IDLE_S = 0.002, 0.02, 0.5
_TIME_TOLERANCE_S = 1e-6
_FEWEST, _SHORTEST_S = 8, 0.5   # fewer messages, or a shorter stretch of them, say nothing about rates and shares


@dataclass(frozen=True)
class AuditLimits:
    """When a figure becomes a warning. Zero: derived from the contract's max age of the stream.

    max_gap_s: the max age. max_jitter_s: a quarter of it. max_skew_s: 15 % of the smallest. Shares are in [0, 1].
    frozen: an image that stays the same this long, while the tool moved this far; where frozen_needs_motion is false
    (a real camera, whose images always differ by noise) without any motion too.
    """

    window_s: float = 2.0
    min_rate: float = 0.9
    max_gap_s: float = 0.0
    max_jitter_s: float = 0.0
    max_loss: float = 0.05
    max_duplicates: float = 0.05
    max_late: float = 0.1
    max_skew_s: float = 0.0
    max_ahead_s: float = 0.02
    frozen_after_s: float = 0.5
    frozen_motion_m: float = 0.02
    frozen_needs_motion: bool = False
    allow_unstamped: bool = False

    def gap_s(self, spec: StreamSpec, period_s: float | None) -> float:
        return max(self.max_gap_s or spec.max_age_s, _GAP_PERIODS * (period_s or 0.0)) + _TIME_TOLERANCE_S

    def jitter_s(self, spec: StreamSpec) -> float:
        return self.max_jitter_s or 0.25 * spec.max_age_s

    def skew_s(self, specs: Iterable[StreamSpec]) -> float:
        return self.max_skew_s or 0.15 * min((spec.max_age_s for spec in specs if spec.periodic), default=0.0)


@dataclass(frozen=True)
class Change:
    """A warning that was raised, or that is over."""

    finding: Finding
    raised: bool


def content_hash(data: bytes) -> int:
    """A cheap hash of an image message's content, from a subsample of its bytes; the stamp is left out."""
    return zlib.crc32(data[_HEADER_BYTES :: max(1, len(data) // _HASHED_BYTES)])


def judge(score: StreamScore, spec: StreamSpec, limits: AuditLimits, skew_limit_s: float) -> list[Finding]:
    """What is beyond its limit in the figures of a stream, over an episode or over its last seconds."""
    broken = []

    def check(kind: str, figure: float | None, limit: float, beyond: bool) -> None:
        if figure is not None and beyond:
            broken.append(Finding(spec.topic, kind, figure, limit))

    if spec.periodic:
        gap_s = limits.gap_s(spec, 1 / score.expected_rate_hz if score.expected_rate_hz else None)
        check("gap", score.largest_gap_s, gap_s, (score.largest_gap_s or 0.0) > gap_s)
        if score.count >= _FEWEST and score.count >= _SHORTEST_S * (score.rate_hz or 0.0):
            least_hz = limits.min_rate * (score.expected_rate_hz or 0.0)
            check("rate", score.rate_hz, least_hz, (score.rate_hz or least_hz) < least_hz - _TIME_TOLERANCE_S)
            jitter_s, repeats = limits.jitter_s(spec), score.duplicates / score.count
            check("jitter", score.jitter_s, jitter_s, (score.jitter_s or 0.0) > jitter_s)
            check("loss", score.loss_share, limits.max_loss, score.loss_share > limits.max_loss)
            check("duplicates", repeats, limits.max_duplicates, repeats > limits.max_duplicates)
            check("age", score.late_share, limits.max_late, (score.late_share or 0.0) > limits.max_late)
        check("skew", score.skew_s, skew_limit_s, abs(score.skew_s or 0.0) > skew_limit_s)
        check("frozen", score.frozen_s, limits.frozen_after_s, score.frozen_s > limits.frozen_after_s)
    check("backwards", score.backwards, 0, score.backwards > 0)
    check("unstamped", score.unstamped, 0, score.unstamped > 0 and not limits.allow_unstamped)
    return broken


class Audit:
    """The audit of one episode. Feed it every message with `take`, ask `changes` for warnings, `finish` it once.

    periods_s: periods known so far, by topic. in_real_time: False when the node's time is simulated. start_ns: node time,
    or in simulated time the newest stamp. tool_topic: the stream of tool poses.
    """

    def __init__(self, specs: Iterable[StreamSpec], limits: AuditLimits, *, periods_s: Mapping[str, float | None],
                 in_real_time: bool, start_ns: int, tool_topic: str):
        self._specs = {spec.topic: spec for spec in specs}
        self._limits = limits
        self._in_real_time = in_real_time
        self._start_ns = self._newest_ns = self._checked_ns = start_ns
        self._meters = {
            topic: StreamMeter(spec, _known_period(spec, periods_s), window_s=limits.window_s,
                               max_ahead_s=limits.max_ahead_s, in_real_time=in_real_time)
            for topic, spec in self._specs.items()}
        self._freezes = {topic: _Freeze(limits) for topic, spec in self._specs.items() if spec.kind == "camera"}
        self._tool_topic = tool_topic
        self._tool = _Tool()
        self._lost: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._outside: list[Finding] = []
        self._stamps: dict[str, list[int]] = {topic: [] for topic in self._specs}   # simulated time: for skew
        self._skew_limit_s = limits.skew_s(self._specs.values())
        self._warnings = _Warnings(start_ns)
        self._changes: list[Change] = []
        self._recent: dict[tuple[str, str], deque] = {}

    # -- inputs

    def take(self, record: Recorded, *, preroll: bool = False) -> None:
        """A recorded message. preroll: it arrived before the episode began."""
        spec = self._specs.get(record.topic)
        if spec is None:
            return
        content = content_hash(record.data) if spec.kind == "camera" else None
        if record.topic == self._tool_topic and self._tool.wants(record.publish_ns):
            message = typestore().deserialize_cdr(record.data, "geometry_msgs/msg/PoseStamped")
            self._tool.see(record.publish_ns, pose_from_msg(message))
        self.observe(record.topic, record.log_ns, record.stamp_ns or 0, content, preroll=preroll)

    def observe(self, topic: str, log_ns: int, stamp_ns: int, content: int | None = None, *, preroll: bool = False) -> None:
        """The same, in numbers: arrival, header stamp (0: none), hash of an image's content."""
        meter = self._meters[topic]
        before = meter.newest
        sample = meter.observe(log_ns, stamp_ns, preroll=preroll)
        if topic in self._freezes and not sample.duplicate:
            previous_ns = sample.time_ns if before is None else before.time_ns
            sample.repeated = self._freezes[topic].see(previous_ns, sample.time_ns, content, self._tool.position)
        meter.count(sample)
        if self._in_real_time:
            return
        if stamp_ns:
            self._stamps[topic].append(stamp_ns)
        self._newest_ns = max(self._newest_ns, sample.time_ns)

    def lose(self, topic: str, count: int) -> None:
        """The middleware's sequence numbers tell of messages of a topic that did not arrive."""
        if topic in self._specs:
            self._lost[topic] += count

    def learn(self, topic: str, period_s: float | None) -> None:
        """The period of a stream, once it is known."""
        meter = self._meters.get(topic)
        if meter is not None and meter.period_s is None and period_s is not None:
            meter.learn_period(period_s)

    def report(self, findings: list[Finding], dropped: Mapping[str, int]) -> None:
        """What was found out elsewhere: conditions of the graph at present, and messages dropped so far, by topic."""
        self._outside = findings
        self._dropped = Counter(dropped)

    # -- warnings

    def check(self, now_ns: int | None) -> None:
        """Compare the last seconds with the limits. now_ns: node time, None in simulated time."""
        now_ns = self._newest_ns if now_ns is None else now_ns
        self._checked_ns = now_ns
        findings = [*self._outside, *self._new_drops(now_ns)]
        tallies = {topic: meter.window(now_ns) for topic, meter in self._meters.items()}
        reference_s = self._reference_age_s(tallies)
        stamps = {} if self._in_real_time else {topic: meter.recent_times() for topic, meter in self._meters.items()}
        for topic, meter in self._meters.items():
            spec, tally = self._specs[topic], tallies[topic]
            score = tally.score(spec, lost=self._new_losses(topic, now_ns), frozen_s=self._frozen_s(topic),
                                skew_s=self._skew_s(topic, tally, reference_s, stamps))
            broken = judge(score, spec, self._limits, self._skew_limit_s)
            silence_s = meter.silence_s(now_ns, self._start_ns)
            limit_s = self._limits.gap_s(spec, meter.period_s)
            if spec.periodic and silence_s > limit_s:
                broken = [*(finding for finding in broken if finding.kind != "gap"),
                          Finding(topic, "silent", silence_s, limit_s)]
            findings += broken
        self._changes += self._warnings.update(findings, now_ns)

    def check_simulated(self) -> None:
        """The same in simulated time, once enough of it has passed. To be called when all that arrived was taken, for a
        stream whose messages of the same tick still wait would seem late."""
        if not self._in_real_time and self._newest_ns - self._checked_ns >= _CHECK_NS:
            self.check(None)

    def changes(self) -> list[Change]:
        """Warnings raised and over since the last call."""
        changes, self._changes = self._changes, []
        return changes

    @property
    def warnings(self) -> list[Finding]:
        """The warnings that hold at present."""
        return self._warnings.present

    def _new_drops(self, now_ns: int) -> list[Finding]:
        return [Finding(topic, "queue", recent, 0) for topic, total in self._dropped.items()
                if (recent := self._within_window((topic, "dropped"), total, now_ns))]

    def _new_losses(self, topic: str, now_ns: int) -> int:
        return self._within_window((topic, "lost"), self._lost[topic], now_ns)

    def _within_window(self, key: tuple[str, str], total: int, now_ns: int) -> int:
        """By how much a count grew within the window."""
        history = self._recent.setdefault(key, deque([(self._start_ns, 0)]))
        history.append((now_ns, total))
        while len(history) > 1 and history[1][0] < now_ns - self._limits.window_s * NANOSECONDS:
            history.popleft()
        return total - history[0][1]

    # -- figures across streams

    def _reference_age_s(self, tallies) -> float | None:
        """The least age of the state streams, on arrival and without load."""
        floors = [tally.floor_s for topic, tally in tallies.items() if self._specs[topic].kind == "state"]
        return min((floor for floor in floors if floor is not None), default=None)

    def _skew_s(self, topic: str, tally, reference_s: float | None, stamps: Mapping[str, list[int]]) -> float | None:
        """How far a stream's stamps lie before those of the state streams; None when that cannot be told."""
        if not self._specs[topic].periodic:
            return None
        if self._in_real_time:
            return None if tally.floor_s is None or reference_s is None else tally.floor_s - reference_s
        others = sorted(stamp for other, times in stamps.items() for stamp in times
                        if self._specs[other].kind == "state" and other != topic)
        own = [stamp for stamp in stamps[topic] if others and stamp <= others[-1]]     # the rest of a tick may be under way
        if not own:
            return None
        return median(_nearest(others, stamp) - stamp for stamp in own) / NANOSECONDS

    def _frozen_s(self, topic: str) -> float:
        return self._freezes[topic].present_s if topic in self._freezes else 0.0

    # -- the end

    def finish(self, now_ns: int | None, reasons: Iterable[str] = ()) -> EpisodeAudit:
        """The audit of the whole episode. reasons: what else speaks against it."""
        self.check(now_ns)
        end_ns = self._newest_ns if now_ns is None else now_ns
        tallies = {topic: meter.total() for topic, meter in self._meters.items()}
        reference_s = self._reference_age_s(tallies)
        scores, findings = [], []
        for topic, spec in self._specs.items():
            score = self._total_score(topic, tallies[topic], reference_s, end_ns)
            scores.append(score)
            findings += judge(score, spec, self._limits, self._skew_limit_s)
            if spec.periodic and not score.count:
                findings.append(Finding(topic, "silent", (end_ns - self._start_ns) / NANOSECONDS, 0.0))
        outside = [Finding(record.topic, record.kind, record.worst, record.limit)
                   for record in self._warnings.records(end_ns) if record.kind in ("qos", "publishers")]
        reasons = (*reasons, *(finding.text for finding in (*findings, *outside)))
        return EpisodeAudit(
            go=not reasons, reasons=reasons, duration_s=(end_ns - self._start_ns) / NANOSECONDS,
            time_base="receive" if self._in_real_time else "stamp", idle_share=self._tool.idle_share,
            streams=tuple(scores), warnings=tuple(self._warnings.records(end_ns)))

    def _total_score(self, topic: str, tally, reference_s: float | None, end_ns: int) -> StreamScore:
        spec, meter = self._specs[topic], self._meters[topic]
        score = tally.score(
            spec, lost=self._lost[topic], dropped=self._dropped[topic],
            skew_s=self._skew_s(topic, tally, reference_s, self._stamps),
            frozen_s=self._freezes[topic].longest_s if topic in self._freezes else 0.0)
        silence_s = meter.silence_s(end_ns, self._start_ns)
        if spec.periodic and silence_s > self._limits.gap_s(spec, meter.period_s):      # it ended before the episode did
            score = replace(score, largest_gap_s=max(score.largest_gap_s or 0.0, silence_s))
        return score


class Auditor:
    """What outlives an episode: learned periods, and sequence numbers. It makes the audits.

    learn_s: how much of a stream its period is learned from.
    """

    def __init__(self, specs: Iterable[StreamSpec], tool_topic: str, *, learn_s: float = 2.0):
        self.specs = tuple(specs)
        self._tool_topic = tool_topic
        self._learners = {spec.topic: PeriodLearner(learn_s) for spec in self.specs if spec.periodic}
        self._sequences: dict[str, int] = {}
        self._alone: set[str] = set()

    def begin(self, limits: AuditLimits, *, in_real_time: bool, start_ns: int) -> Audit:
        periods_s = {topic: learner.period_s for topic, learner in self._learners.items()}
        return Audit(self.specs, limits, periods_s=periods_s, in_real_time=in_real_time, start_ns=start_ns,
                     tool_topic=self._tool_topic)

    def publishers(self, counts: Mapping[str, int]) -> None:
        """How many publishers each topic has: sequence numbers tell of losses only where it is one."""
        self._alone = {topic for topic, count in counts.items() if count == 1}

    def arrived(self, topic: str, sequence: int | None, audit: Audit | None) -> None:
        """A message was received, with the publisher's sequence number where the middleware tells it."""
        before = self._sequences.get(topic)
        if sequence is None:
            return
        self._sequences[topic] = sequence
        if audit is not None and topic in self._alone and before is not None and sequence > before + 1:
            audit.lose(topic, sequence - before - 1)

    def learn(self, record: Recorded, audit: Audit | None) -> None:
        """Measure the period of a stream; between episodes too."""
        learner = self._learners.get(record.topic)
        if learner is None:
            return
        learner.add(record.stamp_ns or record.log_ns)
        if audit is not None:
            audit.learn(record.topic, learner.period_s)


class _Freeze:
    """Whether a camera shows the same image again and again."""

    def __init__(self, limits: AuditLimits):
        self._limits = limits
        self._content: int | None = None
        self._since_ns = 0
        self._origin: np.ndarray | None = None
        self._moved = False
        self.present_s = self.longest_s = 0.0

    def see(self, previous_ns: int, time_ns: int, content: int | None, tool: np.ndarray | None) -> bool:
        """An image; True when it has the content of the one before. tool: [3] position, metres, None while unknown."""
        if content is None or content != self._content:
            self._content, self._moved, self.present_s = content, False, 0.0
            self._since_ns, self._origin = time_ns, tool
            return False
        if self._origin is None:
            self._origin = tool
        elif tool is not None:
            self._moved |= bool(np.linalg.norm(tool - self._origin) >= self._limits.frozen_motion_m)
        if self._moved or not self._limits.frozen_needs_motion:
            self.present_s = (time_ns - self._since_ns) / NANOSECONDS
            self.longest_s = max(self.longest_s, self.present_s)
        return True


class _Tool:
    """Where the tool is, and how much of the time it rests."""

    def __init__(self):
        self._pose: Pose | None = None
        self._anchor: Pose | None = None
        self._anchor_ns = self._first_ns = self._last_ns = 0
        self._idle_ns = 0

    @property
    def position(self) -> np.ndarray | None:
        return None if self._pose is None else self._pose.position

    @property
    def idle_share(self) -> float | None:
        span_ns = self._last_ns - self._first_ns
        return (self._idle_ns + self._resting_ns()) / span_ns if span_ns > 0 else None

    def wants(self, time_ns: int) -> bool:
        return self._pose is None or abs(time_ns - self._last_ns) >= TOOL_PERIOD_S * NANOSECONDS

    def see(self, time_ns: int, pose: Pose) -> None:
        if self._anchor is None:
            self._anchor, self._anchor_ns, self._first_ns = pose, time_ns, time_ns
        elif _moved(self._anchor, pose):
            self._idle_ns += self._resting_ns()
            self._anchor, self._anchor_ns = pose, time_ns
        self._pose, self._last_ns = pose, time_ns

    def _resting_ns(self) -> int:
        rested_ns = self._last_ns - self._anchor_ns
        return rested_ns if rested_ns >= _IDLE_S * NANOSECONDS else 0


class _Warnings:
    """Which warnings hold, and the record of those of an episode."""

    def __init__(self, start_ns: int):
        self._start_ns = start_ns
        self._present: dict[tuple[str, str], tuple[Finding, int]] = {}
        self._records: dict[tuple[str, str], WarningRecord] = {}

    @property
    def present(self) -> list[Finding]:
        return [finding for finding, _ in self._present.values()]

    def update(self, findings: list[Finding], now_ns: int) -> list[Change]:
        found = {(finding.topic, finding.kind): finding for finding in findings}
        changes = [Change(finding, True) for key, finding in found.items() if key not in self._present]
        over = [key for key in self._present if key not in found]
        changes += [Change(self._present[key][0], False) for key in over]
        for key in over:
            self._close(key, now_ns)
        for key, finding in found.items():
            _, since_ns = self._present.get(key, (finding, now_ns))
            self._note(key, finding, now_ns)
            self._present[key] = (finding, since_ns)
        return changes

    def records(self, end_ns: int) -> list[WarningRecord]:
        """Those of the whole episode, as if it ended now."""
        for key, (finding, since_ns) in self._present.items():
            record = self._records[key]
            self._records[key] = replace(record, active_s=record.active_s + (end_ns - since_ns) / NANOSECONDS)
            self._present[key] = (finding, end_ns)
        return list(self._records.values())

    def _note(self, key, finding: Finding, now_ns: int) -> None:
        record = self._records.get(key) or WarningRecord(
            finding.topic, finding.kind, 0, (now_ns - self._start_ns) / NANOSECONDS, 0.0, finding.figure, finding.limit)
        worse = min if finding.kind == "rate" else max
        self._records[key] = replace(record, times=record.times + (key not in self._present),
                                     worst=worse(record.worst, finding.figure, key=abs))

    def _close(self, key, now_ns: int) -> None:
        _, since_ns = self._present.pop(key)
        record = self._records[key]
        self._records[key] = replace(record, active_s=record.active_s + (now_ns - since_ns) / NANOSECONDS)


def _known_period(spec: StreamSpec, learned_s: Mapping[str, float | None]) -> float | None:
    if not spec.periodic:
        return None
    return 1 / spec.expected_rate_hz if spec.expected_rate_hz else learned_s.get(spec.topic)


def _nearest(ordered: list[int], value: int) -> int:
    index = bisect_left(ordered, value)
    return min(ordered[max(0, index - 1) : index + 1], key=lambda other: abs(other - value))


def _moved(anchor: Pose, pose: Pose) -> bool:
    delta = delta_between(anchor, pose)
    return bool(np.linalg.norm(delta[:3]) > _IDLE_M or np.linalg.norm(delta[3:]) > _IDLE_RAD)
