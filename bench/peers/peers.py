#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the attention implementations of other packages on the cells of cells.py, and the library's beside them.

The driver owns one worker process per peer and visits the cells one by one, so that all who know a cell are measured within
seconds of each other, with the machine's FMA rate taken before and after each of them. Only one process works at a time.
"""
import argparse
import ctypes
import datetime
import gc
import json
import math
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cells import SGEMM, Cell, compared_cells

HERE = Path(__file__).resolve().parent
PEER_MODULES = {
    "torch_peers": ["torch-sdpa", "torch-sdpa-cpp", "torch-flex", "torch-chunked", "hf-longformer", "lucid-linformer",
                    "performer-pytorch", "lucid-compressive", "local-attention"],
    "runtime_peers": ["ort-mha", "ort-gqa", "ort-attention", "openvino", "jax-dpa", "google-performer-jax"],
}
PEER_NAMES = [name for names in PEER_MODULES.values() for name in names]
SLOW_CALL = 8            # a call of more seconds is sampled twice, not five times
TIMEOUT = 300            # seconds for one peer on one cell
QUICK = 4096             # --quick: no longer cells
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}
COUNTERS = ("workspace_bytes", "allocations", "resident_growth")


def undisturbed(samples):
    """Seconds of (elapsed, busy) pairs. Where the process did not run all the time, another one had the core: such samples
    are dropped, and where no others are left the busy time is taken."""
    kept = [elapsed for elapsed, busy in samples if busy >= 0.95 * elapsed]
    return kept or [min(sample) for sample in samples]


# ---------------------------------------------------------------- worker: one peer, one process

def sample_times(call, min_time):
    """(elapsed, busy) seconds per call: at least 5 good samples (2 of slow calls), each of at least 0.5 ms."""
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    inner = max(1, math.ceil(5e-4 / max(once, 1e-7)))
    samples, total, wanted = [], 0.0, 2 if once > SLOW_CALL else 5
    while len(samples) < 5 * wanted and len(undisturbed(samples)) < wanted or total < min_time and len(samples) < 200:
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(inner):
            call()
        elapsed, busy = time.perf_counter() - start, time.process_time() - busy
        total += elapsed
        samples.append((elapsed / inner, busy / inner))
    return samples


class Worker:
    def __init__(self, name):
        module = next(module for module, names in PEER_MODULES.items() if name in names)
        self.peer = next(peer for peer in __import__(module).PEERS if peer.name == name)()
        self.checked = {}

    def check(self, cell, job, x):
        import reference
        return reference.error(cell, x, job.outputs(), job.eps)

    def answer(self, request):
        import reference
        cell = Cell(request["cell"])
        if not self.peer.supports(cell):
            return {"unsupported": True}
        checkable, small = cell.operator != "sgemm", cell.small()
        if checkable and small.name not in self.checked and self.peer.supports(small):
            x = reference.inputs(small)
            self.checked[small.name] = self.check(small, self.peer.build(small, x), x)
        x = reference.inputs(cell)
        start = time.perf_counter()
        job = self.peer.build(cell, x)
        built = time.perf_counter()
        job.call()
        result = {"build_ms": 1e3 * (built - start), "first_call_ms": 1e3 * (time.perf_counter() - built), "note": job.note}
        errors = [self.checked.get(small.name), self.check(cell, job, x) if checkable else None]
        known = [e for e in errors if e is not None]
        result["max_error"] = max(known, default=None)
        allowed = job.tolerance or reference.tolerance(cell)
        if known and not max(known) <= allowed:
            return result | {"error_message": f"wrong result: error {max(known):.1e}, allowed {allowed:.0e}"}
        samples = sample_times(job.call, request["min_time"])
        return result | {"samples": [(elapsed / job.calls, busy / job.calls) for elapsed, busy in samples]}


def work(name):
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                                         # packages may print; the channel stays clean
    worker = None
    for line in sys.stdin:
        try:
            worker = worker or Worker(name)
            reply = worker.answer(json.loads(line))
        except ImportError as e:
            reply = {"missing": str(e)}
        except Exception as e:                            # a peer's failure is a result, not the end of the run
            reply = {"error_message": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}
        gc.collect()
        channel.write(json.dumps(reply) + "\n")


# ---------------------------------------------------------------- driver

class WorkerProcess:
    def __init__(self, name, options):
        self.name, self.options, self.process = name, options, None

    def start(self):
        environment = os.environ | {key: "1" for key in (
            "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")}
        environment |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu",
                        "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1",
                        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}   # ninja of the environment
        if self.options.performer_jax:
            environment["PERFORMER_JAX"] = str(self.options.performer_jax.resolve())
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", self.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=HERE, stderr=None if self.options.verbose else subprocess.DEVNULL)

    def ask(self, request):
        if self.process is None:
            self.start()
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        in_time = bool(select.select([self.process.stdout], [], [], TIMEOUT)[0])
        if in_time and (line := self.process.stdout.readline()):
            return json.loads(line)
        if not in_time:
            self.process.kill()
        code, self.process = self.process.wait(), None
        return {"error_message": f"process ended with status {code}" if in_time else f"timeout after {TIMEOUT} s"}

    def stop(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()
            self.process = None


class Library:
    """The library's benchmark programs: Google Benchmark, with benchmarks named as the cells."""
    def __init__(self, programs, options):
        self.programs, self.options, self.context = {}, options, {}
        for program in programs:
            names = subprocess.run([program, "--benchmark_list_tests"], capture_output=True, text=True, check=True).stdout
            self.programs |= {name.removesuffix("/real_time"): program for name in names.split()}

    def ask(self, request):
        """Five repetitions of the cell."""
        name = request["cell"]
        run = subprocess.run([self.programs[name], f"--benchmark_filter=^{re.escape(name)}(/real_time)?$",
                              "--benchmark_format=json", "--benchmark_repetitions=5",
                              f"--benchmark_min_time={request['min_time'] / 5}", *self.options], capture_output=True, text=True)
        try:
            report = json.loads(run.stdout)
        except json.JSONDecodeError:
            return {"error_message": f"process ended with status {run.returncode}"}
        self.context = report["context"]
        found = [b for b in report["benchmarks"] if b.get("run_type") == "iteration" and not b.get("error_occurred")]
        if not found:
            return {"error_message": next((b["error_message"] for b in report["benchmarks"] if "error_message" in b), "nothing")}
        seconds = lambda b, key: b[key] * UNITS[b["time_unit"]]
        samples = [(seconds(b, "real_time"), seconds(b, "cpu_time")) for b in found]
        return {"samples": samples} | {key: max(b[key] for b in found) for key in COUNTERS if key in found[0]}


