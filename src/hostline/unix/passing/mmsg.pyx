"""Many packets or datagrams in one call: sendmmsg(2), and recvmsg(2) until nothing waits, both without the interpreter.

What comes back is what the socket module's `send` and `recvmsg` give, errors included; packets.py decides what it means,
and does the same in Python where this is not compiled. Not recvmmsg(2): it goes on behind a message that was cut off or
is the end, and what it then took would have no place to wait. It was no faster in a loop without the interpreter.

Beside them one recv(2) and one send(2) that wait in the kernel, and come back when a signal does: the socket module's
begin such a wait anew, so that signals which come often enough keep it from its end.

And what a stream with room for descriptors gives (streams.py has it in Python): bytes are given out as they are, anything
beside them goes to the judgement of ancillary.py, with an owner for each descriptor before any Python code can run.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from hostline.unix.oserrors import translate
from hostline.unix.passing.ancillary import arrived_fds, judge_message
from hostline.unix.passing.descriptors import Fd

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <stddef.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <unistd.h>

    /* Macros of socket.h, as functions. */
    static struct cmsghdr *hostline_first(struct msghdr *m) { return CMSG_FIRSTHDR(m); }
    static struct cmsghdr *hostline_next(struct msghdr *m, struct cmsghdr *c) { return CMSG_NXTHDR(m, c); }
    static char *hostline_data(struct cmsghdr *c) { return (char *)CMSG_DATA(c); }
    static size_t hostline_room(size_t size) { return CMSG_LEN(size); }
    static Py_ssize_t hostline_size(struct cmsghdr *c) { return (Py_ssize_t)c->cmsg_len - (Py_ssize_t)CMSG_LEN(0); }
    """
    struct iovec:
        void *iov_base
        size_t iov_len

    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags

    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len

    struct cmsghdr:
        int cmsg_level
        int cmsg_type

    struct sockaddr_un:
        unsigned short sun_family
        char *sun_path

    object PyUnicode_DecodeFSDefaultAndSize(const char *text, Py_ssize_t size)
    size_t strnlen(const char *text, size_t most)
    int AF_UNIX, SOL_SOCKET, SCM_TIMESTAMPNS, SCM_RIGHTS
    int MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, MSG_TRUNC
    cmsghdr *hostline_first(msghdr *message) nogil
    cmsghdr *hostline_next(msghdr *message, cmsghdr *entry) nogil
    char *hostline_data(cmsghdr *entry) nogil
    Py_ssize_t hostline_size(cmsghdr *entry) nogil
    size_t hostline_room(size_t size) nogil
    int close(int fd) nogil
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags) nogil
    ssize_t recvmsg(int fd, msghdr *message, int flags) nogil
    ssize_t recv(int fd, void *data, size_t size, int flags) nogil
    ssize_t send(int fd, const void *data, size_t size, int flags) nogil

cdef enum:
    AT_ONCE = 64  # packets in one system call, or in one loop without the interpreter
    CONTROL_SIZE = 256  # more than any message without asked-for descriptors brings
    PATH_AT = 2  # sun_path in a sockaddr_un
    PATH_SIZE = 108
    MAX_FDS = 253  # of one message, and what the kernel has room for in one
    RIGHTS_WORDS = 144  # of 8 bytes, aligned as headers of ancillary data are: more than MAX_FDS take


def send_packets(int fd, list packets, bytes to, int flags):
    """Send packets, or datagrams to an address, until one would have to wait or is refused.

    Args:
        fd: The socket; flags say whether anything waits.
        packets: The bytes of each; at least one.
        to: The path or abstract name as the kernel takes it, shorter than 108 bytes, or None where it is connected.
        flags: For each.

    Returns:
        How many were sent, above zero.

    Raises:
        OSError: The first was not sent.
    """
    cdef sockaddr_un address
    cdef Py_ssize_t total = len(packets)
    cdef Py_ssize_t done = 0
    cdef Py_ssize_t count
    cdef int sent
    if to is not None:
        if PyBytes_GET_SIZE(to) >= PATH_SIZE:
            raise ValueError("the address is too long")
        memset(&address, 0, sizeof(address))
        address.sun_family = AF_UNIX
        memcpy(<char *>&address + PATH_AT, PyBytes_AS_STRING(to), PyBytes_GET_SIZE(to))
    while done < total:
        count = min(total - done, AT_ONCE)
        sent = _send_some(fd, packets[done : done + count], &address, to, flags, done > 0)
        if sent > 0:
            done += sent
        if sent < count:
            break
    return done


