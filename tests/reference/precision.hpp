// Forward error bounds beside every value. Source: the running error analysis of Higham, Accuracy and Stability of
// Numerical Algorithms (2nd ed.), 3.1 and 3.3; sqrt(n) in place of n after Higham and Mary (2019), "A new approach to
// probabilistic rounding error analysis".
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "reference/tensor.hpp"

namespace reference {

// Unqualified in what follows, so that numbers that carry derivatives take part.
using std::abs, std::ceil, std::cos, std::exp, std::expm1, std::isfinite, std::isinf, std::isnan, std::log, std::log1p,
    std::pow, std::sin, std::sqrt, std::tanh;

/// The arithmetic whose results are judged; the reference itself is evaluated in something finer.
struct Precision {
  double roundoff;           // of the accumulator: 2^-24 for float
  double smallest_normal;    // of the accumulator; weights below it may be 0
  double largest;            // of the accumulator; scores beyond it are infinite
  double storage_roundoff;   // of the outputs' type
  double storage_subnormal;  // its smallest positive number
  bool worst_case = false;   // n + 2 in place of sqrt(n): never to be exceeded, however unlucky the signs
};

constexpr Precision float_kernel() {
  using Limits = std::numeric_limits<float>;
  return {0x1p-24, double{Limits::min()}, double{Limits::max()}, 0x1p-24, double{Limits::denorm_min()}};
}
constexpr Precision double_kernel() {
  using Limits = std::numeric_limits<double>;
  return {0x1p-53, Limits::min(), Limits::max(), 0x1p-53, Limits::denorm_min()};
}
constexpr Precision with_storage(Precision precision, double roundoff, double subnormal) {
  precision.storage_roundoff = roundoff;
  precision.storage_subnormal = subnormal;
  return precision;
}
constexpr Precision bfloat16_kernel() { return with_storage(float_kernel(), 0x1p-8, 0x1p-133); }
constexpr Precision float16_kernel() { return with_storage(float_kernel(), 0x1p-11, 0x1p-24); }
constexpr Precision worst_case(Precision precision) {
  precision.worst_case = true;
  return precision;
}

/// Roundoffs that a sum of so many terms collects, relative to the sum of their magnitudes.
template <typename Real>
Real growth(Index terms, const Precision& precision) {
  const Real n = static_cast<Real>(terms);
  return precision.worst_case ? n + Real(2) : sqrt(n);
}

/// A product in which 0 wins over infinity: nothing multiplied by an unbounded error is nothing.
template <typename Real>
Real bounded_product(Real a, Real b) {
  return a == Real(0) || b == Real(0) ? Real(0) : a * b;
}

/// The same number, through which no derivative goes.
template <typename Real>
Real constant(const Real& x) {
  return x;
}

/// A value, and how far a correct computation in `Precision` may be from it.
template <typename Real>
struct Estimate {
  Real value = 0, radius = 0;
};

template <typename Real>
using Vector = std::vector<Estimate<Real>>;

/// A sum of products with what its factors bring along.
template <typename Real>
class Sum {
 public:
  void add(const Estimate<Real>& a, const Estimate<Real>& b) {
    const Real term = a.value * b.value;
    value_ += term;
    magnitude_ += abs(term);
    inherited_ += bounded_product(a.radius, abs(b.value)) + bounded_product(b.radius, abs(a.value)) +
                  bounded_product(a.radius, b.radius);
    ++terms_;
  }
  void add(const Estimate<Real>& term) { add(term, Estimate<Real>{Real(1)}); }
  /// Exact, as a power of two is.
  void scale(Real factor) {
    value_ *= factor;
    magnitude_ *= abs(factor);
    inherited_ = bounded_product(inherited_, abs(factor));
  }

  Real value() const { return value_; }
  Real magnitude() const { return magnitude_; }
  Real inherited() const { return inherited_; }
  Index terms() const { return terms_; }

  Estimate<Real> rounded(const Precision& precision) const {
    const Real u = static_cast<Real>(precision.roundoff);
    return {value_, inherited_ + u * growth<Real>(terms_, precision) * magnitude_};
  }

