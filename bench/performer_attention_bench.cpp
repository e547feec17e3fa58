// SPDX-License-Identifier: Apache-2.0
// Performer: positive features of queries and keys (m of them), then linear attention, both ways and causal. Useful
// FLOP of n positions with d channels: forward 8 n m d, features included; `state_GFLOP/s` counts the state and the
// query alone, 4 n m d. Backward 12 n m d: sums over queries 2, gradients of features 4, of values 2 and of inputs 4;
// products within a causal chunk do not count, nor what is made again with `recompute1`. Without that, the backward pass reads
// what the forward pass has left: projected queries and keys and, not causal, the sums over keys. `leave1`: the forward pass
// that leaves them.
// `performer_given_causal`: forward of the numerator alone with features that are given, the head's m channels
// themselves, and d channels of values: 4 n m d.
// smallest cell: ^performer_forward/f32/b1/h1/n1024/d64/m256

#include <longview/performer_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void performer(benchmark::State& state, const Cell& cell) {
  AttentionTensors<T> x(cell);
  const Index m = cell["m"], d = cell["d"];
  const std::vector<T> w = normal<T>(m * d, 4);
  longview::PerformerOptions<T> options{.projection = {w.data(), {m, d}}, .causal = cell.causal()};
  const Index heads = cell["b"] * cell["h"], n = cell["n"];
  const double products = static_cast<double>(heads * n) * static_cast<double>(m * d);
  const bool leaves = cell.backward() ? !cell.has("recompute") : cell.has("leave");
  std::vector<T> projected_query(static_cast<std::size_t>(leaves ? heads * n * m : 0));
  std::vector<T> projected_key(projected_query.size()), key_sums(static_cast<std::size_t>(heads * (d + 2) * m));
  if (leaves) {
    const longview::Shape<4> rows{cell["b"], cell["h"], n, m};
    options.projected_query = {projected_query.data(), rows}, options.projected_key = {projected_key.data(), rows};
    if (!cell.causal()) options.key_sums = {key_sums.data(), {cell["b"], cell["h"], d + 2, m}};
  }
  if (!cell.name().starts_with("performer_backward")) {
    measure<T>(state, cell, 8 * products, [&](longview::Run run) {
      longview::performer_attention(x.query(), x.key(), x.value(), x.out(), options, run);
    });
    state.counters["state_GFLOP/s"] = state.counters["GFLOP/s"].value / 2;
    return;
  }
  longview::performer_attention(x.query(), x.key(), x.value(), x.out(), options);
  const longview::PerformerGradients<T> gradients{
      .out = x.d_out(), .query = x.d_query(), .key = x.d_key(), .value = x.d_value()};
  measure<T>(state, cell, 12 * products, [&](longview::Run run) {
    longview::performer_attention_backward(x.query(), x.key(), x.value(), x.out(), gradients, options, run);
  });
}

template <typename T>
void given_features(benchmark::State& state, const Cell& cell) {
  const Index n = cell["n"], m = cell["m"], d = cell["d"];
  const longview::Shape<4> features{cell["b"], cell["h"], n, m}, values{cell["b"], cell["h"], n, d};
  const Index heads = cell["b"] * cell["h"];
  const std::vector<T> q = normal<T>(heads * n * m, 1), k = normal<T>(heads * n * m, 2),
                       v = normal<T>(heads * n * d, 3);
  std::vector<T> out(v.size());
  const longview::PerformerOptions<T> options{
      .features = longview::FeatureMap::relu, .epsilon = 0, .causal = true, .normalize = false};
  measure<T>(state, cell, 4 * static_cast<double>(heads * n) * static_cast<double>(m * d), [&](longview::Run run) {
    longview::performer_attention(longview::TensorView(q.data(), features), {k.data(), features}, {v.data(), values},
                                  {out.data(), values}, options, run);
  });
}

template <typename T>
void run_cell(benchmark::State& state, const Cell& cell) {
  cell.name().starts_with("performer_given") ? given_features<T>(state, cell) : performer<T>(state, cell);
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  for (const char* direction :
       {"performer_forward", "performer_forward_causal", "performer_backward", "performer_backward_causal"}) {
    for (const int n : {1024, 4096, 16384, 65536})
      names.push_back(std::string(direction) + "/f32/b1/h1/n" + std::to_string(n) + "/d64/m256");
    names.push_back(std::string(direction) + "/f32/b1/h1/n4096/d128/m256");
    names.push_back(std::string(direction) + "/f32/b1/h8/n4096/d64/m64");
    names.push_back(std::string(direction) + "/f64/b1/h1/n4096/d64/m256");
  }
  for (const std::string causal : {"", "_causal"}) {
    names.push_back("performer_forward" + causal + "/f32/b1/h1/n4096/d64/m256/leave1");
    names.push_back("performer_backward" + causal + "/f32/b1/h1/n4096/d64/m256/recompute1");
  }
  names.push_back("performer_given_causal/f32/b1/h1/n4096/d64/m256");
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(run_cell), cells()); }
