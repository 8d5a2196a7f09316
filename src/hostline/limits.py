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
# user: peers that never read would use up the share of all others. So each gets a share of RLIMIT_NOFILE, within these
# two; above it the sender waits for it to read and looks again: first after so many seconds, then after twice as
# many, and so on up to the last number, for a look costs the loop time and a user may have many connections.
MAX_FDS_IN_FLIGHT = 64
MIN_FDS_IN_FLIGHT = 2
FDS_IN_FLIGHT_SHARE = 128  # what RLIMIT_NOFILE is divided by
FDS_IN_FLIGHT_CHECK = 0.001
FDS_IN_FLIGHT_CHECK_MAX = 0.064

# What a descriptor takes of a stream's credit, in bytes: with it at most 16 are on their way or untaken on one stream.
FD_COST = 4 << 10

# --- buffers ---------------------------------------------------------------------------------------

# Bytes of a `Buffer` up to which it travels in the frame, where it fits; above, in sealed memory. Through the socket
# both sides copy into memory that they have used before, sealed memory is new each time: a mebibyte takes half the time
# in the frame (benchmarks/buffers.py). The bound is not higher because a frame holds up every other call on its
# connection, and its buffers leave half of the usual frame to the rest.
INLINE_BUFFER = 1 << 20

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

# Seconds after which a sender that waits for room in a receiver's queue tries again although nothing woke it: nothing
# does when the receiver shuts down reading or another socket takes its address. Waiting 2 s costs 2 ms of a core.
DATAGRAM_LOOK_AGAIN = 0.25

# --- loopback TCP ------------------------------------------------------------------------------------

# Bytes of a key file that are read. Ours have under 250; without the bound a file of any size would be read into memory
# before it is found to be none of ours.
MAX_KEY_FILE_SIZE = 512

# Connections of one listener that have not proved the key yet: everybody on the host may connect to a port, and each
# takes a descriptor. And the seconds that each of them has for certain; after them it gives way to those that wait,
# and HANDSHAKE_TIMEOUT ends it at the latest. sshd's MaxStartups is 100; an honest proof takes under a millisecond.
MAX_UNPROVEN = 256
UNPROVEN_GRACE = 0.5

# Shortest time in seconds between two lines in the log about failed proofs, which any local user can cause.
FAILED_PROOF_LOG_INTERVAL = 1.0

# --- frames ----------------------------------------------------------------------------------------

# Payload of one frame. Without it a 16-byte header makes the reader allocate what it names.
# gRPC stops at 4 MiB, ttrpc at 4 MiB, D-Bus at 128 MiB; larger data belongs in a descriptor.
DEFAULT_MAX_FRAME_SIZE = 1 << 20
HARD_MAX_FRAME_SIZE = 16 << 20

# What the library's own servers and clients say that they take: a mebibyte of bytes, and what stands beside it.
USUAL_MAX_FRAME_SIZE = 2 << 20

# The least that a peer may name as its largest payload. Every error and every farewell fits into it; without it a peer
# that names 1 could be answered nothing at all, and each answer would be one more failure in the server's log.
MIN_MAX_FRAME_SIZE = 1 << 10

# Entries and bytes of the context that travels with a call: W3C's two trace headers take 600 bytes at most, and baggage
# has the rest. gRPC lets all metadata take 8 KiB; tracing is not to cost a small call more than a page.
MAX_CONTEXT_ENTRIES = 16
MAX_CONTEXT_SIZE = 4 << 10

# A hello is a list of names: a peer that has not yet introduced itself may not make us hold more.
MAX_HELLO_SIZE = 64 << 10

# Levels of nesting and number of elements in one untyped value. A mebibyte of one-byte empty maps decodes to seventy
# mebibytes of dictionaries; protobuf stops at 100 levels, D-Bus at 64.
MAX_DEPTH = 64
MAX_ELEMENTS = 100_000

# Bytes read from a socket at once. Larger reads raise the memory of every connection, smaller ones the
# number of system calls.
READ_SIZE = 64 << 10

# Bytes of the first reads of a connection, and of those of one on which little comes, so that nobody holds a whole
# READ_SIZE for a small frame, not even for a moment.
LEAST_READ_SIZE = 4 << 10

# Seconds until a connection that was read on an event loop that may have stopped watching it (libuv does at POLLERR) is
# tried once more. Shorter costs busy connections more, longer lets those that ended stay.
SECOND_LOOK = 0.02
# Payload of a frame, or message of a channel, from which on it is received straight into memory of its own, in which
# it stays: below, one read mostly brings it whole. And bytes of such memory that a process keeps for the next large
# ones, also while nobody needs them: to touch a mebibyte for the first time costs seven times as much as to copy it.
LARGE_FRAME = 64 << 10
WARM_MEMORY = 4 << 20

