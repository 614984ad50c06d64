"""Parts that devices share: the dead-man switch, the dead zone of an axis, the wish for the gripper."""

import numpy as np

NANOSECONDS = 1_000_000_000


class DeadMan:
    """A switch that moves the arm only while it is held and its device is heard.

    Held begins with a press that was seen as a change from released: a button that is down when the device appears, comes
    back after a silence, or is told to let go, counts only after it was up once.
    """

    def __init__(self, timeout_s: float):
        self._timeout_ns = round(timeout_s * NANOSECONDS)
        self._heard_ns: int | None = None
        self._was_up = False
        self._held = False

    def hear(self, pressed: bool, now_ns: int) -> None:
        """The device reports its switch."""
        self._notice_silence(now_ns)
        self._heard_ns = now_ns
        if not pressed:
            self._was_up, self._held = True, False
        elif self._was_up:
            self._held = True

    def held(self, now_ns: int) -> bool:
        self._notice_silence(now_ns)
        return self._held

    def release(self) -> None:
        """Let go until the switch was up and is pressed again."""
        self._held = self._was_up = False

    def silent(self, now_ns: int) -> bool:
        """Whether the device has not been heard for the timeout."""
        return self._heard_ns is None or now_ns - self._heard_ns > self._timeout_ns

    def _notice_silence(self, now_ns: int) -> None:
        if self.silent(now_ns):
            self.release()


class GripperWish:
    """The opening that an operator has asked for since taking the dead-man; None until they do.

    It is forgotten at release: what an operator wanted before someone else moved the gripper must not come back.
    """

    def __init__(self):
        self.value: float | None = None

    def clear(self) -> None:
        self.value = None

    def toggle(self, opening: float | None) -> None:
        """Ask for the opposite of the present opening; without knowing that, for nothing."""
        present = opening if self.value is None else self.value
        if present is not None:
            self.value = 0.0 if present > 0.5 else 1.0


def beyond_dead_zone(values: np.ndarray, dead_zone: float) -> np.ndarray:
    """Deflections in [-1, 1] with the middle `dead_zone` taken as zero, rising from zero at its edge to 1 at full travel."""
    values = np.clip(values, -1.0, 1.0)
    return np.sign(values) * np.maximum(0.0, np.abs(values) - dead_zone) / (1.0 - dead_zone)
