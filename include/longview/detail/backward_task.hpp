// SPDX-License-Identifier: Apache-2.0
/// \file
/// From a pattern to the tasks of the backward kernel, and their execution.
#pragma once

#include "longview/detail/band_pattern.hpp"
#include "longview/detail/row_order.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// What arrives with a backward call and what is wanted beside the gradients of keys and values, already checked.
template <typename T>
struct BackwardCall {
  Output<const T> out{{}};
  TensorView<const T, 4> d_out{};
  TensorView<const T, 3> d_lse{};
  TensorView<T, 4> d_query{};
  ScoreGradients<T> scores{};
  TensorView<T, 3> d_position{};
  TensorView<T, 2> d_content_bias{}, d_position_bias{};
};

/// Sets views to zero, each of them by (first axis, second axis).
template <typename T>
class ZeroFill {
 public:
  template <std::size_t Rank>
  void add(const TensorView<T, Rank>& view) {
    if (!view) return;
    if constexpr (Rank < 4) {
      add(view.unsqueeze(0));
    } else {
      views_[count_++] = view;
      tasks_ += view.extent(0) * view.extent(1);
    }
  }
  Index tasks() const { return tasks_; }
  void run(Index task) const {
    std::size_t number = 0;
    for (; task >= views_[number].extent(0) * views_[number].extent(1); ++number)
      task -= views_[number].extent(0) * views_[number].extent(1);
    const auto& view = views_[number];
    for (Index row = 0; row < view.extent(2); ++row) {
      T* const at = element_at(view, task / view.extent(1), task % view.extent(1), row);
      for (Index c = 0; c < view.extent(3); ++c) at[c * view.stride(3)] = 0;
    }
  }

 private:
  TensorView<T, 4> views_[2 * KeyValueView<T>::most_segments + 4];
  std::size_t count_ = 0;
  Index tasks_ = 0;
};

/// Sums over the rows of each (batch, head), in double, and then over the batch.
template <typename T>
class HeadSums {
 public:
  HeadSums(const BandCall<T>& call, const BackwardCall<T>& wanted, bool relative)
      : items_(call.query.extent(0)),
        heads_(call.query.extent(1)),
        channels_(relative ? call.query.extent(3) : 0),
        wanted_(wanted) {}

  void add_shared(ByteCount& bytes) const { bytes.add(elements(), sizeof(double)); }
  void begin(Carver& carver) {
    sums_ = carver.take<double>(elements());
    for (Index at = 0; at < elements(); ++at) sums_[at] = 0;
  }
  double* slope(Index item, Index head) const { return sums_ + (item * heads_ + head) * row(); }
  double* sink(Index item, Index head) const { return slope(item, head) + 1; }
  double* content_bias(Index item, Index head) const { return slope(item, head) + 2; }
  double* position_bias(Index item, Index head) const { return slope(item, head) + 2 + channels_; }

  void finish() const {
    for (Index head = 0; head < heads_; ++head) {
      const auto at = static_cast<std::size_t>(head);
      if (!wanted_.scores.alibi_slopes.empty()) wanted_.scores.alibi_slopes[at] = static_cast<T>(over_items(head, 0));
      if (!wanted_.scores.sinks.empty()) wanted_.scores.sinks[at] = static_cast<T>(over_items(head, 1));
    }
    finish_channels(wanted_.d_content_bias, 2);
    finish_channels(wanted_.d_position_bias, 2 + channels_);
  }

 private:
  Index row() const { return 2 + 2 * channels_; }
  Index elements() const {
    const bool any = !wanted_.scores.alibi_slopes.empty() || !wanted_.scores.sinks.empty() || wanted_.d_content_bias ||
                     wanted_.d_position_bias;
    return any ? items_ * heads_ * row() : 0;
  }
  double over_items(Index head, Index element) const {
    double sum = 0;
    for (Index item = 0; item < items_; ++item) sum += slope(item, head)[element];
    return sum;
  }
  /// An extent of 1 sums over the heads.
  void finish_channels(const TensorView<T, 2>& to, Index first) const {
    for (Index row = 0; row < to.extent(0); ++row)
      for (Index c = 0; c < to.extent(1); ++c) {
        double sum = 0;
        for (Index head = row; head < (to.extent(0) == 1 ? heads_ : row + 1); ++head) sum += over_items(head, first + c);
        to.data_handle()[row * to.stride(0) + c * to.stride(1)] = static_cast<T>(sum);
      }
  }

