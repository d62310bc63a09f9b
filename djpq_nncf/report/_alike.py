# SPDX-License-Identifier: Apache-2.0
"""Module paths that differ in their numbers only, told once: ``layers.{0-11}.fc``."""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

_NUMBER = re.compile(r"((?<!\d)(?:0|[1-9]\d*)(?!\d)|\{\d[\d,-]*\})")

Tokens = tuple[str, ...]
"""A path cut at its numbers, which stand at the odd positions."""


@dataclass(frozen=True)
class Alike:
    """Something that is told once for all that are like it.

    Attributes:
        kind: what has to be equal.
        paths: module paths, the first of which names the thing; what lies in the same numbered module as the first goes
            along with it.
        names: of all things that this stands for.
    """

    kind: Hashable
    paths: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def one(cls, kind: Hashable, *paths: str) -> "Alike":
        """A single thing."""
        return cls(kind, paths, paths[:1])

    @property
    def name(self) -> str:
        """What it is called; with ``{0-11}`` for the numbers in which the things differ."""
        return self.paths[0]

    @property
    def count(self) -> int:
        """How many things this stands for."""
        return len(self.names)


def collapse(paths: Iterable[str]) -> list[str]:
    """The paths, those that differ in one number as one, in the order of their first appearance."""
    return [item.name for item in merge_alike(Alike.one(None, path) for path in dict.fromkeys(paths))]


def merge_alike(items: Iterable[Alike]) -> list[Alike]:
    """Merge things whose paths differ in one number after the other, in the order of their first appearance."""
    merged = list(items)
    last = max((len(_tokens(item.name)) for item in merged), default=0)
    for position in range(last - last % 2 - 1, 0, -2):
        similar: dict[Hashable, list[Alike]] = {}
        for item in merged:
            similar.setdefault(_without_number(item, position), []).append(item)
        merged = [_joined(group, position) for group in similar.values()]
    return merged


def _tokens(path: str) -> Tokens:
    return tuple(_NUMBER.split(path))


def _without_number(item: Alike, position: int) -> Hashable:
    """What is left of it once the number at a position of its name is left out; itself if it has none there."""
    if len(_tokens(item.name)) <= position:
        return item
    return item.kind, _with_number(item.paths, position, "*")


def _with_number(paths: Sequence[str], position: int, number: str) -> tuple[str, ...]:
    """The paths with the number at a position of the first replaced in all that begin as the first does."""
    own = _tokens(paths[0])[: position + 1]
    return tuple(
        "".join([*own[:-1], number, *tokens[position + 1 :]]) if tokens[: position + 1] == own else path
        for path in paths
        for tokens in [_tokens(path)]
    )


def _joined(group: Sequence[Alike], position: int) -> Alike:
    first = group[0]
    if len(group) == 1:
        return first
    numbers = sorted({number for item in group for number in _numbers(_tokens(item.name)[position])})
    names = tuple(name for item in group for name in item.names)
    return Alike(first.kind, _with_number(first.paths, position, _range(numbers)), names)


def _numbers(token: str) -> Iterable[int]:
    for part in token.strip("{}").split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _range(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 4]`` as ``{0-2,4}``."""
    if len(numbers) == 1:
        return str(numbers[0])
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return "{" + ",".join("-".join(map(str, span)) for span in spans) + "}"
