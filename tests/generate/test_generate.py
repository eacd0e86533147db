"""Generation beside eager PyTorch, which reads everything anew for each token."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import nn

from mmpack.examples.adder import sums
from mmpack.multimethod import CallError, FlowError, Program, generate, link, load
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.generate.sample import Sampler
from mmpack.multimethod.spec import load_spec

from ..compile.projects import Project

SPEC = Path(__file__).parents[2] / "examples" / "adder" / "adder.yaml"
NEWLINE = ord("\n")


def prompt(examples: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    drawn = [sums.draw(rng) for _ in range(examples)]
    return list(sums.encode(sums.prompt(drawn, sums.draw(rng))))


@torch.no_grad()
def eagerly(
    model: nn.Module,
    tokens: list[int],
    most: int,
    stop: Collection[int] = (),
    sampler: Callable[[torch.Tensor], int] = lambda logits: int(logits.argmax()),
) -> list[int]:
    made: list[int] = []
    while len(made) < most and not (made and made[-1] in stop):
        made.append(sampler(model(torch.tensor([[*tokens, *made]]))[0, -1]))
    return made


@pytest.fixture(scope="module")
def program(example: Callable[[str], Path]) -> Program:
    return load(example("adder"))


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(load_spec(SPEC))


def changed(program: Program, path: Path, **others: Any) -> Program:
    """The program with something else in its manifest."""
    assert program.manifest is not None
    link([program.path], path, manifest=evolve(program.manifest, **others))
    return load(path)


@pytest.fixture(scope="module")
def decode_only(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Program:
    assert program.manifest is not None
    flow = {"decode": program.manifest.flow["decode"]}
    return changed(program, tmp_path_factory.mktemp("only") / "decode.pte", flow=flow)


@pytest.mark.parametrize("examples", [0, 3, 7])
def test_tokens_are_those_of_eager_pytorch(
    examples: int, program: Program, decode_only: Program, model: nn.Module
) -> None:
    tokens = prompt(examples)
    expected = eagerly(model, tokens, 12)
    assert list(generate(program, tokens, max_tokens=12)) == expected
    assert list(generate(program, torch.tensor([tokens]), max_tokens=12)) == expected
    if examples < 7:
        assert list(generate(decode_only, tokens, max_tokens=12)) == expected


@pytest.mark.parametrize("schedule", ["in-order", "out-of-order"])
@pytest.mark.parametrize("examples", [0, 7])
def test_a_prompt_read_by_a_pipeline_is_the_same(
    schedule: Any, examples: int, program: Program, model: nn.Module
) -> None:
    tokens = prompt(examples)
    run = generate(program, tokens, max_tokens=6, schedule=schedule, lanes={"cpu": 2})
    assert list(run) == eagerly(model, tokens, 6)
    assert run.statistics.prefill_tokens == len(tokens)


def test_it_ends_at_a_token_that_ends_texts(program: Program, model: nn.Module) -> None:
    tokens = prompt(2)
    run = generate(program, tokens, stop=[NEWLINE, 0])
    made = list(run)
    assert made == eagerly(model, tokens, 99, [NEWLINE])
    assert made[-1] == NEWLINE and len(made) < 6
    assert run.statistics.ended == "the text is at its end"


def test_drawn_tokens_are_drawn_from_the_models_logits(program: Program, model: nn.Module) -> None:
    options: dict[str, Any] = {"temperature": 3.0, "top_k": 20, "seed": 5}
    tokens = prompt(1)
    made = list(generate(program, tokens, max_tokens=15, **options))
    assert made == eagerly(model, tokens, 15, sampler=Sampler(**options))
    assert made != eagerly(model, tokens, 15)


@pytest.mark.parametrize("length", [250, 255, 256])
def test_it_ends_where_the_caches_are_full(length: int, program: Program, model: nn.Module) -> None:
    tokens = [*prompt(40)][:length]
    assert len(tokens) == length
    run = generate(program, tokens)
    # The last one is not fed any more, so there is no need for room for it.
    assert list(run) == eagerly(model, tokens, 256 - length + 1)
    assert run.statistics.ended == "the program's context of 256 tokens is full"


def test_a_prompt_that_has_no_room(program: Program) -> None:
    with pytest.raises(CallError) as raised:
        generate(program, [1] * 257)
    assert str(raised.value) == (
        f"the prompt has 257 tokens, and {program.path} has room for 256, answer included"
    )


@pytest.mark.parametrize(
    ("constants", "room"),
    [
        ({"get_max_context_len": 40}, 40),
        ({"get_max_context_len": 40, "get_max_seq_len": 20}, 40),
        ({"get_max_seq_len": 20}, 20),
        ({"get_max_context_len": 4000}, 256),
        ({"get_max_context_len": "x", "get_max_seq_len": 20}, 256),
        ({}, 256),
    ],
)
def test_the_program_says_how_much_room_there_is(
    constants: dict[str, Any], room: int, program: Program
) -> None:
    """By constants under the names that ExecuTorch's runners ask for, or by what it has."""
    assert program.manifest is not None
    assert program.manifest.constants == {"get_max_seq_len": 256, "get_vocab_size": 256}
    told = load(program.path)
    told.manifest = evolve(program.manifest, constants=constants)
    with pytest.raises(CallError, match=rf"^the prompt has 300 tokens, .* has room for {room}, "):
        generate(told, [1] * 300)


