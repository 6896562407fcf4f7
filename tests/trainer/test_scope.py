"""What trains and what does not: said before weights are read, and true of the result."""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig

from finetune_api.runtime.choices import Engine, Method
from finetune_trainer import architecture, model, scope, tensor_files
from finetune_trainer.errors import ModelRefused
from trainer import architectures, models, quantised
from trainer import scope_work as work
from trainer.ranks import run_ranks, values
from trainer.result_work import logits
from trainer.scope_work import Case, Trained

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

KINDS = ("gemma3", "qwen2_5_vl", "gpt_oss", "qwen3_moe", "mixtral", "llama", "qwen3", "phi3")
OTHER_PARTS = {
    "gemma3": ["model.vision_tower", "model.multi_modal_projector"],
    "qwen2_5_vl": ["model.visual"],
}
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
METHODS, ENGINES = (Method.FFT, Method.LORA), (Engine.DDP, Engine.FSDP2)
IN_BF16 = ("gemma3", "ernie4_5_moe", "minimax", "xglm")
CASES = [Case(*each) for each in product(KINDS, METHODS, ENGINES)]
CASES += [Case("mixtral", Method.FFT, engine, router_loss=True) for engine in ENGINES]
CASES += [Case("phimoe", Method.LORA, Engine.DDP)]  # its router is a linear module that gives two values
CASES += [Case("falcon", Method.LORA, Engine.FSDP2)]  # its linear modules are of a class of its own
CASES += [Case(*each, precision="bf16") for each in product(IN_BF16, (Method.FFT,), ENGINES)]
QUANTISED = {"gpt_oss": "mxfp4", "qwen3_moe": "fp8", "qwen3": "fp8", "gemma3": "fp8"}
SAVE = {"mxfp4": quantised.save_mxfp4, "fp8": quantised.save_fp8}
CASES += [
    Case(kind, method, engine, precision="bf16" if method is Method.FFT else "fp32", quantised=how)
    for (kind, how), method, engine in product(QUANTISED.items(), METHODS, ENGINES)
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for case in {case.base: case for case in CASES}.values():
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[case.precision]
        made = architectures.model(case.kind, dtype=dtype)
        if case.router_loss:
            made.config.output_router_logits = True
        if case.quantised:
            SAVE[case.quantised](made, folder / case.base, folder / case.plain)
        else:
            made.save_pretrained(folder / case.base)
        for name in PROCESSORS:
            (folder / case.base / name).write_text(f'{{"of": "{case}"}}')
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(bases: Path, outputs: Path) -> dict[str, Trained]:
    found: dict[str, Trained] = values(run_ranks(2, work.train_all, CASES, bases, outputs))[0]
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_plain_transformers_and_peft_load_what_two_ranks_have_trained(
    case: Case, bases: Path, outputs: Path, trained: dict[str, Trained]
) -> None:
    found = trained[str(case)]
    again = work.published(case, bases / case.plain, outputs / str(case))
    assert torch.equal(logits(again), found.logits)
    assert not torch.equal(found.logits, logits(work.own_class(bases / case.plain)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_not_trained_keeps_its_bits_and_everything_else_moves(
    case: Case, bases: Path, trained: dict[str, Trained]
) -> None:
    found, built = trained[str(case)], architectures.model(case.kind)
    base = {name: p.detach() for name, p in work.own_class(bases / case.plain).named_parameters()}
    moved = {name for name, weight in base.items() if not torch.equal(weight, of_base(found, name).to(weight.dtype))}
    others = tuple(f"{part}." for part in OTHER_PARTS.get(case.kind, ()))
    language = {name for name, p in built.named_parameters() if p.requires_grad and not name.startswith(others)}
    assert moved == (set() if case.method is Method.LORA else language)
    assert not any(others and f".{other}" in name for name in found.weights if "lora" in name for other in others)
    assert all(found.weights[name].any() for name in found.weights if "lora_B" in name)


def of_base(found: Trained, name: str) -> torch.Tensor:
    """A weight by its name without adapters."""
    inner = {re.sub(r"^base_model\.model\.|\.base_layer(?=\.)", "", each): each for each in found.weights}
    return found.weights[inner[name]]


def test_the_router_loss_changes_what_is_trained_and_not_what_is_reported(trained: dict[str, Trained]) -> None:
    ddp, fsdp2 = (trained[str(Case("mixtral", Method.FFT, engine, router_loss=True))] for engine in ENGINES)
    without = trained[str(Case("mixtral", Method.FFT, Engine.DDP))]
    assert ddp.losses == pytest.approx(fsdp2.losses, abs=1e-6)
    assert ddp.losses[0] == without.losses[0]
    gate = "model.layers.0.mlp.gate.weight"
    assert torch.allclose(ddp.weights[gate], fsdp2.weights[gate], atol=1e-6)
    assert not torch.allclose(ddp.weights[gate], without.weights[gate], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_trained_without_router_loss(method: Method, tmp_path: Path) -> None:
    lora = {"lora": models.lora()} if method is Method.LORA else {}
    mixtral = architectures.model("mixtral")
    mixtral.config.output_router_logits = True
    model.prepare(mixtral, models.run_config(tmp_path, tmp_path, tmp_path, method=method, **lora))
    assert mixtral.config.output_router_logits == (method is Method.FFT)


@pytest.mark.parametrize("modules", ["gate", "norm"])
def test_a_router_that_is_trained_in_full_has_its_loss(modules: str, tmp_path: Path) -> None:
    mixtral = architectures.model("mixtral")
    mixtral.config.output_router_logits = True
    lora = models.lora(modules_to_save=(modules,))
    model.prepare(mixtral, models.run_config(tmp_path, tmp_path, tmp_path, method="lora", lora=lora))
    assert mixtral.config.output_router_logits == (modules == "gate")


@pytest.mark.parametrize("kind", OTHER_PARTS)
def test_the_result_of_a_multimodal_model_is_one(kind: str, bases: Path, outputs: Path, trained: Any) -> None:
    case = Case(kind, Method.FFT, Engine.FSDP2)
    folder, base = outputs / str(case) / "result", bases / case.base
    names = [safetensors.torch.load_file(each / "model.safetensors").keys() for each in (folder, base)]
    assert names[0] == names[1]
    for name in ("config.json", *PROCESSORS):
        assert (folder / name).read_bytes() == (base / name).read_bytes(), name


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_result_of_a_quantised_model_is_in_bf16_and_says_so(
    kind: str, bases: Path, outputs: Path, trained: Any
) -> None:
    case = Case(kind, Method.FFT, Engine.FSDP2, precision="bf16", quantised=QUANTISED[kind])
    folder, base = outputs / str(case) / "result", bases / case.base
    assert tensor_files.outlines(folder) == tensor_files.outlines(bases / case.plain)
    config, of_base = (json.loads((each / "config.json").read_bytes()) for each in (folder, base))
    del of_base["quantization_config"]
    of_base["torch_dtype" if "torch_dtype" in of_base else "dtype"] = "bfloat16"
    if kind == "gemma3":
        of_base["text_config"]["dtype"] = "bfloat16"
    assert config == of_base


@pytest.mark.parametrize("kind", QUANTISED)
def test_an_adapter_of_a_quantised_model_names_it(kind: str, bases: Path, outputs: Path, trained: Any) -> None:
    case = Case(kind, Method.LORA, Engine.DDP, quantised=QUANTISED[kind])
    config = json.loads((outputs / str(case) / "result" / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == str(bases / case.base)


@pytest.fixture
def config_only(tmp_path: Path, bases: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of a model that has no weights."""
    kind, *others = request.param.split(" with ")
    base = " with ".join((f"{kind} in fp32", *others))
    shutil.copyfile(bases / base / "config.json", tmp_path / "config.json")
    return tmp_path


def with_targets(*targets: str, **changes: Any) -> dict[str, Any]:
    return {"method": "lora", "lora": models.lora(target_modules=targets, **changes)}


ASKED = "(output_router_logits and router_aux_loss_coef in config.json)"
ATTENTION = "k_proj, o_proj, q_proj, v_proj"
MLP = "gate_proj, model.layers.*.mlp.up_proj, model.layers.*.mlp.down_proj"
EXPERTS = "model.layers.*.mlp.experts.gate_up_proj, model.layers.*.mlp.experts.down_proj"
FROZEN = "rows are text, so these parts are frozen: model.vision_tower, model.multi_modal_projector"


@pytest.mark.parametrize(
    ("config_only", "changes", "sentence"),
    [
        pytest.param("llama", {}, "Trains all 74,048 parameters.", id="everything"),
        pytest.param(
            "llama",
            with_targets(*ATTENTION.split(", ")),
            f"Trains 3,584 of 77,632 parameters; adapters are on {ATTENTION}; no adapters are on "
            f"model.layers.*.mlp.{MLP} (47% of the parameters).",
            id="adapters on some modules",
        ),
        pytest.param("gemma3", {}, f"Trains 68,224 of 111,824 parameters; {FROZEN}.", id="a multimodal model"),
        pytest.param(
            "gemma3",
            with_targets("all-linear", modules_to_save=("embed_tokens",)),
            f"Trains 13,568 of 119,248 parameters; {FROZEN}; adapters are on down_proj, gate_proj, k_proj, o_proj, "
            "q_proj, up_proj, v_proj; trained in full are lm_head, model.language_model.embed_tokens, with one "
            "weight for both.",
            id="adapters, and an embedding that is the output head",
        ),
        pytest.param(
            "gemma3",
            with_targets("all-linear"),
            f"Trains 7,424 of 119,248 parameters; {FROZEN}; adapters are on down_proj, gate_proj, k_proj, o_proj, "
            "q_proj, up_proj, v_proj.",
            id="adapters on every linear module of a multimodal model",
        ),
        pytest.param(
            "qwen3_moe",
            with_targets("all-linear", dropout=0.1),
            f"Trains 3,584 of 90,496 parameters; adapters are on {ATTENTION}; no adapters are on {EXPERTS}, "
            "model.layers.*.mlp.gate (55% of the parameters).",
            id="experts",
        ),
        pytest.param("mixtral", {}, f"Trains all 185,152 parameters; no router loss {ASKED}.", id="no router loss"),
        pytest.param(
            "mixtral with router loss",
            {},
            f"Trains all 185,152 parameters; the loss includes 0.001 x the router's {ASKED}.",
            id="a router loss",
        ),
    ],
    indirect=["config_only"],
)
def test_what_is_trained_is_said_before_weights_are_read(
    config_only: Path, changes: dict[str, Any], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    scope.say(config_only, models.run_config(config_only, config_only, config_only, **changes))
    assert caplog.messages == [sentence]


@pytest.mark.parametrize(
    ("config_only", "target", "message"),
    [
        ("qwen3_moe", "gate_up_proj", "experts, whose weights transformers keeps in one parameter for all, are no"),
        (
            "qwen3_moe",
            "up_proj",
            "are no modules: up_proj; its linear modules are k_proj, lm_head, o_proj, q_proj",
        ),
        ("gpt_oss", "experts", "are no modules: experts; its linear modules are"),
        ("mixtral", "w1", "are no modules: w1; its linear modules are"),
        ("gemma3", "out_proj", "has no module out_proj (did you mean o_proj?); its linear modules are down_proj"),
    ],
    indirect=["config_only"],
)
def test_adapters_that_the_model_cannot_have_are_refused_before_weights_are_read(
    config_only: Path, target: str, message: str
) -> None:
    config = models.run_config(config_only, config_only, config_only, **with_targets("q_proj", target))
    with pytest.raises(ModelRefused, match=re.escape(message)):
        scope.say(config_only, config)


def test_linear_modules_whose_weights_kernels_read_get_no_adapters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    AutoConfig.for_model("mamba", **settings).save_pretrained(tmp_path)
    scope.say(tmp_path, models.run_config(tmp_path, tmp_path, tmp_path, **with_targets("all-linear")))
    assert "adapters are on dt_proj, in_proj, x_proj; no adapters are on backbone.layers.*.mixer" in caplog.text
    config = models.run_config(tmp_path, tmp_path, tmp_path, **with_targets("in_proj", "out_proj"))
    with pytest.raises(
        ModelRefused, match="kernels of mamba read their weights past an adapter: out_proj; its linear"
    ):
        scope.say(tmp_path, config)


@pytest.mark.parametrize(
    ("kind", "named", "made"),
    [
        ("gemma3", "Gemma3ForConditionalGeneration", "Gemma3ForConditionalGeneration"),
        ("gemma3_text", "Gemma3ForCausalLM", "Gemma3ForCausalLM"),
        ("qwen3_vl", None, "Qwen3VLForConditionalGeneration"),
        ("qwen3_5", "Qwen3_5ForConditionalGeneration", "Qwen3_5ForConditionalGeneration"),
        ("llama4", "Llama4ForConditionalGeneration", "Llama4ForConditionalGeneration"),
        ("llama", "OfNoLibrary", "LlamaForCausalLM"),
    ],
)
def test_the_class_is_the_one_that_the_model_was_saved_from(kind: str, named: str | None, made: str) -> None:
    config = AutoConfig.for_model(kind, architectures=named and [named])
    assert architecture.auto_class(config)._model_mapping[type(config)].__name__ == made


@pytest.mark.parametrize("kind", ["t5", "florence2", "siglip"])
def test_a_model_that_is_no_causal_language_model_is_refused(kind: str) -> None:
    with pytest.raises(ModelRefused, match=f"has no causal language model of the type {kind}"):
        architecture.auto_class(AutoConfig.for_model(kind))
