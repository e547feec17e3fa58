#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Markdown tables from the JSON files of bench/run: the library's cells, or the library beside its peers.

    bench/table.py build/bench/*_bench.json
    bench/table.py build/bench/peers.json
"""
import argparse
import statistics

from results import bytes_text, exponent, machine, note_probe, read, time_text

FULL, WINDOW = "full_{}/f32/b1/h1/n2048/d64", "window_{}/f32/b1/h1/n8192/d64/before{}/after{}"
COMPRESSIVE = "compressive_{}/f32/b1/h1/n512/d64/mem512/cmem512{}"
# What, and the cells whose times are divided.
RATIOS = [
    ("causal over dense", FULL.format("forward_causal"), FULL.format("forward")),
    ("causal over dense, backward", FULL.format("backward_causal"), FULL.format("backward")),
    ("backward over forward", FULL.format("backward"), FULL.format("forward")),
    ("backward over forward, causal", FULL.format("backward_causal"), FULL.format("forward_causal")),
    ("window of 64 over 256", WINDOW.format("forward", 64, 64), WINDOW.format("forward", 256, 256)),
    ("dilation 4 over 1", WINDOW.format("forward", 64, 64) + "/dilation4", WINDOW.format("forward", 64, 64)),
    ("keys in three segments over one", COMPRESSIVE.format("forward", ""), COMPRESSIVE.format("contiguous", "")),
    ("the same, relative", COMPRESSIVE.format("forward", "/relpos1"), COMPRESSIVE.format("contiguous", "/relpos1")),
]
SECOND = "/t2"  # a cell with this field is divided into the one without


def row(*columns):
    return "| " + " | ".join("" if column is None else str(column) for column in columns) + " |"


def head(*columns):
    return row(*columns) + "\n|" + "---|" * len(columns)


def percent(share):
    return None if share is None else f"{100 * share:.0f} %"


def optional(function, value):
    return None if value is None else function(value)


def own_table(cells):
    yield head("cell", "time", "GFLOP/s", "of peak", "workspace", "allocations", "resident growth")
    for cell, r in cells.items():
        yield row(cell, time_text(r.seconds), f"{r.gflops:.1f}", percent(r.share), optional(bytes_text, r.workspace),
                  optional("{:.3g}".format, r.allocations), optional(bytes_text, r.growth))
    if disturbed := [cell for cell, r in cells.items() if r.disturbed]:
        yield f"\n{len(disturbed)} cells shared their core with another process; their time is the process's own."


def ratio_table(results):
    ours = results.ours
    rows = [(what, f"{ours[a].seconds / ours[b].seconds:.2f}") for what, a, b in RATIOS if a in ours and b in ours]
    rows += [(f"two threads: speed over twice that of one, {one}", f"{ours[one].seconds / ours[cell].seconds / 2:.2f}")
             for cell in ours if cell.endswith(SECOND) and (one := cell.removesuffix(SECOND)) in ours]
    for operator in ("full_forward", "full_backward", "window_forward", "window_backward", "linformer_forward",
                     "linformer_backward", "performer_forward", "performer_forward_causal", "performer_backward",
                     "performer_backward_causal"):
        tail = {"w": "/before256/after256", "l": "/k256", "p": "/m256"}.get(operator[0], "")
        first = 1024 if operator.startswith("full") else 2048
        lengths = [(n, ours[cell].seconds) for n in (2 ** k for k in range(10, 21))
                   if (cell := f"{operator}/f32/b1/h1/n{n}/d64{tail}") in ours and n >= first]
        if len(lengths) >= 3:
            rows.append((f"growth of time with n, {lengths[0][0]} to {lengths[-1][0]}: {operator}",
                         f"n^{exponent(lengths):.2f}"))
    if rows:
        yield head("times compared", "ratio")
        yield from (row(*columns) for columns in rows)


def comparison_table(results):
    sgemm, ratios = results.sgemm(), []
    yield head("cell", "time", "GFLOP/s", "of FMA", "of sgemm", "best peer", "its GFLOP/s", "ratio")
    for cell in results.compared():
        r, (name, peer) = results.ours[cell], results.best_peer(cell)
        ratio = peer.seconds / r.seconds
        ratios.append(ratio)
        ratio_text = f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"
        yield row(cell, time_text(r.seconds), f"{r.gflops:.1f}", percent(r.share),
                  percent(r.gflops / sgemm if sgemm else None), name, f"{peer.gflops:.1f}", ratio_text)
    if ratios:
        yield ""
        yield (f"Faster than every peer in {sum(ratio >= 1 for ratio in ratios)} of {len(ratios)} cells; ratios from "
               f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}.")
    if sgemm:
        yield f"sgemm: a product of 2048 x 2048 matrices by PyTorch on one thread, {sgemm:.0f} GFLOP/s in this run."


def absences(results):
    missing = results.context.get("missing", {})
    yield f"Peers missing: {len(missing) or 'none'}"
    for peer, message in missing.items():
        yield f"- {peer}: {message}"
    if results.failures:
        yield "\nAsked, without a result:"
    for (who, message), cells in results.failures.items():
        yield f"- {who}, {len(cells)} cells ({cells[0]}{', ...' if len(cells) > 1 else ''}): {message}"


def report(results):
    yield machine(results)
    if versions := results.context.get("versions"):
        yield ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    if results.peers:
        yield from ["", *comparison_table(results), "", *absences(results)]
    if alone := {cell: r for cell, r in results.ours.items() if cell not in results.peers}:
        yield from ["", *own_table(alone)]
    yield from ["", *ratio_table(results)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    for file in (files := parser.parse_args().files):
        note_probe(file)
    print("\n".join(report(read(files))))


if __name__ == "__main__":
    main()
