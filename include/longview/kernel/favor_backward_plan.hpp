// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the backward kernel of kernelised attention is told beside the forward one.
#pragma once

#include "longview/kernel/favor_plan.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

/// Not causal: `queries` and `query_sums`, or both at once, then `keys`, after the sums over keys of the forward kernel.
/// Causal: both sides in one sweep each, forwards over the queries, backwards over the keys; or in segments at once, which
/// begin with the sums that the forward kernel's `segment_keys` and `segment_queries` find. Last `maxima`, where the published
/// maximum is differentiated.
enum class FavorBackwardStep {
  queries,
  query_sums,
  queries_and_sums,
  keys,
  causal_queries,
  causal_keys,
  segment_queries,
  maxima
};

/// What the sweep over queries leaves to that over keys; all but the last (heads, queries).
template <typename T>
struct FavorNotes {
  T* offset = nullptr;        // of features_of
  T* factor = nullptr;        // of the row
  T* dot = nullptr;           // -<dO, O>, the gradient of the denominator, times the factor
  T* query_weight = nullptr;  // minus the gradient of the shift; trigonometric, published, differentiated
  T* key_weight = nullptr;    // (favor_padded(keys)): likewise
};

/// One step for one (batch, key head). Sums of queries R^T = dS^T stand in `sums`: of phi_q (dnum, dden)^T.
template <typename T>
struct FavorBackwardTask {
  FavorTask<T> forward;  // first, last: of the queries, or of the keys
  FavorBackwardStep step = FavorBackwardStep::queries;
  FavorMatrix<const T> out, d_out;
  FavorMatrix<T> d_query, d_key, d_value;
  FavorNotes<T> notes;
  T *sums = nullptr, *carry = nullptr;  // (favor_values, favor_row)
  bool differentiates_queries = false, differentiates_keys = false;  // through the published maximum
  bool keeps_projected = false;                                      // U: features alone do not tell their slope
};

/// Elements of a block of own positions for each of its lanes.
template <typename T>
constexpr Index favor_own_rows(const FavorShape<T>& shape, bool keeps_projected) {
  return shape.head_dim + shape.halves * (shape.rows + favor_padded(shape.rows)) + (keeps_projected ? shape.rows : 0) +
         2 * favor_values(shape.value_dim) + 4;
}
/// Scratch elements: rows of a chunk of one side, lanes of a chunk of the other, and the products of both. `together`: rows
/// and lanes are in use at the same time.
template <typename T>
constexpr Index favor_backward_scratch(const FavorShape<T>& shape, Index width, bool keeps_projected, bool together) {
  const Index features = shape.halves * shape.rows, values = favor_values(shape.value_dim);
  const Index rows = favor_chunk_rows * (favor_padded(shape.head_dim) + favor_row(features) + values);
  const Index pairs = shape.causal ? 2 * favor_chunk * width : 0;
  const Index lanes = favor_own_rows(shape, keeps_projected) * favor_chunk + pairs;
  return together ? rows + lanes : rows > lanes ? rows : lanes;
}

}  // namespace longview::inline v0::inline LONGVIEW_BUILD::kernel
