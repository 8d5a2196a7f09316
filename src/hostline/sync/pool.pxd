# C types for pool.py.

cdef class Loan:
    cdef public object connection
    cdef public object wake


cdef class SharedPool:
    cdef public object _pool, _lock
    cdef public set _open, _opening
    cdef public object _line, _abandoned
    cdef public bint _is_closed

    cpdef object acquire(self, Loan loan, double seconds)
    cpdef object release(self, Loan loan)
    cpdef list _take_back(self, Loan loan)
