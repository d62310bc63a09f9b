# SPDX-License-Identifier: Apache-2.0
"""verify_export: the data it takes, what it reports, the errors it raises."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from djpq_nncf.errors import DataError, ExportError
from djpq_nncf.export import export_model, verify_export
from tests.export.helpers import NETS, make_exact, strip
from tests.export.transformers import compress

FORMATS = ["xml", "onnx"]


@pytest.fixture(scope="module")
def stripped() -> fx.GraphModule:
    torch.manual_seed(0)
    return strip(make_exact(NETS["inverted"]()), (torch.randn(4, 3, 16, 16),), exact=True)


@pytest.fixture(scope="module", params=FORMATS)
def exported(
    request: pytest.FixtureRequest, stripped: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path: Path = tmp_path_factory.mktemp("exported") / f"net.{request.param}"
    export_model(stripped, path)
    return path


def test_takes_batches_and_pairs(exported: Path, stripped: fx.GraphModule) -> None:
    images = [torch.randn(size, 3, 16, 16) for size in (2, 3)]
    pairs = [(image, torch.zeros(len(image))) for image in images]
    for data in (images, pairs, (pair for pair in pairs), [list(pair) for pair in pairs]):
        found = verify_export(exported, stripped, data)
        assert found.samples == 5
        assert found.max_abs_difference < 1e-6
    assert verify_export(exported, stripped, (images[0],)).samples == 2
    assert verify_export(exported, stripped, {"x": images[0]}).samples == 2


def test_reports_a_difference(exported: Path, stripped: fx.GraphModule) -> None:
    image = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        output = stripped(image)
        span = float(output.max() - output.min())
        unlikely = int(output.amax(0).argmin())

    class Shifted(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return stripped(x) + torch.eye(10)[unlikely] * 100

    found = verify_export(exported, Shifted(), image)

    assert found.max_abs_difference == pytest.approx(100, rel=1e-4)
    assert found.max_relative_difference == pytest.approx(100 / (100 + span), rel=0.5)
    assert found.top1_agreement is not None and found.top1_agreement < 1


def test_text_names_file_runtime_and_share(exported: Path, stripped: fx.GraphModule) -> None:
    found = verify_export(exported, stripped, torch.randn(2, 3, 16, 16))
    text = found.to_str()
    assert str(exported) in text and found.runtime in text and "100.00 %" in text
    assert [layer.name for layer in found.layers] == ["expand.0", "depthwise.0", "project.0", "fc"]
    assert all(layer.int8 and layer.precision != "unknown" for layer in found.layers)
    assert ("OpenVINO" in found.runtime) == (exported.suffix == ".xml")


def test_training_mode_is_restored(exported: Path, stripped: fx.GraphModule) -> None:
    stripped.train()
    verify_export(exported, stripped, torch.randn(2, 3, 16, 16))
    assert stripped.training
    stripped.eval()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_data(bad: float, exported: Path, stripped: fx.GraphModule) -> None:
    image = torch.randn(2, 3, 16, 16)
    image[1, 0, 0, 0] = bad
    with pytest.raises(DataError, match="Batch 1, input 'x' holds NaN"):
        verify_export(exported, stripped, [torch.randn(2, 3, 16, 16), image])


def test_no_data(exported: Path, stripped: fx.GraphModule) -> None:
    with pytest.raises(DataError, match="no batch"):
        verify_export(exported, stripped, [])
    with pytest.raises(DataError, match="pass a tensor"):
        verify_export(exported, stripped, 3)
    with pytest.raises(DataError, match=r"lacks the inputs \['x'\]"):
        verify_export(exported, stripped, {"y": torch.randn(2, 3, 16, 16)})


@pytest.mark.parametrize("suffix", FORMATS)
def test_missing_file(suffix: str, stripped: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"absent\.{suffix}.*Export the model first"):
        verify_export(tmp_path / f"absent.{suffix}", stripped, torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("damaged", [".xml", ".bin", ".onnx"])
def test_truncated_file(damaged: str, stripped: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / ("net.onnx" if damaged == ".onnx" else "net.xml")
    export_model(stripped, path)
    part = path.with_suffix(damaged)
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(ExportError, match=r"net\.(xml|onnx) is damaged.*Export the model again"):
        verify_export(path, stripped, torch.randn(2, 3, 16, 16))


def test_wrong_shape_of_data(exported: Path, stripped: fx.GraphModule) -> None:
    with pytest.raises(DataError, match="does not fit"):
        verify_export(exported, stripped, torch.randn(2, 5, 16, 16))


@pytest.mark.parametrize(("vnni", "bits", "named"), [(False, 8, True), (False, 7, False), (True, 8, False)])
def test_names_layers_whose_sums_saturate_on_this_cpu(
    vnni: bool, bits: int, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    image = torch.randn(2, 3, 8, 8)
    controller = compress(model, image, bits=[bits], overflow_fix="disable")
    export_model(controller.strip(), tmp_path / "net.onnx")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_vnni": vnni})
    found = verify_export(tmp_path / "net.onnx", controller.strip(), image)
    assert found.saturating == (("0",) if named else ())
    assert ("overflow_fix" in found.to_str()) == named
