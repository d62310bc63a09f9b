# SPDX-License-Identifier: Apache-2.0
"""What a schema allows, in words: for error messages and for the reference page."""

from djpq_nncf.config._problems import show_value
from djpq_nncf.config._schemas import Schema


def describe(schema: Schema) -> str:
    """Say in a few words what ``schema`` allows, such as "an integer from 2 to 8, or null"."""
    if "const" in schema:
        return show_value(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(show_value(value) for value in schema["enum"])
    declared = schema.get("type", [])
    types = [declared] if isinstance(declared, str) else declared
    phrases = [_PHRASES[name](schema) for name in types]
    if not phrases:
        return "any value"
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + ", or " + phrases[-1]


def _numeric(noun: str, schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    if low is not None and high is not None:
        return f"{noun} from {low} to {high}"
    bounds = [
        f"{words} {bound}"
        for words, bound in (("of at least", low), ("greater than", above), ("at most", high))
        if bound is not None
    ]
    return " ".join([noun, " and ".join(bounds)]) if bounds else noun


def _array(schema: Schema) -> str:
    items = schema.get("items", {})
    entries = f"{items['type']}s" if isinstance(items.get("type"), str) else "entries"
    if "minimum" in items:
        entries += f" of at least {items['minimum']}"
    return f"a non-empty list of {entries}" if schema.get("minItems") else f"a list of {entries}"


def _string(schema: Schema) -> str:
    if schema.get("format") == "regular-expression":
        return "a regular expression"
    return "a non-empty string" if schema.get("minLength") else "a string"


def _object(schema: Schema) -> str:
    keys = list(schema.get("properties") or schema.get("then", {}).get("properties", {}))
    return f"an object with the keys {', '.join(keys)}" if keys else "an object"


_PHRASES = {
    "integer": lambda schema: _numeric("an integer", schema),
    "number": lambda schema: _numeric("a number", schema),
    "boolean": lambda _: "true or false",
    "null": lambda _: "null",
    "string": _string,
    "array": _array,
    "object": _object,
}
