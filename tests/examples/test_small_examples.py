"""The two small examples, built as they stand in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmpack.multimethod import CallError, build, check, load
from mmpack.multimethod.compile.model import load_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    path = tmp_path_factory.mktemp("nested") / "nested.pte"
    build(EXAMPLES / "nested_matmul/nested_matmul.yaml", path, cache=build_cache)
    return path


def test_parent_is_static_and_its_nested_matmul_dynamic_in_two_dims(nested: Path) -> None:
    model = load_model(check(EXAMPLES / "nested_matmul/nested_matmul.yaml"))
    program = load(nested)
    assert program.method_names == ("forward", "matmul")

    x, y = torch.randn(8, 64), torch.randn(8, 64)
    with torch.no_grad():
        torch.testing.assert_close(program["forward"](x, y).product, model(x, y))
    with pytest.raises(CallError, match="axis 0: expected 8, got 9"):
        program["forward"](torch.randn(9, 64), y)

    for m, n in [(1, 1), (1, 128), (128, 1), (7, 33), (128, 128)]:
        a, b = torch.randn(m, 64), torch.randn(64, n)
        product = program.run_method("matmul", b=b, a=a).product
        assert product.shape == (m, n)
        torch.testing.assert_close(product, a @ b, rtol=1e-4, atol=1e-4)


def test_encoder_and_decoder_share_one_copy_of_their_weights(
    tmp_path: Path, build_cache: Path
) -> None:
    spec = EXAMPLES / "encoder_decoder/encoder_decoder.yaml"
    path = tmp_path / "both.pte"
    build(spec, path, cache=build_cache)
    model = load_model(check(spec))
    program = load(path)

    source, rows = torch.randn(5, 256), torch.randn(9, 256)
    memory = program.run_method("encode", source).memory
    decoded = program.run_method("decode", memory, rows).decoded
    with torch.no_grad():
        torch.testing.assert_close(decoded, model(source, rows), rtol=1e-4, atol=1e-4)

    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert path.stat().st_size <= 1.01 * weights + 2 * 64 * 1024
