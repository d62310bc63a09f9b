# SPDX-License-Identifier: Apache-2.0
"""From the validated dictionary to frozen dataclasses."""

import dataclasses
from typing import Any

import pytest

from djpq_nncf.algorithms.djpq._settings import DJPQSettings
from djpq_nncf.channels import ROLES
from djpq_nncf.config import NNCFConfig, ScopeSettings


def settings(**given: Any) -> DJPQSettings:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "djpq", **given}})
    return DJPQSettings.from_dict(config.algorithms[0])


def test_values_arrive() -> None:
    given = settings(
        pruning={"round_to": 8},
        quantization={"weights": {"bits": 4}, "activations": {"max_bits": 6, "initial_bits": 6}},
        schedule={"epochs": 5, "freeze_epoch": 2},
        initializer={"range": {"type": "percentile", "params": {"percentile": 99}}},
    )
    assert given.pruning.round_to == 8
    assert given.quantization.weights.bits == 4
    assert given.quantization.activations.max_bits == 6
    assert given.quantization.activations.input_bits == 8
    assert (given.schedule.epochs, given.schedule.freeze_epoch) == (5, 2)
    assert (given.initializer.range_type, given.initializer.percentile) == ("percentile", 99.0)
    assert given.initializer.num_bn_adaptation_samples == 2048
    assert given.target.bops_ratio == 0.02


def test_dimensions_are_roles() -> None:
    assert settings().pruning.roles == frozenset(ROLES)
    given = settings(pruning={"dimensions": {"residual": False, "value_width": False}})
    assert given.pruning.roles == {"hidden", "attention_heads", "query_key_width"}


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings().pruning.enabled = False  # type: ignore[misc]


def test_ignored_scopes_add_up() -> None:
    given = settings(ignored_scopes="a", pruning={"ignored_scopes": ["{re}b"]})
    assert given.pruning.ignored_scopes == ScopeSettings(names=("a",), searched=("b",))
    assert given.quantization.ignored_scopes == ScopeSettings(names=("a",))


def test_own_target_scopes_come_first() -> None:
    given = settings(target_scopes="a", pruning={"target_scopes": "b"})
    assert given.pruning.target_scopes == ScopeSettings(names=("b",))
    assert given.quantization.target_scopes == ScopeSettings(names=("a",))
    assert settings().pruning.target_scopes is None
