// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the kernel of kernelised attention (FAVOR+) is told, as data.
#pragma once

#include <cstdint>

#include "longview/tensor_view.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

/// Positions are processed in chunks at absolute multiples of 48, features of keys in blocks of 96 rows of the
/// projection. This fixes the order of every sum.
inline constexpr Index favor_chunk = 48, favor_block = 96;
/// Products may write up to seven rows more than asked for.
inline constexpr Index favor_chunk_rows = favor_chunk + 8;

/// Below any shift that occurs: no key so far.
inline constexpr double favor_no_shift = -0x1p100;

enum class FavorMap { positive, hyperbolic, trigonometric, relu, elu_plus_one, softmax };

/// The number c that is subtracted in exponents: none, given, the maximum of all, or the running one (rounded up to an
/// integer in log2 units, as is that of all under `rounded`).
enum class FavorShift { none, given, published, rounded, running };

/// Causal in segments that are worked on at once: `segment_keys` finds the sums with which they begin, once `find_shifts`,
/// stretch by stretch, and `join_shifts` have found the shifts, where these run.
enum class FavorStep { maximum, keys, queries, causal, features, find_shifts, join_shifts, segment_keys };

/// A matrix for every head, or none.
template <typename T>
struct FavorMatrix {
  T* data = nullptr;
  Index head = 0, row = 0, channel = 0;

  LONGVIEW_INLINE explicit operator bool() const { return data != nullptr; }
  LONGVIEW_INLINE T* at(Index head_number, Index position) const {
    return data == nullptr ? nullptr : data + head_number * head + position * row;
  }
};

/// What all tasks of a call have in common. Exponents are in log2 units.
template <typename T>
struct FavorShape {
  FavorMap map = FavorMap::positive;
  FavorShift shift = FavorShift::none;
  T given_shift = 0;
  bool exact_scale = false;  // the shift of queries matters: it does not cancel
  bool causal = false, normalize = true;
  bool query_side = false;                                  // of the features alone
  Index head_dim = 0, value_dim = 0, rows = 0, halves = 1;  // rows of the projection; features = halves * rows
  const T* projection = nullptr;                            // null: the identity
  Index projection_row = 0, projection_channel = 0;
  const T* columns = nullptr;                 // the projection transposed, in rows of favor_row(rows)
  T input_scale = 1, epsilon = 0, ratio = 1;  // ratio: r of r (f exp(x - c) + epsilon)
  T guard = 0, key_sum_epsilon = 0;
  bool reads_saved = false;  // backward: what the user keeps is read; else it is written

  LONGVIEW_INLINE bool is_exponential() const { return map <= FavorMap::trigonometric; }
  /// The input is U and serves for nothing else.
  LONGVIEW_INLINE bool is_given() const { return projection == nullptr && !is_exponential(); }
  /// Keys of the softmax map, not causal: one shift for every channel.
  LONGVIEW_INLINE bool shifts_channels() const { return map == FavorMap::softmax && !causal && !query_side; }
  /// Of S^T, and z where it is wanted.
  LONGVIEW_INLINE Index sum_rows() const { return value_dim + (normalize || shifts_channels() ? 1 : 0); }
  /// The published shift of trigonometric queries, one for all of a head, does not cancel.
  LONGVIEW_INLINE bool needs_longest_query() const {
    return map == FavorMap::trigonometric && shift == FavorShift::published && exact_scale;
  }
};

/// Rows of scratch start at odd multiples of 16 elements, so that they spread over the cache.
constexpr Index favor_padded(Index count) { return (count + 15) / 16 * 16; }
constexpr Index favor_row(Index features) { return ((favor_padded(features) / 16 + 1) | 1) * 16; }
/// Values and a one beside them, whose sums are those of the features.
constexpr Index favor_values(Index value_dim) { return (value_dim + 1 + 7) / 8 * 8; }

/// S^T and z of one (batch, key head).
template <typename T>
struct FavorSums {
  T *sums = nullptr, *carry = nullptr;  // (favor_values, favor_row): the sums, and what their rounding lost
  T* shift = nullptr;                   // of every block of features
  T* maxima = nullptr;                  // (favor_row): of every feature over all keys
  T* totals = nullptr;                  // (favor_row): of keys of softmax over positions, where they are wanted
  Index* seen = nullptr;                // keys in them
};

