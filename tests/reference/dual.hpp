// Numbers that carry a derivative: the definitions evaluated with them give directional derivatives without any formula
// for gradients. Griewank and Walther, Evaluating Derivatives (2nd ed.), 3.1.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

namespace reference {

struct Dual {
  double value = 0, slope = 0;

  Dual() = default;
  template <typename Number>
  requires std::is_arithmetic_v<Number> Dual(Number number) : value(static_cast<double>(number)) {}
  Dual(double of, double with_slope) : value(of), slope(with_slope) {}

  Dual& operator+=(const Dual& b) { return *this = {value + b.value, slope + b.slope}; }
  Dual& operator-=(const Dual& b) { return *this = {value - b.value, slope - b.slope}; }
  Dual& operator*=(const Dual& b) { return *this = {value * b.value, slope * b.value + value * b.slope}; }
  Dual& operator/=(const Dual& b) { return *this = {value / b.value, (slope - value / b.value * b.slope) / b.value}; }
  friend Dual operator+(Dual a, const Dual& b) { return a += b; }
  friend Dual operator-(Dual a, const Dual& b) { return a -= b; }
  friend Dual operator*(Dual a, const Dual& b) { return a *= b; }
  friend Dual operator/(Dual a, const Dual& b) { return a /= b; }
  friend Dual operator-(const Dual& a) { return {-a.value, -a.slope}; }
  friend bool operator==(const Dual& a, const Dual& b) { return a.value == b.value; }
  friend auto operator<=>(const Dual& a, const Dual& b) { return a.value <=> b.value; }
};

inline Dual constant(const Dual& x) { return {x.value, 0}; }

inline Dual abs(const Dual& x) { return {std::abs(x.value), x.value < 0 ? -x.slope : x.slope}; }
inline Dual exp(const Dual& x) { return {std::exp(x.value), std::exp(x.value) * x.slope}; }
inline Dual expm1(const Dual& x) { return {std::expm1(x.value), std::exp(x.value) * x.slope}; }
inline Dual log(const Dual& x) { return {std::log(x.value), x.slope / x.value}; }
inline Dual log1p(const Dual& x) { return {std::log1p(x.value), x.slope / (1 + x.value)}; }
inline Dual sqrt(const Dual& x) { return {std::sqrt(x.value), x.slope / (2 * std::sqrt(x.value))}; }
inline Dual sin(const Dual& x) { return {std::sin(x.value), std::cos(x.value) * x.slope}; }
inline Dual cos(const Dual& x) { return {std::cos(x.value), -std::sin(x.value) * x.slope}; }
inline Dual tanh(const Dual& x) {
  const double t = std::tanh(x.value);
  return {t, (1 - t * t) * x.slope};
}
inline Dual ceil(const Dual& x) { return {std::ceil(x.value), 0}; }
/// Of constant exponents.
inline Dual pow(const Dual& x, const Dual& y) {
  return {std::pow(x.value, y.value), y.value * std::pow(x.value, y.value - 1) * x.slope};
}
inline bool isnan(const Dual& x) { return std::isnan(x.value); }
inline bool isinf(const Dual& x) { return std::isinf(x.value); }
inline bool isfinite(const Dual& x) { return std::isfinite(x.value); }

}  // namespace reference

template <>
struct std::numeric_limits<reference::Dual> {
  static constexpr bool is_specialized = true;
  static reference::Dual infinity() { return {std::numeric_limits<double>::infinity(), 0}; }
  static reference::Dual quiet_NaN() { return {std::numeric_limits<double>::quiet_NaN(), 0}; }
};
