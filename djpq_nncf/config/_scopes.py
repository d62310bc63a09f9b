# SPDX-License-Identifier: Apache-2.0
"""Sets of layers, as ``ignored_scopes`` and ``target_scopes`` name them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REGEX_PREFIX = "{re}"


def check_scope_entry(entry: str) -> None:
    """Raise ValueError where ``entry`` is an ``{re}`` pattern that is not a regular expression."""
    if entry.startswith(REGEX_PREFIX):
        check_regular_expression(entry.removeprefix(REGEX_PREFIX))


def check_regular_expression(pattern: str) -> None:
    """Raise ValueError with the reason where ``pattern`` is not a regular expression."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if not compiled.pattern:
        raise ValueError("is an empty regular expression, which matches everything")


@dataclass(frozen=True)
class ScopeSettings:
    """A set of layers, by name, by regular expression and by type of operation.

    Attributes:
        names: Layer names, matched exactly.
        patterns: Regular expressions matched from the start of a name (as in ``nncf.IgnoredScope``).
        searched: Regular expressions searched for in a name (the ``{re}`` entries of NNCF 2.x).
        types: Operation types, matched exactly, such as ``"conv2d"``.
    """

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, value: str | Sequence[str] | Mapping[str, Any]) -> "ScopeSettings":
        """Build from a validated ``ignored_scopes`` or ``target_scopes`` value, in any of its three forms."""
        if isinstance(value, Mapping):
            return cls(**{key: tuple(entries) for key, entries in value.items()})
        entries = [value] if isinstance(value, str) else value
        return cls(
            names=tuple(entry for entry in entries if not entry.startswith(REGEX_PREFIX)),
            searched=tuple(entry.removeprefix(REGEX_PREFIX) for entry in entries if entry.startswith(REGEX_PREFIX)),
        )

    def __bool__(self) -> bool:
        return bool(self.names or self.patterns or self.searched or self.types)

    def __or__(self, other: "ScopeSettings") -> "ScopeSettings":
        return ScopeSettings(
            names=self.names + other.names,
            patterns=self.patterns + other.patterns,
            searched=self.searched + other.searched,
            types=self.types + other.types,
        )

    def matches(self, name: str, kind: str | None = None) -> bool:
        """Whether the layer ``name``, whose operation is of type ``kind``, belongs to this set."""
        return (
            name in self.names
            or kind in self.types
            or any(re.match(pattern, name) for pattern in self.patterns)
            or any(re.search(pattern, name) for pattern in self.searched)
        )

    def unmatched(self, layers: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
        """Entries, as the user wrote them, that match none of ``layers`` (pairs of name and type)."""
        layers = list(layers)
        single_entries = {
            **{name: ScopeSettings(names=(name,)) for name in self.names},
            **{pattern: ScopeSettings(patterns=(pattern,)) for pattern in self.patterns},
            **{REGEX_PREFIX + pattern: ScopeSettings(searched=(pattern,)) for pattern in self.searched},
            **{kind: ScopeSettings(types=(kind,)) for kind in self.types},
        }
        return tuple(
            text
            for text, scope in single_entries.items()
            if not any(scope.matches(name, kind) for name, kind in layers)
        )
