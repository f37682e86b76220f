"""The log on Apache Kafka: the only package that imports the Kafka client."""

from featurestream.kafka.log import KafkaLog
from featurestream.kafka.sink import KafkaSink
from featurestream.kafka.source import KafkaLaneReader, KafkaSource

__all__ = ["KafkaLaneReader", "KafkaLog", "KafkaSink", "KafkaSource"]
