"""What XNNPACK computes of modules that it does not know as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmpack.multimethod.compile.lower import lower
from mmpack.multimethod.runtime import Methods


class TestGelu:
    """The exact form and the tanh form differ by up to 5e-4."""

    @pytest.mark.parametrize("form", ["tanh", "none"])
    @pytest.mark.parametrize("last", [True, False])
    def test_each_form_is_what_it_says(self, form: str, last: bool, tmp_path: Path) -> None:
        gelu: Any = nn.GELU(approximate=form)
        module = gelu if last else nn.Sequential(nn.Linear(64, 64), gelu, nn.Linear(64, 3))
        x = torch.linspace(-5, 5, 128).reshape(2, 64)
        got, lowered = run(module.eval(), x, tmp_path)
        torch.testing.assert_close(got, module(x), atol=2e-6, rtol=1e-5)
        assert lowered.delegated == lowered.operators > 0

    def test_two_of_them_and_their_sum(self, tmp_path: Path) -> None:
        class Twice(nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                y = nn.functional.gelu(x, approximate="tanh")
                return y, nn.functional.gelu(y, approximate="tanh") + y

        x = torch.linspace(-5, 5, 64)[None]
        program = torch.export.export(Twice(), (x,))
        path = tmp_path / "m.pte"
        lower(program, "m", "xnnpack", {}, path)
        first, second = Methods.load(path).run_method("m", x)
        expected = Twice()(x)
        torch.testing.assert_close((first, second), expected, atol=2e-6, rtol=1e-5)


def run(module: nn.Module, x: torch.Tensor, folder: Path) -> tuple[torch.Tensor, Any]:
    """What a module gives once it is lowered, and how it was."""
    path = folder / "m.pte"
    lowered = lower(torch.export.export(module, (x,)), "m", "xnnpack", {}, path)
    return Methods.load(path).run_method("m", x)[0], lowered
