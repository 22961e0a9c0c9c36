"""Frames on pipes, and plain values as JSON: all that ever crosses a trust boundary.

Values are never pickled or marshalled: what a candidate sends is parsed as JSON and rebuilt from a
closed list of types. Anything else becomes a `Foreign`: a handle that equals nothing but itself.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import struct
import sys
from typing import Any

_LENGTH = struct.Struct("<Q")
MAX_FRAME = 1 << 30
MAX_ITERATOR = 100_000


class WireError(Exception):
    """A frame that is too long, cut short, or not of the closed list of types."""


class Foreign:
    """An object that lives in the candidate's process; the tests can pass it back or drop it."""

    def __init__(self, index: int, kind: str, truth: bool) -> None:
        self.index, self.kind, self._truth = index, kind, truth

    def __bool__(self) -> bool:
        return self._truth

    def __repr__(self) -> str:
        return f"<{self.kind} in the candidate's process>"


def write_all(fd: int, data: bytes) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def frames(*payloads: bytes) -> bytes:
    """Frames, one after the other: each is eight bytes of length, then the payload."""
    return b"".join(_LENGTH.pack(len(payload)) + payload for payload in payloads)


def send(fd: int, *payloads: bytes) -> None:
    """Write frames, as many as there are payloads, at once."""
    write_all(fd, frames(*payloads))


def read_exactly(fd: int, size: int) -> bytes | None:
    """Read `size` bytes; None at the end of the stream before the first of them."""
    chunks: list[bytes] = []
    left = size
    while left:
        chunk = os.read(fd, min(left, 1 << 20))
        if not chunk:
            if chunks:
                raise WireError("the stream ended inside a frame")
            return None
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def receive(fd: int) -> bytes | None:
    """Read one frame; None when the other end has closed. Never reads past the frame."""
    prefix = read_exactly(fd, _LENGTH.size)
    if prefix is None:
        return None
    (size,) = _LENGTH.unpack(prefix)
    if size > MAX_FRAME:
        raise WireError(f"a frame of {size} bytes")
    body = read_exactly(fd, size)
    if body is None:
        raise WireError("the stream ended inside a frame")
    return body


class Reader:
    """Frames of a stream that nobody else reads, with as few system calls as possible."""

    def __init__(self, fd: int) -> None:
        self._fd, self._buffer = fd, bytearray()

    def waiting(self, seconds: float) -> bool:
        """Whether something to read is there, or comes within this time."""
        return bool(self._buffer) or bool(select.select([self._fd], [], [], seconds)[0])

    def next(self) -> bytes | None:
        """The next frame; None when the other end has closed.

        Raises:
            WireError: when the stream ends inside a frame, or a frame is too long.
        """
        if not self._fill(_LENGTH.size):
            return None
        (size,) = _LENGTH.unpack_from(self._buffer)
        if size > MAX_FRAME:
            raise WireError(f"a frame of {size} bytes")
        self._fill(end := _LENGTH.size + size)
        frame = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return frame

    def _fill(self, size: int) -> bool:
        """Read until the buffer holds `size` bytes; False when the stream has ended before any."""
        while len(self._buffer) < size:
            chunk = os.read(self._fd, 1 << 16)
            if not chunk:
                if self._buffer:
                    raise WireError("the stream ended inside a frame")
                return False
            self._buffer += chunk
        return True


def send_json(fd: int, value: Any, *payloads: bytes) -> None:
    """Send a JSON value as one frame, and more frames after it."""
    send(fd, json.dumps(value).encode(), *payloads)


def receive_json(fd: int) -> Any:
    """Receive one frame of JSON; None when the other end has closed."""
    body = receive(fd)
    return None if body is None else json.loads(body)


