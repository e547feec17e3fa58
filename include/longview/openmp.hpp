// SPDX-License-Identifier: Apache-2.0
/// \file
/// OpenMP as an executor. Compile with -fopenmp; without it the bodies run one after another.
#pragma once

#include "longview/executor.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD {

/// OpenMP{threads}: a parallel loop over the bodies.
struct OpenMP {
  Index threads = 1;

  Index concurrency() const { return threads; }
  void operator()(Index count, TaskBody body) const {
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static, 1)
#endif
    for (Index task = 0; task < count; ++task) body(task);
  }
};

}  // namespace longview
