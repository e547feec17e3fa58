// Merging partial results (O, LSE): L = log sum exp(L_p), O = sum exp(L_p - L) O_p. Online normalizer calculation for
// softmax (Milakov and Gimelshein 2018), section 3; FlashAttention (Dao et al. 2022), 3.1. It is a softmax over parts.
#pragma once

#include <vector>

#include "reference/attention.hpp"

namespace reference {

template <typename Real>
struct Partial {
  Bounded<Real> out, lse;
};

/// A part with LSE = -inf is empty: what its `out` holds is invisible.
template <typename Real>
AttentionResult<Real> merge(const std::vector<Partial<Real>>& parts, const Precision& precision) {
  const Bounded<Real>& first = parts.front().out;
  const Real empty = -std::numeric_limits<Real>::infinity();
  AttentionResult<Real> result(first.extent(0), first.extent(1), first.extent(2), first.extent(3));
  for_each_row(first.extent(0), first.extent(1), first.extent(2), [&](const Row& at) {
    const auto lse_of = [&](Index p) { return parts[to_size(p)].lse(at.batch, at.head, at.query); };
    const auto logits = collect<Real>(
        static_cast<Index>(parts.size()), [&](Index p) { return !(lse_of(p).value == empty); },
        [&](Index p) {
          return Logit<Real>{p, lse_of(p).value, abs(lse_of(p).value), lse_of(p).radius};
        });
    const SoftmaxRow<Real> row = softmax(logits, std::optional<Real>{}, 1, precision);
    result.lse.set(row.lse, at.batch, at.head, at.query);
    for (Index c = 0; c < first.extent(3); ++c) {
      Sum<Real> sum;
      for (std::size_t n = 0; n < logits.size(); ++n)
        sum.add(row.weights[n], parts[to_size(logits[n].key)].out(at.batch, at.head, at.query, c));
      result.out.set(stored(Estimate<Real>{sum.value(), sum.inherited()}, precision), at.batch, at.head, at.query, c);
    }
  });
  return result;
}

}  // namespace reference
