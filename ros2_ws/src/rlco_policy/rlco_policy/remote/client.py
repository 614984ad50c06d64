"""A policy on a server as a runner of this robot. No torch here: the robot's computer needs none.

The connection is used by one thread at a time. Whatever goes wrong ends it and raises PolicyServerError, so that no chunk
is published and the gate holds; the next inference connects again, after a pause that grows while that fails.
"""

import asyncio
import os
import time

import aiohttp
import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import PolicyServerError, RlcoError
from rlco_common.observation import Observation, encode_image, encode_proprioception
from rlco_policy.execution import START, Continuation
from rlco_policy.remote import protocol
from rlco_policy.remote.codec import decode, encode

API_KEY = "RLCO_API_KEY"    # environment variable; an argument would show in every list of processes
CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0


class RemoteRunner:
    """The policy of a server, checked against this robot's contract when the connection is opened."""

    def __init__(self, address: str, contract: Contract, *, timeout_s: float = 2.0, api_key: str | None = None):
        """Connects. Raises PolicyServerError or ContractMismatch."""
        self.address, self.contract, self.timeout_s = address, contract, timeout_s
        self._api_key = os.environ.get(API_KEY) if api_key is None else api_key
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._pause_s, self._retry_at, self._problem = 0.0, 0.0, ""
        self._seed: int | None = 0
        self.latency_s = 0.0
        self.served: protocol.ServedPolicy | None = None
        try:
            self._do(self._connect(), CONNECT_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self.horizon, self.chunk, self.guided = self.served.horizon, self.served.chunk, self.served.real_time_chunking

    def new_episode(self, seed: int = 0) -> None:
        """The server starts its random numbers over with the next inference."""
        self._seed = seed

    def infer(self, observation: Observation, instruction: str, steps: int | None = None,
              continuation: Continuation = START) -> np.ndarray:
        """Actions float64 [steps or chunk, 7], physical units, as PolicyRunner gives them. Raises PolicyServerError."""
        images = {name: encode_image(observation.images[name], self.served.image_size) for name in self.served.cameras}
        return self._request(images, encode_proprioception(self.contract, observation), instruction, steps or self.chunk,
                             continuation)

    def warm_up(self) -> None:
        """Inferences on neutral input; the last one sets latency_s."""
        size = self.served.image_size
        task = next(iter(self.contract.tasks.values()))
        instruction = task.instruction(0, **{name: values[0] for name, values in task.slots.items()})
        state = np.zeros(len(self.contract.proprioception_names), np.float32)
        for _ in range(3):
            started = time.monotonic()
            self._request({name: np.full((size, size, 3), 128, np.uint8) for name in self.served.cameras}, state, instruction,
                          self.chunk, START)
            self.latency_s = time.monotonic() - started
        self.new_episode(0)

    def close(self) -> None:
        """End the connection."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._disconnect())
            self._loop.close()

    def _request(self, images, state, instruction, steps, continuation) -> np.ndarray:
        message = {protocol.IMAGE + name: image for name, image in images.items()}
        message |= {protocol.STATE: state, protocol.PROMPT: instruction, protocol.STEPS: steps}
        if continuation.previous is not None:
            message |= {protocol.PREVIOUS: continuation.previous.astype(np.float32), protocol.DELAY: continuation.delay}
        if self._seed is not None:
            message[protocol.SEED] = self._seed
        if self._socket is None:
            self._reconnect()
        answer = self._do(self._exchange(encode(message)), self.timeout_s)
        self._seed = None
        return self._checked(answer.get(protocol.ACTIONS), steps)

    def _checked(self, actions, steps: int) -> np.ndarray:
        shape = (steps, self.contract.action.dim)
        if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f" or actions.shape != shape:
            raise PolicyServerError(f"{self.address}: '{protocol.ACTIONS}' must be floats {list(shape)}, is "
                                    f"{list(actions.shape) if isinstance(actions, np.ndarray) else type(actions).__name__}")
        if not np.isfinite(actions).all():
            raise PolicyServerError(f"{self.address}: an action that is not finite; the chunk is dropped")
        return self.contract.action.clip(actions)

    def _reconnect(self) -> None:
        left_s = self._retry_at - time.monotonic()
        if left_s > 0:
            raise PolicyServerError(f"{self._problem}; next try in {left_s:.1f} s")
        self._do(self._connect(), max(self.timeout_s, FIRST_PAUSE_S))
        self._seed = 0 if self._seed is None else self._seed        # a new connection has random numbers of its own

    def _do(self, coroutine, timeout_s: float):
        """Run on the connection's loop. Every failure ends the connection and becomes a PolicyServerError."""
        try:
            result = self._loop.run_until_complete(asyncio.wait_for(coroutine, timeout_s))
        except TimeoutError:
            self._fail(f"policy server {self.address} did not answer within {timeout_s:g} s")
        except aiohttp.WSServerHandshakeError as error:
            self._fail(f"policy server {self.address} refused the connection: {error.status} {error.message}"
                       + (f"; set {API_KEY} to its key" if error.status == 401 else ""))
        except (aiohttp.ClientError, OSError) as error:
            self._fail(f"policy server {self.address} cannot be reached: {error}")
        except RlcoError as error:
            self._drop(str(error))
            raise
        self._pause_s = 0.0
        return result

    def _fail(self, problem: str) -> None:
        self._drop(problem)
        raise PolicyServerError(problem)

    def _drop(self, problem: str) -> None:
        """End the connection, and pause before the next one."""
        self._loop.run_until_complete(self._disconnect())
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._retry_at, self._problem = time.monotonic() + self._pause_s, problem

    async def _connect(self) -> None:
        headers = {"Authorization": f"Api-Key {self._api_key}"} if self._api_key else {}
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(self.address, headers=headers, compress=0,
                                                      max_msg_size=protocol.MAX_MESSAGE_BYTES)
        served = protocol.served_policy(await self._receive(), self.contract, self.address)
        if self.served is not None and served != self.served:
            raise PolicyServerError(f"{self.address} serves another policy now ({served.policy}, {served.digest[:12]} instead "
                                    f"of {self.served.policy}, {self.served.digest[:12]}); restart the node to accept it")
        self.served = served

    async def _exchange(self, data: bytes) -> dict:
        await self._socket.send_bytes(data)
        return await self._receive()

    async def _receive(self) -> dict:
        message = await self._socket.receive()
        if message.type == aiohttp.WSMsgType.BINARY:
            return decode(message.data)
        if message.type == aiohttp.WSMsgType.TEXT:
            raise PolicyServerError(f"policy server {self.address}: {message.data.strip()}")
        raise PolicyServerError(f"policy server {self.address} closed the connection")

    async def _disconnect(self) -> None:
        socket, session, self._socket, self._session = self._socket, self._session, None, None
        if socket is not None:
            await asyncio.wait_for(socket.close(), 1.0)
        if session is not None:
            await session.close()
