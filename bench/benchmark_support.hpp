// SPDX-License-Identifier: Apache-2.0
/// \file
/// What all benchmark programs share: cells named like `full_forward_causal/f32/b1/h1/n2048/d64`, the machine's peak of
/// fused multiply-adds measured around each of them, and the counters that they report.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <longview/instruction_set.hpp>
#include <longview/workspace.hpp>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace longview_bench {

using longview::Index;

/// The fields of a cell's name: operator, element type, then letters with a number each.
class Cell {
 public:
  explicit Cell(std::string name) : name_(std::move(name)) {
    std::size_t at = name_.find('/');
    operation_ = name_.substr(0, at);
    for (std::size_t next; at != std::string::npos; at = next) {
      next = name_.find('/', at + 1);
      const std::string field = name_.substr(at + 1, next == std::string::npos ? next : next - at - 1);
      const std::size_t digit = field.find_first_of("0123456789");
      if (field == "f32" || field == "f64")
        type_ = field;
      else
        fields_[field.substr(0, digit)] = std::stoll(field.substr(digit));
    }
  }

  const std::string& name() const { return name_; }
  const std::string& type() const { return type_; }
  bool causal() const { return operation_.ends_with("_causal"); }
  bool backward() const { return operation_.find("_backward") != std::string::npos; }
  bool has(const std::string& field) const { return fields_.contains(field); }
  Index operator[](const std::string& field) const { return fields_.at(field); }
  Index get(const std::string& field, Index otherwise) const { return has(field) ? fields_.at(field) : otherwise; }

 private:
  std::string name_, operation_, type_;
  std::map<std::string, Index> fields_;
};

template <typename T>
std::vector<T> normal(Index count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<T> distribution;
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = distribution(generator);
  return values;
}

// Enough independent chains to hide the latency of a fused multiply-add on two ports.
#define LONGVIEW_PEAK(name, attribute, type, bytes)                                               \
  attribute inline double name(long rounds) {                                                     \
    typedef type V __attribute__((vector_size(bytes)));                                           \
    V sums[24];                                                                                   \
    _Pragma("GCC unroll 24") for (int i = 0; i < 24; ++i) sums[i] = V{} + static_cast<type>(i);   \
    const V x = V{} + static_cast<type>(1.0000001), y = V{} + static_cast<type>(1e-9);            \
    const auto start = std::chrono::steady_clock::now();                                          \
    for (long round = 0; round < rounds; ++round) {                                               \
      _Pragma("GCC unroll 24") for (int i = 0; i < 24; ++i) sums[i] = sums[i] * x + y;            \
      __asm__ volatile("");                                                                       \
    }                                                                                             \
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;          \
    _Pragma("GCC unroll 24") for (int i = 1; i < 24; ++i) sums[0] = sums[0] + sums[i];            \
    type sum = sums[0][0];                                                                        \
    benchmark::DoNotOptimize(sum);                                                                \
    return static_cast<double>(rounds) * 24 * 2 * (bytes / sizeof(type)) / time.count();          \
  }
#if LONGVIEW_X86
LONGVIEW_PEAK(peak_avx512_f32, __attribute__((target("avx512f"))), float, 64)
LONGVIEW_PEAK(peak_avx512_f64, __attribute__((target("avx512f"))), double, 64)
LONGVIEW_PEAK(peak_avx2_f32, __attribute__((target("avx2,fma"))), float, 32)
LONGVIEW_PEAK(peak_avx2_f64, __attribute__((target("avx2,fma"))), double, 32)
#endif
LONGVIEW_PEAK(peak_baseline_f32, , float, 16)
LONGVIEW_PEAK(peak_baseline_f64, , double, 16)
#undef LONGVIEW_PEAK

/// FLOP/s of multiply-adds in registers with the vectors of the instruction set in use; one thread, about 5 ms.
template <typename T>
double peak_flops() {
  constexpr bool f32 = std::is_same_v<T, float>;
  double (*probe)(long) = f32 ? peak_baseline_f32 : peak_baseline_f64;
#if LONGVIEW_X86
  if (longview::instruction_set() == longview::InstructionSet::avx2) probe = f32 ? peak_avx2_f32 : peak_avx2_f64;
  if (longview::instruction_set() == longview::InstructionSet::avx512) probe = f32 ? peak_avx512_f32 : peak_avx512_f64;
#endif
  return std::max(probe(200000), probe(200000));
}

/// Times `call(run)` with a workspace of the size that a rehearsal asks for. `useful_flops`: of unmasked pairs only.
template <typename T, typename Call>
void measure(benchmark::State& state, double useful_flops, const Call& call) {
  longview::DryRun rehearsal;
  call(longview::Run(longview::Sequential(), rehearsal));
  if (!rehearsal.ok()) return state.SkipWithError(rehearsal.error());
  std::vector<std::byte> workspace(rehearsal.workspace_bytes());
  const double before = peak_flops<T>();
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    call(longview::Run(longview::Sequential(), workspace));
    benchmark::ClobberMemory();
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  const double peak = std::max(before, peak_flops<T>());
  const double rate = useful_flops * static_cast<double>(state.iterations()) / time.count();
  state.counters["GFLOP/s"] = rate * 1e-9;
  state.counters["of_peak"] = rate / peak;
  state.counters["peak_GFLOP/s"] = peak * 1e-9;
  state.counters["workspace_bytes"] = static_cast<double>(workspace.size());
}

using Benchmark = std::function<void(benchmark::State&, const Cell&)>;

/// The main function of a benchmark program.
inline int run_cells(int argc, char** argv, const Benchmark& body, const std::vector<std::string>& names) {
  for (const std::string& name : names)
    benchmark::RegisterBenchmark(name.c_str(), [body, cell = Cell(name)](benchmark::State& state) { body(state, cell); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("instruction_set", longview::name_of(longview::instruction_set()));
  benchmark::AddCustomContext("compiler", __VERSION__);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace longview_bench
