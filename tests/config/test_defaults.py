# SPDX-License-Identifier: Apache-2.0
"""What holds when the user says nothing, and that what the user says stays as it was written."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from djpq_nncf.config import DynamicInfo, InputInfo, NNCFConfig
from djpq_nncf.errors import ConfigError

MINIMAL = {"compression": {"algorithm": "djpq"}}


def settings(**given: Any) -> dict[str, Any]:
    return NNCFConfig.from_dict({"compression": {"algorithm": "djpq", **given}}).algorithms[0]


def test_algorithm_alone_is_enough() -> None:
    assert settings() == {
        "algorithm": "djpq",
        "preset": None,
        "target": {"bops_ratio": 0.02, "macs_ratio": None, "size_ratio": None},
        "schedule": {"epochs": 10, "freeze_epoch": None, "steps_per_epoch": None, "ramp": 0.5},
        "pruning": {
            "enabled": True,
            "gamma": None,
            "criterion": "fisher",
            "threshold": 1.0,
            "temperature": 1.0,
            "lr_multiplier": 10.0,
            "initial_log_variance": -6.0,
            "noise": 0.0,
            "bit_margin": None,
            "cost_weighted": True,
            "round_to": None,
            "dimensions": {
                "hidden": True,
                "residual": True,
                "attention_heads": True,
                "query_key_width": True,
                "value_width": True,
            },
            "ignored_scopes": [],
            "target_scopes": None,
        },
        "quantization": {
            "enabled": True,
            "beta": None,
            "power_of_two": False,
            "overflow_fix": "disable",
            "lr_multiplier": None,
            "range_lr_multiplier": 1.0,
            "ignored_scopes": [],
            "target_scopes": None,
            "weights": {
                "bits": None,
                "initial_bits": 6,
                "min_bits": 2,
                "max_bits": 8,
                "learn_exponent": False,
            },
            "activations": {
                "mode": "auto",
                "bits": None,
                "initial_bits": 8,
                "min_bits": 2,
                "max_bits": 8,
                "input_bits": 8,
            },
        },
        "compression_lr_multiplier": 1.0,
        "ignored_scopes": [],
        "target_scopes": None,
        "initializer": {
            "range": {"num_init_samples": 256, "type": "mse", "params": {"percentile": 99.99}},
            "batchnorm_adaptation": {"num_bn_adaptation_samples": 2048},
            "bias_correction": {"num_bias_correction_samples": 256},
        },
    }


def test_the_preset_of_the_paper_gives_way_to_what_is_written() -> None:
    paper = settings(preset="paper")
    assert not paper["pruning"]["cost_weighted"]
    assert paper["pruning"]["round_to"] == 1
    assert paper["quantization"]["weights"]["learn_exponent"]
    assert paper["quantization"]["activations"]["mode"] == "symmetric"

    mixed = settings(preset="paper", pruning={"round_to": 4}, quantization={"weights": {"learn_exponent": False}})
    assert mixed["pruning"] == {**paper["pruning"], "round_to": 4}
    assert not mixed["quantization"]["weights"]["learn_exponent"]
    assert mixed["quantization"]["activations"] == paper["quantization"]["activations"]

    with pytest.raises(ConfigError, match=r"\$\.compression\.preset"):
        settings(preset="article")


def test_top_level_defaults() -> None:
    config = NNCFConfig.from_dict(MINIMAL)
    assert config == MINIMAL
    assert (config.target_device, config.seed, config.log_dir) == ("ANY", 0, Path("runs"))
    assert config.input_infos == ()
    assert config.resolved()["model"] is None


@pytest.mark.parametrize(
    ("device", "quantization", "expected"),
    [
        ("ANY", {}, (None, 2, None, 2, False, 0.02)),
        ("CPU", {}, (8, 2, 8, 2, False, 0.03125)),
        ("GPU", {}, (8, 2, 8, 2, False, 0.03125)),
        ("NPU", {}, (None, 4, None, 4, True, 0.02)),
        ("CPU", {"weights": {"min_bits": 4}}, (None, 4, 8, 2, False, 0.02)),
        ("CPU", {"weights": {"bits": None}, "activations": {"bits": None}}, (None, 2, None, 2, False, 0.02)),
        ("NPU", {"power_of_two": False}, (None, 2, None, 2, False, 0.02)),
        ("NPU", {"weights": {"bits": 5}}, (5, 2, None, 2, False, 0.02)),
    ],
)
def test_bits_of_the_device(device: str, quantization: dict[str, Any], expected: tuple[Any, ...]) -> None:
    config = {"target_device": device, "compression": {"algorithm": "djpq", "quantization": quantization}}
    (given,) = NNCFConfig.from_dict(config).algorithms
    weights, activations = given["quantization"]["weights"], given["quantization"]["activations"]
    assert expected == (
        *(weights["bits"], weights["min_bits"], activations["bits"], activations["min_bits"]),
        *(given["quantization"]["power_of_two"], given["target"]["bops_ratio"]),
    )


def test_given_values_stay() -> None:
    given = settings(pruning={"round_to": 8}, quantization={"weights": {"bits": 4}})
    assert given["pruning"]["round_to"] == 8
    assert given["pruning"]["threshold"] == 1.0
    assert given["quantization"]["weights"]["bits"] == 4


@pytest.mark.parametrize(
    ("given", "ratio"),
    [
        ({"pruning": {"gamma": 1e-5}}, None),
        ({"quantization": {"beta": 0}}, None),
        ({"pruning": {"gamma": None}, "quantization": {"beta": None}}, 0.02),
        ({"pruning": {"enabled": False, "gamma": 1e-5}}, 0.02),
        (
            {
                "pruning": {"enabled": False},
                "quantization": {"weights": {"bits": 8}, "activations": {"bits": 8}},
            },
            None,
        ),
        ({"quantization": {"enabled": False}}, 0.5),
        ({"target": {"size_ratio": 0.1}}, None),
        ({"target": {"macs_ratio": 0.5, "bops_ratio": 0.1}}, 0.1),
    ],
    ids=[
        "gamma",
        "beta of 0",
        "both null",
        "gamma of a half that is off",
        "nothing to learn",
        "pruning alone",
        "another target",
        "two targets",
    ],
)
def test_target_is_the_default_only_where_nothing_else_drives(given: dict[str, Any], ratio: float | None) -> None:
    assert settings(**given)["target"]["bops_ratio"] == ratio


def test_numbers_get_the_type_of_the_schema() -> None:
    given = settings(schedule={"epochs": 4.0, "steps_per_epoch": 1e3, "ramp": 1})
    assert [type(given["schedule"][key]) for key in ("epochs", "steps_per_epoch", "ramp")] == [
        int,
        int,
        float,
    ]


def test_object_and_list_mean_the_same() -> None:
    one = NNCFConfig.from_dict({**MINIMAL, "input_info": {"sample_size": [1, 3, 8, 8]}})
    many = NNCFConfig.from_dict(
        {"compression": [MINIMAL["compression"]], "input_info": [{"sample_size": (1, 3, 8, 8)}]}
    )
    assert one.resolved() == many.resolved()
    assert one.input_infos == (InputInfo((1, 3, 8, 8), "float", None, "random"),)


def test_several_inputs() -> None:
    config = NNCFConfig.from_dict(
        {
            **MINIMAL,
            "input_info": [
                {"sample_size": [2, 16], "type": "long", "keyword": "input_ids"},
                {"sample_size": [2, 16], "filler": "ones", "dynamic": {"dims": [1], "max": 64}},
            ],
        }
    )
    assert config.input_infos == (
        InputInfo((2, 16), "long", "input_ids", "random"),
        InputInfo((2, 16), "float", None, "ones", DynamicInfo((1,), None, 64, 1)),
    )


def test_config_is_a_copy() -> None:
    given = copy.deepcopy(MINIMAL)
    config = NNCFConfig.from_dict(given)
    config["compression"]["algorithm"] = "changed"
    assert given == MINIMAL


def test_resolving_changes_nothing() -> None:
    config = NNCFConfig.from_dict(MINIMAL)
    config.algorithms[0]["pruning"]["enabled"] = False
    assert config == MINIMAL
    assert config.algorithms[0]["pruning"]["enabled"] is True


def test_resolved_config_is_a_config() -> None:
    resolved = NNCFConfig.from_dict(MINIMAL).resolved()
    resolved["compression"][0]["target"]["bops_ratio"] = 0.01
    assert NNCFConfig.from_dict(resolved).resolved() == resolved


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))],
    ids=["deepcopy", "pickle"],
)
def test_copies_stay_configs(duplicate: Any) -> None:
    config = NNCFConfig.from_dict(MINIMAL)
    assert isinstance(duplicate(config), NNCFConfig)
    assert duplicate(config).algorithms == config.algorithms


def test_epochs_are_those_of_the_algorithm_that_trains() -> None:
    teacher = {"algorithm": "knowledge_distillation", "type": "softmax"}
    djpq = {"algorithm": "djpq", "schedule": {"epochs": 7}}
    assert NNCFConfig.from_dict({"compression": [teacher, djpq]}).epochs == 7
    with pytest.raises(ConfigError, match=r"no algorithm that trains is there \(knowledge_distillation\)"):
        _ = NNCFConfig.from_dict({"compression": teacher}).epochs
