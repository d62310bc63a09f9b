# SPDX-License-Identifier: Apache-2.0
"""What a JSON Schema cannot say about ``djpq``: values that depend on each other."""

import json
from collections.abc import Iterator
from typing import Any

from djpq_nncf.config._problems import Path, Problem

_PRUNING_ONLY_RATIO = 0.5  # without quantization BOPs fall only as MACs do
_POWERS_OF_TWO = (2, 4, 8)
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "pruning": {"criterion": "information_bottleneck", "cost_weighted": False, "round_to": 1},
        "quantization": {"weights": {"learn_exponent": True}, "activations": {"mode": "symmetric"}},
    }
}
_THRESHOLDS = {"fisher": 1.0, "information_bottleneck": 0.001}
_OF_LEARNED_GATES: dict[str, float | None] = {"temperature": 1.0, "lr_multiplier": 10.0, "initial_log_variance": -6.0}
_OF_FISHER: dict[str, float | None] = {"noise": 0.0, "bit_margin": None}
_INT8_DEVICES = ("CPU", "GPU")
_INT8_SHARE = 8 * 8 / (32 * 32)


def djpq_rules(settings: dict[str, Any], given: dict[str, Any], target_device: str) -> Iterator[Problem]:
    """Fill in the defaults that depend on other values, and yield the contradictions.

    Args:
        settings: The algorithm's object with every key, each of the right type; completed in place.
        given: The same object as the user wrote it.
        target_device: What the network is compressed for.
    """
    if settings["preset"] is not None:
        _apply(_PRESETS[settings["preset"]], settings, given)
    _choose_bits_of_device(settings["quantization"], given.get("quantization", {}), target_device)
    pruning, quantization = settings["pruning"], settings["quantization"]
    if not pruning["enabled"] and not quantization["enabled"]:
        yield Problem(
            ("quantization", "enabled"),
            "false, like pruning.enabled, so that nothing would be compressed; set one of the two to true",
        )
    if pruning["enabled"] and not any(pruning["dimensions"].values()):
        yield Problem(
            ("pruning", "dimensions"),
            "every one is false, so that nothing would be pruned; set one to true, or pruning.enabled to false",
        )
    for half in ("weights", "activations"):
        yield from _bit_problems(quantization[half], quantization["power_of_two"], ("quantization", half))
    yield from _overflow_problems(quantization)
    yield from _target_problems(settings, given)
    yield from _choose_criterion(pruning, given.get("pruning", {}), settings["target"])
    yield from _schedule_problems(settings["schedule"])


def _apply(preset: dict[str, Any], settings: dict[str, Any], given: dict[str, Any]) -> None:
    """What the user wrote comes before what the preset says."""
    for key, value in preset.items():
        if isinstance(value, dict):
            _apply(value, settings[key], given.get(key, {}))
        elif key not in given:
            settings[key] = value


def _choose_bits_of_device(quantization: dict[str, Any], given: dict[str, Any], target_device: str) -> None:
    """Only bit-widths that the device can use, unless the user says something about them."""
    keys = {"bits", "initial_bits", "min_bits", "max_bits"}
    untouched = [half for half in ("weights", "activations") if not keys & given.get(half, {}).keys()]
    if "power_of_two" in given:
        return
    if target_device in _INT8_DEVICES:
        for half in untouched:
            quantization[half]["bits"] = 8
    elif target_device == "NPU" and len(untouched) == 2:
        quantization["power_of_two"] = True
        for half in untouched:
            quantization[half]["min_bits"] = 4


def _bit_problems(settings: dict[str, Any], power_of_two: bool, path: Path) -> Iterator[Problem]:
    fixed, low, start, high = (settings[key] for key in ("bits", "min_bits", "initial_bits", "max_bits"))
    if fixed is not None:
        if power_of_two and fixed not in _POWERS_OF_TWO:
            yield Problem(
                (*path, "bits"),
                f"{fixed} is not allowed while power_of_two is true; give 2, 4 or 8, or set power_of_two to false",
            )
        return
    if low > high:
        yield Problem((*path, "min_bits"), f"{low} is greater than max_bits, {high}; lower it or raise max_bits")
    elif not low <= start <= high:
        yield Problem(
            (*path, "initial_bits"),
            f"{start} lies outside min_bits to max_bits; give an integer from {low} to {high}",
        )
    elif power_of_two and not any(low <= bits <= high for bits in _POWERS_OF_TWO):
        yield Problem(
            (*path, "min_bits"),
            f"no power of two lies between {low} and max_bits, {high}; widen the two so that 2, 4 or 8 fits, "
            "or set power_of_two to false",
        )


def _overflow_problems(quantization: dict[str, Any]) -> Iterator[Problem]:
    """Below the 7 bits of ``overflow_fix`` the next power of two is 4."""
    if quantization["overflow_fix"] == "disable" or not quantization["power_of_two"]:
        return
    weights = quantization["weights"]
    low, high = (weights[key] if weights["bits"] is None else weights["bits"] for key in ("min_bits", "max_bits"))
    if 4 < low <= high == 8:
        yield Problem(
            ("quantization", "overflow_fix"),
            f"{json.dumps(quantization['overflow_fix'])} leaves weights 7 bits at most, and there is no power of two "
            f'from {low} to 7; set it to "disable", or power_of_two to false, or let weights have 4 bits',
        )


