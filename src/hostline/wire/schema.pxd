# C types for schema.py.

cimport cython

from hostline.wire.budget cimport check_budget


cdef class Signature:
    cdef readonly object parameters, injected, returns, stream
    cdef readonly bint is_stream_async, streams_result, takes_attached, gives_attached
    cdef object _injected_at, _positional, _positional_only, _required_named_only, _extent, _array, _head, _map
    cdef object _array_in_place, _extent_in_place
    cdef object __weakref__

    cpdef tuple decode(self, object payload, bint is_named=*)


cdef tuple _without_unset(object arguments)
