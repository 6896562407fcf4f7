"""What an answer of the API server means, from its HTTP status and body."""

from __future__ import annotations

import json

import pytest

from finetune_kube.failures import FailureKind, request_failure


def _status(**fields: object) -> bytes:
    return json.dumps({"kind": "Status", "status": "Failure", **fields}).encode()


CASES: dict[str, tuple[int, bytes, FailureKind]] = {
    "a 404 that names an object": (404, _status(details={"name": "a"}), FailureKind.NOT_FOUND),
    "a 404 that names none: the resource is not served": (404, _status(details={}), FailureKind.UNKNOWN_RESOURCE),
    "a 404 of a proxy": (404, b"page not found", FailureKind.UNKNOWN_RESOURCE),
    "a name that is taken": (409, _status(reason="AlreadyExists"), FailureKind.ALREADY_EXISTS),
    "an object that has changed": (409, _status(reason="Conflict"), FailureKind.CONFLICT),
    "a token that is not accepted": (401, _status(reason="Unauthorized"), FailureKind.UNAUTHORIZED),
    "a denied request": (403, _status(reason="Forbidden"), FailureKind.FORBIDDEN),
    "an object that breaks its schema": (422, _status(reason="Invalid"), FailureKind.INVALID),
    "a body that is no object": (400, _status(reason="BadRequest"), FailureKind.INVALID),
    "a resource version that is too old": (410, _status(reason="Expired"), FailureKind.EXPIRED),
    "too many requests": (429, b"", FailureKind.UNAVAILABLE),
    "a server that fails": (500, b"[]", FailureKind.UNAVAILABLE),
    "a gateway without a server": (503, b"\xff", FailureKind.UNAVAILABLE),
    "a status that no rule covers": (405, _status(reason="MethodNotAllowed"), FailureKind.OTHER),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_has_a_kind(case: str) -> None:
    code, body, kind = CASES[case]
    found = request_failure(code, body)
    assert (found.kind, found.code) == (kind, code)


def test_reason_message_and_causes_are_those_of_the_status_object() -> None:
    causes = [{"field": "spec.a", "message": "too long"}]
    found = request_failure(422, _status(reason="Invalid", message="a is invalid", details={"causes": causes}))
    assert (found.reason, found.message, found.causes) == ("Invalid", "a is invalid", tuple(causes))


@pytest.mark.parametrize("details", [None, [], "x", {"causes": None}])
def test_details_of_another_shape_are_no_details(details: object) -> None:
    assert request_failure(422, _status(details=details)).causes == ()


def test_text_that_is_no_status_object_is_the_message() -> None:
    assert request_failure(502, b" Bad gateway \n").message == "Bad gateway"
    assert len(request_failure(502, b"x" * 10_000).message) == 500
