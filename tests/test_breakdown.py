"""benchmarks/breakdown.py: what it reads out of its tools."""

from __future__ import annotations

import pytest
from benchmarks.breakdown import PING, layer, self_costs
from msgspec import msgpack

CALLGRIND = """\
version: 1
positions: line
events: Ir
summary: 1122

ob=(1) /usr/lib/libpython3.11.so.1.0
fl=(1) ceval.c
fn=(1) _PyEval_EvalFrameDefault
10 7
+2 5
cob=(2) /site-packages/hostline/wire/frame.cpython-311-x86_64-linux-gnu.so
cfn=(2) decode
calls=3 20
* 1000
-1 10

ob=(2)
fn=(2)
20 1000
ob=(1)
fn=(3) PyDict_GetItem
30 100
"""


def test_what_a_callee_takes_counts_there_and_nowhere_else() -> None:
    assert self_costs(CALLGRIND) == {"interpreter": 7 + 5 + 10 + 100, "hostline wire/frame": 1000}


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/x/lib/libpython3.13.so.1.0", "interpreter"),
        ("/usr/bin/python3.12", "interpreter"),
        ("/x/python3.11/lib-dynload/_socket.cpython-311-x86_64-linux-gnu.so", "_socket"),
        ("/x/site-packages/msgspec/_core.cpython-311-x86_64-linux-gnu.so", "msgspec"),
        ("/x/site-packages/uvloop/loop.cpython-311-x86_64-linux-gnu.so", "uvloop"),
        ("/x/src/hostline/sync/caller.cpython-311-x86_64-linux-gnu.so", "hostline sync/caller"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "C library"),
        ("[vdso]", "C library"),
        ("[kernel.kallsyms]", "kernel"),
    ],
)
def test_an_object_file_belongs_to_a_layer(path: str, owner: str) -> None:
    assert layer(path) == owner


def test_a_call_carries_64_bytes() -> None:
    assert len(msgpack.encode(PING)) == 64
