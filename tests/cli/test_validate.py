"""`finetune validate`: its words, its JSON, and every refusal with its key, reason and remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from builders import resource
from cli.calls import ROW, finetune, job, listing
from finetune_cli import local_files
from finetune_plan import job_settings

GOOD = """\
job.yaml: valid
  method: lora on single
  layout: 1 node x 1 = 1 rank
  accepted but without effect: job.suffix
"""
BAD = """\
error: spec.compute.gpu_typ: 'gpu_typ' is not a key of spec.compute. [UnknownKey]
  remedy: Did you mean spec.compute.gpu_type?
  at job.yaml:10:5
error: spec.compute.gpu_type: No kind of accelerator is named (missing_gpu_type). [missing_gpu_type]
  remedy: Set compute.gpu_type, for example H100, or CPU to train without accelerators.
  at job.yaml:9:3
job.yaml: refused, 2 problems
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_good_job_is_described(tmp_path: Path) -> None:
    job(
        tmp_path,
        ("    data:", "    suffix: x\n    data:"),
        ("mode: lora", "mode: lora\n    validation: {enabled: false}"),
    )
    result = finetune("validate", "job.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (0, GOOD, "")


def test_every_problem_of_a_bad_job_is_reported_with_its_place(tmp_path: Path) -> None:
    job(tmp_path, ("gpu_type", "gpu_typ"))
    result = finetune("validate", "job.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (2, BAD, "")


def test_colours_are_for_terminals_only(tmp_path: Path) -> None:
    job(tmp_path, ("gpu_type", "gpu_typ"))
    assert "\x1b" not in finetune("validate", "job.yaml").output


def test_json_holds_verdict_method_and_layout(tmp_path: Path) -> None:
    job(tmp_path)
    answer = json.loads(finetune("validate", "job.yaml", "-o", "json").stdout)
    assert list(answer) == [
        "file",
        "valid",
        "errors",
        "informational",
        "notes",
        "method",
        "engine",
        "layout",
        "network",
    ]
    assert (answer["valid"], answer["errors"], answer["method"]) == (True, [], "lora")
    status = json.loads(finetune("render", "job.yaml", "--what", "status", "-o", "json").stdout)
    assert (answer["layout"], answer["network"]) == (status["layout"], status["network"])


def test_json_of_a_refused_job_holds_path_message_remedy_and_reason(tmp_path: Path) -> None:
    job(tmp_path, ("gpu_type", "gpu_typ"))
    answer = json.loads(finetune("validate", "job.yaml", "-o", "json").stdout)
    assert answer["valid"] is False
    assert set(answer["errors"][0]) == {"path", "reason", "message", "remedy", "place"}
    assert (answer["method"], answer["layout"]) == (None, None)


TWO_NODES = ("compute.nodes=2", "compute.gpu_count=8", "compute.gpu_type=H100")
LEFT: dict[str, tuple[str, str]] = {
    "": ("NetworkUndecided", "The job has 2 nodes with H100, and nothing says which network joins them. Have the"),
    "ours": ("UnknownNetwork", "'ours' is no network profile known here."),
    "aws-efa": ("NetworkIncomplete", "The network profile aws-efa lacks what an administrator knows: devices"),
    "nvidia-hostdev": ("NetworkNotAllowed", "The network profile nvidia-hostdev needs root in the container"),
    "gke-tcpx": ("NetworkContradiction", "The network profile gke-tcpx is for pods with all 8 GPUs of a node"),
}


@pytest.mark.parametrize("profile", LEFT)
def test_what_the_settings_of_a_cluster_decide_about_networks_is_a_note(profile: str, tmp_path: Path) -> None:
    """Nobody but the cluster can say that the job is wrong."""
    reason, sentence = LEFT[profile]
    keys = (*TWO_NODES, *([f"network.profile={profile}"] if profile else ()))
    options = [part for key in keys for part in ("--set", key)]
    file = job(tmp_path, ("ephemeral: true", "uri: pvc://models/out"))
    answer = json.loads(finetune("validate", file, "-o", "json", *options).stdout)
    assert (answer["valid"], answer["errors"]) == (True, [])
    [note] = [n["sentence"] for n in answer["notes"] if n["reason"] == reason]
    assert note.startswith(f"The cluster's settings decide: {sentence}")
    for verb in ("validate", "render"):
        result = finetune(verb, file, *options)
        assert result.exit_code == 0
        assert f"note: {note} [{reason}]" in result.output


def test_what_an_administrator_has_not_said_stands_as_a_parameter_in_rendered_pods(tmp_path: Path) -> None:
    options = [part for key in (*TWO_NODES, "network.profile=aws-efa") for part in ("--set", key)]
    result = finetune("render", job(tmp_path, ("ephemeral: true", "uri: pvc://models/out")), *options)
    assert "vpc.amazonaws.com/efa: ${devices}" in result.stdout


def test_an_illegal_name_of_a_network_is_refused_everywhere(tmp_path: Path) -> None:
    result = finetune("validate", job(tmp_path), "--set", "network.profile=Ours_1")
    assert (result.exit_code, "spec.network.profile" in result.stdout) == (2, True)


def test_several_files_are_judged_each_and_the_exit_code_is_that_of_the_worst(tmp_path: Path) -> None:
    job(tmp_path)
    job(tmp_path, ("gpu_type", "gpu_typ"), name="bad.yaml")
    result = finetune("validate", "job.yaml", "bad.yaml", "none.yaml", "-o", "json")
    assert [(a["file"], a["valid"]) for a in json.loads(result.stdout)] == [
        ("job.yaml", True), ("bad.yaml", False), ("none.yaml", False),
    ]  # fmt: skip
    assert result.exit_code == 2


def test_a_learning_rate_in_the_notation_of_papers_is_a_number(tmp_path: Path) -> None:
    job(tmp_path, ("  training:", "  hyperparameters: {learning_rate: 8e-6}\n  training:"))
    assert finetune("validate", "job.yaml").exit_code == 0
    run = json.loads(finetune("render", "job.yaml", "--what", "run", "-o", "json").stdout)
    assert run["optimizer"]["learning_rate"] == 8e-6


DATA = "job.yaml", "--dataset", "rows.jsonl"
GOOD_ROWS = ROW * 3
WITHOUT_TARGET = '{"messages": [{"role": "user", "content": "1+1?"}]}\n'
LIST = ("job.yaml",)
HYPER = "  hyperparameters: {%s}\n  training:"
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, str] | None, str | None, tuple[str, str, str, str]]] = {
    "no model": (LIST, ("    model: org/name\n", ""), None,
        ("spec.job.model", "MissingModel", "No base model is named.", "Set job.model")),
    "no data and no --dataset": (LIST, ("    data: train.jsonl\n", ""), None,
        ("spec.job.data", "MissingData", "No training data is named.", "give --dataset")),
    "no gpu_type": (LIST, ("    gpu_type: CPU\n", "    nodes: 1\n"), None,
        ("spec.compute.gpu_type", "missing_gpu_type", "missing_gpu_type", "Set compute.gpu_type")),
    "gpu_count against nodes x gpus_per_node": (
        LIST, ("gpu_type: CPU", "gpu_type: CPU\n    gpu_count: 3\n    nodes: 2\n    gpus_per_node: 2"), None,
        ("spec.compute.gpu_count", "LayoutContradiction", "Given: compute.gpu_count = 3, compute.nodes = 2,",
         "Correct one of the three")),
    "DeepSpeed and FSDP": (
        LIST, ("  training:", HYPER % "parallelism: {use_deepspeed: true, fsdp: true}"), None,
        ("spec.hyperparameters.parallelism.fsdp", "EnginesExclude", "'ZeRO-2/3 and optionally FSDP'",
         "Set use_deepspeed or fsdp to false.")),
    "QLoRA with train_kind fft": (
        LIST, ("  training:\n    mode: lora", (HYPER % "train_kind: fft") + "\n    use_qlora: true"), None,
        ("spec.hyperparameters.train_kind", "MethodContradiction", "use_qlora", "Set train_kind to peft")),
    "learning_rate 0": (LIST, ("  training:", HYPER % "learning_rate: 0"), None,
        ("spec.hyperparameters.learning_rate", "BadValue", "0 is not valid", "learning_rate")),
    "learning_rate 1.5": (LIST, ("  training:", HYPER % "learning_rate: 1.5"), None,
        ("spec.hyperparameters.learning_rate", "BadValue", "1.5 is not valid", "learning_rate")),
    "n_epochs 0": (LIST, ("  training:", HYPER % "n_epochs: 0"), None,
        ("spec.hyperparameters.n_epochs", "BadValue", "0 is not valid", "n_epochs")),
    "an unknown key": (LIST, ("  training:", HYPER % "lerning_rate: 1e-5"), None,
        ("spec.hyperparameters.lerning_rate", "UnknownKey", "'lerning_rate'",
         "Did you mean spec.hyperparameters.learning_rate?")),
    "a dataset that is not there": (DATA, None, None,
        ("spec.job.data", "DataRefused", "rows.jsonl: file not found.", "Correct the path")),
    "an empty dataset": (DATA, None, "",
        ("spec.job.data", "DataRefused", "rows.jsonl: the file contains no rows.", "one JSON object per line")),
    "a row without a trainable token": (DATA, None, ROW + WITHOUT_TARGET + ROW,
        ("spec.job.data", "DataRefused", "line 2: no trainable token", "Fix the rows")),
    "a broken line in the middle": (DATA, None, ROW + '{"messages": [\n' + ROW,
        ("spec.job.data", "DataRefused", "line 2: invalid JSON", "Fix the rows")),
    "a model folder that is not there": (("job.yaml", "--model", "./models/none"), None, None,
        ("spec.job.model", "ModelRefused", "./models/none does not exist.", "relative to the current folder")),
    "a model folder without a model": (("job.yaml", "--model", "."), None, None,
        ("spec.job.model", "ModelRefused", "folder . contains no model", "Name the folder that contains")),
}  # fmt: skip
"""Arguments, what is changed in the job, rows.jsonl, and the problem: path, reason, message, remedy."""


