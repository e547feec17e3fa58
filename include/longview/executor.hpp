// SPDX-License-Identifier: Apache-2.0
/// \file
/// On which threads a call runs. The library starts none: it hands bodies to an executor of the caller's.
#pragma once

#include <concepts>

#include "longview/tensor_view.hpp"

namespace longview::inline v0 {

/// What an executor is given to run: two words, one type for all operators. Never throws.
class TaskBody {
 public:
  LONGVIEW_INLINE TaskBody(const void* body, void (*call)(const void*, Index)) : body_(body), call_(call) {}
  LONGVIEW_INLINE void operator()(Index task) const { call_(body_, task); }

 private:
  const void* body_;
  void (*call_)(const void*, Index);
};

/// Runs body(0) ... body(count - 1) in any order and returns when all are done. `count` is at most concurrency(): the
/// library deals out its own, finer tasks inside, so scratch is needed once per thread, and a body that runs again after
/// the others finds nothing left to do.
template <typename E>
concept Executor = requires(const E& executor, Index count, TaskBody body) {
  static_cast<Index>(executor.concurrency());
  executor(count, body);
};

struct Sequential {
  LONGVIEW_INLINE Index concurrency() const { return 1; }
  LONGVIEW_INLINE void operator()(Index count, TaskBody body) const {
    for (Index task = 0; task < count; ++task) body(task);
  }
};

/// Parallel{8, function}: any callable (count, body) as an executor.
template <typename F>
struct Parallel {
  Index threads;
  F function;
  Index concurrency() const { return threads; }
  void operator()(Index count, TaskBody body) const { function(count, body); }
};
template <typename F>
Parallel(Index, F) -> Parallel<F>;

}  // namespace longview
