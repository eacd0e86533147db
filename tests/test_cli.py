"""The command line: what is printed, what it exits with, and that it is quick to answer."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from mmpack.cli import main
from mmpack.multimethod import errors, load
from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.errors import MmpackError
from mmpack.multimethod.targets import BACKENDS

ROOT = Path(__file__).parent.parent
ADDER = ROOT / "examples" / "adder" / "adder.yaml"
COMMANDS = (
    "build",
    "cache",
    "check",
    "demo",
    "doctor",
    "generate",
    "init",
    "inspect",
    "link",
    "run",
    "schedule",
    "trace",
    "verify",
)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command line silences the libraries' loggers, which is for a process of its own."""
    yield
    logging.disable(logging.NOTSET)


def mmpack(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def failing(*args: object) -> tuple[int, str]:
    """Exit code and message of a command that must end with an error of ours."""
    result = mmpack(*args)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    return result.exit_code, result.stderr.removeprefix("error: ").rstrip("\n")


def subclasses(kind: type[MmpackError]) -> list[type[MmpackError]]:
    return [kind, *(c for s in kind.__subclasses__() for c in subclasses(s))]


class TestHelp:
    def test_every_command_is_listed_with_a_line(self) -> None:
        result = mmpack("--help")
        assert result.exit_code == 0
        assert tuple(sorted(main.commands)) == COMMANDS
        listed = result.stdout.partition("Commands:")[2].splitlines()[1:]
        assert [line.split()[0] for line in listed if line.strip()] == list(COMMANDS)
        assert all(len(line.split()) > 3 for line in listed if line.strip())

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command: str) -> None:
        result = mmpack(command, "-h")
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: main {command} ")
        options = [p for p in main.commands[command].params if isinstance(p, click.Option)]
        assert all(option.help or option.name == "output" for option in options)

    def test_a_misspelt_command_is_answered_with_the_nearest(self) -> None:
        result = mmpack("chekc", "x")
        assert result.exit_code == 2
        assert "No such command 'chekc'" in result.stderr


