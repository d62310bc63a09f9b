# SPDX-License-Identifier: Apache-2.0
"""What a library refuses, with a part of its message: these are listed in the documentation, and tested to be true."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest

from djpq_nncf.capture import capture
from djpq_nncf.errors import CaptureError
from tests.zoo.models.inputs import image, torchvision_model
from tests.zoo.registry import Example

NOT_EXPORTED: dict[str, dict[str, str]] = {
    # splits the batch: onnxscript's optimizer expects a split by constants
    "raft_small": {"ONNX": "'NoneType' object has no attribute 'ndim'"},
}
"""Architecture -> format -> part of the message with which the format's library refuses it."""


@dataclass(frozen=True)
class RefusedCapture:
    """A model that torch.export does not capture, and what it says of it."""

    name: str
    build: Callable[[], Example]
    message: str


@dataclass
class RefusalRow:
    """What we and the library said of a model that cannot be captured."""

    kind: ClassVar[str] = "refused"
    name: str
    error: str = ""
    library_error: str = ""
    failure: str = ""


_DATA_DEPENDENT = "branches on, or sizes a tensor by, values of a tensor"

NOT_CAPTURED = {
    name: RefusedCapture(name, lambda name=name: torchvision_model(name, image(128)), _DATA_DEPENDENT)  # type: ignore[misc]
    for name in (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fcos_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
    )
}
"""Whole detectors: how many boxes survive suppression depends on the image. Without it they are in the zoo."""


def check_refusal(model: RefusedCapture, row: RefusalRow) -> None:
    """Fill ``row``.

    Raises:
        AssertionError: the model is captured, so that it belongs into the zoo.
    """
    example = model.build()
    with pytest.raises(CaptureError, match=model.message) as caught:
        capture(example.module.eval(), *example.inputs())
    row.error = str(caught.value)
    cause = caught.value.__cause__
    row.library_error = f"{type(cause).__name__}: {str(cause).splitlines()[0]}"
