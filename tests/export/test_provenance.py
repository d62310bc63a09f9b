# SPDX-License-Identifier: Apache-2.0
"""What an exported file says about itself."""

import json
from importlib.metadata import version
from pathlib import Path

import onnx
import openvino as ov
import pytest
import torch
from torch import Tensor, nn

from djpq_nncf import CompressionController, NNCFConfig, create_compressed_model, read_provenance
from djpq_nncf.capture import capture
from djpq_nncf.cost import recount
from djpq_nncf.errors import ExportError
from djpq_nncf.export import LayerProvenance, export_model

FORMATS = ["xml", "onnx"]
CONFIG = {
    "input_info": {"sample_size": [2, 3, 12, 12]},
    "log_dir": "/home/someone/logs",
    "compression": {
        "algorithm": "djpq",
        "pruning": {"gamma": 0},
        "quantization": {"weights": {"bits": 4}, "activations": {"bits": 5}},
    },
}


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def ctrl() -> CompressionController:
    torch.manual_seed(0)
    ctrl, _ = create_compressed_model(_Net(), CONFIG, init_data=[torch.randn(8, 3, 12, 12)])
    ctrl.groups["first"].close([1, 2, 5])
    ctrl.freeze()
    return ctrl


@pytest.fixture(scope="module", params=FORMATS)
def path(request: pytest.FixtureRequest, ctrl: CompressionController, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("provenance") / f"net.{request.param}"
    ctrl.export_model(path)
    return path


def test_bits_and_channels_are_those_of_the_network(path: Path) -> None:
    found = read_provenance(path)
    assert found is not None
    assert found.layers == (
        LayerProvenance("first", "conv2d", 4, 8, (3, 3), (5, 8)),  # the input of the network has 8 bits by default
        LayerProvenance("second", "conv2d", 4, 5, (5, 8), (6, 6)),
        LayerProvenance("head", "linear", 4, 5, (6, 6), (4, 4)),
    )
    counted = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in recount(path).layers}
    assert counted == {layer.name: (layer.weight_bits, layer.activation_bits) for layer in found.layers}


def test_config_is_valid_complete_and_of_no_machine(path: Path) -> None:
    found = read_provenance(path)
    assert found is not None and found.config is not None
    again = NNCFConfig.from_dict(found.config)
    wanted = NNCFConfig.from_dict(CONFIG).resolved()
    assert "log_dir" not in found.config
    assert again.resolved() == {**wanted, "log_dir": again.resolved()["log_dir"]}
    assert b"/home/someone" not in path.read_bytes()
    assert str(Path.cwd()).encode() not in path.read_bytes()


def test_versions(path: Path) -> None:
    found = read_provenance(path)
    assert found is not None
    runtimes = ["openvino"] if path.suffix == ".xml" else ["onnx", "onnxruntime"]
    assert found.versions == {name: version(name) for name in ("djpq_nncf", "torch", "nncf", *runtimes)}


def test_plain_json_under_a_key_of_its_own(path: Path) -> None:
    if path.suffix == ".xml":
        model = ov.Core().read_model(path)
        stored = {key: model.get_rt_info(["djpq_nncf", key]).astype(str) for key in ("config", "layers", "versions")}
    else:
        entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        stored = {key: entries[f"djpq_nncf.{key}"] for key in ("config", "layers", "versions")}
    assert json.loads(stored["config"])["compression"][0]["quantization"]["weights"]["bits"] == 4
    assert json.loads(stored["layers"])[0]["out_channels"] == [5, 8]
    assert json.loads(stored["versions"])["nncf"] == version("nncf")


def test_stripped_model_carries_it_too(ctrl: CompressionController, path: Path, tmp_path: Path) -> None:
    other = tmp_path / path.name
    export_model(ctrl.strip(), other)
    assert read_provenance(other) == read_provenance(path)


def test_repeated_export_is_the_same(ctrl: CompressionController, path: Path, tmp_path: Path) -> None:
    other = tmp_path / path.name
    ctrl.export_model(other)
    # OpenVINO numbers nameless nodes through, as long as the process lasts
    data = path.with_suffix(".bin") if path.suffix == ".xml" else path
    assert (tmp_path / data.name).read_bytes() == data.read_bytes()
    assert read_provenance(other) == read_provenance(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_network_as_it_was(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net.{suffix}"
    export_model(capture(_Net().eval(), (torch.randn(2, 3, 12, 12),)), path)
    found = read_provenance(path)
    assert found is not None
    assert found.config is None and found.layers == ()


def test_file_of_something_else(tmp_path: Path) -> None:
    x = ov.opset13.parameter([1, 3])
    ov.save_model(ov.Model([ov.opset13.relu(x)], [x]), tmp_path / "net.xml")
    assert read_provenance(tmp_path / "net.xml") is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_unusable_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net.{suffix}"
    with pytest.raises(ExportError, match=rf"there is no file .*net\.{suffix}"):
        read_provenance(path)
    path.write_text("not a model")
    path.with_suffix(".bin").write_text("")
    with pytest.raises(ExportError, match="damaged"):
        read_provenance(path)
    with pytest.raises(ExportError, match=r"expected a \.xml"):
        read_provenance(tmp_path / "net.pt")
