// SPDX-License-Identifier: Apache-2.0
// Attention under every instruction set of the machine against the definition in double. Compiled by lanes whose flags or
// processors differ from the main one's; no test framework, no exceptions needed.

#include <cmath>
#include <cstdio>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <longview/longview.hpp>
#include <vector>

#if !LONGVIEW_EXCEPTIONS
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace {

using longview::Index;

constexpr Index heads = 2, queries = 67, keys = 131, head_dim = 19, value_dim = 9, before = 40;

/// Poison in a masked slot that must not be seen: a NaN made of bits, which -ffast-math cannot fold away.
float poison() {
  const unsigned bits = 0x7fc00000u;
  float nan;
  std::memcpy(&nan, &bits, sizeof nan);
  return nan;
}

bool is_kept(Index query, Index key) { return query != 3 && key != 5 && key % 7 != 6; }

/// Where query i of a bottom-right causal window looks.
bool is_visible(Index query, Index key) {
  const Index position = query + keys - queries;
  return key <= position && position - key <= before && is_kept(query, key);
}

std::vector<float> waves(Index count, double step) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(1.5 * std::sin(step * static_cast<double>(i + 1)));
  return values;
}

/// The definition for one row, as value_dim numbers; zeros if no key is visible.
std::vector<double> expected_row(const float* query, const float* key, const float* value, Index i) {
  std::vector<double> out(value_dim, 0.0);
  double sum = 0;
  for (Index j = 0; j < keys; ++j) {
    if (!is_visible(i, j)) continue;
    double score = 0;
    for (Index c = 0; c < head_dim; ++c) score += static_cast<double>(query[c]) * static_cast<double>(key[j * head_dim + c]);
    const double weight = std::exp(score / std::sqrt(static_cast<double>(head_dim)));
    sum += weight;
    for (Index c = 0; c < value_dim; ++c)
      out[static_cast<std::size_t>(c)] += weight * static_cast<double>(value[j * value_dim + c]);
  }
  if (sum > 0)
    for (double& x : out) x /= sum;
  return out;
}

bool agrees_with_the_definition() {
  std::vector<float> q = waves(heads * queries * head_dim, 0.7), k = waves(heads * keys * head_dim, 0.3);
  std::vector<float> v = waves(heads * keys * value_dim, 0.11), o(static_cast<std::size_t>(heads * queries * value_dim));
  std::vector<std::uint8_t> keep(static_cast<std::size_t>(queries * keys));
  for (Index i = 0; i < queries; ++i)
    for (Index j = 0; j < keys; ++j) keep[static_cast<std::size_t>(i * keys + j)] = is_kept(i, j);
  for (Index h = 0; h < heads; ++h) v[static_cast<std::size_t>((h * keys + 5) * value_dim)] = poison();
  longview::sliding_window_attention(
      longview::view_of(q, {1, heads, queries, head_dim}), longview::view_of(k, {1, heads, keys, head_dim}),
      longview::view_of(v, {1, heads, keys, value_dim}), longview::view_of(o, {1, heads, queries, value_dim}),
      {.window = {.before = before},
       .scores = {.alignment = longview::Alignment::bottom_right, .keep_mask = longview::view_of(keep, {1, 1, queries, keys})}});
  double worst = 0;
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < queries; ++i) {
      const std::vector<double> row = expected_row(q.data() + (h * queries + i) * head_dim, k.data() + h * keys * head_dim,
                                                   v.data() + h * keys * value_dim, i);
      for (Index c = 0; c < value_dim; ++c) {
        const double got = static_cast<double>(o[static_cast<std::size_t>((h * queries + i) * value_dim + c)]);
        const double error = std::fabs(got - row[static_cast<std::size_t>(c)]);
        worst = error <= worst ? worst : error;  // a NaN becomes the worst
      }
    }
  std::printf("  largest error %.1e\n", worst);
  return worst <= 2e-6;
}

/// S11, S14: an element count one beyond the largest Index, of 32 bits in a 32-bit program.
bool counts_do_not_wrap() {
  const Index half = Index{1} << (sizeof(Index) * 4);
  const longview::TensorView<const float, 4> large(nullptr, {1, 1, half, half / 2});
  longview::DryRun rehearsal;
  longview::full_attention(large, large, large, longview::TensorView<float, 4>(nullptr, large.shape()), {},
                           longview::Run(longview::Sequential(), rehearsal));
  std::printf("  %zu bits: %s\n", sizeof(Index) * 8, rehearsal.error());
  return std::strcmp(rehearsal.error(), "full_attention: query: element count overflows") == 0;
}

void break_the_contract(longview::Run run) {
  std::vector<float> x(24);
  longview::full_attention(longview::view_of(x, {1, 1, 2, 12}), longview::view_of(x, {1, 1, 3, 8}),
                           longview::view_of(x, {1, 1, 3, 8}), longview::view_of(x, {1, 1, 3, 8}), {}, run);
}

#if !LONGVIEW_EXCEPTIONS
/// How a process ends that breaks the contract after prepare().
template <typename Prepare>
int status_of_failure(Prepare prepare) {
  const pid_t child = fork();
  if (child == 0) {
    prepare();
    break_the_contract({});
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

/// B01: without exceptions the text goes to the handler; without a handler the process aborts.
bool failures_end_the_process() {
  const int aborted = status_of_failure([] {}), handled = status_of_failure([] {
    longview::set_failure_handler([](const char* text) {
      _exit(std::strcmp(text, "full_attention: out: shape (got 1x1x3x8, expected 1x1x2x8)") == 0 ? 7 : 8);
    });
  });
  return WIFSIGNALED(aborted) && WTERMSIG(aborted) == SIGABRT && WIFEXITED(handled) && WEXITSTATUS(handled) == 7;
}
#endif

/// A rehearsal reports what is wrong with a call, with or without exceptions.
bool reports_errors() {
  longview::DryRun rehearsal;
  break_the_contract(longview::Run(longview::Sequential(), rehearsal));
  std::printf("  %s\n", rehearsal.error());
  return !rehearsal.ok();
}

}  // namespace

int main() {
  bool good = reports_errors();
  good = counts_do_not_wrap() && good;
#if !LONGVIEW_EXCEPTIONS
  good = failures_end_the_process() && good;
#endif
  for (const auto set : {longview::InstructionSet::portable, longview::InstructionSet::baseline,
                         longview::InstructionSet::avx2, longview::InstructionSet::avx512}) {
    if (!longview::available(set)) continue;
    longview::use_instruction_set(set);
    std::printf("%s\n", longview::name_of(set));
    good = agrees_with_the_definition() && good;
  }
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
