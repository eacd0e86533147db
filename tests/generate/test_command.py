"""`mmpack generate`: text on stdout, how fast it came on stderr, and errors in words."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tokenizers import decoders
from torch import nn

from mmpack.cli import main
from mmpack.multimethod import link
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.generate import text
from mmpack.multimethod.runtime import engines
from mmpack.multimethod.runtime.engine import Engine
from mmpack.multimethod.spec import load_spec

from .test_generate import SPEC, eagerly, prompt
from .tokenizers_made import SMOLLM2, byte_level, files, folder

NEWLINE = ord("\n")
SAID = re.compile(
    r"prefill (\d+) tokens?(?:, [\d.]+ tokens/s)?; "
    r"decode (\d+) tokens?(?:, [\d.]+ tokens/s)?; (.*)\n"
)
FILES = files(
    byte_level(),
    generation_config={"eos_token_id": [NEWLINE]},
    tokenizer_config={"chat_template": "{{ messages[-1].content }}"},
)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command line silences the libraries' loggers, which is for a process of its own."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_model(load_spec(SPEC))


@pytest.fixture(scope="module")
def bare(example: Callable[[str], Path]) -> Path:
    """The adder, without a tokenizer."""
    return example("adder")


@pytest.fixture(scope="module")
def path(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adder with a tokenizer inside, by which its answers end with a newline."""
    made = tmp_path_factory.mktemp("text") / "adder.pte"
    link([bare], made, files=FILES)
    return made


