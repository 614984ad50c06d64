"""The operator console: who may open it, who operates, what a press means, and all of it in a real browser on the stand-in.

RLCO_SCREENSHOTS=docs/images writes the documentation's picture while the browser's tests run.
"""

import asyncio
import json
import os
import socket
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from chromium import Browser
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from std_msgs.msg import Bool, String

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.episode import EpisodeEvent
from rlco_common.errors import ConfigError, DataError
from rlco_common.gate import GateState, Refusal
from rlco_common.limiter import Limit
from rlco_common.messages import diagnostic_values, pose_from_msg
from rlco_common.processes import Processes
from rlco_common.ros import STATE_QOS
from rlco_common.ros_client import RosClient
from rlco_teleop.bags import Bag, find_episodes, read_audit, read_episode_metadata
from rlco_teleop.console import access as access_module
from rlco_teleop.console.access import Access, addresses
from rlco_teleop.console.board import CAUSE_HINTS, GATE_HINTS, Board
from rlco_teleop.console.desk import Desk
from rlco_teleop.console.episodes import EpisodeList
from rlco_teleop.console.hub import Hub
from rlco_teleop.console.protocol import Jog, Stop, parse
from rlco_teleop.console.server import ConsoleServer
from rlco_teleop.devices.base import JogSettings

CONTRACT = load_contract()
MS = 1_000_000
FORWARD = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


# -- pure: the desk


def desk(pages=(1,), operator=1):
    made = Desk(JogSettings(linear_speed_m_s=0.1), 0.3)
    for page in pages:
        made.hear(page, f"10.0.0.{page}", 0)
    if operator:
        assert made.take(operator, "Ada", 0) is None
    return made


def jog(press=1, echo_ms=0.0, axes=FORWARD, gripper=None, age_ms=0.0):
    return Jog(press, echo_ms, age_ms, axes, gripper)


def test_one_page_operates_and_the_others_watch():
    shared = desk((1, 2))
    assert "Ada operates" in shared.take(2, "Bob", 5000 * MS)
    assert shared.jog(2, jog(), MS) == "take control first" and not shared.held(MS)
    assert shared.jog(1, jog(), MS) is None and shared.held(MS)
    shared.give(2)
    assert shared.operates(1), "only the operator can give control back"
    shared.give(1)
    assert not shared.held(2 * MS) and shared.take(2, "", 3 * MS) is None
    assert shared.operator_name == "10.0.0.2" and shared.given_name == ""
    shared.leave(2)
    assert shared.operator is None
    assert shared.take(1, "Ada", 4 * MS) is None
    shared.hear(3, "10.0.0.3", 20_000 * MS)
    assert shared.take(3, "Cy", 20_000 * MS) is None, "the operator's page has not been heard for ten seconds"


def test_a_press_moves_while_it_is_told_again_and_only_a_new_one_counts_after_a_silence():
    held = desk()
    held.jog(1, jog(1, 0), 0)
    operation = held.operate(300 * MS)
    assert operation.held and np.allclose(operation.twist, [0.1, 0, 0, 0, 0, 0]) and operation.gripper is None
    assert not held.operate(301 * MS).held
    held.jog(1, jog(1, 400), 400 * MS)
    assert not held.operate(400 * MS).held and held.pressing(400 * MS) is None, "the press was over"
    held.jog(1, jog(2, 500), 500 * MS)
    assert held.pressing(500 * MS) == 2
    held.release(1)
    held.jog(1, jog(2, 510), 510 * MS)
    assert not held.operate(510 * MS).held, "a message that overtook nothing: the press was released"
    held.jog(1, jog(3, 600), 600 * MS)
    held.let_go()
    held.jog(1, jog(3, 650), 650 * MS)
    assert not held.operate(650 * MS).held, "after a stop"


def test_a_tap_on_the_gripper_reaches_the_arm_once_and_a_tap_that_moves_does_not():
    tapped = desk()
    tapped.jog(1, jog(1, 0, (0.0,) * 6, 1.0), 0)
    tapped.release(1)
    first, second = tapped.operate(MS), tapped.operate(2 * MS)
    assert first.held and first.gripper == 1.0 and not first.twist.any() and not second.held
    tapped.jog(1, jog(2, 10), 10 * MS)
    tapped.release(1)
    assert not tapped.operate(11 * MS).held


