"""Serves one policy over openpi's websocket protocol (codec.py, protocol.py), in a thread with a loop of its own.

`GET /healthz` answers 200 once the policy is warm. Every connection has random numbers of its own; inferences run one after
the other on one thread. A request that cannot be answered gets a text that says why, and the end of its connection, as
openpi's clients expect.
"""

import asyncio
import hashlib
import hmac
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from aiohttp import WSCloseCode, WSMsgType, web

from rlco_common.errors import ConfigError, RlcoError
from rlco_policy.checkpoint import WEIGHTS, load_policy, read_description, resolve
from rlco_policy.interface import ObsBatch, VLAPolicy
from rlco_policy.remote import protocol
from rlco_policy.remote.codec import decode, encode
from rlco_policy.runner import PolicyRunner

MAX_CONNECTIONS = 16
START_TIMEOUT_S = 10.0
HEARTBEAT_S = 20.0
_log = logging.getLogger(__name__)


def describe(policy: VLAPolicy, checkpoint: str | Path, temperature: float) -> protocol.ServedPolicy:
    """What the server tells about a loaded checkpoint."""
    description, spec = read_description(checkpoint), policy.spec
    digest = hashlib.sha256(description["digest"].encode())
    with (resolve(checkpoint) / WEIGHTS).open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return protocol.ServedPolicy(
        protocol.VERSION, description["policy"], digest.hexdigest(), policy.contract.to_json(), policy.statistics.hash,
        spec.horizon, spec.chunk, spec.image_size, tuple(spec.cameras), policy.real_time_chunking, temperature)


class PolicyServer:
    """Serves from construction until `close`. Raises ConfigError when the address cannot be bound.

    `port` is the one in use, also when 0 was asked for. api_key: "" lets everybody in who can reach the address.
    """

    def __init__(self, checkpoint: str | Path, host: str = "localhost", port: int = 8000, *, api_key: str = "",
                 temperature: float = 0.0, device: str = "cpu"):
        policy = load_policy(checkpoint).to(device)
        self.served = describe(policy, checkpoint, temperature)
        self._policy, self._api_key = policy, api_key
        self._sockets: set[web.WebSocketResponse] = set()
        self._web: web.AppRunner | None = None
        self._runner().warm_up()
        self._model = ThreadPoolExecutor(1, "model")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="policy-server", daemon=True)
        self._thread.start()
        try:
            self.port = self._do(self._start(host, port))
        except OSError as error:
            self.close()
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from error

    def close(self) -> None:
        """End connections, server and threads."""
        if self._thread.is_alive():
            self._do(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_TIMEOUT_S)
        self._loop.close()
        self._model.shutdown()

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_TIMEOUT_S)

    def _runner(self) -> PolicyRunner:
        return PolicyRunner(self._policy, self._policy.contract, self.served.temperature)

    async def _start(self, host: str, port: int) -> int:
        application = web.Application()
        application.add_routes([web.get("/healthz", self._health), web.get("/", self._connection)])
        self._web = web.AppRunner(application, access_log=None)
        await self._web.setup()
        site = web.TCPSite(self._web, host, port)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._web is None:
            return
        for socket in tuple(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")
        await self._web.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="OK\n")

    async def _connection(self, request: web.Request) -> web.StreamResponse:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        socket = web.WebSocketResponse(compress=False, max_msg_size=protocol.MAX_MESSAGE_BYTES, heartbeat=HEARTBEAT_S)
        await socket.prepare(request)
        self._sockets.add(socket)
        _log.info("%s connected", request.remote)
        try:
            await socket.send_bytes(encode(self.served.metadata()))
            await self._answer_all(socket)
        finally:
            self._sockets.discard(socket)
            _log.info("%s left", request.remote)
        return socket

    def _refusal(self, request: web.Request) -> web.Response | None:
        if "Origin" in request.headers:     # a page in somebody's browser; robots send none
            return web.Response(status=403, text="not for web pages\n")
        expected = f"Api-Key {self._api_key}"
        given = request.headers.get("Authorization", "")
        if self._api_key and not hmac.compare_digest(given.encode(), expected.encode()):
            return web.Response(status=401, text="the API key is missing or wrong\n")
        if len(self._sockets) >= MAX_CONNECTIONS:
            return web.Response(status=503, text="too many connections\n")
        return None

    async def _answer_all(self, socket: web.WebSocketResponse) -> None:
        runner = self._runner()
        async for message in socket:
            if message.type != WSMsgType.BINARY:
                continue
            received = time.monotonic()
            try:
                answer = await self._loop.run_in_executor(self._model, self._infer, runner, message.data)
                answer[protocol.TIMING]["total_ms"] = (time.monotonic() - received) * 1e3
                await socket.send_bytes(encode(answer))
            except RlcoError as error:
                await self._give_up(socket, str(error))
                return
            except Exception:
                _log.exception("inference failed")
                await self._give_up(socket, "the inference failed; see the server's log")
                return

    async def _give_up(self, socket: web.WebSocketResponse, reason: str) -> None:
        await socket.send_str(reason)
        await socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"see the text before")

    def _infer(self, runner: PolicyRunner, data: bytes) -> dict:
        """Runs on the model's thread."""
        request = protocol.parse_request(decode(data), self.served, self._policy.contract)
        if request.seed is not None:
            runner.new_episode(request.seed)
        started = time.monotonic()
        batch = ObsBatch({name: torch.from_numpy(image.copy())[None] for name, image in request.images.items()},
                         torch.from_numpy(request.state)[None], [request.prompt])
        actions = runner.infer_batch(batch, request.steps, request.continuation)
        return {protocol.ACTIONS: actions.astype(np.float32),
                protocol.TIMING: {"infer_ms": (time.monotonic() - started) * 1e3}}
