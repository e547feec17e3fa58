// Performer, FAVOR+ (Choromanski et al. 2021): feature maps 2.3 (Lemma 1) and 2.4, stabilisers as in the authors' code,
// attention 2.2 and B.1. elu + 1: Katharopoulos et al. 2020, 3.2; softmax features: Shen et al. 2021, 3.2.
//
// Every feature is r (f exp(x - c) + epsilon) with a factor f, an exponent x and a shift c; the other maps have no
// shift.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "reference/attention.hpp"

namespace reference {

enum class FeatureMap { positive, hyperbolic, trigonometric, relu, elu_plus_one, softmax };
enum class Stabiliser { prefix, reference, fixed };
enum class FeatureSide { query, key };

template <typename Real>
struct PerformerOptions {
  FeatureMap features = FeatureMap::positive;
  Tensor<Real> projection{};          // (rows, head_dim); absent: the identity
  std::optional<Real> input_scale{};  // head_dim^(-1/4) for the maps of the softmax kernel, 1 for the others
  std::optional<Real> epsilon{};      // added to every feature: 0, for relu 1e-3; trigonometric features take none
  Stabiliser stabiliser = Stabiliser::prefix;
  Real fixed_shift = 0;                // c of both sides
  bool differentiate_maximum = false;  // of Stabiliser::reference; otherwise shifts are constants
  bool causal = false, normalize = true;
  Real denominator_guard = 0, key_sum_epsilon = 0;  // den + 2 g where |den| <= g; added to the causal key sum
  std::vector<Index> key_lengths{};
  Tensor<std::uint8_t> keep_keys{};  // (batch, keys); 0 leaves maximum, numerator, denominator
};

template <typename Real>
bool is_exponential(const PerformerOptions<Real>& options) {
  return options.features == FeatureMap::positive || options.features == FeatureMap::hyperbolic ||
         options.features == FeatureMap::trigonometric;
}

template <typename Real>
Estimate<Real> epsilon_of(const PerformerOptions<Real>& options) {
  if (options.features == FeatureMap::trigonometric) return {Real(0)};
  return {options.epsilon.value_or(options.features == FeatureMap::relu ? static_cast<Real>(0.001L) : Real(0))};
}

// ---- From a row of the input to U = xs W^T and h = |xs|^2 / 2.

template <typename Real>
Vector<Real> scaled_row(const Bounded<Real>& input, Index batch, Index head, Index position,
                        const PerformerOptions<Real>& options, const Precision& precision) {
  const Real dim = static_cast<Real>(input.extent(3));
  const Real scale = options.input_scale.value_or(is_exponential(options) ? pow(dim, Real(-0.25)) : Real(1));
  Vector<Real> row;
  for (Index c = 0; c < input.extent(3); ++c) {
    const Estimate<Real> x = input(batch, head, position, c);
    row.push_back(scale == Real(1) ? x : times(Estimate<Real>{scale}, x, precision));
  }
  return row;
}

template <typename Real>
Vector<Real> projected_row(const Vector<Real>& row, const Tensor<Real>& projection, const Precision& precision) {
  if (!projection.present()) return row;
  Vector<Real> result;
  for (Index f = 0; f < projection.extent(0); ++f) {
    Sum<Real> sum;
    for (std::size_t c = 0; c < row.size(); ++c) sum.add(row[c], Estimate<Real>{projection(f, static_cast<Index>(c))});
    result.push_back(sum.rounded(precision));
  }
  return result;
}

template <typename Real>
Estimate<Real> half_square(const Vector<Real>& row, const Precision& precision) {
  Sum<Real> sum;
  for (const Estimate<Real>& x : row) sum.add(x, x);
  const Estimate<Real> square = sum.rounded(precision);
  return {square.value / Real(2), square.radius / Real(2)};
}

template <typename Real>
Estimate<Real> maximum_of(const Vector<Real>& all) {
  Estimate<Real> most{-std::numeric_limits<Real>::infinity()};
  for (const Estimate<Real>& x : all) {
    most.value = isnan(x.value) || x.value > most.value ? x.value : most.value;
    most.radius = std::max(most.radius, x.radius);
  }
  return most;
}

// ---- The maps of the softmax kernel: factors, exponents and what their shift is the maximum of.

template <typename Real>
struct Exponents {
  Vector<Real> factor, exponent;
  Estimate<Real> published_peak;  // max U (trigonometric: h), as the authors' code takes it
  Estimate<Real> peak;            // max of the exponents
};

/// U - h; hyperbolic also -U - h.
template <typename Real>
Exponents<Real> positive_exponents(const Vector<Real>& u, const Estimate<Real>& h, bool both_signs,
                                   const Precision& precision) {
  Exponents<Real> result;
  Vector<Real> signed_u = u;
  if (both_signs)
    for (const Estimate<Real>& x : u) signed_u.push_back(negated(x));
  for (const Estimate<Real>& x : signed_u) {
    result.factor.push_back({Real(1)});
    result.exponent.push_back(plus(x, negated(h), precision));
  }
  result.published_peak = maximum_of(signed_u);
  result.peak = maximum_of(result.exponent);
  return result;
}

/// [cos U, sin U] exp(h)
template <typename Real>
Exponents<Real> trigonometric_exponents(const Vector<Real>& u, const Estimate<Real>& h, const Precision& precision) {
  const Real evaluation = Real(4) * static_cast<Real>(precision.roundoff);
  Exponents<Real> result;
  for (const Estimate<Real>& x : u) result.factor.push_back({cos(x.value), x.radius + evaluation});
  for (const Estimate<Real>& x : u) result.factor.push_back({sin(x.value), x.radius + evaluation});
  result.exponent.assign(result.factor.size(), h);
  result.published_peak = result.peak = h;
  return result;
}

template <typename Real>
Exponents<Real> exponents_of(const Bounded<Real>& input, Index batch, Index head, Index position,
                             const PerformerOptions<Real>& options, const Precision& precision) {
  const Vector<Real> row = scaled_row(input, batch, head, position, options, precision);
  const Vector<Real> u = projected_row(row, options.projection, precision);
  const Estimate<Real> h = half_square(row, precision);
  if (options.features == FeatureMap::trigonometric) return trigonometric_exponents(u, h, precision);
  return positive_exponents(u, h, options.features == FeatureMap::hyperbolic, precision);
}

/// r (f exp(x - c) + epsilon), r = (number of features)^(-1/2), trigonometric (half their number)^(-1/2)
template <typename Real>
Vector<Real> shifted_features(const Exponents<Real>& of, const Estimate<Real>& shift,
                              const PerformerOptions<Real>& options, const Precision& precision) {
  const Index features = static_cast<Index>(of.factor.size());
  const Index counted = options.features == FeatureMap::trigonometric ? features / 2 : features;
  const Estimate<Real> ratio{Real(1) / sqrt(static_cast<Real>(counted))};
  Vector<Real> result;
  for (std::size_t f = 0; f < of.factor.size(); ++f) {
    const Estimate<Real> power = exponential(plus(of.exponent[f], negated(shift), precision), precision);
    const Estimate<Real> product = times(of.factor[f], power, precision);
    result.push_back(times(ratio, plus(product, epsilon_of(options), precision), precision));
  }
  return result;
}

// ---- The other maps.

template <typename Real>
Estimate<Real> elu_plus_one(const Estimate<Real>& x, const Precision& precision) {
  return x.value > Real(0) ? plus(x, Estimate<Real>{Real(1)}, precision) : exponential(x, precision);
}

template <typename Real>
Vector<Real> plain_features(const Vector<Real>& u, const PerformerOptions<Real>& options, const Precision& precision) {
  Vector<Real> result;
  for (const Estimate<Real>& x : u) {
    const bool relu = options.features == FeatureMap::relu;
    const Estimate<Real> value =
        relu ? Estimate<Real>{x.value < Real(0) ? Real(0) : x.value, x.radius} : elu_plus_one(x, precision);
    result.push_back(plus(value, epsilon_of(options), precision));
  }
  return result;
}

template <typename Real>
Vector<Real> softmax_of(const Vector<Real>& x, const PerformerOptions<Real>& options, const Precision& precision) {
  const Estimate<Real> most = maximum_of(x);
  Vector<Real> powers;
  Sum<Real> sum;
  for (const Estimate<Real>& each : x) {
    powers.push_back(exponential(plus(each, Estimate<Real>{-most.value}, precision), precision));
    sum.add(powers.back());
  }
  for (Estimate<Real>& power : powers)
    power = plus(quotient(power, sum.rounded(precision), precision), epsilon_of(options), precision);
  return powers;
}

// ---- All features of one side of one (batch, head).

/// Features at exponent - shift; an invisible key has none.
template <typename Real>
struct Features {
  std::vector<Vector<Real>> rows;
  std::vector<Real> shift;
};

template <typename Real>
struct HeadInput {
  const Bounded<Real>& input;
  Index batch, head;
  FeatureSide side;
  const PerformerOptions<Real>& options;
  const Precision& precision;

