# SPDX-License-Identifier: Apache-2.0
"""Products of activations, weights in any position and tables in exported files: INT8, exact, and counted."""

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule

from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.algorithms.djpq._statistics import DJPQStatistics
from djpq_nncf.capture import capture
from djpq_nncf.cost import recount
from djpq_nncf.export import export_model, verify_export
from djpq_nncf.export._runtime import open_runtime
from tests.attention import CASES, LENGTH, WIDTH, WORDS
from tests.export.transformers import compress, share_of_equal_samples

FORMATS = ["xml", "onnx"]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, GraphModule, DJPQStatistics]:
    torch.manual_seed(0)
    controller = compress(CASES[request.param].make(), *CASES[request.param].inputs)
    return request.param, controller.strip(), controller.statistics().djpq


@pytest.mark.parametrize("suffix", FORMATS)
def test_file_runs_in_int8_and_costs_what_was_reported(
    suffix: str, case: tuple[str, GraphModule, DJPQStatistics], tmp_path: Path
) -> None:
    name, stripped, statistics = case
    path = tmp_path / f"net.{suffix}"
    export_model(stripped, path)
    inputs = tuple(x.repeat(8, *(1,) * (x.dim() - 1)) for x in CASES[name].inputs)

    cost = recount(path)

    assert [(layer.name, layer.macs) for layer in cost.layers] == [
        (x.name, x.macs) for x in _in_order(cost, statistics)
    ]
    assert [(layer.weight_bits, layer.activation_bits) for layer in cost.layers] == [
        (layer.weight_bits, layer.activation_bits) for layer in _in_order(cost, statistics)
    ]
    assert (cost.macs, cost.bops) == (statistics.macs, statistics.bops)
    assert share_of_equal_samples(path, stripped, inputs) > 0.7
    found = verify_export(path, stripped, dict(zip(_names(stripped), inputs, strict=True)))
    assert found.max_relative_difference < 0.05
    # parameters on the left of a product, and several of whose dimensions are summed over
    floating = {"xml": {"matmul_1"}, "onnx": {"matmul_1", "einsum_2"}}[suffix] if name == "written_out" else set()
    assert {layer.name for layer in found.layers if not layer.int8} <= floating


def _in_order(cost: object, statistics: DJPQStatistics) -> list[object]:
    by_name = {layer.name: layer for layer in statistics.layers}
    return [by_name[layer.name] for layer in cost.layers]  # type: ignore[attr-defined]


def _names(stripped: GraphModule) -> list[str]:
    return [spec.name for spec in stripped.meta["djpq_inputs"]]


