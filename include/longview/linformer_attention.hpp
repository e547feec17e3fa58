// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention over projected keys and values: linear in the length.
///
/// Source: Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, section 4, arXiv:2006.04768.
#pragma once

#include "longview/detail/scores_check.hpp"
#include "longview/projection.hpp"

namespace longview::inline v0 {

template <Storage T>
struct LinformerOptions {
  Projection<T> key_projection{};
  Projection<T> value_projection{};               ///< absent: the keys' serves both
  TensorView<const std::uint8_t, 2> keep_keys{};  ///< (batch, keys); 0: the row counts as zeros
  Scores<T> scores{};                             ///< over the slots: scale, softcap, sinks; key_lengths as keep_keys
};

/// As AttentionGradients; those of the projections with `out` and `input` absent. Without a value_projection, the key's
/// holds the sum of both.
template <Storage T>
struct LinformerGradients {
  TensorView<const T, 4> out{};
  TensorView<const Compute<T>, 3> lse{};
  TensorView<T, 4> query{}, key{}, value{};
  ProjectionGradients<T> key_projection{}, value_projection{};
  ScoreGradients<T> scores{};  ///< sinks alone
};

inline namespace LONGVIEW_BUILD {

/// The compiled body, named in `extern template` only.
template <Storage T>
struct LinformerAttention {
  static void forward(detail::BandCall<T> call, const LinformerOptions<T>& options, Run run);

 private:
  /// Of the projected keys and values.
  struct Shapes {
    Shape<4> key{}, value{};
  };

  static const Projection<T>& value_projection(const LinformerOptions<T>& options) {
    return detail::is_absent(options.value_projection) ? options.key_projection : options.value_projection;
  }
  static detail::ProjectionCall<T> projection_call(const detail::BandCall<T>& call, const LinformerOptions<T>& options,
                                                   const Projection<T>& projection, const TensorView<const T, 4>& input,
                                                   const Shape<4>& slots) {
    auto projected = detail::projection_call(input, TensorView<T, 4>(nullptr, slots), projection);
    projected.keep = options.keep_keys, projected.lengths = call.scores->key_lengths;
    return projected;
  }
  static Index count_of(const Shape<4>& shape) { return shape[0] * shape[1] * shape[2] * shape[3]; }
  static detail::ByteCount largest(const detail::ByteCount& a, const detail::ByteCount& b, const detail::ByteCount& c) {
    const detail::ByteCount& larger = a.bytes() < b.bytes() ? b : a;
    return larger.bytes() < c.bytes() ? c : larger;
  }

  static Shapes check(detail::Contract& contract, detail::BandCall<T>& call, const LinformerOptions<T>& options) {
    detail::check_tensors(contract, call);
    const Scores<T>& scores = options.scores;
    contract.require(!scores.causal, "options.scores.causal", "causal masking is undefined for projected keys");
    contract.require(!scores.alignment, "options.scores.alignment", "has no meaning here: slots have no position");
    contract.require(!scores.keep_mask, "options.scores.keep_mask", "has no meaning here: keep_keys leaves out keys");
    contract.require(!scores.bias, "options.scores.bias", "has no meaning here: every slot mixes all keys");
    contract.require(scores.alibi_slopes.empty(), "options.scores.alibi_slopes",
                     "has no meaning here: slots have no position");
    detail::check_scores(contract, call, "options.scores.", false, false);
    const TensorView<const T, 4>&key = call.keys[0].key, &value = call.keys[0].value;
    if (options.keep_keys) {
      contract.input("keep_keys", options.keep_keys);
      contract.broadcasts("options.keep_keys", options.keep_keys, Shape<2>{key.extent(0), key.extent(2)});
    }
    const bool shared = detail::is_absent(options.value_projection);
    const Shapes slots{
        check_side(contract, options.key_projection, detail::key_projection_names, key, "key"),
        check_side(contract, value_projection(options),
                   shared ? detail::key_projection_names : detail::value_projection_names, value, "value")};
    contract.equal("options.value_projection", "slots", slots.value[2], slots.key[2], "options.key_projection");
    return slots;
  }
  static Shape<4> check_side(detail::Contract& contract, const Projection<T>& projection,
                             const detail::ProjectionNames& names, const TensorView<const T, 4>& input,
                             const char* source) {
    const Shape<4> slots = detail::check_projection(contract, projection, names, input.shape(), source);
    if (!contract.ok()) return {};
    if (projection.convolution) contract.equal(names.convolution, "dim out", slots[3], input.extent(3), source);
    Index count = 1, bytes = 0;
    const bool fits = detail::multiply(slots[0], slots[1], count) && detail::multiply(count, slots[2], count) &&
                      detail::multiply(count, slots[3], count);
    if (!fits || !detail::multiply(count, static_cast<Index>(sizeof(T)), bytes))
      contract.fail(names.projection, "byte count of the projected rows overflows", true);
    return slots;
  }
};

template <Storage T>
void LinformerAttention<T>::forward(detail::BandCall<T> call, const LinformerOptions<T>& options, Run run) {
  detail::Contract contract("linformer_attention", run);
  call.scores = &options.scores;
  const Shapes slots = check(contract, call, options);
  if (!contract.accepted()) return;

  const Scores<T> scores{
      .scale = options.scores.scale, .softcap = options.scores.softcap, .sinks = options.scores.sinks};
  detail::BandCall<T> over_slots = call;
  over_slots.scores = &scores, over_slots.positions = slots.key[2];
  over_slots.keys = {TensorView<const T, 4>(nullptr, slots.key), TensorView<const T, 4>(nullptr, slots.value)};
  const auto shape = detail::shape_of(over_slots);
  const detail::BandPattern<T> pattern(over_slots);
  const detail::AttentionWork<T, detail::BandPattern<T>> attention(shape, pattern, 1, run.concurrency());

  auto keys = projection_call(call, options, options.key_projection, call.keys[0].key, slots.key);
  auto values = projection_call(call, options, value_projection(options), call.keys[0].value, slots.value);
  const detail::ProjectionWork<T> key_work(keys, run.concurrency()), value_work(values, run.concurrency());
  const Index tasks = attention.tasks(), key_tasks = key_work.tasks(), both = key_tasks + value_work.tasks();
  const auto at_most = [&](Index count) { return run.concurrency() < count ? run.concurrency() : count; };

  detail::ByteCount shared;
  if (tasks > 0) shared.add(count_of(slots.key), sizeof(T)).add(count_of(slots.value), sizeof(T));
  const detail::Scratch scratch(contract, shared,
                                largest(attention.scratch(), key_work.scratch(), value_work.scratch()),
                                tasks == 0 ? 0 : at_most(both < tasks ? tasks : both));
  if (!scratch || tasks == 0) return;
  detail::Carver carver(scratch.shared());
  keys.out = {carver.take<T>(count_of(slots.key)), slots.key};
  values.out = {carver.take<T>(count_of(slots.value)), slots.value};
  over_slots.keys = {keys.out, values.out};
  detail::run_tasks(run, at_most(both), both, [&](Index task, Index worker) {
    if (task < key_tasks)
      key_work.run(task, scratch.of(worker));
    else
      value_work.run(task - key_tasks, scratch.of(worker));
  });
  detail::run_tasks(run, at_most(tasks), tasks,
                    [&](Index task, Index worker) { attention.run(task, scratch.of(worker)); });
}

/// out[b,h,i] = sum_s softmax_s(scale <query[b,h,i], K[b,h',s]>) V[b,h',s] over slots s, with K = project(key) and
/// V = project(value); softcap and sinks as in Scores. The log-sum-exp is that over the slots.
///
/// \param query (batch, heads, queries, head_dim)
/// \param key   (batch, key heads, keys, head_dim), key heads dividing heads; keys that options leave out count as
/// zeros \param value (batch, key heads, keys, value_dim) \param out   (batch, heads, queries, value_dim) and, if
/// wanted, the log-sum-exp; written \throws ContractError on shapes that disagree, scores without meaning over slots,
/// outputs that overlap anything;
///         SizeError on overflow
///
/// Work: batch * slots * (key heads * keys + heads * queries) * (head_dim + value_dim) multiply-adds for matrices.
/// Scratch: batch * key heads * slots * (head_dim + value_dim) elements, and at most 256 KiB a worker for dimensions up
/// to 128.
template <Element Q>
void linformer_attention(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<Value<Q>>& out,
                         const LinformerOptions<Value<Q>>& options, Run run = {}) {
  LinformerAttention<Value<Q>>::forward({.query = query, .out = out, .keys = {key, value}}, options, run);
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
