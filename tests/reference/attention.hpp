// Scaled dot-product attention: Attention Is All You Need (Vaswani et al. 2017), 3.2.1. Grouped heads: Ainslie et al.
// 2023; ALiBi: Press et al. 2022, section 3; soft cap: Gemma 2 report, section 2; window: Longformer, 3.1.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "reference/masks.hpp"
#include "reference/softmax.hpp"

namespace reference {

/// s_ij = softcap(scale <query_i, key_j>) + bias_ij - slope |i + offset - j|, then exclusion, sink, softmax.
template <typename Real>
struct Scores {
  std::optional<Real> scale{}, softcap{};  // 1 / sqrt(head_dim); cap tanh(s / cap)
  bool causal = false;
  Index offset = 0;                           // position of query 0 among the keys: keys - queries is bottom-right
  std::vector<Index> key_lengths{};           // (batch)
  Tensor<std::uint8_t> keep_mask{};           // (batch, heads, queries, keys), extents of 1 repeat
  Tensor<Real> bias{};                        // likewise; -inf excludes
  std::vector<Real> alibi_slopes{}, sinks{};  // (heads)
  Tensor<Real> dropout{};  // (batch, heads, queries, keys): 0 or 1 / (1 - p), by which probabilities are multiplied
};

/// A row without keys: 0 and -inf.
template <typename Real>
struct AttentionResult {
  Bounded<Real> out;  // (batch, heads, queries, value_dim)
  Bounded<Real> lse;  // (batch, heads, queries), natural logarithm

  explicit AttentionResult(Index batch, Index heads, Index queries, Index value_dim)
      : out({batch, heads, queries, value_dim}), lse({batch, heads, queries}) {}
};

struct Row {
  Index batch, head, query;
};

/// The key head that a query head reads.
inline Index group_of(Index head, Index heads, Index key_heads) { return head / (heads / key_heads); }

/// Finite in the reference, infinite where the accumulator overflows.
template <typename Real>
Real in_range(Real score, const Precision& precision) {
  const Real most = static_cast<Real>(precision.largest), infinity = std::numeric_limits<Real>::infinity();
  return score > most ? infinity : score < -most ? -infinity : score;
}

/// What keep mask, bias, lengths and causality leave of the pairs.
template <typename Real>
bool scores_allow(const Scores<Real>& scores, const Row& at, Index key) {
  if (!exists(scores.key_lengths, at.batch, key)) return false;
  if (scores.causal && !causal_allows(at.query, key, scores.offset)) return false;
  if (scores.keep_mask.present() && !keep_mask_allows(scores.keep_mask.repeated(at.batch, at.head, at.query, key)))
    return false;
  return !scores.bias.present() || bias_allows(scores.bias.repeated(at.batch, at.head, at.query, key));
}

/// <query_i, key_j> before the scale.
template <typename Real>
Sum<Real> content_product(const Bounded<Real>& query, const Bounded<Real>& key, const Row& at, Index position) {
  const Index group = group_of(at.head, query.extent(1), key.extent(1));
  Sum<Real> product;
  for (Index c = 0; c < query.extent(3); ++c)
    product.add(query(at.batch, at.head, at.query, c), key(at.batch, group, position, c));
  return product;
}

/// |d tanh| <= 1, so errors pass the cap unamplified; evaluating it costs four roundings of the result.
template <typename Real>
void apply_softcap(Logit<Real>& logit, Real cap, const Precision& precision) {
  logit.value = cap * tanh(logit.value / cap);
  logit.inherited += Real(4) * static_cast<Real>(precision.roundoff) * abs(logit.value);
}

template <typename Real>
void add_term(Logit<Real>& logit, Real term, const Precision& precision) {
  logit.value = in_range(logit.value + term, precision);
  logit.magnitude += abs(term);
}

template <typename Real>
Logit<Real> finished_score(const Sum<Real>& product, const Scores<Real>& scores, Real scale, const Row& at, Index key,
                           const Precision& precision) {
  Logit<Real> logit{key, in_range(scale * product.value(), precision), abs(scale) * product.magnitude(),
                    bounded_product(abs(scale), product.inherited())};
  if (scores.softcap) apply_softcap(logit, *scores.softcap, precision);
  if (scores.bias.present()) add_term(logit, scores.bias.repeated(at.batch, at.head, at.query, key), precision);
  if (!scores.alibi_slopes.empty()) {
    const Real distance = static_cast<Real>(abs(at.query + scores.offset - key));
    add_term(logit, -scores.alibi_slopes.at(to_size(at.head)) * distance, precision);
  }
  return logit;
}

template <typename Real>
Real scale_of(const Scores<Real>& scores, Index head_dim) {
  return scores.scale.value_or(Real(1) / sqrt(static_cast<Real>(head_dim)));
}

template <typename Real>
std::optional<Real> sink_of(const Scores<Real>& scores, Index head) {
  if (scores.sinks.empty()) return std::nullopt;
  return scores.sinks.at(to_size(head));
}

/// Scores of all keys j with allowed(j), by score_of(j).
template <typename Real, typename Allowed, typename ScoreOf>
std::vector<Logit<Real>> collect(Index keys, Allowed allowed, ScoreOf score_of) {
  std::vector<Logit<Real>> logits;
  for (Index key = 0; key < keys; ++key)
    if (allowed(key)) logits.push_back(score_of(key));
  return logits;
}

/// The factor and the product with it are rounded.
template <typename Real>
Estimate<Real> dropped_out(const Estimate<Real>& weight, const Scores<Real>& scores, const Row& at, Index key,
                           const Precision& precision) {
  if (!scores.dropout.present()) return weight;
  const Real factor = scores.dropout(at.batch, at.head, at.query, key);
  return times(weight, Estimate<Real>{factor, static_cast<Real>(precision.roundoff) * factor}, precision);
}

template <typename Real>
void write_row(AttentionResult<Real>& result, const Row& at, const std::vector<Logit<Real>>& logits,
               SoftmaxRow<Real> row, const Bounded<Real>& value, const Scores<Real>& scores,
               const Precision& precision) {
  result.lse.set(row.lse, at.batch, at.head, at.query);
  for (std::size_t n = 0; n < logits.size(); ++n)
    row.weights[n] = dropped_out(row.weights[n], scores, at, logits[n].key, precision);
  const Index group = group_of(at.head, result.out.extent(1), value.extent(1));
  for (Index c = 0; c < value.extent(3); ++c) {
    Estimate<Real> out = weighted_value(logits, row, value, at.batch, group, c);
    if (logits.empty() && isnan(row.lse.value)) out.value = row.lse.value;
    result.out.set(stored(out, precision), at.batch, at.head, at.query, c);
  }
}

/// visit(row) for every (batch, head, query).
template <typename Visit>
void for_each_row(Index batch, Index heads, Index queries, Visit visit) {
  for (Index b = 0; b < batch; ++b)
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < queries; ++i) visit(Row{b, h, i});
}

