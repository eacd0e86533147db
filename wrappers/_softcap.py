"""Numbers kept below a bound by a smooth function.

Source: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size" (2024), 2.
"""

import torch
from torch import Tensor


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """x, bent to stay between -cap and cap; x itself if there is no cap."""
    return x if cap is None else torch.tanh(x / cap) * cap
