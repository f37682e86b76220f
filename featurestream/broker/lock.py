"""``python -m featurestream.broker.lock``: write ``jars.lock`` anew, by resolving the POMs of what is named here.

Only maintainers run it, when they move to another version of Kafka; a start of the broker reads the lock and no POM.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from featurestream.broker import maven
from featurestream.broker.jars import THREADS, Jar, format_lock, sha256_of

# The broker, and a logging backend: its POM names none. slf4j's 1.7 line, because the api it pulls is 1.7.36.
ROOTS = ("org.apache.kafka:kafka_2.13:4.3.1", "org.slf4j:slf4j-simple:1.7.36")


def resolve_lock(roots: Sequence[str]) -> list[Jar]:
    """Return the jars that ``roots`` need at run time, themselves included, with the sums of what is downloaded now."""
    from jgo.parse import Endpoint

    with tempfile.TemporaryDirectory() as cache:
        context = maven.open_context(Path(cache))
        wanted = Endpoint.parse("+".join(roots)).coordinates
        dependencies = [context.create_dependency(replace(root, scope="compile")) for root in wanted]
        inputs, transitive = context.resolver.resolve(dependencies)
        artifacts = [found.artifact for found in [*inputs, *transitive] if found.scope in {"compile", "runtime"}]
        with ThreadPoolExecutor(THREADS) as pool:
            paths = list(pool.map(lambda artifact: artifact.resolve(), artifacts))
        return [
            Jar(artifact.groupId, artifact.artifactId, artifact.version, artifact.classifier, sha256_of(path))
            for artifact, path in zip(artifacts, paths, strict=True)
        ]


if __name__ == "__main__":
    jars = resolve_lock(sys.argv[1:] or ROOTS)
    Path(__file__).with_name("jars.lock").write_text(format_lock(jars), encoding="utf-8")
    sys.stdout.write(f"{len(jars)} jars\n")