  Index items_, heads_, channels_;
  const BackwardCall<T>& wanted_;
  double* sums_ = nullptr;
};

/// The tasks of a pattern in lines. Rows that add to the same gradients stand in one line: the heads of a key head, and all
/// items, heads or residue classes over which a gradient is summed. Residue classes share no keys, so they may have lines of
/// their own where all heads have the same.
///
/// Tasks of a line that run at the same time are at different keys and, since later queries are then at earlier keys, at
/// different distances.
template <typename Pattern>
class RowLines {
 public:
  struct Joined {
    bool items, heads, residues;
  };
  RowLines(const Pattern& pattern, Index key_heads, const Joined& joined, Index rows_per_task)
      : pattern_(pattern),
        rows_per_task_(rows_per_task),
        items_(joined.items ? pattern.items() : 1),
        key_heads_(joined.heads ? key_heads : 1),
        groups_(key_heads > 0 ? pattern.groups() / key_heads : 0) {
    bool same = true;
    for (Index group = 0; group < pattern.groups(); ++group) {
      const Index residues = pattern.residues(group), chunks = (pattern.most_rows(group) + rows_per_task - 1) / rows_per_task;
      same = same && residues == pattern.residues(0);
      if (residues > residues_) residues_ = residues;
      if (chunks > chunks_) chunks_ = chunks;
    }
    if (same && !joined.residues) line_residues_ = residues_, residues_ = residues_ > 0 ? 1 : 0;
    lines_ = pattern.items() / (items_ > 0 ? items_ : 1) * (key_heads / (key_heads_ > 0 ? key_heads_ : 1)) * line_residues_;
    line_key_heads_ = key_heads_ > 0 ? key_heads / key_heads_ : 0;
  }

  Index lines() const { return lines_; }
  Index length() const { return items_ * key_heads_ * groups_ * residues_ * chunks_; }

  struct Task {
    GridPlace place;
    RowSet rows;
    Index first;   // of the rows
    bool exists;
    bool begins;   // a stretch of rows whose keys may begin anywhere
  };
  Task task(const RowOrder::Place& at) const {
    Index line = at.line, position = at.position;
    const auto next = [](Index& from, Index count) {
      const Index digit = from % count;
      from /= count;
      return digit;
    };
    GridPlace place{};
    place.chunk = next(position, chunks_);
    place.residue = next(position, residues_) + next(line, line_residues_);
    const Index group = next(position, groups_);
    place.group = (next(position, key_heads_) + next(line, line_key_heads_)) * groups_ + group;
    place.item = position + line;
    Task task{place, {}, place.chunk * rows_per_task_, place.residue < pattern_.residues(place.group), place.chunk == 0};
    if (task.exists) task.rows = pattern_.rows(place);
    task.exists = task.exists && task.first < task.rows.heads * task.rows.count;
    return task;
  }

 private:
  const Pattern& pattern_;
  Index rows_per_task_, items_, key_heads_, groups_, residues_ = 0, chunks_ = 0;  // in a line
  Index line_residues_ = 1, line_key_heads_ = 1, lines_ = 0;                      // beside each other
};

/// The backward pass of a pattern, ready to run.
template <typename T, typename Pattern>
class BackwardWork {
 public:
  /// `segments`: the most that the pattern adds to a task.
  BackwardWork(const kernel::AttentionShape<T>& shape, const BandCall<T>& call, const BackwardCall<T>& wanted,
               const Pattern& pattern, Index segments, Index workers)
      : kernel_(kernel::backward_kernel<T>()),
        shape_(shape),
        call_(call),
        wanted_(wanted),
        pattern_(pattern),
        segments_(segments),
        gradient_shape_(gradient_shape()),
        blocks_(blocks_per_task(task_size(), kernel_.block_rows, total_rows(pattern), workers, 8)),
        lines_(pattern, call.query.extent(1) > 0 ? call.key_heads() : 0, {joins_items(), joins_heads(), joins_residues()},
               blocks_ * kernel_.block_rows),
        order_(lines_.lines(), lines_.length(), workers),
        alone_(workers == 1) {}

