"""Kafka's jars are the locked ones or none."""

from pathlib import Path

import pytest

from deploy.local import jars
from deploy.local.errors import StackError

HOSTS = ("http:", "https:", "://")


def test_a_missing_jar_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"\.jar is missing: run `make bootstrap`"):
        jars.verified(tmp_path)


def test_an_altered_jar_is_refused(tmp_path: Path) -> None:
    for path in jars.verified():
        (tmp_path / path.name).symlink_to(path)
    altered = tmp_path / jars.locked()[0].file_name
    content = altered.read_bytes()
    altered.unlink()
    altered.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StackError, match=f"{altered.name} is not the file that was locked"):
        jars.verified(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "requirements.lock",
        "requirements-build.lock",
        "deploy/uv.lock.txt",
        "deploy/local/jgo.lock.toml",
    ],
)
def test_a_lock_names_hashes_and_no_registry(name: str) -> None:
    text = (jars.ROOT / name).read_text(encoding="utf-8")
    assert "sha256" in text
    assert not any(host in text for host in HOSTS)
