"""What a server's processes hold: memory, open files, mapped versions. Knows process ids and `/proc` only."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import psutil
from running_server import open_files

_VERSION = re.compile(r"/([0-9]{8}T[0-9]{6}Z-[0-9a-f]{8})/")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Of a process, or of it and all its descendants together."""

    num_processes: int
    rss_bytes: int
    """Resident memory; pages that several processes share count once for each."""
    pss_bytes: int
    """Resident memory; pages that several processes share are divided among them."""
    num_open_files: int
    num_mappings: int
    """Mapped regions of memory."""
    versions: frozenset[str]
    """Names of the bundle versions of which any process maps a file or holds one open."""


def footprint(pid: int, *, is_tree: bool = True) -> Footprint:
    """Look at a process tree, or at one process; processes that end meanwhile are left out."""
    rss = pss = num_files = num_mappings = num_processes = 0
    versions: set[str] = set()
    parent = psutil.Process(pid)
    for process in (parent, *(parent.children(recursive=True) if is_tree else ())):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            facts = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
            )
            held = open_files(process.pid)
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
            rss += _bytes(facts["Rss"])
            pss += _bytes(facts["Pss"])
            num_mappings += mapped.count("\n")
            num_files += len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            versions.update(_VERSION.findall(mapped + "\n".join(held)))
            num_processes += 1
    return Footprint(
        num_processes=num_processes,
        rss_bytes=rss,
        pss_bytes=pss,
        num_open_files=num_files,
        num_mappings=num_mappings,
        versions=frozenset(versions),
    )


def _bytes(text: str) -> int:
    return 1024 * int(text.split()[0])