/// A stream of causal attention between two calls: the sums up to the last full chunk, and the chunk begun.
template <typename T>
struct FavorStream {
  T *sums = nullptr, *carry = nullptr;
  T *features = nullptr,
    *values = nullptr;        // of the keys of the chunk: (favor_chunk_rows, favor_row), (.., favor_values)
  T* shift = nullptr;         // of each of these keys; then of the sums; then the running one
  Index* position = nullptr;  // of each within the chunk; then how many; then how many keys ever
};
/// Sums and carry.
constexpr Index favor_sums_elements(Index features, Index value_dim) {
  return 2 * favor_values(value_dim) * favor_row(features);
}
/// The chunk begun.
constexpr Index favor_chunk_elements(Index features, Index value_dim) {
  return favor_chunk_rows * (favor_row(features) + favor_values(value_dim)) + favor_chunk + 16;
}
constexpr Index favor_stream_elements(Index features, Index value_dim) {
  return favor_sums_elements(features, value_dim) + favor_chunk_elements(features, value_dim);
}
inline constexpr Index favor_stream_indices = favor_chunk + 2;

template <typename T>
LONGVIEW_INLINE FavorStream<T> favor_stream(T* sums, T* chunk, Index* indices, Index features, Index value_dim) {
  FavorStream<T> stream;
  stream.sums = sums, stream.carry = sums + favor_sums_elements(features, value_dim) / 2;
  stream.features = chunk;
  stream.values = stream.features + favor_chunk_rows * favor_row(features);
  stream.shift = stream.values + favor_chunk_rows * favor_values(value_dim);
  stream.position = indices;
  return stream;
}

/// Whole chunks of a sequence, beside others of it.
template <typename T>
struct FavorSegment {
  Index number = 0, count = 1, length = 0;
  T* sums = nullptr;       // sums and carry of every segment
  T* key_shift = nullptr;  // (keys): at every position; where it runs

  LONGVIEW_INLINE Index begin() const { return number * length; }
};

/// One step for one (batch, key head); `queries` for one head, `causal` for all heads of the group.
template <typename T>
struct FavorTask {
  const FavorShape<T>* shape = nullptr;
  FavorStep step = FavorStep::keys;
  const T *key = nullptr, *value = nullptr;
  Index key_row = 0, key_channel = 0, value_row = 0, value_channel = 0;
  Index keys = 0;
  const std::uint8_t* keep = nullptr;  // of key 0
  Index keep_row = 0;
  const T* query = nullptr;
  T* out = nullptr;
  T* longest = nullptr;  // (heads): room for longest_query, causal
  Index query_head = 0, query_row = 0, query_channel = 0, out_head = 0, out_row = 0, out_channel = 0;
  Index heads = 1, queries = 0, first = 0, last = 0;  // last - first of the queries are asked for
  Index position = 0;                                 // of the first of a causal call
  Index block_begin = 0, block_end = 0;               // of the keys' features
  FavorMatrix<T> projected_query, projected_key;      // U, where the user keeps it
  FavorMatrix<T> saved_sums;                          // likewise S^T, z and shifts: (value_dim + 2, features)
  FavorSums<T> sums;
  FavorStream<T> stream;
  FavorSegment<T> segment;

  LONGVIEW_INLINE bool is_kept(Index at) const { return at < keys && (keep == nullptr || keep[at * keep_row] != 0); }
};

/// Scratch elements of a task for lanes of `width` queries, in which keys and queries take turns. A stream keeps the
/// features and values of its keys itself, so that `inputs_only` of keys need room here, unless their maximum is to be
/// found first.
constexpr Index favor_scratch(Index head_dim, Index value_dim, Index features, Index width, bool causal,
                              bool inputs_only) {
  const Index inputs = favor_chunk_rows * favor_padded(head_dim), values = favor_values(value_dim);
  const Index keys = inputs_only ? inputs : inputs + favor_chunk_rows * (favor_row(features) + values);
  const Index queries = (head_dim + features + values + (causal ? favor_chunk : 0)) * width;
  return keys > queries ? keys : queries;
}

}  // namespace longview::inline v0::inline LONGVIEW_BUILD::kernel
