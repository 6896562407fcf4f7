"""What is shown of jobs, from their status alone."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import pytest

from builders import Json, put, resource
from cli.test_recorder import STEP
from finetune_api.runtime.report import EvaluationRecord, ProgressRecord
from finetune_cli.local.format_record import format_record
from finetune_cli.remote import log_lines, views
from finetune_cli.remote.following import status_diff
from finetune_cli.remote.progress import format_size
from finetune_cli.remote.views import describe

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


def job(status: Json | None = None, name: str = "sample", **conditions: tuple[str, str]) -> Json:
    """A job an hour old. conditions: type -> status, message."""
    body = resource(name=name)
    body["metadata"] |= {"namespace": "team", "creationTimestamp": "2026-11-21T11:00:00Z", "uid": "1"}
    body["status"] = dict(status or {})
    body["status"]["conditions"] = [
        {
            "type": kind,
            "status": value,
            "reason": "Why",
            "message": text,
            "lastTransitionTime": "2026-11-21T11:59:00Z",
        }
        for kind, (value, text) in conditions.items()
    ]
    return body


PROGRESS = {"step": 40, "totalSteps": 200, "percent": 20, "epoch": 0.2, "loss": 1.23456, "learningRate": 1e-4,
            "gradNorm": 1.0, "tokensPerSecond": 5000.4, "etaSeconds": 200}  # fmt: skip
TRAINING = {"phase": "Training", "resolved": {"method": "fft"}, "layout": {"worldSize": 8}, "progress": PROGRESS}
ROWS = {
    "a job that trains": (job(TRAINING), "sample Training Qwen/Qwen3-4B fft 8 40/200 1.2346 3m20s 1h00m"),
    "a job that nobody has seen": (job(), "sample Pending Qwen/Qwen3-4B - - - - - 1h00m"),
    "a job that is over has no time left": (
        job({**TRAINING, "phase": "Failed", "completionTime": "2026-11-21T11:30:00Z"}),
        "sample Failed Qwen/Qwen3-4B fft 8 40/200 1.2346 - 1h00m"),
    "a suspended job has no time left": (
        job({**TRAINING, "phase": "Suspended"}), "sample Suspended Qwen/Qwen3-4B fft 8 40/200 1.2346 - 1h00m"),
    "a loss that is no number": (
        job({**TRAINING, "progress": {"step": 1, "totalSteps": 2}}),
        "sample Training Qwen/Qwen3-4B fft 8 1/2 - - 1h00m"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_a_row_of_the_list_says(case: str) -> None:
    shown, row = ROWS[case]
    heading, line = click.unstyle(views.table([shown], NOW)).splitlines()
    assert line.split() == row.split()
    assert heading.index("PHASE") == line.index(row.split()[1]), "columns stand under their headings"


@pytest.mark.parametrize(("nodes", "shown"), [(1, False), (2, True)])
def test_the_network_of_several_nodes_is_shown_with_its_reason(nodes: int, shown: bool) -> None:
    layout = {"nodes": nodes, "gpusPerNode": 8, "worldSize": nodes * 8}
    told = describe(job({"layout": layout, "network": {"profile": "tcp", "reason": "Because."}}), NOW)
    assert ("  network:  tcp (Because.)" in told) == shown


@pytest.mark.parametrize(
    ("time", "text"),
    [("2026-11-21T11:59:53Z", "7s"), ("2026-11-21T11:55:50Z", "4m10s"), ("2026-11-21T10:58:00Z", "1h02m"),
     ("2026-11-18T07:00:00Z", "3d5h"), ("2026-11-21T12:00:05Z", "0s")],
)  # fmt: skip
def test_an_age_has_its_two_largest_units(time: str, text: str) -> None:
    assert views.age(time, NOW) == text


@pytest.mark.parametrize(("count", "text"), [(17, "17 B"), (4096, "4.0 KiB"), (1300 << 20, "1.3 GiB")])
def test_a_size_has_the_unit_that_fits(count: int, text: str) -> None:
    assert format_size(count) == text


def test_a_condition_of_several_lines_stays_readable() -> None:
    told = describe(job({"phase": "Failed"}, Accepted=("False", "one\ntwo")), NOW)
    assert told.splitlines()[-3:] == ["  Accepted no  since 1m00s: Why", "               one", "               two"]


HOSTILE, ESCAPED = "\x1b[31mred\x07 \u202eback", "\\x1b[31mred\\x07 \\u202eback"


def test_text_of_others_cannot_control_the_terminal() -> None:
    shown = job({"result": {"uri": HOSTILE}}, Training=("True", HOSTILE))
    put(shown, "spec.job.model", HOSTILE)
    lines = [log_lines.format_line(log_lines.LogLine(NOW, 0, HOSTILE), raw=raw) for raw in (True, False)]
    told = [describe(shown, NOW), views.table([shown], NOW), *map(str, status_diff(Json(), shown)), *lines]
    counts = [click.unstyle(each).count(ESCAPED) for each in told]
    assert counts == [3, 1, 1, 1, 1]
    assert not {"\x1b", "\x07", "\u202e"} & set(click.unstyle("".join(told)))


@pytest.mark.parametrize("text", ["a\tb", "größer 模型\u3000→ 12\u00a0%", "क्\u200dष", "👩\u200d🚀\ufe0f"])
def test_ordinary_text_of_a_log_stays_as_it_is(text: str) -> None:
    line = log_lines.LogLine(NOW, 0, text)
    assert click.unstyle(log_lines.format_line(line, raw=False)) == f"[node 0] {text}"


def test_a_job_that_waits_for_its_next_run_says_until_when_and_why() -> None:
    retry = {"reason": "StorageFailed", "attempts": 2, "allowed": 5, "nextTime": "2026-11-21T12:00:20Z"}
    told = describe(job({"run": 3, "restarts": 2, "retry": retry}), NOW)
    assert "  run:      3, 2 restarts after failures; the next starts at 2026-11-21T12:00:20Z " in told
    assert "(attempt 2 after StorageFailed, 5 restarts allowed)" in told


def test_managed_fields_are_kept_from_people_and_programs() -> None:
    shown = job()
    put(shown, "metadata.managedFields", [1])
    assert "managedFields" not in views.without_managed_fields(shown)["metadata"]
    assert "managedFields" in shown["metadata"]


NEWS: dict[str, tuple[Json, Json, list[str]]] = {
    "a step": (job(), job({"progress": PROGRESS}),
        ["step 40/200  loss 1.2346  lr 0.0001  5,000 tokens/s  3m20s left"]),
    "the same step twice": (job({"progress": PROGRESS}), job({"progress": PROGRESS}), []),
    "an evaluation": (job({"progress": PROGRESS}), job({"progress": {**PROGRESS, "evalLoss": 0.5}}),
        ["eval at step 40: loss 0.5000"]),
    "a checkpoint": (job({"progress": PROGRESS}), job({"progress": {**PROGRESS, "checkpointStep": 40}}),
        ["checkpoint at step 40 saved"]),
    "an answer that changes": (job(Training=("False", "Not yet.")), job(Training=("True", "Now.")),
        ["Training: Now."]),
    "a sentence that changes": (job(PodsReady=("False", "0 of 2")), job(PodsReady=("False", "1 of 2")),
        ["PodsReady: 1 of 2"]),
    "what is awaited at first": (Json(), job(PodsReady=("False", "0 of 2"), Suspended=("False", "No.")),
        ["PodsReady: 0 of 2"]),
    "what cannot be said yet": (Json(), job(Accepted=("Unknown", "No node is ready.")),
        ["Accepted: No node is ready."]),
    "the end, which is told by itself": (job(), job({"completionTime": "x"}, Training=("True", "Now.")), []),
}  # fmt: skip


@pytest.mark.parametrize("case", NEWS)
def test_between_two_statuses_has_happened(case: str) -> None:
    before, after, told = NEWS[case]
    assert [each if isinstance(each, str) else format_record(each) for each in status_diff(before, after)] == told


def test_a_diff_has_the_records_that_a_local_run_shows() -> None:
    found = list(status_diff(job(), job({"progress": {**PROGRESS, "evalLoss": 0.5}})))
    assert [type(each) for each in found] == [ProgressRecord, EvaluationRecord]


def test_lines_of_pods_are_merged_by_time_and_tagged() -> None:
    zero = ["2026-11-21T12:00:00.000000001Z a", "2026-11-21T12:00:02.000000001Z " + STEP.line()]
    one = ["2026-11-21T13:00:01.000000001+01:00 b", "no time"]
    parsed = [[log_lines.parse(line, node) for line in log] for node, log in enumerate((zero, one[:1]))]
    shown = [click.unstyle(log_lines.format_line(line, raw=False)) for line in log_lines.merge(parsed)]
    assert shown == ["[node 0] a", "[node 1] b", f"[node 0] {format_record(STEP)}"]
    assert click.unstyle(log_lines.format_line(log_lines.parse(one[1], 1), raw=True)) == "[node 1] no time"
