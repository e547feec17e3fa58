// SPDX-License-Identifier: Apache-2.0
// The fused multiply-add rate of one thread, measured next to every sample. Time is CPU time of the thread, so that another
// process on the core does not look like a slow machine.
#include <time.h>

// Enough independent chains to hide the latency, and no more than the registers hold.
#if defined(__AVX512F__)
enum { BYTES = 64, CHAINS = 24 };
#elif defined(__AVX__)
enum { BYTES = 32, CHAINS = 12 };
#else
enum { BYTES = 16, CHAINS = 12 };
#endif
typedef float vec __attribute__((vector_size(BYTES)));
enum { LANES = BYTES / sizeof(float) };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

double fma_gflops(double seconds) {
  vec a[CHAINS], m, c;
  for (int l = 0; l < LANES; ++l) m[l] = 0.999f, c[l] = 0.001f;
  for (int i = 0; i < CHAINS; ++i) a[i] = c * (float)(i + 1);
  double start = now(), elapsed, rounds = 0;
  do {
    for (int r = 0; r < 20000; ++r) {
#pragma GCC unroll 24
      for (int i = 0; i < CHAINS; ++i) a[i] = a[i] * m + c;
    }
    rounds += 20000;
    elapsed = now() - start;
  } while (elapsed < seconds);
  vec sum = a[0];
  for (int i = 1; i < CHAINS; ++i) sum += a[i];
  volatile float sink = sum[0];
  (void)sink;
  return rounds * CHAINS * LANES * 2 / elapsed * 1e-9;
}
