// SPDX-License-Identifier: Apache-2.0
/// \file
/// Full scaled dot-product attention.
///
/// Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1, arXiv:1706.03762. Evaluated tile by tile with
/// a running maximum: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867; Dao et al.,
/// "FlashAttention", 2022, arXiv:2205.14135.
#pragma once

#include "longview/detail/backward_check.hpp"
#include "longview/detail/backward_task.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD {

/// The compiled body, named in `extern template` only.
template <Storage T>
struct FullAttention {
  static void forward(detail::BandCall<T> call, bool in_pieces, Run run);
  static void backward(detail::BandCall<T> call, const Output<const T>& out, const AttentionGradients<T>& gradients,
                       bool in_pieces, Run run);

 private:
  static void check_options(detail::Contract& contract, const detail::BandCall<T>& call, bool in_pieces) {
    detail::check_scores(contract, call, "options.", call.scores->causal || !call.scores->alibi_slopes.empty(), in_pieces);
  }
};

template <Storage T>
void FullAttention<T>::forward(detail::BandCall<T> call, bool in_pieces, Run run) {
  detail::Contract contract("full_attention", run);
  detail::check_tensors(contract, call);
  check_options(contract, call, in_pieces);
  if (!contract.accepted()) return;
  call.offset = detail::offset_of(call, in_pieces);
  detail::attend(contract, detail::shape_of(call), detail::BandPattern<T>(call), static_cast<Index>(call.keys.size()));
}

template <Storage T>
void FullAttention<T>::backward(detail::BandCall<T> call, const Output<const T>& out, const AttentionGradients<T>& gradients,
                                bool in_pieces, Run run) {
  detail::Contract contract("full_attention_backward", run);
  const auto wanted = detail::check_backward(contract, call, out, gradients, in_pieces);
  check_options(contract, call, in_pieces);
  if (!contract.accepted()) return;
  call.offset = detail::offset_of(call, in_pieces);
  detail::attend_backward(contract, detail::shape_of(call), call, wanted, detail::BandPattern<T>(call),
                          static_cast<Index>(call.keys.size()));
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

/// The gradients of sum(out * gradients.out) + sum(lse * gradients.lse) of that call of full_attention, in the fields of
/// `gradients` that are present, overwritten.
///
/// \param query, key, value, options as in the forward call
/// \param out what that call wrote, log-sum-exp included
/// \param gradients out (and lse, if the loss depends on it) arrive; the others leave, of the shapes of what they belong to.
///        The bias's may have extent 1 on axes to be summed. The bits do not depend on which are asked for
/// \throws ContractError on shapes that disagree, an lse left out, gradients of what is absent, outputs that overlap anything
///
/// Rows without keys give and get zeros. Probabilities are recomputed, never stored. Work: batch * heads * queries * keys *
/// (3 head_dim + 2 value_dim) multiply-adds. Scratch: at most 512 KiB a worker for dimensions up to 128. Tasks of different
/// (batch, key head)s are independent, those of one follow each other tile by tile; batch items or heads over which a gradient of
/// the bias is summed come one after another.
/// Source: Dao et al., "FlashAttention", 2022, appendix B.2, arXiv:2205.14135.
template <Element Q>
void full_attention_backward(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<const Value<Q>>& out,
                             const AttentionGradients<Value<Q>>& gradients, const Scores<Value<Q>>& options = {}, Run run = {}) {
  FullAttention<Value<Q>>::backward({.query = query, .keys = {key, value}, .scores = &options}, out, gradients, false, run);
}

/// Likewise for keys in several pieces, with gradients.segments instead of gradients.key and gradients.value.
template <Element Q, KeysFor<Q> KV>
void full_attention_backward(TensorView<Q, 4> query, const KeyValueView<KV>& keys, const Output<const Value<Q>>& out,
                             const AttentionGradients<Value<Q>>& gradients, const Scores<Value<Q>>& options = {}, Run run = {}) {
  FullAttention<Value<Q>>::backward({.query = query, .keys = keys, .scores = &options}, out, gradients, true, run);
}

}  // namespace longview
