# SPDX-License-Identifier: Apache-2.0
"""The whole line on real data: train, compress, export, measure before and after. The examples use its parts."""

from djpq_nncf.demo._comparison import Comparison
from djpq_nncf.demo._compress import Outcome, compress_and_compare
from djpq_nncf.demo._data import Batches, ImageData
from djpq_nncf.demo._digits import DigitsResNet, load_digits_data
from djpq_nncf.demo._run import demo_config, run_demo
from djpq_nncf.demo._training import accuracy, fine_tune, train

__all__ = [
    "Batches",
    "Comparison",
    "DigitsResNet",
    "ImageData",
    "Outcome",
    "accuracy",
    "compress_and_compare",
    "demo_config",
    "fine_tune",
    "load_digits_data",
    "run_demo",
    "train",
]
