"""Progress bars, on a terminal and in a log."""

from __future__ import annotations

import sys
from typing import Any

_OFTEN, _SELDOM = 0.2, 30.0  # seconds between two updates, on a terminal and in a log


def progress_bar(**named: Any) -> Any:
    """A bar of tqdm with these arguments, on stderr. In a log it is written every 30 seconds, since
    there each update is one more line.
    """
    from tqdm import tqdm

    every = _OFTEN if sys.stderr.isatty() else _SELDOM
    return tqdm(file=sys.stderr, mininterval=every, maxinterval=every, **named)