WAY_MS = st.lists(st.floats(0.0, 3000.0), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(WAY_MS, WAY_MS, st.floats(0.0, 2000.0))
def test_whatever_the_network_holds_back_the_arm_stands_soon_after_the_release(there_ms, back_ms, pressed_ms):
    """A page presses once and tells it every 100 ms; states go out every 200 ms; both ways deliver in order, however late."""
    remote, states, arrivals = desk(), [], []
    for number, way_ms in enumerate(back_ms):       # (arrival at the page, time in it)
        sent_ms = -400.0 + 200.0 * number
        states.append((max(sent_ms + way_ms, states[-1][0] if states else -1e9), sent_ms))
    for number, way_ms in enumerate(there_ms):
        sent_ms = 100.0 * number
        had = [state for state in states if state[0] <= sent_ms]
        if sent_ms > pressed_ms or not had:
            continue
        arrived_ms = max(sent_ms + way_ms, arrivals[-1][0] if arrivals else -1e9)
        arrivals.append((arrived_ms, jog(1, had[-1][1], age_ms=sent_ms - had[-1][0])))
    limit_ms = pressed_ms + 600.1       # as late as is allowed, then silent
    for arrived_ms, message in arrivals:
        if arrived_ms > limit_ms:
            assert not remote.operate(round(limit_ms * MS)).held
        remote.jog(1, message, round(arrived_ms * MS))
        assert arrived_ms <= limit_ms or not remote.operate(round(arrived_ms * MS)).held
    assert not remote.operate(round(max([limit_ms, *(arrived_ms for arrived_ms, _ in arrivals)]) * MS)).held


def test_a_message_that_was_long_under_way_ends_its_press():
    far = desk()
    assert far.jog(1, jog(1, 1000.0, age_ms=150.0), 1400 * MS) is None, "a quarter second there and back"
    assert "0.4 s late" in far.jog(1, jog(1, 1000.0, age_ms=200.0), 1600 * MS)
    assert not far.held(1600 * MS)
    far.jog(1, jog(1, 1600.0), 1610 * MS)
    assert not far.held(1610 * MS)
    far.jog(1, jog(2, 1600.0), 1610 * MS)
    assert far.held(1610 * MS)


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"do": "fly"}', '{"do": "jog"}', '{"do": "stop", "really": 1}', '{"do": "record", "what": "format"}',
    '{"do": "jog", "press": 1, "echo_ms": 0, "echo_age_ms": 0, "axes": [1, 0, 0]}',
    '{"do": "jog", "press": 1, "echo_ms": 0, "echo_age_ms": 0, "axes": [2, 0, 0, 0, 0, 0]}',
    '{"do": "jog", "press": 1, "echo_ms": 0, "echo_age_ms": -1, "axes": [1, 0, 0, 0, 0, 0]}',
    '{"do": "jog", "press": 1, "echo_ms": 0, "echo_age_ms": 0, "axes": [NaN, 0, 0, 0, 0, 0]}',
    '{"do": "take", "name": "a\\u0000b"}', '{"do": "leave"}', "[" * 4000,
])
def test_a_message_that_is_not_one_is_refused(text):
    with pytest.raises(DataError, match="console message"):
        parse(text)


# -- pure: the board


def gate_says(state="HOLD", **counts):
    return {"state": state, "source": "NOBODY", "policy_enabled": "False", "lead_m": "0.0100",
            **{cause: str(count) for cause, count in counts.items()}}


def shown(board, now_ns):
    return board.snapshot(desk(), None, False, now_ns)


