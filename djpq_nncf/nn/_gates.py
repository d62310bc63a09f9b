# SPDX-License-Identifier: Apache-2.0
"""What every step asks of all gates, in a few operators instead of a few for each gate."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from djpq_nncf.nn._gate import EPSILON, Gate, log_alpha


class Gates:
    """The gates of a network, their channels one after the other.

    Args:
        gates: in the order of the channel groups.
    """

    def __init__(self, gates: Iterable[Gate]) -> None:
        self._gates = tuple(gates)
        self._sizes = [gate.size for gate in self._gates]
        self._lengths = torch.tensor(self._sizes, dtype=torch.long)

    @property
    def sizes(self) -> Tensor:
        """[gates] numbers of channels, closed ones included."""
        return self._lengths.to(self._gates[0].open.device)

    def __len__(self) -> int:
        return len(self._gates)

    def penalty(self) -> Tensor:
        """``log(1 + mu^2 / sigma^2)`` of eq. (13), [channels]; zero for closed channels."""
        return functional.softplus(self._log_alpha()) * self._joined("open")

    def keep_probability(self, threshold: float, temperature: float) -> Tensor:
        """Soft decision to keep each channel, [channels]: ``sigmoid((log alpha - log threshold) / temperature)``.

        Deviates from eq. (19), which sums this as if it counted the pruned channels (it counts those kept),
        and is linear in alpha: that has no gradient for most channels, the logarithm has.
        """
        return torch.sigmoid((self._log_alpha() - math.log(threshold)) / temperature) * self._joined("open")

    def is_open(self) -> Tensor:
        """1 for each channel that was not closed, [channels]."""
        return self._joined("open").float()

    def mean(self, values: Tensor) -> Tensor:
        """[channels] -> [gates]."""
        if not self._gates:
            return values
        lengths = self._lengths.to(values.device)
        return torch.segment_reduce(values, "sum", lengths=lengths) / lengths

    @torch.no_grad()
    def sample_(self, generator: torch.Generator) -> None:
        """Draw ``eps`` of eq. (10) anew, from a CPU generator. Call it once per step, before the forward."""
        if self._gates:
            noise = torch.randn(sum(self._sizes), generator=generator)
            self._write("noise", noise.to(self._gates[0].noise))

    @torch.no_grad()
    def project_(self) -> None:
        """Keep the largest ``|mu|`` of each gate from falling below 1; ``sigma`` is scaled along, so that alpha stays.

        The weights that read a group have a scale of their own, so that of its gate means nothing. Left free, the
        penalty drives all means to zero together, and the product with the weights leaves the range of its quantizer.
        """
        if not self._gates:
            return
        mu, log_variance = self._joined("mu"), self._joined("log_variance")
        lengths = self._lengths.to(mu.device)
        largest = torch.segment_reduce(mu.abs() * self._joined("open"), "max", lengths=lengths)
        scale = largest.clamp(min=EPSILON, max=1.0).repeat_interleave(lengths, output_size=len(mu))
        self._write("mu", mu / scale)
        self._write("log_variance", log_variance - 2 * scale.log())

    def _log_alpha(self) -> Tensor:
        return log_alpha(self._joined("mu"), self._joined("log_variance"))

    def _joined(self, name: str) -> Tensor:
        return torch.cat([getattr(gate, name) for gate in self._gates]) if self._gates else torch.zeros(0)

    def _write(self, name: str, values: Tensor) -> None:
        torch._foreach_copy_([getattr(gate, name) for gate in self._gates], list(values.split(self._sizes)))
