# SPDX-License-Identifier: Apache-2.0
"""Names, batch size, metadata and size of the files; nothing partial is left behind."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import openvino as ov
import pytest
import torch
from torch import Tensor, fx, nn

from djpq_nncf.capture import capture
from djpq_nncf.errors import ExportError
from djpq_nncf.export import export_model, verify_export
from tests.disk import small_disk
from tests.export.helpers import NETS, file_size, make_exact, strip

FORMATS = ["xml", "onnx"]


class _Two(nn.Module):
    """Two inputs, a mapping as output."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, query: Tensor, key: Tensor) -> dict[str, Any]:
        return {"score": self.left(query) * self.right(key), "state": (self.left(query), self.right(key))}


@pytest.fixture(scope="module")
def stripped() -> fx.GraphModule:
    torch.manual_seed(0)
    return strip(make_exact(NETS["residual"]()), (torch.randn(4, 3, 16, 16),), exact=True)


def _ports(path: Path) -> tuple[list[str], list[str]]:
    if path.suffix == ".xml":
        model = ov.Core().read_model(path)
        return [port.get_any_name() for port in model.inputs], [port.get_any_name() for port in model.outputs]
    graph = onnx.load(path).graph
    return [port.name for port in graph.input], [port.name for port in graph.output]


@pytest.mark.parametrize("suffix", FORMATS)
def test_names_follow_forward_and_the_keys_of_the_output(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net.{suffix}"
    query, key = torch.randn(3, 6), torch.randn(3, 6)
    captured = capture(_Two().eval(), (query, key))
    export_model(captured, path)

    assert _ports(path) == (["query", "key"], ["score", "state_output_0", "state_output_1"])
    assert verify_export(path, captured, (query, key)).max_abs_difference < 1e-5
    assert verify_export(path, captured, {"key": key, "query": query}).max_abs_difference < 1e-5


@pytest.mark.parametrize("suffix", FORMATS)
def test_names_metadata_batch_and_size(suffix: str, stripped: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / f"net.{suffix}"
    export_model(stripped, path, metadata={"config": "{}"})
    assert _ports(path) == (["x"], ["output"])
    export_model(stripped, path, input_names=["image"], output_names=["logits"], metadata={"config": "{}"})
    assert _ports(path) == (["image"], ["logits"])

    for batch in (1, 3, 7):
        assert verify_export(path, stripped, torch.randn(batch, 3, 16, 16)).max_abs_difference < 1e-5
    if suffix == "xml":
        assert ov.Core().read_model(path).get_rt_info(["djpq_nncf", "config"]).value == "{}"
        assert ov.Core().read_model(path).inputs[0].get_partial_shape().to_string() == "[?,3,16,16]"
    else:
        properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert properties["djpq_nncf.config"] == "{}"
        assert {entry.domain for entry in onnx.load(path).opset_import} == {""}


@pytest.mark.parametrize("suffix", FORMATS)
def test_int8_weights_make_the_file_small(suffix: str, tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3), nn.ReLU(), nn.Conv2d(256, 64, 1))
    image = torch.randn(2, 3, 8, 8)
    small, large = tmp_path / f"small.{suffix}", tmp_path / f"large.{suffix}"
    export_model(strip(wide, (image,)), small)
    export_model(capture(wide.eval(), (image,)), large)
    assert file_size(small) < 0.35 * file_size(large)


@pytest.mark.parametrize("suffix", FORMATS)
def test_export_leaves_the_model_alone_and_the_terminal_quiet(
    suffix: str, stripped: fx.GraphModule, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: value.clone() for name, value in stripped.state_dict().items()}
    code = stripped.code
    stripped.train()
    export_model(stripped, tmp_path / f"net.{suffix}")
    assert stripped.training and stripped.code == code
    stripped.eval()
    assert before.keys() == stripped.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in stripped.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_other_suffix(stripped: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.pt.*\.xml.*\.onnx"):
        export_model(stripped, tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", FORMATS)
def test_missing_folder(suffix: str, stripped: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="absent does not exist"):
        export_model(stripped, tmp_path / "absent" / f"net.{suffix}")
    assert not list(tmp_path.iterdir())


def test_wrong_number_of_names(stripped: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="1 inputs, but 2 input names"):
        export_model(stripped, tmp_path / "net.onnx", input_names=["a", "b"])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("existing", [True, False])
def test_failure_while_writing_leaves_nothing_new(
    suffix: str, existing: bool, stripped: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"net.{suffix}"
    if existing:
        path.write_text("old")
        path.with_suffix(".bin").write_text("old weights")
    before = {entry.name: entry.read_text() for entry in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("djpq_nncf.export._openvino.ov.save_model", full)
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ExportError, match=rf"net\.{suffix}.*No space left"):
        export_model(stripped, path)
    monkeypatch.undo()
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "16k") as path:
        yield path


@pytest.mark.parametrize("suffix", FORMATS)
def test_full_disk(suffix: str, stripped: fx.GraphModule, disk: Path) -> None:
    old = disk / f"net.{suffix}"
    old.write_text("old")
    with pytest.raises(ExportError, match=rf"Cannot write .*net\.{suffix}"):
        export_model(stripped, old)
    assert [entry.name for entry in disk.iterdir()] == [old.name]
    assert old.read_text() == "old"
