// SPDX-License-Identifier: Apache-2.0
/// \file
/// What causal attention through random features remembers of the keys so far, so that it can go on.
#pragma once

#include <vector>

#include "longview/detail/favor_causal_task.hpp"

namespace longview::inline v0 {

/// The sums over all keys so far, and the keys of the chunk begun. A copy is a fork.
template <Storage T>
class PerformerState {
 public:
  /// (batch, key heads, features, value_dim), features as feature_count says.
  /// \throws ContractError on a negative extent, SizeError on overflow
  LONGVIEW_INLINE explicit PerformerState(const Shape<4>& batch_heads_features_value_dim)
      : shape_(batch_heads_features_value_dim) {
    detail::allocate_streams(shape_, elements_, indices_);
    reset();
  }

  /// As if no key had ever come.
  LONGVIEW_INLINE void reset() {
    length_ = 0;
    detail::restart_streams(shape_, elements_, indices_);
  }
  /// Positions so far.
  LONGVIEW_INLINE Index length() const { return length_; }
  LONGVIEW_INLINE const Shape<4>& shape() const { return shape_; }

  /// For the operator.
  LONGVIEW_INLINE T* elements() { return elements_.data(); }
  LONGVIEW_INLINE Index* indices() { return indices_.data(); }
  LONGVIEW_INLINE void advance(Index positions) { length_ += positions; }

 private:
  Shape<4> shape_;
  Index length_ = 0;
  std::vector<T> elements_;
  std::vector<Index> indices_;
};

}  // namespace longview::inline v0
