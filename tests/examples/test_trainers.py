# SPDX-License-Identifier: Apache-2.0
"""examples/lightning_digits.py and examples/transformers_text.py, short, and continued."""

from pathlib import Path

import pytest

from tests.examples.running import run_example

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
SMALL = {
    "lightning_digits": ("--width", "4", "--bops-ratio", "0.05"),
    "transformers_text": ("--samples", "128", "--bops-ratio", "0.05"),
}
NEEDS = {"lightning_digits": "lightning", "transformers_text": "accelerate"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_whole_line_and_resumption(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(NEEDS[name])
    run_example(monkeypatch, name, *SMALL[name], "--epochs", "3", "--out", tmp_path)
    assert "100.00 %" in capsys.readouterr().out  # of the predictions of a file agree
    first = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").unlink()
    # nothing is left to do: the last checkpoint is that of the end
    run_example(monkeypatch, name, *SMALL[name], "--epochs", "3", "--out", tmp_path, "--resume")
    assert "Compressed accuracy" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").read_bytes() == first