# SO_SNDBUF of a client that has more than LOW_WATER to send and no room for it: room for a mebibyte at once, since
# the kernel doubles the number. It gives no more than net.core.wmem_max, 212,992 where nobody raised it, and that is
# still twice what a socket begins with. A server keeps the default: what its peers leave there is charged to nobody.
LARGE_SEND_BUFFER = 640 << 10

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

# Items that may wait for one subscriber of a topic before its policy applies. Without it a subscriber that reads
# nothing makes the publisher hold everything; ZeroMQ's high-water mark is 1,000 as well.
DEFAULT_MAX_QUEUE = 1_000

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

# New connections of one user in a second where a service admits several users, and how many seconds' worth may come at
# once: 200 and 400. dbus-broker added such a bound after clients that connected and left without end. A service for its
# own user and root alone has none: whoever could slow it down that way could also end it.
CONNECTION_RATE_PER_UID = 200.0
CONNECTION_BURST = 2

# Calls of one user that run or wait. By default the slots and the queue bind first, and a full queue is shared out
# between users; this one binds where both were raised.
MAX_CALLS_PER_UID = 4_096

# Bytes kept for one user: begun frames, arguments of calls that wait, answers that are not read. Without it 4,096
# connections, each within its own bounds, could hold eight gibibytes. 64 largest frames of the default size fit.
MAX_BUFFERED_PER_UID = 64 << 20

# Descriptors kept for one user: arrived and not taken yet, or waiting to be sent. A quarter of the 1,024 that a process
# usually starts with: whoever could take them all would keep everybody else from being accepted.
MAX_DESCRIPTORS_PER_UID = 256

# Seconds between two signs of life to a peer that is not read for a while. Its pings are not read either, and must not
# make it take a busy server for a stopped one.
SIGN_OF_LIFE = 1.0

# Seconds without any sign of life after a ping until the other side is given up, where pings are asked for.
DEFAULT_PING_TIMEOUT = 5.0

# Seconds that running calls get to finish after SIGTERM. systemd sends SIGKILL after 90, Docker after 10.
DEFAULT_GRACE = 8.0

# --- taking over -----------------------------------------------------------------------------------

# Seconds that a successor waits in all for the owner's answers, and that it gets to start once it was given the
# socket. The owner goes on serving meanwhile; without an end, one that hangs would keep every other from coming.
TAKEOVER_TIMEOUT = 15.0
TAKEOVER_READY_TIMEOUT = 10.0

# Seconds that a start with `takeover` keeps trying where the address is held and nobody offers it: between two
# generations there is a moment without a control socket. And the pause between two tries: each looks at the lock, and
# may connect to a server that knows nothing of it.
TAKEOVER_RETRY = 1.0
TAKEOVER_PAUSE = 0.05

# Connections to one control socket at once. Only this user and root get that far.
MAX_SUCCESSORS = 8
# --- worker processes ------------------------------------------------------------------------------

# Worker processes of one service. Each has an event loop and the service's whole memory, so more than the host has
# cores gives nothing; the bound turns a slip of the finger into an error instead of ten thousand forks.
MAX_WORKERS = 256

# First and longest pause before a worker that died soon after its start is started again, doubled each time and
# jittered; and how many seconds a worker must live for the pauses to begin anew. Without them a worker that dies at its
# start is forked hundreds of times a second; systemd's RestartSec is 0.1 seconds as well.
WORKER_RESTART_FIRST = 0.1
WORKER_RESTART_LONGEST = 10.0
WORKER_SETTLED = 10.0

# Seconds beyond its grace time after which a worker that was told to stop is killed. It cancels what runs at the end of
# the grace time by itself and gives that a moment twice; only one that hears nothing any more is still there.
WORKER_KILL_MARGIN = 3.0

# Seconds that a worker which is to stop, or a server that was taken over, waits for the hello of those it has just
# accepted. Sent away before they are greeted, their connect would fail in the middle of a reload; a peer that says
# nothing must not hold the stop up.
GREETING_TIMEOUT = 1.0

# Seconds between two notes of a worker in the table that `hostline.stats` shows: a note costs some microseconds, so
# that a worker without work stays asleep for all but a hundredth of a per cent.
WORKER_NOTE_INTERVAL = 0.5

# Seconds that a worker leaves a new connection to the others while one of them has fewer. All are woken for each, and
# whoever runs first would take most of a burst: 64 connections fell on four workers as 2, 2, 26 and 34.
ACCEPT_YIELD = 0.001

# --- watching ----------------------------------------------------------------------------------------

# Bytes of one request for metrics, seconds for the whole of it, and requests that wait: one thread answers them one at
# a time, and a scraper that sends a header a second must not keep the others waiting. Prometheus sends 300 bytes and
# gives up after 10 seconds.
METRICS_REQUEST_SIZE = 8 << 10
METRICS_TIMEOUT = 5.0
METRICS_BACKLOG = 16

# Seconds that a service which took over from another keeps trying to listen for metrics: its predecessor lets go of
# that socket as soon as it has begun to stop.
METRICS_TAKEOVER_WAIT = 10.0

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