cdef int _send_some(int fd, list packets, sockaddr_un *address, bytes to, int flags, bint is_later) except -2:
    """Send at most AT_ONCE; returns how many, or -1 where the first was not sent and `is_later`."""
    cdef mmsghdr[AT_ONCE] messages
    cdef iovec[AT_ONCE] pieces
    cdef Py_buffer[AT_ONCE] views
    cdef Py_ssize_t count = len(packets)
    cdef Py_ssize_t held = 0
    cdef Py_ssize_t at
    cdef int sent
    memset(messages, 0, sizeof(messages))
    try:
        for at in range(count):
            PyObject_GetBuffer(packets[at], &views[at], PyBUF_SIMPLE)
            held += 1
            pieces[at].iov_base = views[at].buf
            pieces[at].iov_len = views[at].len
            messages[at].msg_hdr.msg_iov = &pieces[at]
            messages[at].msg_hdr.msg_iovlen = 1
            if to is not None:
                messages[at].msg_hdr.msg_name = address
                messages[at].msg_hdr.msg_namelen = <unsigned int>(PATH_AT + PyBytes_GET_SIZE(to))
        while True:
            with nogil:
                sent = sendmmsg(fd, messages, <unsigned int>count, flags)
            if sent >= 0:
                return sent
            if is_later:
                return -1  # it shows again when it is tried again
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
    finally:
        for at in range(held):
            PyBuffer_Release(&views[at])


