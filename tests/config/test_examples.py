# SPDX-License-Identifier: Apache-2.0
"""The configurations that ship as examples."""

from pathlib import Path

import pytest

from djpq_nncf.config import NNCFConfig

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*.json"))


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_example_is_valid(file: Path) -> None:
    config = NNCFConfig.from_json(file)
    assert config.algorithms[0]["algorithm"] == "djpq"
    assert config.input_infos


@pytest.mark.parametrize(
    ("name", "gamma", "beta", "pruning_lr", "quantization_lr", "weight_bits"),
    [("resnet18", 1e-5, 1e-10, 5, 0.05, 6), ("mobilenet_v2", 1e-8, 1e-11, 1, 0.005, 8)],
)
def test_appendix_b3(
    name: str, gamma: float, beta: float, pruning_lr: float, quantization_lr: float, weight_bits: int
) -> None:
    """Wang et al. (2020), Appendix B.3."""
    (file,) = (file for file in EXAMPLES if file.stem == f"{name}_djpq")
    settings = NNCFConfig.from_json(file).algorithms[0]
    pruning, quantization = settings["pruning"], settings["quantization"]
    assert (pruning["gamma"], quantization["beta"]) == (gamma, beta)
    assert (pruning["lr_multiplier"], quantization["lr_multiplier"]) == (pruning_lr, quantization_lr)
    assert quantization["range_lr_multiplier"] == quantization_lr
    assert quantization["weights"]["initial_bits"] == weight_bits
    assert (quantization["activations"]["initial_bits"], quantization["activations"]["input_bits"]) == (8, 8)
    assert pruning["threshold"] == 1e-3
    assert settings["target"]["bops_ratio"] is None
