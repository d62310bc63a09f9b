# SPDX-License-Identifier: Apache-2.0
"""All architectures, a file for each kind of network; importing this fills the zoo."""

from tests.zoo.models import (  # noqa: F401
    convolutional,
    dense_prediction,
    language,
    tiny,
    video,
    vision_transformers,
)
