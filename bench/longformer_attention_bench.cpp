// SPDX-License-Identifier: Apache-2.0
// Longformer, forward: a window and global tokens, one set of projections.
// smallest cell: ^longformer_forward/f32/b1/h1/n4096/

#include <longview/longformer_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void longformer_forward(benchmark::State& state, const Cell& cell) {
  AttentionTensors<T> x(cell);
  const longview::Window window{cell["before"], cell["after"], 1};
  std::vector<Index> globals(static_cast<std::size_t>(cell["global"]));
  for (std::size_t token = 0; token < globals.size(); ++token) globals[token] = static_cast<Index>(token);
  measure<T>(state, attention_flops(cell, window_pairs(cell["n"], window, cell["global"])), [&](longview::Run run) {
    longview::longformer_attention(x.query(), x.key(), x.value(), x.out(),
                                   {.window = window, .global = {.tokens = {globals}}}, run);
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run_cells(argc, argv, LONGVIEW_BY_TYPE(longformer_forward),
                   {"longformer_forward/f32/b1/h1/n1024/d64/before256/after256/global64",
                    "longformer_forward/f32/b1/h1/n4096/d64/before256/after256/global64",
                    "longformer_forward/f32/b1/h1/n16384/d64/before256/after256/global64"});
}
