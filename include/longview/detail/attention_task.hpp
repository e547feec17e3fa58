// SPDX-License-Identifier: Apache-2.0
/// \file
/// From a pattern (which rows, which keys) to the tasks of the attention kernel, and their execution.
#pragma once

#include <concepts>

#include "longview/detail/works.hpp"
#include "longview/kernel/targets.hpp"
#include "longview/scores.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// Queries that see the same segments: `count` per head, of `heads` consecutive heads, all on one key head.
struct RowSet {
  Index head = 0, heads = 1;
  Index first = 0, step = 1, count = 0;
  const Index* rows = nullptr;  // instead of first and step
};

/// Where a task stands in a pattern's grid: batch item, group of heads, residue class of the dilation, and a stretch of rows.
struct GridPlace {
  Index item, group, residue, chunk;
};

/// What an operator says about itself.
template <typename P, typename T>
concept Pattern = requires(const P& pattern, Index at, const GridPlace& place, kernel::AttentionTask<T>& task,
                           kernel::QueryBlock<T>& block) {
  { pattern.items() } -> std::same_as<Index>;
  { pattern.groups() } -> std::same_as<Index>;
  { pattern.residues(at) } -> std::same_as<Index>;   // of a group
  { pattern.most_rows(at) } -> std::same_as<Index>;  // of a group, over its residues and items
  { pattern.rows(place) } -> std::same_as<RowSet>;
  pattern.segments(place, task);
  pattern.lane(place, at, at, 0, block);             // head, query, lane
};

/// The tasks of a pattern, each of at most `rows_per_task` rows of one residue class of one group.
template <typename Pattern>
class TaskGrid {
 public:
  TaskGrid(const Pattern& pattern, Index rows_per_task) : pattern_(pattern), rows_per_task_(rows_per_task) {
    for (Index group = 0; group < pattern.groups(); ++group) per_item_ += tasks_of(group);
  }
  Index size() const { return per_item_ * pattern_.items(); }
  GridPlace place(Index task) const {
    GridPlace at{task / per_item_, 0, 0, 0};
    Index left = task % per_item_;
    while (left >= tasks_of(at.group)) left -= tasks_of(at.group++);
    const Index chunks = chunks_of(at.group);
    at.residue = left / chunks, at.chunk = left % chunks;
    return at;
  }

 private:
  Index chunks_of(Index group) const { return (pattern_.most_rows(group) + rows_per_task_ - 1) / rows_per_task_; }
  Index tasks_of(Index group) const { return pattern_.residues(group) * chunks_of(group); }

  const Pattern& pattern_;
  Index rows_per_task_, per_item_ = 0;
};

/// What decides how many blocks a task has, in bytes.
struct TaskSize {
  Index block, tile, most;
};
/// Blocks of one task: few enough for the scratch of a worker, and for every worker to have `shares` tasks.
inline Index blocks_per_task(const TaskSize& size, Index block_rows, Index total_rows, Index workers, Index shares) {
  const Index by_memory = (size.most - size.tile) / size.block, by_workers = total_rows / (shares * block_rows) / workers;
  Index blocks = by_memory < kernel::most_blocks ? by_memory : kernel::most_blocks;
  if (workers > 1 && blocks > by_workers) blocks = by_workers;
  const Index all = (total_rows + block_rows - 1) / block_rows;
  if (blocks > all) blocks = all;
  return blocks > 1 ? blocks : 1;
}

/// Of all heads, items and residue classes.
template <typename Pattern>
Index total_rows(const Pattern& pattern) {
  Index rows = 0;
  for (Index group = 0; group < pattern.groups(); ++group)
    rows += pattern.items() * pattern.residues(group) * pattern.most_rows(group);
  return rows;
}

