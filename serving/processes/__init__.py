"""The processes of a server: the supervisor, its workers and what they send each other."""
