// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the backward kernel of attention is told beside the plan of the forward one, as data.
#pragma once

#include "longview/kernel/plan.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

/// What arrives at the rows of a block, and where their gradients go; by lane.
template <typename T>
struct GradientBlock {
  const T *out[most_lanes], *d_out[most_lanes];
  T* d_query[most_lanes];                        // null: not wanted
  T lse[most_lanes], d_lse[most_lanes];
  T* d_bias[most_lanes];                         // of column 0
  double *d_slope[most_lanes], *d_sink[most_lanes];  // sums of a (batch, head)
  T* d_distances;                                // of the head of the block
  double *d_content_bias, *d_position_bias;      // (head_dim): sums of the (batch, head) of the block
};

/// What all blocks of a call have in common.
template <typename T>
struct GradientShape {
  Index out_channel = 1, d_out_channel = 1, d_query_channel = 1, d_bias_column = 0;  // strides
  bool query = false, key = false, value = false, bias = false, slopes = false, sinks = false;  // what is wanted
  bool distances = false, content_bias = false, position_bias = false;
  Index d_distance_row = 0, d_distance_channel = 0;
};

/// Keeps the order in which blocks of queries add to the gradients of the same keys: a task touches a tile after the task
/// before it has left it. Null functions: nobody else is at work.
struct TileGate {
  void* context = nullptr;
  void (*enter)(void* context, Index end) = nullptr;  // returns when the task before is beyond `end`
  void (*leave)(void* context, Index end) = nullptr;  // this task is beyond `end`
};
/// Where a tile ends, as a number that grows from tile to tile.
constexpr Index tile_end(int segment, Index row) { return static_cast<Index>(segment) * (unreachable / most_segments / 4) + row; }
inline constexpr Index beyond_all = unreachable;

/// The gradients of one AttentionTask. Those of keys, values, distances and biases are added to what stands there, block after
/// block; those of queries are written.
template <typename T>
struct BackwardTask {
  AttentionTask<T> plan;
  const GradientShape<T>* shape = nullptr;
  const GradientBlock<T>* blocks = nullptr;
  TileGate gate;
};

inline constexpr Index vector_floats = 16;       // rows of scratch hold whole vectors of any target
constexpr Index padded_row(Index channels) { return (channels + vector_floats - 1) / vector_floats * vector_floats; }

/// Scratch elements of one block of `width` lanes: queries, d_out and the sums of d_query in lanes, queries and d_out in rows
/// (with a relative term two queries and two sums, and a row of a distance), and four rows of state.
template <typename T>
constexpr Index backward_block_scratch(const AttentionShape<T>& shape, Index width) {
  const Index queries = shape.relative ? 2 : 1;
  return (queries * (shape.head_dim + padded_channels(shape.head_dim) + padded_row(shape.head_dim)) + shape.value_dim +
          padded_row(shape.value_dim) + 4) * width + (shape.relative ? padded_row(shape.head_dim) : 0);
}
/// And once for all blocks of a task: what the forward kernel has, a tile of gradients of the scores, of capped scores, the
/// gradients of a tile of keys and values, and of the band of the relative term in lanes and in rows.
template <typename T>
constexpr Index backward_tile_scratch(const AttentionShape<T>& shape, Index width) {
  const Index rows = keys_per_tile + 8;
  return tile_scratch(shape, width) + (shape.softcap != 0 ? 2 : 1) * rows * width +
         rows * (padded_row(shape.head_dim) + padded_row(shape.value_dim)) +
         (shape.relative ? (rows + width) * (width + padded_row(shape.head_dim)) : 0);
}

}  // namespace longview
