// SPDX-License-Identifier: Apache-2.0
// Projections of n rows to k, forward: matrix, convolution, pooling.
// smallest cell: ^projection_mean/f32/b1/h1/n1024/d64/k256

#include <longview/projection.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

/// Useful operations: a multiply-add of a product is two, an element that is pooled one.
template <typename T>
void project(benchmark::State& state, const Cell& cell) {
  const std::string kind = cell.name().substr(0, cell.name().find('/'));
  const Index n = cell["n"], d = cell["d"], k = cell["k"], rate = n / k;
  const auto input = normal<T>(cell["b"] * cell["h"] * n * d, 1), matrix = normal<T>(k * n, 2);
  const auto weights = normal<T>(d * d * rate, 3);
  std::vector<T> out(static_cast<std::size_t>(cell["b"] * cell["h"] * k * d));
  longview::Projection<T> projection;
  double work = static_cast<double>(cell["b"] * cell["h"]) * static_cast<double>(n * d);
  if (kind == "projection_matrix") {
    projection.matrix = {matrix.data(), {1, k, n}};
    work *= 2 * static_cast<double>(k);
  } else if (kind == "projection_columns") {
    projection.matrix = {matrix.data(), {1, k, n}, {0, 1, k}};
    work *= 2 * static_cast<double>(k);
  } else if (kind == "projection_convolution") {
    projection.convolution = {weights.data(), {d, d, rate}};
    work *= 2 * static_cast<double>(d);
  } else {
    (kind == "projection_mean" ? projection.mean_pool : projection.max_pool) = rate;
  }
  measure<T>(state, work, [&](longview::Run run) {
    longview::project(longview::TensorView<const T, 4>(input.data(), {cell["b"], cell["h"], n, d}),
                      longview::TensorView<T, 4>(out.data(), {cell["b"], cell["h"], k, d}), projection, run);
  });
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  for (const std::string kind : {"matrix", "columns", "convolution", "mean", "max"})
    for (const int n : {1024, 4096, 16384})
      names.push_back("projection_" + kind + "/f32/b1/h1/n" + std::to_string(n) + "/d64/k256");
  for (const int d : {32, 80, 128})
    names.push_back("projection_matrix/f32/b1/h1/n4096/d" + std::to_string(d) + "/k256");
  names.push_back("projection_matrix/f64/b1/h1/n4096/d64/k256");
  // Hidden states of a compressive memory.
  for (const std::string kind : {"convolution", "mean", "max"})
    names.push_back("projection_" + kind + "/f32/b1/h1/n512/d512/k128");
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(project), cells()); }
