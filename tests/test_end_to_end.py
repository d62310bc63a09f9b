# SPDX-License-Identifier: Apache-2.0
"""From a config to saved files: what is written is small, runs in INT8, computes the same and costs what was said."""

import random
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.fx import GraphModule
from torchvision.models import DenseNet, MobileNetV2, ResNet
from torchvision.models.resnet import Bottleneck

from djpq_nncf import create_compressed_model
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.cost import recount
from djpq_nncf.export import export_model, round_biases, verify_export
from djpq_nncf.nn import FrozenActivationQuantizer, FrozenWeightQuantizer
from tests.export.helpers import make_exact
from tests.hardware import OVERFLOW_FIX
from tests.helpers import FEW_INVERTED_RESIDUALS, VGG7, strip

# Neither a target nor a strength: channels and bits are what the test sets.
QUANTIZATION = {"beta": 0.0, "overflow_fix": OVERFLOW_FIX}
CONFIG = {"compression": {"algorithm": "djpq", "pruning": {"gamma": 0.0}, "quantization": QUANTIZATION}}

# The blocks as published, fewer of them: an export takes its time by the node. The zoo has the whole networks.
NETWORKS = {
    "vgg7": lambda: VGG7(width=32),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "bottlenecks": lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10),
    "mobilenet_v2": lambda: MobileNetV2(10, inverted_residual_setting=FEW_INVERTED_RESIDUALS),
    "densenet": lambda: DenseNet(block_config=(2, 3, 3, 2), num_classes=10),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_saved_files_agree_run_in_int8_and_cost_what_was_reported(network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    controller, model = create_compressed_model(make_exact(NETWORKS[network]()), CONFIG, init_data=[images])
    assert isinstance(controller, DJPQController)
    _choose_at_random(controller)
    controller._data = None  # keeps the BatchNorm statistics of make_exact
    controller.freeze()
    with torch.no_grad():
        smaller = strip(controller._network)
        assert torch.allclose(smaller(images), model.eval()(images), rtol=1e-4, atol=1e-4)
    stripped = controller.strip()
    _snap_steps(stripped)
    round_biases(stripped)  # to the steps that there are now
    statistics = controller.statistics().djpq

    for suffix in ("xml", "onnx"):
        path = tmp_path / f"{network}.{suffix}"
        export_model(stripped, path)
        found, cost = verify_export(path, stripped, images), recount(path)

        assert found.max_relative_difference < 1e-5
        assert found.int8_mac_share == 1
        assert cost.macs == statistics.macs
        assert cost.bops == statistics.bops
        original = sum(parameter.numel() for parameter in NETWORKS[network]().parameters()) * 4
        size = sum(file.stat().st_size for file in tmp_path.glob(f"{network}.*") if file.suffix != ".xml")
        assert size < original / 4


def _choose_at_random(controller: DJPQController) -> None:
    """Close a random part of every group, some nearly whole, and draw every bit-width."""
    generator = random.Random(0)
    for group in controller.groups.values():
        closed = generator.choice([group.size // 4, group.size // 2, group.size - 1])
        group.close(generator.sample(range(group.size), min(closed, group.size - 1)))
    for quantizer in controller._bits.quantizers.values():
        if quantizer.bits is None:
            quantizer.initialize_(float(quantizer.range().detach()), generator.randint(3, 8))


def _snap_steps(model: GraphModule) -> None:
    """Steps become powers of two: sums are then exact in float, and only a wrong graph can make runtimes differ."""
    for node in model.graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()
        if isinstance(module, FrozenWeightQuantizer):
            weight = model.get_parameter(str(node.args[0].target))
            codes = module.codes(weight.detach())
            module.step.copy_(_power_of_two(module.step))
            weight.data = codes * module.step
        elif isinstance(module, FrozenActivationQuantizer):
            module.step.copy_(_power_of_two(module.step))


def _power_of_two(step: torch.Tensor) -> torch.Tensor:
    return torch.exp2(torch.log2(step).round())
