"""What a figure was measured on."""

import os
import platform


def machine() -> str:
    """Return the machine in a few words, for reports."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}"
