# SPDX-License-Identifier: Apache-2.0
"""Benchmark cells: a cell is its name, `<operator>_<direction>[_causal]/<dtype>/<letter+number>/...`.

Everything another program needs to measure the same problem is in the name. Fields, in the order they are written:

  b batch, h heads, n queries, d head size,
  before / after (inclusive neighbours besides the query itself, counted in steps of `dilation`), dilation,
  global (the first G positions are global), k (Linformer length), m (Performer features),
  mem / cmem (memory and compressed memory lengths, in front of the n current positions), relpos (Transformer-XL term).
"""
import re
from dataclasses import dataclass, field

INF = 1 << 40
DEFAULTS = {"b": 1, "h": 1, "n": 1, "d": 1, "before": INF, "after": INF, "dilation": 1, "global": 0, "k": 0, "m": 0,
            "mem": 0, "cmem": 0, "relpos": 0}


@dataclass(frozen=True)
class Cell:
    name: str
    op: str = field(init=False)
    dtype: str = field(init=False)
    size: dict = field(init=False, compare=False)

    def __post_init__(self):
        op, dtype, *parts = self.name.split("/")
        size = {key: int(number) for key, number in (re.fullmatch(r"([a-z]+)(\d+)", part).groups() for part in parts)}
        for key, value in (("op", op), ("dtype", dtype), ("size", size)):
            object.__setattr__(self, key, value)

    def __getattr__(self, key):
        if key not in DEFAULTS:
            raise AttributeError(key)
        return self.size.get(key, DEFAULTS[key])

    @property
    def keys(self):
        return self.n + self.mem + self.cmem

    @property
    def operator(self):
        return self.op.split("_")[0]

    @property
    def causal(self):
        return self.op.endswith("_causal") or self.operator == "compressive" or self.after == 0

    @property
    def backward(self):
        return "_backward" in self.op

    @property
    def windowed(self):
        return self.before < INF

    def small(self):
        """The same problem, small enough to be checked completely."""
        caps = {"n": 256, "before": 16, "after": 16, "k": 32, "global": 4, "mem": 64, "cmem": 64, "h": 2}
        parts = [f"{key}{min(value, caps.get(key, value))}" for key, value in self.size.items()]
        return Cell("/".join([self.op, self.dtype, *parts]))

    def pairs(self):
        """Unmasked (query, key) pairs of one head."""
        n, step, count = self.n, self.dilation, getattr(self, "global")
        if not self.windowed:
            return n * self.keys - (n * (n - 1) // 2 if self.causal else 0)
        pairs = count * n
        for i in range(count, n):
            before, after = min(self.before, i // step), min(self.after, (n - 1 - i) // step)
            pairs += before + after + 1 + min(count, i - before)      # globals inside the window count once
        return pairs

    def flops(self):
        """Useful floating point operations of one call; masked pairs and recomputation do not count."""
        heads, n, d = self.b * self.h, self.n, self.d
        if self.operator == "sgemm":
            return 2 * n ** 3
        if self.operator == "linformer":
            return heads * n * self.k * d * (18 if self.backward else 8)
        if self.operator == "performer":
            return heads * n * self.m * d * (12 if self.backward else 8)
        return heads * self.pairs() * d * (10 if self.backward else 6 if self.relpos else 4)


def compared_cells():
    """What the library and its peers are both asked for."""
    out = []
    for kind in ("full_forward", "full_forward_causal"):
        out += [f"{kind}/f32/b1/h1/n{n}/d64" for n in (16, 32, 64)]
        out += [f"{kind}/f32/b1/h1/n{n}/d{d}" for d in (32, 64, 128) for n in (128, 512, 2048, 8192)]
        out += [f"{kind}/f32/b1/h8/n{n}/d64" for n in (128, 512)]
    for kind in ("full_backward", "full_backward_causal"):
        out += [f"{kind}/f32/b1/h1/n{n}/d{d}" for d in (64, 128) for n in (512, 2048, 4096)]
    for n in (2048, 8192, 32768):
        for w in (16, 64, 256):
            out += [f"window_forward/f32/b1/h1/n{n}/d64/before{w}/after{after}" for after in (w, 0)]
    out += ["window_forward/f32/b1/h1/n8192/d64/before64/after64/dilation4"]
    out += [f"window_backward/f32/b1/h1/n{n}/d64/before{w}/after{w}" for n in (2048, 8192) for w in (64, 256)]
    out += [f"longformer_{way}/f32/b1/h1/n{n}/d64/before256/after256/global64" for way in ("forward", "backward")
            for n in (4096, 16384)]
    out += [f"linformer_{way}/f32/b1/h1/n{n}/d64/k256" for way in ("forward", "backward") for n in (1024, 4096, 16384)]
    out += [f"performer_{way}/f32/b1/h1/n{n}/d64/m256"
            for way in ("forward", "forward_causal", "backward", "backward_causal") for n in (1024, 4096, 16384)]
    out += [f"compressive_{way}/f32/b1/h1/n512/d64/mem512/cmem512{tail}" for way in ("forward", "backward")
            for tail in ("", "/relpos1")]
    return out


SGEMM = ["sgemm/f32/n2048", "sgemm/f32/n2048/repeat1"]   # at the beginning and at the end of a run
