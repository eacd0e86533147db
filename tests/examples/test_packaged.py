"""The examples do what they say, held against plain PyTorch and the stock runtime."""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from mmpack.cli import main
from mmpack.examples.adder import demo, sums
from mmpack.examples.adder.evaluate import accuracy, complete
from mmpack.multimethod import inspect, load
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.errors import CallError
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.samples import random_inputs
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.verify.compare import combinations

EXAMPLES = Path(__file__).parents[2] / "examples"
Example = Callable[[str], Path]


def model_of(name: str) -> Any:
    return load_model(load_spec(EXAMPLES / name / f"{name}.yaml"))


def unique_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def largest_allowed(model: nn.Module, methods: int) -> float:
    return 1.01 * unique_bytes(model) + methods * 64 * 1024


def prompts(count: int, examples: int, seed: int) -> list[tuple[str, str]]:
    """Held-out questions after some worked examples, and their answers."""
    rng = random.Random(seed)
    return [
        (sums.prompt([sums.draw(rng) for _ in range(examples)], (a, b)), f"{a + b}\n")
        for a, b in sums.held_out(count, seed)
    ]


@pytest.mark.parametrize(
    ("name", "methods"), [("nested_matmul", 2), ("encoder_decoder", 2), ("adder", 24)]
)
def test_every_method_is_what_the_stock_runtime_makes_of_it(
    example: Example, stock: Callable[[Path], Any], name: str, methods: int
) -> None:
    """To the bit, at the least, a middle and the largest of all sizes."""
    program = load(example(name))
    loaded = stock(program.path)
    assert program.manifest is not None
    assert len(program.manifest.methods) == methods
    for method, record in program.manifest.methods.items():
        for sizes in combinations(record.signature.dims):
            inputs = random_inputs(
                record.signature.inputs,
                sizes,
                {k: tuple(v) for k, v in record.extra["ranges"].items()},
                torch.Generator().manual_seed(0),
            )
            theirs = loaded.load_method(method).execute(list(inputs))
            ours = program.run_method(method, *inputs)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), method


class TestNestedMatmul:
    """A static parent, and its child with two dims that vary apart from each other."""

    @pytest.fixture(scope="class")
    def program(self, example: Example) -> Program:
        return load(example("nested_matmul"))

    def test_the_parent_is_static_and_the_child_is_dynamic(self, program: Program) -> None:
        assert str(program.signature("forward")) == (
            "forward(x: float32[8, 64], y: float32[8, 64]) -> (product: float32[8, 8])"
        )
        assert str(program.signature("matmul")) == (
            "matmul(a: float32[m=1..128, 64], b: float32[64, n=1..128]) -> (product: float32[m, n])"
        )

    @pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 128), (128, 1), (5, 5), (7, 100), (128, 128)])
    def test_the_childs_dims_are_independent(self, program: Program, m: int, n: int) -> None:
        a, b = torch.randn(m, 64), torch.randn(64, n)
        torch.testing.assert_close(program.run_method("matmul", a, b).product, a @ b)

    def test_the_parent_is_called_alone(self, program: Program) -> None:
        x, y = torch.randn(8, 64), torch.randn(8, 64)
        expected = model_of("nested_matmul")(x, y)
        torch.testing.assert_close(program.run_method("forward", x, y).product, expected)
        with pytest.raises(CallError):
            program.run_method("forward", x[:7], y)


class TestEncoderDecoder:
    """Two Python methods of one model, with one copy of the weights that both use."""

    def test_together_they_are_the_model(self, example: Example) -> None:
        program, model = load(example("encoder_decoder")), model_of("encoder_decoder")
        for source_length, row_count in [(1, 1), (64, 3), (9, 64)]:
            source, rows = torch.randn(source_length, 256), torch.randn(row_count, 256)
            (memory,) = program.run_method("encode", source)
            (decoded,) = program.run_method("decode", memory=memory, rows=rows)
            torch.testing.assert_close(decoded, model(source, rows))

    def test_shared_weights_are_stored_once(self, example: Example) -> None:
        path, model = example("encoder_decoder"), model_of("encoder_decoder")
        size = path.stat().st_size
        assert size <= largest_allowed(model, 2)
        mixed = unique_bytes(model.mix)
        assert size < unique_bytes(model) + mixed / 2  # so `mix` is not there twice
        methods = inspect(path).methods
        assert all(method.bytes > mixed for method in methods.values())