  Index tasks() const { return order_.tasks(); }

  /// Bytes for all workers, and for each of them.
  void add_shared(ByteCount& bytes) const { bytes.add(order_.elements(), sizeof(RowOrder::Progress)); }
  ByteCount scratch() const {
    return ByteCount()
        .add(blocks_, sizeof(kernel::QueryBlock<T>))
        .add(blocks_, sizeof(kernel::GradientBlock<T>))
        .add(blocks_ * segments_, sizeof(kernel::LaneBounds))
        .add(kernel::backward_tile_scratch(shape_, kernel_.block_rows), sizeof(T))
        .add(kernel::backward_block_scratch(shape_, kernel_.block_rows), blocks_ * static_cast<Index>(sizeof(T)));
  }

  /// `sums` outlives the work.
  void begin(Carver& shared, const HeadSums<T>& sums) {
    order_.begin(shared.take<RowOrder::Progress>(order_.elements()));
    sums_ = &sums;
  }

  void run(Index number, std::byte* scratch) const {
    const RowOrder::Place place = order_.place(number);
    const auto own = lines_.task(place);
    RowOrder::Neighbours neighbours = order_.neighbours(place);
    if (!alone_ && (own.begins || !own.exists)) RowOrder::enter(&neighbours, kernel::beyond_all);
    if (own.exists) run_rows(own, alone_ ? kernel::TileGate() : RowOrder::gate(neighbours), scratch);
    if (!alone_) RowOrder::leave(&neighbours, kernel::beyond_all);
  }

 private:
  using Lines = RowLines<Pattern>;

  void run_rows(const typename Lines::Task& own, const kernel::TileGate& gate, std::byte* scratch) const {
    Carver carver(scratch);
    auto* const blocks = carver.take<kernel::QueryBlock<T>>(blocks_);
    auto* const gradients = carver.take<kernel::GradientBlock<T>>(blocks_);
    auto* const bounds = carver.take<kernel::LaneBounds>(blocks_ * segments_);
    kernel::BackwardTask<T> task;
    task.plan.shape = &shape_, task.plan.blocks = blocks;
    task.shape = &gradient_shape_, task.blocks = gradients;
    task.gate = gate;
    int& count = task.plan.block_count;
    for (Index row = own.first; row < own.rows.heads * own.rows.count && count < blocks_; row += kernel_.block_rows, ++count) {
      fill_block(pattern_, own.place, own.rows, row, kernel_.block_rows, blocks[count]);
      fill_lanes(own.rows, row, kernel_.block_rows, [&](Index head, Index query, int lane) {
        set_lane(own.place.item, head, query, lane, gradients[count]);
      });
    }
    pattern_.segments(own.place, task.plan);
    kernel_.run(task, bounds, carver.take<T>(0));
  }

  void set_lane(Index item, Index head, Index query, int lane, kernel::GradientBlock<T>& block) const {
    block.out[lane] = element_at(wanted_.out.out, item, head, query);
    block.d_out[lane] = element_at(wanted_.d_out, item, head, query);
    block.d_query[lane] = wanted_.d_query ? element_at(wanted_.d_query, item, head, query) : nullptr;
    block.lse[lane] = *element_at(wanted_.out.lse, item, head, query);
    block.d_lse[lane] = wanted_.d_lse ? *element_at(wanted_.d_lse, item, head, query) : T{0};
    if (gradient_shape_.bias) block.d_bias[lane] = row_of(wanted_.scores.bias, item, head, query);
    if (gradient_shape_.slopes) block.d_slope[lane] = sums_->slope(item, head);
    if (gradient_shape_.sinks) block.d_sink[lane] = sums_->sink(item, head);
    if (gradient_shape_.distances) block.d_distances = row_of(wanted_.d_position, head);
    if (gradient_shape_.content_bias) block.d_content_bias = sums_->content_bias(item, head);
    if (gradient_shape_.position_bias) block.d_position_bias = sums_->position_bias(item, head);
  }

