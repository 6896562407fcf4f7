"""Tiny models, datasets and run configurations, for everything that tests the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners import lora as lora_layers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import model, placeholders
from finetune_trainer.lora_forward import LoraLinear

SPECIAL = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llama(
    *,
    tied: bool = False,
    seed: int = 0,
    vocabulary: int = 1024,
    dropout: float = 0.0,
    biases: bool = False,
    layers: int = 4,
) -> LlamaForCausalLM:
    """A random Llama: d=128, 4 heads, 2 of keys and values, 1,024 tokens. `dropout` is that of attention."""
    torch.manual_seed(seed)
    found = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            attention_dropout=dropout,
            attention_bias=biases,
            mlp_bias=biases,
            tie_word_embeddings=tied,
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=257,
            pad_token_id=257,
        )
    )
    for name, parameter in found.named_parameters():
        if name.endswith(".bias"):  # transformers begins with zeros
            torch.nn.init.normal_(parameter, std=0.05)
    return found


def model_folder(folder: Path, *, tied: bool = False, seed: int = 0, vocabulary: int = 1024, layers: int = 4) -> Path:
    """A folder with such a model and a tokenizer of bytes with a chat template."""
    return save(llama(tied=tied, seed=seed, vocabulary=vocabulary, layers=layers), folder)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """A folder with any model and that tokenizer, whose tokens are 0 to 257."""
    model.save_pretrained(folder)
    _tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def dataset(path: Path, rows: int = 24, *, seed: int = 0) -> Path:
    """Sums, asked and answered; answers of 1 to 24 letters, so that target counts differ from row to row."""
    lines = [_row(f"{i + seed} + {i}?", "=" * (i * 7 % 24) + str(2 * i + seed)) for i in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def run_config(model: Path, data: Path, output: Path, **changes: Any) -> RunConfig:
    """One process, two epochs, four rows a step; `changes` replace keys by dotted path (a__b for a.b)."""
    document: dict[str, Any] = {
        "name": "test",
        "model": str(model),
        "method": "fft",
        "engine": "single",
        "device": "cpu",
        "precision": "fp32",
        "data": {
            "train": str(data), "validation": None, "on_bad_row": "refuse", "max_bad_share": 0.0,
            "examples": None, "shuffle": True,
        },
        "sequence_length": None,
        "lora": None,
        "mesh": {
            "nodes": 1, "processes_per_node": 1, "data_parallel": 1, "tensor_parallel": 1,
            "pipeline_parallel": 1,
        },
        "batch": {"per_device": 2, "accumulation": 2},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999,
            "epsilon": 1e-8, "max_grad_norm": 1.0,
        },
        "schedule": {"name": "constant", "warmup_ratio": 0.0, "epochs": 2, "max_steps": None},
        "validation": None,
        "checkpointing": {"every_steps": 0, "keep": 2},
        "activation_checkpointing": False,
        "log_every_steps": 1,
        "seed": 7,
        "output": str(output),
    }  # fmt: skip
    for path, value in changes.items():
        *parents, key = path.split("__")
        part = document
        for parent in parents:
            part = part[parent]
        part[key] = value
    return RunConfig.model_validate(document)


def lora(**changes: Any) -> dict[str, Any]:
    return {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",), **changes}


def loaded(folder: Path, config: RunConfig) -> PreTrainedModel:
    """The model of a folder, as a rank that keeps all of it has it. Collective."""
    found = model.load(folder, config, lambda weight: weight, torch.device("cpu"))
    placeholders.fill(found)
    return found


def with_forward_of_peft(model: PeftModel) -> PeftModel:
    """`model` itself, whose layers compute as PEFT's do."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.__class__ = lora_layers.Linear  # type: ignore[assignment]
    return model
