"""A client written from docs/reference/wire.md alone: no hostline, no MessagePack library, only sockets and struct.

It is what somebody who reads that page would write in another language, and so a test of the page. As a program,
`python foreign_client.py PATH METHOD`, it makes one call without arguments and prints the answer.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, NamedTuple

HELLO, CALL, REPLY, ERROR, ITEM, END, CANCEL, CREDIT, PING, PONG, GOAWAY = range(1, 12)
DEADLINE, NAMED, STREAM = 1, 2, 4
STREAM_CREDIT = 65536
MAGIC = b"hostline"
VERSION = 1
MAX_HELLO_SIZE = 65536
ABOUT_CONNECTION = (HELLO, PING, PONG, GOAWAY)
WITHOUT_PAYLOAD = (END, PING, PONG)
HEADER = struct.Struct("<IBBHII")


class Violation(Exception):
    """The server broke the rules of the page."""


class CallFailed(Exception):
    """The server answered with an ERROR."""

    def __init__(self, code: str, name: str, message: str) -> None:
        super().__init__(code, name, message)
        self.code = code
        self.name = name
        self.message = message


class Frame(NamedTuple):
    """A frame, its payload still encoded."""

    kind: int
    flags: int
    call_id: int
    method: int
    payload: bytes


# --- MessagePack ---------------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """Encode what calls need: nil, bool, int, float, str, bytes, list, dict."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _pack_int(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return _head(len(data), (0xA0, 32), 0xD9, 0xDA, 0xDB) + data
    if isinstance(value, bytes):
        return _head(len(value), None, 0xC4, 0xC5, 0xC6) + value
    if isinstance(value, list | tuple):
        return _head(len(value), (0x90, 16), None, 0xDC, 0xDD) + b"".join(pack(item) for item in value)
    if isinstance(value, dict):
        pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
        return _head(len(value), (0x80, 16), None, 0xDE, 0xDF) + pairs
    raise TypeError(f"cannot pack {type(value).__name__}")


def _pack_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("b", value)
    for head, form in (
        (0xCC, "B"), (0xCD, "H"), (0xCE, "I"), (0xCF, "Q"), (0xD0, "b"), (0xD1, "h"), (0xD2, "i"), (0xD3, "q"),
    ):  # fmt: skip
        try:
            return bytes([head]) + struct.pack(">" + form, value)
        except struct.error:
            continue
    raise OverflowError(f"{value} does not fit into 64 bits")


def _head(count: int, fixed: tuple[int, int] | None, one: int | None, two: int, four: int) -> bytes:
    if fixed is not None and count < fixed[1]:
        return bytes([fixed[0] + count])
    if one is not None and count < 1 << 8:
        return bytes([one, count])
    if count < 1 << 16:
        return bytes([two]) + struct.pack(">H", count)
    return bytes([four]) + struct.pack(">I", count)


def unpack(data: bytes) -> Any:
    """Decode exactly one value."""
    value, end = _unpack(data, 0)
    if end != len(data):
        raise Violation(f"{len(data) - end} bytes behind the value")
    return value


