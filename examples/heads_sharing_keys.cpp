// Eight query heads on two heads of keys and values, and one set of keys for a whole batch: nothing is repeated in
// memory.
#include <cmath>
#include <cstdio>
#include <vector>

#include "longview/full_attention.hpp"

int main() {
  using namespace longview;
  const Index batch = 4, heads = 8, key_heads = 2, length = 96, dim = 32;
  std::vector<float> query(batch * heads * length * dim), key(batch * key_heads * length * dim), value(key.size());
  std::vector<float> grouped(query.size()), common(query.size());
  for (std::size_t i = 0; i < query.size(); ++i) query[i] = std::sin(0.11F * static_cast<float>(i % 1009));
  for (std::size_t i = 0; i < key.size(); ++i) {
    key[i] = std::cos(0.13F * static_cast<float>(i % 1013));
    value[i] = std::sin(0.17F * static_cast<float>(i % 1019));
  }
  const auto q = view_of(query, {batch, heads, length, dim});
  const auto k = view_of(key, {batch, key_heads, length, dim});
  const auto v = view_of(value, {batch, key_heads, length, dim});

  // Fewer heads of keys than of queries: query head h reads key head h / (heads / key_heads).
  const auto out = view_of(grouped, {batch, heads, length, dim});
  full_attention(q, k, v, out);

  // A step of 0 repeats: every item of the batch reads the keys of item 0.
  const auto same = view_of(common, {batch, heads, length, dim});
  full_attention(q, k.slice(0, 0, batch, 0), v.slice(0, 0, batch, 0), same);

  std::printf("own keys: %.4f %.4f, keys of item 0: %.4f %.4f\n", out(0, 7, 0, 0), out(3, 7, 0, 0), same(0, 7, 0, 0),
              same(3, 7, 0, 0));
}