/// Calls fill(head, query, lane) for the lanes of the block of at most `width` rows, three vectors, that begins with row `row`.
/// Lanes beyond the last row repeat it to the end of its vector, so that kernels need no special case. Returns the number of
/// rows.
template <typename Fill>
LONGVIEW_INLINE Index fill_lanes(const RowSet& rows, Index row, Index width, const Fill& fill) {
  const Index left = rows.heads * rows.count - row, count = left < width ? left : width, vector = width / 3;
  Index head = rows.head + row / rows.count, number = row % rows.count;
  for (Index lane = 0; lane < (count + vector - 1) / vector * vector; ++lane) {
    fill(head, rows.rows != nullptr ? rows.rows[number] : rows.first + number * rows.step, static_cast<int>(lane));
    if (lane < count - 1 && ++number == rows.count) number = 0, ++head;
  }
  return count;
}

template <typename T, typename Pattern>
void fill_block(const Pattern& pattern, const GridPlace& place, const RowSet& rows, Index row, Index width,
                kernel::QueryBlock<T>& block) {
  block.count = fill_lanes(rows, row, width, [&](Index head, Index query, int lane) {
    pattern.lane(place, head, query, lane, block);
  });
}

/// A pattern cut into tasks, ready to run.
template <typename T, typename Pattern>
class AttentionWork {
 public:
  /// `segments`: the most that the pattern adds to a task.
  AttentionWork(const kernel::AttentionShape<T>& shape, const Pattern& pattern, Index segments, Index workers)
      : kernel_(kernel::attention_kernel<T>()),
        shape_(shape),
        pattern_(pattern),
        segments_(segments),
        blocks_(blocks_per_task(task_size(), kernel_.block_rows, total_rows(pattern), workers, 4)),
        grid_(pattern, blocks_ * kernel_.block_rows) {}

  Index tasks() const { return grid_.size(); }

  /// Bytes for each worker.
  ByteCount scratch() const {
    return ByteCount()
        .add(blocks_, sizeof(kernel::QueryBlock<T>))
        .add(blocks_ * segments_, sizeof(kernel::LaneBounds))
        .add(kernel::tile_scratch(shape_, kernel_.block_rows), sizeof(T))
        .add(kernel::block_scratch(shape_, kernel_.block_rows), blocks_ * static_cast<Index>(sizeof(T)));
  }

  void run(Index number, std::byte* scratch) const {
    const GridPlace place = grid_.place(number);
    const RowSet rows = pattern_.rows(place);
    const Index begin = place.chunk * blocks_ * kernel_.block_rows, all = rows.heads * rows.count;
    if (begin >= all) return;
    Carver carver(scratch);
    auto* const blocks = carver.take<kernel::QueryBlock<T>>(blocks_);
    auto* const bounds = carver.take<kernel::LaneBounds>(blocks_ * segments_);
    kernel::AttentionTask<T> task;
    task.shape = &shape_;
    task.blocks = blocks;
    for (Index row = begin; row < all && task.block_count < blocks_; row += kernel_.block_rows)
      fill_block(pattern_, place, rows, row, kernel_.block_rows, blocks[task.block_count++]);
    pattern_.segments(place, task);
    kernel_.run(task, bounds, carver.take<T>(0));
  }

 private:
  TaskSize task_size() const {
    constexpr auto size = static_cast<Index>(sizeof(T));
    constexpr auto block = static_cast<Index>(sizeof(kernel::QueryBlock<T>));
    constexpr auto bounds = static_cast<Index>(sizeof(kernel::LaneBounds));
    const Index width = kernel_.block_rows;
    return {kernel::block_scratch(shape_, width) * size + block + segments_ * bounds,
            kernel::tile_scratch(shape_, width) * size, Index{256} * 1024};
  }

  const kernel::AttentionKernel<T> kernel_;
  const kernel::AttentionShape<T>& shape_;
  const Pattern& pattern_;
  const Index segments_, blocks_;
  const TaskGrid<Pattern> grid_;
};

/// Runs a pattern on the executor of the call.
template <typename T, typename Pattern>
void attend(Contract& contract, const kernel::AttentionShape<T>& shape, const Pattern& pattern, Index segments) {
  const Run& run = contract.run();
  const AttentionWork<T, Pattern> work(shape, pattern, segments, run.concurrency());
  const auto size = WorkSize::of(work);
  const Scratch scratch(contract, {}, size.scratch, size.workers(run));
  if (scratch) run_work(run, scratch, work);
}

}  // namespace longview
