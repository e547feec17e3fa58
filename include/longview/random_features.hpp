// SPDX-License-Identifier: Apache-2.0
/// \file
/// Draws the projection of performer_attention.
///
/// Source: Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794, sections 2.4 and 3.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "longview/detail/contract_check.hpp"
#include "longview/detail/random.hpp"

namespace longview::inline v0 {

/// The law of the rows w_t of the projection; D = head_dim. Orthogonal: within rows 0 to D - 1, within D to 2D - 1, ...
enum class RandomFeatures {
  orthogonal,   ///< orthogonal, every one N(0, I): unbiased for exp(<q, k>), with less variance than independent rows
  regularised,  ///< orthogonal, of length sqrt(D): a kernel of its own, at most exp(<q, k>)
  independent,  ///< independent, N(0, I)
};

inline namespace LONGVIEW_BUILD {
namespace detail {

/// Up to dim orthonormal rows, uniformly distributed: Householder QR of a normal matrix, one chain per sum.
class OrthogonalBlock {
 public:
  OrthogonalBlock(Index dim, Index most_rows)
      : dim_(dim), vectors_(static_cast<std::size_t>(dim * most_rows)), factors_(static_cast<std::size_t>(most_rows)) {}

  /// The rows first, first + 1, ... of a matrix whose element (t, i) is the normal number t * dim + i.
  void draw(std::uint64_t seed, Index first, Index rows) {
    const auto start = static_cast<std::uint64_t>(first) * static_cast<std::uint64_t>(dim_);
    const auto count = static_cast<std::size_t>(rows * dim_);
    for (std::size_t i = 0; i < count; ++i) vectors_[i] = Rounded(normal(seed, Stream::feature_rows, start + i));
    reflections_ = (std::min)(rows, dim_ - 1);
    for (Index k = 0; k < reflections_; ++k) {
      eliminate(k);
      for (Index row = k + 1; row < rows; ++row) reflect(k, vector(row));
    }
  }

  /// Row t of Q^T, with the sign that makes the diagonal of R positive. Householder's own signs would turn row t away
  /// from axis t, and the estimator would be biased (Mezzadri, arXiv:math-ph/0609050).
  void row(Index t, std::vector<Rounded>& out) {
    const bool negative = vector(t)[t] < Rounded(0), reflected = t < reflections_;
    std::fill(out.begin(), out.end(), Rounded(0));
    out[static_cast<std::size_t>(t)] = Rounded(negative == reflected ? 1 : -1);
    for (Index k = (std::min)(t + 1, reflections_); k-- > 0;) reflect(k, out.data());
  }

 private:
  Rounded* vector(Index row) { return vectors_.data() + row * dim_; }

  /// Row k becomes v of the reflection x -> x - f <v, x> v that leaves it nothing behind axis k.
  void eliminate(Index k) {
    Rounded* const v = vector(k);
    Rounded squares;
    for (Index i = k; i < dim_; ++i) squares = squares + v[i] * v[i];
    const Rounded length = sqrt(squares), head = v[k];
    const bool negative = head < Rounded(0);
    v[k] = negative ? head - length : head + length;
    const Rounded half = length * (negative ? length - head : length + head);
    factors_[static_cast<std::size_t>(k)] = Rounded(1) / half;
  }

  void reflect(Index k, Rounded* x) {
    const Rounded* const v = vector(k);
    Rounded product;
    for (Index i = k; i < dim_; ++i) product = product + v[i] * x[i];
    const Rounded amount = factors_[static_cast<std::size_t>(k)] * product;
    for (Index i = k; i < dim_; ++i) x[i] = x[i] - amount * v[i];
  }

  Index dim_, reflections_ = 0;
  std::vector<Rounded> vectors_, factors_;
};

/// The length of row t: sqrt(dim), or that of a normal vector of its own.
inline Rounded feature_length(std::uint64_t seed, Index t, Index dim, RandomFeatures kind) {
  if (kind == RandomFeatures::regularised) return sqrt(Rounded(static_cast<double>(dim)));
  const auto start = static_cast<std::uint64_t>(t) * static_cast<std::uint64_t>(dim);
  Rounded squares;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(dim); ++i) {
    const Rounded x(normal(seed, Stream::feature_lengths, start + i));
    squares = squares + x * x;
  }
  return sqrt(squares);
}

template <Storage T>
void draw_independent(TensorView<T, 2> projection, std::uint64_t seed) {
  std::uint64_t index = 0;
  for (Index t = 0; t < projection.extent(0); ++t)
    for (Index i = 0; i < projection.extent(1); ++i)
      projection(t, i) = static_cast<T>(static_cast<Compute<T>>(normal(seed, Stream::feature_rows, index++)));
}

template <Storage T>
void draw_orthogonal(TensorView<T, 2> projection, std::uint64_t seed, RandomFeatures kind) {
  const Index rows = projection.extent(0), dim = projection.extent(1);
  OrthogonalBlock block(dim, (std::min)(rows, dim));
  std::vector<Rounded> row(static_cast<std::size_t>(dim));
  const DoublePrecision precision;
  for (Index t = 0; t < rows; ++t) {
    if (t % dim == 0) block.draw(seed, t, (std::min)(dim, rows - t));
    block.row(t % dim, row);
    const Rounded length = feature_length(seed, t, dim, kind);
    for (Index i = 0; i < dim; ++i)
      projection(t, i) = static_cast<T>(static_cast<Compute<T>>((length * row[static_cast<std::size_t>(i)]).value()));
  }
}

}  // namespace detail

/// projection[t, :] = w_t, with E exp(<w_t, x> - <x, x>/2) exp(<w_t, y> - <y, y>/2) = exp(<x, y>) unless `regularised`.
///
/// `projection`: (rows, head_dim), any strides. ContractError where an extent is below 1 or elements overlap, SizeError
/// where byte counts do not fit. The values depend on seed, kind and head_dim alone, not on platform, compiler or flags
/// (but for those that make every quotient or root an approximation, -mlow-precision-div): formed in double, rounded to
/// T at the end. Fewer rows are the first ones of more. Work: a normal number per element, two if `orthogonal`, and for
/// the orthogonal kinds about 3 rows head_dim min(rows, head_dim) operations. Scratch of these, from the heap:
/// (head_dim + 1) (min(rows, head_dim) + 1) doubles. On i386 they set the x87 precision while they run.
template <Storage T>
void random_features(TensorView<T, 2> projection, std::uint64_t seed, RandomFeatures kind = {}) {
  const Run run;
  detail::Contract contract("random_features", run);
  const Index rows = projection.extent(0), dim = projection.extent(1);
  contract.output("projection", projection);
  contract.at_least("projection", "head_dim", dim, 1);
  contract.at_least("projection", "features", rows, 1);
  Index working = 0;
  if (contract.ok() && !(detail::multiply(dim, (std::min)(rows, dim), working) &&
                         detail::multiply(working, static_cast<Index>(sizeof(double)), working)))
    contract.fail("projection", "byte count of the working memory overflows", true);
  if (!contract.accepted()) return;
  if (kind == RandomFeatures::independent) return detail::draw_independent(projection, seed);
  detail::draw_orthogonal(projection, seed, kind);
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
