// error: KeysFor
#include <longview/longview.hpp>

void call(longview::TensorView<float, 4> x, const longview::KeyValueView<double>& keys) {
  longview::full_attention_backward(x, keys, x, {});
}
