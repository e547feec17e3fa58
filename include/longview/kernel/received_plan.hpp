// SPDX-License-Identifier: Apache-2.0
/// \file
/// The attention that keys receive, as data.
#pragma once

#include "longview/kernel/plan.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

/// Adds the probabilities that one block of queries gives to the keys of some columns.
template <typename T>
struct ReceivedTask {
  AttentionTask<T> plan;  // one block; segments of column_step 1, without lists of rows
  T lse[most_lanes];      // of each lane; infinity for lanes beyond the last row, which give nothing
  Index first_column = 0, columns = 0;
  T* sums = nullptr;  // (columns, lanes of a vector): a sum of its own for every lane
};

/// Scratch elements for a block of `width` lanes: a tile and the queries.
template <typename T>
constexpr Index received_scratch(const AttentionShape<T>& shape, Index width) {
  return tile_scratch(shape, width) + shape.head_dim * width;
}

}  // namespace longview
