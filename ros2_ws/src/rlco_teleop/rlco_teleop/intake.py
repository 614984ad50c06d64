"""Which messages of the graph become records of an episode, and with which times. Pure.

State streams keep their newest message since the last reset: the pre-roll, so that an episode holds the observation it
started from. Commands have none: what was commanded before the start is not the episode's.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from rlco_teleop.bags import header_stamp_ns
from rlco_teleop.recording import Recorded


class Intake:
    """Dates serialised messages. `msgtypes`: recorded topics with their types; `commands`: those without pre-roll.

    Log times are the node's clock at arrival. In simulated time (`now_ns` None) that clock would only be as new as the
    last /clock message handled, so there the header stamps are the time, and without a header the newest stamp seen:
    the same run gives the same times. The gate sends the unstamped gripper command right before its target pose; it is
    kept until that pose comes and gets its times.
    """

    def __init__(self, msgtypes: Mapping[str, str], commands: set[str], gripper_topic: str, target_topic: str):
        self._msgtypes = dict(msgtypes)
        self._commands = commands
        self._gripper_topic, self._target_topic = gripper_topic, target_topic
        self._newest: dict[str, bytes] = {}
        self.newest_stamp_ns = 0        # of all streams
        self._newest_stamps: dict[str, int] = {}
        self._start_ns = 0
        self._grippers: deque[Recorded] = deque()

    def missing(self, topics: list[str]) -> list[str]:
        """Those of the topics that have not delivered since the last reset."""
        return [topic for topic in topics if topic not in self._newest]

    def reset(self, topic: str, event: bytes, start_ns: int) -> None:
        """A new episode: what is older than its first observation's stamp (0: unknown) belongs to another one.

        The event itself is part of the pre-roll.
        """
        kept = {other: data for other, data in self._newest.items() if start_ns and self._stamp(other, data) >= start_ns}
        self._newest = {topic: event, **kept}
        self._start_ns = start_ns

    def forget(self) -> None:
        self._newest.clear()

    def take(self, topic: str, data: bytes, now_ns: int | None, is_state: bool = True) -> list[Recorded]:
        """The records that this message completes: none, itself, or a gripper command and its pose."""
        if is_state and topic not in self._commands:
            if now_ns is None and self._newest.get(topic) == data:
                return []       # a simulator standing still shows its tick again to whoever joins
            if self._stamp(topic, data) >= self._start_ns:
                self._newest[topic] = data
        record = self._dated(topic, data, now_ns)
        if topic == self._gripper_topic:
            self._grippers.append(record)
            return []
        if topic == self._target_topic and self._grippers:
            return [replace(self._grippers.popleft(), log_ns=record.log_ns, publish_ns=record.publish_ns), record]
        return [record]

    def preroll(self, now_ns: int | None) -> list[Recorded]:
        """The state streams' newest messages, dated as if they arrived now; starts an episode."""
        self._grippers.clear()
        return [self._dated(topic, data, now_ns) for topic, data in self._newest.items()]

    def lacks_command(self, command_topic: str, state_topic: str, period_ns: int) -> bool:
        """Lock step: the newest state is later than the episode's first, and the command of the tick before it has not come."""
        tick_ns = self._newest_stamps.get(state_topic, 0) - period_ns
        return tick_ns >= max(self._start_ns, 1) and self._newest_stamps.get(command_topic, 0) < tick_ns

    def _dated(self, topic: str, data: bytes, now_ns: int | None) -> Recorded:
        stamp_ns = header_stamp_ns(self._msgtypes[topic], data)
        self.newest_stamp_ns = max(self.newest_stamp_ns, stamp_ns or 0)
        self._newest_stamps[topic] = max(self._newest_stamps.get(topic, 0), stamp_ns or 0)
        log_ns = (stamp_ns or self.newest_stamp_ns) if now_ns is None else now_ns
        return Recorded(topic, log_ns, stamp_ns or log_ns, data, stamp_ns)

    def _stamp(self, topic: str, data: bytes) -> int:
        return header_stamp_ns(self._msgtypes[topic], data) or 0
