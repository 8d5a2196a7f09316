"""What mkdocs runs while it builds: two reference pages out of the source, and the navigation out of the folders.

`limits.py` and `errors.py` explain every bound and every error where they are defined; the pages say the same words, so
they cannot fall behind. A page that somebody adds to a folder of docs/ appears in the navigation by itself.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

TREE = Path(__file__).resolve().parent.parent
SOURCE = TREE / "src" / "hostline"
SECTIONS = {"Tutorial": "tutorial", "How to": "howto", "Reference": "reference", "Design": "design"}
GENERATED = ("reference/limits.md", "reference/errors.md")


# --- mkdocs ------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation: the start page, then each section with its index first."""
    docs = Path(config.docs_dir)
    nav: list[dict[str, Any] | str] = [{"hostline": "index.md"}]
    for title, folder in SECTIONS.items():
        pages = {str(path.relative_to(docs)) for path in (docs / folder).glob("*.md")}
        pages |= {page for page in GENERATED if page.startswith(f"{folder}/")}
        if pages:
            nav.append({title: sorted(pages, key=lambda page: (not page.endswith("/index.md"), page))})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the source."""
    from mkdocs.structure.files import File

    for page, text in (("reference/limits.md", limits_page()), ("reference/errors.md", errors_page())):
        files.append(File.generated(config, page, content=text))
    return files


# --- limits ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """One constant of limits.py with the section and the comment it stands under."""

    section: str
    names: tuple[str, ...]
    values: tuple[str, ...]
    reason: str


def limits(path: Path = SOURCE / "limits.py") -> Iterator[Limit]:
    """Yield the bounds in the order of the file; constants under one comment come together."""
    lines = path.read_text(encoding="utf-8").splitlines()
    module = _load(path)
    section, comment, names, values = "", [], [], []

    def taken() -> Iterator[Limit]:
        if names:
            yield Limit(section, tuple(names), tuple(values), " ".join(comment))

    for line in lines:
        if heading := re.fullmatch(r"# --- (.+?) -+", line):
            yield from taken()
            section, comment, names, values = heading[1], [], [], []
        elif line.startswith("#"):
            if names:
                yield from taken()
                comment, names, values = [], [], []
            comment.append(line.lstrip("# ").rstrip())
        elif constant := re.match(r"([A-Z][A-Z0-9_]*)(?:: [^=]+)? = (.+)", line):
            names.append(constant[1])
            values.append(written(constant[2], getattr(module, constant[1])))
        elif not line.strip():
            yield from taken()
            comment, names, values = [], [], []
    yield from taken()


def written(source: str, value: object) -> str:
    """Return a value as people read it: sizes in KiB and MiB, other numbers as the source has them."""
    if isinstance(value, int) and "<<" in source:
        for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value % size == 0:
                return f"{value // size} {unit}"
    if re.fullmatch(r"[\w.]+", source):
        return source
    return str(value)


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"_documented_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def limits_page() -> str:
    """Return reference/limits.md."""
    docstring = ast.get_docstring(ast.parse((SOURCE / "limits.py").read_text(encoding="utf-8"))) or ""
    page = ["# Limits", "", f"{docstring}", "", "This page is made from `src/hostline/limits.py`."]
    section = None
    for limit in limits():
        if limit.section != section:
            section = limit.section
            page += [
                "",
                f"## {section[:1].upper()}{section[1:]}",
                "",
                "| Name | Value | What it bounds, and why |",
                "|---|---|---|",
            ]
        names = "<br>".join(f"`{name}`" for name in limit.names)
        values = "<br>".join(f"`{value}`" for value in limit.values)
        page.append(f"| {names} | {values} | {limit.reason.replace('|', chr(92) + '|')} |")
    return "\n".join(page) + "\n"


# --- errors ------------------------------------------------------------------------------------------


def errors_page() -> str:
    """Return reference/errors.md: the tree as the module prints it, then each class with its attributes."""
    with tokenize.open(SOURCE / "errors.py") as file:
        module = ast.parse(file.read())
    docstring = ast.get_docstring(module) or ""
    introduction, tree, rest = _split_figure(docstring)
    page = ["# Errors", "", introduction, "", "```text", tree, "```", "", rest, ""]
    page += ["This page is made from `src/hostline/errors.py`.", ""]
    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    ours = {node.name for node in classes}
    for node in classes:
        page += [f"## {node.name}", "", *_class_text(node, ours), ""]
    return "\n".join(page)


def _split_figure(docstring: str) -> tuple[str, str, str]:
    """Return the text before, in and after the indented figure of a docstring."""
    found = re.search(r"^((?: {4}.*\n|\n)+)", docstring, re.MULTILINE)
    if not found or not found[1].strip():
        raise ValueError("errors.py shows no tree in its docstring")
    return docstring[: found.start()].strip(), inspect.cleandoc(found[1]).strip("\n"), docstring[found.end() :].strip()


def _class_text(node: ast.ClassDef, ours: set[str]) -> Iterator[str]:
    bases = [ast.unparse(base) for base in node.bases]
    links = [f"[{name}](#{name.lower()})" if name in ours else f"`{name}`" for name in bases]
    text = ast.get_docstring(node) or ""
    summary, _, attributes = text.partition("\nAttributes:\n")
    yield summary.strip()
    yield ""
    yield f"Inherits {' and '.join(links)}."
    rows = re.findall(r"^ {4}(\w+): ((?:.+\n?)(?: {8}.+\n?)*)", attributes, re.MULTILINE)
    if rows:
        yield from ("", "| Attribute | Holds |", "|---|---|")
        for name, meaning in rows:
            yield f"| `{name}` | {' '.join(meaning.split())} |"
