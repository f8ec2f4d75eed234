"""The Python client and `re4 retrieve`."""
