// SPDX-License-Identifier: Apache-2.0
/// \file
/// Differences of two tensors, of which losses are made.
#pragma once

#include "longview/detail/repeat.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

LONGVIEW_INLINE Index elements_of(const Shape<4>& shape) { return shape[0] * shape[1] * shape[2] * shape[3]; }

/// body(row of a, row of b, item, head, row) for every row.
template <typename T, typename Body>
void for_each_row(const TensorView<const T, 4>& a, const TensorView<const T, 4>& b, const Body& body) {
  for (Index i = 0; i < a.extent(0); ++i)
    for (Index j = 0; j < a.extent(1); ++j)
      for (Index k = 0; k < a.extent(2); ++k) body(element_at(a, i, j, k), element_at(b, i, j, k), i, j, k);
}

/// The sum of the squares of a - b, in double, in the order of the axes.
template <typename T>
double squared_distance(const TensorView<const T, 4>& a, const TensorView<const T, 4>& b) {
  double sum = 0;
  for_each_row(a, b, [&](const T* x, const T* y, Index, Index, Index) {
    for (Index c = 0; c < a.extent(3); ++c) {
      const double difference = static_cast<double>(x[c * a.stride(3)]) - static_cast<double>(y[c * b.stride(3)]);
      sum += difference * difference;
    }
  });
  return sum;
}

/// to = factor * (a - b), formed in double; `to` may be b itself.
template <typename T>
void scaled_difference(const TensorView<const T, 4>& a, const TensorView<const T, 4>& b, double factor,
                       const TensorView<T, 4>& to) {
  for_each_row(a, b, [&](const T* x, const T* y, Index item, Index head, Index row) {
    T* const d = element_at(to, item, head, row);
    for (Index c = 0; c < a.extent(3); ++c) {
      const double difference = static_cast<double>(x[c * a.stride(3)]) - static_cast<double>(y[c * b.stride(3)]);
      d[c * to.stride(3)] = static_cast<T>(factor * difference);
    }
  });
}

}  // namespace longview
