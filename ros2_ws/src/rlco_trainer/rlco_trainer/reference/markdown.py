"""Markdown tables."""

from collections.abc import Iterable, Sequence

REGENERATE = "This page is generated (`python -m rlco_trainer.reference docs`); a test holds it to the code."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; pipes inside cells are escaped, line breaks become blanks."""
    lines = [list(header), ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str) -> str:
    """Inline code; nothing for the empty text."""
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
