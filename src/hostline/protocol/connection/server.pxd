# C types for server.py. Private fields are public here, because they are in the .py.

cimport cython
from hostline.protocol.connection.base cimport Connection
from hostline.protocol.flow cimport Window
from hostline.protocol.outgoing cimport close_attached
from hostline.wire.codec cimport decode_credit, decode_farewell, encode_credit
from hostline.wire.frame cimport Frame

cdef int _CALL, _CANCEL, _HELLO, _ITEM, _END, _CREDIT, _STREAM, _GOAWAY, _PING
cdef object _OPENING, _OPEN, _CLOSING, _CLOSED


cdef class ServerConnection(Connection):
    cdef public bint _has_descriptors
    cdef public object client
    cdef public set in_flight
    cdef public dict _windows
    cdef public long long max_reply_size
    cdef public object _hello
    cdef public long long last_call_id
    cdef public bint _is_leaving
    cdef public bint _is_client_leaving

    @cython.locals(events=list, kind=cython.int, frame=Frame)
    cpdef list receive_data(self, object data, object fds=*)

    cpdef bint finish(self, object call_id) except -1
    cpdef object reply(self, object call_id, object frame)
    cpdef object item(self, object call_id, object frame)
    cpdef object end(self, object call_id)

    @cython.locals(window=Window)
    cpdef object taken(self, object call_id, long long size)

    cpdef object fail(self, object call_id, object code, object name, object message)
    cpdef object go_away(self, object code, object reason)

    cpdef object _admit(self, Frame frame, list events)

    @cython.locals(window=Window)
    cpdef object _take_item(self, Frame frame, list events)

    cpdef object _take_end(self, Frame frame, list events)
