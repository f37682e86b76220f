"""The program between HTTP and Kafka: streams, rows, experiments and pictures for whoever speaks HTTP."""
