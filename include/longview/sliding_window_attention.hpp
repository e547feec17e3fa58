// SPDX-License-Identifier: Apache-2.0
/// \file
/// Sliding-window attention: each query attends to its neighbours, in steps of a dilation.
///
/// Source: Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020, section 3.1, arXiv:2004.05150.
#pragma once

#include "longview/detail/backward_check.hpp"
#include "longview/detail/backward_task.hpp"

namespace longview::inline v0 {

template <Storage T>
struct SlidingWindowOptions {
  Window window{};
  std::span<const Window> head_windows{};  ///< (heads), instead of window
  Scores<T> scores{};
};

inline namespace LONGVIEW_BUILD {

/// The compiled body, named in `extern template` only.
template <Storage T>
struct SlidingWindowAttention {
  static void forward(detail::BandCall<T> call, const SlidingWindowOptions<T>& options, bool in_pieces, Run run);
  static void backward(detail::BandCall<T> call, const Output<const T>& out, const AttentionGradients<T>& gradients,
                       const SlidingWindowOptions<T>& options, bool in_pieces, Run run);

 private:
  static void set_options(detail::BandCall<T>& call, const SlidingWindowOptions<T>& options) {
    call.scores = &options.scores, call.window = options.window, call.head_windows = options.head_windows;
  }
  static void check_options(detail::Contract& contract, const detail::BandCall<T>& call, bool in_pieces) {
    detail::check_windows(contract, call.window, call.head_windows, call.query.extent(1));
    detail::check_scores(contract, call, "options.scores.", true, in_pieces);
  }
};

template <Storage T>
void SlidingWindowAttention<T>::forward(detail::BandCall<T> call, const SlidingWindowOptions<T>& options, bool in_pieces,
                                        Run run) {
  detail::Contract contract("sliding_window_attention", run);
  set_options(call, options);
  detail::check_tensors(contract, call);
  check_options(contract, call, in_pieces);
  if (!contract.accepted()) return;
  call.offset = detail::offset_of(call, in_pieces);
  detail::attend(contract, detail::shape_of(call), detail::BandPattern<T>(call), static_cast<Index>(call.keys.size()));
}

template <Storage T>
void SlidingWindowAttention<T>::backward(detail::BandCall<T> call, const Output<const T>& out,
                                         const AttentionGradients<T>& gradients, const SlidingWindowOptions<T>& options,
                                         bool in_pieces, Run run) {
  detail::Contract contract("sliding_window_attention_backward", run);
  set_options(call, options);
  const auto wanted = detail::check_backward(contract, call, out, gradients, in_pieces);
  check_options(contract, call, in_pieces);
  if (!contract.accepted()) return;
  call.offset = detail::offset_of(call, in_pieces);
  detail::attend_backward(contract, detail::shape_of(call), call, wanted, detail::BandPattern<T>(call),
                          static_cast<Index>(call.keys.size()));
}

/// out[b,h,i] = sum_j softmax_j(s[b,h,i,j]) value[b,h',j] over the keys j in the window of i' = i + offset.
///
/// Shapes, errors and scratch as full_attention's. Work: batch * heads * queries * (before + after + 1) * (head_dim +
/// value_dim) multiply-adds; nothing is computed or read outside the windows of a block of queries.
template <Element Q>
void sliding_window_attention(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<Value<Q>>& out,
                              const SlidingWindowOptions<Value<Q>>& options = {}, Run run = {}) {
  SlidingWindowAttention<Value<Q>>::forward({.query = query, .out = out, .keys = {key, value}}, options, false, run);
}

/// Likewise for keys in several pieces. Queries are the newest positions: the alignment defaults to bottom_right.
template <Element Q, KeysFor<Q> KV>
void sliding_window_attention(TensorView<Q, 4> query, const KeyValueView<KV>& keys, const Output<Value<Q>>& out,
                              const SlidingWindowOptions<Value<Q>>& options = {}, Run run = {}) {
  SlidingWindowAttention<Value<Q>>::forward({.query = query, .out = out, .keys = keys}, options, true, run);
}

/// The gradients of sum(out * gradients.out) + sum(lse * gradients.lse) of that call of sliding_window_attention, in the fields
/// of `gradients` that are present, overwritten.
///
/// Arguments, errors and scratch as full_attention_backward's. Work: batch * heads * queries * (before + after + 1) *
/// (3 head_dim + 2 value_dim) multiply-adds. Within a (batch, key head) about (before + after) / 48 tasks run at a time.
template <Element Q>
void sliding_window_attention_backward(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<const Value<Q>>& out,
                                       const AttentionGradients<Value<Q>>& gradients,
                                       const SlidingWindowOptions<Value<Q>>& options = {}, Run run = {}) {
  SlidingWindowAttention<Value<Q>>::backward({.query = query, .keys = {key, value}}, out, gradients, options, false, run);
}

/// Likewise for keys in several pieces, with gradients.segments instead of gradients.key and gradients.value.
template <Element Q, KeysFor<Q> KV>
void sliding_window_attention_backward(TensorView<Q, 4> query, const KeyValueView<KV>& keys, const Output<const Value<Q>>& out,
                                       const AttentionGradients<Value<Q>>& gradients,
                                       const SlidingWindowOptions<Value<Q>>& options = {}, Run run = {}) {
  SlidingWindowAttention<Value<Q>>::backward({.query = query, .keys = keys}, out, gradients, options, true, run);
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
