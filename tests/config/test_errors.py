# SPDX-License-Identifier: Apache-2.0
"""Broken configurations: each is one error that names the place, the value, what is allowed, the remedy."""

from typing import Any

import numpy as np
import pytest

from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import ConfigError


def djpq(**settings: Any) -> dict[str, Any]:
    return {"compression": {"algorithm": "djpq", **settings}}


def weights(**settings: Any) -> dict[str, Any]:
    return djpq(quantization={"weights": settings})


def inputs(**settings: Any) -> dict[str, Any]:
    return {**djpq(), "input_info": {"sample_size": [1, 3, 8, 8], **settings}}


# name, config, JSON path, parts of the message: value, what is allowed, remedy
BROKEN: list[tuple[str, Any, str, tuple[str, ...]]] = [
    ("not an object", ["djpq"], "$", ('["djpq"]', "an object with the keys model, input_info")),
    ("no compression", {}, "$.compression", ("missing", "an object, or a non-empty list of objects")),
    ("compression is a string", {"compression": "djpq"}, "$.compression", ('"djpq"', "an object, or")),
    ("compression is null", {"compression": None}, "$.compression", ("null", "an object, or")),
    ("empty compression list", {"compression": []}, "$.compression", ("[]", "a non-empty list")),
    ("entry is a string", {"compression": ["djpq"]}, "$.compression[0]", ('"djpq"', "give an object")),
    ("no algorithm", {"compression": {}}, "$.compression.algorithm", ("missing", 'one of "djpq"')),
    (
        "unknown algorithm",
        {"compression": {"algorithm": "DJQP"}},
        "$.compression.algorithm",
        ('unknown algorithm "DJQP"', 'closest known one is "djpq"', 'known: "djpq"'),
    ),
    (
        "algorithm of NNCF 2.x",
        {"compression": {"algorithm": "filter_pruning"}},
        "$.compression.algorithm",
        ('unknown algorithm "filter_pruning"', '"djpq" prunes', '"quantization": {"enabled": false}'),
    ),
    ("algorithm is a number", {"compression": {"algorithm": 1}}, "$.compression.algorithm", ("1", "djpq")),
    (
        "algorithm twice",
        {"compression": [{"algorithm": "djpq"}, {"algorithm": "djpq"}]},
        "$.compression[1].algorithm",
        ('"djpq"', "twice", "remove one"),
    ),
    ("misspelt top key", {**djpq(), "input_inf": {}}, "$.input_inf", ('"input_inf"', 'is "input_info"')),
    (
        "misspelt key",
        djpq(pruning={"gama": 0.5}),
        "$.compression.pruning.gama",
        ('unknown key "gama"', '"gamma"', "value 0.5"),
    ),
    (
        "misspelt key in a list",
        {"compression": [{"algorithm": "djpq", "pruning": {"Gamma": 1}}]},
        "$.compression[0].pruning.Gamma",
        ('closest known one is "gamma"',),
    ),
    (
        "key at the wrong place",
        djpq(gamma=1e-5),
        "$.compression.gamma",
        ("Move it to $.compression.pruning.gamma",),
    ),
    ("key that needs quotes", djpq(**{"a key": 1}), '$.compression["a key"]', ("unknown key",)),
    (
        "ratio is a percentage",
        djpq(target={"bops_ratio": 2}),
        "$.compression.target.bops_ratio",
        ("2 is not allowed", "greater than 0 and at most 1"),
    ),
    ("ratio is zero", djpq(target={"bops_ratio": 0}), "$.compression.target.bops_ratio", ("greater than 0",)),
    (
        "ratio is a string",
        djpq(target={"bops_ratio": "1/50"}),
        "$.compression.target.bops_ratio",
        ('"1/50"',),
    ),
    ("target is a number", djpq(target=0.02), "$.compression.target", ("0.02", "the keys bops_ratio")),
    ("gamma is negative", djpq(pruning={"gamma": -1}), "$.compression.pruning.gamma", ("at least 0",)),
    ("gamma is NaN", djpq(pruning={"gamma": float("nan")}), "$.compression.pruning.gamma", ("NaN", "finite")),
    ("beta is infinite", djpq(quantization={"beta": 1e999}), "$.compression.quantization.beta", ("finite",)),
    ("seed is astronomical", {**djpq(), "seed": 10**400}, "$.seed", ("finite number",)),
    (
        "epochs is a boolean",
        djpq(schedule={"epochs": True}),
        "$.compression.schedule.epochs",
        ("true is not",),
    ),
    ("gamma is a boolean", djpq(pruning={"gamma": False}), "$.compression.pruning.gamma", ("a number",)),
    (
        "epochs is a fraction",
        djpq(schedule={"epochs": 1.5}),
        "$.compression.schedule.epochs",
        ("an integer",),
    ),
    ("no epochs", djpq(schedule={"epochs": 0}), "$.compression.schedule.epochs", ("0", "at least 1")),
    (
        "enabled is a string",
        djpq(pruning={"enabled": "yes"}),
        "$.compression.pruning.enabled",
        ("true or false",),
    ),
    (
        "misspelt dimension",
        djpq(pruning={"dimensions": {"heads": False}}),
        "$.compression.pruning.dimensions.heads",
        ('unknown key "heads"', '"attention_heads"'),
    ),
    (
        "no dimension left",
        djpq(
            pruning={
                "dimensions": dict.fromkeys(
                    ("hidden", "residual", "attention_heads", "query_key_width", "value_width"), False
                )
            }
        ),
        "$.compression.pruning.dimensions",
        ("every one is false", "pruning.enabled to false"),
    ),
    ("bits too many", weights(bits=16), "$.compression.quantization.weights.bits", ("16", "from 2 to 8")),
    ("bits too few", weights(min_bits=1), "$.compression.quantization.weights.min_bits", ("from 2 to 8",)),
    (
        "minimum above maximum",
        weights(min_bits=6, max_bits=4),
        "$.compression.quantization.weights.min_bits",
        ("6 is greater than max_bits, 4", "lower it"),
    ),
    (
        "start below the minimum",
        weights(min_bits=7),
        "$.compression.quantization.weights.initial_bits",
        ("6 lies outside", "from 7 to 8"),
    ),
    (
        "start above the maximum",
        djpq(quantization={"activations": {"max_bits": 4}}),
        "$.compression.quantization.activations.initial_bits",
        ("8 lies outside", "from 2 to 4"),
    ),
    (
        "fixed bits not a power of two",
        djpq(quantization={"power_of_two": True, "weights": {"bits": 3}}),
        "$.compression.quantization.weights.bits",
        ("3 is not allowed while power_of_two", "give 2, 4 or 8"),
    ),
    (
        "no power of two between",
        djpq(quantization={"power_of_two": True, "weights": {"min_bits": 5, "max_bits": 7}}),
        "$.compression.quantization.weights.min_bits",
        ("between 5 and max_bits, 7", "widen"),
    ),
    (
        "no power of two below 8 bits",
        djpq(quantization={"power_of_two": True, "overflow_fix": "enable", "weights": {"bits": 8}}),
        "$.compression.quantization.overflow_fix",
        ('"enable" leaves weights 7 bits', "from 8 to 7", '"disable"'),
    ),
    (
        "misspelt overflow_fix",
        djpq(quantization={"overflow_fix": "first_layer"}),
        "$.compression.quantization.overflow_fix",
        ('"first_layer"', '"first_layer_only"'),
    ),
    (
        "freeze after the end",
        djpq(schedule={"epochs": 5, "freeze_epoch": 5}),
        "$.compression.schedule.freeze_epoch",
        ("5 is not below schedule.epochs, 5", "below 5"),
    ),
    (
        "both halves off",
        djpq(pruning={"enabled": False}, quantization={"enabled": False}),
        "$.compression.quantization.enabled",
        ("pruning.enabled", "set one of the two to true"),
    ),
    (
        "target with gamma",
        djpq(pruning={"gamma": 1e-5}, target={"bops_ratio": 0.01}),
        "$.compression.pruning.gamma",
        ("1e-05", "target.bops_ratio 0.01", "remove pruning.gamma"),
    ),
    (
        "target with beta",
        djpq(quantization={"beta": 0}, target={"bops_ratio": 0.01}),
        "$.compression.quantization.beta",
        ("remove quantization.beta",),
    ),
    (
        "target with nothing to learn",
        djpq(
            pruning={"enabled": False},
            quantization={"weights": {"bits": 4}, "activations": {"bits": 4}},
            target={"bops_ratio": 0.01},
        ),
        "$.compression.target.bops_ratio",
        ("0.01", "bit-widths are fixed", "remove it"),
    ),
    (
        "an option of learned gates",
        djpq(pruning={"lr_multiplier": 30}),
        "$.compression.pruning.lr_multiplier",
        ('30 is for gates that are learned, and criterion "fisher" learns none', 'to "information_bottleneck"'),
    ),
    (
        "noise of the other criterion",
        djpq(pruning={"criterion": "information_bottleneck", "noise": 0.1}),
        "$.compression.pruning.noise",
        ('0.1 is for criterion "fisher"', "remove it"),
    ),
    (
        "margin of the other criterion",
        djpq(pruning={"criterion": "information_bottleneck", "bit_margin": 0.5}),
        "$.compression.pruning.bit_margin",
        ('0.5 is for criterion "fisher"', "remove it"),
    ),
    (
        "MACs without pruning",
        djpq(pruning={"enabled": False}, target={"macs_ratio": 0.5}),
        "$.compression.target.macs_ratio",
        ("0.5 cannot be steered to", "pruning is off", "remove it, or enable pruning"),
    ),
    (
        "size with fixed weights",
        djpq(pruning={"enabled": False}, quantization={"weights": {"bits": 4}}, target={"size_ratio": 0.1}),
        "$.compression.target.size_ratio",
        ("bit-widths are fixed (weights)", "set bits of weights to null"),
    ),
    (
        "another target with gamma",
        djpq(pruning={"gamma": 1e-5}, target={"size_ratio": 0.1}),
        "$.compression.pruning.gamma",
        ("target.size_ratio 0.1", "remove pruning.gamma"),
    ),
    (
        "neither target nor strength",
        djpq(target={"bops_ratio": None}),
        "$.compression.target.bops_ratio",
        ("null", "nothing would drive"),
    ),
    (
        "unknown estimator",
        djpq(initializer={"range": {"type": "mean_min_max"}}),
        "$.compression.initializer.range.type",
        ('"mean_min_max"', 'one of "mse", "min_max", "percentile"', 'the closest is "min_max"'),
    ),
    (
        "percentile of 0",
        djpq(initializer={"range": {"params": {"percentile": 0}}}),
        "$.compression.initializer.range.params.percentile",
        ("at most 100",),
    ),
    (
        "pattern is not a regex",
        djpq(ignored_scopes=["conv1", "{re}conv("]),
        "$.compression.ignored_scopes[1]",
        ('"{re}conv("', "not a regular expression", "position 4"),
    ),
    (
        "single pattern is not a regex",
        djpq(pruning={"target_scopes": "{re}*"}),
        "$.compression.pruning.target_scopes",
        ("nothing to repeat", "correct the pattern"),
    ),
    (
        "pattern in an object is not a regex",
        djpq(ignored_scopes={"patterns": ["["]}),
        "$.compression.ignored_scopes.patterns[0]",
        ("not a regular expression",),
    ),
    ("empty pattern", djpq(ignored_scopes="{re}"), "$.compression.ignored_scopes", ("matches everything",)),
    ("scope is a number", djpq(ignored_scopes=3), "$.compression.ignored_scopes", ("3", "or an object")),
    (
        "subgraphs in a scope",
        djpq(ignored_scopes={"name": ["conv1"]}),
        "$.compression.ignored_scopes.name",
        ('closest known one is "names"',),
    ),
    ("unknown device", {**djpq(), "target_device": "cpu"}, "$.target_device", ('"cpu"', 'closest is "CPU"')),
    ("negative seed", {**djpq(), "seed": -1}, "$.seed", ("-1", "from 0")),
    (
        "no sample size",
        {**djpq(), "input_info": {}},
        "$.input_info.sample_size",
        ("missing", "a non-empty list"),
    ),
    ("empty sample size", inputs(sample_size=[]), "$.input_info.sample_size", ("[]", "non-empty")),
    ("sample size 0", inputs(sample_size=[1, 0]), "$.input_info.sample_size[1]", ("0", "at least 1")),
    (
        "sample size -1",
        inputs(sample_size=[1, 3, -1, 224]),
        "$.input_info.sample_size[2]",
        ("-1", "at least 1", "the example's", "dynamic.dims"),
    ),
    ("dynamic without dims", inputs(dynamic={}), "$.input_info.dynamic.dims", ("missing", "list of integers")),
    ("dynamic batch", inputs(dynamic={"dims": [0]}), "$.input_info.dynamic.dims[0]", ("0", "at least 1")),
    (
        "no such dimension",
        inputs(dynamic={"dims": [2, 4]}),
        "$.input_info.dynamic.dims[1]",
        ("4", "[1, 3, 8, 8]", "the batch"),
    ),
    (
        "example of one",
        {**djpq(), "input_info": [{"sample_size": [1, 1], "dynamic": {"dims": [1]}}]},
        "$.input_info[0].dynamic.dims[0]",
        ("is 1", "at least 2"),
    ),
    (
        "example outside the sizes",
        inputs(dynamic={"dims": [3], "min": 4, "max": 32, "multiple_of": 16}),
        "$.input_info.dynamic.dims[0]",
        ("is 8", "multiple_of 16", "give an example"),
    ),
    ("empty input list", {**djpq(), "input_info": []}, "$.input_info", ("[]", "non-empty")),
    (
        "second input wrong",
        {**djpq(), "input_info": [{"sample_size": [1]}, {"sample_size": [1], "type": "double"}]},
        "$.input_info[1].type",
        ('"double"', 'one of "float", "long"'),
    ),
    (
        "array in Python",
        inputs(sample_size=np.array([1, 3])),
        "$.input_info.sample_size",
        ("ndarray", "a list"),
    ),
    ("key is not a string", djpq(pruning={1: 2}), "$.compression.pruning", ("key 1", "quotes")),
]


