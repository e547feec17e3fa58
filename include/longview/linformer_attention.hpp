// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention over projected keys and values: linear in the length.
///
/// Source: Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, section 4, arXiv:2006.04768.
#pragma once

#include "longview/detail/linformer_call.hpp"

namespace longview::inline v0 {

template <Storage T>
struct LinformerOptions {
  Projection<T> key_projection{};
  Projection<T> value_projection{};               ///< absent: the keys' serves both
  TensorView<const std::uint8_t, 2> keep_keys{};  ///< (batch, keys); 0: the row counts as zeros
  Scores<T> scores{};  ///< over the slots: scale, softcap, sinks, dropout; key_lengths as keep_keys
  /// (batch, key heads, slots, dim), both or neither: the forward call leaves the projected keys and values here, and the
  /// backward call reads them, which is faster than projecting again and gives the same bits.
  TensorView<T, 4> projected_key{}, projected_value{};
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
  static void backward(detail::BandCall<T> call, const Output<const T>& out, const LinformerGradients<T>& gradients,
                       const LinformerOptions<T>& options, Run run);

 private:
  /// Of the projected keys and values.
  struct Shapes {
    Shape<4> key{}, value{};
  };

  static bool is_shared(const LinformerOptions<T>& options) { return detail::is_absent(options.value_projection); }
  static const Projection<T>& value_projection(const LinformerOptions<T>& options) {
    return is_shared(options) ? options.key_projection : options.value_projection;
  }

