// The backward pass of one row of attention: dS = P (dP - D + dL), D = <dO, O>. FlashAttention-2 (Dao 2023),
// section 2.3 and Algorithm 2; the gradient dL of the log-sum-exp adds to -D, a sink is one more column of P without a
// value.
#pragma once

#include <optional>
#include <vector>

#include "reference/attention.hpp"

namespace reference {

/// What arrives: the gradients of `out` and, where the loss depends on it, of `lse`.
template <typename Real>
struct OutputGradient {
  Bounded<Real> out, lse{};
};

/// One sum for each element of a gradient.
template <typename Real>
using Sums = Tensor<Sum<Real>>;

template <typename Real>
Bounded<Real> stored(const Sums<Real>& sums, const Precision& precision) {
  Bounded<Real> gradient(sums.shape());
  for (std::size_t at = 0; at < sums.elements().size(); ++at) {
    const Estimate<Real> sum = stored(sums.elements()[at].rounded(precision), precision);
    gradient.value.elements()[at] = sum.value;
    gradient.radius.elements()[at] = sum.radius;
  }
  return gradient;
}

/// Sums of the shape of a tensor; absent where that is.
template <typename Real, typename Element>
Sums<Real> sums_like(const Tensor<Element>& tensor) {
  return tensor.present() ? Sums<Real>(tensor.shape()) : Sums<Real>();
}

/// exp(s - L) with the stored L: the error of the score, of the sum behind L, and of rounding L twice.
template <typename Real>
class RecomputedWeights {
 public:
  RecomputedWeights(const std::vector<Logit<Real>>& logits, std::optional<Real> sink, Index terms,
                    const Precision& precision)
      : terms_(terms), precision_(precision) {
    std::vector<Logit<Real>> all = logits;
    if (sink) all.push_back({-1, *sink, abs(*sink)});
    undefined_ = all.empty() || is_undefined(all);
    if (undefined_) return;
    const Real u = static_cast<Real>(precision.roundoff), maximum = largest(all, &Logit<Real>::value);
    lse_ = log_sum_exp(all);
    Real change = 0;
    for (const Logit<Real>& logit : all)
      change += bounded_product(exp(logit.value - lse_), expm1(score_error(logit, maximum, terms, precision)));
    lse_error_ = log1p(change) + u * (growth<Real>(static_cast<Index>(all.size()), precision) + abs(lse_) + Real(4));
  }

  Estimate<Real> of(const Logit<Real>& logit) const {
    if (undefined_) return {std::numeric_limits<Real>::quiet_NaN()};
    if (logit.value == -std::numeric_limits<Real>::infinity()) return {Real(0)};
    const Real u = static_cast<Real>(precision_.roundoff), log_weight = logit.value - lse_;
    const Real error =
        u * (growth<Real>(terms_, precision_) * logit.magnitude + abs(log_weight) + abs(lse_) + Real(4)) +
        logit.inherited + lse_error_;
    return {exp(log_weight), exponential_growth(log_weight, error) + static_cast<Real>(precision_.smallest_normal)};
  }
  Estimate<Real> of_sink(Real sink) const { return of(Logit<Real>{-1, sink, abs(sink)}); }

 private:
  Index terms_;
  Precision precision_;
  bool undefined_ = false;
  Real lse_ = 0, lse_error_ = 0;
};

/// d s / d s0 = 1 - tanh(s0 / cap)^2 of the scaled score s0. The hyperbolic tangent is off by four roundings and by
/// what its argument is off.
template <typename Real>
Estimate<Real> softcap_slope(const Sum<Real>& product, const Scores<Real>& scores, Real scale, Index terms,
                             const Precision& precision) {
  if (!scores.softcap) return {Real(1)};
  const Real u = static_cast<Real>(precision.roundoff), cap = *scores.softcap;
  const Real t = tanh(scale * product.value() / cap), slope = Real(1) - t * t;
  const Real argument = (u * (growth<Real>(terms, precision) + Real(2)) * abs(scale) * product.magnitude() +
                         bounded_product(abs(scale), product.inherited())) /
                        abs(cap);
  const Real error = std::min(argument, Real(2)) * (slope + std::min(argument, Real(2))) + Real(4) * u * abs(t);
  return {slope, std::min(Real(1), Real(2) * abs(t) * error + error * error) + u * slope};
}

/// Sums of the gradients of what scores are made of besides products.
template <typename Real>
struct ScoreSums {
  Sums<Real> bias, alibi_slopes, sinks;

