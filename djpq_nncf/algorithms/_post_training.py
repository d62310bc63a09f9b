# SPDX-License-Identifier: Apache-2.0
"""Compression without labels and without a training loop, from a few hundred samples."""

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from djpq_nncf.algorithms._create import create_compressed_model
from djpq_nncf.algorithms._data import iterate_inputs
from djpq_nncf.algorithms._distillation import DISTILLATION, Distillation, DistillationSettings
from djpq_nncf.algorithms._progress import track
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import ConfigError

_RATE = 0.01


def compress_post_training(
    model: nn.Module,
    config: NNCFConfig | Mapping[str, Any],
    init_data: Iterable[Any],
    *,
    example_inputs: Any = None,
    samples: int = 512,
    search_steps: int = 300,
    reconstruction_steps: int = 300,
) -> tuple[DJPQController, GraphModule]:
    """Compress a trained model from a few hundred samples without labels.

    Gates and quantizers are learned as in training, with the outputs of the original in the place of a task's loss and
    the weights as they are; then the network is frozen within its target, and each layer learns to compute what it did
    before (layer-wise reconstruction). What is returned can be exported, or trained further: it is frozen.

    Args:
        model: the trained network; it is not changed.
        config: as for :func:`create_compressed_model`; of ``schedule`` only ``ramp`` counts. An entry
            ``knowledge_distillation`` says how outputs are compared; without it by their mean squared error.
        init_data: batches of samples, as for :func:`create_compressed_model`; iterated more than once.
        example_inputs: as for :func:`create_compressed_model`.
        samples: how much of the data is used.
        search_steps: batches that gates and quantizers learn from; none is needed where nothing is to be found, since
            all bit-widths are given and pruning is off.
        reconstruction_steps: for each layer.

    Returns:
        The controller, and the frozen GraphModule.

    Raises:
        ConfigError: the config is not valid, does not fit the model, or is of another algorithm.
        CaptureError: the model cannot be captured.
        DataError: ``init_data`` is unusable.

    Example:
        >>> config = {"compression": {"algorithm": "djpq", "target": {"bops_ratio": 0.03}}}
        >>> ctrl, small = compress_post_training(model, config, loader)  # doctest: +SKIP
        >>> ctrl.export_model("small.xml")  # doctest: +SKIP
    """
    config = NNCFConfig.from_dict(_with_schedule(config, search_steps))
    ctrl, compressed = create_compressed_model(model, config, init_data=init_data, example_inputs=example_inputs)
    if not isinstance(ctrl, DJPQController):
        raise ConfigError('$.compression: post-training compression needs {"algorithm": "djpq"}.')
    reference = ctrl.reference()
    if ctrl.searches and search_steps:
        if not any(entry["algorithm"] == DISTILLATION for entry in config.algorithms):
            scale = 1 / _power_of_outputs(reference, init_data)
            ctrl.terms.append(Distillation(compressed, reference, DistillationSettings("mse", scale, 1.0)))
        _search(ctrl, init_data, samples, search_steps)
    ctrl.freeze(weights_trained=False)
    ctrl.terms.clear()
    ctrl.reconstruct(reference, init_data, samples=samples, steps=reconstruction_steps)
    return ctrl, compressed


def _with_schedule(config: NNCFConfig | Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The search is one epoch; if training follows, it is of the frozen network."""
    changed = copy.deepcopy(dict(config))
    entries = changed.get("compression", [])
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict) and entry.get("algorithm") == "djpq":
            pruning, schedule = entry.get("pruning", {}), entry.get("schedule", {})
            if not isinstance(pruning, dict) or not isinstance(schedule, dict):
                continue  # the schema says what is wrong
            if pruning.get("criterion") is None:
                # The original's outputs as the loss: there is no likelihood behind it, no derivative at the start.
                entry["pruning"] = {**pruning, "criterion": "information_bottleneck"}
            ramp = {"ramp": schedule["ramp"]} if "ramp" in schedule else {}
            entry["schedule"] = {"epochs": 2, "freeze_epoch": 1, "steps_per_epoch": max(steps, 1), **ramp}
    return changed


@torch.no_grad()
def _power_of_outputs(reference: GraphModule, data: Iterable[Any]) -> float:
    """Mean square of what the original returns for the first batch."""
    ((args, kwargs), _) = next(iterate_inputs(reference, data, 1))
    outputs = [leaf for leaf in tree_leaves(reference(*args, **kwargs)) if isinstance(leaf, Tensor)]
    squares = [float(leaf.float().square().mean()) for leaf in outputs if leaf.is_floating_point()]
    return max(sum(squares), 1e-12)


def _search(ctrl: DJPQController, data: Iterable[Any], samples: int, steps: int) -> None:
    """Gates and quantizers learn; weights and BatchNorm statistics stay."""
    model = ctrl.model
    inputs = [batch for batch, _ in iterate_inputs(model, data, samples)]
    groups = [group for group in ctrl.param_groups(lr=_RATE) if group["name"] != "weights"]
    learned = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.Adam(learned, lr=_RATE)
    ctrl.scheduler.epoch_step()
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.Dropout):
            module.eval()
    with track("Searching channels and bit-widths", steps) as advance:
        for args, kwargs in itertools.islice(itertools.cycle(inputs), steps):
            ctrl.scheduler.step()
            model(*args, **kwargs)
            optimizer.zero_grad()
            ctrl.loss().backward()
            optimizer.step()
            advance(1)
    model.zero_grad()
    model.eval()
