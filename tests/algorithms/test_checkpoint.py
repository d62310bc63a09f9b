# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a resumed run equals one that was not interrupted, and a damaged file is refused."""

import errno
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from djpq_nncf.algorithms import CompressionController, create_compressed_model, load_checkpoint, save_checkpoint
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.errors import CheckpointError
from tests.helpers import NETWORKS, images, strip

EPOCHS = 4
CONFIG: dict[str, Any] = {
    "seed": 3,
    "compression": {"algorithm": "djpq", "schedule": {"epochs": EPOCHS, "freeze_epoch": 2}},
}
DATA = [(images(12, seed=number), torch.arange(12) % 5) for number in range(5)]


def build(
    state: dict[str, Any] | None = None, *, network: str = "plain", config: dict[str, Any] = CONFIG
) -> tuple[CompressionController, torch.optim.Optimizer]:
    """A network with dropout, whose original weights are the same each time, and Adam."""
    torch.manual_seed(11)
    model = NETWORKS[network]()
    controller, _ = create_compressed_model(model, config, state, init_data=DATA)
    return controller, torch.optim.Adam(controller.param_groups(lr=3e-3))


def train_epoch(controller: CompressionController, optimizer: torch.optim.Optimizer) -> None:
    controller.model.train()
    controller.scheduler.epoch_step()
    for x, y in DATA:
        controller.scheduler.step()
        loss = F.cross_entropy(controller.model(x), y) + controller.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Checkpoints before the first epoch and after each, and where it all ended."""
    folder = tmp_path_factory.mktemp("run")
    controller, optimizer = build()
    for epoch in range(EPOCHS):
        save_checkpoint(folder / f"{epoch}.safetensors", controller, optimizer, {"epoch": epoch})
        train_epoch(controller, optimizer)
    save_checkpoint(folder / f"{EPOCHS}.safetensors", controller, optimizer, {"epoch": EPOCHS})
    return folder, {name: value.clone() for name, value in controller.model.state_dict().items()}


@pytest.mark.parametrize("epoch", range(EPOCHS + 1))
def test_resumed_run_is_bit_identical(uninterrupted: tuple[Path, dict[str, Tensor]], epoch: int) -> None:
    """Interrupted before the freeze, right before it, and after it."""
    folder, expected = uninterrupted
    checkpoint = load_checkpoint(folder / f"{epoch}.safetensors")
    assert checkpoint.extra == {"epoch": epoch}
    controller, optimizer = build(checkpoint.compression_state)
    torch.manual_seed(99)  # whatever the new process drew
    checkpoint.restore(controller, optimizer)
    assert controller.get_compression_state() == checkpoint.compression_state
    for _ in range(epoch, EPOCHS):
        train_epoch(controller, optimizer)
    state = controller.model.state_dict()
    assert state.keys() == expected.keys()
    different = [name for name, value in state.items() if not torch.equal(value, expected[name])]
    assert not different


def test_state_is_plain_data(uninterrupted: tuple[Path, dict[str, Tensor]]) -> None:
    for path in uninterrupted[0].glob("*.safetensors"):
        state = load_checkpoint(path).compression_state
        assert json.loads(json.dumps(state)) == state


def test_resumed_statistics_and_stage(uninterrupted: tuple[Path, dict[str, Tensor]]) -> None:
    checkpoint = load_checkpoint(uninterrupted[0] / f"{EPOCHS}.safetensors")
    controller, optimizer = build(checkpoint.compression_state)
    checkpoint.restore(controller, optimizer)
    assert controller.compression_stage().name == "FULLY_COMPRESSED"
    assert 0.01 <= controller.statistics().djpq.bops_ratio <= 0.02
    assert isinstance(controller, DJPQController)
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(strip(controller._network)(x), controller.model.eval()(x), rtol=1e-4, atol=1e-4)


def test_resuming_needs_no_data_for_ranges(uninterrupted: tuple[Path, dict[str, Tensor]]) -> None:
    checkpoint = load_checkpoint(uninterrupted[0] / "3.safetensors")
    controller, _ = create_compressed_model(
        NETWORKS["plain"](), CONFIG, checkpoint.compression_state, example_inputs=images()
    )
    checkpoint.restore(controller)
    state = load_checkpoint(uninterrupted[0] / "3.safetensors")._tensors
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in controller.model.state_dict().items())


def test_another_network(uninterrupted: tuple[Path, dict[str, Tensor]]) -> None:
    checkpoint = load_checkpoint(uninterrupted[0] / "1.safetensors")
    with pytest.raises(CheckpointError, match=r"belongs to another network or configuration.*Create the model with"):
        build(checkpoint.compression_state, network="bottleneck")
    controller, optimizer = build(network="bottleneck")
    before = {name: value.clone() for name, value in controller.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="belongs to another network"):
        checkpoint.restore(controller, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in controller.model.state_dict().items())


def test_another_configuration(uninterrupted: tuple[Path, dict[str, Tensor]]) -> None:
    checkpoint = load_checkpoint(uninterrupted[0] / "1.safetensors")
    config = {"compression": {"algorithm": "djpq", "pruning": {"enabled": False}, "target": {"bops_ratio": 0.05}}}
    with pytest.raises(CheckpointError, match="belongs to another network or configuration"):
        build(checkpoint.compression_state, config=config)


@pytest.mark.parametrize("change", [{"algorithm": "other"}, {"version": 99}], ids=["algorithm", "version"])
def test_another_version(uninterrupted: tuple[Path, dict[str, Tensor]], change: dict[str, Any]) -> None:
    state = {**load_checkpoint(uninterrupted[0] / "1.safetensors").compression_state, **change}
    with pytest.raises(CheckpointError, match="Use the library version that wrote it"):
        build(state)


def test_without_optimizer(tmp_path: Path) -> None:
    controller, optimizer = build()
    save_checkpoint(tmp_path / "a.safetensors", controller)
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    checkpoint.restore(controller)
    with pytest.raises(CheckpointError, match="saved without an optimizer"):
        checkpoint.restore(controller, optimizer)


def test_another_optimizer(uninterrupted: tuple[Path, dict[str, Tensor]]) -> None:
    checkpoint = load_checkpoint(uninterrupted[0] / "1.safetensors")
    controller, _ = build(checkpoint.compression_state)
    with pytest.raises(CheckpointError, match=r"optimizer in the checkpoint differs.*Build it as"):
        checkpoint.restore(controller, torch.optim.Adam(controller.model.parameters()))


def header_of(content: bytes) -> tuple[int, dict[str, Any]]:
    (length,) = struct.unpack("<Q", content[:8])
    return 8 + length, json.loads(content[8 : 8 + length])


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def truncate_header(content: bytes) -> bytes:
    return content[:20]


def flip_a_bit(content: bytes) -> bytes:
    """In the middle of a weight."""
    start, header = header_of(content)
    first, last = header["model.conv2.weight"]["data_offsets"]
    position = start + (first + last) // 2
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    start, header = header_of(content)
    header["__metadata__"] = metadata
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content[start:]


def change_epoch(content: bytes) -> bytes:
    """The state says that more was trained than was."""
    metadata = header_of(content)[1]["__metadata__"]
    document = json.loads(metadata["document"])
    document["compression_state"]["scheduler"]["epoch"] += 1
    return _with_metadata(content, {**metadata, "document": json.dumps(document)})


def drop_document(content: bytes) -> bytes:
    metadata = header_of(content)[1]["__metadata__"]
    return _with_metadata(content, {"format": metadata["format"], "digest": metadata["digest"]})


def rename_a_tensor(content: bytes) -> bytes:
    return content.replace(b"model.conv1.weight", b"model.conv9.weight")


def pickled(content: bytes) -> bytes:
    return pickle.dumps({"state": 1})


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage",
    [truncate, truncate_header, flip_a_bit, change_epoch, drop_document, rename_a_tensor, pickled, empty],
    ids=lambda damage: damage.__name__,
)
def test_damaged_file(uninterrupted: tuple[Path, dict[str, Tensor]], tmp_path: Path, damage: Any) -> None:
    original = (uninterrupted[0] / "2.safetensors").read_bytes()
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(original))
    assert path.read_bytes() != original
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert "Resume from an earlier checkpoint, or start again" in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with pytest.raises(CheckpointError, match=r"none.safetensors' does not exist. Check the path"):
        load_checkpoint(path)


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_checkpoint(tmp_path)


def test_plain_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"weights.safetensors.*Load plain weights with model.load_state_dict"):
        load_checkpoint(path)


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    controller, optimizer = build()
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, controller, optimizer)
    before = path.read_bytes()
    train_epoch(controller, optimizer)

    def fail(self: Path, argument: Any) -> None:
        if failing == "write_bytes":
            with self.open("wb") as file:
                file.write(argument[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, fail)
        with pytest.raises(CheckpointError) as error:
            save_checkpoint(path, controller, optimizer)
    assert str(path) in str(error.value)
    assert "No space left on device" in str(error.value)
    assert "Free space or choose another path" in str(error.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.safetensors"]
    load_checkpoint(path)


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    controller, _ = build()
    with pytest.raises(CheckpointError, match=r"nowhere.*cannot be written"):
        save_checkpoint(tmp_path / "nowhere" / "run.safetensors", controller)
    assert not list(tmp_path.iterdir())


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    controller, _ = build()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "run.safetensors", controller)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"


def test_extra_that_is_no_plain_data(tmp_path: Path) -> None:
    controller, _ = build()
    path = tmp_path / "run.safetensors"
    with pytest.raises(CheckpointError, match="extra"):
        save_checkpoint(path, controller, extra={"scheduler": object()})
    assert not list(tmp_path.iterdir())
