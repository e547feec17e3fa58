// Backward of merging: with w = exp(L_p - L), dO_p = w dO and dL_p = w (<dO, O_p - O> + dL).
#pragma once

#include "reference/gradient.hpp"
#include "reference/partial.hpp"

namespace reference {

/// One for each part; of empty parts 0.
template <typename Real>
std::vector<Partial<Real>> merge_backward(const std::vector<Partial<Real>>& parts, const OutputGradient<Real>& arrived,
                                          const Precision& precision) {
  const AttentionResult<Real> whole = merge(parts, precision);
  const Real empty = -std::numeric_limits<Real>::infinity();
  std::vector<Partial<Real>> gradients;
  for (const Partial<Real>& part : parts)
    gradients.push_back({Bounded<Real>(part.out.value.shape()), Bounded<Real>(part.lse.value.shape())});
  const Bounded<Real>& first = parts.front().out;
  for_each_row(first.extent(0), first.extent(1), first.extent(2), [&](const Row& at) {
    const auto lse_of = [&](Index p) { return parts[to_size(p)].lse(at.batch, at.head, at.query); };
    const auto logits = collect<Real>(
        static_cast<Index>(parts.size()), [&](Index p) { return !(lse_of(p).value == empty); },
        [&](Index p) {
          return Logit<Real>{p, lse_of(p).value, abs(lse_of(p).value), lse_of(p).radius};
        });
    const RecomputedWeights<Real> weights(logits, std::optional<Real>{}, 1, precision);
    const Estimate<Real> own = own_term(whole, arrived, at, precision).rounded(precision);
    for (const Logit<Real>& logit : logits) {
      const Partial<Real>& part = parts[to_size(logit.key)];
      const Estimate<Real> weight = weights.of(logit);
      Sum<Real> d_weight;
      for (Index c = 0; c < first.extent(3); ++c) {
        const Estimate<Real> d_out = arrived.out(at.batch, at.head, at.query, c);
        d_weight.add(d_out, part.out(at.batch, at.head, at.query, c));
        gradients[to_size(logit.key)].out.set(stored(times(weight, d_out, precision), precision), at.batch, at.head,
                                              at.query, c);
      }
      const Estimate<Real> difference = plus(d_weight.rounded(precision), negated(own), precision);
      gradients[to_size(logit.key)].lse.set(stored(times(weight, difference, precision), precision), at.batch, at.head,
                                            at.query);
    }
  });
  return gradients;
}

}  // namespace reference
