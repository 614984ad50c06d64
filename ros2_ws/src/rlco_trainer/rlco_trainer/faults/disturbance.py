"""What a bad link, driver or clock does to a stream of messages. Pure: messages are known by their fields alone."""

import copy
import math
import random
from collections import deque

from rlco_common.errors import ConfigError

NANOSECONDS = 1_000_000_000
KINDS = {
    "drop": "this share of the messages is lost, evenly",
    "delay": "messages arrive this many seconds late",
    "freeze": "images keep the content of the first one; stamps go on",
    "reorder": "every two messages change places",
    "cut": "nothing arrives",
    "hold": "nothing arrives, until everything arrives at once at the end of the disturbance",
    "shift": "stamps are off by this many seconds",
    "shuffle": "joints come in another order in every message",
    "rename": "the last joint of every message has another name",
    "nan": "the first number of a twist, and of each action of a chunk, is not a number",
}
_NEED_AMOUNT = ("drop", "delay", "shift")


class Disturbance:
    """One kind of trouble on one stream. Times are monotonic seconds."""

    def __init__(self, kind: str, amount: float = 0.0):
        if kind not in KINDS:
            raise ConfigError(f"disturbance '{kind}' is unknown; choose from {', '.join(KINDS)}")
        if kind == "drop" and not 0.0 <= amount <= 1.0:
            raise ConfigError(f"drop={amount:g}: the share of lost messages lies between 0 and 1")
        self.kind, self.amount = kind, amount
        self._waiting: deque[tuple[float, object]] = deque()      # (when it is due, message)
        self._count = 0
        self._first = None
        self._random = random.Random(0)

    def take(self, message, now_s: float) -> list:
        """What is sent on when a message arrives."""
        self._count += 1
        return getattr(self, f"_{self.kind}")(message, now_s)

    def due(self, now_s: float) -> list:
        """Delayed messages whose time has come."""
        ready = []
        while self._waiting and self._waiting[0][0] <= now_s:
            ready.append(self._waiting.popleft()[1])
        return ready

    def end(self) -> list:
        """What is sent on when the disturbance ends."""
        rest = [message for _, message in self._waiting] if self.kind != "cut" else []
        self._waiting.clear()
        return rest

    def _drop(self, message, now_s: float) -> list:
        kept = math.floor(self._count * (1.0 - self.amount)) - math.floor((self._count - 1) * (1.0 - self.amount))
        return [message] if kept else []

    def _delay(self, message, now_s: float) -> list:
        self._waiting.append((now_s + self.amount, message))
        return []

    def _freeze(self, message, now_s: float) -> list:
        if self._first is None:
            self._first = message
        frozen = copy.copy(self._first)
        frozen.header = message.header
        return [frozen]

    def _reorder(self, message, now_s: float) -> list:
        if not self._waiting:
            self._waiting.append((math.inf, message))
            return []
        return [message, self._waiting.pop()[1]]

    def _cut(self, message, now_s: float) -> list:
        return []

    def _hold(self, message, now_s: float) -> list:
        self._waiting.append((math.inf, message))
        return []

    def _shift(self, message, now_s: float) -> list:
        stamp = message.header.stamp
        shifted = max(1, stamp.sec * NANOSECONDS + stamp.nanosec + round(self.amount * NANOSECONDS))
        stamp.sec, stamp.nanosec = divmod(shifted, NANOSECONDS)
        return [message]

    def _shuffle(self, message, now_s: float) -> list:
        order = list(range(len(message.name)))
        self._random.shuffle(order)
        for field in ("name", "position", "velocity", "effort"):
            values = list(getattr(message, field))
            if len(values) == len(order):
                setattr(message, field, [values[index] for index in order])
        return [message]

    def _rename(self, message, now_s: float) -> list:
        message.name = [*message.name[:-1], f"not_{message.name[-1]}"]
        return [message]

    def _nan(self, message, now_s: float) -> list:
        if hasattr(message, "twist"):
            message.twist.linear.x = math.nan
        else:
            for point in message.points:
                point.positions = [math.nan, *point.positions[1:]]
        return [message]


def disturbances_from_text(text: str, topics: tuple[str, ...]) -> dict[str, Disturbance]:
    """Topic -> disturbance, from 'TOPIC=KIND TOPIC=KIND:AMOUNT'. Raises ConfigError naming what is wrong."""
    result = {}
    for item in text.split():
        topic, _, about = item.partition("=")
        kind, colon, amount = about.partition(":")
        if topic not in topics:
            raise ConfigError(f"'{item}': the relay does not carry {topic or 'that'}; it carries {', '.join(topics)}")
        if bool(colon) != (kind in _NEED_AMOUNT):
            raise ConfigError(
                f"'{item}': give it as TOPIC=KIND, with an amount for {', '.join(_NEED_AMOUNT)}: TOPIC=KIND:AMOUNT")
        try:
            result[topic] = Disturbance(kind, float(amount or 0.0))
        except ValueError as error:
            raise ConfigError(f"'{item}': {amount} is not a number") from error
    return result
