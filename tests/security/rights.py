"""The ACL sets of docs/security.md, as it prints them, and each of them without one right."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import Final

from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType

from tests.project.documents import ROOT, fenced

STREAM: Final = "photos"  # the document's
ROLES: Final = ("producer", "trainer", "viewer", "requester")
OPERATIONS: Final = {
    "Create": AclOperation.CREATE, "Read": AclOperation.READ, "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE, "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}  # fmt: skip


@dataclass(frozen=True)
class Grant:
    """One operation that a user may do on the topics or groups of a name, or of names that begin so."""

    user: str
    operation: str
    kind: str
    name: str
    prefixed: bool = True

    def __str__(self) -> str:
        return f"{self.operation} on the {self.kind} {self.name}"

    def binding(self) -> AclBinding:
        """Return it as the client library has it."""
        kind = ResourceType.TOPIC if self.kind == "topic" else ResourceType.GROUP
        pattern = ResourcePatternType.PREFIXED if self.prefixed else ResourcePatternType.LITERAL
        allow = AclPermissionType.ALLOW
        return AclBinding(kind, self.name, pattern, f"User:{self.user}", "*", OPERATIONS[self.operation], allow)


def documented(role: str) -> list[Grant]:
    """Return what the orders in docs/security.md grant to a role."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    found = []
    for block in fenced(text, "console"):
        for order in re.findall(r"^\$ kafka-acls\.sh (.*?)(?=^\$|\Z)", block, re.DOTALL | re.MULTILINE):
            words = shlex.split(order.replace("\\\n", " "))
            options = [(words[at], words[at + 1]) for at in range(len(words) - 1) if words[at].startswith("--")]
            (user,) = [value.removeprefix("User:") for name, value in options if name == "--allow-principal"]
            (place,) = [(name[2:], value) for name, value in options if name in ("--topic", "--group")]
            prefixed = ("--resource-pattern-type", "prefixed") in options
            found += [Grant(user, value, *place, prefixed) for name, value in options if name == "--operation"]
    return [grant for grant in found if grant.user == role]


def granted_to(user: str, grants: list[Grant], stream: str = STREAM) -> list[Grant]:
    """Return a role's grants for a user, on another stream than the document's."""
    return [replace(grant, user=user, name=grant.name.replace(STREAM, stream, 1)) for grant in grants]


def without(grants: list[Grant], operation: str, name: str) -> list[Grant]:
    """Return grants without one of them."""
    kept = [grant for grant in grants if (grant.operation, grant.name) != (operation, name)]
    assert len(kept) == len(grants) - 1, f"there is no {operation} on {name}"
    return kept
