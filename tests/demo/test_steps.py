"""What the steps claim can fail: each claim is shown a world in which it does not hold."""

from __future__ import annotations

import json
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from hostline.demo import tour
from hostline.demo.book import Book, Fault, keep_book
from hostline.demo.journal import Journal
from hostline.demo.model import Charge
from hostline.demo.processes import Child
from hostline.demo.receipts import REQUEST, Counter, file_facts
from hostline.demo.report import Report, Step
from hostline.demo.screen import Screen
from hostline.demo.steps import guard, handover, restart, speed, trade
from hostline.demo.steps.otheruser import NOBODY, OtherUser
from hostline.demo.steps.scene import Scene, money, own_command
from hostline.errors import EndOfStream
from hostline.sync.sockets import connect_socket


def step() -> Step:
    return Step("name", "Title", Screen(None))


def failed(step: Step) -> list[str]:
    return [check.claim for check in step.checks if not check.ok]


# --- orders ------------------------------------------------------------------------------------------


def run_two_steps(monkeypatch: pytest.MonkeyPatch, change: Callable[[Book], None]) -> tuple[int, Report]:
    """Start the services and send the orders, with another idea of what should come out."""
    reports: list[Report] = []

    def changed(lines: Iterable[bytes]) -> Book:
        book = keep_book(lines)
        change(book)
        return book

    class Kept(Report):
        def __init__(self, facts: dict[str, Any]) -> None:
            super().__init__(facts)
            reports.append(self)

    monkeypatch.setattr(trade, "keep_book", changed)
    monkeypatch.setattr(tour, "STEPS", tour.STEPS[:2])
    monkeypatch.setattr(tour, "Report", Kept)
    return tour.perform(is_quick=True, is_json=False), reports[0]


def test_the_orders_go_through_as_the_file_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = run_two_steps(monkeypatch, lambda book: None)
    assert (code, report.ok) == (0, True)
    facts = report.steps[1].facts
    assert (facts["lines"], facts["good"], facts["malformed"]) == (5_000, 4_900, 100)
    assert [kind["count"] for kind in facts["kinds"]] == [10] * 10
    assert facts["totals"]["file"] == facts["totals"]["paid"] == facts["totals"]["taken"]
    assert f"all {len(report.checks)} claims hold" in capsys.readouterr().out


def test_a_cent_too_many_fails_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def change(book: Book) -> None:
        book.totals["EUR"] += 1

    code, report = run_two_steps(monkeypatch, change)
    assert code == 1
    assert failed(report.steps[1])[0] == "the totals agree to the cent"
    output = capsys.readouterr().out
    assert "FAILED  the totals agree to the cent" in output
    assert "claims do not hold" in output


def test_an_error_that_does_not_name_the_field_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(book: Book) -> None:
        number = next(iter(book.faults))
        book.faults[number] = Fault("another", "colour")

    code, report = run_two_steps(monkeypatch, change)
    assert code == 1
    assert failed(report.steps[1]) == ["every error names the field that is wrong, or the column where JSON ends"]


def test_a_step_that_breaks_off_is_told_and_ends_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_off(scene: Scene, step: Step) -> None:
        raise OSError(28, "no space left")

    plans = [tour.Plan(name, name, "sentence", break_off) for name in ("one", "two")]
    monkeypatch.setattr(tour, "STEPS", tuple(plans))
    assert tour.perform(is_quick=True, is_json=True) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [step["checks"] for step in answer["steps"]] == [
        [{"claim": "broken off: OSError: [Errno 28] no space left", "ok": False}]
    ]
    assert not any(Path(directory).exists() for directory in answer["directories"])


# --- restart -----------------------------------------------------------------------------------------


