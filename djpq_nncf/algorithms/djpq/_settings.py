# SPDX-License-Identifier: Apache-2.0
"""The validated settings of DJPQ. The schema holds the defaults and the meaning of each key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from djpq_nncf.channels import ROLES, Role
from djpq_nncf.config import ScopeSettings

ActivationMode = Literal["auto", "symmetric", "asymmetric"]
OverflowFix = Literal["enable", "disable", "first_layer_only"]


@dataclass(frozen=True)
class InitializerSettings:
    """How much of ``init_data`` the initialisation uses, and how (``initializer``)."""

    num_init_samples: int
    range_type: Literal["mse", "min_max", "percentile"]
    percentile: float
    num_bn_adaptation_samples: int
    num_bias_correction_samples: int

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "InitializerSettings":
        """Build from the validated ``initializer`` object."""
        ranges = settings["range"]
        return cls(
            num_init_samples=ranges["num_init_samples"],
            range_type=ranges["type"],
            percentile=ranges["params"]["percentile"],
            num_bn_adaptation_samples=settings["batchnorm_adaptation"]["num_bn_adaptation_samples"],
            num_bias_correction_samples=settings["bias_correction"]["num_bias_correction_samples"],
        )


@dataclass(frozen=True)
class PruningSettings:
    """Gates (``pruning``); the scopes already contain those of the whole algorithm.

    ``roles`` are the ``dimensions`` that are on.
    """

    enabled: bool
    criterion: Literal["fisher", "information_bottleneck"]
    gamma: float | None
    threshold: float
    temperature: float
    lr_multiplier: float
    initial_log_variance: float
    noise: float
    bit_margin: float | None
    cost_weighted: bool
    round_to: int | None
    roles: frozenset[Role]
    ignored_scopes: ScopeSettings
    target_scopes: ScopeSettings | None

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "PruningSettings":
        """Build from the validated ``pruning`` object, its scopes joined."""
        rest = dict(settings)
        dimensions = rest.pop("dimensions")
        return cls(**rest, roles=frozenset(role for role in ROLES if dimensions[role]))


@dataclass(frozen=True)
class WeightSettings:
    """Weight quantizers (``quantization.weights``)."""

    bits: int | None
    initial_bits: int
    min_bits: int
    max_bits: int
    learn_exponent: bool


@dataclass(frozen=True)
class ActivationSettings:
    """Activation quantizers (``quantization.activations``)."""

    mode: ActivationMode
    bits: int | None
    initial_bits: int
    min_bits: int
    max_bits: int
    input_bits: int


@dataclass(frozen=True)
class QuantizationSettings:
    """Quantizers (``quantization``); the scopes already contain those of the whole algorithm."""

    enabled: bool
    beta: float | None
    power_of_two: bool
    overflow_fix: OverflowFix
    lr_multiplier: float | None
    range_lr_multiplier: float
    ignored_scopes: ScopeSettings
    target_scopes: ScopeSettings | None
    weights: WeightSettings
    activations: ActivationSettings


@dataclass(frozen=True)
class TargetSettings:
    """What to reach (``target``); no ratio at all means that gamma and beta are used as they are."""

    bops_ratio: float | None
    macs_ratio: float | None
    size_ratio: float | None

    @property
    def given(self) -> dict[str, float]:
        """The ratios that are asked for, by key."""
        return {key: ratio for key, ratio in vars(self).items() if ratio is not None}


@dataclass(frozen=True)
class ScheduleSettings:
    """Phases of the fine-tuning (``schedule``)."""

    epochs: int
    freeze_epoch: int | None
    steps_per_epoch: int | None
    ramp: float


@dataclass(frozen=True)
class DJPQSettings:
    """Everything that the configuration says about one run of DJPQ."""

    pruning: PruningSettings
    quantization: QuantizationSettings
    target: TargetSettings
    schedule: ScheduleSettings
    initializer: InitializerSettings
    compression_lr_multiplier: float

    @classmethod
    def from_dict(cls, validated: Mapping[str, Any]) -> "DJPQSettings":
        """Build from an entry of :attr:`djpq_nncf.config.NNCFConfig.algorithms`."""
        quantization = _with_scopes(validated["quantization"], validated)
        return cls(
            pruning=PruningSettings.from_dict(_with_scopes(validated["pruning"], validated)),
            quantization=QuantizationSettings(
                **{
                    **quantization,
                    "weights": WeightSettings(**quantization["weights"]),
                    "activations": ActivationSettings(**quantization["activations"]),
                }
            ),
            target=TargetSettings(**validated["target"]),
            schedule=ScheduleSettings(**validated["schedule"]),
            initializer=InitializerSettings.from_dict(validated["initializer"]),
            compression_lr_multiplier=validated["compression_lr_multiplier"],
        )


def _with_scopes(half: Mapping[str, Any], algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """Join the scopes of one half with the algorithm's: ignored ones add up, own targets come first."""
    target = algorithm["target_scopes"] if half["target_scopes"] is None else half["target_scopes"]
    return {
        **half,
        "ignored_scopes": ScopeSettings.from_config(algorithm["ignored_scopes"])
        | ScopeSettings.from_config(half["ignored_scopes"]),
        "target_scopes": None if target is None else ScopeSettings.from_config(target),
    }
