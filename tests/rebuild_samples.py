"""A bundle directory with a small live version, and the input of a rebuild: vectors, ids, a catalogue."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from small_bundles import SmallVersion
from typer.testing import CliRunner

from re4.cli import build_app

NUM_ITEMS = 200
NUM_CANDIDATES = 20


class Shop:
    """A small catalogue on disk; a test may change its files before `rebuild`."""

    def __init__(self, folder: Path, **version: Any) -> None:
        self.folder = folder
        self.bundles = folder / "bundles"
        self.version = SmallVersion(**{"num_items": NUM_ITEMS, "num_golden": 40, **version})
        self.first = self.version.publish(self.bundles)
        self.vectors, self.ids = folder / "vectors.npy", folder / "ids.npy"
        np.save(self.vectors, self.version.vectors_ND)
        np.save(self.ids, np.array(self.version.ids))

    def write_catalogue(self, ids: list[Any], **columns: list[Any]) -> Path:
        """A csv file of these items."""
        rows = zip(ids, *columns.values(), strict=True)
        lines = [",".join(["item_id", *columns]), *(",".join(map(str, row)) for row in rows)]
        path = self.folder / "catalogue.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    def line(self, *options: object) -> list[str]:
        """The words of a rebuild from the vectors."""
        return rebuild_words(self.bundles, self.vectors, self.ids, *options)

    def rebuild(self, *options: object) -> tuple[BaseException | None, dict[str, Any]]:
        """Run the rebuild in this process; return its error and its report."""
        report = self.folder / "report.json"
        line = self.line("--report", report, *options)
        done = CliRunner().invoke(build_app(line), line)
        return done.exception, json.loads(report.read_text())

    def files(self) -> set[str]:
        """Everything in the bundle directory."""
        return {path.name for path in self.bundles.iterdir()}


def rebuild_words(bundles: Path, vectors: Path, ids: Path, *options: object) -> list[str]:
    """The words of a rebuild from vectors and ids."""
    words = ["rebuild", "--bundles", bundles, "--vectors", vectors, "--ids", ids]
    return [str(word) for word in (*words, "--num-candidates", NUM_CANDIDATES, *options)]
