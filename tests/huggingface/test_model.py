"""The model of a folder, beside what transformers makes of it in float32."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmpack.multimethod.compile.widen import compute_in_float32
from mmpack.multimethod.errors import ModelError
from mmpack.multimethod.huggingface.model import make_decoder

from ..wrappers.families import FAMILIES
from .checkpoints import save

TOKENS = torch.randint(0, 61, (2, 13), generator=torch.Generator().manual_seed(0))


def theirs(folder: Path) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    shard = "20KB" if dtype == torch.bfloat16 else "1GB"
    folder = save(tmp_path / "model", family, dtype, shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard == "20KB")
    model = make_decoder(folder)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    compute_in_float32(model)
    with torch.no_grad():
        logits = model.logits(TOKENS)
        expected = theirs(folder)(TOKENS).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "smollm2", torch.bfloat16)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = make_decoder(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_is_in_another_precision_than_most_stays_in_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama 2", torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    fine = {"model.norm.weight", "model.layers.1.mlp.up_proj.weight"}
    for name in fine:
        tensors[name] = tensors[name].float() + 1e-5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = make_decoder(folder)
    compute_in_float32(model)
    dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == fine
    widened = {name: tensor.float() for name, tensor in tensors.items()}
    other = changed(save(tmp_path / "other", "llama 2"), dtype="float32")
    save_file(widened, other / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(TOKENS), theirs(other)(TOKENS).logits, rtol=1e-5, atol=1e-6
        )


def test_weights_are_the_files_own_memory(tmp_path: Path) -> None:
    """A file's pages, mapped: what the process has for itself grows by less than one matrix."""
    folder = save(tmp_path / "model", "llama 2", torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(61 * 20000, 32, dtype=torch.bfloat16)
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 61 * 20000}))
    mapped = tensors["lm_head.weight"].nbytes
    make_decoder(save(tmp_path / "other", "llama 2"))  # what is imported and kept
    before = anonymous()
    model = make_decoder(folder)
    assert not model.lm_head.weight[::1000].any()
    assert anonymous() - before < mapped / 4


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous"))


def test_random_weights_are_the_same_every_time(tmp_path: Path) -> None:
    config = save(tmp_path / "model", "llama 2", torch.bfloat16) / "config.json"
    assert json.loads(config.read_text())["dtype"] == "bfloat16"
    state = torch.get_rng_state()
    models = [make_decoder(config, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    one, again, other = (model.lm_head.weight for model in models)
    assert one.dtype == torch.float32
    assert torch.equal(one, again) and not torch.equal(one, other)


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama 2")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norms.weight"] = tensors.pop("model.norm.weight")
    tensors["lm_head.weight"] = torch.zeros(60, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as raised:
        make_decoder(folder)
    head, *told = str(raised.value).splitlines()
    assert head == "the weights do not fit the model:"
    for line, begin in zip(
        told,
        [
            "  'lm_head.weight' has shape [60, 32], the model wants [61, 32]",
            "  missing key 'model.norm.weight'; did you mean 'model.norms.weight'",
            "  unexpected key 'model.norms.weight'; did you mean 'model.norm.weight'",
        ],
        strict=True,
    ):
        assert line.startswith(begin)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "lama"}, "transformers knows no model_type 'lama'; did you mean 'llama'"),
        (
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}},
            "knows no model_type 'mine'; it brings Python code of its own .* never runs",
        ),
        ({"model_type": "vit"}, "a 'vit' is no causal language model"),
        ({"model_type": "gemma3"}, "more than a decoder of text; .* as a 'gemma3_text'"),
    ],
)
def test_models_that_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    folder = changed(save(tmp_path / "model", "llama 2"), **changes)
    with pytest.raises(ModelError, match=expected):
        make_decoder(folder)


def test_code_beside_a_known_model_is_not_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama 2")
    (folder / "mine.py").write_text("raise SystemExit('run')\n")
    changed(folder, auto_map={"AutoModelForCausalLM": "mine.Mine"})
    assert type(make_decoder(folder)).__module__.startswith("transformers.")


def test_transformers_is_quiet_and_then_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "model", "llama 2")
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    capfd.readouterr()
    make_decoder(folder)
    assert capfd.readouterr() == ("", "")
    after = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    assert after == before and logging.root.level == logging.WARNING
