// compiles
#include <longview/longview.hpp>

template <typename T>
void call() {
  T data[4] = {};
  longview::TensorView<T, 3> lse(data, {1, 1, 2});
  longview::TensorView<const T, 4> query(data, {1, 1, 2, 2}), key = query;
  longview::TensorView<T, 4> out(data, {1, 1, 2, 2});
  longview::full_attention(query, key, {data, {1, 1, 2, 2}}, out);
  longview::full_attention(out, out, key, {out, lse}, {.causal = true});
}

void calls() {
  call<float>();
  call<double>();
}
