"""What our server tells about its policy, and what a request holds, on top of openpi's protocol (codec.py).

A request has `observation/<camera>` (uint8 [H, W, 3]), `observation/state` (float32 [S], the contract's proprioception in
physical units), `prompt`, and may have what openpi's clients do not send: `steps` (of the horizon), `rtc/prev_chunk`
(float32 [n, 7]) with `rtc/delay`, and `seed` (a new episode begins). The answer has `actions` (float32 [steps, 7], physical
units) and `server_timing/infer_ms` as in openpi.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlco_common.contract import Contract, contract_from_json, require_same_contract
from rlco_common.errors import DataError, PolicyServerError
from rlco_common.strict import from_mapping, to_mapping
from rlco_policy.execution import START, Continuation

VERSION = 1
SECTION = "rlco"            # of the metadata that the server sends first
MAX_MESSAGE_BYTES = 64 * 2**20
MAX_PROMPT_CHARACTERS = 2000
IMAGE, STATE, PROMPT, STEPS, SEED = "observation/", "observation/state", "prompt", "steps", "seed"
PREVIOUS, DELAY = "rtc/prev_chunk", "rtc/delay"
ACTIONS, TIMING = "actions", "server_timing"


@dataclass(frozen=True)
class ServedPolicy:
    """The policy behind a server. digest: of the checkpoint with its weights; statistics_hash: of its normalisation."""

    version: int
    policy: str
    digest: str
    contract: str
    statistics_hash: str
    horizon: int
    chunk: int
    image_size: int
    cameras: tuple[str, ...]
    real_time_chunking: bool
    temperature: float

    def metadata(self) -> dict[str, Any]:
        return {SECTION: to_mapping(self)}


def served_policy(metadata: dict[str, Any], contract: Contract, address: str) -> ServedPolicy:
    """What the metadata of a server says. Raises ContractMismatch or PolicyServerError when it does not fit this robot."""
    if not isinstance(metadata.get(SECTION), dict):
        raise PolicyServerError(f"{address} does not tell the contract of its policy (no '{SECTION}' in its metadata), so it "
                                "cannot be checked; serve a checkpoint with 'rlco serve'")
    served = from_mapping(ServedPolicy, metadata[SECTION], f"metadata of {address}")
    if served.version != VERSION:
        raise PolicyServerError(f"{address} speaks version {served.version} of the protocol, this robot {VERSION}; "
                                "install the same release on both machines")
    require_same_contract(contract, contract_from_json(served.contract, address), f"the policy of {address}")
    return served


@dataclass(frozen=True)
class Request:
    """One observation, checked. images: [H, W, 3] uint8; state: [S] float32; seed: None unless an episode begins."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    prompt: str
    steps: int
    continuation: Continuation
    seed: int | None


def parse_request(message: dict[str, Any], served: ServedPolicy, contract: Contract) -> Request:
    """Raises DataError naming the entry that is missing or wrong."""
    images = {name: _image(message, IMAGE + name, served.image_size) for name in served.cameras}
    names = contract.proprioception_names
    state = _numbers(message, STATE, (len(names),))
    prompt = message.get(PROMPT)
    if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT_CHARACTERS:
        raise DataError(f"'{PROMPT}' must be a text of at most {MAX_PROMPT_CHARACTERS} characters")
    steps = _integer(message, STEPS, served.chunk, 1, served.horizon)
    continuation = START
    if PREVIOUS in message:
        previous = _numbers(message, PREVIOUS, (None, contract.action.dim)).astype(np.float64)
        continuation = Continuation(previous, _integer(message, DELAY, 0, 0, len(previous)))
    seed = _integer(message, SEED, 0, -1, 2**62) if SEED in message else None
    return Request(images, state, prompt, steps, continuation, seed)


def _image(message, key, size) -> np.ndarray:
    image = message.get(key)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(
            image.shape[:2]) < size:
        raise DataError(f"'{key}' must be a uint8 image [H, W, 3] of at least {size}x{size}, is {_shape(image)}")
    return image


def _numbers(message, key, shape) -> np.ndarray:
    value = message.get(key)
    fits = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True))
    if not fits:
        wanted = ", ".join("n" if size is None else str(size) for size in shape)
        raise DataError(f"'{key}' must be an array [{wanted}] of floats, is {_shape(value)}")
    if not np.isfinite(value).all():
        raise DataError(f"'{key}' holds a number that is not finite")
    return value.astype(np.float32)


def _integer(message, key, default, low, high) -> int:
    value = message.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise DataError(f"'{key}' must be a whole number in {low}..{high}, is {value!r}")
    return int(value)


def _shape(value) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "missing" if value is None else type(value).__name__