class TestErrors:
    @pytest.mark.parametrize("kind", subclasses(MmpackError), ids=lambda kind: kind.__name__)
    def test_each_kind_owns_its_exit_code_and_shows_no_traceback(
        self, kind: type[MmpackError], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(path: Path) -> None:
            raise kind(["one", "two"]) if kind is errors.SpecError else kind("one\n\ntwo")

        monkeypatch.setattr("mmpack.multimethod.report.inspection.inspect", fail)
        assert failing("inspect", "x.pte") == (kind.exit_code, "one\n\ntwo")

    def test_no_two_kinds_share_an_exit_code(self) -> None:
        codes = [kind.exit_code for kind in subclasses(MmpackError)]
        assert len(codes) == len(set(codes)) and 0 not in codes


class TestCheck:
    def test_a_right_spec_is_called_right(self) -> None:
        result = mmpack("check", ADDER)
        assert result.exit_code == 0
        assert result.stdout == f"{ADDER}: 24 methods, 2 flows; the spec is right\n"

    def test_every_mistake_is_shown_with_its_line(self, toy_spec: Path, tmp_path: Path) -> None:
        spec = tmp_path / "toy.yaml"
        (tmp_path / "model.py").write_text(toy_spec.with_name("model.py").read_text())
        text = toy_spec.read_text().replace("target: plain", "target: plane", 1)
        spec.write_text(text.replace("a: [m, 4]", "a: [mm, 4]"))
        code, message = failing("check", spec)
        assert code == 2
        assert f"{spec}:19:13: " in message and "'plain'" in message
        assert f"{spec}:31:11: " in message and "'m'" in message

    def test_with_the_model_it_finds_what_the_spec_alone_cannot_tell(
        self, toy_spec: Path, tmp_path: Path
    ) -> None:
        result = mmpack("check", toy_spec, "--model")
        assert result.exit_code == 0
        assert result.stdout == (
            f"{toy_spec}: 5 methods, 0 flows; the spec and its model are right\n"
        )
        spec = tmp_path / "toy.yaml"
        (tmp_path / "model.py").write_text(toy_spec.with_name("model.py").read_text())
        spec.write_text(toy_spec.read_text().replace('module: "."', "module: layer", 1))
        code, message = failing("check", spec, "--model")
        assert code == 3
        assert f"{spec}:17:13: " in message and "the model has no module 'layer'" in message

    def test_a_spec_that_is_not_there(self, tmp_path: Path) -> None:
        code, message = failing("check", tmp_path / "none.yaml")
        assert code == 2 and "none.yaml" in message


class TestInspect:
    def test_text_and_json_tell_the_same(self, toy: Path) -> None:
        text, plain = mmpack("inspect", toy), mmpack("inspect", toy, "--json")
        assert text.exit_code == plain.exit_code == 0
        seen = json.loads(plain.stdout)
        assert list(seen["methods"]) == ["blend", "matmul", "window", "add", "scaled"]
        for method in seen["methods"].values():
            assert method["text"] in text.stdout

    def test_a_damaged_program(self, toy: Path, tmp_path: Path) -> None:
        path = tmp_path / "cut.pte"
        path.write_bytes(toy.read_bytes()[:-100])
        code, message = failing("inspect", path)
        assert code == 6 and message.startswith(f"{path}: ")


class TestRun:
    def test_values_come_from_files_literals_and_chance(
        self, toy: Path, toy_model: Any, tmp_path: Path
    ) -> None:
        x, y = torch.randn(2, 3), torch.randn(2, 3)
        np.save(tmp_path / "x.npy", x.numpy())
        save_file({"y": y}, tmp_path / "w.safetensors")
        result = mmpack(
            *("run", toy, "blend", f"x={tmp_path / 'x.npy'}", f"y={tmp_path / 'w.safetensors'}[y]"),
            *("picks=[2, 0, 0, 1]", "-o", tmp_path / "out.safetensors"),
        )
        assert result.exit_code == 0, result.stderr
        mixed, picked = toy_model.blend(x, y, torch.tensor([2, 0, 0, 1]))
        outputs = load_file(tmp_path / "out.safetensors")
        assert torch.equal(outputs["mixed"], mixed) and torch.equal(outputs["picked"], picked)
        assert result.stdout == (
            f"{load(toy).signature('blend')}\n"
            f"mixed: float32[2, 3] = {mixed.tolist()}\n"
            f"picked: float32[2, 4] = {picked.tolist()}\n"
        )

    def test_random_values_take_the_dims_that_are_asked_for(self, toy: Path) -> None:
        result = mmpack(
            "run", toy, "matmul", "a=random", "b=random", "--dim", "m=8", "--dim", "n=5"
        )
        assert result.exit_code == 0
        assert result.stdout.splitlines()[1].startswith("product: float32[8, 5], from -")
        again = mmpack("run", toy, "blend", "x=random", "y=random", "picks=random")
        assert again.exit_code == 0  # picks are in the spec's range

    def test_constants_run_too(self, toy: Path) -> None:
        assert mmpack("run", toy, "get_max_rows").stdout.endswith("\nout_0 = 16\n")

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("matmul", "a=random"), "matmul: takes 2 inputs, got 1: missing 'b'"),
            (("matmul", "a=random", "c=random"), "matmul has no input 'c'; known: a, b"),
            (("matmul", "a=[[1, 2]]", "b=random"), "matmul: input 'a': axis 1: expected 4, got 2"),
            (("matmul", "a=x.npy", "b=random"), "input 'a': 'x.npy' cannot be read: No such"),
            (("matmul", "a=rndom", "b=random"), "or [[1, 2]]; did you mean 'random'?"),
            (
                ("matmul", "a=[[1, 2, 3, 4]]", "b=random", "--dim", "m=2"),
                "matmul: dim 'm' is to be 2, and an input that was given has 1",
            ),
            (
                ("blend", "x=random", "y=random", "picks=[0, 1, 2, 3]"),
                "blend: input 'picks': expected values from 0 to 2, got 3",
            ),
            (("matmul", "a=random", "b=random", "--dim", "k=2"), "matmul has no dim 'k'; known:"),
            (
                ("matmul", "a=random", "b=random", "--dim", "m=9"),
                "matmul: input 'a': axis 0 (dim 'm'): expected 1 to 8, got 9",
            ),
            (("matmull",), "no method 'matmull'; did you mean 'matmul'?"),
        ],
    )
    def test_wrong_values_are_named(self, toy: Path, args: tuple[str, ...], message: str) -> None:
        code, said = failing("run", toy, *args)
        assert code == 9 and message in said

    @pytest.mark.parametrize(
        ("dims", "message"),
        [
            (["m"], "'m': expected NAME=SIZE"),
            (["m=x"], "'m=x': 'x' is not a whole number"),
            (["m=1", "m=2"], "'m=2': 'm' was given twice"),
        ],
    )
    def test_wrong_dims_are_a_matter_of_usage(
        self, toy: Path, dims: list[str], message: str
    ) -> None:
        result = mmpack("run", toy, "matmul", *(t for dim in dims for t in ("--dim", dim)))
        assert result.exit_code == 2 and message in result.stderr

    def test_a_backend_that_is_missing(self, foreign: Path, tmp_path: Path) -> None:
        path = tmp_path / "npu.pte"
        path.write_bytes(foreign.read_bytes().replace(b"XnnpackBackend", b"MissingBackend"))
        code, message = failing("run", path, "delegated", "in_0=random")
        assert code == 12 and "no MissingBackend" in message and "`mmpack doctor`" in message

    def test_an_output_that_cannot_be_written_leaves_nothing_behind(
        self, toy: Path, tmp_path: Path
    ) -> None:
        code, message = failing(
            "run", toy, "add", "amount=random", "-o", tmp_path / "none" / "out.safetensors"
        )
        assert code == 11 and "none" in message
        assert list(tmp_path.iterdir()) == []

    def test_an_output_of_another_kind_is_refused(self, toy: Path, tmp_path: Path) -> None:
        code, message = failing("run", toy, "add", "amount=random", "-o", tmp_path / "out.npy")
        assert code == 11
        assert message == f"{tmp_path / 'out.npy'}: expected a name that ends with .safetensors"
        assert list(tmp_path.iterdir()) == []