  explicit ScoreSums(const Scores<Real>& scores) : bias(sums_like<Real>(scores.bias)) {
    if (!scores.alibi_slopes.empty()) alibi_slopes = Sums<Real>({static_cast<Index>(scores.alibi_slopes.size())});
    if (!scores.sinks.empty()) sinks = Sums<Real>({static_cast<Index>(scores.sinks.size())});
  }
};

template <typename Real>
struct ScoreGradients {
  Bounded<Real> bias, alibi_slopes, sinks;  // present where the scores have them
};

template <typename Real>
ScoreGradients<Real> stored(const ScoreSums<Real>& sums, const Precision& precision) {
  const auto finished = [&](const Sums<Real>& of) { return of.present() ? stored(of, precision) : Bounded<Real>(); };
  return {finished(sums.bias), finished(sums.alibi_slopes), finished(sums.sinks)};
}

/// A row to be differentiated. product_of(j) is what the scale multiplies in its score of key j; `terms` products each.
template <typename Real, typename ProductOf>
struct RowProblem {
  Row at;
  const std::vector<Logit<Real>>& logits;
  ProductOf product_of;
  const Scores<Real>& scores;
  std::optional<Real> sink;
  Real scale;
  Index terms;
  const Bounded<Real>& value;
};

/// <dO_i, O_i> - dL_i
template <typename Real>
Sum<Real> own_term(const AttentionResult<Real>& forward, const OutputGradient<Real>& arrived, const Row& at,
                   const Precision& precision) {
  Sum<Real> product, term;
  for (Index c = 0; c < forward.out.extent(3); ++c)
    product.add(arrived.out(at.batch, at.head, at.query, c), forward.out(at.batch, at.head, at.query, c));
  term.add(product.rounded(precision));
  if (arrived.lse.present()) term.add(negated(arrived.lse(at.batch, at.head, at.query)));
  return term;
}

/// Adds to the gradients of values and scores; returns those of the products, beside the logits.
template <typename Real, typename ProductOf>
Vector<Real> differentiate_row(const RowProblem<Real, ProductOf>& row, const AttentionResult<Real>& forward,
                               const OutputGradient<Real>& arrived, Sums<Real>& d_value, ScoreSums<Real>& d_scores,
                               const Precision& precision) {
  const Row& at = row.at;
  const RecomputedWeights<Real> weights(row.logits, row.sink, row.terms, precision);
  const Estimate<Real> own = own_term(forward, arrived, at, precision).rounded(precision);
  const Index group = group_of(at.head, forward.out.extent(1), row.value.extent(1));
  Vector<Real> d_products;
  for (const Logit<Real>& logit : row.logits) {
    const Estimate<Real> weight = weights.of(logit);
    const Estimate<Real> kept = dropped_out(weight, row.scores, at, logit.key, precision);
    Sum<Real> d_weight;
    for (Index c = 0; c < row.value.extent(3); ++c) {
      const Estimate<Real> d_out = arrived.out(at.batch, at.head, at.query, c);
      d_weight.add(d_out, row.value(at.batch, group, logit.key, c));
      d_value(at.batch, group, logit.key, c).add(kept, d_out);
    }
    const Estimate<Real> d_kept = dropped_out(d_weight.rounded(precision), row.scores, at, logit.key, precision);
    const Estimate<Real> d_score = times(weight, plus(d_kept, negated(own), precision), precision);
    if (d_scores.bias.present()) d_scores.bias.repeated(at.batch, at.head, at.query, logit.key).add(d_score);
    if (d_scores.alibi_slopes.present()) {
      const Real distance = static_cast<Real>(abs(at.query + row.scores.offset - logit.key));
      d_scores.alibi_slopes(at.head).add(d_score, Estimate<Real>{-distance});
    }
    const Estimate<Real> slope = softcap_slope(row.product_of(logit.key), row.scores, row.scale, row.terms, precision);
    d_products.push_back(times(Estimate<Real>{row.scale}, times(d_score, slope, precision), precision));
  }
  if (row.sink && d_scores.sinks.present())
    d_scores.sinks(at.head).add(times(weights.of_sink(*row.sink), negated(own), precision));
  return d_products;
}

}  // namespace reference
