"""The console's web server: static page, one websocket per page, in a thread with a loop of its own.

To a page that is slow only the newest state and the newest picture go, and the next picture only after it has shown the
last one, so that nothing queues up on the way and what is seen is always the present.
"""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from aiohttp import WSMsgType, web

from rlco_common.errors import ConfigError, RlcoError
from rlco_teleop.console.access import COOKIE, Access
from rlco_teleop.console.episodes import EpisodeList
from rlco_teleop.console.hub import Hub
from rlco_teleop.console.protocol import Leave, Request, Stop, parse

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/console.css": "console.css", "/console.js": "console.js", "/jog.js": "jog.js"}
MAX_PAGES = 16
MAX_MESSAGE_BYTES = 4096
MAX_NOTES = 50
PING_S = 5.0
START_TIMEOUT_S = 10.0
EPISODES_PERIOD_S = 5.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
}


class _Page:
    """An open page: what is waiting for it."""

    def __init__(self, number: int, address: str, socket: web.WebSocketResponse, camera: str):
        self.number, self.address, self.socket, self.camera = number, address, socket, camera
        self.changed = asyncio.Event()
        self.state: str | None = None
        self.episodes: str | None = None
        self.notes: deque[str] = deque(maxlen=MAX_NOTES)
        self.shown = self.sent = 0      # numbers of pictures


