"""From event logs to a prepared data set. See README.md in this folder."""

DEFAULT_MIN_EVENTS = 5
DEFAULT_MAX_USER_EVENTS = 10_000
DEFAULT_SEED = 0
