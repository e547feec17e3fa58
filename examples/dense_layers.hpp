// What stands around attention in a transformer, forwards and backwards, from Eigen, on all threads of a pool. Rows are
// tokens. The same bits for any number of threads.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

#include "longview/tensor_view.hpp"
#include "thread_pool.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// work(first, count) on blocks of `size`, which the threads take one after the other. What a block is does not depend
/// on the threads, and so neither do the bits of a result.
template <typename Work>
void for_blocks(const ThreadPool& pool, longview::Index total, longview::Index size, const Work& work) {
  const longview::Index blocks = (total + size - 1) / size;
  std::atomic<longview::Index> next{0};
  pool(std::min(blocks, pool.concurrency()), [&](longview::Index) {
    for (longview::Index block; (block = next.fetch_add(1)) < blocks;)
      work(block * size, std::min(size, total - block * size));
  });
}
template <typename Work>
void for_row_blocks(const ThreadPool& pool, longview::Index rows, const Work& work) {
  for_blocks(pool, rows, 64, work);
}

/// to = from * weight^T, with weight (outputs, inputs) as checkpoints have it.
inline void multiply(const Eigen::Ref<const Matrix>& from, const Eigen::Ref<const Matrix>& weight, Matrix& to,
                     const ThreadPool& pool) {
  to.resize(from.rows(), weight.rows());
  for_blocks(pool, from.rows(), 256, [&](longview::Index first, longview::Index count) {
    to.middleRows(first, count).noalias() = from.middleRows(first, count) * weight.transpose();
  });
}
/// d_from = d_to * weight
inline void multiply_backward(const Eigen::Ref<const Matrix>& d_to, const Eigen::Ref<const Matrix>& weight,
                              Matrix& d_from, const ThreadPool& pool) {
  d_from.resize(d_to.rows(), weight.cols());
  for_blocks(pool, d_to.rows(), 256, [&](longview::Index first, longview::Index count) {
    d_from.middleRows(first, count).noalias() = d_to.middleRows(first, count) * weight;
  });
}
/// d_weight += d_to^T * from
inline void add_weight_gradient(const Eigen::Ref<const Matrix>& d_to, const Eigen::Ref<const Matrix>& from,
                                Eigen::Ref<Matrix> d_weight, const ThreadPool& pool) {
  for_row_blocks(pool, d_to.cols(), [&](longview::Index first, longview::Index count) {
    d_weight.middleRows(first, count).noalias() += d_to.middleCols(first, count).transpose() * from;
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

/// Rows divided by their root mean square.
struct RmsNorm {
  Matrix rows;
  Eigen::VectorXf factor;  ///< of each row

  void forward(const Matrix& x, const ThreadPool& pool) {
    rows.resize(x.rows(), x.cols()), factor.resize(x.rows());
    for_row_blocks(pool, x.rows(), [&](longview::Index first, longview::Index count) {
      for (longview::Index row = first; row < first + count; ++row) {
        factor[row] = 1 / std::sqrt(x.row(row).squaredNorm() / static_cast<float>(x.cols()) + 1e-6F);
        rows.row(row) = x.row(row) * factor[row];
      }
    });
  }
  /// d_x += what d_rows says of x
  void backward(const Matrix& d_rows, Matrix& d_x, const ThreadPool& pool) const {
    for_row_blocks(pool, rows.rows(), [&](longview::Index first, longview::Index count) {
      for (longview::Index row = first; row < first + count; ++row) {
        const float along = d_rows.row(row).dot(rows.row(row)) / static_cast<float>(rows.cols());
        d_x.row(row) += factor[row] * (d_rows.row(row) - along * rows.row(row));
      }
    });
  }
};

/// to = max(from, 0)^2
inline void squared_relu(const Matrix& from, Matrix& to, const ThreadPool& pool) {
  to.resize(from.rows(), from.cols());
  for_row_blocks(pool, from.rows(), [&](longview::Index first, longview::Index count) {
    to.middleRows(first, count) = from.middleRows(first, count).cwiseMax(0.0F).cwiseAbs2();
  });
}
/// d becomes the gradient of `from`.
inline void squared_relu_backward(const Matrix& from, Matrix& d, const ThreadPool& pool) {
  for_row_blocks(pool, from.rows(), [&](longview::Index first, longview::Index count) {
    d.middleRows(first, count).array() *= 2 * from.middleRows(first, count).array().max(0.0F);
  });
}

/// -log2 softmax(logits)[target] of each row.
inline void cross_entropy_bits(const Matrix& logits, std::span<const std::uint8_t> targets, std::vector<double>& bits,
                               const ThreadPool& pool) {
  bits.resize(targets.size());
  for_row_blocks(pool, logits.rows(), [&](longview::Index first, longview::Index count) {
    for (longview::Index row = first; row < first + count; ++row) {
      const float most = logits.row(row).maxCoeff(), sum = (logits.row(row).array() - most).exp().sum();
      const auto at = static_cast<std::size_t>(row);
      bits[at] = (std::log(static_cast<double>(sum)) + most - logits(row, targets[at])) / std::numbers::ln2;
    }
  });
}
/// Logits become the gradient of the mean of -ln softmax(logits)[target].
inline void cross_entropy_backward(Matrix& logits, std::span<const std::uint8_t> targets, const ThreadPool& pool) {
  const float part = 1 / static_cast<float>(logits.rows());
  for_row_blocks(pool, logits.rows(), [&](longview::Index first, longview::Index count) {
    for (longview::Index row = first; row < first + count; ++row) {
      auto p = logits.row(row).array();
      p = (p - p.maxCoeff()).exp();
      p *= part / p.sum();
      p[targets[static_cast<std::size_t>(row)]] -= part;
    }
  });
}
