# C types for attached.py.

cimport cython

cdef object _attach, _detach, _encoder
cdef Py_ssize_t _ADDED, _PLACE_SIZE

@cython.locals(total=Py_ssize_t)
cpdef Py_ssize_t added_size(list pieces) except? -1
@cython.locals(whole=list, at=Py_ssize_t, begin=Py_ssize_t, index=Py_ssize_t, head=bytearray)
cdef list _apart(bytearray buffer, list pieces)
cpdef object scattered(bytearray buffer, list pieces)
cpdef object joined(bytearray buffer, list pieces)

cpdef object encode_into(object value, bytearray buffer, Py_ssize_t offset, object attach=*)
cpdef object close_owners(object fds)
