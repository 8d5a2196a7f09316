"""Flow control as a game: a sender and a reader, with items and grants that take any time to arrive."""

from __future__ import annotations

import dataclasses
import random
from collections import deque

import pytest
from tests.fuzz.harness import INPUTS, Case, Outcome, fuzz

from hostline.errors import RemoteProtocolError
from hostline.limits import MAX_STREAM_CREDIT, STREAM_CREDIT
from hostline.protocol.flow import Allowance, Window
from hostline.wire.frame import HEADER_SIZE

# Streams of one run; they come on top of the inputs that the harness shares out.
STREAMS = INPUTS // 200

# Sizes of payloads: none, small, those that use the credit up but for a byte, to the byte, and far beyond it.
EDGES = (
    0, 1, STREAM_CREDIT // 2 - HEADER_SIZE - 1, STREAM_CREDIT // 2 - HEADER_SIZE, STREAM_CREDIT // 2,
    STREAM_CREDIT - HEADER_SIZE - 1, STREAM_CREDIT - HEADER_SIZE, STREAM_CREDIT, 1 << 20, 16 << 20,
)  # fmt: skip
ACTIONS = ("send", "arrive", "take", "grant")


@dataclasses.dataclass
class Stream:
    """One stream between its two ends; sizes are those of payloads, in bytes."""

    sizes: deque[int]
    sender: Allowance = dataclasses.field(default_factory=Allowance)
    reader: Window = dataclasses.field(default_factory=Window)
    under_way: deque[int] = dataclasses.field(default_factory=deque)
    arrived: deque[int] = dataclasses.field(default_factory=deque)
    grants: deque[int] = dataclasses.field(default_factory=deque)
    sent: int = 0
    granted: int = 0
    largest: int = 0

    def possible(self) -> list[str]:
        """Return what can happen now."""
        is_possible = (self.sizes and self.sender.may_send, self.under_way, self.arrived, self.grants)
        return [action for action, is_ready in zip(ACTIONS, is_possible, strict=True) if is_ready]

    def act(self, action: str) -> None:
        """Let one thing happen: an item is sent, arrives or is taken by the program, or a grant arrives."""
        if action == "send":
            size = self.sizes.popleft()
            self.sender.take(size)
            self.under_way.append(size)
            self.sent += cost(size)
            self.largest = max(self.largest, cost(size))
        elif action == "arrive":
            size = self.under_way.popleft()
            self.reader.arrived(size)
            self.arrived.append(size)
        elif action == "take":
            if amount := self.reader.taken(self.arrived.popleft()):
                self.grants.append(amount)
        else:
            amount = self.grants.popleft()
            self.sender.grant(amount)
            self.granted += amount

    def check(self) -> None:
        """Demand that the books of both ends agree, and that what is outstanding is the credit and one item at most."""
        assert self.sent - self.granted == STREAM_CREDIT - self.sender.left
        assert self.sender.left + sum(self.grants) == self.reader.left - sum(map(cost, self.under_way))
        assert self.sender.left <= STREAM_CREDIT <= MAX_STREAM_CREDIT, "nobody grants more than was taken"
        assert self.sent - self.granted < STREAM_CREDIT + self.largest
        assert sum(map(cost, (*self.under_way, *self.arrived))) < STREAM_CREDIT + self.largest


def cost(size: int) -> int:
    return HEADER_SIZE + size


def make_stream(rng: random.Random) -> Case:
    """Return sizes of items, and how likely each thing is beside the others: what is unlikely takes long."""
    kind = rng.randrange(4)
    if kind == 0:
        sizes = [rng.choice(EDGES) for _ in range(rng.randrange(1, 60))]
    elif kind == 1:
        sizes = [rng.randrange(3000) for _ in range(rng.randrange(1, 150))]
    elif kind == 2:
        sizes = [int(2 ** rng.uniform(0, 24)) for _ in range(rng.randrange(1, 60))]
    else:
        sizes = [rng.choice((1008, 4080, STREAM_CREDIT // 2 - HEADER_SIZE))] * rng.randrange(1, 150)
    weights = tuple(rng.choice((0.001, 0.1, 1, 1, 10)) for _ in ACTIONS)
    return Case(b"", (), (tuple(sizes), weights, rng.randrange(1 << 32)))


def check_stream(case: Case, sender: type[Allowance] = Allowance, reader: type[Window] = Window) -> Outcome:
    sizes, weights, seed = case.about
    rng = random.Random(seed)
    stream = Stream(deque(sizes), sender(), reader())
    weight_of = dict(zip(ACTIONS, weights, strict=True))
    while actions := stream.possible():
        stream.act(rng.choices(actions, [weight_of[action] for action in actions])[0])
        stream.check()
    assert not stream.sizes, f"{len(stream.sizes)} items wait for credit that nobody will grant"
    assert stream.sender.may_send, "whoever had everything taken may send again"
    assert stream.sender.left > STREAM_CREDIT // 2
    return Outcome.ACCEPTED


def test_a_stream_never_stalls_and_never_owes_more_than_its_credit_and_one_item() -> None:
    """Whatever the sizes and however late the grants: each item arrives in the end, and neither side refuses."""
    tally = fuzz("flow", make_stream, check_stream, STREAMS)
    print(tally)
    assert tally.total == STREAMS


class Miser(Window):
    """Grants only what is left over above half the credit."""

    def taken(self, size: int) -> int:
        amount = super().taken(size)
        self.left -= amount // 2
        return amount - amount // 2


class Waiter(Window):
    """Grants nothing until the whole credit was taken."""

    def taken(self, size: int) -> int:
        self._taken += cost(size)
        if self._taken <= STREAM_CREDIT:
            return 0
        amount, self._taken = self._taken, 0
        self.left += amount
        return amount


class Eager(Allowance):
    """Sends once more when its credit is used up."""

    @property
    def may_send(self) -> bool:
        return self.left >= 0


@pytest.mark.parametrize(
    ("sender", "reader", "error"),
    [
        (Allowance, Miser, AssertionError),
        (Allowance, Waiter, AssertionError),
        (Eager, Window, (AssertionError, RemoteProtocolError)),
    ],
)
def test_a_planted_fault_in_flow_control_is_caught(
    sender: type[Allowance], reader: type[Window], error: type[Exception]
) -> None:
    """Credit that is lost, credit that comes too late, and an item too many."""
    with pytest.raises(error):
        fuzz("flow", make_stream, lambda case: check_stream(case, sender, reader), 1000)
