# SPDX-License-Identifier: Apache-2.0
"""Inputs of cells, and a float64 reference for every operator, written for clarity; numpy only."""
import numpy as np

SCORES_AT_ONCE = 2048 * 2048


def inputs(cell, seed=7):
    """Standard normal arrays, float32, [batch, heads, length, head size].

    Performer queries and keys are halved: at unit variance and d = 64 the constants that the implementations add to every
    feature are larger than the features, and their outputs no longer mean anything.
    """
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    b, h, n, d = cell.b, cell.h, cell.n, cell.d
    x = {"q": draw(b, h, n, d), "k": draw(b, h, cell.keys, d), "v": draw(b, h, cell.keys, d)}
    if cell.backward:
        x["do"] = draw(b, h, n, d)
    if cell.operator == "linformer":
        x["e"], x["f"] = (draw(n, cell.k) / np.float32(cell.k ** 0.5) for _ in range(2))
    if cell.operator == "performer":
        x["w"], x["q"], x["k"] = draw(cell.m, d), x["q"] / 2, x["k"] / 2
    if cell.relpos:
        x["r"] = draw(h, cell.keys, d)
    return x


def allowed(cell, rows):
    """Boolean [rows, keys]: which keys each query may see."""
    i, j = np.asarray(rows)[:, None], np.arange(cell.keys)[None, :]
    position = i + (cell.keys - cell.n)                     # queries are the last n positions
    keep = np.ones((len(rows), cell.keys), bool)
    if cell.causal:
        keep &= j <= position
    if cell.windowed:
        distance = position - j
        keep &= (distance <= cell.before * cell.dilation) & (-distance <= cell.after * cell.dilation)
        keep &= distance % cell.dilation == 0
    g = getattr(cell, "global")
    return keep | (i < g) | (j < g) if g else keep


def softmax_attention(cell, q, k, v, keep, rows, do=None, r=None):
    """[o] or, with do, [dq, dk, dv]; one head, float64. `keep` is boolean [rows, keys]."""
    scale = cell.d ** -0.5
    scores = q[rows] @ k.T * scale
    if r is not None:                                    # Transformer-XL shift: column j of row i uses r[j + n - 1 - i]
        index = np.arange(cell.keys)[None, :] + cell.n - 1 - np.asarray(rows)[:, None]
        scores += np.take_along_axis(q[rows] @ r.T * scale, np.minimum(index, cell.keys - 1), 1)
    scores[~keep] = -np.inf
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    if do is None:
        return [p @ v]
    dp = do @ v.T
    ds = p * (dp - (dp * p).sum(1, keepdims=True)) * scale
    dq = ds @ k
    if r is not None:
        shifted = np.zeros((cell.n, cell.keys))
        np.add.at(shifted, (np.arange(cell.n)[:, None], np.minimum(index, cell.keys - 1)), ds)
        dq += shifted @ r
    return [dq, ds.T @ q, p.T @ do]


def linformer(cell, q, k, v, e, f, do=None):
    kp, vp, rows = e.T @ k, f.T @ v, np.arange(cell.n)
    keep = np.ones((cell.n, cell.k), bool)
    if do is None:
        return softmax_attention(cell, q, kp, vp, keep, rows)
    dq, dkp, dvp = softmax_attention(cell, q, kp, vp, keep, rows, do)
    return [dq, e @ dkp, f @ dvp, k @ dkp.T, v @ dvp.T]


def performer(cell, q, k, v, w, eps, do=None):
    """FAVOR+ with positive softmax features, stabilised by the row maximum (queries) and the overall maximum (keys).

    `eps` is the pair of constants an implementation adds: to every feature, and to the sum of the key features.
    """
    norm, ratio = cell.d ** -0.25, cell.m ** -0.5
    stretch = {"q": 1, "k": None}

    def features(x, which):
        dash = norm * x @ w.T
        top = dash.max(stretch[which], keepdims=True)
        return np.exp(dash - (x * x).sum(1, keepdims=True) / 2 * norm ** 2 - top) * ratio

    eq, ek = features(q, "q"), features(k, "k")
    pq, pk = eq + ratio * eps[0], ek + ratio * eps[0]
    a = pq @ pk.T
    if cell.causal:
        a = np.tril(a)
    z = a.sum(1, keepdims=True) + eps[1] * pq.sum(1, keepdims=True)
    o = a @ v / z
    if do is None:
        return [o]
    da = (do @ v.T - (do * o).sum(1, keepdims=True)) / z
    if cell.causal:
        da = np.tril(da)

    def pull(g, e, x):                                   # through the features; the stabiliser is a constant
        t = g * e
        return norm * t @ w - norm ** 2 * x * t.sum(1, keepdims=True)

    dq = da @ pk - eps[1] * (do * o).sum(1, keepdims=True) / z
    return [pull(dq, eq, q), pull(da.T @ pq, ek, k), (a / z).T @ do]


def expected(cell, x, rows, eps=(0.0, 0.0)):
    """List of [b, heads, ...] float64 arrays in the order the peers return them."""
    x = {key: value.astype(np.float64) for key, value in x.items()}
    results = []
    for b in range(cell.b):
        for h in range(cell.h):
            q, k, v = (x[key][b, h] for key in "qkv")
            do = x["do"][b, h] if cell.backward else None
            if cell.operator == "linformer":
                results.append(linformer(cell, q, k, v, x["e"], x["f"], do))
            elif cell.operator == "performer":
                results.append(performer(cell, q, k, v, x["w"], eps, do))
            else:
                results.append(softmax_attention(cell, q, k, v, allowed(cell, rows), rows, do, x["r"][h] if cell.relpos else None))
    stacked = [np.stack(parts).reshape(cell.b, cell.h, *parts[0].shape) for parts in zip(*results)]
    # Gradients of the shared Linformer projections add up over heads.
    return stacked[:3] + [part.sum((0, 1)) for part in stacked[3:]]


def error(cell, x, outputs, eps=(0.0, 0.0)):
    """Largest error of the outputs relative to the largest reference value; inf when something is not finite.

    Big softmax forward cells are checked on 48 sampled rows, big backward and feature cells not at all (None).
    """
    whole = cell.n * cell.keys * cell.h <= SCORES_AT_ONCE
    rowwise = not cell.backward and cell.operator not in ("linformer", "performer")
    if not whole and not rowwise:
        return None
    rows = np.arange(cell.n) if whole or cell.n <= 48 else np.sort(np.random.default_rng(1).choice(cell.n, 48, replace=False))
    worst = 0.0
    for got, want in zip(outputs, expected(cell, x, rows, eps), strict=True):
        got = np.asarray(got, np.float64)
        got = got if whole or len(rows) == cell.n else got[:, :, rows]
        if got.shape != want.shape or not np.isfinite(got).all():
            return float("inf")
        worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))
    return worst


def tolerance(cell):
    return 2e-3 if cell.backward or cell.operator == "performer" else 2e-4
