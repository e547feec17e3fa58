// One row of a softmax with its certified error: |o - o*| <= sum_j |v_j| (p_j (eta_j + etabar) + (2 g(n) + 4) u p_j +
// w) with eta_j = u (g(d) S_j + |s_j - m| + |m| + 4), etabar = sum_j p_j eta_j. Where an eta is not small its
// exponential takes its place, since then the first order no longer bounds the change of a weight.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "reference/precision.hpp"

namespace reference {

/// A score of a key that is attended, before the softmax.
template <typename Real>
struct Logit {
  Index key;
  Real value;
  Real magnitude;      // S: the sum of the magnitudes of what was summed
  Real inherited = 0;  // error of the inputs
};

template <typename Real>
struct SoftmaxRow {
  std::vector<Estimate<Real>> weights;  // beside the logits
  Estimate<Real> lse;
};

template <typename Real>
SoftmaxRow<Real> undefined_row(std::size_t keys) {
  const Real nan = std::numeric_limits<Real>::quiet_NaN();
  return {std::vector<Estimate<Real>>(keys, Estimate<Real>{nan, Real(0)}), {nan, Real(0)}};
}

/// NaN and +inf spoil their row; a row whose scores are all -inf is not empty, and is undefined.
template <typename Real>
bool is_undefined(const std::vector<Logit<Real>>& all) {
  const Real infinity = std::numeric_limits<Real>::infinity();
  bool all_sunk = true;
  for (const Logit<Real>& logit : all) {
    if (isnan(logit.value) || logit.value == infinity) return true;
    all_sunk = all_sunk && logit.value == -infinity;
  }
  return all_sunk;
}

template <typename Real>
Real largest(const std::vector<Logit<Real>>& all, Real Logit<Real>::*field) {
  Real most = all.front().*field;
  for (const Logit<Real>& logit : all) most = std::max(most, logit.*field);
  return most;
}

/// m + log sum_j exp(s_j - m)
template <typename Real>
Real log_sum_exp(const std::vector<Logit<Real>>& all) {
  const Real maximum = largest(all, &Logit<Real>::value);
  Real sum = 0;
  for (const Logit<Real>& logit : all) sum += exp(logit.value - maximum);
  return maximum + log(sum);
}

/// What a computed score may be off by, its exponential included.
template <typename Real>
Real score_error(const Logit<Real>& logit, Real maximum, Index terms, const Precision& precision) {
  const Real u = static_cast<Real>(precision.roundoff), exponential_error = 4;
  return u * (growth<Real>(terms, precision) * logit.magnitude + abs(logit.value - maximum) + abs(maximum) +
              exponential_error) +
         logit.inherited;
}

template <typename Real>
Estimate<Real> lse_estimate(const std::vector<Logit<Real>>& all, Index terms, const Precision& precision) {
  const Real u = static_cast<Real>(precision.roundoff), lse = log_sum_exp(all);
  return {lse, u * ((growth<Real>(terms, precision) + Real(2)) * largest(all, &Logit<Real>::magnitude) +
                    growth<Real>(static_cast<Index>(all.size()), precision) + abs(lse) + Real(4)) +
                   largest(all, &Logit<Real>::inherited)};
}

/// `terms`: products per score. The sink is a logit without a value: in the maximum and in the sum alone.
template <typename Real>
SoftmaxRow<Real> softmax(const std::vector<Logit<Real>>& logits, std::optional<Real> sink, Index terms,
                         const Precision& precision) {
  const Real infinity = std::numeric_limits<Real>::infinity();
  std::vector<Logit<Real>> all = logits;
  if (sink) all.push_back({-1, *sink, abs(*sink)});
  if (logits.empty() && (!sink || *sink == -infinity)) return {{}, {-infinity, Real(0)}};
  if (is_undefined(all)) return undefined_row<Real>(logits.size());

  const Real u = static_cast<Real>(precision.roundoff), w = static_cast<Real>(precision.smallest_normal);
  const Real maximum = largest(all, &Logit<Real>::value), lse = log_sum_exp(all);
  Real change_of_sum = 0;
  for (const Logit<Real>& logit : all)
    change_of_sum +=
        bounded_product(exp(logit.value - lse), expm1(score_error(logit, maximum, terms, precision)));
  const Real normaliser_error = log1p(change_of_sum);

  SoftmaxRow<Real> row;
  row.lse = lse_estimate(all, terms, precision);
  const Real sums = Real(2) * growth<Real>(static_cast<Index>(all.size()), precision) + Real(4);
  for (const Logit<Real>& logit : logits) {
    const Real weight = exp(logit.value - lse);
    const Real error = score_error(logit, maximum, terms, precision) + normaliser_error;
    const Real change = logit.value == -infinity ? Real(0) : exponential_growth(logit.value - lse, error);
    row.weights.push_back({weight, std::min(Real(1), change) + u * sums * weight + w});
  }
  return row;
}

/// sum_j p_j v_j over one channel. The weights' radii hold the roundings of this sum, too.
template <typename Real>
Estimate<Real> weighted_value(const std::vector<Logit<Real>>& logits, const SoftmaxRow<Real>& row,
                              const Bounded<Real>& value, Index batch, Index head, Index channel) {
  Sum<Real> sum;
  for (std::size_t at = 0; at < logits.size(); ++at)
    sum.add(row.weights[at], value(batch, head, logits[at].key, channel));
  return {sum.value(), sum.inherited()};
}

}  // namespace reference
