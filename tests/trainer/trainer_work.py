"""Complete runs without a launcher, and the losses that other libraries compute for them."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from finetune_api.runtime.choices import Device
from finetune_api.runtime.report import FinalReport, Record, parse
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import environment, four_bits, preparation
from finetune_trainer import trainer as trainer_module
from finetune_trainer.collectives import rank, world_size
from finetune_trainer.environment import RankInfo
from finetune_trainer.handoff import TRAIN, VALIDATION, Handoff
from finetune_trainer.rows import Rows
from finetune_trainer.stop import Stop
from finetune_trainer.trainer import Trainer
from trainer import models
from trainer.failpoints import Failing

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def run(config: RunConfig, handoff: Path) -> FinalReport:
    """Prepare in `handoff` and run to the end. Raises what the rank would report."""
    torch.set_num_threads(1)
    handoff.mkdir()
    preparation.prepare(config, 0, handoff, lambda _: None)
    with environment.process_group(ALONE, Device.CPU) as rank_info, Stop() as stop:
        return Trainer(Handoff.read(handoff), handoff, rank_info, stop).run()


def run_without_bitsandbytes(config: RunConfig, handoff: Path) -> FinalReport:
    """In a process of its own, where it cannot be imported from now on."""
    four_bits.library.cache_clear()
    with patch.dict(sys.modules, {"bitsandbytes": None}):
        return run(config, handoff)


class Replacing(Trainer):
    """Other weights take the place of the model's while the first of them is loaded."""

    def _keep(self, weight: Tensor) -> Tensor:
        model, other = Path(self.handoff.model_folder), self.folder / "other"
        if not other.exists():
            models.llama(seed=9).save_pretrained(other)
            (other / "model.safetensors").rename(model / "model.safetensors")
        return super()._keep(weight)


def run_while_weights_change(config: RunConfig, handoff: Path) -> FinalReport:
    handoff.mkdir()
    preparation.prepare(config, 0, handoff, lambda _: None)
    with environment.process_group(ALONE, Device.CPU) as rank_info, Stop() as stop:
        return Replacing(Handoff.read(handoff), handoff, rank_info, stop).run()


def run_while_the_model_changes(config: RunConfig, handoff: Path, change: str) -> FinalReport:
    """After the last step and before the result."""
    handoff.mkdir()
    preparation.prepare(config, 0, handoff, lambda _: None)

    class Changing(Trainer):
        def _publish(self, *arguments: Any) -> FinalReport:
            model = Path(self.handoff.model_folder)
            if change == "remove":
                shutil.rmtree(model)
            else:
                (model / "chat_template.jinja").write_text("another")
            return super()._publish(*arguments)

    with environment.process_group(ALONE, Device.CPU) as rank_info, Stop() as stop:
        return Changing(Handoff.read(handoff), handoff, rank_info, stop).run()


def run_after_a_change(config: RunConfig, handoff: Path, changed: Path) -> FinalReport:
    """The adapter in `changed` is another one when ranks read it."""
    handoff.mkdir()
    preparation.prepare(config, 0, handoff, lambda _: None)
    weights = changed / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    with environment.process_group(ALONE, Device.CPU) as rank_info, Stop() as stop:
        return Trainer(Handoff.read(handoff), handoff, rank_info, stop).run()


class Measured(Failing):
    """`Files` that measure the size of a folder whenever one is about to go, and at the end of each file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self.most = folder, 0

    @contextmanager
    def _operation(self, name: str, path: Path) -> Iterator[None]:
        yield
        self.most = max(self.most, size(self._folder))


def run_measured(config: RunConfig, handoff: Path) -> tuple[int, int]:
    """Bytes that a run asks its volume for, and the most by which its output grew."""
    torch.set_num_threads(1)
    handoff.mkdir()
    preparation.prepare(config, 0, handoff, lambda _: None)
    output, asked = Path(config.output), list[int]()
    files, before = Measured(output), size(output)
    asking = patch.object(trainer_module, "require_space", lambda _, needed, remedy: asked.append(needed))
    with asking, environment.process_group(ALONE, Device.CPU) as rank_info, Stop() as stop:
        Trainer(Handoff.read(handoff), handoff, rank_info, stop, files).run()
    return asked[0], files.most - before


def size(folder: Path) -> int:
    """Bytes in the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run_as_node(settings: list[RunConfig], folder: Path) -> FinalReport:
    """A run of nodes with one rank each, every one with settings of its own. Raises what the rank would report."""
    node = rank()
    handoff = folder / f"handoff-{node}"
    handoff.mkdir()
    preparation.prepare(settings[node], node, handoff, lambda _: None)
    rank_info = RankInfo(node, len(settings), 0, torch.device("cpu"))
    with Stop() as stop:
        return Trainer(Handoff.read(handoff), handoff, rank_info, stop).run()


def run_on_ranks(config: RunConfig) -> FinalReport:
    """The same on this rank among others."""
    return trainer(config, Stop()).run()


def trainer(config: RunConfig, stop: Stop) -> Trainer:
    """That of this rank among others; it prepares in a folder of its own, beside the output."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=Path(config.output).parent))
    preparation.prepare(config, 0, folder, lambda _: None)
    rank_info = RankInfo(rank(), world_size(), rank(), torch.device("cpu"))
    return Trainer(Handoff.read(folder), folder, rank_info, stop)


def records(output: Path) -> list[Record]:
    lines = (output / "records.jsonl").read_text().splitlines()
    return [record for line in lines if (record := parse(line))]


def losses_by_transformers(config: RunConfig, handoff: Path) -> tuple[float, float]:
    """Mean validation loss before and after training, computed by transformers and PEFT row by row."""
    torch.set_num_threads(1)
    before = AutoModelForCausalLM.from_pretrained(config.model)
    result = str(Path(config.output) / "result")
    if config.lora is None:
        after: Any = AutoModelForCausalLM.from_pretrained(result)
    else:
        after = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), result)
    rows = Rows.load(handoff / VALIDATION)
    return mean_loss(before, rows), mean_loss(after, rows)


def mean_loss(model: nn.Module, rows: Rows) -> float:
    model.eval()
    total, count = 0.0, 0
    for i in range(len(rows)):
        tokens, targets = (torch.tensor(part) for part in rows.row(i))
        with torch.no_grad():
            logits = model(input_ids=tokens[None].long()).logits[0, :-1]
        labels = tokens[1:].long().masked_fill(~targets[1:], -100)
        total += float(functional.cross_entropy(logits, labels, reduction="sum"))
        count += int(targets[1:].sum())
    return total / count


def lines_of_first_step(handoff: Path) -> list[int]:
    """All lines: the dataset of the test fits into one step."""
    return sorted(int(line) for line in Rows.load(handoff / TRAIN).lines)


class StopAt(Stop):
    """Requests a stop at the `at`-th question."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


def run_stopped_everywhere(config: RunConfig, handoff: Path) -> FinalReport:
    """Restart the run, stopped at the first question, at the second, ... until it completes."""
    torch.set_num_threads(1)
    handoff.mkdir()
    preparation.prepare(config, 0, handoff, lambda _: None)
    for at in range(1, 100):
        with environment.process_group(ALONE, Device.CPU) as rank_info:
            report = Trainer(Handoff.read(handoff), handoff, rank_info, StopAt(at)).run()
        if report.exit_code == 0:
            assert at > 1, "nothing has stopped it"
            return report
    raise AssertionError("the run never completed")
