"""Prometheus from PATH; Debian has a package of it."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool, which comes with Prometheus."""
    found = shutil.which("promtool") if shutil.which("prometheus") else None
    if found is None:
        # A pipeline that tests nothing must not look green.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Prometheus: apt-get install prometheus")
    return found
