"""Modules that every folder may import: errors, files, locks, console."""
