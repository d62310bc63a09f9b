# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf inspect``."""

import json
import sys
from pathlib import Path
from typing import Any

import openvino
import pydot
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from djpq_nncf import create_compressed_model
from djpq_nncf.cli import app

NETWORKS = """
import torch
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Conv2d(6, 4, 1)
    def forward(self, x):
        return self.head(torch.cumsum(self.conv(x), dim=1))

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 3)
    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

def needs_argument(width):
    return small()

def fails():
    raise ValueError("no weights here")

def text():
    return "a network"

ready = small()
number = 3
"""

GROUPS = """\
Channel groups: 14 channels in 2 groups
├── hidden: 14 channels in 2 groups
│   ├── 0: 6 channels
│   │   ├── made by 0
│   │   ├── read by 3
│   │   └── along with 1
│   └── 3: 8 channels
│       ├── made by 3
│       └── read by 7
└── what stays, and why
    └── is an output of the network
        └── 7: 4 channels""".splitlines()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of networks, under a name of its own."""
    (tmp_path / "inspected_networks.py").write_text(NETWORKS)
    (tmp_path / "inspected_broken.py").write_text("import absent_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "inspected_networks", raising=False)
    return tmp_path


def inspect(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["inspect", *arguments])


def write_config(**entries: Any) -> str:
    Path("config.json").write_text(json.dumps({"compression": {"algorithm": "djpq"}, **entries}))
    return "config.json"


@pytest.mark.parametrize("factory", ["small", "ready"])
def test_layers_groups_and_quantizers(factory: str) -> None:
    result = inspect(f"inspected_networks:{factory}", "--input-shape", "1,3,8,8")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    macs = 64 * 6 * 27, 64 * 8 * 54, 32
    assert f"MACs per sample {sum(macs):,}" in lines
    assert f"BOPs per sample {1024 * sum(macs):,} (32-bit weights and activations)" in lines
    assert "prunable channels 14 in 2 groups" in lines
    tree = result.stdout[result.stdout.index("Channel groups") :].splitlines()
    assert tree[: tree.index("")] == GROUPS
    assert "input_1 input input_1 symmetric no 8 0" in lines
    assert any(line.startswith("relu 2 (relu) unsigned no learned 3") for line in lines)


def test_groups_alone() -> None:
    result = inspect("inspected_networks:small", "--input-shape", "1,3,8,8", "--groups")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == GROUPS


def test_groups_as_dot() -> None:
    result = inspect("inspected_networks:small", "--input-shape", "1,3,8,8", "--dot", "groups.dot")
    assert result.exit_code == 0, result.output
    assert "Layers before compression" in result.stdout
    (graph,) = pydot.graph_from_dot_file("groups.dot") or ()
    edges = [(edge.get_source().strip('"'), edge.get_destination().strip('"')) for edge in graph.get_edges()]
    assert edges == [
        ("layer 0", "group 0"),
        ("group 0", "layer 3"),
        ("layer 3", "group 3"),
        ("group 3", "layer 7"),
    ]


def test_dot_that_cannot_be_written() -> None:
    result = inspect("inspected_networks:small", "--input-shape", "1,3,8,8", "--dot", "absent/groups.dot")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 'absent/groups.dot' cannot be written")
    assert result.stdout == ""


def test_attention_and_what_is_switched_off() -> None:
    dimensions = {"value_width": False, "hidden": False}
    config = write_config(compression={"algorithm": "djpq", "pruning": {"dimensions": dimensions}})
    result = inspect("inspected_networks:Attention", config, "--input-shape", "1,5,8")
    assert result.exit_code == 0, result.output
    assert "qkv/attention_heads: 2 channels" in result.stdout
    assert "query_key_width: 4 channels in 1 group" in result.stdout
    *_, reason, layer = result.stdout[: result.stdout.index("Activation quantizers")].rstrip().splitlines()[:-2]
    assert reason.endswith("'pruning.dimensions.value_width' is off")
    assert layer.endswith("qkv: 4 channels of values")


def test_frozen_channels_come_with_the_operator() -> None:
    result = inspect("inspected_networks:Summed", "--input-shape", "1x3x8x8")
    assert result.exit_code == 0, result.output
    lines = [line.strip("│├└─ ") for line in result.stdout.splitlines()]
    reason = lines.index("aten::cumsum at 'cumsum' has no channel rule")
    assert lines[reason + 1] == "conv: 6 channels"


def test_config_gives_shape_and_scopes() -> None:
    compression = {"algorithm": "djpq", "quantization": {"ignored_scopes": ["7"]}, "pruning": {"enabled": False}}
    config = write_config(input_info={"sample_size": [1, 3, 8, 8]}, compression=compression)
    result = inspect("inspected_networks:small", config)
    assert result.exit_code == 0, result.output
    assert "Channel groups: none, nothing is pruned" in result.stdout
    (linear,) = (line for line in result.stdout.splitlines() if " linear " in line)
    assert linear.split()[-2:] == ["FP32", "FP32"]


def test_torchvision() -> None:
    result = inspect("torchvision:squeezenet1_1", "--input-shape", "1,3,64,64")
    assert result.exit_code == 0, result.output
    assert "features.3.expand3x3" in result.stdout


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("inspected_networks", "Write package.module:factory"),
        ("absent_module:net", "no Python module 'absent_module'"),
        ("inspected_broken:net", "Importing 'inspected_broken' raised ModuleNotFoundError"),
        ("inspected_networks:smal", "Did you mean 'small'?"),
        ("inspected_networks:fails", "raised ValueError: no weights here"),
        ("inspected_networks:needs_argument", "called without arguments, raised TypeError"),
        ("inspected_networks:text", "returned a str, not a torch.nn.Module"),
        ("inspected_networks:number", "is a int"),
        ("torchvision:resnet81", "Did you mean 'resnet18'?"),
    ],
)
def test_unusable_model_is_one_error(model: str, expected: str) -> None:
    result = inspect(model, "--input-shape", "1,3,8,8")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert expected in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("shape", ["", "3", "1,3,0,8", "1,3,-1", "one,3"])
def test_unusable_shape(shape: str) -> None:
    result = inspect("inspected_networks:small", "--input-shape", shape)
    assert result.exit_code == 1
    assert "--input-shape" in result.stderr


def test_unknown_shape() -> None:
    result = inspect("inspected_networks:small", write_config())
    assert result.exit_code == 1
    assert "--input-shape 1,3,224,224" in result.stderr
    assert "input_info" in result.stderr


def test_shape_that_does_not_fit() -> None:
    result = inspect("inspected_networks:small", "--input-shape", "1,4,8,8")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")


@pytest.fixture(params=["xml", "onnx"])
def exported(request: pytest.FixtureRequest, folder: Path) -> str:
    config = {"compression": {"algorithm": "djpq", "target": {"bops_ratio": 0.035}}}
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    ctrl, _ = create_compressed_model(model, config, init_data=[torch.randn(4, 3, 8, 8)])
    ctrl.groups["0"].close([0, 1, 2])
    ctrl.freeze()
    ctrl.export_model(folder / f"net.{request.param}")
    return f"net.{request.param}"


def test_exported_file(exported: str) -> None:
    result = inspect(exported)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"MACs per sample {36 * 5 * 27 + 16 * 4 * 45:,}" in lines
    assert any(line.startswith("written by djpq_nncf 0.1.0, torch") for line in lines)
    (first,) = (line for line in lines if line.startswith("0 conv2d"))
    assert first.endswith("3 of 3 5 of 8")
    config = json.loads(result.stdout[result.stdout.index("{") :])
    assert config["compression"][0]["target"]["bops_ratio"] == 0.035


def test_file_of_something_else() -> None:
    x = openvino.opset13.parameter([1, 3])
    openvino.save_model(openvino.Model([openvino.opset13.relu(x)], [x]), "net.xml")
    result = inspect("net.xml")
    assert result.exit_code == 0, result.output
    assert "not written by djpq_nncf" in result.stdout


def test_file_that_is_missing_or_comes_with_options(exported: str) -> None:
    result = inspect("absent.onnx")
    assert result.exit_code == 1
    assert "there is no file absent.onnx" in result.stderr
    result = inspect(exported, "--groups")
    assert result.exit_code == 1
    assert "without options" in result.stderr
