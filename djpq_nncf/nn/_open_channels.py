# SPDX-License-Identifier: Apache-2.0
"""Runs an operator that relates channels to each other on the open ones only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from djpq_nncf.nn._gate import Gate


@dataclass(frozen=True)
class Slot:
    """Stands for the ``position``-th input in the arguments of a call."""

    position: int


class OpenChannels(nn.Module):
    """A call as it will be once closed channels are removed: statistics, softmax, sums over channels.

    As long as every channel is open it is the call itself. Otherwise closed channels are left out of its inputs, and
    its output is one where they were (nobody reads it there, and one is in the domain of what may follow: logarithms,
    quotients).

    Args:
        operator: what is called.
        arguments: its positional arguments, a ``Slot`` for each input.
        keywords: its keyword arguments, likewise.
        gates: the gates concerned. They stay submodules of whoever owns them.
        inputs: position of an input -> dimension -> [n, k] positions in the concatenated gates (as in
            ``GatedWeight``: an index is open if all of its k gates are).
        output: dimension of the result -> likewise.
    """

    def __init__(
        self,
        operator: Callable[..., Tensor],
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        gates: Sequence[Gate],
        inputs: Mapping[int, Mapping[int, Tensor]],
        output: Mapping[int, Tensor],
    ) -> None:
        super().__init__()
        self.operator = operator
        self.arguments = tuple(arguments)
        self.keywords = dict(keywords)
        self._gates = tuple(gates)  # in a tuple: not registered again
        self._inputs = {position: dict(dims) for position, dims in inputs.items()}
        self._output = dict(output)
        self._current: tuple[Any, ...] = ()
        self._open: dict[Tensor, Tensor] = {}

    def forward(self, *inputs: Any) -> Tensor:
        if all(gate.all_open for gate in self._gates):
            return self.operator(*self._filled(self.arguments, inputs), **self._filled(self.keywords, inputs))
        self._follow_gates()
        chosen = list(inputs)
        for position, dims in self._inputs.items():
            for dim, index in dims.items():
                if chosen[position].shape[dim] != len(index):
                    raise RuntimeError(
                        f"{self.operator} relates {chosen[position].shape[dim]} entries to each other where the "
                        f"example inputs had {len(index)}: channels are merged with samples or positions there, so "
                        "that closed ones cannot be told. Run it with the example's sizes, or exclude the layer from "
                        "pruning."
                    )
                chosen[position] = chosen[position].index_select(dim, self._open[index])
        arguments = fit_to_input(self.operator, self._filled(self.arguments, chosen))
        result = self.operator(*arguments, **self._filled(self.keywords, chosen))
        for dim, index in self._output.items():
            shape = [len(index) if d == dim else size for d, size in enumerate(result.shape)]
            result = result.new_ones(shape).index_copy(dim, self._open[index], result)
        return result

    def _follow_gates(self) -> None:
        """Look up which indices are open where channels were closed: that waits for the device."""
        current = (self._gates[0].open.device, *(gate.version for gate in self._gates))
        if current != self._current:
            is_open = torch.cat([*(gate.open for gate in self._gates), self._gates[0].open.new_ones(1)])
            indices = [index for dims in (*self._inputs.values(), self._output) for index in dims.values()]
            self._open = {index: is_open[index.to(is_open.device)].all(dim=1).nonzero().flatten() for index in indices}
            self._current = current

    def _filled(self, arguments: Any, inputs: Sequence[Any]) -> Any:
        return tree_map_only(Slot, lambda slot: inputs[slot.position], arguments)

    def extra_repr(self) -> str:
        return str(self.operator)


def fit_to_input(operator: Callable[..., Tensor], arguments: Sequence[Any]) -> Sequence[Any]:
    """Arguments that repeat a size of the first input, made to fit it."""
    aten = torch.ops.aten
    if operator in (aten.layer_norm.default, aten.rms_norm.default):
        source, shape, *others = arguments
        return source, list(source.shape[-len(shape) :]), *others
    return arguments
