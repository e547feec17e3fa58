#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plots from the JSON files of bench/run, those for which they have the cells; SVG files into a directory.

    bench/plot.py build/bench/*_bench.json
    bench/plot.py build/bench/peers.json --out build/bench

  time_against_length    a call, per operator, with the exponent of the growth
  memory_against_length  scratch of a call: its workspace, and how much the process grew beside it
  time_against_window    a token, per window
  speed_against_peers    share of the machine's limit per cell, the best peer beside it; from a run with peers this alone
"""
import argparse
import re
from pathlib import Path

from results import bytes_text, exponent, read, time_text

# Label, and the cells that make the line: the length is the group.
OPERATORS = [
    ("full", r"full_{}/f32/b1/h1/n(\d+)/d64"),
    ("full, causal", r"full_{}_causal/f32/b1/h1/n(\d+)/d64"),
    ("sliding window, 256 on each side", r"window_{}/f32/b1/h1/n(\d+)/d64/before256/after256"),
    ("Longformer, 256 on each side, 64 global", r"longformer_{}/f32/b1/h1/n(\d+)/d64/before256/after256/global64"),
    ("Linformer, 256 slots", r"linformer_{}/f32/b1/h1/n(\d+)/d64/k256"),
    ("Performer, 256 features", r"performer_{}/f32/b1/h1/n(\d+)/d64/m256"),
    ("Performer, causal", r"performer_{}_causal/f32/b1/h1/n(\d+)/d64/m256"),
]
WINDOWS = [
    ("forward, both sides", r"window_forward/f32/b1/h1/n8192/d64/before(\d+)/after(\d+)"),
    ("forward, causal", r"window_forward/f32/b1/h1/n8192/d64/before(\d+)/after0"),
    ("backward, both sides", r"window_backward/f32/b1/h1/n8192/d64/before(\d+)/after(\d+)"),
]
SHORTEST = 1024          # shorter calls measure the cost of a call, not the growth
MARKERS = "os^Dv<>"


def points(results, pattern, value):
    """Sorted (length, value) of the cells that a pattern matches."""
    found = [(int(match[1]), value(result)) for cell, result in results.ours.items()
             if (match := re.fullmatch(pattern, cell))]
    return sorted((n, y) for n, y in found if n >= SHORTEST and y is not None)


def lines_of(results, direction, value, label=lambda name, line: name):
    """(label, points) per operator."""
    lines = [(name, points(results, pattern.format(direction), value)) for name, pattern in OPERATORS]
    return [(label(name, line), line) for name, line in lines if len(line) >= 2]


def time_against_length(results):
    grow = lambda name, line: f"{name}: n^{exponent(line):.2f}"
    return {direction: lines_of(results, direction, lambda r: r.seconds, grow) for direction in ("forward", "backward")}


def memory_against_length(results):
    return {direction: lines_of(results, direction, lambda r: r.scratch) for direction in ("forward", "backward")}


def time_against_window(results):
    lines = []
    for name, pattern in WINDOWS:
        found = [(int(match[1]) + (int(match[2]) if match.lastindex == 2 else 0) + 1, result.seconds / 8192)
                 for cell, result in results.ours.items()
                 if (match := re.fullmatch(pattern, cell)) and (match.lastindex == 1 or match[1] == match[2])]
        if len(found) >= 2:
            lines.append((name, sorted(found)))
    return {"8192 tokens": lines} if lines else {}


def title(results, rest):
    context = results.context
    machine = context.get("machine", "unknown processor")
    return f"{rest}\n{machine}, one thread, {context.get('instruction_set', '')}, float32"


def plain(value):
    return f"{value:g}"


def draw_lines(plt, ticker, results, panels, heading, x_label, y_label, y_text, y_ticks=None, scale=()):
    """Panels of log-log lines; `scale`: (label, function of x) drawn dashed for comparison."""
    panels = {name: lines for name, lines in panels.items() if lines}
    figure, all_axes = plt.subplots(1, len(panels), figsize=(6.2 * len(panels) + 0.4, 6.4), sharey=True, squeeze=False)
    for axes, (name, lines) in zip(all_axes[0], panels.items()):
        for i, (label, line) in enumerate(lines):
            # Lines that lie on each other stay visible: later ones are thinner, their markers smaller.
            axes.plot(*zip(*line), marker=MARKERS[i], label=label, linewidth=2.6 - 0.3 * i, markersize=9 - 0.8 * i)
        axes.set(xscale="log", yscale="log", xlabel=x_label)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)) if y_ticks is None else ticker.FixedLocator(y_ticks))
        if y_ticks:
            axes.set_ylim(y_ticks[0] / 1.5, y_ticks[-1] * 1.5)
        ticks = sorted({x for _, line in lines for x, _ in line})
        for label, function in scale:
            axes.plot(ticks, [function(x) for x in ticks], linestyle="--", color="gray", linewidth=1, label=label)
        axes.set_title(name, fontsize=10)
        axes.set_xticks(ticks, [plain(x) for x in ticks], rotation=45, fontsize=8)
        axes.yaxis.set_major_formatter(lambda value, _: y_text(value))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=2 if len(lines) > 3 else 1)
    all_axes[0][0].set_ylabel(y_label)
    figure.suptitle(title(results, heading), fontsize=11)
    figure.tight_layout()
    return figure


def short(cell):
    """A cell's name without what is the same in all."""
    for same, instead in (("/f32/b1", ""), ("/h1/", "/"), ("_forward", ""), ("_backward", ""), ("/", " ")):
        cell = cell.replace(same, instead)
    return cell


def draw_peers(plt, results):
    """Two columns of bars: forward and backward."""
    columns = [[cell for cell in results.compared() if ("_backward" in cell) == backward and results.ours[cell].share]
               for backward in (False, True)]
    columns = [cells for cells in columns if cells]
    height = 2 + 0.21 * max(map(len, columns))
    figure, all_axes = plt.subplots(1, len(columns), figsize=(7.6 * len(columns), height), squeeze=False)
    sgemm, probe = results.sgemm(), results.probe()
    for axes, cells in zip(all_axes[0], columns):
        for y, cell in enumerate(cells):
            ours, (name, peer) = results.ours[cell], results.best_peer(cell)
            share, ratio = 100 * ours.share, peer.seconds / ours.seconds
            axes.barh(y, share, height=0.74, color="tab:blue", label="this library" if y == 0 else None)
            axes.barh(y, share / ratio, height=0.3, color="tab:orange",
                      label="best peer, and its time over ours" if y == 0 else None)
            axes.text(108, y, f"{ratio:.2f}", va="center", ha="right", fontsize=7)
            axes.text(110, y, name, va="center", fontsize=7)
        if sgemm and probe:
            axes.axvline(100 * sgemm / probe["median"], color="black", linestyle=":", linewidth=1,
                         label="product of 2048 x 2048 matrices by PyTorch")
        axes.set_yticks(range(len(cells)), [short(cell) for cell in cells], fontsize=7)
        axes.set(xlim=(0, 142), ylim=(len(cells) - 0.4, -0.6), xlabel="% of the peak of fused multiply-adds")
        axes.set_title("backward" if "_backward" in cells[0] else "forward", fontsize=10)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(title(results, "Useful operations as a share of the machine's limit"), fontsize=11, y=1 - 0.1 / height)
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncol=3, loc="upper center", bbox_to_anchor=(0.5, 1 - 0.6 / height))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.45 / height))
    return figure


def print_lines(heading, panels, text):
    for name, lines in panels.items():
        print(f"\n{heading}, {name}:")
        for label, line in lines:
            print(f"  {label}: " + ", ".join(f"{x}: {text(y)}" for x, y in line))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", default="build/bench", help="directory")
    options = parser.parse_args()
    results = read(options.files)
    plots = [("time_against_length", "Time against length", time_against_length(results), time_text),
             ("memory_against_length", "Memory against length", memory_against_length(results), bytes_text),
             ("time_against_window", "Time of a token against keys in its window", time_against_window(results), time_text)]
    plots = [plot for plot in plots if any(plot[2].values()) and not results.compared()]
    if not plots and not results.compared():
        print("plot.py: no cells for any plot in these files")
        return
    try:
        import matplotlib
        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "longview"  # the same file for the same numbers
        import matplotlib.pyplot as plt
        import matplotlib.ticker as ticker
    except ImportError:
        print("plot.py: matplotlib is not installed (apt: python3-matplotlib), so here are the numbers:")
        for _, heading, panels, text in plots:
            print_lines(heading, panels, text)
        if results.compared():
            print("those of the table")
        return

    figures = {}
    for name, heading, panels, text in plots:
        x_label, y_label, y_ticks, scale = "length", "time of a call", None, []
        if name == "memory_against_length":
            y_label, y_ticks = "workspace and growth of the process", [1 << k for k in range(16, 28, 2)]
            scale = [("query, key, value and output", lambda n: 4 * 4 * 64 * n),
                     ("a matrix of all scores", lambda n: 4 * n * n)]
        elif name == "time_against_window":
            x_label, y_label = "keys that a query sees", "time of a token"
        figures[name] = draw_lines(plt, ticker, results, panels, heading + ", a head of 64 channels", x_label, y_label, text,
                                   y_ticks, scale)
    if results.compared():
        figures["speed_against_peers"] = draw_peers(plt, results)
    for name, figure in figures.items():
        path = Path(options.out) / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        print(f"written: {path}")


if __name__ == "__main__":
    main()
