// Backward of Transformer-XL's attention. With t = scale dS: dq = sum_j t (k_j + R_r), du = sum t k_j, dv = sum t R_r,
// dk_j = sum_i t (q_i + u), dR_r = sum t (q_i + v).
#pragma once

#include "reference/gradient.hpp"
#include "reference/relative.hpp"

namespace reference {

template <typename Real>
struct RelativeGradients {
  Bounded<Real> query, key, value, position, content_bias, position_bias;  // the last two where the options have them
  ScoreGradients<Real> scores;
};

template <typename Real>
RelativeGradients<Real> relative_backward(const Bounded<Real>& query, const Bounded<Real>& key,
                                          const Bounded<Real>& value, const OutputGradient<Real>& arrived,
                                          const RelativeOptions<Real>& options, const Precision& precision) {
  const AttentionResult<Real> forward = relative_attention(query, key, value, options, precision);
  const Index offset = key.extent(2) - query.extent(2);
  Sums<Real> d_query(query.value.shape()), d_key(key.value.shape()), d_value(value.value.shape());
  Sums<Real> d_position(options.position.value.shape()), d_content = sums_like<Real>(options.content_bias),
                                                         d_shift = sums_like<Real>(options.position_bias);
  ScoreSums<Real> d_scores(options.scores);
  for_each_row(query.extent(0), query.extent(1), query.extent(2), [&](const Row& at) {
    const Real scale = scale_of(options.scores, query.extent(3));
    const auto product_of = [&](Index j) { return relative_product(query, key, options, at, j, precision); };
    const auto allowed = [&](Index j) {
      return relative_allows(offset + at.query - j, options.before) && scores_allow(options.scores, at, j);
    };
    const auto logits = collect<Real>(key.extent(2), allowed, [&](Index j) {
      return finished_score(product_of(j), options.scores, scale, at, j, precision);
    });
    const RowProblem<Real, decltype(product_of)> row{
        at, logits, product_of, options.scores, sink_of(options.scores, at.head), scale, 2 * query.extent(3), value};
    const Vector<Real> d_products = differentiate_row(row, forward, arrived, d_value, d_scores, precision);
    const Index group = group_of(at.head, query.extent(1), key.extent(1));
    for (std::size_t n = 0; n < logits.size(); ++n)
      for (Index c = 0; c < query.extent(3); ++c) {
        const Index j = logits[n].key, distance = offset + at.query - j;
        const Index r = options.clamp ? std::min(distance, *options.clamp) : distance;
        const Estimate<Real>& t = d_products[n];
        const Estimate<Real> k = key(at.batch, group, j, c), position = position_at(options.position, at.head, r, c);
        d_query(at.batch, at.head, at.query, c).add(t, k);
        d_query(at.batch, at.head, at.query, c).add(t, position);
        d_key(at.batch, group, j, c).add(t, shifted_query(query, options.content_bias, at, c, precision));
        d_position.repeated(at.head, r, c).add(t, shifted_query(query, options.position_bias, at, c, precision));
        if (d_content.present()) d_content.repeated(at.head, c).add(t, k);
        if (d_shift.present()) d_shift.repeated(at.head, c).add(t, position);
      }
  });
  const auto finished = [&](const Sums<Real>& of) { return of.present() ? stored(of, precision) : Bounded<Real>(); };
  return {finished(d_query),   finished(d_key),   finished(d_value),          finished(d_position),
          finished(d_content), finished(d_shift), stored(d_scores, precision)};
}

}  // namespace reference
