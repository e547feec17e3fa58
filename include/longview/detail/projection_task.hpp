// SPDX-License-Identifier: Apache-2.0
/// \file
/// From a projection to the tasks of its kernel.
#pragma once

#include <span>

#include "longview/detail/repeat.hpp"
#include "longview/detail/scratch.hpp"
#include "longview/kernel/targets.hpp"

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

/// A projection cut into tasks: blocks of slots and of channels of one (batch, head).
template <typename T>
class ProjectionWork {
 public:
  ProjectionWork(const ProjectionCall<T>& call, Index workers) : kernel_(kernel::projection_kernel<T>()), call_(call) {
    const Index heads = call.out.extent(0) * call.out.extent(1), slots = call.out.extent(2),
                channels = call.out.extent(3);
    if (heads == 0 || slots == 0 || channels == 0) return;
    // Every worker gets a few tasks. A convolution packs its weights for each block of slots, a matrix the input for
    // each block of slots and itself is read again for each block of channels.
    const Index wanted = workers > 1 ? (4 * workers + heads - 1) / heads : 1;
    const Index register_columns = kernel_.block_rows, most_columns = 512 / static_cast<Index>(sizeof(T));
    if (call.convolution) {
      columns_ = block_of(channels, wanted, register_columns, most_columns);
      rows_ = block_of(slots, (wanted + column_blocks() - 1) / column_blocks(), 64, 256);
    } else {
      rows_ = block_of(slots, wanted, 64, 256);
      columns_ = block_of(channels, (wanted + row_blocks() - 1) / row_blocks(), register_columns, most_columns);
    }
    tasks_ = heads * row_blocks() * column_blocks();
  }

  Index tasks() const { return tasks_; }

  /// Bytes for each worker.
  ByteCount scratch() const {
    if (tasks_ == 0) return {};
    return ByteCount().add(kernel::projection_scratch(rows_, columns_, kernel_.block_rows / 3), sizeof(T));
  }

  void run(Index number, std::byte* scratch) const {
    const Index column_block = number % column_blocks(), in_column = number / column_blocks();
    const Index row_block = in_column % row_blocks(), head = in_column / row_blocks();
    kernel_.run(
        task(head / call_.out.extent(1), head % call_.out.extent(1), row_block * rows_, column_block * columns_),
        Carver(scratch).take<T>(0));
  }

 private:
  /// `extent` in at least `parts` blocks as far as they stay above `least`, none above `most`.
  static Index block_of(Index extent, Index parts, Index least, Index most) {
    const Index needed = (extent + most - 1) / most;
    if (parts < needed) parts = needed;
    const Index even = (extent + parts - 1) / parts, block = even < least ? least : even;
    return block < extent ? block : extent;
  }
  Index row_blocks() const { return (call_.out.extent(2) + rows_ - 1) / rows_; }
  Index column_blocks() const { return (call_.out.extent(3) + columns_ - 1) / columns_; }

  kernel::ProjectionTask<T> task(Index item, Index head, Index first_row, Index first_column) const {
    const auto& input = call_.input;
    const auto& out = call_.out;
    const Index rows_left = out.extent(2) - first_row, columns_left = out.extent(3) - first_column;
    kernel::ProjectionTask<T> task;
    task.kind = call_.kind;
    task.rows = rows_ < rows_left ? rows_ : rows_left;
    task.columns = columns_ < columns_left ? columns_ : columns_left;
    const T* const from = input.data_handle() + item * input.stride(0) + head * input.stride(1);
    task.length = call_.lengths.empty() ? input.extent(2) : call_.lengths[static_cast<std::size_t>(item)];
    if (call_.keep) {
      task.keep = row_of(call_.keep, item);
      task.keep_row = repeated(call_.keep.extent(1), call_.keep.stride(1));
    }
    if (call_.matrix)
      set_matrix(head, first_row, from + first_column * input.stride(3), task);
    else
      set_windows(first_row, first_column, from, task);
    task.out = out.data_handle() + item * out.stride(0) + head * out.stride(1) + first_row * out.stride(2) +
               first_column * out.stride(3);
    task.out_row = out.stride(2), task.out_column = out.stride(3);
    if (call_.slot_bias) {
      task.row_bias = row_of(call_.slot_bias, head) + first_row * call_.slot_bias.stride(1);
      task.row_bias_step = call_.slot_bias.stride(1);
    }
    if (call_.channel_bias) {
      task.column_bias = row_of(call_.channel_bias, head) + first_column * call_.channel_bias.stride(1);
      task.column_bias_step = call_.channel_bias.stride(1);
    }
    return task;
  }

  /// Scalars: the matrix. Vectors: rows of the input, those from its length on left out.
  void set_matrix(Index head, Index first_row, const T* from, kernel::ProjectionTask<T>& task) const {
    const auto& matrix = call_.matrix;
    task.terms = task.length;
    task.scalar =
        matrix.data_handle() + head * repeated(matrix.extent(0), matrix.stride(0)) + first_row * matrix.stride(1);
    task.scalar_row = matrix.stride(1), task.scalar_term = matrix.stride(2);
    task.vector = from, task.vector_term = call_.input.stride(2), task.vector_column = call_.input.stride(3);
    task.input_term = 1;
  }

  /// Slot r stands for the `rate` rows of the input from r * rate on. Convolution: these are the scalars, the weights
  /// the vectors. Pooling: they are the vectors.
  void set_windows(Index first_row, Index first_column, const T* from, kernel::ProjectionTask<T>& task) const {
    const Index rate = call_.rate, row = call_.input.stride(2), channel = call_.input.stride(3);
    from += first_row * rate * row;
    if (task.keep != nullptr) task.keep += first_row * rate * task.keep_row;
    task.length -= first_row * rate;
    task.input_row = rate;
    if (const auto& weights = call_.convolution) {
      task.groups = rate, task.terms = weights.extent(1), task.input_group = 1;
      task.scalar = from, task.scalar_row = rate * row, task.scalar_group = row, task.scalar_term = channel;
      task.vector = weights.data_handle() + first_column * weights.stride(0);
      task.vector_group = weights.stride(2), task.vector_term = weights.stride(1),
      task.vector_column = weights.stride(0);
    } else {
      task.terms = rate, task.input_term = 1;
      task.vector = from + first_column * channel;
      task.vector_row = rate * row, task.vector_term = row, task.vector_column = channel;
    }
  }

  const kernel::ProjectionKernel<T> kernel_;
  const ProjectionCall<T>& call_;
  Index rows_ = 1, columns_ = 1, tasks_ = 0;
};

}  // namespace longview