def mmpack(*args: object, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["generate", *map(str, args)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


TEXT = bytes(prompt(2)).decode()


@pytest.mark.parametrize("chat", [[], ["--chat"]])
def test_text_is_that_of_eager_pytorch(chat: list[str], path: Path, model: nn.Module) -> None:
    expected = bytes(eagerly(model, prompt(2), 99, [NEWLINE]))
    result = mmpack(path, "--prompt", TEXT, *chat)
    assert (result.exit_code, result.stdout) == (0, expected.decode() + "\n")
    said = SAID.fullmatch(result.stderr)
    assert said is not None
    assert int(said[1]) == len(TEXT) and int(said[2]) == len(expected) - 1
    assert said[3] == "the text is at its end"


@pytest.mark.parametrize("schedule", ["serial", "out-of-order"])
def test_weights_may_be_anywhere(path: Path, tmp_path: Path, schedule: str) -> None:
    link([path], tmp_path / "lean.pte", data="weights.ptd")
    (tmp_path / "far").mkdir()
    expected = mmpack(path, "--prompt", TEXT)
    beside = mmpack(tmp_path / "lean.pte", "--prompt", TEXT, "--schedule", schedule)
    data = (tmp_path / "weights.ptd").rename(tmp_path / "far" / "weights.ptd")
    assert data.stat().st_size > 5 * (tmp_path / "lean.pte").stat().st_size
    far = ["--data", data, "--schedule", schedule]
    told = mmpack(tmp_path / "lean.pte", "--prompt", TEXT, *far)
    assert expected.exit_code == 0 and beside.stdout == told.stdout == expected.stdout
    run = CliRunner().invoke(main, [
        "trace", str(tmp_path / "lean.pte"), "prefill", "--rows", "9", "--data", str(data),
    ])  # fmt: skip
    assert run.exit_code == 0, run.output
    assert mmpack(tmp_path / "lean.pte", "--prompt", TEXT).exit_code != 0


def test_the_prompt_is_read_by_a_pipeline(
    bare: Path, native_engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_automatic", lambda: native_engine)
    numbers = ",".join(map(str, prompt(7)))
    serial = mmpack(bare, "--tokens", numbers, "--max-tokens", 4)
    result = mmpack(bare, "--tokens", numbers, "--max-tokens", 4,
                    "--schedule", "out-of-order", "--lanes", "cpu=2", "--threads", 1)  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, serial.stdout)
    result = mmpack(bare, "--tokens", numbers, "--schedule", "in-order", "--lanes", "npu=1")
    assert result.exit_code == 10 and "no method is on lane 'npu'" in result.stderr


def test_the_prompt_is_read_from_stdin(path: Path) -> None:
    given = mmpack(path, "--prompt", TEXT)
    assert mmpack(path, "--prompt", "-", stdin=TEXT).stdout == given.stdout
    assert mmpack(path, "--prompt", "-", "--chat", stdin=TEXT).stdout == given.stdout


def test_tokens_in_and_out(path: Path, bare: Path, model: nn.Module) -> None:
    numbers = ",".join(map(str, prompt(2)))
    expected = eagerly(model, prompt(2), 99, [NEWLINE])
    assert mmpack(path, "--tokens", numbers).stdout == ",".join(map(str, expected)) + "\n"
    result = mmpack(bare, "--tokens", numbers, "--max-tokens", 7)
    assert result.stdout == ",".join(map(str, eagerly(model, prompt(2), 7))) + "\n"
    assert result.stderr.endswith("; stopped after 7 tokens\n")


def test_a_tokenizer_in_a_folder_goes_first(bare: Path, path: Path, tmp_path: Path) -> None:
    place = folder(tmp_path / "model", files(byte_level()))
    for program in (bare, path):
        result = mmpack(program, "--prompt", TEXT, "--tokenizer", place, "--max-tokens", 8)
        assert result.stderr.endswith("; stopped after 8 tokens\n")
        assert "\n" in result.stdout[:-1]


def test_a_chat_is_what_the_template_makes_of_it(bare: Path, tmp_path: Path) -> None:
    special = ["<|im_start|>", "<|im_end|>"]
    content = files(byte_level(special), tokenizer_config={"chat_template": SMOLLM2})
    place = folder(tmp_path / "model", content)
    wanted = (
        "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1+1=<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    tokens = byte_level(special).encode(wanted).ids
    # The adder knows no such tokens: its table has 256 rows, and that is what it says.
    result = mmpack(bare, "--prompt", "1+1=", "--chat", "--system", "Add.", "--tokenizer", place)
    assert result.exit_code == 9 and "embedding.chunk" in result.stderr
    assert f"{max(tokens)}" in result.stderr


@pytest.mark.parametrize(("chat", "shown"), [([], " a\n"), (["--chat"], "a\n")])
def test_only_what_goes_on_with_a_text_begins_with_a_space(
    chat: list[str],
    shown: str,
    bare: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a tokenizer that leaves out the first space of a text, as Llama's does."""
    words = byte_level()
    words.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    content = {**FILES, **files(words)}

    class Made(Iterator[int]):
        statistics, tokens = "told", iter(b" a")

        def __next__(self) -> int:
            return next(self.tokens)

    monkeypatch.setattr(text, "generate", lambda *_, **__: Made())
    place = folder(tmp_path / "model", content)
    assert mmpack(bare, "--prompt", "b", "--tokenizer", place, *chat).stdout == shown


def test_seeds(bare: Path) -> None:
    options = ["--tokens", "49,43", "--temperature", 9, "--top-k", 200, "--max-tokens", 12]
    one, again, other = (mmpack(bare, *options, "--seed", s) for s in (1, 1, 2))
    assert one.stdout == again.stdout != other.stdout


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ([], 2, "expected one of --prompt and --tokens"),
        (["--prompt", "a", "--tokens", "1"], 2, "expected one of --prompt and --tokens"),
        (["--prompt", "a", "--system", "b"], 2, "--system goes with --chat"),
        (["--tokens", "1", "--chat"], 2, "--chat with --prompt"),
        (["--tokens", "1,x"], 2, "'1,x': expected numbers of tokens like 1,2,3"),
        (["--prompt", ""], 9, "error: the prompt is empty"),
        (["--prompt", "a" * 300], 9, "error: the prompt has 300 tokens, and "),
        (["--prompt", "a", "--top-p", "2"], 9, "error: top-p: expected more than 0"),
        (["--prompt", "a", "--tokenizer", "nowhere"], 9, "error: nowhere: expected a folder with"),
    ],
)
def test_what_cannot_be(args: list[str], code: int, told: str, path: Path) -> None:
    result = mmpack(path, *args)
    assert result.exit_code == code and told in result.stderr and result.stdout == ""


def test_no_tokenizer(bare: Path) -> None:
    result = mmpack(bare, "--prompt", "1+1=")
    assert (result.exit_code, result.stdout) == (9, "")
    assert result.stderr == (
        f"error: {bare}: has no tokenizer.json (its files: none); build it with "
        "`files: {tokenizer.json: …}` in the spec, name the model's folder (--tokenizer), or give "
        "and get numbers of tokens (--tokens 1,2,3)\n"
    )


def test_no_template(bare: Path, tmp_path: Path) -> None:
    place = folder(tmp_path / "model", files(byte_level()))
    result = mmpack(bare, "--prompt", "1+1=", "--chat", "--tokenizer", place)
    assert result.exit_code == 9 and ": has no chat template (" in result.stderr


def test_no_language_model(toy: Path) -> None:
    """Which is said before anything about tokenizers."""
    result = mmpack(toy, "--prompt", "1+1=")
    assert result.exit_code == 10 and "has no flow 'decode'; expected a flow" in result.stderr


@pytest.mark.parametrize("package", ["tokenizers", "jinja2"])
def test_a_package_that_is_missing(
    package: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = mmpack(path, "--prompt", "1+1=", "--chat")
    assert result.exit_code == 1 and result.stdout == ""
    assert f" needs {package}: pip install 'mmpack[hf]'" in result.stderr
    if package == "tokenizers":
        assert mmpack(path, "--tokens", "49,43").exit_code == 0


SLOWLY = """
import signal, sys, time
from mmpack.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have jobs behind `&` ignore it
write = sys.stdout.write
def slowly(text):
    count = write(text)
    time.sleep(0.05)
    return count
sys.stdout.write = slowly
main(sys.argv[1:])
"""
"""The command, not done before it is interrupted, also where the machine has other work."""


def test_an_interruption_shows_what_was_made(bare: Path, tmp_path: Path) -> None:
    place = folder(tmp_path / "model", files(byte_level()))
    command = [sys.executable, "-u", "-c", SLOWLY, "generate", bare]
    process = subprocess.Popen(
        [*command, "--prompt", "1+1=", "--tokenizer", place],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    begun = process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=60)
    assert process.returncode == 1
    expected = eagerly(load_model(load_spec(SPEC)), list(b"1+1="), 253)
    shown = begun + rest
    assert shown.endswith(b"\n") and bytes(expected).startswith(shown[:-1])
    assert 5 <= len(shown) < 250
    said = SAID.fullmatch(told.decode())
    assert said is not None and said[3] == "interrupted"
    assert int(said[1]) == 4 and len(shown) - 2 <= int(said[2]) + 1


def test_pieces_come_as_they_are_made(path: Path) -> None:
    """Not all at the end: the first one is there long before the last."""
    command = [sys.executable, "-m", "mmpack.cli", "generate", path, "--tokens", "49,43"]
    process = subprocess.Popen(
        [*command, "--temperature", "9", "--seed", "1", "--max-tokens", "200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), True)
    reads = []
    while part := os.read(process.stdout.fileno(), 1 << 16):
        reads.append((time.monotonic(), part))
    process.communicate(timeout=60)
    assert len(reads) > 5
    assert len(b"".join(part for _, part in reads).split(b",")) >= 2
