// SPDX-License-Identifier: Apache-2.0
// Linformer, forward and backward: n keys projected to k slots by learned matrices, then attention over the slots.
// smallest cell: ^linformer_(forward|backward)/f32/b1/h1/n1024/d64/k256

#include <longview/linformer_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

/// Backward: all gradients, from the projected keys and values that the forward pass has left.
template <typename T>
void linformer(benchmark::State& state, const Cell& cell) {
  AttentionTensors<T> x(cell);
  const Index n = cell["n"], k = cell["k"];
  std::vector<T> e = normal<T>(k * n, 4), f = normal<T>(k * n, 5), d_e(e.size()), d_f(f.size());
  for (T& element : e) element /= std::sqrt(static_cast<T>(k));
  for (T& element : f) element /= std::sqrt(static_cast<T>(k));
  const longview::Shape<3> shape{1, k, n};
  std::vector<T> projected_keys(static_cast<std::size_t>(k * cell["b"] * cell["h"] * cell["d"]));
  std::vector<T> projected_values(projected_keys.size());
  longview::LinformerOptions<T> options{.key_projection = {.matrix = {e.data(), shape}},
                                        .value_projection = {.matrix = {f.data(), shape}}};
  const double pairs = static_cast<double>(cell["b"] * cell["h"] * n) * static_cast<double>(k * cell["d"]);
  const auto forward = [&](longview::Run run) {
    longview::linformer_attention(x.query(), x.key(), x.value(), {x.out(), x.lse()}, options, run);
  };
  if (!cell.backward()) return measure<T>(state, cell, 8 * pairs, forward);
  const longview::Shape<4> slots{cell["b"], cell["h"], k, cell["d"]};
  options.projected_key = {projected_keys.data(), slots}, options.projected_value = {projected_values.data(), slots};
  forward({});
  measure<T>(state, cell, 18 * pairs, [&](longview::Run run) {
    longview::linformer_attention_backward(x.query(), x.key(), x.value(), {x.out(), x.lse()},
                                           {.out = x.d_out(),
                                            .query = x.d_query(),
                                            .key = x.d_key(),
                                            .value = x.d_value(),
                                            .key_projection = {.matrix = {d_e.data(), shape}},
                                            .value_projection = {.matrix = {d_f.data(), shape}}},
                                           options, run);
  });
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  for (const std::string pass : {"linformer_forward", "linformer_backward"}) {
    for (const int n : {1024, 4096, 16384, 65536}) names.push_back(pass + "/f32/b1/h1/n" + std::to_string(n) + "/d64/k256");
    for (const int d : {32, 128}) names.push_back(pass + "/f32/b1/h1/n4096/d" + std::to_string(d) + "/k256");
    names.push_back(pass + "/f32/b1/h8/n4096/d64/k128");
    names.push_back(pass + "/f64/b1/h1/n4096/d64/k256");
  }
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(linformer), cells()); }
