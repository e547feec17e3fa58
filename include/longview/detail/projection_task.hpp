// SPDX-License-Identifier: Apache-2.0
/// \file
/// From a projection to the tasks of its kernel.
#pragma once

#include <span>

#include "longview/detail/projection_blocks.hpp"
#include "longview/detail/repeat.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// A projection of rows, already checked.
template <typename T>
struct ProjectionCall {
  TensorView<const T, 4> input;
  TensorView<T, 4> out;
  kernel::ProjectionKind kind = kernel::ProjectionKind::product;
  TensorView<const T, 3> matrix{}, convolution{};  // of products, one of them
  Index rate = 1;                                  // of all others
  TensorView<const T, 2> slot_bias{}, channel_bias{};
  TensorView<const std::uint8_t, 2> keep{};  // (batch, length); 0: the row counts as zeros
  std::span<const Index> lengths{};          // (batch); rows from there on likewise
};

/// A task whose terms, rows or columns stand for rows of the input.
template <typename T>
kernel::ProjectionTask<T> masked_task(const ProjectionCall<T>& call) {
  kernel::ProjectionTask<T> task;
  task.length = call.input.extent(2);
  task.lengths = call.lengths.empty() ? nullptr : call.lengths.data();
  if (const auto& keep = call.keep) {
    task.keep = keep.data_handle();
    task.keep_item = repeated(keep.extent(0), keep.stride(0));
    task.keep_row = repeated(keep.extent(1), keep.stride(1));
  }
  return task;
}

/// A projection cut into tasks.
template <typename T>
class ProjectionWork {
 public:
  ProjectionWork(const ProjectionCall<T>& call, Index workers) {
    const auto& input = call.input;
    const auto& out = call.out;
    kernel::ProjectionTask<T> task = masked_task(call);
    task.kind = call.kind, task.rows = out.extent(2), task.columns = out.extent(3);
    task.out = out.data_handle(), task.out_row = out.stride(2), task.out_column = out.stride(3);
    Outer item{.count = out.extent(0), .out = out.stride(0), .keep = task.keep_item, .lengths = 1};
    Outer head{.count = out.extent(1), .out = out.stride(1)};
    Index& input_item = call.convolution ? item.scalar : item.vector;
    Index& input_head = call.convolution ? head.scalar : head.vector;
    input_item = input.stride(0), input_head = input.stride(1);
    if (call.matrix)
      set_matrix(call, task, head);
    else
      set_windows(call, task);
    if (const auto& bias = call.slot_bias) {
      task.row_bias = bias.data_handle(), task.row_bias_step = bias.stride(1);
      head.row_bias = repeated(bias.extent(0), bias.stride(0));
    }
    if (const auto& bias = call.channel_bias) {
      task.column_bias = bias.data_handle(), task.column_bias_step = bias.stride(1);
      head.column_bias = repeated(bias.extent(0), bias.stride(0));
    }
    blocks_ = ProjectionBlocks<T>(task, {head, item}, workers, kernel_.block_rows / 3);
  }

  Index tasks() const { return blocks_.tasks(); }
  ByteCount scratch() const { return blocks_.scratch(); }
  void run(Index number, std::byte* scratch) const { kernel_.run(blocks_.task(number), Carver(scratch).take<T>(0)); }

 private:
  using Outer = typename ProjectionBlocks<T>::Outer;

  /// Scalars: the matrix. Vectors: rows of the input.
  static void set_matrix(const ProjectionCall<T>& call, kernel::ProjectionTask<T>& task, Outer& head) {
    const auto& matrix = call.matrix;
    task.terms = call.input.extent(2), task.input_term = 1;
    task.scalar = matrix.data_handle(), task.scalar_row = matrix.stride(1), task.scalar_term = matrix.stride(2);
    head.scalar = repeated(matrix.extent(0), matrix.stride(0));
    task.vector = call.input.data_handle();
    task.vector_term = call.input.stride(2), task.vector_column = call.input.stride(3);
  }

  /// Slot r stands for the `rate` rows of the input from r * rate on. Convolution: these are the scalars, the weights
  /// the vectors. Pooling: they are the vectors.
  static void set_windows(const ProjectionCall<T>& call, kernel::ProjectionTask<T>& task) {
    const Index rate = call.rate, row = call.input.stride(2), channel = call.input.stride(3);
    task.input_row = rate;
    if (const auto& weights = call.convolution) {
      task.groups = rate, task.terms = weights.extent(1), task.input_group = 1;
      task.scalar = call.input.data_handle();
      task.scalar_row = rate * row, task.scalar_group = row, task.scalar_term = channel;
      task.vector = weights.data_handle();
      task.vector_group = weights.stride(2), task.vector_term = weights.stride(1),
      task.vector_column = weights.stride(0);
    } else {
      task.terms = rate, task.input_term = 1;
      task.vector = call.input.data_handle();
      task.vector_row = rate * row, task.vector_term = row, task.vector_column = channel;
    }
  }

  const kernel::ProjectionKernel<T> kernel_ = kernel::projection_kernel<T>();
  ProjectionBlocks<T> blocks_;
};

}  // namespace longview
