"""Find the service that `MODULE:SERVICE` names, and say in words why it cannot be found.

Imports what the user names, from the working directory too, as `python` would; nothing else is run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from hostline.cli.exits import CommandError, UsageError
from hostline.cli.terminal import escape

if TYPE_CHECKING:
    from hostline.aio import Service

__all__ = ["load_service"]


def load_service(target: str) -> Service:
    """Return the service that a target names.

    Args:
        target: `MODULE:SERVICE`, or `PATH.py:SERVICE`. The service may be left out where the module has only one.

    Raises:
        UsageError: There is no such module, or no such service in it; the text names those that there are.
        CommandError: The module could not be imported; its own traceback has been printed.
    """
    where, colon, name = target.rpartition(":")
    if not colon:
        where, name = target, ""
    if not where or (colon and not name):
        raise UsageError(f"{target!r} must be MODULE:SERVICE, such as payments:payments or ./payments.py:payments")
    is_file = where.endswith(".py") or os.sep in where
    module = _load_file(where) if is_file else _load_module(where)
    return _service_in(module, name, where)


def _load_module(name: str) -> ModuleType:
    _look_in(os.getcwd())
    if Path(f"{name}.py").exists() and not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is no module name; a file is written ./{name}.py")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            places = f"{os.getcwd()} or in this Python's packages"
            raise UsageError(f"there is no module {name!r} in {places}; a file is written ./PATH.py") from None
        raise _failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _load_file(where: str) -> ModuleType:
    path = Path(where)
    if not path.is_file():
        what = "is a directory, not a Python file" if path.is_dir() else "does not exist"
        raise UsageError(f"{where} {what}")
    _look_in(str(path.resolve().parent))
    # A file called json.py must not take the place of a module that is imported already.
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"_served_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{where} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _failed(where, error) from error
    return module


def _look_in(directory: str) -> None:
    if directory not in sys.path:
        sys.path.insert(0, directory)


def _failed(where: str, error: BaseException) -> CommandError:
    """Print the traceback from the user's own first line on, and return the error that ends the command."""
    if isinstance(error, SystemExit):
        return CommandError(
            f"{where} ended the program while it was imported; move that below if __name__ == '__main__'"
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = next((n for n, frame in enumerate(frames) if not _is_machinery(frame.filename)), len(frames))
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames[own:])]
    lines += traceback.format_exception_only(error)
    print(escape("".join(lines)), end="", file=sys.stderr)
    return CommandError(f"{where} could not be imported: {type(error).__name__}")


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, importlib.__file__)


def _service_in(module: ModuleType, name: str, where: str) -> Service:
    from hostline.aio import Service

    services = {key: value for key, value in vars(module).items() if isinstance(value, Service)}
    there_are = f"the services in it are {', '.join(sorted(services))}" if services else "there is no service in it"
    if not name:
        distinct = list({id(service): service for service in services.values()}.values())
        if len(distinct) == 1:
            return distinct[0]
        raise UsageError(f"{where}: write which service to serve, {where}:SERVICE; {there_are}")
    found = getattr(module, name, None)
    if isinstance(found, Service):
        return found
    if name in vars(module):
        raise UsageError(f"{where}:{name} is a {type(found).__name__}, not a hostline.Service; {there_are}")
    raise UsageError(f"{where} has no {name!r}; {there_are}")