@pytest.mark.parametrize(("config", "path", "parts"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_config(config: Any, path: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        NNCFConfig.from_dict(config)
    headline, *problems = str(caught.value).splitlines()
    assert headline == "The config is not valid, 1 error:"
    assert len(problems) == 1
    assert problems[0].startswith(f"  - {path}: ")
    for part in parts:
        assert part in problems[0]


def test_all_errors_are_reported_at_once() -> None:
    config = {
        "seed": "x",
        "compression": [
            {
                "algorithm": "djpq",
                "pruning": {"gama": 1, "round_to": 0},
                "quantization": {
                    "beta": float("inf"),
                    "weights": {"min_bits": 5, "max_bits": 3, "initial_bits": 4},
                },
                "schedule": {"epochs": 2, "freeze_epoch": 9},
            },
            {"algorithm": "nope"},
        ],
    }
    with pytest.raises(ConfigError) as caught:
        NNCFConfig.from_dict(config)
    headline, *problems = str(caught.value).splitlines()
    assert headline.endswith("7 errors:")
    assert {problem.removeprefix("  - ").split(": ")[0] for problem in problems} == {
        "$.seed",
        "$.compression[0].pruning.gama",
        "$.compression[0].pruning.round_to",
        "$.compression[0].quantization.beta",
        "$.compression[0].quantization.weights.min_bits",
        "$.compression[0].schedule.freeze_epoch",
        "$.compression[1].algorithm",
    }


def test_long_values_are_shortened() -> None:
    with pytest.raises(ConfigError) as caught:
        NNCFConfig.from_dict(djpq(schedule={"epochs": "x" * 10_000}))
    assert len(str(caught.value)) < 300


def test_an_edited_config_is_checked_again() -> None:
    config = NNCFConfig.from_dict(djpq())
    config["compression"]["pruning"] = {"gama": 1}
    with pytest.raises(ConfigError, match=r"\$\.compression\.pruning\.gama"):
        _ = config.algorithms
