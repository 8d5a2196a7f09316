# C types for frame.py. Private fields are public here, because they are in the .py.

cimport cython
cimport hostline.wire.cheader as header
from hostline.wire.arriving cimport Arriving

cdef int _HELLO, _CALL, _ITEM
cdef Py_ssize_t _SIZE
cdef long long _LARGE
cdef tuple _FLAGS


cdef class Frame:
    cdef readonly int kind, flags, fd_count
    cdef readonly unsigned int method
    cdef readonly object call_id, payload, fds


cdef class FrameDecoder:
    cdef public Py_ssize_t max_fds
    cdef public long long frame_count
    cdef public object _held
    cdef public long long _limit
    cdef public long long _max_frame_size
    cdef public bint _has_met
    cdef public bytearray _buffer
    cdef public long long _needed
    cdef public Arriving _arriving
    cdef public object space

    cpdef object expect_frames(self)

    @cython.locals(
        buffer=bytearray, come=bytes, is_new=bint, held=object, frames=list, size=Py_ssize_t, start=Py_ssize_t, end=cython.longlong,
        length=cython.longlong, kind=cython.int, flags=cython.int, fd_count=cython.int, call_id=cython.uint, method=cython.uint, payload=bytes, raw="const unsigned char *",
    )
    cpdef list receive_data(self, object data, object fds=*)

    cpdef object close_held(self)
    @cython.locals(end=Py_ssize_t)
    cpdef object _keep(self, bytes data, Py_ssize_t start, object held, object fds, bint is_new)
    @cython.locals(
        kind=cython.int, flags=cython.int, fd_count=cython.int, call_id=cython.uint, method=cython.uint, taken=Py_ssize_t
    )
    cdef bytes _fill(self, Arriving arriving, object data, list frames)

    cpdef object _check(
        self, long long length, int kind, int flags, int fd_count, unsigned int call_id, unsigned int method
    )


cdef object _match(Py_ssize_t announced, object came)
