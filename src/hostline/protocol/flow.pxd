# C types for flow.py. Private fields are public here, because they are in the .py.

cdef long long _GRANT_AT, _SIZE, _FD_COST, _MOST, _FIRST

cpdef object item_cost(object frame)


cdef class Allowance:
    cdef public long long left
    cdef public bint is_over

    cpdef object take(self, long long size)
    cpdef object grant(self, long long amount)


cdef class Window:
    cdef public long long left
    cdef public long long _taken

    cpdef object arrived(self, long long size)
    cpdef object taken(self, long long size)
