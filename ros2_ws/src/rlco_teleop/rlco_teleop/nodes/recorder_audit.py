"""The recorder's side of the audit: its limits as parameters, what it hears of the graph, its warnings in log and status."""

import time
from collections.abc import Iterable, Mapping

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node

from rlco_common.errors import ConfigError
from rlco_common.ros import declare
from rlco_teleop.audit import Audit, AuditLimits, Auditor
from rlco_teleop.audit_report import EpisodeAudit, Finding
from rlco_teleop.nodes.recorded_topics import RecordedTopics
from rlco_teleop.recording import Recorded

GRAPH_PERIOD_S = 0.5
LOG_PERIOD_S = 5.0      # the same warning is logged this often at most
STATUS_NAME = "recorder: audit"


class RecorderAudit:
    """Audits what the recorder receives. Without an episode it learns the streams' periods."""

    def __init__(self, node: Node):
        self._node = node
        self._audit: Audit | None = None
        self._auditor: Auditor | None = None
        self._topics: RecordedTopics | None = None
        self._looked_s = 0.0
        self._outside: list[Finding] = []
        self._logged: dict[tuple[str, str, bool], float] = {}
        self._last: EpisodeAudit | None = None
        limits = AuditLimits()
        declare(node, "audit.expected_rates", "", "rates to expect, Hz, as 'TOPIC=RATE TOPIC=RATE'; those of other camera "
                "and state streams are learned")
        declare(node, "audit.learn_s", 2.0, "how much of a stream its period is learned from, s", low=0.1, high=60.0)
        for name, description, high in (
                ("window_s", "warnings judge the last so many seconds", 60.0),
                ("min_rate", "least rate, as a share of the expected one", 1.0),
                ("max_gap_s", "largest gap of a camera or state stream, s; 0: the contract's max age", 60.0),
                ("max_jitter_s", "scatter (RMS) of its intervals, s; 0: a quarter of the max age", 60.0),
                ("max_loss", "share of missing messages", 1.0),
                ("max_duplicates", "share of messages that repeat a stamp", 1.0),
                ("max_late", "share of messages that are older on arrival than the contract's max age", 1.0),
                ("max_ahead_s", "how far in the future a stamp may lie, s", 60.0),
                ("max_skew_s", "difference in time between streams, s; 0: 15 % of the smallest max age", 60.0),
                ("frozen_after_s", "how long an image may stay the same, s", 3600.0),
                ("frozen_motion_m", "in simulation, an image may stay the same until the tool moved this far, m", 10.0)):
            declare(node, f"audit.{name}", getattr(limits, name), description, low=0.0, high=high)
        declare(node, "audit.allow_unstamped", False, "accept messages without a stamp; they are dated by their arrival")

    def activate(self, topics: RecordedTopics) -> None:
        """Start over with learning. Raises ConfigError or RecordingError for expected_rates that cannot be."""
        rates_hz = _rates(self._value("expected_rates"))
        self._topics = topics
        self._auditor = Auditor(topics.specs(rates_hz), tool_topic=topics.required[-1], learn_s=self._value("learn_s"))

    # -- an episode

    def begin(self, start_ns: int, in_real_time: bool, domain: str) -> None:
        names = ("window_s", "min_rate", "max_gap_s", "max_jitter_s", "max_loss", "max_duplicates", "max_late",
                 "max_ahead_s", "max_skew_s", "frozen_after_s", "frozen_motion_m", "allow_unstamped")
        limits = AuditLimits(frozen_needs_motion=domain != "real", **{name: self._value(name) for name in names})
        self._audit = self._auditor.begin(limits, in_real_time=in_real_time, start_ns=start_ns)
        self._logged.clear()
        self._looked_s = 0.0

    def arrived(self, topic: str, sequence: int | None) -> None:
        """A message was received; sequence: the publisher's number of it."""
        self._auditor.arrived(topic, sequence, self._audit)

    def took(self, record: Recorded, *, preroll: bool = False) -> None:
        """A record goes into the episode, or would, if there was one."""
        if not preroll:
            self._auditor.learn(record, self._audit)
        if self._audit is not None:
            self._audit.take(record, preroll=preroll)

    def check(self, now_ns: int | None, dropped: Mapping[str, int]) -> bool:
        """Compare with the limits, and log what changed; True when anything did. now_ns: None in simulated time."""
        looked = time.monotonic() - self._looked_s >= GRAPH_PERIOD_S and self._look()
        if self._audit is None:
            return looked
        self._audit.report(self._outside, dropped)
        self._audit.check(now_ns)
        changes = self._audit.changes()
        for change in changes:
            self._log(change.finding, change.raised)
        return bool(changes)

    def check_simulated(self) -> None:
        """In simulated time, compare whenever enough of it has passed, however fast it passes."""
        if self._audit is not None:
            self._audit.check_simulated()

    def _look(self) -> bool:
        """Look at the graph; True when what is wrong with it changed."""
        self._looked_s = time.monotonic()
        self._auditor.publishers(self._topics.publisher_counts())
        before, self._outside = self._outside, self._topics.findings()
        if self._audit is None:
            for finding in self._outside:       # said before an episode starts, which it may prevent
                self._log(finding, True)
        return self._outside != before

    def finish(self, now_ns: int | None, dropped: Mapping[str, int], reasons: Iterable[str] = ()) -> EpisodeAudit:
        """The audit of the episode that ends now."""
        audit, self._audit = self._audit, None
        audit.report(self._outside, dropped)
        self._last = audit.finish(now_ns, reasons)
        log = self._node.get_logger()
        if self._last.go:
            log.info("audit: go")
        else:
            log.warning(f"audit: no-go; {'; '.join(self._last.reasons)}")
        return self._last

    def drop(self) -> None:
        """The episode is discarded."""
        self._audit = None

    def status(self) -> DiagnosticStatus:
        """For /diagnostics: one key `KIND TOPIC` per warning that holds; between episodes the verdict of the last one."""
        warnings = self._outside if self._audit is None else self._audit.warnings
        status = DiagnosticStatus(
            name=STATUS_NAME, hardware_id=self._node.get_name(),
            level=DiagnosticStatus.WARN if warnings else DiagnosticStatus.OK,
            message="; ".join(finding.text for finding in warnings) or "no warning",
            values=[KeyValue(key=f"{finding.kind} {finding.topic}", value=f"{finding.text}; {finding.advice}")
                    for finding in warnings])
        if self._audit is None and self._last is not None:
            status.values.append(KeyValue(key="last verdict", value=self._last.verdict))
            status.values += [KeyValue(key=f"last reason {number}", value=reason)
                              for number, reason in enumerate(self._last.reasons, 1)]
        return status

    def _log(self, finding: Finding, raised: bool) -> None:
        key, now_s = (finding.topic, finding.kind, raised), time.monotonic()
        if now_s - self._logged.get(key, -LOG_PERIOD_S) < LOG_PERIOD_S:
            return
        self._logged[key] = now_s
        if raised:
            self._node.get_logger().warning(f"{finding.text}; {finding.advice}")
        else:
            self._node.get_logger().info(f"{finding.topic}: {finding.kind} is over")

    def _value(self, name: str):
        return self._node.get_parameter(f"audit.{name}").value


def _rates(text: str) -> dict[str, float]:
    rates = {}
    for item in text.split():
        topic, _, rate = item.partition("=")
        try:
            rates[topic] = float(rate)
        except ValueError:
            rates[topic] = 0.0
        if rates[topic] <= 0:
            raise ConfigError(f"audit.expected_rates: '{item}' is not TOPIC=RATE with a rate in Hz")
    return rates
