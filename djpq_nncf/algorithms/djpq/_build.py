# SPDX-License-Identifier: Apache-2.0
"""From a captured graph and the settings to a controller."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch.fx import GraphModule

from djpq_nncf.algorithms._data import iterate_inputs
from djpq_nncf.algorithms._registry import register_algorithm
from djpq_nncf.algorithms.djpq._controller import DJPQController
from djpq_nncf.algorithms.djpq._initialization import initialize_activation_ranges, initialize_weight_ranges
from djpq_nncf.algorithms.djpq._network import CompressedNetwork
from djpq_nncf.algorithms.djpq._overflow import SAFE_BITS, narrow_weights
from djpq_nncf.algorithms.djpq._settings import ActivationMode, DJPQSettings
from djpq_nncf.algorithms.djpq._targets import TOLERANCE, choices_of, reach
from djpq_nncf.channels import ChannelGroup, analyse_channels
from djpq_nncf.config import NNCFConfig, ScopeSettings, closest
from djpq_nncf.cost import CostModel, MacOperator, find_embeddings, find_mac_operators
from djpq_nncf.errors import ConfigError, DataError
from djpq_nncf.nn import ActivationQuantizer, Gate, Grid, LearnedQuantizer, WeightQuantizer
from djpq_nncf.passes import (
    NOTHING,
    ActivationPoint,
    decompose_attention,
    fold_computed_weights,
    insert,
    place_quantizers,
)

# MACs of one sample from which the training saves more time than the seconds that torch.compile takes.
_WORTH_COMPILING = 10_000_000

_HOLDERS_NAMED = 3
_USUAL_BATCH = 32


@register_algorithm("djpq")
def build_djpq(
    model: GraphModule,
    settings: Mapping[str, Any],
    *,
    config: NNCFConfig,
    init_data: Iterable[Any] | None,
    resuming: bool,
) -> DJPQController:
    """Insert gates and quantizers into a captured graph and initialise them.

    Args:
        model: a captured graph.
        settings: the algorithm's entry of the config, validated, defaults filled in.
        config: the whole config.
        init_data: batches to take ranges from, as large as those of the training.
        resuming: a state will be loaded, so that nothing needs to be initialised from data.

    Raises:
        ConfigError: a scope matches no layer, or the target is out of reach.
        DataError: ranges are to be initialised and there is no data.
    """
    parsed = DJPQSettings.from_dict(settings)
    if parsed.quantization.enabled and init_data is None and not resuming:
        raise DataError(
            "Quantizers start from ranges seen in data, and there is none. Pass init_data=your_loader to "
            "create_compressed_model: any iterable of tensors, (inputs, targets) or dicts; a few hundred samples do."
        )
    network = insert_gates_and_quantizers(model, parsed, config.target_device)
    if parsed.quantization.enabled and not resuming:
        assert init_data is not None
        quantization = parsed.quantization
        initialize_weight_ranges(
            network.model,
            network.weight_quantizers,
            quantization.weights.bits or quantization.weights.initial_bits,
            parsed.initializer,
        )
        initialize_activation_ranges(
            network.model,
            network.activation_quantizers,
            quantization.activations.bits or quantization.activations.initial_bits,
            init_data,
            parsed.initializer,
        )
    _check_target(network, parsed)
    batch = _batch_size(network.model, init_data)
    return DJPQController(network, parsed, seed=config.seed, data=init_data, batch=batch)


def _batch_size(model: GraphModule, data: Iterable[Any] | None) -> int:
    """Samples of a training step, as far as the data tells."""
    return _USUAL_BATCH if data is None else next(iterate_inputs(model, data, 1))[1]


def insert_gates_and_quantizers(
    model: GraphModule, settings: DJPQSettings, target_device: str = "ANY"
) -> CompressedNetwork:
    """The structural half of :func:`build_djpq`: no data needed, nothing initialised.

    Raises:
        ConfigError: a scope matches no layer.
    """
    pruning, quantization = settings.pruning, settings.quantization
    model = fold_computed_weights(model)
    if quantization.enabled:
        model = decompose_attention(model)
    operators, embeddings = find_mac_operators(model), find_embeddings(model)
    if not any(operator.weight for operator in operators):
        raise ConfigError("The network has no convolution and no linear layer, so there is nothing to compress.")
    kinds = {operator.layer: operator.kind for operator in (*operators, *embeddings)}
    for half, part in (("pruning", pruning), ("quantization", quantization)):
        _check_scope(part.ignored_scopes, kinds, f"$.compression.{half}.ignored_scopes")
        _check_scope(part.target_scopes, kinds, f"$.compression.{half}.target_scopes")

    def is_prunable(layer: str) -> bool:
        kind = kinds.get(layer)
        return pruning.enabled and _admits(pruning.ignored_scopes, pruning.target_scopes, layer, kind)

    def is_quantizable(operator: MacOperator) -> bool:
        scopes = quantization.ignored_scopes, quantization.target_scopes
        return _admits(*scopes, operator.layer, operator.kind)

    analysis = analyse_channels(model, is_prunable=is_prunable, roles=pruning.roles)
    placement = (
        place_quantizers(model, operators, embeddings, is_quantizable=is_quantizable, target_device=target_device)
        if quantization.enabled
        else NOTHING
    )
    narrow = narrow_weights(model, operators, embeddings, quantization.overflow_fix)
    inserted = insert(
        model,
        analysis,
        (*embeddings, *operators),
        placement,
        make_gate=lambda group: _make_gate(group, settings),
        make_weight_quantizer=lambda operator: _make_weight_quantizer(settings, narrow=operator.weight in narrow),
        make_activation_quantizer=lambda point: _make_activation_quantizer(settings, point),
    )
    cost = CostModel(operators, analysis, embeddings)
    for quantizer in (*inserted.weight_quantizers.values(), *inserted.activation_quantizers.values()):
        assert isinstance(quantizer, LearnedQuantizer)
        quantizer.compiled = cost.baseline_macs >= _WORTH_COMPILING
    return CompressedNetwork(
        model=inserted.model,
        analysis=analysis,
        operators=operators,
        embeddings=embeddings,
        placement=placement,
        cost=cost,
        gates={name: gate for name, gate in inserted.gates.items() if isinstance(gate, Gate)},
        weight_quantizers={k: q for k, q in inserted.weight_quantizers.items() if isinstance(q, WeightQuantizer)},
        activation_quantizers={
            k: q for k, q in inserted.activation_quantizers.items() if isinstance(q, ActivationQuantizer)
        },
    )


def _make_gate(group: ChannelGroup, settings: DJPQSettings) -> Gate:
    pruning = settings.pruning
    learned = pruning.criterion == "information_bottleneck"
    return Gate(group.size, log_variance=pruning.initial_log_variance, learned=learned, deviation=pruning.noise)


def _make_weight_quantizer(settings: DJPQSettings, *, narrow: bool) -> WeightQuantizer:
    weights = settings.quantization.weights

    def limited(bits: int) -> int:
        return min(bits, SAFE_BITS) if narrow else bits

    quantizer = WeightQuantizer(
        min_bits=limited(weights.min_bits),
        max_bits=limited(weights.max_bits),
        learn_exponent=weights.learn_exponent,
        power_of_two=settings.quantization.power_of_two,
    )
    if weights.bits is not None:
        quantizer.fix_bits(limited(weights.bits))
    return quantizer


def _make_activation_quantizer(settings: DJPQSettings, point: ActivationPoint) -> ActivationQuantizer:
    activations = settings.quantization.activations
    quantizer = ActivationQuantizer(
        _choose_grid(point, activations.mode),
        min_bits=activations.min_bits,
        max_bits=activations.max_bits,
        power_of_two=settings.quantization.power_of_two,
        rectifies=point.rectifies,
    )
    fixed = activations.input_bits if point.is_input else activations.bits
    if fixed is not None:
        quantizer.fix_bits(fixed)
    return quantizer


def _choose_grid(point: ActivationPoint, mode: ActivationMode) -> Grid:
    """Runtimes multiply two activations in INT8 only if neither grid is asymmetric."""
    if not point.signed:
        return "unsigned"
    wanted = mode == "asymmetric" or (mode == "auto" and point.skewed)
    return "asymmetric" if wanted and not point.multiplied else "symmetric"


def _admits(ignored: ScopeSettings, target: ScopeSettings | None, layer: str, kind: str | None) -> bool:
    return (target is None or target.matches(layer, kind)) and not ignored.matches(layer, kind)


def _check_scope(scope: ScopeSettings | None, kinds: Mapping[str, str], path: str) -> None:
    unmatched = scope.unmatched(kinds.items()) if scope is not None else ()
    if unmatched:
        near = closest(unmatched[0], [*kinds, *kinds.values()])
        raise ConfigError(
            f"{path}: {unmatched[0]!r} matches no layer of this network."
            + (f" Did you mean {near!r}?" if near else "")
            + " `djpq-nncf inspect` prints the names of all layers."
        )


def _check_target(network: CompressedNetwork, settings: DJPQSettings) -> None:
    """A target that even the smallest bit-widths miss is an error before the training, not after it."""
    target = settings.target.given
    if not target:
        return
    choices = choices_of(network.bit_widths(), power_of_two=settings.quantization.power_of_two)
    reaches = reach(choices, network.cost, network.analysis, settings.pruning.round_to)
    for key, ratio in target.items():
        if reaches[key].least > ratio:
            holders = ", ".join(f"{name} ({share:.0%})" for name, share in reaches[key].holders[:_HOLDERS_NAMED])
            raise ConfigError(
                f"$.compression.target.{key}: {ratio} is out of reach. With every bit-width at its least and every "
                f"prunable channel gone but the last of each group (pruning.round_to), {reaches[key].least:.5f} are "
                f"left, most of that in {holders}. Ask for more than that, lower min_bits or input_bits, take layers "
                "out of ignored_scopes, or enable pruning."
            )
    if all(reaches[key].greatest < (1 - TOLERANCE) * ratio for key, ratio in target.items()):
        named = ", ".join(f"{key} {ratio}, where it has {reaches[key].greatest:.5f}" for key, ratio in target.items())
        warnings.warn(
            f"$.compression.target asks for nothing: {named} with every bit-width at its greatest.",
            stacklevel=4,
        )