@pytest.mark.parametrize("verb", ["validate", "run"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(case: str, verb: str, tmp_path: Path) -> None:
    arguments, change, rows, (path, reason, message, remedy) = REFUSED[case]
    job(tmp_path, *([change] if change else []))
    (tmp_path / "train.jsonl").write_text(GOOD_ROWS)
    if rows is not None:
        (tmp_path / "rows.jsonl").write_text(rows)
    before = listing(tmp_path)
    result = finetune(verb, *arguments)
    assert result.exit_code == 2
    told = result.stdout if verb == "validate" else result.stderr
    [problem] = re.findall(
        rf"^error: {re.escape(path)}: (.*?) \[(\w+)\]\n  remedy: (.*)$", told, re.MULTILINE | re.DOTALL
    )
    assert message in problem[0]
    assert problem[1] == reason
    assert remedy in problem[2]
    assert listing(tmp_path) == before


def test_a_bad_row_may_be_skipped_if_the_job_says_so(tmp_path: Path) -> None:
    job(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROW * 3 + WITHOUT_TARGET)
    skip = ("--set", "data.on_bad_row=skip", "--set", "data.max_bad_share=0.25")
    assert finetune("validate", *DATA).exit_code == 2
    assert finetune("validate", *DATA, *skip).exit_code == 0


def test_only_the_asked_number_of_rows_is_read(tmp_path: Path) -> None:
    job(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROW * 3 + WITHOUT_TARGET)
    assert finetune("validate", *DATA, "--examples", "3").exit_code == 0
    assert finetune("validate", *DATA, "--examples", "4").exit_code == 2


def test_the_jobs_own_rows_are_read_where_asked(tmp_path: Path) -> None:
    job(tmp_path)
    (tmp_path / "train.jsonl").write_text(WITHOUT_TARGET)
    assert finetune("validate", "job.yaml").exit_code == 0
    assert finetune("validate", "job.yaml", "--check-data").exit_code == 2


def test_validation_rows_are_read_too(tmp_path: Path) -> None:
    job(tmp_path, ("  training:", "  data: {validation_path: held-out.jsonl}\n  training:"))
    (tmp_path / "train.jsonl").write_text(ROW)
    (tmp_path / "held-out.jsonl").write_text(WITHOUT_TARGET)
    result = finetune("validate", "job.yaml", "--check-data", "-o", "json")
    [error] = json.loads(result.stdout)["errors"]
    assert (error["path"], error["reason"]) == ("spec.data.validation_path", "DataRefused")


def test_at_most_twenty_bad_rows_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    job(tmp_path)
    (tmp_path / "rows.jsonl").write_text(WITHOUT_TARGET * 25)
    told = finetune("validate", *DATA).stdout
    assert told.count("  line ") == 20
    assert "25 of 25 rows are bad" in told
    assert "and 5 more" in told


ELSEWHERE = {
    "data on a claim": (("data: train.jsonl", "data: pvc://rows/train.jsonl"), "spec.job.data", "--dataset"),
    "data in a ConfigMap": (("data: train.jsonl", "data: configmap://rows/a"), "spec.job.data", "--dataset"),
    "a model on a claim": (("model: org/name", "model: pvc://models/base"), "spec.job.model", "--model"),
    "output on a claim": (("{ephemeral: true}", "{uri: pvc://m/o}"), "spec.output.uri", "--output"),
    "validation rows on a claim": (
        ("  training:", "  data: {validation_path: pvc://rows/v.jsonl}\n  training:"),
        "spec.data.validation_path", "--set data.validation_path=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ELSEWHERE)
def test_places_of_a_cluster_are_refused_by_a_local_run(case: str, tmp_path: Path) -> None:
    change, path, option = ELSEWHERE[case]
    job(tmp_path, change)
    (tmp_path / "train.jsonl").write_text(ROW)
    before = listing(tmp_path)
    assert finetune("validate", "job.yaml").exit_code == 0
    result = finetune("run", "job.yaml")
    assert result.exit_code == 2
    assert re.search(rf"^error: {re.escape(path)}: .* and this run is local\. \[NotLocal\]\n  remedy: .*{option}",
                     result.stderr, re.MULTILINE)  # fmt: skip
    assert listing(tmp_path) == before


def test_a_gpu_that_this_machine_lacks_is_refused_by_a_local_run(tmp_path: Path) -> None:
    wanted = job_settings.read(resource())
    [problem] = local_files.device_problems(wanted, tmp_path)
    assert (problem.path, problem.reason) == ("spec.compute.gpu_type", "NoGpu")
    assert problem.message == "The job wants H100, and this machine has no NVIDIA GPU."
    assert [*local_files.device_problems(job_settings.read(resource({"compute.gpu_type": "cpu"})), tmp_path)] == []
    (tmp_path / "nvidia0").touch()
    assert [*local_files.device_problems(wanted, tmp_path)] == []


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
def test_nothing_is_written_where_the_gpu_is_missing(tmp_path: Path) -> None:
    job(tmp_path, ("gpu_type: CPU", "gpu_type: H100"))
    (tmp_path / "train.jsonl").write_text(ROW)
    before = listing(tmp_path)
    result = finetune("run", "job.yaml")
    assert (result.exit_code, listing(tmp_path)) == (2, before)
    assert "Give --set compute.gpu_type=CPU to run on CPUs" in result.stderr
