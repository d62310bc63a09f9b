# SPDX-License-Identifier: Apache-2.0
"""What the report shows of a network under DJPQ."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from djpq_nncf.algorithms.djpq._network import CompressedNetwork
from djpq_nncf.algorithms.djpq._statistics import DJPQStatistics
from djpq_nncf.export import ExportVerification, config_of, package_versions
from djpq_nncf.passes import kept_channels
from djpq_nncf.report import FileCheck, FrozenFigures, GroupFigures, LayerFigures, RunReport, layers_of_groups


def report_of(
    network: CompressedNetwork,
    statistics: DJPQStatistics,
    *,
    title: str,
    stage: str,
    asked: Mapping[str, float],
    verifications: Sequence[ExportVerification],
) -> RunReport:
    """Everything the report shows besides the course of the training."""
    embeddings = [
        LayerFigures(
            name=entry.name,
            kind="embedding",
            weight_bits=entry.weight_bits,
            activation_bits=None,
            in_channels=(entry.rows, entry.rows),
            out_channels=entry.channels,
            macs=0,
            baseline_macs=0,
            weights=(entry.rows * entry.channels[0], entry.rows * entry.channels[1]),
        )
        for entry in statistics.embeddings
    ]
    layers = [
        LayerFigures(
            name=layer.name,
            kind=layer.kind,
            weight_bits=layer.weight_bits,
            activation_bits=layer.activation_bits,
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            macs=layer.macs,
            baseline_macs=layer.baseline_macs,
            weights=layer.weights,
        )
        for layer in statistics.layers
    ]
    return RunReport(
        title=title,
        stage=stage,
        ratios=statistics.ratios,
        asked=dict(asked),
        layers=(*embeddings, *layers),
        groups=_groups(network),
        frozen=tuple(
            FrozenFigures(entry.layer, f"{entry.what} stay", entry.reason) for entry in statistics.frozen_channels
        ),
        checks=tuple(_check(verification) for verification in verifications),
        config=config_of(network.model) or {},
        versions=package_versions("openvino", "onnxruntime"),
    )


def _groups(network: CompressedNetwork) -> tuple[GroupFigures, ...]:
    keep = kept_channels(network.analysis, network.gates)
    entries = [
        GroupFigures(
            name=one.group.name,
            role=one.group.role,
            kept=int(keep[one.group.channels.start : one.group.channels.stop].sum()),
            size=one.group.size,
            made_by=tuple(one.made_by),
            read_by=tuple(one.read_by),
        )
        for one in layers_of_groups(network.analysis, network.model)
    ]
    return tuple(sorted(entries, key=lambda entry: entry.role))


def _check(verification: ExportVerification) -> FileCheck:
    return FileCheck(
        file=Path(verification.path).name,
        runtime=verification.runtime,
        samples=verification.samples,
        max_abs_difference=verification.max_abs_difference,
        max_relative_difference=verification.max_relative_difference,
        top1_agreement=verification.top1_agreement,
        int8_mac_share=verification.int8_mac_share,
        not_int8=tuple(
            f"{layer.name} ({layer.operator}, {layer.precision})" for layer in verification.layers if not layer.int8
        ),
    )
