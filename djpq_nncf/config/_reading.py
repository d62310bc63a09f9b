# SPDX-License-Identifier: Apache-2.0
"""From a file or a Python mapping to plain JSON values."""

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import json5

from djpq_nncf.config._problems import Path, Problem, show_value
from djpq_nncf.errors import ConfigError


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file in which comments and trailing commas are allowed.

    Raises:
        ConfigError: the file is missing, cannot be read, or is not JSON (with line and column).
    """
    file = FilePath(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f'Config file "{file}" does not exist; check the path.') from None
    except IsADirectoryError:
        raise ConfigError(f'"{file}" is a folder; give the path of a JSON file in it.') from None
    except OSError as error:
        raise ConfigError(f'Config file "{file}" cannot be read: {error.strerror}; check its permissions.') from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f'Config file "{file}" is not text in UTF-8 (byte {error.start}); save it as UTF-8.'
        ) from error
    return _parse(text, file)


def _parse(text: str, file: FilePath) -> Any:
    if not text.strip():
        raise ConfigError(f'Config file "{file}" is empty; the least it can hold is {_SMALLEST_CONFIG}.')
    try:
        return json5.loads(text, allow_duplicate_keys=False)
    except ValueError as error:
        reason = str(error).replace("<string>:", "line ").replace(" at column", ", column")
        raise ConfigError(f'Config file "{file}" is not JSON: {reason}. Correct it there.') from error
    except RecursionError:
        raise ConfigError(f'Config file "{file}" is nested too deeply; no config needs that.') from None


_SMALLEST_CONFIG = '{"compression": {"algorithm": "djpq"}}'


def to_plain_json(value: Any, path: Path = ()) -> tuple[Any, list[Problem]]:
    """Copy ``value`` into dicts, lists, strings, finite numbers, booleans and None.

    Tuples become lists. Whatever JSON cannot hold is reported and left out of the copy.
    """
    if isinstance(value, Mapping):
        return _plain_object(value, path)
    if isinstance(value, list | tuple):
        entries = [to_plain_json(entry, (*path, index)) for index, entry in enumerate(value)]
        return [entry for entry, _ in entries], [problem for _, problems in entries for problem in problems]
    if isinstance(value, bool | str) or value is None:
        return value, []
    if isinstance(value, int | float):
        if not math.isfinite(value) if isinstance(value, float) else abs(value) > sys.float_info.max:
            return None, [Problem(path, f"{show_value(value)} is not allowed; give a finite number")]
        return value, []
    message = f"{show_value(value)} of type {type(value).__name__} cannot stand in JSON"
    return None, [Problem(path, f"{message}; give an object, a list, a string, a number, true, false or null")]


def _plain_object(value: Mapping[Any, Any], path: Path) -> tuple[dict[str, Any], list[Problem]]:
    plain: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, entry in value.items():
        if not isinstance(key, str):
            problems.append(Problem(path, f"key {key!r} is not a string; write it in quotes"))
            continue
        plain[key], below = to_plain_json(entry, (*path, key))
        problems += below
    return plain, problems
