# SPDX-License-Identifier: Apache-2.0
"""The controller of DJPQ: what a training loop talks to."""

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from operator import length_hint
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.algorithms._batchnorm import reestimate_batchnorm
from djpq_nncf.algorithms._bias_correction import correct_biases
from djpq_nncf.algorithms._contract import CompressionController, CompressionStage
from djpq_nncf.algorithms.djpq._fisher import FisherCriterion
from djpq_nncf.algorithms.djpq._freezing import Decision
from djpq_nncf.algorithms.djpq._groups import PrunableGroup
from djpq_nncf.algorithms.djpq._network import CompressedNetwork
from djpq_nncf.algorithms.djpq._objective import Objective
from djpq_nncf.algorithms.djpq._parameter_groups import parameter_groups
from djpq_nncf.algorithms.djpq._reconstruction import reconstruct_layers
from djpq_nncf.algorithms.djpq._report import report_of
from djpq_nncf.algorithms.djpq._scheduler import DJPQScheduler, StrengthController
from djpq_nncf.algorithms.djpq._settings import DJPQSettings
from djpq_nncf.algorithms.djpq._statistics import NNCFStatistics
from djpq_nncf.algorithms.djpq._targets import choices_of, warn_if_off_target
from djpq_nncf.errors import CheckpointError
from djpq_nncf.export import ExportVerification, export_model, note_layers, round_biases
from djpq_nncf.nn import Gates, LearnedQuantizer
from djpq_nncf.passes import kept_channels, remove
from djpq_nncf.report import RunReport

STATE_VERSION = 6


