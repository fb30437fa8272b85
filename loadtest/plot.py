#!/usr/bin/env python3
"""Plots an open-loop measurement as SVG and prints it as a table: plot.py MEASUREMENTS.csv PLOT.svg

Columns of the file: series, offered requests/s, completed requests/s, p50, p99 and p99.9 in ms, CPU time of the process
in percent of a core, errors. Lines with the same series and rate are rounds, of which the medians are plotted.
"""
import math
import statistics
import sys

WIDTH, LEFT, RIGHT, PANEL, GAP, TOP = 760, 64, 700, 250, 60, 64
PERCENTILES = ["p50", "p99", "p99.9"]
DASHES = {"p50": "", "p99": "7 4", "p99.9": "2 3"}
COLOURS = ["first", "second", "third"]
# The background is drawn, because the background of the embedding page is unknown.
STYLE = """
svg { font: 12px system-ui, sans-serif }
.back { fill: #ffffff } text { fill: #24292f } .title { font-weight: 600; font-size: 14px }
.grid { stroke: #d8dee4; stroke-width: 1 } .ideal { stroke: #8c959f; stroke-width: 1; stroke-dasharray: 3 3 }
.line { fill: none; stroke-width: 2 }
.first { stroke: #0550ae } .second { stroke: #bc4c00 } .third { stroke: #57606a }
circle.first { fill: #0550ae } circle.second { fill: #bc4c00 } circle.third { fill: #57606a }
@media (prefers-color-scheme: dark) {
.back { fill: #0d1117 } text { fill: #e6edf3 } .grid { stroke: #30363d } .ideal { stroke: #8b949e }
.first { stroke: #79c0ff } .second { stroke: #ffa657 } .third { stroke: #b1bac4 }
circle.first { fill: #79c0ff } circle.second { fill: #ffa657 } circle.third { fill: #b1bac4 }
}
"""


def read(path):
    """Returns the rates of each series with the medians of their rounds."""
    rounds = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            series, rate, *values = line.strip().split(",")
            rounds.setdefault(series, {}).setdefault(int(rate), []).append([float(value) for value in values])
    return {
        series: {rate: [statistics.median(column) for column in zip(*lines)] for rate, lines in sorted(rates.items())}
        for series, rates in rounds.items()
    }


def table(measured):
    print(f"\n{'open loop':10} {'offered/s':>9} {'completed/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'p99.9 ms':>9} {'busy %':>7}")
    for series, rates in measured.items():
        for rate, (completed, p50, p99, p999, busy, _) in rates.items():
            print(f"{series:10} {rate:9} {completed:11.0f} {p50:8.2f} {p99:8.2f} {p999:9.2f} {busy:7.0f}")


def nice_step(span, count):
    """Returns a round step that divides the span into about `count` parts."""
    raw = span / count
    size = 10 ** math.floor(math.log10(raw))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)


def shown(number):
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"


def shown_time(ms):
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


class Panel:
    """A coordinate system with the offered rate on the x axis."""

    def __init__(self, top, rate_max, low, high, is_log):
        self.top, self.rate_max, self.low, self.high, self.is_log = top, rate_max, low, high, is_log

    def x(self, rate):
        return LEFT + (RIGHT - LEFT) * rate / self.rate_max

    def y(self, value):
        scale = math.log10 if self.is_log else float
        share = (scale(max(value, self.low)) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.top + PANEL * (1 - share)

    def axes(self, title, ticks, show):
        yield f'<text class="title" x="{LEFT}" y="{self.top - 40}">{title}</text>'
        for value in ticks:
            y = self.y(value)
            yield f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{show(value)}</text>'
        step = nice_step(self.rate_max, 8)
        for index in range(int(self.rate_max / step) + 1):
            x = self.x(index * step)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.top + PANEL}"/>'
            yield f'<text x="{x:.1f}" y="{self.top + PANEL + 18}" text-anchor="middle">{shown(index * step)}</text>'
        yield f'<text x="{RIGHT}" y="{self.top + PANEL + 36}" text-anchor="end">offered requests/s</text>'

    def line(self, colour, points, dash="", dots=True):
        path = " ".join(f"{self.x(rate):.1f},{self.y(value):.1f}" for rate, value in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        yield f'<polyline class="line {colour}" points="{path}"{dashes}/>'
        for rate, value in points if dots else ():
            yield f'<circle class="{colour}" cx="{self.x(rate):.1f}" cy="{self.y(value):.1f}" r="2.5"/>'


def legend(y, entries):
    """Yields a short line and a name for each (colour, dash, name), from left to right."""
    x = LEFT
    for colour, dash, name in entries:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        yield f'<line class="line {colour}" x1="{x}" x2="{x + 26}" y1="{y}" y2="{y}"{dashes}/>'
        yield f'<text x="{x + 32}" y="{y + 4}">{name}</text>'
        x += 54 + 7 * len(name)


def draw(measured):
    every = [(rate, values) for rates in measured.values() for rate, values in rates.items()]
    rate_max = max(rate for rate, _ in every) * 1.02
    completed_max = max(max(rate, values[0]) for rate, values in every) * 1.02
    latencies = [value for _, values in every for value in values[1:4] if value > 0]
    low, high = 10 ** math.floor(math.log10(min(latencies))), 10 ** math.ceil(math.log10(max(latencies)))
    first = Panel(TOP, rate_max, 0, completed_max, False)
    second = Panel(first.top + PANEL + GAP + 44, rate_max, low, max(high, 10 * low), True)
    colours = dict(zip(measured, COLOURS))
    height = second.top + PANEL + 48
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
    yield "<title>Throughput and latency of an open loop against the offered rate</title>"
    yield f"<style>{STYLE}</style>"
    yield f'<rect class="back" width="{WIDTH}" height="{height}"/>'

    step = nice_step(completed_max, 5)
    yield from first.axes("completed requests/s", [step * i for i in range(int(completed_max / step) + 1)], shown)
    diagonal = min(rate_max, completed_max)
    yield (f'<line class="ideal" x1="{first.x(0):.1f}" y1="{first.y(0):.1f}" x2="{first.x(diagonal):.1f}" '
           f'y2="{first.y(diagonal):.1f}"/>')
    for series, rates in measured.items():
        yield from first.line(colours[series], [(rate, values[0]) for rate, values in rates.items()])
    yield from legend(first.top - 20, [(colours[series], "", series) for series in measured]
                      + [("ideal", "3 3", "offered load")])

    decades = [10 ** n for n in range(round(math.log10(second.low)), round(math.log10(second.high)) + 1)]
    yield from second.axes("latency from the scheduled time of a request", decades, shown_time)
    for series, rates in measured.items():
        for index, name in enumerate(PERCENTILES, 1):
            points = [(rate, values[index]) for rate, values in rates.items()]
            yield from second.line(colours[series], points, DASHES[name])
    yield from legend(second.top - 20, [(colours[series], DASHES[name], f"{series} {name}")
                                        for series in measured for name in PERCENTILES])
    yield "</svg>"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    measured = read(sys.argv[1])
    table(measured)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write("\n".join(draw(measured)) + "\n")


if __name__ == "__main__":
    main()
