# C types for messages.py. Private fields are public here, because they are in the .py.

cimport cython
cimport hostline.protocol.channels.cheader as header

cdef int _VALUE, _BYTES
cdef Py_ssize_t _SIZE, _PIECE, _IN_PLACE
cdef long long _LARGE
cdef tuple _NO_FDS
cdef object _encode_into


cdef class Message:
    cdef readonly bint is_bytes
    cdef readonly object data, fds


cdef class Messages:
    cdef public bint _is_stream
    cdef public long long _packet_size
    cdef public long long max_message_size
    cdef public long long _most
    cdef public Py_ssize_t max_fds
    cdef public object read_size
    cdef public object hello
    cdef public bint has_sent
    cdef public bint was_reset
    cdef public bytearray _buffer
    cdef public long long _needed
    cdef public object _arriving
    cdef public object space
    cdef public object _arrived
    cdef public object _held
    cdef public list _ready
    cdef public Py_ssize_t _taken
    cdef public bint _has_failed

    @cython.locals(frame=bytearray)
    cpdef bytearray encode(self, object value, Py_ssize_t fds_count=*)

    @cython.locals(buffer=bytearray, pieces=list, counts=list, count=Py_ssize_t, size=Py_ssize_t)
    cpdef object encode_many(self, object values)

    @cython.locals(end=Py_ssize_t)
    cdef Py_ssize_t _encode(self, object value, bytearray buffer, Py_ssize_t begin, Py_ssize_t fds_count) except -1

    @cython.locals(size=Py_ssize_t)
    cpdef bytes encode_bytes(self, object data, Py_ssize_t fds_count=*)

    @cython.locals(size=Py_ssize_t)
    cpdef tuple bytes_in_place(self, object data, Py_ssize_t fds_count=*)
    cdef object _check_outgoing(self, long long size, Py_ssize_t fds_count)
    cpdef object _check_size(self, long long size, long long theirs)

    @cython.locals(ready=list, at=Py_ssize_t)
    cpdef object next_message(self)
    cpdef object fail_later(self, object error)
    cpdef object receive_data(self, object data, object fds=*)

    @cython.locals(
        come=bytes, size=Py_ssize_t, start=Py_ssize_t, end=cython.longlong, length=cython.longlong, kind=cython.int, zero=cython.int,
        count=cython.int, payload=bytes, raw="const unsigned char *",
    )
    cdef object _receive_stream(self, object data)
    cdef object _begin(self, bytes data, Py_ssize_t start, long long length)

    @cython.locals(
        buffer=bytearray, head=bytes, taken=Py_ssize_t, more=Py_ssize_t, length=cython.longlong, kind=cython.int, zero=cython.int,
        count=cython.int,
    )
    cdef Py_ssize_t _go_on(self, bytes data) except -1

    @cython.locals(taken=Py_ssize_t)
    cdef bytes _fill(self, object arriving, object data)
    cdef object _complete(self, bytes data)

    @cython.locals(length=cython.longlong, kind=cython.int, zero=cython.int, count=cython.int)
    cdef object _receive_packet(self, bytes data)
    cpdef object _check_header(self, long long length, int kind, int zero, int count)
    cdef object _claim(self, Py_ssize_t count)
    cdef object _keep(self, bytes data, Py_ssize_t start, long long needed)


cdef object _mismatch(Py_ssize_t announced, Py_ssize_t came)
