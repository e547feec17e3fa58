#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The scripts of this directory on recorded runs; nothing but Python's own library. Arguments: the benchmark programs."""
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "peers")]

import plot
import results
import table
from cells import Cell, compared_cells

PROGRAMS = sys.argv[1:]
WINDOW = "window_forward/f32/b1/h1/n2048/d64/before16/after16"


def measured(cell, real_time, cpu_time, **more):
    return {"name": f"{cell}/real_time", "run_type": "iteration", "real_time": real_time, "cpu_time": cpu_time,
            "time_unit": "us", "GFLOP/s": 1e5 / real_time, "of_peak": 1e3 / real_time, "peak_GFLOP/s": 100.0,
            "workspace_bytes": 2048, "allocations": 0, "resident_growth": 4096} | more


LIBRARY = {
    "context": {"machine": "some processor", "instruction_set": "avx2", "compiler": "GNU 12", "flags": "-O2"},
    "benchmarks": [
        # Twice alone on its core, once not; another cell never alone; two lengths for a plot.
        measured(WINDOW, 2000, 2000), measured(WINDOW, 9000, 3000), measured(WINDOW, 2200, 2200),
        measured("full_forward/f32/b1/h1/n16/d64", 4000, 1000),
        measured("full_forward/f32/b1/h1/n1024/d64", 10000, 10000), measured("full_forward/f32/b1/h1/n2048/d64", 40000, 40000),
    ],
}


def peer(name, cell, milliseconds, **more):
    return {"name": f"peer/{name}/{cell}", "run_type": "iteration", "time_unit": "ms", "real_time": milliseconds,
            "useful_gflops": 100 / milliseconds, "fma_gflops": 90.0} | more


PEERS = {
    "context": {"missing": {"jax-dpa": "No module named 'jax'"}},
    "benchmarks": [
        {"name": f"library/{WINDOW}", "run_type": "iteration", "time_unit": "ms", "real_time": 2.0, "useful_gflops": 50.0,
         "fma_gflops": 100.0, "share_of_fma": 0.5, "workspace_bytes": 2048, "allocations": 0},
        peer("torch-sdpa", "sgemm/f32/n2048", 1.25), peer("slow", WINDOW, 8.0), peer("quick", WINDOW, 3.0),
        {"name": f"peer/broken/{WINDOW}", "error_occurred": True, "error_message": "wrong result"},
    ],
}


class Scripts(unittest.TestCase):
    def setUp(self):
        work = tempfile.TemporaryDirectory()
        self.addCleanup(work.cleanup)
        self.work = Path(work.name)

    def file(self, run):
        path = self.work / "run.json"
        path.write_text(json.dumps(run))
        return str(path)

    def output(self, main, *arguments):
        text = io.StringIO()
        with mock.patch.object(sys, "argv", ["script", *arguments]), contextlib.redirect_stdout(text):
            main()
        return text.getvalue()

    def test_repetitions_of_which_one_was_disturbed(self):
        window = results.read([self.file(LIBRARY)]).ours[WINDOW]
        self.assertAlmostEqual(window.seconds, 2.1e-3)
        self.assertFalse(window.disturbed)
        self.assertEqual(window.scratch, 2048 + 4096)

    def test_time_of_the_process_on_a_shared_core(self):
        shared = results.read([self.file(LIBRARY)]).ours["full_forward/f32/b1/h1/n16/d64"]
        self.assertTrue(shared.disturbed)
        self.assertAlmostEqual(shared.seconds, 1e-3)
        self.assertAlmostEqual(shared.gflops, 100)

    def test_table_of_the_library(self):
        file = self.file(LIBRARY)
        text = self.output(table.main, file)
        self.assertIn("some processor, avx2, GNU 12, -O2, FMA peak of one thread 100 GFLOP/s", text)
        self.assertIn(f"| {WINDOW} | 2.1 ms | 47.7 | 48 % | 2 KiB | 0 | 4 KiB |", text)
        self.assertIn("1 cells shared their core", text)
        self.assertEqual(json.loads(Path(file).read_text())["context"]["fma_probe"]["median"], 100)

    def test_table_beside_peers(self):
        text = self.output(table.main, self.file(PEERS))
        self.assertIn(f"| {WINDOW} | 2 ms | 50.0 | 50 % | 62 % | quick | 33.3 | 1.50 |", text)
        self.assertIn("- jax-dpa: No module named 'jax'", text)
        self.assertIn(f"- broken, 1 cells ({WINDOW}): wrong result", text)

    def test_plots_as_text_without_matplotlib(self):
        with mock.patch.dict(sys.modules, {"matplotlib": None}):
            text = self.output(plot.main, self.file(LIBRARY), "--out", str(self.work))
        self.assertIn("matplotlib is not installed", text)
        self.assertIn("full: n^2.00: 1024: 10 ms, 2048: 40 ms", text)

    def test_pairs_of_cells(self):
        tail = "/f32/b1/h1/n40/d8"
        for fields in ("/before3/after5", "/before3/after0", "/before2/after2/dilation4", "/before3/after3/global6"):
            cell = Cell("window_forward" + tail + fields)
            seen = [(i, j) for i in range(40) for j in range(40)
                    if i < getattr(cell, "global") or j < getattr(cell, "global") or (i - j) % cell.dilation == 0
                    and -cell.after * cell.dilation <= i - j <= cell.before * cell.dilation]
            self.assertEqual(cell.pairs(), len(seen), fields)
        self.assertEqual(Cell("full_forward_causal" + tail).flops(), 4 * 8 * 40 * 41 // 2)
        self.assertEqual(Cell("compressive_backward" + tail + "/mem10/cmem5").flops(), 10 * 8 * (15 * 40 + 40 * 41 // 2))

    def test_the_library_has_every_cell_of_the_comparison(self):
        if not PROGRAMS:
            self.skipTest("no programs given")
        listed = [subprocess.run([program, "--benchmark_list_tests"], capture_output=True, text=True, check=True).stdout
                  for program in PROGRAMS]
        names = {name.removesuffix("/real_time") for text in listed for name in text.split()}
        self.assertEqual([cell for cell in compared_cells() if cell not in names], [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
