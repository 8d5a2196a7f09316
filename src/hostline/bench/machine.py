"""Facts of the machine that a figure means nothing without."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["machine_facts"]

LIBRARIES = ("msgspec", "uvloop", "grpcio", "pyzmq", "pynng", "rpyc", "Pyro5", "uvicorn", "httpx", "iceoryx2")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _first_line(*command: str) -> str:
    """Return the first line that a program prints, or nothing."""
    if shutil.which(command[0]) is None:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.split("\n")[0].strip()
    return ""


def machine_facts() -> dict[str, str]:
    """Return what is known of this machine, by name; what is not known is left out."""
    cpu = _read("/proc/cpuinfo")
    kilobytes = _field(_read("/proc/meminfo"), "MemTotal").split(" ")[0]
    facts = {
        "cpu": _field(cpu, "model name") or platform.machine(),
        "cores": str(_usable_cores()),
        "frequency governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "virtual machine": "yes" if "hypervisor" in _field(cpu, "flags").split() else "",
        "memory": f"{int(kilobytes) / (1 << 20):.1f} GiB" if kilobytes.isdecimal() else "",
        "kernel": f"{platform.system()} {platform.release()}",
        "load before": " ".join(_read("/proc/loadavg").split()[:3]),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "c compiler": _first_line("cc", "--version"),
        "go": _first_line("go", "version").removeprefix("go version "),
    }
    # Not imported here: whoever shows this has the package itself, and bench stands below its public names.
    is_compiled = getattr(sys.modules.get("hostline"), "is_compiled", None)
    if is_compiled is not None:
        facts["hostline core"] = "compiled" if is_compiled() else "pure Python"
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    return {name: fact for name, fact in facts.items() if fact}


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