class DJPQController(CompressionController):
    """Handle on a model compressed with DJPQ (Wang, Lu, Blankevoort 2020).

    Args:
        network: the captured graph with gates and quantizers, and what is known about it.
        settings: of the configuration.
        seed: of the gates' noise.
        data: for the re-estimation of BatchNorm statistics at the freeze; None leaves them.
        batch: samples of a training step.

    Attributes:
        model: the model to train.
        scheduler: call ``epoch_step()`` at the beginning of each epoch and ``step()`` before each forward pass.
        groups: channel groups by name; ``close(indices)`` prunes by hand.
    """

    scheduler: DJPQScheduler

    def __init__(
        self,
        network: CompressedNetwork,
        settings: DJPQSettings,
        *,
        seed: int,
        data: Iterable[Any] | None,
        batch: int,
    ) -> None:
        super().__init__()
        self.model = network.model
        self._network = network
        self._settings = settings
        self._seed = seed
        self._data = data
        self._frozen = False
        self._gates = Gates(network.gates.values())
        self._bits = network.bit_widths()
        self._objective = Objective(network.cost, network.gates, self._bits, settings.pruning)
        self._strength = StrengthController(settings.schedule.ramp) if settings.target.given else None
        self._latest_use: Tensor | None = None
        self._fisher: FisherCriterion | None = None
        if network.gates and settings.pruning.criterion == "fisher":
            choices = choices_of(self._bits, power_of_two=settings.quantization.power_of_two)
            self._fisher = FisherCriterion(network, self._objective, choices, settings, batch=batch)
        self.scheduler = DJPQScheduler(
            settings.schedule,
            length_hint(data) or None,
            learned_gates=settings.pruning.criterion != "fisher",
            before_step=self._before_step,
            on_freeze=self.freeze,
        )
        self.groups = {name: PrunableGroup(network.analysis.groups[name], gate) for name, gate in network.gates.items()}
        self._draw_noise()

    def compression_loss(self) -> Tensor:
        """The compression term of equation (17), a scalar; zero once frozen.

        Without a target: ``gamma * sum log(1 + alpha) + beta * sum BOPs``, annealed. With one: a strength, adapted in
        every step, times the log of the tightest cost and the gates' penalty.
        """
        if self._frozen:
            return torch.zeros((), device=self._device)
        if self._strength is not None:
            terms = self._objective.with_budget(self._strength.strength, self._settings.target)
            self._latest_use = terms.use
            return terms.loss if self._fisher is None else terms.loss + self._fisher.zero.to(terms.loss.device)
        gamma = self._settings.pruning.gamma or 0.0
        beta = self._settings.quantization.beta or 0.0
        annealing = self.scheduler.annealing
        return self._objective.with_strengths(gamma * annealing, beta * annealing)

    def statistics(self) -> NNCFStatistics:
        """Costs with channels below the threshold counted as gone, and bit-widths as they are."""
        return NNCFStatistics(
            self._network.statistics(self._bits, None if self._frozen else self._settings.pruning.threshold)
        )

    def scalars(self) -> dict[str, float]:
        """Ratios now and asked for, and ``strength`` while a target sets it."""
        values = dict(self.statistics().djpq.ratios)
        values.update({f"{key}_asked": ratio for key, ratio in self._settings.target.given.items()})
        if self._strength is not None and not self._frozen:
            values["strength"] = self._strength.strength
        return values

    def report_data(self, *, title: str | None = None, verifications: Sequence[ExportVerification] = ()) -> RunReport:
        return report_of(
            self._network,
            self.statistics().djpq,
            title=title or "Compressed network",
            stage=self.compression_stage().value,
            asked=self._settings.target.given,
            verifications=verifications,
        )

    def param_groups(self, lr: float, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups "weights", "gates" (where they are learned), "bit_widths" and "ranges" for an optimizer.

        Args:
            lr: learning rate of the weights; the others have it times their multipliers. Bit-widths have more where
                they could not get far in the joint phase (``quantization.lr_multiplier``).
            options: further entries for every group, such as ``weight_decay``, which only the weights get.
        """
        return parameter_groups(self._network, self._settings, lr, options, joint_steps=self.scheduler.planned_steps)

    def freeze(self, *, weights_trained: bool | None = None) -> None:
        """Decide channels and integer bits, within the target; end the noise; re-estimate BatchNorm statistics.

        A network that was only quantized, its weights not trained, gets its biases corrected instead.
        The schedule calls it at ``schedule.freeze_epoch``. The epochs that follow fine-tune the weights.

        Args:
            weights_trained: whether the weights are others than the original's. None: if there was a training step.

        Raises:
            DataError: a gate or quantizer holds NaN, because the training diverged.
        """
        if self._frozen:
            return
        network = self._network
        network.check_finite()
        closed = self._fisher.closed if self._fisher is not None else {}
        decision = Decision(network.cost, network.analysis, network.gates, self._bits, self._settings, closed)
        keep, bits = decision.make()
        for name, gate in network.gates.items():
            channels = network.analysis.groups[name].channels
            kept = torch.from_numpy(keep[channels.start : channels.stop])
            gate.reopen(kept)
            gate.close((~kept).nonzero().flatten())
            gate.freeze()
        network.fold_gates()
        for quantizer, width in zip(self._bits.quantizers.values(), bits.tolist(), strict=True):
            quantizer.fix_bits(int(width))
        network.tighten_weight_ranges()
        if weights_trained is None:
            weights_trained = self.scheduler.global_step > 0
        self._adapt_means(only_quantized=not weights_trained and bool(keep.all()))
        self._frozen = True
        warn_if_off_target(self._settings.target.given, self.statistics().djpq.ratios)

    def _adapt_means(self, *, only_quantized: bool) -> None:
        """Re-estimate BatchNorm statistics; those of the original weights hold, but for what quantization shifts."""
        initializer = self._settings.initializer
        samples = initializer.num_bias_correction_samples if only_quantized else initializer.num_bn_adaptation_samples
        if self._data is None:
            if samples and any(isinstance(module, _BatchNorm) for module in self.model.modules()):
                warnings.warn(
                    "The model is frozen without init_data, so its BatchNorm statistics are not adapted. Pass "
                    "init_data to create_compressed_model, also when resuming.",
                    stacklevel=3,
                )
        elif only_quantized:
            correct_biases(self.model, self._bits.quantizers.values(), self._data, samples)
        else:
            reestimate_batchnorm(self.model, self._data, samples)

    @property
    def searches(self) -> bool:
        """Whether anything is left to be found: a channel that may go, or a bit-width that is not given."""
        return bool(self.groups) or self._bits.learned

    def reference(self) -> GraphModule:
        """A copy of the model as it is now, in eval mode, whose quantizers let everything pass."""
        copied = copy.deepcopy(self.model).eval()
        for module in copied.modules():
            if isinstance(module, LearnedQuantizer):
                module.observer = _ignore
        return copied

    def reconstruct(self, reference: GraphModule, data: Iterable[Any], *, samples: int = 512, steps: int = 300) -> None:
        """Tune each layer of the frozen network to compute what it does in ``reference``: no labels needed.

        Args:
            reference: what :meth:`reference` returned before anything was compressed.
            data: batches of samples.
            samples: how much of the data is used.
            steps: for each layer.

        Raises:
            DataError: the data is empty, or holds NaN or infinity.
        """
        if not self._frozen:
            raise RuntimeError("call freeze() first: layers are reconstructed at their final bit-widths")
        layers = self._network.operators
        reconstruct_layers(self.model, reference, layers, data, samples=samples, steps=steps, seed=self._seed)
        self._network.tighten_weight_ranges()

    def compression_stage(self) -> CompressionStage:
        """Uncompressed before the first step, fully compressed once frozen."""
        if self._frozen:
            return CompressionStage.FULLY_COMPRESSED
        if self.scheduler.global_step == 0:
            return CompressionStage.UNCOMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED

    def get_compression_state(self) -> dict[str, Any]:
        """Plain data; with ``model.state_dict()`` and the optimizer's it continues a run."""
        return {
            "algorithm": "djpq",
            "version": STATE_VERSION,
            "frozen": self._frozen,
            "seed": self._seed,
            "scheduler": self.scheduler.get_state(),
            "strength": None if self._strength is None else self._strength.get_state(),
            "fisher": None if self._fisher is None else self._fisher.get_state(),
            "latest_use": None if self._latest_use is None else float(self._latest_use),
            "groups": {name: group.size for name, group in self.groups.items()},
            "quantizers": list(self._bits.quantizers),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_compression_state`; load the model's ``state_dict`` besides.

        Raises:
            CheckpointError: the state belongs to another network, algorithm or version.
        """
        self._check_state(state)
        self._frozen = bool(state["frozen"])
        self._seed = int(state["seed"])
        self.scheduler.load_state(state["scheduler"])
        if self._strength is not None and state["strength"] is not None:
            self._strength.load_state(state["strength"])
        if self._fisher is not None and state["fisher"] is not None:
            self._fisher.load_state(state["fisher"])
        use = state["latest_use"]
        self._latest_use = None if use is None else torch.tensor(use)
        self._draw_noise()

    def distributed(self) -> None:
        """Nothing to prepare: the gates' noise depends on the seed and the step, so all processes draw the same.

        Wrap the model with ``DistributedDataParallel(model, find_unused_parameters=True)``: gates and bit-widths
        stop learning at the freeze.
        """

    def strip(self) -> GraphModule:
        """The compressed network by itself: channels gone, weights and biases on their grids, no gates. In eval mode.

        A run that ended before its freeze is frozen first.
        """
        if not self._frozen:
            warnings.warn(
                "The model is stripped before schedule.freeze_epoch, so it is frozen now, without the fine-tuning that "
                "should follow.",
                stacklevel=2,
            )
            self.freeze()
        keep = kept_channels(self._network.analysis, self._network.gates)
        stripped = remove(self.model, self._network.analysis, keep)
        round_biases(stripped)
        note_layers(stripped, self.statistics().djpq.provenance())
        return stripped

    def export_model(
        self, path: str | PathLike[str], *, opset: int | None = None, packed_weights: bool = False
    ) -> None:
        """Strip, and write OpenVINO IR (``.xml``) or ONNX (``.onnx``); see `djpq_nncf.export.export_model`.

        Raises:
            ExportError: the file cannot be written, or its suffix is neither.
        """
        export_model(self.strip().cpu(), Path(path), opset=opset, packed_weights=packed_weights)

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _before_step(self) -> None:
        self._bits.project_(self._fisher.bit_margin if self._fisher is not None else 0.0)
        if self._frozen:
            if self.scheduler.begins_epoch:
                self._network.tighten_weight_ranges()
            return
        progress, steps = self.scheduler.progress, self.scheduler.joint_steps
        if self._strength is not None and self._latest_use is not None:
            self._strength.update(float(self._latest_use), progress, steps)
        if self._fisher is not None and self._strength is not None:
            likelihoods = 1.0 + sum(term.likelihoods for term in self.terms)
            self._fisher.step(self._strength.strength, progress, steps, likelihoods)
        else:
            self._gates.project_()
        self._draw_noise()

    def _draw_noise(self) -> None:
        """Noise that depends on the seed and the step alone: the same in every process and after a resumption.

        The Fisher criterion needs none itself: it is for the bit-widths, where any are learned.
        """
        if self._fisher is not None and not self._bits.learned:
            return
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.scheduler.global_step)
        self._gates.sample_(generator)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if state.get("algorithm") != "djpq" or state.get("version") != STATE_VERSION:
            raise CheckpointError(
                f"The compression state is of algorithm {state.get('algorithm')!r}, version {state.get('version')!r}; "
                f"this is 'djpq', version {STATE_VERSION}. Use the library version that wrote it."
            )
        here = {name: group.size for name, group in self.groups.items()}
        if state.get("groups") != here or state.get("quantizers") != list(self._bits.quantizers):
            raise CheckpointError(
                "The compression state belongs to another network or configuration: its channel groups or quantizers "
                "differ. Create the model with the config that the state was saved with."
            )


def _ignore(value: Tensor) -> None:
    pass
