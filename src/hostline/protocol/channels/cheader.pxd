# What header.py holds, in C, for the compiled modules that say `cimport hostline.protocol.channels.cheader as header`. The
# callers have checked what header.py does not check: offsets lie within the bytes, and numbers fit into their fields.

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset


cdef inline (long long, int, int, int) unpack(bytes data, Py_ssize_t at) noexcept:
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data) + at
    return (
        <long long>(p[0] | <unsigned int>p[1] << 8 | <unsigned int>p[2] << 16 | <unsigned int>p[3] << 24),
        p[4],
        p[5],
        p[6] | p[7] << 8,
    )


cdef inline void _write(unsigned char *p, unsigned int length, int kind, int zero, int fd_count) noexcept:
    p[0] = length & 0xFF
    p[1] = length >> 8 & 0xFF
    p[2] = length >> 16 & 0xFF
    p[3] = length >> 24
    p[4] = kind
    p[5] = zero
    p[6] = fd_count & 0xFF
    p[7] = fd_count >> 8 & 0xFF


cdef inline int pack_into(
    bytearray buffer, Py_ssize_t at, unsigned int length, int kind, int zero, int fd_count
) noexcept:
    _write(<unsigned char *>PyByteArray_AS_STRING(buffer) + at, length, kind, zero, fd_count)
    return 0


cdef inline bytearray new_buffer(Py_ssize_t size):
    cdef bytearray made = PyByteArray_FromStringAndSize(NULL, size)
    memset(PyByteArray_AS_STRING(made), 0, size)
    return made


cdef inline bytes joined(object data, unsigned int length, int kind, int fd_count):
    cdef unsigned char head[8]
    cdef bytes made
    _write(head, length, kind, 0, fd_count)
    if type(data) is bytes:
        made = PyBytes_FromStringAndSize(NULL, 8 + PyBytes_GET_SIZE(data))
        memcpy(PyBytes_AS_STRING(made), head, 8)
        memcpy(PyBytes_AS_STRING(made) + 8, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        return made
    return b"".join((PyBytes_FromStringAndSize(<char *>head, 8), data))
