"""Makes archive.bin and sequence.bin: the same tensors as torch.save writes them since version 1.6, and before.

    python tests/goldens/torch_files/make_golden.py

Needs torch (written against 2.13.0).  The tests know the numbers.
"""

import collections
from pathlib import Path

import torch

base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
tensors = collections.OrderedDict(
    base=base,
    view=base[1:3, 2:5],
    transposed=base.T,
    expanded=torch.ones(1).expand(3),
    empty=torch.zeros(0, 3),
    scalar=torch.tensor(3),
    parameter=torch.nn.Parameter(torch.full((2,), 0.5)),
)
for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int8, torch.uint8):
    tensors[str(dtype)] = base.to(dtype)
tensors._metadata = {"": {"version": 1}}  # as a module's state_dict has
torch.save(tensors, Path(__file__).parent / "archive.bin")
torch.save(tensors, Path(__file__).parent / "sequence.bin", _use_new_zipfile_serialization=False)
