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
  for (const std::string kind : {"full_forward", "full_forward_causal"}) {
    for (const int n : {16, 32, 64}) names.push_back(kind + "/f32/b1/h1/n" + std::to_string(n) + "/d64");
    for (const int d : {32, 64, 128})
      for (const int n : {128, 512, 2048, 8192})
        names.push_back(kind + "/f32/b1/h1/n" + std::to_string(n) + "/d" + std::to_string(d));
    for (const int n : {128, 512}) names.push_back(kind + "/f32/b1/h8/n" + std::to_string(n) + "/d64");
    for (const int n : {1024, 4096, 16384}) names.push_back(kind + "/f32/b1/h1/n" + std::to_string(n) + "/d64");
    for (const int d : {80, 96, 256}) names.push_back(kind + "/f32/b1/h1/n2048/d" + std::to_string(d));
    for (const int d : {64, 128}) names.push_back(kind + "/f64/b1/h1/n2048/d" + std::to_string(d));
  }
  for (const std::string kind : {"full_backward", "full_backward_causal"}) {
    for (const int n : {512, 1024, 2048, 4096, 16384}) names.push_back(kind + "/f32/b1/h1/n" + std::to_string(n) + "/d64");
    names.push_back(kind + "/f32/b1/h1/n2048/d128");
    names.push_back(kind + "/f64/b1/h1/n2048/d64");
  }
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(full_attention), cells()); }
