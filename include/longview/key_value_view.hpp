// SPDX-License-Identifier: Apache-2.0
/// \file
/// Keys and values that lie in several pieces, without concatenating them.
#pragma once

#include <array>
#include <concepts>
#include <initializer_list>
#include <optional>
#include <utility>

#include "longview/tensor_view.hpp"

namespace longview::inline v0 {

/// Whether queries of Q may attend to keys of KV: the same elements.
template <typename KV, typename Q>
concept KeysFor = Storage<KV> && std::same_as<KV, Value<Q>>;

/// One piece: key (batch, key heads, keys, head_dim), value (batch, key heads, keys, value_dim).
template <Storage T>
struct KeyValue {
  TensorView<const T, 4> key{}, value{};
  std::optional<Index> position{};  ///< of the first key; empty: goes on from the piece before
};

/// Where the gradients of one piece go. Absent: not wanted.
template <Storage T>
struct KeyValueGradient {
  TensorView<T, 4> key{}, value{};
};

/// Up to four pieces, oldest first ([compressed, memory, current], or pinned keys and both parts of a ring). Owns nothing.
template <Storage T>
class KeyValueView {
 public:
  static constexpr std::size_t most_segments = 4;

  LONGVIEW_INLINE KeyValueView(TensorView<const T, 4> key, TensorView<const T, 4> value)
      : segments_{KeyValue<T>{key, value, {}}}, count_(1) {}
  LONGVIEW_INLINE KeyValueView(std::initializer_list<KeyValue<T>> oldest_first) {
    if (oldest_first.size() == 0 || oldest_first.size() > most_segments)
      detail::raise<ContractError>("KeyValueView: segments: there must be one to four");
    for (const KeyValue<T>& segment : oldest_first) segments_[count_++] = segment;
  }

  LONGVIEW_INLINE std::size_t size() const { return count_; }
  LONGVIEW_INLINE const KeyValue<T>& operator[](std::size_t index) const { return segments_[index]; }

 private:
  std::array<KeyValue<T>, most_segments> segments_{};
  std::size_t count_ = 0;
};

/// The gradients of the pieces of a KeyValueView, in its order. Empty, or as many as there are pieces.
template <Storage T>
class SegmentGradients {
 public:
  static constexpr std::size_t most_segments = KeyValueView<T>::most_segments;

  SegmentGradients() = default;
  LONGVIEW_INLINE SegmentGradients(std::initializer_list<KeyValueGradient<T>> oldest_first) {
    if (oldest_first.size() > most_segments)
      detail::raise<ContractError>("SegmentGradients: segments: there must be at most four");
    for (const KeyValueGradient<T>& segment : oldest_first) segments_[count_++] = segment;
  }

  LONGVIEW_INLINE std::size_t size() const { return count_; }
  LONGVIEW_INLINE const KeyValueGradient<T>& operator[](std::size_t index) const { return segments_[index]; }

 private:
  std::array<KeyValueGradient<T>, most_segments> segments_{};
  std::size_t count_ = 0;
};

}  // namespace longview
