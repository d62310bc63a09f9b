# SPDX-License-Identifier: Apache-2.0
"""The fronts of `benchmarks/fronts.py` for EfficientNet-Lite0, fine-tuned on a folder of images.

pip install '.[benchmarks]'
python benchmarks/image_data.py  # writes the folder
python benchmarks/image_folder.py --fewer 50 100 --teachers 0
"""

from fronts import main

if __name__ == "__main__":
    main("image_folder")
