// Backward of Performer, pair by pair: with A_ij = phi(q_i)^T phi(k_j) and den_i = sum_j A_ij, dnum_i = dO_i / den_i,
// dden_i = -<dO_i, O_i> / den_i, dA_ij = <dnum_i, v_j> + dden_i. Then through the maps of performer.hpp.
#pragma once

#include "reference/gradient.hpp"
#include "reference/performer.hpp"

namespace reference {

template <typename Real>
struct PerformerGradients {
  Bounded<Real> query, key, value;
};

/// Gradients of all features of one side of one (batch, head); rows of invisible positions are empty.
template <typename Real>
using FeatureGradients = std::vector<Vector<Real>>;

/// dx = scale (dU W + dh xs)
template <typename Real>
Vector<Real> through_projection(const HeadInput<Real>& of, Index position, const Vector<Real>& d_u,
                                const Estimate<Real>& d_h) {
  const Vector<Real> row = scaled_row(of.input, of.batch, of.head, position, of.options, of.precision);
  const Tensor<Real>& projection = of.options.projection;
  const Real dim = static_cast<Real>(of.input.extent(3));
  const Real scale = of.options.input_scale.value_or(is_exponential(of.options) ? pow(dim, Real(-0.25)) : Real(1));
  Vector<Real> result;
  for (std::size_t c = 0; c < row.size(); ++c) {
    Sum<Real> sum;
    if (projection.present())
      for (std::size_t f = 0; f < d_u.size(); ++f)
        sum.add(d_u[f], Estimate<Real>{projection(static_cast<Index>(f), static_cast<Index>(c))});
    else
      sum.add(d_u[c]);
    sum.add(d_h, row[c]);
    result.push_back(times(Estimate<Real>{scale}, sum.rounded(of.precision), of.precision));
  }
  return result;
}

/// Through the features r (f exp(x - c) + epsilon) of one position: to U, to h and to the shift c.
template <typename Real>
struct ExponentialGradients {
  Vector<Real> u;
  Estimate<Real> h, shift;
};

template <typename Real>
ExponentialGradients<Real> through_exponentials(const HeadInput<Real>& of, Index position, const Estimate<Real>& shift,
                                                const Vector<Real>& d_features) {
  const Precision& precision = of.precision;
  const auto exponents = exponents_of(of.input, of.batch, of.head, position, of.options, precision);
  const bool trigonometric = of.options.features == FeatureMap::trigonometric;
  const bool both_signs = of.options.features == FeatureMap::hyperbolic;
  const std::size_t features = exponents.factor.size();
  const std::size_t rows = trigonometric || both_signs ? features / 2 : features;
  const Estimate<Real> ratio{Real(1) / sqrt(static_cast<Real>(trigonometric ? rows : features))};
  std::vector<Sum<Real>> d_u(rows);
  Sum<Real> d_exponents;
  for (std::size_t f = 0; f < features; ++f) {
    const Estimate<Real> power = exponential(plus(exponents.exponent[f], negated(shift), precision), precision);
    const Estimate<Real> d_power = times(times(ratio, d_features[f], precision), power, precision);
    const Estimate<Real> d_exponent = times(d_power, exponents.factor[f], precision);
    d_exponents.add(d_exponent);
    if (!trigonometric)
      d_u[f % rows].add(f < rows ? d_exponent : negated(d_exponent));
    else if (f < rows)
      d_u[f].add(d_power, negated(exponents.factor[f + rows]));
    else
      d_u[f - rows].add(d_power, exponents.factor[f - rows]);
  }
  ExponentialGradients<Real> result;
  for (const Sum<Real>& sum : d_u) result.u.push_back(sum.rounded(precision));
  const Estimate<Real> all = d_exponents.rounded(precision);
  result.h = trigonometric ? all : negated(all);
  result.shift = negated(all);
  return result;
}

/// The gradient of a maximum is split equally among what attains it. What comes as close as its error may have all.
template <typename Real>
Vector<Real> through_maximum(const Vector<Real>& all, const Estimate<Real>& d_maximum) {
  const Estimate<Real> most = maximum_of(all);
  Real attaining = 0, near = 0;
  for (const Estimate<Real>& x : all) {
    if (x.value == most.value) attaining += Real(1);
    if (x.value + x.radius + most.radius >= most.value && x.radius + most.radius > Real(0)) near += Real(1);
  }
  Vector<Real> result;
  for (const Estimate<Real>& x : all) {
    Estimate<Real> share{x.value == most.value ? d_maximum.value / attaining : Real(0)};
    if (x.value == most.value) share.radius = d_maximum.radius;
    if (near > attaining && x.value + x.radius + most.radius >= most.value)
      share.radius += d_maximum.radius + abs(d_maximum.value);
    result.push_back(share);
  }
  return result;
}

/// What the published shift is a maximum of: U (hyperbolic: U and -U; trigonometric: h) of one position.
template <typename Real>
Vector<Real> candidates(const HeadInput<Real>& of, Index position) {
  const Vector<Real> row = scaled_row(of.input, of.batch, of.head, position, of.options, of.precision);
  if (of.options.features == FeatureMap::trigonometric) return {half_square(row, of.precision)};
  Vector<Real> u = projected_row(row, of.options.projection, of.precision);
  if (of.options.features == FeatureMap::hyperbolic)
    for (std::size_t f = 0, rows = u.size(); f < rows; ++f) u.push_back(negated(u[f]));
  return u;
}

template <typename Real>
void add_to(Estimate<Real>& sum, const Estimate<Real>& term, const Precision& precision) {
  sum = plus(sum, term, precision);
}

/// Adds the gradients of the shifts to those of what they are maxima of.
template <typename Real>
void through_published_shifts(const HeadInput<Real>& of, const std::vector<Index>& positions,
                              std::vector<ExponentialGradients<Real>>& gradients) {
  const bool trigonometric = of.options.features == FeatureMap::trigonometric;
  const bool own = of.side == FeatureSide::query && !trigonometric;
  for (std::size_t first = 0; first < positions.size();) {
    const std::size_t end = own ? first + 1 : positions.size();
    Vector<Real> all;
    Sum<Real> d_shift;
    for (std::size_t n = first; n < end; ++n) {
      const Vector<Real> mine = candidates(of, positions[n]);
      all.insert(all.end(), mine.begin(), mine.end());
      d_shift.add(gradients[n].shift);
    }
    const Vector<Real> shares = through_maximum(all, d_shift.rounded(of.precision));
    for (std::size_t n = first, next = 0; n < end; ++n) {
      if (trigonometric) {
        add_to(gradients[n].h, shares[next++], of.precision);
        continue;
      }
      for (Estimate<Real>& d_u : gradients[n].u) add_to(d_u, shares[next++], of.precision);
      if (of.options.features == FeatureMap::hyperbolic)
        for (Estimate<Real>& d_u : gradients[n].u) add_to(d_u, negated(shares[next++]), of.precision);
    }
    first = end;
  }
}

template <typename Real>
FeatureGradients<Real> exponential_backward(const HeadInput<Real>& of, const FeatureGradients<Real>& d_features) {
  std::vector<Index> positions;
  std::vector<Exponents<Real>> exponents;
  for (Index i = 0; i < of.length(); ++i)
    if (of.visible(i)) {
      positions.push_back(i);
      exponents.push_back(exponents_of(of.input, of.batch, of.head, i, of.options, of.precision));
    }
  const Vector<Real> shift = shifts(exponents, of);
  std::vector<ExponentialGradients<Real>> gradients;
  for (std::size_t n = 0; n < positions.size(); ++n)
    gradients.push_back(through_exponentials(of, positions[n], shift[n], d_features[to_size(positions[n])]));
  if (through_shifts(of.options)) through_published_shifts(of, positions, gradients);
  FeatureGradients<Real> result(to_size(of.length()));
  for (std::size_t n = 0; n < positions.size(); ++n)
    result[to_size(positions[n])] = through_projection(of, positions[n], gradients[n].u, gradients[n].h);
  return result;
}

/// dU = p (dp - sum p dp) of p = softmax(U)
template <typename Real>
Vector<Real> softmax_backward(const Vector<Real>& u, const Vector<Real>& d_weights,
                              const PerformerOptions<Real>& options, const Precision& precision) {
  PerformerOptions<Real> bare = options;
  bare.epsilon = Real(0);
  const Vector<Real> weights = softmax_of(u, bare, precision);
  Sum<Real> mean;
  for (std::size_t f = 0; f < u.size(); ++f) mean.add(weights[f], d_weights[f]);
  Vector<Real> result;
  for (std::size_t f = 0; f < u.size(); ++f)
    result.push_back(times(weights[f], plus(d_weights[f], negated(mean.rounded(precision)), precision), precision));
  return result;
}

/// Keys, not causal: a softmax over the visible positions for every channel.
template <typename Real>
FeatureGradients<Real> softmax_over_positions_backward(const HeadInput<Real>& of,
                                                       const FeatureGradients<Real>& d_features) {
  std::vector<Index> positions;
  std::vector<Vector<Real>> u, d_u;
  for (Index i = 0; i < of.length(); ++i)
    if (of.visible(i)) positions.push_back(i), u.push_back(of.projected(i)), d_u.push_back({});
  for (std::size_t f = 0; !u.empty() && f < u.front().size(); ++f) {
    Vector<Real> column, d_column;
    for (std::size_t n = 0; n < positions.size(); ++n) {
      column.push_back(u[n][f]);
      d_column.push_back(d_features[to_size(positions[n])][f]);
    }
    const Vector<Real> result = softmax_backward(column, d_column, of.options, of.precision);
    for (std::size_t n = 0; n < positions.size(); ++n) d_u[n].push_back(result[n]);
  }
  FeatureGradients<Real> result(to_size(of.length()));
  for (std::size_t n = 0; n < positions.size(); ++n)
    result[to_size(positions[n])] = through_projection(of, positions[n], d_u[n], Estimate<Real>{});
  return result;
}

/// f'(U) of relu, elu + 1, exp. Where U may have either sign, relu may have either slope.
template <typename Real>
Estimate<Real> plain_slope(const Estimate<Real>& u, FeatureMap map, const Precision& precision) {
  if (map == FeatureMap::relu)
    return {u.value > Real(0) ? Real(1) : Real(0), abs(u.value) < u.radius ? Real(1) : Real(0)};
  if (map == FeatureMap::elu_plus_one && u.value > Real(0)) return {Real(1), Real(2) * u.radius};
  return exponential(u, precision);
}

template <typename Real>
Vector<Real> unshifted_backward(const HeadInput<Real>& of, Index position, const Vector<Real>& d_features) {
  const Vector<Real> u = of.projected(position);
  Vector<Real> d_u;
  if (of.options.features == FeatureMap::softmax && of.side == FeatureSide::query)
    d_u = softmax_backward(u, d_features, of.options, of.precision);
  else
    for (std::size_t f = 0; f < u.size(); ++f)
      d_u.push_back(times(d_features[f], plain_slope(u[f], of.options.features, of.precision), of.precision));
  return through_projection(of, position, d_u, Estimate<Real>{});
}

/// From gradients of the features to those of the input.
template <typename Real>
FeatureGradients<Real> features_backward(const HeadInput<Real>& of, const FeatureGradients<Real>& d_features) {
  if (is_exponential(of.options)) return exponential_backward(of, d_features);
  if (of.options.features == FeatureMap::softmax && of.side == FeatureSide::key && !of.options.causal)
    return softmax_over_positions_backward(of, d_features);
  FeatureGradients<Real> result(to_size(of.length()));
  for (Index i = 0; i < of.length(); ++i)
    if (of.visible(i)) result[to_size(i)] = unshifted_backward(of, i, d_features[to_size(i)]);
  return result;
}

// ---- Attention.

/// Sums for the features of every position of one side of one (batch, head).
template <typename Real>
class FeatureSums {
 public:
  explicit FeatureSums(const Features<Real>& of) {
    for (const Vector<Real>& row : of.rows) sums_.push_back(std::vector<Sum<Real>>(row.size()));
  }
  std::vector<Sum<Real>>& operator[](Index position) { return sums_[to_size(position)]; }
  FeatureGradients<Real> rounded(const Precision& precision) const {
    FeatureGradients<Real> result;
    for (const std::vector<Sum<Real>>& row : sums_) {
      result.push_back({});
      for (const Sum<Real>& sum : row) result.back().push_back(sum.rounded(precision));
    }
    return result;
  }

