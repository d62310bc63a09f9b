# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with all, none and some of the inserted modules' entries."""

import pytest
import torch
from torch import nn

from djpq_nncf.errors import CheckpointError
from djpq_nncf.nn import ActivationQuantizer, Gate, WeightQuantizer


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.gate = Gate(3)
        self.weight = WeightQuantizer(learn_exponent=True)
        self.activation = ActivationQuantizer("unsigned")
        self.last = nn.Linear(3, 1)


def _is_inserted(key: str) -> bool:
    return key.split(".")[0] in ("gate", "weight", "activation")


def _plain() -> dict[str, torch.Tensor]:
    return {key: torch.full_like(v, 7) for key, v in _Model().state_dict().items() if not _is_inserted(key)}


def test_checkpoint_of_the_original_model_loads_strictly() -> None:
    model = _Model()
    model.weight.fix_bits(4)
    model.gate.close([1])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(_plain(), strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if _is_inserted(key) else torch.full_like(value, 7)), key
    assert model.weight.bits == 4


@pytest.mark.parametrize("missing", [key for key in _Model().state_dict() if _is_inserted(key)])
def test_missing_entry_is_reported(missing: str) -> None:
    state = _Model().state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match=rf'Missing key.*"{missing}"'):
        _Model().load_state_dict(state, strict=True)


def test_unknown_entry_is_reported() -> None:
    state = _plain() | {"gate.sigma": torch.zeros(3)}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"gate\.sigma"'):
        _Model().load_state_dict(state, strict=True)


def test_exponent_does_not_load_where_it_is_not_learned() -> None:
    with pytest.raises(RuntimeError, match="log_exponent"):
        WeightQuantizer().load_state_dict(WeightQuantizer(learn_exponent=True).state_dict())


def test_whole_checkpoint_loads() -> None:
    saved, resumed = _Model(), _Model()
    saved.activation.fix_bits(3)
    saved.gate.freeze()
    resumed.load_state_dict(saved.state_dict(), strict=True)
    assert resumed.activation.bits == 3
    assert resumed.gate.is_frozen


@pytest.mark.parametrize("bits", [-1, 1, 77])
def test_damaged_bits_are_refused(bits: int) -> None:
    state = _Model().state_dict() | {"weight.fixed_bits": torch.tensor(bits)}
    with pytest.raises(CheckpointError, match=rf"weight\.fixed_bits is {bits}"):
        _Model().load_state_dict(state)


def test_gate_without_open_channel_is_refused() -> None:
    state = _Model().state_dict() | {"gate.open": torch.zeros(3, dtype=torch.bool)}
    with pytest.raises(CheckpointError, match=r"gate\.open"):
        _Model().load_state_dict(state)
