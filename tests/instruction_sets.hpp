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

/// Calls body() under each of them.
template <typename Body>
void under_all_sets(const Body& body) {
  const longview::InstructionSet before = longview::instruction_set();
  auto sets = instruction_sets();
#if defined(__SANITIZE_ADDRESS__)
  // Under the sanitizers the portable kernels alone would take half of the time; the golden files run with every set.
  sets.erase(sets.begin(), sets.end() - 1);
#endif
  for (const longview::InstructionSet set : sets) {
    SCOPED_TRACE(longview::name_of(set));
    longview::use_instruction_set(set);
    body();
    if (::testing::Test::HasFatalFailure()) break;
  }
  longview::use_instruction_set(before);
}

}  // namespace test
