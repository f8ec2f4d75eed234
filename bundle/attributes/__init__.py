"""Catalogue attributes in a version: columns, writer, reader."""
