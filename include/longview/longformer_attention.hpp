// SPDX-License-Identifier: Apache-2.0
/// \file
/// Longformer self-attention: a sliding window, and global tokens that see and are seen by everyone.
///
/// Source: Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020, sections 3.1 and 3.2,
/// arXiv:2004.05150.
#pragma once

#include "longview/detail/backward_check.hpp"
#include "longview/detail/backward_task.hpp"
#include "longview/detail/longformer_pattern.hpp"
#include "longview/token_sets.hpp"

namespace longview::inline v0 {

/// Global tokens and their own projections (batch, heads, length, dim). Absent: the ordinary ones.
template <Storage T>
struct GlobalTokens {
  TokenSets tokens{};
  TensorView<const T, 4> query{}, key{}, value{};
};

template <Storage T>
struct LongformerOptions {
  Window window{.before = 256, .after = 256};
  std::span<const Window> head_windows{};  ///< (heads), instead of window
  GlobalTokens<T> global{};
  Scores<T> scores{};                               ///< without alignment and alibi_slopes
  TensorView<const std::uint8_t, 2> keep_tokens{};  ///< (batch, length); 0 is padding, which beats global
};

/// As AttentionGradients; those of the global projections where these are given.
template <Storage T>
struct LongformerGradients {
  TensorView<const T, 4> out{};
  TensorView<const Compute<T>, 3> lse{};
  TensorView<T, 4> query{}, key{}, value{};
  TensorView<T, 4> query_global{}, key_global{}, value_global{};
  ScoreGradients<T> scores{};  ///< without alibi_slopes
};

inline namespace LONGVIEW_BUILD {

/// The compiled body, named in `extern template` only.
template <Storage T>
struct LongformerAttention {
  static void forward(detail::BandCall<T> call, const LongformerOptions<T>& options, Run run);
  static void backward(detail::BandCall<T> call, const Output<const T>& out, const LongformerGradients<T>& gradients,
                       const LongformerOptions<T>& options, Run run);

 private:
  static void set_options(detail::BandCall<T>& call, const LongformerOptions<T>& options) {
    call.scores = &options.scores, call.window = options.window, call.head_windows = options.head_windows;
    call.keep_tokens = options.keep_tokens;
  }
  /// The call as global rows see it.
  static detail::BandCall<T> global_call_of(detail::BandCall<T> call, const LongformerOptions<T>& options) {
    if (options.global.query) call.query = options.global.query;
    if (options.global.key) call.keys = {options.global.key, options.global.value};
    return call;
  }
  static void add_lists(detail::ByteCount& bytes, Index batch, const detail::GlobalLists& lists) {
    bytes.add(batch, sizeof(Index)).add(batch * lists.most, sizeof(Index));
  }
  static void fill_lists(detail::Carver& carver, const detail::BandCall<T>& call, const TokenSets& tokens,
                         detail::GlobalLists& lists) {
    const Index batch = call.query.extent(0);
    lists.count = carver.take<Index>(batch);
    lists.tokens = carver.take<Index>(batch * lists.most);
    for (Index item = 0; item < batch; ++item) fill(call, tokens, item, lists);
  }
  /// The real global tokens of an item, in order.
  static void fill(const detail::BandCall<T>& call, const TokenSets& tokens, Index item, detail::GlobalLists& lists) {
    Index* const list = lists.tokens + item * lists.most;
    Index& count = lists.count[item] = 0;
    for (const Index token : detail::set_of(tokens, item))
      if (detail::is_real_token(call, item, token)) list[count++] = token;
    detail::sort(list, count);
  }

  static void check_options(detail::Contract& contract, const detail::BandCall<T>& call, const LongformerOptions<T>& options) {
    contract.equal("key", "length", call.keys[0].key.extent(2), call.query.extent(2), "query: this is self-attention");
    detail::check_windows(contract, call.window, call.head_windows, call.query.extent(1));
    contract.require(!options.scores.alignment, "options.scores.alignment", "has no meaning in self-attention");
    contract.require(options.scores.alibi_slopes.empty(), "options.scores.alibi_slopes",
                     "has no meaning here: global tokens have no distance");
    detail::check_scores(contract, call, "options.scores.", false, false);
    if (options.keep_tokens) {
      contract.input("options.keep_tokens", options.keep_tokens);
      contract.broadcasts("options.keep_tokens", options.keep_tokens, Shape<2>{call.query.extent(0), call.query.extent(2)});
    }
    check_global_projections(contract, call, options.global);
    detail::check_token_sets(contract, options.global.tokens, call.query.extent(0), call.query.extent(2));
  }
  static void check_global_projections(detail::Contract& contract, const detail::BandCall<T>& call,
                                       const GlobalTokens<T>& global) {
    if (global.query) {
      contract.input("options.global.query", global.query);
      contract.shape("options.global.query", global.query, call.query.shape());
    }
    if (static_cast<bool>(global.key) != static_cast<bool>(global.value))
      contract.fail("options.global", "key and value come together");
    if (global.key) {
      contract.input("options.global.key", global.key);
      contract.input("options.global.value", global.value);
      contract.shape("options.global.key", global.key, call.keys[0].key.shape());
      contract.shape("options.global.value", global.value, call.keys[0].value.shape());
    }
  }
  static void check_global_gradients(detail::Contract& contract, const LongformerGradients<T>& gradients,
                                     const GlobalTokens<T>& global) {
    const auto check = [&](const char* name, const TensorView<T, 4>& gradient, const TensorView<const T, 4>& of) {
      if (gradient) contract.require(static_cast<bool>(of), name, "is the gradient of something absent");
      contract.gradient(name, gradient, of.shape());
    };
    check("gradients.query_global", gradients.query_global, global.query);
    check("gradients.key_global", gradients.key_global, global.key);
    check("gradients.value_global", gradients.value_global, global.value);
  }
};

template <Storage T>
void LongformerAttention<T>::forward(detail::BandCall<T> call, const LongformerOptions<T>& options, Run run) {
  detail::Contract contract("longformer_attention", run);
  set_options(call, options);
  detail::check_tensors(contract, call);
  check_options(contract, call, options);
  if (!contract.accepted()) return;

  const detail::BandCall<T> global_call = global_call_of(call, options);
  const Index batch = call.query.extent(0);
  detail::GlobalLists lists{nullptr, nullptr, detail::largest_set(options.global.tokens, batch)};
  const detail::LongformerRows<T> local(call, lists);
  const detail::GlobalRows<T> global(global_call, lists);
  const auto shape = detail::shape_of(call), global_shape = detail::shape_of(global_call);
  const detail::AttentionWork<T, detail::LongformerRows<T>> local_work(shape, local, 2, run.concurrency());
  const detail::AttentionWork<T, detail::GlobalRows<T>> global_work(global_shape, global, 1, run.concurrency());

  const auto size = detail::WorkSize::of(local_work).beside(detail::WorkSize::of(global_work));
  detail::ByteCount shared;
  add_lists(shared, batch, lists);
  const detail::Scratch scratch(contract, shared, size.scratch, size.workers(run));
  if (!scratch || size.tasks == 0) return;
  detail::Carver carver(scratch.shared());
  fill_lists(carver, call, options.global.tokens, lists);
  detail::run_works(run, scratch, local_work, global_work);
}

template <Storage T>
void LongformerAttention<T>::backward(detail::BandCall<T> call, const Output<const T>& out,
                                      const LongformerGradients<T>& gradients, const LongformerOptions<T>& options, Run run) {
  detail::Contract contract("longformer_attention_backward", run);
  set_options(call, options);
  const auto wanted = detail::check_backward(contract, call, out, gradients, false);
  check_options(contract, call, options);
  check_global_gradients(contract, gradients, options.global);
  if (!contract.accepted()) return;

  detail::BandCall<T> global_call = global_call_of(call, options);
  detail::BackwardCall<T> global_wanted = wanted;
  if (options.global.query) global_wanted.d_query = gradients.query_global;
  if (options.global.key) global_call.d_keys = {{gradients.key_global, gradients.value_global}};
  const Index batch = call.query.extent(0);
  detail::GlobalLists lists{nullptr, nullptr, detail::largest_set(options.global.tokens, batch)};
  const detail::LongformerRows<T> local(call, lists);
  const detail::GlobalRows<T> global(global_call, lists);
  const auto shape = detail::shape_of(call), global_shape = detail::shape_of(global_call);
  detail::BackwardWork<T, detail::LongformerRows<T>> local_work(shape, call, wanted, local, 2, run.concurrency());
  detail::BackwardWork<T, detail::GlobalRows<T>> global_work(global_shape, global_call, global_wanted, global, 1,
                                                             run.concurrency());
  detail::ZeroFill<T> zeros = detail::sums_of(call, wanted);
  if (options.global.query) zeros.add(gradients.query_global);
  if (options.global.key) zeros.add(gradients.key_global), zeros.add(gradients.value_global);

  const auto size = detail::WorkSize::of(local_work).then(detail::WorkSize::of(global_work));
  detail::HeadSums<T> sums(call, wanted, false);
  detail::ByteCount shared;
  add_lists(shared, batch, lists);
  local_work.add_shared(shared);
  global_work.add_shared(shared);
  sums.add_shared(shared);
  const detail::Scratch scratch(contract, shared, size.scratch, size.workers(run));
  if (!scratch) return;
  detail::Carver carver(scratch.shared());
  fill_lists(carver, call, options.global.tokens, lists);
  local_work.begin(carver, sums);
  global_work.begin(carver, sums);
  sums.begin(carver);
  // Global rows after the others: they add to the same gradients where they have no projections of their own.
  zeros.fill(run);
  detail::run_work(run, scratch, local_work);
  detail::run_work(run, scratch, global_work);
  sums.finish();
}

/// out[b,h,i] = softmax over (real tokens of the window of i) and (real global tokens) for a local token i; a real global
/// token sees all real tokens, with the projections of options.global; padding gives 0 and -inf.
///
/// A global token inside a window counts once. With scores.causal nothing sees, or is seen from, a later position.
/// \param query (batch, heads, length, head_dim), key and value (batch, key heads, length, head_dim / value_dim)
/// \param out   (batch, heads, length, value_dim) and, if wanted, the log-sum-exp; written
/// \throws ContractError on shapes that disagree, values out of range, outputs that overlap anything; SizeError on overflow
///
/// Work: batch * heads * length * (before + after + 1 + 2 * globals) * (head_dim + value_dim) multiply-adds. Scratch: at most
/// 256 KiB a worker for dimensions up to 128, and the list of global tokens.
template <Element Q>
void longformer_attention(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<Value<Q>>& out,
                          const LongformerOptions<Value<Q>>& options = {}, Run run = {}) {
  LongformerAttention<Value<Q>>::forward({.query = query, .out = out, .keys = {key, value}}, options, run);
}

/// The gradients of sum(out * gradients.out) + sum(lse * gradients.lse) of that call of longformer_attention, in the fields of
/// `gradients` that are present, overwritten.
///
/// Local rows give to query, key and value, global rows to query_global, key_global and value_global, or to the former where
/// the options have no projections of their own. Arguments, errors and scratch as full_attention_backward's. Work: that of the
/// forward pass times 2.5. Within a (batch, key head) about (before + after) / 48 tasks run at a time.
template <Element Q>
void longformer_attention_backward(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<const Value<Q>>& out,
                                   const LongformerGradients<Value<Q>>& gradients,
                                   const LongformerOptions<Value<Q>>& options = {}, Run run = {}) {
  LongformerAttention<Value<Q>>::backward({.query = query, .keys = {key, value}}, out, gradients, options, run);
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
