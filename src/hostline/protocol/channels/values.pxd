# C types for values.py.

cimport cython
from hostline.protocol.channels.messages cimport Message, Messages
from hostline.wire.budget cimport check_budget

cdef Py_ssize_t _SHALLOW


cdef class ValueReader:
    cdef object _decode, _extent
    cdef bint _is_open

    cpdef object read(self, Message message)

    @cython.locals(values=list, message=Message)
    cpdef list read_ready(self, Messages messages, Message first, Py_ssize_t max_count)


cpdef Message without_fds(Message message)
cpdef bytes plain_bytes(Message message)
