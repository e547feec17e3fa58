// Rows to fewer rows. Matrices and pooling: Linformer (Wang et al. 2020), 4; convolutions and pooling with kernel =
// stride = rate: Compressive Transformer (Rae et al. 2019), 3.1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "reference/masks.hpp"
#include "reference/precision.hpp"

namespace reference {

/// Exactly one of the first four. A tail below the rate is dropped.
template <typename Real>
struct Projection {
  Tensor<Real> matrix{};                     // (heads or 1, slots, length or more): its first columns
  Index mean_pool = 0, max_pool = 0;         // the rate
  Tensor<Real> convolution{};                // (dim out, dim in, rate), one for all heads
  Tensor<Real> slot_bias{}, channel_bias{};  // (heads or 1, slots / dim), added after projecting
};

template <typename Real>
Index rate_of(const Projection<Real>& projection) {
  if (projection.convolution.present()) return projection.convolution.extent(2);
  return std::max(projection.mean_pool, projection.max_pool);
}

template <typename Real>
Index slots_of(const Projection<Real>& projection, Index length) {
  return projection.matrix.present() ? projection.matrix.extent(1) : length / rate_of(projection);
}

template <typename Real>
Index dim_of(const Projection<Real>& projection, Index input_dim) {
  return projection.convolution.present() ? projection.convolution.extent(0) : input_dim;
}

struct Slot {
  Index batch, head, slot, channel;
};

/// sum_j E_sj x_j
template <typename Real>
Sum<Real> matrix_sum(const Bounded<Real>& input, const Tensor<Real>& matrix, const Slot& at) {
  Sum<Real> sum;
  for (Index j = 0; j < input.extent(2); ++j)
    sum.add(Estimate<Real>{matrix.repeated(at.head, at.slot, j)}, input(at.batch, at.head, j, at.channel));
  return sum;
}

/// (sum_a x_{cs + a}) / c
template <typename Real>
Estimate<Real> mean_of_group(const Bounded<Real>& input, Index rate, const Slot& at, const Precision& precision) {
  Sum<Real> sum;
  for (Index a = 0; a < rate; ++a) sum.add(input(at.batch, at.head, at.slot * rate + a, at.channel));
  return quotient(sum.rounded(precision), Estimate<Real>{static_cast<Real>(rate)}, precision);
}

/// A maximum moves by at most what one of its candidates moves. NaN stays visible.
template <typename Real>
Estimate<Real> maximum_of_group(const Bounded<Real>& input, Index rate, const Slot& at) {
  Estimate<Real> most{-std::numeric_limits<Real>::infinity()};
  for (Index a = 0; a < rate; ++a) {
    const Estimate<Real> x = input(at.batch, at.head, at.slot * rate + a, at.channel);
    most.value = isnan(x.value) || x.value > most.value ? x.value : most.value;
    most.radius = std::max(most.radius, x.radius);
  }
  return most;
}

/// sum_a W_a x_{cs + a}
template <typename Real>
Sum<Real> convolution_sum(const Bounded<Real>& input, const Tensor<Real>& weight, const Slot& at) {
  const Index rate = weight.extent(2);
  Sum<Real> sum;
  for (Index a = 0; a < rate; ++a)
    for (Index c = 0; c < weight.extent(1); ++c)
      sum.add(Estimate<Real>{weight(at.channel, c, a)}, input(at.batch, at.head, at.slot * rate + a, c));
  return sum;
}

template <typename Real>
Sum<Real> before_biases(const Bounded<Real>& input, const Projection<Real>& projection, const Slot& at,
                        const Precision& precision) {
  if (projection.matrix.present()) return matrix_sum(input, projection.matrix, at);
  if (projection.convolution.present()) return convolution_sum(input, projection.convolution, at);
  Sum<Real> sum;
  sum.add(projection.mean_pool > 0 ? mean_of_group(input, projection.mean_pool, at, precision)
                                   : maximum_of_group(input, projection.max_pool, at));
  return sum;
}

template <typename Real>
Estimate<Real> projected(const Bounded<Real>& input, const Projection<Real>& projection, const Slot& at,
                         const Precision& precision) {
  Sum<Real> sum = before_biases(input, projection, at, precision);
  const bool has_bias = projection.slot_bias.present() || projection.channel_bias.present();
  if (projection.max_pool > 0 && !has_bias) return {sum.value(), sum.inherited()};  // copied, not computed
  if (projection.slot_bias.present()) sum.add(Estimate<Real>{projection.slot_bias.repeated(at.head, at.slot)});
  if (projection.channel_bias.present()) sum.add(Estimate<Real>{projection.channel_bias.repeated(at.head, at.channel)});
  return sum.rounded(precision);
}

/// As kept in the accumulator: stored(project(...)) is the bound of the operation alone.
template <typename Real>
Bounded<Real> project(const Bounded<Real>& input, const Projection<Real>& projection, const Precision& precision) {
  Bounded<Real> output(
      {input.extent(0), input.extent(1), slots_of(projection, input.extent(2)), dim_of(projection, input.extent(3))});
  for (Index b = 0; b < output.extent(0); ++b)
    for (Index h = 0; h < output.extent(1); ++h)
      for (Index s = 0; s < output.extent(2); ++s)
        for (Index c = 0; c < output.extent(3); ++c)
          output.set(projected(input, projection, {b, h, s, c}, precision), b, h, s, c);
  return output;
}

/// The rows of padded positions as zeros, whatever they hold.
template <typename Real>
Bounded<Real> without_padding(const Bounded<Real>& input, const Tensor<std::uint8_t>& keep,
                              const std::vector<Index>& lengths) {
  Bounded<Real> output(input.value.shape());
  for (Index b = 0; b < input.extent(0); ++b)
    for (Index h = 0; h < input.extent(1); ++h)
      for (Index i = 0; i < input.extent(2); ++i)
        if (kept(keep, b, i) && exists(lengths, b, i))
          for (Index c = 0; c < input.extent(3); ++c) output.set(input(b, h, i, c), b, h, i, c);
  return output;
}

/// y = x W^T, then split: (batch, 1, length, width) -> (batch, heads, length, width out / heads).
template <typename Real>
Bounded<Real> linear_heads(const Bounded<Real>& input, const Tensor<Real>& weight, Index heads,
                           const Precision& precision) {
  const Index dim = weight.extent(0) / heads;
  Bounded<Real> output({input.extent(0), heads, input.extent(2), dim});
  for (Index b = 0; b < input.extent(0); ++b)
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < input.extent(2); ++i)
        for (Index c = 0; c < dim; ++c) {
          Sum<Real> sum;
          for (Index in = 0; in < weight.extent(1); ++in)
            sum.add(Estimate<Real>{weight(h * dim + c, in)}, input(b, Index{0}, i, in));
          output.set(sum.rounded(precision), b, h, i, c);
        }
  return output;
}

/// The rows with the largest use, as many as asked, in order of time; among equals the older.
template <typename Real>
std::vector<Index> most_used(const std::vector<Real>& use, Index count) {
  std::vector<Index> rows(use.size());
  std::iota(rows.begin(), rows.end(), Index{0});
  std::stable_sort(rows.begin(), rows.end(), [&](Index a, Index b) { return use[to_size(a)] > use[to_size(b)]; });
  rows.resize(to_size(count));
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace reference
