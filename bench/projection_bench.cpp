// SPDX-License-Identifier: Apache-2.0
// Projections of n rows to k, forward and backward: matrix, convolution, pooling.
// smallest cell: ^project(ion|_backward)_mean/f32/b1/h1/n1024/d64/k256

#include <longview/projection.hpp>

#include "attention_cells.hpp"

namespace {

using namespace longview_bench;

/// A projection of n rows of width d to k, and what it works on.
template <typename T>
struct Problem {
  Index n, d, k, rate;
  longview::Shape<4> shape, projected;
  std::vector<T> input, matrix, weights, d_out;
  longview::Projection<T> projection;
  double work;  // useful operations: a multiply-add of a product is two, an element that is pooled one

  Problem(const Cell& cell, const std::string& kind)
      : n(cell["n"]),
        d(cell["d"]),
        k(cell["k"]),
        rate(n / k),
        shape{cell["b"], cell["h"], n, d},
        projected{cell["b"], cell["h"], k, d},
        input(normal<T>(cell["b"] * cell["h"] * n * d, 1)),
        matrix(normal<T>(k * n, 2)),
        weights(normal<T>(d * d * rate, 3)),
        d_out(normal<T>(cell["b"] * cell["h"] * k * d, 4)),
        work(static_cast<double>(cell["b"] * cell["h"]) * static_cast<double>(n * d)) {
    if (kind == "matrix") projection.matrix = {matrix.data(), {1, k, n}};
    if (kind == "columns") projection.matrix = {matrix.data(), {1, k, n}, {0, 1, k}};
    if (kind == "convolution") projection.convolution = {weights.data(), {d, d, rate}};
    if (kind == "mean") projection.mean_pool = rate;
    if (kind == "max") projection.max_pool = rate;
    if (projection.matrix) work *= 2 * static_cast<double>(k);
    if (projection.convolution) work *= 2 * static_cast<double>(d);
  }
  longview::TensorView<const T, 4> rows() const { return {input.data(), shape}; }
};

template <typename T>
void project(benchmark::State& state, const Cell& cell, const std::string& kind) {
  const Problem<T> of(cell, kind);
  std::vector<T> out(of.d_out.size());
  measure<T>(state, cell, of.work, [&](longview::Run run) {
    longview::project(of.rows(), longview::TensorView<T, 4>(out.data(), of.projected), of.projection, run);
  });
}

/// All gradients.
template <typename T>
void project_backward(benchmark::State& state, const Cell& cell, const std::string& kind) {
  const Problem<T> of(cell, kind);
  std::vector<T> d_input(of.input.size()), d_matrix(of.matrix.size()), d_weights(of.weights.size());
  longview::ProjectionGradients<T> gradients{.out = {of.d_out.data(), of.projected},
                                             .input = {d_input.data(), of.shape}};
  if (of.projection.matrix) gradients.matrix = {d_matrix.data(), {1, of.k, of.n}};
  if (of.projection.convolution) gradients.convolution = {d_weights.data(), {of.d, of.d, of.rate}};
  measure<T>(state, cell, (of.projection.matrix || of.projection.convolution ? 2 : 1) * of.work,
             [&](longview::Run run) { longview::project_backward(of.rows(), gradients, of.projection, run); });
}

/// projection_KIND or project_backward_KIND.
template <typename T>
void body(benchmark::State& state, const Cell& cell) {
  const std::string name = cell.name().substr(0, cell.name().find('/')), kind = name.substr(name.rfind('_') + 1);
  name.starts_with("project_backward") ? project_backward<T>(state, cell, kind) : project<T>(state, cell, kind);
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  const auto both = [&](const std::string& kind, const std::string& rest) {
    names.push_back("projection_" + kind + rest);
    names.push_back("project_backward_" + kind + rest);
  };
  for (const std::string kind : {"matrix", "columns", "convolution", "mean", "max"})
    for (const int n : {1024, 4096, 16384}) both(kind, "/f32/b1/h1/n" + std::to_string(n) + "/d64/k256");
  for (const int d : {32, 80, 128}) both("matrix", "/f32/b1/h1/n4096/d" + std::to_string(d) + "/k256");
  both("matrix", "/f64/b1/h1/n4096/d64/k256");
  both("matrix", "/f32/b1/h8/n4096/d64/k128");
  // Hidden states of a compressive memory.
  for (const std::string kind : {"convolution", "mean", "max"}) both(kind, "/f32/b1/h1/n512/d512/k128");
  return names;
}

}  // namespace

int main(int argc, char** argv) { return run_cells(argc, argv, LONGVIEW_BY_TYPE(body), cells()); }
