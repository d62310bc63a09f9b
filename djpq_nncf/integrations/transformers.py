# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: a ``Trainer`` that compresses what it trains."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from djpq_nncf.algorithms import CompressionController, CompressionStage
from djpq_nncf.errors import CheckpointError

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "djpq_nncf.integrations.transformers needs transformers: pip install 'djpq-nncf[transformers]'."
    ) from error

STATE_FILE = "compression_state.json"
"""Beside Trainer's own files in each checkpoint."""


class CompressionCallback(TrainerCallback):
    """Tells the controller of epochs, and saves its state with each checkpoint.

    :class:`CompressionTrainer` brings it along.

    Args:
        ctrl: of the model that is trained.
    """

    def __init__(self, ctrl: CompressionController) -> None:
        self._ctrl = ctrl

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        # an epoch that a checkpoint was saved in the middle of has begun already
        if self._ctrl.scheduler.epoch < int(state.epoch or 0):
            self._ctrl.scheduler.epoch_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            (folder / STATE_FILE).write_text(json.dumps(self._ctrl.get_compression_state()), encoding="utf-8")


class CompressionTrainer(Trainer):
    """A ``Trainer`` for a model that ``create_compressed_model`` made.

    It adds ``ctrl.loss()`` to the loss and the controller's scalars to the log, takes AdamW with ``ctrl.param_groups``
    where no optimizer is given, and resumes the compression from Trainer's checkpoints. Where gradients are accumulated
    each batch is a step for the controller. A model that was captured without labels needs ``compute_loss_func``.
    ``load_best_model_at_end`` takes the best checkpoint after the freeze: those before are not compressed yet.

    Args:
        ctrl: of the model.
        arguments: of ``Trainer``, by keyword; ``model`` is the controller's.

    Example:
        >>> trainer = CompressionTrainer(ctrl, args=args, train_dataset=data)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> ctrl.export_model("model.xml")  # doctest: +SKIP
    """

    def __init__(self, ctrl: CompressionController, **arguments: Any) -> None:
        self._ctrl = ctrl
        args = arguments.get("args")
        if args is not None:
            if args.label_names is None:
                args.label_names = ["labels"]  # of a captured model Trainer does not find them
            if args.remove_unused_columns and arguments.get("compute_loss_func") is not None:
                args.remove_unused_columns = False  # the labels are none of the model's arguments
        super().__init__(model=ctrl.model, **arguments)
        self.add_callback(CompressionCallback(ctrl))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = self._ctrl.param_groups(lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
            betas = self.args.adam_beta1, self.args.adam_beta2
            self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=self.args.adam_epsilon)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self._ctrl.scheduler.step()
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            scaled = num_items_in_batch is not None and (self.model_accepts_loss_kwargs or self.compute_loss_func)
            # Trainer divides the loss by the number of accumulated batches, unless it was scaled already
            shares = self.current_gradient_accumulation_steps if scaled else 1
            loss = loss + self._ctrl.loss().to(loss.device) / shares
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, **self._ctrl.scalars()} if "loss" in logs else logs, start_time)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self._ctrl.compression_stage() is not CompressionStage.FULLY_COMPRESSED:
            return False
        return super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        self._load_compression_state(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._load_compression_state(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_compression_state(self, checkpoint: Path) -> None:
        path = checkpoint / STATE_FILE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}). Resume from a checkpoint that CompressionTrainer saved."
            ) from error
        self._ctrl.load_state(state)
