// SPDX-License-Identifier: Apache-2.0
// Runs the library over a golden file and says what differs.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <longview/instruction_set.hpp>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "golden_gradient.hpp"
#include "golden_library.hpp"

namespace golden {

struct Report {
  std::string op;
  std::vector<std::string> errors;
  std::string quirk;                  // the note of a case that is not to be imitated, and was not run
  Index compared = 0, gradients = 0;  // tensors compared, forward and backward
  Index unbounded = 0;                // elements of which a correct computation may give anything finite
  double worst = 0;                   // the largest error, as a share of what is allowed
  std::string worst_of;               // the tensor that has it
};

/// For the length of its life. Afterwards the set before is in use again.
class ForcedInstructionSet {
 public:
  explicit ForcedInstructionSet(longview::InstructionSet set) : before_(longview::instruction_set()) {
    longview::use_instruction_set(set);
  }
  ~ForcedInstructionSet() { longview::use_instruction_set(before_); }
  ForcedInstructionSet(const ForcedInstructionSet&) = delete;
  ForcedInstructionSet& operator=(const ForcedInstructionSet&) = delete;

 private:
  longview::InstructionSet before_;
};

/// 0 if equal, infinite where nothing but equality counts: infinities, NaN.
inline double share_of_bound(double expected, double got, double bound) {
  if (got == expected) return 0;
  const double share = std::abs(got - expected) / bound;
  return std::isfinite(expected) && std::isfinite(got) && !std::isnan(share) ? share
                                                                             : std::numeric_limits<double>::infinity();
}

inline std::string indices(const std::vector<Index>& shape, Index number) {
  std::string text;
  for (std::size_t axis = shape.size(); axis-- > 0; number /= shape[axis])
    text = std::to_string(number % shape[axis]) + (text.empty() ? "" : ", ") + text;
  return "[" + text + "]";
}

/// One line: the offending elements, the first ten of them in words.
inline std::string describe(const std::string& name, const Tensor<double>& expected, const Tensor<double>& got,
                            const Tensor<double>& bound, const std::vector<Index>& offending) {
  std::ostringstream text;
  text.precision(17);
  text << name << ": " << offending.size() << " of " << expected.elements().size() << " elements differ";
  for (std::size_t n = 0; n < std::min<std::size_t>(offending.size(), 10); ++n) {
    const std::size_t at = reference::to_size(offending[n]);
    const double want = expected.elements()[at], have = got.elements()[at], most = bound.elements()[at];
    text << "\n  " << indices(expected.shape(), offending[n]) << ": got " << have << ", expected " << want << " +- "
         << most << ", ratio " << share_of_bound(want, have, most);
  }
  return text.str();
}

/// Every element of `got` within its bound of `expected`.
inline void compare(const std::string& name, const Tensor<double>& expected, const Tensor<double>& got,
                    const Tensor<double>& bound, Report& report) {
  if (got.shape() != expected.shape() || bound.shape() != expected.shape())
    return report.errors.push_back(name + ": shape");
  std::vector<Index> offending;
  for (std::size_t at = 0; at < expected.elements().size(); ++at) {
    const double share = share_of_bound(expected.elements()[at], got.elements()[at], bound.elements()[at]);
    if (std::isinf(bound.elements()[at])) ++report.unbounded;
    if (!(share <= 1)) offending.push_back(static_cast<Index>(at));
    if (share > report.worst) report.worst = share, report.worst_of = name;
  }
  if (!offending.empty()) report.errors.push_back(describe(name, expected, got, bound, offending));
  ++(name.starts_with("d_") ? report.gradients : report.compared);
}

/// A row without any key is exactly 0.
inline void check_empty_rows(const Tensor<double>& lse, const Tensor<double>& out, Report& report) {
  const std::size_t channels = out.elements().size() / std::max<std::size_t>(lse.elements().size(), 1);
  for (std::size_t row = 0; row < lse.elements().size(); ++row)
    for (std::size_t c = 0; lse.elements()[row] == -std::numeric_limits<double>::infinity() && c < channels; ++c)
      if (out.elements()[row * channels + c] != 0)
        return report.errors.push_back("out: row " + indices(lse.shape(), static_cast<Index>(row)) +
                                       " has no key and is not 0");
}

template <typename T>
bool same_bits(const Tensor<T>& a, const Tensor<T>& b) {
  using Word = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  return a.shape() == b.shape() &&
         std::equal(a.elements().begin(), a.elements().end(), b.elements().begin(),
                    [](T x, T y) { return std::bit_cast<Word>(x) == std::bit_cast<Word>(y); });
}

template <typename T>
void check_layouts(const Answer<T>& dense, const Answer<T>& strided, Report& report) {
  for (const auto& [name, value] : dense)
    if (!strided.contains(name) || !same_bits(value, strided.at(name)))
      report.errors.push_back(name + ": other bits from strided tensors");
}

template <typename T>
Tensor<double> widened(const Tensor<T>& narrow) {
  Tensor<double> wide(narrow.shape());
  std::copy(narrow.elements().begin(), narrow.elements().end(), wide.elements().begin());
  return wide;
}

/// In double: 1e-12 of the largest element; what is 0 in exact arithmetic, the files hold with an error of about 1e-15.
inline Tensor<double> tolerance(const Tensor<double>& expected) {
  double largest = 0;
  for (const double x : expected.elements())
    if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  return Tensor<double>(expected.shape(), std::max(1e-12 * largest, 1e-14));
}

/// A golden file, read anew for every run, so that every run has to look at everything in it.
class GoldenFile {
 public:
  explicit GoldenFile(std::filesystem::path path) : path_(std::move(path)) {}

