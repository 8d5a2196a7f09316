"""Every bound in one place: what it bounds, what goes wrong without it, and whose precedent it follows.

Bounds that a caller may change are defaults of keyword arguments with the same name in lower case;
the `HARD_` ones cannot be raised. Sizes are bytes, counts are items, times are seconds.
"""

from __future__ import annotations

import sys

# --- the socket file -------------------------------------------------------------------------------

# The permission bits of a new socket file. Wider by default means that any local user may connect
# whenever the umask is loose; ssh-agent and gpg-agent made the same choice.
DEFAULT_MODE = 0o600

# Bytes of a path that fit into `sun_path` with the closing NUL: 108 on Linux, 104 on the BSDs and macOS.
# A longer one cannot be bound directly; see unix/address.py for the way round on Linux.
MAX_SUN_PATH = 107 if sys.platform == "linux" else 103

# Connections the kernel queues before accept. The kernel cuts the number to net.core.somaxconn, so
# asking for the largest common value means "as many as this host allows" (4096 since Linux 5.4).
DEFAULT_BACKLOG = 4096

# --- descriptors -----------------------------------------------------------------------------------

# Descriptors accepted with one message unless asked for: none. Every one that arrives unasked takes a slot in
# our table before any code of ours runs.
DEFAULT_MAX_FDS = 0

# The most that one message may carry in the kernel (SCM_MAX_FD). dbus lowered its own bound to 16.
HARD_MAX_FDS = 253

# Descriptors on one frame of a service whose methods declare them. dbus has the same number; a call that needs more
# sends them as the items of a stream.
MAX_FDS_PER_FRAME = 16

# Descriptors sent to one peer that it has not taken yet. The kernel counts those on their way against the sender's
# user: peers that never read would use up the share of all others. So each gets a sixty-fourth of RLIMIT_NOFILE, within
# these two; above it the sender waits for it to read, looking again after so many seconds.
MAX_FDS_IN_FLIGHT = 64
MIN_FDS_IN_FLIGHT = 4
FDS_IN_FLIGHT_CHECK = 0.001

# What a descriptor takes of a stream's credit, in bytes: with it at most 16 are on their way or untaken on one stream.
FD_COST = 4 << 10

# --- buffers ---------------------------------------------------------------------------------------

# Bytes of a `Buffer` up to which it travels in the frame, where it fits; above, in sealed memory. Measured by
# benchmarks/buffers.py with a blocking client: up to about 2 MiB sealed memory makes results dearer (1.6 times) and
# arguments cheaper (0.9 times at 512 KiB, 0.76 at 1 MiB), both together about the same; at 8 MiB an argument costs a
# third. The bound is lower than that because a frame holds up every other call on its connection, and its buffers leave
# half of the usual frame to the rest.
INLINE_BUFFER = 512 << 10

# Bytes of one `Buffer`. A sparse file of any size costs its sender nothing and its reader everything.
MAX_BUFFER_SIZE = 256 << 20

# Bytes of sealed memory that one user may have with a server in calls that have not ended.
MAX_MAPPED_PER_UID = 512 << 20

# --- accepting -------------------------------------------------------------------------------------

# Seconds an accept loop rests after EMFILE or ENFILE. Without it the loop spins: a stock loop wrote 842
# tracebacks in two seconds. OpenSSH rests one second as well; descriptors that come back end the rest early.
ACCEPT_REST = 1.0

# Connections accepted per wake-up, so that a burst of new peers cannot starve those already connected.
ACCEPT_BATCH = 64

# --- connecting ------------------------------------------------------------------------------------

# Seconds `connect` waits for a place in a full backlog when the caller names no timeout.
DEFAULT_CONNECT_TIMEOUT = 10.0

# First and longest pause between two tries against a full backlog on an event loop, where the kernel
# offers nothing to wait for. 20 tries a second cost well under one per cent of a core.
CONNECT_RETRY_FIRST = 0.001
CONNECT_RETRY_LONGEST = 0.05

# --- frames ----------------------------------------------------------------------------------------

# Payload of one frame. Without it a 16-byte header makes the reader allocate what it names.
# gRPC stops at 4 MiB, ttrpc at 4 MiB, D-Bus at 128 MiB; larger data belongs in a descriptor.
DEFAULT_MAX_FRAME_SIZE = 1 << 20
HARD_MAX_FRAME_SIZE = 16 << 20

# The least that a peer may name as its largest payload. Every error and every farewell fits into it; without it a peer
# that names 1 could be answered nothing at all, and each answer would be one more failure in the server's log.
MIN_MAX_FRAME_SIZE = 1 << 10

