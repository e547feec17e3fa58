// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which kernels run. They are compiled for several instruction sets inside one ordinary build and chosen at run time.
#pragma once

#include <atomic>
#include <cstring>

#include "longview/contract.hpp"

namespace longview::inline v0 {

/// portable: plain loops, any compiler. baseline: what the architecture always has (SSE2, NEON). avx2: with FMA.
/// avx512: F, VL, BW, DQ.
enum class InstructionSet { portable, baseline, avx2, avx512 };

namespace process {
/// -1: the best available.
inline constinit std::atomic<int> instruction_set{-1};
}  // namespace process

inline namespace LONGVIEW_BUILD {

inline const char* name_of(InstructionSet set) {
  constexpr const char* names[] = {"portable", "baseline", "avx2", "avx512"};
  return set >= InstructionSet::portable && set <= InstructionSet::avx512 ? names[static_cast<int>(set)] : "unknown";
}

namespace detail {

// Compilers with vector extensions and per-function targets build every set of their architecture; others the portable one.
#if defined(__GNUC__)
#define LONGVIEW_VECTOR_EXTENSIONS 1
#else
#define LONGVIEW_VECTOR_EXTENSIONS 0
#endif
#if LONGVIEW_VECTOR_EXTENSIONS && (defined(__x86_64__) || (defined(__i386__) && defined(__SSE2__)))
#define LONGVIEW_X86 1
#else
#define LONGVIEW_X86 0
#endif
#if LONGVIEW_X86 || (LONGVIEW_VECTOR_EXTENSIONS && defined(__aarch64__))
#define LONGVIEW_BASELINE 1
#else
#define LONGVIEW_BASELINE 0
#endif

/// The lowest vector set worth building: what the compiler's flags guarantee makes the ones below it pointless.
#if LONGVIEW_X86 && LONGVIEW_HAS_AVX512
inline constexpr InstructionSet lowest_built = InstructionSet::avx512;
#elif LONGVIEW_X86 && LONGVIEW_HAS_AVX2
inline constexpr InstructionSet lowest_built = InstructionSet::avx2;
#else
inline constexpr InstructionSet lowest_built = InstructionSet::baseline;
#endif

inline bool runs_here([[maybe_unused]] InstructionSet set) {
  if (set == InstructionSet::portable) return true;
  if (set < InstructionSet::portable || set > InstructionSet::avx512) return false;
#if LONGVIEW_X86
  __builtin_cpu_init();  // these tests include the operating system's support (XGETBV)
  if (set == InstructionSet::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq");
  if (set == InstructionSet::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return true;
#else
  return LONGVIEW_BASELINE && set == InstructionSet::baseline;
#endif
}

}  // namespace detail

/// Whether the kernels of a set are in this build and run on this machine. A file whose compiler flags guarantee a set
/// holds none below it, the portable one excepted.
inline bool available(InstructionSet set) {
  return detail::runs_here(set) && (set == InstructionSet::portable || set >= detail::lowest_built);
}

/// The set in use: the best that is available, unless set.
inline InstructionSet instruction_set() {
  const int forced = process::instruction_set.load(std::memory_order_relaxed);
  if (forced >= 0) {
    const auto set = static_cast<InstructionSet>(forced);
    // Forced by a file built with other flags: the nearest that this one has.
    return available(set) ? set : detail::lowest_built;
  }
  for (int set = static_cast<int>(InstructionSet::avx512); set > 0; --set)
    if (available(static_cast<InstructionSet>(set))) return static_cast<InstructionSet>(set);
  return InstructionSet::portable;
}

/// For the whole process, from the next call on. Results of different sets differ by rounding.
/// \throws ContractError if the set is not available
inline void use_instruction_set(InstructionSet set) {
  if (!available(set)) {
    char text[128], sets[64] = "portable";
    for (const auto other : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512})
      if (available(other)) std::strcat(std::strcat(sets, " or "), name_of(other));
    std::snprintf(text, sizeof text, "use_instruction_set: set: not available (got %s, expected %s)", name_of(set), sets);
    detail::raise<ContractError>(text);
  }
  process::instruction_set.store(static_cast<int>(set), std::memory_order_relaxed);
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
