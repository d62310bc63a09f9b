# SPDX-License-Identifier: Apache-2.0
"""The demo in short: what it writes, and that the figures agree with each other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from djpq_nncf.cli import app
from djpq_nncf.demo import Batches, DigitsResNet, accuracy, demo_config, load_digits_data, run_demo, train
from djpq_nncf.errors import DjpqError

FILES = {
    "report.html",
    *("fp32.xml", "fp32.bin", "fp32.onnx"),
    *("compressed.xml", "compressed.bin", "compressed.onnx"),
    *("layers.txt", "results.json"),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new" / "folder"


@pytest.fixture(scope="module")
def printed(out: Path) -> str:
    result = CliRunner().invoke(app, ["demo", "--out", str(out), "--epochs", "2"])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


@pytest.fixture(scope="module")
def results(out: Path, printed: str) -> Any:
    return json.loads((out / "results.json").read_text())


def test_files(out: Path, printed: str) -> None:
    assert {file.name for file in out.iterdir()} == FILES


def test_one_table(printed: str) -> None:
    wanted = ("accuracy, OpenVINO", "accuracy, ONNX Runtime", "MACs", "BOPs", "parameters", "file size", "latency")
    for label in wanted:
        assert any(line.lstrip().startswith(label) for line in printed.splitlines())
    assert "MACs executed in INT8            100.00 %" in printed


def test_both_formats_hold_the_same_network(results: Any) -> None:
    for part in ("before", "after"):
        openvino, onnx = results[part]
        assert (openvino["macs"], openvino["bops"]) == (onnx["macs"], onnx["bops"])
        assert openvino["accuracy"] == pytest.approx(onnx["accuracy"], abs=0.02)


def test_figures(out: Path, results: Any) -> None:
    before, after = results["before"][0], results["after"][0]
    assert before["bops"] == before["macs"] * 32 * 32
    assert after["bops"] <= 0.0102 * before["bops"]
    assert after["macs"] <= before["macs"]
    assert after["size"] == sum((out / f"compressed{suffix}").stat().st_size for suffix in (".xml", ".bin"))
    assert results["after"][1]["size"] == (out / "compressed.onnx").stat().st_size
    assert after["size"] < before["size"]
    assert results["parameters_after"] <= results["parameters_before"]
    assert before["accuracy"] > 0.9
    assert after["accuracy"] > 0.2
    assert all(seconds > 0 for figures in results["after"] for seconds in figures["latency"].values())


def test_layers_add_up_to_the_files(out: Path, results: Any) -> None:
    ratio = results["after"][0]["bops"] / results["before"][0]["bops"]
    assert f"BOPs {ratio:.5f} of the original" in (out / "layers.txt").read_text()


def test_seed_decides_everything() -> None:
    data = load_digits_data()

    def trained(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = DigitsResNet(width=4)
        train(model, Batches(data.train_images[:64], data.train_labels[:64], 32, seed=seed), epochs=1)
        return model(data.test_images[:8])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_data_is_split_by_class() -> None:
    data = load_digits_data()
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.train_images.shape[1:] == (1, 8, 8)
    assert data.test_labels.bincount().min() >= 55


def test_accuracy_counts_every_sample() -> None:
    labels = torch.arange(300) % 3
    logits = torch.nn.functional.one_hot(labels, 3).float()
    logits[:30] = logits[:30].roll(1, dims=1)
    assert accuracy(lambda images: images, logits, labels) == pytest.approx(0.9)


def test_config_is_that_of_the_examples() -> None:
    assert demo_config() == Path(__file__).parents[2] / "examples" / "configs" / "digits_djpq.json"


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DjpqError, match="Cannot make the folder"):
        run_demo(tmp_path / "file" / "out", epochs=2)


@pytest.mark.parametrize("option", [("--epochs", "1"), ("--seed", "-1"), ("--epochs", "many")])
def test_options_out_of_range(option: tuple[str, str]) -> None:
    assert CliRunner().invoke(app, ["demo", *option]).exit_code == 2


def test_another_config(tmp_path: Path) -> None:
    config = {
        "input_info": {"sample_size": [1, 1, 8, 8]},
        "seed": 2,
        "compression": [
            {"algorithm": "djpq", "target": {"bops_ratio": 0.05}},
            {"algorithm": "knowledge_distillation", "type": "softmax"},
        ],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "out"), "--epochs", "2"]
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 0
    assert f"copy {tmp_path / 'config.json'}" in result.output  # what to change next
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0.049 <= results["after"][0]["bops"] / results["before"][0]["bops"] <= 0.05
