"""Ways in which a published version, or `CURRENT`, gets damaged, placed by a seeded generator.

Knows files and JSON; nothing about what any file means.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from re4.bundle.layout import CURRENT, MANIFEST

Damage: TypeAlias = Callable[[Path, Path, random.Random], None]
"""Damages the version in the first folder; the second holds another, whose files are of the same sizes."""


def _any_file(version: Path, rng: random.Random) -> Path:
    files = sorted(version.iterdir())
    # Every third time the manifest, which no checksum of another file covers.
    return rng.choice(files) if rng.random() < 2 / 3 else version / MANIFEST


def _flip_bits(version: Path, _: Path, rng: random.Random) -> None:
    path = _any_file(version, rng)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 100))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut_off(version: Path, _: Path, rng: random.Random) -> None:
    path = _any_file(version, rng)
    os.truncate(path, rng.randrange(path.stat().st_size))


def _append(version: Path, _: Path, rng: random.Random) -> None:
    with _any_file(version, rng).open("ab") as file:
        file.write(rng.randbytes(rng.choice((1, 100))))


def _overwrite_a_page(version: Path, _: Path, rng: random.Random) -> None:
    """As a disk does that loses a write: zeros in place of a piece."""
    path = _any_file(version, rng)
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def _file_of_another(version: Path, other: Path, rng: random.Random) -> None:
    path = _any_file(version, rng)
    shutil.copyfile(other / path.name, path)


def _exchange(version: Path, _: Path, rng: random.Random) -> None:
    first, second = rng.sample(sorted(version.iterdir()), 2)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def _remove(version: Path, _: Path, rng: random.Random) -> None:
    _any_file(version, rng).unlink()


def _add(version: Path, other: Path, rng: random.Random) -> None:
    name = rng.choice(("extra.so", ".hidden", "items.faiss.bak", "sub", "manifest.json~"))
    if name == "sub":
        shutil.copytree(other, version / name)
    else:
        (version / name).write_bytes(rng.randbytes(10))


def _link(version: Path, _: Path, rng: random.Random) -> None:
    """The right content, but behind a link: who owns the target could change it after the check."""
    path = _any_file(version, rng)
    target = version.parent / "linked"
    target.unlink(missing_ok=True)
    path.rename(target)
    path.symlink_to(target)


def _irregular(version: Path, _: Path, rng: random.Random) -> None:
    path = _any_file(version, rng)
    path.unlink()
    rng.choice((Path.mkdir, os.mkfifo))(path)


def _edit_the_manifest(version: Path, _: Path, rng: random.Random) -> None:
    """Still JSON, still of the right types, but something else than was written."""
    path = version / MANIFEST
    facts = json.loads(path.read_bytes())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                walk(value)
            else:
                places.append((node, key))

    walk(facts)
    node, key = rng.choice(places)
    value = node[key]
    if isinstance(value, str):
        place = rng.randrange(len(value)) if value else 0
        node[key] = value[:place] + rng.choice("0123456789abcdef") + value[place + 1 :]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        node[key] = value + rng.choice((-1, 1, 2))
    else:
        node[key] = not value
    path.write_text(json.dumps(facts, indent=2))


def _lose_a_key_of_the_manifest(version: Path, _: Path, rng: random.Random) -> None:
    path = version / MANIFEST
    facts = json.loads(path.read_bytes())
    node = rng.choice([facts, facts["model"], facts["index"], facts["items"], facts["files"][0]])
    del node[rng.choice(list(node))]
    path.write_text(json.dumps(facts))


def _reformat_the_manifest(version: Path, _: Path, rng: random.Random) -> None:
    """Harmless: the same facts with other white space."""
    path = version / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=rng.choice((None, 1, 7))))


VERSION_DAMAGES: dict[str, tuple[Damage, ...]] = {
    "bits flipped": (_flip_bits,) * 4,
    "cut off or grown": (_cut_off, _cut_off, _append, _overwrite_a_page),
    "files swapped": (_file_of_another,) * 3 + (_exchange,),
    "files missing, extra or not plain": (_remove, _add, _link, _irregular),
    "manifest changed": (_edit_the_manifest,) * 2 + (_lose_a_key_of_the_manifest, _reformat_the_manifest),
}
"""By kind; within a kind each entry is as likely as the others."""


def damage_current(bundles: Path, rng: random.Random) -> None:
    """Replace `CURRENT`, which names a version, by something that does not, or not properly."""
    path, new = bundles / CURRENT, bundles / "next"
    content = path.read_bytes()
    kind = rng.randrange(6)
    if kind == 0:
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        new.write_bytes(changed)
    elif kind == 1:
        new.write_bytes(content[: rng.randrange(len(content))])
    elif kind == 2:
        new.write_bytes(content + rng.randbytes(rng.choice((1, 5000))))
    elif kind == 3:
        new.write_bytes(
            rng.choice((b"../../etc\n", b"\n" + content, content * 2, b"\0" * 25, content.upper()))
        )
    elif kind == 4:
        target = bundles / "linked-current"
        target.write_bytes(content)
        new.symlink_to(target)
    else:
        path.unlink()
        path.mkdir()
        return
    new.replace(path)
