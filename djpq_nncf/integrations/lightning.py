# SPDX-License-Identifier: Apache-2.0
"""Lightning: a callback that leads a compression through ``Trainer.fit`` and its checkpoints."""

from collections.abc import Mapping
from typing import Any

from djpq_nncf.algorithms import CompressionController

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "djpq_nncf.integrations.lightning needs Lightning: pip install 'djpq-nncf[lightning]'."
    ) from error


class CompressionCallback(Callback):
    """Tells the controller of epochs and steps, logs its scalars, and keeps its state in Lightning's checkpoints.

    The module trains ``ctrl.model``, adds ``ctrl.loss()`` to its loss, and builds its optimizer from
    ``ctrl.param_groups``. With ``accumulate_grad_batches`` each batch is a step for the controller, as
    ``schedule.steps_per_epoch`` counts them. Resuming with ``ckpt_path`` continues the compression where it was. Within
    an epoch Lightning takes as many batches as were left, the first ones of a loader that does not keep its place.

    Args:
        ctrl: of the model that the module trains.

    Example:
        >>> class Classifier(LightningModule):  # doctest: +SKIP
        ...     def training_step(self, batch, batch_idx):
        ...         images, labels = batch
        ...         return F.cross_entropy(self.model(images), labels) + self.ctrl.loss()
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.ctrl.param_groups(lr=1e-3))
        >>> trainer = Trainer(max_epochs=10, callbacks=[CompressionCallback(ctrl)])  # doctest: +SKIP
        >>> trainer.fit(Classifier(ctrl), loader)  # doctest: +SKIP
    """

    def __init__(self, ctrl: CompressionController) -> None:
        self._ctrl = ctrl
        self._logged = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # not in on_train_epoch_start, which Lightning leaves out where it resumes, at the end of an epoch too; and an
        # epoch that a checkpoint was saved in the middle of has begun already
        if self._ctrl.scheduler.epoch < trainer.current_epoch:
            self._ctrl.scheduler.epoch_step()
        # Lightning leaves modules in the mode it finds them in, and a captured model is in eval mode
        if not self._ctrl.model.training:
            self._ctrl.model.train()
        self._ctrl.scheduler.step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # with accumulated gradients several batches belong to one step; 0 is Lightning's way to log nothing
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0 and trainer.global_step != self._logged:
            self._logged = trainer.global_step
            pl_module.log_dict(self._ctrl.scalars())

    def state_dict(self) -> dict[str, Any]:
        return self._ctrl.get_compression_state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._ctrl.load_state(state_dict)
