# C types for caller.py.

cimport cython

from hostline.clock cimport Deadline
from hostline.protocol.connection.client cimport ClientConnection
from hostline.protocol.outgoing cimport Outgoing
from hostline.protocol.reading cimport next_read_size

cdef int _CALL, _DONTWAIT


cdef class Caller:
    cdef public object peer
    cdef public ClientConnection protocol
    cdef public Outgoing _outgoing
    cdef public object _sock
    cdef public dict _starts
    cdef object _loop, _on_end, _greeted, _room, _liveness, _life_timer, _second_look
    cdef int _fd
    cdef Py_ssize_t _read_size
    cdef bint _looks_again, _is_wide, _is_writing, _is_turn_open, _is_closed
    cdef object __weakref__

    cpdef bint _read(self) except *
    cpdef object _queue(self, data)
    cpdef object _write(self)
    cpdef object _send_outgoing(self)
