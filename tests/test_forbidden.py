"""What must never appear: unsafe calls in the source, and in any file words that belong to somebody's machine.

The source is judged by its syntax tree, so that a word in a comment or in a docstring is no violation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tree import SOURCE, TREE, project_files

MODULES = {
    "pickle": "runs code out of data",
    "cPickle": "runs code out of data",
    "_pickle": "runs code out of data",
    "marshal": "crashes on hostile data",
    "shelve": "is pickle",
    "dill": "is pickle",
    "cloudpickle": "is pickle",
}
BUILTINS = {"eval": "runs text as code", "exec": "runs text as code", "compile": "turns text into code"}
ATTRIBUTES = {
    ("yaml", "load"): "builds any object; yaml.safe_load does not",
    ("socket", "recv_fds"): "ignores its flags on Python 3.11, so descriptors arrive inheritable",
    ("socket", "send_fds"): "ignores its flags on Python 3.11",
    ("os", "umask"): "changes the whole process, threads and all",
    ("os", "system"): "goes through a shell",
    ("os", "popen"): "goes through a shell",
    ("tempfile", "mktemp"): "names a file that somebody else may create first",
}
FLAGS = {
    "MSG_PEEK": "installs the descriptors of a message at every look",
    "MSG_OOB": "has had bugs in the kernel, and nothing here needs it",
}
# Programs for people, and the conformance table's subjects, which answer on standard output.
MAY_PRINT = ("cli", "demo", "conformance")

# The file that shows what a peer does, in the peer's own way.
EXEMPT = {("conformance/subjects/socket.py", "socket.recv_fds")}


def violations(text: str, owner: str = "unix") -> Iterator[tuple[int, str]]:
    """Yield (line, reason) for everything in a module of package `owner` that must not be there."""
    tree = ast.parse(text)
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Assert):
            yield line, "assert guards nothing under -O: raise an error"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for reason in _import_violations(node):
                yield line, reason
        elif isinstance(node, ast.Attribute):
            if node.attr in FLAGS:
                yield line, f"{node.attr} {FLAGS[node.attr]}"
            if isinstance(node.value, ast.Name):
                name = (aliases.get(node.value.id, node.value.id), node.attr)
                if name in ATTRIBUTES:
                    yield line, f"{'.'.join(name)} {ATTRIBUTES[name]}"
        elif isinstance(node, ast.Call):
            for reason in _call_violations(node, owner):
                yield line, reason
        elif isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
            yield line, "NotImplementedError: finish it, or leave it out"


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Return what `import socket as s` calls things by."""
    return {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname is not None
    }