  Index length() const { return input.extent(2); }
  bool visible(Index position) const {
    return side == FeatureSide::query ||
           (kept(options.keep_keys, batch, position) && exists(options.key_lengths, batch, position));
  }
  Vector<Real> projected(Index position) const {
    return projected_row(scaled_row(input, batch, head, position, options, precision), options.projection, precision);
  }
};

/// Rounded up to a power of two, by which sums are rescaled without error.
template <typename Real>
Estimate<Real> prefix_shift(Real peak) {
  const Real log_of_two = log(Real(2));
  return {isfinite(peak) ? ceil(peak / log_of_two) * log_of_two : peak};
}

/// Whether the gradient goes through the shifts.
template <typename Real>
bool through_shifts(const PerformerOptions<Real>& options) {
  return options.differentiate_maximum && options.stabiliser == Stabiliser::reference;
}

/// The shift of every position. Queries have one each (trigonometric, as published: one maximum over all), keys share
/// the maximum over all of them; under `prefix` with causality over those so far.
template <typename Real>
Vector<Real> shifts(const std::vector<Exponents<Real>>& all, const HeadInput<Real>& of) {
  const PerformerOptions<Real>& options = of.options;
  const bool prefix = options.stabiliser == Stabiliser::prefix, query = of.side == FeatureSide::query;
  const bool own = query && (prefix || options.features != FeatureMap::trigonometric);
  Vector<Real> peaks, result;
  for (const Exponents<Real>& each : all) {
    peaks.push_back(prefix ? each.peak : each.published_peak);
    const Estimate<Real> most = own ? peaks.back() : maximum_of(peaks);
    result.push_back(options.stabiliser == Stabiliser::fixed ? Estimate<Real>{options.fixed_shift}
                     : prefix                                ? prefix_shift(most.value)
                                                             : most);
  }
  const bool running = own || (prefix && options.causal);
  if (!running && !result.empty()) result.assign(result.size(), Estimate<Real>(result.back()));
  if (!through_shifts(options))
    for (Estimate<Real>& shift : result) shift.value = constant(shift.value);
  return result;
}

template <typename Real>
Features<Real> exponential_features(const HeadInput<Real>& of) {
  std::vector<Exponents<Real>> all;
  for (Index i = 0; i < of.length(); ++i)
    if (of.visible(i)) all.push_back(exponents_of(of.input, of.batch, of.head, i, of.options, of.precision));
  const Vector<Real> shift = shifts(all, of);
  Features<Real> result{std::vector<Vector<Real>>(to_size(of.length())), std::vector<Real>(to_size(of.length()))};
  std::size_t next = 0;
  for (Index i = 0; i < of.length(); ++i) {
    if (!of.visible(i)) continue;
    result.rows[to_size(i)] = shifted_features(all[next], shift[next], of.options, of.precision);
    result.shift[to_size(i)] = shift[next++].value;
  }
  return result;
}

/// Keys, not causal: a softmax over the visible positions for every channel.
template <typename Real>
Features<Real> softmax_over_positions(const HeadInput<Real>& of) {
  std::vector<Index> positions;
  std::vector<Vector<Real>> u;
  for (Index i = 0; i < of.length(); ++i)
    if (of.visible(i)) positions.push_back(i), u.push_back(of.projected(i));
  Features<Real> result{std::vector<Vector<Real>>(to_size(of.length())), std::vector<Real>(to_size(of.length()))};
  for (std::size_t f = 0; !u.empty() && f < u.front().size(); ++f) {
    Vector<Real> column;
    for (const Vector<Real>& row : u) column.push_back(row[f]);
    const Vector<Real> weights = softmax_of(column, of.options, of.precision);
    for (std::size_t n = 0; n < positions.size(); ++n) result.rows[to_size(positions[n])].push_back(weights[n]);
  }
  return result;
}

template <typename Real>
Vector<Real> unshifted_row(const HeadInput<Real>& of, Index position) {
  const Vector<Real> u = of.projected(position);
  if (of.options.features != FeatureMap::softmax) return plain_features(u, of.options, of.precision);
  if (of.side == FeatureSide::query) return softmax_of(u, of.options, of.precision);
  Vector<Real> powers;
  for (const Estimate<Real>& x : u)
    powers.push_back(plus(exponential(x, of.precision), epsilon_of(of.options), of.precision));
  return powers;
}

template <typename Real>
Features<Real> features_of(const HeadInput<Real>& of) {
  if (is_exponential(of.options)) return exponential_features(of);
  if (of.options.features == FeatureMap::softmax && of.side == FeatureSide::key && !of.options.causal)
    return softmax_over_positions(of);
  Features<Real> result{std::vector<Vector<Real>>(to_size(of.length())), std::vector<Real>(to_size(of.length()))};
  for (Index i = 0; i < of.length(); ++i)
    if (of.visible(i)) result.rows[to_size(i)] = unshifted_row(of, i);
  return result;
}

// ---- Attention.

/// S = sum_j phi(k_j) v_j^T, z = sum_j phi(k_j), at the shift of the newest key.
template <typename Real>
struct KeySums {
  std::vector<std::vector<Sum<Real>>> values;  // (features, value_dim)
  std::vector<Sum<Real>> keys;                 // (features)
  Real shift = 0;
  Index count = 0;

