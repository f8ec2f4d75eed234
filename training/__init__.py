"""From event logs to a trained run. See README.md in this folder.

Shape suffixes of the files here: B batch, L history length, K interests, D embedding,
H attention width, N items of the catalogue, M sampled negatives, U users, E events, Q queries.
"""
