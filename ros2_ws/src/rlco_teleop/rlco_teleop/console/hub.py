"""Between the node's thread and the web server's: requests one way; state, notes and pictures the other, newest wins."""

import asyncio
import json
import queue
from collections.abc import Callable, Iterator
from typing import Protocol

from rlco_teleop.console.protocol import Request


class Shower(Protocol):
    """The server's side; called in its thread."""

    def show_state(self, text: str) -> None: ...

    def show_note(self, client: int | None, text: str) -> None: ...

    def show_picture(self, camera: str, data: bytes) -> None: ...

    def episodes_changed(self) -> None: ...


class Hub:
    """Every method may be called from any thread. `wake` is called, from the server's, when a request waits."""

    def __init__(self, wake: Callable[[], None]):
        self._wake = wake
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shower: Shower | None = None
        self.viewers = 0        # pages that are open; set by the server

    def put(self, request: Request) -> None:
        """From the server: a page asks for something."""
        self._requests.put(request)
        self._wake()

    def requests(self) -> Iterator[Request]:
        """To the node: what waits, oldest first."""
        while True:
            try:
                yield self._requests.get_nowait()
            except queue.Empty:
                return

    def connect(self, loop: asyncio.AbstractEventLoop, shower: Shower) -> None:
        self._shower, self._loop = shower, loop

    def disconnect(self) -> None:
        self._loop = None

    def show(self, state: dict) -> None:
        """A new state for every page."""
        self._call("show_state", json.dumps(state))

    def tell(self, client: int | None, text: str, good: bool) -> None:
        """An answer for one page, or for all."""
        self._call("show_note", client, json.dumps({"do": "note", "text": text, "good": good}))

    def show_picture(self, camera: str, data: bytes) -> None:
        """The newest serialised image of a camera."""
        self._call("show_picture", camera, data)

    def episodes_changed(self) -> None:
        self._call("episodes_changed")

    def _call(self, method: str, *arguments) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(getattr(self._shower, method), *arguments)
        except RuntimeError:
            self._loop = None       # the server has ended meanwhile