  void rescale(Real to) {
    if (to == shift) return;
    const Real factor = exp(shift - to);
    for (Sum<Real>& sum : keys) sum.scale(factor);
    for (std::vector<Sum<Real>>& row : values)
      for (Sum<Real>& sum : row) sum.scale(factor);
    shift = to;
  }

  void add(const Vector<Real>& features, Real at_shift, const Vector<Real>& value) {
    if (count++ == 0) {
      keys.resize(features.size());
      values.assign(features.size(), std::vector<Sum<Real>>(value.size()));
      shift = at_shift;
    }
    rescale(at_shift);
    for (std::size_t f = 0; f < features.size(); ++f) {
      keys[f].add(features[f]);
      for (std::size_t c = 0; c < value.size(); ++c) values[f][c].add(features[f], value[c]);
    }
  }
};

template <typename Real>
Vector<Real> row_of(const Bounded<Real>& input, Index batch, Index head, Index position) {
  Vector<Real> row;
  for (Index c = 0; c < input.extent(3); ++c) row.push_back(input(batch, head, position, c));
  return row;
}

/// phi(q_i)^T z, guarded: near the guard's threshold either branch counts as correct.
template <typename Real>
Estimate<Real> denominator(const Vector<Real>& query, const KeySums<Real>& sums, const PerformerOptions<Real>& options,
                           const Precision& precision) {
  const Estimate<Real> added{options.causal ? options.key_sum_epsilon : Real(0)};
  Sum<Real> sum;
  for (std::size_t f = 0; f < query.size(); ++f)
    sum.add(query[f], plus(sums.keys[f].rounded(precision), added, precision));
  Estimate<Real> result = sum.rounded(precision);
  const Real guard = options.denominator_guard;
  if (guard <= Real(0)) return result;
  if (abs(abs(result.value) - guard) <= result.radius) result.radius += Real(2) * guard;
  if (abs(result.value) <= guard) return plus(result, Estimate<Real>{Real(2) * guard}, precision);
  return result;
}

/// One channel of the output. Under `prefix` the shifts are not part of the definition, so that the bare numerator is
/// freed of them.
template <typename Real>
Estimate<Real> performer_output(const Vector<Real>& query, Real query_shift, const KeySums<Real>& sums,
                                std::size_t channel, const PerformerOptions<Real>& options,
                                const Precision& precision) {
  Sum<Real> numerator;
  for (std::size_t f = 0; f < query.size(); ++f) numerator.add(query[f], sums.values[f][channel].rounded(precision));
  if (options.normalize)
    return quotient(numerator.rounded(precision), denominator(query, sums, options, precision), precision);
  if (options.stabiliser != Stabiliser::prefix || !is_exponential(options)) return numerator.rounded(precision);
  const Estimate<Real> factor = exponential(Estimate<Real>{query_shift + sums.shift}, precision);
  return times(factor, numerator.rounded(precision), precision);
}

/// (batch, heads, queries, value_dim). A query without keys: 0.
template <typename Real>
Bounded<Real> performer_attention(const Bounded<Real>& query, const Bounded<Real>& key, const Bounded<Real>& value,
                                  const PerformerOptions<Real>& options, const Precision& precision) {
  Bounded<Real> out({query.extent(0), query.extent(1), query.extent(2), value.extent(3)});
  for (Index b = 0; b < query.extent(0); ++b)
    for (Index h = 0; h < query.extent(1); ++h) {
      const Index group = group_of(h, query.extent(1), key.extent(1));
      const auto queries = features_of(HeadInput<Real>{query, b, h, FeatureSide::query, options, precision});
      const auto keys = features_of(HeadInput<Real>{key, b, group, FeatureSide::key, options, precision});
      KeySums<Real> sums;
      Index next = 0;
      for (Index i = 0; i < query.extent(2); ++i) {
        const Index end = options.causal ? std::min(i + 1, key.extent(2)) : key.extent(2);
        for (; next < end; ++next)
          if (!keys.rows[to_size(next)].empty())
            sums.add(keys.rows[to_size(next)], keys.shift[to_size(next)], row_of(value, b, group, next));
        for (Index c = 0; sums.count > 0 && c < value.extent(3); ++c)
          out.set(stored(performer_output(queries.rows[to_size(i)], queries.shift[to_size(i)], sums, to_size(c),
                                          options, precision),
                         precision),
                  b, h, i, c);
      }
    }
  return out;
}

/// The map alone: (batch, heads, length, features). Padded keys: 0.
template <typename Real>
Bounded<Real> performer_features(const Bounded<Real>& input, FeatureSide side, const PerformerOptions<Real>& options,
                                 const Precision& precision) {
  const Index rows = options.projection.present() ? options.projection.extent(0) : input.extent(3);
  const bool doubled = options.features == FeatureMap::hyperbolic || options.features == FeatureMap::trigonometric;
  Bounded<Real> out({input.extent(0), input.extent(1), input.extent(2), doubled ? 2 * rows : rows});
  for (Index b = 0; b < input.extent(0); ++b)
    for (Index h = 0; h < input.extent(1); ++h) {
      const auto features = features_of(HeadInput<Real>{input, b, h, side, options, precision});
      for (Index i = 0; i < input.extent(2); ++i)
        for (std::size_t f = 0; f < features.rows[to_size(i)].size(); ++f)
          out.set(stored(features.rows[to_size(i)][f], precision), b, h, i, static_cast<Index>(f));
    }
  return out;
}

}  // namespace reference
