# SPDX-License-Identifier: Apache-2.0
"""The fronts of `benchmarks/fronts.py` on Fashion-MNIST."""

from fronts import main

if __name__ == "__main__":
    main("fashion_mnist")
