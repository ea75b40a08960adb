"""Plots as SVG: a panel for each kind of number, both axes logarithmic.

A panel is (title, unit, lines), a line is (name, points), a point is (x, y) with both above zero.
"""

import math

COLOURS = ["#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b"]
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 180, 60, 40, 110


def short(number):
    for size, name in ((1_000_000, " M"), (1_000, " k")):
        if number >= size:
            return f"{number / size:g}{name}"
    return f"{number:g}"


def panel(title, unit, lines, x, y):
    points = [point for _, of_line in lines for point in of_line]
    if not points:
        return
    values, places = [value for _, value in points], sorted({across for across, _ in points})
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    first, last = math.log10(places[0]), math.log10(places[-1])

    def place(across, value):
        share = (math.log10(across) - first) / max(last - first, 1)
        return x + share * WIDTH, y + HEIGHT - (math.log10(value) - low) / (high - low) * HEIGHT

    yield f'<text x="{x}" y="{y - 14}" font-weight="bold">{title} ({unit})</text>'
    for power in range(low, high + 1):
        _, at = place(places[0], 10**power)
        yield f'<path d="M{x} {at:.1f}h{WIDTH}" stroke="#ddd"/>'
        yield f'<text x="{x - 6}" y="{at + 4:.1f}" text-anchor="end">{10**power:g}</text>'
    for across in places:
        at, _ = place(across, 10**low)
        yield f'<text x="{at:.1f}" y="{y + HEIGHT + 16}" text-anchor="middle">{short(across)}</text>'
    for number, (colour, (name, of_line)) in enumerate(zip(COLOURS, lines)):
        if not of_line:
            continue
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*point) for point in of_line))
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for point in of_line:
            px, py = place(*point)
            yield f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"><title>{point[1]:g} {unit}</title></circle>'
        lx, ly = x + number % 3 * 105, y + HEIGHT + 36 + number // 3 * 16
        yield f'<rect x="{lx}" y="{ly - 8}" width="10" height="10" fill="{colour}"/>'
        yield f'<text x="{lx + 14}" y="{ly + 1}">{name}</text>'


def drawing(panels):
    """Two panels beside each other."""
    width, height = 2 * (LEFT + WIDTH) + 60, math.ceil(len(panels) / 2) * (HEIGHT + GAP) + TOP
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
    yield f'<rect width="{width}" height="{height}" fill="white"/>'
    for number, (title, unit, lines) in enumerate(panels):
        x, y = LEFT + number % 2 * (WIDTH + LEFT + 20), TOP + number // 2 * (HEIGHT + GAP)
        yield from panel(title, unit, lines, x, y)
    yield "</svg>"


def draw(path, panels):
    path.write_text("\n".join(drawing(panels)) + "\n")
