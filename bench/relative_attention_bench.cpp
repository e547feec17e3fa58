// SPDX-License-Identifier: Apache-2.0
// Relative attention, forward and backward: a segment over its memory. The backward pass has eight products of keys or
// distances, the forward one three.
// smallest cell: ^relative_forward/f32/b1/h1/n512/d64/mem512/

#include <longview/relative_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void relative(benchmark::State& state, const Cell& cell) {
  const Index n = cell["n"], keys = n + cell["mem"], d = cell["d"];
  AttentionTensors<T> x(cell, keys);
  const std::vector<T> table = normal<T>(keys * d, 4), bias = normal<T>(2 * d, 5);
  std::vector<T> d_table(table.size()), d_bias(bias.size());
  const longview::RelativeOptions<T> options{.position = {table.data(), {1, keys, d}},
                                             .content_bias = {bias.data(), {1, d}},
                                             .position_bias = {bias.data() + d, {1, d}}};
  const double pairs = static_cast<double>(n * keys) - static_cast<double>(n * (n - 1)) / 2;
  const double product = attention_flops(cell, pairs) / 2;
  const auto forward = [&](longview::Run run) {
    longview::relative_attention(x.query(), x.key(), x.value(), {x.out(), x.lse()}, options, run);
  };
  if (!cell.backward()) return measure<T>(state, cell, 3 * product, forward);
  forward(longview::Run());
  measure<T>(state, cell, 8 * product, [&](longview::Run run) {
    longview::relative_attention_backward(x.query(), x.key(), x.value(), {x.out(), x.lse()},
                                          {.out = x.d_out(),
                                           .query = x.d_query(),
                                           .key = x.d_key(),
                                           .value = x.d_value(),
                                           .position = {d_table.data(), {1, keys, d}},
                                           .content_bias = {d_bias.data(), {1, d}},
                                           .position_bias = {d_bias.data() + d, {1, d}}},
                                          options, run);
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run_cells(argc, argv, LONGVIEW_BY_TYPE(relative),
                   {"relative_forward/f32/b1/h1/n512/d64/mem512", "relative_forward/f32/b1/h1/n512/d64/mem1536",
                    "relative_forward/f32/b1/h1/n2048/d64/mem2048",
                    "relative_backward/f32/b1/h1/n512/d64/mem512", "relative_backward/f32/b1/h1/n2048/d64/mem2048"});
}
