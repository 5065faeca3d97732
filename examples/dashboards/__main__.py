"""``python -m examples.dashboards`` writes the dashboards as Grafana reads them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from .boards import coherence, namespace, overview, toolkit

HERE = Path(__file__).parent


def written() -> Iterator[tuple[Path, str]]:
    """The files, and what belongs into them."""
    for board in (overview(), namespace(), coherence(), toolkit()):
        name = board["uid"].removeprefix("cacheaside-")
        yield HERE / "grafana" / "dashboards" / f"{name}.json", json.dumps(board, indent=2) + "\n"


def main() -> int:
    for path, text in written():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
