# C types for reading.py.

cpdef Py_ssize_t next_read_size(Py_ssize_t asked, Py_ssize_t came)
