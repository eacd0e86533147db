"""Kernels that come with libraries of ExecuTorch's: named by ExecuTorch's own registry."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmpack.multimethod import ExecutionError
from mmpack.multimethod.runtime import kernels

BRING = """
import importlib
import sys
import torch
from executorch.extension.pybindings.portable_lib import _get_operator_names
from mmpack.multimethod.runtime.kernels import require_kernels
operator, module, ours_first = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
require_kernels("f", ["aten::add.out"])
assert operator not in _get_operator_names()
if not ours_first:
    importlib.import_module(module)
require_kernels("f", ["aten::add.out", operator])
assert operator in _get_operator_names()
assert (module in sys.modules) is not ours_first
before = _get_operator_names().count(operator)
importlib.import_module(module)
assert _get_operator_names().count(operator) == before == 1
if module.endswith("custom_ops"):
    query, cache = torch.zeros(1, 1, 2, 8), torch.zeros(1, 4, 2, 8)
    attended = torch.ops.llama.custom_sdpa(query, cache, cache, 0, None, 0.0, True)
    assert attended.shape == query.shape
"""


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    ("operator", "module"),
    [
        ("quantized_decomposed::embedding_4bit.out", "executorch.kernels.quantized"),
        ("llama::custom_sdpa.out", "executorch.extension.llm.custom_ops.custom_ops"),
    ],
)
def test_the_library_of_an_operator_is_loaded(operator: str, module: str, ours_first: bool) -> None:
    """Once, whether ExecuTorch's own module loads it too, before or after."""
    subprocess.run([sys.executable, "-c", BRING, operator, module, str(ours_first)], check=True)


def test_a_kernel_that_is_not_to_be_had_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = "quantized_decomposed::embedding_3bit.out"
    with pytest.raises(ExecutionError) as raised:
        kernels.require_kernels("tokens", [operator, "mine::unheard_of.out"])
    assert str(raised.value).startswith(
        "tokens: this executorch has no kernel for quantized_decomposed::embedding_3bit.out, which "
        "*quantized_ops_aot_lib.* in it should bring; pip install --force-reinstall"
    )
    monkeypatch.setitem(kernels.LIBRARIES, "mine", ("no.such.package", "*"))
    assert kernels.without_kernel(["mine::unheard_of.out"]) == ["mine::unheard_of.out"]
