# C types for arriving.py. Private fields are public here, because they are in the .py.

cimport cython

cdef Py_ssize_t _ALIGNMENT, _SEARCHED
cdef int _BIN_32


cdef class Arriving:
    cdef public Py_ssize_t arrived, _begin, _size
    cdef public object space
    cdef public object _memory

    @cython.locals(taken=Py_ssize_t)
    cpdef Py_ssize_t put(self, object data) except -1
    cpdef object _note(self, Py_ssize_t count)
    cpdef object _open_space(self)
    cpdef object payload(self)


cdef Py_ssize_t _first_size(Py_ssize_t size, Py_ssize_t come)
@cython.locals(at=Py_ssize_t)
cdef Py_ssize_t _offset_for(object head, Py_ssize_t size) except -1
cdef object _take(Py_ssize_t size)
cpdef object _keep(object memory)
