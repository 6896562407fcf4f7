"""What ranks do in the tests of results: shard a model, gather it, publish it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune_api.runtime.choices import Engine, Method
from finetune_trainer import export, result
from finetune_trainer.collectives import rank, world_size
from finetune_trainer.engines.fsdp2 import Fsdp2
from finetune_trainer.files import DISK, Files
from finetune_trainer.model_export import Casting
from trainer.failpoints import Failing, Slow, die
from trainer.gradient_memory_work import anonymous, give_back_at_once, sharded_engine
from trainer.models import run_config

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


def publish(
    output: Path, model: PreTrainedModel | PeftModel, base: Path, method: Method, files: Files = DISK
) -> Path:
    """All trained parameters of `model`."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return result.publish(output, publication(model, trained, base, card(method, base)), files)


def publication(
    model: PreTrainedModel | PeftModel, trained: Mapping[str, Tensor], base: Path, about: export.ModelCard
) -> export.Publication:
    casting = Casting(run_config(base, base, base), about.step)
    return export.Publication(model, trained, base, about, casting)


def publish_to_a_slow_volume(base: Path, output: Path, timeout_s: float) -> None:
    """A volume that takes longer than a collective may."""
    distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), dist.group.WORLD)
    publish_sharded(base, output, Slow("*.safetensors", 2.5 * timeout_s))


def publish_sharded(base: Path, output: Path, files: Files = DISK) -> None:
    """Full finetuning under FSDP2."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    disturb(model)
    mesh = init_device_mesh("cpu", (world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    publish(output, model, base, Method.FFT, files)


def memory_of_publishing(folder: Path) -> tuple[int, int, int]:
    """Bytes in fp32: what this rank had in addition at most, the whole model, its largest tensor."""
    give_back_at_once()
    engine = sharded_engine(Fsdp2, Engine.FSDP2, "bf16")
    model = cast("PreTrainedModel", engine.model)
    if rank() == 0:
        model.config.save_pretrained(folder)
    whole = [parameter.numel() * 4 for parameter in model.parameters()]
    trained = engine.state()["parameters"]
    casting = Casting(run_config(folder, folder, folder), 1)
    samples = [anonymous()]
    with sampling(samples):
        result.publish(folder, export.Publication(model, trained, folder, card(Method.FFT, folder), casting))
    return max(samples) - samples[0], sum(whole), max(whole)


@contextmanager
def sampling(samples: list[int]) -> Iterator[None]:
    """Adds the memory of this process to `samples` again and again, and at the end: on a busy machine, not before."""
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.002):
            samples.append(anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        samples.append(anonymous())


def die_everywhere(folder: Path) -> list[bool]:
    """Publish, killed before each operation in turn; whether there was a result then.

    Checks that the next publication succeeds.
    """
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.save_pretrained(folder / "base")

    def publish_into(output: Path, files: Files) -> None:
        output.mkdir(exist_ok=True)
        publish(output, model, folder / "base", Method.FFT, files)

    counting = Failing()
    publish_into(folder / "counted", counting)
    synced = {path.name for kind, path in counting.log if kind == "fsync"}
    assert {path.name for path in (folder / "counted" / "result").iterdir()} - {"COMPLETE"} <= synced
    found = []
    for at in range(1, len(counting.log) + 1):
        output = folder / str(at)
        die(partial(publish_into, output, Failing(at)))
        found.append(result.finished(output, "sha256:aa") is not None)
        publish_into(output, DISK)
        assert result.finished(output, "sha256:aa") is not None
    return found
