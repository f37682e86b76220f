"""The consumer: reads a stream of features and trains heads on it."""
