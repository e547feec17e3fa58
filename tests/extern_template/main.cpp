// Calls every operator on one key, whose value is the answer. The bodies come from bodies.cpp.
#include "bodies.hpp"

int main() {
  using longview::TensorView;
  float query[2] = {1, 2}, key[2] = {3, 4}, value[1] = {5}, position[2] = {6, 7}, slot[1] = {1}, out[6] = {};
  const TensorView<const float, 4> q(query, {1, 1, 1, 2}), k(key, {1, 1, 1, 2}), v(value, {1, 1, 1, 1});
  const auto result = [&](int at) { return TensorView<float, 4>(out + at, {1, 1, 1, 1}); };
  longview::full_attention(q, k, v, result(0));
  longview::sliding_window_attention(q, k, v, result(1));
  longview::longformer_attention(q, k, v, result(2));
  longview::relative_attention(q, k, v, result(3), {.position = {position, {1, 1, 2}}});
  longview::linformer_attention(q, k, v, result(4), {.key_projection = {.matrix = {slot, {1, 1, 1}}}});
  longview::performer_attention(q, k, v, result(5));
  for (const float x : out)
    if (!(x > 4.999F && x < 5.001F)) return 1;
  return 0;
}
