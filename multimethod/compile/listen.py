"""What a module is called with, and gives, while something else runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def listen(
    module: nn.Module,
    call: str,
    note: Callable[[inspect.BoundArguments], None],
    done: Callable[[Any], None] = lambda result: None,
) -> Callable[[], None]:
    """Have `note` told the arguments of every call of a module's Python method `call`, before it
    runs, and `done` what it gave. Returns what ends that."""
    signature = inspect.signature(getattr(module, call))
    if call == "forward":
        # First of all such hooks: another one may change what is passed on.
        before = module.register_forward_pre_hook(
            lambda _, args, kwargs: note(signature.bind(*args, **kwargs)),
            with_kwargs=True,
            prepend=True,
        )
        after = module.register_forward_hook(lambda _, args, result: done(result))

        def remove() -> None:
            before.remove()
            after.remove()

        return remove
    original = getattr(module, call)

    def spy(*args: Any, **kwargs: Any) -> Any:
        note(signature.bind(*args, **kwargs))
        result = original(*args, **kwargs)
        done(result)
        return result

    # Past nn.Module's own __setattr__. A method that was put on the instance comes back there.
    own = vars(module).get(call)
    object.__setattr__(module, call, spy)
    if own is not None:
        return lambda: object.__setattr__(module, call, own)
    return lambda: object.__delattr__(module, call)
