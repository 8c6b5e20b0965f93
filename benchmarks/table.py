"""A plain table of text."""

from __future__ import annotations


class Table:
    """Rows under a title."""

    def __init__(self, title: str, columns: tuple[str, ...]) -> None:
        self.title, self.columns = title, columns
        self.rows: list[tuple[str, ...]] = []

    def row(self, *cells: str) -> None:
        self.rows.append(cells)

    def text(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        out = [self.title]
        for line in lines:
            cells = (f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in
                     enumerate(zip(line, widths, strict=True)))  # fmt: skip
            out.append("  " + "  ".join(cells).rstrip())
        return "\n".join(out) + "\n"
