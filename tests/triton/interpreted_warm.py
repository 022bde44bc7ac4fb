"""Calls like one before in all but one part, in Triton's interpreter: needs TRITON_INTERPRET=1."""

from unittest.mock import patch

import torch

from tests.torch.repeated import check_every_part, fused, split
from tests.triton import interpreting
from vicinal.torch.backends.triton import Triton

if __name__ == "__main__":
    interpreting.start()
    with patch.object(Triton, "refusal", lambda self, problem: None):
        for attend in (fused, split):
            check_every_part(attend, "triton", torch.float16, (2, 6, 6, 1, 4))
