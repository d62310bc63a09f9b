# SPDX-License-Identifier: Apache-2.0
"""Filling in what the user left out, from the ``default`` keywords of a schema."""

import copy
from collections.abc import Iterable
from typing import Any

from djpq_nncf.config._problems import Path
from djpq_nncf.config._schemas import Schema


def with_defaults(value: Any, schema: Schema) -> Any:
    """Return a copy of a valid ``value`` in which every key with a default stands.

    Numbers get the type that the schema wants: 2.0 becomes 2 for an integer, 2 becomes 2.0 for a number.
    """
    if isinstance(value, dict):
        properties: dict[str, Schema] = schema.get("properties", {})
        given = {
            key: with_defaults(entry, properties[key]) if key in properties else copy.deepcopy(entry)
            for key, entry in value.items()
        }
        missing = {
            key: with_defaults(property_schema["default"], property_schema)
            for key, property_schema in properties.items()
            if key not in given and "default" in property_schema
        }
        return given | missing
    if isinstance(value, list):
        return [with_defaults(entry, schema.get("items", {})) for entry in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    types = schema.get("type", ())
    if "integer" in types:
        return int(value)
    return float(value) if "number" in types else value


def without(value: Any, paths: Iterable[Path]) -> Any:
    """Return a copy of ``value`` that lacks the object keys at ``paths``."""
    pruned = copy.deepcopy(value)
    for path in paths:
        # A list entry cannot be left out without renumbering the others: drop the key that holds the list.
        while path and not isinstance(path[-1], str):
            path = path[:-1]
        owner: Any = pruned
        for step in path[:-1]:
            owner = _step_into(owner, step)
        if path and isinstance(owner, dict):
            owner.pop(path[-1], None)
    return pruned


def _step_into(owner: Any, step: str | int) -> Any:
    if isinstance(owner, dict):
        return owner.get(step)
    if isinstance(owner, list) and isinstance(step, int) and step < len(owner):
        return owner[step]
    return None
