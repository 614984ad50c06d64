"""A policy on a server: what crosses the wire is what was sent, the chunks are the local ones, and failures are named."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import aiohttp
import msgpack
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlco_common.contract import load_contract
from rlco_common.errors import ContractMismatch, DataError, PolicyServerError
from rlco_common.observation import Observation
from rlco_common.pose import Pose
from rlco_policy.checkpoint import load_policy, save_policy
from rlco_policy.execution import Continuation
from rlco_policy.registry import create_policy
from rlco_policy.remote import protocol
from rlco_policy.remote.client import RemoteRunner
from rlco_policy.remote.codec import decode, encode
from rlco_policy.remote.server import PolicyServer
from rlco_policy.runner import PolicyRunner
from rlco_policy.statistics import Statistics

CONTRACT = load_contract()
CAMERA, CAMERA_SPEC = next(iter(CONTRACT.cameras.items()))
RED = "push the red cube"


def observation(seed=0):
    rng = np.random.default_rng(seed)
    return Observation({CAMERA: rng.integers(0, 256, CAMERA_SPEC.shape, dtype=np.uint8)},
                       Pose(rng.normal([0.5, 0.0, 0.2], 0.05), [1.0, 0.0, 0.0, 0.0]), float(rng.random()),
                       rng.normal(size=7), 10**12)


@pytest.fixture(scope="module", params=["compact_flow", "compact_token"])
def checkpoint(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("served") / request.param, request.param)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("flow") / "policy", "compact_flow")


def make_checkpoint(path, name, seed=1):
    names = CONTRACT.proprioception_names
    statistics = Statistics.from_proprioception(names, np.random.default_rng(0).normal(0.2, 0.3, (50, len(names))))
    return save_policy(create_policy(name, CONTRACT, statistics, seed=seed), path)


@contextmanager
def serving(checkpoint, **options):
    server = PolicyServer(checkpoint, port=options.pop("port", 0), **options)
    try:
        yield server, f"ws://localhost:{server.port}"
    finally:
        server.close()


@contextmanager
def connected(address, contract=CONTRACT, **options):
    runner = RemoteRunner(address, contract, **options)
    try:
        yield runner
    finally:
        runner.close()


# -- codec


scalars = st.none() | st.booleans() | st.integers(-2**63, 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
arrays = hnp.arrays(st.sampled_from(["u1", "<f4", "<f8", "<i8", "?", ">i2", "<f2"]), hnp.array_shapes(min_dims=0, max_side=4),
                    elements=None)
values = st.recursive(scalars | arrays, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=8), inner, max_size=3), max_leaves=8)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_messages_survive_the_wire_bit_for_bit(message):
    assert same(message, decode(encode(message)))


def test_numpy_scalars_and_strided_arrays_survive_and_what_comes_is_read_only():
    back = decode(encode({"scalar": np.float32(0.1), "strided": np.arange(12).reshape(3, 4)[:, ::2]}))
    assert back["scalar"] == np.float32(0.1) and back["scalar"].dtype == np.float32
    assert back["strided"].tolist() == [[0, 2], [4, 6], [8, 10]] and not back["strided"].flags.writeable


@pytest.mark.parametrize("data", [
    b"", b"\xc1", msgpack.packb([1]), msgpack.packb({b"__ndarray__": True}),
    msgpack.packb({"a": {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [2]}}),
    msgpack.packb({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}}),
    msgpack.packb({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [-1, 0]}}),
    msgpack.packb({"a": {b"__npgeneric__": True, b"data": 1, b"dtype": "no"}}),
])
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(DataError):
        decode(data)


def test_what_is_neither_plain_data_nor_numbers_is_not_sent():
    for value in (object(), np.array([object()]), np.array([1j]), {1, 2}):
        with pytest.raises(DataError, match="cannot be encoded"):
            encode({"x": value})


# -- server and client


def test_chunks_over_the_wire_equal_the_local_ones_to_the_last_bit(checkpoint):
    with serving(checkpoint) as (_, address), connected(address) as remote:
        local = PolicyRunner(load_policy(checkpoint, CONTRACT), CONTRACT)
        assert (remote.horizon, remote.chunk, remote.guided) == (local.horizon, local.chunk, local.guided)
        remote.warm_up()
        assert 0 < remote.latency_s < 5
        seen = observation()
        whole = local.infer(seen, RED, local.horizon)
        assert np.array_equal(remote.infer(seen, RED), local.infer(seen, RED))
        assert np.array_equal(remote.infer(seen, RED, local.horizon), whole)
        going_on = Continuation(CONTRACT.action.denormalise(np.full((5, 7), 0.5)).astype(np.float32).astype(float), 2)
        continued = remote.infer(seen, RED, local.horizon, going_on)
        assert np.array_equal(continued, local.infer(seen, RED, local.horizon, going_on))
        assert np.array_equal(continued, whole) != local.guided


def test_random_actions_repeat_with_the_episodes_seed_for_each_robot(flow):
    with serving(flow, temperature=1.0) as (_, address), connected(address) as one, connected(address) as other:
        seen, results = observation(), []
        for runner, seed in ((one, 5), (one, 5), (other, 5), (one, 6)):
            runner.new_episode(seed)
            results.append(np.stack([runner.infer(seen, RED), runner.infer(seen, RED)]))
        assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
        assert not np.array_equal(results[0], results[3]) and not np.array_equal(*results[0])


def test_another_contract_is_refused_with_the_differing_fields(flow, tmp_path):
    from rlco_common.contract import contract_directory

    text = (contract_directory() / "panda_tabletop.yaml").read_text()
    (tmp_path / "other.yaml").write_text(text.replace("control_rate_hz: 5.0", "control_rate_hz: 10.0"))
    with serving(flow) as (_, address), pytest.raises(ContractMismatch, match=r"control_rate_hz: 10\.0 -> 5\.0"):
        RemoteRunner(address, load_contract(tmp_path / "other.yaml"))


def good_request():
    return {f"observation/{CAMERA}": np.zeros((64, 64, 3), np.uint8), "prompt": RED,
            "observation/state": np.zeros(len(CONTRACT.proprioception_names), np.float32)}


@pytest.mark.parametrize(("change", "problem"), [
    ({f"observation/{CAMERA}": None}, f"'observation/{CAMERA}' must be a uint8 image.*is missing"),
    ({f"observation/{CAMERA}": np.zeros((64, 64, 3), np.float32)}, r"is float32 \[64, 64, 3\]"),
    ({f"observation/{CAMERA}": np.zeros((32, 64, 3), np.uint8)}, "at least 64x64"),
    ({"observation/state": np.zeros(3, np.float32)}, r"'observation/state' must be an array \[10\] of floats"),
    ({"observation/state": np.full(10, np.nan, np.float32)}, "not finite"),
    ({"prompt": 3}, "'prompt' must be a text"), ({"prompt": "!?"}, "0 words"),
    ({"steps": 9}, r"'steps' must be a whole number in 1\.\.8, is 9"),
    ({"rtc/prev_chunk": np.zeros((2, 6), np.float32)}, r"'rtc/prev_chunk' must be an array \[n, 7\]"),
    ({"rtc/prev_chunk": np.zeros((2, 7), np.float32), "rtc/delay": 3}, r"'rtc/delay' must be a whole number in 0\.\.2"),
])
def test_a_wrong_request_is_answered_with_what_is_wrong_and_the_server_goes_on(flow, change, problem):
    async def ask(address, request):
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            assert "rlco" in decode((await socket.receive()).data)
            await socket.send_bytes(encode(request))
            answer = await socket.receive()
            return answer, await socket.receive(), socket.close_code

    with served_once(flow) as address:
        request = {key: value for key, value in (good_request() | change).items() if value is not None}
        answer, end, code = asyncio.run(ask(address, request))
        assert answer.type is aiohttp.WSMsgType.TEXT and code == 1011 and end.type is aiohttp.WSMsgType.CLOSE
        assert re.search(problem, answer.data), answer.data
        answer, _, _ = asyncio.run(asyncio.wait_for(ask_well(address), 10))
        assert decode(answer.data)["actions"].shape == (4, 7)


async def ask_well(address):
    async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
        await socket.receive()
        await socket.send_bytes(encode(good_request()))
        return await socket.receive(), None, None


_shared = {}


@contextmanager
def served_once(checkpoint):
    """One server for all the wrong requests."""
    if checkpoint not in _shared:
        _shared[checkpoint] = PolicyServer(checkpoint, port=0)
    yield f"ws://localhost:{_shared[checkpoint].port}"


@pytest.fixture(scope="module", autouse=True)
def _close_shared():
    yield
    while _shared:
        _shared.popitem()[1].close()


def test_a_key_keeps_strangers_out_and_web_pages_stay_out_anyway(flow):
    with serving(flow, api_key="secret") as (server, address):
        with pytest.raises(PolicyServerError, match=r"401.*set RLCO_API_KEY"):
            RemoteRunner(address, CONTRACT, api_key="guess")
        with connected(address, api_key="secret") as runner:
            assert runner.infer(observation(), RED).shape == (4, 7)
        page = urllib.request.Request(f"http://localhost:{server.port}/", headers={"Origin": "http://evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(page, timeout=5)
        with urllib.request.urlopen(f"http://localhost:{server.port}/healthz", timeout=5) as health:
            assert (health.status, health.read()) == (200, b"OK\n")


def test_a_server_that_is_not_there_or_is_no_policy_server_is_named():
    with pytest.raises(PolicyServerError, match="policy server ws://localhost:1 cannot be reached"):
        RemoteRunner("ws://localhost:1", CONTRACT)
    with foreign_server({}) as address, pytest.raises(PolicyServerError, match="does not tell the contract"):
        RemoteRunner(address, CONTRACT)


@contextmanager
def foreign_server(metadata, answer=lambda request: {}, delay_s=lambda count: 0.0):
    """Speaks the protocol with any metadata and answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    count = [0]

    async def connection(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_bytes(encode(metadata))
        async for message in socket:
            count[0] += 1
            await asyncio.sleep(delay_s(count[0]))
            await socket.send_bytes(encode(answer(decode(message.data))))
        return socket

    async def start():
        application = web.Application()
        application.add_routes([web.get("/", connection)])
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "localhost", 0)
        await site.start()
        return runner, site._server.sockets[0].getsockname()[1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(5)
    try:
        yield f"ws://localhost:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


def metadata(**changes):
    served = protocol.ServedPolicy(protocol.VERSION, "synthetic", "0" * 64, CONTRACT.to_json(), "", 8, 4, 64, (CAMERA,), False,
                                   0.0)
    return {"rlco": served.metadata()["rlco"] | changes}


def test_an_answer_of_the_wrong_shape_is_refused_and_one_that_is_late_never_used():
    still, short = {"actions": np.zeros((4, 7), np.float32)}, {"actions": np.zeros((3, 7), np.float32)}
    with (foreign_server(metadata(), lambda request: short) as address, connected(address) as runner,
          pytest.raises(PolicyServerError, match=r"must be floats \[4, 7\], is \[3, 7\]")):
        runner.infer(observation(), RED)
    with (foreign_server(metadata(), lambda request: still, lambda count: 0.6 if count == 1 else 0.0) as address,
          connected(address, timeout_s=0.25) as runner):
        with pytest.raises(PolicyServerError, match=r"did not answer within 0\.25 s"):
            runner.infer(observation(), RED)
        with pytest.raises(PolicyServerError, match="next try in"):
            runner.infer(observation(), RED)
        deadline = time.monotonic() + 5
        while (actions := attempt(runner)) is None:
            assert time.monotonic() < deadline
        assert actions.shape == (4, 7)


def attempt(runner):
    try:
        return runner.infer(observation(), RED)
    except PolicyServerError:
        time.sleep(0.02)
        return None


def test_a_server_that_comes_back_is_used_again_unless_it_serves_another_policy(flow, tmp_path):
    with serving(flow) as (server, address):
        runner, port = RemoteRunner(address, CONTRACT), server.port
        first = runner.infer(observation(), RED)
    try:
        with pytest.raises(PolicyServerError):
            runner.infer(observation(), RED)
        with serving(make_checkpoint(tmp_path / "other", "compact_flow", seed=2), port=port):
            assert "serves another policy now (compact_flow, " in problem_after_reconnecting(runner)
        with serving(flow, port=port):
            deadline = time.monotonic() + 20
            while (again := attempt(runner)) is None:
                assert time.monotonic() < deadline
            assert np.array_equal(again, first)
    finally:
        runner.close()


def problem_after_reconnecting(runner):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            runner.infer(observation(), RED)
            raise AssertionError("an inference of another policy")
        except PolicyServerError as error:
            if "cannot be reached" not in str(error) and "closed" not in str(error) and "next try" not in str(error):
                return str(error)
            time.sleep(0.02)
    raise AssertionError("it never connected again")


# -- over ROS, with the command


def start_server(checkpoint, port=0):
    """`rlco serve` as a process: (process, port)."""
    process = subprocess.Popen([sys.executable, "-m", "rlco_trainer.cli", "serve", str(checkpoint), "--port", str(port)],
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "RLCO_API_KEY": "k"})
    line = process.stdout.readline()
    assert line.startswith("serving compact_flow") and "clients need RLCO_API_KEY" in line
    return process, int(line.split("ws://localhost:")[1].split(";")[0])


