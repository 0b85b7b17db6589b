"""Kafka's jars: fetched by the versions in jgo.lock.toml, each checked by its sha256.

`python -m deploy.local.jars fetch|lock`. jgo's own `sync` would download a Java 11 only to sort
the jars into modules; its resolver alone (pure Python) is used here, and the lock is its format.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import StackError

ROOT = Path(__file__).resolve().parents[2]
SPECIFICATION = Path(__file__).with_name("jgo.toml")
LOCK = Path(__file__).with_name("jgo.lock.toml")
FOLDER = ROOT / ".tools" / "kafka"


@dataclass(frozen=True, kw_only=True)
class Jar:
    """One locked jar."""

    group: str
    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file in the folder of jars."""
        return f"{self.name}-{self.version}.jar"


def locked() -> tuple[Jar, ...]:
    """Return the jars of the committed lock file."""
    document = tomllib.loads(LOCK.read_text(encoding="utf-8"))
    return tuple(
        Jar(
            group=entry["groupId"],
            name=entry["artifactId"],
            version=entry["version"],
            sha256=entry["sha256"],
        )
        for entry in document["dependencies"]
    )


def verified(folder: Path = FOLDER) -> list[Path]:
    """Return the class path; a missing or altered jar is an error (43 MB: about 0.1 s).

    Raises:
        StackError: names the jar and the command that mends it.
    """
    paths = []
    for jar in locked():
        path = folder / jar.file_name
        if not path.is_file():
            raise StackError(f"Kafka's {jar.file_name} is missing: run `make bootstrap`.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != jar.sha256:
            raise StackError(
                f"{path} is not the file that was locked: delete it and run `make bootstrap`."
            )
        paths.append(path)
    return paths


def fetch(folder: Path = FOLDER) -> None:
    """Download what is missing; a file of another content is never put in place."""
    from jgo.maven import MavenContext  # noqa: PLC0415 - only here is anything downloaded

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        context = MavenContext(repo_cache=Path(cache), timeout=120)

        def fetch_one(jar: Jar) -> None:
            target = folder / jar.file_name
            if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == jar.sha256:
                return
            project = context.project(jar.group, jar.name)
            source = project.at_version(jar.version).artifact().resolve()
            if (found := hashlib.sha256(source.read_bytes()).hexdigest()) != jar.sha256:
                raise StackError(
                    f"{jar.file_name} from the registry has sha256 {found}, locked is {jar.sha256}:"
                    " it is not used; see who changed it before running `make lock`."
                )
            shutil.move(source, target)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fetch_one, locked()))
    names = {jar.file_name for jar in locked()}
    for path in folder.glob("*.jar"):
        if path.name not in names:
            path.unlink()


def lock() -> None:
    """Resolve jgo.toml anew and write jgo.lock.toml."""
    from jgo.env import EnvironmentBuilder, EnvironmentSpec, LockFile  # noqa: PLC0415
    from jgo.env._lockfile import LockedDependency  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache), timeout=120)
        specification = EnvironmentSpec.load(SPECIFICATION)
        wanted = EnvironmentBuilder(context, Path(cache)).spec_to_dependencies(specification)
        inputs, transitive = context.resolver.resolve(wanted)
        dependencies = [
            LockedDependency.from_dependency(dependency)
            for dependency in [*inputs, *transitive]
            if dependency.scope in {"compile", "runtime"} and not dependency.optional
        ]
    dependencies.sort(key=lambda found: (found.groupId, found.artifactId))
    LockFile(dependencies=dependencies, environment_name="kafka", min_java_version=17).save(LOCK)


def main(arguments: list[str]) -> int:
    """Fetch or lock; the exit status."""
    # jgo computes default folders below HOME when it is imported, though none is used here
    os.environ.setdefault("HOME", str(FOLDER.parent))
    actions = {"fetch": fetch, "lock": lock}
    if len(arguments) != 1 or arguments[0] not in actions:
        sys.stderr.write("usage: python -m deploy.local.jars fetch|lock\n")
        return 2
    try:
        actions[arguments[0]]()
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except Exception as error:  # noqa: BLE001 - jgo raises many kinds; each means the same here
        sys.stderr.write(f"Kafka's jars could not be fetched ({error}): is the registry reached?\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
