"""Measures one stream while it is recorded: rate, gaps, jitter, stamps, age, loss. Pure.

A sample's time is its header stamp, because its arrival says more about the receiver than about the stream. A sample
without a stamp is timed by its arrival and counted.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass
from statistics import median

from rlco_teleop.audit_report import StreamKind, StreamScore

NANOSECONDS = 1_000_000_000
MULTIPLE_TOLERANCE = 0.25       # of a period: a gap this close to a multiple of it is taken for missing samples
_DRIFT_TOLERANCE = 0.01         # and this much more for every period of the gap, as the period is not known exactly
_MIN_INTERVALS = 20             # to learn a period from
_FASTER = 0.8                   # a stream this much faster than what was learned is learned anew
_MOST_AGE_MS = 10_000           # ages are counted by the millisecond up to here
FLOOR_QUANTILE = 0.1            # the age without the load of the machine
FLOOR_COUNT = 5                 # of fewer messages all may have met that load


@dataclass(frozen=True)
class StreamSpec:
    """A stream to audit. Camera and state streams are periodic; a command comes when it comes, its max_age_s is not used.

    max_age_s: the contract's promise. expected_rate_hz: None where it has to be learned.
    """

    topic: str
    kind: StreamKind
    max_age_s: float
    expected_rate_hz: float | None = None

    @property
    def periodic(self) -> bool:
        return self.kind != "command"


class PeriodLearner:
    """The period of a stream in seconds: the median interval of its first seconds, or of any later, faster ones.

    Faster, because what a stream reached once is what it can be expected to reach.
    """

    def __init__(self, learn_s: float):
        self.period_s: float | None = None
        self._learn_s = learn_s
        self._last_ns: int | None = None
        self._intervals: list[float] = []

    def add(self, time_ns: int) -> None:
        if self._last_ns is not None and time_ns > self._last_ns:
            self._intervals.append((time_ns - self._last_ns) / NANOSECONDS)
        self._last_ns = time_ns
        if len(self._intervals) >= _MIN_INTERVALS and sum(self._intervals) >= self._learn_s:
            period_s = median(self._intervals)
            if self.period_s is None or period_s < _FASTER * self.period_s:
                self.period_s = period_s
            self._intervals.clear()


@dataclass(slots=True)
class Sample:
    """One message as far as the audit is concerned. interval_s: since the sample before, None where that has no meaning."""

    time_ns: int
    log_ns: int
    age_s: float | None
    interval_s: float | None = None
    unstamped: bool = False
    duplicate: bool = False
    backwards: bool = False
    fills_gap: bool = False         # it goes back into the last gap: what was taken for missing is only late
    repeated: bool = False


class Tally:
    """Sums over samples, with a known period (seconds) or without (None)."""

    def __init__(self, period_s: float | None, max_age_s: float, max_ahead_s: float):
        self.count = self.unstamped = self.duplicates = self.backwards = self.repeated = 0
        self.missing = 0
        self._period_s = period_s
        self._max_age_s, self._max_ahead_s = max_age_s, max_ahead_s
        self._span_s = 0.0
        self._intervals = 0
        self._residuals = 0.0
        self._largest_s: float | None = None
        self._late = 0
        self._ages: Counter[int] = Counter()

    def add(self, sample: Sample) -> None:
        self.count += 1
        self.unstamped += sample.unstamped
        self.duplicates += sample.duplicate
        self.backwards += sample.backwards
        self.repeated += sample.repeated
        self.missing -= sample.fills_gap and self.missing > 0
        if sample.age_s is not None:
            self._late += sample.age_s > self._max_age_s or sample.age_s < -self._max_ahead_s
            self._ages[round(1000 * max(-_MOST_AGE_MS / 1000, min(_MOST_AGE_MS / 1000, sample.age_s)))] += 1
        if sample.interval_s is not None:
            self._add_interval(sample.interval_s, estimate_missing=not sample.unstamped)

    def _add_interval(self, interval_s: float, estimate_missing: bool) -> None:
        self._intervals += 1
        self._span_s += interval_s
        self._largest_s = max(self._largest_s or 0.0, interval_s)
        if self._period_s is None:
            return
        steps = max(1, round(interval_s / self._period_s))
        residual_s = interval_s - steps * self._period_s
        self._residuals += residual_s**2
        tolerance_s = max(MULTIPLE_TOLERANCE, _DRIFT_TOLERANCE * steps) * self._period_s
        if estimate_missing and steps > 1 and abs(residual_s) <= tolerance_s:
            self.missing += steps - 1

    @property
    def floor_s(self) -> float | None:
        """The age that a message has without the load of the machine; None with fewer than FLOOR_COUNT ages."""
        return self._age_quantile(FLOOR_QUANTILE) if self._ages.total() >= FLOOR_COUNT else None

    def score(self, spec: StreamSpec, **more) -> StreamScore:
        known = self._period_s is not None
        return StreamScore(
            spec.topic, spec.kind, self.count, **more,
            rate_hz=self._intervals / self._span_s if self._span_s > 0 else None,
            expected_rate_hz=1 / self._period_s if known else None,
            largest_gap_s=self._largest_s,
            jitter_s=math.sqrt(self._residuals / self._intervals) if known and self._intervals else None,
            missing=self.missing if known else None,
            duplicates=self.duplicates, repeated=self.repeated, backwards=self.backwards, unstamped=self.unstamped,
            age_median_s=self._age_quantile(0.5), age_p95_s=self._age_quantile(0.95), age_max_s=self._age_quantile(1.0),
            late_share=self._late / self._ages.total() if self._ages else None,
        )

    def _age_quantile(self, share: float) -> float | None:
        if not self._ages:
            return None
        wanted, seen = share * (self._ages.total() - 1), 0
        for age_ms in sorted(self._ages):
            seen += self._ages[age_ms]
            if seen > wanted:
                return age_ms / 1000
        raise AssertionError("a quantile beyond the last value")


class StreamMeter:
    """One stream of one episode. `observe` every message; `window` and `total` tell figures.

    period_s: None while unknown; set it as soon as it is. in_real_time: whether receive times mean anything.
    """

    def __init__(self, spec: StreamSpec, period_s: float | None, *, window_s: float, max_ahead_s: float, in_real_time: bool):
        self.spec = spec
        self.newest: Sample | None = None
        self._window_ns = round(window_s * NANOSECONDS)
        self._max_ahead_s = max_ahead_s
        self._in_real_time = in_real_time
        self._period_s = period_s
        self._window: deque[Sample] = deque()
        self._undecided: list[Sample] = []      # until the period is known
        self._total = self._tally()
        self._latest: Sample | None = None      # the sample with the latest time so far
        self._gap = (0, 0)

    @property
    def period_s(self) -> float | None:
        return self._period_s

    def learn_period(self, period_s: float) -> None:
        """Tell a period that was unknown until now; what was observed before is measured by it too."""
        self._period_s = period_s
        self._total = self._tally()
        for sample in self._undecided:
            self._total.add(sample)
        self._undecided.clear()

    def observe(self, log_ns: int, stamp_ns: int, *, preroll: bool = False) -> Sample:
        """A message with its arrival and header stamp (0: it has none). preroll: it arrived before the episode began."""
        if stamp_ns:
            age_s = (log_ns - stamp_ns) / NANOSECONDS if self._in_real_time and not preroll else None
            sample = Sample(stamp_ns, log_ns, age_s)
            self._order(sample)
        else:
            sample = Sample(log_ns, log_ns, None, unstamped=True)
            if self.newest is not None and self.newest.unstamped and log_ns >= self.newest.log_ns:
                sample.interval_s = (log_ns - self.newest.log_ns) / NANOSECONDS
        self.newest = sample
        self._window.append(sample)
        return sample

    def count(self, sample: Sample) -> None:
        """Add an observed sample, complete by now, to the episode's figures."""
        if self._period_s is None and self.spec.periodic:
            self._undecided.append(sample)
        self._total.add(sample)

    def _order(self, sample: Sample) -> None:
        """Place a stamped sample in time: an interval, a repeated stamp, or a step back."""
        before, latest = self.newest, self._latest
        if before is not None and not before.unstamped:
            if sample.time_ns == before.time_ns:
                sample.duplicate = True
            elif sample.time_ns < before.time_ns:
                sample.backwards = True
                sample.fills_gap = self._gap[0] < sample.time_ns < self._gap[1]
            else:
                # after a single sample out of order, time goes on from the latest one
                base = latest if before.backwards and sample.time_ns > latest.time_ns else before
                sample.interval_s = (sample.time_ns - base.time_ns) / NANOSECONDS
                if self._period_s is not None and sample.interval_s > 1.5 * self._period_s:
                    self._gap = (base.time_ns, sample.time_ns)
        if latest is None or sample.time_ns >= latest.time_ns:
            self._latest = sample

    def window(self, now_ns: int) -> Tally:
        """The sums over the last seconds before `now_ns`, which is an arrival time, or in simulated time a stamp."""
        horizon = now_ns - self._window_ns
        while self._window and self._when(self._window[0]) < horizon:
            self._window.popleft()
        tally = self._tally()
        for sample in self._window:
            tally.add(sample)
        return tally

    def total(self) -> Tally:
        """The sums over the episode. A period that was not learned yet is the median interval."""
        intervals = [sample.interval_s for sample in self._undecided if sample.interval_s is not None]
        if self._period_s is None and len(intervals) >= 3:
            self.learn_period(median(intervals))
        return self._total

    def silence_s(self, now_ns: int, start_ns: int) -> float:
        """Seconds since the newest message, or since the start of the episode."""
        return (now_ns - (start_ns if self.newest is None else self._when(self.newest))) / NANOSECONDS

    def recent_times(self) -> list[int]:
        """The stamps of the last seconds, nanoseconds, in the order of arrival."""
        return [sample.time_ns for sample in self._window if not sample.unstamped]

    def _when(self, sample: Sample) -> int:
        return sample.log_ns if self._in_real_time else sample.time_ns

    def _tally(self) -> Tally:
        return Tally(self._period_s, self.spec.max_age_s, self._max_ahead_s)
