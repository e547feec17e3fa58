// SPDX-License-Identifier: Apache-2.0
/// \file
/// The tasks of the gradients of kernelised attention, and their execution.
#pragma once

#include "longview/detail/favor_call.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// The arguments of a backward call, already checked.
template <typename T>
struct FavorBackwardCall : FavorCall<T> {
  TensorView<const T, 4> result, d_out;
  TensorView<T, 4> d_query, d_key, d_value;
  bool differentiate_maximum = false;

  bool is_published() const { return differentiate_maximum && this->shape.shift == kernel::FavorShift::published; }
  /// The maximum of queries cancels, as they do altogether, where their scale does.
  bool differentiates_queries() const { return is_published() && this->shape.exact_scale; }
  bool differentiates_keys() const {
    return is_published() && (this->shape.exact_scale || this->shape.key_sum_epsilon > 0);
  }
  bool keeps_projected() const {
    return this->shape.epsilon > 0 || (differentiates_queries() && this->shape.map != kernel::FavorMap::trigonometric);
  }
};

template <typename T>
void fill_with_zeros(const TensorView<T, 4>& view) {
  if (!view) return;
  for (Index item = 0; item < view.extent(0); ++item)
    for (Index head = 0; head < view.extent(1); ++head)
      for (Index at = 0; at < view.extent(2); ++at)
        for (Index c = 0; c < view.extent(3); ++c) view(item, head, at, c) = 0;
}

/// What the steps of one (batch, key head) leave to each other.
template <typename T>
class FavorBackwardSlot {
 public:
  /// `segments`: of a causal call that are worked on at once.
  static ByteCount size(const FavorBackwardCall<T>& call, Index segments) {
    const Index row = kernel::favor_row(call.features()), values = kernel::favor_values(call.shape.value_dim);
    const Index notes = 3 + (call.differentiates_queries() ? 1 : 0), width = static_cast<Index>(sizeof(T));
    ByteCount bytes;
    for (Index segment = 0; segment < segments; ++segment) {
      bytes.add(kernel::favor_chunk + 16 + call.group(), width);
      bytes.add(kernel::favor_stream_indices, sizeof(Index));
    }
    bytes.add(call.shape.causal ? 2 * segments * values : 3 * values, row * width);
    bytes.add(2 * row + call.blocks(), width);
    bytes.add(1, sizeof(Index));
    Index numbers = 0;
    if (!multiply(call.group(), notes * width, numbers)) numbers = -1, bytes.add(-1, 2);
    bytes.add(call.query.extent(2), numbers);
    if (call.shape.causal) bytes.add(call.key.extent(2), width);
    if (call.differentiates_keys()) bytes.add(call.key.extent(2), width);
    return bytes;
  }
  static kernel::FavorBackwardTask<T> carve(std::byte* from, const FavorBackwardCall<T>& call, Index number,
                                            const FavorSegmentation& segments, Index segment) {
    const Index row = kernel::favor_row(call.features()), values = kernel::favor_values(call.shape.value_dim) * row;
    const Index item = number / call.key_heads(), key_head = number % call.key_heads();
    kernel::FavorBackwardTask<T> task;
    task.forward = call.task(item, key_head);
    Carver carver(from);
    for (Index each = 0; each < segments.count; ++each) {
      T* const shift = carver.take<T>(kernel::favor_chunk + 16 + call.group());
      Index* const position = carver.take<Index>(kernel::favor_stream_indices);
      if (each != segment) continue;
      task.forward.stream.shift = shift, task.forward.longest = shift + kernel::favor_chunk + 16;
      task.forward.stream.position = position;
    }
    T* at = carver.take<T>(call.shape.causal ? 2 * segments.count * values : 3 * values);
    task.forward.segment = {segment, segments.count, segments.length, at, nullptr};
    if (call.shape.causal) at += 2 * segment * values;
    task.forward.sums.sums = task.forward.stream.sums = task.sums = at;
    task.forward.sums.carry = task.forward.stream.carry = task.carry = at + values;
    if (!call.shape.causal) task.sums = at + 2 * values;
    at = carver.take<T>(2 * row + call.blocks());
    task.forward.sums.maxima = at, task.forward.sums.totals = at + row;
    task.forward.sums.shift = at + 2 * row;
    task.forward.sums.seen = carver.take<Index>(1);
    const Index notes = call.group() * call.query.extent(2);
    at = carver.take<T>((3 + (call.differentiates_queries() ? 1 : 0)) * notes);
    task.notes.offset = at, task.notes.factor = at + notes, task.notes.dot = at + 2 * notes;
    if (call.differentiates_queries()) task.notes.query_weight = at + 3 * notes;
    if (call.shape.causal) task.forward.segment.key_shift = carver.take<T>(call.key.extent(2));
    if (call.differentiates_keys()) task.notes.key_weight = carver.take<T>(call.key.extent(2));
    set_heads(task, call, item, key_head * call.group(), call.group());
    task.d_key = favor_matrix(call.d_key, item, key_head), task.d_value = favor_matrix(call.d_value, item, key_head);
    task.differentiates_queries = call.differentiates_queries(), task.differentiates_keys = call.differentiates_keys();
    task.keeps_projected = call.keeps_projected();
    return task;
  }
  /// Some heads of the group; notes begin with the first of these.
  static void set_heads(kernel::FavorBackwardTask<T>& task, const FavorBackwardCall<T>& call, Index item, Index head,
                        Index count) {
    task.forward.query = call.query.data_handle() + item * call.query.stride(0) + head * call.query.stride(1);
    task.forward.query_head = call.query.stride(1);
    task.forward.query_row = call.query.stride(2), task.forward.query_channel = call.query.stride(3);
    task.forward.queries = call.query.extent(2), task.forward.heads = count;
    task.forward.projected_query = favor_matrix(call.projected_query, item, head);
    task.out = favor_matrix(call.result, item, head), task.d_out = favor_matrix(call.d_out, item, head);
    task.d_query = favor_matrix(call.d_query, item, head);
    const Index skip = head % call.group() * call.query.extent(2);
    for (T** note : {&task.notes.offset, &task.notes.factor, &task.notes.dot, &task.notes.query_weight})
      if (*note != nullptr) *note += skip;
  }
};

