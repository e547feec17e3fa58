#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws time against length, one line per operator, from the JSON files of bench/run.

    bench/plot.py build/bench/*.json --out bench/time_against_length.svg
    bench/plot.py build/bench/*.json --backward --out backward.svg
"""
import argparse
import json
import math
import re
import sys

# Label, and the cells that make the line: the length is the group.
LINES = [
    ("full", r"full_forward/f32/b1/h1/n(\d+)/d64"),
    ("full, causal", r"full_forward_causal/f32/b1/h1/n(\d+)/d64"),
    ("sliding window, 256 on each side", r"window_forward/f32/b1/h1/n(\d+)/d64/before256/after256"),
    ("Longformer, 256 on each side and 64 global", r"longformer_forward/f32/b1/h1/n(\d+)/d64/before256/after256/global64"),
    ("Linformer, 256 slots", r"linformer_forward/f32/b1/h1/n(\d+)/d64/k256"),
    ("Performer, 256 features", r"performer_forward/f32/b1/h1/n(\d+)/d64/m256"),
    ("Performer, causal", r"performer_forward_causal/f32/b1/h1/n(\d+)/d64/m256"),
]


def milliseconds(entry):
    return entry["real_time"] * {"ns": 1e-6, "us": 1e-3, "ms": 1, "s": 1e3}[entry["time_unit"]]


def exponent(points):
    """The slope of a least-squares line through the logarithms."""
    x, y = [math.log(n) for n, _ in points], [math.log(t) for _, t in points]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--backward", action="store_true", help="the backward passes")
    parser.add_argument("--out", default="time_against_length.svg")
    options = parser.parse_args()
    runs = [json.load(open(name)) for name in options.files]
    times = {entry["name"].removesuffix("/real_time"): milliseconds(entry)
             for run in runs for entry in run["benchmarks"] if entry.get("run_type") == "iteration" and "real_time" in entry}
    lines = []
    for label, pattern in LINES:
        if options.backward:
            pattern = pattern.replace("_forward", "_backward")
        found = [(int(match[1]), time) for name, time in times.items() if (match := re.fullmatch(pattern, name))]
        # Short calls measure the cost of a call, not the growth.
        points = sorted(point for point in found if point[0] >= 1024)
        if len(points) >= 2:
            lines.append((f"{label}: n^{exponent(points):.2f}", points))
    if not lines:
        sys.exit("plot.py: no cells with lengths found; run bench/run first")
    try:
        import matplotlib
        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "longview"  # the same file for the same numbers
        import matplotlib.pyplot as plt
    except ImportError:
        print("plot.py: matplotlib is not installed (apt: python3-matplotlib); the numbers, in milliseconds:")
        for label, points in lines:
            print(f"  {label}: " + ", ".join(f"n {n} {time:.2f}" for n, time in points))
        return
    figure, axes = plt.subplots(figsize=(8, 5))
    for label, points in lines:
        axes.plot(*zip(*points), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="length", ylabel="milliseconds a call, one thread")
    axes.set_title(f"{'Backward, one' if options.backward else 'One'} head of 64 channels, float32, {runs[0]['context'].get('instruction_set', '')}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(ticks := sorted({n for _, points in lines for n, _ in points}), [str(n) for n in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None} if options.out.endswith(".svg") else None)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
