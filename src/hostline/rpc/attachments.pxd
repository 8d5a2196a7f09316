# C types for attachments.py: what is taken out of a call; the rest is Python as it stands.


cdef class Attachments:
    cdef public list fds
    cdef public list pieces
    cdef bint _may_pass
    cdef Py_ssize_t _room

    cpdef object take_out(self, object value)
    cpdef object _buffer(self, object value)
    cpdef object _check_count(self)
    cpdef object discard(self)
