# SPDX-License-Identifier: Apache-2.0
"""Image folders."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from djpq_nncf.errors import DataError
from djpq_nncf.run import RunSettings, image_folder_batches

CONFIG = {"seed": 1, "compression": {"algorithm": "djpq"}}
SETTINGS = RunSettings(CONFIG, "m:n", "", batch_size=4, image_size=7, augment=False)


def photos(folder: Path, **classes: int) -> Path:
    """Images of one color each: its class is in red, its number in green."""
    for label, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (10, 8), (label, number, 255)).save(folder / name / f"{number:02}.png")
    return folder


def read(folder: Path, **changes: Any) -> tuple[Any, Any, int]:
    return image_folder_batches(dataclasses.replace(SETTINGS, data=str(folder), **changes), workers=0)


def contents(batches: Any, **changes: Any) -> list[tuple[int, int]]:
    """Class and number of each image."""
    settings = dataclasses.replace(SETTINGS, **changes)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (settings.mean, settings.deviation))
    found = []
    for images, labels in batches:
        assert images.shape[1:] == (3, settings.image_size, settings.image_size)
        pixels = ((images * deviation + mean) * 255).round().long()
        assert (pixels[:, 2] == 255).all()
        assert (pixels[:, 0, 0, 0] == labels).all()
        found += [(int(label), int(pixel[1, 0, 0])) for label, pixel in zip(labels, pixels, strict=True)]
    return found


def test_classes_alone(tmp_path: Path) -> None:
    train, val, classes = read(photos(tmp_path, cat=20, dog=30, emu=2))
    assert classes == 3
    held_out = contents(val)
    assert Counter(label for label, _ in held_out) == {0: 2, 1: 3, 2: 1}
    trained = contents(train)
    assert len(trained) == 44  # of 46, in batches of 4
    assert len(train) == 11
    assert not set(trained) & set(held_out)
    assert trained != contents(train)  # shuffled


def test_the_seed_chooses_what_validates(tmp_path: Path) -> None:
    photos(tmp_path, cat=20, dog=30)
    chosen = [contents(read(tmp_path, config={**CONFIG, "seed": seed})[1]) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_class_with_one_image_is_trained_with(tmp_path: Path) -> None:
    train, val, _ = read(photos(tmp_path, cat=1, dog=9), batch_size=1)
    assert (0, 0) in contents(train)
    assert {label for label, _ in contents(val)} == {1}


def test_nothing_to_validate_with(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No class of .* has two images"):
        read(photos(tmp_path, cat=1, dog=1), batch_size=1)


def test_train_and_val(tmp_path: Path) -> None:
    photos(tmp_path / "train", cat=6, dog=2)
    photos(tmp_path / "val", cat=1, dog=3)
    train, val, classes = read(tmp_path)
    assert classes == 2
    assert Counter(label for label, _ in contents(train)) == {0: 6, 1: 2}
    assert contents(val) == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_train_and_val_of_other_classes(tmp_path: Path) -> None:
    photos(tmp_path / "train", cat=6, dog=2)
    photos(tmp_path / "val", cat=1)
    with pytest.raises(DataError, match="hold different classes"):
        read(tmp_path)


def test_pixels_are_normalised_as_asked(tmp_path: Path) -> None:
    photos(tmp_path, cat=8)
    changes = {"mean": (0.5, 0.25, 0.0), "deviation": (0.1, 0.2, 0.3)}
    assert set(contents(read(tmp_path, **changes)[0], **changes)) < {(0, number) for number in range(8)}


def test_augmentation_is_of_training_alone(tmp_path: Path) -> None:
    photos(tmp_path, cat=1)
    left, right = Image.new("RGB", (10, 8), (255, 0, 0)), Image.new("RGB", (5, 8))
    left.paste(right, (5, 0))
    for number in range(4):
        left.save(tmp_path / "cat" / f"{number:02}.png")

    def images(batches: Any) -> torch.Tensor:
        return torch.cat([batch for batch, _ in batches])

    train, val, _ = read(tmp_path, batch_size=1, augment=True)
    assert len(images(train).unique(dim=0)) > 1
    assert torch.equal(images(val), images(val))
    plain, _, _ = read(tmp_path, batch_size=1)
    assert len(images(plain).unique(dim=0)) == 1


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "Each class has a folder of its own"),
        ({"cat": 0}, "Each class has a folder of its own"),
        ({"cat": 2, "dog": 3}, "holds 3 images to train with: too few for --batch-size 4"),
    ],
)
def test_too_few_images(classes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(photos(tmp_path, **classes))


@pytest.mark.parametrize(
    ("layout", "part", "content", "workers"),
    [
        ("divided", 0, "text", 0),
        ("divided", 1, "half", 0),
        ("divided", 0, "half", 1),
        ("alone", 0, "text", 0),
        ("alone", 1, "text", 1),
    ],
)
def test_an_image_that_cannot_be_read(layout: str, part: int, content: str, workers: int, tmp_path: Path) -> None:
    folders = [tmp_path / "train", tmp_path / "val"] if layout == "divided" else [tmp_path]
    for folder in folders:
        photos(folder, cat=8)
    number = 3 if layout == "divided" else contents(read(tmp_path, batch_size=1)[part])[0][1]
    damaged = (folders * 2)[part] / "cat" / f"{number:02}.png"
    damaged.write_bytes(b"no image" if content == "text" else damaged.read_bytes()[:45])
    settings = dataclasses.replace(SETTINGS, data=str(tmp_path), batch_size=1)
    batches = image_folder_batches(settings, workers=workers)[part]
    with pytest.raises(DataError, match=rf"^The image {damaged} cannot be read: .* Repair or remove it\.$"):
        list(batches)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"--mean has 2 values \(0\.5,0\.5\)\. Write three"),
        ({"deviation": (1.0,)}, "--deviation has 1 values"),
        ({"deviation": (0.0, 0.0, 0.0)}, "--deviation is 0,0,0, and pixels are divided by it"),
        ({"deviation": (0.1, float("nan"), 0.1)}, "--deviation is 0.1,nan,0.1"),
    ],
)
def test_normalisation_that_cannot_be(wrong: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(SETTINGS, **wrong)


def test_a_folder_that_is_half_divided(tmp_path: Path) -> None:
    photos(tmp_path / "train", cat=40, dog=40)
    photos(tmp_path / "test", cat=4, dog=4)
    with pytest.raises(DataError, match="has train/ and not both"):
        read(tmp_path)
