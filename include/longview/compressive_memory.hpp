// SPDX-License-Identifier: Apache-2.0
/// \file
/// A memory of past rows and of older rows compressed, what decides which of them are kept, and the losses that train
/// the compression. Attention over it: relative_attention or full_attention with the keys [compressed, memory,
/// current].
///
/// Source: Rae et al., "Compressive Transformers for Long-Range Sequence Modelling", 2019, section 3, arXiv:1911.05507.
#pragma once

#include "longview/detail/backward_check.hpp"
#include "longview/detail/difference.hpp"
#include "longview/detail/memory_state.hpp"
#include "longview/detail/received_attention.hpp"
#include "longview/detail/works.hpp"

namespace longview::inline v0 {

/// Two queues of rows, at first empty: hidden states (batch, 1, rows, width), or keys or values (batch, heads, rows,
/// width).
///
/// Every row counts as one position. Copy the object to come back to it. One that was moved from is empty. A call that
/// throws changes nothing. Not safe to be changed by two threads at a time.
template <Storage T>
class CompressiveMemory {
 public:
  /// Views of what a push moved, valid until the next one: rows (batch, heads, rows, width) and what became of them.
  struct Pushed {
    TensorView<const T, 4> evicted{}, compressed{};
  };

  /// \throws ContractError on negative numbers or a width of 0
  LONGVIEW_INLINE CompressiveMemory(const Shape<3>& batch_heads_width, const MemoryLengths& lengths)
      : state_(batch_heads_width, lengths) {
    detail::check_memory(batch_heads_width, lengths);
  }
  LONGVIEW_INLINE CompressiveMemory(const CompressiveMemory& other) = default;
  LONGVIEW_INLINE CompressiveMemory(CompressiveMemory&& other) noexcept
      : state_(other.state_.shape, other.state_.lengths) {
    state_.swap(other.state_);
  }
  LONGVIEW_INLINE CompressiveMemory& operator=(const CompressiveMemory& other) {
    CompressiveMemory copy(other);
    state_.swap(copy.state_);
    return *this;
  }
  LONGVIEW_INLINE CompressiveMemory& operator=(CompressiveMemory&& other) noexcept {
    CompressiveMemory moved(static_cast<CompressiveMemory&&>(other));
    state_.swap(moved.state_);
    return *this;
  }
  LONGVIEW_INLINE ~CompressiveMemory() = default;

  /// Appends rows to the memory; what is then too much leaves it, oldest first, in whole groups of the compression's
  /// rate, and its compression joins the compressed memory, of which the newest rows stay.
  ///
  /// A remainder below the rate stays as the memory's oldest rows, so that it may be up to rate - 1 rows too long.
  /// Pooling and convolution give the same bits however the rows were cut into pushes. most_used keeps floor(rows /
  /// rate) of the rows that leave together, those with the largest recorded use, the older of equals, in order of time.
  /// \param segment (batch, heads, rows, width), any strides; may be a view of this memory
  /// \param compression mean_pool, max_pool, convolution or most_used, with a channel_bias (not for most_used)
  ///                    and a rate of at most the memory length, unless that is 0
  /// \throws ContractError on shapes that disagree and other compressions; SizeError on overflow
  ///
  /// Work: a copy of the memory and the segment, and project() of the rows that leave. Memory: both are held twice,
  /// found anew only when a push is longer than those before. Scratch as project's; most_used: one Index for each row
  /// that leaves.
  LONGVIEW_INLINE Pushed push(TensorView<const T, 4> segment, const Projection<T>& compression, Run run = {}) {
    const auto moved = detail::MemoryPush<T>(state_, segment, compression, run)();
    return {moved.evicted, moved.compressed};
  }

  /// (batch, heads, rows, width), oldest first; valid until the next push.
  LONGVIEW_INLINE TensorView<const T, 4> compressed() const { return visible(state_.compressed); }
  LONGVIEW_INLINE TensorView<const T, 4> memory() const { return visible(state_.memory); }
  LONGVIEW_INLINE const MemoryLengths& lengths() const { return state_.lengths; }

