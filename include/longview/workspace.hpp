// SPDX-License-Identifier: Apache-2.0
/// \file
/// Run: on what a call runs and in whose memory. DryRun: how much memory that is, and whether the call is valid.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>

#include "longview/executor.hpp"

namespace longview::inline v0 {

/// Given to a Run instead of memory: the call becomes a rehearsal. Its contract is checked and its scratch measured; no
/// tensor is touched (data may still be null), nothing is thrown. The call after it can only run out of memory.
class DryRun {
 public:
  LONGVIEW_INLINE bool ok() const { return error_[0] == '\0'; }
  /// The text of the error that the call would raise; empty if it would raise none.
  LONGVIEW_INLINE const char* error() const { return error_; }
  LONGVIEW_INLINE std::size_t workspace_bytes() const { return workspace_bytes_; }

  LONGVIEW_INLINE void report(std::size_t workspace_bytes) { workspace_bytes_ = workspace_bytes, error_[0] = '\0'; }
  LONGVIEW_INLINE void report_error(const char* text) {
    const std::size_t length = std::min<std::size_t>(std::strlen(text), sizeof error_ - 1);
    std::memcpy(error_, text, length);
    error_[length] = '\0', workspace_bytes_ = 0;
  }

 private:
  char error_[512] = {};
  std::size_t workspace_bytes_ = 0;
};

/// Holds references, for the length of one call. Default: runs in place and allocates its scratch.
class Run {
 public:
  LONGVIEW_INLINE Run() = default;
  template <Executor E>
  LONGVIEW_INLINE Run(const E& executor)
      : executor_(&executor),
        concurrency_([](const void* e) { return static_cast<Index>(static_cast<const E*>(e)->concurrency()); }),
        execute_([](const void* e, Index count, TaskBody body) { (*static_cast<const E*>(e))(count, body); }) {}
  /// Bytes of any alignment, at least as many as a rehearsal reported; then the call allocates nothing.
  template <Executor E>
  LONGVIEW_INLINE Run(const E& executor, std::span<std::byte> workspace) : Run(executor) {
    workspace_ = workspace, has_workspace_ = true;
  }
  template <Executor E>
  LONGVIEW_INLINE Run(const E& executor, DryRun& rehearsal) : Run(executor) {
    rehearsal_ = &rehearsal;
  }

  LONGVIEW_INLINE Index concurrency() const { return executor_ == nullptr ? 1 : concurrency_(executor_); }
  LONGVIEW_INLINE void execute(Index count, TaskBody body) const {
    executor_ == nullptr ? Sequential()(count, body) : execute_(executor_, count, body);
  }
  LONGVIEW_INLINE bool has_workspace() const { return has_workspace_; }
  LONGVIEW_INLINE std::span<std::byte> workspace() const { return workspace_; }
  /// Null unless this is a rehearsal.
  LONGVIEW_INLINE DryRun* rehearsal() const { return rehearsal_; }

 private:
  const void* executor_ = nullptr;
  Index (*concurrency_)(const void*) = nullptr;
  void (*execute_)(const void*, Index, TaskBody) = nullptr;
  std::span<std::byte> workspace_{};
  bool has_workspace_ = false;
  DryRun* rehearsal_ = nullptr;
};

}  // namespace longview
