# C types for dispatch.py.

from hostline.rpc.service cimport Method

cdef class Invocation:
    cdef readonly object function
    cdef readonly tuple args
    cdef readonly dict keywords

    cpdef object run(self)
    cpdef object run_instant(self)


cpdef Invocation bind(Method method, object payload, bint is_named, object context, object items=*, object arrived=*)
