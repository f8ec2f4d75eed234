"""Versions in object storage: a push writes them, mirrors on other machines follow them."""
