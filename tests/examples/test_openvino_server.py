# SPDX-License-Identifier: Apache-2.0
"""examples/openvino_server.py on a tiny network."""

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from djpq_nncf.capture import capture
from djpq_nncf.export import export_model
from tests.examples.running import REPOSITORY, run_example


@pytest.fixture(scope="module")
def network() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return capture(layers.eval(), (torch.randn(2, 3, 8, 8),))


@pytest.fixture(scope="module")
def path(network: torch.fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("served") / "net.xml"
    export_model(network, path)
    return path


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "examples" / "openvino_server.py"))


def test_whole_line(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_example(monkeypatch, "openvino_server", path, "--requests", "50", "--clients", "4", "--batch-size", "4")
    printed = capsys.readouterr().out
    assert "written by djpq_nncf" in printed
    (batches,) = re.findall(r"50 requests of 4 clients in (\d+) batches", printed)
    assert 50 / 4 <= int(batches) <= 50
    assert re.search(r"throughput +[\d,.]+ samples/s", printed)
    assert re.findall(r"latency p(\d+) +[\d.]+ ms", printed) == ["50", "90", "99"]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_sample_gets_its_own_answer(
    batch_size: int, path: Path, network: torch.fx.GraphModule, example: dict[str, Any]
) -> None:
    samples = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    with example["Server"](path, batch_size=batch_size, wait=0.01, requests=2) as server:
        answers = [server.submit(sample) for sample in samples]
        results = np.stack([answer.result(timeout=60)[0] for answer in answers])
    with torch.no_grad():
        expected = network(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(results, expected, atol=1e-5)
    assert server.batches >= 20 / batch_size


def test_batch_that_is_not_full_leaves_too(path: Path, example: dict[str, Any]) -> None:
    with example["Server"](path, batch_size=64, wait=0.01) as server:
        assert server.submit(np.zeros((3, 8, 8), np.float32)).result(timeout=60)[0].shape == (5,)


def test_what_waits_is_answered_at_the_end(path: Path, example: dict[str, Any]) -> None:
    with example["Server"](path, batch_size=64, wait=3600) as server:
        answers = [server.submit(np.zeros((3, 8, 8), np.float32)) for _ in range(3)]
    assert all(answer.done() for answer in answers)


@pytest.mark.parametrize(("name", "message"), [("absent.xml", "there is no file absent.xml"), ("net.onnx", "2")])
def test_unusable_file(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=message):
        run_example(monkeypatch, "openvino_server", name)
