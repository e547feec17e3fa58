// SPDX-License-Identifier: Apache-2.0
/// \file
/// What all benchmark programs share: cells named like `full_forward_causal/f32/b1/h1/n2048/d64`, the machine's peak of
/// fused multiply-adds measured around each of them, and the counters that they report. A field `t2` at the end: on two
/// threads; `avx2`: with no later instruction set.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <fstream>
#include <functional>
#include <longview/instruction_set.hpp>
#include <longview/openmp.hpp>
#include <longview/workspace.hpp>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

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

// Enough independent chains to hide the latency of a fused multiply-add on two ports, and no more than the registers hold.
#define LONGVIEW_PEAK(name, attribute, type, bytes, chains)                                           \
  attribute inline double name(long rounds) {                                                         \
    typedef type V __attribute__((vector_size(bytes)));                                               \
    V sums[chains];                                                                                   \
    _Pragma("GCC unroll 24") for (int i = 0; i < chains; ++i) sums[i] = V{} + static_cast<type>(i);   \
    const V x = V{} + static_cast<type>(1.0000001), y = V{} + static_cast<type>(1e-9);                \
    const auto start = std::chrono::steady_clock::now();                                              \
    for (long round = 0; round < rounds; ++round) {                                                   \
      _Pragma("GCC unroll 24") for (int i = 0; i < chains; ++i) sums[i] = sums[i] * x + y;            \
      __asm__ volatile("");                                                                           \
    }                                                                                                 \
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;              \
    _Pragma("GCC unroll 24") for (int i = 1; i < chains; ++i) sums[0] = sums[0] + sums[i];            \
    type sum = sums[0][0];                                                                            \
    benchmark::DoNotOptimize(sum);                                                                    \
    return static_cast<double>(rounds) * chains * 2 * (bytes / sizeof(type)) / time.count();          \
  }
#if LONGVIEW_X86
LONGVIEW_PEAK(peak_avx512_f32, __attribute__((target("avx512f"))), float, 64, 24)
LONGVIEW_PEAK(peak_avx512_f64, __attribute__((target("avx512f"))), double, 64, 24)
LONGVIEW_PEAK(peak_avx2_f32, __attribute__((target("avx2,fma"))), float, 32, 12)
LONGVIEW_PEAK(peak_avx2_f64, __attribute__((target("avx2,fma"))), double, 32, 12)
#endif
LONGVIEW_PEAK(peak_baseline_f32, , float, 16, 12)
LONGVIEW_PEAK(peak_baseline_f64, , double, 16, 12)
#undef LONGVIEW_PEAK

/// FLOP/s of multiply-adds in registers with the vectors of the instruction set in use; one thread, the best part of 5 ms.
template <typename T>
double peak_flops() {
  constexpr bool f32 = std::is_same_v<T, float>;
  double (*probe)(long) = f32 ? peak_baseline_f32 : peak_baseline_f64;
#if LONGVIEW_X86
  if (longview::instruction_set() == longview::InstructionSet::avx2) probe = f32 ? peak_avx2_f32 : peak_avx2_f64;
  if (longview::instruction_set() == longview::InstructionSet::avx512) probe = f32 ? peak_avx512_f32 : peak_avx512_f64;
#endif
  double best = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
  do best = std::max(best, probe(20000));
  while (std::chrono::steady_clock::now() < end);
  return best;
}

/// Calls of operator new in this process; allocation_count.cpp replaces it.
long allocations();

/// A line of a file of the form `KEY : VALUE`, such as /proc/cpuinfo; an empty key: the first line. Empty if there is none.
inline std::string line_of(const char* file, const std::string& key = "") {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(key)) return key.empty() ? line : line.substr(line.find_first_not_of("\t :", key.size()));
  return {};
}

/// From the resident set's size now to its largest until bytes() is called; Linux only.
class ResidentGrowth {
 public:
  ResidentGrowth() : known_(static_cast<bool>(std::ofstream("/proc/self/clear_refs") << "5" << std::flush)) {
    if (known_) before_ = kib("VmRSS");
  }
  bool known() const { return known_; }
  double bytes() const { return 1024 * std::max(0.0, kib("VmHWM") - before_); }

 private:
  static double kib(const char* field) { return std::stod(line_of("/proc/self/status", field)); }
  bool known_;
  double before_ = 0;
};

/// A function of its own, so that bench/instructions can count what runs inside.
template <typename Call>
[[gnu::noinline]] void timed_call(const Call& call, const longview::Run& run) {
  call(run);
}

/// Times `call(run)` with a workspace of the size that a rehearsal asks for. `useful_flops`: of unmasked pairs only.
template <typename T, typename Call>
void measure(benchmark::State& state, const Cell& cell, double useful_flops, const Call& call) {
  const Index threads = cell.get("t", 1);
  const longview::Sequential one;
  const longview::OpenMP several{threads};
  const auto run = [&](auto& memory) { return threads == 1 ? longview::Run(one, memory) : longview::Run(several, memory); };

  longview::DryRun rehearsal;
  call(run(rehearsal));
  if (!rehearsal.ok()) return state.SkipWithError(rehearsal.error());
  std::vector<std::byte> workspace(rehearsal.workspace_bytes());
  call(run(workspace));  // loads the code and starts the threads

  const double before = peak_flops<T>();
  const ResidentGrowth growth;
  const long allocated = allocations();
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    timed_call(call, run(workspace));
    benchmark::ClobberMemory();
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  const auto calls = static_cast<double>(state.iterations());
  state.counters["allocations"] = static_cast<double>(allocations() - allocated) / calls;
  if (growth.known()) state.counters["resident_growth"] = growth.bytes();
  const double peak = static_cast<double>(threads) * std::max(before, peak_flops<T>());
  const double rate = useful_flops * calls / time.count();
  state.counters["GFLOP/s"] = rate * 1e-9;
  state.counters["of_peak"] = rate / peak;
  state.counters["peak_GFLOP/s"] = peak * 1e-9;
  state.counters["workspace_bytes"] = static_cast<double>(workspace.size());
}

using Benchmark = std::function<void(benchmark::State&, const Cell&)>;

/// Whether the build and the machine have the threads and the instruction set that a cell asks for.
inline bool possible(const Cell& cell) {
#ifdef _OPENMP
  const Index threads = omp_get_num_procs();
#else
  const Index threads = 1;
#endif
  return cell.get("t", 1) <= threads && (!cell.has("avx") || longview::available(longview::InstructionSet::avx2));
}

/// The main function of a benchmark program.
inline int run_cells(int argc, char** argv, const Benchmark& body, const std::vector<std::string>& names) {
  const auto best = longview::instruction_set();
  for (const std::string& name : names) {
    const Cell cell(name);
    if (!possible(cell)) continue;
    const auto in_cell = [=](benchmark::State& state) {
      longview::use_instruction_set(cell.has("avx") ? longview::InstructionSet::avx2 : best);
      body(state, cell);
    };
    benchmark::RegisterBenchmark(name.c_str(), in_cell)->UseRealTime()->Unit(benchmark::kMicrosecond);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const auto add_context = [](const char* key, const std::string& value) {
    if (!value.empty()) benchmark::AddCustomContext(key, value);
  };
  add_context("machine", line_of("/proc/cpuinfo", "model name"));
  add_context("instruction_set", longview::name_of(best));
  add_context("compiler", LONGVIEW_BENCH_COMPILER);
  add_context("flags", LONGVIEW_BENCH_FLAGS);
  add_context("governor", line_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace longview_bench
