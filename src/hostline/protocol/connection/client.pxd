# C types for client.py. Private fields are public here, because they are in the .py.

cimport cython
from hostline.protocol.connection.base cimport Connection
from hostline.protocol.flow cimport Allowance, Window, item_cost
from hostline.wire.codec cimport (
    decode_credit, decode_failure, decode_farewell, encode_call, encode_credit, encode_item
)
from hostline.wire.frame cimport Frame

cdef int _REPLY, _ERROR, _HELLO, _ITEM, _END, _CREDIT, _GOAWAY, _PING
cdef object _OPEN, _CLOSED
cdef long long _MAX_CALL_ID


cdef class ClientConnection(Connection):
    cdef public object _attachments
    cdef public frozenset _taking
    cdef public set _attaching
    cdef public object hello
    cdef public object farewell
    cdef public dict in_flight
    cdef public set _cancelled
    cdef public dict _windows
    cdef public dict _allowances
    cdef public dict _methods
    cdef public frozenset _streaming
    cdef public frozenset _with_items
    cdef public frozenset _idempotent
    cdef public long long _last_id
    cdef public long long _peer_max_frame_size

    @cython.locals(answers=list, kind=cython.int, frame=Frame)
    cpdef list receive_data(self, object data, object fds=*)

    cpdef object _answer(self, Frame frame, list answers)

    @cython.locals(window=Window)
    cpdef object _take_item(self, Frame frame, list answers)

    @cython.locals(allowance=Allowance)
    cpdef object _take_credit(self, Frame frame, list answers)

    cpdef object _forget_streams(self, object call_id)
    cpdef tuple call(
        self,
        object method,
        object args,
        object keywords,
        object time_left,
        object ticket,
        bint has_items=*,
        object context=*,
    )
    cpdef object _attach(self)

    @cython.locals(allowance=Allowance)
    cpdef object may_send(self, object call_id)

    @cython.locals(allowance=Allowance)
    cpdef object item(self, object call_id, object item)

    @cython.locals(allowance=Allowance)
    cpdef object end(self, object call_id)

    @cython.locals(window=Window)
    cpdef object taken(self, object call_id, long long size)

    cpdef object cancel(self, object call_id)

    @cython.locals(call_id=cython.longlong)
    cpdef object _next_id(self)

    cpdef object _late(self, object call_id)
    cpdef object _part(self, object farewell)