class Probe:
    """The FMA rate by probes.c; without a C compiler the shares are left out."""
    def __init__(self):
        self.library, self.rates = None, []
        with tempfile.TemporaryDirectory() as work:
            target = Path(work) / "probes.so"
            try:
                subprocess.run([os.environ.get("CC", "cc"), "-O3", "-march=native", "-mprefer-vector-width=512", "-shared",
                                "-fPIC", "-o", target, HERE / "probes.c"], check=True, capture_output=True)
                self.library = ctypes.CDLL(str(target))
                self.library.fma_gflops.restype = ctypes.c_double
            except (OSError, subprocess.CalledProcessError) as e:
                print(f"no FMA probe: {e}", flush=True)

    def rate(self):
        """GFLOP/s: the best of six short runs, so that one interruption does not count."""
        return max(self.library.fma_gflops(ctypes.c_double(0.004)) for _ in range(6)) if self.library else None

    def around(self, ask, attempts=3):
        """The reply and the FMA rate around it; again when the rate says that the machine was busy elsewhere."""
        for _ in range(attempts):
            before = self.rate()
            reply = ask()
            if before is None or "samples" not in reply:
                return reply, before
            rate = min(before, self.rate())
            self.rates.append(rate)
            if rate > 0.9 * statistics.median(self.rates):
                break
        return reply, rate

    def spread(self):
        rates = self.rates
        return {"min": min(rates), "median": statistics.median(rates), "max": max(rates)} if rates else None


def entry(name, cell, reply, fma):
    """One benchmark in Google Benchmark's form, plus our fields."""
    out = {"name": name, "run_name": name, "run_type": "iteration", "time_unit": "ms"}
    fields = ("max_error", "first_call_ms", "build_ms", "note", *COUNTERS)
    out |= {key: reply[key] for key in fields if reply.get(key) not in (None, "")}
    if "samples" in reply:
        samples = undisturbed(reply["samples"])
        median = statistics.median(samples)
        gflops = cell.flops() / median * 1e-9
        out |= {"real_time": median * 1e3, "min_time_ms": min(samples) * 1e3, "max_time_ms": max(samples) * 1e3,
                "repetitions": len(samples), "disturbed": len(reply["samples"]) - len(samples), "useful_gflops": gflops}
        if fma:
            out |= {"fma_gflops": fma, "share_of_fma": gflops / fma}
    if message := reply.get("error_message"):
        out |= {"error_occurred": True, "error_message": message}
    return out