def test_the_node_runs_a_remote_policy_says_when_it_dies_and_takes_it_up_again(flow, ros_domain, tmp_path, monkeypatch):
    from diagnostic_msgs.msg import DiagnosticStatus
    from test_policy_node import NODE, Robot, stream, stream_until_report

    from rlco_common.processes import Processes
    from rlco_common.ros_client import RosClient

    monkeypatch.setenv("RLCO_API_KEY", "k")
    server, port = start_server(flow)
    try:
        with Processes(tmp_path, ros_domain) as processes, RosClient("robot", ros_domain, processes.check) as client:
            robot = Robot(processes, client, flow)
            processes.start_node(NODE, checkpoint=f"ws://localhost:{port}", instruction=RED, remote_timeout_s=1.0)
            robot.connect()
            assert stream(robot, 8.0, lambda: len(robot.chunks) >= 3), "chunks of the remote policy"
            server.send_signal(signal.SIGKILL)
            server.wait()
            status = stream_until_report(robot, lambda s: "policy server ws://localhost" in s.message)
            assert status.level == DiagnosticStatus.WARN
            robot.chunks.clear()
            stream(robot, 1.5)
            assert not robot.chunks.messages, "without a server the gate has to hold"
            server, _ = start_server(flow, port)
            assert stream(robot, 12.0, lambda: robot.chunks.messages), "the server is back"
            stream_until_report(robot, lambda s: s.level == DiagnosticStatus.OK)
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
    finally:
        server.kill()


def test_the_client_side_needs_no_torch(tmp_path):
    """The robot's computer has none; the node must start there for a remote policy."""
    program = ("import sys; sys.modules['torch'] = None\n"
               "import rlco_policy.nodes.policy_node, rlco_policy.remote.client\n"
               "from rlco_policy.opening import open_runner\n"
               "from rlco_common.contract import load_contract\n"
               "from rlco_common.errors import PolicyServerError\n"
               "try: open_runner('ws://localhost:1', load_contract())\n"
               "except PolicyServerError as error: print('named', error)\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("named policy server ws://localhost:1"), done.stderr
