# C types for budget.py.

cimport cython
cimport hostline.wire.cheader as header

cdef int _PLAIN, _SIZED, _EXTENSION, _ARRAY, _MAP, _INVALID
cdef bytes _FORMS, _WIDTHS, _NOT_CONTAINERS
cdef object _DEEP, _FIXED

@cython.locals(size=Py_ssize_t)
cpdef object check_budget(object payload, object extent=*, Py_ssize_t max_depth=*, Py_ssize_t max_elements=*)

@cython.locals(
    size=Py_ssize_t, at=cython.longlong, elements=cython.longlong, depth=Py_ssize_t, left=cython.longlong, outer=list,
    head=cython.int, form=cython.int, width=cython.int, children=cython.longlong,
)
cpdef object _walk(bytes payload, Py_ssize_t max_depth, Py_ssize_t max_elements)
