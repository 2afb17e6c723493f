"""A picture of one scenario: a victim's slowest answer in each second, one line per contender."""

import math

COLOURS = {"nothing": "#c0392b", "rayguard": "#1f7a4d", "nginx": "#8e8e93", "haproxy": "#b08900", "envoy-adaptive": "#5b5bd6"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 300, 64, 46, 44
LOW_MS, HIGH_MS = 1.0, 30_000.0


def y_of(ms):
    share = (math.log10(min(max(ms, LOW_MS), HIGH_MS)) - math.log10(LOW_MS)) / (math.log10(HIGH_MS) - math.log10(LOW_MS))
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def x_of(second, length):
    return LEFT + second / length * (WIDTH - LEFT - 16)


def plot(notes, results, stream):
    """The SVG; a cross where a request was not answered in time."""
    length = max(len(result["seconds"][stream]["due"]) for result in results)
    begin, end = notes["flood"]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<rect x="{x_of(begin, length):.1f}" y="{TOP}" width="{x_of(end, length) - x_of(begin, length):.1f}" height="{HEIGHT - TOP - BOTTOM}" fill="#f4ece4"/>',
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold" fill="#222">{stream}, while somebody floods a real Ray head</text>',
        f'<text x="{LEFT}" y="35" fill="#555">{notes["title"]} (shaded). Slowest answer in each second; a cross is a request not answered in time.</text>',
    ]
    for ms, label in ((1, "1 ms"), (10, "10 ms"), (100, "100 ms"), (1000, "1 s"), (10000, "10 s")):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{y_of(ms):.1f}" y2="{y_of(ms):.1f}" stroke="#e2e2e2"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y_of(ms) + 4:.1f}" text-anchor="end" fill="#555">{label}</text>')
    for second in range(0, length + 1, 5 if length <= 90 else 10):
        out.append(f'<text x="{x_of(second, length):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#555">{second}</text>')
    out.append(f'<text x="{WIDTH - 16}" y="{HEIGHT - 8}" text-anchor="end" fill="#555">seconds</text>')
    for place, result in enumerate(results):
        out += line(result, stream, length, place)
    out.append("</svg>")
    return "\n".join(out)


def line(result, stream, length, place):
    """One contender's line, its crosses and its place in the legend."""
    colour = COLOURS.get(result["contender"], "#444")
    seconds = result["seconds"][stream]
    points = [(x_of(s + 0.5, length), y_of(ms)) for s, ms in enumerate(seconds["p99_ms"]) if ms is not None]
    out = [f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>']
    for second, (due, in_time) in enumerate(zip(seconds["due"], seconds["in_time"])):
        if in_time < due:
            x, y = x_of(second + 0.5, length), TOP + 6 + 9 * place
            out.append(f'<path d="M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6" stroke="{colour}" stroke-width="1.5"/>')
    x = LEFT + 150 * place
    label = "without" if result["contender"] == "nothing" else f"with {result['contender']}"
    out.append(f'<line x1="{x}" x2="{x + 22}" y1="{HEIGHT - 12}" y2="{HEIGHT - 12}" stroke="{colour}" stroke-width="3"/>')
    out.append(f'<text x="{x + 28}" y="{HEIGHT - 8}" fill="#222">{label}</text>')
    return out
