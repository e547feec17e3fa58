// SPDX-License-Identifier: Apache-2.0
/// \file
/// Names that keep translation units with different compiler flags apart, and the inlining attribute.
///
/// What users name in their own signatures, throw, catch or store lives in `longview::v0`; its members are always inlined,
/// so no symbol of theirs exists. Everything else lives in a further inline namespace named after the flags of the
/// translation unit: two files built with different `-m` flags share no function of ours.
#pragma once

#if defined(__GNUC__)
#define LONGVIEW_INLINE inline __attribute__((always_inline))
#define LONGVIEW_COLD __attribute__((cold, noinline))
#define LONGVIEW_NOINLINE __attribute__((noinline))
#define LONGVIEW_NO_ALIAS __restrict__
#elif defined(_MSC_VER)
#define LONGVIEW_INLINE __forceinline
#define LONGVIEW_COLD __declspec(noinline)
#define LONGVIEW_NOINLINE __declspec(noinline)
#define LONGVIEW_NO_ALIAS __restrict
#else
#define LONGVIEW_INLINE inline
#define LONGVIEW_COLD
#define LONGVIEW_NOINLINE
#define LONGVIEW_NO_ALIAS
#endif

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define LONGVIEW_EXCEPTIONS 1
#else
#define LONGVIEW_EXCEPTIONS 0
#endif

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ && !defined(LONGVIEW_ALLOW_FAST_MATH)
#error "longview: -ffast-math removes the NaN and infinity rules of the contract; define LONGVIEW_ALLOW_FAST_MATH to accept that"
#endif

#ifdef __SSE3__
#define LONGVIEW_HAS_SSE3 1
#else
#define LONGVIEW_HAS_SSE3 0
#endif
#ifdef __SSE4_2__
#define LONGVIEW_HAS_SSE4 1
#else
#define LONGVIEW_HAS_SSE4 0
#endif
#ifdef __AVX__
#define LONGVIEW_HAS_AVX 1
#else
#define LONGVIEW_HAS_AVX 0
#endif
#if defined(__AVX2__) && defined(__FMA__)
#define LONGVIEW_HAS_AVX2 1
#else
#define LONGVIEW_HAS_AVX2 0
#endif
#ifdef __BMI2__
#define LONGVIEW_HAS_BMI2 1
#else
#define LONGVIEW_HAS_BMI2 0
#endif
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define LONGVIEW_HAS_AVX512 1
#else
#define LONGVIEW_HAS_AVX512 0
#endif
#ifdef NDEBUG
#define LONGVIEW_HAS_ASSERT 0
#else
#define LONGVIEW_HAS_ASSERT 1
#endif
#ifdef LONGVIEW_ALLOW_FAST_MATH
#define LONGVIEW_HAS_FAST_MATH 1
#else
#define LONGVIEW_HAS_FAST_MATH 0
#endif

#define LONGVIEW_JOIN_(a, b, c, d, e, f, g, h, i) build_##a##b##c##d##e##f##_##g##h##i
#define LONGVIEW_JOIN(a, b, c, d, e, f, g, h, i) LONGVIEW_JOIN_(a, b, c, d, e, f, g, h, i)
#define LONGVIEW_BUILD                                                                                              \
  LONGVIEW_JOIN(LONGVIEW_HAS_SSE3, LONGVIEW_HAS_SSE4, LONGVIEW_HAS_AVX, LONGVIEW_HAS_AVX2, LONGVIEW_HAS_BMI2,        \
                LONGVIEW_HAS_AVX512, LONGVIEW_EXCEPTIONS, LONGVIEW_HAS_ASSERT, LONGVIEW_HAS_FAST_MATH)
