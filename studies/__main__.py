"""``python -m studies`` lists the studies."""

from __future__ import annotations

import ast
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main() -> None:
    """Print every study with the first line of its description."""
    table = Table(box=None, show_header=False)
    for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        table.add_row(
            f"python -m studies.{file.stem}", doc.partition("\n")[0].rstrip(".").replace("``", "")
        )
    console = Console()
    console.print(table)
    console.print("Each has --help.")


if __name__ == "__main__":
    main()
