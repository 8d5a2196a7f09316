# C types for base.py. Private fields are public here, because they are in the .py.

cimport cython
from hostline.wire.attached cimport close_owners
from hostline.wire.frame cimport Frame, FrameDecoder

cdef object _OPENING, _OPEN, _CLOSING, _CLOSED


cdef class Connection:
    cdef public object state
    cdef public FrameDecoder decoder
    cdef public long long _max_frame_size
    cdef public list _outgoing
    cdef public bint _has_pong
    cdef public frozenset _features
    cdef public dict _allowed
    cdef object __weakref__

    cpdef list data_to_send(self)
    cpdef object ping(self)
    cpdef object pong(self)

    @cython.locals(decoder=FrameDecoder, frames=list, frame=Frame)
    cpdef list _frames(self, object data, object fds)

    cpdef object close_held(self)
    cpdef object _follow(self, object kind, object following)
    cpdef object _enter(self, object state)