_NUMBERS = {
    0xCA: "f",
    0xCB: "d",
    0xCC: "B",
    0xCD: "H",
    0xCE: "I",
    0xCF: "Q",
    0xD0: "b",
    0xD1: "h",
    0xD2: "i",
    0xD3: "q",
}
_LENGTHS = {
    0xC4: "B",
    0xC5: "H",
    0xC6: "I",
    0xD9: "B",
    0xDA: "H",
    0xDB: "I",
    0xDC: "H",
    0xDD: "I",
    0xDE: "H",
    0xDF: "I",
}
_LENGTHS |= {0xC7: "B", 0xC8: "H", 0xC9: "I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    head = _slice(data, at, 1)[0]
    at += 1
    if head <= 0x7F:
        return head, at
    if head >= 0xE0:
        return head - 0x100, at
    if head in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[head], at
    if head in _NUMBERS:
        size = struct.calcsize(_NUMBERS[head])
        return struct.unpack(">" + _NUMBERS[head], _slice(data, at, size))[0], at + size
    if head in _FIXED_EXTENSIONS:
        return _unpack_timestamp(data, at, _FIXED_EXTENSIONS[head])
    if head <= 0x8F:
        return _unpack_map(data, at, head & 0x0F)
    if head <= 0x9F:
        return _unpack_array(data, at, head & 0x0F)
    if head <= 0xBF:
        return _slice(data, at, head & 0x1F).decode(), at + (head & 0x1F)
    if head not in _LENGTHS:
        raise Violation(f"byte {head:#04x} is not MessagePack")
    width = struct.calcsize(_LENGTHS[head])
    count = int.from_bytes(_slice(data, at, width), "big")
    at += width
    if head in (0xDC, 0xDD):
        return _unpack_array(data, at, count)
    if head in (0xDE, 0xDF):
        return _unpack_map(data, at, count)
    if head in (0xC7, 0xC8, 0xC9):
        return _unpack_timestamp(data, at, count)
    chunk = _slice(data, at, count)
    return (chunk.decode() if head in (0xD9, 0xDA, 0xDB) else chunk), at + count


def _slice(data: bytes, at: int, size: int) -> bytes:
    chunk = data[at : at + size]
    if len(chunk) < size:
        raise Violation("the payload ends in the middle of a value")
    return chunk


def _unpack_array(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    items = []
    for _ in range(count):
        item, at = _unpack(data, at)
        items.append(item)
    return items, at


def _unpack_map(data: bytes, at: int, count: int) -> tuple[dict[Any, Any], int]:
    pairs = {}
    for _ in range(count):
        key, at = _unpack(data, at)
        pairs[key], at = _unpack(data, at)
    return pairs, at


def _unpack_timestamp(data: bytes, at: int, size: int) -> tuple[float, int]:
    """Return the seconds since 1970 of the one extension type that there is."""
    kind, chunk = struct.unpack("b", _slice(data, at, 1))[0], _slice(data, at + 1, size)
    if kind != -1:
        raise Violation(f"extension type {kind}")
    if size == 4:
        seconds = float(int.from_bytes(chunk, "big"))
    elif size == 8:
        both = int.from_bytes(chunk, "big")
        seconds = (both & 0x3_FFFF_FFFF) + (both >> 34) / 1e9
    else:
        nanoseconds, whole = struct.unpack(">Iq", chunk)
        seconds = whole + nanoseconds / 1e9
    return seconds, at + 1 + size


# --- the client ----------------------------------------------------------------------------------------


class Client:
    """A connection to a service, blocking, with as many calls in flight as one likes."""

    def __init__(self, path: str, program: str = "foreign client", max_frame_size: int = 1048576) -> None:
        self.max_frame_size = max_frame_size
        self.server_max_frame_size = 0
        self.methods: dict[str, int] = {}
        self.idempotent: set[str] = set()
        self.features: list[str] = []
        self.goaway: list[Any] | None = None
        self.answers: dict[int, Any] = {}  # a result or a CallFailed by call id
        self.in_flight: set[int] = set()
        self.cancelled: set[int] = set()
        self.pong_count = 0
        self._limit = MAX_HELLO_SIZE
        self.items: dict[int, list[bytes]] = {}
        self.allowances: dict[int, int] = {}
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(10.0)
            self._socket.connect(path)
            self._greet(program)
        except BaseException:
            self._socket.close()
            raise

    def _greet(self, program: str) -> None:
        own = {
            "version": VERSION,
            "features": ["ping", "streams"],
            "max_frame_size": self.max_frame_size,
            "program": program,
        }
        try:
            self._send(HELLO, payload=MAGIC + pack(own))
        except BrokenPipeError:
            pass  # a server that refuses us may have closed already; its reason can still be read
        frame = self._receive()
        if frame.kind == GOAWAY:
            self.goaway = unpack(frame.payload)[:3]
            return
        if frame.kind != HELLO or not frame.payload.startswith(MAGIC):
            raise Violation(f"kind {frame.kind} instead of a hello")
        hello = unpack(frame.payload[len(MAGIC) :])
        if hello["version"] != VERSION:
            raise Violation(f"version {hello['version']}")
        self._limit = self.max_frame_size
        self.server_max_frame_size = hello.get("max_frame_size", 1048576)
        self.features = hello.get("features", ["deadline", "cancel", "ping"])
        self.methods = {entry[0]: number for number, entry in enumerate(hello["methods"])}
        self.streaming = {entry[0] for entry in hello["methods"] if len(entry) > 2 and entry[2]}
        self.taking_items = {entry[0] for entry in hello["methods"] if len(entry) > 3 and entry[3]}
        self.idempotent = {entry[0] for entry in hello["methods"] if len(entry) > 1 and entry[1]}

    def start(self, method: str, *args: Any, time_left: float | None = None, **keywords: Any) -> int:
        """Send a call and return its id."""
        if self.goaway is not None:
            raise Violation("the server has said farewell")
        call_id = self._free_id()
        flags, payload = 0, b""
        if time_left is not None and "deadline" in self.features:
            flags |= DEADLINE
            payload = struct.pack("<Q", int(time_left * 1e6))
        if keywords:
            flags |= NAMED
            payload += pack([list(args), keywords])
        else:
            payload += pack(list(args))
        if len(payload) > self.server_max_frame_size:
            raise ValueError(f"{len(payload)} bytes are more than the server takes")
        if method in self.taking_items:
            flags |= STREAM
            self.allowances[call_id] = STREAM_CREDIT
        if method in self.streaming:
            self.items[call_id] = []
        self._send(CALL, flags, call_id, self.methods[method], payload)
        self.in_flight.add(call_id)
        return call_id

    def send_items(self, call_id: int, items: list[Any]) -> None:
        """Send the items of an argument as credit allows, and its end; stops if the call is answered before."""
        for item in items:
            while call_id in self.in_flight and self.allowances[call_id] <= 0:
                self.read()
            if call_id not in self.in_flight:
                return
            payload = pack(item)
            self.allowances[call_id] -= HEADER.size + len(payload)
            self._send(ITEM, call_id=call_id, payload=payload)
        self._send(END, call_id=call_id)

    def iterate(self, call_id: int) -> Any:
        """Yield the items of a result, granting each one's cost again once it was taken."""
        while True:
            while self.items[call_id]:
                payload = self.items[call_id].pop(0)
                if call_id in self.in_flight:
                    self._send(CREDIT, call_id=call_id, payload=struct.pack("<I", HEADER.size + len(payload)))
                yield unpack(payload)
            if call_id in self.answers:
                self.wait(call_id)
                return
            self.read()

    def _free_id(self) -> int:
        while True:
            self._last_id = self._last_id + 1 if self._last_id < 0xFFFFFFFF else 1
            if self._last_id not in self.in_flight and self._last_id not in self.cancelled:
                return self._last_id

    def wait(self, call_id: int) -> Any:
        """Read until a call is answered, and return its result."""
        while call_id not in self.answers:
            self.read()
        answer = self.answers.pop(call_id)
        if isinstance(answer, CallFailed):
            raise answer
        return answer

    def call(self, method: str, *args: Any, time_left: float | None = None, **keywords: Any) -> Any:
        """Make a call and wait for its result."""
        return self.wait(self.start(method, *args, time_left=time_left, **keywords))

    def cancel(self, call_id: int) -> None:
        """Give up a call; its answer still comes, and is dropped."""
        self.in_flight.remove(call_id)
        self.cancelled.add(call_id)
        if "cancel" in self.features:
            self._send(CANCEL, call_id=call_id)

    def ping(self) -> None:
        """Ask whether the server is there, and wait until it says so."""
        before = self.pong_count
        self._send(PING)
        while self.pong_count == before:
            self.read()

    def read(self) -> None:
        """Read one frame and take it in; raises EOFError when the server has closed."""
        frame = self._receive()
        if frame.kind == REPLY:
            self._take(frame.call_id, unpack(frame.payload))
        elif frame.kind == ERROR:
            self._take(frame.call_id, CallFailed(*unpack(frame.payload)[:3]))
        elif frame.kind == END:
            if frame.call_id not in self.items and frame.call_id not in self.cancelled:
                raise Violation(f"end of call {frame.call_id}, whose result is no stream")
            self._take(frame.call_id, None)
        elif frame.kind == ITEM:
            if frame.call_id in self.in_flight and frame.call_id in self.items:
                self.items[frame.call_id].append(frame.payload)
            elif frame.call_id not in self.cancelled:
                raise Violation(f"item of call {frame.call_id}")
        elif frame.kind == CREDIT:
            if frame.call_id in self.allowances:
                self.allowances[frame.call_id] += struct.unpack("<I", frame.payload)[0]
            else:
                raise Violation(f"credit for call {frame.call_id}")
        elif frame.kind == PING:
            self._send(PONG)
        elif frame.kind == PONG:
            self.pong_count += 1
        elif frame.kind == GOAWAY:
            self.goaway = unpack(frame.payload)[:3]
            self.in_flight -= {call_id for call_id in self.in_flight if call_id > self.goaway[2]}
        else:
            raise Violation(f"kind {frame.kind} now")

    def _take(self, call_id: int, answer: Any) -> None:
        if call_id in self.cancelled:
            self.cancelled.remove(call_id)
        elif call_id in self.in_flight:
            self.in_flight.remove(call_id)
            self.answers[call_id] = answer
        else:
            raise Violation(f"answer to call {call_id}")

    def _send(self, kind: int, flags: int = 0, call_id: int = 0, method: int = 0, payload: bytes = b"") -> None:
        self._socket.sendall(HEADER.pack(len(payload), kind, flags, 0, call_id, method) + payload)

    def _receive(self) -> Frame:
        length, kind, flags, descriptors, call_id, method = HEADER.unpack(self._read_exactly(HEADER.size))
        if length > self._limit:
            raise Violation(f"{length} bytes")
        if flags or descriptors or method:
            raise Violation("a field that must be 0 is not")
        if (call_id == 0) is not (kind in ABOUT_CONNECTION):
            raise Violation(f"call id {call_id} with kind {kind}")
        if length and kind in WITHOUT_PAYLOAD:
            raise Violation(f"{length} bytes with kind {kind}")
        return Frame(kind, flags, call_id, method, self._read_exactly(length))

    def _read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise EOFError("the server has closed the connection")
            data += chunk
        return bytes(data)

    def close(self) -> None:
        """Close the connection; the server cancels what is in flight."""
        self._socket.close()


def main() -> None:
    """Make one call without arguments and print the answer."""
    path, method = sys.argv[1:]
    client = Client(path)
    try:
        print(client.call(method, time_left=5.0))
    finally:
        client.close()


if __name__ == "__main__":
    main()
