"""iceoryx2: shared memory, request-response for calls and publish-subscribe for one way, in Python's binding.

Both sides poll: nobody is woken by the kernel, which is where the short times come from. While it works, the server
takes a whole core, and so does a client that waits; with fewer cores than processes they wait for one another's turn. A
server that would answer at once at any moment takes its core for ever. This one looks only a thousand times a second
when nobody has asked for a while, so that it does not slow down what is measured beside it (two hundredths of a core),
and the first message after a rest pays for that.

The binding hands out memory by address. The payload is copied in and out, as it is with sockets, so that both sides own
what they have. Every file lies in the run's directory, or has the run's own prefix in /dev/shm; the last process
removes what is left there, and the next run's server what was left by processes that were killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from hostline.bench.peers.shared import ECHO, TOTAL, Answers, MessageDriver, message_of
from hostline.bench.subject import Door, Subject

# Requests of one client that may be under way, and clients. Both sides prepare for each request: a client port for 128
# takes a quarter of a second to make, and the end of it keeps the server busy for two.
MAX_WINDOW = 32
MAX_CLIENTS = 8
# Published messages that may wait for the server, then the publisher tries again until there is room: nothing is lost.
MAX_WAITING = 1024
# Bytes of a message that memory is set aside for; larger ones make it grow.
CALL_SIZE, WINDOW_SIZE, ONE_WAY_SIZE = 1 << 16, 1 << 12, 1 << 9
# Looks at one port that has nothing before the next is looked at; seconds without a message until the server rests.
LOOKS = 100
REST_AFTER, REST = 0.05, 0.001
# Seconds that a client waits for an answer, and looks between two glances at the clock.
PATIENCE, GLANCE = 30.0, 100_000

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel keeps what shm_open(3) makes
PREFIX = "hlbench_"


class Place:
    """One process's node, and the two services: who is the last to leave removes the files."""

    def __init__(self, door: Door) -> None:
        import iceoryx2

        self.iox = iceoryx2
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        # The client knows the server's process id as the door's "port".
        self.prefix = f"{PREFIX}{door.port or os.getpid()}_"
        self.config = iceoryx2.config.default()
        self.config.global_cfg.root_path = iceoryx2.Path.new(door.directory)
        self.config.global_cfg.prefix = iceoryx2.FileName.new(self.prefix)
        builder = iceoryx2.NodeBuilder.new().config(self.config)
        # Signals stay with Python, or the server would not hear of SIGTERM.
        builder = builder.signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
        self.node: Any = builder.create(iceoryx2.ServiceType.Ipc)

    def calls(self, name: str, window: int) -> Any:
        """Open or create a service of requests and responses."""
        octets = self.iox.Slice[ctypes.c_uint8]
        builder = self.node.service_builder(self.iox.ServiceName.new(name)).request_response(octets, octets)
        builder = builder.max_clients(MAX_CLIENTS).max_servers(1).max_nodes(MAX_CLIENTS + 1).max_loaned_requests(1)
        builder = builder.max_active_requests_per_client(window).max_response_buffer_size(1)
        builder = builder.enable_safe_overflow_for_requests(False).enable_safe_overflow_for_responses(False)
        return builder.open_or_create()

    def messages(self, name: str) -> Any:
        """Open or create a service of published messages."""
        builder = self.node.service_builder(self.iox.ServiceName.new(name))
        builder = builder.publish_subscribe(self.iox.Slice[ctypes.c_uint8])
        builder = builder.max_publishers(MAX_CLIENTS).max_subscribers(1).max_nodes(MAX_CLIENTS + 1)
        builder = builder.enable_safe_overflow(False).subscriber_max_buffer_size(MAX_WAITING)
        return builder.open_or_create()

    def port(self, builder: Any, size: int) -> Any:
        """Create a port that sets aside memory for messages of `size` bytes, and more when it must."""
        return builder.initial_max_slice_len(size).allocation_strategy(self.iox.AllocationStrategy.PowerOfTwo).create()

    def leave(self) -> None:
        """Give up the node; remove what the library leaves behind if nobody else is there."""
        self.node = None
        nodes = self.iox.Node.list(self.iox.ServiceType.Ipc, self.config)
        if not any(isinstance(node, self.iox.NodeState.Alive) for node in nodes):
            for file in SHARED_MEMORY.glob(f"{self.prefix}*"):
                file.unlink(missing_ok=True)


def _sweep() -> None:
    """Remove the shared memory of servers that were killed with their clients: nobody else would."""
    for file in SHARED_MEMORY.glob(f"{PREFIX}*"):
        owner = file.name.removeprefix(PREFIX).split("_")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):  # another user's, or gone already
                file.unlink()


# --- the server ----------------------------------------------------------------------------------------


def serve(door: Door) -> None:
    """Look at the ports in turn, staying with the one that has work."""
    _sweep()
    place = Place(door)
    services = [place.calls("calls", 2), place.calls("window", MAX_WINDOW), place.messages("messages")]
    servers = [
        place.port(services[0].server_builder(), CALL_SIZE),
        place.port(services[1].server_builder(), WINDOW_SIZE),
    ]
    subscriber = services[2].subscriber_builder().create()
    try:
        door.ready(os.getpid())
        _poll(servers, subscriber)
    finally:
        for port in (*servers, subscriber):
            port.delete()
        del port, servers, subscriber, services
        place.leave()


