"""The load generator: schedules, transports, worker processes, call statistics."""
