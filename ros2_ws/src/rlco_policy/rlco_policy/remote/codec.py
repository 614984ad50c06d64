"""Messages of openpi's websocket protocol: msgpack with numpy arrays, and nothing that could carry code.

An array is the map {b"__ndarray__": true, b"data": its bytes in C order, b"dtype": such as "<f4", b"shape": [...]}, a numpy
scalar {b"__npgeneric__": true, b"data": number, b"dtype": ...}. Decoded arrays are read-only views of the message.
"""

import math
from typing import Any

import msgpack
import numpy as np

from rlco_common.errors import DataError

_ARRAY, _SCALAR, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
_KINDS = "biuf"     # booleans, integers, floats


def encode(message: dict[str, Any]) -> bytes:
    """Plain data with numpy arrays and scalars to bytes. Raises DataError on anything else."""
    try:
        return msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"message cannot be encoded: {error}") from error


def decode(data: bytes) -> dict[str, Any]:
    """The inverse of encode. Raises DataError when the bytes are not such a message."""
    try:
        message = msgpack.unpackb(data, object_hook=_decode)
    except DataError:
        raise
    except Exception as error:      # msgpack raises several kinds of its own, all of which mean the same here
        raise DataError(f"not a message of the policy protocol: {error!r}") from error
    if not isinstance(message, dict):
        raise DataError(f"a message is a map, this is {type(message).__name__}")
    return message


def _encode(value):
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in _KINDS:
        raise TypeError(f"arrays of dtype {value.dtype} are not sent")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: list(value.shape)}
    if isinstance(value, np.generic):
        return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    raise TypeError(f"{type(value).__name__} is neither plain data nor numpy")


def _decode(value: dict):
    if _ARRAY in value:
        return _array(value)
    if _SCALAR in value:
        return _dtype(value).type(value.get(_DATA, 0))
    return value


def _array(value: dict) -> np.ndarray:
    dtype, shape, data = _dtype(value), value.get(_SHAPE), value.get(_DATA)
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape) or len(shape) > 8:
        raise DataError(f"array with shape {shape!r}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise DataError(f"array {shape} of {dtype} does not have {math.prod(shape) * dtype.itemsize} bytes of data")
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(value: dict) -> np.dtype:
    text = value.get(_DTYPE)
    try:
        dtype = np.dtype(text) if isinstance(text, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in _KINDS:
        raise DataError(f"arrays of dtype {text!r} are not taken; numbers and booleans are")
    return dtype
