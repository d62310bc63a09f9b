# SPDX-License-Identifier: Apache-2.0
"""The fronts of `benchmarks/fronts.py` on CIFAR-10."""

from fronts import main

if __name__ == "__main__":
    main("cifar10")
