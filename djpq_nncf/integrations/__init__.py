# SPDX-License-Identifier: Apache-2.0
"""For those who train with Lightning or the Hugging Face Trainer; each module needs its library (an extra)."""