def test_statistics_count_what_was_fed(program: Program, decode_only: Program) -> None:
    tokens = prompt(7)
    for made_by in (program, decode_only):
        run = generate(made_by, tokens, max_tokens=5)
        statistics = run.statistics
        assert (statistics.prefill_tokens, statistics.decode_tokens) == (0, 0)
        assert str(statistics) == "prefill 0 tokens; decode 0 tokens"
        next(run)
        assert (statistics.prefill_tokens, statistics.decode_tokens) == (len(tokens), 0)
        assert statistics.ended == ""
        list(run)
        assert (statistics.prefill_tokens, statistics.decode_tokens) == (len(tokens), 4)
        assert statistics.prefill_seconds > 0 and statistics.decode_seconds > 0
        told = str(statistics).split("; ")
        rate = len(tokens) / statistics.prefill_seconds
        assert told[0] == f"prefill {len(tokens)} tokens, {rate:.1f} tokens/s"
        assert told[1].startswith("decode 4 tokens, ") and told[2] == "stopped after 5 tokens"


def test_a_generation_is_a_conversation_of_its_own(program: Program) -> None:
    tokens = prompt(3)
    alone = list(generate(program, tokens, max_tokens=6))
    one, other = (generate(program, tokens, max_tokens=6) for _ in range(2))
    assert list(zip(one, other, strict=True)) == [(t, t) for t in alone]


