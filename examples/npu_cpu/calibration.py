"""What the block gets when the adder reads prompts: the ranges of its numbers come from these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmpack.examples.adder import calibration
from mmpack.examples.adder.model import Adder, AdderConfig, rotary
from mmpack.examples.npu_cpu.model import BLOCK

WEIGHTS = Path(__file__).parents[1] / "adder" / "adder.safetensors"


def hidden_states() -> Iterator[dict[str, Tensor]]:
    """Worked sums, none of them held out, as the block sees them: hidden [1, about 70, 96]."""
    model = Adder(AdderConfig()).eval()
    model.load_state_dict(load_file(WEIGHTS))
    for prompt in calibration.prompts():
        hidden = model.embed_tokens(prompt["tokens"])
        angles = rotary(torch.arange(hidden.shape[1]), model.config.head_dim)
        for layer in model.layers[:BLOCK]:
            hidden = layer(hidden, *angles)
        yield {"hidden": hidden}
