# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a configuration, and how it is said."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from djpq_nncf.errors import ConfigError

Path = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_VALUE = 80


@dataclass(frozen=True)
class Problem:
    """One mistake: the place, and a message with the value, what is allowed, and the remedy."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{json_path(self.path)}: {self.message}"

    def below(self, prefix: Path) -> "Problem":
        """The same problem, seen from further up in the document."""
        return Problem((*prefix, *self.path), self.message)


def json_path(path: Path) -> str:
    """Format a path as ``$.compression[0].pruning.gamma``."""
    text = "$"
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}"
        else:
            text += f"[{json.dumps(step)}]"
    return text


def show_value(value: Any) -> str:
    """Print a value as it would stand in JSON, shortened to one line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def closest(word: str, known: Iterable[str]) -> str | None:
    """The entry of ``known`` that ``word`` most resembles; None only when nothing is known."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.0)
    return by_lower_case[matches[0]] if matches else None


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Say that ``name`` is not one of ``known``, the closest of which stands in the message."""
    if not known:
        return f"unknown {kind} {show_value(name)}; there is none to choose from"
    listed = ", ".join(show_value(candidate) for candidate in known)
    best = show_value(closest(name, known))
    return f"unknown {kind} {show_value(name)}; the closest known one is {best} (known: {listed})"


def raise_problems(problems: Sequence[Problem], origin: str) -> None:
    """Raise one ConfigError that lists all ``problems``; do nothing where there is none."""
    if not problems:
        return
    count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
    raise ConfigError("\n".join([f"{origin} is not valid, {count}:", *(f"  - {problem}" for problem in problems)]))