 private:
  std::vector<std::vector<Sum<Real>>> sums_;
};

/// Of one query row: dO / den and -<dO, O> / den.
template <typename Real>
struct NumeratorGradient {
  Vector<Real> numerator;
  Estimate<Real> denominator;
};

template <typename Real>
NumeratorGradient<Real> through_quotient(const Vector<Real>& query, Real query_shift, const KeySums<Real>& sums,
                                         const Vector<Real>& d_out, const Vector<Real>& out,
                                         const PerformerOptions<Real>& options, const Precision& precision) {
  NumeratorGradient<Real> result;
  if (!options.normalize) {
    Estimate<Real> factor{Real(1)};
    if (options.stabiliser == Stabiliser::prefix && is_exponential(options))
      factor = exponential(Estimate<Real>{query_shift + sums.shift}, precision);
    for (const Estimate<Real>& x : d_out) result.numerator.push_back(times(x, factor, precision));
    return result;
  }
  const Estimate<Real> all = denominator(query, sums, options, precision);
  Sum<Real> product;
  for (std::size_t c = 0; c < d_out.size(); ++c) {
    result.numerator.push_back(quotient(d_out[c], all, precision));
    product.add(d_out[c], out[c]);
  }
  result.denominator = quotient(negated(product.rounded(precision)), all, precision);
  return result;
}

/// One (batch, head) of queries, and the key features of its group.
template <typename Real>
struct PerformerHead {
  Index batch, head, group;
  const Features<Real>&queries, &keys;
};

template <typename Real>
void performer_head_backward(const PerformerHead<Real>& at, const Bounded<Real>& value, const Bounded<Real>& out,
                             const Bounded<Real>& d_out, const PerformerOptions<Real>& options,
                             FeatureSums<Real>& d_queries, FeatureSums<Real>& d_keys, Sums<Real>& d_value,
                             const Precision& precision) {
  const Index keys = value.extent(2);
  KeySums<Real> sums;
  Index next = 0;
  for (Index i = 0; i < out.extent(2); ++i) {
    const Vector<Real>& query = at.queries.rows[to_size(i)];
    const Index end = options.causal ? std::min(i + 1, keys) : keys;
    for (; next < end; ++next)
      if (!at.keys.rows[to_size(next)].empty())
        sums.add(at.keys.rows[to_size(next)], at.keys.shift[to_size(next)], row_of(value, at.batch, at.group, next));
    if (sums.count == 0) continue;
    const NumeratorGradient<Real> d_row =
        through_quotient(query, at.queries.shift[to_size(i)], sums, row_of(d_out, at.batch, at.head, i),
                         row_of(out, at.batch, at.head, i), options, precision);
    for (Index j = 0; j < end; ++j) {
      const Vector<Real>& key = at.keys.rows[to_size(j)];
      if (key.empty()) continue;
      const Estimate<Real> rescale{exp(at.keys.shift[to_size(j)] - sums.shift)};  // a power of two, exact
      Sum<Real> weight, d_weight;
      for (std::size_t f = 0; f < query.size(); ++f) weight.add(query[f], key[f]);
      weight.scale(rescale.value);
      for (Index c = 0; c < value.extent(3); ++c) {
        d_weight.add(d_row.numerator[to_size(c)], value(at.batch, at.group, j, c));
        d_value(at.batch, at.group, j, c).add(weight.rounded(precision), d_row.numerator[to_size(c)]);
      }
      d_weight.add(d_row.denominator);
      d_weight.scale(rescale.value);
      const Estimate<Real> d_pair = d_weight.rounded(precision);
      for (std::size_t f = 0; f < query.size(); ++f) {
        d_queries[i][f].add(d_pair, key[f]);
        d_keys[j][f].add(d_pair, query[f]);
      }
    }
    if (options.causal && options.key_sum_epsilon > Real(0))
      for (std::size_t f = 0; f < query.size(); ++f)
        d_queries[i][f].add(d_row.denominator, Estimate<Real>{options.key_sum_epsilon});
  }
}

template <typename Real>
void write_rows(Sums<Real>& to, Index batch, Index head, const FeatureGradients<Real>& rows) {
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (std::size_t c = 0; c < rows[i].size(); ++c)
      to(batch, head, static_cast<Index>(i), static_cast<Index>(c)).add(rows[i][c]);
}

template <typename Real>
PerformerGradients<Real> performer_backward(const Bounded<Real>& query, const Bounded<Real>& key,
                                            const Bounded<Real>& value, const Bounded<Real>& d_out,
                                            const PerformerOptions<Real>& options, const Precision& precision) {
  const Bounded<Real> out = performer_attention(query, key, value, options, precision);
  Sums<Real> d_query(query.value.shape()), d_key(key.value.shape()), d_value(value.value.shape());
  const Index group_size = query.extent(1) / std::max<Index>(key.extent(1), 1);
  for (Index b = 0; b < query.extent(0); ++b)
    for (Index g = 0; g < key.extent(1); ++g) {
      const HeadInput<Real> of_keys{key, b, g, FeatureSide::key, options, precision};
      const auto keys = features_of(of_keys);
      FeatureSums<Real> d_keys(keys);
      for (Index h = g * group_size; h < (g + 1) * group_size; ++h) {
        const HeadInput<Real> of_queries{query, b, h, FeatureSide::query, options, precision};
        const auto queries = features_of(of_queries);
        FeatureSums<Real> d_queries(queries);
        performer_head_backward({b, h, g, queries, keys}, value, out, d_out, options, d_queries, d_keys, d_value,
                                precision);
        write_rows(d_query, b, h, features_backward(of_queries, d_queries.rounded(precision)));
      }
      write_rows(d_key, b, g, features_backward(of_keys, d_keys.rounded(precision)));
    }
  return {stored(d_query, precision), stored(d_key, precision), stored(d_value, precision)};
}

}  // namespace reference
