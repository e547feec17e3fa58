// SPDX-License-Identifier: Apache-2.0
/// \file
/// Eigen objects as views, and Eigen's thread pool as an executor. Includes Eigen/Core; nothing else here includes this.
#pragma once

#include <Eigen/Core>
#include <atomic>
#include <memory>

#include "longview/executor.hpp"

static_assert(EIGEN_VERSION_AT_LEAST(3, 4, 0), "longview/eigen.hpp needs Eigen 3.4 or newer");

namespace longview::inline v0::inline LONGVIEW_BUILD {

namespace detail {

/// An Eigen object whose coefficients lie in memory: Matrix, Array, Map, Ref, Block of these.
template <typename M>
concept EigenMatrix = requires(M& matrix) {
  matrix.data();
  matrix.rowStride();
  matrix.colStride();
  matrix.rows();
};
/// Eigen::Tensor and Eigen::TensorMap, which are not included for it.
template <typename M>
concept EigenTensor = requires(M& tensor) {
  tensor.data();
  tensor.dimension(0);
  M::NumDimensions;
  M::Layout;
};
template <typename M>
using EigenElement = std::remove_pointer_t<decltype(std::declval<M&>().data())>;

}  // namespace detail

/// (rows, columns) of a matrix, array, Map, Ref or Block, column-major or not, without a copy. Named objects only: a view of
/// a temporary would outlive it.
template <detail::EigenMatrix M>
TensorView<detail::EigenElement<M>, 2> view(M& matrix) {
  return {matrix.data(), {matrix.rows(), matrix.cols()}, {matrix.rowStride(), matrix.colStride()}};
}
/// All axes of an Eigen tensor in their order.
template <detail::EigenTensor M>
TensorView<detail::EigenElement<M>, static_cast<std::size_t>(M::NumDimensions)> view(M& tensor) {
  constexpr std::size_t rank = static_cast<std::size_t>(M::NumDimensions);
  constexpr bool row_major = static_cast<int>(M::Layout) == static_cast<int>(Eigen::RowMajor);
  Shape<rank> shape{}, stride{};
  Index next = 1;
  for (std::size_t i = 0; i < rank; ++i) {
    const std::size_t axis = row_major ? rank - 1 - i : i;
    shape[axis] = static_cast<Index>(tensor.dimension(axis));
    stride[axis] = next;
    next *= shape[axis];
  }
  return {tensor.data(), shape, stride};
}
template <typename M>
  requires(detail::EigenMatrix<M> || detail::EigenTensor<M>)
void view(const M&&) = delete;

/// Eigen::ThreadPool (or anything with NumThreads() and Schedule()) as an executor. The calling thread works as well, so a
/// call from inside one of the pool's own tasks cannot wait for itself.
template <typename Pool>
class EigenPool {
 public:
  explicit EigenPool(Pool& pool) : pool_(&pool) {}

  Index concurrency() const { return static_cast<Index>(pool_->NumThreads()) + 1; }
  void operator()(Index count, TaskBody body) const {
    const auto state = std::make_shared<State>(body, count);
    for (Index helper = 1; helper < count; ++helper) pool_->Schedule([state] { state->work(); });
    state->work();
    for (Index done; (done = state->done.load()) < count;) state->done.wait(done);
  }

 private:
  struct State {
    State(TaskBody given, Index tasks) : body(given), count(tasks) {}
    void work() {
      for (Index task; (task = next.fetch_add(1)) < count;) {
        body(task);
        done.fetch_add(1);
        done.notify_all();
      }
    }
    TaskBody body;
    Index count;
    std::atomic<Index> next{0}, done{0};
  };

  Pool* pool_;
};

}  // namespace longview
