# SPDX-License-Identifier: Apache-2.0
"""Inputs, outputs, names and what a captured graph has to survive."""

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from djpq_nncf.capture import InputSpec, argument_names, bind_inputs, capture, is_captured, propagate_shapes
from djpq_nncf.errors import CaptureError, DataError
from tests.capture.helpers import assert_same, check, run


@dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Structured(nn.Module):
    """Unused parameters, tied weights, root-level and non-persistent tensors; dict input, any output."""

    def __init__(self, output: str = "tensor") -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 6)
        self.fc = nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.emb.weight
        self.aux = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))
        self.never = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.rand(6), persistent=False)
        self.plain = torch.rand(6)
        self.fc.bias.requires_grad_(False)
        self.output = output

    def forward(self, inputs: dict[str, Tensor], *, gain: Tensor | None = None, flag: bool = True) -> Any:
        hidden = self.fc(self.emb(inputs["ids"]).mean(1)) * self.scale + self.shift + self.plain
        if gain is not None and flag:
            hidden = hidden * gain
        hidden = hidden * torch.tensor(2.0)
        logits = self.head(hidden)
        if self.output == "dict":
            return {"logits": logits, "hidden": (hidden, None)}
        return Result(logits, (hidden,)) if self.output == "dataclass" else logits


def ids(batch: int) -> dict[str, Tensor]:
    return {"ids": torch.randint(0, 10, (batch, 5))}


@pytest.mark.parametrize("output", ["tensor", "dict", "dataclass"])
def test_output_structure(output: str) -> None:
    model = Structured(output)
    gm = check(model, (ids(4),), {"gain": torch.rand(4, 1), "flag": True})
    args, kwargs = (ids(3),), {"flag": True, "gain": torch.rand(3, 1)}
    ours, theirs = run(gm, args, kwargs), run(model, args, kwargs)
    assert type(ours) is type(theirs)
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    assert_same(ours, theirs)


def test_state_keeps_its_names_ties_and_flags() -> None:
    model = Structured()
    gm = capture(model, (ids(4),))
    for kept in (gm, copy.deepcopy(gm)):
        assert set(kept.state_dict()) == set(model.state_dict())
        assert {"shift", "_constants.plain"} < {name for name, _ in kept.named_buffers()}
        assert kept.head.weight is kept.emb.weight
        flags = {name: p.requires_grad for name, p in kept.named_parameters()}
        assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
        kept.load_state_dict(model.state_dict())
    own = {p.data_ptr() for p in gm.parameters()}
    assert not own & {p.data_ptr() for p in model.parameters()}


def test_the_original_is_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    x = torch.ones(2, 3, 8, 8)
    gm = capture(model, (x,))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert_same(model.state_dict(), before, 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in gm.modules())


def test_inputs_are_sorted_into_the_form_of_the_capture() -> None:
    model = Structured()
    gain = torch.rand(4, 1)
    gm = capture(model, (ids(4),), {"gain": gain, "flag": True})
    assert argument_names(gm) == ("inputs", "gain", "flag")
    batch = ids(4)["ids"]
    for args, kwargs in (
        (({"ids": batch},), {"gain": gain}),
        (({"ids": batch}, gain), {}),
        ((), {"gain": gain, "inputs": {"ids": batch}, "flag": True}),
    ):
        args, kwargs = bind_inputs(gm, args, kwargs, "batch 0")
        assert_same(gm.eval()(*args, **kwargs), run(model, ({"ids": batch},), {"gain": gain}))


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1,), {}, r"^batch 0 lacks 'gain'.*\['inputs', 'gain', 'flag'\]"),
        ((1, 2, 3, 4), {}, "^batch 0 holds 4 inputs by position"),
        ((1, 2), {"mask": 3}, r"^batch 0 holds \['mask'\].*example_inputs"),
    ],
    ids=["missing", "too-many", "unknown"],
)
def test_inputs_that_do_not_fit_the_capture(args: Any, kwargs: Any, message: str) -> None:
    gm = capture(Structured(), (ids(4),), {"gain": torch.rand(4, 1), "flag": True})
    with pytest.raises(DataError, match=message):
        bind_inputs(gm, args, kwargs, "batch 0")


def test_inputs_are_described() -> None:
    gm = capture(Structured(), (ids(1),), {"gain": torch.rand(1, 1), "flag": True})
    assert gm.meta["djpq_inputs"] == (
        InputSpec("inputs_ids", (2, 5), torch.int64),
        InputSpec("gain", (2, 1), torch.float32),
        InputSpec("flag", (), None, batched=False, value=True),
    )


class Opaque:
    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_an_output_that_holds_no_tensors() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Opaque]:
            return {"result": Opaque(x)}

    with pytest.raises(CaptureError, match=r"Model returns a Opaque.*Return tensors"):
        capture(Model(), (torch.randn(2, 3),))


