// SPDX-License-Identifier: Apache-2.0
// Relative attention, forward: a segment over its memory.
// smallest cell: ^relative_forward/f32/b1/h1/n512/d64/mem512/

#include <longview/relative_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void relative_forward(benchmark::State& state, const Cell& cell) {
  const Index n = cell["n"], keys = n + cell["mem"], d = cell["d"];
  AttentionTensors<T> x(cell, keys);
  const std::vector<T> table = normal<T>(keys * d, 4), bias = normal<T>(2 * d, 5);
  const double pairs = static_cast<double>(n * keys) - static_cast<double>(n * (n - 1)) / 2;
  measure<T>(state, 1.5 * attention_flops(cell, pairs), [&](longview::Run run) {
    longview::relative_attention(x.query(), x.key(), x.value(), x.out(),
                                 {.position = {table.data(), {1, keys, d}},
                                  .content_bias = {bias.data(), {1, d}},
                                  .position_bias = {bias.data() + d, {1, d}}},
                                 run);
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run_cells(argc, argv, LONGVIEW_BY_TYPE(relative_forward),
                   {"relative_forward/f32/b1/h1/n512/d64/mem512", "relative_forward/f32/b1/h1/n512/d64/mem1536",
                    "relative_forward/f32/b1/h1/n2048/d64/mem2048"});
}
