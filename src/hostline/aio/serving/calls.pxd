# C types for calls.py.

cimport cython

from hostline.protocol.connection.server cimport ServerConnection
from hostline.rpc.dispatch cimport Invocation, bind
from hostline.rpc.service cimport Method
from hostline.wire.codec cimport encode_reply, split_call
from hostline.wire.frame cimport Frame

cdef int _CALL, _CREDIT, _ITEM, _STREAM


cdef class Calls:
    cdef public dict open
    cdef public Py_ssize_t held_size
    cdef public object account
    cdef public object _watched
    cdef public ServerConnection _protocol
    cdef object _session, _server, _loop

    cpdef bint is_full(self) except *
    @cython.locals(is_named=bint, method=Method)
    cpdef object arrive(self, Frame frame)
    @cython.locals(invocation=Invocation)
    cpdef object _run_inline(self, Method method, call_id, payload, bint is_named, time_left, fds)
    cpdef object _answer(self, Method method, call_id, result)
    cpdef bint _charge_unsent(self, frame) except *
    cpdef object fail(self, call_id, code, message, name=*)  # texts of errors may be of a class of their own
