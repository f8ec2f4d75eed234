"""Settings as fields of a dataclass, read from options, the environment and a file."""
