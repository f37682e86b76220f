"""The log on Apache Kafka: the only package that imports the Kafka client."""