  /// Adds to the use of each row of the memory what it received, as received_attention finds it. Rows begin with 0.
  ///
  /// \param received (batch, compressed + memory rows); what is not finite counts as nothing
  /// \throws ContractError on another shape
  LONGVIEW_INLINE void record_use(TensorView<const Compute<T>, 2> received) { detail::record_use<T>(state_, received); }

  /// Empties both queues.
  LONGVIEW_INLINE void reset() {
    storage::MemoryState<T> empty(state_.shape, state_.lengths);
    state_.swap(empty);
  }

 private:
  LONGVIEW_INLINE TensorView<const T, 4> visible(const storage::Queue<T>& queue) const {
    return queue.all(state_.shape).slice(2, queue.first, queue.length());
  }

  storage::MemoryState<T> state_;
};

enum class LossNorm {
  mean_squared,  ///< the mean of the squares over all elements
  plain,         ///< the square root of their sum
};

/// Attention over `old` rows against attention over the `fresh` ones that replace them.
template <Storage T>
struct ReconstructionLoss {
  KeyValue<T> old{}, fresh{};
  std::optional<double> scale{};  ///< any finite number; 1 / sqrt(head_dim)
  LossNorm norm = LossNorm::mean_squared;
  KeyValueGradient<T> d_fresh{};  ///< written where present: the loss is differentiated with respect to fresh rows alone
};

inline namespace LONGVIEW_BUILD {
namespace detail {

/// The mean of the squares of a - b, or the square root of their sum.
template <typename T>
double distance_of(const TensorView<const T, 4>& a, const TensorView<const T, 4>& b, LossNorm norm) {
  const double sum = squared_distance(a, b);
  if (norm == LossNorm::plain) return __builtin_sqrt(sum);
  const Index count = elements_of(a.shape());
  return count > 0 ? sum / static_cast<double>(count) : 0;
}

/// The gradient of that distance with respect to a. The root has none at 0: zeros.
template <typename T>
void differentiate_distance(const TensorView<const T, 4>& a, const TensorView<const T, 4>& b, LossNorm norm,
                            double distance, const TensorView<T, 4>& to) {
  const double of_root = distance == 0 ? 0 : 1 / distance;
  scaled_difference(a, b, norm == LossNorm::plain ? of_root : 2 / static_cast<double>(elements_of(a.shape())), to);
}

}  // namespace detail

/// The compiled bodies, named in `extern template` only.
template <Storage T>
struct ReceivedAttention {
  static void forward(detail::BandCall<T> call, const TensorView<const T, 3>& lse, const TensorView<T, 2>& received,
                      Run run) {
    detail::Contract contract("received_attention", run);
    const Scores<T>& scores = *call.scores;
    const Shape<4>& query = call.query.shape();
    contract.input("query", call.query);
    contract.at_least("query", "head_dim", query[3], 1);
    detail::check_segments(contract, call);
    detail::check_scores(contract, call, "options.", scores.causal || !scores.alibi_slopes.empty(), true);
    contract.require(static_cast<bool>(lse), "lse", "is required");
    contract.input("lse", lse);
    contract.shape("lse", lse, Shape<3>{query[0], query[1], query[2]});
    Index keys = 0;
    for (std::size_t s = 0; s < call.keys.size(); ++s) keys += call.keys[s].key.extent(2);
    contract.output("received", received);
    contract.shape("received", received, Shape<2>{query[0], keys});
    if (!contract.accepted()) return;
    call.offset = detail::offset_of(call, true);
    const kernel::AttentionShape<T> shape = detail::shape_of(call);
    const detail::ReceivedWork<T> work(call, shape, lse, received, run.concurrency());
    const Index tasks = work.tasks(), workers = run.concurrency() < tasks ? run.concurrency() : tasks;
    const detail::Scratch scratch(contract, {}, work.scratch(), workers);
    if (!scratch || tasks == 0) return;
    detail::run_tasks(run, workers, tasks, [&](Index task, Index worker) { work.run(task, scratch.of(worker)); });
  }
};

template <Storage T>
struct AttentionReconstructionLoss {
  static double forward(const TensorView<const T, 4>& query, const ReconstructionLoss<T>& of, Run run) {
    detail::Contract contract("attention_reconstruction_loss", run);
    const Shape<4> shape{query.extent(0), query.extent(1), query.extent(2), of.old.value.extent(3)};
    check(contract, query, of, shape);
    if (!contract.accepted()) return 0;

    const Index workers = run.concurrency(), elements = detail::elements_of(shape),
                rows = shape[0] * shape[1] * shape[2];
    const bool differentiates = of.d_fresh.key || of.d_fresh.value;
    const Scores<T> content{.scale = of.scale};
    const TensorView<T, 4> unplaced(nullptr, shape);
    detail::BandCall<T> target = call(query, of.old, unplaced, content),
                        result = call(query, of.fresh, unplaced, content);
    result.d_keys = {of.d_fresh};
    detail::BackwardCall<T> wanted{.out = {unplaced, TensorView<const T, 3>(nullptr, {shape[0], shape[1], shape[2]})},
                                   .d_out = unplaced};
    const auto attention = detail::shape_of(target);
    const detail::BandPattern<T> target_pattern(target), result_pattern(result);
    const Work target_work(attention, target_pattern, 1, workers), result_work(attention, result_pattern, 1, workers);
    GradientWork gradient_work(attention, result, wanted, result_pattern, 1, workers);
    const detail::HeadSums<T> no_sums(result, wanted, false);

    auto shared = detail::ByteCount().add(elements, sizeof(T)).add(elements, sizeof(T));
    if (differentiates) shared.add(rows, sizeof(T)), gradient_work.add_shared(shared);
    auto size = detail::WorkSize::of(target_work).beside(detail::WorkSize::of(result_work));
    if (differentiates) size = size.then(detail::WorkSize::of(gradient_work));
    const detail::Scratch scratch(contract, shared, size.scratch, size.workers(run));
    if (!scratch) return 0;
    detail::Carver carver(scratch.shared());
    target.out.out = TensorView<T, 4>(carver.take<T>(elements), shape);
    result.out.out = TensorView<T, 4>(carver.take<T>(elements), shape);
    if (differentiates) {
      result.out.lse = TensorView<T, 3>(carver.take<T>(rows), wanted.out.lse.shape());
      gradient_work.begin(carver, no_sums);
    }
    detail::run_works(run, scratch, target_work, result_work);
    const double loss = detail::distance_of<T>(result.out.out, target.out.out, of.norm);
    if (!differentiates) return loss;
    // The target has done its duty: its place takes what arrives.
    detail::differentiate_distance<T>(result.out.out, target.out.out, of.norm, loss, target.out.out);
    wanted.out = result.out, wanted.d_out = target.out.out;
    const detail::ZeroFill<T> zeros = detail::sums_of(result, wanted);
    zeros.fill(run);
    detail::run_work(run, scratch, gradient_work);
    return loss;
  }

 private:
  using Work = detail::AttentionWork<T, detail::BandPattern<T>>;
  using GradientWork = detail::BackwardWork<T, detail::BandPattern<T>>;

  static detail::BandCall<T> call(const TensorView<const T, 4>& query, const KeyValue<T>& keys,
                                  const TensorView<T, 4>& out, const Scores<T>& scores) {
    return {
        .query = query, .out = out, .keys = {keys.key, keys.value}, .scores = &scores, .positions = keys.key.extent(2)};
  }
  static void check(detail::Contract& contract, const TensorView<const T, 4>& query, const ReconstructionLoss<T>& of,
                    const Shape<4>& out) {
    const Index value_dim = of.old.value.extent(3);
    contract.input("query", query);
    contract.at_least("query", "head_dim", query.extent(3), 1);
    detail::check_keys(contract, query, of.old, value_dim, "of.old.key", "of.old.value");
    detail::check_keys(contract, query, of.fresh, value_dim, "of.fresh.key", "of.fresh.value");
    contract.equal("of.fresh.key", "heads", of.fresh.key.extent(1), of.old.key.extent(1), "old");
    contract.gradient("of.d_fresh.key", of.d_fresh.key, of.fresh.key.shape());
    contract.gradient("of.d_fresh.value", of.d_fresh.value, of.fresh.value.shape());
    detail::check_scale<T>(contract, "of.scale", of.scale);
    Index elements = 1;
    for (const Index extent : out)
      if (contract.ok() && !detail::multiply(elements, extent, elements))
        contract.fail("query", "element count overflows", true);
  }
};

/// received[b,j] = sum_h sum_i p[b,h,i,j] / (heads * queries), with the probabilities p = e^(s - lse) of an attention
/// call.
///
/// \param query, keys, options as in that call of full_attention (alignment: bottom_right unless named); no values read
/// \param out      what that call wrote; only lse (batch, heads, queries) is used, which is required
/// \param received (batch, keys of all segments), any strides; written. A row without keys gives nothing
/// \throws ContractError on shapes that disagree, values out of range, outputs that overlap anything; SizeError on
///         overflow
///
/// Work: batch * heads * queries * keys * head_dim multiply-adds. Scratch: at most 128 KiB a worker for head_dim up to
/// 128.
template <Element Q, KeysFor<Q> KV>
void received_attention(TensorView<Q, 4> query, const KeyValueView<KV>& keys, const Output<const Value<Q>>& out,
                        const TensorView<Compute<Value<Q>>, 2>& received, const Scores<Value<Q>>& options = {},
                        Run run = {}) {
  ReceivedAttention<Value<Q>>::forward({.query = query, .keys = keys, .scores = &options}, out.lse, received, run);
}

/// How far softmax(scale query fresh.key^T) fresh.value is from the same with `old`: the mean of the squares, or their
/// root.
///
/// Content alone: no mask, no positions. Sums of squares in double, in the order of the elements. As in the paper, only
/// the fresh keys and values are differentiated, where `of.d_fresh` is present; the root at 0 gives zeros.
/// \param query (batch, heads, queries, head_dim)
/// \param of    old and fresh keys and values, (batch, key heads, rows, head_dim / value_dim), key heads dividing heads
/// \throws ContractError on shapes that disagree, a scale that is not finite, outputs that overlap anything; SizeError
///         on overflow
///
/// Work: two calls of full_attention, and its backward. Scratch: theirs and 2 * batch * heads * queries * value_dim
/// elements. A rehearsal returns 0.
template <Element Q>
double attention_reconstruction_loss(TensorView<Q, 4> query, const ReconstructionLoss<Value<Q>>& of, Run run = {}) {
  return AttentionReconstructionLoss<Value<Q>>::forward(query, of, run);
}

/// The mean of the squares of decoded - old over all elements, or the root of their sum; in double, in the order of
/// elements.
///
/// \param old, decoded (batch, heads, rows, width)
/// \param d_decoded    likewise, written where present: the gradient; the root at 0 gives zeros
/// \throws ContractError on shapes that disagree, an output that overlaps anything
template <Element X>
double auto_encoding_loss(TensorView<X, 4> old, In<X> decoded, const TensorView<Value<X>, 4>& d_decoded = {},
                          LossNorm norm = LossNorm::mean_squared) {
  const Run run;
  detail::Contract contract("auto_encoding_loss", run);
  contract.input("old", old);
  contract.input("decoded", decoded);
  contract.shape("decoded", decoded, old.shape());
  contract.gradient("d_decoded", d_decoded, old.shape());
  if (!contract.accepted()) return 0;
  const double loss = detail::distance_of<Value<X>>(decoded, old, norm);
  if (d_decoded) detail::differentiate_distance<Value<X>>(decoded, old, norm, loss, d_decoded);
  return loss;
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
