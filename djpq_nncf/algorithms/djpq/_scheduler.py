# SPDX-License-Identifier: Apache-2.0
"""Where the training is, and how hard compression pulls there."""

import math
from collections.abc import Callable
from typing import Any

from djpq_nncf.algorithms._contract import CompressionScheduler
from djpq_nncf.algorithms.djpq._settings import ScheduleSettings

_FIRST_STRENGTH = 0.05
_LOWEST_STRENGTH = 1e-4
# Gates answer late: a channel is useless long before its alpha falls below the threshold. Without a limit the
# strength would rise meanwhile until every gate is closed. What it leaves undone, the freeze does.
_HIGHEST_STRENGTH = 2.0
_PROPORTIONAL_GAIN = 4.0
_INTEGRAL_GAIN = 60.0
_JOINT_SHARE = 1 / 3
# In long trainings a search for a third of the epochs loses more (docs/method.md, "How long to search"): it has no more
# than so many epochs, or steps if these take longer.
_MOST_EPOCHS = 4
_MOST_STEPS = 1500


class StrengthController:
    """Adapts the strength until the use of the budget follows a falling set point (PI control of the logarithm).

    The set point falls from where the network starts to 1, linearly in the logarithm, over a share ``ramp`` of the
    joint phase, and stays there.
    """

    def __init__(self, ramp: float) -> None:
        self._ramp = ramp
        self._start: float | None = None
        self._integral = math.log(_FIRST_STRENGTH)
        self.strength = _FIRST_STRENGTH

    def update(self, use: float, progress: float, steps: int) -> None:
        """Learn the use of the budget now.

        Args:
            use: soft cost / target.
            progress: share of the joint phase that has passed.
            steps: length of the joint phase.
        """
        if not math.isfinite(use) or use <= 0:
            return
        if self._start is None:
            self._start = max(use, 1.0)
        share = min(1.0, progress / self._ramp) if self._ramp > 0 else 1.0
        error = math.log(use) - (1 - share) * math.log(self._start)
        bounds = math.log(_LOWEST_STRENGTH), math.log(_HIGHEST_STRENGTH)
        self._integral = min(max(self._integral + _INTEGRAL_GAIN * error / steps, bounds[0]), bounds[1])
        self.strength = math.exp(min(max(self._integral + _PROPORTIONAL_GAIN * error, bounds[0]), bounds[1]))

    def get_state(self) -> dict[str, Any]:
        """Plain data to continue from."""
        return {"start": self._start, "integral": self._integral, "strength": self.strength}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        self._start, self._integral, self.strength = state["start"], state["integral"], state["strength"]


class DJPQScheduler(CompressionScheduler):
    """Counts epochs and steps; freezes when the joint phase is over.

    Args:
        settings: length of the training and of its joint phase.
        steps_per_epoch: if known; else it is learned from the first epoch.
        learned_gates: whether channels go by learned gates, which take their time.
        before_step: called in every step, before the forward pass.
        on_freeze: called once, when the epoch of the freeze begins.
    """

    def __init__(
        self,
        settings: ScheduleSettings,
        steps_per_epoch: int | None,
        *,
        learned_gates: bool,
        before_step: Callable[[], None],
        on_freeze: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._steps_per_epoch = settings.steps_per_epoch or steps_per_epoch
        self._limit: int | None = None
        if self._steps_per_epoch and not learned_gates:
            self._limit = max(_MOST_EPOCHS, round(_MOST_STEPS / self._steps_per_epoch))
        self._before_step = before_step
        self._on_freeze = on_freeze
        self.epoch = -1
        self.global_step = 0
        self._steps_this_epoch = 0

    @property
    def _joint_epochs(self) -> int:
        """The epoch of the freeze: what the config says, or what is usual."""
        if self._settings.freeze_epoch is not None:
            return self._settings.freeze_epoch
        usual = max(1, round(_JOINT_SHARE * self._settings.epochs))
        return usual if self._limit is None else min(usual, self._limit)

    @property
    def joint_steps(self) -> int:
        """Steps of the joint phase, as far as known."""
        per_epoch = self._steps_per_epoch or max(self._steps_this_epoch, 100)
        return max(1, self._joint_epochs * per_epoch)

    @property
    def planned_steps(self) -> int | None:
        """Steps of the joint phase; None as long as the length of an epoch is not known."""
        return self._joint_epochs * self._steps_per_epoch if self._steps_per_epoch else None

    @property
    def begins_epoch(self) -> bool:
        """Whether this step is the first of its epoch."""
        return self._steps_this_epoch == 1

    @property
    def progress(self) -> float:
        """Share of the joint phase that has passed, from 0 to 1."""
        per_epoch = self._steps_per_epoch
        inside = min(1.0, self._steps_this_epoch / per_epoch) if per_epoch else 0.0
        return min(1.0, (max(self.epoch, 0) + inside) / self._joint_epochs)

    @property
    def annealing(self) -> float:
        """Factor on gamma and beta (Algorithm 1 anneals them): 1 / n, 2 / n, ... 1 over the first epochs."""
        ramp = max(1, round(self._settings.ramp * self._joint_epochs))
        return min(1.0, (max(self.epoch, 0) + 1) / ramp)

    def epoch_step(self) -> None:
        if self.epoch >= 0 and self._steps_this_epoch and not self._settings.steps_per_epoch:
            self._steps_per_epoch = self._steps_this_epoch
        self.epoch += 1
        self._steps_this_epoch = 0
        if self.epoch >= self._joint_epochs:
            self._on_freeze()

    def step(self) -> None:
        self.global_step += 1
        self._steps_this_epoch += 1
        known = self._settings.steps_per_epoch is not None
        if not known and self._steps_per_epoch is not None and self._steps_this_epoch > self._steps_per_epoch:
            self._steps_per_epoch = None  # init_data was a smaller set than the one trained on
        self._before_step()

    def get_state(self) -> dict[str, Any]:
        """Plain data to continue from."""
        return {
            "epoch": self.epoch,
            "global_step": self.global_step,
            "steps_this_epoch": self._steps_this_epoch,
            "steps_per_epoch": self._steps_per_epoch,
            "limit": self._limit,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        self.epoch, self.global_step = state["epoch"], state["global_step"]
        self._steps_this_epoch, self._steps_per_epoch = state["steps_this_epoch"], state["steps_per_epoch"]
        self._limit = state["limit"]
