"""Resolve every version anew and write the locks; `make lock`.

The locks name versions and hashes, never a registry: whose mirror is used is the machine's affair.
"""

import subprocess
import sys

from deploy import bootstrap


def compile_lock(*arguments: str) -> None:
    """Run uv's resolver for every platform and supported Python."""
    subprocess.run(
        [
            *(str(bootstrap.UV), "pip", "compile", "--quiet", "--universal", "--upgrade"),
            *("--generate-hashes", "--no-header", "--no-emit-index-url"),
            *("--no-emit-find-links", "--python-version", "3.11", *arguments),
        ],
        check=True,
        cwd=bootstrap.ROOT,
        env=bootstrap.environment(),
    )


def main() -> int:
    """Write the four locks; the exit status."""
    bootstrap.check_machine()
    compile_lock("deploy/uv.in", "--output-file", str(bootstrap.UV_REQUIREMENT))
    bootstrap.install_uv(bootstrap.environment())
    compile_lock("deploy/build.in", "--output-file", str(bootstrap.BUILD_REQUIREMENTS))
    groups = ("--group", "stack", "--group", "dev")
    compile_lock("pyproject.toml", *groups, "--output-file", str(bootstrap.REQUIREMENTS))
    jars = [str(bootstrap.PYTHON), "-m", "deploy.local.jars", "lock"]
    subprocess.run(jars, check=True, cwd=bootstrap.ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
