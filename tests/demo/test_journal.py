"""The journal: sums that agree with its lines, refunds that happen once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hostline.demo.journal import Journal, read_journal
from hostline.demo.model import CardDeclined, Charge, UnknownReceipt


def charge(order: int, cents: int = 100, card: str = "tok_4242") -> Charge:
    return Charge(order, cents, "EUR", card)


def test_the_lines_add_up_to_the_totals_whatever_the_threads_do(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda n: journal.charge(charge(n, n)), range(1, 401)))
        list(pool.map(lambda n: journal.refund(receipts[n].number), range(0, 400, 10)))
    journal.close()
    records = list(read_journal((tmp_path / "journal").read_bytes()))
    assert len(records) == 440
    assert journal.totals() == {"EUR": sum(record.cents for record in records)}
    assert Counter(receipt.number for receipt in receipts) == Counter(range(1, 401))


def test_a_refund_happens_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    receipt = journal.charge(charge(1, 250))
    assert journal.refund(receipt.number) == journal.refund(receipt.number)
    journal.close()
    assert journal.totals() == {"EUR": 0}
    assert [record.cents for record in read_journal((tmp_path / "journal").read_bytes())] == [250, -250]


def test_what_cannot_be_done_is_not_written(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    with pytest.raises(CardDeclined, match="order 7: the bank declined the card"):
        journal.charge(charge(7, card="tok_0002"))
    with pytest.raises(UnknownReceipt, match="receipt 9"):
        journal.refund(9)
    journal.close()
    assert (tmp_path / "journal").read_bytes() == b""


def test_a_journal_never_continues_the_file_of_another(tmp_path: Path) -> None:
    Journal(str(tmp_path / "journal")).close()
    with pytest.raises(FileExistsError):
        Journal(str(tmp_path / "journal"))


def test_only_the_wanted_lines_are_read(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    journal.charge(charge(1))
    journal.settle(5)
    journal.settle(6)
    journal.close()
    data = (tmp_path / "journal").read_bytes()
    assert [record.number for record in read_journal(data, kind="settle")] == [5, 6]
    assert [record.number for record in read_journal(data, kind="settle", number=6)] == [6]