/// A worker takes a (batch, key head). Where there are fewer of these than workers, the steps are dealt out one after
/// the other: sums by blocks of features, rows of gradients by stretches of positions, causal by segments, each of
/// which begins with the sums that a sweep over all would have there.
template <typename T>
class FavorBackward {
 public:
  FavorBackward(Contract& contract, const FavorBackwardCall<T>& call)
      : contract_(contract),
        call_(call),
        segments_(call.query.extent(2), call.query.extent(0) * call.key_heads(),
                  call.shape.causal ? contract.run().concurrency() : 1),
        forward_(kernel::favor_kernel<T>()),
        backward_(kernel::favor_backward_kernel<T>()) {}

  void execute() {
    const bool empty = call_.query.extent(1) == 0 || call_.query.extent(2) == 0 || call_.key.extent(2) == 0;
    const Index all = empty ? 0 : call_.query.extent(0) * call_.key_heads();
    const Index threads = call_.most_workers(contract_.run().concurrency());
    const bool splits = call_.shape.causal ? segments_.count > 1 : all < threads;
    const ByteCount slot = FavorBackwardSlot<T>::size(call_, segments_.count);
    ByteCount shared, each;
    each.add(kernel_elements(call_.shape.causal || !splits), sizeof(T));
    kernel_bytes_ = each.bytes(), slot_bytes_ = slot.bytes();
    if (all > 0) ProjectionColumns<T>::add(shared, call_);
    splits ? shared.add(slot_bytes_, all) : each.add(slot_bytes_, 1);
    if (!slot.fits()) shared.add(-1, 2);
    const Scratch scratch(contract_, shared, each, all == 0 ? 0 : splits ? threads : all < threads ? all : threads);
    if (!scratch) return;
    if (all == 0) {
      for (const TensorView<T, 4>& view : {call_.d_query, call_.d_key, call_.d_value}) fill_with_zeros(view);
      return;
    }
    Carver carver(scratch.shared());
    ProjectionColumns<T>::fill(carver, call_);
    scratch_ = &scratch, slots_ = carver.take<std::byte>(0);
    splits ? split(all, threads) : whole(all, threads);
  }

 private:
  using Task = kernel::FavorBackwardTask<T>;
  using Step = kernel::FavorBackwardStep;

