// SPDX-License-Identifier: Apache-2.0
/// \file
/// The two queues of a compressive memory, and what a push does to them.
#pragma once

#include "longview/detail/array.hpp"
#include "longview/detail/scores_check.hpp"
#include "longview/detail/sort.hpp"
#include "longview/projection.hpp"

namespace longview::inline v0 {

/// Rows that each queue of a compressive memory keeps; 0: none.
struct MemoryLengths {
  Index memory = 0, compressed = 0;
};

namespace storage {

/// (batch, heads, rows, width), oldest first; those before `first` have left the queue.
template <typename T>
struct Queue {
  Array<T> elements;
  Index rows = 0, first = 0;

  LONGVIEW_INLINE Queue() = default;
  LONGVIEW_INLINE Queue(const Queue&) = default;
  LONGVIEW_INLINE Queue& operator=(const Queue&) = default;
  LONGVIEW_INLINE ~Queue() = default;
  LONGVIEW_INLINE void swap(Queue& other) noexcept {
    elements.swap(other.elements);
    const Index own_rows = rows, own_first = first;
    rows = other.rows, first = other.first;
    other.rows = own_rows, other.first = own_first;
  }
  LONGVIEW_INLINE Index length() const { return rows - first; }
  LONGVIEW_INLINE TensorView<T, 4> all(const Shape<3>& shape) const {
    return {elements.data(), Shape<4>{shape[0], shape[1], rows, shape[2]}};
  }
};

/// A push writes the next contents beside the present ones and swaps at its end: a failure before changes nothing.
template <typename T>
struct MemoryState {
  Shape<3> shape{};  // batch, heads, width
  MemoryLengths lengths{};
  Queue<T> memory, compressed, next_memory, next_compressed;
  Array<double> use, next_use;  // (batch, rows of memory), those that left included

