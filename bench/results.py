# SPDX-License-Identifier: Apache-2.0
"""Reads what the benchmark programs and bench/peers/peers.py write. Standard library only."""
import json
import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}


@dataclass
class Result:
    """Of one cell: medians over its repetitions; what is not known is None."""
    seconds: float
    gflops: float
    share: float | None             # of the FMA peak
    workspace: float | None = None  # bytes
    allocations: float | None = None
    growth: float | None = None     # bytes
    disturbed: bool = False         # another process had the core: not the time that passed, but the process's own

    @property
    def scratch(self):
        return None if self.workspace is None else self.workspace + (self.growth or 0)


@dataclass
class Results:
    context: dict = field(default_factory=dict)
    ours: dict = field(default_factory=dict)      # cell: Result
    peers: dict = field(default_factory=dict)     # cell: {peer: Result}
    failures: dict = field(default_factory=dict)  # (peer, message): cells
    probes: list = field(default_factory=list)    # FMA rates of one thread in float, GFLOP/s

    def best_peer(self, cell):
        """Its name and result."""
        return min(self.peers[cell].items(), key=lambda peer: peer[1].seconds)

    def sgemm(self):
        """GFLOP/s of a 2048 x 2048 product in the same run, or None."""
        rates = [result.gflops for cell, peers in self.peers.items() if cell.startswith("sgemm/")
                 for result in peers.values()]
        return statistics.median(rates) if rates else None

    def compared(self):
        return [cell for cell in self.peers if cell in self.ours]

    def probe(self):
        if not self.probes:
            return None
        return {"min": min(self.probes), "median": statistics.median(self.probes), "max": max(self.probes)}


def result_of(entries):
    """The median of repetitions. Where another process had the core while ours was to run, the process's own time is what
    a call takes; on several threads it says nothing."""
    alone = [entry for entry in entries if entry.get("cpu_time", entry["real_time"]) >= 0.95 * entry["real_time"]]
    several_threads = "/t2" in entries[0]["name"]
    disturbed = not alone and not several_threads
    if alone and not several_threads:
        entries = alone

    def middle(*keys):
        values = [entry[key] for entry in entries for key in keys if key in entry]
        return statistics.median(values) if values else None

    clock = "cpu_time" if disturbed else "real_time"
    seconds = statistics.median(entry[clock] * UNITS[entry["time_unit"]] for entry in entries)
    faster = middle("real_time") / middle(clock)
    rate, share = middle("GFLOP/s", "useful_gflops"), middle("of_peak", "share_of_fma")
    return Result(seconds, rate * faster, None if share is None else share * faster, middle("workspace_bytes"),
                  middle("allocations"), middle("resident_growth"), disturbed)


def read(files):
    results = Results()
    for file in files:
        run = json.loads(Path(file).read_text())
        results.context |= {key: value for key, value in run["context"].items() if value}
        entries = {}
        for entry in run["benchmarks"]:
            name = entry["name"].removesuffix("/real_time").removeprefix("library/")
            if entry.get("error_occurred"):
                who, cell = name.removeprefix("peer/").split("/", 1) if name.startswith("peer/") else ("longview", name)
                results.failures.setdefault((who, entry["error_message"]), []).append(cell)
            elif entry.get("run_type") == "iteration" and "real_time" in entry:
                entries.setdefault(name, []).append(entry)
        for name, group in entries.items():
            if name.startswith("peer/"):
                peer, cell = name.removeprefix("peer/").split("/", 1)
                results.peers.setdefault(cell, {})[peer] = result_of(group)
            else:
                results.ours[name] = result_of(group)
            one_thread = "/f32/" in name and not re.search("/(avx2|t2)$", name)
            rates = [entry.get("peak_GFLOP/s", entry.get("fma_gflops")) for entry in group] if one_thread else []
            results.probes += [rate for rate in rates if rate]
    return results


def note_probe(file):
    """Writes the spread of the FMA probe over a run into its context, which was written before the run."""
    run = json.loads(Path(file).read_text())
    if (probe := read([file]).probe()) and "fma_probe" not in run["context"]:
        run["context"]["fma_probe"] = probe
        Path(file).write_text(json.dumps(run, indent=1) + "\n")


def machine(results):
    """One line: the machine, its instruction set and its peak."""
    context, probe = results.context, results.probe()
    parts = [context.get("machine", "unknown processor"), context.get("instruction_set"), context.get("compiler"),
             context.get("flags"), f"governor {context['governor']}" if "governor" in context else None]
    if probe:
        parts.append(f"FMA peak of one thread {probe['median']:.0f} GFLOP/s ({probe['min']:.0f} to {probe['max']:.0f})")
    return ", ".join(part for part in parts if part)


def exponent(points):
    """The slope of a least-squares line through the logarithms of (length, seconds)."""
    x, y = [math.log(n) for n, _ in points], [math.log(t) for _, t in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def time_text(seconds):
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            break
    return f"{seconds / size:.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:.0f} {unit}"


def bytes_text(count):
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count / size < 1000 else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"
