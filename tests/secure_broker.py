"""A Kafka broker with TLS, SCRAM and ACLs, from the embedded broker's jars: what a cluster of somebody else's is like.

Its four listeners take the four protocols; whoever comes by the plain one is anonymous, and may do everything.
"""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AclBinding, AdminClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from featurestream.broker.config import broker_command, format_command, server_properties
from featurestream.broker.jars import install_jars, jar_folder, locked_jars
from featurestream.broker.java import find_java
from featurestream.cluster import Cluster
from tests.project.conftest import free_ports

READY_S = 60.0
PROTOCOLS = ("SASL_SSL", "SSL", "SASL_PLAINTEXT")


@dataclass(frozen=True)
class SecureBroker:
    """Where it is, what signs its certificate, and its users' passwords."""

    addresses: Mapping[str, str]
    ca: Path
    passwords: Mapping[str, str]

    @property
    def admin(self) -> Cluster:
        """The cluster for one who may do everything, on the plain listener."""
        return Cluster(self.addresses["PLAINTEXT"])

    def properties(self, user: str, **changes: str) -> dict[str, str]:
        """Return what a client properties file of a user holds, the address included."""
        return {
            "bootstrap.servers": self.addresses["SASL_SSL"],
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": self.passwords[user],
            "ssl.ca.location": str(self.ca),
        } | {key.replace("_", "."): value for key, value in changes.items()}

    def write_properties(self, path: Path, user: str, **changes: str) -> Path:
        """Write such a file, for its owner alone."""
        lines = [f"{key}={value}\n" for key, value in self.properties(user, **changes).items()]
        path.touch(mode=0o600)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    def grant(self, bindings: Iterable[AclBinding]) -> None:
        """Add ACLs, and return when the broker goes by them."""
        client = AdminClient({"bootstrap.servers": self.addresses["PLAINTEXT"]}, logger=_Silent())
        wanted = list(bindings)
        for answer in client.create_acls(wanted).values():
            answer.result()


def make_ca(folder: Path, name: str = "ca") -> tuple[Path, ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Write a certificate authority's certificate; return its path, key and certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("featurestream's tests", key, "featurestream's tests", key, authority=True)
    path = folder / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path, key, certificate


@contextmanager
def secure_broker(home: Path, passwords: Mapping[str, str]) -> Iterator[SecureBroker]:
    """Start such a broker in ``home`` for the users in ``passwords``; it is gone when the block ends."""
    ca, ca_key, ca_certificate = make_ca(home)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("127.0.0.1", key, "featurestream's tests", ca_key, authority=False)
    (home / "server.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
        + ca_certificate.public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip
    plain, controller, *others = free_ports(2 + len(PROTOCOLS))
    addresses = {"PLAINTEXT": f"127.0.0.1:{plain}"}
    addresses |= {name: f"127.0.0.1:{port}" for name, port in zip(PROTOCOLS, others, strict=True)}
    (home / "server.properties").write_text(_properties(plain, controller, addresses), encoding="utf-8")
    java, jars = find_java(), install_jars(locked_jars(), jar_folder())
    scram = [f"SCRAM-SHA-512=[name={name},password={password}]" for name, password in passwords.items()]
    formatting = [*format_command(java, jars), *(word for one in scram for word in ("--add-scram", one))]
    subprocess.run(formatting, cwd=home, check=True, capture_output=True, timeout=READY_S)
    with (home / "broker.log").open("wb") as log:
        process = subprocess.Popen(
            broker_command(java, jars, "-Dfeaturestream.tests=secure"), cwd=home, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait_ready(process, addresses["PLAINTEXT"], home / "broker.log")
        yield SecureBroker(addresses, ca, passwords)
    finally:
        process.kill()
        process.wait()


def _properties(plain: int, controller: int, addresses: Mapping[str, str]) -> str:
    listeners = ",".join(f"{name}://{address}" for name, address in addresses.items())
    protocols = ",".join(f"{name}:{name}" for name in addresses)
    ours = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{protocols}",
    }
    lines = [line for line in server_properties(plain, controller).splitlines() if line.partition("=")[0] not in ours]
    lines += [f"{key}={value}" for key, value in ours.items()]
    module = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    lines += [
        "sasl.enabled.mechanisms=SCRAM-SHA-512",
        *(
            f"listener.name.{name.lower()}.scram-sha-512.sasl.jaas.config={module}"
            for name in addresses
            if name.startswith("SASL")
        ),
        "ssl.keystore.type=PEM",
        "ssl.keystore.location=server.pem",
        "ssl.truststore.type=PEM",
        "ssl.truststore.location=ca.pem",
        "ssl.client.auth=none",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS",
    ]
    return "\n".join(lines) + "\n"


def _wait_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    client = AdminClient({"bootstrap.servers": address}, logger=_Silent())
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            client.list_topics(timeout=0.5)
        except KafkaException:
            continue
        return
    raise AssertionError(f"not ready after {READY_S} s: {log.read_text(errors='replace')[-3000:]}")


class _Silent:
    def log(self, *_: object) -> None:
        pass


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    places = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(places), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
