"""Properties of the Java client in the client library's terms: what has an equal is mapped, the rest is explained.

Clusters are handed out with a ``client.properties`` for Kafka's own tools, which are Java; librdkafka, which reads and
writes here, has other names for logins and certificates, and reads PEM and PKCS#12 but no JKS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from featurestream.errors import UsageError

#: The same under another name.
RENAMED: Final[dict[str, str]] = {
    "ssl.truststore.certificates": "ssl.ca.pem",
    "ssl.keystore.certificate.chain": "ssl.certificate.pem",
    "ssl.keystore.key": "ssl.key.pem",
}

_PEM: Final = (
    "export the certificates as PEM (keytool -exportcert -rfc -keystore FILE -alias NAME -file ca.pem) and put "
    "ssl.ca.location=ca.pem"
)
#: What has no equal, and what to do about it.
EXPLAINED: Final[dict[str, str]] = {
    "sasl.jaas.config": "put sasl.username and sasl.password",
    "ssl.truststore.location": _PEM,
    "ssl.truststore.password": "a PEM file has no password: leave it out",
    "ssl.truststore.type": f"leave it out; {_PEM}",
    "ssl.keystore.type": "put ssl.certificate.location and ssl.key.location (PEM), or ssl.keystore.location (PKCS#12)",
    "ssl.protocol": "the newest TLS that both sides have is taken: leave it out",
    "ssl.enabled.protocols": "the newest TLS that both sides have is taken: leave it out",
    "ssl.provider": "leave it out",
    "ssl.trustmanager.algorithm": "leave it out",
    "ssl.keymanager.algorithm": "leave it out",
    "ssl.secure.random.implementation": "leave it out",
    "sasl.login.class": "leave it out",
    "sasl.login.callback.handler.class": "OAUTHBEARER takes sasl.oauthbearer.method=oidc, "
    "sasl.oauthbearer.client.id, sasl.oauthbearer.client.secret and sasl.oauthbearer.token.endpoint.url",
    "sasl.client.callback.handler.class": "leave it out",
    "key.serializer": "records have a format of their own: leave it out",
    "value.serializer": "records have a format of their own: leave it out",
    "key.deserializer": "records have a format of their own: leave it out",
    "value.deserializer": "records have a format of their own: leave it out",
}

_JAAS: Final = re.compile(r"\s*([\w.$]+)\s+(?:required|requisite|sufficient|optional)\s+(.*?)\s*;?\s*", re.DOTALL)
_OPTION: Final = re.compile(r"""([\w.]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'|([^\s"';]+))""")
_PASSWORD_MODULES: Final = ("PlainLoginModule", "ScramLoginModule")


def translated(properties: Mapping[str, str]) -> dict[str, str]:
    """Return the properties by librdkafka's names; those that are already so stay as they are.

    Raises UsageError for one that has no equal, with what to put instead. No message shows a value that may be secret.
    """
    found = dict(properties)
    for java, ours in RENAMED.items():
        if java in found:
            found[ours] = found.pop(java)
    if "sasl.jaas.config" in found:
        username, password = _login(found.pop("sasl.jaas.config"))
        found = {"sasl.username": username, "sasl.password": password} | found
    if found.get("ssl.endpoint.identification.algorithm") == "":
        found["ssl.endpoint.identification.algorithm"] = "none"
    if found.get("ssl.truststore.type", "").upper() == "PEM" and "ssl.truststore.location" in found:
        del found["ssl.truststore.type"]
        found["ssl.ca.location"] = found.pop("ssl.truststore.location")
    kind = found.pop("ssl.keystore.type", "PKCS12" if "ssl.keystore.location" in found else None)
    if kind is not None and kind.upper() == "PEM" and "ssl.keystore.location" in found:
        # One file holds the key and the certificates.
        found["ssl.key.location"] = found["ssl.certificate.location"] = found.pop("ssl.keystore.location")
    elif kind is not None and kind.upper() not in ("PKCS12", "PEM"):
        raise UsageError(
            f"the Kafka client reads no key store of type {kind}",
            hint="make it PKCS#12 (keytool -importkeystore -srckeystore FILE -destkeystore client.p12 -deststoretype "
            "PKCS12) and put ssl.keystore.location=client.p12 and ssl.keystore.type=PKCS12",
            key="ssl.keystore.type",
        )
    check_known(found)
    return found


def check_known(properties: Mapping[str, str]) -> None:
    """Raise UsageError for a property that only the Java client has, with what to put instead."""
    for key in properties:
        advice = EXPLAINED.get(key)
        if advice is not None:
            raise UsageError(
                f'the Kafka property "{key}" belongs to the Java client', hint=f"for librdkafka: {advice}", key=key
            )


def _login(jaas: str) -> tuple[str, str]:
    """Return the user's name and password in a JAAS configuration, which is a secret as a whole."""
    whole = _JAAS.fullmatch(jaas)
    module = whole[1].rpartition(".")[2] if whole else "none"
    options = (
        {name: _unescaped(double or single or bare) for name, double, single, bare in _OPTION.findall(whole[2])}
        if whole
        else {}
    )
    if module not in _PASSWORD_MODULES or not {"username", "password"} <= options.keys():
        raise UsageError(
            f'the Kafka property "sasl.jaas.config" (login module {module}) has no username and password',
            hint=f"expected a PlainLoginModule or ScramLoginModule; for OAUTHBEARER, "
            f"{EXPLAINED['sasl.login.callback.handler.class'].partition(' takes ')[2]}",
            key="sasl.jaas.config",
        )
    return options["username"], options["password"]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
