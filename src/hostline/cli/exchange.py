"""Carry bytes both ways between standard input and output and a socket: the work of `hostline cat`.

One thread reads the input and sends, the main thread receives and prints, so that neither way waits for the other.
Packets are lines, or blocks of a fixed size; a stream has no boundaries.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hostline.cli.exits import CommandError
from hostline.cli.received import CopyTarget, describe_descriptor
from hostline.cli.terminal import Escaper, is_terminal, write_bytes
from hostline.errors import ClosedError, EndOfStream, HostlineError, PeerGoneError
from hostline.limits import READ_SIZE
from hostline.sync import Connection, Datagrams
from hostline.unix.address import Address
from hostline.unix.passing.ancillary import MAX_DATAGRAM_SIZE
from hostline.unix.passing.descriptors import Fd, close_all

__all__ = ["ConnectionEnd", "DatagramEnd", "End", "Exchange", "Framing"]

# The longest line taken as one packet, in bytes. No kernel carries a longer packet, and a line without an end would
# otherwise be gathered in memory for ever.
_LONGEST_LINE = 16 << 20


# --- the other side ----------------------------------------------------------------------------------


class End(Protocol):
    """One end of a conversation: a connection, or a datagram socket and where it sends to."""

    @property
    def has_packets(self) -> bool:
        """Whether boundaries are kept."""
        ...

    def send(self, data: bytes, fds: Sequence[Fd]) -> None:
        """Send some bytes, or one packet."""
        ...

    def recv(self) -> tuple[bytes, list[Fd]]:
        """Receive some bytes, or one packet, with descriptors."""
        ...

    def end(self) -> None:
        """Say that nothing more is sent, where that can be said."""
        ...

    def wait_ended(self) -> None:
        """Wait, after the end of what is received, until nothing more can be sent either."""
        ...

    def stop(self) -> None:
        """Have `recv` and `wait_ended` return; called by another thread."""
        ...

    def close(self) -> None:
        """Close; called by the thread that receives."""
        ...


class ConnectionEnd:
    """A stream or seqpacket connection."""

    def __init__(self, connection: Connection) -> None:
        """Take over a connection."""
        self._connection = connection
        self.has_packets = connection.type != "stream"
        self._max_size = MAX_DATAGRAM_SIZE if self.has_packets else READ_SIZE

    def send(self, data: bytes, fds: Sequence[Fd]) -> None:
        """Send all of the bytes."""
        self._connection.send(data, fds=fds)

    def recv(self) -> tuple[bytes, list[Fd]]:
        """Receive; raises EndOfStream at the end."""
        return self._connection.recv_fds(self._max_size)

    def end(self) -> None:
        """Half-close."""
        try:
            self._connection.shutdown()
        except (PeerGoneError, ClosedError):
            pass  # the receiving side tells how it ended

    def wait_ended(self) -> None:
        """Wait until both directions are closed; a peer that only stopped sending may still be listening."""
        poll = select.poll()
        poll.register(self._connection.fileno(), 0)  # a hang-up is reported unasked
        poll.poll()

    def stop(self) -> None:
        """Shut both directions down; what has arrived is still received. The number stays taken, unlike by a close."""
        with contextlib.suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class DatagramEnd:
    """A datagram socket that talks to one address, or to whoever wrote last."""

    has_packets = True

    def __init__(self, datagrams: Datagrams, to: str | Address | None = None, *, is_connected: bool = False) -> None:
        """Take over a datagram socket.

        Args:
            datagrams: The socket.
            to: Where to send; None sends to whoever wrote last, and waits until somebody did.
            is_connected: Whether the socket knows its peer itself.
        """
        self._datagrams = datagrams
        self._to = to
        self._answers = to is None and not is_connected
        self._has_target = threading.Event()
        if not self._answers:
            self._has_target.set()

    def send(self, data: bytes, fds: Sequence[Fd]) -> None:
        """Send one datagram."""
        self._has_target.wait()
        self._datagrams.send(data, self._to, fds=fds)

    def recv(self) -> tuple[bytes, list[Fd]]:
        """Receive one datagram."""
        data, sender, fds, _ = self._datagrams.recv_from()
        if self._answers and sender is not None:
            self._to = sender
            self._has_target.set()
        return data, fds

    def end(self) -> None:
        """Do nothing: datagrams have no end."""

    def wait_ended(self) -> None:
        """Do nothing, for the same reason."""

    def stop(self) -> None:
        """Close the socket, which wakes whoever receives."""
        self._datagrams.close()

    def close(self) -> None:
        """Close the socket."""
        self._datagrams.close()


# --- input -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Framing:
    """Say how packets stand in the input and the output.

    Attributes:
        packet_size: Bytes of one packet of input, the last one perhaps shorter; None: a packet is a line, without its
            end, and is printed as one.
    """

    packet_size: int | None = None


def read_input(fd: int, framing: Framing, has_packets: bool) -> Iterator[bytes]:
    """Yield what is to be sent, piece by piece, as it can be read.

    Args:
        fd: The input's descriptor; it stays the caller's.
        framing: What a packet is.
        has_packets: Whether there are packets at all.

    Raises:
        CommandError: A line is too long for a packet.
    """
    if not has_packets:
        while data := os.read(fd, READ_SIZE):
            yield data
    elif framing.packet_size is not None:
        yield from _blocks(fd, framing.packet_size)
    else:
        yield from _lines(fd)


def _blocks(fd: int, size: int) -> Iterator[bytes]:
    held = b""
    while data := os.read(fd, size - len(held)):
        held += data
        if len(held) == size:
            yield held
            held = b""
    if held:
        yield held


def _lines(fd: int) -> Iterator[bytes]:
    held = bytearray()
    while data := os.read(fd, READ_SIZE):
        *lines, rest = data.split(b"\n")
        for line in lines:
            held += line
            yield bytes(held)
            held.clear()
        held += rest
        if len(held) > _LONGEST_LINE:
            raise CommandError(f"a line of more than {_LONGEST_LINE} bytes is no packet; --packet-size cuts the input")
    if held:
        yield bytes(held)


# --- both ways ---------------------------------------------------------------------------------------


@dataclass
class Exchange:
    """Run one conversation to its end.

    Attributes:
        end: The other side.
        framing: What a packet is.
        is_raw: Write bytes as they are also to a terminal.
        fds: Descriptors sent with the first bytes; they are closed when they were sent.
        wait: Seconds to wait for the rest of the answer after the end of the input; None: until the other side ends.
        shows_descriptors: Whether received descriptors are described on standard error.
        copies: Where their contents are copied, if anywhere.
    """

    end: End
    framing: Framing = Framing()
    is_raw: bool = False
    fds: list[Fd] = field(default_factory=list)
    wait: float | None = None
    shows_descriptors: bool = False
    copies: CopyTarget | None = None
    _failure: BaseException | None = field(default=None, init=False)
    _is_over: bool = field(default=False, init=False)
    _timer: threading.Timer | None = field(default=None, init=False)
    _descriptor_count: int = field(default=0, init=False)

    def run(self) -> None:
        """Carry bytes both ways until the other side ends, or `wait` is over.

        Raises:
            HostlineError: Sending or receiving failed.
            CommandError: The input or a copy did.
            OutputError: Standard output cannot be written.
        """
        # A daemon: a read of standard input cannot be interrupted, and must not keep the program.
        threading.Thread(target=self._send_input, name="hostline-cat-input", daemon=True).start()
        write = self._writer()
        try:
            while True:
                data, fds = self.end.recv()
                try:
                    write(data, False)
                    self._show(fds)
                finally:
                    close_all(fds)
        except EndOfStream:
            self.end.wait_ended()
        except (ClosedError, PeerGoneError):
            if self._failure is None and not self._is_over:
                raise
        finally:
            write(b"", True)
            if self._timer is not None:
                self._timer.cancel()
            self.end.close()
        if self._failure is not None:
            raise self._failure

    def _writer(self) -> Callable[[bytes, bool], None]:
        """Return what writes the bytes of one receive; called once more with True at the end."""
        is_escaped = not self.is_raw and is_terminal(sys.stdout)
        line_end = b"\n" if self.end.has_packets and self.framing.packet_size is None else b""
        escaper = Escaper()

        def write(data: bytes, is_last: bool) -> None:
            if not is_last:
                data += line_end
            if is_escaped:
                print(escaper.feed(data, is_last), end="", flush=True)
            elif data:
                write_bytes(data)

        return write

    def _show(self, fds: Sequence[Fd]) -> None:
        for fd in fds:
            name = f"fd-{self._descriptor_count}"
            self._descriptor_count += 1
            if self.shows_descriptors:
                print(f"{name}: {describe_descriptor(fd)}", file=sys.stderr, flush=True)
            if self.copies is not None:
                print(f"{name}: {self.copies.copy(fd, name)}", file=sys.stderr, flush=True)

    def _send_input(self) -> None:
        """Send the input to its end; runs in a thread of its own."""
        try:
            for data in read_input(sys.stdin.fileno(), self.framing, self.end.has_packets):
                self._send(data)
            if self.fds:
                # Nothing was read. A stream carries descriptors with a byte only, so it gets a line end.
                self._send(b"" if self.end.has_packets else b"\n")
            self.end.end()
        except (PeerGoneError, ClosedError):
            return  # the receiving side tells how it ended
        except OSError as error:
            text = f"standard input cannot be read: {error.strerror}"
            self._fail(error if isinstance(error, HostlineError) else CommandError(text))
        except Exception as error:  # a fault of this program too: unless told, the receiving side would wait for ever
            self._fail(error)
        else:
            if self.wait is not None:
                self._timer = threading.Timer(self.wait, self._stop)
                self._timer.daemon = True
                self._timer.start()

    def _send(self, data: bytes) -> None:
        self.end.send(data, self.fds)
        close_all(self.fds)
        self.fds.clear()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self.end.stop()

    def _stop(self) -> None:
        self._is_over = True
        self.end.stop()
