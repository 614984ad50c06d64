"""The operator's desk: who of the connected pages is the operator, and what their hands do. Pure; time is handed in.

One page operates, the others watch. The dead-man is a finger, mouse button or key that is down: the page says so again and
again, and what it says counts only while it is new. A page that fell silent, or whose messages come late, is released, and
only a new pressing takes hold again: what the network held back never moves the arm.

How late a message is, is known without comparing clocks: it tells which of our states the page had when it was sent, and
for how long. What is left of the time since that state is the way there and back.
"""

from dataclasses import dataclass

import numpy as np

from rlco_teleop.console.protocol import Jog
from rlco_teleop.devices.base import JogSettings, Operation, released
from rlco_teleop.devices.switch import NANOSECONDS

IDLE_S = 10.0           # an operator's page that is silent this long no longer keeps others from taking over


@dataclass
class _Page:
    address: str
    heard_ns: int
    name: str = ""
    finished_press: int = -1        # pressings up to this one are over


class Desk:
    """Pages by their number. Methods that may be refused return the reason, else None."""

    def __init__(self, settings: JogSettings, heartbeat_s: float):
        self._speeds = settings.speeds
        self._heartbeat_ns = round(heartbeat_s * NANOSECONDS)
        self._pages: dict[int, _Page] = {}
        self._operator: int | None = None
        self._jog: Jog | None = None
        self._heard_ns = 0
        self._operated = True       # the present pressing has reached the arm at least once
        self._ending = False

    # -- pages

    def hear(self, client: int, address: str, now_ns: int) -> None:
        """Something came from a page."""
        page = self._pages.setdefault(client, _Page(address, now_ns))
        page.heard_ns = now_ns

    def leave(self, client: int) -> None:
        """The page is gone."""
        self._pages.pop(client, None)
        if self._operator == client:
            self._drop_control()

    def take(self, client: int, name: str, now_ns: int) -> str | None:
        """Become the operator."""
        present = self._pages.get(self._operator) if self._operator not in (None, client) else None
        if present is not None and now_ns - present.heard_ns <= IDLE_S * NANOSECONDS:
            return f"{self.operator_name} operates; they have to give control back first"
        if self._operator != client:
            self._drop_control()
        self._pages[client].name = name
        self._operator = client
        return None

    def give(self, client: int) -> None:
        if self._operator == client:
            self._drop_control()

    def operates(self, client: int) -> bool:
        return self._operator == client

    @property
    def operator(self) -> int | None:
        """The operating page's number."""
        return self._operator

    @property
    def operator_name(self) -> str:
        """Name, or address where they gave none; empty when nobody operates."""
        page = self._operating_page
        return (page.name or page.address) if page else ""

    @property
    def given_name(self) -> str:
        """The name that the operator gave; may be empty."""
        return self._operating_page.name if self._operating_page else ""

    @property
    def _operating_page(self) -> _Page | None:
        return self._pages.get(self._operator) if self._operator is not None else None

    # -- hands

    def jog(self, client: int, jog: Jog, now_ns: int) -> str | None:
        """A pressing goes on, or a new one begins."""
        page = self._pages[client]
        late_ns = now_ns - (jog.echo_ms + jog.echo_age_ms) * 1e6
        if self._operator != client:
            return "take control first"
        self._notice_silence(now_ns)
        if jog.press <= page.finished_press:
            return None     # what is left of a pressing that was ended; the page knows
        if late_ns > self._heartbeat_ns:
            self._finish(jog.press)
            return f"released: the network was {late_ns / 1e9:.1f} s late"
        if self._jog is None or jog.press != self._jog.press:
            self._operated, self._ending = False, False
        self._jog, self._heard_ns = jog, now_ns
        return None

    def release(self, client: int) -> None:
        """Everything is up. A tap on the gripper still reaches the arm once; a tap that would move it does not."""
        if self._operator != client or self._jog is None:
            return
        tapped = not self._operated and self._jog.gripper is not None and not any(self._jog.axes)
        if tapped:
            self._ending = True
        else:
            self._finish(self._jog.press)

    def let_go(self) -> None:
        """Whatever is down counts no more; for a stop."""
        if self._jog is not None:
            self._finish(self._jog.press)

    def held(self, now_ns: int) -> bool:
        self._notice_silence(now_ns)
        return self._jog is not None

    def pressing(self, now_ns: int) -> int | None:
        """Number of the pressing that counts at present."""
        return self._jog.press if self.held(now_ns) else None

    def operate(self, now_ns: int) -> Operation:
        """What the operator's hands do now."""
        if not self.held(now_ns):
            return released()
        jog = self._jog
        self._operated = True
        if self._ending:
            self._finish(jog.press)
        return Operation(True, np.array(jog.axes) * self._speeds, jog.gripper)

    def _notice_silence(self, now_ns: int) -> None:
        if self._jog is not None and now_ns - self._heard_ns > self._heartbeat_ns:
            self._finish(self._jog.press)

    def _finish(self, press: int) -> None:
        self._jog, self._ending = None, False
        page = self._operating_page
        if page is not None:
            page.finished_press = max(page.finished_press, press)

    def _drop_control(self) -> None:
        self.let_go()
        self._operator = None
