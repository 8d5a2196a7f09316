# C types for calling.py.

from hostline.clock cimport Deadline
from hostline.wire.codec cimport decode_result
from hostline.wire.frame cimport Frame

cdef int _REPLY

cpdef object check_returns(object returns)
cpdef object read_answer(Frame frame, object returns, object raises=*)
cpdef object wire_time(Deadline deadline)
