"""The accept loop's decisions: rest when descriptors run out, one line a second, on again when one comes back."""

from __future__ import annotations

import errno

import pytest

from hostline import limits
from hostline.protocol.serving.accepting import Accepting


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_makes_it_rest_and_say_so(number: int) -> None:
    accepting = Accepting("/run/x.sock")
    decision = accepting.failed(number, 100.0)
    assert not decision.is_fatal
    assert decision.rest_until == accepting.rest_until == 100.0 + limits.ACCEPT_REST
    assert accepting.is_resting
    assert decision.log is not None
    assert "/run/x.sock" in decision.log
    assert errno.errorcode[number] in decision.log


def test_it_logs_once_a_second_however_often_it_fails_and_counts_the_rest() -> None:
    accepting = Accepting("x", rest=1.0)
    lines = [accepting.failed(errno.EMFILE, 100.0 + step / 100).log for step in range(250)]
    said = [line for line in lines if line]
    assert len(said) == 3
    assert "100 times" in said[1]


def test_a_descriptor_that_comes_back_ends_the_rest() -> None:
    accepting = Accepting("x")
    assert not accepting.descriptor_returned()
    accepting.failed(errno.EMFILE, 5.0)
    assert accepting.descriptor_returned()
    assert not accepting.is_resting
    assert accepting.rest_until == 0.0
    assert not accepting.descriptor_returned()


def test_an_accepted_connection_ends_the_rest() -> None:
    accepting = Accepting("x")
    accepting.failed(errno.EMFILE, 5.0)
    accepting.succeeded()
    assert not accepting.is_resting


@pytest.mark.parametrize("number", [errno.EINTR, errno.ECONNABORTED, errno.EAGAIN])
def test_what_concerns_one_connection_only_is_passed_over(number: int) -> None:
    accepting = Accepting("x")
    decision = accepting.failed(number, 7.0)
    assert (decision.rest_until, decision.log, decision.is_fatal) == (7.0, None, False)
    assert not accepting.is_resting


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK, None])
def test_what_concerns_the_listening_socket_is_fatal(number: int | None) -> None:
    assert Accepting("x").failed(number, 7.0).is_fatal