  kernel::GradientShape<T> gradient_shape() const {
    kernel::GradientShape<T> shape;
    shape.out_channel = wanted_.out.out.stride(3), shape.d_out_channel = wanted_.d_out.stride(3);
    shape.d_query_channel = wanted_.d_query.stride(3);
    shape.d_bias_column = repeated(wanted_.scores.bias.extent(3), wanted_.scores.bias.stride(3));
    shape.query = static_cast<bool>(wanted_.d_query);
    for (std::size_t s = 0; s < call_.d_keys.size(); ++s) {
      shape.key = shape.key || call_.d_keys[s].key;
      shape.value = shape.value || call_.d_keys[s].value;
    }
    shape.bias = static_cast<bool>(wanted_.scores.bias);
    shape.slopes = !wanted_.scores.alibi_slopes.empty(), shape.sinks = !wanted_.scores.sinks.empty();
    shape.distances = static_cast<bool>(wanted_.d_position);
    shape.content_bias = static_cast<bool>(wanted_.d_content_bias);
    shape.position_bias = static_cast<bool>(wanted_.d_position_bias);
    shape.d_distance_row = wanted_.d_position.stride(1), shape.d_distance_channel = wanted_.d_position.stride(2);
    return shape;
  }
  TaskSize task_size() const {
    constexpr auto size = static_cast<Index>(sizeof(T));
    return {kernel::backward_block_scratch(shape_, kernel_.block_rows) * size,
            kernel::backward_tile_scratch(shape_, kernel_.block_rows) * size, Index{480} * 1024};
  }

  // Gradients that are summed over items or heads are summed by one line. The position table has no items at all.
  bool joins_items() const { return sums_over(0) || wanted_.d_position; }
  bool joins_heads() const { return sums_over(1) || (wanted_.d_position && wanted_.d_position.extent(0) == 1); }
  bool sums_over(std::size_t axis) const {
    return wanted_.scores.bias && wanted_.scores.bias.extent(axis) == 1 && call_.query.extent(axis) > 1;
  }
  // Only of rows that add to the same keys does the order of tiles keep the order.
  bool joins_residues() const {
    const auto& scores = wanted_.scores;
    return !scores.alibi_slopes.empty() || !scores.sinks.empty() ||
           (scores.bias && scores.bias.extent(2) == 1 && scores.bias.extent(3) == 1);
  }

  const kernel::BackwardKernel<T> kernel_;
  const kernel::AttentionShape<T>& shape_;
  const BandCall<T>& call_;
  const BackwardCall<T>& wanted_;
  const Pattern& pattern_;
  const Index segments_;
  const kernel::GradientShape<T> gradient_shape_;
  const Index blocks_;
  const Lines lines_;
  RowOrder order_;
  const HeadSums<T>* sums_ = nullptr;
  const bool alone_;
};

/// The gradients of a call that are sums, to be zeros before anything is added.
template <typename T>
ZeroFill<T> sums_of(const BandCall<T>& call, const BackwardCall<T>& wanted) {
  ZeroFill<T> zeros;
  for (std::size_t s = 0; s < call.d_keys.size(); ++s) zeros.add(call.d_keys[s].key), zeros.add(call.d_keys[s].value);
  zeros.add(wanted.scores.bias);
  zeros.add(wanted.d_position);
  return zeros;
}

/// Runs the backward pass of a pattern on the executor of the call.
template <typename T, typename Pattern>
void attend_backward(Contract& contract, const kernel::AttentionShape<T>& shape, const BandCall<T>& call,
                     const BackwardCall<T>& wanted, const Pattern& pattern, Index segments) {
  const Run& run = contract.run();
  BackwardWork<T, Pattern> work(shape, call, wanted, pattern, segments, run.concurrency());
  const ZeroFill<T> zeros = sums_of(call, wanted);
  const Index tasks = work.tasks();
  const auto at_most = [&](Index count) { return run.concurrency() < count ? run.concurrency() : count; };
  HeadSums<T> sums(call, wanted, shape.relative);
  ByteCount shared;
  work.add_shared(shared);
  sums.add_shared(shared);
  const Scratch scratch(contract, shared, work.scratch(), at_most(tasks));
  if (!scratch) return;
  Carver carver(scratch.shared());
  work.begin(carver, sums);
  sums.begin(carver);
  run_tasks(run, at_most(zeros.tasks()), zeros.tasks(), [&](Index task, Index) { zeros.run(task); });
  run_tasks(run, at_most(tasks), tasks, [&](Index task, Index worker) { work.run(task, scratch.of(worker)); });
  sums.finish();
}

}  // namespace longview
