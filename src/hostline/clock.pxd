# C types for clock.py.

cdef double _INF


cdef class Deadline:
    cdef readonly double at

    cpdef double remaining(self, now=*)
    cpdef bint has_passed(self, now=*)


cpdef object poll_milliseconds(double seconds)