class TestVerify:
    def test_a_program_that_agrees_with_its_model(self, toy: Path, toy_spec: Path) -> None:
        result = mmpack("verify", toy, toy_spec)
        assert result.exit_code == 0, result.stderr
        table = [line.split() for line in result.stdout.splitlines()]
        checked = [row[0] for row in table if "1e-04" in row]
        assert checked == ["blend", "matmul", "window", "add", "scaled"]

    def test_a_model_that_computes_something_else(
        self, toy: Path, toy_spec: Path, tmp_path: Path
    ) -> None:
        source = toy_spec.with_name("model.py").read_text()
        (tmp_path / "model.py").write_text(source.replace("x - 2 * y", "x - 3 * y"))
        (tmp_path / "toy.yaml").write_text(toy_spec.read_text())
        result = mmpack("verify", toy, tmp_path / "toy.yaml")
        assert result.exit_code == 8
        assert f"error: {tmp_path / 'toy.yaml'}:16:3: blend: output 'mixed'" in result.stderr
        assert "from eager PyTorch, allowed 0.0001" in result.stderr
        assert "matmul" not in result.stderr

    def test_a_spec_of_other_shapes(self, toy: Path, toy_spec: Path, tmp_path: Path) -> None:
        (tmp_path / "model.py").write_text(toy_spec.with_name("model.py").read_text())
        (tmp_path / "toy.yaml").write_text(toy_spec.read_text().replace("max: 16", "max: 32"))
        result = mmpack("verify", toy, tmp_path / "toy.yaml")
        assert result.exit_code == 8
        assert "window: the program takes\n  window(x: float32[w=4..16:4, 2]" in result.stderr
        assert "the spec says\n  window(x: float32[w=4..32:4, 2]" in result.stderr


