// SPDX-License-Identifier: Apache-2.0
// Longformer, forward and backward: a window and global tokens, one set of projections.
// smallest cell: ^longformer_forward/f32/b1/h1/n4096/

#include <longview/longformer_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void longformer(benchmark::State& state, const Cell& cell) {
  AttentionTensors<T> x(cell);
  std::vector<Index> globals(static_cast<std::size_t>(cell["global"]));
  for (std::size_t token = 0; token < globals.size(); ++token) globals[token] = static_cast<Index>(token);
  const longview::LongformerOptions<T> options{.window = {cell["before"], cell["after"], 1}, .global = {.tokens = {globals}}};
  measure_pass<T>(
      state, cell, attention_flops(cell, window_pairs(cell["n"], options.window, cell["global"])),
      [&](longview::Run run) {
        longview::longformer_attention(x.query(), x.key(), x.value(), {x.out(), x.lse()}, options, run);
      },
      [&](longview::Run run) {
        longview::longformer_attention_backward(
            x.query(), x.key(), x.value(), {x.out(), x.lse()},
            {.out = x.d_out(), .query = x.d_query(), .key = x.d_key(), .value = x.d_value()}, options, run);
      });
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  for (const std::string pass : {"longformer_forward", "longformer_backward"})
    for (const int n : {1024, 4096, 16384, 65536})
      names.push_back(pass + "/f32/b1/h1/n" + std::to_string(n) + "/d64/before256/after256/global64");
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(longformer), cells()); }
