"""The metrics page of a running server, read as Prometheus reads it."""

import time
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from running_server import DEADLINE_S


class Scraped:
    """One look at the page."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as page:  # our own server
            self.families = list(text_string_to_metric_families(page.read().decode()))

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sum(sample.value for sample in self._samples(name) if labels.items() <= sample.labels.items())

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self._samples(name)]

    def _samples(self, name: str) -> list[Any]:
        return [sample for family in self.families for sample in family.samples if sample.name == name]


def scraped_with(url: str, num_calls: float) -> Scraped:
    """The page once so many calls have been counted: a call is, just after its reply was sent."""
    until = time.monotonic() + DEADLINE_S
    while (scraped := Scraped(url)).value("re4_calls_total") < num_calls and time.monotonic() < until:
        time.sleep(0.02)
    return scraped
