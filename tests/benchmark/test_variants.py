# SPDX-License-Identifier: Apache-2.0
"""The files that are made of a network, the samples they are made with, and the inputs they are timed on."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from djpq_nncf import NNCFConfig, read_provenance
from djpq_nncf.benchmark import Plan, random_calibration, random_inputs, read_calibration, write_variants
from djpq_nncf.capture import DynamicDims, capture
from djpq_nncf.cost import recount
from djpq_nncf.errors import DataError, ExportError
from djpq_nncf.export import export_model, open_runtime

SUFFIXES = (".xml", ".onnx")


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.left, self.right = nn.Embedding(8, 4), nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, words: Tensor, features: Tensor) -> Tensor:
        return self.left(self.table(words)).relu() * self.right(features)[:, None]


def plan(**changes: Any) -> Plan:
    return Plan(**{"example": ((torch.randn(2, 3, 12, 12),), {}), "suffixes": SUFFIXES, "config": None, **changes})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """name -> file."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    one, two = _Net().eval(), _Two().eval()
    networks = {
        "one": capture(one, (torch.randn(2, 3, 12, 12),)),
        "two": capture(two, (torch.zeros(2, 5, dtype=torch.long), torch.randn(2, 3))),
        "open": capture(one, (torch.randn(2, 3, 12, 16),), dynamic={0: DynamicDims((2, 3))}),
    }
    for name, network in networks.items():
        for suffix in SUFFIXES:
            export_model(network, folder / f"{name}{suffix}")
    return {path.name: path for path in folder.iterdir()}


def test_variants_are_what_they_are_called(tmp_path: Path) -> None:
    model = _Net()
    said: list[str] = []
    entries = write_variants("net", model, plan(shares=(0.0, 0.5)), tmp_path, say=said.append)
    names = ["FP32", "INT8, NNCF", "INT8, djpq_nncf", "INT8, djpq_nncf, 50% of channels removed"]
    assert [(entry.variant, entry.path.suffix) for entry in entries] == [(n, s) for n in names for s in SUFFIXES]
    assert [entry.is_baseline for entry in entries] == [True] * 2 + [False] * 6
    full = {"first": 100 * 8 * 27, "second": 64 * 10 * 72, "head": 40}
    half = {"first": 100 * 4 * 27, "second": 64 * 5 * 36, "head": 20}
    for entry in entries:
        layers = recount(entry.path).layers
        bits = {(layer.weight_bits, layer.activation_bits) for layer in layers}
        assert bits == ({(32, 32)} if entry.variant == "FP32" else {(8, 8)}), entry
        macs = half if "50%" in entry.name else full
        assert [layer.macs for layer in layers] == list(macs.values())
    images = np.random.default_rng(0).standard_normal((4, 3, 12, 12)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images)).numpy()
    for entry in entries[:6]:
        (result,) = open_runtime(entry.path).run([images])
        assert np.abs(result - expected).max() < 0.1 * np.ptp(expected), entry
    assert any("32 random samples" in line for line in said)


def test_config_and_round_to(tmp_path: Path) -> None:
    config = NNCFConfig.from_dict(
        {
            "compression": {
                "algorithm": "djpq",
                "pruning": {"gamma": 0, "round_to": 4},
                "quantization": {"weights": {"bits": 4}, "activations": {"bits": 8}},
            }
        }
    )
    entries = write_variants("net", _Net(), plan(config=config, shares=(0.3,), suffixes=(".onnx",)), tmp_path)
    assert [entry.variant for entry in entries] == ["FP32", "INT8, NNCF", "djpq_nncf, 30% of channels removed"]
    found = read_provenance(entries[-1].path)
    assert found is not None
    # 70 % of 8 and of 10 is 6 and 7, and the next multiples of 4 are 8 and 8
    assert [layer.out_channels for layer in found.layers] == [(8, 8), (8, 10), (4, 4)]
    assert {layer.weight_bits for layer in found.layers} == {4}


def test_calibration_samples_decide_the_ranges(tmp_path: Path) -> None:
    steps = []
    for scale in (1.0, 4.0):
        np.save(tmp_path / "samples.npy", scale * np.random.default_rng(0).standard_normal((20, 3, 12, 12)))
        folder = tmp_path / str(scale)
        folder.mkdir()
        torch.manual_seed(0)
        made = plan(calibration=tmp_path / "samples.npy", suffixes=(".onnx",))
        entries = write_variants("net", _Net(), made, folder)
        for entry in entries[1:]:
            graph = onnx.load(entry.path).graph
            constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
            first = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == graph.input[0].name)
            steps.append(float(constants[first.input[1]]))
    nncf, ours, larger_nncf, larger_ours = steps
    assert larger_nncf == pytest.approx(4 * nncf, rel=0.05)
    assert larger_ours == pytest.approx(4 * ours, rel=0.05)


