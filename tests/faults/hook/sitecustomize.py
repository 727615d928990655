"""With this folder on PYTHONPATH, every Python process of a command counts with it."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import injection  # noqa: E402

sys.path.pop(0)
fault = injection.from_environment()
if fault is not None:
    injection.install(fault)
