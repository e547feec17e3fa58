// error: 3[^ ]* does not match [^ ]*4|could not match 4 against 3
#include <longview/longview.hpp>

void call(longview::TensorView<float, 3> query, longview::TensorView<float, 4> x) {
  longview::full_attention(query, x, x, x);
}
