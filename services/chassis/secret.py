"""Secrets from files or the environment; a file may be replaced while the process runs.

That is how a password or a key is rotated without a restart: connections that stand stay, whoever
connects next reads the file anew, and key rings are told of a change (`Service.on_secret`).
"""

from pathlib import Path

from typing_extensions import override


class Secret:
    """One secret, as of now.

    Its text appears in no log: `repr` shows none of it.
    """

    def __init__(self, value: str, path: Path | None = None) -> None:
        """Take the value of now, and the file that may change, if it came from one."""
        self._value = value
        self.path = path

    def read(self) -> str:
        """Return the secret as of now; the last known one while its file cannot be read."""
        if self.path is not None:
            try:
                self._value = self.path.read_text(encoding="utf-8").strip()
            except OSError:
                # a mount that is being replaced: the old one is still the best we know
                return self._value
        return self._value

    def version(self) -> object:
        """Return something that is another when the file was replaced; None without a file."""
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    @override
    def __repr__(self) -> str:
        return "Secret(**********)"
