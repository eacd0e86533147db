"""What a module is called with while something else runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def listen(
    module: nn.Module, call: str, note: Callable[[inspect.BoundArguments], None]
) -> Callable[[], None]:
    """Have `note` told the arguments of every call of a module's Python method `call`, before it
    runs. Returns what ends that."""
    signature = inspect.signature(getattr(module, call))
    if call == "forward":
        hook = module.register_forward_pre_hook(
            lambda _, args, kwargs: note(signature.bind(*args, **kwargs)), with_kwargs=True
        )
        return hook.remove
    original = getattr(module, call)

    def spy(*args: Any, **kwargs: Any) -> Any:
        note(signature.bind(*args, **kwargs))
        return original(*args, **kwargs)

    # Past nn.Module's own __setattr__. A method that was put on the instance comes back there.
    before = vars(module).get(call)
    object.__setattr__(module, call, spy)
    if before is not None:
        return lambda: object.__setattr__(module, call, before)
    return lambda: object.__delattr__(module, call)
