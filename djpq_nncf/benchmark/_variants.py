# SPDX-License-Identifier: Apache-2.0
"""A network as files to compare: FP32, INT8 by NNCF after the training, and compressed by djpq_nncf untrained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from djpq_nncf.algorithms import CompressionController, create_compressed_model
from djpq_nncf.algorithms.djpq import block_of
from djpq_nncf.benchmark._calibration import Calibration, random_calibration, read_calibration
from djpq_nncf.benchmark._entry import Entry
from djpq_nncf.capture import DynamicDims, capture
from djpq_nncf.config import NNCFConfig
from djpq_nncf.cost import find_mac_operators
from djpq_nncf.errors import ExportError
from djpq_nncf.export import export_model
from djpq_nncf.nncf_bridge import quantize_post_training

INT8_CONFIG: dict[str, Any] = {
    "compression": {
        "algorithm": "djpq",
        "pruning": {"gamma": 0},
        "quantization": {"weights": {"bits": 8}, "activations": {"bits": 8}},
        "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}},
    }
}
"""Every layer in 8 bits, ranges from the calibration samples, nothing pruned."""


@dataclass(frozen=True)
class Plan:
    """What to make of a network.

    Attributes:
        example: positional and keyword inputs, batch first.
        suffixes: of the files, ".xml" and ".onnx".
        config: of the compression; None for all layers in 8 bits.
        shares: of the channels of each group that are removed at random, each a variant; 0 removes none.
        calibration: file with samples; None for noise.
        dynamic: sizes besides the batch that are free, as ``capture()`` takes them.
    """

    example: tuple[tuple[Any, ...], dict[str, Any]]
    suffixes: Sequence[str]
    config: NNCFConfig | None
    shares: Sequence[float] = (0.0,)
    calibration: Path | None = None
    dynamic: dict[int | str, DynamicDims] | None = None


def write_variants(
    name: str, model: nn.Module, plan: Plan, folder: Path, *, say: Callable[[str], None] = print
) -> list[Entry]:
    """Write a network in every variant and format of a plan.

    Args:
        name: of the network, for the table.
        model: the network, trained or not; it is not changed.
        plan: what to write.
        folder: where to; it has to exist.
        say: gets a line at each stage.

    Returns:
        FP32, the baseline, in each format; INT8 by NNCF in each; and ours.

    Raises:
        CaptureError: the network cannot be captured.
        DataError: calibration samples do not fit.
        ExportError: a file cannot be written, or NNCF cannot quantize one.
    """
    args, kwargs = plan.example
    shape = tuple(args[0].shape) if len(args) == 1 and not kwargs else None
    say(f"{name}: exporting FP32")
    captured = capture(model.eval(), args, kwargs, dynamic=plan.dynamic)
    originals = [folder / f"fp32{suffix}" for suffix in plan.suffixes]
    for path in originals:
        export_model(captured, path)
    calibration = (
        random_calibration(originals[0], shape)
        if plan.calibration is None
        else read_calibration(plan.calibration, originals[0])
    )
    say(f"{name}: quantizing with NNCF, ranges from {calibration}")
    transformer = any(operator.weight is None for operator in find_mac_operators(captured))
    target_device = "ANY" if plan.config is None else plan.config.target_device
    quantized = [folder / f"nncf{suffix}" for suffix in plan.suffixes]
    for source, target in zip(originals, quantized, strict=True):
        quantize_file(source, target, calibration, target_device=target_device, transformer=transformer)
    return [
        *(Entry(name, path, "FP32", is_baseline=True, shape=shape) for path in originals),
        *(Entry(name, path, "INT8, NNCF", shape=shape) for path in quantized),
        *_compressed(name, model, plan, calibration, folder, shape, say),
    ]


def quantize_file(
    source: Path, target: Path, calibration: Calibration, *, target_device: str = "ANY", transformer: bool = False
) -> None:
    """NNCF's post-training quantization of an exported file, written beside it.

    Raises:
        ExportError: NNCF cannot quantize it.
    """
    read, write = _openvino_files() if source.suffix == ".xml" else _onnx_files()
    try:
        quantized = quantize_post_training(
            read(source),
            list(calibration.batches()),
            target_device=target_device,
            transformer=transformer,
            # ONNX Runtime (1.32) fails where a convolution's input has a scale for each channel
            activations_per_channel=source.suffix == ".xml",
        )
    except Exception as error:  # NNCF lets errors of every kind escape
        raise ExportError(
            f"NNCF cannot quantize the network as {source.suffix}: {type(error).__name__}: {error}. "
            "Choose the other format with --runtime."
        ) from error
    write(quantized, target)


def _compressed(
    name: str,
    model: nn.Module,
    plan: Plan,
    calibration: Calibration,
    folder: Path,
    shape: tuple[int, ...] | None,
    say: Callable[[str], None],
) -> Iterator[Entry]:
    config = plan.config or NNCFConfig.from_dict(INT8_CONFIG)
    batches = [{key: torch.from_numpy(array) for key, array in batch.items()} for batch in calibration.batches()]
    data: list[Any] = batches if shape is None else [x for batch in batches for x in batch.values()]
    args, kwargs = plan.example
    for share in plan.shares:
        variant = "INT8, djpq_nncf" if plan.config is None else "djpq_nncf"
        variant += f", {share:.0%} of channels removed" if share else ""
        say(f"{name}: compressing untrained ({variant})")
        ctrl, _ = create_compressed_model(model, config, init_data=data, example_inputs=kwargs or args)
        remove_at_random(ctrl, share, config.algorithms[0]["pruning"]["round_to"], config.seed)
        ctrl.freeze()
        for suffix in plan.suffixes:
            path = folder / f"djpq_{100 * share:g}{suffix}"
            ctrl.export_model(path)
            yield Entry(name, path, variant, shape=shape)


def remove_at_random(ctrl: CompressionController, share: float, round_to: int | None, seed: int = 0) -> None:
    """Close a share of the channels of each group; the number that stays is rounded up as ``round_to`` says."""
    generator = torch.Generator().manual_seed(seed)
    for group in ctrl.groups.values():
        block = block_of(group.role, group.size, round_to)
        left = max(1, round((1 - share) * group.size))
        left = min(-(-left // block) * block, group.size)
        group.close(torch.randperm(group.size, generator=generator)[left:].tolist())


def _openvino_files() -> tuple[Callable[[Path], Any], Callable[[Any, Path], None]]:
    import openvino as ov

    return ov.Core().read_model, lambda model, path: ov.save_model(model, path, compress_to_fp16=False)


def _onnx_files() -> tuple[Callable[[Path], Any], Callable[[Any, Path], None]]:
    import onnx.version_converter

    # ONNX Runtime (1.32) cannot load what NNCF makes of some networks in opset 21: its optimizer gives QuantizeLinear
    # an output_dtype that contradicts the zero point
    return lambda path: onnx.version_converter.convert_version(onnx.load(path), 20), onnx.save
