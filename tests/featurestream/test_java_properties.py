"""featurestream.kafka.java_properties: a client.properties for Kafka's own tools serves here, or is explained."""

from __future__ import annotations

import pytest

from featurestream.errors import UsageError
from featurestream.kafka.java_properties import translated

SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required"


@pytest.mark.parametrize(
    ("java", "ours"),
    [
        ({"security.protocol": "SASL_SSL", "acks": "all"}, {"security.protocol": "SASL_SSL", "acks": "all"}),
        (
            {"sasl.jaas.config": f'{SCRAM} username="ada" password="hunter2";'},
            {"sasl.username": "ada", "sasl.password": "hunter2"},
        ),
        (
            {"sasl.jaas.config": "a.b.PlainLoginModule required\n  password='it is \\'it\\''\n  username=ada ;"},
            {"sasl.username": "ada", "sasl.password": "it is 'it'"},
        ),
        (
            {"sasl.jaas.config": f'{SCRAM} username="a;b" password="x=\\"y\\\\z";'},
            {"sasl.username": "a;b", "sasl.password": 'x="y\\z'},
        ),
        (
            {"sasl.jaas.config": f'{SCRAM} username="ada" password="old";', "sasl.password": "from the environment"},
            {"sasl.username": "ada", "sasl.password": "from the environment"},
        ),
        ({"ssl.endpoint.identification.algorithm": ""}, {"ssl.endpoint.identification.algorithm": "none"}),
        ({"ssl.endpoint.identification.algorithm": "https"}, {"ssl.endpoint.identification.algorithm": "https"}),
        ({"ssl.truststore.type": "PEM", "ssl.truststore.location": "/ca.pem"}, {"ssl.ca.location": "/ca.pem"}),
        ({"ssl.truststore.certificates": "-----BEGIN"}, {"ssl.ca.pem": "-----BEGIN"}),
        (
            {"ssl.keystore.type": "PEM", "ssl.keystore.location": "/me.pem", "ssl.key.password": "x"},
            {"ssl.key.location": "/me.pem", "ssl.certificate.location": "/me.pem", "ssl.key.password": "x"},
        ),
        (
            {"ssl.keystore.type": "PKCS12", "ssl.keystore.location": "/me.p12", "ssl.keystore.password": "x"},
            {"ssl.keystore.location": "/me.p12", "ssl.keystore.password": "x"},
        ),
        ({"ssl.keystore.key": "k"}, {"ssl.key.pem": "k"}),
        ({"ssl.keystore.certificate.chain": "c"}, {"ssl.certificate.pem": "c"}),
    ],
)  # fmt: skip
def test_what_has_an_equal_is_mapped(java: dict[str, str], ours: dict[str, str]) -> None:
    assert translated(java) == ours


@pytest.mark.parametrize(
    ("java", "said"),
    [
        ({"ssl.truststore.location": "/trust.jks"}, r'truststore\.location" belongs to .*keytool -exportcert'),
        ({"ssl.truststore.type": "JKS", "ssl.truststore.location": "/t.jks"}, "keytool"),
        ({"ssl.truststore.password": "x"}, "has no password: leave it out"),
        ({"ssl.keystore.type": "JKS", "ssl.keystore.location": "/me.jks"}, "no key store of type JKS; .*PKCS12"),
        ({"ssl.enabled.protocols": "TLSv1.3"}, "leave it out"),
        ({"sasl.login.callback.handler.class": "X"}, r"sasl\.oauthbearer\.token\.endpoint\.url"),
        ({"value.deserializer": "X"}, "format of their own"),
        ({"sasl.jaas.config": "a.OAuthBearerLoginModule required clientId=x;"}, "login module OAuthBearerLoginModule"),
        ({"sasl.jaas.config": f"{SCRAM} username=ada;"}, "no username and password"),
        ({"sasl.jaas.config": "nonsense"}, "login module none"),
        ({"sasl.jaas.config": ""}, "login module none"),
    ],
)  # fmt: skip
def test_what_has_no_equal_is_explained(java: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        translated(java)


@pytest.mark.parametrize(
    "jaas", ["hunter2", f"{SCRAM} password=hunter2;", "a.Krb5LoginModule required keyTab=hunter2;"]
)
def test_a_refused_login_configuration_is_not_shown(jaas: str) -> None:
    with pytest.raises(UsageError) as caught:
        translated({"sasl.jaas.config": jaas})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.facts)
