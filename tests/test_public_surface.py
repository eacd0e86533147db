"""What is public is a list, and this is it."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from importlib import metadata

import pytest

import mmpack.multimethod
from mmpack.wrappers import find, names

PUBLIC = [
    "build",
    "check",
    "generate",
    "inspect",
    "link",
    "load",
    "verify",
    "BuildReport",
    "CallError",
    "ClusterError",
    "CompileError",
    "Context",
    "Dim",
    "ExecutionError",
    "Flow",
    "FlowError",
    "FormatError",
    "Generation",
    "Inspection",
    "LinkError",
    "LinkReport",
    "Method",
    "MmpackError",
    "ModelError",
    "OutputError",
    "Program",
    "Signature",
    "SpecError",
    "TargetError",
    "Tokenizer",
    "ValueSpec",
    "Verified",
    "VerifyError",
]
WRAPPERS = [
    "attention",
    "attention_block",
    "block",
    "cache_mask",
    "cached_attention",
    "decode",
    "embedding",
    "lm_head",
    "output_mlp",
    "prefill",
    "qkv_proj",
    "rotary",
]


def test_it_is_exactly_this() -> None:
    assert mmpack.multimethod.__all__ == PUBLIC
    assert dir(mmpack.multimethod) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_documented(name: str) -> None:
    thing = getattr(mmpack.multimethod, name)
    assert inspect.isclass(thing) or inspect.isfunction(thing)
    assert thing.__name__ == name
    assert inspect.getdoc(thing)


def test_what_is_not_public_is_not_an_attribute() -> None:
    with pytest.raises(AttributeError, match=r"'mmpack\.multimethod' has no attribute 'lnik'"):
        mmpack.multimethod.lnik  # noqa: B018


@pytest.mark.parametrize(
    ("first", "names"),
    [
        (
            "import mmpack.multimethod.driver.stages, mmpack.multimethod.verify.program",
            "build, verify",
        ),
        ("import mmpack.multimethod.link.file", "link"),
        ("from mmpack.multimethod.link import file", "link"),
        ("import mmpack.multimethod.check", "check"),
        ("from mmpack.multimethod.report.inspection import inspect", "inspect"),
        ("import mmpack.multimethod.generate.text", "generate"),
        ("pass", "check, generate, inspect, link"),
    ],
)
def test_functions_are_meant_also_where_modules_are_called_the_same(first: str, names: str) -> None:
    code = (
        f"{first}\nfrom mmpack.multimethod import {names}\n"
        "import mmpack.multimethod.link.linker\nimport mmpack.multimethod as m\n"
        f"found = [{names}, m.link]\n"
        "assert all(type(f).__name__ == 'function' for f in found), found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_these_are_the_wrappers() -> None:
    """What a spec may name as `wrapper:`."""
    assert names() == tuple(WRAPPERS)
    assert all(inspect.getdoc(find(name)) for name in WRAPPERS)


def _installed() -> bool:
    try:
        metadata.distribution("mmpack")
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not _installed(), reason="mmpack is not installed")
@pytest.mark.parametrize("name", ["multimethod", "wrappers", "cli", "examples"])
def test_nothing_is_importable_outside_of_mmpack(name: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")


@pytest.mark.skipif(not _installed(), reason="mmpack is not installed")
def test_the_command_is_installed() -> None:
    (script,) = metadata.distribution("mmpack").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("mmpack", "mmpack.cli:main")
    assert importlib.util.find_spec("mmpack.cli") is not None
