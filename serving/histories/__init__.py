"""The newest events of each user, by user id: stores, durable recording, look-ups, and the event log."""