def test_several_inputs(tmp_path: Path) -> None:
    example = (torch.zeros(2, 5, dtype=torch.long), torch.randn(2, 3)), {}
    entries = write_variants("two", _Two(), plan(example=example), tmp_path)
    for entry in entries:
        words, features = random_inputs(entry.path, 3, entry.shape)
        assert words.shape == (3, 5) and words.dtype == np.int64 and set(words.flat) <= {0, 1}
        assert features.shape == (3, 3) and features.dtype == np.float32
        assert open_runtime(entry.path).run([words, features])[0].shape == (3, 5, 6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_random_inputs(suffix: str, exported: dict[str, Path]) -> None:
    (x,) = random_inputs(exported[f"one{suffix}"], 5)
    assert x.shape == (5, 3, 12, 12)
    assert abs(x.mean()) < 0.1 and abs(x.std() - 1) < 0.1
    (x,) = random_inputs(exported[f"open{suffix}"], 5)  # the file knows the shape of its example
    assert x.shape == (5, 3, 12, 16)
    (x,) = random_inputs(exported[f"open{suffix}"], 5, (1, 3, 20, 24))
    assert x.shape == (5, 3, 20, 24)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shapes_that_do_not_fit(suffix: str, exported: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=rf"one{suffix} takes '.*' \[\?, 3, 12, 12\], which --input-shape 1,3,8,8"):
        random_inputs(exported[f"one{suffix}"], 1, (1, 3, 8, 8))
    with pytest.raises(DataError, match="does not fit"):
        random_inputs(exported[f"one{suffix}"], 1, (1, 3))
    with pytest.raises(DataError, match=rf"two{suffix} has 2 inputs"):
        random_inputs(exported[f"two{suffix}"], 1, (1, 3))


def test_sizes_that_nobody_knows_and_a_fixed_batch(tmp_path: Path) -> None:
    def write(shape: list[Any]) -> Path:
        value = onnx.helper.make_tensor_value_info
        ports = (value("x", onnx.TensorProto.FLOAT, shape), value("y", onnx.TensorProto.FLOAT, shape))
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        path = tmp_path / "net.onnx"
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [ports[0]], [ports[1]])), path)
        return path

    with pytest.raises(DataError, match=r"'x' \[\?, 3, \?\]: sizes are free besides the batch. Pass --input-shape"):
        random_inputs(write(["n", 3, "length"]), 2)
    assert random_inputs(write(["n", 3, "length"]), 2, (1, 3, 7))[0].shape == (2, 3, 7)
    assert random_inputs(write([4, 3]), 4)[0].shape == (4, 3)
    with pytest.raises(DataError, match=r"takes batches of 4 only. Pass --batch 4"):
        random_inputs(write([4, 3]), 1)


def test_calibration_from_files(tmp_path: Path, exported: dict[str, Path]) -> None:
    words, features = np.ones((11, 5), np.int32), np.full((11, 3), 0.5)
    np.savez(tmp_path / "two.npz", words=words, features=features)
    found = read_calibration(tmp_path / "two.npz", exported["two.xml"])
    assert str(found) == "11 samples of two.npz"
    batches = list(found.batches())
    assert [len(batch["words"]) for batch in batches] == [8, 3]
    np.testing.assert_array_equal(np.concatenate([batch["features"] for batch in batches]), features)
    assert batches[0]["words"].dtype == np.int64 and batches[0]["features"].dtype == np.float32
    assert random_calibration(exported["one.onnx"], None).count == 32


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("one.xml", np.zeros((4, 3, 8, 8)), r"shape \[4, 3, 8, 8\]; the network takes '.*' \[\?, 3, 12, 12\]"),
        ("one.xml", np.zeros((0, 3, 12, 12)), "shape"),
        ("two.xml", np.zeros((4, 5)), r"array for each input of the network: \['words', 'features'\]"),
        ("two.xml", {"words": np.zeros((4, 5))}, "array for each input"),
        ("two.xml", {"words": np.zeros((4, 5)), "features": np.zeros((3, 3))}, "different numbers of samples"),
        ("one.xml", None, "cannot be read"),
        ("one.xml", "pickled", "cannot be read"),
    ],
)
def test_unusable_calibration(name: str, arrays: Any, message: str, tmp_path: Path, exported: dict[str, Path]) -> None:
    path = tmp_path / ("samples.npz" if isinstance(arrays, dict) else "samples.npy")
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif isinstance(arrays, str):
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif arrays is not None:
        np.save(path, arrays)
    with pytest.raises(DataError, match=message):
        read_calibration(path, exported[name])


def test_nncf_that_fails_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("no such operator")

    monkeypatch.setattr("djpq_nncf.benchmark._variants.quantize_post_training", fail)
    with pytest.raises(ExportError, match=r"NNCF cannot quantize the network as \.xml: KeyError: 'no such operator'"):
        write_variants("net", _Net(), plan(), tmp_path)
