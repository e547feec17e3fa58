// error: ReadableAs
#include <longview/longview.hpp>

void call(longview::TensorView<float, 4> x, longview::TensorView<double, 4> key) {
  longview::full_attention(x, key, x, x);
}