class TestLink:
    def test_two_programs_become_one(self, toy: Path, foreign: Path, tmp_path: Path) -> None:
        out = tmp_path / "both.pte"
        result = mmpack("link", toy, foreign, "-o", out, "--rename", "foreign.pte:scaled=times")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith(f"{out}: 9 methods, ")  # the other four are constants
        assert " 9 methods" in mmpack("inspect", out).stdout.splitlines()[0]
        program = load(out)
        assert "times" in program and "scaled" in program
        assert str(program.signature("window")) == str(load(toy).signature("window"))
        assert program.run_method("times", torch.ones(3), 2, 1.0, True).out_0.tolist() == [3.0] * 3
        assert program.run_method("add", torch.ones(2)).total.tolist() == [8.0, 0.0]

    def test_two_methods_of_one_name(self, toy: Path, foreign: Path, tmp_path: Path) -> None:
        code, message = failing("link", toy, foreign, "-o", tmp_path / "both.pte")
        assert code == 7
        assert "two methods are called 'scaled'" in message
        assert list(tmp_path.iterdir()) == []
        _, proposed = message.rstrip().split("rename one: ")
        out = tmp_path / "both.pte"
        assert mmpack("link", toy, foreign, "-o", out, *proposed.split()).exit_code == 0

    def test_whether_a_buffer_is_shared_is_said_and_not_guessed(
        self, toy: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "copy.pte").write_bytes(toy.read_bytes())
        out = tmp_path / "both.pte"
        files = ("link", toy, tmp_path / "copy.pte", "-o", out)
        names = [f"--rename=copy.pte:{name}={name}_2" for name in load(toy).method_names]
        code, message = failing(*files, *names)
        assert code == 7 and not out.exists()
        assert "buffer 'total' is in method 'add' of " in message
        assert "--share 'total'" in message and "--private 'total'" in message
        code, message = failing(*files, *names, "--share", "total")
        assert code == 7 and "buffer 'calls'" in message

        one = torch.ones(2)
        assert mmpack(*files, *names, "--share", "total", "--private", "c*").exit_code == 0
        program = load(out)
        program.run_method("add", one)
        assert program.run_method("scaled_2", one).product.tolist() == [8.0, 0.0]
        assert mmpack(*files, *names, "--private", "*").exit_code == 0
        program = load(out)
        program.run_method("add", one)
        assert program.run_method("scaled", one).product.tolist() == [8.0, 0.0]
        assert program.run_method("scaled_2", one).product.tolist() == [7.0, -1.0]

    @pytest.mark.parametrize("rename", ["scaled", "scaled=", "=x"])
    def test_a_rename_that_is_none(self, toy: Path, tmp_path: Path, rename: str) -> None:
        result = mmpack("link", toy, "-o", tmp_path / "o.pte", "--rename", rename)
        assert result.exit_code == 2 and f"'{rename}': expected OLD=NEW" in result.stderr