class TestAdder:
    """A trained decoder, cut in three parts a layer, in two sizes."""

    @pytest.fixture(scope="class")
    def program(self, example: Example) -> Program:
        return load(example("adder"))

    @pytest.fixture(scope="class")
    def model(self) -> Any:
        return model_of("adder")

    def test_it_is_as_small_as_its_weights(self, program: Program, model: nn.Module) -> None:
        weights, size = unique_bytes(model), program.path.stat().st_size
        assert weights < 2_000_000
        methods = set(program) - set(program.constants)
        assert len(methods) == 24 and len(program) == 26
        assert size <= largest_allowed(model, 24)
        # So little besides that a second copy of a layer, or of lm_head, would show.
        assert size - weights < weights / 10

    def test_only_attention_is_dynamic(self, program: Program) -> None:
        dynamic = {name for name in program if program.signature(name).dynamic}
        assert dynamic == {"attention.chunk", "attention.one"}

    @pytest.mark.parametrize(("examples", "seed"), [(0, 0), (7, 1), (9, 2), (14, 3), (18, 4)])
    def test_program_and_eager_write_the_same_tokens_and_logits(
        self, program: Program, model: nn.Module, examples: int, seed: int
    ) -> None:
        ((text, answer),) = prompts(1, examples, seed)
        prompt = torch.tensor([sums.encode(text)])
        chunk = program.flow("prefill").plan.size
        assert examples == 0 or prompt.shape[1] > 2 * chunk
        tokens, logits = demo.answer(program, prompt)
        expected_tokens, expected_logits = demo.answer_eagerly(model, prompt)
        assert tokens == expected_tokens
        torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)
        assert sums.decode(tokens) == answer

    @pytest.mark.parametrize("worked_examples", [0, 6])
    def test_it_adds_held_out_sums(self, model: nn.Module, worked_examples: int) -> None:
        assert accuracy(model, n=1000, seed=0, worked_examples=worked_examples) >= 0.99
        assert not {sums.draw(random.Random(i)) for i in range(2000)} & set(sums.held_out(1000, 0))

    @pytest.mark.parametrize(
        ("count", "least"),
        [(30, 28), pytest.param(1000, 990, marks=pytest.mark.slow)],
    )
    def test_the_program_adds_held_out_sums(self, program: Program, count: int, least: int) -> None:
        right = 0
        for text, answer in prompts(count, 0, seed=0):
            tokens, _ = demo.answer(program, torch.tensor([sums.encode(text)]))
            right += sums.decode(tokens) == answer
        assert right >= least

    def test_what_the_greedy_text_says_is_what_the_scores_say(self, model: nn.Module) -> None:
        for text, answer in prompts(10, 2, seed=5):
            assert (complete(model, text) == answer) == (
                demo.answer_eagerly(model, torch.tensor([sums.encode(text)]))[0]
                == sums.encode(answer)
            )

    @pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 100, 256])
    def test_prefill_of_any_length_gives_the_models_logits(
        self, program: Program, model: nn.Module, length: int
    ) -> None:
        tokens = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = model(tokens)
        got = program.flow("prefill").run(tokens).logits
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)

    @pytest.mark.parametrize(
        "question", ["1+", "+1", "1000+1", "1+1000", "a+b", "1-1", "1+1+1", "١+١", ""]
    )
    def test_a_question_that_is_no_sum_is_refused_before_anything_is_built(
        self, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MMPACK_CACHE", str(tmp_path))
        with pytest.raises(CallError, match="expected a sum of two numbers of up to 3 digits"):
            demo.demo(question, tmp_path / "adder.pte")
        assert not list(tmp_path.iterdir())

    def test_the_demo_shows_that_both_agree(
        self,
        model: nn.Module,
        build_cache: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """What it prints is what the program and the model give here for the prompt it shows."""
        capsys.readouterr()
        demo.demo("23+989", tmp_path / "adder.pte", cache=build_cache)
        shown = capsys.readouterr().out
        program = load(tmp_path / "adder.pte")
        table = shown.partition("method ")[2].partition("dims: ")[0].splitlines()
        assert table[0].split()[:3] == ["target", "inputs", "delegated"]
        assert [row.split()[0] for row in table[1:]] == [
            name for name in program if name not in program.constants
        ]

        said = re.search(
            r"\n\n(\d+) tokens in (\d+) chunks:\n\n(.*)\n\nprogram       (.*)\neager PyTorch (.*)\n"
            r"max error of (\d+) × 256 logits: (.*)\n$",
            shown,
            re.DOTALL,
        )
        assert said is not None
        text = said[3].removesuffix("1012")
        assert text.endswith("\n23+989=") and len(text) + 4 == len(said[3])
        assert len(text.splitlines()) > 2  # worked examples
        assert int(said[1]) == len(text) > 32
        assert int(said[2]) == math.ceil(len(text) / 32) > len(text) / 32 > 2
        prompt = torch.tensor([list(text.encode())])
        tokens, logits = demo.answer(program, prompt)
        with torch.no_grad():
            expected = model(torch.tensor([[*text.encode(), *b"1012"]]))[0]
        assert bytes(tokens) == b"1012\n" == bytes(expected[len(text) - 1 :].argmax(1).tolist())
        assert said[4] == said[5] == "'1012\\n'"
        assert int(said[6]) == len(expected) == len(text) + 4
        error = float((logits - expected).abs().max())
        assert 0 < error < 1e-3
        assert float(said[7]) == pytest.approx(error, rel=0.05)  # it shows two digits

    @pytest.mark.parametrize("what", ["logits", "tokens"])
    def test_a_demo_that_disagrees_fails(
        self,
        what: str,
        program: Program,
        build_cache: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Of the model that is compared with, other weights: by little, so that the tokens are the
        same and only the logits tell; or so much that it answers something else."""
        loaded = demo.load_model

        def other(spec_file: SpecFile) -> nn.Module:
            model = loaded(spec_file)
            with torch.no_grad():
                head = model.get_parameter("lm_head.weight")
                head.mul_(1.001 if what == "logits" else -1)
            return model

        monkeypatch.setattr(demo, "load_model", other)
        command = ["demo", "--output", str(tmp_path / "adder.pte"), "--cache", str(build_cache)]
        result = CliRunner().invoke(main, command)
        logging.disable(logging.NOTSET)
        assert result.exit_code == 8
        assert result.stderr == "error: the program and eager PyTorch do not agree\n"
        written = re.findall(r"(?:program      |eager PyTorch) '(.*)'", result.stdout)
        assert (written[0] == written[1] == "1112\\n") == (what == "logits")
