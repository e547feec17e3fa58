// A pre-norm transformer layer: projections and feed-forward from Eigen, attention from longview on Eigen's own memory.
#include <Eigen/Core>
#include <array>
#include <cmath>
#include <cstdio>

#include "longview/eigen.hpp"
#include "longview/sliding_window_attention.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct Weights {
  Matrix qkv, mix, up, down;  // (width, 3 * width), (width, width), (width, inner), (inner, width)
  longview::Index heads;
};

Matrix norm(const Matrix& x) { return x.array().colwise() / x.array().square().rowwise().mean().sqrt(); }

/// (length, 3 * width) as query, key and value (1, heads, length, dim), without a copy.
std::array<longview::TensorView<const float, 4>, 3> heads_of(const Matrix& qkv, longview::Index heads) {
  const auto all = longview::split_heads(longview::view(qkv), 3 * heads);
  return {all.slice(1, 0, heads), all.slice(1, heads, heads), all.slice(1, 2 * heads, heads)};
}

/// x (length, width): h = x + Attention(norm(x)), then h + MLP(norm(h)).
Matrix forward(const Weights& weights, const Matrix& x) {
  const Matrix qkv = norm(x) * weights.qkv;
  Matrix attended(x.rows(), x.cols());
  const auto [query, key, value] = heads_of(qkv, weights.heads);
  longview::sliding_window_attention(query, key, value, longview::split_heads(longview::view(attended), weights.heads),
                                     {.window = {.before = 255}});
  const Matrix h = x + attended * weights.mix;
  return h + (norm(h) * weights.up).cwiseMax(0.0F) * weights.down;
}

/// Stands for a checkpoint.
Matrix example_matrix(Eigen::Index rows, Eigen::Index columns, float frequency) {
  return Matrix::NullaryExpr(rows, columns, [=](Eigen::Index row, Eigen::Index column) {
    return std::sin(frequency * static_cast<float>((row * 31 + column * 17) * (row + column) % 1009)) /
           std::sqrt(static_cast<float>(rows));
  });
}

int main() {
  const longview::Index length = 1000, width = 128, inner = 512;
  const Weights weights{example_matrix(width, 3 * width, 0.3F), example_matrix(width, width, 0.5F),
                        example_matrix(width, inner, 0.7F), example_matrix(inner, width, 0.9F), 4};
  const Matrix y = forward(weights, norm(example_matrix(length, width, 1.1F)));
  std::printf("(%td, %td), root mean square %.3f\n", y.rows(), y.cols(), std::sqrt(y.array().square().mean()));
}