def test_openvino_runs_attention_in_one_int8_kernel(tmp_path: Path) -> None:
    """Both products, their scale, the masks and softmax."""
    block = CASES["block"]
    export_model(compress(block.make(), *block.inputs).strip(), tmp_path / "net.xml")
    compiled = ov.Core().compile_model(tmp_path / "net.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kernels = {
        node.get_rt_info()["originalLayersNames"].astype(str): node.get_rt_info()["primitiveType"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
    }
    (fused,) = (primitive for names, primitive in kernels.items() if "attention.matmul#2" in names.split(","))
    assert fused.lower().endswith("_i8")


@pytest.mark.parametrize("suffix", FORMATS)
def test_tables_are_stored_once_and_small(suffix: str, tmp_path: Path) -> None:
    causal = CASES["causal"]
    stripped = compress(causal.make(), *causal.inputs).strip()
    path = tmp_path / f"net.{suffix}"
    export_model(stripped, path)
    weights = _constants(path)
    tables = [value for value in weights if value.shape in ((WORDS, WIDTH), (WIDTH, WORDS))]
    assert [table.dtype for table in tables] == [np.int8]
    assert all(value.dtype == np.int8 for value in weights if value.size > 4 * LENGTH * LENGTH)


def _constants(path: Path) -> list[NDArray[np.generic]]:
    if path.suffix == ".onnx":
        return [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return [node.data for node in ov.Core().read_model(path).get_ops() if node.get_type_name() == "Constant"]


def test_onnx_looks_up_codes(tmp_path: Path) -> None:
    """Not numbers: the whole table would be converted for every sample."""
    block = CASES["block"]
    path = tmp_path / "net.onnx"
    export_model(compress(block.make(), *block.inputs).strip(), path)
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    gathers = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in stored]
    assert [stored[node.input[0]] for node in gathers] == 2 * [onnx.TensorProto.INT8]


def test_onnx_says_nothing_about_the_source_code(tmp_path: Path) -> None:
    block = CASES["block"]
    path = tmp_path / "net.onnx"
    export_model(compress(block.make(), *block.inputs).strip(), path)
    assert b"attention.py" not in path.read_bytes()
    assert b"forward" not in path.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_epsilon_is_added_to_the_variance_of_numbers(suffix: str, tmp_path: Path) -> None:
    """OpenVINO would carry the scale of the tables' codes through LayerNorm, and add it to the variance of codes."""
    block = CASES["block"]
    model = block.make()
    for table in (model.words, model.positions):
        nn.init.normal_(table.weight, std=3e-3)
    stripped = compress(model, *block.inputs).strip()
    export_model(stripped, tmp_path / f"net.{suffix}")
    assert share_of_equal_samples(tmp_path / f"net.{suffix}", stripped, block.inputs) > 0.7


@pytest.mark.parametrize("suffix", FORMATS)
def test_float_products_have_names_too(suffix: str, tmp_path: Path) -> None:
    block = CASES["block"]
    controller = compress(block.make(), *block.inputs, quantized=False)
    assert isinstance(controller, DJPQController)
    stripped = controller.strip()
    path = tmp_path / f"net.{suffix}"
    export_model(stripped, path)
    assert share_of_equal_samples(path, stripped, block.inputs) == 1
    assert open_runtime(path).input_names == ("tokens", "mask")


class Constant(nn.Module):
    """A bias that layers make of a constant: computed once, so that it costs a sample nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.bias = (
            nn.Linear(WIDTH, WIDTH),
            nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, WIDTH)),
        )
        self.register_buffer("places", torch.randn(LENGTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.bias(self.places)


@pytest.mark.parametrize("suffix", FORMATS)
def test_layers_on_constants_are_not_counted(suffix: str, tmp_path: Path) -> None:
    controller = compress(Constant(), torch.randn(2, LENGTH, WIDTH))
    export_model(controller.strip(), tmp_path / f"net.{suffix}")
    cost = recount(tmp_path / f"net.{suffix}")
    assert [layer.name for layer in cost.layers] == ["layer"]
    assert cost.bops == controller.statistics().djpq.bops


class Biased(nn.Module):
    """Relative positions are added to all scores but those of the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.positions = nn.Parameter(torch.randn(LENGTH - 1, LENGTH - 1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        scores[:, 1:, 1:] += self.positions
        return scores.softmax(-1) @ self.value(x)


@pytest.mark.parametrize("suffix", FORMATS)
def test_something_is_added_to_a_part_of_a_product(suffix: str, tmp_path: Path) -> None:
    """OpenVINO would take what is put into the product for codes."""
    x = torch.randn(4, LENGTH, WIDTH)
    stripped = compress(Biased(), x, bits=range(8, 9)).strip()
    export_model(stripped, tmp_path / f"net.{suffix}")
    assert verify_export(tmp_path / f"net.{suffix}", stripped, x).max_relative_difference < 0.02


class Inferred(nn.Module):
    """How many heads there are is left to the view."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.inner(x).view(x.shape[0], x.shape[1], -1, 4).transpose(1, 2)
        return self.outer((heads @ heads.transpose(2, 3) @ heads).transpose(1, 2).reshape(x.shape[0], LENGTH, -1))


def test_openvino_knows_all_sizes_but_the_batch(tmp_path: Path) -> None:
    export_model(capture(Inferred(), (torch.randn(2, LENGTH, WIDTH),)), tmp_path / "net.xml")
    nodes = ov.Core().read_model(tmp_path / "net.xml").get_ops()
    shapes = [node.output(0).get_partial_shape() for node in nodes if node.get_type_name() == "MatMul"]
    assert len(shapes) == 4
    assert all(size.is_static for shape in shapes for size in list(shape)[1:])
    # written as numbers, from which nothing but the batch has to be inferred
    views = [node.input_value(1).get_node() for node in nodes if node.get_type_name() == "Reshape"]
    assert [view.get_type_name() for view in views] == ["Constant", "Constant"]
    assert sorted(view.data.tolist()[1:] for view in views) == [[LENGTH, WIDTH // 4, 4], [LENGTH, WIDTH]]


class Embedded(nn.Module):
    """Returns what it compares, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = (F.normalize(layer(x), dim=-1) for layer in (self.one, self.other))
        return one @ other.transpose(1, 2), other


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_output_that_is_read_inside_is_not_quantized(suffix: str, tmp_path: Path) -> None:
    """ONNX Runtime moves the quantizer of the product backward through the transposition."""
    x = torch.randn(4, LENGTH, WIDTH)
    stripped = compress(Embedded(), x, bits=range(4, 5)).strip()
    export_model(stripped, tmp_path / f"net.{suffix}")
    expected = stripped(x)[1].detach().numpy()
    actual = open_runtime(tmp_path / f"net.{suffix}").run([x.numpy()])[1]
    assert (np.abs(actual - expected) < 1e-5).mean() > 0.9
