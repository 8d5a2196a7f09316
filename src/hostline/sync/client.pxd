# C types for client.py.

cimport cython

from hostline.clock cimport Deadline
from hostline.rpc.calling cimport check_returns, read_answer
from hostline.sync.caller cimport Caller
from hostline.sync.pool cimport Loan, SharedPool


cdef class Line:
    cdef public object _settings, _pool_settings, _service
    cdef public SharedPool _pool
    cdef public bint _is_closed
    cdef object __weakref__
    cdef dict __dict__  # a program puts a double of `call` in its place, in its tests

    @cython.locals(deadline=Deadline)
    cpdef object _invoke(
        self, object method, object args, object keywords, object returns, object timeout, object raises,
        object idempotent,
    )
    @cython.locals(loan=Loan, connection=Caller, is_streaming=bint)
    cpdef object _make(
        self, object method, object args, object keywords, object returns, object raises, object idempotent,
        double seconds, Deadline deadline, object span,
    )
    @cython.locals(connection=Caller)
    cpdef Caller _acquire(self, Loan loan, object method, double seconds, Deadline deadline)
