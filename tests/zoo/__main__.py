# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.zoo FILE``: write what ``pytest tests/zoo --zoo=full`` measured as a page."""

import sys
from pathlib import Path

import torch

from tests.zoo import models  # noqa: F401  (fills the zoo)
from tests.zoo.document import architectures_page, missing_or_failed
from tests.zoo.scaling import measure_scaling

if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(architectures_page(measure_scaling()), encoding="utf-8")
    if problems := missing_or_failed():
        sys.exit("\n".join(problems))
