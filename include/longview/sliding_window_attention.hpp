// SPDX-License-Identifier: Apache-2.0
/// \file
/// Sliding-window attention: each query attends to its neighbours, in steps of a dilation.
///
/// Source: Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020, section 3.1, arXiv:2004.05150.
#pragma once

#include "longview/detail/band_pattern.hpp"
#include "longview/detail/scores_check.hpp"

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
  static void forward(detail::BandCall<T> call, const SlidingWindowOptions<T>& options, bool default_is_bottom_right,
                      Run run);
};

template <Storage T>
void SlidingWindowAttention<T>::forward(detail::BandCall<T> call, const SlidingWindowOptions<T>& options,
                                        bool default_is_bottom_right, Run run) {
  detail::Contract contract("sliding_window_attention", run);
  call.scores = &options.scores, call.window = options.window, call.head_windows = options.head_windows;
  detail::check_tensors(contract, call);
  detail::check_windows(contract, call.window, call.head_windows, call.query.extent(1));
  detail::check_scores(contract, call, "options.scores.", true, default_is_bottom_right);
  if (!contract.accepted()) return;
  const Alignment alignment =
      options.scores.alignment.value_or(default_is_bottom_right ? Alignment::bottom_right : Alignment::top_left);
  call.offset = alignment.offset(call.query.extent(2), call.positions);
  detail::attend(contract, detail::shape_of(call), detail::BandPattern<T>(call), static_cast<Index>(call.keys.size()));
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

}  // namespace LONGVIEW_BUILD
}  // namespace longview
