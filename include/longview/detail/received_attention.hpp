// SPDX-License-Identifier: Apache-2.0
/// \file
/// From a call of attention to the tasks that sum what each key received.
#pragma once

#include "longview/detail/band_pattern.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// Tasks own (batch item, stretch of keys), so that every sum has one owner; queries go by in the same order for all.
template <typename T>
class ReceivedWork {
 public:
  ReceivedWork(const BandCall<T>& call, const kernel::AttentionShape<T>& shape, const TensorView<const T, 3>& lse,
               const TensorView<T, 2>& received, Index workers)
      : call_(call), shape_(shape), pattern_(call_), lse_(lse), received_(received), columns_(received.extent(1)) {
    // Long stretches amortise the transposing of queries, short ones give every worker a few.
    const Index wanted = received.extent(0) * columns_ / 4 / workers / kernel::keys_per_tile * kernel::keys_per_tile;
    const Index most = workers > 1 && wanted < most_stretch ? wanted : most_stretch;
    stretch_ = most > kernel::keys_per_tile ? most : kernel::keys_per_tile;
  }

  Index tasks() const { return received_.extent(0) * stretches(); }

  /// Bytes for each worker.
  ByteCount scratch() const {
    return ByteCount()
        .add(1, sizeof(kernel::QueryBlock<T>))
        .add(1, sizeof(kernel::ReceivedTask<T>))
        .add(kernel::most_segments, sizeof(kernel::LaneBounds))
        .add(stretch_ * lanes(), sizeof(T))
        .add(kernel::received_scratch(shape_, width_), sizeof(T));
  }

  void run(Index number, std::byte* scratch) const {
    const Index item = number / stretches();
    Carver carver(scratch);
    auto& block = *carver.take<kernel::QueryBlock<T>>(1);
    auto& task = *new (carver.take<kernel::ReceivedTask<T>>(1)) kernel::ReceivedTask<T>;
    auto* const bounds = carver.take<kernel::LaneBounds>(kernel::most_segments);
    task.first_column = number % stretches() * stretch_;
    task.columns = columns_ - task.first_column < stretch_ ? columns_ - task.first_column : stretch_;
    task.sums = carver.take<T>(stretch_ * lanes());
    task.plan.shape = &shape_, task.plan.blocks = &block, task.plan.block_count = 1;
    for (Index at = 0; at < task.columns * lanes(); ++at) task.sums[at] = 0;
    for (Index group = 0; group < pattern_.groups(); ++group) {
      const GridPlace place{item, group, 0, 0};
      const RowSet rows = pattern_.rows(place);
      task.plan.segment_count = 0;
      pattern_.segments(place, task.plan);
      for (Index row = 0; row < rows.heads * rows.count; row += width_) {
        fill_block(pattern_, place, rows, row, width_, block);
        fill_lse(item, rows, row, block.count, task.lse);
        kernel_.run(task, bounds, carver.take<T>(0));
      }
    }
    finish(item, task);
  }

 private:
  static constexpr Index most_stretch = 512;
  Index lanes() const { return width_ / 3; }
  Index stretches() const { return (columns_ + stretch_ - 1) / stretch_; }

  void fill_lse(Index item, const RowSet& rows, Index row, Index count, T* lse) const {
    for (Index lane = 0; lane < width_; ++lane) {
      const Index at = row + lane;
      lse[lane] = lane < count
                      ? lse_.data_handle()[item * lse_.stride(0) + (rows.head + at / rows.count) * lse_.stride(1) +
                                           (rows.first + at % rows.count) * lse_.stride(2)]
                      : static_cast<T>(__builtin_inf());
    }
  }
  void finish(Index item, const kernel::ReceivedTask<T>& task) const {
    const Index rows = call_.query.extent(1) * call_.query.extent(2);
    for (Index key = 0; key < task.columns; ++key) {
      T sum = 0;
      for (Index lane = 0; lane < lanes(); ++lane) sum += task.sums[key * lanes() + lane];
      received_.data_handle()[item * received_.stride(0) + (task.first_column + key) * received_.stride(1)] =
          rows > 0 ? sum / static_cast<T>(rows) : T{0};
    }
  }

  const BandCall<T>& call_;
  const kernel::AttentionShape<T>& shape_;
  const BandPattern<T> pattern_;
  const TensorView<const T, 3> lse_;
  const TensorView<T, 2> received_;
  const kernel::ReceivedKernel<T> kernel_ = kernel::received_kernel<T>();
  const Index width_ = kernel_.block_rows, columns_;
  Index stretch_;
};

}  // namespace longview
