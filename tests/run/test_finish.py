# SPDX-License-Identifier: Apache-2.0
"""What works on a finished run: export, verification, report."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from djpq_nncf.errors import RunError
from djpq_nncf.run import RunFolder, export_run, rebuild_run, verify_run, write_run_report
from tests.run.conftest import quiet


@pytest.fixture
def copy(finished: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(finished.path, tmp_path / "copy"))


def checked(folder: RunFolder) -> Sequence[str]:
    return [check.file for check in folder.read_report().checks]


def test_files_agree_and_can_be_written_again(copy: RunFolder) -> None:
    before = (copy.path / "compressed.onnx").read_bytes()
    (copy.path / "compressed.xml").unlink()
    copy.report.unlink()
    said: list[str] = []
    assert export_run(copy.path, suffixes=[".onnx"], say=said.append) == (copy.path / "compressed.onnx",)
    assert (copy.path / "compressed.onnx").read_bytes() == before
    assert checked(copy) == ["compressed.onnx"]
    assert copy.report.is_file()
    assert said[0] == f"Wrote {copy.path / 'compressed.onnx'}"
    assert said[-1] == f"Wrote {copy.report}"


def test_verification_brings_the_report_up_to_date(copy: RunFolder) -> None:
    shutil.copy(copy.path / "fp32.onnx", copy.path / "compressed.onnx")
    before = {check.file: check for check in copy.read_report().checks}
    xml, onnx = verify_run(copy.path, say=quiet)
    assert xml.max_relative_difference < 1e-3 < onnx.max_relative_difference
    after = {check.file: check for check in copy.read_report().checks}
    assert after["compressed.xml"] == before["compressed.xml"]
    assert after["compressed.onnx"].max_abs_difference == onnx.max_abs_difference
    assert after["compressed.onnx"] != before["compressed.onnx"]


def test_verification_repairs_a_report(copy: RunFolder) -> None:
    (copy.path / "compressed.onnx").unlink()
    copy.report_data.write_text("{")
    verify_run(copy.path, say=quiet)
    assert copy.status == "finished"
    assert checked(copy) == ["compressed.xml"]


def test_nothing_was_exported(copy: RunFolder) -> None:
    for path in copy.exported:
        path.unlink()
    with pytest.raises(RunError, match=r"holds no exported file\. `djpq-nncf export"):
        verify_run(copy.path)


def test_a_report_elsewhere(copy: RunFolder, tmp_path: Path) -> None:
    copy.report.unlink()
    assert write_run_report(copy.path, tmp_path / "r.html") == tmp_path / "r.html"
    assert (tmp_path / "r.html").is_file()
    assert not copy.report.exists()


def test_the_network_of_a_run(finished: RunFolder) -> None:
    run = rebuild_run(finished.path)
    assert run.epochs_done == 3
    (images, _), *_ = run.val_batches
    with torch.no_grad():
        assert torch.equal(run.model.eval()(images), rebuild_run(finished.path).model.eval()(images))