def _target_problems(settings: dict[str, Any], given: dict[str, Any]) -> Iterator[Problem]:
    """Equation (17) needs strengths: given as gamma and beta, or adapted until the target is met."""
    target = settings["target"]
    asked = [key for key, ratio in given.get("target", {}).items() if ratio is not None]
    strengths = [
        (half, symbol)
        for half, symbol in (("pruning", "gamma"), ("quantization", "beta"))
        if settings[half][symbol] is not None
    ]
    learns = _learns_something(settings)
    if asked:
        if "bops_ratio" not in asked:
            target["bops_ratio"] = None
        for half, symbol in strengths:
            yield Problem(
                (half, symbol),
                f"{settings[half][symbol]} and target.{asked[0]} {target[asked[0]]} exclude each other, "
                f"since the target sets the strength; remove {half}.{symbol} to reach the target, "
                f"or target.{asked[0]} to keep the strength",
            )
        yield from _steering_problems(settings, asked)
        return
    quantization = settings["quantization"]
    if target["bops_ratio"] is not None and "bops_ratio" not in given.get("target", {}):
        if not quantization["enabled"]:
            target["bops_ratio"] = _PRUNING_ONLY_RATIO
        elif quantization["weights"]["bits"] == quantization["activations"]["bits"] == 8:
            target["bops_ratio"] = _PRUNING_ONLY_RATIO * _INT8_SHARE
    if not learns or any(settings[half]["enabled"] for half, _ in strengths):
        target["bops_ratio"] = None
    elif target["bops_ratio"] is None:
        yield Problem(
            ("target", "bops_ratio"),
            "null, while gamma and beta are null as well, so nothing would drive the compression; "
            "give a number greater than 0 and at most 1, or remove the key to get the default",
        )


def _choose_criterion(pruning: dict[str, Any], given: dict[str, Any], target: dict[str, Any]) -> Iterator[Problem]:
    """Fisher information is weighed against the strength that a target sets."""
    has_target = any(ratio is not None for ratio in target.values())
    if pruning["criterion"] is None:
        pruning["criterion"] = "fisher" if has_target else "information_bottleneck"
    elif pruning["criterion"] == "fisher" and pruning["enabled"] and not has_target:
        yield Problem(
            ("pruning", "criterion"),
            '"fisher" weighs channels against the strength that a target sets, and there is none; give a target, or '
            'set it to "information_bottleneck"',
        )
    if pruning["criterion"] == "fisher" and pruning["enabled"]:
        for key, default in _OF_LEARNED_GATES.items():
            if pruning[key] != default:
                yield Problem(
                    ("pruning", key),
                    f'{given[key]} is for gates that are learned, and criterion "fisher" learns none; remove it, or '
                    'set pruning.criterion to "information_bottleneck"',
                )
    if pruning["criterion"] == "information_bottleneck" and pruning["enabled"]:
        for key, default in _OF_FISHER.items():
            if pruning[key] not in (0, default):
                yield Problem(
                    ("pruning", key),
                    f'{given[key]} is for criterion "fisher", and the gates of "information_bottleneck" are learned; '
                    "remove it",
                )
    if pruning["threshold"] is None:
        pruning["threshold"] = _THRESHOLDS[pruning["criterion"]]


def _steering_problems(settings: dict[str, Any], asked: list[str]) -> Iterator[Problem]:
    """Targets that nothing which is learned can move."""
    movers = {"bops_ratio": ("weights", "activations"), "macs_ratio": (), "size_ratio": ("weights",)}
    for key in asked:
        if _learns_something(settings, movers[key]):
            continue
        why, remedy = "pruning is off", "enable pruning"
        if movers[key]:
            why += f" and bit-widths are fixed ({', '.join(movers[key])})"
            remedy += f", or set bits of {' or '.join(movers[key])} to null"
        yield Problem(
            ("target", key), f"{settings['target'][key]} cannot be steered to, since {why}; remove it, or {remedy}"
        )


def _learns_something(settings: dict[str, Any], halves: tuple[str, ...] = ("weights", "activations")) -> bool:
    """Channels, or bit-widths of these."""
    quantization = settings["quantization"]
    learned_bits = any(quantization[half]["bits"] is None for half in halves)
    return bool(settings["pruning"]["enabled"] or (quantization["enabled"] and learned_bits))


def _schedule_problems(schedule: dict[str, Any]) -> Iterator[Problem]:
    epochs, freeze_epoch = schedule["epochs"], schedule["freeze_epoch"]
    if freeze_epoch is not None and freeze_epoch >= epochs:
        yield Problem(
            ("schedule", "freeze_epoch"),
            f"{freeze_epoch} is not below schedule.epochs, {epochs}; give an integer below {epochs}, or null",
        )
