"""What holds for every test: the same examples every time, one thread, no limit on how long one takes."""

import os

# Read by polars when it is first imported, so it comes before everything else.
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hardening", "proofs that the server is hard to hurt (tests/hardening)")
    group.addoption(
        "--hardening",
        choices=("short", "long"),
        default="short",
        help="Size of the proofs: short (default, with the other tests) or long (make harden).",
    )
    group.addoption(
        "--hardening-report", metavar="FILE", default=None, help="Where to write the proofs' figures as JSON."
    )
