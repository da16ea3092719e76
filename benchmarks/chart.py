"""Bar charts as SVG, without a plotting library."""

from collections.abc import Sequence
from html import escape

COLOURS = {"mailerd": "#2563eb", "postfix": "#9ca3af", "postfix-tuned": "#6b7280"}
OTHER = "#d97706"
LABEL, WIDTH, BAR, GAP, VALUE = 190, 480, 15, 14, 110  # pixels


def bars(title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, digits: int = 0) -> str:
    """One group of horizontal bars for each cell, one bar for each peer, all on one scale."""
    highest = max(value for _, values in groups for _, value in values) or 1.0
    parts, y = [_text(0, 16, title, weight="bold")], 32
    for name, values in groups:
        parts.append(_text(0, y + 12, name))
        for peer, value in values:
            width = max(1.0, value / highest * WIDTH)
            parts.append(
                f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS.get(peer, OTHER)}"/>'
            )
            parts.append(_text(LABEL + width + 5, y + 11, f"{value:,.{digits}f} {peer}", size=11))
            y += BAR
        y += GAP
    return _group(parts, y)


def page(charts: Sequence[str]) -> str:
    """Charts made by the functions above, one below the other."""
    placed, y = [], 10
    for chart in charts:
        height, _, body = chart.partition(" ")
        placed.append(f'<g transform="translate(10,{y})">{body}</g>')
        y += int(height) + 16
    width = LABEL + WIDTH + VALUE + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(placed)}</svg>\n'
    )


def _group(parts: Sequence[str], height: int) -> str:
    return f"{height} {''.join(parts)}"


def _text(x: float, y: float, text: str, *, size: int = 12, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
