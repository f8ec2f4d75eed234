"""Every proof has two sizes: short with the other tests, long by `make harden`, with a table of figures."""

from pathlib import Path

import pytest
from findings import Findings

FINDINGS = pytest.StashKey[Findings]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FINDINGS] = Findings(size=config.getoption("--hardening"))


@pytest.fixture(scope="session")
def findings(request: pytest.FixtureRequest) -> Findings:
    """Where a proof puts its figures."""
    return request.config.stash[FINDINGS]


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether the proofs run at the size that they are stated for."""
    return request.config.getoption("--hardening") == "long"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the state machine for few seeds, or for more; they take the transports in turn."""
    if "machine_seed" in metafunc.fixturenames:
        num_seeds = 10 if metafunc.config.getoption("--hardening") == "long" else 2
        metafunc.parametrize("machine_seed", range(num_seeds))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[FINDINGS]
    report = config.getoption("--hardening-report")
    if report is not None:
        # What a server under attack did is judged as its fixture ends: that is an error to pytest.
        reports = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
        failed = [each.nodeid for each in reports]
        found.write(Path(report), failed=failed)
    if found.size == "long" and found.findings:
        terminalreporter.section("what was proved")
        for line in found.table():
            terminalreporter.write_line(line)
