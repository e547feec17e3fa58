// SPDX-License-Identifier: Apache-2.0
/// \file
/// Tasks of the projection kernel, cut into blocks.
#pragma once

#include <array>

#include "longview/detail/scratch.hpp"
#include "longview/kernel/targets.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// One task at each of three outer indices, cut into blocks of rows and of columns. How it is cut changes no sum.
template <typename T>
class ProjectionBlocks {
 public:
  /// How far an outer index moves what the task refers to; `input`: rows of the input.
  struct Outer {
    Index count = 1, scalar = 0, vector = 0, out = 0, input = 0;
    Index keep = 0, lengths = 0, row_bias = 0, column_bias = 0;
  };

  ProjectionBlocks() = default;
  /// `whole`: of all rows and columns.
  ProjectionBlocks(const kernel::ProjectionTask<T>& whole, const std::array<Outer, 3>& outers, Index workers,
                   Index lanes)
      : whole_(whole), outers_(outers), lanes_(lanes) {
    count_ = whole.rows > 0 && whole.columns > 0 ? outers[0].count * outers[1].count * outers[2].count : 0;
    if (count_ == 0) return;
    // Every worker gets a few tasks. Vectors are packed for each block of rows, scalars read for each of columns.
    constexpr Index most_workers = Index{1} << 20;
    if (workers > most_workers) workers = most_workers;
    const Index wanted = workers > 1 ? (4 * workers + count_ - 1) / count_ : 1;
    constexpr Index most_columns = kernel::most_input_columns * 4 / static_cast<Index>(sizeof(T));
    columns_ = block_of(whole.columns, wanted, 3 * lanes, most_columns);
    rows_ = block_of(whole.rows, (wanted + column_blocks() - 1) / column_blocks(), 2 * kernel::projected_rows_per_pass,
                     256);
  }

  Index tasks() const { return count_ == 0 ? 0 : count_ * row_blocks() * column_blocks(); }

  /// Bytes for each worker.
  ByteCount scratch() const {
    if (tasks() == 0) return {};
    return ByteCount().add(kernel::projection_scratch(rows_, columns_, lanes_), sizeof(T));
  }

  kernel::ProjectionTask<T> task(Index number) const {
    kernel::ProjectionTask<T> task = whole_;
    const Index column = number % column_blocks() * columns_, in_column = number / column_blocks();
    const Index row = in_column % row_blocks() * rows_;
    move(task, 1,
         {.scalar = row * task.scalar_row + column * task.scalar_column,
          .vector = row * task.vector_row + column * task.vector_column,
          .out = row * task.out_row + column * task.out_column,
          .input = row * task.input_row + column * task.input_column,
          .row_bias = row * task.row_bias_step,
          .column_bias = column * task.column_bias_step});
    Index at = in_column / row_blocks();
    for (const Outer& outer : outers_) {
      move(task, at % outer.count, outer);
      at /= outer.count;
    }
    if (task.lengths != nullptr && task.items == 1) task.length = *task.lengths - task.hidden, task.lengths = nullptr;
    task.rows = task.rows - row < rows_ ? task.rows - row : rows_;
    task.columns = task.columns - column < columns_ ? task.columns - column : columns_;
    return task;
  }

 private:
  /// `extent` in at least `parts` blocks that are multiples of `least` and no larger than `most`.
  static Index block_of(Index extent, Index parts, Index least, Index most) {
    const Index even = (extent + parts - 1) / parts, block = (even + least - 1) / least * least;
    const Index bounded = block < most ? block : most;
    return bounded < extent ? bounded : extent;
  }
  Index row_blocks() const { return (whole_.rows + rows_ - 1) / rows_; }
  Index column_blocks() const { return (whole_.columns + columns_ - 1) / columns_; }

  // Tensors without elements may be null.
  template <typename Number>
  static void advance(Number*& pointer, Index by) {
    if (pointer != nullptr) pointer += by;
  }
  static void move(kernel::ProjectionTask<T>& task, Index times, const Outer& by) {
    advance(task.scalar, times * by.scalar), advance(task.vector, times * by.vector);
    advance(task.out, times * by.out);
    advance(task.row_bias, times * by.row_bias), advance(task.column_bias, times * by.column_bias);
    advance(task.keep, times * (by.keep + by.input * task.keep_row)), advance(task.lengths, times * by.lengths);
    task.length -= times * by.input, task.hidden += times * by.input;
  }

  kernel::ProjectionTask<T> whole_{};
  std::array<Outer, 3> outers_{};
  Index lanes_ = 1, count_ = 0, rows_ = 1, columns_ = 1;
};

}  // namespace longview::inline v0::inline LONGVIEW_BUILD::detail
