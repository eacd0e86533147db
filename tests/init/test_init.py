"""`mmpack init`: from a folder to files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner, Result

from mmpack.cli import main
from mmpack.multimethod.check import check
from mmpack.multimethod.init.draft import CALIBRATION

from ..wrappers.families import SIZES, make
from .test_write import save_config


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, args)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as it is downloaded, in so far as `init` looks at it."""
    made = tmp_path / "models" / "tiny llama"
    make("llama 2").save_pretrained(made)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (made / name).write_text("{}")
    return made


def test_the_spec_names_what_lies_in_the_folder(folder: Path, tmp_path: Path) -> None:
    spec = tmp_path / "specs" / "tiny.yaml"
    spec.parent.mkdir()
    result = run("--hf", folder, "--chunk", 8, "--context", 64, "-o", spec)
    assert result.exit_code == 0, result.output
    assert result.output == f"wrote {spec}; next: mmpack build {spec}\n"
    file = check(spec)
    assert file.spec.model.huggingface == "../models/tiny llama"
    assert set(file.spec.files) == {
        "tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json",
    }  # fmt: skip
    assert check(spec, model=True)


@pytest.mark.parametrize("name", ["135", "1e5", "2026-01-01", "null", "tiny: llama", "-x", "№ 1"])
def test_folders_with_names_that_yaml_takes_for_something_else(name: str, tmp_path: Path) -> None:
    save_config("llama 2", tmp_path / name)
    (tmp_path / name / "config.json").rename(tmp_path / name / name)
    spec = tmp_path / name / "my spec.yaml"
    result = run("--hf", tmp_path / name / name, "--chunk", 8, "--context", 64, "-o", spec)
    assert result.exit_code == 0, result.output
    assert check(spec).spec.model.huggingface == name
    assert result.output.endswith(f"next: mmpack build '{spec}'\n")
    assert "mmpack build 'my spec.yaml'" in spec.read_text()


def test_nothing_is_written_over(folder: Path, tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text("mine")
    args = ("--hf", folder, "--chunk", 8, "--context", 64, "-o", spec)
    result = run(*args)
    assert result.exit_code != 0
    assert "s.yaml is there already; --force writes over it" in result.output
    assert spec.read_text() == "mine"
    assert run(*args, "--force").exit_code == 0
    assert spec.read_text() != "mine"


def test_examples_of_ones_own_are_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / CALIBRATION).write_text("mine")
    spec = tmp_path / "s.yaml"
    npu = "qnn:SM8750:16a4w"
    args = ("--hf", folder, "--chunk", 8, "--context", 64, "--npu", npu, "-o", spec)
    for more in ((), ("--force",)):
        assert run(*args, *more).exit_code == 0
        assert (tmp_path / CALIBRATION).read_text() == "mine"


def test_a_folder_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    result = run("--hf", folder, "-o", tmp_path / "nowhere" / "s.yaml")
    assert "s.yaml cannot be written: there is no folder" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "abc"}, "transformers takes no such configuration: "),
        ({"hidden_act": "gelou"}, "transformers makes no model of it: KeyError: "),
        ({"vocab_size": -3}, "transformers makes no model of it: RuntimeError: "),
        ({"model_type": ["llama"]}, "has no text 'model_type'"),
        ({"quantization_config": "int4"}, "some method has quantized"),
    ],
)
def test_configurations_that_are_none(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = save_config("llama 2", tmp_path)
    source.write_text(json.dumps(json.loads(source.read_text()) | changes))
    result = run("--hf", source, "--chunk", 8, "--context", 64, "-o", tmp_path / "s.yaml")
    assert result.exit_code == 3, result.output
    assert message in result.output


def test_calibration_yields_tokens(tmp_path: Path) -> None:
    source = save_config("llama 2", tmp_path / "m")
    spec = tmp_path / "s.yaml"
    result = run("--hf", source, "--chunk", 8, "--context", 64, "--npu", "qnn:SM8750:16a4w",
                 "-o", spec)  # fmt: skip
    assert result.exit_code == 0, result.output
    names: dict[str, object] = {}
    exec((tmp_path / CALIBRATION).read_text(), names)
    examples = list(names["prompts"]())  # type: ignore[operator]
    assert len(examples) == 8
    assert all(e["tokens"].dtype is torch.int64 and e["tokens"].max() < 61 for e in examples)
    assert all(e["tokens"].shape == (1, 64) for e in examples)  # no more than the context


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--context", 200), "--context 200: what LlamaForCausalLM computes of positions holds for "
                             "texts of up to 128 tokens"),
        (("--chunk", 0), "a chunk of 0 tokens"),
        (("--chunk", 1, "--context", 1), "--context 1: a cache that grows has room for 2"),
        (("--npu", "qnn:SM8751"), "executorch knows no SoC 'SM8751'"),
        (("--cpu", "xnpack"), "no backend is called 'xnpack'; did you mean 'xnnpack'?"),
        (("--split", "block", "--cache", "dynamic"), "keeps its caches in the program"),
        (("--embedding", "8x"), "--embedding portable:8x: expected one of "),
        (("--embedding", "4w:64"), "--embedding 4w:64: expected a precision alone, as in 8w"),
        (("--embedding", "8w", "--split", "whole"), "the embedding is no method of its own"),
    ],
)  # fmt: skip
def test_refused(args: tuple[object, ...], message: str, tmp_path: Path) -> None:
    source = save_config("llama 2", tmp_path)
    spec = tmp_path / "s.yaml"
    result = run("--hf", source, "--chunk", 8, "--context", 64, *args, "-o", spec)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not spec.exists()


