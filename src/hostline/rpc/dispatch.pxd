# C types for dispatch.py.

cdef class Invocation:
    cdef readonly object function
    cdef readonly tuple args
    cdef readonly dict keywords

    cpdef object run(self)
    cpdef object run_instant(self)


cpdef Invocation bind(object method, object payload, bint is_named, object context, object items=*, object arrived=*)