def test_the_board_says_why_the_gate_limits_and_when_it_is_not_heard():
    board = Board()
    assert shown(board, 0)["gate"]["state"] == "SILENT"
    board.on_gate(gate_says(WORKSPACE=3), 0)
    assert shown(board, 0)["gate"]["causes"] == [], "counted before the page was opened"
    board.on_gate(gate_says("OPERATOR", WORKSPACE=4, SPEED=1), 200 * MS)
    gate = shown(board, 300 * MS)["gate"]
    assert gate["state"] == "OPERATOR" and {cause["name"]: cause["count"] for cause in gate["causes"]} == {
        "WORKSPACE": 4, "SPEED": 1}
    assert "edge of the workspace" in " ".join(cause["text"] for cause in gate["causes"])
    board.on_gate(gate_says(WORKSPACE=4, SPEED=1), 5000 * MS)
    assert shown(board, 5000 * MS)["gate"]["causes"] == []
    assert "nothing here can move or stop the arm" in shown(board, 6001 * MS)["gate"]["hint"]
    for cause in (*Refusal, *Limit):
        assert cause.name in CAUSE_HINTS, "every cause has words"
    assert {state.name for state in GateState} == set(GATE_HINTS)


def test_the_board_knows_what_is_recorded_from_events_and_diagnostics_whichever_is_newer():
    board = Board()
    assert not shown(board, 0)["recorder"]["there"]
    board.on_diagnostic("recorder", 0, "idle", {}, 0)
    board.on_event(EpisodeEvent("start", episode="one"), 100 * MS)
    assert shown(board, 2100 * MS)["recorder"] | {"message": ""} == shown(board, 2100 * MS)["recorder"] | {
        "recording": "one", "seconds": 2, "message": ""}
    board.on_diagnostic("recorder", 0, "recording", {"episode": "one"}, 2200 * MS)
    assert shown(board, 2200 * MS)["recorder"]["seconds"] == 2
    board.on_event(EpisodeEvent("success", episode="one"), 2300 * MS)
    assert shown(board, 2300 * MS)["recorder"]["recording"] == ""
    board.on_diagnostic("recorder: audit", 0, "no warning", {"last verdict": "no-go", "last reason 1": "a gap"}, 2400 * MS)
    recorder = shown(board, 2400 * MS)["recorder"]
    assert (recorder["verdict"], recorder["reasons"], recorder["warnings"]) == ("no-go", ["a gap"], [])
    board.on_diagnostic("sim", 1, "too slow", {}, 2400 * MS)
    assert shown(board, 2400 * MS)["troubles"] == [{"name": "sim", "level": 1, "message": "too slow"}]
    assert not shown(board, 9000 * MS)["recorder"]["there"] and not shown(board, 9000 * MS)["troubles"]


# -- pure: access


OWN = {"Host": "127.0.0.1:8030", "Origin": "http://127.0.0.1:8030"}