def show(name, out):
    if "real_time" not in out:
        return f"    {name:22} {out.get('error_message', '')[:110]}"
    text = f"    {name:22} {out['real_time']:11.4f} ms {out['useful_gflops']:9.2f} GFLOP/s"
    text += f" {100 * out['share_of_fma']:6.1f} %" if "share_of_fma" in out else ""
    return text + (f"  err {out['max_error']:.0e}" if out.get("max_error") is not None else "")


def first_value(file, key):
    """The value of the first line `key : value` of a file, or the first line without a key."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[-1].strip() for line in lines if line.startswith(key)), None)


def versions():
    from importlib.metadata import PackageNotFoundError, version
    found = {}
    for line in (HERE / "requirements.txt").read_text().splitlines():
        package = line.split("==")[0].strip()
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def drive(options):
    # All processes on one core: JAX starts more threads whatever it is told.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    library = Library(options.library, options.library_options)
    names = compared_cells()
    if options.every_cell:
        # Those with fields that no peer has are the library's alone; cells on two threads are not measured here.
        names += [name for name in library.programs if name not in names and "/t2" not in name]
    cells = [cell for cell in map(Cell, names) if re.search(options.cells, cell.name)]
    if options.quick:
        cells = [cell for cell in cells if cell.keys <= QUICK]
    cells = [Cell(SGEMM[0]), *cells, Cell(SGEMM[1])]
    compared = {*compared_cells(), *SGEMM}
    workers = {name: WorkerProcess(name, options) for name in PEER_NAMES if re.search(options.peers, name)}
    probe, min_time = Probe(), 0.1 if options.quick else 0.4
    benchmarks, missing = [], {}
    context = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
               "machine": first_value("/proc/cpuinfo", "model name"), "num_cpus": os.cpu_count(), "threads": 1,
               "governor": first_value("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", ""), "versions": versions()}

    def save():
        for key in ("instruction_set", "compiler", "flags"):
            context[key] = library.context.get(key)
        context["fma_probe"], context["missing"] = probe.spread(), missing
        if options.out:
            options.out.write_text(json.dumps({"context": context, "benchmarks": benchmarks}, indent=1) + "\n")

    start = time.monotonic()
    for count, cell in enumerate(cells):
        spent = time.monotonic() - start
        known = sys.stdout.isatty() and count > 3
        left = f", about {math.ceil(spent / count * (len(cells) - count) / 60)} min left" if known else ""
        print(f"[{count + 1}/{len(cells)}{left}] {cell.name}", flush=True)
        askers = [("longview", library)] if cell.name in library.programs else []
        askers += [(name, worker) for name, worker in workers.items() if name not in missing and cell.name in compared]
        for name, asker in askers:
            reply, fma = probe.around(lambda: asker.ask({"cell": cell.name, "min_time": min_time}))
            if "missing" in reply:
                missing[name] = reply["missing"]
                print(f"    {name:22} left out: {reply['missing']}", flush=True)
            if "missing" in reply or "unsupported" in reply:
                continue
            full_name = f"library/{cell.name}" if asker is library else f"peer/{name}/{cell.name}"
            benchmarks.append(entry(full_name, cell, reply, fma))
            print(show(name, benchmarks[-1]), flush=True)
        save()
    for worker in workers.values():
        worker.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="Other options go to the library's programs.", allow_abbrev=False)
    parser.add_argument("--cells", default="", help="regular expression on cell names")
    parser.add_argument("--peers", default="", help="regular expression on peer names: " + ", ".join(PEER_NAMES))
    parser.add_argument("--library", nargs="*", default=[], metavar="PROGRAM", help="benchmark programs of the library")
    parser.add_argument("--every-cell", action="store_true", help="also the library's cells that no peer is asked for")
    parser.add_argument("--quick", action="store_true", help=f"only cells up to {QUICK} keys, shorter samples")
    parser.add_argument("--performer-jax", type=Path, metavar="FILE",
                        help="google-research's performer/fast_attention/jax/fast_attention.py")
    parser.add_argument("--out", type=Path, help="JSON file, written after every cell")
    parser.add_argument("--list", action="store_true", help="print the cell names and stop")
    parser.add_argument("--verbose", action="store_true", help="show what the peers print")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options, options.library_options = parser.parse_known_args()
    if options.worker:
        work(options.worker)
    elif options.list:
        print("\n".join(compared_cells()))
    else:
        drive(options)


if __name__ == "__main__":
    main()