def recv_packets(int fd, Py_ssize_t size, Py_ssize_t control_size, Py_ssize_t max_count, int flags):
    """Receive what waits: packets or datagrams, until nothing does, or one is not plain.

    Args:
        fd: The socket; nothing waits, whatever it is set to.
        size: Bytes that each may have.
        control_size: Room for ancillary data, at most 256 bytes.
        max_count: How many at most.
        flags: For each.

    Returns:
        A list of (data, ancillary data, flags, the sender's raw address or None), and the number of the error that ended
        it, or 0. Time stamps are left out of a message that has data. Nothing was received behind a message that was cut
        off, brought descriptors or was empty and unmarked.
    """
    cdef msghdr[AT_ONCE] messages
    cdef iovec[AT_ONCE] pieces
    cdef sockaddr_un[AT_ONCE] senders
    cdef char[AT_ONCE * CONTROL_SIZE] control
    cdef Py_ssize_t[AT_ONCE] lengths
    cdef Py_ssize_t count = min(max_count, AT_ONCE)
    cdef Py_ssize_t room = size + min(size, 1 << 20)
    cdef Py_ssize_t used = 0
    cdef Py_ssize_t got = 0
    cdef int error = 0
    cdef char *data
    if size < 1 or size > 1 << 40 or not 0 <= control_size <= CONTROL_SIZE:
        raise ValueError("a size is out of range")
    data = <char *>malloc(room)
    if data == NULL:
        raise MemoryError
    try:
        with nogil:
            while got < count and room - used >= size:
                pieces[got].iov_base = data + used
                pieces[got].iov_len = size
                messages[got].msg_name = &senders[got]
                messages[got].msg_namelen = sizeof(sockaddr_un)
                messages[got].msg_iov = &pieces[got]
                messages[got].msg_iovlen = 1
                messages[got].msg_control = control + got * CONTROL_SIZE if control_size else NULL
                messages[got].msg_controllen = control_size
                messages[got].msg_flags = 0
                lengths[got] = recvmsg(fd, &messages[got], flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
                if lengths[got] < 0:
                    error = errno
                    break
                used += lengths[got]
                got += 1
                if not _is_plain(&messages[got - 1], lengths[got - 1]):
                    break
        return _as_list(messages, senders, lengths, got), error
    finally:
        free(data)


def recv_once(int fd, Py_ssize_t size):
    """Receive bytes of a stream, and wait for them as long as SO_RCVTIMEO says.

    `socket.recv` begins to wait anew after each signal, for as long as they come more often than that time is over.

    Returns:
        The bytes, none at the end of the stream; None where nothing came in time, or a signal did.

    Raises:
        OSError: As from `socket.recv`; BaseException from a signal handler.
    """
    cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
    cdef char *place = PyBytes_AS_STRING(made)
    cdef ssize_t count
    with nogil:
        count = recv(fd, place, size, 0)
    if count >= 0:
        return made if count == size else made[:count]
    if errno == EINTR:
        PyErr_CheckSignals()
    elif errno != EAGAIN:  # which is EWOULDBLOCK on Linux
        PyErr_SetFromErrno(OSError)
    return None


def send_once(int fd, object data, int flags):
    """Send bytes of a stream, and wait for room as long as SO_SNDTIMEO says; for the rest as `recv_once`.

    Returns:
        How many were sent; 0 where there was no room in time, or a signal came.
    """
    cdef Py_buffer view
    cdef ssize_t count
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            count = send(fd, view.buf, view.len, flags)
        if count >= 0:
            return count
        if errno == EINTR:
            PyErr_CheckSignals()
        elif errno != EAGAIN:  # which is EWOULDBLOCK on Linux
            PyErr_SetFromErrno(OSError)
        return 0
    finally:
        PyBuffer_Release(&view)


def recv_stream(object sock, Py_ssize_t size, Py_ssize_t max_fds, int flags):
    """Receive bytes of a stream, with room for descriptors; as `recv_stream` in streams.py says."""
    cdef unsigned long long[RIGHTS_WORDS] control
    cdef msghdr message
    cdef iovec piece
    cdef ssize_t count
    cdef int fd = sock.fileno()
    if size < 1 or not 0 <= max_fds <= MAX_FDS:
        raise ValueError("a size is out of range")
    cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
    piece.iov_base = PyBytes_AS_STRING(made)
    piece.iov_len = size
    while True:
        with nogil:
            count = _recv_beside(fd, &message, &piece, control, max_fds, flags)
        if count >= 0:
            break
        if not _may_go_on(flags):
            return None, None
    if not _has_more(&message):
        return (made if count == size else made[:count]), None
    beside = _owned(&message)
    received = judge_message(sock, (made[:count], beside, message.msg_flags, None), size, max_fds, "stream")
    return received.data, received.fds or None


def recv_stream_into(object sock, object space, Py_ssize_t max_fds, int flags):
    """Receive into memory all that there is room for and that has come; as `recv_stream_into` in streams.py says."""
    cdef unsigned long long[RIGHTS_WORDS] control
    cdef Py_buffer view
    cdef msghdr message
    cdef iovec piece
    cdef Py_ssize_t done = 0
    cdef ssize_t count = 0
    cdef int fd = sock.fileno()
    if not 0 <= max_fds <= MAX_FDS:
        raise ValueError("a size is out of range")
    message.msg_controllen = 0  # where there is no room at all, nothing is received
    message.msg_flags = 0
    PyObject_GetBuffer(space, &view, PyBUF_WRITABLE)
    try:
        while True:
            with nogil:
                while done < view.len:
                    piece.iov_base = <char *>view.buf + done
                    piece.iov_len = view.len - done
                    count = _recv_beside(fd, &message, &piece, control, max_fds, flags | MSG_DONTWAIT if done else flags)
                    if count <= 0:
                        break
                    done += count
                    if _has_more(&message):
                        break
            if count >= 0 or (done and errno in (EAGAIN, EINTR)):
                break
            if not _may_go_on(flags):
                return None, None
    finally:
        PyBuffer_Release(&view)
    fds = None
    if count >= 0 and _has_more(&message):
        fds = arrived_fds(_owned(&message), message.msg_flags, len(space), max_fds, "stream") or None
    return space[:done], fds


cdef ssize_t _recv_beside(
    int fd, msghdr *message, iovec *piece, void *control, size_t max_fds, int flags
) noexcept nogil:
    """Receive once; without room for descriptors, whatever comes beside the bytes is dropped by the kernel unseen."""
    message.msg_controllen = 0
    message.msg_flags = 0
    if max_fds == 0:
        return recv(fd, piece.iov_base, piece.iov_len, flags)
    message.msg_name = NULL
    message.msg_namelen = 0
    message.msg_iov = piece
    message.msg_iovlen = 1
    message.msg_control = control
    message.msg_controllen = hostline_room(max_fds * sizeof(int))
    return recvmsg(fd, message, flags | MSG_CMSG_CLOEXEC)


cdef bint _has_more(msghdr *message) noexcept nogil:
    """Whether something came beside the bytes, or was cut off."""
    return message.msg_controllen != 0 or message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) != 0


