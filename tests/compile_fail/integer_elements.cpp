// error: Storage|constraints not satisfied for class template 'Output'
#include <longview/longview.hpp>

void call(longview::TensorView<int, 4> x) { longview::full_attention(x, x, x, x); }
