# C types for caller.py.

cimport cython

from hostline.clock cimport Deadline
from hostline.protocol.connection.client cimport ClientConnection
from hostline.protocol.outgoing cimport Outgoing
from hostline.protocol.reading cimport next_read_size
from hostline.rpc.calling cimport wire_time
from hostline.wire.frame cimport Frame

cdef int _SEND_FLAGS, _DONTWAIT
cdef double _READ_WAIT


cdef class Caller:
    cdef public object _sock, peer, loan
    cdef public ClientConnection protocol
    cdef object _poll_in, _liveness
    cdef bint _is_cut_off, _is_unasked, _is_wide
    cdef Py_ssize_t _read_size, _rest_size

    @cython.locals(is_whole=bint)
    cpdef object call(
        self, object method, object args, object keywords, double seconds, Deadline deadline, object context=*
    )
    cpdef object _send(self, object data, Deadline deadline)
    @cython.locals(outgoing=Outgoing)
    cpdef object _send_scattered(self, object frame, Deadline deadline)
    cdef tuple _recv(self, Py_ssize_t max_fds, int flags=*)
    cpdef object _wait_for_data(self, Deadline deadline)
    @cython.locals(protocol=ClientConnection)
    cpdef list _receive(self, Deadline deadline, bint may_answer=*)
