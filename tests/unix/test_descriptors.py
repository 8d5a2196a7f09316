"""`Fd` owns one descriptor, closes it on every path, and says what it is."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hostline.errors import DescriptorError
from hostline.unix.descriptors import Fd, close_all, kind_of


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def null() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def test_close_closes_and_a_second_close_does_nothing() -> None:
    number = null()
    fd = Fd(number)
    assert fd.fileno() == number
    fd.close()
    assert fd.is_closed
    assert not is_open(number)
    fd.close()
    with pytest.raises(DescriptorError):
        fd.fileno()


def test_the_end_of_a_with_block_closes() -> None:
    with Fd(null()) as fd:
        number = fd.fileno()
    assert not is_open(number)


def test_the_last_reference_closes() -> None:
    fd = Fd(null())
    number = fd.fileno()
    del fd
    gc.collect()
    assert not is_open(number)


def test_a_number_closed_behind_its_back_harms_nobody() -> None:
    fd = Fd(null())
    os.close(fd.fileno())
    del fd
    gc.collect()


def test_detach_hands_the_number_on() -> None:
    fd = Fd(null())
    number = fd.detach()
    del fd
    gc.collect()
    assert is_open(number)
    os.close(number)


def test_dup_has_an_owner_of_its_own_and_is_close_on_exec() -> None:
    with Fd(null()) as fd:
        other = fd.dup()
        assert other.fileno() != fd.fileno()
        assert not os.get_inheritable(other.fileno())
    assert is_open(other.fileno())
    other.close()


def test_open_gives_a_file_that_takes_over(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("grüezi\n", encoding="utf-8")
    fd = Fd(os.open(tmp_path / "text", os.O_RDONLY))
    number = fd.fileno()
    with fd.open("r", encoding="utf-8") as file:
        assert file.read() == "grüezi\n"
        assert fd.is_closed
    assert not is_open(number)


def test_open_of_a_directory_fails_and_keeps_the_descriptor(tmp_path: Path) -> None:
    with Fd(os.open(tmp_path, os.O_RDONLY)) as fd:
        with pytest.raises(DescriptorError):
            fd.open()
        assert not fd.is_closed


def test_a_closed_one_can_neither_be_duplicated_nor_opened_nor_detached() -> None:
    fd = Fd(null())
    fd.close()
    for use in (fd.dup, fd.open, fd.detach, lambda: fd.kind):
        with pytest.raises(DescriptorError):
            use()


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        Fd(-1)


def test_repr_never_fails() -> None:
    fd = Fd(null())
    assert "character" in repr(fd)
    number = fd.detach()
    assert repr(fd) == "<Fd closed>"
    os.close(number)
    stale = Fd(number)
    assert "not open" in repr(stale)
    stale.detach()


def test_close_all_goes_on_after_a_failure() -> None:
    broken, whole = Fd(null()), Fd(null())
    os.close(broken.fileno())
    number = whole.fileno()
    close_all([broken, whole])
    assert not is_open(number)


@pytest.mark.parametrize(
    "kind", ["regular", "directory", "pipe", "socket", "memfd", "character", "path", "other", "tmpfs", "lookalike"]
)
def test_kind_is_what_the_kernel_says(kind: str, tmp_path: Path) -> None:
    expected = kind
    if kind == "regular":
        fds = [os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)]
    elif kind == "tmpfs":
        # A file of another tmpfs answers for seals as a memfd does, and is none.
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("no writable /dev/shm")
        name = f"/dev/shm/hostline-test-{os.getpid()}"
        fds = [os.open(name, os.O_CREAT | os.O_RDWR, 0o600)]
        os.unlink(name)
        expected = "regular"
    elif kind == "lookalike":
        # Its link in /proc reads like a memfd's.
        fds = [os.open(tmp_path / "memfd:x (deleted)", os.O_CREAT | os.O_RDWR)]
        expected = "regular"
    elif kind == "directory":
        fds = [os.open(tmp_path, os.O_RDONLY)]
    elif kind == "pipe":
        fds = list(os.pipe())
    elif kind == "socket":
        fds = [sock.detach() for sock in socket.socketpair()]
    elif kind == "memfd":
        fds = [os.memfd_create("test")]
    elif kind == "character":
        fds = [null()]
    elif kind == "path":
        fds = [os.open(tmp_path, os.O_PATH)]
    else:
        fds = [os.eventfd(0)]
    owners = [Fd(fd) for fd in fds]
    try:
        assert {owner.kind for owner in owners} == {expected}
    finally:
        close_all(owners)


def test_kind_of_a_number_that_is_not_open_is_an_error() -> None:
    number = null()
    os.close(number)
    with pytest.raises(DescriptorError, match="not open"):
        kind_of(number)


def test_nothing_is_left_at_interpreter_exit() -> None:
    program = "import os; from hostline.unix.descriptors import Fd; keep = Fd(os.open(os.devnull, os.O_RDONLY))"
    result = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