  Index kernel_elements(bool together) const {
    const Index forward = kernel::favor_scratch(call_.shape.head_dim, call_.shape.value_dim, call_.features(),
                                                forward_.block_rows, false, false);
    const Index backward = kernel::favor_backward_scratch(call_.shape, backward_.block_rows, call_.keeps_projected(),
                                                          together);
    return forward > backward ? forward : backward;
  }
  bool has_key_side() const { return call_.d_key || call_.d_value; }
  bool has_maxima() const { return call_.differentiates_queries() || call_.differentiates_keys(); }
  void run(Task& task, kernel::FavorStep step, std::byte* own) const {
    task.forward.step = step;
    forward_.run(task.forward, reinterpret_cast<T*>(own));
  }
  void run(Task& task, Step step, std::byte* own) const {
    task.step = step;
    backward_.run(task, reinterpret_cast<T*>(own));
  }

  void whole(Index all, Index threads) {
    run_tasks(contract_.run(), threads < all ? threads : all, all, [&](Index number, Index worker) {
      std::byte* const own = scratch_->of(worker);
      Task task = FavorBackwardSlot<T>::carve(own + kernel_bytes_, call_, number, segments_, 0);
      if (call_.needs_maximum()) run(task, kernel::FavorStep::maximum, own);
      if (call_.shape.causal) {
        run(task, Step::causal_queries, own);
        if (has_key_side()) run(task, Step::causal_keys, own);
      } else {
        run(task, kernel::FavorStep::keys, own);
        task.forward.last = call_.query.extent(2);
        run(task, has_key_side() ? Step::queries_and_sums : Step::queries, own);
        task.forward.last = call_.key.extent(2);
        if (has_key_side()) run(task, Step::keys, own);
      }
      if (has_maxima()) run(task, Step::maxima, own);
    });
  }

  void split(Index all, Index threads) {
    const auto slot = [&](Index number, Index segment = 0) {
      return FavorBackwardSlot<T>::carve(slots_ + number * slot_bytes_, call_, number, segments_, segment);
    };
    const FavorDeal deal(contract_.run(), threads);
    const auto over_blocks = [&](auto step) {
      deal.over_blocks(all, call_.blocks(), [&](Index of, Index block, Index worker) {
        Task task = slot(of);
        task.forward.block_begin = block, task.forward.block_end = block + 1;
        run(task, step, scratch_->of(worker));
      });
    };
    const auto over_stretches = [&](auto step, Index heads, Index length) {
      deal.over_stretches(all * heads, length, [&](Index number, Index first, Index last, Index worker) {
        const Index of = number / heads;
        Task task = slot(of);
        if (heads > 1)
          FavorBackwardSlot<T>::set_heads(task, call_, of / call_.key_heads(),
                                          of % call_.key_heads() * call_.group() + number % heads, 1);
        task.forward.first = first, task.forward.last = last;
        run(task, step, scratch_->of(worker));
      });
    };
    const auto over_segments = [&](Step step) {
      deal(all * segments_.count, [&](Index number, Index worker) {
        Task task = slot(number / segments_.count, number % segments_.count);
        run(task, step, scratch_->of(worker));
      });
    };
    const auto over_slots = [&](auto step) {
      deal(all, [&](Index number, Index worker) {
        Task task = slot(number);
        task.forward.last = call_.query.extent(2);
        run(task, step, scratch_->of(worker));
      });
    };
    const bool running = call_.shape.shift == kernel::FavorShift::running;
    if (call_.needs_maximum()) over_blocks(kernel::FavorStep::maximum);
    if (call_.shape.causal) {
      if (running) {
        over_stretches(kernel::FavorStep::find_shifts, 1, call_.key.extent(2));
        over_slots(kernel::FavorStep::join_shifts);
      }
      over_blocks(kernel::FavorStep::segment_keys);
      over_segments(Step::causal_queries);
      if (has_key_side()) over_blocks(Step::segment_queries), over_segments(Step::causal_keys);
    } else {
      over_blocks(kernel::FavorStep::keys);
      over_stretches(Step::queries, call_.group(), call_.query.extent(2));
      if (has_key_side()) over_blocks(Step::query_sums), over_stretches(Step::keys, 1, call_.key.extent(2));
    }
    if (has_maxima()) over_slots(Step::maxima);
  }

  Contract& contract_;
  FavorBackwardCall<T> call_;
  const FavorSegmentation segments_;
  kernel::FavorKernel<T> forward_;
  kernel::FavorBackwardKernel<T> backward_;
  Index kernel_bytes_ = 0, slot_bytes_ = 0;
  const Scratch* scratch_ = nullptr;
  std::byte* slots_ = nullptr;
};

}  // namespace longview::inline v0::inline LONGVIEW_BUILD::detail