  LONGVIEW_INLINE MemoryState(const Shape<3>& of, const MemoryLengths& keeps) : shape(of), lengths(keeps) {}
  LONGVIEW_INLINE MemoryState(const MemoryState&) = default;
  LONGVIEW_INLINE MemoryState& operator=(const MemoryState&) = delete;
  LONGVIEW_INLINE ~MemoryState() = default;
  LONGVIEW_INLINE void swap(MemoryState& other) noexcept {
    const Shape<3> own_shape = shape;
    const MemoryLengths own_lengths = lengths;
    shape = other.shape, lengths = other.lengths;
    other.shape = own_shape, other.lengths = own_lengths;
    memory.swap(other.memory), compressed.swap(other.compressed);
    next_memory.swap(other.next_memory), next_compressed.swap(other.next_compressed);
    use.swap(other.use), next_use.swap(other.next_use);
  }
};

}  // namespace storage

inline namespace LONGVIEW_BUILD {
namespace detail {

inline void check_memory(const Shape<3>& shape, const MemoryLengths& lengths) {
  const Run run;
  Contract contract("CompressiveMemory", run);
  contract.at_least("batch_heads_width", "batch", shape[0], 0);
  contract.at_least("batch_heads_width", "heads", shape[1], 0);
  contract.at_least("batch_heads_width", "width", shape[2], 1);
  contract.at_least("lengths.memory", "", lengths.memory, 0);
  contract.at_least("lengths.compressed", "", lengths.compressed, 0);
  contract.accepted();
}

/// One push onto a state.
template <typename T>
class MemoryPush {
 public:
  struct Rows {
    TensorView<const T, 4> evicted{}, compressed{};
  };

  MemoryPush(storage::MemoryState<T>& state, const TensorView<const T, 4>& segment, const Projection<T>& compression,
             const Run& run)
      : state_(state), segment_(segment), compression_(compression), contract_("CompressiveMemory::push", run) {}

  Rows operator()() {
    check();
    if (!contract_.accepted()) return {};
    const Index held = state_.memory.length(), total = held + segment_.extent(2);
    const Index excess = total > state_.lengths.memory ? total - state_.lengths.memory : 0;
    slots_ = excess / rate_, evicted_ = slots_ * rate_;
    const Index kept = state_.compressed.length();
    if (contract_.run().rehearsal() == nullptr) {
      reserve(total, kept + slots_);
      copy(state_.memory.all(state_.shape).slice(2, state_.memory.first, held), state_.next_memory.all(state_.shape),
           0);
      copy(segment_, state_.next_memory.all(state_.shape), held);
      copy_use(held, total);
      if (slots_ > 0)
        copy(state_.compressed.all(state_.shape).slice(2, state_.compressed.first, kept),
             state_.next_compressed.all(state_.shape), 0);
    }
    return compress(total, kept) ? commit(kept) : Rows{};
  }

 private:
  void check() {
    const Shape<3>& shape = state_.shape;
    contract_.input("segment", segment_);
    contract_.equal("segment", "batch", segment_.extent(0), shape[0], "the memory");
    contract_.equal("segment", "heads", segment_.extent(1), shape[1], "the memory");
    contract_.equal("segment", "width", segment_.extent(3), shape[2], "the memory");
    const Index kinds = kinds_of(compression_);
    if (kinds != 1)
      contract_.fail("compression", "exactly one of mean_pool, max_pool, convolution, most_used (got " +
                                        std::to_string(kinds) + ", expected 1)");
    contract_.require(!compression_.matrix, "compression.matrix", "has no rate, and rows arrive one after another");
    contract_.require(!compression_.slot_bias, "compression.slot_bias",
                      "has no meaning where slots arrive one after another");
    if (!contract_.ok()) return;
    check_rate();
    check_size();
  }
  void check_rate() {
    const Projection<T>& of = compression_;
    rate_ = of.most_used != 0 ? of.most_used : rate_of(of);
    const Index width = state_.shape[2];
    if (of.convolution) {
      contract_.input("compression.convolution", of.convolution);
      contract_.equal("compression.convolution", "dim out", of.convolution.extent(0), width, "the memory");
      contract_.equal("compression.convolution", "dim in", of.convolution.extent(1), width, "the memory");
    }
    contract_.at_least("compression", "rate", rate_, 1);
    if (state_.lengths.memory > 0 && rate_ > state_.lengths.memory)
      contract_.fail("compression", "rate must not exceed the memory length (got " + std::to_string(rate_) +
                                        ", expected at most " + std::to_string(state_.lengths.memory) + ")");
    if (of.most_used != 0)
      contract_.require(!of.channel_bias, "compression.channel_bias",
                        "has no meaning for rows that are kept as they are");
    check_bias(contract_, "compression.channel_bias", of.channel_bias, state_.shape[1], width);
  }
  /// Of both queues after the push.
  void check_size() {
    const Shape<3>& shape = state_.shape;
    Index rows = 0, width = 0, bytes = 0;
    const bool fits =
        add(state_.memory.length(), state_.compressed.length(), rows) && add(rows, segment_.extent(2), rows) &&
        multiply(shape[2], static_cast<Index>(sizeof(double)), width) && multiply(shape[0], width, bytes) &&
        multiply(bytes, shape[1], bytes) && multiply(bytes, rows, bytes);
    if (!fits) contract_.fail("segment", "byte count of the memory overflows", true);
  }

  void reserve(Index total, Index slots) {
    const Shape<3>& shape = state_.shape;
    state_.next_memory.elements.resize(shape[0] * shape[1] * total * shape[2]);
    state_.next_memory.rows = total, state_.next_memory.first = 0;
    state_.next_use.resize(shape[0] * total);
    if (slots_ == 0) return;
    state_.next_compressed.elements.resize(shape[0] * shape[1] * slots * shape[2]);
    state_.next_compressed.rows = slots, state_.next_compressed.first = 0;
  }

  static void copy(const TensorView<const T, 4>& from, const TensorView<T, 4>& to, Index first) {
    const Index rows = from.extent(2), width = from.extent(3);
    for (Index b = 0; b < from.extent(0); ++b)
      for (Index h = 0; h < from.extent(1); ++h)
        for (Index r = 0; r < rows; ++r)
          copy_row(from.data_handle() + b * from.stride(0) + h * from.stride(1) + r * from.stride(2), from.stride(3),
                   width, to.data_handle() + b * to.stride(0) + h * to.stride(1) + (first + r) * to.stride(2));
  }
  static void copy_row(const T* from, Index step, Index width, T* to) {
    if (step == 1)
      std::memcpy(to, from, static_cast<std::size_t>(width) * sizeof(T));
    else
      for (Index c = 0; c < width; ++c) to[c] = from[c * step];
  }
  void copy_use(Index held, Index total) {
    const Index rows = state_.memory.rows, first = state_.memory.first;
    for (Index b = 0; b < state_.shape[0]; ++b)
      for (Index r = 0; r < total; ++r)
        state_.next_use.data()[b * total + r] = r < held ? state_.use.data()[b * rows + first + r] : 0;
  }

  /// False in a rehearsal.
  bool compress(Index total, Index kept) {
    const Shape<3>& shape = state_.shape;
    const bool rehearses = contract_.run().rehearsal() != nullptr;
    const TensorView<T, 4> from = rehearses ? TensorView<T, 4>(nullptr, {shape[0], shape[1], evicted_, shape[2]})
                                            : state_.next_memory.all(shape).slice(2, 0, evicted_);
    const TensorView<T, 4> to = rehearses || slots_ == 0
                                    ? TensorView<T, 4>(nullptr, {shape[0], shape[1], slots_, shape[2]})
                                    : state_.next_compressed.all(shape).slice(2, kept, slots_);
    if (compression_.most_used != 0) return keep_most_used(from, to, total);
    project(TensorView<const T, 4>(from), to, compression_, contract_.run());
    return !rehearses;
  }

  /// The evicted rows of the largest use, the older of equals, in order of time.
  bool keep_most_used(const TensorView<T, 4>& from, const TensorView<T, 4>& to, Index total) {
    const Scratch scratch(contract_, ByteCount().add(evicted_, sizeof(Index)), {}, 1);
    if (!scratch) return false;
    Index* const rows = Carver(scratch.shared()).template take<Index>(evicted_);
    for (Index b = 0; b < state_.shape[0]; ++b) {
      const double* const use = state_.next_use.data() + b * total;
      for (Index r = 0; r < evicted_; ++r) rows[r] = r;
      sort(rows, evicted_,
           [use](Index a, Index other) { return use[a] > use[other] || (!(use[other] > use[a]) && a < other); });
      sort(rows, slots_);
      for (Index h = 0; h < state_.shape[1]; ++h)
        for (Index s = 0; s < slots_; ++s)
          copy_row(from.data_handle() + b * from.stride(0) + h * from.stride(1) + rows[s] * from.stride(2), 1,
                   state_.shape[2], to.data_handle() + b * to.stride(0) + h * to.stride(1) + s * to.stride(2));
    }
    return true;
  }

  Rows commit(Index kept) {
    state_.memory.swap(state_.next_memory);
    state_.use.swap(state_.next_use);
    state_.memory.first = evicted_;
    const TensorView<T, 4> rows = state_.memory.all(state_.shape);
    // A copy of the object need not copy what is left beside.
    state_.next_memory.elements.resize(0), state_.next_use.resize(0);
    if (slots_ == 0) return {rows.slice(2, 0, 0), TensorView<const T, 4>(nullptr, rows.slice(2, 0, 0).shape())};
    state_.compressed.swap(state_.next_compressed);
    state_.next_compressed.elements.resize(0);
    const Index all = state_.compressed.rows, most = state_.lengths.compressed;
    state_.compressed.first = all > most ? all - most : 0;
    return {rows.slice(2, 0, evicted_), state_.compressed.all(state_.shape).slice(2, kept, slots_)};
  }

  storage::MemoryState<T>& state_;
  const TensorView<const T, 4> segment_;
  const Projection<T>& compression_;
  Contract contract_;
  Index rate_ = 1, slots_ = 0, evicted_ = 0;
};

/// Adds to the use of every row of the memory what it received; what is not finite counts as nothing.
template <typename T>
void record_use(storage::MemoryState<T>& state, const TensorView<const Compute<T>, 2>& received) {
  const Run run;
  Contract contract("CompressiveMemory::record_use", run);
  const Index compressed = state.compressed.length(), held = state.memory.length();
  contract.input("received", received);
  contract.shape("received", received, Shape<2>{state.shape[0], compressed + held});
  if (!contract.accepted()) return;
  for (Index b = 0; b < state.shape[0]; ++b)
    for (Index r = 0; r < held; ++r) {
      const auto share = received.data_handle()[b * received.stride(0) + (compressed + r) * received.stride(1)];
      if (is_finite(share))
        state.use.data()[b * state.memory.rows + state.memory.first + r] += static_cast<double>(share);
    }
}

}  // namespace detail
}  // namespace LONGVIEW_BUILD
}  // namespace longview
