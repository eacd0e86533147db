"""Kernels that come with modules of ExecuTorch's: named by ExecuTorch's own registry."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmpack.multimethod import ExecutionError
from mmpack.multimethod.runtime import kernels

BRING = """
import sys
from executorch.extension.pybindings.portable_lib import _get_operator_names
from mmpack.multimethod.runtime.kernels import MODULES, require_kernels
operator = sys.argv[1]
module = MODULES[operator.partition("::")[0]]
require_kernels("f", ["aten::add.out"])
assert module not in sys.modules and operator not in _get_operator_names()
require_kernels("f", ["aten::add.out", operator])
assert module in sys.modules and operator in _get_operator_names()
"""


@pytest.mark.parametrize(
    "operator", ["quantized_decomposed::embedding_4bit.out", "llama::custom_sdpa.out"]
)
def test_the_module_of_an_operator_is_imported(operator: str) -> None:
    subprocess.run([sys.executable, "-c", BRING, operator], check=True)


def test_a_kernel_that_is_not_to_be_had_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = "quantized_decomposed::embedding_3bit.out"
    with pytest.raises(ExecutionError) as raised:
        kernels.require_kernels("tokens", [operator, "mine::unheard_of.out"])
    assert str(raised.value).startswith(
        "tokens: this executorch has no kernel for quantized_decomposed::embedding_3bit.out, which "
        "importing executorch.kernels.quantized should bring; pip install --force-reinstall"
    )
    monkeypatch.setitem(kernels.MODULES, "mine", "no.such.module")
    assert kernels.without_kernel(["mine::unheard_of.out"]) == ["mine::unheard_of.out"]
