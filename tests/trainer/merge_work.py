"""What processes do in the tests of merging: die in the middle of it, and measure their memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import merging, preparation, result, tensor_files, weights
from finetune_trainer.collectives import rank, world_size
from finetune_trainer.environment import RankInfo
from finetune_trainer.files import DISK, Files
from finetune_trainer.handoff import Handoff
from finetune_trainer.marker import digests_in, read_marker
from finetune_trainer.stop import Stop
from finetune_trainer.trainer import Trainer
from trainer.failpoints import Failing, die
from trainer.gradient_memory_work import anonymous, give_back_at_once
from trainer.result_work import sampling


def die_everywhere(ready: Path, folder: Path) -> list[bool]:
    """Merge, killed before each operation in turn; whether there was a merged model then.

    Checks that it was whole, and that the next merge succeeds.
    """

    def merge(at: int, files: Files) -> None:
        output = folder / str(at) / "merged"
        if not output.exists():
            merging.run(ready / "adapter", output, files=files)

    counting = Failing()
    merge(0, counting)
    found = []
    for at in range(1, len(counting.log) + 1):
        die(partial(merge, at, Failing(at)))
        output = folder / str(at) / "merged"
        found.append(output.exists())
        assert not output.exists() or read_marker(output) is not None
        merge(at, DISK)
        assert read_marker(output) is not None
        assert [path.name for path in output.parent.iterdir()] == ["merged"]
    return found


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    grown: int
    """The most that merging took, above what a small model took before."""
    whole: int
    """All weights, in the formats of the merged files."""
    largest_tensor: int
    largest_file: int


def memory_of_merging(small: Path, large: Path, folder: Path) -> Memory:
    give_back_at_once()
    torch.set_num_threads(1)
    for base in (small, large):
        write_adapter(base, folder / f"adapter of {base.name}")
    merging.run(folder / f"adapter of {small.name}", folder / "first")  # pays for what is made once in a process
    samples = [anonymous()]
    with sampling(samples):
        found = merging.run(folder / f"adapter of {large.name}", folder / "second")
    tensors = tensor_files.outlines(folder / "second").values()
    files = [path.stat().st_size for path in large.glob("*.safetensors")]
    return Memory(max(samples) - samples[0], found.bytes, max(each.nbytes for each in tensors), max(files))


def write_adapter(base: Path, folder: Path, rank: int = 4) -> None:
    """Random factors for every projection, without a model in memory."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, outline in weights.outlines(base).items():
        if name.endswith("_proj.weight"):
            rows, columns = outline.shape
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{layer}.lora_A.weight": torch.randn(rank, columns),
                        f"{layer}.lora_B.weight": torch.randn(rows, rank)}  # fmt: skip
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def run_on_ranks(config: RunConfig, folder: Path) -> FinalReport:
    torch.set_num_threads(1)
    if rank() == 0:
        (folder / "handoff").mkdir()
        preparation.prepare(config, 0, folder / "handoff", lambda _: None)
    dist.barrier()
    rank_info = RankInfo(rank(), world_size(), rank(), torch.device("cpu"))
    with Stop() as stop:
        return Trainer(Handoff.read(folder / "handoff"), folder / "handoff", rank_info, stop).run()


def die_adding_everywhere(ready: Path, folder: Path) -> list[bool]:
    """Add the merged model to a result, killed before each operation in turn; whether it is complete then."""

    def add(output: Path, files: Files) -> None:
        result.add_merged(output, ready / "base", files)

    def listed(output: Path) -> bool:
        assert result.finished(output, "sha256:aa") is not None, "the adapter is always there"
        return read_marker(output / "result" / "merged") is not None

    def fresh(name: str) -> Path:
        shutil.copytree(ready / "output", folder / name)
        return folder / name

    counting = Failing()
    add(fresh("counted"), counting)
    found = []
    for at in range(1, len(counting.log) + 1):
        output = fresh(str(at))
        die(partial(add, output, Failing(at)))
        found.append(listed(output))
        result.remove_leftovers(output)
        assert not (output / ".tmp-merged").exists()
        add(output, DISK)
        assert listed(output)
        assert digests_in(output / "result" / "merged", {}).keys() == {
            path.name for path in (ready / "base").iterdir()
        } | {"README.md", "COMPLETE"}
    return found


def save_wide(folder: Path) -> None:
    """A third of a gigabyte, for what has to take a moment."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=1024, intermediate_size=4096, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