class TestBuild:
    def test_an_output_in_no_folder_is_refused_before_any_work(
        self, toy_spec: Path, tmp_path: Path
    ) -> None:
        code, message = failing("build", toy_spec, "-o", tmp_path / "none" / "toy.pte")
        assert code == 11 and f"there is no folder {tmp_path / 'none'}" in message

    def test_a_bound_of_memory_is_a_size_and_is_kept(self, toy_spec: Path, tmp_path: Path) -> None:
        args = ["build", toy_spec, "-o", tmp_path / "out.pte", "--cache", tmp_path / "cache"]
        refused = mmpack(*args, "--memory", "8X")
        assert refused.exit_code == 2 and "expected a size like 500M, 2G or 4096" in refused.output
        refused = mmpack(*args, "--memory", "500M")
        assert refused.exit_code == 4 and "and 0.50 GB are allowed in all" in refused.output
        assert not (tmp_path / "out.pte").exists()

    def test_a_second_build_compiles_nothing_and_says_so(
        self, toy: Path, toy_spec: Path, build_cache: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "again.pte"
        result = mmpack("build", toy_spec, "-o", out, "--cache", build_cache)
        assert result.exit_code == 0, result.stderr
        assert "compile 5/5 scaled (cached)\n" in result.stdout
        assert "nothing was compiled" in result.stdout
        assert out.read_bytes() == toy.read_bytes()


def test_doctor_tells_what_is_here() -> None:
    result = mmpack("doctor")
    assert "builds yes, runs yes  (XnnpackBackend is registered)" in result.stdout
    assert torch.__version__ in result.stdout
    lines = result.stdout.splitlines()
    helped = [line for line, next_ in pairwise(lines) if "to change that" in next_]
    needed = [line for line in helped if not line.startswith("  qnn ")]
    assert result.exit_code == (1 if needed else 0)
    proven = "\n                 a small graph was compiled and run in " in result.stdout
    assert proven == BACKENDS["qnn"].available().builds


def process(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmpack.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class TestProcess:
    """As a user's shell sees it."""

    def test_a_run_prints_its_result_and_nothing_else(self, toy: Path) -> None:
        done = process("run", toy, "add", "amount=[1, 2]")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1:] == [
            "total: float32[2] = [8.0, 1.0]",
            "calls: float32[1] = [1.0]",
        ]

    @pytest.mark.parametrize("args", [["check", ADDER], ["inspect", None]])
    def test_what_is_printed_to_a_full_disk_is_one_line(
        self, toy: Path, args: list[Path | str | None]
    ) -> None:
        command = [sys.executable, "-m", "mmpack.cli", *(str(arg or toy) for arg in args)]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 11
        assert done.stderr == (
            "error: what this command prints cannot be written: No space left on device\n"
        )

    def test_an_error_prints_its_message_and_nothing_else(self, toy: Path) -> None:
        done = process("run", toy, "add", "amount=[1, 2, 3]")
        assert (done.returncode, done.stdout) == (9, "")
        assert done.stderr == (
            "error: add: input 'amount': axis 0: expected 2, got 3\n"
            "  add(amount: float32[2]) -> (total: float32[2], calls: float32[1])\n"
        )


OTHER_VERSION = """
import sys
from importlib import metadata
real = metadata.version
found = dict([sys.argv[1].split("==")])
metadata.version = lambda package: found.get(package) or real(package)
from mmpack.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("command", ["run", "build", "check --model", "verify"])
def test_a_torch_of_the_wrong_version_is_one_line(
    command: str, toy: Path, toy_spec: Path, tmp_path: Path
) -> None:
    args: dict[str, list[object]] = {
        "run": ["run", toy, "add", "amount=[1, 2]"],
        "build": ["build", toy_spec, "-o", tmp_path / "out.pte"],
        "check --model": ["check", toy_spec, "--model"],
        "verify": ["verify", toy, toy_spec],
    }
    done = subprocess.run(
        [sys.executable, "-c", OTHER_VERSION, "torch==2.12.1", *map(str, args[command])],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == (
        "",
        "error: mmpack needs torch>=2.13,<2.14, found 2.12.1: pip install 'torch>=2.13,<2.14' "
        "(`mmpack doctor` lists what is installed)\n",
    )
    assert not list(tmp_path.iterdir())


IMPORTS = """
import sys
from mmpack.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {name.partition(".")[0] for name in sys.modules} & {"torch", "executorch"}
    print("imported:", sorted(heavy))
"""


@pytest.mark.parametrize("command", ["help", "check", "inspect", "link"])
def test_what_needs_no_torch_does_not_import_it(command: str, toy: Path, tmp_path: Path) -> None:
    args: dict[str, list[object]] = {
        "help": ["build", "--help"],
        "check": ["check", ADDER],
        "inspect": ["inspect", toy],
        "link": ["link", toy, "-o", tmp_path / "linked.pte"],
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *map(str, args[command])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_the_cache_is_listed_and_pruned(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        for name in "ab":
            made = cache.scratch(name)
            made.write_bytes(bytes(1500))
            cache.put_object(name * 16, made, {}, f"layers.{name}", "xnnpack")
    listed = mmpack("cache", "list", "--cache", tmp_path / "cache")
    assert listed.exit_code == 0
    assert "layers.a  xnnpack  1.6 kB" in listed.output
    assert listed.output.endswith("2 compiled methods, 3.2 kB\n")
    pruned = mmpack("cache", "prune", "--max-size", "2k", "--cache", tmp_path / "cache")
    assert pruned.output == "removed 1 compiled method, 1.6 kB; kept 1 compiled method, 1.6 kB\n"
    assert mmpack("cache", "prune", "--cache", tmp_path / "cache").exit_code == 2
    assert mmpack("cache", "prune", "--max-size", "0", "--cache", tmp_path / "none").exit_code == 0
