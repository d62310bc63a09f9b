# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation from the original network: a term of the loss, next to an algorithm that compresses."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from djpq_nncf.errors import DataError

DISTILLATION = "knowledge_distillation"


@dataclass(frozen=True)
class DistillationSettings:
    """The ``knowledge_distillation`` entry of a config; the schema holds the defaults and meanings."""

    type: Literal["softmax", "mse"]
    scale: float
    temperature: float

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "DistillationSettings":
        """Build from the validated entry."""
        return cls(settings["type"], settings["scale"], settings["temperature"])


class Distillation:
    """Compares each training step's outputs with those of the original network for the same inputs.

    The comparison takes place right behind the forward pass of the compressed model, so that both run under the same
    autocast. Outputs may be nested in any way; floating-point tensors that depend on parameters count. Hinton, Vinyals,
    Dean, "Distilling the Knowledge in a Neural Network" (2015).

    Args:
        model: the compressed model.
        teacher: the original network; a copy of it runs in eval mode.
        settings: what to compare, and how much it weighs.
    """

    def __init__(self, model: GraphModule, teacher: nn.Module, settings: DistillationSettings) -> None:
        self._settings = settings
        self._teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._latest: Tensor | None = None
        model.register_forward_hook(self._compare, with_kwargs=True)

    @property
    def likelihoods(self) -> float:
        """Soft targets are those of a likelihood; squared differences of outputs are not."""
        return self._settings.scale if self._settings.type == "softmax" else 0.0

    def __call__(self) -> Tensor:
        """The loss of the latest forward pass in training, a scalar; zero if there was none since the last call."""
        latest, self._latest = self._latest, None
        return torch.zeros(()) if latest is None else latest

    def _compare(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        pairs = self._pairs(args, kwargs, output)
        losses = [self._loss(student, target) for student, target in pairs]
        self._latest = self._settings.scale * torch.stack(losses).sum()

    def _pairs(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> list[tuple[Tensor, Tensor]]:
        device = next((x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), None)
        if device is not None and any(p.device != device for p in self._teacher.parameters()):
            self._teacher.to(device)
        with torch.no_grad():
            expected = tree_leaves(self._teacher(*args, **kwargs))
        outputs = tree_leaves(output)
        if len(outputs) != len(expected):
            raise DataError(
                f"Distillation compares outputs one by one, but in training the model returns {len(outputs)} of them "
                f"and in evaluation {len(expected)}. Leave knowledge_distillation out of the config for this model."
            )
        pairs = [
            (student, target)
            for student, target in zip(outputs, expected, strict=True)
            if isinstance(student, Tensor) and student.requires_grad and isinstance(target, Tensor)
        ]
        if not pairs:
            raise DataError("The model returns no floating-point tensor that depends on its parameters to distil.")
        return pairs

    def _loss(self, student: Tensor, target: Tensor) -> Tensor:
        student, target = student.float(), target.float()
        if self._settings.type == "mse":
            return F.mse_loss(student, target)
        temperature = self._settings.temperature
        classes = class_dim(student)
        divergence = F.kl_div(
            F.log_softmax(student / temperature, dim=classes),
            F.log_softmax(target / temperature, dim=classes),
            reduction="none",
            log_target=True,
        )
        # gradients of soft targets shrink with the square of the temperature
        return divergence.sum(dim=classes).mean() * temperature**2


def class_dim(logits: Tensor) -> int:
    """Where the classes are: [n, c], [n, c, height, width] and deeper; of [n, tokens, c] the last."""
    return 1 if logits.dim() in (2, 4, 5) else -1
