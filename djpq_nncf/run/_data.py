# SPDX-License-Identifier: Apache-2.0
"""Batches to train and to validate with: of an image folder, or what a user's function makes."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from djpq_nncf.errors import DataError
from djpq_nncf.run._objects import failed, find_object
from djpq_nncf.run._settings import RunSettings

Batches = Iterable[Any]


class UnreadableImageError(DataError):
    """Names the file. A loader's process hands it on behind a traceback, of which the last line is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition("\n")[2].rpartition(f"{type(self).__name__}: ")[2])


_HELD_OUT = 0.1
"""Share of the images of each class that validate, where the folder is not divided."""


def load_batches(settings: RunSettings, *, workers: int) -> tuple[Batches, Batches, int | None]:
    """Batches to train with, batches to validate with, and the number of classes where the data says it.

    Raises:
        DataError: the folder holds no images, or the function returns something else.
        CaptureError: there is no such function, or it raises.
    """
    if Path(settings.data).is_dir():
        return image_folder_batches(settings, workers=workers)
    if ":" not in settings.data:
        raise DataError(
            f"There is no folder {settings.data}. --data is an image folder (train/ and val/ with one folder of images "
            "for each class), or package.module:function."
        )
    function = find_object(settings.data)
    try:
        made = function()
    except Exception as error:
        # a user's function may raise anything
        raise failed(f"'{settings.data}', called without arguments,", error) from error
    if not (isinstance(made, tuple) and len(made) == 2 and all(hasattr(part, "__iter__") for part in made)):
        raise DataError(
            f"'{settings.data}' returned a {type(made).__name__}. It should return two loaders: batches of "
            "(inputs, labels) to train with, and batches to validate with."
        )
    if any(isinstance(part, Iterator) for part in made):
        raise DataError(
            f"'{settings.data}' returned an iterator, which is at its end after one epoch. Return what can be iterated "
            "again and again: a DataLoader or a list of batches."
        )
    return made[0], made[1], None


def image_folder_batches(settings: RunSettings, *, workers: int) -> tuple[Batches, Batches, int]:
    """Loaders of an image folder and its number of classes.

    The folder holds ``train`` and ``val`` with a folder of images for each class; or the folders of the classes alone,
    then a tenth of each class validates, chosen by the seed, but never all of a class.

    Raises:
        DataError: there are no images, too few, or the two parts have different classes. While iterating: an image
            cannot be read.
    """
    from torchvision import datasets

    folder = Path(settings.data)
    training, plain = _transforms(settings)
    train: Dataset[Any]
    val: Dataset[Any]
    try:
        divided = [name for name in ("train", "val") if (folder / name).is_dir()]
        if len(divided) == 1:
            raise DataError(
                f"{folder} has {divided[0]}/ and not both of train/ and val/. Name the other part so, or give a folder "
                "that holds the classes alone."
            )
        if divided:
            images = datasets.ImageFolder(folder / "train", training, loader=_read_image)
            held = datasets.ImageFolder(folder / "val", plain, loader=_read_image)
            if images.classes != held.classes:
                raise DataError(f"train/ and val/ of {folder} hold different classes.")
            train, val = images, held
        else:
            images = datasets.ImageFolder(folder, training, loader=_read_image)
            held_out = _held_out(images.targets, settings.seed)
            if not held_out:
                raise DataError(f"No class of {folder} has two images, one of them to validate with. Add more.")
            chosen = set(held_out)
            train = Subset(images, [i for i in range(len(images)) if i not in chosen])
            val = Subset(datasets.ImageFolder(folder, plain, loader=_read_image), held_out)
    except FileNotFoundError as error:
        raise DataError(
            f"{error} Each class has a folder of its own, in {folder} or in its train/ and val/."
        ) from error
    if len(train) < settings.batch_size:  # type: ignore[arg-type]
        raise DataError(
            f"{folder} holds {len(train)} images to train with: too few for --batch-size {settings.batch_size}."  # type: ignore[arg-type]
        )
    options: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
    }
    return DataLoader(train, shuffle=True, drop_last=True, **options), DataLoader(val, **options), len(images.classes)


def _read_image(path: str) -> Any:
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except (OSError, SyntaxError, ValueError) as error:  # damaged files raise any of these in Pillow
        reason = " ".join(str(error).split())
        raise UnreadableImageError(f"The image {path} cannot be read: {reason}. Repair or remove it.") from error


def _transforms(settings: RunSettings) -> tuple[Any, Any]:
    from torchvision import transforms

    size = settings.image_size
    end = [transforms.ToTensor(), transforms.Normalize(settings.mean, settings.deviation)]
    plain = transforms.Compose([transforms.Resize(size * 8 // 7), transforms.CenterCrop(size), *end])
    if not settings.augment:
        return plain, plain
    return transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *end]), plain


def _held_out(classes: list[int], seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    labels = torch.tensor(classes)
    for label in sorted(set(classes)):
        own = (labels == label).nonzero().flatten()
        count = min(max(1, round(_HELD_OUT * len(own))), len(own) - 1)
        chosen += own[torch.randperm(len(own), generator=generator)[:count]].tolist()
    return sorted(chosen)