class FakeChild(Child):
    """A process that is nothing but its number."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @property
    def pid(self) -> int:
        return self._pid


def account(journals: dict[int, list[int]], acknowledged: dict[int, int], **calls: list[Any]) -> Step:
    generations = [
        restart._Generation(f"payments-{pid}", FakeChild(pid), exit_code=0, numbers=numbers)
        for pid, numbers in journals.items()
    ]
    result = step()
    restart._account(result, generations, restart._Calls(acknowledged, **calls))
    return result


def test_calls_that_are_each_in_one_journal_are_accepted() -> None:
    assert failed(account({7: [1, 2], 8: [3]}, {1: 7, 2: 7, 3: 8})) == []


@pytest.mark.parametrize(
    ("journals", "acknowledged", "calls", "word"),
    [
        ({7: [1], 8: []}, {1: 7, 2: 7}, {}, "1 lost"),
        ({7: [1, 2], 8: [2]}, {1: 7, 2: 8}, {}, "1 run twice"),
        ({7: [1, 1], 8: []}, {1: 7}, {}, "1 run twice"),
        ({7: [1], 8: [2]}, {1: 7, 2: 7}, {}, "exactly one journal"),
        ({7: [1, 2], 8: []}, {1: 7}, {}, "exactly one journal"),
        ({7: [], 8: []}, {}, {}, "exactly one journal"),
        ({7: [1, 2], 8: []}, {1: 7}, {"not_run": [2], "failures": ["said not run"]}, "calls failed"),
        ({7: [1], 8: []}, {1: 7}, {"unknown": [2], "failures": ["no answer"]}, "1 calls failed"),
    ],
)
def test_a_call_lost_doubled_or_misplaced_fails_the_demo(
    journals: dict[int, list[int]], acknowledged: dict[int, int], calls: dict[str, list[Any]], word: str
) -> None:
    assert any(word in claim for claim in failed(account(journals, acknowledged, **calls)))


# --- speed -------------------------------------------------------------------------------------------


def test_percentiles_are_times_that_occurred() -> None:
    series = speed._Series("x")
    series.add([n / 1000 for n in range(100, 0, -1)], 2.0)
    assert series.percentile(0.50) == 0.051
    assert series.percentile(0.99) == 0.1
    assert series.rate == 50
    assert series.as_json() == {
        "name": "x",
        "calls": 100,
        "p50_us": 51_000.0,
        "p99_us": 100_000.0,
        "calls_per_second": 50,
    }


# --- a file handed over ------------------------------------------------------------------------------


@pytest.fixture
def counter(sock_dir: Path) -> Any:
    journal = Journal(str(sock_dir / "journal"))
    journal.charge(Charge(1, 250, "EUR", "tok_4242"))
    address = str(sock_dir / "counter.sock")
    with Counter(address, journal):
        yield address
    journal.close()


def test_the_receipts_come_as_a_file_without_name_and_permission(counter: str, sock_dir: Path) -> None:
    before = sorted(path.name for path in sock_dir.iterdir())
    file, theirs = handover._fetch(counter)
    with file:
        mine = file_facts(file.fileno())
        assert (mine.device, mine.inode, mine.sha256) == (theirs.device, theirs.inode, theirs.sha256)
        assert (theirs.links, theirs.mode, theirs.pid) == (0, 0, os.getpid())
        assert os.pread(file.fileno(), 1000, 0) == (sock_dir / "journal").read_bytes()
        assert not os.get_inheritable(file.fileno())
        assert handover._try_write(file.fileno()) == "EBADF"
    assert sorted(path.name for path in sock_dir.iterdir()) == before


def test_a_visitor_who_asks_for_something_else_gets_nothing_and_the_next_is_served(counter: str) -> None:
    with connect_socket(counter, "seqpacket", max_fds=1) as visitor:
        visitor.send(b"the till")
        with pytest.raises(EndOfStream):
            visitor.recv_fds(timeout=5)
    with connect_socket(counter, "seqpacket", max_fds=1) as visitor:
        visitor.send(REQUEST)
    file, _ = handover._fetch(counter)
    file.close()


def test_a_counter_needs_a_journal_with_a_file(sock_dir: Path) -> None:
    with pytest.raises(ValueError, match="journal with a file"):
        Counter(str(sock_dir / "counter.sock"), Journal())


# --- another user ------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_function_runs_as_nobody_and_its_failure_is_told() -> None:
    with OtherUser(lambda: [os.getuid(), os.getgid(), os.getgroups()]) as nobody:
        assert nobody.result() == [NOBODY, NOBODY, []]
    with OtherUser(lambda: os.setuid(0)) as nobody, pytest.raises(RuntimeError, match="failed: PermissionError"):
        nobody.result()


@pytest.mark.root
def test_another_user_who_does_not_answer_is_ended() -> None:
    here, there = socket.socketpair()
    with here, there, OtherUser(lambda: there.recv(1)) as nobody, pytest.raises(RuntimeError, match="did not answer"):
        nobody.result(0.05)


def test_without_root_the_step_says_how_to_see_it(monkeypatch: pytest.MonkeyPatch, sock_dir: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = step()

    class NoStage:
        is_quick = True

    guard.identity(Scene(NoStage(), Screen(None)), result)  # type: ignore[arg-type]
    assert "Only root" in result.skipped
    assert result.facts["command"].startswith("sudo /")
    assert result.facts["command"].endswith(" demo")
    assert result.ok


# --- small things ------------------------------------------------------------------------------------


def test_money_is_written_in_whole_and_cents() -> None:
    assert [money(cents) for cents in (0, 5, 123456789, -250)] == ["0.00", "0.05", "1,234,567.89", "-2.50"]


def test_the_command_is_named_so_that_it_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "hostline"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert own_command() == ["hostline"]
    assert own_command(is_absolute=True) == [str(script)]
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert own_command()[1:] == ["-m", "hostline"]
    monkeypatch.setattr("sys.argv", [str(script), "demo"])
    assert own_command() == [str(script)]


def test_the_book_starts_empty() -> None:
    assert keep_book([]) == Book(totals=defaultdict(int))
