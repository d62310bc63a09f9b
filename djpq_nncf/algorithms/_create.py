# SPDX-License-Identifier: Apache-2.0
"""The entry point: a model and a config in, a controller and a compressed model out."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from djpq_nncf.algorithms._contract import CompressionController
from djpq_nncf.algorithms._data import check_finite, dynamic_from_config, find_example, to_device
from djpq_nncf.algorithms._distillation import DISTILLATION, Distillation, DistillationSettings
from djpq_nncf.algorithms._registry import get_algorithm
from djpq_nncf.capture import capture
from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import ConfigError
from djpq_nncf.export import note_config


def create_compressed_model(
    model: nn.Module,
    config: NNCFConfig | Mapping[str, Any],
    compression_state: Mapping[str, Any] | None = None,
    *,
    init_data: Iterable[Any] | None = None,
    example_inputs: Any = None,
) -> tuple[CompressionController, GraphModule]:
    """Prepare a trained model for compression in its training loop.

    Args:
        model: the trained network; it is not changed.
        config: what to do, validated here if it is a plain mapping.
        compression_state: of an earlier run, to continue it (then load the ``state_dict()`` into the model returned).
        init_data: batches to initialise ranges from, and to re-estimate BatchNorm statistics with: a data loader or
            any iterable of tensors, (inputs, targets) or dicts. It is iterated more than once.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch dimension first.
            Without it ``input_info`` of the config is used, or the first batch of ``init_data``. The dynamic
            dimensions are those of ``input_info`` in any case.

    Returns:
        The controller, and a GraphModule to train in place of ``model``.

    Raises:
        ConfigError: the config is not valid or does not fit the model.
        CaptureError: the model cannot be captured.
        DataError: ``init_data`` is missing or unusable.

    Example:
        >>> config = NNCFConfig.from_dict({"compression": {"algorithm": "djpq"}})
        >>> ctrl, model = create_compressed_model(model, config, init_data=loader)  # doctest: +SKIP
        >>> optimizer = torch.optim.Adam(ctrl.param_groups(lr=1e-3))  # doctest: +SKIP
    """
    if not isinstance(config, NNCFConfig):
        config = NNCFConfig.from_dict(config)
    algorithms = config.algorithms
    if not algorithms:
        raise ConfigError(
            '$.compression: the config asks for no compression. Add "compression": {"algorithm": "djpq"}.'
        )
    compressing = [entry for entry in algorithms if entry["algorithm"] != DISTILLATION]
    if len(compressing) != 1:
        names = ", ".join(str(entry["algorithm"]) for entry in compressing) or "none"
        raise ConfigError(
            f"$.compression: of the algorithms that compress the list has {names}; give one, such as "
            '{"algorithm": "djpq"}, with or without {"algorithm": "knowledge_distillation", ...}.'
        )
    (settings,) = compressing
    args, kwargs = find_example(example_inputs, config.input_infos, init_data)
    check_finite((args, kwargs), "example inputs")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, kwargs = to_device((args, kwargs), device)
    captured = capture(model, args, kwargs, dynamic=dynamic_from_config(config.input_infos))
    note_config(captured, config.resolved())
    build = get_algorithm(settings["algorithm"])
    controller: CompressionController = build(
        captured, settings, config=config, init_data=init_data, resuming=compression_state is not None
    )
    if compression_state is not None:
        controller.load_state(compression_state)
    for entry in algorithms:
        if entry["algorithm"] == DISTILLATION:
            teacher = DistillationSettings.from_dict(entry)
            controller.terms.append(Distillation(controller.model, model, teacher))
    return controller, controller.model