def _poll(servers: list[Any], subscriber: Any) -> None:
    answers = Answers()

    def count(sample: Any) -> None:
        payload = sample.payload()
        answers.to(ctypes.string_at(payload.data_ptr, payload.number_of_elements))
        sample.delete()

    def answer(request: Any) -> None:
        payload = request.payload()
        message = ctypes.string_at(payload.data_ptr, payload.number_of_elements)
        if message == TOTAL:  # what was published before has arrived, but perhaps nobody has looked
            while (sample := subscriber.receive()) is not None:
                count(sample)
        reply = answers.to(message) or b""
        response = request.loan_slice_uninit(len(reply))
        ctypes.memmove(response.payload_ptr, reply, len(reply))
        response.assume_init().send()
        request.delete()

    ports: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
        (servers[0].receive, answer),
        (servers[1].receive, answer),
        (subscriber.receive, count),
    ]
    looks, last = LOOKS, time.monotonic()
    while True:
        has_worked = False
        for receive, work in ports:
            left = looks
            while left:
                message = receive()
                if message is None:
                    left -= 1
                else:
                    work(message)
                    left, has_worked = LOOKS, True
        now = time.monotonic()
        if has_worked:
            looks, last = LOOKS, now
        elif now - last > REST_AFTER:
            looks = 1
            time.sleep(REST)


# --- the client ----------------------------------------------------------------------------------------


class PortsDriver(MessageDriver):
    """A client port for calls, and when they are needed one for many calls under way, and a publisher."""

    def __init__(self, door: Door) -> None:
        self.place = Place(door)
        self.service = self.place.calls("calls", 2)
        self.client = self._client()
        self.window: Any = None
        self.publisher: Any = None

    def _client(self) -> Any:
        return self.place.port(self.service.client_builder(), CALL_SIZE)

    def exchange(self, message: bytes) -> bytes:
        """Send a request and look for the response until it is there."""
        return _response(_request(self.client, message))

    def send(self, message: bytes) -> None:
        """Publish one message."""
        sample = self.publisher.loan_slice_uninit(len(message))
        ctypes.memmove(sample.payload_ptr, message, len(message))
        sample.assume_init().send()

    def one_way(self, size: int, count: int, is_batched: bool) -> int:
        """Publish messages, then ask how many arrived."""
        if self.publisher is None:
            builder = self.place.messages("messages").publisher_builder()
            builder = builder.backpressure_strategy(self.place.iox.BackpressureStrategy.RetryUntilDelivered)
            self.publisher = self.place.port(builder, ONE_WAY_SIZE)
        return super().one_way(size, count, is_batched)

    def pipelined(self, size: int, count: int, window: int) -> int:
        """Keep requests under way on one port, up to MAX_WINDOW."""
        if self.window is None:
            self.window = self.place.port(self.place.calls("window", MAX_WINDOW).client_builder(), WINDOW_SIZE)
        message, client, ahead = message_of(ECHO, size), self.window, min(window, count, MAX_WINDOW)
        under_way: deque[Any] = deque()
        begin = perf_counter_ns()
        for _ in range(ahead):
            under_way.append(_request(client, message))
        for _ in range(count - ahead):
            _response(under_way.popleft())
            under_way.append(_request(client, message))
        while under_way:
            _response(under_way.popleft())
        return perf_counter_ns() - begin

    def reconnect(self, count: int) -> array[int]:
        """Make a client port in the node that stands, exchange one message, delete the port."""
        return super().reconnect(count)

    def connected(self) -> MessageDriver:
        """Make one more client port."""
        return _PortDriver(self._client())

    def close(self) -> None:
        """Delete the ports and give up the node."""
        for port in (self.client, self.window, self.publisher):
            if port is not None:
                port.delete()
        self.client = self.window = self.publisher = self.service = port = None
        self.place.leave()


class _PortDriver(MessageDriver):
    def __init__(self, client: Any) -> None:
        self.client = client

    def exchange(self, message: bytes) -> bytes:
        return _response(_request(self.client, message))

    def close(self) -> None:
        self.client.delete()


def _request(client: Any, message: bytes) -> Any:
    request = client.loan_slice_uninit(len(message))
    ctypes.memmove(request.payload_ptr, message, len(message))
    return request.assume_init().send()


def _response(pending: Any) -> bytes:
    receive = pending.receive
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        for _ in range(GLANCE):
            response = receive()
            if response is not None:
                payload = response.payload()
                content = ctypes.string_at(payload.data_ptr, payload.number_of_elements)
                response.delete()
                pending.delete()
                return content
    raise TimeoutError(f"no response within {PATIENCE:g} seconds")


SUBJECTS = (
    Subject(
        name="iceoryx2",
        layer="framed",
        transport="shm",
        style="blocking",
        workloads=frozenset({"latency", "transfer", "pipelined", "one-way", "connect"}),
        serve=serve,
        drive=PortsDriver,
        needs=("iceoryx2",),
    ),
)
