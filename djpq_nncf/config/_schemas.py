# SPDX-License-Identifier: Apache-2.0
"""The JSON Schemas: found on disk, or registered by an algorithm from outside the package."""

import copy
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from djpq_nncf.config._djpq_rules import djpq_rules
from djpq_nncf.config._problems import Problem
from djpq_nncf.errors import ConfigError

Schema = dict[str, Any]
Rules = Callable[[dict[str, Any], dict[str, Any], str], Iterable[Problem]]
"""``rules(settings, given, target_device)``: what a JSON Schema cannot say about one algorithm.

``settings`` holds every key, defaults filled in; ``given`` only what the user wrote. The rules may fill in
a value of ``settings`` that depends on others, and yield the problems they find (paths from ``settings``).
"""

_SUFFIX = ".schema.json"

_registered: dict[str, tuple[Schema, Rules | None]] = {}
_SHIPPED_RULES: dict[str, Rules] = {"djpq": djpq_rules}


def schemas_folder() -> Path:
    """Folder of the schemas: inside the installed package, or at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "schemas", package.parent / "schemas"):
        if (folder / f"nncf_config{_SUFFIX}").is_file():
            return folder
    raise ConfigError(f'The JSON schemas are missing from "{package}"; install djpq-nncf again.')


@functools.cache
def top_level_schema() -> Schema:
    """Schema of the whole file, references resolved. Treat it as read-only."""
    return _load(schemas_folder() / f"nncf_config{_SUFFIX}")


def algorithm_schema(name: str) -> Schema:
    """Schema of one algorithm's settings, references resolved. Treat it as read-only."""
    if name in _registered:
        return _registered[name][0]
    return _shipped_algorithm_schema(name)


def algorithm_rules(name: str) -> Rules | None:
    """What the schema of the algorithm ``name`` cannot say, if anything."""
    return _registered[name][1] if name in _registered else _SHIPPED_RULES.get(name)


def algorithms_with_schema() -> tuple[str, ...]:
    """Names that ``algorithm`` can take, sorted."""
    shipped = {file.name.removesuffix(_SUFFIX) for file in _algorithms_folder().glob(f"*{_SUFFIX}")}
    return tuple(sorted(shipped | set(_registered)))


def register_schema(name: str, schema: Schema, rules: Rules | None = None) -> None:
    """Let configurations name an algorithm whose schema does not ship with this package.

    Args:
        name: Value of the ``algorithm`` key.
        schema: JSON Schema (draft 2020-12) of the algorithm's object, with an ``algorithm`` property and
            local references (``#/$defs/...``) only. Its ``default`` keywords fill in what users leave out.
        rules: What the schema cannot say; see :data:`Rules`.

    Raises:
        ConfigError: the name is taken, or the schema is not a valid one.
    """
    if name in algorithms_with_schema():
        raise ConfigError(f'Algorithm "{name}" has a schema already; register yours under another name.')
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ConfigError(
            f'The schema of algorithm "{name}" is not valid at {error.json_path}: {error.message}'
        ) from error
    if "algorithm" not in schema.get("properties", {}):
        raise ConfigError(f'The schema of algorithm "{name}" lacks the property "algorithm"; add it.')
    _registered[name] = (_inline(copy.deepcopy(schema), schema, schemas_folder()), rules)


def _algorithms_folder() -> Path:
    return schemas_folder() / "algorithms"


@functools.cache
def _shipped_algorithm_schema(name: str) -> Schema:
    return _load(_algorithms_folder() / f"{name}{_SUFFIX}")


def _load(file: Path) -> Schema:
    document: Schema = json.loads(file.read_text(encoding="utf-8"))
    inlined: Schema = _inline(document, document, file.parent)
    return inlined


def _inline(node: Any, document: Schema, folder: Path) -> Any:
    """Replace each ``$ref`` by what it refers to, so that validation, defaults and docs see plain schemas."""
    if isinstance(node, list):
        return [_inline(entry, document, folder) for entry in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        file, _, pointer = node["$ref"].partition("#")
        siblings = {key: value for key, value in node.items() if key != "$ref"}
        if file:
            folder, document = (folder / file).parent, json.loads((folder / file).read_text(encoding="utf-8"))
        target: Any = document
        for step in pointer.strip("/").split("/"):
            target = target[step]
        return _inline({**target, **siblings}, document, folder)
    return {key: _inline(value, document, folder) for key, value in node.items() if key != "$defs"}
