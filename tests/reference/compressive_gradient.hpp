// Backward of the losses of the compressive memory: the target is a constant. Mean squared: 2 (a - b) / n; the norm:
// (a - b) / |a - b|, 0 where that is 0.
#pragma once

#include "reference/attention_gradient.hpp"
#include "reference/compressive.hpp"

namespace reference {

/// Of distance(a, b) with respect to a.
template <typename Real>
Bounded<Real> distance_backward(const Bounded<Real>& a, const Bounded<Real>& b, bool mean_squared,
                                const Precision& precision) {
  const Estimate<Real> norm = distance(a, b, false, precision);
  Bounded<Real> gradient(a.value.shape());
  const Estimate<Real> count{static_cast<Real>(a.value.elements().size())};
  for (std::size_t at = 0; at < a.value.elements().size(); ++at) {
    const Estimate<Real> difference = plus(a.element(at), negated(b.element(at)), precision);
    Estimate<Real> of{Real(0)};
    if (mean_squared)
      of = quotient(times(Estimate<Real>{Real(2)}, difference, precision), count, precision);
    else if (norm.value > Real(0))
      of = quotient(difference, norm, precision);
    const Estimate<Real> kept = stored(of, precision);
    gradient.value.elements()[at] = kept.value;
    gradient.radius.elements()[at] = kept.radius;
  }
  return gradient;
}

/// With respect to the fresh keys and values.
template <typename Real>
KeysAndValues<Real> attention_reconstruction_backward(const Bounded<Real>& query, const KeysAndValues<Real>& old,
                                                      const KeysAndValues<Real>& fresh, std::optional<Real> scale,
                                                      bool mean_squared, const Precision& precision) {
  Scores<Real> content;
  content.scale = scale;
  const Bounded<Real> target = attention(query, old.key, old.value, content, {}, precision).out;
  const Bounded<Real> result = attention(query, fresh.key, fresh.value, content, {}, precision).out;
  const OutputGradient<Real> arrived{distance_backward(result, target, mean_squared, precision)};
  const auto gradients = attention_backward(query, fresh.key, fresh.value, arrived, content, {}, precision);
  return {gradients.key, gradients.value};
}

/// With respect to the decoded rows.
template <typename Real>
Bounded<Real> auto_encoding_backward(const Bounded<Real>& old, const Bounded<Real>& decoded, bool mean_squared,
                                     const Precision& precision) {
  return distance_backward(decoded, old, mean_squared, precision);
}

}  // namespace reference
