"""The embedded broker: a real single-node Apache Kafka on loopback, for whoever names no cluster of his own."""

from featurestream.broker.process import BrokerStatus, EmbeddedBroker

__all__ = ["BrokerStatus", "EmbeddedBroker"]
