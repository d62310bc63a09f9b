# SPDX-License-Identifier: Apache-2.0
"""The contract that a training loop relies on."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from djpq_nncf.algorithms import CompressionStage, create_compressed_model
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.errors import ConfigError, DataError
from djpq_nncf.nn import ActivationQuantizer, Gate, GatedWeight, WeightQuantizer, _loops
from tests.helpers import NETWORKS, PRUNING_ONLY, QUANTIZATION_ONLY, VGG7, images, strip


def batches(count: int = 4, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Images whose class is that of their brightest channel, so that there is something to learn."""
    result = []
    for number in range(count):
        x = images(size, seed=number)
        result.append((x + x.mean((2, 3), keepdim=True) * 5, x.mean((2, 3)).argmax(1)))
    return result


def compress(model: nn.Module, data: Any = None, **djpq: Any) -> tuple[DJPQController, GraphModule]:
    config = {"compression": {"algorithm": "djpq", **djpq}}
    controller, compressed = create_compressed_model(model, config, init_data=data or batches())
    assert isinstance(controller, DJPQController)
    assert compressed is controller.model
    return controller, compressed


def train(controller: DJPQController, epochs: int, data: list[tuple[Tensor, Tensor]], lr: float = 3e-3) -> None:
    optimizer = torch.optim.Adam(controller.param_groups(lr=lr))
    for _ in range(epochs):
        controller.model.train()
        controller.scheduler.epoch_step()
        for x, y in data:
            controller.scheduler.step()
            loss = F.cross_entropy(controller.model(x), y) + controller.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_original_model_is_not_changed() -> None:
    model = NETWORKS["plain"]().train()
    before = copy.deepcopy(model.state_dict())
    controller, _ = compress(model, schedule={"epochs": 2, "freeze_epoch": 1})
    train(controller, 2, batches())
    controller.strip()
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model).__name__ == "Plain"


@pytest.mark.parametrize("name", ["plain", "bottleneck", "shared_norm"])
def test_plain_checkpoint_loads(name: str) -> None:
    """Strictly, and into the parameters it is meant for."""
    _, compressed = compress(NETWORKS[name]())
    other = NETWORKS[name]()
    inserted = {k: v.clone() for k, v in compressed.state_dict().items() if k.startswith("compression.")}
    assert set(other.state_dict()) == set(compressed.state_dict()) - set(inserted)
    compressed.load_state_dict(other.state_dict(), strict=True)
    state = compressed.state_dict()
    assert all(torch.equal(state[key], value) for key, value in other.state_dict().items())
    assert all(torch.equal(state[key], value) for key, value in inserted.items())


def test_starts_close_to_the_original() -> None:
    """Eight bits and open gates."""
    model = NETWORKS["bottleneck"]().eval()
    quantization = {"weights": {"initial_bits": 8}, "activations": {"initial_bits": 8}}
    _, compressed = compress(model, quantization=quantization)
    x = batches()[0][0]
    with torch.no_grad():
        difference = (compressed.eval()(x) - model(x)).abs().max() / model(x).abs().max()
    assert 0 < difference < 0.1


def test_train_and_eval_differ_as_they_should() -> None:
    controller, compressed = compress(
        NETWORKS["identity_residual"](),
        pruning={"criterion": "information_bottleneck", "initial_log_variance": -2.0},
    )
    x = images(4)
    with torch.no_grad():
        compressed.eval()
        assert torch.equal(compressed(x), compressed(x))
        still = compressed(x)
        controller.scheduler.step()
        assert torch.equal(compressed(x), still), "no noise in eval mode"
        compressed.train()
        first = compressed(x)
        controller.scheduler.step()
        assert not torch.equal(compressed(x), first), "new noise in each step"
        assert compressed.get_submodule("bn1").num_batches_tracked == 2
    assert all(module.training for module in compressed.modules())