def _import_violations(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for alias in node.names:
        module = (node.module or "") if isinstance(node, ast.ImportFrom) and not node.level else alias.name
        top = module.split(".")[0]
        if top in MODULES:
            yield f"{top} {MODULES[top]}"
        if isinstance(node, ast.ImportFrom) and (module, alias.name) in ATTRIBUTES:
            yield f"{module}.{alias.name} {ATTRIBUTES[module, alias.name]}"
        if alias.name in FLAGS:
            yield f"{alias.name} {FLAGS[alias.name]}"


def _call_violations(node: ast.Call, owner: str) -> Iterator[str]:
    if isinstance(node.func, ast.Name):
        name = node.func.id
        if name in BUILTINS:
            yield f"{name}() {BUILTINS[name]}"
        if name == "print" and owner not in MAY_PRINT:
            yield "print() belongs to programs; a library logs"
    for keyword in node.keywords:
        is_true = isinstance(keyword.value, ast.Constant) and bool(keyword.value.value)
        if keyword.arg == "shell" and is_true:
            yield "shell=True lets a file name become a command"


def test_the_source_holds_nothing_forbidden() -> None:
    found = [
        f"{file}:{line}: {reason}"
        for file in sorted(SOURCE.rglob("*.py"))
        for line, reason in violations(file.read_text(encoding="utf-8"), file.relative_to(SOURCE).parts[0])
        if (str(file.relative_to(SOURCE)), reason.split()[0]) not in EXEMPT
    ]
    assert not found, "\n" + "\n".join(found)


PLANTED = {
    "pickle": "import pickle",
    "pickle, inside a function": "def f():\n    from pickle import loads",
    "a submodule": "import shelve.open",
    "marshal": "import marshal as m",
    "eval": "eval('1')",
    "exec": "exec('x = 1')",
    "compile": "compile('1', 'f', 'eval')",
    "yaml.load": "import yaml\nyaml.load(text)",
    "peeking": "import socket\nsock.recv(1, socket.MSG_PEEK)",
    "peeking, imported": "from socket import MSG_PEEK",
    "out of band": "import socket as s\nsock.send(b'!', s.MSG_OOB)",
    "socket.recv_fds": "import socket\nsocket.recv_fds(sock, 1, 1)",
    "socket.send_fds under another name": "import socket as s\ns.send_fds(sock, [b''], [1])",
    "recv_fds, imported": "from socket import recv_fds",
    "umask": "import os\nos.umask(0o77)",
    "umask, imported": "from os import umask",
    "mktemp": "import tempfile\ntempfile.mktemp()",
    "assert": "assert x",
    "a shell": "subprocess.run('ls', shell=True)",
    "os.system": "import os\nos.system('ls')",
    "print": "print('hello')",
    "unfinished": "def f():\n    raise NotImplementedError('later')",
}


@pytest.mark.parametrize("case", PLANTED)
def test_the_checker_catches_a_planted_violation(case: str) -> None:
    text = PLANTED[case]
    assert [line for line, _ in violations(text)] == [text.count("\n") + 1]


def test_the_checker_lets_the_right_form_pass() -> None:
    text = '''
"""Never pickle, never eval(); MSG_PEEK is wrong here and os.umask() too."""
import re, subprocess
pattern = re.compile("x")
connection.recv_fds(10)
subprocess.run(["ls"], shell=False, umask=0o77)
'''
    assert [*violations(text)] == []
    assert [*violations("print('for people')", "cli")] == []


# --- words -------------------------------------------------------------------------------------------

# Each is written in pieces, because this file is searched as well.
WORDS = {
    "a path of one developer's machine": r"/(?:" + "|".join(["wo" + "rk", "ro" + "ot"]) + r")/[\w.]",
    "a registry's host: name the package, not the place": r"\b(?:"
    + "|".join(
        re.escape(host)
        for host in [
            "py" + "pi.org",
            "python" + "hosted.org",
            "registry.npm" + "js.org",
            "deb.deb" + "ian.org",
            "crates" + ".io",
            "proxy.gol" + "ang.org",
        ]
    )
    + r")\b",
    "a number of a tracker's issue: say the reason itself": r"(?i)\biss" + r"ues?\s+#?\d{1,3}\b",
}
UNFINISHED = re.compile("|".join([r"\bTO" + "DO\\b", r"\bFIX" + "ME\\b", r"\bX" + "XX\\b"]))


def word_violations(text: str, is_source: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, reason) for every forbidden word."""
    for number, line in enumerate(text.splitlines(), 1):
        for reason, pattern in WORDS.items():
            if re.search(pattern, line):
                yield number, reason
        if is_source and UNFINISHED.search(line):
            yield number, "unfinished: do it, or leave it out"


def test_no_file_holds_words_that_belong_elsewhere() -> None:
    found = []
    for file in project_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for line, reason in word_violations(text, file.is_relative_to(TREE / "src")):
            found.append(f"{file}:{line}: {reason}")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "see /wo" + "rk/main/src",
        "/ro" + "ot/.pyenv",
        "https://py" + "pi.org/simple",
        "as iss" + "ue 2 says",
        "Iss" + "ues #14",
        "# TO" + "DO: later",
    ],
)
def test_the_checker_catches_a_planted_word(text: str) -> None:
    assert [line for line, _ in word_violations("first\n" + text, is_source=True)] == [2]


def test_the_checker_lets_ordinary_words_pass() -> None:
    text = (
        "the framework/ and chroot/x, CPython issue 117208, an issue with 2 parts, network/unix, pip install hostline"
    )
    assert [*word_violations(text, is_source=True)] == []


def test_the_search_sees_the_files_it_should() -> None:
    names = {str(path.relative_to(TREE)) for path in project_files()}
    assert {"pyproject.toml", "Makefile", ".ci/run", "tests/test_forbidden.py", "src/hostline/errors.py"} <= names
    assert not any(Path(name).parts[0] in (".venv", ".git", "dist", "site") for name in names)
