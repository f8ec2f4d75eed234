"""Indexes in Milvus: a version's index as a collection on another machine."""
