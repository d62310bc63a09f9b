# SPDX-License-Identifier: Apache-2.0
"""``compress`` and what works on the folder that it makes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from djpq_nncf.cli import app
from djpq_nncf.run import RunFolder
from tests.run.test_data import photos
from tests.run.tiny import CONFIG, SETTINGS


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    required = ("--model", SETTINGS.model, "--data", SETTINGS.data, "--out", folder / "run")
    result = command("compress", folder / "config.json", *required)
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.stderr
    for name in ("compressed.xml", "compressed.onnx", "report.html"):
        assert f"Wrote {folder / 'run' / name}" in result.stdout
    return RunFolder(folder / "run")


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(made.path, tmp_path / "run"))


def test_compress_again(made: RunFolder) -> None:
    result = command(
        *("compress", made.path.parent / "config.json", "--out", made.path),
        *("--model", SETTINGS.model, "--data", SETTINGS.data, "--lr", "0.1"),
    )
    assert result.exit_code == 1
    assert "lr was 0.001 and is 0.1" in result.stderr
    assert result.stdout == ""


def test_options_of_compress_reach_the_run(tmp_path: Path) -> None:
    config = {**CONFIG, "input_info": {"sample_size": [2, 3, 9, 9]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    photos(tmp_path / "photos", a=4, b=4, c=4, d=4, e=4)
    result = command(
        *("compress", tmp_path / "config.json", "--out", tmp_path / "run", "--model", "tests.run.tiny:colour_network"),
        *("--data", tmp_path / "photos", "--lr", "0.5", "--batch-size", "3", "--image-size", "9"),
        *("--mean", "0.1,0.2,0.3", "--deviation", "1,2,3", "--no-augment", "--device", "cpu"),
    )
    assert result.exit_code == 1
    assert "the network 4 outputs" in result.stderr
    settings = RunFolder(tmp_path / "run").settings
    assert (settings.lr, settings.batch_size, settings.image_size, settings.augment) == (0.5, 3, 9, False)
    assert (settings.mean, settings.deviation) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    "option",
    [("--batch-size", "64"), ("--image-size", "9"), ("--mean", "0,0,0"), ("--no-augment",), ("--workers", "2")],
    ids=lambda option: option[0],
)
def test_options_of_image_folders_are_refused_with_a_function(option: tuple[str, ...], tmp_path: Path) -> None:
    """Also with the value of the default: who gives it believes that it counts."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    required = ("--out", tmp_path / "run", "--model", SETTINGS.model, "--data", SETTINGS.data)
    result = command("compress", tmp_path / "config.json", *required, *option)
    assert result.exit_code == 2
    assert "is of image folders, and --data is a function" in " ".join(result.stderr.split()).replace(" │ │ ", " ")
    assert not (tmp_path / "run").exists()


def test_export(run: RunFolder) -> None:
    xml = (run.path / "compressed.xml").read_bytes()
    result = command("export", run.path, "--no-openvino", "--opset", "17")
    assert result.exit_code == 0, result.output
    assert f"Wrote {run.path / 'compressed.onnx'}" in result.stdout
    assert f"Wrote {run.path / 'compressed.xml'}" not in result.stdout
    assert (run.path / "compressed.xml").read_bytes() == xml


def test_verify(run: RunFolder) -> None:
    result = command("verify", run.path)
    assert result.exit_code == 0, result.output
    assert "compressed.xml in OpenVINO" in result.stdout
    shutil.copy(run.path / "fp32.onnx", run.path / "compressed.onnx")
    result = command("verify", run.path, "--tolerance", "1e-3")
    assert result.exit_code == 3
    assert result.stderr.endswith("Differs by more than --tolerance 0.001: compressed.onnx\n")
    assert "compressed.xml in OpenVINO" in result.stdout


def test_report(run: RunFolder, tmp_path: Path) -> None:
    result = command("report", run.path, "--out", tmp_path / "r.html")
    assert result.exit_code == 0
    assert result.stdout == f"Wrote {tmp_path / 'r.html'}\n"
    result = command("report", tmp_path)
    assert result.exit_code == 1
    assert "holds no run" in result.stderr


def test_benchmark(run: RunFolder, tmp_path: Path) -> None:
    result = command("benchmark", run.path, "--rounds", "2", "--threads", "1", "--json", tmp_path / "times.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert [(row["variant"], row["runtime"], row["baseline"]) for row in rows] == [
        (variant, runtime, f"{run.path}, FP32")
        for variant in ("FP32", "compressed")
        for runtime in ("OpenVINO", "ONNX Runtime")
    ]
    for fp32, compressed in ((rows[0], rows[2]), (rows[1], rows[3])):
        assert fp32["latency_ratio"] == 1
        assert compressed["latency_ratio"] == compressed["latency"]["median"] / fp32["latency"]["median"]


def test_benchmark_of_what_cannot_be_timed(run: RunFolder, tmp_path: Path) -> None:
    (run.path / "compressed.onnx").unlink()
    for arguments, message in (
        ((run.path,), "has no compressed.onnx. If it is not finished, the same `djpq-nncf compress` continues it"),
        ((tmp_path,), "holds no run"),
        ((run.path, "--prune", "0.5"), "--prune is for networks"),
    ):
        result = command("benchmark", *arguments, "--rounds", "2")
        assert result.exit_code == 1
        assert message in result.stderr
    result = command("benchmark", run.path, "--rounds", "2", "--threads", "1", "--runtime", "openvino")
    assert result.exit_code == 0, result.output
    assert "ONNX Runtime" not in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress",),
        ("compress", "c.json", "--model", "a:b", "--data", "a:b"),
        ("compress", "c.json", "--model", "a:b", "--data", "a:b", "--out", "run", "--batch-size", "0"),
        ("compress", "c.json", "--model", "a:b", "--data", "a:b", "--out", "run", "--workers", "-1"),
        ("export",),
        ("export", "run", "--no-onnx", "--no-openvino"),
        ("export", "run", "--no-onnx", "--opset", "17"),
        ("verify", "run", "--tolerance", "-1"),
        ("report", "run", "--format", "pdf"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "0.5,0.5"), "--mean has 2 values (0.5,0.5). Write three"),
        (("--deviation", "0,0,0"), "--deviation is 0,0,0, and pixels are divided by it"),
        (("--device", "cudaa"), "--device 'cudaa' cannot be used"),
        (("--train", "json"), "'json' names no module and something in it. Write package.module:name."),
    ],
)
def test_a_mistake_is_one_error(options: tuple[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    data = tmp_path if options[0] in ("--mean", "--deviation") else SETTINGS.data
    required = ("--model", SETTINGS.model, "--data", data, "--out", tmp_path / "run")
    result = command("compress", tmp_path / "config.json", *required, *options)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert not RunFolder(tmp_path / "run").exists
