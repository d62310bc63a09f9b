# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf benchmark``."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from djpq_nncf.capture import capture
from djpq_nncf.cli import app
from djpq_nncf.export import export_model

NETWORKS = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""
FAST = ("--rounds", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "timed_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timed_networks", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    network = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), (torch.randn(2, 3, 8, 8),))
    for name in ("a.xml", "b.xml", "c.onnx"):
        export_model(network, folder / name)
    return folder


@pytest.fixture
def files(folder: Path, exported: Path) -> list[str]:
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    return ["a.xml", "b.xml", "c.onnx"]


def benchmark(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["benchmark", *arguments])


def test_files(files: list[str]) -> None:
    result = benchmark(*files, *FAST, "--batch", "1", "--batch", "3", "--json", "times.json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    found = json.loads(Path("times.json").read_text())
    rows = found["rows"]
    assert [(row["model"], row["runtime"], row["batch"], row["baseline"]) for row in rows] == [
        (name, "ONNX Runtime" if name == "c.onnx" else "OpenVINO", batch, "c.onnx" if name == "c.onnx" else "a.xml")
        for batch in (1, 3)
        for name in files
    ]
    assert (found["rounds"], found["threads"]) == (2, 1)
    assert set(found["versions"]) == {"djpq_nncf", "nncf", "onnxruntime", "openvino", "torch"}
    for row in rows:
        for kind in ("latency", "throughput"):
            assert 0 < row[kind]["first_quartile"] <= row[kind]["median"] <= row[kind]["third_quartile"]
        base = next(other for other in rows if (other["model"], other["batch"]) == (row["baseline"], row["batch"]))
        assert row["latency_ratio"] == row["latency"]["median"] / base["latency"]["median"]
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for row in rows:
        wanted = f"{row['model']} {row['runtime']} {row['batch']} {1000 * row['latency']['median']:.3f} ms"
        assert any(line.startswith(wanted) for line in lines)
    assert "Ratios are to a.xml or c.onnx in the same runtime" in result.stdout


def test_network(folder: Path) -> None:
    options = ("--input-shape", "1,3,12,12", "--prune", "0", "--prune", "0.5", "--out", "made", "--json", "times.json")
    result = benchmark("timed_networks:small", *options, *FAST)
    assert result.exit_code == 0, result.output
    rows = json.loads(Path("times.json").read_text())["rows"]
    variants = ["FP32", "INT8, NNCF", "INT8, djpq_nncf", "INT8, djpq_nncf, 50% of channels removed"]
    assert [(row["variant"], row["runtime"]) for row in rows] == [
        (variant, runtime) for variant in variants for runtime in ("OpenVINO", "ONNX Runtime")
    ]
    assert {row["baseline"] for row in rows} == {"timed_networks:small, FP32"}
    assert "32 random samples" in result.stderr
    made = {path.name for path in Path("made/timed_networks-small").iterdir()}
    assert made == {
        f"{name}{end}" for name in ("fp32", "nncf", "djpq_0", "djpq_50") for end in (".xml", ".bin", ".onnx")
    }


def test_config_describes_the_input(folder: Path) -> None:
    config = {"input_info": {"sample_size": [1, 3, 12, 12]}, "compression": {"algorithm": "djpq"}}
    Path("config.json").write_text(json.dumps(config))
    result = benchmark("timed_networks:small", "--config", "config.json", "--runtime", "onnxruntime", *FAST)
    assert result.exit_code == 0, result.output
    table = [line for line in result.stdout.splitlines() if line.lstrip().startswith("timed_networks:small")]
    assert len(table) == 3
    assert all("ONNX Runtime" in line for line in table)
    assert not list(folder.glob("**/*.onnx"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.xml"], "there is no file absent.xml"),
        (["text.onnx"], "text.onnx is damaged"),
        (["notes.txt"], "Write package.module:factory"),
        (["timed_networks:small"], "Pass --input-shape 1,3,224,224"),
        (["timed_networks:small", "--input-shape", "1,4,12,12"], "channels"),
        (["a.xml", "--runtime", "tensorrt"], "Write openvino or onnxruntime"),
        (["a.xml", "--runtime", "onnxruntime"], "'a.xml' does not run in onnxruntime"),
        (["a.xml", "--prune", "0.5"], "--prune is for networks"),
        (["a.xml", "--calibration", "x.npy"], "--calibration is for networks"),
        (["a.xml", "--input-shape", "1,3,9,9"], "--input-shape 1,3,9,9 does not fit"),
        (["absent.xml", "--json", "absent/times.json"], "the folder absent does not exist"),
        (["timed_networks:small", "--input-shape", "1,3,12,12", "--calibration", "x.npy"], "'x.npy' cannot be read"),
    ],
)
def test_mistake_is_one_error(arguments: list[str], message: str, files: list[str]) -> None:
    Path("text.onnx").write_text("not a model")
    result = benchmark(*arguments, *FAST)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("option", [("--prune", "1"), ("--batch", "0"), ("--rounds", "0"), ("--threads", "0")])
def test_options_out_of_range(option: tuple[str, str]) -> None:
    assert benchmark("a.xml", *option).exit_code == 2
