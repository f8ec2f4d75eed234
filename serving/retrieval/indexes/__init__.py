"""Index kinds that this server may load, and the check of a loaded index.

FAISS can deserialise dozens of types, each with its own parser. Only files that begin like a kind
of the allow-list reach FAISS (`kinds.py`); the parts inside a loaded index have an allow-list too
(`part_check.py`).
"""
