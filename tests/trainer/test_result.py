"""Results: PEFT and transformers load them and compute the same logits; a result is complete or absent."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from finetune_api.runtime.choices import Method
from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapters, architecture, export, result, tensor_files
from finetune_trainer.errors import OutputRefused, StorageFailed
from finetune_trainer.files import DISK, require_space
from finetune_trainer.marker import digest_of
from finetune_trainer.model_export import Casting
from trainer import architectures
from trainer import result_work as work
from trainer.failpoints import Full
from trainer.models import llama, loaded, model_folder, run_config
from trainer.ranks import run_ranks, values

# peft asks transformers by a name that transformers is going to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA = Lora(rank=4, alpha=8, dropout=0.1, target_modules=("all-linear",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base"), tied=True)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return model


def with_adapter(base: Path) -> PeftModel:
    model = adapters.attach(load(base), LORA)
    work.disturb(model)
    return model


def test_plain_peft_loads_the_adapter_and_finds_the_same_logits_but_for_rounding(tmp_path: Path, base: Path) -> None:
    model = with_adapter(base)
    folder = work.publish(tmp_path, model, base, Method.LORA)
    again = AutoPeftModelForCausalLM.from_pretrained(folder)
    found, expected, before = (work.logits(each) for each in (again, model, load(base)))
    assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())
    assert float((found - before).norm()) >= 0.01 * float(before.norm())


def test_the_adapter_folder_is_what_peft_writes(tmp_path: Path, base: Path) -> None:
    model = with_adapter(base)
    ours = work.publish(tmp_path, model, base, Method.LORA)
    theirs = tmp_path / "theirs"
    model.save_pretrained(str(theirs))
    weights = [safetensors.torch.load_file(folder / "adapter_model.safetensors") for folder in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    configs = [json.loads((folder / "adapter_config.json").read_bytes()) for folder in (ours, theirs)]
    for config in configs:
        config["target_modules"] = set(config["target_modules"])
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("model", "name", "revision"),
    [
        pytest.param("org/name", "org/name", None, id="a bare hub name"),
        pytest.param("hf://org/name@v2", "org/name", "v2", id="a hub name with scheme and revision"),
        pytest.param("/models/base", "/models/base", None, id="a folder"),
        pytest.param("pvc://claim/base", "pvc://claim/base", None, id="a URI that PEFT does not know"),
    ],
)
def test_the_adapter_names_its_base(tmp_path: Path, base: Path, model: str, name: str, revision: str | None) -> None:
    adapted = with_adapter(base)
    trained = {name: p.detach() for name, p in adapted.named_parameters() if p.requires_grad}
    card = export.ModelCard(model, Method.LORA, "rows.jsonl", "sha256:aa", 20)
    folder = result.publish(tmp_path, work.publication(adapted, trained, base, card))
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)
    assert f'base_model: "{name}"' in (folder / "README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
def test_plain_transformers_loads_the_model_and_finds_the_same_logits(tmp_path: Path, tied: bool) -> None:
    base = model_folder(tmp_path / "base", tied=tied)
    model = load(base)
    work.disturb(model)
    folder = work.publish(tmp_path, model, base, Method.FFT)
    again = load(folder)
    assert torch.equal(work.logits(again), work.logits(model))
    names = safetensors.torch.load_file(folder / "model.safetensors").keys()
    assert ("lm_head.weight" in names) is not tied


def test_a_state_with_both_names_of_a_tied_weight_is_written_once(tmp_path: Path, base: Path) -> None:
    model = load(base)
    work.disturb(model)
    state = model.state_dict()
    assert "lm_head.weight" in state
    folder = result.publish(tmp_path, work.publication(model, state, base, work.card(Method.FFT, base)))
    assert torch.equal(work.logits(load(folder)), work.logits(model))
    assert "lm_head.weight" not in safetensors.torch.load_file(folder / "model.safetensors")


def test_the_model_keeps_the_number_format_and_settings_of_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    halved: Any = llama()
    halved.to(torch.bfloat16).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config.use_cache = False
    work.disturb(model)
    folder = work.publish(tmp_path, model, base, Method.FFT)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert (folder / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert load(folder).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_contiguous_is_published(tmp_path: Path, base: Path, dtype: torch.dtype) -> None:
    weight = torch.arange(6.0).view(2, 3).T
    cast = Casting(run_config(base, base, tmp_path), 0)("w", weight, dtype)
    tensor_files.write(tmp_path, "model", {"w": cast}, DISK)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "model.safetensors")["w"].float(), weight)


def test_two_ranks_publish_what_they_have_sharded(tmp_path: Path, base: Path) -> None:
    values(run_ranks(2, work.publish_sharded, base, tmp_path))
    expected = load(base)
    work.disturb(expected)
    assert torch.equal(work.logits(load(tmp_path / "result")), work.logits(expected))


def test_the_result_has_tokenizer_template_and_readme(tmp_path: Path, base: Path) -> None:
    folder = work.publish(tmp_path, with_adapter(base), base, Method.LORA)
    messages = [{"role": "user", "content": "1 + 1?"}]
    texts = [AutoTokenizer.from_pretrained(at).apply_chat_template(messages, tokenize=False) for at in (folder, base)]
    assert texts[0] == texts[1] != ""
    readme = (folder / "README.md").read_text()
    assert f"# LoRA adapter of {base}" in readme
    assert "Trained on rows.jsonl for 20 optimizer steps." in readme
    assert "`sha256:aa`" in readme
    assert "| val.loss | 1.2500 |" in readme
    assert "train.loss" not in readme, "a metric that is not known is not shown"


def test_a_result_is_finished_for_its_own_run_and_once_complete(tmp_path: Path, base: Path) -> None:
    assert result.finished(tmp_path, "sha256:aa") is None
    folder = work.publish(tmp_path, with_adapter(base), base, Method.LORA)
    marker = result.finished(tmp_path, "sha256:aa")
    assert marker is not None
    assert marker.step == 20
    assert marker.files == {path.name: digest_of(path) for path in folder.iterdir() if path.name != "COMPLETE"}
    assert result.finished(tmp_path, "sha256:bb") is None
    (folder / "adapter_model.safetensors").unlink()
    assert result.finished(tmp_path, "sha256:aa") is None


def test_a_complete_result_is_left_alone_and_anything_else_goes(tmp_path: Path, base: Path) -> None:
    model = with_adapter(base)
    folder = work.publish(tmp_path, model, base, Method.LORA)
    number = folder.stat().st_ino
    work.publish(tmp_path, model, base, Method.LORA)
    assert folder.stat().st_ino == number
    result.remove_leftovers(tmp_path)
    assert folder.exists()
    (folder / "COMPLETE").unlink()
    (folder / "stray").write_text("of another time")
    work.publish(tmp_path, model, base, Method.LORA)
    assert result.finished(tmp_path, "sha256:aa") is not None
    assert not (folder / "stray").exists()
    (folder / "COMPLETE").unlink()
    result.remove_leftovers(tmp_path)
    assert not folder.exists()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    for link in (folder, tmp_path / ".tmp-result"):
        link.symlink_to(tmp_path / "theirs")
    result.remove_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["file"]
    assert not folder.is_symlink()
    assert not (tmp_path / ".tmp-result").is_symlink()


def test_a_result_that_somebody_has_changed_is_refused_and_stays(tmp_path: Path, base: Path) -> None:
    """Weights of weeks are not removed because of a text."""
    folder = work.publish(tmp_path, with_adapter(base), base, Method.LORA)
    (folder / "README.md").write_text("about my model")
    before = sorted(folder.iterdir())
    with pytest.raises(
        OutputRefused, match=r"has changed since it was published: README\.md has 14 bytes instead of"
    ):
        result.remove_leftovers(tmp_path)
    with pytest.raises(OutputRefused, match="restore it, or move it away"):
        work.publish(tmp_path, with_adapter(base), base, Method.LORA)
    assert sorted(folder.iterdir()) == before


def test_a_publication_killed_at_any_operation_leaves_no_result_or_a_whole_one(tmp_path: Path) -> None:
    [found] = values(run_ranks(1, work.die_everywhere, tmp_path))
    assert len(found) > 10
    assert found == sorted(found), "from the marker on it is there"
    assert set(found) == {False, True}


def test_no_rank_holds_more_than_a_few_tensors_while_it_publishes(tmp_path: Path) -> None:
    for grown, whole, largest in values(run_ranks(4, work.memory_of_publishing, tmp_path)):
        assert grown <= 3 * largest + whole / 16


def test_a_volume_may_take_longer_than_a_collective(tmp_path: Path, base: Path) -> None:
    values(run_ranks(2, work.publish_to_a_slow_volume, base, tmp_path, 5.0))
    assert result.finished(tmp_path, "sha256:aa") is not None


@pytest.mark.parametrize("method", [Method.FFT, Method.LORA])
def test_a_full_volume_is_named_with_the_remedy(tmp_path: Path, base: Path, method: Method) -> None:
    model = load(base) if method is Method.FFT else with_adapter(base)
    with pytest.raises(StorageFailed, match=f"cannot write {tmp_path}.*free space on the output volume"):
        work.publish(tmp_path, model, base, method, Full("*.safetensors"))
    assert result.finished(tmp_path, "sha256:aa") is None


def test_a_volume_that_is_too_small_is_refused_before_it_is_filled(tmp_path: Path) -> None:
    with pytest.raises(
        StorageFailed, match=f"{tmp_path} needs 1000000.0 GB, and its volume has .* GB left; free space"
    ):
        require_space(tmp_path, 10**15)


def test_large_models_are_written_in_files_of_several_with_an_index(tmp_path: Path, base: Path) -> None:
    model = load(base)
    work.disturb(model)
    tensors = dict(model.state_dict())
    parts = tensor_files.shards({name: tensor_files.outline(t) for name, t in tensors.items()}, 500_000)
    with closing(tensor_files.written(tmp_path, "model", parts, DISK)) as writing:
        next(writing)
        for part in parts:
            for name in part:
                writing.send((name, tensors[name]))
    assert len(parts) > 2
    shutil.copyfile(base / "config.json", tmp_path / "config.json")
    assert torch.equal(work.logits(load(tmp_path)), work.logits(model))


@pytest.mark.parametrize("kind", architectures.ALL)
def test_plain_transformers_loads_every_architecture_without_a_missing_key(tmp_path: Path, kind: str) -> None:
    """Those whose files have other tensors than the model, and those with weights that are never trained, too."""
    original = architectures.model(kind)
    original.save_pretrained(tmp_path / "base")
    config = run_config(tmp_path / "base", tmp_path, tmp_path)
    model = loaded(tmp_path / "base", config)
    assert torch.equal(work.logits(model), work.logits(original))
    work.disturb(model)
    folder = work.publish(tmp_path, model, tmp_path / "base", Method.FFT)
    found: Any = architecture.auto_class(original.config).from_pretrained(folder, output_loading_info=True)
    again, report = found
    assert not any(report.values())
    assert torch.equal(work.logits(again), work.logits(model))
    assert tensor_files.outlines(folder) == tensor_files.outlines(tmp_path / "base")


def test_buffers_that_the_model_computes_with_in_bf16_are_published_as_the_base_has_them(tmp_path: Path) -> None:
    base = tmp_path / "base"
    architectures.model("minimax").save_pretrained(base)
    model = loaded(base, run_config(base, tmp_path, tmp_path, precision="bf16"))
    folder = work.publish(tmp_path, model, base, Method.FFT)
    published, original = (safetensors.torch.load_file(each / "model.safetensors") for each in (folder, base))
    buffers = {name for name, buffer in model.named_buffers() if buffer.dtype is torch.bfloat16}
    assert buffers
    assert [name for name in buffers if not torch.equal(published[name], original[name])] == []
