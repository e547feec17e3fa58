// SPDX-License-Identifier: Apache-2.0
// Full attention, forward and backward: time against length and head size, dense and causal.
// smallest cell: ^full_forward/f32/b1/h1/n16/d64

#include <longview/full_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void full_attention(benchmark::State& state, const Cell& cell) {
  AttentionTensors<T> x(cell);
  const longview::Scores<T> options{.causal = cell.causal()};
  const double n = static_cast<double>(cell["n"]), pairs = cell.causal() ? n * (n + 1) / 2 : n * n;
  measure_pass<T>(
      state, cell, attention_flops(cell, pairs),
      [&](longview::Run run) {
        longview::full_attention(x.query(), x.key(), x.value(), {x.out(), x.lse()}, options, run);
      },
      [&](longview::Run run) {
        longview::full_attention_backward(
            x.query(), x.key(), x.value(), {x.out(), x.lse()},
            {.out = x.d_out(), .query = x.d_query(), .key = x.d_key(), .value = x.d_value()}, options, run);
      });
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  const auto add = [&](const std::string& kind, int heads, int n, int d, const std::string& last = "") {
    names.push_back(kind + "/h" + std::to_string(heads) + "/n" + std::to_string(n) + "/d" + std::to_string(d) + last);
  };
  for (const std::string causal : {"", "_causal"}) {
    const std::string forward = "full_forward" + causal, backward = "full_backward" + causal;
    for (const int n : {16, 32, 64}) add(forward + "/f32/b1", 1, n, 64);
    for (const int d : {32, 64, 128})
      for (const int n : {128, 512, 2048, 8192}) add(forward + "/f32/b1", 1, n, d);
    for (const int n : {128, 512}) add(forward + "/f32/b1", 8, n, 64);
    for (const int d : {64, 128})
      for (const int n : {512, 2048, 4096}) add(backward + "/f32/b1", 1, n, d);
    // Lengths for the growth of time with them, other head sizes, doubles.
    for (const int n : {1024, 4096, 16384}) add(forward + "/f32/b1", 1, n, 64);
    for (const int n : {1024, 8192, 16384}) add(backward + "/f32/b1", 1, n, 64);
    for (const int d : {80, 96, 256}) add(forward + "/f32/b1", 1, 2048, d);
    for (const int d : {64, 128}) add(forward + "/f64/b1", 1, 2048, d);
    add(backward + "/f64/b1", 1, 2048, 64);
    for (const int d : {64, 128}) add(forward + "/f32/b1", 1, 2048, d, "/avx2");
    add(backward + "/f32/b1", 1, 2048, 64, "/avx2");
    for (const std::string& pass : {forward, backward}) {
      for (const char* threads : {"", "/t2"}) add(pass + "/f32/b1", 8, 2048, 64, threads);
      add(pass + "/f32/b1", 1, 4096, 64, "/t2");
    }
  }
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(full_attention), cells()); }
