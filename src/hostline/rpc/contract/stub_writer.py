"""A typed module from a description: structs, exceptions, and an interface for each face.

The text depends on the description and the names alone: the same service gives the same file, and `ruff format` and
type checkers leave it as it is. Nothing that a service says of itself reaches it but as an identifier, a literal or a
docstring (source_text.py).
"""

from __future__ import annotations

import itertools
from typing import Final

import msgspec

from hostline._version import __version__
from hostline.rpc.builtin import MethodDescription, ParameterDescription, ServiceDescription
from hostline.rpc.contract.definitions import DefinitionWriter, fields_of, is_builtin_error
from hostline.rpc.contract.python_types import TypeWriter
from hostline.rpc.contract.schemas import mapping
from hostline.rpc.contract.source_text import Names, docstring, exploded, is_usable, literal, statement

__all__ = ["RESERVED", "interface_name", "write_stubs"]

# What every interface has of its own, its metaclass included: a method of such a name becomes a function.
RESERVED: Final = frozenset({"close", "line", "mro", "register", "with_timeout"})

_INDENT: Final = "    "


def interface_name(service: str) -> str:
    """Return the class name for a service: `OrderBook` for `order-book`."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in service).split()
    return Names().give("".join(word[0].upper() + word[1:] for word in words), "Service", avoid_builtins=True)


def write_stubs(service: ServiceDescription, name: str | None = None) -> str:
    """Return the source of a module that calls a service.

    Args:
        service: What it says of itself.
        name: The name of the blocking interface; made from the service's own unless given. The asyncio one has
            `Async` before it.

    Raises:
        ValueError: The name cannot be a class's name.
    """
    if name is not None and not (is_usable(name) and name.isascii()):
        raise ValueError(f"name {name!r} cannot be the name of a class")
    if name is None:
        name = interface_name(service.name)
        others = {*service.definitions, *(error for method in service.methods for error in method.raises)}
        name = f"{name}Service" if name in others else name
    return _ModuleWriter(service, name).text()


class _ModuleWriter:
    """Hold what the parts of one module share: its names."""

    def __init__(self, service: ServiceDescription, name: str) -> None:
        self._service = service
        methods = {method.name: method for method in service.methods}  # twice the same name cannot be told apart
        self._methods = [method for method in methods.values() if not method.name.startswith("hostline.")]
        schemas = [mapping(schema) for schema in service.definitions.values()]
        attributes = {field.name for schema in schemas for field in fields_of(schema)}
        attributes |= {method.name for method in self._methods}
        # What the user asks for comes first; every other name makes way.
        self._blocking, self._asyncio = name, f"Async{name}"
        self._types = TypeWriter(service.definitions, attributes | {self._blocking, self._asyncio})
        self._definitions = DefinitionWriter(self._types, service.definitions)
        self._errors = {error: self._error_name(error) for error in self._error_names()}

    def text(self) -> str:
        """Return the whole module."""
        blocks = [*self._definitions.classes(), *self._error_classes()]
        plain = [method for method in self._methods if self._fits(method)]
        others = [method for method in self._methods if not self._fits(method)]
        public = [*self._types.classes.values()]
        public += [own for error, own in self._errors.items() if not is_builtin_error(error)]
        if plain:
            blocks += [self._interface(plain, is_async) for is_async in (False, True)]
            public += [self._blocking, self._asyncio]
        for method, is_async in itertools.product(others, (False, True)):
            identifier = self._types.names.give(f"call_{method.name}{'_aio' if is_async else ''}", "call")
            blocks.append(self._function(method, identifier, is_async))
            public.append(identifier)
        names = [f'"{own}"' for own in sorted(public)]
        head = [*self._header(plain), "", "from __future__ import annotations", ""]
        if imports := self._types.imports():
            head += [*imports, ""]
        head += exploded("__all__ = [" if names else "__all__: list[str] = [", names, "]", "")
        return "\n\n\n".join("\n".join(block) for block in [head, *blocks]) + "\n"

    def _header(self, plain: list[MethodDescription]) -> list[str]:
        service = self._service
        lines = [f"Typed calls of the service {service.name} {service.version}".rstrip() + ".", ""]
        if doc := service.doc.strip():
            lines += [*doc.splitlines(), ""]
        lines += [f"Made by `hostline stubs` (hostline {__version__}) from the running service; make it anew", ""]
        lines[-2] += " rather than edit it."
        if plain:
            lines += [
                f"    with hostline.connect(ADDRESS, {self._blocking}) as service: ...",
                f"    async with hostline.aio.connect(ADDRESS, {self._asyncio}) as service: ...",
            ]
        return docstring("\n".join(lines), "")

    # --- exceptions ---

    def _error_names(self) -> list[str]:
        return list(dict.fromkeys(error for method in self._methods for error in method.raises))

    def _error_name(self, error: str) -> str:
        if is_builtin_error(error):
            return self._types.builtin(error)
        return self._types.names.give(error, "Error", avoid_builtins=True)

    def _error_classes(self) -> list[list[str]]:
        own = ((name, identifier) for name, identifier in self._errors.items() if not is_builtin_error(name))
        return [self._definitions.error(name, own_name, self._service.errors.get(name, "")) for name, own_name in own]

    # --- methods ---

    def _fits(self, method: MethodDescription) -> bool:
        """Say whether a method can be one of an interface: it is called there what it is called at the service."""
        is_named_well = is_usable(method.name) and not method.name.startswith("_") and method.name not in RESERVED
        # An argument that is only taken by name is sent under the parameter's own name.
        return is_named_well and all(is_usable(p.name) for p in method.parameters if not p.is_positional)

    def _interface(self, methods: list[MethodDescription], is_async: bool) -> list[str]:
        base = self._types.of("hostline", "aio.Interface" if is_async else "Interface")
        name = self._asyncio if is_async else self._blocking
        lines = exploded(f"class {name}(", [base, self._types.of("typing", "Protocol")], "):", "")
        face = "asyncio" if is_async else "blocking code"
        lines += docstring(f"The service {self._service.name}, for {face}.", _INDENT)
        for method in methods:
            lines += ["", *self._method(method, is_async)]
        return lines

    def _method(self, method: MethodDescription, is_async: bool) -> list[str]:
        lines = []
        if method.raises:
            errors = [self._errors[error] for error in method.raises]
            lines += exploded(f"@{self._types.of('hostline', 'raises')}(", errors, ")", _INDENT)
        names = Names()
        is_self_taken = any(p.name == "self" for p in method.parameters)
        receiver = names.give("_self" if is_self_taken else "self", "_self")
        parameters = self._parameters(method, names, is_async)
        items = [receiver, *(["/"] if is_self_taken and "/" not in parameters else []), *parameters]
        start = "async def" if is_async and not method.streams_result else "def"
        tail = f") -> {self._result(method, is_async)}:"
        text = docstring(method.doc, _INDENT * 2)
        if not text:
            return [*lines, *exploded(f"{start} {method.name}(", items, f"{tail} ...", _INDENT)]
        return [*lines, *exploded(f"{start} {method.name}(", items, tail, _INDENT), *text, f"{_INDENT * 2}..."]

    def _result(self, method: MethodDescription, is_async: bool) -> str:
        """Return the annotation of what a method returns."""
        annotation = self._types.annotation(method.returns)
        if not method.streams_result:
            return annotation
        return f"{self._types.of('collections.abc', 'AsyncIterator' if is_async else 'Iterator')}[{annotation}]"

    def _argument(self, parameter: ParameterDescription, is_async: bool) -> str:
        """Return the annotation of what a parameter takes; for asyncio a stream may be iterated either way."""
        annotation = self._types.annotation(parameter.schema)
        if not parameter.is_stream:
            return annotation
        kinds = ("Iterator", "AsyncIterator") if is_async else ("Iterator",)
        return " | ".join(f"{self._types.of('collections.abc', kind)}[{annotation}]" for kind in kinds)

    def _parameters(self, method: MethodDescription, names: Names, is_async: bool) -> list[str]:
        """Return the parameters as an interface declares them: places and names as the service has them."""
        positional, named_only = _in_order(method)
        # What cannot be said by its name here is given by its place, and so is everything before it.
        by_place = [n for n, p in enumerate(positional) if not p.is_named or not is_usable(p.name)]
        slash = max(by_place, default=-1) + 1
        items: list[str] = []
        has_default = False
        for number, parameter in enumerate(positional):
            if number == slash and slash:
                items.append("/")
            has_default = has_default or not parameter.is_required
            items.append(self._parameter(parameter, names, has_default, is_async))
        if slash and slash == len(positional):
            items.append("/")
        if named_only:
            items.append("*")
        return items + [self._parameter(p, names, not p.is_required, is_async) for p in named_only]

    def _parameter(self, parameter: ParameterDescription, names: Names, has_default: bool, is_async: bool) -> str:
        text = f"{names.give(parameter.name, 'argument')}: {self._argument(parameter, is_async)}"
        if not has_default:
            return text
        default = None
        if parameter.default is not msgspec.UNSET and not parameter.is_stream:
            default = self._definitions.default_text(parameter.schema, parameter.default)
        # A default is for reading: what is left out is not sent. An empty list would be shared, and means nothing here.
        return f"{text} = {default if default not in (None, '[]', '{}') else '...'}"

    # --- functions, for what an interface cannot call ---

    def _function(self, method: MethodDescription, identifier: str, is_async: bool) -> list[str]:
        positional, named_only = _in_order(method)
        names = Names({"args", "keywords", "result", *self._types.identifiers, *self._errors.values()})
        line = names.give("line", "line")
        items = [f"{line}: {self._types.of('hostline', 'aio.Line' if is_async else 'Line')}"]
        steps: list[str] = []
        has_default = False
        for parameter in (*positional, *named_only):
            if named_only and parameter is named_only[0]:
                items.append("*")
            # Behind a parameter that may be left out, a place cannot be one that must be given.
            has_default = not parameter.is_required or (has_default and parameter.is_positional)
            name = names.give(parameter.name, "argument")
            items.append(self._unset_parameter(parameter, name, has_default, is_async))
            target = f"keywords[{literal(parameter.name)}] = {name}" if parameter.is_named else f"args.append({name})"
            if has_default:
                steps.append(statement(f"{_INDENT}if {name} is not {self._types.of('msgspec', 'UNSET')}:"))
            steps.append(statement(f"{_INDENT * (2 if has_default else 1)}{target}"))
        any_, text = self._types.of("typing", "Any"), self._types.builtin("str")
        result, returns = self._result(method, is_async), self._types.annotation(method.returns)
        errors = [self._errors[error] for error in method.raises]
        raised = f"({errors[0]},)" if len(errors) == 1 else f"({', '.join(errors)})"
        is_awaited = is_async and not method.streams_result
        call = f"{line}.{'open_stream' if method.streams_result else 'invoke'}({literal(method.name)}"
        call = f"{call}, {self._types.builtin('tuple')}(args), keywords, returns={returns}, raises={raised})"
        call = f"await {call}" if is_awaited else call
        return [
            *exploded(f"{'async def' if is_awaited else 'def'} {identifier}(", items, f") -> {result}:", ""),
            *docstring(method.doc, _INDENT),
            f"{_INDENT}args: {self._types.builtin('list')}[{any_}] = []",
            f"{_INDENT}keywords: {self._types.builtin('dict')}[{text}, {any_}] = {{}}",
            *steps,
            statement(f"{_INDENT}result: {result} = {call}"),
            f"{_INDENT}return result",
        ]

    def _unset_parameter(self, parameter: ParameterDescription, name: str, has_default: bool, is_async: bool) -> str:
        annotation = self._argument(parameter, is_async)
        if not has_default:
            return f"{name}: {annotation}"
        return f"{name}: {annotation} | {self._types.of('msgspec', 'UnsetType')} = {self._types.of('msgspec', 'UNSET')}"


def _in_order(method: MethodDescription) -> tuple[list[ParameterDescription], list[ParameterDescription]]:
    """Return the parameters that have a place, those without a name first, and those that have a name only."""
    positional = sorted((p for p in method.parameters if p.is_positional), key=lambda p: p.is_named)
    return positional, [p for p in method.parameters if not p.is_positional]
