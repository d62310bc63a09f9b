# SPDX-License-Identifier: Apache-2.0
"""Bit-widths of each operator's two factors, from the quantizers that serve them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from djpq_nncf.cost import FLOAT_BITS, MacOperator
from djpq_nncf.nn import ActivationQuantizer, LearnedQuantizer, Quantizers, WeightQuantizer


class SoftBits(NamedTuple):
    """Bit-widths while they are learned, differentiable; 32 where nothing is quantized.

    Attributes:
        weights: [layers] of the weight.
        inputs: [layers] of the input.
        stored: [weights] of each weight of layers and embeddings.
    """

    weights: Tensor
    inputs: Tensor
    stored: Tensor


class BitWidths:
    """Which quantizer gives each operator its weight bits and its activation bits.

    What is said of a weight holds for the second factor where an operator multiplies two activations.

    Args:
        operators: layers and products, in the order of the cost model.
        weight_quantizers: by the state-dict name of the weight.
        activation_quantizers: by name.
        inputs_of: layer name -> names of the activation quantizers in front of it (several at a concatenation; the
            widest counts).
        second_input_of: name of a product -> name of the activation quantizer of its second factor.
        embeddings: their bits are part of the size, not of any operator's cost.

    Attributes:
        quantizers: by a name for people.
        weight_index: [layers] position in ``quantizers`` of a layer's weight quantizer, one past the end for none.
        input_index: [layers, k] positions of the quantizers of its input, padded by repetition.
        stored_index: [weights] position of a weight's quantizer, in the order of the cost model.
    """

    def __init__(
        self,
        operators: Sequence[MacOperator],
        weight_quantizers: Mapping[str, WeightQuantizer],
        activation_quantizers: Mapping[str, ActivationQuantizer],
        inputs_of: Mapping[str, Sequence[str]],
        second_input_of: Mapping[str, str] | None = None,
        embeddings: Sequence[MacOperator] = (),
    ) -> None:
        layers = {operator.weight: operator.layer for operator in (*embeddings, *reversed(operators))}
        self.quantizers: dict[str, LearnedQuantizer] = {
            **{f"weight of {layers[name]}": quantizer for name, quantizer in weight_quantizers.items()},
            **{f"activation {name}": quantizer for name, quantizer in activation_quantizers.items()},
        }
        self._together = Quantizers(self.quantizers.values())
        position = {id(quantizer): index for index, quantizer in enumerate(self.quantizers.values())}
        absent = len(self.quantizers)
        second = {
            **{operator.layer: weight_quantizers.get(operator.weight) for operator in operators if operator.weight},
            **{layer: activation_quantizers[name] for layer, name in (second_input_of or {}).items()},
        }
        self.weight_index = torch.tensor([position.get(id(second.get(op.layer)), absent) for op in operators])
        rows = [
            [position[id(activation_quantizers[name])] for name in inputs_of.get(operator.layer, ())] or [absent]
            for operator in operators
        ]
        widest = max((len(row) for row in rows), default=1)
        self.input_index = torch.tensor([row + [row[0]] * (widest - len(row)) for row in rows])
        stored = dict.fromkeys(op.weight for op in (*embeddings, *operators) if op.weight is not None)
        self.stored_index = torch.tensor(
            [position.get(id(weight_quantizers.get(name)), absent) for name in stored], dtype=torch.long
        )

    @property
    def learned(self) -> bool:
        """Whether any bit-width is neither given nor fixed yet."""
        return any(quantizer.bits is None for quantizer in self.quantizers.values())

    def soft(self) -> SoftBits:
        """As they are now."""
        learned = self._together.continuous_bits()
        table = torch.cat([learned, learned.new_full((1,), FLOAT_BITS)])
        return SoftBits(table[self.weight_index], table[self.input_index].amax(dim=1), table[self.stored_index])

    def project_(self, margin: float) -> None:
        """Move every quantizer into its limits, learned widths ``margin`` bits above their least."""
        self._together.project_(margin)
