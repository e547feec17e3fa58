// SPDX-License-Identifier: Apache-2.0
// Performer, forward: positive features of queries and keys (m of them), then linear attention, both ways and causal. Useful
// FLOP: 8 n m d, features included; `state_GFLOP/s` counts the state and the query alone, 4 n m d.
// smallest cell: ^performer_forward/f32/b1/h1/n1024/d64/m256

#include <longview/performer_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void performer_forward(benchmark::State& state, const Cell& cell) {
  AttentionTensors<T> x(cell);
  const Index m = cell["m"], d = cell["d"];
  const std::vector<T> w = normal<T>(m * d, 4);
  const longview::PerformerOptions<T> options{.projection = {w.data(), {m, d}}, .causal = cell.causal()};
  const double flops = 8.0 * static_cast<double>(cell["b"] * cell["h"] * cell["n"]) * static_cast<double>(m * d);
  measure<T>(state, flops, [&](longview::Run run) {
    longview::performer_attention(x.query(), x.key(), x.value(), x.out(), options, run);
  });
  state.counters["state_GFLOP/s"] = state.counters["GFLOP/s"].value / 2;
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  for (const char* direction : {"performer_forward", "performer_forward_causal"}) {
    for (const int n : {1024, 4096, 16384})
      names.push_back(std::string(direction) + "/f32/b1/h1/n" + std::to_string(n) + "/d64/m256");
    names.push_back(std::string(direction) + "/f32/b1/h1/n4096/d128/m256");
    names.push_back(std::string(direction) + "/f32/b1/h8/n4096/d64/m64");
    names.push_back(std::string(direction) + "/f64/b1/h1/n4096/d64/m256");
  }
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(performer_forward), cells()); }
