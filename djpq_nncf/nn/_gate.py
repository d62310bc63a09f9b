# SPDX-License-Identifier: Apache-2.0
"""The gate of a channel group: which of its channels carry information."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from djpq_nncf.errors import CheckpointError
from djpq_nncf.nn._optional_state import OptionalState

# Bounds the gradient of log(mu^2) at mu = 0.
EPSILON = 1e-10


class Gate(OptionalState):
    """Gaussian gate ``z = mu + eps * sigma`` over ``size`` channels, eq. (10).

    ``forward()`` takes no input and returns ``z`` of shape [size]: noisy in training, ``mu`` in eval mode and
    once frozen, zero for closed channels. The noise is a buffer, refilled by `Gates.sample_` once per step, so that
    nothing random is left in the graph: it compiles, and all ranks and a resumed run draw the same.

    Args:
        size: number of channels.
        mean: start of ``mu``.
        log_variance: start of ``log(sigma^2)``.
        learned: whether ``mu`` and ``sigma`` are. If not, the gate is a mask with noise: alpha comes from elsewhere.
        deviation: ``sigma`` of the noise where it is not learned; 0 for none.

    Attributes:
        open: bool [size], False for channels that were closed.
        information: [size] running mean of the squared derivatives towards ``mu``; None if the gate is learned.
    """

    open: Tensor
    noise: Tensor
    frozen: Tensor
    information: Tensor

    def __init__(
        self, size: int, *, mean: float = 1.0, log_variance: float = -6.0, learned: bool = True, deviation: float = 0.0
    ) -> None:
        super().__init__()
        self.learned = learned
        self.deviation = 0.0 if learned else deviation
        if size < 1:
            raise ValueError(f"a gate needs at least one channel, got {size}")
        self.size = size
        self.mu = nn.Parameter(torch.full((size,), float(mean)))
        self.log_variance = nn.Parameter(torch.full((size,), float(log_variance)))
        self.register_buffer("open", torch.ones(size, dtype=torch.bool))
        self.register_buffer("noise", torch.zeros(size), persistent=False)
        self.register_buffer("information", None if learned else torch.zeros(size))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))
        self.log_variance.requires_grad_(learned)
        # Mirrors the buffer, so that forward neither waits for a device nor breaks a compiled graph.
        self._frozen = False
        self._all_open = True
        self._version = 0

    @property
    def is_frozen(self) -> bool:
        return self._frozen

    @property
    def all_open(self) -> bool:
        """Whether no channel was closed, known without asking the device."""
        return self._all_open

    @property
    def version(self) -> int:
        """Another number whenever ``open`` may have changed."""
        return self._version

    def forward(self) -> Tensor:
        if not self.training or self._frozen or not (self.learned or self.deviation):
            return self.mu * self.open
        sigma = torch.exp(self.log_variance / 2) if self.learned else self.deviation
        return (self.mu + self.noise * sigma) * self.open

    def log_alpha(self) -> Tensor:
        """``log(mu^2 / sigma^2)``, [size]."""
        return log_alpha(self.mu, self.log_variance)

    @torch.no_grad()
    def below(self, threshold: float) -> Tensor:
        """Which channels eq. (18) prunes, bool [size]: closed ones, and if learned those with alpha below it."""
        return (self.log_alpha() < math.log(threshold)) | ~self.open if self.learned else ~self.open

    @torch.no_grad()
    def close(self, indices: Sequence[int] | Tensor) -> None:
        """Close channels: they are zero from now on.

        Raises:
            ValueError: no channel would stay open, or an index is outside [0, size); nothing is changed.
        """
        chosen = torch.as_tensor(indices, dtype=torch.long).reshape(-1).cpu()
        outside = chosen[(chosen < 0) | (chosen >= self.size)].tolist()
        if outside:
            raise ValueError(f"channels {outside} do not exist: the gate has channels 0 to {self.size - 1}")
        still_open = self.open.cpu().clone()
        still_open[chosen] = False
        if not still_open.any():
            raise ValueError(f"at least one of {self.size} channels has to stay open")
        self.open.copy_(still_open)
        self._follow_open()

    @torch.no_grad()
    def reopen(self, chosen: Tensor) -> None:
        """Open channels again, bool [size]."""
        self.open.logical_or_(chosen.to(self.open.device))
        self._follow_open()

    def freeze(self) -> None:
        """End the noise and the learning: what remains is a mask, and means to be folded into the weights."""
        self.frozen.fill_(True)
        self._follow_frozen()

    def _after_load(self, prefix: str) -> None:
        if not self.open.any():
            raise CheckpointError(f"{prefix}open has no open channel: the checkpoint is damaged")
        self._follow_open()
        self._follow_frozen()

    def _follow_open(self) -> None:
        self._all_open = bool(self.open.all())
        self._version += 1

    def _follow_frozen(self) -> None:
        self._frozen = bool(self.frozen)
        for parameter, wanted in ((self.mu, True), (self.log_variance, self.learned)):
            parameter.requires_grad_(wanted and not self._frozen)
            if self._frozen:
                parameter.grad = None  # else an optimizer would go on moving it

    def extra_repr(self) -> str:
        return f"size={self.size}, frozen={self._frozen}"


def log_alpha(mu: Tensor, log_variance: Tensor) -> Tensor:
    """``log(mu^2 / sigma^2)``, elementwise."""
    return torch.log(mu.square() + EPSILON) - log_variance
