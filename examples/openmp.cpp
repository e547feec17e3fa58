// Running an operator on OpenMP's threads.
#include <cmath>
#include <cstdio>
#include <vector>

#include "longview/openmp.hpp"
#include "longview/sliding_window_attention.hpp"

int main() {
  using namespace longview;
  const Index heads = 4, length = 2048, dim = 32;
  std::vector<double> q(heads * length * dim), k(q.size()), v(q.size()), out(q.size()), alone(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) {
    q[i] = std::sin(0.7 * static_cast<double>(i % 1009));
    k[i] = std::cos(0.3 * static_cast<double>(i % 1013));
    v[i] = q[i] + k[i];
  }
  const auto rows = [&](std::vector<double>& x) { return view_of(x, {1, heads, length, dim}); };
  const SlidingWindowOptions<double> options{.window = {.before = 100, .after = 100}};

  sliding_window_attention(rows(q), rows(k), rows(v), rows(out), options, OpenMP{.threads = 4});
  sliding_window_attention(rows(q), rows(k), rows(v), rows(alone), options);
  std::printf("the same bits on 4 threads and on 1: %s\n", out == alone ? "yes" : "no");
}
