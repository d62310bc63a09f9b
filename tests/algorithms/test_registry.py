# SPDX-License-Identifier: Apache-2.0
"""Algorithms by name."""

import pytest

from djpq_nncf.algorithms import _registry as registry
from djpq_nncf.errors import ConfigError


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_algorithms", {})


def test_register_and_get() -> None:
    @registry.register_algorithm("b")
    class B: ...

    @registry.register_algorithm("a")
    def a() -> None: ...

    assert registry.known_algorithms() == ("a", "b")
    assert registry.get_algorithm("b") is B
    assert registry.get_algorithm("a") is a


def test_name_can_be_taken_once() -> None:
    @registry.register_algorithm("a")
    class First: ...

    with pytest.raises(ConfigError, match=r'"a" is registered already, by .*First'):

        @registry.register_algorithm("a")
        class Second: ...

    assert registry.get_algorithm("a") is First


def test_unknown_name_lists_the_known_ones() -> None:
    registry.register_algorithm("djpq")(object)
    registry.register_algorithm("other")(object)
    with pytest.raises(ConfigError, match=r'"DJPG"; the closest known one is "djpq" \(known: "djpq", "other"\)'):
        registry.get_algorithm("DJPG")


def test_unknown_name_in_an_empty_registry() -> None:
    with pytest.raises(ConfigError, match="there is none to choose from"):
        registry.get_algorithm("djpq")
