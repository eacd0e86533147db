"""Which kernel attention runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpack.multimethod.errors import ModelError, nearest
from mmpack.wrappers._grouped import Grouped
from mmpack.wrappers._scores import Scores

if TYPE_CHECKING:
    from mmpack.wrappers._custom_sdpa import CustomSdpa

KERNELS = ("none", "grouped", "custom_sdpa")


def kernel_of(
    name: str | None, scores: Scores, window: int | None, masked_softmax: bool
) -> CustomSdpa | Grouped | None:
    """The kernel of a name, for such scores and such a window; None for `none`, which is plain
    PyTorch. Raises ModelError for another name, and for what the kernel cannot do."""
    if name is None or name == "none":
        return None
    if name not in KERNELS:
        raise ModelError(f"no kernel is called {name!r}{nearest(str(name), KERNELS)}")
    if masked_softmax:
        raise ModelError(f"masked_softmax is for scores that are quantized; {name}'s never are")
    if name == "grouped":
        return Grouped(scores, window)
    # Only now, since it loads a library.
    from mmpack.wrappers._custom_sdpa import CustomSdpa

    return CustomSdpa(scores, window)
