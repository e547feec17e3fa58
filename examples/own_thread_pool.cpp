// Running an operator on threads the program already owns, in memory the program already has.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <future>
#include <vector>

#include "longview/full_attention.hpp"

using longview::Index;

/// Stands for the program's own pool: something that takes functions and runs them some time.
struct Pool {
  std::future<void> submit(std::function<void()> function) const { return std::async(std::launch::async, function); }
};

/// Any type with these two members is an executor.
struct OnPool {
  const Pool& pool;
  Index threads;

  Index concurrency() const { return threads; }
  /// Runs body(0) ... body(count - 1), in any order, and returns when all are done; count <= concurrency().
  void operator()(Index count, longview::TaskBody body) const {
    std::vector<std::future<void>> others;
    for (Index task = 1; task < count; ++task) others.push_back(pool.submit([body, task] { body(task); }));
    if (count > 0) body(0);  // the calling thread works as well
    for (std::future<void>& other : others) other.wait();
  }
};

int main() {
  const Index heads = 8, length = 512, dim = 64;
  std::vector<float> q(heads * length * dim), k(q.size()), v(q.size()), out(q.size()), alone(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = std::sin(static_cast<float>(i % 991)), k[i] = v[i] = q[i] * q[i];
  const auto attend = [&](std::vector<float>& to, longview::Run run) {
    const auto rows = [&](std::vector<float>& x) { return longview::view_of(x, {1, heads, length, dim}); };
    longview::full_attention(rows(q), rows(k), rows(v), rows(to), {.causal = true}, run);
  };

  const Pool pool;
  const OnPool executor{pool, 4};
  longview::DryRun rehearsal;  // how much scratch the call needs
  attend(out, {executor, rehearsal});
  std::vector<std::byte> scratch(rehearsal.workspace_bytes());
  attend(out, {executor, scratch});  // allocates nothing

  attend(alone, {});  // one thread, scratch of its own
  std::printf("the same bits on 4 threads and on 1: %s\n", out == alone ? "yes" : "no");
}
