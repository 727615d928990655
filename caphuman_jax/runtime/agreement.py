"""Do all hosts of a job run the same? Compared before anything is computed together, since hosts
that differ would hang or train on a mixture.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caphuman_jax.errors import SettingError

_SECONDS = 3600  # that the slowest host may be late; one that dies is noticed by its heartbeat


def check(topic: str, facts: Mapping[str, Any]) -> None:
    """Compares this host's facts with those of all others; every host has to call it.

    Args:
        topic: a name that is used once in a job.
        facts: nested dicts of JSON values.

    Raises:
        SettingError: on every host, where one differs from the first: its number, its name and
            each entry that differs.
    """
    import jax

    if jax.process_count() == 1:
        return
    found = _exchange(topic, {"host": socket.gethostname(), "facts": dict(facts)})
    first = found[0]["facts"]
    for number, other in enumerate(found):
        differing = differences(first, other["facts"])
        if differing:
            raise SettingError(
                f"host {number} ({other['host']}) differs from host 0 ({found[0]['host']}): "
                f"{'; '.join(differing)}. All hosts have to run the same"
            )


def differences(first: Mapping, other: Mapping, prefix: str = "") -> list[str]:
    """ "NAME is A there and B on host 0" for each entry of nested dicts that differs."""
    found = []
    for name in sorted({*first, *other}):
        one, two = first.get(name), other.get(name)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += differences(one, two, f"{prefix}{name}.")
        elif one != two:
            found.append(f"{prefix}{name} is {two!r} there and {one!r} on host 0")
    return found


def code_hash() -> str:
    """SHA-256 of the package's Python files, so that two checkouts of one version differ."""
    folder = Path(__file__).resolve().parents[1]
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _exchange(topic: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of all hosts, by number. Through the coordinator's table instead of a collective,
    which hosts with other versions or devices might not even start.
    """
    import jax
    from jax._src import distributed  # the table has no public name

    client = distributed.global_state.client
    assert client is not None, "several processes have joined"
    folder = f"caphuman/{topic}/"
    client.key_value_set(f"{folder}{jax.process_index()}", json.dumps(entry, sort_keys=True))
    found = []
    for number in range(jax.process_count()):
        text = client.blocking_key_value_get(f"{folder}{number}", _SECONDS * 1000)
        found.append(json.loads(text))
    return found