class ConsoleServer:
    """Serves until `close`. about: what a page has to know once. to_jpeg: camera, serialised image message -> JPEG, called
    in a thread of the loop's pool; an RlcoError is a picture that cannot be shown.

    Raises ConfigError when the address cannot be bound. `port` is the one in use, also when 0 was asked for.
    """

    def __init__(self, hub: Hub, access: Access, host: str, port: int, about: dict, cameras: list[str],
                 episodes: EpisodeList, to_jpeg: Callable[[str, bytes], bytes]):
        self._hub, self._access, self._episodes, self._to_jpeg = hub, access, episodes, to_jpeg
        self._about, self._cameras = about, cameras
        self._pages: dict[int, _Page] = {}
        self._numbers = itertools.count(1)
        self._state: str | None = None
        self._listing: str | None = None
        self._stale_listing = asyncio.Event()
        self._pictures: dict[str, tuple[int, bytes]] = {}
        self._jpegs: dict[str, tuple[int, bytes]] = {}
        self._encoding = {camera: asyncio.Lock() for camera in cameras}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="console", daemon=True)
        self._thread.start()
        try:
            self.port = self._do(self._start(host, port))
        except OSError as error:
            self.close()
            raise ConfigError(f"console: cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
        hub.connect(self._loop, self)

    def close(self) -> None:
        """End the server and its thread."""
        self._hub.disconnect()
        if self._thread.is_alive():
            self._do(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_TIMEOUT_S)
        self._loop.close()

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_TIMEOUT_S)

    async def _start(self, host: str, port: int) -> int:
        app = web.Application(middlewares=[self._guard])
        for path in FILES:
            app.router.add_get(path, self._file)
        app.router.add_get("/socket", self._socket)
        app.router.add_post("/stop", self._stop_now)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        self._listing_task = asyncio.ensure_future(self._keep_listing())
        await web.TCPSite(self._runner, host, port).start()
        return self._runner.addresses[0][1]

    async def _stop(self) -> None:
        self._listing_task.cancel()
        for page in list(self._pages.values()):
            await page.socket.close(code=1001)
        await self._runner.cleanup()

    # -- from the node, in this loop

    def show_state(self, text: str) -> None:
        self._state = text
        for page in self._pages.values():
            page.state = text
            page.changed.set()

    def show_note(self, client: int | None, text: str) -> None:
        for page in self._pages.values():
            if client in (None, page.number):
                page.notes.append(text)
                page.changed.set()

    def show_picture(self, camera: str, data: bytes) -> None:
        number = self._pictures.get(camera, (0, b""))[0] + 1
        self._pictures[camera] = (number, data)
        for page in self._pages.values():
            if page.camera == camera:
                page.changed.set()

    def episodes_changed(self) -> None:
        self._stale_listing.set()

    # -- requests

    @web.middleware
    async def _guard(self, request: web.Request, handler):
        upgrade = request.path == "/socket"
        given = request.cookies.get(COOKIE) or request.query.get("token")
        refusal = self._access.refusal(request.method, upgrade, request.headers, given)
        if refusal is not None:
            return web.Response(status=403, text=f"RLCo console: {refusal}\n", headers=_HEADERS)
        return await handler(request)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        response = web.FileResponse(PAGE / FILES[request.path], headers=_HEADERS)
        if self._access.token is not None and request.path == "/":
            response.set_cookie(COOKIE, self._access.token, httponly=True, samesite="Strict")
        return response

    async def _stop_now(self, request: web.Request) -> web.Response:
        """The stop of a page whose websocket does not work."""
        self._hub.put(Request(0, request.remote or "?", Stop(), time.monotonic_ns()))
        return web.Response(text="stop asked for\n", headers=_HEADERS)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self._pages) >= MAX_PAGES:
            return web.Response(status=503, text=f"more than {MAX_PAGES} pages are open\n")
        socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_MESSAGE_BYTES)
        await socket.prepare(request)
        page = _Page(next(self._numbers), request.remote or "?", socket, self._cameras[0])
        page.notes.append(json.dumps({"do": "hello", "you": page.number, "cameras": self._cameras, **self._about}))
        page.state, page.episodes = self._state, self._listing
        page.changed.set()
        self._pages[page.number] = page
        self._hub.viewers = len(self._pages)
        sender = asyncio.ensure_future(self._send(page))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._receive(page, message.data)
        finally:
            sender.cancel()
            del self._pages[page.number]
            self._hub.viewers = len(self._pages)
            self._hub.put(Request(page.number, page.address, Leave(), time.monotonic_ns()))
        return socket

    def _receive(self, page: _Page, text: str) -> None:
        arrived_ns = time.monotonic_ns()
        try:
            if not self._about_pictures(page, text):
                self._hub.put(Request(page.number, page.address, parse(text), arrived_ns))
        except RlcoError as error:
            self.show_note(page.number, json.dumps({"do": "note", "text": str(error), "good": False}))

    def _about_pictures(self, page: _Page, text: str) -> bool:
        """Messages that concern only this server: `{"shown": N}` and `{"camera": NAME}`."""
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            data = json.loads(text)
            if isinstance(data, dict) and set(data) == {"shown"}:
                page.shown = page.sent if data["shown"] == page.sent else page.shown
            elif isinstance(data, dict) and set(data) == {"camera"} and data["camera"] in self._cameras:
                page.camera, page.shown, page.sent = data["camera"], 0, 0
            else:
                return False
            page.changed.set()
            return True
        return False

    # -- to a page

    async def _send(self, page: _Page) -> None:
        with contextlib.suppress(ConnectionResetError):
            while True:
                await page.changed.wait()
                page.changed.clear()
                while page.notes:
                    await page.socket.send_str(page.notes.popleft())
                state, page.state = page.state, None
                if state is not None:
                    await page.socket.send_str(state)
                listing, page.episodes = page.episodes, None
                if listing is not None:
                    await page.socket.send_str(listing)
                await self._send_picture(page)

    async def _send_picture(self, page: _Page) -> None:
        number = self._pictures.get(page.camera, (0, b""))[0]
        if number <= page.sent or page.shown != page.sent:
            return
        camera = page.camera
        number, jpeg = await self._jpeg(camera)
        if jpeg and camera == page.camera:
            page.sent = number
            await page.socket.send_bytes(number.to_bytes(4, "big") + jpeg)

    async def _jpeg(self, camera: str) -> tuple[int, bytes]:
        """The newest picture of a camera, encoded once for all pages; empty when it cannot be shown."""
        async with self._encoding[camera]:
            number, data = self._pictures[camera]
            if self._jpegs.get(camera, (0, b""))[0] != number:
                try:
                    jpeg = await self._loop.run_in_executor(None, self._to_jpeg, camera, data)
                except (RlcoError, RuntimeError, ValueError):
                    jpeg = b""      # the node says what is wrong with the camera
                self._jpegs[camera] = (number, jpeg)
            return self._jpegs[camera]

    async def _keep_listing(self) -> None:
        """Read the episode list when it may have changed, in a thread, and show it when it has."""
        while True:
            self._stale_listing.clear()
            if self._pages or self._listing is None:
                try:
                    episodes = await self._loop.run_in_executor(None, self._episodes.read)
                except OSError as error:
                    episodes = {"total": 0, "successes": 0, "episodes": [], "problem": str(error)}
                text = json.dumps({"do": "episodes", **episodes})
                if text != self._listing:
                    self._listing = text
                    for page in self._pages.values():
                        page.episodes = text
                        page.changed.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stale_listing.wait(), EPISODES_PERIOD_S)
