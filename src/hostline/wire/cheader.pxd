# What header.py holds, in C, for the compiled modules that say `cimport hostline.wire.cheader as header`. The callers have
# checked what header.py does not check: offsets lie within the bytes, and numbers fit into their fields.

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    static inline PyObject *hostline_new_tuple(PyObject *cls, PyObject *values) {
        Py_ssize_t size = PyTuple_GET_SIZE(values);
        PyObject *made = ((PyTypeObject *)cls)->tp_alloc((PyTypeObject *)cls, size);
        if (made == NULL) return NULL;
        for (Py_ssize_t at = 0; at < size; at++) {
            PyObject *item = PyTuple_GET_ITEM(values, at);
            Py_INCREF(item);
            PyTuple_SET_ITEM(made, at, item);
        }
        return made;
    }
    """
    # A tuple of a class made with NamedTuple, which has no more than the tuple's own fields.
    object new_tuple "hostline_new_tuple" (object cls, tuple values)


cdef inline (long long, int, int, int, unsigned int, unsigned int) unpack(bytes data, Py_ssize_t at) noexcept:
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data) + at
    return (
        <long long>(p[0] | <unsigned int>p[1] << 8 | <unsigned int>p[2] << 16 | <unsigned int>p[3] << 24),
        p[4],
        p[5],
        p[6] | p[7] << 8,
        p[8] | <unsigned int>p[9] << 8 | <unsigned int>p[10] << 16 | <unsigned int>p[11] << 24,
        p[12] | <unsigned int>p[13] << 8 | <unsigned int>p[14] << 16 | <unsigned int>p[15] << 24,
    )


cdef inline void _write(
    unsigned char *p, unsigned int length, int kind, int flags, int fd_count, unsigned int call_id, unsigned int method
) noexcept:
    p[0] = length & 0xFF
    p[1] = length >> 8 & 0xFF
    p[2] = length >> 16 & 0xFF
    p[3] = length >> 24
    p[4] = kind
    p[5] = flags
    p[6] = fd_count & 0xFF
    p[7] = fd_count >> 8 & 0xFF
    p[8] = call_id & 0xFF
    p[9] = call_id >> 8 & 0xFF
    p[10] = call_id >> 16 & 0xFF
    p[11] = call_id >> 24
    p[12] = method & 0xFF
    p[13] = method >> 8 & 0xFF
    p[14] = method >> 16 & 0xFF
    p[15] = method >> 24


cdef inline int pack_into(
    bytearray buffer,
    Py_ssize_t at,
    unsigned int length,
    int kind,
    int flags,
    int fd_count,
    unsigned int call_id,
    unsigned int method,
) noexcept:
    _write(<unsigned char *>PyByteArray_AS_STRING(buffer) + at, length, kind, flags, fd_count, call_id, method)
    return 0


cdef inline (unsigned long long,) unpack_time(bytes data) noexcept:
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef unsigned long long value = 0
    cdef int at
    for at in range(8):
        value |= <unsigned long long>p[at] << (8 * at)
    return (value,)


cdef inline int pack_time(bytearray buffer, Py_ssize_t begin, unsigned long long value) noexcept:
    cdef unsigned char *p = <unsigned char *>PyByteArray_AS_STRING(buffer) + begin
    cdef int at
    for at in range(8):
        p[at] = value >> (8 * at) & 0xFF
    return 0


cdef inline long long read_big(bytes data, Py_ssize_t begin, Py_ssize_t width) noexcept:
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef long long value = 0
    cdef Py_ssize_t at
    for at in range(begin, min(begin + width, PyBytes_GET_SIZE(data))):
        value = value << 8 | p[at]
    return value


cdef inline bytearray new_buffer(Py_ssize_t size):
    cdef bytearray made = PyByteArray_FromStringAndSize(NULL, size)
    memset(PyByteArray_AS_STRING(made), 0, size)
    return made


cdef inline bytes frame(object payload, int kind, int flags, unsigned int call_id, unsigned int method):
    cdef Py_ssize_t size = len(payload)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, 16 + size)
    cdef unsigned char *p = <unsigned char *>PyBytes_AS_STRING(made)
    _write(p, <unsigned int>size, kind, flags, 0, call_id, method)
    if size:
        if isinstance(payload, bytes):
            memcpy(p + 16, PyBytes_AS_STRING(payload), size)
        elif isinstance(payload, bytearray):
            memcpy(p + 16, PyByteArray_AS_STRING(payload), size)
        else:
            made = made[:16] + payload
    return made
