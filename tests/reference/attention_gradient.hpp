// Backward of scaled dot-product attention: dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO.
#pragma once

#include "reference/gradient.hpp"

namespace reference {

template <typename Real>
struct AttentionGradients {
  Bounded<Real> query, key, value;
  ScoreGradients<Real> scores;
};

template <typename Real>
AttentionGradients<Real> attention_backward(const Bounded<Real>& query, const Bounded<Real>& key,
                                            const Bounded<Real>& value, const OutputGradient<Real>& arrived,
                                            const Scores<Real>& scores, const std::vector<Window>& windows,
                                            const Precision& precision) {
  const AttentionResult<Real> forward = attention(query, key, value, scores, windows, precision);
  Sums<Real> d_query(query.value.shape()), d_key(key.value.shape()), d_value(value.value.shape());
  ScoreSums<Real> d_scores(scores);
  for_each_row(query.extent(0), query.extent(1), query.extent(2), [&](const Row& at) {
    const std::vector<Logit<Real>> logits = attended(query, key, scores, windows, at, precision);
    const auto product_of = [&](Index j) { return content_product(query, key, at, j); };
    const RowProblem<Real, decltype(product_of)> row{
        at,   logits, product_of, scores, sink_of(scores, at.head), scale_of(scores, query.extent(3)), query.extent(3),
        value};
    const Vector<Real> d_products = differentiate_row(row, forward, arrived, d_value, d_scores, precision);
    const Index group = group_of(at.head, query.extent(1), key.extent(1));
    for (std::size_t n = 0; n < logits.size(); ++n)
      for (Index c = 0; c < query.extent(3); ++c) {
        const Index j = logits[n].key;
        d_query(at.batch, at.head, at.query, c).add(d_products[n], key(at.batch, group, j, c));
        d_key(at.batch, group, j, c).add(d_products[n], query(at.batch, at.head, at.query, c));
      }
  });
  return {stored(d_query, precision), stored(d_key, precision), stored(d_value, precision),
          stored(d_scores, precision)};
}

}  // namespace reference
