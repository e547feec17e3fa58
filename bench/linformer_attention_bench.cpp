// SPDX-License-Identifier: Apache-2.0
// Linformer, forward: n keys projected to k slots by learned matrices, then attention over the slots.
// smallest cell: ^linformer_forward/f32/b1/h1/n1024/d64/k256

#include <longview/linformer_attention.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

template <typename T>
void linformer_forward(benchmark::State& state, const Cell& cell) {
  AttentionTensors<T> x(cell);
  const Index n = cell["n"], k = cell["k"];
  std::vector<T> e = normal<T>(k * n, 4), f = normal<T>(k * n, 5);
  for (T& element : e) element /= std::sqrt(static_cast<T>(k));
  for (T& element : f) element /= std::sqrt(static_cast<T>(k));
  const longview::TensorView<const T, 3> keys(e.data(), {1, k, n}), values(f.data(), {1, k, n});
  const double flops = 8.0 * static_cast<double>(cell["b"] * cell["h"] * n) * static_cast<double>(k * cell["d"]);
  measure<T>(state, flops, [&](longview::Run run) {
    longview::linformer_attention(x.query(), x.key(), x.value(), x.out(),
                                  {.key_projection = {.matrix = keys}, .value_projection = {.matrix = values}}, run);
  });
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  for (const int n : {1024, 4096, 16384})
    names.push_back("linformer_forward/f32/b1/h1/n" + std::to_string(n) + "/d64/k256");
  for (const int d : {32, 128}) names.push_back("linformer_forward/f32/b1/h1/n4096/d" + std::to_string(d) + "/k256");
  names.push_back("linformer_forward/f32/b1/h8/n4096/d64/k128");
  names.push_back("linformer_forward/f64/b1/h1/n4096/d64/k256");
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(linformer_forward), cells()); }
