# SPDX-License-Identifier: Apache-2.0
"""The reference page of the configuration, written from the schemas."""

from collections.abc import Iterator

from djpq_nncf.config._describe import describe
from djpq_nncf.config._problems import show_value
from djpq_nncf.config._schemas import Schema, algorithm_schema, algorithms_with_schema, top_level_schema

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m djpq_nncf.config` from schemas/. Change those files, then run `make docs`. -->

A configuration is a JSON file; comments and trailing commas are allowed. The least it can hold is

```json
{"compression": {"algorithm": "djpq"}}
```

Keys that are not listed here are errors. Read it with `NNCFConfig.from_json(path)`, or check it with
`djpq-nncf validate CONFIG`.

**Scopes.** A layer name, a list of names, or an object with `names`, `patterns` and `types`. In a string or
a list, an entry that begins with `{re}` is a regular expression that is searched for in the name. `names` and
`types` are matched exactly, `patterns` from the start of the name, as in `nncf.IgnoredScope`.
"""


def reference_page() -> str:
    """The whole page, in Markdown."""
    sections = [_INTRODUCTION, *_sections(top_level_schema(), "", 2)]
    for name in algorithms_with_schema():
        sections += _sections(algorithm_schema(name), f"compression, algorithm {name}", 2)
    return "\n".join(sections)


def _sections(schema: Schema, place: str, level: int) -> Iterator[str]:
    """One table for the keys of an object, then those of the objects in it."""
    title = f"`{place}`" if level > 2 else place or "The whole file"
    rows = [_row(key, below, key in schema.get("required", ())) for key, below in schema["properties"].items()]
    table = "\n".join(["| Key | Allowed | Default | Meaning |", "| --- | --- | --- | --- |", *rows])
    yield f"{'#' * level} {title[0].upper() + title[1:]}\n\n{schema['description']}\n\n{table}\n"
    prefix = f"{place}." if level > 2 else ""
    for key, below in schema["properties"].items():
        nested = _nested_object(below)
        if nested is not None:
            yield from _sections(nested, prefix + key, level + 1 if level == 2 else level)


def _nested_object(schema: Schema) -> Schema | None:
    """The object that ``schema`` describes, if it has keys worth a table of its own."""
    if "format" in schema:  # scopes: the same everywhere, so the introduction explains them
        return None
    nested: Schema = schema.get("then", schema)
    return {"description": schema["description"], **nested} if nested.get("properties") else None


def _row(key: str, schema: Schema, required: bool) -> str:
    if "format" in schema:
        allowed = "scopes, or null" if "null" in schema["type"] else "scopes"
    elif _nested_object(schema):
        allowed = "an object, or a list of objects" if "array" in schema["type"] else "an object"
    else:
        allowed = describe(schema)
    default = "required" if required else "" if _nested_object(schema) else f"`{show_value(schema.get('default'))}`"
    cells = (f"`{key}`", allowed, default, schema["description"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
