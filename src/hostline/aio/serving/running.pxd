# C types for running.py.

cdef class RunningCall:
    cdef public object calls, call_id, method, payload, deadline, fds, context, task, timer, inlet, outlet
    cdef public bint is_named, is_ended
    cdef public Py_ssize_t mapped, held
