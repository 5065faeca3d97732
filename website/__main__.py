"""Builds the documentation site and looks at it: ``python -m website``, or ``make docs``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from website.links import faults

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "docs"
QUIET = ("Build started", "No issues found", "Build finished")


def main() -> int:
    """Build; 1 if the builder says anything but that it is done, or a link leads nowhere."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = [line for line in built.stdout.splitlines() if line and not line.startswith(QUIET)]
    wrong = said if built.returncode or said else list(faults(SITE.resolve()))
    print("\n".join(wrong) or f"The documentation is in {SITE.relative_to(ROOT)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
