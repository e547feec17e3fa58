// Backward of projections: dX = E^T dY, dE = dY X^T; a mean spreads its gradient, a maximum sends it to its first
// largest row, a convolution goes back through the transposes of its taps.
#pragma once

#include "reference/gradient.hpp"
#include "reference/projection.hpp"

namespace reference {

/// Present where the projection has them, the input always.
template <typename Real>
struct ProjectionGradients {
  Bounded<Real> input, matrix, convolution, slot_bias, channel_bias;
};

template <typename Real>
struct ProjectionSums {
  Sums<Real> input, matrix, convolution, slot_bias, channel_bias;

  ProjectionSums(const Bounded<Real>& from, const Projection<Real>& projection)
      : input(from.value.shape()),
        matrix(sums_like<Real>(projection.matrix)),
        convolution(sums_like<Real>(projection.convolution)),
        slot_bias(sums_like<Real>(projection.slot_bias)),
        channel_bias(sums_like<Real>(projection.channel_bias)) {}

  ProjectionGradients<Real> finished(const Precision& precision) const {
    const auto one = [&](const Sums<Real>& of) { return of.present() ? stored(of, precision) : Bounded<Real>(); };
    return {one(input), one(matrix), one(convolution), one(slot_bias), one(channel_bias)};
  }
};

/// The first of the largest rows of a group; NaN wins, as in the maximum.
template <typename Real>
Index row_of_maximum(const Bounded<Real>& input, Index rate, const Slot& at) {
  const auto value_of = [&](Index row) { return input(at.batch, at.head, row, at.channel).value; };
  Index most = at.slot * rate;
  for (Index row = most + 1; row < (at.slot + 1) * rate; ++row)
    if (value_of(row) > value_of(most) || (isnan(value_of(row)) && !isnan(value_of(most)))) most = row;
  return most;
}

/// What one element of the output sends back.
template <typename Real>
void send_back(const Bounded<Real>& input, const Projection<Real>& projection, const Slot& at,
               const Estimate<Real>& d_out, ProjectionSums<Real>& to, const Precision& precision) {
  const Index rate = rate_of(projection), first = at.slot * rate;
  if (projection.matrix.present())
    for (Index j = 0; j < input.extent(2); ++j) {
      const Estimate<Real> weight{projection.matrix.repeated(at.head, at.slot, j)};
      to.input(at.batch, at.head, j, at.channel).add(weight, d_out);
      to.matrix.repeated(at.head, at.slot, j).add(input(at.batch, at.head, j, at.channel), d_out);
    }
  if (projection.mean_pool > 0)
    for (Index a = 0; a < rate; ++a)
      to.input(at.batch, at.head, first + a, at.channel)
          .add(quotient(d_out, Estimate<Real>{static_cast<Real>(rate)}, precision));
  if (projection.max_pool > 0) to.input(at.batch, at.head, row_of_maximum(input, rate, at), at.channel).add(d_out);
  if (projection.convolution.present())
    for (Index a = 0; a < rate; ++a)
      for (Index c = 0; c < input.extent(3); ++c) {
        const Estimate<Real> weight{projection.convolution(at.channel, c, a)};
        to.input(at.batch, at.head, first + a, c).add(weight, d_out);
        to.convolution(at.channel, c, a).add(input(at.batch, at.head, first + a, c), d_out);
      }
  if (to.slot_bias.present()) to.slot_bias.repeated(at.head, at.slot).add(d_out);
  if (to.channel_bias.present()) to.channel_bias.repeated(at.head, at.channel).add(d_out);
}

/// Adds to `to`, so that two inputs may share one projection.
template <typename Real>
void project_backward(const Bounded<Real>& input, const Bounded<Real>& d_out, const Projection<Real>& projection,
                      ProjectionSums<Real>& to, const Precision& precision) {
  for (Index b = 0; b < d_out.extent(0); ++b)
    for (Index h = 0; h < d_out.extent(1); ++h)
      for (Index s = 0; s < d_out.extent(2); ++s)
        for (Index c = 0; c < d_out.extent(3); ++c)
          send_back(input, projection, {b, h, s, c}, d_out(b, h, s, c), to, precision);
}

template <typename Real>
ProjectionGradients<Real> project_backward(const Bounded<Real>& input, const Bounded<Real>& d_out,
                                           const Projection<Real>& projection, const Precision& precision) {
  ProjectionSums<Real> sums(input, projection);
  project_backward(input, d_out, projection, sums, precision);
  return sums.finished(precision);
}

/// Of linear_heads: dX += dY W, summed over the heads.
template <typename Real>
void linear_heads_backward(const Bounded<Real>& d_out, const Tensor<Real>& weight, Sums<Real>& d_input) {
  const Index dim = d_out.extent(3);
  for (Index b = 0; b < d_out.extent(0); ++b)
    for (Index h = 0; h < d_out.extent(1); ++h)
      for (Index i = 0; i < d_out.extent(2); ++i)
        for (Index c = 0; c < dim; ++c)
          for (Index in = 0; in < weight.extent(1); ++in)
            d_input(b, Index{0}, i, in).add(d_out(b, h, i, c), Estimate<Real>{weight(h * dim + c, in)});
}

}  // namespace reference
