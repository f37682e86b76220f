"""The command line: thin, and the only place that sees all programs."""
