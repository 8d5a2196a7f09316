"""What the server does as the accounts of its peers' users say (protocol/serving/quotas.py): hold, go on, refuse."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from hostline.limits import CONNECTION_RATE_PER_UID
from hostline.protocol.serving.quotas import Account, Bounds, Holding, Quotas, share_of
from hostline.rpc.builtin import UserStats
from hostline.rpc.settings import ServerSettings
from hostline.unix.credentials import Peers

if TYPE_CHECKING:
    from hostline.aio.serving.server import Server
    from hostline.aio.serving.session import Session

__all__ = ["Accounts"]


class Accounts:
    """Keep the accounts of one server.

    Where the rule admits several users, each may have most of what they share, and not all of it: of the slots and the
    worker threads all but an eighth, of the descriptors a quarter. A service for one user gives that one everything.

    Args:
        server: Whose they are.
        rule: Who is admitted.

    Attributes:
        share: Calls of one user that run at once.
    """

    def __init__(self, server: Server, rule: Peers) -> None:
        settings = server.settings
        self._server = server
        is_shared = rule.is_anyone or bool(rule.gids) or not rule.uids <= {0, os.geteuid()}
        self.share = share_of(settings.concurrency) if is_shared else settings.concurrency
        self._thread_share = share_of(settings.threads) if is_shared else settings.threads
        self.quotas = Quotas(_bounds(settings, is_shared))

    # --- connections -----------------------------------------------------------------------------------

    def open(self, session: Session, uid: int) -> Holding:
        """Count a new connection."""
        return self.quotas.open(session, uid)

    def close(self, session: Session) -> None:
        """Give back everything that a connection was charged: the one place where that is done."""
        account = session.holding.account
        changed = self.quotas.close(session.holding)
        self._follow(account, changed)

    # --- bytes -----------------------------------------------------------------------------------------

    def settle(self, session: Session, kept: int, unread: int) -> None:
        """Charge what a connection holds now, and do what follows from it."""
        holding = session.holding
        account = holding.account
        changed = account.settle(holding, kept, unread)
        if changed or account.line:
            self._follow(account, changed)

    def _follow(self, account: Account, changed: bool) -> None:
        if changed:
            self._server.admission.hold_group(account.calls, account.is_closed)
            for holding in account.holdings:
                if holding.unread:
                    self._server.loop.call_soon(holding.owner.regulate)
            self._server.loop.call_soon(self._server.start_waiting)
        self.go_on(account, changed)

    def go_on(self, account: Account, changed: bool = False) -> None:
        """Read on where it is possible again."""
        for holding in account.ready(changed):
            self._server.loop.call_soon(holding.owner.read_on)

    # --- calls -----------------------------------------------------------------------------------------

    def submit(self, account: Account, work: Callable[[], None]) -> None:
        """Give work to a thread, or keep it while the user has as many threads as it may.

        Raises:
            RuntimeError: There is no thread yet and the system gives none.
        """
        if account.thread_count >= self._thread_share and self._thread_share < self._server.settings.threads:
            account.backlog.append(work)
            return
        self._server.workers.submit(work)
        account.thread_count += 1

    def thread_done(self, account: Account) -> None:
        """Note that a thread has done what it was given."""
        account.thread_count -= 1
        if account.backlog:
            self.submit(account, account.backlog.popleft())

    def finished(self, account: Account) -> None:
        """Note that a call has given its slot back: the last thing that may be charged after a connection's end."""
        if not account.connections:
            self.quotas.forget(account)

    # --- in words --------------------------------------------------------------------------------------

    def calls_text(self, account: Account) -> str:
        """Say that a user has as many calls as it may."""
        most = self._server.admission.max_calls
        name = self._server.service.name
        return f"{account.who} has {most} calls running or waiting at {name}, its most: max_calls_per_uid"

    def descriptors_text(self, account: Account) -> str:
        """Say that as many descriptors wait for a user's handlers as may be."""
        most = account.bounds.descriptors_per_uid
        name = self._server.service.name
        return f"{most} descriptors of {account.who} wait at {name}, its most: max_descriptors_per_uid; try again"

    def bytes_text(self, account: Account) -> str:
        """Say that as much is kept for a user as may be."""
        most = account.bounds.buffered_per_uid
        name = self._server.service.name
        return f"{name} keeps {most} bytes for {account.who}, its most: max_buffered_per_uid"

    def stats(self) -> list[UserStats]:
        """Return what is charged to each user now."""
        return [
            UserStats(
                uid=account.uid,
                connections=account.connections,
                running=account.calls.running_count,
                waiting=account.calls.waiting_count,
                bytes=account.kept + account.unread,
                descriptors=account.descriptors,
                mapped=account.mapped,
            )
            for _, account in sorted(self.quotas.accounts.items())
        ]


def _bounds(settings: ServerSettings, is_shared: bool) -> Bounds:
    rate = settings.max_connection_rate_per_uid
    if rate is None and is_shared:
        rate = CONNECTION_RATE_PER_UID
    connections = settings.max_connections_per_uid
    if is_shared:
        # A connection has two descriptors: its own and a pidfd. So nobody has more than half of the table.
        connections = max(1, min(connections, _descriptor_limit() // 4))
    return Bounds(
        connections=settings.max_connections,
        connections_per_uid=connections,
        connection_rate_per_uid=None if rate == math.inf else rate,
        buffered_per_uid=settings.max_buffered_per_uid,
        descriptors_per_uid=min(settings.max_descriptors_per_uid, _descriptor_limit() // 4),
    )


def _descriptor_limit() -> int:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 31 if soft == resource.RLIM_INFINITY else soft
