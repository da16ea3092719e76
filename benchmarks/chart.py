"""Bar and line charts as SVG, without a plotting library."""

import math
from collections.abc import Sequence
from html import escape

COLOURS = {
    "mailerd": "#2563eb",
    "postfix": "#9ca3af",
    "postfix-tuned": "#6b7280",
    "exim": "#0d9488",
    "opensmtpd": "#a855f7",
    "haraka": "#be185d",
    "slimta": "#65a30d",
}
CURVES = ("#9ca3af", "#a855f7", "#d97706", "#2563eb")  # the last one is ours
LIMIT = "#e5e7eb"
OTHER = "#d97706"
LABEL, WIDTH, BAR, GAP, VALUE = 190, 480, 15, 14, 110  # pixels


def bars(title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, digits: int = 0) -> str:
    """One group of horizontal bars for each cell, one bar for each peer, all on one scale."""
    highest = max((value for _, values in groups for _, value in values), default=0.0) or 1.0
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


def lines(
    title: str, limit: tuple[str, Sequence[float]], curves: Sequence[tuple[str, Sequence[float]]], *, hours: float
) -> str:
    """Curves over `hours` on one scale, with evenly spaced values, before the area of what would have been possible."""
    left, top, width, height = 40, 46, LABEL + WIDTH + VALUE - 60, 150
    highest = 1.1 * max(max(values) for _, values in (limit, *curves)) or 1.0
    bottom = top + height
    parts, legend = [_text(0, 16, title, weight="bold")], 0.0

    def line(values: Sequence[float]) -> str:
        """Steps: a value holds for its whole stretch of time."""
        step = width / len(values)
        heights = [bottom - value / highest * height for value in values]
        return " ".join(
            f"{left + n * step:.1f},{y:.1f} {left + (n + 1) * step:.1f},{y:.1f}" for n, y in enumerate(heights)
        )

    for (name, _), colour in zip((limit, *reversed(curves)), (LIMIT, *reversed(CURVES)), strict=False):
        parts.append(f'<rect x="{left + legend:.0f}" y="27" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(left + legend + 14, 36, name, size=11))
        legend += 40 + 6.2 * len(name)
    parts.append(
        f'<polygon points="{left},{bottom} {line(limit[1])} {left + width},{bottom}" fill="{LIMIT}" stroke="none"/>'
    )
    for (_, values), colour in zip(curves, CURVES[-len(curves) :], strict=True):
        parts.append(f'<polyline points="{line(values)}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    for share in (0.0, 0.5, 1.0):
        value = highest / 1.1 * share
        y = bottom - value / highest * height
        parts.append(f'<line x1="{left - 4}" x2="{left}" y1="{y:.1f}" y2="{y:.1f}" stroke="#374151"/>')
        parts.append(_text(0, y + 4, f"{value:.1f}", size=11))
    every = 1 if hours <= 8 else 4
    parts.extend(
        _text(left + hour / hours * width - 6, bottom + 14, f"{hour} h", size=11)
        for hour in range(0, int(hours) + 1, every)
    )
    parts.append(f'<path d="M{left},{top} V{bottom} H{left + width}" fill="none" stroke="#374151"/>')
    return _group(parts, bottom + 20)


def plot(
    title: str,
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    ticks: Sequence[tuple[float, str]],
    logarithmic: bool = False,
    digits: int = 0,
) -> str:
    """Curves of points (x, y); x from the first to the last of `ticks`, y from 0, or logarithmic in whole decades."""
    left, top, width, height = 60, 46, LABEL + WIDTH + VALUE - 80, 170
    bottom = top + height
    values = [y for _, points in curves for _, y in points if y > 0 or not logarithmic] or [1.0]
    first, last = ticks[0][0], ticks[-1][0]
    if logarithmic:
        lowest = math.floor(math.log10(min(values)))
        highest = max(math.ceil(math.log10(max(values))), lowest + 1)
        low, high = float(lowest), float(highest)
        marks = [10.0**power for power in range(lowest, highest + 1)]
    else:
        most = max(values) or 1.0
        low, high, marks = 0.0, most * 1.1, [0.0, most / 2, most]

    def place(x: float, y: float) -> str:
        scaled = math.log10(y) if logarithmic else y
        share = (scaled - low) / (high - low)
        return f"{left + (x - first) / (last - first) * width:.1f},{bottom - share * height:.1f}"

    parts, legend = [_text(0, 16, title, weight="bold")], 0.0
    for number, (name, points) in enumerate(curves):
        colour = COLOURS.get(name, CURVES[-1 - number % len(CURVES)])
        parts.append(f'<rect x="{left + legend:.0f}" y="27" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(left + legend + 14, 36, name, size=11))
        legend += 40 + 6.2 * len(name)
        line = " ".join(place(x, y) for x, y in points if y > 0 or not logarithmic)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    for mark in marks:
        y = place(first, mark).partition(",")[2]
        places = max(0, -math.floor(math.log10(mark))) if logarithmic else digits
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="{LIMIT}"/>')
        parts.append(_text(0, float(y) + 4, f"{mark:,.{places}f}", size=11))
    for x, name in ticks:
        parts.append(_text(float(place(x, marks[-1]).partition(",")[0]) - 10, bottom + 14, name, size=11))
    parts.append(f'<path d="M{left},{top} V{bottom} H{left + width}" fill="none" stroke="#374151"/>')
    return _group(parts, bottom + 20)


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
