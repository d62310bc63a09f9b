# SPDX-License-Identifier: Apache-2.0
"""What every compression algorithm offers: a controller and a scheduler, as NNCF had them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from os import PathLike
from typing import Any, Protocol

from torch import Tensor
from torch.fx import GraphModule

from djpq_nncf.export import ExportVerification
from djpq_nncf.report import History, RunReport, write_report


class CompressionStage(Enum):
    """How far the compression of a model has come."""

    UNCOMPRESSED = "uncompressed"
    PARTIALLY_COMPRESSED = "partially compressed"
    FULLY_COMPRESSED = "fully compressed"


class CompressionScheduler(ABC):
    """Told by the training loop where it is; changes what depends on that.

    Attributes:
        epoch: the current one, from 0; -1 before the first.
        global_step: number of the current step, from 1; 0 before the first.
    """

    epoch: int
    global_step: int

    @abstractmethod
    def epoch_step(self) -> None:
        """To be called at the beginning of each epoch."""

    @abstractmethod
    def step(self) -> None:
        """To be called before the forward pass of each training step."""


class LossTerm(Protocol):
    """A scalar that a training adds to the task's loss.

    Attributes:
        likelihoods: how many negative log-likelihoods it weighs as much as, next to the task's one; 0 for a loss of
            another kind.
    """

    @property
    def likelihoods(self) -> float: ...

    def __call__(self) -> Tensor: ...


class CompressionController(ABC):
    """The handle on a model under compression.

    Attributes:
        model: the model to train.
        scheduler: the position in the training.
        groups: what can be removed, by name: each group prints where its channels live, and closes some of them.
        terms: what :meth:`loss` adds to the term of the compression, such as distillation.
    """

    model: GraphModule
    scheduler: CompressionScheduler
    groups: Mapping[str, Any]

    def __init__(self) -> None:
        self.terms: list[LossTerm] = []

    def loss(self) -> Tensor:
        """The term to add to the task's loss, a scalar with gradients."""
        total = self.compression_loss()
        for term in self.terms:
            total = total + term().to(total.device)
        return total

    @abstractmethod
    def compression_loss(self) -> Tensor:
        """The part of :meth:`loss` that drives the compression, a scalar with gradients."""

    @abstractmethod
    def statistics(self) -> Any:
        """What the compressed model costs now: typed fields, and ``to_str()``."""

    @abstractmethod
    def scalars(self) -> dict[str, float]:
        """What to watch during the training, by the names that logs and plots have.

        Ratios are of the network as it is now, compressed / original: ``bops_ratio``, ``macs_ratio``, ``size_ratio``;
        ``bops_ratio_asked`` and the like are what the config asks for.
        """

    @abstractmethod
    def param_groups(self, lr: float, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, with the learning rates that suit each kind of parameter."""

    @abstractmethod
    def freeze(self) -> None:
        """End the search: decide every channel and every bit-width."""

    @abstractmethod
    def compression_stage(self) -> CompressionStage:
        """How far the compression has come."""

    @abstractmethod
    def get_compression_state(self) -> dict[str, Any]:
        """What a resumed run needs besides ``model.state_dict()``, as plain data that JSON can hold."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`get_compression_state` returned."""

    @abstractmethod
    def strip(self) -> GraphModule:
        """A plain, smaller model without anything that only training needs."""

    @abstractmethod
    def export_model(
        self, path: str | PathLike[str], *, opset: int | None = None, packed_weights: bool = False
    ) -> None:
        """Write the stripped model as OpenVINO IR (``.xml``) or ONNX (``.onnx``)."""

    @abstractmethod
    def report_data(self, *, title: str | None = None, verifications: Sequence[ExportVerification] = ()) -> RunReport:
        """What :meth:`report` shows besides the course of the training, as plain data.

        Args:
            title: above the page.
            verifications: what ``verify_export`` returned for the files that were exported.
        """

    def report(
        self,
        path: str | PathLike[str],
        *,
        history: History = (),
        verifications: Sequence[ExportVerification] = (),
        title: str | None = None,
    ) -> None:
        """Write the report: one HTML page that needs no network.

        Args:
            path: HTML file.
            history: rows of the training's log, such as ``TrainingMonitor`` collects; without them its course is not
                shown.
            verifications: what ``verify_export`` returned for the files that were exported.
            title: above the page.

        Raises:
            DataError: the file cannot be written.
        """
        write_report(self.report_data(title=title, verifications=verifications), path, history=history)

    @abstractmethod
    def distributed(self) -> None:
        """Prepare for training in several processes."""
