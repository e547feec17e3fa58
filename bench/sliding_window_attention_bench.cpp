// SPDX-License-Identifier: Apache-2.0
// Sliding windows, forward and backward: time per token should not depend on the length.
// smallest cell: ^window_forward/f32/b1/h1/n2048/d64/before16/after0

#include <longview/sliding_window_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void sliding_window(benchmark::State& state, const Cell& cell) {
  AttentionTensors<T> x(cell);
  const longview::SlidingWindowOptions<T> options{.window = {cell["before"], cell["after"], cell.get("dilation", 1)}};
  measure_pass<T>(
      state, cell, attention_flops(cell, window_pairs(cell["n"], options.window)),
      [&](longview::Run run) {
        longview::sliding_window_attention(x.query(), x.key(), x.value(), {x.out(), x.lse()}, options, run);
      },
      [&](longview::Run run) {
        longview::sliding_window_attention_backward(
            x.query(), x.key(), x.value(), {x.out(), x.lse()},
            {.out = x.d_out(), .query = x.d_query(), .key = x.d_key(), .value = x.d_value()}, options, run);
      });
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  for (const int n : {2048, 8192, 32768})
    for (const int w : {16, 64, 256})
      for (const int after : {w, 0})
        names.push_back("window_forward/f32/b1/h1/n" + std::to_string(n) + "/d64/before" + std::to_string(w) + "/after" +
                        std::to_string(after));
  for (const std::string pass : {"window_forward", "window_backward"})
    for (const int n : {1024, 4096, 16384, 65536})
      names.push_back(pass + "/f32/b1/h1/n" + std::to_string(n) + "/d64/before256/after256");
  for (const int w : {16, 64, 256})
    names.push_back("window_forward/f32/b1/h1/n8192/d128/before" + std::to_string(w) + "/after" + std::to_string(w));
  names.push_back("window_forward/f32/b1/h1/n8192/d64/before64/after64/dilation4");
  for (const int w : {16, 64, 256})
    names.push_back("window_backward/f32/b1/h1/n8192/d64/before" + std::to_string(w) + "/after" + std::to_string(w));
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(sliding_window), cells()); }