  /// All but the tensors of the call.
  static Shapes check(detail::Contract& contract, const detail::BandCall<T>& call, const LinformerOptions<T>& options) {
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
      contract.input("options.keep_keys", options.keep_keys);
      contract.broadcasts("options.keep_keys", options.keep_keys, Shape<2>{key.extent(0), key.extent(2)});
    }
    const Shapes slots{
        check_side(contract, options.key_projection, detail::key_projection_names, key, "key"),
        check_side(contract, value_projection(options),
                   is_shared(options) ? detail::key_projection_names : detail::value_projection_names, value, "value")};
    contract.equal("options.value_projection", "slots", slots.value[2], slots.key[2], "options.key_projection");
    return slots;
  }
  /// What the forward call writes and the backward call reads.
  static void check_projected(detail::Contract& contract, const LinformerOptions<T>& options, const Shapes& slots,
                              bool written) {
    const auto check_own = [&](const char* name, const TensorView<T, 4>& own, const TensorView<T, 4>& other,
                               const Shape<4>& expected) {
      if (!own) return contract.require(!other, name, "is required beside the other projection");
      contract.handed_over(name, own, expected, written);
    };
    check_own("options.projected_key", options.projected_key, options.projected_value, slots.key);
    check_own("options.projected_value", options.projected_value, options.projected_key, slots.value);
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

  static void check_gradients(detail::Contract& contract, const LinformerGradients<T>& gradients,
                              const detail::BandCall<T>& call, const LinformerOptions<T>& options,
                              const Shapes& slots) {
    const TensorView<const T, 4>&key = call.keys[0].key, &value = call.keys[0].value;
    contract.gradient("gradients.query", gradients.query, call.query.shape());
    contract.gradient("gradients.key", gradients.key, key.shape());
    contract.gradient("gradients.value", gradients.value, value.shape());
    detail::check_score_gradients(contract, call, gradients.scores);
    const auto check_own = [&](const ProjectionGradients<T>& of, const char* name) {
      contract.require(!of.out && !of.input, name, "out and input belong to project_backward alone");
    };
    check_own(gradients.key_projection, "gradients.key_projection");
    check_own(gradients.value_projection, "gradients.value_projection");
    const ProjectionGradients<T>& of = gradients.value_projection;
    if (is_shared(options))
      contract.require(!of.matrix && !of.convolution && !of.slot_bias && !of.channel_bias, "gradients.value_projection",
                       "is the gradient of something absent: gradients.key_projection holds the sum of both");
    detail::check_gradients(contract, gradients.key_projection, options.key_projection, detail::key_gradient_names,
                            key.shape(), slots.key);
    detail::check_gradients(contract, of, value_projection(options), detail::value_gradient_names, value.shape(),
                            slots.value);
  }
};

template <Storage T>
void LinformerAttention<T>::forward(detail::BandCall<T> call, const LinformerOptions<T>& options, Run run) {
  detail::Contract contract("linformer_attention", run);
  call.scores = &options.scores;
  detail::check_tensors(contract, call);
  const Shapes slots = check(contract, call, options);
  check_projected(contract, options, slots, true);
  if (!contract.accepted()) return;

  detail::LinformerCall<T> of(call, options, value_projection(options), slots.key, slots.value);
  const auto shape = detail::shape_of(of.over_slots);
  const detail::BandPattern<T> pattern(of.over_slots);
  const detail::AttentionWork<T, detail::BandPattern<T>> attention(shape, pattern, 1, run.concurrency());
  const auto size = of.project_size(run.concurrency()).then(detail::WorkSize::of(attention));
  const bool idle = attention.tasks() == 0 && !options.projected_key;

  detail::ByteCount shared;
  if (!idle) of.add_slots(shared);
  const detail::Scratch scratch(contract, shared, size.scratch, idle ? 0 : size.workers(run));
  if (!scratch || idle) return;
  detail::Carver carver(scratch.shared());
  of.place(carver);
  of.project(run, scratch);
  detail::run_work(run, scratch, attention);
}

template <Storage T>
void LinformerAttention<T>::backward(detail::BandCall<T> call, const Output<const T>& out,
                                     const LinformerGradients<T>& gradients, const LinformerOptions<T>& options,
                                     Run run) {
  detail::Contract contract("linformer_attention_backward", run);
  call.scores = &options.scores;
  detail::check_query(contract, call.query, call.keys[0].value.extent(3));
  detail::check_segments(contract, call);
  detail::check_arrivals(contract, call, out, gradients.out, gradients.lse);
  const Shapes slots = check(contract, call, options);
  check_projected(contract, options, slots, false);
  check_gradients(contract, gradients, call, options, slots);
  if (!contract.accepted()) return;

  detail::LinformerCall<T> of(call, options, value_projection(options), slots.key, slots.value);
  const auto& of_values = is_shared(options) ? gradients.key_projection : gradients.value_projection;
  auto d_keys = detail::gradient_call<T>(of.keys, of.keys.out, gradients.key, gradients.key_projection);
  auto d_values = detail::gradient_call<T>(of.values, of.values.out, gradients.value, of_values);
  d_values.adds = is_shared(options);
  const detail::BackwardCall<T> wanted{.out = out,
                                       .d_out = gradients.out,
                                       .d_lse = gradients.lse,
                                       .d_query = gradients.query,
                                       .scores = {.sinks = gradients.scores.sinks}};
  of.want_gradients(d_keys.any(), d_values.any());
  const auto shape = detail::shape_of(of.over_slots);
  const detail::BandPattern<T> pattern(of.over_slots);
  const Index workers = run.concurrency();
  detail::BackwardWork<T, detail::BandPattern<T>> attention(shape, of.over_slots, wanted, pattern, 1, workers);
  detail::HeadSums<T> sums(of.over_slots, wanted, false);
  const bool projects = !options.projected_key;
  const auto size = (projects ? of.project_size(workers) : detail::WorkSize())
                        .then(detail::WorkSize::of(attention))
                        .then(detail::gradient_size(d_keys, d_values, workers));

  detail::ByteCount shared;
  of.add_slots(shared), of.add_gradients(shared);
  attention.add_shared(shared), sums.add_shared(shared);
  const detail::Scratch scratch(contract, shared, size.scratch, size.workers(run));
  if (!scratch) return;
  detail::Carver carver(scratch.shared());
  of.place(carver), of.place_gradients(carver);
  attention.begin(carver, sums), sums.begin(carver);
  if (projects) of.project(run, scratch);
  const detail::ZeroFill<T> zeros = detail::sums_of(of.over_slots, wanted);
  zeros.fill(run);
  detail::run_work(run, scratch, attention);
  sums.finish();

  d_keys.d_out = of.over_slots.d_keys[0].key, d_values.d_out = of.over_slots.d_keys[0].value;
  detail::run_gradients(run, scratch, d_keys, d_values);
}

/// out[b,h,i] = sum_s softmax_s(scale <query[b,h,i], K[b,h',s]>) V[b,h',s] over slots s, with K = project(key) and
/// V = project(value); softcap, sinks and dropout as in Scores. The log-sum-exp is that over the slots.
///
/// \param query (batch, heads, queries, head_dim)
/// \param key   (batch, key heads, keys, head_dim), key heads dividing heads; what options leave out counts as zeros
/// \param value (batch, key heads, keys, value_dim)
/// \param out   (batch, heads, queries, value_dim) and, if wanted, the log-sum-exp; written
/// \throws ContractError on shapes that disagree, scores without meaning over slots, outputs that overlap anything;
///         SizeError on overflow
///
/// Work: batch * slots * (key heads * keys + heads * queries) * (head_dim + value_dim) multiply-adds for matrices.
/// Scratch: batch * key heads * slots * (head_dim + value_dim) elements unless options.projected_key and projected_value
/// hold them, and at most 256 KiB a worker for dimensions up to 128.
template <Element Q>
void linformer_attention(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<Value<Q>>& out,
                         const LinformerOptions<Value<Q>>& options, Run run = {}) {
  LinformerAttention<Value<Q>>::forward({.query = query, .out = out, .keys = {key, value}}, options, run);
}

/// The gradients of sum(out * gradients.out) + sum(lse * gradients.lse) of that call of linformer_attention, in the
/// fields of `gradients` that are present, overwritten. Which are asked for does not change their bits.
///
/// \param query, key, value, options as in the forward call
/// \param out       what that call wrote, log-sum-exp included
/// \param gradients out (and lse, if the loss depends on it) arrive; the others leave, those of the projections as
///                  project_backward() has them. Keys that options leave out get zeros and give nothing
/// \throws ContractError on shapes that disagree, an lse left out, gradients of what is absent, outputs that overlap
///         anything; SizeError on overflow
///
/// Work: batch * slots * (3 key heads * keys + 2.5 heads * queries) * (head_dim + value_dim) multiply-adds for matrices.
/// Scratch: 2 * batch * key heads * slots * (head_dim + value_dim) elements, and at most 512 KiB a worker for dimensions up
/// to 128. With options.projected_key and projected_value, which the forward call has left: 2 in place of 3, 1 in place of 2.
template <Element Q>
void linformer_attention_backward(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<const Value<Q>>& out,
                                  const LinformerGradients<Value<Q>>& gradients,
                                  const LinformerOptions<Value<Q>>& options, Run run = {}) {
  LinformerAttention<Value<Q>>::backward({.query = query, .keys = {key, value}}, out, gradients, options, run);
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
