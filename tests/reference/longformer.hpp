// Longformer (Beltagy, Peters, Cohan 2020): sliding window and dilation 3.1, global attention 3.1, its own linear
// projections for global attention 3.1 "Linear Projections for Global Attention".
#pragma once

#include "reference/attention.hpp"

namespace reference {

template <typename Real>
struct LongformerOptions {
  std::vector<Window> windows{};                               // one for all heads, or one per head; none: unlimited
  Tensor<std::uint8_t> global_tokens{};                        // (batch, length); absent: none
  Tensor<std::uint8_t> keep_tokens{};                          // (batch, length); 0 is padding, which beats global
  Bounded<Real> query_global{}, key_global{}, value_global{};  // absent: the ordinary ones
  Scores<Real> scores{};  // key_lengths: tokens from there on are padding; the offset is 0
};

template <typename Real>
bool is_real(const LongformerOptions<Real>& options, Index batch, Index token) {
  return kept(options.keep_tokens, batch, token) && exists(options.scores.key_lengths, batch, token);
}

template <typename Real>
bool is_global(const LongformerOptions<Real>& options, Index batch, Index token) {
  return options.global_tokens.present() && keep_mask_allows(options.global_tokens(batch, token)) &&
         is_real(options, batch, token);
}

template <typename Real>
bool longformer_allows(const LongformerOptions<Real>& options, const Row& at, Index key) {
  const bool causal = options.scores.causal, real = is_real(options, at.batch, key);
  if (!is_real(options, at.batch, at.query) || !scores_allow(options.scores, at, key)) return false;
  if (is_global(options, at.batch, at.query)) return longformer_global_row_allows(at.query, key, causal, real);
  return longformer_local_allows(at.query, key, window_of(options.windows, at.head), causal,
                                 is_global(options, at.batch, key), real);
}

template <typename Real>
AttentionResult<Real> longformer_attention(const Bounded<Real>& query, const Bounded<Real>& key,
                                           const Bounded<Real>& value, const LongformerOptions<Real>& options,
                                           const Precision& precision) {
  const Bounded<Real>& query_global = options.query_global.present() ? options.query_global : query;
  const Bounded<Real>& key_global = options.key_global.present() ? options.key_global : key;
  const Bounded<Real>& value_global = options.value_global.present() ? options.value_global : value;
  const Real scale = scale_of(options.scores, query.extent(3));
  AttentionResult<Real> result(query.extent(0), query.extent(1), query.extent(2), value.extent(3));
  for_each_row(query.extent(0), query.extent(1), query.extent(2), [&](const Row& at) {
    const bool global = is_global(options, at.batch, at.query);
    const auto allowed = [&](Index j) { return longformer_allows(options, at, j); };
    const auto logits = collect<Real>(key.extent(2), allowed, [&](Index j) {
      const Sum<Real> product = content_product(global ? query_global : query, global ? key_global : key, at, j);
      return finished_score(product, options.scores, scale, at, j, precision);
    });
    // A padded row is no row at all: not even the sink enters it.
    const auto sink = is_real(options, at.batch, at.query) ? sink_of(options.scores, at.head) : std::nullopt;
    const SoftmaxRow<Real> row = softmax(logits, sink, query.extent(3), precision);
    write_row(result, at, logits, row, global ? value_global : value, options.scores, precision);
  });
  return result;
}

}  // namespace reference
