# SPDX-License-Identifier: Apache-2.0
"""Inputs of a model out of configs, examples and the batches of a data loader."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djpq_nncf import NNCFConfig, create_compressed_model
from djpq_nncf.algorithms._data import example_from_config, find_example, iterate_inputs
from djpq_nncf.capture import DynamicDims, capture
from djpq_nncf.errors import DataError

PRUNING = {"compression": {"algorithm": "djpq", "quantization": {"enabled": False}}}


class Tagger(nn.Module):
    """Two keyword inputs, optional labels, and a dict of results."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.hidden(self.embedding(tokens)).relu() * mask[..., None])
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def batch(size: int = 4, length: int = 6) -> dict[str, Tensor]:
    return {
        "tokens": torch.randint(0, 10, (size, length)),
        "mask": torch.ones(size, length),
        "labels": torch.randint(0, 3, (size, length)),
    }


def config(*infos: dict[str, Any]) -> NNCFConfig:
    return NNCFConfig.from_dict({**PRUNING, "input_info": list(infos)})


def test_example_of_each_type() -> None:
    types = ("float", "long", "int", "bool")
    infos = config(*({"sample_size": [2, 50], "type": name, "keyword": name} for name in types)).input_infos
    args, kwargs = example_from_config(infos) or ((), {})
    assert args == ()
    assert [value.dtype for value in kwargs.values()] == [torch.float32, torch.int64, torch.int32, torch.bool]
    for value in kwargs.values():
        assert 0 <= value.min() < value.max() <= 1


@pytest.mark.parametrize("filler", ["zeros", "ones"])
def test_fillers(filler: str) -> None:
    infos = config(*({"sample_size": [2], "type": name, "filler": filler} for name in ("float", "long"))).input_infos
    args, _ = example_from_config(infos) or ((), {})
    assert all((value == float(filler == "ones")).all() for value in args)


def test_explicit_examples() -> None:
    given = batch()
    assert find_example(given, (), None) == ((), given)
    assert find_example((given["tokens"], given["mask"]), (), None) == ((given["tokens"], given["mask"]), {})
    assert find_example(given["tokens"], (), None) == ((given["tokens"],), {})


def test_example_from_the_data_leaves_labels_and_shortens_batched_tensors() -> None:
    table, temperature = torch.randn(7, 2), torch.tensor(2.0)
    data = [{**batch(4), "table": table, "temperature": temperature}]
    args, kwargs = find_example(None, (), data)
    assert args == ()
    assert list(kwargs) == ["tokens", "mask", "table", "temperature"]
    assert len(kwargs["tokens"]) == len(kwargs["mask"]) == 2
    assert kwargs["table"] is table and kwargs["temperature"] is temperature


@pytest.mark.parametrize("by_keyword", [True, False], ids=["keywords", "positions"])
@pytest.mark.parametrize(
    "form",
    [
        lambda b: b,
        lambda b: (b, b["labels"]),
        lambda b: ((b["tokens"], b["mask"]), b["labels"]),
        lambda b: {"mask": b["mask"], "tokens": b["tokens"]},
    ],
    ids=["dict", "dict-and-targets", "tuple-and-targets", "other-order"],
)
def test_batches_of_any_form(form: Any, by_keyword: bool) -> None:
    example = {key: value for key, value in batch(2).items() if key != "labels"}
    args, kwargs = ((), example) if by_keyword else (tuple(example.values()), {})
    gm = capture(Tagger(), args, kwargs)
    given = batch()
    ((inputs, count),) = iterate_inputs(gm, [form(given)], 4)
    assert count == 4
    expected = (given["tokens"], given["mask"])
    assert inputs == (((), dict(zip(example, expected, strict=True))) if by_keyword else (expected, {}))
    gm(*inputs[0], **inputs[1])


def test_labels_are_inputs_where_the_model_was_captured_with_them() -> None:
    ctrl, model = create_compressed_model(Tagger(), PRUNING, init_data=[batch()], example_inputs=batch())
    loss = model(**batch())["loss"] + ctrl.loss()
    loss.backward()


def test_a_batch_that_lacks_an_input() -> None:
    gm = capture(Tagger(), (), {"tokens": batch()["tokens"], "mask": batch()["mask"]})
    with pytest.raises(DataError, match=r"init_data, batch 1 lacks 'mask'"):
        list(iterate_inputs(gm, [batch(), {"tokens": batch()["tokens"]}], 100))


def test_dynamic_dimensions_of_the_config() -> None:
    length = {"dims": [1], "max": 20}
    settings = config(
        {"sample_size": [1, 6], "type": "long", "keyword": "tokens", "dynamic": length},
        {"sample_size": [1, 6], "keyword": "mask", "filler": "ones", "dynamic": length},
    )
    model = Tagger()
    for example in (None, {"tokens": batch()["tokens"], "mask": batch()["mask"]}):
        _, compressed = create_compressed_model(model, settings, init_data=[batch()], example_inputs=example)
        assert [spec.dynamic for spec in compressed.meta["djpq_inputs"]] == [DynamicDims((1,), max=20)] * 2
        tokens, mask = torch.randint(0, 10, (3, 17)), torch.ones(3, 17)
        torch.testing.assert_close(compressed.eval()(tokens=tokens, mask=mask), model.eval()(tokens, mask))


def test_batches_of_another_shape_are_named() -> None:
    """What torch says of it names neither the data nor what was expected."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    described = {"input_info": {"sample_size": [2, 1, 8, 8]}, "compression": {"algorithm": "djpq"}}
    with pytest.raises(
        DataError, match=r"a batch of init_data, with inputs of the shapes \[\(4, 3, 8, 8\)\].*input_info"
    ):
        create_compressed_model(model, described, init_data=[torch.randn(4, 3, 8, 8)])
