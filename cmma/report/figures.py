"""Figures as SVG text. Colours are CSS variables of the page, so they follow its light or dark theme.

Every mark carries a `<title>` with its number; every text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from markupsafe import Markup

from cmma.figures import Line

N_SERIES = 8
"""Colours of lines in the style sheet, `--series-1` and so on."""
CLASS_LABELS = {
    "visual": "visual", "textual": "textual", "cross_modal": "cross-modal", "mixed": "mixed", "dead": "dead",
}


def _svg(width: float, height: float, label: str, body: Sequence[str], name: str = "figure") -> Markup:
    return Markup(
        f'<svg class="{name}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(body) + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", name: str = "", turn: float = 0.0) -> str:
    turned = f' transform="rotate({turn:g} {x:g} {y:g})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{name}"{turned}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, name: str = "axis") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{name}"/>'


def _rect(x: float, y: float, w: float, h: float, style: str, title: str) -> str:
    return (f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(w, 0):.2f}" height="{max(h, 0):.2f}" style="{style}">'
            f"<title>{escape(title)}</title></rect>")


def share_bar(shares: Sequence[tuple[str, float]], width: float = 320, height: float = 14) -> Markup:
    """One stacked bar of class shares in percent, in the class colours."""
    body, x, total = [], 0.0, sum(share for _, share in shares) or 1.0
    for name, share in shares:
        w = width * share / total
        body.append(_rect(x, 0, w - 1, height, f"fill:var(--{name})", f"{CLASS_LABELS.get(name, name)} {share:.1f}%"))
        x += w
    return _svg(width, height, "class shares", body, "share-bar")


def interval_rows(
    rows: Sequence[tuple[str, float, float, float, str]], low: float, high: float,
    rules: Sequence[tuple[float, str]] = (), width: float = 320,
) -> Markup:
    """Point estimates with their intervals, one row each, on a common axis (a forest plot).

    Args:
        rows: (label, value, low, high, CSS colour variable).
        low, high: axis range. rules: vertical reference lines (value, label).
    """
    left, right, pitch, top = 92.0, 54.0, 22.0, 16.0
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return left + (width - left - right) * (min(max(value, low), high) - low) / span

    bottom = top + pitch * len(rows)
    body = [_line(left, bottom, width - right, bottom)]
    for value, label in rules:
        body += [_line(place(value), top - 4, place(value), bottom, "rule"),
                 _text(place(value), top - 7, label, "middle", "tick")]
    for value in (low, high):
        body.append(_text(place(value), bottom + 12, f"{value:g}".replace("-", "−"), "middle", "tick"))
    for index, (label, value, lower, upper, colour) in enumerate(rows):
        y = top + pitch * (index + 0.5)
        body.append(_text(left - 8, y + 4, label, "end"))
        if not np.isfinite(value):
            body.append(_text(left + 4, y + 4, "undefined", "start", "tick"))
            continue
        title = f"{label}: {value:.3g}"
        if np.isfinite(lower) and np.isfinite(upper):
            title += f" [{lower:.3g}, {upper:.3g}]"
            body.append(f'<line x1="{place(lower):.1f}" y1="{y:.1f}" x2="{place(upper):.1f}" y2="{y:.1f}" '
                        f'style="stroke:var(--{colour})" class="whisker"/>')
        body.append(f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="4" style="fill:var(--{colour})">'
                    f"<title>{escape(title)}</title></circle>")
        body.append(_text(width - right + 8, y + 4, f"{value:.2f}".replace("-", "−"), "start", "value"))
    return _svg(width, bottom + 18, "; ".join(row[0] for row in rows), body)


def mirrored_histogram(
    edges: np.ndarray, up: np.ndarray, down: np.ndarray, up_label: str, down_label: str, x_label: str,
    width: float = 320, height: float = 150,
) -> Markup:
    """Two histograms over the same bins, one upwards in the visual and one downwards in the textual colour.

    Each side is scaled by its own total (share of that modality's active tokens); the larger side fills the height.
    """
    left, right, top, bottom = 18.0, 18.0, 8.0, 34.0
    middle = top + (height - top - bottom) / 2
    shares = [counts / counts.sum() if counts.sum() else counts * 0.0 for counts in (up, down)]
    scale = (middle - top) / (max(share.max() for share in shares) or 1.0)
    step = (width - left - right) / len(up)
    body = []
    for share, counts, colour, sign in ((shares[0], up, "visual", -1), (shares[1], down, "textual", 1)):
        for index, value in enumerate(share):
            if value > 0:
                h = value * scale
                y = middle - h - 0.5 if sign < 0 else middle + 0.5
                bounds = f"10^{edges[index]:.1f} to 10^{edges[index + 1]:.1f}"
                title = f"{bounds}: {int(counts[index]):,} tokens ({value:.1%})"
                body.append(_rect(left + index * step + 0.5, y, step - 1, h, f"fill:var(--{colour})", title))
    body.append(_line(left, middle, width - right, middle))
    body += [_text(left, top + 6, f"{up_label} ({int(up.sum()):,})", "start", "tick"),
             _text(left, height - bottom + 4, f"{down_label} ({int(down.sum()):,})", "start", "tick")]
    ticks = [edge for edge in edges if abs(edge - round(edge)) < 1e-9]
    for edge in ticks:
        x = left + (width - left - right) * (edge - edges[0]) / (edges[-1] - edges[0])
        body.append(_text(x, height - 15, f"{10.0 ** edge:g}", "middle", "tick"))
    body.append(_text(width / 2, height - 3, x_label, "middle", "tick"))
    return _svg(width, height, x_label, body)


def stacked_histogram(
    edges: np.ndarray, counts_by_class: dict[str, np.ndarray], x_label: str, width: float = 460, height: float = 170,
    log: bool = True,
) -> Markup:
    """A histogram whose bars are stacked by feature class; with `log` the edges are log10 of what is labelled."""
    left, right, top, bottom = 34.0, 10.0, 8.0, 34.0
    total = sum(counts_by_class.values())
    peak = max(int(np.max(total)), 1)
    step, scale = (width - left - right) / (len(edges) - 1), (height - top - bottom) / peak
    base = np.full(len(edges) - 1, height - bottom)
    body = []
    for name, counts in counts_by_class.items():
        for index, count in enumerate(counts):
            if count:
                base[index] -= count * scale
                title = f"{CLASS_LABELS.get(name, name)}: {int(count):,} features"
                body.append(_rect(left + index * step + 0.5, base[index], step - 1, count * scale,
                                  f"fill:var(--{name})", title))
    body += [_line(left, height - bottom, width - right, height - bottom),
             _text(left - 5, top + 8, f"{peak:,}", "end", "tick"), _text(left - 5, height - bottom, "0", "end", "tick")]
    for edge in edges[np.isclose(edges, np.round(edges))]:
        x = left + (width - left - right) * (edge - edges[0]) / (edges[-1] - edges[0])
        body.append(_text(x, height - 18, f"{10.0 ** edge if log else edge:g}", "middle", "tick"))
    body.append(_text((left + width - right) / 2, height - 4, x_label, "middle", "tick"))
    return _svg(width, height, x_label, body)


def heat_map(
    values_RC: np.ndarray, rows: Sequence[str], columns: Sequence[str], row_label: str,
    titles_RC: Sequence[Sequence[str]], cell: float = 22.0,
) -> Markup:
    """A matrix of signed values: positive and negative in two hues, strength as opacity, row 0 at the bottom."""
    n_rows, n_columns = values_RC.shape
    peak = float(np.nanmax(np.abs(values_RC))) if np.isfinite(values_RC).any() else 0.0
    step = min(cell, 880.0 / max(1, n_columns))
    tall = min(cell, 26.0)
    label_height = 6.2 * max((len(name) for name in columns), default=1) + 12
    left, top = 58.0, 8.0
    width, height = left + step * n_columns + 90, top + tall * n_rows + label_height
    body = []
    for r in range(n_rows):
        y = top + tall * (n_rows - 1 - r)
        body.append(_text(left - 6, y + tall / 2 + 4, rows[r], "end", "tick"))
        for c in range(n_columns):
            value = float(values_RC[r, c])
            if not np.isfinite(value):
                continue
            hue, strength = ("pos" if value >= 0 else "neg"), (abs(value) / peak if peak else 0.0)
            body.append(_rect(left + c * step, y, step - (1 if step > 6 else 0), tall - 1,
                              f"fill:var(--{hue});fill-opacity:{strength:.3f}", titles_RC[r][c]))
    every = max(1, int(np.ceil(11.0 / step)))
    for c in range(0, n_columns, every):
        body.append(_text(left + (c + 0.5) * step + 3, top + tall * n_rows + 8, columns[c], "end", "tick", -90))
    body.append(_text(14, top + tall * n_rows / 2, row_label, "middle", "tick", -90))
    body += _colour_bar(left + step * n_columns + 18, top, min(tall * n_rows, 120), peak, bool((values_RC < 0).any()))
    body.append(f'<rect x="{left:g}" y="{top:g}" width="{step * n_columns:.1f}" height="{tall * n_rows:.1f}" '
                'class="frame"/>')
    return _svg(width, height, row_label, body, "figure heat-map")


def _colour_bar(x: float, y: float, height: float, peak: float, signed: bool) -> list[str]:
    body, steps = [], 24
    low = -peak if signed else 0.0
    for index in range(steps):
        value = peak - (peak - low) * (index + 0.5) / steps
        hue, strength = ("pos" if value >= 0 else "neg"), (abs(value) / peak if peak else 0.0)
        body.append(f'<rect x="{x:.1f}" y="{y + height * index / steps:.2f}" width="10" '
                    f'height="{height / steps + 0.3:.2f}" style="fill:var(--{hue});fill-opacity:{strength:.3f}"/>')
    body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="10" height="{height:.1f}" class="frame"/>')
    return [*body, _text(x + 15, y + 8, f"{peak:.2g}", "start", "tick"),
            _text(x + 15, y + height, f"{low:.2g}".replace("-", "−"), "start", "tick")]


def curves(x: Sequence[float], lines: Sequence[Line], x_label: str, width: float = 360, height: float = 190) -> Markup:
    """Lines over a common axis with their intervals as bands; more than one are named beside it."""
    named = len(lines) > 1
    key = 6.4 * max(len(line.name) for line in lines) + 24 if named else 0.0
    left, right, top, bottom = 44.0, 12.0, 10.0, 32.0
    every = [np.asarray(side, dtype=float) for line in lines for side in (line.value_X, line.low_X, line.high_X)
             if side is not None]
    finite = np.concatenate([[0.0], *(side[np.isfinite(side)] for side in every)])
    floor, ceiling = float(finite.min()), float(finite.max()) or 1.0
    span = (x[-1] - x[0]) or 1.0

    def place(a: float, b: float) -> str:
        across = left + (width - left - right) * (a - x[0]) / span
        return f"{across:.1f},{top + (height - top - bottom) * (1 - (b - floor) / ((ceiling - floor) or 1.0)):.1f}"

    zero = float(place(x[0], 0.0).split(",")[1])
    body = [_line(left, zero, width - right, zero)]
    for index, line in enumerate(lines):
        colour, value = f"var(--series-{index % N_SERIES + 1})", np.asarray(line.value_X, dtype=float)
        if line.low_X is not None and line.high_X is not None:
            low, high = (np.asarray(side, dtype=float) for side in (line.low_X, line.high_X))
            whole = np.isfinite(low) & np.isfinite(high)
            forth = [place(a, b) for a, b, ok in zip(x, high, whole, strict=True) if ok]
            back = [place(a, b) for a, b, ok in zip(x, low, whole, strict=True) if ok]
            body.append(f'<polygon class="band" style="fill:{colour}" points="{" ".join(forth + back[::-1])}"/>')
        points = [(a, b) for a, b in zip(x, value, strict=True) if np.isfinite(b)]
        body.append(f'<polyline class="curve" style="stroke:{colour}" points="'
                    + " ".join(place(a, b) for a, b in points) + '"/>')
        for a, b in points:
            across, down = place(a, b).split(",")
            body.append(f'<circle cx="{across}" cy="{down}" r="3" style="fill:{colour}">'
                        f"<title>{escape(line.name)} {a:g}: {b:.3g}</title></circle>")
        if named:
            y = top + 14.0 * index + 6
            body += [_rect(width + 2, y - 6, 10, 4, f"fill:{colour}", line.name), _text(width + 17, y, line.name)]
    for a in _ticks(x):
        at = left + (width - left - right) * (a - x[0]) / span
        body.append(_text(at, height - bottom + 14, f"{a:g}", "middle", "tick"))
    body += [_text(left - 6, top + 4, f"{ceiling:.2g}", "end", "tick"),
             _text(left - 6, height - bottom + 4, f"{floor:.2g}".replace("-", "−"), "end", "tick"),
             _text((left + width - right) / 2, height - 4, x_label, "middle", "tick")]
    return _svg(width + key, max(height, top + 14.0 * len(lines) + 10), x_label, body)


def _ticks(x: Sequence[float], most: int = 16) -> Sequence[float]:
    return x[:: max(1, -(-len(x) // most))]
