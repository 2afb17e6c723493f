"""What rayguard recorded on a real head, beside what the simulator makes of the same load.

    python3 benches/protection/simulated.py target/protection/*.rec

Each trace is replayed (`rayguard simulate --trace`) against the model of a Ray head, fitted where the
trace shows enough: under rayguard as shipped, and with limits off. A row per class: its requests
in the trace, what share was answered, and the median and the slowest hundredth of those.
"""

import json
import subprocess
import sys
from pathlib import Path

from contenders import find_rayguard

ASKED_MIN = 20  # of fewer, a slowest hundredth says nothing


def replay(path):
    command = [find_rayguard(), "simulate", "--trace", str(path), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{path}: {done.stderr}")
    return json.loads(done.stdout)


def figures(fared):
    def ms(value):
        return "-" if value is None else f"{value:.1f}" if value < 10 else f"{value:.0f}"

    share = f"{100 * fared['served'] / fared['asked']:.1f} %" if fared["asked"] else "-"
    return f"{share}, {ms(fared['p50_ms'])} / {ms(fared['p99_ms'])}"


def table(traces):
    """Markdown: answered, p50 / p99 in ms."""
    lines = []
    for path in traces:
        incident = replay(path)
        if not lines:
            lines = [
                "| trace | class | asked | " + " | ".join(incident["runs"]) + " |",
                "|---" * (3 + len(incident["runs"])) + "|",
            ]
        for row in incident["rows"]:
            if row["fared"][0]["asked"] >= ASKED_MIN:
                fared = " | ".join(figures(one) for one in row["fared"])
                lines.append(f"| {path.stem} | {row['class']} | {row['fared'][0]['asked']} | {fared} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(name) for name in sys.argv[1:]]))