 private:
  Real value_ = 0, magnitude_ = 0, inherited_ = 0;
  Index terms_ = 0;
};

template <typename Real>
Estimate<Real> plus(const Estimate<Real>& a, const Estimate<Real>& b, const Precision& precision) {
  Sum<Real> sum;
  sum.add(a);
  sum.add(b);
  return sum.rounded(precision);
}

template <typename Real>
Estimate<Real> negated(const Estimate<Real>& a) {
  return {-a.value, a.radius};
}

template <typename Real>
Estimate<Real> times(const Estimate<Real>& a, const Estimate<Real>& b, const Precision& precision) {
  Sum<Real> sum;
  sum.add(a, b);
  return sum.rounded(precision);
}

/// exp(log_value + by) - exp(log_value): exact also where `by` is not small.
template <typename Real>
Real exponential_growth(Real log_value, Real by) {
  const Real value = exp(log_value);
  return by < Real(1) ? bounded_product(value, expm1(by)) : exp(log_value + by) - value;
}

/// An exponential of at most 1 ulp, its argument reduced with an error of |x| roundoffs; below the smallest normal, 0.
template <typename Real>
Estimate<Real> exponential(const Estimate<Real>& x, const Precision& precision) {
  const Real u = static_cast<Real>(precision.roundoff), w = static_cast<Real>(precision.smallest_normal);
  if (x.value == -std::numeric_limits<Real>::infinity()) return {Real(0), Real(0)};
  return {exp(x.value), exponential_growth(x.value, x.radius + u * (abs(x.value) + Real(4))) + w};
}

template <typename Real>
Estimate<Real> quotient(const Estimate<Real>& a, const Estimate<Real>& b, const Precision& precision) {
  const Real u = static_cast<Real>(precision.roundoff);
  const Real value = a.value / b.value, least = abs(b.value) - b.radius;
  if (!(least > Real(0))) return {value, std::numeric_limits<Real>::infinity()};
  return {value, (a.radius + bounded_product(abs(value), b.radius)) / least + u * abs(value)};
}

/// What rounding to the outputs' type adds.
template <typename Real>
Estimate<Real> stored(const Estimate<Real>& x, const Precision& precision) {
  return {x.value, x.radius + static_cast<Real>(precision.storage_roundoff) * abs(x.value) +
                       static_cast<Real>(precision.storage_subnormal) / Real(2)};
}

/// A tensor of estimates. As an input: `radius` absent means exact. As a result: `radius` is the certified bound.
template <typename Real>
struct Bounded {
  Tensor<Real> value, radius;

  Bounded() = default;
  Bounded(Tensor<Real> exact) : value(std::move(exact)) {}  // every tensor is also an exact input
  explicit Bounded(const std::vector<Index>& shape) : value(shape), radius(shape) {}

  bool present() const { return value.present(); }
  Index extent(Index axis) const { return value.extent(axis); }
  template <typename... At>
  Estimate<Real> operator()(At... at) const {
    return {value(at...), radius.present() ? radius(at...) : Real(0)};
  }
  /// By its place in row-major order.
  Estimate<Real> element(std::size_t at) const {
    return {value.elements()[at], radius.present() ? radius.elements()[at] : Real(0)};
  }
  template <typename... At>
  void set(const Estimate<Real>& x, At... at) {
    value(at...) = x.value;
    radius(at...) = x.radius;
  }
};

template <typename Real>
Bounded<Real> stored(const Bounded<Real>& input, const Precision& precision) {
  Bounded<Real> output(input.value.shape());
  for (std::size_t at = 0; at < input.value.elements().size(); ++at) {
    const Estimate<Real> rounded = stored(input.element(at), precision);
    output.value.elements()[at] = rounded.value;
    output.radius.elements()[at] = rounded.radius;
  }
  return output;
}

template <typename Real>
Tensor<Real> radius_of(const Bounded<Real>& input) {
  return input.radius.present() ? input.radius : Tensor<Real>(input.value.shape());
}

template <typename Real>
Bounded<Real> slice_rows(const Bounded<Real>& input, Index first, Index count) {
  Bounded<Real> rows(slice_rows(input.value, first, count));
  if (input.radius.present()) rows.radius = slice_rows(input.radius, first, count);
  return rows;
}

template <typename Real>
Bounded<Real> join_rows(const Bounded<Real>& older, const Bounded<Real>& newer) {
  Bounded<Real> rows(join_rows(older.value, newer.value));
  rows.radius = join_rows(radius_of(older), radius_of(newer));
  return rows;
}

/// The test of a result: NaN where NaN is expected, the same infinity, or within the radius.
template <typename Real, typename Got>
bool agrees(const Estimate<Real>& expected, Got got) {
  const Real result = static_cast<Real>(got);
  if (isnan(expected.value)) return isnan(result);
  if (isinf(expected.value)) return result == expected.value;
  return abs(result - expected.value) <= expected.radius;
}

}  // namespace reference
