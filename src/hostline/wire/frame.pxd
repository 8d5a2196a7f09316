# C types for frame.py; see docs/design/decisions.md, "The compiled core".

cimport cython
cimport hostline.wire.cheader as header

cdef int _HELLO, _CALL, _ITEM
cdef Py_ssize_t _SIZE
cdef tuple _FLAGS


cdef class FrameDecoder:
    cdef public Py_ssize_t max_fds
    cdef public Py_ssize_t frame_count
    cdef public object _held
    cdef public Py_ssize_t _limit
    cdef public Py_ssize_t _max_frame_size
    cdef public bint _has_met
    cdef public bytearray _buffer
    cdef public Py_ssize_t _needed

    cpdef object expect_frames(self)

    @cython.locals(
        buffer=bytearray, is_new=bint, held=object, frames=list, size=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t,
        length=Py_ssize_t, kind=int, flags=int, fd_count=int, call_id=cython.uint, method=cython.uint, payload=bytes,
    )
    cpdef list receive_data(self, bytes data, object fds=*)

    cpdef object close_held(self)
    cpdef object _keep(self, bytes data, Py_ssize_t start, object held, object fds, bint is_new)
    cpdef object _check(
        self, Py_ssize_t length, int kind, int flags, int fd_count, unsigned int call_id, unsigned int method
    )


cdef object _match(Py_ssize_t announced, object came)
