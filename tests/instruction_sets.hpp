// SPDX-License-Identifier: Apache-2.0
/// \file
/// The instruction sets that a test runs on.
#pragma once

#include <gtest/gtest.h>
#include <longview/instruction_set.hpp>

#include <vector>

namespace test {

/// Those that the machine has.
inline std::vector<longview::InstructionSet> instruction_sets() {
  using longview::InstructionSet;
  std::vector<InstructionSet> all;
  for (const InstructionSet set :
       {InstructionSet::portable, InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512})
    if (longview::available(set)) all.push_back(set);
  return all;
}

/// Calls body() under each of some sets.
template <typename Body>
void on_sets(const std::vector<longview::InstructionSet>& sets, const Body& body) {
  const longview::InstructionSet before = longview::instruction_set();
  for (const longview::InstructionSet set : sets) {
    SCOPED_TRACE(longview::name_of(set));
    longview::use_instruction_set(set);
    body();
    if (::testing::Test::HasFatalFailure()) break;
  }
  longview::use_instruction_set(before);
}
template <typename Body>
void on_every_set(const Body& body) {
  on_sets(instruction_sets(), body);
}
/// Likewise, but under the sanitizers on the best alone: the portable kernels would take half of the time of the laws, and the
/// golden files run with every set.
template <typename Body>
void under_all_sets(const Body& body) {
  auto sets = instruction_sets();
#if defined(__SANITIZE_ADDRESS__)
  sets.erase(sets.begin(), sets.end() - 1);
#endif
  on_sets(sets, body);
}

}  // namespace test
