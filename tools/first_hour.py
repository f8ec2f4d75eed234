"""Go a newcomer's first hour by an installed wheel: from a shop's raw files to candidates, for three days.

    make first-hour                                    builds the wheel, and writes docs/first-hour.md
    python tools/first_hour.py --wheel re4_retrieval-….whl --work EMPTY_FOLDER --page PAGE.md

Every command is run as it is printed, in a folder of its own that knows nothing of a checkout, and its output
goes into the page. A command whose exit code is not the expected one ends the script.
"""

import argparse
import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

MAX_LINES = 16
"""Of an output on the page."""
MAX_WIDTH = 150
COMMAND_TIMEOUT_S = 1800
CATEGORIES = ("boots", "jackets", "tents", "lamps", "stoves", "ropes", "maps", "bottles", "skis", "bikes")
BRANDS = ("Acme", "Nord", "Fjell", "Summit", "Tarn", "Kuru")
NUM_USERS, NUM_ITEMS = 1200, 400
FIRST_DAY = datetime(2026, 3, 1, tzinfo=UTC)


class Shop:
    """A messy event log and catalogue, from a seed: users with two or three tastes each."""

    def __init__(self) -> None:
        self.random = Random(7)  # noqa: S311 (nothing secret)
        self.items = [self._item(number) for number in range(NUM_ITEMS)]
        self.tastes = [self.random.sample(CATEGORIES, self.random.choice((2, 3))) for _ in range(NUM_USERS)]

    def _item(self, number: int) -> dict[str, str]:
        category, brand = CATEGORIES[number % len(CATEGORIES)], self.random.choice(BRANDS)
        released = FIRST_DAY - timedelta(days=self.random.randrange(700))
        return {
            "sku": f"SKU-{number:04d}",
            "title": f"{brand} {category} {number}",
            "category": category,
            # Catalogues have holes.
            "brand": brand if self.random.random() > 0.1 else "",
            "price": f"{self.random.lognormvariate(4, 0.8):.2f}" if self.random.random() > 0.05 else "",
            "released": released.date().isoformat(),
        }

    def add_items(self, num_items: int) -> None:
        """Add new items, which no training has seen."""
        first = len(self.items)
        self.items += [self._item(number) for number in range(first, first + num_items)]

    def write_catalogue(self, path: Path) -> None:
        """Write all items but three, which the log knows and the catalogue does not."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.items[0])
            writer.writeheader()
            writer.writerows(self.items[3:])

    def write_day(self, path: Path, first: int, last: int, *, is_messy: bool) -> None:
        """Write the events of some days."""
        rows = []
        by_category = {name: [item for item in self.items if item["category"] == name] for name in CATEGORIES}
        for user, tastes in enumerate(self.tastes):
            for day in range(first, last):
                for _ in range(self.random.choice((0, 0, 1, 2))):
                    item = self.random.choice(by_category[self.random.choice(tastes)])
                    rows.append(self._event(f"u-{user}", item["sku"], day))
        if is_messy:
            rows += [self._event("robot", self.random.choice(self.items)["sku"], 3) for _ in range(20_000)]
            rows += [self._event(f"u-{user}", f"old-{user % 9}", 2) for user in range(60)]
            rows += [["", "SKU-0009", "2026-03-02T10:00:00Z", "view"]] * 25
            rows += [["u-1", "", "2026-03-02T10:00:00Z", "view"]] * 25
            rows += [["u-2", "SKU-0010", "yesterday", "view"]] * 5
            rows += [self._event("u-3", "SKU-0011", 9_000) for _ in range(7)]
        self.random.shuffle(rows)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["visitor", "sku", "at", "type"])
            writer.writerows(rows)

    def _event(self, user: str, sku: str, day: int) -> list[str]:
        at = FIRST_DAY + timedelta(days=day, seconds=self.random.randrange(86_400))
        kind = self.random.choices(("view", "buy", "search"), (8, 2, 1))[0]
        return [user, sku, at.strftime("%Y-%m-%dT%H:%M:%SZ"), kind]


CALLS = '''"""Three hundred calls by different users."""
import sys

import re4

with re4.RetrievalClient(sys.argv[1]) as client:
    replies = [client.retrieve([f"SKU-{n:04d}"], 10, user_id=f"u-{n}") for n in range(3, 303)]
canary = sum(reply.is_canary for reply in replies)
print(f"{canary} of 300 users were answered by the canary")
'''


@dataclass(kw_only=True)
class Hour:
    """Runs commands and writes them down."""

    work: Path
    bin: Path
    """With the installed `re4`."""
    lines: list[str] = field(default_factory=list)
    servers: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Write a heading or a sentence."""
        self.lines += [text, ""]
        sys.stdout.write(f"{text}\n")

    @property
    def environment(self) -> dict[str, str]:
        """What a login shell has, and the environment of the wheel first on the path."""
        kept = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LANG"))
        }
        python = str(Path(sys.executable).parent)
        path = os.pathsep.join([str(self.bin), python, "/usr/local/bin", "/usr/bin", "/bin"])
        home = {"HOME": str(self.work), "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "120"}
        return {**kept, **home, "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(self, command: str, *, code: int = 0, lines: int = MAX_LINES, until: str = "") -> str:
        """Run a command, and write down the command and what it prints.

        Args:
            command: For bash.
            code: Exit code that is expected.
            lines: Most lines of the output on the page.
            until: Repeat the command for a minute, until its output has this text.
        """
        began_s = time.monotonic()
        while True:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.work,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
            output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode(errors="replace"))
            if not until or until in output or time.monotonic() > began_s + 60:
                break
            time.sleep(0.5)
        self.write_down(command, output, time.monotonic() - began_s, lines)
        if done.returncode != code or until not in output:
            sys.exit(f"{command}\nexit code {done.returncode}, expected {code}\n{output}")
        return output

    def serve(self, command: str, ready: str) -> str:
        """Start a command that stays, and return its output once that has the text `ready`."""
        log = self.work / f"{command.split()[1]}.log"
        with log.open("wb") as file:
            self.servers.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {command}"],
                    cwd=self.work,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
        began_s = time.monotonic()
        while not re.search(ready, log.read_text()):
            if self.servers[-1].poll() is not None or time.monotonic() > began_s + 120:
                sys.exit(f"{command}\n{log.read_text()}")
            time.sleep(0.1)
        time.sleep(0.5)  # for the last lines of the log
        self.write_down(f"{command} &", log.read_text(), time.monotonic() - began_s, 8)
        return log.read_text()

    def write_down(self, command: str, output: str, seconds: float, most: int) -> None:
        """Write a command and its output, cut to a bounded length."""
        shown = [line.rstrip()[:MAX_WIDTH] for line in output.replace(str(self.work), "~").splitlines()]
        shown = [line for line in shown if line]
        if len(shown) > most:
            middle = [f"… {len(shown) - most} more lines …"]
            shown = shown[: most - most // 3] + middle + shown[len(shown) - most // 3 :]
        self.lines += ["```", f"$ {command}", *shown, "```", ""]
        if seconds > 5:
            self.lines += [f"({seconds:.0f} s)", ""]
        sys.stdout.write(f"$ {command}    ({seconds:.1f} s)\n")
        sys.stdout.flush()

    def stop(self) -> None:
        """End the commands that stay, the newest first."""
        for server in reversed(self.servers):
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def go(hour: Hour) -> None:
    """Go the whole way."""
    shop = Shop()
    logs = hour.work / "logs"
    logs.mkdir()
    shop.write_catalogue(hour.work / "catalogue.csv")
    shop.write_day(logs / "until-20.csv", 0, 20, is_messy=True)

    hour.say("## Day one: the files")
    hour.say(
        "A shop's log has a robot, empty ids, times that are none, events from the future and items that the "
        "catalogue does not know. The catalogue has holes, prices and dates."
    )
    hour.run("wc -l logs/*.csv catalogue.csv; head -3 logs/until-20.csv catalogue.csv")
    hour.say("A first try shows what is missing; each message names the next step.")
    hour.run("re4 data prepare --events logs --out data/day-1", code=1)
    columns = "--user-column visitor --item-column sku --timestamp-column at"
    hour.run(f"re4 data prepare --events logs {columns} --out data/day-1", code=1)
    hour.run("re4 train data/day-1 --out runs/day-1", code=1)
    prepare = f"re4 data prepare --events logs {columns} --event-column type --event-types view,buy"
    hour.run(f"{prepare} --drop-invalid --catalogue catalogue.csv --out data/day-1", lines=40)

    hour.say("## Day one: train, evaluate, export")
    hour.run("re4 train data/day-1 --out runs/day-1", lines=24)
    hour.run("re4 evaluate runs/day-1", lines=24)
    hour.run("re4 report runs/day-1; ls runs/day-1/report* | head", lines=8)
    hour.run("re4 export runs/day-1 --bundles bundles", lines=20)

    hour.say("## Day one: serve and ask")
    port, http, metrics, page = (free_port() for _ in range(4))
    at = f"--address 127.0.0.1:{port}"
    hour.serve(
        f"re4 serve --bundles bundles {at} --http-address 127.0.0.1:{http} "
        f"--metrics-address 127.0.0.1:{metrics} --recall-sample 1 --recall-cpu-share 1 --num-processes 1",
        r"listening on",
    )
    hour.run(f"re4 health {at}", until="SERVING")
    hour.run(f"re4 info {at}", lines=30)
    hour.run(f"re4 attributes {at}")
    history = "--history SKU-0010,SKU-0020,SKU-0013,SKU-0033"
    hour.run(f"re4 retrieve {at} {history} --num-candidates 8 --exclude-history --show brand --show price")
    hour.run(
        f"re4 retrieve {at} {history} --num-candidates 5 --filter 'price<50' "
        "--filter 'released>=2025-06-01' --drop brand=Acme --show price --show released --reasons 1"
    )
    hour.run(f"re4 retrieve {at} {history} --filter brand=Akme")
    hour.run(
        f"curl -s http://127.0.0.1:{http}/v1/retrieve -H 'Content-Type: application/json' -d "
        """'{"history": {"strings": ["SKU-0010"]}, "num_candidates": 3}'"""
    )

    hour.say("## Day one: events, new items, hidden items")
    hour.run(
        f"""for sku in SKU-0014 SKU-0024; do echo '{{"user": "u-7", "item": "'$sku'"}}'; done """
        f"| re4 ingest - {at}"
    )
    hour.run(f"re4 retrieve {at} --user-id u-7 --num-candidates 4 --exclude-history")
    item = (
        '{"id": "SKU-NEW", "attributes": {"title": "Nord stoves, the new one", "category": "stoves", '
        '"brand": "Nord", "price": 39.9, "released": "2026-03-20"}}'
    )
    (hour.work / "new.jsonl").write_text(item + "\n")
    hour.run("cat new.jsonl; re4 items add new.jsonl --bundles bundles")
    stoves = (
        f"re4 retrieve {at} {history} --filter category=stoves --filter 'price<=39.9' --filter 'price>39'"
    )
    hour.run(f"{stoves} --show price", until="the new one")
    hour.run("re4 items hide SKU-NEW --bundles bundles")
    hour.run(stoves, until="0 candidates")
    hour.run("re4 items unhide SKU-NEW --bundles bundles")

    hour.say("## Day one: judge it in a browser")
    hour.say("The page of `re4 inspect`, read by curl here; [Inspect](inspect.md) has pictures.")
    hour.serve(f"re4 inspect {at} --data data/day-1 --listen 127.0.0.1:{page} --no-open", r"the page is at")
    hour.run(
        f"curl -s 'http://127.0.0.1:{page}/?h=SKU-0010&h=SKU-0013' | sed -e 's/<[^>]*>/ /g' | tr -s ' \\n' | "
        "grep -iE 'candidates|nearly|distinct|attends|recall' | head -8",
        lines=10,
    )

    hour.say("## Day two")
    hour.say("A new part of the log, 40 new items in the catalogue, the run of yesterday as the start.")
    shop.add_items(40)
    shop.write_catalogue(hour.work / "catalogue.csv")
    shop.write_day(logs / "day-21.csv", 20, 21, is_messy=False)
    hour.run(f"{prepare} --drop-invalid --catalogue catalogue.csv --out data/day-2", lines=8)
    hour.run("re4 train data/day-2 --from runs/day-1 --out runs/day-2", lines=12)
    hour.run("re4 evaluate runs/day-2 --against runs/day-1 --data data/day-2", lines=20)
    hour.run("re4 rebuild --run runs --catalogue catalogue.csv --bundles bundles", lines=40)
    day_two = hour.run(f"re4 info {at} --json | head -4", lines=4)
    hour.run(f"re4 retrieve {at} {history} --num-candidates 4 --new-items 2 --show is_cold")

    hour.say("## Day three: a canary")
    shop.write_day(logs / "day-22.csv", 21, 22, is_messy=False)
    hour.run(f"{prepare} --drop-invalid --catalogue catalogue.csv --out data/day-3", lines=4)
    hour.run("re4 train data/day-3 --from runs/day-2 --out runs/day-3", lines=6)
    hour.run("re4 rebuild --run runs --catalogue catalogue.csv --bundles bundles --no-go-live", lines=24)
    hour.run("re4 versions bundles")
    hour.run("re4 canary bundles $(ls bundles | grep ^20 | tail -1) --share 30%")
    hour.run(f"re4 info {at} | grep -E ' version|canary|recall'", until="canary_share")
    (hour.work / "calls.py").write_text(CALLS)
    hour.run(f"python calls.py 127.0.0.1:{port}")
    hour.run(f"re4 canary bundles --metrics http://127.0.0.1:{metrics}/metrics")
    hour.run(
        f"python calls.py 127.0.0.1:{port} & re4 canary bundles --watch 0.3 --min-calls 20 "
        f"--metrics http://127.0.0.1:{metrics}/metrics; wait"
    )
    hour.run("re4 versions bundles")

    hour.say("## Back to day two")
    hour.run("re4 rollback bundles")
    version = re.search(r'"version": "([^"]+)"', day_two)
    assert version is not None
    hour.run(f"re4 info {at} --json | head -4", until=version[1])
    hour.run(f"re4 retrieve {at} {history} --num-candidates 3")
    hour.run(
        "re4 bulk --bundles bundles --dataset data/day-3 --out candidates --exclude-history; ls candidates"
    )
    hour.run("re4 prune bundles --keep 1")
    hour.run("grep -cE 'ERROR|Traceback' serve.log", code=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Go a newcomer's first hour, and write it down.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--wheel", type=Path, help="Installed into a new environment.")
    source.add_argument("--bin", type=Path, help="An environment's folder bin, where re4 is installed.")
    parser.add_argument("--work", type=Path, required=True, help="An empty folder.")
    parser.add_argument("--page", type=Path, required=True, help="The page to write.")
    chosen = parser.parse_args(arguments)
    chosen.work.mkdir(parents=True, exist_ok=True)
    if any(chosen.work.iterdir()):
        sys.exit(f"{chosen.work} is not empty")
    # Folders of the user's own, whose names are those of this project's folders, must not get in the way.
    for name in ("training", "serving", "export"):
        (chosen.work / name).mkdir()
        (chosen.work / name / "__init__.py").write_text("raise RuntimeError('the user\\'s own folder')\n")
    work = chosen.work.absolute()
    hour = Hour(work=work, bin=work / "environment/bin" if chosen.bin is None else chosen.bin.absolute())
    hour.say("# A first hour")
    hour.say(
        "From the raw files of a shop to candidates, three days long, by an installed wheel in a folder of "
        "its own. `make first-hour` runs these commands and writes this page. Long outputs are cut in the "
        "middle, and empty lines are left out. The times are those of the machine that wrote it."
    )
    if chosen.wheel is not None:
        shutil.copy(chosen.wheel, work)
        shutil.copy(Path(__file__).parents[1] / "constraints.txt", work)
        hour.run(f"{Path(sys.executable).name} -m venv environment")
        hour.run(f"pip install --quiet --constraint constraints.txt '{chosen.wheel.name}[cpu,http,inspect]'")
    hour.run("re4 --version; python --version; ls")
    try:
        go(hour)
    finally:
        hour.stop()
    minutes = (time.monotonic() - hour.began_s) / 60
    hour.say(f"All of this took {minutes:.0f} minutes.")
    chosen.page.write_text("\n".join(hour.lines).rstrip() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
