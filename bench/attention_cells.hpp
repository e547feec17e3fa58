// SPDX-License-Identifier: Apache-2.0
/// \file
/// Tensors, pair counts and both passes of the cells of softmax attention.
#pragma once

#include <longview/window.hpp>

#include "benchmark_support.hpp"

namespace longview_bench {

/// Standard normal query, key and value, and room for the output.
template <typename T>
struct AttentionTensors {
  AttentionTensors(const Cell& cell, Index keys)
      : shape{cell["b"], cell["h"], cell["n"], cell["d"]},
        key_shape{cell["b"], cell["h"], keys, cell["d"]},
        q(normal<T>(count(shape), 1)),
        k(normal<T>(count(key_shape), 2)),
        v(normal<T>(count(key_shape), 3)),
        o(static_cast<std::size_t>(count(shape))),
        row_lse(static_cast<std::size_t>(count(shape) / shape[3])) {
    if (!cell.backward()) return;
    d_o = normal<T>(count(shape), 4);
    d_q.resize(q.size()), d_k.resize(k.size()), d_v.resize(v.size());
  }
  explicit AttentionTensors(const Cell& cell) : AttentionTensors(cell, cell["n"]) {}

  longview::TensorView<T, 4> query() { return {q.data(), shape}; }
  longview::TensorView<T, 4> key() { return {k.data(), key_shape}; }
  longview::TensorView<T, 4> value() { return {v.data(), key_shape}; }
  longview::TensorView<T, 4> out() { return {o.data(), shape}; }
  longview::TensorView<T, 3> lse() { return {row_lse.data(), {shape[0], shape[1], shape[2]}}; }
  longview::TensorView<const T, 4> d_out() const { return {d_o.data(), shape}; }
  longview::TensorView<T, 4> d_query() { return {d_q.data(), shape}; }
  longview::TensorView<T, 4> d_key() { return {d_k.data(), key_shape}; }
  longview::TensorView<T, 4> d_value() { return {d_v.data(), key_shape}; }

  static Index count(const longview::Shape<4>& extents) { return extents[0] * extents[1] * extents[2] * extents[3]; }

  longview::Shape<4> shape, key_shape;
  std::vector<T> q, k, v, o, row_lse, d_o, d_q, d_k, d_v;
};

/// Times `backward(run)` where the cell says so, after one call of `forward(run)`, and else `forward(run)`. `forward_flops`: of
/// the forward pass; the backward pass has five products of its size where the forward one has two.
template <typename T, typename Forward, typename Backward>
void measure_pass(benchmark::State& state, const Cell& cell, double forward_flops, const Forward& forward,
                  const Backward& backward) {
  if (!cell.backward()) return measure<T>(state, cell, forward_flops, forward);
  forward(longview::Run());
  measure<T>(state, cell, 2.5 * forward_flops, backward);
}

/// Unmasked pairs of one head of length n; the first `global` tokens are global.
inline double window_pairs(Index n, const longview::Window& window, Index global = 0) {
  double pairs = 0;
  for (Index i = 0; i < n; ++i) {
    const Index before = std::min(window.before, i / window.dilation);
    const Index after = std::min(window.after, (n - 1 - i) / window.dilation);
    const Index inside = std::max<Index>(0, global - std::max<Index>(0, i - before));
    pairs += static_cast<double>(i < global ? n : before + after + 1 + global - inside);
  }
  return pairs;
}

/// FLOPs of attention over `pairs` pairs of each head.
inline double attention_flops(const Cell& cell, double pairs) {
  return 4.0 * static_cast<double>(cell["b"] * cell["h"] * cell["d"]) * pairs;
}

/// Calls body<T>(state, cell) with the element type of the cell.
#define LONGVIEW_BY_TYPE(body)                                  \
  [](benchmark::State& state, const longview_bench::Cell& cell) { \
    cell.type() == "f64" ? body<double>(state, cell) : body<float>(state, cell); \
  }

}  // namespace longview_bench
