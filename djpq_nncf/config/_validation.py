# SPDX-License-Identifier: Apache-2.0
"""Checking plain JSON values against a schema, with messages a user can act on."""

from collections.abc import Iterator, Sequence
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from djpq_nncf.config._describe import describe
from djpq_nncf.config._problems import Path, Problem, closest, json_path, show_value, unknown_name
from djpq_nncf.config._schemas import Schema
from djpq_nncf.config._scopes import check_regular_expression, check_scope_entry

_formats = FormatChecker(formats=())


@_formats.checks("regular-expression", raises=ValueError)
def _is_regular_expression(value: object) -> bool:
    if isinstance(value, str):
        check_regular_expression(value)
    return True


@_formats.checks("scope", raises=ValueError)
def _is_scope(value: object) -> bool:
    if isinstance(value, str):
        check_scope_entry(value)
    return True


def schema_problems(value: Any, schema: Schema, at: Path = ()) -> list[Problem]:
    """Everything in ``value`` that ``schema`` does not allow, at most one problem for a path.

    ``at`` is where ``value`` stands in the whole document; the paths reported begin with it.
    """
    validator = Draft202012Validator(schema, format_checker=_formats)
    found: dict[Path, Problem] = {}
    for error in validator.iter_errors(value):
        for problem in _explain(error, schema, at):
            found.setdefault(problem.path, problem)
    return list(found.values())


def _explain(error: ValidationError, root: Schema, at: Path) -> Iterator[Problem]:
    path: Path = (*at, *error.absolute_path)
    schema: Schema = error.schema
    match error.validator:
        case "additionalProperties":
            known = schema.get("properties", {})
            for key, value in error.instance.items():
                if key not in known:
                    places = [json_path((*at, *place)) for place in _places_of(key, root)]
                    yield Problem((*path, key), _unknown_key(key, value, sorted(known), places))
        case "required":
            for key in schema["required"]:
                if key not in error.instance:
                    allowed = describe(schema.get("properties", {}).get(key, {}))
                    yield Problem((*path, key), f"missing, and it has no default; give {allowed}")
        case "format":
            yield Problem(path, f"{show_value(error.instance)} {error.cause}; correct the pattern")
        case _:
            yield Problem(path, _not_allowed(error.instance, schema))


def _unknown_key(key: str, value: Any, known: Sequence[str], places: Sequence[str]) -> str:
    message = f"{unknown_name('key', key, known)}, value {show_value(value)}"
    return f"{message}. Move it to {' or '.join(places)}" if places else message


def _not_allowed(value: Any, schema: Schema) -> str:
    message = f"{show_value(value)} is not allowed; give {describe(schema)}{schema.get('x-remedy', '')}"
    choices = [choice for choice in schema.get("enum", ()) if isinstance(choice, str)]
    if choices and isinstance(value, str):
        message += f" (the closest is {show_value(closest(value, choices))})"
    return message


def _places_of(key: str, schema: Schema, path: Path = ()) -> Iterator[Path]:
    """Where in an object of this schema ``key`` may stand."""
    for name, below in schema.get("properties", {}).items():
        if name == key:
            yield (*path, name)
        yield from _places_of(key, below, (*path, name))
