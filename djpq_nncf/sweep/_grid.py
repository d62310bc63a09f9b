# SPDX-License-Identifier: Apache-2.0
"""From settings with several values each to the configs of all combinations."""

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import ConfigError

Setting = tuple[str, tuple[Any, ...]]
"""Path of a key from the root of the config, with dots, and its values."""

_TEACHER = "knowledge_distillation"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        config: checked.
        settings: what it is given, as text, by the key.
    """

    name: str
    config: dict[str, Any]
    settings: tuple[tuple[str, str], ...] = ()


def parse_setting(text: str) -> Setting:
    """``"compression.target.bops_ratio=0.02,0.01"``: values are JSON, and words need no quotes.

    Raises:
        ConfigError: it is something else.
    """
    key, separator, values = text.partition("=")
    if not (key and separator and values):
        raise ConfigError(
            f"--set is '{text}'. Write KEY=VALUE,VALUE, such as seed=0,1,2 or {budget_key({})}=0.02,0.01."
        )
    try:
        return key, tuple(json.loads(f"[{values}]"))
    except ValueError:
        return key, tuple(_word(part) for part in values.split(","))


def budget_key(config: Mapping[str, Any]) -> str:
    """Where ``bops_ratio`` stands in a config: ``compression`` is an object or a list."""
    entries = config.get("compression")
    if isinstance(entries, list):
        for position, entry in enumerate(entries):
            if isinstance(entry, dict) and entry.get("algorithm") != _TEACHER:
                return f"compression.{position}.target.bops_ratio"
    return "compression.target.bops_ratio"


def expand_grid(config: Mapping[str, Any], settings: Sequence[Setting]) -> list[Trial]:
    """Every combination, each checked.

    Raises:
        ConfigError: a path leads nowhere, or a combination is not valid.
    """
    keys = [key for key, _ in settings]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"The sweep sets {repeated[0]} twice. Give all its values at once.")
    trials = []
    for values in itertools.product(*(values for _, values in settings)):
        changed = copy.deepcopy(dict(config))
        for (key, _), value in zip(settings, values, strict=True):
            _put(changed, key, value)
        given = tuple((key, f"{_short(key)}={_plain(value)}") for (key, _), value in zip(settings, values, strict=True))
        name = ",".join(text for _, text in given) or "run"
        trials.append(Trial(name, dict(NNCFConfig.from_dict(changed)), given))
    names = [trial.name for trial in trials]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"The sweep has {twice[0]} twice. Give each value of a key once.")
    return trials


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    place: Any = config
    *path, last = (int(part) if part.isdecimal() else part for part in key.split("."))
    for part in path:
        if isinstance(place, list) and isinstance(part, int) and part < len(place):
            place = place[part]
        elif isinstance(place, dict) and isinstance(part, str):
            place = place.setdefault(part, {})
        else:
            break
    else:
        if isinstance(place, dict) and isinstance(last, str):
            place[last] = value
            return
    raise ConfigError(
        f"--set {key}: the config has no such place. A path begins at the root and counts the entries of a list from "
        "0, as in compression.0.target.bops_ratio."
    )


def _word(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _plain(value: Any) -> str:
    """A value as part of a file name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text)
