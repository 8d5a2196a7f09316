# C types for session.py.

cimport cython

from hostline.aio.serving.calls cimport Calls
from hostline.protocol.connection.server cimport ServerConnection
from hostline.protocol.outgoing cimport Outgoing
from hostline.wire.frame cimport Frame

cdef int _CALL, _CANCEL, _ITEM, _DONTWAIT


cdef class Session:
    cdef public object peer, holding
    cdef public bint is_held
    cdef public object _server, _sock, _loop
    cdef public ServerConnection _protocol
    cdef public Outgoing _outgoing
    cdef public Calls _calls
    cdef object _fds_sent, _fds_timer, _fds_wait, _frame_timer, _reader, _check_timer, _turn, _handshake_timer, _quiet
    cdef object _second_look
    cdef public list _kept
    cdef int _fd
    cdef double _fds_pause
    cdef Py_ssize_t _max_fds, _kept_size, _reserved, _unflushed, _watched, _paused_checks, _read_size
    cdef bint _is_closed, _is_draining, _is_flushing, _is_in_frame, _is_paused, _is_writing, _looks_again

    @cython.locals(is_partial=bint)
    cpdef bint _read(self) except *
    @cython.locals(frame=Frame, kind=cython.int, index=Py_ssize_t)
    cpdef object _take(self, list frames)
    cpdef object note_queued(self, Py_ssize_t size)
    cpdef object flush_soon(self)
    cpdef object flush(self)
    cpdef object settle(self)
    cpdef object _watch_frame(self)
    cpdef object _queue(self, list buffers)
    cpdef list _send_at_once(self, buffer)
