// SPDX-License-Identifier: Apache-2.0
/// \file
/// The merge of partial results, as data.
#pragma once

#include "longview/tensor_view.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

/// The rows of one part: row r at out + r * out_row, its log-sum-exp at lse + r * lse_row. Null: absent.
template <typename T>
struct MergeRows {
  T *out, *lse;
  Index out_row, out_channel, lse_row;
};
template <typename T>
using MergePart = MergeRows<const T>;

/// A row of a part with the weight that it gets.
template <typename T>
struct MergeSource {
  const T* row;
  Index channel;
  T weight;
};

/// Rows of one (batch, head).
template <typename T>
struct MergeTask {
  const MergePart<T>* parts;
  MergeSource<T>* sources;  // scratch, one for each part
  T* weights;               // likewise, (parts, lanes), aligned to vectors
  Index part_count, rows, channels;
  T *out, *lse;  // lse null: not wanted
  Index out_row, out_channel, lse_row;
};

/// The gradients of a merge, for rows of one (batch, head).
template <typename T>
struct MergeGradientTask {
  const MergePart<T>* parts;
  const MergeRows<T>* gradients;  // of the parts
  Index part_count, rows, channels;
  MergePart<T> whole, d_whole;
};

/// Most lanes of one vector.
inline constexpr Index most_merge_lanes = 16;

}  // namespace longview
