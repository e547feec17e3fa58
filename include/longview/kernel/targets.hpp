// SPDX-License-Identifier: Apache-2.0
/// \file
/// The kernels, compiled once per instruction set inside one translation unit, and the table that chooses among them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "longview/instruction_set.hpp"
#include "longview/kernel/favor_plan.hpp"
#include "longview/kernel/merge_plan.hpp"
#include "longview/kernel/plan.hpp"
#include "longview/kernel/project_plan.hpp"
#include "longview/kernel/received_plan.hpp"

// Vector arguments are always inlined, so the calling convention that GCC warns about is never used.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

namespace portable {
#define LONGVIEW_VECTOR_BYTES 16
#include "longview/kernel/simd_portable.inc"
#include "longview/kernel/numbers.inc"
#include "longview/kernel/exponential.inc"
#include "longview/kernel/product.inc"
#include "longview/kernel/transpose.inc"
#include "longview/kernel/tiles.inc"
#include "longview/kernel/scores.inc"
#include "longview/kernel/attend.inc"
#include "longview/kernel/merge.inc"
#include "longview/kernel/received.inc"
#include "longview/kernel/favor.inc"
#include "longview/kernel/project.inc"
#undef LONGVIEW_VECTOR_BYTES
}  // namespace portable

#if LONGVIEW_BASELINE && !(LONGVIEW_X86 && LONGVIEW_HAS_AVX2)
#define LONGVIEW_BUILDS_BASELINE 1
namespace baseline {
#define LONGVIEW_VECTOR_BYTES 16
#define LONGVIEW_TARGET_FMA 0
#include "longview/kernel/simd.inc"
#include "longview/kernel/numbers.inc"
#include "longview/kernel/exponential.inc"
#include "longview/kernel/product.inc"
#include "longview/kernel/transpose.inc"
#include "longview/kernel/tiles.inc"
#include "longview/kernel/scores.inc"
#include "longview/kernel/attend.inc"
#include "longview/kernel/merge.inc"
#include "longview/kernel/received.inc"
#include "longview/kernel/favor.inc"
#include "longview/kernel/project.inc"
#undef LONGVIEW_VECTOR_BYTES
#undef LONGVIEW_TARGET_FMA
}  // namespace baseline
#endif

#if LONGVIEW_X86 && !LONGVIEW_HAS_AVX512
#define LONGVIEW_BUILDS_AVX2 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define LONGVIEW_VECTOR_BYTES 32
#define LONGVIEW_TARGET_FMA 1
#include "longview/kernel/simd.inc"
#include "longview/kernel/numbers.inc"
#include "longview/kernel/exponential.inc"
#include "longview/kernel/product.inc"
#include "longview/kernel/transpose.inc"
#include "longview/kernel/tiles.inc"
#include "longview/kernel/scores.inc"
#include "longview/kernel/attend.inc"
#include "longview/kernel/merge.inc"
#include "longview/kernel/received.inc"
#include "longview/kernel/favor.inc"
#include "longview/kernel/project.inc"
#undef LONGVIEW_VECTOR_BYTES
#undef LONGVIEW_TARGET_FMA
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if LONGVIEW_X86
#define LONGVIEW_BUILDS_AVX512 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
#endif
namespace avx512 {
#define LONGVIEW_VECTOR_BYTES 64
#define LONGVIEW_TARGET_FMA 1
#include "longview/kernel/simd.inc"
#include "longview/kernel/numbers.inc"
#include "longview/kernel/exponential.inc"
#include "longview/kernel/product.inc"
#include "longview/kernel/transpose.inc"
#include "longview/kernel/tiles.inc"
#include "longview/kernel/scores.inc"
#include "longview/kernel/attend.inc"
#include "longview/kernel/merge.inc"
#include "longview/kernel/received.inc"
#include "longview/kernel/favor.inc"
#include "longview/kernel/project.inc"
#undef LONGVIEW_VECTOR_BYTES
#undef LONGVIEW_TARGET_FMA
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/// What a target implements.
template <typename T>
struct Kernels {
  Index block_rows;  // queries of a block
  void (*attend)(const AttentionTask<T>& task, LaneBounds* bounds, T* scratch);
  void (*project)(const ProjectionTask<T>& task, T* scratch);
  void (*favor)(const FavorTask<T>& task, T* scratch);
};

/// The kernels of the instruction set in use.
template <typename T>
Kernels<T> kernels() {
  switch (instruction_set()) {
#ifdef LONGVIEW_BUILDS_AVX512
    case InstructionSet::avx512:
      return {3 * avx512::lanes<T>, avx512::attend<T>, avx512::project<T>, avx512::favor<T>};
#endif
#ifdef LONGVIEW_BUILDS_AVX2
    case InstructionSet::avx2:
      return {3 * avx2::lanes<T>, avx2::attend<T>, avx2::project<T>, avx2::favor<T>};
#endif
#ifdef LONGVIEW_BUILDS_BASELINE
    case InstructionSet::baseline:
      return {3 * baseline::lanes<T>, baseline::attend<T>, baseline::project<T>, baseline::favor<T>};
#endif
    default:
      return {3 * portable::lanes<T>, portable::attend<T>, portable::project<T>, portable::favor<T>};
  }
}

/// Outside the table, so that only who calls them compiles them.
template <typename T>
using MergeKernel = void (*)(const MergeTask<T>& task);
template <typename T>
MergeKernel<T> merge_kernel() {
  switch (instruction_set()) {
#ifdef LONGVIEW_BUILDS_AVX512
    case InstructionSet::avx512:
      return avx512::merge<T>;
#endif
#ifdef LONGVIEW_BUILDS_AVX2
    case InstructionSet::avx2:
      return avx2::merge<T>;
#endif
#ifdef LONGVIEW_BUILDS_BASELINE
    case InstructionSet::baseline:
      return baseline::merge<T>;
#endif
    default:
      return portable::merge<T>;
  }
}

template <typename T>
struct ReceivedKernel {
  Index block_rows;  // queries of a block
  void (*add)(const ReceivedTask<T>& task, LaneBounds* bounds, T* scratch);
};
template <typename T>
ReceivedKernel<T> received_kernel() {
  switch (instruction_set()) {
#ifdef LONGVIEW_BUILDS_AVX512
    case InstructionSet::avx512:
      return {3 * avx512::lanes<T>, avx512::received<T>};
#endif
#ifdef LONGVIEW_BUILDS_AVX2
    case InstructionSet::avx2:
      return {3 * avx2::lanes<T>, avx2::received<T>};
#endif
#ifdef LONGVIEW_BUILDS_BASELINE
    case InstructionSet::baseline:
      return {3 * baseline::lanes<T>, baseline::received<T>};
#endif
    default:
      return {3 * portable::lanes<T>, portable::received<T>};
  }
}

}  // namespace longview

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
