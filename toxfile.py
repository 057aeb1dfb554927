"""Tox plug-in: all environments share one virtual environment, `.venv`, so that torch is installed once.

Tox rebuilds a folder as soon as an environment of another name uses it. The runner `shared` leaves the name
out of that comparison; everything else that makes tox update or rebuild an environment (Python version,
pinned packages) still does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tox.execute.request import StdinSource
from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister

INSTALL = ("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable")


class SharedInfo(Info):
    """What tox remembers of an environment's folder, under one name for all environments."""

    @contextmanager
    def compare(
        self, value: Any, section: str, sub_section: str | None = None
    ) -> Generator[tuple[bool, Any | None], None, None]:
        """Compare `value` with what is stored, as tox does, but always under the runner's name."""
        if section == ToxEnv.__name__:
            value = {**value, "name": SharedRunner.id()}
        with super().compare(value, section, sub_section) as outcome:
            yield outcome


class SharedRunner(VirtualEnvRunner):
    """Runs an environment in a folder that others use too."""

    @staticmethod
    def id() -> str:
        """Return the name to give as `runner` in tox.ini."""
        return "shared"

    @property
    def cache(self) -> SharedInfo:
        """Return what tox remembers of the folder."""
        return SharedInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Offer the runner to tox.ini."""
    register.add_run_env(SharedRunner)


@impl
def tox_before_run_commands(tox_env: ToxEnv) -> None:
    """Install the project itself, editable, where pyproject.toml has changed since the last time.

    Left to itself, tox builds the project with unpinned tools on every run. Here the pinned build backend of
    the shared environment does it, and a run that changes nothing costs nothing.
    """
    if not isinstance(tox_env, SharedRunner):
        return
    root = tox_env.core["tox_root"]
    digest = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()
    with tox_env.cache.compare(digest, "project") as (unchanged, _):
        if not unchanged:
            outcome = tox_env.execute([*INSTALL, root], StdinSource.OFF, cwd=root, run_id="install_project")
            outcome.assert_success()