class Encoder:
    """Python values to JSON; keeps the objects it could not spell out, by index."""

    def __init__(self, keep_objects: bool) -> None:
        self.objects: list[Any] = []
        self._keep = keep_objects

    def encode(self, value: Any) -> Any:
        """The JSON form of `value`: itself where JSON has it, else `{"t": type, "v": parts}`.

        Raises:
            WireError: for an object without a JSON form when none are kept.
        """
        kind = type(value)
        if kind in _AS_IT_IS:
            return value
        if isinstance(value, int):
            number = int(value)
            # hex is exempt from the interpreter's limit on decimal digits
            return number if -(1 << 63) <= number < 1 << 63 else {"t": "int", "v": hex(number)}
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, list):
            return [item if type(item) in _AS_IT_IS else self.encode(item) for item in value]
        for kind, tag in _SEQUENCES:
            if isinstance(value, kind):
                items = [self.encode(item) for item in value]
                # Equal sets have one form, whatever order they were filled in.
                return {"t": tag, "v": items if tag == "tuple" else sorted(items, key=repr)}
        if isinstance(value, dict):
            pairs = [[self.encode(k), self.encode(v)] for k, v in dict.items(value)]
            return {"t": "dict", "v": pairs}
        if isinstance(value, complex):
            return {"t": "complex", "v": [value.real, value.imag]}
        if isinstance(value, (bytes, bytearray)):
            return {"t": type(value).__name__, "v": bytes(value).hex()}
        if isinstance(value, range):
            return {"t": "range", "v": [value.start, value.stop, value.step]}
        return self._encode_rare(value)

    def _encode_rare(self, value: Any) -> Any:
        if isinstance(value, Foreign):
            return {"t": "object", "v": value.index}
        kind = type(value)
        if kind.__module__ in ("decimal", "_decimal") and kind.__name__ == "Decimal":
            return {"t": "Decimal", "v": str(value)}
        if kind.__module__ == "fractions" and kind.__name__ == "Fraction":
            return {"t": "Fraction", "v": [value.numerator, value.denominator]}
        if kind.__module__ == "collections" and kind.__name__ == "deque":
            return {"t": "deque", "v": [self.encode(item) for item in value]}
        if kind.__module__ == "numpy" and hasattr(kind, "tolist"):
            if value.shape == ():
                return self.encode(value.item())
            if kind.__name__ == "ndarray" and value.dtype.kind in _ARRAYS:
                array = [value.dtype.str, list(value.shape), self.encode(value.ravel().tolist())]
                return {"t": "ndarray", "v": array}
        if kind in _VIEWS:
            return {"t": kind.__name__, "v": [self.encode(item) for item in value]}
        if not self._keep:
            raise WireError(f"a {kind.__name__} cannot be handed to the program")
        if hasattr(kind, "__next__"):
            items = [self.encode(item) for item in itertools.islice(value, MAX_ITERATOR)]
            return {"t": "iterator", "v": items}
        self.objects.append(value)
        handle = {"t": "object", "v": len(self.objects) - 1}
        return {**handle, "kind": kind.__name__, "truth": bool(value)}


_AS_IT_IS = {str, bool, float, type(None)}
_SEQUENCES: tuple[tuple[Any, str], ...] = (
    (tuple, "tuple"),
    (set, "set"),
    (frozenset, "frozenset"),
)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


def _decode_object(message: dict[str, Any], objects: list[Any]) -> Any:
    index = message["v"]
    if objects:
        return objects[index]
    return Foreign(int(index), str(message.get("kind")), message.get("truth") is True)


def decode(message: Any, objects: list[Any] | None = None) -> Any:
    """The value that `Encoder.encode` wrote; `objects` resolves handles on the owner's side.

    Raises:
        WireError: for anything that the encoder doesn't write.
    """
    if isinstance(message, list):
        return [decode(item, objects) for item in message]
    if not isinstance(message, dict):
        return message
    try:
        tag, parts = message["t"], message["v"]
        if tag == "object":
            return _decode_object(message, objects or [])
        if tag == "int":
            return int(parts, 16)
        if tag == "dict":
            return {decode(k, objects): decode(v, objects) for k, v in parts}
        if tag in ("bytes", "bytearray"):
            return _TYPES[tag](bytes.fromhex(parts))
        if tag == "complex":
            return complex(*parts)
        if tag == "range":
            return range(*parts)
        if tag in ("Decimal", "Fraction"):
            return _decode_number(tag, parts)
        if tag == "ndarray":
            return _decode_array(*parts)
        if tag == "deque":
            from collections import deque

            return deque(decode(item, objects) for item in parts)
        return _TYPES[tag](decode(item, objects) for item in parts)
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise WireError(f"a malformed value ({error})") from error


def _decode_array(dtype: str, shape: list[int], flat: Any) -> Any:
    import numpy as np

    kind = np.dtype(dtype)
    if kind.kind not in _ARRAYS:
        raise WireError(f"an array of {dtype}")
    return np.array(decode(flat), dtype=kind).reshape(shape)


def _decode_number(tag: str, parts: Any) -> Any:
    if tag == "Decimal":
        from decimal import Decimal

        return Decimal(parts)
    from fractions import Fraction

    return Fraction(*parts)


_ARRAYS = "biufc"  # truth values and numbers

_TYPES: dict[str, Any] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytes": bytes,
    "bytearray": bytearray,
    "iterator": lambda items: iter(list(items)),
    "dict_keys": lambda items: dict.fromkeys(items).keys(),
    "dict_values": lambda items: dict(enumerate(items)).values(),
    "dict_items": lambda items: dict(items).items(),
}


def unlimited_digits() -> None:
    """Lift the interpreter's limit on decimal digits (in trusted processes only)."""
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
