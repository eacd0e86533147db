"""Files that cannot be read, and the places of what can."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.spec.source import read


def refusal(path: str | Path) -> str:
    with pytest.raises(SpecError) as raised:
        load_spec(path, backends={})
    return str(raised.value)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_missing_file() -> None:
    Path("spec.yaml").touch()
    assert refusal("spce.yaml") == "spce.yaml: no such file; did you mean 'spec.yaml'?"


def test_missing_folder() -> None:
    assert refusal("nowhere/spec.yaml") == "nowhere/spec.yaml: no such file"


def test_folder() -> None:
    Path("specs").mkdir()
    assert refusal("specs") == "specs: expected a file, got a folder"
    Path("specs/a.yaml").touch()
    assert refusal("specs") == "specs: expected a file, got a folder; it holds a.yaml"


def test_path_that_no_file_can_have() -> None:
    assert refusal("a\0b.yaml").endswith("cannot be read: embedded null byte")
    assert refusal("a" * 300).endswith("cannot be read: File name too long")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_that_may_not_be_read() -> None:
    Path("spec.yaml").touch(mode=0)
    assert refusal("spec.yaml") == "spec.yaml: cannot be read: Permission denied"


def test_no_utf8() -> None:
    Path("spec.yaml").write_bytes("mmpack: 1\nname: caf\xe9 x\n".encode("latin-1"))
    assert refusal("spec.yaml") == (
        "spec.yaml:2:10: expected UTF-8 text, got the byte 0xe9\n"
        "    2 | name: caf\N{REPLACEMENT CHARACTER} x\n"
        "      |          ^"
    )


def test_character_that_yaml_has_not() -> None:
    Path("spec.yaml").write_bytes(b"mmpack: 1\nname: a\0b\n")
    assert refusal("spec.yaml") == (
        "spec.yaml:2:8: the character U+0000 cannot stand in a YAML file\n"
        "    2 | name: a\N{REPLACEMENT CHARACTER}b\n"
        "      |        ^"
    )


def test_deep_nesting() -> None:
    Path("spec.yaml").write_text("[" * 10_000)
    assert refusal("spec.yaml").startswith("spec.yaml:1:42: nested more than 40 levels deep\n")


def test_byte_order_mark_and_windows_lines(base: str) -> None:
    Path("spec.yaml").write_bytes(b"\xef\xbb\xbf" + base.replace("\n", "\r\n").encode())
    source, mistakes = read("spec.yaml")
    assert not len(mistakes)
    assert source.data["dims"]["chunk"] == 32
    assert source.locate(("mmpack",), at_key=True) == (1, 1)
    assert source.mistake(("dims", "chunk"), "x").text == "  chunk: 32"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("off", "off"), ("True", True), ("false", False), ("null", None),
        ("~", None), ("010", 10), ("0x1F", 31), ("0o17", 15), ("1_000", "1_000"), ("-3", -3),
        ("1:30", "1:30"), ("2001-01-01", "2001-01-01"), ("1e3", 1000.0), (".5", 0.5),
        ("1.", 1.0), (".inf", float("inf")), ("0..3", "0..3"), ("'3'", "3"), ('"true"', "true"),
        ("'~'", "~"), ("=", "="), ("9" * 500, "9" * 500),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    Path("spec.yaml").write_text(f"x: {text}\n")
    source, _ = read("spec.yaml")
    assert source.data["x"] == value
    assert type(source.data["x"]) is type(value)


def test_keys_are_text_or_whole_numbers() -> None:
    Path("spec.yaml").write_text("{1: a, true: b, on: c, 1.5: d, '2': e, null: f}\n")
    source, _ = read("spec.yaml")
    assert list(source.data) == [1, "true", "on", "1.5", "2", "null"]


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (("dims", "kv", "max"), (9, 22)),
        (("dims", "chunk", "min"), (8, 10)),  # the short form: the value of `chunk`
        (("methods", "attention"), (27, 3)),  # a block: its key
        (("methods", "attention", "outputs", 0), (31, 14)),
        (("methods", "layers.1.qkv", "inputs", "hidden", "shape", 1), (25, 26)),
        (("targets", "acc", "options", "soc"), (12, 28)),
        (("flow", "prefill", "steps", 1, "steps", 1, "gives", "mixed"), (51, 28)),
        (("steps", "prefill", 0, "run"), (45, 9)),
        (("steps", "prefill", 3, "run"), (48, 19)),
        (("steps", "prefill", 4, "with", "v"), (50, 38)),
        (("state", "private", 0), (40, 39)),
        (("methods", "head", "no such key"), (32, 3)),
        ((), (1, 1)),
    ],
)
def test_places(
    keys: tuple[str | int, ...],
    place: tuple[int, int],
    base: str,
    load: Callable[[str], SpecFile],
    tmp_path: Path,
) -> None:
    assert load(base).locate(keys) == place


def test_place_of_a_templated_key(base: str, load: Callable[[str], SpecFile]) -> None:
    text = base.replace("inputs: {hidden: [1,", 'inputs: {"hidden": [1,')
    text = text.replace("args: {head_dim: 16}", 'args: {"size_{i}": 16}')
    file = load(text)
    assert file.methods["layers.1.qkv"].args == {"size_1": 16}
    assert file.locate(("methods", "layers.1.qkv", "args", "size_1")) == (23, 24)
    assert file.locate(("methods", "layers.1.qkv", "args", "size_1"), at_key=True) == (23, 12)


def test_mistake_of_a_later_stage(base: str, load: Callable[[str], SpecFile]) -> None:
    mistake = load(base).mistake(("methods", "layers.1.qkv", "module"), "no such module")
    assert str(mistake) == (
        "spec.yaml:21:13: methods.layers.{i}.qkv.module: no such module\n"
        "   21 |     module: layers.{i}\n"
        "      |             ^^^^^^^^^^"
    )
