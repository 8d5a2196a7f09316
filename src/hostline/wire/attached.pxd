# C types for attached.py.

cdef object _attach, _detach, _encoder

cpdef object encode_into(object value, bytearray buffer, Py_ssize_t offset, object attach=*)
cpdef object close_owners(object fds)
