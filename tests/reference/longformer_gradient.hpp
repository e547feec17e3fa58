// Backward of Longformer attention: the rows of global tokens are a softmax of their own, with their own projections.
#pragma once

#include "reference/gradient.hpp"
#include "reference/longformer.hpp"

namespace reference {

/// The global ones are present where the options have them; without, the ordinary ones hold the sums.
template <typename Real>
struct LongformerGradients {
  Bounded<Real> query, key, value, query_global, key_global, value_global;
  ScoreGradients<Real> scores;
};

template <typename Real>
LongformerGradients<Real> longformer_backward(const Bounded<Real>& query, const Bounded<Real>& key,
                                              const Bounded<Real>& value, const OutputGradient<Real>& arrived,
                                              const LongformerOptions<Real>& options, const Precision& precision) {
  const AttentionResult<Real> forward = longformer_attention(query, key, value, options, precision);
  Sums<Real> d_query(query.value.shape()), d_key(key.value.shape()), d_value(value.value.shape());
  Sums<Real> d_query_global = sums_like<Real>(options.query_global.value),
             d_key_global = sums_like<Real>(options.key_global.value),
             d_value_global = sums_like<Real>(options.value_global.value);
  ScoreSums<Real> d_scores(options.scores);
  for_each_row(query.extent(0), query.extent(1), query.extent(2), [&](const Row& at) {
    if (!is_real(options, at.batch, at.query)) return;
    const bool global = is_global(options, at.batch, at.query);
    const bool other_query = global && options.query_global.present(),
               other_key = global && options.key_global.present(),
               other_value = global && options.value_global.present();
    const Bounded<Real>&q = other_query ? options.query_global : query, &k = other_key ? options.key_global : key,
          &v = other_value ? options.value_global : value;
    Sums<Real>&d_q = other_query ? d_query_global : d_query, &d_k = other_key ? d_key_global : d_key,
    &d_v = other_value ? d_value_global : d_value;
    const Real scale = scale_of(options.scores, query.extent(3));
    const auto product_of = [&](Index j) { return content_product(q, k, at, j); };
    const auto logits = collect<Real>(
        key.extent(2), [&](Index j) { return longformer_allows(options, at, j); },
        [&](Index j) { return finished_score(product_of(j), options.scores, scale, at, j, precision); });
    const RowProblem<Real, decltype(product_of)> row{
        at, logits, product_of, options.scores, sink_of(options.scores, at.head), scale, query.extent(3), v};
    const Vector<Real> d_products = differentiate_row(row, forward, arrived, d_v, d_scores, precision);
    const Index group = group_of(at.head, query.extent(1), key.extent(1));
    for (std::size_t n = 0; n < logits.size(); ++n)
      for (Index c = 0; c < query.extent(3); ++c) {
        const Index j = logits[n].key;
        d_q(at.batch, at.head, at.query, c).add(d_products[n], k(at.batch, group, j, c));
        d_k(at.batch, group, j, c).add(d_products[n], q(at.batch, at.head, at.query, c));
      }
  });
  const auto finished = [&](const Sums<Real>& of) { return of.present() ? stored(of, precision) : Bounded<Real>(); };
  return {finished(d_query),      finished(d_key),          finished(d_value),          finished(d_query_global),
          finished(d_key_global), finished(d_value_global), stored(d_scores, precision)};
}

}  // namespace reference
