"""Settings as fields of a dataclass, read from flags, the environment and a file."""
