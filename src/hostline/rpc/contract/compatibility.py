"""Whether a new version of a service breaks the callers of the old one: every difference, each with its reason.

The rules are in docs/reference/compatibility.md. They are about what travels: a caller that keeps its own types and its
own calls must be answered as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hostline.rpc.builtin import MethodDescription, ParameterDescription, ServiceDescription
from hostline.rpc.contract.inclusion import Types, differences, short_text

__all__ = ["Change", "compare"]


class Change(msgspec.Struct, frozen=True):
    """One difference between two versions.

    Attributes:
        is_breaking: Whether callers of the old version may notice.
        method: Where; empty for the service as a whole.
        what: What changed, in a few words.
        reason: Why that breaks callers, or why not.
    """

    is_breaking: bool
    method: str
    what: str
    reason: str


def compare(old: ServiceDescription, new: ServiceDescription) -> list[Change]:
    """Return what changed from one version of a service to the next; nothing if callers see no difference.

    Args:
        old: What the callers were written for.
        new: What they will meet.
    """
    return list(_changes(old, new))


def _changes(old: ServiceDescription, new: ServiceDescription) -> Iterator[Change]:
    if old.protocol_version != new.protocol_version:
        what = f"protocol version {old.protocol_version} is {new.protocol_version}"
        yield Change(True, "", what, "a client of the old version is refused when it connects")
    if old.name != new.name:
        yield Change(False, "", f"service {old.name} is {new.name}", "callers name an address, not the service")
    before = {method.name: method for method in old.methods}
    after = {method.name: method for method in new.methods}
    types = Types(old.definitions), Types(new.definitions)
    for name, method in before.items():
        if name in after:
            yield from _MethodComparison(method, after[name], *types).changes()
        else:
            yield Change(True, name, "method removed", "a call of it fails, and so does an interface that declares it")
    for name in after:
        if name not in before:
            yield Change(False, name, "method added", "nobody calls it yet")


class _MethodComparison:
    """Compare one method before and after."""

    def __init__(self, old: MethodDescription, new: MethodDescription, before: Types, after: Types) -> None:
        self._old = old
        self._new = new
        self._before = before
        self._after = after

    def changes(self) -> Iterator[Change]:
        """Yield the differences: parameters in order, then the result, errors and promises."""
        yield from self._places()
        yield from self._names()
        yield from self._added()
        yield from self._result()
        yield from self._errors()
        if self._old.is_idempotent and not self._new.is_idempotent:
            reason = "clients repeated it by themselves when a connection broke; now such a call fails"
            yield self._breaking("no longer idempotent", reason)
        if self._new.is_idempotent and not self._old.is_idempotent:
            yield self._compatible("idempotent now", "clients repeat it when a connection breaks")

    def _breaking(self, what: str, reason: str) -> Change:
        return Change(True, self._old.name, what, reason)

    def _compatible(self, what: str, reason: str) -> Change:
        return Change(False, self._old.name, what, reason)

    def _places(self) -> Iterator[Change]:
        """Judge what callers give by its place, and what is removed."""
        new_places = [p for p in self._new.parameters if p.is_positional]
        new_names = {p.name: p for p in self._new.parameters}
        old_names = {p.name for p in self._old.parameters}
        places = [p for p in self._old.parameters if p.is_positional]
        for number, parameter in enumerate(places):
            name = parameter.name
            there = new_places[number] if number < len(new_places) else None
            if there is not None and there.name == name:
                continue  # its type is judged by its name
            if there is not None and not parameter.is_named and not there.is_named:
                yield self._compatible(f"parameter {name} is called {there.name}", "it is given by its place only")
                yield from self._one(parameter, there)
            elif name not in new_names:
                yield self._gone(parameter, there if there is not None and there.name not in old_names else None)
            elif not new_names[name].is_positional:
                yield self._breaking(f"parameter {name} has no place", "callers may give it by its place")
            else:
                place = new_places.index(new_names[name]) + 1
                what = f"parameter {name} moved from place {number + 1} to {place}"
                yield self._breaking(what, "an argument given by its place reaches another parameter")
        for parameter in self._old.parameters:
            if not parameter.is_positional and parameter.name not in new_names:
                yield self._gone(parameter, None)

    def _gone(self, parameter: ParameterDescription, successor: ParameterDescription | None) -> Change:
        if successor is not None:
            what = f"parameter {parameter.name} renamed to {successor.name}"
            return self._breaking(what, "callers may give it by its name")
        return self._breaking(f"parameter {parameter.name} removed", "a call that gives it is refused")

    def _names(self) -> Iterator[Change]:
        """Judge parameters that are still there under the same name."""
        new_names = {p.name: p for p in self._new.parameters}
        for parameter in self._old.parameters:
            there = new_names.get(parameter.name)
            if there is None:
                continue
            if parameter.is_named and not there.is_named:
                what = f"parameter {parameter.name} is taken by its place only"
                yield self._breaking(what, "callers may give it by its name")
            if there.is_named and not parameter.is_named:
                what = f"parameter {parameter.name} is taken by its name too"
                yield self._compatible(what, "giving it by its place goes on working")
            if not parameter.is_positional and there.is_positional:
                what = f"parameter {parameter.name} is taken by its place too"
                yield self._compatible(what, "giving it by its name goes on working")
            yield from self._one(parameter, there)

    def _one(self, old: ParameterDescription, new: ParameterDescription) -> Iterator[Change]:
        """Judge the type of one parameter, whether it may be left out, and whether it is a stream."""
        if new.is_required and not old.is_required:
            yield self._breaking(f"parameter {new.name} must be given", "callers may leave it out")
        if old.is_required and not new.is_required:
            yield self._compatible(f"parameter {new.name} may be left out", "callers go on giving it")
        if not old.is_required and not new.is_required and not _is_same(old.default, new.default):
            what = f"default of {new.name} is {_shown(new.default)}, was {_shown(old.default)}"
            yield self._compatible(what, "calls that leave it out are taken, and mean something else")
        if old.is_stream is not new.is_stream:
            what = f"parameter {new.name} is a stream" if new.is_stream else f"parameter {new.name} is no stream"
            yield self._breaking(what, f"callers give {'its items' if old.is_stream else 'one value'}")
            return  # an item's type and a whole value's say nothing of one another
        refused = differences(old.schema, self._before, new.schema, self._after)
        is_included = not differences(new.schema, self._after, old.schema, self._before)
        for reason in refused:
            word = "narrowed" if is_included else "changed"
            yield self._breaking(f"type of {new.name} {word}", f"callers may send what is not taken: {reason}")
        if not refused and not is_included:
            what = f"type of {new.name} widened"
            yield self._compatible(what, f"all that callers send is taken: now {short_text(new.schema)}")

    def _added(self) -> Iterator[Change]:
        renamed = self._successors()
        old_names = {p.name for p in self._old.parameters}
        for parameter in self._new.parameters:
            if parameter.name in old_names or parameter.name in renamed:
                continue
            if parameter.is_required:
                yield self._breaking(f"required parameter {parameter.name} added", "callers do not give it")
            else:
                yield self._compatible(f"optional parameter {parameter.name} added", "callers leave it out")

    def _successors(self) -> set[str]:
        """Return the new names of parameters that only changed their names."""
        new_names = {p.name for p in self._new.parameters}
        old_names = {p.name for p in self._old.parameters}
        places = zip(
            (p for p in self._old.parameters if p.is_positional),
            (p for p in self._new.parameters if p.is_positional),
            strict=False,
        )
        return {
            new.name
            for old, new in places
            if new.name not in old_names and (old.name not in new_names or not (old.is_named or new.is_named))
        }

    def _result(self) -> Iterator[Change]:
        if self._old.streams_result is not self._new.streams_result:
            what = "result is a stream" if self._new.streams_result else "result is no stream"
            yield self._breaking(
                what, f"callers {'iterate items' if self._old.streams_result else 'wait for one value'}"
            )
            return  # an item's type and a whole value's say nothing of one another
        refused = differences(self._new.returns, self._after, self._old.returns, self._before)
        back = differences(self._old.returns, self._before, self._new.returns, self._after)
        for reason in refused:
            what = "result changed" if back else "result widened"
            yield self._breaking(what, f"callers may receive what they do not take: {reason}")
        if back and not refused:
            yield self._compatible("result narrowed", "callers take all that they receive")

    def _errors(self) -> Iterator[Change]:
        for error in self._old.raises:
            if error not in self._new.raises:
                reason = "if it is still raised, callers that handle it see an internal error instead"
                yield self._breaking(f"exception {error} is no longer declared", reason)
        for error in self._new.raises:
            if error not in self._old.raises:
                reason = "a failure that nobody declared was an error before; callers see it as RemoteError"
                yield self._compatible(f"exception {error} is declared", reason)


def _is_same(one: Any, other: Any) -> bool:
    if one is msgspec.UNSET or other is msgspec.UNSET:
        return one is other
    return msgspec.json.encode(one) == msgspec.json.encode(other)


def _shown(default: Any) -> str:
    if default is msgspec.UNSET:
        return "not told"
    text = msgspec.json.encode(default).decode()
    return text if len(text) <= 40 else f"{text[:37]}..."
