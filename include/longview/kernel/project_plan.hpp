// SPDX-License-Identifier: Apache-2.0
/// \file
/// A projection of rows to fewer rows, as data.
#pragma once

#include <cstdint>

#include "longview/tensor_view.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

enum class ProjectionKind { product, mean, maximum, mean_gradient, maximum_gradient };

/// A block of rows r and columns c of one projected head, or of a gradient.
///
/// product: out[r][c] = sum over items, heads, g, i of scalar(r, g, i) * vector(g, i, c), one chain of fused
/// multiply-adds in this order, beginning with what out holds if it `adds`; mean and maximum: of vector(r, i, c) over
/// i. Then the biases are added. Term (r, g, i) stands for row r * input_row + g * input_group + i * input_term +
/// c * input_column of the input. Rows from `length` on, or with a zero in `keep`, count as zeros and are not read;
/// where all terms of a row or of a column stand for one row of the input, they join no sum.
///
/// Gradients of the pools: out[r][i][c] = scalar(r, c) / terms, or scalar(r, c) for the first i whose vector(r, i, c)
/// is the maximum or NaN, and zero for the others and for rows that are left out.
template <typename T>
struct ProjectionTask {
  ProjectionKind kind = ProjectionKind::product;
  Index rows = 0, columns = 0, groups = 1, terms = 0;
  const T *scalar = nullptr, *vector = nullptr;
  Index scalar_row = 0, scalar_group = 0, scalar_term = 0, scalar_column = 0;
  Index vector_row = 0, vector_group = 0, vector_term = 0, vector_column = 0;
  Index input_row = 0, input_group = 0, input_term = 0, input_column = 0, length = 0;
  const std::uint8_t* keep = nullptr;
  Index keep_row = 0;
  Index items = 1, heads = 1;
  Index scalar_item = 0, scalar_head = 0, vector_item = 0, vector_head = 0, keep_item = 0;
  const Index* lengths = nullptr;  // of the items, from which `hidden` rows are taken off; null: `length` for all
  Index hidden = 0;
  T* out = nullptr;
  Index out_row = 0, out_term = 0, out_column = 0;
  bool adds = false;
  const T *row_bias = nullptr, *column_bias = nullptr;
  Index row_bias_step = 0, column_bias_step = 0;
};

/// Terms of a product whose vectors are packed at a time.
inline constexpr Index projected_per_tile = 128;

/// Most columns of a task that stand for rows of the input.
inline constexpr Index most_input_columns = 144;

/// Rows whose scalars of a tile stay in the nearest cache beside the packed vectors that serve all of them: a multiple
/// of the rows of a register block and of the lanes of any target.
inline constexpr Index projected_rows_per_pass = 16;

/// Scratch elements for blocks of at most `rows` and `columns`: packed vectors, packed scalars, sums.
constexpr Index projection_scratch(Index rows, Index columns, Index lanes) {
  constexpr Index pass = projected_rows_per_pass;
  const Index padded_rows = (rows + pass - 1) / pass * pass, padded_columns = (columns + lanes - 1) / lanes * lanes;
  return (padded_rows + projected_per_tile) * padded_columns + pass * projected_per_tile;
}

}  // namespace longview::inline v0::inline LONGVIEW_BUILD::kernel
