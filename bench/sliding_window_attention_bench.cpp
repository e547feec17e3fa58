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
  const auto add = [&](const std::string& pass, int n, int d, int before, int after, const std::string& last = "") {
    names.push_back(pass + "/f32/b1/h1/n" + std::to_string(n) + "/d" + std::to_string(d) + "/before" +
                    std::to_string(before) + "/after" + std::to_string(after) + last);
  };
  const std::string forward = "window_forward", backward = "window_backward";
  for (const int n : {2048, 8192, 32768})
    for (const int w : {16, 64, 256})
      for (const int after : {w, 0}) add(forward, n, 64, w, after);
  add(forward, 8192, 64, 64, 64, "/dilation4");
  for (const int n : {2048, 8192})
    for (const int w : {64, 256}) add(backward, n, 64, w, w);
  // Widths and lengths for the growth of time with them.
  for (const std::string& pass : {forward, backward}) {
    for (const int w : {32, 128, 512, 1024}) add(pass, 8192, 64, w, w);
    for (const int n : {1024, 4096, 16384, 65536}) add(pass, n, 64, 256, 256);
    for (const char* last : {"/avx2", "/t2"}) add(pass, 8192, 64, 256, 256, last);
    add(pass, 8192, 64, 64, 64, "/t2");
  }
  add(backward, 8192, 64, 16, 16);
  add(backward, 32768, 64, 256, 256);
  for (const int w : {16, 64, 256}) add(forward, 8192, 128, w, w);
  // A million tokens, where anything quadratic would show.
  for (const std::string& pass : {forward, backward}) add(pass, 1048576, 64, 256, 256);
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(sliding_window), cells()); }
