"""Columns of text, aligned."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()
) -> str:
    """Columns under their headers, one row per line; those named in ``right`` end at one edge."""
    everything = [header, *rows]
    widths = [max(len(row[k]) for row in everything) for k in range(len(header))]
    lines = []
    for row in everything:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
