# SPDX-License-Identifier: Apache-2.0
"""What decides the result of a run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import DataError

_COLORS = 3
"""Images are read as RGB."""


@dataclass(frozen=True)
class RunSettings:
    """What decides the result of a run; it is continued only with the same.

    Attributes:
        config: the configuration as it was written.
        model: ``package.module:factory`` or ``torchvision:NAME``.
        data: an image folder, or ``package.module:function`` that returns batches to train and to validate with.
        weights: file with the parameters of the trained network; None where the factory brings them.
        train: ``package.module:function`` that trains; None for the classifier's loop.
        lr: learning rate of the weights.
        batch_size: images of a step, of an image folder.
        image_size: height and width in pixels, of an image folder.
        mean, deviation: of red, green and blue, of an image folder.
        augment: whether training images of a folder are cropped and flipped at random.

    Raises:
        DataError: ``mean`` or ``deviation`` do not describe three colors.
    """

    config: dict[str, Any]
    model: str
    data: str
    weights: str | None = None
    train: str | None = None
    lr: float = 1e-3
    batch_size: int = 64
    image_size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)
    augment: bool = True

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) != _COLORS:
                raise DataError(
                    f"--{name} has {len(values)} values ({_listed(values)}). Write three, for red, green and blue."
                )
        if not all(value > 0 for value in self.deviation):
            raise DataError(
                f"--deviation is {_listed(self.deviation)}, and pixels are divided by it. Write numbers above 0."
            )

    @property
    def nncf_config(self) -> NNCFConfig:
        return NNCFConfig.from_dict(self.config)

    @property
    def epochs(self) -> int:
        """Length of the training."""
        return self.nncf_config.epochs

    @property
    def seed(self) -> int:
        return self.nncf_config.seed

    def with_absolute_paths(self) -> "RunSettings":
        """The same, wherever a later command is called from."""
        return dataclasses.replace(
            self,
            data=str(Path(self.data).absolute()) if Path(self.data).is_dir() else self.data,
            weights=None if self.weights is None else str(Path(self.weights).absolute()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "RunSettings":
        """What :meth:`to_dict` returned, also after JSON.

        Raises:
            KeyError, TypeError, DataError: it is something else.
        """
        return cls(**{**stored, "mean": tuple(stored["mean"]), "deviation": tuple(stored["deviation"])})

    def changes(self, other: "RunSettings") -> list[str]:
        """How ``other`` differs; what a config leaves out is what it is by default."""
        changed = [
            f"{field.name} was {getattr(self, field.name)!r} and is {getattr(other, field.name)!r}"
            for field in fields(self)
            if field.name != "config" and getattr(self, field.name) != getattr(other, field.name)
        ]
        return changed + self.config_changes(other.config)

    def config_changes(self, config: Mapping[str, Any]) -> list[str]:
        """How another config differs, likewise."""
        return _changes(self.nncf_config.resolved(), NNCFConfig.from_dict(dict(config)).resolved(), "$")


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _changes(old: Any, new: Any, path: str) -> list[str]:
    """Where two JSON documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change for key in sorted({*old, *new}) for change in _changes(old.get(key), new.get(key), f"{path}.{key}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for i, (a, b) in pairs for change in _changes(a, b, f"{path}[{i}]")]
    return [] if old == new else [f"{path} was {old!r} and is {new!r}"]
