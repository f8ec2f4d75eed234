"""Training on several ranks, started by torchrun: item table in shards, encoder on every rank."""
