"""Where models, rows and results live: one URI grammar, and one table of what each key takes today.

The rules, and with them the CRD, follow this table; the plan, the command line and the trainer parse with it.
So every URI that is accepted can be parsed and read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from finetune_api.resource import aliases

from .predicates import matches


class Scheme(StrEnum):
    PATH = "path"
    """A file or folder inside the pod, or here for `finetune run`."""
    HUB = "hf"
    """Hugging Face Hub."""
    PVC = "pvc"
    """A PersistentVolumeClaim of the job's namespace."""
    CONFIG_MAP = "configmap"
    """A ConfigMap of the job's namespace, for small data."""
    S3 = "s3"
    GCS = "gs"
    AZURE = "az"
    HTTPS = "https"
    OCI = "oci"


@dataclass(frozen=True)
class Source:
    """A parsed URI."""

    scheme: Scheme
    name: str
    """Claim, ConfigMap or org/name; empty for a path."""
    path: str
    """Inside of it; for a path, the whole of it."""
    revision: str = ""


class Form(NamedTuple):
    """How a URI of one scheme is written where one kind of thing is named."""

    syntax: str
    pattern: str
    """Syntax common to Python, RE2 and ECMAScript, without anchors."""


@dataclass(frozen=True, eq=False)
class Use:
    """What a URI names, and every form in which that can be written today."""

    phrase: str
    """Start of a sentence that ends with the forms."""
    instead: str
    """The remedy for a scheme that is not supported here yet."""
    forms: Mapping[Scheme, Form]
    """In the order in which they are tried."""

    def parse(self, text: str) -> Source:
        """Raises ValueError, with the value and what is accepted, for what admission refuses."""
        scheme = next((s for s, form in self.forms.items() if matches(f"^({form.pattern})$", text)), None)
        if scheme is None:
            known = matches(self.unread_pattern, text)
            message, remedy = (self.unread_message, self.instead) if known else (self.bad_message, BAD_REMEDY)
            raise ValueError(f"{text!r} is refused. {message} {remedy}")
        if scheme is Scheme.PATH:
            return Source(scheme, "", text)
        rest = text.removeprefix(f"{scheme}://")
        if scheme is Scheme.HUB:
            name, _, revision = rest.partition("@")
            return Source(scheme, name, "", revision)
        name, _, path = rest.partition("/")
        return Source(scheme, name, path)

    @property
    def unread(self) -> tuple[Scheme, ...]:
        """Known schemes that are not supported here yet."""
        return tuple(scheme for scheme in Scheme if scheme not in self.forms)

    @property
    def unread_pattern(self) -> str:
        return f"^({'|'.join(self.unread)})://"

    @property
    def good_pattern(self) -> str:
        """What is well-formed. A scheme that is not supported yet is refused by a rule of its own."""
        forms = "|".join(form.pattern for form in self.forms.values())
        return f"^({forms}|({'|'.join(self.unread)})://.*)$"

    @property
    def unread_message(self) -> str:
        return f"{_listed([f'{s}://' for s in self.unread], 'and')} are not supported here yet: {self._accepted}"

    @property
    def bad_message(self) -> str:
        return f"This URI is not valid here: {self._accepted}"

    @property
    def _accepted(self) -> str:
        return f"{self.phrase} {_listed([form.syntax for form in self.forms.values()], 'or')}."


BAD_REMEDY = (
    "Write one of these: scheme and name in lower case, no '..', and no spaces, '#', '?' or '%' after a scheme. "
    "For file:///x write /x."
)

_UNSEEN = "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
"""Invisible, or they change the order of others. Not escaped, because each syntax would escape them otherwise."""
_CHARACTER = rf"[^\x00-\x20\x7f{_UNSEEN}#%?/]"
_SEGMENT = rf"\.*[^\x00-\x20\x7f{_UNSEEN}#%?/.]{_CHARACTER}*"
"""Of a path on a claim: not empty, and neither . nor .., which would leave the claim."""
_OBJECT = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
"""A name of Kubernetes."""
_REPOSITORY_PART = r"[A-Za-z0-9_]+((\.|-|\.-|-\.)[A-Za-z0-9_]+)*"
_REVISION = r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*"

_PATH = Form("a plain path", rf"[^\x00-\x1f\x7f{_UNSEEN}:/]*(/[^\x00-\x1f\x7f{_UNSEEN}]*)?")
_HUB = Form("org/name of the Hugging Face Hub (also hf://org/name, and with @revision)",
            rf"(hf://)?{_REPOSITORY_PART}/{_REPOSITORY_PART}(@{_REVISION})?")  # fmt: skip
_FOLDER = Form("pvc://CLAIM/FOLDER", rf"pvc://{_OBJECT}(/{_SEGMENT})*/?")
_FILE = Form("pvc://CLAIM/FILE", rf"pvc://{_OBJECT}(/{_SEGMENT})+")
_CONFIG_MAP = Form("configmap://NAME/KEY", rf"configmap://{_OBJECT}/\.?[-_A-Za-z0-9][-._A-Za-z0-9]{{0,251}}")

MODEL = Use("a model is read from", "Copy the model to a claim and name it there.",
            {Scheme.HUB: _HUB, Scheme.PVC: _FOLDER, Scheme.PATH: _PATH})  # fmt: skip
ADAPTER = Use("an adapter is read from", "Copy the adapter to a claim and name it there.", MODEL.forms)
ROWS = Use("rows are read from",
           "Copy the file to a claim; `finetune submit --dataset FILE` uploads training rows.",
           {Scheme.PVC: _FILE, Scheme.CONFIG_MAP: _CONFIG_MAP, Scheme.PATH: _PATH})  # fmt: skip
OUTPUT = Use("results are written to", "Write the result to a claim; `finetune fetch` downloads it.",
             {Scheme.PVC: _FOLDER, Scheme.PATH: _PATH._replace(syntax="a plain path of a local run")})  # fmt: skip

KEYS: Mapping[str, Use] = {
    **dict.fromkeys(aliases.MODEL, MODEL),
    "training.lora.from": ADAPTER,
    **dict.fromkeys((*aliases.DATA, "data.validation_path"), ROWS),
    "output.uri": OUTPUT,
}
"""Every key that holds a URI, relative to spec."""


def _listed(items: list[str], conjunction: str) -> str:
    *most, last = items
    return f"{', '.join(most)} {conjunction} {last}" if most else last