cdef bint _may_go_on(int flags) except -1:
    """Say what a receive that failed means: whether it is to be tried again, or nothing came; raises all else."""
    if errno == EAGAIN:  # which is EWOULDBLOCK on Linux
        return False
    if errno == EINTR:
        PyErr_CheckSignals()
        return flags & MSG_DONTWAIT != 0  # what waits comes back
    try:
        PyErr_SetFromErrno(OSError)
    except OSError as error:
        raise translate(error, "recv", "stream", "") from error


cdef list _owned(msghdr *message):
    """Return what came beside the bytes of a message, with a list of owners where it is descriptors.

    No Python code runs here, so that no exception of a signal handler can come between: only memory can be lacking, and
    then what has no owner yet is closed.
    """
    cdef list made = []
    cdef list owners
    cdef cmsghdr *entry = hostline_first(message)
    cdef Py_ssize_t owned = 0
    cdef object owner
    try:
        while entry != NULL:
            owned = 0
            if _is_rights(entry):
                owners = []
                while owned < hostline_size(entry) // <Py_ssize_t>sizeof(int):
                    owner = Fd.__new__(Fd)
                    owner._fd = -1
                    owner._fd = _number(entry, owned)
                    owned += 1
                    owners.append(owner)
                made.append((entry.cmsg_level, entry.cmsg_type, owners))
            else:
                value = PyBytes_FromStringAndSize(hostline_data(entry), max(hostline_size(entry), 0))
                made.append((entry.cmsg_level, entry.cmsg_type, value))
            entry = hostline_next(message, entry)
    except BaseException:
        while entry != NULL:
            while _is_rights(entry) and owned < hostline_size(entry) // <Py_ssize_t>sizeof(int):
                close(_number(entry, owned))
                owned += 1
            owned = 0
            entry = hostline_next(message, entry)
        raise
    return made


cdef bint _is_rights(cmsghdr *entry) noexcept nogil:
    return entry.cmsg_level == SOL_SOCKET and entry.cmsg_type == SCM_RIGHTS


cdef int _number(cmsghdr *entry, Py_ssize_t at) noexcept nogil:
    cdef int number
    memcpy(&number, hostline_data(entry) + at * sizeof(int), sizeof(int))
    return number


cdef bint _is_plain(msghdr *message, Py_ssize_t length) noexcept nogil:
    """Say whether a message says nothing of those behind it."""
    cdef cmsghdr *entry
    if message.msg_flags & (MSG_TRUNC | MSG_CTRUNC):
        return False
    entry = hostline_first(message)
    if length == 0 and entry == NULL:
        return False
    while entry != NULL:
        if _is_rights(entry):
            return False
        entry = hostline_next(message, entry)
    return True


cdef list _as_list(msghdr *messages, sockaddr_un *senders, Py_ssize_t *lengths, Py_ssize_t count):
    cdef list made = []
    cdef Py_ssize_t at
    cdef char *data
    for at in range(count):
        data = <char *>messages[at].msg_iov.iov_base
        made.append((
            PyBytes_FromStringAndSize(data, lengths[at]),
            _ancillary(&messages[at], lengths[at] > 0),
            messages[at].msg_flags,
            _sender(&senders[at], messages[at].msg_namelen),
        ))
    return made


cdef object _ancillary(msghdr *message, bint has_data):
    cdef list made = []
    cdef cmsghdr *entry = hostline_first(message)
    while entry != NULL:
        if not has_data or entry.cmsg_level != SOL_SOCKET or entry.cmsg_type != SCM_TIMESTAMPNS:
            value = PyBytes_FromStringAndSize(hostline_data(entry), max(hostline_size(entry), 0))
            made.append((entry.cmsg_level, entry.cmsg_type, value))
        entry = hostline_next(message, entry)
    return made


cdef object _sender(sockaddr_un *sender, unsigned int size):
    cdef char *path = <char *>sender + PATH_AT
    if size <= PATH_AT:
        return None
    if size > sizeof(sockaddr_un):
        size = sizeof(sockaddr_un)  # a path without a zero at its end counts one byte more than there is room for
    if path[0] == 0:
        return PyBytes_FromStringAndSize(path, size - PATH_AT)
    return PyUnicode_DecodeFSDefaultAndSize(path, strnlen(path, size - PATH_AT))
