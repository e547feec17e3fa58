// SPDX-License-Identifier: Apache-2.0
/// \file
/// The kernels, compiled once per instruction set inside one translation unit, and the choice among them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "longview/instruction_set.hpp"
#include "longview/kernel/backward_plan.hpp"
#include "longview/kernel/favor_backward_plan.hpp"
#include "longview/kernel/merge_plan.hpp"
#include "longview/kernel/plan.hpp"
#include "longview/kernel/project_plan.hpp"
#include "longview/kernel/received_plan.hpp"

#if LONGVIEW_BASELINE && !(LONGVIEW_X86 && LONGVIEW_HAS_AVX2)
#define LONGVIEW_BUILDS_BASELINE 1
#else
#define LONGVIEW_BUILDS_BASELINE 0
#endif
#if LONGVIEW_X86 && !LONGVIEW_HAS_AVX512
#define LONGVIEW_BUILDS_AVX2 1
#else
#define LONGVIEW_BUILDS_AVX2 0
#endif
#define LONGVIEW_BUILDS_AVX512 LONGVIEW_X86

// Vector arguments are always inlined, so the calling convention that GCC warns about is never used.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

namespace longview::inline v0::inline LONGVIEW_BUILD::kernel {

namespace portable {
#define LONGVIEW_VECTOR_BYTES 0
#include "longview/kernel/simd_portable.inc"
#include "longview/kernel/kernels.inc"
#undef LONGVIEW_VECTOR_BYTES
}  // namespace portable

#if LONGVIEW_BUILDS_BASELINE
namespace baseline {
#define LONGVIEW_VECTOR_BYTES 16
#define LONGVIEW_TARGET_FMA 0
#include "longview/kernel/simd.inc"
#include "longview/kernel/kernels.inc"
#undef LONGVIEW_VECTOR_BYTES
#undef LONGVIEW_TARGET_FMA
}  // namespace baseline
#endif

#if LONGVIEW_BUILDS_AVX2
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
#include "longview/kernel/kernels.inc"
#undef LONGVIEW_VECTOR_BYTES
#undef LONGVIEW_TARGET_FMA
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if LONGVIEW_BUILDS_AVX512
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
#include "longview/kernel/kernels.inc"
#undef LONGVIEW_VECTOR_BYTES
#undef LONGVIEW_TARGET_FMA
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#define LONGVIEW_CASE(target, ...) \
  case InstructionSet::target: {   \
    using namespace target;        \
    return {__VA_ARGS__};          \
  }
#if LONGVIEW_BUILDS_AVX512
#define LONGVIEW_CASE_AVX512(...) LONGVIEW_CASE(avx512, __VA_ARGS__)
#else
#define LONGVIEW_CASE_AVX512(...)
#endif
#if LONGVIEW_BUILDS_AVX2
#define LONGVIEW_CASE_AVX2(...) LONGVIEW_CASE(avx2, __VA_ARGS__)
#else
#define LONGVIEW_CASE_AVX2(...)
#endif
#if LONGVIEW_BUILDS_BASELINE
#define LONGVIEW_CASE_BASELINE(...) LONGVIEW_CASE(baseline, __VA_ARGS__)
#else
#define LONGVIEW_CASE_BASELINE(...)
#endif
/// Returns what the arguments are in the namespace of the instruction set in use.
#define LONGVIEW_RETURN_BY_TARGET(...)  \
  switch (instruction_set()) {          \
    LONGVIEW_CASE_AVX512(__VA_ARGS__)   \
    LONGVIEW_CASE_AVX2(__VA_ARGS__)     \
    LONGVIEW_CASE_BASELINE(__VA_ARGS__) \
    default: {                          \
      using namespace portable;         \
      return {__VA_ARGS__};             \
    }                                   \
  }

// One function a kernel, so that a file compiles only those that it uses. `block_rows`: rows of a block, three vectors.

template <typename T>
struct AttentionKernel {
  Index block_rows;
  void (*run)(const AttentionTask<T>& task, LaneBounds* bounds, T* scratch);
};
template <typename T>
AttentionKernel<T> attention_kernel() {
  LONGVIEW_RETURN_BY_TARGET(3 * lanes<T>, attend<T>)
}

template <typename T>
struct BackwardKernel {
  Index block_rows;
  void (*run)(const BackwardTask<T>& task, LaneBounds* bounds, T* scratch);
};
template <typename T>
BackwardKernel<T> backward_kernel() {
  LONGVIEW_RETURN_BY_TARGET(3 * lanes<T>, backward<T>)
}

template <typename T>
struct ProjectionKernel {
  Index block_rows;
  void (*run)(const ProjectionTask<T>& task, T* scratch);
};
template <typename T>
ProjectionKernel<T> projection_kernel() {
  LONGVIEW_RETURN_BY_TARGET(3 * lanes<T>, project<T>)
}

template <typename T>
struct FavorKernel {
  Index block_rows;
  void (*run)(const FavorTask<T>& task, T* scratch);
};
template <typename T>
FavorKernel<T> favor_kernel() {
  LONGVIEW_RETURN_BY_TARGET(3 * lanes<T>, favor<T>)
}

template <typename T>
struct FavorBackwardKernel {
  Index block_rows;
  void (*run)(const FavorBackwardTask<T>& task, T* scratch);
};
template <typename T>
FavorBackwardKernel<T> favor_backward_kernel() {
  LONGVIEW_RETURN_BY_TARGET(3 * lanes<T>, favor_backward<T>)
}

template <typename T>
struct ReceivedKernel {
  Index block_rows;
  void (*run)(const ReceivedTask<T>& task, LaneBounds* bounds, T* scratch);
};
template <typename T>
ReceivedKernel<T> received_kernel() {
  LONGVIEW_RETURN_BY_TARGET(3 * lanes<T>, received<T>)
}

template <typename T>
struct MergeKernel {
  void (*run)(const MergeTask<T>& task);
};
template <typename T>
MergeKernel<T> merge_kernel() {
  LONGVIEW_RETURN_BY_TARGET(merge<T>)
}

template <typename T>
struct MergeGradientKernel {
  void (*run)(const MergeGradientTask<T>& task);
};
template <typename T>
MergeGradientKernel<T> merge_gradient_kernel() {
  LONGVIEW_RETURN_BY_TARGET(merge_gradient<T>)
}

#undef LONGVIEW_RETURN_BY_TARGET
#undef LONGVIEW_CASE_AVX512
#undef LONGVIEW_CASE_AVX2
#undef LONGVIEW_CASE_BASELINE
#undef LONGVIEW_CASE

}  // namespace longview

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
