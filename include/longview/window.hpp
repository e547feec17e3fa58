// SPDX-License-Identifier: Apache-2.0
/// \file
/// The window of a query.
#pragma once

#include <limits>

#include "longview/tensor_view.hpp"

namespace longview::inline v0 {

inline constexpr Index unlimited = (std::numeric_limits<Index>::max)();

/// Keys at i' + dilation * t for t = -before ... after, both included: neighbours besides the query itself, in steps.
struct Window {
  Index before = 0, after = 0;  ///< a forgotten side shows less, not more
  Index dilation = 1;
};

}  // namespace longview
