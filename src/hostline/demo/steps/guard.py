"""Look at the socket file, start a second server on it, and call as another user."""

from __future__ import annotations

import os
import pwd
import shlex
import stat
import subprocess
from typing import Any

from hostline.demo.doors import OPEN, OWN
from hostline.demo.model import Payments
from hostline.demo.report import Step
from hostline.demo.steps.otheruser import NOBODY, OtherUser
from hostline.demo.steps.scene import Scene, own_command
from hostline.errors import HostlineError
from hostline.rpc.builtin import Health
from hostline.sync.client import connect

__all__ = ["guard", "identity"]

# Seconds for the second start to be refused.
_PATIENCE = 20.0


def guard(scene: Scene, step: Step) -> None:
    """Show the socket file, and that a second start on a live address is refused."""
    screen = scene.screen
    for shown in _list(scene.payments):
        screen.line(f"     {shown}", "shown")
    screen.line()
    status = os.lstat(scene.payments)
    mode, owner = stat.S_IMODE(status.st_mode), _user(status.st_uid)
    step.facts |= {"mode": f"{mode:04o}", "owner": owner, "is_socket": stat.S_ISSOCK(status.st_mode)}
    step.check(
        f"a socket of mode {mode:04o} that belongs to {owner}",
        stat.S_ISSOCK(status.st_mode) and mode == 0o600 and status.st_uid == os.geteuid(),
    )
    screen.line()
    screen.text("A second payment service is started on the same path. It says, and exits:")
    holder = scene.children["payments"]
    command = [*holder.command[:3], scene.payments]
    second = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=_PATIENCE,
        check=False,
        cwd=scene.stage.directory,
        env=scene.stage.environment,
    )
    said = second.stderr.strip()
    for line in said.splitlines():
        screen.shown(line)
    screen.line()
    step.facts |= {"second_start": said, "second_exit_code": second.returncode}
    step.check(
        f"refused with exit code {second.returncode}, naming the holder's pid {holder.pid} and its command",
        second.returncode == 1 and f"pid {holder.pid} " in said and "hostline.demo.payments" in said,
    )
    with connect(scene.payments) as call_line:
        health: Health = call_line.call("hostline.health", returns=Health)
    same = os.lstat(scene.payments)
    step.check(
        f"the first one, pid {health.pid}, keeps serving on the same file",
        health.pid == holder.pid and (same.st_dev, same.st_ino) == (status.st_dev, status.st_ino),
    )


def identity(scene: Scene, step: Step) -> None:
    """Call as another user, at a door that the kernel keeps and at one that the rule keeps."""
    doors = [str(scene.doors_directory / name) for name in (OWN, OPEN)]
    if os.geteuid() != 0:
        command = shlex.join(["sudo", *own_command(is_absolute=True), "demo"])
        step.skip("Only root can become another user for a moment. To see this step:")
        scene.screen.shown(command)
        step.facts["command"] = command
        return
    try:
        with OtherUser(lambda: [_try(door) for door in doors]) as nobody:
            answers = nobody.result()
    except RuntimeError as error:
        step.skip(f"Nobody else can be impersonated here: {error}")
        return
    screen = scene.screen
    whys = ("closed by the kernel: the mode says no", "open by its mode; the service has allow=Peers.same_user()")
    for door, answer, why in zip(doors, answers, whys, strict=True):
        screen.text(f"{os.path.basename(door)}, {why}:")
        for line in _list(door):
            screen.line(f"     {line}", "shown")
        screen.shown(f"{answer['error']}: {answer['text']}")
        screen.line()
    step.facts |= {"uid": NOBODY, "answers": answers}
    step.check(
        f"uid {NOBODY} is refused at 0600 by the kernel (EACCES)",
        answers[0]["error"] == "AccessDeniedError" and "EACCES" in answers[0]["text"],
    )
    step.check(
        f"uid {NOBODY} is refused at 0666 by the service, in words that name the uid and the rule",
        answers[1]["error"] == "PeerRefusedError" and f"uid {NOBODY}" in answers[1]["text"],
    )
    step.check("root calls at both", [_try(door)["error"] for door in doors] == ["", ""])


def _try(door: str) -> dict[str, Any]:
    """Make one call; returns the name and the text of the error, empty if there was none."""
    try:
        with connect(door, Payments) as payments:
            payments.totals()
    except HostlineError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": "", "text": ""}


def _list(path: str) -> list[str]:
    """Return what `ls -l` says of a file, behind the command itself."""
    directory, name = os.path.split(path)
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        listing = subprocess.run(
            ["ls", "-l", name], cwd=directory, env=environment, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        # No such program here: the same from lstat.
        status = os.lstat(path)
        listing = f"{stat.filemode(status.st_mode)} {status.st_nlink} {_user(status.st_uid)} {status.st_gid} {name}"
    return [f"$ ls -l {name}", *listing.splitlines()]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
