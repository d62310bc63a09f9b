# SPDX-License-Identifier: Apache-2.0
"""The schemas themselves: valid, documented to the last key, and open to algorithms from outside."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from djpq_nncf.config import NNCFConfig, Problem, algorithms_with_schema, register_schema, schemas_folder
from djpq_nncf.config import _schemas as schemas
from djpq_nncf.errors import ConfigError

FILES = sorted(schemas_folder().rglob("*.schema.json"))


def keys_of(schema: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every key that may stand in an object of this schema: where, what, and whether it is required."""
    for nested in (schema, schema.get("then", {})):
        for key, below in nested.get("properties", {}).items():
            yield f"{place}.{key}", below, key in nested.get("required", ())
            yield from keys_of(below, f"{place}.{key}")


ALL_KEYS = [
    *keys_of(schemas.top_level_schema(), "$"),
    *(
        entry
        for name in algorithms_with_schema()
        for entry in keys_of(schemas.algorithm_schema(name), f"$.compression<{name}>")
    ),
]


@pytest.fixture
def no_registered_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "_registered", {})


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_schema_is_valid(file: Path) -> None:
    Draft202012Validator.check_schema(json.loads(file.read_text()))


@pytest.mark.parametrize(("key", "schema", "required"), ALL_KEYS, ids=[key for key, _, _ in ALL_KEYS])
def test_every_key_is_documented(key: str, schema: dict[str, Any], required: bool) -> None:
    assert schema["description"].endswith(".")
    assert required or "default" in schema
    types = schema.get("type", ())
    if "number" in types or "integer" in types:
        assert " Unit: " in schema["description"]
    if types == "object":
        assert schema["additionalProperties"] is False


def test_djpq_is_known() -> None:
    assert algorithms_with_schema() == ("djpq", "knowledge_distillation")


@pytest.mark.usefixtures("no_registered_schemas")
def test_algorithm_from_outside() -> None:
    def rules(settings: dict[str, Any], given: dict[str, Any], target_device: str) -> Iterable[Problem]:
        if settings["share"] == 0.5 and "share" in given:
            yield Problem(("share",), "0.5 is the default; remove it")

    register_schema(
        "dropout",
        {
            "type": "object",
            "properties": {"algorithm": {"const": "dropout"}, "share": {"$ref": "#/$defs/share"}},
            "additionalProperties": False,
            "$defs": {"share": {"type": "number", "minimum": 0, "default": 0.5}},
        },
        rules,
    )
    config = NNCFConfig.from_dict({"compression": [{"algorithm": "djpq"}, {"algorithm": "dropout"}]})
    assert config.algorithms[1] == {"algorithm": "dropout", "share": 0.5}
    with pytest.raises(ConfigError, match=r"\$\.compression\.share: -1 is not allowed"):
        NNCFConfig.from_dict({"compression": {"algorithm": "dropout", "share": -1}})
    with pytest.raises(ConfigError, match=r"\$\.compression\.share: 0\.5 is the default"):
        NNCFConfig.from_dict({"compression": {"algorithm": "dropout", "share": 0.5}})


@pytest.mark.usefixtures("no_registered_schemas")
@pytest.mark.parametrize(
    ("name", "schema", "message"),
    [
        ("djpq", {"properties": {"algorithm": {}}}, "has a schema already"),
        ("other", {"type": 3, "properties": {"algorithm": {}}}, r"is not valid at \$\.type"),
        ("other", {"type": "object"}, 'lacks the property "algorithm"'),
    ],
    ids=["name taken", "not a schema", "no algorithm key"],
)
def test_schema_that_cannot_be_registered(name: str, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_schema(name, schema)
    assert algorithms_with_schema() == ("djpq", "knowledge_distillation")
