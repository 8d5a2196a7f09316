# C types for codec.py: what runs for each call, its answer, and each item of a stream.

cimport cython
cimport hostline.wire.cheader as header
from hostline.wire.attached cimport added_size, encode_into, joined, scattered
from hostline.wire.budget cimport check_budget
from hostline.wire.frame cimport Frame

cdef int _CALL, _REPLY, _DEADLINE, _NAMED, _STREAM, _CONTEXT, _ITEM
cdef Py_ssize_t _SIZE
cdef double _LONGEST
cdef object _FD_COUNT, _CREDIT, _encoder

@cython.locals(flags=cython.int, buffer=bytearray, size=Py_ssize_t, begin=Py_ssize_t)
cpdef object encode_call(
    unsigned int call_id,
    unsigned int method,
    object args,
    object keywords=*,
    object time_left=*,
    long long max_frame_size=*,
    bint has_items=*,
    object attach=*,
    object context=*,
)
cdef object _with_descriptors(bytearray buffer, object attach)
cdef object _drop(object attach)

@cython.locals(flags=cython.int, payload=object)
cpdef tuple split_call(Frame frame)

@cython.locals(buffer=bytearray, size=Py_ssize_t)
cpdef object encode_reply(unsigned int call_id, object result, long long max_frame_size=*, object attach=*)

@cython.locals(buffer=bytearray, size=Py_ssize_t)
cpdef object encode_item(
    unsigned int call_id, object item, long long max_frame_size=*, object refusal=*, object attach=*
)
cpdef object encode_credit(unsigned int call_id, object amount)
cpdef object decode_credit(object payload)
cpdef object decode_failure(object payload)
cpdef object decode_farewell(object payload)
cpdef object decode_result(object payload, object returns)
cpdef tuple result_decoder(object returns)
