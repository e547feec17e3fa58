// What stands around attention in a transformer, from Eigen, on all threads of a pool. Rows are tokens.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "longview/tensor_view.hpp"
#include "thread_pool.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// work(first, count) on equal blocks of rows, one for each thread.
template <typename Work>
void for_row_blocks(const ThreadPool& pool, longview::Index rows, const Work& work) {
  const longview::Index blocks = std::clamp<longview::Index>(rows / 16, 1, pool.concurrency());
  pool(blocks, [&](longview::Index block) {
    const longview::Index first = rows * block / blocks;
    work(first, rows * (block + 1) / blocks - first);
  });
}

/// to = from * weight^T, with weight (outputs, inputs) as checkpoints have it.
inline void multiply(const Eigen::Ref<const Matrix>& from, const Eigen::Ref<const Matrix>& weight, Matrix& to,
                     const ThreadPool& pool) {
  to.resize(from.rows(), weight.rows());
  for_row_blocks(pool, from.rows(), [&](longview::Index first, longview::Index count) {
    to.middleRows(first, count).noalias() = from.middleRows(first, count) * weight.transpose();
  });
}

struct Dense {
  Matrix weight;            ///< (outputs, inputs)
  Eigen::RowVectorXf bias;  ///< (outputs)

  Matrix operator()(const Matrix& from, const ThreadPool& pool) const {
    Matrix to;
    multiply(from, weight, to, pool);
    for_row_blocks(pool, to.rows(), [&](longview::Index first, longview::Index count) {
      to.middleRows(first, count).rowwise() += bias;
    });
    return to;
  }
};

/// Each row to mean 0 and variance 1, then weight and bias; in place.
struct LayerNorm {
  Eigen::RowVectorXf weight, bias;
  float epsilon = 0;

  void operator()(Matrix& x, const ThreadPool& pool) const {
    for_row_blocks(pool, x.rows(), [&](longview::Index first, longview::Index count) {
      for (longview::Index row = first; row < first + count; ++row) {
        const float mean = x.row(row).mean();
        x.row(row).array() -= mean;
        const float factor = 1 / std::sqrt(x.row(row).squaredNorm() / static_cast<float>(x.cols()) + epsilon);
        x.row(row) = (x.row(row) * factor).cwiseProduct(weight) + bias;
      }
    });
  }
};

enum class Gelu { exact, tanh };

/// x Phi(x), or its approximation by tanh; in place.
inline void gelu(Matrix& x, Gelu form, const ThreadPool& pool) {
  for_row_blocks(pool, x.rows(), [&](longview::Index first, longview::Index count) {
    auto rows = x.middleRows(first, count).array();
    if (form == Gelu::exact)
      rows = rows.unaryExpr([](float at) { return 0.5F * at * (1 + std::erf(at * 0.70710678F)); });
    else
      rows = 0.5F * rows * (1 + (0.79788456F * (rows + 0.044715F * rows.cube())).tanh());
  });
}
