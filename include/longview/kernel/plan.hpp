// SPDX-License-Identifier: Apache-2.0
/// \file
/// A plan: which keys each block of queries may see, as data. Operators write plans, kernels execute them.
#pragma once

#include <cstdint>

#include "longview/tensor_view.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

/// Keys are processed in tiles of 64, and tiles are summed in ranges of 2048, both counted by absolute index. This fixes
/// the order of every sum, so that results do not depend on how the work is split.
inline constexpr Index keys_per_tile = 64, keys_per_range = 2048;

/// Farther than any position; positions stay below 2^53, so that sums with it cannot overflow.
inline constexpr Index unreachable = Index{1} << (sizeof(Index) == 8 ? 60 : 30);

/// The position of a query that sees no key.
inline constexpr Index nowhere = -unreachable;

/// Keys that the queries of a plan may see, in order of position.
///
/// Row r lies at key + source(r) * key_row, where source(r) is rows[r], or r without a list. It stands at position
/// `position + step * source(r)` and at index `index + r`, which decides its tile. A query at position p sees the rows at
/// positions p - before ... p + after.
template <typename T>
struct KeySegment {
  const T *key = nullptr, *value = nullptr;
  Index key_row = 0, key_channel = 0, value_row = 0, value_channel = 0;
  Index count = 0;
  Index index = 0;
  Index position = 0, step = 1;
  Index column = 0, column_step = 1;             // of source 0 in masks and biases
  Index before = unreachable, after = unreachable;
  const Index* rows = nullptr;                   // ascending
  const std::uint8_t* keep = nullptr;            // by source(r): zero rows are seen by nobody
  Index keep_row = 0;
  const Index* excluded = nullptr;               // ascending positions that are left out likewise
  Index excluded_count = 0;
  bool opens_range = false;                      // its sums are kept apart from those of the segments before it
  T *d_key = nullptr, *d_value = nullptr;        // of row 0; null: not wanted
  Index d_key_row = 0, d_key_channel = 0, d_value_row = 0, d_value_channel = 0;
};

/// Most lanes of a block: three vectors of 16 floats.
inline constexpr int most_lanes = 48;

/// A block of queries of one (batch, key head), one in each lane.
template <typename T>
struct QueryBlock {
  Index count = 0;
  const T* query[most_lanes];
  T* out[most_lanes];                            // null: computed elsewhere
  T* lse[most_lanes];                            // null: not wanted
  Index position[most_lanes];
  const std::uint8_t* keep_mask[most_lanes];     // of column 0
  const T* bias[most_lanes];
  T slope[most_lanes], sink[most_lanes];
  const T *content_bias[most_lanes], *position_bias[most_lanes];  // null: none
  const T* distances;                            // rows of the relative term, by distance; one head for all lanes
  std::uint32_t dropout_key[2][most_lanes];      // what the row gives to the choice of what is left out
};

/// What all blocks of a call have in common.
template <typename T>
struct AttentionShape {
  Index head_dim = 0, value_dim = 0;
  Index query_channel = 1, out_channel = 1;      // strides
  T scale = 1, softcap = 0;                      // 0: none
  bool has_keep_mask = false, has_bias = false, has_slopes = false, has_sinks = false;
  Index keep_mask_column = 0, bias_column = 0;   // strides
  bool relative = false;                         // scale <query + position_bias, distances[i - j]> is added
  Index distance_row = 0, distance_channel = 0, content_bias_channel = 0, position_bias_channel = 0;  // strides
  Index farthest = 0, clamp = 0;                 // the last distance that is seen; distances beyond clamp read its row
  bool has_dropout = false;
  std::uint64_t dropped = 0;                     // of 2^32 weights
  T kept_factor = 1;                             // of those that are kept
};

inline constexpr int most_segments = 8, most_blocks = 24;

/// The rows of a segment that each lane of a block sees, first[l] <= row < last[l].
struct LaneBounds {
  Index low, high;                 // seen by some lane
  Index vector_low[3], vector_high[3];  // of a vector
  Index inner_low, inner_high;     // seen by all lanes
  Index first[most_lanes], last[most_lanes];
};

/// Consecutive blocks that share every tile of keys while it is in cache.
template <typename T>
struct AttentionTask {
  const AttentionShape<T>* shape = nullptr;
  const QueryBlock<T>* blocks = nullptr;
  int block_count = 0;
  KeySegment<T> segments[most_segments];
  int segment_count = 0;
};

/// Accumulators are computed in groups of up to eight channels.
constexpr Index padded_channels(Index channels) { return (channels + 7) / 8 * 8; }

/// Scratch elements of one block of `width` lanes: its queries (twice with a relative term), the output sums of the current
/// range and of those before it, and five rows of state.
template <typename T>
constexpr Index block_scratch(const AttentionShape<T>& shape, Index width) {
  return ((shape.relative ? 2 : 1) * shape.head_dim + 2 * padded_channels(shape.value_dim) + 5) * width;
}
/// And once for all blocks of a task: a tile of scores, of masks and of the bias, and a band of the relative term.
template <typename T>
constexpr Index tile_scratch(const AttentionShape<T>& shape, Index width) {
  const Index rows = keys_per_tile + 8;
  return ((shape.has_bias ? 3 : 2) * rows + (shape.relative ? rows + width : 0)) * width;
}

}  // namespace longview
