"""A block of the adder, its projections on the NPU (16a8w, or fp16) and its attention on the CPU:
the adder still adds, with that block run by the program, chunk by chunk, in the simulator."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mmpack.examples.adder import sums
from mmpack.examples.adder.calibration import prompts
from mmpack.examples.npu_cpu.answer import adder_with
from mmpack.examples.npu_cpu.calibration import hidden_states
from mmpack.examples.npu_cpu.model import BLOCK
from mmpack.multimethod import Program, build, inspect, load

from ..targets.qnn import needs_qnn

pytestmark = needs_qnn


EXAMPLE = Path(__file__).parents[2] / "examples" / "npu_cpu"


@pytest.fixture(scope="module")
def program(example: Callable[[str], Path]) -> Program:
    """As the example has it: 16a8w."""
    return load(example("npu_cpu"))


@pytest.fixture(scope="module")
def float16(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Program:
    """The same spec with another precision, the word that its comment names."""
    folder = tmp_path_factory.mktemp("float16")
    text = (EXAMPLE / "npu_cpu.yaml").read_text().replace("precision: 16a8w", "precision: fp16")
    for name in ("model.py:", "calibration.py:", "../adder/adder.safetensors"):
        text = text.replace(f" {name}", f" {(EXAMPLE / name).resolve()}")
    (folder / "npu_cpu.yaml").write_text(text)
    build(folder / "npu_cpu.yaml", folder / "npu_cpu.pte", jobs=2, cache=build_cache)
    return load(folder / "npu_cpu.pte")


def texts(count: int) -> list[str]:
    """Held-out sums with their answers, after some worked ones."""
    rng = random.Random(0)
    worked = [sums.line(*sums.draw(rng)) for _ in range(6)]
    return ["".join(worked) + sums.line(*pair) for pair in sums.held_out(count, 0)]


@torch.no_grad()
def answers(program: Program, count: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Of held-out sums: the bytes of the right answer; then the likeliest ones in its place and
    the one after it, by the adder with the program's block, and by eager PyTorch."""
    models = [adder_with(program), adder_with(None)]
    for text in texts(count):
        tokens, start = torch.tensor([sums.encode(text)]), text.rindex("=")
        ours, eager = (model(tokens).argmax(-1)[0, start:].tolist() for model in models)
        yield sums.encode(text)[start + 1 :], ours, eager


def test_each_part_is_where_it_belongs(program: Program) -> None:
    methods = inspect(program.path).methods
    assert methods["qkv_proj"].delegates == methods["output_mlp"].delegates == {"QnnBackend": 1}
    assert not methods["qkv_proj"].left and not methods["output_mlp"].left
    assert set(methods["attention"].delegates) == {"XnnpackBackend"}
    dims = program.signature("attention").dims.values()
    assert [dim.name for dim in dims if not dim.fixed] == ["kv"]


def test_the_projections_are_quantized_and_attention_is_not(
    program: Program, float16: Program
) -> None:
    def precisions(path: Path) -> list[str | None]:
        return [method.precision for method in inspect(path).methods.values()]

    assert precisions(program.path) == [None, "16a8w", None, "16a8w"]
    assert precisions(float16.path) == [None, "fp16", None, "fp16"]
    scales = inspect(program.path).methods["qkv_proj"].scales
    assert {scale.dtype for _, _, found in scales for scale in found} == {"uint16"}


def test_calibration_shows_the_block_what_prompts_make_of_it() -> None:
    """What a hook sees in a run of the whole model, and no sum that is held out."""
    model = adder_with(None)
    seen: list[torch.Tensor] = []
    model.get_submodule(f"layers.{BLOCK}").register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    shown = [prompt["tokens"] for prompt in prompts()]
    with torch.no_grad():
        for tokens in shown:
            model(tokens)
        got = [sample["hidden"] for sample in hidden_states()]
    assert len(got) == len(seen) > 4
    assert all(torch.equal(a, b) for a, b in zip(got, seen, strict=True))
    lines = [line for tokens in shown for line in sums.decode(tokens[0].tolist()).split()]
    asked = [line.partition("=")[0].split("+") for line in lines]
    assert len(asked) > 40 and not any(sums.is_held_out(int(a), int(b)) for a, b in asked)


def test_a_handful_of_sums(program: Program, float16: Program) -> None:
    assert min(len(text) for text in texts(3)) > 2 * 32  # several chunks, the last one padded
    for right, ours, _ in answers(program, 3):
        assert ours[:-1] == right
    for right, ours, eager in answers(float16, 3):
        assert ours[:-1] == right and ours == eager


def test_as_a_pipeline_it_gives_what_it_gives_serially(program: Program) -> None:
    flow = program.flow("block")
    assert {flow.lanes[name] for name in ("qkv_proj", "output_mlp")} == {"npu"}
    assert {flow.lanes[name] for name in ("rotary", "attention")} == {"cpu"}
    hidden = torch.randn(1, 100, 96, generator=torch.Generator().manual_seed(0))
    expected = flow.run(hidden).hidden
    for schedule in ("in-order", "out-of-order"):
        got = flow.run(hidden, schedule=schedule).hidden  # type: ignore[arg-type]
        assert torch.equal(got, expected)


@pytest.mark.slow
def test_the_adder_still_adds(program: Program, record_property: Callable[..., None]) -> None:
    right = sum(ours[:-1] == answer for answer, ours, _ in answers(program, 300))
    record_property("right of 300 at 16a8w", right)
    print(f"16a8w: {right} of 300 sums are right")
    assert right >= 0.97 * 300


@pytest.mark.slow
def test_float16_changes_no_token(float16: Program) -> None:
    found = list(answers(float16, 300))
    assert len(found) == 300 and all(ours == eager for _, ours, eager in found)


def test_it_answers_on_the_command_line(program: Program) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmpack.examples.npu_cpu.answer", str(program.path), "123+989"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("\n123+989=1112\n")
    assert "qnn" not in done.stdout.lower() + done.stderr.lower()