@pytest.mark.parametrize(("method", "upgrade", "headers", "problem"), [
    ("GET", False, {"Host": "localhost:8030"}, None), ("GET", True, OWN, None), ("POST", False, OWN, None),
    ("GET", True, {"Host": "127.0.0.1:8030"}, "another site"), ("POST", False, {"Host": "127.0.0.1:8030"}, "another site"),
    ("GET", True, OWN | {"Origin": "http://evil.example"}, "another site"),
    ("GET", True, OWN | {"Origin": "http://127.0.0.1:9999"}, "another site"),
    ("GET", False, OWN | {"Origin": "null"}, "another site"),
    ("GET", True, {"Host": "evil.example:8030", "Origin": "http://evil.example:8030"}, "not a name of this machine"),
    ("GET", False, {"Host": "192.168.1.7:8030"}, "not a name of this machine"), ("GET", False, {}, "not a name"),
])
def test_on_this_machine_no_token_is_needed_and_no_other_site_gets_in(method, upgrade, headers, problem):
    rules = Access.on("127.0.0.1")
    assert rules.token is None
    answer = rules.refusal(method, upgrade, headers, None)
    assert answer is None if problem is None else problem in answer


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "lab-pc"])
def test_any_other_address_needs_the_token_compared_in_constant_time(host, monkeypatch):
    rules = Access.on(host)
    assert len(rules.token) >= 32 and rules.token != Access.on(host).token
    headers = {"Host": "192.168.1.7:8030", "Origin": "http://192.168.1.7:8030"}
    compared = []
    monkeypatch.setattr(access_module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    for given_token in (None, "", "x", rules.token[:-1], rules.token + "x", "ä"):
        for method, upgrade in (("GET", False), ("GET", True), ("POST", False)):
            assert "token" in rules.refusal(method, upgrade, headers, given_token)
    assert len(compared) == 18
    assert rules.refusal("GET", True, headers, rules.token) is None
    assert "another site" in rules.refusal("GET", True, headers | {"Origin": "http://evil.example"}, rules.token)
    assert Access.on("127.0.0.1", "secret").token == "secret"
    assert addresses("0.0.0.0") and addresses("::1") == ["[::1]"]


# -- the server, without ROS


class Served:
    """A console server on a free port, asked by a plain HTTP client."""

    def __init__(self, tmp_path, access, host="127.0.0.1"):
        self.woken, self.encoded = threading.Event(), []
        self.hub = Hub(self.woken.set)
        self.server = ConsoleServer(self.hub, access, host, 0, {"tasks": {}}, ["front", "wrist"], EpisodeList(tmp_path),
                                    self._to_jpeg)
        self.host = f"127.0.0.1:{self.server.port}"

    def _to_jpeg(self, camera, data):
        self.encoded.append((camera, data))
        if data == b"bad":
            raise DataError("not an image")
        return b"jpeg of " + data

    async def picture(self, page):
        """The next picture, with its number before it."""
        while (message := await page.receive(timeout=5)).type is not aiohttp.WSMsgType.BINARY:
            pass
        return message.data

    async def json(self, page, kind):
        """The next message of a kind, and the pictures that came before it."""
        pictures = []
        while True:
            message = await page.receive(timeout=5)
            if message.type is aiohttp.WSMsgType.BINARY:
                pictures.append(message.data)
            elif (data := json.loads(message.data))["do"] == kind:
                return data, pictures


@pytest.fixture
def serve(tmp_path):
    made = []

    def start(access=None, **more):
        made.append(Served(tmp_path, access or Access.on("127.0.0.1"), **more))
        return made[-1]

    yield start
    for served in made:
        served.server.close()


def test_without_the_token_there_is_no_page_no_socket_and_no_stop(serve):
    served = serve(Access(token="secret", names=frozenset()))
    origin = {"Origin": f"http://{served.host}"}

    async def visit():
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            for path in ("/", "/console.js", "/?token=wrong"):
                assert (await session.get(f"http://{served.host}{path}")).status == 403
            assert (await session.post(f"http://{served.host}/stop", headers=origin)).status == 403
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(f"http://{served.host}/socket", headers=origin)
            page = await session.get(f"http://{served.host}/?token=secret")
            assert page.status == 200 and "RLCo" in await page.text()
            cookie = page.headers["Set-Cookie"]
            assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
            assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
            assert (await session.get(f"http://{served.host}/console.js")).status == 200
            assert (await session.get(f"http://{served.host}/../server.py")).status == 404
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(f"http://{served.host}/socket", headers={"Origin": "http://evil.example"})
            socket_ = await session.ws_connect(f"http://{served.host}/socket", headers=origin)
            assert (await served.json(socket_, "hello"))[0]["you"] == 1
            assert (await session.post(f"http://{served.host}/stop", headers=origin)).status == 200

    asyncio.run(visit())
    assert served.woken.is_set() and any(isinstance(request.message, Stop) for request in served.hub.requests())


def test_to_a_slow_page_only_the_newest_picture_goes_and_pictures_are_encoded_once(serve):
    served = serve()

    async def watch():
        async with aiohttp.ClientSession() as session:
            pages = [await session.ws_connect(f"http://{served.host}/socket", headers={"Origin": f"http://{served.host}"})
                     for _ in range(2)]
            for page in pages:
                await served.json(page, "hello")
            served.hub.show_picture("front", b"1")
            first = [await served.picture(page) for page in pages]
            assert [data[4:] for data in first] == [b"jpeg of 1"] * 2
            for number in range(2, 50):
                served.hub.show_picture("front", str(number).encode())
            served.hub.show({"do": "state"})
            for page in pages:
                assert (await served.json(page, "state"))[1] == [], "the first picture was not shown yet"
            await pages[0].send_str(json.dumps({"shown": int.from_bytes(first[0][:4], "big")}))
            assert (await served.picture(pages[0]))[4:] == b"jpeg of 49"
            await pages[1].send_str(json.dumps({"camera": "wrist"}))
            served.hub.show_picture("front", b"50")
            served.hub.show_picture("wrist", b"bad")
            served.hub.show_picture("wrist", b"51")
            served.hub.show({"do": "state"})
            _, pictures = await served.json(pages[1], "state")
            pictures = pictures or [await served.picture(pages[1])]
            assert [data[4:] for data in pictures] == [b"jpeg of 51"]
            await pages[0].send_str("{")
            assert "not valid JSON" in (await served.json(pages[0], "note"))[0]["text"]

    asyncio.run(watch())
    assert served.encoded.count(("front", b"1")) == 1 and ("front", b"7") not in served.encoded


def test_a_port_that_is_taken_is_refused_by_its_number(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            ConsoleServer(Hub(lambda: None), Access.on("127.0.0.1"), "127.0.0.1", port, {}, ["front"], EpisodeList(tmp_path),
                          lambda camera, data: data)


# -- a real browser and the stand-in


class Cell:
    """The stand-in in real time with gate, recorder and console, and what the arm does."""

    def __init__(self, folder, processes, client, browser):
        self.bags, self.processes, self.client, self.browser = folder / "bags", processes, client, browser
        common = {"output_directory": str(self.bags)}
        processes.start_node("rlco_sim_bridge.nodes.bridge_node", task="push_cube", domain="standin", seed=3)
        processes.start_node("rlco_teleop.nodes.gate_node")
        processes.start_node("rlco_teleop.nodes.recorder_node", **common)
        processes.start_node("rlco_teleop.nodes.console_node", port=0, **common)
        for node in ("/sim", "/gate", "/recorder", "/console"):
            client.wait_active(node, 120)
        self.poses = client.subscribe(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS, matched_s=10)
        self.status = client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        self.deadman = client.subscribe(Bool, topics.TELEOP_DEADMAN, STATE_QOS)
        self.url = next(word for word in processes["console_node"].tail().split() if word.startswith("http://"))

    def open(self, **options):
        """A page that is connected and shows the camera."""
        tab = self.browser.open(self.url, **options)
        tab.meanwhile = lambda: self.client.spin_for(0.05)
        tab.wait_text("#link", "connected", 30)
        tab.wait("document.querySelector('#blind').hidden", "the camera's picture", 30)
        return tab

    def operator(self, name="Ada", **options):
        """A page that operates."""
        tab = self.open(**options)
        take(tab, name)
        return tab

    def position(self):
        return pose_from_msg(self.poses.last).position

    def moves(self, axis, direction, distance_m=0.02, timeout_s=10):
        """Wait until the arm has moved along a base axis, and along no other."""
        start = self.position()
        self.client.wait_until(lambda: direction * (self.position() - start)[axis] > distance_m, timeout_s, "motion")
        others = np.delete(self.position() - start, axis)
        assert np.abs(others).max() < 0.01

    def rests(self, within_s=0.8):
        """The arm stands still from `within_s` on."""
        self.client.spin_for(within_s)
        before = self.position()
        self.client.spin_for(0.4)
        assert np.abs(self.position() - before).max() < 2e-3

    def gate(self):
        return diagnostic_values(self.status.last.status[0])


def take(tab, name="Ada"):
    tab.click("#control")
    tab.js(f"document.querySelector('#name').value = {json.dumps(name)}")
    tab.click("#who .primary")
    tab.wait_text("#control", "Give back")


@pytest.fixture(scope="module")
def cell(tmp_path_factory, module_ros_domain):
    folder = tmp_path_factory.mktemp("console")
    with (Browser(folder) as browser, Processes(folder / "logs", module_ros_domain) as processes,
          RosClient("table", module_ros_domain, processes.check) as client):
        yield Cell(folder, processes, client, browser)


@contextmanager
def closing(tab):
    try:
        yield tab
    finally:
        tab.close()


def picture_while_jogging(tab):
    """Keep a screenshot for the documentation where the environment asks for it."""
    if folder := os.environ.get("RLCO_SCREENSHOTS"):
        release = tab.press("[data-jog='3']")
        tab.wait("!document.querySelector('#notes').children.length && document.querySelector('#driver').innerText", "peace")
        tab.screenshot(Path(folder) / "console.png")
        release()


def test_jogging_needs_control_and_lasts_as_long_as_the_press(cell):
    with closing(cell.open()) as tab:
        release = tab.press("[data-jog='3']")
        tab.wait_text("#notes", "Take control first")
        cell.rests(0.2)
        release()
        take(tab)
        cell.client.wait_until(lambda: len(cell.poses), 10, "the arm's pose")
        release = tab.press("[data-jog='3']")       # the pad faces the robot: down is forward
        cell.moves(0, +1)
        tab.wait_text("#gate-state", "OPERATOR")
        assert tab.js("document.querySelector('[data-jog=\"3\"]').classList.contains('down-now')")
        release()
        cell.rests()
        assert not cell.deadman.last.data
        release = tab.press("[data-jog='4']")
        cell.moves(2, +1)
        release()
        tab.click("[data-mode='turn']")
        heading = pose_from_msg(cell.poses.last).quaternion
        release = tab.press("[data-jog='4']")
        cell.client.wait_until(lambda: abs(pose_from_msg(cell.poses.last).quaternion @ heading) < np.cos(0.05), 10, "a turn")
        release()


def test_keys_jog_while_they_are_down_and_everything_is_up_when_the_page_loses_the_focus(cell):
    with closing(cell.operator()) as tab:
        tab.key("KeyS", "s", True)
        cell.moves(0, +1)
        tab.key("KeyS", "s", False)
        cell.rests()
        tab.key("KeyW", "w", True)
        cell.moves(0, -1)
        tab.js("dispatchEvent(new Event('blur'))")
        cell.rests()
        tab.key("KeyW", "w", False)


def test_a_page_that_hangs_is_released_and_only_a_new_press_moves(cell):
    with closing(cell.operator()) as tab:
        release = tab.press("[data-jog='3']")
        cell.moves(0, +1)
        hang = threading.Thread(target=tab.js, args=("(() => { const end = performance.now() + 2500; "
                                                     "while (performance.now() < end); })()",))
        hang.start()
        cell.rests()
        hang.join()
        cell.rests(0.3)
        tab.wait_text("#notes", "Let go and press again")
        release()
        release = tab.press("[data-jog='0']")
        cell.moves(0, -1)
        release()


def test_a_tab_that_goes_out_of_sight_is_released(cell):
    with closing(cell.operator()) as tab:
        release = tab.press("[data-jog='3']")
        cell.moves(0, +1)
        with closing(cell.open(window=False)):
            assert tab.js("document.hidden")
            cell.rests()
        tab.front()
        cell.rests(0.3)
        release()


def test_a_tab_that_is_closed_while_jogging_stops_the_arm_and_frees_control(cell):
    tab = cell.operator()
    tab.press("[data-jog='3']")
    cell.moves(0, +1)
    tab.close()
    cell.rests()
    with closing(cell.open()) as next_tab:
        next_tab.wait_text("#operator", "nobody operates")


def test_on_a_phone_fingers_jog_and_a_second_one_works_the_gripper(cell):
    with closing(cell.open(width=390, height=844, phone=True, dark=False)) as tab:
        assert tab.js("document.documentElement.scrollWidth") <= 390
        take(tab, "Bob")
        for selector in ("#stop", "#control", "[data-jog='0']", "[data-grip='0']", "#start"):
            width, height = tab.js(f"(() => {{ const box = document.querySelector(\"{selector}\").getBoundingClientRect(); "
                                   "return [box.width, box.height]; })()")
            assert width >= 44 and height >= 44, f"{selector} is too small for a finger"
        opening = tab.text("#arm")
        assert "gripper" in opening
        tab.touch(["[data-jog='1']"])
        cell.moves(1, -1)
        tab.touch([])
        cell.rests()
        wanted = "Open" if "gripper 0 %" in opening else "Close"
        tab.touch([f"[data-grip='{int(wanted == 'Open')}']"])
        tab.wait_text("#arm", "gripper 100 %" if wanted == "Open" else "gripper 0 %")
        tab.touch([])


def test_an_episode_is_recorded_judged_and_listed_with_its_audit(cell):
    with closing(cell.operator("Ada Lovelace")) as tab:
        tab.wait_text("#instruction", "forward")
        tab.click("#start")
        tab.wait_text("#recording", "REC", 15)
        release = tab.press("[data-jog='3']")
        cell.moves(0, +1, 0.03)
        tab.wait("document.querySelector('#warnings').children.length > 0", "the word of the audit")
        release()
        tab.click("#success")
        tab.wait_text("#notes", "saved as a success")
        tab.wait_text("#start", "Start episode")
        [episode] = find_episodes(cell.bags)
        metadata, audit = read_episode_metadata(episode), read_audit(episode)
        assert (metadata.success, metadata.operator, metadata.domain, metadata.task, metadata.seed) == (
            True, "Ada Lovelace", "standin", "push_cube", 3)
        with Bag(episode) as bag:
            assert bag.counts[topics.TELEOP_TWIST] > 5 and bag.counts[CONTRACT.topics.gripper_command] > 5
        tab.wait_text("#episodes", f"audit: {audit.verdict}")
        assert metadata.instruction in tab.text("#episodes") and episode.name in tab.text("#episodes")
        assert "1 recorded, 1 successful" in tab.text(".episodes h2")
        tab.click("#start")
        tab.wait_text("#recording", "REC", 15)
        picture_while_jogging(tab)
        assert cell.client.set_bool("/sim/pause", True)[0]
        tab.wait_text("#warnings", "silent")
        assert cell.client.set_bool("/sim/pause", False)[0]
        tab.click("#discard")
        cell.client.spin_for(0.3)
        assert tab.text("#recording"), "a click does not discard"
        release = tab.press("#discard")
        tab.wait_text("#notes", "discarded")
        release()
        tab.wait_text("#start", "Start episode", 0.5)
        assert len(find_episodes(cell.bags)) == 1


def test_a_new_scene_brings_another_instruction_and_seed(cell):
    scenes = cell.client.subscribe(String, topics.SCENE, STATE_QOS, matched_s=10)
    with closing(cell.operator()) as tab:
        seed = int(tab.text("#task").rsplit("scene ", 1)[1])
        tab.click("#scene")
        tab.wait_text("#task", f"scene {seed + 1}", 20)

    def begun():
        steps = [json.loads(message.data)["steps"] for message in scenes.messages]
        return any(after < before for before, after in pairwise(steps))

    cell.client.wait_until(begun, 10, "the new scene on the table, and the arm at its start")


def test_stop_works_for_a_watching_page_latches_the_gate_and_is_cleared_deliberately(cell):
    with closing(cell.operator()) as tab, closing(cell.open(dark=False)) as watcher:
        assert watcher.js("['#start', '#policy', '#scene'].every((id) => document.querySelector(id).disabled)")
        tab.front()
        release = tab.press("[data-jog='3']")
        cell.moves(0, +1)
        watcher.click("#stop")
        cell.client.wait_until(lambda: cell.gate()["state"] == "STOPPED", 2, "the latched stop")
        cell.rests(0.4)
        tab.wait_text("#latched", "Stopped")
        release()
        tab.click("#rearm")
        cell.client.spin_for(0.4)
        assert cell.gate()["state"] == "STOPPED", "a click does not re-arm"
        assert watcher.js("document.querySelector('#rearm').disabled")
        tab.front()
        release = tab.press("#rearm")
        tab.wait_text("#gate-state", "IDLE")
        release()
        watcher.key("Escape", "Escape", True)
        cell.client.wait_until(lambda: cell.gate()["state"] == "STOPPED", 2, "the stop by key")
        tab.wait_text("#rearm", "Hold")
        release = tab.press("#rearm")
        tab.wait_text("#gate-state", "IDLE")
        release()


def test_the_policy_gets_the_arm_deliberately_and_a_jog_takes_it_back(cell):
    with closing(cell.operator()) as tab:
        release = tab.press("#policy")
        cell.client.wait_until(lambda: cell.gate()["policy_enabled"] == "True", 5, "the policy in charge")
        release()
        tab.wait_text("#driver", "policy")
        release = tab.press("[data-jog='0']")
        cell.moves(0, -1, 0.01)
        release()
        assert cell.gate()["policy_enabled"] == "False"
        tab.wait_text("#policy-text", "The policy is off")


def test_only_the_first_page_operates_and_the_camera_is_live(cell):
    with closing(cell.operator()) as tab, closing(cell.open()) as other:
        other.wait_text("#operator", "Ada operates")
        other.click("#control")
        other.click("#who .primary")
        other.wait_text("#notes", "give control back first")
        for page in (tab, other):
            source = page.js("document.querySelector('#picture').src")
            page.wait(f"document.querySelector('#picture').src !== {json.dumps(source)}", "another picture", 3)
        tab.click("#control")
        other.wait_text("#operator", "nobody operates")


# -- other cells


def test_a_stop_without_a_gate_says_that_the_arm_was_not_stopped_and_a_real_tables_episode_is_chosen_in_the_page(
        tmp_path, ros_domain):
    with Processes(tmp_path / "logs", ros_domain) as processes, RosClient("table", ros_domain, processes.check) as client:
        processes.start_node("rlco_teleop.nodes.recorder_node", output_directory=str(tmp_path / "bags"))
        processes.start_node("rlco_teleop.nodes.console_node", port=0, host="0.0.0.0", output_directory=str(tmp_path / "bags"))
        for node in ("/recorder", "/console"):
            client.wait_active(node)
        url = next(word for word in processes["console_node"].tail().split() if "?token=" in word)
        port, token = int(url.rpartition(":")[2].partition("/")[0]), url.partition("=")[2]
        base = f"http://127.0.0.1:{port}"

        async def operate():
            async with aiohttp.ClientSession() as session:
                headers = {"Origin": base}
                with pytest.raises(aiohttp.WSServerHandshakeError):
                    await session.ws_connect(f"{base}/socket", headers=headers)
                page = await session.ws_connect(f"{base}/socket?token={token}", headers=headers)

                async def until(kind, true):
                    deadline = time.monotonic() + 15
                    while time.monotonic() < deadline:
                        message = json.loads((await page.receive(timeout=5)).data)
                        if message["do"] == kind and true(message):
                            return message
                    raise AssertionError(f"no such {kind}")

                await page.send_str('{"do": "stop"}')
                await until("note", lambda note: "NOT STOPPED" in note["text"] and not note["good"])
                await until("state", lambda state: state["gate"]["state"] == "SILENT" and state["recorder"]["there"])
                await page.send_str(json.dumps({"do": "episode", "task": "open_drawer", "instruction": "open it"}))
                await until("note", lambda note: note["text"] == "take control first")
                await page.send_str('{"do": "take", "name": "Ada"}')
                await page.send_str(json.dumps({"do": "episode", "task": "dance", "instruction": "x"}))
                await until("note", lambda note: "open_drawer" in note["text"])
                await page.send_str(json.dumps({"do": "episode", "task": "open_drawer", "instruction": "open it"}))
                await until("state", lambda state: state["episode"]["instruction"] == "open it")

        asyncio.run(operate())
        answer = client.call(GetParameters, "/recorder/get_parameters", GetParameters.Request(names=["task", "instruction"]))
        assert [parameter_value_to_python(value) for value in answer.values] == ["open_drawer", "open it"]
