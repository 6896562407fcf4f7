"""One table of URIs: what each key takes, what it refuses, and that every judge and reader says the same."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.cases import WITHOUT_NAMES
from api.conftest import Refusal
from api.verdicts import disagreement
from builders import Json, resource
from finetune_api.resource import key_table
from finetune_api.resource.key_table import Fate
from finetune_api.validation import check, uris
from finetune_api.validation.uris import Scheme

YES, NOT_YET, BAD, NOT_KEPT = "", "UnsupportedScheme", "BadUri", "OutputNotKept"

# URI -> verdict where it names a model, rows, an output
TABLE: dict[str, tuple[str, str, str | tuple[str, ...]]] = {
    # the Hub
    "org/name": (YES, YES, NOT_KEPT),
    "org/name@main": (YES, YES, NOT_KEPT),
    "hf://org/name": (YES, NOT_YET, NOT_YET),
    "hf://org/name@refs/pr/1": (YES, NOT_YET, NOT_YET),
    "hf://Org/na.me-1_x": (YES, NOT_YET, NOT_YET),
    "hf://": (BAD, NOT_YET, NOT_YET),
    "hf://org": (BAD, NOT_YET, NOT_YET),
    "hf://org/": (BAD, NOT_YET, NOT_YET),
    "hf://org/name/": (BAD, NOT_YET, NOT_YET),
    "hf://org/name@": (BAD, NOT_YET, NOT_YET),
    "hf://org/name@../x": (BAD, NOT_YET, NOT_YET),
    "hf://org/name@a b": (BAD, NOT_YET, NOT_YET),
    "hf://org/na--me": (BAD, NOT_YET, NOT_YET),
    "hf://org/name#main": (BAD, NOT_YET, NOT_YET),
    "hf://datasets/org/name": (BAD, NOT_YET, NOT_YET),
    "hf:org/name": (BAD, BAD, BAD),
    "HF://org/name": (BAD, BAD, BAD),
    # claims
    "pvc://claim/folder/file.jsonl": (YES, YES, YES),
    "pvc://claim.with-dots/x": (YES, YES, YES),
    "pvc://claim": (YES, BAD, YES),
    "pvc://claim/": (YES, BAD, YES),
    "pvc://claim/folder/": (YES, BAD, YES),
    "pvc://claim/a:b@c": (YES, YES, YES),
    "pvc://claim/..rows": (YES, YES, YES),
    "pvc://claim/rows..": (YES, YES, YES),
    "pvc://claim/é": (YES, YES, YES),
    "pvc://claim/\u202etxt.exe": (BAD, BAD, BAD),
    "pvc://claim/a\u200bb": (BAD, BAD, BAD),
    "pvc://": (BAD, BAD, BAD),
    "pvc:///x": (BAD, BAD, BAD),
    "pvc:claim/x": (BAD, BAD, BAD),
    "pvc:/claim/x": (BAD, BAD, BAD),
    "pvc://Claim/x": (BAD, BAD, BAD),
    "pvc://my_claim/x": (BAD, BAD, BAD),
    "pvc://claim-/x": (BAD, BAD, BAD),
    "PVC://claim/x": (BAD, BAD, BAD),
    " pvc://claim/x": (BAD, BAD, BAD),
    "pvc://claim/x ": (BAD, BAD, BAD),
    "pvc://claim/a b": (BAD, BAD, BAD),
    "pvc://claim/a%20b": (BAD, BAD, BAD),
    "pvc://claim/x#part": (BAD, BAD, BAD),
    "pvc://claim/x?a=b": (BAD, BAD, BAD),
    "pvc://claim/a//b": (BAD, BAD, BAD),
    "pvc://claim/../other": (BAD, BAD, BAD),
    "pvc://claim/a/..": (BAD, BAD, BAD),
    "pvc://claim/./a": (BAD, BAD, BAD),
    "pvc://../x": (BAD, BAD, BAD),
    # ConfigMaps
    "configmap://name/key.jsonl": (NOT_YET, YES, NOT_YET),
    "configmap://name/.key": (NOT_YET, YES, NOT_YET),
    "configmap://name": (NOT_YET, BAD, NOT_YET),
    "configmap://name/": (NOT_YET, BAD, NOT_YET),
    "configmap://name/a/b": (NOT_YET, BAD, NOT_YET),
    "configmap://name/..": (NOT_YET, BAD, NOT_YET),
    "configmap://name/a b": (NOT_YET, BAD, NOT_YET),
    "configmap:///key": (NOT_YET, BAD, NOT_YET),
    "configmap://Name/key": (NOT_YET, BAD, NOT_YET),
    # what nobody reads yet
    **{f"{scheme}://{rest}": (NOT_YET, NOT_YET, NOT_YET) for scheme in ("s3", "gs", "az", "https", "oci")
       for rest in ("", "bucket", "bucket/path", "bucket/../path")},
    # schemes of nobody
    "S3://bucket/x": (BAD, BAD, BAD),
    "s3:/x": (BAD, BAD, BAD),
    "s3:x": (BAD, BAD, BAD),
    "https:x": (BAD, BAD, BAD),
    "http://host/x": (BAD, BAD, BAD),
    "file:///x": (BAD, BAD, BAD),
    "ftp://host/x": (BAD, BAD, BAD),
    "path:///x": (BAD, BAD, BAD),
    "ollama:qwen": (BAD, BAD, BAD),
    "://x": (BAD, BAD, BAD),
    ":": (BAD, BAD, BAD),
    # paths
    "rows.jsonl": (YES, YES, NOT_KEPT),
    "./a:b": (YES, YES, NOT_KEPT),
    "../models/here": (YES, YES, NOT_KEPT),
    "/data/my rows #1?.jsonl": (YES, YES, NOT_KEPT),
    "/": (YES, YES, NOT_KEPT),
    "..": (YES, YES, NOT_KEPT),
    "a\nb": (BAD, BAD, (BAD, NOT_KEPT)),
    "/a\tb": (BAD, BAD, (BAD, NOT_KEPT)),
    "/rows/\u2066x": (BAD, BAD, (BAD, NOT_KEPT)),
}  # fmt: skip
COLUMN = {uris.MODEL: 0, uris.ADAPTER: 0, uris.ROWS: 1, uris.OUTPUT: 2}
CELLS = [(key, text) for key in uris.KEYS for text in TABLE]


def naming(key: str, text: str) -> Json:
    """A job that names one URI by one key."""
    return resource(WITHOUT_NAMES[key] | {key: text})


@pytest.mark.parametrize("key", uris.KEYS)
@pytest.mark.parametrize("text", TABLE)
def test_a_uri_is_taken_or_refused_with_the_way_out(key: str, text: str) -> None:
    verdict = TABLE[text][COLUMN[uris.KEYS[key]]]
    found = check.problems(naming(key, text))
    assert [(p.path, p.reason) for p in found] == [
        (f"spec.{key}", reason) for reason in ((verdict,) if isinstance(verdict, str) else verdict) if reason
    ]
    for problem in found:
        assert problem.message.endswith(f"Given: {key} = {text!r}.")
        assert problem.reason == NOT_KEPT or uris.KEYS[key].phrase in problem.message
        assert problem.remedy


def test_the_server_says_the_same(refusal: Refusal) -> None:
    def differ(cell: tuple[str, str]) -> str:
        job = naming(*cell)
        said = disagreement(check.problems(job), refusal(job))
        return f"{cell}: {said}" if said else ""

    with ThreadPoolExecutor(4) as pool:
        assert [said for said in pool.map(differ, CELLS) if said] == []


@pytest.mark.parametrize("use", COLUMN, ids=lambda use: use.phrase)
def test_what_is_accepted_can_be_parsed_and_nothing_else(use: uris.Use) -> None:
    key = next(key for key, each in uris.KEYS.items() if each is use)
    texts = [*TABLE, *(drawn(seed) for seed in range(20000))]
    accepted = 0
    for text in texts:
        refused = {p.reason for p in check.problems(naming(key, text))} & {NOT_YET, BAD}
        said = refusal_of(use, text)
        assert bool(said) == bool(refused), text
        assert not said or (repr(text) in said and use.phrase in said)
        accepted += not said
    assert len(texts) / 20 < accepted < len(texts) / 2, "the drawn URIs miss one half of the question"


def refusal_of(use: uris.Use, text: str) -> str:
    try:
        use.parse(text)
    except ValueError as error:
        return str(error)
    return ""


def drawn(seed: int) -> str:
    """A URI put together from pieces, right more often than by chance."""
    draw = random.Random(seed)
    pieces = ["a", "b-1", "..", ".", "/", "//", ":", "@", "#", "%", " ", "\n", "A", "é", "_", "-", "org/name", "x"]
    starts = [f"{scheme}://{name}" for scheme in Scheme for name in ("", "c/")]
    start = draw.choice(["", "", "pvc:/", "S3://", *starts])
    return (start + "".join(draw.choices(pieces, k=draw.choice((0, 1, 1, 2, 3, 5))))) or "a"


@pytest.mark.parametrize(
    ("use", "text", "source"),
    [
        (uris.MODEL, "org/name@v2", uris.Source(Scheme.HUB, "org/name", "", "v2")),
        (uris.MODEL, "hf://org/name", uris.Source(Scheme.HUB, "org/name", "")),
        (uris.MODEL, "pvc://c", uris.Source(Scheme.PVC, "c", "")),
        (uris.MODEL, "a/b/c", uris.Source(Scheme.PATH, "", "a/b/c")),
        (uris.ROWS, "org/name", uris.Source(Scheme.PATH, "", "org/name")),
        (uris.ROWS, "pvc://c/a/b@c", uris.Source(Scheme.PVC, "c", "a/b@c")),
        (uris.ROWS, "configmap://m/k", uris.Source(Scheme.CONFIG_MAP, "m", "k")),
        (uris.OUTPUT, "pvc://c/out/", uris.Source(Scheme.PVC, "c", "out/")),
    ],
    ids=str,
)
def test_a_uri_is_taken_apart(use: uris.Use, text: str, source: uris.Source) -> None:
    assert use.parse(text) == source


def test_every_key_that_holds_a_uri_is_in_the_table() -> None:
    texts = {key.path for key in key_table.declared() if key.fate is Fate.HONOURED and _length(key.path) == (1, 1024)}
    assert texts <= set(uris.KEYS)
    assert {"job.data", "output.uri"} <= texts


def _length(path: str) -> tuple[int | None, int | None]:
    node = key_table.spec()
    for name in path.split("."):
        node = node["properties"][name.removesuffix("[]")]
        node = node.get("items", node) if name.endswith("[]") else node
    return node.get("minLength"), node.get("maxLength")
