"""What ranks do in the tests of results: shard a model, gather it, publish it."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune_api.runtime.choices import Method
from finetune_trainer import export, result
from finetune_trainer.collectives import world_size
from finetune_trainer.files import DISK, Files
from trainer.failpoints import Failing, die

TOKENS = torch.arange(24).reshape(2, 12)


def card(method: Method, base: Path, *, step: int = 20) -> export.ModelCard:
    metrics = {"val.loss": 1.25, "train.loss": None}
    return export.ModelCard(str(base), method, "/data/rows.jsonl", "sha256:aa", step, metrics)


def logits(model: torch.nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        answer: Tensor = model(TOKENS).logits
    return answer


def disturb(model: torch.nn.Module) -> None:
    """Stands in for training: changes every trained parameter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def publish_sharded(base: Path, output: Path) -> list[str]:
    """Full finetuning under FSDP2; returns the names that this rank has gathered."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    disturb(model)
    mesh = init_device_mesh("cpu", (world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    state = export.gather(model.named_parameters())
    result.publish(output, model, state, base, card(Method.FFT, base))
    return sorted(state)


def die_everywhere(folder: Path) -> list[bool]:
    """Publish, killed before each operation in turn; whether there was a result then.

    Checks that the next publication succeeds.
    """
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.save_pretrained(folder / "base")
    state = export.gather(model.named_parameters())

    def publish(output: Path, files: Files) -> None:
        output.mkdir(exist_ok=True)
        result.publish(output, model, state, folder / "base", card(Method.FFT, folder / "base"), files)

    counting = Failing()
    publish(folder / "counted", counting)
    synced = {path.name for kind, path in counting.log if kind == "fsync"}
    assert {path.name for path in (folder / "counted" / "result").iterdir()} - {"COMPLETE"} <= synced
    found = []
    for at in range(1, len(counting.log) + 1):
        output = folder / str(at)
        die(partial(publish, output, Failing(at)))
        found.append(result.finished(output, "sha256:aa") is not None)
        publish(output, DISK)
        assert result.finished(output, "sha256:aa") is not None
    return found


def publish_with_little_space(output: Path, base: Path) -> None:
    """No file of this process may grow beyond 64 KiB: like a full volume, for libraries in C or Rust."""
    model = AutoModelForCausalLM.from_pretrained(base)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    result.publish(output, model, export.gather(model.named_parameters()), base, card(Method.FFT, base))