# A hello is a list of names: a peer that has not yet introduced itself may not make us hold more.
MAX_HELLO_SIZE = 64 << 10

# Levels of nesting and number of elements in one untyped value. A mebibyte of one-byte empty maps decodes to seventy
# mebibytes of dictionaries; protobuf stops at 100 levels, D-Bus at 64.
MAX_DEPTH = 64
MAX_ELEMENTS = 100_000

# Bytes read from a socket at once. Larger reads raise the memory of every connection, smaller ones the
# number of system calls.
READ_SIZE = 64 << 10

# --- channels --------------------------------------------------------------------------------------

# Bytes of one message on a channel, for the same reason as for a frame: the header alone must not decide how much is
# kept. multiprocessing.connection takes up to 2 GiB; larger data belongs in a descriptor.
DEFAULT_MAX_MESSAGE_SIZE = 1 << 20
HARD_MAX_MESSAGE_SIZE = 16 << 20

# Bytes of one packet on a seqpacket channel, header included, unless asked for more, and at most. A receive needs room
# for the largest that may come; for a quarter of a mebibyte the allocator goes to the kernel each time, which tripled
# the price of a receive here. With the usual buffer (net.core.wmem_default of 212992) no sender makes a larger one.
DEFAULT_MAX_PACKET_SIZE = 64 << 10
MAX_PACKET_SIZE = 256 << 10

# --- calls -----------------------------------------------------------------------------------------

# Handlers running at once in one service, calls waiting behind them, and worker threads for `def` handlers.
# Past both a call is answered `Overloaded` at once: an unbounded queue turns overload into timeouts for everybody.
DEFAULT_CONCURRENCY = 64
DEFAULT_QUEUE = 1024
DEFAULT_THREADS = 8

# Calls of one connection that are running, waiting or not yet read by the peer. At this number the
# server stops reading from that peer, so that a flood stays in the flooder's own socket buffer.
MAX_CALLS_PER_CONNECTION = 256

# Frames of one connection that are taken before the other connections get their turn: 64 KiB may hold thousands of
# calls, and quick handlers run on the spot, so one pipelining peer would delay every other by tens of milliseconds.
FRAMES_PER_TURN = 128

# Items of one stream that are sent before the others on the loop get their turn: an async generator that never waits
# would keep the loop to itself for as long as its reader grants credit.
ITEMS_PER_TURN = 64

# Unsent reply bytes of one connection: above the high mark the server stops reading from that peer, below
# the low one it starts again. asyncio uses 64 KiB and 16 KiB; replies here are larger and peers are local.
HIGH_WATER = 1 << 20
LOW_WATER = 256 << 10

# Bytes of items that one stream may have under way before its reader has taken any, and the most that a reader may ever
# grant. HTTP/2 begins with 64 KiB as well: enough to keep a local reader busy, little enough for thousands of streams.
STREAM_CREDIT = 64 << 10
MAX_STREAM_CREDIT = 16 << 20

# Seconds a peer may leave its replies unread above the high mark before it is cut off.
SLOW_READER_TIMEOUT = 30.0

# Seconds for a peer to introduce itself, and for a frame that has begun to be complete. Without them
# half-open peers hold a connection for ever (slowloris).
HANDSHAKE_TIMEOUT = 5.0
FRAME_TIMEOUT = 30.0

# Seconds a call may take when its caller names no timeout. rpyc chose 30 as well; gRPC's "for ever" is a
# known source of stuck callers.
DEFAULT_CALL_TIMEOUT = 30.0

# Connections of one service in all and of one uid. sd-varlink allows 128 a uid; a service that
# serves one uid only would be cut to that, so the share is set higher here.
MAX_CONNECTIONS = 10_000
MAX_CONNECTIONS_PER_UID = 4_096

# Seconds that running calls get to finish after SIGTERM. systemd sends SIGKILL after 90, Docker after 10.
DEFAULT_GRACE = 8.0

# --- the blocking client's pool ----------------------------------------------------------------------

# Connections kept, connections at most, and seconds after which an unused one above the minimum is closed.
# asyncpg and httpcore bound the same three things.
POOL_MIN_SIZE = 1
POOL_MAX_SIZE = 10
POOL_IDLE_LIFETIME = 300.0

# First and longest pause between two tries to reach a server that went away, doubled each time and
# jittered, so that clients do not return in step; and how long a call keeps trying, if its own deadline allows.
RECONNECT_FIRST = 0.01
RECONNECT_LONGEST = 1.0
RECONNECT_TIMEOUT = 5.0

# Times an idempotent call that may have reached the server is made again. A call that makes its server crash must not
# follow it through every restart; Pyro's and gRPC's defaults are of the same size.
MAX_REPEATS = 2
