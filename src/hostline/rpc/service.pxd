# C types for service.py.

from hostline.wire.schema cimport Signature


cdef class Method:
    cdef readonly object name, function, execution, context_name, raises, allow, fd_kinds
    cdef readonly Signature signature
    cdef readonly bint is_inline, is_instant, is_idempotent
