// One call: attention in which each token sees the 256 tokens before it and itself.
#include <cmath>
#include <cstdio>
#include <vector>

#include "longview/longview.hpp"

int main() {
  const longview::Index heads = 4, length = 8192, dim = 64;
  std::vector<float> query(heads * length * dim), key(query.size()), value(query.size()), out(query.size());
  for (std::size_t i = 0; i < query.size(); ++i) {
    query[i] = std::sin(0.1F * static_cast<float>(i % 1013));
    key[i] = std::cos(0.1F * static_cast<float>(i % 1019));
    value[i] = static_cast<float>(i / dim % length);  // each row holds its own position
  }

  const auto rows = [&](std::vector<float>& x) { return longview::view_of(x, {1, heads, length, dim}); };
  longview::sliding_window_attention(rows(query), rows(key), rows(value), rows(out),  // (batch, heads, length, dim)
                                     {.window = {.before = 256}});

  std::printf("token 5000 looks at position %.1f on average\n", rows(out)(0, 0, 5000, 0));
}