def test_deepcopy_to_and_any_batch_size() -> None:
    controller, compressed = compress(NETWORKS["squeeze_excite"]())
    compressed.eval()
    x = images(5)
    with torch.no_grad():
        expected = compressed(x)
        assert torch.equal(copy.deepcopy(compressed)(x), expected)
        for batch in (1, 2, 3):
            torch.testing.assert_close(compressed(x[:batch]), expected[:batch], rtol=1e-4, atol=1e-5)
        double = copy.deepcopy(compressed).to(torch.float64)
        assert double(x.double()).dtype == torch.float64
    assert controller.model is compressed


def two_convolutions() -> nn.Module:
    """Little to compile."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 5, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles(training: bool) -> None:
    controller, compressed = compress(NETWORKS["identity_residual"]())
    controller.scheduler.step()
    compressed.train(training)
    x = images(4)
    compiled = torch.compile(copy.deepcopy(compressed), backend="aot_eager", fullgraph=True)
    expected, actual = compressed(x), compiled(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    actual.sum().backward()


@pytest.mark.parametrize("frozen", [False, True], ids=["joint", "frozen"])
def test_compiled_gradients(*, frozen: bool) -> None:
    """The compiler lays tensors out otherwise than the trace shows: nothing may depend on that."""
    if _loops.Loop.compiler_works is False:
        pytest.skip("no compiler here")
    controller, compressed = compress(two_convolutions())
    controller.scheduler.step()
    if frozen:
        controller.freeze()
    compressed.double().train()  # where hardly anything is rounded otherwise because of a last digit
    x, parameters = images(4).double(), [p for p in compressed.parameters() if p.requires_grad]

    def gradients(model: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(model(x).square().sum(), parameters, materialize_grads=True)

    torch.compiler.reset()
    torch.testing.assert_close(gradients(torch.compile(compressed)), gradients(compressed), rtol=1e-6, atol=1e-8)


def test_parameter_groups() -> None:
    controller, compressed = compress(
        NETWORKS["plain"](),
        compression_lr_multiplier=0.5,
        pruning={"criterion": "information_bottleneck", "lr_multiplier": 20.0},
        quantization={"lr_multiplier": 6.0, "range_lr_multiplier": 2.0},
    )
    groups = controller.param_groups(lr=0.01, weight_decay=1e-4, momentum=0.9)
    assert [group["name"] for group in groups] == ["weights", "gates", "bit_widths", "ranges"]
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.1, 0.03, 0.01])
    assert [group["weight_decay"] for group in groups] == [1e-4, 0, 0, 0]
    assert {group["momentum"] for group in groups} == {0.9}
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in compressed.parameters())
    names = {id(parameter): name for name, parameter in compressed.named_parameters()}
    prefixes = [{names[id(p)].startswith("compression.") for p in group["params"]} for group in groups]
    assert prefixes == [{False}, {True}, {True}, {True}]
    assert all(".gates." in names[id(p)] for p in groups[1]["params"])
    assert all("_quantizers." in names[id(p)] and "log_levels" in names[id(p)] for p in groups[2]["params"])
    assert all("_quantizers." in names[id(p)] and "log_levels" not in names[id(p)] for p in groups[3]["params"])
    torch.optim.SGD(groups)


class Stream:
    """Data that does not say how much of it there is."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(batches())


