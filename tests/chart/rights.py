"""What an account may do by its roles, and what it did by the audit log: two sets of the same shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from builders import Json
from testbed.api import Api

RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Access(NamedTuple):
    """A verb on a resource, as it is allowed by one rule, or as it was asked for by one request."""

    verb: str
    group: str
    resource: str
    """With its subresource: pods/log."""
    namespace: str
    """Empty: the whole cluster."""
    name: str
    """Empty: any, or none."""

    def covers(self, asked: Access) -> bool:
        same = self[:3] == asked[:3]
        return same and self.namespace in ("", asked.namespace) and self.name in ("", asked.name)

    def __str__(self) -> str:
        kind = ".".join(filter(None, (self.resource, self.group)))
        return " ".join(filter(None, (self.verb, kind, self.name, self.namespace and f"in {self.namespace}")))


def allowed(api: Api, namespace: str, account: str) -> set[Access]:
    """What the bindings that name a ServiceAccount allow it."""
    found: set[Access] = set()
    for binding in [*api.items(f"{RBAC}/clusterrolebindings"), *api.items(f"{RBAC}/rolebindings")]:
        who = {(s["kind"], s.get("namespace"), s["name"]) for s in binding.get("subjects", [])}
        if ("ServiceAccount", namespace, account) in who:
            found.update(_granted(api, binding))
    return found


def _granted(api: Api, binding: Json) -> Iterator[Access]:
    where, role = binding["metadata"].get("namespace", ""), binding["roleRef"]
    path = f"{RBAC}/clusterroles" if role["kind"] == "ClusterRole" else f"{RBAC}/namespaces/{where}/roles"
    for rule in api.get(f"{path}/{role['name']}")["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames") or [""]:
                        yield Access(verb, group, resource, where, name)


def asked(requests: Iterable[Json], user: str) -> set[Access]:
    """What a user asked for, whatever the answer was."""
    return {_access(entry) for entry in requests if entry["user"]["username"] == user}


def denied(requests: Iterable[Json], user: str) -> list[str]:
    """What a user was denied by its roles or by admission, with the server's words."""
    said = {
        f"{_access(entry)}: {entry['responseStatus'].get('message', '')}"
        for entry in requests
        if entry["user"]["username"] == user and entry["responseStatus"]["code"] in (401, 403)
    }
    return sorted(said)


def _access(entry: Json) -> Access:
    target = entry["objectRef"]
    resource = "/".join(target[k] for k in ("resource", "subresource") if k in target)
    return Access(
        entry["verb"], target.get("apiGroup", ""), resource, target.get("namespace", ""), target.get("name", "")
    )
