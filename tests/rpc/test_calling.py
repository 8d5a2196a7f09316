"""The caller's side without I/O: what an answer means, what to say when none comes, and when a call is made again."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Any, Protocol

import msgspec
import pytest

import hostline
from hostline.clock import NEVER, Deadline
from hostline.errors import (
    AddressError,
    CallCancelledError,
    CallError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    InvalidResultError,
    MethodDeniedError,
    MethodNotFoundError,
    OverloadedError,
    PeerRefusedError,
    RemoteError,
    RemoteProtocolError,
    UnavailableError,
)
from hostline.limits import DEFAULT_CALL_TIMEOUT, MAX_REPEATS
from hostline.protocol.connection import ClientConnection
from hostline.rpc.calling import (
    BrokenCallError,
    LineSettings,
    Repeats,
    check_returns,
    deadline_error,
    exception_for,
    farewell_error,
    program_name,
    read_answer,
    wire_time,
)
from hostline.rpc.stubs import interface_methods
from hostline.unix.credentials import Peers
from hostline.wire.codec import (
    ErrorCode,
    Failure,
    Farewell,
    GoawayCode,
    MethodEntry,
    ServerHello,
    encode_failure,
    encode_hello,
    encode_reply,
)
from hostline.wire.frame import Frame, FrameDecoder


def one(data: bytes | bytearray) -> Frame:
    decoder = FrameDecoder()
    decoder.expect_frames()
    (frame,) = decoder.receive_data(bytes(data))
    return frame


class OutOfStock(Exception):
    """As the service declares it."""


class Receipt(msgspec.Struct):
    total: float


# --- answers -------------------------------------------------------------------------------------------


def test_a_reply_is_the_result_as_the_type_asked_for() -> None:
    assert read_answer(one(encode_reply(1, {"total": 9.0})), Receipt) == Receipt(9.0)
    assert read_answer(one(encode_reply(1, {"total": 9.0})), Any) == {"total": 9.0}
    assert read_answer(one(encode_reply(1, None)), None) is None
    with pytest.raises(InvalidResultError, match=r"Expected `float`, got `str` - at `\$.total`"):
        read_answer(one(encode_reply(1, {"total": "x"})), Receipt)


CODES = {value for name, value in vars(ErrorCode).items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (ErrorCode.DEADLINE, DeadlineExceededError),
        (ErrorCode.OVERLOADED, OverloadedError),
        (ErrorCode.NOT_FOUND, MethodNotFoundError),
        (ErrorCode.INVALID_ARGUMENT, InvalidArgumentError),
        (ErrorCode.CANCELLED, CallCancelledError),
        (ErrorCode.DENIED, MethodDeniedError),
        (ErrorCode.UNAVAILABLE, UnavailableError),
        (ErrorCode.NOT_RUN, UnavailableError),
        (ErrorCode.INTERNAL, InternalError),
        (ErrorCode.DECLARED, RemoteError),
    ],
)
def test_every_code_is_raised_as_its_own_error(code: str, cls: type[CallError]) -> None:
    with pytest.raises(CallError) as caught:
        read_answer(one(encode_failure(1, code, "Name", "the words")), Any)
    assert type(caught.value) is cls
    assert caught.value.message == "the words"
    assert caught.value.is_retryable is (code in (ErrorCode.OVERLOADED, ErrorCode.UNAVAILABLE, ErrorCode.NOT_RUN))
    assert getattr(caught.value, "is_safe_to_repeat", False) is (code == ErrorCode.NOT_RUN)


def test_the_codes_above_are_all_there_are() -> None:
    assert {
        "deadline", "overloaded", "not_found", "invalid_argument", "cancelled", "denied", "unavailable", "internal",
        "declared", "not_run",
    } == CODES  # fmt: skip


def test_a_code_of_a_later_version_is_an_internal_error_that_names_it() -> None:
    error = exception_for(Failure("quota", "", "too much"))
    assert type(error) is InternalError
    assert str(error) == "quota: too much"


def test_a_malformed_error_is_the_peers_violation() -> None:
    with pytest.raises(RemoteProtocolError):
        read_answer(Frame(4, 0, 0, 1, 0, b"\xc0"), Any)


def test_a_declared_exception_is_a_remote_error_with_name_and_message() -> None:
    error = exception_for(Failure("declared", "OutOfStock", "no tea"))
    assert isinstance(error, RemoteError)
    assert (error.name, error.message, str(error)) == ("OutOfStock", "no tea", "OutOfStock: no tea")
    assert str(exception_for(Failure("declared", "OutOfStock", ""))) == "OutOfStock"


def test_a_declared_exception_arrives_as_the_callers_own_class_of_that_name() -> None:
    error = exception_for(Failure("declared", "OutOfStock", "no tea"), [KeyError, OutOfStock])
    assert type(error) is OutOfStock
    assert error.args == ("no tea",)
    assert isinstance(error.__cause__, RemoteError)


def test_only_a_declared_exception_becomes_the_callers_own_class() -> None:
    class InternalError(Exception):
        """Named like one of the codes."""

    assert type(exception_for(Failure("internal", "InternalError", "x"), [InternalError])) is hostline.InternalError
    assert type(exception_for(Failure("declared", "Other", "x"), [OutOfStock])) is RemoteError


def test_a_class_that_cannot_be_made_of_a_message_leaves_the_remote_error() -> None:
    class Strange(Exception):
        def __init__(self, code: int, reason: str) -> None:
            super().__init__(code, reason)

    error = exception_for(Failure("declared", "Strange", "x"), [Strange])
    assert isinstance(error, RemoteError)
    assert error.name == "Strange"


# --- when no answer comes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (GoawayCode.REFUSED, PeerRefusedError),
        (GoawayCode.VERSION, RemoteProtocolError),
        (GoawayCode.PROTOCOL, RemoteProtocolError),
        (GoawayCode.SHUTDOWN, UnavailableError),
        (GoawayCode.TIMEOUT, UnavailableError),
        (GoawayCode.LIMIT, UnavailableError),
        ("of a later version", UnavailableError),
    ],
)
def test_a_farewell_instead_of_a_hello_is_raised_in_the_servers_words(code: str, cls: type[Exception]) -> None:
    error = farewell_error(Farewell(code, "the words", 0))
    assert type(error) is cls
    assert str(error) == "the words"
    if isinstance(error, UnavailableError):
        assert error.is_safe_to_repeat


def test_a_deadline_error_says_which_call_and_how_long() -> None:
    error = deadline_error("charge", 0.5)
    assert isinstance(error, TimeoutError)
    assert str(error) == "charge: no answer within 0.5 seconds"
    assert str(deadline_error("charge", 30.0, "no connection")) == "charge: no connection within 30 seconds"


@pytest.mark.parametrize(
    ("was_sent", "is_ruled_out", "is_safe"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_a_broken_call_says_whether_it_can_have_run(was_sent: bool, is_ruled_out: bool, is_safe: bool) -> None:
    broken = BrokenCallError("the server is gone", was_sent=was_sent, is_ruled_out=is_ruled_out)
    error = broken.as_unavailable("charge")
    assert error.is_safe_to_repeat is is_safe
    outcome = "it was not run" if is_safe else "it may or may not have been run"
    assert str(error) == f"charge: the server is gone; {outcome}"


# --- repeating -----------------------------------------------------------------------------------------


def connection() -> ClientConnection:
    client = ClientConnection()
    methods = [MethodEntry("charge"), MethodEntry("look", True)]
    client.receive_data(encode_hello(ServerHello(service="s", methods=methods)))
    return client


def test_a_call_that_may_have_run_is_not_made_again() -> None:
    with pytest.raises(UnavailableError, match="it may or may not have been run"):
        Repeats("charge", False).broke(BrokenCallError("gone", was_sent=True), connection())


def test_a_call_that_cannot_have_run_is_made_again_as_often_as_it_takes() -> None:
    repeats = Repeats("charge", False)
    for _ in range(MAX_REPEATS * 5):
        repeats.broke(BrokenCallError("gone", was_sent=False), connection())
        repeats.broke(BrokenCallError("gone", was_sent=True, is_ruled_out=True), connection())


@pytest.mark.parametrize(("method", "is_idempotent"), [("look", False), ("charge", True), ("look", True)])
def test_an_idempotent_call_is_made_again_a_bounded_number_of_times(method: str, is_idempotent: bool) -> None:
    """Whether the service declares it or the caller says so; a call that kills its server must not do it for ever."""
    repeats = Repeats(method, is_idempotent)
    for _ in range(MAX_REPEATS):
        repeats.broke(BrokenCallError("gone", was_sent=True), connection())
    with pytest.raises(UnavailableError, match="gone; it may or may not have been run"):
        repeats.broke(BrokenCallError("gone", was_sent=True), connection())


# --- result types --------------------------------------------------------------------------------------


def test_a_result_type_that_is_not_hashable_passes_like_any_other() -> None:
    unhashable = Annotated[int, {"a": 1}]
    check_returns(unhashable)
    assert read_answer(one(encode_reply(1, 5)), unhashable) == 5

    class Counter(hostline.Interface, Protocol):
        def count(self) -> Annotated[int, {"a": 1}]: ...

    assert [method.name for method in interface_methods(Counter, hostline.Interface)] == ["count"]


def test_a_result_type_that_nothing_can_be_decoded_into_is_refused_also_when_it_is_not_hashable() -> None:
    with pytest.raises(TypeError):
        check_returns(Annotated[int | complex | OutOfStock, {"a": 1}])


# --- settings ------------------------------------------------------------------------------------------


def settings(address: Any = "/tmp/x", **options: Any) -> LineSettings:
    defaults = {
        "server": None, "timeout": None, "connect_timeout": 1.0, "wait": 0.0, "reconnect_timeout": 1.0,
        "max_frame_size": 4096,
    }  # fmt: skip
    return LineSettings.of(address, **(defaults | options))


def test_what_is_left_out_has_its_default() -> None:
    made = settings()
    assert made.timeout == DEFAULT_CALL_TIMEOUT
    assert made.server == Peers.same_user()
    assert made.address.text == "/tmp/x"


@pytest.mark.parametrize("name", ["timeout", "wait", "reconnect_timeout"])
@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_seconds_are_zero_or_more(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"{name} of {seconds} seconds must be zero or more"):
        settings(**{name: seconds})
    assert getattr(settings(**{name: 0.0}), name) == 0.0


@pytest.mark.parametrize("seconds", [0, 0.0, -1.0, math.nan])
def test_a_connect_timeout_is_above_zero(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"connect_timeout of {seconds} seconds must be above 0"):
        settings(connect_timeout=seconds)


@pytest.mark.parametrize("size", [1023, 16777217])
def test_a_frame_bound_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"max_frame_size of {size} bytes must lie between 1024 and 16777216"):
        settings(max_frame_size=size)


def test_an_inherited_listening_socket_is_nothing_to_connect_to() -> None:
    with pytest.raises(AddressError, match="is a listening socket that this process inherited"):
        settings("fd:3")


def test_a_calls_timeout_is_its_own_or_the_lines() -> None:
    line = settings(timeout=7.0)
    assert line.deadline(None)[0] == 7.0
    assert line.deadline(0.25)[0] == 0.25
    assert line.deadline(math.inf)[1].is_never
    for seconds in (-1.0, math.nan):
        with pytest.raises(ValueError, match="must be zero or more"):
            line.deadline(seconds)


def test_the_time_left_travels_unless_there_is_no_end() -> None:
    assert wire_time(NEVER) is None
    left = wire_time(Deadline.after(5.0))
    assert left is not None
    assert 4.0 < left <= 5.0
    assert wire_time(Deadline.after(0.0)) == 0.0


def test_a_program_introduces_itself_by_name_and_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/shop/till"])
    assert program_name().startswith("till pid ")
    for nameless in ([], [""]):
        monkeypatch.setattr(sys, "argv", nameless)
        assert program_name().startswith("python pid ")


@pytest.mark.parametrize("name", ["x" * 255, "\udcff\udcfe", "naïve"])
def test_a_program_of_any_name_can_introduce_itself(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    assert ClientConnection(program_name()).data_to_send()
