# C types for outgoing.py. Private fields are public here, because they are in the .py.

from hostline.wire.attached cimport close_owners

cdef int _END
cdef object _MAX_BUFFERS, _OWN
cdef Py_ssize_t _MAX_HEAD


cdef class Outgoing:
    cdef public object _attached
    cdef public object _buffers
    cdef public bint _has_borrowed
    cdef public long long size
    cdef public long long queued_total
    cdef public long long sent_total

    cpdef object append(self, object data)
    cpdef object own(self)
    cpdef list buffers(self)
    cpdef list fds(self)
    cpdef object sent(self, long long count)


cpdef object close_attached(object frame)
