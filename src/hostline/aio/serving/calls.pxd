# C types for calls.py.

cdef class Calls:
    cdef public dict open
    cdef public Py_ssize_t held_size
    cdef public object account
    cdef public object _watched
    cdef object _session, _server, _loop, _protocol

    cpdef bint is_full(self) except *
    cpdef object arrive(self, frame)
    cpdef object _run_inline(self, method, call_id, payload, bint is_named, time_left, fds)
    cpdef object _answer(self, method, call_id, result)
    cpdef bint _charge_unsent(self, frame) except *
    cpdef object fail(self, call_id, str code, str message, str name=*)