/// None: unlimited; one: for all heads.
inline Window window_of(const std::vector<Window>& windows, Index head) {
  if (windows.empty()) return {};
  return windows.size() == 1 ? windows.front() : windows.at(to_size(head));
}

template <typename Real>
std::vector<Logit<Real>> attended(const Bounded<Real>& query, const Bounded<Real>& key, const Scores<Real>& scores,
                                  const std::vector<Window>& windows, const Row& at, const Precision& precision) {
  const Real scale = scale_of(scores, query.extent(3));
  const Window window = window_of(windows, at.head);
  const auto allowed = [&](Index j) {
    return scores_allow(scores, at, j) && window_allows(at.query, j, scores.offset, window);
  };
  return collect<Real>(key.extent(2), allowed, [&](Index j) {
    return finished_score(content_product(query, key, at, j), scores, scale, at, j, precision);
  });
}

template <typename Real>
AttentionResult<Real> attention(const Bounded<Real>& query, const Bounded<Real>& key, const Bounded<Real>& value,
                                const Scores<Real>& scores, const std::vector<Window>& windows,
                                const Precision& precision) {
  AttentionResult<Real> result(query.extent(0), query.extent(1), query.extent(2), value.extent(3));
  for_each_row(query.extent(0), query.extent(1), query.extent(2), [&](const Row& at) {
    const std::vector<Logit<Real>> logits = attended(query, key, scores, windows, at, precision);
    const SoftmaxRow<Real> row = softmax(logits, sink_of(scores, at.head), query.extent(3), precision);
    write_row(result, at, logits, row, value, scores, precision);
  });
  return result;
}

/// received[b, j]: the probability that key j gets, averaged over all heads and queries. A row without keys gives none.
template <typename Real>
Bounded<Real> received_attention(const Bounded<Real>& query, const Bounded<Real>& key, const Scores<Real>& scores,
                                 const std::vector<Window>& windows, const Precision& precision) {
  const Index rows = query.extent(1) * query.extent(2);
  std::vector<std::vector<Sum<Real>>> sums(to_size(query.extent(0)), std::vector<Sum<Real>>(to_size(key.extent(2))));
  for_each_row(query.extent(0), query.extent(1), query.extent(2), [&](const Row& at) {
    const std::vector<Logit<Real>> logits = attended(query, key, scores, windows, at, precision);
    const SoftmaxRow<Real> row = softmax(logits, sink_of(scores, at.head), query.extent(3), precision);
    for (std::size_t n = 0; n < logits.size(); ++n) sums[to_size(at.batch)][to_size(logits[n].key)].add(row.weights[n]);
  });
  Bounded<Real> received({query.extent(0), key.extent(2)});
  for (Index b = 0; b < query.extent(0); ++b)
    for (Index j = 0; j < key.extent(2); ++j) {
      const Estimate<Real> sum = sums[to_size(b)][to_size(j)].rounded(precision);
      received.set(quotient(sum, Estimate<Real>{static_cast<Real>(rows)}, precision), b, j);
    }
  return received;
}

}  // namespace reference
