# SPDX-License-Identifier: Apache-2.0
"""The configuration that users write, as NNCF 2.x has it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from djpq_nncf.config._problems import raise_problems
from djpq_nncf.config._reading import read_json, to_plain_json
from djpq_nncf.config._resolve import resolve
from djpq_nncf.errors import ConfigError


@dataclass(frozen=True)
class DynamicInfo:
    """Dimensions of an input that may have other sizes than the example.

    Attributes:
        dims: Their indices, without that of the batch.
        min: Smallest size; None where it is left open.
        max: Largest size; None where it is left open.
        multiple_of: Every size is a multiple of this.
    """

    dims: tuple[int, ...]
    min: int | None
    max: int | None
    multiple_of: int


@dataclass(frozen=True)
class InputInfo:
    """One input of the model.

    Attributes:
        sample_size: Shape of the example, batch dimension first.
        type: ``"float"`` (float32), ``"long"`` (int64), ``"int"`` (int32) or ``"bool"``.
        keyword: Name of the argument of ``forward``; None where it is passed by position.
        filler: What an example input is filled with.
        dynamic: Its dynamic dimensions; None where only the batch is.
    """

    sample_size: tuple[int, ...]
    type: Literal["float", "long", "int", "bool"]
    keyword: str | None
    filler: Literal["random", "zeros", "ones"]
    dynamic: DynamicInfo | None = None


class NNCFConfig(dict[str, Any]):
    """A configuration: the dictionary as the user wrote it, and typed access with defaults filled in.

    It is checked when it is made by :meth:`from_dict` or :meth:`from_json`. Entries may be changed
    afterwards; whatever is read through a property has been checked again.

    Example:
        >>> config = NNCFConfig.from_dict({"compression": {"algorithm": "djpq"}})
        >>> config.algorithms[0]["target"]["bops_ratio"]
        0.02
    """

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "NNCFConfig":
        """Build from a mapping, which is copied.

        Raises:
            ConfigError: lists every mistake with its JSON path, its value and what is allowed.
        """
        return cls._checked(data, "The config")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "NNCFConfig":
        """Build from a JSON file, in which comments and trailing commas are allowed.

        Raises:
            ConfigError: the file cannot be read or parsed, or lists every mistake in it.
        """
        return cls._checked(read_json(path), f'Config file "{os.fspath(path)}"')

    @classmethod
    def _checked(cls, data: Any, origin: str) -> "NNCFConfig":
        plain, _ = _check(data, origin)
        return cls(plain)

    def resolved(self) -> dict[str, Any]:
        """The whole configuration, every default filled in; ``compression`` and ``input_info`` are lists.

        Raises:
            ConfigError: an entry was changed to something that is not allowed.
        """
        _, settings = _check(self, "The config")
        return settings

    @property
    def algorithms(self) -> tuple[dict[str, Any], ...]:
        """Settings of each compression algorithm, in order, every default filled in."""
        return tuple(self.resolved()["compression"])

    @property
    def epochs(self) -> int:
        """Length of the training, of the algorithm that has a schedule.

        Raises:
            ConfigError: none has.
        """
        for entry in self.algorithms:
            if "schedule" in entry:
                return int(entry["schedule"]["epochs"])
        names = ", ".join(str(entry["algorithm"]) for entry in self.algorithms)
        raise ConfigError(
            f'$.compression: no algorithm that trains is there ({names}); add one, such as {{"algorithm": "djpq"}}.'
        )

    @property
    def input_infos(self) -> tuple[InputInfo, ...]:
        """The inputs of the model; empty where the config leaves them to the data."""
        return tuple(_input_info(entry) for entry in self.resolved()["input_info"] or ())

    @property
    def target_device(self) -> str:
        """``"ANY"``, ``"CPU"``, ``"GPU"`` or ``"NPU"``."""
        return str(self.resolved()["target_device"])

    @property
    def seed(self) -> int:
        """Seed of the random numbers that compression draws."""
        return int(self.resolved()["seed"])

    @property
    def log_dir(self) -> Path:
        """Folder for logs and reports, relative to the working directory."""
        return Path(self.resolved()["log_dir"])


def _input_info(entry: dict[str, Any]) -> InputInfo:
    dynamic = entry["dynamic"] and DynamicInfo(**{**entry["dynamic"], "dims": tuple(entry["dynamic"]["dims"])})
    return InputInfo(**{**entry, "sample_size": tuple(entry["sample_size"]), "dynamic": dynamic})


def _check(data: Any, origin: str) -> tuple[Any, dict[str, Any]]:
    """Return ``data`` as plain JSON values, and its settings with every default; raise on any mistake."""
    plain, problems = to_plain_json(data)
    resolved = resolve(plain)
    reported = {problem.path for problem in problems}
    problems += [problem for problem in resolved.problems if problem.path not in reported]
    raise_problems(problems, origin)
    return plain, resolved.settings