@pytest.mark.parametrize(
    ("lr", "steps", "multiplier", "rate"),
    [
        (1e-3, 10_000, None, 3e-3),
        (1e-5, 10_000, None, 5.924e-4),  # 4/3 * log(255 / 3), in 10,000 steps
        (1e-3, 40, None, 0.1481),
        (1e-3, None, None, 3e-3),
        (1e-3, 40, 2.0, 2e-3),
    ],
)
def test_bit_widths_can_get_anywhere_in_the_joint_phase(
    lr: float, steps: int | None, multiplier: float | None, rate: float
) -> None:
    quantization = {} if multiplier is None else {"lr_multiplier": multiplier}
    schedule = {"epochs": 12, "freeze_epoch": 4, "steps_per_epoch": steps and steps // 4}
    entry = {"algorithm": "djpq", "quantization": quantization, "schedule": schedule, "compression_lr_multiplier": 2.0}
    controller, _ = create_compressed_model(NETWORKS["plain"](), {"compression": entry}, init_data=Stream())
    rates = {group["name"]: group["lr"] for group in controller.param_groups(lr=lr)}
    assert rates["bit_widths"] == pytest.approx(2 * rate, rel=1e-3)
    assert rates["ranges"] == pytest.approx(2 * lr)


@pytest.mark.parametrize(
    ("half", "learned", "kinds"),
    [
        (PRUNING_ONLY, [], (WeightQuantizer, ActivationQuantizer)),  # masks are not learned
        (QUANTIZATION_ONLY, ["bit_widths", "ranges"], (Gate, GatedWeight)),
    ],
)
def test_parameter_groups_of_one_half(
    half: dict[str, Any], learned: list[str], kinds: tuple[type[nn.Module], ...]
) -> None:
    controller, compressed = compress(NETWORKS["plain"](), **half, target={"bops_ratio": 0.06})
    assert [group["name"] for group in controller.param_groups(lr=0.1)] == ["weights", *learned]
    assert not [module for module in compressed.modules() if isinstance(module, kinds)]


def test_statistics() -> None:
    controller, _ = compress(NETWORKS["depthwise_separable"]())
    controller.groups["expand.0"].close([0, 3])
    statistics = controller.statistics().djpq
    by_name = {layer.name: layer for layer in statistics.layers}
    assert list(by_name) == ["expand.0", "depthwise.0", "project.0", "fc"]
    assert by_name["expand.0"].out_channels == (4, 6)
    assert by_name["depthwise.0"].out_channels == (8, 12)
    assert by_name["project.0"].in_channels == (8, 12)
    assert by_name["project.0"].out_channels == (4, 4)
    assert by_name["fc"].kind == "linear"
    assert by_name["expand.0"].macs == 4 * 3 * 64
    assert by_name["expand.0"].baseline_macs == 6 * 3 * 64
    macs = 4 * 3 * 64 + 8 * 9 * 64 + 8 * 4 * 64 + 4 * 5
    full = 6 * 3 * 64 + 12 * 9 * 64 + 12 * 4 * 64 + 4 * 5
    assert statistics.macs == macs
    assert statistics.macs_ratio == pytest.approx(macs / full)
    assert statistics.baseline_bops == full * 1024
    assert statistics.bops == pytest.approx(sum(v.macs * v.weight_bits * v.activation_bits for v in statistics.layers))
    text = controller.statistics().to_str()
    assert all(name in text for name in by_name)
    assert "fc: 5 channels stay, is an output of the network" in text


def test_groups_close_by_hand() -> None:
    controller, compressed = compress(NETWORKS["identity_residual"]())
    group = controller.groups["stem"]
    assert (group.name, group.size) == ("stem", 6)
    assert ("conv2.weight", 0) in {(member.parameter, member.dim) for member in group.members}
    group.close([1, 4])
    assert group.open_channels == (0, 2, 3, 5)
    with pytest.raises(ValueError, match="Channel group 'stem': channels \\[6\\] do not exist"):
        group.close([6])
    with pytest.raises(ValueError, match="Channel group 'stem': at least one of 6"):
        group.close(range(6))
    assert group.open_channels == (0, 2, 3, 5)
    train(controller, 1, batches())
    assert group.open_channels == (0, 2, 3, 5)
    controller.freeze()
    assert not {1, 4} & set(group.open_channels)
    stripped = controller.strip()
    assert stripped.get_parameter("stem.weight").shape[0] == len(group.open_channels) <= 4
    with torch.no_grad():
        torch.testing.assert_close(stripped(images()), compressed.eval()(images()), rtol=1e-4, atol=1e-4)


def test_stages_and_the_freeze_of_the_schedule() -> None:
    controller, compressed = compress(NETWORKS["plain"](), schedule={"epochs": 4, "freeze_epoch": 2})
    data = batches()
    assert controller.compression_stage() is CompressionStage.UNCOMPRESSED
    train(controller, 1, data)
    assert controller.compression_stage() is CompressionStage.PARTIALLY_COMPRESSED
    train(controller, 1, data)
    assert controller.compression_stage() is CompressionStage.PARTIALLY_COMPRESSED
    controller.scheduler.epoch_step()
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
    before = controller.statistics().djpq
    frozen = {name: p.clone() for name, p in compressed.named_parameters()}
    train(controller, 1, data)
    after = controller.statistics().djpq
    assert [(v.out_channels, v.activation_bits) for v in after.layers] == [
        (v.out_channels, v.activation_bits) for v in before.layers
    ]
    assert all(
        v.weight_bits == int(v.weight_bits) and v.activation_bits == int(v.activation_bits) for v in after.layers
    )
    assert not torch.equal(compressed.get_parameter("conv1.weight"), frozen["conv1.weight"]), "weights are fine-tuned"


LEARNED_GATES = {"pruning": {"criterion": "information_bottleneck"}}


@pytest.mark.parametrize(
    ("epochs", "steps", "djpq", "freeze_epoch"),
    [
        (1, None, {}, 1),
        (2, None, {}, 1),
        (5, None, {}, 2),
        (20, None, {}, 7),
        (6, 352, {}, 2),
        (24, 352, {}, 4),
        (96, 352, {}, 4),
        (24, 10_000, {}, 4),
        (24, 300, {}, 5),
        (24, 100, {}, 8),
        (60, 11, {}, 20),
        (24, 352, LEARNED_GATES, 8),
        (24, 352, {"preset": "paper"}, 8),
        (24, 352, {"preset": "paper", "pruning": {"enabled": False}}, 8),
        (24, 352, QUANTIZATION_ONLY, 4),
        (24, 352, {"schedule": {"freeze_epoch": 9}}, 9),
    ],
)
def test_freeze_after_a_third_or_four_epochs(
    epochs: int, steps: int | None, djpq: dict[str, Any], freeze_epoch: int
) -> None:
    schedule = {"epochs": epochs, "steps_per_epoch": steps, **djpq.get("schedule", {})}
    controller, _ = compress(NETWORKS["plain"](), **{**djpq, "schedule": schedule})
    for _ in range(freeze_epoch):
        controller.scheduler.epoch_step()
        assert controller.compression_stage() is not CompressionStage.FULLY_COMPRESSED
    controller.scheduler.epoch_step()
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_resumed_with_other_data_it_freezes_where_it_would_have() -> None:
    schedule = {"epochs": 24, "freeze_epoch": None}
    begun, _ = compress(NETWORKS["plain"](), batches(400, size=2), schedule=schedule)
    begun.scheduler.epoch_step()
    resumed, _ = compress(NETWORKS["plain"](), batches(2), schedule=schedule)
    resumed.load_state(begun.get_compression_state())
    for _ in range(3):
        resumed.scheduler.epoch_step()
        assert resumed.compression_stage() is not CompressionStage.FULLY_COMPRESSED
    resumed.scheduler.epoch_step()
    assert resumed.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_resumed_to_be_shorter_it_freezes_in_time() -> None:
    begun, _ = compress(NETWORKS["plain"](), batches(1), schedule={"epochs": 24})
    begun.scheduler.epoch_step()
    resumed, _ = compress(NETWORKS["plain"](), batches(1), schedule={"epochs": 6})
    resumed.load_state(begun.get_compression_state())
    resumed.scheduler.epoch_step()
    assert resumed.compression_stage() is not CompressionStage.FULLY_COMPRESSED
    resumed.scheduler.epoch_step()
    assert resumed.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_data_of_unknown_length_are_searched_for_a_third() -> None:
    entry = {"algorithm": "djpq", "schedule": {"epochs": 24}}
    controller, _ = create_compressed_model(NETWORKS["plain"](), {"compression": entry}, init_data=Stream())
    for _ in range(8):
        controller.scheduler.epoch_step()
        assert controller.compression_stage() is not CompressionStage.FULLY_COMPRESSED
    controller.scheduler.epoch_step()
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED


SMALL = {
    "joint 0.05": (0.05, {}),
    "joint 0.02": (0.02, {}),
    "joint 0.01": (0.01, {}),
    "quantization 0.03": (0.03, QUANTIZATION_ONLY),
    "power of two 0.02": (0.02, {"quantization": {"power_of_two": True}}),
    "learned exponents 0.02": (0.02, {"quantization": {"weights": {"learn_exponent": True}, "range_lr_multiplier": 5}}),
}


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("name", ["plain", "projection_residual", "pre_activation"])
def test_target_is_met_after_training(name: str, case: str) -> None:
    target, half = SMALL[case]
    controller, compressed = compress(
        NETWORKS[name](), **half, target={"bops_ratio": target}, schedule={"epochs": 3, "freeze_epoch": 2}
    )
    data = batches()
    train(controller, 2, data)
    exponents = [float(p.exp()) for n, p in compressed.named_parameters() if n.endswith("log_exponent")]
    assert all(abs(t - 1) > 1e-3 for t in exponents) and bool(exponents) == ("exponents" in case)
    controller.freeze()
    assert 0.98 * target <= controller.statistics().djpq.bops_ratio <= target
    train(controller, 1, data)
    assert 0.98 * target <= controller.statistics().djpq.bops_ratio <= target, "fine-tuning leaves no level unused"
    layers = controller.statistics().djpq.layers
    if "power" in case:
        assert {layer.activation_bits for layer in layers} <= {2, 4, 8}
    x = images(3)
    with torch.no_grad():
        gated = compressed.eval()(x)
        torch.testing.assert_close(
            strip(controller._network)(x), gated, rtol=1e-4, atol=1e-4 * float(gated.abs().max())
        )


def test_pruning_alone_meets_its_target() -> None:
    controller, _ = compress(
        VGG7(8), [(images(4, 32), torch.zeros(4, dtype=torch.long))], **PRUNING_ONLY, target={"bops_ratio": 0.5}
    )
    controller.freeze()
    statistics = controller.statistics().djpq
    assert 0.49 <= statistics.bops_ratio <= 0.5
    assert statistics.bops_ratio == statistics.macs_ratio
    assert {(layer.weight_bits, layer.activation_bits) for layer in statistics.layers} == {(32, 32)}


def test_strip_before_the_freeze_warns() -> None:
    controller, _ = compress(NETWORKS["concat"]())
    with pytest.warns(UserWarning, match="stripped before schedule.freeze_epoch"):
        controller.strip()
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED


@pytest.mark.parametrize("key", ["ignored_scopes", "target_scopes"])
def test_scopes_of_both_halves(key: str) -> None:
    controller, _ = compress(
        NETWORKS["bottleneck"](),
        pruning={key: ["reduce.0"]},
        quantization={key: {"patterns": ["(stem|fc)"]}},
        target={"bops_ratio": 0.21},
    )
    ignored = key == "ignored_scopes"
    assert set(controller.groups) == ({"stem.0", "middle.0"} if ignored else {"reduce.0"})
    bits = {layer.name: layer.weight_bits for layer in controller.statistics().djpq.layers}
    floating = {name for name, width in bits.items() if width == 32}
    assert floating == ({"stem.0", "fc"} if ignored else {"reduce.0", "middle.0", "expand.0"})
    inputs = {layer.name for layer in controller.statistics().djpq.layers if layer.activation_bits == 32}
    assert inputs == floating


def test_scope_by_type() -> None:
    controller, _ = compress(NETWORKS["plain"](), quantization={"ignored_scopes": {"types": ["linear"]}})
    assert [layer.weight_bits == 32 for layer in controller.statistics().djpq.layers] == [False, False, True, True]


@pytest.mark.parametrize("half", ["pruning", "quantization"])
def test_scope_without_a_match(half: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"\$.compression.{half}.ignored_scopes: 'conv3' matches no layer.*'conv[12]'"
    ):
        compress(NETWORKS["plain"](), **{half: {"ignored_scopes": ["conv3"]}})


def test_two_stages() -> None:
    """Prune, strip, then quantize what is left; layers keep their names."""
    data = batches()
    first, _ = compress(
        NETWORKS["bottleneck"](), data, **PRUNING_ONLY, target={"bops_ratio": 0.6}, schedule={"epochs": 2}
    )
    train(first, 2, data)
    pruned = first.strip()
    second, _ = compress(pruned, data, **QUANTIZATION_ONLY, target={"bops_ratio": 0.03}, schedule={"epochs": 2})
    layers = second.statistics().djpq.layers
    assert [layer.name for layer in layers] == ["stem.0", "reduce.0", "middle.0", "expand.0", "fc"]
    assert sum(layer.baseline_macs for layer in layers) == first.statistics().djpq.macs
    train(second, 2, data)
    assert second.statistics().djpq.bops_ratio <= 0.03
    stripped = second.strip()
    assert stripped.get_parameter("stem.0.weight").shape == pruned.get_parameter("stem.0.weight").shape
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(strip(second._network)(x), second.model.eval()(x), rtol=1e-4, atol=1e-4)


def test_batchnorm_is_reestimated_at_the_freeze() -> None:
    """Statistics are those of the data, whatever they were before."""
    data = batches()
    controller, compressed = compress(NETWORKS["plain"](), data)
    controller.scheduler.step()
    norm = compressed.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    norm.running_mean.fill_(100.0)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.fill_(1000)
    controller.freeze()
    inputs = torch.cat([x for x, _ in data])
    with torch.no_grad():
        quantized = compressed.get_submodule("compression.activation_quantizers.x")(inputs)
        weight = compressed.get_submodule("compression.weight_quantizers.conv1_weight")(
            compressed.get_parameter("conv1.weight")
        )
        expected = F.conv2d(quantized, weight, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == len(data)


@pytest.mark.parametrize("case", ["untrained", "trained", "closed", "no data", "switched off"])
def test_statistics_that_still_hold_are_corrected_at_the_freeze(case: str) -> None:
    """Of a network that was only quantized. Statistics of the data alone would replace those of the training."""
    data = batches()
    samples = 0 if case == "switched off" else 256
    initializer = {"bias_correction": {"num_bias_correction_samples": samples}}
    controller, compressed = compress(NETWORKS["plain"](), data, pruning={"gamma": 0}, initializer=initializer)
    norm = compressed.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    norm.running_mean.fill_(100.0)
    if case == "trained":
        controller.scheduler.step()
    elif case == "closed":
        next(iter(controller.groups.values())).close([0])
    elif case == "no data":
        controller._data = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        controller.freeze()
    changed = bool((norm.running_mean != 100.0).any())
    assert changed == (case not in ("no data", "switched off"))
    assert bool((norm.running_mean < 50).all()) == (case in ("trained", "closed"))


def test_unused_weight_range_is_given_up_at_the_freeze() -> None:
    """So that the bits that were decided are all used."""
    controller, _ = compress(NETWORKS["plain"](), quantization={"weights": {"bits": 6}, "activations": {"bits": 6}})
    quantizer = controller._network.weight_quantizers["conv2.weight"]
    with torch.no_grad():
        quantizer.log_scale.add_(2.0)
    controller.freeze()
    largest = controller._network.gated_weight("conv2.weight").abs().max()
    torch.testing.assert_close(quantizer.range().detach(), largest)
    assert {layer.weight_bits for layer in controller.statistics().djpq.layers} == {6}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_weight_is_not_on_the_edge_of_its_range(dtype: torch.dtype) -> None:
    """There a rounding error would decide which of the two its derivative goes to."""
    controller, model = compress(NETWORKS["plain"](), **QUANTIZATION_ONLY)
    controller.freeze()
    model.to(dtype)
    quantizer, weight = controller._network.weight_quantizers["conv2.weight"], model.get_parameter("conv2.weight")
    for _ in range(50):
        with torch.no_grad():
            weight.mul_(0.9)
            quantizer.log_scale.add_(1.0)
        controller._network.tighten_weight_ranges()
        largest = weight.detach().abs().max()
        assert largest < quantizer.range().detach() < 1.0001 * largest


def test_gates_are_masks_after_the_freeze() -> None:
    controller, compressed = compress(NETWORKS["plain"](), **PRUNING_ONLY, pruning={"gamma": 0.0})
    gate = controller._network.gates["conv1"]
    with torch.no_grad():
        gate.mu.uniform_(0.5, 1.5)
    controller.groups["conv1"].close([0])
    before = compressed.eval()(images())
    controller._data = None  # leaves the BatchNorm statistics alone
    controller.freeze()
    torch.testing.assert_close(compressed(images()), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(gate(), gate.open.float()) and not gate.mu.requires_grad


def test_a_target_that_cannot_be_met_exactly_is_said_at_the_freeze() -> None:
    controller, _ = compress(NETWORKS["plain"](), **PRUNING_ONLY, pruning={"round_to": 4}, target={"bops_ratio": 0.5})
    reached = controller.statistics().djpq.bops_ratio
    with pytest.warns(UserWarning, match="where 0.50000 was asked for"):
        controller.freeze()
    assert controller.statistics().djpq.bops_ratio < reached
    # nothing was learned, so every alpha is the same
    for gate in controller._network.gates.values():
        assert int(gate.open.sum()) % 4 == 0 or bool(gate.open.all())


def test_freeze_can_be_repeated_after_bad_data() -> None:
    data = batches(4, 16)
    controller, compressed = compress(NETWORKS["plain"](), data)
    norm = next(module for module in compressed.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    controller._data = [data[0], (data[1][0] * torch.nan, data[1][1])]
    with pytest.raises(DataError, match="batch 1"):
        controller.freeze()
    assert controller.compression_stage() is not CompressionStage.FULLY_COMPRESSED
    assert norm.momentum == 0.1
    torch.testing.assert_close(norm.running_mean, before, rtol=0, atol=0)
    controller._data = data
    controller.freeze()
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
    assert norm.running_mean is not None and not torch.equal(norm.running_mean, before)


def test_freeze_without_data_says_what_is_left_out() -> None:
    controller, _ = compress(NETWORKS["plain"]())
    controller._data = None
    with pytest.warns(UserWarning, match="without init_data"):
        controller.freeze()


def test_calibration_data_shorter_than_an_epoch() -> None:
    controller, _ = compress(NETWORKS["plain"](), batches(1), schedule={"epochs": 4, "freeze_epoch": 2})
    controller.scheduler.epoch_step()
    for _ in range(10):
        controller.scheduler.step()
    assert controller.scheduler.progress < 0.5
    controller.scheduler.epoch_step()
    controller.scheduler.step()
    assert controller.scheduler.joint_steps == 20


def test_missing_data() -> None:
    config = {"input_info": {"sample_size": [2, 3, 8, 8]}, "compression": {"algorithm": "djpq"}}
    with pytest.raises(DataError, match="Pass init_data=your_loader to create_compressed_model"):
        create_compressed_model(NETWORKS["plain"](), config)
    with pytest.raises(DataError, match="Pass init_data=your_loader or example_inputs=tensor"):
        create_compressed_model(NETWORKS["plain"](), {"compression": {"algorithm": "djpq"}})


def test_pruning_needs_no_data() -> None:
    config = {
        "input_info": {"sample_size": [2, 3, 8, 8]},
        "compression": {"algorithm": "djpq", **PRUNING_ONLY, "target": {"bops_ratio": 0.5}},
    }
    controller, _ = create_compressed_model(NETWORKS["plain"](), config)
    controller.freeze()
    assert controller.statistics().djpq.bops_ratio <= 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [0, 2])
def test_useless_data(value: float, batch: int) -> None:
    data = batches()
    data[batch][0][1, 0, 3, 3] = value
    with pytest.raises(DataError, match="holds NaN or infinity"):
        compress(NETWORKS["plain"](), data)


@pytest.mark.parametrize(("data", "message"), [([()], "is empty"), (["a"], "is a str"), ([3], "is a int")])
def test_odd_data(data: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compress(NETWORKS["plain"](), data)


def test_activation_that_overflows() -> None:
    model = NETWORKS["plain"]()
    model.get_parameter("bn1.weight").data.fill_(3e38)
    model.get_parameter("bn1.bias").data.fill_(3e38)
    with pytest.raises(DataError, match="activation 'relu' becomes NaN or infinite on init_data"):
        compress(model)


@pytest.mark.parametrize(
    "djpq",
    [
        {**QUANTIZATION_ONLY, "target": {"bops_ratio": 0.003}},
        {"pruning": {"enabled": False}, "quantization": {"ignored_scopes": ["conv2"]}, "target": {"bops_ratio": 0.02}},
    ],
    ids=["below two bits", "ignored layers"],
)
def test_unreachable_target(djpq: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\$.compression.target.bops_ratio: 0.0\d+ is out of reach"):
        compress(NETWORKS["plain"](), **djpq)


@pytest.mark.parametrize(
    "name", ["conv2.weight", "compression.gates.conv1.mu", "compression.weight_quantizers.fc1_weight.log_scale"]
)
def test_diverged_training(name: str) -> None:
    controller, compressed = compress(NETWORKS["plain"]())
    with torch.no_grad():
        compressed.get_parameter(name).view(-1)[0] = float("nan")
    with pytest.raises(DataError, match=f"Parameter '{name}' holds NaN or infinity: the training diverged"):
        controller.freeze()
    assert controller.compression_stage() is CompressionStage.UNCOMPRESSED


def test_same_seed_same_run() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        controller, compressed = compress(NETWORKS["plain"](), schedule={"epochs": 2, "freeze_epoch": 1})
        train(controller, 2, batches())
        states.append(compressed.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_strip_moves_nothing_but_biases_and_those_by_half_a_step_at_most() -> None:
    controller, _ = compress(NETWORKS["plain"](), target={"bops_ratio": 0.03})
    controller.freeze()
    stripped, expected = controller.strip(), strip(controller._network)
    moved = [
        name for name, value in stripped.state_dict().items() if not torch.equal(value, expected.state_dict()[name])
    ]
    assert moved and all(name.endswith("bias") for name in moved)
    norm = expected.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    scales = {"bn1": norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()}  # it follows conv1
    for name in moved:
        layer = name.removesuffix(".bias")
        quantized = {"bn1": "conv1"}.get(layer, layer)
        (read,) = controller._network.placement.inputs_of[quantized]
        weights = controller._network.weight_quantizers[f"{quantized}.weight"]
        assert weights.bits is not None
        step = controller._network.activation_quantizers[read].step() * weights.step() * scales.get(layer, 1.0)
        step = step / 2 ** max(0, 7 - weights.bits)  # few bits are the upper ones of INT8
        change = (stripped.state_dict()[name] - expected.state_dict()[name]).abs()
        assert (change <= 0.5001 * step + 1e-7).all(), name