  const std::filesystem::path& path() const { return path_; }
  Case read() const { return Case(path_); }
  /// The certified bounds of float kernels, from the reference.
  const Solution<double>& bounds() const {
    if (!bounds_) bounds_ = solve_all<double>(read(), reference::float_kernel());
    return *bounds_;
  }

 private:
  std::filesystem::path path_;
  mutable std::optional<Solution<double>> bounds_;
};

template <typename T>
Tensor<double> allowed(const GoldenFile& file, const std::string& name, const Tensor<double>& expected) {
  if constexpr (std::is_same_v<T, double>) {
    return tolerance(expected);
  } else {
    require(file.bounds().contains(name), "the reference has no output " + name);
    return reference::radius_of(file.bounds().at(name));
  }
}

/// Every output of the file, and nothing besides.
template <typename T>
void check_outputs(const GoldenFile& file, const Case& of, const Answer<T>& answer, Report& report) {
  for (const std::string& name : of.outputs()) {
    if (!answer.contains(name)) {
      report.errors.push_back("unknown output " + name);
    } else {
      const auto expected = of.tensor<double>(name);
      compare(name, expected, widened(answer.at(name)), allowed<T>(file, name, expected), report);
    }
  }
  for (const auto& [name, value] : answer)
    if (!of.has(name)) report.errors.push_back("no output " + name + " in the file");
  if (answer.contains("lse")) check_empty_rows(widened(answer.at("lse")), widened(answer.at("out")), report);
}

template <typename T>
void run_case(const GoldenFile& file, longview::InstructionSet set, Report& report) {
  const Case of = file.read();
  report.op = of.op();
  const Solve<T> answer_to = operator_of<T>(of);
  if (of.quirk()) {
    report.quirk = of.note();
    return;
  }
  const ForcedInstructionSet forced(set);
  const Answer<T> answer = answer_to(of, Layout::dense);
  check_layouts(answer, answer_to(of, Layout::strided), report);
  check_outputs(file, of, answer, report);
  for (const std::string& name : of.unconsumed()) report.errors.push_back("unknown: " + name);
}

/// T: the type of all elements, float or double.
template <typename T>
Report run(const GoldenFile& file, longview::InstructionSet set) {
  Report report;
  try {
    run_case<T>(file, set, report);
  } catch (const std::exception& error) {
    report.errors.push_back(error.what());
  }
  return report;
}

}  // namespace golden
