// error: ReadableAs
#include <longview/longview.hpp>

void call(longview::TensorView<const float, 4> x) { longview::full_attention(x, x, x, x); }