class Caching(nn.Module):
    """Keeps what it computes from a parameter until it is trained again, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Caching":
        if mode:
            self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x + self.bias.exp()
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias.exp()
        return x + self.cache["bias"]


def test_a_cache_is_computed_in_the_graph() -> None:
    model = Caching().eval()
    x = torch.randn(2, 3)
    model(x)
    gm = capture(model, (x,))
    assert [node.target for node in gm.graph.find_nodes(op="get_attr")] == ["bias"]
    assert list(model.cache) == ["bias"] and not model.training
    assert_same(run(gm, (x,)), run(model, (x,)))


NORMS = {
    "weight-norm": nn.utils.parametrizations.weight_norm,
    "weight-norm-hook": nn.utils.weight_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_computed_weights(norm: str) -> None:
    model = nn.Sequential(NORMS[norm](nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    gm = capture(model, (x,))
    assert_same(run(gm, (x,)), run(model, (x,)))
    assert set(gm.state_dict()) == set(model.state_dict())
    for copied in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        assert_same(run(copied, (x,)), run(model, (x,)))
    for result in (gm.train()(x), model.train()(x)):
        result.square().sum().backward()
    theirs = dict(model.named_parameters())
    for name, parameter in gm.named_parameters():
        assert_same(parameter.grad, theirs[name].grad)


class Weighted(nn.Module):
    def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
        return x @ matrix


@pytest.mark.parametrize("rows", [4, 8], ids=["batch-equals-rows", "batch-differs"])
def test_inputs_that_are_not_batched(rows: int) -> None:
    gm = check(
        Weighted(),
        (torch.randn(4, rows), torch.randn(rows, 3)),
        other=(torch.randn(7, rows), torch.randn(rows, 3)),
    )
    assert [spec.batched for spec in gm.meta["djpq_inputs"]] == [True, False]


def test_inputs_that_are_not_batched_with_a_batch_of_one() -> None:
    check(Weighted(), (torch.randn(1, 1), torch.randn(1, 3)), other=(torch.randn(7, 1), torch.randn(1, 3)))


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        with torch.no_grad():
            scale = self.bn(x).abs().mean()
            with torch.autocast("cpu", enabled=False):
                scale = scale + 1
        return x * scale


def test_no_grad_inside_forward() -> None:
    check(NoGrad(), (torch.randn(4, 4),))


@pytest.fixture(scope="module")
def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(144, 5),
    )


IMAGE = (torch.randn(2, 3, 8, 8),)


def test_deepcopy_keeps_the_mark(convnet: nn.Module) -> None:
    gm = copy.deepcopy(capture(convnet, IMAGE))
    assert is_captured(gm) and not is_captured(convnet)
    assert gm.meta["djpq_inputs"]
    assert_same(run(gm, IMAGE, train=True), run(copy.deepcopy(convnet), IMAGE, train=True))


def test_pickle(convnet: nn.Module) -> None:
    gm = capture(convnet, IMAGE)
    loaded = pickle.loads(pickle.dumps(gm))
    assert_same(run(loaded, IMAGE), run(gm, IMAGE))
    assert_same(run(loaded, IMAGE, train=True), run(gm, IMAGE, train=True))
    assert set(loaded.state_dict()) == set(convnet.state_dict())


def test_conversion_to_another_dtype(convnet: nn.Module) -> None:
    gm = capture(convnet, IMAGE).to(torch.float64)
    x = (IMAGE[0].double(),)
    assert_same(run(gm, x), run(copy.deepcopy(convnet).double(), x))
    propagate_shapes(gm)
    output = next(iter(reversed(gm.graph.nodes)))
    assert pytree.tree_leaves(output.meta["val"])[0].dtype == torch.float64


def test_compile(convnet: nn.Module) -> None:
    gm = capture(convnet, IMAGE).eval()
    compiled = torch.compile(gm, backend="aot_eager", fullgraph=True)
    assert_same(compiled(*IMAGE), gm(*IMAGE))


def test_export_again(convnet: nn.Module) -> None:
    gm = capture(convnet, IMAGE).eval()
    program = torch.export.export(gm, IMAGE)
    assert_same(program.module()(*IMAGE), gm(*IMAGE))


def test_capturing_twice_copies_with_new_shapes(convnet: nn.Module) -> None:
    first = capture(convnet, IMAGE)
    second = capture(first, (torch.randn(5, 3, 8, 8),))
    assert is_captured(second) and second is not first
    assert second.meta["djpq_inputs"][0].shape == (5, 3, 8, 8)
    (placeholder,) = second.graph.find_nodes(op="placeholder")
    assert placeholder.meta["val"].shape[0] == 5
    assert first.meta["djpq_inputs"][0].shape == (2, 3, 8, 8)
    assert {p.data_ptr() for p in first.parameters()}.isdisjoint(p.data_ptr() for p in second.parameters())
