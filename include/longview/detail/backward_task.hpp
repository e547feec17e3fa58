// SPDX-License-Identifier: Apache-2.0
/// \file
/// From a pattern to the tasks of the backward kernel, and their execution.
#pragma once

#include "longview/detail/gradient_sums.hpp"
#include "longview/detail/row_order.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

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
        blocks_(blocks_in_line(blocks_per_task(task_size(), kernel_.block_rows, total_rows(pattern), workers, 8), workers)),
        lines_(lines(blocks_)),
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
    block.d_query[lane] = wanted_.d_query.data_handle() != nullptr ? element_at(wanted_.d_query, item, head, query) : nullptr;
    block.lse[lane] = *element_at(wanted_.out.lse, item, head, query);
    block.d_lse[lane] = wanted_.d_lse.data_handle() != nullptr ? *element_at(wanted_.d_lse, item, head, query) : T{0};
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
    constexpr auto block = static_cast<Index>(sizeof(kernel::QueryBlock<T>) + sizeof(kernel::GradientBlock<T>));
    constexpr auto bounds = static_cast<Index>(sizeof(kernel::LaneBounds));
    const Index width = kernel_.block_rows;
    return {kernel::backward_block_scratch(shape_, width) * size + block + segments_ * bounds,
            kernel::backward_tile_scratch(shape_, width) * size, Index{508} * 1024};  // of 512: alignment, what tasks share
  }

  Lines lines(Index blocks) const {
    return Lines(pattern_, call_.query.extent(1) > 0 ? call_.key_heads() : 0,
                 {joins_items(), joins_heads(), joins_residues()}, blocks * kernel_.block_rows);
  }
  /// Of a task, so that the workers of a line are all at work: a task begins when that before it has left its first keys,
  /// after about rows / (2 span) of its work.
  Index blocks_in_line(Index blocks, Index workers) const {
    const Index count = lines(blocks).lines();
    if (workers <= count || count == 0) return blocks;
    const Index most = pattern_.span() / kernel_.block_rows / (workers / count);
    return most >= blocks ? blocks : most > 1 ? most : 1;
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
    return pattern_.residues_share_keys() || !scores.alibi_slopes.empty() || !scores.sinks.empty() ||
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

/// Runs the backward pass of a pattern on the executor of the call.
template <typename T, typename Pattern>
void attend_backward(Contract& contract, const kernel::AttentionShape<T>& shape, const BandCall<T>& call,
                     const BackwardCall<T>& wanted, const Pattern& pattern, Index segments) {
  const Run& run = contract.run();
  BackwardWork<T, Pattern> work(shape, call, wanted, pattern, segments, run.concurrency());
  const ZeroFill<T> zeros = sums_of(call, wanted);
  const auto size = WorkSize::of(work);
  HeadSums<T> sums(call, wanted, shape.relative);
  ByteCount shared;
  work.add_shared(shared);
  sums.add_shared(shared);
  const Scratch scratch(contract, shared, size.scratch, size.workers(run));
  if (!scratch) return;
  Carver carver(scratch.shared());
  work.begin(carver, sums);
  sums.begin(carver);
  zeros.fill(run);
  run_work(run, scratch, work);
  sums.finish();
}

}  // namespace longview
