// Attention inside one buffer that holds query, key and value of each token side by side, without a copy.
#include <cmath>
#include <cstdio>
#include <vector>

#include "longview/full_attention.hpp"

int main() {
  using namespace longview;
  const Index batch = 2, length = 128, heads = 8, dim = 64;
  std::vector<float> packed(batch * length * 3 * heads * dim), attended(batch * length * heads * dim);
  for (std::size_t i = 0; i < packed.size(); ++i) packed[i] = std::sin(0.37F * static_cast<float>(i % 997));

  // What one matrix product with the weights (width, 3 * width) leaves: (batch, length, 3, heads, dim).
  const auto qkv = view_of(packed, {batch, length, 3, heads, dim}).transpose(1, 3);  // (batch, heads, 3, length, dim)
  // The result as the next matrix product wants it: (batch, length, heads, dim).
  const auto out = view_of(attended, {batch, length, heads, dim}).transpose(1, 2);  // (batch, heads, length, dim)
  full_attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), out, {.causal = true});

  const Index token = 100, width = heads * dim;
  std::printf("channel 0 of token %td: %.3f in the view, %.3f in the buffer\n", token, out(1, 0, token, 0),
              attended[static_cast<std::size_t>((length + token) * width)]);
}
