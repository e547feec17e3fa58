// SPDX-License-Identifier: Apache-2.0
/// \file
/// Full scaled dot-product attention.
///
/// Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1, arXiv:1706.03762. Evaluated tile by tile with
/// a running maximum: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867; Dao et al.,
/// "FlashAttention", 2022, arXiv:2205.14135.
#pragma once

#include "longview/detail/band_pattern.hpp"
#include "longview/detail/scores_check.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD {

/// The compiled body, named in `extern template` only.
template <Storage T>
struct FullAttention {
  static void forward(detail::BandCall<T> call, bool default_is_bottom_right, Run run);
};

template <Storage T>
void FullAttention<T>::forward(detail::BandCall<T> call, bool default_is_bottom_right, Run run) {
  detail::Contract contract("full_attention", run);
  const Scores<T>& scores = *call.scores;
  detail::check_tensors(contract, call);
  detail::check_scores(contract, call, "options.", scores.causal || !scores.alibi_slopes.empty(),
                       default_is_bottom_right);
  if (!contract.accepted()) return;
  const Alignment alignment =
      scores.alignment.value_or(default_is_bottom_right ? Alignment::bottom_right : Alignment::top_left);
  call.offset = alignment.offset(call.query.extent(2), call.positions);
  detail::attend(contract, detail::shape_of(call), detail::BandPattern<T>(call), static_cast<Index>(call.keys.size()));
}

/// out[b,h,i] = sum_j softmax_j(s[b,h,i,j]) value[b,h',j], with s of Scores and h' = h / (query heads / key heads).
///
/// \param query (batch, heads, queries, head_dim)
/// \param key   (batch, key heads, keys, head_dim), key heads dividing heads
/// \param value (batch, key heads, keys, value_dim)
/// \param out   (batch, heads, queries, value_dim) and, if wanted, the log-sum-exp; written
/// \throws ContractError on shapes that disagree, values out of range, outputs that overlap anything; SizeError on overflow
///
/// Work: batch * heads * queries * keys * (head_dim + value_dim) multiply-adds. Scratch: at most 256 KiB a worker for
/// dimensions up to 128, whatever the lengths.
template <Element Q>
void full_attention(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<Value<Q>>& out,
                    const Scores<Value<Q>>& options = {}, Run run = {}) {
  FullAttention<Value<Q>>::forward({.query = query, .out = out, .keys = {key, value}, .scores = &options}, false, run);
}

/// Likewise for keys in several pieces. Queries are the newest positions: the alignment defaults to bottom_right.
template <Element Q, KeysFor<Q> KV>
void full_attention(TensorView<Q, 4> query, const KeyValueView<KV>& keys, const Output<Value<Q>>& out,
                    const Scores<Value<Q>>& options = {}, Run run = {}) {
  FullAttention<Value<Q>>::forward({.query = query, .out = out, .keys = keys, .scores = &options}, true, run);
}

}  // namespace longview