@pytest.fixture(scope="module")
def one_row(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The adder, with `last: lm_head.one` in its prompt's flow."""
    assert program.manifest is not None
    flow = program.manifest.flow
    *others, head = flow["prefill"]["steps"]
    flow = {
        **flow,
        "prefill": {**flow["prefill"], "steps": [*others, {**head, "last": "lm_head.one"}]},
    }
    return changed(program, tmp_path_factory.mktemp("one_row") / "adder.pte", flow=flow)


@pytest.mark.parametrize(
    ("name", "computed"),
    [("program", ["lm_head.chunk", "lm_head.one"]), ("one_row", ["lm_head.one", "lm_head.one"])],
)
def test_only_the_last_logits_of_a_prompt_are_computed(
    name: str, computed: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the whole prompt would be much: 200 MB for 1000 tokens of 50,000 words. Where the
    flow has a method for one row, not even a piece's."""
    program: Program = request.getfixturevalue(name)
    heads = []
    call = type(program["lm_head.chunk"]).__call__

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        heads.append(self.name)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(program["lm_head.chunk"]), "__call__", noting)
    run, lengths = type(program.flow("prefill")).run, []

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = run(self, *args, **kwargs)
        lengths.append(0 if result is None else result.logits.shape[1])
        return result

    monkeypatch.setattr(type(program.flow("prefill")), "run", counting)
    tokens = prompt(10)
    list(generate(program, tokens, max_tokens=2))
    pieces = -(-len(tokens) // 32)
    assert pieces > 3
    assert lengths == [*[0] * (pieces - 1), 1, 1]
    assert [name for name in heads if "head" in name] == computed


def test_with_a_method_for_one_row_the_answer_is_the_same(
    program: Program, one_row: Program, model: nn.Module
) -> None:
    tokens = prompt(6)
    written = list(generate(one_row, tokens, max_tokens=5))
    assert written == list(generate(program, tokens, max_tokens=5)) == eagerly(model, tokens, 5)
    assert one_row["lm_head.chunk"]._run is None  # it was not even loaded


@pytest.mark.parametrize(
    ("tokens", "options", "told"),
    [
        ([], {}, "the prompt is empty; at least one token is needed"),
        ([1], {"max_tokens": 0}, "max-tokens: expected at least 1, got 0"),
        ([1], {"seed": 3}, "seed: for drawing"),
    ],
)
def test_what_cannot_be(
    tokens: list[int], options: dict[str, Any], told: str, program: Program
) -> None:
    with pytest.raises(CallError, match=told):
        generate(program, tokens, **options)


MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 9)
    def forward(self, INPUT):
        return self.table(INPUT)
"""
METHODS = """
dims: {{two: 2, one: 1}}
methods:
  words.{{n}}:
    each: {{n: [two, one]}}
    module: "."
    target: plain
    inputs: {{{input}: {{shape: [{batch}, "{{n}}"], dtype: int64, range: 0..8}}}}
    outputs: {output}
flow:
  {name}: {{cut: {{{input}: {cut}}}, steps: [words.{cut}], outputs: [{output}], reference: none}}
"""
RIGHT = {"input": "tokens", "batch": "1", "output": "logits", "name": "decode", "cut": "one"}
EXPECTED = (
    "; expected a flow decode(tokens by 1) -> (logits) for one text at a time, and perhaps a flow "
    "prefill(tokens by any number) -> (logits); there is "
)


@pytest.mark.parametrize(
    ("other", "told", "there"),
    [
        ({"name": "encode"}, "has no flow 'decode'", "encode(tokens by 1) -> (logits)"),
        ({"input": "ids"}, "its flow 'decode' takes ids", "decode(ids by 1) -> (logits)"),
        ({"output": "hidden"}, "its flow 'decode' gives hidden", "decode(tokens by 1) -> (hidden)"),
        ({"cut": "two"}, "its flow 'decode' reads 2 tokens a piece", "decode(tokens by 2) -> (log"),
        ({"batch": "3"}, "its flow 'decode' takes tokens: int64[3, 1]", "decode(tokens by 1)"),
        ({"name": "prefill", "cut": "two"}, "has no flow 'decode'", "prefill(tokens by 2) -> "),
    ],
    ids=str,
)
def test_what_is_no_language_model(
    other: dict[str, str], told: str, there: str, project: Project
) -> None:
    given = {**RIGHT, **other}
    project.model(MODEL.replace("INPUT", given["input"])).spec(METHODS.format(**given))
    program = project.program()
    with pytest.raises(FlowError) as raised:
        generate(program, [1])
    assert f"{project.output}: cannot write text: {told}{EXPECTED}{there}" in str(raised.value)


def test_a_model_without_caches_has_no_limit_of_its_own(project: Project) -> None:
    """It forgets what it read: token after token by a table."""
    project.model(MODEL.replace("INPUT", "tokens")).spec(METHODS.format(**RIGHT))
    program = project.program()
    table = load_model(project.checked).table.weight.detach()
    made = list(generate(program, [1, 2, 3], max_tokens=30))
    expected = [3]
    for _ in range(30):
        expected.append(int(table[expected[-1]].argmax()))
    assert made == expected[1:]


def test_a_program_without_flows(toy: Path) -> None:
    with pytest.raises(FlowError, match=r"has no flow 'decode'; .* there is no flow$"):
        generate(load(toy), [1])
