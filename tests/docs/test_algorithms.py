# SPDX-License-Identifier: Apache-2.0
"""docs/algorithms.md does what it says."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from djpq_nncf.algorithms import _registry as algorithms
from djpq_nncf.config import _schemas as schemas

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"
TEXT = PAGE.read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(PRINTED,) = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)


def test_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(algorithms, "_algorithms", dict(algorithms._algorithms))
    monkeypatch.setattr(schemas, "_registered", dict(schemas._registered))
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(EXAMPLE, str(PAGE), "exec"), names)
    assert printed.getvalue() == PRINTED

    ctrl, model = names["ctrl"], names["model"]
    optimizer = torch.optim.Adam(ctrl.param_groups(lr=1e-3))
    for _ in range(10):
        ctrl.scheduler.epoch_step()
        for _ in range(4):
            ctrl.scheduler.step()
            loss = F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)) + ctrl.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert {name: len(group.open_channels) for name, group in ctrl.groups.items()} == {"0": 8, "2": 4}
    assert 0.0147 < ctrl.scalars()["bops_ratio"] <= 0.015
    ctrl.export_model(tmp_path / "model.onnx")
