# SPDX-License-Identifier: Apache-2.0
"""The compression algorithms, by the name that configurations use."""

from collections.abc import Callable
from typing import Any, TypeVar

from djpq_nncf.config import unknown_name
from djpq_nncf.errors import ConfigError

_Algorithm = TypeVar("_Algorithm", bound=Callable[..., Any])

_algorithms: dict[str, Callable[..., Any]] = {}


def register_algorithm(name: str) -> Callable[[_Algorithm], _Algorithm]:
    """Make the decorated class or function the algorithm ``name``.

    Raises:
        ConfigError: another algorithm has this name.

    Example:
        >>> @register_algorithm("my_pruning")
        ... class MyPruning: ...
    """

    def decorate(algorithm: _Algorithm) -> _Algorithm:
        if name in _algorithms:
            owner = _algorithms[name]
            raise ConfigError(
                f'Algorithm "{name}" is registered already, by {owner.__module__}.{owner.__qualname__}; '
                "register yours under another name."
            )
        _algorithms[name] = algorithm
        return algorithm

    return decorate


def get_algorithm(name: str) -> Callable[..., Any]:
    """What was registered as ``name``.

    Raises:
        ConfigError: nothing was; the message lists the names that are known.
    """
    if name not in _algorithms:
        message = unknown_name("algorithm", name, known_algorithms())
        raise ConfigError(f"{message[0].upper()}{message[1:]}; import the package that registers it.")
    return _algorithms[name]


def known_algorithms() -> tuple[str, ...]:
    """Registered names, sorted."""
    return tuple(sorted(_algorithms))
