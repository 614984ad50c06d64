"""A real browser for tests: headless Chromium, driven through its DevTools protocol."""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LISTENING = re.compile(r"DevTools listening on ws://[^/]+:(\d+)/devtools/browser/(\S+)")
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 20.0
FLAGS = ("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
         "--disable-extensions", "--disable-background-networking", "--hide-scrollbars", "--no-sandbox")


def find_browser() -> str:
    """Path of a browser that works. Fails the test with what to do when there is none."""
    for name in filter(None, (os.environ.get("RLCO_BROWSER"), *CANDIDATES)):
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0:
            return path
    raise AssertionError("the console is tested in a real browser and none works here: run scripts/setup.sh as root, install "
                         "Chromium or Chrome, or set RLCO_BROWSER to its program")


class Browser:
    """One browser process with its own profile. Use as a context manager."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._process: subprocess.Popen | None = None
        self._session: aiohttp.ClientSession | None = None
        self._port = 0
        self._main: Tab | None = None       # the browser as a whole

    def __enter__(self) -> "Browser":
        path = self._folder / "chromium.log"
        with path.open("wb") as log:
            command = [find_browser(), *FLAGS, f"--user-data-dir={self._folder / 'profile'}", "about:blank"]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_TIMEOUT_S
        # From its log, because the profile of a browser that is a snap is out of sight.
        while not (told := LISTENING.search(path.read_text(errors="replace"))):
            assert self._process.poll() is None and time.monotonic() < deadline, path.read_text(errors="replace")
            time.sleep(0.05)
        self._port = int(told.group(1))
        self._session = self.run(self._make_session())
        self._main = Tab(self, "", self._connect(f"browser/{told.group(2)}"))
        return self

    def __exit__(self, *_) -> None:
        if self._session is not None:
            self.run(self._session.close())
        self._loop.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, coroutine):
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, ANSWER_TIMEOUT_S))

    def open(self, url: str, width: int = 1280, height: int = 800, *, phone: bool = False, dark: bool = True,
             window: bool = True) -> "Tab":
        """A tab that has loaded a page, in a window of its own or in front of the others in the window used last.

        phone: as a touch screen with two device pixels per pixel.
        """
        made = self._main.call("Target.createTarget", url=url, newWindow=window)["targetId"]
        tab = Tab(self, made, self._connect(f"page/{made}"))
        tab.call("Page.enable")
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone)
        if phone:
            tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.wait("document.readyState === 'complete' && location.href !== 'about:blank'", "the page")
        return tab

    async def _make_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    def _connect(self, path: str) -> aiohttp.ClientWebSocketResponse:
        return self.run(self._session.ws_connect(f"ws://127.0.0.1:{self._port}/devtools/{path}", max_msg_size=0))

    def close_tab(self, target: str) -> None:
        self._main.call("Target.closeTarget", targetId=target)


class Tab:
    """A page. `meanwhile` is called while waiting, for example to let a ROS client receive."""

    def __init__(self, browser: Browser, target: str, socket: aiohttp.ClientWebSocketResponse):
        self._browser, self._target, self._socket = browser, target, socket
        self._count = 0
        self.meanwhile: Callable[[], None] = lambda: time.sleep(0.05)

    def call(self, method: str, **parameters) -> dict:
        """A command of the DevTools protocol; its result."""
        self._count += 1
        return self._browser.run(self._exchange(self._count, method, parameters))

    async def _exchange(self, number: int, method: str, parameters: dict) -> dict:
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def js(self, expression: str):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """What an element shows; empty when it is hidden."""
        return self.js(f"(() => {{ const found = document.querySelector({json.dumps(selector)}); "
                       "return found && found.checkVisibility() ? found.innerText : ''; })()")

    def wait(self, expression: str, what: str, timeout_s: float = 10.0):
        """Wait until an expression is true."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.js(expression)):
            if time.monotonic() >= deadline:
                raise AssertionError(f"waited {timeout_s:g} s for {what}; the page says:\n{self.js('document.body.innerText')}")
            self.meanwhile()
        return value

    def wait_text(self, selector: str, part: str, timeout_s: float = 10.0) -> None:
        self.wait(f"(() => {{ const found = document.querySelector({json.dumps(selector)}); return found && "
                  f"found.checkVisibility() && found.innerText.includes({json.dumps(part)}); }})()",
                  f"'{part}' in {selector}", timeout_s)

    def centre(self, selector: str) -> tuple[float, float]:
        """Where an element is, scrolled into view; fails when something else lies over it."""
        x, y, hit = self.js(f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{block: 'center', behavior: 'instant'}});
            const box = found.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            const top = document.elementFromPoint(x, y);
            return [x, y, found.contains(top)]; }})()""")
        assert hit, f"{selector} cannot be reached at {x:.0f}, {y:.0f}"
        return x, y

    def mouse(self, kind: str, at: tuple[float, float]) -> None:
        """kind: mousePressed, mouseReleased or mouseMoved."""
        button = "none" if kind == "mouseMoved" else "left"
        self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button=button, buttons=int(kind == "mousePressed"),
                  clickCount=1)

    def press(self, selector: str) -> Callable[[], None]:
        """Press the mouse button on an element, and return what releases it."""
        at = self.centre(selector)
        self.mouse("mouseMoved", at)
        self.mouse("mousePressed", at)
        return lambda: self.mouse("mouseReleased", at)

    def click(self, selector: str) -> None:
        self.press(selector)()

    def touch(self, selectors: list[str]) -> None:
        """Fingers on these elements, and nowhere else."""
        points = [dict(zip(("x", "y"), self.centre(selector), strict=True), id=number)
                  for number, selector in enumerate(selectors)]
        self.call("Input.dispatchTouchEvent", type="touchStart" if points else "touchEnd", touchPoints=points)

    def key(self, code: str, key: str, down: bool) -> None:
        self.call("Input.dispatchKeyEvent", type="keyDown" if down else "keyUp", code=code, key=key)

    def front(self) -> None:
        """Bring the tab to the front; the others are hidden then, and their timers slow."""
        self.call("Page.bringToFront")

    def screenshot(self, path: Path) -> None:
        """A PNG of what is visible."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Close the tab as an operator would."""
        self._browser.close_tab(self._target)
        self._browser.run(self._socket.close())
