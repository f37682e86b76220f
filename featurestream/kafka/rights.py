"""The rights that an ACL gives, by Kafka's names: what is missing when a cluster refuses, and who can give it.

A cluster says that it refuses, and not which right is missing: who asks knows which one the question takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operation = Literal["Read", "Write", "Create", "Delete", "Describe", "DescribeConfigs"]
Kind = Literal["topic", "group"]


@dataclass(frozen=True, slots=True)
class Right:
    """One operation on one topic or group."""

    operation: Operation
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.operation} on the {self.kind} {self.name}"

    @property
    def advice(self) -> str:
        """What to do where it is missing: the order that grants it, for whoever runs the cluster."""
        return (
            "whoever runs the cluster grants it with: kafka-acls.sh --add --allow-principal User:LOGIN "
            f"--operation {self.operation} --{self.kind} {self.name}; what each program needs: docs/security.md"
        )
