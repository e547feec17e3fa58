// Runs the parts that this machine can run; all must give the same bits.
#include <cstdio>
#include <cstring>

extern "C" void baseline(float* out);
extern "C" void unoptimised(float* out);
extern "C" void another_version(float* out);
extern "C" void avx2(float* out);
extern "C" void avx512(float* out);

int main() {
  static float expected[2 * 70 * 40], out[2 * 70 * 40];
  baseline(expected);
  int failures = 0;
  const auto compare = [&](const char* name, void (*part)(float*), bool runs) {
    if (runs) part(out);
    const bool same = !runs || std::memcmp(out, expected, sizeof out) == 0;
    std::printf("%s: %s\n", name,
                !runs  ? "this machine cannot run it"
                : same ? "same bits"
                       : "other bits than baseline");
    failures += !same;
  };
  __builtin_cpu_init();
  compare("unoptimised, with asserts", unoptimised, true);
  compare("another version of the headers", another_version, true);
  compare("avx2", avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  compare("avx512", avx512,
          __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"));
  return failures;
}
