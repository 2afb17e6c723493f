"""A picture of one scenario, one line per contender: a victim's slowest answers, or what waits at the head."""

import math

COLOURS = {"nothing": "#c0392b", "rayguard": "#1f7a4d", "nginx": "#8e8e93", "haproxy": "#b08900", "envoy-adaptive": "#5b5bd6"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 300, 64, 46, 44


class Axis:
    """The height of a value: on a scale of decades, or on an even one."""

    def __init__(self, low, high, marks, decades):
        self.low, self.high, self.marks, self.decades = low, high, marks, decades

    def y(self, value):
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.decades:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


LATENCY = Axis(1.0, 30_000.0, ((1, "1 ms"), (10, "10 ms"), (100, "100 ms"), (1000, "1 s"), (10000, "10 s")), decades=True)


def x_of(second, length):
    return LEFT + second / length * (WIDTH - LEFT - 16)


def plot(notes, results, stream):
    """A victim's slowest answers; a cross where a request was not answered in time."""
    length = max(len(result["seconds"][stream]["due"]) for result in results)
    said = "Slowest answer in each second; a cross is a request not answered in time."
    out = frame(notes, length, LATENCY, f"{stream}, while somebody floods a real Ray head", said)
    for place, result in enumerate(results):
        seconds = result["seconds"][stream]
        out += line(result, place, [(s + 0.5, ms) for s, ms in enumerate(seconds["p99_ms"]) if ms is not None], length, LATENCY)
        for second, (due, in_time) in enumerate(zip(seconds["due"], seconds["in_time"])):
            if in_time < due:
                x, y = x_of(second + 0.5, length), TOP + 6 + 9 * place
                colour = COLOURS.get(result["contender"], "#444")
                out.append(f'<path d="M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6" stroke="{colour}" stroke-width="1.5"/>')
    return "\n".join([*out, "</svg>"])


def plot_backlog(notes, results):
    """How many submissions waited to become a process."""
    series = [result["backlog"]["series"] for result in results]
    length = max(second for points in series for second, _ in points)
    step = next(step for step in (10, 25, 50, 100, 250, 1000) if step * 5 >= max(n for points in series for _, n in points))
    axis = Axis(0, 5 * step, [(n * step, str(n * step)) for n in range(6)], decades=False)
    out = frame(notes, length, axis, "jobs that a real Ray head has accepted and cannot begin yet", "By the head's own list.")
    for place, (result, points) in enumerate(zip(results, series)):
        out += line(result, place, points, length, axis)
    return "\n".join([*out, "</svg>"])


def frame(notes, length, axis, title, said):
    begin, end = notes["flood"]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<rect x="{x_of(begin, length):.1f}" y="{TOP}" width="{x_of(min(end, length), length) - x_of(begin, length):.1f}" height="{HEIGHT - TOP - BOTTOM}" fill="#f4ece4"/>',
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold" fill="#222">{title}</text>',
        f'<text x="{LEFT}" y="35" fill="#555">{notes["title"]} (shaded). {said}</text>',
    ]
    for value, label in axis.marks:
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{axis.y(value):.1f}" y2="{axis.y(value):.1f}" stroke="#e2e2e2"/>')
        out.append(f'<text x="{LEFT - 8}" y="{axis.y(value) + 4:.1f}" text-anchor="end" fill="#555">{label}</text>')
    for second in range(0, int(length) + 1, 5 if length <= 90 else 10 if length <= 180 else 20):
        out.append(f'<text x="{x_of(second, length):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#555">{second}</text>')
    out.append(f'<text x="{WIDTH - 16}" y="{HEIGHT - 8}" text-anchor="end" fill="#555">seconds</text>')
    return out


def line(result, place, points, length, axis):
    """One contender's line and its place in the legend."""
    colour = COLOURS.get(result["contender"], "#444")
    drawn = " ".join(f"{x_of(second, length):.1f},{axis.y(value):.1f}" for second, value in points)
    x = LEFT + 150 * place
    label = "without" if result["contender"] == "nothing" else f"with {result['contender']}"
    return [
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{drawn}"/>',
        f'<line x1="{x}" x2="{x + 22}" y1="{HEIGHT - 12}" y2="{HEIGHT - 12}" stroke="{colour}" stroke-width="3"/>',
        f'<text x="{x + 28}" y="{HEIGHT - 8}" fill="#222">{label}</text>',
    ]
