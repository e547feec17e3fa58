// Transformer-XL (Dai et al. 2019), 3.3: relative positional attention over [memory, current].
#pragma once

#include <optional>

#include "reference/attention.hpp"

namespace reference {

/// s_ij = scale (<query_i + u, key_j> + <query_i + v, position_r>), r = keys - queries + i - j >= 0.
template <typename Real>
struct RelativeOptions {
  Bounded<Real> position{};                      // (heads or 1, distances, head_dim), row 0 = itself
  Tensor<Real> content_bias{}, position_bias{};  // u, v (heads or 1, head_dim); absent: 0
  std::optional<Index> before{}, clamp{};        // r <= before only; r > clamp reads row clamp
  Scores<Real> scores{};                         // causality is implied, bottom-right
};

template <typename Real>
Estimate<Real> shifted_query(const Bounded<Real>& query, const Tensor<Real>& shift, const Row& at, Index channel,
                             const Precision& precision) {
  const Estimate<Real> q = query(at.batch, at.head, at.query, channel);
  return shift.present() ? plus(q, Estimate<Real>{shift.repeated(at.head, channel)}, precision) : q;
}

template <typename Real>
Estimate<Real> position_at(const Bounded<Real>& position, Index head, Index distance, Index channel) {
  return position(position.extent(0) == 1 ? Index{0} : head, distance, channel);
}

/// <query_i + u, key_j> + <query_i + v, position_r>
template <typename Real>
Sum<Real> relative_product(const Bounded<Real>& query, const Bounded<Real>& key, const RelativeOptions<Real>& options,
                           const Row& at, Index j, const Precision& precision) {
  const Index group = group_of(at.head, query.extent(1), key.extent(1));
  const Index distance = key.extent(2) - query.extent(2) + at.query - j;
  const Index row = options.clamp ? std::min(distance, *options.clamp) : distance;
  Sum<Real> product;
  for (Index c = 0; c < query.extent(3); ++c) {
    product.add(shifted_query(query, options.content_bias, at, c, precision), key(at.batch, group, j, c));
    product.add(shifted_query(query, options.position_bias, at, c, precision),
                position_at(options.position, at.head, row, c));
  }
  return product;
}

template <typename Real>
AttentionResult<Real> relative_attention(const Bounded<Real>& query, const Bounded<Real>& key,
                                         const Bounded<Real>& value, const RelativeOptions<Real>& options,
                                         const Precision& precision) {
  const Index offset = key.extent(2) - query.extent(2);
  const Real scale = scale_of(options.scores, query.extent(3));
  AttentionResult<Real> result(query.extent(0), query.extent(1), query.extent(2), value.extent(3));
  for_each_row(query.extent(0), query.extent(1), query.extent(2), [&](const Row& at) {
    const auto allowed = [&](Index j) {
      return relative_allows(offset + at.query - j, options.before) && scores_allow(options.scores, at, j);
    };
    const auto logits = collect<Real>(key.extent(2), allowed, [&](Index j) {
      const Sum<Real> product = relative_product(query, key, options, at, j, precision);
      return finished_score(product, options.scores, scale, at, j, precision);
    });
    const auto row = softmax(logits, sink_of(options.scores, at.head), 2 * query.extent(3), precision);
    write_row(result, at, logits, row, value, options.scores, precision);
  });
  return result;
}

/// Row = distance: [sin(t f), cos(t f)], f_a = 10000^(-2a / width), t = min(distance, clamp).
template <typename Real>
Bounded<Real> sinusoidal_positions(Index length, Index width, std::optional<Index> clamp, const Precision& precision) {
  const Index half = width / 2;
  Bounded<Real> output({length, width});
  for (Index t = 0; t < length; ++t)
    for (Index a = 0; a < half; ++a) {
      const Real exponent = Real(-2) * static_cast<Real>(a) / static_cast<Real>(width) * log(Real(10000));
      const Estimate<Real> frequency = exponential(Estimate<Real>{exponent}, precision);
      const Real distance = static_cast<Real>(clamp ? std::min(t, *clamp) : t);
      const Estimate<Real> angle = times(Estimate<Real>{distance}, frequency, precision);
      const Real radius = angle.radius + Real(4) * static_cast<Real>(precision.roundoff);
      output.set(stored(Estimate<Real>{sin(angle.value), radius}, precision), t, a);
      output.set(stored(Estimate<Real>{cos(angle.value), radius}, precision), t, half + a);
    }
  return output;
}

}  // namespace reference
