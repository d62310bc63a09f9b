# SPDX-License-Identifier: Apache-2.0
"""The three ways to name layers."""

from typing import Any

import pytest

from djpq_nncf.config import NNCFConfig, ScopeSettings


@pytest.mark.parametrize(
    "scopes",
    [
        "layer1.0.conv1",
        ["layer1.0.conv1"],
        [r"{re}layer\d+\.0\.conv1$"],
        "{re}conv1",
        {"names": ["layer1.0.conv1"]},
        {"patterns": [r"layer1\..*\.conv1"]},
        {"types": ["conv2d"], "names": ["fc"]},
    ],
    ids=[
        "name",
        "names",
        "regex in a list",
        "regex alone",
        "object names",
        "object patterns",
        "object types",
    ],
)
def test_forms(scopes: Any) -> None:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "djpq", "ignored_scopes": scopes}})
    scope = ScopeSettings.from_config(config.algorithms[0]["ignored_scopes"])
    assert scope.matches("layer1.0.conv1", "conv2d")
    assert not scope.matches("layer1.0.conv2", "linear")


def test_braced_patterns_are_searched_and_plain_ones_start_at_the_beginning() -> None:
    assert ScopeSettings.from_config("{re}conv1").matches("layer1.conv1")
    assert not ScopeSettings.from_config({"patterns": ["conv1"]}).matches("layer1.conv1")


def test_names_are_not_patterns() -> None:
    assert not ScopeSettings.from_config("layer1.conv").matches("layer1xconv")
    assert not ScopeSettings.from_config("layer1").matches("layer1.conv")


def test_empty_scope_matches_nothing() -> None:
    assert not ScopeSettings()
    assert not ScopeSettings.from_config([]).matches("conv", "conv2d")


def test_union() -> None:
    scope = ScopeSettings.from_config("a") | ScopeSettings.from_config({"types": ["linear"]})
    assert scope.matches("a")
    assert scope.matches("b", "linear")
    assert not scope.matches("b")


def test_unmatched_entries_are_named_as_written() -> None:
    scope = ScopeSettings.from_config(["conv1", "conv9", "{re}^fc", "{re}^x"]) | ScopeSettings(types=("gelu",))
    layers = [("conv1", "conv2d"), ("fc", "linear")]
    assert scope.unmatched(layers) == ("conv9", "{re}^x", "gelu")