def test_a_row_that_makes_no_whole_groups(tmp_path: Path) -> None:
    source = save_config("llama 2", tmp_path)
    source.write_text(source.read_text().replace('"hidden_size": 32', '"hidden_size": 48'))
    args = ("--hf", source, "--chunk", 8, "--context", 64, "-o", tmp_path / "s.yaml")
    result = run(*args, "--embedding", "4w")
    assert result.exit_code == 2
    assert "the 48 numbers in a row of the table are no multiple of 32" in result.output
    assert run(*args, "--embedding", "8w").exit_code == 0


def test_a_longrope_beyond_its_short_texts(tmp_path: Path) -> None:
    source = save_config("phi3 long", tmp_path)
    result = run("--hf", source, "--chunk", 8, "--context", 97, "-o", tmp_path / "s.yaml")
    assert "texts of up to 96 tokens" in result.output


def test_queries_that_are_scaled_by_their_position(tmp_path: Path) -> None:
    """Ministral 3 scales them by steps, of which only the first is 1."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "llama_4_scaling_beta": 0.1}
    rope |= {"original_max_position_embeddings": 32}
    config = transformers.Ministral3Config(**{**SIZES, "rope_parameters": rope})
    config.architectures = ["Ministral3ForCausalLM"]
    config.save_pretrained(tmp_path)
    args = ("--hf", tmp_path / "config.json", "--chunk", 8, "-o", tmp_path / "s.yaml")
    assert "texts of up to 32 tokens" in run(*args, "--context", 33).output
    assert run(*args, "--context", 32).exit_code == 0


def test_a_model_that_does_not_run(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 3})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    result = run("--hf", tmp_path / "config.json", "--context", 64, "-o", tmp_path / "s.yaml")
    assert result.exit_code == 3, result.output
    assert "a small model of this configuration cannot be run" in result.output


def test_a_model_that_is_no_decoder_of_these(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=4, vocab_size=61)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    result = run("--hf", tmp_path / "config.json", "-o", tmp_path / "s.yaml")
    assert result.exit_code == 3
    assert "found lm_head, transformer; expected lm_head, model" in result.output
    assert "`wrapper: file.py:Class`" in result.output


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Granite", {"residual_multiplier": 0.3}),
        ("Granite", {"logits_scaling": 7.0}),
        ("SmolLM3", {"num_hidden_layers": 4}),  # its fourth layer has no rotary embedding
        ("Gemma3Text", {"use_bidirectional_attention": True}),
        ("Olmo", {"clip_qkv": 8.0}),
    ],
)
def test_parts_that_are_known_computing_something_else(
    family: str, more: dict[str, float], tmp_path: Path
) -> None:
    """Granite is a Llama by its parts, and multiplies what is between them."""
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **more})
    title = f"{family.removesuffix('Text')}ForCausalLM"
    config.architectures = [title]
    config.save_pretrained(tmp_path)
    result = run("--hf", tmp_path / "config.json", "--chunk", 8, "--context", 64, "-o",
                 tmp_path / "s.yaml")  # fmt: skip
    assert result.exit_code == 3, result.output
    assert f"{title} has the parts that the wrappers know, but cut along" in result.output
    assert not (tmp_path / "s.yaml").exists()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    result = run("--hf", tmp_path / "nowhere", "-o", tmp_path / "s.yaml")
    assert result.exit_code == 3
    assert "there is no folder" in result.output


def test_the_same_twice_is_the_same(tmp_path: Path) -> None:
    source = save_config("qwen3", tmp_path)
    assert json.loads(source.read_text())["model_type"] == "qwen3"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run("--hf", source, "--chunk", 8, "--context", 64, "-o", tmp_path / name / "s.yaml")
    assert (tmp_path / "a" / "s.yaml").read_text() == (tmp_path / "b" / "s.yaml").read_text()
