// SPDX-License-Identifier: Apache-2.0
/// \file
/// What happens when a call breaks its contract: an error that names argument, actual and expected value.
///
/// Form of every text: `operator: argument: reason (got X, expected Y)`. Nothing has been written when it is raised.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "longview/detail/build.hpp"

namespace longview::inline v0 {

class ContractError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// Element or byte counts that do not fit.
class SizeError : public std::length_error {
 public:
  using std::length_error::length_error;
};

/// Where errors end in a build without exceptions. Must not return; the default prints the text and aborts.
using FailureHandler = void (*)(const char* message);

namespace process {
inline constinit std::atomic<FailureHandler> failure_handler{nullptr};
}

inline namespace LONGVIEW_BUILD {

/// Sets the handler and returns the one before; null is the default.
inline FailureHandler set_failure_handler(FailureHandler handler) noexcept {
  return process::failure_handler.exchange(handler);
}

namespace detail {

template <typename Error>
[[noreturn]] LONGVIEW_COLD inline void raise(const char* message) {
#if LONGVIEW_EXCEPTIONS
  throw Error(message);
#else
  if (const FailureHandler handler = process::failure_handler.load()) handler(message);
  std::fprintf(stderr, "%s\n", message);
  std::abort();
#endif
}

[[noreturn]] LONGVIEW_COLD inline void raise_view_error(const char* what) {
  char text[64];
  std::snprintf(text, sizeof text, "TensorView: %s out of bounds", what);
  raise<ContractError>(text);
}

}  // namespace detail
}  // namespace LONGVIEW_BUILD
}  // namespace longview
