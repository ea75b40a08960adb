"""What the benchmarks print: progress to standard error, tables to standard output."""

import sys


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def table(title, heads, rows):
    rows = [heads, *([cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    print(f"\n{title}")
    for row in rows:
        first, *others = (cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths)))
        print("  " + "  ".join([first, *others]))


def number(value):
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def met(value, goal):
    """Whether what was measured is within its goal, if there are both."""
    if value is None or goal is None:
        return "-"
    return "yes" if value <= goal else "no"
